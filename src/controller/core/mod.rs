//! The controller's decisions, without I/O: an input and the time go in, effects come out.

mod api;

pub use api::{
    AppendResult, Effect, Head, Holder, Identity, Input, LeaseResult, Level, MetadataHolder, Now, ServicesView,
    Settings, Token,
};

use crate::metadata::{Change, History};
use crate::types::Monotonic;

/// One controller.
pub struct Controller;

impl Controller {
    /// `history` and `last` (its last change) are what this process's disk has.
    pub fn new(_identity: Identity, _settings: Settings, _history: History, _last: Option<Change>) -> Self {
        Self
    }

    /// Takes one input. Effects are to be carried out in their order.
    pub fn handle(&mut self, _now: Now, _input: Input, _effects: &mut Vec<Effect>) {}

    /// When a [`Input::Tick`] is needed at the latest.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        None
    }
}
