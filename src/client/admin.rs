//! The admin verbs as functions: a request in, its typed answer or a typed error out, within a deadline.
//!
//! A request has one id however often it is sent, so that it takes effect once. It must never be sent under a second id.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use async_nats::service::NATS_SERVICE_ERROR_CODE;
use async_nats::{Client, Message};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use super::attempts::{self, Attempt, Pace, Repeat};
use crate::bus::{BusError, raw};
use crate::types::RequestId;
use crate::wire::admin::{
    Changed, ClusterStatus, LinesFrom, MetadataRestore, MetadataShown, NodeDescription, NodeList, NodeNamed, NodesFrom,
    RestorePlan, Terms, TopicAlter, TopicCreate, TopicDescribe, TopicDescription, TopicList, TopicNamed, TopicsFrom,
};
use crate::wire::{Code, ErrorBody, WireError};

/// How long a controller waits for the storage nodes, unless the request says. Below the deadline, so that its answer arrives.
const DEFAULT_WAIT: Duration = Duration::from_secs(3);

/// Why a request came to nothing, by what the caller can do about it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AdminError {
    /// The controller understood and refused. The code says whether another request may fare better.
    #[error(transparent)]
    Refused(#[from] WireError),
    /// Refused, for a reason that this version of the program does not know.
    #[error("{message} ({code})")]
    RefusedOtherwise { code: String, message: String },
    /// Nobody serves the verbs: no controller runs on this NATS, none is active, or their prefix is another one.
    #[error("no controller answers on {subject}")]
    NoController { subject: String },
    /// Nothing was sent.
    #[error("the connection to NATS was lost")]
    Disconnected,
    /// A question was not answered in time. Ask again.
    #[error("no answer on {subject} within {after:?}")]
    NoAnswer { subject: String, after: Duration },
    /// It may or may not have happened. The same request under the same id tells, and cannot do it twice.
    #[error("it is not known whether {verb} took effect: {detail}")]
    Unknown { verb: String, request_id: Option<RequestId>, detail: String },
    /// Whoever answered speaks something else.
    #[error("the answer on {subject} cannot be read: {detail}")]
    Unreadable { subject: String, detail: String },
    /// NATS refused to carry the request.
    #[error("{0}")]
    Bus(BusError),
}

impl AdminError {
    /// The code of a refusal.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(error) => Some(error.code),
            Self::RefusedOtherwise { .. }
            | Self::NoController { .. }
            | Self::Disconnected
            | Self::NoAnswer { .. }
            | Self::Unknown { .. }
            | Self::Unreadable { .. }
            | Self::Bus(_) => None,
        }
    }
}

/// A client of the admin verbs (Kafka's `Admin`), over a connection that somebody else made. Any controller may answer; only the
/// active one changes anything. While none is active a request is repeated until the deadline, [`Admin::within`].
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/example.rs"));
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (_cluster, client) = Example::start().await;
/// use dmq::client::Admin;
/// use dmq::config::Services;
/// use dmq::wire::Code;
/// use dmq::wire::admin::{Terms, TopicCreate};
///
/// let admin = Admin::new(client, Services::default().admin_prefix());
/// let orders = TopicCreate {
///     name: "orders".into(),
///     partitions: Some(6),
///     replication_factor: None,
///     config: [("retention.ms".into(), "86400000".into())].into(),
///     terms: Terms::default(),
/// };
/// let made = admin.create_topic(orders.clone()).await?;
/// println!("version {}, on the disks of {} of {} storage nodes", made.version, made.applied, made.active);
/// let twice = admin.create_topic(orders).await.unwrap_err();
/// assert_eq!(twice.code(), Some(Code::TopicAlreadyExists));
/// let described = admin.describe_topic("orders").await?;
/// assert_eq!(described.partitions.len(), 6);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Admin {
    client: Client,
    prefix: String,
    deadline: Duration,
}

