//! Why a storage node does not start, or ends.

use crate::disk::{DirectoryError, StoreError};
use crate::metadata::{HistoryError, SnapshotError};
use crate::types::{Position, StorageId};

#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the metadata on the disk: {0}")]
    Snapshot(#[from] SnapshotError),
    #[error("the metadata on the disk: {0}")]
    History(#[from] HistoryError),
    #[error("the metadata on the disk leads to {found}, and was stored as {stored}: its directory is damaged")]
    Inconsistent { found: Position, stored: Position },
    #[error(
        "the directory is that of storage node {bound}, and --id asks for {asked}: give this node another directory"
    )]
    OtherId { bound: StorageId, asked: StorageId },
    #[error(transparent)]
    Connect(#[from] crate::config::ConnectError),
    #[error("a thread or a signal handler cannot be had from the system: {0}")]
    System(#[from] std::io::Error),
    /// The core's own words.
    #[error("{0}")]
    Ended(String),
}
