//! Reading whole batches, and finding offsets by time.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::super::batch::{self, BatchError, BatchHeader, HEADER_BYTES};
use super::super::scan::{Found, Scan, Scanner};
use super::super::segment::{LOG, Segment};
use super::super::{Damage, LogError};
use super::Log;
use crate::disk::{self, ReadFile};
use crate::types::{LeaderEpoch, Offset};

/// For finding a place, where a few batches are looked at.
const SEEK_WINDOW_BYTES: usize = 8 * 1024;

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
    /// only such that end at or below `below`. Nothing where there is nothing yet.
    ///
    /// # Errors
    /// `OffsetOutOfRange` before the log's start or behind its end, and `Damaged` with the range that is lost, behind which
    /// reading can go on.
    pub fn read(&self, offset: Offset, max_bytes: usize, below: Offset) -> Result<Fetched, LogError> {
        if offset < self.start || offset > self.end {
            let (partition, start, end) = (self.id.clone(), self.start, self.end);
            return Err(LogError::OffsetOutOfRange { partition, offset, start, end });
        }
        let below = below.min(self.end);
        let nothing = Fetched { batches: Bytes::new(), next_offset: offset };
        if offset >= below {
            return Ok(nothing);
        }
        let mut segment = self.segment_of(offset);
        loop {
            let path = self.path(segment.base, LOG);
            match self.seek(segment, offset).map_err(self.io("read", &path))? {
                Some(Found::Batch { position, header }) => {
                    let file = self.files.reader(&path).map_err(self.io("open", &path))?;
                    return match self.read_batches(file, segment, position, max_bytes, below) {
                        Ok(Ok(batches)) => {
                            let next_offset = last_header(&batches).map_or(offset, |header| header.next_offset());
                            Ok(Fetched { batches, next_offset })
                        }
                        Ok(Err(_)) => self.damaged(segment, position, header.base_offset),
                        Err(error) => Err(self.io("read", &path)(error)),
                    };
                }
                Some(Found::Damage { positions, offsets, .. }) => {
                    return self.damaged(segment, positions.start, offsets.start.min(offset));
                }
                None => match self.segment_after(segment.base) {
                    Some(next) => segment = next,
                    None => return Ok(nothing),
                },
            }
        }
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

    fn scanner(&self, segment: &Segment, from: u64, verify: bool) -> io::Result<Scanner> {
        let file = self.files.reader(&self.path(segment.base, LOG))?;
        let expected = (from == 0).then_some(segment.base);
        let scan = Scan { from, end: segment.bytes, expected, below: self.upper_bound(segment.base), verify };
        Ok(Scanner::new(file, scan))
    }

    /// The first batch that ends at or behind an offset, or the damage that has taken it.
    fn seek(&self, segment: &Segment, offset: Offset) -> io::Result<Option<Found>> {
        let (position, _) = segment.floor(&self.files, &self.dir, offset)?;
        let mut scanner = self.scanner(segment, position, false)?.with_window(SEEK_WINDOW_BYTES);
        while let Some(found) = scanner.next()? {
            let reached = match &found {
                Found::Batch { header, .. } => header.last_offset() >= offset,
                Found::Damage { offsets, .. } => offsets.end > offset,
            };
            if reached {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn read_batches(
        &self,
        file: Arc<dyn ReadFile>,
        segment: &Segment,
        position: u64,
        max_bytes: usize,
        below: Offset,
    ) -> io::Result<Result<Bytes, BatchError>> {
        let available = (segment.bytes - position) as usize;
        let mut wanted = max_bytes.clamp(HEADER_BYTES.min(available), available);
        loop {
            let mut bytes = BytesMut::zeroed(wanted);
            let read = disk::read_full(&*file, position, &mut bytes)?;
            bytes.truncate(read);
            match whole_batches(&bytes, below, self.upper_bound(segment.base)) {
                // The first batch is larger than what was asked for.
                Err(BatchError::Truncated { needed, .. })
                    if read == wanted && needed > wanted && needed <= available =>
                {
                    wanted = needed;
                }
                Err(error) => return Ok(Err(error)),
                Ok(len) => {
                    bytes.truncate(len);
                    return Ok(Ok(bytes.freeze()));
                }
            }
        }
    }

    /// The error for a place where a batch is not what it was, with how far that goes.
    fn damaged<T>(&self, segment: &Segment, position: u64, first: Offset) -> Result<T, LogError> {
        let path = self.path(segment.base, LOG);
        let found = self.scanner(segment, position, true).and_then(|mut scanner| scanner.next());
        let (to, what) = match found.map_err(self.io("read", &path))? {
            Some(Found::Damage { offsets, what, .. }) => (offsets.end, what),
            Some(Found::Batch { header, .. }) => (header.next_offset(), "it reads differently each time".into()),
            None => (self.upper_bound(segment.base), "the file is shorter than it was".into()),
        };
        let damage = Box::new(Damage { offsets: first..to, file: path, position, what });
        Err(LogError::Damaged { partition: self.id.clone(), damage })
    }

    fn search_segment(&self, segment: &Segment, timestamp: i64) -> io::Result<Option<TimestampOffset>> {
        let behind = segment.floor_time(&self.files, &self.dir, timestamp)?;
        let (position, _) = segment.floor(&self.files, &self.dir, behind.unwrap_or(segment.base))?;
        let mut scanner = self.scanner(segment, position, false)?;
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

/// How many bytes the whole batches take that end at or below an offset. An error where even the first one is none.
fn whole_batches(bytes: &[u8], below: Offset, bound: Offset) -> Result<usize, BatchError> {
    let (mut len, mut expected) = (0, Offset::ZERO);
    while len < bytes.len() {
        let header = match BatchHeader::verify(&bytes[len..]) {
            Ok(header) => header,
            Err(error) if len == 0 => return Err(error),
            Err(_) => break,
        };
        let rises = header.base_offset >= expected && header.next_offset() <= bound;
        if !rises || header.next_offset() > below {
            break;
        }
        len += header.size();
        expected = header.next_offset();
    }
    Ok(len)
}

fn last_header(batches: &[u8]) -> Option<BatchHeader> {
    let (mut at, mut last) = (0, None);
    while let Ok(header) = BatchHeader::parse(&batches[at..]) {
        at += header.size();
        last = Some(header);
        if at >= batches.len() {
            break;
        }
    }
    last
}
