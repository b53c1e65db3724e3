//! A ledger that writes what controllers would have written, and a node under test.

use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::super::*;
use crate::metadata::{Entry, NodeState, Offered, PartitionChange, Record, encode_change};
use crate::types::*;
use crate::wire::admin::NodeRegistered;
use crate::wire::{
    AckOutcome, FetchAnswer, Heartbeat, HeartbeatAnswer, PairingField, Push, PushAck, PushEntry, WireMessage,
};

pub const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(1));
pub const ME: StorageId = StorageId(0);
pub const OTHER: StorageId = StorageId(1);
pub const TOPIC: TopicId = TopicId(Uuid::from_u128(77));

pub fn directory(storage: StorageId) -> DirectoryId {
    DirectoryId(Uuid::from_u128(100 + u128::from(storage.0)))
}

pub fn incarnation(storage: StorageId) -> IncarnationId {
    IncarnationId(Uuid::from_u128(200 + u128::from(storage.0)))
}

pub fn connection(client: u64) -> Connection {
    Connection { server: "NA".into(), client }
}

pub fn ms(millis: u64) -> Monotonic {
    Monotonic(millis * 1000)
}

/// The history as the controllers have it.
#[derive(Clone, Default)]
pub struct Ledger {
    pub history: History,
    pub messages: Vec<(Version, Bytes)>,
}

impl Ledger {
    /// Founded, and controller 0 elected, in version 1.
    pub fn founded() -> Self {
        let mut ledger = Self::default();
        let elected = elected(0);
        ledger.write(ControllerEpoch(1), vec![Record::ClusterFounded { cluster: CLUSTER }, elected], usize::MAX);
        ledger
    }

    /// Founded, with this node registered (2), paired with controller 0 (3), and active (4); then the same of another (5-7).
    pub fn with_nodes() -> Self {
        let mut ledger = Self::founded();
        for node in [ME, OTHER] {
            let (directory, incarnation) = (directory(node), incarnation(node));
            let epoch = NodeEpoch(ledger.history.seen().0 + 1);
            ledger.commit(vec![Record::StorageRegistered { storage: node, directory, incarnation, rack: None }]);
            ledger.commit(vec![Record::PairingChanged { storage: node, controller: Some(ControllerId(0)) }]);
            ledger.state(node, epoch, NodeState::Active);
        }
        ledger
    }

    pub fn position(&self) -> Position {
        self.history.position()
    }

    pub fn commit(&mut self, records: Vec<Record>) -> Position {
        self.write(self.history.controller_epoch(), records, usize::MAX)
    }

    pub fn commit_split(&mut self, records: Vec<Record>, limit: usize) -> Position {
        self.write(self.history.controller_epoch(), records, limit)
    }

    pub fn elect(&mut self, controller: u32) -> Position {
        let epoch = ControllerEpoch(self.history.seen().0 + 1);
        self.write(epoch, vec![elected(controller)], usize::MAX)
    }

    pub fn state(&mut self, storage: StorageId, node_epoch: NodeEpoch, state: NodeState) -> Position {
        self.commit(vec![Record::StorageStateChanged { storage, node_epoch, state }])
    }

    pub fn topic(&mut self, replicas: Vec<Vec<StorageId>>) -> Position {
        let name = TopicName::new("orders").unwrap();
        let replicas = replicas.into_iter().map(Into::into).collect();
        self.commit(vec![Record::TopicCreated { topic_id: TOPIC, name, config: Default::default(), replicas }])
    }

    pub fn partition(&mut self, change: PartitionChange) -> Position {
        self.commit(vec![Record::PartitionsChanged { topic_id: TOPIC, changes: vec![change] }])
    }

    /// A message that is none of ours takes a version.
    pub fn garbage(&mut self) -> Position {
        let version = self.history.seen().next();
        assert!(matches!(self.history.offer(version, &Bytes::from_static(b"hello")), Ok(Offered::Void(_))));
        self.position()
    }

