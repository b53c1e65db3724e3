//! The bytes of the metadata's files: the header that segments and snapshots begin with, and the frame of one append.
//!
//! Numbers are big-endian, every check is CRC-32C. An append is *one* frame, whatever the number of its changes: a frame
//! is begun only after the one before it was synced, so a frame's header that is followed by another's can't be torn.
//!
//! | header of a file | 8 magic · 4 format · 8 version · 16 digest · 8 controller epoch · 4 CRC |
//! | --- | --- |
//! | header of a frame | 4 magic · 4 payload length · 4 payload CRC · 8 offset in the file · 8 version before · 8 version after · 16 digest after · 8 controller epoch · 4 CRC |
//! | change (the payload is a row of them) | 8 version · 16 digest · 8 controller epoch · 4 messages, of each: 8 version · 4 length · bytes |
//! | trailer of a snapshot | 8 length of the body · 4 CRC of the body · 4 CRC |

use bytes::{Buf, BufMut, Bytes, TryGetError};

use crate::types::{ControllerEpoch, Digest, Position, Version};

pub(super) const FORMAT: u32 = 1;
pub(super) const SEGMENT_MAGIC: [u8; 8] = *b"dmqENTRY";
pub(super) const SNAPSHOT_MAGIC: [u8; 8] = *b"dmqSNAPS";
pub(super) const FILE_HEADER_BYTES: usize = 48;
pub(super) const FRAME_HEADER_BYTES: usize = 64;
pub(super) const TRAILER_BYTES: usize = 16;
/// What one append may hold: what a reader must be able to keep in memory at once.
pub(super) const FRAME_LIMIT: usize = 256 << 20;
/// Begins with a byte that no UTF-8 text holds, so that no message in JSON can look like a frame.
const FRAME_MAGIC: [u8; 4] = [0xff, b'd', b'm', b'q'];

/// One applied change of the metadata: as the history's stream holds it, so that it can be handed on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredChange {
    /// Where the history stands after the change.
    pub position: Position,
    pub controller_epoch: ControllerEpoch,
    /// The stream's messages that make the change, each with its own version. Several where it was split, none where the
    /// version only passes over void entries.
    pub messages: Vec<(Version, Bytes)>,
}

/// How a segment and a snapshot begin, in every format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FileHeader {
    pub position: Position,
    /// Of a snapshot as given by its writer; of a segment the highest that had been stored when it was begun.
    pub controller_epoch: ControllerEpoch,
}

#[derive(PartialEq, Eq, Debug)]
pub(super) enum HeaderFault {
    Damaged(&'static str),
    UnknownFormat(u32),
}

impl FileHeader {
    pub fn encode(&self, magic: [u8; 8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(FILE_HEADER_BYTES);
        out.put_slice(&magic);
        out.put_u32(FORMAT);
        put_position(&mut out, self.position);
        out.put_u64(self.controller_epoch.0);
        put_crc(&mut out);
        out
    }

    pub fn decode(bytes: &[u8], magic: [u8; 8]) -> Result<Self, HeaderFault> {
        const SHORT: HeaderFault = HeaderFault::Damaged("its header is cut short");
        let mut rest = checked(bytes).ok_or(HeaderFault::Damaged("its header's checksum is wrong"))?;
        if take::<8>(&mut rest).ok_or(SHORT)? != magic {
            return Err(HeaderFault::Damaged("it is no such file of dmq's"));
        }
        let format = rest.try_get_u32().map_err(|_| SHORT)?;
        if format != FORMAT {
            return Err(HeaderFault::UnknownFormat(format));
        }
        let position = get_position(&mut rest).ok_or(SHORT)?;
        let controller_epoch = ControllerEpoch(rest.try_get_u64().map_err(|_| SHORT)?);
        Ok(Self { position, controller_epoch })
    }
}

/// What stands before an append's changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FrameHeader {
    pub payload_bytes: usize,
    pub payload_crc: u32,
    /// Where the frame begins in its file: one that was moved or made up elsewhere is none.
    pub offset: u64,
    pub before: Version,
    pub after: Position,
    /// The highest of the frame's changes.
    pub controller_epoch: ControllerEpoch,
}

impl FrameHeader {
    /// The header in these bytes, unless they are none for this place.
    pub fn decode(bytes: &[u8], offset: u64) -> Option<Self> {
        if !bytes.starts_with(&FRAME_MAGIC) {
            return None;
        }
        let mut rest = checked(bytes)?;
        rest.advance(FRAME_MAGIC.len());
        let header = Self {
            payload_bytes: rest.try_get_u32().ok()? as usize,
            payload_crc: rest.try_get_u32().ok()?,
            offset: rest.try_get_u64().ok()?,
            before: Version(rest.try_get_u64().ok()?),
            after: get_position(&mut rest)?,
            controller_epoch: ControllerEpoch(rest.try_get_u64().ok()?),
        };
        (header.offset == offset && header.payload_bytes <= FRAME_LIMIT).then_some(header)
    }

