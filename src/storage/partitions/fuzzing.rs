//! What the fuzz targets reach here: clients' messages, and the records of the offsets topic.

use std::str::FromStr;

use async_nats::{HeaderMap, HeaderName, HeaderValue, Message};
use bytes::Bytes;

use super::groups::{self, Groups};
use super::request::Request;
use crate::log::batch::{BatchBuilder, BatchHeader, Compression};
use crate::types::WallTime;
use crate::wire::data::{Commit, CommitOffset, CommittedRequest, header};

const LIMIT: usize = 1 << 20;

/// A client's message on a data subject. What is taken for a record becomes a whole batch, and what may be committed is read again.
pub fn request(op: &str, headers: &[(&str, &str)], payload: Bytes) {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (HeaderName::from_str(name), HeaderValue::from_str(value)) {
            map.append(name, value);
        }
    }
    let is_bare = map.get(header::FORMAT).is_none();
    let length = payload.len();
    let message = Message {
        subject: "dmq.data".into(),
        reply: None,
        payload,
        headers: Some(map),
        status: None,
        description: None,
        length,
    };
    match Request::read(op, &message, WallTime(1_700_000_000_000)) {
        Ok(Request::Produce { batch, .. }) if is_bare => {
            let header = BatchHeader::verify(&batch).expect("a bare record becomes a whole batch");
            assert_eq!((header.record_count, header.size()), (1, batch.len()));
        }
        Ok(Request::Commit(commit)) if groups::check(&commit).is_ok() => committed(&commit),
        Ok(_) | Err(_) => {}
    }
}

fn committed(commit: &Commit) {
    let mut groups = Groups::default();
    groups.take_in(groups::to_batch(commit, 0).expect("what was checked fits"), LIMIT);
    let told = groups.committed(&CommittedRequest { group: commit.group.clone(), topic: None });
    for wanted in &commit.offsets {
        let is_it = |other: &&CommitOffset| other.topic == wanted.topic && other.partition == wanted.partition;
        let last = commit.offsets.iter().rfind(is_it).expect("it is one of them");
        assert_eq!(told.offsets.iter().find(is_it).and_then(|told| told.offset), last.offset);
    }
}

/// Records of the offsets topic, in batches as they are, and one in a batch that is whole.
pub fn offsets(batches: Bytes, key: &[u8], value: Option<&[u8]>) {
    let mut groups = Groups::default();
    groups.take_in(batches, LIMIT);
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(0, Some(key), value, &[]);
    groups.take_in(builder.build().expect("it is small"), LIMIT);
}
