//! Compaction by key, as Kafka defines it: of each key the last record stays, with its offset. A tombstone stays until
//! `delete.retention.ms` after the compaction that first met it. The active segment is never touched.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};

use super::super::batch::{self, BatchHeader, Record};
use super::super::scan::{Begin, Found, Scan, Scanner};
use super::super::segment::{self, INDEX, LOG, Segment, TIME_INDEX};
use super::super::{Damage, Files, LogError};
use super::{Log, MaintenanceLimits};
use crate::disk::{self, ReadFile};
use crate::types::Offset;

/// The end of a file's name that is being written. What ends so after a crash is refuse.
pub(super) const CLEANED: &str = ".cleaned";
const SWAP: &str = ".swap";
const WRITE_BYTES: usize = 1 << 20;

/// What a compaction came to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Compacted {
    pub bytes_before: u64,
    pub bytes_after: u64,
    /// Whether more keys wait than were taken at once.
    pub is_partial: bool,
}

/// A compacted segment that stands ready to replace those from `base` up to `end`. Its name is the decision: whoever finds it
/// completes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Swap {
    base: Offset,
    end: Offset,
}

impl Swap {
    pub fn parse(name: &str) -> Option<Self> {
        let (base, rest) = segment::parse_name(name)?;
        let (end, _) = segment::parse_name(rest).filter(|(_, extension)| *extension == &SWAP[1..])?;
        Some(Self { base, end })
    }

    fn path(&self, dir: &Path, suffix: &str) -> PathBuf {
        dir.join(format!("{:020}.{:020}{suffix}", self.base.0, self.end.0))
    }

    /// Removes the segments that it replaces, and takes their place. It can be repeated.
    pub fn complete(&self, files: &Files, dir: &Path) -> io::Result<()> {
        for name in files.disk().list(dir)? {
            let replaced = segment::parse_name(&name).is_some_and(|(base, kind)| {
                (self.base..self.end).contains(&base) && [LOG, INDEX, TIME_INDEX].contains(&kind)
            });
            if replaced {
                let path = dir.join(&name);
                files.change(&path, |disk| disk.remove(&path))?;
            }
        }
        files.disk().sync_dir(dir)?;
        let path = segment::path(dir, self.base, LOG);
        files.change(&path, |disk| disk.rename(&self.path(dir, SWAP), &path))?;
        files.disk().sync_dir(dir)
    }
}

/// The last offset of each key. Keys are known by 128 bits of their SHA-256, so that a long key costs no more than a short one.
struct LastOffsets {
    by_key: HashMap<[u8; 16], Offset>,
    limit: usize,
}

/// A compaction that goes on from call to call.
pub(super) struct Compaction {
    last: LastOffsets,
    /// The base from which on segments are yet to be written anew.
    next: Offset,
    /// The offset up to which all keys are in `last`.
    end: Offset,
    /// How often the log was cut when it began.
    cuts: u64,
}

impl LastOffsets {
    fn new(limit: usize) -> Self {
        Self { by_key: HashMap::new(), limit: limit.max(1) }
    }

    fn digest(key: &[u8]) -> [u8; 16] {
        let mut digest = [0; 16];
        digest.copy_from_slice(&Sha256::digest(key)[..16]);
        digest
    }

    fn is_last(&self, key: &[u8], offset: Offset) -> bool {
        #[cfg(test)]
        let offset =
            if crate::log::planted(crate::log::Bug::CompactsTheNewest) { Offset(offset.0 - 1) } else { offset };
        self.by_key.get(&Self::digest(key)).is_none_or(|last| offset >= *last)
    }
}

