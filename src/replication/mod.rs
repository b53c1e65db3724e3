//! One replica's rules: what a leader may acknowledge and show, whom it wants in sync, and what a follower cuts off.
//!
//! Pure: an event and the time go in, answers come out; the log itself, the disk and the bus are somebody else's. Kafka's
//! terms and rules, with two that are stricter:
//!
//! - A replica *has* a record once it is on its disk. The high watermark therefore counts flushed log ends only, the
//!   leader's own among them, and what lies below it survives the loss of power on all replicas but one.
//! - The high watermark and every acknowledgement count the in-sync replicas that the metadata names *and* all whose
//!   admission was asked for and may have been granted (the maximal ISR of KIP-497).
//!
//! [`EpochHistory`] tells where histories part, [`Leader`] and [`Follower`] are the two roles.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod epochs;
mod follower;
mod isr;
mod leader;

#[cfg(test)]
mod model;

pub use epochs::{EpochEnd, EpochHistory};
pub use follower::{FetchFrom, FetchOutcome, Follower, Step};
pub use isr::{InSync, Wish};
pub use leader::{AckError, Leader, Refusal, ReplicaSession, Settings};
