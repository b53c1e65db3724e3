//! The controller's core before a stream, a lease and storage nodes that the test plays.

mod outside;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::*;
use crate::metadata::{NodeState, ParsedEntry};
use crate::types::{ClusterId, DirectoryId, IncarnationId, NodeEpoch, StorageId, TopicId, Version};
use crate::wire::admin::{
    self, IsrMember, IsrOutcome, IsrRequest, NodeRegister, NodeRegistered, PartitionAlter, PartitionAltered,
    TopicCreate,
};
use crate::wire::{
    AckOutcome, Code, ControllerRole, Health, Heartbeat, HeartbeatAnswer, Push, PushAck, WantedState, WireMessage,
};

/// What becomes of the next append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// Stored, and the answer is lost.
    Unanswered,
    /// Neither stored nor answered.
    Swallowed,
    /// Something of a stranger is stored before it.
    Preceded,
    /// On its way, neither stored nor answered yet.
    Held,
}

struct Rig {
    core: Controller,
    now: Now,
    stream: Vec<Bytes>,
    missing: bool,
    /// Reads are not answered.
    deaf: bool,
    revision: u64,
    fates: VecDeque<Fate>,
    /// Appends that are on their way.
    held: Vec<(u64, Version, Bytes)>,
    answers: Vec<(Token, Result<Bytes, WireError>)>,
    pushes: Vec<StorageId>,
    /// How many entries each of them had.
    entries: Vec<usize>,
    serving: bool,
    tokens: u64,
    /// Appends are held back, and this is the one.
    stalled: bool,
    stalled_append: Option<(u64, Version, Bytes)>,
}

fn settings() -> Settings {
    Settings {
        heartbeat_interval: Duration::from_millis(500),
        session_timeout: Duration::from_secs(3),
        lease: Duration::from_secs(2),
        admin_wait: Duration::from_secs(5),
        push_retry_min: Duration::from_millis(50),
        push_retry_max: Duration::from_secs(5),
        push_max_bytes: 1 << 19,
        history_probe: Duration::from_secs(1),
        snapshot_every_entries: 1000,
        snapshot_every_bytes: 1 << 26,
        message_limit: 900_000,
    }
}

fn connection(client: u64) -> Connection {
    Connection { server: "N".into(), client }
}

impl Rig {
    fn new() -> Self {
        let me = Identity {
            controller: ControllerId(0),
            directory: DirectoryId(Uuid::from_u128(1)),
            incarnation: IncarnationId(Uuid::from_u128(2)),
            founding: ClusterId(Uuid::from_u128(3)),
        };
        Self {
            core: Controller::new(me, settings(), History::new(), None),
            now: Now { monotonic: Monotonic(1_000_000), wall: WallTime(1_795_552_800_000) },
            stream: Vec::new(),
            missing: false,
            deaf: false,
            revision: 0,
            fates: VecDeque::new(),
            held: Vec::new(),
            answers: Vec::new(),
            pushes: Vec::new(),
            entries: Vec::new(),
            serving: false,
            tokens: 0,
            stalled: false,
            stalled_append: None,
        }
    }

    /// A controller that has founded a cluster and is active.
    fn active() -> Self {
        let mut rig = Self::new();
        rig.feed(Input::LeaseFree);
        rig.feed(Input::Connected(connection(1)));
        rig.pass(Duration::from_secs(4));
        assert_eq!(rig.core.role(), ControllerRole::Active);
        rig
    }

    fn feed(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut effects = Vec::new();
            self.core.handle(self.now, input, &mut effects);
            for effect in effects {
                inputs.extend(self.carry_out(effect));
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) -> Option<Input> {
        let sent_at = self.now.monotonic;
        match effect {
            Effect::AskHead { .. } => {
                let last = Version(self.stream.len() as u64);
                let present = Head::Present { first: Version(1), last, snapshot: true };
                let head = if self.missing { Head::Missing } else { present };
                Some(Input::Head { asked_at: sent_at, head: Some(head) })
            }
            Effect::Append { attempt, expected, payload } if self.stalled => {
                self.stalled_append = Some((attempt, expected, payload));
                None
            }
            Effect::Append { attempt, expected, payload } => {
                if self.fates.front() == Some(&Fate::Held) {
                    self.fates.pop_front();
                    self.held.push((attempt, expected, payload));
                    return None;
                }
                let result = self.append(expected, payload);
                Some(Input::Appended { attempt, result })
            }
            Effect::Read { version } => {
                let found = self.stream.get(version.0 as usize - 1).cloned();
                Some(Input::Read { version, result: if self.deaf { Err(()) } else { Ok(found) } })
            }
            Effect::TakeLease { .. } | Effect::RenewLease { .. } => {
                self.revision += 1;
                Some(Input::LeaseAnswer { sent_at, result: LeaseResult::Ours(self.revision) })
            }
            Effect::Persist(change) => Some(Input::Persisted(change.position)),
            Effect::Answer { token, payload } => {
                self.answers.push((token, Ok(payload)));
                None
            }
            Effect::Fail { token, error } => {
                self.answers.push((token, Err(error)));
                None
            }
            Effect::Push { storage, payload } => {
                self.pushes.push(storage);
                self.entries.push(Push::decode(&payload).unwrap().entries.len());
                None
            }
            Effect::Serve(serve) => {
                self.serving = serve;
                None
            }
            Effect::Exit { words } => panic!("{words}"),
            Effect::Follow { .. }
            | Effect::LoadSnapshot
            | Effect::ReleaseLease { .. }
            | Effect::Drop { .. }
            | Effect::Announce(_)
            | Effect::PersistSkip(_)
            | Effect::Install { .. }
            | Effect::ServeFetch { .. }
            | Effect::WriteSnapshot { .. }
            | Effect::Purge { .. }
            | Effect::Gather { .. }
            | Effect::Recreate { .. }
            | Effect::Bind(_)
            | Effect::Log { .. }
            | Effect::Stopped => None,
        }
    }

    fn append(&mut self, expected: Version, payload: Bytes) -> AppendResult {
        let fate = self.fates.pop_front();
        if fate == Some(Fate::Preceded) {
            self.stream.push(Bytes::from_static(b"from a stranger"));
        }
        let fits = expected.0 == self.stream.len() as u64;
        match fate {
            Some(Fate::Swallowed) => AppendResult::Unknown,
            _ if !fits => AppendResult::Conflict,
            Some(Fate::Unanswered) => {
                self.stream.push(payload);
                AppendResult::Unknown
            }
            Some(Fate::Preceded | Fate::Held) | None => {
                self.stream.push(payload);
                AppendResult::Stored
            }
        }
    }

    /// Lets time pass in small steps.
    fn pass(&mut self, span: Duration) {
        let end = self.now.monotonic + span;
        while self.now.monotonic < end {
            self.now.monotonic = self.now.monotonic + Duration::from_millis(20);
            self.feed(Input::Tick);
        }
    }

    fn admin(&mut self, noun: &str, verb: &str, payload: String) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        let fresh_id = TopicId(Uuid::from_u128(u128::from(self.tokens) + 1000));
        self.feed(Input::Admin { noun: noun.into(), verb: verb.into(), payload: payload.into(), token, fresh_id });
        token
    }

