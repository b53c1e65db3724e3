//! What takes its time on JetStream: the head, appends, the lease, and snapshots. Each ends in an input.

use std::fs::File;
use std::io::{BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::TIMEOUT;
use crate::bus::lease::{Lease, LeaseError};
use crate::bus::log::{AppendError, History};
use crate::bus::snapshots::Snapshots;
use crate::bus::{BusError, raw};
use crate::controller::core::{AppendResult, Head, Holder, Input, LeaseResult};
use crate::metadata::{self, Image, ParsedEntry, Record, SnapshotRef, read_snapshot, write_snapshot};
use crate::storage::serve::CHUNK_HEADER;
use crate::types::{Monotonic, Position, Version};
use crate::wire::{ChunkHeader, ChunkRequest, FetchAnswer, FetchRequest, WireMessage};

const APPEND: Duration = Duration::from_secs(1);

pub(super) async fn ask_head(
    history: History,
    snapshots: Snapshots,
    asked_at: Monotonic,
    snapshot: Option<String>,
) -> Input {
    let head = match history.head().await {
        Ok(None) => Some(Head::Missing),
        Ok(Some(head)) => {
            // Only a history that begins with a snapshot depends on it.
            let kept = match snapshot {
                Some(name) if head.first > 1 => snapshots.exists(&name).await,
                Some(_) | None => Ok(true),
            };
            kept.ok().map(|snapshot| Head::Present { first: Version(head.first), last: Version(head.last), snapshot })
        }
        Err(error) => {
            tracing::debug!(%error, "the head is not known");
            None
        }
    };
    Input::Head { asked_at, head }
}

pub(super) async fn append(history: History, expected: Version, payload: Bytes) -> Input {
    let mut result = history.append(expected.0, payload.clone(), HeaderMap::new(), APPEND).await;
    if result == Err(AppendError::StreamMissing) && expected == Version::ZERO {
        // The stream is made with the first entry of a cluster, and at no other time: one that vanished is not made anew.
        match history.ensure().await {
            Ok(_) => result = history.append(expected.0, payload, HeaderMap::new(), APPEND).await,
            Err(error) => tracing::error!(%error, "the stream of the history cannot be made"),
        }
    }
    let result = match result {
        Ok(_) => AppendResult::Stored,
        Err(AppendError::Conflict | AppendError::StreamMissing) => AppendResult::Conflict,
        Err(AppendError::Unknown | AppendError::Disconnected) => AppendResult::Unknown,
        Err(AppendError::TooLarge { size }) => {
            AppendResult::Refused(format!("{size} bytes are too many for one message"))
        }
        Err(AppendError::Refused(words)) => AppendResult::Refused(words),
    };
    Input::Appended { expected, result }
}

pub(super) async fn read(history: History, version: Version) -> Input {
    let result = history.read(version.0).await.map_err(|error| tracing::debug!(%error, "not read"));
    Input::Read { version, result }
}

pub(super) async fn take(lease: Lease, sent_at: Monotonic, revision: Option<u64>, holder: Holder) -> Input {
    let value = serde_json::to_vec(&holder).map(Bytes::from).unwrap_or_default();
    let taken = match revision {
        None => lease.create(value).await,
        Some(revision) => lease.update(value, revision).await,
    };
    let result = match taken {
        Ok(revision) => LeaseResult::Ours(revision),
        Err(LeaseError::Held | LeaseError::Lost) => LeaseResult::Lost,
        Err(LeaseError::BucketMissing) => {
            if let Err(error) = lease.ensure().await {
                tracing::warn!(%error, "the bucket of the lease is gone and cannot be made anew");
            }
            LeaseResult::Unknown
        }
        Err(LeaseError::Unknown | LeaseError::Bus(_)) => LeaseResult::Unknown,
    };
    Input::LeaseAnswer { sent_at, result }
}

type Loaded = Result<Box<(Image, Position)>, String>;

pub(super) async fn load(history: History, snapshots: Snapshots, folder: PathBuf) -> Input {
    Input::Loaded(load_newest(&history, &snapshots, &folder).await)
}

/// The newest snapshot that an entry of the stream commits.
async fn load_newest(history: &History, snapshots: &Snapshots, folder: &Path) -> Loaded {
    let words = |error: BusError| error.to_string();
    let head = history.head().await.map_err(words)?.ok_or("the stream is missing")?;
    let mut from = head.first;
    let mut newest: Option<SnapshotRef> = None;
    while from <= head.last {
        let some = history.read_range(from, head.last, 4 << 20).await.map_err(words)?;
        let Some((last, _)) = some.last() else { break };
        from = last + 1;
        for (_, payload) in &some {
            let Some(records) = ParsedEntry::parse(payload).and_then(|entry| entry.records().ok()) else { continue };
            for record in records {
                if let Record::SnapshotCommitted { snapshot } = record {
                    newest = Some(snapshot);
                }
            }
        }
    }
    let newest = newest.ok_or_else(|| format!("no entry from {} to {} commits one", head.first, head.last))?;
    let file = fetch_object(snapshots, &newest.name(), folder).await?;
    let loaded = parse(file).await?;
    if loaded.1 != newest.position() {
        return Err(format!("snapshot {} is of {}", newest.name(), loaded.1));
    }
    Ok(loaded)
}

async fn fetch_object(snapshots: &Snapshots, name: &str, folder: &Path) -> Result<File, String> {
    let mut object = snapshots.get(name).await.map_err(|error| error.to_string())?;
    let file = scratch(folder).map_err(|error| error.to_string())?;
    let mut file = tokio::fs::File::from_std(file);
    tokio::io::copy(&mut object, &mut file).await.map_err(|error| error.to_string())?;
    file.flush().await.map_err(|error| error.to_string())?;
    Ok(file.into_std().await)
}

/// A file that vanishes with its last handle.
fn scratch(folder: &Path) -> std::io::Result<File> {
    let path = folder.join(format!("scratch-{}", uuid::Uuid::new_v4()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

async fn parse(mut file: File) -> Loaded {
    let read = move || {
        file.seek(SeekFrom::Start(0)).map_err(|error| error.to_string())?;
        read_snapshot(&mut BufReader::new(file)).map(Box::new).map_err(|error| error.to_string())
    };
    tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?
}

/// Writes a snapshot to the object store, and reads it back.
pub(super) async fn write(
    snapshots: Snapshots,
    image: Box<Image>,
    position: Position,
    folder: PathBuf,
) -> Result<SnapshotRef, String> {
    let encode = move || -> Result<(File, u64, Vec<u8>), String> {
        let file = scratch(&folder).map_err(|error| error.to_string())?;
        let mut buffered = BufWriter::new(file);
        write_snapshot(&image, position, &mut buffered).map_err(|error| error.to_string())?;
        buffered.flush().map_err(|error| error.to_string())?;
        let mut file = buffered.into_inner().map_err(|error| error.to_string())?;
        file.seek(SeekFrom::Start(0)).map_err(|error| error.to_string())?;
        let mut hash = Sha256::new();
        let bytes = std::io::copy(&mut file, &mut Hashed(&mut hash)).map_err(|error| error.to_string())?;
        file.seek(SeekFrom::Start(0)).map_err(|error| error.to_string())?;
        Ok((file, bytes, hash.finalize().to_vec()))
    };
    let (file, bytes, wanted) = tokio::task::spawn_blocking(encode).await.map_err(|error| error.to_string())??;
    let snapshot = SnapshotRef { version: position.version, digest: position.digest, bytes };
    let name = snapshot.name();
    snapshots.put(&name, tokio::fs::File::from_std(file)).await.map_err(|error| error.to_string())?;
    let mut object = snapshots.get(&name).await.map_err(|error| error.to_string())?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        let read = object.read(&mut buffer).await.map_err(|error| error.to_string())?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
    }
    if hash.finalize().to_vec() != wanted {
        return Err(format!("snapshot {name} does not read back as it was written"));
    }
    Ok(snapshot)
}

struct Hashed<'a>(&'a mut Sha256);

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Removes what lies behind a committed snapshot, and the snapshots before its predecessor.
pub(super) async fn purge(history: History, snapshots: Snapshots, before: Version) {
    if let Err(error) = history.purge_before(before.0).await {
        tracing::warn!(%error, "the history could not be shortened");
        return;
    }
    let version = |name: &String| name.split('-').next().and_then(|digits| digits.parse::<u64>().ok());
    let Ok(names) = snapshots.list().await else { return };
    let mut old: Vec<_> = names.into_iter().filter(|name| version(name).is_some_and(|v| v < before.0 - 1)).collect();
    old.sort_by_key(version);
    old.pop();
    for name in old {
        if let Err(error) = snapshots.delete(&name).await {
            tracing::warn!(%error, name, "an old snapshot could not be removed");
        }
    }
}

pub(super) async fn recreate(
    history: History,
    snapshots: Snapshots,
    image: Box<Image>,
    position: Position,
    folder: PathBuf,
) -> Input {
    let made = async {
        snapshots.ensure().await.map_err(|error| error.to_string())?;
        let snapshot = write(snapshots, image, position, folder).await?;
        history.recreate(position.version.next().0).await.map_err(|error| error.to_string())?;
        Ok(snapshot)
    };
    Input::Recreated(made.await)
}

/// Takes the metadata from another controller or a storage node, as a node that has nothing would.
pub(super) async fn gather(client: Client, subject: String, position: Position, folder: PathBuf) -> Input {
    Input::Loaded(gather_from(&client, &subject, position, &folder).await)
}

async fn gather_from(client: &Client, subject: &str, target: Position, folder: &Path) -> Loaded {
    let mut history = metadata::History::new();
    while history.position() != target {
        let request = FetchRequest { cluster: None, storage: None, from: history.position(), chunk: None };
        let answer = raw::request_with_deadline(client, subject, None, request.encode(), TIMEOUT).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let answer = FetchAnswer::decode(&answer.payload).map_err(|error| error.to_string())?;
        if let Some(error) = answer.error {
            return Err(error.to_string());
        }
        if let Some(snapshot) = answer.snapshot {
            let (image, position) = *gather_snapshot(client, subject, snapshot, folder).await?;
            history = metadata::History::from_image(image, position);
            continue;
        }
        let before = history.position();
        for entry in &answer.entries {
            history.skip_to(Version(entry.version.0.saturating_sub(1)));
            let payload = Bytes::copy_from_slice(entry.entry.get().as_bytes());
            history.offer(entry.version, &payload).map_err(|error| error.to_string())?;
        }
        history.skip_to(answer.position.version);
        if history.position() == before {
            return Err(format!("{subject} has {before} and nothing after it, and not {target}"));
        }
    }
    let position = history.position();
    let image = history.image().cloned().ok_or("there is no cluster in it")?;
    Ok(Box::new((image, position)))
}

async fn gather_snapshot(client: &Client, subject: &str, snapshot: Position, folder: &Path) -> Loaded {
    let file = scratch(folder).map_err(|error| error.to_string())?;
    let mut file = tokio::fs::File::from_std(file);
    let mut offset = 0;
    loop {
        let chunk = Some(ChunkRequest { snapshot, offset });
        let request = FetchRequest { cluster: None, storage: None, from: Position::default(), chunk };
        let answer = raw::request_with_deadline(client, subject, None, request.encode(), TIMEOUT).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let header = answer.headers.as_ref().and_then(|headers| headers.get(CHUNK_HEADER));
        let header = header.ok_or("the snapshot was replaced meanwhile; ask again")?;
        let header: ChunkHeader = serde_json::from_str(header.as_str()).map_err(|error| error.to_string())?;
        if header.offset != offset || header.snapshot != snapshot {
            return Err("a piece of another snapshot came".into());
        }
        file.write_all(&answer.payload).await.map_err(|error| error.to_string())?;
        offset += answer.payload.len() as u64;
        if offset >= header.total || answer.payload.is_empty() {
            break;
        }
    }
    file.flush().await.map_err(|error| error.to_string())?;
    parse(file.into_std().await).await
}
