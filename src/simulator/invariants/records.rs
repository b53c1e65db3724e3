//! What was acknowledged stays, what was shown never changes, and nobody cuts off what is committed.
//!
//! Records are committed in the order and with the leader epoch in which some leader's high watermark passed them. Every
//! later leader has to have them, unless its own disk was set back, or its topic allowed an unclean election since: from then
//! on what that leader has is what is committed. So it is where a history was restored from before somebody left the in-sync
//! replicas. Partitions of which a stream that went back knew more are no longer looked at: what was decided meanwhile is void, and was
//! acted upon.

use std::collections::{BTreeMap, BTreeSet};

use super::{Checker, Place};
use crate::metadata::{Image, Partition, config};
use crate::simulator::disks::Folder;
use crate::simulator::records::{Record, SimLog};
use crate::simulator::world::{CONTROLLERS, COPY, Proc, World, name};
use crate::storage::replicas::{Acks, Log};
use crate::types::{LeaderEpoch, StorageId};

#[derive(Default)]
pub struct Records {
    places: BTreeMap<Place, Truth>,
    /// Folders that were set back or copied, with the partitions of which they may lack something since.
    doubtful: BTreeMap<usize, BTreeSet<Place>>,
    /// The same of those that the metadata tells from what they were: they lead nothing of it.
    set_back: BTreeMap<usize, BTreeSet<Place>>,
    /// The folder of which a copy runs, and the copy: either may be the one that counts.
    copied: Option<[usize; 2]>,
    joined: Vec<(Place, StorageId)>,
    /// What each producer writes to.
    producers: BTreeMap<u32, Place>,
    pub seen: Vec<&'static str>,
    /// A disk was emptied, set back or copied.
    disks_changed: bool,
}

#[derive(Default)]
struct Truth {
    committed: Vec<(Record, LeaderEpoch)>,
    offsets: BTreeMap<(u32, u32), i64>,
    /// Leader epochs that began with an unclean election.
    unclean: BTreeSet<LeaderEpoch>,
    /// Leader epochs that began with a restore of what was known before others left the in-sync replicas.
    restored: BTreeSet<LeaderEpoch>,
    /// The newest state that was ever stored.
    leader_epoch: LeaderEpoch,
    isr: Vec<StorageId>,
    is_deleted: bool,
    /// What was restored does not have it.
    is_unknown: bool,
    /// By the newest leader.
    shown: (LeaderEpoch, i64),
    /// Rises where committed records were lost and might be.
    generation: u64,
    is_excused: bool,
}

impl Truth {
    /// The first committed record of an older leader epoch that a leader of `epoch` lacks.
    fn lacking(&self, log: &SimLog, epoch: LeaderEpoch) -> Option<(usize, Record, LeaderEpoch)> {
        let start = usize::try_from(log.start().0).unwrap_or(0);
        let all = self.committed.iter().enumerate().skip(start);
        let found =
            all.filter(|(_, (_, by))| *by < epoch).find(|(at, (record, _))| log.get(*at as i64) != Some(record));
        found.map(|(at, (record, by))| (at, *record, *by))
    }

    /// Whether later leaders may lack what this epoch's makes of its records from now on.
    fn is_past(&self, epoch: LeaderEpoch) -> bool {
        self.is_past_restore(epoch) || self.unclean.last().is_some_and(|unclean| *unclean > epoch)
    }

    /// Whoever led before a restore may have a lease for a while, and does not know that its in-sync replicas are void.
    fn is_past_restore(&self, epoch: LeaderEpoch) -> bool {
        self.restored.last().is_some_and(|restored| *restored > epoch)
    }

    fn lose(&mut self, from: usize, epoch: LeaderEpoch) {
        for (record, _) in self.committed.drain(from..) {
            self.offsets.remove(&(record.producer, record.sequence));
        }
        self.generation += 1;
        self.shown = (epoch, self.shown.1.min(from as i64));
    }
}

