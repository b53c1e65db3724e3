//! The rules: what the controller decides, as pure functions from an image and a wish to records.
//!
//! They change nothing: state changes when their records, durable by then, are applied. Each file has an error of its own,
//! which says what the asker can do; codes for the wire are made of them elsewhere.

mod election;
pub mod node;
pub mod pairing;
pub mod partition;
pub mod registration;
pub mod topic;
