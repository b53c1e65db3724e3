//! What goes into the controller's core and what comes out of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::metadata::{Change, Image, SnapshotRef};
use crate::types::{
    ClusterId, Connection, ControllerId, DirectoryId, IncarnationId, Monotonic, Position, StorageId, TopicId, Version,
    WallTime,
};
use crate::wire::{ControllerHeartbeat, FetchRequest, WireError};

/// Who this process is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    pub controller: ControllerId,
    pub directory: DirectoryId,
    pub incarnation: IncarnationId,
    /// Drawn at start, for the cluster that this process may found.
    pub founding: ClusterId,
}

/// The settings that the core decides by.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    pub heartbeat_interval: Duration,
    /// After how long a silence a storage node is fenced.
    pub session_timeout: Duration,
    /// How long the controllers' lease lasts without a renewal.
    pub lease: Duration,
    /// How long an admin answer waits for the storage nodes by default.
    pub admin_wait: Duration,
    pub push_retry_min: Duration,
    pub push_retry_max: Duration,
    /// The most bytes of entries in one push.
    pub push_max_bytes: usize,
    /// How often the head of the stream is asked for, unless something gives reason to.
    pub history_probe: Duration,
    /// How often leaderships go back to the preferred replicas. None: never.
    pub leader_balance: Option<Duration>,
    pub snapshot_every_entries: u64,
    pub snapshot_every_bytes: u64,
    /// The most bytes of one message of the history, below NATS's `max_payload`.
    pub message_limit: usize,
}

/// What services.json says, as far as the core needs it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServicesView {
    pub pairings: BTreeMap<StorageId, ControllerId>,
    pub storage: BTreeSet<StorageId>,
    pub controllers: BTreeSet<ControllerId>,
    /// What it says that a running process cannot follow, in words, for the cluster's status.
    pub problems: Vec<String>,
}