impl Checker {
    pub fn written(&self) -> Vec<Place> {
        let written = self.records.places.iter().filter(|(_, truth)| !truth.committed.is_empty() && !truth.is_excused);
        written.map(|(place, _)| *place).collect()
    }

    pub fn producer_writes_to(&mut self, producer: u32, place: Place) {
        self.records.producers.insert(producer, place);
    }

    /// Whether what a leader of this epoch shows may be lost.
    pub fn is_past_restore(&self, place: Place, epoch: LeaderEpoch) -> bool {
        self.records.places.get(&place).is_some_and(|truth| truth.is_past_restore(epoch))
    }

    pub fn generation(&self, place: Place) -> Option<u64> {
        Some(self.records.places.get(&place)?.generation)
    }

    pub(super) fn partition_stored(&mut self, place: Place, old: Option<&Partition>, new: &Partition, image: &Image) {
        let truth = self.records.places.entry(place).or_default();
        let members: Vec<_> = new.isr().collect();
        let moves = new.leader_epoch > truth.leader_epoch;
        if std::mem::take(&mut truth.is_unknown) {
            truth.restored.insert(new.leader_epoch);
        }
        if moves && image.is_recovering(place.0, place.1) && image.topics[&place.0].unclean_election() {
            truth.unclean.insert(new.leader_epoch);
        }
        if let Some(old) = old.filter(|old| old.leader == new.leader && new.leader.is_some()) {
            let joined = members.iter().filter(|node| !old.in_sync(**node));
            self.records.joined.extend(joined.map(|node| (place, *node)));
            if members.len() > old.isr().count() {
                self.records.seen.push("in-sync replicas grow");
            } else if old.isr().any(|node| !members.contains(&node) && image.is_active(node)) {
                self.records.seen.push("in-sync replicas shrink");
            }
        }
        truth.leader_epoch = truth.leader_epoch.max(new.leader_epoch);
        truth.isr = members;
    }

    pub(super) fn topic_deleted(&mut self, topic: crate::types::TopicId) {
        let all = self.records.places.range_mut((topic, 0)..=(topic, u32::MAX));
        all.for_each(|(_, truth)| truth.is_deleted = true);
    }

    /// The history stands where it stood before. What was decided since is void, and was acted upon.
    pub(super) fn records_went_back(&mut self) {
        let image = self.history.image().cloned();
        for (place, truth) in &mut self.records.places {
            let held = image.as_ref().and_then(|image| image.partition(place.0, place.1));
            let same = held.is_some_and(|held| {
                held.leader_epoch == truth.leader_epoch && held.isr().eq(truth.isr.iter().copied())
            });
            truth.is_excused |= !same || truth.is_deleted;
        }
        self.doubt_all_set_back();
    }

    /// Whoever is in sync by what was restored, and was not by what was lost, may lack records; and of a topic that was deleted
    /// there may be none.
    pub(super) fn records_restored(&mut self, image: &Image) {
        for (place, truth) in &mut self.records.places {
            truth.is_unknown = image.partition(place.0, place.1).is_none();
            let Some(held) = image.partition(place.0, place.1) else { continue };
            if std::mem::take(&mut truth.is_deleted) || held.isr().any(|node| !truth.isr.contains(&node)) {
                truth.restored.insert(held.leader_epoch);
                self.records.seen.push("in-sync replicas restored from before some left");
            }
            (truth.leader_epoch, truth.isr) = (held.leader_epoch, held.isr().collect());
        }
        self.doubt_all_set_back();
    }

    /// A folder is an earlier state of what it was. Where it does not know of the last time that it served, that is recognised.
    pub fn disk_set_back(&mut self, folder: usize, state: &Folder) {
        self.records.disks_changed = true;
        let node = state.id.and_then(|id| self.image()?.storage.get(&StorageId(id)));
        let served = node.and_then(|node| node.served).filter(|(served, _)| *served == state.directory);
        if !self.lost && served.is_some_and(|(_, epoch)| state.node_epoch.is_some_and(|known| known < epoch)) {
            let places = self.records.places.keys().copied().collect();
            self.records.set_back.insert(folder, places);
            self.records.seen.push("disk set back that is recognised");
        } else {
            self.doubt(folder);
        }
    }

