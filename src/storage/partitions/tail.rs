//! The batches that a leader appended last, as they are on its disk: followers get them from memory until they have them.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::storage::replicas::Read;
use crate::types::Offset;

/// The most that is kept of one log, in bytes.
const OF_ONE_LOG: usize = 8 << 20;
/// The most that is kept of all logs, in KiB.
const OF_ALL_KIB: usize = 64 << 10;

/// Memory for the tails of all logs.
#[derive(Clone, Debug)]
pub(super) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(OF_ALL_KIB)))
    }
}

#[derive(Debug)]
struct Kept {
    first: Offset,
    end: Offset,
    /// The batch, in two pieces: what the leader wrote, and what its client sent.
    pieces: [Bytes; 2],
    _room: OwnedSemaphorePermit,
}

impl Kept {
    fn len(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }
}

/// Batches without a gap between them.
#[derive(Debug)]
pub(super) struct Tail {
    kept: VecDeque<Kept>,
    bytes: usize,
    room: Room,
}

impl Tail {
    pub(super) fn new(room: Room) -> Self {
        Self { kept: VecDeque::new(), bytes: 0, room }
    }

    /// `pieces`: a batch whose records have the offsets from `first` to below `end`.
    pub(super) fn push(&mut self, first: Offset, end: Offset, pieces: [Bytes; 2]) {
        if self.kept.back().is_some_and(|last| last.end != first) {
            self.clear();
        }
        let len: usize = pieces.iter().map(Bytes::len).sum();
        let permits = u32::try_from(len.div_ceil(1024)).unwrap_or(u32::MAX);
        while self.bytes + len > OF_ONE_LOG && !self.kept.is_empty() {
            self.pop();
        }
        match Arc::clone(&self.room.0).try_acquire_many_owned(permits) {
            Ok(room) => {
                self.kept.push_back(Kept { first, end, pieces, _room: room });
                self.bytes += len;
            }
            // Whoever lacks it reads it from the disk.
            Err(_) => self.clear(),
        }
    }

    /// Everybody has what is below.
    pub(super) fn forget_below(&mut self, end: Offset) {
        while self.kept.front().is_some_and(|first| first.end <= end) {
            self.pop();
        }
    }

    pub(super) fn clear(&mut self) {
        self.kept.clear();
        self.bytes = 0;
    }

    /// The batches from the one that has `from` on: up to `max_bytes`, but one at least. None: it is not kept.
    pub(super) fn read(&self, from: Offset, max_bytes: usize) -> Option<Read> {
        let at = self.kept.partition_point(|kept| kept.end <= from);
        let first = self.kept.get(at).filter(|kept| kept.first <= from)?;
        let mut read = Read { pieces: SmallVec::new(), end: first.end };
        let mut left = max_bytes.max(first.len());
        for kept in self.kept.range(at..) {
            let Some(rest) = left.checked_sub(kept.len()) else { break };
            left = rest;
            read.pieces.extend(kept.pieces.iter().cloned());
            read.end = kept.end;
        }
        Some(read)
    }

    fn pop(&mut self) {
        if let Some(first) = self.kept.pop_front() {
            self.bytes -= first.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(tail: &mut Tail, first: i64, end: i64, len: usize) {
        let body = Bytes::from(vec![first as u8; len - 1]);
        tail.push(Offset(first), Offset(end), [Bytes::from_static(b"h"), body]);
    }

    /// The pieces' first bytes and the end of what is read.
    fn read(tail: &Tail, from: i64, max_bytes: usize) -> Option<(Vec<u8>, i64)> {
        let read = tail.read(Offset(from), max_bytes)?;
        Some((read.pieces.iter().map(|piece| piece[0]).collect(), read.end.0))
    }

    #[test]
    fn whole_batches_are_read_from_the_one_that_has_the_offset_on() {
        let mut tail = Tail::new(Room::default());
        for first in [10, 20, 30] {
            push(&mut tail, first, first + 10, 100);
        }
        assert_eq!(read(&tail, 9, 1_000), None);
        assert_eq!(read(&tail, 10, 1_000), Some((vec![b'h', 10, b'h', 20, b'h', 30], 40)));
        assert_eq!(read(&tail, 25, 199), Some((vec![b'h', 20], 30)));
        assert_eq!(read(&tail, 25, 200), Some((vec![b'h', 20, b'h', 30], 40)));
        assert_eq!(read(&tail, 30, 1), Some((vec![b'h', 30], 40)), "one at least");
        assert_eq!(read(&tail, 40, 1_000), None);
        tail.forget_below(Offset(29));
        assert_eq!((read(&tail, 10, 1_000), read(&tail, 20, 1).is_some()), (None, true));
        tail.forget_below(Offset(40));
        assert_eq!((tail.bytes, tail.kept.len()), (0, 0));
    }

    #[test]
    fn nothing_is_kept_before_a_gap() {
        let mut tail = Tail::new(Room::default());
        push(&mut tail, 0, 1, 10);
        push(&mut tail, 5, 6, 10);
        assert_eq!((read(&tail, 0, 100), read(&tail, 5, 100)), (None, Some((vec![b'h', 5], 6))));
    }

    #[test]
    fn memory_is_bounded_for_one_log_and_for_all() {
        let room = Room::default();
        let mut tails: Vec<Tail> = (0..9).map(|_| Tail::new(room.clone())).collect();
        for tail in &mut tails {
            (0..9).for_each(|number| push(tail, number, number + 1, 1 << 20));
        }
        let kept: Vec<_> = tails.iter().map(|tail| tail.bytes >> 20).collect();
        assert_eq!(kept, [8, 8, 8, 8, 8, 8, 8, 8, 0]);
        assert!(read(&tails[0], 0, 1).is_none() && read(&tails[0], 8, 1).is_some());
        tails.remove(0);
        push(&mut tails[7], 9, 10, 1 << 20);
        assert!(read(&tails[7], 9, 1).is_some());
    }
}
