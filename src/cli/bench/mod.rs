//! `dmq bench …`: what dmq costs, measured on the real thing: a nats-server, controllers and storage nodes,
//! each a process of its own on this machine, started for the run and ended with it.
//!
//! One file per bench. Each figure stands next to its target and, where there is one, to its floor: what the same machine
//! needs for the bare operations below it, measured in the same run and in turn with it.

mod appender;
mod bare;
mod consume;
mod failover;
mod figures;
mod floor;
mod heartbeats;
mod herd;
mod idle;
mod metadata;
mod proc;
mod produce;
mod records;
mod rig;
mod scale;
mod senders;
mod stall;

use std::path::PathBuf;

use clap::Subcommand;
use tokio::signal::unix::{SignalKind, signal};

use super::Outcome;
use super::output::Output;
use figures::Report;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    bench: Bench,
    #[command(flatten)]
    place: Place,
}

/// Where and with what the cluster under test runs.
#[derive(clap::Args, Debug)]
pub struct Place {
    /// Where its data goes, in a folder that is removed at the end: chooses the disk [default: the temporary directory]
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The nats-server to run [default: the one on PATH]
    #[arg(long, global = true, value_name = "PATH")]
    nats_server: Option<PathBuf>,
    /// Leave the data and the logs, and say where they are
    #[arg(long, global = true)]
    keep: bool,
}

#[derive(Subcommand, Debug)]
enum Bench {
    /// How long a change takes from the client to the last storage node's disk
    Metadata(metadata::Args),
    /// How long a crash of a leader or of the active controller keeps its work undone
    Failover(failover::Args),
    /// How many heartbeats one controller answers, and what they cost it
    Heartbeats(heartbeats::Args),
    /// What a cluster costs in which nothing happens
    Idle(idle::Args),
    /// What a million partitions and a thousand storage nodes cost
    Scale(scale::Args),
    /// How many records a cluster takes in, and how long one takes to its acknowledgement
    Produce(produce::Args),
    /// How fast records are read back
    Consume(consume::Args),
    /// How many records three replicas of each partition take in
    Replicate(produce::Replicate),
    /// How long records wait whose partition's leader is killed
    Stall(stall::Args),
    /// Be many storage nodes (internal)
    #[command(hide = true)]
    Herd(herd::Args),
    /// Answer, and do nothing else (internal)
    #[command(hide = true)]
    Bare(bare::Args),
    /// Append or serve bytes, and do nothing else (internal)
    #[command(hide = true)]
    Appender(appender::Args),
}

/// Runs the bench. Unsound where a target was missed.
pub async fn run(args: Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let Args { bench, place } = args;
    let bench = match bench {
        Bench::Bare(args) => return bare::run(&args).await,
        Bench::Herd(args) => return herd::run(&args).await,
        Bench::Appender(args) => return appender::run(args).await,
        bench => bench,
    };
    let [mut interrupt, mut terminate, mut hangup] =
        [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
    let running = async {
        match bench {
            Bench::Metadata(args) => metadata::run(&place, &args).await,
            Bench::Failover(args) => failover::run(&place, &args).await,
            Bench::Heartbeats(args) => heartbeats::run(&place, &args).await,
            Bench::Idle(args) => idle::run(&place, &args).await,
            Bench::Scale(args) => scale::run(&place, &args).await,
            Bench::Produce(args) => produce::run(&place, &args).await,
            Bench::Consume(args) => consume::run(&place, &args).await,
            Bench::Replicate(args) => produce::replicate(&place, &args).await,
            Bench::Stall(args) => stall::run(&place, &args).await,
            Bench::Bare(_) | Bench::Herd(_) | Bench::Appender(_) => anyhow::bail!("it measures nothing"),
        }
    };
    // Whoever interrupts drops the bench, and with it the processes.
    let report: Report = tokio::select! {
        report = running => report?,
        _ = interrupt.recv() => anyhow::bail!("interrupted"),
        _ = terminate.recv() => anyhow::bail!("told to end"),
        _ = hangup.recv() => anyhow::bail!("the terminal is gone"),
    };
    out.answer(&report, Report::table)?;
    Ok(if report.all_met() { Outcome::Fine } else { Outcome::Unsound })
}
