//! What the node leads, and whether it may.
//!
//! A leadership that the metadata takes away ends when it is applied in memory; one that it gives begins when it is on the
//! disk. Either costs what changed, not what there is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Effect, Leadership, Place, StorageCore};
use crate::metadata::{History, Partition, Record, StorageNode};
use crate::types::{LeaderEpoch, Monotonic, PartitionId, StorageId, TopicId, Version};

#[derive(Default)]
pub(super) struct Leads {
    held: BTreeMap<Place, LeaderEpoch>,
    /// Partitions that a change names, not looked at yet.
    touched: BTreeSet<Place>,
    /// Topics of which more than single partitions changed.
    topics: BTreeSet<TopicId>,
    /// Topics that somebody deleted, as long as replicas of theirs are to be given up.
    pub(super) deleted: BTreeSet<TopicId>,
    /// Some storage node changed.
    pub(super) nodes_changed: bool,
    lost: Vec<Leadership>,
    /// Begin when this version is on the disk.
    gaining: VecDeque<(Version, Leadership)>,
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
                Record::TopicDeleted { topic_id } => {
                    self.topics.insert(*topic_id);
                    self.deleted.insert(*topic_id);
                }
                Record::TopicCreated { topic_id, .. }
                | Record::PartitionsAdded { topic_id, .. }
                | Record::TopicConfigured { topic_id, .. } => {
                    self.topics.insert(*topic_id);
                }
                Record::PartitionsChanged { .. } | Record::PartitionsMoved { .. } => {
                    self.touched.extend(record.changed_partitions().map(|(topic, number, _)| (topic, number)));
                }
                // A restore fences every node.
                Record::ClusterRestored { .. }
                | Record::StorageRegistered { .. }
                | Record::StorageStateChanged { .. }
                | Record::StorageReplaced { .. }
                | Record::StorageRemoved { .. } => self.nodes_changed = true,
                Record::ClusterFounded { .. }
                | Record::ControllerElected { .. }
                | Record::SnapshotCommitted { .. }
                | Record::PairingChanged { .. }
                | Record::NoOp {} => {}
            }
        }
    }

    /// Everything is to be looked at, after the history was replaced.
    fn touched_all(&mut self, history: &History) {
        self.topics.extend(history.image().into_iter().flat_map(|image| image.topics.keys().copied()));
        self.topics.extend(self.held.keys().map(|(topic, _)| *topic));
        self.gaining.clear();
        self.nodes_changed = true;
    }

    /// Looks at what was touched, and says what that was.
    fn look(&mut self, history: &History, me: Option<StorageId>) -> BTreeSet<Place> {
        let image = history.image();
        for topic in std::mem::take(&mut self.topics) {
            let count =
                image.and_then(|image| image.topics.get(&topic)).map_or(0, |topic| topic.partitions.len() as u32);
            let known = self.held.range((topic, 0)..=(topic, PartitionId::MAX)).map(|(place, _)| *place);
            self.touched.extend(known.chain((0..count).map(|partition| (topic, partition))));
        }
        let version = history.position().version;
        let touched = std::mem::take(&mut self.touched);
        for place in &touched {
            let partition = image.and_then(|image| image.partition(place.0, place.1));
            self.look_at(*place, partition, version, me);
        }
        touched
    }

    fn look_at(&mut self, place: Place, partition: Option<&Partition>, version: Version, me: Option<StorageId>) {
        let led = partition.filter(|partition| me.is_some() && partition.leader == me);
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
        self.serves() && !self.ended && self.session.lease_holds(now)
    }

    /// Whether the metadata has this incarnation working.
    pub fn serves(&self) -> bool {
        self.me().is_some_and(|node| {
            node.state.serves()
                && node.incarnation == self.identity.incarnation
                && Some(node.epoch) == self.registration.node_epoch
        })
    }

    /// Whoever has just become active asks for its lease at once: until then what it leads is led by nobody.
    pub(super) fn hasten_lease(&mut self, now: Monotonic) {
        let serves = self.serves();
        let news = serves && !self.session.served && self.is_saved();
        self.session.served = serves && (self.session.served || news);
        if news && !self.session.lease_holds(now) {
            self.session.hasten(now);
        }
    }

    /// Until when the node may serve what it leads unless something else is told; None: it may not.
    pub fn may_lead_until(&self, now: Monotonic) -> Option<Monotonic> {
        self.session.lease_until().filter(|_| self.may_lead(now))
    }

    pub(super) fn tell_may_lead(&mut self, now: Monotonic, out: &mut Vec<Effect>) {
        let may = self.may_lead(now);
        if may != self.said_may_lead {
            self.said_may_lead = may;
            out.push(Effect::MayLead(may));
        }
    }

    /// Looks at everything, after the history was replaced.
    pub(super) fn reread(&mut self) {
        self.leads.touched_all(&self.history);
        self.assignments.reread();
        self.look();
    }

    fn look(&mut self) {
        let (me, version) = (self.my_id(), self.history.position().version);
        for topic in &self.leads.topics {
            self.leads.touched.extend(self.assignments.of_topic(*topic));
        }
        let touched = self.leads.look(&self.history, me);
        self.assignments.touched(touched, self.history.image(), me, version);
    }

    pub(super) fn announce_lost(&mut self, out: &mut Vec<Effect>) {
        self.look();
        let lost = std::mem::take(&mut self.leads.lost);
        self.announce_resigned(&lost, out);
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
