//! Writing the history: one change at a time, each message under the expectation of the one before.
//!
//! What an answer did not settle is settled by looking at the place itself; an empty place is filled with a no-op, since a
//! publish that was buffered somewhere may still land. A deposed controller learns it here, at the latest.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::admin::Reply;
use super::office::Role;
use super::{AppendResult, Controller, Effect, Level, Token};
use crate::metadata::{Cause, Entry, Offered, Record, encode_change};
use crate::types::{ControllerEpoch, Monotonic, Position, RequestId, StorageId, Version};
use crate::wire::{Code, WireError};

/// How long what an append came to may stay unknown.
const SETTLE: Duration = Duration::from_secs(5);
/// How long one append or read may take before it is looked into.
const ANSWER: Duration = Duration::from_millis(1500);
/// How many messages that are not ours may stand in the way of one change.
const OBSTACLES: u32 = 1000;

/// An epoch that no election ever has: every JSON reader still holds it exactly.
const NOBODYS_EPOCH: ControllerEpoch = ControllerEpoch((1 << 53) - 1);

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    Election,
    /// These wait for it.
    Replies(Vec<(Token, Reply)>),
    Background,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Appending,
    /// Waits for what stands in the place.
    Reading,
    /// A no-op is on its way into the place.
    Filling,
}

#[derive(Clone, Debug)]
pub(super) struct InFlight {
    entry: Entry,
    purpose: Purpose,
    /// Who may lose a leadership by it.
    pub(super) losers: BTreeSet<StorageId>,
    messages: Vec<Bytes>,
    sent: usize,
    expected: Version,
    /// The append that is waited for.
    attempt: u64,
    stage: Stage,
    filler: Option<Bytes>,
    answer_by: Monotonic,
    settle_by: Option<Monotonic>,
    obstacles: u32,
}

impl InFlight {
    pub(super) fn due(&self) -> Option<Monotonic> {
        Some(self.settle_by.map_or(self.answer_by, |by| by.min(self.answer_by)))
    }

    pub(super) fn tokens(&self) -> Vec<Token> {
        match &self.purpose {
            Purpose::Replies(replies) => replies.iter().map(|(token, _)| *token).collect(),
            Purpose::Election | Purpose::Background => Vec::new(),
        }
    }

    fn is_about_liveness(&self) -> bool {
        let is_state = |record: &Record| matches!(record, Record::StorageStateChanged { .. });
        self.purpose == Purpose::Background && self.entry.records.iter().any(is_state)
    }

    fn current(&self) -> &Bytes {
        match (&self.filler, self.stage) {
            (Some(filler), Stage::Filling) => filler,
            _ => &self.messages[self.sent],
        }
    }
}

impl Controller {
    /// Begins to append a change. At most one is under way.
    pub(super) fn append(
        &mut self,
        records: Vec<Record>,
        cause: Cause,
        request: Option<(RequestId, u64, Arc<str>)>,
        purpose: Purpose,
    ) {
        let cluster = self.image().map_or(self.me.founding, |image| image.cluster);
        let losers = self.losers(&records);
        let entry = Entry {
            cluster,
            controller_epoch: self.history.controller_epoch(),
            previous: self.history.position(),
            committed_at: self.now.wall,
            cause,
            request,
            records,
        };
        let in_flight = InFlight {
            entry,
            purpose,
            losers,
            messages: Vec::new(),
            sent: 0,
            expected: Version::ZERO,
            attempt: 0,
            stage: Stage::Appending,
            filler: None,
            answer_by: self.mono() + ANSWER,
            settle_by: None,
            obstacles: 0,
        };
        self.in_flight = Some(in_flight);
        self.begin_again();
    }

