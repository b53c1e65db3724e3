//! Registrations of storage nodes: who gets which id. Several at once are one change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::node::{NodeError, restart};
use crate::metadata::{Image, NodeState, Record, StorageNode};
use crate::types::{DirectoryId, IncarnationId, MAX_NODE_ID, StorageId, Version};

/// What a process says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The id that it wants, if it wants a certain one.
    pub wanted: Option<StorageId>,
    /// The id that it would have, where services.json lists it and no other directory has it.
    pub preferred: Option<StorageId>,
    pub directory: DirectoryId,
    /// Up to which version its disk knows for certain what became of its node.
    pub knows: Version,
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
    set_back: BTreeMap<StorageId, DirectoryId>,
}

impl<'a> Registering<'a> {
    pub fn new(image: &'a Image, listed: &'a BTreeSet<StorageId>) -> Self {
        let directories = image.storage.iter().filter_map(|(id, node)| Some((node.directory?, *id))).collect();
        Self { image, listed, directories, joined: BTreeMap::new(), set_back: BTreeMap::new() }
    }

    /// Registers an incarnation, under the id that its directory has, the one that it wants or prefers, or a new one. The same one
    /// again gets the same id, and changes nothing.
    ///
    /// `live`: whether the session of the node's present incarnation is not over, for all that this one can know.
    pub fn add(&mut self, asked: Asked, live: &dyn Fn(StorageId) -> bool) -> Result<StorageId, NodeError> {
        let Asked { wanted, preferred, directory, knows, incarnation, .. } = asked;
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
                None => preferred.filter(|id| self.is_to_be_had(*id)).unwrap_or_else(|| self.new_id()),
            },
        };
        let before = self.image.storage.get(&storage);
        if before.is_some() && live(storage) {
            return Err(NodeError::Duplicate { storage });
        }
        if let Some(lost) = before.and_then(|node| node.directory) {
            self.directories.remove(&lost);
        }
        // Who was active has that on its disk, so a disk that lacks it is an older copy of what the node had, and its logs are too.
        let served = before.and_then(|node| node.served);
        let is_set_back = served.is_some_and(|(served, epoch)| served == directory && knows.0 < epoch.0);
        #[cfg(test)]
        let is_set_back = is_set_back && !crate::simulator::planted(crate::simulator::Bug::SetBackTrusted);
        if is_set_back {
            self.set_back.insert(storage, directory);
        }
        self.directories.insert(directory, storage);
        self.joined.insert(storage, asked);
        Ok(storage)
    }

    /// What registers all that were added. The incarnations of before may still lead: they are fenced as the new ones come, with
    /// their own epochs. What was set back counts as lost: it leaves the in-sync replicas wherever another one remains, and where
    /// it was alone, only an unclean election helps.
    pub fn records(self) -> Vec<Record> {
        let restarted = self.joined.keys().filter(|id| self.image.storage.contains_key(id)).copied().collect();
        let mut records = restart(self.image, &restarted, &self.set_back);
        let registered = |(storage, Asked { directory, incarnation, rack, .. })| Record::StorageRegistered {
            storage,
            directory,
            incarnation,
            rack,
        };
        records.extend(self.joined.into_iter().map(registered));
        records
    }

    /// The nodes whose disks do not know that they were active.
    pub fn set_back(&self) -> impl Iterator<Item = StorageId> + '_ {
        self.set_back.keys().copied()
    }

    /// The nodes that were not known before.
    pub fn newcomers(&self) -> impl Iterator<Item = StorageId> + '_ {
        self.joined.keys().filter(|id| !self.image.storage.contains_key(id)).copied()
    }

    /// Whether a directory that nobody knows may have the id.
    fn wanted(&self, wanted: StorageId) -> Result<StorageId, NodeError> {
        if wanted.0 > MAX_NODE_ID {
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

    /// Whether services.json lists the id, and no directory ever had it, or `dmq node replace` freed it.
    fn is_to_be_had(&self, id: StorageId) -> bool {
        let freed = |node: &StorageNode| node.directory.is_none() && node.state != NodeState::Removed;
        let free = self.image.storage.get(&id).is_none_or(freed) && !self.joined.contains_key(&id);
        self.listed.contains(&id) && free
    }

    /// An id that no directory ever had and that services.json names for nobody: whoever is away comes back to its own, and one
    /// that was freed is for the directory that is started with it.
    fn new_id(&self) -> StorageId {
        let Self { image, listed, joined, .. } = self;
        let beyond = |id: Option<&StorageId>| id.map_or(0, |highest| highest.0.saturating_add(1));
        let next = beyond(listed.last()).max(beyond(joined.keys().next_back())).max(image.next_storage);
        if next <= MAX_NODE_ID {
            return StorageId(next);
        }
        let unused =
            |id: &StorageId| !image.storage.contains_key(id) && !joined.contains_key(id) && !listed.contains(id);
        (0..).map(StorageId).find(unused).expect("there are more ids than nodes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::config::UNCLEAN_ELECTION;
    use crate::metadata::rules::node::{remove, replace};
    use crate::metadata::testing::{Registration, World, directory, register, set, topic_id};

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
    fn a_node_without_id_gets_one_that_the_file_names_for_nobody() {
        let mut world = World::founded();
        given(&mut world, Some(1), 1);
        let taken: Vec<_> = (10..13).map(|number| given(&mut world, None, number)).collect();
        assert_eq!(taken, [6, 7, 8]);
        given(&mut world, Some(40), 40);
        assert_eq!(given(&mut world, None, 41), 41);
        assert_eq!(given(&mut world, Some(0), 42), 0, "who was away still gets its own");
    }

    #[test]
    fn a_preferred_id_is_given_where_the_file_lists_it_and_nobody_has_it() {
        let mut world = World::founded();
        let listed = set([0, 1, 2, 5]);
        let prefer = |world: &mut World, preferred, number| {
            let mut registering = Registering::new(world.image(), &listed);
            let asked = Asked {
                wanted: None,
                preferred: Some(StorageId(preferred)),
                directory: directory(number),
                knows: Version(u64::MAX),
                incarnation: world_incarnation(number),
                rack: None,
            };
            let storage = registering.add(asked, &|_| false).unwrap();
            let records = registering.records();
            world.commit(records);
            storage.0
        };
        assert_eq!(prefer(&mut world, 1, 1), 1);
        assert_eq!(prefer(&mut world, 1, 2), 6, "it has another directory");
        assert_eq!(prefer(&mut world, 3, 3), 7, "the file does not list it");
        world.commit(replace(world.image(), StorageId(1), false).unwrap());
        assert_eq!(prefer(&mut world, 1, 4), 1, "it was freed for another directory");
        world.commit(remove(world.image(), StorageId(1), false).unwrap());
        assert_eq!(prefer(&mut world, 1, 5), 8, "it is gone for good");
    }

    fn world_incarnation(number: u32) -> IncarnationId {
        IncarnationId(uuid::Uuid::from_u128(u128::from(number) << 64))
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
    fn an_id_that_was_freed_is_for_the_directory_that_is_started_with_it() {
        let mut world = World::with_nodes(9);
        world.commit(replace(world.image(), StorageId(7), false).unwrap());
        assert_eq!((given(&mut world, None, 77), given(&mut world, Some(7), 78)), (9, 7));
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
        assert_eq!(given(&mut world, Some(MAX_NODE_ID), 1), MAX_NODE_ID);
        assert_eq!((2..7).map(|number| given(&mut world, None, number)).collect::<Vec<_>>(), [3, 4, 6, 7, 8]);
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
        assert_eq!(given(&mut world, None, 9), 6, "its id is no free one");
        assert_eq!(given(&mut world, Some(0), 10), 0);
    }

    #[test]
    fn a_disk_that_was_set_back_is_not_the_first_to_lead_where_all_members_are_fenced() {
        let mut world = World::with_nodes(3);
        world.topic(0, [0, 1, 2]);
        // As of then its disk is copied. It restarts, and all go on.
        let copied = world.epoch(0).0;
        world.register(0);
        world.unfence([0]);
        world.shrink(0, [0, 1, 2]);
        world.fence([0, 1, 2]);
        assert_eq!(world.standing(0), (None, vec![0, 1, 2]));
        assert_eq!(world.comes_back(0, copied), [StorageId(0)]);
        assert_eq!(world.standing(0), (None, vec![1, 2]), "it may lack what was acknowledged");
        world.unfence([0]);
        assert_eq!(world.standing(0), (None, vec![1, 2]));
        world.unfence([1]);
        assert_eq!(world.standing(0), (Some(1), vec![1]));
    }

    #[test]
    fn a_disk_that_knows_its_last_active_incarnation_was_not_set_back() {
        let mut world = World::with_nodes(2);
        world.topic(0, [0, 1]);
        let active = world.epoch(0).0;
        world.fence([0, 1]);
        assert_eq!(world.comes_back(0, active), []);
        assert_eq!(world.standing(0), (None, vec![0, 1]));
        // It was killed before it heard of that registration, and never active in it.
        assert_eq!(world.comes_back(0, active), []);
        world.unfence([0]);
        assert_eq!(world.standing(0), (Some(0), vec![0]));
        assert_eq!(world.comes_back(0, active), [StorageId(0)]);
    }

    #[test]
    fn what_only_a_disk_had_that_was_set_back_waits_for_consent_to_an_unclean_election() {
        let mut world = World::with_nodes(2);
        let consent = std::collections::BTreeMap::from([(UNCLEAN_ELECTION.to_string(), "true".to_string())]);
        world.topic(0, [0, 1]);
        world.topic_with(1, [0, 1], consent);
        (0..2).for_each(|topic| world.shrink(topic, [0]));
        world.fence([1]);
        assert_eq!(world.comes_back(0, 0), [StorageId(0)]);
        assert_eq!((world.standing(0), world.standing(1)), ((None, vec![0]), (None, vec![0])));
        // Known again and whole by now, it still has nothing of what it had before.
        world.unfence([0]);
        let active = world.epoch(0).0;
        assert_eq!((world.standing(0), world.standing(1)), ((None, vec![0]), (Some(0), vec![0])));
        assert!(world.image().is_recovering(topic_id(1), 0), "it was unclean");
        assert_eq!(world.comes_back(0, active), []);
        world.unfence([0, 1]);
        assert_eq!(world.standing(0), (None, vec![0]));
        let records = set_config(&mut world);
        world.commit(records);
        assert_eq!(world.standing(0), (Some(1), vec![1]), "the other one may have more of it");
    }

    fn set_config(world: &mut World) -> Vec<Record> {
        let config = std::collections::BTreeMap::from([(UNCLEAN_ELECTION.to_string(), Some("true".to_string()))]);
        let name = world.image().topics[&topic_id(0)].name.clone();
        crate::metadata::rules::topic::alter(world.image(), name.as_str(), None, &config, u64::MAX).unwrap()
    }

    #[test]
    fn where_all_members_disks_were_set_back_nobody_leads() {
        let mut world = World::with_nodes(2);
        world.topic(0, [0, 1]);
        world.fence([0, 1]);
        let listed = set([]);
        let image = world.image().clone();
        let mut registering = Registering::new(&image, &listed);
        for id in 0..2 {
            let (incarnation, directory) = (world.incarnation(), directory(id));
            let asked = Asked { wanted: None, preferred: None, directory, knows: Version(0), incarnation, rack: None };
            assert_eq!(registering.add(asked, &|_| false), Ok(StorageId(id)));
        }
        world.commit(registering.records());
        world.unfence([0, 1]);
        assert_eq!(world.standing(0).0, None);
    }

    #[test]
    fn a_directory_that_was_given_up_and_set_back_does_not_bring_back_what_waits_for_it() {
        let mut world = World::with_nodes(2);
        world.topic(0, [0, 1]);
        world.shrink(0, [0]);
        world.fence([0]);
        world.commit(replace(world.image(), StorageId(0), false).unwrap());
        let asked = Asked {
            wanted: Some(StorageId(0)),
            preferred: None,
            directory: directory(0),
            knows: Version(0),
            incarnation: world.incarnation(),
            rack: None,
        };
        let (image, listed) = (world.image().clone(), set([]));
        let mut registering = Registering::new(&image, &listed);
        assert_eq!(registering.add(asked, &|_| false), Ok(StorageId(0)));
        world.commit(registering.records());
        world.unfence([0]);
        assert_eq!(world.standing(0), (None, vec![0]));
    }

    fn several(world: &mut World, asked: &[(Option<u32>, u32)]) -> Vec<Result<StorageId, NodeError>> {
        let listed = set([0, 1, 2, 5]);
        let image = world.image().clone();
        let mut registering = Registering::new(&image, &listed);
        let mut add = |(wanted, number): &(Option<u32>, u32)| {
            let (incarnation, directory, wanted) = (world.incarnation(), directory(*number), wanted.map(StorageId));
            registering.add(
                Asked { wanted, preferred: None, directory, knows: Version(u64::MAX), incarnation, rack: None },
                &|_| false,
            )
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
            (None, 70),    // a new one, not the freed id
            (None, 71),    // another new one
            (Some(7), 72), // which is taken by now
            (None, 0),     // known, and restarts, as does
            (Some(1), 1),  // this one: node 2 is to lead
            (None, 0),     // a second process in the same directory
            (Some(3), 73), // the id of who is gone for good,
            (None, 3),     // who comes back as somebody else
            (Some(6), 74), // takes the freed id
            (None, 75),
        ];
        let outcomes = several(&mut world, &asked);
        let mismatch = NodeError::IdMismatch { storage: StorageId(7), directory: directory(70) };
        let twice = NodeError::Duplicate { storage: StorageId(0) };
        let ids = [Ok(7), Ok(8), Err(mismatch), Ok(0), Ok(1), Err(twice), Ok(3), Ok(9), Ok(6), Ok(10)];
        assert_eq!(outcomes, ids.map(|id: Result<_, NodeError>| id.map(StorageId)));
        assert_eq!(world.stream.len(), before + 1);
        assert_eq!(world.standing(0), (Some(2), vec![2]));
        let epoch = world.history.seen().0;
        let fresh = [0, 1, 3, 6, 7, 8, 9, 10];
        let held = fresh.map(|id| world.image().storage[&StorageId(id)].clone());
        assert!(held.iter().all(|node| node.epoch.0 == epoch && node.state == NodeState::Fenced));
        assert_eq!(world.image().storage[&StorageId(9)].directory, Some(directory(3)));
    }

    #[test]
    fn one_incarnation_that_asks_twice_at_once_is_registered_once() {
        let world = World::founded();
        let listed = set([0, 1, 2, 5]);
        let mut registering = Registering::new(world.image(), &listed);
        let asked = |wanted| Asked {
            wanted,
            preferred: None,
            directory: directory(1),
            knows: Version(u64::MAX),
            incarnation: IncarnationId(uuid::Uuid::from_u128(1)),
            rack: None,
        };
        assert_eq!(registering.add(asked(None), &|_| false), Ok(StorageId(6)));
        assert_eq!(registering.add(asked(None), &|_| true), Ok(StorageId(6)));
        let (directory, storage, wanted) = (directory(1), StorageId(6), StorageId(2));
        let mismatch = NodeError::DirectoryMismatch { directory, storage, wanted };
        assert_eq!(registering.add(asked(Some(wanted)), &|_| false), Err(mismatch));
        assert_eq!(registering.newcomers().collect::<Vec<_>>(), [StorageId(6)]);
        assert_eq!(registering.records().len(), 1);
    }
}
