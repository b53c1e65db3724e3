//! The envelope of a history's message: who wrote it, on top of what, why, and the records that it brings.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::digest::chain;
use super::record::Record;
use crate::types::{ClusterId, ControllerEpoch, Digest, Position, RequestId, Version, WallTime};

/// The `type` of every message of the history, with the version of the envelope's format.
pub const ENTRY_TYPE: &str = "dmq.entry.v1";

/// Why a change was made, in words for the person who reads the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cause(pub Arc<str>);

impl<T: Into<Arc<str>>> From<T> for Cause {
    fn from(words: T) -> Self {
        Self(words.into())
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What one change says of itself, whatever number of messages it takes.
#[derive(Clone, Debug)]
pub struct Entry {
    pub cluster: ClusterId,
    pub controller_epoch: ControllerEpoch,
    /// Where the history stands before the change.
    pub previous: Position,
    pub committed_at: WallTime,
    pub cause: Cause,
    /// The request that asked for it, with a fingerprint of what it asked and the answer that a retry gets, as JSON.
    pub request: Option<(RequestId, u64, Arc<str>)>,
    pub records: Vec<Record>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    r#type: &'static str,
    cluster: ClusterId,
    controller_epoch: ControllerEpoch,
    previous: Position,
    committed_at: WallTime,
    cause: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<RequestField<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<PartField>,
    /// They are the last field, and written in between.
    records: [(); 0],
}

#[derive(Serialize)]
struct RequestField<'a> {
    id: &'a RequestId,
    fingerprint: u64,
    answer: &'a str,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PartField {
    /// From 0.
    pub number: u32,
    pub last: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EntryError {
    #[error(
        "one record of the change, or what it says of itself, takes {size} bytes, more than the {limit} that a message may have"
    )]
    RecordTooLarge { size: usize, limit: usize },
}

/// The messages that carry a change, each at most `limit` bytes, in order. The first takes the version after `previous`.
///
/// Usually one. Where the records don't fit, they are spread over several, and the change takes effect with the last.
pub fn encode_change(entry: &Entry, limit: usize) -> Result<Vec<Bytes>, EntryError> {
    // There may be a million partitions in them: each is written once, and the envelopes are put around.
    let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(entry.records.len()));
    for record in &entry.records {
        bytes.push(b',');
        serde_json::to_writer(&mut bytes, record).expect("records have string keys only");
        ends.push(bytes.len());
    }
    let (before, after) = envelope(entry, None);
    if before.len() + bytes.len().saturating_sub(1) + after.len() <= limit {
        return Ok(vec![[&before, bytes.get(1..).unwrap_or_default(), &after].concat().into()]);
    }
    let (before, after) = envelope(entry, Some(PartField { number: u32::MAX, last: false }));
    let overhead = before.len() + after.len();
    if overhead > limit {
        return Err(EntryError::RecordTooLarge { size: overhead, limit });
    }
    let (mut groups, mut start, mut end) = (Vec::new(), 0, 0);
    for next in ends {
        if overhead + (next - end) > limit {
            return Err(EntryError::RecordTooLarge { size: next - end, limit: limit.saturating_sub(overhead) });
        }
        if overhead + (next - start) > limit {
            groups.push(start..end);
            start = end;
        }
        end = next;
    }
    groups.push(start..end);
    let last = groups.len() - 1;
    let encode = |(number, group): (usize, std::ops::Range<usize>)| {
        let (before, after) = envelope(entry, Some(PartField { number: number as u32, last: number == last }));
        [&before, bytes[group].get(1..).unwrap_or_default(), &after].concat().into()
    };
    Ok(groups.into_iter().enumerate().map(encode).collect())
}

/// What is before and what is after the records of a message.
fn envelope(entry: &Entry, part: Option<PartField>) -> (Vec<u8>, Vec<u8>) {
    let request =
        entry.request.as_ref().map(|(id, fingerprint, answer)| RequestField { id, fingerprint: *fingerprint, answer });
    let envelope = Envelope {
        r#type: ENTRY_TYPE,
        cluster: entry.cluster,
        controller_epoch: entry.controller_epoch,
        previous: entry.previous,
        committed_at: entry.committed_at,
        cause: &entry.cause.0,
        request,
        part,
        records: [],
    };
    let mut before = serde_json::to_vec(&envelope).expect("an envelope has string keys only");
    // The records are its last field: what follows their opening bracket is what is after them.
    let after = before.split_off(before.len() - b"]}".len());
    (before, after)
}

