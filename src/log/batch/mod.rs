//! Kafka's record batch (magic 2), byte for byte: its header, its records, and how they are compressed.
//!
//! A codec of its own, since the log needs to check and stamp a header without touching the records, and to hold hostile
//! bytes within bounds: every length is checked against what is there, and decompression stops at a limit.

mod build;
mod compression;
mod error;
mod header;
mod record;

pub use build::{BatchBuilder, PackedBatch, ProducerStamp, restamp};
pub use compression::Compression;
pub use error::BatchError;
pub use header::{Attributes, BatchHeader, HEADER_BYTES, PREFIX_BYTES, TimestampType, size_of_next};
pub use record::{Header, Record, Records, records};

pub(super) use build::rebuild;
pub(super) use header::add_to_sequence;
pub(super) use record::check_records;

/// No timestamp, producer id, epoch or sequence: what Kafka writes where there is none.
pub const NONE: i64 = -1;

#[cfg(test)]
mod tests;
