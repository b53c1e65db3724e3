//! The leader's wish for in-sync replicas: every replica whose node is active belongs to them, since logs are empty. For the same
//! reason a leader that came from an unclean election has recovered once it leads, and says so.
//!
//! Batched, one request under way. It is looked at anew with each applied change and after each refusal.

use bytes::Bytes;

use super::backoff::{Retry, Waiting};
use super::{Call, CallError, Effect, Level, StorageCore, answer_of};
use crate::metadata::{Image, Partition};
use crate::types::{Monotonic, PartitionId, StorageId, TopicId};
use crate::wire::admin::{IsrMember, IsrRequest, PartitionAlter, PartitionAltered};

#[derive(Default)]
pub(super) struct Isr {
    /// Something changed since the last look.
    pub(super) dirty: bool,
    waiting: Option<Waiting>,
    retry: Retry,
}

impl Isr {
    pub(super) fn connection_changed(&mut self) {
        self.waiting = None;
        self.retry.reset();
        self.dirty = true;
    }

    pub(super) fn deadlines(&self) -> impl Iterator<Item = Monotonic> {
        let retry = if self.dirty { self.retry.due_at() } else { None };
        [self.waiting.map(|waiting| waiting.until), retry].into_iter().flatten()
    }
}

impl StorageCore {
    pub(super) fn step_isr(&mut self, now: Monotonic, out: &mut Vec<Effect>) {
        if self.isr.waiting.is_some_and(|waiting| now >= waiting.until) {
            self.isr_failed(now);
        }
        if !self.isr.dirty || self.isr.waiting.is_some() || !self.isr.retry.is_due(now) || !self.may_lead(now) {
            return;
        }
        self.isr.dirty = false;
        let (Some(storage), Some(node_epoch)) = (self.my_id(), self.registration.node_epoch) else { return };
        let Some(image) = self.history.image() else { return };
        let wished = self.leads.under.iter().filter_map(|&(topic, partition)| wish(image, storage, topic, partition));
        let (mut room, mut is_full) = (self.settings.request_max_bytes, false);
        let fits = |wish: &IsrRequest| {
            // A single one goes in any case: it is far smaller than any message may be.
            let left = room.checked_sub(size(wish)).or((room == self.settings.request_max_bytes).then_some(0));
            is_full |= left.is_none();
            room = left.unwrap_or(0);
            left.is_some()
        };
        let partitions: Vec<_> = wished.take(self.settings.isr_batch).take_while(fits).collect();
        if partitions.is_empty() {
            return;
        }
        // What did not fit is looked at again after the answer.
        self.isr.dirty = is_full || partitions.len() == self.settings.isr_batch;
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
        if self.isr.waiting.take_if(|waiting| waiting.call == call).is_none() {
            return;
        }
        let answer = match result {
            Ok(body) => answer_of::<PartitionAltered>(&body),
            Err(CallError::NoResponders | CallError::Timeout) => {
                self.isr_failed(now);
                return;
            }
        };
        let refused = match answer {
            Ok(answer) => answer.partitions.into_iter().find_map(|outcome| outcome.error),
            Err(error) => Some(error),
        };
        match refused {
            None => self.isr.retry.reset(),
            Some(error) => {
                self.isr_failed(now);
                self.complain(now, "isr", Level::Info, out, || {
                    format!("in-sync replicas were not changed as asked, it is tried again: {error}")
                });
            }
        }
    }

    fn isr_failed(&mut self, now: Monotonic) {
        self.isr.waiting = None;
        self.isr.dirty = true;
        self.isr.retry.failed(now, &self.settings, &mut self.jitter);
    }
}

/// At most so many bytes as JSON.
fn size(wish: &IsrRequest) -> usize {
    const ONE: usize = 192;
    const MEMBER: usize = 64;
    ONE + MEMBER * wish.isr.len()
}

/// All replicas that can be in sync, where they are more than now or the partition is to recover. None where a member cannot be asked for at present: the
/// controller is about to take it out.
fn wish(image: &Image, me: StorageId, topic: TopicId, number: PartitionId) -> Option<IsrRequest> {
    let partition = image.partition(topic, number)?;
    if partition.leader != Some(me) {
        return None;
    }
    let fit = |node: StorageId| node == me || image.is_active(node);
    let grows = partition.replicas.iter().any(|node| fit(*node) && !partition.in_sync(*node));
    let recovered = image.is_recovering(topic, number);
    if !(grows || recovered) || !partition.isr().all(fit) {
        return None;
    }
    Some(IsrRequest {
        topic_id: topic,
        partition: number,
        leader_epoch: partition.leader_epoch,
        partition_epoch: partition.epoch,
        isr: members(image, partition, fit)?,
        recovered,
        settles: false,
    })
}

fn members(image: &Image, partition: &Partition, fit: impl Fn(StorageId) -> bool) -> Option<Vec<IsrMember>> {
    let member = |node: &StorageId| {
        let node_epoch = image.storage.get(node)?.epoch;
        Some(IsrMember { storage: *node, node_epoch })
    };
    partition.replicas.iter().filter(|node| fit(**node)).map(member).collect()
}
