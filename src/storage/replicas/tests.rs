//! Three nodes' engines, joined by a network and disks that the test drives.

mod interleavings;
mod leader;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

use super::*;
use crate::replication::EpochHistory;
use crate::storage::core::{CallError, InSyncOutcome, InSyncWish};
use crate::types::{ClusterId, LeaderEpoch, NodeEpoch, PartitionEpoch, TopicId, WallTime};
use crate::wire::replica::{ReplicaAnswer, ReplicaFetch, ReplicaPosition, SessionOutcome};

const TOPIC: TopicId = TopicId(Uuid::from_u128(7));
const PLACE: Place = (TOPIC, 0);
const RECORD: usize = 12;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the disk is broken")]
struct Broken;

/// Records of twelve bytes: the epoch, then the value.
#[derive(Clone, Debug, Default)]
struct MemoryLog {
    records: Vec<(LeaderEpoch, u64)>,
    epochs: EpochHistory,
    flushed: usize,
    broken: bool,
}

impl Log for MemoryLog {
    type Error = Broken;

    fn start(&self) -> Offset {
        Offset(0)
    }
    fn end(&self) -> Offset {
        Offset(self.records.len() as i64)
    }
    fn epochs(&self) -> &EpochHistory {
        &self.epochs
    }
    fn begin_epoch(&mut self, epoch: LeaderEpoch) -> Result<(), Broken> {
        self.epochs.append(epoch, self.end());
        Ok(())
    }
    fn append(&mut self, batch: Bytes, epoch: LeaderEpoch, _: WallTime) -> Result<Offset, Broken> {
        if self.broken {
            return Err(Broken);
        }
        let first = self.end();
        self.epochs.append(epoch, first);
        self.records.push((epoch, u64::from_le_bytes(batch[..].try_into().unwrap())));
        Ok(first)
    }
    fn copy(&mut self, batches: Bytes) -> Result<(), Broken> {
        for record in batches.chunks_exact(RECORD) {
            let epoch = LeaderEpoch(u32::from_le_bytes(record[..4].try_into().unwrap()));
            self.epochs.append(epoch, self.end());
            self.records.push((epoch, u64::from_le_bytes(record[4..].try_into().unwrap())));
        }
        Ok(())
    }
    fn read(&self, from: Offset, max_bytes: usize) -> Result<Read, Broken> {
        let mut batches = BytesMut::new();
        for (epoch, value) in self.records[from.0 as usize..].iter().take((max_bytes / RECORD).max(1)) {
            batches.put_u32_le(epoch.0);
            batches.put_u64_le(*value);
        }
        let end = Offset(from.0 + (batches.len() / RECORD) as i64);
        Ok(Read { pieces: [batches.freeze()].into_iter().collect(), end })
    }
    fn truncate_to(&mut self, end: Offset) -> Result<(), Broken> {
        self.records.truncate(end.0 as usize);
        self.flushed = self.flushed.min(self.records.len());
        self.epochs.truncate_to(end);
        Ok(())
    }
    fn restart_at(&mut self, _: Offset) -> Result<(), Broken> {
        unreachable!("nothing is deleted here")
    }
    fn delete_before(&mut self, _: Offset) -> Result<(), Broken> {
        unreachable!("nothing is deleted here")
    }
}

/// What is on its way.
#[derive(Clone, Debug)]
enum Way {
    Poll { from: u32, call: Call, to: u32, message: Bytes },
    Answer { to: u32, call: Call, result: Result<Bytes, CallError> },
    Flush { node: u32, logs: Vec<LogEnd> },
    Alter { node: u32, wish: InSyncWish },
    Altered { node: u32, wish: InSyncWish, granted: bool },
    Assignment { node: u32, assignment: Assignment },
}

struct Node {
    engine: Replicas<MemoryLog>,
    up: bool,
    node_epoch: u64,
    /// Whose answer each poll's token is.
    tokens: BTreeMap<Token, (u32, Call)>,
}

struct Cluster {
    now: Monotonic,
    nodes: Vec<Node>,
    ways: Vec<Way>,
    assignment: Assignment,
    places: Vec<Place>,
    next: u64,
    acknowledged: Vec<(Token, Result<Offset, AppendError<Broken>>)>,
    dropped: Vec<(Place, AppendError<Broken>)>,
    left: Vec<(u32, Place, LeaderEpoch)>,
    polls: u32,
    /// The longest poll or answer, in bytes.
    longest: usize,
}

