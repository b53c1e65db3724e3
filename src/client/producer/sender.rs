//! The task that sends a producer's batches and hears their answers. It decides nothing: `lane` does.
//!
//! A batch's answer comes on a subject that names the batch and the copy, so nothing has to be remembered about what was sent.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{HeaderMap, Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;

use super::accumulator::{Accumulator, Batch, Body, Key};
use super::config::{ProduceError, ProducerConfig};
use super::lane::{Dispatch, End, Verdict};
use super::{AdminError, DataError, Shared};
use crate::bus::{BusError, raw};
use crate::client::leaders;
use crate::log::batch::{Compression, PackedBatch, restamp};
use crate::types::{LeaderEpoch, TopicName};
use crate::wire::Code;
use crate::wire::admin::TopicDescription;
use crate::wire::data::{Acks, PartitionOffsets, Produced};

/// How many answers are taken before anything is sent again.
const ANSWERS: usize = 256;
/// How long the connection may take to take a message.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(1);
/// The last token of the subject on which a leader says where it stands.
const LEADER: &str = "leader";
/// Between two attempts to subscribe, and between two look-ups of a topic.
const RETRY: Duration = Duration::from_millis(500);
/// How many compressed batches and descriptions may wait here.
const WAITING: usize = 1024;

/// A copy of a batch that is to be sent.
struct Outgoing {
    key: Key,
    dispatch: Dispatch,
    subject: Subject,
    headers: HeaderMap,
    body: Body,
}

type Packed = (Key, u64, io::Result<PackedBatch>);
type Described = (TopicName, Result<TopicDescription, AdminError>);
type Ended = Vec<(Batch, End)>;

struct Sender {
    shared: Arc<Shared>,
    inbox: String,
    answers: Subscriber,
    packed: (mpsc::Sender<Packed>, mpsc::Receiver<Packed>),
    described: (mpsc::Sender<Described>, mpsc::Receiver<Described>),
    /// When a partition has to be looked at.
    due: BTreeSet<(Instant, Key)>,
    /// When a topic was last looked up, and whether that is under way.
    looked_up: BTreeMap<usize, Instant>,
    look_at_topics: Instant,
}

