//! What JetStream takes in and gives out, for `tools/compare.py`: many publishes at once, each acknowledged, and a pull consumer.
//!
//! `jetstream_bench URL REPLICAS SIZE SECONDS IN_FLIGHT READ` prints one line of JSON. READ: the most records that are read back.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Context;
use async_nats::jetstream::{self, consumer, stream};
use bytes::Bytes;
use futures::StreamExt;
use rand::RngExt;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, replicas, size, seconds, in_flight, to_read] = &arguments[..] else {
        anyhow::bail!("jetstream_bench URL REPLICAS SIZE SECONDS IN_FLIGHT READ");
    };
    let (replicas, size, in_flight): (usize, usize, usize) = (replicas.parse()?, size.parse()?, in_flight.parse()?);
    let (seconds, to_read): (f64, u64) = (seconds.parse()?, to_read.parse()?);
    let client = async_nats::connect(url).await?;
    let context = jetstream::new(client);
    let config = stream::Config {
        name: "PEER".into(),
        subjects: vec!["peer".into()],
        num_replicas: replicas,
        storage: stream::StorageType::File,
        ..stream::Config::default()
    };
    let stream = context.create_stream(config).await?;

    let mut bytes = vec![0u8; 4 << 20];
    rand::rng().fill(&mut bytes[..]);
    let bytes = Bytes::from(bytes);
    let payload = |number: u64| {
        let at = (number as usize * 7_919) % (bytes.len() - size);
        bytes.slice(at..at + size)
    };
    let warm_up = seconds / 6.0;
    let (mut waiting, mut sent, mut counted) = (VecDeque::with_capacity(in_flight), 0u64, None);
    let began = Instant::now();
    let (mut settled, mut from) = (0u64, began);
    loop {
        let elapsed = began.elapsed().as_secs_f64();
        if counted.is_none() && elapsed >= warm_up {
            (counted, from) = (Some(settled), Instant::now());
        }
        if elapsed >= warm_up + seconds {
            break;
        }
        if waiting.len() >= in_flight {
            let oldest: jetstream::context::PublishAckFuture = waiting.pop_front().context("it is not empty")?;
            oldest.await?;
            settled += 1;
        }
        waiting.push_back(context.publish("peer", payload(sent)).await?);
        sent += 1;
    }
    let rate = (settled - counted.unwrap_or(0)) as f64 / from.elapsed().as_secs_f64();
    for ack in waiting {
        ack.await?;
    }

    let mut single = Vec::new();
    for number in 0..1_000 {
        let began = Instant::now();
        context.publish("peer", payload(number)).await?.await?;
        single.push(began.elapsed());
    }
    sent += 1_000;
    single.sort_unstable();

    let consumed = match sent.min(to_read) {
        0 => None,
        count => Some(read(&stream, count).await?),
    };
    println!(
        r#"{{"produced":{rate:.0},"consumed":{},"singleP50Ms":{:.3},"singleP99Ms":{:.3}}}"#,
        consumed.map_or("null".into(), |rate| format!("{rate:.0}")),
        single[500].as_secs_f64() * 1e3,
        single[990].as_secs_f64() * 1e3
    );
    Ok(())
}

/// Reads so many from the beginning: how many a second.
async fn read(stream: &stream::Stream, count: u64) -> anyhow::Result<f64> {
    let pull = consumer::pull::Config {
        ack_policy: consumer::AckPolicy::None,
        inactive_threshold: Duration::from_secs(60),
        ..consumer::pull::Config::default()
    };
    let consumer = stream.create_consumer(pull).await?;
    let mut messages = consumer.stream().max_messages_per_batch(10_000).messages().await?;
    let began = Instant::now();
    for _ in 0..count {
        messages.next().await.context("the stream ended")??;
    }
    Ok(count as f64 / began.elapsed().as_secs_f64())
}
