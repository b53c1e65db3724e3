//! One file of the entries log: `entries-<base version>.log`, a header and then a frame per append.
//!
//! Tells a torn tail (an append that was never acknowledged) from damage (one that was). Cuts nothing itself.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::codec::{
    FILE_HEADER_BYTES, FORMAT, FRAME_HEADER_BYTES, FileHeader, FrameHeader, HeaderFault, SEGMENT_MAGIC, decode_change,
};
use super::error::StoreError;
use super::files::{Disk, Window, WriteFile, publish, temporary_name};
use crate::types::{ControllerEpoch, Position, Version};

/// What is known of a segment while the store is open.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub path: PathBuf,
    /// Where the history stood when the segment was begun.
    pub base: Position,
    /// How many of its bytes are whole and synced. Nobody reads beyond.
    pub durable_bytes: u64,
    /// Frames to begin reading at: the version before each, and where it is. One per so many bytes.
    index: Vec<(Version, u64)>,
}

const INDEX_INTERVAL_BYTES: u64 = 64 * 1024;

impl Segment {
    fn new(path: PathBuf, base: Position) -> Self {
        Self { path, base, durable_bytes: FILE_HEADER_BYTES as u64, index: Vec::new() }
    }

    /// Takes note of a frame that is now durable.
    pub fn extend(&mut self, frame: &FrameHeader) {
        let last = self.index.last().map_or(FILE_HEADER_BYTES as u64, |(_, offset)| *offset);
        if frame.offset >= last + INDEX_INTERVAL_BYTES {
            self.index.push((frame.before, frame.offset));
        }
        self.durable_bytes = frame.end();
    }

    /// Where to begin reading for what comes after `version`.
    pub fn offset_for(&self, version: Version) -> u64 {
        let after = self.index.partition_point(|(before, _)| *before <= version);
        after.checked_sub(1).map_or(FILE_HEADER_BYTES as u64, |at| self.index[at].1)
    }

    pub fn is_empty(&self) -> bool {
        self.durable_bytes == FILE_HEADER_BYTES as u64
    }
}

pub(super) fn file_name(base: Version) -> String {
    format!("entries-{:020}.log", base.0)
}

/// The base version in a segment's file name.
pub(super) fn parse_name(name: &str) -> Option<Version> {
    let version = Version(name.strip_prefix("entries-")?.strip_suffix(".log")?.parse().ok()?);
    (file_name(version) == name).then_some(version)
}

/// A new segment that is whole and synced, under a name that counts for nothing yet.
pub(super) struct NewSegment {
    segment: Segment,
    file: Box<dyn WriteFile>,
    temporary: PathBuf,
}

/// Writes a new segment's header. It is part of the log only when it is published.
pub(super) fn prepare(disk: &dyn Disk, dir: &Path, header: FileHeader) -> Result<NewSegment, StoreError> {
    let path = dir.join(file_name(header.position.version));
    let temporary = temporary_name(&path);
    let written = disk.create(&temporary).and_then(|mut file| {
        file.append(&header.encode(SEGMENT_MAGIC))?;
        file.sync()?;
        Ok(file)
    });
    match written {
        Ok(file) => Ok(NewSegment { segment: Segment::new(path, header.position), file, temporary }),
        Err(source) => {
            let _ = disk.remove(&temporary); // The next start removes it, if this cannot.
            Err(StoreError::Io { action: "begin an entries log", path: temporary, source })
        }
    }
}

impl NewSegment {
    /// Gives the segment its name, durably. After an error it is open whether it has it.
    pub fn publish(self, disk: &dyn Disk) -> Result<(Segment, Box<dyn WriteFile>), StoreError> {
        publish(disk, &self.temporary, &self.segment.path)
            .map_err(StoreError::io("name an entries log", &self.segment.path))?;
        Ok((self.segment, self.file))
    }

    /// Takes back a segment that is not wanted after all.
    pub fn discard(self, disk: &dyn Disk) {
        let _ = disk.remove(&self.temporary); // The next start removes it, if this cannot.
    }
}

/// What reading a segment from its beginning found.
pub(super) struct Scanned {
    pub segment: Segment,
    /// Where the history stands at its end.
    pub last: Position,
    pub controller_epoch: ControllerEpoch,
    /// Bytes after the last whole frame.
    pub torn_bytes: u64,
}

