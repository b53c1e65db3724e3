//! Whether a server that was reached can do what the metadata history needs.

use async_nats::Client;
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

use super::{ATTEMPT, ConnectError, Connection, SHORTEST_WAIT, backoff};

/// Before it, limit markers and expiry of keys do not work as the controllers' lease needs them.
pub(super) const OLDEST_SERVER: (i64, i64, i64) = (2, 12, 3);
const ACCOUNT_INFO: &str = "$JS.API.INFO";
pub(super) const OLDEST_API_LEVEL: usize = 2;

pub(super) async fn check_server(connection: &Connection, end: Instant) -> Result<(), ConnectError> {
    let (client, servers) = (&connection.client, connection.servers.to_string());
    let (major, minor, patch) = OLDEST_SERVER;
    if !client.is_server_compatible(major, minor, patch) {
        let version = client.try_server_info().map(|info| info.version).unwrap_or_default();
        return Err(ConnectError::TooOld { servers, version });
    }
    let mut attempt = 0;
    loop {
        let left = end.saturating_duration_since(Instant::now()).max(SHORTEST_WAIT);
        let asking = timeout(left.min(ATTEMPT), account(client));
        let answer = tokio::select! {
            answer = asking => answer,
            error = forbidden(connection) => return Err(error),
        };
        let reason = match answer {
            Ok(Ok(Some(level))) if level < OLDEST_API_LEVEL => return Err(ConnectError::ApiLevel { servers, level }),
            Ok(Ok(Some(_))) => return Ok(()),
            // Nobody ever listens there on a server without JetStream, and nobody yet in a cluster that just starts.
            Ok(Ok(None)) => format!("nobody answers {ACCOUNT_INFO}"),
            Ok(Err(reason)) => reason,
            Err(_) => format!("no answer to {ACCOUNT_INFO} in time"),
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

/// Completes where NATS forbids the question, or to hear its answer: either would look like silence.
async fn forbidden(connection: &Connection) -> ConnectError {
    let mut refused = connection.refused.clone();
    let asked = |publish: &Option<String>| publish.as_deref() == Some(ACCOUNT_INFO);
    let what = match refused.wait_for(|refused| asked(&refused.publish) || refused.subscription.is_some()).await {
        Ok(found) if asked(&found.publish) => Some(format!("publish to {ACCOUNT_INFO}")),
        Ok(found) => Some(format!("subscribe to {}", found.subscription.as_deref().unwrap_or_default())),
        Err(_) => None,
    };
    match what {
        Some(what) => connection.forbidden()(what),
        // The client is gone, and so is whoever asks.
        None => std::future::pending().await,
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
    let answer = match client.request(ACCOUNT_INFO, Default::default()).await {
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
