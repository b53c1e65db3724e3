//! Why a controller does not start, or ends.

use crate::bus::BusError;
use crate::config::ConnectError;
use crate::disk::{DirectoryError, StoreError};
use crate::metadata::{HistoryError, SnapshotError};
use crate::types::{ClusterId, ControllerId, Position};

#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
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
    #[error("the directory is that of controller {bound}, and --id asks for {asked}: give this one another directory")]
    OtherId { bound: ControllerId, asked: ControllerId },
    #[error(
        "the directory belongs to cluster {bound}, and the metadata in it to cluster {found}: one of them was copied from elsewhere"
    )]
    OtherCluster { bound: ClusterId, found: ClusterId },
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("NATS did not take this controller's subscriptions: {0}")]
    Subscriptions(BusError),
    #[error("a thread or a signal handler cannot be had from the system: {0}")]
    System(#[from] std::io::Error),
    /// The core's own words.
    #[error("{0}")]
    Ended(String),
}
