//! The open files of all of a node's logs: the most recently used ones, so that ten thousand partitions need few handles.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::page_cache::{self, Old, PageCache};
use crate::disk::{Disk, ReadFile, WriteFile};

/// A file that is written by one thread at a time.
pub(super) type Writer = Arc<Mutex<Box<dyn WriteFile>>>;

/// A disk with the handles that are open on it.
pub struct Files {
    disk: Arc<dyn Disk>,
    capacity: usize,
    open: Mutex<Open>,
    /// How many logs were opened.
    logs: AtomicU64,
    /// Where the page cache is bounded.
    page_cache: OnceLock<Mutex<PageCache>>,
}

/// By name, with when each was used last.
type Handles<T> = HashMap<PathBuf, (T, u64)>;

#[derive(Default)]
struct Open {
    clock: u64,
    /// Rises when a name comes to mean another file.
    changes: u64,
    readers: Handles<Arc<dyn ReadFile>>,
    writers: Handles<Writer>,
}

impl Open {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// How many handles of either kind a node keeps where nothing else is said. With fewer than it has busy partitions, every append
/// opens its file anew, and the file system forgets the room that it had in mind for it: a fifth less throughput.
pub const DEFAULT_OPEN_FILES: usize = 4096;

impl Files {
    /// At most `capacity` files for reading and as many for writing stay open between their uses.
    pub fn new(disk: Arc<dyn Disk>, capacity: usize) -> Arc<Self> {
        let (open, logs, page_cache) = (Mutex::default(), AtomicU64::new(0), OnceLock::new());
        Arc::new(Self { disk, capacity: capacity.max(1), open, logs, page_cache })
    }

    /// From now on at most about so many bytes of what was written last stay in the operating system's page cache, of all logs
    /// together, and of what is read nothing else. Only the first call counts.
    pub fn bound_page_cache(&self, bytes: u64) {
        let _ = self.page_cache.set(Mutex::new(PageCache::new(bytes)));
    }

    fn page_cache(&self) -> Option<MutexGuard<'_, PageCache>> {
        Some(self.page_cache.get()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A file is durable up to here: what is older may leave the page cache.
    pub(super) fn was_synced(&self, path: &Path, end: u64) {
        let old = self.page_cache().map(|mut cache| cache.synced(path, end));
        self.let_go(old);
    }

    fn let_go(&self, old: Option<Old>) {
        for (path, range) in old.into_iter().flatten() {
            // What cannot be opened is gone.
            if let Ok(file) = self.reader(&path) {
                file.let_go(range);
            }
        }
    }

    /// This was read, and stays in the page cache only where it would without that: what is known to be new, and what may be. Whoever
    /// reads further back will go on: while the answer is on its way, the disk reads what comes next.
    pub(super) fn was_read(&self, file: &dyn ReadFile, path: &Path, range: &Range<u64>, may_be_new: bool) {
        if self.page_cache().is_some_and(|cache| !cache.keeps(path, range.start).unwrap_or(may_be_new)) {
            let [gone, next] = page_cache::passing(range);
            file.let_go(gone);
            file.will_need(next);
        }
    }

    /// From where on a log counts its cuts, so that what is of one that was open before it is not of this one.
    pub(super) fn first_cut(&self) -> u64 {
        self.logs.fetch_add(1, Ordering::Relaxed) << 32
    }

    pub fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    pub(super) fn reader(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        self.get(path, |open| &mut open.readers, |disk| Ok(disk.open(path)?.into()))
    }

    /// An existing file, to be written at its end. What was written through an earlier handle is synced by this one too.
    pub(super) fn writer(&self, path: &Path) -> io::Result<Writer> {
        self.get(path, |open| &mut open.writers, |disk| Ok(Arc::new(Mutex::new(disk.append(path)?))))
    }

    /// The disk opens it while nobody waits, for it may take long to. What changed meanwhile may be what the name stood for,
    /// so then it serves this one use alone.
    fn get<T: Clone>(
        &self,
        path: &Path,
        kind: impl Fn(&mut Open) -> &mut Handles<T>,
        opened: impl FnOnce(&dyn Disk) -> io::Result<T>,
    ) -> io::Result<T> {
        let changes = {
            let mut open = self.lock();
            let now = open.tick();
            if let Some((file, used)) = kind(&mut open).get_mut(path) {
                *used = now;
                return Ok(file.clone());
            }
            open.changes
        };
        let file = opened(&*self.disk)?;
        let mut open = self.lock();
        let now = open.tick();
        if open.changes != changes {
            return Ok(file);
        }
        let files = kind(&mut open);
        let surplus = make_room(files, self.capacity);
        let (file, _) = files.entry(path.to_owned()).or_insert((file, now)).clone();
        drop(open);
        drop(surplus);
        Ok(file)
    }

    /// Gives a name to another file or to none. No handle of the former one is kept, not even one that somebody opens
    /// meanwhile.
    pub(super) fn change<T>(&self, path: &Path, act: impl FnOnce(&dyn Disk) -> io::Result<T>) -> io::Result<T> {
        let result = act(&*self.disk);
        self.forget(path);
        result
    }

    /// Keeps a file open no longer to which nothing more is appended.
    pub(super) fn close(&self, path: &Path) {
        let old = self.page_cache().map(|mut cache| cache.closed(path));
        self.let_go(old);
        self.forget_handles(path);
    }

    /// Keeps a file open no longer that is gone, cut, or another one.
    pub(super) fn forget(&self, path: &Path) {
        if let Some(mut cache) = self.page_cache() {
            cache.forget(path);
        }
        self.forget_handles(path);
    }

    fn forget_handles(&self, path: &Path) {
        let mut open = self.lock();
        open.changes += 1;
        let closed = (open.readers.remove(path), open.writers.remove(path));
        drop(open);
        // The last handle of a large file that has no name takes a while to close.
        drop(closed);
    }

    /// To be called after a folder got another name.
    pub(super) fn forget_below(&self, dir: &Path) {
        if let Some(mut cache) = self.page_cache() {
            cache.forget_below(dir);
        }
        let mut open = self.lock();
        open.changes += 1;
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

/// Takes the older half out once there are too many, so that the search for the oldest costs little per file.
fn make_room<T>(files: &mut Handles<T>, capacity: usize) -> Vec<T> {
    if files.len() < capacity {
        return Vec::new();
    }
    let mut uses: Vec<u64> = files.values().map(|(_, used)| *used).collect();
    let (_, middle, _) = uses.select_nth_unstable(capacity / 2);
    let middle = *middle;
    files.extract_if(|_, (_, used)| *used <= middle).map(|(_, (file, _))| file).collect()
}
