//! What a log does, on a disk in memory and on a real one.

mod beside;
mod maintain;
mod many;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::batch::{self, BatchBuilder, BatchHeader, Compression, ProducerStamp, Record, TimestampType};
use super::*;
use crate::disk::sim::SimDisk;
use crate::disk::{Disk, RealDisk};
use crate::types::{LeaderEpoch, Offset, TopicId, TopicName};

const EPOCH: LeaderEpoch = LeaderEpoch(3);
const NOW: i64 = 1_800_000_000_000;
pub(super) const TOPIC: TopicId = TopicId(Uuid::from_u128(7));
const ALL: Offset = Offset(i64::MAX);

pub(super) fn id() -> TopicPartition {
    TopicPartition::new(TopicName::new("orders").unwrap(), 0)
}

fn dir() -> PathBuf {
    PathBuf::from("/logs/orders-0")
}

fn config() -> LogConfig {
    LogConfig { segment_bytes: 4_000, index_interval_bytes: 200, ..LogConfig::default() }
}

fn try_open(disk: &SimDisk, config: LogConfig) -> Result<Log, LogError> {
    let files = Files::new(Arc::new(disk.clone()), 8);
    Log::open(id(), dir(), config, files, OpenOptions::new(TOPIC), NOW)
}

fn open(disk: &SimDisk, config: LogConfig) -> Log {
    try_open(disk, config).unwrap()
}

fn batch_at(timestamp: i64, values: &[&str]) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    values.iter().for_each(|value| _ = builder.push(timestamp, Some(value.as_bytes()), Some(value.as_bytes()), &[]));
    builder.build().unwrap()
}

fn numbered(number: i64) -> Bytes {
    batch_at(NOW + number, &[&format!("value-{number:-<80}")])
}

fn fill(log: &mut Log, count: i64) {
    for _ in 0..count {
        log.append(&numbered(log.end().0), EPOCH, NOW).unwrap();
    }
}

fn records_from(log: &Log, mut offset: Offset) -> Vec<Record> {
    let mut found = Vec::new();
    loop {
        let fetched = log.read(offset, 1_000, ALL).unwrap();
        if fetched.batches.is_empty() {
            return found;
        }
        found.extend(decode(&fetched.batches));
        offset = fetched.next_offset;
    }
}

pub(super) fn decode(batches: &Bytes) -> Vec<Record> {
    let (mut at, mut found) = (0, Vec::new());
    while at < batches.len() {
        let bytes = batches.slice(at..);
        at += BatchHeader::verify(&bytes).unwrap().size();
        found.extend(batch::records(&bytes, 1 << 20).unwrap().map(Result::unwrap));
    }
    found
}

fn offsets(records: &[Record]) -> Vec<i64> {
    records.iter().map(|record| record.offset.0).collect()
}

fn keyed(pairs: &[(&str, Option<&str>)]) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::Lz4);
    pairs.iter().for_each(|(key, value)| _ = builder.push(NOW, Some(key.as_bytes()), value.map(str::as_bytes), &[]));
    builder.build().unwrap()
}

fn produced(sequence: i32) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None).producer(ProducerStamp { id: 4, epoch: 0, sequence });
    builder.push(NOW, None, Some(b"once"), &[]).push(NOW, None, Some(b"twice"), &[]);
    builder.build().unwrap()
}

#[test]
fn what_is_appended_is_read_from_every_offset_over_many_segments() {
    let disk = SimDisk::new(1);
    let mut log = open(&disk, config());
    fill(&mut log, 200);
    assert!(log.segment_count() > 5);
    for start in 0..200 {
        let found = records_from(&log, Offset(start));
        assert_eq!(offsets(&found), (start..200).collect::<Vec<_>>());
    }
    assert!(log.read(Offset(200), 1_000, ALL).unwrap().batches.is_empty());
    assert!(matches!(log.read(Offset(201), 1_000, ALL), Err(LogError::OffsetOutOfRange { .. })));
    assert_eq!(log.read(Offset(5), 1 << 20, Offset(8)).unwrap().next_offset, Offset(8), "no further than allowed");
    assert_eq!(log.read(Offset(5), 1, ALL).unwrap().next_offset, Offset(6), "one batch at least");
}

#[test]
fn a_reopened_log_is_the_same() {
    let disk = SimDisk::new(2);
    let mut log = open(&disk, config());
    fill(&mut log, 100);
    log.append(&produced(0), LeaderEpoch(4), NOW).unwrap();
    log.checkpoint().unwrap();
    let (end, epochs, producers) = (log.end(), log.epochs().clone(), log.producers().clone());
    drop(log);
    disk.crash();
    let log = open(&disk, config());
    assert_eq!((log.end(), log.epochs(), log.producers()), (end, &epochs, &producers));
    assert_eq!(records_from(&log, Offset::ZERO).len(), 102);
}

