//! What goes wrong, when, and how it is mended. Each seed draws how much of what it gets.

mod strangers;

use super::disks::Folder;
use super::queue::{MS, Time};
use super::rng::Rng;
use super::world::{CONTROLLERS, COPY, Event, Frozen, Mail, NODES, PROCS, Proc, World, name};
use crate::controller::core::Input;
use crate::storage::replicas::Log;

/// So many things happen at least before all is mended.
pub const EVENTS: u64 = 2_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Kill,
    PowerCut,
    Freeze,
    Busy,
    Cut,
    CutOneWay,
    HangUp,
    Rain,
    LostAppendAcks,
    LateAppends,
    SlowStream,
    StreamCrash,
    StreamGoesBack,
    StreamWiped,
    AllWiped,
    NewestAway,
    LeaseForgotten,
    EmptyDisk,
    OldDisk,
    CopiedDisk,
    SyncFails,
    DiskFull,
    SlowDisk,
    RecordsFull,
    RecordsSyncFails,
    RecordsDamaged,
    Strange,
    Terminate,
    TerminateController,
}

/// With how often each comes, relative to the others, at most.
const KINDS: &[(Kind, u64)] = &[
    (Kind::Kill, 30),
    (Kind::PowerCut, 15),
    (Kind::Freeze, 20),
    (Kind::Busy, 10),
    (Kind::Cut, 15),
    (Kind::CutOneWay, 15),
    (Kind::HangUp, 25),
    (Kind::Rain, 20),
    (Kind::LostAppendAcks, 14),
    (Kind::LateAppends, 12),
    (Kind::SlowStream, 8),
    (Kind::StreamCrash, 10),
    (Kind::StreamGoesBack, 2),
    (Kind::StreamWiped, 2),
    (Kind::AllWiped, 1),
    (Kind::NewestAway, 2),
    (Kind::LeaseForgotten, 8),
    (Kind::EmptyDisk, 3),
    (Kind::OldDisk, 8),
    (Kind::CopiedDisk, 3),
    (Kind::SyncFails, 4),
    (Kind::DiskFull, 4),
    (Kind::SlowDisk, 6),
    (Kind::RecordsFull, 8),
    (Kind::RecordsSyncFails, 8),
    (Kind::RecordsDamaged, 12),
    (Kind::Strange, 20),
    (Kind::Terminate, 10),
    (Kind::TerminateController, 5),
];

/// What is over after a while.
pub enum Mend {
    Link(Proc),
    /// The stream is lost while only this controller is left, which has missed the last of it.
    LastWitness(Proc),
    Weather,
    Disk(usize),
    Records(usize),
    /// The power goes once more.
    Power(Proc),
    Copy,
}

pub struct Faults {
    weights: Vec<(Kind, u64)>,
    /// Between two faults, at most.
    pause_ms: u64,
    pub late_advisories: u32,
    pub lost_advisories: u32,
    pub message_limit: usize,
    /// Whether the nodes are told their ids.
    pub with_ids: bool,
    /// Whether the operator restores a lost history from whoever is heard, and does not wait for the others.
    pub hasty: bool,
    pub healed_at: Option<Time>,
    /// When messages began to be lost last.
    pub rained_at: Time,
    /// An earlier state of a folder.
    backup: Option<(Proc, usize)>,
}

impl Faults {
    pub fn draw(rng: &mut Rng) -> Self {
        let mut weights: Vec<_> = Vec::new();
        for (kind, most) in KINDS {
            // Some seeds have none of a kind, so that others are not always interrupted by it.
            let weight = if rng.chance(600) { rng.between(1, *most) } else { 0 };
            weights.push((*kind, weight));
        }
        Self {
            weights,
            pause_ms: rng.pick(&[400, 1_000, 2_500]),
            late_advisories: rng.pick(&[0, 100, 500]),
            lost_advisories: rng.pick(&[0, 0, 200, 1_000]),
            message_limit: rng.pick(&[900_000, 900_000, 1_200]),
            with_ids: rng.chance(600),
            hasty: rng.chance(400),
            healed_at: None,
            rained_at: 0,
            backup: None,
        }
    }
}

