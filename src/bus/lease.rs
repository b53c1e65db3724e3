//! The lease that decides which controller tries to be active: one key in a KV bucket of its own, which the server expires.
//!
//! It decides only who tries. Who wins is decided by the history, so nothing here guards anything. Time runs on the server:
//! a holder counts its own lease from when it sent the renewal.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::BusError;
use super::jetstream::{self, Ensured, Unacked};
use super::push::{self, Keeper, Push, Start};

/// Where the lease is, and how long it lasts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseConfig {
    pub bucket: String,
    pub key: String,
    /// How long a lease lasts without renewal. The server serves nothing finer than a second, and frees it up to a third
    /// of a second late.
    pub lease: Duration,
    /// 1 to 5.
    pub replicas: usize,
    /// For every call.
    pub timeout: Duration,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self {
            bucket: "DMQ_CONTROLLER".to_owned(),
            key: "active".to_owned(),
            lease: Duration::from_secs(3),
            replicas: 1,
            timeout: Duration::from_secs(2),
        }
    }
}

/// Why the lease is not known to be ours.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LeaseError {
    /// Somebody holds it. Wait until it is free.
    #[error("the lease is held by somebody else")]
    Held,
    /// It is at another revision: it expired, or somebody else took it. Stop acting, then try to create it.
    #[error("the lease is no longer ours")]
    Lost,
    /// It may or may not have taken effect, now or later. Read it, and count on nothing meanwhile.
    #[error("the acknowledgement did not come: the lease may or may not be ours")]
    Unknown,
    /// Nothing was written: no such bucket, or it has no leader at the moment. Ensure it.
    #[error("the lease's bucket is missing or has no leader")]
    BucketMissing,
    /// Nothing was written.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// What happens to a lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeaseEvent {
    Held {
        revision: u64,
        value: Bytes,
    },
    /// Released or expired, by the marker at `revision`; 0 where not even a marker is left, or no bucket.
    Free {
        revision: u64,
    },
}

/// The lease, over one connection.
#[derive(Clone)]
pub struct Lease {
    client: Client,
    config: LeaseConfig,
}

/// How long the server keeps a marker where the lease was.
const MARKER_AGE: Duration = Duration::from_secs(60);

impl Lease {
    pub fn new(client: Client, config: LeaseConfig) -> Self {
        Self { client, config }
    }

    pub fn config(&self) -> &LeaseConfig {
        &self.config
    }

    fn stream(&self) -> String {
        format!("KV_{}", self.config.bucket)
    }

    fn subject(&self) -> String {
        format!("$KV.{}.{}", self.config.bucket, self.config.key)
    }

    /// Creates the bucket if it is missing. What exists is compared and never changed.
    ///
    /// # Errors
    /// Any of [`BusError`]; the bucket may exist nonetheless after `Timeout`.
    pub async fn ensure(&self) -> Result<Ensured, BusError> {
        let wanted = Config {
            name: self.stream(),
            subjects: vec![format!("$KV.{}.>", self.config.bucket)],
            description: Some("Which dmq controller is active, for as long as its lease lasts".to_owned()),
            metadata: HashMap::from([("dmq.role".to_owned(), "controller-lease".to_owned())]),
            storage: StorageType::File,
            discard: DiscardPolicy::New,
            max_messages: -1,
            max_bytes: -1,
            max_messages_per_subject: 1,
            max_consumers: -1,
            max_age: self.config.lease,
            duplicate_window: self.config.lease,
            num_replicas: self.config.replicas,
            allow_rollup: true,
            deny_delete: true,
            allow_direct: true,
            // An expired lease leaves a marker, which is what a watcher sees.
            allow_message_ttl: true,
            subject_delete_marker_ttl: Some(MARKER_AGE),
            ..Config::default()
        };
        jetstream::ensure(&self.client, &wanted, self.config.timeout).await
    }

    /// Takes the lease if nobody holds it, and returns its revision.
    ///
    /// # Errors
    /// `Held`, or any other of [`LeaseError`] but `Lost`.
    pub async fn create(&self, value: Bytes) -> Result<u64, LeaseError> {
        let mut expected = 0;
        // A second attempt replaces a marker; a third one a marker that gave way to another.
        for _ in 0..3 {
            match self.put(value.clone(), expected, HeaderMap::new()).await {
                Err(LeaseError::Lost) => {}
                done => return done,
            }
            expected = match self.current().await? {
                Some(Stored::Lease { .. }) => return Err(LeaseError::Held),
                Some(Stored::Marker { revision }) => revision,
                None => 0,
            };
        }
        Err(LeaseError::Held)
    }

    /// Renews the lease that is at `revision`, and returns its new revision. It lasts from when the server stored it.
    ///
    /// # Errors
    /// `Lost`, or any other of [`LeaseError`] but `Held`.
    pub async fn update(&self, value: Bytes, revision: u64) -> Result<u64, LeaseError> {
        self.put(value, revision, HeaderMap::new()).await
    }

    /// Gives back the lease that is at `revision`, so that the next one need not wait.
    ///
    /// # Errors
    /// `Lost`, or any other of [`LeaseError`] but `Held`.
    pub async fn delete(&self, revision: u64) -> Result<(), LeaseError> {
        let mut headers = HeaderMap::new();
        headers.insert("KV-Operation", "DEL");
        self.put(Bytes::new(), revision, headers).await.map(drop)
    }

