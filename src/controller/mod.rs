//! The metadata service: a replica of the cluster's metadata, one of which is active and alone writes.

pub mod core;
pub mod shell;

pub use shell::{ControllerError, Options, SystemAccount, run, run_until};
