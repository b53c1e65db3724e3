//! `dmq produce`.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use serde::Serialize;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};

use super::output::{Output, say};
use super::{Outcome, global::GlobalArgs, session};
use crate::client::{Delivery, Producer, ProducerConfig, ProducerRecord};
use crate::log::batch::{Compression, Header};
use crate::types::{PartitionId, TopicName, TopicNameError};
use crate::wire::data::Acks;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The topic
    #[arg(value_parser = topic_name)]
    topic: TopicName,
    /// Read from this file [default: stdin]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What stands between a line's key and its value; without it lines are values
    #[arg(long, value_name = "TEXT", value_parser = separator)]
    key_separator: Option<String>,
    /// A header of every record; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = header)]
    header: Vec<(String, String)>,
    /// Write to this partition [default: by the key, as Kafka's clients choose]
    #[arg(long, value_name = "N")]
    partition: Option<PartitionId>,
    /// When a record counts as stored: 'all' in-sync replicas have it on disk, '1': the leader has, '0': it was sent
    #[arg(long, default_value = "all", value_parser = acks)]
    acks: Acks,
    /// How batches are compressed: none, gzip, snappy, lz4 or zstd
    #[arg(long, default_value = "none", value_name = "CODEC", value_parser = compression)]
    compression: Compression,
    /// How many records a second at most [default: as many as there are]
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    /// For how long each record is tried
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = delivery_timeout)]
    delivery_timeout: Duration,
}

/// A batch gathers for some milliseconds before it is sent.
const LEAST_DELIVERY_TIMEOUT: Duration = Duration::from_millis(100);

pub fn topic_name(text: &str) -> Result<TopicName, TopicNameError> {
    TopicName::new(text)
}

pub fn acks(text: &str) -> Result<Acks, String> {
    Acks::parse(text).map_err(|_| "it is all, 1 or 0".into())
}

pub fn compression(text: &str) -> Result<Compression, String> {
    let found = Compression::ALL.into_iter().find(|codec| codec.name() == text);
    found.ok_or_else(|| format!("there are {}", Compression::ALL.map(Compression::name).join(", ")))
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        Some(_) | None => Err("write NAME=VALUE, for example trace=7".into()),
    }
}

fn delivery_timeout(text: &str) -> Result<Duration, String> {
    let timeout = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if timeout < LEAST_DELIVERY_TIMEOUT {
        return Err(format!("it is at least {}", humantime::format_duration(LEAST_DELIVERY_TIMEOUT)));
    }
    Ok(timeout)
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| "it is a number of records a second, more than 0".into())
}

fn separator(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it has at least one character".into()) } else { Ok(text.replace("\\t", "\t")) }
}

/// What was done.
#[derive(Serialize)]
struct Done {
    records: u64,
    /// Of keys and values.
    bytes: u64,
    seconds: f64,
}

impl Done {
    fn say(&self) -> String {
        let rate = self.records as f64 / self.seconds.max(1e-9);
        format!("{} records, {} bytes, in {:.2} s: {rate:.0} records/s", self.records, self.bytes, self.seconds)
    }
}

/// The longest line: no record is larger.
const LONGEST_LINE: usize = 64 << 20;
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

pub async fn run(global: &GlobalArgs, args: Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let input: Box<dyn AsyncBufRead + Unpin + Send> = match &args.file {
        None => Box::new(BufReader::with_capacity(1 << 16, tokio::io::stdin())),
        Some(path) => {
            let file = tokio::fs::File::open(path).await.with_context(|| format!("open {}", path.display()))?;
            Box::new(BufReader::with_capacity(1 << 18, file))
        }
    };
    let session = session::open(global).await?;
    let config = ProducerConfig {
        acks: args.acks,
        compression: args.compression,
        delivery_timeout: args.delivery_timeout,
        max_block: session.left.max(args.delivery_timeout),
        ..ProducerConfig::default()
    };
    let producer = Producer::new(session.client.clone(), session.services, config).await?;
    // So that an unknown topic is an error even where there is no line.
    let known = tokio::time::timeout(session.left, producer.partitions(&args.topic)).await;
    known.map_err(|_| anyhow::anyhow!("topic {} could not be looked up in time", args.topic))??;
    let mut work = Work { args, producer, pending: VecDeque::new(), done: Done { records: 0, bytes: 0, seconds: 0.0 } };
    let began = Instant::now();
    let result = work.send_lines(input, began).await;
    work.done.seconds = began.elapsed().as_secs_f64();
    if let Err(error) = result {
        // What stands before it may yet be stored; the error that is told is the first one.
        work.producer.flush().await;
        let _ = work.settle();
        say(&format!("{} records were stored", work.done.records));
        return Err(error);
    }
    let Work { done, producer, .. } = work;
    producer.close().await;
    // What was published without an acknowledgement may still be on its way out.
    session.client.flush().await.context("flush the connection to NATS")?;
    out.answer(&done, |done, _| done.say())?;
    Ok(Outcome::Fine)
}

