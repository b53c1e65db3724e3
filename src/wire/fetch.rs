//! Fetching what is missing of the metadata: entries while the controller has them, else a snapshot in chunks.
//!
//! One answer per request: the requests are the flow control, and a lost one is simply made again.

use serde::{Deserialize, Serialize};

use super::{PushEntry, WireError, WireMessage};
use crate::types::{ClusterId, ControllerEpoch, ControllerId, Position, StorageId};

/// A piece of a snapshot, by the place at which it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChunkRequest {
    pub snapshot: Position,
    /// In bytes.
    pub offset: u64,
}

/// `dmq.metadata.fetch.<controller>`: storage node → metadata service.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FetchRequest {
    #[serde(default)]
    pub cluster: Option<ClusterId>,
    #[serde(default)]
    pub storage: Option<StorageId>,
    /// What the sender has.
    pub from: Position,
    /// Asks for a piece of a snapshot that an answer before named.
    #[serde(default)]
    pub chunk: Option<ChunkRequest>,
}

impl WireMessage for FetchRequest {
    const TYPE: &'static str = "dmq.metadata.fetch.v1";
}

/// The answer, but for a piece of a snapshot: that is bytes, with a [`ChunkHeader`] in the NATS header `Dmq-Chunk`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FetchAnswer {
    pub cluster: ClusterId,
    pub controller: ControllerId,
    pub controller_epoch: ControllerEpoch,
    /// Where the history stands.
    pub head: Position,
    /// The entries bring the sender from `from` to here.
    pub position: Position,
    #[serde(default)]
    pub entries: Vec<PushEntry>,
    /// The entries are gone: take this snapshot, in pieces.
    #[serde(default)]
    pub snapshot: Option<Position>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<WireError>,
}

impl WireMessage for FetchAnswer {
    const TYPE: &'static str = "dmq.metadata.fetch.answer.v1";
}

/// The NATS header that says what a piece of a snapshot is a piece of.
pub const CHUNK_HEADER: &str = "Dmq-Chunk";

/// What a piece of a snapshot is a piece of. JSON in the header [`CHUNK_HEADER`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChunkHeader {
    pub snapshot: Position,
    pub offset: u64,
    /// Of the whole snapshot, in bytes.
    pub total: u64,
}
