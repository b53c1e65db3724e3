//! The leader's side: followers' sessions, and what they are answered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use super::{Effect, Log, Read, Replica, Replicas, Role};
use crate::replication::{FetchFrom, FetchOutcome, Refusal, ReplicaSession};
use crate::storage::core::{Member, Place, Token};
use crate::types::{LeaderEpoch, Monotonic, NodeEpoch, Offset, StorageId};
use crate::wire::replica::{
    ANSWER_BYTES, PartitionAnswer, PartitionOutcome, ReplicaAnswer, ReplicaFetch, ReplicaPosition, SessionOutcome,
};

/// What an answer has beside its partitions, at most.
const HEAD_BYTES: usize = 128;
/// The longest that a poll is kept, whatever it asks for.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// How many sessions of a follower that are over are kept in mind. A poll of one that comes late must not begin it again.
const OVER: usize = 8;
/// How many more partitions than there are here a follower may name: it may know of new ones earlier.
const STRANGE_POSITIONS: usize = 1 << 17;

#[derive(Debug)]
pub(super) struct Session {
    node_epoch: NodeEpoch,
    session: u64,
    /// Those of this incarnation before, the newest last.
    over: VecDeque<u64>,
    /// Of the last poll.
    sequence: u32,
    pub(super) positions: BTreeMap<Place, ReplicaPosition>,
    /// What was sent behind the positions, and not said to be taken yet.
    sent: BTreeMap<Place, Sent>,
    /// Something is to be said of these.
    pub(super) ready: BTreeSet<Place>,
    /// The position has changed and was not looked at.
    fresh: BTreeSet<Place>,
    /// Dropped, and their follower is not in sync in these epochs: it is told so.
    left: BTreeMap<Place, LeaderEpoch>,
    /// Where the last answer ended, so that no partition starves behind busier ones.
    cursor: Option<Place>,
    waiting: Option<Waiting>,
}

/// Records that are on their way to a follower.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// Of the poll that was answered with the last of them.
    sequence: u32,
    end: Offset,
}

/// Whom an answer is for.
#[derive(Clone, Copy, Debug)]
struct Asker {
    node_epoch: NodeEpoch,
    session: u64,
    sequence: u32,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    token: Token,
    sequence: u32,
    until: Monotonic,
    max_bytes: usize,
}

impl Session {
    pub(super) fn deadline(&self) -> Option<Monotonic> {
        Some(self.waiting?.until)
    }

    fn may_be_followed_by(&self, node_epoch: NodeEpoch, session: u64) -> bool {
        let is_known = self.session == session || self.over.contains(&session);
        self.node_epoch < node_epoch || self.node_epoch == node_epoch && !is_known
    }

    /// The sessions that are over once another one of this incarnation begins.
    fn over_with_it(&self, node_epoch: NodeEpoch) -> VecDeque<u64> {
        if self.node_epoch != node_epoch {
            return VecDeque::new();
        }
        let skipped = (self.over.len() + 1).saturating_sub(OVER);
        self.over.iter().copied().skip(skipped).chain([self.session]).collect()
    }

    #[cfg(test)]
    pub(super) fn concerns(&self, place: Place) -> bool {
        self.positions.contains_key(&place)
    }

    /// What the poll says of the answers that were taken: what was sent with them and not taken is sent again.
    fn take_word(&mut self, taken: Option<u32>) {
        let Some(taken) = taken else { return };
        let is_over = |_: &Place, sent: &mut Sent| sent.sequence <= taken;
        self.fresh.extend(self.sent.extract_if(.., is_over).map(|(place, _)| place));
    }

    /// From where on the follower was sent nothing yet.
    fn next(&self, position: &ReplicaPosition) -> Offset {
        let sent = self.sent.get(&(position.topic, position.partition));
        sent.map_or(position.offset, |sent| sent.end.max(position.offset))
    }

    /// The leadership of a partition began or ended: what was said of it no longer holds.
    pub(super) fn role_changed(&mut self, place: Place) {
        self.sent.remove(&place);
        if self.positions.contains_key(&place) {
            self.fresh.insert(place);
        }
    }

    /// As many as fit.
    fn take_left(&mut self, room: usize) -> Vec<PartitionAnswer> {
        let left = |((topic, partition), leader_epoch)| PartitionAnswer {
            topic,
            partition,
            leader_epoch,
            offset: Offset::ZERO,
            last_epoch: None,
            outcome: PartitionOutcome::Left,
        };
        (0..room / ANSWER_BYTES).map_while(|_| self.left.pop_first()).map(left).collect()
    }

