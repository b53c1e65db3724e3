//! Records in brief, for a line of the log.

use crate::metadata::Record;
use crate::types::StorageId;

/// The most records that a line names; how many more there are is said.
const NAMED: usize = 4;

pub fn records(records: &[Record]) -> String {
    let mut named: Vec<String> = records.iter().take(NAMED).map(record).collect();
    if records.len() > NAMED {
        named.push(format!("and {} more", records.len() - NAMED));
    }
    named.join("; ")
}

fn record(record: &Record) -> String {
    match record {
        Record::ClusterFounded { cluster } => format!("cluster {cluster} founded"),
        Record::ClusterRestored { from } => format!("cluster restored from version {}", from.version),
        Record::ControllerElected { controller, .. } => format!("controller {controller} elected"),
        Record::SnapshotCommitted { snapshot } => format!("snapshot at version {} committed", snapshot.version),
        Record::StorageRegistered { storage, .. } => format!("storage {storage} registered"),
        Record::StorageStateChanged { storage, state, .. } => format!("storage {storage} {}", state.as_str()),
        Record::StorageReplaced { storage, .. } => format!("storage {storage} replaced"),
        Record::StorageRemoved { storage } => format!("storage {storage} removed"),
        Record::PairingChanged { storage, controller: Some(controller) } => {
            format!("storage {storage} paired with {controller}")
        }
        Record::PairingChanged { storage, controller: None } => format!("storage {storage} paired with nobody"),
        Record::TopicCreated { name, replicas, .. } => format!("topic {name} created, {} partitions", replicas.len()),
        Record::PartitionsAdded { topic_id, replicas } => {
            format!("topic {topic_id} has {} more partitions", replicas.len())
        }
        Record::TopicConfigured { topic_id, config } => {
            format!("topic {topic_id} configured: {}", config.keys().cloned().collect::<Vec<_>>().join(", "))
        }
        Record::TopicDeleted { topic_id } => format!("topic {topic_id} deleted"),
        Record::PartitionsChanged { topic_id, changes } => {
            let leaders = changes.iter().filter(|change| change.leader.is_some()).count();
            format!("topic {topic_id}: {} partitions changed, {leaders} of them their leader", changes.len())
        }
        Record::PartitionsMoved { change, partitions } => {
            let count = partitions.values().map(Vec::len).sum::<usize>();
            let topics = partitions.len();
            let mut words = vec![format!("{count} partitions of {topics} topics changed")];
            let names = |nodes: &[StorageId]| nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
            match change.leader {
                Some(Some(leader)) => words.push(format!("storage {leader} leads them")),
                Some(None) => words.push("nobody leads them".into()),
                None => {}
            }
            if !change.left.is_empty() {
                words.push(format!("storage {} left their in-sync replicas", names(&change.left)));
            }
            if !change.joined.is_empty() {
                words.push(format!("storage {} joined their in-sync replicas", names(&change.joined)));
            }
            words.join(", ")
        }
        Record::NoOp {} => "nothing".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_records_are_counted_rather_than_named() {
        let some: Vec<_> = (0..6).map(|n| Record::StorageRemoved { storage: StorageId(n) }).collect();
        let wanted = "storage 0 removed; storage 1 removed; storage 2 removed; storage 3 removed; and 2 more";
        assert_eq!(records(&some), wanted);
    }
}
