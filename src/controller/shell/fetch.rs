//! Fetching the metadata at one position from whoever has it, controller or storage node, to restore a lost history.

use std::io;
use std::time::Duration;

use async_nats::{Client, Message};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::pipe::{Piece, pipe};
use super::snapshots::parse;
use crate::bus::raw;
use crate::metadata::{History, Image};
use crate::types::{Position, Version};
use crate::wire::CHUNK_HEADER;
use crate::wire::{ChunkHeader, ChunkRequest, Code, ErrorBody, FetchAnswer, FetchRequest, WireError, WireMessage};

const PATIENCE: Duration = Duration::from_secs(2);
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);

enum Fetched {
    Answer(Box<FetchAnswer>),
    Chunk(ChunkHeader, Bytes),
}

/// Asks on `subject` until the history there stands exactly at `target`.
pub(super) async fn gather(client: &Client, subject: &str, target: Position) -> Result<Box<(Image, Position)>, String> {
    let mut history = History::new();
    let mut failures = 0;
    while history.position() != target {
        if history.position().version >= target.version {
            return Err(format!("what is there goes through {}, not {target}", history.position()));
        }
        let before = history.position();
        let step = match ask(client, subject, before, None).await {
            Ok(Fetched::Answer(answer)) => take(client, subject, &mut history, *answer, target).await,
            Ok(Fetched::Chunk(..)) => Err("a piece of a snapshot came unasked".to_owned()),
            Err(error) => Err(error),
        };
        match step {
            Ok(()) if history.position() != before => failures = 0,
            stuck => {
                failures += 1;
                if failures >= ATTEMPTS {
                    return Err(stuck.err().unwrap_or_else(|| format!("it does not go beyond {before}")));
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    let image = history.image().cloned().ok_or("there is no metadata at this position")?;
    Ok(Box::new((image, target)))
}

async fn take(
    client: &Client,
    subject: &str,
    history: &mut History,
    answer: FetchAnswer,
    target: Position,
) -> Result<(), String> {
    if let Some(error) = answer.error {
        return Err(error.to_string());
    }
    if let Some(snapshot) = answer.snapshot {
        if snapshot.version > target.version {
            return Err(format!("its snapshot is of {}, beyond {}", snapshot.version, target.version));
        }
        let (image, position) = fetch_snapshot(client, subject, snapshot).await?;
        *history = History::from_image(image, position);
        return Ok(());
    }
    for entry in answer.entries {
        // Versions that are left out changed nothing.
        history.skip_to(Version(entry.version.0.saturating_sub(1)));
        let payload = Bytes::copy_from_slice(entry.entry.get().as_bytes());
        history.offer(entry.version, &payload).map_err(|error| error.to_string())?;
        if history.position() == target {
            return Ok(());
        }
    }
    history.skip_to(answer.position.version.min(target.version));
    Ok(())
}

async fn ask(client: &Client, subject: &str, from: Position, chunk: Option<ChunkRequest>) -> Result<Fetched, String> {
    let request = FetchRequest { cluster: None, storage: None, from, chunk };
    let answer = raw::request_with_deadline(client, subject, None, request.encode(), PATIENCE).await;
    let message = answer.map_err(|error| error.to_string())?;
    read(&message).map_err(|error| error.to_string())
}

fn read(message: &Message) -> Result<Fetched, WireError> {
    if let Some(header) = message.headers.as_ref().and_then(|headers| headers.get(CHUNK_HEADER)) {
        let header = serde_json::from_str(header.as_str()).map_err(|error| WireError::malformed(&error))?;
        return Ok(Fetched::Chunk(header, message.payload.clone()));
    }
    if let Ok(body) = serde_json::from_slice::<ErrorBody>(&message.payload) {
        return Err(body.error);
    }
    FetchAnswer::decode(&message.payload).map(|answer| Fetched::Answer(Box::new(answer)))
}

/// A snapshot in pieces, parsed as they come.
async fn fetch_snapshot(client: &Client, subject: &str, snapshot: Position) -> Result<(Image, Position), String> {
    let (pieces, receiver) = pipe();
    let parsing = tokio::task::spawn_blocking(move || parse(receiver));
    let fetching = async {
        let (mut offset, mut total) = (0, u64::MAX);
        while offset < total {
            let chunk = ask_chunk(client, subject, snapshot, offset).await?;
            let (header, bytes) = chunk;
            if header.snapshot != snapshot || header.offset != offset || bytes.is_empty() {
                return Err("a piece of its snapshot is not the one that was asked for".to_owned());
            }
            total = header.total;
            offset += bytes.len() as u64;
            if pieces.send(Piece::Data(bytes)).await.is_err() {
                // The parser has found a fault, and says which.
                return Ok(());
            }
        }
        let _ = pieces.send(Piece::End).await;
        Ok(())
    };
    let fetched = fetching.await;
    if let Err(error) = &fetched {
        give_up(&pieces, error).await;
    }
    drop(pieces);
    let parsed = parsing.await.map_err(|error| error.to_string())?;
    fetched?;
    let (image, position) = parsed.map_err(|error| error.to_string())?;
    if position == snapshot { Ok((image, position)) } else { Err(format!("its snapshot is of {position}")) }
}

async fn give_up(pieces: &mpsc::Sender<Piece>, error: &str) {
    // Where the parser is gone already, nobody needs to hear it.
    let _ = pieces.send(Piece::Failed(io::Error::other(error.to_owned()))).await;
}

async fn ask_chunk(
    client: &Client,
    subject: &str,
    snapshot: Position,
    offset: u64,
) -> Result<(ChunkHeader, Bytes), String> {
    let mut failures = 0;
    loop {
        let chunk = Some(ChunkRequest { snapshot, offset });
        match ask(client, subject, Position::default(), chunk).await {
            Ok(Fetched::Chunk(header, bytes)) => return Ok((header, bytes)),
            Ok(Fetched::Answer(_)) => {
                return Err(WireError::new(Code::InvalidState, "its snapshot was replaced meanwhile").to_string());
            }
            Err(error) => {
                failures += 1;
                if failures >= 3 {
                    return Err(error);
                }
            }
        }
    }
}