    /// The places to speak of, beginning behind the last answer's end.
    fn in_turn(&self) -> Vec<Place> {
        let Some(cursor) = self.cursor else { return self.ready.iter().copied().collect() };
        let behind = self.ready.iter().filter(|place| **place > cursor);
        behind.chain(self.ready.iter().filter(|place| **place <= cursor)).copied().collect()
    }
}

impl<L: Log> Replicas<L> {
    pub(super) fn poll(&mut self, now: Monotonic, payload: &[u8], token: Token, out: &mut Vec<Effect<L::Error>>) {
        // Who sends what cannot be read is not this protocol's follower, and has nothing to wait for.
        let Ok(poll) = ReplicaFetch::decode(payload) else { return };
        let Some(member) = self.member else { return };
        let known = self.peers.get(&poll.storage).map(|peer| peer.node_epoch);
        if poll.cluster != member.cluster || known.is_none_or(|known| poll.node_epoch < known) {
            self.refused += 1;
            self.say(&poll, token, SessionOutcome::Refused, out);
            return;
        }
        // An incarnation that this node does not know of yet begins no session: a made-up one would keep the real one out.
        let is_ahead = known.is_some_and(|known| poll.node_epoch > known);
        if is_ahead || !self.may_lead {
            self.say(&poll, token, SessionOutcome::NotServing, out);
            return;
        }
        let held = self.sessions.get(&poll.storage);
        let next = held.is_some_and(|held| {
            (held.node_epoch, held.session) == (poll.node_epoch, poll.session)
                && held.sequence.checked_add(1) == Some(poll.sequence)
        });
        // Any other number will do: were it to rise, one poll with the highest would keep the follower out for good.
        let begins =
            poll.sequence == 0 && held.is_none_or(|held| held.may_be_followed_by(poll.node_epoch, poll.session));
        let over = held.filter(|_| begins).map(|held| held.over_with_it(poll.node_epoch)).unwrap_or_default();
        if !next && !begins {
            self.say(&poll, token, SessionOutcome::UnknownSession, out);
            return;
        }
        if let Some(overtaken) = self.sessions.get_mut(&poll.storage).and_then(|held| held.waiting.take()) {
            self.answer_poll(poll.storage, overtaken, Vec::new(), &[], out);
        }
        let new = || Session {
            node_epoch: poll.node_epoch,
            session: poll.session,
            over: over.clone(),
            sequence: 0,
            positions: BTreeMap::new(),
            sent: BTreeMap::new(),
            ready: BTreeSet::new(),
            fresh: BTreeSet::new(),
            left: BTreeMap::new(),
            cursor: None,
            waiting: None,
        };
        if begins {
            self.sessions.insert(poll.storage, new());
        }
        let session = self.sessions.entry(poll.storage).or_insert_with(new);
        session.sequence = poll.sequence;
        session.take_word(poll.taken);
        for place in &poll.dropped {
            session.positions.remove(place);
            session.sent.remove(place);
            session.ready.remove(place);
            session.fresh.remove(place);
            if let Some(Replica { role: Role::Leads(leader), .. }) = self.held.get_mut(place) {
                leader.left(poll.storage, poll.node_epoch);
                self.asks.insert(*place);
                if !leader.in_sync().maximal().any(|node| node == poll.storage) {
                    session.left.insert(*place, leader.leader_epoch());
                }
            }
        }
        if session.positions.len() + poll.positions.len() > self.held.len() + STRANGE_POSITIONS {
            self.sessions.remove(&poll.storage);
            self.say(&poll, token, SessionOutcome::NotServing, out);
            return;
        }
        for position in poll.positions {
            let place = (position.topic, position.partition);
            let log = |position: &ReplicaPosition| (position.leader_epoch, position.attempt);
            let before = session.positions.insert(place, position);
            if before.is_some_and(|before| log(&before) != log(&position)) {
                // What is on its way is for the log as it was, or for another leadership's follower.
                session.sent.remove(&place);
            }
            session.fresh.insert(place);
        }
        let wait = Duration::from_millis(poll.max_wait_ms.into()).min(MAX_WAIT);
        let max_bytes = (poll.max_bytes as usize).min(self.settings.answer_max_bytes);
        session.waiting = Some(Waiting { token, sequence: poll.sequence, until: now + wait, max_bytes });
    }

    fn say(&self, poll: &ReplicaFetch, token: Token, outcome: SessionOutcome, out: &mut Vec<Effect<L::Error>>) {
        let to = Asker { node_epoch: poll.node_epoch, session: poll.session, sequence: poll.sequence };
        self.tell(to, token, outcome, &[], out);
    }

