//! A node's replicas: the shipped engine, and what its thread does with it, over the fake NATS and logs in memory.

mod held;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::bus::Answer;
use super::producers::Refused;
use super::queue::{MS, Time};
use super::records::{Failure, Record, SimLog};
use super::world::{CONTROLLERS, COPY, Mail, Proc, World, name};
use crate::replication::AckError;
use crate::storage::core::{
    Assignment, Call, CallError, InSyncOutcome, Input as CoreInput, Member, Peer, Place, Token, Unassigned,
};
use crate::storage::replicas::{
    Acks, Append, AppendError, Effect, Faults, Input, Led, Log, LogEnd, Replicas, Settings, Standing,
};
use crate::types::{LeaderEpoch, Monotonic, Offset, PartitionId, StorageId};

/// What the core says to the replicas' thread, in order.
pub enum Command {
    Member(Member),
    Peers(BTreeMap<StorageId, Peer>),
    /// With the topics' names.
    Replicas {
        assigned: Vec<(Place, String, Assignment)>,
        unassigned: Vec<Unassigned>,
    },
    MayLead(bool),
    InSyncAnswers(Vec<InSyncOutcome>),
    Disconnected,
}

/// Who polls.
#[derive(Clone, Copy)]
pub struct Asker {
    proc: Proc,
    life: u64,
    call: Call,
}

/// What comes to a node's replicas.
pub enum Data {
    Command(Command),
    Poll {
        payload: Bytes,
        from: Asker,
    },
    PollAnswer {
        call: Call,
        result: Result<Bytes, CallError>,
    },
    Flushed(Vec<(LogEnd, u64)>),
    NotFlushed(Vec<LogEnd>),
    /// The disk has time to remove directories.
    Remove,
    Produce {
        place: Place,
        record: Record,
        acks: Acks,
        request: u64,
    },
}

struct Pending {
    place: Place,
    record: Record,
    acks: Acks,
    request: u64,
}

pub struct ReplicasProc {
    pub engine: Replicas<SimLog>,
    /// When the last command that is on its way arrives.
    command_at: Time,
    told_may_lead: bool,
    pub may_lead: bool,
    /// Since that was last asked.
    begins_to_lead: bool,
    lease: Option<Monotonic>,
    /// Under which id it hears followers.
    follows_as: Option<StorageId>,
    listening: BTreeSet<Place>,
    tokens: u64,
    polls: BTreeMap<Token, Asker>,
    pending: BTreeMap<Token, Pending>,
    /// As the metadata has them, whether or not their logs work.
    held: BTreeMap<Place, Assignment>,
    /// What the topics are called.
    names: BTreeMap<Place, String>,
    /// Directories of what is held no more.
    going: BTreeSet<(String, PartitionId)>,
    peers: BTreeMap<StorageId, Peer>,
    pub faults: Faults,
    /// What came of what an effect led to.
    more: Vec<Effect<Failure>>,
    /// Up to where each replica was held against what is committed, and in which generation of that.
    pub checked: BTreeMap<Place, (u64, i64)>,
}

impl ReplicasProc {
    pub fn new(ahead_max: u32) -> Self {
        let settings = Settings {
            poll_wait: Duration::from_millis(1_200),
            lag_max: Duration::from_secs(3),
            waiting_max: 6,
            isr_batch: 3,
            answer_max_bytes: 70,
            // Two positions a poll, and three partitions an answer.
            message_max_bytes: 330,
            // Two records: some answers have fewer.
            ahead_min_bytes: 40,
            ahead_after: Duration::from_millis(2),
            ahead_max,
            ..Settings::default()
        };
        Self {
            engine: Replicas::new(settings),
            command_at: 0,
            told_may_lead: false,
            may_lead: false,
            begins_to_lead: false,
            lease: None,
            follows_as: None,
            listening: BTreeSet::new(),
            tokens: 0,
            polls: BTreeMap::new(),
            pending: BTreeMap::new(),
            held: BTreeMap::new(),
            names: BTreeMap::new(),
            going: BTreeSet::new(),
            peers: BTreeMap::new(),
            faults: Faults::default(),
            more: Vec::new(),
            checked: BTreeMap::new(),
        }
    }

    fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    /// With the topics' names.
    pub fn open_logs(&self) -> impl Iterator<Item = (&str, Place, &SimLog)> {
        self.engine.held().filter_map(|(place, log, _)| Some((self.names.get(&place)?.as_str(), place, log)))
    }