impl Log {
    /// Compacts what can be: whole segments whose records are all below `below` (the high watermark) and older than
    /// `min.compaction.lag.ms`. At most `max_keys` keys, 64 bytes of memory each, are taken at once; then it is to be called
    /// again. `now_ms` is wall time in milliseconds since 1970.
    pub fn compact(&mut self, now_ms: i64, below: Offset, max_keys: usize) -> Result<Compacted, LogError> {
        self.check_usable()?;
        let first = self.first_dirty();
        let until = self.first_uncleanable(now_ms, below);
        if !self.config.compact || first >= until {
            return Ok(Compacted::default());
        }
        let mut last = LastOffsets::new(max_keys);
        let end = self.collect_keys(first, until, &mut last, u64::MAX)?;
        let mut done = Compacted { is_partial: end < until, ..Compacted::default() };
        for group in self.groups(Offset::ZERO, end) {
            let before: u64 = group.iter().map(|base| self.segments[base].bytes).sum();
            let after = self.compact_group(&group, &last, now_ms)?;
            done.bytes_before += before;
            done.bytes_after += after;
        }
        self.cleaned = end;
        self.compaction = None;
        Ok(done)
    }

    /// Goes on with a compaction by one run of segments, or begins one, where so much of the log is dirty: with the keys of so
    /// many bytes at most, and of one segment at least. None where there is nothing to do.
    pub(super) fn compact_some(
        &mut self,
        now_ms: i64,
        below: Offset,
        limits: &MaintenanceLimits,
    ) -> Result<Option<Compacted>, LogError> {
        let cuts = self.cuts;
        let under_way = self.compaction.take().filter(|compaction| compaction.cuts == cuts && self.config.compact);
        let Some(mut compaction) = under_way else {
            let (first, until) = (self.first_dirty(), self.first_uncleanable(now_ms, below));
            if !self.config.compact || first >= until {
                return Ok(None);
            }
            let dirty = self.dirty_ratio() * 100.0 >= f64::from(self.config.min_cleanable_dirty_percent);
            if !(dirty || self.is_overdue(first, now_ms)) {
                return Ok(None);
            }
            let mut last = LastOffsets::new(limits.keys);
            let end = self.collect_keys(first, until, &mut last, limits.bytes)?;
            self.compaction = Some(Compaction { last, next: Offset::ZERO, end, cuts });
            return Ok(Some(Compacted { is_partial: true, ..Compacted::default() }));
        };
        let Some(group) = self.groups(compaction.next, compaction.end).into_iter().next() else {
            self.cleaned = self.cleaned.max(compaction.end);
            return Ok(Some(Compacted::default()));
        };
        let bytes_before = group.iter().map(|base| self.segments[base].bytes).sum();
        compaction.next = self.upper_bound(group[group.len() - 1]);
        let bytes_after = self.compact_group(&group, &compaction.last, now_ms)?;
        self.compaction = Some(compaction);
        Ok(Some(Compacted { bytes_before, bytes_after, is_partial: true }))
    }

    /// What part of the log's closed segments compaction has not looked at, from 0 to 1 (Kafka's dirty ratio).
    pub fn dirty_ratio(&self) -> f64 {
        let closed = self.segments.values().filter(|segment| segment.base != self.active().base);
        let (mut dirty, mut all) = (0, 0);
        for segment in closed {
            all += segment.bytes;
            dirty += if segment.base >= self.first_dirty() { segment.bytes } else { 0 };
        }
        if all == 0 { 0.0 } else { dirty as f64 / all as f64 }
    }

    /// Whether the oldest record that compaction has not looked at is older than `max.compaction.lag.ms`.
    fn is_overdue(&self, first: Offset, now_ms: i64) -> bool {
        let oldest = self.segment_of(first).first_timestamp;
        oldest.is_some_and(|oldest| now_ms.saturating_sub(oldest) > self.config.max_compaction_lag_ms)
    }

    fn first_uncleanable(&self, now_ms: i64, below: Offset) -> Offset {
        let young = |segment: &Segment| {
            self.config.min_compaction_lag_ms > 0
                && segment.largest.0 > now_ms.saturating_sub(self.config.min_compaction_lag_ms)
        };
        let active = self.active().base;
        #[cfg(test)]
        let below = if crate::log::planted(crate::log::Bug::CompactsTheUncommitted) { active } else { below };
        let excluded =
            |segment: &&Segment| segment.base == active || self.upper_bound(segment.base) > below || young(segment);
        self.segments.values().find(excluded).map_or(active, |segment| segment.base)
    }

