//! The controller's process: one loop that feeds the core and carries out its effects. Thin: it decides nothing.
//!
//! Every channel is bounded, and whatever blocks or takes long is done elsewhere and comes back as an input.

mod disk;
mod history;
mod serving;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_nats::{Client, HeaderMap, Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::SelectAll;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::core::{Controller, Effect, Holder, Identity, Input, Level, Now, ServicesView, Settings, Token};
use crate::bus::advisories::Disconnect;
use crate::bus::lease::{Lease, LeaseConfig, LeaseEvent};
use crate::bus::log::{FollowEvent, History, HistoryConfig, follow};
use crate::bus::snapshots::{Snapshots, SnapshotsConfig};
use crate::bus::{BusError, advisories, raw};
use crate::config::{ConnectError, NatsSettings, Services, connect_system};
use crate::disk::{DataDirectory, DirectoryError, MetadataReader, StoreError};
use crate::storage::StorageError;
use crate::storage::link::{Link, connect};
use crate::types::{ClusterId, Connection, ControllerId, IncarnationId, Monotonic, TopicId, WallTime};
use crate::wire::WireMessage;
use serving::{Desk, Pending};

const TIMEOUT: Duration = Duration::from_secs(2);
/// Messages that are taken in one turn before the loop looks at anything else.
const FAREWELL: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Start(#[from] StorageError),
    #[error(
        "the directory is that of controller {bound}, and --id asks for {asked}: give this controller another directory"
    )]
    OtherId { bound: u32, asked: ControllerId },
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("cannot prepare what the controllers need on NATS: {0}")]
    Bus(#[from] BusError),
    #[error("a thread or a signal handler cannot be had from the system: {0}")]
    System(#[from] std::io::Error),
    /// The core's own words.
    #[error("{0}")]
    Ended(String),
}

/// What a controller is started with.
pub struct Options {
    pub id: ControllerId,
    pub data: PathBuf,
    pub settings: Settings,
    pub nats: NatsSettings,
    pub connect_timeout: Duration,
    /// How many servers keep the history; 0: three where there are three, else one.
    pub replicas: usize,
    pub services: watch::Receiver<Arc<Services>>,
}

/// Runs until SIGTERM or SIGINT, or until something ends it.
pub async fn run(options: Options) -> Result<(), ControllerError> {
    let (sender, shutdown) = mpsc::channel(2);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listening = tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            if sender.send(()).await.is_err() {
                return;
            }
        }
    });
    let result = run_until(options, shutdown).await;
    listening.abort();
    result
}

/// As [`run`], told to end by a message.
pub async fn run_until(options: Options, mut shutdown: mpsc::Receiver<()>) -> Result<(), ControllerError> {
    let shell = tokio::select! {
        shell = Shell::start(options) => shell?,
        Some(()) = shutdown.recv() => return Ok(()),
    };
    shell.run(shutdown).await
}

/// What reaches the loop from elsewhere.
enum Event {
    Input(Input),
    Up { generation: u64, connection: Connection },
    Served(serving::Started),
}

struct Shell {
    id: ControllerId,
    core: Controller,
    directory: DataDirectory,
    cluster: Option<ClusterId>,
    reader: MetadataReader,
    disk: SyncSender<disk::Job>,
    client: Client,
    history: History,
    lease: Lease,
    snapshots: Snapshots,
    links: watch::Receiver<Link>,
    link: Link,
    generation: watch::Sender<u64>,
    services: watch::Receiver<Arc<Services>>,
    named: Arc<Services>,
    messages: SelectAll<Subscriber>,
    followed: Option<mpsc::Receiver<FollowEvent>>,
    leases: mpsc::Receiver<LeaseEvent>,
    advisories: Option<mpsc::Receiver<Disconnect>>,
    _system: Option<Client>,
    events: mpsc::Sender<Event>,
    incoming: mpsc::Receiver<Event>,
    pending: BTreeMap<Token, Pending>,
    tokens: u64,
    desk: Desk,
    began: Instant,
    ended: Option<(String, bool)>,
}

