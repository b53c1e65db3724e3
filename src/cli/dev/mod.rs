//! `dmq dev`: a whole cluster on this machine.

use super::Outcome;
use super::global::GlobalArgs;
use super::output::Output;

#[derive(clap::Args, Debug)]
pub struct Args {}

impl Args {
    pub fn lasts(&self) -> bool {
        true
    }
}

pub async fn run(_global: &GlobalArgs, _args: Args, _out: &mut Output) -> anyhow::Result<Outcome> {
    anyhow::bail!("not there yet")
}
