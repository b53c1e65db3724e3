//! Single questions to partitions' leaders: where a log stands, deletion of records, and what groups have committed.

use std::time::Duration;

use async_nats::{Client, Message};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use super::attempts::{self, Attempt, Pace, Repeat};
use crate::bus::{BusError, raw};
use crate::config::Services;
use crate::config::services::DataTarget;
use crate::types::{Offset, PartitionId, TopicName};
use crate::wire::data::{
    Commit, CommitOffset, Committed, CommittedRequest, DeleteRecords, OFFSETS_TOPIC, OffsetsRequest, PartitionOffsets,
    header, op,
};
use crate::wire::{Code, ErrorBody, WireError};

/// Why a partition's leader gave no answer, by what the caller can do about it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DataError {
    /// The leader understood and refused.
    #[error(transparent)]
    Refused(#[from] WireError),
    /// Refused, for a reason that this version of the program does not know.
    #[error("{message} ({code})")]
    RefusedOtherwise { code: String, message: String },
    /// Nobody leads the partition at the moment, or there is no such partition.
    #[error("nobody listens on {subject}: there is no such partition, or it has no leader at the moment")]
    NoLeader { subject: String },
    /// Nothing was sent.
    #[error("the connection to NATS was lost")]
    Disconnected,
    /// Nobody answered in time; whoever led may just have lost its leadership. What was asked for may have been done.
    #[error("no answer on {subject} within {after:?}")]
    NoAnswer { subject: String, after: Duration },
    /// Whoever answered speaks something else.
    #[error("the answer on {subject} cannot be read: {detail}; is it another version of dmq?")]
    Unreadable { subject: String, detail: String },
    /// NATS refused to carry the request.
    #[error("{0}")]
    Bus(BusError),
}

impl DataError {
    /// The code of a refusal.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(error) => Some(error.code),
            Self::RefusedOtherwise { .. }
            | Self::NoLeader { .. }
            | Self::Disconnected
            | Self::NoAnswer { .. }
            | Self::Unreadable { .. }
            | Self::Bus(_) => None,
        }
    }

    /// What kept a request from its answer.
    pub(super) fn of_bus(error: BusError, subject: &str, after: Duration) -> Self {
        match error {
            BusError::NoResponders { subject } => Self::NoLeader { subject },
            BusError::Disconnected => Self::Disconnected,
            BusError::Timeout => Self::NoAnswer { subject: subject.into(), after },
            error => Self::Bus(error),
        }
    }

    /// Whether the same request may fare better in a moment.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Refused(error) => matches!(
                error.code,
                Code::NotLeaderOrFollower
                    | Code::FencedLeaderEpoch
                    | Code::UnknownLeaderEpoch
                    | Code::NotEnoughReplicas
                    | Code::NotEnoughReplicasAfterAppend
                    | Code::RequestTimedOut
                    | Code::KafkaStorageError
                    | Code::NotController
                    | Code::CoordinatorLoadInProgress
                    | Code::NotCoordinator
                    | Code::Busy
            ),
            Self::NoLeader { .. } | Self::Disconnected | Self::NoAnswer { .. } => true,
            Self::RefusedOtherwise { .. } | Self::Unreadable { .. } | Self::Bus(_) => false,
        }
    }
}

/// The error that an answer is, told by its header.
pub(super) fn refusal(message: &Message) -> Option<DataError> {
    let code = message.headers.as_ref()?.get(header::ERROR)?.as_str();
    if let Ok(ErrorBody { error }) = serde_json::from_slice(&message.payload) {
        return Some(DataError::Refused(error));
    }
    let body = serde_json::from_slice::<Value>(&message.payload).unwrap_or_default();
    let message = body["error"]["message"].as_str().unwrap_or("refused").to_owned();
    Some(DataError::RefusedOtherwise { code: code.to_owned(), message })
}

/// An answer in JSON.
pub(super) fn json<A: DeserializeOwned>(message: &Message, subject: &str) -> Result<A, DataError> {
    match refusal(message) {
        Some(error) => Err(error),
        None => serde_json::from_slice(&message.payload)
            .map_err(|error| DataError::Unreadable { subject: subject.into(), detail: error.to_string() }),
    }
}

