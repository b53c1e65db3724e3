//! `dmq cluster …`.

mod status;

use clap::Subcommand;

use super::Outcome;
use super::global::GlobalArgs;
use super::output::Output;

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show controllers, nodes, versions and what is wrong; exit status 1 unless all is well
    Status(status::Args),
}

impl Command {
    pub async fn run(self, global: &GlobalArgs, out: &mut Output) -> anyhow::Result<Outcome> {
        match self {
            Self::Status(args) => status::run(global, args, out).await,
        }
    }
}
