//! The cluster's metadata: its history, the fold of that history, and the rules that decide what comes next.
//!
//! Pure: no I/O, no clock, no randomness that is not passed in, no iteration over hash order. State changes in one place
//! only, [`History::offer`], by applying records that are already durable.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod config;
mod digest;
mod entry;
mod history;
mod image;
pub mod invariants;
mod partitions;
mod placement;
mod record;
pub mod rules;
mod snapshot;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use digest::{chain, restored_digest};
pub use entry::{Cause, Entry, EntryError, ParsedEntry, digest_of, encode_change};
pub use history::{
    Change, History, HistoryError, Message, Offered, VoidReason, is_plausible, restored_base, restored_version,
};
pub use image::{
    ElectedController, Image, InapplicableRecord, MAX_PARTITIONS, MAX_REPLICAS, NodeState, Partition, RequestOutcome,
    StorageNode, Topic,
};
pub use partitions::Partitions;
pub use placement::{PlacementError, place};
pub use record::{Move, PartitionChange, Record, Replicas, SnapshotRef};
pub use snapshot::{SnapshotError, read_snapshot, show_lines, snapshot_base, write_snapshot};
