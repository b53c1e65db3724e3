//! Errors as they travel: a code that programs match, words for people. Kafka's names where Kafka has the error.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// What went wrong, for programs. Kafka's names in its spelling.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// The request cannot be read: not JSON, a missing, unknown or mistyped field. Mend it.
    InvalidRequest,
    /// The message's `type` is of another version of the protocol.
    UnsupportedVersion,
    TopicAlreadyExists,
    UnknownTopicOrPartition,
    InvalidTopicException,
    InvalidPartitions,
    InvalidReplicationFactor,
    InvalidConfig,
    /// `ifVersion` was given, and the metadata has changed since. Read again.
    VersionConflict,
    /// The request id was used for another request.
    RequestIdReused,
    /// This controller is not active, or no longer. Ask again.
    NotController,
    /// The controller stopped writing since its history was lost; `dmq metadata restore` brings it back.
    HistoryLost,
    /// What was asked may or may not have happened. Ask again with the same request id.
    Unknown,
    /// Too much is waiting. Ask again later.
    Busy,
    /// No such storage node.
    UnknownNode,
    /// The node was removed; it can come back only with a new data directory.
    NodeRemoved,
    /// Another live process has this id or this directory.
    DuplicateNode,
    /// The id belongs to another directory.
    DirectoryMismatch,
    /// The node's epoch is older than the present one (Kafka's `STALE_BROKER_EPOCH`).
    StaleNodeEpoch,
    FencedLeaderEpoch,
    NotLeaderOrFollower,
    /// The partition epoch is older than the present one: read again (Kafka's `INVALID_UPDATE_VERSION`).
    InvalidUpdateVersion,
    IneligibleReplica,
    InvalidReplicaAssignment,
    /// The node still holds replicas, or still works: it cannot be removed or replaced.
    NodeInUse,
    InconsistentClusterId,
    RequestTimedOut,
    MessageTooLarge,
    /// The topic was deleted, or made anew under its name.
    UnknownTopicId,
    /// The leader that answers is older than the one that the client knows of.
    UnknownLeaderEpoch,
    /// The log holds no such offset, or no longer.
    OffsetOutOfRange,
    /// The bytes are no record batch, or their checksum is wrong.
    CorruptMessage,
    /// A record batch that no client may append.
    InvalidRecord,
    /// A record's timestamp is further from the leader's clock than the topic allows.
    InvalidTimestamp,
    /// Fewer replicas are in sync than `min.insync.replicas`: nothing was written.
    NotEnoughReplicas,
    /// It was written, but fewer replicas were in sync than `min.insync.replicas`.
    NotEnoughReplicasAfterAppend,
    /// A batch of this producer before this one is missing.
    OutOfOrderSequenceNumber,
    /// Another instance of the producer has taken over.
    InvalidProducerEpoch,
    /// The disk of the partition's leader failed, or is full.
    KafkaStorageError,
    /// The groups' offsets are being read: ask again.
    CoordinatorLoadInProgress,
    /// Another partition's leader is the group's coordinator.
    NotCoordinator,
    /// A group's name that cannot be one.
    InvalidGroupId,
    /// The topic's configuration forbids it.
    PolicyViolation,
    /// More than 4,096 bytes of metadata with a committed offset.
    OffsetMetadataTooLarge,
    /// The request makes no sense in the present state; the message says why.
    InvalidState,
}

/// What a refusal means for a storage node that registers or heartbeats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeRefusal {
    /// It may pass by itself: the node goes on trying.
    Retry,
    /// The registration does not hold, or no longer: the node registers anew.
    Unregistered,
    /// The id belongs to another directory. Whoever registers hears that only a person can help.
    OtherDirectory,
    /// The node was removed for good.
    Removed,
}

impl Code {
    /// What it means for a storage node that it is refused with this code.
    pub fn for_node(self) -> NodeRefusal {
        match self {
            Self::NodeRemoved => NodeRefusal::Removed,
            Self::DirectoryMismatch => NodeRefusal::OtherDirectory,
            // The former incarnation's session may still run: a node that is not registered waits for its end.
            Self::UnknownNode | Self::StaleNodeEpoch | Self::DuplicateNode => NodeRefusal::Unregistered,
            // Another cluster's controllers may be gone tomorrow, and until then a restore may need what this node has.
            Self::InconsistentClusterId
            | Self::InvalidRequest
            | Self::UnsupportedVersion
            | Self::TopicAlreadyExists
            | Self::UnknownTopicOrPartition
            | Self::InvalidTopicException
            | Self::InvalidPartitions
            | Self::InvalidReplicationFactor
            | Self::InvalidConfig
            | Self::VersionConflict
            | Self::RequestIdReused
            | Self::NotController
            | Self::HistoryLost
            | Self::Unknown
            | Self::Busy
            | Self::FencedLeaderEpoch
            | Self::NotLeaderOrFollower
            | Self::InvalidUpdateVersion
            | Self::IneligibleReplica
            | Self::InvalidReplicaAssignment
            | Self::NodeInUse
            | Self::RequestTimedOut
            | Self::MessageTooLarge
            | Self::UnknownTopicId
            | Self::UnknownLeaderEpoch
            | Self::OffsetOutOfRange
            | Self::CorruptMessage
            | Self::InvalidRecord
            | Self::NotEnoughReplicas
            | Self::NotEnoughReplicasAfterAppend
            | Self::OutOfOrderSequenceNumber
            | Self::InvalidProducerEpoch
            | Self::KafkaStorageError
            | Self::CoordinatorLoadInProgress
            | Self::NotCoordinator
            | Self::InvalidTimestamp
            | Self::InvalidGroupId
            | Self::PolicyViolation
            | Self::OffsetMetadataTooLarge
            | Self::InvalidState => NodeRefusal::Retry,
        }
    }
}

/// An error as an answer's body: `{"error": {"code": …, "message": …}}`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: WireError,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{message}")]
pub struct WireError {
    pub code: Code,
    /// What is wrong and what to do.
    pub message: String,
}

/// The most characters of an error's words. They may quote what somebody sent, and travel twice in one message.
const LONGEST_WORDS: usize = 1_000;

fn shortened(words: String) -> String {
    let count = words.chars().count();
    if count <= LONGEST_WORDS {
        return words;
    }
    let (first, last) = (LONGEST_WORDS * 3 / 4, LONGEST_WORDS / 4);
    let begin: String = words.chars().take(first).collect();
    let end: String = words.chars().skip(count - last).collect();
    format!("{begin} … ({} more characters) … {end}", count - first - last)
}

impl WireError {
    /// Words beyond 1,000 characters are shortened in the middle.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: shortened(message.into()) }
    }

    pub fn malformed(error: &serde_json::Error) -> Self {
        Self::new(Code::InvalidRequest, format!("the message cannot be read: {error}"))
    }

    pub fn unknown_type(found: &str, wanted: &str) -> Self {
        let shown: String = found.chars().take(80).collect();
        Self::new(Code::UnsupportedVersion, format!("the message has type {shown:?}; {wanted:?} is understood here"))
    }

    /// The body of an answer.
    pub fn encode(&self) -> Bytes {
        serde_json::to_vec(&ErrorBody { error: self.clone() }).expect("an error has string keys only").into()
    }
}
