//! A controller: the shipped core, and a shell after the real one's, over the fake NATS and a fake disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::bus::{Answer, Op, QUESTION};
use super::queue::{MS, SECOND, Time};
use super::world::{CONTROLLERS, Mail, NODES, Proc, World, name};
use crate::controller::core::{
    AppendResult, Controller, Effect, Holder, Identity, Input, LeaseResult, MetadataHolder, Now, ServicesView,
    Settings, Token,
};
use crate::disk::{MetadataStore, StoredChange};
use crate::metadata::{Change, History, Image, SnapshotRef, read_snapshot, write_snapshot};
use crate::process::recover;
use crate::process::serve::Fetch;
use crate::types::{ClusterId, ControllerId, Monotonic, Position, StorageId, TopicId, Version};
use crate::wire::{FetchAnswer, FetchRequest, WireMessage};

pub const LEASE_MS: u64 = 2_000;
pub const SESSION: Time = 3 * SECOND;

pub struct ControllerProc {
    pub core: Controller,
    store: MetadataStore,
    belongs_to: Option<ClusterId>,
    pub serving: bool,
    tokens: BTreeMap<Token, u64>,
    next_token: u64,
    jobs: VecDeque<Job>,
    writing: Vec<Job>,
    /// The next message that the follower delivers.
    follows: Option<u64>,
    lease: LeaseWorker,
    /// The lease's last revision that the core was told of, or None where it was told that it is free.
    pub watched: Option<Option<u64>>,
    compacting: bool,
}

#[derive(Default)]
struct LeaseWorker {
    asks: VecDeque<Ask>,
    busy: bool,
    own: Option<u64>,
}

enum Ask {
    Put { revision: Option<u64>, holder: Holder, sent_at: Monotonic },
    Release(u64),
}

enum Job {
    Persist(Arc<Change>),
    Skip(Position),
    Install { image: Box<Image>, position: Position },
    Bind(ClusterId),
    Compact { image: Box<Image>, position: Position },
}

impl Job {
    fn is_append(&self) -> bool {
        matches!(self, Self::Persist(_) | Self::Skip(_))
    }
}

fn settings(message_limit: usize) -> Settings {
    let ms = Duration::from_millis;
    Settings {
        heartbeat_interval: ms(500),
        session_timeout: Duration::from_micros(SESSION),
        lease: ms(LEASE_MS),
        admin_wait: ms(1_000),
        push_retry_min: ms(50),
        push_retry_max: ms(2_000),
        push_max_bytes: 8_000,
        history_probe: ms(1_000),
        leader_balance: Some(ms(10_000)),
        snapshot_every_entries: 30,
        snapshot_every_bytes: 1 << 20,
        message_limit,
    }
}

/// Nodes 0 to 2 are in services.json, each with the controller of its number; the others are not.
fn services() -> ServicesView {
    ServicesView {
        pairings: (0..CONTROLLERS as u32).map(|id| (StorageId(id), ControllerId(id))).collect(),
        storage: (0..CONTROLLERS as u32).map(StorageId).collect(),
        controllers: (0..CONTROLLERS as u32).map(ControllerId).collect::<BTreeSet<_>>(),
        problems: Vec::new(),
    }
}

impl World {
    pub fn start_controller(&mut self, proc: Proc) {
        let folder = &self.folders[self.hosts[proc].folder];
        let (belongs_to, directory) = (folder.cluster, folder.directory);
        let opened = folder.open().and_then(|(store, recovered)| {
            recover(recovered).map(|(history, last)| (store, history, last)).map_err(|error| error.to_string())
        });
        let (store, history, last) = match opened {
            Ok(opened) => opened,
            Err(words) => return self.start_failed(proc, &words),
        };
        let me = Identity {
            controller: ControllerId(proc as u32),
            directory,
            incarnation: self.hosts[proc].incarnation,
            founding: ClusterId(self.rng.uuid()),
        };
        self.check_recovered(proc, &history, history.controller_epoch());
        let limit = self.faults.message_limit;
        self.controllers[proc] = Some(Box::new(ControllerProc {
            core: Controller::new(me, settings(limit), history, last),
            store,
            belongs_to,
            serving: false,
            tokens: BTreeMap::new(),
            next_token: 0,
            jobs: VecDeque::new(),
            writing: Vec::new(),
            follows: None,
            lease: LeaseWorker::default(),
            watched: None,
            compacting: false,
        }));
        self.drive_controller(proc, Input::Services(Arc::new(services())));
    }

