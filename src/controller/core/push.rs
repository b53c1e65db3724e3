//! The push of every committed change to the paired storage nodes: one under way per node, acknowledged, retried with
//! backoff, coalesced for a slow one.
//!
//! The active controller also looks after the nodes that are paired with another one: where that one is not heard, or the
//! node does not acknowledge in time, it tells the node how far the history is, and the node fetches from it.

use std::time::Duration;

use serde_json::value::RawValue;

use super::follow::size;
use super::{Controller, Effect, Token};
use crate::metadata::{NodeState, StorageNode};
use crate::types::{Monotonic, Position, StorageId};
use crate::wire::{AckOutcome, Code, FetchRequest, Push, PushAck, PushEntry, WireError, WireMessage};

/// The longest that the active controller waits for another one's push to be acknowledged.
const STAND_IN_AFTER: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, Default)]
pub(super) struct PushState {
    /// When what is under way counts as lost, and is sent again.
    under_way: Option<Monotonic>,
    attempts: u32,
    /// Nobody listened. The node is there when its next heartbeat comes, and not before.
    unheard: bool,
}

impl PushState {
    /// What is under way is another controller's.
    pub(super) fn paired_anew(&mut self) {
        *self = Self { unheard: self.unheard, ..Self::default() };
    }

    /// The node was heard, so it listens.
    pub(super) fn heard(&mut self) {
        self.unheard = false;
    }
}

/// What is done for a node that lacks something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Means {
    Push,
    /// It is another controller's turn to push.
    Wait,
    /// It is to fetch from this controller.
    StandIn,
}

/// What a node at `base` is pushed.
#[derive(Clone, Debug)]
struct Lacked {
    base: Position,
    position: Position,
    entries: Vec<PushEntry>,
}

impl Controller {
    /// Looks after every node for which nothing is under way.
    pub(super) fn push_all(&mut self) {
        let Some(image) = self.image() else { return };
        let concerns =
            |node: &StorageNode| node.state != NodeState::Removed && self.means(node, &PushState::default()).is_some();
        let nodes: Vec<_> = image.storage.iter().filter(|(_, node)| concerns(node)).map(|(id, _)| *id).collect();
        // Nearly all of them have the same, and lack the same.
        let mut lacked = None;
        nodes.into_iter().for_each(|id| self.push_what_lacks(id, &mut lacked));
    }

    /// What this controller does for a node that lacks something. None: it leaves it to another one.
    fn means(&self, node: &StorageNode, push: &PushState) -> Option<Means> {
        if node.pairing == Some(self.me.controller) {
            return Some(Means::Push);
        }
        self.acting_epoch()?;
        let is_heard = node.pairing.and_then(|id| self.peers.get(&id)).is_some_and(|peer| {
            // It says something every interval: two in a row that are missing are no accident.
            self.peer_alive(peer) && self.mono().since(peer.heard) < self.settings.heartbeat_interval * 5 / 2
        });
        Some(if is_heard && push.attempts == 0 { Means::Wait } else { Means::StandIn })
    }

    /// Sees to it that the node gets what it lacks, if that is ours to do and nothing is under way.
    pub(super) fn push_to(&mut self, id: StorageId) {
        self.push_what_lacks(id, &mut None);
    }

    fn push_what_lacks(&mut self, id: StorageId, lacked: &mut Option<Lacked>) {
        if self.connection.is_none() {
            return;
        }
        let head = self.history.position();
        let (Some(image), Some(session)) = (self.history.image(), self.sessions.get(&id)) else { return };
        let Some(node) = image.storage.get(&id) else { return };
        let is_busy = session.push.under_way.is_some() || session.push.unheard || session.ended.is_some();
        if is_busy || session.position.version >= head.version {
            return;
        }
        let Some(means) = self.means(node, &session.push) else { return };
        let base = session.position;
        let (position, entries) = match means {
            Means::Push => {
                let found = match lacked.take() {
                    Some(found) if found.base == base => found,
                    Some(_) | None => {
                        let (position, entries) = self.what_lacks(base);
                        Lacked { base, position, entries }
                    }
                };
                let Lacked { position, entries, .. } = lacked.insert(found).clone();
                (position, entries)
            }
            Means::Wait | Means::StandIn => (head, Vec::new()),
        };
        let push = Push {
            cluster: image.cluster,
            controller: self.me.controller,
            controller_epoch: image.controller_epoch(),
            storage: id,
            pairing_epoch: node.pairing_epoch,
            base,
            position,
            entries,
        };
        let patience = match means {
            Means::Push | Means::StandIn => {
                self.out.push(Effect::Push { storage: id, payload: push.encode() });
                self.patience(id)
            }
            Means::Wait => (self.settings.push_retry_min * 2).min(STAND_IN_AFTER),
        };
        let due = self.mono() + patience;
        if let Some(session) = self.sessions.get_mut(&id) {
            session.push.under_way = Some(due);
            session.push.attempts += 1;
        }
        self.push_retry_at = Some(self.push_retry_at.map_or(due, |at| at.min(due)));
    }

    /// The changes after a position, as many as one push may carry; none where they are no longer at hand.
    fn what_lacks(&self, base: Position) -> (Position, Vec<PushEntry>) {
        let head = self.history.position();
        let max_bytes = self.settings.push_max_bytes.min(self.settings.message_limit);
        let mut position = base;
        let mut entries = Vec::new();
        let mut bytes = 0;
        for change in self.tail.after(base.version) {
            // A change that does not stand on what the node has: it is too far behind, or has another history.
            if change.base.digest != position.digest {
                break;
            }
            bytes += size(change);
            if !entries.is_empty() && bytes > max_bytes {
                return (position, entries);
            }
            if bytes > self.settings.message_limit {
                // Alone too large for one message: the node fetches it.
                return (head, Vec::new());
            }
            let Some(raw) = change.messages.iter().map(to_entry).collect::<Option<Vec<_>>>() else { break };
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

    /// Nobody listens, so to try again is no use before the node is heard. The word comes on the node's ack subject, to all
    /// controllers alike.
    pub(super) fn on_push_unheard(&mut self, storage: StorageId) {
        if let Some(session) = self.sessions.get_mut(&storage) {
            session.push = PushState { unheard: true, ..PushState::default() };
        }
    }

    pub(super) fn on_ack(&mut self, storage: StorageId, payload: &[u8]) {
        let ack = match PushAck::decode(payload).and_then(|ack| self.check_claim(ack.position).map(|()| ack)) {
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
                session.push.heard();
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
            self.complain("fetch of another cluster", || format!("a fetch of metadata was refused: {words}"));
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
