//! Where the replicas of new partitions go, and which of them is preferred as leader.
//!
//! Each partition takes the nodes with the fewest replicas, in racks that it is not in yet where there are such, and the one
//! of them that leads least is preferred. Beside that, the nodes with one replica more than others and those with one
//! leadership more are kept nested, the one set within the other: then there is always a node that may take the next
//! leadership and is due for the next replica, so that nodes differ by at most one replica and one leadership, over one topic
//! as over many, where racks allow. What racks do not allow is evened out along chains of partitions, or by an exchange.
//!
//! Within that, a leader's followers are those that follow it least so far: when it dies, each of many survivors leads a few
//! partitions more, where fixed groups of nodes would burden one or two.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use smallvec::SmallVec;

use super::image::{Image, MAX_REPLICAS};
use super::record::Replicas;
use crate::types::StorageId;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlacementError {
    #[error("a replication factor of {factor} needs as many active storage nodes, and {active} are active")]
    TooFewNodes { factor: usize, active: usize },
    #[error("a replication factor is from 1 to {MAX_REPLICAS}, not {0}")]
    Factor(usize),
}

/// The nodes of `count` new partitions of `factor` replicas each, the preferred leader first.
pub fn place(image: &Image, count: u32, factor: usize) -> Result<Vec<Replicas>, PlacementError> {
    if !(1..=MAX_REPLICAS).contains(&factor) {
        return Err(PlacementError::Factor(factor));
    }
    let active = image.active_nodes().count();
    if active < factor {
        return Err(PlacementError::TooFewNodes { factor, active });
    }
    if count == 0 {
        return Ok(Vec::new());
    }
    let mut table = Table::new(image, count, factor);
    // Each node gets as much of such a block as any other, from a state on in which all of them have as much.
    let (count, block) = (count as usize, BLOCK.next_multiple_of(active));
    let mut placed = Vec::with_capacity(count);
    let one_by_one = |placed: &mut Vec<Replicas>, table: &mut Table, until: usize| {
        placed.extend((placed.len()..until).map(|_| table.next(factor)));
    };
    if count > 4 * block {
        let begin = table.until_even(factor);
        one_by_one(&mut placed, &mut table, begin);
    }
    // Two more blocks at least are placed one by one, to even out what the copies leave uneven.
    while count - placed.len() > 4 * block {
        let begin = placed.len();
        let before = table.loads();
        one_by_one(&mut placed, &mut table, begin + block);
        let copies = (count - placed.len()) / block - 2;
        table.copy(&mut placed, begin, copies.min(table.copies_at_most(&before)));
    }
    let tail = placed.len();
    one_by_one(&mut placed, &mut table, count);
    let fewest = table.nodes.iter().map(|node| node.replicas).min().unwrap_or(0);
    let score = |node: &Node| (node.id, 2 * i64::from(node.leaders) - i64::from(node.replicas > fewest));
    let racks = image.active_nodes().map(|(id, node)| (id, node.rack.clone())).collect();
    even_leaders(
        &mut placed[tail.min(count - count.min(2 * block))..],
        table.nodes.iter().map(score).collect(),
        &racks,
    );
    Ok(placed)
}

/// A node as one index of the table.
struct Node {
    id: StorageId,
    group: usize,
    replicas: u32,
    leaders: u32,
}

/// In the order in which nodes are taken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Load {
    replicas: u32,
    leaders: u32,
    /// Another order with each topic and each leadership.
    turn: u32,
    node: usize,
}

impl Load {
    fn least(replicas: u32, leaders: u32) -> Self {
        Self { replicas, leaders, turn: 0, node: 0 }
    }
}

/// The nodes of no rack, which exclude nobody.
const NO_RACK: usize = 0;
/// So many partitions are placed one by one before they are copied.
const BLOCK: usize = 8192;
/// By how much the gains of nodes of one rack may differ in a block that is copied: more shows that it levels them.
const EVEN: u32 = 2;
/// How often a block is copied at a time in which some gain more replicas than others, or more leaderships.
const COPIES_MORE_REPLICAS: usize = 64;
const COPIES_MORE_LEADERSHIPS: usize = 16;
/// How many nodes that are as good as each other are looked at for a follower.
const LOOKED_AT: usize = 32;