    pub fn controller_mail(&mut self, proc: Proc, arrived: Time, mail: Mail) {
        match mail {
            Mail::Controller(input) => self.drive_controller(proc, input),
            Mail::Heartbeat { storage, payload, request, .. } => {
                let received_at = self.clock_at(proc, arrived);
                let token = self.token(proc, request);
                self.drive_controller(proc, Input::Heartbeat { storage, received_at, payload, token });
            }
            Mail::Admin { noun, verb, payload, request } => {
                let token = self.token(proc, request);
                let fresh_id = TopicId(self.rng.uuid());
                let (noun, verb) = (noun.to_owned(), verb.to_owned());
                self.drive_controller(proc, Input::Admin { noun, verb, payload, token, fresh_id });
            }
            Mail::Fetch { payload, request } => {
                let token = self.token(proc, request);
                self.drive_controller(proc, Input::Fetch { payload, token });
            }
            Mail::Watch => self.watch_lease(proc),
            Mail::Follow => self.follow(proc),
            Mail::Leased { sent_at, result } => {
                if let Some(controller) = &mut self.controllers[proc] {
                    controller.lease.busy = false;
                    controller.lease.own = match result {
                        LeaseResult::Ours(revision) => Some(revision),
                        LeaseResult::Lost => None,
                        LeaseResult::Unknown => controller.lease.own,
                    };
                }
                self.drive_controller(proc, Input::LeaseAnswer { sent_at, result });
                self.work_on_lease(proc);
            }
            Mail::Written => self.controller_written(proc),
            Mail::Node(_) | Mail::Push(_) | Mail::Data(_) => {}
        }
    }

    fn token(&mut self, proc: Proc, request: u64) -> Token {
        let Some(controller) = &mut self.controllers[proc] else { return Token(0) };
        controller.next_token += 1;
        let token = Token(controller.next_token);
        controller.tokens.insert(token, request);
        token
    }

    pub fn drive_controller(&mut self, proc: Proc, input: Input) {
        let now = Now { monotonic: self.clock(proc), wall: self.wall(proc) };
        let Some(controller) = &mut self.controllers[proc] else { return };
        let mut effects = Vec::new();
        controller.core.handle(now, input, &mut effects);
        let mut serves = controller.serving;
        for effect in effects {
            match effect {
                Effect::Serve(wanted) => serves = wanted,
                effect => self.carry_out_for_controller(proc, now, effect),
            }
        }
        let Some(controller) = &mut self.controllers[proc] else { return };
        controller.serving = serves;
        let deadline = controller.core.next_deadline();
        self.check_controller(proc);
        self.plan_tick(proc, deadline);
    }

