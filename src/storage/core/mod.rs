//! A storage node's decisions, without I/O: an input and the time go in, effects come out.

mod api;

pub use api::{Applied, Call, CallError, Effect, FetchReply, Identity, Input, Leadership, Level, Settings, Token};

use crate::metadata::History;
use crate::types::{ControllerEpoch, Monotonic, Position};

/// One storage node.
pub struct StorageCore;

impl StorageCore {
    /// `history` and `controller_epoch` (the highest ever stored) are what this process's disk has.
    pub fn new(
        _identity: Identity,
        _settings: Settings,
        _history: History,
        _controller_epoch: ControllerEpoch,
    ) -> Self {
        Self
    }

    /// Takes one input. Effects are appended to `out`, to be carried out in their order.
    pub fn handle(&mut self, _now: Monotonic, _input: Input, _out: &mut Vec<Effect>) {}

    /// When an [`Input::Tick`] is needed at the latest.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        None
    }

    /// What is on this node's disk: what it reports.
    pub fn persisted(&self) -> Position {
        Position::default()
    }
}
