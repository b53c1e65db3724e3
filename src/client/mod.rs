//! What speaks to a cluster from outside: [`Admin`] for its metadata, [`Producer`] and [`Consumer`] for records, and [`Leaders`]
//! for single questions about a partition.
//!
//! All of them work over a connection to NATS that somebody else made, and need no other: they ask on subjects, and whoever
//! serves there answers. Nothing here knows the metadata's rules: it asks, tries again where that is safe, and says what the
//! answer was.

mod admin;
mod attempts;
mod consumer;
mod leaders;
mod producer;

#[cfg(fuzzing)]
pub(crate) use consumer::fuzzing;

pub use admin::{Admin, AdminError};
pub use consumer::{AutoOffsetReset, ConsumeError, Consumer, ConsumerConfig, ConsumerRecord, SeekTo};
pub use leaders::{DataError, Leaders};
pub use producer::{Delivery, ProduceError, Producer, ProducerConfig, ProducerRecord, RecordMetadata};
