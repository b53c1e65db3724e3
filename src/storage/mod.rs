//! The storage node: a core that decides, and a shell that carries out what was decided.
//!
//! The shell is the only part with a clock, a disk and a connection; it decides nothing.

pub mod core;
mod error;
mod health;
mod link;
mod recover;
pub(crate) mod serve;
mod shell;
pub(crate) mod store;
mod writer;

pub use error::StorageError;
pub use link::Subjects;
pub use recover::recover;
pub use shell::{Data, Options, run, run_until};
