//! Partitions: what a leader may ask of its in-sync replicas, and which leaderships go back to the preferred replica.

use std::collections::BTreeMap;

use super::election::Gathered;
pub use super::election::{Standing, elect};
use crate::metadata::{Image, NodeState, Partition, PartitionChange, Record};
use crate::types::{LeaderEpoch, NodeEpoch, PartitionEpoch, PartitionId, StorageId, TopicId};

/// What a leader asks: these in-sync replicas, each with the incarnation that it heard from. A set without the leader itself
/// gives the leadership up, to the first of them that is to be preferred.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IsrChange {
    pub topic: TopicId,
    pub partition: PartitionId,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    pub isr: Vec<(StorageId, NodeEpoch)>,
    /// The leader has recovered from the unclean election that it came from. Where there was none it says nothing.
    pub recovered: bool,
    /// A new partition epoch is wanted even where the set stays the same: it makes void what was asked for on top of this one.
    pub settles: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IsrError {
    #[error("storage node {0} is not registered")]
    UnknownNode(StorageId),
    #[error("storage node {node} has epoch {present}, not {got}: an older incarnation asked")]
    StaleNodeEpoch { node: StorageId, present: NodeEpoch, got: NodeEpoch },
    #[error("topic {topic} has no partition {partition}")]
    UnknownPartition { topic: TopicId, partition: PartitionId },
    #[error("the asker knows a newer state of partition {partition} of {topic} than this controller: ask another")]
    NotController { topic: TopicId, partition: PartitionId },
    #[error("partition {partition} of {topic} has leader epoch {present}, not {got}: there is a newer leader")]
    FencedLeaderEpoch { topic: TopicId, partition: PartitionId, present: LeaderEpoch, got: LeaderEpoch },
    #[error("storage node {node} does not lead partition {partition} of {topic}")]
    NotLeader { topic: TopicId, partition: PartitionId, node: StorageId },
    #[error("partition {partition} of {topic} has partition epoch {present}, not {got}: read again")]
    StalePartitionEpoch { topic: TopicId, partition: PartitionId, present: PartitionEpoch, got: PartitionEpoch },
    #[error(
        "the in-sync replicas of partition {partition} of {topic} are among its replicas, each once, and at least one"
    )]
    InvalidReplicas { topic: TopicId, partition: PartitionId },
    #[error(
        "storage node {node} cannot be in sync on partition {partition} of {topic}: it is fenced, draining or of another incarnation"
    )]
    IneligibleReplica { topic: TopicId, partition: PartitionId, node: StorageId },
    #[error(
        "partition {partition} of {topic} recovers from an unclean election: its leader alone is in sync until it has said that it recovered"
    )]
    Recovering { topic: TopicId, partition: PartitionId },
}

/// Takes a leader's changes of in-sync replicas, each on its own: for each the partition epoch that holds afterwards, or why it
/// is refused. The sender has to be the present incarnation for any of them.
#[allow(clippy::type_complexity)]
pub fn alter_isr(
    image: &Image,
    sender: StorageId,
    sender_epoch: NodeEpoch,
    changes: &[IsrChange],
) -> Result<(Vec<Record>, Vec<Result<PartitionEpoch, IsrError>>), IsrError> {
    let present = image.storage.get(&sender).ok_or(IsrError::UnknownNode(sender))?.epoch;
    if present != sender_epoch {
        return Err(IsrError::StaleNodeEpoch { node: sender, present, got: sender_epoch });
    }
    let mut accepted: BTreeMap<(TopicId, PartitionId), PartitionChange> = BTreeMap::new();
    let mut outcomes = Vec::with_capacity(changes.len());
    for change in changes {
        let place = (change.topic, change.partition);
        outcomes.push(judge(image, sender, change, accepted.contains_key(&place)).map(|judged| match judged {
            (epoch, None) => epoch,
            (epoch, Some(taken)) => {
                accepted.insert(place, taken);
                epoch
            }
        }));
    }
    let mut gathered = Gathered::default();
    for ((topic, number), change) in accepted {
        if let Some(before) = image.partition(topic, number) {
            gathered.push(topic, before, change);
        }
    }
    Ok((gathered.records(), outcomes))
}

