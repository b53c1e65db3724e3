//! One segment: what is known of its files, and how its indexes are kept.

use std::io;
use std::path::{Path, PathBuf};

use super::batch::{BatchHeader, NONE};
use super::index::{Index, IndexEntry, OffsetEntry, Searched, TimeEntry, parse_index};
use super::partition::relative;
use super::scan::Begin;
use super::{Files, checkpoint};
use crate::disk;
use crate::types::Offset;

pub(super) const LOG: &str = "log";
pub(super) const INDEX: &str = "index";
pub(super) const TIME_INDEX: &str = "timeindex";
pub(super) const SNAPSHOT: &str = "snapshot";

/// The name of a segment's file: the offset in 20 digits.
pub(super) fn path(dir: &Path, base: Offset, extension: &str) -> PathBuf {
    dir.join(format!("{:020}.{extension}", base.0))
}

/// What a file's name says, if it is one of these.
pub(super) fn parse_name(name: &str) -> Option<(Offset, &str)> {
    let (digits, extension) = name.split_once('.')?;
    if digits.len() != 20 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((Offset(digits.parse().ok()?), extension))
}

/// Whether an offset can be written relative to a base.
pub(super) fn holds(base: Offset, offset: Offset) -> bool {
    offset >= base && offset.0 - base.0 <= i64::from(i32::MAX)
}

#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub base: Offset,
    /// The log file's length.
    pub bytes: u64,
    /// Of its first batch, milliseconds since 1970: how old it is.
    pub first_timestamp: Option<i64>,
    /// The largest timestamp, or -1, and the last offset of the batch that has it.
    pub largest: (i64, Offset),
    pub offsets: Index<OffsetEntry>,
    pub times: Index<TimeEntry>,
    bytes_since_entry: u64,
    /// Bytes of the log file since the indexes were last written.
    pub bytes_since_spill: u64,
}

impl Segment {
    pub fn empty(base: Offset) -> Self {
        Self {
            base,
            bytes: 0,
            first_timestamp: None,
            largest: (NONE, base),
            offsets: Index::empty(),
            times: Index::empty(),
            bytes_since_entry: 0,
            bytes_since_spill: 0,
        }
    }

    /// Makes the segment's files, empty. Their names are yet to be made durable.
    pub fn create(files: &Files, dir: &Path, base: Offset) -> io::Result<Self> {
        for extension in [LOG, INDEX, TIME_INDEX] {
            let path = path(dir, base, extension);
            drop(files.change(&path, |disk| disk.create(&path))?);
        }
        let mut segment = Self::empty(base);
        (segment.offsets.on_disk, segment.times.on_disk) = (true, true);
        Ok(segment)
    }

    /// A segment whose indexes are believed where they can be believed. `whole`: they are known to be complete, since the
    /// next segment was begun. Otherwise what is behind their last entry is yet to be scanned. Without indexes that can be
    /// believed they are empty, and the second answer is true.
    pub fn load(files: &Files, dir: &Path, base: Offset, whole: bool) -> io::Result<(Self, bool)> {
        let mut segment = Self::empty(base);
        segment.bytes = files.disk().size(&path(dir, base, LOG))?;
        let (offsets, times) = (load_index(files, dir, base, whole)?, load_index(files, dir, base, whole)?);
        let sound = |offsets: &Index<OffsetEntry>, times: &Index<TimeEntry>| {
            let inside = |entry: OffsetEntry| entry.position >= 0 && (entry.position as u64) < segment.bytes;
            offsets.last().is_none_or(inside) && times.last().is_none_or(|entry| entry.relative_offset >= 0)
        };
        match (offsets, times) {
            (Some(offsets), Some(times)) if sound(&offsets, &times) => {
                segment.offsets = offsets;
                segment.times = times;
            }
            _ => {
                segment.reset_indexes(files, dir)?;
                return Ok((segment, true));
            }
        }
        segment.take_largest_from_index();
        Ok((segment, false))
    }

    /// Removes both index files, durably: a missing one is made anew, where an empty one would be believed.
    pub fn reset_indexes(&mut self, files: &Files, dir: &Path) -> io::Result<()> {
        for extension in [INDEX, TIME_INDEX] {
            remove_if_there(files, &path(dir, self.base, extension))?;
        }
        files.disk().sync_dir(dir)?;
        (self.offsets, self.times) = (Index::empty(), Index::empty());
        self.take_largest_from_index();
        Ok(())
    }

    pub fn take_largest_from_index(&mut self) {
        self.largest = match self.times.last() {
            Some(entry) => (entry.timestamp, Offset(self.base.0 + i64::from(entry.relative_offset))),
            None => (NONE, self.base),
        };
    }

