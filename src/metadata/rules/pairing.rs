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
