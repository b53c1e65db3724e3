//! Why a process does not start, or ends.

use super::LEAST_MAX_PAYLOAD;
use crate::bus::BusError;
use crate::config::ConnectError;
use crate::disk::{DirectoryError, StoreError};
use crate::metadata::{HistoryError, SnapshotError};
use crate::types::{ClusterId, Position};

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
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
    #[error("the directory is that of {role} {bound}, and --id asks for {asked}: give this one another directory")]
    OtherId { role: &'static str, bound: u32, asked: u32 },
    #[error(
        "the directory belongs to cluster {bound}, and the metadata in it to cluster {found}: one of them was copied from elsewhere"
    )]
    OtherCluster { bound: ClusterId, found: ClusterId },
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(
        "the NATS server takes messages of at most {max_payload} bytes, and the metadata needs {LEAST_MAX_PAYLOAD}: raise max_payload in its configuration"
    )]
    MaxPayload { max_payload: usize },
    #[error("NATS did not take this process's subscriptions: {0}")]
    Subscriptions(BusError),
    #[error("a thread or a signal handler cannot be had from the system: {0}")]
    System(#[from] std::io::Error),
    /// The core's own words.
    #[error("{0}")]
    Ended(String),
}
