//! Who is heard, who is fenced, who is granted what.

use bytes::Bytes;

use super::Checker;
use crate::metadata::{NodeState, ParsedEntry, Record};
use crate::simulator::bus::{Asked, Waiting};
use crate::simulator::controllers::SESSION;
use crate::simulator::queue::Time;
use crate::simulator::world::{CONTROLLERS, COPY, Host, Proc, World, name};
use crate::storage::core::{Call, Input};
use crate::types::{IncarnationId, NodeEpoch, StorageId, Version};
use crate::wire::admin::PartitionAltered;
use crate::wire::{HeartbeatAnswer, WireMessage, admin};

/// What a heartbeat is known to be by whoever sees all.
#[derive(Clone, Copy)]
pub struct Sent {
    pub proc: Proc,
    pub life: u64,
    pub generation: u64,
    pub sequence: u64,
    pub version: Version,
}

pub struct Heard {
    at: Time,
    sent: Sent,
}

impl World {
    /// A heartbeat reaches a controller's ears, be it busy or not. One that another overtook tells nothing new.
    pub fn heartbeat_arrives(&mut self, controller: Proc, at: Time, sent: Sent) {
        let held = self.checker.heard.get(&(controller, sent.proc)).map(|heard| heard.sent);
        if held.is_some_and(|held| held.life == sent.life && held.sequence >= sent.sequence) {
            return;
        }
        self.checker.heard.insert((controller, sent.proc), Heard { at, sent });
    }

