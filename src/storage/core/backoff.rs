//! When to try again: exponential, with jitter from a seed that is passed in.

use std::time::Duration;

use super::Settings;
use crate::types::Monotonic;

/// A stream of numbers that its seed decides (splitmix64).
pub(super) struct Jitter(pub(super) u64);

impl Jitter {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Between half of a span and all of it.
    fn spread(&mut self, span: Duration) -> Duration {
        let half = u64::try_from(span.as_micros() / 2).unwrap_or(u64::MAX);
        Duration::from_micros(half.saturating_add(self.next() % half.saturating_add(1)))
    }
}

/// The retries of one thing.
#[derive(Default)]
pub(super) struct Retry {
    failures: u32,
    not_before: Option<Monotonic>,
}

impl Retry {
    pub(super) fn is_due(&self, now: Monotonic) -> bool {
        self.not_before.is_none_or(|at| now >= at)
    }

    /// When it is due, unless it already is.
    pub(super) fn due_at(&self) -> Option<Monotonic> {
        self.not_before
    }

    pub(super) fn failed(&mut self, now: Monotonic, settings: &Settings, jitter: &mut Jitter) {
        let span = settings.retry_min.saturating_mul(1 << self.failures.min(16)).min(settings.retry_max);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + jitter.spread(span));
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// A request under way.
#[derive(Clone, Copy)]
pub(super) struct Waiting {
    pub(super) call: super::Call,
    /// From then on no answer is expected.
    pub(super) until: Monotonic,
}
