//! The connections to NATS: whether the one over which all is said stands, and the one to the system account that tells
//! who has died.

use std::time::Duration;

use async_nats::Client;
use tokio::sync::{mpsc, watch};

use super::JetStream;
use super::driver::Report;
use crate::bus::advisories::{self, Disconnect};
use crate::bus::raw;
use crate::config::{ConnectError, Connection, NatsSettings, connect_system};
use crate::types::ControllerId;

/// How many servers keep what must survive one of them.
pub(super) fn replicas(client: &Client) -> usize {
    let servers = client.try_server_info().map_or(0, |info| info.connect_urls.len());
    if servers >= 3 { 3 } else { 1 }
}

/// Listens for ended connections. `None` where that cannot be had: all works without, more slowly.
///
/// # Errors
/// Where the settings make no sense, or the credentials were refused: that is a mistake, and not a server that is away.
pub(super) async fn advisories(
    nats: &NatsSettings,
    id: ControllerId,
    timeout: Duration,
) -> Result<Option<(Client, mpsc::Receiver<Disconnect>)>, ConnectError> {
    /// A whole server's worth of connections may end at once.
    const WAITING: usize = 16_384;
    const SILENCE: &str = "fast failover is off, and a crash shows after a session";
    let client = match connect_system(nats, &format!("dmq-controller-{id}-system"), timeout).await {
        Ok(Some(client)) => client,
        Ok(None) => {
            tracing::warn!("no login to NATS's system account (nats.system_user, nats.system_creds): {SILENCE}");
            return Ok(None);
        }
        Err(
            error @ (ConnectError::Settings(_)
            | ConnectError::Refused { .. }
            | ConnectError::Forbidden { .. }
            | ConnectError::Tls { .. }),
        ) => return Err(error),
        Err(
            error @ (ConnectError::Unreachable { .. }
            | ConnectError::TooOld { .. }
            | ConnectError::NoJetStream { .. }
            | ConnectError::ApiLevel { .. }),
        ) => {
            tracing::warn!(%error, "the system account cannot be reached: {SILENCE}");
            return Ok(None);
        }
    };
    match advisories::subscribe(&client, WAITING, timeout).await {
        Ok(events) => {
            tracing::info!("fast failover is on: NATS's system account tells of ended connections");
            Ok(Some((client, events)))
        }
        Err(error) => {
            tracing::warn!(%error, "the system account tells nothing: {SILENCE}");
            Ok(None)
        }
    }
}

/// Whether the connection is up, and which one it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct State {
    generation: u64,
    up: bool,
}

struct States {
    generation: watch::Receiver<u64>,
    connected: watch::Receiver<bool>,
}

impl States {
    fn look(&mut self) -> State {
        State { generation: *self.generation.borrow_and_update(), up: *self.connected.borrow_and_update() }
    }

    /// False once the client is gone.
    async fn changed(&mut self) -> bool {
        tokio::select! {
            changed = self.generation.changed() => changed.is_ok(),
            changed = self.connected.changed() => changed.is_ok(),
        }
    }

    fn has_changed(&self) -> bool {
        self.generation.has_changed().unwrap_or(true) || self.connected.has_changed().unwrap_or(true)
    }
}

/// Reports when the connection is lost, and when it stands again with every subscription in place.
pub(super) async fn watch(connection: Connection, jetstream: JetStream, reports: mpsc::Sender<Report>) {
    const PATIENCE: Duration = Duration::from_secs(2);
    const RETRY: Duration = Duration::from_millis(50);
    let Connection { client, generation, connected, .. } = connection;
    let mut states = States { generation, connected };
    let mut said: Option<State> = None;
    loop {
        let now = states.look();
        if said.is_some_and(|said| said != now) {
            said = None;
            if reports.send(Report::Down).await.is_err() {
                return;
            }
        }
        if now.up && said.is_none() {
            // The client repeats its subscriptions before anything else that it sends.
            let established = raw::established(&client, PATIENCE).await;
            if let (Ok(connection), false) = (established, states.has_changed()) {
                if reports.send(Report::Up(connection)).await.is_err() {
                    return;
                }
                said = Some(now);
                make_sure(&jetstream, &mut states).await;
                continue;
            }
        }
        let is_said = said.is_some() || !now.up;
        tokio::select! {
            goes_on = states.changed() => if !goes_on { return },
            () = tokio::time::sleep(RETRY), if !is_said => {}
        }
    }
}

/// Sees to the buckets until they are there, or the connection has changed.
async fn make_sure(jetstream: &JetStream, states: &mut States) {
    const RETRY: Duration = Duration::from_millis(500);
    let trying = async {
        while let Err(error) = jetstream.make_sure().await {
            tracing::warn!(%error, "JetStream does not serve");
            tokio::time::sleep(RETRY).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = trying => {}
        // The states are looked at anew by whoever called.
        _ = states.changed() => {}
    }
}
