//! Who leads: the one election rule behind fencing, unfencing, draining, replacing and unclean elections.
//!
//! It looks at a partition as the nodes will stand once the change that is being decided has taken effect, so that a node which is
//! fenced in the same change is not elected by it.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use crate::metadata::{Image, Move, NodeState, Partition, PartitionChange, Record, Topic};
use crate::types::{DirectoryId, PartitionId, StorageId, TopicId};

/// The most partitions in one record, and the most replicas that they name together: records stay below 56 KiB whatever the
/// numbers in them, so that changes can be split even where messages are of 64 KiB.
pub(super) const PARTITIONS_PER_RECORD: usize = 250;
pub(super) const REPLICAS_PER_RECORD: usize = 2_000;
/// What partitions that change alike take in one record, at most.
const MOVED_BYTES: usize = 48 << 10;
/// From so many on, partitions that change alike share a record.
const ALIKE: usize = 4;

/// How the nodes stand once the change that is being decided has taken effect.
pub struct Standing<'a> {
    image: &'a Image,
    changed: BTreeMap<StorageId, NodeState>,
    lost: BTreeMap<StorageId, Lost>,
    /// Nobody is elected who is not in sync, whatever a topic allows.
    only_clean: bool,
}

/// What a node's directory held is gone.
#[derive(Clone, Copy)]
struct Lost {
    directory: DirectoryId,
    /// Which directory's return would bring it back.
    returns: DirectoryId,
}

impl<'a> Standing<'a> {
    /// As they stand now.
    pub fn now(image: &'a Image) -> Self {
        Self { image, changed: BTreeMap::new(), lost: BTreeMap::new(), only_clean: false }
    }

    pub(super) fn with(image: &'a Image, nodes: &[StorageId], state: NodeState) -> Self {
        Self { changed: nodes.iter().map(|node| (*node, state)).collect(), ..Self::now(image) }
    }

    pub(super) fn only_clean(self, only_clean: bool) -> Self {
        Self { only_clean, ..self }
    }

    /// The node is fenced, and what its directory held is gone.
    pub(super) fn without(image: &'a Image, node: StorageId, directory: DirectoryId) -> Self {
        let lost = Lost { directory, returns: directory };
        Self { lost: BTreeMap::from([(node, lost)]), ..Self::with(image, &[node], NodeState::Fenced) }
    }

    /// All these nodes are fenced, and the directories of some were set back to an earlier state: no directory's return brings
    /// back what these held.
    pub(super) fn restarted(
        image: &'a Image,
        nodes: &[StorageId],
        set_back: &BTreeMap<StorageId, DirectoryId>,
    ) -> Self {
        let lost = |(node, directory): (&StorageId, &DirectoryId)| {
            (*node, Lost { directory: *directory, returns: DirectoryId::NOBODY })
        };
        Self { lost: set_back.iter().map(lost).collect(), ..Self::with(image, nodes, NodeState::Fenced) }
    }

    fn state(&self, node: StorageId) -> NodeState {
        let now = || self.image.storage.get(&node).map_or(NodeState::Removed, |node| node.state);
        self.changed.get(&node).copied().unwrap_or_else(now)
    }

    fn has_lost(&self, node: StorageId) -> bool {
        self.lost.contains_key(&node)
    }
}

