//! What goes into a storage node's core and what comes out of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::metadata::{Image, Message};
use crate::types::{
    ClusterId, Connection, ControllerEpoch, ControllerId, DirectoryId, IncarnationId, LeaderEpoch, NodeEpoch,
    PartitionEpoch, PartitionId, Position, StorageId, TopicId,
};
use crate::wire::admin::{NodeRegister, PartitionAlter};
use crate::wire::{FetchRequest, Health, Heartbeat, PushAck};

/// Who this process is, as its data directory and its command line say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    pub directory: DirectoryId,
    pub incarnation: IncarnationId,
    /// The id that the directory is bound to, or else the one that is asked for; None: the controller gives one.
    pub storage: Option<StorageId>,
    /// The cluster that the directory is bound to. None: it never joined one, and `storage` is a wish.
    pub cluster: Option<ClusterId>,
    /// The id that it would have where `storage` is none, if services.json lists it.
    pub preferred: Option<StorageId>,
    /// The last node epoch that the directory was given.
    pub node_epoch: Option<NodeEpoch>,
    pub rack: Option<Arc<str>>,
}

/// The settings that the core decides by.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    pub heartbeat_interval: Duration,
    /// How long a shutdown waits until others have taken over what this node leads.
    pub drain_timeout: Duration,
    /// After how long an answer is no longer waited for.
    pub request_timeout: Duration,
    pub retry_min: Duration,
    pub retry_max: Duration,
    /// No lease is longer, whatever an answer says.
    pub lease_max: Duration,
    /// The most partitions of one request for in-sync replicas.
    pub isr_batch: usize,
    /// The most bytes of such a request.
    pub request_max_bytes: usize,
    /// The most bytes of applied changes that may wait for the disk; pushes beyond that go unacknowledged.
    pub unsaved_max_bytes: usize,
    /// Where the jitter of retries begins: different for each process.
    pub jitter_seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(500),
            drain_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(2),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(2),
            lease_max: Duration::from_secs(60),
            isr_batch: 1_000,
            request_max_bytes: 512 << 10,
            unsaved_max_bytes: 64 << 20,
            jitter_seed: 0,
        }
    }
}

/// Names a message whose sender waits for an answer. The shell gives them out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// Names a request of the core's, so that its answer is not taken for another's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Call(pub u64);

/// Why a request has no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallError {
    /// Nobody subscribes to the subject.
    NoResponders,
    /// No answer came in time, or the connection was lost: it may have taken effect.
    Timeout,
}

/// What a fetch was answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FetchReply {
    /// A [`crate::wire::FetchAnswer`], or an error.
    Answer(Bytes),
    /// A piece of a snapshot, with what the header `Dmq-Chunk` said.
    Chunk { header: Bytes, bytes: Bytes },
}

/// A leadership, with the epoch in which it is held.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Leadership {
    pub topic: TopicId,
    pub partition: PartitionId,
    pub leader_epoch: LeaderEpoch,
}

/// A partition, by its topic's id: one that was deleted and created anew is another.
pub type Place = (TopicId, PartitionId);

/// Who this node is in its present incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    pub cluster: ClusterId,
    pub storage: StorageId,
    pub node_epoch: NodeEpoch,
}

/// A storage node as the metadata has it: only who is active, in this incarnation, can be in sync.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    pub node_epoch: NodeEpoch,
    pub active: bool,
}

/// What the metadata on this node's disk says of a partition of which it holds a replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assignment {
    pub leader: Option<StorageId>,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    pub isr: Vec<StorageId>,
    pub replicas: Vec<StorageId>,
    pub min_insync: usize,
    /// Its leader came from an unclean election, and is to say that it has recovered.
    pub recovering: bool,
}

/// A replica that this node holds no longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unassigned {
    pub place: Place,
    /// Somebody deleted the topic, or gave the replica to another node. Otherwise the history that is followed now does not know
    /// the topic: the records may be all that is left of it.
    pub is_deliberate: bool,
}

/// What a leader would have the controller make of its in-sync replicas.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InSyncWish {
    pub place: Place,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    pub members: Vec<(StorageId, NodeEpoch)>,
    /// Change nothing but the partition epoch.
    pub settles: bool,
    /// The leader has recovered from an unclean election.
    pub recovered: bool,
}

impl InSyncWish {
    /// What became of it.
    pub fn outcome(&self, granted: bool) -> InSyncOutcome {
        let Self { place, leader_epoch, partition_epoch, .. } = *self;
        InSyncOutcome { place, leader_epoch, on_top_of: partition_epoch, granted }
    }
}

/// What became of a wish that was asked of the controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InSyncOutcome {
    pub place: Place,
    pub leader_epoch: LeaderEpoch,
    pub on_top_of: PartitionEpoch,
    /// False where it was refused, or nothing is known.
    pub granted: bool,
}

/// A step of the history as the disk keeps it: a change, or versions that changed nothing (no messages).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    /// Where the history stands after it.
    pub position: Position,
    /// The highest controller epoch up to there.
    pub controller_epoch: ControllerEpoch,
    pub messages: Vec<Message>,
}

impl Applied {
    pub fn bytes(&self) -> usize {
        self.messages.iter().map(|message| message.payload.len()).sum()
    }
}

