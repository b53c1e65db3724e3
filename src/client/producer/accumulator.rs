//! Records on their way into batches: which partition each goes to, when a batch is closed, and how much memory all of them take.
//!
//! Instants, chance and the memory to use are passed in. A record is encoded once, into the batch that it leaves with.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::config::{ProduceError, ProducerConfig, ProducerRecord};
use super::delivery::{Delivery, Settle};
use super::lane::{Lane, Pace};
use super::partitioner;
use crate::client::DataError;
use crate::log::batch::{self, BatchBuilder, Compression, HEADER_BYTES, PackedBatch, ProducerStamp, Record};
use crate::types::{LeaderEpoch, Offset, PartitionId, TopicId, TopicName};
use crate::wire::data::op;

/// A topic's place, and the partition.
pub(super) type Key = (usize, PartitionId);

/// While so many batches of a producer are unanswered, others that are due go on filling. With many partitions there would be ever
/// more of them, ever smaller, and each costs what a large one does.
const AWAITED_MAX: usize = 64;
/// For how long they do at most, whatever becomes of the others.
const HELD_MAX: Duration = Duration::from_millis(500);
/// The least memory that a batch takes at a time.
const ROOM_STEP: usize = 4 << 10;

/// A closed batch.
pub(super) struct Batch {
    pub body: Body,
    pub settle: Settle,
    /// Its first record's offset, once it is stored.
    pub base: Option<Offset>,
    /// Why it had to be sent again.
    pub last: Option<DataError>,
    /// Its memory.
    room: Option<OwnedSemaphorePermit>,
}

impl Batch {
    /// The batch as two, each with about half of its records, to be packed. None where it cannot be read, which cannot be.
    fn halves(&self, compression: Compression, limit: usize) -> Option<[BatchBuilder; 2]> {
        let Body::Sealed { bytes, .. } = &self.body else { return None };
        let records = batch::records(bytes, limit).ok()?.collect::<Result<Vec<_>, _>>().ok()?;
        let builder = |records: &[Record]| {
            let mut builder = BatchBuilder::new(compression);
            for Record { timestamp, key, value, headers, .. } in records {
                builder.push(*timestamp, key.as_deref(), value.as_deref(), headers);
            }
            builder
        };
        let (first, second) = records.split_at(records.len() / 2);
        Some([builder(first), builder(second)])
    }
}

pub(super) enum Body {
    Records(BatchBuilder),
    Packed(PackedBatch),
    Sealed {
        bytes: Bytes,
        stamp: Option<ProducerStamp>,
    },
    /// Somebody works on it.
    Away,
}

/// A batch that still takes records.
struct Open {
    builder: BatchBuilder,
    settle: Settle,
    /// When it is closed though it is not full.
    due: Instant,
    expires: Instant,
    room: OwnedSemaphorePermit,
}

pub(super) struct Partition {
    open: Option<Open>,
    pub lane: Lane<Batch>,
    /// Batches that are closed and not packed yet, in order.
    pub unpacked: VecDeque<u64>,
    pub subject: Subject,
    /// Where its leader says where it stands.
    pub question: Subject,
    /// The newest leader's that answered.
    pub leader_epoch: LeaderEpoch,
    /// When the sender wants to look at it again.
    pub due: Option<Instant>,
    /// How large the last batch became: the next one has room for as much.
    size: usize,
    /// How many of its batches count as unanswered.
    awaited: usize,
    /// Since when its open batch is due and held back.
    held: Option<Instant>,
}

pub(super) struct Topic {
    pub name: TopicName,
    pub id: TopicId,
    pub partitions: Vec<Partition>,
    pub headers: HeaderMap,
    /// Where records without a key go until the batch there is closed.
    sticky: Option<PartitionId>,
    /// The largest batch that it takes.
    pub max_message_bytes: usize,
    pub described: Instant,
    pub is_stale: bool,
}

pub(super) struct Accumulator {
    config: ProducerConfig,
    pace: Pace,
    memory: Arc<Semaphore>,
    pub topics: Vec<Topic>,
    names: HashMap<TopicName, usize>,
    /// What the sender has to look at.
    pub dirty: BTreeSet<Key>,
    /// The sum over all partitions.
    awaited: usize,
    /// Whose open batches are due and held back.
    held: BTreeSet<(Instant, Key)>,
    pub is_closed: bool,
}