    fn write(&mut self, controller_epoch: ControllerEpoch, records: Vec<Record>, limit: usize) -> Position {
        let entry = Entry {
            cluster: CLUSTER,
            controller_epoch,
            previous: self.position(),
            committed_at: WallTime(1),
            cause: "a test".into(),
            request: None,
            records,
        };
        for message in encode_change(&entry, limit).unwrap() {
            let version = self.history.seen().next();
            self.history.offer(version, &message).unwrap();
            self.messages.push((version, message));
        }
        assert_eq!(self.history.position().version, self.history.seen(), "the last change is void");
        self.position()
    }

    pub fn entries(&self, after: Version, to: Version) -> Vec<PushEntry> {
        let wanted = self.messages.iter().filter(|(version, _)| *version > after && *version <= to);
        let entry = |(version, payload): &(Version, Bytes)| PushEntry {
            version: *version,
            entry: RawValue::from_string(String::from_utf8(payload.to_vec()).unwrap()).unwrap(),
        };
        wanted.map(entry).collect()
    }

    /// From there to the head, as controller 0 pushes it.
    pub fn push(&self, base: Position) -> Push {
        let pairing = self.history.image().and_then(|image| image.storage.get(&ME));
        Push {
            cluster: CLUSTER,
            controller: pairing.and_then(|node| node.pairing).unwrap_or(ControllerId(0)),
            controller_epoch: self.history.controller_epoch(),
            storage: ME,
            pairing_epoch: pairing.map_or(PairingEpoch(0), |node| node.pairing_epoch),
            base,
            position: self.position(),
            entries: self.entries(base.version, self.position().version),
        }
    }

    pub fn fetch_answer(&self, from: Position) -> FetchAnswer {
        FetchAnswer {
            cluster: CLUSTER,
            controller: ControllerId(0),
            controller_epoch: self.history.controller_epoch(),
            head: self.position(),
            position: self.position(),
            entries: self.entries(from.version, self.position().version),
            snapshot: None,
            error: None,
        }
    }
}

fn elected(controller: u32) -> Record {
    let uuid = Uuid::from_u128(300 + u128::from(controller));
    Record::ControllerElected {
        controller: ControllerId(controller),
        directory: DirectoryId(uuid),
        incarnation: IncarnationId(uuid),
    }
}

pub struct Node {
    pub core: StorageCore,
    pub now: Monotonic,
    /// What its replicas were told.
    pub told: Vec<Effect>,
}

impl Node {
    /// A process on a directory that is bound, and whose disk has this history.
    pub fn bound(history: History) -> Self {
        let identity = Identity {
            directory: directory(ME),
            incarnation: incarnation(ME),
            storage: Some(ME),
            cluster: Some(CLUSTER),
            preferred: None,
            node_epoch: None,
            rack: None,
        };
        let epoch = history.controller_epoch();
        Self { core: StorageCore::new(identity, Settings::default(), history, epoch), now: ms(1000), told: Vec::new() }
    }

    /// A process that never joined a cluster.
    pub fn fresh() -> Self {
        let mut node = Self::bound(History::new());
        node.core.identity.cluster = None;
        node.core.identity.storage = None;
        node
    }

    /// Connected, registered, subscribed, with the ledger's history on its disk and a lease of 3 s.
    pub fn running(ledger: &Ledger) -> Self {
        let mut node = Self::registered(ledger);
        node.heartbeat_now();
        node.answered(ledger, |_| {});
        assert!(node.core.may_lead(node.now));
        node
    }

    /// As `running`, but without any answer to a heartbeat.
    pub fn registered(ledger: &Ledger) -> Self {
        let mut node = Self::bound(ledger.history.clone());
        node.take(Input::Connected(connection(1)));
        node.take(Input::Subscribed(ME));
        node.register_answered(ledger);
        node
    }

    pub fn register_answered(&mut self, ledger: &Ledger) -> Vec<Effect> {
        let image = ledger.history.image();
        let node_epoch = image.and_then(|image| image.storage.get(&ME)).map_or(NodeEpoch(2), |node| node.epoch);
        let version = ledger.position().version.max(Version(2));
        let body = NodeRegistered { cluster: CLUSTER, storage: ME, node_epoch, pairing: None, version };
        let call = Call(self.core.calls);
        self.take(Input::RegisterAnswer { call, result: Ok(serde_json::to_vec(&body).unwrap().into()) })
    }

