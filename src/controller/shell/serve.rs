//! Serving a fetch from this controller's disk: entries while it has them, else its snapshot in chunks.

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::disk::{Changes, MetadataReader, StoreError, StoredChange};
use crate::types::{ClusterId, ControllerId, Position, Version};
use crate::wire::{ChunkHeader, Code, FetchAnswer, FetchRequest, PushEntry, WireError, WireMessage};

/// A piece of a snapshot, at most: small enough that others' messages pass between two.
const CHUNK_BYTES: usize = 256 * 1024;
/// What surrounds an entry in an answer.
const ENTRY_OVERHEAD: usize = 64;

pub(crate) struct Served {
    pub(crate) header: Option<String>,
    pub(crate) body: Bytes,
    /// The disk's log alone does not help who asked: it needs a newer snapshot.
    pub(crate) wants_snapshot: bool,
}

pub(crate) struct Fetch {
    pub(crate) reader: MetadataReader,
    pub(crate) cluster: ClusterId,
    pub(crate) controller: ControllerId,
    pub(crate) request: FetchRequest,
    /// Nothing beyond this is served.
    pub(crate) head: Position,
    pub(crate) max_bytes: usize,
}

enum Found {
    Chunk(ChunkHeader, Bytes),
    Entries(Position, Vec<PushEntry>),
    Snapshot(Position),
    /// Neither the log nor the snapshot brings the asker on.
    Nothing,
}

impl Fetch {
    /// Blocks on the disk.
    pub(crate) fn serve(self) -> Served {
        let mut answer = FetchAnswer {
            cluster: self.cluster,
            controller: self.controller,
            controller_epoch: self.reader.controller_epoch(),
            head: self.head,
            position: self.request.from,
            entries: Vec::new(),
            snapshot: None,
            error: None,
        };
        let mut wants_snapshot = false;
        match self.find() {
            Ok(Found::Chunk(header, bytes)) => {
                return Served { header: serde_json::to_string(&header).ok(), body: bytes, wants_snapshot: false };
            }
            Ok(Found::Entries(position, entries)) => {
                answer.position = position;
                answer.entries = entries;
            }
            Ok(Found::Snapshot(position)) => answer.snapshot = Some(position),
            Ok(Found::Nothing) => {
                wants_snapshot = true;
                answer.error = Some(WireError::new(Code::Busy, "a snapshot is being made for this; ask again soon"));
            }
            Err(error) => answer.error = Some(WireError::new(Code::InvalidState, error.to_string())),
        }
        Served { header: None, body: answer.encode(), wants_snapshot }
    }

    fn find(&self) -> Result<Found, StoreError> {
        if let Some(chunk) = self.request.chunk
            && let Some(found) =
                self.reader.snapshot_chunk(chunk.snapshot, chunk.offset, CHUNK_BYTES.min(self.max_bytes))?
        {
            let header = ChunkHeader { snapshot: chunk.snapshot, offset: chunk.offset, total: found.info.body_bytes };
            return Ok(Found::Chunk(header, found.bytes));
        }
        let from = self.request.from;
        if from == self.head || from.version > self.head.version {
            return Ok(Found::Entries(from, Vec::new()));
        }
        let snapshot = self.reader.snapshot().map(|info| info.position);
        let newer = |than: Version| match snapshot {
            Some(snapshot) if snapshot.version > than => Found::Snapshot(snapshot),
            Some(_) | None => Found::Nothing,
        };
        let is_known = from == Position::default() || self.reader.holds(from)?;
        if !is_known {
            // Another history, or too old a place in this one: begin from a snapshot, whatever its version.
            return Ok(snapshot.map_or(Found::Nothing, Found::Snapshot));
        }
        match self.reader.read_from(from.version)? {
            Some(changes) => Ok(self.gather(changes)?.unwrap_or_else(|| newer(from.version))),
            None => Ok(newer(from.version)),
        }
    }

    /// The entries that fit an answer; `None` where not even the first change does.
    fn gather(&self, changes: Changes) -> Result<Option<Found>, StoreError> {
        let (mut position, mut entries, mut bytes) = (self.request.from, Vec::new(), 0);
        for change in changes {
            let change = change?;
            if change.position.version > self.head.version {
                break;
            }
            bytes += change.messages.iter().map(|(_, payload)| payload.len() + ENTRY_OVERHEAD).sum::<usize>();
            let fits = bytes <= self.max_bytes;
            let Some(more) = fits.then(|| to_entries(&change)).flatten() else {
                let has_some = position != self.request.from;
                return Ok(has_some.then_some(Found::Entries(position, entries)));
            };
            entries.extend(more);
            position = change.position;
        }
        Ok(Some(Found::Entries(position, entries)))
    }
}

fn to_entries(change: &StoredChange) -> Option<Vec<PushEntry>> {
    let entry = |(version, payload): &(Version, Bytes)| {
        let text = std::str::from_utf8(payload).ok()?;
        Some(PushEntry { version: *version, entry: RawValue::from_string(text.to_owned()).ok()? })
    };
    change.messages.iter().map(entry).collect()
}
