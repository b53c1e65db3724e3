//! What a partition knows of idempotent producers: their epochs and last batches, so that a retry is stored once.
//!
//! Snapshots have Kafka's layout (version 1). Kafka keeps only a producer's last batch in them; here each of the last five has
//! an entry of its own, oldest first, which Kafka reads too: the last one counts.

use std::collections::{HashMap, VecDeque};

use super::batch::{BatchHeader, add_to_sequence};
use crate::types::Offset;

/// How many batches per producer are remembered: as many as Kafka's clients have in flight at most.
pub const BATCHES_PER_PRODUCER: usize = 5;

const VERSION: i16 = 1;
/// Version, checksum, count.
const SNAPSHOT_HEADER_BYTES: usize = 10;
const ENTRY_BYTES: usize = 46;

/// A batch that is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoredBatch {
    pub last_sequence: i32,
    pub last_offset: Offset,
    /// One less than the number of records that it had.
    pub offset_delta: i32,
    /// When this node took it in, by its own clock, so that old timestamps make no producer forgotten: milliseconds since
    /// 1970.
    pub timestamp: i64,
}

impl StoredBatch {
    pub fn base_offset(&self) -> Offset {
        Offset(self.last_offset.0 - i64::from(self.offset_delta))
    }

    fn first_sequence(&self) -> i32 {
        add_to_sequence(self.last_sequence, -self.offset_delta)
    }
}

/// One producer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProducerState {
    pub epoch: i16,
    /// Oldest first, at most [`BATCHES_PER_PRODUCER`], all of this epoch.
    pub batches: VecDeque<StoredBatch>,
}

/// All producers of a partition.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Producers {
    by_id: HashMap<i64, ProducerState>,
}

/// What a leader does with a producer's batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Append,
    Duplicate(StoredBatch),
    OutOfOrder { expected: i32 },
    Fenced { current: i16 },
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("it has version {0}, and only 1 is known")]
    Version(i16),
    #[error("its checksum is wrong")]
    Crc,
    #[error("it has not as many bytes as its entries take")]
    Size,
    #[error("an entry has a negative offset or sequence")]
    Entry,
}

