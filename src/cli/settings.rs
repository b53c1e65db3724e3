//! What a process of dmq is started with, out of flags, variables and files: settings, services.json, the way to NATS.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_nats::ConnectOptions;
use tokio::sync::watch;

use super::global::GlobalArgs;
use crate::config::settings::{LogFormat, LogSettings};
use crate::config::{ConnectPlan, NatsTarget, Services, Settings, Watcher, connect, connect_options, services_file};

/// Where services.json is looked for when nobody says where it is.
const SERVICES: &str = "services.json";

/// Settings that hold together, and the NATS that they come to.
pub struct Loaded {
    pub settings: Settings,
    pub target: NatsTarget,
}

impl Loaded {
    pub fn from(global: &GlobalArgs) -> anyhow::Result<Self> {
        let sources = global.sources();
        let settings = Settings::load(&sources)?;
        let target = NatsTarget::resolve(&settings.nats, &sources.variables)?;
        Ok(Self { settings, target })
    }

    /// The services.json that counts, if there is one.
    pub fn services_file(&self) -> Option<PathBuf> {
        let here = || Path::new(SERVICES).is_file().then(|| SERVICES.into());
        self.settings.services.clone().or_else(here)
    }

    /// What services.json says, or what holds without one.
    pub fn services(&self) -> anyhow::Result<Services> {
        match self.services_file() {
            Some(path) => Ok(services_file::load(&path)?),
            None => Ok(Services::default_with(&self.settings.prefix)?),
        }
    }
}

/// All that a controller or a storage node is started with.
pub struct Prepared {
    pub settings: Settings,
    /// In async-nats's form.
    pub nats: String,
    pub connect: ConnectOptions,
    pub system: Option<ConnectOptions>,
    /// The most bytes that NATS takes in one message.
    pub max_payload: usize,
    pub services: watch::Receiver<Arc<Services>>,
    /// Follows services.json for as long as it lives.
    pub watcher: Option<Watcher>,
}

/// Reads everything, begins to log, and sees that NATS is there and good enough, which takes until the deadline of a start.
pub async fn prepare(global: &GlobalArgs, name: &str) -> anyhow::Result<Prepared> {
    let loaded = Loaded::from(global)?;
    begin_logging(&loaded.settings.log);
    let (services, watcher) = match loaded.services_file() {
        Some(path) => {
            let watcher = Watcher::start(&path, services_file::POLL_INTERVAL)?;
            let services = watcher.services();
            let (controllers, storage) = {
                let now = services.borrow();
                (now.controller_ids().count(), now.storage_ids().count())
            };
            let path = path.canonicalize().unwrap_or(path);
            tracing::info!("read {}: {controllers} metadata services, {storage} storage services", path.display());
            (services, Some(watcher))
        }
        None => {
            let services = loaded.services()?;
            tracing::info!(
                "there is no {SERVICES} here: subjects begin with {} and follow from ids",
                services.prefix()
            );
            // The sender may go: these services never change.
            (watch::channel(Arc::new(services)).1, None)
        }
    };
    let Loaded { settings, target } = loaded;
    tracing::info!("NATS is {} (from {})", target.shown_servers(), target.servers_from);
    let plan =
        ConnectPlan { name: format!("{name} (starting)"), deadline: settings.start_timeout(), require_jetstream: true };
    let max_payload = connect(&target, &plan).await?.client.max_payload();
    let system = match target.system(&settings.nats)? {
        Some(system) => Some(connect_options(&system).await?),
        None => None,
    };
    Ok(Prepared {
        nats: addresses(&target),
        connect: connect_options(&target).await?,
        system,
        max_payload,
        services,
        watcher,
        settings,
    })
}

fn addresses(target: &NatsTarget) -> String {
    let servers = target.servers.iter().map(|server| server.clone().into_inner().to_string());
    servers.collect::<Vec<_>>().join(",")
}

fn begin_logging(log: &LogSettings) {
    let filter = tracing_subscriber::EnvFilter::new(&log.level);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // It fails where somebody logs already.
    let _ = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// The directory of a process that was given none, below the present one.
pub fn default_data(role: &str, id: impl std::fmt::Display) -> PathBuf {
    Path::new(".dmq").join(format!("{role}-{id}"))
}

pub fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

/// A number of bytes or things that fits the machine.
pub fn size(number: u64) -> anyhow::Result<usize> {
    usize::try_from(number).context("a setting is larger than this machine can count")
}
