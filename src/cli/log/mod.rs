//! `dmq log …`: a partition's files, as they lie on a disk. Nothing here needs NATS.

mod dump;
mod show;

use clap::Subcommand;

use super::Outcome;
use super::output::Output;

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Print what is in a partition's files, and what is wrong with them; exit status 1 if anything is
    Dump(dump::Args),
}

impl Command {
    pub fn run(self, out: &mut Output) -> anyhow::Result<Outcome> {
        match self {
            Self::Dump(args) => dump::run(&args, out),
        }
    }
}
