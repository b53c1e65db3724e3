//! Batches from producers and from a leader: what is taken is read again as it came, and opens again.
#![no_main]

use std::path::PathBuf;
use std::sync::Arc;

use batches::sealed;
use bytes::Bytes;
use dmq::disk::sim::SimDisk;
use dmq::log::batch::records;
use dmq::log::{Files, Log, LogConfig, OpenOptions, TopicPartition};
use dmq::types::{LeaderEpoch, Offset, TopicId, TopicName};
use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
mod batches;

const NOW: i64 = 1_800_000_000_000;
const LIMIT: usize = 1 << 20;

fn open(disk: &SimDisk) -> Log {
    let id = TopicPartition::new(TopicName::new("orders").expect("a good name"), 0);
    let config = LogConfig {
        segment_bytes: 1_000,
        index_interval_bytes: 100,
        max_decompressed_bytes: LIMIT,
        compact: true,
        ..LogConfig::default()
    };
    let files = Files::new(Arc::new(disk.clone()), 4);
    let dir = PathBuf::from("/logs/orders-0");
    Log::open(id, dir, config, files, OpenOptions::new(TopicId(uuid::Uuid::nil())), NOW).expect("it was written by us")
}

fuzz_target!(|pieces: Vec<(bool, &[u8])>| {
    let disk = SimDisk::new(1);
    let mut log = open(&disk);
    for (from_leader, bytes) in pieces {
        let bytes = Bytes::from(sealed(bytes));
        let end = log.end();
        if from_leader {
            if log.append_as_follower(&bytes, NOW).is_ok() && log.end() > end {
                let read = log.read(end, bytes.len(), log.end()).expect("it was just taken");
                assert!(bytes.starts_with(&read.batches));
            }
        } else if let Ok(info) = log.append(&bytes, LeaderEpoch(3), NOW)
            && !info.duplicate
        {
            let read = log.read(end, bytes.len(), log.end()).expect("it was just taken");
            assert_eq!(read.next_offset, log.end());
            // What a producer may append can be read by every consumer.
            let found: Vec<_> = records(&read.batches, LIMIT).expect("it was checked").collect();
            assert_eq!(found.len() as i64, log.end().0 - end.0);
            assert!(found.iter().all(Result::is_ok));
        }
    }
    let _ = (log.offset_for_timestamp(0), log.offset_for_timestamp(NOW));
    let end = log.end();
    let _ = log.roll();
    let _ = log.compact(NOW, log.end(), 1_000);
    log.checkpoint().expect("the disk works");
    drop(log);
    let log = open(&disk);
    assert_eq!((log.end(), log.damages()), (end, &[][..]));
    let mut offset = Offset::ZERO;
    while offset < end {
        let read = log.read(offset, 1_000, end).expect("it is whole");
        if read.batches.is_empty() {
            break;
        }
        offset = read.next_offset;
    }
});
