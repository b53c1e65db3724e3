//! A disk in memory for tests: it loses what was not synced, tears writes, fills up and fails, all from one seed.
//!
//! Every operation and every written byte is a *step*, and a crash can be set to come at any of them. Nothing here is
//! meant for keeping data.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::files::{Disk, FileSystem, ReadFile, WriteFile, parent_of};

/// A fake disk. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// How often what was asked of the disk, since it was made.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    pub writes: u64,
    pub syncs: u64,
    pub dir_syncs: u64,
}

struct State {
    rng: SmallRng,
    inodes: Vec<Inode>,
    /// Names as a running process sees them.
    names: BTreeMap<PathBuf, usize>,
    /// Names as they are after a crash, if no operation since is.
    durable_names: BTreeMap<PathBuf, usize>,
    unsynced: Vec<NameChange>,
    /// Handles from before a crash are dead.
    lifetime: u64,
    crashed: bool,
    steps: u64,
    crash_at: Option<u64>,
    capacity: Option<u64>,
    /// So many syncs succeed before those fail.
    syncs_to_pass: u32,
    syncs_to_fail: u32,
    dir_syncs_to_fail: u32,
    counts: Counts,
}

/// A file's bytes, as written and as synced, in the little form that appending and cutting need.
#[derive(Default)]
struct Inode {
    data: Vec<u8>,
    /// So many first bytes of `data` are synced.
    synced: usize,
    /// What the disk holds after those, from before a cut that was not synced.
    old_tail: Vec<u8>,
    /// Of a sync that failed: what the kernel may have dropped. Running processes see it, and later syncs do not write it again.
    dropped: Range<usize>,
}

enum NameChange {
    Create(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Create(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            Self::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
                // A folder has no name of its own here: it is what its files' names begin with.
                let inside: Vec<PathBuf> = names.keys().filter(|path| path.starts_with(from)).cloned().collect();
                for path in inside {
                    if let (Some(inode), Ok(rest)) = (names.remove(&path), path.strip_prefix(from)) {
                        names.insert(to.join(rest), inode);
                    }
                }
            }
            Self::Remove(path) => {
                names.remove(path);
            }
        }
    }

    fn is_in(&self, dir: &Path) -> bool {
        let (Self::Create(path, _) | Self::Rename(path, _) | Self::Remove(path)) = self;
        parent_of(path) == dir
    }
}

impl SimDisk {
    pub fn new(seed: u64) -> Self {
        let state = State {
            rng: SmallRng::seed_from_u64(seed),
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced: Vec::new(),
            lifetime: 0,
            crashed: false,
            steps: 0,
            crash_at: None,
            capacity: None,
            syncs_to_pass: 0,
            syncs_to_fail: 0,
            dir_syncs_to_fail: 0,
            counts: Counts::default(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Stops everything once so many more steps are done, in the middle of a write perhaps. Everything fails from then on
    /// until [`Self::crash`] or [`Self::kill`].
    pub fn crash_after(&self, steps: u64) {
        let mut state = self.lock();
        state.crash_at = Some(state.steps + steps);
    }

    /// Takes the coming stop back: the steps that were left until then, if one was set.
    pub fn cancel_crash(&self) -> Option<u64> {
        let mut state = self.lock();
        let steps = state.steps;
        state.crash_at.take().map(|at| at.saturating_sub(steps))
    }

    /// How many steps were done.
    pub fn steps(&self) -> u64 {
        self.lock().steps
    }

    /// Power off and on: what was not synced is lost, or not, or in part. Open handles are dead.
    pub fn crash(&self) {
        self.lock().crash();
    }

    /// The process is killed and the machine goes on: what was not synced is still to be seen, and still to be lost.
    pub fn kill(&self) {
        self.lock().restart();
    }

    /// The disk holds so many bytes and no more.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// The next syncs of files fail, and leave open what they did: as on Linux, those after them succeed without what these had to write.
    pub fn fail_syncs(&self, count: u32) {
        self.fail_syncs_after(0, count);
    }

    /// The same once so many more have succeeded.
    pub fn fail_syncs_after(&self, good: u32, count: u32) {
        let mut state = self.lock();
        (state.syncs_to_pass, state.syncs_to_fail) = (good, count);
    }

    /// The next syncs of folders fail, and leave open what they did.
    pub fn fail_dir_syncs(&self, count: u32) {
        self.lock().dir_syncs_to_fail = count;
    }

    /// Flips a bit, as a bad disk does. Whether there is such a byte.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) -> bool {
        let mut state = self.lock();
        let Some(inode) = state.names.get(path).copied() else { return false };
        match state.inodes[inode].data.get_mut(offset as usize) {
            Some(byte) => {
                *byte ^= 1 << (bit % 8);
                true
            }
            None => false,
        }
    }

    /// A file's bytes as a running process sees them.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.lock();
        state.names.get(path).map(|inode| state.inodes[*inode].data.clone())
    }

    /// All files, as a running process sees them.
    pub fn files(&self) -> Vec<PathBuf> {
        self.lock().names.keys().cloned().collect()
    }

    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, state: &State, inode: usize) -> Box<SimFile> {
        Box::new(SimFile { disk: self.clone(), inode, lifetime: state.lifetime })
    }
}

