//! The controller's decisions, without I/O: an input and the time go in, effects come out.
//!
//! Split by concern: `follow` reads the history, `office` takes and loses the lease, `append` writes, `sessions` watches
//! over the storage nodes, `push` brings them the metadata, `registration` lets them in, `isr` takes their leaders' requests, `admin` and `status` answer people, `leaderless` with reasons, `restore` brings a lost
//! history back. All of them share the one struct here; none of them may do I/O, read a clock or draw a random number.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod admin;
mod api;
mod append;
mod follow;
mod isr;
mod leaderless;
mod liveness;
mod office;
mod push;
mod registration;
mod restore;
mod sessions;
mod status;
mod strangers;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub use api::{
    AppendResult, Effect, Head, Holder, Identity, Input, LeaseResult, Level, MetadataHolder, Now, ServicesView,
    Settings, Token,
};

use crate::metadata::{Change, History, Image};
use crate::types::{Connection, ControllerEpoch, ControllerId, Monotonic, Position, StorageId, Version, WallTime};
use crate::wire::{ControllerHeartbeat, ControllerRole, WireError};
use admin::{Job, Waiter};
use append::InFlight;
use follow::{Probe, Tail};
use office::{Lease, Role};
use registration::Registrations;
use restore::Restoring;
use sessions::Session;

/// How many ended connections are remembered, so that a late heartbeat over one revives nobody.
const ENDED_KEPT: usize = 1024;
/// How often silence is looked for.
const SWEEP: Duration = Duration::from_millis(50);
/// After so long without an input, what was said meanwhile waits in a queue.
const STALL: Duration = Duration::from_millis(200);

/// Another controller, by its last heartbeat.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    heard: Monotonic,
    ended: bool,
    message: ControllerHeartbeat,
}

/// One controller.
pub struct Controller {
    me: Identity,
    settings: Settings,
    services: Arc<ServicesView>,
    now: Now,
    history: History,
    tail: Tail,
    /// What of the history is on this process's disk.
    durable: Position,
    connection: Option<Connection>,
    /// Since when every heartbeat could be heard.
    hearing_since: Monotonic,
    /// Until when heartbeats that came while it was busy or frozen may not have been looked at.
    catching_up_until: Monotonic,
    role: Role,
    lease: Lease,
    probe: Probe,
    in_flight: Option<InFlight>,
    /// How many appends were sent.
    attempts: u64,
    /// What was known at the start, or came with a snapshot: who lost a leadership by then is not remembered singly.
    unseen: Version,
    /// Who lost a leadership since then, and was not heard before: known to hold replicas, so there are no more than nodes.
    lost_unheard: BTreeMap<StorageId, Version>,
    jobs: VecDeque<Job>,
    waiters: Vec<Waiter>,
    registrations: Registrations,
    /// The last change that somebody asked for was one of registrations.
    registered_last: bool,
    sessions: BTreeMap<StorageId, Session>,
    ended: VecDeque<Connection>,
    peers: BTreeMap<ControllerId, Peer>,
    pairing_dirty: bool,
    /// When all nodes have to be looked at again, for whom to fence, drain or let serve. What changes for one node in
    /// between brings it forward.
    nodes_due: Monotonic,
    nodes_seen_at: Monotonic,
    sweep_at: Monotonic,
    balance_at: Option<Monotonic>,
    /// From when on whoever is not in sync may be elected, where this controller waits for that.
    unclean_at: Option<Monotonic>,
    announce_at: Monotonic,
    push_retry_at: Option<Monotonic>,
    sequence: u64,
    refused: u64,
    complaints: BTreeMap<String, Monotonic>,
    restoring: Option<Restoring>,
    snapshot_under_way: bool,
    snapshot_ready: Option<crate::metadata::SnapshotRef>,
    entries_since_snapshot: u64,
    bytes_since_snapshot: u64,
    stopping: bool,
    out: Vec<Effect>,
}

