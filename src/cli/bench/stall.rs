//! `dmq bench stall`: how long records wait whose partition's leader is killed, to be acknowledged and to be read by somebody who
//! reads along, and whether each of them is stored once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::StreamExt;
use rustix::process::Signal;
use tokio::sync::{oneshot, watch};

use super::super::dev::process::Role;
use super::Place;
use super::figures::{Durations, Figure, Report, Target};
use super::produce::median;
use super::rig::{PATIENCE, Plan, Rig};
use crate::client::{
    Consumer, ConsumerConfig, ConsumerRecord, Delivery, Producer, ProducerConfig, ProducerRecord, SeekTo,
};
use crate::log::TopicPartition;
use crate::types::{StorageId, TopicName};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// How many records a second are sent
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// How often a leader is killed
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    kills: u32,
    /// Let nobody hear of ended connections: a death shows by silence alone
    #[arg(long)]
    without_advisories: bool,
    /// Let somebody watch all traffic, as `nats sub 'dmq.>'` does, so that NATS never says that nobody listens
    #[arg(long)]
    watched: bool,
}

/// Before and after each crash.
const QUIET: Duration = Duration::from_secs(1);

pub async fn run(place: &Place, args: &Args) -> anyhow::Result<Report> {
    let plan = Plan { advisories: !args.without_advisories, ..Plan::default() };
    let mut rig = Rig::start(place, &plan).await?;
    rig.until_healthy(3).await?;
    let topic = TopicName::new("bench")?;
    super::records::create(&rig, &topic, 1, 3).await?;
    let client = rig.connect("bench producer").await?;
    let producer = Producer::new(client, rig.services.clone(), ProducerConfig::default()).await?;
    if args.watched {
        let watcher = rig.connect("bench watcher").await?;
        let mut all = watcher.subscribe(format!("{}.>", rig.services.prefix())).await?;
        tokio::spawn(async move { while all.next().await.is_some() {} });
    }
    let mut reader = Consumer::new(rig.connect("bench reader").await?, rig.services.clone(), ConsumerConfig::default());
    reader.assign_from([(TopicPartition { topic: topic.clone(), partition: 0 }, SeekTo::Beginning)]);
    let (tell_count, count) = oneshot::channel();
    let reading = tokio::spawn(read_along(reader, count));
    let (stop, stopped) = watch::channel(false);
    let sending = tokio::spawn(send(producer, topic.clone(), args.rate, stopped));

    let mut crashes = Vec::new();
    for _ in 0..args.kills {
        rig.until("every replica in sync", PATIENCE, |status| status.healthy).await?;
        tokio::time::sleep(QUIET).await;
        let description = rig.admin.describe_topic(topic.as_str()).await?;
        let leader: StorageId = description.partitions[0].leader.context("nobody leads")?;
        let key = (Role::Storage, leader.0);
        crashes.push(rig.signal(key, Signal::KILL)?);
        rig.until_ended(key).await?;
        tokio::time::sleep(QUIET).await;
        rig.launch(key)?;
    }
    rig.until("every replica in sync", PATIENCE, |status| status.healthy).await?;
    stop.send_replace(true);
    let sent = sending.await??;
    // Nobody waits for it once the reading has failed, which is told below.
    let _ = tell_count.send(sent.len());
    let read = tokio::time::timeout(PATIENCE, reading).await.context("what was acknowledged is not read")???;

    let mut figures = vec![Figure::new("records sent", sent.len() as f64, "")];
    let acknowledged: Vec<_> = sent.iter().map(|record| (record.sent, record.acknowledged)).collect();
    let read: Vec<_> = sent.iter().map(|record| record.sent).zip(read).collect();
    let mut spreads = Vec::new();
    for (what, waits) in [("acknowledged", acknowledged), ("read", read)] {
        let Waits { mut over_crashes, between } = Waits::of(&waits, &crashes);
        let worst = over_crashes.iter().copied().fold(0.0, f64::max);
        figures.extend([
            Figure::new(format!("sent to {what} between crashes, p50"), between.ms(0.5), "ms"),
            Figure::new(format!("sent to {what} between crashes, p99"), between.ms(0.99), "ms"),
            Figure::new(format!("longest from sent to {what} over a crash, median"), median(&mut over_crashes), "ms")
                .target(Target::Most(100.0)),
            Figure::new(format!("longest from sent to {what} over a crash, longest"), worst, "ms"),
        ]);
        spreads.push((format!("sent to {what} between crashes"), between));
    }
    let (lost, doubled) = recount(&rig, &topic, sent.len() as u64).await?;
    figures.extend([
        Figure::new("records lost", lost as f64, "").target(Target::Most(0.0)),
        Figure::new("records stored twice", doubled as f64, "").target(Target::Most(0.0)),
    ]);
    let bench = if args.watched { "stall, watched" } else { "stall" };
    let report = rig.report(bench, figures);
    Ok(spreads.iter().fold(report, |report, (name, durations)| report.spread(name, durations)))
}

