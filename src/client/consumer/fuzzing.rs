//! What the fuzz targets reach here: answers of leaders.

use async_nats::{HeaderMap, HeaderValue, Message};
use bytes::Bytes;

use super::{chunk, fetcher};
use crate::client::leaders;
use crate::types::Offset;
use crate::wire::data::{PartitionOffsets, Produced, header};

/// An answer with this head and this payload, to whatever was asked.
pub fn answer(head: &str, is_error: bool, payload: Bytes) {
    let mut headers = HeaderMap::new();
    if let Ok(head) = head.parse::<HeaderValue>() {
        headers.insert(header::HEAD, head);
    }
    if is_error {
        headers.insert(header::ERROR, "CORRUPT_MESSAGE");
    }
    let length = payload.len();
    let message = Message {
        subject: "inbox".into(),
        reply: None,
        payload: payload.clone(),
        headers: Some(headers),
        status: None,
        description: None,
        length,
    };
    let _ = (leaders::json::<Produced>(&message, ""), leaders::json::<PartitionOffsets>(&message, ""));
    let from = fetcher::read(message, "").map_or(Offset(3), |(head, _)| head.offset);
    let is_whole = chunk::verify(&payload).is_ok();
    for record in chunk::Chunk::new(payload, from, 1 << 20) {
        match record {
            Ok((record, _)) => assert!(record.offset >= from),
            // A checksum says nothing of what was written wrong.
            Err(_) if is_whole => break,
            Err(_) => {}
        }
    }
}
