//! A bounded pipe between a thread that may block and a task that may not: snapshots flow through it, and never lie in it.
//!
//! An end must be said: a side that goes away in the middle is an error for the other, never the end of the data.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::sync::mpsc;

const PIECE_BYTES: usize = 128 * 1024;
const PIECES: usize = 4;

pub(super) enum Piece {
    Data(Bytes),
    End,
    Failed(io::Error),
}

/// What went through a pipe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sum {
    pub(super) bytes: u64,
    pub(super) sha256: [u8; 32],
}

#[derive(Default)]
struct Summing {
    bytes: u64,
    hash: Sha256,
}

impl Summing {
    fn add(&mut self, data: &[u8]) {
        self.bytes += data.len() as u64;
        self.hash.update(data);
    }

    fn sum(self) -> Sum {
        Sum { bytes: self.bytes, sha256: self.hash.finalize().into() }
    }
}

/// Both ends, whichever of them blocks.
pub(super) fn pipe() -> (mpsc::Sender<Piece>, mpsc::Receiver<Piece>) {
    mpsc::channel(PIECES)
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the other side gave up")
}

/// The end that a thread writes to.
pub(super) struct BlockingWriter {
    pieces: mpsc::Sender<Piece>,
    buffer: Vec<u8>,
    summing: Summing,
}

impl BlockingWriter {
    pub(super) fn new(pieces: mpsc::Sender<Piece>) -> Self {
        Self { pieces, buffer: Vec::with_capacity(PIECE_BYTES), summing: Summing::default() }
    }

    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE_BYTES));
        self.pieces.blocking_send(Piece::Data(full.into())).map_err(|_| cut_off())
    }

    pub(super) fn finish(mut self) -> io::Result<Sum> {
        self.send()?;
        self.pieces.blocking_send(Piece::End).map_err(|_| cut_off())?;
        Ok(self.summing.sum())
    }
}

impl Write for BlockingWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let room = PIECE_BYTES - self.buffer.len();
        let taken = &data[..data.len().min(room)];
        self.buffer.extend_from_slice(taken);
        self.summing.add(taken);
        if self.buffer.len() == PIECE_BYTES {
            self.send()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

/// The end that a thread reads from.
pub(super) struct BlockingReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

impl BlockingReader {
    pub(super) fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self { pieces, current: Bytes::new(), ended: false }
    }
}

impl Read for BlockingReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => self.current = data,
                Some(Piece::End) => self.ended = true,
                Some(Piece::Failed(error)) => return Err(error),
                None => return Err(cut_off()),
            }
        }
        let len = self.current.len().min(into.len());
        into[..len].copy_from_slice(&self.current[..len]);
        self.current.advance(len);
        Ok(len)
    }
}

/// The end that a task reads from.
pub(super) struct AsyncReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

impl AsyncReader {
    pub(super) fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self { pieces, current: Bytes::new(), ended: false }
    }
}

impl AsyncRead for AsyncReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.current.is_empty() && !self.ended {
            match ready!(self.pieces.poll_recv(cx)) {
                Some(Piece::Data(data)) => self.current = data,
                Some(Piece::End) => self.ended = true,
                Some(Piece::Failed(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Err(cut_off())),
            }
        }
        let len = self.current.len().min(into.remaining());
        into.put_slice(&self.current[..len]);
        self.current.advance(len);
        Poll::Ready(Ok(()))
    }
}

/// Brings all of `from` into a pipe, from which a thread reads.
pub(super) async fn pump(mut from: impl AsyncRead + Unpin, pieces: mpsc::Sender<Piece>) -> io::Result<Sum> {
    let mut summing = Summing::default();
    loop {
        let mut buffer = Vec::with_capacity(PIECE_BYTES);
        match from.read_buf(&mut buffer).await {
            Ok(0) => {
                pieces.send(Piece::End).await.map_err(|_| cut_off())?;
                return Ok(summing.sum());
            }
            Ok(_) => {
                summing.add(&buffer);
                pieces.send(Piece::Data(buffer.into())).await.map_err(|_| cut_off())?;
            }
            Err(error) => {
                let told = io::Error::new(error.kind(), error.to_string());
                // The reader may have given up before; the error is returned in any case.
                let _ = pieces.send(Piece::Failed(told)).await;
                return Err(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_on_one_side_is_read_on_the_other() {
        let data: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
        let (sender, receiver) = pipe();
        let written = data.clone();
        let writing = tokio::task::spawn_blocking(move || {
            let mut writer = BlockingWriter::new(sender);
            writer.write_all(&written)?;
            writer.finish()
        });
        let (again, back) = pipe();
        let pumping = tokio::spawn(pump(AsyncReader::new(receiver), again));
        let reading = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            BlockingReader::new(back).read_to_end(&mut all).map(|_| all)
        });
        assert_eq!(reading.await.unwrap().unwrap(), data);
        assert_eq!(writing.await.unwrap().unwrap(), pumping.await.unwrap().unwrap());
    }

    #[tokio::test]
    async fn a_writer_that_gives_up_is_no_end_of_the_data() {
        let (sender, receiver) = pipe();
        let writing = tokio::task::spawn_blocking(move || BlockingWriter::new(sender).write_all(b"half"));
        let mut all = Vec::new();
        assert!(AsyncReader::new(receiver).read_to_end(&mut all).await.is_err());
        writing.await.unwrap().unwrap();
    }
}
