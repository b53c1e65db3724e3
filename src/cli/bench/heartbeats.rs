//! `dmq bench heartbeats`: how many heartbeats one controller answers, and what those of 10,000 nodes cost it.

use std::time::{Duration, Instant};

use super::super::dev::process::Role;
use super::figures::{Figure, Report, Target};
use super::rig::{PATIENCE, Plan, Rig};
use super::senders::{Load, Senders};
use super::{Place, proc};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// How many nodes there are
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    nodes: u32,
    /// How long each measurement takes; there are three of each kind
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
}

/// Each of them one core's worth of work at most.
const CONNECTIONS: u32 = 4;
/// Unanswered at a time on each connection.
const WINDOW: u64 = 1_000;
const ROUNDS: usize = 3;

pub async fn run(place: &Place, args: &Args) -> anyhow::Result<Report> {
    // These nodes only heartbeat, and hear no push: few and small ones are enough while they register.
    // Nobody is to be fenced while others are measured.
    let settings = vec![
        ("DMQ_PUSH_RETRY_MIN_MS", "5000".into()),
        ("DMQ_PUSH_MAX_BYTES", "4096".into()),
        ("DMQ_SESSION_TIMEOUT_MS", "20000".into()),
    ];
    let mut rig = Rig::start(place, &Plan { controllers: 1, storage: 0, settings, ..Plan::default() }).await?;
    rig.until("an active controller", PATIENCE, |status| status.controller.is_some()).await?;
    let echo = rig.echo().await?;
    let mut senders = Senders::register(&rig, args.nodes, CONNECTIONS).await?;
    let time = Duration::from_secs(args.seconds);
    let pid = rig.pid((Role::Controller, 0))?;
    let (mut rates, mut bare_rates, mut cores, mut bare_cores) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let at_one_hertz = Load::PerSecond(args.nodes);
        senders.settle().await?;
        cores.push(cost(&mut senders, at_one_hertz, time, pid, None).await?.1);
        bare_cores.push(cost(&mut senders, at_one_hertz, time, echo.pid, Some(&echo.subject)).await?.1);
        senders.settle().await?;
        rates.push(cost(&mut senders, Load::Window(WINDOW), time, pid, None).await?.0);
        bare_rates.push(cost(&mut senders, Load::Window(WINDOW), time, echo.pid, Some(&echo.subject)).await?.0);
    }
    let name = |what: &str| format!("{what} at {} nodes' heartbeats per second, the controller alone", args.nodes);
    let figures = vec![
        Figure::new("heartbeats answered by one controller", median(&mut rates), "/s")
            .floor(median(&mut bare_rates))
            .target(Target::Least(100_000.0)),
        Figure::new(name("processor"), median(&mut cores), "cores")
            .floor(median(&mut bare_cores))
            .target(Target::Most(0.1)),
        Figure::new(name("memory"), proc::resident_mb(pid)?, "MB"),
    ];
    Ok(rig.report("heartbeats", figures))
}

/// Answers per second, and the cores that the answering process used.
async fn cost(
    senders: &mut Senders,
    load: Load,
    time: Duration,
    pid: u32,
    subject: Option<&str>,
) -> anyhow::Result<(f64, f64)> {
    let (began, before) = (Instant::now(), proc::cpu(pid)?);
    let rate = senders.run(load, time, subject).await?;
    let used = proc::cpu(pid)?.saturating_sub(before);
    Ok((rate, used.as_secs_f64() / began.elapsed().as_secs_f64()))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
