//! Kafka's sparse indexes: of offsets to positions in the segment, and of timestamps to offsets.
//!
//! Entries are appended in memory and written in lots, so that a thousand partitions keep no thousand index files open; a
//! look-up goes through both. A missing tail costs a longer scan, never an answer.

use std::io;
use std::sync::Arc;

use crate::disk::ReadFile;

/// An entry of either index. Its key rises from entry to entry.
pub trait IndexEntry: Copy {
    const BYTES: usize;
    fn key(&self) -> i64;
    fn put(&self, out: &mut Vec<u8>);
    /// From exactly [`Self::BYTES`] bytes.
    fn get(bytes: &[u8]) -> Self;
}

/// `.index`: the last offset of a batch, counted from the segment's base, and where the batch begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OffsetEntry {
    pub relative_offset: i32,
    pub position: i32,
}

/// `.timeindex`: the largest timestamp up to the batch with this last offset, counted from the segment's base.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimeEntry {
    pub timestamp: i64,
    pub relative_offset: i32,
}

impl IndexEntry for OffsetEntry {
    const BYTES: usize = 8;

    fn key(&self) -> i64 {
        self.relative_offset.into()
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.relative_offset.to_be_bytes());
        out.extend_from_slice(&self.position.to_be_bytes());
    }

    fn get(bytes: &[u8]) -> Self {
        Self { relative_offset: int_at(bytes, 0), position: int_at(bytes, 4) }
    }
}

impl IndexEntry for TimeEntry {
    const BYTES: usize = 12;

    fn key(&self) -> i64 {
        self.timestamp
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.timestamp.to_be_bytes());
        out.extend_from_slice(&self.relative_offset.to_be_bytes());
    }

    fn get(bytes: &[u8]) -> Self {
        let high = i64::from(int_at(bytes, 0)) << 32;
        Self { timestamp: high | i64::from(int_at(bytes, 4) as u32), relative_offset: int_at(bytes, 8) }
    }
}

fn int_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IndexError {
    #[error("its {bytes} bytes are no whole number of entries, each of {entry}")]
    Partial { bytes: u64, entry: usize },
    #[error("entry {0} does not come after the one before it")]
    Order(usize),
    #[error("entry {0} is negative")]
    Negative(usize),
}

