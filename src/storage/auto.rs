//! Requests that name no partition: any storage node takes them, picks the partition, passes them on to its leader, and the
//! leader's answer back.
//!
//! A produce request is passed on once: whether it reached a leader that then died is for the client to decide. That nobody leads is
//! answered. Commits may be repeated, so they are passed on until a leader is there.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, HeaderMap, Message};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::partitions::{check_group, error_answer, header_of, produce_timeout};
use crate::bus::{BusError, raw};
use crate::metadata::{Image, NodeState, Topic};
use crate::types::{PartitionId, partition_of_key};
use crate::wire::admin::{TopicCreate, decode, encode};
use crate::wire::data::{Acks, Commit, Committed, CommittedRequest, OFFSETS_TOPIC, header, op};
use crate::wire::{Code, WireError};

/// The queue group of all storage nodes.
const GROUP: &str = "dmq-storage";
/// How many such requests may wait on one node.
const WAITING: usize = 1024;
/// How many that were passed on may wait for their answers on one node.
const PASSED_ON: usize = 4096;
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);
const SUBSCRIBE_RETRY: Duration = Duration::from_millis(200);
/// How long a commit waits for the leader of its partition, and for its answer.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// So much longer than the leader waits for its followers.
const ANSWER_LATER: Duration = Duration::from_secs(1);
const COMMIT_RETRY: Duration = Duration::from_millis(20);
/// As many as the offsets topic gets. It can be made with more by hand, before the first commit.
const OFFSETS_PARTITIONS: u32 = 16;
/// Kafka's `offsets.topic.replication.factor`, where there are so many nodes.
const OFFSETS_REPLICAS: u32 = 3;

/// Where a request goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Route {
    /// To this partition's leader, once.
    To(PartitionId),
    /// To this partition's leader, as soon as there is one.
    Until(PartitionId),
    /// Nowhere, unless the controller knows of the offsets topic, of which this node has not heard: this is the answer.
    NothingYet(Bytes),
    Refused(WireError),
    /// The offsets topic has to be made first.
    MakeOffsetsTopic,
}

/// `turn` picks the partition where no key does.
pub(super) fn route(operation: &str, name: &str, message: &Message, image: &Image, turn: u32) -> Route {
    let topic = image.topic(name);
    match operation {
        op::PRODUCE => match topic {
            None => Route::Refused(unknown(name)),
            Some(topic) => Route::To(pick(topic, message.headers.as_ref(), turn)),
        },
        op::COMMIT => {
            with_group(decode::<Commit>(&message.payload).map(|commit| commit.group), topic.map(|topic| &**topic))
                .unwrap_or(Route::MakeOffsetsTopic)
        }
        op::COMMITTED => {
            let request = decode::<CommittedRequest>(&message.payload);
            let none = |request: CommittedRequest| Committed { group: request.group, offsets: Vec::new() };
            with_group(request.clone().map(|request| request.group), topic.map(|topic| &**topic)).unwrap_or_else(|| {
                request.map_or_else(Route::Refused, |request| Route::NothingYet(encode(&none(request)).into()))
            })
        }
        other => {
            let shown: String = other.chars().take(40).collect();
            let words = format!("{shown:?} needs a partition's number in place of 'auto'");
            Route::Refused(WireError::new(Code::InvalidRequest, words))
        }
    }
}

/// None: there is no offsets topic yet.
fn with_group(group: Result<String, WireError>, topic: Option<&Topic>) -> Option<Route> {
    let group = match group.and_then(|group| check_group(&group).map(|()| group)) {
        Ok(group) => group,
        Err(error) => return Some(Route::Refused(error)),
    };
    Some(Route::Until(partition_of_key(group.as_bytes(), topic?.partitions.len() as u32)))
}

fn pick(topic: &Topic, headers: Option<&HeaderMap>, turn: u32) -> PartitionId {
    let count = topic.partitions.len() as u32;
    // A batch has many keys: whoever makes batches picks their partition.
    match header_of(headers, header::KEY) {
        Some(key) if header_of(headers, header::FORMAT).is_none() => partition_of_key(key.as_bytes(), count),
        Some(_) | None => turn.checked_rem(count).unwrap_or(0),
    }
}

