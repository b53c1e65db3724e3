//! Tests of the history, of random sequences of rules, and of what a million partitions cost.

mod history;
mod model;
mod scale;

use super::{History, Image, read_snapshot, write_snapshot};
use crate::types::{Position, Version};
use bytes::Bytes;

fn snapshot(image: &Image, position: Position) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_snapshot(image, position, &mut bytes).unwrap();
    bytes
}

fn load(bytes: &[u8]) -> History {
    let (image, position) = read_snapshot(&mut &*bytes).unwrap();
    History::from_image(image, position)
}

/// Offers the messages after `from`.
fn replay(mut history: History, stream: &[Bytes], from: Version) -> History {
    for (version, payload) in (1..).map(Version).zip(stream).skip(from.0 as usize) {
        history.offer(version, payload).unwrap();
    }
    history
}