/// Reads a whole index file, checking what can be checked without its segment.
pub fn parse_index<E: IndexEntry>(bytes: &[u8]) -> Result<Vec<E>, IndexError> {
    if !bytes.len().is_multiple_of(E::BYTES) {
        return Err(IndexError::Partial { bytes: bytes.len() as u64, entry: E::BYTES });
    }
    let mut entries: Vec<E> = Vec::with_capacity(bytes.len() / E::BYTES);
    for (number, chunk) in bytes.chunks_exact(E::BYTES).enumerate() {
        let entry = E::get(chunk);
        if entry.key() < 0 {
            return Err(IndexError::Negative(number));
        }
        if entries.last().is_some_and(|last| last.key() >= entry.key()) {
            return Err(IndexError::Order(number));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// How many entries the file has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written(u32);

/// What a look at the entries in memory came to.
pub(super) enum Searched<E> {
    /// That is the last one that fits, or there is none.
    Found(Option<E>),
    /// It is among those in the file.
    InFile(Written),
}

impl Written {
    /// The last entry of the file that fits.
    pub fn last_where<E: IndexEntry>(self, file: &dyn ReadFile, fits: impl Fn(&E) -> bool) -> io::Result<Option<E>> {
        Ok(search(file, self.0, &fits)?.map(|(_, entry)| entry))
    }
}

/// One index: so many entries in its file, and those that are yet to be written.
#[derive(Clone, Debug)]
pub(super) struct Index<E> {
    written: u32,
    tail: Vec<E>,
    last: Option<E>,
    /// Whether there is a file at all.
    pub on_disk: bool,
}

impl<E: IndexEntry> Index<E> {
    pub fn empty() -> Self {
        Self { written: 0, tail: Vec::new(), last: None, on_disk: false }
    }

    /// That of a file as it stands, or none where it cannot be one that was written.
    pub fn of_file(file: &dyn ReadFile) -> io::Result<Option<Self>> {
        let size = file.size()?;
        let Ok(written) = u32::try_from(size / E::BYTES as u64) else { return Ok(None) };
        if size % E::BYTES as u64 != 0 {
            return Ok(None);
        }
        let last = match written.checked_sub(1) {
            Some(number) => Some(read_entry(file, number)?),
            None => None,
        };
        Ok(Some(Self { written, tail: Vec::new(), last, on_disk: true }))
    }

    pub fn last(&self) -> Option<E> {
        self.last
    }

    pub fn tail_len(&self) -> usize {
        self.tail.len()
    }

    pub fn written_bytes(&self) -> u64 {
        u64::from(self.written) * E::BYTES as u64
    }

    pub fn push(&mut self, entry: E) {
        self.tail.push(entry);
        self.last = Some(entry);
    }

    /// The bytes to append to the file, once [`Self::mark_written`] is called.
    pub fn pending(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.tail.len() * E::BYTES);
        self.tail.iter().for_each(|entry| entry.put(&mut bytes));
        bytes
    }

    pub fn mark_written(&mut self) {
        self.written += self.tail.len() as u32; // A segment has fewer than 2^31 bytes, and an entry for at least 61 of them.
        self.tail = Vec::new();
    }

    /// The last entry that fits, as far as memory tells: `fits` holds for a first part of them and for none after it.
    pub fn last_in_memory(&self, fits: impl Fn(&E) -> bool) -> Searched<E> {
        match self.tail.partition_point(&fits).checked_sub(1) {
            Some(number) => Searched::Found(Some(self.tail[number])),
            None if self.written == 0 => Searched::Found(None),
            None => Searched::InFile(Written(self.written)),
        }
    }

    /// The last entry that fits, among all.
    pub fn last_where(
        &self,
        file: impl FnOnce() -> io::Result<Arc<dyn ReadFile>>,
        fits: impl Fn(&E) -> bool,
    ) -> io::Result<Option<E>> {
        match self.last_in_memory(&fits) {
            Searched::Found(found) => Ok(found),
            Searched::InFile(written) => written.last_where(&*file()?, fits),
        }
    }

    /// Forgets the entries that don't fit. Whether the file has to be cut to [`Self::written_bytes`].
    pub fn cut(&mut self, file: Option<&dyn ReadFile>, fits: impl Fn(&E) -> bool) -> io::Result<bool> {
        self.tail.truncate(self.tail.partition_point(&fits));
        if let Some(last) = self.tail.last() {
            self.last = Some(*last);
            return Ok(false);
        }
        let found = match file {
            Some(file) => search(file, self.written, &fits)?,
            None => None,
        };
        let written = found.as_ref().map_or(0, |(number, _)| number + 1);
        self.last = found.map(|(_, entry)| entry);
        let shorter = written < self.written;
        self.written = written;
        Ok(shorter)
    }
}

fn search<E: IndexEntry>(
    file: &dyn ReadFile,
    written: u32,
    fits: &impl Fn(&E) -> bool,
) -> io::Result<Option<(u32, E)>> {
    let (mut low, mut high, mut best) = (0, written, None);
    while low < high {
        let middle = low + (high - low) / 2;
        let entry = read_entry(file, middle)?;
        if fits(&entry) {
            best = Some((middle, entry));
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(best)
}

fn read_entry<E: IndexEntry>(file: &dyn ReadFile, number: u32) -> io::Result<E> {
    let mut buffer = [0; 12];
    let bytes = &mut buffer[..E::BYTES];
    match crate::disk::read_full(file, u64::from(number) * E::BYTES as u64, bytes)? {
        read if read == E::BYTES => Ok(E::get(bytes)),
        _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the index is shorter than it was")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::disk::Disk;
    use crate::disk::sim::SimDisk;

    #[test]
    fn entries_are_laid_out_as_kafka_lays_them_out() {
        let mut bytes = Vec::new();
        OffsetEntry { relative_offset: 0x0102_0304, position: 0x0506_0708 }.put(&mut bytes);
        assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8]);
        bytes.clear();
        let entry = TimeEntry { timestamp: 0x0102_0304_8506_0708, relative_offset: 9 };
        entry.put(&mut bytes);
        assert_eq!(bytes, [1, 2, 3, 4, 0x85, 6, 7, 8, 0, 0, 0, 9]);
        assert_eq!(parse_index(&bytes), Ok(vec![entry]));
        assert_eq!(parse_index::<OffsetEntry>(&bytes), Err(IndexError::Partial { bytes: 12, entry: 8 }));
    }

    #[test]
    fn a_look_up_goes_through_file_and_tail_alike() {
        let disk = SimDisk::new(1);
        let path = Path::new("/i");
        let entry = |number: i32| OffsetEntry { relative_offset: number * 10, position: number };
        for written in 0..6 {
            let mut index = Index::empty();
            (0..written).for_each(|number| index.push(entry(number)));
            let mut file = disk.create(path).unwrap();
            file.append(&index.pending()).unwrap();
            index.mark_written();
            (written..6).for_each(|number| index.push(entry(number)));
            let file: Arc<dyn ReadFile> = disk.open(path).unwrap().into();
            for offset in 0..70 {
                let found = index.last_where(|| Ok(file.clone()), |entry| entry.relative_offset <= offset).unwrap();
                assert_eq!(found.unwrap().position, (offset / 10).min(5), "{written} {offset}");
            }
            assert_eq!(index.last_where(|| Ok(file.clone()), |entry| entry.relative_offset < 0).unwrap(), None);
            let shorter = index.cut(Some(&*file), |entry| entry.relative_offset <= 25).unwrap();
            assert_eq!((shorter, index.last()), (written > 3, Some(entry(2))));
        }
    }
}
