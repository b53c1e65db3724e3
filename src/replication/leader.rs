//! A leader: how far its followers are, what is committed by that, whom it waits for, and whom it would have in sync.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::epochs::EpochHistory;
use super::follower::{FetchFrom, FetchOutcome};
use super::isr::{InSync, Wish};
use crate::types::{LeaderEpoch, Monotonic, NodeEpoch, Offset, PartitionEpoch, StorageId};

/// How many of its own log ends, with their times, a leader remembers to tell since when a follower lags.
const MARKS: usize = 16;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// After how long without having had all that the leader had, a follower is to leave the in-sync replicas (Kafka's
    /// `replica.lag.time.max.ms`).
    pub lag_max: Duration,
    /// How many in-sync replicas an acknowledgement takes (Kafka's `min.insync.replicas`).
    pub min_insync: usize,
}

/// One lifetime of a follower's log: within it, what is flushed never falls while it follows one leader epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ReplicaSession {
    pub node_epoch: NodeEpoch,
    /// Rises where the node makes this replica's log anew, for instance because it was damaged.
    pub attempt: u32,
}

/// Why a fetch is not answered with records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    #[error("leader epoch {got} is over, {present} is the present one")]
    FencedLeaderEpoch { present: LeaderEpoch, got: LeaderEpoch },
    #[error("leader epoch {got} is not known here yet, {present} is")]
    UnknownLeaderEpoch { present: LeaderEpoch, got: LeaderEpoch },
    #[error("storage node {0} holds no replica of the partition")]
    NotAReplica(StorageId),
    #[error("an older incarnation of storage node {0}, or of its replica")]
    StaleReplica(StorageId),
}

/// Why something is not acknowledged with `acks=all`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AckError {
    #[error("{in_sync} replicas are in sync, {min} have to be")]
    NotEnoughReplicas { in_sync: usize, min: usize },
    #[error("it was written, but when it was on every in-sync replica these were {in_sync}, and {min} have to be")]
    NotEnoughReplicasAfterAppend { in_sync: usize, min: usize },
}

#[derive(Clone, Debug)]
struct Replica {
    session: ReplicaSession,
    /// Up to where the follower's log is on its disk and known to agree. None: it has not fetched under this epoch.
    flushed: Option<Offset>,
    /// When it last had all that the leader had.
    caught_up: Monotonic,
    /// It said that it follows no more, and has not fetched since.
    has_left: bool,
}

impl Replica {
    fn new(session: ReplicaSession, caught_up: Monotonic) -> Self {
        Self { session, flushed: None, caught_up, has_left: false }
    }
}

/// One partition's leader under one leader epoch. `T` names whoever waits for an acknowledgement.
#[derive(Debug)]
pub struct Leader<T> {
    me: StorageId,
    leader_epoch: LeaderEpoch,
    settings: Settings,
    /// The log's end when the leadership began.
    epoch_start: Offset,
    log_end: Offset,
    flushed: Offset,
    high_watermark: Offset,
    in_sync: InSync,
    followers: BTreeMap<StorageId, Replica>,
    marks: VecDeque<(Monotonic, Offset)>,
    waiting: VecDeque<(Offset, T)>,
}

