//! A partition's log in memory: what was not flushed may be lost with the power, and a producer's retry is found as
//! `log::producers` finds it, by what the log has.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{BufMut, Bytes, BytesMut};

use super::rng::Rng;
use crate::replication::EpochHistory;
use crate::storage::replicas::{Log, Read};
use crate::types::{LeaderEpoch, Offset, WallTime};

/// How many records of a producer are remembered.
const REMEMBERED: usize = 5;
const RECORD: usize = 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    pub producer: u32,
    pub sequence: u32,
    pub epoch: LeaderEpoch,
    pub value: u64,
}

impl Record {
    pub fn batch(&self) -> Bytes {
        let mut batch = BytesMut::with_capacity(RECORD);
        self.put(&mut batch);
        batch.freeze()
    }

    fn put(&self, batch: &mut BytesMut) {
        batch.put_u32_le(self.producer);
        batch.put_u32_le(self.sequence);
        batch.put_u32_le(self.epoch.0);
        batch.put_u64_le(self.value);
    }

    fn read(bytes: &[u8]) -> Self {
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let value = u64::from_le_bytes(bytes[12..RECORD].try_into().expect("eight bytes"));
        Self { producer: number(0), sequence: number(4), epoch: LeaderEpoch(number(8)), value }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    #[error("sequence {expected} is next")]
    OutOfOrder { expected: u32 },
    #[error("the disk is full")]
    Full,
    #[error("what was written at {0} cannot be read")]
    Damaged(i64),
}

/// The disk of a node's logs. Clones are the same one.
#[derive(Clone, Default, Debug)]
pub struct RecordDisk(Arc<RecordDiskState>);

#[derive(Default, Debug)]
struct RecordDiskState {
    is_full: AtomicBool,
    fails_to_sync: AtomicBool,
}

impl RecordDisk {
    pub fn is_full(&self) -> bool {
        self.0.is_full.load(Ordering::Relaxed)
    }

    pub fn set_full(&self, full: bool) {
        self.0.is_full.store(full, Ordering::Relaxed);
    }

    /// The next sync fails.
    pub fn fail_to_sync(&self) {
        self.0.fails_to_sync.store(true, Ordering::Relaxed);
    }

    pub fn takes_sync(&self) -> bool {
        !self.0.fails_to_sync.swap(false, Ordering::Relaxed)
    }
}

#[derive(Clone, Debug, Default)]
pub struct SimLog {
    start: i64,
    records: Vec<Record>,
    epochs: EpochHistory,
    producers: BTreeMap<u32, VecDeque<(u32, i64)>>,
    /// Up to where it outlives the power.
    durable: i64,
    /// How often it was cut: what a flush from before says is void.
    pub cuts: u64,
    /// What was cut off, and whether it began anew, since somebody looked.
    pub removed: Vec<(i64, Record)>,
    pub restarted: bool,
    /// The last batch was a retry.
    pub repeated: bool,
    disk: RecordDisk,
    /// From where on a sync that failed had something to write: it is seen, and gone with the power.
    dropped: Option<i64>,
    /// Records that the disk does not give back as it was given them.
    damaged: BTreeSet<i64>,
    /// Whoever opens it reads all of it.
    is_unclean: bool,
}

impl SimLog {
    pub fn get(&self, offset: i64) -> Option<&Record> {
        self.records.get(usize::try_from(offset - self.start).ok()?)
    }

    pub fn durable(&self) -> i64 {
        self.durable
    }

    pub fn flushed(&mut self, end: i64, cuts: u64) {
        if cuts == self.cuts {
            self.durable = self.durable.max(end);
        }
    }

    /// The disk spoils one of the records that it has.
    pub fn spoil(&mut self, rng: &mut Rng) -> Option<i64> {
        let count = usize::try_from(self.durable - self.start).ok().filter(|count| *count > 0)?;
        let offset = self.start + rng.below(count) as i64;
        self.damaged.insert(offset);
        Some(offset)
    }

    /// The first of these that cannot be read.
    pub fn first_damaged(&self, offsets: Range<i64>) -> Option<i64> {
        self.damaged.range(offsets.start..).next().copied().filter(|offset| *offset < offsets.end)
    }

    /// What was found when it was opened.
    pub fn first_damage(&self) -> Option<Offset> {
        self.damaged.first().filter(|_| self.is_unclean).map(|offset| Offset(*offset))
    }

    /// The power is gone: a part of what was not flushed may have reached the disk.
    pub fn crash(&mut self, rng: &mut Rng) {
        self.is_unclean = true;
        let end = self.start + self.records.len() as i64;
        let kept = rng.between(self.durable as u64, end as u64) as i64;
        self.cut(self.dropped.map_or(kept, |dropped| kept.min(dropped)));
        self.removed.clear();
    }

