//! The storage node's process: one loop that feeds the core and carries out its effects.
//!
//! Thin: it decides nothing. Every channel is bounded, and whatever blocks is on another thread.

mod routes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::core::{
    Assignment, Call, CallError, Effect, FetchReply, Identity, Input, Level, Place, Settings, StorageCore, Token,
};
use super::health::Sampler;
use super::partitions::{self, Command, Held, Lease, RecordSettings, Vitals};
use super::subjects::Subjects;
use super::writer::{Job, start};
use crate::bus::{BusError, raw};
use crate::config::{self, ConnectError};
use crate::disk::{DataDirectory, MetadataReader, MetadataStore, Role};
use crate::log::{LogConfig, TopicPartition};
use crate::metadata::config::{FLUSH, FLUSH_ALWAYS};
use crate::process::serve::{Fetch, Served};
use crate::process::{self, Clock, LinkEvent, ProcessError, message_room, recover, with_signals};
use crate::types::{ControllerId, IncarnationId, StorageId};
use crate::wire::{CHUNK_HEADER, FetchRequest, Health, PushAck, WireMessage, admin};
use routes::Routes;

/// Replies that are remembered for messages that were not answered yet.
const REPLIES: usize = 4096;
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Where the partitions' directories are, in the node's.
const PARTITIONS: &str = "partitions";
/// How long the end of the process waits until all logs are closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How many changes of the connection may wait.
const LINK_EVENTS: usize = 4;
const FAREWELL: Duration = Duration::from_secs(1);

/// Where the node keeps what it has.
#[derive(Clone, Debug)]
pub enum Data {
    /// This directory.
    Directory(PathBuf),
    /// The first free folder in this one.
    Root(PathBuf),
}

/// What a storage node is started with.
pub struct Options {
    pub data: Data,
    /// The id that is asked for. None: that of the directory, or one that the controller gives.
    pub id: Option<StorageId>,
    pub rack: Option<Arc<str>>,
    pub settings: Settings,
    pub records: RecordSettings,
    pub nats: config::NatsSettings,
    pub connect_timeout: Duration,
    /// What services.json says, now and after each change.
    pub subjects: watch::Receiver<Arc<dyn Subjects>>,
}

/// What reaches the loop from elsewhere.
pub(super) enum Event {
    Input(Input),
    Disk { input: Input, wants_compaction: bool },
    Compacted(Result<(), String>),
    Subscribed { storage: StorageId, subject: String, subscriber: Subscriber },
    Sampled(Box<(Sampler, Health)>),
    WantsSnapshot,
}

/// Runs until SIGTERM or SIGINT has drained it, or something ends it. A second signal ends it at once.
pub async fn run(options: Options) -> Result<(), ProcessError> {
    with_signals(|shutdown| run_until(options, shutdown)).await
}

/// As [`run`], told to end by a message.
pub async fn run_until(options: Options, mut shutdown: mpsc::Receiver<()>) -> Result<(), ProcessError> {
    let (shell, deaf) = tokio::select! {
        started = Shell::start(options) => started?,
        Some(()) = shutdown.recv() => return Ok(()),
    };
    tokio::select! {
        ended = shell.run(shutdown) => ended,
        error = deaf => Err(error.into()),
    }
}

struct Shell {
    core: StorageCore,
    directory: DataDirectory,
    reader: MetadataReader,
    writer: SyncSender<Job>,
    client: Client,
    links: mpsc::Receiver<LinkEvent>,
    generation: watch::Receiver<u64>,
    /// Watches over the connection, for as long as there is a shell.
    _watching: JoinSet<()>,
    subjects: watch::Receiver<Arc<dyn Subjects>>,
    events: mpsc::Sender<Event>,
    incoming: mpsc::Receiver<Event>,
    /// This node's pushes, and the subject that they come on.
    pushes: Option<(String, Subscriber)>,
    replies: BTreeMap<Token, Subject>,
    tokens: u64,
    routes: Routes,
    /// How many partitions the offsets topic has, as far as the partitions' thread was told.
    offsets_partitions: u32,
    partitions: mpsc::Sender<Command>,
    lease: Lease,
    vitals: Vitals,
    sampler: Option<Sampler>,
    compacting: bool,
    request_timeout: Duration,
    clock: Clock,
    /// Why it ends, once it does.
    ended: Option<(String, u8)>,
}