impl World {
    pub fn fault_turn(&mut self) {
        if self.faults.healed_at.is_some() {
            return;
        }
        if self.events >= EVENTS {
            return self.heal();
        }
        let pause = self.rng.between(50, self.faults.pause_ms) * MS;
        self.queue.after(pause, Event::Fault);
        let all: u64 = self.faults.weights.iter().map(|(_, weight)| weight).sum();
        let mut roll = self.rng.next() % all.max(1);
        let mut drawn = None;
        for (kind, weight) in &self.faults.weights {
            if roll < *weight {
                drawn = Some(*kind);
                break;
            }
            roll -= weight;
        }
        if let Some(kind) = drawn {
            self.inflict(kind);
        }
    }

    fn some_proc(&mut self) -> Proc {
        self.rng.below(PROCS)
    }

    fn some_node(&mut self) -> Proc {
        CONTROLLERS + self.rng.below(NODES)
    }

    /// The active controller half of the time: there it hurts.
    fn some_controller(&mut self) -> Proc {
        let active = (0..CONTROLLERS).find(|proc| self.controllers[*proc].as_ref().is_some_and(|c| c.serving));
        match active {
            Some(active) if self.rng.chance(500) => active,
            Some(_) | None => self.rng.below(CONTROLLERS),
        }
    }

    fn victim(&mut self) -> Proc {
        if self.rng.chance(400) { self.some_controller() } else { self.some_proc() }
    }

    fn inflict(&mut self, kind: Kind) {
        self.note(|| format!("fault: {kind:?}"));
        let ms = |rng: &mut Rng, least, most| rng.between(least, most) * MS;
        match kind {
            Kind::Kill | Kind::PowerCut => {
                let proc = self.victim();
                self.seen.fault(if kind == Kind::Kill { "killed processes" } else { "power cuts" });
                let restart = ms(&mut self.rng, 30, 7_000);
                self.crash(proc, kind == Kind::PowerCut, Some(restart));
            }
            Kind::Freeze | Kind::Busy => {
                let proc = self.victim();
                let span = ms(&mut self.rng, 20, 6_000);
                self.seen.fault(if kind == Kind::Freeze { "frozen processes" } else { "busy processes" });
                self.freeze(proc, if kind == Kind::Freeze { Frozen::Stopped } else { Frozen::Busy }, span);
            }
            Kind::Cut | Kind::CutOneWay => {
                let proc = self.victim();
                let way = self.rng.below(2);
                let both = kind == Kind::Cut;
                self.seen.fault(if both { "cut links" } else { "links cut one way" });
                let host = &mut self.hosts[proc];
                host.cut_in |= both || way == 0;
                host.cut_out |= both || way == 1;
                let span = ms(&mut self.rng, 100, 7_000);
                self.queue.after(span, Event::Mend(Mend::Link(proc)));
            }
            Kind::HangUp => {
                let proc = self.victim();
                if self.hosts[proc].frozen.is_some() {
                    return;
                }
                self.seen.fault("ended connections");
                let by_client = self.rng.chance(700);
                self.hang_up(proc, by_client);
                self.reconnect_after(proc, MS, 2_500 * MS);
            }
            Kind::Rain | Kind::LostAppendAcks | Kind::LateAppends | Kind::SlowStream => self.worsen_weather(kind),
            Kind::StreamCrash => {
                self.seen.fault("stream lost its unsynced tail");
                self.stream.crash();
                self.hang_up_all();
            }
            Kind::StreamGoesBack => self.stream_goes_back(),
            Kind::StreamWiped | Kind::AllWiped => self.wipe(kind == Kind::AllWiped),
            Kind::NewestAway => {
                let witness = self.rng.below(CONTROLLERS);
                (self.hosts[witness].cut_in, self.hosts[witness].cut_out) = (true, true);
                let span = ms(&mut self.rng, 1_000, 6_000);
                self.queue.after(span, Event::Mend(Mend::LastWitness(witness)));
            }
            Kind::LeaseForgotten => {
                if self.lease.held.is_some() {
                    self.seen.fault("lease that two believe to hold");
                    self.lease.forget();
                    self.lease_changed();
                }
            }
            Kind::EmptyDisk | Kind::OldDisk | Kind::CopiedDisk => self.disturb_disk(kind),
            Kind::SyncFails | Kind::DiskFull | Kind::SlowDisk => self.fail_disk(kind),
            Kind::RecordsFull | Kind::RecordsSyncFails => self.fail_records(kind),
            Kind::RecordsDamaged => self.damage_records(),
            Kind::Strange => self.say_something_strange(),
            Kind::Terminate => {
                let proc = self.some_node();
                self.seen.fault("terminated nodes");
                if self.hosts[proc].up && self.hosts[proc].frozen.is_none() {
                    self.hosts[proc].stopping = true;
                    self.drive_node(proc, crate::storage::core::Input::Shutdown);
                }
            }
            Kind::TerminateController => {
                let proc = self.some_controller();
                self.seen.fault("terminated controllers");
                if self.hosts[proc].up && self.hosts[proc].frozen.is_none() {
                    self.drive_controller(proc, Input::Shutdown);
                }
            }
        }
    }

