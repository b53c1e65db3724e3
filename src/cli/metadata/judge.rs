//! Which messages of the history count, told from the stream alone.
//!
//! The rule is that of the fold: an entry counts if it was written on top of what precedes it, in the present controller's
//! epoch. Where the beginning was purged, the first entry's own word is taken for what preceded it, since the snapshot that
//! would prove it is not read here. So this serves to show a history, never to apply one.

use bytes::Bytes;

use crate::metadata::{ParsedEntry, chain};
use crate::types::{ClusterId, ControllerEpoch, Digest, Position, Version};

#[derive(Default)]
pub struct Judge {
    known: Option<Known>,
}

struct Known {
    cluster: ClusterId,
    epoch: ControllerEpoch,
    /// The last change that took effect, its version raised over void entries behind it.
    position: Position,
    pending: Option<Pending>,
}

/// A change whose last message is still to come.
struct Pending {
    epoch: ControllerEpoch,
    messages: u32,
    digest: Digest,
}

impl Judge {
    /// The entry, or why it is void. Messages are to be given in order, without holes.
    pub fn judge<'a>(&mut self, version: Version, payload: &'a Bytes) -> Result<ParsedEntry<'a>, String> {
        let judged = self.look(version, payload);
        if judged.is_err()
            && let Some(known) = &mut self.known
        {
            known.pending = None;
            known.position.version = version;
        }
        judged
    }

    fn look<'a>(&mut self, version: Version, payload: &'a Bytes) -> Result<ParsedEntry<'a>, String> {
        let entry = ParsedEntry::parse(payload).ok_or("it has no envelope of ours")?;
        let number = entry.part.map_or(0, |part| part.number);
        let before = Version(version.0.saturating_sub(1));
        if self.known.is_none() && number == 0 && entry.previous.version == before {
            let (cluster, epoch, position) = (entry.cluster, entry.controller_epoch, entry.previous);
            self.known = Some(Known { cluster, epoch, position, pending: None });
        }
        let known = self.known.as_mut().ok_or("what precedes it is not known")?;
        if entry.cluster != known.cluster {
            return Err(format!("it is of cluster {}", entry.cluster));
        }
        let messages = known.pending.as_ref().map_or(0, |pending| pending.messages);
        if number > 0 && number != messages {
            return Err("it is a part of a change whose other parts are not before it".into());
        }
        // Parts of an unfinished change before it are void now.
        let is_interrupted = number == 0 && known.pending.is_some();
        let base = Position { version: if is_interrupted { before } else { known.position.version }, ..known.position };
        if entry.previous != base {
            return Err(format!(
                "it was written on top of version {}, not of what precedes it",
                entry.previous.version
            ));
        }
        let elects = number == 0 && entry.controller_epoch.0 == version.0;
        let present = known.pending.as_ref().filter(|_| number > 0).map_or(known.epoch, |pending| pending.epoch);
        if !elects && entry.controller_epoch != present {
            return Err(format!("it is of controller epoch {}, which is not the present one", entry.controller_epoch));
        }
        // What begins a purged stream tells nothing of whether there was a cluster before it.
        if elects && !entry.elects(true) {
            return Err("it has its own version as controller epoch, as an election has, and is none".into());
        }
        known.position = base;
        let mut pending = known.pending.take().filter(|_| number > 0).unwrap_or(Pending {
            epoch: entry.controller_epoch,
            messages: 0,
            digest: known.position.digest,
        });
        pending.digest = chain(pending.digest, version, payload);
        pending.messages += 1;
        if entry.part.is_some_and(|part| !part.last) {
            known.pending = Some(pending);
        } else {
            known.position = Position { version, digest: pending.digest };
            known.epoch = pending.epoch;
        }
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::{Entry, Record, encode_change};
    use crate::types::{StorageId, WallTime};

    struct Writer {
        position: Position,
        epoch: ControllerEpoch,
    }

    impl Writer {
        fn write(&mut self, records: Vec<Record>, limit: usize) -> Vec<(Version, Bytes)> {
            let entry = Entry {
                cluster: ClusterId(uuid::Uuid::from_u128(1)),
                controller_epoch: self.epoch,
                previous: self.position,
                committed_at: WallTime(0),
                cause: "a test".into(),
                request: None,
                records,
            };
            let mut written = Vec::new();
            for payload in encode_change(&entry, limit).unwrap() {
                self.position.version = self.position.version.next();
                self.position.digest = chain(self.position.digest, self.position.version, &payload);
                written.push((self.position.version, payload));
            }
            written
        }
    }

    fn writer() -> Writer {
        Writer { position: Position { version: Version(40), digest: Digest([1; 16]) }, epoch: ControllerEpoch(7) }
    }

    fn verdicts(messages: &[(Version, Bytes)]) -> Vec<Result<(), String>> {
        let mut judge = Judge::default();
        messages.iter().map(|(version, payload)| judge.judge(*version, payload).map(drop)).collect()
    }

    #[test]
    fn a_chain_counts_from_its_first_entry_on_through_changes_of_several_messages() {
        let mut writer = writer();
        let mut messages = writer.write(vec![Record::NoOp {}], 10_000);
        let many = (0..100).map(|n| Record::PairingChanged { storage: StorageId(n), controller: None }).collect();
        messages.extend(writer.write(many, 1_000));
        messages.extend(writer.write(vec![Record::NoOp {}], 10_000));
        assert!(messages.len() > 4);
        assert!(verdicts(&messages).iter().all(Result::is_ok), "{:?}", verdicts(&messages));
    }

    #[test]
    fn what_is_not_on_the_chain_is_void_and_the_chain_goes_on_over_it() {
        let mut writer = writer();
        let mut messages = writer.write(vec![Record::NoOp {}], 10_000);
        messages.push((Version(42), Bytes::from_static(b"hello")));
        let mut forged = Writer { position: Position { version: Version(42), ..writer.position }, ..writer };
        forged.epoch = ControllerEpoch(12);
        messages.extend(forged.write(vec![Record::NoOp {}], 10_000));
        writer.position.version = Version(43);
        messages.extend(writer.write(vec![Record::NoOp {}], 10_000));
        let verdicts = verdicts(&messages);
        assert_eq!(verdicts.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, false, true], "{verdicts:?}");
    }
}
