//! Clients' fetches that wait for records, as Kafka's purgatory does it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::Subject;

use super::request::Format;
use crate::storage::core::Place;
use crate::types::{LeaderEpoch, Monotonic, Offset};
use crate::wire::data::FetchedHead;

/// An answer that took longer to read has no other one behind it: whoever asked may have given up, and the disk has others to serve.
const SLOW: Duration = Duration::from_millis(250);

/// The most that wait on one node. Beyond that one is answered at once.
const MAX_WAITING: usize = 16_384;

#[derive(Clone, Debug)]
pub(in crate::storage) struct Fetch {
    pub(super) place: Place,
    pub(super) offset: Offset,
    pub(super) max_bytes: usize,
    pub(super) min_bytes: usize,
    pub(super) until: Monotonic,
    /// When this answer was begun.
    pub(super) begun: Monotonic,
    /// What is there up to here is less than `min_bytes`.
    pub(super) beyond: Offset,
    pub(super) format: Format,
    pub(super) leader_epoch: Option<LeaderEpoch>,
    /// How many answers there may be, with this one.
    pub(super) answers: u32,
    pub(super) reply: Subject,
}

impl Fetch {
    /// What is to be answered behind the answer that has this head and was read by now, and the head is told of it: at once, and by
    /// this leadership alone.
    pub(super) fn following(&self, head: &mut FetchedHead, now: Monotonic) -> Option<Self> {
        let offset = head.next_offset;
        let is_due = self.answers > 1 && now < self.begun + SLOW;
        head.more = is_due && self.offset < offset && offset < head.high_watermark;
        head.more.then(|| Self {
            offset,
            beyond: offset,
            until: now,
            begun: now,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::TopicId;

    const SECOND: Duration = Duration::from_secs(1);

    fn fetch(answers: u32) -> Fetch {
        Fetch {
            place: (TopicId(uuid::Uuid::from_u128(1)), 0),
            offset: Offset(10),
            max_bytes: 1_000,
            min_bytes: 1,
            until: Monotonic(0) + SECOND,
            begun: Monotonic(0),
            beyond: Offset(10),
            format: Format::Batch,
            leader_epoch: None,
            answers,
            reply: "inbox".into(),
        }
    }

    fn head(next_offset: i64) -> FetchedHead {
        FetchedHead {
            offset: Offset(10),
            high_watermark: Offset(30),
            log_start_offset: Offset(0),
            next_offset: Offset(next_offset),
            leader_epoch: LeaderEpoch(7),
            more: false,
        }
    }

    #[test]
    fn answers_follow_each_other_while_some_are_left_and_there_is_something_to_read() {
        let (now, mut first) = (Monotonic(0) + SLOW / 2, head(20));
        let then = fetch(2).following(&mut first, now).unwrap();
        assert!(first.more);
        assert_eq!((then.offset, then.answers, then.until), (Offset(20), 1, now), "it waits for nothing");
        assert_eq!(then.leader_epoch, Some(LeaderEpoch(7)), "and is of no other leadership");
        for (what, answers, next_offset) in
            [("the last one", 1, 20), ("all was read", 9, 30), ("nothing was read", 9, 10)]
        {
            let mut head = head(next_offset);
            assert!(fetch(answers).following(&mut head, now).is_none() && !head.more, "{what}");
        }
    }

    #[test]
    fn nothing_follows_an_answer_that_took_long_for_nobody_may_hear_it() {
        let mut slow = head(20);
        assert!(fetch(9).following(&mut slow, Monotonic(0) + SLOW).is_none());
        assert!(!slow.more);
    }
}
