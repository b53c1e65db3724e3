//! Groups' committed offsets: what a partition of the offsets topic says, in Kafka's records (`OffsetCommitKey` version 1,
//! `OffsetCommitValue` version 3), and what its leader has read of it.
//!
//! A commit counts once it is on the disk of every in-sync replica. Whoever leads anew reads the partition first.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes};
use uuid::Uuid;

use crate::log::batch::{self, BatchBuilder, BatchHeader, Compression, Header};
use crate::types::{LeaderEpoch, Offset, PartitionId, TopicId, TopicName, partition_of_key};
use crate::wire::data::{Commit, CommitOffset, Committed, CommittedRequest, GROUP_MAX_BYTES, OFFSETS_TOPIC};
use crate::wire::{Code, WireError};

/// Kafka's `offset.metadata.max.bytes`.
const METADATA_MAX_BYTES: usize = 4096;
/// The most offsets of one request.
const OFFSETS_MAX: usize = 10_000;
const KEY_VERSION: i16 = 1;
const VALUE_VERSION: i16 = 3;

type Partition = (String, PartitionId);

/// The groups of one partition of the offsets topic.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(in crate::storage) struct Groups(BTreeMap<String, BTreeMap<Partition, CommitOffset>>);

impl Groups {
    pub(super) fn apply(&mut self, group: &str, offset: CommitOffset) {
        let key = (offset.topic.clone(), offset.partition);
        if offset.offset.is_some() {
            self.0.entry(group.to_owned()).or_default().insert(key, offset);
        } else if let Some(held) = self.0.get_mut(group) {
            held.remove(&key);
            if held.is_empty() {
                self.0.remove(group);
            }
        }
    }

    pub(super) fn committed(&self, request: &CommittedRequest) -> Committed {
        let held = self.0.get(&request.group).into_iter().flat_map(BTreeMap::values);
        let wanted = |offset: &&CommitOffset| request.topic.as_ref().is_none_or(|topic| *topic == offset.topic);
        Committed { group: request.group.clone(), offsets: held.filter(wanted).cloned().collect() }
    }

    /// Takes in what whole batches say. Records that are none of ours are passed over.
    pub(super) fn take_in(&mut self, mut batches: Bytes, limit: usize) {
        while let Ok(header) = BatchHeader::parse(&batches) {
            for record in batch::records(&batches, limit).into_iter().flatten().map_while(Result::ok) {
                let decoded = record.key.and_then(|key| decode(&key, record.value.as_deref()));
                if let Some((group, mut offset)) = decoded {
                    offset.topic_id = topic_id(&record.headers);
                    self.apply(&group, offset);
                }
            }
            batches.advance(header.size().min(batches.len()));
        }
    }
}

pub(super) fn check(commit: &Commit) -> Result<(), WireError> {
    check_group(&commit.group)?;
    if commit.offsets.is_empty() || commit.offsets.len() > OFFSETS_MAX {
        let words = format!("a commit has 1 to {OFFSETS_MAX} offsets, not {}", commit.offsets.len());
        return Err(WireError::new(Code::InvalidRequest, words));
    }
    for offset in &commit.offsets {
        TopicName::new(&offset.topic)
            .map_err(|error| WireError::new(Code::InvalidTopicException, error.to_string()))?;
        // Kafka's records have 31 bits for both.
        let exceeds = |number: u32| i32::try_from(number).is_err();
        if exceeds(offset.partition) || offset.leader_epoch.is_some_and(|epoch| exceeds(epoch.0)) {
            let words = format!(
                "{}-{}: a partition and a leader epoch are at most {}",
                offset.topic,
                offset.partition,
                i32::MAX
            );
            return Err(WireError::new(Code::InvalidRequest, words));
        }
        if offset.offset.is_some_and(|offset| offset < Offset::ZERO) {
            let words = format!("{}-{}: an offset is 0 or more", offset.topic, offset.partition);
            return Err(WireError::new(Code::InvalidRequest, words));
        }
        let bytes = offset.metadata.as_ref().map_or(0, String::len);
        if bytes > METADATA_MAX_BYTES {
            let words = format!("the metadata of an offset has at most {METADATA_MAX_BYTES} bytes, not {bytes}");
            return Err(WireError::new(Code::OffsetMetadataTooLarge, words));
        }
    }
    Ok(())
}