#[test]
fn a_record_is_found_by_its_time() {
    let disk = SimDisk::new(3);
    let mut log = open(&disk, config());
    fill(&mut log, 150);
    log.append(&batch_at(NOW + 10, &["late"]), EPOCH, NOW).unwrap();
    for number in 0..150 {
        let found = log.offset_for_timestamp(NOW + number).unwrap().unwrap();
        assert_eq!((found.offset.0, found.timestamp, found.epoch), (number, NOW + number, Some(EPOCH)));
    }
    assert_eq!(log.offset_for_timestamp(0).unwrap().unwrap().offset, Offset::ZERO);
    assert_eq!(log.offset_for_timestamp(NOW + 150).unwrap(), None);
}

#[test]
fn a_leaders_clock_replaces_the_producers_where_the_topic_says_so() {
    let disk = SimDisk::new(4);
    let mut log = open(&disk, LogConfig { timestamp_type: TimestampType::LogAppendTime, ..config() });
    log.append(&batch_at(5, &["a", "b"]), EPOCH, NOW).unwrap();
    assert!(records_from(&log, Offset::ZERO).iter().all(|record| record.timestamp == NOW));
}

#[test]
fn segments_roll_by_age() {
    let disk = SimDisk::new(5);
    let mut log = open(&disk, LogConfig { segment_ms: 100, ..config() });
    for time in [0, 100, 101, 150, 202] {
        log.append(&batch_at(NOW + time, &["x"]), EPOCH, NOW).unwrap();
    }
    let bases: Vec<i64> = disk
        .files()
        .iter()
        .filter_map(|path| segment::parse_name(path.file_name()?.to_str()?))
        .filter(|(_, kind)| *kind == "log")
        .map(|(base, _)| base.0)
        .collect();
    assert_eq!(bases, [0, 2, 4]);
}

#[test]
fn what_no_client_may_append_is_refused_and_changes_nothing() {
    let disk = SimDisk::new(6);
    let mut log = open(&disk, config());
    let good = batch_at(NOW, &["a", "b"]);
    let with = |change: &dyn Fn(&mut BatchHeader)| {
        let mut header = BatchHeader::parse(&good).unwrap();
        change(&mut header);
        header.seal(&good[batch::HEADER_BYTES..]);
        Bytes::from([&header.encode()[..], &good[batch::HEADER_BYTES..]].concat())
    };
    assert!(log.append(&with(&|_| ()), EPOCH, NOW).is_ok());
    let bad: [Bytes; 6] = [
        with(&|header| header.attributes.0 |= 0x20),
        with(&|header| header.attributes.0 |= 0x10),
        with(&|header| header.attributes.0 |= 0x40),
        with(&|header| header.last_offset_delta = 5),
        with(&|header| header.record_count = 1),
        Bytes::from([&good[..], &good[..]].concat()),
    ];
    for (number, batch) in bad.iter().enumerate() {
        let error = log.append(batch, EPOCH, NOW).unwrap_err();
        assert!(matches!(error, LogError::InvalidBatch { .. }), "{number}: {error}");
    }
    let mut torn = good.to_vec();
    *torn.last_mut().unwrap() ^= 1;
    assert!(matches!(log.append(&torn.into(), EPOCH, NOW), Err(LogError::Corrupt { .. })));
    assert!(matches!(log.append(&good, LeaderEpoch(2), NOW), Err(LogError::InvalidBatch { .. })), "an older epoch");
    log.set_config(LogConfig { max_message_bytes: 20, ..config() });
    assert!(matches!(log.append(&good, EPOCH, NOW), Err(LogError::TooLarge { limit: 20, .. })));
    assert_eq!(log.end(), Offset(2));
}

#[test]
fn a_retry_is_stored_once_also_after_a_restart_and_a_cut() {
    let disk = SimDisk::new(7);
    let mut log = open(&disk, config());
    for number in 0..40 {
        log.append(&produced(number * 2), EPOCH, NOW).unwrap();
        let again = log.append(&produced(number * 2), EPOCH, NOW).unwrap();
        assert_eq!((again.duplicate, again.base_offset.0), (true, i64::from(number) * 2));
    }
    log.sync().unwrap();
    disk.crash();
    let mut log = open(&disk, config());
    for number in 35..40 {
        assert!(log.append(&produced(number * 2), EPOCH, NOW).unwrap().duplicate, "{number}");
    }
    assert!(matches!(log.append(&produced(60), EPOCH, NOW), Err(LogError::OutOfOrderSequence { expected: 80, .. })));
    log.truncate_to(Offset(20), NOW).unwrap();
    assert!(log.append(&produced(18), EPOCH, NOW).unwrap().duplicate);
    assert!(!log.append(&produced(20), EPOCH, NOW).unwrap().duplicate);
    assert_eq!(log.end(), Offset(22));
}