impl State {
    fn crash(&mut self) {
        for change in std::mem::take(&mut self.unsynced) {
            // Each by itself: a file system may keep later ones and lose earlier ones.
            if self.rng.random_bool(0.5) {
                change.apply(&mut self.durable_names);
            }
        }
        self.names = self.durable_names.clone();
        let named: BTreeSet<usize> = self.names.values().copied().collect();
        for (number, inode) in self.inodes.iter_mut().enumerate() {
            match named.contains(&number) {
                true => inode.crash(&mut self.rng),
                false => *inode = Inode::default(), // Nobody can come to it any more.
            }
        }
        self.restart();
    }

    fn restart(&mut self) {
        self.lifetime += 1;
        self.crashed = false;
        self.crash_at = None;
        self.syncs_to_pass = 0;
        self.syncs_to_fail = 0;
        self.dir_syncs_to_fail = 0;
    }

    /// One step, unless the machine has stopped.
    fn step(&mut self) -> io::Result<()> {
        if self.crashed || self.crash_at == Some(self.steps) {
            self.crashed = true;
            return Err(io::Error::other("the simulated machine has stopped"));
        }
        self.steps += 1;
        Ok(())
    }

    fn count_sync(&mut self) -> io::Result<()> {
        self.counts.syncs += 1;
        match (self.syncs_to_pass, self.syncs_to_fail) {
            (1.., _) => self.syncs_to_pass -= 1,
            (0, 1..) => {
                self.syncs_to_fail -= 1;
                return Err(io::Error::other("the simulated disk failed to sync"));
            }
            (0, 0) => {}
        }
        Ok(())
    }

    fn inode(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn change_name(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced.push(change);
    }

    fn truncate(&mut self, inode: usize, len: usize) {
        self.inodes[inode].truncate(len, &mut self.rng);
    }

    fn used(&self) -> u64 {
        self.names.values().map(|inode| self.inodes[*inode].data.len() as u64).sum()
    }
}

impl Inode {
    fn truncate(&mut self, len: usize, rng: &mut SmallRng) {
        if rng.random_bool(0.5) {
            // The kernel had written it back meanwhile, unasked.
            self.old_tail = self.data[self.synced..].to_vec();
        }
        if len < self.synced {
            let mut tail = self.data[len..self.synced].to_vec();
            tail.append(&mut self.old_tail);
            self.old_tail = tail;
            self.synced = len;
        }
        self.data.truncate(len);
        self.dropped.end = self.dropped.end.min(len);
    }

    fn sync(&mut self) {
        self.synced = self.data.len();
        self.old_tail.clear();
    }

    /// By the same bytes: what else comes of other ones is not played.
    fn overwrite(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        let range = at..at + bytes.len();
        let there = self.data.get(range.clone()).ok_or(io::ErrorKind::UnexpectedEof)?;
        if there != bytes {
            return Err(io::Error::other("the simulated disk overwrites only with what is there"));
        }
        self.synced = self.synced.min(at);
        if range.contains(&self.dropped.start) {
            self.dropped.start = range.end.min(self.dropped.end);
        }
        Ok(())
    }

    fn fail_to_sync(&mut self) {
        let start = if self.dropped.is_empty() { self.synced } else { self.dropped.start };
        self.dropped = start..self.data.len();
    }

    fn crash(&mut self, rng: &mut SmallRng) {
        const SECTOR: usize = 512;
        let dropped = std::mem::take(&mut self.dropped);
        if !dropped.is_empty() && rng.random_bool(0.5) {
            self.data[dropped].fill(0);
        }
        if !self.old_tail.is_empty() && rng.random_bool(0.5) {
            self.data.truncate(self.synced);
            self.data.append(&mut self.old_tail);
        } else {
            let kept = rng.random_range(self.synced..=self.data.len());
            self.data.truncate(kept);
            // The length may be there before the bytes are.
            if rng.random_bool(0.3) {
                let mut at = self.synced;
                while at < kept {
                    let end = kept.min((at / SECTOR + 1) * SECTOR);
                    if rng.random_bool(0.5) {
                        self.data[at..end].fill(0);
                    }
                    at = end;
                }
            }
        }
        self.sync();
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        self.lock().step()
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let mut state = self.lock();
        state.step()?;
        let inode = match state.names.get(path).copied() {
            Some(inode) => {
                state.truncate(inode, 0);
                inode
            }
            None => {
                let inode = state.inodes.len();
                state.inodes.push(Inode::default());
                state.change_name(NameChange::Create(path.to_owned(), inode));
                inode
            }
        };
        Ok(self.handle(&state, inode))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let mut state = self.lock();
        state.step()?;
        let inode = state.inode(path)?;
        Ok(self.handle(&state, inode))
    }

