//! Why partitions have no leader, and what there is to do, in a few lines however many they are.

use std::collections::{BTreeMap, BTreeSet};

use crate::metadata::Image;
use crate::types::{DirectoryId, PartitionId, StorageId};

/// What a partition waits for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Waits {
    /// For one of its in-sync replicas' nodes.
    Nodes(Vec<StorageId>),
    /// For the directory of a node that works in another one now.
    Directory(StorageId, DirectoryId),
    /// For consent: the disk that was in sync was set back to an older copy.
    Consent(StorageId),
}

/// How many causes are told of.
const TOLD: usize = 20;

/// Lines for `problems` of the cluster's status.
pub(super) fn why_leaderless(image: &Image) -> Vec<String> {
    let mut causes: BTreeMap<Waits, (u64, String)> = BTreeMap::new();
    for topic in image.topics.values() {
        for (number, partition) in topic.partitions.iter().enumerate().filter(|(_, found)| found.leader.is_none()) {
            let waits = match (topic.waits_for.get(&(number as PartitionId)), partition.isr().next()) {
                (Some(&DirectoryId::NOBODY), Some(node)) => Waits::Consent(node),
                (Some(directory), Some(node)) => Waits::Directory(node, *directory),
                (Some(_) | None, _) => Waits::Nodes(partition.isr().collect::<BTreeSet<_>>().into_iter().collect()),
            };
            causes.entry(waits).or_insert_with(|| (0, format!("{}-{number}", topic.name))).0 += 1;
        }
    }
    let more = causes.len().saturating_sub(TOLD);
    let mut lines: Vec<String> =
        causes.iter().take(TOLD).map(|(waits, (count, first))| line(waits, *count, first)).collect();
    if more > 0 {
        lines.push(format!(
            "{more} more reasons why partitions have no leader; `dmq topic describe` shows each partition"
        ));
    }
    lines
}

fn line(waits: &Waits, count: u64, first: &str) -> String {
    let who = match count {
        1 => format!("{first} has no leader and waits"),
        _ => format!("{count} partitions ({first} and others) have no leader and wait"),
    };
    let consent = "`dmq topic alter TOPIC --config unclean.leader.election.enable=true` lets another replica lead, without what only \
                   that one had";
    match waits {
        Waits::Nodes(nodes) => {
            let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
            format!("{who} for storage node {}, which had all that was acknowledged", nodes.join(" or "))
        }
        Waits::Directory(node, directory) => format!(
            "{who} for data directory {directory}, which storage node {node} had: start that node with it again, or {consent}"
        ),
        Waits::Consent(node) => format!(
            "{who} for consent, since the data directory of storage node {node} was set back to an older copy: {consent}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::rules::node::replace;
    use crate::metadata::testing::{World, directory};

    #[test]
    fn what_partitions_wait_for_is_said_with_what_to_do() {
        let mut world = World::with_nodes(2);
        (0..3).for_each(|topic| world.topic(topic, [0, 1]));
        world.topic(3, [1, 0]);
        assert_eq!(why_leaderless(world.image()), [""; 0]);
        (0..3).for_each(|topic| world.shrink(topic, [0]));
        let active = world.epoch(0).0;
        world.fence([0, 1]);
        let name = |topic| world.image().topics[&crate::metadata::testing::topic_id(topic)].name.to_string();
        let names: Vec<String> = (0..4).map(name).collect();
        let nodes =
            |number, nodes: &str| format!("{number} for storage node {nodes}, which had all that was acknowledged");
        let three = format!("3 partitions ({}-0 and others) have no leader and wait", names[0]);
        let one = format!("{}-0 has no leader and waits", names[3]);
        assert_eq!(why_leaderless(world.image()), [nodes(&three, "0"), nodes(&one, "0 or 1")]);

        let records = replace(world.image(), StorageId(0), false).unwrap();
        world.commit(records);
        let lines = why_leaderless(world.image());
        let wanted = format!("{three} for data directory {}, which storage node 0 had: start that", directory(0));
        assert!(lines.iter().any(|line| line.starts_with(&wanted)), "{lines:?}");

        let mut world = World::with_nodes(2);
        world.topic(0, [0, 1]);
        world.shrink(0, [0]);
        world.fence([0, 1]);
        assert_eq!(world.comes_back(0, active - 1), [StorageId(0)]);
        let lines = why_leaderless(world.image());
        assert!(
            matches!(&lines[..], [line] if line.contains("set back") && line.contains("unclean.leader")),
            "{lines:?}"
        );
    }
}