    fn tell(
        &self,
        to: Asker,
        token: Token,
        outcome: SessionOutcome,
        batches: &[Bytes],
        out: &mut Vec<Effect<L::Error>>,
    ) {
        let Some(Member { cluster, storage, .. }) = self.member else { return };
        let Asker { node_epoch, session, sequence } = to;
        let answer = ReplicaAnswer { cluster, storage, node_epoch, session, sequence, outcome };
        out.push(Effect::Answer { token, message: answer.encode(batches) });
    }

    /// The node may not lead: whoever polls asks somebody else, or later.
    pub(super) fn close_sessions(&mut self, out: &mut Vec<Effect<L::Error>>) {
        for held in std::mem::take(&mut self.sessions).into_values() {
            let Some(waiting) = held.waiting else { continue };
            let to = Asker { node_epoch: held.node_epoch, session: held.session, sequence: waiting.sequence };
            self.tell(to, waiting.token, SessionOutcome::NotServing, &[], out);
        }
    }

    pub(super) fn step_sessions(&mut self, now: Monotonic, out: &mut Vec<Effect<L::Error>>) {
        self.let_go(now);
        let nodes: Vec<_> = self.sessions.keys().copied().collect();
        for node in nodes {
            self.look_at_positions(now, node, out);
            self.hold_back(now, node);
            let Some(session) = self.sessions.get_mut(&node) else { continue };
            let speaks = !session.ready.is_empty() || !session.left.is_empty();
            let Some(waiting) = session.waiting.filter(|waiting| speaks || now >= waiting.until) else { continue };
            session.waiting = None;
            let (partitions, batches) = self.gather(now, node, waiting.max_bytes, out);
            self.answer_poll(node, waiting, partitions, &batches, out);
        }
    }

    /// Counts what the follower says of its disk, and sees whether there is something to say to it.
    fn look_at_positions(&mut self, now: Monotonic, node: StorageId, out: &mut Vec<Effect<L::Error>>) {
        let Some(session) = self.sessions.get_mut(&node) else { return };
        for place in std::mem::take(&mut session.fresh) {
            let outcome = self.judge(now, node, place);
            let speaks = match outcome.map(|answer| answer.outcome) {
                Some(PartitionOutcome::Agrees { .. }) => {
                    self.asks.insert(place);
                    self.acknowledge(place, out);
                    self.lacks_something(node, place)
                }
                Some(_) => {
                    self.sessions.get_mut(&node).and_then(|session| session.sent.remove(&place));
                    true
                }
                None => false,
            };
            if speaks && let Some(session) = self.sessions.get_mut(&node) {
                session.ready.insert(place);
            }
        }
    }

    fn lacks_something(&self, node: StorageId, place: Place) -> bool {
        let next = self.sessions.get(&node).and_then(|session| Some(session.next(session.positions.get(&place)?)));
        let end = self.held.get(&place).map(|replica| replica.log.end());
        next.zip(end).is_some_and(|(next, end)| next < end)
    }

    /// The leader's verdict on a follower's position, without records. None: it is not in the session. Where the histories agree it
    /// speaks of where the follower's log will end once it has taken what is on its way.
    fn judge(&mut self, now: Monotonic, node: StorageId, place: Place) -> Option<PartitionAnswer> {
        let session = self.sessions.get(&node)?;
        let position = *session.positions.get(&place)?;
        let next = session.next(&position);
        let answer = |leader_epoch, outcome| {
            let ReplicaPosition { topic, partition, offset, last_epoch, .. } = position;
            Some(PartitionAnswer { topic, partition, leader_epoch, offset, last_epoch, outcome })
        };
        let incarnation = ReplicaSession { node_epoch: session.node_epoch, attempt: position.attempt };
        let Some(replica) = self.held.get_mut(&place) else {
            return answer(position.leader_epoch, PartitionOutcome::NotLeader);
        };
        let Role::Leads(leader) = &mut replica.role else {
            return answer(position.leader_epoch, PartitionOutcome::NotLeader);
        };
        let from = FetchFrom {
            leader_epoch: position.leader_epoch,
            offset: position.offset,
            last_epoch: position.last_epoch,
            flushed: position.flushed,
        };
        let outcome = leader.fetched(now, node, incarnation, &from, replica.log.start(), replica.log.epochs());
        let outcome = match outcome {
            Ok(FetchOutcome::Agrees { high_watermark, log_start }) => {
                PartitionOutcome::Agrees { high_watermark, log_start, bytes: 0 }
            }
            Ok(FetchOutcome::Diverged(ours)) => PartitionOutcome::Diverged { epoch: ours.epoch, end: ours.end },
            Ok(FetchOutcome::OutOfRange { log_start, log_end }) => PartitionOutcome::OutOfRange { log_start, log_end },
            Err(Refusal::FencedLeaderEpoch { .. }) => PartitionOutcome::FencedLeaderEpoch,
            Err(Refusal::UnknownLeaderEpoch { .. }) => PartitionOutcome::NotLeader,
            Err(Refusal::NotAReplica(_) | Refusal::StaleReplica(_)) => PartitionOutcome::NotAReplica,
        };
        let mut answer = answer(leader.leader_epoch(), outcome)?;
        if next > position.offset && matches!(answer.outcome, PartitionOutcome::Agrees { .. }) {
            (answer.offset, answer.last_epoch) = (next, replica.log.epochs().last(next));
        }
        Some(answer)
    }