/// What becomes of a partition: the first in-sync replica in order of preference that is active leads. A leader that is active
/// stays; one that drains stays only where no other can lead. Where there is a leader, nodes that are fenced or drain leave
/// the in-sync replicas. Where there is none, nobody leaves but a lost directory, and that only if another member remains:
/// every member has everything that was acknowledged. After an unclean election the partition recovers until its leader has
/// said that it has, whoever is elected until then. None where nothing changes.
pub fn elect(
    topic: &Topic,
    number: PartitionId,
    partition: &Partition,
    standing: &Standing<'_>,
) -> Option<PartitionChange> {
    let waits_for = topic.waits_for.get(&number).copied();
    // A node in another directory than the one that was in sync holds none of the partition's records.
    let holds = |node: StorageId| match waits_for {
        #[cfg(test)]
        Some(_) if crate::simulator::planted(crate::simulator::Bug::EmptyDiskTrusted) => true,
        Some(wanted) => standing.image.storage.get(&node).and_then(|node| node.directory) == Some(wanted),
        None => true,
    };
    let has_state = |node: &StorageId, state| standing.state(*node) == state;
    let first = |state| partition.isr().find(|node| has_state(node, state) && holds(*node));
    let keeps = partition.leader.filter(|leader| has_state(leader, NodeState::Active));
    let drains = || partition.leader.filter(|leader| has_state(leader, NodeState::Draining));
    let clean = keeps.or_else(|| first(NodeState::Active)).or_else(drains).or_else(|| first(NodeState::Draining));
    let allowed = topic.unclean_election() && !standing.only_clean;
    #[cfg(test)]
    let allowed = allowed || crate::simulator::planted(crate::simulator::Bug::UncleanAnyway);
    let unclean = || if allowed { elect_unclean(partition, standing, &holds) } else { None };

    let before: SmallVec<[StorageId; 8]> = partition.isr().collect();
    let (leader, isr): (_, SmallVec<[StorageId; 8]>) = match (clean, clean.is_none().then(unclean).flatten()) {
        (Some(leader), _) => {
            let stays = |node: &StorageId| *node == leader || has_state(node, NodeState::Active);
            (Some(leader), partition.isr().filter(stays).collect())
        }
        (None, Some(leader)) => (Some(leader), [leader].into_iter().collect()),
        (None, None) => (None, partition.isr().filter(|node| !standing.has_lost(*node)).collect()),
    };
    // What a leader before it had not recovered, it has to recover as well.
    let is_unclean = clean.is_none() && leader.is_some();
    let isr = if isr.is_empty() { before.clone() } else { isr };
    let waits = match isr.first().and_then(|first| standing.lost.get(first)) {
        Some(lost) if leader.is_none() && isr.iter().all(|node| standing.has_lost(*node)) => {
            Some(lost.returns).filter(|_| waits_for.is_none_or(|wanted| wanted == lost.directory))
        }
        Some(_) | None => None,
    };
    let waits = waits.filter(|directory| waits_for != Some(*directory));
    let change = PartitionChange {
        partition: number,
        leader: (leader != partition.leader).then_some(leader),
        isr: (isr != before).then(|| isr.to_vec()),
        waits_for: waits,
        recovering: (is_unclean && !topic.recovering.contains(&number)).then_some(true),
    };
    (change.leader.is_some() || change.isr.is_some() || change.waits_for.is_some()).then_some(change)
}

/// Any replica that is active, though it may lack records: best one whose directory was not lost meanwhile.
fn elect_unclean(
    partition: &Partition,
    standing: &Standing<'_>,
    holds: &dyn Fn(StorageId) -> bool,
) -> Option<StorageId> {
    let active = |node: &&StorageId| standing.state(**node) == NodeState::Active;
    let mut candidates = partition.replicas.iter().filter(active);
    let emptied = |node: StorageId| partition.in_sync(node) && !holds(node);
    candidates.clone().find(|node| !emptied(**node)).or_else(|| candidates.next()).copied()
}

/// Gathers changes of partitions, each partition's once, into records of a size that a message can carry. What changes alike of
/// many, as where a node is fenced, is said once.
#[derive(Default)]
pub(super) struct Gathered {
    changes: Vec<(TopicId, PartitionChange)>,
    /// Which of them are alike.
    alike: BTreeMap<Move, Vec<usize>>,
}

impl Gathered {
    /// `before` is the partition that changes.
    pub fn push(&mut self, topic: TopicId, before: &Partition, change: PartitionChange) {
        if let Some(alike) = as_move(before, &change) {
            self.alike.entry(alike).or_default().push(self.changes.len());
        }
        self.changes.push((topic, change));
    }