    /// By what the metadata says now they may not be recognised.
    fn doubt_all_set_back(&mut self) {
        std::mem::take(&mut self.records.set_back).into_keys().for_each(|folder| self.doubt(folder));
    }

    /// From here on this folder may lack what is committed.
    pub fn doubt(&mut self, folder: usize) {
        self.records.disks_changed = true;
        self.records.doubtful.entry(folder).or_default().extend(self.records.places.keys().copied());
    }

    /// Until then the copy, or what it is a copy of, lacks what the other is given.
    pub fn copy_runs(&mut self, folders: Option<[usize; 2]>) {
        for folder in self.records.copied.into_iter().chain(folders).flatten() {
            self.doubt(folder);
        }
        self.records.copied = folders;
    }

    pub fn disk_emptied(&mut self) {
        self.records.disks_changed = true;
    }

    fn is_doubtful(&self, folder: usize, place: Place) -> bool {
        let records = &self.records;
        let is_copied = records.copied.is_some_and(|folders| folders.contains(&folder));
        is_copied || records.doubtful.get(&folder).is_some_and(|places| places.contains(&place))
    }
}

impl World {
    /// Of a folder, be it in use or not.
    fn log_in(&self, proc: Proc, place: Place) -> Option<&SimLog> {
        let running = self.nodes[proc - CONTROLLERS].as_ref().and_then(|node| node.replicas.engine.log(place));
        running.or_else(|| self.folders[self.hosts[proc].folder].log(place))
    }

    /// Who has the directory that the metadata names: of a directory and its copy, the one that is registered.
    fn holder(&self, image: &Image, storage: StorageId) -> Option<Proc> {
        let node = image.storage.get(&storage)?;
        let directory = node.directory?;
        let holders = (CONTROLLERS..=COPY).filter(|proc| {
            let folder = &self.folders[self.hosts[*proc].folder];
            folder.directory == directory && folder.id == Some(storage.0)
        });
        let is_registered = |proc: &Proc| self.hosts[*proc].up && self.hosts[*proc].incarnation == node.incarnation;
        holders.clone().find(is_registered).or_else(|| holders.clone().next())
    }

    /// After every event of a node's replicas.
    pub fn check_records(&mut self, proc: Proc) {
        let now = self.clock(proc);
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
        let moved = node.replicas.engine.take_moved();
        let mut led = Vec::new();
        for (place, _, high_watermark) in node.replicas.engine.held().filter(|(place, ..)| moved.contains(place)) {
            if let Some(how) = node.replicas.engine.led(place) {
                led.push((place, how.leader_epoch, high_watermark.0, node.replicas.led(now, place).and(how.visible)));
            }
        }
        for (place, epoch, high_watermark, visible) in led {
            self.commit(proc, place, epoch, high_watermark);
            let Some(truth) = self.checker.records.places.get_mut(&place).filter(|truth| !truth.is_excused) else {
                continue;
            };
            let counts = epoch >= truth.shown.0 && !truth.is_past_restore(epoch);
            let Some(visible) = visible.filter(|_| counts) else { continue };
            let (before, shown) = truth.shown;
            truth.shown = (epoch, visible.0);
            if visible.0 < shown {
                let words = format!("{} shows {place:?} up to {visible} in {epoch}, it was {shown}", name(proc));
                self.checker.break_rule(9, || format!("{words} in {before}"));
            }
        }
        self.check_cuts(proc);
        self.check_agreement(proc);
    }