impl<T> Leader<T> {
    /// `high_watermark`: what this replica knew of it as a follower. `flushed`, `log_end`: those of its own log.
    pub fn new(
        me: StorageId,
        leader_epoch: LeaderEpoch,
        settings: Settings,
        in_sync: InSync,
        (high_watermark, flushed, log_end): (Offset, Offset, Offset),
    ) -> Self {
        let mut leader = Self {
            me,
            leader_epoch,
            settings,
            epoch_start: log_end,
            log_end,
            flushed,
            high_watermark: high_watermark.min(log_end),
            in_sync,
            followers: BTreeMap::new(),
            marks: VecDeque::new(),
            waiting: VecDeque::new(),
        };
        leader.advance();
        leader
    }

    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.leader_epoch
    }

    pub fn in_sync(&self) -> &InSync {
        &self.in_sync
    }

    pub fn in_sync_mut(&mut self) -> &mut InSync {
        &mut self.in_sync
    }

    /// Everything below it is on the disk of every replica that is, or may be, in sync.
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// Up to where consumers may read. None: a new leader does not know yet how far its predecessor showed, so until its own
    /// epoch's start is committed they wait, and never see it fall.
    pub fn visible(&self) -> Option<Offset> {
        let is_known = self.high_watermark >= self.epoch_start;
        #[cfg(test)]
        let is_known = is_known || crate::simulator::planted(crate::simulator::Bug::ShownEarly);
        is_known.then_some(self.high_watermark)
    }

    /// How many records' offsets lie between a follower's disk and the log's end. None: it has not fetched yet.
    pub fn lag(&self, follower: StorageId) -> Option<i64> {
        let flushed = self.followers.get(&follower)?.flushed?;
        Some((self.log_end.0 - flushed.0).max(0))
    }

    /// The largest of all followers' lags.
    pub fn largest_lag(&self) -> Option<u64> {
        self.followers.keys().filter_map(|follower| self.lag(*follower)).max().map(i64::unsigned_abs)
    }

    /// Who holds a replica now, each with its incarnation. Others are forgotten; a new incarnation begins anew.
    pub fn replicas(&mut self, now: Monotonic, replicas: impl IntoIterator<Item = (StorageId, NodeEpoch)>) {
        let mut before = std::mem::take(&mut self.followers);
        for (node, node_epoch) in replicas.into_iter().filter(|(node, _)| *node != self.me) {
            let known = before.remove(&node).filter(|replica| replica.session.node_epoch >= node_epoch);
            let fresh = || Replica::new(ReplicaSession { node_epoch, attempt: 0 }, now);
            self.followers.insert(node, known.unwrap_or_else(fresh));
        }
    }

    /// The metadata names these in-sync replicas.
    pub fn commit_in_sync(&mut self, epoch: PartitionEpoch, members: impl IntoIterator<Item = StorageId>) {
        if self.in_sync.commit(epoch, members) {
            self.advance();
        }
    }

    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Whether something may be appended that is to be acknowledged with `acks=all`.
    pub fn check_append(&self) -> Result<(), AckError> {
        let (in_sync, min) = (self.in_sync.committed().len(), self.min_insync());
        if in_sync < min { Err(AckError::NotEnoughReplicas { in_sync, min }) } else { Ok(()) }
    }

    fn min_insync(&self) -> usize {
        #[cfg(test)]
        if crate::simulator::planted(crate::simulator::Bug::AloneIsEnough) {
            return 1;
        }
        self.settings.min_insync
    }

    /// The log ends here now, though not on the disk.
    pub fn appended(&mut self, now: Monotonic, log_end: Offset) {
        let before = self.log_end;
        for replica in self.followers.values_mut().filter(|replica| replica.flushed == Some(before)) {
            replica.caught_up = now;
        }
        self.log_end = log_end;
    }

    /// The log is on the disk up to here.
    pub fn flushed(&mut self, to: Offset) {
        self.flushed = self.flushed.max(to);
        self.advance();
    }

    /// A follower fetches. What it says of its disk counts only where the histories agree up to there.
    pub fn fetched(
        &mut self,
        now: Monotonic,
        node: StorageId,
        session: ReplicaSession,
        from: &FetchFrom,
        log_start: Offset,
        epochs: &EpochHistory,
    ) -> Result<FetchOutcome, Refusal> {
        let (present, got) = (self.leader_epoch, from.leader_epoch);
        if got < present {
            return Err(Refusal::FencedLeaderEpoch { present, got });
        }
        if got > present {
            return Err(Refusal::UnknownLeaderEpoch { present, got });
        }
        let replica = self.followers.get_mut(&node).ok_or(Refusal::NotAReplica(node))?;
        if session < replica.session {
            return Err(Refusal::StaleReplica(node));
        }
        if session > replica.session {
            *replica = Replica::new(session, replica.caught_up);
        }
        replica.has_left = false;
        if from.offset < log_start || from.offset > self.log_end {
            return Ok(FetchOutcome::OutOfRange { log_start, log_end: self.log_end });
        }
        if let Some(last) = from.last_epoch
            && let Some(ours) = epochs.end_of(last, self.log_end)
            && (ours.epoch != last || ours.end < from.offset)
        {
            #[cfg(test)]
            if crate::simulator::planted(crate::simulator::Bug::DivergenceUnseen) {
                return Ok(FetchOutcome::Agrees { high_watermark: self.high_watermark, log_start });
            }
            return Ok(FetchOutcome::Diverged(ours));
        }
        // A late copy of an earlier fetch says less than what is known, and nothing false.
        let flushed = from.flushed.min(from.offset).max(replica.flushed.unwrap_or(Offset::ZERO));
        replica.flushed = Some(flushed);
        if flushed >= self.log_end {
            replica.caught_up = now;
        } else if let Some((at, _)) = self.marks.iter().rev().find(|(_, end)| *end <= flushed) {
            replica.caught_up = replica.caught_up.max(*at);
        }
        self.mark(now);
        self.advance();
        Ok(FetchOutcome::Agrees { high_watermark: self.high_watermark, log_start })
    }

    /// A follower of this incarnation says that it follows no more: nobody is to wait until it lags for too long.
    pub fn left(&mut self, node: StorageId, node_epoch: NodeEpoch) {
        let replica = self.followers.get_mut(&node).filter(|replica| replica.session.node_epoch == node_epoch);
        if let Some(replica) = replica {
            replica.has_left = true;
        }
    }

    fn mark(&mut self, now: Monotonic) {
        if self.marks.back().is_some_and(|(_, end)| *end == self.log_end) {
            self.marks.pop_back();
        }
        if self.marks.len() == MARKS {
            self.marks.pop_front();
        }
        self.marks.push_back((now, self.log_end));
    }

    fn advance(&mut self) {
        let has = |node| {
            if node == self.me { Some(self.flushed) } else { self.followers.get(&node).and_then(|held| held.flushed) }
        };
        // A member that has not said where it is may lack everything.
        let all: Option<Offset> =
            self.in_sync.maximal().map(has).try_fold(self.log_end, |least, end| Some(least.min(end?)));
        self.high_watermark = self.high_watermark.max(all.unwrap_or(Offset::ZERO));
    }

    /// `who` waits until everything below `end` is committed. In the order of the ends.
    pub fn wait_for(&mut self, end: Offset, who: T) {
        self.waiting.push_back((end, who));
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The next one who waits no longer. Only while the node may lead: what it does not tell, nobody was told.
    pub fn pop_acknowledged(&mut self) -> Option<(T, Result<Offset, AckError>)> {
        let (end, _) = self.waiting.front()?;
        if *end > self.high_watermark {
            return None;
        }
        let (end, who) = self.waiting.pop_front()?;
        let (in_sync, min) = (self.in_sync.committed().len(), self.min_insync());
        let outcome =
            if in_sync < min { Err(AckError::NotEnoughReplicasAfterAppend { in_sync, min }) } else { Ok(end) };
        Some((who, outcome))
    }

    /// Everybody who waits, whose records may or may not survive: the leadership is over.
    pub fn into_waiting(self) -> impl Iterator<Item = T> {
        self.waiting.into_iter().map(|(_, who)| who)
    }

    /// What to ask of the controller now, be it for what is already where it has to be `renewed`. `fit`: whether the metadata has
    /// that incarnation of the node active.
    pub fn wish(&self, now: Monotonic, renewed: bool, fit: impl Fn(StorageId, NodeEpoch) -> bool) -> Option<Wish> {
        let stays = |node: &StorageId| *node == self.me || !self.lags(now, *node);
        let mut wanted: Vec<_> = self.in_sync.committed().iter().copied().filter(stays).collect();
        let joins = self.followers.iter().filter(|(node, replica)| {
            !self.in_sync.committed().contains(node)
                && fit(**node, replica.session.node_epoch)
                && !replica.has_left
                && replica.flushed.is_some_and(|end| self.is_enough(end))
        });
        wanted.extend(joins.map(|(node, _)| *node));
        if renewed { self.in_sync.renew(wanted) } else { self.in_sync.wish(wanted) }
    }

    /// Whether a follower with so much on its disk has all that may have been acknowledged.
    fn is_enough(&self, end: Offset) -> bool {
        #[cfg(test)]
        if crate::simulator::planted(crate::simulator::Bug::JoinsEarly) {
            return true;
        }
        end >= self.high_watermark && end >= self.epoch_start
    }

    /// The incarnation that the leader hears from, to be named with the wish.
    pub fn node_epoch(&self, follower: StorageId) -> Option<NodeEpoch> {
        Some(self.followers.get(&follower)?.session.node_epoch)
    }

    fn lags(&self, now: Monotonic, node: StorageId) -> bool {
        self.followers.get(&node).is_some_and(|replica| {
            // A member that lacks what is committed lost it: only damage to its disk does that.
            let damaged = replica.flushed.is_some_and(|end| end < self.high_watermark);
            damaged
                || replica.has_left
                || replica.flushed.is_none_or(|end| end < self.log_end)
                    && now.since(replica.caught_up) > self.settings.lag_max
        })
    }

    /// When a member of the in-sync replicas will lag for too long unless it catches up; of one that has left, before that.
    pub fn lag_deadline(&self) -> Option<Monotonic> {
        let behind = self.followers.iter().filter(|(node, replica)| {
            let lacks = replica.has_left || replica.flushed.is_none_or(|end| end < self.log_end);
            self.in_sync.committed().contains(node) && lacks
        });
        behind.map(|(_, replica)| replica.caught_up + self.settings.lag_max).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: StorageId = StorageId(0);
    const EPOCH: LeaderEpoch = LeaderEpoch(5);
    const MIN_INSYNC: usize = 2;

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1000)
    }

    fn session(attempt: u32) -> ReplicaSession {
        ReplicaSession { node_epoch: NodeEpoch(10), attempt }
    }

    fn epochs() -> EpochHistory {
        EpochHistory::from_starts(vec![(LeaderEpoch(2), Offset(0)), (EPOCH, Offset(100))]).unwrap()
    }

    /// Node 0 leads from offset 100 on, of which its predecessor had committed 80; replicas are 0, 1 and 2.
    fn leader<const N: usize>(isr: [u32; N]) -> Leader<&'static str> {
        let in_sync = InSync::new(PartitionEpoch(7), isr.map(StorageId));
        let settings = Settings { lag_max: Duration::from_secs(10), min_insync: MIN_INSYNC };
        let mut leader = Leader::new(ME, EPOCH, settings, in_sync, (Offset(80), Offset(100), Offset(100)));
        leader.replicas(at(0), [0, 1, 2].map(|node| (StorageId(node), NodeEpoch(10))));
        leader
    }

    fn fetch_as(
        leader: &mut Leader<&'static str>,
        ms: u64,
        node: u32,
        attempt: u32,
        (last_epoch, offset, flushed): (u32, i64, i64),
    ) -> Result<FetchOutcome, Refusal> {
        let last_epoch = Some(LeaderEpoch(last_epoch));
        let from = FetchFrom { leader_epoch: EPOCH, offset: Offset(offset), last_epoch, flushed: Offset(flushed) };
        leader.fetched(at(ms), StorageId(node), session(attempt), &from, Offset(0), &epochs())
    }

    fn fetch(leader: &mut Leader<&'static str>, ms: u64, node: u32, flushed: i64) -> Result<FetchOutcome, Refusal> {
        let epoch = if flushed > 100 { 5 } else { 2 };
        fetch_as(leader, ms, node, 0, (epoch, flushed, flushed))
    }

    fn wished(leader: &Leader<&'static str>, ms: u64) -> Option<Vec<u32>> {
        let wish = leader.wish(at(ms), false, |_, _| true)?;
        Some(wish.members.iter().map(|node| node.0).collect())
    }

    #[test]
    fn committed_is_what_every_member_has_on_its_disk() {
        let mut leader = leader([0, 1, 2]);
        leader.appended(at(0), Offset(130));
        fetch(&mut leader, 1, 1, 130).unwrap();
        assert_eq!(leader.high_watermark(), Offset(80), "nothing is known of 2");
        fetch_as(&mut leader, 2, 2, 0, (5, 120, 110)).unwrap();
        assert_eq!(leader.high_watermark(), Offset(100), "the leader's own disk counts too");
        leader.flushed(Offset(130));
        assert_eq!(leader.high_watermark(), Offset(110), "what 2 has not flushed does not count");
        fetch(&mut leader, 3, 2, 105).unwrap();
        assert_eq!(leader.high_watermark(), Offset(110), "a late fetch lowers nothing");
    }

    #[test]
    fn consumers_wait_until_the_epochs_start_is_committed() {
        let mut leader = leader([0, 1]);
        fetch(&mut leader, 1, 1, 99).unwrap();
        assert_eq!((leader.high_watermark(), leader.visible()), (Offset(99), None));
        fetch(&mut leader, 1, 1, 100).unwrap();
        assert_eq!(leader.visible(), Some(Offset(100)));
    }

    #[test]
    fn acknowledgements_come_in_order_and_only_with_enough_in_sync() {
        let mut leader = leader([0, 1]);
        leader.check_append().unwrap();
        leader.appended(at(0), Offset(120));
        leader.wait_for(Offset(110), "first");
        leader.wait_for(Offset(120), "second");
        leader.flushed(Offset(120));
        assert_eq!(leader.pop_acknowledged(), None);
        fetch(&mut leader, 1, 1, 110).unwrap();
        assert_eq!(leader.pop_acknowledged(), Some(("first", Ok(Offset(110)))));
        assert_eq!(leader.pop_acknowledged(), None);
        leader.commit_in_sync(PartitionEpoch(8), [ME]);
        let (in_sync, min) = (1, MIN_INSYNC);
        let after = AckError::NotEnoughReplicasAfterAppend { in_sync, min };
        assert_eq!(leader.pop_acknowledged(), Some(("second", Err(after))));
        assert_eq!(leader.check_append(), Err(AckError::NotEnoughReplicas { in_sync, min }));
        leader.wait_for(Offset(130), "third");
        assert_eq!(leader.into_waiting().collect::<Vec<_>>(), ["third"]);
    }

    #[test]
    fn who_was_asked_for_counts_at_once() {
        let mut leader = leader([0, 1]);
        fetch(&mut leader, 1, 1, 100).unwrap();
        fetch(&mut leader, 1, 2, 100).unwrap();
        let wish = leader.wish(at(1), false, |_, _| true).unwrap();
        leader.in_sync_mut().asking(&wish);
        leader.appended(at(1), Offset(120));
        leader.flushed(Offset(120));
        fetch(&mut leader, 2, 1, 120).unwrap();
        assert_eq!(leader.high_watermark(), Offset(100));
        fetch(&mut leader, 2, 2, 120).unwrap();
        assert_eq!(leader.high_watermark(), Offset(120));
    }

    #[test]
    fn a_follower_is_asked_for_at_the_high_watermark_and_the_epochs_start_if_it_is_fit() {
        let mut leader = leader([0, 1]);
        fetch(&mut leader, 1, 1, 90).unwrap();
        fetch(&mut leader, 1, 2, 95).unwrap();
        assert_eq!((leader.high_watermark(), wished(&leader, 1)), (Offset(90), None), "not at the epoch's start");
        fetch(&mut leader, 1, 2, 100).unwrap();
        assert_eq!(wished(&leader, 1), Some(vec![0, 1, 2]));
        assert_eq!(
            leader.wish(at(1), false, |node, _| node != StorageId(2)),
            None,
            "it is fenced, or of another incarnation"
        );
    }

    #[test]
    fn who_lags_for_too_long_is_to_leave_but_not_who_has_everything() {
        let mut leader = leader([0, 1, 2]);
        fetch(&mut leader, 0, 1, 100).unwrap();
        fetch(&mut leader, 0, 2, 100).unwrap();
        assert_eq!((wished(&leader, 60_000), leader.lag_deadline()), (None, None), "nothing is written");
        leader.appended(at(60_000), Offset(120));
        assert_eq!(leader.lag_deadline(), Some(at(70_000)), "they had everything until then");
        fetch(&mut leader, 69_000, 1, 120).unwrap();
        assert_eq!(wished(&leader, 70_000), None);
        assert_eq!(wished(&leader, 70_001), Some(vec![0, 1]));
    }

    #[test]
    fn a_follower_under_load_that_never_has_the_very_end_does_not_lag() {
        let mut leader = leader([0, 1]);
        let mut end = 100;
        for second in 1..100 {
            leader.appended(at(second * 1000), Offset(end + 10));
            // What it fetched a second ago is on its disk now.
            fetch(&mut leader, second * 1000 + 500, 1, end).unwrap();
            end += 10;
            assert_eq!(wished(&leader, second * 1000 + 501), None);
        }
        assert_eq!(wished(&leader, 99_000 + 10_501), Some(vec![0]));
    }

    #[test]
    fn histories_that_part_are_told_and_count_for_nothing() {
        let mut leader = leader([0, 1]);
        leader.flushed(Offset(100));
        let diverged = fetch_as(&mut leader, 1, 1, 0, (3, 120, 120)).unwrap();
        assert_eq!(diverged, FetchOutcome::OutOfRange { log_start: Offset(0), log_end: Offset(100) });
        let diverged = fetch_as(&mut leader, 1, 1, 0, (3, 95, 95)).unwrap();
        let ours = super::super::EpochEnd { epoch: LeaderEpoch(2), end: Offset(100) };
        assert_eq!(diverged, FetchOutcome::Diverged(ours));
        assert_eq!((leader.high_watermark(), leader.lag(StorageId(1))), (Offset(80), None));
    }

    #[test]
    fn other_epochs_strangers_and_older_incarnations_are_refused() {
        let mut leader = leader([0, 1]);
        let mut ask = |epoch, node, node_epoch| {
            let leader_epoch = LeaderEpoch(epoch);
            let from = FetchFrom { leader_epoch, offset: Offset(100), last_epoch: None, flushed: Offset(100) };
            let session = ReplicaSession { node_epoch: NodeEpoch(node_epoch), attempt: 0 };
            leader.fetched(at(1), StorageId(node), session, &from, Offset(0), &epochs()).unwrap_err()
        };
        let (present, older, newer) = (EPOCH, LeaderEpoch(4), LeaderEpoch(6));
        assert_eq!(ask(4, 1, 10), Refusal::FencedLeaderEpoch { present, got: older });
        assert_eq!(ask(6, 1, 10), Refusal::UnknownLeaderEpoch { present, got: newer });
        assert_eq!(ask(5, 9, 10), Refusal::NotAReplica(StorageId(9)));
        assert_eq!(ask(5, 1, 9), Refusal::StaleReplica(StorageId(1)));
    }

    #[test]
    fn a_member_that_made_its_log_anew_is_to_leave_at_once() {
        let mut leader = leader([0, 1, 2]);
        fetch(&mut leader, 1, 1, 100).unwrap();
        fetch(&mut leader, 1, 2, 100).unwrap();
        assert_eq!(leader.high_watermark(), Offset(100));
        fetch_as(&mut leader, 2, 1, 1, (2, 40, 40)).unwrap();
        assert_eq!(wished(&leader, 2), Some(vec![0, 2]));
        assert_eq!(fetch(&mut leader, 2, 1, 100), Err(Refusal::StaleReplica(StorageId(1))), "its log before that");
    }
}
