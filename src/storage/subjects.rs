//! The subjects that a storage node speaks on.

use crate::config::{DataTarget, Services};
use crate::types::{ControllerId, PartitionId, StorageId, TopicName};

/// The subjects of whoever this node speaks to: what services.json says.
pub trait Subjects: Send + Sync {
    fn heartbeat(&self, storage: StorageId) -> String;
    fn push(&self, storage: StorageId) -> String;
    fn ack(&self, storage: StorageId) -> String;
    fn fetch(&self, controller: ControllerId) -> String;
    fn admin(&self, noun: &str, verb: &str) -> String;
    /// Where a node's followers poll it.
    fn replica(&self, storage: StorageId) -> String;
    /// All data subjects of one partition: every operation.
    fn partition(&self, topic: &TopicName, partition: PartitionId) -> String;
    /// The subject of one operation on one partition.
    fn data(&self, op: &str, topic: &TopicName, partition: PartitionId) -> String;
    /// One operation on any topic, whose partition the node picks.
    fn data_auto(&self, op: &str) -> String;
    /// The operation, the topic, and the partition unless the node is to pick it.
    fn read_data<'a>(&self, subject: &'a str) -> Option<(&'a str, TopicName, Option<PartitionId>)>;
}

impl Subjects for Services {
    fn heartbeat(&self, storage: StorageId) -> String {
        self.storage(storage).heartbeat
    }

    fn push(&self, storage: StorageId) -> String {
        self.storage(storage).push
    }

    fn ack(&self, storage: StorageId) -> String {
        self.storage(storage).ack
    }

    fn fetch(&self, controller: ControllerId) -> String {
        self.controller(controller).fetch
    }

    fn admin(&self, noun: &str, verb: &str) -> String {
        self.admin_subject(noun, verb)
    }

    fn replica(&self, storage: StorageId) -> String {
        self.storage(storage).replica
    }

    fn partition(&self, topic: &TopicName, partition: PartitionId) -> String {
        self.data_subject("*", DataTarget::Partition(partition), topic)
    }

    fn data(&self, op: &str, topic: &TopicName, partition: PartitionId) -> String {
        self.data_subject(op, DataTarget::Partition(partition), topic)
    }

    fn data_auto(&self, op: &str) -> String {
        self.data_auto_wildcard(op)
    }

    fn read_data<'a>(&self, subject: &'a str) -> Option<(&'a str, TopicName, Option<PartitionId>)> {
        let (op, target, topic) = self.read_data_subject(subject)?;
        let partition = match target {
            DataTarget::Partition(partition) => Some(partition),
            DataTarget::Auto => None,
        };
        Some((op, topic, partition))
    }
}