#[test]
fn a_follower_has_the_same_bytes() {
    let disks = [SimDisk::new(8), SimDisk::new(9)];
    let mut leader = open(&disks[0], config());
    fill(&mut leader, 60);
    leader.append(&produced(0), LeaderEpoch(5), NOW).unwrap();
    let mut follower = open(&disks[1], config());
    while follower.end() < leader.end() {
        let fetched = leader.read(follower.end(), 900, ALL).unwrap();
        follower.append_as_follower(&fetched.batches, NOW).unwrap();
    }
    assert_eq!(records_from(&follower, Offset::ZERO), records_from(&leader, Offset::ZERO));
    assert_eq!(follower.epochs(), leader.epochs());
    assert_eq!(follower.producers(), leader.producers());
    let old = leader.read(Offset::ZERO, 100, ALL).unwrap();
    assert!(matches!(follower.append_as_follower(&old.batches, NOW), Err(LogError::NotContiguous { .. })));
    assert!(matches!(follower.append_as_follower(&numbered(0), NOW), Err(LogError::InvalidBatch { .. })));
}

#[test]
fn a_cut_log_goes_on_where_it_was_cut() {
    for cut in 0..=100 {
        let disk = SimDisk::new(10);
        let mut log = open(&disk, config());
        fill(&mut log, 100);
        log.checkpoint().unwrap();
        assert_eq!(log.truncate_to(Offset(cut), NOW).unwrap(), Offset(cut));
        log.append(&numbered(1_000), LeaderEpoch(9), NOW).unwrap();
        log.sync().unwrap();
        disk.crash();
        let log = open(&disk, config());
        assert_eq!(offsets(&records_from(&log, Offset::ZERO)), (0..=cut).collect::<Vec<_>>());
        assert_eq!(log.end_of_epoch(EPOCH).unwrap().end, if cut == 0 { Offset(0) } else { Offset(cut) });
        assert_eq!(log.offset_for_timestamp(NOW + 1_000).unwrap().unwrap().offset, Offset(cut));
    }
}

#[test]
fn a_cut_within_a_batch_takes_all_of_it() {
    let disk = SimDisk::new(11);
    let mut log = open(&disk, config());
    log.append(&batch_at(NOW, &["a"]), EPOCH, NOW).unwrap();
    log.append(&batch_at(NOW, &["b", "c", "d"]), EPOCH, NOW).unwrap();
    assert_eq!(log.truncate_to(Offset(2), NOW).unwrap(), Offset(1));
}

#[test]
fn retention_takes_whole_segments_below_the_high_watermark() {
    let disk = SimDisk::new(12);
    let mut log = open(&disk, LogConfig { retention_ms: Some(50), retention_bytes: None, ..config() });
    fill(&mut log, 100);
    assert_eq!(log.delete_old(NOW + 50, ALL).unwrap(), 0);
    assert_eq!(log.delete_old(NOW + 120, Offset(10)).unwrap(), 0, "nothing is committed there");
    assert!(log.delete_old(NOW + 120, ALL).unwrap() > 0);
    let start = log.start();
    assert!((1..=70).contains(&start.0), "{start}");
    assert_eq!(offsets(&records_from(&log, start)), (start.0..100).collect::<Vec<_>>());
    assert!(matches!(log.read(Offset::ZERO, 10, ALL), Err(LogError::OffsetOutOfRange { .. })));
    log.delete_old(NOW + 10_000, ALL).unwrap();
    assert_eq!((log.start(), log.end()), (Offset(100), Offset(100)), "all of it is old");
    log.checkpoint().unwrap();
    disk.crash();
    let mut log = open(&disk, config());
    assert_eq!((log.start(), log.end()), (Offset(100), Offset(100)), "offsets are used once");
    fill(&mut log, 50);
    log.set_config(LogConfig { retention_bytes: Some(4_500), retention_ms: None, ..config() });
    log.delete_old(NOW, ALL).unwrap();
    assert!((4_500..9_000).contains(&log.size_bytes()), "{}", log.size_bytes());
}

#[test]
fn deleted_records_stay_deleted_where_the_start_is_remembered() {
    let disk = SimDisk::new(13);
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut node = LogDirectory::open("/logs".into(), shared.clone(), 8).unwrap();
    let mut log = node.open_log(id(), TOPIC, config(), NOW).unwrap();
    fill(&mut log, 100);
    node.commit(&mut [&mut log]).pop().unwrap().unwrap();
    log.delete_before(Offset(55)).unwrap();
    node.checkpoint([&log]).unwrap();
    disk.crash();
    let node = LogDirectory::open("/logs".into(), shared, 8).unwrap();
    assert_eq!(node.list().unwrap(), [PartitionDirectory { id: id(), topic: Some(TOPIC) }]);
    let log = node.open_log(id(), TOPIC, config(), NOW).unwrap();
    assert_eq!(log.start(), Offset(55));
    assert_eq!(offsets(&records_from(&log, Offset(55))), (55..100).collect::<Vec<_>>());
}