    /// The offset up to which all keys are in `last`: `until`, or less where it is full.
    fn collect_keys(
        &self,
        first: Offset,
        until: Offset,
        last: &mut LastOffsets,
        mut bytes_left: u64,
    ) -> Result<Offset, LogError> {
        let begin = self.segment_of(first).base;
        for base in self.segments.range(begin..until).map(|(base, _)| *base).collect::<Vec<_>>() {
            if bytes_left == 0 {
                return Ok(base.max(first));
            }
            bytes_left = bytes_left.saturating_sub(self.segments[&base].bytes);
            let mut batches = self.batches(base)?;
            while let Some((header, bytes)) = batches.next(self)? {
                if header.next_offset() <= first || header.attributes.is_control() {
                    continue;
                }
                // Whole batches only, so that the end is one that records lie before or behind.
                if last.by_key.len() + header.record_count as usize > last.limit && !last.by_key.is_empty() {
                    return Ok(header.base_offset.max(first));
                }
                for record in self.records(&bytes)? {
                    if let Some(key) = record.key.as_deref().filter(|_| record.offset >= first) {
                        last.by_key.insert(LastOffsets::digest(key), record.offset);
                    }
                }
            }
        }
        Ok(until)
    }

    /// Runs of segments that begin at or behind `from` and before `end`, and that make one segment together.
    fn groups(&self, from: Offset, end: Offset) -> Vec<Vec<Offset>> {
        let mut groups: Vec<Vec<Offset>> = Vec::new();
        let mut bytes = 0;
        for segment in self.segments.range(from.min(end)..end).map(|(_, segment)| segment) {
            if segment.base == self.active().base {
                break;
            }
            let upper = self.upper_bound(segment.base).0;
            let fits = |group: &&mut Vec<Offset>| {
                bytes + segment.bytes <= self.config.segment_bytes.min(i32::MAX as u64)
                    && upper - group[0].0 <= i64::from(i32::MAX)
            };
            match groups.last_mut().filter(fits) {
                Some(group) => {
                    group.push(segment.base);
                    bytes += segment.bytes;
                }
                None => {
                    groups.push(vec![segment.base]);
                    bytes = segment.bytes;
                }
            }
        }
        groups
    }

    /// Replaces a run of segments by one, durably. Its bytes.
    fn compact_group(&mut self, group: &[Offset], last: &LastOffsets, now_ms: i64) -> Result<u64, LogError> {
        let (files, dir) = (self.files.clone(), self.dir.clone());
        let swap = Swap { base: group[0], end: self.upper_bound(group[group.len() - 1]) };
        let cleaned = swap.path(&dir, CLEANED);
        let mut segment = self.write_cleaned(&cleaned, group, last, now_ms)?;
        let path = swap.path(&dir, SWAP);
        let decided = files.disk().rename(&cleaned, &path).and_then(|()| files.disk().sync_dir(&dir));
        decided.map_err(self.io("rename a compacted segment to", &path))?;
        // From here on there is no way back: who opens the log would go on.
        self.disturbances.note();
        let completed = swap.complete(&files, &dir).and_then(|()| segment.spill(&files, &dir));
        if let Err(error) = completed {
            let error = self.io("complete a compaction in", &dir)(error);
            return Err(self.poison(error));
        }
        group.iter().for_each(|base| _ = self.segments.remove(base));
        let bytes = segment.bytes;
        self.segments.insert(segment.base, segment);
        for base in &group[1..] {
            if self.snapshot != Some(*base) {
                self.remove_snapshot(*base)?;
            }
        }
        Ok(bytes)
    }

