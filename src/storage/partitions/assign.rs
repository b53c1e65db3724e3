//! What the metadata assigns to this node and takes from it. Tens of thousands of logs keep a disk busy for a minute, and whoever reads
//! and writes others is served meanwhile: logs are opened, and directories removed, some at a time. What is open already, changes at once.

use std::collections::{BTreeMap, BTreeSet};

use super::Held;
use super::log::{PartitionLog, millis};
use super::tail::Tail;
use super::worker::Worker;
use crate::log::{Log, LogConfig, LogError, TopicPartition, WantedLog};
use crate::storage::core::{Place, Unassigned};
use crate::storage::replicas::{Input, TakeUp};
use crate::types::Monotonic;

/// How many logs are opened at a time, and how many directories removed.
const OPENED: usize = 256;
const REMOVED: usize = 64;

/// What is to be done yet.
#[derive(Default)]
pub(super) struct Changes {
    /// Held, and not opened yet.
    opening: BTreeSet<Place>,
    /// Directories of what is held no more, and whether that was meant.
    going: BTreeMap<TopicPartition, bool>,
}

impl Worker {
    pub(super) fn replicas_changed(&mut self, now: Monotonic, assigned: Vec<Held>, unassigned: Vec<Unassigned>) {
        unassigned.into_iter().for_each(|gone| self.unassign(now, gone));
        for held in assigned {
            if let Some(was_meant) = self.changes.going.remove(&held.id) {
                // Of a topic that was deleted, and made anew under its name.
                self.remove_directories(vec![(held.id.clone(), was_meant)]);
            }
            let place = held.place;
            if self.engine.log(place).is_some() {
                self.assign(now, held, None);
            } else {
                self.held.insert(place, held);
                self.changes.opening.insert(place);
            }
        }
    }

    /// At once, where there is more to be done.
    pub(super) fn changes_deadline(&self) -> Option<Monotonic> {
        let Changes { opening, going } = &self.changes;
        (!opening.is_empty() || !going.is_empty()).then_some(Monotonic(0))
    }

    pub(super) fn go_on_with_changes(&mut self, now: Monotonic) {
        let places: Vec<_> = (0..OPENED).map_while(|_| self.changes.opening.pop_first()).collect();
        let some: Vec<Held> = places.iter().filter_map(|place| self.held.get(place).cloned()).collect();
        let mut opened = self.open_many(&some);
        for held in some {
            let log = opened.remove(&held.place);
            self.assign(now, held, log);
        }
        let gone = (0..REMOVED).map_while(|_| self.changes.going.pop_first()).collect();
        self.remove_directories(gone);
    }

    /// The logs of those that have none yet, where there are many: together they cost a few syncs.
    fn open_many(&mut self, assigned: &[Held]) -> BTreeMap<Place, Result<Log, LogError>> {
        let now = self.clock.monotonic();
        let new = |held: &&Held| self.engine.log(held.place).is_none() && !self.faults.waits(now, held.place);
        let wanted: Vec<&Held> = assigned.iter().filter(new).collect();
        if wanted.len() < 2 {
            return BTreeMap::new();
        }
        let log = |held: &&Held| WantedLog { id: held.id.clone(), topic: held.place.0, config: held.config.clone() };
        let logs = self.directory.open_logs(wanted.iter().map(log).collect(), millis(self.clock.wall()));
        wanted.iter().map(|held| held.place).zip(logs).collect()
    }

    fn assign(&mut self, now: Monotonic, held: Held, opened: Option<Result<Log, LogError>>) {
        let place = held.place;
        self.held.insert(place, held.clone());
        if self.stays_closed(now, place) {
            self.close(now, place);
            return self.resign(place);
        }
        self.take_up(now, held, opened);
    }

