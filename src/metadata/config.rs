//! The configuration of topics: Kafka's keys, their ranges and defaults, and what this project adds.

use std::collections::BTreeMap;

pub const UNCLEAN_ELECTION: &str = "unclean.leader.election.enable";
pub const MIN_INSYNC_REPLICAS: &str = "min.insync.replicas";
pub const FLUSH: &str = "flush";
pub const FLUSH_ALWAYS: &str = "always";

/// The longest value: a number may have as many leading zeros as it likes, but not megabytes of them.
const MAX_VALUE: usize = 128;

/// What a key's value may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Boolean,
    /// A whole number from the first to the second, both included.
    Integer(i64, i64),
    /// A number from 0 to 1.
    Ratio,
    /// One of these words, or several, separated by commas, where `true`.
    Word(&'static [&'static str], bool),
}

#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    /// What holds where it isn't set.
    pub default: &'static str,
    pub meaning: &'static str,
}

const fn key(name: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Key {
    Key { name, kind, default, meaning }
}

/// Every key that a topic can have, in alphabetical order.
pub const KEYS: &[Key] = &[
    key(
        "cleanup.policy",
        Kind::Word(&["delete", "compact"], true),
        "delete",
        "whether old records are deleted, or compacted by key, or both",
    ),
    key(
        "compression.type",
        Kind::Word(&["producer"], false),
        "producer",
        "how batches are stored: as the producer chose; nodes do not compress anew",
    ),
    key("delete.retention.ms", Kind::Integer(0, i64::MAX), "86400000", "how long tombstones outlive compaction"),
    key(
        FLUSH,
        Kind::Word(&[FLUSH_ALWAYS, "os-may-lose-acknowledged-records"], false),
        FLUSH_ALWAYS,
        "whether a record is on the disk before it is acknowledged",
    ),
    key(
        "max.compaction.lag.ms",
        Kind::Integer(1, i64::MAX),
        "9223372036854775807",
        "the longest a record stays uncompacted",
    ),
    key("max.message.bytes", Kind::Integer(1, i32::MAX as i64), "921600", "the largest batch, in bytes"),
    key(
        "message.timestamp.after.max.ms",
        Kind::Integer(0, i64::MAX),
        "3600000",
        "how far a record's timestamp may be ahead of the leader's clock",
    ),
    key(
        "message.timestamp.before.max.ms",
        Kind::Integer(0, i64::MAX),
        "9223372036854775807",
        "how far a record's timestamp may be behind the leader's clock",
    ),
    key(
        "message.timestamp.type",
        Kind::Word(&["CreateTime", "LogAppendTime"], false),
        "CreateTime",
        "whose clock a record's timestamp is of",
    ),
    key("min.cleanable.dirty.ratio", Kind::Ratio, "0.5", "how much of a log is uncompacted before it is compacted"),
    key("min.compaction.lag.ms", Kind::Integer(0, i64::MAX), "0", "the shortest a record stays uncompacted"),
    key(
        MIN_INSYNC_REPLICAS,
        Kind::Integer(1, super::image::MAX_REPLICAS as i64),
        "one less than the replicas, at least 1",
        "how many replicas must have a record before acks=all is given",
    ),
    key("retention.bytes", Kind::Integer(-1, i64::MAX), "-1", "how much of a partition is kept; -1 is all"),
    key("retention.ms", Kind::Integer(-1, i64::MAX), "604800000", "how long records are kept; -1 is for ever"),
    key(
        "segment.bytes",
        Kind::Integer(1 << 20, i32::MAX as i64),
        "1073741824",
        "when a segment is closed, by size; at most 64 MiB count where keys are compacted",
    ),
    key("segment.ms", Kind::Integer(1, i64::MAX), "604800000", "when a segment is closed, by age"),
    key(
        UNCLEAN_ELECTION,
        Kind::Boolean,
        "false",
        "whether a replica that is not in sync may lead where no other can; loses acknowledged records",
    ),
];

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("there is no configuration key {key:?}{hint}")]
    Unknown { key: String, hint: String },
    #[error("{key} is {wanted}, not {value:?}")]
    Value { key: String, value: String, wanted: String },
    #[error(
        "{MIN_INSYNC_REPLICAS} is {min}, but the topic has only {replicas} replicas: nothing could ever be written with acks=all"
    )]
    MinInsyncAboveReplicas { min: usize, replicas: usize },
}