/// What became of a record.
pub(super) enum Appended {
    /// It is in a batch. `wake`: the sender has something new to do.
    Done { delivery: Delivery, wake: bool },
    /// The topic has to be looked up first.
    UnknownTopic,
    /// So many bytes of memory are needed first.
    NoRoom { bytes: u32, wake: bool },
}

impl Accumulator {
    pub fn new(config: ProducerConfig, memory: Arc<Semaphore>) -> Self {
        let pace = Pace {
            max_in_flight: config.max_in_flight,
            is_idempotent: config.is_idempotent(),
            first_patience: super::FIRST_PATIENCE.min(config.request_timeout),
            longest_patience: match config.is_idempotent() {
                true => super::LONGEST_PATIENCE.min(config.request_timeout),
                false => config.request_timeout,
            },
            first_backoff: config.retry_backoff,
            longest_backoff: config.retry_backoff_max,
        };
        let (topics, names, dirty) = (Vec::new(), HashMap::new(), BTreeSet::new());
        Self { config, pace, memory, topics, names, dirty, awaited: 0, held: BTreeSet::new(), is_closed: false }
    }

    pub fn topic(&self, name: &TopicName) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// Adds a topic, or partitions to one that is there. `subject` is that of an operation on a
    /// partition.
    pub fn describe(&mut self, new: Topic, count: u32, subject: impl Fn(&str, PartitionId) -> Subject) {
        let pace = self.pace;
        let partition = |partition| Partition {
            open: None,
            lane: Lane::new(pace),
            unpacked: VecDeque::new(),
            subject: subject(op::PRODUCE, partition),
            question: subject(op::OFFSETS, partition),
            leader_epoch: LeaderEpoch(0),
            due: None,
            size: 0,
            awaited: 0,
            held: None,
        };
        let place = *self.names.entry(new.name.clone()).or_insert_with(|| {
            self.topics.push(new.shell());
            self.topics.len() - 1
        });
        let topic = &mut self.topics[place];
        (topic.id, topic.max_message_bytes, topic.headers) = (new.id, new.max_message_bytes, new.headers);
        (topic.described, topic.is_stale) = (new.described, false);
        let have = topic.partitions.len() as u32;
        topic.partitions.extend((have..count).map(partition));
    }

    /// Forgets a topic's name, so that the next record looks it up anew. Its batches are still there.
    pub fn forget(&mut self, place: usize) {
        self.names.remove(&self.topics[place].name);
    }

    pub fn partition(&mut self, key: Key) -> Option<&mut Partition> {
        self.topics.get_mut(key.0)?.partitions.get_mut(key.1 as usize)
    }

