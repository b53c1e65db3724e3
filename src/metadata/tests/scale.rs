//! What a million partitions cost. Ignored: `cargo test --release --lib million -- --ignored --nocapture`.

// It measures, and decides nothing by it.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::time::Instant;

use super::{load, snapshot};
use crate::metadata::rules::{node, topic};
use crate::metadata::testing::{World, set, topic_id};
use crate::metadata::{Partition, Record};

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let made = work();
    println!("{what}: {:?}", begun.elapsed());
    made
}

#[test]
#[ignore = "prints figures"]
fn a_million_partitions() {
    println!("a partition takes {} bytes", size_of::<Partition>());
    let none = BTreeMap::new();
    for topics in [1, 100] {
        println!("-- {topics} topics, 30 nodes");
        let mut world = World::with_nodes(30);
        let each = 1_000_000 / topics;
        timed("a million placed", || crate::metadata::place(world.image(), 1_000_000, 3).unwrap());
        timed("placed and applied", || {
            for number in 0..topics {
                let (name, id) = (format!("n{number}"), topic_id(number));
                let made = topic::create(world.image(), &name, id, Some(each), Some(3), &none, 1 << 20).unwrap();
                world.commit(made);
            }
        });
        let changed = |records: Vec<Record>| {
            let count = records.iter().flat_map(Record::changed_partitions).count();
            let bytes = records.iter().map(|record| serde_json::to_vec(record).unwrap().len()).sum::<usize>();
            println!("  {count} partitions in {} records, {} KB", records.len(), bytes / 1_000);
            records
        };
        changed(timed("fence 1 of 30", || node::fence(world.image(), &set([7]))));
        changed(timed("fence 10 of 30", || {
            node::fence(world.image(), &(0..10).map(crate::types::StorageId).collect())
        }));
        timed("can_drain", || node::can_drain(world.image(), crate::types::StorageId(3)));
        let mut shared = world.image().topics.values().next().unwrap().clone();
        timed("a topic copied, as its first change does while a snapshot is written", || {
            std::sync::Arc::make_mut(&mut shared).partitions.len()
        });
        let bytes = timed("snapshot written", || snapshot(world.image(), world.history.position()));
        println!("  {} MB", bytes.len() / 1_000_000);
        let read = timed("snapshot read", || load(&bytes));
        assert_eq!(read.image(), world.history.image());
        timed("invariants checked", || crate::metadata::invariants::check(world.image()).unwrap());
    }
}
