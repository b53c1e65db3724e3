//! The deterministic simulator: the shipped cores of three controllers and five storage nodes, with their replicas' engines, in
//! one process, with a shell after the real one's over a fake NATS, fake disks and a simulated clock. Everything comes from one
//! seed.
//!
//! `world` is the loop; `bus`, `stream`, `lease` and `disks` are what the processes stand on; `controllers` and `nodes` carry
//! out what the cores decide, `replicas` what the engines do with their `records`; `clients` want something of them, and
//! `producers` write; `faults` disturb all of it, and `invariants` look on.
//! `sabotage` shows that they see. `runs` has the tests.

mod bus;
mod clients;
mod controllers;
mod disks;
mod faults;
mod invariants;
mod lease;
mod nodes;
mod producers;
mod queue;
mod records;
mod replicas;
mod report;
mod rng;
mod runs;
mod sabotage;
mod stream;
mod world;

pub(crate) use sabotage::{Bug, planted};