impl Cluster {
    fn new(partitions: u32) -> Self {
        let assignment = Assignment {
            leader: Some(StorageId(0)),
            leader_epoch: LeaderEpoch(1),
            partition_epoch: PartitionEpoch(1),
            isr: [0, 1, 2].map(StorageId).to_vec(),
            replicas: [0, 1, 2].map(StorageId).to_vec(),
            min_insync: 2,
            recovering: false,
        };
        let node =
            |_| Node { engine: Replicas::new(Settings::default()), up: false, node_epoch: 0, tokens: BTreeMap::new() };
        let mut cluster = Self {
            now: Monotonic(0),
            nodes: (0..3).map(node).collect(),
            ways: Vec::new(),
            assignment,
            places: (0..partitions).map(|partition| (TOPIC, partition)).collect(),
            next: 0,
            acknowledged: Vec::new(),
            dropped: Vec::new(),
            left: Vec::new(),
            polls: 0,
            longest: 0,
        };
        (0..3).for_each(|node| cluster.start(node, BTreeMap::new()));
        cluster
    }

    /// A new incarnation with what was on the disk.
    fn start(&mut self, node: u32, mut logs: BTreeMap<Place, MemoryLog>) {
        let held = &mut self.nodes[node as usize];
        held.engine = Replicas::new(Settings::default());
        held.node_epoch += 1;
        held.up = true;
        let member = Member {
            cluster: ClusterId(Uuid::from_u128(1)),
            storage: StorageId(node),
            node_epoch: NodeEpoch(held.node_epoch),
        };
        self.give(node, Input::Member(member));
        self.peers();
        self.give(node, Input::MayLead(true));
        for place in self.places.clone() {
            let log = Some(logs.remove(&place).unwrap_or_default());
            self.give(node, Input::Assigned { place, assignment: self.assignment.clone(), log });
        }
    }

    fn peers(&mut self) {
        let peer = |node: &Node| Peer { node_epoch: NodeEpoch(node.node_epoch), active: node.up };
        let peers: BTreeMap<_, _> = (0..).map(StorageId).zip(self.nodes.iter().map(peer)).collect();
        for node in 0..3 {
            self.give(node, Input::Peers(peers.clone()));
        }
    }

    fn give(&mut self, node: u32, input: Input<MemoryLog>) {
        if !self.nodes[node as usize].up {
            return;
        }
        let mut out = Vec::new();
        let held = &mut self.nodes[node as usize];
        held.engine.take(self.now, input, &mut out);
        held.engine.step(self.now, &mut out);
        for effect in out {
            match effect {
                Effect::Poll { call, to, message, .. } => {
                    self.polls += 1;
                    self.longest = self.longest.max(message.len());
                    self.ways.push(Way::Poll { from: node, call, to: to.0, message });
                }
                Effect::Answer { token, message } => {
                    self.longest = self.longest.max(message.len());
                    if let Some((to, call)) = self.nodes[node as usize].tokens.remove(&token) {
                        self.ways.push(Way::Answer { to, call, result: Ok(message) });
                    }
                }
                Effect::Flush(logs) => self.ways.push(Way::Flush { node, logs }),
                Effect::Acknowledge { token, result } => self.acknowledged.push((token, result)),
                Effect::Dropped { place, error } => self.dropped.push((place, error)),
                Effect::AskInSync(wishes) => {
                    self.ways.extend(wishes.into_iter().map(|wish| Way::Alter { node, wish }));
                }
                Effect::Leads { .. } | Effect::LeadsNoMore(_) | Effect::Unreadable { .. } | Effect::Failed { .. } => {}
                Effect::Left { place, leader_epoch } => self.left.push((node, place, leader_epoch)),
            }
        }
    }

