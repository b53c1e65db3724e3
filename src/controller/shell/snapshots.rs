//! Snapshots in the object store, and the stream that begins behind them: writing, verifying, loading, purging, and making
//! the stream anew. Memory is bounded by the images themselves: the bytes flow through a pipe.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::JetStream;
use super::disk::to_io;
use super::pipe::{AsyncReader, BlockingReader, BlockingWriter, Piece, Sum, pipe, pump};
use crate::bus::snapshots::Snapshots;
use crate::metadata::{Image, ParsedEntry, Record, SnapshotRef, read_snapshot, write_snapshot};
use crate::types::{Digest, Position, Version};

/// How much of the stream is read at once while the newest snapshot is looked for.
const SCAN_BYTES: usize = 4 << 20;
/// How many of the newest snapshots are tried.
const TRIES: usize = 4;

/// Writes the image, reads it back, and compares: byte by byte as its digest, and as the image that it folds to.
pub(super) async fn write(store: &Snapshots, image: Box<Image>, position: Position) -> Result<SnapshotRef, String> {
    let began = std::time::Instant::now();
    store.ensure().await.map_err(|error| format!("the object store: {error}"))?;
    let mut snapshot = SnapshotRef { version: position.version, digest: position.digest, bytes: 0 };
    let name = snapshot.name();
    let image: Arc<Image> = Arc::from(image);
    let (pieces, receiver) = pipe();
    let written = image.clone();
    let writing = tokio::task::spawn_blocking(move || {
        let mut writer = BlockingWriter::new(pieces);
        write_snapshot(&written, position, &mut writer).map_err(to_io)?;
        writer.finish()
    });
    let stored = store.put(&name, AsyncReader::new(receiver)).await;
    let sum = writing.await.map_err(|error| error.to_string())?;
    let stored = stored.map_err(|error| format!("writing {name}: {error}"))?;
    let sum = sum.map_err(|error| format!("writing {name}: {error}"))?;
    if stored != sum.bytes {
        return Err(format!("of {name}, {} bytes were written and {stored} are stored", sum.bytes));
    }
    let (read_back, read) = load(store, &name).await?;
    if read != sum || read_back.1 != position || read_back.0 != *image {
        return Err(format!("{name} reads back as something else than what was written"));
    }
    // An image of a million partitions takes a while to free.
    tokio::task::spawn_blocking(move || drop((read_back, image)));
    snapshot.bytes = sum.bytes;
    tracing::info!(name, bytes = sum.bytes, took = ?began.elapsed(), "wrote a snapshot, and read it back");
    Ok(snapshot)
}

/// Reads one object to its end, where its own digest is checked.
async fn load(store: &Snapshots, name: &str) -> Result<(Box<(Image, Position)>, Sum), String> {
    let object = store.get(name).await.map_err(|error| format!("reading {name}: {error}"))?;
    let (pieces, receiver) = pipe();
    let parsing = tokio::task::spawn_blocking(move || parse(receiver));
    let sum = pump(object, pieces).await;
    let parsed = parsing.await.map_err(|error| error.to_string())?.map_err(|error| format!("reading {name}: {error}"));
    // What the parser says is more telling than that it gave up.
    let parsed = parsed?;
    let sum = sum.map_err(|error| format!("reading {name}: {error}"))?;
    Ok((Box::new(parsed), sum))
}

/// Parses what comes through a pipe, to its end. Blocks.
pub(super) fn parse(pieces: mpsc::Receiver<Piece>) -> io::Result<(Image, Position)> {
    let mut reader = BufReader::with_capacity(64 * 1024, BlockingReader::new(pieces));
    let parsed = read_snapshot(&mut reader).map_err(to_io)?;
    let more = io::copy(&mut reader.by_ref(), &mut io::sink())?;
    if more > 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{more} bytes follow its last line")));
    }
    Ok(parsed)
}

/// What the retained messages of the stream say of snapshots.
#[derive(Default)]
struct Scan {
    /// The last ones, oldest first.
    committed: Vec<SnapshotRef>,
    /// The digest at each version on which an entry stands.
    digests: BTreeMap<Version, Digest>,
    /// What the stream may stand on, by what its first entries say. What means nothing may stand before them: it moves the version on,
    /// and not the digest.
    bases: Vec<Position>,
}

impl Scan {
    fn take(&mut self, first: u64, payload: &[u8]) {
        let Some(entry) = ParsedEntry::parse(payload) else { return };
        let base = Position { version: Version(first.saturating_sub(1)), digest: entry.previous.digest };
        if self.bases.len() < TRIES && !self.bases.contains(&base) {
            self.bases.push(base);
        }
        self.digests.insert(entry.previous.version, entry.previous.digest);
        let Ok(records) = entry.records() else { return };
        for record in records {
            if let Record::SnapshotCommitted { snapshot } = record {
                self.committed.push(snapshot);
            }
        }
    }
}