    fn carry_out_for_controller(&mut self, proc: Proc, now: Now, effect: Effect) {
        let sent_at = now.monotonic;
        match effect {
            Effect::AskHead { snapshot } => {
                let unknown = Input::Head { asked_at: sent_at, head: None };
                self.ask(proc, Op::Head { asked_at: sent_at, snapshot }, Mail::Controller(unknown), QUESTION);
            }
            Effect::Follow { after } => {
                if let Some(controller) = &mut self.controllers[proc] {
                    controller.follows = Some(after.0 + 1);
                }
                self.report(300, proc, Mail::Follow);
            }
            Effect::LoadSnapshot => {
                let unknown = Input::Loaded(Err("no answer".into()));
                self.ask(proc, Op::Load, Mail::Controller(unknown), 5 * SECOND);
            }
            Effect::Append { attempt, expected, payload } => self.append(proc, attempt, expected, payload),
            Effect::Read { version } => {
                let unknown = Input::Read { version, result: Err(()) };
                self.ask(proc, Op::Read(version), Mail::Controller(unknown), QUESTION);
            }
            Effect::TakeLease { revision, holder } => self.queue_ask(proc, Ask::Put { revision, holder, sent_at }),
            Effect::RenewLease { revision, holder } => {
                self.queue_ask(proc, Ask::Put { revision: Some(revision), holder, sent_at });
            }
            Effect::ReleaseLease { revision } => self.queue_ask(proc, Ask::Release(revision)),
            Effect::Serve(_) => {}
            Effect::Answer { token, payload } => self.answer(proc, token, payload),
            Effect::Fail { token, error } => self.answer(proc, token, error.encode()),
            Effect::Drop { token } => drop(self.controllers[proc].as_mut().map(|c| c.tokens.remove(&token))),
            Effect::Push { storage, payload } => self.push(proc, storage, payload),
            Effect::Announce(message) => {
                self.check_reported(proc, message.position, message.controller_epoch);
                let payload = message.encode();
                let Some(out) = self.hop_out(proc) else { return };
                for to in self.connected_controllers() {
                    self.send(out, to, || Mail::Controller(Input::ControllerHeartbeat { payload: payload.clone() }));
                }
            }
            Effect::Persist(change) => self.queue_job(proc, Job::Persist(change)),
            Effect::PersistSkip(position) => {
                self.seen.event("void entry");
                self.queue_job(proc, Job::Skip(position));
            }
            Effect::Install { image, position } => {
                self.seen.event("controller took a snapshot");
                self.queue_job(proc, Job::Install { image, position });
            }
            Effect::Bind(cluster) => self.queue_job(proc, Job::Bind(cluster)),
            Effect::ServeFetch { token, request, head } => self.serve_fetch(proc, token, request, head),
            Effect::WriteSnapshot { image, position } => {
                let unknown = Input::SnapshotWritten(Err("no answer".into()));
                self.ask(proc, Op::WriteSnapshot { image, position }, Mail::Controller(unknown), 5 * SECOND);
            }
            Effect::Purge { before } => {
                self.ask(proc, Op::Purge(before), Mail::Follow, SECOND);
            }
            Effect::Gather { holder, position } => {
                let unknown = Input::Loaded(Err("nobody answers".into()));
                self.ask(proc, Op::Gather { holder, position }, Mail::Controller(unknown), 5 * SECOND);
            }
            Effect::ListSnapshots => {
                let unknown = Input::SnapshotsListed(Err("no answer".into()));
                self.ask(proc, Op::ListSnapshots, Mail::Controller(unknown), 5 * SECOND);
            }
            Effect::Recreate { image, position } => {
                let unknown = Input::Recreated(Err("no answer".into()));
                self.ask(proc, Op::Recreate { image, position }, Mail::Controller(unknown), 5 * SECOND);
            }
            Effect::Log { words, .. } => {
                self.seen.words(&words);
                self.note(|| format!("{} says: {words}", name(proc)));
            }
            Effect::Exit { words } => {
                self.note(|| format!("{} cannot go on: {words}", name(proc)));
                self.folders[self.hosts[proc].folder].disk.kill();
                self.end(proc, Some(SECOND));
            }
            Effect::Stopped => {
                self.folders[self.hosts[proc].folder].disk.kill();
                self.end(proc, Some(2 * SECOND));
            }
        }
    }

    fn append(&mut self, proc: Proc, attempt: u64, expected: Version, payload: Bytes) {
        self.check_append(proc, &payload);
        let lost = self.controllers[proc].as_ref().is_some_and(|c| c.belongs_to.is_some()) && expected == Version::ZERO;
        if lost {
            let result = AppendResult::Refused("the history is gone".into());
            return self.report(100, proc, Mail::Controller(Input::Appended { attempt, result }));
        }
        let unknown = Input::Appended { attempt, result: AppendResult::Unknown };
        self.ask(proc, Op::Append { attempt, expected, payload }, Mail::Controller(unknown), QUESTION);
    }

