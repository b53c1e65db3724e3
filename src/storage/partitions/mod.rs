//! The partitions of a node: their logs on disk, their replication, and clients' requests, on a thread of their own.
//!
//! The thread owns the replicas' engine and all logs, so nothing is locked: whatever concerns a partition comes as a
//! [`Command`], and the order in which commands come is the order in which they count. Syncing is another thread's work. What
//! waits is bounded in number (the channels) and in bytes (`budget`).

mod answer;
mod assign;
mod coordinator;
mod data;
mod faults;
mod fetches;
mod flush;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod groups;
mod log;
mod request;
mod serve;
mod tail;
mod upkeep;
mod worker;

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{Client, Subject};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use super::core::{Assignment, Call, CallError, InSyncOutcome, Member, Peer, Place, Unassigned};
use super::shell::Event;
use super::subjects::Subjects;
use crate::log::{LogConfig, LogDirectoryError, LogError, TopicPartition};
use crate::process::Clock;
use crate::types::{Monotonic, StorageId};
pub(super) use answer::error_answer;
use coordinator::Loaded;
pub(super) use faults::{Vitals, Whose};
use fetches::Fetch;
pub(super) use groups::check_group;
use request::Request;
pub(super) use request::{header_of, produce_timeout};

/// How many commands may wait.
const COMMANDS: usize = 4096;
/// How many bytes of clients' records may wait to be appended, in KiB.
const BUDGET_KIB: usize = 64 << 10;

/// A replica that this node holds.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) place: Place,
    pub(super) id: TopicPartition,
    pub(super) config: LogConfig,
    /// The topic's `flush` lets acknowledged records be lost with the power.
    pub(super) is_relaxed: bool,
    pub(super) assignment: Assignment,
}

pub(in crate::storage) enum Command {
    Member(Member),
    Peers(BTreeMap<StorageId, Peer>),
    Replicas {
        assigned: Vec<Held>,
        unassigned: Vec<Unassigned>,
    },
    MayLead(bool),
    Disconnected,
    SubjectsChanged,
    /// How many partitions the offsets topic has.
    OffsetsPartitions(u32),
    InSyncAnswers(Vec<InSyncOutcome>),
    /// A follower's poll, which can be read.
    Poll {
        payload: Bytes,
        reply: Subject,
    },
    PollAnswer {
        call: Call,
        result: Result<Bytes, CallError>,
    },
    /// A client's request, with its part of the budget.
    Data {
        place: Place,
        request: Request,
        reply: Option<Subject>,
        _permit: Option<OwnedSemaphorePermit>,
    },
    /// A fetch met records that cannot be read.
    Unreadable {
        place: Place,
        error: LogError,
    },
    /// A fetch that found too little, or a log that was cut meanwhile: it is looked at again.
    Fetch(Fetch),
    /// A piece of the groups' offsets was read.
    Loaded(Loaded),
    /// The process ends: make everything durable, then say so.
    Stop(oneshot::Sender<()>),
}

/// Until when the node may serve what it leads. Read before anything is said to anybody, so that a lease ends although commands
/// wait, or whoever gives them stands still.
#[derive(Clone, Default)]
pub(super) struct Lease(Arc<AtomicU64>);

impl Lease {
    pub(super) fn set(&self, until: Option<Monotonic>) {
        self.0.store(until.map_or(0, |until| until.0), Ordering::Release);
    }

    fn holds(&self, clock: Clock) -> bool {
        clock.monotonic().0 < self.0.load(Ordering::Acquire)
    }
}

/// How a node keeps records.
#[derive(Clone, Debug)]
pub struct RecordSettings {
    /// The most bytes in a second to followers that are not in sync, all together. None: without limit.
    pub catch_up_rate: Option<NonZeroU64>,
    /// How many bytes of the records that were written last stay in the operating system's page cache. None: it decides.
    pub page_cache: Option<NonZeroU64>,
    /// How long directories of topics are kept that the metadata does not know any more.
    pub stray_retention: Duration,
}

impl Default for RecordSettings {
    fn default() -> Self {
        Self { catch_up_rate: None, page_cache: None, stray_retention: Duration::from_secs(7 * 24 * 3_600) }
    }
}

pub(super) struct Options {
    /// Where the partitions' directories are.
    pub(super) directory: PathBuf,
    pub(super) records: RecordSettings,
    pub(super) client: Client,
    pub(super) subjects: watch::Receiver<Arc<dyn Subjects>>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) clock: Clock,
    pub(super) lease: Lease,
    pub(super) vitals: Vitals,
}

/// Opens the directory, and starts the thread, which ends once the sender is dropped. It blocks.
pub(super) fn start(options: Options, runtime: tokio::runtime::Handle) -> Result<mpsc::Sender<Command>, StartError> {
    let (commands, incoming) = mpsc::channel(COMMANDS);
    worker::start(options, runtime, commands.downgrade(), incoming)?;
    Ok(commands)
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Directory(#[from] LogDirectoryError),
    #[error("cannot start a thread for the partitions: {0}")]
    Thread(#[from] std::io::Error),
}
