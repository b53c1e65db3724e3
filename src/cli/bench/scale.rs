//! `dmq bench scale`: what a million partitions cost a controller, and how soon a thousand storage nodes have a change.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context;
use async_nats::Client;
use bytes::Bytes;
use futures::StreamExt;
use rustix::process::Signal;
use tokio::sync::mpsc;

use super::super::dev::process::Role;
use super::figures::{Durations, Figure, Report, Target};
use super::floor::Floor;
use super::rig::{Ack, Key, Plan, Rig, until_acked};
use super::{Place, failover, proc};
use crate::metadata::{NodeState, ParsedEntry, Record};
use crate::types::{StorageId, Version};
use crate::wire::ControllerRole;
use crate::wire::admin::{NodeList, Terms, TopicAlter, TopicCreate};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// How many partitions one topic has, each on three nodes; 0 leaves that half out
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    partitions: u32,
    /// How many storage nodes follow; 0 leaves that half out
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    nodes: u32,
    /// How many changes each comparison makes
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(10..))]
    changes: u32,
}

/// How long whatever a million partitions need may take.
const PATIENCE: Duration = Duration::from_secs(180);
const FEW: u32 = 1_000;

pub async fn run(place: &Place, args: &Args) -> anyhow::Result<Report> {
    let mut figures = Vec::new();
    let mut report = None;
    if args.partitions > 0 {
        let (rig, found) = partitions(place, args).await?;
        figures.extend(found);
        report = Some(rig.report("scale", Vec::new()));
    }
    if args.nodes > 0 {
        let (rig, found) = nodes(place, args).await?;
        figures.extend(found);
        report = Some(rig.report("scale", Vec::new()));
    }
    let report = report.context("there is nothing to measure: give --partitions or --nodes")?;
    Ok(Report { figures, ..report })
}

/// A million partitions, on two controllers and three storage nodes.
async fn partitions(place: &Place, args: &Args) -> anyhow::Result<(Rig, Vec<Figure>)> {
    // Four rounds of changes, and the last one of them goes beyond.
    let every = (u64::from(args.changes) * 3 + 200).max(1_000);
    let settings = vec![
        ("DMQ_SNAPSHOT_EVERY_ENTRIES", every.to_string()),
        ("DMQ_SNAPSHOT_EVERY_BYTES", (1u64 << 40).to_string()),
        ("DMQ_ADMIN_WAIT_MS", "60000".into()),
    ];
    let mut rig = Rig::start(place, &Plan { controllers: 2, settings, ..Plan::default() }).await?;
    rig.until_healthy(3).await?;
    let mut run = Run::new(&rig).await?;
    let mut figures = Vec::new();

    create(&rig, "few", FEW).await?;
    let few = run.changes(&rig, "few", args.changes).await?;
    let began = Instant::now();
    create(&rig, "many", args.partitions).await?;
    figures.push(Figure::new(name(args, "created, and on every disk"), began.elapsed().as_secs_f64(), "s"));
    let many = run.changes(&rig, "many", args.changes).await?;
    let what = |partitions: u32| format!("one change, to the last of 3 nodes' acks, in a topic of {partitions}, p50");
    figures.push(Figure::new(what(FEW), few.ms(0.5), "ms").floor(run.floor.sum_ms(0.5)));
    figures.push(Figure::new(what(args.partitions), many.ms(0.5), "ms").floor(few.ms(0.5)).target(Target::Floors(1.2)));

    let status = rig.admin.cluster_status().await?;
    let active = (Role::Controller, status.controller.context("no controller is active")?.id.0);
    let pid = rig.pid(active)?;
    figures.push(Figure::new(name(args, "controller, resident"), proc::resident_mb(pid)?, "MB"));
    proc::forget_peak(pid)?;
    let during = run.until_snapshot(&rig, "many", every).await?;
    let peak = proc::peak_mb(pid)?;
    figures.push(
        Figure::new(name(args, "controller, peak while a snapshot is written"), peak, "MB").target(Target::Most(300.0)),
    );
    figures
        .push(Figure::new("one change while the snapshot is written, p50", during.ms(0.5), "ms").floor(many.ms(0.5)));
    figures.push(Figure::new("one change while the snapshot is written, longest", during.max_ms(), "ms"));
    let took = snapshot_seconds(&rig.said(active)?).context("the log does not say how long the snapshot took")?;
    figures.push(Figure::new("snapshot written, read back and compared", took, "s").target(Target::Most(5.0)));
    figures.extend(restarts(&mut rig, active).await?);
    Ok((rig, figures))
}