    /// A leader's high watermark is there now.
    fn commit(&mut self, proc: Proc, place: Place, epoch: LeaderEpoch, end: i64) {
        let Some(node) = &self.nodes[proc - CONTROLLERS] else { return };
        let Some(log) = node.replicas.engine.log(place) else { return };
        let truth = self.checker.records.places.entry(place).or_default();
        // What a leader before an unclean election makes of it later on is lost, and said to nobody: it has no lease.
        if truth.is_excused || truth.is_past(epoch) {
            return;
        }
        let first = truth.committed.len() as i64;
        let last = truth.committed.last().map(|(record, _)| record);
        if first > log.start().0 && end >= first && log.get(first - 1) != last {
            let words = format!("{} commits {place:?} up to {end} in {epoch}", name(proc));
            let found = format!("it has {:?} at {}, and {last:?} is committed", log.get(first - 1), first - 1);
            return self.checker.break_rule(9, || format!("{words}: {found}"));
        }
        let (mut twice, mut strange, mut fresh) = (None, None, Vec::new());
        for offset in first..end {
            let Some(record) = log.get(offset) else { break };
            if self.checker.records.producers.get(&record.producer) != Some(&place) {
                strange = Some((*record, offset));
            }
            truth.committed.push((*record, epoch));
            if let Some(before) = truth.offsets.insert((record.producer, record.sequence), offset) {
                twice = Some((*record, before, offset));
            }
            fresh.push((offset, *record));
        }
        if let Some((record, offset)) = strange {
            let words = format!("{} commits {record:?} at {offset} of {place:?}", name(proc));
            return self.checker.break_rule(9, || format!("{words}, which was written to another topic"));
        }
        if let Some((record, before, offset)) = twice {
            let words = format!("{record:?} is in {place:?} at {before} and again at {offset}");
            return self.checker.break_rule(9, || words);
        }
        if !fresh.is_empty() {
            self.check_in_sync(proc, place, epoch, &fresh);
            self.check_later_leaders(proc, place, epoch);
        }
    }

    /// What is committed is on the disk of every in-sync replica.
    fn check_in_sync(&mut self, by: Proc, place: Place, epoch: LeaderEpoch, fresh: &[(i64, Record)]) {
        let Some(image) = self.checker.image().filter(|_| !self.checker.lost) else { return };
        let partition = image.partition(place.0, place.1).filter(|partition| partition.leader_epoch == epoch);
        let members = partition.into_iter().flat_map(Partition::isr);
        let members: Vec<_> = members.filter_map(|member| Some((member, self.holder(image, member)?))).collect();
        for (member, proc) in members {
            let folder = self.hosts[proc].folder;
            let is_set_back = self.checker.records.set_back.get(&folder).is_some_and(|lost| lost.contains(&place));
            if is_set_back || self.checker.is_doubtful(folder, place) {
                continue;
            }
            let log = self.log_in(proc, place);
            let has = |(offset, record): &(i64, Record)| {
                log.is_some_and(|log| {
                    log.start().0 > *offset || (log.durable() > *offset && log.get(*offset) == Some(record))
                })
            };
            if let Some((offset, record)) = fresh.iter().find(|fresh| !has(fresh)) {
                let found = log.map(|log| (log.start(), log.durable(), log.end()));
                let words = format!("{} commits {record:?} at {offset} of {place:?} in {epoch}", name(by));
                let words = format!("{words}, and in-sync replica {member} has {found:?} of it on its disk");
                return self.checker.break_rule(9, || words);
            }
        }
    }

    /// Whoever leads in a later epoch already has it.
    fn check_later_leaders(&mut self, by: Proc, place: Place, epoch: LeaderEpoch) {
        let later = |proc: &Proc| {
            let node = self.nodes[*proc - CONTROLLERS].as_ref()?;
            let led = node.replicas.engine.led(place).filter(|led| led.leader_epoch > epoch)?;
            Some((*proc, led.leader_epoch))
        };
        let later: Vec<_> = (CONTROLLERS..=COPY).filter(|proc| *proc != by).filter_map(|proc| later(&proc)).collect();
        for (proc, epoch) in later {
            self.check_begins(proc, place, epoch);
        }
    }