    /// What arrives.
    fn arrive(&mut self, way: Way) {
        match way {
            Way::Poll { from, call, to, message } => {
                let held = &mut self.nodes[to as usize];
                if held.up {
                    self.next += 1;
                    let token = Token(self.next);
                    held.tokens.insert(token, (from, call));
                    self.give(to, Input::Poll { payload: message, token });
                } else {
                    self.ways.push(Way::Answer { to: from, call, result: Err(CallError::NoResponders) });
                }
            }
            Way::Answer { to, call, result } => self.give(to, Input::PollAnswer { call, result }),
            Way::Flush { node, logs } => {
                let held = &mut self.nodes[node as usize];
                for LogEnd { place, end, generation } in &logs {
                    if let Some(replica) = held.engine.held.get_mut(place).filter(|held| held.generation == *generation)
                    {
                        replica.log.flushed = replica.log.flushed.max(end.0 as usize).min(replica.log.records.len());
                    }
                }
                self.give(node, Input::Flushed(logs));
            }
            Way::Alter { node, wish } => self.alter(node, wish),
            Way::Altered { node, wish, granted } => {
                let (leader_epoch, on_top_of) = (wish.leader_epoch, wish.partition_epoch);
                let outcome = InSyncOutcome { place: wish.place, leader_epoch, on_top_of, granted };
                self.give(node, Input::InSyncAnswer(outcome));
            }
            Way::Assignment { node, assignment } => {
                for place in self.places.clone() {
                    self.give(node, Input::Assigned { place, assignment: assignment.clone(), log: None });
                }
            }
        }
    }

    /// The controller. With several partitions there is one assignment for all of them, for brevity.
    fn alter(&mut self, node: u32, wish: InSyncWish) {
        let held = &self.assignment;
        let fit = |(id, epoch): &(StorageId, NodeEpoch)| {
            let peer = &self.nodes[id.0 as usize];
            peer.up && peer.node_epoch == epoch.0
        };
        let granted = held.leader == Some(StorageId(node))
            && held.leader_epoch == wish.leader_epoch
            && held.partition_epoch == wish.partition_epoch
            && wish.members.iter().all(fit);
        if granted {
            self.assignment.isr = wish.members.iter().map(|(id, _)| *id).collect();
            self.assignment.partition_epoch.0 += 1;
            self.announce();
        }
        self.ways.push(Way::Altered { node, wish, granted });
    }

    fn announce(&mut self) {
        let assignment = self.assignment.clone();
        self.ways.extend((0..3).map(|node| Way::Assignment { node, assignment: assignment.clone() }));
    }

    fn elect(&mut self, leader: Option<u32>, isr: &[u32]) {
        self.assignment.leader = leader.map(StorageId);
        self.assignment.isr = isr.iter().copied().map(StorageId).collect();
        self.assignment.leader_epoch.0 += 1;
        self.assignment.partition_epoch.0 += 1;
        self.announce();
    }

    /// Kills the process, and with `power` also what it had not flushed.
    fn kill(&mut self, node: u32, power: bool) -> BTreeMap<Place, MemoryLog> {
        let held = &mut self.nodes[node as usize];
        held.up = false;
        held.tokens.clear();
        let engine = std::mem::replace(&mut held.engine, Replicas::new(Settings::default()));
        self.ways.retain(|way| !matches!(way, Way::Flush { node: of, .. } if *of == node));
        let keep = |(place, mut replica): (Place, Replica<MemoryLog>)| {
            if power {
                replica.log.truncate_to(Offset(replica.log.flushed as i64)).unwrap();
            }
            replica.log.flushed = replica.log.records.len();
            (place, replica.log)
        };
        engine.held.into_iter().map(keep).collect()
    }

    /// Until nothing is on its way, and time passes as far as `span`.
    fn settle(&mut self, span: Duration) {
        let until = self.now + span;
        loop {
            while !self.ways.is_empty() {
                let way = self.ways.remove(0);
                self.arrive(way);
            }
            let next = self.nodes.iter().filter(|node| node.up).filter_map(|node| node.engine.next_deadline()).min();
            match next.filter(|next| *next <= until) {
                Some(next) => self.now = self.now.max(next),
                None => break,
            }
            (0..3).for_each(|node| self.give(node, Input::Tick));
        }
        self.now = until;
    }

    fn append(&mut self, node: u32, place: Place, value: u64, acks: Option<Acks>) -> Token {
        self.next += 1;
        let token = Token(self.next);
        let batch = Bytes::copy_from_slice(&value.to_le_bytes());
        self.give(node, Input::Append(Append { place, batch, acks, token, now: WallTime(0) }));
        token
    }

