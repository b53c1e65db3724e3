//! The leader of a partition of the offsets topic: it knows what its groups committed, once it has read the partition.

use async_nats::Subject;

use super::answer::{self, Reply};
use super::data::{Answer, Pending};
use super::groups::{self, Groups};
use super::serve::Loading;
use super::worker::Worker;
use crate::log::LogError;
use crate::storage::core::Place;
use crate::storage::replicas::{self, Append, Input};
use crate::types::{LeaderEpoch, Monotonic, Offset};
use crate::wire::data::{Commit, Committed, CommittedRequest, OFFSETS_TOPIC};
use crate::wire::{Code, WireError};

/// How much of the partition is read at once.
const PIECE_BYTES: usize = 1 << 20;
/// How long a commit waits for the in-sync replicas (Kafka's `offsets.commit.timeout.ms`).
const COMMIT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

pub(super) struct Coordinator {
    leader_epoch: LeaderEpoch,
    groups: Groups,
    /// Up to where the partition is to be read yet: what was committed when it was begun. Later commits are this leader's own.
    loading_to: Option<Offset>,
}

/// A piece of a partition of the offsets topic, read.
pub(in crate::storage) struct Loaded {
    pub(super) place: Place,
    pub(super) leader_epoch: LeaderEpoch,
    pub(super) groups: Groups,
    /// Where the next piece begins.
    pub(super) next: Result<Offset, LogError>,
}

impl Worker {
    pub(super) fn is_of_offsets(&self, place: Place) -> bool {
        self.id(place).is_some_and(|id| id.topic.as_str() == OFFSETS_TOPIC)
    }

    pub(super) async fn commit(&mut self, now: Monotonic, place: Place, commit: Commit, reply: Option<Subject>) {
        if let Err(error) = groups::check(&commit).and_then(|()| self.coordinate(place, &commit.group).map(drop)) {
            return self.refuse(reply, &error).await;
        }
        let wall = self.clock.wall();
        let batch = match groups::to_batch(&commit, super::log::millis(wall)) {
            Ok(batch) => batch,
            Err(error) => {
                return self.refuse(reply, &WireError::new(Code::MessageTooLarge, error.to_string())).await;
            }
        };
        let token = self.token();
        let pending = Pending { place, reply, until: now + COMMIT_TIMEOUT, answer: Answer::Committed(commit) };
        self.pending.insert(token, pending);
        let acks = Some(replicas::Acks::All);
        self.give(now, Input::Append(Append { place, batch, acks, token, now: wall }));
    }

    /// The commit is on the disk of every in-sync replica.
    pub(super) fn committed(&mut self, place: Place, commit: Commit) -> Committed {
        if let Some(coordinator) = self.coordinators.get_mut(&place) {
            for offset in &commit.offsets {
                coordinator.groups.apply(&commit.group, offset.clone());
            }
        }
        Committed { group: commit.group, offsets: commit.offsets }
    }

    pub(super) async fn tell_committed(&mut self, place: Place, request: CommittedRequest, reply: Option<Subject>) {
        let Some(reply) = reply else { return };
        let known = groups::check_group(&request.group).and_then(|()| self.coordinate(place, &request.group));
        let answer = known.map(|coordinator| coordinator.groups.committed(&request));
        let count = answer.as_ref().map_or(0, |committed| committed.offsets.len());
        let answer = Reply::of(reply, answer);
        let (bytes, room) = (answer.payload.len(), self.hub.max_payload());
        if bytes > room {
            let words =
                format!("{count} offsets take {bytes} bytes, and a message {room}: ask for one topic's at a time");
            return self.hub.reply(Reply::error(answer.to, &WireError::new(Code::MessageTooLarge, words))).await;
        }
        self.hub.reply(answer).await;
    }

    /// The coordinator of this partition, where it has read all of it.
    fn coordinate(&mut self, place: Place, group: &str) -> Result<&Coordinator, WireError> {
        if !self.is_of_offsets(place) {
            let words = format!("offsets are committed to {OFFSETS_TOPIC}");
            return Err(WireError::new(Code::InvalidRequest, words));
        }
        groups::check_partition(group, place.1, self.offsets_partitions)?;
        let led = self.led(place);
        let leader_epoch = led.map(|led| led.leader_epoch);
        let is_new = self.coordinators.get(&place).is_none_or(|known| Some(known.leader_epoch) != leader_epoch);
        let loading =
            || WireError::new(Code::CoordinatorLoadInProgress, "the groups' offsets are being read; ask again");
        if is_new {
            let to = led.and_then(|led| led.visible).ok_or_else(loading)?;
            let leader_epoch = leader_epoch.ok_or_else(loading)?;
            let from = self.engine.log(place).map_or(to, |log| log.log.start());
            let coordinator = Coordinator { leader_epoch, groups: Groups::default(), loading_to: Some(to) };
            self.coordinators.insert(place, coordinator);
            self.load(place, from);
        }
        self.coordinators.get(&place).filter(|coordinator| coordinator.loading_to.is_none()).ok_or_else(loading)
    }

    /// Reads the next piece on another thread, if there is one.
    fn load(&mut self, place: Place, from: Offset) {
        let Some(coordinator) = self.coordinators.get_mut(&place) else { return };
        let Some(to) = coordinator.loading_to else { return };
        if from >= to {
            coordinator.loading_to = None;
            return;
        }
        let Some(log) = self.engine.log(place).map(|log| &log.log) else { return };
        match log.locate(from, PIECE_BYTES, to) {
            Ok(plan) => {
                let (leader_epoch, groups) = (coordinator.leader_epoch, std::mem::take(&mut coordinator.groups));
                let limit = log.config().max_decompressed_bytes;
                self.hub.load(Loading { plan, limit, place, leader_epoch, groups, from });
            }
            Err(error) => {
                tracing::error!(%error, "groups' offsets cannot be read");
                self.coordinators.remove(&place);
            }
        }
    }

    pub(super) fn loaded(&mut self, loaded: Loaded) {
        let Loaded { place, leader_epoch, groups, next } = loaded;
        let known = self.coordinators.get_mut(&place);
        let Some(coordinator) = known.filter(|known| known.leader_epoch == leader_epoch) else { return };
        match next {
            Ok(next) => {
                coordinator.groups = groups;
                self.load(place, next);
            }
            Err(error) => {
                self.unreadable(place, &error);
                match error {
                    // Nobody has it any more: what was committed in that range falls back to the commits before.
                    LogError::Damaged { damage, .. } if self.is_alone(place) => {
                        if let Some(coordinator) = self.coordinators.get_mut(&place) {
                            coordinator.groups = groups;
                        }
                        self.load(place, damage.offsets.end);
                    }
                    // The next request begins anew.
                    error => {
                        tracing::warn!(error = %answer::log_error(&error), "groups' offsets were not read");
                        self.coordinators.remove(&place);
                    }
                }
            }
        }
    }
}
