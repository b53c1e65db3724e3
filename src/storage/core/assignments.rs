//! Which replicas this node holds, and with whom: told as the metadata on its disk changes, a leadership that was lost at once.
//!
//! It costs what changed, not what there is.

use std::collections::{BTreeMap, BTreeSet};

use super::{Assignment, Effect, Leadership, Member, Peer, Place, StorageCore, Unassigned};
use crate::metadata::{Image, config};
use crate::types::{PartitionId, StorageId, TopicId, Version};

#[derive(Default)]
pub(super) struct Assignments {
    /// Partitions that changed, with the version that must be on the disk before it is told.
    changed: BTreeMap<Place, Version>,
    /// What was told.
    held: BTreeSet<Place>,
    member: Option<Member>,
}

impl Assignments {
    /// Everything is to be looked at: what is held as well, which the history may not have any more.
    pub(super) fn reread(&mut self) {
        self.changed.extend(self.held.iter().map(|place| (*place, Version::default())));
    }

    /// What was told of this topic.
    pub(super) fn of_topic(&self, topic: TopicId) -> impl Iterator<Item = Place> + '_ {
        self.held.range((topic, 0)..=(topic, PartitionId::MAX)).copied()
    }

    /// These partitions changed with this version. Those of others are passed over.
    pub(super) fn touched(
        &mut self,
        places: impl IntoIterator<Item = Place>,
        image: Option<&Image>,
        me: Option<StorageId>,
        version: Version,
    ) {
        for place in places {
            if self.held.contains(&place) || assignment(image, place, me).is_some() {
                self.changed.insert(place, version);
            }
        }
    }
}

impl StorageCore {
    /// Told before the disk has it, so that it serves nothing that another node may lead already.
    pub(super) fn announce_resigned(&mut self, lost: &[Leadership], out: &mut Vec<Effect>) {
        let (image, me) = (self.history.image(), self.my_id());
        let resigned = lost.iter().filter_map(|lost| {
            let place = (lost.topic, lost.partition);
            let held = self.assignments.held.contains(&place).then_some(place)?;
            Some((held, Assignment { leader: None, ..assignment(image, place, me)? }))
        });
        let assigned: Vec<_> = resigned.collect();
        if !assigned.is_empty() {
            out.push(Effect::Replicas { assigned, unassigned: Vec::new() });
        }
    }

    pub(super) fn announce_assignments(&mut self, out: &mut Vec<Effect>) {
        self.announce_member(out);
        if self.assignments.member.is_none() {
            return;
        }
        let (image, me) = (self.history.image(), self.my_id());
        let assignments = &mut self.assignments;
        if std::mem::take(&mut self.leads.nodes_changed)
            && let Some(image) = image
        {
            let peer = |epoch, active| Peer { node_epoch: epoch, active };
            let peers = image.storage.iter().map(|(id, node)| (*id, peer(node.epoch, image.is_active(*id))));
            out.push(Effect::Peers(peers.collect()));
        }
        let saved = self.disk.position.version;
        let (mut assigned, mut unassigned) = (Vec::new(), Vec::new());
        assignments.changed.retain(|place, version| {
            if *version > saved {
                return true;
            }
            match assignment(image, *place, me) {
                Some(assignment) => {
                    assignments.held.insert(*place);
                    assigned.push((*place, assignment));
                }
                None if assignments.held.remove(place) => {
                    let is_deliberate = self.leads.deleted.contains(&place.0)
                        || image.is_some_and(|image| image.topics.contains_key(&place.0));
                    unassigned.push(Unassigned { place: *place, is_deliberate });
                }
                None => {}
            }
            false
        });
        if assignments.changed.is_empty() {
            self.leads.deleted.clear();
        }
        if !assigned.is_empty() || !unassigned.is_empty() {
            out.push(Effect::Replicas { assigned, unassigned });
        }
    }

    fn announce_member(&mut self, out: &mut Vec<Effect>) {
        let (Some(cluster), Some(storage), Some(node_epoch)) =
            (self.identity.cluster, self.my_id(), self.registration.node_epoch)
        else {
            return;
        };
        let member = Member { cluster, storage, node_epoch };
        if self.assignments.member != Some(member) {
            self.assignments.member = Some(member);
            self.leads.nodes_changed = true;
            out.push(Effect::Member(member));
        }
    }
}

/// None: this node holds no replica of it.
fn assignment(image: Option<&Image>, place: Place, me: Option<StorageId>) -> Option<Assignment> {
    let topic = image?.topics.get(&place.0)?;
    let partition = topic.partitions.get(place.1 as usize)?;
    me.filter(|me| partition.replicas.contains(me))?;
    Some(Assignment {
        leader: partition.leader,
        leader_epoch: partition.leader_epoch,
        partition_epoch: partition.epoch,
        isr: partition.isr().collect(),
        replicas: partition.replicas.to_vec(),
        min_insync: config::min_insync_replicas(&topic.config, partition.replicas.len()),
        recovering: topic.recovering.contains(&place.1),
    })
}
