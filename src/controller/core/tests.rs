//! The controller's core before a stream, a lease and storage nodes that the test plays.

mod founding;
mod history;
mod liveness;
mod outside;
mod pushing;
mod requests;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::*;
use crate::metadata::{NodeState, ParsedEntry};
use crate::types::{ClusterId, DirectoryId, IncarnationId, NodeEpoch, StorageId, TopicId, Version};
use crate::wire::admin::{
    self, IsrMember, IsrOutcome, IsrRequest, NodeRegister, NodeRegistered, PartitionAlter, PartitionAltered,
    TopicAlter, TopicCreate,
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
    /// The stream was made anew, and ends here, or so many messages behind.
    made_anew: Option<Version>,
    behind: u64,
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
        leader_balance: Some(Duration::from_secs(10)),
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
            made_anew: None,
            behind: 0,
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
                let head = match self.made_anew {
                    Some(base) => {
                        let last = Version(base.0 + self.behind);
                        Head::Present { first: base.next(), last, snapshot: true }
                    }
                    None if self.missing => Head::Missing,
                    None => Head::Present { first: Version(1), last, snapshot: true },
                };
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
            | Effect::ListSnapshots
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
    /// A controller whose history is lost, and brought back from what it has itself.
    fn restoring() -> (Self, Position) {
        let mut rig = Self::with_nodes();
        rig.missing = true;
        rig.pass(Duration::from_secs(2));
        let source = rig.core.history().position();
        let restore = admin::encode(&admin::MetadataRestore { confirm: Some(source) });
        rig.admin("metadata", "restore", restore);
        rig.feed(Input::SnapshotsListed(Ok(Version::ZERO)));
        (rig, source)
    }

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
