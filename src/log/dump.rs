//! Reads any file of a log for people, whoever wrote it, and says what is wrong with it. Nothing is changed.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::batch::{self, BatchError, BatchHeader, Record};
use super::checkpoint::{self, LEADER_EPOCHS, PARTITION_METADATA};
use super::index::{IndexEntry, IndexError, OffsetEntry, TimeEntry, parse_index};
use super::scan::{Begin, Found, Scan, Scanner};
use super::segment::{self, INDEX, LOG, SNAPSHOT, TIME_INDEX};
use crate::disk::{self, Disk, ReadFile};
use crate::types::Offset;

/// The most that a batch's records may take decompressed.
const MAX_DECOMPRESSED_BYTES: usize = 512 << 20;

/// What a file is, by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    Segment,
    OffsetIndex,
    TimeIndex,
    ProducerSnapshot,
    EpochCheckpoint,
    OffsetCheckpoint,
    PartitionMetadata,
}

impl FileKind {
    pub fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        match segment::parse_name(name).map(|(_, extension)| extension) {
            Some(LOG) => Some(Self::Segment),
            Some(INDEX) => Some(Self::OffsetIndex),
            Some(TIME_INDEX) => Some(Self::TimeIndex),
            Some(SNAPSHOT) => Some(Self::ProducerSnapshot),
            // One that compaction has not put into its place yet.
            Some(other) if other.ends_with("swap") || other.ends_with("cleaned") => Some(Self::Segment),
            Some(_) | None => match name {
                LEADER_EPOCHS => Some(Self::EpochCheckpoint),
                PARTITION_METADATA => Some(Self::PartitionMetadata),
                _ if name.ends_with("-offset-checkpoint") => Some(Self::OffsetCheckpoint),
                _ => None,
            },
        }
    }
}

/// What stands in a segment.
#[derive(Debug)]
pub enum SegmentItem {
    Batch {
        position: u64,
        header: BatchHeader,
        /// Where they were asked for.
        records: Option<Result<Vec<Record>, BatchError>>,
    },
    Damage {
        positions: Range<u64>,
        offsets: Range<Offset>,
        what: String,
    },
}

/// Goes through a segment's batches, checking every checksum.
pub struct SegmentDump {
    scanner: Scanner,
    file: Arc<dyn ReadFile>,
    deep: bool,
}

impl SegmentDump {
    /// `deep`: the records too.
    pub fn open(disk: &dyn Disk, path: &Path, deep: bool) -> io::Result<Self> {
        let file: Arc<dyn ReadFile> = disk.open(path)?.into();
        let base = base_of(path);
        let scan = Scan {
            base,
            from: Begin::in_segment(base, None),
            end: file.size()?,
            below: Offset(i64::MAX),
            verify: true,
        };
        Ok(Self { scanner: Scanner::new(file.clone(), scan), file, deep })
    }

    fn records(&self, position: u64, header: &BatchHeader) -> io::Result<Result<Vec<Record>, BatchError>> {
        let bytes = read_batch(&*self.file, position, header)?;
        Ok(batch::records(&bytes, MAX_DECOMPRESSED_BYTES).and_then(Iterator::collect))
    }
}

impl Iterator for SegmentDump {
    type Item = io::Result<SegmentItem>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = match self.scanner.next() {
            Ok(found) => found?,
            Err(error) => return Some(Err(error)),
        };
        Some(match found {
            Found::Damage { positions, offsets, what } => Ok(SegmentItem::Damage { positions, offsets, what }),
            Found::Batch { position, header } if self.deep => self
                .records(position, &header)
                .map(|records| SegmentItem::Batch { position, header, records: Some(records) }),
            Found::Batch { position, header } => Ok(SegmentItem::Batch { position, header, records: None }),
        })
    }
}

/// An index's entries, up to the first that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexDump<E> {
    pub base: Offset,
    pub entries: Vec<E>,
    /// What is wrong with the entry behind them, or with some of them where the segment was looked at.
    pub faults: Vec<String>,
    /// Bytes of zeros behind the entries: Kafka's room for more, in a segment that is still written.
    pub preallocated: usize,
}

