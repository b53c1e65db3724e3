//! Opening a log, after whatever happened to it.
//!
//! There is no clean way to stop that differs from a kill. All segments but the last one are whole by construction, with their
//! indexes: none is begun before the one before it is synced. In the last one an index entry is written only once everything
//! up to it is durable, its epochs too. So what is behind the last entry is read and checked, and a torn tail cut off.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::batch::{BatchHeader, HEADER_BYTES};
use super::super::checkpoint::{self, LEADER_EPOCHS, PARTITION_METADATA};
use super::super::producers::Producers;
use super::super::scan::{Begin, Found, Scan, Scanner};
use super::super::segment::{self, LOG, SNAPSHOT, Segment};
use super::super::{Damage, EpochHistory, Files, LogError, TopicPartition};
use super::compact::{self, Swap};
use super::plan::Disturbances;
use super::{Log, LogConfig};
use crate::disk;
use crate::types::{Offset, TopicId};

/// What a log's directory doesn't say about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenOptions {
    /// The topic that the log has to be of. It is written where the directory is new.
    pub topic: TopicId,
    /// The first offset that may be read, as far as anyone remembers.
    pub log_start: Offset,
    /// The first offset that compaction has not looked at, as far as anyone remembers.
    pub cleaned: Offset,
    /// Whether the whole file system was synced since the process began, so that what is read is durable.
    pub is_synced: bool,
}

impl OpenOptions {
    pub fn new(topic: TopicId) -> Self {
        Self { topic, log_start: Offset::ZERO, cleaned: Offset::ZERO, is_synced: false }
    }
}

/// The names in a log's directory.
#[derive(Default)]
struct Names {
    bases: Vec<Offset>,
    snapshots: Vec<Offset>,
    swaps: Vec<Swap>,
    /// What a killed process left behind.
    refuse: Vec<String>,
    has_metadata: bool,
}

impl Names {
    fn read(files: &Files, dir: &Path) -> std::io::Result<Self> {
        let mut names = Self::default();
        for name in files.disk().list(dir)? {
            names.has_metadata |= name == PARTITION_METADATA;
            if name.ends_with(disk::TEMPORARY) || name.ends_with(compact::CLEANED) {
                names.refuse.push(name);
            } else if let Some(swap) = Swap::parse(&name) {
                names.swaps.push(swap);
            } else {
                match segment::parse_name(&name) {
                    Some((base, LOG)) => names.bases.push(base),
                    Some((offset, SNAPSHOT)) => names.snapshots.push(offset),
                    Some(_) | None => {}
                }
            }
        }
        names.bases.sort_unstable();
        names.snapshots.sort_unstable();
        Ok(names)
    }
}

impl Log {
    /// Opens the log in `dir`, or makes an empty one. `now_ms` is wall time in milliseconds since 1970.
    pub fn open(
        id: TopicPartition,
        dir: PathBuf,
        config: LogConfig,
        files: Arc<Files>,
        options: OpenOptions,
        now_ms: i64,
    ) -> Result<Self, LogError> {
        let io = |action| LogError::io(&id, action, &dir);
        files.disk().create_dir(&dir).map_err(io("create"))?;
        let mut names = Names::read(&files, &dir).map_err(io("list"))?;
        check_topic(&id, &dir, &files, &options, &names)?;
        for name in &names.refuse {
            files.disk().remove(&dir.join(name)).map_err(io("remove what was left in"))?;
        }
        if !names.swaps.is_empty() {
            names
                .swaps
                .iter()
                .try_for_each(|swap| swap.complete(&files, &dir))
                .map_err(io("complete a compaction in"))?;
            let snapshots = names.snapshots;
            names = Names { snapshots, ..Names::read(&files, &dir).map_err(io("list"))? };
        }
        if names.bases.is_empty() {
            Segment::create(&files, &dir, options.log_start).map_err(io("create a segment in"))?;
            files.disk().sync_dir(&dir).map_err(io("sync"))?;
            names.bases.push(options.log_start);
        }
        let cuts = files.first_cut();
        let mut log = Self {
            id,
            dir,
            files,
            config,
            segments: BTreeMap::new(),
            start: options.log_start.max(names.bases[0]),
            end: names.bases[0],
            synced: names.bases[0],
            epochs: EpochHistory::default(),
            epochs_changed: false,
            producers: Producers::default(),
            snapshot: None,
            damages: Vec::new(),
            cleaned: options.cleaned,
            cuts,
            compaction: None,
            disturbances: Disturbances::default(),
            poisoned: None,
        };
        log.load(&names, options.is_synced)?;
        log.load_producers(names.snapshots, now_ms)?;
        log.producers.expire(now_ms.saturating_sub(log.config.producer_expiration_ms));
        if log.start > log.end {
            log.reset_to(log.start)?;
        }
        log.cleaned = log.cleaned.min(log.end);
        Ok(log)
    }

