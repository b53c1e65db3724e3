//! How fast followers copy that are not in sync (Kafka's throttled replication). A node that comes back with an empty disk shall not
//! take the network and the disks of those that serve clients.
//!
//! All that this node sends to such followers counts together. Nobody waits for them, so nothing is slowed but their return; whoever
//! is in sync, or was asked for, is never held back, since acknowledgements wait for it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Log, Read, Replicas, Role};
use crate::storage::core::Place;
use crate::types::{Monotonic, Offset, StorageId};

/// How much of what was not used counts later: looks come a little late.
const SLACK: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// From when the next records may be sent.
    free_at: Monotonic,
    /// Who lacks something and is held back.
    held: BTreeSet<(Place, StorageId)>,
}

impl Throttle {
    pub(super) fn deadline(&self) -> Option<Monotonic> {
        (!self.held.is_empty()).then_some(self.free_at)
    }
}

impl<L: Log> Replicas<L> {
    /// Whether nobody waits for the follower.
    fn catches_up(&self, node: StorageId, place: Place) -> bool {
        let Some(Role::Leads(leader)) = self.held.get(&place).map(|replica| &replica.role) else { return false };
        leader.in_sync().maximal().all(|member| member != node)
    }

    /// Whether the follower may have no records now.
    pub(super) fn is_held_back(&self, now: Monotonic, node: StorageId, place: Place) -> bool {
        self.settings.catch_up_rate.is_some() && now < self.throttle.free_at && self.catches_up(node, place)
    }

    /// Takes out of what is to be said to a follower what is not its turn yet.
    pub(super) fn hold_back(&mut self, now: Monotonic, node: StorageId) {
        if self.settings.catch_up_rate.is_none() || now >= self.throttle.free_at {
            return;
        }
        let ready = self.sessions.get(&node).into_iter().flat_map(|session| session.ready.iter().copied());
        let early: Vec<_> = ready.filter(|place| self.is_held_back(now, node, *place)).collect();
        let Some(session) = self.sessions.get_mut(&node) else { return };
        for place in early {
            session.ready.remove(&place);
            self.throttle.held.insert((place, node));
        }
    }

    /// Those who were held back and are no longer.
    pub(super) fn let_go(&mut self, now: Monotonic) {
        if now >= self.throttle.free_at {
            for (place, node) in std::mem::take(&mut self.throttle.held) {
                self.make_ready(node, place);
            }
        }
    }

    /// The in-sync replicas of the partition are others now, or are to be.
    pub(super) fn let_go_of(&mut self, place: Place) {
        let ids = (place, StorageId(u32::MIN))..=(place, StorageId(u32::MAX));
        let held: Vec<_> = self.throttle.held.range(ids).copied().collect();
        for key in held {
            self.throttle.held.remove(&key);
            self.make_ready(key.1, place);
        }
    }

    fn make_ready(&mut self, node: StorageId, place: Place) {
        if let Some(session) = self.sessions.get_mut(&node).filter(|session| session.positions.contains_key(&place)) {
            session.ready.insert(place);
        }
    }

    /// What there is from an offset on, as `records` reads it: for who catches up not more than the rate allows in a second, unless a
    /// batch is larger.
    pub(super) fn records_in_turn(
        &mut self,
        now: Monotonic,
        node: StorageId,
        place: Place,
        from: Offset,
        max_bytes: usize,
        first: bool,
    ) -> Result<Option<Read>, L::Error> {
        let Some(rate) = self.settings.catch_up_rate.filter(|_| self.catches_up(node, place)) else {
            return self.records(place, from, max_bytes, first);
        };
        let room = max_bytes.min(usize::try_from(rate.get()).unwrap_or(usize::MAX));
        let read = match self.records(place, from, room, first)? {
            None if room < max_bytes => self.records(place, from, max_bytes, first)?,
            read => read,
        };
        if let Some(read) = &read {
            let takes = (read.bytes() as u64).saturating_mul(1_000_000) / rate;
            let since = Monotonic(now.0.saturating_sub(SLACK.as_micros() as u64)).max(self.throttle.free_at);
            self.throttle.free_at = since + Duration::from_micros(takes);
        }
        Ok(read)
    }
}
