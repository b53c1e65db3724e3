//! A producer of records: batches, sends, and sends again until each record is stored once, in the order in which it was sent.
//!
//! `send` encodes a record into the open batch of its partition and returns; a task closes batches, compresses them on threads that
//! may be busy, and publishes them over one connection, several at a time per partition. What is sent again and when is decided in
//! `lane`.

mod accumulator;
mod config;
mod delivery;
mod lane;
mod partitioner;
mod sender;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_nats::{Client, HeaderMap, Subject};
use rand::random;
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;

use crate::client::{Admin, AdminError, DataError};
use crate::config::Services;
use crate::config::services::DataTarget;
use crate::log::batch::{BatchBuilder, HEADER_BYTES};
use crate::types::TopicName;
use crate::wire::admin::TopicDescription;
use crate::wire::data::{FORMAT_BATCH, header};
use accumulator::{Accumulator, Appended, Topic};

pub use config::{ProduceError, ProducerConfig, ProducerRecord, RecordMetadata};
pub use delivery::Delivery;

/// How long an idempotent producer waits for an answer before answers have shown how long they take.
const FIRST_PATIENCE: Duration = Duration::from_millis(1_000);
/// … and at most, however slow they are: whoever leads may have changed.
const LONGEST_PATIENCE: Duration = Duration::from_secs(2);

/// A producer of records (Kafka's `KafkaProducer`). Clones share its batches; when the last one is dropped, what was not sent is
/// lost: [`Producer::close`] it instead.
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/example.rs"));
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (_cluster, client) = Example::start().await;
/// # let admin = dmq::client::Admin::new(client.clone(), "dmq.admin");
/// # admin.create_topic(serde_json::from_str(r#"{"name": "orders", "partitions": 3}"#)?).await?;
/// # let leaders = dmq::client::Leaders::new(client.clone(), dmq::config::Services::default());
/// use dmq::client::{Producer, ProducerConfig, ProducerRecord};
/// use dmq::config::Services;
/// use dmq::types::TopicName;
///
/// let producer = Producer::new(client, Services::default(), ProducerConfig::default()).await?;
/// let orders = TopicName::new("orders")?;
/// let mut sent = Vec::new();
/// for number in 0..1_000 {
///     let record = ProducerRecord::new(orders.clone(), format!("order {number}")).key(format!("customer {}", number % 10));
///     sent.push(producer.send(record).await?);
/// }
/// for delivery in sent {
///     let stored = delivery.await?;
///     println!("partition {}, offset {:?}", stored.partition, stored.offset);
/// }
/// producer.close().await;
/// # let mut count = 0;
/// # for partition in 0..3 {
/// #     count += leaders.offsets(&orders, partition).await?.high_watermark.0;
/// # }
/// # assert_eq!(count, 1_000);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Producer {
    shared: Arc<Shared>,
    _sender: Arc<AbortOnDrop>,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Shared {
    client: Client,
    services: Services,
    admin: Admin,
    config: ProducerConfig,
    state: Mutex<Accumulator>,
    memory: Arc<Semaphore>,
    /// The sender has something to look at.
    wake: Notify,
}

impl Producer {
    /// A producer over this connection.
    ///
    /// # Errors
    /// [`ProduceError::Config`].
    pub async fn new(client: Client, services: Services, config: ProducerConfig) -> Result<Self, ProduceError> {
        config.check()?;
        let memory = Arc::new(Semaphore::new(config.buffer_memory));
        let state = Mutex::new(Accumulator::new(config.clone(), Arc::clone(&memory)));
        let admin = Admin::new(client.clone(), services.admin_prefix());
        let shared = Arc::new(Shared { client, services, admin, config, state, memory, wake: Notify::new() });
        let sender = tokio::spawn(sender::run(Arc::clone(&shared))).abort_handle();
        Ok(Self { shared, _sender: Arc::new(AbortOnDrop(sender)) })
    }

