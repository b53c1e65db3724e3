//! The thread: takes commands in batches, gives them to the replicas' engine, and carries out what comes of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use async_nats::Subject;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::answer::Reply;
use super::assign::Changes;
use super::coordinator::Coordinator;
use super::data::Pending;
use super::faults::{Vitals, Whose};
use super::fetches::Fetches;
use super::flush::{Flusher, Synced};
use super::log::{Failure, PartitionLog};
use super::serve::Hub;
use super::tail::Room;
use super::upkeep::Upkeep;
use super::{Command, Held, Lease, Options, RecordSettings, StartError};
use crate::disk::RealDisk;
use crate::log::{DEFAULT_OPEN_FILES, Log, LogDirectory, TopicPartition};
use crate::process::Clock;
use crate::storage::core::{self, InSyncWish, Peer, Place, Token};
use crate::storage::replicas::{self, Effect, Faults, Input, Led, LogEnd, Replicas};
use crate::storage::shell::Event;
use crate::types::{Monotonic, StorageId};
use crate::wire::data::Leads;

/// The most commands that are taken before the engine looks at what they led to.
const BATCH: usize = 512;

pub(super) struct Worker {
    pub(super) engine: Replicas<PartitionLog>,
    pub(super) directory: LogDirectory,
    /// As the metadata has them, whether or not their logs work.
    pub(super) held: BTreeMap<Place, Held>,
    pub(super) changes: Changes,
    pub(super) peers: BTreeMap<StorageId, Peer>,
    pub(super) me: Option<StorageId>,
    pub(super) faults: Faults,
    pub(super) vitals: Vitals,
    pub(super) lag_at: Monotonic,
    pub(super) upkeep: Upkeep,
    flusher: Flusher,
    pub(super) fetches: Fetches,
    /// Of the partitions of the offsets topic that are led here.
    pub(super) coordinators: BTreeMap<Place, Coordinator>,
    pub(super) offsets_partitions: u32,
    pub(super) pending: HashMap<Token, Pending>,
    pub(super) tails: Room,
    pub(super) timeout_check_at: Monotonic,
    /// Followers that wait for an answer to their poll.
    polls: HashMap<Token, Subject>,
    tokens: u64,
    /// The tasks that listen to clients, of what is led here.
    listening: BTreeMap<Place, AbortHandle>,
    /// What is led here since a moment when nothing could be served: until something can, clients are to hear that nobody is there.
    deaf: BTreeSet<Place>,
    followers: Option<(StorageId, AbortHandle)>,
    pub(super) hub: Hub,
    events: mpsc::Sender<Event>,
    pub(super) clock: Clock,
    lease: Lease,
    told_may_lead: bool,
    /// What the engine was told.
    may_lead: bool,
    effects: Vec<Effect<Failure>>,
}

pub(super) fn start(
    options: Options,
    runtime: Handle,
    commands: mpsc::WeakSender<Command>,
    incoming: mpsc::Receiver<Command>,
) -> Result<(), StartError> {
    let Options { directory, records, client, subjects, events, clock, lease, vitals } = options;
    let RecordSettings { catch_up_rate, page_cache, stray_retention } = records;
    let directory = LogDirectory::open(directory, std::sync::Arc::new(RealDisk), DEFAULT_OPEN_FILES)?;
    if let Some(bytes) = page_cache {
        directory.files().bound_page_cache(bytes.get());
    }
    let (flusher, synced) = Flusher::start(directory.committer())?;
    let worker = Worker {
        engine: Replicas::new(replicas::Settings { catch_up_rate, ..replicas::Settings::default() }),
        directory,
        held: BTreeMap::new(),
        changes: Changes::default(),
        peers: BTreeMap::new(),
        me: None,
        faults: Faults::default(),
        vitals: vitals.clone(),
        lag_at: Monotonic(0),
        upkeep: Upkeep::new(stray_retention),
        flusher,
        fetches: Fetches::default(),
        coordinators: BTreeMap::new(),
        offsets_partitions: 0,
        pending: HashMap::new(),
        tails: Room::default(),
        timeout_check_at: Monotonic(0),
        polls: HashMap::new(),
        tokens: 0,
        listening: BTreeMap::new(),
        deaf: BTreeSet::new(),
        followers: None,
        hub: Hub::new(client, subjects, commands, runtime, clock, lease.clone(), vitals),
        events,
        clock,
        lease,
        told_may_lead: false,
        may_lead: false,
        effects: Vec::new(),
    };
    // A runtime of its own with this one thread: what blocks on the disk holds up nobody else.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let run = move || runtime.block_on(worker.run(incoming, synced));
    std::thread::Builder::new().name("dmq-partitions".into()).spawn(run)?;
    Ok(())
}

