//! One partition's log: what it consists of, and what can be asked about it without reading a file.

mod append;
mod compact;
mod config;
mod cut;
mod maintain;
mod open;
mod plan;
mod read;
mod sync;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use append::AppendInfo;
pub use compact::Compacted;
use compact::Compaction;
pub use config::{LogConfig, MAX_DECOMPRESSED_BYTES};
pub use maintain::{Maintained, MaintenanceLimits};
pub use open::OpenOptions;
pub use plan::ReadPlan;
pub(super) use plan::relative;
pub use read::{Fetched, TimePlan, TimestampOffset};
pub(super) use sync::StagedCheckpoint;
pub use sync::SyncTicket;

use plan::Disturbances;

use super::producers::Producers;
use super::segment::{self, Segment};
use super::{Damage, EpochEnd, EpochHistory, Files, LogError, TopicPartition};
use crate::types::{LeaderEpoch, Offset};

/// A partition's log.
///
/// What was appended is readable at once, and durable up to [`Self::synced_end`]. One thread writes; `&self` methods may run
/// beside each other.
pub struct Log {
    id: TopicPartition,
    dir: PathBuf,
    files: Arc<Files>,
    config: LogConfig,
    /// By base offset; never empty. All but the last are whole and synced, with their indexes.
    segments: BTreeMap<Offset, Segment>,
    start: Offset,
    end: Offset,
    synced: Offset,
    epochs: EpochHistory,
    /// Whether the checkpoint lacks something of `epochs`.
    epochs_changed: bool,
    producers: Producers,
    /// The offset of the newest snapshot of the producers.
    snapshot: Option<Offset>,
    /// What was found when the log was opened.
    damages: Vec<Damage>,
    /// Below this offset no key occurs twice, but for what was too young.
    cleaned: Offset,
    /// Rises with every cut, so that a sync that began before says nothing about what came after.
    cuts: u64,
    /// What of a compaction is under way.
    compaction: Option<Compaction>,
    disturbances: Disturbances,
    poisoned: Option<String>,
}

impl Log {
    pub fn id(&self) -> &TopicPartition {
        &self.id
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn config(&self) -> &LogConfig {
        &self.config
    }

    /// Holds from the next append on.
    pub fn set_config(&mut self, config: LogConfig) {
        self.config = config;
    }

    /// The first offset that may be read (Kafka's log start offset).
    pub fn start(&self) -> Offset {
        self.start
    }

    /// The offset that the next record gets (Kafka's log end offset).
    pub fn end(&self) -> Offset {
        self.end
    }

    /// The offset up to which everything is on the disk for good.
    pub fn synced_end(&self) -> Offset {
        self.synced
    }

    /// Bytes of all segments' logs.
    pub fn size_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }

    pub fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// The first offset that compaction has not looked at.
    pub fn first_dirty(&self) -> Offset {
        self.cleaned.max(self.start)
    }

    pub fn epochs(&self) -> &EpochHistory {
        &self.epochs
    }

    /// Where an epoch ends here, for a follower that asks (Kafka's OffsetForLeaderEpoch).
    pub fn end_of_epoch(&self, epoch: LeaderEpoch) -> Option<EpochEnd> {
        self.epochs.end_of(epoch, self.end)
    }

    pub fn producers(&self) -> &Producers {
        &self.producers
    }

    /// What was found damaged when the log was opened. Later damage shows when it is read.
    pub fn damages(&self) -> &[Damage] {
        &self.damages
    }

    /// Where the first of them begins that is not deleted: a follower cuts there ([`Self::truncate_to`]) before it asks its leader
    /// for records, and copies on from there. Nothing before it is missing.
    ///
    /// Whether that takes something that counted, the log cannot know: a loss of power tears only what was never synced, so
    /// never acknowledged; a bad disk spoils anything. So the replica must leave the in-sync replicas before it cuts, and come
    /// back as one that copies. A leader that has no other replica to copy from keeps the rest and serves it; reading goes on
    /// behind each range.
    pub fn first_damage(&self) -> Option<Offset> {
        let kept = self.damages.iter().filter(|damage| damage.offsets.end > self.start);
        kept.map(|damage| damage.offsets.start).min()
    }

    /// Why it takes no more writes, if it doesn't.
    pub fn poisoned(&self) -> Option<&str> {
        self.poisoned.as_deref()
    }

    /// A new leader begins its epoch at the log's end.
    pub fn begin_epoch(&mut self, epoch: LeaderEpoch) {
        self.epochs_changed |= self.epochs.append(epoch, self.end);
    }

    fn active(&self) -> &Segment {
        self.segments.values().next_back().expect("there is always one")
    }

    fn active_mut(&mut self) -> &mut Segment {
        self.segments.values_mut().next_back().expect("there is always one")
    }

    /// The segment that an offset is in, if it is in any.
    fn segment_of(&self, offset: Offset) -> &Segment {
        self.segments.range(..=offset).next_back().map_or_else(|| self.first(), |(_, segment)| segment)
    }

    fn first(&self) -> &Segment {
        self.segments.values().next().expect("there is always one")
    }

    fn segment_after(&self, base: Offset) -> Option<&Segment> {
        self.segments.range((Bound::Excluded(base), Bound::Unbounded)).next().map(|(_, segment)| segment)
    }

    /// What the offsets in the segment with this base are below.
    fn upper_bound(&self, base: Offset) -> Offset {
        self.segment_after(base).map_or(self.end, |next| next.base)
    }

    fn path(&self, base: Offset, extension: &str) -> PathBuf {
        segment::path(&self.dir, base, extension)
    }

    fn io<'a>(&'a self, action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> LogError + use<'a> {
        LogError::io(&self.id, action, path)
    }

    fn check_usable(&self) -> Result<(), LogError> {
        match &self.poisoned {
            None => Ok(()),
            Some(cause) => Err(LogError::Poisoned { partition: self.id.clone(), cause: cause.clone() }),
        }
    }

    /// An error after which it is not known what is on the disk.
    fn poison(&mut self, error: LogError) -> LogError {
        self.poisoned.get_or_insert(error.to_string());
        error
    }
}

impl Drop for Log {
    /// Its directory may become another's.
    fn drop(&mut self) {
        self.disturbances.note();
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Log({}: {} to {}, synced to {})", self.id, self.start, self.end, self.synced)
    }
}
