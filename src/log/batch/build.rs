//! Batches made from records: a producer's, and what compaction leaves of one.

use std::io;

use bytes::{Bytes, BytesMut};

use super::{Attributes, BatchError, BatchHeader, Compression, HEADER_BYTES, Header, NONE, PREFIX_BYTES, Record};
use crate::types::Offset;

/// What an idempotent producer marks a batch with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProducerStamp {
    pub id: i64,
    pub epoch: i16,
    /// The sequence of the batch's first record.
    pub sequence: i32,
}

impl ProducerStamp {
    /// That of the batch behind one of so many records. Sequences run over from 2^31 - 1 to 0.
    #[must_use]
    pub fn after(self, records: i32) -> Self {
        Self { sequence: super::add_to_sequence(self.sequence, records), ..self }
    }
}

/// Collects records into a batch whose offsets begin at 0, as producers send it. Records are encoded where they stay: a batch
/// that is not compressed is not copied again.
#[derive(Debug)]
pub struct BatchBuilder {
    compression: Compression,
    producer: Option<ProducerStamp>,
    /// The header's room, then the records.
    bytes: Vec<u8>,
    base_timestamp: i64,
    max_timestamp: i64,
    count: i32,
}

impl BatchBuilder {
    pub fn new(compression: Compression) -> Self {
        Self::with_capacity(compression, HEADER_BYTES)
    }

    /// With room for a batch of so many bytes, header included, before compression.
    pub fn with_capacity(compression: Compression, bytes: usize) -> Self {
        let mut buffer = Vec::with_capacity(bytes.max(HEADER_BYTES));
        buffer.resize(HEADER_BYTES, 0);
        Self { compression, producer: None, bytes: buffer, base_timestamp: NONE, max_timestamp: NONE, count: 0 }
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
        put_record(&mut self.bytes, timestamp.wrapping_sub(self.base_timestamp), self.count, key, value, headers);
        self.count += 1;
        self
    }

    pub fn record_count(&self) -> i32 {
        self.count
    }

    /// How many bytes the batch has by now, before compression.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// At least as many bytes as a record takes in any batch.
    pub fn record_size_bound(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[Header]) -> usize {
        /// The record's length, its attributes and deltas, the lengths of key and value, the number of headers.
        const AROUND: usize = 5 + 1 + 10 + 5 + 5 + 5 + 5;
        let of = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        let header = |header: &Header| 10 + header.key.len() + of(header.value.as_deref());
        AROUND + of(key) + of(value) + headers.iter().map(header).sum::<usize>()
    }

    /// The batch. An empty builder makes none that a leader takes.
    ///
    /// # Errors
    /// Where the batch would exceed Kafka's 2 GiB, or a codec fails.
    pub fn build(self) -> io::Result<Bytes> {
        let producer = self.producer;
        Ok(self.pack()?.seal(producer))
    }

    /// The batch compressed, which takes its time, but not stamped, so that it can be done before its turn comes.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn pack(self) -> io::Result<PackedBatch> {
        let Self { compression, producer: _, mut bytes, base_timestamp, max_timestamp, count } = self;
        if compression != Compression::None && count > 0 {
            bytes = compression.compress_behind(HEADER_BYTES, &bytes[HEADER_BYTES..])?;
        }
        let header = BatchHeader {
            base_offset: Offset::ZERO,
            batch_length: batch_length(bytes.len())?,
            leader_epoch: -1,
            crc: 0,
            attributes: Attributes::default().with_compression(compression),
            last_offset_delta: (count - 1).max(0),
            base_timestamp,
            max_timestamp,
            producer_id: NONE,
            producer_epoch: -1,
            base_sequence: -1,
            record_count: count,
        };
        Ok(PackedBatch { header, bytes })
    }
}

/// A batch that lacks its producer's stamp and its checksum.
#[derive(Debug)]
pub struct PackedBatch {
    header: BatchHeader,
    /// The header's room, then the body.
    bytes: Vec<u8>,
}

impl PackedBatch {
    /// In bytes, as it will be sent.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The batch, of this producer or of none. Nothing is copied.
    pub fn seal(self, producer: Option<ProducerStamp>) -> Bytes {
        let Self { header, mut bytes } = self;
        write_header(header, producer, &mut bytes);
        Bytes::from(bytes)
    }
}

/// A batch as another producer would have sent it; copied where somebody else still holds it.
///
/// # Errors
/// Where it is no batch.
pub fn restamp(batch: Bytes, producer: Option<ProducerStamp>) -> Result<Bytes, BatchError> {
    let header = BatchHeader::verify(&batch)?;
    let mut bytes = batch.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    write_header(header, producer, &mut bytes);
    Ok(bytes.freeze())
}

fn write_header(mut header: BatchHeader, producer: Option<ProducerStamp>, bytes: &mut [u8]) {
    let producer = producer.unwrap_or(ProducerStamp { id: NONE, epoch: -1, sequence: -1 });
    (header.producer_id, header.producer_epoch, header.base_sequence) =
        (producer.id, producer.epoch, producer.sequence);
    header.seal(&bytes[HEADER_BYTES..]);
    bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
}

/// What the header says of a batch of so many bytes.
fn batch_length(size: usize) -> io::Result<i32> {
    i32::try_from(size - PREFIX_BYTES).map_err(|_| io::Error::other("a batch has at most 2 GiB"))
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
    let mut bytes = vec![0; HEADER_BYTES];
    for record in kept {
        let delta = i32::try_from(record.offset.0 - header.base_offset.0).map_err(io::Error::other)?;
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        let timestamp_delta = record.timestamp.wrapping_sub(header.base_timestamp);
        put_record(&mut bytes, timestamp_delta, delta, key, value, &record.headers);
    }
    if compression != Compression::None && !kept.is_empty() {
        bytes = compression.compress_behind(HEADER_BYTES, &bytes[HEADER_BYTES..])?;
    }
    header.batch_length = batch_length(bytes.len())?;
    header.seal(&bytes[HEADER_BYTES..]);
    bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
    Ok(Bytes::from(bytes))
}

fn put_record(
    out: &mut Vec<u8>,
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
    out.push(0);
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

fn put_nullable(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
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

fn put_varlong(out: &mut Vec<u8>, number: i64) {
    let mut raw = zigzag(number);
    while raw >= 0x80 {
        out.push(raw as u8 | 0x80);
        raw >>= 7;
    }
    out.push(raw as u8);
}