/// Whether there is such a key.
pub fn check_key(key: &str) -> Result<&'static Key, ConfigError> {
    let known = KEYS.iter().find(|known| known.name == key);
    known.ok_or_else(|| ConfigError::Unknown { key: key.chars().take(MAX_VALUE).collect(), hint: nearest(key) })
}

/// Whether `value` fits `key`.
pub fn check(key: &str, value: &str) -> Result<(), ConfigError> {
    let known = check_key(key)?;
    let shown: String = value.chars().take(MAX_VALUE).collect();
    let error = |wanted: String| Err(ConfigError::Value { key: key.into(), value: shown.clone(), wanted });
    if value.len() > MAX_VALUE {
        return error(format!("a value of at most {MAX_VALUE} characters"));
    }
    match known.kind {
        Kind::Boolean if matches!(value, "true" | "false") => Ok(()),
        Kind::Boolean => error("true or false".into()),
        Kind::Integer(low, high) => match value.parse::<i64>() {
            Ok(number) if (low..=high).contains(&number) => Ok(()),
            _ => error(format!("a whole number from {low} to {high}")),
        },
        Kind::Ratio => match value.parse::<f64>() {
            Ok(number) if (0.0..=1.0).contains(&number) => Ok(()),
            _ => error("a number from 0 to 1".into()),
        },
        Kind::Word(words, several) => {
            let known = |word: &str| words.contains(&word);
            let fits = if several { value.split(',').all(|word| known(word.trim())) } else { known(value) };
            let how = if several { "one or more (separated by commas) of" } else { "one of" };
            if fits { Ok(()) } else { error(format!("{how} {}", words.join(", "))) }
        }
    }
}

/// Checks what spans several keys: the whole configuration of a topic whose partitions have `replicas` replicas.
pub fn check_whole(config: &BTreeMap<String, String>, replicas: usize) -> Result<(), ConfigError> {
    match config.get(MIN_INSYNC_REPLICAS).and_then(|value| value.parse().ok()) {
        Some(min) if min > replicas => Err(ConfigError::MinInsyncAboveReplicas { min, replicas }),
        _ => Ok(()),
    }
}

/// How many replicas must have a record before `acks=all` is given.
pub fn min_insync_replicas(config: &BTreeMap<String, String>, replicas: usize) -> usize {
    let set = config.get(MIN_INSYNC_REPLICAS).and_then(|value| value.parse().ok());
    set.unwrap_or_else(|| replicas.saturating_sub(1).max(1))
}

fn nearest(key: &str) -> String {
    let words = |text: &str| text.split(['.', '_', '-']).map(str::to_lowercase).collect::<Vec<_>>();
    let wanted = words(key);
    let shared = |known: &Key| words(known.name).iter().filter(|word| wanted.contains(word)).count();
    match KEYS.iter().max_by_key(|known| (shared(known), std::cmp::Reverse(known.name.len()))) {
        Some(best) if shared(best) > 0 => format!("; did you mean {}?", best.name),
        _ => "; `dmq topic create --help` lists them".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kafkas_values_are_taken_and_others_told_what_fits() {
        for (key, value) in [
            ("retention.ms", "-1"),
            ("cleanup.policy", "compact,delete"),
            ("min.cleanable.dirty.ratio", "0.25"),
            ("unclean.leader.election.enable", "true"),
            ("compression.type", "producer"),
        ] {
            assert_eq!(check(key, value), Ok(()), "{key}={value}");
        }
        let error = check("retention.ms", "a week").unwrap_err();
        assert_eq!(error.to_string(), "retention.ms is a whole number from -1 to 9223372036854775807, not \"a week\"");
        let error = check("retention_ms", "1").unwrap_err();
        assert_eq!(error.to_string(), "there is no configuration key \"retention_ms\"; did you mean retention.ms?");
        assert!(check("min.insync.replicas", "0").is_err());
        assert!(check("cleanup.policy", "").is_err());
    }

    #[test]
    fn more_in_sync_replicas_than_replicas_are_refused() {
        let config = BTreeMap::from([(MIN_INSYNC_REPLICAS.to_string(), "3".to_string())]);
        assert!(check_whole(&config, 3).is_ok());
        assert_eq!(check_whole(&config, 2), Err(ConfigError::MinInsyncAboveReplicas { min: 3, replicas: 2 }));
        assert_eq!(min_insync_replicas(&BTreeMap::new(), 3), 2);
        assert_eq!(min_insync_replicas(&BTreeMap::new(), 1), 1);
    }
}
