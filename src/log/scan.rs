//! Goes through a segment's batches one after another, and around what is damaged.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::batch::{BatchError, BatchHeader, HEADER_BYTES, size_of_next};
use super::index::OffsetEntry;
use super::segment;
use crate::disk::{self, ReadFile};
use crate::types::Offset;

/// The most that is read at once, unless a batch is larger.
const WINDOW_BYTES: usize = 64 * 1024;

/// What is to be found in a segment.
#[derive(Debug)]
pub(super) enum Found {
    Batch {
        position: u64,
        header: BatchHeader,
    },
    /// No batch can be read here. Behind `positions` one can again, unless they go to the end of the file.
    Damage {
        positions: Range<u64>,
        offsets: Range<Offset>,
        what: String,
    },
}

/// Where a scan begins, and what the first batch there is known to be.
#[derive(Clone, Copy)]
pub(super) enum Begin {
    /// Its base offset is at least this one. Holes are no damage: compaction and followers of a compacted log make them.
    At { position: u64, expected: Offset },
    /// An index entry says that its last offset is this one.
    Entry { position: u64, last_offset: Offset },
}

impl Begin {
    /// At an index entry, or at the beginning of a segment with this base.
    pub fn in_segment(base: Offset, entry: Option<OffsetEntry>) -> Self {
        match entry {
            None => Self::At { position: 0, expected: base },
            Some(entry) => Self::Entry {
                position: entry.position.max(0) as u64,
                last_offset: Offset(base.0 + i64::from(entry.relative_offset)),
            },
        }
    }

    pub fn position(self) -> u64 {
        let (Self::At { position, .. } | Self::Entry { position, .. }) = self;
        position
    }
}

/// How a scan is done.
pub(super) struct Scan {
    /// The segment's, from which on offsets are counted in 31 bits.
    pub base: Offset,
    pub from: Begin,
    /// Where the readable bytes end.
    pub end: u64,
    /// What offsets are below.
    pub below: Offset,
    /// Whether the checksums are looked at.
    pub verify: bool,
}

pub(super) struct Scanner {
    file: Arc<dyn ReadFile>,
    scan: Scan,
    position: u64,
    /// What the next batch's base offset is at least.
    expected: Offset,
    start: u64,
    bytes: Vec<u8>,
    window: usize,
}

impl Scanner {
    pub fn new(file: Arc<dyn ReadFile>, scan: Scan) -> Self {
        let position = scan.from.position();
        let expected = match scan.from {
            Begin::At { expected, .. } => expected,
            Begin::Entry { .. } => Offset::ZERO,
        };
        Self { file, scan, position, expected, start: position, bytes: Vec::new(), window: WINDOW_BYTES }
    }

    /// Reads less at once, for who wants a few batches only.
    pub fn with_window(mut self, bytes: usize) -> Self {
        self.window = bytes;
        self
    }

    /// Where the readable bytes end.
    pub fn end(&self) -> u64 {
        self.scan.end
    }

    pub fn next(&mut self) -> io::Result<Option<Found>> {
        if self.position >= self.scan.end {
            return Ok(None);
        }
        let from = self.position;
        let awaited = match self.scan.from {
            Begin::Entry { position, last_offset } if position == from => Some(last_offset),
            Begin::Entry { .. } | Begin::At { .. } => None,
        };
        let found = match self.batch_at(from, true)? {
            Ok(header) if self.is_belied(from, &header, awaited)? => Err(header.wrong_offsets()),
            found => found,
        };
        match found {
            Ok(header) => {
                (self.position, self.expected) = (from + header.size() as u64, header.next_offset());
                Ok(Some(Found::Batch { position: from, header }))
            }
            Err(error) => {
                let start = awaited.unwrap_or(self.expected);
                self.expected = awaited.map_or(start, |last| Offset(last.0.saturating_add(1)));
                let (to, next) = self.resume(from)?;
                (self.position, self.expected) = (to, next);
                let offsets = start..next.max(start);
                Ok(Some(Found::Damage { positions: from..to, offsets, what: error.to_string() }))
            }
        }
    }

