//! Reading whole batches, and finding offsets by time.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::super::batch::{self, BatchHeader};
use super::super::scan::{Found, Scan, Scanner};
use super::super::segment::{self, LOG, Segment};
use super::super::{Files, LogError, TopicPartition};
use super::Log;
use super::plan::Watch;
use crate::disk;
use crate::types::{LeaderEpoch, Offset};

/// Batches as they are on the disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fetched {
    /// Whole batches, checked; the first one may begin before the offset that was asked for.
    pub batches: Bytes,
    /// Where to go on.
    pub next_offset: Offset,
}

/// A record that was found by its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimestampOffset {
    pub offset: Offset,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    pub epoch: Option<LeaderEpoch>,
}

impl Log {
    /// Whole batches from the one that has `offset` on, of one segment: as many as fit into `max_bytes`, but one at least, and
    /// only such that end at or below `below`. Nothing where there is nothing yet. The disk works under `&self`; see
    /// [`Self::locate`].
    ///
    /// # Errors
    /// `OffsetOutOfRange` before the log's start or behind its end, and `Damaged` with the range that is lost, behind which
    /// reading can go on.
    pub fn read(&self, offset: Offset, max_bytes: usize, below: Offset) -> Result<Fetched, LogError> {
        self.locate(offset, max_bytes, below)?.read()
    }

    /// The first record, at or behind the log's start, whose timestamp is at least `timestamp`, in milliseconds since 1970.
    pub fn offset_for_timestamp(&self, timestamp: i64) -> Result<Option<TimestampOffset>, LogError> {
        self.locate_time(timestamp).find()
    }

    /// What [`Self::offset_for_timestamp`] would look at, without touching a file, as [`Self::locate`] does it for offsets.
    pub fn locate_time(&self, timestamp: i64) -> TimePlan {
        let reaches = |segment: &&Segment| segment.largest.0 >= timestamp;
        let part = |segment: &Segment| (segment.clone(), self.upper_bound(segment.base));
        TimePlan {
            partition: self.id.clone(),
            dir: self.dir.clone(),
            files: self.files.clone(),
            watch: self.disturbances.watch(),
            start: self.start,
            max_decompressed_bytes: self.config.max_decompressed_bytes,
            timestamp,
            segments: self.segments.values().filter(reaches).map(part).collect(),
        }
    }
}

/// Where a record may be that is looked for by its time. It can be kept and searched on any thread, also when the log is gone.
pub struct TimePlan {
    partition: TopicPartition,
    dir: PathBuf,
    files: Arc<Files>,
    watch: Watch,
    start: Offset,
    max_decompressed_bytes: usize,
    /// Milliseconds since 1970.
    timestamp: i64,
    /// Those that hold as late a record, as they were, and what their offsets are below.
    segments: Vec<(Segment, Offset)>,
}

impl TimePlan {
    /// The first record at or behind the log's start that is as late.
    ///
    /// # Errors
    /// `Changed` as for [`ReadPlan::read`](super::ReadPlan::read), and those of the disk.
    pub fn find(&self) -> Result<Option<TimestampOffset>, LogError> {
        let result = self.find_unchecked();
        if self.watch.is_disturbed() {
            return Err(LogError::Changed { partition: self.partition.clone() });
        }
        result
    }

    fn find_unchecked(&self) -> Result<Option<TimestampOffset>, LogError> {
        for (segment, bound) in &self.segments {
            let path = segment::path(&self.dir, segment.base, LOG);
            let found = self.search_segment(segment, *bound, &path);
            if let Some(found) = found.map_err(LogError::io(&self.partition, "read", &path))? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn search_segment(&self, segment: &Segment, bound: Offset, path: &Path) -> io::Result<Option<TimestampOffset>> {
        let behind = segment.floor_time(&self.files, &self.dir, self.timestamp)?;
        let from = segment.floor(&self.files, &self.dir, behind.unwrap_or(segment.base))?;
        let scan = Scan { base: segment.base, from, end: segment.bytes, below: bound, verify: false };
        let mut scanner = Scanner::new(self.files.reader(path)?, scan);
        while let Some(found) = scanner.next()? {
            let Found::Batch { position, header } = found else { continue };
            if header.max_timestamp < self.timestamp || header.last_offset() < self.start {
                continue;
            }
            let file = self.files.reader(path)?;
            let mut bytes = BytesMut::zeroed(header.size());
            let read = disk::read_full(&*file, position, &mut bytes)?;
            bytes.truncate(read);
            let bytes = bytes.freeze();
            if BatchHeader::verify(&bytes).is_err() {
                continue; // Whoever reads there is told.
            }
            if let Some(found) = self.search_batch(&bytes, &header) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn search_batch(&self, bytes: &Bytes, header: &BatchHeader) -> Option<TimestampOffset> {
        let epoch = header.epoch();
        let Ok(records) = batch::records(bytes, self.max_decompressed_bytes) else {
            // A follower took it from its leader as it is: the batch's beginning is the best that can be said.
            let offset = header.base_offset.max(self.start);
            return Some(TimestampOffset { offset, timestamp: header.max_timestamp, epoch });
        };
        let mut readable = records.map_while(Result::ok);
        let found = readable.find(|record| record.timestamp >= self.timestamp && record.offset >= self.start)?;
        Some(TimestampOffset { offset: found.offset, timestamp: found.timestamp, epoch })
    }
}
