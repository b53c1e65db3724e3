//! `dmq bench metadata`: one change after another, from the client's request to the last storage node's disk.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::Context;

use super::Place;
use super::figures::{Durations, Figure, Report, Target};
use super::floor::Floor;
use super::rig::{PATIENCE, Plan, Rig, until_acked};
use crate::types::StorageId;
use crate::wire::admin::{Terms, TopicAlter, TopicCreate};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// How many changes are made
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..))]
    changes: u32,
    /// How many partitions the cluster has before
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..))]
    partitions: u32,
}

/// Changes that are made before anything counts.
const WARM_UP: u32 = 20;

pub async fn run(place: &Place, args: &Args) -> anyhow::Result<Report> {
    let mut rig = Rig::start(place, &Plan::default()).await?;
    rig.until_healthy(3).await?;
    create(&rig, "bench", args.partitions).await?;
    let nodes: BTreeSet<StorageId> = (0..3).map(StorageId).collect();
    let mut acks = rig.acks().await?;
    let mut floor = Floor::new(&rig).await?;
    let (mut spread, mut answered) = (Durations::new(), Durations::new());
    for number in 0..WARM_UP + args.changes {
        floor.measure().await?;
        let config = BTreeMap::from([("retention.ms".to_owned(), Some((1_000_000 + number).to_string()))]);
        let request = TopicAlter { name: "bench".into(), partitions: None, config, terms: Terms::default() };
        let sent = Instant::now();
        let changed = rig.admin.alter_topic(request).await?;
        let answer = sent.elapsed();
        let last = until_acked(&mut acks, nodes.clone(), changed.version, PATIENCE).await?;
        if number >= WARM_UP {
            spread.add(last.duration_since(sent));
            answered.add(answer);
        }
    }
    let figures = vec![
        Figure::new("fdatasync after a small append, p99", floor.sync.ms(0.99), "ms"),
        Figure::new("core request and answer, p99", floor.request.ms(0.99), "ms"),
        Figure::new("JetStream append, always synced, p99", floor.append.ms(0.99), "ms"),
        Figure::new("request to the last of 3 nodes' acks, p50", spread.ms(0.5), "ms").floor(floor.sum_ms(0.5)),
        Figure::new("request to the last of 3 nodes' acks, p99", spread.ms(0.99), "ms")
            .floor(floor.sum_ms(0.99))
            .target(Target::Floors(2.0)),
        Figure::new("request to its answer, p50", answered.ms(0.5), "ms"),
        Figure::new("request to its answer, p99", answered.ms(0.99), "ms"),
    ];
    Ok(rig.report("metadata", figures))
}

/// Creates a topic with three replicas, which every node then has.
pub async fn create(rig: &Rig, name: &str, partitions: u32) -> anyhow::Result<()> {
    let request = TopicCreate {
        name: name.into(),
        partitions: Some(partitions),
        replication_factor: Some(3),
        config: BTreeMap::new(),
        terms: Terms::default(),
    };
    rig.admin.create_topic(request).await.with_context(|| format!("create {partitions} partitions")).map(drop)
}
