//! Which of what was written last stays in the operating system's page cache, where somebody bounds it.
//!
//! Left to itself, the system keeps all that is written as long as there is memory. That serves whoever reads soon, and costs where
//! memory that is used for the first time is slow (a virtual machine whose host takes free memory back) or limited (a container's
//! counts it). So the oldest goes first, whichever log it is of, once it is durable.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A file is remembered in pieces of one in so many of all that stays, at least, or of …
const SMALLEST: u64 = 16_384;
/// … so many bytes, if that is less: what is smaller does not count yet.
const PIECE_BYTES: u64 = 1 << 20;
/// A piece is at most one in so many.
const LARGEST: u64 = 16;

/// So far behind what is being read it may go: what was read a moment ago is not yet where the kernel could let go of it, and it
/// would wait for all processors.
const BEHIND_BYTES: u64 = 2 << 20;

pub(super) struct PageCache {
    /// How many bytes stay.
    limit: u64,
    files: HashMap<Arc<Path>, Kept>,
    /// Pieces that stay, each by where it ends and its size, in the order in which they became durable.
    order: VecDeque<(Arc<Path>, u64, u64)>,
    /// The sum of their sizes.
    bytes: u64,
}

/// What stays of a file.
struct Kept {
    /// What is before has gone.
    from: u64,
    /// Up to here it is in the order.
    listed: u64,
    /// Up to here it is durable.
    synced: u64,
}

/// What may go, file by file.
pub(super) type Old = Vec<(Arc<Path>, Range<u64>)>;

impl PageCache {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, files: HashMap::new(), order: VecDeque::new(), bytes: 0 }
    }

    /// A file is durable up to `end`.
    pub(super) fn synced(&mut self, path: &Path, end: u64) -> Old {
        let mut old = Old::new();
        let path = match self.files.get_key_value(path) {
            Some((path, _)) => Arc::clone(path),
            None => {
                // Of one that was there before, or whose syncs are few, only the last is new.
                let (path, from) = (Arc::from(path), end.saturating_sub(self.largest()));
                self.files.insert(Arc::clone(&path), Kept { from, listed: from, synced: from });
                if from > 0 {
                    old.push((Arc::clone(&path), 0..from));
                }
                path
            }
        };
        let smallest = (self.limit / SMALLEST).clamp(1, PIECE_BYTES);
        self.list(&path, Some(end), smallest);
        self.shrink(&mut old);
        old
    }

    /// Nothing more is appended to a file.
    pub(super) fn closed(&mut self, path: &Path) -> Old {
        let mut old = Old::new();
        if let Some((path, _)) = self.files.get_key_value(path) {
            self.list(&Arc::clone(path), None, 1);
            self.shrink(&mut old);
        }
        old
    }

    fn largest(&self) -> u64 {
        (self.limit / LARGEST).max(1)
    }

    /// Takes into the order what is durable of a file, if it is `smallest` at least.
    fn list(&mut self, path: &Arc<Path>, synced: Option<u64>, smallest: u64) {
        let largest = self.largest();
        let Some(kept) = self.files.get_mut(path) else { return };
        kept.synced = synced.unwrap_or(kept.synced);
        if kept.synced.saturating_sub(kept.listed) < smallest {
            return;
        }
        while kept.listed < kept.synced {
            let size = (kept.synced - kept.listed).min(largest);
            kept.listed += size;
            self.bytes += size;
            self.order.push_back((Arc::clone(path), kept.listed, size));
        }
    }

    fn shrink(&mut self, old: &mut Old) {
        while self.bytes > self.limit
            && let Some((path, end, size)) = self.order.pop_front()
        {
            self.bytes -= size;
            // A file that is gone has nothing in memory, and one that has its name now is not durable so far.
            let Some(kept) = self.files.get_mut(&path) else { continue };
            let end = end.min(kept.listed);
            if kept.from < end {
                old.push((path, kept.from..end));
                kept.from = end;
            }
        }
    }

    /// Whether what is read there stays; None where nothing is known of the file.
    pub(super) fn keeps(&self, path: &Path, at: u64) -> Option<bool> {
        Some(at >= self.files.get(path)?.from)
    }

    /// A file is gone, cut, or another one.
    pub(super) fn forget(&mut self, path: &Path) {
        self.files.remove(path);
    }

    /// All files below a folder are gone, or have other names.
    pub(super) fn forget_below(&mut self, dir: &Path) {
        self.files.retain(|path, _| !path.starts_with(dir));
    }
}

