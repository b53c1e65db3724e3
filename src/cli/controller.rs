//! `dmq controller`: one controller, until it is told to stop.

use std::path::PathBuf;

use super::Outcome;
use super::global::GlobalArgs;
use super::settings::{self, Prepared, default_data, ms, size};
use crate::controller::{self, Options};
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

/// What a message's headers and envelope may take of NATS's largest message.
const ROOM: usize = 4_096;

pub async fn run(global: &GlobalArgs, args: Args) -> anyhow::Result<Outcome> {
    let Prepared { settings, nats, connect, system, max_payload, services, watcher } =
        settings::prepare(global, &format!("dmq controller {}", args.id)).await?;
    let core = controller::core::Settings {
        heartbeat_interval: settings.heartbeat_interval(),
        session_timeout: settings.session_timeout(),
        lease: settings.lease(),
        admin_wait: ms(settings.admin_wait_ms),
        push_retry_min: ms(settings.push.retry_min_ms),
        push_retry_max: ms(settings.push.retry_max_ms),
        push_max_bytes: size(settings.push.max_bytes)?.min(max_payload.saturating_sub(ROOM)),
        history_probe: ms(settings.history_probe_ms),
        snapshot_every_entries: settings.snapshot.every_entries,
        snapshot_every_bytes: settings.snapshot.every_bytes,
        message_limit: max_payload.saturating_sub(ROOM),
    };
    let data = args.data.unwrap_or_else(|| default_data("controller", args.id));
    let options = Options {
        id: args.id,
        data,
        settings: core,
        nats,
        connect,
        system,
        connect_timeout: settings.start_timeout(),
        replicas: size(settings.stream_replicas)?,
        services,
    };
    controller::run(options).await?;
    drop(watcher);
    Ok(Outcome::Fine)
}
