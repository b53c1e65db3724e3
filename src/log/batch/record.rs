//! The records in a batch, decoded one after another as slices of the batch's own bytes.

use std::ops::Range;

use bytes::Bytes;

use super::{BatchError, BatchHeader, Compression, HEADER_BYTES, TimestampType};
use crate::types::Offset;

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    pub offset: Offset,
    /// Milliseconds since 1970, or -1.
    pub timestamp: i64,
    pub key: Option<Bytes>,
    /// None makes it a tombstone: compaction deletes the key.
    pub value: Option<Bytes>,
    pub headers: Vec<Header>,
}

/// A record's header. Keys may repeat, and their order counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// UTF-8 where Kafka's clients wrote it; nothing checks that.
    pub key: Bytes,
    pub value: Option<Bytes>,
}

/// The records of a batch, in order. After an error there are no more.
pub struct Records {
    header: BatchHeader,
    body: Bytes,
    at: usize,
    index: i32,
    failed: bool,
}

/// The records of the batch that `bytes` begin with, whose checksum is not looked at; compressed ones only if they take at
/// most `limit` bytes.
pub fn records(bytes: &Bytes, limit: usize) -> Result<Records, BatchError> {
    let header = BatchHeader::parse(bytes)?;
    let size = header.size();
    if bytes.len() < size {
        return Err(BatchError::Truncated { needed: size, available: bytes.len() });
    }
    let body = bytes.slice(HEADER_BYTES..size);
    let body = match header.attributes.compression()? {
        Compression::None => body,
        // Kafka leaves the body of a batch empty that compaction has emptied.
        _ if body.is_empty() && header.record_count == 0 => body,
        codec => Bytes::from(codec.decompress(&body, limit)?),
    };
    Ok(Records { header, body, at: 0, index: 0, failed: false })
}

/// Checks that every record of a producer's batch can be read and has the offset next in turn. Whether all of them have a key.
/// Nothing is copied.
pub(in crate::log) fn check_records(bytes: &Bytes, limit: usize) -> Result<bool, BatchError> {
    let (mut records, mut have_keys) = (records(bytes, limit)?, true);
    while let Some(raw) = records.next_raw() {
        let (index, raw) = (records.index - 1, raw?);
        if raw.offset_delta != index {
            return Err(BatchError::Record { index, what: "its offset is not the next one" });
        }
        have_keys &= raw.key.is_some();
    }
    Ok(have_keys)
}

impl Iterator for Records {
    type Item = Result<Record, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.next_raw()?.map(|raw| self.record(raw)))
    }
}

impl Records {
    fn next_raw(&mut self) -> Option<Result<Raw, BatchError>> {
        if self.failed {
            return None;
        }
        let index = self.index;
        let result = if index == self.header.record_count {
            if self.at == self.body.len() {
                return None;
            }
            Err("more bytes follow the last record")
        } else {
            self.index += 1;
            self.decode()
        };
        self.failed = result.is_err();
        Some(result.map_err(|what| BatchError::Record { index, what }))
    }

    fn decode(&mut self) -> Result<Raw, &'static str> {
        let mut outer = Cursor { bytes: &self.body, at: self.at };
        let record = outer.sized()?.ok_or("its length is negative")?;
        self.at = record.end;
        let mut inner = Cursor { bytes: &self.body[..record.end], at: record.start };
        inner.take(1)?; // Attributes, of which none are defined.
        let timestamp_delta = inner.varlong()?;
        let offset_delta = inner.varint()?;
        if !(0..=self.header.last_offset_delta).contains(&offset_delta) {
            return Err("its offset is not within the batch");
        }
        let (key, value) = (inner.sized()?, inner.sized()?);
        let header_count = usize::try_from(inner.varint()?).map_err(|_| "its count of headers is negative")?;
        let headers = inner.at..record.end;
        // A header takes two bytes at least: nobody loops for a number that cannot be true.
        if header_count > headers.len() / 2 {
            return Err("it has fewer bytes than headers");
        }
        for _ in 0..header_count {
            inner.sized()?.ok_or("a header has no key")?;
            inner.sized()?;
        }
        if inner.at != record.end {
            return Err("more bytes follow its headers");
        }
        Ok(Raw { timestamp_delta, offset_delta, key, value, header_count, headers })
    }

    fn record(&self, raw: Raw) -> Record {
        let timestamp = match self.header.attributes.timestamp_type() {
            TimestampType::CreateTime => self.header.base_timestamp.wrapping_add(raw.timestamp_delta),
            TimestampType::LogAppendTime => self.header.max_timestamp,
        };
        let slice = |range: Range<usize>| self.body.slice(range);
        let mut cursor = Cursor { bytes: &self.body[..raw.headers.end], at: raw.headers.start };
        let mut headers = Vec::with_capacity(raw.header_count);
        for _ in 0..raw.header_count {
            // `decode` went through them.
            let (Ok(Some(key)), Ok(value)) = (cursor.sized(), cursor.sized()) else { break };
            headers.push(Header { key: slice(key), value: value.map(slice) });
        }
        Record {
            // The header was checked to leave room for the deltas.
            offset: Offset(self.header.base_offset.0 + i64::from(raw.offset_delta)),
            timestamp,
            key: raw.key.map(slice),
            value: raw.value.map(slice),
            headers,
        }
    }
}

/// Where a record's parts lie in the body.
struct Raw {
    timestamp_delta: i64,
    offset_delta: i32,
    key: Option<Range<usize>>,
    value: Option<Range<usize>>,
    header_count: usize,
    headers: Range<usize>,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take(&mut self, len: usize) -> Result<Range<usize>, &'static str> {
        if len > self.bytes.len() - self.at {
            return Err("it is cut off");
        }
        self.at += len;
        Ok(self.at - len..self.at)
    }

    /// Bytes with their length before them; -1 stands for none.
    fn sized(&mut self) -> Result<Option<Range<usize>>, &'static str> {
        match self.varint()? {
            -1 => Ok(None),
            length => self.take(usize::try_from(length).map_err(|_| "a length is negative")?).map(Some),
        }
    }

    fn varint(&mut self) -> Result<i32, &'static str> {
        i32::try_from(self.varlong()?).map_err(|_| "a number exceeds 32 bits")
    }

    /// A zigzag-coded number of at most ten bytes.
    fn varlong(&mut self) -> Result<i64, &'static str> {
        let mut raw = 0u64;
        for (index, byte) in self.bytes[self.at..].iter().take(10).enumerate() {
            raw |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.at += index + 1;
                return Ok((raw >> 1) as i64 ^ -((raw & 1) as i64));
            }
        }
        Err("a number does not end")
    }
}
