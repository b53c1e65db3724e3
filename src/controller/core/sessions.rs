//! The storage nodes' sessions: heartbeats and their answers, leases, silence, and what follows from it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::office::Role;
use super::push::PushState;
use super::{Controller, Effect, Level, Token};
use crate::metadata::{NodeState, Record, rules};
use crate::types::{
    ClusterId, Connection, IncarnationId, Monotonic, NodeEpoch, PartitionId, Position, StorageId, TopicId, Version,
};
use crate::wire::{Code, Health, Heartbeat, HeartbeatAnswer, PairingField, WantedState, WireError, WireMessage};

/// A storage node as it is heard. Kept by active and standby alike, so that a new controller knows the living at once.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) incarnation: IncarnationId,
    pub(super) connection: Option<Connection>,
    pub(super) heard: Option<Monotonic>,
    pub(super) sequence: u64,
    /// What it has on its disk.
    pub(super) position: Position,
    /// What its last heartbeat said of itself, be it beyond what we know. Only a restore looks at it.
    pub(super) claimed: Position,
    pub(super) cluster: Option<ClusterId>,
    pub(super) wanted: WantedState,
    pub(super) health: Health,
    /// When its connection ended on its own side, if it was not heard over another one since.
    pub(super) ended: Option<Monotonic>,
    /// It is to be told nothing of a lease before it has this: leaderships moved away from it there, or it was fenced.
    pub(super) lost_leadership_at: Version,
    pub(super) fenced_at: Version,
    /// Since when it has not reached a version that was the head then.
    pub(super) behind: Option<(Version, Monotonic)>,
    /// Its drain was granted: all that it led has moved, at this version.
    pub(super) drained_at: Option<Version>,
    pub(super) push: PushState,
}

impl Session {
    fn new(incarnation: IncarnationId) -> Self {
        Self {
            incarnation,
            connection: None,
            heard: None,
            sequence: 0,
            position: Position::default(),
            claimed: Position::default(),
            cluster: None,
            wanted: WantedState::Starting,
            health: Health::default(),
            ended: None,
            lost_leadership_at: Version::ZERO,
            fenced_at: Version::ZERO,
            behind: None,
            drained_at: None,
            push: PushState::default(),
        }
    }
}

impl Controller {
    pub(super) fn on_heartbeat(&mut self, storage: StorageId, received_at: Monotonic, payload: &[u8], token: Token) {
        let heartbeat = match Heartbeat::decode(payload) {
            Ok(heartbeat) => heartbeat,
            Err(error) => return self.refuse(token, storage, error),
        };
        let claim = self.check_claim(heartbeat.position);
        if let Err(error) = self.admit(storage, &heartbeat) {
            if claim.is_err() {
                // Nothing of it counts.
            } else if self.image().is_none() {
                self.heard_before_founding(&heartbeat, received_at);
            } else if matches!(self.role, Role::Halted { .. }) {
                self.heard_while_halted(&heartbeat, received_at);
            }
            return self.refuse_heartbeat(token, &heartbeat, error);
        }
        if let Err(error) = claim {
            return self.refuse(token, storage, error);
        }
        let before = self.sessions.get(&heartbeat.storage).filter(|held| held.incarnation == heartbeat.incarnation);
        let before = before.map_or(Version::ZERO, |held| held.claimed.version);
        if !self.hear(&heartbeat, received_at) {
            return self.out.push(Effect::Drop { token });
        }
        let id = heartbeat.storage;
        if heartbeat.position.version < before {
            self.refute(before, || format!("storage node {id}"));
        }
        self.weigh_claim(heartbeat.position, || format!("storage node {id}"));
        self.note_position(id, heartbeat.position);
        self.look_at_node(id);
        self.answer_heartbeat(&heartbeat, token);
    }

