//! `dmq dev`: a whole cluster on this machine, each part a process of its own that can be broken on purpose.
//!
//! One `dmq dev` runs per directory. It alone starts, signals and reaps its children; the commands for another terminal
//! ask it to, so that no signal can ever reach a stranger that was given a dead child's pid.

mod cluster;
mod control;
pub(super) mod folder;
pub(super) mod nats;
pub(super) mod printer;
pub(super) mod process;

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;

use super::Outcome;
use super::global::GlobalArgs;
use super::output::Output;
use process::Role;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Where everything is kept: data, logs, dev.json
    #[arg(long, global = true, value_name = "DIR", default_value = ".dev")]
    data: PathBuf,
}

#[derive(clap::Args, Debug)]
struct ClusterArgs {
    /// How many controllers [default: 3, or all that --services names]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    controllers: Option<u32>,
    /// How many storage nodes [default: 3, or all that --services names]
    #[arg(long, value_name = "N")]
    storage: Option<u32>,
    /// The port of the NATS server on 127.0.0.1; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 4222)]
    nats_port: u16,
    /// The nats-server to run [default: the one on PATH]
    #[arg(long, value_name = "PATH")]
    nats_server: Option<PathBuf>,
    /// Start again what dies
    #[arg(long)]
    restart: bool,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Start a process that is not running
    Start(Target),
    /// Kill a process (SIGKILL)
    Kill(Target),
    /// Freeze a process (SIGSTOP)
    Pause(Target),
    /// Let a frozen process go on (SIGCONT)
    Resume(Target),
    /// Become a child of `dmq dev` (internal)
    #[command(hide = true)]
    Child(ChildArgs),
}

#[derive(clap::Args, Clone, Copy, Debug)]
struct Target {
    role: Role,
    /// The process's id, as dev.json has it; the nats-server's is 0
    #[arg(required_if_eq_any([("role", "controller"), ("role", "storage")]))]
    id: Option<u32>,
}

#[derive(clap::Args, Debug)]
struct ChildArgs {
    parent: i32,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<std::ffi::OsString>,
}

impl Args {
    /// Whether it goes on until somebody stops it.
    pub fn lasts(&self) -> bool {
        self.action.is_none()
    }
}

pub async fn run(global: &GlobalArgs, args: Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let Args { action, cluster, data } = args;
    let (verb, target) = match action {
        None => {
            std::fs::create_dir_all(&data).with_context(|| format!("create {}", data.display()))?;
            let data = data.canonicalize().with_context(|| format!("find {}", data.display()))?;
            return cluster::run(global, cluster, data).await;
        }
        Some(Action::Child(args)) => return Err(process::become_child(args.parent, &args.command)),
        Some(Action::Start(target)) => (control::Verb::Start, target),
        Some(Action::Kill(target)) => (control::Verb::Kill, target),
        Some(Action::Pause(target)) => (control::Verb::Pause, target),
        Some(Action::Resume(target)) => (control::Verb::Resume, target),
    };
    let request = control::Request { verb, role: target.role, id: target.id.unwrap_or(0) };
    let done = control::ask(&data, request).await?;
    out.answer(&done, |done, _| format!("{} {} {} (pid {})\n", verb.done(), done.role, done.id, done.pid))?;
    Ok(Outcome::Fine)
}
