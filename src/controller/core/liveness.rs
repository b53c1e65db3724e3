//! What the liveness of storage nodes asks for: fencing, unfencing, draining, balance and pairing, one change at a time.

use std::collections::BTreeSet;
use std::time::Duration;

use super::append::Purpose;
use super::office::Role;
use super::sessions::Session;
use super::{Controller, Level};
use crate::metadata::{NodeState, Record, StorageNode, rules};
use crate::types::{Monotonic, StorageId, Version};
use crate::wire::WantedState;

/// What nodes ask for that is not urgent is gathered for a millisecond per so many nodes, which is many times what looking at
/// them takes; in a small cluster, not at all.
const NODES_PER_MS: u64 = 50;
const GATHER_AT_MOST: Duration = Duration::from_millis(100);

impl Controller {
    /// All nodes are looked at with the next input.
    pub(super) fn look_at_nodes(&mut self) {
        self.nodes_due = Monotonic(0);
    }

    /// Looks at one node that was heard: all are looked at only where this one asks for something. There are thousands, and
    /// each is heard twice a second.
    pub(super) fn look_at_node(&mut self, id: StorageId) {
        let (Some(node), Some(session)) =
            (self.image().and_then(|image| image.storage.get(&id)), self.sessions.get(&id))
        else {
            return;
        };
        let must_fence = node.state.serves() && self.must_fence(Some(session), self.in_grace());
        let asks = session.wanted == WantedState::Draining || self.may_unfence(node, session);
        if must_fence {
            self.look_at_nodes();
        } else if asks {
            self.look_at_nodes_soon();
        }
    }

    /// All nodes are looked at in a moment, so that what many of them ask for at once is one change.
    pub(super) fn look_at_nodes_soon(&mut self) {
        let nodes = self.image().map_or(0, |image| image.storage.len() as u64);
        let gather = Duration::from_millis(nodes / NODES_PER_MS).min(GATHER_AT_MOST);
        self.nodes_due = self.nodes_due.min(self.nodes_seen_at + gather);
    }

    /// Whether a node that serves must be fenced now.
    fn must_fence(&self, session: Option<&Session>, grace: bool) -> bool {
        // After a stall, what would show that it lives may wait in the queue, over another connection too.
        if self.mono() < self.catching_up_until {
            return false;
        }
        let (now, timeout) = (self.mono(), self.settings.session_timeout);
        let Some(session) = session else { return !grace };
        if let Some(at) = session.ended {
            return self.is_ended_still(at);
        }
        let silent = !grace && now.since(self.last_heard(session)) >= timeout;
        // Nor is what could not be heard of its progress, before this term or while it was cut off, taken for none.
        let idle = !grace && session.behind.is_some_and(|(_, since)| now.since(since) >= timeout);
        #[cfg(test)]
        let silent = silent && !crate::simulator::planted(crate::simulator::Bug::Deaf);
        let hung = Duration::from_millis(session.health.sync_stalled_ms) >= timeout;
        silent || idle || hung
    }

    /// What this controller heard of a connection before its term may be overtaken by what it could not hear: whoever came back over
    /// another one is heard within a heartbeat or two.
    pub(super) fn is_ended_still(&self, at: Monotonic) -> bool {
        match self.role {
            Role::Active { since, .. } => {
                at >= since || self.mono().since(since) >= 2 * self.settings.heartbeat_interval
            }
            Role::Starting | Role::Standby | Role::Electing | Role::Halted { .. } => false,
        }
    }

    /// From when a node's silence counts.
    pub(super) fn last_heard(&self, session: &Session) -> Monotonic {
        session.heard.map_or(self.hearing_since, |heard| heard.max(self.hearing_since))
    }