    /// Adds a record that takes at most `bound` bytes. `room` is memory that was waited for; `draw` gives random numbers. `now` is
    /// asked once a batch: each look at the clock takes a tenth of what a small record does.
    pub fn append(
        &mut self,
        now: impl FnOnce() -> Instant,
        record: &ProducerRecord,
        timestamp: i64,
        bound: usize,
        mut room: Option<OwnedSemaphorePermit>,
        draw: impl FnOnce() -> [u32; 2],
    ) -> Result<Appended, ProduceError> {
        if self.is_closed {
            return Err(ProduceError::Closed);
        }
        let Some(place) = self.topic(&record.topic) else { return Ok(Appended::UnknownTopic) };
        let topic = &mut self.topics[place];
        let limit = topic.max_message_bytes;
        if HEADER_BYTES + bound > limit {
            return Err(ProduceError::TooLarge { size: HEADER_BYTES + bound, limit });
        }
        let count = topic.partitions.len() as u32;
        let most = self.config.batch_size.min(limit);
        let mut wake = false;
        let is_free = record.partition.is_none() && record.key.is_none();
        if let Some(number) = topic.sticky.filter(|number| is_free && !topic.fits(*number, bound, most)) {
            // The next batch is another partition's.
            topic.close(number);
            self.dirty.insert((place, number));
            wake = true;
        }
        let number = match (record.partition, &record.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => crate::types::partition_of_key(key, count),
            (None, None) => *topic.sticky.get_or_insert_with(|| {
                let load = |partition: u32| topic.partitions.get(partition as usize).map_or(0, Partition::load);
                partitioner::less_loaded(count, draw(), load)
            }),
        };
        let Some(partition) = topic.partitions.get_mut(number as usize) else {
            return Err(ProduceError::NoPartition { topic: record.topic.clone(), partition: number, count });
        };
        if let Some(open) = &mut partition.open {
            let size = open.builder.size() + bound;
            if size <= most && open.has_room(size, most, &self.memory, &mut room) {
                return Ok(Appended::Done { delivery: open.push(record, timestamp), wake });
            }
            partition.close();
            self.dirty.insert((place, number));
            wake = true;
        }
        let size = HEADER_BYTES + bound;
        let wanted = partition.size.max(size).next_multiple_of(ROOM_STEP).min(most.max(size)) as u32;
        let room = match room.filter(|room| room.num_permits() >= size) {
            Some(room) => room,
            None => match Arc::clone(&self.memory).try_acquire_many_owned(wanted) {
                Ok(room) => room,
                Err(_) => return Ok(Appended::NoRoom { bytes: wanted, wake }),
            },
        };
        let now = now();
        let mut open = Open {
            builder: BatchBuilder::with_capacity(self.config.compression, room.num_permits()),
            settle: Settle::new(record.topic.clone(), number),
            due: now + self.config.linger,
            expires: now + self.config.delivery_timeout,
            room,
        };
        let delivery = open.push(record, timestamp);
        partition.open = Some(open);
        self.dirty.insert((place, number));
        Ok(Appended::Done { delivery, wake: true })
    }

    /// Closes the open batch of a partition where its time has come and it could be sent.
    pub fn close_due(&mut self, key: Key, now: Instant) {
        let may_go = self.awaited < AWAITED_MAX;
        let Some(partition) = self.partition(key) else { return };
        let (held, is_free) = (partition.held.take(), partition.lane.has_room(now));
        let due = partition.open.as_ref().map(|open| (open.due, open.expires));
        let is_due = due.is_some_and(|(due, _)| due <= now && is_free);
        let is_late = due.is_some_and(|(due, expires)| is_due && due + HELD_MAX <= now || expires <= now);
        let waits = due.filter(|_| is_due && !may_go && !is_late).map(|(due, _)| due);
        partition.held = waits;
        if let Some(since) = held {
            self.held.remove(&(since, key));
        }
        self.held.extend(waits.map(|since| (since, key)));
        if is_late || is_due && may_go {
            self.topics[key.0].close(key.1);
        }
    }

    /// Takes the partition whose batch was held back for longest, if it may go now.
    pub fn take_held(&mut self) -> Option<Key> {
        if self.awaited >= AWAITED_MAX {
            return None;
        }
        self.held.pop_first().map(|(_, key)| key)
    }

    /// Counts a partition's batches anew, after something became of them.
    pub fn count(&mut self, key: Key) {
        let Some(partition) = self.partition(key) else { return };
        let now = partition.lane.awaited();
        let before = std::mem::replace(&mut partition.awaited, now);
        self.awaited = (self.awaited + now).saturating_sub(before);
    }

    /// Makes every open batch due, though they may be held back, and gives a delivery of each batch that is not settled.
    pub fn flush(&mut self, now: Instant) -> Vec<Delivery> {
        let mut waiting = Vec::new();
        for (place, topic) in self.topics.iter_mut().enumerate() {
            for (number, partition) in (0..).zip(&mut topic.partitions) {
                if let Some(open) = &mut partition.open {
                    open.due = now;
                    waiting.push(open.settle.delivery(0, 0));
                    self.dirty.insert((place, number));
                }
                waiting.extend(partition.lane.batches().map(|batch| batch.settle.delivery(0, 0)));
            }
        }
        waiting
    }
}

impl Topic {
    pub fn new(name: TopicName, id: TopicId, headers: HeaderMap, max_message_bytes: usize, described: Instant) -> Self {
        let partitions = Vec::new();
        Self { name, id, partitions, headers, sticky: None, max_message_bytes, described, is_stale: false }
    }

