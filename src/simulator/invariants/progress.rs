//! Once faults stop, all heals; and then a silent node is fenced in time, and nobody else is.

use std::collections::BTreeMap;

use crate::metadata::{Image, NodeState};
use crate::simulator::controllers::{LEASE_MS, SESSION};
use crate::simulator::queue::{MS, SECOND, Time};
use crate::simulator::world::{CONTROLLERS, COPY, Frozen, Proc, World, name};
use crate::types::StorageId;
use crate::wire::ControllerRole;

/// How long healing may take: a restore waits for those who were not heard, and what can only be told by its silence takes
/// a session.
const BOUND: Time = 90 * SECOND;

/// How long a controller that can hear may go on with more than the stream has; and how often that is looked at.
const HALTS: Time = 5 * SECOND + SECOND;

#[derive(Default)]
pub struct Progress {
    stage: Stage,
    /// For each controller, since when it has more than the stream and goes on, over which connection.
    ahead: BTreeMap<Proc, (Time, u64)>,
}

#[derive(Default)]
enum Stage {
    #[default]
    Healing,
    /// A node is silent since then, perhaps together with the active controller.
    Silent {
        proc: Proc,
        storage: StorageId,
        since: Time,
        failover: bool,
    },
    /// All of it is to heal again.
    Again {
        since: Time,
    },
    Done,
}

impl Progress {
    pub fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }
}

impl World {
    pub fn look_for_progress(&mut self) {
        self.check_all_leads();
        self.check_halts();
        let Some(healed_at) = self.faults.healed_at else { return };
        let now = self.now();
        match self.checker.progress.stage {
            Stage::Healing => match self.is_whole() {
                Ok(()) if self.is_on_record() => self.begin_silence(),
                Ok(()) => self.agree_on_a_lost_history(),
                Err(words) if now > healed_at + BOUND => {
                    self.tell_of_partitions();
                    self.checker.break_rule(16, || words);
                }
                Err(_) => {}
            },
            Stage::Silent { proc, storage, since, failover } => {
                let failover_span = LEASE_MS * MS + 330 * MS + SESSION + SECOND;
                // Its last heartbeat, the session, a sweep, and the append; a second because this looks once a second.
                let bound = SESSION + 250 * MS + SECOND + if failover { failover_span } else { 0 };
                self.watch_silence(proc, storage, since, now > since + bound);
            }
            Stage::Again { since } => match self.is_whole() {
                Ok(()) => {
                    self.check_replay();
                    self.check_requests_at_the_end();
                    self.checker.progress.stage = Stage::Done;
                }
                Err(words) if now > since + BOUND => {
                    self.tell_of_partitions();
                    self.checker.break_rule(16, || format!("again: {words}"));
                }
                Err(_) => {}
            },
            Stage::Done => {}
        }
    }

    /// Whoever has more than the stream, and can hear so, stops writing in time.
    fn check_halts(&mut self) {
        let now = self.now();
        let last = if self.stream.exists { self.stream.last() } else { 0 };
        let is_calm = self.weather.lost == 0 && self.weather.slow == 0;
        for proc in 0..CONTROLLERS {
            let host = &self.hosts[proc];
            let hears = host.up && host.frozen.is_none() && host.connection.is_some() && !host.cut_in && !host.cut_out;
            let generation = host.generation;
            let goes_on = self.controllers[proc].as_ref().is_some_and(|controller| {
                controller.core.history().seen().0 > last && controller.core.role() != ControllerRole::Halted
            });
            let before = self.checker.progress.ahead.get(&proc).filter(|(_, over)| *over == generation);
            match before.copied() {
                _ if !(is_calm && hears && goes_on) => drop(self.checker.progress.ahead.remove(&proc)),
                Some((since, _)) if now > since + HALTS => {
                    let words = || format!("{} has more than the stream's {last}, and goes on", name(proc));
                    self.checker.break_rule(16, words);
                }
                Some(_) => {}
                None => drop(self.checker.progress.ahead.insert(proc, (now, generation))),
            }
        }
    }

    /// Whether what everybody has is what the stream says to who reads it from its beginning.
    fn is_on_record(&self) -> bool {
        let mut all = self.controllers.iter().flatten().map(|c| c.core.history().position());
        all.all(|position| position == self.checker.history.position())
    }

    /// Where the stream lost what it had acknowledged, and everybody still has it who could tell, nobody may notice: a
    /// controller whose disk begins with a snapshot has no message of its own to hold against the stream's.
    fn agree_on_a_lost_history(&mut self) {
        if self.checker.went_back {
            self.seen.event("fork that nobody noticed");
            self.checker.progress.stage = Stage::Done;
        } else {
            let words = "what all controllers have is not what the stream says";
            self.checker.break_rule(6, || words.into());
        }
    }

    fn begin_silence(&mut self) {
        let proc = CONTROLLERS + self.rng.below(COPY - CONTROLLERS);
        let Some(storage) = self.nodes[proc - CONTROLLERS].as_ref().and_then(|node| node.core.identity().storage)
        else {
            return;
        };
        let failover = self.rng.chance(500);
        let since = self.now();
        self.note(|| format!("all is whole; {} falls silent", name(proc)));
        self.freeze(proc, Frozen::Stopped, 3600 * SECOND);
        if failover && let Some(active) = (0..CONTROLLERS).find(|c| self.is_active(*c)) {
            self.faults.lost_advisories = 1000;
            self.crash(active, false, Some(20 * SECOND));
        }
        self.checker.progress.stage = Stage::Silent { proc, storage, since, failover };
    }

