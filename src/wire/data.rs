//! What clients ask of partitions' leaders, on `dmq.data.<op>.<partition>.<topic>`.
//!
//! Requests and answers are JSON, so that a person with the `nats` CLI can write and read them; records are JSON too, unless the
//! header [`header::FORMAT`] asks for Kafka's record batches. Errors are an [`ErrorBody`](super::ErrorBody), with the code in the
//! header [`header::ERROR`] as well. An unknown field in a request is refused, one in an answer is passed over.

use data_encoding::BASE64;
use serde::{Deserialize, Deserializer, Serialize};

use super::{Code, WireError};
use crate::types::{LeaderEpoch, Offset, PartitionId, StorageId, TopicId};

/// The operations, as the second token of a data subject.
pub mod op {
    /// Appends one batch or one record. With the target `auto`, any storage node picks the partition.
    pub const PRODUCE: &str = "produce";
    /// Reads records up to the high watermark.
    pub const FETCH: &str = "fetch";
    /// Finds an offset: see [`super::OffsetsRequest`].
    pub const OFFSETS: &str = "offsets";
    /// Deletes records before an offset (Kafka's DeleteRecords).
    pub const DELETE: &str = "delete";
    /// Commits a group's offsets, at the leader of a partition of [`OFFSETS_TOPIC`](super::OFFSETS_TOPIC).
    pub const COMMIT: &str = "commit";
    /// Reads what a group committed.
    pub const COMMITTED: &str = "committed";
    /// Nothing that is asked: whoever begins to lead a partition says so here, see [`super::Leads`].
    pub const LEADS: &str = "leads";
}

/// NATS headers. Whatever else a bare record's message carries becomes a header of the record, unless its name begins with `Dmq-`
/// or `Nats-`.
pub mod header {
    /// [`super::FORMAT_BATCH`], or absent: a bare record to produce, JSON to fetch.
    pub const FORMAT: &str = "Dmq-Format";
    /// The key of a bare record.
    pub const KEY: &str = "Dmq-Key";
    /// The timestamp of a bare record, in milliseconds since 1970; absent: the leader's clock.
    pub const TIMESTAMP: &str = "Dmq-Timestamp";
    /// `0`, `1` or `all` (absent: `all`), see [`super::Acks`].
    pub const ACKS: &str = "Dmq-Acks";
    /// How long the leader waits for in-sync replicas before it answers REQUEST_TIMED_OUT, in milliseconds (Kafka's
    /// `request.timeout.ms`; absent: 30,000).
    pub const TIMEOUT_MS: &str = "Dmq-Timeout-Ms";
    /// The topic's id as the client knows it: one that was deleted and made anew answers UNKNOWN_TOPIC_ID.
    pub const TOPIC_ID: &str = "Dmq-Topic-Id";
    /// What a request may carry. No other name begins with `Dmq-`, so that a mistyped one is not taken for nothing.
    pub const OF_REQUESTS: [&str; 6] = [FORMAT, KEY, TIMESTAMP, ACKS, TIMEOUT_MS, TOPIC_ID];
    /// In an error's answer: its code.
    pub const ERROR: &str = "Dmq-Error";
    /// In an answer of batches: the [`super::FetchedHead`], as JSON.
    pub const HEAD: &str = "Dmq-Head";
}

/// The value of [`header::FORMAT`] for Kafka's record batches (v2).
pub const FORMAT_BATCH: &str = "batch";

pub use crate::types::OFFSETS_TOPIC;

/// The most answers that one fetch may ask for.
pub const MAX_ANSWERS: u32 = 32;

/// When a produce request is answered (Kafka's `acks`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Acks {
    /// Never: nobody knows whether it was stored.
    None,
    /// Once it is on the leader's disk.
    Leader,
    /// Once it is on the disk of every in-sync replica.
    #[default]
    All,
}

impl Acks {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "0",
            Self::Leader => "1",
            Self::All => "all",
        }
    }

    /// Kafka's words; `-1` is `all`.
    pub fn parse(text: &str) -> Result<Self, WireError> {
        match text {
            "0" => Ok(Self::None),
            "1" => Ok(Self::Leader),
            "all" | "-1" => Ok(Self::All),
            other => {
                let shown: String = other.chars().take(20).collect();
                let words = format!("{} is 0, 1 or all, not {shown:?}", header::ACKS);
                Err(WireError::new(Code::InvalidRequest, words))
            }
        }
    }
}