    /// Whether a node has caught up and may serve.
    fn may_unfence(&self, node: &StorageNode, session: &Session) -> bool {
        let heard = session.heard.is_some_and(|heard| self.mono().since(heard) < self.settings.session_timeout)
            && session.connection.is_some();
        let caught_up = session.position.version >= session.fenced_at.max(Version(node.epoch.0));
        let well = session.health.directory_errors.is_empty() && session.health.sync_stalled_ms == 0;
        let running = session.wanted == WantedState::Running;
        #[cfg(test)]
        let running = running && !crate::simulator::planted(crate::simulator::Bug::FencedForGood);
        let here = node.state == NodeState::Fenced && node.incarnation == session.incarnation;
        here && heard && caught_up && well && running && session.ended.is_none() && session.behind.is_none()
    }

    /// Storage nodes that must be fenced now.
    fn to_fence(&self) -> BTreeSet<StorageId> {
        let Some(image) = self.image() else { return BTreeSet::new() };
        let grace = self.in_grace();
        let serving = image.storage.iter().filter(|(_, node)| node.state.serves());
        serving.map(|(id, _)| *id).filter(|id| self.must_fence(self.sessions.get(id), grace)).collect()
    }

    /// Storage nodes that have caught up and may serve.
    fn to_unfence(&self) -> BTreeSet<StorageId> {
        let Some(image) = self.image() else { return BTreeSet::new() };
        let ready = |(id, session): (&StorageId, &Session)| {
            image.storage.get(id).filter(|node| self.may_unfence(node, session)).map(|_| *id)
        };
        self.sessions.iter().filter_map(ready).collect()
    }

    /// When the first node can come to need something by time alone: by silence, or by staying behind.
    fn nodes_due(&self) -> Monotonic {
        let timeout = self.settings.session_timeout;
        // Whoever falls silent or behind from now on does so for a session at least.
        let mut due = self.mono() + timeout;
        if self.in_grace() {
            due = due.min(self.grace_since() + timeout);
        }
        if self.mono() < self.catching_up_until {
            due = due.min(self.catching_up_until);
        }
        for session in self.sessions.values() {
            let silent = self.last_heard(session) + timeout;
            let behind = session.behind.map(|(_, since)| since + timeout);
            // What is over already was looked at, and asked for nothing.
            let next = [Some(silent), behind].into_iter().flatten().filter(|at| *at > self.mono()).min();
            due = next.map_or(due, |next| due.min(next));
        }
        due
    }

    /// What the liveness of nodes asks for, one change at a time. True where one was begun.
    pub(super) fn work_for_nodes(&mut self) -> bool {
        if self.mono() >= self.nodes_due {
            self.nodes_seen_at = self.mono();
            if self.work_for_liveness() {
                return true;
            }
            self.nodes_due = self.nodes_due();
        }
        if self.pairing_dirty && self.work_for_pairing() {
            return true;
        }
        self.work_for_unclean_elections() || self.work_for_balance()
    }

    /// Where a controller has just begun, above all with a restored history in which everybody is fenced, those in sync may be about to
    /// come, and may hold a lease yet. It waits for them for a session before it elects others, where a topic allows that.
    fn work_for_unclean_elections(&mut self) -> bool {
        if self.unclean_at.is_none_or(|at| self.mono() < at) {
            return false;
        }
        self.unclean_at = None;
        let records = self.image().map(rules::node::elect_uncleanly).unwrap_or_default();
        if records.is_empty() {
            return false;
        }
        self.append(records, "nobody in sync came back: unclean elections".into(), None, Purpose::Background);
        true
    }

    /// Fences, drains and lets serve.
    fn work_for_liveness(&mut self) -> bool {
        let fence = self.to_fence();
        if !fence.is_empty() {
            let why = self.why_fenced(&fence);
            return self.change_nodes(rules::node::fence, &fence, why);
        }
        if self.work_for_draining() {
            return true;
        }
        let unfence = self.to_unfence();
        if !unfence.is_empty() {
            let why = format!("{} caught up", names(&unfence));
            let rule = if self.unclean_at.is_some() { rules::node::unfence_cleanly } else { rules::node::unfence };
            return self.change_nodes(rule, &unfence, why);
        }
        false
    }

