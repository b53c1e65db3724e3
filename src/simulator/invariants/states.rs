//! What holds of each process's state, while it runs and when it comes back.

use crate::metadata::History;
use crate::simulator::world::{CONTROLLERS, Proc, World, name};
use crate::types::{ControllerEpoch, Position, Version};

/// What a process was last seen with, in this life of it.
#[derive(Clone, Copy, Default)]
pub struct Known {
    life: u64,
    position: Position,
    epoch: ControllerEpoch,
}

impl World {
    pub fn check_controller(&mut self, proc: Proc) {
        let Some(controller) = &self.controllers[proc] else { return };
        let (position, acting) = (controller.core.history().position(), controller.core.acting_epoch());
        // Whoever acts in an epoch that the stream has lost does so until it hears of that, and the epoch is given out again.
        if let Some(epoch) = acting.filter(|_| !self.checker.lost)
            && *self.checker.epochs_granted.entry(epoch).or_insert(proc) != proc
        {
            self.checker.break_rule(6, || format!("{} acts in epoch {epoch}, which is another's", name(proc)));
        }
        self.check_position(proc, position, acting);
    }

    pub fn check_node(&mut self, proc: Proc) {
        let Some(node) = &self.nodes[proc - CONTROLLERS] else { return };
        let (position, epoch) = (node.core.history().position(), node.core.controller_epoch());
        self.check_position(proc, position, Some(epoch));
    }

    fn check_position(&mut self, proc: Proc, position: Position, epoch: Option<ControllerEpoch>) {
        let life = self.hosts[proc].life;
        let known = self.checker.processes.entry(proc).or_default();
        if known.life != life {
            *known = Known { life, ..Known::default() };
        }
        let before = *known;
        known.epoch = epoch.unwrap_or(known.epoch);
        if epoch.is_some_and(|epoch| epoch < before.epoch) {
            self.checker.break_rule(2, || format!("{} goes from {} to {epoch:?}", name(proc), before.epoch));
        }
        if position == before.position {
            return;
        }
        if let Some(known) = self.checker.processes.get_mut(&proc) {
            known.position = position;
        }
        if position.version < before.position.version {
            self.checker.break_rule(2, || format!("{} goes from {} to {position}", name(proc), before.position));
        }
        self.check_state(proc, position);
    }

    /// The state at a position is what everybody else has there.
    fn check_state(&mut self, proc: Proc, position: Position) {
        let history = match proc < CONTROLLERS {
            true => self.controllers[proc].as_ref().map(|controller| controller.core.history()),
            false => self.nodes[proc - CONTROLLERS].as_ref().map(|node| node.core.history()),
        };
        let Some(image) = history.and_then(History::image) else { return };
        let on_trail = self.checker.at(position.version).filter(|history| history.position() == position);
        let key = (position.version, position.digest.0);
        let reference = on_trail.and_then(History::image).or_else(|| self.checker.strays.get(&key));
        match reference {
            Some(reference) if reference == image => {}
            Some(reference) => {
                let words = format!("{} has at {position} {image:?}, and another {reference:?}", name(proc));
                self.checker.break_rule(1, || words);
            }
            None => {
                let image = image.clone();
                self.checker.strays.insert(key, image);
            }
        }
    }

    /// A process begins with this.
    pub fn check_recovered(&mut self, proc: Proc, history: &History, epoch: ControllerEpoch) {
        let folder = self.hosts[proc].folder;
        let (version, known) = self.checker.folders.get(&folder).copied().unwrap_or_default();
        let found = history.position();
        if found.version < version || (proc >= CONTROLLERS && epoch < known) {
            self.checker.break_rule(2, || {
                format!("{} begins with {found} and epoch {epoch}, and had said {version} and {known}", name(proc))
            });
        }
        if version > Version::ZERO {
            self.seen.event("restart with metadata");
        }
    }

    /// A process says that it has this on its disk.
    pub fn check_reported(&mut self, proc: Proc, position: Position, epoch: ControllerEpoch) {
        let folder = self.hosts[proc].folder;
        let known = self.checker.folders.entry(folder).or_default();
        *known = (known.0.max(position.version), known.1.max(epoch));
    }
}
