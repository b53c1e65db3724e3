//! `dmq health`: whether the process of a data directory does its work, for a container's health check.
//!
//! It asks for little: one heartbeat of a controller and the head of the history, or one answer about a storage node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::global::GlobalArgs;
use super::output::Output;
use super::{Outcome, process, session};
use crate::bus::log::{History, HistoryConfig};
use crate::disk::{Identity, Role, held_by_this_host, identity_of};
use crate::metadata::NodeState;
use crate::types::{ControllerId, StorageId, Version};
use crate::wire::admin::{NodeNamed, Terms};
use crate::wire::{ControllerHeartbeat, ControllerRole, WireMessage};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The directory of a controller or a storage node
    #[arg(long, value_name = "DIR", required_unless_present = "data_root", conflicts_with = "data_root")]
    data: Option<PathBuf>,
    /// A directory of nodes' directories: those that processes of this host use are looked at, and one has to be well
    #[arg(long, value_name = "DIR")]
    data_root: Option<PathBuf>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Health {
    healthy: bool,
    /// What it does, or what is wrong.
    words: String,
}

pub async fn run(global: &GlobalArgs, args: Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let directories = match (args.data, args.data_root) {
        (Some(directory), _) => vec![directory],
        (None, Some(root)) => held_by_this_host(&root)?,
        (None, None) => Vec::new(),
    };
    let mut health = Health { healthy: false, words: "no process of this host has taken a directory here".into() };
    for directory in directories {
        health = match look(global, &directory).await {
            Ok(words) => Health { healthy: true, words },
            Err(error) => Health { healthy: false, words: format!("{error:#}") },
        };
        if health.healthy {
            break;
        }
    }
    out.answer(&health, |health, _| health.words.clone())?;
    Ok(if health.healthy { Outcome::Fine } else { Outcome::Unsound })
}

/// What the process does, or an error with what is wrong.
async fn look(global: &GlobalArgs, directory: &Path) -> anyhow::Result<String> {
    let Some(identity) = identity_of(directory)? else {
        anyhow::bail!("{} is no directory of a controller or storage node yet", directory.display());
    };
    let Some(id) = identity.id else {
        anyhow::bail!("the {} in {} has not joined a cluster yet", identity.role, directory.display());
    };
    match identity.role {
        Role::Controller => controller(global, &identity, ControllerId(id)).await,
        Role::Storage => storage(global, &identity, StorageId(id)).await,
    }
}

/// It is heard, and comes to have what the history's stream has now.
async fn controller(global: &GlobalArgs, identity: &Identity, id: ControllerId) -> anyhow::Result<String> {
    let deadline = Instant::now() + global.deadline();
    let named = process::services_now(&process::settings(global)?)?;
    let session = session::open(global).await?;
    let mut heartbeats = session.client.subscribe(named.controller(id).heartbeat).await?;
    let log = History::new(
        session.client.clone(),
        HistoryConfig { subject: named.log_subject(), timeout: Duration::from_secs(2), ..HistoryConfig::default() },
    );
    let head = log.head().await?.map_or(Version::ZERO, |head| Version(head.last));
    let mut last = None;
    while let Ok(Some(message)) = timeout_at(deadline, heartbeats.next()).await {
        let Ok(heard) = ControllerHeartbeat::decode(&message.payload) else { continue };
        if heard.directory != identity.directory_id {
            continue;
        }
        let (version, state) = (heard.position.version, heard.role);
        match state {
            ControllerRole::Active | ControllerRole::Standby if version >= head => {
                return Ok(format!("controller {id} is {}, with version {version}", state.as_str()));
            }
            ControllerRole::Halted => {
                anyhow::bail!("controller {id} is halted: {}", heard.halted.as_deref().unwrap_or("no reason is given"))
            }
            ControllerRole::Active | ControllerRole::Standby | ControllerRole::Starting => last = Some(heard),
        }
    }
    match last {
        Some(heard) => anyhow::bail!(
            "controller {id} is {}, and does not come to version {head}: it has {}",
            heard.role.as_str(),
            heard.position.version
        ),
        None => anyhow::bail!("controller {id} is not heard on NATS: it does not run, or is not connected"),
    }
}

/// The active controller counts it as active.
async fn storage(global: &GlobalArgs, identity: &Identity, id: StorageId) -> anyhow::Result<String> {
    let session = session::open(global).await?;
    let node = session.admin.describe_node(NodeNamed { id, terms: Terms::default() }).await?;
    if node.directory != Some(identity.directory_id) {
        anyhow::bail!("storage node {id} is another directory than this one");
    }
    let heard = node.heard_ms_ago.map_or_else(|| "not heard yet".into(), |ms| format!("heard {ms} ms ago"));
    match node.state {
        NodeState::Active if node.directory_errors.is_empty() => Ok(format!("storage node {id} is active, {heard}")),
        NodeState::Active => anyhow::bail!("storage node {id} has errors: {}", node.directory_errors.join("; ")),
        NodeState::Fenced | NodeState::Draining | NodeState::Removed => {
            anyhow::bail!("storage node {id} is {}, {heard}", node.state.as_str())
        }
    }
}
