//! What the node leads, and whether it may.
//!
//! A leadership that the metadata takes away ends when it is applied in memory; one that it gives begins when it is on the
//! disk. Either costs what changed, not what there is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Effect, Leadership, StorageCore};
use crate::metadata::{History, Partition, Record, StorageNode};
use crate::types::{LeaderEpoch, Monotonic, PartitionId, StorageId, TopicId, Version};

type Place = (TopicId, PartitionId);

#[derive(Default)]
pub(super) struct Leads {
    held: BTreeMap<Place, LeaderEpoch>,
    /// Partitions that a change names, not looked at yet.
    touched: BTreeSet<Place>,
    /// Topics of which more than single partitions changed.
    topics: BTreeSet<TopicId>,
    lost: Vec<Leadership>,
    /// Begin when this version is on the disk.
    gaining: VecDeque<(Version, Leadership)>,
    /// Led by this node, and not every replica is in sync, or it is to say that it has recovered.
    pub(super) under: BTreeSet<Place>,
}

impl Leads {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Leadership> + '_ {
        self.held.iter().map(|(&(topic, partition), &leader_epoch)| Leadership { topic, partition, leader_epoch })
    }

    /// Takes down what these records change of partitions.
    pub(super) fn touched(&mut self, records: &[Record]) {
        for record in records {
            match record {
                Record::TopicCreated { topic_id, .. }
                | Record::PartitionsAdded { topic_id, .. }
                | Record::TopicDeleted { topic_id } => {
                    self.topics.insert(*topic_id);
                }
                Record::PartitionsChanged { topic_id, changes } => {
                    self.touched.extend(changes.iter().map(|change| (*topic_id, change.partition)));
                }
                Record::ClusterFounded { .. }
                | Record::ClusterRestored { .. }
                | Record::ControllerElected { .. }
                | Record::SnapshotCommitted { .. }
                | Record::StorageRegistered { .. }
                | Record::StorageStateChanged { .. }
                | Record::StorageReplaced { .. }
                | Record::StorageRemoved { .. }
                | Record::PairingChanged { .. }
                | Record::TopicConfigured { .. }
                | Record::NoOp {} => {}
            }
        }
    }

    /// Looks at everything, after the history was replaced.
    pub(super) fn reread(&mut self, history: &History, me: Option<StorageId>) {
        self.topics.extend(history.image().into_iter().flat_map(|image| image.topics.keys().copied()));
        self.topics.extend(self.held.keys().map(|(topic, _)| *topic));
        self.gaining.clear();
        self.look(history, me);
    }

    fn look(&mut self, history: &History, me: Option<StorageId>) {
        let image = history.image();
        for topic in std::mem::take(&mut self.topics) {
            let count =
                image.and_then(|image| image.topics.get(&topic)).map_or(0, |topic| topic.partitions.len() as u32);
            let known = self.held.range((topic, 0)..=(topic, PartitionId::MAX)).map(|(place, _)| *place);
            self.touched.extend(known.chain((0..count).map(|partition| (topic, partition))));
        }
        let version = history.position().version;
        for place in std::mem::take(&mut self.touched) {
            let partition = image.and_then(|image| image.partition(place.0, place.1));
            let is_recovering = image.is_some_and(|image| image.is_recovering(place.0, place.1));
            self.look_at(place, partition, is_recovering, version, me);
        }
    }

    fn look_at(
        &mut self,
        place: Place,
        partition: Option<&Partition>,
        is_recovering: bool,
        version: Version,
        me: Option<StorageId>,
    ) {
        let led = partition.filter(|partition| me.is_some() && partition.leader == me);
        match led {
            Some(partition) if partition.under_replicated() || is_recovering => self.under.insert(place),
            Some(_) | None => self.under.remove(&place),
        };
        let epoch = led.map(|partition| partition.leader_epoch);
        let held = self.held.get(&place).copied();
        if epoch == held {
            return;
        }
        let leadership = |leader_epoch| Leadership { topic: place.0, partition: place.1, leader_epoch };
        if let Some(before) = held {
            self.held.remove(&place);
            self.lost.push(leadership(before));
        }
        if let Some(now) = epoch {
            self.gaining.push_back((version, leadership(now)));
        }
    }
}

impl StorageCore {
    /// This node's entry in the metadata, unless it is another directory's.
    pub(super) fn me(&self) -> Option<&StorageNode> {
        let node = self.history.image()?.storage.get(&self.my_id()?)?;
        (node.directory == Some(self.identity.directory)).then_some(node)
    }

    /// Whether the node may serve what it leads: this incarnation is registered and in the metadata as such, works there, and
    /// its lease on the present connection runs.
    pub fn may_lead(&self, now: Monotonic) -> bool {
        let serves = self.me().is_some_and(|node| {
            node.state.serves()
                && node.incarnation == self.identity.incarnation
                && Some(node.epoch) == self.registration.node_epoch
        });
        serves && !self.ended && self.session.lease_holds(now)
    }

    pub(super) fn tell_may_lead(&mut self, now: Monotonic, out: &mut Vec<Effect>) {
        let may = self.may_lead(now);
        if may != self.said_may_lead {
            self.said_may_lead = may;
            out.push(Effect::MayLead(may));
        }
    }

    pub(super) fn announce_lost(&mut self, out: &mut Vec<Effect>) {
        let me = self.my_id();
        self.leads.look(&self.history, me);
        let lost = std::mem::take(&mut self.leads.lost);
        if !lost.is_empty() {
            out.push(Effect::Leads { gained: Vec::new(), lost });
        }
    }

    pub(super) fn announce_gained(&mut self, out: &mut Vec<Effect>) {
        let mut gained = Vec::new();
        let me = self.my_id();
        while let Some((version, leadership)) = self.leads.gaining.front().copied()
            && version <= self.disk.position.version
        {
            self.leads.gaining.pop_front();
            let place = (leadership.topic, leadership.partition);
            let partition = self.history.image().and_then(|image| image.partition(place.0, place.1));
            let still = partition.is_some_and(|held| held.leader == me && held.leader_epoch == leadership.leader_epoch);
            if still && self.leads.held.insert(place, leadership.leader_epoch).is_none() {
                gained.push(leadership);
            }
        }
        if !gained.is_empty() {
            out.push(Effect::Leads { gained, lost: Vec::new() });
        }
    }
}
