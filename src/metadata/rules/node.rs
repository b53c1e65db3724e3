//! Storage nodes: what fencing, unfencing, draining, replacing and removing mean.
//!
//! Fencing and unfencing take many nodes at once, so that they are one batch of changes. None of it knows why a node is fenced.

use std::collections::{BTreeMap, BTreeSet};

use super::election::{NodeSet, Standing, elect_leaderless, elect_where};
use crate::metadata::{Image, NodeState, Record, StorageNode};
use crate::types::{DirectoryId, MAX_NODE_ID, StorageId};

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NodeError {
    #[error("there is no storage node {0}")]
    Unknown(StorageId),
    #[error("storage node {0} was removed: it can come back only with an empty data directory")]
    Removed(StorageId),
    #[error(
        "storage node {storage} is running already, in the same directory: stop that process, or wait until its session is over"
    )]
    Duplicate { storage: StorageId },
    #[error(
        "data directory {directory} is of storage node {storage}, not {wanted}: start it with that id, or with none"
    )]
    DirectoryMismatch { directory: DirectoryId, storage: StorageId, wanted: StorageId },
    #[error(
        "storage node {storage} is data directory {directory}: start it there, or, if that directory is lost, run `dmq node replace {storage}` first"
    )]
    IdMismatch { storage: StorageId, directory: DirectoryId },
    #[error("a storage node's id is from 0 to {MAX_NODE_ID}, not {0}")]
    Id(StorageId),
    #[error("storage node {0} still works: stop its process first")]
    Live(StorageId),
    #[error(
        "storage node {storage} still holds {replicas} replicas: delete their topics first, or go on with the node (replicas cannot be moved elsewhere yet)"
    )]
    HoldsReplicas { storage: StorageId, replicas: u32 },
}

/// Fences nodes, all at once: they leave the in-sync replicas where another member remains, and lead nothing.
pub fn fence(image: &Image, nodes: &BTreeSet<StorageId>) -> Vec<Record> {
    restart(image, nodes, &BTreeMap::new())
}

/// Fences nodes that have begun anew. Some of them in directories that were set back: these leave the in-sync replicas also where
/// no other member works, and what was theirs alone waits.
pub(super) fn restart(
    image: &Image,
    nodes: &BTreeSet<StorageId>,
    set_back: &BTreeMap<StorageId, DirectoryId>,
) -> Vec<Record> {
    let fenced = in_state(image, nodes, |state| state.serves());
    let mut records = state_changes(image, &fenced, NodeState::Fenced);
    #[cfg(test)]
    if crate::simulator::planted(crate::simulator::Bug::FencedLeads) {
        return records;
    }
    let concerned: BTreeSet<_> = fenced.iter().chain(set_back.keys()).copied().collect();
    if concerned.iter().any(|node| image.storage[node].replicas > 0) {
        let set = NodeSet::new(concerned.iter().copied());
        let standing = Standing::restarted(image, &Vec::from_iter(concerned), set_back);
        records.extend(elect_where(image, &standing, |_, partition| partition.isr().any(|node| set.contains(node))));
    }
    records
}

/// Makes fenced nodes active, all at once, and elects leaders where they were missing for that.
pub fn unfence(image: &Image, nodes: &BTreeSet<StorageId>) -> Vec<Record> {
    unfence_where(image, nodes, false)
}

/// The same, without unclean elections, while those in sync may be about to come.
pub fn unfence_cleanly(image: &Image, nodes: &BTreeSet<StorageId>) -> Vec<Record> {
    unfence_where(image, nodes, true)
}

/// The elections that [`unfence_cleanly`] left out, where those in sync did not come.
pub fn elect_uncleanly(image: &Image) -> Vec<Record> {
    let allowing = image.topics.values().filter(|topic| topic.unclean_election());
    allowing.flat_map(|topic| elect_leaderless(image, topic)).collect()
}

fn unfence_where(image: &Image, nodes: &BTreeSet<StorageId>, only_clean: bool) -> Vec<Record> {
    let active = in_state(image, nodes, |state| state == NodeState::Fenced);
    let active: Vec<_> = active.into_iter().filter(|node| image.storage[node].directory.is_some()).collect();
    let mut records = state_changes(image, &active, NodeState::Active);
    if active.iter().any(|node| image.storage[node].replicas > 0) {
        let standing = Standing::with(image, &active, NodeState::Active).only_clean(only_clean);
        records.extend(elect_where(image, &standing, |_, partition| partition.leader.is_none()));
    }
    records
}

/// Begins to drain an active node, or goes on with it: leaderships move to other active members, and it leaves the in-sync
/// replicas of all that it does not lead. What nobody else can lead stays with it.
pub fn drain(image: &Image, node: StorageId) -> Vec<Record> {
    let Some(held) = image.storage.get(&node).filter(|held| held.state.serves()) else { return Vec::new() };
    let begins = held.state == NodeState::Active;
    let mut records = if begins { state_changes(image, &[node], NodeState::Draining) } else { Vec::new() };
    if held.replicas > 0 {
        let standing = Standing::with(image, &[node], NodeState::Draining);
        records.extend(elect_where(image, &standing, |_, partition| partition.in_sync(node)));
    }
    records
}

