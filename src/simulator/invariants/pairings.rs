//! Whose pushes a node applies.

use bytes::Bytes;

use super::Checker;
use crate::simulator::world::{CONTROLLERS, Proc, World, name};
use crate::types::{ControllerId, PairingEpoch, Position, StorageId, Version};
use crate::wire::{Push, WireMessage};

impl Checker {
    pub(super) fn paired(&mut self, storage: StorageId, controller: ControllerId, version: Version) {
        let known = *self.pairings.entry((storage, version.0)).or_insert(controller);
        if known != controller {
            self.break_rule(14, || format!("storage node {storage} has {known} and {controller} in {version}"));
        }
    }
}

impl World {
    /// Under which pairing the node stands before a push comes.
    pub fn check_push_before(&self, proc: Proc) -> PairingEpoch {
        let node = self.nodes[proc - CONTROLLERS].as_ref();
        node.map_or(PairingEpoch(0), |node| node.core.pairing().epoch)
    }

    pub fn check_push_after(&mut self, proc: Proc, before: Position, pairing: PairingEpoch, payload: &Bytes) {
        let Some(node) = &self.nodes[proc - CONTROLLERS] else { return };
        if node.core.history().position() == before || self.checker.lost {
            return;
        }
        // Who is on a history that was lost follows who else is.
        if self.checker.at(before.version).is_none_or(|history| history.position() != before) {
            return;
        }
        let Ok(push) = Push::decode(payload) else { return };
        self.seen.event("push applied");
        let known = self.checker.pairings.get(&(push.storage, push.pairing_epoch.0)).copied();
        let is_stray = known.is_none() && self.checker.restored_at > 0;
        if push.pairing_epoch < pairing || (known != Some(push.controller) && !is_stray) {
            self.checker.break_rule(14, || {
                let (controller, epoch) = (push.controller, push.pairing_epoch);
                format!(
                    "{} applies a push of controller {controller} under {epoch}, paired {known:?}, {pairing}",
                    name(proc)
                )
            });
        }
    }
}
