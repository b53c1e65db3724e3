//! What a controller sees to beside its core: the connection to the system account, which tells who has died, and its buckets.

use std::time::Duration;

use async_nats::Client;
use tokio::sync::mpsc;

use super::JetStream;
use crate::bus::advisories::{self, Disconnect};
use crate::config::{ConnectError, NatsSettings, connect_system};
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

/// Sees to the buckets until they are there.
pub(super) async fn make_sure(jetstream: JetStream) {
    const RETRY: Duration = Duration::from_millis(500);
    while let Err(error) = jetstream.make_sure().await {
        tracing::warn!(%error, "JetStream does not serve");
        tokio::time::sleep(RETRY).await;
    }
}
