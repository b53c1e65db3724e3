//! Reading in two steps: where to read, which needs the log and no file, and the reading, which needs files and no log.
//!
//! So whoever shares a log behind a lock holds it for a look at memory alone, and a disk that is slow to answer one consumer
//! stops neither the writer nor the others. Bytes that were appended stay as they are until a cut, a deletion or a compaction;
//! each of them raises the log's count of disturbances before it touches a file, and what was read is only believed if the
//! count is what it was.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use bytes::{Bytes, BytesMut};

use super::super::batch::{BatchError, BatchHeader, HEADER_BYTES};
use super::super::index::{OffsetEntry, Searched};
use super::super::scan::{Begin, Found, Scan, Scanner};
use super::super::segment::{INDEX, LOG, Segment};
use super::super::{Damage, Files, LogError, TopicPartition};
use super::Log;
use super::read::Fetched;
use crate::disk::{self, ReadFile};
use crate::types::Offset;

/// For finding a place, where a few batches are looked at.
const SEEK_WINDOW_BYTES: usize = 8 * 1024;

/// How often a log was cut, deleted from or compacted: shared by the log and the plans to read it.
#[derive(Clone, Default)]
pub(super) struct Disturbances(Arc<AtomicU64>);

impl Disturbances {
    /// To be called before bytes that can be read are touched.
    pub fn note(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// What tells later whether there was one since.
    pub fn watch(&self) -> Watch {
        Watch { disturbances: self.clone(), seen: self.count() }
    }
}

/// The count as it was when a plan was made.
pub(super) struct Watch {
    disturbances: Disturbances,
    seen: u64,
}

impl Watch {
    /// Whether what was read until now is not to be believed.
    pub fn is_disturbed(&self) -> bool {
        // What was read comes before the look at the count.
        fence(Ordering::SeqCst);
        self.disturbances.count() != self.seen
    }
}

/// What is to be read of a log. It takes the memory of two file names and can be kept and read on any thread, also when the
/// log is gone.
pub struct ReadPlan {
    partition: TopicPartition,
    files: Arc<Files>,
    watch: Watch,
    offset: Offset,
    /// No batch that ends behind it is read.
    below: Offset,
    max_bytes: usize,
    /// The segment that the offset is in, and the next one that has anything: compaction may have left a hole at the end of
    /// the first. Neither where nothing is to be read.
    parts: [Option<Part>; 2],
}

/// What is known of a segment without reading it.
struct Part {
    base: Offset,
    /// What its offsets are below.
    bound: Offset,
    bytes: u64,
    /// Records are appended to it.
    is_active: bool,
    log: PathBuf,
    index: PathBuf,
    place: Searched<OffsetEntry>,
}

impl Log {
    /// What [`Self::read`] would read, without touching a file: for who must not hold the log while the disk works. The same
    /// offsets and bounds, and the errors of the offset; the others come when the plan is read.
    pub fn locate(&self, offset: Offset, max_bytes: usize, below: Offset) -> Result<ReadPlan, LogError> {
        let start = self.start;
        #[cfg(test)]
        let start = if crate::log::planted(crate::log::Bug::DeletedIsServed) { Offset::ZERO } else { start };
        if offset < start || offset > self.end {
            let (partition, start, end) = (self.id.clone(), self.start, self.end);
            return Err(LogError::OffsetOutOfRange { partition, offset, start, end });
        }
        let below = below.min(self.end);
        let parts = if offset < below { self.parts(offset) } else { [None, None] };
        Ok(ReadPlan {
            partition: self.id.clone(),
            files: self.files.clone(),
            watch: self.disturbances.watch(),
            offset,
            below,
            max_bytes,
            parts,
        })
    }

    fn parts(&self, offset: Offset) -> [Option<Part>; 2] {
        let segment = self.segment_of(offset);
        let mut next = self.segment_after(segment.base);
        while let Some(empty) = next.filter(|next| next.bytes == 0) {
            next = self.segment_after(empty.base);
        }
        [Some(self.part(segment, offset)), next.map(|next| self.part(next, offset))]
    }

    fn part(&self, segment: &Segment, offset: Offset) -> Part {
        Part {
            base: segment.base,
            bound: self.upper_bound(segment.base),
            bytes: segment.bytes,
            is_active: segment.base == self.active().base,
            log: self.path(segment.base, LOG),
            index: self.path(segment.base, INDEX),
            place: segment.floor_in_memory(offset),
        }
    }
}

impl ReadPlan {
    /// Whether it is known to read nothing.
    pub fn is_empty(&self) -> bool {
        self.parts[0].is_none()
    }

