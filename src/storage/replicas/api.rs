//! What goes into the replicas' engine and what comes out of it.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::replication::{AckError, EpochHistory};
use crate::storage::core::{Assignment, Call, CallError, InSyncOutcome, InSyncWish, Member, Peer, Place, Token};
use crate::types::{LeaderEpoch, Offset, StorageId, WallTime};

/// One replica's log as the engine needs it: what is written is readable at once, and on the disk after a flush.
pub trait Log {
    type Error: std::error::Error + Clone + PartialEq;

    /// The first offset that it still has.
    fn start(&self) -> Offset;
    /// The offset behind its last record.
    fn end(&self) -> Offset;
    fn epochs(&self) -> &EpochHistory;
    /// This replica leads from here on.
    fn begin_epoch(&mut self, epoch: LeaderEpoch) -> Result<(), Self::Error>;
    /// Appends a client's batch under the leader's epoch, and gives its records their offsets: that of the first.
    fn append(&mut self, batch: Bytes, epoch: LeaderEpoch, now: WallTime) -> Result<Offset, Self::Error>;
    /// Appends batches as the leader has them. Either all, or none.
    fn copy(&mut self, batches: Bytes) -> Result<(), Self::Error>;
    /// Whole batches, the first of which holds `from`: up to `max_bytes`, but always one if there is one.
    fn read(&self, from: Offset, max_bytes: usize) -> Result<Read, Self::Error>;
    /// Everything below is on the disk of all in-sync replicas: who still lacks it is behind.
    fn committed(&mut self, _to: Offset) {}
    fn truncate_to(&mut self, end: Offset) -> Result<(), Self::Error>;
    /// Drops everything and begins anew at `start`.
    fn restart_at(&mut self, start: Offset) -> Result<(), Self::Error>;
    /// Deletes what lies wholly before `start`.
    fn delete_before(&mut self, start: Offset) -> Result<(), Self::Error>;
}

/// Batches of a log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Read {
    /// In the pieces in which they are in memory: one after the other they are the batches.
    pub pieces: SmallVec<[Bytes; 4]>,
    /// The offset behind them.
    pub end: Offset,
}

impl Read {
    pub fn bytes(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// How long a leader keeps a poll that it has nothing to say to.
    pub poll_wait: Duration,
    /// How much longer than that its answer is waited for.
    pub poll_timeout: Duration,
    /// How long a follower waits after a poll that failed, or a partition that was refused.
    pub retry: Duration,
    /// The most bytes of records in one answer.
    pub answer_max_bytes: usize,
    /// The most bytes in one poll or answer, all in all, but for an answer of a single batch.
    pub message_max_bytes: usize,
    /// After an answer with as many bytes of records, a follower asks for the next ones although these are not on its disk yet,
    pub ahead_min_bytes: usize,
    /// but not before this time has passed: a poll that says what is on the disk costs no more than one that does not.
    pub ahead_after: Duration,
    /// How many answers may be ahead of the disk.
    pub ahead_max: u32,
    /// Kafka's `replica.lag.time.max.ms`.
    pub lag_max: Duration,
    /// How often lagging followers are looked for.
    pub lag_check: Duration,
    /// The most partitions of one request for in-sync replicas.
    pub isr_batch: usize,
    /// The most bytes in a second to followers that are not in sync, all together. None: without limit.
    pub catch_up_rate: Option<NonZeroU64>,
    /// The most appends of one partition that may wait for their acknowledgement.
    pub waiting_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            poll_wait: Duration::from_millis(500),
            poll_timeout: Duration::from_secs(2),
            retry: Duration::from_millis(50),
            answer_max_bytes: 900 << 10,
            message_max_bytes: 960 << 10,
            ahead_min_bytes: 32 << 10,
            ahead_after: Duration::from_millis(3),
            ahead_max: 4,
            lag_max: Duration::from_secs(10),
            lag_check: Duration::from_millis(500),
            isr_batch: 1_000,
            catch_up_rate: None,
            waiting_max: 4_096,
        }
    }
}

