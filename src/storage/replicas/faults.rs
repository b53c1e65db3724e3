//! Replicas whose logs failed: which are given up, and when they are opened again.
//!
//! - Where the disk does not take what it is given, the replica is given up, and opened anew once the disk takes something: with
//!   nothing to append, one on a full disk would be in sync, and fail as soon as it leads.
//! - Where the disk has lost what it was given, the range is never served. A leader gives the leadership up first. Whoever follows
//!   closes its log until its leader says that it is out of sync, then cuts it before the range and copies it anew: a member
//!   without records that were acknowledged could be elected.
//! - The last in-sync replica goes on leading: it is all there is.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::storage::core::{Assignment, InSyncWish, Peer, Place};
use crate::types::{LeaderEpoch, Monotonic, Offset, StorageId};

const RETRY_MIN: Duration = Duration::from_secs(1);
/// Who has made room is not to wait long. A try costs a megabyte that is written, and one look at each replica.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What is known of the replicas that failed.
#[derive(Default)]
pub struct Faults {
    of: BTreeMap<Place, Fault>,
}

struct Fault {
    words: String,
    damage: Option<Offset>,
    /// In which epoch its leader said that it is out of sync, since it was closed.
    left: Option<LeaderEpoch>,
    retry_at: Monotonic,
    pause: Duration,
}

/// How a replica stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    leads: bool,
    is_alone: bool,
    /// The engine does not have it.
    is_closed: bool,
}

impl Standing {
    /// By the newest metadata that is known. `is_closed`: the engine does not have it.
    pub fn new(assignment: &Assignment, me: StorageId, is_closed: bool) -> Self {
        let leads = assignment.leader == Some(me);
        Self { leads, is_alone: leads && assignment.isr.iter().all(|node| *node == me), is_closed }
    }

    /// It leads, and no other replica is in sync.
    pub fn is_alone(self) -> bool {
        self.is_alone
    }
}

/// What becomes of a replica's log, be it open or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TakeUp {
    /// It takes part.
    Open,
    /// Its leader has to say first that nobody counts on it.
    Close,
    /// It is closed, if it is open, and opened anew and cut before what is damaged.
    Cut,
}

/// What is to be done with a replica that is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// Nothing: it has worked since it was opened again, or what is damaged was deleted.
    Over,
    /// Others are to lead, if it leads.
    Resign,
    /// The same, and it is opened.
    Open,
}

impl Faults {
    /// A log failed. Whether the replica is to be given up. `damage`: the first record that cannot be read; `is_full`: the disk takes
    /// nothing, and what it has can still be read.
    pub fn failed(
        &mut self,
        now: Monotonic,
        place: Place,
        words: String,
        damage: Option<Offset>,
        standing: Option<Standing>,
        is_full: bool,
    ) -> bool {
        self.note(now, place, words, damage);
        !(is_full && standing.is_some_and(|standing| standing.is_alone))
    }

    /// Notes what failed though the replica is kept.
    pub fn note(&mut self, now: Monotonic, place: Place, words: String, damage: Option<Offset>) {
        let pause = self.of.get(&place).map_or(RETRY_MIN, |known| (known.pause * 2).min(RETRY_MAX));
        let damage = [damage, self.damage(place)].into_iter().flatten().min();
        let left = self.of.get(&place).and_then(|known| known.left);
        self.of.insert(place, Fault { words, damage, left, retry_at: now + pause, pause });
    }

    /// The leader said in this epoch that the closed replica is out of sync. Whether that was waited for.
    pub fn left(&mut self, place: Place, leader_epoch: LeaderEpoch) -> bool {
        let damaged = self.of.get_mut(&place).filter(|fault| fault.damage.is_some());
        damaged.map(|fault| fault.left = Some(leader_epoch)).is_some()
    }

    /// It takes part again, and may come to be in sync.
    pub fn taken_up(&mut self, place: Place) {
        if let Some(fault) = self.of.get_mut(&place) {
            fault.left = None;
        }
    }

    /// What becomes of the log of a replica of `me`.
    pub fn take_up(&self, place: Place, assignment: &Assignment, me: Option<StorageId>) -> TakeUp {
        let follows = me.is_some_and(|me| declines_to(assignment, me).is_some());
        let Some(fault) = self.of.get(&place).filter(|fault| follows && fault.damage.is_some()) else {
            return TakeUp::Open;
        };
        let may_cut = fault.left == Some(assignment.leader_epoch);
        #[cfg(test)]
        let may_cut = may_cut || crate::simulator::planted(crate::simulator::Bug::CutsBeforeItLeft);
        if may_cut { TakeUp::Cut } else { TakeUp::Close }
    }

    /// Where the first record is that cannot be read.
    pub fn damage(&self, place: Place) -> Option<Offset> {
        self.of.get(&place)?.damage
    }

    /// The replica works again, or is gone. Whether anything was known of it.
    pub fn forget(&mut self, place: Place) -> bool {
        self.of.remove(&place).is_some()
    }