    pub fn open_logs_mut(&mut self) -> impl Iterator<Item = (Option<Place>, &mut SimLog)> {
        let places: Vec<_> = self.engine.held().map(|(place, ..)| Some(place)).collect();
        places.into_iter().zip(self.engine.logs_mut())
    }

    /// The logs, as the process leaves them.
    pub fn take_logs(&mut self) -> Vec<(String, Place, SimLog)> {
        let places: Vec<_> = self.engine.held().map(|(place, ..)| place).collect();
        places.into_iter().filter_map(|place| self.take_log(place)).collect()
    }

    fn take_log(&mut self, place: Place) -> Option<(String, Place, SimLog)> {
        let name = self.names.get(&place)?.clone();
        Some((name, place, std::mem::take(self.engine.log_mut(place)?)))
    }

    /// How a partition stands that is led here, while anything may be said of it.
    pub fn led(&self, now: Monotonic, place: Place) -> Option<Led> {
        self.engine.led(place).filter(|_| self.lease.is_some_and(|until| now < until))
    }

    /// By the newest metadata that it knows.
    pub fn leader_epoch(&self, place: Place) -> Option<LeaderEpoch> {
        self.held.get(&place).map(|held| held.leader_epoch)
    }

    fn standing(&self, place: Place) -> Option<Standing> {
        Some(Standing::new(self.held.get(&place)?, self.follows_as?, self.engine.log(place).is_none()))
    }

    fn log(&self, place: Place) -> &SimLog {
        self.engine.log(place).expect("what is led has a log")
    }
}

impl World {
    /// Puts it behind what was said before.
    pub fn command(&mut self, proc: Proc, command: Command) {
        let (now, delay) = (self.now(), self.rng.between(5, 300));
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
        node.replicas.command_at = node.replicas.command_at.max(now + delay);
        let delay = node.replicas.command_at - now;
        self.report(delay, proc, Mail::Data(Data::Command(command)));
    }

    pub fn set_lease(&mut self, proc: Proc, now: Monotonic) {
        if let Some(node) = &mut self.nodes[proc - CONTROLLERS] {
            node.replicas.lease = node.core.may_lead_until(now);
        }
    }

    pub fn data_mail(&mut self, proc: Proc, data: Data) {
        self.look_at_lease(proc);
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
        let replicas = &mut node.replicas;
        let inputs = match data {
            Data::Command(Command::Member(member)) => {
                replicas.follows_as = Some(member.storage);
                vec![Input::Member(member)]
            }
            Data::Command(Command::Peers(peers)) => {
                replicas.peers = peers.clone();
                vec![Input::Peers(peers)]
            }
            Data::Command(Command::Replicas { assigned, unassigned }) => {
                unassigned.into_iter().for_each(|gone| self.unassigned(proc, gone.place));
                assigned.into_iter().for_each(|(place, name, assignment)| self.assigned(proc, place, name, assignment));
                Vec::new()
            }
            Data::Command(Command::MayLead(may)) => {
                replicas.told_may_lead = may;
                Vec::new()
            }
            Data::Command(Command::InSyncAnswers(outcomes)) => outcomes.into_iter().map(Input::InSyncAnswer).collect(),
            Data::Command(Command::Disconnected) => vec![Input::Disconnected],
            Data::Poll { payload, from } => {
                let token = replicas.token();
                replicas.polls.insert(token, from);
                vec![Input::Poll { payload, token }]
            }
            Data::PollAnswer { call, result } => vec![Input::PollAnswer { call, result }],
            Data::Flushed(ends) => {
                for (end, cuts) in &ends {
                    if let Some(log) = replicas.engine.log_mut(end.place) {
                        log.flushed(end.end.0, *cuts);
                    }
                }
                vec![Input::Flushed(ends.into_iter().map(|(end, _)| end).collect())]
            }
            Data::NotFlushed(ends) => {
                for LogEnd { place, .. } in ends {
                    if let Some(log) =
                        self.nodes[proc - CONTROLLERS].as_mut().and_then(|node| node.replicas.engine.log_mut(place))
                    {
                        log.fail_to_sync();
                        self.replica_failed(proc, place, false);
                    }
                }
                Vec::new()
            }
            Data::Remove => {
                let partitions = &mut self.folders[self.hosts[proc].folder].partitions;
                std::mem::take(&mut replicas.going).iter().for_each(|name| drop(partitions.remove(name)));
                Vec::new()
            }
            Data::Produce { place, record, acks, request } => return self.produce(proc, place, record, acks, request),
        };
        self.drive_replicas(proc, inputs);
    }