#[test]
fn another_topic_of_the_same_name_is_never_served() {
    let disk = SimDisk::new(14);
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut node = LogDirectory::open("/logs".into(), shared, 8).unwrap();
    let mut log = node.open_log(id(), TOPIC, config(), NOW).unwrap();
    fill(&mut log, 3);
    let other = TopicId(Uuid::from_u128(8));
    assert!(matches!(node.open_log(id(), other, config(), NOW), Err(LogError::OtherTopic { .. })));
    let aside = node.set_aside(&id()).unwrap();
    assert!(disk.files().iter().any(|path| path.starts_with(&aside)));
    assert_eq!(node.list().unwrap(), []);
    assert_eq!(node.open_log(id(), other, config(), NOW).unwrap().end(), Offset::ZERO);
    assert!(node.remove_many(&[id()]).is_empty());
    assert!(!disk.files().iter().any(|path| path.starts_with(dir())));
}

#[test]
fn compaction_keeps_the_last_record_of_each_key_with_its_offset() {
    let disk = SimDisk::new(15);
    let mut log = open(&disk, LogConfig { compact: true, delete: false, delete_retention_ms: 1_000, ..config() });
    for round in 0..60 {
        let value = format!("{round}");
        let keys: Vec<String> = (0..5).map(|key| format!("k{}", (key + round) % 7)).collect();
        log.append(
            &keyed(&keys.iter().map(|key| (key.as_str(), Some(value.as_str()))).collect::<Vec<_>>()),
            EPOCH,
            NOW,
        )
        .unwrap();
    }
    log.append(&keyed(&[("k0", None), ("k1", Some("last"))]), EPOCH, NOW).unwrap();
    let before = records_from(&log, Offset::ZERO);
    log.roll().unwrap();
    assert!(!log.compact(NOW, Offset(100), 1_000).unwrap().is_partial);
    assert!(log.first_dirty() <= Offset(100), "not beyond the high watermark");
    log.compact(NOW, ALL, 1_000).unwrap();
    let last = |key: &Option<Bytes>| before.iter().rev().find(|record| record.key == *key).cloned().unwrap();
    let wanted: Vec<Record> = before.iter().filter(|record| last(&record.key) == **record).cloned().collect();
    assert_eq!(wanted.len(), 7);
    assert_eq!(records_from(&log, Offset::ZERO), wanted);
    assert_eq!(log.end(), Offset(302));
    // The tombstone goes once its time is over, and only then.
    for (now, count) in [(NOW + 999, 7), (NOW + 1_000, 6)] {
        log.append(&keyed(&[("other", Some("x"))]), EPOCH, NOW).unwrap();
        log.roll().unwrap();
        log.compact(now, ALL, 1_000).unwrap();
        let found = records_from(&log, Offset::ZERO);
        assert_eq!(found.iter().filter(|record| record.key != Some(Bytes::from("other"))).count(), count, "{now}");
    }
    let held = records_from(&log, Offset::ZERO);
    log.checkpoint().unwrap();
    disk.crash();
    assert_eq!(records_from(&open(&disk, config()), Offset::ZERO), held);
}

#[test]
fn compaction_in_pieces_comes_to_the_same() {
    let disk = SimDisk::new(16);
    let mut log = open(&disk, LogConfig { compact: true, delete: false, ..config() });
    for round in 0..100 {
        log.append(&keyed(&[(&format!("k{}", round % 9), Some("v")), (&format!("j{round}"), Some("v"))]), EPOCH, NOW)
            .unwrap();
    }
    log.roll().unwrap();
    let mut rounds = 0;
    while log.compact(NOW, ALL, 20).unwrap().is_partial {
        rounds += 1;
    }
    assert!(rounds > 3);
    assert_eq!(records_from(&log, Offset::ZERO).len(), 109);
}

#[test]
fn a_producers_last_batch_leaves_its_header_when_compacted() {
    let disk = SimDisk::new(17);
    let mut log = open(&disk, LogConfig { compact: true, delete: false, ..config() });
    let stamped = |sequence: i32| {
        let mut builder = BatchBuilder::new(Compression::Zstd).producer(ProducerStamp { id: 4, epoch: 0, sequence });
        builder.push(NOW, Some(b"k"), Some(b"v"), &[]);
        builder.build().unwrap()
    };
    log.append(&stamped(0), EPOCH, NOW).unwrap();
    log.append(&stamped(1), EPOCH, NOW).unwrap();
    log.append(&keyed(&[("k", Some("newer"))]), EPOCH, NOW).unwrap();
    log.roll().unwrap();
    log.compact(NOW, ALL, 100).unwrap();
    let found = log.read(Offset::ZERO, 1 << 20, ALL).unwrap().batches;
    let header = BatchHeader::verify(&found).unwrap();
    assert_eq!((header.record_count, header.base_offset, header.last_sequence()), (0, Offset(1), 1));
    disk.files().iter().filter(|path| path.extension().is_some_and(|kind| kind == "snapshot")).for_each(|path| {
        disk.remove(path).unwrap();
    });
    drop(log);
    let mut log = open(&disk, LogConfig { compact: true, ..config() });
    assert!(log.append(&stamped(1), EPOCH, NOW).unwrap().duplicate, "from the header alone");
}

