//! What must always hold, checked after every event. Numbered as in the list that the simulator was asked to check:
//!
//! 1. a version and its digest name one state (`states`);
//! 2. what a process has applied and the epochs that it knows never fall, across restarts too (`states`);
//! 3. one leader per leader epoch, and who leads holds a lease, or stops (`leaders`);
//! 4. epochs of partitions never fall, and a change of leader raises the leader epoch (`log`);
//! 5. the leader is in sync, the in-sync replicas are replicas, a fenced node leads nothing and joins nothing (`log`);
//! 6. nothing of a deposed controller counts after its successor's election (`log`);
//! 7. what was acknowledged is in the history for good, what was refused is not, a retry takes effect once (`requests`);
//! 8. a snapshot and what follows it are the full replay (`log`);
//! 9. what is committed is on the disks of all in-sync replicas, and so in the log of every later leader; it is there once,
//!    the same in all replicas, and what consumers see never falls back (`records`);
//! 10. a node's epoch rises with every incarnation, and what carries an older one changes nothing (`sessions`);
//! 11. the silent are fenced in time, and the living never (`sessions`, `progress`);
//! 12. a granted shutdown: the node leads nothing, and every active node has applied that (`sessions`);
//! 14. one pairing per node and pairing epoch, and nobody else's push is applied (`pairings`);
//! 15. who follows cuts off nothing that is committed (`records`);
//! 16. once faults stop, all heals within a bounded time (`progress`).

mod leaders;
mod log;
mod pairings;
mod progress;
mod records;
mod requests;
mod sessions;
mod states;

use std::collections::BTreeMap;

use super::queue::Time;
use crate::metadata::{History, Image};
use crate::types::{
    ControllerEpoch, ControllerId, LeaderEpoch, NodeEpoch, PartitionEpoch, PartitionId, Position, RequestId, StorageId,
    TopicId, Version,
};
pub use sessions::Sent;

/// A rule that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    pub invariant: u32,
    pub words: String,
}

/// The history after each message, as the stream has it.
struct Step {
    at: Time,
    history: History,
}

type Place = (TopicId, PartitionId);

#[derive(Default)]
pub struct Checker {
    pub broken: Option<Violation>,
    history: History,
    trail: Vec<Step>,
    /// States that are not on the trail: of a history that was lost.
    strays: BTreeMap<(Version, [u8; 16]), Image>,
    /// Since when the history is lost, until it is restored.
    lost: bool,
    restored_at: Time,
    /// The stream lost what it had acknowledged.
    went_back: bool,
    epochs_granted: BTreeMap<ControllerEpoch, usize>,
    leaders: BTreeMap<(Place, LeaderEpoch), (StorageId, Version)>,
    /// When each leader epoch began.
    moved: BTreeMap<(Place, LeaderEpoch), Time>,
    /// The highest epochs that were given out, and with which version.
    highest: BTreeMap<Place, (LeaderEpoch, PartitionEpoch, Version)>,
    node_epochs: BTreeMap<StorageId, NodeEpoch>,
    fenced_at: BTreeMap<StorageId, Version>,
    pairings: BTreeMap<(StorageId, u64), ControllerId>,
    processes: BTreeMap<usize, states::Known>,
    folders: BTreeMap<usize, (Version, ControllerEpoch)>,
    acknowledged: BTreeMap<RequestId, Version>,
    refused: Vec<RequestId>,
    effects: BTreeMap<RequestId, Version>,
    heard: BTreeMap<(usize, usize), sessions::Heard>,
    isr_asked: BTreeMap<(usize, u64), (StorageId, NodeEpoch)>,
    progress: progress::Progress,
    records: records::Records,
}

impl Checker {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn break_rule(&mut self, invariant: u32, words: impl FnOnce() -> String) {
        if self.broken.is_none() {
            self.broken = Some(Violation { invariant, words: words() });
        }
    }

    pub fn image(&self) -> Option<&Image> {
        self.history.image()
    }

    /// What the next message stands on.
    pub fn base(&self) -> Position {
        self.history.base()
    }

    pub fn is_lost(&self) -> bool {
        self.lost
    }

    pub fn is_done(&self) -> bool {
        self.progress.is_done()
    }

    /// The history as it stood at a version, if that is on the trail.
    fn at(&self, version: Version) -> Option<&History> {
        let index = self.trail.partition_point(|step| step.history.seen() <= version).checked_sub(1)?;
        Some(&self.trail[index].history).filter(|history| history.seen() == version)
    }

    /// The version of the head at a time.
    fn head_at(&self, time: Time) -> Version {
        let index = self.trail.partition_point(|step| step.at <= time);
        index.checked_sub(1).map_or(Version::ZERO, |index| self.trail[index].history.position().version)
    }
}
