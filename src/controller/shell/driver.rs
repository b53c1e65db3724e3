//! The one task that owns the core: it takes what was reported, hands it to the core with the time, and has the effects
//! carried out in their order.
//!
//! A turn goes through the channels by what waits for them: answers of the stream and the lease first, heartbeats last and
//! a few at a time, so that no number of heartbeats delays a change.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Message, StatusCode, Subject};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::admin::{self, AdminRequest};
use super::disk::{self, Disk, DiskState, Job};
use super::lease::{self, Ask};
use super::link;
use super::listen::{Ears, Heard, Listener};
use super::{JetStream, message_limit, view};
use crate::bus::advisories::Disconnect;
use crate::bus::lease::LeaseEvent;
use crate::bus::log::FollowEvent;
use crate::bus::service::Responder;
use crate::config::{self, Services};
use crate::controller::core::{Controller, Effect, Identity, Input, Now, Token};
use crate::disk::{DataDirectory, MetadataReader, MetadataStore};
use crate::process::{self, Clock, LinkEvent, ProcessError};
use crate::types::{ClusterId, Connection, StorageId, TopicId, Version};
use crate::wire::{Code, WireError};

/// What reaches the driver from the tasks beside it.
pub(super) enum Report {
    Input(Input),
    Link(LinkEvent),
    Services(Arc<Services>),
    /// Somebody needs a newer snapshot than this disk has.
    WantsSnapshot,
}

impl From<LinkEvent> for Report {
    fn from(event: LinkEvent) -> Self {
        Self::Link(event)
    }
}

/// Where an answer goes.
pub(super) enum Reply {
    Plain(Subject),
    Admin(Box<Responder>),
}

/// What the driver is made of.
pub(super) struct Parts {
    pub(super) core: Controller,
    pub(super) me: Identity,
    pub(super) belongs_to: Option<ClusterId>,
    /// No message is longer than this, whatever the server takes.
    pub(super) message_cap: usize,
    pub(super) clock: Clock,
    pub(super) connection: config::Connection,
    pub(super) jetstream: JetStream,
    pub(super) services: watch::Receiver<Arc<Services>>,
    pub(super) advisories: Option<(Client, mpsc::Receiver<Disconnect>)>,
}

pub(super) struct Driver {
    pub(super) core: Controller,
    pub(super) me: Identity,
    /// The cluster that the directory was bound to when this process began.
    pub(super) belongs_to: Option<ClusterId>,
    message_cap: usize,
    pub(super) clock: Clock,
    pub(super) client: Client,
    pub(super) generation: watch::Receiver<u64>,
    pub(super) jetstream: JetStream,
    pub(super) services: Arc<Services>,
    advisories: Option<(Client, mpsc::Receiver<Disconnect>)>,
    pub(super) jobs: mpsc::Sender<Job>,
    pub(super) reader: MetadataReader,
    pub(super) asks: mpsc::Sender<Ask>,
    effects: Vec<Effect>,
    /// Of the heartbeat that the core has before it: it is answered at once or never.
    pub(super) heartbeat: Option<(Token, Subject)>,
    pub(super) replies: HashMap<Token, Reply>,
    next_token: u64,
    /// The push and ack subjects, so that none is built per push.
    pub(super) subjects: HashMap<StorageId, (Subject, Subject)>,
    pub(super) followed: Option<mpsc::Receiver<FollowEvent>>,
    pub(super) lease_events: Option<mpsc::Receiver<LeaseEvent>>,
    pub(super) serves: watch::Sender<bool>,
    pub(super) fetches_under_way: Arc<Semaphore>,
    /// Held while snapshots are written, or old ones removed.
    pub(super) snapshots_busy: Arc<tokio::sync::Mutex<()>>,
    compactions_seen: u64,
    compacting: bool,
    pub(super) tasks: JoinSet<()>,
    pub(super) reports: mpsc::Sender<Report>,
    pub(super) ended: Option<Result<(), ProcessError>>,
}

