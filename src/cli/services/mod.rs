//! `dmq services …`.

use clap::Subcommand;

use super::Outcome;
use super::global::GlobalArgs;
use super::output::Output;

#[derive(Subcommand, Debug)]
pub enum Command {}

impl Command {
    pub fn run(self, _global: &GlobalArgs, _out: &mut Output) -> anyhow::Result<Outcome> {
        match self {}
    }
}
