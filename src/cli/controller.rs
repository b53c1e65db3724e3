//! `dmq controller`: one controller, until it is told to stop.

use std::path::PathBuf;
use std::time::Duration;

use super::global::GlobalArgs;
use super::{Outcome, process};
use crate::controller;
use crate::types::ControllerId;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Which metadata service of services.json it is
    #[arg(long, value_name = "N")]
    id: ControllerId,
    /// Where it keeps its own copy of the metadata [default: .dmq/controller-N]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

pub async fn run(global: &GlobalArgs, args: Args) -> anyhow::Result<Outcome> {
    let settings = process::settings(global)?;
    process::log(&settings)?;
    let named = process::services(&settings)?;
    let millis = Duration::from_millis;
    let core = controller::core::Settings {
        heartbeat_interval: millis(settings.heartbeat_interval_ms),
        session_timeout: millis(settings.session_timeout_ms),
        lease: millis(settings.lease_ms),
        admin_wait: millis(settings.admin_wait_ms),
        push_retry_min: millis(settings.push_retry_min_ms),
        push_retry_max: millis(settings.push_retry_max_ms),
        push_max_bytes: settings.push_max_bytes,
        history_probe: millis(settings.history_probe_ms),
        leader_balance: Some(settings.leader_balance_interval_ms).filter(|every| *every > 0).map(millis),
        snapshot_every_entries: settings.snapshot_every_entries,
        snapshot_every_bytes: settings.snapshot_every_bytes,
        // What the server takes is all that limits it.
        message_limit: usize::MAX,
    };
    let options = controller::Options {
        id: args.id,
        data: args.data.unwrap_or_else(|| process::default_data("controller", args.id)),
        settings: core,
        nats: settings.nats.clone(),
        connect_timeout: millis(settings.start_timeout_ms),
        replicas: settings.stream_replicas,
        services: named.services.clone(),
    };
    // Among its own tasks: on the main thread, each message would cost a switch of threads.
    tokio::spawn(controller::run(options)).await??;
    Ok(Outcome::Fine)
}
