//! The push of every committed change to the paired storage nodes: one under way per node, acknowledged, retried with
//! backoff, coalesced for a slow one.

use std::time::Duration;

use serde_json::value::RawValue;

use super::follow::size;
use super::{Controller, Effect, Token};
use crate::metadata::NodeState;
use crate::types::{Monotonic, Position, StorageId};
use crate::wire::{AckOutcome, Code, FetchRequest, Push, PushAck, PushEntry, WireError, WireMessage};

#[derive(Clone, Debug, Default)]
pub(super) struct PushState {
    /// When what is under way counts as lost, and is sent again.
    under_way: Option<Monotonic>,
    attempts: u32,
}

/// What a node at `base` is pushed.
#[derive(Clone, Debug)]
struct Lacked {
    base: Position,
    position: Position,
    entries: Vec<PushEntry>,
}

impl Controller {
    /// Pushes to every paired node for which nothing is under way.
    pub(super) fn push_all(&mut self) {
        let me = self.me.controller;
        let Some(image) = self.image() else { return };
        let mine = |node: &crate::metadata::StorageNode| node.pairing == Some(me) && node.state != NodeState::Removed;
        let paired: Vec<_> = image.storage.iter().filter(|(_, node)| mine(node)).map(|(id, _)| *id).collect();
        // Nearly all of them have the same, and lack the same.
        let mut lacked = None;
        paired.into_iter().for_each(|id| self.push_what_lacks(id, &mut lacked));
    }

    /// Pushes what the node lacks, if it is ours to push to and nothing is under way.
    pub(super) fn push_to(&mut self, id: StorageId) {
        self.push_what_lacks(id, &mut None);
    }