    fn load(&mut self, names: &Names, is_synced: bool) -> Result<(), LogError> {
        let epochs = self.load_epochs()?;
        let all = epochs.is_none();
        self.epochs = epochs.unwrap_or_default();
        let (files, dir) = (self.files.clone(), self.dir.clone());
        let last = names.bases[names.bases.len() - 1];
        for (number, base) in names.bases.iter().copied().enumerate() {
            let whole = base != last;
            let loaded = Segment::load(&files, &dir, base, whole);
            let (mut segment, rebuild) = loaded.map_err(self.io("read an index in", &dir))?;
            if all && !rebuild {
                segment.reset_indexes(&files, &dir).map_err(self.io("rebuild an index in", &dir))?;
            }
            let below = names.bases.get(number + 1).copied().unwrap_or(Offset(i64::MAX));
            self.segments.insert(base, segment);
            if !whole || rebuild || all {
                self.recover(base, below, whole, !whole || all)?;
            }
        }
        if !is_synced {
            let path = self.path(last, LOG);
            // The name too: who began the segment may have been killed before it was durable.
            let synced = files.disk().append(&path).and_then(|mut file| file.sync());
            synced.and_then(|()| files.disk().sync_dir(&dir)).map_err(self.io("sync", &path))?;
        }
        self.synced = self.end;
        let held = self.epochs.clone();
        self.epochs.truncate_to(self.end);
        self.epochs.start_at(self.start);
        // After a start that was forgotten the first known one counts from it, also where the last segment told it.
        let mut starts = self.epochs.starts().to_vec();
        if let Some(first) = starts.first_mut() {
            first.1 = first.1.min(self.start);
        }
        self.epochs = EpochHistory::from_starts(starts).unwrap_or_default();
        self.epochs_changed |= self.epochs != held;
        Ok(())
    }

    /// None where they have to be found in the batches.
    fn load_epochs(&self) -> Result<Option<EpochHistory>, LogError> {
        let path = self.dir.join(LEADER_EPOCHS);
        let bytes = checkpoint::read(self.files.disk(), &path).map_err(self.io("read", &path))?;
        let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        let held = text.and_then(|text| checkpoint::parse_epochs(&text).ok());
        let Some(held) = held.filter(|held| !held.starts().is_empty()) else { return Ok(None) };
        // They begin too late where a start that was forgotten brought records back. Their epochs count as the first one that
        // is known: whoever asks for an older one is told to cut at the start, which is safe. The batches would not tell for
        // sure, for compaction may have taken an epoch's first ones.
        let mut starts = held.starts().to_vec();
        starts[0].1 = starts[0].1.min(self.start);
        Ok(EpochHistory::from_starts(starts))
    }