impl Shell {
    /// Beside the shell, what completes where NATS forbids a subscription soon after the start.
    async fn start(options: Options) -> Result<(Self, impl Future<Output = ConnectError> + use<>), ProcessError> {
        let Options { data, id, rack, mut settings, records, nats, connect_timeout, subjects } = options;
        let opened = tokio::task::spawn_blocking(move || open(&data)).await;
        let opened = opened.map_err(|error| ProcessError::Ended(format!("opening the directory: {error}")))?;
        let (directory, store, history) = opened?;
        let known = directory.identity().clone();
        let preferred = directory.number_in_root().map(StorageId);
        let bound = known.id.map(StorageId);
        if let (Some(bound), Some(asked)) = (bound, id)
            && bound != asked
        {
            return Err(ProcessError::OtherId { role: "storage node", bound: bound.0, asked: asked.0 });
        }
        let incarnation = uuid::Uuid::new_v4();
        settings.jitter_seed ^= incarnation.as_u64_pair().0;
        let storage = bound.or(id);
        let name = storage.map_or("dmq-storage-new".to_owned(), |id| format!("dmq-storage-{id}"));
        let connection = config::connect(&nats, &name, connect_timeout, false).await?;
        let deaf = connection.deaf_within(connect_timeout);
        let (client, generation) = (connection.client.clone(), connection.generation.clone());
        let (link, links) = mpsc::channel(LINK_EVENTS);
        let mut watching = JoinSet::new();
        watching.spawn(process::watch(connection, link, || std::future::ready(())));
        let identity = Identity {
            directory: directory.directory_id(),
            incarnation: IncarnationId(incarnation),
            storage,
            cluster: known.cluster_id,
            preferred,
            node_epoch: known.node_epoch,
            rack,
        };
        tracing::info!(directory = %directory.path().display(), id = %identity.directory, "a storage node starts");
        let (events, incoming) = mpsc::channel(1024);
        let (reader, epoch) = (store.reader(), store.controller_epoch());
        let writer = start(store, events.clone())?;
        let clock = Clock::start();
        let (lease, vitals) = (Lease::default(), Vitals::default());
        let partitions = partitions::Options {
            directory: directory.path().join(PARTITIONS),
            records,
            client: client.clone(),
            subjects: subjects.clone(),
            events: events.clone(),
            clock,
            lease: lease.clone(),
            vitals: vitals.clone(),
        };
        let runtime = tokio::runtime::Handle::current();
        let partitions = tokio::task::spawn_blocking(move || partitions::start(partitions, runtime)).await;
        let partitions = partitions.map_err(|error| ProcessError::Ended(format!("opening the logs: {error}")))?;
        let partitions = partitions.map_err(|error| ProcessError::Ended(error.to_string()))?;
        let request_timeout = settings.request_timeout;
        let sampler = Some(Sampler::new(directory.path()));
        let shell = Self {
            core: StorageCore::new(identity, settings, history, epoch),
            directory,
            reader,
            writer,
            client,
            links,
            generation,
            _watching: watching,
            subjects,
            events,
            incoming,
            pushes: None,
            replies: BTreeMap::new(),
            tokens: 0,
            routes: Routes::new(),
            offsets_partitions: 0,
            partitions,
            lease,
            vitals,
            sampler,
            compacting: false,
            request_timeout,
            clock,
            ended: None,
        };
        Ok((shell, deaf))
    }

    async fn run(mut self, mut shutdown: mpsc::Receiver<()>) -> Result<(), ProcessError> {
        self.sample();
        self.tell_offsets_partitions().await;
        while self.ended.is_none() {
            let deadline = self.core.next_deadline().map(|at| self.clock.instant(at));
            tokio::select! {
                Some(event) = self.incoming.recv() => self.event(event).await,
                message = next_push(&mut self.pushes) => self.pushed(message).await,
                Some(message) = self.routes.next() => self.route(message).await,
                Some(event) = self.links.recv() => self.link_changed(event).await,
                Ok(()) = self.subjects.changed() => {
                    self.tell_partitions(Command::SubjectsChanged).await;
                    self.routes.begin_anew(&self.client, &self.subjects);
                    self.feed(Input::ServicesChanged).await;
                }
                Some(()) = shutdown.recv() => self.feed(Input::Shutdown).await,
                () = until(deadline) => self.feed(Input::Tick).await,
            }
        }
        let (closed, all) = tokio::sync::oneshot::channel();
        self.tell_partitions(Command::Stop(closed)).await;
        if tokio::time::timeout(CLOSE_TIMEOUT, all).await.is_err() {
            tracing::warn!("not all logs were closed in time; the next start reads more of them");
        }
        // What was said last, the acknowledgements above all, is to reach the server.
        let _ = tokio::time::timeout(FAREWELL, self.client.flush()).await;
        let _ = tokio::time::timeout(FAREWELL, self.client.drain()).await;
        match self.ended {
            Some((words, 0)) => {
                tracing::info!("{words}");
                Ok(())
            }
            Some((words, _)) => Err(ProcessError::Ended(words)),
            None => Ok(()),
        }
    }

