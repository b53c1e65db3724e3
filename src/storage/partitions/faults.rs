//! Replicas whose logs failed: others are to lead them, the heartbeat says so, and they are tried again after a while.
//!
//! - Where the disk does not take what it is given, the replica is given up, and opened anew once the disk takes something.
//! - Where it has lost what it was given, the range is never served. A leader gives the leadership up first, and as a follower
//!   cuts its log before the range and copies it anew. The last in-sync replica goes on leading: it is all there is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::log::Failure;
use super::worker::Worker;
use crate::log::LogError;
use crate::storage::core::{InSyncWish, Place};
use crate::storage::replicas::Input;
use crate::types::{Monotonic, Offset};
use crate::wire::Health;

const RETRY_MIN: Duration = Duration::from_secs(1);
/// Who has made room is not to wait long. A try costs a megabyte that is written, and one look at each replica.
const RETRY_MAX: Duration = Duration::from_secs(10);
const LAG_EVERY: Duration = Duration::from_millis(250);
const SAID_EVERY: Duration = Duration::from_secs(60);
/// How many faults a heartbeat tells.
const TOLD: usize = 16;

pub(super) struct Fault {
    words: String,
    /// Where the first record is that cannot be read.
    pub(super) damage: Option<Offset>,
    retry_at: Monotonic,
    pause: Duration,
}

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

pub(super) struct Faults {
    of: BTreeMap<Place, Fault>,
    vitals: Vitals,
    lag_at: Monotonic,
}

impl Faults {
    pub(super) fn new(vitals: Vitals) -> Self {
        Self { of: BTreeMap::new(), vitals, lag_at: Monotonic(0) }
    }

    pub(super) fn deadline(&self) -> Option<Monotonic> {
        self.of.values().map(|fault| fault.retry_at).min()
    }

    pub(super) fn damage(&self, place: Place) -> Option<Offset> {
        self.of.get(&place)?.damage
    }

    /// The replica works again, or is gone.
    pub(super) fn forget(&mut self, place: Place) {
        if self.of.remove(&place).is_some() {
            self.tell();
        }
    }

    /// Whether the heartbeats want to know anew how far followers lag.
    pub(super) fn wants_lag(&mut self, now: Monotonic) -> bool {
        let wants = now >= self.lag_at;
        if wants {
            self.lag_at = now + LAG_EVERY;
        }
        wants
    }

    pub(super) fn tell_lag(&self, largest: u64) {
        self.vitals.0.lock().unwrap_or_else(PoisonError::into_inner).largest_lag = largest;
    }

    fn tell(&self) {
        let faults = self.of.values().map(|fault| fault.words.clone()).take(TOLD).collect();
        self.vitals.0.lock().unwrap_or_else(PoisonError::into_inner).faults = faults;
    }

    /// Whether it is not yet to be tried again. Damage does not wait: who follows has it copied anew.
    pub(super) fn waits(&self, now: Monotonic, place: Place) -> bool {
        self.of.get(&place).is_some_and(|fault| fault.damage.is_none() && now < fault.retry_at)
    }

    fn put_off(&mut self, now: Monotonic, place: Place, is_in_vain: bool) {
        let Some(fault) = self.of.get_mut(&place) else { return };
        if is_in_vain {
            fault.pause = (fault.pause * 2).min(RETRY_MAX);
        }
        fault.retry_at = now + fault.pause;
    }

    fn note(&mut self, now: Monotonic, place: Place, error: &LogError) {
        let pause = self.of.get(&place).map_or(RETRY_MIN, |known| (known.pause * 2).min(RETRY_MAX));
        let damage = match error {
            LogError::Damaged { damage, .. } => Some(damage.offsets.start),
            _ => None,
        };
        let known = self.damage(place);
        let damage = [damage, known].into_iter().flatten().min();
        self.of.insert(place, Fault { words: error.to_string(), damage, retry_at: now + pause, pause });
        self.tell();
    }
}

impl Worker {
    /// The engine gave the replica up, or is to.
    pub(super) fn failed(&mut self, place: Place, error: &Failure) {
        let now = self.clock.monotonic();
        let error = error.error();
        tracing::error!(%error, "a replica is given up for now");
        if self.is_alone(place) && error.is_out_of_space() {
            // What it has can still be read, and nobody else can lead.
            self.faults.note(now, place, error);
            return;
        }
        if let Some(held) = self.engine.log(place).filter(|held| !held.is_relaxed) {
            self.directory.distrust(&held.log);
        }
        self.give(now, Input::Unassigned(place));
        self.silence(place);
        self.faults.note(now, place, error);
        self.resign(place);
    }

    /// Records cannot be read that once were written.
    pub(super) fn unreadable(&mut self, place: Place, error: &LogError) {
        let is_known = self.faults.damage(place).is_some();
        if !matches!(error, LogError::Damaged { .. }) || is_known {
            return;
        }
        tracing::error!(%error, "records are damaged");
        let now = self.clock.monotonic();
        self.faults.note(now, place, error);
        self.resign(place);
    }

    /// Asks that another in-sync replica leads, if this node does and there is one.
    pub(super) fn resign(&mut self, place: Place) {
        let Some(held) = self.held.get(&place) else { return };
        let assignment = &held.assignment;
        if self.me.is_none() || assignment.leader != self.me {
            return;
        }
        let others = assignment.isr.iter().filter(|node| Some(**node) != self.me);
        let others = others.filter_map(|node| {
            let peer = self.peers.get(node).filter(|peer| peer.active)?;
            Some((*node, peer.node_epoch))
        });
        let members: Vec<_> = others.collect();
        if members.is_empty() {
            return;
        }
        let wish = InSyncWish {
            place,
            leader_epoch: assignment.leader_epoch,
            partition_epoch: assignment.partition_epoch,
            members,
            settles: false,
            recovered: false,
        };
        self.ask_in_sync(vec![wish]);
    }

    /// Whether this node leads the partition, and no other replica is in sync.
    fn is_alone(&self, place: Place) -> bool {
        self.held.get(&place).is_some_and(|held| {
            let assignment = &held.assignment;
            assignment.leader == self.me && assignment.isr.iter().all(|node| Some(*node) == self.me)
        })
    }

    /// Whether a log that failed is to stay closed for now. Opened, a replica whose disk is full would be in sync for as long as there is
    /// nothing to append, and fail as soon as it leads.
    pub(super) fn stays_closed(&self, now: Monotonic, place: Place) -> bool {
        self.faults.waits(now, place) && self.engine.log(place).is_none() && !self.is_alone(place)
    }

    /// What is due is tried again.
    pub(super) fn retry_faults(&mut self, now: Monotonic) {
        if self.faults.deadline().is_none_or(|at| now < at) {
            return;
        }
        let due: Vec<_> =
            self.faults.of.iter().filter(|(_, fault)| fault.retry_at <= now).map(|(place, _)| *place).collect();
        let mut disk_works = None;
        for place in due {
            let is_closed = self.engine.log(place).is_none();
            let is_over = !is_closed && self.faults.damage(place).is_none();
            let Some(held) = self.held.get(&place).filter(|_| !is_over).cloned() else {
                self.faults.forget(place);
                continue;
            };
            self.resign(place);
            let tries = is_closed
                && (self.is_alone(place)
                    || held.assignment.leader != self.me
                        && *disk_works.get_or_insert_with(|| self.directory.probe().is_ok()));
            self.faults.put_off(now, place, is_closed && !tries);
            if tries {
                self.take_up(now, held, None);
            }
        }
    }
}
