//! What followers ask of leaders on `dmq.replica.<storage>`: one long poll per pair of nodes, for many partitions at once.
//!
//! Binary, since it carries record batches: a byte with the protocol's version, the header's length (4 bytes, little endian),
//! the header in postcard, then the batches of the partitions that have some, in the header's order.
//!
//! A poll names only the partitions whose position changed since the poll before (Kafka's incremental fetch sessions,
//! KIP-227): thousands of idle partitions cost nothing.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::types::{ClusterId, LeaderEpoch, NodeEpoch, Offset, PartitionId, StorageId, TopicId};

const PROTOCOL: u8 = 1;
const PREFIX: usize = 5;

/// The most that a position takes in a poll, one that is dropped, and a partition in an answer beside its records.
pub const POSITION_BYTES: usize = 64;
pub const DROPPED_BYTES: usize = 24;
pub const ANSWER_BYTES: usize = 80;

/// The poll of a follower's node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReplicaFetch {
    pub cluster: ClusterId,
    /// Who asks, and in which incarnation.
    pub storage: StorageId,
    pub node_epoch: NodeEpoch,
    /// Rises with each session that the asker begins with this leader.
    pub session: u64,
    /// 0 begins the session: all partitions are named. Then one more with each poll.
    pub sequence: u32,
    /// The newest of the session's polls whose answer the asker has taken: records of later ones may be on their way, so the leader
    /// goes on behind them, and sends them again only where this says that they were not taken.
    pub taken: Option<u32>,
    /// The most bytes of records that the answer may hold, except that one batch is always sent whole.
    pub max_bytes: u32,
    /// How long the answer may wait for something to say, in milliseconds.
    pub max_wait_ms: u32,
    /// Positions that changed since the poll before.
    pub positions: Vec<ReplicaPosition>,
    /// No longer followed, or not at present: the leader is not to wait for it.
    pub dropped: Vec<(TopicId, PartitionId)>,
}

/// Where a follower stands in one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReplicaPosition {
    pub topic: TopicId,
    pub partition: PartitionId,
    pub leader_epoch: LeaderEpoch,
    /// Rises where the node begins this replica's log anew.
    pub attempt: u32,
    /// Its log end.
    pub offset: Offset,
    /// The leader epoch of its last record.
    pub last_epoch: Option<LeaderEpoch>,
    /// Up to where its log is on its disk.
    pub flushed: Offset,
}

