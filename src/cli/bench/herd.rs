//! Many storage nodes in one process (internal): the shipped core once per node, on one connection, with one file that is
//! synced once for all that was applied meanwhile. Fewer processes than nodes is all that is different from real ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use async_nats::{Client, Message, Subject};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::super::Outcome;
use crate::bus::{BusError, raw};
use crate::config::Services;
use crate::metadata::{History, read_snapshot};
use crate::storage::core::{
    Applied, Call, CallError, Effect, FetchReply, Identity, Input, Settings, StorageCore, Token,
};
use crate::types::{ControllerEpoch, DirectoryId, IncarnationId, Monotonic, StorageId};
use crate::wire::{CHUNK_HEADER, Health, WireMessage, admin};

#[derive(clap::Args, Debug)]
pub struct Args {
    url: String,
    /// services.json
    services: PathBuf,
    /// The file that all of them write to
    file: PathBuf,
    /// The first one's id; the others' follow
    first: u32,
    count: u32,
}

/// How long a request is waited for, as a real node does.
const PATIENCE: Duration = Duration::from_secs(2);
const WAITING: usize = 1 << 16;

/// Something for one of the nodes.
struct Event {
    node: usize,
    input: Input,
    /// Of a push, where its acknowledgement goes.
    reply: Option<Subject>,
}

struct Herd {
    services: Services,
    client: Client,
    nodes: Vec<StorageCore>,
    began: Instant,
    due: BTreeSet<(Monotonic, usize)>,
    due_of: Vec<Option<Monotonic>>,
    replies: BTreeMap<(usize, Token), Subject>,
    tokens: u64,
    events: mpsc::Sender<Event>,
    disk: SyncSender<(usize, Vec<Applied>)>,
}

pub async fn run(args: &Args) -> anyhow::Result<Outcome> {
    let services = crate::config::services_file::load(&args.services)?;
    let options = async_nats::ConnectOptions::new().name(format!("dmq-storage-herd-{}", args.first));
    let client = options.connect(&args.url).await.with_context(|| format!("connect to {}", args.url))?;
    let (events, mut incoming) = mpsc::channel(WAITING);
    let file = File::create(&args.file).with_context(|| format!("create {}", args.file.display()))?;
    let (disk, jobs) = sync_channel(WAITING);
    let back = events.clone();
    std::thread::Builder::new().name("herd-disk".into()).spawn(move || write_all(file, &jobs, &back))?;
    let count = args.count as usize;
    let mut herd = Herd {
        services,
        client: client.clone(),
        nodes: (args.first..args.first + args.count).map(core).collect(),
        began: Instant::now(),
        due: BTreeSet::new(),
        due_of: vec![None; count],
        replies: BTreeMap::new(),
        tokens: 0,
        events,
        disk,
    };
    let connection = raw::connection(&client).context("the connection has no name")?;
    for node in 0..count {
        herd.feed(node, Input::Health(Health { disk_free_bytes: 1 << 40, ..Health::default() })).await?;
        herd.feed(node, Input::Connected(connection.clone())).await?;
    }
    loop {
        let next = herd.due.first().map(|(at, _)| herd.began + Duration::from_micros(at.0));
        let next = next.unwrap_or_else(|| Instant::now() + PATIENCE);
        tokio::select! {
            event = incoming.recv() => herd.event(event.context("nothing happens any more")?).await?,
            () = tokio::time::sleep_until(next.into()) => herd.tick().await?,
        }
    }
}

fn core(id: u32) -> StorageCore {
    let identity = Identity {
        directory: DirectoryId(Uuid::new_v4()),
        incarnation: IncarnationId(Uuid::new_v4()),
        storage: Some(StorageId(id)),
        cluster: None,
        preferred: None,
        node_epoch: None,
        rack: None,
    };
    let settings = Settings { jitter_seed: u64::from(id), request_timeout: PATIENCE, ..Settings::default() };
    StorageCore::new(identity, settings, History::new(), ControllerEpoch(0))
}

