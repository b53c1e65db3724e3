//! What logs need now and then: old segments are closed and deleted, keys are compacted, starts are remembered. A little at a
//! time, log after log, since clients wait meanwhile.

use std::path::PathBuf;
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

/// How often it is looked for directories that were set aside.
const STRAYS_EVERY: Duration = Duration::from_secs(60);

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
    stray_retention: Duration,
    strays_at: Monotonic,
    /// Directories that were set aside long enough ago.
    going: Vec<PathBuf>,
}

impl Upkeep {
    /// `stray_retention`: how long directories of topics are kept that the metadata does not know any more.
    pub(super) fn new(stray_retention: Duration) -> Self {
        Self { stray_retention, ..Self::default() }
    }

    /// For people.
    pub(super) fn kept_for(&self) -> humantime::FormattedDuration {
        humantime::format_duration(self.stray_retention)
    }
}

impl Worker {
    pub(super) fn upkeep_deadline(&self) -> Option<Monotonic> {
        let strays = if self.upkeep.going.is_empty() { self.upkeep.strays_at } else { self.upkeep.next_at };
        Some(if self.held.is_empty() { strays } else { self.upkeep.next_at.min(strays) })
    }

    pub(super) fn keep_up(&mut self, now: Monotonic) {
        if now >= self.upkeep.strays_at {
            self.upkeep.strays_at = now + STRAYS_EVERY;
            self.look_for_strays();
        }
        if now < self.upkeep.next_at {
            return;
        }
        self.upkeep.next_at = now + EVERY;
        self.remove_some_stray();
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

    fn look_for_strays(&mut self) {
        let now_ms = millis(self.clock.wall());
        let retention = i64::try_from(self.upkeep.stray_retention.as_millis()).unwrap_or(i64::MAX);
        let strays = self.directory.strays().unwrap_or_else(|error| {
            tracing::warn!(%error, "it was not looked for directories of topics that are gone");
            Vec::new()
        });
        self.upkeep.going = strays;
        self.upkeep.going.retain(|path| match self.directory.stray_since(path, now_ms) {
            Ok(since) => now_ms.saturating_sub(since) >= retention,
            Err(error) => {
                tracing::warn!(%error, "the directory of a topic that is gone stays");
                false
            }
        });
    }

    /// Removes a file at a time: one of a gigabyte takes a disk a while.
    fn remove_some_stray(&mut self) {
        let Some(path) = self.upkeep.going.last() else { return };
        match self.directory.remove_some(path) {
            Ok(false) => return,
            Ok(true) => {
                tracing::info!(path = %path.display(), "the directory of a topic that is gone was kept long enough, and is removed")
            }
            Err(error) => tracing::warn!(%error, "the directory of a topic that is gone stays"),
        }
        self.upkeep.going.pop();
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
                self.unreadable(place, &error);
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