    fn answer(&mut self, proc: Proc, token: Token, payload: Bytes) {
        let Some(request) = self.controllers[proc].as_mut().and_then(|c| c.tokens.remove(&token)) else { return };
        self.check_answer(proc, request, &payload);
        self.reply(proc, request, Answer::Body(payload));
    }

    fn push(&mut self, proc: Proc, storage: StorageId, payload: Bytes) {
        let Some(out) = self.hop_out(proc) else { return };
        let hears = |to: &Proc| {
            let node = self.nodes[*to - CONTROLLERS].as_ref();
            self.hosts[*to].connection.is_some() && node.is_some_and(|node| node.subscribed == Some(storage))
        };
        let hearing: Vec<_> = (CONTROLLERS..=CONTROLLERS + NODES).filter(hears).collect();
        if hearing.is_empty() {
            return self.send(out, proc, || Mail::Controller(Input::PushUnheard { storage }));
        }
        for to in hearing {
            self.send(out, to, || Mail::Push(payload.clone()));
        }
    }

    /// The watch tells of the lease's latest state, once.
    fn watch_lease(&mut self, proc: Proc) {
        let held = self.lease.held.as_ref().map(|held| (held.revision, held.holder.clone()));
        let Some(controller) = &mut self.controllers[proc] else { return };
        let revision = held.as_ref().map(|(revision, _)| *revision);
        if controller.watched.replace(revision) == Some(revision) {
            return;
        }
        let input = match held {
            Some((revision, holder)) => Input::LeaseHeld { holder: Some(holder), revision },
            None => Input::LeaseFree,
        };
        self.drive_controller(proc, input);
    }

    fn queue_ask(&mut self, proc: Proc, ask: Ask) {
        if let Some(controller) = &mut self.controllers[proc] {
            controller.lease.asks.push_back(ask);
        }
        self.work_on_lease(proc);
    }

    /// One request at a time, as the shell's worker does it.
    fn work_on_lease(&mut self, proc: Proc) {
        while let Some(controller) = &mut self.controllers[proc]
            && !controller.lease.busy
            && let Some(ask) = controller.lease.asks.pop_front()
        {
            match ask {
                Ask::Put { revision, holder, sent_at } => {
                    controller.lease.busy = true;
                    let unknown = Mail::Leased { sent_at, result: LeaseResult::Unknown };
                    self.ask(proc, Op::Take { revision, holder, sent_at }, unknown, LEASE_MS / 2 * MS);
                }
                Ask::Release(revision) => {
                    let revision = controller.lease.own.take().map_or(revision, |own| own.max(revision));
                    self.ask(proc, Op::Release(revision), Mail::Watch, SECOND);
                }
            }
        }
    }

    /// Hands on what the stream has, in order.
    fn follow(&mut self, proc: Proc) {
        loop {
            let host = &self.hosts[proc];
            let is_cut = host.connection.is_none() || host.cut_in;
            let Some(controller) = &mut self.controllers[proc] else { return };
            let Some(next) = controller.follows.filter(|_| !is_cut && self.stream.exists) else { return };
            if self.stream.first() > next {
                let has_it = controller.core.history().seen().next().0 >= self.stream.first();
                controller.follows = has_it.then(|| self.stream.first());
                if has_it {
                    continue;
                }
                return;
            }
            let Some(message) = self.stream.get(next) else { return };
            controller.follows = Some(next + 1);
            let payload = message.payload.clone();
            self.drive_controller(proc, Input::Entry { version: Version(next), payload });
        }
    }

    fn queue_job(&mut self, proc: Proc, job: Job) {
        if let Some(controller) = &mut self.controllers[proc] {
            controller.jobs.push_back(job);
        }
        self.work_on_disk(proc);
    }

