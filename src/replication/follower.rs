//! A follower: where it fetches from, and what it cuts off where its history and its leader's part.

use super::epochs::{EpochEnd, EpochHistory};
use crate::types::{LeaderEpoch, Offset, StorageId};

/// What a follower asks its leader for, about one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchFrom {
    /// The leadership it follows: another one has nothing to say to it.
    pub leader_epoch: LeaderEpoch,
    /// Its log end: what it wants next.
    pub offset: Offset,
    /// The epoch of its last record. None: it has none.
    pub last_epoch: Option<LeaderEpoch>,
    /// Up to where its log is on its disk; at most `offset`.
    pub flushed: Offset,
}

/// What a leader answers, records apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FetchOutcome {
    /// The histories agree up to where was asked; records from there follow, if there are any.
    Agrees { high_watermark: Offset, log_start: Offset },
    /// They don't: the leader's log has the last epoch that both can know of up to here.
    Diverged(EpochEnd),
    /// The leader has nothing there: only from `log_start` to `log_end`.
    OutOfRange { log_start: Offset, log_end: Offset },
}

/// What the follower does with its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Append the records that came, if any, and delete what lies before this.
    Append { log_start: Offset },
    /// Cut the log off here, then fetch again.
    TruncateTo(Offset),
    /// Drop all of the log and begin anew here, then fetch again.
    RestartAt(Offset),
    /// It answers something else than what is asked now, or another leadership's: drop it.
    Ignore,
}

/// One partition's follower under one leader epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Follower {
    leader: StorageId,
    leader_epoch: LeaderEpoch,
    high_watermark: Offset,
}

impl Follower {
    /// `high_watermark`: what this replica knew of it before.
    pub fn new(leader: StorageId, leader_epoch: LeaderEpoch, high_watermark: Offset) -> Self {
        Self { leader, leader_epoch, high_watermark }
    }

    pub fn leader(&self) -> StorageId {
        self.leader
    }

    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.leader_epoch
    }

    /// Everything below it is on the disk of every replica that was in sync. Never beyond this log's end.
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// The records that came with an answer that agreed are in the log, which ends at `log_end` now.
    pub fn learned(&mut self, outcome: FetchOutcome, log_end: Offset) {
        match outcome {
            FetchOutcome::Agrees { high_watermark, .. } => {
                self.high_watermark = self.high_watermark.max(high_watermark.min(log_end));
            }
            FetchOutcome::Diverged(_) | FetchOutcome::OutOfRange { .. } => {}
        }
    }

    pub fn fetch_from(&self, epochs: &EpochHistory, log_end: Offset, flushed: Offset) -> FetchFrom {
        FetchFrom { leader_epoch: self.leader_epoch, offset: log_end, last_epoch: epochs.last(log_end), flushed }
    }

    /// What to do upon an answer to `asked`; after an append, [`Self::learned`] is to be told.
    ///
    /// An answer counts only for a log that ends, still, where and in which epoch it ended when it asked: a late copy of
    /// 'diverged' would otherwise cut off what was fetched, and counted on, since.
    pub fn answer(&mut self, asked: &FetchFrom, outcome: FetchOutcome, epochs: &EpochHistory, log_end: Offset) -> Step {
        let now = self.fetch_from(epochs, log_end, asked.flushed);
        if *asked != now {
            return Step::Ignore;
        }
        let step = match outcome {
            FetchOutcome::Agrees { log_start, .. } => Step::Append { log_start },
            FetchOutcome::Diverged(theirs) => Step::TruncateTo(parting(epochs, theirs, log_end)),
            FetchOutcome::OutOfRange { log_end: end, .. } if log_end > end => Step::TruncateTo(end),
            FetchOutcome::OutOfRange { log_start, .. } if log_end < log_start => Step::RestartAt(log_start),
            FetchOutcome::OutOfRange { .. } => Step::Ignore,
        };
        match step {
            Step::TruncateTo(to) if to >= log_end => Step::Ignore,
            Step::TruncateTo(to) => {
                self.high_watermark = self.high_watermark.min(to);
                step
            }
            Step::RestartAt(_) | Step::Append { .. } | Step::Ignore => step,
        }
    }
}

