//! The connection, the heartbeats on it, and the lease that their answers give.
//!
//! An answer counts once, only for a heartbeat that was sent on the present connection, and not from an older controller
//! epoch than one heard of. The lease counts from when the heartbeat left.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::{CallError, Effect, Level, StorageCore, decode};
use crate::metadata::NodeState;
use crate::types::{Connection, ControllerEpoch, ControllerId, Monotonic, NodeEpoch, Position, Version};
use crate::wire::{
    Code, ErrorBody, Health, Heartbeat, HeartbeatAnswer, NodeRefusal, PairingField, WantedState, WireError,
};

/// How many heartbeats may be without an answer and still get one that counts.
const OUTSTANDING: usize = 16;

/// A controller epoch that an answer named and our history does not have yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Heard {
    epoch: ControllerEpoch,
    /// The history holds the election at or before this.
    version: Version,
    at: Monotonic,
}

#[derive(Default)]
pub(super) struct Session {
    pub(super) connection: Option<Connection>,
    sequence: u64,
    /// When each heartbeat without an answer was sent. Of this connection and registration alone.
    outstanding: BTreeMap<u64, Monotonic>,
    /// When the next heartbeat is to be sent.
    pub(super) due: Option<Monotonic>,
    /// Until when the node may lead.
    lease_until: Option<Monotonic>,
    /// The metadata on the disk has this incarnation working, and the lease was asked for.
    pub(super) served: bool,
    heard: Option<Heard>,
    /// Who answered last.
    pub(super) active: Option<ControllerId>,
    /// Where the history stands, by the last answer.
    pub(super) head: Option<Position>,
    /// The pairing that the last answer named. It counts while it is newer than that of our metadata.
    pub(super) claim: Option<PairingField>,
    pub(super) health: Health,
    /// What the log was last told of an answer.
    told: Option<(ControllerId, ControllerEpoch, NodeState)>,
    /// Whether the last heartbeat found no controller at all.
    pub(super) unheard: bool,
}

impl Session {
    /// Nothing sent before counts any longer, and a heartbeat is due.
    pub(super) fn renew(&mut self, now: Monotonic) {
        self.outstanding.clear();
        self.lease_until = None;
        self.due = Some(now);
    }

    fn connected(&mut self, now: Monotonic, connection: Connection) {
        self.renew(now);
        self.connection = Some(connection);
        self.told = None;
        self.unheard = false;
    }

    fn disconnected(&mut self) {
        self.outstanding.clear();
        self.lease_until = None;
        self.due = None;
        self.connection = None;
    }

    #[cfg(test)]
    pub(super) fn last_sequence(&self) -> u64 {
        self.sequence
    }

    pub(super) fn lease_holds(&self, now: Monotonic) -> bool {
        #[cfg(test)]
        let now = if crate::simulator::planted(crate::simulator::Bug::EndlessLease) { Monotonic(0) } else { now };
        self.connection.is_some() && self.lease_until.is_some_and(|until| now < until)
    }

    /// The next heartbeat is due now.
    pub(super) fn hasten(&mut self, now: Monotonic) {
        if self.due.is_some() {
            self.due = Some(now);
        }
    }

    pub(super) fn lease_until(&self) -> Option<Monotonic> {
        self.lease_until
    }

    pub(super) fn revoke(&mut self) {
        self.lease_until = None;
    }

    pub(super) fn deadlines(&self) -> impl Iterator<Item = Monotonic> {
        [self.due, self.lease_until].into_iter().flatten()
    }
}

impl StorageCore {
    pub(super) fn connected(&mut self, now: Monotonic, connection: Connection, out: &mut Vec<Effect>) {
        self.session.revoke();
        self.tell_may_lead(now, out);
        self.session.connected(now, connection);
        self.registration.connection_changed();
        self.fetch.connection_changed();
        self.isr_interrupted(out);
    }

    pub(super) fn disconnected(&mut self, now: Monotonic, out: &mut Vec<Effect>) {
        self.session.disconnected();
        self.tell_may_lead(now, out);
        self.registration.connection_changed();
        self.fetch.connection_changed();
        self.isr_interrupted(out);
        self.log(Level::Warn, out, || {
            "the connection to NATS is lost: this node leads nothing until it is back".into()
        });
    }

    /// The highest controller epoch that is known, be it on the disk, in the history, or from an answer.
    pub(super) fn seen_epoch(&self) -> ControllerEpoch {
        let heard = self.session.heard.map_or(ControllerEpoch(0), |heard| heard.epoch);
        heard.max(self.known_epoch())
    }