/// What is sent: where, what, and whether it may be sent again while its outcome is open.
struct Question {
    noun: &'static str,
    verb: &'static str,
    payload: Bytes,
    /// Of a change, which is 'unknown' rather than 'not answered' without an answer.
    changes: bool,
    request_id: Option<RequestId>,
    repeat: Repeat,
}

impl Admin {
    /// `prefix` is what the verbs' subjects begin with, as services.json has it: `dmq.admin`.
    pub fn new(client: Client, prefix: impl Into<String>) -> Self {
        Self { client, prefix: prefix.into(), deadline: Duration::from_secs(8) }
    }

    /// How long a request may take, all attempts together.
    #[must_use]
    pub fn within(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// As [`Admin::within`], if that is less than now.
    #[must_use]
    pub(super) fn at_most(self, deadline: Duration) -> Self {
        Self { deadline: self.deadline.min(deadline), ..self }
    }

    /// Creates a topic (Kafka's `createTopics`). The answer comes once every active storage node has it on its disk, or the wait that
    /// the request's terms name is over; the counts say which.
    ///
    /// # Errors
    /// Refused with `TopicAlreadyExists`, `InvalidTopicException`, `InvalidPartitions`, `InvalidReplicationFactor` or
    /// `InvalidConfig`; and as every change: [`AdminError::Unknown`] where it may have taken effect, which the same request under
    /// the same id settles.
    pub async fn create_topic(&self, mut request: TopicCreate) -> Result<Changed, AdminError> {
        let terms = self.complete(&mut request.terms);
        self.change("topic", "create", &request, terms).await
    }

    /// Adds partitions, and sets or unsets configuration keys (Kafka's `createPartitions` and `incrementalAlterConfigs`, in one
    /// change). Where all of it is so already, nothing is written, and the answer says so.
    ///
    /// # Errors
    /// As [`Admin::create_topic`], with `UnknownTopicOrPartition` in place of `TopicAlreadyExists`; `VersionConflict` where the terms'
    /// `if_version` is older than the topic's last change.
    pub async fn alter_topic(&self, mut request: TopicAlter) -> Result<Changed, AdminError> {
        let terms = self.complete(&mut request.terms);
        self.change("topic", "alter", &request, terms).await
    }

    /// Deletes a topic and its records (Kafka's `deleteTopics`).
    ///
    /// # Errors
    /// `UnknownTopicOrPartition`, `VersionConflict`, and as every change.
    pub async fn delete_topic(&self, mut request: TopicNamed) -> Result<Changed, AdminError> {
        let terms = self.complete(&mut request.terms);
        self.change("topic", "delete", &request, terms).await
    }

    /// All topics, by name, with counts of their partitions (Kafka's `listTopics`).
    ///
    /// # Errors
    /// Those of a question: [`AdminError::NoController`], [`AdminError::NoAnswer`], [`AdminError::Disconnected`].
    pub async fn list_topics(&self) -> Result<TopicList, AdminError> {
        let mut request = TopicsFrom::default();
        let mut list: TopicList = self.ask("topic", "list", &request).await?;
        while let Some(next) = list.next.take().filter(|next| *next > request.from) {
            request.from = next;
            let more: TopicList = self.ask("topic", "list", &request).await?;
            list.topics.extend(more.topics);
            list.next = more.next;
        }
        Ok(list)
    }

    /// A topic's configuration, and each partition's leader, replicas and in-sync replicas (Kafka's `describeTopics`).
    ///
    /// # Errors
    /// `UnknownTopicOrPartition`, and those of a question.
    pub async fn describe_topic(&self, name: &str) -> Result<TopicDescription, AdminError> {
        let mut request = TopicDescribe { name: name.into(), ..Default::default() };
        let mut topic: TopicDescription = self.ask("topic", "describe", &request).await?;
        // Each answer goes on behind the last, so this ends; the version is that of the first.
        while let Some(next) = topic.next.take().filter(|next| *next > request.from) {
            request.from = next;
            let more: TopicDescription = self.ask("topic", "describe", &request).await?;
            if more.topic_id != topic.topic_id {
                // Deleted and made anew meanwhile.
                request.from = 0;
                topic = self.ask("topic", "describe", &request).await?;
                continue;
            }
            topic.partitions.extend(more.partitions);
            topic.next = more.next;
        }
        Ok(topic)
    }

    /// All storage nodes: state, version and lag, counts, pairing (Kafka's `describeCluster`).
    ///
    /// # Errors
    /// Those of a question.
    pub async fn list_nodes(&self) -> Result<NodeList, AdminError> {
        let mut request = NodesFrom::default();
        let mut list: NodeList = self.ask("node", "list", &request).await?;
        while let Some(next) = list.next.take().filter(|next| request.from.is_none_or(|from| *next > from)) {
            request.from = Some(next);
            let more: NodeList = self.ask("node", "list", &request).await?;
            list.nodes.extend(more.nodes);
            list.next = more.next;
        }
        Ok(list)
    }

    /// A storage node, with its directory and what is wrong with its disks (Kafka's `describeLogDirs`, in part).
    ///
    /// # Errors
    /// `UnknownNode`, and those of a question.
    pub async fn describe_node(&self, request: NodeNamed) -> Result<NodeDescription, AdminError> {
        self.ask("node", "describe", &request).await
    }

    /// Moves a node's leaderships to others, and keeps new ones from it until its process begins anew (Kafka's controlled shutdown).
    ///
    /// # Errors
    /// `UnknownNode`, `NodeRemoved`; `InvalidState` where it is fenced, or nobody else can lead what it leads; and as every change.
    pub async fn drain_node(&self, mut request: NodeNamed) -> Result<Changed, AdminError> {
        let terms = self.complete(&mut request.terms);
        self.change("node", "drain", &request, terms).await
    }

    /// Gives up a node's directory as lost, so that its id is free for another one.
    ///
    /// # Errors
    /// `UnknownNode`, `NodeRemoved`; `NodeInUse` while the node still works; and as every change.
    pub async fn replace_node(&self, mut request: NodeNamed) -> Result<Changed, AdminError> {
        let terms = self.complete(&mut request.terms);
        self.change("node", "replace", &request, terms).await
    }

    /// Removes a node that holds no replica, for good (Kafka's `unregisterBroker`).
    ///
    /// # Errors
    /// `UnknownNode`; `NodeInUse` while it still works, or holds replicas; and as every change.
    pub async fn remove_node(&self, mut request: NodeNamed) -> Result<Changed, AdminError> {
        let terms = self.complete(&mut request.terms);
        self.change("node", "remove", &request, terms).await
    }

    /// Whether the cluster is healthy, and why not: controllers, nodes, partitions without a leader or with missing replicas.
    ///
    /// # Errors
    /// Those of a question.
    pub async fn cluster_status(&self) -> Result<ClusterStatus, AdminError> {
        let mut request = NodesFrom::default();
        let mut status: ClusterStatus = self.ask("cluster", "status", &request).await?;
        while let Some(next) = status.next.take().filter(|next| request.from.is_none_or(|from| *next > from)) {
            request.from = Some(next);
            let more: ClusterStatus = self.ask("cluster", "status", &request).await?;
            status.storage_nodes.extend(more.storage_nodes);
            status.next = more.next;
        }
        Ok(status)
    }

    /// The metadata as JSON: the lines of a snapshot.
    ///
    /// # Errors
    /// Also where it changes again and again while it is read, since lines of different versions do not belong together.
    pub async fn show_metadata(&self) -> Result<Value, AdminError> {
        const TRIES: u32 = 20;
        for _ in 0..TRIES {
            if let Some(lines) = self.lines_of_one_version().await? {
                return Ok(Value::Array(lines));
            }
        }
        let words = format!("the metadata changed {TRIES} times while it was read: ask again, or topic by topic");
        Err(AdminError::Refused(WireError::new(Code::Busy, words)))
    }

    /// None where they changed meanwhile.
    async fn lines_of_one_version(&self) -> Result<Option<Vec<Value>>, AdminError> {
        let mut request = LinesFrom::default();
        let mut shown: MetadataShown = self.ask("metadata", "show", &request).await?;
        while let Some(next) = shown.next.take().filter(|next| *next > request.from) {
            request.from = next;
            let more: MetadataShown = self.ask("metadata", "show", &request).await?;
            if more.version != shown.version {
                return Ok(None);
            }
            shown.lines.extend(more.lines);
            shown.next = more.next;
        }
        Ok(Some(shown.lines))
    }

    /// What a restore of a lost history would do.
    ///
    /// # Errors
    /// `InvalidState` where the history is whole, or nobody was heard who has any metadata; and those of a question.
    pub async fn plan_restore(&self) -> Result<RestorePlan, AdminError> {
        self.ask("metadata", "restore", &MetadataRestore::default()).await
    }

    /// Restores as a plan said. It is sent once: the request carries no id, and after a restore it no longer applies.
    ///
    /// # Errors
    /// As [`Admin::plan_restore`]; `VersionConflict` where the most advanced metadata is no longer the plan's.
    pub async fn restore(&self, plan: &RestorePlan) -> Result<RestorePlan, AdminError> {
        let payload = body(&MetadataRestore { confirm: Some(plan.source) });
        let (changes, repeat) = (true, Repeat::OnlyAfterRefusal);
        self.send(Question { noun: "metadata", verb: "restore", payload, changes, request_id: None, repeat }).await
    }

    /// Gives the request its id and its wait where the caller gave none.
    fn complete(&self, terms: &mut Terms) -> RequestId {
        if terms.wait_ms.is_none() {
            let wait = DEFAULT_WAIT.min(self.deadline / 2);
            terms.wait_ms = Some(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        }
        let fresh =
            || RequestId::new(&Uuid::new_v4().to_string()).expect("a UUID has 36 characters of 0-9, a-f and '-'");
        terms.request_id.get_or_insert_with(fresh).clone()
    }

    async fn change<A: DeserializeOwned>(
        &self,
        noun: &'static str,
        verb: &'static str,
        request: &impl Serialize,
        id: RequestId,
    ) -> Result<A, AdminError> {
        let payload = body(request);
        let (changes, repeat) = (true, Repeat::Freely);
        self.send(Question { noun, verb, payload, changes, request_id: Some(id), repeat }).await
    }

    async fn ask<A: DeserializeOwned>(
        &self,
        noun: &'static str,
        verb: &'static str,
        request: &impl Serialize,
    ) -> Result<A, AdminError> {
        let payload = body(request);
        let (changes, repeat) = (false, Repeat::Freely);
        self.send(Question { noun, verb, payload, changes, request_id: None, repeat }).await
    }

    async fn send<A: DeserializeOwned>(&self, question: Question) -> Result<A, AdminError> {
        let subject = format!("{}.{}.{}", self.prefix, question.noun, question.verb);
        let deadline = Instant::now() + self.deadline;
        // How many attempts may have reached a controller without our hearing what came of them.
        let open = AtomicU32::new(0);
        let attempt = |left: Duration| {
            let (payload, subject, open, question) = (question.payload.clone(), &subject, &open, &question);
            async move {
                open.fetch_add(1, Relaxed);
                let answer = raw::request_with_deadline(&self.client, subject, None, payload, left).await;
                let outcome = judge(answer, subject, question, self.deadline);
                if let Attempt::Again(why) = &outcome
                    && did_nothing(why)
                {
                    open.fetch_sub(1, Relaxed);
                }
                outcome
            }
        };
        let outcome = attempts::run(deadline, Pace::default(), question.repeat, attempt).await;
        let verb = || format!("{} {}", question.noun, question.verb);
        match outcome {
            Ok(answer) => Ok(answer),
            Err(why) if question.changes && open.load(Relaxed) > 0 && !why.as_ref().is_some_and(is_final) => {
                let silence = || format!("no answer within {:?}", self.deadline);
                let detail = why.map_or_else(silence, |why| why.to_string());
                Err(AdminError::Unknown { verb: verb(), request_id: question.request_id.clone(), detail })
            }
            Err(Some(why)) => Err(why),
            Err(None) => Err(AdminError::NoAnswer { subject, after: self.deadline }),
        }
    }
}

/// Whether an attempt that ended so certainly changed nothing.
fn did_nothing(error: &AdminError) -> bool {
    match error {
        AdminError::Refused(refusal) => matches!(refusal.code, Code::NotController | Code::Busy),
        AdminError::NoController { .. } | AdminError::Disconnected => true,
        AdminError::RefusedOtherwise { .. }
        | AdminError::NoAnswer { .. }
        | AdminError::Unknown { .. }
        | AdminError::Unreadable { .. }
        | AdminError::Bus(_) => false,
    }
}

/// Whether the error settles the request, whatever became of its other attempts.
fn is_final(error: &AdminError) -> bool {
    match error {
        AdminError::Refused(refusal) => !matches!(refusal.code, Code::Unknown | Code::NotController | Code::Busy),
        AdminError::RefusedOtherwise { .. } | AdminError::Bus(_) => true,
        AdminError::NoController { .. }
        | AdminError::Disconnected
        | AdminError::NoAnswer { .. }
        | AdminError::Unknown { .. }
        | AdminError::Unreadable { .. } => false,
    }
}

fn body(request: &impl Serialize) -> Bytes {
    serde_json::to_vec(request).expect("requests have string keys only").into()
}

fn judge<A: DeserializeOwned>(
    answer: Result<Message, BusError>,
    subject: &str,
    question: &Question,
    deadline: Duration,
) -> Attempt<A, AdminError> {
    let message = match answer {
        Ok(message) => message,
        Err(BusError::NoResponders { subject }) => return Attempt::Again(AdminError::NoController { subject }),
        Err(BusError::Disconnected) => return Attempt::Again(AdminError::Disconnected),
        Err(BusError::Timeout) => {
            return Attempt::Again(AdminError::NoAnswer { subject: subject.into(), after: deadline });
        }
        Err(error) => return Attempt::Decided(Err(AdminError::Bus(error))),
    };
    if let Some(error) = refusal(&message) {
        let again = match error.code() {
            Some(Code::NotController | Code::Busy) => true,
            // The same request under the same id settles it, where it has one.
            Some(Code::Unknown) => question.repeat == Repeat::Freely,
            _ => false,
        };
        return if again { Attempt::Again(error) } else { Attempt::Decided(Err(error)) };
    }
    let unreadable = |error: serde_json::Error| {
        let detail = format!("{error}; is it another version of dmq?");
        AdminError::Unreadable { subject: subject.into(), detail }
    };
    Attempt::Decided(serde_json::from_slice(&message.payload).map_err(unreadable))
}

/// The error that an answer is, told by its body or by the headers of micro services.
fn refusal(message: &Message) -> Option<AdminError> {
    if let Ok(ErrorBody { error }) = serde_json::from_slice(&message.payload) {
        return Some(AdminError::Refused(error));
    }
    let headers = message.headers.as_ref()?;
    let number = headers.get(NATS_SERVICE_ERROR_CODE)?.as_str();
    if number == "503" {
        return Some(AdminError::Refused(WireError::new(Code::Busy, "the controller has too many requests waiting")));
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let body = serde_json::from_slice::<Value>(&message.payload).unwrap_or_default();
    let code = text(&body["error"]["code"]).unwrap_or_else(|| number.to_owned());
    let described = headers.get(async_nats::service::NATS_SERVICE_ERROR).map(|value| value.as_str().to_owned());
    let message = text(&body["error"]["message"]).or(described).unwrap_or_else(|| "refused".into());
    Some(AdminError::RefusedOtherwise { code, message })
}
