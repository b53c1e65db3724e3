//! Ending without a gap: leaderships move first, then the process ends. It never waits for what cannot come.

use super::{Effect, Level, StorageCore};
use crate::types::Monotonic;
use crate::wire::HeartbeatAnswer;

pub(super) struct Drain {
    /// When it gives up.
    pub(super) until: Monotonic,
}

impl StorageCore {
    pub(super) fn shutdown(&mut self, now: Monotonic, out: &mut Vec<Effect>) {
        if self.drain.is_some() {
            self.exit("told to end twice: ending at once".into(), 1, out);
            return;
        }
        self.drain = Some(Drain { until: now + self.settings.drain_timeout });
        // At once: the controller is to hear of it before the next heartbeat would be due.
        self.session.due = self.session.due.map(|_| now);
        self.log(Level::Info, out, || "draining: what this node leads moves to others first".into());
    }

    pub(super) fn drain_answered(&mut self, answer: &HeartbeatAnswer, out: &mut Vec<Effect>) {
        if self.drain.is_none() {
            return;
        }
        if answer.shutdown_granted {
            self.exit("drained: others lead what this node led".into(), 0, out);
        } else if answer.drain_impossible {
            self.exit("nobody else can lead what this node leads: ending without a drain".into(), 0, out);
        }
    }

    pub(super) fn step_drain(&mut self, now: Monotonic, out: &mut Vec<Effect>) {
        let Some(drain) = &self.drain else { return };
        if now >= drain.until {
            self.exit(
                "the drain took too long: ending with leaderships that the controller moves later".into(),
                0,
                out,
            );
        } else if self.registration.node_epoch.is_none() {
            self.exit("ending: this node was not registered, so there is nothing to drain".into(), 0, out);
        } else if self.session.connection.is_none() {
            self.exit("ending: without a connection this node leads nothing".into(), 0, out);
        } else if self.session.unheard && (self.leads.is_empty() || !self.may_lead(now)) {
            self.exit("ending: this node leads nothing, and no controller answers".into(), 0, out);
        }
    }
}