/// Of what is read of an old file from the front to its end: what may go, and what the disk may begin with.
pub(super) fn passing(read: &Range<u64>) -> [Range<u64>; 2] {
    let gone = read.start.saturating_sub(2 * BEHIND_BYTES)..read.start.saturating_sub(BEHIND_BYTES);
    [gone, read.end..2 * read.end - read.start]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(old: Old) -> Vec<(String, Range<u64>)> {
        old.into_iter().map(|(path, range)| (path.display().to_string(), range)).collect()
    }

    /// Appends to a file in steps of 10.
    fn write(cache: &mut PageCache, path: &Path, range: Range<u64>) -> Vec<(String, Range<u64>)> {
        range.step_by(10).flat_map(|at| ranges(cache.synced(path, at + 10))).collect()
    }

    #[test]
    fn the_oldest_goes_first_whichever_file_it_is_of() {
        let (a, b) = (Path::new("a"), Path::new("b"));
        let mut cache = PageCache::new(160);
        assert_eq!(write(&mut cache, a, 0..100), []);
        assert_eq!(write(&mut cache, b, 0..60), []);
        assert_eq!(ranges(cache.synced(a, 101)), [("a".into(), 0..10)]);
        assert_eq!([cache.keeps(a, 9), cache.keeps(a, 10), cache.keeps(b, 0)], [Some(false), Some(true), Some(true)]);
        let gone = write(&mut cache, b, 60..210);
        assert_eq!((gone.first(), gone.last()), (Some(&("a".into(), 10..20)), Some(&("b".into(), 50..60))));
        assert_eq!(cache.keeps(a, 100), Some(true), "it came later than the first of b");
        assert_eq!(cache.bytes, cache.order.iter().map(|(_, _, size)| size).sum::<u64>());
        assert_eq!(ranges(cache.synced(b, 210)), [], "nothing new is durable");
        assert_eq!(cache.keeps(Path::new("c"), 0), None);
    }

    #[test]
    fn what_is_durable_at_once_goes_piece_by_piece_and_what_was_there_before_goes_first() {
        let (a, b) = (Path::new("a"), Path::new("b"));
        let mut cache = PageCache::new(160);
        assert_eq!(ranges(cache.synced(a, 1_000)), [("a".into(), 0..990)], "one piece is new");
        assert_eq!(ranges(cache.synced(a, 1_155)), [("a".into(), 990..1_000)], "just as much too much");
        assert_eq!(ranges(cache.synced(b, 8)), [("a".into(), 1_000..1_010)]);
    }

    #[test]
    fn a_file_that_was_cut_or_is_gone_counts_anew() {
        let (a, b) = (Path::new("a"), Path::new("b"));
        let mut cache = PageCache::new(160);
        write(&mut cache, a, 0..160);
        cache.forget(a);
        assert_eq!(cache.keeps(a, 0), None);
        // It was cut, and has grown again, but is not durable so far.
        write(&mut cache, a, 0..20);
        assert!(write(&mut cache, b, 0..160).iter().all(|(name, range)| name == "a" && range.end <= 20));
        cache.forget_below(Path::new(""));
        assert_eq!(write(&mut cache, Path::new("c"), 0..160), [], "of what is gone nothing is to go");
        assert_eq!(cache.bytes, 160);
    }

    #[test]
    fn small_pieces_are_gathered_so_that_few_are_remembered_until_the_file_is_closed() {
        let (a, b, limit) = (Path::new("a"), Path::new("b"), 10 * SMALLEST);
        let mut cache = PageCache::new(limit);
        for end in 1..=limit + 105 {
            cache.synced(a, end);
        }
        assert!(cache.order.len() as u64 <= SMALLEST && cache.bytes <= limit);
        assert_eq!((cache.keeps(a, 0), cache.keeps(a, 110)), (Some(false), Some(true)));
        cache.synced(b, 3);
        assert_eq!((cache.closed(b).len(), cache.order.back().map(|(_, end, _)| *end)), (1, Some(3)));
        assert_eq!(cache.closed(b).len() + cache.closed(Path::new("c")).len(), 0);
    }

    #[test]
    fn what_is_read_goes_a_little_later_and_what_comes_next_is_begun_with() {
        const MIB: u64 = 1 << 20;
        assert_eq!(passing(&(0..MIB)), [0..0, MIB..2 * MIB]);
        assert_eq!(passing(&(3 * MIB..4 * MIB)), [0..MIB, 4 * MIB..5 * MIB]);
        assert_eq!(passing(&(10 * MIB..10 * MIB + 5)), [6 * MIB..8 * MIB, 10 * MIB + 5..10 * MIB + 10]);
    }
}
