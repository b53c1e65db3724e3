//! Serving a fetch from this node's disk: a controller that rebuilds a lost history takes it from here.

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::disk::{MetadataReader, StoreError};
use crate::types::{ClusterId, ControllerId, Position, StorageId};
use crate::wire::{ChunkHeader, Code, FetchAnswer, FetchRequest, PushEntry, WireError, WireMessage};

pub(crate) struct Served {
    pub(crate) header: Option<String>,
    pub(crate) body: Bytes,
}

/// Blocks on the disk.
pub(crate) fn serve(
    reader: &MetadataReader,
    cluster: ClusterId,
    storage: StorageId,
    request: &FetchRequest,
    max_bytes: usize,
) -> Served {
    let answer = FetchAnswer {
        cluster,
        // There is no controller here; the number is the node's own.
        controller: ControllerId(storage.0),
        controller_epoch: reader.controller_epoch(),
        head: reader.position(),
        position: request.from,
        entries: Vec::new(),
        snapshot: None,
        error: None,
    };
    match answered(reader, request, answer.clone(), max_bytes) {
        Ok(served) => served,
        Err(error) => {
            let error = Some(WireError::new(Code::InvalidState, error.to_string()));
            Served { header: None, body: FetchAnswer { error, ..answer }.encode() }
        }
    }
}

fn answered(
    reader: &MetadataReader,
    request: &FetchRequest,
    mut answer: FetchAnswer,
    max_bytes: usize,
) -> Result<Served, StoreError> {
    if let Some(chunk) = request.chunk
        && let Some(found) = reader.snapshot_chunk(chunk.snapshot, chunk.offset, max_bytes)?
    {
        let header = ChunkHeader { snapshot: chunk.snapshot, offset: chunk.offset, total: found.info.body_bytes };
        let header = serde_json::to_string(&header).ok();
        return Ok(Served { header, body: found.bytes });
    }
    let known = request.from == Position::default() || reader.holds(request.from)?;
    let changes = if known { reader.read_from(request.from.version)? } else { None };
    let Some(changes) = changes else {
        answer.snapshot = reader.snapshot().map(|info| info.position);
        if answer.snapshot.is_none() {
            let words = format!("this node's history does not pass through {}", request.from);
            answer.error = Some(WireError::new(Code::InvalidState, words));
        }
        return Ok(Served { header: None, body: answer.encode() });
    };
    let mut bytes = 0;
    for change in changes {
        let change = change?;
        // The envelope around each entry is short; a change that fills a message was made to fit one.
        bytes += change.messages.iter().map(|(_, payload)| payload.len() + 64).sum::<usize>();
        if bytes > max_bytes && answer.position != request.from {
            break;
        }
        answer.position = change.position;
        answer.entries.extend(change.messages.iter().filter_map(|(version, payload)| {
            let text = String::from_utf8(payload.to_vec()).ok()?;
            Some(PushEntry { version: *version, entry: RawValue::from_string(text).ok()? })
        }));
    }
    Ok(Served { header: None, body: answer.encode() })
}