/// Reads and verifies a segment. `may_be_torn` for the last one alone: a segment is left only when all of it is synced.
pub(super) fn scan(disk: &dyn Disk, path: &Path, named: Version, may_be_torn: bool) -> Result<Scanned, StoreError> {
    let (mut window, header) = open(disk, path, named)?;
    let mut found = Scanned {
        segment: Segment::new(path.to_owned(), header.position),
        last: header.position,
        controller_epoch: header.controller_epoch,
        torn_bytes: 0,
    };
    loop {
        let offset = found.segment.durable_bytes;
        match next_frame(&mut window, path, offset, found.last.version)? {
            Next::End => return Ok(found),
            Next::Torn if may_be_torn => {
                found.torn_bytes = window.end() - offset;
                return Ok(found);
            }
            Next::Torn => {
                return Err(StoreError::damaged(path, offset, "an entry is cut short or has a wrong checksum"));
            }
            Next::Frame(frame, _) => {
                found.segment.extend(&frame);
                found.last = frame.after;
                found.controller_epoch = found.controller_epoch.max(frame.controller_epoch);
            }
        }
    }
}

fn open(disk: &dyn Disk, path: &Path, named: Version) -> Result<(Window, FileHeader), StoreError> {
    let file = disk.open(path).map_err(StoreError::io("open", path))?;
    let end = file.size().map_err(StoreError::io("read", path))?;
    let mut window = Window::new(file, end);
    let bytes = window.get(0, FILE_HEADER_BYTES).map_err(StoreError::io("read", path))?;
    let bytes = bytes.ok_or_else(|| StoreError::damaged(path, 0, "its header is cut short"))?;
    let header = FileHeader::decode(bytes, SEGMENT_MAGIC).map_err(|fault| header_error(path, fault))?;
    if header.position.version != named {
        return Err(StoreError::damaged(path, 0, "its header names another version than its file name"));
    }
    Ok((window, header))
}

pub(super) fn header_error(path: &Path, fault: HeaderFault) -> StoreError {
    match fault {
        HeaderFault::Damaged(what) => StoreError::damaged(path, 0, what),
        HeaderFault::UnknownFormat(found) => StoreError::UnknownFormat { path: path.to_owned(), found, known: FORMAT },
    }
}

pub(super) enum Next {
    End,
    /// A frame and its payload, whose checksum is right.
    Frame(FrameHeader, Bytes),
    /// No frame, and nothing after it shows that there ever was one.
    Torn,
}

/// Reads the frame at `offset`, which follows `before`.
///
/// Damage is an error where the file itself proves that the bytes had been synced: when something was written after them.
pub(super) fn next_frame(window: &mut Window, path: &Path, offset: u64, before: Version) -> Result<Next, StoreError> {
    if offset == window.end() {
        return Ok(Next::End);
    }
    let read = |source| StoreError::Io { action: "read", path: path.to_owned(), source };
    let header = window.get(offset, FRAME_HEADER_BYTES).map_err(read)?;
    let Some(header) = header.and_then(|bytes| FrameHeader::decode(bytes, offset)) else {
        return match find_frame(window, offset + 1).map_err(read)? {
            Some(later) => Err(StoreError::damaged(
                path,
                offset,
                format!("an entry's header is wrong, although another entry follows at byte {later}"),
            )),
            None => Ok(Next::Torn),
        };
    };
    if header.before != before || header.after.version <= before {
        let what = format!("an entry that follows version {} stands after version {before}", header.before);
        return Err(StoreError::damaged(path, offset, what));
    }
    let end = window.end();
    let payload = window.get(offset + FRAME_HEADER_BYTES as u64, header.payload_bytes).map_err(read)?;
    match payload.filter(|payload| crc32c::crc32c(payload) == header.payload_crc) {
        Some(payload) => Ok(Next::Frame(header, Bytes::copy_from_slice(payload))),
        None if header.end() < end => {
            let what = "an entry's checksum is wrong, although the file goes on after it";
            Err(StoreError::damaged(path, offset, what))
        }
        None => Ok(Next::Torn),
    }
}

/// Where the next frame's header is at or after `from`.
fn find_frame(window: &mut Window, from: u64) -> std::io::Result<Option<u64>> {
    let mut offset = from;
    while let Some(bytes) = window.get(offset, FRAME_HEADER_BYTES)? {
        if FrameHeader::decode(bytes, offset).is_some() {
            return Ok(Some(offset));
        }
        offset += 1;
    }
    Ok(None)
}

/// All the changes of a frame whose checksum is right.
pub(super) fn decode_all(mut payload: Bytes) -> Option<Vec<super::StoredChange>> {
    let mut changes = Vec::new();
    while !payload.is_empty() {
        changes.push(decode_change(&mut payload)?);
    }
    Some(changes)
}
