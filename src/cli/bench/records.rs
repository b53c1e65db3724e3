//! What the benches of records share: a topic, records, and a producer that is kept busy.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;

use super::super::produce::{acks, compression};
use super::figures::Durations;
use super::proc;
use super::rig::Rig;
use crate::client::{Delivery, Producer, ProducerConfig, ProducerRecord};
use crate::log::batch::Compression;
use crate::types::TopicName;
use crate::wire::admin::{Terms, TopicCreate};
use crate::wire::data::Acks;

/// How records are written.
#[derive(clap::Args, Clone, Debug)]
pub struct Load {
    /// How many records
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..))]
    records: u64,
    /// How large each record's value is
    #[arg(long, value_name = "BYTES", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(16..=900_000))]
    pub size: u32,
    /// How many partitions they go to
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub partitions: u32,
    /// Send to all partitions in turn, instead of filling a batch of one after the other as the producer does by itself
    #[arg(long)]
    pub spread: bool,
    /// The largest batch [default: the producer's]
    #[arg(long, value_name = "BYTES")]
    batch_size: Option<usize>,
    /// How many batches of a partition are unanswered at a time, 1 to 5
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub in_flight: usize,
    /// When a record counts as stored: all, 1 or 0
    #[arg(long, default_value = "all", value_parser = acks)]
    acks: Acks,
    /// none, gzip, snappy, lz4 or zstd
    #[arg(long, value_name = "CODEC", default_value = "none", value_parser = compression)]
    compression: Compression,
}

/// What a run of the producer came to.
pub struct Sent {
    pub took: Duration,
    /// From `send` to its outcome, of every record.
    pub latency: Durations,
    /// The processor time of this process.
    pub cpu: Duration,
}

/// The rig's servers have NATS's default.
const MAX_PAYLOAD: usize = 1 << 20;
/// Records whose time is taken: one in so many.
const SAMPLE: u64 = 16;

impl Load {
    pub fn batch_size(&self) -> usize {
        let room = crate::process::message_room(MAX_PAYLOAD);
        self.batch_size.unwrap_or(ProducerConfig::default().batch_size).min(room)
    }

    /// How many batches are unanswered at a time, as far as the producer's memory goes.
    pub fn window(&self) -> u64 {
        let room = ProducerConfig::default().buffer_memory / self.batch_size();
        (self.in_flight as u64 * u64::from(self.partitions)).min(room.max(1) as u64)
    }

    pub fn records(&self) -> u64 {
        self.records
    }

    pub fn bytes(&self) -> u64 {
        self.records * u64::from(self.size)
    }

    pub fn config(&self) -> ProducerConfig {
        ProducerConfig {
            acks: self.acks,
            compression: self.compression,
            batch_size: self.batch_size(),
            max_in_flight: self.in_flight,
            ..ProducerConfig::default()
        }
    }

    /// Writes all of them, as fast as they are taken.
    pub async fn send(&self, rig: &Rig, topic: &TopicName) -> anyhow::Result<Sent> {
        let client = rig.connect("bench producer").await?;
        let producer = Producer::new(client, rig.services.clone(), self.config()).await?;
        producer.partitions(topic).await?;
        let values = values(self.size as usize, self.compression != Compression::None);
        let pid = std::process::id();
        let (began, cpu) = (Instant::now(), proc::cpu(pid)?);
        let mut latency = Durations::new();
        let mut waiting: VecDeque<(Instant, Delivery)> = VecDeque::new();
        for number in 0..self.records {
            let value = values[(number % values.len() as u64) as usize].clone();
            let mut record = ProducerRecord::new(topic.clone(), value);
            record.partition = self.spread.then(|| (number % u64::from(self.partitions)) as u32);
            let delivery = producer.send(record).await?;
            if number % SAMPLE == 0 {
                let at = Instant::now();
                waiting.push_back((at, delivery));
                settle(&mut waiting, &mut latency, at)?;
            }
        }
        while let Some((at, delivery)) = waiting.pop_front() {
            delivery.await?;
            latency.add(at.elapsed());
        }
        producer.close().await;
        Ok(Sent { took: began.elapsed(), latency, cpu: proc::cpu(pid)?.saturating_sub(cpu) })
    }
}

fn settle(waiting: &mut VecDeque<(Instant, Delivery)>, latency: &mut Durations, now: Instant) -> anyhow::Result<()> {
    // In the order of sending, so that this costs next to nothing; one of another partition may be counted a moment late.
    while let Some((at, delivery)) = waiting.front()
        && let Some(settled) = delivery.settled()
    {
        settled?;
        latency.add(now.duration_since(*at));
        waiting.pop_front();
    }
    Ok(())
}

/// Some values of random bytes, or, where they are to be compressed, that compress about as JSON does.
fn values(size: usize, are_compressed: bool) -> Vec<Bytes> {
    const COUNT: usize = 1_000;
    let of = |number: usize| {
        if !are_compressed {
            return (0..size).map(|_| rand::random::<u8>()).collect();
        }
        let mut value = String::with_capacity(size + 64);
        while value.len() < size {
            value.push_str(&format!("{{\"id\":{:016x},\"name\":\"customer {number}\",", rand::random::<u64>()));
        }
        value.truncate(size);
        Bytes::from(value)
    };
    (0..COUNT).map(of).collect()
}

/// Creates a topic, and waits until all of its partitions are led and can be written to.
pub async fn create(rig: &Rig, name: &TopicName, partitions: u32, replicas: u32) -> anyhow::Result<()> {
    let request = TopicCreate {
        name: name.to_string(),
        partitions: Some(partitions),
        replication_factor: Some(replicas),
        config: BTreeMap::new(),
        terms: Terms::default(),
    };
    rig.admin.create_topic(request).await.with_context(|| format!("create {partitions} partitions"))?;
    let leaders = crate::client::Leaders::new(rig.client.clone(), rig.services.clone());
    for partition in 0..partitions {
        leaders.offsets(name, partition).await?;
    }
    Ok(())
}
