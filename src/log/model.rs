//! A log against a model of it, over a disk that loses what was not synced, tears writes and stops at any byte.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use super::batch::{BatchBuilder, Compression, ProducerStamp, Record};
use super::sabotage::{self, Bug};
use super::tests::{TOPIC, decode, id};
use super::*;
use crate::disk::sim::SimDisk;
use crate::types::{LeaderEpoch, Offset};

const NOW: i64 = 1_800_000_000_000;
const ALL: Offset = Offset(i64::MAX);

#[derive(Clone, Debug)]
enum Op {
    Append {
        keys: Vec<u8>,
        producer: u8,
        codec: u8,
        later: u8,
    },
    Sync,
    /// Something is appended while a sync is under way.
    SyncBeside(Vec<u8>),
    Checkpoint,
    Roll,
    /// A part of the log, of 255, stays.
    Truncate(u8),
    DeleteBefore(u8),
    /// So much of what is synced, of 255, is committed.
    DeleteOld(u8),
    /// The same, and so many keys are taken at once.
    Compact(u8, u8),
    /// The same: one step of what is due.
    Maintain(u8, u8),
    Retry,
    /// The machine stops so many steps later, and loses power or goes on after a kill.
    Stop {
        steps: u16,
        is_kill: bool,
    },
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let append = (prop::collection::vec(0u8..6, 1..5), 0u8..3, 0u8..5, 0u8..10)
        .prop_map(|(keys, producer, codec, later)| Op::Append { keys, producer, codec, later });
    // Mostly soon: a later one is set anew before it comes.
    let steps = prop_oneof![0u16..200, 0u16..1_000, 0u16..3_000];
    prop_oneof![
        12 => append,
        4 => Just(Op::Sync),
        1 => prop::collection::vec(0u8..6, 1..5).prop_map(Op::SyncBeside),
        2 => Just(Op::Checkpoint),
        1 => Just(Op::Roll),
        1 => any::<u8>().prop_map(Op::Truncate),
        1 => any::<u8>().prop_map(Op::DeleteBefore),
        2 => any::<u8>().prop_map(Op::DeleteOld),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(part, keys)| Op::Compact(part, keys)),
        3 => (any::<u8>(), any::<u8>()).prop_map(|(part, keys)| Op::Maintain(part, keys)),
        1 => Just(Op::Retry),
        8 => (steps, prop::bool::weighted(0.3)).prop_map(|(steps, is_kill)| Op::Stop { steps, is_kill }),
        1 => Just(Op::Reopen),
    ]
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Written {
    key: u8,
    serial: u32,
    timestamp: i64,
    epoch: u32,
    /// Producer and sequence, with the last offset of its batch.
    producer: (u8, i32),
    batch_end: i64,
}

/// What the log has been told, and what of that has to be there.
#[derive(Default)]
struct Model {
    written: BTreeMap<i64, Written>,
    start: i64,
    end: i64,
    synced: i64,
    epoch: u32,
    serial: u32,
    clock: i64,
    compacts: bool,
    /// What compaction took away.
    gone: BTreeSet<i64>,
    /// What is committed, as far as the log was told (its high watermark): no cut goes below it.
    committed: i64,
}

impl Model {
    fn sequence(&self, producer: u8) -> Option<i32> {
        self.written
            .range(..self.end)
            .rev()
            .map(|(_, record)| record.producer)
            .find(|(id, _)| *id == producer)
            .map(|(_, s)| s)
    }

    /// The high watermark moves on, to a part of what is synced, of 255.
    fn commit(&mut self, part: u8) -> Offset {
        let reached = self.start + (self.synced - self.start).max(0) * i64::from(part) / 255;
        self.committed = self.committed.max(reached.min(self.synced));
        Offset(self.committed)
    }

    /// Nothing at or behind `end` is there.
    fn cut(&mut self, end: i64) {
        self.written.split_off(&end);
        self.gone.split_off(&end);
        self.end = end;
        self.synced = self.synced.min(end);
        self.start = self.start.min(end);
    }

