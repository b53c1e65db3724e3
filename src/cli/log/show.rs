//! Batches and records as lines and as JSON.

use bytes::Bytes;
use data_encoding::BASE64;
use serde_json::{Map, Value, json};

use super::dump::wall_time;
use crate::log::batch::{BatchError, BatchHeader, Record, TimestampType};

pub const HEADING: &str =
    "  POSITION      SIZE  OFFSETS                RECORDS  EPOCH  CODEC   LAST TIMESTAMP            PRODUCER";

pub fn time(timestamp: i64) -> String {
    wall_time(timestamp).map_or_else(|| "-".into(), |time| time.to_string())
}

pub fn batch_line(position: u64, header: &BatchHeader) -> String {
    let offsets = format!("{}..{}", header.base_offset, header.last_offset());
    let mut producer = match header.has_producer() {
        false => String::from("-"),
        true => format!(
            "{} epoch {} sequence {}..{}",
            header.producer_id,
            header.producer_epoch,
            header.base_sequence,
            header.last_sequence()
        ),
    };
    if header.attributes.is_transactional() {
        producer.push_str(" transactional");
    }
    if header.attributes.is_control() {
        producer.push_str(" control");
    }
    if let Some(horizon) = header.delete_horizon_ms() {
        producer.push_str(&format!(" tombstones until {}", time(horizon)));
    }
    format!(
        "{position:>10}  {size:>8}  {offsets:<21}  {count:>7}  {epoch:>5}  {codec:<6}  {time:<24}  {producer}",
        size = header.size(),
        count = header.record_count,
        epoch = header.leader_epoch,
        codec = codec(header),
        time = time(header.max_timestamp),
    )
}

fn codec(header: &BatchHeader) -> String {
    header.attributes.compression().map_or_else(|_| "?".into(), |codec| codec.to_string())
}

pub fn record_line(record: &Record) -> String {
    let show = |bytes: &Option<Bytes>| match bytes {
        None => "-".into(),
        Some(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => format!("{text:?}"),
            Err(_) => format!("base64:{}", BASE64.encode(bytes)),
        },
    };
    let headers = record.headers.iter().map(|header| {
        let key = String::from_utf8_lossy(&header.key);
        format!("  {key}={}", show(&header.value))
    });
    let (key, value) = (show(&record.key), show(&record.value));
    let time = time(record.timestamp);
    format!("  @{}  {time}  {key}  {value}{}", record.offset, headers.collect::<String>())
}

/// A batch as JSON, and whether its records could be read, where they were.
pub fn batch_object(
    position: u64,
    header: &BatchHeader,
    records: Option<Result<Vec<Record>, BatchError>>,
) -> (Value, bool) {
    let mut object = json!({
        "position": position,
        "size": header.size(),
        "baseOffset": header.base_offset,
        "lastOffset": header.last_offset(),
        "count": header.record_count,
        "leaderEpoch": header.leader_epoch,
        "compression": codec(header),
        "timestampType": match header.attributes.timestamp_type() {
            TimestampType::CreateTime => "CreateTime",
            TimestampType::LogAppendTime => "LogAppendTime",
        },
        "baseTimestamp": header.base_timestamp,
        "maxTimestamp": header.max_timestamp,
        "producerId": header.producer_id,
        "producerEpoch": header.producer_epoch,
        "baseSequence": header.base_sequence,
        "isTransactional": header.attributes.is_transactional(),
        "isControl": header.attributes.is_control(),
        "deleteHorizon": header.delete_horizon_ms(),
        "crc": header.crc,
    });
    let is_sound = !matches!(records, Some(Err(_)));
    match records {
        None => {}
        Some(Ok(records)) => object["records"] = records.iter().map(record_object).collect(),
        Some(Err(error)) => object["damaged"] = error.to_string().into(),
    }
    (object, is_sound)
}

fn record_object(record: &Record) -> Value {
    let mut object = Map::new();
    object.insert("offset".into(), record.offset.0.into());
    object.insert("timestamp".into(), record.timestamp.into());
    put(&mut object, "key", record.key.as_ref());
    let headers = record.headers.iter().map(|header| {
        let mut object = Map::new();
        put(&mut object, "key", Some(&header.key));
        put(&mut object, "value", header.value.as_ref());
        Value::Object(object)
    });
    object.insert("headers".into(), headers.collect());
    put(&mut object, "value", record.value.as_ref());
    Value::Object(object)
}

/// A plain string where it is UTF-8, base64 under a name that says so where it isn't.
fn put(object: &mut Map<String, Value>, name: &str, bytes: Option<&Bytes>) {
    match bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| bytes)) {
        None => object.insert(name.into(), Value::Null),
        Some(Ok(text)) => object.insert(name.into(), text.into()),
        Some(Err(bytes)) => object.insert(format!("{name}Base64"), BASE64.encode(bytes).into()),
    };
}
