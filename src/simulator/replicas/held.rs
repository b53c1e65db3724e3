//! The logs of what a node holds: opened, closed, cut and removed, as `storage/partitions/assign.rs` and `faults.rs` do it.

use super::{Data, ReplicasProc, SimLog};
use crate::simulator::queue::MS;
use crate::simulator::sabotage::{Bug, planted};
use crate::simulator::world::{CONTROLLERS, Mail, Proc, World, name};
use crate::storage::core::{Assignment, Input as CoreInput, Place};
use crate::storage::replicas::{Input, Log, Retry, Standing, TakeUp, declines_to, resignation};
use crate::types::Offset;

impl World {
    pub(super) fn unassigned(&mut self, proc: Proc, place: Place) {
        self.put_away(proc, place);
        // Behind as many others as there are.
        let others = if self.rng.chance(300) { self.rng.between(0, 3_000) * MS } else { 0 };
        let delay = others + self.disk_time(proc);
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
        let replicas = &mut node.replicas;
        replicas.held.remove(&place);
        replicas.faults.forget(place);
        if let Some(name) = replicas.names.remove(&place) {
            replicas.going.insert((name, place.1));
            self.report(delay, proc, Mail::Data(Data::Remove));
        }
    }

    pub(super) fn assigned(&mut self, proc: Proc, place: Place, name: String, assignment: Assignment) {
        let now = self.clock(proc);
        let partitions = &mut self.folders[self.hosts[proc].folder].partitions;
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
        let replicas = &mut node.replicas;
        let id = (name.clone(), place.1);
        if replicas.going.remove(&id) && !planted(Bug::OtherTopicTrusted) {
            partitions.remove(&id);
            self.seen.event("topic made anew");
        }
        replicas.names.insert(place, name);
        replicas.held.insert(place, assignment);
        if replicas.standing(place).is_some_and(|standing| replicas.faults.stays_closed(now, place, standing)) {
            self.close(proc, place);
            return self.resign(proc, place);
        }
        self.take_up(proc, place);
    }

    /// Its log is closed, and the engine does not have it.
    fn put_away(&mut self, proc: Proc, place: Place) {
        let now = self.clock(proc);
        let folder = &mut self.folders[self.hosts[proc].folder];
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
        let replicas = &mut node.replicas;
        if let Some((name, place, log)) = replicas.take_log(place) {
            folder.put_log(name, place, log);
        }
        replicas.listening.remove(&place);
        replicas.engine.take(now, Input::Unassigned(place), &mut replicas.more);
    }

    fn close(&mut self, proc: Proc, place: Place) {
        self.put_away(proc, place);
        let now = self.clock(proc);
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
        let replicas = &mut node.replicas;
        let held = replicas.follows_as.zip(replicas.held.get(&place));
        if let Some(leader) = held.and_then(|(me, assignment)| declines_to(assignment, me)) {
            replicas.engine.take(now, Input::Declined { place, leader }, &mut replicas.more);
        }
    }

    pub(super) fn take_up(&mut self, proc: Proc, place: Place) {
        let Some(node) = &self.nodes[proc - CONTROLLERS] else { return };
        let replicas = &node.replicas;
        let Some(assignment) = replicas.held.get(&place).cloned() else { return };
        let how = replicas.faults.take_up(place, &assignment, replicas.follows_as);
        if how != TakeUp::Open {
            self.close(proc, place);
        }
        if how == TakeUp::Close {
            return;
        }
        let log = self.open_log(proc, place).map(|log| self.mend_log(proc, place, log, how));
        let now = self.clock(proc);
        let folder = &mut self.folders[self.hosts[proc].folder];
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
        let replicas = &mut node.replicas;
        if let (Some(log), Some(name)) = (&log, replicas.names.get(&place))
            && replicas.faults.take_up(place, &assignment, replicas.follows_as) == TakeUp::Close
        {
            // It was found just now.
            folder.put_log(name.clone(), place, log.clone());
            return self.close(proc, place);
        }
        replicas.faults.taken_up(place);
        replicas.engine.take(now, Input::Assigned { place, assignment, log }, &mut replicas.more);
    }

    /// None where the engine has it.
    fn open_log(&mut self, proc: Proc, place: Place) -> Option<SimLog> {
        let replicas = self.nodes[proc - CONTROLLERS].as_ref().map(|node| &node.replicas)?;
        let name = replicas.names.get(&place).filter(|_| replicas.engine.log(place).is_none())?;
        let (log, is_other) = self.folders[self.hosts[proc].folder].open_log(name, place);
        if is_other {
            self.seen.event("directory of a deleted topic set aside");
        }
        Some(log)
    }

