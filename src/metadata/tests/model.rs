//! Random sequences of the rules, each change taken through the history: what must always hold, holds.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{load, replay, snapshot};
use crate::metadata::config::UNCLEAN_ELECTION;
use crate::metadata::rules::partition::{IsrChange, alter_isr, preferred};
use crate::metadata::rules::{node, pairing, topic};
use crate::metadata::testing::{World, directory, elected, register, topic_id};
use crate::metadata::{History, Image, Offered};
use crate::types::{ControllerId, LeaderEpoch, PartitionEpoch, PartitionId, StorageId, TopicId};
use bytes::Bytes;

const NODES: u32 = 6;

#[derive(Clone, Debug)]
enum Step {
    Create { partitions: u32, factor: u32, unclean: bool },
    Grow { topic: usize, more: u32 },
    Configure { topic: usize, unclean: bool },
    Delete { topic: usize },
    Register { node: u32 },
    Fence(u32),
    Unfence(u32),
    Drain(u32),
    Replace(u32),
    Remove(u32),
    Isr { topic: usize, partition: usize, members: u32 },
    Preferred,
    Pair(u32),
    Elect,
    Garbage,
    SmallMessages(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let nodes = || 0..NODES;
    let several = || 1..(1u32 << NODES);
    prop_oneof![
        4 => (1..6u32, 1..5u32, any::<bool>())
            .prop_map(|(partitions, factor, unclean)| Step::Create { partitions, factor, unclean }),
        1 => (0..8usize, 1..4u32).prop_map(|(topic, more)| Step::Grow { topic, more }),
        1 => (0..8usize, any::<bool>()).prop_map(|(topic, unclean)| Step::Configure { topic, unclean }),
        1 => (0..8usize).prop_map(|topic| Step::Delete { topic }),
        4 => nodes().prop_map(|node| Step::Register { node }),
        4 => several().prop_map(Step::Fence),
        8 => several().prop_map(Step::Unfence),
        2 => nodes().prop_map(Step::Drain),
        2 => nodes().prop_map(Step::Replace),
        1 => nodes().prop_map(Step::Remove),
        8 => (0..8usize, 0..8usize, any::<u32>())
            .prop_map(|(topic, partition, members)| Step::Isr { topic, partition, members }),
        1 => Just(Step::Preferred),
        1 => (0..8u32).prop_map(Step::Pair),
        1 => Just(Step::Elect),
        1 => Just(Step::Garbage),
        1 => any::<bool>().prop_map(Step::SmallMessages),
    ]
}

fn nodes(mask: u32) -> BTreeSet<StorageId> {
    (0..NODES).filter(|node| mask & (1 << node) != 0).map(StorageId).collect()
}

/// Everything that a step does is what a controller would do: a refusal is no change.
fn take(world: &mut World, number: u32, step: &Step) {
    let image = world.image();
    let name = |pick: &usize| image.topics.values().nth(*pick).map(|topic| topic.name.clone());
    let records = match step {
        Step::Create { partitions, factor, unclean } => {
            let config = BTreeMap::from([(UNCLEAN_ELECTION.to_string(), unclean.to_string())]);
            let (name, id) = (format!("n{number}"), topic_id(number));
            topic::create(image, &name, id, Some(*partitions), Some(*factor), &config, 1 << 20).unwrap_or_default()
        }
        Step::Grow { topic: pick, more } => name(pick).map_or_else(Vec::new, |name| {
            let present = image.topic(name.as_str()).unwrap().partitions.len() as u32;
            topic::alter(image, name.as_str(), Some(present + more), &BTreeMap::new(), 1 << 20).unwrap_or_default()
        }),
        Step::Configure { topic: pick, unclean } => name(pick).map_or_else(Vec::new, |name| {
            let keys = BTreeMap::from([(UNCLEAN_ELECTION.to_string(), Some(unclean.to_string()))]);
            topic::alter(image, name.as_str(), None, &keys, 1 << 20).unwrap()
        }),
        Step::Delete { topic: pick } => {
            name(pick).map_or_else(Vec::new, |name| topic::delete(image, name.as_str()).unwrap())
        }
        Step::Register { node } => {
            let id = StorageId(*node);
            let held = image.storage.get(&id).and_then(|held| held.directory);
            let fresh = directory(1_000 + number);
            let incarnation = world.incarnation();
            let again = register(
                world.image(),
                &BTreeSet::new(),
                &|_| false,
                Some(id),
                held.unwrap_or(fresh),
                incarnation,
                None,
            );
            again.map_or_else(|_| Vec::new(), |registered| registered.records)
        }
        Step::Fence(mask) => node::fence(image, &nodes(*mask)),
        Step::Unfence(mask) => node::unfence(image, &nodes(*mask)),
        Step::Drain(node) => node::drain(image, StorageId(*node)),
        Step::Replace(node) => node::replace(image, StorageId(*node), false).unwrap_or_default(),
        Step::Remove(node) => node::remove(image, StorageId(*node), false).unwrap_or_default(),
        Step::Isr { topic, partition, members } => ask_isr(image, *topic, *partition, *members),
        Step::Preferred => preferred(image, 3),
        Step::Pair(mask) => {
            let alive = (0..3).filter(|controller| mask & (1 << controller) != 0).map(ControllerId).collect();
            pairing::repair(image, &|node| (node.0 < 2).then_some(ControllerId(node.0)), &alive)
        }
        Step::Elect => return world.elect(vec![elected(number % 3)]),
        Step::Garbage => {
            assert!(matches!(world.publish(Bytes::from_static(b"{}")), Offered::Void(_)));
            return;
        }
        Step::SmallMessages(small) => {
            world.limit = if *small { 1_500 } else { 1_000_000 };
            return;
        }
    };
    world.commit(records);
}

fn ask_isr(image: &Image, topic: usize, partition: usize, members: u32) -> Vec<crate::metadata::Record> {
    let Some(topic) = image.topics.values().nth(topic) else { return Vec::new() };
    let number = partition % topic.partitions.len();
    let held = &topic.partitions[number];
    let Some(leader) = held.leader else { return Vec::new() };
    let wanted = |(n, node): &(usize, &StorageId)| **node == leader || members & (1 << n) != 0;
    let isr = held.replicas.iter().enumerate().filter(wanted).map(|(_, node)| (*node, image.storage[node].epoch));
    let change = IsrChange {
        topic: topic.id,
        partition: number as PartitionId,
        leader_epoch: held.leader_epoch,
        partition_epoch: held.epoch,
        isr: isr.collect(),
        recovered: members & (1 << 31) != 0,
        settles: members & (1 << 30) != 0,
    };
    alter_isr(image, leader, image.storage[&leader].epoch, &[change]).unwrap().0
}

type Seen = BTreeMap<(TopicId, PartitionId), (Option<StorageId>, LeaderEpoch, PartitionEpoch, Vec<StorageId>)>;

fn seen(image: &Image) -> Seen {
    let of = |id: TopicId, number: usize| (id, number as PartitionId);
    let all = image.topics.iter().flat_map(|(id, topic)| topic.partitions.iter().enumerate().map(move |p| (*id, p)));
    all.map(|(id, (number, held))| (of(id, number), (held.leader, held.leader_epoch, held.epoch, held.isr().collect())))
        .collect()
}

/// Epochs never fall; a change of leader raises both, and any change the partition epoch; and whoever comes to lead was in
/// sync, unless the topic opted in.
fn check_step(image: &Image, before: &Seen) -> Result<(), TestCaseError> {
    for (place, (leader, leader_epoch, epoch, isr)) in seen(image) {
        let Some((old_leader, old_leader_epoch, old_epoch, old_isr)) = before.get(&place) else { continue };
        prop_assert!(leader_epoch >= *old_leader_epoch && epoch >= *old_epoch);
        prop_assert_eq!(leader != *old_leader, leader_epoch > *old_leader_epoch);
        prop_assert!(isr == *old_isr && leader == *old_leader || epoch > *old_epoch);
        let allows = image.topics[&place.0].unclean_election();
        let elected = leader.filter(|_| leader != *old_leader);
        let is_clean = elected.is_none_or(|leader| old_isr.contains(&leader));
        prop_assert!(allows || is_clean, "unclean: {:?}", place);
        prop_assert!(
            is_clean || image.is_recovering(place.0, place.1),
            "it has not said that it recovered: {:?}",
            place
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_decided_the_invariants_hold_and_snapshot_and_tail_are_the_full_replay(
        steps in prop::collection::vec(step(), 1..80), cut in any::<prop::sample::Index>()
    ) {
        let mut world = World::with_nodes(4);
        let cut = cut.index(steps.len());
        let mut early = Vec::new();
        for (number, step) in (0..).zip(&steps) {
            if number as usize == cut {
                early = snapshot(world.image(), world.history.position());
            }
            let before = seen(world.image());
            take(&mut world, number, step);
            check_step(world.image(), &before)?;
        }
        let bytes = snapshot(world.image(), world.history.position());
        let read = load(&bytes);
        prop_assert_eq!(read.image(), world.history.image());
        let full = replay(History::new(), &world.stream, crate::types::Version::ZERO);
        let from = load(&early).seen();
        let tail = replay(load(&early), &world.stream, from);
        for history in [read, full, tail] {
            prop_assert_eq!(history.position(), world.history.position());
            prop_assert_eq!(&snapshot(history.image().unwrap(), history.position()), &bytes);
        }
    }
}
