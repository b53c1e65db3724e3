//! `dmq bench idle`: what a cluster of three controllers and three storage nodes costs while nothing happens, and how soon a
//! storage node works again that was killed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::super::dev::process::Role;
use super::figures::{Figure, Report, Target};
use super::rig::{Key, PATIENCE, Plan, Rig};
use super::{Place, proc};
use crate::metadata::NodeState;
use crate::types::StorageId;
use crate::wire::admin::ClusterStatus;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// How long it is watched
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// How many partitions there are, each on all of three nodes, which lead a third of them each
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(3..))]
    partitions: u32,
}

const NODES: u32 = 3;
/// What one storage node with 10,000 partitions may take: MB, % of a core, and seconds from its start to its work.
const MEMORY: f64 = 200.0;
const PROCESSOR: f64 = 2.0;
const RESTART: f64 = 10.0;

/// What was measured of a process between two looks at it.
struct Spent {
    /// In % of a core.
    processor: f64,
    memory_mb: f64,
}

pub async fn run(place: &Place, args: &Args) -> anyhow::Result<Report> {
    let mut rig = Rig::start(place, &Plan::default()).await?;
    rig.until_healthy(NODES).await?;
    super::metadata::create(&rig, "bench", args.partitions).await?;
    let storage: Vec<Key> = (0..NODES).map(|id| (Role::Storage, id)).collect();
    at_rest(&rig, &storage).await?;
    let mut all: Vec<Key> = (0..3).map(|id| (Role::Controller, id)).collect();
    all.extend(storage.iter().copied().chain([(Role::Nats, 0)]));
    let spent = watch(&rig, &all, Duration::from_secs(args.seconds)).await?;
    let groups =
        [("3 controllers", Role::Controller), ("3 storage nodes", Role::Storage), ("1 nats-server", Role::Nats)];
    let mut figures = Vec::new();
    for (name, role) in groups {
        let of_role = || spent.iter().filter(|((of, _), _)| *of == role).map(|(_, spent)| spent);
        let (processor, memory) = (of_role().map(|one| one.processor).sum(), of_role().map(|one| one.memory_mb).sum());
        figures.push(Figure::new(format!("{name}: processor, together"), processor, "% of a core"));
        figures.push(Figure::new(format!("{name}: memory, together"), memory, "MB"));
    }
    let nodes = || spent.iter().filter(|((role, _), _)| *role == Role::Storage).map(|(_, spent)| spent);
    let most = |of: fn(&Spent) -> f64| nodes().map(of).fold(0.0, f64::max);
    let with = format!("one storage node with {} partitions", args.partitions);
    figures.push(
        Figure::new(format!("{with}: memory, the most of the three"), most(|one| one.memory_mb), "MB")
            .target(Target::Most(MEMORY)),
    );
    let processor =
        Figure::new(format!("{with}: processor, the most of the three"), most(|one| one.processor), "% of a core");
    figures.push(processor.target(Target::Most(PROCESSOR)));
    let (active, in_sync) = restart(&mut rig, 0).await?;
    let active = Figure::new(format!("{with}: killed, from its start to active"), active.as_secs_f64(), "s");
    figures.push(active.target(Target::Most(RESTART)));
    figures.push(Figure::new(format!("{with}: the same, to in sync everywhere"), in_sync.as_secs_f64(), "s"));
    at_rest(&rig, &storage).await?;
    let after = watch(&rig, &[(Role::Storage, 0)], Duration::from_secs(1)).await?;
    figures.extend(after.values().map(|one| Figure::new(format!("{with}: memory after that"), one.memory_mb, "MB")));
    Ok(rig.report("idle", figures))
}

/// What each of them spends in so long a time, and what it holds at its end.
async fn watch(rig: &Rig, keys: &[Key], span: Duration) -> anyhow::Result<BTreeMap<Key, Spent>> {
    let used = || keys.iter().map(|key| proc::cpu(rig.pid(*key)?)).collect::<anyhow::Result<Vec<_>>>();
    let (began, before) = (Instant::now(), used()?);
    tokio::time::sleep(span).await;
    let (wall, after) = (began.elapsed(), used()?);
    let spent = |((key, before), after): ((&Key, Duration), Duration)| {
        let processor = after.saturating_sub(before).as_secs_f64() / wall.as_secs_f64() * 100.0;
        Ok((*key, Spent { processor, memory_mb: proc::resident_mb(rig.pid(*key)?)? }))
    };
    keys.iter().zip(before).zip(after).map(spent).collect()
}

/// Waits until these have done what they were told, as far as their processors show.
async fn at_rest(rig: &Rig, keys: &[Key]) -> anyhow::Result<()> {
    const QUIET: f64 = 10.0;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let spent = watch(rig, keys, Duration::from_secs(2)).await?;
        let busiest = spent.values().map(|one| one.processor).fold(0.0, f64::max);
        if busiest < QUIET {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "a process still takes {busiest:.0} % of a core after {PATIENCE:?}");
    }
}

/// Kills a storage node and starts it: how long until it is active, and until it is in sync everywhere.
async fn restart(rig: &mut Rig, id: u32) -> anyhow::Result<(Duration, Duration)> {
    let (key, node) = ((Role::Storage, id), StorageId(id));
    let epoch_of = |status: &ClusterStatus| {
        let found = status.storage_nodes.iter().find(|held| held.id == node);
        found.filter(|held| held.state == NodeState::Active).map(|held| held.node_epoch)
    };
    let before = epoch_of(&rig.until_healthy(NODES).await?);
    rig.signal(key, Signal::KILL)?;
    rig.until_ended(key).await?;
    rig.until("the end of what was killed", PATIENCE, |status| epoch_of(status).is_none()).await?;
    let began = Instant::now();
    rig.launch(key)?;
    rig.until("the node's return", PATIENCE, |status| epoch_of(status).is_some_and(|epoch| Some(epoch) > before))
        .await?;
    let active = began.elapsed();
    rig.until_healthy(NODES).await?;
    Ok((active, began.elapsed()))
}
