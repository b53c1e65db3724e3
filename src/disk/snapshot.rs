//! One file per snapshot: `snapshot-<version>-<digest>`, a header, the body, and a trailer that proves it whole.
//!
//! A snapshot never changes once it has its name. It is written as it is encoded and read as it is decoded: no part of
//! this holds a body in memory.

use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::codec::{FILE_HEADER_BYTES, FileHeader, SNAPSHOT_MAGIC, TRAILER_BYTES, Trailer};
use super::error::StoreError;
use super::files::{Disk, ReadFile, WriteFile, read_full, temporary_name};
use super::segment::header_error;
use crate::types::{ControllerEpoch, Position, Version};

const BUFFER_BYTES: usize = 256 * 1024;

/// What is known of a snapshot without reading its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotInfo {
    pub position: Position,
    /// As given by who wrote it. The store's own, which never goes back, may be higher.
    pub controller_epoch: ControllerEpoch,
    pub body_bytes: u64,
    /// CRC-32C of the body: who fetches it in chunks can verify the whole.
    pub body_crc: u32,
}

impl SnapshotInfo {
    pub(super) fn path_in(&self, dir: &Path) -> PathBuf {
        dir.join(file_name(self.position))
    }
}

pub(super) fn file_name(position: Position) -> String {
    format!("snapshot-{:020}-{}", position.version.0, position.digest)
}

/// The position in a snapshot's file name.
pub(super) fn parse_name(name: &str) -> Option<Position> {
    let (version, digest) = name.strip_prefix("snapshot-")?.split_once('-')?;
    let position = Position { version: Version(version.parse().ok()?), digest: digest.parse().ok()? };
    (file_name(position) == name).then_some(position)
}

/// A file that is removed unless it came to be kept.
struct Temporary {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    kept: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            let _ = self.disk.remove(&self.path); // The next start removes it, if this cannot.
        }
    }
}

/// Writes a snapshot's body, on any thread, beside a store that goes on. Nothing believes it before it is installed.
pub struct SnapshotWriter {
    file: Box<dyn WriteFile>,
    buffer: Vec<u8>,
    info: SnapshotInfo,
    temporary: Temporary,
}

/// A snapshot that is whole and synced, but not yet the store's. Dropped, it leaves nothing.
pub struct FinishedSnapshot {
    info: SnapshotInfo,
    temporary: Temporary,
}

impl SnapshotWriter {
    /// `number` tells apart what is written at the same time.
    pub(super) fn create(
        disk: Arc<dyn Disk>,
        dir: &Path,
        number: u64,
        position: Position,
        controller_epoch: ControllerEpoch,
    ) -> Result<Self, StoreError> {
        let path = temporary_name(&dir.join(format!("{}.{number}", file_name(position))));
        let file = disk.create(&path).map_err(StoreError::io("begin a snapshot", &path))?;
        let info = SnapshotInfo { position, controller_epoch, body_bytes: 0, body_crc: 0 };
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        buffer.extend(FileHeader { position, controller_epoch }.encode(SNAPSHOT_MAGIC));
        Ok(Self { file, buffer, info, temporary: Temporary { disk, path, kept: false } })
    }

    fn drain(&mut self) -> io::Result<()> {
        self.file.append(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Ends the body and syncs it.
    pub fn finish(mut self) -> Result<FinishedSnapshot, StoreError> {
        let trailer = Trailer { body_bytes: self.info.body_bytes, body_crc: self.info.body_crc };
        self.buffer.extend(trailer.encode());
        let synced = self.drain().and_then(|()| self.file.sync());
        synced.map_err(StoreError::io("write a snapshot", &self.temporary.path))?;
        Ok(FinishedSnapshot { info: self.info, temporary: self.temporary })
    }

    pub(super) fn path(&self) -> &Path {
        &self.temporary.path
    }
}

impl Write for SnapshotWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.buffer.is_empty() && self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.drain()?;
        }
        if bytes.len() >= BUFFER_BYTES {
            self.file.append(bytes)?;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        self.info.body_bytes += bytes.len() as u64;
        self.info.body_crc = crc32c::crc32c_append(self.info.body_crc, bytes);
        Ok(())
    }

