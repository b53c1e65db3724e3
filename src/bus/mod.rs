//! The bus: bytes in, bytes out, over the real NATS.
//!
//! It knows subjects, streams and buckets, and nothing of what the bytes mean. It never connects, never retries a write on
//! its own, and never changes the configuration of a stream that it finds. Every call ends within a timeout, every channel is
//! bounded, and every subscription to JetStream rebuilds itself when the connection's generation changes.
//!
//! A *generation* is a number in a `tokio::sync::watch` channel that whoever connects raises at each reconnect.

pub mod advisories;
mod error;
mod follow;
mod jetstream;
pub mod lease;
pub mod log;
mod push;
pub mod raw;
pub mod service;
pub mod snapshots;

pub use error::BusError;
pub use jetstream::Ensured;