fn unknown(name: &str) -> WireError {
    let words = format!("there is no topic {name}; `dmq topic create {name}` makes it");
    WireError::new(Code::UnknownTopicOrPartition, words)
}

/// What makes the offsets topic. Replicas are as many as the cluster has nodes for, not as happen to work just now: they stay.
pub(super) fn offsets_topic(image: &Image) -> TopicCreate {
    let nodes = image.storage.values().filter(|node| node.state != NodeState::Removed).count() as u32;
    TopicCreate {
        name: OFFSETS_TOPIC.into(),
        partitions: Some(OFFSETS_PARTITIONS),
        replication_factor: Some(nodes.clamp(1, OFFSETS_REPLICAS)),
        config: [("cleanup.policy", "compact"), ("segment.bytes", "16777216")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        terms: crate::wire::admin::Terms::default(),
    }
}

/// Listens until the set is dropped. Requests wait in order; beyond the bound NATS drops them, and the client asks again.
pub(super) fn listen(client: &Client, subjects: Vec<String>) -> (JoinSet<()>, mpsc::Receiver<Message>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    let mut tasks = JoinSet::new();
    for subject in subjects {
        let (client, sender) = (client.clone(), sender.clone());
        tasks.spawn(async move {
            loop {
                match raw::queue_subscribe(&client, &subject, GROUP, SUBSCRIBE_TIMEOUT).await {
                    Ok(mut messages) => {
                        while let Some(message) = messages.next().await {
                            if sender.send(message).await.is_err() {
                                return;
                            }
                        }
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(subject, %error, "cannot subscribe yet");
                        tokio::time::sleep(SUBSCRIBE_RETRY).await;
                    }
                }
            }
        });
    }
    (tasks, receiver)
}

/// With `acks` 0 nobody answers.
pub(super) fn wants_no_answer(message: &Message) -> bool {
    header_of(message.headers.as_ref(), header::ACKS) == Some(Acks::None.as_str())
}

/// Room for requests that wait for their answers.
pub(super) fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(PASSED_ON))
}

/// Passes a request on for whose answer nobody waits.
pub(super) async fn pass_on_unanswered(client: &Client, subject: &str, message: Message, timeout: Duration) {
    let headers = message.headers.unwrap_or_default();
    if let Err(error) = raw::publish(client, subject, headers, message.payload, timeout).await {
        tracing::debug!(subject, %error, "a request was not passed on");
    }
}

/// Passes a produce request on, once, and answers what the leader answers, or that there is none.
pub(super) async fn pass_on_once(client: Client, subject: String, message: Message, _permit: OwnedSemaphorePermit) {
    let Some(reply) = message.reply else { return };
    let timeout = produce_timeout(message.headers.as_ref()).unwrap_or_default() + ANSWER_LATER;
    let (headers, payload) =
        match raw::request_with_deadline(&client, &subject, message.headers, message.payload, timeout).await {
            Ok(answer) => (answer.headers.unwrap_or_default(), answer.payload),
            Err(BusError::NoResponders { .. }) => {
                let words = "nobody leads the partition just now, so nothing was stored; ask again";
                error_answer(&WireError::new(Code::NotLeaderOrFollower, words))
            }
            // It may have been stored: only the client knows whether to send it again.
            Err(error) => return tracing::debug!(subject, %error, "a request was not answered"),
        };
    if let Err(error) = raw::publish(&client, &reply, headers, payload, COMMIT_TIMEOUT).await {
        tracing::debug!(subject, %error, "an answer was not passed on");
    }
}