    fn push_what_lacks(&mut self, id: StorageId, lacked: &mut Option<Lacked>) {
        if self.connection.is_none() {
            return;
        }
        let (now, head) = (self.mono(), self.history.position());
        let Some(node) = self.history.image().and_then(|image| image.storage.get(&id)) else { return };
        if node.pairing != Some(self.me.controller) {
            return;
        }
        let pairing_epoch = node.pairing_epoch;
        let Some(session) = self.sessions.get(&id) else { return };
        if session.push.under_way.is_some() || session.ended || session.position.version >= head.version {
            return;
        }
        let base = session.position;
        let found = match lacked.take() {
            Some(found) if found.base == base => found,
            Some(_) | None => {
                let (position, entries) = self.what_lacks(base);
                Lacked { base, position, entries }
            }
        };
        let Lacked { position, entries, .. } = lacked.insert(found).clone();
        let Some(image) = self.history.image() else { return };
        let push = Push {
            cluster: image.cluster,
            controller: self.me.controller,
            controller_epoch: image.controller_epoch(),
            storage: id,
            pairing_epoch,
            base,
            position,
            entries,
        };
        self.out.push(Effect::Push { storage: id, payload: push.encode() });
        let patience = self.patience(id);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.push.under_way = Some(now + patience);
            session.push.attempts += 1;
        }
        let due = now + patience;
        self.push_retry_at = Some(self.push_retry_at.map_or(due, |at| at.min(due)));
    }

    /// The changes after a position, as many as one push may carry; none where they are no longer at hand.
    fn what_lacks(&self, base: Position) -> (Position, Vec<PushEntry>) {
        let head = self.history.position();
        let mut position = base;
        let mut entries = Vec::new();
        let mut bytes = 0;
        for change in self.tail.after(base.version) {
            // A change that does not stand on what the node has: it is too far behind, or has another history.
            if change.base.digest != position.digest {
                break;
            }
            bytes += size(change);
            if !entries.is_empty() && bytes > self.settings.push_max_bytes {
                return (position, entries);
            }
            let Some(raw) = change.messages.iter().map(to_entry).collect::<Option<Vec<_>>>() else { break };
            if bytes > self.settings.push_max_bytes {
                // Alone too large for one message: the node fetches it.
                return (head, Vec::new());
            }
            entries.extend(raw);
            position = change.position;
        }
        // Behind the last change there are only versions that changed nothing.
        if position.digest == head.digest { (head, entries) } else { (head, Vec::new()) }
    }

    /// How long to wait for an acknowledgement: longer with each attempt, and not the same for all.
    fn patience(&self, id: StorageId) -> Duration {
        let attempts = self.sessions.get(&id).map_or(0, |session| session.push.attempts);
        let full = self.settings.push_retry_min.saturating_mul(1 << attempts.min(16)).min(self.settings.push_retry_max);
        let seed = self.me.directory.0.as_u64_pair().0 ^ (u64::from(id.0) << 32) ^ u64::from(attempts);
        let noise = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54;
        full.mul_f64(0.75 + noise as f64 / 2048.0)
    }

    pub(super) fn push_due(&mut self) {
        let now = self.mono();
        self.push_retry_at = None;
        let overdue = |at: Option<Monotonic>| at.is_some_and(|at| now >= at);
        let ids: Vec<_> = self.sessions.iter().filter(|(_, s)| overdue(s.push.under_way)).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.push.under_way = None;
            }
            self.push_to(id);
        }
        let next = self.sessions.values().filter_map(|session| session.push.under_way).min();
        self.push_retry_at = next;
    }

    /// Nobody listens: the retry comes when it is due, at the latest.
    pub(super) fn on_push_unheard(&mut self, _storage: StorageId) {}

    pub(super) fn on_ack(&mut self, storage: StorageId, payload: &[u8]) {
        let ack = match PushAck::decode(payload) {
            Ok(ack) => ack,
            Err(error) => {
                return self.complain(&format!("ack {storage}"), || {
                    format!("an acknowledgement of storage node {storage} was refused: {error}")
                });
            }
        };
        let known = self.image().is_some_and(|image| {
            let node = image.storage.get(&ack.storage);
            let counts = node.is_some_and(|n| n.incarnation == ack.incarnation && n.directory == Some(ack.directory));
            storage == ack.storage && ack.cluster == Some(image.cluster) && counts
        });
        if !known && !matches!(self.role, super::office::Role::Active { .. }) {
            // A standby may not have read of its registration yet.
            return;
        }
        if !known {
            return self.complain(&format!("ack {storage}"), || {
                format!("an acknowledgement on the subject of storage node {storage} is of no registered incarnation")
            });
        }
        let moved = match self.sessions.get_mut(&storage) {
            Some(session) if session.incarnation == ack.incarnation => {
                let moved = ack.position.version > session.position.version;
                match ack.outcome {
                    AckOutcome::Applied | AckOutcome::Duplicate => {
                        session.push.under_way = None;
                        session.push.attempts = 0;
                    }
                    // It fetches, or is not ours: what is under way runs into its time.
                    AckOutcome::Gap
                    | AckOutcome::StaleEpoch
                    | AckOutcome::NotPaired
                    | AckOutcome::Forked
                    | AckOutcome::Refused => {}
                }
                moved
            }
            Some(_) | None => return,
        };
        self.weigh_claim(ack.position, || format!("storage node {storage}"));
        if moved {
            self.note_position(storage, ack.position);
            self.look_at_node(storage);
        }
    }

    pub(super) fn on_fetch(&mut self, payload: &[u8], token: Token) {
        let request = match FetchRequest::decode(payload) {
            Ok(request) => request,
            Err(error) => {
                self.complain("fetch", || format!("a fetch of metadata was refused: {error}"));
                return self.fail(token, error);
            }
        };
        let Some(image) = self.image() else {
            let words = "this controller has no metadata yet; ask again soon";
            return self.fail(token, WireError::new(Code::NotController, words));
        };
        if let Some(cluster) = request.cluster
            && cluster != image.cluster
        {
            let words = format!("this is cluster {}, not {cluster}", image.cluster);
            return self.fail(token, WireError::new(Code::InconsistentClusterId, words));
        }
        // Only what is on this controller's disk can be served from it.
        let head = self.durable;
        self.out.push(Effect::ServeFetch { token, request, head });
    }
}

fn to_entry(message: &crate::metadata::Message) -> Option<PushEntry> {
    let text = std::str::from_utf8(&message.payload).ok()?;
    let entry: Box<RawValue> = RawValue::from_string(text.to_string()).ok()?;
    Some(PushEntry { version: message.version, entry })
}