    fn work_on_disk(&mut self, proc: Proc) {
        let delay = self.disk_time(proc);
        let Some(controller) = &mut self.controllers[proc] else { return };
        if !controller.writing.is_empty() {
            return;
        }
        let Some(first) = controller.jobs.pop_front() else { return };
        let appends = first.is_append();
        controller.writing.push(first);
        while appends && controller.jobs.front().is_some_and(Job::is_append) {
            controller.writing.extend(controller.jobs.pop_front());
        }
        self.report(delay, proc, Mail::Written);
    }

    pub fn disk_time(&mut self, proc: Proc) -> Time {
        let stall = self.hosts[proc].slow_disk_until.saturating_sub(self.now());
        stall + self.rng.between(150, 2_500)
    }

    fn controller_written(&mut self, proc: Proc) {
        let Some(controller) = &mut self.controllers[proc] else { return };
        let jobs = std::mem::take(&mut controller.writing);
        let folder = &mut self.folders[self.hosts[proc].folder];
        let done = carry_out(controller, jobs, &mut |cluster| folder.bind(cluster, proc as u32));
        let position = controller.store.position();
        match done {
            Ok(()) => self.drive_controller(proc, Input::Persisted(position)),
            Err(words) => self.drive_controller(proc, Input::PersistFailed(words)),
        }
        self.work_on_disk(proc);
    }

    /// The machine stops in the middle of what the disk is given.
    pub fn tear_controller_write(&mut self, proc: Proc, steps: u64) {
        let Some(controller) = &mut self.controllers[proc] else { return };
        let jobs = std::mem::take(&mut controller.writing);
        let folder = &mut self.folders[self.hosts[proc].folder];
        folder.disk.crash_after(steps);
        // Whether it is done is for the next start to find out.
        let _ = carry_out(controller, jobs, &mut |_| true);
    }

    fn serve_fetch(&mut self, proc: Proc, token: Token, request: FetchRequest, head: Position) {
        let Some(controller) = &mut self.controllers[proc] else { return };
        let Some(reply) = controller.tokens.remove(&token) else { return };
        let Some(cluster) = controller.core.history().image().map(|image| image.cluster) else { return };
        let reader = controller.store.reader();
        let fetch = Fetch { reader, cluster, controller: ControllerId(proc as u32), request, head, max_bytes: 12_000 };
        let served = fetch.serve();
        if served.wants_snapshot
            && !controller.compacting
            && let Some(image) = controller.core.history().image()
        {
            controller.compacting = true;
            let job = Job::Compact { image: Box::new(image.clone()), position: controller.core.history().position() };
            self.queue_job(proc, job);
        }
        let answer = match served.header {
            Some(header) => Answer::Chunk { header: header.into(), bytes: served.body },
            None => Answer::Body(served.body),
        };
        self.reply(proc, reply, answer);
    }

    pub fn write_snapshot(&mut self, image: &Image, position: Position) -> Result<SnapshotRef, String> {
        let mut bytes = Vec::new();
        write_snapshot(image, position, &mut bytes).map_err(|error| error.to_string())?;
        let read = read_snapshot(&mut &bytes[..]).map_err(|error| error.to_string())?;
        if read.0 != *image || read.1 != position {
            self.checker.break_rule(8, || format!("the snapshot of {position} reads back as something else"));
        }
        self.seen.event("snapshot");
        let snapshot = SnapshotRef { version: position.version, digest: position.digest, bytes: bytes.len() as u64 };
        self.stream.objects.insert(snapshot.name(), bytes.into());
        Ok(snapshot)
    }