    /// Reads a segment from its last index entry on, completes its indexes, and cuts a torn tail off if it is the last one.
    fn recover(&mut self, base: Offset, below: Offset, whole: bool, learns: bool) -> Result<(), LogError> {
        let path = self.path(base, LOG);
        let end = match self.scan(base, below, true, learns) {
            Ok(Some(end)) => end,
            // The index speaks of what is not there.
            Ok(None) => {
                let (files, dir) = (self.files.clone(), self.dir.clone());
                self.segment_mut(base).reset_indexes(&files, &dir).map_err(self.io("rebuild an index in", &dir))?;
                let again = self.scan(base, below, false, learns).map_err(self.io("read", &path))?;
                again.expect("a scan from the beginning needs no index")
            }
            Err(error) => return Err(self.io("read", &path)(error)),
        };
        if whole {
            let (files, dir) = (self.files.clone(), self.dir.clone());
            self.segment_mut(base).note_time();
            return self.segment_mut(base).spill(&files, &dir).map_err(self.io("write an index in", &dir));
        }
        let (position, offset) = end;
        if position < self.active().bytes {
            let cut = self.files.disk().append(&path).and_then(|mut file| {
                file.truncate(position)?;
                file.sync()
            });
            cut.map_err(self.io("cut the torn tail off", &path))?;
            let lost = self.active().bytes - position;
            tracing::warn!(log = %self.id, bytes = lost, at = position, "cut off a torn tail");
            self.active_mut().bytes = position;
        }
        self.end = offset;
        self.active_mut().first_timestamp = self.first_timestamp(base).map_err(self.io("read", &path))?;
        Ok(())
    }

    /// Goes through a segment, from its last index entry where `from_index`. Where the batches end and their offsets, or none
    /// if the index turns out to be wrong. `learns`: the epochs are taken from the batches, which is right for the last segment,
    /// and where nothing else tells; compaction may have taken an epoch's first batches from the others.
    fn scan(
        &mut self,
        base: Offset,
        below: Offset,
        from_index: bool,
        learns: bool,
    ) -> std::io::Result<Option<(u64, Offset)>> {
        let (files, dir, interval) = (self.files.clone(), self.dir.clone(), self.config.index_interval_bytes);
        let entry = self.segment_mut(base).offsets.last().filter(|_| from_index);
        let from = Begin::in_segment(base, entry);
        if let Begin::Entry { last_offset, .. } = from {
            // The time index is written first, and may know of more.
            self.segment_mut(base).cut_indexes(&files, &dir, Offset(last_offset.0 + 1))?;
        }
        self.segment_mut(base).count_from(from.position());
        let path = self.path(base, LOG);
        let file: Arc<dyn disk::ReadFile> = files.disk().open(&path)?.into();
        let verify = true;
        #[cfg(test)]
        let verify = verify && !crate::log::planted(crate::log::Bug::TornTailTrusted);
        let scan = Scan { base, from, end: self.segment_mut(base).bytes, below, verify };
        let mut scanner = Scanner::new(file, scan);
        let mut end = (from.position(), base);
        let mut awaited = entry.is_some();
        while let Some(found) = scanner.next()? {
            match found {
                Found::Batch { position, header } => {
                    awaited = false;
                    self.segment_mut(base).note(&header, position, interval);
                    if learns {
                        self.note_epoch(&header);
                    }
                    end = (position + header.size() as u64, header.next_offset());
                }
                Found::Damage { .. } if awaited => return Ok(None),
                Found::Damage { positions, .. } if positions.end == scanner.end() && below == Offset(i64::MAX) => break,
                Found::Damage { positions, offsets, what } => {
                    tracing::error!(log = %self.id, ?offsets, at = positions.start, what, "the log is damaged");
                    self.damages.push(Damage { offsets, file: path.clone(), position: positions.start, what });
                }
            }
        }
        Ok(if awaited { None } else { Some(end) })
    }

    pub(super) fn first_timestamp(&self, base: Offset) -> std::io::Result<Option<i64>> {
        let mut bytes = [0; HEADER_BYTES];
        let file = self.files.disk().open(&self.path(base, LOG))?;
        let read = disk::read_full(&*file, 0, &mut bytes)?;
        let header = BatchHeader::parse(&bytes[..read]).ok();
        Ok(header.map(|header| header.max_timestamp).filter(|timestamp| *timestamp >= 0))
    }