    /// Whoever opens it flushes what is there.
    pub fn open(&mut self, disk: &RecordDisk) {
        self.disk = disk.clone();
        self.durable = self.start + self.records.len() as i64;
        self.removed.clear();
        self.restarted = false;
        self.cut(self.durable);
    }

    /// A sync failed.
    pub fn fail_to_sync(&mut self) {
        self.dropped = Some(self.dropped.unwrap_or(self.durable));
    }

    /// It failed, and what was not synced is written once more, as `Log::rewrite_unsynced` does it.
    pub fn rewrite_unsynced(&mut self) {
        self.dropped = None;
    }

    pub fn cut(&mut self, end: i64) {
        let kept = usize::try_from(end - self.start).unwrap_or(0).min(self.records.len());
        let from = self.start + kept as i64;
        self.removed.extend((from..).zip(self.records.drain(kept..)));
        self.epochs.truncate_to(Offset(from));
        self.durable = self.durable.min(from);
        self.dropped = self.dropped.filter(|dropped| *dropped < from);
        self.damaged.split_off(&from);
        self.cuts += 1;
        // As a snapshot of the producers does it, those are kept whose records were deleted.
        let start = self.start;
        self.producers.values_mut().for_each(|known| known.retain(|(_, offset)| *offset < start));
        self.producers.retain(|_, known| !known.is_empty());
        for (offset, record) in (self.start..).zip(self.records.clone()) {
            self.remember(offset, &record);
        }
    }

    fn remember(&mut self, offset: i64, record: &Record) {
        let known = self.producers.entry(record.producer).or_default();
        if known.len() == REMEMBERED {
            known.pop_front();
        }
        known.push_back((record.sequence, offset));
    }

    fn push(&mut self, record: Record) {
        let offset = self.end();
        self.epochs.append(record.epoch, offset);
        self.remember(offset.0, &record);
        self.records.push(record);
    }
}

impl Log for SimLog {
    type Error = Failure;

    fn start(&self) -> Offset {
        Offset(self.start)
    }

    fn end(&self) -> Offset {
        Offset(self.start + self.records.len() as i64)
    }

    fn epochs(&self) -> &EpochHistory {
        &self.epochs
    }

    fn begin_epoch(&mut self, epoch: LeaderEpoch) -> Result<(), Failure> {
        self.epochs.append(epoch, self.end());
        Ok(())
    }

    fn append(&mut self, batch: Bytes, epoch: LeaderEpoch, _: WallTime) -> Result<Offset, Failure> {
        let record = Record { epoch, ..Record::read(&batch) };
        self.repeated = false;
        if let Some(known) = self.producers.get(&record.producer) {
            if let Some((_, offset)) = known.iter().find(|(sequence, _)| *sequence == record.sequence) {
                self.repeated = true;
                return Ok(Offset(*offset));
            }
            let expected = known.back().map_or(record.sequence, |(last, _)| last + 1);
            if expected != record.sequence {
                return Err(Failure::OutOfOrder { expected });
            }
        }
        if self.disk.is_full() {
            return Err(Failure::Full);
        }
        self.push(record);
        Ok(Offset(self.end().0 - 1))
    }

    fn copy(&mut self, batches: Bytes) -> Result<(), Failure> {
        if self.disk.is_full() {
            return Err(Failure::Full);
        }
        batches.chunks_exact(RECORD).for_each(|record| self.push(Record::read(record)));
        Ok(())
    }

    fn read(&self, from: Offset, max_bytes: usize) -> Result<Read, Failure> {
        let mut batches = BytesMut::new();
        let first = usize::try_from(from.0 - self.start).unwrap_or(0);
        let sound = match self.first_damaged(from.0..i64::MAX) {
            Some(offset) if offset == from.0 => return Err(Failure::Damaged(offset)),
            Some(offset) => usize::try_from(offset - from.0).unwrap_or(0),
            None => usize::MAX,
        };
        let records = self.records.iter().skip(first).take((max_bytes / RECORD).max(1).min(sound));
        records.for_each(|record| record.put(&mut batches));
        let end = Offset(from.0 + (batches.len() / RECORD) as i64);
        Ok(Read { pieces: [batches.freeze()].into_iter().collect(), end })
    }

    fn truncate_to(&mut self, end: Offset) -> Result<(), Failure> {
        self.cut(end.0);
        Ok(())
    }

    fn restart_at(&mut self, start: Offset) -> Result<(), Failure> {
        self.cut(self.start);
        (self.start, self.durable, self.epochs, self.restarted) = (start.0, start.0, EpochHistory::default(), true);
        Ok(())
    }

    fn delete_before(&mut self, start: Offset) -> Result<(), Failure> {
        let gone = usize::try_from(start.0 - self.start).unwrap_or(0).min(self.records.len());
        self.records.drain(..gone);
        self.start += gone as i64;
        self.durable = self.durable.max(self.start);
        self.damaged = self.damaged.split_off(&self.start);
        self.epochs.start_at(Offset(self.start));
        Ok(())
    }
}