    fn create(&mut self, name: &str) -> Token {
        let request = TopicCreate {
            name: name.into(),
            partitions: Some(2),
            replication_factor: None,
            config: Default::default(),
            terms: Default::default(),
        };
        self.admin("topic", "create", admin::encode(&request))
    }

    fn answer(&self, token: Token) -> Option<&Result<Bytes, WireError>> {
        self.answers.iter().find(|(answered, _)| *answered == token).map(|(_, answer)| answer)
    }

    fn node(&self, id: u32) -> &crate::metadata::StorageNode {
        &self.core.history().image().unwrap().storage[&StorageId(id)]
    }

    fn register(&mut self, id: u32) {
        let request = NodeRegister {
            cluster: None,
            directory: DirectoryId(Uuid::from_u128(100 + u128::from(id))),
            incarnation: IncarnationId(Uuid::from_u128(200 + u128::from(id))),
            storage: Some(StorageId(id)),
            rack: None,
            preferred: None,
            node_epoch: None,
            position: Position::default(),
            connection: connection(10 + u64::from(id)),
        };
        self.admin("node", "register", admin::encode(&request));
    }

    fn heartbeat(&mut self, id: u32, client: u64, sequence: u64) -> Option<HeartbeatAnswer> {
        self.heartbeat_at(id, client, sequence, self.core.history().position())
    }

    fn heartbeat_at(&mut self, id: u32, client: u64, sequence: u64, position: Position) -> Option<HeartbeatAnswer> {
        self.tokens += 1;
        let token = Token(self.tokens);
        let heartbeat = Heartbeat {
            cluster: Some(ClusterId(Uuid::from_u128(3))),
            storage: StorageId(id),
            directory: DirectoryId(Uuid::from_u128(100 + u128::from(id))),
            incarnation: IncarnationId(Uuid::from_u128(200 + u128::from(id))),
            node_epoch: self.node(id).epoch,
            connection: connection(client),
            sequence,
            position,
            controller_epoch: self.core.history().controller_epoch(),
            leader_count: 0,
            follower_count: 0,
            wanted: WantedState::Running,
            health: Health::default(),
        };
        let (storage, received_at) = (StorageId(id), self.now.monotonic);
        self.feed(Input::Heartbeat { storage, received_at, payload: heartbeat.encode(), token });
        let answer = self.answer(token)?.clone().ok()?;
        HeartbeatAnswer::decode(&answer).ok()
    }

    /// Of another controller of the same cluster, as its standby.
    fn peer_heartbeat(&mut self, id: u32, sequence: u64) {
        let heartbeat = ControllerHeartbeat {
            cluster: Some(ClusterId(Uuid::from_u128(3))),
            controller: ControllerId(id),
            directory: DirectoryId(Uuid::from_u128(50)),
            incarnation: IncarnationId(Uuid::from_u128(51)),
            connection: connection(3),
            sequence,
            role: ControllerRole::Standby,
            position: self.core.history().position(),
            controller_epoch: self.core.history().controller_epoch(),
            halted: None,
        };
        self.feed(Input::ControllerHeartbeat { payload: heartbeat.encode() });
    }

    fn acknowledge(&mut self, id: u32) {
        let ack = PushAck {
            cluster: Some(ClusterId(Uuid::from_u128(3))),
            storage: StorageId(id),
            directory: DirectoryId(Uuid::from_u128(100 + u128::from(id))),
            incarnation: IncarnationId(Uuid::from_u128(200 + u128::from(id))),
            node_epoch: NodeEpoch(0),
            outcome: AckOutcome::Applied,
            position: self.core.history().position(),
            controller_epoch: self.core.history().controller_epoch(),
            pushed: self.core.history().position(),
            error: None,
        };
        self.feed(Input::Ack { storage: StorageId(id), payload: ack.encode() });
    }

    /// Controller 1 says that it is there.
    fn peer(&mut self, sequence: u64) {
        let heartbeat = ControllerHeartbeat {
            cluster: Some(ClusterId(Uuid::from_u128(3))),
            controller: ControllerId(1),
            directory: DirectoryId(Uuid::from_u128(50)),
            incarnation: IncarnationId(Uuid::from_u128(51)),
            connection: connection(3),
            sequence,
            role: ControllerRole::Standby,
            position: Position::default(),
            controller_epoch: ControllerEpoch(1),
            halted: None,
        };
        self.feed(Input::ControllerHeartbeat { payload: heartbeat.encode() });
    }

    /// What was pushed since the last look: to whom, and how many entries.
    fn pushed(&mut self) -> Vec<(u32, usize)> {
        let pushes = std::mem::take(&mut self.pushes).into_iter().map(|id| id.0);
        pushes.zip(std::mem::take(&mut self.entries)).collect()
    }

    /// An active controller with nodes 0 and 1; node 1 is paired with controller 1, which was heard just now.
    fn with_a_standby() -> Self {
        let mut rig = Self::with_nodes();
        let services = ServicesView { pairings: [(StorageId(1), ControllerId(1))].into(), ..ServicesView::default() };
        rig.peer(1);
        rig.feed(Input::Services(Arc::new(services)));
        assert_eq!([0, 1].map(|id| rig.node(id).pairing.unwrap().0), [0, 1]);
        for id in 0..2 {
            rig.acknowledge(id);
        }
        rig.pushed();
        rig
    }

    /// An active controller with nodes 0 and 1, both active.
    fn with_nodes() -> Self {
        let mut rig = Self::active();
        for id in 0..2 {
            rig.register(id);
        }
        for id in 0..2 {
            rig.heartbeat(id, 10 + u64::from(id), 1);
        }
        for id in 0..2 {
            rig.heartbeat(id, 10 + u64::from(id), 2);
            assert_eq!(rig.node(id).state, NodeState::Active);
        }
        rig
    }
}

#[test]
fn a_cluster_is_founded_only_after_a_session_in_which_nobody_names_one() {
    let mut rig = Rig::new();
    rig.feed(Input::LeaseFree);
    rig.feed(Input::Connected(connection(1)));
    rig.pass(Duration::from_millis(2900));
    assert_eq!((rig.core.role(), rig.stream.len()), (ControllerRole::Starting, 0));
    rig.pass(Duration::from_millis(300));
    assert_eq!(rig.core.role(), ControllerRole::Active);
    assert!(rig.serving);
    assert_eq!(rig.core.acting_epoch(), Some(ControllerEpoch(1)));
}

