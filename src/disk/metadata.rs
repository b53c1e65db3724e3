//! The applied metadata on a node's own disk: one snapshot, and a log of the changes after it.
//!
//! What [`MetadataStore::append`] answered `Ok` for survives a crash, whole. What it answered an error for is not
//! believed later, except that after a failed sync only the next start can tell, so that the store takes no more writes.
//! It never knows what a change means.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use super::codec::{FRAME_HEADER_BYTES, FRAME_LIMIT, FileHeader, FrameHeader, StoredChange, encode_frame};
use super::error::StoreError;
use super::files::{Disk, RealDisk, WriteFile, publish};
use super::reader::{Changes, MetadataReader, Shared, SnapshotChunk};
use super::recovery;
use super::segment::{self, NewSegment};
use super::snapshot::{self, FinishedSnapshot, SnapshotInfo, SnapshotReader, SnapshotWriter};
use crate::types::{ControllerEpoch, Position, Version};

const FRAME_KEPT_BYTES: usize = 64 * 1024;

/// The one writer of a folder of metadata. The lock of the data directory keeps others out.
pub struct MetadataStore {
    shared: Arc<Shared>,
    /// The last segment, at whose end the next append is written.
    active: Box<dyn WriteFile>,
    /// Kept from append to append, unless one was large.
    frame: Vec<u8>,
    /// Why no more writes are taken.
    poisoned: Option<String>,
    snapshots_begun: u64,
}

/// What the disk held when the store was opened.
pub struct Recovered {
    /// The state to begin from, if not the empty one.
    pub snapshot: Option<SnapshotReader>,
    /// The changes after the snapshot, read as they are asked for.
    pub entries: Changes,
    /// Where the history stands after those changes.
    pub position: Position,
    /// The highest controller epoch of anything stored: it never goes back.
    pub controller_epoch: ControllerEpoch,
    /// How much an append left that a crash cut short. It was never acknowledged.
    pub torn_bytes_cut: u64,
}

impl MetadataStore {
    /// Opens a folder of metadata on the real disk, and makes it where it is missing.
    pub fn open(dir: &Path) -> Result<(Self, Recovered), StoreError> {
        Self::open_on(Arc::new(RealDisk), dir)
    }

    /// Opens a folder of metadata on any disk. All of it is read and verified.
    pub fn open_on(disk: Arc<dyn Disk>, dir: &Path) -> Result<(Self, Recovered), StoreError> {
        let opened = recovery::open(disk, dir)?;
        let (active, torn_bytes_cut) = (opened.active, opened.torn_bytes_cut);
        let store = Self { shared: opened.shared, active, frame: Vec::new(), poisoned: None, snapshots_begun: 0 };
        let info = store.snapshot();
        let snapshot = info.map(|info| snapshot::open(&*store.shared.disk, dir, info)).transpose()?;
        let from = info.map_or(Version::ZERO, |info| info.position.version);
        let entries = store.read_from(from)?.ok_or_else(|| StoreError::Broken {
            dir: dir.to_owned(),
            what: format!("no entries log begins at or before version {from}"),
        })?;
        let (position, controller_epoch) = (store.position(), store.controller_epoch());
        Ok((store, Recovered { snapshot, entries, position, controller_epoch, torn_bytes_cut }))
    }

    /// Stores changes that follow the stored ones, with one write and one sync: all of them, or after an error none.
    ///
    /// Changes of one call are later read together, so keep a call to a few megabytes. After an error the store is
    /// usable, and the same changes may be given again, unless [`Self::is_poisoned`].
    pub fn append(&mut self, changes: &[StoredChange]) -> Result<(), StoreError> {
        self.check_usable()?;
        let (before, offset, path) = {
            let state = self.shared.lock();
            let segment = last_segment(&state.segments);
            (state.position.version, segment.durable_bytes, segment.path.clone())
        };
        let Some(last) = changes.last() else { return Ok(()) };
        let mut current = before;
        for change in changes {
            if change.position.version <= current {
                return Err(StoreError::OutOfOrder { given: change.position.version, current });
            }
            current = change.position.version;
        }
        encode_frame(&mut self.frame, offset, before, changes)
            .map_err(|bytes| StoreError::TooLarge { bytes, limit: FRAME_LIMIT })?;
        let header = FrameHeader::decode(&self.frame[..FRAME_HEADER_BYTES], offset)
            .expect("a frame that was just encoded begins with a header for its place");

        if let Err(source) = self.active.append(&self.frame) {
            let error = StoreError::Io { action: "append to", path, source };
            // Durably, or a crash could bring the cut bytes back under a segment that was left behind meanwhile.
            if let Err(second) = self.active.truncate(offset).and_then(|()| self.active.sync()) {
                self.poison(format!("{error}; and then its beginning could not be taken back: {second}"));
            }
            return Err(error);
        }
        if let Err(source) = self.active.sync() {
            let error = StoreError::Io { action: "sync", path, source };
            // The kernel may show bytes that the disk never got, and call them clean. Take them out of the next start's
            // sight as far as that is possible.
            let _ = self.active.truncate(offset);
            self.poison(error.to_string());
            return Err(error);
        }

        let mut state = self.shared.lock();
        if let Some(segment) = state.segments.last_mut() {
            segment.extend(&header);
        }
        state.position = last.position;
        state.controller_epoch = state.controller_epoch.max(header.controller_epoch);
        drop(state);
        self.frame.clear();
        self.frame.shrink_to(FRAME_KEPT_BYTES);
        Ok(())
    }