    /// Whether the heartbeat is of a registered incarnation of this cluster.
    fn admit(&self, subject: StorageId, heartbeat: &Heartbeat) -> Result<(), WireError> {
        let id = heartbeat.storage;
        if subject != id {
            let words = format!("a heartbeat of storage node {id} came on the subject of storage node {subject}");
            return Err(WireError::new(Code::InvalidRequest, words));
        }
        let Some(image) = self.image() else {
            return Err(WireError::new(Code::NotController, "there is no cluster yet; register again soon"));
        };
        if heartbeat.cluster.is_some_and(|cluster| cluster != image.cluster) {
            let words = format!(
                "this is cluster {}: the node's data directory belongs to another one; start it with another directory",
                image.cluster
            );
            return Err(WireError::new(Code::InconsistentClusterId, words));
        }
        let unknown = || WireError::new(Code::UnknownNode, format!("storage node {id} is not registered: register it"));
        let node = image.storage.get(&id).ok_or_else(unknown)?;
        if node.state == NodeState::Removed {
            let words = format!("storage node {id} was removed: start it with a new data directory");
            return Err(WireError::new(Code::NodeRemoved, words));
        }
        if node.directory != Some(heartbeat.directory) {
            let words = format!(
                "storage node {id} has another data directory: if that is lost, `dmq node replace {id}` frees the id"
            );
            return Err(WireError::new(Code::DirectoryMismatch, words));
        }
        #[cfg(test)]
        if crate::simulator::planted(crate::simulator::Bug::OldIncarnation) {
            return Ok(());
        }
        if node.incarnation != heartbeat.incarnation {
            if heartbeat.node_epoch == NodeEpoch(0) {
                return Err(WireError::new(Code::UnknownNode, "this incarnation is not registered: register it"));
            }
            let words = format!("storage node {id} runs as another incarnation, with node epoch {}", node.epoch);
            return Err(WireError::new(Code::StaleNodeEpoch, words));
        }
        Ok(())
    }

    fn refuse(&mut self, token: Token, storage: StorageId, error: WireError) {
        self.complain(&format!("heartbeat {storage}"), || {
            format!("a heartbeat on the subject of storage node {storage} was refused: {error}")
        });
        if self.answers() { self.fail(token, error) } else { self.out.push(Effect::Drop { token }) }
    }

    fn refuse_heartbeat(&mut self, token: Token, heartbeat: &Heartbeat, error: WireError) {
        let (Some(image), true) = (self.image(), self.answers()) else {
            return self.out.push(Effect::Drop { token });
        };
        let id = heartbeat.storage;
        let answer = HeartbeatAnswer {
            state: image.storage.get(&id).map_or(NodeState::Fenced, |node| node.state),
            error: Some(error.clone()),
            ..self.bare_answer(image, heartbeat)
        };
        // A process that has just begun heartbeats before it is registered: ordinary, and not counted.
        let is_beginning = error.code == Code::UnknownNode
            && heartbeat.node_epoch == NodeEpoch(0)
            && image.storage.get(&id).is_some_and(|node| node.directory == Some(heartbeat.directory));
        self.out.push(Effect::Answer { token, payload: answer.encode() });
        if !is_beginning {
            self.complain(&format!("heartbeat {id} does not count"), || {
                format!("a heartbeat of storage node {id} does not count: {error}")
            });
        }
    }

    /// An answer that tells only who answers, and grants nothing.
    fn bare_answer(&self, image: &crate::metadata::Image, heartbeat: &Heartbeat) -> HeartbeatAnswer {
        HeartbeatAnswer {
            cluster: image.cluster,
            controller: self.me.controller,
            controller_epoch: self.history.controller_epoch(),
            position: self.history.position(),
            incarnation: heartbeat.incarnation,
            sequence: heartbeat.sequence,
            node_epoch: NodeEpoch(0),
            state: NodeState::Fenced,
            pairing: PairingField { controller: None, epoch: Default::default() },
            lease_ms: 0,
            shutdown_granted: false,
            drain_impossible: false,
            error: None,
        }
    }

    /// Whether it is ours to answer.
    pub(super) fn answers(&self) -> bool {
        matches!(self.role, Role::Active { .. }) && self.may_act()
    }

    /// Takes note of a heartbeat that counts. False where it is late: over an ended connection, or overtaken by another.
    pub(super) fn hear(&mut self, heartbeat: &Heartbeat, received_at: Monotonic) -> bool {
        if self.has_ended(&heartbeat.connection) {
            return false;
        }
        if self.sessions.len() >= super::strangers::MAX_SESSIONS && !self.sessions.contains_key(&heartbeat.storage) {
            return false;
        }
        let unheard = self.lost_unheard.remove(&heartbeat.storage).unwrap_or_default();
        let lost_leadership_at = self.unseen.max(unheard);
        let fresh = || Session { lost_leadership_at, ..Session::new(heartbeat.incarnation) };
        let session = self.sessions.entry(heartbeat.storage).or_insert_with(fresh);
        if session.incarnation != heartbeat.incarnation {
            let (fenced_at, push) = (session.fenced_at, PushState::default());
            let lost_leadership_at = session.lost_leadership_at.max(lost_leadership_at);
            *session = Session { fenced_at, push, lost_leadership_at, ..fresh() };
        }
        if session.heard.is_some() && heartbeat.sequence <= session.sequence {
            return false;
        }
        session.sequence = heartbeat.sequence;
        session.connection = Some(heartbeat.connection.clone());
        session.heard = Some(session.heard.map_or(received_at, |before| before.max(received_at)));
        session.ended = None;
        session.push.heard();
        session.claimed = heartbeat.position;
        session.cluster = heartbeat.cluster;
        session.wanted = heartbeat.wanted;
        session.health = heartbeat.health.clone();
        true
    }

