//! What clients are answered: JSON or batches, and errors by Kafka's names.

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;

use super::log::Failure;
use crate::log::batch::{self, Record};
use crate::log::{LogError, TopicPartition};
use crate::replication::AckError;
use crate::storage::replicas::AppendError;
use crate::types::Offset;
use crate::wire::data::{DataFetched, FORMAT_BATCH, FetchedHead, JsonRecord, header};
use crate::wire::{Code, WireError, admin};

/// A message to be published.
pub(super) struct Reply {
    pub(super) to: Subject,
    pub(super) headers: HeaderMap,
    pub(super) payload: Bytes,
}

impl Reply {
    pub(super) fn json(to: Subject, answer: &impl serde::Serialize) -> Self {
        Self { to, headers: HeaderMap::new(), payload: admin::encode(answer).into() }
    }

    /// The answer, or the error in its place.
    pub(super) fn of(to: Subject, answer: Result<impl serde::Serialize, WireError>) -> Self {
        match answer {
            Ok(answer) => Self::json(to, &answer),
            Err(error) => Self::error(to, &error),
        }
    }

    pub(super) fn error(to: Subject, error: &WireError) -> Self {
        let (headers, payload) = error_answer(error);
        Self { to, headers, payload }
    }

    pub(super) fn batches(to: Subject, head: &FetchedHead, batches: Bytes) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::FORMAT, FORMAT_BATCH);
        headers.insert(header::HEAD, admin::encode(head).as_str());
        Self { to, headers, payload: batches }
    }
}

/// The headers and the body that say an error.
pub(in crate::storage) fn error_answer(error: &WireError) -> (HeaderMap, Bytes) {
    let mut headers = HeaderMap::new();
    let code = serde_json::to_value(error.code).ok();
    headers.insert(header::ERROR, code.as_ref().and_then(|code| code.as_str()).unwrap_or("UNKNOWN"));
    (headers, error.encode())
}

/// The records from `from` on as JSON, as many as fit into `room` bytes. `head.next_offset` is put behind the last of them.
pub(super) fn records(
    id: &TopicPartition,
    mut head: FetchedHead,
    batches: &Bytes,
    from: Offset,
    room: usize,
    limit: usize,
) -> Result<String, WireError> {
    /// More than what stands around the records.
    const AROUND: usize = 512;
    let (mut left, mut rest, mut records) = (room.saturating_sub(AROUND), batches.clone(), Vec::new());
    'batches: while !rest.is_empty() {
        let unreadable = |error: batch::BatchError| WireError::new(Code::CorruptMessage, format!("{id}: {error}"));
        let size = batch::BatchHeader::parse(&rest).map_err(unreadable)?.size();
        for record in batch::records(&rest, limit).map_err(unreadable)? {
            let record = record.map_err(unreadable)?;
            if record.offset < from {
                continue;
            }
            let json = to_json(&record);
            let bytes = admin::encode(&json).len() + 1;
            if bytes > left {
                if records.is_empty() {
                    let words = format!(
                        "{id}: the record at offset {} does not fit a message as JSON; ask for it with the header {}: {FORMAT_BATCH}",
                        record.offset,
                        header::FORMAT
                    );
                    return Err(WireError::new(Code::MessageTooLarge, words));
                }
                head.next_offset = record.offset;
                break 'batches;
            }
            left -= bytes;
            records.push(json);
        }
        rest = rest.split_off(size.min(rest.len()));
    }
    let answer = DataFetched { topic: id.topic.to_string(), partition: id.partition, head, records };
    Ok(admin::encode(&answer))
}

fn to_json(record: &Record) -> JsonRecord {
    let headers = record.headers.iter().map(|header| (&header.key[..], header.value.as_deref()));
    JsonRecord::new(record.offset, record.timestamp, record.key.as_deref(), record.value.as_deref(), headers)
}

/// None: the client is to hear nothing, since another node may lead by now.
pub(super) fn append_error(error: &AppendError<Failure>) -> Option<WireError> {
    let code = match error {
        AppendError::NotLeader => return None,
        AppendError::Busy(_) => Code::Busy,
        AppendError::Acks(AckError::NotEnoughReplicas { .. }) => Code::NotEnoughReplicas,
        AppendError::Acks(AckError::NotEnoughReplicasAfterAppend { .. }) => Code::NotEnoughReplicasAfterAppend,
        AppendError::Log(failure) => return Some(log_error(failure.error())),
    };
    Some(WireError::new(code, error.to_string()))
}

pub(super) fn log_error(error: &LogError) -> WireError {
    let code = match error {
        LogError::Io { .. } | LogError::Poisoned { .. } | LogError::Unusable { .. } | LogError::OtherTopic { .. } => {
            Code::KafkaStorageError
        }
        LogError::Corrupt { source: batch::BatchError::TooLarge { .. }, .. } => Code::MessageTooLarge,
        LogError::Damaged { .. } | LogError::Corrupt { .. } => Code::CorruptMessage,
        // The log was cut while it was read: by now it stands still again.
        LogError::Changed { .. } => Code::Busy,
        LogError::OffsetOutOfRange { .. } => Code::OffsetOutOfRange,
        LogError::InvalidBatch { .. } | LogError::NotContiguous { .. } => Code::InvalidRecord,
        LogError::TooLarge { .. } => Code::MessageTooLarge,
        LogError::InvalidTimestamp { .. } => Code::InvalidTimestamp,
        LogError::OutOfOrderSequence { .. } => Code::OutOfOrderSequenceNumber,
        LogError::ProducerFenced { .. } => Code::InvalidProducerEpoch,
    };
    WireError::new(code, error.to_string())
}