#[derive(Clone, Debug)]
pub enum Input {
    /// The most bytes of one request that the server takes which the connection leads to. It comes before
    /// [`Input::Connected`] and replaces [`Settings::request_max_bytes`].
    MessageLimit(usize),
    /// The connection to NATS is up. Also after a reconnect, with the new connection; every subscription is in place.
    Connected(Connection),
    Disconnected,
    /// Time has passed. Needed at [`super::StorageCore::next_deadline`], harmless at any other time.
    Tick,
    /// The answer to [`Effect::Subscribe`]: what is published from now on is received.
    Subscribed(StorageId),
    /// The answer to [`Effect::Register`]: the body, be it an error's.
    RegisterAnswer {
        call: Call,
        result: Result<Bytes, CallError>,
    },
    /// The answer to the [`Effect::SendHeartbeat`] with this sequence.
    HeartbeatAnswer {
        sequence: u64,
        result: Result<Bytes, CallError>,
    },
    /// A message on this node's push subject.
    Push {
        payload: Bytes,
        token: Token,
    },
    /// The answer to [`Effect::Fetch`].
    FetchAnswer {
        call: Call,
        result: Result<FetchReply, CallError>,
    },
    /// The answer to [`Effect::RequestIsr`].
    IsrAnswer {
        call: Call,
        result: Result<Bytes, CallError>,
    },
    /// All of the last [`Effect::Persist`] is on the disk.
    Persisted(Position),
    /// The disk took nothing of the last [`Effect::Persist`] or [`Effect::InstallSnapshot`]. `fatal`: it never will in this
    /// process.
    PersistFailed {
        words: String,
        fatal: bool,
    },
    /// [`Effect::InstallSnapshot`] is done: the snapshot alone is on the disk, and this is what it holds.
    SnapshotInstalled {
        image: Box<Image>,
        position: Position,
    },
    /// The pieces of [`Effect::InstallSnapshot`] are not that snapshot. The disk is as it was.
    SnapshotUnusable {
        words: String,
    },
    /// Ask the controller for these in-sync replicas. Each is answered by one [`Effect::InSyncAnswers`], unless a newer wish
    /// for the same partition replaced it.
    InSyncWishes(Vec<InSyncWish>),
    /// A fresh measurement. What the core itself knows, it fills in.
    Health(Health),
    /// The services file, hence the subjects, changed.
    ServicesChanged,
    /// The process shall end (SIGTERM). The second one ends it at once.
    Shutdown,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Write into the data directory which node of which cluster this is, and its epoch, before any later effect.
    Bind {
        cluster: ClusterId,
        storage: StorageId,
        node_epoch: NodeEpoch,
    },
    /// Subscribe to this node's push subject, unless it is already, then say [`Input::Subscribed`].
    Subscribe {
        storage: StorageId,
    },
    /// Send the admin request `node.register`.
    Register {
        call: Call,
        request: NodeRegister,
    },
    /// Send a heartbeat at once, or not at all: its lease counts from now.
    SendHeartbeat(Box<Heartbeat>),
    /// Write these to the disk, in order, with one sync; then say [`Input::Persisted`] with the last position. At most one
    /// Persist or InstallSnapshot is under way.
    Persist {
        changes: Vec<Applied>,
    },
    /// Read these pieces as the snapshot at `position` of `cluster`, replace what the disk has by it, then say
    /// [`Input::SnapshotInstalled`]. The disk goes on knowing the highest controller epoch.
    InstallSnapshot {
        cluster: ClusterId,
        position: Position,
        controller_epoch: ControllerEpoch,
        pieces: Vec<Bytes>,
    },
    /// Publish this on the node's ack subject, and as the answer to `token` where that has another reply subject.
    Acknowledge {
        token: Option<Token>,
        ack: Box<PushAck>,
    },
    /// Send this to the controller's fetch subject.
    Fetch {
        call: Call,
        controller: ControllerId,
        request: FetchRequest,
    },
    /// Answer a fetch of somebody else's from this node's disk.
    ServeFetch {
        token: Token,
        request: FetchRequest,
    },
    /// Send the admin request `partition.alter`.
    RequestIsr {
        call: Call,
        request: PartitionAlter,
    },
    /// Whether the node may serve what it leads. False takes effect at once, before anything else.
    MayLead(bool),
    /// What the node leads by the metadata on its disk, as it changed. It serves it only while [`Effect::MayLead`].
    Leads {
        gained: Vec<Leadership>,
        lost: Vec<Leadership>,
    },
    /// Who this node is. It comes before any [`Effect::Replicas`].
    Member(Member),
    /// All storage nodes of the metadata, as they changed.
    Peers(BTreeMap<StorageId, Peer>),
    /// The replicas that this node holds, as they changed. A leadership that was lost is told at once, as an assignment without a
    /// leader; everything else once it is on the disk.
    Replicas {
        assigned: Vec<(Place, Assignment)>,
        unassigned: Vec<Unassigned>,
    },
    /// The answers to [`Input::InSyncWishes`].
    InSyncAnswers(Vec<InSyncOutcome>),
    Log {
        level: Level,
        words: String,
    },
    /// The process ends, with this exit status. Nothing follows.
    Exit {
        words: String,
        code: u8,
    },
}