/// A log's end at some moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogEnd {
    pub place: Place,
    pub end: Offset,
    /// Rises whenever the log is cut off: a flush from before says nothing of what was written since.
    pub generation: u64,
}

/// When an append is acknowledged (Kafka's `acks`; 0 asks for nothing and waits for nothing).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acks {
    /// On the leader's disk.
    Leader,
    /// On the disk of every in-sync replica.
    All,
}

/// A client's batch.
#[derive(Clone, Debug)]
pub struct Append {
    pub place: Place,
    pub batch: Bytes,
    /// None: nobody waits.
    pub acks: Option<Acks>,
    pub token: Token,
    pub now: WallTime,
}

#[derive(Clone, Debug)]
pub enum Input<L> {
    /// This incarnation is registered.
    Member(Member),
    /// All storage nodes, as they are now.
    Peers(BTreeMap<StorageId, Peer>),
    /// This node holds a replica, whose log is open now, or its assignment changed (no log).
    Assigned {
        place: Place,
        assignment: Assignment,
        log: Option<L>,
    },
    /// It holds it no longer.
    Unassigned(Place),
    /// It holds it, and its log is closed: its leader, which is another node, is told not to wait for it, until it says that it does
    /// not ([`Effect::Left`]).
    Declined {
        place: Place,
        leader: StorageId,
    },
    /// Whether it may serve what it leads.
    MayLead(bool),
    Disconnected,
    /// A message on `dmq.replica.<this node>`.
    Poll {
        payload: Bytes,
        token: Token,
    },
    /// The answer to [`Effect::Poll`].
    PollAnswer {
        call: Call,
        result: Result<Bytes, CallError>,
    },
    Append(Append),
    /// The answer to [`Effect::Flush`]: each log is on the disk up to here.
    Flushed(Vec<LogEnd>),
    /// The answer to [`Effect::AskInSync`], of one of its partitions.
    InSyncAnswer(InSyncOutcome),
    /// Time has passed.
    Tick,
}

/// Why a client's batch is not acknowledged.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AppendError<E> {
    #[error("this node does not lead the partition, or no longer: whether the records stay is not known")]
    NotLeader,
    #[error("{0} appends wait for their acknowledgement already")]
    Busy(usize),
    #[error(transparent)]
    Acks(AckError),
    #[error(transparent)]
    Log(E),
}

#[derive(Clone, PartialEq, Debug)]
pub enum Effect<E> {
    /// Send this to `dmq.replica.<to>`, and say [`Input::PollAnswer`] when its answer comes, or none within `timeout`.
    Poll { call: Call, to: StorageId, message: Bytes, timeout: Duration },
    /// Answer a poll.
    Answer { token: Token, message: Bytes },
    /// Bring these logs to the disk, then say [`Input::Flushed`]. Any number may be under way.
    Flush(Vec<LogEnd>),
    /// The client's records begin at this offset, and are as safe as it asked for.
    Acknowledge { token: Token, result: Result<Offset, AppendError<E>> },
    /// Nobody waits for these records, and they were not written.
    Dropped { place: Place, error: AppendError<E> },
    /// Ask the controller.
    AskInSync(Vec<InSyncWish>),
    /// This node leads the partition from here on, as far as its metadata goes.
    Leads { place: Place, leader_epoch: LeaderEpoch },
    /// It leads it no longer.
    LeadsNoMore(Place),
    /// What was declined is out of sync by its leader in this epoch, and stays so until it is followed again.
    Left { place: Place, leader_epoch: LeaderEpoch },
    /// A follower asked for records that cannot be read. The replica goes on.
    Unreadable { place: Place, error: E },
    /// A log cannot be written or read: the replica neither leads nor follows, and is to be given up ([`Input::Unassigned`]).
    Failed { place: Place, error: E },
}
