//! Records: what an entry of the history says has changed.
//!
//! They are the log's format as well as the fold's input, so they are only ever added to: a new field is optional with a
//! default, a new meaning is a new record. Whoever meets a record that it doesn't know stops.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::image::NodeState;
use crate::types::{
    ClusterId, ControllerId, Digest, DirectoryId, IncarnationId, NodeEpoch, PartitionId, Position, StorageId, TopicId,
    TopicName, Version,
};

/// The nodes that hold a partition, in order of preference.
pub type Replicas = SmallVec<[StorageId; 3]>;

/// A snapshot in the object store, under the name `<version>-<digest>`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SnapshotRef {
    pub version: Version,
    pub digest: Digest,
    /// Its length in bytes.
    pub bytes: u64,
}

impl SnapshotRef {
    pub fn position(&self) -> Position {
        Position { version: self.version, digest: self.digest }
    }

    /// The name of the object that holds it.
    pub fn name(&self) -> String {
        format!("{}-{}", self.version, self.digest)
    }

    /// The version in such a name.
    pub fn version_in(name: &str) -> Option<Version> {
        name.split_once('-')?.0.parse().ok().map(Version)
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Record {
    /// The first record of a cluster's life.
    ClusterFounded {
        cluster: ClusterId,
    },
    /// The first record of a history that was rebuilt: the snapshot beside it is its base. Leader epochs were raised in it.
    ClusterRestored {
        from: Position,
    },
    /// The first record of a controller's term, or the second after one of the two above. Its version is the controller epoch.
    ControllerElected {
        controller: ControllerId,
        directory: DirectoryId,
        incarnation: IncarnationId,
    },
    /// The history up to here may be purged: this snapshot was read back and verified.
    SnapshotCommitted {
        snapshot: SnapshotRef,
    },
    /// A storage node's new incarnation. It starts fenced; the entry's version is its node epoch.
    StorageRegistered {
        storage: StorageId,
        directory: DirectoryId,
        incarnation: IncarnationId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rack: Option<Arc<str>>,
    },
    /// A storage node was fenced, became active, or began to drain.
    StorageStateChanged {
        storage: StorageId,
        node_epoch: NodeEpoch,
        state: NodeState,
    },
    /// The node's directory is lost: its id is free for another one.
    StorageReplaced {
        storage: StorageId,
        lost_directory: DirectoryId,
    },
    /// The node holds nothing and is gone for good.
    StorageRemoved {
        storage: StorageId,
    },
    /// Who pushes metadata to the node. The entry's version is the pairing epoch.
    PairingChanged {
        storage: StorageId,
        controller: Option<ControllerId>,
    },
    /// Every replica is in sync at first, and the first one leads.
    TopicCreated {
        topic_id: TopicId,
        name: TopicName,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        config: BTreeMap<String, String>,
        /// Partition by partition, the nodes that hold it, in order of preference.
        replicas: Vec<Replicas>,
    },
    /// More partitions, numbered on from those there are.
    PartitionsAdded {
        topic_id: TopicId,
        replicas: Vec<Replicas>,
    },
    /// Configuration keys set, or unset where the value is null.
    TopicConfigured {
        topic_id: TopicId,
        config: BTreeMap<String, Option<String>>,
    },
    TopicDeleted {
        topic_id: TopicId,
    },
    /// Leaders and in-sync replicas of some of a topic's partitions.
    PartitionsChanged {
        topic_id: TopicId,
        changes: Vec<PartitionChange>,
    },
    /// The same change of many partitions, in a few bytes for each: a node that falls is in sync in tens of thousands.
    PartitionsMoved {
        change: Move,
        partitions: BTreeMap<TopicId, Vec<PartitionId>>,
    },
    /// Takes a place in the history, so that nothing else can.
    NoOp {},
}

/// A change of a partition that says how it differs from what was before. The epochs rise as with a [`PartitionChange`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Move {
    /// Absent: the same as before. Null: nobody.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub leader: Option<Option<StorageId>>,
    /// Who was in sync, and is no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<StorageId>,
    /// Who was not, and is now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joined: Vec<StorageId>,
}

impl Record {
    /// Reads one record. Those that may be large are read straight into what they are: serde would hold all of a record of an
    /// enum in memory first, piece by piece, which takes several times as long.
    ///
    /// # Errors
    /// Where it is no record that is known.
    pub(super) fn read(raw: &RawValue) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Changed {
            #[serde(rename = "type")]
            _type: IgnoredAny,
            topic_id: TopicId,
            changes: Vec<PartitionChange>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Added {
            #[serde(rename = "type")]
            _type: IgnoredAny,
            topic_id: TopicId,
            replicas: Vec<Replicas>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Moved {
            #[serde(rename = "type")]
            _type: IgnoredAny,
            change: Move,
            partitions: BTreeMap<TopicId, Vec<PartitionId>>,
        }
        let text = raw.get();
        // As we write them. Any other spelling of the same takes the longer way.
        if text.starts_with(r#"{"type":"partitionsChanged","#) {
            let Changed { topic_id, changes, .. } = serde_json::from_str(text)?;
            return Ok(Self::PartitionsChanged { topic_id, changes });
        }
        if text.starts_with(r#"{"type":"partitionsAdded","#) {
            let Added { topic_id, replicas, .. } = serde_json::from_str(text)?;
            return Ok(Self::PartitionsAdded { topic_id, replicas });
        }
        if text.starts_with(r#"{"type":"partitionsMoved","#) {
            let Moved { change, partitions, .. } = serde_json::from_str(text)?;
            return Ok(Self::PartitionsMoved { change, partitions });
        }
        serde_json::from_str(text)
    }

    /// The partitions whose state it changes, each with its leader where that is another one, or nobody.
    pub fn changed_partitions(&self) -> impl Iterator<Item = (TopicId, PartitionId, Option<Option<StorageId>>)> {
        let (one_topic, alike) = match self {
            Self::PartitionsChanged { topic_id, changes } => (Some((*topic_id, changes)), None),
            Self::PartitionsMoved { change, partitions } => (None, Some((change.leader, partitions))),
            Self::ClusterFounded { .. }
            | Self::ClusterRestored { .. }
            | Self::ControllerElected { .. }
            | Self::SnapshotCommitted { .. }
            | Self::StorageRegistered { .. }
            | Self::StorageStateChanged { .. }
            | Self::StorageReplaced { .. }
            | Self::StorageRemoved { .. }
            | Self::PairingChanged { .. }
            | Self::TopicCreated { .. }
            | Self::PartitionsAdded { .. }
            | Self::TopicConfigured { .. }
            | Self::TopicDeleted { .. }
            | Self::NoOp {} => (None, None),
        };
        let each = one_topic
            .into_iter()
            .flat_map(|(topic, changes)| changes.iter().map(move |change| (topic, change.partition, change.leader)));
        each.chain(alike.into_iter().flat_map(|(leader, partitions)| {
            let all = partitions.iter().flat_map(|(topic, numbers)| numbers.iter().map(|number| (*topic, *number)));
            all.map(move |(topic, number)| (topic, number, leader))
        }))
    }
}

/// What changes of one partition. The partition epoch rises by one with each; the leader epoch too where `leader` is given,
/// even if it names the leader of before.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PartitionChange {
    pub partition: PartitionId,
    /// Absent: the same as before. Null: nobody.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub leader: Option<Option<StorageId>>,
    /// Absent: the same as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isr: Option<Vec<StorageId>>,
    /// The lost directory whose return alone can bring the partition back (its node's id has another one now).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<DirectoryId>,
    /// True: an unclean election, and the partition recovers until its leader has said that it has. False: it has said so.
    /// Absent: the same as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovering: Option<bool>,
}

/// A field that is present, be it null, is `Some`.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_of_null_is_not_an_absent_one() {
        let nobody: PartitionChange = serde_json::from_str(r#"{"partition":1,"leader":null}"#).unwrap();
        assert_eq!(nobody.leader, Some(None));
        let same: PartitionChange = serde_json::from_str(r#"{"partition":1}"#).unwrap();
        assert_eq!(same.leader, None);
        assert_eq!(serde_json::to_string(&nobody).unwrap(), r#"{"partition":1,"leader":null}"#);
    }

    #[test]
    fn what_is_read_straight_is_what_serde_would_read_and_refuses_what_it_would_refuse() {
        let read = |text: &str| {
            let raw: Box<RawValue> = serde_json::from_str(text).unwrap();
            let (straight, serde) = (Record::read(&raw), serde_json::from_str::<Record>(text));
            assert_eq!(straight.as_ref().ok(), serde.as_ref().ok(), "{text}");
            straight.ok()
        };
        let id = "00000000-0000-0000-0000-000000000007";
        let changes = r#"[{"partition":1,"leader":null,"isr":[3,4]},{"partition":2,"recovering":true}]"#;
        for (good, wrong) in [
            (
                format!(r#"{{"type":"partitionsChanged","topicId":"{id}","changes":{changes}}}"#),
                format!(r#"{{"type":"partitionsChanged","topicId":"{id}","changes":[{{"partition":1,"new":2}}]}}"#),
            ),
            (
                format!(r#"{{"type":"partitionsAdded","topicId":"{id}","replicas":[[1,2,3],[4]]}}"#),
                format!(r#"{{"type":"partitionsAdded","topicId":"{id}","replicas":[[1,-2]]}}"#),
            ),
        ] {
            let record = read(&good).unwrap();
            assert_eq!(serde_json::to_string(&record).unwrap(), good, "so is it written");
            // With its fields in another order, or spaces, it is the same.
            let rest = good.strip_prefix('{').and_then(|rest| rest.split_once(',')).unwrap();
            let turned = format!("{{ {}, {} }}", rest.1.strip_suffix('}').unwrap(), rest.0);
            assert_eq!(read(&turned), Some(record));
            let more = good.replacen("topicId", r#"more":1,"topicId"#, 1);
            let twice = good.replacen(r#""topicId":"#, &format!(r#""topicId":"{id}","topicId":"#), 1);
            let less = good.replacen(&format!(r#","topicId":"{id}""#), "", 1);
            for text in [&wrong, &more, &twice, &less] {
                assert_eq!(read(text), None, "{text}");
            }
        }
        assert_eq!(read(r#"{"type":"noOp"}"#), Some(Record::NoOp {}));
    }

    #[test]
    fn a_record_with_a_field_that_we_do_not_know_is_refused() {
        assert!(serde_json::from_str::<Record>(r#"{"type":"noOp"}"#).is_ok());
        assert!(serde_json::from_str::<Record>(r#"{"type":"noOp","more":1}"#).is_err());
        assert!(serde_json::from_str::<Record>(r#"{"type":"partitionMoved"}"#).is_err());
    }
}