/// The active nodes and what is on them, as it grows.
struct Table {
    nodes: Vec<Node>,
    /// Those of no rack, then those of each rack.
    groups: Vec<BTreeSet<Load>>,
    /// For each node that leads new partitions, how many of them each node follows, and how many as the first in line.
    followed: Vec<BTreeMap<usize, (u32, u32)>>,
    seed: u64,
}

impl Table {
    /// For so many partitions of so many replicas. A node that has much less than most, since it is new, counts as having
    /// less by one share: else all of a topic would go there, and nobody else would serve it.
    fn new(image: &Image, count: u32, factor: usize) -> Self {
        let mut racks: BTreeMap<Arc<str>, usize> = BTreeMap::new();
        let mut nodes = Vec::new();
        for (id, node) in image.active_nodes() {
            let next = racks.len() + 1;
            let group = node.rack.clone().map_or(NO_RACK, |rack| *racks.entry(rack).or_insert(next));
            nodes.push(Node { id, group, replicas: node.replicas, leaders: node.leaders });
        }
        let share = |all: u64| u32::try_from(all.div_ceil(nodes.len().max(1) as u64)).unwrap_or(u32::MAX);
        let (replicas, leaders) = (share(u64::from(count) * factor as u64), share(u64::from(count)));
        let least = |what: fn(&Node) -> u32, share: u32| {
            let mut present: Vec<_> = nodes.iter().map(what).collect();
            present.sort_unstable();
            let middle = present.get(present.len() / 2).copied().unwrap_or(0);
            middle.saturating_sub(1 + share)
        };
        let (fewest, fewest_led) = (least(|node| node.replicas, replicas), least(|node| node.leaders, leaders));
        for node in &mut nodes {
            (node.replicas, node.leaders) = (node.replicas.max(fewest), node.leaders.max(fewest_led));
        }
        let followed = vec![BTreeMap::new(); nodes.len()];
        let groups = vec![BTreeSet::new(); racks.len() + 1];
        let mut table = Self { nodes, groups, followed, seed: image.topics_created };
        (0..table.nodes.len()).for_each(|node| table.put(node));
        table
    }

    fn put(&mut self, node: usize) {
        let Node { group, replicas, leaders, .. } = self.nodes[node];
        let turn = mix(self.seed ^ (u64::from(leaders) << 32) ^ ((node as u64) << 48));
        self.groups[group].insert(Load { replicas, leaders, turn, node });
    }

    /// Places one partition.
    fn next(&mut self, factor: usize) -> Replicas {
        let mut used = BTreeSet::new();
        let leader = self.leader(factor);
        self.take(leader, &mut used);
        let leader = leader.node;
        let mut followers = Vec::with_capacity(factor - 1);
        while followers.len() + 1 < factor {
            let follower = self.follower(leader, &used).or_else(|| {
                // Every rack has its share: begin another round of them.
                used.clear();
                self.follower(leader, &used)
            });
            let Some(follower) = follower else { break };
            self.take(follower, &mut used);
            followers.push(follower.node);
        }
        let row = &mut self.followed[leader];
        // The first in line leads next.
        let led_next = |row: &BTreeMap<usize, (u32, u32)>, node| row.get(&node).map_or(0, |(_, first)| *first);
        if let Some(first) = (0..followers.len()).min_by_key(|n| led_next(row, followers[*n])) {
            followers.swap(0, first);
            row.entry(followers[0]).or_default().1 += 1;
        }
        followers.iter().for_each(|node| row.entry(*node).or_default().0 += 1);
        self.nodes[leader].leaders += 1;
        let all: SmallVec<[usize; 8]> = std::iter::once(leader).chain(followers).collect();
        for node in &all {
            self.nodes[*node].replicas += 1;
            self.put(*node);
        }
        all.into_iter().map(|node| self.nodes[node].id).collect()
    }