    fn values(&self, node: u32) -> Vec<u64> {
        let log = self.nodes[node as usize].engine.log(PLACE).unwrap();
        log.records.iter().map(|(_, value)| *value).collect()
    }

    fn visible(&self, node: u32) -> Option<i64> {
        self.nodes[node as usize].engine.led(PLACE)?.visible.map(|offset| offset.0)
    }
}

const MOMENT: Duration = Duration::from_millis(20);

#[test]
fn a_record_is_acknowledged_once_all_in_sync_replicas_have_it_on_their_disks() {
    let mut cluster = Cluster::new(1);
    cluster.settle(MOMENT);
    let token = cluster.append(0, PLACE, 11, Some(Acks::All));
    // Everything but the flush of node 2.
    let mut kept = Vec::new();
    while !cluster.ways.is_empty() {
        match cluster.ways.remove(0) {
            flush @ Way::Flush { node: 2, .. } => kept.push(flush),
            way => cluster.arrive(way),
        }
    }
    assert_eq!((cluster.acknowledged.len(), cluster.visible(0)), (0, Some(0)));
    assert_eq!(cluster.values(2), [11], "it has it, though not on its disk");
    cluster.ways.extend(kept);
    cluster.settle(MOMENT);
    assert_eq!(cluster.acknowledged, [(token, Ok(Offset(0)))]);
    assert_eq!(cluster.visible(0), Some(1));
}

#[test]
fn with_acks_of_the_leader_its_own_disk_is_enough_and_without_nobody_is_told() {
    let mut cluster = Cluster::new(1);
    cluster.settle(MOMENT);
    let token = cluster.append(0, PLACE, 11, Some(Acks::Leader));
    cluster.append(0, PLACE, 12, None);
    assert_eq!(cluster.acknowledged, []);
    let flush = cluster.ways.iter().position(|way| matches!(way, Way::Flush { node: 0, .. })).unwrap();
    let flush = cluster.ways.remove(flush);
    cluster.arrive(flush);
    assert_eq!(cluster.acknowledged, [(token, Ok(Offset(0)))]);
    cluster.settle(MOMENT);
    assert_eq!((cluster.acknowledged.len(), cluster.values(2)), (1, vec![11, 12]));
}

#[test]
fn thousands_of_idle_partitions_cost_a_poll_per_pair_of_nodes_that_names_none() {
    let mut cluster = Cluster::new(2_000);
    cluster.settle(Duration::from_secs(1));
    cluster.polls = 0;
    cluster.settle(Duration::from_secs(10));
    assert!(cluster.polls <= 42, "{} polls of two followers in ten seconds", cluster.polls);
    // One append travels alone.
    cluster.append(0, (TOPIC, 700), 11, Some(Acks::All));
    while let Some(way) = cluster.ways.pop() {
        if let Way::Poll { message, .. } = &way {
            assert!(ReplicaFetch::decode(message).unwrap().positions.len() <= 1);
        }
        cluster.arrive(way);
    }
    assert_eq!(cluster.acknowledged.len(), 1);
}

#[test]
fn thousands_of_partitions_are_named_and_answered_in_messages_that_the_server_takes() {
    const LIMIT: usize = 20_000;
    let mut cluster = Cluster::new(2_000);
    cluster.settle(Duration::from_secs(1));
    for node in &mut cluster.nodes {
        node.engine.limit_messages(LIMIT);
    }
    for partition in 0..2_000 {
        cluster.append(0, (TOPIC, partition), partition.into(), Some(Acks::All));
    }
    // All polls are lost, and with them the sessions: everything is named anew, and has something to be told.
    cluster.ways.retain(|way| !matches!(way, Way::Poll { .. } | Way::Answer { .. }));
    cluster.longest = 0;
    cluster.settle(Duration::from_secs(20));
    assert_eq!(cluster.acknowledged.len(), 2_000);
    assert!((LIMIT / 4..=LIMIT).contains(&cluster.longest), "{} bytes", cluster.longest);
}

