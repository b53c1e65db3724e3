//! Requests that name no partition, on their way to a leader.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap, Message, Subject};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::Shell;
use crate::bus::raw;
use crate::storage::auto::{self, Route};
use crate::storage::partitions::{Command, Whose, error_answer};
use crate::storage::subjects::Subjects;
use crate::wire::data::{OFFSETS_TOPIC, op};
use crate::wire::{Code, ErrorBody, WireError, admin};

/// How many commits may wait for the offsets topic.
const FIRST_COMMITS: usize = 256;

pub(super) struct Routes {
    /// The tasks that listen, and what they hear.
    heard: Option<(JoinSet<()>, mpsc::Receiver<Message>)>,
    /// How many were sent to a partition in turn.
    turn: u32,
    /// Commits that wait for the offsets topic.
    first_commits: Vec<Message>,
    /// When the controller was last asked for it.
    asked: Option<Instant>,
    /// For those that were passed on, and wait.
    room: Arc<Semaphore>,
}

impl Routes {
    pub(super) fn new() -> Self {
        Self { heard: None, turn: 0, first_commits: Vec::new(), asked: None, room: auto::room() }
    }

    pub(super) fn begin(&mut self, client: &Client, subjects: &watch::Receiver<Arc<dyn Subjects>>) {
        if self.heard.is_none() {
            self.begin_anew(client, subjects);
        }
    }

    pub(super) fn begin_anew(&mut self, client: &Client, subjects: &watch::Receiver<Arc<dyn Subjects>>) {
        let subjects = subjects.borrow().clone();
        let subjects = [op::PRODUCE, op::COMMIT, op::COMMITTED].map(|op| subjects.data_auto(op)).to_vec();
        self.heard = Some(auto::listen(client, subjects));
    }

    pub(super) async fn next(&mut self) -> Option<Message> {
        match &mut self.heard {
            Some((_, messages)) => messages.recv().await,
            None => std::future::pending().await,
        }
    }

    fn turn(&mut self) -> u32 {
        self.turn = self.turn.wrapping_add(1);
        self.turn
    }

    /// Whether the controller is to be asked now.
    fn wants_offsets_topic(&mut self, timeout: Duration) -> bool {
        let wants = self.asked.is_none_or(|asked| asked.elapsed() > timeout);
        if wants {
            self.asked = Some(Instant::now());
        }
        wants
    }
}

impl Shell {
    pub(super) async fn route(&mut self, message: Message) {
        let subjects = self.subjects.borrow().clone();
        let Some((op, topic, None)) = subjects.read_data(&message.subject) else {
            let words = "the subject ends with no name that a topic can have";
            let error = WireError::new(Code::InvalidTopicException, words);
            return self.refuse(message, &error).await;
        };
        let Some(image) = self.core.history().image() else { return };
        let turn = self.routes.turn();
        match auto::route(op, topic.as_str(), &message, image, turn) {
            Route::To(partition) => {
                let subject = subjects.data(op, &topic, partition);
                if message.reply.is_none() || auto::wants_no_answer(&message) {
                    return auto::pass_on_unanswered(&self.client, &subject, message, self.request_timeout).await;
                }
                if let Some((message, permit)) = self.permit(message).await {
                    tokio::spawn(auto::pass_on_once(self.client.clone(), subject, message, permit));
                }
            }
            Route::Until(partition) => {
                let subject = subjects.data(op, &topic, partition);
                if let Some((message, permit)) = self.permit(message).await {
                    tokio::spawn(auto::pass_on_until_answered(self.client.clone(), subject, message, permit));
                }
            }
            Route::NothingYet(answer) => self.answer_nothing_yet(message, answer),
            Route::Refused(error) => self.refuse(message, &error).await,
            Route::MakeOffsetsTopic => self.make_offsets_topic(message),
        }
    }

    /// Room to wait for the answer. Where there is none, the client is told so.
    async fn permit(&self, message: Message) -> Option<(Message, OwnedSemaphorePermit)> {
        match Arc::clone(&self.routes.room).try_acquire_owned() {
            Ok(permit) => Some((message, permit)),
            Err(_) => {
                let words = "too many requests wait on this node for their answers; ask again later";
                let (headers, body) = error_answer(&WireError::new(Code::Busy, words));
                self.answer(message.reply, headers, body).await;
                None
            }
        }
    }