#[test]
fn a_damaged_batch_is_a_range_that_is_not_served_and_the_rest_is() {
    let disk = SimDisk::new(18);
    let mut log = open(&disk, LogConfig { segment_bytes: 1 << 20, ..config() });
    fill(&mut log, 40);
    log.checkpoint().unwrap();
    let path = segment::path(&dir(), Offset::ZERO, "log");
    let size = numbered(0).len() as u64;
    for at in [0, 8, 16, 20, 25, 58, 100] {
        disk.flip_bit(&path, 10 * size + at, 3);
        let Err(LogError::Damaged { damage, .. }) = log.read(Offset(10), 500, ALL) else { panic!("byte {at}") };
        assert_eq!(damage.offsets, Offset(10)..Offset(11), "byte {at}");
        assert_eq!(offsets(&decode(&log.read(Offset(8), 9_000, ALL).unwrap().batches)), [8, 9], "byte {at}");
        assert_eq!(offsets(&decode(&log.read(Offset(11), 2 * size as usize, ALL).unwrap().batches)), [11, 12]);
        disk.flip_bit(&path, 10 * size + at, 3);
    }
    assert_eq!(records_from(&log, Offset::ZERO).len(), 40);
    // A write that went to a wrong place leaves a batch that is whole, and none of these offsets.
    let bytes = disk.contents(&path).unwrap();
    let batches = |range: Range<u64>| &bytes[(range.start * size) as usize..(range.end * size) as usize];
    for other in [0, 9] {
        let mut file = disk.append(&path).unwrap();
        file.truncate(10 * size).unwrap();
        file.append(&[batches(other..other + 1), batches(11..40)].concat()).unwrap();
        let Err(LogError::Damaged { damage, .. }) = log.read(Offset(10), 500, ALL) else { panic!("batch {other}") };
        assert_eq!(damage.offsets, Offset(10)..Offset(11), "batch {other}");
    }
}

#[test]
fn damage_that_a_restart_finds_is_kept_apart_from_a_torn_tail() {
    let disk = SimDisk::new(19);
    let mut log = open(&disk, LogConfig { segment_bytes: 1 << 20, ..config() });
    fill(&mut log, 40);
    log.sync().unwrap();
    let path = segment::path(&dir(), Offset::ZERO, "log");
    let size = numbered(0).len() as u64;
    disk.flip_bit(&path, 30 * size + 70, 3);
    drop(log);
    let log = open(&disk, LogConfig { segment_bytes: 1 << 20, ..config() });
    assert_eq!(log.end(), Offset(40));
    assert_eq!(log.damages()[0].offsets, Offset(30)..Offset(31));
    disk.flip_bit(&path, 39 * size + 70, 3);
    drop(log);
    let log = open(&disk, LogConfig { segment_bytes: 1 << 20, ..config() });
    assert_eq!(log.end(), Offset(39), "the last batch is a torn tail");
}

/// Offsets are counted from a segment's base in 31 bits, in its indexes.
#[test]
fn a_batch_too_far_from_its_segments_base_is_none() {
    let disk = SimDisk::new(67);
    let config = || LogConfig { segment_bytes: 1 << 20, index_interval_bytes: 0, ..config() };
    let mut log = open(&disk, config());
    fill(&mut log, 3);
    log.sync().unwrap();
    let mut batch = numbered(3).to_vec();
    for (base, end) in [(3 + (6i64 << 40), 3), (1 << 31, 3), ((1 << 31) - 1, 1 << 31)] {
        batch[..8].copy_from_slice(&base.to_be_bytes());
        disk.append(&segment::path(&dir(), Offset::ZERO, "log")).unwrap().append(&batch).unwrap();
        drop(log);
        log = open(&disk, config());
        assert_eq!((log.end(), log.damages()), (Offset(end), &[][..]), "{base}");
    }
}

/// A batch's checksum doesn't cover its base offset. What follows tells that it is wrong, and is not lost for it.
#[test]
fn a_batch_that_claims_the_offsets_of_what_follows_is_damage() {
    let disk = SimDisk::new(68);
    let config = || LogConfig { segment_bytes: 1 << 20, ..config() };
    let mut log = open(&disk, config());
    fill(&mut log, 40);
    log.sync().unwrap();
    drop(log);
    let (path, size) = (segment::path(&dir(), Offset::ZERO, "log"), numbered(0).len() as u64);
    for (batch, bit) in (33..39).flat_map(|batch| [0, 6].map(|bit| (batch, bit))) {
        disk.flip_bit(&path, batch * size + 6, bit);
        let log = open(&disk, config());
        assert_eq!(log.end(), Offset(40), "batch {batch}");
        let fetched = log.read(Offset(30), 64 << 10, ALL).unwrap();
        assert_eq!(offsets(&decode(&fetched.batches)), (30..batch as i64).collect::<Vec<_>>());
        assert!(matches!(log.read(fetched.next_offset, 64 << 10, ALL), Err(LogError::Damaged { .. })));
        let damaged = Offset(batch as i64)..Offset(batch as i64 + 1);
        assert_eq!(log.damages().iter().map(|damage| damage.offsets.clone()).collect::<Vec<_>>(), [damaged]);
        disk.flip_bit(&path, batch * size + 6, bit);
    }
}

