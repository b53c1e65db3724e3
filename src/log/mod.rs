//! A partition's log on disk, in Kafka's formats: record batches in segments, with their indexes and checkpoints.
//!
//! Synchronous: callers run it on threads that may block. It knows nothing of replication: the high watermark and who
//! leads are somebody else's, and whatever may be deleted, compacted or shown is said by the caller.

pub mod batch;
pub mod checkpoint;
mod directory;
pub mod dump;
mod error;
mod files;
pub mod index;
mod page_cache;
mod partition;
pub mod producers;
mod scan;
mod segment;

pub use crate::replication::{EpochEnd, EpochHistory};
pub use directory::{Committer, LogDirectory, LogDirectoryError, PartitionDirectory, WantedLog};
pub use error::{Damage, LogError, TopicPartition};
pub use files::{DEFAULT_OPEN_FILES, Files};
pub use partition::{
    AppendInfo, Compacted, Fetched, Log, LogConfig, MAX_DECOMPRESSED_BYTES, Maintained, MaintenanceLimits, OpenOptions,
    ReadPlan, SyncTicket, TimePlan, TimestampOffset,
};

#[cfg(test)]
mod model;
#[cfg(test)]
mod sabotage;
#[cfg(test)]
mod tests;

#[cfg(test)]
use sabotage::{Bug, planted};
