//! Instants that are passed in: the core reads no clock.

use std::fmt;
use std::ops::Add;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An instant on one process's monotonic clock, in microseconds since some moment of its own. It decides; wall time is only shown.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Monotonic(pub u64);

impl Monotonic {
    /// How long after `earlier` this is; zero where it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Monotonic {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// Wall time in milliseconds since 1970, shown to people and never compared to decide anything. RFC 3339 in JSON.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct WallTime(pub u64);

/// The last millisecond of the year 9999: later ones have no RFC 3339 form.
const LAST: u64 = 253_402_300_799_999;

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instant = std::time::UNIX_EPOCH + Duration::from_millis(self.0.min(LAST));
        humantime::format_rfc3339_millis(instant).fmt(f)
    }
}

impl Serialize for WallTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WallTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let instant = humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)?;
        let since = instant.duration_since(std::time::UNIX_EPOCH).map_err(serde::de::Error::custom)?;
        u64::try_from(since.as_millis()).map(Self).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_reads_back_what_it_writes_and_survives_the_absurd() {
        for millis in [0, 1, 1_795_552_800_123, LAST] {
            let json = serde_json::to_string(&WallTime(millis)).unwrap();
            assert_eq!(serde_json::from_str::<WallTime>(&json).unwrap(), WallTime(millis), "{json}");
        }
        assert_eq!(WallTime(u64::MAX).to_string(), WallTime(LAST).to_string());
    }
}
