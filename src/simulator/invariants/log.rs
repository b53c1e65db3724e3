//! What holds of the history itself: of each change, whoever wrote it.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::{Checker, Step};
use crate::metadata::{Change, History, Image, Offered, Partition, Record, invariants, read_snapshot};
use crate::simulator::queue::Time;
use crate::simulator::stream::Message;
use crate::simulator::world::World;
use crate::types::{Position, Version};

impl World {
    /// A message is stored for good: from now on anybody may see it.
    pub fn check_stored(&mut self, sequence: u64, message: &Message) {
        let now = self.now();
        let before = self.checker.history.image().cloned();
        let offered = self.checker.history.offer(Version(sequence), &message.payload);
        match offered {
            Ok(Offered::Change(change)) => {
                self.checker.change(now, before.as_ref(), &change, message);
                self.check_taken(&change);
                self.note_change(&change);
                self.check_joined();
            }
            Ok(Offered::Known | Offered::Void(_) | Offered::Part) => {}
            Err(error) => self.checker.break_rule(6, || format!("version {sequence} cannot be applied: {error}")),
        }
        let history = self.checker.history.clone();
        self.checker.trail.push(Step { at: now, history });
    }

    fn note_change(&mut self, change: &Change) {
        if change.messages.len() > 1 {
            self.seen.event("change of several messages");
        }
        for record in &change.records {
            if record.changed_partitions().any(|(.., leader)| leader.is_some()) {
                self.seen.event("leaders elected");
            }
            match record {
                Record::NoOp {} => self.seen.event("settled append"),
                Record::SnapshotCommitted { .. } => self.seen.event("snapshot committed"),
                Record::StorageStateChanged { state, .. } => self.seen.event(match state {
                    crate::metadata::NodeState::Fenced => "fence",
                    crate::metadata::NodeState::Active => "unfence",
                    crate::metadata::NodeState::Draining => "drain",
                    crate::metadata::NodeState::Removed => "removal",
                }),
                Record::PairingChanged { .. } => self.seen.event("pairing"),
                Record::PartitionsMoved { .. } => self.seen.event("partitions changed alike"),
                Record::PartitionsChanged { changes, .. } => {
                    if changes.iter().any(|change| change.waits_for.is_some()) {
                        self.seen.event("partition waits for a lost directory");
                    }
                }
                Record::StorageReplaced { .. }
                | Record::StorageRegistered { .. }
                | Record::StorageRemoved { .. }
                | Record::ClusterFounded { .. }
                | Record::ClusterRestored { .. }
                | Record::ControllerElected { .. }
                | Record::TopicCreated { .. }
                | Record::PartitionsAdded { .. }
                | Record::TopicConfigured { .. }
                | Record::TopicDeleted { .. } => {}
            }
        }
    }

    /// The stream was made anew behind a restored image.
    pub fn check_recreated(&mut self, image: &Image, position: Position) {
        self.check_restored_requests(image);
        let source = self.clients.restored.as_ref().map_or(position.version, |plan| plan.source.version);
        let newest =
            self.checker.folders.values().map(|(version, _)| *version).filter(|known| *known < position.version);
        if newest.max() > Some(source) {
            self.seen.event("restored while the newest was away");
        }
        let (now, highest) = (self.now(), self.highest_held());
        let checker = &mut self.checker;
        for (id, topic) in &image.topics {
            for (number, partition) in (0..).zip(topic.partitions.iter()) {
                let given_out =
                    checker.highest.get(&(*id, number)).filter(|(.., version)| *version <= highest).copied();
                let is_above =
                    |(leader_epoch, epoch, _)| partition.leader_epoch > leader_epoch && partition.epoch > epoch;
                if let Some(given_out) = given_out.filter(|given_out| !is_above(*given_out)) {
                    let words = format!("partition {number} of {} is restored with {partition:?}", topic.name);
                    checker.break_rule(4, || format!("{words}, and {given_out:?} were given out"));
                }
            }
        }
        let is_same = checker.strays.contains_key(&(position.version, position.digest.0))
            || checker.at(position.version).is_some_and(|history| history.position() == position);
        if position.version <= highest && !is_same {
            checker.break_rule(2, || format!("a history is restored at {position}, which was given out before"));
        }
        // The same restore again: what was granted on top of the first one is lost with every copy of it.
        checker.epochs_granted.retain(|epoch, _| epoch.0 <= position.version.0);
        for (id, node) in &image.storage {
            checker.node_epochs.insert(*id, node.epoch);
            if let Some(controller) = node.pairing {
                checker.pairings.insert((*id, node.pairing_epoch.0), controller);
            }
        }
        checker.records_restored(image);
        checker.history = History::from_image(image.clone(), position);
        checker.trail.push(Step { at: now, history: checker.history.clone() });
        checker.lost = false;
        checker.restored_at = now;
    }

