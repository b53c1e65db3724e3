//! `dmq controller`: one controller, until it is told to stop.

use std::path::PathBuf;

use super::Outcome;
use super::global::GlobalArgs;
use crate::types::ControllerId;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Which metadata service of services.json it is
    #[arg(long, value_name = "N")]
    id: ControllerId,
    /// Where it keeps its own copy of the metadata
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
}

pub async fn run(_global: &GlobalArgs, args: Args) -> anyhow::Result<Outcome> {
    // The controller's shell is called here.
    anyhow::bail!("controller {} in {} cannot run yet: this build has no controller", args.id, args.data.display())
}
