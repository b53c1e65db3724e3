//! `dmq metadata …`.

mod log;
mod restore;
mod show;

use clap::Subcommand;

use super::Outcome;
use super::global::GlobalArgs;
use super::output::Output;

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Print the history: every change with its version, time and cause
    Log(log::Args),
    /// Print the metadata as JSON
    Show(show::Args),
    /// Say what can be brought back of a lost history, and with --yes do it
    Restore(restore::Args),
}

impl Command {
    /// Whether it goes on until somebody stops it.
    pub fn lasts(&self) -> bool {
        match self {
            Self::Log(args) => args.follow,
            Self::Show(_) | Self::Restore(_) => false,
        }
    }

    pub async fn run(self, global: &GlobalArgs, out: &mut Output) -> anyhow::Result<Outcome> {
        match self {
            Self::Log(args) => log::run(global, &args, out).await,
            Self::Show(args) => show::run(global, args, out).await,
            Self::Restore(args) => restore::run(global, args, out).await,
        }
    }
}