    fn watch_silence(&mut self, proc: Proc, storage: StorageId, since: Time, late: bool) {
        let Some(image) = self.checker.image() else { return };
        let is_fenced = |id: StorageId| image.storage.get(&id).is_some_and(|node| node.state == NodeState::Fenced);
        let running = |other: &Proc| *other != proc && self.nodes[*other - CONTROLLERS].is_some();
        let id = |other: Proc| self.nodes[other - CONTROLLERS].as_ref().and_then(|node| node.core.identity().storage);
        let wrong = (CONTROLLERS..COPY).filter(running).find(|other| id(*other).is_some_and(is_fenced));
        if let Some(wrong) = wrong {
            return self.checker.break_rule(11, || format!("{} is fenced while {} is silent", name(wrong), name(proc)));
        }
        if is_fenced(storage) {
            self.seen.event("silent node fenced");
            self.checker.progress.stage = Stage::Again { since: self.now() };
            return self.wake(proc);
        }
        if late {
            let ago = (self.now() - since) / MS;
            self.checker.break_rule(11, || format!("{} is silent for {ago} ms and not fenced", name(proc)));
        }
    }

    /// How the partitions stand that are not whole, for who reads the run.
    fn tell_of_partitions(&mut self) {
        let Some(image) = self.checker.image().cloned() else { return };
        for (id, topic) in &image.topics {
            for (number, partition) in (0..).zip(topic.partitions.iter()) {
                let is_whole = partition.isr().count() == partition.replicas.len();
                for proc in (CONTROLLERS..=COPY).filter(|_| !is_whole) {
                    let Some(node) = &self.nodes[proc - CONTROLLERS] else { continue };
                    let words = node.replicas.engine.story((*id, number));
                    self.note(|| format!("{}: partition {number} of {}: {words}", name(proc), topic.name));
                }
            }
        }
    }

    fn is_active(&self, proc: Proc) -> bool {
        self.controllers[proc].as_ref().is_some_and(|c| c.core.acting_epoch().is_some())
    }

    /// Whether everything is as it should be, or what is not.
    fn is_whole(&self) -> Result<(), String> {
        let active: Vec<_> = (0..CONTROLLERS).filter(|proc| self.is_active(*proc)).collect();
        let [active] = active[..] else {
            let roles: Vec<_> = self.controllers.iter().flatten().map(|c| (c.core.role(), c.serving)).collect();
            return Err(format!("{active:?} are active: {roles:?}"));
        };
        for proc in 0..CONTROLLERS {
            let Some(controller) = &self.controllers[proc] else { return Err(format!("{} is down", name(proc))) };
            let seen = controller.core.history().seen().0;
            if seen != self.stream.last() || matches!(controller.core.role(), ControllerRole::Halted) {
                return Err(format!("{} is at {seen} of {}", name(proc), self.stream.last()));
            }
        }
        let Some(image) = self.controllers[active].as_ref().and_then(|c| c.core.history().image()) else {
            return Err("there is no metadata".into());
        };
        for proc in CONTROLLERS..COPY {
            self.is_node_whole(proc, image).map_err(|words| format!("{} {words}", name(proc)))?;
        }
        are_partitions_whole(image)?;
        self.are_replicas_whole(image)?;
        if !self.clients.is_idle() || !self.producers.is_idle() {
            return Err("a client still waits".into());
        }
        Ok(())
    }

    fn is_node_whole(&self, proc: Proc, image: &Image) -> Result<(), String> {
        let node = self.nodes[proc - CONTROLLERS].as_ref().ok_or("is down")?;
        let id = node.core.identity().storage.ok_or("has no id")?;
        let held = image.storage.get(&id).ok_or("is not in the metadata")?;
        // Drained by request, it stays so until it is started again.
        let serves = held.state.serves();
        if held.incarnation != self.hosts[proc].incarnation || !serves {
            return Err(format!("({id}) is {}", held.state.as_str()));
        }
        if node.core.persisted().version.0 != self.stream.last() {
            return Err(format!("({id}) has {} of {}", node.core.persisted().version, self.stream.last()));
        }
        if !node.core.may_lead(self.clock(proc)) {
            let (epoch, present) = (node.core.node_epoch(), held.epoch);
            return Err(format!("({id}) has no lease; its epoch is {epoch:?}, {present} in the metadata"));
        }
        let fits = match held.pairing {
            Some(controller) if id.0 < CONTROLLERS as u32 => controller.0 == id.0,
            Some(controller) => controller.0 < CONTROLLERS as u32,
            None => false,
        };
        if fits { Ok(()) } else { Err(format!("({id}) is paired with {:?}", held.pairing)) }
    }
}

fn are_partitions_whole(image: &Image) -> Result<(), String> {
    for topic in image.topics.values() {
        for (number, partition) in (0..).zip(topic.partitions.iter()) {
            if topic.waits_for.contains_key(&number) {
                continue;
            }
            if partition.leader.is_none() && partition.isr().any(|node| image.is_active(node)) {
                return Err(format!("partition {number} of {} has no leader: {partition:?}", topic.name));
            }
            let missing = |node: &&StorageId| image.is_active(**node) && !partition.in_sync(**node);
            if partition.leader.is_some()
                && let Some(missing) = partition.replicas.iter().find(missing)
            {
                return Err(format!("partition {number} of {} lacks {missing} in sync: {partition:?}", topic.name));
            }
        }
    }
    Ok(())
}
