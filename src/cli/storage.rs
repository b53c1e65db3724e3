//! `dmq storage`: one storage node, until it is told to stop.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::Outcome;
use super::global::GlobalArgs;
use super::settings::{self, Prepared, default_data, ms};
use crate::config::Services;
use crate::storage::{self, Data, Options, Subjects};
use crate::types::StorageId;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Which storage service it is; without one, the directory's own or one that the controller gives
    #[arg(long, value_name = "N")]
    id: Option<StorageId>,
    /// The node's directory [default with --id: .dmq/storage-N]
    #[arg(long, value_name = "DIR", required_unless_present_any = ["data_root", "id"], conflicts_with = "data_root")]
    data: Option<PathBuf>,
    /// A directory of nodes' directories, of which the first one that is free is taken
    #[arg(long, value_name = "DIR")]
    data_root: Option<PathBuf>,
    /// The rack that the node stands in: replicas are spread over racks
    #[arg(long, value_name = "NAME")]
    rack: Option<String>,
}

pub async fn run(global: &GlobalArgs, args: Args) -> anyhow::Result<Outcome> {
    let data = match (args.data, args.data_root, args.id) {
        (Some(directory), _, _) => Data::Directory(directory),
        (None, Some(root), _) => Data::Root(root),
        (None, None, Some(id)) => Data::Directory(default_data("storage", id)),
        (None, None, None) => anyhow::bail!("give --data DIR"),
    };
    let name = args.id.map_or_else(|| "dmq storage".into(), |id| format!("dmq storage {id}"));
    let Prepared { settings, nats, connect, services, watcher, .. } = settings::prepare(global, &name).await?;
    let listed = |id| services.borrow().rack(id).map(str::to_owned);
    let rack = args.rack.or_else(|| args.id.and_then(listed)).map(Arc::from);
    let core = storage::core::Settings {
        heartbeat_interval: settings.heartbeat_interval(),
        drain_timeout: ms(settings.drain_timeout_ms),
        jitter_seed: rand::random(),
        ..Default::default()
    };
    let options = Options {
        data,
        id: args.id,
        rack,
        settings: core,
        nats,
        connect,
        connect_timeout: settings.start_timeout(),
        subjects: subjects(services),
    };
    storage::run(options).await?;
    drop(watcher);
    Ok(Outcome::Fine)
}

/// The same, as the storage node wants it.
fn subjects(mut services: watch::Receiver<Arc<Services>>) -> watch::Receiver<Arc<dyn Subjects>> {
    let first: Arc<dyn Subjects> = services.borrow_and_update().clone();
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        // Ends with whoever follows the file, or with whoever wants to know.
        while services.changed().await.is_ok() {
            let next: Arc<dyn Subjects> = services.borrow_and_update().clone();
            if sender.send(next).is_err() {
                return;
            }
        }
    });
    receiver
}