    /// The highest controller epoch that the history proves.
    pub(super) fn known_epoch(&self) -> ControllerEpoch {
        self.history.controller_epoch().max(self.disk.controller_epoch)
    }

    pub(super) fn wanted(&self) -> WantedState {
        if self.drain.is_some() {
            WantedState::Draining
        } else if self.registration.node_epoch.is_some() && self.registration.subscribed {
            WantedState::Running
        } else {
            WantedState::Starting
        }
    }

    /// Sends a heartbeat if one is due. A node that is not registered sends them too once it has joined a cluster: where the
    /// history is lost nobody can register, and the controllers must hear who has what.
    pub(super) fn step_heartbeat(&mut self, now: Monotonic, out: &mut Vec<Effect>) {
        self.forget_unproved_epoch(now, out);
        let Some((cluster, storage)) = self.bound() else { return };
        let Some(connection) = self.session.connection.clone() else { return };
        if self.session.due.is_none_or(|due| now < due) {
            return;
        }
        let counts = self.me().map_or((0, 0), |node| (node.leaders, node.followers()));
        let mut health = self.session.health.clone();
        health.sync_stalled_ms = self.intake.stalled(now).as_millis() as u64;
        health.refused_messages = health.refused_messages.saturating_add(self.refused);
        health.directory_errors.extend(self.intake.error().map(str::to_owned));
        self.session.sequence += 1;
        let heartbeat = Heartbeat {
            cluster: Some(cluster),
            storage,
            directory: self.identity.directory,
            incarnation: self.identity.incarnation,
            node_epoch: self.registration.node_epoch.unwrap_or(NodeEpoch(0)),
            connection,
            sequence: self.session.sequence,
            position: self.disk.position,
            controller_epoch: self.disk.controller_epoch,
            leader_count: counts.0,
            follower_count: counts.1,
            wanted: self.wanted(),
            health,
        };
        self.session.outstanding.insert(heartbeat.sequence, now);
        if self.session.outstanding.len() > OUTSTANDING {
            self.session.outstanding.pop_first();
        }
        self.session.due = Some(now + self.settings.heartbeat_interval);
        out.push(Effect::SendHeartbeat(Box::new(heartbeat)));
    }

    /// An epoch that the history should hold by now, or that nobody has named for long, was made up or is lost.
    fn forget_unproved_epoch(&mut self, now: Monotonic, out: &mut Vec<Effect>) {
        let Some(heard) = self.session.heard else { return };
        if heard.epoch <= self.known_epoch() {
            self.session.heard = None;
            return;
        }
        let disproved = self.history.position().version >= heard.version;
        let forgotten = now.since(heard.at) >= self.settings.heartbeat_interval.saturating_mul(20);
        if disproved || forgotten {
            self.session.heard = None;
            self.complain(now, "epoch-unproved", Level::Warn, out, || {
                format!("controller epoch {} was named in an answer, and is not in the history", heard.epoch)
            });
        }
    }

    pub(super) fn heartbeat_answer(
        &mut self,
        now: Monotonic,
        sequence: u64,
        result: Result<Bytes, CallError>,
        out: &mut Vec<Effect>,
    ) {
        let Some(sent_at) = self.session.outstanding.get(&sequence).copied() else { return };
        let body = match result {
            Ok(body) => body,
            Err(CallError::NoResponders) => {
                self.session.outstanding.remove(&sequence);
                self.session.unheard = true;
                let soon = now + (self.settings.heartbeat_interval / 4).max(Duration::from_millis(20));
                self.session.due = self.session.due.map(|due| due.min(soon));
                self.complain(now, "heartbeat-unheard", Level::Warn, out, || "no controller hears this node".into());
                return;
            }
            Err(CallError::Timeout) => {
                self.session.outstanding.remove(&sequence);
                return;
            }
        };
        let decoded = decode::<HeartbeatAnswer>(&body).map_err(|unreadable| {
            // Whoever takes it for nobody's heartbeat says so in other words than an answer's.
            serde_json::from_slice::<ErrorBody>(&body).map_or(unreadable, |body| body.error)
        });
        let answer = match decoded.and_then(|answer| self.check_answer(sequence, answer)) {
            Ok(answer) => answer,
            Err(error) => {
                self.refused += 1;
                self.complain(now, "heartbeat-answer", Level::Warn, out, || {
                    format!("an answer to a heartbeat does not count: {error}")
                });
                return;
            }
        };
        // Those sent before it are not needed any more: their leases end sooner.
        self.session.outstanding = self.session.outstanding.split_off(&(sequence + 1));
        self.session.unheard = false;
        match &answer.error {
            Some(error) => {
                // Only who knows every election that this node knows can say what it is.
                let counts =
                    self.identity.cluster == Some(answer.cluster) && answer.controller_epoch >= self.seen_epoch();
                self.heartbeat_refused(now, error, counts, out);
            }
            None => self.heartbeat_counts(now, sent_at, &answer, out),
        }
    }