    fn check(&mut self, log: &Log) {
        assert_eq!((log.start().0, log.end().0), (self.start, self.end));
        assert!(log.synced_end().0 >= self.synced, "{log:?} {}", self.synced);
        let found = read_all(log);
        let mut missing = Vec::new();
        let mut expected = self.written.range(self.start..self.end).peekable();
        for record in &found {
            let passed: Vec<_> =
                std::iter::from_fn(|| expected.next_if(|(offset, _)| **offset < record.offset.0)).collect();
            missing.extend(passed);
            let (offset, written) = expected.next().expect("a record that nobody wrote");
            assert_eq!((record.offset.0, record.timestamp), (*offset, written.timestamp));
            assert_eq!(record.value.as_deref(), Some(value(written.serial).as_bytes()), "at {offset}");
        }
        missing.extend(expected);
        missing.iter().for_each(|(offset, written)| self.check_missing(**offset, written));
        self.gone = missing.into_iter().map(|(offset, _)| *offset).collect();
        if let Some(before) = self.start.checked_sub(1).filter(|before| *before >= 0) {
            let refused = log.read(Offset(before), 700, ALL);
            assert!(matches!(refused, Err(LogError::OffsetOutOfRange { .. })), "{refused:?} before the start");
        }
        self.check_times(log, &found);
        let starts = log.epochs().starts().iter().map(|(epoch, start)| (epoch.0, start.0));
        // Nobody begins an epoch here but by a record; one that only the start has is where all records were deleted.
        let beyond = starts.clone().find(|(_, start)| *start >= self.end.max(self.start + 1));
        assert_eq!(beyond, None, "an epoch behind the end, {log:?}");
        let epochs: Vec<(u32, i64)> = starts.filter(|(_, start)| *start < self.end).collect();
        let wanted = self.epochs();
        // Where the start fell back, the first one that is known counts from there.
        let wanted = &wanted[wanted.len().saturating_sub(epochs.len())..];
        assert_eq!(epochs.get(1..), wanted.get(1..), "epochs");
        if let Some((held, wanted)) = epochs.first().zip(wanted.first()) {
            let is_claimed = held.1 == self.start && held.0 >= wanted.0;
            assert!(held == wanted || is_claimed, "{epochs:?} {wanted:?}");
        }
        assert!(!epochs.is_empty() || self.start == self.end);
        for id in 0..3u8 {
            let held =
                log.producers().get(id.into()).and_then(|state| state.batches.back()).map(|last| last.last_sequence);
            assert_eq!(held, self.sequence(id), "producer {id}");
        }
    }

    /// Only compaction takes records away, and only where the same key comes again, durably.
    fn check_missing(&self, offset: i64, written: &Written) {
        let mut later = self.written.range(offset + 1..self.end);
        let again = later.any(|(_, later)| later.key == written.key);
        let again = again && offset < self.committed;
        assert!(self.compacts && (again || self.gone.contains(&offset)), "the record at {offset} is missing");
    }

    /// What retention took away was committed, and old or too much.
    fn check_deleted(&self, log: &Log, size_before: u64, now: i64) {
        let (from, to) = (self.start, log.start().0);
        assert!(from <= to && to <= self.committed.max(from), "{from} to {to} of {} committed", self.committed);
        if let Some(limit) = log.config().retention_bytes {
            let wanted = size_before.min(limit);
            assert!(log.size_bytes() >= wanted, "{} bytes of {size_before} are left", log.size_bytes());
        }
        if let Some(ms) = log.config().retention_ms {
            let young = self.written.range(from..to).find(|(_, written)| written.timestamp >= now - ms);
            assert_eq!(young.filter(|(offset, _)| !self.gone.contains(offset)), None, "too young at {now}");
        }
    }

    fn check_times(&self, log: &Log, found: &[Record]) {
        for time in [NOW, NOW + self.clock / 2, NOW + self.clock, NOW + self.clock + 1] {
            let wanted = found.iter().find(|record| record.timestamp >= time).map(|record| record.offset);
            let answer = log.offset_for_timestamp(time).unwrap().map(|found| found.offset);
            assert_eq!(answer, wanted, "time {time}");
        }
    }

    fn epochs(&self) -> Vec<(u32, i64)> {
        let mut epochs: Vec<(u32, i64)> = Vec::new();
        for (offset, written) in self.written.range(..self.end) {
            if epochs.last().is_none_or(|(epoch, _)| *epoch != written.epoch) {
                epochs.push((written.epoch, *offset));
            }
        }
        let before = epochs.iter().filter(|(_, start)| *start <= self.start).count();
        if before > 0 {
            epochs.drain(..before - 1);
            epochs[0].1 = self.start;
        }
        epochs.retain(|(_, start)| *start < self.end);
        epochs
    }
}

fn value(serial: u32) -> String {
    format!("{serial}-{}", "x".repeat(serial as usize % 97))
}

fn read_all(log: &Log) -> Vec<Record> {
    let (mut found, mut offset) = (Vec::new(), log.start());
    loop {
        let fetched = log.read(offset, 700, ALL).unwrap();
        if fetched.batches.is_empty() {
            return found;
        }
        found.extend(decode(&fetched.batches).into_iter().filter(|record| record.offset >= offset));
        offset = fetched.next_offset;
    }
}

struct Run {
    disk: SimDisk,
    log: Option<Log>,
    model: Model,
    config: LogConfig,
    is_kill: bool,
    last: Option<(Bytes, i64)>,
}