impl Worker {
    async fn run(mut self, mut incoming: mpsc::Receiver<Command>, mut synced: mpsc::Receiver<Vec<Synced>>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let deadline =
                [self.engine.next_deadline(), self.fetches.deadline(), self.pending_deadline(), self.faults.deadline()];
            let deadline = deadline.into_iter().chain([self.upkeep_deadline(), self.changes_deadline()]);
            let deadline = deadline.flatten().min().map(|at| self.clock.instant(at));
            tokio::select! {
                biased;
                Some(done) = synced.recv() => self.synced(done),
                count = incoming.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return;
                    }
                }
                () = until(deadline) => {}
            }
            let now = self.clock.monotonic();
            self.look_at_lease(now);
            for command in batch.drain(..) {
                if let Command::Stop(done) = command {
                    self.stop().await;
                    let _ = done.send(());
                    return;
                }
                self.command(now, command).await;
            }
            self.go_on_with_changes(now);
            self.retry_faults(now);
            self.keep_up(now);
            self.settle(now).await;
        }
    }

    /// Carries out what became possible.
    async fn settle(&mut self, now: Monotonic) {
        loop {
            // What is carried out may lead to more.
            self.engine.limit_messages(self.hub.max_payload());
            self.engine.step(now, &mut self.effects);
            if self.effects.is_empty() {
                break;
            }
            for effect in std::mem::take(&mut self.effects) {
                self.carry_out(effect).await;
            }
        }
        self.flusher.begin();
        for place in self.engine.take_moved() {
            for fetch in self.fetches.take(place) {
                self.fetch(now, fetch).await;
            }
        }
        for fetch in self.fetches.take_due(now) {
            self.fetch(now, fetch).await;
        }
        self.tell_lag(now);
        self.time_out(now).await;
    }

    fn look_at_lease(&mut self, now: Monotonic) {
        let may = self.told_may_lead && self.lease.holds(self.clock);
        if may != std::mem::replace(&mut self.may_lead, may) {
            self.give(now, Input::MayLead(may));
            if may {
                // What was asked meanwhile got no answer.
                self.tell_leads();
            }
        }
        if may {
            std::mem::take(&mut self.deaf).into_iter().for_each(|place| self.listen_to_clients(place));
        }
    }

    pub(super) fn give(&mut self, now: Monotonic, input: Input<PartitionLog>) {
        self.engine.take(now, input, &mut self.effects);
    }

    pub(super) fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    async fn command(&mut self, now: Monotonic, command: Command) {
        match command {
            Command::Member(member) => {
                self.me = Some(member.storage);
                self.give(now, Input::Member(member));
                self.listen_to_followers(member.storage);
            }
            Command::Peers(peers) => {
                self.peers = peers.clone();
                self.give(now, Input::Peers(peers));
            }
            Command::Replicas { assigned, unassigned } => self.replicas_changed(now, assigned, unassigned),
            Command::MayLead(may) => {
                self.told_may_lead = may;
                self.look_at_lease(now);
            }
            Command::Disconnected => self.give(now, Input::Disconnected),
            Command::SubjectsChanged => self.listen_anew(),
            Command::OffsetsPartitions(count) => self.offsets_partitions = count,
            Command::InSyncAnswers(outcomes) => {
                outcomes.into_iter().for_each(|outcome| self.give(now, Input::InSyncAnswer(outcome)));
            }
            Command::Poll { payload, reply } => {
                let token = self.token();
                self.polls.insert(token, reply);
                self.give(now, Input::Poll { payload, token });
                match self.engine.take_refused() {
                    0 => {}
                    count => self.hub.refuse(Whose::Followers, count, || {
                        "a poll is of another cluster, or of no incarnation that is registered".into()
                    }),
                }
            }
            Command::PollAnswer { call, result } => self.give(now, Input::PollAnswer { call, result }),
            Command::Data { place, request, reply, .. } => self.request(now, place, request, reply).await,
            Command::Unreadable { place, error } => self.unreadable(place, &error),
            Command::Fetch(fetch) => self.fetch(now, fetch).await,
            Command::Loaded(loaded) => self.loaded(loaded),
            Command::Stop(_) => {}
        }
    }

    async fn carry_out(&mut self, effect: Effect<Failure>) {
        match effect {
            Effect::Poll { call, to, message, timeout } => self.hub.poll(call, to, message, timeout),
            Effect::Answer { token, message } => {
                if let Some(to) = self.polls.remove(&token) {
                    self.hub.reply(Reply { to, headers: async_nats::HeaderMap::new(), payload: message }).await;
                }
            }
            Effect::Flush(ends) => ends.into_iter().for_each(|end| self.flush(end)),
            Effect::Acknowledge { token, result } => self.acknowledge(token, result).await,
            Effect::Dropped { place, error } => self.not_appended(place, &error),
            Effect::AskInSync(wishes) => self.ask_in_sync(wishes),
            Effect::Leads { place, leader_epoch } => {
                let Some(id) = self.id(place) else { return };
                tracing::info!(partition = %id, %leader_epoch, "leads");
                if self.may_lead {
                    self.listen_to_clients(place);
                } else {
                    self.deaf.insert(place);
                }
            }
            Effect::LeadsNoMore(place) => self.silence(place),
            Effect::Unreadable { place, error } => self.unreadable(place, error.error()),
            Effect::Left { place, leader_epoch } => self.left(place, leader_epoch),
            // The engine does nothing more with it.
            Effect::Failed { place, error } => self.failed_so(place, &error, false),
        }
    }

    /// The shell may wait for this thread, so this thread never waits for the shell.
    pub(super) fn ask_in_sync(&mut self, wishes: Vec<InSyncWish>) {
        let refused: Vec<_> = wishes.iter().map(|wish| wish.outcome(false)).collect();
        if self.events.try_send(Event::Input(core::Input::InSyncWishes(wishes))).is_err() {
            let now = self.clock.monotonic();
            refused.into_iter().for_each(|outcome| self.give(now, Input::InSyncAnswer(outcome)));
        }
    }

    /// The name of a partition that this node holds.
    pub(super) fn id(&self, place: Place) -> Option<&TopicPartition> {
        Some(&self.held.get(&place)?.id)
    }

    /// How a partition stands that is led here, while anything may be said of it.
    pub(super) fn led(&self, place: Place) -> Option<Led> {
        self.engine.led(place).filter(|_| self.lease.holds(self.clock))
    }

    fn listen_to_clients(&mut self, place: Place) {
        let Some(id) = self.id(place) else { return };
        let listening = self.hub.listen_to_clients(place, id, self.leads(place));
        if let Some(before) = self.listening.insert(place, listening) {
            before.abort();
        }
    }

    fn tell_leads(&self) {
        let led = self.listening.keys().filter_map(|place| Some((self.id(*place)?.clone(), self.leads(*place)?)));
        self.hub.tell_leads(led.collect());
    }

    /// What its clients are told.
    fn leads(&self, place: Place) -> Option<Leads> {
        let leader_epoch = self.engine.led(place)?.leader_epoch;
        Some(Leads { storage: self.me?, leader_epoch, topic_id: place.0 })
    }

    pub(super) fn silence(&mut self, place: Place) {
        self.coordinators.remove(&place);
        self.deaf.remove(&place);
        if let Some(listening) = self.listening.remove(&place) {
            listening.abort();
        }
    }

    fn listen_to_followers(&mut self, me: StorageId) {
        if self.followers.as_ref().is_none_or(|(id, _)| *id != me) {
            let listening = self.hub.listen_to_followers(me);
            if let Some((_, before)) = self.followers.replace((me, listening)) {
                before.abort();
            }
        }
    }

    fn listen_anew(&mut self) {
        if let Some((me, before)) = self.followers.take() {
            before.abort();
            self.listen_to_followers(me);
        }
        let places: Vec<_> = self.listening.keys().copied().collect();
        places.into_iter().for_each(|place| self.listen_to_clients(place));
    }

    fn flush(&mut self, end: LogEnd) {
        let Some(log) = self.engine.log_mut(end.place) else { return };
        if log.is_relaxed {
            let now = self.clock.monotonic();
            self.give(now, Input::Flushed(vec![end]));
            return;
        }
        match log.log.begin_sync() {
            Ok(Some(ticket)) => self.flusher.add(end, ticket),
            // It is on the disk already: a roll syncs as well.
            Ok(None) => {
                let now = self.clock.monotonic();
                self.give(now, Input::Flushed(vec![end]));
            }
            // Nothing that it has not stored is ever acknowledged.
            Err(error) => self.failed(end.place, &error.into()),
        }
    }

    fn synced(&mut self, done: Vec<Synced>) {
        self.flusher.ended();
        let now = self.clock.monotonic();
        let mut flushed = Vec::with_capacity(done.len());
        for Synced { end, ticket, result } in done {
            let Some(log) = self.engine.log_mut(end.place) else { continue };
            match log.log.finish_sync(ticket, result) {
                Ok(()) => flushed.push(end),
                Err(error) => self.failed(end.place, &error.into()),
            }
        }
        self.give(now, Input::Flushed(flushed));
    }

    async fn stop(&mut self) {
        for listening in std::mem::take(&mut self.listening).into_values() {
            listening.abort();
        }
        let mut logs: Vec<&mut Log> = self.engine.logs_mut().map(|log| &mut log.log).collect();
        for error in self.directory.checkpoint_all(&mut logs).into_iter().filter_map(Result::err) {
            tracing::error!(%error, "a log was not closed cleanly; the next start reads more of it");
        }
        self.remember_starts();
    }
}

async fn until(deadline: Option<std::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
