//! The push of metadata to a storage node, and its acknowledgement.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{WireError, WireMessage};
use crate::types::{
    ClusterId, ControllerEpoch, ControllerId, DirectoryId, IncarnationId, NodeEpoch, PairingEpoch, Position, StorageId,
    Version,
};

/// One message of the history, to the letter as it stands there: digests are chained over its bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PushEntry {
    pub version: Version,
    pub entry: Box<RawValue>,
}

/// `dmq.metadata.push.<storage>`: paired metadata service → storage node.
///
/// Whole changes only. Versions between `base` and `position` that are not among the entries changed nothing. With no entries
/// and `position` beyond `base` the node is too far behind for a push, and fetches. The active controller sends that to a node
/// that is paired with another one, where that one does not bring what is new: the node applies nothing of it, and fetches.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Push {
    pub cluster: ClusterId,
    pub controller: ControllerId,
    /// The highest that the sender knows to be elected.
    pub controller_epoch: ControllerEpoch,
    pub storage: StorageId,
    pub pairing_epoch: PairingEpoch,
    pub base: Position,
    pub position: Position,
    pub entries: Vec<PushEntry>,
}

impl WireMessage for Push {
    const TYPE: &'static str = "dmq.metadata.push.v1";
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AckOutcome {
    /// It is on the node's disk.
    Applied,
    /// The node had it, or something later, already.
    Duplicate,
    /// Something between is missing; the node fetches it.
    Gap,
    /// The sender's controller epoch is older than one that the node has seen.
    StaleEpoch,
    /// The sender is not, or no longer, the one that the node is paired with.
    NotPaired,
    /// The same version with another digest: the history is forked.
    Forked,
    /// The push cannot be read, is of another cluster or for another node; `error` says which.
    Refused,
}

/// `dmq.metadata.ack.<storage>`: storage node → controllers, all of which listen. Also the answer to the push.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PushAck {
    pub cluster: Option<ClusterId>,
    pub storage: StorageId,
    pub directory: DirectoryId,
    pub incarnation: IncarnationId,
    pub node_epoch: NodeEpoch,
    pub outcome: AckOutcome,
    /// What the node has now, on its disk.
    pub position: Position,
    /// The highest controller epoch that it has seen.
    pub controller_epoch: ControllerEpoch,
    /// Of the push that is answered, as far as it could be read.
    pub pushed: Position,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<WireError>,
}

impl WireMessage for PushAck {
    const TYPE: &'static str = "dmq.metadata.ack.v1";
}