pub(super) async fn run(shared: Arc<Shared>) {
    let inbox = shared.client.new_inbox();
    let answers = loop {
        match shared.client.subscribe(format!("{inbox}.>")).await {
            Ok(answers) => break answers,
            Err(error) => {
                tracing::warn!(%error, "a producer cannot subscribe yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    let sender = Sender {
        shared,
        inbox,
        answers,
        packed: mpsc::channel(WAITING),
        described: mpsc::channel(WAITING),
        due: BTreeSet::new(),
        looked_up: BTreeMap::new(),
        look_at_topics: Instant::now(),
    };
    sender.run().await;
}

impl Sender {
    async fn run(mut self) {
        loop {
            let (outgoing, questions) = self.look();
            let sent_any = !(outgoing.is_empty() && questions.is_empty());
            self.send(outgoing).await;
            self.ask(questions).await;
            if sent_any {
                // What was put back may be due already.
                continue;
            }
            let due = self.due.first().map_or(self.look_at_topics, |(at, _)| (*at).min(self.look_at_topics));
            let shared = Arc::clone(&self.shared);
            tokio::select! {
                biased;
                Some(message) = self.answers.next() => {
                    let mut messages = vec![message];
                    while messages.len() < ANSWERS
                        && let Some(Some(message)) = self.answers.next().now_or_never()
                    {
                        messages.push(message);
                    }
                    self.hear(&messages);
                }
                Some((key, number, packed)) = self.packed.1.recv() => self.put_packed(key, number, packed),
                Some((name, described)) = self.described.1.recv() => self.put_described(&name, described),
                () = shared.wake.notified() => {}
                () = tokio::time::sleep_until(due.into()) => {}
            }
        }
    }

    /// Looks at every partition in which something may have changed, and takes out what is to be sent.
    fn look(&mut self) -> (Vec<Outgoing>, Vec<(Key, Subject)>) {
        let now = Instant::now();
        let shared = Arc::clone(&self.shared);
        let (mut outgoing, mut questions, mut ended) = (Vec::new(), Vec::new(), Vec::new());
        {
            let mut state = shared.state();
            let mut keys = std::mem::take(&mut state.dirty);
            while let Some((at, key)) = self.due.first().copied()
                && at <= now
            {
                self.due.pop_first();
                if let Some(partition) = state.partition(key) {
                    partition.due = None;
                }
                keys.insert(key);
            }
            for key in keys {
                self.visit(&mut state, key, now, &mut outgoing, &mut ended);
                if let Some(partition) = state.partition(key)
                    && partition.lane.doubts(now)
                {
                    questions.push((key, partition.question.clone()));
                    // Its deadline is another one now.
                    state.dirty.insert(key);
                }
            }
            while let Some(key) = state.take_held() {
                self.visit(&mut state, key, now, &mut outgoing, &mut ended);
            }
            if self.look_at_topics <= now {
                self.look_at_topics = now + RETRY;
                self.look_up_stale(&mut state, now);
            }
        }
        settle(&shared.config, ended);
        (outgoing, questions)
    }

    fn visit(
        &mut self,
        state: &mut Accumulator,
        key: Key,
        now: Instant,
        outgoing: &mut Vec<Outgoing>,
        ended: &mut Ended,
    ) {
        state.close_due(key, now);
        let Some(topic) = state.topics.get_mut(key.0) else { return };
        let headers = &topic.headers;
        let Some(partition) = topic.partitions.get_mut(key.1 as usize) else { return };
        while let Some(number) = partition.unpacked.pop_front() {
            let Some(batch) = partition.lane.batch_mut(number) else { continue };
            let Body::Records(builder) = std::mem::replace(&mut batch.body, Body::Away) else { continue };
            if self.shared.config.compression != Compression::None {
                let packed = self.packed.0.clone();
                tokio::task::spawn_blocking(move || packed.blocking_send((key, number, builder.pack())));
                continue;
            }
            match builder.pack() {
                Ok(packed) => {
                    batch.body = Body::Packed(packed);
                    partition.lane.packed(number);
                }
                Err(error) => tracing::error!(%error, "a batch cannot be built"),
            }
        }
        partition.lane.tick(now, ended);
        while let Some(dispatch) = partition.lane.dispatch(now, || rand::random::<i64>() & i64::MAX) {
            let Some(batch) = partition.lane.batch_mut(dispatch.number) else { break };
            let body = std::mem::replace(&mut batch.body, Body::Away);
            let (subject, headers) = (partition.subject.clone(), headers.clone());
            outgoing.push(Outgoing { key, dispatch, subject, headers, body });
        }
        let due = [partition.lane.next_deadline(), partition.open_due(now)].into_iter().flatten().min();
        if partition.due != due {
            if let Some(at) = partition.due {
                self.due.remove(&(at, key));
            }
            self.due.extend(due.map(|at| (at, key)));
            partition.due = due;
        }
        state.count(key);
    }

    /// Publishes in order, and puts the batches back, to be sent again where that is needed.
    async fn send(&mut self, outgoing: Vec<Outgoing>) {
        if outgoing.is_empty() {
            return;
        }
        let mut sent = Vec::with_capacity(outgoing.len());
        for Outgoing { key, dispatch, subject, headers, body } in outgoing {
            let bytes = match body {
                Body::Packed(packed) => Some(packed.seal(dispatch.stamp)),
                Body::Sealed { bytes, stamp } if stamp == dispatch.stamp => Some(bytes),
                Body::Sealed { bytes, .. } => restamp(bytes, dispatch.stamp).ok(),
                Body::Records(_) | Body::Away => None,
            };
            let result = match &bytes {
                Some(bytes) => self.publish(key, dispatch, &subject, headers, bytes.clone()).await,
                // It cannot be: a lane sends what is packed.
                None => Err(BusError::Input("a batch without bytes".into())),
            };
            sent.push((key, dispatch, bytes, result));
        }
        let now = Instant::now();
        let (shared, mut ended) = (Arc::clone(&self.shared), Vec::new());
        {
            let mut state = shared.state();
            for (key, dispatch, bytes, result) in sent {
                let Some(partition) = state.partition(key) else { continue };
                let Some(batch) = partition.lane.batch_mut(dispatch.number) else { continue };
                batch.body = bytes.map_or(Body::Away, |bytes| Body::Sealed { bytes, stamp: dispatch.stamp });
                let verdict = match result {
                    Ok(()) if shared.config.acks == Acks::None => Verdict::Stored,
                    Ok(()) => continue,
                    Err(error) => {
                        let verdict = match &error {
                            BusError::Disconnected => Verdict::NotStored,
                            BusError::Timeout => Verdict::Unknown,
                            BusError::TooLarge { .. } => Verdict::TooLarge,
                            _ => Verdict::Refused,
                        };
                        let after = shared.config.request_timeout;
                        batch.last = Some(DataError::of_bus(error, "the partition's subject", after));
                        verdict
                    }
                };
                let (number, copy) = (dispatch.number, dispatch.copy);
                partition.lane.answered(now, number, copy, verdict, jitter(), &mut ended);
                partition.split_if_too_large(number, shared.config.compression, shared.config.buffer_memory);
                state.dirty.insert(key);
            }
        }
        settle(&shared.config, ended);
    }

    /// Asks leaders that did not answer where they stand: nobody, or another one, is an answer as well.
    async fn ask(&self, questions: Vec<(Key, Subject)>) {
        for (key, subject) in questions {
            let reply = format!("{}.{}.{}.{LEADER}", self.inbox, key.0, key.1);
            let (headers, nothing) = (HeaderMap::new(), Bytes::new());
            let client = &self.shared.client;
            let asked = raw::publish_with_reply(client, &subject, &reply, headers, nothing, PUBLISH_TIMEOUT).await;
            if let Err(error) = asked {
                tracing::debug!(%subject, %error, "a leader was not asked");
            }
        }
    }

    /// What came of a question.
    fn hear_of_leader(&self, message: &Message, now: Instant) -> Option<()> {
        let mut tokens = message.subject.strip_prefix(self.inbox.as_str())?.strip_prefix('.')?.split('.');
        let key = (tokens.next()?.parse().ok()?, tokens.next()?.parse().ok()?);
        let is_nobody = message.status == Some(StatusCode::NO_RESPONDERS);
        let stands = if is_nobody { None } else { leaders::json::<PartitionOffsets>(message, &message.subject).ok() };
        let mut state = self.shared.state();
        let partition = state.partition(key)?;
        match stands {
            Some(stands) => partition.heard_of(stands.leader_epoch, now),
            None if is_nobody => partition.lane.leaderless(now, jitter()),
            // A new leader that does not know yet what is committed: it may be asked again.
            None => {}
        }
        state.dirty.insert(key);
        Some(())
    }

    async fn publish(
        &self,
        key: Key,
        dispatch: Dispatch,
        subject: &Subject,
        headers: HeaderMap,
        bytes: Bytes,
    ) -> Result<(), BusError> {
        let client = &self.shared.client;
        if self.shared.config.acks == Acks::None {
            return raw::publish(client, subject, headers, bytes, PUBLISH_TIMEOUT).await;
        }
        let reply = format!("{}.{}.{}.{}.{}", self.inbox, key.0, key.1, dispatch.number, dispatch.copy);
        raw::publish_with_reply(client, subject, &reply, headers, bytes, PUBLISH_TIMEOUT).await
    }

    fn hear(&mut self, messages: &[Message]) {
        let now = Instant::now();
        let (shared, mut ended) = (Arc::clone(&self.shared), Vec::new());
        let (of_leaders, of_batches): (Vec<_>, Vec<_>) =
            messages.iter().partition(|message| message.subject.ends_with(LEADER));
        for message in of_leaders {
            let _ = self.hear_of_leader(message, now);
        }
        let read: Vec<_> = of_batches.into_iter().filter_map(|message| self.read(message)).collect();
        {
            let mut state = shared.state();
            for (key, number, copy, answer) in read {
                let Some(topic) = state.topics.get_mut(key.0) else { continue };
                let Some(partition) = topic.partitions.get_mut(key.1 as usize) else { continue };
                let Some(batch) = partition.lane.batch_mut(number) else { continue };
                let mut leader_epoch = LeaderEpoch::default();
                let verdict = match answer {
                    Ok(produced) => {
                        batch.base = Some(produced.offset);
                        leader_epoch = produced.leader_epoch;
                        Verdict::Stored
                    }
                    Err(error) => {
                        let verdict = verdict(&error);
                        topic.is_stale |= is_of_the_topic(&error);
                        batch.last = Some(error);
                        verdict
                    }
                };
                partition.lane.answered(now, number, copy, verdict, jitter(), &mut ended);
                partition.heard_of(leader_epoch, now);
                partition.split_if_too_large(number, shared.config.compression, shared.config.buffer_memory);
                state.dirty.insert(key);
            }
        }
        settle(&shared.config, ended);
    }

    /// Whose answer it is, and what it says. None where it is nobody's.
    fn read(&self, message: &Message) -> Option<(Key, u64, u64, Result<Produced, DataError>)> {
        let mut tokens = message.subject.strip_prefix(self.inbox.as_str())?.strip_prefix('.')?.split('.');
        let key = (tokens.next()?.parse().ok()?, tokens.next()?.parse().ok()?);
        let (number, copy) = (tokens.next()?.parse().ok()?, tokens.next()?.parse().ok()?);
        let answer = match message.status {
            Some(StatusCode::NO_RESPONDERS) => {
                let subject = "the partition's subject".to_owned();
                Err(DataError::NoLeader { subject })
            }
            _ => leaders::json(message, &message.subject),
        };
        Some((key, number, copy, answer))
    }

    fn put_packed(&mut self, key: Key, number: u64, packed: io::Result<PackedBatch>) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state();
        let Some(partition) = state.partition(key) else { return };
        let Some(batch) = partition.lane.batch_mut(number) else { return };
        match packed {
            Ok(packed) => {
                batch.body = Body::Packed(packed);
                partition.lane.packed(number);
                state.dirty.insert(key);
            }
            // It expires.
            Err(error) => tracing::error!(%error, "a batch cannot be compressed"),
        }
    }

    /// Looks topics up again whose leaders said that they are gone, or that nobody asked about for long.
    fn look_up_stale(&mut self, state: &mut Accumulator, now: Instant) {
        for (place, topic) in state.topics.iter().enumerate() {
            let is_old = now.saturating_duration_since(topic.described) >= self.shared.config.metadata_max_age;
            let is_forgotten = state.topic(&topic.name) != Some(place);
            let asked = self.looked_up.get(&place).is_some_and(|at| now.saturating_duration_since(*at) < RETRY);
            if !(topic.is_stale || is_old) || is_forgotten || asked {
                continue;
            }
            self.looked_up.insert(place, now);
            let (admin, name, described) = (self.shared.admin.clone(), topic.name.clone(), self.described.0.clone());
            tokio::spawn(async move {
                let answer = admin.describe_topic(name.as_str()).await;
                // Whoever asked may be gone.
                let _ = described.send((name, answer)).await;
            });
        }
    }

    fn put_described(&mut self, name: &TopicName, described: Result<TopicDescription, AdminError>) {
        let shared = Arc::clone(&self.shared);
        let place = shared.state().topic(name);
        let Some(place) = place else { return };
        let is_other = |described: &TopicDescription| described.topic_id != shared.state().topics[place].id;
        let gone = match described {
            Ok(described) if is_other(&described) => {
                let code = Code::UnknownTopicId;
                let words = format!("topic {name} was deleted and made anew");
                AdminError::Refused(crate::wire::WireError::new(code, words))
            }
            Ok(described) => return shared.describe(name, &described),
            Err(error) if error.code() == Some(Code::UnknownTopicOrPartition) => error,
            Err(error) => {
                tracing::debug!(%error, topic = %name, "a topic could not be looked up");
                return;
            }
        };
        // Its records are nobody's any more. Whoever sends to it again looks it up anew.
        let (mut ended, mut emptied) = (Vec::new(), Vec::new());
        {
            let mut state = shared.state();
            state.forget(place);
            for (number, partition) in (0..).zip(&mut state.topics[place].partitions) {
                partition.close_all();
                partition.lane.drain(&mut ended);
                emptied.push((place, number));
            }
            state.dirty.extend(emptied);
        }
        for (batch, _) in ended {
            batch.settle.settle(Err(ProduceError::Topic { topic: name.clone(), error: gone.clone() }));
        }
    }
}

fn jitter() -> f64 {
    rand::random_range(0.5..=1.0)
}

/// What an error says of a copy.
fn verdict(error: &DataError) -> Verdict {
    match error {
        DataError::Refused(refusal) => match refusal.code {
            Code::OutOfOrderSequenceNumber => Verdict::OutOfOrder,
            Code::MessageTooLarge => Verdict::TooLarge,
            Code::NotLeaderOrFollower
            | Code::FencedLeaderEpoch
            | Code::UnknownLeaderEpoch
            | Code::NotEnoughReplicas
            | Code::UnknownTopicOrPartition
            | Code::UnknownTopicId
            | Code::Busy => Verdict::NotStored,
            Code::RequestTimedOut | Code::NotEnoughReplicasAfterAppend | Code::KafkaStorageError | Code::Unknown => {
                Verdict::Unknown
            }
            _ => Verdict::Refused,
        },
        DataError::NoLeader { .. } | DataError::Disconnected => Verdict::NotStored,
        DataError::NoAnswer { .. } | DataError::Unreadable { .. } => Verdict::Unknown,
        DataError::RefusedOtherwise { .. } | DataError::Bus(_) => Verdict::Refused,
    }
}

/// Whether the topic may be gone, or another one, or of another configuration.
fn is_of_the_topic(error: &DataError) -> bool {
    match error {
        DataError::Refused(refusal) => {
            let is_looked_up = [Code::UnknownTopicOrPartition, Code::UnknownTopicId, Code::MessageTooLarge];
            is_looked_up.contains(&refusal.code)
        }
        DataError::NoLeader { .. } => true,
        DataError::RefusedOtherwise { .. }
        | DataError::Disconnected
        | DataError::NoAnswer { .. }
        | DataError::Unreadable { .. }
        | DataError::Bus(_) => false,
    }
}

fn settle(config: &ProducerConfig, ended: Ended) {
    for (batch, end) in ended {
        let (topic, partition) = (batch.settle.topic().clone(), batch.settle.partition());
        let (last, after) = (batch.last.clone(), config.delivery_timeout);
        let settled = match end {
            End::Stored => Ok(batch.base),
            End::Refused => {
                let none = || DataError::Bus(BusError::Input("the batch could not be sent".into()));
                Err(ProduceError::Refused { topic, partition, error: last.unwrap_or_else(none) })
            }
            End::Expired { open: false } => Err(ProduceError::NotInTime { topic, partition, after, last }),
            End::Expired { open: true } => Err(ProduceError::Unknown { topic, partition, after, last }),
        };
        batch.settle.settle(settled);
    }
}