    /// Whether `offset` can be written relative to the base.
    pub fn holds(&self, offset: Offset) -> bool {
        holds(self.base, offset)
    }

    /// Takes in a batch that is at `position`, as Kafka does it: an entry before the first batch that begins more than an
    /// interval behind the last one.
    pub fn note(&mut self, header: &BatchHeader, position: u64, index_interval: u64) {
        if self.first_timestamp.is_none() && position == 0 {
            self.first_timestamp = Some(header.max_timestamp).filter(|timestamp| *timestamp >= 0);
        }
        if header.max_timestamp > self.largest.0 {
            self.largest = (header.max_timestamp, header.last_offset());
        }
        // The segment rolls before either number exceeds 31 bits.
        let relative_offset = (header.last_offset().0 - self.base.0) as i32;
        if self.bytes_since_entry > index_interval {
            if self.offsets.last().is_none_or(|last| last.relative_offset < relative_offset) {
                self.offsets.push(OffsetEntry { relative_offset, position: position as i32 });
            }
            self.note_time();
            self.bytes_since_entry = 0;
        }
        self.bytes_since_entry += header.size() as u64;
        self.bytes_since_spill += header.size() as u64;
    }

    /// Adds the largest timestamp to the time index, unless it is there.
    pub fn note_time(&mut self) {
        let (timestamp, offset) = self.largest;
        if timestamp >= 0 && self.times.last().is_none_or(|last| last.timestamp < timestamp) {
            self.times.push(TimeEntry { timestamp, relative_offset: (offset.0 - self.base.0) as i32 });
        }
    }

    /// Writes and syncs the entries that are held in memory. The time index comes first: an entry of the other one says that
    /// both are complete up to there.
    pub fn spill(&mut self, files: &Files, dir: &Path) -> io::Result<()> {
        append_index(files, &path(dir, self.base, TIME_INDEX), &mut self.times)?;
        append_index(files, &path(dir, self.base, INDEX), &mut self.offsets)?;
        self.bytes_since_spill = 0;
        Ok(())
    }

    /// The index entry of the batch to begin a search for `offset` at, as far as memory tells. The batch of an entry with a
    /// smaller last offset ends before `offset`.
    pub fn floor_in_memory(&self, offset: Offset) -> Searched<OffsetEntry> {
        let relative = relative(offset, self.base);
        self.offsets.last_in_memory(|entry| entry.relative_offset <= relative)
    }

    /// Writes what is held in memory of the time index, and aside what has no file yet, and leaves their sync to the caller.
    /// Which of them stand aside.
    pub fn stage_times(&self, files: &Files, dir: &Path) -> io::Result<Aside> {
        let aside = Aside { times: !self.times.on_disk, offsets: !self.offsets.on_disk };
        stage_index(files, &path(dir, self.base, TIME_INDEX), &self.times)?;
        if aside.offsets {
            stage_index(files, &path(dir, self.base, INDEX), &self.offsets)?;
        }
        Ok(aside)
    }

    /// Gives the time index that stands aside its name.
    pub fn name_times(&self, files: &Files, dir: &Path, aside: Aside) -> io::Result<()> {
        if aside.times { name_index(files, &path(dir, self.base, TIME_INDEX)) } else { Ok(()) }
    }

    /// What [`Self::stage_times`] does, of the other one, once the time index is synced.
    pub fn stage_offsets(&self, files: &Files, dir: &Path, aside: Aside) -> io::Result<()> {
        let path = path(dir, self.base, INDEX);
        if aside.offsets { name_index(files, &path) } else { stage_index(files, &path, &self.offsets) }
    }

    /// What was staged is synced.
    pub fn mark_written(&mut self) {
        (self.times.on_disk, self.offsets.on_disk) = (true, true);
        self.times.mark_written();
        self.offsets.mark_written();
        self.bytes_since_spill = 0;
    }

    /// Where to begin a search for `offset`.
    pub fn floor(&self, files: &Files, dir: &Path, offset: Offset) -> io::Result<Begin> {
        let relative = relative(offset, self.base);
        let file = || files.reader(&path(dir, self.base, INDEX));
        let found = self.offsets.last_where(file, |entry| entry.relative_offset <= relative)?;
        Ok(Begin::in_segment(self.base, found))
    }

