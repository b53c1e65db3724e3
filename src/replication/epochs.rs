//! Under which leader epochs a log was written, and where two logs part (Kafka's leader epoch cache, KIP-101 and KIP-279).

use crate::types::{LeaderEpoch, Offset};

/// The last leader epoch, at or before an asked one, that a log has, and the offset behind its last record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpochEnd {
    pub epoch: LeaderEpoch,
    pub end: Offset,
}

/// Each leader epoch that wrote into the log, with the offset of its first record. Both rise from entry to entry.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct EpochHistory {
    starts: Vec<(LeaderEpoch, Offset)>,
}

impl EpochHistory {
    /// What a checkpoint holds. None where epochs or offsets do not rise.
    pub fn from_starts(starts: Vec<(LeaderEpoch, Offset)>) -> Option<Self> {
        let rises = starts.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1);
        rises.then_some(Self { starts })
    }

    pub fn starts(&self) -> &[(LeaderEpoch, Offset)] {
        &self.starts
    }

    /// The epoch of the last record of a log that ends at `log_end`. None: the log never had one.
    ///
    /// An epoch that began but wrote nothing is not it: its leader may have been the only one who ever knew of it, and
    /// another leader would answer that the histories part, where nothing is left to be cut off.
    pub fn last(&self, log_end: Offset) -> Option<LeaderEpoch> {
        self.starts.iter().rev().find(|(_, start)| *start < log_end).map(|(epoch, _)| *epoch)
    }

    /// A record of `epoch` is appended at `offset`. True where that begins an epoch.
    ///
    /// Entries that contradict it go: whoever appends there knows better than what a lost tail left behind.
    pub fn append(&mut self, epoch: LeaderEpoch, offset: Offset) -> bool {
        if self.starts.last().is_some_and(|(held, start)| *held == epoch && *start <= offset) {
            return false;
        }
        let kept = self.starts.iter().take_while(|(held, start)| *held < epoch && *start < offset).count();
        self.starts.truncate(kept);
        self.starts.push((epoch, offset));
        true
    }

    /// Where `epoch`, or the last one before it, ends in this log, whose end is `log_end`. None where the log knows of
    /// neither it nor anything later or earlier: it is empty, or all of it is older than what was deleted.
    pub fn end_of(&self, epoch: LeaderEpoch, log_end: Offset) -> Option<EpochEnd> {
        let after = self.starts.partition_point(|(held, _)| *held <= epoch);
        let end = self.starts.get(after).map_or(log_end, |(_, start)| *start);
        match after.checked_sub(1).map(|index| self.starts[index].0) {
            Some(epoch) => Some(EpochEnd { epoch, end }),
            // Older than all that is left: the records of that epoch end, at the latest, where the first one left begins.
            None => self.starts.first().map(|(_, start)| EpochEnd { epoch, end: *start }),
        }
    }

    /// The log now ends at `offset`.
    pub fn truncate_to(&mut self, offset: Offset) {
        let kept = self.starts.partition_point(|(_, start)| *start < offset);
        self.starts.truncate(kept);
    }

    /// The log now starts at `offset`: the epoch of its first record begins there, as far as this log can tell.
    pub fn start_at(&mut self, offset: Offset) {
        let after = self.starts.partition_point(|(_, start)| *start <= offset);
        if let Some(first) = after.checked_sub(1) {
            self.starts.drain(..first);
            self.starts[0].1 = offset;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(starts: &[(u32, i64)]) -> EpochHistory {
        let starts = starts.iter().map(|(epoch, start)| (LeaderEpoch(*epoch), Offset(*start))).collect();
        EpochHistory::from_starts(starts).unwrap()
    }

    fn end(history: &EpochHistory, epoch: u32) -> Option<(u32, i64)> {
        history.end_of(LeaderEpoch(epoch), Offset(50)).map(|end| (end.epoch.0, end.end.0))
    }

    #[test]
    fn an_epoch_ends_where_the_next_one_begins_and_the_last_one_at_the_logs_end() {
        let held = history(&[(2, 0), (3, 10), (7, 30)]);
        assert_eq!(end(&held, 2), Some((2, 10)));
        assert_eq!(end(&held, 3), Some((3, 30)));
        assert_eq!(end(&held, 5), Some((3, 30)), "an epoch that wrote nothing here: the one before it");
        assert_eq!(end(&held, 7), Some((7, 50)));
        assert_eq!(end(&held, 9), Some((7, 50)));
        assert_eq!(end(&held, 1), Some((1, 0)), "before all that is left");
        assert_eq!(end(&EpochHistory::default(), 1), None);
    }

    #[test]
    fn appending_begins_an_epoch_once_and_removes_what_contradicts_it() {
        let mut held = history(&[(2, 0), (3, 10)]);
        assert!(!held.append(LeaderEpoch(3), Offset(20)));
        assert!(held.append(LeaderEpoch(4), Offset(20)));
        assert_eq!(held, history(&[(2, 0), (3, 10), (4, 20)]));
        assert!(held.append(LeaderEpoch(5), Offset(10)), "the log was cut to 10 before");
        assert_eq!(held, history(&[(2, 0), (5, 10)]));
        assert!(held.append(LeaderEpoch(1), Offset(60)));
        assert_eq!(held, history(&[(1, 60)]), "an older epoch behind newer ones: those were not of this history");
    }

    #[test]
    fn an_epoch_that_wrote_nothing_is_not_that_of_the_last_record() {
        let held = history(&[(2, 0), (3, 10)]);
        assert_eq!(held.last(Offset(11)), Some(LeaderEpoch(3)));
        assert_eq!(held.last(Offset(10)), Some(LeaderEpoch(2)));
        assert_eq!(held.last(Offset(0)), None);
    }

    #[test]
    fn cutting_either_end_keeps_what_the_log_still_has() {
        let mut held = history(&[(2, 0), (3, 10), (7, 30)]);
        held.truncate_to(Offset(30));
        assert_eq!(held, history(&[(2, 0), (3, 10)]));
        held.truncate_to(Offset(0));
        assert_eq!(held, EpochHistory::default());
        let mut held = history(&[(2, 0), (3, 10), (7, 30)]);
        held.start_at(Offset(15));
        assert_eq!(held, history(&[(3, 15), (7, 30)]));
        held.start_at(Offset(90));
        assert_eq!(held, history(&[(7, 90)]));
    }

    #[test]
    fn a_checkpoint_that_does_not_rise_is_none() {
        let starts = |starts: &[(u32, i64)]| starts.iter().map(|(e, o)| (LeaderEpoch(*e), Offset(*o))).collect();
        assert_eq!(EpochHistory::from_starts(starts(&[(2, 0), (2, 5)])), None);
        assert_eq!(EpochHistory::from_starts(starts(&[(2, 5), (3, 5)])), None);
    }
}