    async fn refuse(&self, message: Message, error: &WireError) {
        // A topic may be missing for honest reasons.
        if error.code != Code::UnknownTopicOrPartition {
            let why = || format!("{}: {error}", message.subject);
            self.vitals.refuse(self.clock.monotonic(), Whose::Anybody, 1, why);
        }
        let (headers, body) = error_answer(error);
        self.answer(message.reply, headers, body).await;
    }

    async fn answer(&self, reply: Option<Subject>, headers: HeaderMap, body: Bytes) {
        if let Some(reply) = reply {
            self.publish(&reply, headers, body).await;
        }
    }

    /// This node may lag behind, and then what it takes for nothing would be taken for the group's beginning. So the controller is
    /// asked whether there is an offsets topic.
    fn answer_nothing_yet(&self, message: Message, nothing: Bytes) {
        let Some(reply) = message.reply else { return };
        let subject = self.subjects.borrow().admin("topic", "describe");
        let (client, timeout) = (self.client.clone(), self.request_timeout);
        tokio::spawn(async move {
            let request = serde_json::json!({ "name": OFFSETS_TOPIC }).to_string().into();
            let asked = raw::request_with_deadline(&client, &subject, None, request, timeout).await;
            let refusal = asked.ok().and_then(|answer| serde_json::from_slice::<ErrorBody>(&answer.payload).ok());
            let is_none = refusal.is_some_and(|body| body.error.code == Code::UnknownTopicOrPartition);
            let (headers, body) = if is_none {
                (HeaderMap::new(), nothing)
            } else {
                let words = "this node does not know yet where the groups' offsets are; ask again";
                error_answer(&WireError::new(Code::CoordinatorLoadInProgress, words))
            };
            if let Err(error) = raw::publish(&client, &reply, headers, body, timeout).await {
                tracing::debug!(%error, "a group's offsets were not told");
            }
        });
    }

    /// Tells the partitions' thread, where it changed, how many partitions the offsets topic has.
    pub(super) async fn tell_offsets_partitions(&mut self) {
        let topic = self.core.history().image().and_then(|image| image.topic(OFFSETS_TOPIC));
        let count = topic.map_or(0, |topic| topic.partitions.len() as u32);
        if count != std::mem::replace(&mut self.offsets_partitions, count) {
            self.tell_partitions(Command::OffsetsPartitions(count)).await;
        }
    }

    /// The commit goes on once this node knows the topic. Whoever waits for too long asks again.
    fn make_offsets_topic(&mut self, message: Message) {
        let Some(image) = self.core.history().image() else { return };
        if self.routes.wants_offsets_topic(self.request_timeout) {
            let request = admin::encode(&auto::offsets_topic(image)).into();
            let subject = self.subjects.borrow().admin("topic", "create");
            let (client, timeout, reply) = (self.client.clone(), self.request_timeout, message.reply.clone());
            tokio::spawn(async move {
                let why = match raw::request_with_deadline(&client, &subject, None, request, timeout).await {
                    Ok(answer) => match serde_json::from_slice::<ErrorBody>(&answer.payload) {
                        // Another node may be the first: then it is there already.
                        Ok(body) if body.error.code != Code::TopicAlreadyExists => body.error.to_string(),
                        Ok(_) | Err(_) => return,
                    },
                    Err(error) => error.to_string(),
                };
                tracing::warn!(subject, why, "the topic of consumers' offsets was not made");
                let Some(reply) = reply else { return };
                let words = format!("there is no place for the groups' offsets yet: {why}; ask again");
                let (headers, body) = error_answer(&WireError::new(Code::CoordinatorLoadInProgress, words));
                if let Err(error) = raw::publish(&client, &reply, headers, body, timeout).await {
                    tracing::debug!(%error, "a commit was not answered");
                }
            });
        }
        self.routes.first_commits.push(message);
        if self.routes.first_commits.len() > FIRST_COMMITS {
            self.routes.first_commits.remove(0);
        }
    }

    /// To be called when the metadata moved on.
    pub(super) async fn pass_on_first_commits(&mut self) {
        if self.routes.first_commits.is_empty() {
            return;
        }
        if self.core.history().image().is_some_and(|image| image.topic(OFFSETS_TOPIC).is_some()) {
            for message in std::mem::take(&mut self.routes.first_commits) {
                self.route(message).await;
            }
        }
    }
}