/// A client of partitions' leaders, over a connection that somebody else made. Whoever leads is asked: while nobody does, the
/// question is repeated until the deadline.
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/example.rs"));
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (_cluster, client) = Example::start().await;
/// # let admin = dmq::client::Admin::new(client.clone(), "dmq.admin");
/// # admin.create_topic(serde_json::from_str(r#"{"name": "orders"}"#)?).await?;
/// use dmq::client::Leaders;
/// use dmq::config::Services;
/// use dmq::types::TopicName;
///
/// let leaders = Leaders::new(client, Services::default());
/// let orders = TopicName::new("orders")?;
/// let stands = leaders.offsets(&orders, 0).await?;
/// println!("records {} to {}", stands.log_start_offset, stands.high_watermark);
/// # assert_eq!((stands.log_start_offset.0, stands.high_watermark.0), (0, 0));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Leaders {
    client: Client,
    services: Services,
    deadline: Duration,
}

impl Leaders {
    pub fn new(client: Client, services: Services) -> Self {
        Self { client, services, deadline: Duration::from_secs(8) }
    }

    /// How long a question may take, all attempts together (Kafka's `default.api.timeout.ms`).
    #[must_use]
    pub fn within(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// As [`Leaders::within`], if that is less than now.
    #[must_use]
    pub(super) fn at_most(self, deadline: Duration) -> Self {
        Self { deadline: self.deadline.min(deadline), ..self }
    }

    /// Where a partition's log begins and ends (Kafka's ListOffsets).
    ///
    /// # Errors
    /// See [`DataError`].
    pub async fn offsets(&self, topic: &TopicName, partition: PartitionId) -> Result<PartitionOffsets, DataError> {
        self.find_offset(topic, partition, &OffsetsRequest::default()).await
    }

    /// The same, and the first record from a time on, or the end of a leader epoch.
    ///
    /// # Errors
    /// See [`DataError`].
    pub async fn find_offset(
        &self,
        topic: &TopicName,
        partition: PartitionId,
        request: &OffsetsRequest,
    ) -> Result<PartitionOffsets, DataError> {
        self.ask(op::OFFSETS, DataTarget::Partition(partition), topic, request).await
    }

    /// Deletes the records before an offset, which is at most the high watermark (Kafka's DeleteRecords).
    ///
    /// # Errors
    /// See [`DataError`]; `OFFSET_OUT_OF_RANGE` where the offset is beyond the high watermark.
    pub async fn delete_records(
        &self,
        topic: &TopicName,
        partition: PartitionId,
        before: Offset,
    ) -> Result<PartitionOffsets, DataError> {
        let request = DeleteRecords { before, topic_id: None };
        self.ask(op::DELETE, DataTarget::Partition(partition), topic, &request).await
    }

    /// Commits offsets of a group, all or none (Kafka's OffsetCommit). An offset is the next one to read.
    ///
    /// # Errors
    /// See [`DataError`].
    pub async fn commit(&self, group: &str, offsets: Vec<CommitOffset>) -> Result<Committed, DataError> {
        self.ask(op::COMMIT, DataTarget::Auto, &offsets_topic(), &Commit { group: group.into(), offsets }).await
    }

    /// What a group has committed, of one topic or of all (Kafka's OffsetFetch).
    ///
    /// # Errors
    /// See [`DataError`].
    pub async fn committed(&self, group: &str, topic: Option<&TopicName>) -> Result<Committed, DataError> {
        let request = CommittedRequest { group: group.into(), topic: topic.map(ToString::to_string) };
        self.ask(op::COMMITTED, DataTarget::Auto, &offsets_topic(), &request).await
    }

    async fn ask<A: DeserializeOwned>(
        &self,
        op: &str,
        target: DataTarget,
        topic: &TopicName,
        request: &impl Serialize,
    ) -> Result<A, DataError> {
        let subject = self.services.data_subject(op, target, topic);
        let payload: Bytes = serde_json::to_vec(request).expect("requests have string keys only").into();
        let deadline = Instant::now() + self.deadline;
        let attempt = async |left: Duration| {
            let answer = raw::request_with_deadline(&self.client, &subject, None, payload.clone(), left).await;
            let answer = answer.map_err(|error| DataError::of_bus(error, &subject, self.deadline));
            match answer.and_then(|message| json(&message, &subject)) {
                Err(error) if error.may_pass() => Attempt::Again(error),
                decided => Attempt::Decided(decided),
            }
        };
        let silence = || DataError::NoAnswer { subject: subject.clone(), after: self.deadline };
        let outcome = attempts::run(deadline, Pace::default(), Repeat::Freely, attempt).await;
        outcome.map_err(|why| why.unwrap_or_else(silence))
    }
}

fn offsets_topic() -> TopicName {
    TopicName::new(OFFSETS_TOPIC).expect("it is made of letters and underscores")
}
