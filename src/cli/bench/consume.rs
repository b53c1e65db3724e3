//! `dmq bench consume`: how fast records are read back that a cluster has.

use std::time::Instant;

use anyhow::Context;

use super::figures::{Figure, Report};
use super::produce::median;
use super::records::{self, Load};
use super::rig::{Plan, Rig};
use super::{Place, appender, proc};
use crate::client::{Consumer, ConsumerConfig, Leaders, SeekTo};
use crate::types::TopicName;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    load: Load,
    /// How often everything is read; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// What one fetch asks for, as a consumer does.
const FETCH_BYTES: usize = 900_000;
/// The most that is served to find the floor.
const FLOOR_BYTES: u64 = 4 << 30;

pub async fn run(place: &Place, args: &Args) -> anyhow::Result<Report> {
    let load = &args.load;
    let mut rig = Rig::start(place, &Plan { controllers: 1, storage: 1, ..Plan::default() }).await?;
    rig.until_healthy(1).await?;
    let topic = TopicName::new("bench")?;
    records::create(&rig, &topic, load.partitions, 1).await?;
    load.send(&rig, &topic).await?;
    let (mut rates, mut floors, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        let (took, used) = read(&rig, &topic, load).await?;
        rates.push(load.bytes() as f64 / took / 1e6);
        cpu.push(used * 1e6 / load.records() as f64);
        let requests = (load.bytes().min(FLOOR_BYTES) as usize / FETCH_BYTES).max(10);
        floors.push(appender::serve(&mut rig, FETCH_BYTES, load.partitions as usize, requests).await? / 1e6);
    }
    let (rate, floor, size) = (median(&mut rates), median(&mut floors), f64::from(load.size));
    let name = |what: &str| format!("{what}, {} bytes, {} partitions", load.size, load.partitions);
    let figures = vec![
        Figure::new(name("records read from the beginning"), rate * 1e6 / size, "/s").floor(floor * 1e6 / size),
        Figure::new(name("the same"), rate, "MB/s").floor(floor),
        Figure::new("the consumer's processor, a record", median(&mut cpu), "µs"),
    ];
    Ok(rig.report("consume", figures))
}

/// Reads everything once: how many seconds it took, and of the processor.
async fn read(rig: &Rig, topic: &TopicName, load: &Load) -> anyhow::Result<(f64, f64)> {
    let client = rig.connect("bench consumer").await?;
    let leaders = Leaders::new(client.clone(), rig.services.clone());
    let mut consumer = Consumer::new(client, rig.services.clone(), ConsumerConfig::default());
    let partitions = consumer.partitions(topic).await?;
    let mut ends = Vec::new();
    for partition in &partitions {
        ends.push((partition.clone(), leaders.offsets(topic, partition.partition).await?.high_watermark));
    }
    let pid = std::process::id();
    let (began, before) = (Instant::now(), proc::cpu(pid)?);
    consumer.assign_from(partitions.into_iter().map(|partition| (partition, SeekTo::Beginning)));
    for (partition, end) in ends {
        consumer.stop_at(&partition, end)?;
    }
    let (mut records, mut bytes) = (0, 0);
    while let Some(record) = consumer.recv().await {
        records += 1;
        bytes += record?.value.context("a record without a value")?.len() as u64;
    }
    anyhow::ensure!(
        (records, bytes) == (load.records(), load.bytes()),
        "{records} records were read, of {bytes} bytes"
    );
    Ok((began.elapsed().as_secs_f64(), proc::cpu(pid)?.saturating_sub(before).as_secs_f64()))
}