impl Controller {
    /// `history` and `last` (its last change) are what this process's disk has.
    pub fn new(me: Identity, settings: Settings, history: History, last: Option<Change>) -> Self {
        let durable = history.position();
        Self {
            me,
            settings,
            services: Arc::default(),
            now: Now { monotonic: Monotonic(0), wall: WallTime(0) },
            tail: Tail::new(last.map(Arc::new)),
            history,
            durable,
            connection: None,
            hearing_since: Monotonic(0),
            catching_up_until: Monotonic(0),
            role: Role::Starting,
            lease: Lease::default(),
            probe: Probe::default(),
            in_flight: None,
            attempts: 0,
            unseen: durable.version,
            lost_unheard: BTreeMap::new(),
            jobs: VecDeque::new(),
            waiters: Vec::new(),
            registrations: Registrations::default(),
            registered_last: false,
            sessions: BTreeMap::new(),
            ended: VecDeque::new(),
            peers: BTreeMap::new(),
            pairing_dirty: true,
            nodes_due: Monotonic(0),
            nodes_seen_at: Monotonic(0),
            sweep_at: Monotonic(0),
            balance_at: None,
            unclean_at: None,
            announce_at: Monotonic(0),
            push_retry_at: None,
            sequence: 0,
            refused: 0,
            complaints: BTreeMap::new(),
            restoring: None,
            snapshot_under_way: false,
            snapshot_ready: None,
            entries_since_snapshot: 0,
            bytes_since_snapshot: 0,
            stopping: false,
            out: Vec::new(),
        }
    }

    /// Takes one input. Effects are to be carried out in their order.
    pub fn handle(&mut self, now: Now, input: Input, effects: &mut Vec<Effect>) {
        if now.monotonic.since(self.now.monotonic) > STALL {
            self.catching_up_until = now.monotonic + self.settings.heartbeat_interval;
        }
        self.now = now;
        match input {
            Input::MessageLimit(bytes) => self.settings.message_limit = bytes,
            Input::Connected(connection) => self.on_connected(connection),
            Input::Disconnected => self.on_disconnected(),
            Input::Tick => {}
            Input::Entry { version, payload } => self.on_entry(version, &payload),
            Input::Head { asked_at, head } => self.on_head(asked_at, head),
            Input::Appended { attempt, result } => self.on_appended(attempt, result),
            Input::Read { version, result } => self.on_read(version, result),
            Input::Loaded(result) => self.on_loaded(result),
            Input::LeaseHeld { holder, revision } => self.on_lease_held(holder, revision),
            Input::LeaseFree => self.on_lease_free(),
            Input::LeaseAnswer { sent_at, result } => self.on_lease_answer(sent_at, result),
            Input::ConnectionEnded(connection) => self.on_connection_ended(connection),
            Input::Heartbeat { storage, received_at, payload, token } => {
                self.on_heartbeat(storage, received_at, &payload, token);
            }
            Input::ControllerHeartbeat { payload } => self.on_controller_heartbeat(&payload),
            Input::Stray { subject, token } => self.on_stray(&subject, token),
            Input::Ack { storage, payload } => self.on_ack(storage, &payload),
            Input::PushUnheard { storage } => self.on_push_unheard(storage),
            Input::Admin { noun, verb, payload, token, fresh_id } => {
                self.on_admin(&noun, &verb, &payload, token, fresh_id);
            }
            Input::Fetch { payload, token } => self.on_fetch(&payload, token),
            Input::Persisted(position) => self.on_persisted(position),
            Input::PersistFailed(words) => {
                self.resign("the disk failed");
                self.out.push(Effect::Exit { words });
            }
            Input::SnapshotWritten(result) => self.on_snapshot_written(result),
            Input::SnapshotsListed(result) => self.on_snapshots_listed(result),
            Input::Recreated(result) => self.on_recreated(result),
            Input::Services(view) => {
                self.services = view;
                self.pairing_dirty = true;
            }
            Input::Shutdown => self.on_shutdown(),
        }
        self.keep_time();
        self.work();
        effects.append(&mut self.out);
    }

