//! Whether entries from outside continue our history, judged before anything of them is applied.
//!
//! The history in memory is never cloned for a trial, so a message that lies must be found out here: its chain of digests is
//! computed over the entries as they came, and each envelope is held against what precedes it.

use bytes::Bytes;

use crate::metadata::{History, Message, ParsedEntry, Record, chain};
use crate::types::{ClusterId, ControllerId, Digest, PairingEpoch, Position, StorageId, Version};
use crate::wire::PushEntry;

/// Why entries are not applied.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Flaw {
    #[error("the chain of digests leads to {computed}, not {named}")]
    Forked { computed: Digest, named: Digest },
    #[error("version {0} is out of order")]
    Order(Version),
    #[error("version {version}: {words}")]
    NoChange { version: Version, words: &'static str },
    #[error("version {version} holds what this program does not know ({detail}): run the version of dmq that wrote it")]
    Unknown { version: Version, detail: String },
}

/// Entries that bring a history from where it stands to `position`.
#[derive(Debug)]
pub(super) struct Vetted {
    pub(super) position: Position,
    pub(super) messages: Vec<Message>,
}

/// What precedes an entry.
struct Before {
    digest: Digest,
    version: Version,
    epoch: u64,
    /// The base of the change that is incomplete, its first version, its epoch, and how many parts it has so far.
    open: Option<(Position, u64, u64, u32)>,
}

/// Holds entries against the history, which stands at the position that they begin from.
pub(super) fn vet(
    history: &History,
    cluster: ClusterId,
    position: Position,
    entries: &[PushEntry],
) -> Result<Vetted, Flaw> {
    let base = history.position();
    if position.version < base.version {
        return Err(Flaw::Order(position.version));
    }
    // First the digest alone: where it is wrong, nothing else about the entries means anything.
    let (mut version, mut digest) = (base.version, base.digest);
    for entry in entries {
        if entry.version <= version || entry.version > position.version {
            return Err(Flaw::Order(entry.version));
        }
        version = entry.version;
        digest = chain(digest, version, entry.entry.get().as_bytes());
    }
    if digest != position.digest {
        return Err(Flaw::Forked { computed: digest, named: position.digest });
    }
    let epoch = history.controller_epoch().0;
    let mut before = Before { digest: base.digest, version: base.version, epoch, open: None };
    for entry in entries {
        continues(&mut before, history.image().is_some(), cluster, entry)?;
    }
    if before.open.is_some() {
        return Err(Flaw::NoChange { version, words: "the change that it begins is not complete" });
    }
    let message = |entry: &PushEntry| Message {
        version: entry.version,
        payload: Bytes::copy_from_slice(entry.entry.get().as_bytes()),
    };
    Ok(Vetted { position, messages: entries.iter().map(message).collect() })
}

fn continues(before: &mut Before, founded: bool, cluster: ClusterId, entry: &PushEntry) -> Result<(), Flaw> {
    let version = entry.version;
    let flaw = |words| Flaw::NoChange { version, words };
    let payload = entry.entry.get().as_bytes();
    let parsed = ParsedEntry::parse(payload).ok_or_else(|| flaw("it has no envelope of ours"))?;
    if parsed.cluster != cluster {
        return Err(flaw("it is of another cluster"));
    }
    let number = parsed.part.map_or(0, |part| part.number);
    let (base, first, epoch, parts) = match before.open {
        Some(open @ (_, _, _, parts)) if number == parts && version == before.version.next() => open,
        None if number == 0 => {
            let base = Position { version: Version(version.0.saturating_sub(1)), digest: before.digest };
            (base, version.0, parsed.controller_epoch.0, 0)
        }
        Some(_) | None => return Err(flaw("it is a part of a change whose other parts are not beside it")),
    };
    if parsed.previous != base {
        return Err(flaw("it was written on top of something else"));
    }
    let known = before.epoch != 0 || founded;
    let elects = epoch == first;
    let is_present = epoch == before.epoch && epoch != 0;
    if parsed.controller_epoch.0 != epoch || !(elects || (known && is_present)) {
        return Err(flaw("it is of another controller epoch"));
    }
    if number == 0 && elects && !parsed.elects(known) {
        return Err(flaw("it has its own version as controller epoch, as an election has, and is none"));
    }
    if parsed.part.is_some() {
        // A change of several messages must be found out before its first one is taken.
        parsed.records().map_err(|error| Flaw::Unknown { version, detail: error.to_string() })?;
    }
    before.digest = chain(before.digest, version, payload);
    before.version = version;
    before.open = match parsed.part {
        Some(part) if !part.last => Some((base, first, epoch, parts + 1)),
        Some(_) | None => {
            before.epoch = epoch;
            None
        }
    };
    Ok(())
}

/// Whether the change at `epoch`, among these entries, pairs the node with the controller.
pub(super) fn pairs(entries: &[PushEntry], epoch: PairingEpoch, node: StorageId, with: ControllerId) -> bool {
    let Some(last) = entries.iter().position(|entry| entry.version.0 == epoch.0) else { return false };
    let parts = entries[..=last].iter().rev().map_while(|entry| ParsedEntry::parse(entry.entry.get().as_bytes()));
    let mut found = false;
    for parsed in parts {
        let Ok(records) = parsed.records() else { return false };
        // The last record about the node is the one that holds: entries are read backwards.
        let about = records.iter().rev().find_map(|record| match record {
            Record::PairingChanged { storage, controller } if *storage == node => Some(*controller),
            _ => None,
        });
        if let Some(controller) = about {
            found = controller == Some(with);
            break;
        }
        if parsed.part.is_none_or(|part| part.number == 0) {
            break;
        }
    }
    found
}
