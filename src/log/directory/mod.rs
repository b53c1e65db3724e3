//! All logs of a node: their directories, what a node remembers of them, and the commit that makes many durable at once.
//!
//! A commit is per node. Few dirty logs are synced each by itself, beside each other; many by one sync of their file system,
//! whose cost does not grow with their number.

mod many;
mod stray;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

pub use many::WantedLog;

use super::checkpoint::{self, CLEANED, CheckpointError, LOG_STARTS, Offsets, PARTITION_METADATA};
use super::partition::{Log, LogConfig, OpenOptions, SyncTicket};
use super::{Files, LogError, TopicPartition};
use crate::disk::{Disk, FileSystem};
use crate::types::{Offset, TopicId};

/// Up to so many dirty logs are synced each by itself. One file is much faster so; from some more on the file system wins.
const SYNCED_SINGLY: usize = 4;

/// What a disk has to take before logs that failed on it are tried again: as much as the largest batch.
const PROBE_BYTES: usize = 1 << 20;
/// Where it is written. It is no partition's name.
const PROBE: &str = "probe";

/// The directory that holds the directories of a node's partitions.
pub struct LogDirectory {
    dir: PathBuf,
    files: Arc<Files>,
    committer: Committer,
    starts: Offsets,
    cleaned: Offsets,
    /// What was opened before: what it was given since is not durable for having been synced at the start.
    opened: Mutex<BTreeSet<TopicPartition>>,
    /// Logs that failed, with up to where they were on the disk then.
    distrusted: Mutex<BTreeMap<TopicPartition, Offset>>,
}

/// A partition's directory, as it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionDirectory {
    pub id: TopicPartition,
    /// The topic that it is of; none where its file cannot be read.
    pub topic: Option<TopicId>,
}

#[derive(Debug, thiserror::Error)]
pub enum LogDirectoryError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// Without it records that were deleted would be back.
    #[error("{} is damaged, {source}. Remove it if records that were deleted may come back", path.display())]
    Checkpoint { path: PathBuf, source: CheckpointError },
}

impl LogDirectory {
    /// Opens the directory, made where it is missing, and makes durable whatever a killed process left in the page cache.
    /// `open_files` is how many files of either kind, for reading and for writing, stay open between their uses: fewer where
    /// the process may not have so many, half of which are left for other things.
    pub fn open(dir: PathBuf, disk: Arc<dyn Disk>, open_files: usize) -> Result<Self, LogDirectoryError> {
        disk.create_dir(&dir).map_err(io_error("create", &dir))?;
        let file_system: Option<Arc<dyn FileSystem>> =
            disk.file_system(&dir).map_err(io_error("open", &dir))?.map(Arc::from);
        if let Some(all) = &file_system {
            all.sync().map_err(io_error("sync the file system of", &dir))?;
        }
        let files = Files::new(disk.clone(), open_files.min(disk.open_files_limit() / 4));
        let (starts, cleaned) = (read_offsets(&*disk, &dir, LOG_STARTS)?, read_offsets(&*disk, &dir, CLEANED)?);
        Ok(Self {
            dir,
            files,
            committer: Committer { file_system },
            starts,
            cleaned,
            opened: Mutex::default(),
            distrusted: Mutex::default(),
        })
    }

    pub fn files(&self) -> &Arc<Files> {
        &self.files
    }

