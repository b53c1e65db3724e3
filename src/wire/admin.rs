//! Admin requests and their answers, on `dmq.admin.<noun>.<verb>`. An unknown field in a request is refused.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Code, ControllerRole, WireError};
use crate::metadata::NodeState;
use crate::types::{
    ClusterId, Connection, ControllerEpoch, ControllerId, DirectoryId, IncarnationId, LeaderEpoch, NodeEpoch,
    PartitionEpoch, PartitionId, Position, RequestId, StorageId, TopicId, Version,
};

/// The verbs, as (noun, verb).
pub const VERBS: &[(&str, &str)] = &[
    ("topic", "create"),
    ("topic", "list"),
    ("topic", "describe"),
    ("topic", "alter"),
    ("topic", "delete"),
    ("node", "register"),
    ("node", "list"),
    ("node", "describe"),
    ("node", "drain"),
    ("node", "replace"),
    ("node", "remove"),
    ("partition", "alter"),
    ("cluster", "status"),
    ("metadata", "show"),
    ("metadata", "restore"),
];

/// Reads a request; an empty payload is an empty object.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, WireError> {
    let payload = if payload.iter().all(u8::is_ascii_whitespace) { b"{}" } else { payload };
    super::check_object(payload)?;
    serde_json::from_slice(payload)
        .map_err(|error| WireError::new(Code::InvalidRequest, format!("the request: {error}")))
}

pub fn encode<T: Serialize>(answer: &T) -> String {
    serde_json::to_string(answer).expect("answers have string keys only")
}

/// What every request that changes something may carry.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Terms {
    /// Makes a retry take effect once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Only if what is changed has not been changed since this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_version: Option<Version>,
    /// How long to wait until every active storage node has the change on its disk; absent: the controller's setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TopicCreate {
    pub name: String,
    /// Absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u32>,
    /// Absent: 3, or as many as there are active nodes where there are fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication_factor: Option<u32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
    #[serde(default)]
    pub terms: Terms,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TopicAlter {
    pub name: String,
    /// The new number, which cannot be less than before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u32>,
    /// Keys to set, or to unset where the value is null.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, Option<String>>,
    #[serde(default)]
    pub terms: Terms,
}

/// `topic.describe`. What does not fit one answer is asked for with `from`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TopicDescribe {
    pub name: String,
    /// The first partition that is wanted.
    #[serde(default)]
    pub from: PartitionId,
    /// They mean nothing here.
    #[serde(default, skip_serializing)]
    pub terms: Terms,
}

/// `node.list`, `cluster.status`. What does not fit one answer is asked for with `from`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodesFrom {
    /// The first storage node that is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<StorageId>,
}

/// `topic.delete`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TopicNamed {
    pub name: String,
    #[serde(default)]
    pub terms: Terms,
}

/// `topic.list`. What does not fit one answer is asked for with `from`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TopicsFrom {
    /// The first name that is wanted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub from: String,
}

/// `metadata.show`. What does not fit one answer is asked for with `from`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LinesFrom {
    /// The number of the first line that is wanted.
    #[serde(default)]
    pub from: u64,
}

