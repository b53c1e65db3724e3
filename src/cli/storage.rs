//! `dmq storage`: one storage node, until it is told to stop.

use std::path::PathBuf;

use super::Outcome;
use super::global::GlobalArgs;
use crate::types::StorageId;

#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("directory").required(true).args(["data", "data_root"]))]
pub struct Args {
    /// Which storage service it is; without one, the directory's own or one that the controller gives
    #[arg(long, value_name = "N")]
    id: Option<StorageId>,
    /// The node's directory
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A directory of nodes' directories, of which the first one that is free is taken
    #[arg(long, value_name = "DIR")]
    data_root: Option<PathBuf>,
    /// The rack that the node stands in: replicas are spread over racks
    #[arg(long, value_name = "NAME")]
    rack: Option<String>,
}

pub async fn run(_global: &GlobalArgs, args: Args) -> anyhow::Result<Outcome> {
    // The storage node's shell is called here.
    anyhow::bail!("a storage node cannot run yet: this build has none ({args:?})")
}