    /// Leads back to the preferred replicas, now and then and a few at a time.
    fn work_for_balance(&mut self) -> bool {
        const MOVES: usize = 1000;
        if self.balance_at.is_none_or(|at| self.mono() < at) {
            return false;
        }
        self.balance_at = self.settings.leader_balance.map(|every| self.mono() + every);
        let records = self.image().map(|image| rules::partition::preferred(image, MOVES)).unwrap_or_default();
        if records.is_empty() {
            return false;
        }
        self.append(records, "leaderships go back to the preferred replicas".into(), None, Purpose::Background);
        true
    }

    fn change_nodes(
        &mut self,
        rule: fn(&crate::metadata::Image, &BTreeSet<StorageId>) -> Vec<Record>,
        nodes: &BTreeSet<StorageId>,
        why: String,
    ) -> bool {
        let records = self.image().map(|image| rule(image, nodes)).unwrap_or_default();
        if records.is_empty() {
            return false;
        }
        self.log(Level::Info, why.clone());
        self.append(records, why.into(), None, Purpose::Background);
        true
    }

    fn why_fenced(&self, nodes: &BTreeSet<StorageId>) -> String {
        let ended = nodes.iter().all(|id| self.sessions.get(id).is_some_and(|session| session.ended.is_some()));
        let why = if ended {
            "the connection ended".to_string()
        } else {
            format!("silent, or without progress, for {} ms", self.settings.session_timeout.as_millis())
        };
        format!("{} fenced: {why}", names(nodes))
    }

    fn work_for_draining(&mut self) -> bool {
        let Some(image) = self.image() else { return false };
        let wants = |session: &Session| session.wanted == WantedState::Draining && session.ended.is_none();
        let mut drain = None;
        for (id, session) in self.sessions.iter().filter(|(_, session)| wants(session)) {
            let Some(node) = image.storage.get(id).filter(|node| node.incarnation == session.incarnation) else {
                continue;
            };
            match node.state {
                NodeState::Active => drain = Some((*id, NodeState::Active)),
                NodeState::Draining if node.leaders == 0 => drain = Some((*id, NodeState::Draining)),
                NodeState::Draining | NodeState::Fenced | NodeState::Removed => {}
            }
        }
        match drain {
            Some((id, NodeState::Active)) => {
                let records = rules::node::drain(image, id);
                let why = format!("storage node {id} drains");
                self.log(Level::Info, why.clone());
                self.append(records, why.into(), None, Purpose::Background);
                true
            }
            Some((id, _)) => {
                let why = format!("storage node {id} has drained");
                self.change_nodes(rules::node::fence, &BTreeSet::from([id]), why)
            }
            None => false,
        }
    }

    fn work_for_pairing(&mut self) -> bool {
        self.pairing_dirty = false;
        let mut alive: BTreeSet<_> =
            self.peers.iter().filter(|(_, peer)| self.peer_alive(peer)).map(|(id, _)| *id).collect();
        alive.insert(self.me.controller);
        let services = self.services.clone();
        let Some(image) = self.image() else { return false };
        let records = rules::pairing::repair(image, &|id| services.pairings.get(&id).copied(), &alive);
        if records.is_empty() {
            return false;
        }
        let why = "pairings follow services.json and the metadata services that live";
        self.append(records, why.into(), None, Purpose::Background);
        true
    }
}

pub(super) fn names(nodes: &BTreeSet<StorageId>) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<_> = nodes.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = nodes.len().saturating_sub(SHOWN);
    let plural = if nodes.len() == 1 { "storage node" } else { "storage nodes" };
    if more == 0 {
        format!("{plural} {}", shown.join(", "))
    } else {
        format!("{plural} {} and {more} more", shown.join(", "))
    }
}