pub(in crate::storage) fn check_group(group: &str) -> Result<(), WireError> {
    if group.is_empty() || group.len() > GROUP_MAX_BYTES {
        let words = format!("a group's name has 1 to {GROUP_MAX_BYTES} bytes, not {}", group.len());
        return Err(WireError::new(Code::InvalidGroupId, words));
    }
    Ok(())
}

/// Whether a group is of this one of so many partitions of the offsets topic. In any other its offsets would not be found again.
pub(super) fn check_partition(group: &str, asked: PartitionId, partitions: u32) -> Result<(), WireError> {
    if partitions == 0 {
        let words = "it is not known here yet how many partitions there are; ask again";
        return Err(WireError::new(Code::CoordinatorLoadInProgress, words));
    }
    match partition_of_key(group.as_bytes(), partitions) {
        right if right == asked => Ok(()),
        right => {
            let words = format!(
                "the coordinator of group {group:?} leads partition {right} of {OFFSETS_TOPIC}, not {asked}; ask there, or with 'auto'"
            );
            Err(WireError::new(Code::NotCoordinator, words))
        }
    }
}

/// The records of a commit, as one batch. `now_ms` is wall time in milliseconds since 1970.
pub(super) fn to_batch(commit: &Commit, now_ms: i64) -> std::io::Result<Bytes> {
    let mut builder = BatchBuilder::new(Compression::None);
    for offset in &commit.offsets {
        let key = encode_key(&commit.group, offset);
        let value = offset.offset.map(|at| encode_value(at, offset, now_ms));
        let topic_id = offset.topic_id.map(|id| Header {
            key: Bytes::from_static(TOPIC_ID),
            value: Some(Bytes::copy_from_slice(id.0.as_bytes())),
        });
        builder.push(now_ms, Some(&key), value.as_deref(), topic_id.as_slice());
    }
    builder.build()
}

/// The record's header that names the topic's id, which Kafka's values of this version have no room for.
const TOPIC_ID: &[u8] = b"topicId";

fn topic_id(headers: &[Header]) -> Option<TopicId> {
    let named = headers.iter().find(|header| header.key == TOPIC_ID)?;
    Uuid::from_slice(named.value.as_ref()?).ok().map(TopicId)
}

fn encode_key(group: &str, offset: &CommitOffset) -> Vec<u8> {
    let mut key = Vec::new();
    key.put_i16(KEY_VERSION);
    put_string(&mut key, group);
    put_string(&mut key, &offset.topic);
    key.put_i32(offset.partition as i32);
    key
}

fn encode_value(at: Offset, offset: &CommitOffset, now_ms: i64) -> Vec<u8> {
    let mut value = Vec::new();
    value.put_i16(VALUE_VERSION);
    value.put_i64(at.0);
    value.put_i32(offset.leader_epoch.map_or(-1, |epoch| epoch.0 as i32));
    put_string(&mut value, offset.metadata.as_deref().unwrap_or_default());
    value.put_i64(now_ms);
    value
}

/// Kafka's: its length in two bytes, then its bytes. What is longer was refused before.
fn put_string(into: &mut Vec<u8>, text: &str) {
    into.put_i16(i16::try_from(text.len()).unwrap_or(i16::MAX));
    into.put_slice(text.as_bytes());
}

fn decode(mut key: &[u8], value: Option<&[u8]>) -> Option<(String, CommitOffset)> {
    let version = key.try_get_i16().ok()?;
    if !(0..=KEY_VERSION).contains(&version) {
        return None;
    }
    let (group, topic) = (get_string(&mut key)?, get_string(&mut key)?);
    let partition = PartitionId::try_from(key.try_get_i32().ok()?).ok()?;
    let mut offset =
        CommitOffset { topic, partition, offset: None, leader_epoch: None, topic_id: None, metadata: None };
    if let Some(mut value) = value {
        if value.try_get_i16().ok()? != VALUE_VERSION {
            return None;
        }
        offset.offset = Some(Offset(value.try_get_i64().ok()?));
        offset.leader_epoch = u32::try_from(value.try_get_i32().ok()?).ok().map(LeaderEpoch);
        offset.metadata = Some(get_string(&mut value)?).filter(|text| !text.is_empty());
    }
    Some((group, offset))
}