/// What is known of producers at an offset stands in a snapshot. One that a cut took away is not believed where a loss of power
/// brings it back once the log has grown up to its offset again.
#[test]
fn no_snapshot_outlives_a_cut_that_was_interrupted() {
    let mut interrupted = 0;
    for (steps, seed) in (0..40).flat_map(|steps| (0..8).map(move |seed| (steps, seed))) {
        let disk = SimDisk::new(seed);
        let mut log = open(&disk, config());
        for number in 0..6 {
            log.append(&produced(number * 2), EPOCH, NOW).unwrap();
            log.roll().unwrap();
        }
        log.checkpoint().unwrap();
        let end = log.end();
        disk.crash_after(steps);
        let cut = log.truncate_to(Offset(4), NOW);
        interrupted += usize::from(cut.is_err());
        disk.cancel_crash();
        disk.crash();
        drop(log);
        let mut log = open(&disk, config());
        let gone = end.0 - log.end().0;
        fill(&mut log, gone);
        log.sync().unwrap();
        let known = log.producers().clone();
        disk.crash();
        assert_eq!(*open(&disk, config()).producers(), known, "{steps} steps, seed {seed}");
    }
    assert!(interrupted > 100, "{interrupted}");
}

/// Also where the index points at what is damaged.
#[test]
fn a_cut_leaves_nothing_damaged_at_the_end() {
    let config = || LogConfig { segment_bytes: 1 << 20, index_interval_bytes: 300, ..config() };
    let size = numbered(0).len() as u64;
    let path = segment::path(&dir(), Offset::ZERO, "log");
    for (number, at) in (0..40).flat_map(|number| [16, 70].map(|at| (number, at))) {
        let disk = SimDisk::new(66);
        let mut log = open(&disk, config());
        fill(&mut log, 45);
        log.checkpoint().unwrap();
        disk.flip_bit(&path, number * size + at, 3);
        let damaged = Offset(number as i64);
        assert_eq!(log.truncate_to(Offset(damaged.0 + 1), NOW).unwrap(), damaged, "byte {at}");
        drop(log);
        let log = open(&disk, config());
        assert_eq!((log.end(), log.damages()), (damaged, &[][..]), "byte {at}");
        assert_eq!(offsets(&records_from(&log, Offset::ZERO)), (0..damaged.0).collect::<Vec<_>>());
    }
}

#[test]
fn a_full_disk_refuses_and_the_log_goes_on_once_there_is_room() {
    let disk = SimDisk::new(20);
    let mut log = open(&disk, config());
    fill(&mut log, 10);
    let used: u64 = disk.files().iter().map(|path| disk.contents(path).unwrap().len() as u64).sum();
    for room in [0, 30, 100] {
        disk.set_capacity(Some(used + room));
        let error = log.append(&numbered(10), EPOCH, NOW).unwrap_err();
        assert!(error.is_out_of_space(), "{error}");
        assert_eq!((log.end(), records_from(&log, Offset::ZERO).len()), (Offset(10), 10));
    }
    disk.set_capacity(None);
    fill(&mut log, 100);
    log.sync().unwrap();
    disk.crash();
    assert_eq!(records_from(&open(&disk, config()), Offset::ZERO).len(), 110);
}

#[test]
fn a_full_disk_while_a_segment_is_begun_is_no_harm() {
    for room in 0..400 {
        let disk = SimDisk::new(21);
        let mut log = open(&disk, config());
        while log.size_bytes() + 200 < config().segment_bytes {
            fill(&mut log, 1);
        }
        let (end, used) =
            (log.end(), disk.files().iter().map(|path| disk.contents(path).unwrap().len() as u64).sum::<u64>());
        disk.set_capacity(Some(used + room));
        let mut appended = 0;
        while log.append(&numbered(end.0 + appended), EPOCH, NOW).is_ok() {
            appended += 1;
        }
        disk.set_capacity(None);
        assert_eq!(log.poisoned(), None, "{room}");
        fill(&mut log, 30);
        log.checkpoint().unwrap();
        disk.crash();
        assert_eq!(records_from(&open(&disk, config()), Offset::ZERO).len() as i64, end.0 + appended + 30);
    }
}

