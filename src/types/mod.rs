//! The words of the domain: ids, epochs, versions, positions, names and instants.
//!
//! Each is a type of its own, so that a controller's id cannot stand where a storage node's belongs. Nothing here does
//! I/O, reads a clock or draws a random number.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod ids;
mod murmur;
mod name;
mod offset;
mod position;
mod time;

pub use ids::{
    ClusterId, Connection, ControllerId, DirectoryId, IncarnationId, MAX_NODE_ID, PartitionId, RequestId,
    RequestIdError, StorageId, TopicId,
};
pub use murmur::{murmur2, partition_of_key};
pub use name::{OFFSETS_TOPIC, TopicName, TopicNameError};
pub use offset::Offset;
pub use position::{ControllerEpoch, Digest, LeaderEpoch, NodeEpoch, PairingEpoch, PartitionEpoch, Position, Version};
pub use time::{Monotonic, WallTime};