    async fn feed(&mut self, input: Input) {
        let mut effects = Vec::new();
        let now = self.clock.monotonic();
        self.core.handle(now, input, &mut effects);
        self.lease.set(self.core.may_lead_until(now));
        // Others wait for the rest, nobody for a line of the log.
        let is_log = |effect: &Effect| matches!(effect, Effect::Log { .. });
        effects.sort_by_key(is_log);
        for effect in effects {
            // Where something could not be carried out, the rest depends on it.
            if self.ended.is_none() || is_log(&effect) {
                self.carry_out(effect).await;
            }
        }
    }

    async fn event(&mut self, event: Event) {
        match event {
            Event::Input(input) => self.feed(input).await,
            Event::Disk { input, wants_compaction } => {
                self.feed(input).await;
                self.tell_offsets_partitions().await;
                self.pass_on_first_commits().await;
                if wants_compaction {
                    self.compact();
                }
            }
            Event::Compacted(result) => {
                self.compacting = false;
                if let Err(words) = result {
                    tracing::warn!(words, "the metadata's log could not be shortened");
                }
            }
            Event::Subscribed { storage, subject, subscriber } => {
                tracing::info!(subject, "listening");
                self.pushes = Some((subject, subscriber));
                self.routes.begin(&self.client, &self.subjects);
                self.feed(Input::Subscribed(storage)).await;
            }
            Event::Sampled(sampled) => {
                let (sampler, mut health) = *sampled;
                self.vitals.tell(&mut health, self.core.serves());
                self.sampler = Some(sampler);
                self.feed(Input::Health(health)).await;
            }
            Event::WantsSnapshot => self.compact(),
        }
    }