/// The leader's node's answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReplicaAnswer {
    pub cluster: ClusterId,
    /// Who answers.
    pub storage: StorageId,
    /// The asker's, as it said: an answer to another incarnation is no answer.
    pub node_epoch: NodeEpoch,
    pub session: u64,
    pub sequence: u32,
    pub outcome: SessionOutcome,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SessionOutcome {
    /// Of those partitions that have something to say.
    Partitions(Vec<PartitionAnswer>),
    /// The session is not known here, or a poll of it was lost: begin another.
    UnknownSession,
    /// This node serves nothing now: it has no lease, or stops.
    NotServing,
    /// The asker is of another cluster, or an older incarnation.
    Refused,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PartitionAnswer {
    pub topic: TopicId,
    pub partition: PartitionId,
    pub leader_epoch: LeaderEpoch,
    /// The position that is answered: one poll may overtake another, and their answers each other.
    pub offset: Offset,
    pub last_epoch: Option<LeaderEpoch>,
    pub outcome: PartitionOutcome,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PartitionOutcome {
    /// The histories agree up to the position; `bytes` of record batches from there follow.
    Agrees { high_watermark: Offset, log_start: Offset, bytes: u32 },
    /// They part: the leader has the last epoch that both can know of up to `end`.
    Diverged { epoch: LeaderEpoch, end: Offset },
    /// The leader has only what lies between.
    OutOfRange { log_start: Offset, log_end: Offset },
    /// The leadership that the follower names is over, `leader_epoch` is the present one.
    FencedLeaderEpoch,
    /// Not led here, as far as this node knows: it, or the asker, is behind.
    NotLeader,
    /// The asker holds no replica, or asks for one that was begun anew since.
    NotAReplica,
    /// The records there cannot be read at present.
    StorageError,
    /// To one that was dropped: the asker is not in sync, and will not be before it fetches again. Nobody counts on what it has.
    Left,
}

impl PartitionOutcome {
    fn bytes(&self) -> usize {
        match self {
            Self::Agrees { bytes, .. } => *bytes as usize,
            Self::Diverged { .. }
            | Self::OutOfRange { .. }
            | Self::FencedLeaderEpoch
            | Self::NotLeader
            | Self::NotAReplica
            | Self::StorageError
            | Self::Left => 0,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReplicaMessageError {
    #[error("the message is of version {0} of the replica protocol; version {PROTOCOL} is understood here")]
    Version(u8),
    #[error("the message is cut off or garbled: {0}")]
    Malformed(&'static str),
}

impl ReplicaFetch {
    pub fn encode(&self) -> Bytes {
        frame(self, &[])
    }

    pub fn decode(payload: &[u8]) -> Result<Self, ReplicaMessageError> {
        let (header, rest) = unframe(payload)?;
        if !rest.is_empty() {
            return Err(ReplicaMessageError::Malformed("bytes follow the header"));
        }
        read(header)
    }
}

impl ReplicaAnswer {
    /// `batches`: of each partition that has some, in order.
    pub fn encode(&self, batches: &[Bytes]) -> Bytes {
        frame(self, batches)
    }

    /// The answer, and the records of each of its partitions, without copying them.
    pub fn decode(payload: &Bytes) -> Result<(Self, Vec<Bytes>), ReplicaMessageError> {
        let (header, mut rest) = unframe(payload)?;
        let answer: Self = read(header)?;
        let partitions = match &answer.outcome {
            SessionOutcome::Partitions(partitions) => partitions.as_slice(),
            SessionOutcome::UnknownSession | SessionOutcome::NotServing | SessionOutcome::Refused => &[],
        };
        let mut records = Vec::with_capacity(partitions.len());
        for partition in partitions {
            let (batches, after) = rest
                .split_at_checked(partition.outcome.bytes())
                .ok_or(ReplicaMessageError::Malformed("it has less records than its header says"))?;
            records.push(payload.slice_ref(batches));
            rest = after;
        }
        if !rest.is_empty() {
            return Err(ReplicaMessageError::Malformed("it has more records than its header says"));
        }
        Ok((answer, records))
    }
}

fn frame(header: &impl Serialize, batches: &[Bytes]) -> Bytes {
    let header = postcard::to_stdvec(header).expect("a header has nothing that cannot be written");
    let records: usize = batches.iter().map(Bytes::len).sum();
    let mut message = BytesMut::with_capacity(PREFIX + header.len() + records);
    message.put_u8(PROTOCOL);
    message.put_u32_le(u32::try_from(header.len()).expect("a header is far smaller than 4 GiB"));
    message.put_slice(&header);
    batches.iter().for_each(|batch| message.put_slice(batch));
    message.freeze()
}

fn unframe(payload: &[u8]) -> Result<(&[u8], &[u8]), ReplicaMessageError> {
    let short = ReplicaMessageError::Malformed("it is shorter than any message");
    let (&version, rest) = payload.split_first().ok_or(short.clone())?;
    if version != PROTOCOL {
        return Err(ReplicaMessageError::Version(version));
    }
    let (length, rest) = rest.split_first_chunk().ok_or(short)?;
    let length = u32::from_le_bytes(*length) as usize;
    rest.split_at_checked(length).ok_or(ReplicaMessageError::Malformed("its header is cut off"))
}

fn read<'a, T: Deserialize<'a>>(header: &'a [u8]) -> Result<T, ReplicaMessageError> {
    match postcard::take_from_bytes(header) {
        Ok((message, [])) => Ok(message),
        Ok((_, _)) => Err(ReplicaMessageError::Malformed("its header is longer than what it holds")),
        Err(_) => Err(ReplicaMessageError::Malformed("its header cannot be read")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn answer(bytes: [u32; 2]) -> ReplicaAnswer {
        let partition = |partition, bytes| PartitionAnswer {
            topic: TopicId(Uuid::from_u128(7)),
            partition,
            leader_epoch: LeaderEpoch(3),
            offset: Offset(2),
            last_epoch: Some(LeaderEpoch(2)),
            outcome: PartitionOutcome::Agrees { high_watermark: Offset(5), log_start: Offset(0), bytes },
        };
        ReplicaAnswer {
            cluster: ClusterId(Uuid::from_u128(1)),
            storage: StorageId(2),
            node_epoch: NodeEpoch(6),
            session: 9,
            sequence: 4,
            outcome: SessionOutcome::Partitions(vec![partition(0, bytes[0]), partition(1, bytes[1])]),
        }
    }

    #[test]
    fn nothing_in_a_message_takes_more_than_is_counted_for_it() {
        let size = |message: &dyn Fn(usize) -> Bytes| message(1_001).len() - message(1_000).len();
        let (topic, partition, epoch) = (TopicId(Uuid::from_u128(u128::MAX)), u32::MAX, LeaderEpoch(u32::MAX));
        let far = Offset(i64::MIN);
        let position = ReplicaPosition {
            topic,
            partition,
            leader_epoch: epoch,
            attempt: u32::MAX,
            offset: far,
            last_epoch: Some(epoch),
            flushed: far,
        };
        let poll = |positions, dropped| ReplicaFetch { positions, dropped, ..fetch() }.encode();
        assert!(size(&|count| poll(vec![position; count], Vec::new())) <= POSITION_BYTES);
        assert!(size(&|count| poll(Vec::new(), vec![(topic, partition); count])) <= DROPPED_BYTES);
        for outcome in [
            PartitionOutcome::Agrees { high_watermark: far, log_start: far, bytes: 0 },
            PartitionOutcome::Diverged { epoch, end: far },
            PartitionOutcome::OutOfRange { log_start: far, log_end: far },
        ] {
            let one = PartitionAnswer {
                topic,
                partition,
                leader_epoch: epoch,
                offset: far,
                last_epoch: Some(epoch),
                outcome,
            };
            let told =
                |count| ReplicaAnswer { outcome: SessionOutcome::Partitions(vec![one; count]), ..answer([0, 0]) };
            assert!(
                size(&|count| told(count).encode(&[])) + 5 <= ANSWER_BYTES,
                "with five bytes for its records' length"
            );
        }
    }

    fn fetch() -> ReplicaFetch {
        let position = ReplicaPosition {
            topic: TopicId(Uuid::from_u128(7)),
            partition: 11,
            leader_epoch: LeaderEpoch(3),
            attempt: 0,
            offset: Offset(i64::MAX),
            last_epoch: None,
            flushed: Offset(0),
        };
        ReplicaFetch {
            cluster: ClusterId(Uuid::from_u128(1)),
            storage: StorageId(2),
            node_epoch: NodeEpoch(u64::MAX),
            session: 1,
            sequence: 0,
            taken: None,
            max_bytes: 1 << 20,
            max_wait_ms: 500,
            positions: vec![position],
            dropped: vec![(position.topic, 3)],
        }
    }

    #[test]
    fn messages_come_back_as_they_went_and_records_without_a_copy() {
        assert_eq!(ReplicaFetch::decode(&fetch().encode()), Ok(fetch()));
        let message = answer([3, 2]).encode(&[Bytes::from_static(b"abc"), Bytes::from_static(b"de")]);
        let (read, records) = ReplicaAnswer::decode(&message).unwrap();
        assert_eq!((read, &records[..]), (answer([3, 2]), &[Bytes::from("abc"), Bytes::from("de")][..]));
        assert!(message.as_ptr_range().contains(&records[0].as_ptr()));
    }

    #[test]
    fn an_idle_partition_costs_few_bytes() {
        let mut poll = fetch();
        (poll.positions, poll.dropped) = (Vec::new(), Vec::new());
        assert!(poll.encode().len() < 48, "{}", poll.encode().len());
    }

    #[test]
    fn what_says_more_or_less_than_it_has_is_refused() {
        let message = answer([3, 2]).encode(&[Bytes::from_static(b"abc")]);
        assert_eq!(
            ReplicaAnswer::decode(&message).unwrap_err().to_string(),
            "the message is cut off or garbled: it has less records than its header says"
        );
        let message = answer([1, 1]).encode(&[Bytes::from_static(b"abc")]);
        assert!(ReplicaAnswer::decode(&message).is_err());
        let message = answer([u32::MAX, u32::MAX]).encode(&[]);
        assert!(ReplicaAnswer::decode(&message).is_err());
        assert_eq!(ReplicaFetch::decode(b"\x02\0\0\0\0"), Err(ReplicaMessageError::Version(2)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_allocate_much(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..200) {
            let _ = ReplicaFetch::decode(&bytes);
            let _ = ReplicaAnswer::decode(&Bytes::from(bytes.clone()));
            // A real message with a byte changed gets further.
            for message in [fetch().encode(), answer([3, 2]).encode(&[Bytes::from_static(b"abcde")])] {
                let mut garbled = message.to_vec();
                let index = at % garbled.len();
                garbled[index] = bytes.first().copied().unwrap_or(255);
                let _ = ReplicaFetch::decode(&garbled);
                let _ = ReplicaAnswer::decode(&Bytes::from(garbled));
            }
        }
    }
}
