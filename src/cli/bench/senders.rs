//! Storage nodes as far as a controller hears of them: registered for real, and heartbeating as plain NATS requests.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Context;
use async_nats::{Client, Subject};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::rig::{PATIENCE, Rig};
use crate::bus::raw;
use crate::metadata::NodeState;
use crate::types::{ClusterId, ControllerEpoch, DirectoryId, IncarnationId, Position};
use crate::wire::admin::{self, NodeRegister, NodeRegistered};
use crate::wire::{Health, Heartbeat, HeartbeatAnswer, WantedState, WireMessage};

/// One node: where its heartbeats go, and their bytes but for the number that rises.
#[derive(Clone)]
struct Node {
    heartbeat: Heartbeat,
    subject: Subject,
    before: Bytes,
    after: Bytes,
}

const NUMBER: &str = "\"sequence\":";

impl Node {
    /// Splits the encoded heartbeat around its number, so that sending costs next to nothing.
    fn refresh(&mut self) -> anyhow::Result<()> {
        let whole = self.heartbeat.encode();
        let text = std::str::from_utf8(&whole)?;
        let start = text.find(NUMBER).context("a heartbeat has a sequence")? + NUMBER.len();
        let end = start + text[start..].find(',').context("a heartbeat has more after it")?;
        (self.before, self.after) = (whole.slice(..start), whole.slice(end..));
        Ok(())
    }

    fn next(&mut self) -> Bytes {
        self.heartbeat.sequence += 1;
        let mut digits = [0; 20];
        let mut at = digits.len();
        let mut left = self.heartbeat.sequence;
        while left > 0 {
            at -= 1;
            digits[at] = b'0' + (left % 10) as u8;
            left /= 10;
        }
        let mut bytes = BytesMut::with_capacity(self.before.len() + 20 + self.after.len());
        bytes.put_slice(&self.before);
        bytes.put_slice(&digits[at..]);
        bytes.put_slice(&self.after);
        bytes.freeze()
    }
}

/// Some nodes that share a connection.
struct Sender {
    client: Client,
    inbox: Subject,
    nodes: Vec<Node>,
    /// The newest that was answered.
    head: Position,
    answered: Arc<AtomicU64>,
}

pub struct Senders(Vec<Sender>);

/// How nodes send.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// Each connection has so many unanswered at a time.
    Window(u64),
    /// All nodes together, evenly.
    PerSecond(u32),
}

impl Senders {
    /// Registers `count` nodes, spread over some connections, and lets them heartbeat until all of them are active.
    pub async fn register(rig: &Rig, count: u32, connections: u32) -> anyhow::Result<Self> {
        /// Those that wait at the same time are one change.
        const AT_ONCE: usize = 512;
        let status = rig.admin.cluster_status().await?;
        let cluster = status.cluster_id.context("no cluster was founded")?;
        let mut senders = Vec::new();
        for number in 0..connections {
            let client = rig.connect(&format!("bench nodes {number}")).await?;
            let inbox = Subject::from(client.new_inbox());
            let share = count / connections + u32::from(number < count % connections);
            let subject = rig.services.admin_subject("node", "register");
            let registering = (0..share).map(|_| register(rig, client.clone(), subject.clone(), cluster));
            let nodes = futures::stream::iter(registering).buffer_unordered(AT_ONCE).try_collect().await?;
            senders.push(Sender { client, inbox, nodes, head: Position::default(), answered: Arc::default() });
        }
        let mut all = Self(senders);
        all.settle().await?;
        Ok(all)
    }

    /// Heartbeats until every node is active and has the newest version. Who was silent for a session was fenced meanwhile.
    pub async fn settle(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE * 2;
        loop {
            let (mut head, mut settled) = (Position::default(), true);
            for (newest, active) in futures::future::try_join_all(self.0.iter_mut().map(Sender::round)).await? {
                settled &= active && (head.version == newest.version || head == Position::default());
                head = if newest.version > head.version { newest } else { head };
            }
            for node in self.0.iter_mut().flat_map(|sender| &mut sender.nodes) {
                settled &= node.heartbeat.position == head;
                node.heartbeat.position = head;
                node.refresh()?;
            }
            if settled {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "the nodes did not become active");
        }
    }

    /// Sends for so long, and says how many answers came per second.
    pub async fn run(&mut self, load: Load, time: Duration, prefix: Option<&str>) -> anyhow::Result<f64> {
        let began = Instant::now();
        let until = began + time;
        let connections = self.0.len() as u32;
        let mut running = JoinSet::new();
        let counters: Vec<_> = self.0.iter().map(|sender| sender.answered.clone()).collect();
        let before: u64 = counters.iter().map(|counter| counter.load(Relaxed)).sum();
        for sender in self.0.drain(..) {
            let prefix = prefix.map(str::to_owned);
            running.spawn(async move {
                match load {
                    Load::Window(most) => sender.closed(most, until, prefix).await,
                    Load::PerSecond(rate) => sender.paced(rate / connections, until, prefix).await,
                }
            });
        }
        tokio::time::sleep_until(until.into()).await;
        let answered: u64 = counters.iter().map(|counter| counter.load(Relaxed)).sum();
        let rate = (answered - before) as f64 / began.elapsed().as_secs_f64();
        while let Some(done) = running.join_next().await {
            self.0.push(done??);
        }
        Ok(rate)
    }
}