    pub fn records(self) -> Vec<Record> {
        let Self { changes, alike } = self;
        let (mut records, mut said) = (Vec::new(), vec![false; changes.len()]);
        for (change, members) in alike.into_iter().filter(|(_, members)| members.len() >= ALIKE) {
            let places = members.iter().map(|index| (changes[*index].0, changes[*index].1.partition));
            moved(&change, places, &mut records);
            members.into_iter().for_each(|index| said[index] = true);
        }
        let rest = changes.into_iter().zip(said).filter(|(_, said)| !said).map(|(change, _)| change);
        changed(rest, &mut records);
        records
    }
}

/// The change as a difference to what was before. None where more changes than leader and in-sync replicas.
fn as_move(before: &Partition, change: &PartitionChange) -> Option<Move> {
    if change.waits_for.is_some() || change.recovering.is_some() {
        return None;
    }
    let (left, joined) = match &change.isr {
        Some(isr) => (
            before.isr().filter(|node| !isr.contains(node)).collect(),
            isr.iter().copied().filter(|node| !before.in_sync(*node)).collect(),
        ),
        None => (Vec::new(), Vec::new()),
    };
    Some(Move { leader: change.leader, left, joined })
}

fn moved(change: &Move, places: impl Iterator<Item = (TopicId, PartitionId)>, records: &mut Vec<Record>) {
    // As JSON: a UUID in quotes with its list around, and a number with its comma.
    const TOPIC: usize = 48;
    const PARTITION: usize = 11;
    let (mut partitions, mut bytes) = (BTreeMap::<TopicId, Vec<PartitionId>>::new(), 0);
    for (topic, partition) in places {
        if bytes + TOPIC + PARTITION > MOVED_BYTES {
            let partitions = std::mem::take(&mut partitions);
            records.push(Record::PartitionsMoved { change: change.clone(), partitions });
            bytes = 0;
        }
        let numbers = partitions.entry(topic).or_default();
        bytes += PARTITION + if numbers.is_empty() { TOPIC } else { 0 };
        numbers.push(partition);
    }
    records.push(Record::PartitionsMoved { change: change.clone(), partitions });
}

fn changed(changes: impl Iterator<Item = (TopicId, PartitionChange)>, records: &mut Vec<Record>) {
    let mut open: Option<(TopicId, Vec<PartitionChange>)> = None;
    let mut replicas = 0;
    for (topic, change) in changes {
        let more = change.isr.as_ref().map_or(0, Vec::len);
        let fits = |(of, changes): &(TopicId, Vec<PartitionChange>)| {
            *of == topic && changes.len() < PARTITIONS_PER_RECORD && replicas + more <= REPLICAS_PER_RECORD
        };
        match open.as_mut().filter(|open| fits(open)) {
            Some((_, changes)) => changes.push(change),
            None => {
                let full = open.replace((topic, vec![change]));
                records.extend(full.map(|(topic_id, changes)| Record::PartitionsChanged { topic_id, changes }));
                replicas = 0;
            }
        }
        replicas += more;
    }
    records.extend(open.map(|(topic_id, changes)| Record::PartitionsChanged { topic_id, changes }));
}

/// What becomes of every partition that `concerns` picks.
pub(super) fn elect_where(
    image: &Image,
    standing: &Standing<'_>,
    concerns: impl Fn(&Topic, &Partition) -> bool,
) -> Vec<Record> {
    let mut gathered = Gathered::default();
    for topic in image.topics.values() {
        for (number, partition) in (0..).zip(topic.partitions.iter()) {
            if concerns(topic, partition)
                && let Some(change) = elect(topic, number, partition, standing)
            {
                gathered.push(topic.id, partition, change);
            }
        }
    }
    gathered.records()
}

/// Elections of one topic's partitions that have no leader, as if it were configured like `topic`.
pub(super) fn elect_leaderless(image: &Image, topic: &Topic) -> Vec<Record> {
    let standing = Standing::now(image);
    let mut gathered = Gathered::default();
    for (number, partition) in (0..).zip(topic.partitions.iter()) {
        if partition.leader.is_none()
            && let Some(change) = elect(topic, number, partition, &standing)
        {
            gathered.push(topic.id, partition, change);
        }
    }
    gathered.records()
}