/// A message of the history whose envelope is ours. Its records are not looked at yet.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParsedEntry<'a> {
    #[serde(borrow)]
    pub r#type: Cow<'a, str>,
    pub cluster: ClusterId,
    pub controller_epoch: ControllerEpoch,
    pub previous: Position,
    pub committed_at: WallTime,
    #[serde(borrow)]
    pub cause: Cow<'a, str>,
    #[serde(default)]
    pub request: Option<ParsedRequest>,
    #[serde(default)]
    pub part: Option<PartField>,
    #[serde(borrow)]
    records: &'a RawValue,
}

#[derive(Debug, Deserialize)]
pub struct ParsedRequest {
    pub id: RequestId,
    pub fingerprint: u64,
    pub answer: Arc<str>,
}

impl<'a> ParsedEntry<'a> {
    /// None where the payload is not an envelope of ours.
    pub fn parse(payload: &'a [u8]) -> Option<Self> {
        let parsed: Self = serde_json::from_slice(payload).ok()?;
        parsed.r#type.starts_with("dmq.entry.").then_some(parsed)
    }

    pub fn records(&self) -> Result<Vec<Record>, serde_json::Error> {
        let records: Vec<&RawValue> = serde_json::from_str(self.records.get())?;
        records.into_iter().map(Record::read).collect()
    }

    /// Whether this message holds an election, and before a cluster is founded, begins with its founding. Told from the types
    /// of the records alone, be there others that this program does not know.
    pub fn elects(&self, founded: bool) -> bool {
        #[derive(Deserialize)]
        struct Kind<'a> {
            #[serde(borrow)]
            r#type: Cow<'a, str>,
            #[serde(borrow, default)]
            cluster: Option<&'a RawValue>,
        }
        let Ok(kinds) = serde_json::from_str::<Vec<Kind>>(self.records.get()) else { return false };
        let of_this_cluster =
            |kind: &Kind| kind.cluster.and_then(|raw| serde_json::from_str(raw.get()).ok()) == Some(self.cluster);
        let founds = |kind: &Kind| kind.r#type == "clusterFounded" && of_this_cluster(kind);
        kinds.iter().any(|kind| kind.r#type == "controllerElected") && (founded || kinds.first().is_some_and(founds))
    }
}

/// The digest after the messages of a change, the first of which is at `first`.
pub fn digest_of(previous: Digest, first: Version, messages: &[Bytes]) -> Digest {
    let versions = (first.0..).map(Version);
    messages.iter().zip(versions).fold(previous, |digest, (payload, version)| chain(digest, version, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(records: Vec<Record>) -> Entry {
        Entry {
            cluster: ClusterId(uuid::Uuid::from_u128(1)),
            controller_epoch: ControllerEpoch(3),
            previous: Position { version: Version(4), digest: Digest([7; 16]) },
            committed_at: WallTime(1_795_552_800_123),
            cause: "asked by a test".into(),
            request: Some((RequestId::new("r-1").unwrap(), 9, r#"{"version":5}"#.into())),
            records,
        }
    }

    #[test]
    fn a_change_that_fits_is_one_message_that_reads_back() {
        let messages = encode_change(&entry(vec![Record::NoOp {}]), 1_000_000).unwrap();
        assert_eq!(messages.len(), 1);
        let parsed = ParsedEntry::parse(&messages[0]).unwrap();
        assert_eq!(parsed.records().unwrap(), vec![Record::NoOp {}]);
        assert_eq!(
            (parsed.controller_epoch, parsed.part, &*parsed.cause),
            (ControllerEpoch(3), None, "asked by a test")
        );
        assert_eq!(&*parsed.request.unwrap().answer, r#"{"version":5}"#);
    }

    #[test]
    fn a_change_that_does_not_fit_is_split_in_order_and_no_part_exceeds_the_limit() {
        let record = |n| Record::PairingChanged { storage: crate::types::StorageId(n), controller: None };
        let records: Vec<_> = (0..100).map(record).collect();
        let messages = encode_change(&entry(records.clone()), 1000).unwrap();
        assert!(messages.len() > 2 && messages.iter().all(|m| m.len() <= 1000));
        let parts: Vec<_> = messages.iter().map(|m| ParsedEntry::parse(m).unwrap()).collect();
        assert!(parts.iter().enumerate().all(|(n, p)| p.part.unwrap().number as usize == n));
        assert!(parts.iter().rev().skip(1).all(|p| !p.part.unwrap().last) && parts.last().unwrap().part.unwrap().last);
        assert_eq!(parts.iter().flat_map(|p| p.records().unwrap()).collect::<Vec<_>>(), records);
    }

    #[test]
    fn what_is_not_our_envelope_is_no_entry() {
        for payload in [&b"hello"[..], b"{}", b"", b"[1,2]", br#"{"type":"other"}"#, &[0xff; 40]] {
            assert!(ParsedEntry::parse(payload).is_none());
        }
    }
}
