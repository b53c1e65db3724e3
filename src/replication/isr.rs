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
    /// Whom requests on top of this partition epoch would add: they may have been granted, or may yet be.
    asked: Members,
    state: Asking,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asking {
    Idle,
    Waiting,
    /// The metadata will say so.
    Granted,
}

impl InSync {
    pub fn new(partition_epoch: PartitionEpoch, members: impl IntoIterator<Item = StorageId>) -> Self {
        let committed = members.into_iter().collect();
        Self { partition_epoch, committed, asked: Members::new(), state: Asking::Idle }
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
    pub fn wish(&self, wanted: Vec<StorageId>) -> Option<Wish> {
        // Whom was asked for and is no longer wanted would be waited for without end: a refusal says nothing of a copy of the
        // request that is still on its way. Only a new partition epoch makes it void.
        let wish = self.renew(wanted)?;
        (!wish.settles || self.maximal().count() > self.committed.len()).then_some(wish)
    }

    /// The same, though it may be for what is already: the request says something else besides.
    pub fn renew(&self, mut wanted: Vec<StorageId>) -> Option<Wish> {
        if self.state != Asking::Idle {
            return None;
        }
        wanted.sort_unstable();
        wanted.dedup();
        let mut committed = self.committed.to_vec();
        committed.sort_unstable();
        let settles = wanted == committed;
        Some(Wish { members: wanted, partition_epoch: self.partition_epoch, settles })
    }

    /// The wish is on its way: from now on its members count.
    pub fn asking(&mut self, wish: &Wish) {
        if wish.partition_epoch != self.partition_epoch {
            return;
        }
        let added = wish.members.iter().filter(|member| !self.asked.contains(member)).copied();
        let added: Members = added.collect();
        #[cfg(test)]
        let added =
            if crate::simulator::planted(crate::simulator::Bug::AdmissionForgotten) { Members::new() } else { added };
        self.asked.extend(added);
        self.state = Asking::Waiting;
    }

    /// The controller granted it; the metadata will say so. Nobody is left out before that.
    pub fn granted(&mut self, on_top_of: PartitionEpoch) {
        if on_top_of == self.partition_epoch {
            self.state = Asking::Granted;
        }
    }

    /// The controller refused it, or no answer came. Either way it, or a copy, may have taken effect or may yet.
    pub fn not_granted(&mut self, on_top_of: PartitionEpoch) {
        if on_top_of == self.partition_epoch && self.state == Asking::Waiting {
            self.state = Asking::Idle;
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
        isr.not_granted(BASE);
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
    fn a_refusal_is_no_proof_that_no_copy_takes_effect_and_a_new_partition_epoch_is() {
        let mut isr = InSync::new(BASE, nodes([1]));
        asked(&mut isr, nodes([1, 2]));
        isr.not_granted(BASE);
        assert_eq!(maximal(&isr), [1, 2], "the controller may have granted a first copy, and refused the second");
        let settles = isr.wish(nodes([1])).unwrap();
        assert_eq!(settles, Wish { members: nodes([1]), partition_epoch: BASE, settles: true });
        isr.asking(&settles);
        isr.granted(BASE);
        assert_eq!(isr.wish(nodes([1, 3])), None, "what is granted will come with the metadata");
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
        isr.not_granted(BASE);
        assert_eq!(maximal(&isr), [1, 3]);
        assert_eq!(isr.wish(nodes([1])), None, "the present request has no answer yet");
    }
}
