//! What a producer is told: its settings, its records, and what it says of them.

use std::time::Duration;

use bytes::Bytes;

use crate::client::{AdminError, DataError};
use crate::log::batch::{Compression, Header};
use crate::types::{Offset, PartitionId, TopicName};
use crate::wire::data::Acks;

/// How a producer works. The names and most of the defaults are those of Kafka's producer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProducerConfig {
    /// When a batch counts as stored (`acks`). [`Acks::None`] and [`Acks::Leader`] can lose records that were acknowledged.
    pub acks: Acks,
    /// Whether a batch that has to be sent again is stored once, and in order (`enable.idempotence`). Not with [`Acks::None`].
    pub enable_idempotence: bool,
    /// `compression.type`.
    pub compression: Compression,
    /// The most bytes of records in a batch, before compression (`batch.size`), up to what a message carries. A larger record goes
    /// alone.
    pub batch_size: usize,
    /// For how long a batch that is not full waits for more records (`linger.ms`). It waits longer where it could not be sent yet.
    pub linger: Duration,
    /// How many batches of a partition may be unanswered, 1 to 5 (`max.in.flight.requests.per.connection`).
    pub max_in_flight: usize,
    /// How many bytes may wait to be sent or answered (`buffer.memory`). Beyond that `send` waits.
    pub buffer_memory: usize,
    /// For how long `send` waits for memory, and for a topic's metadata (`max.block.ms`).
    pub max_block: Duration,
    /// The largest record in bytes, before compression (`max.request.size`). Never more than what NATS carries in a message.
    pub max_request_size: usize,
    /// From `send` on, how long a record may take, all tries together (`delivery.timeout.ms`).
    pub delivery_timeout: Duration,
    /// How long a leader waits for its in-sync replicas, and the longest that an answer is waited for (`request.timeout.ms`). An
    /// idempotent producer sends again long before, once an answer takes longer than answers usually do.
    pub request_timeout: Duration,
    /// The first wait after a refusal that may pass; then it is doubled (`retry.backoff.ms`).
    pub retry_backoff: Duration,
    /// The longest such wait (`retry.backoff.max.ms`).
    pub retry_backoff_max: Duration,
    /// After how long a topic is looked up again, for new partitions (`metadata.max.age.ms`).
    pub metadata_max_age: Duration,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            acks: Acks::All,
            enable_idempotence: true,
            compression: Compression::None,
            batch_size: 1 << 20,
            linger: Duration::from_millis(5),
            max_in_flight: 5,
            buffer_memory: 32 << 20,
            max_block: Duration::from_secs(60),
            max_request_size: 1 << 20,
            delivery_timeout: Duration::from_secs(120),
            request_timeout: Duration::from_secs(30),
            retry_backoff: Duration::from_millis(10),
            retry_backoff_max: Duration::from_secs(1),
            metadata_max_age: Duration::from_secs(300),
        }
    }
}

impl ProducerConfig {
    pub(super) fn is_idempotent(&self) -> bool {
        self.enable_idempotence && self.acks != Acks::None
    }

    pub(super) fn check(&self) -> Result<(), ProduceError> {
        let wrong = |words: &str| Err(ProduceError::Config(words.to_owned()));
        if !(1..=5).contains(&self.max_in_flight) {
            return wrong("max_in_flight is 1 to 5: a leader remembers a producer's last five batches");
        }
        if self.batch_size == 0 || self.batch_size > self.buffer_memory {
            return wrong("batch_size is at least 1, and at most buffer_memory");
        }
        if self.max_request_size > self.buffer_memory {
            return wrong("max_request_size is at most buffer_memory, or the largest record would never find room");
        }
        if self.buffer_memory > tokio::sync::Semaphore::MAX_PERMITS.min(u32::MAX as usize) {
            return wrong("buffer_memory is less than 4 GiB");
        }
        if self.delivery_timeout < self.linger {
            return wrong("delivery_timeout is at least linger");
        }
        Ok(())
    }
}

/// A record to be sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProducerRecord {
    pub topic: TopicName,
    /// None: by the key, as Kafka's clients do it; without a key wherever the next batch goes.
    pub partition: Option<PartitionId>,
    /// Milliseconds since 1970; None: now.
    pub timestamp: Option<i64>,
    pub key: Option<Bytes>,
    /// None makes it a tombstone: compaction deletes the key.
    pub value: Option<Bytes>,
    /// In order; keys may repeat.
    pub headers: Vec<Header>,
}

impl ProducerRecord {
    pub fn new(topic: TopicName, value: impl Into<Bytes>) -> Self {
        let value = Some(value.into());
        Self { topic, partition: None, timestamp: None, key: None, value, headers: Vec::new() }
    }

    /// Deletes a key of a compacted topic.
    pub fn tombstone(topic: TopicName, key: impl Into<Bytes>) -> Self {
        let key = Some(key.into());
        Self { topic, partition: None, timestamp: None, key, value: None, headers: Vec::new() }
    }

    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    #[must_use]
    pub fn partition(mut self, partition: PartitionId) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn timestamp(mut self, timestamp: i64) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// Adds a header behind those that it has.
    #[must_use]
    pub fn header(mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.headers.push(Header { key: key.into(), value: Some(value.into()) });
        self
    }
}

/// Where a record is stored (Kafka's RecordMetadata).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordMetadata {
    pub topic: TopicName,
    pub partition: PartitionId,
    /// None with [`Acks::None`].
    pub offset: Option<Offset>,
    /// The record's own, in milliseconds since 1970. A topic with `message.timestamp.type=LogAppendTime` has the leader's
    /// instead.
    pub timestamp: i64,
}

/// Why a record was not stored, or is not known to be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProduceError {
    /// The settings make no sense together. The words say which.
    #[error("{0}")]
    Config(String),
    /// Nothing was sent: the topic could not be looked up, or there is none.
    #[error("{error}")]
    Topic { topic: TopicName, error: AdminError },
    /// Nothing was sent.
    #[error("topic {topic} has {count} partitions, so there is no partition {partition}")]
    NoPartition { topic: TopicName, partition: PartitionId, count: u32 },
    /// Nothing was sent. Raise `max_request_size` and `max_payload` of the NATS server, or make the record smaller.
    #[error("the record may take {size} bytes, and at most {limit} can be sent")]
    TooLarge { size: usize, limit: usize },
    /// Nothing was sent: what was sent before still waits for its answers.
    #[error("the producer's buffer of {limit} bytes was full for {after:?}")]
    BufferFull { limit: usize, after: Duration },
    /// Not stored: the leader refused the batch.
    #[error("{topic}-{partition}: {error}")]
    Refused { topic: TopicName, partition: PartitionId, error: DataError },
    /// Not stored within `delivery_timeout`, for this reason.
    #[error("{topic}-{partition}: not stored within {after:?}{}", because(.last))]
    NotInTime { topic: TopicName, partition: PartitionId, after: Duration, last: Option<DataError> },
    /// It may or may not be stored: it was sent, and no answer came within `delivery_timeout`.
    #[error("{topic}-{partition}: no answer within {after:?}, so the record may or may not be stored{}", because(.last))]
    Unknown { topic: TopicName, partition: PartitionId, after: Duration, last: Option<DataError> },
    /// The producer was closed or dropped before an answer came; the record may or may not be stored.
    #[error("the producer was closed")]
    Closed,
}

fn because(last: &Option<DataError>) -> String {
    last.as_ref().map_or_else(String::new, |error| format!(": {error}"))
}