    fn worsen_weather(&mut self, kind: Kind) {
        let rng = &mut self.rng;
        match kind {
            Kind::Rain => {
                self.faults.rained_at = self.queue.now;
                self.weather.lost = rng.pick(&[0, 50, 300]);
                self.weather.repeated = rng.pick(&[0, 50, 300]);
                self.weather.slow = rng.pick(&[0, 50, 200]);
            }
            Kind::LostAppendAcks => self.weather.lost_append_acks = rng.pick(&[300, 1_000]),
            Kind::LateAppends => self.weather.late_appends = rng.pick(&[300, 1_000]),
            _ => {
                self.seen.fault("slow stream");
                self.weather.sync_stall_ms = rng.pick(&[100, 1_000, 3_000, 12_000]);
            }
        }
        let span = rng.between(200, 4_000) * MS;
        self.queue.after(span, Event::Mend(Mend::Weather));
    }

    /// The process stops at once, in the middle of a write perhaps. With the power, what was not synced is gone.
    pub fn crash(&mut self, proc: Proc, power: bool, restart: Option<Time>) {
        if !self.hosts[proc].up {
            return;
        }
        let steps = self.rng.between(0, 2_000);
        if self.rng.chance(500) {
            if proc < CONTROLLERS {
                self.tear_controller_write(proc, steps);
            } else {
                self.tear_node_write(proc, steps);
            }
        }
        if proc >= CONTROLLERS {
            self.close_node(proc);
        }
        let Folder { disk, partitions, .. } = &mut self.folders[self.hosts[proc].folder];
        if power {
            partitions.values_mut().for_each(|directory| directory.log.crash(&mut self.rng));
            disk.crash();
        } else {
            disk.kill();
        }
        let restart = restart.filter(|_| proc != COPY);
        self.end(proc, restart);
    }

    pub fn freeze(&mut self, proc: Proc, how: Frozen, span: Time) {
        let host = &mut self.hosts[proc];
        if !host.up || host.frozen.is_some() {
            return;
        }
        host.frozen = Some(how);
        host.freezes += 1;
        let freeze = host.freezes;
        self.queue.after(span, Event::Wake { proc, freeze });
        self.note(|| {
            format!("{} is {} for {} ms", name(proc), if how == Frozen::Busy { "busy" } else { "frozen" }, span / MS)
        });
    }

    fn stream_goes_back(&mut self) {
        let count = self.rng.between(1, 6) as usize;
        if self.stream.last() <= self.stream.first() + count as u64 {
            return;
        }
        self.seen.fault("stream that went back");
        self.stream.go_back(count);
        self.check_went_back(self.stream.last());
        self.hang_up_all();
    }