impl Run {
    fn new(seed: u64, compacts: bool) -> Self {
        // By size in some runs, by age in others.
        let by_age = seed.is_multiple_of(3);
        let config = LogConfig {
            segment_bytes: 1_500,
            segment_ms: 100,
            index_interval_bytes: 150,
            compact: compacts,
            delete: true,
            retention_ms: by_age.then_some(60),
            retention_bytes: (!by_age).then_some(5_000),
            ..LogConfig::default()
        };
        let model = Model { compacts, epoch: 1, ..Model::default() };
        let mut run = Self { disk: SimDisk::new(seed), log: None, model, config, is_kill: false, last: None };
        run.reopen();
        run
    }

    fn open(&self) -> Result<Log, LogError> {
        let files = Files::new(Arc::new(self.disk.clone()), 4);
        Log::open(id(), PathBuf::from("/logs/orders-0"), self.config.clone(), files, OpenOptions::new(TOPIC), NOW)
    }

    /// Opens what a stop left behind, and holds it to what was durable.
    fn reopen(&mut self) {
        self.log = None;
        let mut log = loop {
            match self.open() {
                Ok(log) => break log,
                // It stopped again.
                Err(error) => {
                    assert!(error.to_string().contains("has stopped"), "{error}");
                    self.disk.crash();
                }
            }
        };
        let model = &mut self.model;
        for damage in log.damages().to_vec() {
            assert!(damage.offsets.start.0 >= model.synced, "{damage:?} was synced to {}", model.synced);
        }
        if let Some(first) = log.damages().first().map(|damage| damage.offsets.start) {
            // Torn in the middle: as a replica would do it, which fetches it anew.
            log.truncate_to(first, NOW).unwrap();
            assert_eq!(log.damages(), []);
        }
        assert!((model.synced..=model.end).contains(&log.end().0), "{log:?}: {} to {}", model.synced, model.end);
        assert!(log.start().0 <= model.start);
        let ends_a_batch = |last: &Written| last.batch_end == log.end().0 - 1;
        assert!(model.written.range(..log.end().0).next_back().is_none_or(|(_, last)| ends_a_batch(last)));
        model.cut(log.end().0);
        model.start = log.start().0;
        model.synced = model.end;
        model.check(&log);
        self.last = None;
        self.log = Some(log);
    }

    fn run(&mut self, op: &Op) {
        if let Op::Stop { steps, is_kill } = op {
            self.disk.crash_after((*steps).into());
            self.is_kill = *is_kill;
            return;
        }
        let mut log = self.log.take().unwrap();
        let done = self.apply(op, &mut log);
        match done {
            Ok(()) => {
                self.log = Some(log);
                // The look at it is no part of what may be stopped.
                let left = self.disk.cancel_crash();
                self.model.check(self.log.as_ref().unwrap());
                if let Some(steps) = left {
                    self.disk.crash_after(steps);
                }
                return;
            }
            Err(error) => assert!(error.to_string().contains("has stopped"), "{op:?}: {error}"),
        }
        if self.is_kill {
            self.disk.kill()
        } else {
            self.disk.crash()
        }
        self.reopen();
    }

    fn apply(&mut self, op: &Op, log: &mut Log) -> Result<(), LogError> {
        let batches = self.batch_starts();
        let model = &mut self.model;
        let part = |part: u8| Offset(model.start + (model.end - model.start) * i64::from(part) / 255);
        match op {
            Op::Append { keys, producer, codec, later } => return self.append(log, keys, *producer, *codec, *later),
            Op::Retry => {
                let Some((batch, offset)) = &self.last else { return Ok(()) };
                let info = log.append(batch, LeaderEpoch(model.epoch), NOW)?;
                assert_eq!((info.duplicate, info.base_offset.0), (true, *offset));
            }
            Op::Sync => log.sync()?,
            Op::SyncBeside(keys) => {
                let Some(ticket) = log.begin_sync()? else { return Ok(()) };
                let result = ticket.run();
                let appended = self.append(log, keys, 0, 0, 1);
                log.finish_sync(ticket, result)?;
                appended?;
            }
            Op::Checkpoint => log.checkpoint()?,
            Op::Roll => log.roll()?,
            Op::Truncate(kept) => {
                let offset = part(*kept).max(Offset(model.committed));
                // From here on either may be found.
                model.synced = model.synced.min(batches.get(&offset.0).copied().unwrap_or(offset.0));
                self.last = None;
                let end = log.truncate_to(offset, NOW)?;
                self.model.cut(end.0);
                self.model.epoch += 1;
                return Ok(());
            }
            Op::DeleteBefore(kept) => {
                let offset = part(*kept).max(log.start());
                model.start = offset.0;
                log.delete_before(offset)?;
            }
            Op::DeleteOld(committed) => {
                let (below, now) = (model.commit(*committed), NOW + model.clock);
                let (low, size) = (model.start, log.size_bytes());
                // So far it may come before it stops.
                model.start = low.max(below.0);
                log.delete_old(now, below)?;
                model.start = low;
                model.check_deleted(log, size, now);
                model.start = log.start().0;
            }
            Op::Maintain(committed, keys) => {
                let (below, now) = (model.commit(*committed), NOW + model.clock);
                let (low, size) = (model.start, log.size_bytes());
                model.start = low.max(below.0);
                let limits =
                    MaintenanceLimits { segments: 2, keys: usize::from(*keys / 16), bytes: u64::from(*keys) * 20 };
                log.set_config(LogConfig { min_cleanable_dirty_percent: *keys / 4, ..log.config().clone() });
                let done = log.maintain(now, below, &limits)?;
                assert!(done.deleted <= 2 && (done.more || done == Maintained::default()), "{done:?}");
                model.start = low;
                if done.compacted.is_none() {
                    model.check_deleted(log, size, now);
                }
                assert!(done.deleted > 0 || log.start().0 == low, "{done:?}");
                model.start = log.start().0;
            }
            Op::Compact(committed, keys) => {
                let below = model.commit(*committed);
                log.compact(NOW + model.clock, below, usize::from(*keys / 16))?;
            }
            Op::Reopen => {
                // A process that ends, and a disk that goes on.
                self.disk.kill();
                model.synced = model.synced.max(log.synced_end().0);
                self.log = None;
                let opened = self.open()?;
                assert_eq!(opened.end(), log.end());
                let start = opened.start().0;
                assert!(start <= self.model.start);
                self.model.start = start;
                *log = opened;
            }
            Op::Stop { .. } => {}
        }
        self.model.synced = self.model.synced.max(log.synced_end().0);
        Ok(())
    }

