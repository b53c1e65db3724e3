//! `dmq storage`: one storage node, until it is told to stop.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::global::GlobalArgs;
use super::{Outcome, process};
use crate::config::Services;
use crate::storage::{self, Data, RecordSettings};
use crate::types::{MAX_NODE_ID, StorageId};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Which storage service it is; without one, the directory's own or one that the controller gives
    #[arg(long, value_name = "N", value_parser = id)]
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

/// As services.json has it.
fn id(text: &str) -> Result<StorageId, String> {
    let id = text.parse().ok().filter(|id| *id <= MAX_NODE_ID).map(StorageId);
    id.ok_or_else(|| format!("it is a number from 0 to {MAX_NODE_ID}"))
}

pub async fn run(global: &GlobalArgs, args: Args) -> anyhow::Result<Outcome> {
    let settings = process::settings(global)?;
    process::log(&settings)?;
    let named = process::services(&settings)?;
    let data = match (args.data, args.data_root, args.id) {
        (Some(directory), _, _) => Data::Directory(directory),
        (None, Some(root), _) => Data::Root(root),
        (None, None, Some(id)) => Data::Directory(process::default_data("storage", id)),
        (None, None, None) => anyhow::bail!("say where the node keeps its data, with --data or --data-root"),
    };
    let rack = args.rack.or_else(|| {
        let services = named.services.borrow();
        args.id.and_then(|id| services.rack(id).map(str::to_owned))
    });
    let millis = Duration::from_millis;
    let core = storage::core::Settings {
        heartbeat_interval: millis(settings.heartbeat_interval_ms),
        drain_timeout: millis(settings.drain_timeout_ms),
        ..Default::default()
    };
    let options = storage::Options {
        data,
        id: args.id,
        rack: rack.map(Arc::from),
        settings: core,
        records: RecordSettings {
            catch_up_rate: NonZeroU64::new(settings.catch_up_bytes_per_second),
            page_cache: NonZeroU64::new(settings.page_cache_bytes),
            stray_retention: millis(settings.stray_retention_ms),
        },
        nats: settings.nats.clone(),
        connect_timeout: millis(settings.start_timeout_ms),
        subjects: subjects(named.services.clone()),
    };
    // Among its own tasks: on the main thread, each message would cost a switch of threads.
    tokio::spawn(storage::run(options)).await??;
    Ok(Outcome::Fine)
}

/// The node knows services.json only as subjects.
fn subjects(mut services: watch::Receiver<Arc<Services>>) -> watch::Receiver<Arc<dyn storage::Subjects>> {
    let present: Arc<dyn storage::Subjects> = services.borrow_and_update().clone();
    let (sender, subjects) = watch::channel(present);
    tokio::spawn(async move {
        while services.changed().await.is_ok() {
            let present: Arc<dyn storage::Subjects> = services.borrow_and_update().clone();
            if sender.send(present).is_err() {
                return;
            }
        }
        // Nothing changes any more; whoever listens goes on listening.
        sender.closed().await;
    });
    subjects
}