/// A controller with an empty disk, and what a node of the cluster that `other` founded says to it.
fn fresh_before(other: &Rig) -> (Rig, impl Fn(&mut Rig, u64) + use<>) {
    let (position, node_epoch) = (other.core.history().position(), other.node(0).epoch);
    let say = move |rig: &mut Rig, sequence| {
        let heartbeat = Heartbeat {
            cluster: Some(ClusterId(Uuid::from_u128(3))),
            storage: StorageId(0),
            directory: DirectoryId(Uuid::from_u128(100)),
            incarnation: IncarnationId(Uuid::from_u128(200)),
            node_epoch,
            connection: connection(10),
            sequence,
            position,
            controller_epoch: ControllerEpoch(1),
            leader_count: 0,
            follower_count: 0,
            wanted: WantedState::Running,
            health: Health::default(),
        };
        let (received_at, payload) = (rig.now.monotonic, heartbeat.encode());
        rig.feed(Input::Heartbeat { storage: StorageId(0), received_at, payload, token: Token(9_000 + sequence) });
    };
    (Rig::new(), say)
}

#[test]
fn a_fresh_controller_reads_the_history_before_it_believes_that_it_is_lost() {
    let other = Rig::with_nodes();
    let (mut rig, say) = fresh_before(&other);
    rig.stream = other.stream.clone();
    say(&mut rig, 1);
    rig.feed(Input::LeaseHeld { holder: None, revision: 9 });
    rig.feed(Input::Connected(connection(2)));
    for sequence in 2..10 {
        say(&mut rig, sequence);
        rig.pass(Duration::from_millis(400));
        assert_eq!(rig.core.role(), ControllerRole::Starting);
    }
    for (version, payload) in (1..).map(Version).zip(other.stream) {
        rig.feed(Input::Entry { version, payload });
    }
    say(&mut rig, 10);
    rig.pass(Duration::from_millis(100));
    assert_eq!(rig.core.history().position(), rig.core.durable());
    assert_ne!(rig.core.role(), ControllerRole::Halted);
    assert_ne!(rig.core.role(), ControllerRole::Starting);
}

#[test]
fn a_fresh_controller_founds_nothing_where_a_node_names_a_cluster_whose_stream_is_gone() {
    let other = Rig::with_nodes();
    for garbage in [vec![], vec![Bytes::from_static(b"from a stranger")]] {
        let (mut rig, say) = fresh_before(&other);
        rig.stream = garbage.clone();
        rig.feed(Input::LeaseFree);
        rig.feed(Input::Connected(connection(2)));
        for (version, payload) in (1..).map(Version).zip(garbage.clone()) {
            rig.feed(Input::Entry { version, payload });
        }
        for sequence in 1..10 {
            say(&mut rig, sequence);
            rig.pass(Duration::from_millis(500));
        }
        assert_eq!((rig.core.role(), rig.stream.len()), (ControllerRole::Halted, garbage.len()));
        assert!(rig.serving, "somebody has to answer for the state of things");
    }
}

#[test]
fn a_fresh_controller_founds_nothing_where_another_controller_has_a_cluster() {
    let mut rig = Rig::new();
    rig.feed(Input::LeaseFree);
    rig.feed(Input::Connected(connection(2)));
    for sequence in 1..10 {
        let heartbeat = ControllerHeartbeat {
            cluster: Some(ClusterId(Uuid::from_u128(77))),
            controller: ControllerId(1),
            directory: DirectoryId(Uuid::from_u128(50)),
            incarnation: IncarnationId(Uuid::from_u128(51)),
            connection: connection(3),
            sequence,
            role: ControllerRole::Halted,
            position: Position { version: Version(5), ..Position::default() },
            controller_epoch: ControllerEpoch(1),
            halted: None,
        };
        rig.feed(Input::ControllerHeartbeat { payload: heartbeat.encode() });
        rig.pass(Duration::from_millis(500));
    }
    assert_eq!((rig.core.role(), rig.stream.len()), (ControllerRole::Halted, 0));
}

#[test]
fn an_admin_answer_waits_until_every_active_node_has_the_change() {
    let mut rig = Rig::with_nodes();
    let token = rig.create("orders");
    rig.acknowledge(0);
    assert!(rig.answer(token).is_none());
    rig.acknowledge(1);
    let answer: admin::Changed = serde_json::from_slice(rig.answer(token).unwrap().as_ref().unwrap()).unwrap();
    assert_eq!((answer.applied, answer.active, answer.version.0), (2, 2, rig.stream.len() as u64));
}

#[test]
fn the_active_controller_steps_in_where_anothers_push_is_not_acknowledged_in_time() {
    let mut rig = Rig::with_a_standby();
    rig.create("orders");
    rig.acknowledge(0);
    assert_eq!(rig.pushed(), [(0, 1)], "the one that is paired pushes first");
    rig.pass(Duration::from_millis(100));
    assert_eq!(rig.pushed(), [(1, 0)], "the node is to fetch: nothing of the history comes from who is not paired");
    rig.acknowledge(1);
    rig.pass(Duration::from_millis(400));
    assert_eq!(rig.pushed(), []);
    // Whose pushes are acknowledged needs nobody to step in.
    rig.peer(2);
    rig.create("more");
    rig.acknowledge(0);
    rig.acknowledge(1);
    rig.pass(Duration::from_millis(400));
    assert_eq!(rig.pushed(), [(0, 1)]);
}

#[test]
fn the_active_controller_steps_in_at_once_for_a_controller_that_is_not_heard() {
    let mut rig = Rig::with_a_standby();
    rig.pass(Duration::from_millis(1300));
    for id in 0..2 {
        rig.heartbeat(id, 10 + u64::from(id), 3);
    }
    rig.create("orders");
    assert_eq!(rig.pushed(), [(0, 1), (1, 0)]);
    rig.acknowledge(0);
    rig.pass(Duration::from_millis(1000));
    let again = rig.pushed();
    assert!((2..=5).contains(&again.len()) && again.iter().all(|push| *push == (1, 0)), "with backoff: {again:?}");
}

#[test]
fn a_controller_that_is_not_active_pushes_to_its_own_nodes_alone() {
    let mut rig = Rig::with_a_standby();
    rig.feed(Input::LeaseHeld { holder: None, revision: 1_000 });
    assert_eq!(rig.core.role(), ControllerRole::Standby);
    let (image, previous) = (rig.core.history().image().unwrap().clone(), rig.core.history().position());
    let entry = crate::metadata::Entry {
        cluster: image.cluster,
        controller_epoch: image.controller_epoch(),
        previous,
        committed_at: WallTime(0),
        cause: "a test".into(),
        request: None,
        records: vec![crate::metadata::Record::NoOp {}],
    };
    let payload = crate::metadata::encode_change(&entry, 10_000).unwrap().remove(0);
    rig.stream.push(payload.clone());
    rig.feed(Input::Entry { version: previous.version.next(), payload });
    rig.acknowledge(0);
    rig.pass(Duration::from_millis(200));
    assert_eq!(rig.pushed(), [(0, 1)]);
}

