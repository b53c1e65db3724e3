//! The thread that alone writes this controller's disk: one job after the other, changes that wait together in one sync.
//!
//! What it has to say is a state, not messages: it never waits for whoever hears it, so the two cannot wait for each other.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::disk::{DataDirectory, FinishedSnapshot, MetadataReader, MetadataStore, StoreError, StoredChange};
use crate::metadata::{Change, Image, SnapshotError, write_snapshot};
use crate::types::{ClusterId, ControllerId, Position};

pub(super) enum Job {
    Persist(Arc<Change>),
    Skip(Position),
    Install {
        image: Box<Image>,
        position: Position,
    },
    Bind {
        cluster: ClusterId,
        id: ControllerId,
    },
    /// Begin the stored history anew with this image, so that the next start reads less.
    Compact {
        image: Box<Image>,
        position: Position,
    },
    /// What a thread of its own wrote for `Compact`.
    Compacted(Result<FinishedSnapshot, String>),
}

/// How the disk stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct DiskState {
    pub(super) position: Position,
    /// The log has become long, beside the snapshot that it follows.
    pub(super) is_long: bool,
    /// How many compactions have ended, well or not.
    pub(super) compactions: u64,
    /// Why nothing is written any more.
    pub(super) failed: Option<String>,
}

pub(super) struct Disk {
    pub(super) jobs: mpsc::Sender<Job>,
    pub(super) state: watch::Receiver<DiskState>,
    pub(super) reader: MetadataReader,
    pub(super) thread: JoinHandle<()>,
}

/// How many jobs may wait.
const WAITING: usize = 4_096;
/// So long a small change waits for others before it is synced. Nobody waits for this disk: what is stored in the stream is
/// durable, and the storage nodes, which may share the disk, have their turn first.
const GATHER: Duration = Duration::from_millis(2);
/// More than this is written at once: it is too large for a push, and is fetched from here.
const GATHER_BYTES: usize = 64 << 10;
/// One append's worth.
const BATCH_CHANGES: usize = 512;
const BATCH_BYTES: usize = 4 << 20;
/// Below this a log is not worth a snapshot.
const COMPACT_MIN_BYTES: u64 = 64 << 20;

/// Starts the thread. It ends when the sender of jobs is gone, and with it the directory's lock.
pub(super) fn start(directory: DataDirectory, store: MetadataStore) -> io::Result<Disk> {
    let (jobs, receiver) = mpsc::channel(WAITING);
    let (sender, state) =
        watch::channel(DiskState { position: store.position(), is_long: false, compactions: 0, failed: None });
    let reader = store.reader();
    let own = jobs.downgrade();
    let worker = Worker { directory, store, own, state: sender, waiting: VecDeque::new() };
    let thread = std::thread::Builder::new().name("dmq-metadata".into()).spawn(move || worker.work(receiver))?;
    Ok(Disk { jobs, state, reader, thread })
}

struct Worker {
    directory: DataDirectory,
    store: MetadataStore,
    own: mpsc::WeakSender<Job>,
    state: watch::Sender<DiskState>,
    /// Taken from the channel while a batch was gathered.
    waiting: VecDeque<Job>,
}

impl Worker {
    fn work(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(job) = self.waiting.pop_front().or_else(|| jobs.blocking_recv()) {
            if self.state.borrow().failed.is_some() {
                continue;
            }
            let done = match job {
                Job::Persist(change) => self.persist(to_stored(&change), &mut jobs),
                Job::Skip(position) => {
                    let skip = self.skip(position);
                    self.persist(skip, &mut jobs)
                }
                Job::Install { image, position } => self.install(&image, position).map_err(|error| error.to_string()),
                Job::Bind { cluster, id } => self.directory.bind(cluster, id.0).map_err(|error| error.to_string()),
                Job::Compact { image, position } => {
                    if let Err(error) = self.compact(image, position) {
                        self.compacted(Err(error));
                    }
                    Ok(())
                }
                Job::Compacted(written) => {
                    self.compacted(written);
                    Ok(())
                }
            };
            let (position, is_long) = (self.store.position(), self.is_long());
            self.state.send_if_modified(|state| {
                let before = state.clone();
                state.position = position;
                state.is_long = is_long;
                state.failed = done.err();
                *state != before
            });
        }
    }