/// Said on [`op::LEADS`] by a node that begins to lead a partition, once it listens to the partition's clients. What they asked
/// before may have gone to somebody who answers no more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leads {
    pub storage: StorageId,
    pub leader_epoch: LeaderEpoch,
    pub topic_id: TopicId,
}

/// The answer to a produce request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Produced {
    pub topic: String,
    pub partition: PartitionId,
    /// That of the batch's first record. A retried batch gets the original's.
    pub offset: Offset,
    pub leader_epoch: LeaderEpoch,
    pub log_start_offset: Offset,
}

/// A fetch request. An empty payload asks for the log's beginning.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DataFetch {
    /// Where to begin; absent: at the log's start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<Offset>,
    /// The most bytes of batches in the answer, except that one batch is always sent whole; absent: what one message holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u32>,
    /// Answer once there are so many bytes (Kafka's `fetch.min.bytes`); absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_bytes: Option<u32>,
    /// Answer after so long in any case, in milliseconds (Kafka's `fetch.max.wait.ms`); absent: at once; at most 30,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_wait_ms: Option<u32>,
    /// The leader epoch that the client knows of: an older leader answers UNKNOWN_LEADER_EPOCH, a newer one
    /// FENCED_LEADER_EPOCH.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader_epoch: Option<LeaderEpoch>,
    /// The topic's id as the client knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<TopicId>,
    /// How many answers the client takes, at most [`MAX_ANSWERS`]; absent: 1. Each begins where the one before ended, and comes at
    /// once, as long as there is something below the high watermark. Of batches alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<u32>,
}

/// What an answer of records says of the partition, beside them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FetchedHead {
    /// Where the answer begins: what was asked for, or where the answer before ended.
    pub offset: Offset,
    pub high_watermark: Offset,
    pub log_start_offset: Offset,
    /// Where to go on.
    pub next_offset: Offset,
    pub leader_epoch: LeaderEpoch,
    /// Another answer to the same fetch follows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

/// The answer to a fetch request in JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DataFetched {
    pub topic: String,
    pub partition: PartitionId,
    #[serde(flatten)]
    pub head: FetchedHead,
    pub records: Vec<JsonRecord>,
}

/// A record as JSON: text where it is UTF-8, base64 where it is not. A record without a key has neither `key` nor
/// `keyBase64`; a tombstone has `"value": null`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JsonRecord {
    pub offset: Offset,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    /// In order; names may repeat.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<JsonHeader>,
    #[serde(flatten)]
    pub value: JsonValue,
}

/// One of `value` and `valueBase64`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum JsonValue {
    #[serde(rename = "value")]
    Text(Option<String>),
    #[serde(rename = "valueBase64")]
    Base64(String),
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JsonHeader {
    pub name: String,
    #[serde(flatten)]
    pub value: JsonValue,
}

impl JsonValue {
    pub fn new(bytes: Option<&[u8]>) -> Self {
        match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
            None => Self::Text(None),
            Some((_, Ok(text))) => Self::Text(Some(text.to_owned())),
            Some((bytes, Err(_))) => Self::Base64(BASE64.encode(bytes)),
        }
    }
}

impl JsonRecord {
    /// `headers`: name and value, in order. A name that is no UTF-8 loses what is none.
    pub fn new<'a>(
        offset: Offset,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl IntoIterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) -> Self {
        let (key, key_base64) = match JsonValue::new(key) {
            JsonValue::Text(key) => (key, None),
            JsonValue::Base64(key) => (None, Some(key)),
        };
        let header = |(name, value)| JsonHeader {
            name: String::from_utf8_lossy(name).into_owned(),
            value: JsonValue::new(value),
        };
        let headers = headers.into_iter().map(header).collect();
        Self { offset, timestamp, key, key_base64, headers, value: JsonValue::new(value) }
    }
}

/// Asks for an offset. An empty payload asks for [`PartitionOffsets`] alone.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OffsetsRequest {
    /// The first record with at least this timestamp, in milliseconds since 1970. Kafka's -1 is the latest offset, -2 the
    /// earliest one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<i64>,
    /// Where this leader epoch ends (Kafka's OffsetForLeaderEpoch): the one asked for or the last before it, and nothing where it
    /// has not begun yet. Not together with a timestamp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader_epoch: Option<LeaderEpoch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<TopicId>,
}