/// Passes a request on that may be repeated, until somebody answers.
pub(super) async fn pass_on_until_answered(
    client: Client,
    subject: String,
    message: Message,
    _permit: OwnedSemaphorePermit,
) {
    let Some(reply) = message.reply else { return };
    let deadline = tokio::time::Instant::now() + COMMIT_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let answer =
            raw::request_with_deadline(&client, &subject, message.headers.clone(), message.payload.clone(), left).await;
        match answer {
            Ok(answer) => {
                let headers = answer.headers.unwrap_or_default();
                let _ = raw::publish(&client, &reply, headers, answer.payload, COMMIT_TIMEOUT).await;
                return;
            }
            // The leader changes.
            Err(BusError::NoResponders { .. }) if left > COMMIT_RETRY => tokio::time::sleep(COMMIT_RETRY).await,
            Err(error) => {
                tracing::debug!(subject, %error, "a request was not answered");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Record;
    use crate::metadata::testing::{World, ids, topic_id};
    use crate::types::TopicName;

    fn image_with_topics(topics: &[(&str, usize)]) -> Image {
        let mut world = World::with_nodes(3);
        for (number, (name, partitions)) in (0..).zip(topics) {
            world.commit(vec![Record::TopicCreated {
                topic_id: topic_id(number),
                name: TopicName::new(name).unwrap(),
                config: std::collections::BTreeMap::new(),
                replicas: vec![ids([0, 1, 2]).into(); *partitions],
            }]);
        }
        world.image().clone()
    }

    fn message(payload: &str, key: Option<&str>) -> Message {
        let mut headers = HeaderMap::new();
        key.into_iter().for_each(|key| headers.insert(header::KEY, key));
        Message {
            subject: "s".into(),
            reply: None,
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            headers: Some(headers),
            status: None,
            description: None,
            length: 0,
        }
    }

    #[test]
    fn keys_decide_and_without_one_it_goes_in_turn() {
        let image = image_with_topics(&[("orders", 3)]);
        let to = |key: Option<&str>, turn| route(op::PRODUCE, "orders", &message("x", key), &image, turn);
        assert_eq!((to(None, 0), to(None, 4), to(None, 5)), (Route::To(0), Route::To(1), Route::To(2)));
        assert_eq!(to(Some("k"), 0), to(Some("k"), 1));
        assert_eq!(to(Some("21"), 0), Route::To(partition_of_key(b"21", 3)));
    }

    #[test]
    fn an_unknown_topic_is_an_answer_and_not_silence() {
        let image = image_with_topics(&[]);
        let Route::Refused(error) = route(op::PRODUCE, "orders", &message("x", None), &image, 0) else { panic!() };
        assert_eq!(error.code, Code::UnknownTopicOrPartition);
        let fetch = route(op::FETCH, "orders", &message("", None), &image, 0);
        assert!(matches!(fetch, Route::Refused(error) if error.code == Code::InvalidRequest));
    }

    #[test]
    fn the_offsets_topic_gets_its_replicas_though_a_node_does_not_work() {
        let mut world = World::with_nodes(3);
        world.fence([1, 2]);
        assert_eq!(offsets_topic(world.image()).replication_factor, Some(3));
        assert_eq!(offsets_topic(World::with_nodes(1).image()).replication_factor, Some(1));
        assert_eq!(offsets_topic(World::with_nodes(5).image()).replication_factor, Some(3));
    }

    #[test]
    fn the_offsets_topic_is_made_by_the_first_commit_and_not_by_a_question() {
        let (none, some) = (image_with_topics(&[]), image_with_topics(&[(OFFSETS_TOPIC, 16)]));
        let commit = message(r#"{"group":"g","offsets":[{"topic":"t","partition":0,"offset":1}]}"#, None);
        assert_eq!(route(op::COMMIT, OFFSETS_TOPIC, &commit, &none, 0), Route::MakeOffsetsTopic);
        let ask = message(r#"{"group":"g"}"#, None);
        let nothing = Route::NothingYet(r#"{"group":"g","offsets":[]}"#.into());
        assert_eq!(route(op::COMMITTED, OFFSETS_TOPIC, &ask, &none, 0), nothing);
        let both = [(op::COMMIT, &commit), (op::COMMITTED, &ask)];
        for (operation, message) in both {
            let to = Route::Until(partition_of_key(b"g", 16));
            assert_eq!(route(operation, OFFSETS_TOPIC, message, &some, 0), to);
        }
        let nobody = message(r#"{"group":"","offsets":[]}"#, None);
        assert!(matches!(route(op::COMMIT, OFFSETS_TOPIC, &nobody, &none, 0), Route::Refused(_)));
    }
}
