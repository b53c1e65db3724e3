//! A partition's log on disk, as the replicas' engine uses it.

use std::sync::Arc;

use bytes::Bytes;

use crate::log::{self, LogError};
use crate::process::Clock;
use crate::replication::EpochHistory;
use crate::storage::replicas;
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
        Ok(self.log.append(&batch, epoch, millis(now))?.base_offset)
    }

    fn copy(&mut self, batches: Bytes) -> Result<(), Failure> {
        self.log.append_as_follower(&batches, millis(self.clock.wall()))?;
        Ok(())
    }

    fn read(&self, from: Offset, max_bytes: usize) -> Result<Bytes, Failure> {
        Ok(self.log.read(from, max_bytes, self.log.end())?.batches)
    }

    fn truncate_to(&mut self, end: Offset) -> Result<(), Failure> {
        self.log.truncate_to(end, millis(self.clock.wall()))?;
        Ok(())
    }

    fn restart_at(&mut self, start: Offset) -> Result<(), Failure> {
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