    /// Whether a partition's open batch, if there is one, has place for `bound` more bytes of `most`.
    fn fits(&self, number: PartitionId, bound: usize, most: usize) -> bool {
        let open = self.partitions.get(number as usize).and_then(|partition| partition.open.as_ref());
        open.is_none_or(|open| open.builder.size() + bound <= most)
    }

    /// Closes a partition's open batch: records without a key go elsewhere from there on.
    fn close(&mut self, number: PartitionId) {
        if let Some(partition) = self.partitions.get_mut(number as usize) {
            partition.close();
        }
        self.sticky = self.sticky.filter(|sticky| *sticky != number);
    }

    fn shell(&self) -> Self {
        Self::new(self.name.clone(), self.id, HeaderMap::new(), self.max_message_bytes, self.described)
    }
}

impl Partition {
    /// Somebody answered as its leader in this epoch. What a leader before it did not answer, it never will, stored or not.
    pub fn heard_of(&mut self, leader_epoch: LeaderEpoch, now: Instant) {
        if leader_epoch > self.leader_epoch {
            self.leader_epoch = leader_epoch;
            self.lane.leader_changed(now);
        }
    }

    /// How many batches wait here.
    fn load(&self) -> usize {
        self.lane.len()
    }

    fn close(&mut self) {
        let Some(Open { builder, settle, due: _, expires, room }) = self.open.take() else { return };
        self.size = builder.size();
        let count = builder.record_count();
        let batch = Batch { body: Body::Records(builder), settle, base: None, last: None, room: Some(room) };
        let number = self.lane.push(batch, count, expires);
        self.unpacked.push_back(number);
    }

    /// Replaces a batch that is too large for its leader by its halves. `limit`: what its records may take decompressed.
    pub fn split_if_too_large(&mut self, number: u64, compression: Compression, limit: usize) {
        if !self.lane.is_too_large(number) {
            return;
        }
        let halves = self.lane.batch_mut(number).and_then(|batch| batch.halves(compression, limit));
        // Without them it expires.
        let Some(halves) = halves else { return };
        let split = |batch: Batch| {
            let Batch { settle, last, mut room, .. } = batch;
            let [first, second] = halves;
            let counts = [first.record_count(), second.record_count()];
            let second_room = room.as_mut().and_then(|room| room.split(room.num_permits() / 2));
            let [first_settle, second_settle] = settle.split(counts[0]);
            let half = |builder, settle, room| Batch {
                body: Body::Records(builder),
                settle,
                base: None,
                last: last.clone(),
                room,
            };
            let second = half(second, second_settle, second_room);
            [(half(first, first_settle, room), counts[0]), (second, counts[1])]
        };
        self.unpacked.extend(self.lane.split(number, split).into_iter().flatten());
    }

    /// When the open batch wants to be looked at, unless the lane has no room: then an answer comes first.
    pub fn open_due(&self, now: Instant) -> Option<Instant> {
        let open = self.open.as_ref()?;
        Some(match self.held {
            Some(since) => since + HELD_MAX,
            None if self.lane.has_room(now) => open.due,
            None => open.expires,
        })
    }

    /// Takes the open batch out together with all others.
    pub fn close_all(&mut self) {
        self.close();
        self.unpacked.clear();
    }
}

impl Open {
    /// Makes sure of memory for a batch of so many bytes.
    fn has_room(
        &mut self,
        size: usize,
        most: usize,
        memory: &Arc<Semaphore>,
        given: &mut Option<OwnedSemaphorePermit>,
    ) -> bool {
        let have = self.room.num_permits();
        if size <= have {
            return true;
        }
        if let Some(given) = given.take_if(|given| have + given.num_permits() >= size) {
            self.room.merge(given);
            return true;
        }
        // Twice as much each time, as the buffer itself grows.
        let wanted = (2 * have).clamp(size, most.max(size)) - have;
        match Arc::clone(memory).try_acquire_many_owned(wanted as u32) {
            Ok(more) => {
                self.room.merge(more);
                true
            }
            Err(_) => false,
        }
    }