/// Where to cut: what the leader has of its epoch, or what this log has of it or the epoch before, whichever is less. If the
/// epochs still differ, the next fetch cuts further.
fn parting(epochs: &EpochHistory, theirs: EpochEnd, log_end: Offset) -> Offset {
    #[cfg(test)]
    if crate::simulator::planted(crate::simulator::Bug::CutsTooMuch) {
        return Offset::ZERO;
    }
    let ours = epochs.end_of(theirs.epoch, log_end).map_or(Offset::ZERO, |ours| ours.end);
    theirs.end.min(ours).min(log_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADER: StorageId = StorageId(1);
    const EPOCH: LeaderEpoch = LeaderEpoch(9);

    fn epochs(starts: &[(u32, i64)]) -> EpochHistory {
        EpochHistory::from_starts(starts.iter().map(|(e, o)| (LeaderEpoch(*e), Offset(*o))).collect()).unwrap()
    }

    fn asked(epoch: u32, offset: i64, last: u32) -> FetchFrom {
        let last_epoch = Some(LeaderEpoch(last));
        FetchFrom { leader_epoch: LeaderEpoch(epoch), offset: Offset(offset), last_epoch, flushed: Offset(offset) }
    }

    fn answered(asked: &FetchFrom, outcome: FetchOutcome) -> (Step, i64) {
        let mut follower = Follower::new(LEADER, EPOCH, Offset(12));
        let step = follower.answer(asked, outcome, &epochs(&[(3, 0), (5, 10), (6, 20)]), Offset(30));
        if let Step::Append { .. } = step {
            follower.learned(outcome, Offset(40));
        }
        (step, follower.high_watermark().0)
    }

    fn step(outcome: FetchOutcome) -> (Step, i64) {
        answered(&asked(9, 30, 6), outcome)
    }

    #[test]
    fn the_high_watermark_follows_but_never_beyond_the_log() {
        let agrees =
            |high_watermark| FetchOutcome::Agrees { high_watermark: Offset(high_watermark), log_start: Offset(2) };
        assert_eq!(step(agrees(25)), (Step::Append { log_start: Offset(2) }, 25));
        assert_eq!(step(agrees(99)), (Step::Append { log_start: Offset(2) }, 40));
        assert_eq!(step(agrees(5)), (Step::Append { log_start: Offset(2) }, 12), "a late answer lowers nothing");
    }

    #[test]
    fn what_answers_another_log_or_leadership_than_is_now_is_dropped() {
        let diverged = FetchOutcome::Diverged(EpochEnd { epoch: LeaderEpoch(5), end: Offset(15) });
        assert_eq!(answered(&asked(9, 20, 6), diverged), (Step::Ignore, 12), "the log has grown since");
        assert_eq!(answered(&asked(9, 30, 5), diverged), (Step::Ignore, 12), "it was cut and has grown again");
        assert_eq!(answered(&asked(8, 30, 6), diverged), (Step::Ignore, 12), "an older leadership");
        assert_eq!(answered(&asked(10, 30, 6), diverged), (Step::Ignore, 12), "another leadership");
    }

    #[test]
    fn histories_that_part_are_cut_where_the_last_common_epoch_ends() {
        let diverged = |epoch, end| FetchOutcome::Diverged(EpochEnd { epoch: LeaderEpoch(epoch), end: Offset(end) });
        assert_eq!(step(diverged(6, 25)).0, Step::TruncateTo(Offset(25)), "the same epoch, less of it there");
        assert_eq!(step(diverged(5, 25)).0, Step::TruncateTo(Offset(20)), "more of an older epoch there than here");
        assert_eq!(step(diverged(5, 15)).0, Step::TruncateTo(Offset(15)));
        assert_eq!(step(diverged(4, 50)).0, Step::TruncateTo(Offset(10)), "an epoch that this log has not");
        assert_eq!(step(diverged(1, 0)), (Step::TruncateTo(Offset(0)), 0), "nothing in common");
        assert_eq!(step(diverged(6, 30)).0, Step::Ignore, "nothing to cut: an answer to an older fetch");
    }

    #[test]
    fn out_of_range_cuts_what_is_beyond_and_begins_anew_where_all_is_deleted() {
        let outside = |start, end| FetchOutcome::OutOfRange { log_start: Offset(start), log_end: Offset(end) };
        assert_eq!(step(outside(0, 28)).0, Step::TruncateTo(Offset(28)));
        assert_eq!(step(outside(50, 90)).0, Step::RestartAt(Offset(50)));
        assert_eq!(step(outside(10, 90)).0, Step::Ignore, "an answer to an older fetch");
    }
}