    /// A node may lead from here on.
    pub fn check_all_begin(&mut self, proc: Proc) {
        let Some(node) = &self.nodes[proc - CONTROLLERS] else { return };
        let engine = &node.replicas.engine;
        let led = engine.held().filter_map(|(place, ..)| Some((place, engine.led(place)?.leader_epoch)));
        led.collect::<Vec<_>>().into_iter().for_each(|(place, epoch)| self.check_begins(proc, place, epoch));
    }

    /// A leader begins, with all that was committed before. Without a lease it says nothing to anybody: a new directory may take
    /// itself for the leader that its id was before.
    pub fn check_begins(&mut self, proc: Proc, place: Place, epoch: LeaderEpoch) {
        let folder = self.hosts[proc].folder;
        let Some(node) = &self.nodes[proc - CONTROLLERS] else { return };
        let Some(log) = node.replicas.engine.log(place).filter(|_| node.replicas.may_lead) else { return };
        let is_doubtful = self.checker.is_doubtful(folder, place);
        let Some(truth) = self.checker.records.places.get_mut(&place).filter(|truth| !truth.is_excused) else { return };
        let Some((at, record, by)) = truth.lacking(log, epoch) else { return };
        let since = |epochs: &BTreeSet<LeaderEpoch>| epochs.range(by..=epoch).any(|began| *began > by);
        let kind = match (since(&truth.unclean), since(&truth.restored)) {
            (true, _) => Some("records lost by an unclean election"),
            (false, true) => Some("records lost by a restore"),
            (false, false) => is_doubtful.then_some("records lost with a disk"),
        };
        if let Some(kind) = kind {
            truth.lose(at, epoch);
            return self.seen.event(kind);
        }
        let has = log.get(at as i64).copied();
        let ends = (log.start(), log.durable(), log.end());
        let words = format!("{} leads {place:?} in {epoch} with {ends:?} and {has:?} at {at}", name(proc));
        self.checker.break_rule(9, || format!("{words}: {record:?} was committed in {by}"));
    }

    /// The client is told that its record is safe.
    pub fn check_acknowledgement(&mut self, proc: Proc, place: Place, record: &Record, acks: Acks, offset: i64) {
        let Some(node) = &self.nodes[proc - CONTROLLERS] else { return };
        if !node.replicas.may_lead {
            self.checker.break_rule(3, || format!("{} acknowledges {record:?} without a lease", name(proc)));
            return;
        }
        let (Some(led), Some(log)) = (node.replicas.engine.led(place), node.replicas.engine.log(place)) else { return };
        let held = log.get(offset).copied();
        let same = |held: &Record| {
            (held.producer, held.sequence, held.value) == (record.producer, record.sequence, record.value)
        };
        let is_stored = log.start().0 > offset || (held.as_ref().is_some_and(same) && log.durable() > offset);
        if !is_stored {
            let words = format!("{} acknowledges {record:?} at {offset} of {place:?}: {held:?}", name(proc));
            return self.checker.break_rule(9, || words);
        }
        if acks == Acks::All {
            self.commit(proc, place, led.leader_epoch, offset + 1);
            self.check_copies(proc, place, offset);
        }
        let truth = self.checker.records.places.get(&place);
        let looked_at = |truth: &&Truth| !truth.is_excused && !truth.is_past_restore(led.leader_epoch);
        let Some(truth) = truth.filter(looked_at) else { return };
        let committed = truth.committed.get(offset as usize).map(|(record, _)| *record);
        if acks == Acks::All && !committed.as_ref().is_some_and(same) {
            let words = format!("{} acknowledges {record:?} at {offset} of {place:?}", name(proc));
            self.checker.break_rule(9, || format!("{words}, where {committed:?} is committed"));
        }
    }

