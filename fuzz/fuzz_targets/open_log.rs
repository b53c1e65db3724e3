//! A log's directory with anything in its files: it is opened or refused, and whatever is opened can be worked with.
#![no_main]

use std::path::PathBuf;
use std::sync::Arc;

use batches::sealed;
use bytes::Bytes;
use dmq::disk::Disk;
use dmq::disk::sim::SimDisk;
use dmq::log::batch::{BatchBuilder, Compression};
use dmq::log::checkpoint::format_partition_metadata;
use dmq::log::{Files, Log, LogConfig, LogError, OpenOptions, TopicPartition};
use dmq::types::{LeaderEpoch, Offset, TopicId, TopicName};
use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
mod batches;

const NOW: i64 = 1_800_000_000_000;
const DIR: &str = "/logs/orders-0";
const NAMES: [&str; 8] = [
    "00000000000000000000.log",
    "00000000000000000000.index",
    "00000000000000000000.timeindex",
    "00000000000000000004.log",
    "00000000000000000004.index",
    "00000000000000000004.timeindex",
    "00000000000000000004.snapshot",
    "leader-epoch-checkpoint",
];

fn open(disk: &SimDisk) -> Result<Log, LogError> {
    let id = TopicPartition::new(TopicName::new("orders").expect("a good name"), 0);
    let config = LogConfig {
        segment_bytes: 2_000,
        index_interval_bytes: 100,
        max_decompressed_bytes: 1 << 20,
        compact: true,
        ..LogConfig::default()
    };
    let files = Files::new(Arc::new(disk.clone()), 4);
    Log::open(id, PathBuf::from(DIR), config, files, OpenOptions::new(TopicId(uuid::Uuid::nil())), NOW)
}

/// Reads to the end, around what is damaged.
fn read_all(log: &Log) {
    let mut offset = log.start();
    while offset < log.end() {
        match log.read(offset, 400, log.end()) {
            Ok(fetched) if fetched.batches.is_empty() => break,
            Ok(fetched) => {
                assert!(fetched.next_offset > offset);
                offset = fetched.next_offset;
            }
            Err(LogError::Damaged { damage, .. }) => {
                assert!(damage.offsets.end > offset, "{damage:?} at {offset}");
                offset = damage.offsets.end;
            }
            Err(other) => panic!("{other}"),
        }
    }
}

fuzz_target!(|pieces: Vec<(u8, bool, &[u8])>| {
    let disk = SimDisk::new(1);
    let write = |name: &str, bytes: &[u8]| {
        let mut file = disk.create(&PathBuf::from(DIR).join(name)).expect("the disk works");
        file.append(bytes).expect("the disk works");
    };
    write("partition.metadata", format_partition_metadata(TopicId(uuid::Uuid::nil())).as_bytes());
    for (name, as_batches, bytes) in &pieces {
        let name = NAMES[usize::from(*name) % NAMES.len()];
        if *as_batches && name.ends_with(".log") {
            write(name, &sealed(bytes));
        } else {
            write(name, bytes);
        }
    }
    let Ok(mut log) = open(&disk) else { return };
    let was_damaged = !log.damages().is_empty();
    read_all(&log);
    let _ = (log.offset_for_timestamp(0), log.offset_for_timestamp(NOW), log.end_of_epoch(LeaderEpoch(1)));
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(NOW, Some(b"k"), Some(b"v"), &[]);
    let batch: Bytes = builder.build().expect("it is small");
    if log.append(&batch, LeaderEpoch(i32::MAX as u32), NOW).is_ok() {
        let last = Offset(log.end().0 - 1);
        assert_eq!(log.read(last, 400, log.end()).expect("it was just written").next_offset, log.end());
    }
    let _ = log.roll();
    let _ = log.compact(NOW, log.end(), 10);
    let middle = Offset(log.start().0 + (log.end().0 - log.start().0) / 2);
    log.truncate_to(middle, NOW).expect("any log can be cut");
    log.checkpoint().expect("any log can be synced");
    let (start, end) = (log.start(), log.end());
    drop(log);
    let again = open(&disk).expect("what was opened opens again");
    // Offsets that several batches claim may be given to another of them once no later segment bounds them.
    if !was_damaged {
        assert_eq!((again.start(), again.end()), (start, end));
    }
    read_all(&again);
});
