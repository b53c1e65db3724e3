//! The few file operations that the store is built on, so that tests can put a disk under it that loses and tears.
//!
//! Nothing here decides what is durable: a caller syncs a file for its bytes, and its folder for its name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

/// A disk: the real one, or [`SimDisk`](super::sim::SimDisk).
pub trait Disk: Send + Sync {
    /// Makes the folder and its parents where they are missing, for this user alone, and makes the folder's name durable.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// The same, but the names are durable only once their folders, or the file system, are synced.
    fn create_dir_unsynced(&self, dir: &Path) -> io::Result<()> {
        self.create_dir(dir)
    }
    /// Opens a file for writing that is empty, whether or not it existed.
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>>;
    /// Opens an existing file for writing at its end.
    fn append(&self, path: &Path) -> io::Result<Box<dyn WriteFile>>;
    /// Writes these bytes over those that an existing file has at `at`, for the next sync to write them again.
    fn overwrite(&self, path: &Path, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Opens an existing file for reading. It stays readable when its name is taken away.
    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>>;
    /// Replaces `to` by `from`, at once or not at all. A folder takes what is in it along.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder with the files in it. Killed meanwhile, it leaves some of them.
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// A file's length in bytes, without opening it.
    fn size(&self, path: &Path) -> io::Result<u64>;
    /// The names of what is in a folder, files and folders, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes the names in a folder durable: what was created, renamed and removed in it.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// What makes everything on the folder's file system durable at once; none where the operating system cannot.
    fn file_system(&self, dir: &Path) -> io::Result<Option<Box<dyn FileSystem>>>;
    /// How many files may be open at once, as far as the operating system says it.
    fn open_files_limit(&self) -> usize {
        usize::MAX
    }
}

/// All files of a disk together. It stays open, so that no error is missed that the kernel met between two syncs.
pub trait FileSystem: Send + Sync {
    /// Makes every file's bytes and name durable, those of other processes too.
    fn sync(&self) -> io::Result<()>;
}

/// A file that is written at its end.
pub trait WriteFile: Send {
    /// Appends all the bytes, in one system call unless the disk takes fewer. After an error some of them may be there.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Appends several pieces one after another, as [`Self::append`] does it.
    fn append_parts(&mut self, parts: &[&[u8]]) -> io::Result<()>;
    /// Makes the bytes and the length durable. One that failed is not to be repeated: the kernel may have dropped the
    /// pages that it could not write, and the next sync would then succeed without them.
    fn sync(&mut self) -> io::Result<()>;
    /// Shortens the file, so that the next write begins at `len`.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
}

/// A file that is read at any place, by several threads.
pub trait ReadFile: Send + Sync {
    fn size(&self) -> io::Result<u64>;
    /// Reads what there is at `offset`: fewer bytes than asked for, or none, at the end of the file.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize>;
    /// Says that what is there, and durable, need not stay in memory. Nothing more comes of it than slower reading.
    fn let_go(&self, range: Range<u64>) {
        let _ = range;
    }
    /// Says that what is there will be read soon: the disk may begin with it.
    fn will_need(&self, range: Range<u64>) {
        let _ = range;
    }
}

/// The operating system's file system.
#[derive(Clone, Copy, Default, Debug)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir_unsynced(&self, dir: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.create_dir_unsynced(dir)?;
        // Also where it existed: who made it may have been killed before this.
        self.sync_dir(parent_of(dir))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        // Truncation by `set_len`, since std refuses `append` together with `truncate`. Not where there is nothing to truncate:
        // ext4 would write the file back as soon as it is closed.
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        if file.metadata()?.len() > 0 {
            file.set_len(0)?;
        }
        Ok(Box::new(RealFile(file)))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        Ok(Box::new(RealFile(OpenOptions::new().append(true).open(path)?)))
    }

    fn overwrite(&self, path: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().write(true).open(path)?.write_all_at(bytes, at)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        Ok(Box::new(RealFile(File::open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir_all(dir)
    }

    fn size(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    /// The soft limit is raised to the hard one: it is that low for programs that use `select`.
    fn open_files_limit(&self) -> usize {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limits = getrlimit(Resource::Nofile);
        let raised = Rlimit { current: limits.maximum, maximum: limits.maximum };
        let limit = match setrlimit(Resource::Nofile, raised) {
            Ok(()) => limits.maximum,
            Err(_) => limits.current,
        };
        limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
    }

    #[cfg(target_os = "linux")]
    fn file_system(&self, dir: &Path) -> io::Result<Option<Box<dyn FileSystem>>> {
        Ok(Some(Box::new(RealFileSystem(File::open(dir)?))))
    }

    #[cfg(not(target_os = "linux"))]
    fn file_system(&self, _dir: &Path) -> io::Result<Option<Box<dyn FileSystem>>> {
        Ok(None)
    }
}

#[cfg(target_os = "linux")]
struct RealFileSystem(File);

#[cfg(target_os = "linux")]
impl FileSystem for RealFileSystem {
    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.0)?)
    }
}

