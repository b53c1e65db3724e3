//! Which of what was written last stays in the operating system's page cache, where somebody bounds it.
//!
//! Left to itself, the system keeps all that is written as long as there is memory. That serves whoever reads soon, and costs where
//! memory that is used for the first time is slow (a virtual machine whose host takes free memory back) or limited (a container's
//! counts it). So the oldest goes first, whichever log it is of, once it is durable.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// So many pieces of files are remembered, at most …
const PIECES: u64 = 16_384;
/// … and no larger ones than this are waited for.
const PIECE_BYTES: u64 = 1 << 20;

#[derive(Default)]
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
}

/// What may go, file by file.
pub(super) type Old = Vec<(Arc<Path>, Range<u64>)>;

impl PageCache {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, ..Self::default() }
    }

    /// A file is durable up to `end`.
    pub(super) fn synced(&mut self, path: &Path, end: u64) -> Old {
        let path = match self.files.get_key_value(path) {
            Some((path, _)) => Arc::clone(path),
            None => Arc::from(path),
        };
        let kept = self.files.entry(Arc::clone(&path)).or_insert(Kept { from: 0, listed: 0 });
        // It may have been cut since.
        (kept.from, kept.listed) = (kept.from.min(end), kept.listed.min(end));
        let size = end - kept.listed;
        if size >= (self.limit / PIECES).clamp(1, PIECE_BYTES) {
            kept.listed = end;
            self.bytes += size;
            self.order.push_back((path, end, size));
        }
        self.shrink()
    }

    fn shrink(&mut self) -> Old {
        let mut old = Old::new();
        while self.bytes > self.limit
            && let Some((path, end, size)) = self.order.pop_front()
        {
            self.bytes -= size;
            // A file that is gone has nothing in memory.
            let Some(kept) = self.files.get_mut(&path).filter(|kept| kept.from < end) else { continue };
            let from = std::mem::replace(&mut kept.from, end);
            old.push((path, from..end));
        }
        old
    }

    /// Whether what is read there stays.
    pub(super) fn keeps(&self, path: &Path, at: u64) -> bool {
        self.files.get(path).is_some_and(|kept| at >= kept.from)
    }

    /// These files are gone, or others have their names.
    pub(super) fn forget(&mut self, are_gone: impl Fn(&Path) -> bool) {
        self.files.retain(|path, _| !are_gone(path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(old: Old) -> Vec<(String, Range<u64>)> {
        old.into_iter().map(|(path, range)| (path.display().to_string(), range)).collect()
    }

    #[test]
    fn the_oldest_goes_first_whichever_file_it_is_of() {
        let (a, b) = (Path::new("a"), Path::new("b"));
        let mut cache = PageCache::new(100);
        assert_eq!(ranges(cache.synced(a, 60)), []);
        assert_eq!(ranges(cache.synced(b, 40)), []);
        assert_eq!(ranges(cache.synced(a, 61)), [("a".into(), 0..60)]);
        assert_eq!((cache.keeps(a, 59), cache.keeps(a, 60), cache.keeps(b, 0)), (false, true, true));
        assert_eq!(ranges(cache.synced(b, 140)), [("b".into(), 0..40), ("a".into(), 60..61)]);
        assert_eq!((cache.bytes, cache.order.len()), (100, 1));
        assert_eq!(ranges(cache.synced(b, 140)), [], "nothing new is durable");
        assert!(!cache.keeps(Path::new("c"), 0), "what was not written lately does not stay for being read");
    }

    #[test]
    fn a_file_that_was_cut_or_is_gone_counts_anew() {
        let (a, b) = (Path::new("a"), Path::new("b"));
        let mut cache = PageCache::new(100);
        cache.synced(a, 150);
        assert!(!cache.keeps(a, 100));
        assert_eq!(ranges(cache.synced(a, 90)), [], "it was cut");
        assert_eq!(ranges(cache.synced(a, 130)), []);
        assert!(cache.keeps(a, 90) && !cache.keeps(a, 89));
        cache.forget(|path| path == a);
        assert_eq!(ranges(cache.synced(b, 90)), [], "of what is gone nothing is to go");
        assert_eq!(cache.bytes, 90);
    }

    #[test]
    fn small_pieces_are_gathered_so_that_few_are_remembered() {
        let (a, limit) = (Path::new("a"), 10 * PIECES);
        let mut cache = PageCache::new(limit);
        for end in 1..=limit + 100 {
            cache.synced(a, end);
        }
        assert!(cache.order.len() as u64 <= PIECES && cache.bytes <= limit);
        assert!(!cache.keeps(a, 0) && cache.keeps(a, 110));
    }
}