    /// Encodes the change on top of what is there now, and sends its first message.
    fn begin_again(&mut self) {
        let (seen, position) = (self.history.seen(), self.history.position());
        let limit = self.settings.message_limit;
        let Some(in_flight) = &mut self.in_flight else { return };
        // Parts of a change that never ended are void once another begins after them.
        in_flight.entry.previous.digest = position.digest;
        in_flight.entry.previous.version = seen;
        if in_flight.purpose == Purpose::Election {
            in_flight.entry.controller_epoch = ControllerEpoch(seen.next().0);
        }
        match encode_change(&in_flight.entry, limit) {
            Ok(messages) => {
                in_flight.messages = messages;
                in_flight.sent = 0;
                self.send();
            }
            Err(error) => {
                let tokens = in_flight.tokens();
                self.in_flight = None;
                self.log(Level::Error, format!("a change cannot be written: {error}"));
                for token in tokens {
                    self.fail(token, WireError::new(Code::MessageTooLarge, error.to_string()));
                }
            }
        }
    }

    fn send(&mut self) {
        let (seen, now) = (self.history.seen(), self.mono());
        let Some(in_flight) = &mut self.in_flight else { return };
        self.attempts += 1;
        in_flight.attempt = self.attempts;
        in_flight.expected = seen;
        in_flight.stage = Stage::Appending;
        in_flight.answer_by = now + ANSWER;
        let payload = in_flight.messages[in_flight.sent].clone();
        self.out.push(Effect::Append { attempt: self.attempts, expected: seen, payload });
    }

    pub(super) fn on_appended(&mut self, attempt: u64, result: AppendResult) {
        let Some(in_flight) = &mut self.in_flight else { return };
        if in_flight.attempt != attempt || in_flight.stage == Stage::Reading {
            return;
        }
        match result {
            AppendResult::Stored => {
                let (version, payload) = (in_flight.expected.next(), in_flight.current().clone());
                self.arrived(version, &payload);
            }
            AppendResult::Conflict | AppendResult::Unknown => self.look(),
            AppendResult::Refused(words) => {
                self.log(Level::Error, format!("NATS refuses to store a change of the metadata: {words}"));
                // It is not stored; but whoever cannot write holds no office.
                self.resign("NATS refuses what it writes");
                self.ask_head();
            }
        }
    }

    /// Looks at what stands in the place of the message under way.
    fn look(&mut self) {
        let now = self.mono();
        let Some(in_flight) = &mut self.in_flight else { return };
        in_flight.stage = Stage::Reading;
        in_flight.answer_by = now + ANSWER;
        in_flight.settle_by.get_or_insert(now + SETTLE);
        let version = in_flight.expected.next();
        self.out.push(Effect::Read { version });
        self.ask_head();
    }

    pub(super) fn on_read(&mut self, version: Version, result: Result<Option<Bytes>, ()>) {
        if self.compare_forked(version, &result) {
            return;
        }
        let Some(in_flight) = &self.in_flight else { return };
        if in_flight.stage != Stage::Reading || in_flight.expected.next() != version {
            return;
        }
        match result {
            Ok(Some(payload)) => self.arrived(version, &payload),
            Ok(None) => self.fill(),
            // Asked again when `answer_by` comes.
            Err(()) => {}
        }
    }

    /// Nothing is there, yet: a no-op under the same expectation keeps our message out for good, or loses against it.
    fn fill(&mut self) {
        let previous = self.history.position();
        let limit = self.settings.message_limit;
        let (now, acting) = (self.mono(), self.may_act());
        let seen = self.history.seen();
        let Some(in_flight) = &mut self.in_flight else { return };
        if !acting {
            return self.resign("an append could not be settled in time");
        }
        // It only has to take the place. Instead of an election it is void by its epoch, for no election ever has that one.
        let elects = in_flight.purpose == Purpose::Election;
        let entry = Entry {
            cluster: in_flight.entry.cluster,
            controller_epoch: if elects { NOBODYS_EPOCH } else { in_flight.entry.controller_epoch },
            previous: Position { version: seen, digest: previous.digest },
            committed_at: in_flight.entry.committed_at,
            cause: "takes the place of a change whose append was not answered".into(),
            request: None,
            records: vec![Record::NoOp {}],
        };
        let Ok(mut messages) = encode_change(&entry, limit) else { return };
        let Some(filler) = messages.pop() else { return };
        in_flight.stage = Stage::Filling;
        in_flight.filler = Some(filler.clone());
        in_flight.answer_by = now + ANSWER;
        self.attempts += 1;
        in_flight.attempt = self.attempts;
        let (attempt, expected) = (in_flight.attempt, in_flight.expected);
        self.out.push(Effect::Append { attempt, expected, payload: filler });
    }