/// What it takes to go on after a controller, or all of them, are gone.
async fn restarts(rig: &mut Rig, active: Key) -> anyhow::Result<Vec<Figure>> {
    let standby: Key = (Role::Controller, 1 - active.1);
    let subject = rig.services.admin_subject("node", "list");
    let mut figures = Vec::new();
    let fallen = rig.signal(active, Signal::KILL)?;
    let took = first_answer(&rig.client, &subject).await?.duration_since(fallen);
    figures.push(
        Figure::new("the active one killed, to the standby's first answer", took.as_secs_f64(), "s")
            .target(Target::Most(1.0)),
    );
    rig.until_ended(active).await?;

    // The other one has nothing on its disk, and takes the snapshot.
    rig.wipe(active)?;
    let began = Instant::now();
    rig.launch(active)?;
    let id = active.1;
    rig.until("a standby that had nothing", PATIENCE, |status| {
        let ready = |role| matches!(role, ControllerRole::Standby | ControllerRole::Active);
        status.metadata_services.iter().any(|c| c.id.0 == id && ready(c.state) && c.version == status.version)
    })
    .await?;
    let took = began.elapsed().as_secs_f64();
    figures.push(Figure::new("empty controller, start to standby with all", took, "s").target(Target::Most(5.0)));

    for key in [active, standby] {
        rig.signal(key, Signal::KILL)?;
        rig.until_ended(key).await?;
    }
    let began = Instant::now();
    rig.launch(standby)?;
    let took = first_answer(&rig.client, &subject).await?.duration_since(began);
    figures.push(
        Figure::new("all controllers killed, one started, to its first answer", took.as_secs_f64(), "s")
            .target(Target::Most(10.0)),
    );
    Ok(figures)
}

/// When somebody first answers, of those who are asked from a moment after now.
async fn first_answer(client: &Client, subject: &str) -> anyhow::Result<Instant> {
    // What was killed just now has read nothing of what is asked from here on.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let is_list = |payload: &Bytes| serde_json::from_slice::<NodeList>(payload).is_ok();
    let asking = failover::first_answer(client, subject, is_list);
    tokio::time::timeout(PATIENCE, asking).await.context("no controller answers any more")
}

fn name(args: &Args, what: &str) -> String {
    format!("{} partitions: {what}", args.partitions)
}

/// Creates a topic and lets it grow, so that no single request is a burden of its own.
async fn create(rig: &Rig, name: &str, partitions: u32) -> anyhow::Result<()> {
    const AT_ONCE: u32 = 50_000;
    let terms = || Terms { wait_ms: u64::try_from(PATIENCE.as_millis()).ok(), ..Terms::default() };
    let admin = rig.admin.clone().within(PATIENCE);
    let (mut made, name) = (AT_ONCE.min(partitions), name.to_owned());
    let request = TopicCreate {
        name: name.clone(),
        partitions: Some(made),
        replication_factor: Some(3),
        config: BTreeMap::new(),
        terms: terms(),
    };
    let mut changed = admin.create_topic(request).await.with_context(|| format!("create {made} partitions"))?;
    while made < partitions {
        made = (made + AT_ONCE).min(partitions);
        let config = BTreeMap::new();
        let request = TopicAlter { name: name.clone(), partitions: Some(made), config, terms: terms() };
        changed = admin.alter_topic(request).await.with_context(|| format!("go on to {made} partitions"))?;
    }
    until_all_have(rig, changed.version).await
}