#[test]
fn a_segment_that_could_not_be_begun_leaves_nothing_behind() {
    let disk = SimDisk::new(24);
    let mut log = open(&disk, config());
    while log.size_bytes() + 160 < config().segment_bytes {
        fill(&mut log, 1);
    }
    // The producers' snapshot fits, and the epochs: the sync of the new segment's name is what fails.
    log.checkpoint().unwrap();
    disk.fail_dir_syncs(1);
    assert!(log.append(&numbered(0), EPOCH, NOW).is_err());
    let end = log.end();
    let small = log.append(&batch_at(NOW, &["fits"]), EPOCH, NOW).unwrap();
    assert_eq!((small.base_offset, log.segment_count()), (end, 1));
    log.sync().unwrap();
    disk.crash();
    let log = open(&disk, config());
    assert_eq!(records_from(&log, end).len(), 1);
}

#[test]
fn a_log_that_is_opened_again_is_synced_before_it_counts_as_durable() {
    let disk = SimDisk::new(25);
    let node = LogDirectory::open("/logs".into(), Arc::new(disk.clone()), 8).unwrap();
    let mut log = node.open_log(id(), TOPIC, config(), NOW).unwrap();
    fill(&mut log, 10);
    drop(log);
    let log = node.open_log(id(), TOPIC, config(), NOW).unwrap();
    assert_eq!(log.synced_end(), Offset(10));
    disk.crash();
    assert_eq!(open(&disk, config()).end(), Offset(10));
}

#[test]
fn a_segment_that_was_begun_right_before_a_kill_keeps_what_is_synced_into_it() {
    for (steps, seed) in (0..40).flat_map(|steps| (0..8).map(move |seed| (steps, seed))) {
        let disk = SimDisk::new(seed);
        let mut log = open(&disk, config());
        fill(&mut log, 3);
        log.checkpoint().unwrap();
        disk.crash_after(steps);
        let rolled = log.roll().is_ok();
        disk.kill();
        let mut log = open(&disk, config());
        fill(&mut log, 2);
        log.sync().unwrap();
        disk.crash();
        assert_eq!(open(&disk, config()).end(), Offset(5), "stopped after {steps}, rolled: {rolled}");
    }
}

#[test]
fn after_a_failed_sync_nothing_more_is_taken() {
    let disk = SimDisk::new(22);
    let mut log = open(&disk, config());
    fill(&mut log, 3);
    disk.fail_syncs(1);
    assert!(matches!(log.sync(), Err(LogError::Io { .. })));
    assert_eq!(log.synced_end(), Offset::ZERO);
    assert!(matches!(log.append(&numbered(3), EPOCH, NOW), Err(LogError::Poisoned { .. })));
    assert!(matches!(log.sync(), Err(LogError::Poisoned { .. })));
}

#[test]
fn what_a_failed_sync_had_to_write_is_written_once_more() {
    for seed in 0..40 {
        let disk = SimDisk::new(seed);
        let node = LogDirectory::open("/logs".into(), Arc::new(disk.clone()), 8).unwrap();
        let id = || TopicPartition::new(TopicName::new("orders").unwrap(), 0);
        let mut log = node.open_log(id(), TOPIC, config(), NOW).unwrap();
        fill(&mut log, if seed % 4 < 2 { 0 } else { 3 });
        log.sync().unwrap();
        fill(&mut log, 4);
        disk.fail_syncs(1);
        log.sync().unwrap_err();
        let end = log.end();
        // In half of the cases the disk takes it only later.
        disk.set_capacity(Some(0).filter(|_| seed % 2 == 0));
        node.distrust(&log);
        disk.set_capacity(None);
        drop(log);
        let mut log = node.open_log(id(), TOPIC, config(), NOW).unwrap();
        assert_eq!((log.end(), log.synced_end()), (end, end));
        fill(&mut log, 2);
        log.sync().unwrap();
        // What counts as synced outlives the power.
        disk.crash();
        let node = LogDirectory::open("/logs".into(), Arc::new(disk), 8).unwrap();
        let log = node.open_log(id(), TOPIC, config(), NOW).unwrap();
        assert_eq!((log.end(), log.damages().len()), (Offset(end.0 + 2), 0), "{seed}");
    }
}

#[test]
fn a_commit_of_many_logs_is_one_sync_and_of_few_is_one_each() {
    let disk = SimDisk::new(23);
    let node = LogDirectory::open("/logs".into(), Arc::new(disk.clone()), 8).unwrap();
    let mut logs: Vec<Log> = (0..50)
        .map(|partition| {
            let id = TopicPartition::new(TopicName::new("orders").unwrap(), partition);
            node.open_log(id, TOPIC, config(), NOW).unwrap()
        })
        .collect();
    for (dirty, syncs) in [(1, 1), (3, 3), (50, 1), (0, 0)] {
        logs.iter_mut().take(dirty).for_each(|log| fill(log, 2));
        let before = disk.counts().syncs;
        let mut all: Vec<&mut Log> = logs.iter_mut().collect();
        assert!(node.commit(&mut all).iter().all(Result::is_ok));
        assert_eq!(disk.counts().syncs - before, syncs, "{dirty}");
        assert!(logs.iter().all(|log| log.synced_end() == log.end()));
    }
    assert!(node.files().open_count() <= 16);
}

