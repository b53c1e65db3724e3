//! What a consumer is told, and what it says.

use std::time::Duration;

use bytes::Bytes;

use crate::client::{AdminError, DataError};
use crate::log::batch::Header;
use crate::log::{MAX_DECOMPRESSED_BYTES, TopicPartition};
use crate::types::{LeaderEpoch, Offset, PartitionId, TopicName};

/// Where to begin where nothing else says it, and where to go on where the log has lost the place (`auto.offset.reset`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AutoOffsetReset {
    Earliest,
    #[default]
    Latest,
    /// Nowhere: it is an error (Kafka's `none`).
    Error,
}

/// How a consumer works. Kafka's names and most of its defaults.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsumerConfig {
    /// Under which offsets are committed (`group.id`). Partitions are assigned by the caller; members of a group are not told
    /// of each other.
    pub group: Option<String>,
    pub auto_offset_reset: AutoOffsetReset,
    /// A leader answers once there are so many bytes … (`fetch.min.bytes`)
    pub fetch_min_bytes: u32,
    /// … or so much time has passed (`fetch.max.wait.ms`).
    pub fetch_max_wait: Duration,
    /// The most bytes in an answer, but for a larger batch (`max.partition.fetch.bytes`). Never more than NATS carries.
    pub max_partition_fetch_bytes: u32,
    /// The most bytes that are fetched ahead of what was read, of all partitions together.
    pub max_prefetch_bytes: usize,
    /// The most bytes that a compressed batch may decompress to. Leaders take no more than the default, 128 MiB.
    pub max_decompressed_bytes: usize,
    /// The longest that an answer is waited for beyond `fetch_max_wait` (`request.timeout.ms`). At first it is half a second, for
    /// a leader may be gone without a word.
    pub request_timeout: Duration,
    /// After how long without an answer the stream says so, and goes on trying (`default.api.timeout.ms`).
    pub api_timeout: Duration,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self {
            group: None,
            auto_offset_reset: AutoOffsetReset::default(),
            fetch_min_bytes: 1,
            fetch_max_wait: Duration::from_millis(500),
            max_partition_fetch_bytes: 1 << 20,
            max_prefetch_bytes: 32 << 20,
            max_decompressed_bytes: MAX_DECOMPRESSED_BYTES,
            request_timeout: Duration::from_secs(30),
            api_timeout: Duration::from_secs(60),
        }
    }
}

/// Where to read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SeekTo {
    Offset(Offset),
    /// The log's first record.
    Beginning,
    /// Behind the last record that consumers may read.
    End,
    /// The first record with at least this timestamp, in milliseconds since 1970; the end where there is none.
    Timestamp(i64),
}

/// A record as it was read. Key, value and headers are slices of the answer that brought it: whoever keeps one for long, keeps
/// all of the answer, and copies what it needs instead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsumerRecord {
    pub topic: TopicName,
    pub partition: PartitionId,
    pub offset: Offset,
    /// Milliseconds since 1970, or -1.
    pub timestamp: i64,
    pub key: Option<Bytes>,
    /// None is a tombstone.
    pub value: Option<Bytes>,
    pub headers: Vec<Header>,
    /// Of the leader that took it in.
    pub leader_epoch: Option<LeaderEpoch>,
}

/// Why records cannot be read. Except for [`ConsumeError::NoAnswer`], the partition is read no further until somebody seeks.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConsumeError {
    /// The topic could not be looked up, or there is no such topic or partition, or no longer.
    #[error("{error}")]
    Topic { topic: TopicName, error: AdminError },
    /// The log holds no such offset, or no longer, and `auto_offset_reset` is [`AutoOffsetReset::Error`].
    #[error("{partition}: offset {offset} is not in the log, which begins at {log_start} and ends at {end}")]
    OutOfRange { partition: TopicPartition, offset: Offset, log_start: Offset, end: Offset },
    /// Neither has the group committed an offset, nor is there an `auto_offset_reset`.
    #[error("{0}: the group has committed no offset; say where to begin")]
    NoOffset(TopicPartition),
    /// An unclean election has cut off what was read (Kafka's LogTruncationException).
    #[error("{partition}: the log was cut off at {end}, and was read up to {offset}")]
    Truncated { partition: TopicPartition, offset: Offset, end: Offset },
    /// What came is damaged.
    #[error("{partition}: what was fetched at offset {offset} cannot be read: {detail}")]
    Corrupt { partition: TopicPartition, offset: Offset, detail: String },
    /// The leader refused.
    #[error("{partition}: {error}")]
    Refused { partition: TopicPartition, error: DataError },
    /// For so long nobody answered. The consumer goes on trying.
    #[error("{partition}: nothing could be fetched for {after:?}: {error}")]
    NoAnswer { partition: TopicPartition, after: Duration, error: DataError },
    /// What the group has committed could not be read or written.
    #[error("offsets of group {group}: {error}")]
    Group { group: String, error: DataError },
    /// There is nothing to commit to: `group` is not set.
    #[error("the consumer has no group; set one")]
    NoGroup,
    /// Only assigned partitions can be read.
    #[error("{0} is not assigned to this consumer")]
    NotAssigned(TopicPartition),
}
