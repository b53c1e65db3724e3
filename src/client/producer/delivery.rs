//! What became of a record, for whoever sent it. A batch has one outcome, which all its records share: a record costs no
//! allocation.

use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use super::config::{ProduceError, RecordMetadata};
use crate::types::{Offset, PartitionId, TopicName};

/// The offset of a batch's first record, unless nobody said.
type Settled = Result<Option<Offset>, ProduceError>;

#[derive(Debug)]
struct Outcome {
    topic: TopicName,
    partition: PartitionId,
    settled: OnceLock<Settled>,
    waiting: Mutex<Vec<Waker>>,
    halves: OnceLock<Halves>,
}

/// What a batch became that was too large: with so many records first, and the others.
#[derive(Debug)]
struct Halves {
    first_count: i32,
    first: Arc<Outcome>,
    second: Arc<Outcome>,
}

/// Whoever settles a batch. Dropped, it settles it as [`ProduceError::Closed`].
#[derive(Debug)]
pub(super) struct Settle(Arc<Outcome>);

impl Settle {
    pub fn new(topic: TopicName, partition: PartitionId) -> Self {
        let (settled, waiting, halves) = (OnceLock::new(), Mutex::default(), OnceLock::new());
        Self(Arc::new(Outcome { topic, partition, settled, waiting, halves }))
    }

    /// The batch is replaced by two, with so many records in the first. They settle what it would have settled.
    pub fn split(self, first_count: i32) -> [Self; 2] {
        let half = || Self::new(self.0.topic.clone(), self.0.partition);
        let [first, second] = [half(), half()];
        let halves = Halves { first_count, first: Arc::clone(&first.0), second: Arc::clone(&second.0) };
        if self.0.halves.set(halves).is_ok() {
            self.0.wake();
        }
        [first, second]
    }

    pub fn topic(&self) -> &TopicName {
        &self.0.topic
    }

    pub fn partition(&self) -> PartitionId {
        self.0.partition
    }

    /// The delivery of the batch's record with this index.
    pub fn delivery(&self, index: i32, timestamp: i64) -> Delivery {
        Delivery { outcome: Arc::clone(&self.0), index, timestamp, slot: None }
    }

    pub fn settle(&self, settled: Settled) {
        if self.0.halves.get().is_none() && self.0.settled.set(settled).is_ok() {
            self.0.wake();
        }
    }
}

impl Outcome {
    fn wake(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Settle {
    fn drop(&mut self) {
        self.settle(Err(ProduceError::Closed));
    }
}

/// A record that was sent: a future of where it is stored. It need not be awaited, and the record is sent all the same.
#[derive(Debug)]
#[must_use = "without it nobody learns whether the record was stored; drop it if that is meant"]
pub struct Delivery {
    outcome: Arc<Outcome>,
    index: i32,
    timestamp: i64,
    /// Where among those who wait.
    slot: Option<usize>,
}

impl Delivery {
    /// The partition that the record goes to.
    pub fn partition(&self) -> PartitionId {
        self.outcome.partition
    }

    /// What became of it, if that is known by now.
    pub fn settled(&self) -> Option<Result<RecordMetadata, ProduceError>> {
        let (mut outcome, mut index) = (&self.outcome, self.index);
        while let Some(Halves { first_count, first, second }) = outcome.halves.get() {
            (outcome, index) = if index < *first_count { (first, index) } else { (second, index - first_count) };
        }
        let metadata = |base: &Option<Offset>| RecordMetadata {
            topic: outcome.topic.clone(),
            partition: outcome.partition,
            offset: base.map(|base| Offset(base.0 + i64::from(index))),
            timestamp: self.timestamp,
        };
        Some(outcome.settled.get()?.as_ref().map(metadata).map_err(Clone::clone))
    }

    /// Goes on with the half that has the record, where there are halves.
    fn descend(&mut self) {
        while let Some(Halves { first_count, first, second }) = self.outcome.halves.get() {
            let half = if self.index < *first_count {
                Arc::clone(first)
            } else {
                self.index -= first_count;
                Arc::clone(second)
            };
            (self.outcome, self.slot) = (half, None);
        }
    }

    /// Returns when all records of the batch are settled, whatever it was split into.
    pub(super) async fn whole_batch(self) {
        let mut waiting = vec![self.outcome];
        while let Some(mut outcome) = waiting.pop() {
            let _ = Self { outcome: Arc::clone(&outcome), index: 0, timestamp: 0, slot: None }.await;
            // What is settled is split no more.
            while let Some(Halves { first, second, .. }) = outcome.halves.get() {
                waiting.push(Arc::clone(second));
                outcome = Arc::clone(first);
            }
        }
    }
}

impl Future for Delivery {
    type Output = Result<RecordMetadata, ProduceError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            self.descend();
            if let Some(settled) = self.settled() {
                return Poll::Ready(settled);
            }
            let outcome = Arc::clone(&self.outcome);
            let mut waiting = outcome.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever settles or splits sets first and wakes then.
            if outcome.settled.get().is_some() || outcome.halves.get().is_some() {
                continue;
            }
            let slot = self.slot.unwrap_or(waiting.len());
            match waiting.get_mut(slot) {
                Some(waker) => waker.clone_from(context.waker()),
                None => waiting.push(context.waker().clone()),
            }
            self.slot = Some(slot);
            return Poll::Pending;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn settle() -> Settle {
        Settle::new(TopicName::new("t").unwrap(), 3)
    }

    #[tokio::test]
    async fn every_record_of_a_batch_has_its_own_offset() {
        let settle = settle();
        let mut deliveries: Vec<_> = (0..3).map(|index| settle.delivery(index, 7)).collect();
        assert!(deliveries.iter_mut().all(|delivery| delivery.now_or_never().is_none()));
        let waiting = tokio::spawn(futures::future::join_all(deliveries));
        settle.settle(Ok(Some(Offset(40))));
        let offsets: Vec<_> = waiting.await.unwrap().into_iter().map(|stored| stored.unwrap().offset).collect();
        assert_eq!(offsets, [Some(Offset(40)), Some(Offset(41)), Some(Offset(42))]);
        assert_eq!(settle.delivery(0, 7).await.unwrap().partition, 3);
    }

    #[tokio::test]
    async fn what_was_split_has_the_outcomes_of_its_halves_also_for_who_waits_already() {
        let settle = settle();
        let deliveries: Vec<_> = (0..5).map(|index| settle.delivery(index, 7)).collect();
        let whole = tokio::spawn(settle.delivery(0, 0).whole_batch());
        let waiting = tokio::spawn(futures::future::join_all(deliveries));
        tokio::task::yield_now().await;
        let [first, second] = settle.split(2);
        let [second, third] = second.split(1);
        third.settle(Ok(Some(Offset(70))));
        first.settle(Ok(Some(Offset(40))));
        tokio::task::yield_now().await;
        assert!(!whole.is_finished());
        drop(second);
        whole.await.unwrap();
        let offsets = waiting.await.unwrap().into_iter().map(|stored| stored.ok().and_then(|stored| stored.offset));
        let wanted = [Some(40), Some(41), None, Some(70), Some(71)].map(|offset| offset.map(Offset));
        assert_eq!(offsets.collect::<Vec<_>>(), wanted);
    }

    #[tokio::test]
    async fn a_batch_that_nobody_settles_any_more_is_closed() {
        let settle = settle();
        let delivery = settle.delivery(0, 7);
        drop(settle);
        assert_eq!(delivery.await, Err(ProduceError::Closed));
    }
}