/// Loads the newest snapshot that the stream's messages commit and that they go on from.
pub(super) async fn load_newest(jetstream: &JetStream) -> Result<Box<(Image, Position)>, String> {
    let head = jetstream.log.head().await.map_err(|error| error.to_string())?;
    let head = head.ok_or("the stream is missing")?;
    let mut scan = Scan::default();
    let mut next = head.first;
    while next <= head.last {
        let batch = jetstream.log.read_range(next, head.last, SCAN_BYTES).await.map_err(|error| error.to_string())?;
        let Some((last, _)) = batch.last() else { break };
        next = last + 1;
        batch.iter().for_each(|(_, payload)| scan.take(head.first, payload));
    }
    let Scan { committed, digests, bases } = scan;
    // A forged commit is passed over: its object is missing, or its digest is not what the entries stand on.
    let goes_on = |snapshot: &&SnapshotRef| {
        let known = digests.get(&snapshot.version);
        snapshot.version.0 + 1 >= head.first && known.is_none_or(|digest| *digest == snapshot.digest)
    };
    let mut problem = "no message of the stream commits a snapshot from which its messages go on".to_owned();
    for snapshot in committed.iter().rev().filter(goes_on).take(TRIES) {
        match load(&jetstream.snapshots, &snapshot.name()).await {
            Ok((loaded, _)) if loaded.1 == snapshot.position() => return Ok(loaded),
            Ok((loaded, _)) => problem = format!("{} holds the snapshot of {}", snapshot.name(), loaded.1),
            Err(error) => problem = error,
        }
        tracing::warn!(problem, "a snapshot of the history cannot be used");
    }
    // Whoever restored the history may have died before it could commit the snapshot on which the stream was made anew.
    for base in bases {
        if let Ok((loaded, _)) = load(&jetstream.snapshots, &format!("{}-{}", base.version, base.digest)).await
            && loaded.1 == base
        {
            return Ok(loaded);
        }
    }
    Err(problem)
}

/// The version of the newest snapshot that there is, whichever history it is of.
pub(super) async fn newest(store: &Snapshots) -> Result<Version, String> {
    store.ensure().await.map_err(|error| format!("the object store: {error}"))?;
    let names = store.list().await.map_err(|error| error.to_string())?;
    Ok(names.iter().filter_map(|name| SnapshotRef::version_in(name)).max().unwrap_or(Version::ZERO))
}

/// Writes the image and makes the stream anew, so that its first message has the version after it.
pub(super) async fn recreate(
    jetstream: &JetStream,
    image: Box<Image>,
    position: Position,
) -> Result<SnapshotRef, String> {
    let snapshot = write(&jetstream.snapshots, image, position).await?;
    let head = jetstream.log.head().await.map_err(|error| format!("the stream: {error}"))?;
    if head.is_some_and(|head| head.last > position.version.0) {
        return Err("the stream was made anew by another controller meanwhile".to_owned());
    }
    jetstream.log.recreate(position.version.0 + 1).await.map_err(|error| format!("the stream: {error}"))?;
    Ok(snapshot)
}

/// Removes what a committed snapshot covers: messages, all older snapshots but one, and what is left of snapshots that were cut
/// off. A failure is made good the next time. A deposed controller that is still writing one finds, when it reads it back,
/// that it is not whole; it could not have committed it either.
pub(super) async fn purge(jetstream: &JetStream, before: Version) {
    if let Err(error) = jetstream.log.purge_before(before.0).await {
        tracing::warn!(%error, "the history was not purged before version {before}");
        return;
    }
    let names = match jetstream.snapshots.list().await {
        Ok(names) => names,
        Err(error) => return tracing::warn!(%error, "old snapshots were not removed"),
    };
    for name in obsolete(names, Version(before.0.saturating_sub(1))) {
        match jetstream.snapshots.delete(&name).await {
            Ok(()) => tracing::debug!(name, "removed an old snapshot"),
            Err(error) => tracing::warn!(name, %error, "an old snapshot was not removed"),
        }
    }
    match jetstream.snapshots.sweep().await {
        Ok(0) => {}
        Ok(attempts) => tracing::info!(attempts, "removed what was left of snapshots that were cut off"),
        Err(error) => tracing::warn!(%error, "what is left of snapshots that were cut off was not removed"),
    }
}

/// Of these objects, the snapshots that are older than the committed one, but for the last of them.
fn obsolete(names: Vec<String>, committed: Version) -> Vec<String> {
    let older = |name: String| Some((SnapshotRef::version_in(&name).filter(|found| *found < committed)?, name));
    let mut older: Vec<_> = names.into_iter().filter_map(older).collect();
    older.sort();
    older.pop();
    older.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_snapshot_its_predecessor_and_what_is_newer_are_kept() {
        let names = ["9-a", "100-b", "20-c", "200-d", "notes", "3-e"].map(String::from).to_vec();
        assert_eq!(obsolete(names.clone(), Version(100)), ["3-e", "9-a"]);
        assert_eq!(obsolete(names, Version(3)), Vec::<String>::new());
    }
}
