//! From applied to acknowledged: what is applied in memory goes to the disk in batches, one at a time, and only then is
//! anything said of it.

use std::collections::VecDeque;
use std::time::Duration;

use super::backoff::Retry;
use super::vet::Vetted;
use super::{Applied, Effect, Level, Settings, StorageCore, Token};
use crate::metadata::{History, HistoryError, Image, Offered};
use crate::types::NodeEpoch;
use crate::types::{ControllerEpoch, Monotonic, Position, StorageId, Version};
use crate::wire::{AckOutcome, Code, PushAck, WireError};

/// The most acknowledgements that wait for the disk. The oldest are dropped first: their pushes come again.
const ANSWERS: usize = 1024;

/// An acknowledgement that is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) token: Option<Token>,
    pub(super) outcome: AckOutcome,
    pub(super) pushed: Position,
}

/// What the disk has.
#[derive(Clone, Copy, Default)]
pub(super) struct OnDisk {
    pub(super) position: Position,
    pub(super) controller_epoch: ControllerEpoch,
}

enum Writing {
    Changes(Vec<Applied>),
    Snapshot(Position),
}

#[derive(Default)]
pub(super) struct Intake {
    /// What the disk was given, and since when. Changes are kept so that a failed write can be repeated.
    writing: Option<(Writing, Monotonic)>,
    /// Whether `writing` failed and is to be given again.
    failed: Option<String>,
    /// Why the last snapshot was not installed. It is fetched anew.
    install_failed: Option<String>,
    unsaved: Vec<Applied>,
    unsaved_bytes: usize,
    /// With the version that must be on the disk first.
    answers: VecDeque<(Version, Answer)>,
    retry: Retry,
}

impl Intake {
    pub(super) fn installing(&self) -> bool {
        matches!(self.writing, Some((Writing::Snapshot(_), _)))
    }

    pub(super) fn is_idle(&self) -> bool {
        self.writing.is_none() && self.unsaved.is_empty()
    }

    pub(super) fn is_full(&self, settings: &Settings) -> bool {
        self.unsaved_bytes > settings.unsaved_max_bytes
    }

    /// How long applied metadata has been waiting for the disk.
    pub(super) fn stalled(&self, now: Monotonic) -> Duration {
        self.writing.as_ref().map_or(Duration::ZERO, |(_, since)| now.since(*since))
    }

    pub(super) fn error(&self) -> Option<&str> {
        self.failed.as_deref().or(self.install_failed.as_deref())
    }

    pub(super) fn deadline(&self) -> Option<Monotonic> {
        self.failed.as_ref().and(self.retry.due_at())
    }

    pub(super) fn install(&mut self, now: Monotonic, position: Position) {
        self.writing = Some((Writing::Snapshot(position), now));
    }
}

impl StorageCore {
    /// Takes what was vetted. An error leaves the changes before the bad one applied; a record that cannot be applied ends the
    /// process, since the history in memory is then worth nothing.
    pub(super) fn apply(&mut self, vetted: Vetted, out: &mut Vec<Effect>) -> Result<(), WireError> {
        let before = self.history.position();
        let result = self.offer_all(&vetted, out);
        self.announce_lost(out);
        let after = self.history.position();
        if after != before {
            self.fetch.progressed();
            self.log(Level::Info, out, || format!("applied metadata {} to {}", before.version, after.version));
        }
        result
    }

    fn offer_all(&mut self, vetted: &Vetted, out: &mut Vec<Effect>) -> Result<(), WireError> {
        for message in &vetted.messages {
            self.history.skip_to(Version(message.version.0.saturating_sub(1)));
            match self.history.offer(message.version, &message.payload) {
                Ok(Offered::Part) => {}
                Ok(Offered::Change(change)) => {
                    self.leads.touched(&change.records);
                    let controller_epoch = self.history.controller_epoch();
                    let (position, messages) = (change.position, change.messages);
                    self.keep(Applied { position, controller_epoch, messages });
                }
                Ok(Offered::Known | Offered::Void(_)) => {
                    let words = format!("version {} passed every check and is void: a bug", message.version);
                    self.exit(words.clone(), 1, out);
                    return Err(WireError::new(Code::InvalidState, words));
                }
                Err(error @ HistoryError::UnknownRecord { .. }) => {
                    return Err(WireError::new(Code::UnsupportedVersion, error.to_string()));
                }
                Err(
                    error @ (HistoryError::Inapplicable { .. }
                    | HistoryError::Gap { .. }
                    | HistoryError::NoBeginning(_)),
                ) => {
                    self.exit(format!("the metadata cannot be followed any further: {error}"), 1, out);
                    return Err(WireError::new(Code::InvalidState, error.to_string()));
                }
            }
        }
        if vetted.position.version > self.history.position().version {
            self.history.skip_to(vetted.position.version);
            let controller_epoch = self.history.controller_epoch();
            self.keep(Applied { position: self.history.position(), controller_epoch, messages: Vec::new() });
        }
        Ok(())
    }

    fn keep(&mut self, applied: Applied) {
        self.intake.unsaved_bytes += applied.bytes();
        self.intake.unsaved.push(applied);
    }