    fn produce(&mut self, proc: Proc, place: Place, record: Record, acks: Acks, request: u64) {
        let (now, wall) = (self.clock(proc), self.wall(proc));
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
        let replicas = &mut node.replicas;
        if !replicas.listening.contains(&place) || replicas.led(now, place).is_none() {
            return;
        }
        let token = replicas.token();
        replicas.pending.insert(token, Pending { place, record, acks, request });
        if let Some(log) = replicas.engine.log_mut(place) {
            log.repeated = false;
        }
        let append = Append { place, batch: record.batch(), acks: Some(acks), token, now: wall };
        self.drive_replicas(proc, vec![Input::Append(append)]);
        let node = self.nodes[proc - CONTROLLERS].as_ref();
        if node.and_then(|node| node.replicas.engine.log(place)).is_some_and(|log| log.repeated) {
            self.seen.event("retry found to be one");
        }
    }

    fn look_at_lease(&mut self, proc: Proc) {
        let now = self.clock(proc);
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
        let replicas = &mut node.replicas;
        let may = replicas.told_may_lead && replicas.lease.is_some_and(|until| now < until);
        replicas.begins_to_lead |= may && !replicas.may_lead;
        if may != std::mem::replace(&mut replicas.may_lead, may) {
            replicas.engine.take(now, Input::MayLead(may), &mut replicas.more);
        }
    }

    /// Gives the engine these inputs, and carries out what becomes of them.
    pub fn drive_replicas(&mut self, proc: Proc, inputs: Vec<Input<SimLog>>) {
        self.look_at_lease(proc);
        let now = self.clock(proc);
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
        let replicas = &mut node.replicas;
        let begins = std::mem::take(&mut replicas.begins_to_lead);
        let mut effects = std::mem::take(&mut replicas.more);
        inputs.into_iter().for_each(|input| replicas.engine.take(now, input, &mut effects));
        self.retry_faults(proc);
        loop {
            let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
            effects.append(&mut node.replicas.more);
            node.replicas.engine.step(now, &mut effects);
            if effects.is_empty() {
                break;
            }
            for effect in std::mem::take(&mut effects) {
                self.carry_out_for_replicas(proc, effect);
            }
        }
        if begins {
            self.check_all_begin(proc);
        }
        self.check_records(proc);
        self.plan_node(proc);
    }

    fn carry_out_for_replicas(&mut self, proc: Proc, effect: Effect<Failure>) {
        let life = self.hosts[proc].life;
        match effect {
            Effect::Poll { call, to, message, .. } => self.poll(Asker { proc, life, call }, to, message),
            Effect::Answer { token, message } => {
                let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
                let Some(to) = node.replicas.polls.remove(&token) else { return };
                let Some(out) = self.hop_out(proc) else { return };
                self.answer_poll(out, to, Ok(message));
            }
            Effect::Flush(ends) => {
                let delay = self.disk_time(proc);
                let Some(node) = &self.nodes[proc - CONTROLLERS] else { return };
                if !ends.is_empty() && !self.folders[self.hosts[proc].folder].records.takes_sync() {
                    self.seen.fault("failed syncs of records");
                    return self.report(delay, proc, Mail::Data(Data::NotFlushed(ends)));
                }
                let cuts = |end: &LogEnd| node.replicas.engine.log(end.place).map_or(0, |log| log.cuts);
                let ends = ends.into_iter().map(|end| (end, cuts(&end))).collect();
                self.report(delay, proc, Mail::Data(Data::Flushed(ends)));
            }
            Effect::Acknowledge { token, result } => self.acknowledge(proc, token, result),
            Effect::Dropped { .. } => {}
            Effect::AskInSync(wishes) => {
                let delay = self.rng.between(5, 300);
                self.report(delay, proc, Mail::Node(CoreInput::InSyncWishes(wishes)));
            }
            Effect::Leads { place, leader_epoch } => {
                self.note(|| format!("{} leads {}.{} in {leader_epoch}", name(proc), place.0, place.1));
                self.check_begins(proc, place, leader_epoch);
                if let Some(node) = &mut self.nodes[proc - CONTROLLERS] {
                    node.replicas.listening.insert(place);
                }
            }
            Effect::LeadsNoMore(place) => {
                if let Some(node) = &mut self.nodes[proc - CONTROLLERS] {
                    node.replicas.listening.remove(&place);
                }
            }
            Effect::Failed { place, error: Failure::Full } => self.replica_failed(proc, place, false),
            Effect::Left { place, leader_epoch } => {
                let node = self.nodes[proc - CONTROLLERS].as_mut();
                if node.is_some_and(|node| node.replicas.faults.left(place, leader_epoch)) {
                    self.take_up(proc, place);
                }
            }
            Effect::Unreadable { place, error: Failure::Damaged(offset) } => self.unreadable(proc, place, offset),
            Effect::Unreadable { place, error } | Effect::Failed { place, error } => {
                self.checker.break_rule(9, || format!("{} gives up {place:?}: {error}", name(proc)));
            }
        }
    }