    pub fn end(&self) -> u64 {
        self.offset + (FRAME_HEADER_BYTES + self.payload_bytes) as u64
    }
}

/// Encodes an append of at least one change into `out`, which is emptied first. How large the payload became if it is too large.
pub(super) fn encode_frame(
    out: &mut Vec<u8>,
    offset: u64,
    before: Version,
    changes: &[StoredChange],
) -> Result<(), usize> {
    let size: usize = FRAME_HEADER_BYTES + changes.iter().map(encoded_bytes).sum::<usize>();
    if size - FRAME_HEADER_BYTES > FRAME_LIMIT {
        return Err(size);
    }
    out.clear();
    out.reserve(size);
    out.put_bytes(0, FRAME_HEADER_BYTES);
    for change in changes {
        put_position(out, change.position);
        out.put_u64(change.controller_epoch.0);
        out.put_u32(change.messages.len() as u32);
        for (version, message) in &change.messages {
            out.put_u64(version.0);
            out.put_u32(message.len() as u32);
            out.put_slice(message);
        }
    }
    let payload = &out[FRAME_HEADER_BYTES..];
    let mut header = Vec::with_capacity(FRAME_HEADER_BYTES);
    header.put_slice(&FRAME_MAGIC);
    header.put_u32(payload.len() as u32);
    header.put_u32(crc32c::crc32c(payload));
    header.put_u64(offset);
    header.put_u64(before.0);
    put_position(&mut header, changes.last().map_or_else(Position::default, |change| change.position));
    header.put_u64(changes.iter().map(|change| change.controller_epoch.0).max().unwrap_or(0));
    put_crc(&mut header);
    out[..FRAME_HEADER_BYTES].copy_from_slice(&header);
    Ok(())
}

fn encoded_bytes(change: &StoredChange) -> usize {
    8 + 16 + 8 + 4 + change.messages.iter().map(|(_, message)| 8 + 4 + message.len()).sum::<usize>()
}

/// The next change of a frame's payload, whose checksum has been verified.
pub(super) fn decode_change(payload: &mut Bytes) -> Option<StoredChange> {
    let position = get_position(payload)?;
    let controller_epoch = ControllerEpoch(payload.try_get_u64().ok()?);
    let count = payload.try_get_u32().ok()?;
    let mut messages = Vec::new();
    for _ in 0..count {
        let version = Version(payload.try_get_u64().ok()?);
        let len = payload.try_get_u32().ok()? as usize;
        if payload.remaining() < len {
            return None;
        }
        messages.push((version, payload.split_to(len)));
    }
    Some(StoredChange { position, controller_epoch, messages })
}

/// How a snapshot ends: what its body must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Trailer {
    pub body_bytes: u64,
    pub body_crc: u32,
}

impl Trailer {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(TRAILER_BYTES);
        out.put_u64(self.body_bytes);
        out.put_u32(self.body_crc);
        put_crc(&mut out);
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = checked(bytes)?;
        Some(Self { body_bytes: rest.try_get_u64().ok()?, body_crc: rest.try_get_u32().ok()? })
    }
}

fn put_crc(out: &mut Vec<u8>) {
    let crc = crc32c::crc32c(out);
    out.put_u32(crc);
}

/// The bytes before a checksum that ends them and is right.
fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let (content, crc) = bytes.split_last_chunk::<4>()?;
    (crc32c::crc32c(content) == u32::from_be_bytes(*crc)).then_some(content)
}

fn put_position(out: &mut Vec<u8>, position: Position) {
    out.put_u64(position.version.0);
    out.put_slice(&position.digest.0);
}

fn get_position(from: &mut impl Buf) -> Option<Position> {
    let version = Version(from.try_get_u64().ok()?);
    Some(Position { version, digest: Digest(take(from)?) })
}

fn take<const N: usize>(from: &mut impl Buf) -> Option<[u8; N]> {
    let mut out = [0; N];
    from.try_copy_to_slice(&mut out).map_err(|_: TryGetError| ()).ok()?;
    Some(out)
}
