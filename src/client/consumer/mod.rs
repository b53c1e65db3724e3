//! A consumer of records: assigned partitions are fetched ahead, each by a task of its own, and read as one stream.
//!
//! Each partition's next fetch goes out as soon as the last one is answered, not when it has been read; how many bytes may wait is
//! bounded for all of them together. Positions follow what was read, not what was fetched.

mod chunk;
mod config;
mod fetcher;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod news;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_nats::Client;
use futures::{Stream, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;

use crate::client::{Admin, Leaders};
use crate::config::Services;
use crate::log::TopicPartition;
use crate::types::{LeaderEpoch, Offset, TopicId, TopicName};
use crate::wire::data::{CommitOffset, MAX_ANSWERS};
use chunk::Chunk;
use fetcher::{Before, Event, Fetched, Fetcher, Report, Shared};

pub use config::{AutoOffsetReset, ConsumeError, ConsumerConfig, ConsumerRecord, SeekTo};

/// The least that one fetch asks for.
const LEAST_FETCH_BYTES: usize = 64 << 10;
/// How many answers may wait to be read.
const REPORTS: usize = 256;

/// A consumer of records (Kafka's `KafkaConsumer`, with partitions assigned by hand): a stream of records that never ends, unless
/// every partition has an end ([`Consumer::stop_at`]).
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/example.rs"));
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (_cluster, client) = Example::start().await;
/// # let admin = dmq::client::Admin::new(client.clone(), "dmq.admin");
/// # admin.create_topic(serde_json::from_str(r#"{"name": "orders"}"#)?).await?;
/// # use dmq::client::{Producer, ProducerConfig, ProducerRecord};
/// # let producer = Producer::new(client.clone(), Services::default(), ProducerConfig::default()).await?;
/// # for number in 0..3 {
/// #     producer.send(ProducerRecord::new(TopicName::new("orders")?, format!("order {number}"))).await?;
/// # }
/// # producer.close().await;
/// # let mut read = 0;
/// use dmq::client::{AutoOffsetReset, Consumer, ConsumerConfig};
/// use dmq::config::Services;
/// use dmq::types::TopicName;
/// use futures::StreamExt;
///
/// let config = ConsumerConfig {
///     group: Some("billing".into()),
///     auto_offset_reset: AutoOffsetReset::Earliest,
///     ..ConsumerConfig::default()
/// };
/// let mut consumer = Consumer::new(client, Services::default(), config);
/// let orders = TopicName::new("orders")?;
/// let partitions = consumer.partitions(&orders).await?;
/// consumer.assign(partitions).await?;
/// while let Some(record) = consumer.next().await {
///     let record = record?;
///     println!("{}-{} at {}: {:?}", record.topic, record.partition, record.offset, record.value);
///     consumer.commit().await?;
/// #   read += 1;
/// #   if read == 3 { break }
/// }
/// # assert_eq!(consumer.committed().await?.into_values().map(|offset| offset.0).collect::<Vec<_>>(), [3]);
/// # Ok(())
/// # }
/// ```
pub struct Consumer {
    shared: Arc<Shared>,
    assigned: BTreeMap<TopicPartition, Assigned>,
    generations: u64,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    current: Option<Current>,
}

struct Assigned {
    name: Arc<TopicPartition>,
    generation: u64,
    /// The next offset to read; None until the leader has said where that is.
    position: Option<Offset>,
    /// The leader has said that its log has this offset, or where else to begin.
    is_confirmed: bool,
    /// Of the last record that was read.
    last_epoch: Option<LeaderEpoch>,
    topic_id: Option<TopicId>,
    high_watermark: Option<Offset>,
    stop_at: Option<Offset>,
    committed: Option<Offset>,
    fetcher: AbortHandle,
}

impl Drop for Assigned {
    fn drop(&mut self) {
        self.fetcher.abort();
    }
}

impl Assigned {
    fn is_done(&self) -> bool {
        self.is_confirmed && self.stop_at.is_some_and(|end| self.position.is_some_and(|position| position >= end))
    }
}

/// What is being read.
struct Current {
    partition: Arc<TopicPartition>,
    generation: u64,
    chunk: Chunk,
    next_offset: Offset,
    _permit: OwnedSemaphorePermit,
}

impl Consumer {
    /// A consumer over this connection, to which nothing is assigned yet.
    pub fn new(client: Client, services: Services, config: ConsumerConfig) -> Self {
        let leaders = Leaders::new(client.clone(), services.clone());
        let admin = Admin::new(client.clone(), services.admin_prefix());
        // Neither takes longer than an answer is waited for at all.
        let (leaders, admin) = (leaders.at_most(config.api_timeout), admin.at_most(config.api_timeout));
        let budget =
            Arc::new(Semaphore::new(config.max_prefetch_bytes.clamp(LEAST_FETCH_BYTES, Semaphore::MAX_PERMITS)));
        let shared = Arc::new(Shared { client, services, config, leaders, admin, budget });
        Self { shared, assigned: BTreeMap::new(), generations: 0, reports: mpsc::channel(REPORTS), current: None }
    }

    /// All partitions that a topic has now.
    ///
    /// # Errors
    /// [`ConsumeError::Topic`].
    pub async fn partitions(&self, topic: &TopicName) -> Result<Vec<TopicPartition>, ConsumeError> {
        let of = |partition| TopicPartition { topic: topic.clone(), partition };
        let described = self.shared.admin.describe_topic(topic.as_str()).await;
        let described = described.map_err(|error| ConsumeError::Topic { topic: topic.clone(), error })?;
        Ok(described.partitions.iter().map(|partition| of(partition.partition)).collect())
    }

    /// Reads these partitions and no others. Each begins where the group has committed, else where `auto_offset_reset` says.
    ///
    /// # Errors
    /// [`ConsumeError::Group`] where what was committed cannot be read, [`ConsumeError::NoOffset`] where nothing was and there is
    /// no `auto_offset_reset`. Nothing has changed then.
    pub async fn assign(&mut self, partitions: impl IntoIterator<Item = TopicPartition>) -> Result<(), ConsumeError> {
        let partitions: BTreeSet<_> = partitions.into_iter().collect();
        let committed = match &self.shared.config.group {
            Some(_) => {
                let mut committed = BTreeMap::new();
                for topic in partitions.iter().map(|partition| &partition.topic).collect::<BTreeSet<_>>() {
                    committed.extend(self.committed_of(Some(topic)).await?);
                }
                committed
            }
            None => BTreeMap::new(),
        };
        let start = |partition: TopicPartition| {
            let start = match (committed.get(&partition), self.shared.config.auto_offset_reset) {
                (Some((offset, _)), _) => SeekTo::Offset(*offset),
                (None, AutoOffsetReset::Earliest) => SeekTo::Beginning,
                (None, AutoOffsetReset::Latest) => SeekTo::End,
                (None, AutoOffsetReset::Error) => return Err(ConsumeError::NoOffset(partition)),
            };
            Ok((partition, start))
        };
        let starts = partitions.into_iter().map(start).collect::<Result<BTreeMap<_, _>, _>>()?;
        let before = |partition: &TopicPartition| committed.get(partition).map(|(_, before)| *before);
        self.assign_anew(starts, |partition| before(partition).unwrap_or_default());
        for (partition, assigned) in &mut self.assigned {
            assigned.committed = committed.get(partition).map(|(offset, _)| *offset);
        }
        Ok(())
    }

    /// Reads these partitions and no others, each from there on, whatever the group has committed.
    pub fn assign_from(&mut self, starts: impl IntoIterator<Item = (TopicPartition, SeekTo)>) {
        self.assign_anew(starts.into_iter().collect(), |_| Before::default());
    }

    /// Reads this partition too, from there on, or goes on reading it there.
    pub fn add(&mut self, partition: TopicPartition, start: SeekTo) {
        let count = self.assigned.len() + 1;
        let assigned = self.start(Arc::new(partition.clone()), start, Before::default(), count);
        self.assigned.insert(partition, assigned);
    }

    fn assign_anew(&mut self, starts: BTreeMap<TopicPartition, SeekTo>, before: impl Fn(&TopicPartition) -> Before) {
        self.assigned.clear();
        self.current = None;
        let count = starts.len().max(1);
        for (partition, start) in starts {
            let assigned = self.start(Arc::new(partition.clone()), start, before(&partition), count);
            self.assigned.insert(partition, assigned);
        }
    }

    fn start(&mut self, name: Arc<TopicPartition>, start: SeekTo, before: Before, count: usize) -> Assigned {
        self.generations += 1;
        let config = &self.shared.config;
        let budget = config.max_prefetch_bytes.clamp(LEAST_FETCH_BYTES, Semaphore::MAX_PERMITS);
        let most = (config.max_partition_fetch_bytes as usize).max(LEAST_FETCH_BYTES).min(budget);
        // A partition's share is never more than what the others leave for it: who is not answered keeps nobody waiting.
        let bytes = (budget / count).clamp(LEAST_FETCH_BYTES, most);
        let answers = (budget / count / bytes).clamp(1, MAX_ANSWERS as usize);
        let fetcher = Fetcher {
            shared: Arc::clone(&self.shared),
            partition: Arc::clone(&name),
            generation: self.generations,
            reports: self.reports.0.clone(),
            bytes: bytes as u32,
            answers,
        };
        let fetcher = tokio::spawn(fetcher.run(start, before)).abort_handle();
        let generation = self.generations;
        let position = match start {
            SeekTo::Offset(offset) => Some(offset),
            SeekTo::Beginning | SeekTo::End | SeekTo::Timestamp(_) => None,
        };
        Assigned {
            name,
            generation,
            position,
            is_confirmed: false,
            last_epoch: before.epoch,
            topic_id: None,
            high_watermark: None,
            stop_at: None,
            committed: None,
            fetcher,
        }
    }

    /// Goes on reading a partition elsewhere.
    ///
    /// # Errors
    /// [`ConsumeError::NotAssigned`].
    pub fn seek(&mut self, partition: &TopicPartition, to: SeekTo) -> Result<(), ConsumeError> {
        let count = self.assigned.len();
        let not_assigned = || ConsumeError::NotAssigned(partition.clone());
        let assigned = self.assigned.get(partition).ok_or_else(not_assigned)?;
        let (name, stop_at, committed) = (Arc::clone(&assigned.name), assigned.stop_at, assigned.committed);
        let mut assigned = self.start(name, to, Before::default(), count);
        (assigned.stop_at, assigned.committed) = (stop_at, committed);
        self.assigned.insert(partition.clone(), assigned);
        Ok(())
    }

    /// Reads a partition up to an offset, and no record from there on. Once every partition has come to such an end, so has the
    /// stream.
    ///
    /// # Errors
    /// [`ConsumeError::NotAssigned`].
    pub fn stop_at(&mut self, partition: &TopicPartition, end: Offset) -> Result<(), ConsumeError> {
        let not_assigned = || ConsumeError::NotAssigned(partition.clone());
        let assigned = self.assigned.get_mut(partition).ok_or_else(not_assigned)?;
        assigned.stop_at = Some(end);
        if assigned.is_done() {
            assigned.finish();
        }
        Ok(())
    }

    /// Whether the partition is read.
    pub fn is_assigned(&self, partition: &TopicPartition) -> bool {
        self.assigned.contains_key(partition)
    }

    /// The next offset that will be read; None where the partition is not assigned, or its leader has not said yet.
    pub fn position(&self, partition: &TopicPartition) -> Option<Offset> {
        self.assigned.get(partition)?.position
    }

    /// The offset behind the last record that could be read when the partition was last fetched.
    pub fn high_watermark(&self, partition: &TopicPartition) -> Option<Offset> {
        self.assigned.get(partition)?.high_watermark
    }

    /// Commits for the group how far each partition was read: the offset behind the last record that the stream gave.
    ///
    /// # Errors
    /// [`ConsumeError::NoGroup`] or [`ConsumeError::Group`].
    pub async fn commit(&mut self) -> Result<(), ConsumeError> {
        let offsets: Vec<_> = self
            .assigned
            .iter()
            .filter(|(_, assigned)| assigned.is_confirmed && assigned.position != assigned.committed)
            .map(|(partition, assigned)| CommitOffset {
                topic: partition.topic.to_string(),
                partition: partition.partition,
                offset: assigned.position,
                leader_epoch: assigned.last_epoch,
                topic_id: assigned.topic_id,
                metadata: None,
            })
            .collect();
        if self.shared.config.group.is_some() && offsets.is_empty() {
            return Ok(());
        }
        self.commit_offsets(offsets.clone()).await?;
        for offset in offsets {
            let key = self
                .assigned
                .keys()
                .find(|key| key.partition == offset.partition && key.topic.as_str() == offset.topic);
            if let Some(assigned) = key.cloned().and_then(|key| self.assigned.get_mut(&key)) {
                assigned.committed = offset.offset;
            }
        }
        Ok(())
    }

    /// Commits these offsets for the group, all or none.
    ///
    /// # Errors
    /// [`ConsumeError::NoGroup`] or [`ConsumeError::Group`].
    pub async fn commit_offsets(&self, offsets: Vec<CommitOffset>) -> Result<(), ConsumeError> {
        let group = self.shared.config.group.as_ref().ok_or(ConsumeError::NoGroup)?;
        let committed = self.shared.leaders.commit(group, offsets).await;
        committed.map(drop).map_err(|error| ConsumeError::Group { group: group.clone(), error })
    }

    /// What the group has committed, of all topics.
    ///
    /// # Errors
    /// [`ConsumeError::NoGroup`] or [`ConsumeError::Group`].
    pub async fn committed(&self) -> Result<BTreeMap<TopicPartition, Offset>, ConsumeError> {
        let committed = self.committed_of(None).await?;
        Ok(committed.into_iter().map(|(partition, (offset, _))| (partition, offset)).collect())
    }

    async fn committed_of(
        &self,
        topic: Option<&TopicName>,
    ) -> Result<BTreeMap<TopicPartition, (Offset, Before)>, ConsumeError> {
        let group = self.shared.config.group.as_ref().ok_or(ConsumeError::NoGroup)?;
        let committed = self.shared.leaders.committed(group, topic).await;
        let committed = committed.map_err(|error| ConsumeError::Group { group: group.clone(), error })?;
        let named = |offset: CommitOffset| {
            let topic = TopicName::new(&offset.topic).ok()?;
            let before = Before { epoch: offset.leader_epoch, topic_id: offset.topic_id };
            Some((TopicPartition { topic, partition: offset.partition }, (offset.offset?, before)))
        };
        Ok(committed.offsets.into_iter().filter_map(named).collect())
    }

    /// The next record; None where every partition has come to its end ([`Consumer::stop_at`]). It may be dropped while it waits
    /// and loses nothing.
    pub async fn recv(&mut self) -> Option<Result<ConsumerRecord, ConsumeError>> {
        self.next().await
    }

    /// The next record of what was fetched already.
    fn read(&mut self) -> Option<Result<ConsumerRecord, ConsumeError>> {
        let current = self.current.as_mut()?;
        let live = self.assigned.get_mut(&*current.partition);
        let Some(assigned) = live.filter(|assigned| assigned.generation == current.generation) else {
            self.current = None;
            return None;
        };
        match current.chunk.next() {
            Some(Ok((record, _))) if assigned.stop_at.is_some_and(|end| record.offset >= end) => {
                assigned.position = assigned.stop_at;
                assigned.finish();
                self.current = None;
                None
            }
            Some(Ok((record, epoch))) => {
                assigned.position = Some(Offset(record.offset.0 + 1));
                assigned.last_epoch = epoch.or(assigned.last_epoch);
                Some(Ok(ConsumerRecord {
                    topic: current.partition.topic.clone(),
                    partition: current.partition.partition,
                    offset: record.offset,
                    timestamp: record.timestamp,
                    key: record.key,
                    value: record.value,
                    headers: record.headers,
                    leader_epoch: epoch,
                }))
            }
            Some(Err(error)) => {
                let offset = assigned.position.unwrap_or_default();
                let (partition, detail) = ((*current.partition).clone(), error.to_string());
                // Nobody reads on behind it, unless told to.
                assigned.finish();
                self.current = None;
                Some(Err(ConsumeError::Corrupt { partition, offset, detail }))
            }
            None => {
                // Offsets may be missing at the end: compaction took them.
                let end = assigned.stop_at.map_or(current.next_offset, |end| end.min(current.next_offset));
                assigned.position = assigned.position.max(Some(end));
                if assigned.is_done() {
                    assigned.finish();
                }
                self.current = None;
                None
            }
        }
    }

    fn hear(&mut self, report: Report) -> Option<Result<ConsumerRecord, ConsumeError>> {
        let Report { partition, generation, event } = report;
        let assigned = self.assigned.get_mut(&*partition).filter(|assigned| assigned.generation == generation)?;
        match event {
            Event::Begins { offset, topic_id } => {
                (assigned.position, assigned.topic_id) = (Some(offset), Some(topic_id));
                assigned.is_confirmed = true;
                if assigned.is_done() {
                    assigned.finish();
                }
                None
            }
            Event::Fetched(Fetched { batches, from, head, permit }) => {
                assigned.high_watermark = Some(head.high_watermark);
                let chunk = Chunk::new(batches, from, self.shared.config.max_decompressed_bytes);
                let next_offset = head.next_offset.max(from);
                self.current = Some(Current { partition, generation, chunk, next_offset, _permit: permit });
                None
            }
            Event::Failed(error) => Some(Err(error)),
        }
    }
}

impl Assigned {
    /// Fetches no more, and takes nothing more of what was fetched.
    fn finish(&mut self) {
        self.fetcher.abort();
        self.generation = 0;
    }
}

impl Stream for Consumer {
    type Item = Result<ConsumerRecord, ConsumeError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            while self.current.is_some() {
                if let Some(read) = self.read() {
                    return Poll::Ready(Some(read));
                }
            }
            if !self.assigned.is_empty() && self.assigned.values().all(Assigned::is_done) {
                return Poll::Ready(None);
            }
            let Poll::Ready(report) = self.reports.1.poll_recv(context) else { return Poll::Pending };
            // This consumer holds a sender, so there is always one.
            let Some(report) = report else { return Poll::Ready(None) };
            if let Some(failed) = self.hear(report) {
                return Poll::Ready(Some(failed));
            }
        }
    }
}