    /// Everything but the log, and what the replicas are told.
    pub fn take(&mut self, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        self.core.handle(self.now, input, &mut out);
        out.retain(|effect| !matches!(effect, Effect::Log { .. }));
        let for_replicas = |effect: &Effect| {
            matches!(effect, Effect::Member(_) | Effect::Peers(_) | Effect::Replicas { .. } | Effect::InSyncAnswers(_))
        };
        let (told, rest) = out.into_iter().partition(for_replicas);
        self.told = told;
        rest
    }

    pub fn after(&mut self, millis: u64, input: Input) -> Vec<Effect> {
        self.now = self.now + Duration::from_millis(millis);
        self.take(input)
    }

    pub fn push(&mut self, push: &Push) -> Vec<Effect> {
        self.take(Input::Push { payload: push.encode(), token: Token(9) })
    }

    /// Pushes, and lets the disk take it.
    pub fn pushed(&mut self, push: &Push) -> Vec<Effect> {
        let mut effects = self.push(push);
        effects.extend(self.saved());
        effects
    }

    pub fn saved(&mut self) -> Vec<Effect> {
        self.take(Input::Persisted(self.core.history.position()))
    }

    pub fn heartbeat_now(&mut self) -> Heartbeat {
        self.now = self.now + Duration::from_millis(500);
        let effects = self.take(Input::Tick);
        heartbeat(&effects).expect("a heartbeat is due every interval")
    }

    /// The active controller answers the last heartbeat.
    pub fn answered(&mut self, ledger: &Ledger, alter: impl FnOnce(&mut HeartbeatAnswer)) -> Vec<Effect> {
        let answer = self.answer(ledger, alter);
        self.take(answer)
    }

    pub fn answer(&self, ledger: &Ledger, alter: impl FnOnce(&mut HeartbeatAnswer)) -> Input {
        let image = ledger.history.image().unwrap();
        let node = image.storage.get(&ME).cloned();
        let sequence = self.core.session.last_sequence();
        let mut answer = HeartbeatAnswer {
            cluster: CLUSTER,
            controller: image.controller.as_ref().unwrap().id,
            controller_epoch: image.controller_epoch(),
            position: ledger.position(),
            incarnation: incarnation(ME),
            sequence,
            node_epoch: node.as_ref().map_or(NodeEpoch(0), |node| node.epoch),
            state: node.as_ref().map_or(NodeState::Fenced, |node| node.state),
            pairing: PairingField {
                controller: node.as_ref().and_then(|node| node.pairing),
                epoch: node.as_ref().map_or(PairingEpoch(0), |node| node.pairing_epoch),
            },
            lease_ms: 3000,
            shutdown_granted: false,
            drain_impossible: false,
            error: None,
        };
        alter(&mut answer);
        Input::HeartbeatAnswer { sequence, result: Ok(answer.encode()) }
    }
}

pub fn heartbeat(effects: &[Effect]) -> Option<Heartbeat> {
    effects.iter().find_map(|effect| match effect {
        Effect::SendHeartbeat(heartbeat) => Some((**heartbeat).clone()),
        _ => None,
    })
}

/// What a registered node of `ledger` acknowledges with, and where its disk stands.
pub fn ack(token: Option<u64>, outcome: AckOutcome, position: Position, pushed: Position, epoch: u64) -> Effect {
    let ack = PushAck {
        cluster: Some(CLUSTER),
        storage: ME,
        directory: directory(ME),
        incarnation: incarnation(ME),
        node_epoch: NodeEpoch(2),
        outcome,
        position,
        controller_epoch: ControllerEpoch(epoch),
        pushed,
        error: None,
    };
    Effect::Acknowledge { token: token.map(Token), ack: Box::new(ack) }
}

/// The acknowledgement among the effects, and what it says.
pub fn outcome(effects: &[Effect]) -> Option<(AckOutcome, Position)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Acknowledge { ack, .. } => Some((ack.outcome, ack.position)),
        _ => None,
    })
}

pub fn exits(effects: &[Effect]) -> Option<u8> {
    effects.iter().find_map(|effect| match effect {
        Effect::Exit { code, .. } => Some(*code),
        _ => None,
    })
}