    /// Where the batch of each offset begins.
    fn batch_starts(&self) -> BTreeMap<i64, i64> {
        let mut first = BTreeMap::new();
        self.model
            .written
            .iter()
            .map(|(offset, record)| (*offset, *first.entry(record.batch_end).or_insert(*offset)))
            .collect()
    }

    fn append(&mut self, log: &mut Log, keys: &[u8], producer: u8, codec: u8, later: u8) -> Result<(), LogError> {
        let model = &mut self.model;
        let sequence = model.sequence(producer).map_or(0, |last| last + 1);
        let stamp = ProducerStamp { id: producer.into(), epoch: 0, sequence };
        let mut builder = BatchBuilder::new(Compression::ALL[usize::from(codec)]).producer(stamp);
        model.clock += i64::from(later);
        let base = model.end;
        let batch_end = base + keys.len() as i64 - 1;
        for (index, key) in keys.iter().enumerate() {
            let timestamp = NOW + model.clock - index as i64;
            builder.push(timestamp, Some(&[*key]), Some(value(model.serial).as_bytes()), &[]);
            let producer = (producer, sequence + index as i32);
            let written =
                Written { key: *key, serial: model.serial, timestamp, epoch: model.epoch, producer, batch_end };
            model.written.insert(base + index as i64, written);
            model.serial += 1;
        }
        // It may be found from here on.
        model.end = batch_end + 1;
        let batch = builder.build().unwrap();
        let info = log.append(&batch, LeaderEpoch(model.epoch), NOW)?;
        assert_eq!((info.base_offset.0, info.last_offset.0, info.duplicate), (base, batch_end, false));
        model.synced = model.synced.max(log.synced_end().0);
        self.last = Some((batch, base));
        Ok(())
    }
}

const CASES: u32 = 1_000;

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_log_is_what_the_model_says(
        seed in any::<u64>(),
        compacts in any::<bool>(),
        ops in prop::collection::vec(op(), 1..100),
    ) {
        let mut run = Run::new(seed, compacts);
        ops.iter().for_each(|op| run.run(op));
    }
}

/// Within how many cases the model fails, if it does within as many as the test above has.
fn caught(bug: Bug) -> Option<u32> {
    let config = ProptestConfig { cases: CASES, failure_persistence: None, max_shrink_iters: 0, ..Default::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let case = Cell::new(0);
    sabotage::plant(Some(bug));
    let strategy = (any::<u64>(), any::<bool>(), prop::collection::vec(op(), 1..100));
    let result = runner.run(&strategy, |(seed, compacts, ops)| {
        case.set(case.get() + 1);
        let mut run = Run::new(seed, compacts);
        ops.iter().for_each(|op| run.run(op));
        Ok(())
    });
    sabotage::plant(None);
    result.is_err().then(|| case.get())
}

#[test]
fn the_model_catches_every_planted_bug() {
    let found = Bug::ALL.map(|bug| (bug, caught(bug)));
    println!("{found:#?}");
    assert!(found.iter().all(|(_, case)| case.is_some()), "{found:#?}");
}