/// The ends of channels that the driver takes from.
struct Inbox {
    reports: mpsc::Receiver<Report>,
    disk: watch::Receiver<DiskState>,
    acks: mpsc::Receiver<Heard>,
    peers: mpsc::Receiver<Heard>,
    fetches: mpsc::Receiver<Heard>,
    admin: mpsc::Receiver<AdminRequest>,
    heartbeats: mpsc::Receiver<Heard>,
    shutdown: mpsc::Receiver<()>,
}

/// After so many turns in a row, others have theirs.
const TURNS: u32 = 2;
/// How many of one sort are taken in a turn.
const BATCH: usize = 64;
const REPORTS: usize = 1_024;
const HEARTBEATS: usize = 8_192;
const ACKS: usize = 4_096;
const OTHERS: usize = 256;
/// How many fetches are served at a time.
const FETCHES: usize = 16;
/// More unanswered admin requests than this are refused. The core lets 16,384 nodes wait that register.
const REPLIES: usize = 20_480;
/// Entries are not taken from the stream while the disk has fewer free places than this.
const DISK_ROOM: usize = 512;
/// A deadline of the core that is past is looked at this often.
const BREATH: Duration = Duration::from_millis(1);

impl Driver {
    /// Runs until the core has stopped, or cannot go on.
    pub(super) async fn run(
        parts: Parts,
        directory: DataDirectory,
        store: MetadataStore,
        shutdown: mpsc::Receiver<()>,
    ) -> Result<(), ProcessError> {
        let Parts { core, me, belongs_to, message_cap, clock, connection, jetstream, services: source, advisories } =
            parts;
        let (client, generation) = (connection.client.clone(), connection.generation.clone());
        let services = source.borrow().clone();
        let Disk { jobs, state: disk, reader, thread } = disk::start(directory, store)?;
        let (reports, reports_in) = mpsc::channel(REPORTS);
        let (heartbeats, heartbeats_in) = mpsc::channel(HEARTBEATS);
        let (acks, acks_in) = mpsc::channel(ACKS);
        let (peers, peers_in) = mpsc::channel(OTHERS);
        let (fetches, fetches_in) = mpsc::channel(OTHERS);
        let (admin, admin_in) = mpsc::channel(admin::WAITING);
        let (asks, asks_in) = mpsc::channel(lease::WAITING);
        let serves = watch::Sender::new(false);

        let ears = Ears { heartbeats, acks, peers, fetches };
        let mut listener = Listener::new(client.clone(), clock, me.controller, ears);
        listener.listen(&services).await.map_err(ProcessError::Subscriptions)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(listener.work(source.clone(), reports.clone()));
        tasks.spawn(admin::work(client.clone(), source, serves.subscribe(), admin));
        let tended = jetstream.clone();
        tasks.spawn(process::watch(connection, reports.clone(), move || link::make_sure(tended.clone())));
        // On its own, so that its end can be waited for.
        let mut releasing = JoinSet::new();
        releasing.spawn(lease::work(jetstream.lease.clone(), generation.clone(), asks_in, reports.clone()));

        let mut inbox = Inbox {
            reports: reports_in,
            disk,
            acks: acks_in,
            peers: peers_in,
            fetches: fetches_in,
            admin: admin_in,
            heartbeats: heartbeats_in,
            shutdown,
        };
        let view = view(&services, &jetstream.log);
        let mut driver = Self {
            core,
            me,
            belongs_to,
            message_cap,
            clock,
            client,
            generation,
            jetstream,
            services,
            advisories,
            jobs,
            reader,
            asks,
            effects: Vec::new(),
            heartbeat: None,
            replies: HashMap::new(),
            next_token: 0,
            subjects: HashMap::new(),
            followed: None,
            lease_events: None,
            serves,
            fetches_under_way: Arc::new(Semaphore::new(FETCHES)),
            snapshots_busy: Arc::default(),
            compactions_seen: 0,
            compacting: false,
            tasks,
            reports,
            ended: None,
        };
        driver.feed(Input::Services(Arc::new(view))).await;
        let result = driver.drive(&mut inbox).await;
        driver.end(releasing, thread).await;
        result
    }

