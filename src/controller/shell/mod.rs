//! The controller's shell: it carries out what the core decides, and tells it what happens. It decides nothing itself.
//!
//! One task owns the core and turns inputs into effects (`driver`, `effects`). Whatever waits for NATS or the disk runs
//! beside it and reports back over bounded channels: the lease's worker, the admin service, the disk's thread, and one task
//! for each question to the stream. It is the only part of a controller with a clock, a disk and a connection.

mod admin;
mod disk;
mod driver;
mod effects;
mod error;
mod fetch;
mod lease;
mod link;
mod listen;
mod pipe;
pub(crate) mod recover;
pub(crate) mod serve;
mod snapshots;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::core::{Controller, Identity, Input, Now, ServicesView, Settings};
use crate::bus::BusError;
use crate::bus::lease::{Lease, LeaseConfig};
use crate::bus::log::{History as Log, HistoryConfig};
use crate::bus::snapshots::{Snapshots, SnapshotsConfig};
use crate::config::{self, NatsSettings, Services};
use crate::disk::{DataDirectory, MetadataStore, Role};
use crate::types::{ClusterId, ControllerId, IncarnationId, Monotonic, WallTime};
use driver::{Driver, Report};
pub use error::ControllerError;

/// What a controller is started with.
pub struct Options {
    pub id: ControllerId,
    pub data: PathBuf,
    pub settings: Settings,
    pub nats: NatsSettings,
    pub connect_timeout: Duration,
    /// Copies of the history, the lease and the snapshots in NATS; 0: three where there are three servers, else one.
    pub replicas: usize,
    /// What services.json says, now and after each change.
    pub services: watch::Receiver<Arc<Services>>,
}

/// This process's clocks: the monotonic one begins when it is made.
#[derive(Clone, Copy, Debug)]
struct Clock {
    base: Instant,
}

impl Clock {
    fn start() -> Self {
        Self { base: Instant::now() }
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic(u64::try_from(self.base.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let wall = WallTime(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX));
        Now { monotonic: self.monotonic(), wall }
    }

    fn instant(&self, at: Monotonic) -> Instant {
        self.base + Duration::from_micros(at.0)
    }
}

/// Runs until SIGTERM or SIGINT, or until it cannot go on.
///
/// # Errors
/// [`ControllerError`], with what to do where a person can do something.
pub async fn run(options: Options) -> Result<(), ControllerError> {
    let (sender, shutdown) = mpsc::channel(1);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listening = tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            if sender.send(()).await.is_err() {
                return;
            }
        }
    });
    let result = run_until(options, shutdown).await;
    listening.abort();
    result
}

/// As [`run`], told to end by a message. Dropped, it ends like a crash: nothing is given back.
///
/// # Errors
/// As [`run`].
pub async fn run_until(options: Options, shutdown: mpsc::Receiver<()>) -> Result<(), ControllerError> {
    let clock = Clock::start();
    let Options { id, data, mut settings, nats, connect_timeout, replicas, services } = options;

    let directory = DataDirectory::open(&data, Role::Controller)?;
    let bound = directory.identity().id.map(ControllerId);
    if let Some(bound) = bound.filter(|bound| *bound != id) {
        return Err(ControllerError::OtherId { bound, asked: id });
    }
    let belongs_to = directory.identity().cluster_id;
    let (store, recovered) = MetadataStore::open(&directory.metadata_path())?;
    if recovered.torn_bytes_cut > 0 {
        tracing::info!(bytes = recovered.torn_bytes_cut, "a crash had cut an append short; it was never acknowledged");
    }
    let (history, last) = recover::recover(recovered)?;
    tracing::info!(
        controller = %id, data = %data.display(), directory = %directory.directory_id(), version = %history.position().version,
        cluster = belongs_to.map_or_else(|| "none yet".to_owned(), |cluster| cluster.to_string()),
        "the metadata on this controller's disk"
    );
    if let (Some(bound), Some(image)) = (belongs_to, history.image())
        && bound != image.cluster
    {
        return Err(ControllerError::OtherCluster { bound, found: image.cluster });
    }
    let me = Identity {
        controller: id,
        directory: directory.directory_id(),
        incarnation: IncarnationId(Uuid::new_v4()),
        founding: ClusterId(Uuid::new_v4()),
    };

    let name = format!("dmq-controller-{id}");
    let connection = config::connect(&nats, &name, connect_timeout, true).await?;
    let client = connection.client.clone();
    // A message has an envelope and headers around what the core puts in.
    let room = client.max_payload().saturating_sub(8 * 1024).max(4 * 1024);
    settings.message_limit = settings.message_limit.min(room);
    settings.push_max_bytes = settings.push_max_bytes.min(room);
    let advisories = link::advisories(&nats, id, connect_timeout).await?;

    let replicas = if replicas == 0 { link::replicas(&client) } else { replicas };
    let named = services.borrow().clone();
    let jetstream = JetStream {
        log: Log::new(
            client.clone(),
            HistoryConfig { subject: named.log_subject(), replicas, timeout: QUESTION, ..HistoryConfig::default() },
        ),
        snapshots: Snapshots::new(client.clone(), SnapshotsConfig { replicas, ..SnapshotsConfig::default() }),
        lease: Lease::new(
            client.clone(),
            LeaseConfig {
                lease: settings.lease,
                replicas,
                timeout: (settings.lease / 2).min(QUESTION),
                ..LeaseConfig::default()
            },
        ),
    };
    tracing::info!(
        heartbeats = ?named.heartbeats_wildcard(), acks = ?named.acks_wildcard(), log = named.log_subject(),
        fetch = named.controller(id).fetch, admin = named.admin_prefix(), "subjects"
    );

    let core = Controller::new(me, settings, history, last);
    let parts = driver::Parts { core, me, belongs_to, clock, connection, jetstream, services, advisories };
    Driver::run(parts, directory, store, shutdown).await
}

/// The longest wait for one answer of JetStream. The core asks again after two seconds.
const QUESTION: Duration = Duration::from_millis(1_800);

/// What this controller has in JetStream.
#[derive(Clone)]
struct JetStream {
    log: Log,
    snapshots: Snapshots,
    lease: Lease,
}

impl JetStream {
    /// Creates the buckets where they are missing, and says how what exists differs from what is wanted.
    ///
    /// The stream is only looked at. A missing one may be a lost history, which the core has to see as such; it is created
    /// just before the entry that founds a cluster, or by a restore.
    async fn make_sure(&self) -> Result<(), BusError> {
        let mut found = vec![self.lease.ensure().await?, self.snapshots.ensure().await?];
        if self.log.head().await?.is_some() {
            found.push(self.log.ensure().await?);
        }
        for difference in found.iter().flat_map(|ensured| &ensured.differences) {
            tracing::warn!(difference, "JetStream is not set up as dmq would");
        }
        Ok(())
    }
}

/// What the core needs to know of services.json.
fn view(services: &Services) -> ServicesView {
    ServicesView {
        pairings: services.storage_ids().filter_map(|id| Some((id, services.pairing(id)?))).collect(),
        storage: services.storage_ids().collect(),
        controllers: services.controller_ids().collect(),
    }
}

/// Reports to the driver, until it is gone.
async fn report(reports: &mpsc::Sender<Report>, input: Input) {
    // Nobody is left to hear it where this fails.
    let _ = reports.send(Report::Input(input)).await;
}
