//! The office of the active controller: the lease that decides who tries, the election entry that decides who wins.

use std::time::Duration;

use super::admin::Job;
use super::append::Purpose;
use super::{Controller, ENDED_KEPT, Effect, Holder, LeaseResult, Level, Peer};
use crate::metadata::{Cause, Record};
use crate::types::{Connection, ControllerEpoch, Monotonic};
use crate::wire::{Code, ControllerHeartbeat, ControllerRole, WireError, WireMessage};

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// Has not yet read the history to its head, or waits until it may found one.
    Starting,
    Standby,
    /// Holds the lease; its election entry is on the way.
    Electing,
    Active {
        epoch: ControllerEpoch,
        since: Monotonic,
    },
    /// Stopped writing: the history was lost, went back or forked.
    Halted {
        why: String,
    },
}

impl Role {
    pub(super) fn on_the_wire(&self) -> ControllerRole {
        match self {
            Self::Starting => ControllerRole::Starting,
            Self::Standby | Self::Electing => ControllerRole::Standby,
            Self::Active { .. } => ControllerRole::Active,
            Self::Halted { .. } => ControllerRole::Halted,
        }
    }
}

/// What is known of the lease's key, and of our own hold on it.
#[derive(Clone, Debug, Default)]
pub(super) struct Lease {
    /// The revision that is ours, and until when we may act on it.
    pub(super) ours: Option<(u64, Monotonic)>,
    /// The key as last seen, ours or another's.
    pub(super) seen: Option<(Option<Holder>, u64)>,
    /// Whether the key was looked at.
    pub(super) known: bool,
    /// A request is under way, sent then.
    asked: Option<Monotonic>,
    renew_at: Option<Monotonic>,
    try_at: Option<Monotonic>,
}

impl Lease {
    /// Nothing of it is ours any more, nor asked for. What the key says stays known: the watch tells only what changes.
    fn let_go(&mut self) {
        let (seen, known) = (self.seen.take(), self.known);
        *self = Self { seen, known, ..Self::default() };
    }

    pub(super) fn due(&self) -> Option<Monotonic> {
        [self.ours.map(|(_, until)| until), self.renew_at, self.try_at].into_iter().flatten().min()
    }
}

impl Controller {
    /// Whether our hold on the lease lasts.
    pub(super) fn may_act(&self) -> bool {
        self.connection.is_some() && self.lease.ours.is_some_and(|(_, until)| self.mono() < until)
    }

    fn me_as_holder(&self) -> Option<Holder> {
        let connection = self.connection.clone()?;
        Some(Holder { controller: self.me.controller, incarnation: self.me.incarnation, connection })
    }

    pub(super) fn on_connected(&mut self, connection: Connection) {
        self.log(
            Level::Info,
            format!("connected to NATS as client {} of server {}", connection.client, connection.server),
        );
        self.connection = Some(connection);
        self.hearing_since = self.mono();
        self.hear_anew();
        self.lease.let_go();
        self.probe.reset();
        self.announce_at = self.mono();
        self.ask_head();
    }

    pub(super) fn on_disconnected(&mut self) {
        if self.connection.take().is_none() {
            return;
        }
        self.log(Level::Warn, "the connection to NATS is lost");
        self.resign("the connection to NATS is lost");
        self.in_flight = None;
        self.lease.let_go();
        self.probe.reset();
        if self.role == Role::Standby {
            self.role = Role::Starting;
        }
    }

    pub(super) fn on_shutdown(&mut self) {
        self.stopping = true;
        self.resign("the controller shuts down");
        self.out.push(Effect::Stopped);
    }

    pub(super) fn on_lease_held(&mut self, holder: Option<Holder>, revision: u64) {
        if self.lease.seen.as_ref().is_some_and(|(_, seen)| *seen > revision) {
            return;
        }
        let mine = holder.as_ref().is_some_and(|holder| holder.incarnation == self.me.incarnation);
        #[cfg(test)]
        let mine = mine || crate::simulator::planted(crate::simulator::Bug::Deposed);
        let ended = holder.as_ref().is_some_and(|holder| self.has_ended(&holder.connection));
        self.lease.known = true;
        self.lease.seen = Some((holder, revision));
        if !mine && self.lease.ours.is_some_and(|(ours, _)| revision > ours) {
            self.lease.ours = None;
            self.resign("another controller has the lease");
        }
        if ended {
            self.try_lease();
        }
    }

    pub(super) fn on_lease_free(&mut self) {
        self.lease.known = true;
        self.lease.seen = None;
        self.try_lease();
    }

