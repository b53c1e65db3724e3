//! What a log needs now and then, in small pieces, for a thread that goes from log to log.

use super::{Compacted, Log};
use crate::log::LogError;
use crate::types::Offset;

/// How much one call may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MaintenanceLimits {
    /// So many segments are deleted.
    pub segments: usize,
    /// So many keys are compacted by, 64 bytes of memory each.
    pub keys: usize,
    /// The keys of so many bytes are read, and of one segment at least.
    pub bytes: u64,
}

impl Default for MaintenanceLimits {
    fn default() -> Self {
        Self { segments: 16, keys: 500_000, bytes: 1 << 30 }
    }
}

/// What a call did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Maintained {
    /// The active segment was closed for its age.
    pub rolled: bool,
    /// So many segments were deleted: the new start is to be remembered by [`LogDirectory::checkpoint`](crate::log::LogDirectory).
    pub deleted: usize,
    /// A step of a compaction was taken.
    pub compacted: Option<Compacted>,
    /// There is more to do. Go on with this log before the next one: a compaction that is under way keeps its keys in memory.
    pub more: bool,
}

impl Log {
    /// Takes one step of what is due, of these the first: closes the active segment if it is older than `segment.ms` (or
    /// `max.compaction.lag.ms`, where it is compacted), deletes by retention, compacts one run of segments. Nothing at or behind the
    /// high watermark is deleted or compacted. `now_ms` is wall time in milliseconds since 1970.
    ///
    /// Closing a segment counts its age by the node's clock, so that it also happens where nothing is appended any more:
    /// records that are not followed by others are deleted and compacted too.
    pub fn maintain(
        &mut self,
        now_ms: i64,
        high_watermark: Offset,
        limits: &MaintenanceLimits,
    ) -> Result<Maintained, LogError> {
        self.check_usable()?;
        let roll_ms = self.config.roll_ms();
        let is_old = self.active().first_timestamp.is_some_and(|first| now_ms.saturating_sub(first) > roll_ms);
        if is_old && self.active().bytes > 0 {
            self.roll()?;
            return Ok(Maintained { rolled: true, more: true, ..Maintained::default() });
        }
        let deleted = self.delete_some(now_ms, high_watermark, limits.segments.max(1))?;
        if deleted > 0 {
            return Ok(Maintained { deleted, more: true, ..Maintained::default() });
        }
        let compacted = self.compact_some(now_ms, high_watermark, limits)?;
        Ok(Maintained { compacted, more: compacted.is_some(), ..Maintained::default() })
    }
}