    /// What there is to say, up to so many bytes of records; what does not fit stays for the next poll.
    fn gather(
        &mut self,
        now: Monotonic,
        node: StorageId,
        max_bytes: usize,
        out: &mut Vec<Effect<L::Error>>,
    ) -> (Vec<PartitionAnswer>, Vec<Bytes>) {
        let places = self.sessions.get(&node).map(Session::in_turn).unwrap_or_default();
        let (mut batches, mut left) = (Vec::new(), max_bytes);
        let mut room = self.settings.message_max_bytes.saturating_sub(HEAD_BYTES);
        let mut partitions = self.sessions.get_mut(&node).map(|session| session.take_left(room)).unwrap_or_default();
        room -= partitions.len() * ANSWER_BYTES;
        for place in places {
            if left == 0 || (room < ANSWER_BYTES && !partitions.is_empty()) {
                break;
            }
            if self.is_held_back(now, node, place) {
                continue;
            }
            let Some(mut answer) = self.judge(now, node, place) else { continue };
            if let PartitionOutcome::Agrees { bytes, .. } = &mut answer.outcome {
                // The first partition gets its batch whatever its size, the others only what is left.
                let (fits, first) = (left.min(room.saturating_sub(ANSWER_BYTES)), partitions.is_empty());
                match self.records_in_turn(now, node, place, answer.offset, fits, first) {
                    // The answer is full: the next one begins here.
                    Ok(None) => break,
                    Ok(Some(read)) => {
                        if let Some(session) = self.sessions.get_mut(&node).filter(|_| read.end > answer.offset) {
                            session.sent.insert(place, Sent { sequence: session.sequence, end: read.end });
                        }
                        *bytes = read.bytes() as u32;
                        left = left.saturating_sub(read.bytes());
                        room = room.saturating_sub(read.bytes());
                        batches.extend(read.pieces);
                    }
                    Err(error) => {
                        answer.outcome = PartitionOutcome::StorageError;
                        out.push(Effect::Unreadable { place, error });
                    }
                }
            }
            let Some(session) = self.sessions.get_mut(&node) else { break };
            session.ready.remove(&place);
            session.cursor = Some(place);
            room = room.saturating_sub(ANSWER_BYTES);
            partitions.push(answer);
        }
        (partitions, batches)
    }

    /// What there is from an offset on. None: there is something, and it does not fit.
    pub(super) fn records(
        &self,
        place: Place,
        from: Offset,
        max_bytes: usize,
        first: bool,
    ) -> Result<Option<Read>, L::Error> {
        let Some(replica) = self.held.get(&place).filter(|replica| from < replica.log.end()) else {
            return Ok(Some(Read { pieces: SmallVec::new(), end: from }));
        };
        let read = replica.log.read(from, max_bytes)?;
        Ok((read.bytes() <= max_bytes || first).then_some(read))
    }

    fn answer_poll(
        &self,
        node: StorageId,
        waiting: Waiting,
        partitions: Vec<PartitionAnswer>,
        batches: &[Bytes],
        out: &mut Vec<Effect<L::Error>>,
    ) {
        let Some(session) = self.sessions.get(&node) else { return };
        let (node_epoch, session) = (session.node_epoch, session.session);
        let to = Asker { node_epoch, session, sequence: waiting.sequence };
        self.tell(to, waiting.token, SessionOutcome::Partitions(partitions), batches, out);
    }

    /// Tells the sessions of those who lack what the leader has now.
    pub(super) fn tell_followers(&mut self, place: Place, end: Offset) {
        for session in self.sessions.values_mut() {
            if session.positions.get(&place).is_some_and(|position| position.offset < end) {
                session.ready.insert(place);
            }
        }
    }
}
