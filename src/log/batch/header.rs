//! The 61 bytes that every batch begins with. They are read, checked and stamped without looking at the records.

use super::{BatchError, Compression};
use crate::types::{LeaderEpoch, Offset};

/// The header's length in bytes; what follows are the records.
pub const HEADER_BYTES: usize = 61;
/// The bytes before those that the batch's own length counts: base offset and length.
pub const PREFIX_BYTES: usize = 12;
/// Where the bytes begin that the checksum covers.
const CRC_FROM: usize = 21;
const MAGIC: i8 = 2;

const COMPRESSION_BITS: i16 = 0x07;
const TIMESTAMP_TYPE_BIT: i16 = 0x08;
const TRANSACTIONAL_BIT: i16 = 0x10;
const CONTROL_BIT: i16 = 0x20;
const DELETE_HORIZON_BIT: i16 = 0x40;

/// Whose clock a record's timestamp is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TimestampType {
    #[default]
    CreateTime,
    LogAppendTime,
}

/// A batch's 16 attribute bits.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Attributes(pub i16);

impl Attributes {
    pub fn compression(self) -> Result<Compression, BatchError> {
        Compression::from_bits((self.0 & COMPRESSION_BITS) as u8)
    }

    pub fn timestamp_type(self) -> TimestampType {
        match self.0 & TIMESTAMP_TYPE_BIT {
            0 => TimestampType::CreateTime,
            _ => TimestampType::LogAppendTime,
        }
    }

    pub fn is_transactional(self) -> bool {
        self.0 & TRANSACTIONAL_BIT != 0
    }

    /// Whether it holds control records (the ends of transactions) rather than a producer's.
    pub fn is_control(self) -> bool {
        self.0 & CONTROL_BIT != 0
    }

    /// Whether the base timestamp is the time after which compaction may drop the batch's tombstones.
    pub fn has_delete_horizon(self) -> bool {
        self.0 & DELETE_HORIZON_BIT != 0
    }

    pub(super) fn with_compression(self, compression: Compression) -> Self {
        Self(self.0 & !COMPRESSION_BITS | i16::from(compression.bits()))
    }

    pub(super) fn with_timestamp_type(self, kind: TimestampType) -> Self {
        match kind {
            TimestampType::CreateTime => Self(self.0 & !TIMESTAMP_TYPE_BIT),
            TimestampType::LogAppendTime => Self(self.0 | TIMESTAMP_TYPE_BIT),
        }
    }

    /// Without compression and delete horizon.
    pub(super) fn emptied(self) -> Self {
        Self(self.0 & !(COMPRESSION_BITS | DELETE_HORIZON_BIT))
    }

    pub(super) fn with_delete_horizon(self) -> Self {
        Self(self.0 | DELETE_HORIZON_BIT)
    }
}

/// A batch's header, with the names that Kafka gives the fields. -1 stands for none in those that may be absent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    pub base_offset: Offset,
    /// Bytes after the first [`PREFIX_BYTES`].
    pub batch_length: i32,
    pub leader_epoch: i32,
    /// CRC-32C of everything after it.
    pub crc: u32,
    pub attributes: Attributes,
    pub last_offset_delta: i32,
    /// The first record's timestamp, or the delete horizon; milliseconds since 1970.
    pub base_timestamp: i64,
    pub max_timestamp: i64,
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub base_sequence: i32,
    pub record_count: i32,
}

/// How long, in bytes, the batch is that begins here: of its first [`PREFIX_BYTES`] alone.
pub fn size_of_next(bytes: &[u8]) -> Result<usize, BatchError> {
    if bytes.len() < PREFIX_BYTES {
        return Err(BatchError::Truncated { needed: PREFIX_BYTES, available: bytes.len() });
    }
    let length = i32::from_be_bytes(field(bytes, 8));
    match usize::try_from(length) {
        Ok(rest) if rest >= HEADER_BYTES - PREFIX_BYTES => Ok(PREFIX_BYTES + rest),
        _ => Err(BatchError::Length(length)),
    }
}

