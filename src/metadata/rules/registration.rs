//! Registrations of storage nodes: who gets which id. Several at once are one change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::node::{MAX_STORAGE_ID, NodeError, fence};
use crate::metadata::{Image, NodeState, Record, StorageNode};
use crate::types::{DirectoryId, IncarnationId, StorageId};

/// What a process says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The id that it wants, if it wants a certain one.
    pub wanted: Option<StorageId>,
    pub directory: DirectoryId,
    pub incarnation: IncarnationId,
    pub rack: Option<Arc<str>>,
}

/// Registrations that become one change: each sees those before it as registered.
pub struct Registering<'a> {
    image: &'a Image,
    /// The ids of services.json.
    listed: &'a BTreeSet<StorageId>,
    directories: BTreeMap<DirectoryId, StorageId>,
    joined: BTreeMap<StorageId, Asked>,
    /// Below these, no listed id and none that was freed is to be had any more.
    listed_from: StorageId,
    freed_from: StorageId,
}

impl<'a> Registering<'a> {
    pub fn new(image: &'a Image, listed: &'a BTreeSet<StorageId>) -> Self {
        let directories = image.storage.iter().filter_map(|(id, node)| Some((node.directory?, *id))).collect();
        let from = StorageId(0);
        Self { image, listed, directories, joined: BTreeMap::new(), listed_from: from, freed_from: from }
    }

    /// Registers an incarnation, under the id that its directory has, the one that it wants, or a free one. The same one again
    /// gets the same id, and changes nothing.
    ///
    /// `live`: whether the session of the node's present incarnation is not over, for all that this one can know.
    pub fn add(&mut self, asked: Asked, live: &dyn Fn(StorageId) -> bool) -> Result<StorageId, NodeError> {
        let Asked { wanted, directory, incarnation, .. } = asked;
        let storage = match self.directories.get(&directory).copied() {
            Some(storage) => {
                let joined = self.joined.get(&storage);
                let held = self.image.storage.get(&storage);
                if joined.is_none() && held.is_some_and(|node| node.state == NodeState::Removed) {
                    return Err(NodeError::Removed(storage));
                }
                if let Some(wanted) = wanted.filter(|wanted| *wanted != storage) {
                    return Err(NodeError::DirectoryMismatch { directory, storage, wanted });
                }
                let present = joined.map(|joined| joined.incarnation).or(held.map(|node| node.incarnation));
                if present == Some(incarnation) {
                    return Ok(storage);
                }
                if joined.is_some() {
                    return Err(NodeError::Duplicate { storage });
                }
                storage
            }
            None => match wanted {
                Some(wanted) => self.wanted(wanted)?,
                None => self.free(),
            },
        };
        let before = self.image.storage.get(&storage);
        if before.is_some() && live(storage) {
            return Err(NodeError::Duplicate { storage });
        }
        if let Some(lost) = before.and_then(|node| node.directory) {
            self.directories.remove(&lost);
        }
        self.directories.insert(directory, storage);
        self.joined.insert(storage, asked);
        Ok(storage)
    }

    /// What registers all that were added. The incarnations of before may still lead: they are fenced as the new ones come, with
    /// their own epochs.
    pub fn records(self) -> Vec<Record> {
        let restarted = self.joined.keys().filter(|id| self.image.storage.contains_key(id)).copied().collect();
        let mut records = fence(self.image, &restarted);
        let registered = |(storage, Asked { directory, incarnation, rack, .. })| Record::StorageRegistered {
            storage,
            directory,
            incarnation,
            rack,
        };
        records.extend(self.joined.into_iter().map(registered));
        records
    }

