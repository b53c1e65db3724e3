//! What the system tests share. It must never skip a test: what a test needs and the machine lacks is a failure that
//! says what to do.

// Every file in tests/ is a crate of its own and uses a part of this.
#![allow(dead_code)]

pub mod cluster;
pub mod nats;
pub mod stranger;
