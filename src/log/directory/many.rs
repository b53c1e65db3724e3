//! What is done to many logs at once, so that ten thousand of them cost a few syncs of their file system and not ten thousand
//! times a few syncs of a file.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Mutex, PoisonError};

use super::super::checkpoint::{self, PARTITION_METADATA};
use super::super::partition::StagedCheckpoint;
use super::super::segment::Segment;
use super::super::{Log, LogConfig, LogError, TopicPartition};
use super::LogDirectory;
use crate::disk::FileSystem;
use crate::types::TopicId;

/// Opening waits for the disk, mostly.
const THREADS: usize = 16;

/// A log that is to be opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WantedLog {
    pub id: TopicPartition,
    pub topic: TopicId,
    pub config: LogConfig,
}

impl LogDirectory {
    /// Opens logs as [`Self::open_log`] does it, in several threads, and makes those that are missing, all of them durable by one
    /// sync. One answer for each, in their order. `now_ms` is wall time in milliseconds since 1970.
    pub fn open_logs(&self, wanted: Vec<WantedLog>, now_ms: i64) -> Vec<Result<Log, LogError>> {
        let mut failed = self.make_missing(&wanted);
        let count = wanted.len();
        let waiting = Mutex::new(wanted.into_iter().enumerate().filter(|(number, _)| !failed.contains_key(number)));
        let opened = Mutex::new(Vec::with_capacity(count));
        let open_some = || {
            loop {
                let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((number, WantedLog { id, topic, config })) = next else { return };
                let result = self.open_log(id, topic, config, now_ms);
                opened.lock().unwrap_or_else(PoisonError::into_inner).push((number, result));
            }
        };
        std::thread::scope(|scope| (0..THREADS.min(count)).for_each(|_| _ = scope.spawn(open_some)));
        drop(waiting);
        let mut answers = opened.into_inner().unwrap_or_else(PoisonError::into_inner);
        answers.extend(std::mem::take(&mut failed).into_iter().map(|(number, error)| (number, Err(error))));
        answers.sort_unstable_by_key(|(number, _)| *number);
        answers.into_iter().map(|(_, result)| result).collect()
    }

    /// Makes the files of logs that have no directory. Nothing is durable in between: whoever opens a directory that is half
    /// made, and has no records, goes on with it. Which could not be made.
    fn make_missing(&self, wanted: &[WantedLog]) -> BTreeMap<usize, LogError> {
        // Without it each is made by itself.
        let Some(all) = &self.committer.file_system else { return BTreeMap::new() };
        let Ok(names) = self.files.disk().list(&self.dir) else { return BTreeMap::new() };
        let names: BTreeSet<String> = names.into_iter().collect();
        let missing: Vec<usize> =
            (0..wanted.len()).filter(|number| !names.contains(&wanted[*number].id.to_string())).collect();
        if missing.is_empty() {
            return BTreeMap::new();
        }
        let mut failed = BTreeMap::new();
        for number in &missing {
            let WantedLog { id, topic, .. } = &wanted[*number];
            let dir = self.dir.join(id.to_string());
            if let Err(source) = self.make(id, *topic) {
                failed.insert(*number, LogError::io(id, "create", &dir)(source));
            }
        }
        if let Err(error) = all.sync() {
            for number in missing {
                let source = io::Error::new(error.kind(), error.to_string());
                failed.insert(number, LogError::io(&wanted[number].id, "sync", &self.dir)(source));
            }
        }
        failed
    }

    fn make(&self, id: &TopicPartition, topic: TopicId) -> io::Result<()> {
        let (dir, disk) = (self.dir.join(id.to_string()), self.files.disk());
        disk.create_dir_unsynced(&dir)?;
        disk.create(&dir.join(PARTITION_METADATA))?.append(checkpoint::format_partition_metadata(topic).as_bytes())?;
        Segment::create(&self.files, &dir, self.known_start(id).unwrap_or_default()).map(drop)
    }

    /// What [`Log::checkpoint`] does, for many logs by four syncs of their file system. One answer for each, in their order. To
    /// be called before the process ends, and now and then for those that have changed.
    pub fn checkpoint_all(&self, logs: &mut [&mut Log]) -> Vec<Result<(), LogError>> {
        let Some(all) = &self.committer.file_system else {
            return logs.iter_mut().map(|log| log.checkpoint()).collect();
        };
        let mut answers = self.commit(logs);
        let mut staged: Vec<Option<StagedCheckpoint>> = Vec::with_capacity(logs.len());
        for (log, answer) in logs.iter_mut().zip(&mut answers) {
            staged.push(step(answer, || log.stage_checkpoint()).flatten());
        }
        if staged.iter().all(Option::is_none) {
            return answers;
        }
        for with_names in [true, false] {
            sync_step(&**all, logs, &staged, &mut answers);
            for ((log, staged), answer) in logs.iter().zip(&staged).zip(&mut answers) {
                let Some(staged) = staged else { continue };
                step(answer, || if with_names { log.name_checkpoint(staged) } else { log.index_checkpoint(staged) });
            }
        }
        sync_step(&**all, logs, &staged, &mut answers);
        for ((log, staged), answer) in logs.iter_mut().zip(staged).zip(&mut answers) {
            let Some(staged) = staged else { continue };
            step(answer, || log.finish_checkpoint(staged));
        }
        answers
    }
}

/// Goes on with a log that had no error yet.
fn step<T>(answer: &mut Result<(), LogError>, act: impl FnOnce() -> Result<T, LogError>) -> Option<T> {
    if answer.is_err() {
        return None;
    }
    act().map_err(|error| *answer = Err(error)).ok()
}

fn sync_step(
    all: &dyn FileSystem,
    logs: &[&mut Log],
    staged: &[Option<StagedCheckpoint>],
    answers: &mut [Result<(), LogError>],
) {
    let Err(error) = all.sync() else { return };
    for ((log, staged), answer) in logs.iter().zip(staged).zip(answers) {
        if staged.is_some() && answer.is_ok() {
            let source = io::Error::new(error.kind(), error.to_string());
            *answer = Err(LogError::io(log.id(), "sync the file system of", log.dir())(source));
        }
    }
}