    /// It is on as many disks as the topic wants.
    fn check_copies(&mut self, by: Proc, place: Place, offset: i64) {
        let records = &self.checker.records;
        let is_excused = records.places.get(&place).is_none_or(|truth| truth.is_excused);
        if is_excused || records.disks_changed || self.checker.lost {
            return;
        }
        let Some(image) = self.checker.image() else { return };
        let Some(partition) = image.partition(place.0, place.1) else { return };
        let wanted = config::min_insync_replicas(&image.topics[&place.0].config, partition.replicas.len());
        let has =
            |proc: &Proc| self.log_in(*proc, place).is_some_and(|log| log.start().0 > offset || log.durable() > offset);
        let copies = (CONTROLLERS..COPY).filter(has).count();
        if copies < wanted {
            let words = format!("{} acknowledges {offset} of {place:?} with {copies} copies", name(by));
            self.checker.break_rule(9, || format!("{words}, and its topic wants {wanted}"));
        }
    }

    /// Who follows cuts off only what was never committed.
    fn check_cuts(&mut self, proc: Proc) {
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
        let held: Vec<_> = node.replicas.engine.held().filter(|(_, log, _)| log.cuts > 0).map(|held| held.0).collect();
        for place in held {
            let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
            let follows_in = node.replicas.leader_epoch(place);
            let Some(log) = node.replicas.engine.log_mut(place) else { continue };
            let (removed, start) = (std::mem::take(&mut log.removed), log.start().0);
            if std::mem::take(&mut log.restarted) {
                self.seen.event("log begun anew behind what was deleted");
            } else if !removed.is_empty() {
                self.seen.event("log cut off");
            }
            let truth = self.checker.records.places.get(&place).filter(|truth| !truth.is_excused);
            let Some(truth) = truth else { continue };
            // What only a later leader committed, one of before may lack: nobody who follows that one is in sync any more.
            let is_committed = |(offset, record): &&(i64, Record)| {
                let committed = truth.committed.get(*offset as usize).filter(|(_, by)| Some(*by) <= follows_in);
                *offset >= start && committed.is_some_and(|(held, _)| held == record)
            };
            if let Some((offset, record)) = removed.iter().find(is_committed).copied() {
                let words = format!("{} cuts off {record:?} at {offset} of {place:?}", name(proc));
                self.checker.break_rule(15, || format!("{words}, which is committed"));
            }
        }
    }

    /// Who cuts off what is damaged, committed or not, is out of sync.
    pub fn check_mended(&mut self, proc: Proc, place: Place, removed: &[(i64, Record)]) {
        let Some(me) = self.nodes[proc - CONTROLLERS].as_ref().and_then(|node| node.core.identity().storage) else {
            return;
        };
        let truth = self.checker.records.places.get(&place).filter(|truth| !truth.is_excused && !truth.is_deleted);
        let is_committed = |(offset, record): &&(i64, Record)| {
            truth.is_some_and(|truth| truth.committed.get(*offset as usize).is_some_and(|(held, _)| held == record))
        };
        let lost = removed.iter().find(is_committed);
        let image = self.checker.image().filter(|image| !self.checker.lost && self.holder(image, me) == Some(proc));
        let partition = image.and_then(|image| image.partition(place.0, place.1));
        let counts = partition.is_some_and(|partition| partition.in_sync(me));
        if let Some((offset, record)) = lost.filter(|_| counts) {
            let words = format!("{} cuts off {record:?} at {offset} of its damaged {place:?}", name(proc));
            self.checker.break_rule(15, || format!("{words}, which is committed, and is in sync"));
        }
    }

