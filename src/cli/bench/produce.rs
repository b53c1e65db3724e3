//! `dmq bench produce` and `dmq bench replicate`: how many records a cluster takes in, and how long one takes from `send` to its
//! acknowledgement.

use std::time::Instant;

use super::Place;
use super::appender::Appenders;
use super::figures::{Durations, Figure, Report};
use super::records::{self, Load};
use super::rig::{Plan, Rig};
use crate::client::{Producer, ProducerConfig, ProducerRecord};
use crate::types::TopicName;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    load: Load,
    /// How many nodes hold each partition
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=9))]
    replicas: u32,
    #[command(flatten)]
    rest: Rest,
}

#[derive(clap::Args, Debug)]
pub struct Replicate {
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    rest: Rest,
}

#[derive(clap::Args, Debug)]
struct Rest {
    /// How many records are sent one by one, each after the last one's acknowledgement
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    single: u64,
    /// How often everything is measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// The most that is written to find the floor.
const FLOOR_BYTES: u64 = 1 << 30;

pub async fn run(place: &Place, args: &Args) -> anyhow::Result<Report> {
    measure(place, "produce", &args.load, args.replicas, &args.rest).await
}

pub async fn replicate(place: &Place, args: &Replicate) -> anyhow::Result<Report> {
    measure(place, "replicate", &args.load, 3, &args.rest).await
}

async fn measure(place: &Place, bench: &str, load: &Load, replicas: u32, rest: &Rest) -> anyhow::Result<Report> {
    let mut rig = Rig::start(place, &Plan { controllers: 1, storage: replicas, ..Plan::default() }).await?;
    rig.until_healthy(replicas).await?;
    let (mut rates, mut floors) = (Vec::new(), Vec::new());
    let (mut latency, mut floor_latency) = (Durations::new(), Durations::new());
    let (mut single, mut floor_single) = (Durations::new(), Durations::new());
    let mut cpu = Vec::new();
    for round in 0..rest.rounds {
        let topic = TopicName::new(&format!("bench.{round}"))?;
        records::create(&rig, &topic, load.partitions, replicas).await?;
        let sent = load.send(&rig, &topic).await?;
        rates.push(load.bytes() as f64 / sent.took.as_secs_f64() / 1e6);
        cpu.push(sent.cpu.as_secs_f64() * 1e6 / load.records() as f64);
        latency.merge(&sent.latency);
        one_by_one(&rig, &topic, load, rest.single, &mut single).await?;

        // As many bytes, or as many as tell it, in messages as large as batches, as many at a time, by processes that do nothing else.
        let appenders = Appenders::start(&mut rig, replicas).await?;
        let messages = (load.bytes().min(FLOOR_BYTES) / load.batch_size() as u64).max(1);
        let (took, all) = appenders.send(messages, load.batch_size(), load.window()).await?;
        floors.push(messages as f64 * load.batch_size() as f64 / all.as_secs_f64() / 1e6);
        floor_latency.merge(&took);
        floor_single.merge(&appenders.send(rest.single, load.size as usize, 1).await?.0);
        appenders.end(&mut rig).await?;
    }
    let (rate, floor) = (median(&mut rates), median(&mut floors));
    let size = f64::from(load.size);
    let name = |what: &str| format!("{what}, {} bytes, {} partitions × {replicas}", load.size, load.partitions);
    let mut figures = vec![
        Figure::new(name("records acknowledged"), rate * 1e6 / size, "/s").floor(floor * 1e6 / size),
        Figure::new(name("the same"), rate, "MB/s").floor(floor),
        Figure::new("send to acknowledgement under that load, p50", latency.ms(0.5), "ms").floor(floor_latency.ms(0.5)),
        Figure::new("send to acknowledgement under that load, p99", latency.ms(0.99), "ms")
            .floor(floor_latency.ms(0.99)),
        Figure::new("the producer's processor, a record", median(&mut cpu), "µs"),
    ];
    if rest.single > 0 {
        let name = |quantile: &str| format!("one record after the other, send to acknowledgement, {quantile}");
        figures.push(Figure::new(name("p50"), single.ms(0.5), "ms").floor(floor_single.ms(0.5)));
        figures.push(Figure::new(name("p99"), single.ms(0.99), "ms").floor(floor_single.ms(0.99)));
    }
    let report = rig.report(bench, figures).spread("send to acknowledgement under that load", &latency);
    Ok(report.spread("one record after the other", &single))
}

async fn one_by_one(rig: &Rig, topic: &TopicName, load: &Load, count: u64, took: &mut Durations) -> anyhow::Result<()> {
    let client = rig.connect("bench producer").await?;
    let config = ProducerConfig { linger: std::time::Duration::ZERO, ..load.config() };
    let producer = Producer::new(client, rig.services.clone(), config).await?;
    for _ in 0..count {
        let record = ProducerRecord::new(topic.clone(), vec![b'x'; load.size as usize]).partition(0);
        let began = Instant::now();
        producer.send(record).await?.await?;
        took.add(began.elapsed());
    }
    producer.close().await;
    Ok(())
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
