//! Replicas whose logs failed: what `replicas/faults.rs` decides is carried out, and the heartbeat says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::log::Failure;
use super::worker::Worker;
use crate::log::LogError;
use crate::storage::core::Place;
use crate::storage::replicas::{Faults, Input, Retry, Standing, declines_to, resignation};
use crate::types::{LeaderEpoch, Monotonic, Offset};
use crate::wire::Health;

const LAG_EVERY: Duration = Duration::from_millis(250);
const SAID_EVERY: Duration = Duration::from_secs(60);
/// How many faults a heartbeat tells.
const TOLD: usize = 16;

/// What the heartbeat says of the partitions.
#[derive(Clone, Default)]
pub(in crate::storage) struct Vitals(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    faults: Vec<String>,
    largest_lag: u64,
    refused: u64,
    /// When it was last said that something was refused.
    said: BTreeMap<Whose, Monotonic>,
}

/// Whose messages are refused, as far as that can be told: by where they come in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(in crate::storage) enum Whose {
    Followers,
    /// Of a partition that is led here.
    Clients(Place),
    /// Of clients who name no partition.
    Anybody,
}

impl Vitals {
    /// Faults are told of a node that `serves`: one whose directory has faults does not come to serve, and a log that fails, of which
    /// this may be the only copy, must not keep all the others from being led.
    pub(in crate::storage) fn tell(&self, health: &mut Health, serves: bool) {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if serves {
            health.directory_errors.extend(told.faults.iter().cloned());
        }
        health.replication_lag_records = told.largest_lag;
        health.refused_messages = told.refused;
    }

    /// Counts messages that nobody sends who keeps to the protocol, and says once a minute why.
    pub(in crate::storage) fn refuse(&self, now: Monotonic, whose: Whose, count: u64, why: impl FnOnce() -> String) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.refused = told.refused.saturating_add(count);
        if told.said.get(&whose).is_some_and(|at| now.since(*at) < SAID_EVERY) {
            return;
        }
        // No more are kept than were refused within a minute, of what is led here.
        told.said.retain(|_, at| now.since(*at) < SAID_EVERY);
        told.said.insert(whose, now);
        drop(told);
        tracing::warn!("a message was refused: {}", why());
    }
}

impl Vitals {
    fn set_faults(&self, faults: &Faults) {
        let faults = faults.words().take(TOLD).map(str::to_owned).collect();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).faults = faults;
    }
}

impl Worker {
    /// An append or a sync failed.
    pub(super) fn failed(&mut self, place: Place, error: &Failure) {
        self.failed_so(place, error, error.error().is_out_of_space());
    }

    /// `is_full`: the disk takes nothing, and what it has can still be read by what the engine has open.
    pub(super) fn failed_so(&mut self, place: Place, error: &Failure, is_full: bool) {
        let now = self.clock.monotonic();
        let error = error.error();
        tracing::error!(%error, "a replica is given up for now");
        let standing = self.standing(place);
        let is_given_up = self.faults.failed(now, place, error.to_string(), damage(error), standing, is_full);
        self.vitals.set_faults(&self.faults);
        if is_given_up {
            if let Some(held) = self.engine.log(place).filter(|held| !held.is_relaxed) {
                self.directory.distrust(&held.log);
            }
            self.close(now, place);
            self.resign(place);
        }
    }

    /// The replica is held, and takes part in nothing.
    pub(super) fn close(&mut self, now: Monotonic, place: Place) {
        self.give(now, Input::Unassigned(place));
        self.silence(place);
        let leader = self.me.zip(self.held.get(&place)).and_then(|(me, held)| declines_to(&held.assignment, me));
        if let Some(leader) = leader {
            self.give(now, Input::Declined { place, leader });
        }
    }

    /// Nobody counts on what this closed replica has: where it is damaged, it is cut and copied anew.
    pub(super) fn left(&mut self, place: Place, leader_epoch: LeaderEpoch) {
        if self.faults.left(place, leader_epoch)
            && let Some(held) = self.held.get(&place).cloned()
        {
            self.take_up(self.clock.monotonic(), held, None);
        }
    }

    /// Records cannot be read that once were written.
    pub(super) fn unreadable(&mut self, place: Place, error: &LogError) {
        if !self.note_damage(place, error) {
            return;
        }
        self.resign(place);
        // Who follows copies it anew, and a leader only once another one leads.
        if let Some(held) = self.held.get(&place).cloned() {
            self.take_up(self.clock.monotonic(), held, None);
        }
    }

    /// Whether it is damage, and the first that is known of.
    pub(super) fn note_damage(&mut self, place: Place, error: &LogError) -> bool {
        let damage = damage(error);
        if damage.is_none() || self.faults.damage(place).is_some() {
            return false;
        }
        tracing::error!(%error, "records are damaged");
        self.faults.note(self.clock.monotonic(), place, error.to_string(), damage);
        self.vitals.set_faults(&self.faults);
        true
    }

    /// Whether no other replica is in sync.
    pub(super) fn is_alone(&self, place: Place) -> bool {
        self.standing(place).is_some_and(Standing::is_alone)
    }

    /// The replica works again, or is gone.
    pub(super) fn forget_fault(&mut self, place: Place) {
        if self.faults.forget(place) {
            self.vitals.set_faults(&self.faults);
        }
    }

    /// Asks that another in-sync replica leads, if this node does and there is one.
    pub(super) fn resign(&mut self, place: Place) {
        let wish = self
            .me
            .zip(self.held.get(&place))
            .and_then(|(me, held)| resignation(place, &held.assignment, me, &self.peers));
        if let Some(wish) = wish {
            self.ask_in_sync(vec![wish]);
        }
    }

    /// None where this node does not hold it.
    fn standing(&self, place: Place) -> Option<Standing> {
        let assignment = &self.held.get(&place)?.assignment;
        Some(Standing::new(assignment, self.me?, self.engine.log(place).is_none()))
    }

    /// Whether a log that failed is to stay closed for now.
    pub(super) fn stays_closed(&self, now: Monotonic, place: Place) -> bool {
        self.standing(place).is_some_and(|standing| self.faults.stays_closed(now, place, standing))
    }

    /// What is due is tried again.
    pub(super) fn retry_faults(&mut self, now: Monotonic) {
        let mut disk_works = None;
        for place in self.faults.due(now) {
            let standing = self.standing(place);
            let start = self.engine.log(place).map(|held| held.log.start());
            let directory = &self.directory;
            let works = || *disk_works.get_or_insert_with(|| directory.probe().is_ok());
            match self.faults.retry(now, place, standing, start, works) {
                Retry::Over => self.forget_fault(place),
                Retry::Resign => self.resign(place),
                Retry::Open => {
                    self.resign(place);
                    if let Some(held) = self.held.get(&place).cloned() {
                        self.take_up(now, held, None);
                    }
                }
            }
        }
    }

    /// Tells now and then how far followers lag.
    pub(super) fn tell_lag(&mut self, now: Monotonic) {
        if now >= self.lag_at {
            self.lag_at = now + LAG_EVERY;
            let largest = self.engine.largest_lag();
            self.vitals.0.lock().unwrap_or_else(PoisonError::into_inner).largest_lag = largest;
        }
    }
}

fn damage(error: &LogError) -> Option<Offset> {
    match error {
        LogError::Damaged { damage, .. } => Some(damage.offsets.start),
        _ => None,
    }
}
