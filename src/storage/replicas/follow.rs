//! The follower's side: one session per leader's node, whose polls name what changed since the poll before.
//!
//! A poll may be under way while another one overtakes it: a partition that begins to be followed does not wait for the end
//! of a long poll. After records came, the next poll waits for their flush, and says what is on the disk. Where there were many, and
//! the disk takes its time, the next ones are asked for meanwhile, and another poll says what is on the disk as soon as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

use bytes::Bytes;

use super::{Effect, Log, Replicas, Role, Settings};
use crate::replication::{EpochEnd, FetchFrom, FetchOutcome, Step};
use crate::storage::core::{Call, CallError, Place};
use crate::types::{Monotonic, StorageId};
use crate::wire::replica::{
    DROPPED_BYTES, POSITION_BYTES, PartitionAnswer, PartitionOutcome, ReplicaAnswer, ReplicaFetch, ReplicaPosition,
    SessionOutcome,
};

/// What a poll has beside positions, at most.
const POLL_BYTES: usize = 128;
/// The most polls of one session that may be under way: the newest, and those that it overtakes.
const POLLS: usize = 4;

#[derive(Debug)]
pub(super) struct Link {
    followed: BTreeSet<Place>,
    session: u64,
    /// Of the next poll; 0 begins a session.
    sequence: u32,
    /// The newest poll whose answer was taken.
    taken: Option<u32>,
    /// To be named in the next poll, beginning behind the last one that was.
    changed: BTreeSet<Place>,
    named: Option<Place>,
    dropped: BTreeSet<Place>,
    /// Not followed, and the leader has not said yet that it does not wait for them.
    declined: BTreeSet<Place>,
    /// When it is told so, or again.
    decline_at: Monotonic,
    /// What the leader was told of.
    told: BTreeSet<Place>,
    /// Written, and not on the disk yet.
    unflushed: BTreeSet<Place>,
    /// From when on the next poll does not wait for `unflushed`.
    ahead_at: Option<Monotonic>,
    /// How many answers were taken, and the next records asked for, since something was flushed.
    ahead: u32,
    /// Refused, to be named again after a while.
    later: BTreeSet<Place>,
    polls: BTreeMap<Call, (u32, Monotonic)>,
    retry_at: Monotonic,
}

impl Link {
    pub(super) fn new(now: Monotonic) -> Self {
        Self {
            followed: BTreeSet::new(),
            session: 0,
            sequence: 0,
            taken: None,
            changed: BTreeSet::new(),
            named: None,
            dropped: BTreeSet::new(),
            declined: BTreeSet::new(),
            decline_at: now,
            told: BTreeSet::new(),
            unflushed: BTreeSet::new(),
            ahead_at: None,
            ahead: 0,
            later: BTreeSet::new(),
            polls: BTreeMap::new(),
            retry_at: now,
        }
    }

    #[cfg(test)]
    pub(super) fn concerns(&self, place: Place) -> bool {
        self.followed.contains(&place)
    }

    pub(super) fn add_place(&mut self, place: Place, flushed: bool) {
        self.followed.insert(place);
        self.changed.insert(place);
        self.dropped.remove(&place);
        self.declined.remove(&place);
        if !flushed {
            self.unflushed.insert(place);
        }
    }

    pub(super) fn drop_place(&mut self, place: Place) {
        self.followed.remove(&place);
        self.changed.remove(&place);
        self.later.remove(&place);
        self.unflushed.remove(&place);
        if self.told.remove(&place) {
            self.dropped.insert(place);
        }
    }

    /// The leader may never have been told of it, and counts on it all the same: it was led by another before.
    pub(super) fn decline(&mut self, now: Monotonic, place: Place) {
        self.declined.insert(place);
        self.decline_at = now;
    }

    pub(super) fn declines_no_more(&mut self, place: Place) -> bool {
        self.declined.remove(&place)
    }

    fn is_idle(&self) -> bool {
        self.followed.is_empty() && self.dropped.is_empty() && self.declined.is_empty()
    }

    pub(super) fn flushed(&mut self, now: Monotonic, place: Place, all: bool) {
        if !self.unflushed.contains(&place) {
            return;
        }
        self.changed.insert(place);
        self.ahead = 0;
        if all {
            self.unflushed.remove(&place);
        } else {
            // More came while this was brought to the disk.
            self.ahead_at = Some(now);
        }
    }

    /// So many bytes of records came, and are not on the disk yet.
    fn came(&mut self, now: Monotonic, place: Place, bytes: usize, settings: &Settings) {
        self.unflushed.insert(place);
        if bytes >= settings.ahead_min_bytes && self.ahead < settings.ahead_max {
            self.changed.insert(place);
            self.ahead += 1;
            self.ahead_at.get_or_insert(now + settings.ahead_after);
        }
    }

    /// From when on it may be asked for more. None: what is not on the disk yet has to be there first.
    fn asks_at(&self) -> Option<Monotonic> {
        if self.unflushed.is_empty() { Some(self.retry_at) } else { self.ahead_at.map(|at| at.max(self.retry_at)) }
    }

