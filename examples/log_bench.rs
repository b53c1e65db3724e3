//! What the log costs on this disk: `cargo run --release --example log_bench -- DIR [idle]`. Ratios count; the times are the machine's.
//!
//! - the same bytes into few and into many partitions, each commit by `LogDirectory::commit`;
//! - opening ten thousand idle partitions, and the memory that they take;
//! - a look at reading it all back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use dmq::disk::RealDisk;
use dmq::log::batch::{BatchBuilder, Compression};
use dmq::log::{DEFAULT_OPEN_FILES, Log, LogConfig, LogDirectory, TopicPartition};
use dmq::types::{LeaderEpoch, Offset, TopicId, TopicName};

const NOW: i64 = 1_800_000_000_000;

fn id(topic: &str, partition: u32) -> TopicPartition {
    TopicPartition::new(TopicName::new(topic).expect("a good name"), partition)
}

fn batch(bytes: usize) -> Bytes {
    let mut state = 1u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    let mut builder = BatchBuilder::new(Compression::None);
    for _ in 0..bytes / 1024 {
        let value: Vec<u8> = (0..1024).map(|_| random()).collect();
        builder.push(NOW, None, Some(&value), &[]);
    }
    builder.build().expect("it is small")
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

fn throughput(dir: &Path, topic: TopicId, partitions: u32, batches_per_commit: usize, total_bytes: usize) {
    let node = LogDirectory::open(dir.join(format!("p{partitions}")), Arc::new(RealDisk), DEFAULT_OPEN_FILES)
        .expect("open the directory");
    let open = |partition| node.open_log(id("bench", partition), topic, LogConfig::default(), NOW).expect("open a log");
    let mut logs: Vec<Log> = (0..partitions).map(open).collect();
    let batch = batch(16 * 1024);
    let commits = total_bytes / batch.len() / batches_per_commit;
    let mut waits = Vec::with_capacity(commits);
    let (began, mut next) = (Instant::now(), 0);
    for _ in 0..commits {
        let commit = Instant::now();
        for _ in 0..batches_per_commit {
            let log = &mut logs[next % partitions as usize];
            log.append(&batch, LeaderEpoch(1), NOW).expect("append");
            next += 1;
        }
        let mut dirty: Vec<&mut Log> = logs.iter_mut().filter(|log| log.is_dirty()).collect();
        node.commit(&mut dirty).into_iter().for_each(|result| result.expect("commit"));
        waits.push(commit.elapsed().as_micros());
    }
    let seconds = began.elapsed().as_secs_f64();
    waits.sort_unstable();
    let rate = (next * batch.len()) as f64 / seconds / 1e6;
    let (middle, last) = (waits[waits.len() / 2], waits[waits.len() * 99 / 100]);
    println!(
        "{partitions:>6} partitions, {batches_per_commit} batches of 16 KiB a commit: {rate:.0} MB/s, p50 {middle} µs, p99 {last} µs"
    );
    let (began, mut bytes) = (Instant::now(), 0);
    for log in &logs {
        let mut offset = Offset::ZERO;
        loop {
            let fetched = log.read(offset, 1 << 20, log.end()).expect("read");
            if fetched.batches.is_empty() {
                break;
            }
            bytes += fetched.batches.len();
            offset = fetched.next_offset;
        }
    }
    println!("{:>6} partitions read back: {:.0} MB/s", partitions, bytes as f64 / began.elapsed().as_secs_f64() / 1e6);
}

fn idle(dir: &Path, topic: TopicId, partitions: u32) {
    let open_all = |began: Instant| {
        let node = LogDirectory::open(dir.join("idle"), Arc::new(RealDisk), DEFAULT_OPEN_FILES).expect("open");
        let open =
            |partition| node.open_log(id("idle", partition), topic, LogConfig::default(), NOW).expect("open a log");
        let logs: Vec<Log> = (0..partitions).map(open).collect();
        println!("{partitions:>6} partitions opened in {:.2} s", began.elapsed().as_secs_f64());
        (node, logs)
    };
    println!("made:");
    let (node, mut logs) = open_all(Instant::now());
    let batch = batch(4 * 1024);
    logs.iter_mut().for_each(|log| _ = log.append(&batch, LeaderEpoch(1), NOW).expect("append"));
    node.commit(&mut logs.iter_mut().collect::<Vec<_>>()).into_iter().for_each(|result| result.expect("commit"));
    drop((node, logs));
    println!("after a kill:");
    let (node, mut logs) = open_all(Instant::now());
    println!("{:.1} MB resident, {} files open", resident_bytes() as f64 / 1e6, node.files().open_count());
    let began = Instant::now();
    logs.iter_mut().for_each(|log| log.checkpoint().expect("checkpoint"));
    println!("{partitions:>6} checkpoints in {:.2} s", began.elapsed().as_secs_f64());
    drop((node, logs));
    println!("after a checkpoint:");
    open_all(Instant::now());
}

fn main() {
    let Some(dir) = std::env::args().nth(1).map(PathBuf::from) else {
        println!("give a directory on the disk to measure: cargo run --release --example log_bench -- DIR");
        return;
    };
    let topic = TopicId("11111111-2222-4333-8444-555555555555".parse().expect("a good id"));
    if std::env::args().nth(2).is_some_and(|only| only == "idle") {
        return idle(&dir, topic, 10_000);
    }
    for round in 0..3 {
        for partitions in [1, 12, 1_000] {
            throughput(&dir.join(format!("round-{round}")), topic, partitions, 64, 256 << 20);
        }
    }
    idle(&dir, topic, 10_000);
}
