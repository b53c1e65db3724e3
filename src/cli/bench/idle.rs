//! `dmq bench idle`: what a cluster of three controllers and three storage nodes costs while nothing happens.

use std::time::{Duration, Instant};

use super::super::dev::process::Role;
use super::figures::{Figure, Report};
use super::rig::{Key, Plan, Rig};
use super::{Place, proc};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// How long it is watched
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
}

pub async fn run(place: &Place, args: &Args) -> anyhow::Result<Report> {
    let mut rig = Rig::start(place, &Plan::default()).await?;
    rig.until_healthy(3).await?;
    super::metadata::create(&rig, "bench", 12).await?;
    let groups: [(&str, Vec<Key>); 3] = [
        ("controllers", (0..3).map(|id| (Role::Controller, id)).collect()),
        ("storage nodes", (0..3).map(|id| (Role::Storage, id)).collect()),
        ("nats-server", vec![(Role::Nats, 0)]),
    ];
    let used = |keys: &[Key]| keys.iter().map(|key| proc::cpu(rig.pid(*key)?)).sum::<anyhow::Result<Duration>>();
    let began = Instant::now();
    let before = groups.iter().map(|(_, keys)| used(keys)).collect::<anyhow::Result<Vec<_>>>()?;
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let wall = began.elapsed();
    let mut figures = Vec::new();
    for ((name, keys), before) in groups.iter().zip(before) {
        let cores = (used(keys)?.saturating_sub(before)).as_secs_f64() / wall.as_secs_f64();
        let memory = keys.iter().map(|key| proc::resident_mb(rig.pid(*key)?)).sum::<anyhow::Result<f64>>()?;
        let count = keys.len();
        figures.push(Figure::new(format!("{count} {name}: processor, together"), cores * 100.0, "% of a core"));
        figures.push(Figure::new(format!("{count} {name}: memory, together"), memory, "MB"));
    }
    Ok(rig.report("idle", figures))
}
