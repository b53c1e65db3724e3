//! What makes a log durable: the sync of its active segment, and the checkpoints that make opening it quick.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use super::super::checkpoint::{self, LEADER_EPOCHS};
use super::super::files::{Files, Writer};
use super::super::segment::{Aside, LOG, SNAPSHOT};
use super::super::{LogError, segment};
use super::Log;
use crate::disk;
use crate::types::Offset;

/// So many bytes of a segment are appended before its indexes are written; a restart after a kill reads as many again.
const SPILL_BYTES: u64 = 16 << 20;

/// How much of what a failed sync had to write is in memory at a time.
const REWRITE_BYTES: usize = 1 << 20;

/// A checkpoint whose files are written and not all in their places.
pub(in super::super) struct StagedCheckpoint {
    /// The names that files which stand aside are to get.
    renames: Vec<PathBuf>,
    aside: Aside,
    /// The offset of the producers' snapshot that is among them, or that was there already.
    snapshot: Offset,
}

/// A sync that can run without the log at hand, on another thread.
pub struct SyncTicket {
    files: Arc<Files>,
    writer: Writer,
    path: PathBuf,
    end: Offset,
    /// The file's length up to there.
    bytes: u64,
    cuts: u64,
}

impl SyncTicket {
    /// Makes durable what was appended before the ticket was made.
    pub fn run(&self) -> io::Result<()> {
        #[cfg(test)]
        if crate::log::planted(crate::log::Bug::SyncSkipped) {
            return Ok(());
        }
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).sync()?;
        self.is_durable();
        Ok(())
    }

    /// To be called where a sync of the whole file system did what [`Self::run`] would.
    pub(in super::super) fn is_durable(&self) {
        self.files.was_synced(&self.path, self.bytes);
    }
}

impl Log {
    /// Whether anything was appended that is not durable.
    pub fn is_dirty(&self) -> bool {
        self.synced < self.end
    }

    /// What has to be synced, or none where nothing has to.
    pub fn begin_sync(&mut self) -> Result<Option<SyncTicket>, LogError> {
        self.check_usable()?;
        if !self.is_dirty() {
            return Ok(None);
        }
        let path = self.path(self.active().base, LOG);
        let writer = self.files.writer(&path).map_err(self.io("open", &path))?;
        let (files, bytes) = (Arc::clone(&self.files), self.active().bytes);
        Ok(Some(SyncTicket { files, writer, path, end: self.end, bytes, cuts: self.cuts }))
    }

    /// What became of a ticket. After a failed sync the log takes no more writes: the kernel may have dropped the pages.
    pub fn finish_sync(&mut self, ticket: SyncTicket, result: io::Result<()>) -> Result<(), LogError> {
        if let Err(error) = result {
            let error = self.io("sync", &ticket.path)(error);
            return Err(self.poison(error));
        }
        #[cfg(test)]
        let ticket = if crate::log::planted(crate::log::Bug::SyncSaysMore) {
            SyncTicket { end: self.end, ..ticket }
        } else {
            ticket
        };
        if ticket.cuts == self.cuts {
            self.synced = self.synced.max(ticket.end);
        }
        if self.active().bytes_since_spill >= SPILL_BYTES
            && !self.is_dirty()
            && let Err(error) = self.spill()
        {
            // It costs a longer restart, and is tried again.
            self.active_mut().bytes_since_spill = 0;
            tracing::warn!(%error, "an index was not written");
        }
        Ok(())
    }

    /// Of a log that failed: writes what was not synced over itself, for the next sync to write it. The kernel may have dropped what it
    /// could not write, show it nevertheless, and let later syncs succeed without it. Cut off it must not be: a leader would go on
    /// with other records under the same offsets and epoch.
    pub fn rewrite_unsynced(&self) -> Result<(), LogError> {
        let segment = self.active();
        let path = self.path(segment.base, LOG);
        let rewrite = || {
            // A segment is begun once all before it is synced.
            let mut at = if self.synced > segment.base { self.place_of(self.synced)?.0 } else { 0 };
            let file = self.files.disk().open(&path)?;
            let mut chunk = vec![0; REWRITE_BYTES];
            loop {
                let read = disk::read_full(&*file, at, &mut chunk)?;
                if read == 0 {
                    return Ok(());
                }
                self.files.disk().overwrite(&path, at, &chunk[..read])?;
                at += read as u64;
            }
        };
        rewrite().map_err(self.io("write once more", &path))
    }

    /// The same for a log that was opened since, and was synced up to `from` when it failed; with the sync.
    pub(in super::super) fn rewrite_from(&mut self, from: Offset) -> Result<(), LogError> {
        self.synced = self.synced.min(from);
        self.rewrite_unsynced()?;
        self.sync()
    }

    /// Makes everything that was appended durable.
    pub fn sync(&mut self) -> Result<(), LogError> {
        match self.begin_sync()? {
            None => Ok(()),
            Some(ticket) => {
                let result = ticket.run();
                self.finish_sync(ticket, result)
            }
        }
    }

    /// Makes everything durable, with what is needed to open the log without reading much of it. To be called now and then,
    /// and before the process ends.
    pub fn checkpoint(&mut self) -> Result<(), LogError> {
        self.sync()?;
        self.spill()?;
        self.write_snapshot()
    }

