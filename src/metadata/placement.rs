//! Where the replicas of new partitions go, and which of them is preferred as leader.
//!
//! Each partition takes the nodes with the fewest replicas, in racks that it is not in yet where there are such; then
//! leaderships are evened out along chains of partitions, or by an exchange where there is no chain. So nodes differ by at most
//! one replica, and a topic's leaderships by at most one, where racks allow. Over many topics replicas come first: to keep
//! them even, leaderships may come to differ by two.

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
    let fewest = loads.first().map_or(0, |load| load.replicas);
    let score = |load: &Load| (load.node, 2 * i64::from(load.leaders) - i64::from(load.replicas > fewest));
    even_leaders(&mut placed, loads.iter().map(score).collect(), &racks);
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
///
/// A node's score is twice its leaderships, less one where it has more replicas than others: of two nodes the one with more
/// replicas has more leaderships too, since the next topic's replicas, and so its leaderships, go to the other.
fn even_leaders(
    placed: &mut [Vec<StorageId>],
    mut scores: BTreeMap<StorageId, i64>,
    racks: &BTreeMap<StorageId, Option<Arc<str>>>,
) {
    // Every step lowers the sum of squares, so this ends. Each look goes over every partition, so their number is bounded: a huge
    // request must not cost quadratic time.
    let mut looks = 10_000_000 / placed.len().max(1);
    while looks > 0 {
        let mut highest: Vec<_> = scores.iter().map(|(node, score)| (*node, *score)).collect();
        highest.sort_by_key(|(node, score)| (std::cmp::Reverse(*score), *node));
        let Some(least) = highest.last().map(|(_, score)| *score) else { return };
        let worth = highest.into_iter().take_while(|(_, score)| score - least >= WORTH);
        let relieved = worth.into_iter().find_map(|(from, _)| {
            looks = looks.checked_sub(1)?;
            Some((from, relieve(placed, &scores, racks, from)?))
        });
        let Some((from, to)) = relieved else { return };
        *scores.entry(from).or_default() -= 2;
        *scores.entry(to).or_default() += 2;
    }
}

/// By how much the scores of two nodes differ where one should hand the other a leadership.
const WORTH: i64 = 3;

/// Takes one leadership from a node. Who has one more then.
fn relieve(
    placed: &mut [Vec<StorageId>],
    scores: &BTreeMap<StorageId, i64>,
    racks: &BTreeMap<StorageId, Option<Arc<str>>>,
    from: StorageId,
) -> Option<StorageId> {
    let most = *scores.get(&from)?;
    if let Some(path) = path_to_less(placed, scores, from, most) {
        let to = path.first().map(|(_, node)| *node);
        for (partition, node) in path {
            let replicas = &mut placed[partition];
            let index = replicas.iter().position(|replica| *replica == node).expect("the path goes over replicas");
            replicas.swap(0, index);
        }
        return to;
    }
    let mut less: Vec<_> = scores.iter().filter(|(_, score)| most - **score >= WORTH).collect();
    less.sort_by_key(|(node, score)| (**score, **node));
    let same_rack = |node: &StorageId| racks.get(node) == racks.get(&from);
    less.into_iter().map(|(node, _)| *node).filter(same_rack).find(|to| exchange(placed, from, *to))
}

/// Gives `to` the place of `from` as leader of a partition, and `from` that of `to` as follower of another one: where the two
/// share no chain of partitions, a leadership moves all the same, and both hold as many replicas as before.
fn exchange(placed: &mut [Vec<StorageId>], from: StorageId, to: StorageId) -> bool {
    let led = placed.iter().position(|replicas| replicas[0] == from && !replicas.contains(&to));
    let follows = |replicas: &Vec<StorageId>| replicas[1..].contains(&to) && !replicas.contains(&from);
    let (Some(led), Some(followed)) = (led, placed.iter().position(follows)) else { return false };
    placed[led][0] = to;
    placed[followed].iter_mut().filter(|node| **node == to).for_each(|node| *node = from);
    true
}

/// A chain of partitions along which `from` can hand one leadership on to a node that should have it.
fn path_to_less(
    placed: &[Vec<StorageId>],
    scores: &BTreeMap<StorageId, i64>,
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
        if scores.get(&node).is_some_and(|score| most - score >= WORTH) {
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