impl Shell {
    async fn start(options: Options) -> Result<Self, ControllerError> {
        let Options { id, data, settings, nats, connect_timeout, replicas, services } = options;
        let opened = tokio::task::spawn_blocking(move || disk::open(&data)).await;
        let opened = opened.map_err(|error| ControllerError::Ended(format!("opening the directory: {error}")))?;
        let (directory, store, recovered, last) = opened?;
        if let Some(bound) = directory.identity().id.filter(|bound| *bound != id.0) {
            return Err(ControllerError::OtherId { bound, asked: id });
        }
        let (client, links) = connect(&nats, &format!("dmq-controller-{id}"), connect_timeout, true).await?;
        let named = services.borrow().clone();
        let replicas = if replicas == 0 { servers(&client) } else { replicas };
        let config =
            HistoryConfig { subject: named.log_subject(), replicas, timeout: TIMEOUT, ..HistoryConfig::default() };
        let history = History::new(client.clone(), config);
        let config = LeaseConfig { lease: settings.lease, replicas, timeout: TIMEOUT, ..LeaseConfig::default() };
        let lease = Lease::new(client.clone(), config);
        let config = SnapshotsConfig { replicas, ..SnapshotsConfig::default() };
        let snapshots = Snapshots::new(client.clone(), config);
        for ensured in [lease.ensure().await?, snapshots.ensure().await?] {
            for difference in ensured.differences {
                tracing::warn!("on NATS, other than wanted and left alone: {difference}");
            }
        }
        let (advisories, system) = listen_to_system(&nats, id, connect_timeout).await?;
        let identity = Identity {
            controller: id,
            directory: directory.directory_id(),
            incarnation: IncarnationId(uuid::Uuid::new_v4()),
            founding: ClusterId(uuid::Uuid::new_v4()),
        };
        let position = recovered.position();
        tracing::info!(%id, directory = %directory.path().display(), version = %position.version, "a controller starts");
        let (events, incoming) = mpsc::channel(4096);
        let (generation, generations) = watch::channel(0);
        let leases = lease.watch(generations, 64);
        let cluster = directory.identity().cluster_id;
        let (reader, disk) = (store.reader(), disk::start(store, events.clone())?);
        let mut shell = Self {
            id,
            core: Controller::new(identity, settings, recovered, last),
            directory,
            cluster,
            reader,
            disk,
            client,
            history,
            lease,
            snapshots,
            links,
            link: Link::default(),
            generation,
            services,
            named,
            messages: SelectAll::new(),
            followed: None,
            leases,
            advisories,
            _system: system,
            events,
            incoming,
            pending: BTreeMap::new(),
            tokens: 0,
            desk: Desk::default(),
            began: Instant::now(),
            ended: None,
        };
        shell.subscribe().await?;
        Ok(shell)
    }

    /// Hears every heartbeat, acknowledgement and fetch that services.json names.
    async fn subscribe(&mut self) -> Result<(), BusError> {
        let named = self.named.clone();
        let mut subjects = named.heartbeats_wildcard();
        subjects.extend(named.acks_wildcard());
        subjects.extend(named.controller_heartbeats_wildcard());
        subjects.push(named.controller(self.id).fetch);
        let mut fresh = SelectAll::new();
        for subject in &subjects {
            fresh.push(raw::subscribe(&self.client, subject, TIMEOUT).await?);
        }
        tracing::info!(subjects = subjects.join(" "), "listening");
        self.messages = fresh;
        Ok(())
    }