/// The answer to an [`OffsetsRequest`]: where the partition's log stands, and what was found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartitionOffsets {
    pub topic: String,
    pub topic_id: TopicId,
    pub partition: PartitionId,
    pub leader_epoch: LeaderEpoch,
    /// Kafka's earliest offset.
    pub log_start_offset: Offset,
    /// Kafka's latest offset, up to which consumers read.
    pub high_watermark: Offset,
    pub log_end_offset: Offset,
    /// Of the leader's log.
    pub size_bytes: u64,
    /// What was asked for; absent where there is none, or nothing was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<FoundOffset>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FoundOffset {
    pub offset: Offset,
    /// That of the record, where one was found by its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader_epoch: Option<LeaderEpoch>,
}

/// Deletes all records before an offset, at most up to the high watermark, which -1 stands for. Topics that are only compacted
/// answer POLICY_VIOLATION.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeleteRecords {
    pub before: Offset,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<TopicId>,
}

/// The longest name of a group, in bytes.
pub const GROUP_MAX_BYTES: usize = 255;

/// Commits offsets of a group. The whole request takes effect, or nothing of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Commit {
    pub group: String,
    pub offsets: Vec<CommitOffset>,
}

/// How far a group has read a partition.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CommitOffset {
    pub topic: String,
    pub partition: PartitionId,
    /// The next one to read. Null deletes what was committed; it cannot be left out.
    #[serde(deserialize_with = "nullable")]
    pub offset: Option<Offset>,
    /// The leader epoch of the last record that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader_epoch: Option<LeaderEpoch>,
    /// The topic's id as the consumer knows it: what was read of a topic that has the name since is not what was read before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<TopicId>,
    /// Anything that the consumer wants to keep with it, at most 4,096 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
}

/// A field that may be null and has to be there.
fn nullable<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(deserializer)
}

/// Asks for a group's offsets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CommittedRequest {
    pub group: String,
    /// Absent: of all topics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
}

/// The answer to [`Commit`] (what was committed) and to [`CommittedRequest`] (all that is).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Committed {
    pub group: String,
    pub offsets: Vec<CommitOffset>,
}

#[cfg(test)]
mod tests {
    use super::super::admin;
    use super::*;

    #[test]
    fn records_are_text_where_they_can_be() {
        let headers = [(&b"trace"[..], Some(&b"7"[..])), (b"raw", Some(b"\xff")), (b"none", None)];
        let record = JsonRecord::new(Offset(4), 1_700, Some(b"\xfe\xff"), Some("Grüße".as_bytes()), headers);
        let json = admin::encode(&record);
        assert_eq!(
            json,
            r#"{"offset":4,"timestamp":1700,"keyBase64":"/v8=","headers":[{"name":"trace","value":"7"},{"name":"raw","valueBase64":"/w=="},{"name":"none","value":null}],"value":"Grüße"}"#
        );
        assert_eq!(serde_json::from_str::<JsonRecord>(&json).unwrap(), record);
        let tombstone = JsonRecord::new(Offset(5), 0, Some(b"k"), None, []);
        assert_eq!(admin::encode(&tombstone), r#"{"offset":5,"timestamp":0,"key":"k","value":null}"#);
    }

    #[test]
    fn a_person_may_leave_everything_out_and_is_told_of_a_typing_error() {
        assert_eq!(admin::decode::<DataFetch>(b""), Ok(DataFetch::default()));
        let fetch = admin::decode::<DataFetch>(br#"{"offset": 0}"#).unwrap();
        assert_eq!(fetch.offset, Some(Offset(0)));
        let error = admin::decode::<DataFetch>(br#"{"ofset": 0}"#).unwrap_err();
        assert!(error.message.contains("ofset") && error.message.contains("offset"), "{error}");
        assert_eq!(Acks::parse("-1"), Ok(Acks::All));
        assert_eq!(Acks::parse("2").unwrap_err().message, "Dmq-Acks is 0, 1 or all, not \"2\"");
    }

    #[test]
    fn the_head_of_an_answer_lies_flat_beside_the_records() {
        let head = FetchedHead {
            offset: Offset(1),
            high_watermark: Offset(3),
            log_start_offset: Offset(0),
            next_offset: Offset(3),
            leader_epoch: LeaderEpoch(1),
            more: false,
        };
        let answer = DataFetched { topic: "orders".into(), partition: 0, head, records: Vec::new() };
        let json = admin::encode(&answer);
        assert_eq!(
            json,
            r#"{"topic":"orders","partition":0,"offset":1,"highWatermark":3,"logStartOffset":0,"nextOffset":3,"leaderEpoch":1,"records":[]}"#
        );
        assert_eq!(serde_json::from_str::<DataFetched>(&json).unwrap(), answer);
    }
}