    /// After how many partitions all nodes can have as many replicas, and as many leaderships; else, as many leaderships.
    fn until_even(&self, factor: usize) -> usize {
        let nodes = self.nodes.len();
        let replicas: usize = self.nodes.iter().map(|node| node.replicas as usize).sum();
        let leaders: usize = self.nodes.iter().map(|node| node.leaders as usize).sum();
        let even_leaders = (nodes - leaders % nodes) % nodes;
        let even = |placed: &usize| {
            (leaders + placed).is_multiple_of(nodes) && (replicas + placed * factor).is_multiple_of(nodes)
        };
        (0..nodes).find(even).unwrap_or(even_leaders)
    }

    /// Replicas and leaderships of each node.
    fn loads(&self) -> Vec<(u32, u32)> {
        self.nodes.iter().map(|node| (node.replicas, node.leaders)).collect()
    }

    /// How often what was placed since then may be placed again. None of it where it levelled the nodes of a rack, and no more
    /// than until a rack that gains on another one has caught up with it.
    fn copies_at_most(&self, before: &[(u32, u32)]) -> usize {
        // For each rack the least and the most gained, of replicas and leaderships, and the replicas that its nodes have.
        let mut racks: BTreeMap<usize, [(u32, u32); 3]> = BTreeMap::new();
        for (node, (replicas, leaders)) in self.nodes.iter().zip(before) {
            let values = [node.replicas - replicas, node.leaders - leaders, node.replicas];
            let ranges = racks.entry(node.group).or_insert([(u32::MAX, 0); 3]);
            for (range, value) in ranges.iter_mut().zip(values) {
                *range = (range.0.min(value), range.1.max(value));
            }
        }
        let all = |of: usize| {
            racks.values().fold((u32::MAX, 0), |all, ranges| (all.0.min(ranges[of].0), all.1.max(ranges[of].1)))
        };
        let differ = |range: (u32, u32)| range.1 - range.0;
        if differ(all(0)) == 0 && differ(all(1)) == 0 {
            return usize::MAX;
        }
        if differ(all(1)) > EVEN || racks.values().flatten().any(|range| differ(*range) > EVEN) {
            return 0;
        }
        let most = if differ(all(1)) == 0 { COPIES_MORE_REPLICAS } else { COPIES_MORE_LEADERSHIPS };
        // What one more in each copy leaves uneven, two blocks that are placed one by one even out.
        let gained = (all(0).0 as usize).min(most);
        let catches_up = |low: &[(u32, u32); 3], high: &[(u32, u32); 3]| {
            let (faster, gap) = (low[0].1.saturating_sub(high[0].0), high[2].0.saturating_sub(low[2].1));
            let at_least = if faster <= EVEN { gained } else { 0 };
            (gap > 0 && faster > 0).then(|| at_least.max((gap / faster) as usize))
        };
        let pairs = racks.values().flat_map(|low| racks.values().filter_map(move |high| catches_up(low, high)));
        pairs.min().map_or(most, |copies| copies.min(most))
    }

    /// Places what was placed from `begin` on so many times again, each time with other nodes of the same racks in its places:
    /// so that all nodes come to have as much, and whoever leads comes to be followed by others.
    fn copy(&mut self, placed: &mut Vec<Replicas>, begin: usize, copies: usize) {
        if copies == 0 {
            return;
        }
        let index: BTreeMap<_, _> = self.nodes.iter().enumerate().map(|(index, node)| (node.id, index)).collect();
        let block: Vec<SmallVec<[usize; 3]>> =
            placed[begin..].iter().map(|replicas| replicas.iter().map(|id| index[id]).collect()).collect();
        let mut members = vec![Vec::new(); self.groups.len()];
        let place = |(index, node): (usize, &Node)| {
            members[node.group].push(index);
            members[node.group].len() - 1
        };
        let places: Vec<usize> = self.nodes.iter().enumerate().map(place).collect();
        let mut turned = vec![0; self.nodes.len()];
        for copy in 1..=copies {
            // Turns that are spread as evenly as can be, however many there are (multiples of the golden ratio).
            let turn = u64::from((copy as u32).wrapping_mul(0x9e37_79b9));
            for (node, place) in self.nodes.iter().zip(&places) {
                let among = &members[node.group];
                let by = (turn * among.len() as u64) >> 32;
                turned[among[*place]] = among[(place + by as usize) % among.len()];
            }
            for replicas in &block {
                for node in replicas {
                    self.nodes[turned[*node]].replicas += 1;
                }
                self.nodes[turned[replicas[0]]].leaders += 1;
                placed.push(replicas.iter().map(|node| self.nodes[turned[*node]].id).collect());
            }
        }
        self.groups.iter_mut().for_each(BTreeSet::clear);
        (0..self.nodes.len()).for_each(|node| self.put(node));
    }