    /// The next to be named, in turn, as many as there is room for.
    fn take_changed(&mut self, room: usize) -> Vec<Place> {
        if self.changed.len() <= room {
            return std::mem::take(&mut self.changed).into_iter().collect();
        }
        let behind = self.named.map_or(Unbounded, Excluded);
        let in_turn = self.changed.range((behind, Unbounded)).chain(&self.changed);
        let taken: Vec<_> = in_turn.take(room).copied().collect();
        taken.iter().for_each(|place| _ = self.changed.remove(place));
        self.named = taken.last().copied();
        taken
    }

    /// The session is over: the next polls name everything.
    pub(super) fn reset(&mut self, retry_at: Monotonic) {
        (self.sequence, self.taken) = (0, None);
        (self.ahead_at, self.ahead) = (None, 0);
        self.polls.clear();
        self.told.clear();
        self.dropped.clear();
        self.later.clear();
        self.changed = self.followed.clone();
        (self.retry_at, self.decline_at) = (retry_at, retry_at);
    }

    pub(super) fn deadline(&self) -> Option<Monotonic> {
        let waits = !self.changed.is_empty() || !self.later.is_empty() || self.polls.is_empty();
        let may = waits && !self.followed.is_empty() && self.polls.len() < POLLS;
        let asks = self.asks_at().filter(|_| may);
        let declines = self.asks_at().filter(|_| !self.declined.is_empty() && self.polls.len() < POLLS);
        let declines = declines.map(|at| at.max(self.decline_at));
        self.polls.values().map(|(_, until)| *until).chain(asks).chain(declines).min()
    }

    fn wants_poll(&self, now: Monotonic) -> bool {
        let declines = !self.declined.is_empty() && now >= self.decline_at;
        let follows = !self.followed.is_empty() && self.polls.is_empty();
        let something = !self.changed.is_empty() || !self.dropped.is_empty() || declines || follows;
        something && self.polls.len() < POLLS && self.asks_at().is_some_and(|at| now >= at)
    }
}

impl<L: Log> Replicas<L> {
    pub(super) fn step_links(&mut self, now: Monotonic, out: &mut Vec<Effect<L::Error>>) {
        self.links.retain(|_, link| !link.is_idle());
        let leaders: Vec<_> = self.links.keys().copied().collect();
        for leader in leaders {
            self.step_link(now, leader, out);
        }
    }

    fn step_link(&mut self, now: Monotonic, leader: StorageId, out: &mut Vec<Effect<L::Error>>) {
        let retry = now + self.settings.retry;
        let Some(link) = self.links.get_mut(&leader) else { return };
        if link.polls.values().any(|(_, until)| now >= *until) {
            link.reset(retry);
        }
        if now >= link.retry_at {
            let later = std::mem::take(&mut link.later);
            link.changed.extend(later);
        }
        if !link.wants_poll(now) {
            return;
        }
        let call = self.call();
        let (Some(member), Some(link)) = (self.member, self.links.get_mut(&leader)) else { return };
        if link.sequence == 0 {
            // Also of a link that is begun anew: the leader knows the numbers of those that are over.
            self.sessions_begun += 1;
            link.session = self.sessions_begun;
        }
        // What finds no place in this poll is named in the next one, which does not wait for its answer.
        let room = self.settings.message_max_bytes.saturating_sub(POLL_BYTES);
        let mut gone: Vec<_> = (0..room / DROPPED_BYTES).map_while(|_| link.dropped.pop_first()).collect();
        if now >= link.decline_at {
            link.decline_at = retry;
            gone.extend(link.declined.iter().take(room / DROPPED_BYTES - gone.len()));
        }
        let room = (room - gone.len() * DROPPED_BYTES) / POSITION_BYTES;
        let mut positions = Vec::with_capacity(link.changed.len().min(room));
        for place in link.take_changed(room.max(1)) {
            let Some(replica) = self.held.get(&place) else { continue };
            let Role::Follows(follower) = &replica.role else { continue };
            let from = follower.fetch_from(replica.log.epochs(), replica.log.end(), replica.flushed);
            link.told.insert(place);
            positions.push(ReplicaPosition {
                topic: place.0,
                partition: place.1,
                leader_epoch: from.leader_epoch,
                attempt: self.attempts.get(&place).copied().unwrap_or(0),
                offset: from.offset,
                last_epoch: from.last_epoch,
                flushed: from.flushed,
            });
        }
        let message = ReplicaFetch {
            cluster: member.cluster,
            storage: member.storage,
            node_epoch: member.node_epoch,
            session: link.session,
            sequence: link.sequence,
            taken: link.taken,
            max_bytes: self.settings.answer_max_bytes as u32,
            max_wait_ms: self.settings.poll_wait.as_millis() as u32,
            positions,
            dropped: gone,
        };
        let timeout = self.settings.poll_wait + self.settings.poll_timeout;
        link.polls.insert(call, (link.sequence, now + timeout));
        link.sequence += 1;
        link.ahead_at = None;
        out.push(Effect::Poll { call, to: leader, message: message.encode(), timeout });
    }