    pub fn deadline(&self) -> Option<Monotonic> {
        self.of.values().map(|fault| fault.retry_at).min()
    }

    /// What failed, in words.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.of.values().map(|fault| fault.words.as_str())
    }

    /// Whether a log is not to be tried yet. Damage does not wait: who follows has it copied anew.
    pub fn waits(&self, now: Monotonic, place: Place) -> bool {
        self.of.get(&place).is_some_and(|fault| fault.damage.is_none() && now < fault.retry_at)
    }

    /// Whether a log stays closed for now, whatever the metadata makes of its replica.
    pub fn stays_closed(&self, now: Monotonic, place: Place, standing: Standing) -> bool {
        self.waits(now, place) && standing.is_closed && !standing.is_alone
    }

    /// What is to be tried now.
    pub fn due(&self, now: Monotonic) -> Vec<Place> {
        self.of.iter().filter(|(_, fault)| fault.retry_at <= now).map(|(place, _)| *place).collect()
    }

    /// What is to be done with one that is due; it is due again after a while. `standing`: none where this node holds it no longer;
    /// `start`: of its log, where that is open; `disk_works`: whether the disk takes something, asked only where it matters.
    pub fn retry(
        &mut self,
        now: Monotonic,
        place: Place,
        standing: Option<Standing>,
        start: Option<Offset>,
        disk_works: impl FnOnce() -> bool,
    ) -> Retry {
        let (Some(fault), Some(standing)) = (self.of.get_mut(&place), standing) else { return Retry::Over };
        let is_deleted = fault.damage.zip(start).is_some_and(|(damage, start)| damage < start);
        if !standing.is_closed && (fault.damage.is_none() || is_deleted) {
            return Retry::Over;
        }
        // As a leader it would only fail again, unless it is alone.
        let opens = standing.is_closed && (standing.is_alone || !standing.leads && disk_works());
        if standing.is_closed && !opens {
            fault.pause = (fault.pause * 2).min(RETRY_MAX);
        }
        fault.retry_at = now + fault.pause;
        if opens { Retry::Open } else { Retry::Resign }
    }
}

/// The leader that is not to wait for a closed replica of `me`: none where that leads, or nobody.
pub fn declines_to(assignment: &Assignment, me: StorageId) -> Option<StorageId> {
    assignment.leader.filter(|leader| *leader != me)
}