/// Of its own, so that the traits' methods don't compete with those of std for every file.
struct RealFile(File);

impl WriteFile for RealFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn append_parts(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = &mut slices[..];
        // Nothing to write is no error, as with `write_all`.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match self.0.write_vectored(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut rest, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

impl ReadFile for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read_at(into, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    #[cfg(target_os = "linux")]
    fn let_go(&self, range: Range<u64>) {
        // What is only partly in the range stays, and the kernel's pieces are of up to 2 MiB: what stayed the last time goes now.
        const BEFORE: u64 = 4 << 20;
        let start = range.start.saturating_sub(BEFORE);
        self.advise(start..range.end, rustix::fs::Advice::DontNeed);
    }

    #[cfg(target_os = "linux")]
    fn will_need(&self, range: Range<u64>) {
        self.advise(range, rustix::fs::Advice::WillNeed);
    }
}

#[cfg(target_os = "linux")]
impl RealFile {
    /// It is advice: whatever comes of it.
    fn advise(&self, range: Range<u64>, advice: rustix::fs::Advice) {
        if let Some(len) = NonZeroU64::new(range.end.saturating_sub(range.start)) {
            let _ = rustix::fs::fadvise(&self.0, range.start, Some(len), advice);
        }
    }
}

/// The folder that a path's name is in; `.` for a bare name.
pub(super) fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Gives a file that is whole and synced its final name, durably.
pub(crate) fn publish(disk: &dyn Disk, temporary: &Path, path: &Path) -> io::Result<()> {
    disk.rename(temporary, path)?;
    disk.sync_dir(parent_of(path))
}

/// The name that a file has until it is whole. What ends so is refuse after a crash.
pub(crate) fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(TEMPORARY);
    PathBuf::from(name)
}

pub(crate) const TEMPORARY: &str = ".tmp";

/// Reads a file in order through one buffer, so that small items don't cost a system call each.
pub(super) struct Window {
    file: Box<dyn ReadFile>,
    /// Where the readable bytes end, fixed when the window was opened.
    end: u64,
    start: u64,
    bytes: Vec<u8>,
}

const WINDOW_BYTES: usize = 64 * 1024;

impl Window {
    pub fn new(file: Box<dyn ReadFile>, end: u64) -> Self {
        Self { file, end, start: 0, bytes: Vec::new() }
    }

    pub fn end(&self) -> u64 {
        self.end
    }

    /// The bytes at `offset`, or `None` where the file ends before `len` of them.
    pub fn get(&mut self, offset: u64, len: usize) -> io::Result<Option<&[u8]>> {
        let Some(wanted_end) = offset.checked_add(len as u64).filter(|end| *end <= self.end) else { return Ok(None) };
        if offset < self.start || wanted_end > self.start + self.bytes.len() as u64 {
            let fill = u64::min(self.end - offset, usize::max(len, WINDOW_BYTES) as u64) as usize;
            self.bytes.resize(fill, 0);
            self.start = offset;
            let read = read_full(&*self.file, offset, &mut self.bytes)?;
            self.bytes.truncate(read);
            if read < len {
                return Ok(None);
            }
        }
        let at = (offset - self.start) as usize;
        Ok(Some(&self.bytes[at..at + len]))
    }
}

/// Fills the buffer unless the file ends before; how much was read.
pub(crate) fn read_full(file: &dyn ReadFile, offset: u64, into: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(offset + done as u64, &mut into[done..])? {
            0 => break,
            read => done += read,
        }
    }
    Ok(done)
}
