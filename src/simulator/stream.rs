//! The fake JetStream stream and object store: compare-and-set appends, a tail that is not synced yet, and all that can be
//! lost of it.
//!
//! What is not synced is not acknowledged, shown to nobody, and lost in a crash; but the next append has to expect it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::controller::core::{AppendResult, Head};
use crate::metadata::{Image, ParsedEntry, Record, SnapshotRef, read_snapshot};
use crate::types::{Digest, IncarnationId, Position, Version};

/// Who wrote a message: a controller's incarnation, or a stranger.
pub type Author = Option<IncarnationId>;

#[derive(Clone)]
pub struct Message {
    pub payload: Bytes,
    pub author: Author,
}

#[derive(Default)]
pub struct Stream {
    pub exists: bool,
    /// Another number is another stream: an append that was on its way to the one before does not wait for its sync.
    pub generation: u64,
    first: u64,
    messages: VecDeque<Message>,
    /// How many of the last messages are not synced.
    unsynced: usize,
    pub objects: BTreeMap<String, Bytes>,
}

impl Stream {
    pub fn create(&mut self, first: u64) {
        *self = Self {
            exists: true,
            generation: self.generation + 1,
            first,
            objects: std::mem::take(&mut self.objects),
            ..Self::default()
        };
    }

    /// The last sequence that was given out, synced or not.
    fn end(&self) -> u64 {
        self.first + self.messages.len() as u64 - 1
    }

    /// The last sequence that anybody is shown.
    pub fn last(&self) -> u64 {
        if self.exists { self.end() - self.unsynced as u64 } else { 0 }
    }

    pub fn first(&self) -> u64 {
        self.first
    }

    /// The sequence at which it is stored, not synced yet.
    pub fn append(&mut self, expected: u64, message: Message) -> Result<u64, AppendResult> {
        if !self.exists || self.end() != expected {
            return Err(AppendResult::Conflict);
        }
        self.messages.push_back(message);
        self.unsynced += 1;
        Ok(self.end())
    }

    /// A stranger's publish expects nothing.
    pub fn publish(&mut self, message: Message) -> Option<u64> {
        let end = self.exists.then(|| self.end())?;
        self.append(end, message).ok()
    }

    /// The next message that is not synced is so from now on.
    pub fn sync(&mut self) -> Option<(u64, Message)> {
        self.unsynced = self.unsynced.checked_sub(1)?;
        let sequence = self.last();
        Some((sequence, self.get(sequence)?.clone()))
    }

    pub fn get(&self, sequence: u64) -> Option<&Message> {
        if !self.exists || sequence > self.last() {
            return None;
        }
        self.messages.get(usize::try_from(sequence.checked_sub(self.first)?).ok()?)
    }

    /// The server dies and comes back: what was not synced is gone.
    pub fn crash(&mut self) {
        self.generation += 1;
        self.messages.truncate(self.messages.len() - self.unsynced);
        self.unsynced = 0;
    }

    /// So many messages that were synced, acknowledged and perhaps seen are gone as well.
    pub fn go_back(&mut self, count: usize) {
        self.crash();
        self.messages.truncate(self.messages.len().saturating_sub(count));
    }

    pub fn wipe(&mut self, with_objects: bool) {
        let objects = if with_objects { BTreeMap::new() } else { std::mem::take(&mut self.objects) };
        *self = Self { generation: self.generation + 1, objects, ..Self::default() };
    }

    pub fn purge(&mut self, before: u64) {
        while self.exists && self.first < before && self.messages.len() > self.unsynced {
            self.messages.pop_front();
            self.first += 1;
        }
        let older = |name: &String| SnapshotRef::version_in(name).is_some_and(|version| version.0 + 1 < before);
        let mut old: Vec<_> = self.objects.keys().filter(|name| older(name)).cloned().collect();
        old.sort_by_key(|name| SnapshotRef::version_in(name));
        old.pop();
        old.iter().for_each(|name| drop(self.objects.remove(name)));
    }

    pub fn head(&self, snapshot: Option<&str>) -> Head {
        if !self.exists {
            return Head::Missing;
        }
        let snapshot = snapshot.filter(|_| self.first > 1).is_none_or(|name| self.objects.contains_key(name));
        Head::Present { first: Version(self.first), last: Version(self.last()), snapshot }
    }

    /// What a controller's shell loads: the newest snapshot that the messages commit and go on from.
    pub fn newest_snapshot(&self) -> Result<Box<(Image, Position)>, String> {
        if !self.exists {
            return Err("the stream is missing".into());
        }
        let mut committed: Vec<SnapshotRef> = Vec::new();
        let mut digests: BTreeMap<Version, Digest> = BTreeMap::new();
        let mut bases = Vec::new();
        for sequence in self.first..=self.last() {
            let Some(entry) = self.get(sequence).and_then(|message| ParsedEntry::parse(&message.payload)) else {
                continue;
            };
            digests.insert(entry.previous.version, entry.previous.digest);
            let (version, digest) = (Version(self.first - 1), entry.previous.digest);
            bases.push(SnapshotRef { version, digest, bytes: 0 });
            for record in entry.records().unwrap_or_default() {
                if let Record::SnapshotCommitted { snapshot } = record {
                    committed.push(snapshot);
                }
            }
        }
        let goes_on = |snapshot: &&SnapshotRef| {
            let known = digests.get(&snapshot.version);
            snapshot.version.0 + 1 >= self.first && known.is_none_or(|digest| *digest == snapshot.digest)
        };
        let found = committed.iter().rev().filter(goes_on).find_map(|snapshot| self.load(snapshot));
        // Whoever restored it may have died before it could commit what the stream stands on.
        let found = found.or_else(|| bases.iter().find_map(|snapshot| self.load(snapshot)));
        found.map(Box::new).ok_or_else(|| "no message of the stream commits a snapshot that is there".into())
    }

    /// Whichever history it is of.
    pub fn newest_object(&self) -> Version {
        self.objects.keys().filter_map(|name| SnapshotRef::version_in(name)).max().unwrap_or(Version::ZERO)
    }

    fn load(&self, snapshot: &SnapshotRef) -> Option<(Image, Position)> {
        let object = self.objects.get(&snapshot.name())?;
        read_snapshot(&mut &object[..]).ok().filter(|(_, position)| *position == snapshot.position())
    }
}