    /// The nodes that were not known before.
    pub fn newcomers(&self) -> impl Iterator<Item = StorageId> + '_ {
        self.joined.keys().filter(|id| !self.image.storage.contains_key(id)).copied()
    }

    /// Whether a directory that nobody knows may have the id.
    fn wanted(&self, wanted: StorageId) -> Result<StorageId, NodeError> {
        if wanted.0 > MAX_STORAGE_ID {
            return Err(NodeError::Id(wanted));
        }
        if let Some(Asked { directory, .. }) = self.joined.get(&wanted) {
            return Err(NodeError::IdMismatch { storage: wanted, directory: *directory });
        }
        match self.image.storage.get(&wanted) {
            Some(StorageNode { directory: Some(directory), state, .. }) if *state != NodeState::Removed => {
                Err(NodeError::IdMismatch { storage: wanted, directory: *directory })
            }
            Some(_) | None => Ok(wanted),
        }
    }

    /// An id of services.json that nobody has, or that `dmq node replace` freed; else one that was freed; else a new one.
    fn free(&mut self) -> StorageId {
        let (image, joined) = (self.image, &self.joined);
        let freed = |node: &StorageNode| node.directory.is_none() && node.state != NodeState::Removed;
        let free = |id: &StorageId| !joined.contains_key(id) && image.storage.get(id).is_none_or(freed);
        if let Some(id) = self.listed.range(self.listed_from..).copied().find(free) {
            self.listed_from = id;
            return id;
        }
        self.listed_from = StorageId(u32::MAX);
        let mut known = image.storage.range(self.freed_from..);
        if let Some((id, _)) = known.find(|(id, node)| freed(node) && free(id)) {
            self.freed_from = *id;
            return *id;
        }
        self.freed_from = StorageId(u32::MAX);
        let beyond = |id: Option<&StorageId>| id.map_or(0, |highest| highest.0.saturating_add(1));
        let next = beyond(self.listed.last()).max(beyond(joined.keys().next_back())).max(image.next_storage);
        if next <= MAX_STORAGE_ID {
            return StorageId(next);
        }
        let unused =
            |id: &StorageId| !image.storage.contains_key(id) && !joined.contains_key(id) && !self.listed.contains(id);
        (0..).map(StorageId).find(unused).expect("there are more ids than nodes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::rules::node::{remove, replace};
    use crate::metadata::testing::{Registration, World, directory, register, set};

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
    fn the_highest_ids_do_not_use_up_all_others() {
        let mut world = World::founded();
        assert_eq!(ask(&mut world, Some(u32::MAX), 1, false), Err(NodeError::Id(StorageId(u32::MAX))));
        assert_eq!(given(&mut world, Some(MAX_STORAGE_ID), 1), MAX_STORAGE_ID);
        assert_eq!((2..7).map(|number| given(&mut world, None, number)).collect::<Vec<_>>(), [0, 1, 2, 5, 3]);
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

    fn several(world: &mut World, asked: &[(Option<u32>, u32)]) -> Vec<Result<StorageId, NodeError>> {
        let listed = set([0, 1, 2, 5]);
        let image = world.image().clone();
        let mut registering = Registering::new(&image, &listed);
        let mut add = |(wanted, number): &(Option<u32>, u32)| {
            let (incarnation, directory, wanted) = (world.incarnation(), directory(*number), wanted.map(StorageId));
            registering.add(Asked { wanted, directory, incarnation, rack: None }, &|_| false)
        };
        let outcomes = asked.iter().map(&mut add).collect();
        world.commit(registering.records());
        outcomes
    }

    #[test]
    fn several_at_once_are_one_change_in_which_each_sees_those_before_it() {
        let mut world = World::with_nodes(7);
        world.topic(0, [0, 1, 2]);
        world.commit(replace(world.image(), StorageId(6), false).unwrap());
        world.fence([3]);
        world.commit(remove(world.image(), StorageId(3), false).unwrap());
        let before = world.stream.len();
        let asked = [
            (None, 70),    // takes the freed id
            (None, 71),    // a new one
            (Some(7), 72), // which is taken by now
            (None, 0),     // known, and restarts, as does
            (Some(1), 1),  // this one: node 2 is to lead
            (None, 0),     // a second process in the same directory
            (Some(3), 73), // the id of who is gone for good,
            (None, 3),     // who comes back as somebody else
            (Some(9), 74),
            (None, 75),
        ];
        let outcomes = several(&mut world, &asked);
        let mismatch = NodeError::IdMismatch { storage: StorageId(7), directory: directory(71) };
        let twice = NodeError::Duplicate { storage: StorageId(0) };
        let ids = [Ok(6), Ok(7), Err(mismatch), Ok(0), Ok(1), Err(twice), Ok(3), Ok(8), Ok(9), Ok(10)];
        assert_eq!(outcomes, ids.map(|id: Result<_, NodeError>| id.map(StorageId)));
        assert_eq!(world.stream.len(), before + 1);
        assert_eq!(world.standing(0), (Some(2), vec![2]));
        let epoch = world.history.seen().0;
        let fresh = [0, 1, 3, 6, 7, 8, 9, 10];
        let held = fresh.map(|id| world.image().storage[&StorageId(id)].clone());
        assert!(held.iter().all(|node| node.epoch.0 == epoch && node.state == NodeState::Fenced));
        assert_eq!(world.image().storage[&StorageId(8)].directory, Some(directory(3)));
    }

    #[test]
    fn one_incarnation_that_asks_twice_at_once_is_registered_once() {
        let world = World::founded();
        let listed = set([0, 1, 2, 5]);
        let mut registering = Registering::new(world.image(), &listed);
        let asked = |wanted| Asked {
            wanted,
            directory: directory(1),
            incarnation: IncarnationId(uuid::Uuid::from_u128(1)),
            rack: None,
        };
        assert_eq!(registering.add(asked(None), &|_| false), Ok(StorageId(0)));
        assert_eq!(registering.add(asked(None), &|_| true), Ok(StorageId(0)));
        let (directory, storage, wanted) = (directory(1), StorageId(0), StorageId(2));
        let mismatch = NodeError::DirectoryMismatch { directory, storage, wanted };
        assert_eq!(registering.add(asked(Some(wanted)), &|_| false), Err(mismatch));
        assert_eq!(registering.newcomers().collect::<Vec<_>>(), [StorageId(0)]);
        assert_eq!(registering.records().len(), 1);
    }
}
