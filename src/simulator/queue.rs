//! The simulated time, and what is to happen when. Of what is due at the same moment, what was put in first comes first.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Microseconds of simulated time.
pub type Time = u64;

pub const MS: Time = 1_000;
pub const SECOND: Time = 1_000 * MS;

struct Due<E> {
    at: Time,
    order: u64,
    event: E,
}

impl<E> PartialEq for Due<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Due<E> {}

impl<E> PartialOrd for Due<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Due<E> {
    /// The earliest is the greatest, which is what the heap gives first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

pub struct Queue<E> {
    heap: BinaryHeap<Due<E>>,
    order: u64,
    pub now: Time,
}

impl<E> Queue<E> {
    pub fn new() -> Self {
        Self { heap: BinaryHeap::new(), order: 0, now: 0 }
    }

    pub fn after(&mut self, delay: Time, event: E) {
        self.order += 1;
        self.heap.push(Due { at: self.now + delay, order: self.order, event });
    }

    /// The next event; the time is then when it is due.
    pub fn next(&mut self) -> Option<E> {
        let due = self.heap.pop()?;
        self.now = due.at;
        Some(due.event)
    }
}