    pub(super) fn on_lease_answer(&mut self, sent_at: Monotonic, result: LeaseResult) {
        if self.lease.asked != Some(sent_at) {
            return;
        }
        self.lease.asked = None;
        let third = self.settings.lease / 3;
        match result {
            LeaseResult::Ours(revision) => {
                let fresh = self.lease.ours.is_none();
                self.lease.ours = Some((revision, sent_at + self.settings.lease * 9 / 10));
                self.lease.seen = self.me_as_holder().map(|me| (Some(me), revision));
                self.lease.renew_at = Some(sent_at + third);
                self.lease.try_at = None;
                if fresh {
                    self.take_office();
                }
            }
            LeaseResult::Lost => {
                let had = self.lease.ours.take().is_some();
                self.lease.renew_at = None;
                if had {
                    self.resign("the lease is lost");
                }
                self.lease.try_at = Some(self.mono() + third);
            }
            LeaseResult::Unknown => {
                let soon = Some(self.mono() + Duration::from_millis(100));
                if self.lease.ours.is_some() {
                    self.lease.renew_at = soon;
                } else {
                    self.lease.try_at = soon;
                }
            }
        }
    }

    /// Whether a connection is known to have ended. Asked for every heartbeat: the numbers tell most apart.
    pub(super) fn has_ended(&self, connection: &Connection) -> bool {
        self.ended.iter().any(|ended| ended.client == connection.client && ended.server == connection.server)
    }

    pub(super) fn on_connection_ended(&mut self, connection: Connection) {
        if self.ended.len() >= ENDED_KEPT {
            self.ended.pop_front();
        }
        self.ended.push_back(connection.clone());
        for peer in self.peers.values_mut() {
            if peer.message.connection == connection {
                peer.ended = true;
                self.pairing_dirty = true;
            }
        }
        let holder = self.lease.seen.as_ref().and_then(|(holder, _)| holder.as_ref());
        if holder.is_some_and(|holder| holder.connection == connection && holder.incarnation != self.me.incarnation) {
            self.log(Level::Info, "the active controller's connection ended: trying for the lease");
            self.try_lease();
        }
        self.session_ended(&connection);
    }

    pub(super) fn on_controller_heartbeat(&mut self, payload: &[u8]) {
        let message = match ControllerHeartbeat::decode(payload)
            .and_then(|message| self.check_claim(message.position).map(|()| message))
        {
            Ok(message) => message,
            Err(error) => {
                return self
                    .complain("controller heartbeat", || format!("a controller's heartbeat was refused: {error}"));
            }
        };
        if message.controller == self.me.controller {
            if message.incarnation != self.me.incarnation {
                let words = format!(
                    "another live process is controller {}: give one of them another id (this one is incarnation {})",
                    self.me.controller, self.me.incarnation
                );
                self.complain("double controller", || words);
            }
            return;
        }
        if let (Some(image), Some(cluster)) = (self.image(), message.cluster)
            && image.cluster != cluster
        {
            let (id, mine) = (message.controller, image.cluster);
            return self.complain(&format!("controller {id} cluster"), || {
                format!("controller {id} belongs to cluster {cluster}, this one to {mine}: they must not share a subject prefix")
            });
        }
        // Who has no cluster founds none where another controller has one, be its stream there or not.
        if let (None, Some(cluster)) = (self.image(), message.cluster) {
            let id = message.controller;
            self.weigh_claim(message.position, || format!("controller {id} (of cluster {cluster})"));
        }
        if !self.may_be_peer(message.controller) {
            let id = message.controller;
            return self
                .complain("too many controllers", || format!("controller {id} is one too many to keep track of"));
        }
        let ended = self.has_ended(&message.connection);
        let heard = self.mono();
        // Also one that was silent for a session, and whose nodes were given to others, has come back.
        let was_alive = self.peers.get(&message.controller).is_some_and(|peer| self.peer_alive(peer));
        self.peers.insert(message.controller, Peer { heard, ended, message });
        if was_alive == ended {
            self.pairing_dirty = true;
        }
    }

    /// Whether the controller is alive, as far as we can tell.
    pub(super) fn peer_alive(&self, peer: &Peer) -> bool {
        !peer.ended && self.mono().since(peer.heard) < self.settings.session_timeout
    }

    /// Tries for the lease where nobody has it, or its holder is known to be gone.
    pub(super) fn try_lease(&mut self) {
        let ready = match self.role {
            Role::Standby | Role::Halted { .. } => true,
            Role::Starting | Role::Electing | Role::Active { .. } => false,
        };
        let Some(holder) = self.me_as_holder() else { return };
        if !ready || !self.lease.known || self.lease.asked.is_some() || self.lease.ours.is_some() || self.stopping {
            return;
        }
        let revision = match &self.lease.seen {
            None => None,
            Some((None, revision)) => Some(*revision),
            Some((Some(seen), revision)) => {
                // A former life of this very process may still run: its lease has to end by itself, as anybody's.
                let gone = self.has_ended(&seen.connection);
                if !gone {
                    return;
                }
                Some(*revision)
            }
        };
        self.lease.asked = Some(self.mono());
        self.lease.try_at = None;
        self.out.push(Effect::TakeLease { revision, holder });
    }