fn get_string(from: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(from.try_get_i16().ok()?).ok()?;
    let (text, rest) = from.split_at_checked(length)?;
    *from = rest;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(partition: PartitionId, at: Option<i64>) -> CommitOffset {
        CommitOffset {
            topic: "orders".into(),
            partition,
            offset: at.map(Offset),
            leader_epoch: at.map(|_| LeaderEpoch(3)),
            topic_id: at.filter(|at| *at > 5).map(|_| TopicId(Uuid::from_u128(7))),
            metadata: at.map(|_| "half way".into()),
        }
    }

    fn commit(offsets: Vec<CommitOffset>) -> Commit {
        Commit { group: "billing".into(), offsets }
    }

    #[test]
    fn what_is_written_is_read_again_and_a_null_offset_forgets() {
        let mut groups = Groups::default();
        for offsets in [vec![offset(0, Some(5)), offset(1, Some(7))], vec![offset(0, Some(6)), offset(1, None)]] {
            groups.take_in(to_batch(&commit(offsets), 1_700).unwrap(), 1 << 20);
        }
        let ask = |topic: Option<&str>| {
            groups.committed(&CommittedRequest { group: "billing".into(), topic: topic.map(str::to_owned) }).offsets
        };
        assert_eq!(ask(None), [offset(0, Some(6))]);
        assert_eq!((ask(Some("orders")).len(), ask(Some("clicks")).len()), (1, 0));
    }

    #[test]
    fn a_group_has_one_partition_and_another_is_told_which() {
        let right = partition_of_key(b"billing", 16);
        for asked in 0..16 {
            match check_partition("billing", asked, 16) {
                Ok(()) => assert_eq!(asked, right),
                Err(error) => {
                    assert_eq!(error.code, Code::NotCoordinator);
                    assert!(error.message.contains(&format!("leads partition {right} of ")), "{error}");
                }
            }
        }
        let unknown = check_partition("billing", right, 0).unwrap_err();
        assert_eq!(unknown.code, Code::CoordinatorLoadInProgress);
    }

    #[test]
    fn the_key_is_kafkas() {
        let key = encode_key("g", &CommitOffset { topic: "t".into(), ..offset(2, None) });
        assert_eq!(key, b"\0\x01\0\x01g\0\x01t\0\0\0\x02");
        assert_eq!(decode(b"\0\x02\0\x01g", None), None, "a group's own record, of a later Kafka");
        assert_eq!(decode(b"\0\x01\0\x7fg", None), None);
    }

    #[test]
    fn a_commit_that_makes_no_sense_is_refused_as_a_whole() {
        let code = |commit: &Commit| check(commit).map_err(|error| error.code);
        assert_eq!(code(&commit(vec![offset(0, Some(1))])), Ok(()));
        assert_eq!(
            code(&Commit { group: String::new(), ..commit(vec![offset(0, Some(1))]) }),
            Err(Code::InvalidGroupId)
        );
        assert_eq!(code(&commit(Vec::new())), Err(Code::InvalidRequest));
        assert_eq!(code(&commit(vec![offset(0, Some(-1))])), Err(Code::InvalidRequest));
        // As a negative number on the disk it would be forgotten with the next coordinator, although it was acknowledged.
        assert_eq!(code(&commit(vec![offset(1 << 31, Some(1))])), Err(Code::InvalidRequest));
        let late = CommitOffset { leader_epoch: Some(LeaderEpoch(1 << 31)), ..offset(0, Some(1)) };
        assert_eq!(code(&commit(vec![late])), Err(Code::InvalidRequest));
        let wordy = CommitOffset { metadata: Some("x".repeat(4097)), ..offset(0, Some(1)) };
        assert_eq!(code(&commit(vec![wordy])), Err(Code::OffsetMetadataTooLarge));
        let nowhere = CommitOffset { topic: "a b".into(), ..offset(0, Some(1)) };
        assert_eq!(code(&commit(vec![nowhere])), Err(Code::InvalidTopicException));
    }
}