    /// Reads and checks the batches, as [`Log::read`] says it.
    ///
    /// # Errors
    /// `Changed` where the log was cut, deleted from or compacted since the plan was made, or closed: make another one.
    /// `Damaged` as for [`Log::read`].
    pub fn read(&self) -> Result<Fetched, LogError> {
        let result = self.read_unchecked();
        if self.watch.is_disturbed() {
            return Err(LogError::Changed { partition: self.partition.clone() });
        }
        result
    }

    fn read_unchecked(&self) -> Result<Fetched, LogError> {
        for part in self.parts.iter().flatten() {
            let io = |source| LogError::io(&self.partition, "read", &part.log)(source);
            match self.seek(part).map_err(io)? {
                Some(Found::Batch { position, header }) => {
                    return match self.read_batches(part, position).map_err(io)? {
                        Ok(batches) => {
                            let next_offset = last_header(&batches).map_or(self.offset, |header| header.next_offset());
                            Ok(Fetched { batches, next_offset })
                        }
                        Err(_) => Err(self.damaged(part, position, header.base_offset)?),
                    };
                }
                Some(Found::Damage { positions, offsets, what }) => {
                    return Err(self.damage(part, positions.start, offsets.start.min(self.offset)..offsets.end, what));
                }
                None => {}
            }
        }
        Ok(Fetched { batches: Bytes::new(), next_offset: self.offset })
    }

    /// The first batch that ends at or behind the offset, or the damage that has taken it.
    fn seek(&self, part: &Part) -> io::Result<Option<Found>> {
        let entry = match &part.place {
            Searched::Found(entry) => *entry,
            Searched::InFile(written) => {
                let relative = relative(self.offset, part.base);
                let fits = |entry: &OffsetEntry| entry.relative_offset <= relative;
                written.last_where(&*self.files.reader(&part.index)?, fits)?
            }
        };
        let from = Begin::in_segment(part.base, entry);
        let mut scanner = self.scanner(part, from, false)?.with_window(SEEK_WINDOW_BYTES);
        while let Some(found) = scanner.next()? {
            let reached = match &found {
                Found::Batch { header, .. } => header.last_offset() >= self.offset,
                Found::Damage { offsets, .. } => offsets.end > self.offset,
            };
            if reached {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn scanner(&self, part: &Part, from: Begin, verify: bool) -> io::Result<Scanner> {
        let scan = Scan { base: part.base, from, end: part.bytes, below: part.bound, verify };
        Ok(Scanner::new(self.files.reader(&part.log)?, scan))
    }

    fn read_batches(&self, part: &Part, position: u64) -> io::Result<Result<Bytes, BatchError>> {
        let file: Arc<dyn ReadFile> = self.files.reader(&part.log)?;
        let available = (part.bytes - position) as usize;
        let mut wanted = self.max_bytes.clamp(HEADER_BYTES.min(available), available);
        loop {
            let mut bytes = BytesMut::zeroed(wanted);
            let read = disk::read_full(&*file, position, &mut bytes)?;
            self.files.was_read(&*file, &part.log, &(position..position + read as u64), part.is_active);
            bytes.truncate(read);
            match whole_batches(&bytes, self.below, part.bound) {
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
    fn damaged(&self, part: &Part, position: u64, first: Offset) -> Result<LogError, LogError> {
        let from = Begin::At { position, expected: first };
        let found = self.scanner(part, from, true).and_then(|mut scanner| scanner.next());
        let (to, what) = match found.map_err(LogError::io(&self.partition, "read", &part.log))? {
            Some(Found::Damage { offsets, what, .. }) => (offsets.end, what),
            Some(Found::Batch { header, .. }) => (header.next_offset(), "it reads differently each time".into()),
            None => (part.bound, "the file is shorter than it was".into()),
        };
        // Who reads on behind it gets further, whatever stands there.
        Ok(self.damage(part, position, first..to.max(Offset(self.offset.0 + 1)), what))
    }

    fn damage(&self, part: &Part, position: u64, offsets: Range<Offset>, what: String) -> LogError {
        let damage = Box::new(Damage { offsets, file: part.log.clone(), position, what });
        LogError::Damaged { partition: self.partition.clone(), damage }
    }
}

/// An offset as the index of a segment has it.
pub(in super::super) fn relative(offset: Offset, base: Offset) -> i32 {
    (offset.0 - base.0).clamp(-1, i64::from(i32::MAX)) as i32
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
        // Whoever sought the first one has looked at it. What claims a hole is believed where what follows allows it.
        if len > 0 && header.base_offset > expected {
            match BatchHeader::parse(&bytes[len + header.size()..]) {
                Ok(next) if next.base_offset >= header.next_offset() => {}
                Ok(_) | Err(_) => break,
            }
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