    /// The highest version that any process has. Of one that none has left, not even in a snapshot, nobody can know.
    fn highest_held(&self) -> Version {
        let on_disk = self.hosts.iter().filter_map(|host| self.checker.folders.get(&host.folder));
        let controllers = self.controllers.iter().flatten().map(|controller| controller.core.history());
        let nodes = self.nodes.iter().flatten().map(|node| node.core.history());
        let held = controllers.chain(nodes).map(|history| history.position().version);
        held.chain(on_disk.map(|(version, _)| *version)).max().unwrap_or_default()
    }

    /// Acknowledged messages after this are gone.
    pub fn check_went_back(&mut self, last: u64) {
        let checker = &mut self.checker;
        let kept = checker.trail.partition_point(|step| step.history.seen().0 <= last);
        for step in checker.trail.drain(kept..) {
            if let Some(image) = step.history.image() {
                let position = step.history.position();
                checker.strays.insert((position.version, position.digest.0), image.clone());
            }
        }
        checker.history = checker.trail.last().map(|step| step.history.clone()).unwrap_or_default();
        checker.lost = true;
        checker.went_back = true;
        checker.records_went_back();
        checker.leaders.retain(|_, (_, version)| version.0 <= last);
        checker.effects.retain(|_, version| version.0 <= last);
        checker.acknowledged.retain(|_, version| version.0 <= last);
        checker.pairings.retain(|(_, epoch), _| *epoch <= last);
        checker.node_epochs.clear();
        checker.epochs_granted.clear();
    }

    pub fn check_wiped(&mut self) {
        self.checker.lost = true;
    }

    /// At the end: the newest snapshot, and what follows it, are what all of it is.
    pub fn check_replay(&mut self) {
        let Some(object) = self.stream.objects.values().next_back() else { return };
        let Ok((image, position)) = read_snapshot(&mut &object[..]) else {
            return self.checker.break_rule(8, || "a snapshot cannot be read".into());
        };
        let mut history = History::from_image(image, position);
        for sequence in position.version.0 + 1..=self.stream.last() {
            let Some(message) = self.stream.get(sequence) else { return };
            if let Err(error) = history.offer(Version(sequence), &message.payload) {
                return self.checker.break_rule(8, || format!("after the snapshot of {position}: {error}"));
            }
        }
        self.seen.event("replay from a snapshot");
        let full = &self.checker.history;
        if full.position() != history.position() || bytes(full) != bytes(&history) {
            let words =
                format!("from the snapshot of {position} it is {:?}, in full {:?}", history.image(), full.image());
            self.checker.break_rule(8, || words);
        }
    }
}

fn bytes(history: &History) -> Bytes {
    let mut bytes = Vec::new();
    if let Some(image) = history.image() {
        crate::metadata::write_snapshot(image, history.position(), &mut bytes).expect("memory takes it");
    }
    bytes.into()
}

impl Checker {
    fn change(&mut self, now: Time, before: Option<&Image>, change: &Change, message: &Message) {
        let Some(image) = self.history.image().cloned() else { return };
        self.check_author(before, &image, change, message);
        if let Err(words) = invariants::check(&image) {
            self.break_rule(5, || format!("at version {}: {words}", change.position.version));
        }
        if let Some(request) = &change.request {
            self.took_effect(request, change.position.version);
        }
        self.check_records(change);
        for (id, topic) in &image.topics {
            let old = before.and_then(|before| before.topics.get(id));
            if old.is_some_and(|old| std::sync::Arc::ptr_eq(old, topic)) {
                continue;
            }
            for (number, partition) in (0..).zip(topic.partitions.iter()) {
                let old = old.and_then(|old| old.partitions.get(number as usize));
                self.check_partition((*id, number), old, partition, &image, (change.position.version, now));
            }
        }
    }

