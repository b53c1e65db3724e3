//! Whether a server that was reached can do what the metadata history needs.

use async_nats::Client;
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

use super::{ATTEMPT, ConnectError, SHORTEST_WAIT, backoff};

/// Before it, limit markers and expiry of keys do not work as the controllers' lease needs them.
pub(super) const OLDEST_SERVER: (i64, i64, i64) = (2, 12, 3);
pub(super) const OLDEST_API_LEVEL: usize = 2;

pub(super) async fn check_server(client: &Client, servers: &str, end: Instant) -> Result<(), ConnectError> {
    let servers = servers.to_owned();
    let (major, minor, patch) = OLDEST_SERVER;
    if !client.is_server_compatible(major, minor, patch) {
        let version = client.try_server_info().map(|info| info.version).unwrap_or_default();
        return Err(ConnectError::TooOld { servers, version });
    }
    let mut attempt = 0;
    loop {
        let left = end.saturating_duration_since(Instant::now()).max(SHORTEST_WAIT);
        let reason = match timeout(left.min(ATTEMPT), account(client)).await {
            Ok(Ok(Some(level))) if level < OLDEST_API_LEVEL => return Err(ConnectError::ApiLevel { servers, level }),
            Ok(Ok(Some(_))) => return Ok(()),
            // Nobody ever listens there on a server without JetStream, and nobody yet in a cluster that just starts.
            Ok(Ok(None)) => "nobody answers $JS.API.INFO".to_owned(),
            Ok(Err(reason)) => reason,
            Err(_) => "no answer to $JS.API.INFO in time".to_owned(),
        };
        let wait = backoff(attempt);
        attempt += 1;
        let offers = client.try_server_info().is_some_and(|info| info.jetstream);
        if !offers && client.try_server_info().is_some_and(|info| info.cluster.is_none())
            || Instant::now() + wait >= end
        {
            return Err(ConnectError::NoJetStream { servers, reason });
        }
        sleep(wait).await;
    }
}

/// The API level; none where nobody answers.
async fn account(client: &Client) -> Result<Option<usize>, String> {
    #[derive(Deserialize)]
    struct Answer {
        error: Option<Fault>,
        #[serde(default)]
        api: Api,
    }
    #[derive(Deserialize)]
    struct Fault {
        description: String,
    }
    #[derive(Default, Deserialize)]
    struct Api {
        #[serde(default)]
        level: usize,
    }
    let answer = match client.request("$JS.API.INFO", Default::default()).await {
        Ok(answer) => answer,
        Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let answer: Answer = serde_json::from_slice(&answer.payload).map_err(|error| error.to_string())?;
    match answer.error {
        Some(fault) => Err(fault.description),
        None => Ok(Some(answer.api.level)),
    }
}
