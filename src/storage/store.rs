//! What the core wants written and installed, on the store that has the disk. It blocks; the writer's thread calls it.

use std::collections::VecDeque;
use std::io::{BufReader, Read};

use bytes::{Buf, Bytes};

use super::core::{Applied, Input};
use crate::disk::{MetadataStore, StoreError, StoredChange};
use crate::metadata::read_snapshot;
use crate::types::{ClusterId, ControllerEpoch, Position};

/// Writes these with one sync.
pub(crate) fn append(store: &mut MetadataStore, changes: &[Applied]) -> Input {
    let stored: Vec<_> = changes.iter().map(to_stored).collect();
    match store.append(&stored).map(|()| store.position()) {
        Ok(position) => Input::Persisted(position),
        Err(error) => failed(store, &error),
    }
}

fn to_stored(applied: &Applied) -> StoredChange {
    let message = |message: &crate::metadata::Message| (message.version, message.payload.clone());
    StoredChange {
        position: applied.position,
        controller_epoch: applied.controller_epoch,
        messages: applied.messages.iter().map(message).collect(),
    }
}

fn failed(store: &MetadataStore, error: &StoreError) -> Input {
    Input::PersistFailed { words: error.to_string(), fatal: store.is_poisoned() }
}

/// Replaces what is stored by the snapshot in these pieces.
pub(crate) fn install(
    store: &mut MetadataStore,
    cluster: ClusterId,
    position: Position,
    controller_epoch: ControllerEpoch,
    pieces: Vec<Bytes>,
) -> Input {
    let image = match read_snapshot(&mut BufReader::new(Pieces(pieces.iter().cloned().collect()))) {
        Ok((image, found)) if found == position && image.cluster == cluster => image,
        Ok((image, found)) => {
            let words = format!("it is of cluster {} at {found}, not of {cluster} at {position}", image.cluster);
            return Input::SnapshotUnusable { words };
        }
        Err(error) => return Input::SnapshotUnusable { words: error.to_string() },
    };
    let epoch = controller_epoch.max(image.controller_epoch());
    let written =
        store.install_snapshot(position, epoch, |writer| pieces.iter().try_for_each(|piece| writer.write_all(piece)));
    match written {
        Ok(()) => Input::SnapshotInstalled { image: Box::new(image), position },
        Err(error) => failed(store, &error),
    }
}

/// Pieces read as one.
struct Pieces(VecDeque<Bytes>);

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.0.front().is_some_and(Bytes::is_empty) {
            self.0.pop_front();
        }
        let Some(piece) = self.0.front_mut() else { return Ok(0) };
        let count = piece.len().min(into.len());
        piece.copy_to_slice(&mut into[..count]);
        Ok(count)
    }
}