    /// When a [`Input::Tick`] is needed at the latest.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        let mut next = self.sweep_at.min(self.announce_at);
        let more = [
            self.push_retry_at,
            self.probe.due(),
            self.lease.due(),
            self.in_flight.as_ref().and_then(InFlight::due),
            self.registrations_due().filter(|_| self.in_flight.is_none() && self.may_act()),
            self.waiters.iter().map(|waiter| waiter.deadline).min(),
        ];
        for deadline in more.into_iter().flatten() {
            next = next.min(deadline);
        }
        Some(next)
    }

    /// The metadata, for whoever looks on (the simulator, above all).
    pub fn history(&self) -> &History {
        &self.history
    }

    pub fn role(&self) -> ControllerRole {
        self.role.on_the_wire()
    }

    /// The epoch that this controller acts under, if it does.
    pub fn acting_epoch(&self) -> Option<ControllerEpoch> {
        match self.role {
            Role::Active { epoch, .. } if self.may_act() => Some(epoch),
            Role::Active { .. } | Role::Starting | Role::Standby | Role::Electing | Role::Halted { .. } => None,
        }
    }

    /// What the disk has of the history.
    pub fn durable(&self) -> Position {
        self.durable
    }

    fn image(&self) -> Option<&Image> {
        self.history.image()
    }

    fn mono(&self) -> Monotonic {
        self.now.monotonic
    }

    fn keep_time(&mut self) {
        let now = self.mono();
        self.keep_lease();
        self.keep_append_time();
        self.keep_probing();
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP;
            self.sweep();
        }
        if now >= self.announce_at {
            self.announce_at = now + self.settings.heartbeat_interval;
            self.announce();
        }
        if self.push_retry_at.is_some_and(|at| now >= at) {
            self.push_due();
        }
        self.end_waiters();
    }

    fn announce(&mut self) {
        let Some(connection) = self.connection.clone() else { return };
        self.sequence += 1;
        let halted = match &self.role {
            Role::Halted { why } => Some(why.clone()),
            Role::Starting | Role::Standby | Role::Electing | Role::Active { .. } => None,
        };
        self.out.push(Effect::Announce(ControllerHeartbeat {
            cluster: self.image().map(|image| image.cluster),
            controller: self.me.controller,
            directory: self.me.directory,
            incarnation: self.me.incarnation,
            connection,
            sequence: self.sequence,
            role: self.role.on_the_wire(),
            position: self.durable,
            controller_epoch: self.history.controller_epoch(),
            halted,
        }));
    }

    fn log(&mut self, level: Level, words: impl Into<String>) {
        self.out.push(Effect::Log { level, words: words.into() });
    }

    /// Counts a message that was refused, and says so once per kind and minute.
    fn complain(&mut self, about: &str, words: impl FnOnce() -> String) {
        const MINUTE: Duration = Duration::from_secs(60);
        const KINDS: usize = 1000;
        /// Where there are too many kinds, the rest is one.
        const REST: &str = "anything else";
        self.refused += 1;
        let now = self.mono();
        let is_old = |last: &Monotonic| now.since(*last) >= MINUTE;
        if self.complaints.len() >= KINDS {
            self.complaints.retain(|_, last| !is_old(last));
        }
        let is_kept = self.complaints.contains_key(about) || self.complaints.len() < KINDS;
        let about = if is_kept { about } else { REST };
        if self.complaints.get(about).is_some_and(|last| !is_old(last)) {
            return;
        }
        self.complaints.insert(about.to_string(), now);
        let words = words();
        self.log(Level::Warn, words);
    }

    fn fail(&mut self, token: Token, error: WireError) {
        self.out.push(Effect::Fail { token, error });
    }
}
