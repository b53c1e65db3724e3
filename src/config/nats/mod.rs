//! How to reach NATS: the settings, the `NATS_…` variables and the contexts of the `nats` command line, in this order,
//! and a connection that is known to be of use before anything else starts.
//!
//! Who connects is decided by the highest layer that names any credentials at all, so that a password never meets
//! another layer's user. The selected context is for a process that was told nothing: where a URL or a context is named,
//! its credentials are not sent to a server that they may not be meant for.

mod check;
mod context;
mod fault;
mod target;
#[cfg(test)]
mod tests;
mod url;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, Event, ServerError};
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::settings::NatsSettings;
use check::check_server;
use context::Surroundings;
pub use fault::ConnectError;
use fault::{Denied, tls_fault};
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
    /// One more with each connection made, the first one included: what a server kept for a connection is then gone. It
    /// rises an instant before `client` tells of the new server, which the crate takes over only later: who needs that
    /// waits for a round trip, as `bus::raw::established` does.
    pub generation: watch::Receiver<u64>,
    pub connected: watch::Receiver<bool>,
    refused: watch::Receiver<Refused>,
    servers: Arc<str>,
    credentials: Arc<str>,
}

impl Connection {
    /// Completes where NATS refuses one of our subscriptions within a time from now, and never otherwise: a process that
    /// starts deaf is better ended than kept. Only subscriptions count, since a stranger may have us publish anywhere.
    pub fn deaf_within(&self, time: Duration) -> impl Future<Output = ConnectError> + use<> {
        let (mut refused, forbidden) = (self.refused.clone(), self.forbidden());
        async move {
            let waiting = refused.wait_for(|refused| refused.subscription.is_some());
            // What is borrowed of the channel is given back before the next wait.
            let subject = match timeout(time, waiting).await {
                Ok(Ok(refused)) => refused.subscription.clone(),
                Ok(Err(_)) | Err(_) => None,
            };
            match subject {
                Some(subject) => forbidden(format!("subscribe to {subject}")),
                None => std::future::pending().await,
            }
        }
    }

    fn forbidden(&self) -> impl Fn(String) -> ConnectError + use<> {
        let (servers, credentials) = (self.servers.to_string(), self.credentials.to_string());
        move |what| ConnectError::Forbidden { servers: servers.clone(), credentials: credentials.clone(), what }
    }
}

/// How many messages of one subscription may wait. Beyond that they are lost, and whoever sent them tries again. Ten thousand
/// nodes' heartbeats come on one.
const WAITING_MESSAGES: usize = 16_384;

/// The last subjects that NATS did not permit.
#[derive(Clone, Default, Debug)]
struct Refused {
    subscription: Option<String>,
    publish: Option<String>,
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
        check_server(&connection, end).await?;
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
        let (teller, heard) = Teller::new();
        let options = target
            .options()?
            .name(name)
            .subscription_capacity(WAITING_MESSAGES)
            .ping_interval(Duration::from_millis(settings.ping_interval_ms))
            .connection_timeout(ATTEMPT.min(left))
            .reconnect_delay_callback(reconnect_delay)
            .event_callback(move |event| {
                teller.tell(&event);
                std::future::ready(())
            });
        let mut untrusted = None;
        match timeout(left, options.connect(&servers[..])).await {
            Ok(Ok(client)) => {
                let mut connection = heard.connection(client, target);
                // The event of a connection that is made is already under way.
                timeout(ATTEMPT, connection.generation.wait_for(|seen| *seen > 0)).await.ok();
                return Ok(connection);
            }
            Ok(Err(error)) => match error.kind() {
                ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                    let credentials = target.credentials.shown();
                    return Err(ConnectError::Refused { servers: target.shown(), credentials });
                }
                _ => {
                    untrusted = tls_fault(&error);
                    last = error.to_string();
                }
            },
            Err(_) => {}
        }
        let wait = backoff(attempt);
        attempt += 1;
        // Waiting helps against a certificate only where another server may have a better one.
        let is_over = start.elapsed() + wait >= deadline;
        if let Some(fault) = untrusted.filter(|_| is_over || servers.len() == 1) {
            let (reason, advice) = fault;
            return Err(ConnectError::Tls { servers: target.shown(), reason, advice });
        }
        if is_over {
            return Err(ConnectError::Unreachable { servers: target.shown(), waited: deadline, last });
        }
        tracing::debug!(servers = target.shown(), error = last, "NATS is not there yet");
        sleep(wait).await;
    }
}

/// Says what happens to a connection, to those who run it and to the rest of the process.
struct Teller {
    generation: watch::Sender<u64>,
    connected: watch::Sender<bool>,
    refused: watch::Sender<Refused>,
    /// What was logged of late, so that a refusal that comes with each heartbeat is not.
    logged: Mutex<HashMap<String, Instant>>,
}

struct Heard {
    generation: watch::Receiver<u64>,
    connected: watch::Receiver<bool>,
    refused: watch::Receiver<Refused>,
}

impl Heard {
    fn connection(self, client: Client, target: &Target) -> Connection {
        let Heard { generation, connected, refused } = self;
        let (servers, credentials) = (target.shown().into(), target.credentials.shown().into());
        Connection { client, generation, connected, refused, servers, credentials }
    }
}

impl Teller {
    fn new() -> (Teller, Heard) {
        let (generation, generation_seen) = watch::channel(0);
        let (connected, connected_seen) = watch::channel(false);
        let (refused, refused_seen) = watch::channel(Refused::default());
        let heard = Heard { generation: generation_seen, connected: connected_seen, refused: refused_seen };
        (Teller { generation, connected, refused, logged: Mutex::default() }, heard)
    }

    fn tell(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.connected.send_replace(true);
                self.generation.send_modify(|generation| *generation += 1);
            }
            Event::Disconnected => {
                self.connected.send_replace(false);
                tracing::warn!("the connection to NATS is lost");
            }
            // Our own doing.
            Event::Closed => {
                self.connected.send_replace(false);
                tracing::debug!("the connection to NATS is closed");
            }
            Event::ServerError(ServerError::AuthorizationViolation) => {
                tracing::error!("NATS refuses the credentials");
            }
            Event::ServerError(ServerError::Other(text)) => match Denied::of(text) {
                Some(denied) => self.denied(text, denied),
                None => tracing::warn!("NATS: {event}"),
            },
            Event::SlowConsumer(_) | Event::ServerError(ServerError::SlowConsumer(_)) | Event::ClientError(_) => {
                tracing::warn!("NATS: {event}");
            }
            Event::LameDuckMode | Event::Draining => tracing::info!("NATS: {event}"),
        }
    }

    fn denied(&self, text: &str, denied: Denied) {
        const QUIET: Duration = Duration::from_secs(60);
        const REMEMBERED: usize = 256;
        self.refused.send_modify(|refused| match denied {
            Denied::Subscription(subject) => refused.subscription = Some(subject),
            Denied::Publish(subject) => refused.publish = Some(subject),
        });
        let now = Instant::now();
        let mut logged = self.logged.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        logged.retain(|_, at| now.duration_since(*at) < QUIET);
        if logged.len() < REMEMBERED && !logged.contains_key(text) {
            logged.insert(text.to_owned(), now);
            tracing::error!("NATS refuses what this process needs; give its user the permission: {text}");
        }
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
