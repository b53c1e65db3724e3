//! The metadata service: a replica of the cluster's metadata, one of which is active and alone writes.

pub mod core;
pub(crate) mod shell;

pub use shell::{Options, run, run_until};