impl Producers {
    pub fn get(&self, id: i64) -> Option<&ProducerState> {
        self.by_id.get(&id)
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Kafka's rule. A producer that is not known may begin with any sequence: its state may have expired.
    pub(super) fn check(&self, header: &BatchHeader) -> Verdict {
        let Some(state) = self.by_id.get(&header.producer_id) else { return Verdict::Append };
        if header.producer_epoch < state.epoch {
            return Verdict::Fenced { current: state.epoch };
        }
        if header.producer_epoch > state.epoch {
            return match header.base_sequence {
                0 => Verdict::Append,
                _ => Verdict::OutOfOrder { expected: 0 },
            };
        }
        let same = |batch: &&StoredBatch| {
            batch.first_sequence() == header.base_sequence && batch.last_sequence == header.last_sequence()
        };
        if let Some(stored) = state.batches.iter().find(same) {
            return Verdict::Duplicate(*stored);
        }
        match state.batches.back().map(|last| add_to_sequence(last.last_sequence, 1)) {
            Some(expected) if expected != header.base_sequence => Verdict::OutOfOrder { expected },
            _ => Verdict::Append,
        }
    }

    /// Takes in a batch that the log has, with its final offsets.
    pub(super) fn apply(&mut self, header: &BatchHeader, now_ms: i64) {
        if !header.has_producer() || header.attributes.is_control() {
            return;
        }
        let state = self.by_id.entry(header.producer_id);
        let state = state.or_insert_with(|| ProducerState { epoch: header.producer_epoch, batches: VecDeque::new() });
        if state.epoch != header.producer_epoch {
            state.epoch = header.producer_epoch;
            state.batches.clear();
        }
        let stored = StoredBatch {
            last_sequence: header.last_sequence(),
            last_offset: header.last_offset(),
            offset_delta: header.last_offset_delta,
            timestamp: now_ms,
        };
        // A replay may begin before what a snapshot has.
        if state.batches.back().is_some_and(|last| last.last_offset >= stored.last_offset) {
            return;
        }
        state.push(stored);
    }

    /// Forgets producers that wrote nothing since `before_ms`, in milliseconds since 1970.
    pub(super) fn expire(&mut self, before_ms: i64) {
        self.by_id.retain(|_, state| state.batches.back().is_some_and(|last| last.timestamp >= before_ms));
    }

    /// Whether the batch with this last offset is the last one of its producer: compaction leaves its header.
    pub(super) fn is_last_batch(&self, header: &BatchHeader) -> bool {
        let state = self.by_id.get(&header.producer_id).filter(|_| header.has_producer());
        state.and_then(|state| state.batches.back()).is_some_and(|last| last.last_offset == header.last_offset())
    }

    /// A snapshot's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let count: usize = self.by_id.values().map(|state| state.batches.len().max(1)).sum();
        let mut out = Vec::with_capacity(SNAPSHOT_HEADER_BYTES + count * ENTRY_BYTES);
        out.extend_from_slice(&VERSION.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(count as u32).to_be_bytes());
        let mut ids: Vec<i64> = self.by_id.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let state = &self.by_id[&id];
            // As Kafka writes one that has an epoch and no batch.
            let none = StoredBatch { last_sequence: -1, last_offset: Offset(-1), offset_delta: 0, timestamp: -1 };
            let nothing = [none];
            let batches = state.batches.iter().chain(if state.batches.is_empty() { &nothing[..] } else { &[] });
            for batch in batches {
                out.extend_from_slice(&id.to_be_bytes());
                out.extend_from_slice(&state.epoch.to_be_bytes());
                out.extend_from_slice(&batch.last_sequence.to_be_bytes());
                out.extend_from_slice(&batch.last_offset.0.to_be_bytes());
                out.extend_from_slice(&batch.offset_delta.to_be_bytes());
                out.extend_from_slice(&batch.timestamp.to_be_bytes());
                out.extend_from_slice(&(-1i32).to_be_bytes()); // Coordinator epoch.
                out.extend_from_slice(&(-1i64).to_be_bytes()); // First offset of an open transaction.
            }
        }
        let crc = crc32c::crc32c(&out[6..]);
        out[2..6].copy_from_slice(&crc.to_be_bytes());
        out
    }

    /// Reads a snapshot, Kafka's own too.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let (Some((version, rest)), true) = (bytes.split_first_chunk(), bytes.len() >= SNAPSHOT_HEADER_BYTES) else {
            return Err(SnapshotError::Size);
        };
        match i16::from_be_bytes(*version) {
            VERSION => {}
            other => return Err(SnapshotError::Version(other)),
        }
        let mut fields = Fields(rest);
        if fields.u32() != crc32c::crc32c(&bytes[6..]) {
            return Err(SnapshotError::Crc);
        }
        let count = fields.u32() as usize;
        if Some(fields.0.len()) != count.checked_mul(ENTRY_BYTES) {
            return Err(SnapshotError::Size);
        }
        let mut producers = Self::default();
        for _ in 0..count {
            let (id, epoch) = (fields.i64(), fields.i16());
            let last_sequence = fields.i32();
            let last_offset = Offset(fields.i64());
            let offset_delta = fields.i32();
            let timestamp = fields.i64();
            let _transaction = (fields.i32(), fields.i64());
            let state = producers.by_id.entry(id).or_insert_with(|| ProducerState { epoch, batches: VecDeque::new() });
            if state.epoch != epoch {
                *state = ProducerState { epoch, batches: VecDeque::new() };
            }
            if last_offset.0 < 0 {
                continue; // Kafka's for a producer without a batch.
            }
            if last_sequence < 0 || offset_delta < 0 || i64::from(offset_delta) > last_offset.0 {
                return Err(SnapshotError::Entry);
            }
            state.push(StoredBatch { last_sequence, last_offset, offset_delta, timestamp });
        }
        Ok(producers)
    }

    /// All of them, by id.
    pub fn iter(&self) -> impl Iterator<Item = (i64, &ProducerState)> {
        self.by_id.iter().map(|(id, state)| (*id, state))
    }
}

