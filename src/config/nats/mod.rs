//! How to reach NATS: the settings, the `NATS_…` variables and the contexts of the `nats` command line, in this order,
//! and a connection that is known to be of use before anything else starts.
//!
//! Who connects is decided by the highest layer that names any credentials at all, so that a password never meets
//! another layer's user. The selected context is for a process that was told nothing: where a URL or a context is named,
//! its credentials are not sent to a server that they may not be meant for.

mod check;
mod context;
mod target;
#[cfg(test)]
mod tests;
mod url;

use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, Event, ServerError};
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::settings::NatsSettings;
use check::{OLDEST_API_LEVEL, OLDEST_SERVER, check_server};
use context::Surroundings;
use target::Target;
pub(super) use url::without_credentials;

/// For one server to answer, while there is time for others.
const ATTEMPT: Duration = Duration::from_secs(3);
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// A client, and what happens to its connection.
#[derive(Clone, Debug)]
pub struct Connection {
    pub client: Client,
    /// One more with each connection made, the first one included: what a server kept for a connection is then gone.
    pub generation: watch::Receiver<u64>,
    pub connected: watch::Receiver<bool>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// What was said about NATS makes no sense; no server was asked.
    #[error("{0}")]
    Settings(String),
    #[error(
        "NATS at {servers} refused the credentials ({credentials}): check them, or give others with nats.creds, \
         nats.user and nats.password, nats.nkey or nats.token"
    )]
    Refused { servers: String, credentials: String },
    #[error("no NATS at {servers} within {} s (the last error: {last}): start a nats-server, or name one with --nats-url (nats.url)", waited.as_secs_f32())]
    Unreachable { servers: String, waited: Duration, last: String },
    #[error(
        "the nats-server at {servers} is version {version}, but {}.{}.{} or later is needed: upgrade it",
        OLDEST_SERVER.0, OLDEST_SERVER.1, OLDEST_SERVER.2
    )]
    TooOld { servers: String, version: String },
    #[error(
        "NATS at {servers} offers no JetStream to this account ({reason}): start nats-server with -js, or enable \
         JetStream for the account"
    )]
    NoJetStream { servers: String, reason: String },
    #[error(
        "JetStream at {servers} speaks API level {level}, but {OLDEST_API_LEVEL} or more is needed: upgrade every \
         nats-server of the cluster"
    )]
    ApiLevel { servers: String, level: usize },
}

/// Connects as `name`, trying until the deadline; refused credentials end it at once. With `require_jetstream` the
/// server is also asked whether it can do what the metadata history needs.
pub async fn connect(
    settings: &NatsSettings,
    name: &str,
    deadline: Duration,
    require_jetstream: bool,
) -> Result<Connection, ConnectError> {
    let target = Target::of(settings, &Surroundings::of_this_process())?;
    let end = Instant::now() + deadline;
    let connection = open(&target, settings, name, deadline).await?;
    if require_jetstream {
        check_server(&connection.client, &target.shown(), end).await?;
    }
    Ok(connection)
}

/// A connection to the system account, which tells of lost clients at once; none where no credentials for it are set.
pub async fn connect_system(
    settings: &NatsSettings,
    name: &str,
    deadline: Duration,
) -> Result<Option<Client>, ConnectError> {
    match Target::of_system(settings, &Surroundings::of_this_process())? {
        Some(target) => Ok(Some(open(&target, settings, name, deadline).await?.client)),
        None => Ok(None),
    }
}

async fn open(
    target: &Target,
    settings: &NatsSettings,
    name: &str,
    deadline: Duration,
) -> Result<Connection, ConnectError> {
    let servers = target.addresses()?;
    let (start, mut attempt, mut last) = (Instant::now(), 0, "no answer".to_owned());
    loop {
        let left = deadline.saturating_sub(start.elapsed());
        let (generation, generation_seen) = watch::channel(0);
        let (connected, connected_seen) = watch::channel(false);
        let options = target
            .options()?
            .name(name)
            .ping_interval(Duration::from_millis(settings.ping_interval_ms))
            .connection_timeout(ATTEMPT.min(left))
            .reconnect_delay_callback(reconnect_delay)
            .event_callback(move |event| {
                tell(&event, &generation, &connected);
                std::future::ready(())
            });
        match timeout(left, options.connect(&servers[..])).await {
            Ok(Ok(client)) => {
                let mut connection = Connection { client, generation: generation_seen, connected: connected_seen };
                // The event of a connection that is made is already under way.
                timeout(ATTEMPT, connection.generation.wait_for(|seen| *seen > 0)).await.ok();
                return Ok(connection);
            }
            Ok(Err(error)) => match error.kind() {
                ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                    let credentials = target.credentials.shown();
                    return Err(ConnectError::Refused { servers: target.shown(), credentials });
                }
                _ => last = error.to_string(),
            },
            Err(_) => {}
        }
        let wait = backoff(attempt);
        attempt += 1;
        if start.elapsed() + wait >= deadline {
            return Err(ConnectError::Unreachable { servers: target.shown(), waited: deadline, last });
        }
        tracing::debug!(servers = target.shown(), error = last, "NATS is not there yet");
        sleep(wait).await;
    }
}

fn tell(event: &Event, generation: &watch::Sender<u64>, connected: &watch::Sender<bool>) {
    match event {
        Event::Connected => {
            connected.send_replace(true);
            generation.send_modify(|generation| *generation += 1);
        }
        Event::Disconnected | Event::Closed => {
            connected.send_replace(false);
            tracing::warn!("the connection to NATS is lost");
        }
        Event::ServerError(ServerError::AuthorizationViolation) => {
            tracing::error!("NATS refuses the credentials");
        }
        Event::SlowConsumer(_) | Event::ServerError(_) | Event::ClientError(_) => tracing::warn!("NATS: {event}"),
        Event::LameDuckMode | Event::Draining => tracing::info!("NATS: {event}"),
    }
}

/// The client also asks before its very first attempt, which must not wait.
fn reconnect_delay(attempt: usize) -> Duration {
    attempt.checked_sub(2).map(backoff).unwrap_or_default()
}

/// Doubles, half of it by chance, so that a restarted server does not see everyone at the same moment.
fn backoff(attempt: usize) -> Duration {
    let doublings = u32::try_from(attempt.min(16)).unwrap_or(16);
    let most = SHORTEST_WAIT.saturating_mul(1 << doublings).min(LONGEST_WAIT);
    most.mul_f64(rand::rng().random_range(0.5..1.0))
}