    pub(super) fn poll_answer(
        &mut self,
        now: Monotonic,
        call: Call,
        result: Result<Bytes, CallError>,
        out: &mut Vec<Effect<L::Error>>,
    ) {
        let retry = now + self.settings.retry;
        let Some((leader, link)) = self.links.iter_mut().find(|(_, link)| link.polls.contains_key(&call)) else {
            return;
        };
        let (leader, (sequence, _)) = (*leader, link.polls.remove(&call).expect("it was just found"));
        let answer = result.ok().and_then(|payload| ReplicaAnswer::decode(&payload).ok());
        let me = self.member.map(|member| (member.cluster, member.node_epoch));
        let ours = answer.filter(|(answer, _)| {
            answer.storage == leader
                && answer.session == link.session
                && answer.sequence == sequence
                && Some((answer.cluster, answer.node_epoch)) == me
        });
        match ours {
            Some((ReplicaAnswer { outcome: SessionOutcome::Partitions(partitions), .. }, records)) => {
                link.taken = link.taken.max(Some(sequence));
                for (partition, records) in partitions.iter().zip(records) {
                    self.answered(now, leader, partition, records, out);
                }
            }
            Some((ReplicaAnswer { outcome: SessionOutcome::UnknownSession, .. }, _)) => link.reset(now),
            Some((ReplicaAnswer { outcome: SessionOutcome::NotServing | SessionOutcome::Refused, .. }, _)) | None => {
                link.reset(retry)
            }
        }
    }

    fn answered(
        &mut self,
        now: Monotonic,
        leader: StorageId,
        answer: &PartitionAnswer,
        records: Bytes,
        out: &mut Vec<Effect<L::Error>>,
    ) {
        let place = (answer.topic, answer.partition);
        let Some(link) = self.links.get_mut(&leader) else { return };
        if answer.outcome == PartitionOutcome::Left {
            if link.declines_no_more(place) {
                out.push(Effect::Left { place, leader_epoch: answer.leader_epoch });
            }
            return;
        }
        let Some(replica) = self.held.get_mut(&place) else { return };
        let Role::Follows(follower) = &mut replica.role else { return };
        let outcome = match answer.outcome {
            PartitionOutcome::Agrees { high_watermark, log_start, .. } => {
                FetchOutcome::Agrees { high_watermark, log_start }
            }
            PartitionOutcome::Diverged { epoch, end } => FetchOutcome::Diverged(EpochEnd { epoch, end }),
            PartitionOutcome::OutOfRange { log_start, log_end } => FetchOutcome::OutOfRange { log_start, log_end },
            // Either node may be behind: the metadata will tell, or asking again will do.
            PartitionOutcome::FencedLeaderEpoch
            | PartitionOutcome::NotLeader
            | PartitionOutcome::NotAReplica
            | PartitionOutcome::StorageError
            | PartitionOutcome::Left => {
                link.later.insert(place);
                link.retry_at = link.retry_at.max(now + self.settings.retry);
                return;
            }
        };
        let (leader_epoch, offset) = (answer.leader_epoch, answer.offset);
        let asked = FetchFrom { leader_epoch, offset, last_epoch: answer.last_epoch, flushed: offset };
        let (end, bytes) = (replica.log.end(), records.len());
        let step = follower.answer(&asked, outcome, replica.log.epochs(), end);
        let done = match step {
            Step::Ignore => Ok(()),
            Step::Append { log_start } => {
                let copied = if records.is_empty() { Ok(()) } else { replica.log.copy(records) };
                copied.and_then(|()| {
                    let end = replica.log.end();
                    // What was just copied may be committed already.
                    follower.learned(outcome, end);
                    if log_start > replica.log.start() { replica.log.delete_before(log_start.min(end)) } else { Ok(()) }
                })
            }
            Step::TruncateTo(to) => replica.log.truncate_to(to),
            Step::RestartAt(start) => replica.log.restart_at(start),
        };
        replica.high_watermark = follower.high_watermark();
        replica.flushed = replica.flushed.min(replica.log.end()).max(replica.log.start());
        if let Err(error) = done {
            self.fail(place, error, out);
            return;
        }
        match step {
            Step::Append { .. } if replica.log.end() == end => {}
            Step::Append { .. } | Step::TruncateTo(_) | Step::RestartAt(_) => {
                #[cfg(test)]
                if crate::simulator::planted(crate::simulator::Bug::UnflushedCounts) {
                    replica.flushed = replica.log.end();
                    link.changed.insert(place);
                    return;
                }
                replica.generation += u64::from(!matches!(step, Step::Append { .. }));
                link.came(now, place, bytes, &self.settings);
                self.unflushed.insert(place);
            }
            // The leader counts on it that they were taken, unless it is told where this log ends.
            Step::Ignore if bytes > 0 => {
                link.changed.insert(place);
            }
            Step::Ignore => {}
        }
    }
}
