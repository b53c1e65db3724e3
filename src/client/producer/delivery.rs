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
}

/// Whoever settles a batch. Dropped, it settles it as [`ProduceError::Closed`].
#[derive(Debug)]
pub(super) struct Settle(Arc<Outcome>);

impl Settle {
    pub fn new(topic: TopicName, partition: PartitionId) -> Self {
        Self(Arc::new(Outcome { topic, partition, settled: OnceLock::new(), waiting: Mutex::default() }))
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
        if self.0.settled.set(settled).is_ok() {
            let waiting = std::mem::take(&mut *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            waiting.into_iter().for_each(Waker::wake);
        }
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
        let metadata = |base: &Option<Offset>| RecordMetadata {
            topic: self.outcome.topic.clone(),
            partition: self.outcome.partition,
            offset: base.map(|base| Offset(base.0 + i64::from(self.index))),
            timestamp: self.timestamp,
        };
        Some(self.outcome.settled.get()?.as_ref().map(metadata).map_err(Clone::clone))
    }
}

impl Future for Delivery {
    type Output = Result<RecordMetadata, ProduceError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(settled) = self.settled() {
            return Poll::Ready(settled);
        }
        let mut waiting = self.outcome.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever settles sets first and wakes then.
        if let Some(settled) = self.settled() {
            return Poll::Ready(settled);
        }
        let slot = self.slot.unwrap_or(waiting.len());
        match waiting.get_mut(slot) {
            Some(waker) => waker.clone_from(context.waker()),
            None => waiting.push(context.waker().clone()),
        }
        drop(waiting);
        self.slot = Some(slot);
        Poll::Pending
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
    async fn a_batch_that_nobody_settles_any_more_is_closed() {
        let settle = settle();
        let delivery = settle.delivery(0, 7);
        drop(settle);
        assert_eq!(delivery.await, Err(ProduceError::Closed));
    }
}