    /// The metadata at a position, as the shell fetches it, from a controller or a storage node that can be reached.
    pub fn gather(&mut self, holder: MetadataHolder, target: Position) -> Result<Box<(Image, Position)>, String> {
        let (reader, proc) = match holder {
            MetadataHolder::Controller(id) => {
                let proc = id.0 as usize;
                (self.controllers.get(proc).and_then(Option::as_ref).map(|c| c.store.reader()), proc)
            }
            MetadataHolder::Storage(id) => {
                let at = |node: &Option<Box<super::nodes::NodeProc>>| {
                    node.as_ref().is_some_and(|node| node.subscribed == Some(id))
                };
                let found = self.nodes.iter().position(at).ok_or("nobody listens there")?;
                (self.nodes[found].as_ref().map(|node| node.store.reader()), CONTROLLERS + found)
            }
        };
        let host = &self.hosts[proc];
        let reader =
            reader.filter(|_| host.connection.is_some() && !host.cut_in && !host.cut_out && host.frozen.is_none());
        let reader = reader.ok_or("nobody answers")?;
        let mut history = History::new();
        for _ in 0..10_000 {
            if history.position() == target {
                break;
            }
            let before = history.position();
            let request = FetchRequest { cluster: None, storage: None, from: before, chunk: None };
            let cluster = ClusterId(uuid::Uuid::nil());
            let (source, controller) = (reader.clone(), ControllerId(0));
            let body =
                Fetch { reader: source, cluster, controller, request, head: target, max_bytes: 64_000 }.serve().body;
            let answer = FetchAnswer::decode(&body).map_err(|error| error.to_string())?;
            if let Some(error) = answer.error {
                return Err(error.to_string());
            }
            if let Some(snapshot) = answer.snapshot {
                let piece = reader.snapshot_chunk(snapshot, 0, usize::MAX).map_err(|error| error.to_string())?;
                let bytes = piece.ok_or("its snapshot was replaced")?.bytes;
                let (image, position) = read_snapshot(&mut &bytes[..]).map_err(|error| error.to_string())?;
                history = History::from_image(image, position);
                continue;
            }
            for entry in answer.entries {
                history.skip_to(Version(entry.version.0.saturating_sub(1)));
                let payload = Bytes::copy_from_slice(entry.entry.get().as_bytes());
                history.offer(entry.version, &payload).map_err(|error| error.to_string())?;
                if history.position() == target {
                    break;
                }
            }
            if history.position() != target {
                history.skip_to(answer.position.version.min(target.version));
            }
            if history.position() == before {
                break;
            }
        }
        if history.position() != target {
            return Err(format!("it ends at {}", history.position()));
        }
        history.image().cloned().map(|image| Box::new((image, target))).ok_or_else(|| "it is empty".into())
    }
}

fn carry_out(
    controller: &mut ControllerProc,
    jobs: Vec<Job>,
    bind: &mut dyn FnMut(ClusterId) -> bool,
) -> Result<(), String> {
    let ControllerProc { store, compacting, .. } = controller;
    let mut appended: Vec<StoredChange> = Vec::new();
    for job in jobs {
        match job {
            Job::Persist(change) => appended.push(StoredChange {
                position: change.position,
                controller_epoch: change.controller_epoch,
                messages: change.messages.iter().map(|message| (message.version, message.payload.clone())).collect(),
            }),
            Job::Skip(position) => {
                let skip = StoredChange { position, controller_epoch: store.controller_epoch(), messages: Vec::new() };
                match appended.last_mut() {
                    Some(last) if last.messages.is_empty() => *last = skip,
                    Some(_) | None => appended.push(skip),
                }
            }
            Job::Install { image, position } => install(store, &image, position)?,
            Job::Bind(cluster) => {
                if !bind(cluster) {
                    return Err("the directory belongs to another cluster".into());
                }
            }
            Job::Compact { image, position } => {
                *compacting = false;
                if store.position() == position {
                    store.roll().map_err(|error| error.to_string())?;
                    // What came to nothing is tried again when it is asked for again.
                    let _ = install(store, &image, position);
                }
            }
        }
    }
    let stored = store.position().version;
    appended.retain(|change| change.position.version > stored);
    store.append(&appended).map_err(|error| error.to_string())
}

fn install(store: &mut MetadataStore, image: &Image, position: Position) -> Result<(), String> {
    let written = store.install_snapshot(position, image.controller_epoch(), |writer| {
        write_snapshot(image, position, writer).map_err(|error| std::io::Error::other(error.to_string()))
    });
    written.map_err(|error| error.to_string())
}