    /// A message is in the place that ours was meant for. True where it was taken care of here.
    pub(super) fn arrived(&mut self, version: Version, payload: &Bytes) {
        let Some(in_flight) = &mut self.in_flight else { return };
        if version != in_flight.expected.next() {
            return;
        }
        let ours = in_flight.messages.get(in_flight.sent) == Some(payload);
        if ours {
            in_flight.sent += 1;
            in_flight.settle_by = None;
            let finished = in_flight.sent == in_flight.messages.len();
            if !finished {
                self.absorb(version, payload);
                if self.in_flight.is_some() {
                    self.send();
                }
                return;
            }
            let done = self.in_flight.take();
            self.absorb(version, payload);
            if let Some(done) = done {
                self.finished(version, done);
            }
            return;
        }
        // A no-op of ours, garbage, or the entry of another controller.
        in_flight.obstacles += 1;
        let too_many = in_flight.obstacles > OBSTACLES;
        self.absorb(version, payload);
        if too_many {
            self.resign("others write to the history's subject without end");
        }
        // Who was silent may be heard by now: what follows from that is decided anew.
        if self.in_flight.as_ref().is_some_and(InFlight::is_about_liveness) {
            self.in_flight = None;
            self.pairing_dirty = true;
        }
        match self.role {
            Role::Active { .. } | Role::Electing if self.in_flight.is_some() => self.begin_again(),
            Role::Active { .. } | Role::Electing | Role::Starting | Role::Standby | Role::Halted { .. } => {}
        }
    }

    fn finished(&mut self, version: Version, done: InFlight) {
        match done.purpose {
            Purpose::Election => {
                if self.history.controller_epoch() == ControllerEpoch(version.0) {
                    self.elected(ControllerEpoch(version.0));
                } else {
                    self.resign("its election entry did not count");
                }
            }
            Purpose::Replies(replies) => {
                replies.into_iter().for_each(|(token, reply)| self.committed(version, token, reply));
            }
            Purpose::Background => {}
        }
    }

    pub(super) fn keep_append_time(&mut self) {
        let now = self.mono();
        let Some(in_flight) = &mut self.in_flight else { return };
        if in_flight.settle_by.is_some_and(|by| now >= by) {
            self.resign("an append could not be settled in time");
            self.ask_head();
        } else if now >= in_flight.answer_by {
            self.look();
        }
    }

    /// Offers a message that is known to be in the history.
    pub(super) fn absorb(&mut self, version: Version, payload: &Bytes) {
        match self.history.offer(version, payload) {
            Ok(Offered::Known | Offered::Part) => {}
            Ok(Offered::Void(reason)) => {
                self.complain("void entry", || format!("version {version} of the history is void: {reason}"));
                self.probe.void = Some((version, payload.clone()));
                self.out.push(Effect::PersistSkip(self.history.position()));
            }
            Ok(Offered::Change(change)) => self.on_change(Arc::from(change)),
            Err(error) => {
                self.resign("the history cannot be followed");
                match error {
                    crate::metadata::HistoryError::Gap { .. } => {
                        let after = self.history.seen();
                        self.out.push(Effect::Follow { after });
                    }
                    other => self.out.push(Effect::Exit { words: other.to_string() }),
                }
            }
        }
    }
}