    async fn run(mut self, mut shutdown: mpsc::Receiver<()>) -> Result<(), ControllerError> {
        let view = view(&self.named);
        self.feed(Input::Services(Arc::new(view))).await;
        self.link_changed();
        while self.ended.is_none() {
            let deadline = self.core.next_deadline().map(|at| self.began + Duration::from_micros(at.0));
            tokio::select! {
                biased;
                Some(()) = shutdown.recv() => self.feed(Input::Shutdown).await,
                Ok(()) = self.links.changed() => {
                    if let Some(input) = self.link_changed() {
                        self.feed(input).await;
                    }
                }
                Some(event) = self.incoming.recv() => self.event(event).await,
                Some(gone) = next(&mut self.advisories) => self.advised(gone).await,
                Some(event) = next(&mut self.followed) => self.follow_event(event).await,
                Some(event) = self.leases.recv() => self.lease_event(event).await,
                () = until(deadline) => self.feed(Input::Tick).await,
                Some(message) = self.messages.next() => self.message(message).await,
                Some(request) = self.desk.next() => self.admin_request(request).await,
                Ok(()) = self.services.changed() => self.services_changed().await,
            }
        }
        let _ = tokio::time::timeout(FAREWELL, self.desk.stop()).await;
        let _ = tokio::time::timeout(FAREWELL, self.client.flush()).await;
        let _ = tokio::time::timeout(FAREWELL, self.client.drain()).await;
        match self.ended {
            Some((words, false)) => Err(ControllerError::Ended(words)),
            Some((words, true)) => {
                tracing::info!("{words}");
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            monotonic: Monotonic(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)),
            wall: WallTime(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    async fn feed(&mut self, input: Input) {
        let mut effects = Vec::new();
        let now = self.now();
        self.core.handle(now, input, &mut effects);
        for effect in effects {
            self.carry_out(now.monotonic, effect).await;
        }
    }

    async fn event(&mut self, event: Event) {
        match event {
            Event::Input(input) => self.feed(input).await,
            Event::Up { generation, connection } if (Link { generation, up: true }) == *self.links.borrow() => {
                self.generation.send_replace(generation);
                self.feed(Input::Connected(connection)).await;
            }
            Event::Up { .. } => {}
            Event::Served(started) => self.desk.started(started),
        }
    }

    fn link_changed(&mut self) -> Option<Input> {
        let link = *self.links.borrow_and_update();
        let before = std::mem::replace(&mut self.link, link);
        if link.up && link != before {
            let (client, events, links) = (self.client.clone(), self.events.clone(), self.links.clone());
            tokio::spawn(async move {
                while *links.borrow() == link {
                    if let Ok(connection) = raw::established(&client, TIMEOUT).await {
                        let _ = events.send(Event::Up { generation: link.generation, connection }).await;
                        return;
                    }
                }
            });
        }
        (before.up && link != before).then_some(Input::Disconnected)
    }

    async fn advised(&mut self, gone: Disconnect) {
        if gone.by_client {
            let connection = Connection { server: gone.server_id.as_str().into(), client: gone.client_id };
            self.feed(Input::ConnectionEnded(connection)).await;
        }
    }

    async fn follow_event(&mut self, event: FollowEvent) {
        match event {
            FollowEvent::Entry { sequence, payload } => {
                self.feed(Input::Entry { version: crate::types::Version(sequence), payload }).await;
            }
            // The core asks for the head itself, and judges what it sees.
            FollowEvent::Purged { .. } | FollowEvent::Lost { .. } => {}
        }
    }

    async fn lease_event(&mut self, event: LeaseEvent) {
        match event {
            LeaseEvent::Held { revision, value } => {
                let holder = serde_json::from_slice::<Holder>(&value).ok();
                self.feed(Input::LeaseHeld { holder, revision }).await;
            }
            LeaseEvent::Free { .. } => self.feed(Input::LeaseFree).await,
        }
    }

    async fn message(&mut self, message: Message) {
        let subject = message.subject.as_str();
        if let Some(storage) = self.named.heartbeat_of(subject) {
            let received_at = self.now().monotonic;
            let token = self.token(Pending::from_reply(message.reply));
            self.feed(Input::Heartbeat { storage, received_at, payload: message.payload, token }).await;
        } else if let Some(storage) = self.named.ack_of(subject) {
            if message.status == Some(StatusCode::NO_RESPONDERS) {
                self.feed(Input::PushUnheard { storage }).await;
            } else {
                self.feed(Input::Ack { storage, payload: message.payload }).await;
            }
        } else if self.named.controller_heartbeat_of(subject).is_some() {
            self.feed(Input::ControllerHeartbeat { payload: message.payload }).await;
        } else if subject == self.named.controller(self.id).fetch {
            let token = self.token(Pending::from_reply(message.reply));
            self.feed(Input::Fetch { payload: message.payload, token }).await;
        }
    }

    async fn admin_request(&mut self, request: crate::bus::service::Request) {
        let Some((noun, verb)) = crate::wire::admin::VERBS.get(request.endpoint) else { return };
        let token = self.token(Pending::Admin(Box::new(request.responder)));
        let fresh_id = TopicId(uuid::Uuid::new_v4());
        let (noun, verb, payload) = ((*noun).into(), (*verb).into(), request.payload);
        self.feed(Input::Admin { noun, verb, payload, token, fresh_id }).await;
    }

    async fn services_changed(&mut self) {
        self.named = self.services.borrow_and_update().clone();
        if let Err(error) = self.subscribe().await {
            tracing::warn!(%error, "cannot subscribe to what services.json says now");
        }
        let view = view(&self.named);
        self.feed(Input::Services(Arc::new(view))).await;
    }

    fn token(&mut self, pending: Pending) -> Token {
        /// More than the core holds of anything; what is pushed out is answered by nobody any more.
        const MOST: usize = 1 << 16;
        self.tokens += 1;
        let token = Token(self.tokens);
        self.pending.insert(token, pending);
        if self.pending.len() > MOST {
            self.pending.pop_first();
        }
        token
    }

    /// Does something elsewhere, whose outcome is an input.
    fn elsewhere(&self, work: impl Future<Output = Input> + Send + 'static) {
        let events = self.events.clone();
        tokio::spawn(async move {
            let _ = events.send(Event::Input(work.await)).await;
        });
    }

    async fn publish(&self, subject: impl Into<Subject>, payload: Bytes) {
        let subject = subject.into();
        if let Err(error) = raw::publish(&self.client, &subject, HeaderMap::new(), payload, TIMEOUT).await {
            tracing::debug!(%subject, %error, "not sent");
        }
    }

    fn write(&mut self, job: disk::Job) {
        // Bounded: a disk that hangs so long is one that failed.
        if self.disk.try_send(job).is_err() {
            self.ended = Some(("the thread that writes the metadata does not keep up, or is gone".into(), false));
        }
    }

    async fn carry_out(&mut self, now: Monotonic, effect: Effect) {
        match effect {
            Effect::AskHead { snapshot } => {
                self.elsewhere(history::ask_head(self.history.clone(), self.snapshots.clone(), now, snapshot));
            }
            Effect::Follow { after } => {
                let generations = self.generation.subscribe();
                self.followed = Some(follow(self.history.clone(), after.next().0, generations, 4096));
            }
            Effect::LoadSnapshot => {
                let folder = self.directory.path().to_path_buf();
                self.elsewhere(history::load(self.history.clone(), self.snapshots.clone(), folder));
            }
            Effect::Append { expected, payload } => {
                self.elsewhere(history::append(self.history.clone(), expected, payload));
            }
            Effect::Read { version } => self.elsewhere(history::read(self.history.clone(), version)),
            Effect::TakeLease { revision, holder } => {
                self.elsewhere(history::take(self.lease.clone(), now, revision, holder));
            }
            Effect::RenewLease { revision, holder } => {
                self.elsewhere(history::take(self.lease.clone(), now, Some(revision), holder));
            }
            Effect::ReleaseLease { revision } => {
                let lease = self.lease.clone();
                let released = async move { lease.delete(revision).await };
                if let Ok(Err(error)) = tokio::time::timeout(FAREWELL, released).await {
                    tracing::debug!(%error, "the lease was not given back");
                }
            }
            Effect::Serve(serve) => self.serve(serve).await,
            Effect::Answer { token, payload } => self.answer(token, Ok(payload)).await,
            Effect::Fail { token, error } => self.answer(token, Err(error)).await,
            Effect::Drop { token } => {
                self.pending.remove(&token);
            }
            Effect::Push { storage, payload } => {
                let subjects = self.named.storage(storage);
                let headers = HeaderMap::new();
                let sent =
                    raw::publish_with_reply(&self.client, &subjects.push, &subjects.ack, headers, payload, TIMEOUT)
                        .await;
                if let Err(error) = sent {
                    tracing::debug!(%storage, %error, "a push was not sent");
                }
            }
            Effect::Announce(heartbeat) => {
                let subject = self.named.controller(self.id).heartbeat;
                self.publish(subject, heartbeat.encode()).await;
            }
            Effect::Persist(change) => self.write(disk::Job::Persist(change)),
            Effect::PersistSkip(position) => {
                self.write(disk::Job::Skip(position, self.core.history().controller_epoch()))
            }
            Effect::Install { image, position } => self.write(disk::Job::Install(image, position)),
            Effect::ServeFetch { token, request, .. } => self.serve_fetch(token, request),
            Effect::WriteSnapshot { image, position } => {
                let folder = self.directory.path().to_path_buf();
                let written = history::write(self.snapshots.clone(), image, position, folder);
                self.elsewhere(async move { Input::SnapshotWritten(written.await) });
            }
            Effect::Purge { before } => {
                let (history, snapshots) = (self.history.clone(), self.snapshots.clone());
                tokio::spawn(history::purge(history, snapshots, before));
            }
            Effect::Gather { holder, position } => {
                let subject = match holder {
                    super::core::MetadataHolder::Controller(id) => self.named.controller(id).fetch,
                    super::core::MetadataHolder::Storage(id) => self.named.storage(id).push,
                };
                let folder = self.directory.path().to_path_buf();
                self.elsewhere(history::gather(self.client.clone(), subject, position, folder));
            }
            Effect::Recreate { image, position } => {
                let folder = self.directory.path().to_path_buf();
                self.elsewhere(history::recreate(
                    self.history.clone(),
                    self.snapshots.clone(),
                    image,
                    position,
                    folder,
                ));
            }
            Effect::Bind(cluster) => {
                self.cluster = Some(cluster);
                if let Err(error) = self.directory.bind(cluster, self.id.0) {
                    self.ended = Some((error.to_string(), false));
                }
            }
            Effect::Log { level, words } => match level {
                Level::Debug => tracing::debug!("{words}"),
                Level::Info => tracing::info!("{words}"),
                Level::Warn => tracing::warn!("{words}"),
                Level::Error => tracing::error!("{words}"),
            },
            Effect::Exit { words } => self.ended = Some((words, false)),
            Effect::Stopped => self.ended = Some(("the controller has stopped".into(), true)),
        }
    }
}

/// How many servers keep what must survive one of them.
fn servers(client: &Client) -> usize {
    let known = client.server_info().connect_urls.len();
    if known >= 3 { 3 } else { 1 }
}

fn view(services: &Services) -> ServicesView {
    let storage = services.storage_ids();
    ServicesView {
        pairings: storage.filter_map(|id| services.pairing(id).map(|controller| (id, controller))).collect(),
        storage: services.storage_ids().collect(),
        controllers: services.controller_ids().collect(),
    }
}

type Advisories = (Option<mpsc::Receiver<Disconnect>>, Option<Client>);

async fn listen_to_system(
    nats: &NatsSettings,
    id: ControllerId,
    timeout: Duration,
) -> Result<Advisories, ControllerError> {
    let Some(client) = connect_system(nats, &format!("dmq-controller-{id}-advisories"), timeout).await? else {
        tracing::info!("no credentials of the system account: a crash shows after a session, not at once");
        return Ok((None, None));
    };
    let receiver = advisories::subscribe(&client, 4096, TIMEOUT).await?;
    tracing::info!("hears of disconnects at once, over the system account");
    Ok((Some(receiver), Some(client)))
}

async fn next<T>(receiver: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match receiver {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