/// Waits until every node serves and has the version. The cluster's status would count a million partitions each time.
async fn until_all_have(rig: &Rig, version: Version) -> anyhow::Result<()> {
    const LOOK_EVERY: Duration = Duration::from_millis(50);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let nodes = rig.admin.list_nodes().await?.nodes;
        if nodes.iter().all(|node| node.state == NodeState::Active && node.version >= version) {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "not every node came to version {version}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Changes one after another, each followed to the last node's disk.
struct Run {
    floor: Floor,
    acks: mpsc::Receiver<Ack>,
    nodes: BTreeSet<StorageId>,
    number: u32,
}

impl Run {
    async fn new(rig: &Rig) -> anyhow::Result<Self> {
        let nodes = rig.admin.list_nodes().await?.nodes.iter().map(|node| node.id).collect();
        Ok(Self { floor: Floor::new(rig).await?, acks: rig.acks().await?, nodes, number: 0 })
    }

    async fn change(&mut self, rig: &Rig, topic: &str) -> anyhow::Result<Duration> {
        self.number += 1;
        let config = BTreeMap::from([("retention.ms".to_owned(), Some((1_000_000 + self.number).to_string()))]);
        let request = TopicAlter { name: topic.into(), partitions: None, config, terms: Terms::default() };
        let sent = Instant::now();
        let changed = rig.admin.alter_topic(request).await?;
        let last = until_acked(&mut self.acks, self.nodes.clone(), changed.version, PATIENCE).await?;
        Ok(last.duration_since(sent))
    }

    async fn changes(&mut self, rig: &Rig, topic: &str, count: u32) -> anyhow::Result<Durations> {
        let mut took = Durations::new();
        for _ in 0..count {
            self.floor.measure().await?;
            took.add(self.change(rig, topic).await?);
        }
        Ok(took)
    }

    /// Goes on until a snapshot is committed; says how long the changes took that were made from its beginning on.
    async fn until_snapshot(&mut self, rig: &Rig, topic: &str, every: u64) -> anyhow::Result<Durations> {
        let mut entries = rig.client.subscribe(rig.services.log_subject()).await?;
        crate::bus::raw::round_trip(&rig.client, PATIENCE).await?;
        let (version, mut took) = (rig.admin.list_nodes().await?.version, Durations::new());
        let mut left = every.saturating_sub(version.0);
        loop {
            let one = self.change(rig, topic).await?;
            left = left.saturating_sub(1);
            if left == 0 {
                took.add(one);
            }
            while let Some(Some(message)) = futures::FutureExt::now_or_never(entries.next()) {
                let records = ParsedEntry::parse(&message.payload).map(|entry| entry.records()).transpose()?;
                let commits = |record: &Record| matches!(record, Record::SnapshotCommitted { .. });
                if records.is_some_and(|records| records.iter().any(commits)) {
                    return Ok(took);
                }
            }
            anyhow::ensure!(took.count() < 50_000, "no snapshot was committed");
        }
    }
}

/// How long the last snapshot took, by the controller's log.
fn snapshot_seconds(log: &str) -> Option<f64> {
    let line = log.lines().rev().find(|line| line.contains("wrote a snapshot"))?;
    let took = line.split("took=").nth(1)?.split_ascii_whitespace().next()?;
    match (took.strip_suffix("ms"), took.strip_suffix("µs")) {
        (Some(ms), _) => ms.parse::<f64>().ok().map(|ms| ms / 1e3),
        (None, Some(us)) => us.parse::<f64>().ok().map(|us| us / 1e6),
        (None, None) => took.strip_suffix('s')?.parse().ok(),
    }
}

/// A thousand storage nodes in two processes, and one controller.
async fn nodes(place: &Place, args: &Args) -> anyhow::Result<(Rig, Vec<Figure>)> {
    const PROCESSES: u32 = 2;
    let mut rig = Rig::start(place, &Plan { controllers: 1, storage: 0, ..Plan::default() }).await?;
    rig.until("an active controller", PATIENCE, |status| status.controller.is_some()).await?;
    let each = args.nodes.div_ceil(PROCESSES);
    for number in 0..PROCESSES {
        let (first, count) = (number * each, each.min(args.nodes.saturating_sub(number * each)));
        let file = rig.path().join(format!("herd-{number}"));
        let herd = ["herd".into(), rig.url.clone(), rig.path().join("services.json").display().to_string()];
        let more = [file.display().to_string(), first.to_string(), count.to_string()];
        rig.helper(2_000 + number, herd.into_iter().chain(more))?;
    }
    let echo = rig.echo().await?;
    let began = Instant::now();
    rig.until("all nodes active", PATIENCE * 2, |status| {
        let ready = |node: &crate::wire::admin::NodeDescription| node.state == NodeState::Active && node.lag == 0;
        status.storage_nodes.len() == args.nodes as usize && status.storage_nodes.iter().all(ready)
    })
    .await?;
    let joined = began.elapsed().as_secs_f64();
    create(&rig, "bench", 12).await?;
    let mut run = Run::new(&rig).await?;
    let (mut took, mut burst) = (Durations::new(), Durations::new());
    for _ in 0..args.changes {
        burst.add(there_and_back(&rig.client, &echo.subject, args.nodes).await?);
        run.floor.measure().await?;
        took.add(run.change(&rig, "bench").await?);
    }
    let nodes = args.nodes;
    let least = |quantile| burst.ms(quantile) + run.floor.sum_ms(quantile);
    let change = |quantile| format!("one change, to the last of {nodes} nodes' acks, {quantile}");
    let figures = vec![
        Figure::new(format!("{nodes} nodes joined"), joined, "s"),
        Figure::new(format!("{nodes} messages through the server, each answered, p99"), burst.ms(0.99), "ms"),
        Figure::new(change("p50"), took.ms(0.5), "ms").floor(least(0.5)),
        Figure::new(change("p99"), took.ms(0.99), "ms").floor(least(0.99)).target(Target::Most(50.0)),
    ];
    Ok((rig, figures))
}

/// So many requests at once to somebody who only answers, until the last answer.
async fn there_and_back(client: &Client, subject: &str, count: u32) -> anyhow::Result<Duration> {
    /// About what a push of a small change takes.
    const PUSH: [u8; 1_100] = [b'x'; 1_100];
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    let began = Instant::now();
    for _ in 0..count {
        client.publish_with_reply(subject.to_owned(), inbox.clone(), Bytes::from_static(&PUSH)).await?;
    }
    for _ in 0..count {
        let answer = tokio::time::timeout(PATIENCE, answers.next()).await.context("the bare answerer is silent")?;
        answer.context("the connection to NATS has ended")?;
    }
    Ok(began.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_says_how_long_a_snapshot_took() {
        let line = |took: &str| format!("x\n… wrote a snapshot, and read it back name=\"1-a\" bytes=7 took={took}\ny");
        assert_eq!(snapshot_seconds(&line("1.25s")), Some(1.25));
        assert_eq!(snapshot_seconds(&line("250ms")), Some(0.25));
        assert_eq!(snapshot_seconds("nothing"), None);
    }
}
