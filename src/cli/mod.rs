//! The command line: one file per command. Here is what they share: the flags, the deadline, and how a command ends.
//!
//! It must never decide anything about the cluster: it asks, and shows what it was told.

mod bench;
mod cluster;
mod completions;
mod consume;
mod controller;
mod dev;
mod global;
mod health;
mod hint;
mod log;
mod metadata;
mod node;
mod output;
mod process;
mod produce;
mod services;
mod session;
mod storage;
mod table;
mod terms;
mod topic;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use global::GlobalArgs;
use output::Output;

/// When a command that should have ended by itself is ended.
const OVERALL: Duration = Duration::from_millis(9_500);

/// A Kafka-style partitioned, replicated log whose processes meet on NATS and open no ports to each other.
#[derive(Parser, Debug)]
#[command(name = "dmq", version, about, propagate_version = false, subcommand_required = true, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a controller (a metadata service) until it is told to stop
    Controller(controller::Args),
    /// Run a storage node (a storage service) until it is told to stop
    Storage(storage::Args),
    /// Run a whole cluster on this machine: nats-server, controllers, storage nodes
    Dev(dev::Args),
    /// Create, list, describe, alter and delete topics
    #[command(subcommand)]
    Topic(topic::Command),
    /// Write records to a topic, one a line
    Produce(produce::Args),
    /// Read a topic's records
    Consume(consume::Args),
    /// List, describe, drain, replace and remove storage nodes
    #[command(subcommand)]
    Node(node::Command),
    /// Check and show services.json
    #[command(subcommand)]
    Services(services::Command),
    /// Say how the cluster is
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Say whether the process of a data directory does its work, for a container's health check
    Health(health::Args),
    /// Look at the metadata and its history, or bring them back
    #[command(subcommand)]
    Metadata(metadata::Command),
    /// Measure what dmq costs on this machine, on processes of its own
    Bench(bench::Args),
    /// Look at the files of a partition's log
    #[command(subcommand)]
    Log(log::Command),
    /// Print completions for a shell
    Completions(completions::Args),
}

/// How a command ended that did what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Fine,
    /// It found something wrong, and has said what.
    Unsound,
}

impl Command {
    /// Whether it goes on until somebody stops it.
    fn lasts(&self) -> bool {
        match self {
            // A large file takes its time.
            Self::Controller(_) | Self::Storage(_) | Self::Bench(_) | Self::Log(_) => true,
            // They end with what they read.
            Self::Produce(_) | Self::Consume(_) => true,
            Self::Dev(args) => args.lasts(),
            Self::Metadata(command) => command.lasts(),
            Self::Topic(_)
            | Self::Node(_)
            | Self::Services(_)
            | Self::Cluster(_)
            | Self::Health(_)
            | Self::Completions(_) => false,
        }
    }

    async fn run(self, global: &GlobalArgs, out: &mut Output) -> anyhow::Result<Outcome> {
        match self {
            Self::Controller(args) => controller::run(global, args).await,
            Self::Storage(args) => storage::run(global, args).await,
            Self::Dev(args) => dev::run(global, args, out).await,
            Self::Topic(command) => command.run(global, out).await,
            Self::Produce(args) => produce::run(global, args, out).await,
            Self::Consume(args) => consume::run(global, args, out).await,
            Self::Node(command) => command.run(global, out).await,
            Self::Services(command) => command.run(global, out),
            Self::Cluster(command) => command.run(global, out).await,
            Self::Health(args) => health::run(global, args, out).await,
            Self::Metadata(command) => command.run(global, out).await,
            Self::Bench(args) => bench::run(args, out).await,
            Self::Log(command) => command.run(out),
            Self::Completions(args) => completions::run(&args, out),
        }
    }
}

/// Reads the command line, runs the command and says how the process ends: 0 done, 1 failed or unhealthy, 2 misused.
pub fn main() -> ExitCode {
    let matches = global::with_config_flag(Cli::command()).get_matches();
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    cli.global.config = global::config_flag(&matches);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            report(&anyhow::Error::new(error).context("start the runtime"));
            return ExitCode::FAILURE;
        }
    };
    let mut out = Output::new(cli.global.output);
    let ended = runtime.block_on(async {
        let lasts = cli.command.lasts();
        let running = cli.command.run(&cli.global, &mut out);
        if lasts {
            return running.await;
        }
        let overdue = |_| anyhow::anyhow!("the command did not end within {OVERALL:?} and was given up");
        tokio::time::timeout(OVERALL, running).await.map_err(overdue)?
    });
    // A look-up of a name may hang in a thread that nothing can stop.
    runtime.shutdown_background();
    match ended {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Unsound) => ExitCode::FAILURE,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

/// Says what went wrong and what to do about it.
fn report(error: &anyhow::Error) {
    let words = format!("{error:#}");
    output::say(&format!("error: {words}"));
    // A controller's own words may say it already.
    if let Some(hint) = hint::of(error).filter(|hint| !words.contains(hint)) {
        output::say(&format!("  {hint}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_flag_is_consistent() {
        global::with_config_flag(Cli::command()).debug_assert();
    }

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        let matches = global::with_config_flag(Cli::command()).try_get_matches_from(line.split(' '))?;
        let mut cli = Cli::from_arg_matches(&matches)?;
        cli.global.config = global::config_flag(&matches);
        Ok(cli)
    }

    #[test]
    fn global_flags_may_stand_anywhere() {
        for line in [
            "dmq --output json --context c topic list",
            "dmq topic --output json list --context c",
            "dmq topic list --output json --context c",
        ] {
            let cli = parse(line).unwrap();
            assert_eq!(cli.global.output, output::Format::Json, "{line}");
            assert_eq!(cli.global.context.as_deref(), Some("c"), "{line}");
        }
    }

    #[test]
    fn the_settings_file_may_stand_anywhere_but_where_a_topic_has_its_own_config() {
        for line in ["dmq --config f controller --id 0 --data d", "dmq controller --id 0 --data d --config f"] {
            assert_eq!(parse(line).unwrap().global.config.as_deref(), Some("f".as_ref()), "{line}");
        }
        let cli = parse("dmq --config f topic create t --config retention.ms=1 --config flush=always").unwrap();
        assert_eq!(cli.global.config.as_deref(), Some("f".as_ref()));
        let Command::Topic(topic::Command::Create(args)) = cli.command else { panic!("another command") };
        assert_eq!(args.config, [("retention.ms".into(), "1".into()), ("flush".into(), "always".into())]);
    }

    #[test]
    fn a_storage_node_has_one_directory_or_a_root_of_several() {
        assert!(parse("dmq storage --data d").is_ok());
        assert!(parse("dmq storage --data-root d --id 3 --rack r").is_ok());
        assert!(parse("dmq storage --id 3").is_ok());
        for line in ["dmq storage", "dmq storage --data d --data-root r"] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
