//! `dmq bench failover`: how long a crash of a leading storage node, or of the active controller, keeps its work undone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use async_nats::Client;
use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use rustix::process::Signal;
use tokio::sync::mpsc;

use super::super::dev::process::Role;
use super::Place;
use super::figures::{Durations, Figure, Report, Target};
use super::floor::Floor;
use super::rig::{Ack, PATIENCE, Plan, Rig};
use crate::bus::advisories::Disconnect;
use crate::metadata::{NodeState, ParsedEntry, Record};
use crate::types::{StorageId, Version};
use crate::wire::ControllerRole;
use crate::wire::admin::ClusterStatus;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Whose crash it is
    #[arg(long, value_enum, default_value_t = Victim::Leader)]
    role: Victim,
    /// How it falls: killed, or frozen, which ends no connection
    #[arg(long, value_enum, default_value_t = Blow::Kill)]
    signal: Blow,
    /// How often [default: leaders 200, controllers 100; 20 where each costs a session]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    kills: Option<u32>,
    /// How many partitions there are, each on all of three nodes, which lead a third of them each
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(3..))]
    partitions: u32,
    /// Let nobody hear of ended connections: a death shows by silence alone
    #[arg(long)]
    without_advisories: bool,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Victim {
    /// The storage node that leads the most partitions
    Leader,
    /// The active controller
    Controller,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Blow {
    Kill,
    Stop,
}

impl Blow {
    fn signal(self) -> Signal {
        match self {
            Self::Kill => Signal::KILL,
            Self::Stop => Signal::STOP,
        }
    }
}

/// A cluster's defaults, which are not changed here.
const SESSION_MS: f64 = 3_000.0;
const LEASE_MS: f64 = 2_000.0;
/// Where a node leads more than this, the target is that of one with 10,000.
const MANY: u32 = 1_000;

pub async fn run(place: &Place, args: &Args) -> anyhow::Result<Report> {
    let plan = Plan { advisories: !args.without_advisories, ..Plan::default() };
    let mut rig = Rig::start(place, &plan).await?;
    rig.until_healthy(3).await?;
    super::metadata::create(&rig, "bench", args.partitions).await?;
    let fast = args.signal == Blow::Kill && !args.without_advisories;
    let most = match args.role {
        Victim::Leader => 200,
        Victim::Controller => 100,
    };
    let kills = args.kills.unwrap_or(if fast { most } else { 20 });
    let mut floor = Floor::new(&rig).await?;
    let mut heard = Ears { advisories: rig.advisories().await?, told: Durations::new() };
    let mut watch = Watch::new(&rig).await?;
    let mut took = Durations::new();
    for _ in 0..kills {
        rig.until("a healthy cluster with a standby", PATIENCE * 2, whole).await?;
        floor.measure().await?;
        took.add(match args.role {
            Victim::Leader => leader(&mut rig, args, &mut heard, &mut watch).await?,
            Victim::Controller => controller(&mut rig, args, &mut heard).await?,
        });
    }
    Ok(rig.report("failover", figures(args, fast, &took, &heard.told, &floor)))
}

fn figures(args: &Args, fast: bool, took: &Durations, told: &Durations, floor: &Floor) -> Vec<Figure> {
    let blow = match args.signal {
        Blow::Kill => "SIGKILL",
        Blow::Stop => "SIGSTOP",
    };
    let many = args.partitions / 3 >= MANY;
    let (what, p50, worst) = match (args.role, fast) {
        (Victim::Leader, true) if many => ("its successors' acks", None, 250.0),
        (Victim::Leader, true) => ("its successors' acks", Some(20.0), 50.0),
        (Victim::Leader, false) => ("its successors' acks", None, SESSION_MS + 100.0),
        (Victim::Controller, true) => ("its successor's first answer", None, 100.0),
        (Victim::Controller, false) => ("its successor's first answer", None, LEASE_MS + 500.0),
    };
    let mut median = Figure::new(format!("{blow} to {what}, p50"), took.ms(0.5), "ms");
    let mut tail = Figure::new(format!("{blow} to {what}, p99"), took.ms(0.99), "ms").target(Target::Most(worst));
    if let Some(p50) = p50 {
        median = median.target(Target::Most(p50));
    }
    let mut figures = Vec::new();
    if fast {
        // Nobody can elect before the server has told, nor without an append and a disk.
        let least = |quantile| told.ms(quantile) + floor.sum_ms(quantile);
        (median, tail) = (median.floor(least(0.5)), tail.floor(least(0.99)));
        figures.push(Figure::new("SIGKILL to the server's word of it, p50", told.ms(0.5), "ms"));
        figures.push(Figure::new("SIGKILL to the server's word of it, p99", told.ms(0.99), "ms"));
        figures.push(Figure::new("append, request and fdatasync together, p50", floor.sum_ms(0.5), "ms"));
        figures.push(Figure::new("append, request and fdatasync together, p99", floor.sum_ms(0.99), "ms"));
    }
    figures.extend([median, tail, Figure::new(format!("{blow} to {what}, longest"), took.max_ms(), "ms")]);
    figures.push(Figure::new("crashes", took.count() as f64, ""));
    figures
}

/// What this process hears itself of ended connections.
struct Ears {
    advisories: mpsc::Receiver<(Instant, Disconnect)>,
    told: Durations,
}

impl Ears {
    /// Notes when the server told of the end of a connection with this name.
    fn note(&mut self, name: &str, since: Instant) {
        while let Ok((at, disconnect)) = self.advisories.try_recv() {
            if disconnect.name == name && at > since {
                self.told.add(at.duration_since(since));
            }
        }
    }
}

fn whole(status: &ClusterStatus) -> bool {
    let ready = |role| matches!(role, ControllerRole::Active | ControllerRole::Standby);
    let controllers = &status.metadata_services;
    let nodes = &status.storage_nodes;
    status.healthy
        && nodes.len() == 3
        && nodes.iter().all(|node| node.state == NodeState::Active && node.lag == 0)
        && controllers.len() == 3
        && controllers.iter().all(|controller| ready(controller.state) && controller.version == status.version)
}

/// From the blow to the last survivor's acknowledgement of the change that elects others.
async fn leader(rig: &mut Rig, args: &Args, heard: &mut Ears, watch: &mut Watch) -> anyhow::Result<Duration> {
    let status = rig.admin.cluster_status().await?;
    let node = status.storage_nodes.iter().max_by_key(|node| node.leader_count).context("no storage node")?;
    anyhow::ensure!(node.leader_count > 0, "nobody leads anything");
    let victim = node.id;
    let survivors = status.storage_nodes.iter().map(|node| node.id).filter(|id| *id != victim);
    watch.begin(victim, survivors, status.version);
    let key = (Role::Storage, victim.0);
    let fallen = rig.signal(key, args.signal.signal())?;
    let patience = PATIENCE;
    let (acked, moved) = tokio::time::timeout(patience, watch.until_acked())
        .await
        .with_context(|| format!("storage node {victim} was not replaced within {patience:?}"))??;
    // Not as many as it led: some may have gone back to where they belong while its session ran out.
    anyhow::ensure!(moved > 0, "nothing that storage node {victim} led was given to others");
    rig.signal(key, Signal::KILL)?;
    rig.until_ended(key).await?;
    heard.note(&format!("dmq-storage-{victim}"), fallen);
    rig.launch(key)?;
    Ok(acked.duration_since(fallen))
}

/// Follows what is written and what is acknowledged, from before the blow.
struct Watch {
    victim: StorageId,
    before: Version,
    entries: async_nats::Subscriber,
    acks: mpsc::Receiver<Ack>,
    /// Entries that nobody has looked into yet: that can wait until the nodes have answered.
    unread: Vec<Bytes>,
    /// What survivors have, and since when, in the order heard.
    heard: BTreeMap<StorageId, Vec<Ack>>,
}

impl Watch {
    async fn new(rig: &Rig) -> anyhow::Result<Self> {
        // A stream's subject is an ordinary subject: whoever subscribes to it hears what is published to the stream.
        let entries = rig.client.subscribe(rig.services.log_subject()).await?;
        let acks = rig.acks().await?;
        crate::bus::raw::round_trip(&rig.client, PATIENCE).await?;
        let (victim, before) = (StorageId(0), Version::ZERO);
        Ok(Self { victim, before, entries, acks, unread: Vec::new(), heard: BTreeMap::new() })
    }

    /// Looks only at what comes from now on.
    fn begin(&mut self, victim: StorageId, survivors: impl Iterator<Item = StorageId>, before: Version) {
        (self.victim, self.before) = (victim, before);
        while self.acks.try_recv().is_ok() {}
        while self.entries.next().now_or_never().is_some() {}
        self.unread.clear();
        self.heard = survivors.map(|id| (id, Vec::new())).collect();
    }

    /// When the last survivor had the change that fences the victim, and how many partitions got another leader by it.
    async fn until_acked(&mut self) -> anyhow::Result<(Instant, u32)> {
        let mut found: Option<(Version, u32)> = None;
        loop {
            tokio::select! {
                entry = self.entries.next() => {
                    self.unread.push(entry.context("the connection to NATS has ended")?.payload);
                }
                ack = self.acks.recv() => {
                    let ack = ack.context("the connection to NATS has ended")?;
                    if let Some(of_this_node) = self.heard.get_mut(&ack.storage) {
                        of_this_node.push(ack);
                    }
                }
            }
            let has = |version: Version| {
                let first = |acks: &Vec<Ack>| acks.iter().find(|ack| ack.version >= version).map(|ack| ack.at);
                self.heard.values().map(first).collect::<Option<Vec<_>>>()
            };
            if has(self.before.next()).is_none() {
                continue;
            }
            if found.is_none() {
                found = fencing(&self.unread, self.victim)?;
            }
            let Some((version, moved)) = found else { continue };
            if let Some(last) = has(version).and_then(|times| times.into_iter().max()) {
                return Ok((last, moved));
            }
        }
    }
}

/// The version of the change that fences this node, once all its messages are there, and how many leaders it names.
fn fencing(entries: &[Bytes], victim: StorageId) -> anyhow::Result<Option<(Version, u32)>> {
    let (mut fences, mut leaders) = (false, 0);
    for payload in entries {
        let Some(entry) = ParsedEntry::parse(payload) else { continue };
        let part = entry.part.map_or((0, true), |part| (part.number, part.last));
        if part.0 == 0 {
            (fences, leaders) = (false, 0);
        }
        for record in entry.records()? {
            if let Record::StorageStateChanged { storage, state: NodeState::Fenced, .. } = record {
                fences |= storage == victim;
            }
            leaders += record.changed_partitions().filter(|(.., leader)| leader.flatten().is_some()).count() as u32;
        }
        if part.1 && fences {
            return Ok(Some((Version(entry.previous.version.0 + 1 + u64::from(part.0)), leaders)));
        }
    }
    Ok(None)
}

/// From the blow to the first admin answer of another controller.
async fn controller(rig: &mut Rig, args: &Args, heard: &mut Ears) -> anyhow::Result<Duration> {
    let status = rig.admin.cluster_status().await?;
    let victim = status.controller.context("no controller is active")?.id;
    let key = (Role::Controller, victim.0);
    let subject = rig.services.admin_subject("cluster", "status");
    let fallen = rig.signal(key, args.signal.signal())?;
    let patience = PATIENCE;
    let of_another = |payload: &Bytes| {
        let status = serde_json::from_slice::<ClusterStatus>(payload);
        status.is_ok_and(|status| status.controller.is_some_and(|active| active.id != victim))
    };
    let answered = tokio::time::timeout(patience, first_answer(&rig.client, &subject, of_another))
        .await
        .with_context(|| format!("nobody took over from controller {victim} within {patience:?}"))?;
    rig.signal(key, Signal::KILL)?;
    rig.until_ended(key).await?;
    heard.note(&format!("dmq-controller-{victim}"), fallen);
    rig.launch(key)?;
    Ok(answered.duration_since(fallen))
}

/// When an answer first comes that will do. Asks again and again, without waiting for what may never be answered.
pub async fn first_answer(client: &Client, subject: &str, will_do: impl Fn(&Bytes) -> bool) -> Instant {
    const EVERY: Duration = Duration::from_millis(2);
    let mut asked = FuturesUnordered::new();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => asked.push(client.request(subject.to_owned(), Bytes::new())),
            Some(answer) = asked.next() => {
                let at = Instant::now();
                if answer.is_ok_and(|message| will_do(&message.payload)) {
                    return at;
                }
            }
        }
    }
}