    fn overwrite(&self, path: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        state.step()?;
        if state.capacity.is_some_and(|capacity| state.used() >= capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let inode = state.inode(path)?;
        state.inodes[inode].overwrite(at as usize, bytes)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        let mut state = self.lock();
        state.step()?;
        let inode = state.inode(path)?;
        Ok(self.handle(&state, inode))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.step()?;
        if !state.names.keys().any(|path| path.starts_with(from)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change_name(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.step()?;
        state.inode(path)?;
        state.change_name(NameChange::Remove(path.to_owned()));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut state = self.lock();
        state.step()?;
        let first = |path: &PathBuf| {
            let inside = path.strip_prefix(dir).ok()?.components().next()?;
            Some(inside.as_os_str().to_string_lossy().into_owned())
        };
        let names: BTreeSet<String> = state.names.keys().filter_map(first).collect();
        Ok(names.into_iter().collect())
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let inside: Vec<PathBuf> = state.names.keys().filter(|path| path.starts_with(dir)).cloned().collect();
        for path in inside {
            state.step()?;
            state.change_name(NameChange::Remove(path));
        }
        Ok(())
    }

    fn size(&self, path: &Path) -> io::Result<u64> {
        let mut state = self.lock();
        state.step()?;
        let inode = state.inode(path)?;
        Ok(state.inodes[inode].data.len() as u64)
    }

    fn file_system(&self, _dir: &Path) -> io::Result<Option<Box<dyn FileSystem>>> {
        self.lock().step()?;
        Ok(Some(Box::new(self.clone())))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.step()?;
        state.counts.dir_syncs += 1;
        if state.dir_syncs_to_fail > 0 {
            state.dir_syncs_to_fail -= 1;
            return Err(io::Error::other("the simulated disk failed to sync a folder"));
        }
        let (synced, rest) = std::mem::take(&mut state.unsynced).into_iter().partition(|change| change.is_in(dir));
        state.unsynced = rest;
        let synced: Vec<NameChange> = synced;
        synced.iter().for_each(|change| change.apply(&mut state.durable_names));
        Ok(())
    }
}

impl FileSystem for SimDisk {
    fn sync(&self) -> io::Result<()> {
        let mut state = self.lock();
        if let Err(error) = state.count_sync() {
            state.inodes.iter_mut().for_each(Inode::fail_to_sync);
            return Err(error);
        }
        // The machine may stop with some of them synced and others not.
        for inode in 0..state.inodes.len() {
            state.step()?;
            state.inodes[inode].sync();
        }
        for change in std::mem::take(&mut state.unsynced) {
            change.apply(&mut state.durable_names);
        }
        Ok(())
    }
}

struct SimFile {
    disk: SimDisk,
    inode: usize,
    lifetime: u64,
}

impl SimFile {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.disk.lock();
        if state.lifetime != self.lifetime {
            return Err(io::Error::other("the file was opened before the simulated machine stopped"));
        }
        state.step()?;
        Ok(state)
    }
}

impl WriteFile for SimFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state()?;
        state.counts.writes += 1;
        let room = state.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used()));
        let until_crash = state.crash_at.map_or(u64::MAX, |at| at - state.steps);
        let taken = (bytes.len() as u64).min(room).min(until_crash);
        state.steps += taken;
        state.inodes[self.inode].data.extend_from_slice(&bytes[..taken as usize]);
        if taken == bytes.len() as u64 {
            return Ok(());
        }
        if taken == until_crash {
            state.step()?;
        }
        Err(io::ErrorKind::StorageFull.into())
    }

    fn append_parts(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        parts.iter().try_for_each(|part| self.append(part))
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.state()?;
        let counted = state.count_sync();
        let inode = &mut state.inodes[self.inode];
        if counted.is_ok() {
            inode.sync()
        } else {
            inode.fail_to_sync()
        }
        counted
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.state()?.truncate(self.inode, len as usize);
        Ok(())
    }
}

impl ReadFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.state()?.inodes[self.inode].data.len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let state = self.state()?;
        let data = &state.inodes[self.inode].data;
        let from = data.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
        let len = into.len().min(data.len() - from);
        into[..len].copy_from_slice(&data[from..from + len]);
        Ok(len)
    }
}
