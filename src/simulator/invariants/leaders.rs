//! Who leads holds a lease, or stops.
//!
//! A leadership that moves from a living node is given up when that applies the change, and at the latest with its lease.
//! One that is taken from a node for its silence, or since its connection ended, is held no more by then.

use super::Place;
use crate::metadata::{Change, NodeState, Record};
use crate::simulator::controllers::SESSION;
use crate::simulator::queue::{MS, Time};
use crate::simulator::world::{CONTROLLERS, COPY, Proc, World, name};
use crate::types::{LeaderEpoch, NodeEpoch, StorageId};

/// The longest that a lease lasts.
const LEASE: Time = SESSION / 10 * 9;

impl World {
    /// Looks at a node that has come to lead something, or may lead again, and at all of them now and then.
    pub fn check_leads(&mut self, proc: Proc) {
        let now = self.now();
        if self.checker.lost {
            return;
        }
        for (place, epoch) in self.leads(proc) {
            let next = (place, LeaderEpoch(epoch.0.saturating_add(1)));
            let moved = self.checker.moved.range(next..=(place, LeaderEpoch(u32::MAX))).next().map(|(_, at)| *at);
            if let Some(moved) = moved.filter(|moved| now > moved + LEASE) {
                let ago = (now - moved) / MS;
                let words = format!("{} leads {place:?} in epoch {epoch}, which ended {ago} ms ago", name(proc));
                self.checker.break_rule(3, || words);
            }
        }
    }

    pub fn check_all_leads(&mut self) {
        (CONTROLLERS..=COPY).for_each(|proc| self.check_leads(proc));
    }

    fn leads(&self, proc: Proc) -> Vec<(Place, LeaderEpoch)> {
        if !self.may_lead(proc) {
            return Vec::new();
        }
        let node = self.nodes[proc - CONTROLLERS].iter();
        node.flat_map(|node| node.core.leads()).map(|held| ((held.topic, held.partition), held.leader_epoch)).collect()
    }

    fn may_lead(&self, proc: Proc) -> bool {
        self.nodes[proc - CONTROLLERS].as_ref().is_some_and(|node| node.core.may_lead(self.clock(proc)))
    }

    /// The change takes effect: whoever it fences as gone must not lead any more.
    pub(super) fn check_taken(&mut self, change: &Change) {
        let gone = ["silent", "connection ended", "registered incarnation"];
        if self.checker.lost || !gone.iter().any(|words| change.cause.0.contains(words)) {
            return;
        }
        for record in &change.records {
            if let Record::StorageStateChanged { storage, node_epoch, state: NodeState::Fenced } = record {
                self.check_gone(*storage, *node_epoch, &change.cause.0);
            }
        }
    }

    fn check_gone(&mut self, storage: StorageId, epoch: NodeEpoch, cause: &str) {
        let is_ended = cause.contains("connection ended");
        // That it came back over another connection was perhaps said to nobody who heard it.
        if is_ended && self.faults.rained_at + 3 * SESSION > self.now() {
            return;
        }
        let elected = self.checker.image().and_then(|image| image.controller.as_ref()).map(|held| held.incarnation);
        let by = (0..CONTROLLERS).find(|proc| Some(self.hosts[*proc].incarnation) == elected);
        let is_heard = |proc: &Proc| by.is_some_and(|by| self.checker.is_heard(by, *proc, &self.hosts[*proc]));
        let leads = |proc: &Proc| {
            let is_it = self.nodes[*proc - CONTROLLERS].as_ref().is_some_and(|node| {
                node.core.identity().storage == Some(storage) && node.core.node_epoch() == Some(epoch)
            });
            is_it && (!is_ended || is_heard(proc)) && self.may_lead(*proc)
        };
        if let Some(proc) = (CONTROLLERS..=COPY).find(leads) {
            let words = format!("{} is fenced ({cause}), and may lead", name(proc));
            self.checker.break_rule(3, || words);
        }
    }
}
