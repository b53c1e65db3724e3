//! What can go wrong with a partition's log, always with the partition and the offset.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::batch::BatchError;
use crate::types::{Offset, PartitionId, TopicId, TopicName};

/// A partition of a topic. Its text, `orders-0`, names its directory, as Kafka does it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TopicPartition {
    pub topic: TopicName,
    pub partition: PartitionId,
}

impl TopicPartition {
    pub fn new(topic: TopicName, partition: PartitionId) -> Self {
        Self { topic, partition }
    }

    /// Reads the name of a partition's directory.
    pub fn from_directory(name: &str) -> Option<Self> {
        let (topic, partition) = name.rsplit_once('-')?;
        // Only as it is written: `orders-00` would be a second directory of the same partition.
        let canonical = partition == "0" || !partition.starts_with(['0', '+']);
        let partition = partition.parse().ok().filter(|_| canonical)?;
        Some(Self { topic: TopicName::new(topic).ok()?, partition })
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// Offsets that a log has lost to damage: from the first, up to and without the second.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    pub offsets: Range<Offset>,
    pub file: PathBuf,
    /// Where in the file it begins, in bytes.
    pub position: u64,
    pub what: String,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk refused. After a failed append the log is as it was before; after a failed sync it takes nothing more.
    #[error("{partition}: cannot {action} {}: {source}", path.display())]
    Io { partition: TopicPartition, action: &'static str, path: PathBuf, source: io::Error },

    #[error(
        "{partition}: takes no more writes since this failed: {cause}. Check the disk, then restart the node: it reads again what is there"
    )]
    Poisoned { partition: TopicPartition, cause: String },

    /// Bytes that were once written have changed. Never served; what lies behind the range still is.
    #[error("{partition}: offsets {} to {} are damaged ({} at byte {}: {}). Copy them from another replica; check the disk",
        damage.offsets.start, damage.offsets.end, damage.file.display(), damage.position, damage.what)]
    Damaged { partition: TopicPartition, damage: Box<Damage> },

    /// Kafka's OFFSET_OUT_OF_RANGE.
    #[error("{partition}: offset {offset} is not in the log, which has {start} to {end}")]
    OffsetOutOfRange { partition: TopicPartition, offset: Offset, start: Offset, end: Offset },

    /// Of a [`ReadPlan`](super::ReadPlan) alone: what it was to read may have been taken away meanwhile.
    #[error("{partition}: the log was cut, deleted from, compacted or closed while it was read; read again")]
    Changed { partition: TopicPartition },

    /// Kafka's CORRUPT_MESSAGE: the bytes that were given are no batch.
    #[error("{partition}: {source}")]
    Corrupt { partition: TopicPartition, source: BatchError },

    /// Kafka's INVALID_RECORD: a batch, but none that a client may append.
    #[error("{partition}: the batch is refused: {what}")]
    InvalidBatch { partition: TopicPartition, what: &'static str },

    /// Kafka's MESSAGE_TOO_LARGE.
    #[error("{partition}: a batch of {bytes} bytes exceeds max.message.bytes, which is {limit}")]
    TooLarge { partition: TopicPartition, bytes: usize, limit: usize },

    /// Kafka's INVALID_TIMESTAMP.
    #[error(
        "{partition}: timestamp {timestamp} is not from {earliest} to {latest}, as message.timestamp.before.max.ms and message.timestamp.after.max.ms want it (milliseconds since 1970; -1 is none)"
    )]
    InvalidTimestamp { partition: TopicPartition, timestamp: i64, earliest: i64, latest: i64 },

    /// A follower's batch does not continue the log.
    #[error("{partition}: a batch at offset {offset} does not continue the log, which ends at {end}")]
    NotContiguous { partition: TopicPartition, offset: Offset, end: Offset },

    /// Kafka's OUT_OF_ORDER_SEQUENCE_NUMBER.
    #[error("{partition}: producer {producer} sent sequence {given}, and {expected} was to come")]
    OutOfOrderSequence { partition: TopicPartition, producer: i64, expected: i32, given: i32 },

    /// Kafka's INVALID_PRODUCER_EPOCH: another instance of the producer has taken over.
    #[error("{partition}: producer {producer} has epoch {current}, and the batch is of {given}")]
    ProducerFenced { partition: TopicPartition, producer: i64, current: i16, given: i16 },

    /// Files in the directory that cannot be what this log wrote.
    #[error("{partition}: {} cannot be used: {what}. Move the directory away, and the replica is copied anew", path.display())]
    Unusable { partition: TopicPartition, path: PathBuf, what: String },

    /// The directory is of a topic that had the same name.
    #[error("{partition}: {} holds topic {found}, and topic {wanted} is meant", path.display())]
    OtherTopic { partition: TopicPartition, path: PathBuf, found: TopicId, wanted: TopicId },
}

impl LogError {
    /// Whether the disk is full: the one failure that mends itself once somebody has made room.
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    /// Whether the disk failed, rather than the caller.
    pub fn is_disk(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Poisoned { .. } | Self::Damaged { .. } | Self::Unusable { .. })
    }

    pub(super) fn io<'a>(
        partition: &'a TopicPartition,
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { partition: partition.clone(), action, path: path.to_owned(), source }
    }
}
