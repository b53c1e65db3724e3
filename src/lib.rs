//! dmq: a Kafka-style partitioned, replicated log whose processes meet on NATS and open no ports to each other.

pub mod bus;
pub mod cli;
pub mod client;
pub mod config;
pub mod controller;
pub mod disk;
/// What the fuzz targets reach that nobody else has to.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::client::fuzzing::answer;
    pub use crate::storage::fuzzing::{offsets, request};
}
pub mod log;
pub mod metadata;
pub mod process;
pub mod replication;
#[cfg(test)]
mod simulator;
pub mod storage;
pub mod types;
pub mod wire;