/// Names a request that waits for its answer. The shell gives them out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// What the lease's key says: who is active, or tries to be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Holder {
    pub controller: ControllerId,
    pub incarnation: IncarnationId,
    pub connection: Connection,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Head {
    /// There is no such stream.
    Missing,
    Present {
        /// The first sequence that the stream still has; one beyond `last` where it is empty.
        first: Version,
        last: Version,
        /// Whether the snapshot that was asked for with it is in the object store; true where none was asked for.
        snapshot: bool,
    },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AppendResult {
    /// At the version after the expected one.
    Stored,
    /// The stream's last sequence was not the expected one.
    Conflict,
    /// No answer: it may be stored, now or later.
    Unknown,
    /// The server refused it, and it is not stored.
    Refused(String),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeaseResult {
    /// It is ours, at this revision.
    Ours(u64),
    /// Somebody else has it.
    Lost,
    /// No answer.
    Unknown,
}

#[derive(Clone, Debug)]
pub enum Input {
    /// The most bytes of one message that the server takes which the connection leads to, with room for an envelope. It comes
    /// before [`Input::Connected`] and replaces [`Settings::message_limit`].
    MessageLimit(usize),
    /// The connection to NATS is up and every subscription is in place.
    Connected(Connection),
    Disconnected,
    /// Time has passed. Needed at [`super::Controller::next_deadline`], harmless at any other time.
    Tick,
    /// A message of the history, as the follower reads it, in order.
    Entry {
        version: Version,
        payload: Bytes,
    },
    /// The answer to [`Effect::AskHead`].
    Head {
        asked_at: Monotonic,
        head: Option<Head>,
    },
    /// The answer to [`Effect::Append`].
    Appended {
        attempt: u64,
        result: AppendResult,
    },
    /// The answer to [`Effect::Read`]: the message in that place, None where it is empty. `Err` where nobody answered.
    Read {
        version: Version,
        result: Result<Option<Bytes>, ()>,
    },
    /// The answer to [`Effect::LoadSnapshot`] or [`Effect::Gather`].
    Loaded(Result<Box<(Image, Position)>, String>),
    /// The lease's key, as watched.
    LeaseHeld {
        holder: Option<Holder>,
        revision: u64,
    },
    LeaseFree,
    /// The answer to [`Effect::TakeLease`] or [`Effect::RenewLease`], with when it was sent.
    LeaseAnswer {
        sent_at: Monotonic,
        result: LeaseResult,
    },
    /// The client's side ended this connection.
    ConnectionEnded(Connection),
    /// A storage node's heartbeat on the subject of `storage`.
    Heartbeat {
        storage: StorageId,
        received_at: Monotonic,
        payload: Bytes,
        token: Token,
    },
    ControllerHeartbeat {
        payload: Bytes,
    },
    /// A message on a subject that is no service's, though it looks like one: `dmq.heartbeat.abc`.
    Stray {
        subject: String,
        token: Token,
    },
    /// A push acknowledgement on the subject of `storage`.
    Ack {
        storage: StorageId,
        payload: Bytes,
    },
    /// Nobody listens on the push subject of `storage`.
    PushUnheard {
        storage: StorageId,
    },
    /// An admin request. `fresh_id` is a UUID drawn for it, should it create something.
    Admin {
        noun: String,
        verb: String,
        payload: Bytes,
        token: Token,
        fresh_id: TopicId,
    },
    Fetch {
        payload: Bytes,
        token: Token,
    },
    /// Everything up to here is on this controller's disk.
    Persisted(Position),
    /// This controller's disk failed: it cannot go on.
    PersistFailed(String),
    /// The answer to [`Effect::WriteSnapshot`]: written, read back and verified.
    SnapshotWritten(Result<SnapshotRef, String>),
    /// The answer to [`Effect::ListSnapshots`]: the version of the newest, 0 if there is none.
    SnapshotsListed(Result<Version, String>),
    /// The answer to [`Effect::Recreate`].
    Recreated(Result<SnapshotRef, String>),
    Services(Arc<ServicesView>),
    /// The process shall end: give the lease back.
    Shutdown,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Clone, Debug)]
pub enum Effect {
    /// Ask the stream's leader for the head, and whether this snapshot is in the object store.
    AskHead {
        snapshot: Option<String>,
    },
    /// Follow the stream from the message after this one, instead of what was followed before.
    Follow {
        after: Version,
    },
    /// Load the newest snapshot that the stream's messages commit.
    LoadSnapshot,
    /// Append under the expectation that the stream's last sequence is `expected`. `attempt` names it, so that the late answer
    /// to one that was given up is not taken for that to the next one in the same place.
    Append {
        attempt: u64,
        expected: Version,
        payload: Bytes,
    },
    /// Read one message from the stream's leader.
    Read {
        version: Version,
    },
    /// Take the lease: create the key, or replace it at this revision.
    TakeLease {
        revision: Option<u64>,
        holder: Holder,
    },
    RenewLease {
        revision: u64,
        holder: Holder,
    },
    ReleaseLease {
        revision: u64,
    },
    /// Answer admin requests from now on, or no longer. Halted controllers that hold the lease serve too.
    Serve(bool),
    /// Answer a request.
    Answer {
        token: Token,
        payload: Bytes,
    },
    /// Answer a request with an error.
    Fail {
        token: Token,
        error: WireError,
    },
    /// Forget a request without an answer.
    Drop {
        token: Token,
    },
    /// Publish on the push subject of `storage`, to be acknowledged on its ack subject.
    Push {
        storage: StorageId,
        payload: Bytes,
    },
    /// Publish on this controller's heartbeat subject.
    Announce(ControllerHeartbeat),
    /// Write a change to this controller's disk, then say [`Input::Persisted`]. In order.
    Persist(Arc<Change>),
    /// Move this controller's disk over versions that changed nothing.
    PersistSkip(Position),
    /// Replace what this controller's disk has by this image.
    Install {
        image: Box<Image>,
        position: Position,
    },
    /// Serve a fetch from this controller's disk, up to `head`.
    ServeFetch {
        token: Token,
        request: FetchRequest,
        head: Position,
    },
    /// Write this image to the object store, read it back and verify it.
    WriteSnapshot {
        image: Box<Image>,
        position: Position,
    },
    /// Remove what is before this version from the stream, and snapshots older than the committed one.
    Purge {
        before: Version,
    },
    /// Fetch the metadata at this position from another controller or a storage node.
    Gather {
        holder: MetadataHolder,
        position: Position,
    },
    /// Say which is the newest snapshot of all in the object store, whichever history it is of.
    ListSnapshots,
    /// Write this image to the object store and make the stream anew, so that its next message has the version after `position`.
    Recreate {
        image: Box<Image>,
        position: Position,
    },
    /// The cluster that this process belongs to is known: write it to the disk's identity.
    Bind(ClusterId),
    Log {
        level: Level,
        words: String,
    },
    /// The process cannot go on.
    Exit {
        words: String,
    },
    /// All is given back: the process may end.
    Stopped,
}

/// Who has metadata that a restore could begin from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum MetadataHolder {
    Controller(ControllerId),
    Storage(StorageId),
}

/// The instant at which something happens, on the process's own clock and on the wall.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    pub monotonic: Monotonic,
    pub wall: WallTime,
}
