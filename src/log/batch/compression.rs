//! Kafka's four codecs, in the framings that its Java client writes and reads.

use std::fmt;
use std::io::{self, Read, Write};

use serde::Serialize;

use super::BatchError;

/// How a batch's records are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    #[default]
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

/// What snappy-java begins a stream with: a magic number, its version, and the oldest one that can read it.
const XERIAL: &[u8; 16] = b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01";
const SNAPPY_BLOCK_BYTES: usize = 32 * 1024;
/// The default of Kafka's producers.
const ZSTD_LEVEL: i32 = 3;

impl Compression {
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    pub(super) fn from_bits(bits: u8) -> Result<Self, BatchError> {
        Self::ALL.get(usize::from(bits)).copied().ok_or(BatchError::Compression(bits))
    }

    pub(super) fn bits(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// The bytes compressed, behind so many zeroes.
    pub(super) fn compress_behind(self, room: usize, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(room + bytes.len() / 2);
        out.resize(room, 0);
        match self {
            Self::None => {
                out.extend_from_slice(bytes);
                Ok(out)
            }
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
                encoder.write_all(bytes)?;
                encoder.finish()
            }
            Self::Snappy => compress_snappy(out, bytes),
            Self::Lz4 => {
                use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
                // Kafka's reader refuses blocks that depend on each other.
                let info = FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max64KB);
                let mut encoder = FrameEncoder::with_frame_info(info, out);
                encoder.write_all(bytes)?;
                encoder.finish().map_err(io::Error::other)
            }
            Self::Zstd => {
                let mut encoder = zstd::stream::Encoder::new(out, ZSTD_LEVEL)?;
                encoder.write_all(bytes)?;
                encoder.finish()
            }
        }
    }

    /// The decompressed bytes, at most `limit` of them.
    pub(super) fn decompress(self, bytes: &[u8], limit: usize) -> Result<Vec<u8>, BatchError> {
        let failed = |error: io::Error| BatchError::Decompress { codec: self, what: error.to_string() };
        match self {
            Self::None if bytes.len() > limit => Err(BatchError::TooLarge { limit }),
            Self::None => Ok(bytes.to_vec()),
            Self::Gzip => read_bounded(flate2::read::MultiGzDecoder::new(bytes), limit, failed),
            Self::Snappy => decompress_snappy(bytes, limit),
            Self::Lz4 => read_bounded(lz4_flex::frame::FrameDecoder::new(bytes), limit, failed),
            Self::Zstd => read_bounded(zstd::stream::read::Decoder::new(bytes).map_err(failed)?, limit, failed),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name().fmt(f)
    }
}

fn read_bounded(
    reader: impl Read,
    limit: usize,
    failed: impl Fn(io::Error) -> BatchError,
) -> Result<Vec<u8>, BatchError> {
    let mut out = Vec::new();
    reader.take(limit as u64 + 1).read_to_end(&mut out).map_err(failed)?;
    if out.len() > limit { Err(BatchError::TooLarge { limit }) } else { Ok(out) }
}

fn compress_snappy(mut out: Vec<u8>, bytes: &[u8]) -> io::Result<Vec<u8>> {
    out.extend_from_slice(XERIAL);
    let mut encoder = snap::raw::Encoder::new();
    for block in bytes.chunks(SNAPPY_BLOCK_BYTES) {
        let compressed = encoder.compress_vec(block).map_err(io::Error::other)?;
        // A block has 32 KiB, so its length fits.
        out.extend_from_slice(&(compressed.len() as u32).to_be_bytes());
        out.extend_from_slice(&compressed);
    }
    Ok(out)
}

fn decompress_snappy(bytes: &[u8], limit: usize) -> Result<Vec<u8>, BatchError> {
    let failed = |what: String| BatchError::Decompress { codec: Compression::Snappy, what };
    let mut out = Vec::new();
    let Some(mut blocks) = bytes.strip_prefix(XERIAL) else {
        // Clients that are not Java's may leave the framing away.
        snappy_block(bytes, &mut out, limit)?;
        return Ok(out);
    };
    while !blocks.is_empty() {
        let Some((length, rest)) = blocks.split_first_chunk::<4>() else {
            return Err(failed("a block's length is cut off".into()));
        };
        let length = u32::from_be_bytes(*length) as usize;
        let Some((block, rest)) = rest.split_at_checked(length) else {
            return Err(failed(format!("a block of {length} bytes is cut off")));
        };
        snappy_block(block, &mut out, limit)?;
        blocks = rest;
    }
    Ok(out)
}

fn snappy_block(block: &[u8], out: &mut Vec<u8>, limit: usize) -> Result<(), BatchError> {
    let failed = |error: snap::Error| BatchError::Decompress { codec: Compression::Snappy, what: error.to_string() };
    // It is allocated before it is known to be true.
    let claimed = snap::raw::decompress_len(block).map_err(failed)?;
    if claimed > limit.saturating_sub(out.len()) {
        return Err(BatchError::TooLarge { limit });
    }
    let start = out.len();
    out.resize(start + claimed, 0);
    let written = snap::raw::Decoder::new().decompress(block, &mut out[start..]).map_err(failed)?;
    out.truncate(start + written);
    Ok(())
}