#[test]
fn a_new_leader_is_followed_at_once_although_its_poll_waits() {
    let mut cluster = Cluster::new(2);
    cluster.settle(Duration::from_secs(1));
    cluster.append(0, PLACE, 11, Some(Acks::All));
    cluster.settle(MOMENT);
    cluster.kill(0, true);
    cluster.peers();
    cluster.elect(Some(1), &[1, 2]);
    cluster.settle(Duration::ZERO);
    cluster.append(1, PLACE, 12, Some(Acks::All));
    cluster.settle(Duration::ZERO);
    assert_eq!(cluster.acknowledged.len(), 2, "no time passed");
    assert_eq!(cluster.values(2), [11, 12]);
}

#[test]
fn what_a_deposed_leader_wrote_alone_is_cut_off_and_its_waiters_learn_that_it_is_open() {
    let mut cluster = Cluster::new(1);
    cluster.settle(MOMENT);
    cluster.append(0, PLACE, 11, Some(Acks::All));
    cluster.settle(MOMENT);
    // Node 0 is cut off, and writes on.
    cluster.append(0, PLACE, 12, Some(Acks::All));
    cluster.ways.retain(|way| matches!(way, Way::Flush { .. }));
    cluster.ways.retain(|way| matches!(way, Way::Flush { node: 0, .. }));
    cluster.elect(Some(1), &[1, 2]);
    let (late, soon): (Vec<_>, Vec<_>) =
        std::mem::take(&mut cluster.ways).into_iter().partition(|way| matches!(way, Way::Assignment { node: 0, .. }));
    cluster.ways = soon;
    cluster.settle(Duration::from_secs(3));
    cluster.append(1, PLACE, 13, Some(Acks::All));
    cluster.settle(MOMENT);
    assert_eq!(cluster.values(0), [11, 12]);
    cluster.ways = late;
    cluster.settle(Duration::from_secs(1));
    for node in 0..3 {
        assert_eq!(cluster.values(node), [11, 13], "node {node}");
    }
    let outcomes: Vec<_> = cluster.acknowledged.iter().map(|(_, result)| result.clone()).collect();
    assert_eq!(outcomes, [Ok(Offset(0)), Ok(Offset(1)), Err(AppendError::NotLeader)]);
    assert_eq!(cluster.assignment.isr.len(), 3, "it is in sync again");
}

#[test]
fn without_a_lease_nobody_is_acknowledged_or_served_and_with_one_again_what_waited_is() {
    let mut cluster = Cluster::new(1);
    cluster.settle(MOMENT);
    cluster.append(0, PLACE, 11, Some(Acks::All));
    cluster.give(0, Input::MayLead(false));
    cluster.settle(MOMENT);
    assert_eq!((cluster.acknowledged.len(), cluster.visible(0)), (0, None));
    cluster.append(0, PLACE, 12, Some(Acks::All));
    assert_eq!(cluster.acknowledged.pop().unwrap().1, Err(AppendError::NotLeader));
    cluster.give(0, Input::MayLead(true));
    cluster.settle(Duration::from_secs(1));
    assert_eq!(cluster.acknowledged.len(), 1);
    assert_eq!(cluster.visible(0), Some(1));
}

#[test]
fn who_lags_leaves_the_in_sync_replicas_and_comes_back_when_it_has_everything() {
    let mut cluster = Cluster::new(1);
    cluster.settle(MOMENT);
    let logs = cluster.kill(2, true);
    // The controller has not noticed.
    let token = cluster.append(0, PLACE, 11, Some(Acks::All));
    cluster.settle(Duration::from_secs(9));
    assert_eq!(cluster.acknowledged, []);
    cluster.settle(Duration::from_secs(3));
    assert_eq!(cluster.acknowledged, [(token, Ok(Offset(0)))]);
    assert_eq!(cluster.assignment.isr, [0, 1].map(StorageId));
    cluster.start(2, logs);
    cluster.settle(Duration::from_secs(2));
    assert_eq!(cluster.assignment.isr, [0, 1, 2].map(StorageId));
    assert_eq!(cluster.values(2), [11]);
}