struct Work {
    args: Args,
    producer: Producer,
    /// Lines whose records are not known to be stored, in order.
    pending: VecDeque<(u64, usize, Delivery)>,
    done: Done,
}

impl Work {
    /// Until the input ends, or somebody interrupts.
    async fn send_lines(
        &mut self,
        mut input: Box<dyn AsyncBufRead + Unpin + Send>,
        began: Instant,
    ) -> anyhow::Result<()> {
        let shows = std::io::stderr().is_terminal() && (self.args.file.is_some() || !std::io::stdin().is_terminal());
        let mut interrupted = pin!(tokio::signal::ctrl_c());
        let (mut number, mut shown) = (0, began);
        loop {
            // An interrupt ends it between two lines; one that is half read was not sent.
            let line = tokio::select! {
                biased;
                interrupt = &mut interrupted => interrupt.context("wait for an interrupt").map(|()| None)?,
                line = next_line(&mut *input) => line.context("read the input")?,
            };
            let Some(line) = line else { break };
            number += 1;
            anyhow::ensure!(line.len() <= LONGEST_LINE, "line {number} has more than {LONGEST_LINE} bytes");
            let record = self.record(line).with_context(|| format!("line {number}"))?;
            let size = [&record.key, &record.value].into_iter().flatten().map(Bytes::len).sum();
            if let Some(rate) = self.args.rate {
                let due = began + Duration::from_secs_f64((number - 1) as f64 / rate);
                tokio::select! {
                    biased;
                    interrupt = &mut interrupted => {
                        interrupt.context("wait for an interrupt")?;
                        break;
                    }
                    () = tokio::time::sleep_until(due.into()) => {}
                }
            }
            let delivery = self.producer.send(record).await.with_context(|| format!("line {number}"))?;
            self.pending.push_back((number, size, delivery));
            self.settle()?;
            if shows && shown.elapsed() >= PROGRESS_EVERY {
                shown = Instant::now();
                self.done.seconds = began.elapsed().as_secs_f64();
                eprint!("\r{}\x1b[K", self.done.say());
            }
        }
        self.producer.flush().await;
        if shows {
            eprint!("\r\x1b[K");
        }
        self.settle()
    }

    /// Counts what is stored by now. The first that is not ends it.
    fn settle(&mut self) -> anyhow::Result<()> {
        while let Some((number, size, delivery)) = self.pending.front()
            && let Some(settled) = delivery.settled()
        {
            settled.with_context(|| format!("line {number}"))?;
            self.done.records += 1;
            self.done.bytes += *size as u64;
            self.pending.pop_front();
        }
        Ok(())
    }

    fn record(&self, line: Bytes) -> anyhow::Result<ProducerRecord> {
        let topic = self.args.topic.clone();
        let mut record = match &self.args.key_separator {
            None => ProducerRecord::new(topic, line),
            Some(separator) => {
                let at = line.windows(separator.len()).position(|window| window == separator.as_bytes());
                let at = at.with_context(|| format!("it lacks the key's separator {separator:?}"))?;
                ProducerRecord::new(topic, line.slice(at + separator.len()..)).key(line.slice(..at))
            }
        };
        record.partition = self.args.partition;
        let header = |(name, value): &(String, String)| Header {
            key: Bytes::copy_from_slice(name.as_bytes()),
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
        };
        record.headers = self.args.header.iter().map(header).collect();
        Ok(record)
    }
}

/// Reads a line, without what ends it. None at the end of the input.
async fn next_line(input: &mut (dyn AsyncBufRead + Unpin + Send)) -> std::io::Result<Option<Bytes>> {
    let mut line = Vec::new();
    if input.take(LONGEST_LINE as u64 + 1).read_until(b'\n', &mut line).await? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    Ok(Some(line.into()))
}