    /// Who lives and is heard is not to be fenced.
    pub fn check_append(&mut self, controller: Proc, payload: &Bytes) {
        let is_fencing = payload.windows(16).any(|window| window == br#""state":"fenced""#);
        let Some(entry) = ParsedEntry::parse(payload).filter(|_| is_fencing) else { return };
        let Ok(records) = entry.records() else { return };
        let anew: Vec<_> = records
            .iter()
            .filter_map(|record| match record {
                Record::StorageRegistered { storage, .. } | Record::StorageReplaced { storage, .. } => Some(*storage),
                _ => None,
            })
            .collect();
        for record in &records {
            if let Record::StorageStateChanged { storage, node_epoch, state: NodeState::Fenced } = record
                && !anew.contains(storage)
            {
                self.check_fence(controller, *storage, *node_epoch, &entry.cause);
            }
        }
    }

    fn check_fence(&mut self, controller: Proc, storage: StorageId, epoch: NodeEpoch, cause: &str) {
        let now = self.now();
        let lives = |proc: &Proc| {
            self.nodes[*proc - CONTROLLERS].as_ref().is_some_and(|node| {
                node.core.identity().storage == Some(storage) && node.core.node_epoch() == Some(epoch)
            })
        };
        let Some(proc) = (CONTROLLERS..=COPY).find(lives) else { return };
        let host = &self.hosts[proc];
        let Some(heard) = self.checker.heard.get(&(controller, proc)) else { return };
        let same = heard.sent.life == host.life && heard.sent.generation == host.generation;
        let is_heard = same && host.connection.is_some() && now - heard.at < SESSION;
        let works = heard.sent.version >= self.checker.head_at(now.saturating_sub(SESSION));
        let stops = host.stopping || host.slow_disk_until + SESSION > now;
        if is_heard && works && !stops && !self.checker.lost {
            let ago = (now - heard.at) / 1000;
            let words = format!("{} fences {} ({cause}), which it heard {ago} ms ago", name(controller), name(proc));
            self.checker.break_rule(11, || words);
        }
    }

    /// What an active controller grants, and what it says to clients.
    pub fn check_answer(&mut self, controller: Proc, request: u64, payload: &Bytes) {
        if let Some(Waiting::Client { client, attempt }) = self.waiting.get(&request) {
            let (client, attempt) = (*client, *attempt);
            return self.check_refusal(controller, client, attempt, payload);
        }
        let Some(Waiting::Node { proc, life, asked: Asked::Heartbeat(_) }) = self.waiting.get(&request) else { return };
        if self.hosts[*proc].life != *life {
            return;
        }
        let (proc, incarnation) = (*proc, self.hosts[*proc].incarnation);
        let Ok(answer) = HeartbeatAnswer::decode(payload) else { return };
        if answer.error.is_some() || answer.incarnation != incarnation {
            return;
        }
        self.check_lease(controller, proc, incarnation, &answer);
        if answer.shutdown_granted {
            self.seen.event("shutdown granted");
            self.check_shutdown(controller, proc);
        }
    }

    fn check_lease(&mut self, controller: Proc, proc: Proc, incarnation: IncarnationId, answer: &HeartbeatAnswer) {
        if answer.lease_ms == 0 {
            return;
        }
        let image = self.controllers[controller].as_ref().and_then(|c| c.core.history().image());
        let storage = self.nodes[proc - CONTROLLERS].as_ref().and_then(|node| node.core.identity().storage);
        let node = image.and_then(|image| image.storage.get(&storage?));
        if node.is_none_or(|node| node.incarnation != incarnation || node.epoch != answer.node_epoch) {
            self.checker.break_rule(10, || format!("{} is given a lease, and is not the registered one", name(proc)));
        }
    }

    fn check_shutdown(&mut self, controller: Proc, proc: Proc) {
        let Some(image) = self.controllers[controller].as_ref().and_then(|c| c.core.history().image()) else { return };
        let Some(storage) = self.nodes[proc - CONTROLLERS].as_ref().and_then(|n| n.core.identity().storage) else {
            return;
        };
        let moved = self.checker.fenced_at.get(&storage).copied().unwrap_or_default();
        let leaders = image.storage.get(&storage).map_or(0, |node| node.leaders);
        let behind = |other: &Proc| {
            self.nodes[*other - CONTROLLERS].as_ref().is_some_and(|node| {
                let Some(id) = node.core.identity().storage else { return false };
                let is_it = image.storage.get(&id).is_some_and(|n| n.incarnation == self.hosts[*other].incarnation);
                is_it && image.is_active(id) && node.core.persisted().version < moved
            })
        };
        let behind = (CONTROLLERS..=COPY).find(behind);
        if leaders > 0 || behind.is_some() {
            self.checker.break_rule(12, || {
                let late = behind.map(name);
                format!("{} may shut down, and leads {leaders}; behind version {moved}: {late:?}", name(proc))
            });
        }
    }
}

impl Checker {
    /// Whether a controller heard a node's process over its present connection.
    pub(super) fn is_heard(&self, controller: Proc, proc: Proc, host: &Host) -> bool {
        let heard = self.heard.get(&(controller, proc));
        heard.is_some_and(|heard| (heard.sent.life, heard.sent.generation) == (host.life, host.generation))
    }

    pub fn asked_for_isr(&mut self, proc: Proc, call: Call, storage: StorageId, epoch: NodeEpoch) {
        self.isr_asked.insert((proc, call.0), (storage, epoch));
    }

    /// An older incarnation's request for in-sync replicas is not granted.
    pub fn note_answer(&mut self, proc: Proc, input: &Input) {
        let Input::IsrAnswer { call, result: Ok(body) } = input else { return };
        let Some((storage, epoch)) = self.isr_asked.remove(&(proc, call.0)) else { return };
        let Ok(answer) = admin::decode::<PartitionAltered>(body) else { return };
        let is_taken = answer.partitions.iter().any(|outcome| outcome.partition_epoch.is_some());
        let present =
            self.at(answer.version).and_then(|history| history.image()?.storage.get(&storage)).map(|n| n.epoch);
        // In a history that was lost it may have another epoch in the same version.
        let is_sure = !self.lost && self.restored_at == 0;
        if is_taken && is_sure && present.is_some_and(|present| present != epoch) {
            self.break_rule(10, || {
                format!("storage node {storage} asked with {epoch}, was granted it, and has {present:?}")
            });
        }
    }
}