#[test]
fn who_gives_a_replica_up_leaves_the_in_sync_replicas_at_once_and_comes_back_when_it_has_everything() {
    let mut cluster = Cluster::new(1);
    cluster.settle(MOMENT);
    let log = cluster.nodes[2].engine.held[&PLACE].log.clone();
    cluster.give(2, Input::Unassigned(PLACE));
    let token = cluster.append(0, PLACE, 11, Some(Acks::All));
    cluster.settle(MOMENT);
    assert_eq!(cluster.acknowledged, [(token, Ok(Offset(0)))]);
    assert_eq!(cluster.assignment.isr, [0, 1].map(StorageId));
    let assignment = cluster.assignment.clone();
    cluster.give(2, Input::Assigned { place: PLACE, assignment, log: Some(log) });
    // Of a sync that began with the log before, and took its time.
    cluster.give(2, Input::Flushed(vec![LogEnd { place: PLACE, end: Offset(1), generation: 0 }]));
    assert_eq!(cluster.nodes[2].engine.held[&PLACE].flushed, Offset(0));
    cluster.settle(Duration::from_secs(2));
    assert_eq!(cluster.assignment.isr, [0, 1, 2].map(StorageId));
    assert_eq!(cluster.values(2), [11]);
}

/// Node 1 begins a session, and names nothing.
fn poll(session: u64) -> ReplicaFetch {
    ReplicaFetch {
        cluster: ClusterId(Uuid::from_u128(1)),
        storage: StorageId(1),
        node_epoch: NodeEpoch(1),
        session,
        sequence: 0,
        taken: None,
        max_bytes: 1000,
        max_wait_ms: 0,
        positions: Vec::new(),
        dropped: Vec::new(),
    }
}

fn outcome(answer: &Bytes) -> SessionOutcome {
    ReplicaAnswer::decode(answer).unwrap().0.outcome
}

#[test]
fn strangers_and_older_incarnations_are_refused_and_one_of_the_future_keeps_nobody_out() {
    let mut cluster = Cluster::new(1);
    cluster.settle(MOMENT);
    let message = |cluster: u128, storage, node_epoch| ReplicaFetch {
        cluster: ClusterId(Uuid::from_u128(cluster)),
        storage: StorageId(storage),
        node_epoch: NodeEpoch(node_epoch),
        ..poll(99)
    };
    let mut say = |poll: ReplicaFetch| {
        let mut out = Vec::new();
        let engine = &mut cluster.nodes[0].engine;
        engine.take(cluster.now, Input::Poll { payload: poll.encode(), token: Token(1_000) }, &mut out);
        match &out[..] {
            [Effect::Answer { message, .. }] => Some(outcome(message)),
            _ => None,
        }
    };
    assert_eq!(say(message(2, 1, 1)), Some(SessionOutcome::Refused), "another cluster");
    assert_eq!(say(message(1, 9, 1)), Some(SessionOutcome::Refused), "not registered");
    assert_eq!(say(message(1, 1, 0)), Some(SessionOutcome::Refused), "an older incarnation");
    assert_eq!(say(message(1, 1, u64::MAX)), Some(SessionOutcome::NotServing), "an incarnation that is not known yet");
    assert_eq!(cluster.nodes[0].engine.take_refused(), 3);
    // The real follower is answered as before.
    cluster.append(0, (TOPIC, 0), 11, Some(Acks::All));
    cluster.settle(MOMENT);
    assert_eq!(cluster.acknowledged.len(), 1);
}

#[test]
fn a_follower_cannot_name_more_partitions_than_could_ever_be_here() {
    let mut cluster = Cluster::new(1);
    cluster.settle(MOMENT);
    let position = |partition| ReplicaPosition {
        topic: TOPIC,
        partition,
        leader_epoch: LeaderEpoch(0),
        attempt: 0,
        offset: Offset(0),
        last_epoch: None,
        flushed: Offset(0),
    };
    let poll = |sequence: u32| ReplicaFetch {
        sequence,
        taken: sequence.checked_sub(1),
        max_wait_ms: 5_000,
        positions: (sequence * 50_000..(sequence + 1) * 50_000).map(position).collect(),
        ..poll(99)
    };
    let mut outcomes = Vec::new();
    for sequence in 0..4 {
        let mut out = Vec::new();
        let engine = &mut cluster.nodes[0].engine;
        engine.take(cluster.now, Input::Poll { payload: poll(sequence).encode(), token: Token(1_000) }, &mut out);
        outcomes.extend(out.iter().filter_map(|effect| match effect {
            Effect::Answer { message, .. } => Some(outcome(message)),
            _ => None,
        }));
    }
    // The second poll answers the first. The third is too much, and with the session all that was named is forgotten.
    let nothing = SessionOutcome::Partitions(Vec::new());
    assert_eq!(
        outcomes,
        [nothing.clone(), nothing.clone(), nothing, SessionOutcome::NotServing, SessionOutcome::UnknownSession]
    );
}