    fn take(&mut self, load: Load, used: &mut BTreeSet<usize>) {
        let group = self.nodes[load.node].group;
        self.groups[group].remove(&load);
        if group != NO_RACK {
            used.insert(group);
        }
    }

    /// Who leads least, of those that are due for a replica: a partition takes all nodes with fewer replicas than the last one
    /// that it takes, and some of those that have as many as that.
    fn leader(&self, factor: usize) -> Load {
        let due = |(group, loads): (usize, &BTreeSet<Load>)| {
            let count = if group == NO_RACK { factor } else { 1 };
            loads.iter().take(count).map(|load| load.replicas).collect::<Vec<_>>()
        };
        let mut due: Vec<u32> = self.groups.iter().enumerate().flat_map(due).collect();
        due.sort_unstable();
        due.truncate(factor);
        let most = due.last().copied().unwrap_or(0);
        let some = due.iter().filter(|replicas| **replicas == most).count();
        due.dedup();
        let least_of = |replicas: u32| {
            // Of a rack only who is due there: another one would let it wait for a whole round.
            let reach = move |(group, loads): (usize, &BTreeSet<Load>)| match group {
                NO_RACK => loads.range(Load::least(replicas, 0)..).next().copied(),
                _ => loads.first().copied(),
            };
            let of_level =
                self.groups.iter().enumerate().filter_map(reach).filter(move |load| load.replicas == replicas);
            of_level.min_by_key(|load| (load.leaders, load.turn))
        };
        let candidates: Vec<_> = due.into_iter().filter_map(least_of).collect();
        let least = candidates.iter().map(|load| load.leaders).min().unwrap_or(0);
        // The nodes with more replicas and those with more leaderships stay nested: whoever comes to have more replicas should
        // be those that lead more, or come to lead.
        let last = self.groups.iter().enumerate().flat_map(|(group, loads)| {
            let count = if group == NO_RACK { some } else { 1 };
            let level = loads.range(Load::least(most, 0)..Load::least(most + 1, 0));
            level.rev().take(count).map(|load| load.leaders)
        });
        let mut last: Vec<_> = last.collect();
        last.sort_unstable_by_key(|leaders| std::cmp::Reverse(*leaders));
        let has_room = last.get(some.saturating_sub(1)).is_some_and(|leaders| *leaders <= least);
        let fits = candidates.iter().filter(|load| load.leaders == least);
        let best = if has_room { fits.max_by_key(|load| load.replicas) } else { fits.min_by_key(|load| load.replicas) };
        *best.expect("there are as many active nodes as replicas")
    }

    /// Of the nodes with the fewest replicas in racks that are not used, those that lead most; of these who follows the leader
    /// least. None where every rack is used.
    fn follower(&self, leader: usize, used: &BTreeSet<usize>) -> Option<Load> {
        let open = || self.groups.iter().enumerate().filter(|(group, _)| !used.contains(group)).map(|(_, loads)| loads);
        let replicas = open().filter_map(|loads| loads.first()).map(|load| load.replicas).min()?;
        let level = |loads: &BTreeSet<Load>| {
            loads.range(Load::least(replicas, 0)..Load::least(replicas + 1, 0)).next_back().copied()
        };
        let leaders = open().filter_map(level).map(|load| load.leaders).max()?;
        let equals = open()
            .flat_map(|loads| loads.range(Load::least(replicas, leaders)..Load::least(replicas, leaders + 1)))
            .take(LOOKED_AT);
        let follows = |node: usize| self.followed[leader].get(&node).map_or(0, |(follows, _)| *follows);
        equals.min_by_key(|load| (follows(load.node), load.turn)).copied()
    }
}

