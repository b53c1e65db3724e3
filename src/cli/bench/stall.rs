//! `dmq bench stall`: how long records wait whose partition's leader is killed, and whether each of them is stored once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::Signal;
use tokio::sync::watch;

use super::super::dev::process::Role;
use super::Place;
use super::figures::{Durations, Figure, Report, Target};
use super::produce::median;
use super::rig::{PATIENCE, Plan, Rig};
use crate::client::{Consumer, ConsumerConfig, Delivery, Producer, ProducerConfig, ProducerRecord, SeekTo};
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

    // What waited through a crash, or was sent soon after it.
    let longest = |from: Instant, to: Instant| {
        let over = sent.iter().filter(|record| record.acknowledged >= from && record.sent <= to);
        over.map(|record| record.acknowledged - record.sent).max().unwrap_or_default().as_secs_f64() * 1e3
    };
    let mut waits: Vec<f64> = crashes.iter().map(|at| longest(*at, *at + QUIET)).collect();
    let mut quiet = Durations::new();
    for record in &sent {
        if crashes.iter().all(|at| record.acknowledged < *at || record.sent > *at + QUIET * 2) {
            quiet.add(record.acknowledged - record.sent);
        }
    }
    let (lost, doubled) = count(&rig, &topic, sent.len() as u64).await?;
    let worst = waits.iter().copied().fold(0.0, f64::max);
    let figures = vec![
        Figure::new("records sent", sent.len() as f64, ""),
        Figure::new("send to acknowledgement between crashes, p50", quiet.ms(0.5), "ms"),
        Figure::new("send to acknowledgement between crashes, p99", quiet.ms(0.99), "ms"),
        Figure::new("longest wait of a record over a crash, median", median(&mut waits), "ms")
            .target(Target::Most(100.0)),
        Figure::new("longest wait of a record over a crash, longest", worst, "ms"),
        Figure::new("records lost", lost as f64, "").target(Target::Most(0.0)),
        Figure::new("records stored twice", doubled as f64, "").target(Target::Most(0.0)),
    ];
    Ok(rig.report("stall", figures))
}

struct Sent {
    sent: Instant,
    acknowledged: Instant,
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
async fn count(rig: &Rig, topic: &TopicName, expected: u64) -> anyhow::Result<(u64, u64)> {
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
        let value = record?.value.context("a record without a value")?;
        let number: u64 = std::str::from_utf8(&value)?.parse()?;
        doubled += u64::from(!seen.insert(number));
    }
    Ok(((0..expected).filter(|number| !seen.contains(number)).count() as u64, doubled))
}