/// The partition epoch afterwards, and the change if it is one. `twice`: the request changed the partition before.
fn judge(
    image: &Image,
    sender: StorageId,
    change: &IsrChange,
    twice: bool,
) -> Result<(PartitionEpoch, Option<PartitionChange>), IsrError> {
    let (topic, partition) = (change.topic, change.partition);
    let held = image.partition(topic, partition).ok_or(IsrError::UnknownPartition { topic, partition })?;
    if change.leader_epoch > held.leader_epoch || change.partition_epoch > held.epoch {
        return Err(IsrError::NotController { topic, partition });
    }
    if change.leader_epoch < held.leader_epoch {
        let (present, got) = (held.leader_epoch, change.leader_epoch);
        return Err(IsrError::FencedLeaderEpoch { topic, partition, present, got });
    }
    if held.leader != Some(sender) {
        return Err(IsrError::NotLeader { topic, partition, node: sender });
    }
    let present = PartitionEpoch(held.epoch.0 + u32::from(twice));
    if change.partition_epoch < present {
        return Err(IsrError::StalePartitionEpoch { topic, partition, present, got: change.partition_epoch });
    }
    let isr = members(held, change).ok_or(IsrError::InvalidReplicas { topic, partition })?;
    let is_recovering = image.is_recovering(topic, partition) && !twice;
    if is_recovering && !change.recovered && (isr.len() > 1 || !isr.contains(&sender)) {
        return Err(IsrError::Recovering { topic, partition });
    }
    if let Some((node, _)) = change.isr.iter().find(|(node, epoch)| !eligible(image, *node, *epoch, sender)) {
        return Err(IsrError::IneligibleReplica { topic, partition, node: *node });
    }
    if !isr.contains(&sender) {
        // Nobody may join by this: who is to lead has to have been in sync.
        let leader = isr.iter().copied().find(|node| held.in_sync(*node));
        let leader = leader.ok_or(IsrError::InvalidReplicas { topic, partition })?;
        let isr: Vec<_> = isr.into_iter().filter(|node| held.in_sync(*node)).collect();
        let leader = Some(Some(leader));
        let change = PartitionChange { partition, leader, isr: Some(isr), waits_for: None, recovering: None };
        return Ok((PartitionEpoch(present.0 + 1), Some(change)));
    }
    let isr = (!held.isr().eq(isr.iter().copied())).then_some(isr);
    let recovering = (is_recovering && change.recovered).then_some(false);
    if isr.is_none() && recovering.is_none() && !change.settles {
        return Ok((present, None));
    }
    let change = PartitionChange { partition, leader: None, isr, waits_for: None, recovering };
    Ok((PartitionEpoch(present.0 + 1), Some(change)))
}

/// The members asked for, in order of preference. None where they aren't replicas, each once, or there are none.
fn members(held: &Partition, change: &IsrChange) -> Option<Vec<StorageId>> {
    let asked = |node: &StorageId| change.isr.iter().any(|(member, _)| member == node);
    let isr: Vec<_> = held.replicas.iter().filter(|node| asked(node)).copied().collect();
    (isr.len() == change.isr.len() && !isr.is_empty()).then_some(isr)
}

/// A leader that drains stays in sync, since it goes on leading until another is.
fn eligible(image: &Image, node: StorageId, epoch: NodeEpoch, leader: StorageId) -> bool {
    image.storage.get(&node).is_some_and(|held| {
        let fits = match held.state {
            NodeState::Active => true,
            NodeState::Draining => node == leader,
            NodeState::Fenced | NodeState::Removed => false,
        };
        fits && held.epoch == epoch
    })
}