    /// Whoever wrote it was elected last, and nobody else.
    fn check_author(&mut self, before: Option<&Image>, image: &Image, change: &Change, message: &Message) {
        let elected = image.controller.as_ref().map(|controller| controller.incarnation);
        let version = change.position.version;
        if elected != message.author {
            let author = message.author;
            self.break_rule(6, || {
                format!("version {version} ({}) counts, by {author:?}, and {elected:?} was elected", change.cause)
            });
        }
        let epoch = before.map_or(Default::default(), Image::controller_epoch);
        if change.controller_epoch < epoch {
            self.break_rule(6, || {
                format!("version {version} of epoch {} counts, after the election of {epoch}", change.controller_epoch)
            });
        }
    }

    fn check_records(&mut self, change: &Change) {
        let version = change.position.version;
        for record in &change.records {
            match record {
                Record::StorageRegistered { storage, .. } => {
                    let epoch = self.image().and_then(|image| image.storage.get(storage)).map(|node| node.epoch);
                    let before = self.node_epochs.get(storage).copied();
                    if epoch <= before {
                        self.break_rule(10, || {
                            format!("storage node {storage} had {before:?} and registers with {epoch:?}")
                        });
                    }
                    if let Some(epoch) = epoch {
                        self.node_epochs.insert(*storage, epoch);
                    }
                }
                Record::StorageStateChanged { storage, state: crate::metadata::NodeState::Fenced, .. } => {
                    self.fenced_at.insert(*storage, version);
                }
                Record::TopicDeleted { topic_id } => self.topic_deleted(*topic_id),
                Record::PairingChanged { storage, controller: Some(controller) } => {
                    self.paired(*storage, *controller, version);
                }
                _ => {}
            }
        }
    }

    fn check_partition(
        &mut self,
        place: super::Place,
        old: Option<&Partition>,
        new: &Partition,
        image: &Image,
        (version, now): (Version, Time),
    ) {
        let (old_leader, old_epochs) =
            old.map_or((None, None), |old| (old.leader, Some((old.leader_epoch, old.epoch))));
        if let Some((leader_epoch, epoch)) = old_epochs {
            let falls = new.leader_epoch < leader_epoch || new.epoch < epoch;
            let silent = new.leader != old_leader && new.leader_epoch <= leader_epoch;
            if falls || silent {
                self.break_rule(4, || format!("at version {version} {place:?} goes from {old:?} to {new:?}"));
            }
        }
        let members: BTreeSet<_> = old.map(|old| old.isr().collect()).unwrap_or_default();
        let serves = |node| image.storage.get(&node).is_some_and(|node| node.state.serves());
        if let Some(joined) = new.isr().find(|node| !members.contains(node) && !serves(*node)) {
            self.break_rule(5, || format!("at version {version} storage node {joined}, fenced, joins {place:?}"));
        }
        let given_out = self.highest.get(&place).filter(|_| old.is_none() && !self.went_back).copied();
        if let Some(given_out) = given_out.filter(|(leader_epoch, ..)| *leader_epoch >= new.leader_epoch) {
            self.break_rule(4, || {
                format!("at version {version} {place:?} is added as {new:?}; {given_out:?} were given out")
            });
        }
        self.partition_stored(place, old, new, image);
        self.moved.entry((place, new.leader_epoch)).or_insert(now);
        let highest = self.highest.entry(place).or_insert((new.leader_epoch, new.epoch, version));
        *highest = (highest.0.max(new.leader_epoch), highest.1.max(new.epoch), version);
        if let Some(leader) = new.leader {
            let known = self.leaders.entry((place, new.leader_epoch)).or_insert((leader, version)).0;
            if known != leader {
                let epoch = new.leader_epoch;
                self.break_rule(3, || format!("{place:?} has {known} and {leader} as leaders in epoch {epoch}"));
            }
        }
    }
}