    /// The first step of a checkpoint of many logs: writes all that stands aside or before the index of offsets. Each step's
    /// files are to be synced before the next one is taken. Only what is synced may be in them; none where nothing is to do.
    pub(in super::super) fn stage_checkpoint(&self) -> Result<Option<StagedCheckpoint>, LogError> {
        self.check_usable()?;
        let active = self.active();
        let snapshot = self.snapshot != Some(self.end) && self.end != Offset::ZERO;
        let indexes = [active.offsets.tail_len(), active.times.tail_len()] != [0, 0]
            || !(active.offsets.on_disk && active.times.on_disk);
        if self.is_dirty() || !(snapshot || indexes || self.epochs_changed) {
            return Ok(None);
        }
        let mut renames = Vec::new();
        if self.epochs_changed {
            let text = checkpoint::format_epochs(&self.epochs);
            renames.push(self.write_aside(self.dir.join(LEADER_EPOCHS), text.as_bytes())?);
        }
        if snapshot {
            let path = segment::path(&self.dir, self.end, SNAPSHOT);
            renames.push(self.write_aside(path, &self.producers.encode())?);
        }
        let aside = self.active().stage_times(&self.files, &self.dir);
        let aside = aside.map_err(self.io("write an index in", &self.dir))?;
        Ok(Some(StagedCheckpoint { renames, aside, snapshot: self.end }))
    }

    /// The second step: gives the files that stand aside their names.
    pub(in super::super) fn name_checkpoint(&self, staged: &StagedCheckpoint) -> Result<(), LogError> {
        staged.renames.iter().try_for_each(|path| {
            let renamed = self.files.disk().rename(&disk::temporary_name(path), path);
            renamed.map_err(self.io("write", path))
        })?;
        let named = self.active().name_times(&self.files, &self.dir, staged.aside);
        named.map_err(self.io("write an index in", &self.dir))
    }

    /// The third step: the index of offsets, which says that all the rest is there.
    pub(in super::super) fn index_checkpoint(&self, staged: &StagedCheckpoint) -> Result<(), LogError> {
        let written = self.active().stage_offsets(&self.files, &self.dir, staged.aside);
        written.map_err(self.io("write an index in", &self.dir))
    }

    /// All three are durable.
    pub(in super::super) fn finish_checkpoint(&mut self, staged: StagedCheckpoint) -> Result<(), LogError> {
        self.active_mut().mark_written();
        self.epochs_changed = false;
        let end = staged.snapshot;
        match self.snapshot {
            Some(old) if old == end => Ok(()),
            None if end == Offset::ZERO => Ok(()),
            old => {
                self.snapshot = Some(end);
                old.map_or(Ok(()), |old| self.remove_snapshot_unless_needed(old))
            }
        }
    }

    fn write_aside(&self, path: PathBuf, bytes: &[u8]) -> Result<PathBuf, LogError> {
        let written = self.files.disk().create(&disk::temporary_name(&path)).and_then(|mut file| file.append(bytes));
        written.map_err(self.io("write", &path))?;
        Ok(path)
    }

    /// Writes the indexes, and before them the epochs: who opens the log reads neither batches nor epochs again of what the
    /// index covers. Only what is synced may be in them.
    pub(super) fn spill(&mut self) -> Result<(), LogError> {
        let is_dirty = self.is_dirty();
        #[cfg(test)]
        let is_dirty = is_dirty && !crate::log::planted(crate::log::Bug::IndexAhead);
        if is_dirty {
            return Ok(());
        }
        self.write_epochs()?;
        let (files, dir) = (self.files.clone(), self.dir.clone());
        self.active_mut().spill(&files, &dir).map_err(self.io("write an index in", &dir))
    }

    pub(super) fn write_epochs(&mut self) -> Result<(), LogError> {
        if self.epochs_changed {
            let path = self.dir.join(LEADER_EPOCHS);
            let text = checkpoint::format_epochs(&self.epochs);
            checkpoint::replace(self.files.disk(), &path, text.as_bytes()).map_err(self.io("write", &path))?;
            self.epochs_changed = false;
        }
        Ok(())
    }

    /// Writes what is known of the producers as of the log's end.
    fn write_snapshot(&mut self) -> Result<(), LogError> {
        if self.snapshot == Some(self.end) || self.end == Offset::ZERO {
            return Ok(());
        }
        let path = segment::path(&self.dir, self.end, SNAPSHOT);
        let bytes = self.producers.encode();
        checkpoint::replace(self.files.disk(), &path, &bytes).map_err(self.io("write", &path))?;
        if let Some(old) = self.snapshot.replace(self.end) {
            self.remove_snapshot_unless_needed(old)?;
        }
        Ok(())
    }

    /// Snapshots at the segments' bases stay, for a cut that goes back to them.
    fn remove_snapshot_unless_needed(&self, offset: Offset) -> Result<(), LogError> {
        if !self.segments.contains_key(&offset) {
            self.remove_snapshot(offset)?;
        }
        Ok(())
    }

    pub(super) fn remove_snapshot(&self, offset: Offset) -> Result<(), LogError> {
        let path = segment::path(&self.dir, offset, SNAPSHOT);
        match self.files.disk().remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.io("remove", &path)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}