/// Leaderships back to the first replica where it is active and in sync, at most `limit` of them.
pub fn preferred(image: &Image, limit: usize) -> Vec<Record> {
    let mut gathered = Gathered::default();
    let all = image.topics.values().flat_map(|topic| (0..).zip(topic.partitions.iter()).map(|held| (topic.id, held)));
    let moves = all.filter_map(|(topic, (number, partition)): (TopicId, (PartitionId, &Partition))| {
        let first = partition.replicas.first().copied()?;
        let moves = partition.leader.is_some_and(|leader| leader != first);
        let can = moves && partition.in_sync(first) && image.is_active(first);
        can.then_some((topic, number, partition, first))
    });
    for (topic, partition, before, first) in moves.take(limit) {
        let leader = Some(Some(first));
        let change = PartitionChange { partition, leader, isr: None, waits_for: None, recovering: None };
        gathered.push(topic, before, change);
    }
    gathered.records()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::rules::node::drain;
    use crate::metadata::testing::{World, ids, topic_id};

    /// Node 0 leads partition 0 of topic 0, and node 1 is in sync; nodes 2 and 3 are not (3 is no replica).
    fn world() -> World {
        let mut world = World::with_nodes(4);
        world.topic(0, [0, 1, 2]);
        world.shrink(0, [0, 1]);
        world
    }

    fn asks<const N: usize>(world: &World, isr: [u32; N]) -> IsrChange {
        let held = world.image().partition(topic_id(0), 0).unwrap();
        let isr = isr.iter().map(|node| (StorageId(*node), world.epoch(*node))).collect();
        let (leader_epoch, partition_epoch) = (held.leader_epoch, held.epoch);
        IsrChange {
            topic: topic_id(0),
            partition: 0,
            leader_epoch,
            partition_epoch,
            isr,
            recovered: false,
            settles: false,
        }
    }

    fn outcome(world: &World, sender: u32, change: IsrChange) -> Result<PartitionEpoch, IsrError> {
        let (records, mut outcomes) =
            alter_isr(world.image(), StorageId(sender), world.epoch(sender), &[change]).unwrap();
        assert!(records.is_empty() || outcomes[0].is_ok(), "{records:?}");
        outcomes.remove(0)
    }

    #[test]
    fn a_leader_gets_the_in_sync_replicas_that_it_asks_for_under_the_same_leader_epoch() {
        let mut world = world();
        let change = asks(&world, [2, 1, 0]);
        let (records, outcomes) = alter_isr(world.image(), StorageId(0), world.epoch(0), &[change]).unwrap();
        assert_eq!(outcomes, [Ok(PartitionEpoch(2))]);
        world.commit(records);
        assert_eq!((world.standing(0), world.leader_epoch(0)), ((Some(0), vec![0, 1, 2]), 0));
        assert_eq!(world.image().partition(topic_id(0), 0).unwrap().epoch, PartitionEpoch(2));
    }

    #[test]
    fn a_leader_that_leaves_itself_out_is_replaced_by_one_that_was_in_sync() {
        let mut world = world();
        assert_eq!(outcome(&world, 0, asks(&world, [1])), Ok(PartitionEpoch(2)));
        let nobody = outcome(&world, 0, asks(&world, [2]));
        assert!(matches!(nobody, Err(IsrError::InvalidReplicas { .. })), "node 2 was not in sync: {nobody:?}");
        let (records, _) = alter_isr(world.image(), StorageId(0), world.epoch(0), &[asks(&world, [2, 1])]).unwrap();
        world.commit(records);
        assert_eq!((world.standing(0), world.leader_epoch(0)), ((Some(1), vec![1]), 1));
    }

    #[test]
    fn what_holds_already_is_granted_without_a_change() {
        let world = world();
        let (records, outcomes) =
            alter_isr(world.image(), StorageId(0), world.epoch(0), &[asks(&world, [1, 0])]).unwrap();
        assert_eq!((records, outcomes), (Vec::new(), vec![Ok(PartitionEpoch(1))]));
    }

    #[test]
    fn what_settles_gets_a_new_partition_epoch_for_the_set_that_holds_already_and_voids_what_was_asked_before() {
        let mut world = world();
        let asked_before = asks(&world, [0, 1, 2]);
        let settles = IsrChange { settles: true, ..asks(&world, [1, 0]) };
        let (records, outcomes) =
            alter_isr(world.image(), StorageId(0), world.epoch(0), std::slice::from_ref(&settles)).unwrap();
        assert_eq!(outcomes, [Ok(PartitionEpoch(2))]);
        world.commit(records);
        assert_eq!((world.standing(0), world.leader_epoch(0)), ((Some(0), vec![0, 1]), 0));
        let (topic, partition, present, got) = (topic_id(0), 0, PartitionEpoch(2), PartitionEpoch(1));
        let stale = Err(IsrError::StalePartitionEpoch { topic, partition, present, got });
        assert_eq!(outcome(&world, 0, asked_before), stale, "a copy that was still on its way");
        assert_eq!(outcome(&world, 0, settles), stale, "as is one of its own");
        assert!(outcome(&world, 0, asks(&world, [0, 1, 2])).is_ok());
    }

    #[test]
    fn what_settles_passes_the_same_fences_as_any_change() {
        let mut world = world();
        let settles = |world: &World, isr: &[u32]| {
            let isr = isr.iter().map(|node| (StorageId(*node), world.epoch(*node))).collect();
            IsrChange { settles: true, isr, ..asks(world, [0]) }
        };
        let (topic, partition, node) = (topic_id(0), 0, StorageId(1));
        let good = settles(&world, &[0, 1]);
        assert_eq!(outcome(&world, 1, good.clone()), Err(IsrError::NotLeader { topic, partition, node }));
        let newer = IsrChange { leader_epoch: LeaderEpoch(1), ..good.clone() };
        assert_eq!(outcome(&world, 0, newer), Err(IsrError::NotController { topic, partition }));
        let invalid = Err(IsrError::InvalidReplicas { topic, partition });
        assert_eq!(outcome(&world, 0, settles(&world, &[0, 3])), invalid);
        let other = IsrChange { isr: vec![(node, NodeEpoch(0)), (StorageId(0), world.epoch(0))], ..good.clone() };
        assert_eq!(outcome(&world, 0, other), Err(IsrError::IneligibleReplica { topic, partition, node }));
        let old = world.epoch(0);
        world.register(0);
        let refused = alter_isr(world.image(), StorageId(0), old, &[good]).unwrap_err();
        assert_eq!(refused, IsrError::StaleNodeEpoch { node: StorageId(0), present: world.epoch(0), got: old });
    }

    #[test]
    fn an_older_incarnation_asks_in_vain() {
        let mut world = world();
        let (change, old) = (asks(&world, [0]), world.epoch(0));
        world.register(0);
        let refused = alter_isr(world.image(), StorageId(0), old, &[change]).unwrap_err();
        assert_eq!(refused, IsrError::StaleNodeEpoch { node: StorageId(0), present: world.epoch(0), got: old });
        let refused = alter_isr(world.image(), StorageId(9), old, &[]).unwrap_err();
        assert_eq!(refused, IsrError::UnknownNode(StorageId(9)));
    }

    #[test]
    fn each_rule_has_its_own_refusal_in_kafkas_order() {
        let mut world = world();
        world.fence([1]);
        world.unfence([1]);
        world.fence([0]);
        world.unfence([0]);
        // Leader epoch 1 (node 2 was not in sync, so node 0 led until it was fenced and node 1 was not in sync any more).
        let (topic, partition) = (topic_id(0), 0);
        let leader = world.standing(0).0.unwrap();
        let good = asks(&world, [leader]);
        assert!(good.leader_epoch > LeaderEpoch(0) && good.partition_epoch > PartitionEpoch(1));
        let unknown = IsrChange { partition: 5, ..good.clone() };
        assert_eq!(outcome(&world, leader, unknown), Err(IsrError::UnknownPartition { topic, partition: 5 }));
        let newer = IsrChange { leader_epoch: LeaderEpoch(good.leader_epoch.0 + 1), ..good.clone() };
        assert_eq!(outcome(&world, leader, newer), Err(IsrError::NotController { topic, partition }));
        let newer = IsrChange { partition_epoch: PartitionEpoch(good.partition_epoch.0 + 1), ..good.clone() };
        assert_eq!(outcome(&world, leader, newer), Err(IsrError::NotController { topic, partition }));
        let older = IsrChange { leader_epoch: LeaderEpoch(0), partition_epoch: PartitionEpoch(0), ..good.clone() };
        let (present, got) = (good.leader_epoch, LeaderEpoch(0));
        let fenced = IsrError::FencedLeaderEpoch { topic, partition, present, got };
        assert_eq!(outcome(&world, 3, older), Err(fenced));
        let node = StorageId(3);
        assert_eq!(outcome(&world, 3, good.clone()), Err(IsrError::NotLeader { topic, partition, node }));
        let late = IsrChange { partition_epoch: PartitionEpoch(1), isr: Vec::new(), ..good.clone() };
        let (present, got) = (good.partition_epoch, PartitionEpoch(1));
        assert_eq!(
            outcome(&world, leader, late),
            Err(IsrError::StalePartitionEpoch { topic, partition, present, got })
        );
    }

    #[test]
    fn the_set_is_within_the_replicas_each_once_and_has_one_that_was_in_sync() {
        let world = world();
        for isr in [vec![], vec![2], vec![0, 3], vec![0, 1, 1], vec![0, 1, 2, 3], vec![0, 0]] {
            let members = isr.iter().map(|node| (StorageId(*node), world.epoch(*node))).collect();
            let refused = outcome(&world, 0, IsrChange { isr: members, ..asks(&world, [0]) });
            assert_eq!(refused, Err(IsrError::InvalidReplicas { topic: topic_id(0), partition: 0 }), "{isr:?}");
        }
    }

    #[test]
    fn nobody_joins_who_is_fenced_draining_or_of_another_incarnation() {
        let mut world = world();
        let (topic, partition, node) = (topic_id(0), 0, StorageId(2));
        let ineligible = Err(IsrError::IneligibleReplica { topic, partition, node });
        let before = asks(&world, [0, 1, 2]);
        world.register(2);
        assert_eq!(outcome(&world, 0, asks(&world, [0, 1, 2])), ineligible, "fenced");
        world.unfence([2]);
        assert_eq!(outcome(&world, 0, before), ineligible, "the incarnation of before");
        assert!(outcome(&world, 0, asks(&world, [0, 1, 2])).is_ok());
        world.commit(drain(world.image(), node));
        assert_eq!(outcome(&world, 0, asks(&world, [0, 1, 2])), ineligible, "draining");
    }

    #[test]
    fn a_draining_leader_may_ask_for_who_relieves_it() {
        let mut world = world();
        world.shrink(0, [0]);
        world.commit(drain(world.image(), StorageId(0)));
        assert!(outcome(&world, 0, asks(&world, [0, 1])).is_ok());
    }

    #[test]
    fn several_changes_are_one_record_for_each_topic_and_a_partition_changes_once() {
        let mut world = world();
        world.topic(1, [0, 1]);
        let other = IsrChange { topic: topic_id(1), partition_epoch: PartitionEpoch(0), ..asks(&world, [0]) };
        let twice = asks(&world, [0]);
        let changes = [twice.clone(), other, twice, IsrChange { partition: 4, ..asks(&world, [0]) }];
        let (records, outcomes) = alter_isr(world.image(), StorageId(0), world.epoch(0), &changes).unwrap();
        assert_eq!(records.len(), 2);
        let (topic, partition, present, got) = (topic_id(0), 0, PartitionEpoch(2), PartitionEpoch(1));
        let stale = IsrError::StalePartitionEpoch { topic, partition, present, got };
        let unknown = IsrError::UnknownPartition { topic, partition: 4 };
        assert_eq!(outcomes, [Ok(PartitionEpoch(2)), Ok(PartitionEpoch(1)), Err(stale), Err(unknown)]);
        world.commit(records);
        assert_eq!((world.standing(0).1, world.standing(1).1), (vec![0], vec![0]));
    }

    /// Node 1, which was not in sync, leads since node 0 is gone.
    fn unclean() -> World {
        let mut world = World::with_nodes(3);
        let key = crate::metadata::config::UNCLEAN_ELECTION.to_string();
        world.topic_with(0, [0, 1, 2], BTreeMap::from([(key, "true".to_string())]));
        world.shrink(0, [0]);
        world.fence([0]);
        assert_eq!(world.standing(0), (Some(1), vec![1]));
        world
    }

    #[test]
    fn after_an_unclean_election_nobody_joins_the_leader_before_it_says_that_it_has_recovered() {
        let mut world = unclean();
        let (topic, partition) = (topic_id(0), 0);
        assert!(world.image().is_recovering(topic, partition));
        let grown = asks(&world, [1, 2]);
        assert_eq!(outcome(&world, 1, grown.clone()), Err(IsrError::Recovering { topic, partition }));
        let alone = asks(&world, [1]);
        assert_eq!(outcome(&world, 1, alone), Ok(grown.partition_epoch), "that holds already");
        assert_eq!(
            outcome(&world, 2, IsrChange { recovered: true, ..grown.clone() }),
            Err(IsrError::NotLeader { topic, partition, node: StorageId(2) })
        );
        let recovered = IsrChange { recovered: true, ..asks(&world, [1]) };
        let (records, outcomes) = alter_isr(world.image(), StorageId(1), world.epoch(1), &[recovered]).unwrap();
        assert_eq!(outcomes, [Ok(PartitionEpoch(grown.partition_epoch.0 + 1))]);
        world.commit(records);
        assert!(!world.image().is_recovering(topic, partition));
        assert!(outcome(&world, 1, asks(&world, [1, 2])).is_ok());
        // Said once more, of a partition that recovers no longer, it changes nothing.
        let again = IsrChange { recovered: true, ..asks(&world, [1]) };
        let present = again.partition_epoch;
        assert_eq!(outcome(&world, 1, again), Ok(present));
    }

    #[test]
    fn a_leader_may_say_that_it_has_recovered_and_ask_for_others_in_one_request() {
        let mut world = unclean();
        let both = IsrChange { recovered: true, ..asks(&world, [1, 2]) };
        world.commit(alter_isr(world.image(), StorageId(1), world.epoch(1), &[both]).unwrap().0);
        assert_eq!(world.standing(0), (Some(1), vec![1, 2]));
        assert!(!world.image().is_recovering(topic_id(0), 0));
    }

    #[test]
    fn a_partition_goes_on_recovering_whoever_leads_until_a_leader_has_said_so() {
        let mut world = unclean();
        // The same leader comes back, by a clean election.
        world.fence([1, 2]);
        assert_eq!(world.standing(0), (None, vec![1]));
        assert!(world.image().is_recovering(topic_id(0), 0));
        world.unfence([1]);
        assert_eq!(world.standing(0), (Some(1), vec![1]));
        assert!(world.image().is_recovering(topic_id(0), 0));
        // Another one, by a second unclean election.
        world.unfence([2]);
        world.fence([1]);
        assert_eq!(world.standing(0), (Some(2), vec![2]));
        assert!(world.image().is_recovering(topic_id(0), 0));
        let (image, position) = (world.image(), world.history.position());
        let mut bytes = Vec::new();
        crate::metadata::write_snapshot(image, position, &mut bytes).unwrap();
        let (read, _) = crate::metadata::read_snapshot(&mut bytes.as_slice()).unwrap();
        assert_eq!(&read, image, "a snapshot keeps it");
    }

    #[test]
    fn leaderships_go_back_to_the_preferred_replica_a_few_at_a_time() {
        let mut world = World::with_nodes(3);
        (0..4).for_each(|topic| world.topic(topic, [0, 1, 2]));
        world.fence([0]);
        world.unfence([0]);
        assert!(preferred(world.image(), 10).is_empty(), "node 0 is in sync nowhere");
        (0..3).for_each(|topic| world.shrink(topic, [0, 1, 2]));
        world.commit(preferred(world.image(), 2));
        assert_eq!(world.image().storage[&StorageId(0)].leaders, 2);
        world.commit(preferred(world.image(), 2));
        assert_eq!(world.image().storage[&StorageId(0)].leaders, 3);
        assert_eq!((world.standing(3), world.leader_epoch(0)), ((Some(1), vec![1, 2]), 2));
        assert!(preferred(world.image(), 2).is_empty());
        assert_eq!(world.image().partition(topic_id(0), 0).unwrap().replicas[..], ids([0, 1, 2]));
    }
}
