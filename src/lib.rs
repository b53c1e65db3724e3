//! dmq: a Kafka-style partitioned, replicated log whose processes meet on NATS and open no ports to each other.

pub mod bus;
pub mod cli;
pub mod client;
pub mod config;
pub mod controller;
pub mod disk;
pub mod log;
pub mod metadata;
pub mod process;
pub mod replication;
#[cfg(test)]
mod simulator;
pub mod storage;
pub mod types;
pub mod wire;
