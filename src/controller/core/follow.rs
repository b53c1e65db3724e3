//! Reading the history: catching up at the start, following the head, and noticing when the history is lost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::office::Role;
use super::{Controller, Effect, Head, Level};
use crate::metadata::{Cause, Change, History, Image, Record, is_plausible};
use crate::types::{Monotonic, Position, Version, WallTime};
use crate::wire::{Code, WireError};

/// The most bytes and changes that are kept in memory for pushes.
const TAIL_BYTES: usize = 16 << 20;
const TAIL_CHANGES: usize = 8192;
/// How long an unanswered question for the head is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks at a history that seems lost.
const SECOND_LOOK: Duration = Duration::from_millis(300);

/// The latest changes, for pushes and for telling what changed when.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail {
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
}

impl Tail {
    pub(super) fn new(last: Option<Arc<Change>>) -> Self {
        let mut tail = Self::default();
        last.into_iter().for_each(|change| tail.push(change));
        tail
    }

    pub(super) fn push(&mut self, change: Arc<Change>) {
        self.bytes += size(&change);
        self.changes.push_back(change);
        while self.changes.len() > 1 && (self.bytes > TAIL_BYTES || self.changes.len() > TAIL_CHANGES) {
            if let Some(oldest) = self.changes.pop_front() {
                self.bytes -= size(&oldest);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn last(&self) -> Option<&Arc<Change>> {
        self.changes.back()
    }

    /// The changes after a version.
    pub(super) fn after(&self, version: Version) -> impl Iterator<Item = &Arc<Change>> {
        let start = self.changes.partition_point(|change| change.position.version <= version);
        self.changes.range(start..)
    }

    /// The digest at a version, where it is known: of the last change at or before it.
    pub(super) fn digest_at(&self, version: Version) -> Option<crate::types::Digest> {
        let next = self.changes.partition_point(|change| change.position.version <= version);
        match next.checked_sub(1) {
            Some(index) => Some(self.changes[index].position.digest),
            None => {
                let first = self.changes.front()?;
                // Within a change there is no state to name.
                (first.base.version == version).then_some(first.base.digest)
            }
        }
    }

    /// When and why a version came to be.
    pub(super) fn story(&self, version: Version) -> Option<(WallTime, Cause)> {
        let found = self.changes.iter().find(|change| change.position.version == version)?;
        Some((found.committed_at, found.cause.clone()))
    }
}

/// Whether a node may have become active, or have ceased to be, by this.
fn changes_a_state(record: &Record) -> bool {
    match record {
        Record::StorageRegistered { .. }
        | Record::StorageStateChanged { .. }
        | Record::StorageReplaced { .. }
        | Record::StorageRemoved { .. } => true,
        Record::ClusterFounded { .. }
        | Record::ClusterRestored { .. }
        | Record::ControllerElected { .. }
        | Record::SnapshotCommitted { .. }
        | Record::PairingChanged { .. }
        | Record::TopicCreated { .. }
        | Record::PartitionsAdded { .. }
        | Record::TopicConfigured { .. }
        | Record::TopicDeleted { .. }
        | Record::PartitionsChanged { .. }
        | Record::PartitionsMoved { .. }
        | Record::NoOp {} => false,
    }
}

pub(super) fn size(change: &Change) -> usize {
    change.messages.iter().map(|message| message.payload.len()).sum()
}

/// Questions for the stream's head, and what they have shown.
#[derive(Clone, Debug, Default)]
pub(super) struct Probe {
    asked: Option<Monotonic>,
    ask_at: Option<Monotonic>,
    /// Where the follower has to come before we may try to be elected again.
    catch_up: Option<Version>,
    /// How often in a row the stream was seen to end before what we have.
    short: u32,
    /// A registered node, or a controller, claims a version beyond the head: which, who, and how often that was confirmed.
    pub(super) beyond: Option<(Version, String, u32)>,
    loading: bool,
    /// Where the stream was last seen to end: up to there, versions were given out.
    pub(super) head: Version,
    /// The stream was looked at since the connection was made. What comes of it before that proves nothing.
    looked: bool,
    /// Our own last messages, as long as they were not seen to be the stream's too.
    unproved: Vec<(Version, Bytes)>,
    /// The last message that counted for nothing. It took a version, so another one in its place is another history too.
    pub(super) void: Option<(Version, Bytes)>,
}

impl Probe {
    pub(super) fn reset(&mut self) {
        *self = Self { head: self.head, void: self.void.take(), ..Self::default() };
    }

    pub(super) fn due(&self) -> Option<Monotonic> {
        match self.asked {
            Some(asked) => Some(asked + PATIENCE),
            None => self.ask_at,
        }
    }

    pub(super) fn waiting(&self) -> bool {
        self.catch_up.is_some() || self.loading || !self.unproved.is_empty()
    }
}

impl Controller {
    pub(super) fn ask_head(&mut self) {
        if self.connection.is_none() || self.probe.asked.is_some() {
            self.probe.ask_at = Some(self.mono());
            return;
        }
        self.probe.asked = Some(self.mono());
        self.probe.ask_at = None;
        let snapshot = self.image().and_then(|image| image.snapshot.as_ref()).map(|snapshot| snapshot.name());
        self.out.push(Effect::AskHead { snapshot });
    }

    pub(super) fn keep_probing(&mut self) {
        let now = self.mono();
        if self.probe.asked.is_some_and(|asked| now >= asked + PATIENCE) {
            self.probe.asked = None;
            self.probe.ask_at = Some(now);
        }
        if self.probe.asked.is_none() && self.probe.ask_at.is_some_and(|at| now >= at) {
            self.ask_head();
        }
    }

    pub(super) fn on_head(&mut self, asked_at: Monotonic, head: Option<Head>) {
        if self.probe.asked != Some(asked_at) {
            return;
        }
        self.probe.asked = None;
        let now = self.mono();
        if self.probe.ask_at.is_none() {
            self.probe.ask_at = Some(now + self.settings.history_probe);
        }
        let Some(head) = head else {
            self.probe.ask_at = Some(now + Duration::from_millis(200));
            return;
        };
        if self.probe.loading || self.restoring.as_ref().is_some_and(|restoring| restoring.recreating) {
            return;
        }
        let (first, last, snapshot) = match head {
            Head::Missing => (Version(1), Version::ZERO, true),
            Head::Present { first, last, snapshot } => (first, last, snapshot),
        };
        self.probe.head = self.probe.head.max(last);
        let seen = self.history.seen();
        if last < seen {
            return self.looks_lost(format!(
                "its stream {}, and this controller has version {seen}",
                if head == Head::Missing { "is missing".into() } else { format!("ends at {last}") }
            ));
        }
        if first > seen.next() && last >= first {
            return self.load();
        }
        if first > seen.next() && self.image().is_some() {
            return self
                .looks_lost(format!("its stream was purged up to {first}, and this controller has version {seen}"));
        }
        if !snapshot {
            return self.looks_lost("the snapshot that its stream begins from is not in the object store".into());
        }
        self.probe.short = 0;
        self.judge_claims(last);
        match &self.role {
            Role::Starting => self.begin_to_follow(last),
            Role::Halted { why } if self.probe.beyond.is_none() && self.recoverable(why) => {
                self.log(Level::Info, "the history is whole again");
                self.resign("the history is whole again");
                self.role = Role::Starting;
                self.begin_to_follow(last);
            }
            Role::Halted { .. } | Role::Standby | Role::Active { .. } => {}
            Role::Electing => {
                if self.in_flight.is_none() && seen < last {
                    self.probe.catch_up = Some(last);
                }
                self.elect();
            }
        }
    }

    /// A fork stays one; a stream that was away or is being restored may come back.
    fn recoverable(&self, why: &str) -> bool {
        !why.contains("fork") && !why.contains("belongs to cluster")
    }

    fn looks_lost(&mut self, why: String) {
        self.probe.short += 1;
        if self.probe.short < 2 {
            self.probe.ask_at = Some(self.mono() + SECOND_LOOK);
        } else {
            self.halt(why);
        }
    }

    /// Weighs the claim of a version beyond the head against a head that was asked for after it.
    fn judge_claims(&mut self, last: Version) {
        let Some((version, who, confirmed)) = self.probe.beyond.clone() else { return };
        // Whose claim it is can be told only once the stream is read: until then it says nothing of this stream.
        let is_unread = self.image().is_none() && self.history.seen() < last;
        if last >= version || is_unread {
            self.probe.beyond = None;
        } else if confirmed >= 1 {
            self.halt(format!("{who} has version {version}, and its stream ends at {last}"));
        } else {
            self.probe.beyond = Some((version, who, confirmed + 1));
            self.probe.ask_at = Some(self.mono() + SECOND_LOOK);
        }
    }

    /// Refuses what no history can have come to.
    pub(super) fn check_claim(&self, claimed: Position) -> Result<(), WireError> {
        let known = self.history.position().version.max(self.probe.head);
        if is_plausible(claimed.version, known) {
            return Ok(());
        }
        let words = format!("version {} is further beyond {known} than any history goes", claimed.version);
        Err(WireError::new(Code::InvalidRequest, words))
    }

    /// The one incarnation said to have this, and says later to have less. What it has never falls, so somebody else said it.
    pub(super) fn refute(&mut self, claimed: Version, who: impl FnOnce() -> String) {
        if self.probe.beyond.take_if(|(version, ..)| *version == claimed).is_some() {
            let who = who();
            self.log(Level::Warn, format!("{who} never had version {claimed}: somebody else said so in its name"));
            self.probe.ask_at = Some(self.mono());
        }
    }

    /// Somebody of this cluster reports to have this. Beyond what we know, or other than it, it is looked into.
    pub(super) fn weigh_claim(&mut self, position: Position, who: impl FnOnce() -> String) {
        if position.version == Version::ZERO {
            return;
        }
        if position.version <= self.history.position().version {
            let known = self.tail.digest_at(position.version);
            if known.is_some_and(|digest| digest != position.digest) {
                let who = who();
                self.halt(format!(
                    "{who} has version {} with another digest than this controller: the history is forked",
                    position.version
                ));
            }
            return;
        }
        if self.probe.beyond.as_ref().is_none_or(|(version, ..)| *version < position.version) {
            let confirmed = self.probe.beyond.as_ref().map_or(0, |(.., confirmed)| *confirmed);
            self.probe.beyond = Some((position.version, who(), confirmed));
            // What is asked already may have been answered before the claim was true.
            self.probe.ask_at = Some(self.mono());
        }
    }

    fn load(&mut self) {
        self.resign("the history went on without this controller");
        self.in_flight = None;
        if matches!(self.role, Role::Standby | Role::Electing) {
            self.role = Role::Starting;
        }
        self.probe.loading = true;
        self.log(Level::Info, "the history goes on beyond what this controller has: loading its snapshot");
        self.out.push(Effect::LoadSnapshot);
    }

    pub(super) fn on_loaded(&mut self, result: Result<Box<(Image, Position)>, String>) {
        if self.restoring.as_ref().is_some_and(|restoring| restoring.gathering.is_some()) {
            return self.on_gathered(result);
        }
        if !self.probe.loading {
            return;
        }
        self.probe.loading = false;
        match result {
            Err(words) => {
                self.log(Level::Error, format!("the snapshot of the history cannot be loaded: {words}"));
                self.probe.ask_at = Some(self.mono() + Duration::from_millis(500));
                self.looks_lost(format!("its snapshot cannot be loaded ({words})"));
            }
            Ok(loaded) => {
                let (image, position) = *loaded;
                if let Some(mine) = self.image()
                    && mine.cluster != image.cluster
                {
                    let words = format!(
                        "the stream belongs to cluster {}, and this controller's disk to {}: give it another data directory or another NATS account",
                        image.cluster, mine.cluster
                    );
                    return self.halt(words);
                }
                if position.version <= self.history.seen() {
                    self.probe.ask_at = Some(self.mono());
                    return;
                }
                self.adopt(image, position);
                self.role = Role::Starting;
                self.ask_head();
            }
        }
    }

    /// Goes on from an image instead of what was there.
    pub(super) fn adopt(&mut self, image: Image, position: Position) {
        self.out.push(Effect::Bind(image.cluster));
        self.out.push(Effect::Install { image: Box::new(image.clone()), position });
        self.history = History::from_image(image, position);
        self.tail.clear();
        self.unseen = position.version;
        for session in self.sessions.values_mut() {
            session.fenced_at = session.fenced_at.max(position.version);
        }
        self.pairing_dirty = true;
        self.log(Level::Info, format!("took the snapshot of version {}", position.version));
    }

    fn begin_to_follow(&mut self, last: Version) {
        let seen = self.history.seen();
        self.probe.looked = true;
        // What stands there must be what we have; see `compare_forked`. Where no answer comes, it is asked for again with
        // the head.
        if self.probe.unproved.is_empty() && self.history.position().version > Version::ZERO {
            self.probe.unproved = self.own_last();
        }
        for (version, _) in &self.probe.unproved {
            self.out.push(Effect::Read { version: *version });
        }
        self.probe.catch_up = (seen < last).then_some(last);
        self.out.push(Effect::Follow { after: seen });
        self.caught_up();
    }

    /// The last message of this controller's that counts, and the last one, if that is void: what is void here may count in the
    /// stream that it is of, and shows nothing of what precedes it.
    fn own_last(&self) -> Vec<(Version, Bytes)> {
        let change = self.tail.last().and_then(|change| change.messages.last());
        let change = change.map(|message| (message.version, message.payload.clone()));
        let void = self.probe.void.clone().filter(|(version, _)| *version == self.history.seen());
        change.into_iter().chain(void).collect()
    }

    /// True where the read was about our own last message. A stream that has something else there is another history.
    pub(super) fn compare_forked(&mut self, version: Version, result: &Result<Option<Bytes>, ()>) -> bool {
        let own = self.probe.unproved.iter().find(|(own, _)| *own == version).map(|(_, payload)| payload);
        let Some(own) = own else { return false };
        match result {
            Err(()) => {}
            Ok(Some(payload)) if payload != own => {
                self.halt(format!(
                    "version {version} in its stream is not what this controller has: the history is forked. Where the others go on with it, move this controller's data directory away and start it again: it takes theirs"
                ));
            }
            // Where it was purged, the snapshot and what follows it have to show.
            Ok(_) => {
                self.probe.unproved.retain(|(own, _)| *own != version);
                self.caught_up();
            }
        }
        true
    }

    pub(super) fn on_entry(&mut self, version: Version, payload: &Bytes) {
        // What was on its way before this connection comes again, once it is known that the stream is still ours.
        if self.probe.loading || (self.role == Role::Starting && !self.probe.looked) {
            return;
        }
        let under_way = self.in_flight.as_ref().is_some() && version == self.history.seen().next();
        if under_way {
            self.arrived(version, payload);
        } else {
            self.absorb(version, payload);
        }
        self.caught_up();
    }

    fn caught_up(&mut self) {
        if self.probe.catch_up.is_some_and(|target| self.history.seen() < target) || !self.probe.unproved.is_empty() {
            return;
        }
        self.probe.catch_up = None;
        match self.role {
            Role::Starting if !self.probe.looked => {}
            Role::Starting if self.connection.is_some() && (self.image().is_some() || self.may_found()) => {
                self.role = Role::Standby;
                self.log(
                    Level::Info,
                    format!("caught up with the history at version {}", self.history.position().version),
                );
                // It may have become ours while a snapshot was loaded.
                if self.lease.ours.is_some() {
                    self.take_office();
                } else {
                    self.try_lease();
                }
            }
            Role::Electing => self.elect(),
            Role::Starting | Role::Standby | Role::Active { .. } | Role::Halted { .. } => {}
        }
    }

    /// A cluster is founded only where nobody names one for a full session.
    fn may_found(&self) -> bool {
        self.mono().since(self.hearing_since) >= self.settings.session_timeout && self.probe.beyond.is_none()
    }

    /// Called with the sweep: the wait before a founding is a matter of time.
    pub(super) fn consider_founding(&mut self) {
        if self.role == Role::Starting && self.image().is_none() && self.probe.asked.is_none() && !self.probe.loading {
            self.caught_up();
        }
    }

    pub(super) fn on_change(&mut self, change: Arc<Change>) {
        let version = change.position.version;
        self.look_at_nodes_soon();
        // It was written on top of what we have.
        self.probe.unproved.clear();
        self.tail.push(change.clone());
        self.entries_since_snapshot += 1;
        self.bytes_since_snapshot += size(&change) as u64;
        let mut elected_other = None;
        for record in &change.records {
            match record {
                Record::ClusterFounded { cluster } => self.out.push(Effect::Bind(*cluster)),
                Record::ClusterRestored { .. } => {}
                Record::ControllerElected { controller, incarnation, .. } => {
                    self.look_at_nodes();
                    if *incarnation != self.me.incarnation {
                        elected_other = Some(*controller);
                    }
                }
                Record::SnapshotCommitted { snapshot } => {
                    self.entries_since_snapshot = 0;
                    self.bytes_since_snapshot = 0;
                    if matches!(self.role, Role::Active { .. }) {
                        self.out.push(Effect::Purge { before: snapshot.version.next() });
                    }
                }
                Record::StorageRegistered { storage, incarnation, .. } => {
                    self.session_registered(*storage, *incarnation, version);
                }
                Record::StorageStateChanged { storage, state, .. } => self.session_state(*storage, *state, version),
                Record::StorageReplaced { .. } | Record::StorageRemoved { .. } => self.pairing_dirty = true,
                Record::PairingChanged { storage, .. } => {
                    if let Some(session) = self.sessions.get_mut(storage) {
                        session.push.paired_anew();
                    }
                }
                Record::PartitionsChanged { .. } | Record::PartitionsMoved { .. } => {
                    for (topic, partition, leader) in record.changed_partitions() {
                        if let Some(leader) = leader {
                            self.leadership_moved((topic, partition), leader, version);
                        }
                    }
                }
                Record::TopicCreated { .. }
                | Record::PartitionsAdded { .. }
                | Record::TopicConfigured { .. }
                | Record::TopicDeleted { .. }
                | Record::NoOp {} => {}
            }
        }
        self.log(Level::Debug, format!("version {version}: {}", change.cause));
        if change.records.iter().any(changes_a_state) {
            self.waiters_forget_inactive();
        }
        // Pushed first: the storage nodes' disks are what people wait for.
        self.push_all();
        self.out.push(Effect::Persist(change));
        #[cfg(test)]
        let elected_other = elected_other.filter(|_| !crate::simulator::planted(crate::simulator::Bug::Deposed));
        if let Some(other) = elected_other {
            let epoch = self.history.controller_epoch();
            self.resign(&format!("controller {other} was elected with controller epoch {epoch}"));
        }
    }

    pub(super) fn on_persisted(&mut self, position: Position) {
        if position.version > self.durable.version {
            self.durable = position;
        }
    }
}
