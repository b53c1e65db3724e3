//! A client's message, read: what it asks of a partition's leader.

use std::time::Duration;

use async_nats::{HeaderMap, Message};
use bytes::Bytes;

use crate::log::batch::{BatchBuilder, Compression, Header};
use crate::types::{TopicId, WallTime};
use crate::wire::data::{
    Acks, Commit, CommittedRequest, DataFetch, DeleteRecords, FORMAT_BATCH, OffsetsRequest, header, op,
};
use crate::wire::{Code, WireError, admin};

/// Kafka's `request.timeout.ms`.
const PRODUCE_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest that anything may wait at a leader.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// How records travel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::storage) enum Format {
    Json,
    Batch,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::storage) enum Request {
    Produce { batch: Bytes, acks: Acks, timeout: Duration, topic_id: Option<TopicId> },
    Fetch { fetch: DataFetch, format: Format },
    Offsets(OffsetsRequest),
    Delete(DeleteRecords),
    Commit(Commit),
    Committed(CommittedRequest),
}

impl Request {
    /// `op` is what the subject names. `now` becomes the timestamp of a bare record without one.
    pub(super) fn read(op: &str, message: &Message, now: WallTime) -> Result<Self, WireError> {
        let headers = message.headers.as_ref();
        check_names(headers)?;
        let format = format(headers)?;
        match op {
            op::PRODUCE => {
                let batch = match format {
                    Format::Batch => message.payload.clone(),
                    Format::Json => bare(message, now)?,
                };
                let acks = header_of(headers, header::ACKS).map_or(Ok(Acks::default()), Acks::parse)?;
                let timeout = produce_timeout(headers)?;
                let topic_id = match header_of(headers, header::TOPIC_ID) {
                    None => None,
                    Some(text) => Some(text.parse().map_err(|_| invalid(header::TOPIC_ID, "a UUID", text))?),
                };
                Ok(Self::Produce { batch, acks, timeout, topic_id })
            }
            op::FETCH => Ok(Self::Fetch { fetch: admin::decode(&message.payload)?, format }),
            op::OFFSETS => Ok(Self::Offsets(admin::decode(&message.payload)?)),
            op::DELETE => Ok(Self::Delete(admin::decode(&message.payload)?)),
            op::COMMIT => Ok(Self::Commit(admin::decode(&message.payload)?)),
            op::COMMITTED => Ok(Self::Committed(admin::decode(&message.payload)?)),
            other => {
                let shown: String = other.chars().take(40).collect();
                let all = [op::PRODUCE, op::FETCH, op::OFFSETS, op::DELETE, op::COMMIT, op::COMMITTED].join(", ");
                let words = format!("there is no operation {shown:?} on a partition; there are {all}");
                Err(WireError::new(Code::InvalidRequest, words))
            }
        }
    }
}

fn format(headers: Option<&HeaderMap>) -> Result<Format, WireError> {
    match header_of(headers, header::FORMAT) {
        None => Ok(Format::Json),
        Some(FORMAT_BATCH) => Ok(Format::Batch),
        Some(other) => {
            let words = format!("{FORMAT_BATCH:?}, or absent for a bare record and for JSON");
            Err(invalid(header::FORMAT, &words, other))
        }
    }
}

/// The message's payload as the value of one record.
fn bare(message: &Message, now: WallTime) -> Result<Bytes, WireError> {
    let headers = message.headers.as_ref();
    let timestamp = match header_of(headers, header::TIMESTAMP) {
        None => i64::try_from(now.0).unwrap_or(i64::MAX),
        Some(text) => number(header::TIMESTAMP, text)?,
    };
    let of_record = headers.into_iter().flat_map(HeaderMap::iter).filter(|(name, _)| is_of_record(name.as_ref()));
    let of_record = of_record.flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        let header = move |value: &str| Header {
            key: Bytes::copy_from_slice(name.as_bytes()),
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
        };
        values.iter().map(move |value| header(value.as_str()))
    });
    let mut of_record: Vec<Header> = of_record.collect();
    // The crate's map forgets the order in which different names came.
    of_record.sort_by(|a, b| a.key.cmp(&b.key));
    let key = header_of(headers, header::KEY).map(str::as_bytes);
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(timestamp, key, Some(&message.payload), &of_record);
    builder.build().map_err(|error| WireError::new(Code::MessageTooLarge, error.to_string()))
}

fn is_of_record(name: &str) -> bool {
    !begins(name, OURS) && !begins(name, "Nats-")
}

/// What the names of our own headers begin with.
const OURS: &str = "Dmq-";

fn begins(name: &str, prefix: &str) -> bool {
    name.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix))
}

/// A header that is nearly one of ours would be lost in silence, and with it a record's key.
fn check_names(headers: Option<&HeaderMap>) -> Result<(), WireError> {
    let names = headers.into_iter().flat_map(HeaderMap::iter).map(|(name, _)| name.as_ref());
    let is_unknown = |name: &&str| begins(name, OURS) && !header::OF_REQUESTS.contains(name);
    match names.into_iter().find(is_unknown) {
        Some(name) => {
            let (shown, all): (String, _) = (name.chars().take(40).collect(), header::OF_REQUESTS.join(", "));
            let words = format!("there is no header {shown:?}; there are {all}, written exactly so");
            Err(WireError::new(Code::InvalidRequest, words))
        }
        None => Ok(()),
    }
}

pub(in crate::storage) fn header_of<'a>(headers: Option<&'a HeaderMap>, name: &str) -> Option<&'a str> {
    headers?.get(name).map(|value| value.as_str())
}

/// How long the leader may take to answer.
pub(in crate::storage) fn produce_timeout(headers: Option<&HeaderMap>) -> Result<Duration, WireError> {
    match header_of(headers, header::TIMEOUT_MS) {
        None => Ok(PRODUCE_TIMEOUT),
        Some(text) => Ok(Duration::from_millis(number(header::TIMEOUT_MS, text)?).min(MAX_WAIT)),
    }
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, WireError> {
    text.parse().map_err(|_| invalid(name, "a whole number of milliseconds", text))
}

fn invalid(name: &str, wanted: &str, found: &str) -> WireError {
    let shown: String = found.chars().take(40).collect();
    WireError::new(Code::InvalidRequest, format!("the header {name} is {wanted}, not {shown:?}"))
}
