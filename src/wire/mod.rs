//! The messages between processes: JSON in camelCase, so that `nats sub 'dmq.>'` can be read.
//!
//! Every message has its `type` with a version. New fields are optional with a default; in admin requests an unknown field is
//! refused, elsewhere it is passed over, so that an old process understands a newer one.

pub mod admin;
mod error;
mod fetch;
mod heartbeat;
mod push;

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
        let tag: Tag<'_> = serde_json::from_slice(payload).map_err(|error| WireError::malformed(&error))?;
        match tag.r#type {
            Some(found) if found == Self::TYPE => {}
            Some(found) => return Err(WireError::unknown_type(&found, Self::TYPE)),
            None => return Err(WireError::unknown_type("", Self::TYPE)),
        }
        serde_json::from_slice(payload).map_err(|error| WireError::malformed(&error))
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