    /// Cuts what is damaged, where it may be cut.
    fn mend_log(&mut self, proc: Proc, place: Place, mut log: SimLog, how: TakeUp) -> SimLog {
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return log };
        let replicas = &mut node.replicas;
        let damage = log.first_damage().into_iter().chain(replicas.faults.damage(place)).min();
        let Some(start) = damage else { return log };
        if how == TakeUp::Cut {
            log.cut(start.0);
            let removed = std::mem::take(&mut log.removed);
            replicas.faults.forget(place);
            self.seen.event("damaged replica cut");
            self.note(|| format!("{} cuts its damaged {}.{} at {start}", name(proc), place.0, place.1));
            self.check_mended(proc, place, &removed);
        } else if log.first_damage().is_some() && self.note_damage(proc, place, start) {
            self.resign(proc, place);
        }
        log
    }

    /// Records cannot be read that once were written.
    pub fn unreadable(&mut self, proc: Proc, place: Place, offset: i64) {
        if self.note_damage(proc, place, Offset(offset)) {
            self.resign(proc, place);
            self.take_up(proc, place);
        }
    }

    /// Whether it is the first that is known of.
    fn note_damage(&mut self, proc: Proc, place: Place, offset: Offset) -> bool {
        let now = self.clock(proc);
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return false };
        let faults = &mut node.replicas.faults;
        if faults.damage(place).is_some() {
            return false;
        }
        faults.note(now, place, "it is damaged".into(), Some(offset));
        self.seen.event("damage found");
        self.note(|| format!("{} finds {}.{} damaged at {offset}", name(proc), place.0, place.1));
        true
    }

    pub(super) fn replica_failed(&mut self, proc: Proc, place: Place, is_full: bool) {
        let now = self.clock(proc);
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
        let replicas = &mut node.replicas;
        let standing = replicas.standing(place);
        let is_given_up = replicas.faults.failed(now, place, "it failed".into(), None, standing, is_full);
        if !is_given_up {
            return self.seen.event("last in-sync replica kept on a full disk");
        }
        if let Some(log) = replicas.engine.log_mut(place)
            && !planted(Bug::FailedSyncTrusted)
        {
            log.rewrite_unsynced();
        }
        self.seen.event("replica given up");
        self.note(|| format!("{} gives up {}.{}", name(proc), place.0, place.1));
        self.close(proc, place);
        self.resign(proc, place);
    }

    pub(super) fn resign(&mut self, proc: Proc, place: Place) {
        let Some(node) = &self.nodes[proc - CONTROLLERS] else { return };
        let ReplicasProc { held, peers, follows_as, .. } = &node.replicas;
        let wish = follows_as.zip(held.get(&place)).and_then(|(me, held)| resignation(place, held, me, peers));
        if let Some(wish) = wish {
            let delay = self.rng.between(5, 300);
            self.report(delay, proc, Mail::Node(CoreInput::InSyncWishes(vec![wish])));
        }
    }

    pub(super) fn retry_faults(&mut self, proc: Proc) {
        let now = self.clock(proc);
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
        for place in node.replicas.faults.due(now) {
            let records = &self.folders[self.hosts[proc].folder].records;
            let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
            let replicas = &mut node.replicas;
            let start = replicas.engine.log(place).map(SimLog::start);
            match replicas.faults.retry(now, place, replicas.standing(place), start, || !records.is_full()) {
                Retry::Over => _ = replicas.faults.forget(place),
                Retry::Resign => self.resign(proc, place),
                Retry::Open => {
                    self.seen.event("replica opened again");
                    self.resign(proc, place);
                    self.take_up(proc, place);
                }
            }
        }
    }

    /// What is damaged where no other replica is in sync is deleted, with all that is before it.
    pub fn delete_damaged(&mut self, proc: Proc) {
        let Some(node) = &self.nodes[proc - CONTROLLERS] else { return };
        let replicas = &node.replicas;
        let alone = |place: &Place| replicas.standing(*place).is_some_and(Standing::is_alone);
        let before = |place: &Place| {
            let before = replicas.faults.damage(*place)?.0 + 1;
            Some((*place, before)).filter(|_| replicas.engine.log(*place).is_some_and(|log| log.start().0 < before))
        };
        let damaged: Vec<_> = replicas.held.keys().filter(|place| alone(place)).filter_map(before).collect();
        for (place, before) in damaged {
            self.delete_old(proc, place, before);
            self.seen.event("damaged records deleted");
        }
    }
}
