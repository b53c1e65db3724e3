//! The history's stream: compare-and-set appends, reads from its leader, purging, and its deletion and rebirth for a restore.
//!
//! An entry is a sequence and bytes. Appending never retries: what became of an append whose acknowledgement is lost is
//! settled by reading the place where it would be. Following is in `follow.rs`.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{ErrorCode, message::StreamMessage};
use async_nats::{Client, HeaderMap, Message, StatusCode};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};

use super::jetstream::{self, Ensured, Unacked};
use super::{BusError, raw};

pub use super::follow::{FollowEvent, follow};

/// Where the history is, and how it is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HistoryConfig {
    pub stream: String,
    /// The one subject whose messages are the entries.
    pub subject: String,
    /// 1 to 5.
    pub replicas: usize,
    /// The sequence of the first entry, where the stream is created; 1 if not given.
    pub first_sequence: Option<u64>,
    /// For every call but an append, which brings its own.
    pub timeout: Duration,
}

impl Default for HistoryConfig {
    fn default() -> Self {
        Self {
            stream: "DMQ_METADATA".to_owned(),
            subject: "dmq.metadata.log".to_owned(),
            replicas: 1,
            first_sequence: None,
            timeout: Duration::from_secs(5),
        }
    }
}

/// The ends of the stream, as its leader sees them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// The first entry that is still there; `last + 1` where none is.
    pub first: u64,
    /// The last sequence given out; 0 before the first entry.
    pub last: u64,
    /// When the stream was created, as the server writes it: another value is another stream of the same name.
    pub created: String,
}

/// Why an append is not known to be stored.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AppendError {
    /// Nothing was stored: the stream's last sequence is not the expected one. Catch up and decide anew.
    #[error("the history has moved on: another entry stands, or is being written, at the expected place")]
    Conflict,
    /// It may be stored, now or later. Read the place after the expected one; while it is empty, that proves nothing.
    #[error("the acknowledgement did not come: the entry may or may not be in the history")]
    Unknown,
    /// Nothing was stored: there is no stream on the subject, or it has no leader at the moment. Ask for its head.
    #[error("no stream takes entries: the history is missing or has no leader")]
    StreamMissing,
    /// Nothing was stored: the entry is too large for one message. Split it.
    #[error("an entry of {size} bytes is too large for one message")]
    TooLarge { size: usize },
    /// Nothing was sent. Wait for the connection.
    #[error("not connected to NATS")]
    Disconnected,
    /// Nothing was stored, and trying again does not help.
    #[error("the history refused the entry: {0}")]
    Refused(String),
}

/// The stream of the history, over one connection.
#[derive(Clone)]
pub struct History {
    client: Client,
    config: HistoryConfig,
}

impl History {
    pub fn new(client: Client, config: HistoryConfig) -> Self {
        Self { client, config }
    }