    fn wipe(&mut self, everything: bool) {
        // Somebody must have the history: where nobody has, there is nothing to notice.
        let knows = |proc: &Proc| self.folders[self.hosts[*proc].folder].cluster.is_some();
        if !self.stream.exists || !(0..CONTROLLERS).any(|proc| knows(&proc)) || self.stream.last() < 5 {
            return;
        }
        self.seen.fault(if everything { "wiped JetStream, all controllers restarted" } else { "wiped stream" });
        self.stream.wipe(everything);
        self.check_wiped();
        if everything {
            // Of an earlier restore only those know now who have seen it: without them, another one may begin where it did.
            self.faults.hasty = false;
            self.lease.forget();
            for proc in 0..CONTROLLERS {
                self.crash(proc, false, Some(100 * MS));
            }
            self.hang_up_all();
        }
    }

    fn leave_one_witness(&mut self, witness: Proc) {
        // Who comes to an empty stream with an empty disk, and hears nobody, founds a cluster.
        let knows = |proc: Proc| self.folders[self.hosts[proc].folder].cluster.is_some();
        if (0..CONTROLLERS).all(knows) {
            self.wipe(false);
        }
        if self.checker.is_lost() {
            self.seen.fault("all but one away while the stream is lost");
            for proc in (0..COPY).filter(|proc| *proc != witness) {
                let (power, restart) = (self.rng.chance(300), self.rng.between(4_000, 12_000) * MS);
                if self.rng.chance(900) {
                    self.crash(proc, power, Some(restart));
                }
            }
        }
        self.mend_link(witness);
    }

    fn disturb_disk(&mut self, kind: Kind) {
        let proc = if self.rng.chance(700) { self.some_node() } else { self.some_controller() };
        let folder = self.hosts[proc].folder;
        match kind {
            Kind::EmptyDisk => {
                // A node that lost its disk and its history at once is another fault's.
                if !self.stream.exists || self.checker.is_lost() {
                    return;
                }
                self.seen.fault("empty disks");
                self.checker.disk_emptied();
                self.crash(proc, true, Some(500 * MS));
                self.hosts[proc].folder = self.new_folder();
            }
            Kind::OldDisk => match self.faults.backup.take() {
                Some((proc, copy)) => {
                    self.seen.fault("old disks");
                    self.crash(proc, true, Some(500 * MS));
                    let is_same = self.folders[copy].directory == self.folders[self.hosts[proc].folder].directory;
                    if is_same {
                        self.checker.disk_set_back(copy, &self.folders[copy]);
                        self.hosts[proc].folder = copy;
                    }
                }
                None => {
                    self.faults.backup = Some((proc, self.copy_folder(folder)));
                    // Some stop it for that, and start it again.
                    if self.rng.chance(700) {
                        self.crash(proc, false, Some(100 * MS));
                    }
                }
            },
            _ => {
                if self.hosts[COPY].up || proc < CONTROLLERS || self.folders[folder].id.is_none() {
                    return;
                }
                self.seen.fault("copied disks");
                self.hosts[COPY].folder = self.copy_folder(folder);
                let copy = self.hosts[COPY].folder;
                self.checker.copy_runs(Some([folder, copy]));
                self.start(COPY);
                let span = self.rng.between(2_000, 9_000) * MS;
                self.queue.after(span, Event::Mend(Mend::Copy));
            }
        }
    }

    fn fail_disk(&mut self, kind: Kind) {
        let proc = self.some_proc();
        let folder = self.hosts[proc].folder;
        let Folder { disk, failing, .. } = &mut self.folders[folder];
        match kind {
            Kind::SyncFails => {
                self.seen.fault("failed syncs");
                *failing = true;
                disk.fail_syncs(1);
            }
            Kind::DiskFull => {
                self.seen.fault("full disks");
                *failing = true;
                disk.set_capacity(Some(0));
            }
            _ => {
                self.seen.fault("slow disks");
                self.hosts[proc].slow_disk_until = self.queue.now + self.rng.between(200, 4_500) * MS;
            }
        }
        let span = self.rng.between(100, 4_000) * MS;
        self.queue.after(span, Event::Mend(Mend::Disk(folder)));
    }

