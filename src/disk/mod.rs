//! What a node keeps on its own disk: its identity, and the metadata that it has applied.
//!
//! Synchronous: callers run it on a thread that may block. It knows nothing of what the metadata means, and it never
//! believes bytes that were not whole and synced when they were acknowledged.

mod codec;
mod directory;
mod error;
mod files;
mod metadata;
mod reader;
mod recovery;
mod segment;
pub mod sim;
mod snapshot;

pub use codec::StoredChange;
pub use directory::{DataDirectory, DirectoryError, Identity, Role, held_by_this_host, identity_of};
pub use error::StoreError;
pub use files::{Disk, FileSystem, ReadFile, RealDisk, WriteFile};
pub(crate) use files::{TEMPORARY, publish, read_full, temporary_name};
pub use metadata::{MetadataStore, Recovered};
pub use reader::{Changes, MetadataReader, SnapshotChunk};
pub use snapshot::{FinishedSnapshot, SnapshotInfo, SnapshotReader, SnapshotWriter};

#[cfg(test)]
mod tests;
