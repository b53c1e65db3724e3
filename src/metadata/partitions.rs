//! A topic's partitions, by number, in chunks that images share: a change copies the chunk that it is in, and not a million
//! partitions, while a snapshot of the image before is being written.

use std::ops::Index;
use std::sync::Arc;

use super::image::Partition;

/// Few enough to be copied in microseconds, and enough that the list of chunks is short.
const CHUNK: usize = 512;

/// Every chunk but the last one is full. Cloning costs one reference per chunk.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Partitions {
    chunks: Vec<Arc<Vec<Partition>>>,
}

impl Partitions {
    pub fn len(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.len())
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub fn get(&self, number: usize) -> Option<&Partition> {
        self.chunks.get(number / CHUNK)?.get(number % CHUNK)
    }

    pub fn first(&self) -> Option<&Partition> {
        self.get(0)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Partition> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    pub(super) fn get_mut(&mut self, number: usize) -> Option<&mut Partition> {
        Arc::make_mut(self.chunks.get_mut(number / CHUNK)?).get_mut(number % CHUNK)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Partition> {
        self.chunks.iter_mut().flat_map(|chunk| Arc::make_mut(chunk).iter_mut())
    }

    pub(super) fn extend(&mut self, more: impl IntoIterator<Item = Partition>) {
        let mut more = more.into_iter().peekable();
        while more.peek().is_some() {
            if self.chunks.last().is_none_or(|last| last.len() == CHUNK) {
                self.chunks.push(Arc::default());
            }
            let last = self.chunks.last_mut().map(Arc::make_mut).expect("there is one, made just above if need be");
            last.extend(more.by_ref().take(CHUNK - last.len()));
            // A last chunk stays as it is for long: it holds no room that it does not need.
            last.shrink_to_fit();
        }
    }
}

impl Index<usize> for Partitions {
    type Output = Partition;

    fn index(&self, number: usize) -> &Partition {
        self.get(number).expect("the caller knows how many partitions there are")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::StorageId;

    fn some(count: usize) -> impl Iterator<Item = Partition> {
        (0..count).map(|number| Partition::new(&[StorageId(number as u32)]))
    }

    #[test]
    fn partitions_have_their_numbers_however_they_came() {
        for first in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1] {
            let count = 3 * CHUNK + 7;
            let mut partitions = Partitions::default();
            partitions.extend(some(count).take(first));
            assert_eq!((partitions.len(), partitions.is_empty()), (first, first == 0));
            partitions.extend(some(count).skip(first));
            assert_eq!(partitions.len(), count);
            assert!(partitions.iter().eq(some(count).collect::<Vec<_>>().iter()));
            assert!((0..count).all(|number| partitions[number].replicas[0].0 as usize == number));
            assert_eq!(partitions.get(count), None);
        }
    }

    #[test]
    fn a_change_copies_its_own_chunk_and_no_other() {
        let mut partitions = Partitions::default();
        partitions.extend(some(3 * CHUNK));
        let before = partitions.clone();
        partitions.get_mut(CHUNK + 1).unwrap().epoch.0 = 9;
        let shared = |n: usize| Arc::ptr_eq(&before.chunks[n], &partitions.chunks[n]);
        assert_eq!((shared(0), shared(1), shared(2)), (true, false, true));
        assert_eq!((before[CHUNK + 1].epoch.0, partitions[CHUNK + 1].epoch.0), (0, 9));
        assert!(before != partitions && partitions.get_mut(3 * CHUNK).is_none());
    }
}