    fn push(&mut self, record: &ProducerRecord, timestamp: i64) -> Delivery {
        let delivery = self.settle.delivery(self.builder.record_count(), timestamp);
        self.builder.push(timestamp, record.key.as_deref(), record.value.as_deref(), &record.headers);
        delivery
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const BATCH_SIZE: usize = 4 << 10;

    fn accumulator(partitions: u32) -> (Accumulator, TopicName) {
        let config = ProducerConfig { batch_size: BATCH_SIZE, ..ProducerConfig::default() };
        let mut accumulator = Accumulator::new(config, Arc::new(Semaphore::new(1 << 20)));
        let name = TopicName::new("orders").unwrap();
        let topic = Topic::new(name.clone(), TopicId(Uuid::from_u128(1)), HeaderMap::new(), 1 << 20, Instant::now());
        accumulator.describe(topic, partitions, |op, partition| format!("{op}.{partition}").into());
        (accumulator, name)
    }

    /// Appends a record. `draw`: where chance would have it.
    fn append(accumulator: &mut Accumulator, record: &ProducerRecord, draw: u32) {
        let bound = 1_000;
        let appended = accumulator.append(Instant::now, record, 0, bound, None, || [draw; 2]).unwrap();
        assert!(matches!(appended, Appended::Done { .. }));
    }

    fn batches(accumulator: &Accumulator) -> Vec<usize> {
        accumulator.topics[0].partitions.iter().map(Partition::load).collect()
    }

    #[test]
    fn a_full_batch_without_keys_is_followed_by_one_of_another_partition() {
        let (mut accumulator, name) = accumulator(3);
        let record = ProducerRecord::new(name, vec![7; 990]);
        // Chance would have each record go elsewhere: it is asked once a batch only.
        for number in 0..12 {
            append(&mut accumulator, &record, number / 4);
        }
        // Four fit a batch, and the last one is open.
        assert_eq!(batches(&accumulator), [1, 1, 0]);
        append(&mut accumulator, &record, 0);
        assert_eq!(batches(&accumulator), [1, 1, 1]);
    }

    #[test]
    fn while_many_batches_are_unanswered_others_that_are_due_go_on_filling_for_a_while() {
        let count = AWAITED_MAX as u32 + 3;
        let (mut accumulator, name) = accumulator(count);
        let to =
            |partition| ProducerRecord { partition: Some(partition), ..ProducerRecord::new(name.clone(), vec![7; 90]) };
        (0..count).for_each(|partition| append(&mut accumulator, &to(partition), 0));
        let due = Instant::now() + accumulator.config.linger;
        let look = |accumulator: &mut Accumulator, now| {
            (0..count).for_each(|number| {
                accumulator.close_due((0, number), now);
                accumulator.count((0, number));
            });
            batches(accumulator).iter().sum::<usize>()
        };
        assert_eq!(look(&mut accumulator, due), AWAITED_MAX);
        assert_eq!((look(&mut accumulator, due), accumulator.take_held()), (AWAITED_MAX, None));
        append(&mut accumulator, &to(count - 1), 0);
        assert_eq!(batches(&accumulator)[count as usize - 1], 0, "it takes more");

        // One is answered: who waited for longest is next.
        let mut ended = Vec::new();
        accumulator.partition((0, 0)).unwrap().lane.drain(&mut ended);
        accumulator.count((0, 0));
        assert_eq!(accumulator.take_held(), Some((0, count - 3)));
        accumulator.close_due((0, count - 3), due);
        accumulator.count((0, count - 3));
        assert_eq!((batches(&accumulator)[count as usize - 3], accumulator.take_held()), (1, None));
        assert_eq!(look(&mut accumulator, due + HELD_MAX), count as usize - 1, "nobody waits for ever");
        assert_eq!(accumulator.held, BTreeSet::new());
    }

    #[test]
    fn a_full_batch_of_one_key_is_followed_by_one_of_the_same_partition_and_leaves_the_others_where_they_are() {
        let (mut accumulator, name) = accumulator(3);
        let keyless = ProducerRecord::new(name.clone(), vec![7; 990]);
        let keyed = ProducerRecord { partition: Some(2), ..keyless.clone() };
        append(&mut accumulator, &keyless, 1);
        (0..9).for_each(|_| append(&mut accumulator, &keyed, 0));
        append(&mut accumulator, &keyless, 0);
        assert_eq!(batches(&accumulator), [0, 0, 2]);
    }
}
