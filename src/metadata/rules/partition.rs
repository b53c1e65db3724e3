//! Partitions: what a leader may ask of its in-sync replicas, and which leaderships go back to the preferred replica.

use std::collections::BTreeMap;

use super::election::Gathered;
pub use super::election::{Standing, elect};
use crate::metadata::{Image, NodeState, Partition, PartitionChange, Record};
use crate::types::{LeaderEpoch, NodeEpoch, PartitionEpoch, PartitionId, StorageId, TopicId};

/// What a leader asks: these in-sync replicas, each with the incarnation that it heard from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IsrChange {
    pub topic: TopicId,
    pub partition: PartitionId,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    pub isr: Vec<(StorageId, NodeEpoch)>,
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
        "the in-sync replicas of partition {partition} of {topic} are among its replicas, each once, and with its leader"
    )]
    InvalidReplicas { topic: TopicId, partition: PartitionId },
    #[error(
        "storage node {node} cannot be in sync on partition {partition} of {topic}: it is fenced, draining or of another incarnation"
    )]
    IneligibleReplica { topic: TopicId, partition: PartitionId, node: StorageId },
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
    accepted.into_iter().for_each(|((topic, _), change)| gathered.push(topic, change));
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
    let isr = members(held, sender, change).ok_or(IsrError::InvalidReplicas { topic, partition })?;
    if let Some((node, _)) = change.isr.iter().find(|(node, epoch)| !eligible(image, *node, *epoch, sender)) {
        return Err(IsrError::IneligibleReplica { topic, partition, node: *node });
    }
    if held.isr().eq(isr.iter().copied()) {
        return Ok((present, None));
    }
    let change = PartitionChange { partition, leader: None, isr: Some(isr), waits_for: None };
    Ok((PartitionEpoch(present.0 + 1), Some(change)))
}

/// The members asked for, in order of preference. None where they aren't replicas, each once, with the leader among them.
fn members(held: &Partition, leader: StorageId, change: &IsrChange) -> Option<Vec<StorageId>> {
    let asked = |node: &StorageId| change.isr.iter().any(|(member, _)| member == node);
    let isr: Vec<_> = held.replicas.iter().filter(|node| asked(node)).copied().collect();
    (isr.len() == change.isr.len() && isr.contains(&leader)).then_some(isr)
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
    let moves = image.topics.values().flat_map(|topic| {
        let back = |(number, partition): (PartitionId, &Partition)| {
            let first = partition.replicas.first().copied()?;
            let moves = partition.leader.is_some_and(|leader| leader != first);
            let can = moves && partition.in_sync(first) && image.is_active(first);
            let change = PartitionChange { partition: number, leader: Some(Some(first)), isr: None, waits_for: None };
            can.then_some((topic.id, change))
        };
        (0..).zip(&topic.partitions).filter_map(back)
    });
    moves.take(limit).for_each(|(topic, change)| gathered.push(topic, change));
    gathered.records()
}