/// Reads an offset index; `deep`: against the segment beside it.
pub fn offset_index(disk: &dyn Disk, path: &Path, deep: bool) -> io::Result<IndexDump<OffsetEntry>> {
    let mut dump: IndexDump<OffsetEntry> = read_index(disk, path)?;
    if deep {
        let file = disk.open(&path.with_extension(LOG))?;
        for (number, entry) in dump.entries.iter().enumerate() {
            let mut bytes = [0; batch::HEADER_BYTES];
            let read = disk::read_full(&*file, entry.position.max(0) as u64, &mut bytes)?;
            let last = dump.base.0 + i64::from(entry.relative_offset);
            let found = BatchHeader::parse(&bytes[..read]).ok().map(|header| header.last_offset());
            if found != Some(Offset(last)) {
                dump.faults
                    .push(format!("entry {number}: no batch at byte {} ends with offset {last}", entry.position));
            }
        }
    }
    Ok(dump)
}

/// Reads a time index; `deep`: against the segment beside it.
pub fn time_index(disk: &dyn Disk, path: &Path, deep: bool) -> io::Result<IndexDump<TimeEntry>> {
    let mut dump: IndexDump<TimeEntry> = read_index(disk, path)?;
    if deep {
        let mut largest = HashMap::new();
        for item in SegmentDump::open(disk, &path.with_extension(LOG), false)? {
            if let SegmentItem::Batch { header, .. } = item? {
                largest.insert(header.last_offset(), header.max_timestamp);
            }
        }
        for (number, entry) in dump.entries.iter().enumerate() {
            let last = Offset(dump.base.0 + i64::from(entry.relative_offset));
            if largest.get(&last) != Some(&entry.timestamp) {
                let time = entry.timestamp;
                dump.faults.push(format!("entry {number}: no batch that ends with offset {last} has timestamp {time}"));
            }
        }
    }
    Ok(dump)
}

/// A small file as text or bytes. None where it does not exist.
pub fn read_small(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    checkpoint::read(disk, path)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn read_index<E: IndexEntry>(disk: &dyn Disk, path: &Path) -> io::Result<IndexDump<E>> {
    let bytes = read_small(disk, path)?;
    let whole = bytes.len() - bytes.len() % E::BYTES;
    let (entries, error) = match parse_index(&bytes) {
        Ok(entries) => (entries, None),
        Err(error) => {
            let sound = match error {
                IndexError::Order(number) | IndexError::Negative(number) => number * E::BYTES,
                IndexError::Partial { .. } => longest_sound::<E>(&bytes[..whole]),
            };
            (parse_index(&bytes[..sound]).unwrap_or_default(), Some(error))
        }
    };
    let rest = &bytes[entries.len() * E::BYTES..];
    let preallocated = if rest.iter().all(|byte| *byte == 0) { rest.len() } else { 0 };
    let faults = error.filter(|_| preallocated == 0).map(|error| error.to_string()).into_iter().collect();
    Ok(IndexDump { base: base_of(path), entries, faults, preallocated })
}

fn longest_sound<E: IndexEntry>(bytes: &[u8]) -> usize {
    match parse_index::<E>(bytes) {
        Err(IndexError::Order(number) | IndexError::Negative(number)) => number * E::BYTES,
        Ok(_) | Err(IndexError::Partial { .. }) => bytes.len(),
    }
}

fn read_batch(file: &dyn ReadFile, position: u64, header: &BatchHeader) -> io::Result<Bytes> {
    let mut bytes = BytesMut::zeroed(header.size());
    let read = disk::read_full(file, position, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes.freeze())
}

fn base_of(path: &Path) -> Offset {
    let name = path.file_name().and_then(|name| name.to_str());
    name.and_then(segment::parse_name).map_or(Offset::ZERO, |(base, _)| base)
}