/// A set of nodes that answers within nanoseconds: a scan asks it for every replica of a million partitions.
pub(super) struct NodeSet {
    words: Vec<u64>,
    /// Ids that would make the words too many, sorted.
    beyond: Vec<StorageId>,
}

impl NodeSet {
    const DENSE: u32 = 1 << 16;

    pub fn new(nodes: impl IntoIterator<Item = StorageId>) -> Self {
        let (mut words, mut beyond) = (Vec::new(), Vec::new());
        for node in nodes {
            if node.0 >= Self::DENSE {
                beyond.push(node);
                continue;
            }
            let word = (node.0 / 64) as usize;
            if words.len() <= word {
                words.resize(word + 1, 0);
            }
            words[word] |= 1 << (node.0 % 64);
        }
        beyond.sort_unstable();
        Self { words, beyond }
    }

    pub fn contains(&self, node: StorageId) -> bool {
        match self.words.get((node.0 / 64) as usize) {
            Some(word) => word & (1 << (node.0 % 64)) != 0,
            None => !self.beyond.is_empty() && self.beyond.binary_search(&node).is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::config::UNCLEAN_ELECTION;
    use crate::metadata::rules::node::{drain, fence, replace, unfence};
    use crate::metadata::testing::{World, directory, ids, set, topic_id};

    fn opted_in() -> BTreeMap<String, String> {
        BTreeMap::from([(UNCLEAN_ELECTION.to_string(), "true".to_string())])
    }

    #[test]
    fn the_first_in_sync_replica_in_order_of_preference_leads() {
        let mut world = World::with_nodes(4);
        world.topic(0, [2, 0, 3, 1]);
        world.shrink(0, [2, 1, 3]);
        world.fence([2]);
        assert_eq!(world.standing(0), (Some(3), vec![3, 1]));
    }

    #[test]
    fn a_node_that_is_fenced_in_the_same_change_is_not_elected() {
        let mut world = World::with_nodes(3);
        world.topic(0, [0, 1, 2]);
        world.fence([0, 1]);
        assert_eq!(world.standing(0), (Some(2), vec![2]));
    }

    #[test]
    fn the_last_member_never_leaves_and_leads_again_when_it_is_back() {
        let mut world = World::with_nodes(2);
        world.topic(0, [0, 1]);
        world.fence([0]);
        world.fence([1]);
        assert_eq!(world.standing(0), (None, vec![1]));
        world.unfence([0]);
        assert_eq!(world.standing(0), (None, vec![1]), "node 0 may lack records");
        world.unfence([1]);
        assert_eq!((world.standing(0), world.leader_epoch(0)), ((Some(1), vec![1]), 3));
    }

    #[test]
    fn where_all_members_are_fenced_at_once_any_of_them_brings_the_partition_back() {
        let mut world = World::with_nodes(3);
        world.topic(0, [0, 1, 2]);
        world.fence([0, 1, 2]);
        assert_eq!(world.standing(0), (None, vec![0, 1, 2]));
        world.unfence([1]);
        assert_eq!(world.standing(0), (Some(1), vec![1]), "who is still fenced does not hold up acknowledgements");
    }

    #[test]
    fn without_consent_a_replica_out_of_sync_never_leads() {
        let mut world = World::with_nodes(2);
        world.topic(0, [0, 1]);
        world.topic_with(1, [0, 1], opted_in());
        world.shrink(0, [0]);
        world.shrink(1, [0]);
        world.fence([0]);
        assert_eq!(world.standing(0), (None, vec![0]));
        assert_eq!(world.standing(1), (Some(1), vec![1]), "the topic opted in: the new leader alone is in sync");
    }

    #[test]
    fn an_unclean_election_waits_for_a_replica_that_is_active() {
        let mut world = World::with_nodes(2);
        world.topic_with(0, [0, 1], opted_in());
        world.shrink(0, [0]);
        world.fence([0, 1]);
        assert_eq!(world.standing(0), (None, vec![0]));
        world.unfence([1]);
        assert_eq!(world.standing(0), (Some(1), vec![1]));
    }

    #[test]
    fn a_draining_node_is_elected_only_where_no_other_can_be() {
        let mut world = World::with_nodes(3);
        world.topic(0, [0, 1, 2]);
        world.topic(1, [1]);
        world.commit(drain(world.image(), StorageId(1)));
        assert_eq!((world.standing(0), world.standing(1)), ((Some(0), vec![0, 2]), (Some(1), vec![1])));
        world.fence([0]);
        assert_eq!(world.standing(0), (Some(2), vec![2]));
    }

    #[test]
    fn only_the_lost_directory_brings_back_the_partition_that_waits_for_it() {
        let mut world = World::with_nodes(2);
        world.topic(0, [0, 1]);
        world.shrink(0, [0]);
        world.fence([0]);
        world.commit(replace(world.image(), StorageId(0), false).unwrap());
        assert_eq!(world.image().topics[&topic_id(0)].waits_for.get(&0), Some(&directory(0)));
        // Another directory takes the id: it is empty.
        register_in(&mut world, 0, 99);
        world.unfence([0]);
        assert_eq!(world.standing(0), (None, vec![0]));
        // It is lost as well: the partition goes on waiting for the first.
        world.fence([0]);
        world.commit(replace(world.image(), StorageId(0), false).unwrap());
        assert_eq!(world.image().topics[&topic_id(0)].waits_for.get(&0), Some(&directory(0)));
        register_in(&mut world, 0, 0);
        world.unfence([0]);
        assert_eq!(world.standing(0), (Some(0), vec![0]));
        assert!(world.image().topics[&topic_id(0)].waits_for.is_empty());
    }

    fn register_in(world: &mut World, id: u32, number: u32) {
        let incarnation = world.incarnation();
        let registered = crate::metadata::testing::register(
            world.image(),
            &set([]),
            &|_| false,
            Some(StorageId(id)),
            directory(number),
            incarnation,
            None,
        );
        world.commit(registered.unwrap().records);
    }

    #[test]
    fn an_unclean_election_prefers_a_replica_whose_directory_is_not_new() {
        let mut world = World::with_nodes(2);
        world.topic_with(0, [0, 1], opted_in());
        world.shrink(0, [0]);
        world.fence([0, 1]);
        world.commit(replace(world.image(), StorageId(0), false).unwrap());
        register_in(&mut world, 0, 99);
        world.unfence([0, 1]);
        assert_eq!(world.standing(0), (Some(1), vec![1]));
    }

    #[test]
    fn many_partitions_are_split_over_records_and_topics_are_not_mixed() {
        let mut gathered = Gathered::default();
        let before = Partition::new(&ids([0]));
        // What recovers is said of each alone.
        let change = |partition, isr: Option<Vec<StorageId>>| PartitionChange {
            partition,
            leader: None,
            isr,
            waits_for: None,
            recovering: Some(false),
        };
        (0..1_100).for_each(|number| gathered.push(topic_id(0), &before, change(number, None)));
        let wide = ids([0; 32]);
        (0..200).for_each(|number| gathered.push(topic_id(1), &before, change(number, Some(wide.clone()))));
        let sizes: Vec<_> = gathered
            .records()
            .into_iter()
            .map(|record| match record {
                Record::PartitionsChanged { topic_id, changes } => (topic_id, changes.len()),
                other => panic!("{other:?}"),
            })
            .collect();
        let (first, second) = (topic_id(0), topic_id(1));
        let of_first = [250, 250, 250, 250, 100].map(|size| (first, size));
        let of_second = [62, 62, 62, 14].map(|size| (second, size));
        assert_eq!(sizes, [&of_first[..], &of_second].concat());
    }

    #[test]
    fn the_largest_record_fits_the_smallest_message() {
        let far = StorageId(u32::MAX);
        let widest = |number| PartitionChange {
            partition: crate::metadata::MAX_PARTITIONS + number,
            leader: Some(Some(far)),
            isr: Some(vec![far; REPLICAS_PER_RECORD / PARTITIONS_PER_RECORD]),
            waits_for: Some(directory(0)),
            recovering: Some(false),
        };
        let before = Partition::new(&ids([0]));
        let mut gathered = Gathered::default();
        (0..PARTITIONS_PER_RECORD as u32).for_each(|number| gathered.push(topic_id(0), &before, widest(number)));
        let records = gathered.records();
        assert_eq!(records.len(), 1);
        // Many that move alike: of one topic, and each of its own.
        let before = Partition::new(&(0..32).map(|node| StorageId(u32::MAX - node)).collect::<Vec<_>>());
        let leaves = |partition| {
            let isr = Some(before.isr().take(1).collect());
            PartitionChange { partition, leader: Some(Some(far)), isr, waits_for: None, recovering: None }
        };
        let mut moved = Gathered::default();
        (0..10_000).for_each(|number| moved.push(topic_id(0), &before, leaves(u32::MAX - number)));
        (0..2_000).for_each(|topic| moved.push(topic_id(topic), &before, leaves(0)));
        let moved = moved.records();
        assert!((4..8).contains(&moved.len()), "{}", moved.len());
        for record in records.iter().chain(&moved) {
            let bytes = serde_json::to_vec(record).unwrap().len();
            // An envelope is around it, with a cause in words and a request's id and answer.
            assert!(bytes < (56 << 10) - 2_000, "{bytes} bytes");
        }
    }

    #[test]
    fn many_partitions_that_change_alike_are_told_once_and_come_to_the_same() {
        let (mut together, mut each) = (World::with_nodes(4), World::with_nodes(4));
        let placed = |number: u32| [[1, 0, 2], [0, 1, 3], [2, 3, 1], [1, 2, 3]][number as usize % 4];
        for world in [&mut together, &mut each] {
            (0..40).for_each(|number| world.topic(number, placed(number)));
            (0..40).filter(|number| number % 8 == 3).for_each(|number| world.shrink(number, [1]));
        }
        let records = fence(together.image(), &set([1]));
        let moved = |record: &&Record| matches!(record, Record::PartitionsMoved { .. });
        assert_eq!(
            records.iter().filter(moved).count(),
            4,
            "by the next leader, be it none, and where it followed: {records:?}"
        );
        let standing = Standing::with(each.image(), &ids([1]), NodeState::Fenced);
        let alone = each.image().topics.values().map(|topic| {
            let changes = elect(topic, 0, &topic.partitions[0], &standing).into_iter().collect();
            Record::PartitionsChanged { topic_id: topic.id, changes }
        });
        let fenced = records[..1].iter().cloned().chain(alone).collect();
        each.commit(fenced);
        together.commit(records);
        let partitions = |world: &World| -> Vec<_> {
            let all = world.image().topics.values().flat_map(|topic| topic.partitions.iter().cloned());
            all.collect()
        };
        assert_eq!(partitions(&together), partitions(&each));
        assert_eq!(together.standing(0), (Some(0), vec![0, 2]));
    }

    #[test]
    fn fencing_and_unfencing_a_few_is_one_record_for_each_topic() {
        let mut world = World::with_nodes(3);
        world.topic(0, [0, 1, 2]);
        world.topic(1, [1, 2, 0]);
        let records = fence(world.image(), &set([0, 1]));
        assert_eq!(records.len(), 4, "two nodes, two topics: {records:?}");
        world.commit(records);
        assert_eq!(unfence(world.image(), &set([0, 1])).len(), 2, "followers join only when their leaders ask");
    }

    #[test]
    fn a_node_set_answers_for_ids_near_and_far() {
        let far = [StorageId(0), StorageId(63), StorageId(64), StorageId(70_000), StorageId(u32::MAX)];
        let nodes = NodeSet::new(far);
        assert!(far.iter().all(|node| nodes.contains(*node)));
        assert!(![1, 65, 128, 65_535, 65_536, 70_001].into_iter().any(|id| nodes.contains(StorageId(id))));
    }
}
