//! The image: the state that the history folds to. It changes only by records, in [`Image::apply`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::partitions::Partitions;
use super::record::{Move, PartitionChange, Record, Replicas, SnapshotRef};
use crate::types::{
    ClusterId, ControllerEpoch, ControllerId, DirectoryId, IncarnationId, LeaderEpoch, NodeEpoch, PairingEpoch,
    PartitionEpoch, PartitionId, Position, RequestId, StorageId, TopicId, TopicName, Version,
};

/// How many answered requests are remembered, so that a retry gets the same answer.
pub const REQUESTS_KEPT: usize = 4096;

/// The most replicas of one partition.
pub const MAX_REPLICAS: usize = 32;

/// How far apart the epochs of two restored histories begin. They are 31 bits in Kafka's batches: so many restores of so many elections
/// each fit.
const RESTORED_EPOCHS: u32 = 1 << 16;

/// The most partitions of one topic, and how many can be made at once.
pub const MAX_PARTITIONS: u32 = 1_000_000;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeState {
    /// Leads nothing and is in no new in-sync set: it has not caught up, fell silent, or cannot work.
    Fenced,
    Active,
    /// Wants to stop: gives its leaderships away and takes no new replica.
    Draining,
    /// Gone for good. The entry remains so that its directory is recognised.
    Removed,
}