    /// Acknowledges once all that is applied now is on the disk, at once where it is.
    pub(super) fn answer_when_saved(&mut self, answer: Answer, out: &mut Vec<Effect>) {
        let due = self.history.position().version;
        #[cfg(test)]
        let due = if crate::simulator::planted(crate::simulator::Bug::AcknowledgedEarly) { Version::ZERO } else { due };
        if due <= self.disk.position.version {
            self.acknowledge(answer.token, answer.outcome, answer.pushed, None, out);
            return;
        }
        self.intake.answers.push_back((due, answer));
        if self.intake.answers.len() > ANSWERS {
            self.intake.answers.pop_front();
        }
    }

    pub(super) fn acknowledge(
        &mut self,
        token: Option<Token>,
        outcome: AckOutcome,
        pushed: Position,
        error: Option<WireError>,
        out: &mut Vec<Effect>,
    ) {
        // Before it has an id the node has no subject to be pushed to, nor one to answer on.
        let Some(storage) = self.identity.storage else { return };
        let position = self.disk.position;
        #[cfg(test)]
        let position = if crate::simulator::planted(crate::simulator::Bug::AcknowledgedEarly) {
            self.history.position()
        } else {
            position
        };
        let ack = PushAck {
            cluster: self.identity.cluster,
            storage,
            directory: self.identity.directory,
            incarnation: self.identity.incarnation,
            node_epoch: self.registration.node_epoch.unwrap_or(NodeEpoch(0)),
            outcome,
            position,
            controller_epoch: self.disk.controller_epoch,
            pushed,
            error,
        };
        out.push(Effect::Acknowledge { token, ack: Box::new(ack) });
    }

    /// Gives the disk what waits for it, if it has nothing to do.
    pub(super) fn step_disk(&mut self, now: Monotonic, out: &mut Vec<Effect>) {
        match (&self.intake.writing, &self.intake.failed) {
            (None, _) if self.intake.unsaved.is_empty() => self.step_install(now, out),
            (None, _) => {
                let changes = std::mem::take(&mut self.intake.unsaved);
                self.intake.unsaved_bytes = 0;
                self.intake.writing = Some((Writing::Changes(changes.clone()), now));
                out.push(Effect::Persist { changes });
            }
            (Some((Writing::Changes(changes), _)), Some(_)) if self.intake.retry.is_due(now) => {
                out.push(Effect::Persist { changes: changes.clone() });
                self.intake.failed = None;
            }
            (Some(_), _) => {}
        }
    }

    pub(super) fn persisted_to(&mut self, position: Position, out: &mut Vec<Effect>) {
        let Some((Writing::Changes(changes), _)) = &self.intake.writing else { return };
        let Some(last) = changes.last().filter(|last| last.position == position) else { return };
        let controller_epoch = last.controller_epoch.max(self.disk.controller_epoch);
        self.disk = OnDisk { position, controller_epoch };
        self.saved(out);
    }

    fn saved(&mut self, out: &mut Vec<Effect>) {
        self.intake.writing = None;
        self.intake.failed = None;
        self.intake.install_failed = None;
        self.intake.retry.reset();
        self.announce_gained(out);
        while let Some((due, answer)) = self.intake.answers.front().copied()
            && due <= self.disk.position.version
        {
            self.intake.answers.pop_front();
            self.acknowledge(answer.token, answer.outcome, answer.pushed, None, out);
        }
    }

    pub(super) fn persist_failed(&mut self, now: Monotonic, words: String, fatal: bool, out: &mut Vec<Effect>) {
        if fatal {
            self.exit(format!("the disk takes no more metadata: {words}"), 1, out);
            return;
        }
        self.complain(now, "disk", Level::Error, out, || format!("the disk did not take metadata: {words}"));
        match self.intake.writing {
            Some((Writing::Changes(_), _)) => {
                self.intake.failed = Some(words);
                self.intake.retry.failed(now, &self.settings, &mut self.jitter);
            }
            Some((Writing::Snapshot(_), _)) => {
                self.intake.install_failed = Some(words);
                self.snapshot_failed(now);
            }
            None => {}
        }
    }

    pub(super) fn snapshot_failed(&mut self, now: Monotonic) {
        if self.intake.installing() {
            self.intake.writing = None;
            self.fetch.failed(now, &self.settings, &mut self.jitter);
        }
    }

    pub(super) fn snapshot_installed(&mut self, image: Image, position: Position, out: &mut Vec<Effect>) {
        let Some((Writing::Snapshot(awaited), _)) = self.intake.writing else { return };
        if awaited != position || Some(image.cluster) != self.identity.cluster {
            return;
        }
        let controller_epoch = self.disk.controller_epoch.max(image.controller_epoch());
        self.history = History::from_image(image, position);
        self.disk = OnDisk { position, controller_epoch };
        self.reread();
        self.fetch.progressed();
        self.fetch.installed();
        self.log(Level::Info, out, || format!("took the snapshot at version {}", position.version));
        self.announce_lost(out);
        self.saved(out);
        self.acknowledge(None, AckOutcome::Applied, position, None, out);
    }

    /// The id that leaderships are looked up under.
    pub(super) fn my_id(&self) -> Option<StorageId> {
        self.identity.storage
    }
}