/// Nodes crash and come back, polls and answers are lost, late or repeated: what was acknowledged is in every later leader's
/// log, and in the end in all of them.
#[test]
fn nothing_acknowledged_is_lost_whatever_happens() {
    for seed in 0..500 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut cluster = Cluster::new(1);
        let (mut logs, mut values, mut sent) = (BTreeMap::new(), 0, BTreeMap::new());
        for _ in 0..1_500 {
            let node = rng.random_range(0..3);
            match rng.random_range(0..200) {
                0..30 => {
                    if let Some(leader) = cluster.assignment.leader {
                        values += 1;
                        sent.insert(cluster.append(leader.0, PLACE, values, Some(Acks::All)), values);
                    }
                }
                30..170 => {
                    if !cluster.ways.is_empty() {
                        // Flushes and the metadata are reliable, and the metadata comes in order.
                        let index = rng.random_range(0..cluster.ways.len().min(4));
                        let reliable = matches!(cluster.ways[index], Way::Flush { .. } | Way::Assignment { .. });
                        let index = if matches!(cluster.ways[index], Way::Assignment { .. }) {
                            cluster.ways.iter().position(|way| matches!(way, Way::Assignment { .. })).unwrap()
                        } else {
                            index
                        };
                        let way = if rng.random_range(0..20) == 0 && !reliable {
                            cluster.ways[index].clone()
                        } else {
                            cluster.ways.remove(index)
                        };
                        if reliable || rng.random_range(0..20) != 0 {
                            cluster.arrive(way);
                        } else if let Way::Alter { node, wish } | Way::Altered { node, wish, .. } = way {
                            // Whoever asked gives up waiting.
                            cluster.ways.push(Way::Altered { node, wish, granted: false });
                        }
                    }
                }
                170..195 => {
                    cluster.now = cluster.now + Duration::from_millis(rng.random_range(1..100));
                    cluster.give(node, Input::Tick);
                }
                195 => {
                    let up = cluster.nodes.iter().filter(|node| node.up).count();
                    if up == 3 {
                        let power = rng.random_range(0..2) == 0;
                        logs.insert(node, cluster.kill(node, power));
                        cluster.peers();
                        let isr: Vec<_> =
                            cluster.assignment.isr.iter().map(|id| id.0).filter(|id| *id != node).collect();
                        if !isr.is_empty() {
                            let leads = cluster.assignment.leader == Some(StorageId(node));
                            let leader = if leads { isr[0] } else { cluster.assignment.leader.unwrap().0 };
                            cluster.elect(Some(leader), &isr);
                        }
                    }
                }
                _ => {
                    if let Some(logs) = logs.remove(&node) {
                        cluster.start(node, logs);
                    }
                }
            }
        }
        for (node, logs) in logs {
            cluster.start(node, logs);
        }
        cluster.announce();
        cluster.settle(Duration::from_secs(30));
        let leader = cluster.assignment.leader.unwrap().0;
        let held = cluster.values(leader);
        for (token, result) in &cluster.acknowledged {
            if let Ok(first) = result {
                assert_eq!(held.get(first.0 as usize), Some(&sent[token]), "seed {seed}");
            }
        }
        for node in 0..3 {
            assert_eq!(
                cluster.values(node),
                held,
                "seed {seed}, node {node} {:#?} {:#?} {:?}",
                cluster.nodes[node as usize].engine.links,
                cluster.nodes[leader as usize].engine.sessions,
                cluster.assignment
            );
        }
        assert_eq!(cluster.assignment.isr.len(), 3, "seed {seed}");
        assert_eq!(cluster.visible(leader), Some(held.len() as i64), "seed {seed}");
    }
}
