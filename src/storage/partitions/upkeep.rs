//! What logs need now and then: old segments are closed and deleted, keys are compacted, starts are remembered. A little at a
//! time, log after log, since clients wait meanwhile.

use std::time::Duration;

use super::log::millis;
use super::worker::Worker;
use crate::log::MaintenanceLimits;
use crate::storage::core::Place;
use crate::types::Monotonic;

const EVERY: Duration = Duration::from_millis(100);
/// How many logs are looked at each time: ten thousand take 20 s. One that needs nothing costs a few microseconds.
const LOGS: usize = 50;
/// How long deletions may wait to be remembered. Whoever forgets them deletes again.
const REMEMBER_EVERY: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Upkeep {
    next_at: Monotonic,
    /// The log that was looked at last.
    last: Option<Place>,
    /// It is to be gone on with.
    has_more: bool,
    /// Some log's start, or how far it is compacted, changed.
    is_changed: bool,
    remembered_at: Monotonic,
}

impl Worker {
    pub(super) fn upkeep_deadline(&self) -> Option<Monotonic> {
        (!self.held.is_empty()).then_some(self.upkeep.next_at)
    }

    pub(super) fn keep_up(&mut self, now: Monotonic) {
        if now < self.upkeep.next_at {
            return;
        }
        self.upkeep.next_at = now + EVERY;
        for _ in 0..LOGS.min(self.held.len()) {
            if self.maintain_next() {
                break;
            }
        }
        if self.upkeep.is_changed && now.since(self.upkeep.remembered_at) >= REMEMBER_EVERY {
            self.upkeep.remembered_at = now;
            self.remember_starts();
        }
    }

    /// Whether it did anything.
    fn maintain_next(&mut self) -> bool {
        let next = match self.upkeep.last.filter(|_| self.upkeep.has_more) {
            Some(same) => self.engine.high_watermark(same).map(|high_watermark| (same, high_watermark)),
            None => self.engine.next_held(self.upkeep.last),
        };
        let Some((place, high_watermark)) = next else {
            self.upkeep.has_more = false;
            return false;
        };
        self.upkeep.last = Some(place);
        let now = millis(self.clock.wall());
        let Some(log) = self.engine.log_mut(place) else { return false };
        match log.log.maintain(now, high_watermark, &MaintenanceLimits::default()) {
            Ok(done) => {
                self.upkeep.has_more = done.more;
                self.upkeep.is_changed |= done.deleted > 0 || done.compacted.is_some();
                done.more
            }
            Err(error) => {
                self.upkeep.has_more = false;
                tracing::warn!(%error, "old records stay");
                true
            }
        }
    }

    pub(super) fn remember_starts(&mut self) {
        self.upkeep.is_changed = false;
        let logs = self.engine.held().map(|(_, log, _)| &log.log);
        if let Err(error) = self.directory.checkpoint(logs) {
            tracing::warn!(%error, "where logs start was not written");
        }
    }
}