    pub fn config(&self) -> &HistoryConfig {
        &self.config
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The same history with calls that end after `most` at the latest.
    pub(super) fn within(mut self, most: Duration) -> Self {
        self.config.timeout = self.config.timeout.min(most);
        self
    }

    /// Creates the stream if it is missing. What exists is compared and never changed.
    ///
    /// # Errors
    /// Any of [`BusError`]; the stream may exist nonetheless after `Timeout`.
    pub async fn ensure(&self) -> Result<Ensured, BusError> {
        jetstream::ensure(&self.client, &self.wanted(self.config.first_sequence), self.config.timeout).await
    }

    fn wanted(&self, first_sequence: Option<u64>) -> Config {
        Config {
            name: self.config.stream.clone(),
            subjects: vec![self.config.subject.clone()],
            description: Some(
                "The history of a dmq cluster's metadata. Never edit it: see `dmq metadata log`".to_owned(),
            ),
            metadata: HashMap::from([("dmq.role".to_owned(), "metadata-history".to_owned())]),
            storage: StorageType::File,
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::New,
            max_messages: -1,
            max_bytes: -1,
            max_messages_per_subject: -1,
            max_consumers: -1,
            num_replicas: self.config.replicas,
            // An entry is never taken out of the middle; purging what a snapshot covers stays possible.
            deny_delete: true,
            deny_purge: false,
            allow_direct: true,
            first_sequence: first_sequence.filter(|&first| first > 1),
            ..Config::default()
        }
    }

    /// The stream's ends, freshly asked of its leader; `None` where there is no such stream.
    ///
    /// # Errors
    /// Any of [`BusError`] but `Missing`.
    pub async fn head(&self) -> Result<Option<Head>, BusError> {
        let found = jetstream::info(&self.client, &self.config.stream, self.config.timeout).await?;
        Ok(found.map(|info| {
            let (last, empty) = (info.state.last_seq, info.state.messages == 0);
            let first = if empty { last + 1 } else { info.state.first_seq };
            Head { first, last, created: info.created }
        }))
    }

    /// Appends an entry behind `expected_last_sequence` and nowhere else, and returns its sequence. `headers` may hold a
    /// `Nats-Msg-Id`; a replicated stream then answers a repeated append with the sequence that the first one got.
    ///
    /// # Errors
    /// [`AppendError`]; only `Unknown` leaves open whether the entry is stored. It comes after `timeout`.
    pub async fn append(
        &self,
        expected_last_sequence: u64,
        payload: Bytes,
        mut headers: HeaderMap,
        timeout: Duration,
    ) -> Result<u64, AppendError> {
        headers.insert("Nats-Expected-Last-Sequence", expected_last_sequence.to_string());
        headers.insert("Nats-Expected-Stream", self.config.stream.as_str());
        let size = payload.len();
        let (stream, subject) = (&self.config.stream, &self.config.subject);
        let unacked = match jetstream::publish(&self.client, stream, subject, headers, payload, timeout).await {
            Ok(ack) => return Ok(ack.sequence),
            Err(unacked) => unacked,
        };
        Err(match unacked {
            Unacked::Unknown => AppendError::Unknown,
            Unacked::NotStored(BusError::NoResponders { .. }) => AppendError::StreamMissing,
            Unacked::NotStored(BusError::Disconnected) => AppendError::Disconnected,
            Unacked::NotStored(BusError::TooLarge { size, .. }) => AppendError::TooLarge { size },
            Unacked::NotStored(other) => AppendError::Refused(other.to_string()),
            Unacked::Api(error) if error.is_conflict() => AppendError::Conflict,
            Unacked::Api(error) if error.is(ErrorCode::STREAM_NOT_FOUND) => AppendError::StreamMissing,
            Unacked::Api(error)
                if error.is(ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM)
                    || error.is(ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM) =>
            {
                AppendError::TooLarge { size }
            }
            Unacked::Api(error) => AppendError::Refused(format!("{} ({})", error.description, error.err_code)),
        })
    }

    /// The entry at `sequence`, from the stream's leader; `None` where there is none: not yet, or purged.
    ///
    /// # Errors
    /// `Missing` where there is no stream; any other of [`BusError`].
    pub async fn read(&self, sequence: u64) -> Result<Option<Bytes>, BusError> {
        Ok(self.get(&json!({ "seq": sequence })).await?.map(|message| message.payload))
    }

    async fn get(&self, body: &Value) -> Result<Option<StreamMessage>, BusError> {
        jetstream::get_message(&self.client, &self.config.stream, body, self.config.timeout).await
    }

    /// Entries from `from` to `to_inclusive`, in order, until about `max_bytes` of them are read. Holes are left out. Call it
    /// again from behind the last one: an empty answer says that the leader has nothing more in that range.
    ///
    /// # Errors
    /// `Missing` where there is no stream; any other of [`BusError`].
    pub async fn read_range(
        &self,
        from: u64,
        to_inclusive: u64,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Bytes)>, BusError> {
        let from = from.max(1);
        if from > to_inclusive {
            return Ok(Vec::new());
        }
        let batch = self.batch(from, to_inclusive, max_bytes).await?;
        if !batch.is_empty() {
            return Ok(batch);
        }
        // A replica that lags answers the batch as well as the leader; that there is nothing is the leader's to say.
        let next = self.get(&json!({ "seq": from, "next_by_subj": self.config.subject })).await?;
        let next = next.filter(|message| message.sequence <= to_inclusive);
        Ok(next.map(|message| (message.sequence, message.payload)).into_iter().collect())
    }

    /// A batched direct get: one request, many answers, up to the first irregularity among them.
    async fn batch(&self, from: u64, to: u64, max_bytes: usize) -> Result<Vec<(u64, Bytes)>, BusError> {
        let timeout = self.config.timeout;
        let deadline = tokio::time::Instant::now() + timeout;
        let inbox = self.client.new_inbox();
        let subscribing = tokio::time::timeout_at(deadline, self.client.subscribe(inbox.clone())).await;
        let mut answers = subscribing.map_err(|_| BusError::Timeout)?.map_err(|_| BusError::Disconnected)?;
        let wanted = (to - from).saturating_add(1).min(MOST_IN_A_BATCH);
        let body = json!({ "seq": from, "batch": wanted, "max_bytes": max_bytes });
        let subject = format!("$JS.API.DIRECT.GET.{}", self.config.stream);
        let body = Bytes::from(body.to_string());
        raw::publish_with_reply(&self.client, &subject, &inbox, HeaderMap::new(), body, timeout).await?;
        let mut entries: Vec<(u64, Bytes)> = Vec::new();
        loop {
            let answer = match tokio::time::timeout_at(deadline, answers.next()).await {
                Ok(Some(answer)) => answer,
                Ok(None) => return Err(BusError::Disconnected),
                // What came in order is good; without any, the leader is asked.
                Err(_) if !entries.is_empty() => return Ok(entries),
                Err(_) => return Err(BusError::Timeout),
            };
            match answer.status {
                None => {}
                // Nobody serves direct gets: no stream, or one that does not allow them. The leader will tell.
                Some(StatusCode::NO_RESPONDERS) => return Ok(entries),
                // The end of the batch, no such message, or a request that this server does not know.
                Some(_) => return Ok(entries),
            }
            let Some((sequence, before)) = place_in_batch(&answer) else { return Ok(entries) };
            let lost = entries.last().is_some_and(|&(previous, _)| before != previous);
            if lost || sequence < from || sequence > to {
                return Ok(entries);
            }
            entries.push((sequence, answer.payload));
            if sequence == to {
                return Ok(entries);
            }
        }
    }

    /// Removes every entry before `sequence`, for good.
    ///
    /// # Errors
    /// Any of [`BusError`]; after `Timeout` the entries may be gone.
    pub async fn purge_before(&self, sequence: u64) -> Result<(), BusError> {
        // 0 would mean all of them.
        if sequence <= 1 {
            return Ok(());
        }
        let stream = &self.config.stream;
        let body = json!({ "seq": sequence });
        jetstream::call::<Value>(&self.client, &format!("STREAM.PURGE.{stream}"), stream, &body, self.config.timeout)
            .await
            .map(drop)
    }

    /// Deletes the stream with all its entries, for a restore. That it did not exist is no error.
    ///
    /// # Errors
    /// Any of [`BusError`] but `Missing`; after `Timeout` the stream may be gone.
    pub async fn delete_stream(&self) -> Result<(), BusError> {
        let stream = &self.config.stream;
        let verb = format!("STREAM.DELETE.{stream}");
        match jetstream::call::<Value>(&self.client, &verb, stream, &json!({}), self.config.timeout).await {
            Ok(_) | Err(BusError::Missing(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes the stream and creates it anew, empty, so that its first entry gets `first_sequence`.
    ///
    /// # Errors
    /// Any of [`BusError`]. After any of them the stream may be the old one, missing, or the new one: ask for its head.
    /// `Refused` where somebody else created it, or wrote to it, meanwhile.
    pub async fn recreate(&self, first_sequence: u64) -> Result<Head, BusError> {
        self.delete_stream().await?;
        let wanted = self.wanted(Some(first_sequence));
        jetstream::ensure(&self.client, &wanted, self.config.timeout).await?;
        let head = self.head().await?.ok_or_else(|| BusError::Missing(self.config.stream.clone()))?;
        let first_sequence = first_sequence.max(1);
        if head.last + 1 == first_sequence {
            return Ok(head);
        }
        let text = format!("the new stream ends at {}, wanted {}", head.last, first_sequence - 1);
        Err(BusError::Refused { code: 0, text })
    }
}

/// Bounds what one batch may leave in the subscription's buffer.
const MOST_IN_A_BATCH: u64 = 4_096;

/// The sequence of a message in a batch, and that of the one before it in the same batch.
fn place_in_batch(message: &Message) -> Option<(u64, u64)> {
    let headers = message.headers.as_ref()?;
    // The entry's own headers come first, so what the server adds is last.
    let number = |name| headers.get_last(name)?.as_str().parse::<u64>().ok();
    Some((number("Nats-Sequence")?, number("Nats-Last-Sequence").unwrap_or(0)))
}
