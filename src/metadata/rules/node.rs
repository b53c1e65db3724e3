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
            .flat_map(|topic| &topic.partitions)
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