    pub(super) fn keep_lease(&mut self) {
        let now = self.mono();
        if self.lease.ours.is_some_and(|(_, until)| now >= until) {
            self.lease.ours = None;
            self.lease.renew_at = None;
            self.lease.asked = None;
            self.lease.try_at = Some(now + self.settings.lease / 3);
            self.resign("the lease ran out");
        }
        if self.lease.renew_at.is_some_and(|at| now >= at)
            && let (Some((revision, _)), Some(holder)) = (self.lease.ours, self.me_as_holder())
        {
            self.lease.renew_at = Some(now + self.settings.lease / 3);
            self.lease.asked = Some(now);
            self.out.push(Effect::RenewLease { revision, holder });
        }
        if self.lease.try_at.is_some_and(|at| now >= at) {
            self.lease.try_at = Some(now + self.settings.lease / 3);
            self.lease.asked = None;
            self.try_lease();
        }
    }

    /// We hold the lease: write the election, or, where the history is lost, only answer for it.
    pub(super) fn take_office(&mut self) {
        match self.role {
            Role::Standby => {
                self.role = Role::Electing;
                self.elect();
            }
            Role::Halted { .. } => self.out.push(Effect::Serve(true)),
            Role::Starting | Role::Electing | Role::Active { .. } => {}
        }
    }

    /// Appends the election entry on top of all that we have seen.
    pub(super) fn elect(&mut self) {
        if self.role != Role::Electing || self.in_flight.is_some() || !self.may_act() || self.probe.waiting() {
            return;
        }
        let elected = Record::ControllerElected {
            controller: self.me.controller,
            directory: self.me.directory,
            incarnation: self.me.incarnation,
        };
        let (records, cause): (_, Cause) = if let Some(restored) = self.restored_records() {
            (restored.into_iter().chain([elected]).collect(), "the history was restored".into())
        } else if self.image().is_some() {
            (vec![elected], format!("controller {} took the lease", self.me.controller).into())
        } else {
            let founded = Record::ClusterFounded { cluster: self.me.founding };
            (vec![founded, elected], "a new cluster was founded".into())
        };
        self.append(records, cause, None, Purpose::Election);
    }

    pub(super) fn elected(&mut self, epoch: ControllerEpoch) {
        self.role = Role::Active { epoch, since: self.mono() };
        self.pairing_dirty = true;
        self.unclean_at = Some(self.mono() + self.settings.session_timeout);
        self.balance_at = self.settings.leader_balance.map(|every| self.mono() + every);
        self.restoring = None;
        self.log(Level::Info, format!("this controller is active, with controller epoch {epoch}"));
        self.out.push(Effect::Serve(true));
        self.announce_at = self.mono();
    }

    /// Stops acting: whoever waits is told, and the lease is given back where we still have it.
    pub(super) fn resign(&mut self, why: &str) {
        let acting = match self.role {
            Role::Active { .. } | Role::Electing => true,
            Role::Halted { .. } => {
                self.out.push(Effect::Serve(false));
                self.fail_all(why);
                false
            }
            Role::Starting | Role::Standby => false,
        };
        if acting {
            self.log(Level::Warn, format!("this controller is no longer active: {why}"));
            self.role = Role::Standby;
            self.out.push(Effect::Serve(false));
            self.fail_all(why);
            self.announce_at = self.mono();
        }
        self.snapshot_ready = None;
        if let Some((revision, _)) = self.lease.ours.take() {
            self.out.push(Effect::ReleaseLease { revision });
        }
        self.lease.asked = None;
        self.lease.renew_at = None;
        self.lease.try_at = Some(self.mono() + self.settings.lease / 3);
    }

    /// The history cannot be trusted: nothing is written any more, until it is restored.
    pub(super) fn halt(&mut self, why: String) {
        if let Role::Halted { why: before } = &self.role
            && *before == why
        {
            return;
        }
        self.log(
            Level::Error,
            format!("THE METADATA'S HISTORY IS LOST: {why}. Nothing is written any more; see `dmq metadata restore`"),
        );
        let held = self.lease.ours.is_some();
        self.fail_all("the history is lost");
        self.in_flight = None;
        self.role = Role::Halted { why };
        self.announce_at = self.mono();
        // Whoever holds the lease keeps it, so that one controller answers for the state of things.
        self.out.push(Effect::Serve(held));
        if !held {
            self.try_lease();
        }
    }

    fn fail_all(&mut self, why: &str) {
        let not_controller = || WireError::new(Code::NotController, format!("{why}; ask again"));
        let waiting: Vec<_> = std::mem::take(&mut self.jobs).iter().map(Job::token).collect();
        for token in waiting.into_iter().chain(self.registrations.drain()) {
            self.fail(token, not_controller());
        }
        for waiter in std::mem::take(&mut self.waiters) {
            self.answer_waiter(waiter);
        }
        for token in self.in_flight.take().map(|in_flight| in_flight.tokens()).unwrap_or_default() {
            let words = format!("the change may or may not take effect ({why}); ask again with the same request id");
            self.fail(token, WireError::new(Code::Unknown, words));
        }
    }
}
