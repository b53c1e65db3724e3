//! The connections to NATS: the one over which all is said, and the one to the system account that tells who has died.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};
use tokio::sync::{mpsc, watch};

use super::{ControllerError, SystemAccount};
use crate::bus::advisories::{self, Disconnect};
use crate::types::ControllerId;

/// The oldest server that has all that is needed.
const OLDEST_SERVER: (u64, u64, u64) = (2, 12, 3);

/// Whether the connection is up. The generation rises with each that comes up.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct State {
    pub(super) generation: u64,
    pub(super) up: bool,
}

pub(super) struct Link {
    pub(super) client: Client,
    pub(super) state: watch::Receiver<State>,
    /// Only the generation, as the bus wants it.
    pub(super) generation: watch::Receiver<u64>,
}

/// Connects, within a time.
pub(super) async fn connect(
    address: &str,
    options: ConnectOptions,
    name: String,
    timeout: Duration,
) -> Result<Link, ControllerError> {
    let (state_sender, mut state) = watch::channel(State::default());
    let (generation_sender, generation) = watch::channel(0);
    let last_error = Arc::new(Mutex::new(None::<String>));
    let senders = Arc::new((state_sender, generation_sender, last_error.clone()));
    let callback = move |event: Event| {
        let senders = senders.clone();
        async move { note(&event, &senders.0, &senders.1, &senders.2) }
    };
    let options = options.name(name).event_callback(callback);
    let servers: Vec<String> = address.split(',').map(|server| server.trim().to_owned()).collect();
    let up = async {
        let client = options.connect(servers).await.map_err(|error| error.to_string())?;
        state.wait_for(|state| state.up).await.map_err(|_| "the client ended".to_owned())?;
        Ok::<_, String>(client)
    };
    let cause = match tokio::time::timeout(timeout, up).await {
        Ok(Ok(client)) => return Ok(Link { client, state, generation }),
        Ok(Err(cause)) => cause,
        Err(_) => {
            let last = last_error.lock().ok().and_then(|mut error| error.take());
            last.unwrap_or_else(|| format!("no answer within {} s", timeout.as_secs_f32()))
        }
    };
    Err(ControllerError::Unreachable { address: address.to_owned(), cause })
}

fn note(event: &Event, state: &watch::Sender<State>, generation: &watch::Sender<u64>, last: &Mutex<Option<String>>) {
    match event {
        Event::Connected => {
            state.send_modify(|state| *state = State { generation: state.generation + 1, up: true });
            generation.send_modify(|generation| *generation += 1);
        }
        Event::Disconnected | Event::Closed => state.send_modify(|state| state.up = false),
        Event::ServerError(_) | Event::ClientError(_) => {
            tracing::debug!(%event, "NATS");
            if let Ok(mut last) = last.lock() {
                *last = Some(event.to_string());
            }
        }
        Event::SlowConsumer(_) => tracing::warn!(%event, "NATS brings more messages than this controller can take"),
        Event::LameDuckMode | Event::Draining => tracing::info!(%event, "NATS"),
    }
}

/// Refuses a server that lacks what is needed.
pub(super) fn check_server(client: &Client) -> Result<(), ControllerError> {
    let Some(info) = client.try_server_info() else {
        return Err(ControllerError::Server("it said nothing of itself".into()));
    };
    let mut numbers = info.version.split(['.', '-']).map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let version: (u64, u64, u64) = (next(), next(), next());
    if version < OLDEST_SERVER {
        let (major, minor, patch) = OLDEST_SERVER;
        let words =
            format!("it has version {}, and {major}.{minor}.{patch} or later is needed: upgrade it", info.version);
        return Err(ControllerError::Server(words));
    }
    if info.max_payload < 64 * 1024 {
        let words = format!("its max_payload is {} bytes, and at least 64 KiB are needed", info.max_payload);
        return Err(ControllerError::Server(words));
    }
    tracing::info!(
        server = info.server_name,
        version = info.version,
        max_payload = info.max_payload,
        "connected to NATS"
    );
    Ok(())
}

/// Listens for ended connections. `None`, with a warning, where that cannot be had: all works without, more slowly.
pub(super) async fn advisories(
    account: SystemAccount,
    id: ControllerId,
    timeout: Duration,
) -> Option<(Client, mpsc::Receiver<Disconnect>)> {
    /// A whole server's worth of connections may end at once.
    const WAITING: usize = 16_384;
    let name = format!("dmq-controller-{id}-system");
    let listening = async {
        let link = connect(&account.nats, account.connect, name, timeout).await.map_err(|error| error.to_string())?;
        let events = advisories::subscribe(&link.client, WAITING, timeout).await.map_err(|error| error.to_string())?;
        Ok::<_, String>((link.client, events))
    };
    match listening.await {
        Ok(found) => {
            tracing::info!("fast failover is on: NATS's system account tells of ended connections");
            Some(found)
        }
        Err(error) => {
            tracing::warn!(error, "fast failover is off: a crash is noticed by silence alone");
            None
        }
    }
}