impl BatchHeader {
    /// Reads the header of the batch that `bytes` begin with. The checksum is not looked at, and the records may be missing.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        size_of_next(bytes)?;
        if bytes.len() < HEADER_BYTES {
            return Err(BatchError::Truncated { needed: HEADER_BYTES, available: bytes.len() });
        }
        let magic = bytes[16] as i8;
        if magic != MAGIC {
            return Err(BatchError::Magic(magic));
        }
        let header = Self {
            base_offset: Offset(i64::from_be_bytes(field(bytes, 0))),
            batch_length: i32::from_be_bytes(field(bytes, 8)),
            leader_epoch: i32::from_be_bytes(field(bytes, 12)),
            crc: u32::from_be_bytes(field(bytes, 17)),
            attributes: Attributes(i16::from_be_bytes(field(bytes, 21))),
            last_offset_delta: i32::from_be_bytes(field(bytes, 23)),
            base_timestamp: i64::from_be_bytes(field(bytes, 27)),
            max_timestamp: i64::from_be_bytes(field(bytes, 35)),
            producer_id: i64::from_be_bytes(field(bytes, 43)),
            producer_epoch: i16::from_be_bytes(field(bytes, 51)),
            base_sequence: i32::from_be_bytes(field(bytes, 53)),
            record_count: i32::from_be_bytes(field(bytes, 57)),
        };
        let (base, delta) = (header.base_offset.0, header.last_offset_delta);
        // One below the maximum, so that the offset behind the last record exists too.
        if base < 0 || delta < 0 || base > i64::MAX - 1 - i64::from(delta) {
            return Err(BatchError::Offsets { base, delta });
        }
        if header.record_count < 0 || i64::from(header.record_count) > i64::from(delta) + 1 {
            return Err(BatchError::Count(header.record_count));
        }
        Ok(header)
    }

    /// Reads the header of the batch that `bytes` begin with, and checks that the batch is whole and its checksum right.
    pub fn verify(bytes: &[u8]) -> Result<Self, BatchError> {
        let header = Self::parse(bytes)?;
        let size = header.size();
        let Some(covered) = bytes.get(CRC_FROM..size) else {
            return Err(BatchError::Truncated { needed: size, available: bytes.len() });
        };
        match crc32c::crc32c(covered) {
            computed if computed == header.crc => Ok(header),
            computed => Err(BatchError::Crc { stored: header.crc, computed }),
        }
    }

    /// The whole batch's length in bytes.
    pub fn size(&self) -> usize {
        // `parse` refused what is negative.
        PREFIX_BYTES + self.batch_length.max(0) as usize
    }

    pub fn last_offset(&self) -> Offset {
        Offset(self.base_offset.0 + i64::from(self.last_offset_delta))
    }

    /// The offset behind the batch.
    pub fn next_offset(&self) -> Offset {
        Offset(self.last_offset().0 + 1)
    }

    /// What is wrong where the batch is whole, and none that belongs there.
    pub(in crate::log) fn wrong_offsets(&self) -> BatchError {
        BatchError::Offsets { base: self.base_offset.0, delta: self.last_offset_delta }
    }

    /// The leader epoch, unless the batch was never appended by a leader.
    pub fn epoch(&self) -> Option<LeaderEpoch> {
        u32::try_from(self.leader_epoch).ok().map(LeaderEpoch)
    }

    pub fn has_producer(&self) -> bool {
        self.producer_id >= 0
    }

    /// The sequence of the last record, which runs over from 2^31 - 1 to 0.
    pub fn last_sequence(&self) -> i32 {
        add_to_sequence(self.base_sequence, self.last_offset_delta)
    }

    /// When compaction may drop the tombstones: milliseconds since 1970.
    pub fn delete_horizon_ms(&self) -> Option<i64> {
        self.attributes.has_delete_horizon().then_some(self.base_timestamp)
    }

    /// The header's bytes, as it stands: the checksum is the one given.
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &self.base_offset.0.to_be_bytes());
        put(8, &self.batch_length.to_be_bytes());
        put(12, &self.leader_epoch.to_be_bytes());
        put(16, &MAGIC.to_be_bytes());
        put(17, &self.crc.to_be_bytes());
        put(21, &self.attributes.0.to_be_bytes());
        put(23, &self.last_offset_delta.to_be_bytes());
        put(27, &self.base_timestamp.to_be_bytes());
        put(35, &self.max_timestamp.to_be_bytes());
        put(43, &self.producer_id.to_be_bytes());
        put(51, &self.producer_epoch.to_be_bytes());
        put(53, &self.base_sequence.to_be_bytes());
        put(57, &self.record_count.to_be_bytes());
        bytes
    }

    /// Sets the checksum to that of this header with these records behind it.
    pub(in crate::log) fn seal(&mut self, records: &[u8]) {
        self.crc = crc32c::crc32c_append(crc32c::crc32c(&self.encode()[CRC_FROM..]), records);
    }

    /// Makes it a batch whose records all have the leader's time. Its checksum is wrong until it is sealed.
    pub(in crate::log) fn stamp_append_time(&mut self, now_ms: i64) {
        self.attributes = self.attributes.with_timestamp_type(TimestampType::LogAppendTime);
        self.max_timestamp = now_ms;
    }
}

/// A sequence so many records later.
pub(in crate::log) fn add_to_sequence(sequence: i32, delta: i32) -> i32 {
    ((i64::from(sequence) + i64::from(delta)) & i64::from(i32::MAX)) as i32
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}
