//! One replica of the history: where it stands, what it folds to, and what it makes of the next message.
//!
//! Controllers and storage nodes hold one each. A change takes effect whole, with its last message; before that nothing of
//! it is seen or reported.

use bytes::Bytes;

use super::digest::{chain, restored_digest};
use super::entry::{Cause, ENTRY_TYPE, ParsedEntry};
use super::image::{Image, InapplicableRecord, RequestOutcome};
use super::record::Record;
use crate::types::{ClusterId, ControllerEpoch, Digest, Position, RequestId, Version, WallTime};

/// One message of the history's stream, as it was stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub version: Version,
    pub payload: Bytes,
}

/// A change that took effect, with the messages that carried it.
#[derive(Clone, Debug)]
pub struct Change {
    /// Where the history stood before.
    pub base: Position,
    pub position: Position,
    pub controller_epoch: ControllerEpoch,
    pub committed_at: WallTime,
    pub cause: Cause,
    pub request: Option<RequestId>,
    pub records: Vec<Record>,
    pub messages: Vec<Message>,
}

/// What became of a message.
#[derive(Debug)]
pub enum Offered {
    /// It was known already.
    Known,
    /// It took a version and changed nothing.
    Void(VoidReason),
    /// A part of a change whose last message has not come yet.
    Part,
    Change(Box<Change>),
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VoidReason {
    #[error("it has no envelope of ours")]
    NotAnEntry,
    #[error("it is of cluster {0}")]
    OtherCluster(ClusterId),
    #[error("it was written on top of {0}, not of what precedes it")]
    OffChain(Position),
    #[error("it is of controller epoch {0}, which is not the present one")]
    OtherEpoch(ControllerEpoch),
    #[error("it has its own version as controller epoch, as an election has, and is none")]
    NoElection,
    #[error("it is a part of a change whose other parts are not before it")]
    StrayPart,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HistoryError {
    #[error(
        "version {version} holds a record that this program does not know ({detail}): run the version of dmq that wrote it"
    )]
    UnknownRecord { version: Version, detail: String },
    #[error("version {version} cannot be applied: {source}")]
    Inapplicable { version: Version, source: InapplicableRecord },
    #[error("version {got} came where {expected} was due")]
    Gap { expected: Version, got: Version },
    #[error("the history begins at version {0} with neither a founding nor a snapshot")]
    NoBeginning(Version),
}

/// A change whose last message is still to come.
#[derive(Clone, Debug)]
struct Pending {
    controller_epoch: ControllerEpoch,
    records: Vec<Record>,
    messages: Vec<Message>,
    digest: Digest,
}

#[derive(Clone, Debug, Default)]
pub struct History {
    image: Option<Image>,
    position: Position,
    /// The last message seen, which is beyond `position` within a change of several.
    seen: Version,
    pending: Option<Pending>,
}

impl History {
    /// Before the first entry.
    pub fn new() -> Self {
        Self::default()
    }

    pub fn from_image(image: Image, position: Position) -> Self {
        #[cfg(test)]
        let image = Image {
            topics_created: image.topics_created
                + u64::from(crate::simulator::planted(crate::simulator::Bug::StateOfItsOwn)),
            ..image
        };
        Self { image: Some(image), position, seen: position.version, pending: None }
    }

    /// None before the founding entry.
    pub fn image(&self) -> Option<&Image> {
        self.image.as_ref()
    }

    /// The last change that took effect.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The last message seen: the next append expects it.
    pub fn seen(&self) -> Version {
        self.seen
    }

    /// What the next change is written on top of. Beyond `position` where parts of a change that never ended precede it.
    pub fn base(&self) -> Position {
        Position { version: self.seen, digest: self.position.digest }
    }

    pub fn controller_epoch(&self) -> ControllerEpoch {
        self.image.as_ref().map_or(ControllerEpoch(0), Image::controller_epoch)
    }