/// Any bit of the input changes half of the output (splitmix64).
fn mix(mut bits: u64) -> u32 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((bits ^ (bits >> 31)) >> 32) as u32
}

/// Moves preferred leaderships among the new partitions until no node has two more than another that it could reach.
///
/// A node's score is twice its leaderships, less one where it has more replicas than others: of two nodes the one with more
/// replicas has more leaderships too, since the next topic's replicas, and so its leaderships, go to the other.
fn even_leaders(
    placed: &mut [Replicas],
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
    placed: &mut [Replicas],
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
fn exchange(placed: &mut [Replicas], from: StorageId, to: StorageId) -> bool {
    let led = placed.iter().position(|replicas| replicas[0] == from && !replicas.contains(&to));
    let follows = |replicas: &Replicas| replicas[1..].contains(&to) && !replicas.contains(&from);
    let (Some(led), Some(followed)) = (led, placed.iter().position(follows)) else { return false };
    placed[led][0] = to;
    placed[followed].iter_mut().filter(|node| **node == to).for_each(|node| *node = from);
    true
}

/// A chain of partitions along which `from` can hand one leadership on to a node that should have it.
fn path_to_less(
    placed: &[Replicas],
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metadata::rules::{node, topic};
    use crate::metadata::testing::{World, directory, register, topic_id};

    /// As many nodes as there are names, each in the rack of its name.
    fn racked(racks: &[&str]) -> World {
        let mut world = World::with_nodes(0);
        for (id, rack) in (0..).zip(racks) {
            let incarnation = world.incarnation();
            let (wanted, rack) = (Some(StorageId(id)), Some(Arc::from(*rack)));
            let none = BTreeSet::new();
            let made = register(world.image(), &none, &|_| false, wanted, directory(id), incarnation, rack);
            world.commit(made.unwrap().records);
        }
        let all = (0..racks.len() as u32).map(StorageId).collect();
        world.commit(node::unfence(world.image(), &all));
        world
    }

    fn create(world: &mut World, number: u32, partitions: u32, factor: u32) {
        let name = format!("n{number}");
        let (partitions, factor, none) = (Some(partitions), Some(factor), BTreeMap::new());
        let made = topic::create(world.image(), &name, topic_id(number), partitions, factor, &none, 1 << 20);
        world.commit(made.unwrap());
    }

    fn spread(counts: impl Iterator<Item = u32> + Clone) -> u32 {
        counts.clone().max().unwrap() - counts.min().unwrap()
    }

    /// By how much nodes differ in replicas, and in leaderships.
    fn spreads(world: &World) -> (u32, u32) {
        let nodes = world.image().storage.values();
        (spread(nodes.clone().map(|node| node.replicas)), spread(nodes.map(|node| node.leaders)))
    }

    /// For each node: what it leads, on how many others that falls when it dies, and the most that falls on one of them.
    fn falls(world: &World) -> Vec<(usize, usize, usize)> {
        let image = world.image();
        let of = |dead: &StorageId| {
            let mut heirs: BTreeMap<StorageId, usize> = BTreeMap::new();
            for partition in image.topics.values().flat_map(|topic| topic.partitions.iter()) {
                if partition.replicas[0] == *dead {
                    *heirs.entry(partition.replicas[1]).or_default() += 1;
                }
            }
            (heirs.values().sum(), heirs.len(), heirs.values().copied().max().unwrap_or(0))
        };
        image.storage.keys().map(of).collect()
    }

    #[test]
    fn what_a_dead_node_led_falls_on_many_survivors_a_few_each() {
        for factor in [2, 3] {
            let mut world = World::with_nodes(30);
            create(&mut world, 0, 600, factor);
            assert_eq!(spreads(&world), (0, 0));
            for (led, heirs, most) in falls(&world) {
                assert!(led == 20 && heirs >= 12 && most <= 3, "factor {factor}: {led} on {heirs}, up to {most}");
            }
        }
    }

    #[test]
    fn over_many_small_topics_it_falls_on_many_survivors_too() {
        let mut world = World::with_nodes(30);
        (0..200).for_each(|number| create(&mut world, number, 1 + number % 5, 3));
        assert_eq!(spreads(&world), (0, 0));
        for (led, heirs, most) in falls(&world) {
            assert!(led == 20 && heirs >= 8 && most <= 7, "{led} on {heirs}, up to {most}");
        }
    }

    /// Racks of so many nodes each.
    fn racks(sizes: &[usize]) -> World {
        let names: Vec<_> = (0..sizes.len()).map(|rack| format!("r{rack}")).collect();
        let all: Vec<_> = names.iter().zip(sizes).flat_map(|(name, size)| vec![name.as_str(); *size]).collect();
        racked(&all)
    }

    #[test]
    fn very_many_partitions_are_spread_as_evenly_as_few_and_so_is_what_a_dead_node_led() {
        // Of 60 nodes alike; of three racks as large as each other, and of racks that are not.
        let worlds = [World::with_nodes(60), racks(&[20, 20, 20]), racks(&[16, 15, 15, 14])];
        for (number, mut world) in worlds.into_iter().enumerate() {
            // It begins with some that have more than others.
            create(&mut world, 0, 17, 3);
            create(&mut world, 1, 300_000, 3);
            create(&mut world, 2, 50, 3);
            assert!(spreads(&world).0 <= 2 && spreads(&world).1 <= 1, "{number}: {:?}", spreads(&world));
            for (led, heirs, most) in falls(&world) {
                assert!(heirs >= 25 && most <= led / 5, "{number}: {led} on {heirs}, up to {most}");
            }
            let image = world.image();
            let rack = |node: &StorageId| image.storage[node].rack.clone();
            for partition in image.topics[&topic_id(1)].partitions.iter() {
                let once: BTreeSet<_> = partition.replicas.iter().collect();
                let racks: BTreeSet<_> = partition.replicas.iter().map(rack).collect();
                assert!(once.len() == 3 && (number == 0 || racks.len() == 3), "{partition:?}");
            }
        }
    }

    #[test]
    fn where_every_rack_is_needed_the_nodes_of_each_are_even_however_many_partitions() {
        let mut world = racks(&[10, 10, 11]);
        create(&mut world, 0, 200_000, 3);
        for nodes in [0..10, 10..20, 20..31] {
            let of = |id: u32| world.image().storage[&StorageId(id)].replicas;
            assert!(spread(nodes.clone().map(of)) <= 1, "{:?}", nodes.map(of).collect::<Vec<_>>());
        }
        assert!(spreads(&world).1 <= 1, "{:?}", spreads(&world));
    }

    #[test]
    fn a_new_node_takes_more_of_a_topic_than_others_but_not_all_of_it() {
        let mut world = World::with_nodes(5);
        create(&mut world, 0, 1_000, 3);
        world.register(5);
        world.unfence([5]);
        create(&mut world, 1, 12, 1);
        let topic = &world.image().topics[&topic_id(1)];
        let led = |id| topic.partitions.iter().filter(|partition| partition.leader == Some(StorageId(id))).count();
        assert!((3..=5).contains(&led(5)), "{}", led(5));
        assert!((0..5).all(|id| led(id) >= 1), "{:?}", (0..5).map(led).collect::<Vec<_>>());
    }

    #[test]
    fn new_nodes_are_brought_level_before_anything_is_copied() {
        let mut world = World::with_nodes(6);
        create(&mut world, 0, 60_000, 3);
        (6..9).for_each(|id| world.register(id));
        world.unfence([6, 7, 8]);
        create(&mut world, 1, 100_000, 3);
        assert!(spreads(&world).0 <= 1, "{:?}", spreads(&world));
    }

    #[test]
    fn replicas_are_in_as_many_racks_as_there_are_and_leaderships_spread_over_them() {
        let racks = ["a", "b", "c"].repeat(10);
        let mut world = racked(&racks);
        create(&mut world, 0, 600, 3);
        for partition in world.image().topics[&topic_id(0)].partitions.iter() {
            let used: BTreeSet<_> = partition.replicas.iter().map(|node| node.0 % 3).collect();
            assert_eq!(used.len(), 3, "{partition:?}");
        }
        assert_eq!(spreads(&world), (0, 0));
        for (led, heirs, most) in falls(&world) {
            assert!(led == 20 && heirs >= 10 && most <= 4, "{led} on {heirs}, up to {most}");
        }
    }

    #[test]
    fn a_second_round_of_racks_begins_where_there_are_fewer_than_replicas() {
        let mut world = racked(&["a", "a", "b", "b"]);
        create(&mut world, 0, 40, 3);
        for partition in world.image().topics[&topic_id(0)].partitions.iter() {
            assert_eq!(partition.replicas.iter().map(|node| node.0 / 2).collect::<BTreeSet<_>>().len(), 2);
        }
        assert!(spreads(&world).0 <= 1 && spreads(&world).1 <= 1, "{:?}", spreads(&world));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn nodes_differ_by_at_most_one_replica_and_one_leadership_after_every_topic(
            nodes in 1..12u32, asks in prop::collection::vec((1..30u32, 1..5u32), 1..12)
        ) {
            let mut world = World::with_nodes(nodes);
            for (number, (partitions, factor)) in (0..).zip(asks) {
                create(&mut world, number, partitions, factor.min(nodes));
                let (replicas, leaders) = spreads(&world);
                prop_assert!(replicas <= 1 && leaders <= 1, "{replicas} replicas, {leaders} leaderships");
            }
        }

        #[test]
        fn equal_racks_are_no_exception_where_each_has_a_replica_and_the_placement_is_always_the_same(
            width in 1..5usize, racks in 2..5usize, asks in prop::collection::vec((1..30u32, 1..5usize), 1..8)
        ) {
            // Whoever lacks a replica may be in the same rack as another one that does: then it has to wait.
            let mut most = 1;
            let names = ["a", "b", "c", "d"];
            let mut world = racked(&names[..racks].repeat(width));
            for (number, (partitions, factor)) in (0..).zip(asks) {
                let factor = factor.min(racks * width);
                most = if factor % racks == 0 { most } else { 2 };
                let once = place(world.image(), partitions, factor).unwrap();
                prop_assert_eq!(&once, &place(&world.image().clone(), partitions, factor).unwrap());
                for replicas in &once {
                    let used: BTreeSet<_> = replicas.iter().map(|node| node.0 as usize % racks).collect();
                    prop_assert_eq!(used.len(), factor.min(racks));
                    prop_assert_eq!(replicas.iter().collect::<BTreeSet<_>>().len(), factor);
                }
                create(&mut world, number, partitions, factor as u32);
                let (replicas, leaders) = spreads(&world);
                prop_assert!(replicas <= most && leaders <= most, "{replicas} replicas, {leaders} leaderships");
            }
        }

        #[test]
        fn whatever_the_racks_and_the_load_before_no_node_has_a_partition_twice(
            racks in prop::collection::vec(0..4usize, 1..10), asks in prop::collection::vec((1..20u32, 1..6usize), 1..5),
            gone in 0..10u32
        ) {
            let names = ["a", "b", "c", "d"];
            let mut world = racked(&racks.iter().map(|rack| names[*rack]).collect::<Vec<_>>());
            for (number, (partitions, factor)) in (0..).zip(asks) {
                world.fence([gone]);
                let factor = factor.min(world.image().active_nodes().count());
                if factor > 0 {
                    create(&mut world, number, partitions, factor as u32);
                }
                world.unfence([gone]);
                for partition in world.image().topics.values().flat_map(|topic| topic.partitions.iter()) {
                    let once: BTreeSet<_> = partition.replicas.iter().collect();
                    prop_assert_eq!(once.len(), partition.replicas.len());
                }
            }
        }
    }
}
