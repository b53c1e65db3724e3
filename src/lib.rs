//! dmq: a Kafka-style partitioned, replicated log whose processes meet on NATS and open no ports to each other.

pub mod config;
pub mod types;
