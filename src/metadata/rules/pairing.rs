//! Pairing: which metadata service pushes to which storage node.

use std::collections::{BTreeMap, BTreeSet};

use crate::metadata::{Image, NodeState, Record};
use crate::types::{ControllerId, StorageId};

/// Pairs every node with a living controller: the file's, else the present one, else the one with the fewest nodes. Where none
/// lives, nothing changes.
pub fn repair(
    image: &Image,
    file_pairing: &dyn Fn(StorageId) -> Option<ControllerId>,
    alive: &BTreeSet<ControllerId>,
) -> Vec<Record> {
    let mut counts: BTreeMap<ControllerId, usize> = alive.iter().map(|controller| (*controller, 0)).collect();
    let mut pairs = BTreeMap::new();
    let mut homeless = Vec::new();
    for (storage, node) in image.storage.iter().filter(|(_, node)| node.state != NodeState::Removed) {
        let lives = |controller: &ControllerId| alive.contains(controller);
        match file_pairing(*storage).filter(lives).or_else(|| node.pairing.filter(lives)) {
            Some(controller) => {
                *counts.entry(controller).or_default() += 1;
                pairs.insert(*storage, controller);
            }
            None => homeless.push(*storage),
        }
    }
    for storage in homeless {
        let fewest = counts.iter_mut().min_by_key(|(controller, count)| (**count, **controller));
        let Some((controller, count)) = fewest else { break };
        *count += 1;
        pairs.insert(storage, *controller);
    }
    let differs = |(storage, controller): &(StorageId, ControllerId)| {
        image.storage.get(storage).is_some_and(|node| node.pairing != Some(*controller))
    };
    let change = |(storage, controller)| Record::PairingChanged { storage, controller: Some(controller) };
    pairs.into_iter().filter(differs).map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::rules::node::remove;
    use crate::metadata::testing::World;

    fn alive<const N: usize>(ids: [u32; N]) -> BTreeSet<ControllerId> {
        ids.map(ControllerId).into()
    }

    fn pairs(world: &World) -> Vec<Option<u32>> {
        world.image().storage.values().map(|node| node.pairing.map(|controller| controller.0)).collect()
    }

    #[test]
    fn nodes_that_the_file_does_not_pair_go_to_the_controller_with_the_fewest() {
        let mut world = World::with_nodes(5);
        let file = |node: StorageId| (node == StorageId(3)).then_some(ControllerId(0));
        world.commit(repair(world.image(), &file, &alive([0, 1, 2])));
        assert_eq!(pairs(&world), [Some(1), Some(2), Some(0), Some(0), Some(1)]);
        assert!(repair(world.image(), &file, &alive([0, 1, 2])).is_empty(), "what fits stays");
    }

    #[test]
    fn the_nodes_of_a_dead_controller_are_spread_and_return_only_where_the_file_says_so() {
        let mut world = World::with_nodes(4);
        let file = |node: StorageId| (node.0 < 2).then_some(ControllerId(0));
        world.commit(repair(world.image(), &file, &alive([0, 1, 2])));
        assert_eq!(pairs(&world), [Some(0), Some(0), Some(1), Some(2)]);
        world.commit(repair(world.image(), &file, &alive([1, 2])));
        assert_eq!(pairs(&world), [Some(1), Some(2), Some(1), Some(2)]);
        world.commit(repair(world.image(), &|_| None, &alive([0, 1, 2])));
        assert_eq!(pairs(&world), [Some(1), Some(2), Some(1), Some(2)]);
        world.commit(repair(world.image(), &file, &alive([0, 1, 2])));
        assert_eq!(pairs(&world), [Some(0), Some(0), Some(1), Some(2)]);
    }

    #[test]
    fn where_no_controller_lives_nothing_changes_and_who_is_removed_is_not_paired() {
        let mut world = World::with_nodes(2);
        assert!(repair(world.image(), &|_| Some(ControllerId(0)), &alive([])).is_empty());
        world.commit(remove(world.image(), StorageId(1), false).unwrap());
        world.commit(repair(world.image(), &|_| None, &alive([4])));
        assert_eq!(pairs(&world), [Some(4), None]);
    }
}
