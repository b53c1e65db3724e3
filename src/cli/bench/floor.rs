//! The floors: what this machine needs for the bare operations that a change of the metadata is made of, on the same
//! nats-server and the same disk as the cluster under test.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Context;
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures::StreamExt;

use super::figures::Durations;
use super::rig::Rig;
use crate::bus::log::{History, HistoryConfig};

/// About what an entry of a small change takes.
const ENTRY_BYTES: usize = 512;
/// About what a request or a heartbeat takes.
const REQUEST_BYTES: usize = 300;
const PATIENCE: Duration = Duration::from_secs(10);

/// The bare operations, measured one at a time.
pub struct Floor {
    stream: History,
    last: u64,
    client: Client,
    file: File,
    pub append: Durations,
    pub request: Durations,
    pub sync: Durations,
}

const ECHO: &str = "bench.echo";

impl Floor {
    pub async fn new(rig: &Rig) -> anyhow::Result<Self> {
        let client = rig.connect("bench floor").await?;
        let config = HistoryConfig { stream: "BENCH".into(), subject: "bench.log".into(), ..HistoryConfig::default() };
        let stream = History::new(client.clone(), config);
        stream.ensure().await.context("make a stream for the floor")?;
        let echo = rig.connect("bench echo").await?;
        let mut asked = echo.subscribe(ECHO).await?;
        crate::bus::raw::round_trip(&echo, PATIENCE).await?;
        tokio::spawn(async move {
            while let Some(message) = asked.next().await {
                let Some(reply) = message.reply else { continue };
                if echo.publish(reply, message.payload).await.is_err() {
                    return;
                }
            }
        });
        let file = File::create(rig.path().join("floor")).context("make a file for the floor")?;
        let new = Durations::new;
        Ok(Self { stream, last: 0, client, file, append: new(), request: new(), sync: new() })
    }

    /// One append to a stream that syncs always, one core request, one append to a file with fdatasync.
    pub async fn measure(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        let payload = Bytes::from_static(&[b'x'; ENTRY_BYTES]);
        self.last = self.stream.append(self.last, payload, HeaderMap::new(), PATIENCE).await?;
        self.append.add(began.elapsed());

        let began = Instant::now();
        self.client.request(ECHO, Bytes::from_static(&[b'x'; REQUEST_BYTES])).await?;
        self.request.add(began.elapsed());

        let began = Instant::now();
        // As a node's writer does it: on a thread that may block.
        let mut file = self.file.try_clone()?;
        tokio::task::spawn_blocking(move || {
            file.write_all(&[b'x'; ENTRY_BYTES])?;
            file.sync_data()
        })
        .await??;
        self.sync.add(began.elapsed());
        Ok(())
    }

    /// The sum of the three, each at this quantile, in milliseconds.
    pub fn sum_ms(&self, quantile: f64) -> f64 {
        self.append.ms(quantile) + self.request.ms(quantile) + self.sync.ms(quantile)
    }
}