    fn check_answer(&self, sequence: u64, answer: HeartbeatAnswer) -> Result<HeartbeatAnswer, WireError> {
        let wrong = |code, words: String| Err(WireError::new(code, words));
        if (answer.sequence, answer.incarnation) != (sequence, self.identity.incarnation) {
            return wrong(Code::InvalidRequest, "it answers another heartbeat".into());
        }
        if answer.error.is_some() {
            return Ok(answer);
        }
        if self.identity.cluster != Some(answer.cluster) {
            return wrong(Code::InconsistentClusterId, format!("it is from cluster {}", answer.cluster));
        }
        let (epoch, version) = (answer.controller_epoch, answer.position.version);
        if epoch < self.seen_epoch() {
            let words = format!("controller {} has epoch {epoch}, older than {}", answer.controller, self.seen_epoch());
            return wrong(Code::NotController, words);
        }
        // The election is in the history up to the answer's position; if we have all that, we would know it.
        let proved = epoch <= self.known_epoch();
        if epoch.0 > version.0 || (!proved && version <= self.history.position().version) {
            return wrong(
                Code::InvalidRequest,
                format!("no controller of epoch {epoch} was elected by version {version}"),
            );
        }
        Ok(answer)
    }

    fn heartbeat_refused(&mut self, now: Monotonic, error: &WireError, counts: bool, out: &mut Vec<Effect>) {
        match error.code.for_node() {
            NodeRefusal::Removed if counts && self.registration.node_epoch.is_some() => {
                self.session.revoke();
                self.tell_may_lead(now, out);
                self.exit(format!("this node was removed from the cluster: {error}"), 1, out);
                return;
            }
            NodeRefusal::Unregistered | NodeRefusal::OtherDirectory if counts => {
                self.session.revoke();
                self.tell_may_lead(now, out);
                self.register_anew(now);
            }
            NodeRefusal::Removed | NodeRefusal::Unregistered | NodeRefusal::OtherDirectory | NodeRefusal::Retry => {}
        }
        self.complain(now, "heartbeat-refused", Level::Warn, out, || format!("the heartbeat was refused: {error}"));
    }

    fn heartbeat_counts(
        &mut self,
        now: Monotonic,
        sent_at: Monotonic,
        answer: &HeartbeatAnswer,
        out: &mut Vec<Effect>,
    ) {
        if answer.controller_epoch > self.known_epoch() {
            let (epoch, version) = (answer.controller_epoch, answer.position.version);
            self.session.heard = Some(Heard { epoch, version, at: now });
        }
        self.session.active = Some(answer.controller);
        self.session.head = Some(answer.position);
        self.session.claim = (answer.pairing.epoch.0 <= answer.position.version.0).then_some(answer.pairing);
        let registered = self.registration.node_epoch.is_some_and(|epoch| epoch == answer.node_epoch);
        if !answer.state.serves() || !registered {
            self.session.revoke();
            self.tell_may_lead(now, out);
            if !registered {
                // Its epoch is of a history that was lost: this incarnation has another one in the restored one.
                self.register_anew(now);
            }
        } else if answer.lease_ms > 0 {
            let lease = Duration::from_millis(answer.lease_ms).min(self.settings.lease_max);
            let until = sent_at + lease;
            self.session.lease_until = Some(self.session.lease_until.map_or(until, |known| known.max(until)));
        }
        let ours = self.history.position();
        if answer.position.version == ours.version && answer.position.digest != ours.digest {
            self.complain(now, "forked", Level::Error, out, || {
                let theirs = answer.position;
                format!("the history is forked: this node has {ours}, controller {} has {theirs}", answer.controller)
            });
        }
        let told = (answer.controller, answer.controller_epoch, answer.state);
        if self.session.told.replace(told) != Some(told) {
            self.log(Level::Info, out, || {
                let HeartbeatAnswer { controller, controller_epoch, position, sequence, .. } = answer;
                let (version, state) = (position.version, answer.state.as_str());
                format!("controller {controller} (epoch {controller_epoch}, version {version}) answers heartbeat {sequence}: this node is {state}")
            });
        }
        if registered {
            self.drain_answered(answer, out);
        }
    }
}
