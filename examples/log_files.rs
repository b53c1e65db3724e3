//! Writes logs for Kafka's own tools to judge: `cargo run --example log_files -- DIR`. One in every codec, with headers,
//! tombstones and an idempotent producer; one compacted, one whose end was cut, one that was torn and recovered.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use dmq::disk::RealDisk;
use dmq::log::batch::{BatchBuilder, Compression, Header, ProducerStamp};
use dmq::log::{Log, LogConfig, LogDirectory, TopicPartition};
use dmq::types::{LeaderEpoch, Offset, TopicId, TopicName};

const NOW: i64 = 1_795_000_000_000;
const BATCHES: i64 = 150;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn letters(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| b'a' + self.below(26) as u8).collect()
    }
}

fn fill(log: &mut Log, codec: Compression, random: &mut Random) -> anyhow::Result<()> {
    let headers = [
        Header { key: Bytes::from("trace"), value: Some(Bytes::from("abc")) },
        Header { key: Bytes::from("empty"), value: None },
    ];
    let mut sequence = 0;
    for number in 0..BATCHES {
        let count = 1 + random.below(20) as i32;
        let mut builder = BatchBuilder::new(codec);
        if number % 3 == 0 {
            builder = builder.producer(ProducerStamp { id: 4242, epoch: 1, sequence });
            sequence += count;
        }
        for record in 0..count {
            let key = format!("key-{}", random.below(40));
            let len = random.below(300);
            let value = random.letters(len);
            let value = Some(&value[..]).filter(|_| random.below(10) > 0);
            let timestamp = NOW + number * 1_000 + random.below(3_000) as i64;
            builder.push(timestamp, Some(key.as_bytes()), value, if record % 4 == 0 { &headers } else { &[] });
        }
        log.append(&builder.build()?, LeaderEpoch(number as u32 / 50 + 1), NOW)?;
    }
    Ok(())
}

/// Takes the last bytes of the newest segment away, as a kill in the middle of a write does.
fn tear(dir: &Path) -> anyhow::Result<()> {
    let paths = std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<PathBuf>>>()?;
    let last = paths.into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "log")).max();
    let file = std::fs::OpenOptions::new().write(true).open(last.context("there is no segment")?)?;
    Ok(file.set_len(file.metadata()?.len() - 7)?)
}

fn main() -> anyhow::Result<()> {
    let dir = PathBuf::from(std::env::args().nth(1).context("give a directory that does not exist")?);
    let node = LogDirectory::open(dir.clone(), Arc::new(RealDisk), 64)?;
    let topic = TopicId("11111111-2222-4333-8444-555555555555".parse()?);
    let mut random = Random(12_345);
    let codecs = Compression::ALL.map(|codec| (codec.name(), codec));
    let others = [("compacted", Compression::Zstd), ("cut", Compression::None), ("torn", Compression::Lz4)];
    for (name, codec) in codecs.into_iter().chain(others) {
        let id = TopicPartition::new(TopicName::new(name)?, 0);
        let config =
            LogConfig { segment_bytes: 60_000, compact: name == "compacted", delete: false, ..LogConfig::default() };
        let open = || node.open_log(id.clone(), topic, config.clone(), NOW);
        let mut log = open()?;
        fill(&mut log, codec, &mut random)?;
        match name {
            "compacted" => {
                log.roll()?;
                log.compact(NOW, log.end(), 1_000_000)?;
            }
            "cut" => {
                log.truncate_to(Offset(log.end().0 / 2), NOW)?;
            }
            "torn" => {
                log.sync()?;
                drop(log);
                tear(&dir.join(id.to_string()))?;
                log = open()?;
            }
            _ => {}
        }
        log.checkpoint()?;
        println!("{id}: offsets {} to {} in {} segments", log.start(), log.end(), log.segment_count());
    }
    Ok(())
}
