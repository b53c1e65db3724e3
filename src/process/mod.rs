//! What controllers and storage nodes have in common as processes: signals, the clock, the watch over the connection, what the
//! disk has at the start, serving it to others, and the errors that end them.

mod clock;
mod error;
mod link;
mod recover;
pub mod serve;
mod signals;

pub use clock::Clock;
pub use error::ProcessError;
pub use link::{LinkEvent, watch};
pub use recover::recover;
pub use signals::with_signals;

/// What of a NATS message is left to its envelope and headers, in bytes.
const ENVELOPE_BYTES: usize = 8 << 10;

/// The least that a server's messages may carry: no record of the history is larger than what is left of that.
pub const LEAST_MAX_PAYLOAD: usize = 64 << 10;

/// How many bytes a message may carry beside its envelope, where the server takes messages of `max_payload` bytes.
pub fn message_room(max_payload: usize) -> usize {
    max_payload.saturating_sub(ENVELOPE_BYTES).max(ENVELOPE_BYTES)
}