impl Herd {
    fn now(&self) -> Monotonic {
        Monotonic(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    async fn tick(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        while let Some((at, node)) = self.due.first().copied()
            && at <= now
        {
            self.feed(node, Input::Tick).await?;
            // A deadline that stays is looked at again, but not before the others.
            if self.due.first() == Some(&(at, node)) {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn event(&mut self, event: Event) -> anyhow::Result<()> {
        let Event { node, input, reply } = event;
        let input = match (input, reply) {
            (Input::Push { payload, .. }, Some(reply)) => {
                self.tokens += 1;
                let token = Token(self.tokens);
                self.replies.insert((node, token), reply);
                Input::Push { payload, token }
            }
            (input, _) => input,
        };
        self.feed(node, input).await
    }

    async fn feed(&mut self, node: usize, input: Input) -> anyhow::Result<()> {
        let mut effects = Vec::new();
        let now = self.now();
        self.nodes[node].handle(now, input, &mut effects);
        for effect in effects {
            self.carry_out(node, effect).await?;
        }
        if let Some(before) = self.due_of[node].take() {
            self.due.remove(&(before, node));
        }
        self.due_of[node] = self.nodes[node].next_deadline();
        self.due.extend(self.due_of[node].map(|at| (at, node)));
        Ok(())
    }

    async fn carry_out(&mut self, node: usize, effect: Effect) -> anyhow::Result<()> {
        match effect {
            Effect::Subscribe { storage } => {
                let mut pushes = raw::subscribe(&self.client, &self.services.storage(storage).push, PATIENCE).await?;
                let events = self.events.clone();
                tokio::spawn(async move {
                    while let Some(Message { payload, reply, .. }) = pushes.next().await {
                        let input = Input::Push { payload, token: Token(0) };
                        if events.send(Event { node, input, reply }).await.is_err() {
                            return;
                        }
                    }
                });
                self.say(node, Input::Subscribed(storage));
            }
            Effect::Register { call, request } => {
                let subject = self.services.admin_subject("node", "register");
                self.request(node, subject, admin::encode(&request).into(), move |result| Input::RegisterAnswer {
                    call,
                    result: result.map(|message| message.payload),
                });
            }
            Effect::SendHeartbeat(heartbeat) => {
                let (sequence, subject) = (heartbeat.sequence, self.services.storage(heartbeat.storage).heartbeat);
                self.request(node, subject, heartbeat.encode(), move |result| Input::HeartbeatAnswer {
                    sequence,
                    result: result.map(|message| message.payload),
                });
            }
            Effect::Fetch { call, controller, request } => {
                let subject = self.services.controller(controller).fetch;
                self.request(node, subject, request.encode(), move |result| fetched(call, result));
            }
            Effect::RequestIsr { call, request } => {
                let subject = self.services.admin_subject("partition", "alter");
                self.request(node, subject, admin::encode(&request).into(), move |result| Input::IsrAnswer {
                    call,
                    result: result.map(|message| message.payload),
                });
            }
            Effect::Persist { changes } => {
                self.disk.try_send((node, changes)).ok().context("the disk is too slow for all these nodes")?;
            }
            Effect::InstallSnapshot { position, pieces, .. } => {
                let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
                let input = match read_snapshot(&mut bytes.as_slice()) {
                    Ok((image, found)) if found == position => {
                        Input::SnapshotInstalled { image: Box::new(image), position }
                    }
                    Ok((_, found)) => Input::SnapshotUnusable { words: format!("it is of {found}") },
                    Err(error) => Input::SnapshotUnusable { words: error.to_string() },
                };
                self.say(node, input);
            }
            Effect::Acknowledge { token, ack } => {
                let reply = token.and_then(|token| self.replies.remove(&(node, token)));
                let subject = self.services.storage(ack.storage).ack;
                let payload = ack.encode();
                if let Some(reply) = reply.filter(|reply| **reply != *subject) {
                    self.client.publish(reply, payload.clone()).await?;
                }
                self.client.publish(subject, payload).await?;
            }
            Effect::Exit { words, .. } => anyhow::bail!("node {node}: {words}"),
            // Nobody fetches from these nodes, and nothing is kept for another start.
            Effect::Bind { .. } | Effect::ServeFetch { .. } => {}
            // They hold no records: nobody wishes anything of in-sync replicas.
            Effect::Member(_) | Effect::Peers(_) | Effect::Replicas { .. } | Effect::InSyncAnswers(_) => {}
            Effect::MayLead(_) | Effect::Leads { .. } | Effect::Log { .. } => {}
        }
        Ok(())
    }

    /// Back to the node itself, in a turn of its own.
    fn say(&self, node: usize, input: Input) {
        let events = self.events.clone();
        tokio::spawn(async move {
            // Nobody is left to hear it where the process ends.
            let _ = events.send(Event { node, input, reply: None }).await;
        });
    }

    fn request(
        &self,
        node: usize,
        subject: String,
        payload: Bytes,
        answer: impl FnOnce(Result<Message, CallError>) -> Input + Send + 'static,
    ) {
        let (client, events) = (self.client.clone(), self.events.clone());
        tokio::spawn(async move {
            let result = raw::request_with_deadline(&client, &subject, None, payload, PATIENCE).await;
            let result = result.map_err(|error| {
                let unheard = matches!(error, BusError::NoResponders { .. });
                if unheard { CallError::NoResponders } else { CallError::Timeout }
            });
            let _ = events.send(Event { node, input: answer(result), reply: None }).await;
        });
    }
}

fn fetched(call: Call, result: Result<Message, CallError>) -> Input {
    let reply = |message: Message| match message.headers.as_ref().and_then(|headers| headers.get(CHUNK_HEADER)) {
        Some(header) => {
            FetchReply::Chunk { header: Bytes::copy_from_slice(header.as_str().as_bytes()), bytes: message.payload }
        }
        None => FetchReply::Answer(message.payload),
    };
    Input::FetchAnswer { call, result: result.map(reply) }
}

/// Writes what all nodes have applied meanwhile, syncs once, and tells each of them.
fn write_all(mut file: File, jobs: &Receiver<(usize, Vec<Applied>)>, events: &mpsc::Sender<Event>) {
    while let Ok(first) = jobs.recv() {
        let batch: Vec<_> = std::iter::once(first).chain(jobs.try_iter()).collect();
        let mut bytes = Vec::new();
        for (node, changes) in &batch {
            for message in changes.iter().flat_map(|change| &change.messages) {
                bytes.extend((*node as u64).to_le_bytes());
                bytes.extend((message.payload.len() as u64).to_le_bytes());
                bytes.extend_from_slice(&message.payload);
            }
        }
        let written = file.write_all(&bytes).and_then(|()| file.sync_data());
        for (node, changes) in batch {
            let input = match (&written, changes.last()) {
                (Ok(()), Some(last)) => Input::Persisted(last.position),
                (Ok(()), None) => continue,
                (Err(error), _) => Input::PersistFailed { words: error.to_string(), fatal: true },
            };
            if events.blocking_send(Event { node, input, reply: None }).is_err() {
                return;
            }
        }
    }
}
