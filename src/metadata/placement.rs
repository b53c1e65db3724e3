//! Where the replicas of new partitions go, and which of them is preferred as leader.
//!
//! Each partition takes the nodes with the fewest replicas, in racks that it is not in yet where there are such; then
//! leaderships are evened out along chains of partitions. So nodes differ by at most one, where racks allow.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::image::{Image, MAX_REPLICAS};
use crate::types::StorageId;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlacementError {
    #[error("a replication factor of {factor} needs as many active storage nodes, and {active} are active")]
    TooFewNodes { factor: usize, active: usize },
    #[error("a replication factor is from 1 to {MAX_REPLICAS}, not {0}")]
    Factor(usize),
}

/// How a node is loaded, in the order in which nodes are taken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Load {
    replicas: u32,
    leaders: u32,
    /// Moves the starting point with each topic.
    turn: u32,
    node: StorageId,
}

/// The nodes of `count` new partitions of `factor` replicas each, the preferred leader first.
pub fn place(image: &Image, count: u32, factor: usize) -> Result<Vec<Vec<StorageId>>, PlacementError> {
    if !(1..=MAX_REPLICAS).contains(&factor) {
        return Err(PlacementError::Factor(factor));
    }
    let nodes: Vec<_> = image.active_nodes().collect();
    if nodes.len() < factor {
        return Err(PlacementError::TooFewNodes { factor, active: nodes.len() });
    }
    let size = nodes.len() as u32;
    let start = (image.topics_created % u64::from(size)) as u32;
    let racks: BTreeMap<StorageId, Option<Arc<str>>> =
        nodes.iter().map(|(id, node)| (*id, node.rack.clone())).collect();
    let mut loads: BTreeSet<Load> = BTreeSet::new();
    for (index, (node, held)) in nodes.iter().enumerate() {
        let turn = (index as u32 + size - start) % size;
        loads.insert(Load { replicas: held.replicas, leaders: held.leaders, turn, node: *node });
    }
    let mut placed = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let mut chosen = choose(&loads, &racks, factor);
        let leader = chosen.iter().enumerate().min_by_key(|(_, load)| (load.leaders, load.turn)).map_or(0, |(n, _)| n);
        chosen[..=leader].rotate_right(1);
        for (index, load) in chosen.iter().enumerate() {
            loads.remove(load);
            let leaders = load.leaders + u32::from(index == 0);
            loads.insert(Load { replicas: load.replicas + 1, leaders, ..*load });
        }
        placed.push(chosen.iter().map(|load| load.node).collect());
    }
    let leaders = loads.iter().map(|load| (load.node, i64::from(load.leaders))).collect();
    even_leaders(&mut placed, leaders);
    Ok(placed)
}

/// The least loaded nodes, one per rack while there are racks left.
fn choose(loads: &BTreeSet<Load>, racks: &BTreeMap<StorageId, Option<Arc<str>>>, factor: usize) -> Vec<Load> {
    let mut chosen: Vec<Load> = Vec::with_capacity(factor);
    let mut used: Vec<&Option<Arc<str>>> = Vec::with_capacity(factor);
    while chosen.len() < factor {
        let before = chosen.len();
        for load in loads {
            if chosen.len() == factor {
                break;
            }
            let rack = &racks[&load.node];
            // A node without a rack counts as one of its own.
            if chosen.contains(load) || (rack.is_some() && used.contains(&rack)) {
                continue;
            }
            chosen.push(*load);
            used.push(rack);
        }
        // Every rack has its share: begin another round of them.
        used.clear();
        if chosen.len() == before {
            break;
        }
    }
    chosen
}

/// Moves preferred leaderships among the new partitions until no node has two more than another that it could reach.
fn even_leaders(placed: &mut [Vec<StorageId>], mut leaders: BTreeMap<StorageId, i64>) {
    // Every step lowers the sum of squares, so this ends; each looks at every partition, so the bound keeps a huge request from
    // costing quadratic time.
    for _ in 0..placed.len().min(10_000_000 / placed.len().max(1)) {
        let high = leaders.iter().max_by_key(|(_, count)| **count).map(|(node, count)| (*node, *count));
        let low = leaders.values().min().copied();
        let (Some((from, most)), Some(least)) = (high, low) else { return };
        if most - least < 2 {
            return;
        }
        let Some(path) = path_to_less(placed, &leaders, from, most) else { return };
        for (partition, node) in path {
            let replicas = &mut placed[partition];
            let index = replicas.iter().position(|replica| *replica == node).expect("the path goes over replicas");
            *leaders.entry(replicas[0]).or_default() -= 1;
            *leaders.entry(node).or_default() += 1;
            replicas.swap(0, index);
        }
    }
}

/// A chain of partitions along which `from` can hand one leadership on to a node that has at least two less.
fn path_to_less(
    placed: &[Vec<StorageId>],
    leaders: &BTreeMap<StorageId, i64>,
    from: StorageId,
    most: i64,
) -> Option<Vec<(usize, StorageId)>> {
    let mut led: BTreeMap<StorageId, Vec<usize>> = BTreeMap::new();
    for (partition, replicas) in placed.iter().enumerate() {
        led.entry(replicas[0]).or_default().push(partition);
    }
    let mut came: BTreeMap<StorageId, (usize, StorageId)> = BTreeMap::new();
    let mut queue = VecDeque::from([from]);
    while let Some(node) = queue.pop_front() {
        if leaders.get(&node).is_some_and(|count| most - count >= 2) {
            let mut path = Vec::new();
            let mut at = node;
            while at != from {
                let (partition, before) = came[&at];
                path.push((partition, at));
                at = before;
            }
            return Some(path);
        }
        for partition in led.get(&node).into_iter().flatten() {
            for replica in &placed[*partition][1..] {
                if *replica != from && !came.contains_key(replica) {
                    came.insert(*replica, (*partition, node));
                    queue.push_back(*replica);
                }
            }
        }
    }
    None
}