    async fn put(&self, value: Bytes, expected: u64, mut headers: HeaderMap) -> Result<u64, LeaseError> {
        headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
        let (stream, subject, timeout) = (self.stream(), self.subject(), self.config.timeout);
        match jetstream::publish(&self.client, &stream, &subject, headers, value, timeout).await {
            Ok(ack) => Ok(ack.sequence),
            Err(Unacked::Unknown) => Err(LeaseError::Unknown),
            Err(Unacked::NotStored(BusError::NoResponders { .. })) => Err(LeaseError::BucketMissing),
            Err(Unacked::NotStored(error)) => Err(LeaseError::Bus(error)),
            Err(Unacked::Api(error)) if error.is_conflict() => Err(LeaseError::Lost),
            Err(Unacked::Api(error)) => {
                Err(LeaseError::Bus(BusError::Refused { code: error.err_code, text: error.description }))
            }
        }
    }

    /// Who holds the lease, as the bucket's leader knows: its revision and value.
    ///
    /// # Errors
    /// `Missing` where there is no bucket; any other of [`BusError`].
    pub async fn get(&self) -> Result<Option<(u64, Bytes)>, BusError> {
        Ok(match self.current().await? {
            Some(Stored::Lease { revision, value }) => Some((revision, value)),
            Some(Stored::Marker { .. }) | None => None,
        })
    }

    async fn current(&self) -> Result<Option<Stored>, BusError> {
        let body = json!({ "last_by_subj": self.subject() });
        let found = jetstream::get_message(&self.client, &self.stream(), &body, self.config.timeout).await?;
        Ok(found.map(|message| {
            let StreamMessage { sequence, payload, headers, .. } = message;
            Stored::from_message(sequence, Some(&headers), payload)
        }))
    }

    /// Watches the lease, in a task that ends when the receiver is dropped: first how it stands, then every change. At most
    /// `capacity` events wait in the channel. `generation` changes at each reconnect; the watch is then built anew, and what
    /// is older than what was said is left out. The bucket keeps only the last value, so changes that follow one another
    /// quickly may appear as one.
    pub fn watch(&self, generation: watch::Receiver<u64>, capacity: usize) -> mpsc::Receiver<LeaseEvent> {
        let (events, receiver) = mpsc::channel(capacity.max(1));
        let mut lease = self.clone();
        lease.config.timeout = lease.config.timeout.min(push::PATIENCE);
        let watcher = Watcher { lease, created: None, said: None, events: events.clone() };
        tokio::spawn(push::keep(watcher, self.client.clone(), events, generation));
        receiver
    }
}

/// What the bucket holds under the key.
enum Stored {
    Lease { revision: u64, value: Bytes },
    Marker { revision: u64 },
}

impl Stored {
    fn revision(&self) -> u64 {
        match self {
            Self::Lease { revision, .. } | Self::Marker { revision } => *revision,
        }
    }

    fn from_message(revision: u64, headers: Option<&HeaderMap>, value: Bytes) -> Self {
        let is_marker = headers.is_some_and(|headers| {
            let removed = headers.get("KV-Operation").is_some_and(|op| op.as_str() != "PUT");
            removed || headers.get("Nats-Marker-Reason").is_some()
        });
        if is_marker { Self::Marker { revision } } else { Self::Lease { revision, value } }
    }
}

struct Watcher {
    lease: Lease,
    /// Which bucket is watched: in a new one the revisions begin again.
    created: Option<String>,
    /// The revision last said, and whether the lease was held.
    said: Option<(u64, bool)>,
    events: mpsc::Sender<LeaseEvent>,
}

impl Keeper for Watcher {
    async fn one_consumer(&mut self) {
        let (client, timeout) = (self.lease.client.clone(), self.lease.config.timeout);
        let (stream, subject) = (self.lease.stream(), self.lease.subject());
        let info = match jetstream::info(&client, &stream, timeout).await {
            Ok(Some(info)) => info,
            // Whoever waits for the lease finds out when trying to take it.
            Ok(None) => {
                self.say_free_without_marker().await;
                return;
            }
            Err(_) => return,
        };
        if self.created.as_ref() != Some(&info.created) {
            self.created = Some(info.created);
            self.said = self.said.map(|(_, held)| (0, held));
        }
        // The consumer comes first, so that nothing falls between what it shows and what is read.
        let Ok(mut push) = Push::create(&client, &stream, &subject, Start::LastPerSubject, timeout).await else {
            return;
        };
        let Ok(now) = self.lease.current().await else { return };
        // What the leader has is how things stand, even where the bucket went back; only what a consumer repeats is old.
        if let (Some((said, held)), Some(stored)) = (self.said, &now)
            && stored.revision() < said
        {
            self.said = Some((0, held));
        }
        // Where there is no message, the consumer is silent, and the lease may have been held when it was last heard of.
        let is_said = match now {
            Some(stored) => self.say(stored).await,
            None => self.say_free_without_marker().await,
        };
        if !is_said {
            return;
        }
        while let Some(delivery) = push.next().await {
            let stored = Stored::from_message(delivery.sequence, delivery.headers.as_ref(), delivery.payload);
            if !self.say(stored).await {
                return;
            }
        }
    }
}

impl Watcher {
    /// False where nobody listens any more.
    async fn say(&mut self, stored: Stored) -> bool {
        let (revision, is_held) = (stored.revision(), matches!(stored, Stored::Lease { .. }));
        if self.said.is_some_and(|(said, _)| said >= revision) {
            return true;
        }
        let Ok(permit) = self.events.reserve().await else { return false };
        self.said = Some((revision, is_held));
        permit.send(match stored {
            Stored::Lease { revision, value } => LeaseEvent::Held { revision, value },
            Stored::Marker { revision } => LeaseEvent::Free { revision },
        });
        true
    }

    async fn say_free_without_marker(&mut self) -> bool {
        if let Some((_, false)) = self.said {
            return true;
        }
        let Ok(permit) = self.events.reserve().await else { return false };
        self.said = Some((self.said.map_or(0, |(revision, _)| revision), false));
        permit.send(LeaseEvent::Free { revision: 0 });
        true
    }
}
