//! A partition's log on disk, as the replicas' engine uses it.

use std::sync::Arc;

use bytes::Bytes;

use super::tail::Tail;
use crate::log::batch::{BatchHeader, HEADER_BYTES, TimestampType};
use crate::log::{self, AppendInfo, Fetched, LogError};
use crate::process::Clock;
use crate::replication::EpochHistory;
use crate::storage::replicas::{self, Read};
use crate::types::{LeaderEpoch, Offset, WallTime};

/// A log's error, which goes to whoever asked and to who decides about the replica.
#[derive(Clone, Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct Failure(Arc<LogError>);

impl Failure {
    pub(super) fn error(&self) -> &LogError {
        &self.0
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        Self(Arc::new(error))
    }
}

impl PartialEq for Failure {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

#[derive(Debug)]
pub(super) struct PartitionLog {
    pub(super) log: log::Log,
    /// What is appended counts as on the disk at once: the topic's `flush` says so.
    pub(super) is_relaxed: bool,
    pub(super) clock: Clock,
    pub(super) tail: Tail,
}

impl PartitionLog {
    /// Keeps what was just appended, unless the leader has changed more of it than where it stands.
    fn keep(&mut self, batch: &Bytes, epoch: LeaderEpoch, appended: &AppendInfo) {
        let is_as_sent = self.log.config().timestamp_type == TimestampType::CreateTime && !appended.duplicate;
        let header = BatchHeader::parse(batch).ok().filter(|_| is_as_sent);
        let (Some(mut header), Ok(epoch)) = (header, i32::try_from(epoch.0)) else { return };
        (header.base_offset, header.leader_epoch) = (appended.base_offset, epoch);
        let written = Bytes::copy_from_slice(&header.encode());
        self.tail.push(appended.base_offset, appended.end, [written, batch.slice(HEADER_BYTES..)]);
    }
}

impl replicas::Log for PartitionLog {
    type Error = Failure;

    fn start(&self) -> Offset {
        self.log.start()
    }

    fn end(&self) -> Offset {
        self.log.end()
    }

    fn epochs(&self) -> &EpochHistory {
        self.log.epochs()
    }

    fn begin_epoch(&mut self, epoch: LeaderEpoch) -> Result<(), Failure> {
        self.log.begin_epoch(epoch);
        Ok(())
    }

    fn append(&mut self, batch: Bytes, epoch: LeaderEpoch, now: WallTime) -> Result<Offset, Failure> {
        let appended = self.log.append(&batch, epoch, millis(now))?;
        self.keep(&batch, epoch, &appended);
        Ok(appended.base_offset)
    }

    fn copy(&mut self, batches: Bytes) -> Result<(), Failure> {
        self.tail.clear();
        self.log.append_as_follower(&batches, millis(self.clock.wall()))?;
        Ok(())
    }

    fn read(&self, from: Offset, max_bytes: usize) -> Result<Read, Failure> {
        if let Some(read) = self.tail.read(from, max_bytes) {
            return Ok(read);
        }
        let Fetched { batches, next_offset } = self.log.read(from, max_bytes, self.log.end())?;
        Ok(Read { pieces: std::iter::once(batches).collect(), end: next_offset })
    }

    fn committed(&mut self, to: Offset) {
        self.tail.forget_below(to);
    }

    fn truncate_to(&mut self, end: Offset) -> Result<(), Failure> {
        self.tail.clear();
        self.log.truncate_to(end, millis(self.clock.wall()))?;
        Ok(())
    }

    fn restart_at(&mut self, start: Offset) -> Result<(), Failure> {
        self.tail.clear();
        Ok(self.log.reset_to(start)?)
    }

    fn delete_before(&mut self, start: Offset) -> Result<(), Failure> {
        self.log.delete_before(start)?;
        Ok(())
    }
}

/// Milliseconds since 1970.
pub(super) fn millis(time: WallTime) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::tail::Room;
    use super::*;
    use crate::disk::RealDisk;
    use crate::log::batch::{BatchBuilder, Compression};
    use crate::log::{LogConfig, LogDirectory, TopicPartition};
    use crate::storage::replicas::Log as _;
    use crate::types::{TopicId, TopicName};

    fn open(directory: &LogDirectory, timestamp_type: TimestampType) -> PartitionLog {
        let id = TopicPartition { topic: TopicName::new("orders").unwrap(), partition: 0 };
        let config = LogConfig { timestamp_type, ..LogConfig::default() };
        let log = directory.open_log(id, TopicId(Uuid::from_u128(1)), config, 0).unwrap();
        PartitionLog { log, is_relaxed: false, clock: Clock::start(), tail: Tail::new(Room::default()) }
    }

    fn batch(records: usize) -> Bytes {
        let mut builder = BatchBuilder::new(Compression::None);
        for number in 0..records {
            builder.push(1_000, None, Some(&[number as u8; 100]), &[]);
        }
        builder.build().unwrap()
    }

    #[test]
    fn what_is_sent_from_memory_is_what_is_on_the_disk() {
        for (timestamp_type, kept) in [(TimestampType::CreateTime, true), (TimestampType::LogAppendTime, false)] {
            let folder = tempfile::tempdir().unwrap();
            let directory = LogDirectory::open(folder.path().into(), Arc::new(RealDisk), 16).unwrap();
            let mut log = open(&directory, timestamp_type);
            for (records, epoch) in [(1, 0), (3, 0), (2, 7), (5, 7)] {
                log.append(batch(records), LeaderEpoch(epoch), WallTime(5_000)).unwrap();
            }
            assert_eq!(log.tail.read(Offset(0), 1).is_some(), kept);
            for (from, max_bytes) in
                (0..11).flat_map(|from| [1, 700, 1_000, 1 << 20].map(|bytes| (Offset(from), bytes)))
            {
                let Read { pieces, end } = log.read(from, max_bytes).unwrap();
                let stored = log.log.read(from, max_bytes, log.log.end()).unwrap();
                assert_eq!((pieces.concat(), end), (stored.batches.to_vec(), stored.next_offset), "{from} {max_bytes}");
            }
            log.truncate_to(Offset(4)).unwrap();
            assert!(log.tail.read(Offset(0), 1).is_none(), "it was cut");
        }
    }
}