    /// Puts a record into a batch, and returns what will become of it. It waits only while the buffer is full, and for a topic's
    /// metadata at its first record. Records of one task stay in order within their partition.
    ///
    /// # Errors
    /// Nothing was sent: [`ProduceError::Topic`], [`ProduceError::NoPartition`], [`ProduceError::TooLarge`],
    /// [`ProduceError::BufferFull`] or [`ProduceError::Closed`].
    pub async fn send(&self, record: ProducerRecord) -> Result<Delivery, ProduceError> {
        let shared = &*self.shared;
        let timestamp = record.timestamp.unwrap_or_else(now_ms);
        let bound = BatchBuilder::record_size_bound(record.key.as_deref(), record.value.as_deref(), &record.headers);
        let mut room = None;
        loop {
            let draw = || [random(), random()];
            let appended = shared.state().append(Instant::now, &record, timestamp, bound, room.take(), draw)?;
            match appended {
                Appended::Done { delivery, wake } => {
                    if wake {
                        shared.wake.notify_one();
                    }
                    return Ok(delivery);
                }
                Appended::UnknownTopic => shared.look_up(&record.topic).await?,
                Appended::NoRoom { bytes, wake } => {
                    if wake {
                        shared.wake.notify_one();
                    }
                    let waiting = Arc::clone(&shared.memory).acquire_many_owned(bytes);
                    let after = shared.config.max_block;
                    room = match tokio::time::timeout(after, waiting).await {
                        Ok(Ok(room)) => Some(room),
                        Ok(Err(_)) => return Err(ProduceError::Closed),
                        Err(_) => {
                            return Err(ProduceError::BufferFull { limit: shared.config.buffer_memory, after });
                        }
                    };
                }
            }
        }
    }

    /// How many partitions a topic has.
    ///
    /// # Errors
    /// [`ProduceError::Topic`].
    pub async fn partitions(&self, topic: &TopicName) -> Result<u32, ProduceError> {
        loop {
            {
                let state = self.shared.state();
                if let Some(place) = state.topic(topic) {
                    return Ok(state.topics[place].partitions.len() as u32);
                }
            }
            self.shared.look_up(topic).await?;
        }
    }

    /// Sends what was not sent yet, and returns when each record that was sent before is stored or given up. Which of both, the
    /// deliveries tell.
    pub async fn flush(&self) {
        let waiting = self.shared.state().flush(Instant::now());
        self.shared.wake.notify_one();
        for delivery in waiting {
            delivery.whole_batch().await;
        }
    }

    /// Takes no more records, and returns when each one is stored or given up.
    pub async fn close(self) {
        self.shared.state().is_closed = true;
        self.flush().await;
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Accumulator> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look_up(&self, topic: &TopicName) -> Result<(), ProduceError> {
        let admin = self.admin.clone().within(self.config.max_block);
        let described = admin.describe_topic(topic.as_str()).await;
        let described = described.map_err(|error| ProduceError::Topic { topic: topic.clone(), error })?;
        self.describe(topic, &described);
        Ok(())
    }

    fn describe(&self, name: &TopicName, described: &TopicDescription) {
        const KEY: &str = "max.message.bytes";
        let default = crate::metadata::config::KEYS.iter().find(|key| key.name == KEY).map(|key| key.default);
        let of_topic = described.config.get(KEY).map(String::as_str).or(default);
        let of_topic = of_topic.and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
        let carried = crate::process::message_room(self.client.max_payload());
        let limit = of_topic.min(carried).min(self.config.max_request_size).max(HEADER_BYTES);
        let mut headers = HeaderMap::new();
        headers.insert(header::FORMAT, FORMAT_BATCH);
        headers.insert(header::ACKS, self.config.acks.as_str());
        headers.insert(header::TIMEOUT_MS, self.config.request_timeout.as_millis().to_string());
        headers.insert(header::TOPIC_ID, described.topic_id.to_string());
        let topic = Topic::new(name.clone(), described.topic_id, headers, limit, Instant::now());
        let subject =
            |op: &str, partition| Subject::from(self.services.data_subject(op, DataTarget::Partition(partition), name));
        self.state().describe(topic, described.partitions.len() as u32, subject);
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