    /// The last entry of the time index whose timestamp is below `timestamp`: no batch up to its offset reaches it.
    pub fn floor_time(&self, files: &Files, dir: &Path, timestamp: i64) -> io::Result<Option<Offset>> {
        let file = || files.reader(&path(dir, self.base, TIME_INDEX));
        let found = self.times.last_where(file, |entry| entry.timestamp < timestamp)?;
        Ok(found.map(|entry| Offset(self.base.0 + i64::from(entry.relative_offset))))
    }

    /// Forgets index entries at and behind an offset, on the disk too, durably.
    pub fn cut_indexes(&mut self, files: &Files, dir: &Path, offset: Offset) -> io::Result<()> {
        let relative = offset.0 - self.base.0;
        cut_index(files, &path(dir, self.base, INDEX), &mut self.offsets, |entry| {
            i64::from(entry.relative_offset) < relative
        })?;
        cut_index(files, &path(dir, self.base, TIME_INDEX), &mut self.times, |entry| {
            i64::from(entry.relative_offset) < relative
        })?;
        self.take_largest_from_index();
        Ok(())
    }

    pub fn remove(&self, files: &Files, dir: &Path) -> io::Result<()> {
        // Indexes first: without its log file a segment's indexes would be taken for another's.
        for extension in [TIME_INDEX, INDEX, LOG] {
            remove_if_there(files, &path(dir, self.base, extension))?;
        }
        files.disk().sync_dir(dir)
    }

    /// Starts counting as after an entry at `position`, for a scan that begins there.
    pub fn count_from(&mut self, position: u64) {
        self.bytes_since_entry = 0;
        self.bytes_since_spill = 0;
        if position == 0 {
            self.first_timestamp = None;
        }
    }
}

fn remove_if_there(files: &Files, path: &Path) -> io::Result<()> {
    match files.change(path, |disk| disk.remove(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

trait Extension {
    const EXTENSION: &'static str;
}

impl Extension for OffsetEntry {
    const EXTENSION: &'static str = INDEX;
}

impl Extension for TimeEntry {
    const EXTENSION: &'static str = TIME_INDEX;
}

fn load_index<E: IndexEntry + Extension>(
    files: &Files,
    dir: &Path,
    base: Offset,
    whole: bool,
) -> io::Result<Option<Index<E>>> {
    let path = path(dir, base, E::EXTENSION);
    // Opened past the cache: most are looked at once, at the start.
    let file = match files.disk().open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let index = Index::of_file(&*file)?;
    if whole {
        return Ok(index);
    }
    // The end may be torn, and a torn sector is not in order.
    let mut bytes = vec![0; file.size()? as usize];
    let read = disk::read_full(&*file, 0, &mut bytes)?;
    Ok(index.filter(|_| read == bytes.len() && parse_index::<E>(&bytes).is_ok()))
}

fn append_index<E: IndexEntry>(files: &Files, path: &Path, index: &mut Index<E>) -> io::Result<()> {
    if !index.on_disk {
        files.change(path, |disk| checkpoint::replace(disk, path, &index.pending()))?;
        index.on_disk = true;
        index.mark_written();
    } else if index.tail_len() > 0 {
        // Not kept open: it is needed once in many megabytes.
        let mut file = files.disk().append(path)?;
        // A failed write may have left a part of an entry.
        file.truncate(index.written_bytes())?;
        file.append(&index.pending())?;
        file.sync()?;
        index.mark_written();
    }
    Ok(())
}

/// The indexes that have no file yet, and stand under another name.
#[derive(Clone, Copy)]
pub(super) struct Aside {
    times: bool,
    offsets: bool,
}

fn name_index(files: &Files, path: &Path) -> io::Result<()> {
    files.change(path, |disk| disk.rename(&disk::temporary_name(path), path))
}

fn stage_index<E: IndexEntry>(files: &Files, path: &Path, index: &Index<E>) -> io::Result<()> {
    if !index.on_disk {
        files.disk().create(&disk::temporary_name(path))?.append(&index.pending())?;
    } else if index.tail_len() > 0 {
        let mut file = files.disk().append(path)?;
        // A failed write may have left a part of an entry.
        file.truncate(index.written_bytes())?;
        file.append(&index.pending())?;
    }
    Ok(())
}

fn cut_index<E: IndexEntry>(
    files: &Files,
    path: &Path,
    index: &mut Index<E>,
    fits: impl Fn(&E) -> bool,
) -> io::Result<()> {
    let reader = match index.written_bytes() {
        0 => None,
        _ => Some(files.reader(path)?),
    };
    if index.cut(reader.as_deref(), fits)? {
        let mut file = files.disk().append(path)?;
        file.truncate(index.written_bytes())?;
        file.sync()?;
    }
    Ok(())
}
