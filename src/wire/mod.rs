//! The messages between processes: JSON in camelCase, so that `nats sub 'dmq.>'` can be read; those that carry records are
//! binary.
//!
//! Every message has its `type` with a version. New fields are optional with a default; in admin requests an unknown field is
//! refused, elsewhere it is passed over, so that an old process understands a newer one.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod admin;
pub mod data;
mod error;
mod fetch;
mod heartbeat;
mod push;
pub mod replica;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use error::{Code, ErrorBody, NodeRefusal, WireError};
pub use fetch::{CHUNK_HEADER, ChunkHeader, ChunkRequest, FetchAnswer, FetchRequest};
pub use heartbeat::{
    ControllerHeartbeat, ControllerRole, Health, Heartbeat, HeartbeatAnswer, PairingField, WantedState,
};
pub use push::{AckOutcome, Push, PushAck, PushEntry};

/// The deepest nesting that a message may have is serde_json's own limit of 128; the longest message is NATS's `max_payload`.
pub trait WireMessage: Serialize + for<'de> Deserialize<'de> {
    /// The value of its `type`.
    const TYPE: &'static str;

    fn encode(&self) -> Bytes {
        let tagged = Tagged { r#type: Self::TYPE, message: self };
        serde_json::to_vec(&tagged).expect("messages have string keys only").into()
    }

    fn decode(payload: &[u8]) -> Result<Self, WireError> {
        // Whoever writes as `encode` does has the type in front: then one pass is enough.
        if !begins_with_type(payload, Self::TYPE) {
            check_object(payload)?;
            let tag: Tag<'_> = serde_json::from_slice(payload).map_err(|error| WireError::malformed(&error))?;
            match tag.r#type {
                Some(found) if found == Self::TYPE => {}
                Some(found) => return Err(WireError::unknown_type(&found, Self::TYPE)),
                None => return Err(WireError::unknown_type("", Self::TYPE)),
            }
        }
        serde_json::from_slice(payload).map_err(|error| WireError::malformed(&error))
    }
}

fn begins_with_type(payload: &[u8], r#type: &str) -> bool {
    let rest = payload.strip_prefix(br#"{"type":""#).and_then(|rest| rest.strip_prefix(r#type.as_bytes()));
    rest.is_some_and(|rest| rest.starts_with(b"\""))
}

/// serde would take an array as well, field by field in the order of our declarations, which are nobody's format.
fn check_object(payload: &[u8]) -> Result<(), WireError> {
    match payload.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => Ok(()),
        Some(_) => Err(WireError::new(Code::InvalidRequest, "the message is not a JSON object")),
        None => Err(WireError::new(Code::InvalidRequest, "the message is empty; it is to be a JSON object")),
    }
}

#[derive(Serialize)]
struct Tagged<'a, T> {
    r#type: &'static str,
    #[serde(flatten)]
    message: &'a T,
}

#[derive(Deserialize)]
struct Tag<'a> {
    #[serde(default, borrow)]
    r#type: Option<std::borrow::Cow<'a, str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_object_is_no_message_be_its_elements_right() {
        let ask = |payload: &str| admin::decode::<admin::TopicNamed>(payload.as_bytes()).map_err(|error| error.code);
        assert!(ask(r#" {"name": "orders"}"#).is_ok());
        for payload in [r#"["orders", {}]"#, "null", "7", "\"orders\""] {
            assert_eq!(ask(payload), Err(Code::InvalidRequest), "{payload}");
        }
        let heartbeat = ControllerHeartbeat::decode(br#"["dmq.metadata.heartbeat.v1"]"#);
        assert_eq!(heartbeat.map_err(|error| error.message), Err("the message is not a JSON object".into()));
        assert_eq!(FetchRequest::decode(b" ").map_err(|error| error.code), Err(Code::InvalidRequest));
    }
}
