//! Heartbeats: storage nodes' to the controllers, with their answer, and the controllers' to each other.

use serde::{Deserialize, Serialize};

use super::{WireError, WireMessage};
use crate::metadata::NodeState;
use crate::types::{
    ClusterId, Connection, ControllerEpoch, ControllerId, DirectoryId, IncarnationId, NodeEpoch, PairingEpoch,
    Position, StorageId,
};

/// What the node wants to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WantedState {
    /// Not ready yet: it wants to stay fenced.
    Starting,
    #[default]
    Running,
    /// It wants to stop, and gives its leaderships away first.
    Draining,
}

/// How the node does. Real values, measured when the heartbeat is made.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Health {
    pub disk_total_bytes: u64,
    pub disk_free_bytes: u64,
    /// Data directories that failed, each with what was wrong.
    pub directory_errors: Vec<String>,
    /// How far the slowest partition that it follows is behind its leader, in records.
    pub replication_lag_records: u64,
    /// Processor time that the process used since its last heartbeat, per wall time, in thousandths of a core.
    pub cpu_millicores: u32,
    pub memory_bytes: u64,
    /// How long applied metadata has been waiting for the disk; 0 where nothing waits.
    pub sync_stalled_ms: u64,
    /// Messages that the node refused since its process began.
    pub refused_messages: u64,
}

/// `dmq.heartbeat.<storage>`: storage node → controllers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// None before the node has joined one.
    #[serde(default)]
    pub cluster: Option<ClusterId>,
    pub storage: StorageId,
    pub directory: DirectoryId,
    pub incarnation: IncarnationId,
    /// 0 before this incarnation is registered.
    #[serde(default)]
    pub node_epoch: NodeEpoch,
    /// The connection that it is sent on.
    pub connection: Connection,
    /// Rises with each heartbeat of the incarnation.
    pub sequence: u64,
    /// What it has applied, on its disk.
    pub position: Position,
    /// The highest controller epoch that it has seen.
    #[serde(default)]
    pub controller_epoch: ControllerEpoch,
    pub leader_count: u32,
    pub follower_count: u32,
    #[serde(default)]
    pub wanted: WantedState,
    #[serde(default)]
    pub health: Health,
}

impl WireMessage for Heartbeat {
    const TYPE: &'static str = "dmq.heartbeat.v1";
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PairingField {
    pub controller: Option<ControllerId>,
    pub epoch: PairingEpoch,
}

/// The active controller's answer to a heartbeat.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeartbeatAnswer {
    pub cluster: ClusterId,
    pub controller: ControllerId,
    pub controller_epoch: ControllerEpoch,
    /// Where the history stands.
    pub position: Position,
    /// Of the heartbeat that is answered.
    pub incarnation: IncarnationId,
    /// Of the heartbeat that is answered.
    pub sequence: u64,
    #[serde(default)]
    pub node_epoch: NodeEpoch,
    pub state: NodeState,
    pub pairing: PairingField,
    /// How long, from when the heartbeat was sent, the node may lead. 0: not at all.
    pub lease_ms: u64,
    /// The drain is done: the process may end.
    #[serde(default)]
    pub shutdown_granted: bool,
    /// Nobody else could lead what this node leads: to wait for the drain is no use.
    #[serde(default)]
    pub drain_impossible: bool,
    /// Why the heartbeat does not count. Then `leaseMs` is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<WireError>,
}

impl WireMessage for HeartbeatAnswer {
    const TYPE: &'static str = "dmq.heartbeat.answer.v1";
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ControllerRole {
    /// Reads the history, or waits until it may found one.
    Starting,
    Standby,
    Active,
    /// Stopped writing, since the history was lost, went back or forked.
    Halted,
}

impl ControllerRole {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Standby => "standby",
            Self::Active => "active",
            Self::Halted => "halted",
        }
    }
}

/// `dmq.metadata.heartbeat.<controller>`: controller → controllers. Not answered.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControllerHeartbeat {
    #[serde(default)]
    pub cluster: Option<ClusterId>,
    pub controller: ControllerId,
    pub directory: DirectoryId,
    pub incarnation: IncarnationId,
    pub connection: Connection,
    pub sequence: u64,
    pub role: ControllerRole,
    /// What it has applied, on its disk.
    pub position: Position,
    #[serde(default)]
    pub controller_epoch: ControllerEpoch,
    /// Why it is halted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halted: Option<String>,
}

impl WireMessage for ControllerHeartbeat {
    const TYPE: &'static str = "dmq.metadata.heartbeat.v1";
}