impl NodeState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fenced => "fenced",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Removed => "removed",
        }
    }

    /// Whether the node may hold a lease: it works, and leads what it has not yet given away.
    pub fn serves(self) -> bool {
        match self {
            Self::Active | Self::Draining => true,
            Self::Fenced | Self::Removed => false,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StorageNode {
    /// None where the directory was lost and its id waits for another one.
    pub directory: Option<DirectoryId>,
    pub incarnation: IncarnationId,
    pub epoch: NodeEpoch,
    pub state: NodeState,
    pub rack: Option<Arc<str>>,
    pub pairing: Option<ControllerId>,
    pub pairing_epoch: PairingEpoch,
    /// The directory that was active last, and its epoch then: a disk that does not know of it was set back.
    pub served: Option<(DirectoryId, NodeEpoch)>,
    /// Partitions that it leads. Derived from the topics.
    pub leaders: u32,
    /// Partitions of which it holds a replica, those that it leads included. Derived from the topics.
    pub replicas: u32,
}

impl StorageNode {
    pub fn followers(&self) -> u32 {
        self.replicas - self.leaders
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Partition {
    /// In order of preference, no node twice.
    pub replicas: Replicas,
    /// Bit n: the replica at index n is in sync.
    isr: u32,
    pub leader: Option<StorageId>,
    pub leader_epoch: LeaderEpoch,
    pub epoch: PartitionEpoch,
}

impl Partition {
    pub fn new(replicas: &[StorageId]) -> Self {
        Self {
            isr: bits(replicas.len()),
            leader: replicas.first().copied(),
            replicas: replicas.into(),
            leader_epoch: LeaderEpoch(0),
            epoch: PartitionEpoch(0),
        }
    }

    /// The in-sync replicas, in order of preference.
    pub fn isr(&self) -> impl Iterator<Item = StorageId> + '_ {
        self.replicas.iter().enumerate().filter(|(n, _)| self.isr & (1 << n) != 0).map(|(_, node)| *node)
    }

    pub fn in_sync(&self, node: StorageId) -> bool {
        self.isr().any(|member| member == node)
    }

    pub fn isr_len(&self) -> usize {
        self.isr.count_ones() as usize
    }

    pub fn under_replicated(&self) -> bool {
        self.isr != bits(self.replicas.len())
    }

    /// Sets the in-sync replicas. False, and nothing is changed, where one is not a replica or there would be none.
    pub(super) fn set_isr(&mut self, members: &[StorageId]) -> bool {
        let mut isr = 0;
        for member in members {
            let Some(index) = self.replicas.iter().position(|replica| replica == member) else { return false };
            isr |= 1 << index;
        }
        if isr != 0 {
            self.isr = isr;
        }
        isr != 0
    }
}

fn bits(count: usize) -> u32 {
    if count >= 32 { u32::MAX } else { (1 << count) - 1 }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Topic {
    pub id: TopicId,
    pub name: TopicName,
    pub created: Version,
    /// The last change of its name, configuration or number of partitions; leaders and in-sync replicas don't count.
    pub changed: Version,
    pub config: BTreeMap<String, String>,
    pub partitions: Partitions,
    /// Partitions whose last in-sync replica was in a directory that is lost: nobody else can lead them.
    pub waits_for: BTreeMap<PartitionId, DirectoryId>,
    /// Partitions whose leader came from an unclean election and has not said yet that it has recovered: it alone is in sync.
    pub recovering: BTreeSet<PartitionId>,
}

impl Topic {
    pub fn unclean_election(&self) -> bool {
        self.config.get(super::config::UNCLEAN_ELECTION).is_some_and(|value| value == "true")
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ElectedController {
    pub id: ControllerId,
    pub directory: DirectoryId,
    pub incarnation: IncarnationId,
    pub epoch: ControllerEpoch,
}

/// What a request came to, for its retries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestOutcome {
    /// Of what was asked: the same id with another request is a mistake, not a retry.
    pub fingerprint: u64,
    pub version: Version,
    /// JSON.
    pub answer: Arc<str>,
}

/// The metadata at one position. Cloning costs one reference per topic and node, not per partition; a change to what is shared
/// copies a few hundred partitions at most.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    pub cluster: ClusterId,
    pub controller: Option<ElectedController>,
    pub storage: BTreeMap<StorageId, StorageNode>,
    /// Above every storage id that was ever given out.
    pub next_storage: u32,
    pub topics: BTreeMap<TopicId, Arc<Topic>>,
    pub names: BTreeMap<TopicName, TopicId>,
    /// How many topics were ever created: moves the starting point of placement.
    pub topics_created: u64,
    pub snapshot: Option<SnapshotRef>,
    /// Where the history stood that the last restore began from.
    pub restored_from: Option<Position>,
    pub(super) requests: BTreeMap<RequestId, RequestOutcome>,
    pub(super) request_order: VecDeque<RequestId>,
}

/// Replicas and leaderships for each node, of many partitions: counted together, since a million look-ups of nodes take longer
/// than all else that a million new partitions ask for.
#[derive(Default)]
struct NodeCounts {
    dense: Vec<NodeCount>,
    beyond: BTreeMap<StorageId, NodeCount>,
}

#[derive(Clone, Copy, Default)]
struct NodeCount {
    replicas: u32,
    leaders: u32,
}

impl NodeCounts {
    const DENSE: usize = 1 << 16;

    fn of(&mut self, node: StorageId) -> &mut NodeCount {
        let index = node.0 as usize;
        if index >= Self::DENSE {
            return self.beyond.entry(node).or_default();
        }
        if index >= self.dense.len() {
            self.dense.resize(index + 1, NodeCount::default());
        }
        &mut self.dense[index]
    }

    fn all(&self) -> impl Iterator<Item = (StorageId, NodeCount)> + '_ {
        let dense = (0..).map(StorageId).zip(self.dense.iter().copied()).filter(|(_, count)| count.replicas > 0);
        dense.chain(self.beyond.iter().map(|(node, count)| (*node, *count)))
    }
}

/// A record that makes no sense where it stands: its writer broke a rule, or the history is another one. Whoever meets it stops.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct InapplicableRecord(pub String);

macro_rules! inapplicable {
    ($($words:tt)*) => { InapplicableRecord(format!($($words)*)) };
}

impl Image {
    pub(super) fn empty(cluster: ClusterId) -> Self {
        Self {
            cluster,
            controller: None,
            storage: BTreeMap::new(),
            next_storage: 0,
            topics: BTreeMap::new(),
            names: BTreeMap::new(),
            topics_created: 0,
            snapshot: None,
            restored_from: None,
            requests: BTreeMap::new(),
            request_order: VecDeque::new(),
        }
    }

    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(self.names.get(name)?)
    }

    pub fn partition(&self, topic: TopicId, partition: PartitionId) -> Option<&Partition> {
        self.topics.get(&topic)?.partitions.get(partition as usize)
    }

    pub fn is_recovering(&self, topic: TopicId, partition: PartitionId) -> bool {
        self.topics.get(&topic).is_some_and(|topic| topic.recovering.contains(&partition))
    }

    pub fn request(&self, id: &RequestId) -> Option<&RequestOutcome> {
        self.requests.get(id)
    }

    pub fn active_nodes(&self) -> impl Iterator<Item = (StorageId, &StorageNode)> {
        self.storage.iter().filter(|(_, node)| node.state == NodeState::Active).map(|(id, node)| (*id, node))
    }

    pub fn is_active(&self, node: StorageId) -> bool {
        self.storage.get(&node).is_some_and(|node| node.state == NodeState::Active)
    }

    /// The node whose directory this is.
    pub fn by_directory(&self, directory: DirectoryId) -> Option<(StorageId, &StorageNode)> {
        let holds = |node: &StorageNode| node.directory == Some(directory);
        self.storage.iter().find(|(_, node)| holds(node)).map(|(id, node)| (*id, node))
    }

    pub fn controller_epoch(&self) -> ControllerEpoch {
        self.controller.as_ref().map_or(ControllerEpoch(0), |controller| controller.epoch)
    }

    pub(super) fn remember(&mut self, id: RequestId, outcome: RequestOutcome) {
        if self.requests.insert(id.clone(), outcome).is_none() {
            self.request_order.push_back(id);
        }
        if self.request_order.len() > REQUESTS_KEPT
            && let Some(oldest) = self.request_order.pop_front()
        {
            self.requests.remove(&oldest);
        }
    }

    /// Applies one record of the change that takes effect at `version`.
    pub(super) fn apply(&mut self, version: Version, record: &Record) -> Result<(), InapplicableRecord> {
        match record {
            Record::ClusterFounded { .. } => return Err(inapplicable!("a cluster is founded once, at the beginning")),
            Record::ClusterRestored { from } => self.restored_from = Some(*from),
            Record::ControllerElected { controller, directory, incarnation } => {
                let (id, directory, incarnation) = (*controller, *directory, *incarnation);
                self.controller =
                    Some(ElectedController { id, directory, incarnation, epoch: ControllerEpoch(version.0) });
            }
            Record::SnapshotCommitted { snapshot } => self.snapshot = Some(snapshot.clone()),
            Record::StorageRegistered { storage, directory, incarnation, rack } => {
                self.register(version, *storage, *directory, *incarnation, rack.clone());
            }
            Record::StorageStateChanged { storage, node_epoch, state } => {
                let node = self.node_mut(*storage)?;
                if node.epoch != *node_epoch {
                    return Err(inapplicable!("storage node {storage} has epoch {}, not {node_epoch}", node.epoch));
                }
                if *state == NodeState::Removed || node.state == NodeState::Removed {
                    return Err(inapplicable!("storage node {storage} cannot go from {:?} to {state:?}", node.state));
                }
                node.state = *state;
                if *state == NodeState::Active {
                    node.served = node.directory.map(|directory| (directory, node.epoch));
                }
            }
            Record::StorageReplaced { storage, lost_directory } => {
                let node = self.node_mut(*storage)?;
                if node.directory != Some(*lost_directory) {
                    return Err(inapplicable!("storage node {storage} is not in directory {lost_directory}"));
                }
                node.directory = None;
                node.state = NodeState::Fenced;
            }
            Record::StorageRemoved { storage } => {
                let node = self.node_mut(*storage)?;
                if node.replicas > 0 {
                    return Err(inapplicable!("storage node {storage} still holds {} replicas", node.replicas));
                }
                node.state = NodeState::Removed;
                node.pairing = None;
            }
            Record::PairingChanged { storage, controller } => {
                let node = self.node_mut(*storage)?;
                node.pairing = *controller;
                node.pairing_epoch = PairingEpoch(version.0);
            }
            Record::TopicCreated { topic_id, name, config, replicas } => {
                self.create_topic(version, *topic_id, name, config, replicas)?;
            }
            Record::PartitionsAdded { topic_id, replicas } => self.add_partitions(version, *topic_id, replicas)?,
            Record::TopicConfigured { topic_id, config } => {
                let topic = self.topic_mut(*topic_id)?;
                topic.changed = version;
                for (key, value) in config {
                    match value {
                        Some(value) => topic.config.insert(key.clone(), value.clone()),
                        None => topic.config.remove(key),
                    };
                }
            }
            Record::TopicDeleted { topic_id } => {
                let topic = self.topics.remove(topic_id).ok_or_else(|| inapplicable!("no topic {topic_id}"))?;
                self.names.remove(&topic.name);
                self.count(topic.partitions.iter(), -1);
            }
            Record::PartitionsChanged { topic_id, changes } => {
                changes.iter().try_for_each(|change| self.change_partition(*topic_id, change))?;
            }
            Record::PartitionsMoved { change, partitions } => {
                for (topic, numbers) in partitions {
                    numbers.iter().try_for_each(|number| self.move_partition(*topic, *number, change))?;
                }
            }
            Record::NoOp {} => {}
        }
        Ok(())
    }

    fn register(
        &mut self,
        version: Version,
        storage: StorageId,
        directory: DirectoryId,
        incarnation: IncarnationId,
        rack: Option<Arc<str>>,
    ) {
        let before = self.storage.get(&storage);
        let node = StorageNode {
            directory: Some(directory),
            incarnation,
            epoch: NodeEpoch(version.0),
            state: NodeState::Fenced,
            rack,
            pairing: before.and_then(|node| node.pairing),
            pairing_epoch: before.map_or(PairingEpoch(0), |node| node.pairing_epoch),
            served: before.and_then(|node| node.served),
            leaders: before.map_or(0, |node| node.leaders),
            replicas: before.map_or(0, |node| node.replicas),
        };
        self.storage.insert(storage, node);
        self.next_storage = self.next_storage.max(storage.0.saturating_add(1));
    }

    fn create_topic(
        &mut self,
        version: Version,
        id: TopicId,
        name: &TopicName,
        config: &BTreeMap<String, String>,
        replicas: &[Replicas],
    ) -> Result<(), InapplicableRecord> {
        if self.topics.contains_key(&id) || self.names.contains_key(name) {
            return Err(inapplicable!("topic {name} ({id}) exists already"));
        }
        let (name, config) = (name.clone(), config.clone());
        self.names.insert(name.clone(), id);
        self.topics_created += 1;
        let topic = Topic {
            id,
            name,
            created: version,
            changed: version,
            config,
            partitions: Partitions::default(),
            waits_for: BTreeMap::new(),
            recovering: BTreeSet::new(),
        };
        self.topics.insert(id, Arc::new(topic));
        self.add_partitions(version, id, replicas)
    }

    fn add_partitions(
        &mut self,
        version: Version,
        topic: TopicId,
        replicas: &[Replicas],
    ) -> Result<(), InapplicableRecord> {
        let mut counts = NodeCounts::default();
        for nodes in replicas {
            let once = nodes.iter().enumerate().all(|(n, node)| !nodes[..n].contains(node));
            if !once || !(1..=MAX_REPLICAS).contains(&nodes.len()) {
                return Err(inapplicable!("a partition of topic {topic} cannot be on {nodes:?}"));
            }
            nodes.iter().for_each(|node| counts.of(*node).replicas += 1);
            counts.of(nodes[0]).leaders += 1;
        }
        for (node, more) in counts.all() {
            let node = self.node_mut(node)?;
            node.replicas += more.replicas;
            node.leaders += more.leaders;
        }
        let held = self.topic_mut(topic)?;
        // In a history that was lost there may have been partitions of these numbers.
        let since_restore = held.partitions.iter().next().map_or((0, 0), |first| {
            let step = |epoch: u32| epoch / RESTORED_EPOCHS * RESTORED_EPOCHS;
            (step(first.leader_epoch.0), step(first.epoch.0))
        });
        held.partitions.extend(replicas.iter().map(|nodes| Partition {
            leader_epoch: LeaderEpoch(since_restore.0),
            epoch: PartitionEpoch(since_restore.1),
            ..Partition::new(nodes)
        }));
        held.changed = version;
        Ok(())
    }

    fn change_partition(&mut self, topic: TopicId, change: &PartitionChange) -> Result<(), InapplicableRecord> {
        let number = change.partition;
        let held = self.topic_mut(topic)?;
        let partition = held
            .partitions
            .get_mut(number as usize)
            .ok_or_else(|| inapplicable!("topic {topic} has no partition {number}"))?;
        if let Some(isr) = &change.isr
            && !partition.set_isr(isr)
        {
            return Err(inapplicable!("{isr:?} cannot be the in-sync replicas of partition {number} of topic {topic}"));
        }
        partition.epoch.0 += 1;
        let before = partition.leader;
        if let Some(leader) = change.leader {
            partition.leader = leader;
            partition.leader_epoch.0 += 1;
            #[cfg(test)]
            if crate::simulator::planted(crate::simulator::Bug::SameLeaderEpoch) {
                partition.leader_epoch.0 -= 1;
            }
        }
        let after = partition.leader;
        if after.is_some_and(|leader| !partition.in_sync(leader)) {
            return Err(inapplicable!("{after:?} is not in sync and cannot lead partition {number} of {topic}"));
        }
        let is_recovering = change.recovering.unwrap_or_else(|| held.recovering.contains(&number));
        if is_recovering && partition.isr_len() != 1 {
            return Err(inapplicable!("partition {number} of {topic} recovers with more than one in-sync replica"));
        }
        if is_recovering {
            held.recovering.insert(number);
        } else {
            held.recovering.remove(&number);
        }
        match change.waits_for {
            Some(directory) => held.waits_for.insert(number, directory),
            None if after.is_some() => held.waits_for.remove(&number),
            None => None,
        };
        for (node, step) in [(before, -1), (after, 1)] {
            if let Some(node) = node.and_then(|node| self.storage.get_mut(&node)) {
                node.leaders = node.leaders.wrapping_add_signed(step);
            }
        }
        Ok(())
    }

    fn move_partition(
        &mut self,
        topic: TopicId,
        partition: PartitionId,
        change: &Move,
    ) -> Result<(), InapplicableRecord> {
        let Move { leader, left, joined } = change;
        let held = self.partition(topic, partition);
        let held = held.ok_or_else(|| inapplicable!("topic {topic} has no partition {partition}"))?;
        if left.iter().any(|node| !held.in_sync(*node)) || joined.iter().any(|node| held.in_sync(*node)) {
            let isr: Vec<_> = held.isr().collect();
            let words = format!("{left:?} cannot leave and {joined:?} not join the in-sync replicas {isr:?}");
            return Err(inapplicable!("{words} of partition {partition} of topic {topic}"));
        }
        let isr = || held.isr().filter(|node| !left.contains(node)).chain(joined.iter().copied()).collect();
        let isr = (!left.is_empty() || !joined.is_empty()).then(isr);
        let change = PartitionChange { partition, leader: *leader, isr, waits_for: None, recovering: None };
        self.change_partition(topic, &change)
    }

    /// Adds partitions to their nodes' counts, or takes them away.
    pub(super) fn count<'a>(&mut self, partitions: impl Iterator<Item = &'a Partition>, step: i32) {
        let mut counts = NodeCounts::default();
        for partition in partitions {
            partition.replicas.iter().for_each(|node| counts.of(*node).replicas += 1);
            // A leader is a replica.
            partition.leader.iter().for_each(|node| counts.of(*node).leaders += 1);
        }
        for (node, count) in counts.all() {
            if let Some(node) = self.storage.get_mut(&node) {
                node.replicas = node.replicas.wrapping_add_signed(step * count.replicas as i32);
                node.leaders = node.leaders.wrapping_add_signed(step * count.leaders as i32);
            }
        }
    }

    fn node_mut(&mut self, storage: StorageId) -> Result<&mut StorageNode, InapplicableRecord> {
        self.storage.get_mut(&storage).ok_or_else(|| inapplicable!("no storage node {storage}"))
    }

    fn topic_mut(&mut self, topic: TopicId) -> Result<&mut Topic, InapplicableRecord> {
        let held = self.topics.get_mut(&topic).ok_or_else(|| inapplicable!("no topic {topic}"))?;
        Ok(Arc::make_mut(held))
    }

    /// Raises every leader epoch above any that can have been given out before a restore, and leaves every partition without
    /// a leader and every node fenced: who lives will register and be elected anew. `restores`: how many there may have been before and
    /// with this one. The image may be from before some of them.
    pub(super) fn reset_for_restore(&mut self, restores: u64) {
        /// Versions that are claimed and that nobody has may make it seem as if there were more.
        const MOST: u64 = 16_000;
        let least = restores.min(MOST) as u32 * RESTORED_EPOCHS;
        let next = |epoch: u32| ((epoch / RESTORED_EPOCHS + 1) * RESTORED_EPOCHS).max(least);
        #[cfg(test)]
        let next = |epoch| match crate::simulator::planted(crate::simulator::Bug::RestoredTooLow) {
            true => epoch + 1,
            false => next(epoch),
        };
        self.controller = None;
        self.snapshot = None;
        for node in self.storage.values_mut() {
            if node.state != NodeState::Removed {
                node.state = NodeState::Fenced;
            }
            node.leaders = 0;
        }
        for topic in self.topics.values_mut() {
            for partition in Arc::make_mut(topic).partitions.iter_mut() {
                partition.leader = None;
                partition.leader_epoch.0 = next(partition.leader_epoch.0);
                partition.epoch.0 = next(partition.epoch.0);
            }
        }
    }
}