/// The wish that another in-sync replica leads, if `me` does and there is one that is active.
pub fn resignation(
    place: Place,
    assignment: &Assignment,
    me: StorageId,
    peers: &BTreeMap<StorageId, Peer>,
) -> Option<InSyncWish> {
    if assignment.leader != Some(me) {
        return None;
    }
    let others = assignment.isr.iter().filter(|node| **node != me);
    let others = others.filter_map(|node| {
        let peer = peers.get(node).filter(|peer| peer.active)?;
        Some((*node, peer.node_epoch))
    });
    let members: Vec<_> = others.collect();
    let (leader_epoch, partition_epoch) = (assignment.leader_epoch, assignment.partition_epoch);
    let wish = InSyncWish { place, leader_epoch, partition_epoch, members, settles: false, recovered: false };
    (!wish.members.is_empty()).then_some(wish)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LeaderEpoch, NodeEpoch, PartitionEpoch, TopicId};
    use uuid::Uuid;

    const ME: StorageId = StorageId(1);
    const PLACE: Place = (TopicId(Uuid::from_u128(7)), 0);
    const NO_DISK: fn() -> bool = || panic!("nobody needs to know");

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000)
    }

    fn assignment(leader: u32, isr: &[u32]) -> Assignment {
        Assignment {
            leader: Some(StorageId(leader)),
            leader_epoch: LeaderEpoch(3),
            partition_epoch: PartitionEpoch(4),
            isr: isr.iter().map(|node| StorageId(*node)).collect(),
            replicas: [0, 1, 2].map(StorageId).to_vec(),
            min_insync: 1,
            recovering: false,
        }
    }

    fn standing(leader: u32, isr: &[u32], is_closed: bool) -> Option<Standing> {
        Some(Standing::new(&assignment(leader, isr), ME, is_closed))
    }

    #[test]
    fn only_the_last_in_sync_replica_is_kept_on_a_full_disk() {
        let mut faults = Faults::default();
        let mut given_up = |standing, is_full| faults.failed(at(0), PLACE, "full".into(), None, standing, is_full);
        assert!(given_up(standing(1, &[0, 1], false), true));
        assert!(given_up(standing(0, &[0], false), true));
        assert!(given_up(standing(1, &[1], false), false), "it may not even be read");
        assert!(!given_up(standing(1, &[1], false), true));
    }

    #[test]
    fn a_replica_is_opened_once_the_disk_works_and_tried_ever_more_rarely_until_then() {
        let mut faults = Faults::default();
        faults.failed(at(0), PLACE, "full".into(), None, standing(0, &[0, 1], false), true);
        let (closed, open) = (standing(0, &[0], true), standing(0, &[0], false));
        assert!(faults.stays_closed(at(999), PLACE, closed.unwrap()));
        assert!(!faults.stays_closed(at(999), PLACE, standing(1, &[1], true).unwrap()), "nobody else can lead");
        assert_eq!((faults.due(at(999)), faults.due(at(1_000))), (vec![], vec![PLACE]));
        let mut tries = Vec::new();
        while tries.len() < 6 {
            let now = faults.deadline().unwrap();
            tries.push(now.0 / 1_000_000);
            assert_eq!(faults.retry(now, PLACE, closed, None, || false), Retry::Resign);
        }
        assert_eq!(tries, [1, 3, 7, 15, 25, 35]);
        let now = faults.deadline().unwrap();
        assert_eq!(
            faults.retry(now, PLACE, standing(1, &[0, 1], true), None, NO_DISK),
            Retry::Resign,
            "it would fail again"
        );
        let now = faults.deadline().unwrap();
        assert_eq!(faults.retry(now, PLACE, standing(1, &[1], true), None, NO_DISK), Retry::Open);
        let now = faults.deadline().unwrap();
        assert_eq!(faults.retry(now, PLACE, closed, None, || true), Retry::Open);
        // A change of the metadata opens it as well, and it may lead by now.
        let now = faults.deadline().unwrap();
        assert_eq!(faults.retry(now, PLACE, open, None, NO_DISK), Retry::Over);
        assert_eq!(faults.retry(now, PLACE, standing(1, &[0, 1], false), None, NO_DISK), Retry::Over);
        assert_eq!(faults.retry(now, PLACE, None, None, NO_DISK), Retry::Over);
    }

    #[test]
    fn damage_stays_until_it_is_copied_anew_and_does_not_wait() {
        let mut faults = Faults::default();
        faults.note(at(0), PLACE, "damaged".into(), Some(Offset(9)));
        faults.note(at(0), PLACE, "damaged".into(), Some(Offset(12)));
        assert_eq!(faults.damage(PLACE), Some(Offset(9)));
        assert!(!faults.stays_closed(at(1), PLACE, standing(0, &[0], true).unwrap()));
        let leads = standing(1, &[0, 1], false);
        assert_eq!(faults.retry(at(2_000), PLACE, leads, Some(Offset(9)), NO_DISK), Retry::Resign);
        assert_eq!(faults.retry(at(4_000), PLACE, leads, Some(Offset(10)), NO_DISK), Retry::Over, "it was deleted");
        assert!(faults.forget(PLACE) && !faults.forget(PLACE));
    }

    #[test]
    fn damage_is_cut_once_the_leader_of_that_epoch_says_that_nobody_counts_on_it() {
        let mut faults = Faults::default();
        let follows = assignment(0, &[0, 1]);
        let next = Assignment { leader_epoch: LeaderEpoch(4), ..assignment(0, &[0]) };
        assert!(!faults.left(PLACE, LeaderEpoch(3)), "nothing was closed");
        faults.failed(at(0), PLACE, "full".into(), None, None, true);
        assert_eq!(faults.take_up(PLACE, &follows, Some(ME)), TakeUp::Open);
        faults.note(at(0), PLACE, "damaged".into(), Some(Offset(9)));
        assert_eq!(faults.take_up(PLACE, &follows, Some(ME)), TakeUp::Close);
        assert_eq!(faults.take_up(PLACE, &assignment(1, &[1]), Some(ME)), TakeUp::Open, "it is all there is");
        assert!(faults.left(PLACE, LeaderEpoch(3)));
        assert_eq!(faults.take_up(PLACE, &follows, Some(ME)), TakeUp::Cut);
        assert_eq!(faults.take_up(PLACE, &next, Some(ME)), TakeUp::Close, "another leader may count on it");
        faults.note(at(0), PLACE, "damaged".into(), Some(Offset(7)));
        assert_eq!(faults.take_up(PLACE, &follows, Some(ME)), TakeUp::Cut);
        faults.taken_up(PLACE);
        assert_eq!(faults.take_up(PLACE, &follows, Some(ME)), TakeUp::Close);
    }

    #[test]
    fn who_resigns_names_those_in_sync_who_are_active() {
        let peer = |active| Peer { node_epoch: NodeEpoch(5), active };
        let peers = BTreeMap::from([(StorageId(0), peer(true)), (ME, peer(true)), (StorageId(2), peer(false))]);
        let wish = |leader, isr: &[u32]| resignation(PLACE, &assignment(leader, isr), ME, &peers);
        assert_eq!(wish(1, &[0, 1, 2]).unwrap().members, [(StorageId(0), NodeEpoch(5))]);
        assert_eq!((wish(1, &[1, 2]), wish(0, &[0, 1])), (None, None));
    }
}