    async fn drive(&mut self, inbox: &mut Inbox) -> Result<(), ProcessError> {
        let mut turns = 0;
        loop {
            let worked = self.turn(inbox).await;
            if let Some(ended) = self.ended.take() {
                return ended;
            }
            while self.tasks.try_join_next().is_some() {}
            if !worked {
                turns = 0;
                self.wait(inbox).await;
                continue;
            }
            turns += 1;
            if turns % TURNS == 0 {
                // Others on this thread have their turn, however much there is to do here. It wakes another thread, too, so
                // not after a turn that was all.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Takes a few of everything that is there. False where there was nothing.
    async fn turn(&mut self, inbox: &mut Inbox) -> bool {
        let mut worked = self.urgent(inbox).await;
        worked |= self.entries().await;
        for _ in 0..BATCH {
            let Ok(heard) = inbox.acks.try_recv() else { break };
            worked = true;
            self.on_ack(heard).await;
            worked |= self.urgent(inbox).await;
        }
        for _ in 0..BATCH {
            let Ok(request) = inbox.admin.try_recv() else { break };
            worked = true;
            self.on_admin(request).await;
        }
        for _ in 0..BATCH {
            let Ok(heard) = inbox.peers.try_recv() else { break };
            worked = true;
            self.feed(Input::ControllerHeartbeat { payload: heard.message.payload }).await;
        }
        for _ in 0..BATCH {
            let Ok(heard) = inbox.fetches.try_recv() else { break };
            worked = true;
            self.on_fetch(heard).await;
        }
        for _ in 0..BATCH {
            let Ok(heard) = inbox.heartbeats.try_recv() else { break };
            worked = true;
            self.on_heartbeat(heard).await;
            if !inbox.reports.is_empty() || !inbox.acks.is_empty() || !inbox.admin.is_empty() {
                break;
            }
        }
        if self.core.next_deadline().is_some_and(|deadline| deadline <= self.clock.monotonic()) {
            self.feed(Input::Tick).await;
        }
        worked
    }

    /// What decides who writes, and what was written.
    async fn urgent(&mut self, inbox: &mut Inbox) -> bool {
        let mut worked = false;
        for _ in 0..BATCH {
            let Ok(report) = inbox.reports.try_recv() else { break };
            worked = true;
            self.on_report(report).await;
        }
        if inbox.shutdown.try_recv().is_ok() {
            worked = true;
            self.on_shutdown().await;
        }
        if inbox.disk.has_changed().unwrap_or(false) {
            worked = true;
            let state = inbox.disk.borrow_and_update().clone();
            self.on_disk(state).await;
        }
        for _ in 0..BATCH {
            let Some((_, advisories)) = &mut self.advisories else { break };
            let Ok(disconnect) = advisories.try_recv() else { break };
            worked = true;
            self.on_advisory(disconnect).await;
        }
        for _ in 0..BATCH {
            let Some(event) = self.lease_events.as_mut().and_then(|events| events.try_recv().ok()) else { break };
            worked = true;
            self.feed(lease::to_input(event)).await;
        }
        worked
    }

    async fn entries(&mut self) -> bool {
        let mut worked = false;
        for _ in 0..BATCH {
            if self.jobs.capacity() < DISK_ROOM {
                break;
            }
            let Some(event) = self.followed.as_mut().and_then(|events| events.try_recv().ok()) else { break };
            worked = true;
            self.on_follow(event).await;
        }
        worked
    }

    /// Sleeps until there is something to do. Whatever it takes from a channel, it handles.
    async fn wait(&mut self, inbox: &mut Inbox) {
        let now = Instant::now();
        let deadline = self.core.next_deadline().map(|at| Instant::from_std(self.clock.instant(at)));
        let deadline = deadline.unwrap_or(now + Duration::from_secs(1)).max(now + BREATH);
        let has_room = self.jobs.capacity() >= DISK_ROOM;
        tokio::select! {
            biased;
            Some(report) = inbox.reports.recv() => self.on_report(report).await,
            Some(()) = inbox.shutdown.recv() => self.on_shutdown().await,
            changed = inbox.disk.changed() => match changed {
                Ok(()) => {
                    let state = inbox.disk.borrow_and_update().clone();
                    self.on_disk(state).await;
                }
                Err(_) => self.ended = Some(Err(ProcessError::Ended("the disk's thread has ended".into()))),
            },
            Some(disconnect) = next(self.advisories.as_mut().map(|(_, events)| events)) => {
                self.on_advisory(disconnect).await;
            }
            Some(event) = next(self.lease_events.as_mut()) => self.feed(lease::to_input(event)).await,
            Some(event) = next(self.followed.as_mut()), if has_room => self.on_follow(event).await,
            Some(heard) = inbox.acks.recv() => self.on_ack(heard).await,
            Some(request) = inbox.admin.recv() => self.on_admin(request).await,
            () = tokio::time::sleep_until(deadline) => self.feed(Input::Tick).await,
            Some(heard) = inbox.peers.recv() => {
                self.feed(Input::ControllerHeartbeat { payload: heard.message.payload }).await;
            }
            Some(heard) = inbox.fetches.recv() => self.on_fetch(heard).await,
            Some(heard) = inbox.heartbeats.recv() => self.on_heartbeat(heard).await,
        }
    }

    async fn on_report(&mut self, report: Report) {
        match report {
            Report::Input(input) => self.feed(input).await,
            Report::Link(LinkEvent::Up { connection, max_payload }) => {
                match message_limit(max_payload, self.message_cap) {
                    Ok(limit) => self.feed(Input::MessageLimit(limit)).await,
                    Err(error) => return self.ended = Some(Err(error)),
                }
                // A watch from before would not repeat what it has said, and the core wants to hear how things stand.
                self.lease_events = Some(self.jetstream.lease.watch(self.generation.clone(), BATCH));
                self.feed(Input::Connected(connection)).await;
            }
            Report::Link(LinkEvent::Down) => self.feed(Input::Disconnected).await,
            Report::Services(services) => {
                tracing::info!("a new services.json holds");
                let view = view(&services, &self.jetstream.log);
                view.problems.iter().for_each(|problem| tracing::error!("{problem}"));
                self.services = services;
                self.subjects.clear();
                self.feed(Input::Services(Arc::new(view))).await;
            }
            Report::WantsSnapshot => self.compact(),
        }
    }

    async fn on_shutdown(&mut self) {
        tracing::info!("asked to end");
        self.feed(Input::Shutdown).await;
    }

    async fn on_disk(&mut self, state: DiskState) {
        if self.compactions_seen != state.compactions {
            self.compactions_seen = state.compactions;
            self.compacting = false;
        }
        if let Some(words) = state.failed {
            return self.feed(Input::PersistFailed(words)).await;
        }
        self.feed(Input::Persisted(state.position)).await;
        if state.is_long {
            self.compact();
        }
    }

    /// Has the disk's history begin anew with the present image. All changes up to it are in the queue before this.
    fn compact(&mut self) {
        let history = self.core.history();
        let Some(image) = history.image().filter(|_| !self.compacting) else { return };
        let job = Job::Compact { image: Box::new(image.clone()), position: history.position() };
        // Where the queue is full, the next state of the disk asks again.
        self.compacting = self.jobs.try_send(job).is_ok();
    }

    async fn on_advisory(&mut self, disconnect: Disconnect) {
        // Command lines come and go; only the services' connections mean something here.
        if !disconnect.by_client || !disconnect.name.starts_with("dmq-") || disconnect.name.starts_with("dmq-cli") {
            return;
        }
        tracing::debug!(name = disconnect.name, client = disconnect.client_id, "a connection ended");
        let connection = Connection { server: disconnect.server_id.into(), client: disconnect.client_id };
        self.feed(Input::ConnectionEnded(connection)).await;
    }

    async fn on_follow(&mut self, event: FollowEvent) {
        match event {
            FollowEvent::Entry { sequence, payload } => {
                self.feed(Input::Entry { version: Version(sequence), payload }).await;
            }
            // An active controller wrote it itself, and may purge it before it comes back here.
            FollowEvent::Purged { first_available } if self.core.history().seen().next().0 >= first_available => {}
            FollowEvent::Purged { first_available } => {
                tracing::info!(first_available, "the history was purged beyond what was read of it");
                // What follows stands on what is gone. The core finds out when it asks for the head, and says where to go on.
                self.followed = None;
            }
            // The core asks for the head by itself, and is loud where the history is lost.
            FollowEvent::Lost { head } => tracing::debug!(?head, "the history's stream is not what it was"),
        }
    }

    async fn on_ack(&mut self, heard: Heard) {
        let Some(storage) = self.services.ack_of(&heard.message.subject) else {
            return self.on_stray(heard.message).await;
        };
        let input = match heard.message.status {
            // The server's own word on a push of ours.
            Some(StatusCode::NO_RESPONDERS) => Input::PushUnheard { storage },
            Some(_) | None => Input::Ack { storage, payload: heard.message.payload },
        };
        self.feed(input).await;
    }

    async fn on_heartbeat(&mut self, heard: Heard) {
        let Heard { received_at, message } = heard;
        let Some(storage) = self.services.heartbeat_of(&message.subject) else { return self.on_stray(message).await };
        let token = self.token();
        self.heartbeat = message.reply.map(|reply| (token, reply));
        let input = Input::Heartbeat { storage, received_at, payload: message.payload, token };
        self.feed(input).await;
        self.heartbeat = None;
    }

    async fn on_stray(&mut self, message: Message) {
        let token = self.token();
        self.heartbeat = message.reply.map(|reply| (token, reply));
        self.feed(Input::Stray { subject: message.subject.to_string(), token }).await;
        self.heartbeat = None;
    }

    async fn on_fetch(&mut self, heard: Heard) {
        let Some(reply) = heard.message.reply else { return };
        let token = self.token();
        self.replies.insert(token, Reply::Plain(reply));
        self.feed(Input::Fetch { payload: heard.message.payload, token }).await;
    }

    async fn on_admin(&mut self, request: AdminRequest) {
        let AdminRequest { noun, verb, payload, responder } = request;
        if self.replies.len() >= REPLIES {
            let error = WireError::new(Code::Busy, "too many requests wait at the controller; ask again later");
            return admin::fail(responder, &error).await;
        }
        let token = self.token();
        self.replies.insert(token, Reply::Admin(Box::new(responder)));
        let (noun, verb) = (noun.to_owned(), verb.to_owned());
        let fresh_id = TopicId(uuid::Uuid::new_v4());
        self.feed(Input::Admin { noun, verb, payload, token, fresh_id }).await;
    }

    fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }

    /// Gives the core one input, and carries out what it says.
    async fn feed(&mut self, input: Input) {
        let now = Now { monotonic: self.clock.monotonic(), wall: self.clock.wall() };
        let mut effects = std::mem::take(&mut self.effects);
        self.core.handle(now, input, &mut effects);
        let mut serves = *self.serves.borrow();
        for effect in effects.drain(..) {
            if let Effect::Serve(wanted) = effect {
                serves = wanted;
                continue;
            }
            self.carry_out(now, effect).await;
        }
        self.effects = effects;
        // After the answers that came with it: a service that stops lets no more of them out.
        if self.serves.send_if_modified(|before| std::mem::replace(before, serves) != serves) && !serves {
            self.replies.retain(|_, reply| matches!(reply, Reply::Plain(_)));
        }
    }

    /// Ends in order: the lease is given back, the disk has what was acknowledged, what was said is sent.
    async fn end(self, mut releasing: JoinSet<()>, thread: std::thread::JoinHandle<()>) {
        const AT_MOST: Duration = Duration::from_secs(1);
        let Self { asks, jobs, serves, mut tasks, client, reports, .. } = self;
        serves.send_replace(false);
        // Nobody reads them any more, and nobody may wait for room.
        drop((asks, jobs, reports));
        // Its worker ends when it has done what it was asked.
        let _ = tokio::time::timeout(AT_MOST, releasing.join_next()).await;
        tasks.shutdown().await;
        let _ = tokio::time::timeout(AT_MOST, tokio::task::spawn_blocking(move || thread.join())).await;
        let _ = tokio::time::timeout(AT_MOST, client.flush()).await;
    }
}

/// The next event of a channel that may not be there, or has ended: then never.
async fn next<T>(events: Option<&mut mpsc::Receiver<T>>) -> Option<T> {
    match events {
        Some(events) => match events.recv().await {
            Some(event) => Some(event),
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}