/// What became of a change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Changed {
    /// What was changed: a topic's name or a node's id.
    pub subject: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<TopicId>,
    pub version: Version,
    /// How many of the active storage nodes have it on their disks, and how many there are.
    pub applied: u32,
    pub active: u32,
    /// It was so already: nothing was written, and the version is the present one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unchanged: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicList {
    pub version: Version,
    pub topics: Vec<TopicSummary>,
    /// The name to go on from, where not all of them fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The metadata as of a version, or some lines of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetadataShown {
    pub version: Version,
    /// Those of a snapshot.
    pub lines: Vec<serde_json::Value>,
    /// The line to go on from, where not all of them fit. Only lines of one version belong together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicSummary {
    pub name: String,
    pub topic_id: TopicId,
    pub partitions: u32,
    pub replication_factor: u32,
    pub leaderless_partitions: u32,
    pub under_replicated_partitions: u32,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicDescription {
    pub name: String,
    pub topic_id: TopicId,
    pub version: Version,
    pub created_version: Version,
    pub config: BTreeMap<String, String>,
    pub partitions: Vec<PartitionDescription>,
    /// The partition to go on from, where not all of them fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<PartitionId>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartitionDescription {
    pub partition: PartitionId,
    pub leader: Option<StorageId>,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    pub replicas: Vec<StorageId>,
    pub isr: Vec<StorageId>,
    /// After an unclean election, until its leader has said that it has recovered.
    #[serde(default)]
    pub recovering: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeRegister {
    /// None where the directory belongs to no cluster yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterId>,
    pub directory: DirectoryId,
    pub incarnation: IncarnationId,
    /// None: the controller gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// The id that it would have where it wants none: given where services.json lists it and it is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred: Option<StorageId>,
    /// The last node epoch that its directory knows: of an older copy of it, it is an older one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_epoch: Option<NodeEpoch>,
    /// What it has applied.
    #[serde(default)]
    pub position: Position,
    pub connection: Connection,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRegistered {
    pub cluster: ClusterId,
    pub storage: StorageId,
    pub node_epoch: NodeEpoch,
    pub pairing: Option<ControllerId>,
    pub version: Version,
}

/// `node.describe`, `node.drain`, `node.replace`, `node.remove`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeNamed {
    pub id: StorageId,
    #[serde(default)]
    pub terms: Terms,
}

/// A leader asks for other in-sync replicas of partitions that it leads.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PartitionAlter {
    pub storage: StorageId,
    pub node_epoch: NodeEpoch,
    pub partitions: Vec<IsrRequest>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IsrRequest {
    pub topic_id: TopicId,
    pub partition: PartitionId,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    pub isr: Vec<IsrMember>,
    /// The leader came from an unclean election and has recovered: others may join it from now on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recovered: bool,
    /// The leader wants a new partition epoch even where the set stays the same: it makes void whatever it asked for before on
    /// top of this one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub settles: bool,
}

/// A member with the incarnation that the leader heard from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IsrMember {
    pub storage: StorageId,
    pub node_epoch: NodeEpoch,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartitionAltered {
    pub version: Version,
    /// In the order of the request.
    pub partitions: Vec<IsrOutcome>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IsrOutcome {
    pub topic_id: TopicId,
    pub partition: PartitionId,
    /// The partition epoch that holds now, where the request took effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_epoch: Option<PartitionEpoch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<WireError>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeList {
    pub version: Version,
    pub nodes: Vec<NodeDescription>,
    /// The node to go on from, where not all of them fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<StorageId>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeDescription {
    pub id: StorageId,
    pub state: NodeState,
    /// The version that it has applied, by its last acknowledgement or heartbeat.
    pub version: Version,
    /// How many versions it is behind.
    pub lag: u64,
    pub leader_count: u32,
    pub follower_count: u32,
    pub paired_metadata_service_id: Option<ControllerId>,
    pub rack: Option<String>,
    pub directory: Option<DirectoryId>,
    pub incarnation: IncarnationId,
    pub node_epoch: NodeEpoch,
    /// Since its last heartbeat; null where none was heard in this controller's term.
    pub heard_ms_ago: Option<u64>,
    pub directory_errors: Vec<String>,
    pub disk_free_bytes: Option<u64>,
    /// Messages that it refused since its process began.
    #[serde(default)]
    pub refused_messages: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    pub cluster_id: Option<ClusterId>,
    pub version: Version,
    pub healthy: bool,
    /// Why it is not.
    pub problems: Vec<String>,
    /// The active one.
    pub controller: Option<ActiveController>,
    pub metadata_services: Vec<MetadataServiceStatus>,
    pub storage_nodes: Vec<NodeDescription>,
    pub topics: u64,
    pub partitions: u64,
    pub leaderless_partitions: u64,
    pub under_replicated_partitions: u64,
    /// Whose leaders have not recovered from an unclean election yet.
    #[serde(default)]
    pub recovering_partitions: u64,
    /// Messages that were refused since the controller started.
    pub refused_messages: u64,
    /// The storage node to go on from, where not all of them fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<StorageId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ActiveController {
    pub id: ControllerId,
    pub epoch: ControllerEpoch,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MetadataServiceStatus {
    pub id: ControllerId,
    pub state: ControllerRole,
    pub version: Version,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MetadataRestore {
    /// The source that an answer before named; absent: only say what would be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<Position>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestorePlan {
    pub cluster_id: ClusterId,
    /// Why the history counts as lost.
    pub halted: String,
    /// The most advanced metadata that anybody has.
    pub source: Position,
    /// Who has it, e.g. `controller 1` or `storage 3`.
    pub holders: Vec<String>,
    /// The version that the restored history begins at.
    pub new_version: Version,
    /// Registered nodes and listed controllers that were not heard: what only they have would be lost.
    pub not_heard: Vec<String>,
    pub done: bool,
}