    /// The partitions that have a directory here.
    pub fn list(&self) -> Result<Vec<PartitionDirectory>, LogDirectoryError> {
        let names = self.files.disk().list(&self.dir).map_err(io_error("list", &self.dir))?;
        let mut found: Vec<PartitionDirectory> = names
            .iter()
            .filter_map(|name| TopicPartition::from_directory(name))
            .map(|id| PartitionDirectory { topic: self.topic_of(&id), id })
            .collect();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    fn topic_of(&self, id: &TopicPartition) -> Option<TopicId> {
        let path = self.dir.join(id.to_string()).join(PARTITION_METADATA);
        let bytes = checkpoint::read(self.files.disk(), &path).ok()??;
        checkpoint::parse_partition_metadata(std::str::from_utf8(&bytes).ok()?).ok()
    }

    /// Opens a partition's log, or makes an empty one. `now_ms` is wall time in milliseconds since 1970. Several threads may
    /// open different logs at once.
    pub fn open_log(
        &self,
        id: TopicPartition,
        topic: TopicId,
        config: LogConfig,
        now_ms: i64,
    ) -> Result<Log, LogError> {
        let key = (id.topic.to_string(), id.partition);
        let known = |offsets: &Offsets| offsets.get(&key).copied().unwrap_or_default();
        let is_first = self.opened.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        let options = OpenOptions {
            topic,
            log_start: known(&self.starts),
            cleaned: known(&self.cleaned),
            is_synced: is_first && self.committer.file_system.is_some(),
        };
        let mut log =
            Log::open(id.clone(), self.dir.join(id.to_string()), config, self.files.clone(), options, now_ms)?;
        let distrusted = self.distrusted.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied();
        if let Some(from) = distrusted {
            log.rewrite_from(from)?;
            self.distrusted.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
        Ok(log)
    }

    /// To be called where a log failed, before it is dropped: what was not synced is written once more, at once or, where the disk does
    /// not even take that, when the log is opened again ([`Log::rewrite_unsynced`]).
    pub fn distrust(&self, log: &Log) {
        let rewritten = log.rewrite_unsynced();
        let mut distrusted = self.distrusted.lock().unwrap_or_else(PoisonError::into_inner);
        let from = distrusted.remove(log.id()).map_or(log.synced_end(), |from| from.min(log.synced_end()));
        if let Err(error) = rewritten {
            tracing::warn!(%error, "what a failed sync had to write is written once more when the log is opened again");
            distrusted.insert(log.id().clone(), from);
        }
    }

    /// Gives another name to the directory of a topic that has been deleted, or made anew meanwhile: nothing serves it any
    /// more, and nothing of it is lost. The new name.
    pub fn set_aside(&mut self, id: &TopicPartition) -> Result<PathBuf, LogDirectoryError> {
        let to = self.rename_aside(id)?;
        self.files.disk().sync_dir(&self.dir).map_err(io_error("sync", &self.dir))?;
        Ok(to)
    }

    fn rename_aside(&mut self, id: &TopicPartition) -> Result<PathBuf, LogDirectoryError> {
        let topic = self.topic_of(id).map_or_else(|| "unknown".into(), |topic| checkpoint::uuid_to_base64(topic.0));
        let from = self.dir.join(id.to_string());
        let to = self.dir.join(format!("{id}.{topic}{}", stray::STRAY));
        let renamed = self.files.disk().rename(&from, &to);
        self.files.forget_below(&from);
        renamed.map_err(io_error("set aside", &from))?;
        let key = (id.topic.to_string(), id.partition);
        self.starts.remove(&key);
        self.cleaned.remove(&key);
        self.distrusted.get_mut().unwrap_or_else(PoisonError::into_inner).remove(id);
        Ok(to)
    }

    /// Deletes partitions' directories, those there are, with everything in them, by two syncs for all. Who holds their logs drops
    /// them before. What went wrong.
    pub fn remove_many(&mut self, ids: &[TopicPartition]) -> Vec<LogDirectoryError> {
        let (mut aside, mut failed) = (Vec::with_capacity(ids.len()), Vec::new());
        // Under another name first: half a directory must not be taken for a log.
        for id in ids {
            match self.rename_aside(id) {
                Ok(path) => aside.push(path),
                Err(LogDirectoryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => failed.push(error),
            }
        }
        if aside.is_empty() {
            return failed;
        }
        let disk = self.files.disk();
        if let Err(error) = disk.sync_dir(&self.dir) {
            failed.push(io_error("sync", &self.dir)(error));
            return failed;
        }
        let removed = |path: &PathBuf| disk.remove_dir_all(path).map_err(io_error("remove", path));
        failed.extend(aside.iter().map(removed).filter_map(Result::err));
        failed.extend(disk.sync_dir(&self.dir).map_err(io_error("sync", &self.dir)).err());
        failed
    }

    /// Makes everything durable that was appended to these logs. One answer for each of them, in their order.
    pub fn commit(&self, logs: &mut [&mut Log]) -> Vec<Result<(), LogError>> {
        let mut answers: Vec<Result<(), LogError>> = Vec::with_capacity(logs.len());
        let mut tickets = Vec::new();
        for (number, log) in logs.iter_mut().enumerate() {
            answers.push(match log.begin_sync() {
                Ok(Some(ticket)) => {
                    tickets.push((number, ticket));
                    Ok(())
                }
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            });
        }
        let running: Vec<_> = tickets.iter().map(|(_, ticket)| ticket).collect();
        let results = self.committer.commit(&running);
        for ((number, ticket), result) in tickets.into_iter().zip(results) {
            answers[number] = logs[number].finish_sync(ticket, result);
        }
        answers
    }

    /// Whether the disk takes as much as a large batch, and keeps it, by writing it and removing it again.
    pub fn probe(&self) -> Result<(), LogDirectoryError> {
        let (disk, path) = (self.files.disk(), self.dir.join(PROBE));
        let write = || -> io::Result<()> {
            let mut file = disk.create(&path)?;
            file.append(&vec![0; PROBE_BYTES])?;
            file.sync()
        };
        let written = write();
        let removed = disk.remove(&path);
        written.and(removed).map_err(io_error("write", &path))
    }

    /// What commits without the directory at hand, on another thread.
    pub fn committer(&self) -> Committer {
        self.committer.clone()
    }

    /// Remembers where the logs start and how far they are compacted. `logs` are all that are open; what is known of others
    /// stays. To be called after `delete_before`, and now and then.
    pub fn checkpoint<'a>(&mut self, logs: impl IntoIterator<Item = &'a Log>) -> Result<(), LogDirectoryError> {
        let (mut starts, mut cleaned) = (self.starts.clone(), self.cleaned.clone());
        for log in logs {
            let key = (log.id().topic.to_string(), log.id().partition);
            starts.insert(key.clone(), log.start());
            cleaned.insert(key, log.first_dirty());
        }
        for (name, old, new) in [(LOG_STARTS, &mut self.starts, starts), (CLEANED, &mut self.cleaned, cleaned)] {
            if *old != new {
                let path = self.dir.join(name);
                let text = checkpoint::format_offsets(&new);
                checkpoint::replace(self.files.disk(), &path, text.as_bytes()).map_err(io_error("write", &path))?;
                *old = new;
            }
        }
        Ok(())
    }

    /// The offset that a log is known to start at, whether or not it is open.
    pub fn known_start(&self, id: &TopicPartition) -> Option<Offset> {
        self.starts.get(&(id.topic.to_string(), id.partition)).copied()
    }
}

/// Makes logs durable together: few each by itself, many by one sync of their file system.
#[derive(Clone)]
pub struct Committer {
    file_system: Option<Arc<dyn FileSystem>>,
}

impl Committer {
    /// Runs the tickets of different logs, each as [`SyncTicket::run`] would: one answer for each, in their order.
    pub fn commit(&self, tickets: &[&SyncTicket]) -> Vec<io::Result<()>> {
        match (&self.file_system, tickets) {
            (_, []) => Vec::new(),
            (_, [ticket]) => vec![ticket.run()],
            (Some(all), many) if many.len() > SYNCED_SINGLY => {
                let result = all.sync();
                // Whose page was lost is not said, so it is everybody's loss.
                let again = |error: &io::Error| io::Error::new(error.kind(), error.to_string());
                many.iter()
                    .map(|ticket| match &result {
                        Ok(()) => {
                            ticket.is_durable();
                            Ok(())
                        }
                        Err(error) => Err(again(error)),
                    })
                    .collect()
            }
            (_, several) => std::thread::scope(|scope| {
                let threads: Vec<_> = several.iter().map(|ticket| scope.spawn(|| ticket.run())).collect();
                let ended = threads.into_iter().map(|thread| thread.join());
                ended.map(|result| result.unwrap_or_else(|_| Err(io::Error::other("the sync panicked")))).collect()
            }),
        }
    }
}

fn read_offsets(disk: &dyn Disk, dir: &Path, name: &str) -> Result<Offsets, LogDirectoryError> {
    let path = dir.join(name);
    let Some(bytes) = checkpoint::read(disk, &path).map_err(io_error("read", &path))? else {
        return Ok(Offsets::new());
    };
    let text = String::from_utf8_lossy(&bytes);
    checkpoint::parse_offsets(&text).map_err(|source| LogDirectoryError::Checkpoint { path, source })
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> LogDirectoryError + 'a {
    move |source| LogDirectoryError::Io { action, path: path.to_owned(), source }
}