impl ProducerState {
    fn push(&mut self, batch: StoredBatch) {
        if self.batches.len() == BATCHES_PER_PRODUCER {
            self.batches.pop_front();
        }
        self.batches.push_back(batch);
    }
}

/// Fields of bytes whose number was checked before.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        if let Some((taken, rest)) = self.0.split_first_chunk::<N>() {
            field = *taken;
            self.0 = rest;
        }
        field
    }

    fn i16(&mut self) -> i16 {
        i16::from_be_bytes(self.take())
    }

    fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn i64(&mut self) -> i64 {
        i64::from_be_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::{BatchBuilder, Compression, ProducerStamp};
    use super::*;

    fn header(epoch: i16, sequence: i32, records: i32, base: i64) -> BatchHeader {
        let mut builder = BatchBuilder::new(Compression::None).producer(ProducerStamp { id: 9, epoch, sequence });
        (0..records).for_each(|_| _ = builder.push(5, None, None, &[]));
        let mut header = BatchHeader::parse(&builder.build().unwrap()).unwrap();
        header.base_offset = Offset(base);
        header
    }

    fn filled() -> Producers {
        let mut producers = Producers::default();
        for number in 0..7 {
            producers.apply(&header(1, number * 2, 2, i64::from(number) * 2), 5);
        }
        producers
    }

    #[test]
    fn the_last_five_batches_are_duplicates_and_older_ones_out_of_order() {
        let producers = filled();
        for number in 2..7 {
            let Verdict::Duplicate(stored) = producers.check(&header(1, number * 2, 2, 0)) else { panic!("{number}") };
            assert_eq!(stored.base_offset(), Offset(i64::from(number) * 2));
        }
        assert_eq!(producers.check(&header(1, 2, 2, 0)), Verdict::OutOfOrder { expected: 14 });
        assert_eq!(producers.check(&header(1, 12, 1, 0)), Verdict::OutOfOrder { expected: 14 }, "half of a batch");
        assert_eq!(producers.check(&header(1, 14, 1, 0)), Verdict::Append);
        assert_eq!(producers.check(&header(1, 15, 1, 0)), Verdict::OutOfOrder { expected: 14 });
    }

    #[test]
    fn an_older_epoch_is_fenced_and_a_newer_one_begins_at_zero() {
        let producers = filled();
        assert_eq!(producers.check(&header(0, 14, 1, 0)), Verdict::Fenced { current: 1 });
        assert_eq!(producers.check(&header(2, 14, 1, 0)), Verdict::OutOfOrder { expected: 0 });
        assert_eq!(producers.check(&header(2, 0, 1, 0)), Verdict::Append);
    }

    #[test]
    fn a_sequence_runs_over() {
        let mut producers = Producers::default();
        producers.apply(&header(1, i32::MAX - 1, 2, 0), 5);
        assert_eq!(producers.check(&header(1, 0, 1, 0)), Verdict::Append);
        assert!(matches!(producers.check(&header(1, i32::MAX - 1, 2, 0)), Verdict::Duplicate(_)));
    }

    #[test]
    fn a_producer_without_a_batch_keeps_its_epoch_in_a_snapshot() {
        let mut producers = filled();
        producers.by_id.insert(3, ProducerState { epoch: 8, batches: VecDeque::new() });
        assert_eq!(Producers::decode(&producers.encode()).unwrap(), producers);
    }

    #[test]
    fn a_snapshot_brings_back_all_five() {
        let producers = filled();
        let bytes = producers.encode();
        assert_eq!(Producers::decode(&bytes).unwrap(), producers);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 4;
            assert!(Producers::decode(&changed).is_err(), "byte {at}");
            assert!(Producers::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }
}