    /// The node has this on its disk. Only forwards, and only what can be.
    pub(super) fn note_position(&mut self, id: StorageId, position: Position) {
        let (head, now) = (self.history.position().version, self.mono());
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if position.version > head {
            // Another controller brought it what this one does not know of yet: that it lags, nobody can say.
            session.behind = None;
            return;
        }
        if position.version > session.position.version {
            session.position = position;
            self.waiters_note(id, position.version);
        }
        let Some(session) = self.sessions.get_mut(&id) else { return };
        match session.behind {
            Some((target, _)) if session.position.version >= target => session.behind = None,
            Some(_) => {}
            None if session.position.version < head => session.behind = Some((head, now)),
            None => {}
        }
        if session.position.version < head {
            self.push_to(id);
        }
    }

    fn answer_heartbeat(&mut self, heartbeat: &Heartbeat, token: Token) {
        if !self.answers() {
            return self.out.push(Effect::Drop { token });
        }
        let id = heartbeat.storage;
        let (Some(image), Some(session)) = (self.image(), self.sessions.get(&id)) else { return };
        let Some(node) = image.storage.get(&id) else { return };
        let settled = session.position.version >= session.lost_leadership_at.max(session.fenced_at);
        let lease = if node.state.serves() && settled && !self.losing(id) {
            // Counted from when the heartbeat was sent, and a little shorter than what is counted here. Who makes no progress will be
            // fenced although it is heard: its lease is over by then.
            let timeout = self.settings.session_timeout;
            let idle = session.behind.map_or(Duration::ZERO, |(_, since)| self.mono().since(since));
            #[cfg(test)]
            let idle = if crate::simulator::planted(crate::simulator::Bug::IdleLease) { Duration::ZERO } else { idle };
            let stalled = Duration::from_millis(session.health.sync_stalled_ms);
            timeout.saturating_sub(idle.max(stalled)) * 9 / 10
        } else {
            Duration::ZERO
        };
        let granted = session.drained_at.is_some_and(|version| self.all_active_have(version));
        let draining = session.wanted == WantedState::Draining;
        let impossible = draining && node.leaders > 0 && !rules::node::can_drain(image, id);
        let answer = HeartbeatAnswer {
            node_epoch: node.epoch,
            state: node.state,
            pairing: PairingField { controller: node.pairing, epoch: node.pairing_epoch },
            lease_ms: u64::try_from(lease.as_millis()).unwrap_or(0),
            shutdown_granted: draining && granted,
            drain_impossible: impossible,
            ..self.bare_answer(image, heartbeat)
        };
        self.out.push(Effect::Answer { token, payload: answer.encode() });
    }

    /// Whether the change under way may take a leadership from the node.
    pub(super) fn losing(&self, id: StorageId) -> bool {
        self.in_flight.as_ref().is_some_and(|in_flight| in_flight.losers.contains(&id))
    }

    /// From whom these records may take a leadership. Told once for a change, which may be of a million partitions, and not with
    /// each heartbeat meanwhile.
    pub(super) fn losers(&self, records: &[Record]) -> BTreeSet<StorageId> {
        let mut losers = BTreeSet::new();
        for record in records {
            match record {
                Record::PartitionsChanged { .. } | Record::PartitionsMoved { .. } => {
                    let moved = record.changed_partitions().filter(|(.., leader)| leader.is_some());
                    let leader = |(topic, number, _)| self.image()?.partition(topic, number)?.leader;
                    losers.extend(moved.filter_map(leader));
                }
                Record::StorageStateChanged { storage, state, .. } if !state.serves() => {
                    losers.insert(*storage);
                }
                Record::StorageReplaced { storage, .. } | Record::StorageRegistered { storage, .. } => {
                    losers.insert(*storage);
                }
                Record::StorageStateChanged { .. }
                | Record::TopicDeleted { .. }
                | Record::ClusterFounded { .. }
                | Record::ClusterRestored { .. }
                | Record::ControllerElected { .. }
                | Record::SnapshotCommitted { .. }
                | Record::StorageRemoved { .. }
                | Record::PairingChanged { .. }
                | Record::TopicCreated { .. }
                | Record::PartitionsAdded { .. }
                | Record::TopicConfigured { .. }
                | Record::NoOp {} => {}
            }
        }
        losers
    }