    fn write_cleaned(
        &self,
        path: &Path,
        group: &[Offset],
        last: &LastOffsets,
        now_ms: i64,
    ) -> Result<Segment, LogError> {
        let mut segment = Segment::empty(group[0]);
        let mut file = self.files.disk().create(path).map_err(self.io("create", path))?;
        let mut buffer = BytesMut::new();
        for base in group {
            let mut batches = self.batches(*base)?;
            while let Some((header, bytes)) = batches.next(self)? {
                let Some(kept) = self.compact_batch(&header, &bytes, last, now_ms)? else { continue };
                let header = BatchHeader::parse(&kept).map_err(|source| self.corrupt(source))?;
                segment.note(&header, segment.bytes, self.config.index_interval_bytes);
                segment.bytes += kept.len() as u64;
                buffer.extend_from_slice(&kept);
                if buffer.len() >= WRITE_BYTES {
                    file.append(&buffer).map_err(self.io("write", path))?;
                    buffer.clear();
                }
            }
        }
        segment.note_time();
        file.append(&buffer).and_then(|()| file.sync()).map_err(self.io("write", path))?;
        Ok(segment)
    }

    /// What is left of a batch, or none where nothing is.
    fn compact_batch(
        &self,
        header: &BatchHeader,
        bytes: &Bytes,
        last: &LastOffsets,
        now_ms: i64,
    ) -> Result<Option<Bytes>, LogError> {
        if header.attributes.is_control() {
            return Ok(Some(bytes.clone()));
        }
        let horizon = header.delete_horizon_ms();
        let drops_tombstones = horizon.is_some_and(|horizon| horizon <= now_ms);
        let stays = |record: &Record| {
            let Some(key) = record.key.as_deref() else { return false };
            last.is_last(key, record.offset) && (record.value.is_some() || !drops_tombstones)
        };
        let kept: Vec<Record> = self.records(bytes)?.into_iter().filter(stays).collect();
        if kept.is_empty() && !self.producers.is_last_batch(header) {
            return Ok(None);
        }
        let new_horizon = match horizon {
            None if kept.iter().any(|record| record.value.is_none()) => {
                Some(now_ms.saturating_add(self.config.delete_retention_ms))
            }
            Some(_) | None => None,
        };
        if new_horizon.is_none() && kept.len() == header.record_count as usize {
            return Ok(Some(bytes.clone()));
        }
        let rebuilt = batch::rebuild(header, &kept, new_horizon);
        rebuilt.map(Some).map_err(self.io("compress a batch of", &self.dir))
    }

    fn records(&self, bytes: &Bytes) -> Result<Vec<Record>, LogError> {
        let records = batch::records(bytes, self.config.max_decompressed_bytes);
        records.and_then(Iterator::collect).map_err(|source| self.corrupt(source))
    }

    fn batches(&self, base: Offset) -> Result<Batches, LogError> {
        let path = self.path(base, LOG);
        let opened = self.files.disk().open(&path);
        let file: Arc<dyn ReadFile> = opened.map_err(self.io("open", &path))?.into();
        let end = self.segments[&base].bytes;
        let (from, below) = (Begin::in_segment(base, None), self.upper_bound(base));
        let scan = Scan { base, from, end, below, verify: true };
        Ok(Batches { scanner: Scanner::new(file.clone(), scan), file, path })
    }
}

/// A segment's batches with their bytes. Damage ends it: nothing may be compacted away that cannot be read.
struct Batches {
    scanner: Scanner,
    file: Arc<dyn ReadFile>,
    path: PathBuf,
}

impl Batches {
    fn next(&mut self, log: &Log) -> Result<Option<(BatchHeader, Bytes)>, LogError> {
        match self.scanner.next().map_err(log.io("read", &self.path))? {
            None => Ok(None),
            Some(Found::Batch { position, header }) => {
                let mut bytes = BytesMut::zeroed(header.size());
                let read = disk::read_full(&*self.file, position, &mut bytes).map_err(log.io("read", &self.path))?;
                bytes.truncate(read);
                Ok(Some((header, bytes.freeze())))
            }
            Some(Found::Damage { positions, offsets, what }) => {
                let damage = Damage { offsets, file: self.path.clone(), position: positions.start, what };
                Err(LogError::Damaged { partition: log.id.clone(), damage: Box::new(damage) })
            }
        }
    }
}
