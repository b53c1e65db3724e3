//! Which NATS server, as whom, and the connection to it.
//!
//! `target` settles it from dmq's settings, the `nats` CLI's variables and its contexts, without a network. `connect` then
//! connects, or ends after a deadline with what was wrong and what to do.

mod connect;
mod context;
mod target;

pub use connect::{ConnectError, ConnectPlan, Connected, ConnectionEvent, ConnectionState, connect, connect_options};
pub use target::{Login, NatsTarget, NatsTargetError};

/// The oldest server whose JetStream does what the history and the lease need.
pub const MIN_SERVER_VERSION: (u32, u32, u32) = (2, 12, 3);

/// The lowest JetStream API level that has it.
pub const MIN_API_LEVEL: u32 = 2;