    /// Whether the offsets of a batch are not its own, which its checksum doesn't cover: an index entry says otherwise, or it claims a
    /// hole before it in which what follows belongs.
    fn is_belied(&mut self, position: u64, header: &BatchHeader, awaited: Option<Offset>) -> io::Result<bool> {
        if let Some(last) = awaited {
            return Ok(last != header.last_offset());
        }
        let next = position + header.size() as u64;
        if header.base_offset == self.expected || next >= self.scan.end {
            return Ok(false);
        }
        match BatchHeader::parse(self.get(next, HEADER_BYTES)?) {
            Ok(follows) if follows.base_offset >= header.next_offset() => Ok(false),
            Ok(_) | Err(_) => Ok(self.search(next)?.is_some_and(|(_, base)| base < header.next_offset())),
        }
    }

    /// The first place behind a damage where a batch can be read, and its base offset.
    fn resume(&mut self, from: u64) -> io::Result<(u64, Offset)> {
        // Mostly the length is not what is damaged.
        if let Ok(size) = size_of_next(self.get(from, 12)?)
            && let Some(header) = self.batch_behind(from + size as u64)?
        {
            return Ok((from + size as u64, header.base_offset));
        }
        Ok(self.search(from + 1)?.unwrap_or((self.scan.end, self.scan.below)))
    }

    /// The same, from a place on, if there is one.
    fn search(&mut self, mut position: u64) -> io::Result<Option<(u64, Offset)>> {
        while position + HEADER_BYTES as u64 <= self.scan.end {
            // The magic alone sorts out most places, without a look at each.
            let (start, window) = (position, self.get_some(position + 16)?);
            match window.iter().position(|byte| *byte == 2) {
                Some(ahead) => position = start + ahead as u64,
                None => {
                    position = start + window.len().max(1) as u64;
                    continue;
                }
            }
            if let Some(header) = self.batch_behind(position)? {
                return Ok(Some((position, header.base_offset)));
            }
            position += 1;
        }
        Ok(None)
    }

    /// The batch at a place behind a damage, unless the one that follows belongs before it.
    fn batch_behind(&mut self, position: u64) -> io::Result<Option<BatchHeader>> {
        let Ok(header) = self.batch_at(position, false)? else { return Ok(None) };
        let follows = self.batch_at(position + header.size() as u64, false)?.ok();
        let is_belied = follows.is_some_and(|follows| follows.base_offset < header.next_offset());
        Ok(Some(header).filter(|_| !is_belied))
    }

    /// The batch at a place, if it is whole and fits in. `next_in_turn`: it follows on what was read before.
    fn batch_at(&mut self, position: u64, next_in_turn: bool) -> io::Result<Result<BatchHeader, BatchError>> {
        let header = match BatchHeader::parse(self.get(position, HEADER_BYTES)?) {
            Ok(header) => header,
            Err(error) => return Ok(Err(error)),
        };
        let fits = header.base_offset >= self.expected && header.next_offset() <= self.scan.below;
        if !fits || !segment::holds(self.scan.base, header.last_offset()) {
            return Ok(Err(header.wrong_offsets()));
        }
        let available = self.scan.end.saturating_sub(position);
        if header.size() as u64 > available {
            return Ok(Err(BatchError::Truncated { needed: header.size(), available: available as usize }));
        }
        if self.scan.verify || !next_in_turn {
            return Ok(BatchHeader::verify(self.get(position, header.size())?));
        }
        Ok(Ok(header))
    }

    /// So many bytes at a place, or fewer where the file ends.
    fn get(&mut self, position: u64, len: usize) -> io::Result<&[u8]> {
        let available = self.scan.end.saturating_sub(position);
        let len = (len as u64).min(available) as usize;
        if position < self.start || position + len as u64 > self.start + self.bytes.len() as u64 {
            let fill = (self.window.max(len) as u64).min(available) as usize;
            self.bytes.resize(fill, 0);
            self.start = position;
            let read = disk::read_full(&*self.file, position, &mut self.bytes)?;
            self.bytes.truncate(read);
        }
        let at = ((position - self.start) as usize).min(self.bytes.len());
        Ok(&self.bytes[at..(at + len).min(self.bytes.len())])
    }

    /// What is at hand at a place, and one byte at least unless the file ends.
    fn get_some(&mut self, position: u64) -> io::Result<&[u8]> {
        self.get(position, 1)?;
        let at = (position.saturating_sub(self.start) as usize).min(self.bytes.len());
        Ok(&self.bytes[at..])
    }
}
