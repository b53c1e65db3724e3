//! Reading whole batches, and finding offsets by time.

use std::io;

use bytes::{Bytes, BytesMut};

use super::super::LogError;
use super::super::batch::{self, BatchHeader};
use super::super::scan::{Found, Scan, Scanner};
use super::super::segment::{LOG, Segment};
use super::Log;
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
        for segment in self.segments.values().filter(|segment| segment.largest.0 >= timestamp) {
            let path = self.path(segment.base, LOG);
            let found = self.search_segment(segment, timestamp).map_err(self.io("read", &path))?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn scanner(&self, segment: &Segment, from: u64) -> io::Result<Scanner> {
        let file = self.files.reader(&self.path(segment.base, LOG))?;
        let expected = (from == 0).then_some(segment.base);
        let scan = Scan { from, end: segment.bytes, expected, below: self.upper_bound(segment.base), verify: false };
        Ok(Scanner::new(file, scan))
    }

    fn search_segment(&self, segment: &Segment, timestamp: i64) -> io::Result<Option<TimestampOffset>> {
        let behind = segment.floor_time(&self.files, &self.dir, timestamp)?;
        let position = segment.floor(&self.files, &self.dir, behind.unwrap_or(segment.base))?;
        let mut scanner = self.scanner(segment, position)?;
        while let Some(found) = scanner.next()? {
            let Found::Batch { position, header } = found else { continue };
            if header.max_timestamp < timestamp || header.last_offset() < self.start {
                continue;
            }
            let file = self.files.reader(&self.path(segment.base, LOG))?;
            let mut bytes = BytesMut::zeroed(header.size());
            let read = disk::read_full(&*file, position, &mut bytes)?;
            bytes.truncate(read);
            let bytes = bytes.freeze();
            if BatchHeader::verify(&bytes).is_err() {
                continue; // Whoever reads there is told.
            }
            if let Some(found) = self.search_batch(&bytes, &header, timestamp) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn search_batch(&self, bytes: &Bytes, header: &BatchHeader, timestamp: i64) -> Option<TimestampOffset> {
        let epoch = header.epoch();
        let Ok(records) = batch::records(bytes, self.config.max_decompressed_bytes) else {
            // A follower took it from its leader as it is: the batch's beginning is the best that can be said.
            let offset = header.base_offset.max(self.start);
            return Some(TimestampOffset { offset, timestamp: header.max_timestamp, epoch });
        };
        let mut readable = records.map_while(Result::ok);
        let found = readable.find(|record| record.timestamp >= timestamp && record.offset >= self.start)?;
        Some(TimestampOffset { offset: found.offset, timestamp: found.timestamp, epoch })
    }
}
