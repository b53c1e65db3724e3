//! Topic names: Kafka's rule, less the names that no NATS subject can carry.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

/// The longest topic name, in bytes (Kafka's limit).
pub const MAX_LENGTH: usize = 249;

/// A topic's name: 1 to 249 characters of `[A-Za-z0-9._-]`, with no empty part between dots.
///
/// A name is the tail of its data subjects (`dmq.data.produce.0.<name>`), where `.` separates tokens and an empty token is
/// invalid. So `.a`, `a.`, `a..b`, `.` and `..` are refused although Kafka would take the first three.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct TopicName(Arc<str>);

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TopicNameError {
    #[error("a topic's name cannot be empty")]
    Empty,
    #[error("a topic's name has at most {MAX_LENGTH} characters; this one has {0}")]
    TooLong(usize),
    #[error("a topic's name has only characters of A-Z, a-z, 0-9, '.', '_' and '-'; this one holds {0:?}")]
    Character(char),
    #[error(
        "a topic's name cannot begin or end with '.', nor hold '..': it is the tail of a NATS subject, where no token is empty"
    )]
    EmptyToken,
}

/// The internal, compacted topic that keeps groups' offsets.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";

impl TopicName {
    pub fn new(text: &str) -> Result<Self, TopicNameError> {
        if text.is_empty() {
            return Err(TopicNameError::Empty);
        }
        if let Some(bad) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c))) {
            return Err(TopicNameError::Character(bad));
        }
        if text.len() > MAX_LENGTH {
            return Err(TopicNameError::TooLong(text.len()));
        }
        if text.split('.').any(str::is_empty) {
            return Err(TopicNameError::EmptyToken);
        }
        Ok(Self(text.into()))
    }

    /// Whether it is [`OFFSETS_TOPIC`].
    pub fn is_internal(&self) -> bool {
        self.as_str() == OFFSETS_TOPIC
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for TopicName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for TopicName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_subject_can_carry_are_refused() {
        for name in [".", "..", ".a", "a.", "a..b"] {
            assert_eq!(TopicName::new(name), Err(TopicNameError::EmptyToken), "{name}");
        }
        assert_eq!(TopicName::new(""), Err(TopicNameError::Empty));
        assert_eq!(TopicName::new("a b"), Err(TopicNameError::Character(' ')));
        assert_eq!(TopicName::new("a.*"), Err(TopicNameError::Character('*')));
        assert_eq!(TopicName::new("größe"), Err(TopicNameError::Character('ö')));
        assert_eq!(TopicName::new(&"a".repeat(250)), Err(TopicNameError::TooLong(250)));
    }

    #[test]
    fn kafkas_ordinary_names_are_taken() {
        for name in ["orders", "orders.eu", "__consumer_offsets", "A-1_b.c", &"a".repeat(249)] {
            assert!(TopicName::new(name).is_ok(), "{name}");
        }
    }
}