    fn poll(&mut self, from: Asker, to: StorageId, message: Bytes) {
        let Some(out) = self.hop_out(from.proc) else { return };
        let hears = |proc: &Proc| {
            let node = self.nodes[*proc - CONTROLLERS].as_ref();
            node.is_some_and(|node| node.replicas.follows_as == Some(to)) && self.hosts[*proc].connection.is_some()
        };
        let hearing: Vec<_> = (CONTROLLERS..=COPY).filter(hears).collect();
        if hearing.is_empty() {
            return self.answer_poll(out, from, Err(CallError::NoResponders));
        }
        for proc in hearing {
            self.send(out, proc, || Mail::Data(Data::Poll { payload: message.clone(), from }));
        }
    }

    fn answer_poll(&mut self, so_far: Time, to: Asker, result: Result<Bytes, CallError>) {
        if self.hosts[to.proc].life == to.life {
            let answer = || Mail::Data(Data::PollAnswer { call: to.call, result: result.clone() });
            self.send(so_far, to.proc, answer);
        }
    }

    fn acknowledge(&mut self, proc: Proc, token: Token, result: Result<Offset, AppendError<Failure>>) {
        let now = self.clock(proc);
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
        let Some(Pending { place, record, acks, request }) = node.replicas.pending.remove(&token) else { return };
        let leads = node.replicas.led(now, place).is_some();
        let outcome = match result {
            Ok(offset) => {
                self.check_acknowledgement(proc, place, &record, acks, offset.0);
                Ok(())
            }
            // Another node may lead by now: the client hears nothing.
            Err(AppendError::NotLeader) => return self.seen.event("leader changed with records in flight"),
            Err(AppendError::Busy(_)) => Err(Refused::Later),
            Err(AppendError::Acks(AckError::NotEnoughReplicas { .. })) => {
                self.seen.event("append refused for want of in-sync replicas");
                Err(Refused::Later)
            }
            Err(AppendError::Acks(AckError::NotEnoughReplicasAfterAppend { .. })) => {
                self.seen.event("acknowledgement refused for want of in-sync replicas");
                Err(Refused::Later)
            }
            Err(AppendError::Log(Failure::OutOfOrder { .. })) => Err(Refused::OutOfOrder),
            Err(AppendError::Log(Failure::Full | Failure::Damaged(_))) => {
                self.replica_failed(proc, place, true);
                Err(Refused::Later)
            }
        };
        if outcome.is_err() || leads {
            self.reply(proc, request, Answer::Produced(outcome));
        }
    }

    /// To whoever listens to the partition's clients.
    pub fn send_record(&mut self, place: Place, record: Record, acks: Acks, request: u64) {
        let listens = |proc: &Proc| {
            let node = self.nodes[*proc - CONTROLLERS].as_ref();
            node.is_some_and(|node| node.replicas.listening.contains(&place)) && self.hosts[*proc].connection.is_some()
        };
        let listening: Vec<_> = (CONTROLLERS..=COPY).filter(listens).collect();
        if listening.is_empty() {
            return self.reply_from_server(MS, request, Answer::NoResponders);
        }
        for proc in listening {
            self.send(200, proc, || Mail::Data(Data::Produce { place, record, acks, request }));
        }
    }

    /// Some of what is committed for long is deleted at its leader, as retention does.
    pub fn delete_old(&mut self, proc: Proc, place: Place, before: i64) {
        let now = self.clock(proc);
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
        let visible = node.replicas.led(now, place).and_then(|led| led.visible);
        let Some(visible) = visible.filter(|_| node.replicas.log(place).start().0 < before) else { return };
        if let Some(log) = node.replicas.engine.log_mut(place) {
            let Ok(()) = log.delete_before(Offset(before.min(visible.0))) else { return };
            self.seen.event("old records deleted");
        }
    }
}
