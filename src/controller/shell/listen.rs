//! What this controller hears on core NATS: heartbeats, acknowledgements, the other controllers, requests for metadata.
//!
//! One task per subscription stamps each message when it arrives, and waits where the core is slow: then NATS's client
//! drops the newest, and nothing here grows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Message, Subscriber};
use futures::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::Clock;
use super::driver::Report;
use crate::bus::{BusError, raw};
use crate::config::Services;
use crate::types::{ControllerId, Monotonic};

/// A message, and when it came.
pub(super) struct Heard {
    pub(super) received_at: Monotonic,
    pub(super) message: Message,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Kind {
    Heartbeats,
    Acks,
    Peers,
    Fetches,
}

/// Where what is heard goes.
#[derive(Clone)]
pub(super) struct Ears {
    pub(super) heartbeats: mpsc::Sender<Heard>,
    pub(super) acks: mpsc::Sender<Heard>,
    pub(super) peers: mpsc::Sender<Heard>,
    pub(super) fetches: mpsc::Sender<Heard>,
}

pub(super) struct Listener {
    client: Client,
    clock: Clock,
    id: ControllerId,
    ears: Ears,
    subscribed: HashMap<(Kind, String), Reading>,
}

/// Ends the subscription with it.
struct Reading(JoinHandle<()>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

const PATIENCE: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(250);

impl Listener {
    pub(super) fn new(client: Client, clock: Clock, id: ControllerId, ears: Ears) -> Self {
        Self { client, clock, id, ears, subscribed: HashMap::new() }
    }

    /// Subscribes to all that these services say, and to nothing else. Once it returns, the server has it.
    pub(super) async fn listen(&mut self, services: &Services) -> Result<(), BusError> {
        let of = |kind: Kind, subjects: Vec<String>| subjects.into_iter().map(move |subject| (kind, subject));
        let wanted: Vec<_> = of(Kind::Heartbeats, services.heartbeats_wildcard())
            .chain(of(Kind::Acks, services.acks_wildcard()))
            .chain(of(Kind::Peers, services.controller_heartbeats_wildcard()))
            .chain(of(Kind::Fetches, vec![services.controller(self.id).fetch]))
            .collect();
        for (kind, subject) in &wanted {
            let key = (*kind, subject.clone());
            if self.subscribed.contains_key(&key) {
                continue;
            }
            let subscribing = tokio::time::timeout(PATIENCE, self.client.subscribe(subject.clone())).await;
            let subscriber =
                subscribing.map_err(|_| BusError::Timeout)?.map_err(|_| BusError::InvalidName(subject.clone()))?;
            let ear = match kind {
                Kind::Heartbeats => self.ears.heartbeats.clone(),
                Kind::Acks => self.ears.acks.clone(),
                Kind::Peers => self.ears.peers.clone(),
                Kind::Fetches => self.ears.fetches.clone(),
            };
            self.subscribed.insert(key, Reading(tokio::spawn(read(subscriber, self.clock, ear))));
        }
        raw::round_trip(&self.client, PATIENCE).await?;
        // What is no longer wanted goes last, so that nothing is missed in between.
        self.subscribed.retain(|key, _| wanted.contains(key));
        Ok(())
    }

    /// Follows services.json: the driver hears of a new one once its subjects are subscribed to.
    pub(super) async fn work(mut self, mut services: watch::Receiver<Arc<Services>>, reports: mpsc::Sender<Report>) {
        loop {
            if services.changed().await.is_err() {
                // No more changes will come, and the subscriptions go on for as long as this task.
                return std::future::pending().await;
            }
            let new = services.borrow_and_update().clone();
            while let Err(error) = self.listen(&new).await {
                tracing::warn!(%error, "the subjects of the new services.json are not subscribed to yet");
                tokio::time::sleep(RETRY).await;
            }
            if reports.send(Report::Services(new)).await.is_err() {
                return;
            }
        }
    }
}

async fn read(mut subscriber: Subscriber, clock: Clock, ear: mpsc::Sender<Heard>) {
    while let Some(message) = subscriber.next().await {
        if ear.send(Heard { received_at: clock.monotonic(), message }).await.is_err() {
            return;
        }
    }
}
