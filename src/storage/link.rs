//! The connection to NATS: when it is up, and the subjects that this node speaks on.

use std::time::Duration;

use async_nats::Client;
use tokio::sync::watch;

use crate::config::{self, ConnectError, Connection, NatsSettings, Services};
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
pub(super) struct Link {
    pub(super) generation: u64,
    pub(super) up: bool,
}

/// Connects, within a time, and tells from then on whether the connection is up. The last of what is returned completes
/// where NATS forbids a subscription within as much time again.
pub(super) async fn connect(
    settings: &NatsSettings,
    name: &str,
    timeout: Duration,
    require_jetstream: bool,
) -> Result<(Client, watch::Receiver<Link>, impl Future<Output = ConnectError> + use<>), ConnectError> {
    let connection = config::connect(settings, name, timeout, require_jetstream).await?;
    let deaf = connection.deaf_within(timeout);
    let Connection { client, mut generation, mut connected, .. } = connection;
    let look = |generation: &watch::Receiver<u64>, connected: &watch::Receiver<bool>| Link {
        generation: *generation.borrow(),
        up: *connected.borrow(),
    };
    let (sender, links) = watch::channel(look(&generation, &connected));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = generation.changed() => if changed.is_err() { return },
                changed = connected.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
            sender.send_replace(look(&generation, &connected));
        }
    });
    Ok((client, links, deaf))
}
