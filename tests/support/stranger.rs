//! Anybody whom NATS lets in: it overhears what is said, and says whatever a test likes.

use std::time::Duration;

use async_nats::client::RequestErrorKind;
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

    /// The answer to a request, or why there is none.
    pub fn try_ask(&self, subject: &str, payload: impl Into<Vec<u8>>) -> Result<Vec<u8>, String> {
        let payload: Vec<u8> = payload.into();
        let request = async_nats::Request::new().payload(payload.into()).timeout(Some(DEADLINE));
        let answer = self.runtime.block_on(self.client.send_request(subject.to_owned(), request));
        answer.map(|answer| answer.payload.to_vec()).map_err(|error| format!("no answer on {subject}: {error}"))
    }

    /// The answer to a request with headers, as soon as somebody listens. That there is none fails the test.
    pub fn demand(&self, subject: &str, headers: &[(&str, &str)], payload: impl Into<Vec<u8>>) -> async_nats::Message {
        let payload: Vec<u8> = payload.into();
        let mut map = async_nats::HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.insert(*name, *value));
        let payload = bytes::Bytes::from(payload);
        let began = std::time::Instant::now();
        loop {
            let request =
                async_nats::Request::new().payload(payload.clone()).headers(map.clone()).timeout(Some(DEADLINE));
            match self.runtime.block_on(self.client.send_request(subject.to_owned(), request)) {
                Ok(answer) => return answer,
                // Each try is a round trip.
                Err(error) if error.kind() == RequestErrorKind::NoResponders && began.elapsed() < DEADLINE => {}
                Err(error) => panic!("no answer on {subject}: {error}"),
            }
        }
    }

    /// As [`Self::tell`], for whoever would answer on that subject.
    pub fn tell_with_reply(&self, subject: &str, reply: &str, payload: impl Into<Vec<u8>>) {
        let payload: Vec<u8> = payload.into();
        self.runtime.block_on(async {
            let (subject, reply) = (subject.to_owned(), reply.to_owned());
            self.client.publish_with_reply(subject, reply, payload.into()).await.unwrap();
            dmq::bus::raw::round_trip(&self.client, DEADLINE).await.unwrap();
        });
    }

    /// The answer to a request, to the letter. That there is none fails the test.
    pub fn ask_raw(&self, subject: &str, payload: impl Into<Vec<u8>>) -> Vec<u8> {
        self.try_ask(subject, payload).unwrap_or_else(|why| panic!("{why}"))
    }

    pub fn ask(&self, subject: &str, payload: impl Into<Vec<u8>>) -> Value {
        let answer = self.ask_raw(subject, payload);
        serde_json::from_slice(&answer).unwrap_or_else(|error| panic!("{subject}: {error}: {answer:?}"))
    }

    /// Says something, and returns when the server has it.
    pub fn tell(&self, subject: &str, payload: impl Into<Vec<u8>>) {
        let payload: Vec<u8> = payload.into();
        self.runtime.block_on(async {
            self.client.publish(subject.to_owned(), payload.into()).await.unwrap();
            dmq::bus::raw::round_trip(&self.client, DEADLINE).await.unwrap();
        });
    }

    /// As [`Self::tell`], with headers.
    pub fn tell_with_headers(&self, subject: &str, headers: &[(&str, &str)], payload: impl Into<Vec<u8>>) {
        let payload: Vec<u8> = payload.into();
        let mut map = async_nats::HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.insert(*name, *value));
        self.runtime.block_on(async {
            self.client.publish_with_headers(subject.to_owned(), map, payload.into()).await.unwrap();
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

    /// Where a controller may be missing for a moment.
    pub fn try_status(&self) -> Result<Value, String> {
        let answer = self.try_ask("dmq.admin.cluster.status", "")?;
        serde_json::from_slice(&answer).map_err(|error| error.to_string())
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

    /// Whether nothing came up to now: whatever the server had for us before is here.
    pub fn is_silent(&mut self) -> bool {
        self.stranger.runtime.block_on(async {
            dmq::bus::raw::round_trip(&self.stranger.client, DEADLINE).await.unwrap();
            futures::poll!(self.subscriber.next()).is_pending()
        })
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