#[test]
fn a_push_that_nobody_hears_is_repeated_when_the_node_is_heard_and_not_before() {
    let mut rig = Rig::with_nodes();
    rig.acknowledge(0);
    rig.acknowledge(1);
    rig.pushed();
    let before = rig.core.history().position();
    rig.create("orders");
    rig.acknowledge(1);
    assert_eq!(rig.pushed(), [(0, 1), (1, 1)]);
    rig.feed(Input::PushUnheard { storage: StorageId(0) });
    rig.pass(Duration::from_millis(1000));
    rig.create("more");
    rig.acknowledge(1);
    assert_eq!(rig.pushed(), [(1, 1)]);
    rig.heartbeat_at(0, 10, 3, before);
    assert_eq!(rig.pushed(), [(0, 2)], "at once, and all that it lacks");
}

impl Rig {
    /// Node `id`, which leads them, asks for itself alone in these partitions of `orders`.
    fn alter(&mut self, id: u32, partitions: &[u32]) -> Token {
        let image = self.core.history().image().unwrap();
        let topic = image.topic("orders").unwrap();
        let member = IsrMember { storage: StorageId(id), node_epoch: image.storage[&StorageId(id)].epoch };
        let asked = |number: &u32| {
            let held = image.partition(topic.id, *number).unwrap();
            IsrRequest {
                topic_id: topic.id,
                partition: *number,
                leader_epoch: held.leader_epoch,
                partition_epoch: held.epoch,
                isr: vec![member],
                recovered: false,
                settles: false,
            }
        };
        let partitions = partitions.iter().map(asked).collect();
        let request = PartitionAlter { storage: StorageId(id), node_epoch: member.node_epoch, partitions };
        self.admin("partition", "alter", admin::encode(&request))
    }

    /// For each partition of the request, the epoch that it got or why it was refused.
    fn altered(&self, token: Token) -> Vec<Result<u32, Code>> {
        let answer = self.answer(token).expect("an answer").as_ref().unwrap();
        let answer: PartitionAltered = serde_json::from_slice(answer).unwrap();
        let outcome = |outcome: IsrOutcome| match (outcome.partition_epoch, outcome.error) {
            (Some(epoch), None) => Ok(epoch.0),
            (_, error) => Err(error.unwrap().code),
        };
        answer.partitions.into_iter().map(outcome).collect()
    }
}

#[test]
fn leaders_that_ask_at_the_same_time_get_one_change_and_each_an_answer_of_its_own() {
    let mut rig = Rig::with_nodes();
    let request = r#"{"name":"orders","partitions":4}"#;
    rig.admin("topic", "create", request.into());
    let led = |rig: &Rig, id| -> Vec<u32> {
        let topic = rig.core.history().image().unwrap().topic("orders").unwrap().clone();
        (0..4).filter(|number| topic.partitions[*number as usize].leader == Some(StorageId(id))).collect()
    };
    let (zeros, ones) = (led(&rig, 0), led(&rig, 1));
    assert_eq!((zeros.len(), ones.len()), (2, 2));
    let before = rig.stream.len();
    // While a change is under way all of them wait; a request of one node for several partitions is one change in any case.
    rig.stalled = true;
    rig.create("under way");
    let first = rig.alter(0, &zeros);
    let second = rig.alter(1, &ones);
    let again = rig.alter(0, &zeros[..1]);
    let foreign = rig.alter(1, &zeros[1..]);
    rig.stalled = false;
    let (attempt, expected, payload) = rig.stalled_append.take().expect("the change that is under way");
    let result = rig.append(expected, payload);
    rig.feed(Input::Appended { attempt, result });
    assert_eq!(rig.stream.len(), before + 2, "the change under way, and one for both");
    assert_eq!((rig.altered(first), rig.altered(second)), (vec![Ok(1), Ok(1)], vec![Ok(1), Ok(1)]));
    assert_eq!(rig.altered(again), [Err(Code::InvalidUpdateVersion)], "it asked again for what had changed by then");
    assert_eq!(rig.altered(foreign), [Err(Code::NotLeaderOrFollower)]);
}

