//! Storage nodes: who registers under which id, and what fencing, unfencing, draining, replacing and removing mean.
//!
//! Fencing and unfencing take many nodes at once, so that they are one batch of changes. None of it knows why a node is fenced.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::election::{NodeSet, Standing, elect_where};
use crate::metadata::{Image, NodeState, Record, StorageNode};
use crate::types::{DirectoryId, IncarnationId, StorageId};

/// The highest id of a storage node (Kafka's ids have 31 bits).
pub const MAX_STORAGE_ID: u32 = i32::MAX as u32;

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
    #[error("a storage node's id is from 0 to {MAX_STORAGE_ID}, not {0}")]
    Id(StorageId),
    #[error("storage node {0} still works: stop its process first")]
    Live(StorageId),
    #[error("storage node {storage} still holds {replicas} replicas: they must be elsewhere before it is removed")]
    HoldsReplicas { storage: StorageId, replicas: u32 },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registration {
    pub storage: StorageId,
    /// Empty where this very incarnation is registered already.
    pub records: Vec<Record>,
}

/// Registers an incarnation, under the id that its directory has, the one that it wants, or a free one.
///
/// `listed`: the ids of services.json. `live`: whether the session of a node's present incarnation is not over.
pub fn register(
    image: &Image,
    listed: &BTreeSet<StorageId>,
    live: &dyn Fn(StorageId) -> bool,
    wanted: Option<StorageId>,
    directory: DirectoryId,
    incarnation: IncarnationId,
    rack: Option<Arc<str>>,
) -> Result<Registration, NodeError> {
    let storage = match image.by_directory(directory) {
        Some((storage, node)) => {
            if node.state == NodeState::Removed {
                return Err(NodeError::Removed(storage));
            }
            if let Some(wanted) = wanted.filter(|wanted| *wanted != storage) {
                return Err(NodeError::DirectoryMismatch { directory, storage, wanted });
            }
            if node.incarnation == incarnation {
                return Ok(Registration { storage, records: Vec::new() });
            }
            storage
        }
        None => match wanted {
            Some(wanted) => wanted_id(image, wanted)?,
            None => free_id(image, listed),
        },
    };
    if image.storage.contains_key(&storage) && live(storage) {
        return Err(NodeError::Duplicate { storage });
    }
    // The incarnation of before may still lead: it is fenced as the new one comes, with its own epoch.
    let mut records = fence(image, &BTreeSet::from([storage]));
    records.push(Record::StorageRegistered { storage, directory, incarnation, rack });
    Ok(Registration { storage, records })
}

/// Whether a directory that nobody knows may have the id.
fn wanted_id(image: &Image, wanted: StorageId) -> Result<StorageId, NodeError> {
    if wanted.0 > MAX_STORAGE_ID {
        return Err(NodeError::Id(wanted));
    }
    match image.storage.get(&wanted) {
        Some(StorageNode { directory: Some(directory), state, .. }) if *state != NodeState::Removed => {
            Err(NodeError::IdMismatch { storage: wanted, directory: *directory })
        }
        Some(_) | None => Ok(wanted),
    }
}

/// An id of services.json that nobody has, or that `dmq node replace` freed; else one that was freed; else a new one.
fn free_id(image: &Image, listed: &BTreeSet<StorageId>) -> StorageId {
    let freed = |node: &StorageNode| node.directory.is_none() && node.state != NodeState::Removed;
    let free = |id: &&StorageId| image.storage.get(id).is_none_or(freed);
    if let Some(id) = listed.iter().find(free) {
        return *id;
    }
    if let Some((id, _)) = image.storage.iter().find(|(_, node)| freed(node)) {
        return *id;
    }
    let next = listed.last().map_or(0, |highest| highest.0.saturating_add(1)).max(image.next_storage);
    if next <= MAX_STORAGE_ID {
        return StorageId(next);
    }
    let unused = |id: &StorageId| !image.storage.contains_key(id) && !listed.contains(id);
    (0..).map(StorageId).find(unused).expect("there are more ids than nodes")
}

/// Fences nodes, all at once: they leave the in-sync replicas where another member remains, and lead nothing.
pub fn fence(image: &Image, nodes: &BTreeSet<StorageId>) -> Vec<Record> {
    let fenced = in_state(image, nodes, |state| state.serves());
    let mut records = state_changes(image, &fenced, NodeState::Fenced);
    #[cfg(test)]
    if crate::simulator::planted(crate::simulator::Bug::FencedLeads) {
        return records;
    }
    if fenced.iter().any(|node| image.storage[node].replicas > 0) {
        let set = NodeSet::new(fenced.iter().copied());
        let standing = Standing::with(image, &fenced, NodeState::Fenced);
        records.extend(elect_where(image, &standing, |_, partition| partition.isr().any(|node| set.contains(node))));
    }
    records
}