    /// From the newest snapshot that can be read, and the batches behind it, which count as taken in now.
    pub(super) fn load_producers(&mut self, snapshots: Vec<Offset>, now_ms: i64) -> Result<(), LogError> {
        self.producers = Producers::default();
        self.snapshot = None;
        let mut snapshots = self.remove_snapshots_above(snapshots, self.end)?;
        while let Some(offset) = snapshots.pop() {
            let path = segment::path(&self.dir, offset, SNAPSHOT);
            let bytes = checkpoint::read(self.files.disk(), &path).map_err(self.io("read", &path))?;
            if let Some(producers) = bytes.and_then(|bytes| Producers::decode(&bytes).ok()) {
                self.producers = producers;
                self.snapshot = Some(offset);
                break;
            }
            self.remove_snapshot(offset)?;
        }
        #[cfg(test)]
        if crate::log::planted(crate::log::Bug::ProducersForgotten) {
            return Ok(());
        }
        self.replay_producers(self.snapshot.unwrap_or(self.first().base), now_ms)
    }

    fn replay_producers(&mut self, from: Offset, now_ms: i64) -> Result<(), LogError> {
        if from >= self.end {
            return Ok(());
        }
        let first = self.segment_of(from).base;
        let bases: Vec<Offset> = self.segments.range(first..).map(|(base, _)| *base).collect();
        for base in bases {
            let path = self.path(base, LOG);
            self.replay_segment(base, from, now_ms).map_err(LogError::io(&self.id.clone(), "read", &path))?;
        }
        Ok(())
    }

    fn replay_segment(&mut self, base: Offset, from: Offset, now_ms: i64) -> std::io::Result<()> {
        let below = self.upper_bound(base);
        let segment = self.segment_of(base);
        let place = segment.floor(&self.files, &self.dir, from)?;
        let file = self.files.disk().open(&self.path(base, LOG))?.into();
        let scan = Scan { base, from: place, end: segment.bytes, below, verify: false };
        let mut scanner = Scanner::new(file, scan);
        while let Some(found) = scanner.next()? {
            match found {
                Found::Batch { header, .. } if header.base_offset >= from => self.producers.apply(&header, now_ms),
                Found::Batch { .. } | Found::Damage { .. } => {}
            }
        }
        Ok(())
    }

    pub(super) fn segment_mut(&mut self, base: Offset) -> &mut Segment {
        self.segments.get_mut(&base).expect("the base is one of theirs")
    }
}

fn check_topic(
    id: &TopicPartition,
    dir: &Path,
    files: &Files,
    options: &OpenOptions,
    names: &Names,
) -> Result<(), LogError> {
    let (path, wanted) = (dir.join(PARTITION_METADATA), options.topic);
    let write = || {
        let text = checkpoint::format_partition_metadata(wanted);
        checkpoint::replace(files.disk(), &path, text.as_bytes()).map_err(LogError::io(id, "write", &path))
    };
    // Where many are made at once, who is killed leaves some half made: without records, and where it is to begin.
    let is_new = || match names.bases[..] {
        [] => true,
        [base] => {
            base == options.log_start && files.disk().size(&segment::path(dir, base, LOG)).is_ok_and(|size| size == 0)
        }
        _ => false,
    };
    if !names.has_metadata {
        if !is_new() {
            let what = format!("it has segments but no {PARTITION_METADATA}");
            return Err(LogError::Unusable { partition: id.clone(), path: dir.to_owned(), what });
        }
        return write();
    }
    let bytes = checkpoint::read(files.disk(), &path).map_err(LogError::io(id, "read", &path))?;
    let text = String::from_utf8(bytes.unwrap_or_default()).unwrap_or_default();
    match checkpoint::parse_partition_metadata(&text) {
        Ok(found) if found == wanted => Ok(()),
        Ok(found) => Err(LogError::OtherTopic { partition: id.clone(), path: dir.to_owned(), found, wanted }),
        Err(_) if is_new() => write(),
        Err(error) => Err(LogError::Unusable { partition: id.clone(), path: path.clone(), what: error.to_string() }),
    }
}