#[test]
fn a_real_disk_does_what_the_fake_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let node = || LogDirectory::open(folder.path().join("logs"), Arc::new(RealDisk), 64).unwrap();
    let first = node();
    let mut log = first.open_log(id(), TOPIC, config(), NOW).unwrap();
    fill(&mut log, 300);
    log.truncate_to(Offset(250), NOW).unwrap();
    fill(&mut log, 20);
    first.commit(&mut [&mut log]).pop().unwrap().unwrap();
    drop(log);
    let log = node().open_log(id(), TOPIC, config(), NOW).unwrap();
    assert_eq!(offsets(&records_from(&log, Offset::ZERO)), (0..270).collect::<Vec<_>>());
    assert!(Path::new(log.dir()).join("00000000000000000000.timeindex").exists());
}

/// Segments with their indexes as Kafka 4.1.1 wrote them, by `LogSegment.append`: twenty batches, a tombstone in some.
#[test]
fn what_kafka_wrote_is_read_and_its_indexes_are_believed() {
    for compression in Compression::ALL {
        let source =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("src/log/testdata/kafka-4.1.1").join(compression.name());
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("orders-0");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join(checkpoint::PARTITION_METADATA), checkpoint::format_partition_metadata(TOPIC)).unwrap();
        std::fs::write(dir.join(checkpoint::LEADER_EPOCHS), "0\n1\n3 0\n").unwrap();
        let files: Vec<_> = std::fs::read_dir(source).unwrap().map(Result::unwrap).collect();
        files.iter().for_each(|file| _ = std::fs::copy(file.path(), dir.join(file.file_name())).unwrap());
        let log =
            Log::open(id(), dir.clone(), config(), Files::new(Arc::new(RealDisk), 8), OpenOptions::new(TOPIC), NOW);
        let log = log.unwrap();
        assert_eq!((log.end(), log.damages()), (Offset(50), &[][..]));
        let found = records_from(&log, Offset::ZERO);
        assert_eq!(offsets(&found), (0..50).collect::<Vec<_>>());
        let first = &found[0];
        assert_eq!(first.key.as_deref(), Some(&b"k0"[..]));
        assert!(first.value.as_deref().unwrap().starts_with(b"value 0 abab"));
        assert_eq!((&first.headers[0].key[..], first.headers[0].value.as_deref()), (&b"h"[..], Some(&b"v0"[..])));
        assert!(found.iter().any(|record| record.value.is_none()));
        assert!(found.iter().all(|record| (record.key.as_deref() == Some(b"k2")) == record.value.is_none()));
        let last = log.producers().get(77).unwrap();
        assert_eq!((last.epoch, last.batches.back().unwrap().last_sequence), (2, 49));
        assert_eq!(log.end_of_epoch(LeaderEpoch(3)).unwrap().end, Offset(50));
        for record in &found {
            assert_eq!(log.offset_for_timestamp(record.timestamp).unwrap().unwrap().offset, record.offset);
        }
        for file in files {
            // What a time index knows beyond the other one is found anew.
            let (theirs, ours) =
                (std::fs::read(file.path()).unwrap(), std::fs::read(dir.join(file.file_name())).unwrap());
            assert!(theirs.starts_with(&ours) && ours.len() + 12 >= theirs.len(), "{:?}", file.path());
        }
    }
}

/// What the dump finds in the files of a log, and in one that was spoilt.
#[test]
fn a_dump_shows_every_record_and_every_fault() {
    let disk = SimDisk::new(30);
    let mut log = open(&disk, LogConfig { segment_bytes: 1 << 20, ..config() });
    fill(&mut log, 40);
    log.checkpoint().unwrap();
    let path = |kind| segment::path(&dir(), Offset::ZERO, kind);
    let count = |disk: &SimDisk| {
        let (mut records, mut damaged) = (0, 0);
        for item in dump::SegmentDump::open(disk, &path("log"), true).unwrap() {
            match item.unwrap() {
                dump::SegmentItem::Batch { records: found, .. } => records += found.unwrap().unwrap().len(),
                dump::SegmentItem::Damage { .. } => damaged += 1,
            }
        }
        (records, damaged)
    };
    assert_eq!(count(&disk), (40, 0));
    let offsets = dump::offset_index(&disk, &path("index"), true).unwrap();
    let times = dump::time_index(&disk, &path("timeindex"), true).unwrap();
    assert!(!offsets.entries.is_empty() && !times.entries.is_empty());
    assert_eq!((&offsets.faults, &times.faults), (&vec![], &vec![]));
    disk.flip_bit(&path("index"), 7, 2);
    disk.flip_bit(&path("timeindex"), 7, 0);
    assert_eq!(dump::offset_index(&disk, &path("index"), true).unwrap().faults.len(), 1);
    assert_eq!(dump::time_index(&disk, &path("timeindex"), true).unwrap().faults.len(), 1);
    disk.flip_bit(&path("log"), 10 * numbered(0).len() as u64 + 70, 1);
    assert_eq!(count(&disk), (39, 1));
}