async fn register(rig: &Rig, client: Client, subject: String, cluster: ClusterId) -> anyhow::Result<Node> {
    let (directory, incarnation) = (DirectoryId(Uuid::new_v4()), IncarnationId(Uuid::new_v4()));
    let connection = raw::connection(&client).context("the connection has no name")?;
    let request = NodeRegister {
        cluster: Some(cluster),
        directory,
        incarnation,
        storage: None,
        rack: None,
        preferred: None,
        node_epoch: None,
        position: Position::default(),
        connection: connection.clone(),
    };
    let answer =
        raw::request_with_deadline(&client, &subject, None, admin::encode(&request).into(), PATIENCE * 10).await?;
    let registered: NodeRegistered = serde_json::from_slice(&answer.payload)
        .with_context(|| format!("register a node: {}", String::from_utf8_lossy(&answer.payload)))?;
    let heartbeat = Heartbeat {
        cluster: Some(cluster),
        storage: registered.storage,
        directory,
        incarnation,
        node_epoch: registered.node_epoch,
        connection,
        sequence: 0,
        position: Position::default(),
        controller_epoch: ControllerEpoch(1),
        leader_count: 0,
        follower_count: 0,
        wanted: WantedState::Running,
        health: Health {
            disk_total_bytes: 1 << 40,
            disk_free_bytes: 1 << 39,
            memory_bytes: 20 << 20,
            ..Health::default()
        },
    };
    let subject = rig.services.storage(registered.storage).heartbeat.into();
    Ok(Node { heartbeat, subject, before: Bytes::new(), after: Bytes::new() })
}

impl Sender {
    /// One heartbeat of each node, with the newest position that was answered, and whether all may lead.
    async fn round(&mut self) -> anyhow::Result<(Position, bool)> {
        const AT_ONCE: usize = 256;
        let (client, head, mut active) = (&self.client, Cell::new(self.head), true);
        // Each has the newest version when its turn comes, as a node that applies what is pushed has.
        let asking = self.nodes.iter_mut().map(|node| {
            node.heartbeat.position = head.get();
            let (subject, payload) = (node.subject.clone(), node.refresh().map(|()| node.next()));
            async move { anyhow::Ok(raw::request_with_deadline(client, &subject, None, payload?, PATIENCE).await?) }
        });
        let mut answers = futures::stream::iter(asking).buffer_unordered(AT_ONCE);
        while let Some(answer) = answers.next().await {
            let answer = HeartbeatAnswer::decode(&answer?.payload)?;
            anyhow::ensure!(answer.error.is_none(), "a heartbeat was refused: {:?}", answer.error);
            active &= answer.state == NodeState::Active && answer.lease_ms > 0;
            if answer.position.version > head.get().version {
                head.set(answer.position);
            }
        }
        let head = head.get();
        drop(answers);
        self.head = head;
        Ok((head, active))
    }

    /// Counts what comes to the inbox, until it is dropped.
    async fn count(&self) -> anyhow::Result<tokio::task::JoinHandle<()>> {
        let mut answers = self.client.subscribe(self.inbox.clone()).await?;
        let answered = self.answered.clone();
        Ok(tokio::spawn(async move {
            while let Some(message) = answers.next().await {
                if message.status.is_none() {
                    answered.fetch_add(1, Relaxed);
                }
            }
        }))
    }

    async fn send(&mut self, index: usize, prefix: Option<&str>) -> anyhow::Result<()> {
        let node = &mut self.nodes[index];
        let subject = match prefix {
            Some(prefix) => Subject::from(prefix),
            None => node.subject.clone(),
        };
        let payload = node.next();
        Ok(self.client.publish_with_reply(subject, self.inbox.clone(), payload).await?)
    }

    async fn closed(mut self, most: u64, until: Instant, prefix: Option<String>) -> anyhow::Result<Self> {
        let counting = self.count().await?;
        let before = self.answered.load(Relaxed);
        let (mut sent, mut index) = (0, 0);
        let mut last_answer = (before, Instant::now());
        while Instant::now() < until {
            let answered = self.answered.load(Relaxed);
            if answered != last_answer.0 {
                last_answer = (answered, Instant::now());
            }
            anyhow::ensure!(last_answer.1.elapsed() < PATIENCE, "heartbeats are no longer answered");
            let free = most.saturating_sub((before + sent).saturating_sub(answered));
            for _ in 0..free {
                self.send(index, prefix.as_deref()).await?;
                index = (index + 1) % self.nodes.len();
            }
            sent += free;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // What is still on its way would be counted with what is sent next.
        let rest = async {
            while self.answered.load(Relaxed) < before + sent {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), rest).await;
        counting.abort();
        Ok(self)
    }

    async fn paced(mut self, rate: u32, until: Instant, prefix: Option<String>) -> anyhow::Result<Self> {
        const TICK: Duration = Duration::from_millis(10);
        let counting = self.count().await?;
        let began = Instant::now();
        let (mut sent, mut index) = (0, 0);
        let mut ticks = tokio::time::interval(TICK);
        while Instant::now() < until {
            ticks.tick().await;
            let due = (began.elapsed().as_secs_f64() * f64::from(rate)) as u64;
            for _ in sent..due {
                self.send(index, prefix.as_deref()).await?;
                index = (index + 1) % self.nodes.len();
            }
            sent = due;
        }
        counting.abort();
        Ok(self)
    }
}
