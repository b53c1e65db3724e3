//! The storage node: a core that decides, and a shell that carries out what was decided.
//!
//! The shell is the only part with a clock, a disk and a connection; it decides nothing.

mod auto;
pub mod core;
mod health;
mod partitions;
pub mod replicas;
mod shell;
pub(crate) mod store;
mod subjects;
mod writer;

pub use partitions::RecordSettings;
#[cfg(fuzzing)]
pub(crate) use partitions::fuzzing;
pub use shell::{Data, Options, run, run_until};
pub use subjects::Subjects;