/// Whether others can lead all that the node leads. Where not, a drain would never end.
pub fn can_drain(image: &Image, node: StorageId) -> bool {
    let others = |member: StorageId| member != node && image.is_active(member);
    leads(image, node) == 0
        || image
            .topics
            .values()
            .flat_map(|topic| topic.partitions.iter())
            .filter(|partition| partition.leader == Some(node))
            .all(|partition| partition.isr().any(others))
}

/// How many partitions the node leads.
pub fn leads(image: &Image, node: StorageId) -> u32 {
    image.storage.get(&node).map_or(0, |node| node.leaders)
}

/// Gives up a node's directory as lost: it leaves the in-sync replicas of every partition; where it was the last member, the
/// partition waits for that directory. The id is free for another one.
pub fn replace(image: &Image, node: StorageId, live: bool) -> Result<Vec<Record>, NodeError> {
    let held = stopped(image, node, live)?;
    if held.state == NodeState::Removed {
        return Err(NodeError::Removed(node));
    }
    let Some(lost_directory) = held.directory else { return Ok(Vec::new()) };
    let standing = Standing::without(image, node, lost_directory);
    let mut records = elect_where(image, &standing, |_, partition| partition.in_sync(node));
    records.push(Record::StorageReplaced { storage: node, lost_directory });
    Ok(records)
}

/// Removes a node that holds nothing.
pub fn remove(image: &Image, node: StorageId, live: bool) -> Result<Vec<Record>, NodeError> {
    let held = stopped(image, node, live)?;
    if held.state == NodeState::Removed {
        return Ok(Vec::new());
    }
    if held.replicas > 0 {
        return Err(NodeError::HoldsReplicas { storage: node, replicas: held.replicas });
    }
    Ok(vec![Record::StorageRemoved { storage: node }])
}

fn stopped(image: &Image, node: StorageId, live: bool) -> Result<&StorageNode, NodeError> {
    let held = image.storage.get(&node).ok_or(NodeError::Unknown(node))?;
    if live && held.state != NodeState::Removed { Err(NodeError::Live(node)) } else { Ok(held) }
}

/// Those of the nodes that are known and in such a state.
fn in_state(image: &Image, nodes: &BTreeSet<StorageId>, wanted: impl Fn(NodeState) -> bool) -> Vec<StorageId> {
    let fits = |node: &&StorageId| image.storage.get(node).is_some_and(|held| wanted(held.state));
    nodes.iter().filter(fits).copied().collect()
}

fn state_changes(image: &Image, nodes: &[StorageId], state: NodeState) -> Vec<Record> {
    let epoch = |node: &StorageId| image.storage.get(node).map(|held| (*node, held.epoch));
    let change = |(storage, node_epoch)| Record::StorageStateChanged { storage, node_epoch, state };
    nodes.iter().filter_map(epoch).map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::testing::{World, directory, ids, set, topic_id};

    #[test]
    fn a_drain_gives_leaderships_away_and_leaves_the_in_sync_replicas() {
        let mut world = World::with_nodes(3);
        world.topic(0, [0, 1, 2]);
        world.topic(1, [1, 0]);
        assert!(can_drain(world.image(), StorageId(0)));
        world.commit(drain(world.image(), StorageId(0)));
        assert_eq!((world.standing(0), world.standing(1)), ((Some(1), vec![1, 2]), (Some(1), vec![1])));
        assert_eq!(leads(world.image(), StorageId(0)), 0);
        assert!(drain(world.image(), StorageId(0)).is_empty(), "there is nothing left to move");
    }

    #[test]
    fn a_drain_goes_on_once_another_member_can_lead() {
        let mut world = World::with_nodes(2);
        world.topic(0, [0, 1]);
        world.shrink(0, [0]);
        assert!(!can_drain(world.image(), StorageId(0)));
        world.commit(drain(world.image(), StorageId(0)));
        assert_eq!((world.standing(0), leads(world.image(), StorageId(0))), ((Some(0), vec![0]), 1));
        world.shrink(0, [0, 1]);
        world.commit(drain(world.image(), StorageId(0)));
        assert_eq!(world.standing(0), (Some(1), vec![1]));
    }

    #[test]
    fn fencing_what_is_fenced_or_unknown_changes_nothing() {
        let mut world = World::with_nodes(2);
        world.topic(0, [0, 1]);
        world.fence([0]);
        assert!(fence(world.image(), &set([0, 9])).is_empty());
        assert!(unfence(world.image(), &set([1, 9])).is_empty());
        assert!(drain(world.image(), StorageId(0)).is_empty());
    }

    #[test]
    fn a_replaced_node_leaves_every_in_sync_set_and_is_not_unfenced_without_a_directory() {
        let mut world = World::with_nodes(3);
        world.topic(0, [0, 1, 2]);
        world.topic(1, [0]);
        assert_eq!(replace(world.image(), StorageId(0), true), Err(NodeError::Live(StorageId(0))));
        world.commit(replace(world.image(), StorageId(0), false).unwrap());
        assert_eq!((world.standing(0), world.standing(1)), ((Some(1), vec![1, 2]), (None, vec![0])));
        assert_eq!(world.image().topics[&topic_id(1)].waits_for.get(&0), Some(&directory(0)));
        assert!(world.image().topics[&topic_id(0)].waits_for.is_empty());
        assert!(unfence(world.image(), &set([0])).is_empty());
        assert!(replace(world.image(), StorageId(0), false).unwrap().is_empty(), "it is done already");
        assert_eq!(world.image().partition(topic_id(0), 0).unwrap().replicas[..], ids([0, 1, 2]));
    }
}