    /// Takes the next message of the stream. After an error the replica stands where it stood, or, where a record could not be
    /// applied, must not be used further.
    pub fn offer(&mut self, version: Version, payload: &Bytes) -> Result<Offered, HistoryError> {
        if version <= self.seen {
            return Ok(Offered::Known);
        }
        if version != self.seen.next() && self.seen != Version::ZERO {
            return Err(HistoryError::Gap { expected: self.seen.next(), got: version });
        }
        // What begins later was purged: without a snapshot, all of it would look void.
        if self.seen == Version::ZERO && version > Version::ZERO.next() {
            return Err(HistoryError::NoBeginning(version));
        }
        let entry = match self.judge(version, payload) {
            Ok(entry) => entry,
            Err(reason) => {
                // A founding must be the first message: with garbage before it, the position moves on without an image.
                self.seen = version;
                self.pending = None;
                self.position.version = version;
                return Ok(Offered::Void(reason));
            }
        };
        let unknown = |detail: String| HistoryError::UnknownRecord { version, detail };
        if entry.r#type != ENTRY_TYPE {
            return Err(unknown(format!("an envelope of type {}", entry.r#type)));
        }
        let records = entry.records().map_err(|error| unknown(error.to_string()))?;
        let message = Message { version, payload: payload.clone() };
        let begins = entry.part.is_none_or(|part| part.number == 0);
        if begins && self.pending.take().is_some() {
            self.position.version = self.seen;
        }
        let mut pending = self.pending.take().unwrap_or_else(|| Pending {
            controller_epoch: entry.controller_epoch,
            records: Vec::new(),
            messages: Vec::new(),
            digest: self.position.digest,
        });
        pending.digest = chain(pending.digest, version, payload);
        pending.records.extend(records);
        pending.messages.push(message);
        self.seen = version;
        if entry.part.is_some_and(|part| !part.last) {
            self.pending = Some(pending);
            return Ok(Offered::Part);
        }
        self.commit(version, &entry, pending).map(|change| Offered::Change(Box::new(change)))
    }

    /// Whether a message belongs to the history, or is void.
    fn judge<'a>(&self, version: Version, payload: &'a [u8]) -> Result<ParsedEntry<'a>, VoidReason> {
        let entry = ParsedEntry::parse(payload).ok_or(VoidReason::NotAnEntry)?;
        if let Some(image) = &self.image
            && image.cluster != entry.cluster
        {
            return Err(VoidReason::OtherCluster(entry.cluster));
        }
        let number = entry.part.map_or(0, |part| part.number);
        let pending_messages = self.pending.as_ref().map_or(0, |pending| pending.messages.len());
        if number > 0 && number as usize != pending_messages {
            return Err(VoidReason::StrayPart);
        }
        // Where parts of an unfinished change precede a new one, they are void now, and its base is the version before it.
        let base = if number > 0 { self.position } else { self.base() };
        if entry.previous != base {
            return Err(VoidReason::OffChain(entry.previous));
        }
        let current = match &self.pending {
            Some(pending) if number > 0 => pending.controller_epoch,
            _ => self.controller_epoch(),
        };
        // An election's epoch is its own version: nobody has had it before.
        let elects = number == 0 && entry.controller_epoch.0 == version.0;
        // Right behind a restore nobody was elected yet, so nobody may have written anything.
        let is_present = entry.controller_epoch == current && current != ControllerEpoch(0);
        if !elects && (!is_present || self.image.is_none()) {
            return Err(VoidReason::OtherEpoch(entry.controller_epoch));
        }
        if elects && !entry.elects(self.image.is_some()) {
            return Err(VoidReason::NoElection);
        }
        Ok(entry)
    }

    fn commit(&mut self, version: Version, entry: &ParsedEntry<'_>, pending: Pending) -> Result<Change, HistoryError> {
        let inapplicable = |source| HistoryError::Inapplicable { version, source };
        let first = pending.messages.first().map_or(version, |message| message.version);
        let base = Position { version: Version(first.0 - 1), digest: self.position.digest };
        let mut records = pending.records.iter();
        if self.image.is_none() {
            match records.next() {
                Some(Record::ClusterFounded { cluster }) if *cluster == entry.cluster => {
                    self.image = Some(Image::empty(*cluster));
                }
                _ => return Err(HistoryError::NoBeginning(version)),
            }
        }
        let image = self.image.as_mut().expect("founded just above where there was none");
        let elects = entry.controller_epoch.0 == first.0;
        let elected = pending.records.iter().any(|record| matches!(record, Record::ControllerElected { .. }));
        if elects != elected {
            let words = "an election has its own version as controller epoch".to_string();
            return Err(inapplicable(InapplicableRecord(words)));
        }
        records.try_for_each(|record| image.apply(version, record)).map_err(inapplicable)?;
        if let Some(controller) = image.controller.as_mut().filter(|_| elects) {
            // An election of several messages has the version of the first as epoch: its other parts carried that already.
            controller.epoch = entry.controller_epoch;
        }
        let request = entry.request.as_ref().map(|request| {
            let outcome = RequestOutcome { fingerprint: request.fingerprint, version, answer: request.answer.clone() };
            image.remember(request.id.clone(), outcome);
            request.id.clone()
        });
        self.position = Position { version, digest: pending.digest };
        Ok(Change {
            base,
            position: self.position,
            controller_epoch: entry.controller_epoch,
            committed_at: entry.committed_at,
            cause: Cause::from(&*entry.cause),
            request,
            records: pending.records,
            messages: pending.messages,
        })
    }

    /// Moves on over versions that changed nothing, as a push reports them. Only forwards.
    pub fn skip_to(&mut self, version: Version) {
        if version > self.seen {
            self.pending = None;
            self.seen = version;
            self.position.version = version;
        }
    }
}

/// How far apart the versions of two restored histories begin: no cluster writes so many changes in between.
const RESTORE_STEP: u64 = 1_000_000_000;

/// The base of a history restored from `image` at `from`: versions and leader epochs go on above any that was ever given out.
///
/// `highest` is the highest version that anybody reported, or of which there is a snapshot.
pub fn restored_base(mut image: Image, from: Position, highest: Version) -> (Image, Position) {
    let version = restored_version(from, highest);
    image.reset_for_restore(version.0 / RESTORE_STEP);
    (image, Position { version, digest: restored_digest(from, version) })
}

/// The version that a restored history's base has.
pub fn restored_version(from: Position, highest: Version) -> Version {
    // Beyond 2^53 not every JSON reader holds a version exactly. Nobody gets there but by forging.
    let highest = highest.max(from.version).0.min((1 << 53) - 2 * RESTORE_STEP);
    Version((highest / RESTORE_STEP + 1) * RESTORE_STEP)
}

/// How far beyond what one knows of a version can be: as many restores later as nobody has seen.
const FARTHEST: u64 = 1_000 * RESTORE_STEP;

/// Whether a version that somebody claims may be of the history that stands at `known`, perhaps after restores since. Where a
/// history is lost, a restore begins above what is claimed; so what is claimed may not use up all numbers there are.
pub fn is_plausible(claimed: Version, known: Version) -> bool {
    claimed.0 <= known.0.saturating_add(FARTHEST)
}
