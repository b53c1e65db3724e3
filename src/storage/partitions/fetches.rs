//! Clients' fetches that wait for records, as Kafka's purgatory does it.

use std::collections::{BTreeMap, BTreeSet};

use async_nats::Subject;

use super::request::Format;
use crate::storage::core::Place;
use crate::types::{LeaderEpoch, Monotonic, Offset};
use crate::wire::data::FetchedHead;

/// The most that wait on one node. Beyond that one is answered at once.
const MAX_WAITING: usize = 16_384;

#[derive(Clone, Debug)]
pub(in crate::storage) struct Fetch {
    pub(super) place: Place,
    pub(super) offset: Offset,
    pub(super) max_bytes: usize,
    pub(super) min_bytes: usize,
    pub(super) until: Monotonic,
    /// What is there up to here is less than `min_bytes`.
    pub(super) beyond: Offset,
    pub(super) format: Format,
    pub(super) leader_epoch: Option<LeaderEpoch>,
    /// How many answers there may be, with this one.
    pub(super) answers: u32,
    pub(super) reply: Subject,
}

impl Fetch {
    /// What is to be answered behind the answer that has this head, which is told of it: at once, and by this leadership alone.
    pub(super) fn following(&self, head: &mut FetchedHead, now: Monotonic) -> Option<Self> {
        let offset = head.next_offset;
        head.more = self.answers > 1 && self.offset < offset && offset < head.high_watermark;
        head.more.then(|| Self {
            offset,
            beyond: offset,
            until: now,
            leader_epoch: Some(head.leader_epoch),
            answers: self.answers - 1,
            ..self.clone()
        })
    }
}

#[derive(Default)]
pub(super) struct Fetches {
    waiting: BTreeMap<(Place, u64), Fetch>,
    due: BTreeSet<(Monotonic, Place, u64)>,
    next: u64,
}

impl Fetches {
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_WAITING
    }

    pub(super) fn add(&mut self, fetch: Fetch) {
        self.next += 1;
        self.due.insert((fetch.until, fetch.place, self.next));
        self.waiting.insert((fetch.place, self.next), fetch);
    }

    pub(super) fn deadline(&self) -> Option<Monotonic> {
        self.due.first().map(|(at, _, _)| *at)
    }

    /// Those whose time is over.
    pub(super) fn take_due(&mut self, now: Monotonic) -> Vec<Fetch> {
        let mut over = Vec::new();
        while let Some((at, place, number)) = self.due.first().copied()
            && at <= now
        {
            self.due.pop_first();
            over.extend(self.waiting.remove(&(place, number)));
        }
        over
    }

    /// Those that wait for this partition.
    pub(super) fn take(&mut self, place: Place) -> Vec<Fetch> {
        let keys: Vec<_> = self.waiting.range((place, 0)..=(place, u64::MAX)).map(|(key, _)| *key).collect();
        let mut taken = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(fetch) = self.waiting.remove(&key) else { continue };
            self.due.remove(&(fetch.until, key.0, key.1));
            taken.push(fetch);
        }
        taken
    }
}
