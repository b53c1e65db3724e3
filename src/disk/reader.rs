//! Reading the stored metadata while it is being written: what a controller serves its storage nodes from.
//!
//! Readers see only what is synced, open files of their own, and never wait for the disk's writer: the lock that they
//! share with it is held for memory alone and for opening files.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::codec::{FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FrameHeader, StoredChange};
use super::error::StoreError;
use super::files::{Disk, Window, read_full};
use super::segment::{Next, Segment, decode_all, next_frame};
use super::snapshot::SnapshotInfo;
use crate::types::{ControllerEpoch, Position, Version};

/// What the store and its readers share.
pub(super) struct Shared {
    pub disk: Arc<dyn Disk>,
    pub dir: PathBuf,
    state: Mutex<State>,
}

/// What is durable. Changed only after the disk has it.
pub(super) struct State {
    /// Without gaps, oldest first, never empty.
    pub segments: Vec<Segment>,
    pub position: Position,
    pub controller_epoch: ControllerEpoch,
    pub snapshot: Option<SnapshotInfo>,
}

impl Shared {
    pub fn new(disk: Arc<dyn Disk>, dir: PathBuf, state: State) -> Self {
        Self { disk, dir, state: Mutex::new(state) }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is a few assignments that cannot panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads what a [`MetadataStore`](super::MetadataStore) has stored, beside it and on any thread.
#[derive(Clone)]
pub struct MetadataReader {
    pub(super) shared: Arc<Shared>,
}

/// A piece of a snapshot's body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotChunk {
    /// Empty at the end.
    pub bytes: Bytes,
    pub info: SnapshotInfo,
}

impl MetadataReader {
    /// Where the stored history stands.
    pub fn position(&self) -> Position {
        self.shared.lock().position
    }

    /// The highest controller epoch of anything stored.
    pub fn controller_epoch(&self) -> ControllerEpoch {
        self.shared.lock().controller_epoch
    }

    /// The snapshot in place.
    pub fn snapshot(&self) -> Option<SnapshotInfo> {
        self.shared.lock().snapshot
    }

    /// The changes after a version, up to what is stored now. `None` where the log begins later (the snapshot is to be
    /// taken first) or has not come so far.
    ///
    /// The files are opened here, so that a snapshot that replaces them later does not disturb the reading.
    pub fn read_from(&self, version: Version) -> Result<Option<Changes>, StoreError> {
        let state = self.shared.lock();
        let first = state.segments.iter().rposition(|segment| segment.base.version <= version);
        let Some(first) = first.filter(|_| version <= state.position.version) else { return Ok(None) };
        let mut files = VecDeque::new();
        for segment in &state.segments[first..] {
            if segment.is_empty() {
                continue;
            }
            let file = self.shared.disk.open(&segment.path).map_err(StoreError::io("open", &segment.path))?;
            files.push_back(OpenSegment {
                window: Window::new(file, segment.durable_bytes),
                offset: if files.is_empty() { segment.offset_for(version) } else { FILE_HEADER_BYTES as u64 },
                path: segment.path.clone(),
            });
        }
        Ok(Some(Changes { files, last: None, ready: VecDeque::new(), after: version }))
    }

    /// Whether the stored history goes through this very position. Of what a snapshot has replaced, nobody knows: false.
    pub fn holds(&self, position: Position) -> Result<bool, StoreError> {
        let from = {
            let state = self.shared.lock();
            let known = [Some(state.position), state.snapshot.map(|snapshot| snapshot.position)].into_iter().flatten();
            let mut known = known.chain(state.segments.iter().map(|segment| segment.base));
            if let Some(found) = known.find(|known| known.version == position.version) {
                return Ok(found == position);
            }
            Version(position.version.0.saturating_sub(1))
        };
        let Some(mut changes) = self.read_from(from)? else { return Ok(false) };
        Ok(changes.next().transpose()?.is_some_and(|change| change.position == position))
    }

    /// A piece of the snapshot of this position, of at most `max_bytes`. `None` where another one is in place by now: the
    /// client begins anew with that.
    pub fn snapshot_chunk(
        &self,
        position: Position,
        offset: u64,
        max_bytes: usize,
    ) -> Result<Option<SnapshotChunk>, StoreError> {
        let info = self.snapshot().filter(|info| info.position == position);
        let Some(info) = info else { return Ok(None) };
        let path = info.path_in(&self.shared.dir);
        let file = match self.shared.disk.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Io { action: "open", path, source }),
        };
        let len = info.body_bytes.saturating_sub(offset).min(max_bytes as u64) as usize;
        let mut bytes = vec![0; len];
        let read = read_full(&*file, (FILE_HEADER_BYTES as u64).saturating_add(offset), &mut bytes)
            .map_err(StoreError::io("read", &path))?;
        if read < len {
            return Err(StoreError::damaged(&path, offset + read as u64, "the snapshot is cut short"));
        }
        Ok(Some(SnapshotChunk { bytes: bytes.into(), info }))
    }
}

struct OpenSegment {
    window: Window,
    offset: u64,
    path: PathBuf,
}

/// Stored changes in order, read as they are asked for: one append's at a time is in memory.
///
/// After an error there are no more.
pub struct Changes {
    files: VecDeque<OpenSegment>,
    /// The version that the next frame must follow, once a frame was read.
    last: Option<Version>,
    ready: VecDeque<StoredChange>,
    after: Version,
}

impl Changes {
    fn fill(&mut self) -> Result<(), StoreError> {
        while self.ready.is_empty() {
            let Some(open) = self.files.front_mut() else { return Ok(()) };
            let before = match self.last {
                Some(version) => version,
                None => first_before(open)?,
            };
            match next_frame(&mut open.window, &open.path, open.offset, before)? {
                Next::End => {
                    self.files.pop_front();
                }
                Next::Torn => return Err(damaged(&open.path, open.offset)),
                Next::Frame(frame, payload) => {
                    let at = open.offset;
                    open.offset = frame.end();
                    self.last = Some(frame.after.version);
                    if frame.after.version > self.after {
                        let changes = decode_all(payload).ok_or_else(|| damaged(&open.path, at))?;
                        self.ready.extend(changes.into_iter().filter(|change| change.position.version > self.after));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The version before the frame that reading begins with.
fn first_before(open: &mut OpenSegment) -> Result<Version, StoreError> {
    let bytes = open.window.get(open.offset, FRAME_HEADER_BYTES).map_err(StoreError::io("read", &open.path))?;
    let header = bytes.and_then(|bytes| FrameHeader::decode(bytes, open.offset));
    header.map(|header| header.before).ok_or_else(|| damaged(&open.path, open.offset))
}

fn damaged(path: &Path, offset: u64) -> StoreError {
    StoreError::damaged(path, offset, "an entry that was stored cannot be read back")
}

impl Iterator for Changes {
    type Item = Result<StoredChange, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.fill() {
            Ok(()) => self.ready.pop_front().map(Ok),
            Err(error) => {
                self.files.clear();
                Some(Err(error))
            }
        }
    }
}
