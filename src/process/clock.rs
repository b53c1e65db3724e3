//! The only clock that a process reads.

use std::time::{Duration, Instant, SystemTime};

use crate::types::{Monotonic, WallTime};

/// This process's clocks: the monotonic one begins when it is made.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    base: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self { base: Instant::now() }
    }

    pub fn monotonic(&self) -> Monotonic {
        Monotonic(u64::try_from(self.base.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    pub fn wall(&self) -> WallTime {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        WallTime(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX))
    }

    pub fn instant(&self, at: Monotonic) -> Instant {
        self.base + Duration::from_micros(at.0)
    }
}
