//! Batches made from records: a producer's, and what compaction leaves of one.

use std::io;

use bytes::{Bytes, BytesMut};

use super::{Attributes, BatchHeader, Compression, HEADER_BYTES, Header, NONE, PREFIX_BYTES, Record};
use crate::types::Offset;

/// What an idempotent producer marks a batch with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProducerStamp {
    pub id: i64,
    pub epoch: i16,
    /// The sequence of the batch's first record.
    pub sequence: i32,
}

/// Collects records into a batch whose offsets begin at 0, as producers send it.
#[derive(Debug)]
pub struct BatchBuilder {
    compression: Compression,
    producer: Option<ProducerStamp>,
    records: BytesMut,
    base_timestamp: i64,
    max_timestamp: i64,
    count: i32,
}

impl BatchBuilder {
    pub fn new(compression: Compression) -> Self {
        let records = BytesMut::new();
        Self { compression, producer: None, records, base_timestamp: NONE, max_timestamp: NONE, count: 0 }
    }

    pub fn producer(mut self, producer: ProducerStamp) -> Self {
        self.producer = Some(producer);
        self
    }

    /// Adds a record. `timestamp` is in milliseconds since 1970; no value makes it a tombstone.
    pub fn push(&mut self, timestamp: i64, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[Header]) -> &mut Self {
        if self.count == 0 {
            self.base_timestamp = timestamp;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp);
        put_record(&mut self.records, timestamp.wrapping_sub(self.base_timestamp), self.count, key, value, headers);
        self.count += 1;
        self
    }

    pub fn record_count(&self) -> i32 {
        self.count
    }

    /// How many bytes the batch has by now, before compression.
    pub fn size(&self) -> usize {
        HEADER_BYTES + self.records.len()
    }

    /// The batch. An empty builder makes none that a leader takes.
    ///
    /// # Errors
    /// Where the batch would exceed Kafka's 2 GiB, or a codec fails.
    pub fn build(self) -> io::Result<Bytes> {
        let producer = self.producer.unwrap_or(ProducerStamp { id: NONE, epoch: -1, sequence: -1 });
        let header = BatchHeader {
            base_offset: Offset::ZERO,
            batch_length: 0,
            leader_epoch: -1,
            crc: 0,
            attributes: Attributes::default().with_compression(self.compression),
            last_offset_delta: (self.count - 1).max(0),
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id: producer.id,
            producer_epoch: producer.epoch,
            base_sequence: producer.sequence,
            record_count: self.count,
        };
        assemble(header, self.compression, &self.records)
    }
}

/// What is left of a batch when only `kept` of its records stay: offsets, producer and last offset stay as they were. With a
/// horizon the tombstones in it may go after that time, in milliseconds since 1970.
pub(in crate::log) fn rebuild(header: &BatchHeader, kept: &[Record], horizon_ms: Option<i64>) -> io::Result<Bytes> {
    let mut header = header.clone();
    let compression = header.attributes.compression().map_err(io::Error::other)?;
    if let Some(horizon) = horizon_ms {
        header.attributes = header.attributes.with_delete_horizon();
        header.base_timestamp = horizon;
    }
    if kept.is_empty() {
        // As Kafka writes a header that stays alone: without compression and base timestamp, its largest timestamp as it was.
        header.attributes = header.attributes.emptied();
        header.base_timestamp = NONE;
    } else if header.attributes.timestamp_type() == super::TimestampType::CreateTime {
        header.max_timestamp = kept.iter().map(|record| record.timestamp).max().unwrap_or(NONE);
    }
    header.record_count = i32::try_from(kept.len()).map_err(io::Error::other)?;
    let mut records = BytesMut::new();
    for record in kept {
        let delta = i32::try_from(record.offset.0 - header.base_offset.0).map_err(io::Error::other)?;
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        let timestamp_delta = record.timestamp.wrapping_sub(header.base_timestamp);
        put_record(&mut records, timestamp_delta, delta, key, value, &record.headers);
    }
    assemble(header, compression, &records)
}

fn assemble(mut header: BatchHeader, compression: Compression, records: &[u8]) -> io::Result<Bytes> {
    let compressed;
    let body = match compression {
        Compression::None => records,
        _ if records.is_empty() => records,
        codec => {
            compressed = codec.compress(records)?;
            &compressed
        }
    };
    let length = HEADER_BYTES - PREFIX_BYTES + body.len();
    header.batch_length = i32::try_from(length).map_err(|_| io::Error::other("a batch has at most 2 GiB"))?;
    header.seal(body);
    let mut bytes = BytesMut::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&header.encode());
    bytes.extend_from_slice(body);
    Ok(bytes.freeze())
}

fn put_record(
    out: &mut BytesMut,
    timestamp_delta: i64,
    offset_delta: i32,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[Header],
) {
    let nullable_size = |bytes: Option<&[u8]>| match bytes {
        None => 1,
        Some(bytes) => varlong_size(bytes.len() as i64) + bytes.len(),
    };
    let header_size = |header: &Header| nullable_size(Some(&header.key)) + nullable_size(header.value.as_deref());
    let size = 1
        + varlong_size(timestamp_delta)
        + varlong_size(i64::from(offset_delta))
        + nullable_size(key)
        + nullable_size(value)
        + varlong_size(headers.len() as i64)
        + headers.iter().map(header_size).sum::<usize>();
    out.reserve(size + 5);
    put_varlong(out, size as i64);
    out.extend_from_slice(&[0]);
    put_varlong(out, timestamp_delta);
    put_varlong(out, i64::from(offset_delta));
    put_nullable(out, key);
    put_nullable(out, value);
    put_varlong(out, headers.len() as i64);
    for header in headers {
        put_nullable(out, Some(&header.key));
        put_nullable(out, header.value.as_deref());
    }
}

fn put_nullable(out: &mut BytesMut, bytes: Option<&[u8]>) {
    match bytes {
        None => put_varlong(out, -1),
        Some(bytes) => {
            put_varlong(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}

fn zigzag(number: i64) -> u64 {
    (number << 1 ^ number >> 63) as u64
}

fn varlong_size(number: i64) -> usize {
    (64 - (zigzag(number) | 1).leading_zeros() as usize).div_ceil(7)
}

fn put_varlong(out: &mut BytesMut, number: i64) {
    let mut raw = zigzag(number);
    while raw >= 0x80 {
        out.extend_from_slice(&[raw as u8 | 0x80]);
        raw >>= 7;
    }
    out.extend_from_slice(&[raw as u8]);
}
