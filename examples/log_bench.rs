//! What the log costs on this disk: `cargo run --release --example log_bench -- DIR [busy|idle]`. Ratios count; the times are the machine's.
//!
//! - the same bytes into one, few and many partitions, each commit by `LogDirectory::commit`, in turn with each other;
//! - opening ten thousand idle partitions, and the memory that they take;
//! - a look at reading it all back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use dmq::disk::RealDisk;
use dmq::log::batch::{BatchBuilder, Compression};
use dmq::log::{DEFAULT_OPEN_FILES, Log, LogConfig, LogDirectory, TopicPartition, WantedLog};
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

/// So many partitions, and what their commits came to.
struct Case {
    node: LogDirectory,
    logs: Vec<Log>,
    appended: usize,
    /// Microseconds.
    waits: Vec<u64>,
}

impl Case {
    fn new(dir: &Path, topic: TopicId, partitions: u32) -> Self {
        let dir = dir.join(format!("p{partitions}"));
        let node = LogDirectory::open(dir, Arc::new(RealDisk), DEFAULT_OPEN_FILES).expect("open the directory");
        let open =
            |partition| node.open_log(id("bench", partition), topic, LogConfig::default(), NOW).expect("open a log");
        let logs = (0..partitions).map(open).collect();
        Self { node, logs, appended: 0, waits: Vec::new() }
    }

    fn commit(&mut self, batch: &Bytes, batches: usize) {
        let began = Instant::now();
        for _ in 0..batches {
            let partitions = self.logs.len();
            let log = &mut self.logs[self.appended % partitions];
            log.append(batch, LeaderEpoch(1), NOW).expect("append");
            self.appended += 1;
        }
        let mut dirty: Vec<&mut Log> = self.logs.iter_mut().filter(|log| log.is_dirty()).collect();
        self.node.commit(&mut dirty).into_iter().for_each(|result| result.expect("commit"));
        self.waits.push(began.elapsed().as_micros() as u64);
    }

    fn print(&mut self, batch: &Bytes) {
        let micros: u64 = self.waits.iter().sum();
        self.waits.sort_unstable();
        let rate = (self.appended * batch.len()) as f64 / micros as f64;
        let (middle, last) = (self.waits[self.waits.len() / 2], self.waits[self.waits.len() * 99 / 100]);
        println!("{:>6} partitions: {rate:.0} MB/s, a commit p50 {middle} µs, p99 {last} µs", self.logs.len());
    }

    fn read_back(&self) {
        let (began, mut bytes) = (Instant::now(), 0);
        for log in &self.logs {
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
        let rate = bytes as f64 / began.elapsed().as_secs_f64() / 1e6;
        println!("{:>6} partitions read back: {rate:.0} MB/s", self.logs.len());
    }
}

/// The cases take turns, commit by commit, so that whatever else the disk does meets all of them.
fn throughput(dir: &Path, topic: TopicId, batches: usize, commits: usize) {
    let mut cases = [1, 12, 1_000].map(|partitions| Case::new(dir, topic, partitions));
    let batch = batch(16 * 1024);
    for _ in 0..commits {
        cases.iter_mut().for_each(|case| case.commit(&batch, batches));
    }
    println!("{batches} batches of 16 KiB a commit:");
    cases.iter_mut().for_each(|case| case.print(&batch));
    cases.iter().for_each(Case::read_back);
}

fn idle(dir: &Path, topic: TopicId, partitions: u32) {
    let open_all = |began: Instant| {
        let node = LogDirectory::open(dir.join("idle"), Arc::new(RealDisk), DEFAULT_OPEN_FILES).expect("open");
        let wanted = |partition| WantedLog { id: id("idle", partition), topic, config: LogConfig::default() };
        let opened = node.open_logs((0..partitions).map(wanted).collect(), NOW);
        let logs: Vec<Log> = opened.into_iter().map(|log| log.expect("open a log")).collect();
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
    let checkpointed = node.checkpoint_all(&mut logs.iter_mut().collect::<Vec<_>>());
    checkpointed.into_iter().for_each(|result| result.expect("checkpoint"));
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
    let only = std::env::args().nth(2);
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    if wanted("busy") {
        (0..3).for_each(|round| throughput(&dir.join(format!("round-{round}")), topic, 64, 256));
    }
    if wanted("idle") {
        idle(&dir, topic, 10_000);
    }
}