struct Sent {
    sent: Instant,
    acknowledged: Instant,
}

/// How long records waited.
struct Waits {
    /// The longest over each crash, in milliseconds: of those that waited through it, or were sent soon after it.
    over_crashes: Vec<f64>,
    between: Durations,
}

impl Waits {
    /// `waits` are from when to when each record waited.
    fn of(waits: &[(Instant, Instant)], crashes: &[Instant]) -> Self {
        let longest = |crash: Instant| {
            let over = waits.iter().filter(|(from, to)| *to >= crash && *from <= crash + QUIET);
            over.map(|(from, to)| *to - *from).max().unwrap_or_default().as_secs_f64() * 1e3
        };
        let over_crashes = crashes.iter().map(|at| longest(*at)).collect();
        let mut between = Durations::new();
        for (from, to) in waits {
            if crashes.iter().all(|at| *to < *at || *from > *at + QUIET * 2) {
                between.add(*to - *from);
            }
        }
        Self { over_crashes, between }
    }
}

/// Reads numbered records, each in its turn, until it has as many as it is told of. When each was read.
async fn read_along(mut reader: Consumer, mut count: oneshot::Receiver<usize>) -> anyhow::Result<Vec<Instant>> {
    let (mut read, mut all) = (Vec::new(), None);
    while all.is_none_or(|all| read.len() < all) {
        tokio::select! {
            biased;
            told = &mut count, if all.is_none() => all = Some(told?),
            record = reader.recv() => {
                let number = number(record.context("the topic has no end")??)?;
                anyhow::ensure!(number == read.len() as u64, "record {number} was read in the place of {}", read.len());
                read.push(Instant::now());
            }
        }
    }
    Ok(read)
}

fn number(record: ConsumerRecord) -> anyhow::Result<u64> {
    let value = record.value.context("a record without a value")?;
    Ok(std::str::from_utf8(&value)?.parse()?)
}

/// Sends numbered records at a steady rate until it is stopped, and waits for all of them.
async fn send(
    producer: Producer,
    topic: TopicName,
    rate: u32,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<Vec<Sent>> {
    let (settle, mut settling) = tokio::sync::mpsc::unbounded_channel::<(Instant, Delivery)>();
    let settled = tokio::spawn(async move {
        let mut all = Vec::new();
        while let Some((sent, delivery)) = settling.recv().await {
            delivery.await?;
            all.push(Sent { sent, acknowledged: Instant::now() });
        }
        anyhow::Ok(all)
    });
    let mut pace = tokio::time::interval(Duration::from_secs(1) / rate);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let mut number = 0u64;
    loop {
        tokio::select! {
            _ = stopped.changed() => break,
            _ = pace.tick() => {
                let record = ProducerRecord::new(topic.clone(), number.to_string().into_bytes()).partition(0);
                let sent = Instant::now();
                let delivery = producer.send(record).await?;
                settle.send((sent, delivery)).ok().context("nobody waits for the records")?;
                number += 1;
            }
        }
    }
    producer.close().await;
    drop(settle);
    settled.await?
}

/// How many of the first `expected` numbers are not there, and how many are there more than once.
async fn recount(rig: &Rig, topic: &TopicName, expected: u64) -> anyhow::Result<(u64, u64)> {
    let client = rig.connect("bench consumer").await?;
    let leaders = crate::client::Leaders::new(client.clone(), rig.services.clone());
    let end = leaders.offsets(topic, 0).await?.high_watermark;
    let mut consumer = Consumer::new(client, rig.services.clone(), ConsumerConfig::default());
    let partitions = consumer.partitions(topic).await?;
    consumer.assign_from(partitions.iter().cloned().map(|partition| (partition, SeekTo::Beginning)));
    for partition in &partitions {
        consumer.stop_at(partition, end)?;
    }
    let (mut seen, mut doubled) = (BTreeSet::new(), 0);
    while let Some(record) = consumer.recv().await {
        doubled += u64::from(!seen.insert(number(record?)?));
    }
    Ok(((0..expected).filter(|number| !seen.contains(number)).count() as u64, doubled))
}
