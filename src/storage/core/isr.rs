//! What a leader's replicas wish of the controller: batched, one request under way, and what became of each.
//!
//! Nothing is asked twice by itself: a refusal or a lost answer goes back to whoever wished, who looks at it anew.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::backoff::{Retry, Waiting};
use super::{Call, CallError, Effect, InSyncWish, Level, Place, StorageCore, answer_of};
use crate::types::Monotonic;
use crate::wire::admin::{IsrMember, IsrRequest, PartitionAlter, PartitionAltered};

#[derive(Default)]
pub(super) struct Isr {
    /// Not asked yet: one per partition.
    wishes: BTreeMap<Place, InSyncWish>,
    asked: Vec<InSyncWish>,
    waiting: Option<Waiting>,
    retry: Retry,
}

impl Isr {
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Monotonic> {
        let retry = if self.wishes.is_empty() || self.waiting.is_some() { None } else { self.retry.due_at() };
        [self.waiting.map(|waiting| waiting.until), retry].into_iter().flatten()
    }
}

impl StorageCore {
    pub(super) fn in_sync_wishes(&mut self, wishes: Vec<InSyncWish>) {
        self.isr.wishes.extend(wishes.into_iter().map(|wish| (wish.place, wish)));
    }

    /// The connection changed: what was under way has no answer any more.
    pub(super) fn isr_interrupted(&mut self, out: &mut Vec<Effect>) {
        self.isr.waiting = None;
        self.isr.retry.reset();
        self.answer_wishes(out, |_| false);
    }

    pub(super) fn step_isr(&mut self, now: Monotonic, out: &mut Vec<Effect>) {
        if self.isr.waiting.is_some_and(|waiting| now >= waiting.until) {
            self.isr_failed(now, out);
        }
        if self.isr.wishes.is_empty() || self.isr.waiting.is_some() {
            return;
        }
        let (Some(storage), Some(node_epoch)) = (self.my_id(), self.registration.node_epoch) else { return };
        if !self.may_lead(now) {
            // Whoever may not lead asks for nothing.
            let wishes = std::mem::take(&mut self.isr.wishes);
            self.isr.asked.extend(wishes.into_values());
            self.answer_wishes(out, |_| false);
            return;
        }
        if !self.isr.retry.is_due(now) {
            return;
        }
        let (mut room, mut asked) = (self.settings.request_max_bytes, Vec::new());
        while asked.len() < self.settings.isr_batch
            && let Some((place, wish)) = self.isr.wishes.pop_first()
        {
            // A single one goes in any case: it is far smaller than any message may be.
            match room.checked_sub(size(&wish)) {
                None if !asked.is_empty() => {
                    self.isr.wishes.insert(place, wish);
                    break;
                }
                left => room = left.unwrap_or(0),
            }
            asked.push(wish);
        }
        let partitions = asked.iter().map(request).collect();
        self.isr.asked = asked;
        let call = self.call();
        self.isr.waiting = Some(Waiting { call, until: now + self.settings.request_timeout });
        out.push(Effect::RequestIsr { call, request: PartitionAlter { storage, node_epoch, partitions } });
    }

    pub(super) fn isr_answer(
        &mut self,
        now: Monotonic,
        call: Call,
        result: Result<Bytes, CallError>,
        out: &mut Vec<Effect>,
    ) {
        if self.isr.waiting.is_none_or(|waiting| waiting.call != call) {
            return;
        }
        let answer = match result {
            Ok(body) => answer_of::<PartitionAltered>(&body),
            Err(CallError::NoResponders | CallError::Timeout) => {
                self.isr_failed(now, out);
                return;
            }
        };
        let refused = match answer {
            Ok(answer) => {
                let refused = answer.partitions.iter().find_map(|outcome| outcome.error.clone());
                let granted = answer.partitions.iter().filter(|outcome| outcome.error.is_none());
                let granted: Vec<Place> = granted.map(|outcome| (outcome.topic_id, outcome.partition)).collect();
                self.isr.waiting = None;
                self.isr.retry.reset();
                self.answer_wishes(out, |place| granted.contains(&place));
                refused
            }
            Err(error) => {
                self.isr_failed(now, out);
                Some(error)
            }
        };
        if let Some(error) = refused {
            self.complain(now, "isr", Level::Info, out, || {
                format!("in-sync replicas were not changed as asked, it is tried again: {error}")
            });
        }
    }

    fn isr_failed(&mut self, now: Monotonic, out: &mut Vec<Effect>) {
        self.isr.waiting = None;
        self.isr.retry.failed(now, &self.settings, &mut self.jitter);
        self.answer_wishes(out, |_| false);
    }

    fn answer_wishes(&mut self, out: &mut Vec<Effect>, granted: impl Fn(Place) -> bool) {
        let outcome = |wish: InSyncWish| wish.outcome(granted(wish.place));
        let outcomes: Vec<_> = std::mem::take(&mut self.isr.asked).into_iter().map(outcome).collect();
        if !outcomes.is_empty() {
            out.push(Effect::InSyncAnswers(outcomes));
        }
    }
}

/// At most so many bytes as JSON.
fn size(wish: &InSyncWish) -> usize {
    const ONE: usize = 208;
    const MEMBER: usize = 64;
    ONE + MEMBER * wish.members.len()
}

fn request(wish: &InSyncWish) -> IsrRequest {
    let member = |(storage, node_epoch): &(_, _)| IsrMember { storage: *storage, node_epoch: *node_epoch };
    IsrRequest {
        topic_id: wish.place.0,
        partition: wish.place.1,
        leader_epoch: wish.leader_epoch,
        partition_epoch: wish.partition_epoch,
        isr: wish.members.iter().map(member).collect(),
        recovered: wish.recovered,
        settles: wish.settles,
    }
}