    /// `opened`: the log, where it was opened with others.
    pub(super) fn take_up(&mut self, now: Monotonic, held: Held, opened: Option<Result<Log, LogError>>) {
        let Held { place, id, config, is_relaxed, assignment } = held;
        let how = self.faults.take_up(place, &assignment, self.me);
        if how != TakeUp::Open {
            self.close(now, place);
        }
        if how == TakeUp::Close {
            return;
        }
        let log = match self.engine.log_mut(place) {
            Some(known) => {
                known.log.set_config(config);
                known.is_relaxed = is_relaxed;
                None
            }
            None => match self.open(&id, place, config, opened).and_then(|log| self.mend(place, log, how)) {
                // It was found just now.
                Ok(_) if self.faults.take_up(place, &assignment, self.me) == TakeUp::Close => {
                    return self.close(now, place);
                }
                Ok(log) => {
                    Some(PartitionLog { log, is_relaxed, clock: self.clock, tail: Tail::new(self.tails.clone()) })
                }
                Err(error) => return self.failed(place, &error.into()),
            },
        };
        self.faults.taken_up(place);
        self.give(now, Input::Assigned { place, assignment, log });
    }

    /// A log is cut where it is damaged, where it may be: its leader has the rest. Any other is left as it is, and shall not lead.
    fn mend(&mut self, place: Place, mut log: Log, how: TakeUp) -> Result<Log, LogError> {
        let found = log.first_damage();
        let known = self.faults.damage(place);
        let Some(start) = [found, known].into_iter().flatten().min() else { return Ok(log) };
        if how == TakeUp::Cut {
            log.truncate_to(start, millis(self.clock.wall()))?;
            tracing::warn!(partition = %log.id(), from = %start, "copies anew what was damaged");
            self.forget_fault(place);
        } else if let Some(damage) = log.damages().first() {
            let (partition, damage) = (log.id().clone(), Box::new(damage.clone()));
            if self.note_damage(place, &LogError::Damaged { partition, damage }) {
                self.resign(place);
            }
        }
        Ok(log)
    }

    /// `opened`: what came of it where it was opened with others.
    fn open(
        &mut self,
        id: &TopicPartition,
        place: Place,
        config: LogConfig,
        opened: Option<Result<Log, LogError>>,
    ) -> Result<Log, LogError> {
        let now = millis(self.clock.wall());
        let open = || self.directory.open_log(id.clone(), place.0, config.clone(), now);
        match opened.unwrap_or_else(open) {
            Err(LogError::OtherTopic { .. }) => {
                // A topic of that name was deleted and made anew while this node was away.
                match self.directory.set_aside(id) {
                    Ok(path) => {
                        let kept_for = self.upkeep.kept_for();
                        tracing::warn!(path = %path.display(), %kept_for, "holds a topic that was deleted, and is kept for a while");
                    }
                    Err(error) => tracing::error!(%error, "cannot set aside a topic that was deleted"),
                }
                self.directory.open_log(id.clone(), place.0, config, now)
            }
            opened => opened,
        }
    }

    fn unassign(&mut self, now: Monotonic, gone: Unassigned) {
        let Unassigned { place, is_deliberate } = gone;
        self.give(now, Input::Unassigned(place));
        self.silence(place);
        self.forget_fault(place);
        self.changes.opening.remove(&place);
        if let Some(Held { id, .. }) = self.held.remove(&place) {
            self.changes.going.insert(id, is_deliberate);
        }
    }

    /// A process that ends before it comes to all of them finds the rest when it begins anew, as directories of no topic.
    fn remove_directories(&mut self, gone: Vec<(TopicPartition, bool)>) {
        let (meant, unknown): (Vec<_>, Vec<_>) = gone.into_iter().partition(|(_, was_meant)| *was_meant);
        let meant: Vec<_> = meant.into_iter().map(|(id, _)| id).collect();
        let mut failed = self.directory.remove_many(&meant);
        for (id, _) in unknown {
            match self.directory.set_aside(&id) {
                Ok(path) => {
                    let kept_for = self.upkeep.kept_for();
                    tracing::warn!(path = %path.display(), %kept_for, "the metadata does not know this topic any more; its records are kept for a while");
                }
                Err(error) => failed.push(error),
            }
        }
        for error in failed {
            tracing::error!(%error, "the directory of a replica that is given up stays");
        }
    }
}
