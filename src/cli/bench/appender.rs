//! The floor of what stores records: processes that append what they hear to a file, sync once for all that waits, and answer, and
//! do nothing else. Also the floor of what serves records: one that answers every request with as many bytes as it asks for.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use async_nats::Client;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};

use super::super::Outcome;
use super::figures::Durations;
use super::rig::{Key, PATIENCE, Rig};
use crate::bus::raw;

#[derive(clap::Args, Debug)]
pub struct Args {
    url: String,
    subject: String,
    /// Where what is heard is appended; without it, requests are answered with bytes
    #[arg(long)]
    file: Option<PathBuf>,
}

/// As many as a storage node takes in at once, at most.
const AT_ONCE: usize = 512;

pub async fn run(args: Args) -> anyhow::Result<Outcome> {
    let client = async_nats::connect(&args.url).await.with_context(|| format!("connect to {}", args.url))?;
    let mut heard = client.subscribe(args.subject.clone()).await?;
    let mut file = args.file.as_ref().map(File::create).transpose().context("make the file")?;
    let answering = tokio::spawn(async move {
        let served = Bytes::from(vec![b'x'; 1 << 20]);
        while let Some(message) = heard.next().await {
            let mut messages = vec![message];
            while messages.len() < AT_ONCE
                && let Some(Some(message)) = heard.next().now_or_never()
            {
                messages.push(message);
            }
            if let Some(file) = &mut file {
                tokio::task::block_in_place(|| {
                    messages.iter().try_for_each(|message| file.write_all(&message.payload))?;
                    file.sync_data()
                })?;
            }
            for message in messages {
                let Some(reply) = message.reply else { continue };
                let answer = match &file {
                    Some(_) => Bytes::new(),
                    None => {
                        let asked = std::str::from_utf8(&message.payload)?.parse().unwrap_or(0);
                        served.slice(..served.len().min(asked))
                    }
                };
                client.publish(reply, answer).await?;
            }
        }
        anyhow::Ok(())
    });
    answering.await??;
    Ok(Outcome::Fine)
}

const NUMBER: u32 = 2_000;

/// Some appenders that all hear the same subject, as replicas hear the same records.
pub struct Appenders {
    client: Client,
    subject: String,
    count: u32,
    keys: Vec<Key>,
}

impl Appenders {
    pub async fn start(rig: &mut Rig, count: u32) -> anyhow::Result<Self> {
        let subject = "bench.append".to_owned();
        let mut keys = Vec::new();
        for number in 0..count {
            let file = rig.path().join(format!("appender-{number}")).display().to_string();
            let args = ["appender".into(), rig.url.clone(), subject.clone(), "--file".into(), file];
            keys.push(rig.helper(NUMBER + number, args)?);
        }
        let client = rig.connect("bench floor").await?;
        let appenders = Self { client, subject, count, keys };
        let deadline = Instant::now() + PATIENCE;
        while appenders.send(1, 1, 1).await.is_err() {
            anyhow::ensure!(Instant::now() < deadline, "the appenders do not answer");
        }
        Ok(appenders)
    }

    /// Sends so many messages, `window` of them unanswered at a time, each answered by all. How long each took, and all together.
    pub async fn send(&self, messages: u64, bytes: usize, window: u64) -> anyhow::Result<(Durations, Duration)> {
        let payload = Bytes::from(vec![b'x'; bytes]);
        let inbox = self.client.new_inbox();
        let mut answers = self.client.subscribe(format!("{inbox}.*")).await?;
        raw::round_trip(&self.client, PATIENCE).await?;
        let (mut took, began) = (Durations::new(), Instant::now());
        let (mut sent, mut waiting) = (0, std::collections::HashMap::new());
        while sent < messages || !waiting.is_empty() {
            while sent < messages && (waiting.len() as u64) < window {
                waiting.insert(sent, (Instant::now(), 0));
                let reply = format!("{inbox}.{sent}");
                self.client.publish_with_reply(self.subject.clone(), reply, payload.clone()).await?;
                sent += 1;
            }
            let answer = tokio::time::timeout(Duration::from_secs(5), answers.next()).await;
            let answer = answer.context("an appender does not answer")?.context("the connection to NATS has ended")?;
            let number = answer.subject.rsplit('.').next().and_then(|number| number.parse().ok());
            let Some(number) = number.filter(|number: &u64| answer.status.is_none() && waiting.contains_key(number))
            else {
                anyhow::bail!("nobody appends");
            };
            let Some((at, count)) = waiting.get_mut(&number) else { continue };
            *count += 1;
            if *count == self.count {
                took.add(at.elapsed());
                waiting.remove(&number);
            }
        }
        Ok((took, began.elapsed()))
    }

    /// Ends them, so that they take nothing from what is measured next.
    pub async fn end(self, rig: &mut Rig) -> anyhow::Result<()> {
        for key in self.keys {
            rig.signal(key, rustix::process::Signal::KILL)?;
            rig.until_ended(key).await?;
        }
        Ok(())
    }
}

/// How many bytes a second a process that only answers can send, `window` requests of so many bytes at a time.
pub async fn serve(rig: &mut Rig, bytes: usize, window: usize, requests: usize) -> anyhow::Result<f64> {
    let subject = "bench.serve".to_owned();
    let key = rig.helper(NUMBER, ["appender".into(), rig.url.clone(), subject.clone()])?;
    let client = rig.connect("bench floor").await?;
    let asked = Bytes::from(bytes.to_string());
    let deadline = Instant::now() + PATIENCE;
    while client.request(subject.clone(), asked.clone()).await.is_err() {
        anyhow::ensure!(Instant::now() < deadline, "the bare process does not serve");
    }
    let began = Instant::now();
    let asking = (0..requests).map(|_| client.request(subject.clone(), asked.clone()));
    let mut answers = futures::stream::iter(asking).buffer_unordered(window);
    let mut received = 0;
    while let Some(answer) = answers.next().await {
        received += answer?.payload.len();
    }
    let rate = received as f64 / began.elapsed().as_secs_f64();
    rig.signal(key, rustix::process::Signal::KILL)?;
    rig.until_ended(key).await?;
    Ok(rate)
}
