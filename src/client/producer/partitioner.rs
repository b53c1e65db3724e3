//! Where records without a key go: to one partition until its batch is closed, then to another that has less to do.

use crate::types::PartitionId;

/// The one of two random partitions on which fewer batches wait: close to the best of all, and it cannot happen that all producers
/// choose the same one. 0 where there are none.
pub(super) fn less_loaded(count: u32, random: [u32; 2], load: impl Fn(PartitionId) -> usize) -> PartitionId {
    let [first, second] = random.map(|random| random.checked_rem(count).unwrap_or(0));
    if load(second) < load(first) { second } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_partitions_the_one_with_less_to_do_is_taken() {
        let load = |partition| [3, 0, 7][partition as usize];
        assert_eq!(less_loaded(3, [0, 1], load), 1);
        assert_eq!(less_loaded(3, [4, 5], load), 1);
        assert_eq!(less_loaded(3, [2, 2], load), 2);
        assert_eq!(less_loaded(0, [9, 9], |_| 0), 0);
    }
}