    /// Does nothing: the body is handed to the disk in pieces of its own size.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl FinishedSnapshot {
    pub fn info(&self) -> SnapshotInfo {
        self.info
    }

    pub(super) fn temporary_path(&self) -> &Path {
        &self.temporary.path
    }

    /// Its temporary name has become a lasting one, or may have.
    pub(super) fn keep(mut self) {
        self.temporary.kept = true;
    }
}

/// A snapshot's body, read in order.
pub struct SnapshotReader {
    body: BufReader<Body>,
    info: SnapshotInfo,
}

struct Body {
    file: Box<dyn ReadFile>,
    offset: u64,
    end: u64,
}

impl SnapshotReader {
    pub fn info(&self) -> SnapshotInfo {
        self.info
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.body.read(into)
    }
}

impl Read for Body {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = (self.end - self.offset).min(into.len() as u64) as usize;
        let read = self.file.read_at(self.offset, &mut into[..len])?;
        if read == 0 && len > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += read as u64;
        Ok(read)
    }
}

/// Opens the body of a snapshot that was verified before.
pub(super) fn open(disk: &dyn Disk, dir: &Path, info: SnapshotInfo) -> Result<SnapshotReader, StoreError> {
    let path = info.path_in(dir);
    let file = disk.open(&path).map_err(StoreError::io("open", &path))?;
    let offset = FILE_HEADER_BYTES as u64;
    let body = Body { file, offset, end: offset + info.body_bytes };
    Ok(SnapshotReader { body: BufReader::with_capacity(BUFFER_BYTES, body), info })
}

/// Reads a snapshot through and tells what it is. Whatever is wrong with it is damage: it got its name only when whole.
pub(super) fn verify(disk: &dyn Disk, dir: &Path, position: Position) -> Result<SnapshotInfo, StoreError> {
    let path = dir.join(file_name(position));
    let read = |source| StoreError::Io { action: "read", path: path.clone(), source };
    let file = disk.open(&path).map_err(read)?;
    let size = file.size().map_err(read)?;
    let overhead = (FILE_HEADER_BYTES + TRAILER_BYTES) as u64;
    let Some(body_bytes) = size.checked_sub(overhead) else {
        return Err(StoreError::damaged(&path, size, "the snapshot is cut short"));
    };
    let mut header = [0; FILE_HEADER_BYTES];
    read_full(&*file, 0, &mut header).map_err(read)?;
    let header = FileHeader::decode(&header, SNAPSHOT_MAGIC).map_err(|fault| header_error(&path, fault))?;
    if header.position != position {
        return Err(StoreError::damaged(&path, 0, "its header names another position than its file name"));
    }
    let mut trailer = [0; TRAILER_BYTES];
    let trailer_at = FILE_HEADER_BYTES as u64 + body_bytes;
    read_full(&*file, trailer_at, &mut trailer).map_err(read)?;
    let trailer = Trailer::decode(&trailer).filter(|trailer| trailer.body_bytes == body_bytes);
    let Some(trailer) = trailer else {
        return Err(StoreError::damaged(&path, trailer_at, "the snapshot is cut short or its end is overwritten"));
    };
    let info =
        SnapshotInfo { position, controller_epoch: header.controller_epoch, body_bytes, body_crc: trailer.body_crc };
    let mut body = Body { file, offset: FILE_HEADER_BYTES as u64, end: trailer_at };
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut crc = 0;
    loop {
        match body.read(&mut buffer).map_err(read)? {
            0 => break,
            count => crc = crc32c::crc32c_append(crc, &buffer[..count]),
        }
    }
    if crc != info.body_crc {
        return Err(StoreError::damaged(&path, FILE_HEADER_BYTES as u64, "the snapshot's checksum is wrong"));
    }
    Ok(info)
}