    /// Begins a new segment, so that a snapshot of the present position will cover all the older ones.
    pub fn roll(&mut self) -> Result<(), StoreError> {
        self.check_usable()?;
        let header = {
            let state = self.shared.lock();
            if last_segment(&state.segments).is_empty() {
                return Ok(());
            }
            FileHeader { position: state.position, controller_epoch: state.controller_epoch }
        };
        let new = segment::prepare(&*self.shared.disk, &self.shared.dir, header)?;
        let (segment, file) = self.publish_segment(new)?;
        self.active = file;
        self.shared.lock().segments.push(segment);
        Ok(())
    }

    /// Begins a snapshot, to be written on any thread while appends go on, and then to be [installed](Self::install).
    ///
    /// For a snapshot of the present position, [roll](Self::roll) first.
    pub fn snapshot_writer(
        &mut self,
        position: Position,
        controller_epoch: ControllerEpoch,
    ) -> Result<SnapshotWriter, StoreError> {
        self.check_usable()?;
        self.snapshots_begun += 1;
        let disk = self.shared.disk.clone();
        SnapshotWriter::create(disk, &self.shared.dir, self.snapshots_begun, position, controller_epoch)
    }

    /// Makes a snapshot the beginning of the stored history, at once or not at all.
    ///
    /// One at or below the stored position must be of the same history: the changes after it stay, and segments that it
    /// covers wholly are removed. One beyond it replaces everything, and the log begins anew at its position.
    pub fn install(&mut self, finished: FinishedSnapshot) -> Result<(), StoreError> {
        self.check_usable()?;
        let info = finished.info();
        let (position, previous, controller_epoch) = {
            let state = self.shared.lock();
            (state.position, state.snapshot, state.controller_epoch.max(info.controller_epoch))
        };
        if previous.is_some_and(|previous| previous.position == info.position) {
            return Ok(());
        }
        let replaces_all = info.position.version > position.version;
        if !replaces_all {
            let older = previous.is_some_and(|previous| previous.position.version >= info.position.version);
            if older || !self.reader().holds(info.position)? {
                return Err(StoreError::NotInHistory { position: info.position });
            }
            if info.position == position {
                self.roll()?;
            }
        }
        // All that needs room is done before the first step that cannot be taken back.
        let header = FileHeader { position: info.position, controller_epoch };
        let new = replaces_all.then(|| segment::prepare(&*self.shared.disk, &self.shared.dir, header)).transpose()?;
        let path = info.path_in(&self.shared.dir);
        if let Err(source) = publish(&*self.shared.disk, finished.temporary_path(), &path) {
            if let Some(new) = new {
                new.discard(&*self.shared.disk);
            }
            let error = StoreError::Io { action: "name a snapshot", path, source };
            self.poison(error.to_string());
            return Err(error);
        }
        finished.keep();
        let restarted = new.map(|new| self.publish_segment(new)).transpose()?;

        let obsolete = {
            let mut state = self.shared.lock();
            let covered = match &restarted {
                Some(_) => state.segments.len(),
                None => state.segments[1..].partition_point(|next| next.base.version <= info.position.version),
            };
            let mut obsolete: Vec<_> = state.segments.drain(..covered).map(|segment| segment.path).collect();
            obsolete.extend(previous.map(|previous| previous.path_in(&self.shared.dir)));
            if let Some((segment, file)) = restarted {
                state.segments.push(segment);
                state.position = info.position;
                self.active = file;
            }
            state.controller_epoch = controller_epoch;
            state.snapshot = Some(info);
            obsolete
        };
        for path in obsolete {
            recovery::remove(&*self.shared.disk, &path);
        }
        Ok(())
    }

    /// Writes and installs a snapshot in one go.
    pub fn install_snapshot(
        &mut self,
        position: Position,
        controller_epoch: ControllerEpoch,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let mut writer = self.snapshot_writer(position, controller_epoch)?;
        write(&mut writer).map_err(StoreError::io("write a snapshot", writer.path()))?;
        let finished = writer.finish()?;
        self.install(finished)
    }

    /// A handle for reading beside this writer.
    pub fn reader(&self) -> MetadataReader {
        MetadataReader { shared: self.shared.clone() }
    }

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

    /// How many bytes the entries log has: what a snapshot would save reading at the next start.
    pub fn log_bytes(&self) -> u64 {
        self.shared.lock().segments.iter().map(|segment| segment.durable_bytes).sum()
    }

    /// As [`MetadataReader::read_from`].
    pub fn read_from(&self, version: Version) -> Result<Option<Changes>, StoreError> {
        self.reader().read_from(version)
    }

    /// As [`MetadataReader::snapshot_chunk`].
    pub fn snapshot_chunk(
        &self,
        position: Position,
        offset: u64,
        max_bytes: usize,
    ) -> Result<Option<SnapshotChunk>, StoreError> {
        self.reader().snapshot_chunk(position, offset, max_bytes)
    }

    /// Whether an earlier failure left it open what is on the disk, so that only a restart helps.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.is_some()
    }

    fn publish_segment(&mut self, new: NewSegment) -> Result<(segment::Segment, Box<dyn WriteFile>), StoreError> {
        new.publish(&*self.shared.disk).inspect_err(|error| self.poison(error.to_string()))
    }

    fn check_usable(&self) -> Result<(), StoreError> {
        match &self.poisoned {
            None => Ok(()),
            Some(cause) => Err(StoreError::Poisoned { dir: self.shared.dir.clone(), cause: cause.clone() }),
        }
    }

    fn poison(&mut self, cause: String) {
        tracing::error!(dir = %self.shared.dir.display(), cause, "the stored metadata takes no more writes");
        self.poisoned = Some(cause);
    }
}

fn last_segment(segments: &[segment::Segment]) -> &segment::Segment {
    segments.last().expect("a store has a segment from the moment it is opened")
}