    fn is_long(&self) -> bool {
        let snapshot = self.store.snapshot().map_or(0, |info| info.body_bytes);
        self.store.log_bytes() > COMPACT_MIN_BYTES.max(snapshot.saturating_mul(4))
    }

    fn skip(&self, position: Position) -> StoredChange {
        StoredChange { position, controller_epoch: self.store.controller_epoch(), messages: Vec::new() }
    }

    /// Appends this change and those that wait behind it.
    fn persist(&mut self, first: StoredChange, jobs: &mut mpsc::Receiver<Job>) -> Result<(), String> {
        let mut bytes = size(&first);
        if bytes < GATHER_BYTES {
            std::thread::sleep(GATHER);
        }
        let mut batch = vec![first];
        while batch.len() < BATCH_CHANGES && bytes < BATCH_BYTES {
            let next = match self.waiting.pop_front().or_else(|| jobs.try_recv().ok()) {
                Some(Job::Persist(change)) => to_stored(&change),
                Some(Job::Skip(position)) => self.skip(position),
                Some(other) => {
                    self.waiting.push_front(other);
                    break;
                }
                None => break,
            };
            bytes += size(&next);
            // Of versions that changed nothing, the last says all.
            let is_skip = next.messages.is_empty();
            match batch.last_mut() {
                Some(last) if is_skip && last.messages.is_empty() => *last = next,
                Some(_) | None => batch.push(next),
            }
        }
        // After a snapshot that went beyond them, some may be covered already.
        let stored = self.store.position().version;
        batch.retain(|change| change.position.version > stored);
        self.store.append(&batch).map_err(|error| error.to_string())
    }

    fn install(&mut self, image: &Image, position: Position) -> Result<(), StoreError> {
        let epoch = image.controller_epoch();
        self.store.install_snapshot(position, epoch, |writer| write_snapshot(image, position, writer).map_err(to_io))
    }

    fn compact(&mut self, image: Box<Image>, position: Position) -> Result<(), String> {
        if self.store.position() != position {
            return Err("the disk has moved on".into());
        }
        self.store.roll().map_err(|error| error.to_string())?;
        let epoch = self.store.controller_epoch();
        let mut writer = self.store.snapshot_writer(position, epoch).map_err(|error| error.to_string())?;
        let own = self.own.upgrade().ok_or("the controller ends")?;
        let write = move || {
            let written = write_snapshot(&image, position, &mut writer).map_err(|error| error.to_string());
            let finished = written.and_then(|()| writer.finish().map_err(|error| error.to_string()));
            // Where the worker is gone, the file goes too.
            let _ = own.blocking_send(Job::Compacted(finished));
        };
        let thread = std::thread::Builder::new().name("dmq-compaction".into());
        thread.spawn(write).map(drop).map_err(|error| error.to_string())
    }

    fn compacted(&mut self, written: Result<FinishedSnapshot, String>) {
        let installed = written.and_then(|finished| self.store.install(finished).map_err(|error| error.to_string()));
        match installed {
            Ok(()) => tracing::debug!("the metadata on this controller's disk was compacted"),
            Err(error) => tracing::info!(error, "the metadata on this controller's disk was not compacted"),
        }
        self.state.send_modify(|state| state.compactions += 1);
    }
}

fn to_stored(change: &Change) -> StoredChange {
    StoredChange {
        position: change.position,
        controller_epoch: change.controller_epoch,
        messages: change.messages.iter().map(|message| (message.version, message.payload.clone())).collect(),
    }
}

fn size(change: &StoredChange) -> usize {
    change.messages.iter().map(|(_, payload)| payload.len()).sum()
}

pub(super) fn to_io(error: SnapshotError) -> io::Error {
    match error {
        SnapshotError::Io(error) => error,
        error @ (SnapshotError::Malformed { .. } | SnapshotError::UnknownType(_) | SnapshotError::Truncated) => {
            io::Error::other(error.to_string())
        }
    }
}
