//! How one log is kept: what of a topic's configuration concerns it.

use std::collections::BTreeMap;

use super::super::batch::TimestampType;

/// A log's configuration. The names are Kafka's; sizes are in bytes, times in milliseconds, and what may be absent is
/// without limit then.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogConfig {
    pub segment_bytes: u64,
    pub segment_ms: i64,
    pub index_interval_bytes: u64,
    pub max_message_bytes: usize,
    /// The most that a batch's records may take decompressed, so that a small batch cannot fill the memory.
    pub max_decompressed_bytes: usize,
    pub timestamp_type: TimestampType,
    /// How far a record's timestamp may be behind the leader's clock, and ahead of it.
    pub timestamp_before_max_ms: i64,
    pub timestamp_after_max_ms: i64,
    pub retention_ms: Option<i64>,
    pub retention_bytes: Option<u64>,
    /// Whether old segments are deleted (`cleanup.policy` has `delete`).
    pub delete: bool,
    /// Whether records are compacted by key (`cleanup.policy` has `compact`).
    pub compact: bool,
    pub delete_retention_ms: i64,
    pub min_compaction_lag_ms: i64,
    /// Records this old are compacted even where little of the log is dirty.
    pub max_compaction_lag_ms: i64,
    /// Compaction begins once so much of the closed segments is dirty, in percent (`min.cleanable.dirty.ratio`).
    pub min_cleanable_dirty_percent: u8,
    /// How long an idempotent producer is remembered that writes nothing.
    pub producer_expiration_ms: i64,
}

/// A compaction goes segment by segment while clients wait, so those of a compacted log are no larger.
const COMPACTED_SEGMENT_BYTES: u64 = 64 << 20;

/// What a topic has where it does not say otherwise: Kafka's default, so that no clock that is wrong keeps records for ever.
const AFTER_MAX_MS: i64 = 3_600_000;

/// What a batch's records may take decompressed.
pub const MAX_DECOMPRESSED_BYTES: usize = 128 << 20;

impl LogConfig {
    /// How old the active segment gets. What is in it is not compacted yet, so it gets no older than records may be that are not
    /// (Kafka's `LogConfig.maxSegmentMs`).
    pub fn roll_ms(&self) -> i64 {
        if self.compact { self.segment_ms.min(self.max_compaction_lag_ms.max(1)) } else { self.segment_ms }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 1 << 30,
            segment_ms: 7 * 24 * 3_600_000,
            index_interval_bytes: 4096,
            max_message_bytes: 921_600,
            max_decompressed_bytes: MAX_DECOMPRESSED_BYTES,
            timestamp_type: TimestampType::CreateTime,
            timestamp_before_max_ms: i64::MAX,
            timestamp_after_max_ms: i64::MAX,
            retention_ms: Some(7 * 24 * 3_600_000),
            retention_bytes: None,
            delete: true,
            compact: false,
            delete_retention_ms: 24 * 3_600_000,
            min_compaction_lag_ms: 0,
            max_compaction_lag_ms: i64::MAX,
            min_cleanable_dirty_percent: 50,
            producer_expiration_ms: 24 * 3_600_000,
        }
    }
}

impl LogConfig {
    /// From a topic's configuration, whose values were checked when they were set. Keys that are absent, or whose values
    /// are not what they may be, have their defaults.
    pub fn from_topic(keys: &BTreeMap<String, String>) -> Self {
        let number = |key: &str| keys.get(key).and_then(|value| value.parse::<i64>().ok());
        let set = |key: &str, into: &mut i64| *into = number(key).unwrap_or(*into);
        let mut config = Self { timestamp_after_max_ms: AFTER_MAX_MS, ..Self::default() };
        set("segment.ms", &mut config.segment_ms);
        set("delete.retention.ms", &mut config.delete_retention_ms);
        set("min.compaction.lag.ms", &mut config.min_compaction_lag_ms);
        set("message.timestamp.before.max.ms", &mut config.timestamp_before_max_ms);
        set("message.timestamp.after.max.ms", &mut config.timestamp_after_max_ms);
        set("max.compaction.lag.ms", &mut config.max_compaction_lag_ms);
        if let Some(ratio) = keys.get("min.cleanable.dirty.ratio").and_then(|value| value.parse::<f64>().ok()) {
            config.min_cleanable_dirty_percent = (ratio * 100.0).clamp(0.0, 100.0) as u8;
        }
        if let Some(bytes) = number("segment.bytes").and_then(|bytes| u64::try_from(bytes).ok()) {
            config.segment_bytes = bytes;
        }
        if let Some(bytes) = number("max.message.bytes").and_then(|bytes| usize::try_from(bytes).ok()) {
            config.max_message_bytes = bytes;
        }
        if let Some(ms) = number("retention.ms") {
            config.retention_ms = Some(ms).filter(|ms| *ms >= 0);
        }
        if let Some(bytes) = number("retention.bytes") {
            config.retention_bytes = u64::try_from(bytes).ok();
        }
        if let Some(policy) = keys.get("cleanup.policy") {
            config.delete = policy.split(',').any(|word| word.trim() == "delete");
            config.compact = policy.split(',').any(|word| word.trim() == "compact");
        }
        if config.compact {
            config.segment_bytes = config.segment_bytes.min(COMPACTED_SEGMENT_BYTES);
        }
        if keys.get("message.timestamp.type").is_some_and(|kind| kind == "LogAppendTime") {
            config.timestamp_type = TimestampType::LogAppendTime;
        }
        config
    }
}