    pub(super) fn all_active_have(&self, version: Version) -> bool {
        let Some(image) = self.image() else { return false };
        let has = |id| self.sessions.get(&id).is_some_and(|session| session.position.version >= version);
        #[cfg(test)]
        let has = |id| crate::simulator::planted(crate::simulator::Bug::EarlyShutdown) || has(id);
        image.active_nodes().all(|(id, _)| has(id))
    }

    /// Whether the incarnation that is registered may still be at work.
    pub(super) fn session_live(&self, id: StorageId) -> bool {
        let Some(session) = self.sessions.get(&id) else { return self.in_grace() };
        if let Some(at) = session.ended {
            return !self.is_ended_still(at);
        }
        // What could not be heard is no silence: it may have had a lease of another controller's meanwhile.
        let serves = || self.image().and_then(|image| image.storage.get(&id)).is_some_and(|node| node.state.serves());
        let is_silent = self.mono().since(self.last_heard(session)) >= self.settings.session_timeout;
        !is_silent || (self.in_grace() && serves())
    }

    /// A new controller takes nobody's silence for death before a full session that it could hear itself.
    pub(super) fn in_grace(&self) -> bool {
        #[cfg(test)]
        if crate::simulator::planted(crate::simulator::Bug::Impatient) {
            return false;
        }
        self.mono().since(self.grace_since()) < self.settings.session_timeout
    }

    pub(super) fn grace_since(&self) -> Monotonic {
        match self.role {
            Role::Active { since, .. } => since.max(self.hearing_since),
            Role::Starting | Role::Standby | Role::Electing | Role::Halted { .. } => self.hearing_since,
        }
    }

    pub(super) fn session_ended(&mut self, connection: &Connection) {
        let ended = |session: &super::sessions::Session| session.connection.as_ref() == Some(connection);
        let now = self.mono();
        let found = self.sessions.iter_mut().find(|(_, session)| ended(session)).map(|(id, session)| {
            session.ended = Some(now);
            *id
        });
        if let Some(id) = found {
            self.look_at_nodes();
            self.log(Level::Info, format!("the connection of storage node {id} ended"));
        }
    }

    /// While nothing could be heard, a node whose connection had ended may have come back over another one.
    pub(super) fn hear_anew(&mut self) {
        for session in self.sessions.values_mut().filter(|session| session.ended.is_some()) {
            session.ended = None;
            session.connection = None;
        }
    }

    pub(super) fn session_registered(&mut self, id: StorageId, incarnation: IncarnationId, version: Version) {
        self.pairing_dirty = true;
        // It has not heartbeaten yet: its session counts from its registration.
        let mut session = Session::new(incarnation);
        session.heard = Some(self.mono());
        session.fenced_at = version;
        self.sessions.insert(id, session);
    }

    pub(super) fn session_state(&mut self, id: StorageId, state: NodeState, version: Version) {
        let is_mine = matches!(self.role, Role::Active { .. });
        let Some(session) = self.sessions.get_mut(&id) else { return };
        match state {
            NodeState::Fenced | NodeState::Removed => session.fenced_at = version,
            NodeState::Active if session.ended.is_some() && !is_mine => {
                // Another controller has heard it since, over a connection that this one has not heard of yet.
                session.ended = None;
                session.connection = None;
            }
            NodeState::Active | NodeState::Draining => {}
        }
        if session.wanted == WantedState::Draining && state == NodeState::Fenced {
            session.drained_at = Some(version);
        }
    }

    /// Whoever held a replica may have led it: none of them gets a lease before it knows better.
    pub(super) fn leadership_moved(
        &mut self,
        (topic, number): (TopicId, PartitionId),
        leader: Option<StorageId>,
        version: Version,
    ) {
        let Some(partition) = self.history.image().and_then(|image| image.partition(topic, number)) else { return };
        for replica in partition.replicas.iter().filter(|replica| Some(**replica) != leader) {
            match self.sessions.get_mut(replica) {
                Some(session) => session.lost_leadership_at = version,
                None => {
                    self.lost_unheard.insert(*replica, version);
                }
            }
        }
    }

    pub(super) fn sweep(&mut self) {
        self.consider_founding();
        let now = self.mono();
        let timeout = self.settings.session_timeout;
        let gone =
            self.peers.values().any(|peer| now.since(peer.heard) >= timeout && now.since(peer.heard) < timeout * 2);
        if gone {
            self.pairing_dirty = true;
        }
        self.forget_peers();
    }
}
