//! The open files of all of a node's logs: the most recently used ones, so that ten thousand partitions need few handles.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{Disk, ReadFile, WriteFile};

/// A file that is written by one thread at a time.
pub(super) type Writer = Arc<Mutex<Box<dyn WriteFile>>>;

/// A disk with the handles that are open on it.
pub struct Files {
    disk: Arc<dyn Disk>,
    capacity: usize,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    clock: u64,
    readers: HashMap<PathBuf, (Arc<dyn ReadFile>, u64)>,
    writers: HashMap<PathBuf, (Writer, u64)>,
}

/// How many handles of either kind a node keeps where nothing else is said.
pub const DEFAULT_OPEN_FILES: usize = 256;

impl Files {
    /// At most `capacity` files for reading and as many for writing stay open between their uses.
    pub fn new(disk: Arc<dyn Disk>, capacity: usize) -> Arc<Self> {
        Arc::new(Self { disk, capacity: capacity.max(1), open: Mutex::default() })
    }

    pub fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    pub(super) fn reader(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        let mut open = self.lock();
        open.clock += 1;
        let now = open.clock;
        if let Some((file, used)) = open.readers.get_mut(path) {
            *used = now;
            return Ok(file.clone());
        }
        let file: Arc<dyn ReadFile> = self.disk.open(path)?.into();
        make_room(&mut open.readers, self.capacity);
        open.readers.insert(path.to_owned(), (file.clone(), now));
        Ok(file)
    }

    /// An existing file, to be written at its end. What was written through an earlier handle is synced by this one too.
    pub(super) fn writer(&self, path: &Path) -> io::Result<Writer> {
        let mut open = self.lock();
        open.clock += 1;
        let now = open.clock;
        if let Some((file, used)) = open.writers.get_mut(path) {
            *used = now;
            return Ok(file.clone());
        }
        let file: Writer = Arc::new(Mutex::new(self.disk.append(path)?));
        make_room(&mut open.writers, self.capacity);
        open.writers.insert(path.to_owned(), (file.clone(), now));
        Ok(file)
    }

    /// To be called before a name is given to another file or to none.
    pub(super) fn forget(&self, path: &Path) {
        let mut open = self.lock();
        open.readers.remove(path);
        open.writers.remove(path);
    }

    /// To be called before a folder is given another name.
    pub(super) fn forget_below(&self, dir: &Path) {
        let mut open = self.lock();
        open.readers.retain(|path, _| !path.starts_with(dir));
        open.writers.retain(|path, _| !path.starts_with(dir));
    }

    /// How many files are open.
    pub fn open_count(&self) -> usize {
        let open = self.lock();
        open.readers.len() + open.writers.len()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes the older half once there are too many, so that the search for the oldest costs little per file.
fn make_room<T>(files: &mut HashMap<PathBuf, (T, u64)>, capacity: usize) {
    if files.len() < capacity {
        return;
    }
    let mut uses: Vec<u64> = files.values().map(|(_, used)| *used).collect();
    let (_, middle, _) = uses.select_nth_unstable(capacity / 2);
    let middle = *middle;
    files.retain(|_, (_, used)| *used > middle);
}
