//! Anybody whom NATS lets in: it overhears what is said, and says whatever a test likes.

use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};

use super::nats::NatsServer;

const DEADLINE: Duration = Duration::from_secs(20);

pub struct Stranger {
    runtime: tokio::runtime::Runtime,
    client: async_nats::Client,
}

/// What is heard on a subject from when it was asked for.
pub struct Overheard<'a> {
    stranger: &'a Stranger,
    subscriber: async_nats::Subscriber,
}

impl Stranger {
    pub fn new(nats: &NatsServer) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let client = runtime.block_on(nats.connect());
        Self { runtime, client }
    }

    /// The answer to a request. That there is none fails the test.
    pub fn ask(&self, subject: &str, payload: impl Into<Vec<u8>>) -> Value {
        let payload: Vec<u8> = payload.into();
        let asking = async {
            let request = async_nats::Request::new().payload(payload.into()).timeout(Some(DEADLINE));
            self.client.send_request(subject.to_owned(), request).await
        };
        let answer = self.runtime.block_on(asking).unwrap_or_else(|error| panic!("no answer on {subject}: {error}"));
        serde_json::from_slice(&answer.payload)
            .unwrap_or_else(|error| panic!("{subject}: {error}: {:?}", answer.payload))
    }

    /// Says something, and returns when the server has it.
    pub fn tell(&self, subject: &str, payload: impl Into<Vec<u8>>) {
        let payload: Vec<u8> = payload.into();
        self.runtime.block_on(async {
            self.client.publish(subject.to_owned(), payload.into()).await.unwrap();
            dmq::bus::raw::round_trip(&self.client, DEADLINE).await.unwrap();
        });
    }

    /// Stores a message in a stream, and returns its sequence.
    pub fn store(&self, subject: &str, payload: impl Into<Vec<u8>>) -> u64 {
        let payload: Vec<u8> = payload.into();
        self.runtime.block_on(async {
            let context = async_nats::jetstream::new(self.client.clone());
            let stored = context.publish(subject.to_owned(), payload.into()).await.unwrap();
            stored.await.unwrap().sequence
        })
    }

    pub fn listen(&self, subject: &str) -> Overheard<'_> {
        let subscribing = dmq::bus::raw::subscribe(&self.client, subject, DEADLINE);
        Overheard { stranger: self, subscriber: self.runtime.block_on(subscribing).unwrap() }
    }

    pub fn status(&self) -> Value {
        self.ask("dmq.admin.cluster.status", "")
    }

    pub fn version(&self) -> u64 {
        self.status()["version"].as_u64().unwrap()
    }

    /// How many messages the active controller has refused.
    pub fn refused(&self) -> u64 {
        self.status()["refusedMessages"].as_u64().unwrap()
    }

    pub fn run<T>(&self, doing: impl Future<Output = T>) -> T {
        self.runtime.block_on(doing)
    }

    pub fn client(&self) -> async_nats::Client {
        self.client.clone()
    }

    /// The history's message of a version, as it stands there.
    pub fn entry(&self, version: u64) -> Value {
        self.runtime.block_on(async {
            let context = async_nats::jetstream::new(self.client.clone());
            let stream = context.get_stream("DMQ_METADATA").await.unwrap();
            let message = stream.get_raw_message(version).await.unwrap();
            serde_json::from_slice(&message.payload).unwrap_or(json!(null))
        })
    }
}

impl Overheard<'_> {
    /// The next message, with its subject.
    pub fn next_raw(&mut self) -> (String, Vec<u8>) {
        let next =
            self.stranger.runtime.block_on(async { tokio::time::timeout(DEADLINE, self.subscriber.next()).await });
        let message = next.expect("a message in time").expect("the subscription stands");
        (message.subject.to_string(), message.payload.to_vec())
    }

    pub fn next(&mut self) -> Value {
        serde_json::from_slice(&self.next_raw().1).expect("JSON")
    }

    /// The first message that fits.
    pub fn find(&mut self, fits: impl Fn(&Value) -> bool) -> Value {
        loop {
            let message = self.next();
            if fits(&message) {
                return message;
            }
        }
    }
}

/// A message with some of its fields set otherwise.
pub fn with(message: &Value, fields: Value) -> Vec<u8> {
    let mut changed = message.clone();
    for (name, value) in fields.as_object().expect("an object") {
        changed[name] = value.clone();
    }
    serde_json::to_vec(&changed).unwrap()
}

/// A message without one of its fields.
pub fn without(message: &Value, field: &str) -> Vec<u8> {
    let mut changed = message.clone();
    changed.as_object_mut().expect("an object").remove(field).unwrap_or_else(|| panic!("it has no {field}"));
    serde_json::to_vec(&changed).unwrap()
}