#[test]
fn a_leader_that_settles_what_it_asked_for_gets_a_new_partition_epoch_in_the_history_for_the_same_set() {
    let mut rig = Rig::with_nodes();
    rig.admin("topic", "create", r#"{"name":"orders","replicationFactor":1}"#.into());
    let partition = |rig: &Rig| rig.core.history().image().unwrap().topic("orders").unwrap().partitions[0].clone();
    let held = partition(&rig);
    let leader = held.leader.unwrap();
    let node_epoch = rig.core.history().image().unwrap().storage[&leader].epoch;
    let topic_id = rig.core.history().image().unwrap().topic("orders").unwrap().id;
    let ask = |rig: &mut Rig, settles, partition_epoch| {
        let asked = IsrRequest {
            topic_id,
            partition: 0,
            leader_epoch: held.leader_epoch,
            partition_epoch,
            isr: vec![IsrMember { storage: leader, node_epoch }],
            recovered: false,
            settles,
        };
        let request = PartitionAlter { storage: leader, node_epoch, partitions: vec![asked] };
        let token = rig.admin("partition", "alter", admin::encode(&request));
        rig.altered(token)
    };
    let before = rig.stream.len();
    assert_eq!(ask(&mut rig, false, held.epoch), [Ok(0)]);
    assert_eq!(rig.stream.len(), before, "nothing changes");
    assert_eq!(ask(&mut rig, true, held.epoch), [Ok(1)]);
    assert_eq!(rig.stream.len(), before + 1);
    let after = partition(&rig);
    assert_eq!((after.epoch.0, after.leader_epoch, after.leader), (1, held.leader_epoch, held.leader));
    assert!(after.isr().eq(held.isr()));
    assert_eq!(ask(&mut rig, true, held.epoch), [Err(Code::InvalidUpdateVersion)], "a copy of the request");
}

impl Rig {
    fn registration(number: u32, storage: Option<u32>) -> NodeRegister {
        NodeRegister {
            cluster: None,
            directory: DirectoryId(Uuid::from_u128(5_000 + u128::from(number))),
            incarnation: IncarnationId(Uuid::from_u128(6_000 + u128::from(number))),
            storage: storage.map(StorageId),
            rack: None,
            preferred: None,
            node_epoch: None,
            position: Position::default(),
            connection: connection(10),
        }
    }

    fn registers(&mut self, number: u32, storage: Option<u32>) -> Token {
        self.admin("node", "register", admin::encode(&Self::registration(number, storage)))
    }

    /// The id and the version that a registration was answered with.
    fn registered(&self, token: Token) -> Result<(u32, u64), Code> {
        let answer = self.answer(token).expect("an answer").as_ref().map_err(|error| error.code)?;
        let answer: NodeRegistered = serde_json::from_slice(answer).unwrap();
        assert_eq!((answer.node_epoch.0, answer.pairing), (answer.version.0, Some(ControllerId(0))));
        Ok((answer.storage.0, answer.version.0))
    }
}

#[test]
fn nodes_that_register_at_the_same_time_get_one_change_and_each_an_answer_of_its_own() {
    let mut rig = Rig::active();
    rig.stalled = true;
    let first = rig.registers(0, None);
    let waiting: Vec<_> = (1..500).map(|number| rig.registers(number, None)).collect();
    let wants = rig.registers(500, Some(3));
    let again = rig.registers(7, None);
    let topic = rig.admin("topic", "create", r#"{"name":"orders"}"#.into());
    let before = rig.stream.len() as u64;
    rig.stalled = false;
    let (attempt, expected, payload) = rig.stalled_append.take().expect("the first one alone");
    let result = rig.append(expected, payload);
    rig.feed(Input::Appended { attempt, result });
    assert_eq!(rig.registered(first), Ok((0, before + 1)));
    assert_eq!(rig.answer(topic).unwrap().as_ref().unwrap_err().code, Code::InvalidReplicationFactor, "in turn");
    assert_eq!(rig.stream.len() as u64, before + 2, "one for the first, and one for all that waited behind it");
    assert_eq!(rig.registered(wants), Ok((3, before + 2)), "who wants a certain id has the first choice");
    let ids: Vec<_> = waiting.iter().map(|token| rig.registered(*token).unwrap().0).collect();
    assert_eq!(ids, (4..503).collect::<Vec<_>>());
    assert_eq!(rig.registered(again), Ok((ids[6], before + 2)), "the same incarnation, asked twice");
    assert_eq!(rig.core.history().image().unwrap().storage.len(), 501);
    // Asked once more, by a retry whose answer was lost, nothing changes.
    let retry = rig.registers(7, None);
    rig.pass(Duration::from_millis(60));
    assert_eq!(rig.stream.len() as u64, before + 2);
    let answer: NodeRegistered = serde_json::from_slice(rig.answer(retry).unwrap().as_ref().unwrap()).unwrap();
    assert_eq!((answer.storage.0, answer.node_epoch.0), (ids[6], before + 2));
}

#[test]
fn in_a_large_cluster_registrations_gather_for_a_moment_and_hold_nobody_else_up() {
    let mut rig = Rig::with_nodes();
    rig.stalled = true;
    rig.create("under way");
    for number in 0..400 {
        rig.registers(number, None);
    }
    rig.stalled = false;
    let (attempt, expected, payload) = rig.stalled_append.take().unwrap();
    let result = rig.append(expected, payload);
    rig.feed(Input::Appended { attempt, result });
    let before = rig.stream.len();
    let some: Vec<_> = (400..420).map(|number| rig.registers(number, None)).collect();
    assert!(some.iter().all(|token| rig.answer(*token).is_none()) && rig.stream.len() == before);
    let deadline = rig.core.next_deadline().unwrap();
    assert!(deadline <= rig.now.monotonic + Duration::from_millis(41));
    rig.create("orders");
    assert_eq!(rig.stream.len(), before + 1, "a topic does not wait for them");
    rig.pass(Duration::from_millis(60));
    assert_eq!(rig.stream.len(), before + 2);
    let one = rig.registered(some[0]).unwrap().1;
    assert!(some.iter().all(|token| rig.registered(*token).unwrap().1 == one));
}

#[test]
fn who_waits_to_register_is_told_when_the_controller_is_no_longer_active() {
    let mut rig = Rig::active();
    rig.stalled = true;
    rig.registers(0, None);
    let waits = rig.registers(1, None);
    rig.feed(Input::Disconnected);
    assert_eq!(rig.registered(waits), Err(Code::NotController));
}

impl Rig {
    /// All of a list, in however many answers of at most `limit` bytes, and how many these were.
    fn ask_all(
        &mut self,
        noun: &str,
        verb: &str,
        mut request: serde_json::Value,
        list: &str,
        limit: usize,
    ) -> (Vec<serde_json::Value>, usize) {
        let (mut all, mut answers) = (Vec::new(), 0);
        loop {
            let token = self.admin(noun, verb, request.to_string());
            let answer = self.answer(token).unwrap().clone().unwrap();
            assert!(answer.len() <= limit, "{} bytes", answer.len());
            let mut answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
            all.append(answer[list].as_array_mut().unwrap());
            answers += 1;
            match answer.get("next") {
                Some(next) => request["from"] = next.clone(),
                None => return (all, answers),
            }
        }
    }
}

#[test]
fn what_does_not_fit_one_answer_is_answered_in_several_each_of_which_says_where_to_go_on() {
    const LIMIT: usize = 2_000;
    let mut rig = Rig::active();
    (0..20).for_each(|id| rig.register(id));
    rig.pass(Duration::from_millis(100));
    (0..20).for_each(|id| drop(rig.heartbeat(id, 10 + u64::from(id), 1)));
    rig.pass(Duration::from_millis(100));
    rig.admin("topic", "create", r#"{"name":"orders","partitions":50}"#.into());
    rig.feed(Input::MessageLimit(LIMIT));
    let mut ask = |noun: &str, verb: &str, request: serde_json::Value, list: &str, id: &str| {
        let (all, answers) = rig.ask_all(noun, verb, request, list, LIMIT);
        (all.iter().map(|one| one[id].as_u64().unwrap()).collect::<Vec<_>>(), answers)
    };
    let (partitions, answers) =
        ask("topic", "describe", serde_json::json!({ "name": "orders" }), "partitions", "partition");
    assert_eq!(partitions, (0..50).collect::<Vec<_>>());
    assert!(answers > 3, "{answers} answers");
    for (noun, verb, list) in [("node", "list", "nodes"), ("cluster", "status", "storageNodes")] {
        let (nodes, answers) = ask(noun, verb, serde_json::json!({}), list, "id");
        assert_eq!(nodes, (0..20).collect::<Vec<_>>());
        assert!(answers > 3, "{answers} answers");
    }
}

#[test]
fn a_node_on_an_older_copy_of_its_directory_leaves_the_in_sync_replicas_of_which_others_remain() {
    let mut rig = Rig::with_nodes();
    rig.create("orders");
    let registration = |rig: &Rig, incarnation: u128, node_epoch| NodeRegister {
        cluster: None,
        directory: rig.node(1).directory.unwrap(),
        incarnation: IncarnationId(Uuid::from_u128(incarnation)),
        storage: Some(StorageId(1)),
        rack: None,
        preferred: None,
        node_epoch: Some(node_epoch),
        position: rig.core.history().position(),
        connection: connection(11),
    };
    let knows = rig.node(1).epoch;
    rig.pass(Duration::from_secs(60));
    let isr = |rig: &Rig| {
        let image = rig.core.history().image().unwrap();
        image.topic("orders").unwrap().partitions.first().unwrap().isr().collect::<Vec<_>>()
    };
    let before = isr(&rig);
    assert!(before.len() > 1 && before.contains(&StorageId(1)), "all were fenced at once: {before:?}");
    let request = registration(&rig, 900, NodeEpoch(knows.0));
    let token = rig.admin("node", "register", admin::encode(&request));
    assert!(rig.answer(token).unwrap().is_ok());
    assert_eq!(isr(&rig), before, "it has what it had");
    rig.pass(Duration::from_secs(60));
    let request = registration(&rig, 901, NodeEpoch(knows.0 - 1));
    let token = rig.admin("node", "register", admin::encode(&request));
    assert!(rig.answer(token).unwrap().is_ok());
    let others: Vec<_> = before.into_iter().filter(|node| *node != StorageId(1)).collect();
    assert_eq!(isr(&rig), others, "whatever it has applied meanwhile");
}

#[test]
fn another_message_in_the_place_of_a_void_one_is_another_history_too() {
    for other in [None, Some(Bytes::from_static(b"something else"))] {
        let mut rig = Rig::active();
        let stranger = Bytes::from_static(b"a stranger's");
        rig.stream.push(stranger.clone());
        let version = Version(rig.stream.len() as u64);
        rig.feed(Input::Entry { version, payload: stranger });
        assert_eq!(rig.core.history.seen(), version);
        rig.feed(Input::Disconnected);
        let forks = other.is_some();
        if let Some(other) = other {
            *rig.stream.last_mut().unwrap() = other;
        }
        rig.feed(Input::Connected(connection(2)));
        rig.pass(Duration::from_secs(1));
        assert_eq!(matches!(rig.core.role, office::Role::Halted { .. }), forks);
    }
}

#[test]
fn what_comes_of_a_stream_that_was_not_looked_at_yet_does_not_hide_that_it_is_another() {
    let mut rig = Rig::with_nodes();
    rig.feed(Input::Disconnected);
    *rig.stream.last_mut().unwrap() = Bytes::from_static(b"another's");
    rig.stream.push(Bytes::from_static(b"on top of it"));
    let (version, payload) = (Version(rig.stream.len() as u64), rig.stream.last().unwrap().clone());
    rig.feed(Input::Entry { version, payload });
    rig.feed(Input::Connected(connection(2)));
    rig.pass(Duration::from_secs(1));
    assert!(matches!(rig.core.role, office::Role::Halted { .. }), "{:?}", rig.core.role);
}

#[test]
fn topics_and_metadata_that_do_not_fit_one_answer_are_answered_in_several() {
    const LIMIT: usize = 20_000;
    let mut rig = Rig::active();
    (0..3).for_each(|id| rig.register(id));
    rig.pass(Duration::from_millis(100));
    (0..3).for_each(|id| drop(rig.heartbeat(id, 10 + u64::from(id), 1)));
    rig.pass(Duration::from_millis(100));
    let long = "t".repeat(240);
    let names: Vec<String> = (100..250).map(|number| format!("{long}{number}")).collect();
    for name in &names {
        rig.admin("topic", "create", format!(r#"{{"name":"{name}","partitions":2}}"#));
    }
    rig.admin("topic", "create", r#"{"name":"wide","partitions":2000}"#.into());
    rig.feed(Input::MessageLimit(LIMIT));
    let (topics, answers) = rig.ask_all("topic", "list", serde_json::json!({}), "topics", LIMIT);
    let listed: Vec<_> = topics.iter().map(|topic| topic["name"].as_str().unwrap()).collect();
    assert_eq!(listed, names.iter().map(String::as_str).chain(["wide"]).collect::<Vec<_>>());
    assert!(answers > 2, "{answers} answers");
    let (lines, answers) = rig.ask_all("metadata", "show", serde_json::json!({}), "lines", LIMIT);
    assert!(answers > 2, "{answers} answers");
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let (image, position) = crate::metadata::read_snapshot(&mut text.as_bytes()).unwrap();
    assert_eq!((&image, position), (rig.core.image().unwrap(), rig.core.history.position()));
    let token = rig.admin("metadata", "show", r#"{"from":18446744073709551615}"#.into());
    let beyond: serde_json::Value = serde_json::from_slice(&rig.answer(token).unwrap().clone().unwrap()).unwrap();
    assert_eq!(beyond["lines"], serde_json::json!([]));
}

#[test]
fn an_append_that_was_stored_but_not_answered_takes_effect_once() {
    let mut rig = Rig::with_nodes();
    let before = rig.stream.len();
    rig.fates.push_back(Fate::Unanswered);
    rig.create("orders");
    assert_eq!(rig.stream.len(), before + 1);
    assert!(rig.core.history().image().unwrap().topic("orders").is_some());
}

#[test]
fn an_append_that_was_not_stored_leaves_a_no_op_in_its_place_and_is_written_behind_it() {
    let mut rig = Rig::with_nodes();
    let before = rig.stream.len();
    rig.fates.push_back(Fate::Swallowed);
    rig.create("orders");
    assert_eq!(rig.stream.len(), before + 2);
    let filler = ParsedEntry::parse(&rig.stream[before]).unwrap();
    assert_eq!(filler.records().unwrap(), vec![crate::metadata::Record::NoOp {}]);
    assert!(rig.core.history().image().unwrap().topic("orders").is_some());
}

#[test]
fn an_election_that_was_not_stored_leaves_a_void_entry_in_its_place() {
    let mut rig = Rig::new();
    rig.feed(Input::LeaseFree);
    rig.feed(Input::Connected(connection(1)));
    rig.pass(Duration::from_secs(4));
    let before = rig.stream.len();
    rig.feed(Input::Disconnected);
    rig.fates.push_back(Fate::Swallowed);
    rig.feed(Input::Connected(connection(2)));
    rig.feed(Input::LeaseFree);
    rig.pass(Duration::from_secs(1));
    assert_eq!((rig.stream.len(), rig.core.role()), (before + 2, ControllerRole::Active));
    assert_eq!(rig.core.acting_epoch(), Some(ControllerEpoch(rig.stream.len() as u64)));
    let mut replayed = History::new();
    for (version, payload) in (1..).map(Version).zip(&rig.stream) {
        replayed.offer(version, payload).unwrap();
    }
    assert_eq!(replayed.position(), rig.core.history().position());
}

#[test]
fn what_a_stranger_writes_to_the_history_is_void_and_holds_nothing_up() {
    let mut rig = Rig::with_nodes();
    let before = rig.stream.len();
    rig.fates.extend([Fate::Preceded, Fate::Preceded]);
    rig.create("orders");
    assert_eq!(rig.stream.len(), before + 3);
    assert_eq!(rig.core.role(), ControllerRole::Active);
    assert!(rig.core.history().image().unwrap().topic("orders").is_some());
}

#[test]
fn the_end_of_a_nodes_connection_fences_it_at_once_and_moves_what_it_led() {
    let mut rig = Rig::with_nodes();
    rig.create("orders");
    assert!(rig.node(0).leaders > 0);
    rig.feed(Input::ConnectionEnded(connection(10)));
    assert_eq!((rig.node(0).state, rig.node(0).leaders), (NodeState::Fenced, 0));
    assert_eq!(rig.node(1).leaders, 2);
}

#[test]
fn an_advisory_about_a_connection_that_is_not_the_last_reported_changes_nothing() {
    let mut rig = Rig::with_nodes();
    rig.heartbeat(0, 77, 3);
    rig.feed(Input::ConnectionEnded(connection(10)));
    assert_eq!(rig.node(0).state, NodeState::Active);
}

#[test]
fn a_late_heartbeat_over_an_ended_connection_revives_nobody() {
    let mut rig = Rig::with_nodes();
    rig.feed(Input::ConnectionEnded(connection(10)));
    assert!(rig.heartbeat(0, 10, 3).is_none());
    assert_eq!(rig.node(0).state, NodeState::Fenced);
    rig.heartbeat(0, 78, 4);
    rig.heartbeat(0, 78, 5);
    assert_eq!(rig.node(0).state, NodeState::Active);
}

#[test]
fn a_silent_node_is_fenced_after_its_session_and_one_that_heartbeats_is_not() {
    let mut rig = Rig::with_nodes();
    for sequence in 3..12 {
        rig.heartbeat(1, 11, sequence);
        rig.pass(Duration::from_millis(500));
    }
    assert_eq!(rig.node(0).state, NodeState::Fenced);
    assert_eq!(rig.node(1).state, NodeState::Active);
}

#[test]
fn progress_that_could_not_be_heard_is_waited_for_by_who_comes_to_office_anew() {
    let mut rig = Rig::with_nodes();
    // Node 0 is heard without the last change.
    let (behind, sequence) = (rig.core.history().position(), 3);
    rig.create("orders");
    rig.heartbeat_at(0, 10, sequence, behind);
    rig.feed(Input::Disconnected);
    rig.pass(Duration::from_secs(4));
    rig.feed(Input::Connected(connection(2)));
    rig.feed(Input::LeaseFree);
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.core.role(), ControllerRole::Active);
    assert_eq!(rig.node(0).state, NodeState::Active, "its lease may run, and what it has was not heard for long");
    rig.pass(Duration::from_secs(3));
    assert_eq!(rig.node(0).state, NodeState::Fenced);
}

#[test]
fn a_controller_that_was_silent_for_a_session_gets_its_nodes_back() {
    let mut rig = Rig::with_nodes();
    let pairings = [(StorageId(0), ControllerId(1))].into();
    let view = ServicesView { pairings, ..ServicesView::default() };
    let mut sequence = 2;
    let mut live = |rig: &mut Rig, peer: bool| {
        for _ in 0..10 {
            sequence += 1;
            rig.heartbeat(0, 10, sequence);
            rig.heartbeat(1, 11, sequence);
            if peer {
                rig.peer_heartbeat(1, sequence);
            }
            rig.pass(Duration::from_millis(500));
        }
    };
    rig.feed(Input::Services(std::sync::Arc::new(view)));
    live(&mut rig, true);
    assert_eq!(rig.node(0).pairing, Some(ControllerId(1)));
    live(&mut rig, false);
    assert_eq!(rig.node(0).pairing, Some(ControllerId(0)));
    live(&mut rig, true);
    assert_eq!(rig.node(0).pairing, Some(ControllerId(1)));
}

#[test]
fn no_lease_is_given_to_a_node_that_lacks_the_change_that_took_its_leadership() {
    let mut rig = Rig::with_nodes();
    assert!(rig.heartbeat(0, 10, 3).unwrap().lease_ms > 0);
    rig.create("orders");
    rig.feed(Input::ConnectionEnded(connection(10)));
    // It is back over another connection, and has not been unfenced yet when it first asks.
    let answer = rig.heartbeat(0, 79, 4).unwrap();
    assert_eq!((answer.lease_ms, answer.state), (0, NodeState::Fenced));
}

#[test]
fn a_lost_history_stops_the_writes_without_waiting_for_one() {
    let mut rig = Rig::with_nodes();
    rig.missing = true;
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.core.role(), ControllerRole::Halted);
    assert!(rig.serving, "whoever holds the lease answers for the state of things");
    let token = rig.create("orders");
    assert_eq!(rig.answer(token).unwrap().as_ref().unwrap_err().code, Code::HistoryLost);
}

#[test]
fn a_controller_whose_connection_ends_acts_no_more() {
    let mut rig = Rig::with_nodes();
    rig.feed(Input::Disconnected);
    assert_eq!(rig.core.acting_epoch(), None);
    assert!(!rig.serving);
}

#[test]
fn a_deposed_controller_gives_up_when_it_reads_its_successors_election() {
    let mut rig = Rig::with_nodes();
    let (image, previous) = (rig.core.history().image().unwrap().clone(), rig.core.history().position());
    let elected = crate::metadata::Record::ControllerElected {
        controller: ControllerId(1),
        directory: DirectoryId(Uuid::from_u128(50)),
        incarnation: IncarnationId(Uuid::from_u128(51)),
    };
    let entry = crate::metadata::Entry {
        cluster: image.cluster,
        controller_epoch: ControllerEpoch(previous.version.next().0),
        previous,
        committed_at: WallTime(0),
        cause: "a test".into(),
        request: None,
        records: vec![elected],
    };
    rig.stream.extend(crate::metadata::encode_change(&entry, 10_000).unwrap());
    let token = rig.create("orders");
    assert_eq!(rig.core.role(), ControllerRole::Standby);
    assert_eq!(rig.answer(token).unwrap().as_ref().unwrap_err().code, Code::Unknown);
    assert!(rig.core.history().image().unwrap().topic("orders").is_none());
}

#[test]
fn bytes_from_outside_change_nothing_and_are_answered() {
    let mut rig = Rig::with_nodes();
    let before = rig.core.history().position();
    let deep = Bytes::from("[".repeat(100_000));
    for (n, payload) in
        [Bytes::from_static(b"\xff\xfe"), Bytes::from_static(b"{}"), Bytes::new(), deep].into_iter().enumerate()
    {
        let token = Token(9000 + n as u64);
        let received_at = rig.now.monotonic;
        rig.feed(Input::Heartbeat { storage: StorageId(0), received_at, payload: payload.clone(), token });
        assert!(rig.answer(token).unwrap().is_err());
        rig.feed(Input::Ack { storage: StorageId(0), payload: payload.clone() });
        rig.feed(Input::ControllerHeartbeat { payload: payload.clone() });
        let token = Token(9100 + n as u64);
        rig.feed(Input::Fetch { payload, token });
        assert!(rig.answer(token).unwrap().is_err());
    }
    let token = rig.admin("topic", "create", r#"{"name":"x","partitons":1}"#.into());
    let error = rig.answer(token).unwrap().as_ref().unwrap_err();
    assert_eq!(error.code, Code::InvalidRequest);
    assert!(error.message.contains("partitons"), "{error}");
    assert_eq!(rig.core.history().position(), before);
}

#[test]
fn what_many_nodes_ask_for_at_once_is_one_change() {
    const NODES: u32 = 200;
    let mut rig = Rig::active();
    let begin = rig.stream.len();
    (0..NODES).for_each(|id| rig.register(id));
    rig.pass(Duration::from_millis(100));
    let before = rig.stream.len();
    assert!(before - begin < NODES as usize / 4, "{} changes to register them", before - begin);
    for id in 0..NODES {
        rig.heartbeat(id, 10 + u64::from(id), 1);
    }
    rig.pass(Duration::from_millis(100));
    assert!((0..NODES).all(|id| rig.node(id).state == NodeState::Active));
    let changes = rig.stream.len() - before;
    assert!(changes < 10, "{changes} changes for {NODES} nodes");
}

#[test]
fn a_history_is_followed_on_only_once_its_last_message_is_seen_to_be_the_streams() {
    let mut rig = Rig::with_nodes();
    rig.feed(Input::Disconnected);
    // Another controller's entry stands where this one's last was, and the question for it is not answered.
    *rig.stream.last_mut().unwrap() = Bytes::from_static(b"another's");
    rig.deaf = true;
    rig.feed(Input::Connected(connection(2)));
    rig.feed(Input::LeaseFree);
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.core.role(), ControllerRole::Starting);
    rig.deaf = false;
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.core.role(), ControllerRole::Halted);
}

#[test]
fn a_history_that_is_lost_again_before_its_restorer_is_elected_can_be_restored_again() {
    let mut rig = Rig::with_nodes();
    rig.missing = true;
    rig.pass(Duration::from_secs(2));
    let source = rig.core.history().position();
    let restore = admin::encode(&admin::MetadataRestore { confirm: Some(source) });
    rig.admin("metadata", "restore", restore);
    let made = Ok(crate::metadata::SnapshotRef { version: Version(1), digest: source.digest, bytes: 1 });
    // The election on top of it finds no stream any more.
    rig.fates.push_back(Fate::Swallowed);
    rig.feed(Input::Recreated(made));
    rig.pass(Duration::from_secs(10));
    assert_eq!(rig.core.role(), ControllerRole::Halted);
    let token = rig.admin("metadata", "restore", String::new());
    let plan: admin::RestorePlan = serde_json::from_slice(rig.answer(token).unwrap().as_ref().unwrap()).unwrap();
    assert!(!plan.done);
}

#[test]
fn the_late_answer_to_an_append_that_was_given_up_is_not_taken_for_that_of_the_no_op_in_its_place() {
    let mut rig = Rig::with_nodes();
    let token = rig.create("first");
    assert!(rig.answer(token).is_none(), "it waits for the nodes");
    // The append is not answered, and its place is found empty; then it lands after all, before the no-op.
    rig.fates.extend([Fate::Held, Fate::Held]);
    rig.create("orders");
    rig.pass(Duration::from_secs(2));
    let [(first, _, payload), (second, ..)] = &rig.held[..] else { panic!("{:?}", rig.held) };
    let (first, second) = (*first, *second);
    rig.stream.push(payload.clone());
    rig.feed(Input::Appended { attempt: first, result: AppendResult::Stored });
    rig.feed(Input::Appended { attempt: second, result: AppendResult::Conflict });
    assert!(rig.core.history().image().unwrap().topic("orders").is_some());
    let mut replayed = History::new();
    for (version, payload) in (1..).map(Version).zip(&rig.stream) {
        replayed.offer(version, payload).unwrap();
    }
    assert_eq!(replayed.position(), rig.core.history().position());
}

#[test]
fn who_lost_a_leadership_before_this_process_began_gets_no_lease_before_it_knows() {
    let mut rig = Rig::with_nodes();
    let before = rig.core.history().position();
    rig.create("orders");
    let mut again = Rig::new();
    again.stream = rig.stream.clone();
    let me = Identity { incarnation: IncarnationId(Uuid::from_u128(9)), ..rig.core.me };
    again.core = Controller::new(me, settings(), rig.core.history().clone(), None);
    again.feed(Input::LeaseFree);
    again.feed(Input::Connected(connection(7)));
    again.pass(Duration::from_millis(100));
    assert_eq!(again.core.role(), ControllerRole::Active);
    assert_eq!(again.heartbeat_at(0, 10, 3, before).unwrap().lease_ms, 0);
    assert!(again.heartbeat(0, 10, 4).unwrap().lease_ms > 0);
}

#[test]
fn heartbeats_that_wait_in_a_busy_controllers_queue_are_heard_before_silence_counts() {
    let mut rig = Rig::with_nodes();
    for sequence in 3..8 {
        rig.heartbeat(1, 11, sequence);
        rig.pass(Duration::from_millis(500));
    }
    // Busy for a second, it looks at the time first, and only then at what has come meanwhile.
    rig.now.monotonic = rig.now.monotonic + Duration::from_secs(1);
    rig.feed(Input::Tick);
    assert_eq!(rig.node(0).state, NodeState::Active);
    rig.heartbeat(0, 10, 3);
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.node(0).state, NodeState::Active);
}

#[test]
fn who_lost_a_leadership_before_it_was_first_heard_gets_no_lease_before_it_knows() {
    let mut rig = Rig::with_nodes();
    rig.create("orders");
    let (followed, before) = (rig.core.history().clone(), rig.core.history().position());
    // Another controller does not hear the nodes, and only reads that node 0 was fenced and unfenced.
    rig.feed(Input::ConnectionEnded(connection(10)));
    rig.heartbeat(0, 79, 4);
    rig.heartbeat(0, 79, 5);
    assert_eq!(rig.node(0).state, NodeState::Active);
    let mut other = Rig::new();
    other.stream = rig.stream[..before.version.0 as usize].to_vec();
    let me = Identity { incarnation: IncarnationId(Uuid::from_u128(9)), ..rig.core.me };
    other.core = Controller::new(me, settings(), followed, None);
    other.feed(Input::Connected(connection(7)));
    other.stream = rig.stream.clone();
    for (version, payload) in
        (1..).map(Version).zip(rig.stream.clone()).filter(|(version, _)| *version > before.version)
    {
        other.feed(Input::Entry { version, payload });
    }
    other.feed(Input::LeaseFree);
    other.pass(Duration::from_millis(100));
    assert_eq!(other.core.role(), ControllerRole::Active);
    assert_eq!(other.heartbeat_at(0, 80, 6, before).unwrap().lease_ms, 0);
    assert!(other.heartbeat(0, 80, 7).unwrap().lease_ms > 0);
}
