//! Which replicas count: those that the metadata names, and those that a request which may have been granted would add.

use smallvec::SmallVec;

use crate::types::{PartitionEpoch, StorageId};

type Members = SmallVec<[StorageId; 4]>;

/// What the leader would have the controller make of its in-sync replicas.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wish {
    /// The whole set, the leader among them, in ascending order.
    pub members: Vec<StorageId>,
    /// The state that it changes: void once the partition has a newer epoch.
    pub partition_epoch: PartitionEpoch,
    /// Nothing is to change but the partition epoch, so that earlier requests whose fate is unknown become void.
    pub settles: bool,
}

/// The in-sync replicas of one partition, as its leader has to see them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InSync {
    partition_epoch: PartitionEpoch,
    committed: Members,
    /// Whom requests on top of this partition epoch would add, and nobody knows whether they did.
    asked: Members,
    /// Requests on top of this partition epoch that have no answer yet, or never will.
    open: u32,
    waiting: bool,
    refused: bool,
}

impl InSync {
    pub fn new(partition_epoch: PartitionEpoch, members: impl IntoIterator<Item = StorageId>) -> Self {
        let committed = members.into_iter().collect();
        Self { partition_epoch, committed, asked: Members::new(), open: 0, waiting: false, refused: false }
    }

    pub fn partition_epoch(&self) -> PartitionEpoch {
        self.partition_epoch
    }

    /// Those that the metadata names.
    pub fn committed(&self) -> &[StorageId] {
        &self.committed
    }

    /// Those that have to have a record before it is acknowledged.
    pub fn maximal(&self) -> impl Iterator<Item = StorageId> + '_ {
        let added = self.asked.iter().filter(|member| !self.committed.contains(member));
        self.committed.iter().chain(added).copied()
    }

    /// The metadata says so. What is older than what is known changes nothing; whatever was asked on top of an older state
    /// is void from here on.
    pub fn commit(&mut self, partition_epoch: PartitionEpoch, members: impl IntoIterator<Item = StorageId>) -> bool {
        if partition_epoch <= self.partition_epoch {
            return false;
        }
        *self = Self::new(partition_epoch, members);
        true
    }

    /// The request to make, given whom the leader would want; one at a time.
    pub fn wish(&self, mut wanted: Vec<StorageId>) -> Option<Wish> {
        if self.waiting {
            return None;
        }
        wanted.sort_unstable();
        wanted.dedup();
        let mut committed = self.committed.to_vec();
        committed.sort_unstable();
        let settles = wanted == committed;
        // A refusal says nothing of an earlier request that was lost on the way and may still arrive: only a new partition
        // epoch makes that one void. Without a refusal it is simply asked again.
        let needed = !settles || (self.refused && self.open > 0);
        needed.then_some(Wish { members: wanted, partition_epoch: self.partition_epoch, settles })
    }

    /// The wish is on its way: from now on its members count.
    pub fn asking(&mut self, wish: &Wish) {
        if wish.partition_epoch != self.partition_epoch {
            return;
        }
        let added = wish.members.iter().filter(|member| !self.asked.contains(member)).copied();
        let added: Members = added.collect();
        self.asked.extend(added);
        self.open += 1;
        self.waiting = true;
    }

    /// The controller granted it; the metadata will say so. Nothing is shown, and nobody left out, before that.
    pub fn granted(&mut self, on_top_of: PartitionEpoch) {
        if on_top_of == self.partition_epoch {
            self.waiting = false;
        }
    }

    /// The controller refused it, so it will never take effect.
    pub fn refused(&mut self, on_top_of: PartitionEpoch) {
        if on_top_of != self.partition_epoch || !self.waiting {
            return;
        }
        self.waiting = false;
        self.refused = true;
        self.open -= 1;
        if self.open == 0 {
            self.asked.clear();
            self.refused = false;
        }
    }

    /// No answer came: it may have taken effect, or may yet.
    pub fn unanswered(&mut self, on_top_of: PartitionEpoch) {
        if on_top_of == self.partition_epoch {
            self.waiting = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: PartitionEpoch = PartitionEpoch(7);

    fn nodes<const N: usize>(ids: [u32; N]) -> Vec<StorageId> {
        ids.into_iter().map(StorageId).collect()
    }

    fn maximal(isr: &InSync) -> Vec<u32> {
        let mut members: Vec<_> = isr.maximal().map(|node| node.0).collect();
        members.sort_unstable();
        members
    }

    fn asked(isr: &mut InSync, ids: Vec<StorageId>) {
        let wish = isr.wish(ids).unwrap();
        isr.asking(&wish);
    }

    #[test]
    fn whom_was_asked_for_counts_until_the_metadata_says_otherwise() {
        let mut isr = InSync::new(BASE, nodes([1, 2]));
        asked(&mut isr, nodes([3, 2, 1]));
        assert_eq!(maximal(&isr), [1, 2, 3]);
        assert_eq!(isr.wish(nodes([1])), None, "one request at a time");
        isr.unanswered(BASE);
        assert_eq!(maximal(&isr), [1, 2, 3], "it may have been granted, and the news lost");
        assert!(!isr.commit(BASE, nodes([1])), "nothing newer");
        assert!(isr.commit(PartitionEpoch(8), nodes([1, 2])));
        assert_eq!(maximal(&isr), [1, 2]);
    }

    #[test]
    fn a_removal_counts_only_once_the_metadata_says_so() {
        let mut isr = InSync::new(BASE, nodes([1, 2, 3]));
        asked(&mut isr, nodes([1, 2]));
        isr.granted(BASE);
        assert_eq!(maximal(&isr), [1, 2, 3]);
        isr.commit(PartitionEpoch(8), nodes([1, 2]));
        assert_eq!(maximal(&isr), [1, 2]);
    }

    #[test]
    fn a_refusal_settles_the_only_request_but_not_one_that_was_lost() {
        let mut isr = InSync::new(BASE, nodes([1]));
        asked(&mut isr, nodes([1, 2]));
        isr.refused(BASE);
        assert_eq!(maximal(&isr), [1]);

        asked(&mut isr, nodes([1, 2]));
        isr.unanswered(BASE);
        asked(&mut isr, nodes([1, 2]));
        isr.refused(BASE);
        assert_eq!(maximal(&isr), [1, 2], "the first of the two may still arrive");
        let settles = isr.wish(nodes([1])).unwrap();
        assert_eq!(settles, Wish { members: nodes([1]), partition_epoch: BASE, settles: true });
        isr.asking(&settles);
        isr.granted(BASE);
        isr.commit(PartitionEpoch(8), nodes([1]));
        assert_eq!(maximal(&isr), [1]);
        assert_eq!(isr.wish(nodes([1])), None);
    }

    #[test]
    fn an_answer_to_what_is_void_changes_nothing() {
        let mut isr = InSync::new(BASE, nodes([1]));
        asked(&mut isr, nodes([1, 2]));
        isr.commit(PartitionEpoch(8), nodes([1]));
        asked(&mut isr, nodes([1, 3]));
        isr.refused(BASE);
        assert_eq!(maximal(&isr), [1, 3]);
    }
}
