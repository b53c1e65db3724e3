//! Identifiers. Those of things that could be mistaken for each other after a loss are UUIDs; the rest are small numbers.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

/// The highest id of a controller or a storage node (Kafka's ids have 31 bits).
pub const MAX_NODE_ID: u32 = i32::MAX as u32;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

uuid_id! {
    /// A cluster: drawn when its history begins, in every message and on every disk that belongs to it.
    ClusterId
}
uuid_id! {
    /// A node's data directory, made with it. A node *is* its directory: the same id with another directory is another node.
    DirectoryId
}
impl DirectoryId {
    /// No directory's: what waits for it waits in vain.
    pub const NOBODY: Self = Self(Uuid::nil());
}

uuid_id! {
    /// One lifetime of one process.
    IncarnationId
}
uuid_id! {
    /// A topic, beside its name: deleted and created anew under the same name it is another topic.
    TopicId
}
number_id! {
    /// A metadata service (a controller), as services.json numbers it.
    ControllerId
}
number_id! {
    /// A storage service (a storage node), as services.json or the controller numbers it.
    StorageId
}

/// A partition's number within its topic, from 0.
pub type PartitionId = u32;

/// A NATS connection: which server it is on (`NA…`, the server's public key) and its client id there.
///
/// Leases are bound to it, and a disconnect advisory counts only for the connection that a node last reported.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    pub server: Arc<str>,
    pub client: u64,
}

/// What a client names its request by, so that a retry takes effect once: 1 to 64 characters of `[A-Za-z0-9._-]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct RequestId(Arc<str>);

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a request id has 1 to 64 characters of A-Z, a-z, 0-9, '.', '_' and '-'; take a UUID")]
pub struct RequestIdError;

impl RequestId {
    pub fn new(text: &str) -> Result<Self, RequestIdError> {
        let fits = (1..=64).contains(&text.len());
        if fits && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            Ok(Self(text.into()))
        } else {
            Err(RequestIdError)
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for RequestId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}