    /// The disk of a node's records has no room for a while, or fails to sync what it was given.
    fn fail_records(&mut self, kind: Kind) {
        let proc = self.some_node();
        let folder = self.hosts[proc].folder;
        let records = &self.folders[folder].records;
        if kind == Kind::RecordsSyncFails {
            records.fail_to_sync();
            if self.rng.chance(400) {
                // What the kernel shows, and the disk does not have, is gone then.
                let span = self.rng.between(1_200, 6_000) * MS;
                self.queue.after(span, Event::Mend(Mend::Power(proc)));
            }
            return;
        }
        self.seen.fault("full disks of records");
        records.set_full(true);
        let span = self.rng.between(100, 9_000) * MS;
        self.queue.after(span, Event::Mend(Mend::Records(folder)));
    }

    /// The disk spoils a record that it has had for a while. Who compacts comes to it at once, who only follows perhaps never.
    fn damage_records(&mut self) {
        let proc = self.some_node();
        let Folder { partitions, .. } = &mut self.folders[self.hosts[proc].folder];
        let mut logs: Vec<_> = partitions.iter_mut().map(|(_, directory)| (None, &mut directory.log)).collect();
        let replicas = self.nodes[proc - CONTROLLERS].as_mut().map(|node| &mut node.replicas);
        logs.extend(replicas.into_iter().flat_map(|replicas| replicas.open_logs_mut()));
        logs.retain(|(_, log)| log.durable() > log.start().0);
        if logs.is_empty() {
            return;
        }
        let which = self.rng.below(logs.len());
        let (place, log) = &mut logs[which];
        let (Some(offset), place) = (log.spoil(&mut self.rng), *place) else { return };
        self.seen.fault("damaged records");
        let reads = self.rng.chance(500) && self.hosts[proc].frozen.is_none();
        if let Some(place) = place.filter(|_| reads) {
            self.unreadable(proc, place, offset);
            self.drive_replicas(proc, Vec::new());
        }
    }

    pub fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Link(proc) if self.faults.healed_at.is_none() => self.mend_link(proc),
            Mend::LastWitness(proc) if self.faults.healed_at.is_none() => self.leave_one_witness(proc),
            Mend::Link(_) | Mend::LastWitness(_) => {}
            Mend::Weather => self.weather = Default::default(),
            Mend::Disk(folder) => {
                self.folders[folder].recover();
            }
            Mend::Records(folder) => self.folders[folder].records.set_full(false),
            Mend::Power(proc) if self.faults.healed_at.is_none() => self.crash(proc, true, Some(500 * MS)),
            Mend::Power(_) => {}
            Mend::Copy => self.end_copy(),
        }
    }

    /// Whatever the copy was given meanwhile, the original lacks.
    fn end_copy(&mut self) {
        self.crash(COPY, false, None);
        self.checker.copy_runs(None);
    }

    fn mend_link(&mut self, proc: Proc) {
        let host = &mut self.hosts[proc];
        host.cut_in = false;
        host.cut_out = false;
        // The connection may have survived, or either side given it up meanwhile.
        if host.frozen.is_none() && host.connection.is_some() && self.rng.chance(600) {
            let by_client = self.rng.chance(500);
            self.hang_up(proc, by_client);
            self.reconnect_after(proc, MS, 300 * MS);
        } else if self.hosts[proc].connection.is_none() {
            self.reconnect_after(proc, MS, 300 * MS);
        } else if proc < CONTROLLERS {
            self.report(0, proc, Mail::Watch);
            self.report(0, proc, Mail::Follow);
        }
    }

    /// All faults are over.
    fn heal(&mut self) {
        self.note(|| "all faults are over".into());
        self.faults.healed_at = Some(self.now());
        self.faults.late_advisories = 0;
        self.weather = Default::default();
        self.end_copy();
        self.folders.iter_mut().for_each(Folder::recover);
        self.folders.iter().for_each(|folder| folder.records.set_full(false));
        for proc in 0..COPY {
            self.mend_link(proc);
            self.hosts[proc].slow_disk_until = 0;
            if !self.hosts[proc].up {
                let life = self.hosts[proc].life;
                self.queue.after(100 * MS, Event::Start { proc, life });
            }
            self.wake(proc);
        }
    }
}