    async fn link_changed(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Down => {
                self.feed(Input::Disconnected).await;
                self.tell_partitions(Command::Disconnected).await;
            }
            LinkEvent::Up { connection, max_payload } => {
                tracing::info!(server = %connection.server, client = connection.client, "connected to NATS");
                self.feed(Input::MessageLimit(message_room(max_payload))).await;
                self.feed(Input::Connected(connection)).await;
                // A move to another subject may have been cut short by the reconnect.
                if let Some(storage) = self.core.identity().storage
                    && self.pushes.is_some()
                {
                    self.subscribe(storage);
                }
            }
        }
    }

    async fn pushed(&mut self, message: Option<Message>) {
        let Some(message) = message else {
            // Only the end of the client ends a subscription.
            self.pushes = None;
            return;
        };
        self.tokens += 1;
        let token = Token(self.tokens);
        if let Some(reply) = message.reply {
            self.replies.insert(token, reply);
            if self.replies.len() > REPLIES {
                self.replies.pop_first();
            }
        }
        self.feed(Input::Push { payload: message.payload, token }).await;
    }

    async fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Bind { cluster, storage, node_epoch } => {
                if let Err(error) = self.directory.bind_registered(cluster, storage.0, node_epoch) {
                    self.ended = Some((error.to_string(), 1));
                }
            }
            Effect::Subscribe { storage } => self.subscribe(storage),
            Effect::Register { call, request } => {
                let subject = self.subjects.borrow().admin("node", "register");
                self.request(subject, admin::encode(&request).into(), move |result| Input::RegisterAnswer {
                    call,
                    result: result.map(|message| message.payload),
                });
            }
            Effect::SendHeartbeat(heartbeat) => {
                tracing::debug!(sequence = heartbeat.sequence, version = %heartbeat.position.version, "heartbeat");
                let (sequence, subject) = (heartbeat.sequence, self.subjects.borrow().heartbeat(heartbeat.storage));
                self.request(subject, heartbeat.encode(), move |result| Input::HeartbeatAnswer {
                    sequence,
                    result: result.map(|message| message.payload),
                });
                self.sample();
            }
            Effect::Persist { changes } => self.write(Job::Persist(changes)),
            Effect::InstallSnapshot { cluster, position, controller_epoch, pieces } => {
                self.write(Job::Install { cluster, position, controller_epoch, pieces });
            }
            Effect::Acknowledge { token, ack } => self.acknowledge(token, &ack).await,
            Effect::Fetch { call, controller, request } => {
                let subject = self.subjects.borrow().fetch(controller);
                self.request(subject, request.encode(), move |result| fetched(call, result));
            }
            Effect::ServeFetch { token, request } => self.serve(token, request),
            Effect::RequestIsr { call, request } => {
                let subject = self.subjects.borrow().admin("partition", "alter");
                self.request(subject, admin::encode(&request).into(), move |result| Input::IsrAnswer {
                    call,
                    result: result.map(|message| message.payload),
                });
            }
            Effect::MayLead(may) => {
                tracing::info!(may, "whether this node may lead");
                self.tell_partitions(Command::MayLead(may)).await;
            }
            Effect::Leads { gained, lost } => {
                tracing::info!(gained = gained.len(), lost = lost.len(), "leaderships changed");
            }
            Effect::Member(member) => self.tell_partitions(Command::Member(member)).await,
            Effect::Peers(peers) => self.tell_partitions(Command::Peers(peers)).await,
            Effect::Replicas { assigned, unassigned } => {
                let assigned = assigned.into_iter().filter_map(|(place, assignment)| self.held(place, assignment));
                let assigned = assigned.collect();
                self.tell_partitions(Command::Replicas { assigned, unassigned }).await;
            }
            Effect::InSyncAnswers(outcomes) => self.tell_partitions(Command::InSyncAnswers(outcomes)).await,
            Effect::Log { level, words } => match level {
                Level::Debug => tracing::debug!("{words}"),
                Level::Info => tracing::info!("{words}"),
                Level::Warn => tracing::warn!("{words}"),
                Level::Error => tracing::error!("{words}"),
            },
            Effect::Exit { words, code } => self.ended = Some((words, code)),
        }
    }

    /// The replica with what of its topic concerns it. None: the topic is gone again, which will be told.
    fn held(&self, place: Place, assignment: Assignment) -> Option<Held> {
        let topic = self.core.history().image()?.topics.get(&place.0)?;
        let id = TopicPartition::new(topic.name.clone(), place.1);
        let is_relaxed = topic.config.get(FLUSH).is_some_and(|value| value != FLUSH_ALWAYS);
        Some(Held { place, id, config: LogConfig::from_topic(&topic.config), is_relaxed, assignment })
    }

    /// May wait for the disk, whose thread takes what came before first.
    async fn tell_partitions(&self, command: Command) {
        // Its thread ends only where the process does.
        let _ = self.partitions.send(command).await;
    }

    fn subscribe(&self, storage: StorageId) {
        let subjects = self.subjects.borrow().clone();
        let subject = subjects.push(storage);
        if self.pushes.as_ref().is_some_and(|(present, _)| *present == subject) {
            return;
        }
        tracing::info!(
            push = subject,
            heartbeat = subjects.heartbeat(storage),
            ack = subjects.ack(storage),
            "this node's subjects"
        );
        let (client, events) = (self.client.clone(), self.events.clone());
        let (generation, begun) = (self.generation.clone(), *self.generation.borrow());
        tokio::spawn(async move {
            // Asked for again on the next connection.
            while *generation.borrow() == begun {
                match raw::subscribe(&client, &subject, SUBSCRIBE_TIMEOUT).await {
                    Ok(subscriber) => {
                        let _ = events.send(Event::Subscribed { storage, subject, subscriber }).await;
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(subject, %error, "cannot subscribe yet");
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                }
            }
        });
    }

    fn request(
        &self,
        subject: String,
        payload: Bytes,
        answer: impl FnOnce(Result<Message, CallError>) -> Input + Send + 'static,
    ) {
        let (client, events, timeout) = (self.client.clone(), self.events.clone(), self.request_timeout);
        tokio::spawn(async move {
            let result = raw::request_with_deadline(&client, &subject, None, payload, timeout).await;
            let result = result.map_err(|error| match error {
                BusError::NoResponders { .. } => CallError::NoResponders,
                BusError::Disconnected
                | BusError::Timeout
                | BusError::NoJetStream
                | BusError::Unavailable(_)
                | BusError::Missing(_)
                | BusError::TooLarge { .. }
                | BusError::InvalidName(_)
                | BusError::Refused { .. }
                | BusError::Malformed(_)
                | BusError::Corrupt(_)
                | BusError::Input(_) => {
                    tracing::debug!(subject, %error, "no answer");
                    CallError::Timeout
                }
            });
            let _ = events.send(Event::Input(answer(result))).await;
        });
    }

    async fn acknowledge(&mut self, token: Option<Token>, ack: &PushAck) {
        let reply = token.and_then(|token| self.replies.remove(&token));
        let subject = self.subjects.borrow().ack(ack.storage);
        let payload = ack.encode();
        if let Some(reply) = reply.filter(|reply| **reply != *subject) {
            self.publish(&reply, HeaderMap::new(), payload.clone()).await;
        }
        self.publish(&subject, HeaderMap::new(), payload).await;
    }

    async fn publish(&self, subject: &str, headers: HeaderMap, payload: Bytes) {
        if let Err(error) = raw::publish(&self.client, subject, headers, payload, self.request_timeout).await {
            tracing::debug!(subject, %error, "not sent");
        }
    }

    fn serve(&mut self, token: Token, request: FetchRequest) {
        let Some(reply) = self.replies.remove(&token) else { return };
        let identity = self.core.identity();
        let (Some(cluster), Some(storage)) = (identity.cluster, identity.storage) else { return };
        let (client, events, timeout) = (self.client.clone(), self.events.clone(), self.request_timeout);
        let (reader, head) = (self.reader.clone(), self.core.persisted());
        let max_bytes = message_room(client.max_payload());
        let fetch = Fetch { reader, cluster, controller: ControllerId(storage.0), request, head, max_bytes };
        tokio::spawn(async move {
            let Ok(served) = tokio::task::spawn_blocking(move || fetch.serve()).await else { return };
            let Served { header, body, wants_snapshot } = served;
            if wants_snapshot {
                // Where it is not heard, the next fetch says so again.
                let _ = events.send(Event::WantsSnapshot).await;
            }
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(CHUNK_HEADER, header.as_str());
            }
            if let Err(error) = raw::publish(&client, &reply, headers, body, timeout).await {
                tracing::debug!(%error, "a fetch was not answered");
            }
        });
    }

    /// At most a write and a compaction are under way, and the channel holds more.
    fn write(&mut self, job: Job) {
        if self.writer.try_send(job).is_err() {
            self.ended = Some(("the thread that writes the metadata is gone".into(), 1));
        }
    }

    /// Shortens the log, at a moment when memory and disk stand at the same place.
    fn compact(&mut self) {
        let (saved, position) = (self.core.is_saved(), self.core.persisted());
        if self.compacting || !saved || position != self.core.history().position() {
            return;
        }
        let Some(image) = self.core.history().image() else { return };
        self.compacting = true;
        let image = Box::new(image.clone());
        let (controller_epoch, back) = (self.core.controller_epoch(), self.writer.clone());
        self.write(Job::Compact { image, position, controller_epoch, back });
    }

    /// Measures for the next heartbeat, unless the measurement before still waits for the disk.
    fn sample(&mut self) {
        let Some(mut sampler) = self.sampler.take() else { return };
        let events = self.events.clone();
        tokio::task::spawn_blocking(move || {
            let health = sampler.sample();
            let _ = events.blocking_send(Event::Sampled(Box::new((sampler, health))));
        });
    }
}

fn open(data: &Data) -> Result<(DataDirectory, MetadataStore, crate::metadata::History), ProcessError> {
    let directory = match data {
        Data::Directory(path) => DataDirectory::open(path, Role::Storage)?,
        Data::Root(root) => DataDirectory::open_first_free(root, Role::Storage)?,
    };
    let (store, recovered) = MetadataStore::open(&directory.metadata_path())?;
    let (history, _) = recover(recovered)?;
    Ok((directory, store, history))
}

fn fetched(call: Call, result: Result<Message, CallError>) -> Input {
    let reply = |message: Message| {
        let header = message.headers.as_ref().and_then(|headers| headers.get(CHUNK_HEADER));
        match header {
            Some(header) => {
                FetchReply::Chunk { header: Bytes::copy_from_slice(header.as_str().as_bytes()), bytes: message.payload }
            }
            None => FetchReply::Answer(message.payload),
        }
    };
    Input::FetchAnswer { call, result: result.map(reply) }
}

async fn next_push(pushes: &mut Option<(String, Subscriber)>) -> Option<Message> {
    match pushes {
        Some((_, subscriber)) => subscriber.next().await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
