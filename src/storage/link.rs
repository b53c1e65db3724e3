//! The connection to NATS: when it is up, and the subjects that this node speaks on.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};
use tokio::sync::watch;

use super::StorageError;
use crate::config::Services;
use crate::types::{ControllerId, StorageId};

/// The subjects of whoever this node speaks to: what services.json says.
pub trait Subjects: Send + Sync {
    fn heartbeat(&self, storage: StorageId) -> String;
    fn push(&self, storage: StorageId) -> String;
    fn ack(&self, storage: StorageId) -> String;
    fn fetch(&self, controller: ControllerId) -> String;
    fn admin(&self, noun: &str, verb: &str) -> String;
}

impl Subjects for Services {
    fn heartbeat(&self, storage: StorageId) -> String {
        self.storage(storage).heartbeat
    }

    fn push(&self, storage: StorageId) -> String {
        self.storage(storage).push
    }

    fn ack(&self, storage: StorageId) -> String {
        self.storage(storage).ack
    }

    fn fetch(&self, controller: ControllerId) -> String {
        self.controller(controller).fetch
    }

    fn admin(&self, noun: &str, verb: &str) -> String {
        self.admin_subject(noun, verb)
    }
}

/// Whether the connection is up. The generation rises with each that comes up.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Link {
    pub(crate) generation: u64,
    pub(crate) up: bool,
}

/// Connects, within a time.
pub(crate) async fn connect(
    address: &str,
    options: ConnectOptions,
    name: String,
    timeout: Duration,
) -> Result<(Client, watch::Receiver<Link>), StorageError> {
    let (sender, mut links) = watch::channel(Link::default());
    let last_error = Arc::new(Mutex::new(None::<String>));
    let seen = last_error.clone();
    let sender = Arc::new(sender);
    let callback = move |event: Event| {
        let (sender, seen) = (sender.clone(), seen.clone());
        async move { note(&event, &sender, &seen) }
    };
    let options = options.name(name).event_callback(callback);
    let up = async {
        let client = options.connect(address).await.map_err(|error| error.to_string())?;
        links.wait_for(|link| link.up).await.map_err(|_| "the client ended".to_owned())?;
        Ok::<_, String>(client)
    };
    let cause = match tokio::time::timeout(timeout, up).await {
        Ok(Ok(client)) => return Ok((client, links)),
        Ok(Err(cause)) => cause,
        Err(_) => {
            let last = last_error.lock().ok().and_then(|mut error| error.take());
            last.unwrap_or_else(|| format!("no answer within {} s", timeout.as_secs()))
        }
    };
    Err(StorageError::Unreachable { address: address.to_owned(), cause })
}

fn note(event: &Event, link: &watch::Sender<Link>, last_error: &Mutex<Option<String>>) {
    match event {
        Event::Connected => link.send_modify(|link| *link = Link { generation: link.generation + 1, up: true }),
        Event::Disconnected | Event::Closed => link.send_modify(|link| link.up = false),
        Event::ServerError(_) | Event::ClientError(_) => {
            tracing::debug!(%event, "NATS");
            if let Ok(mut error) = last_error.lock() {
                *error = Some(event.to_string());
            }
        }
        Event::SlowConsumer(_) => tracing::warn!(%event, "NATS dropped messages: they will be pushed again"),
        Event::LameDuckMode | Event::Draining => tracing::info!(%event, "NATS"),
    }
}