/// Makes fenced nodes active, all at once, and elects leaders where they were missing for that.
pub fn unfence(image: &Image, nodes: &BTreeSet<StorageId>) -> Vec<Record> {
    let active = in_state(image, nodes, |state| state == NodeState::Fenced);
    let active: Vec<_> = active.into_iter().filter(|node| image.storage[node].directory.is_some()).collect();
    let mut records = state_changes(image, &active, NodeState::Active);
    if active.iter().any(|node| image.storage[node].replicas > 0) {
        let standing = Standing::with(image, &active, NodeState::Active);
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

    fn ask(world: &mut World, wanted: Option<u32>, number: u32, live: bool) -> Result<Registration, NodeError> {
        let (incarnation, wanted) = (world.incarnation(), wanted.map(StorageId));
        register(world.image(), &set([0, 1, 2, 5]), &|_| live, wanted, directory(number), incarnation, None)
    }

    fn given(world: &mut World, wanted: Option<u32>, number: u32) -> u32 {
        let registered = ask(world, wanted, number, false).unwrap();
        world.commit(registered.records);
        registered.storage.0
    }

    #[test]
    fn a_node_without_id_takes_a_free_one_of_the_file_first_and_then_the_next_beyond() {
        let mut world = World::founded();
        given(&mut world, Some(1), 1);
        let taken: Vec<_> = (10..15).map(|number| given(&mut world, None, number)).collect();
        assert_eq!(taken, [0, 2, 5, 6, 7]);
        given(&mut world, Some(40), 40);
        assert_eq!(given(&mut world, None, 41), 41);
    }

    #[test]
    fn a_known_directory_keeps_its_id_and_gets_a_higher_epoch() {
        let mut world = World::with_nodes(3);
        let before = world.epoch(1);
        assert_eq!(given(&mut world, None, 1), 1);
        assert!(world.epoch(1) > before);
        assert_eq!(world.image().storage[&StorageId(1)].state, NodeState::Fenced);
        let refused = ask(&mut world, Some(2), 1, false).unwrap_err();
        let (storage, wanted) = (StorageId(1), StorageId(2));
        assert_eq!(refused, NodeError::DirectoryMismatch { directory: directory(1), storage, wanted });
    }

    #[test]
    fn a_known_id_with_another_directory_is_told_to_replace_it() {
        let mut world = World::with_nodes(2);
        let refused = ask(&mut world, Some(1), 77, false).unwrap_err();
        assert_eq!(refused, NodeError::IdMismatch { storage: StorageId(1), directory: directory(1) });
        assert!(refused.to_string().contains("dmq node replace 1"));
        world.commit(replace(world.image(), StorageId(1), false).unwrap());
        assert_eq!(given(&mut world, Some(1), 77), 1);
        assert_eq!(world.image().storage[&StorageId(1)].directory, Some(directory(77)));
    }

    #[test]
    fn an_id_that_was_freed_is_the_first_that_a_new_directory_gets() {
        let mut world = World::with_nodes(9);
        world.commit(replace(world.image(), StorageId(7), false).unwrap());
        assert_eq!((given(&mut world, None, 77), given(&mut world, None, 78)), (7, 9));
    }

    #[test]
    fn a_second_incarnation_is_refused_while_the_session_of_the_first_is_not_over() {
        let mut world = World::with_nodes(2);
        assert_eq!(ask(&mut world, None, 1, true), Err(NodeError::Duplicate { storage: StorageId(1) }));
        assert!(ask(&mut world, None, 1, false).is_ok());
        assert!(ask(&mut world, None, 9, true).is_ok(), "a new directory has no session");
    }

    #[test]
    fn the_same_incarnation_again_changes_nothing() {
        let world = World::with_nodes(2);
        let held = &world.image().storage[&StorageId(1)];
        let again = register(world.image(), &set([]), &|_| true, None, directory(1), held.incarnation, None);
        assert_eq!(again, Ok(Registration { storage: StorageId(1), records: Vec::new() }));
    }

    #[test]
    fn a_restart_of_a_leader_moves_its_leaderships_in_the_same_change() {
        let mut world = World::with_nodes(3);
        world.topic(0, [1, 2]);
        world.topic(1, [1]);
        world.register(1);
        assert_eq!((world.standing(0), world.standing(1)), ((Some(2), vec![2]), (None, vec![1])));
        world.unfence([1]);
        assert_eq!((world.standing(1), world.leader_epoch(1)), ((Some(1), vec![1]), 2));
    }

    #[test]
    fn a_removed_node_is_gone_but_its_id_can_be_taken_anew() {
        let mut world = World::with_nodes(3);
        world.topic(0, [1, 2]);
        assert_eq!(remove(world.image(), StorageId(1), true), Err(NodeError::Live(StorageId(1))));
        let holds = NodeError::HoldsReplicas { storage: StorageId(1), replicas: 1 };
        assert_eq!(remove(world.image(), StorageId(1), false), Err(holds));
        assert_eq!(remove(world.image(), StorageId(8), false), Err(NodeError::Unknown(StorageId(8))));
        world.commit(remove(world.image(), StorageId(0), false).unwrap());
        assert_eq!(remove(world.image(), StorageId(0), true), Ok(Vec::new()), "it is gone already");
        assert_eq!(ask(&mut world, None, 0, false), Err(NodeError::Removed(StorageId(0))));
        assert_eq!(replace(world.image(), StorageId(0), false), Err(NodeError::Removed(StorageId(0))));
        assert_eq!(given(&mut world, None, 9), 5, "its id is no free one");
        assert_eq!(given(&mut world, Some(0), 10), 0);
    }

    #[test]
    fn the_highest_ids_do_not_use_up_all_others() {
        let mut world = World::founded();
        assert_eq!(ask(&mut world, Some(u32::MAX), 1, false), Err(NodeError::Id(StorageId(u32::MAX))));
        assert_eq!(given(&mut world, Some(MAX_STORAGE_ID), 1), MAX_STORAGE_ID);
        assert_eq!((2..7).map(|number| given(&mut world, None, number)).collect::<Vec<_>>(), [0, 1, 2, 5, 3]);
    }

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