    /// Below the high watermark all replicas are the same.
    fn check_agreement(&mut self, proc: Proc) {
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
        let replicas = &mut node.replicas;
        let mut broken = None;
        for (place, log, high_watermark) in replicas.engine.held() {
            let known = replicas.checked.get(&place).copied().unwrap_or_default();
            if known.1 >= high_watermark.0 {
                continue;
            }
            let Some(truth) = self.checker.records.places.get(&place).filter(|truth| !truth.is_excused) else {
                continue;
            };
            // What was committed once, and is lost, is below the high watermark of who has not heard of it; and so is what a leader
            // makes of its records who has not heard of an unclean election.
            let is_past = replicas.engine.led(place).is_some_and(|led| truth.is_past(led.leader_epoch));
            let from = if known.0 == truth.generation && !is_past { known.1 } else { high_watermark.0 };
            let from = from.min(high_watermark.0).max(log.start().0);
            // What it found committed as a leader that had no lease any more is looked at once somebody says so.
            let to = high_watermark.0.min(truth.committed.len() as i64);
            replicas.checked.insert(place, (truth.generation, to.max(from)));
            for offset in from..to {
                let committed = truth.committed.get(offset as usize).map(|(record, _)| record);
                if log.get(offset) != committed {
                    broken = Some((place, offset, log.get(offset).copied(), committed.copied()));
                }
            }
        }
        if let Some((place, offset, has, committed)) = broken {
            let words = format!("{} has {has:?} at {offset} of {place:?}, below its high watermark", name(proc));
            self.checker.break_rule(9, || format!("{words}: {committed:?} is committed"));
        }
    }

    /// After a change of the metadata: who joined the in-sync replicas has everything.
    pub(super) fn check_joined(&mut self) {
        for kind in std::mem::take(&mut self.checker.records.seen) {
            self.seen.event(kind);
        }
        for (place, member) in std::mem::take(&mut self.checker.records.joined) {
            let Some(image) = self.checker.image() else { return };
            let Some(registered) = image.storage.get(&member) else { continue };
            let is_it = |proc: &Proc| self.hosts[*proc].up && self.hosts[*proc].incarnation == registered.incarnation;
            let Some(proc) = (CONTROLLERS..=COPY).find(is_it).filter(|_| !self.hosts[COPY].up) else { continue };
            let folder = self.hosts[proc].folder;
            let truth = self.checker.records.places.get(&place);
            let has = self.log_in(proc, place).zip(truth).is_some_and(|(log, truth)| {
                truth.lacking(log, LeaderEpoch(u32::MAX)).is_none() && log.durable() >= truth.committed.len() as i64
            });
            if has {
                let records = &mut self.checker.records;
                let lacking = [records.doubtful.get_mut(&folder), records.set_back.get_mut(&folder)];
                lacking.into_iter().flatten().for_each(|places| _ = places.remove(&place));
            }
        }
    }

    /// In the end everything is on every replica of who is there.
    pub(super) fn are_replicas_whole(&self, image: &Image) -> Result<(), String> {
        for (place, truth) in self.checker.records.places.iter().filter(|(_, truth)| !truth.is_excused) {
            let Some(partition) = image.partition(place.0, place.1) else { continue };
            let Some(leader) = partition.leader.and_then(|leader| self.holder(image, leader)) else { continue };
            let node = self.nodes[leader - CONTROLLERS].as_ref();
            let led = node.and_then(|node| node.replicas.led(self.clock(leader), *place));
            let (Some(led), Some(log)) = (led, self.log_in(leader, *place)) else {
                return Err(format!("{} does not lead {place:?}", name(leader)));
            };
            let (visible, end) = (led.visible, log.end());
            if visible != Some(end) || truth.committed.len() as i64 != end.0 {
                let committed = truth.committed.len();
                return Err(format!("{place:?} ends at {end}, shown is {visible:?}, committed {committed}"));
            }
            for member in partition.isr() {
                let Some(proc) = self.holder(image, member) else { continue };
                let Some(copy) = self.log_in(proc, *place) else {
                    return Err(format!("{} lacks {place:?}", name(proc)));
                };
                let from = copy.start().0.max(log.start().0);
                let same = copy.end() == end && (from..end.0).all(|offset| copy.get(offset) == log.get(offset));
                if !same {
                    return Err(format!("{} has another {place:?} than {}", name(proc), name(leader)));
                }
            }
        }
        Ok(())
    }
}
