//! Admin requests that change something: decided one after another, answered once they are in the history and, for a bounded
//! time, until every active storage node has them on its disk.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::append::Purpose;
use super::office::Role;
use super::{Controller, Effect, Token};
use crate::metadata::rules::node::NodeError;
use crate::metadata::rules::topic::TopicError;
use crate::metadata::{Image, NodeState, Record, rules};
use crate::types::{Monotonic, NodeEpoch, RequestId, StorageId, TopicId, Version};
use crate::wire::admin::{
    self, Changed, IsrOutcome, MetadataRestore, NodeNamed, NodeRegistered, PartitionAlter, PartitionAltered, Terms,
    TopicAlter, TopicCreate, TopicNamed,
};
use crate::wire::{Code, WireError};

/// How many requests may wait for their turn.
const JOBS: usize = 1024;
/// How many answers may wait for storage nodes.
const WAITERS: usize = 4096;
/// The longest that an answer may be asked to wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A request that waits for its turn.
#[derive(Clone, Debug)]
pub(super) enum Job {
    Command { token: Token, command: Command },
    AlterPartitions { token: Token, request: PartitionAlter },
}

impl Job {
    pub(super) fn token(&self) -> Token {
        match self {
            Self::Command { token, .. } | Self::AlterPartitions { token, .. } => *token,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Command {
    CreateTopic(TopicCreate, TopicId),
    AlterTopic(TopicAlter),
    DeleteTopic(TopicNamed),
    DrainNode(NodeNamed),
    ReplaceNode(NodeNamed),
    RemoveNode(NodeNamed),
}

impl Command {
    fn terms(&self) -> &Terms {
        match self {
            Self::CreateTopic(request, _) => &request.terms,
            Self::AlterTopic(request) => &request.terms,
            Self::DeleteTopic(request) => &request.terms,
            Self::DrainNode(request) | Self::ReplaceNode(request) | Self::RemoveNode(request) => &request.terms,
        }
    }

    /// What was asked, so that a request id is not taken for another request. 53 bits, which every JSON reader holds.
    fn fingerprint(&self) -> u64 {
        let asked = match self {
            Self::CreateTopic(request, _) => {
                admin::encode(&(1, &request.name, request.partitions, request.replication_factor, &request.config))
            }
            Self::AlterTopic(request) => admin::encode(&(2, &request.name, request.partitions, &request.config)),
            Self::DeleteTopic(request) => admin::encode(&(3, &request.name)),
            Self::DrainNode(request) => admin::encode(&(4, request.id)),
            Self::ReplaceNode(request) => admin::encode(&(5, request.id)),
            Self::RemoveNode(request) => admin::encode(&(6, request.id)),
        };
        let hash = Sha256::digest(asked.as_bytes());
        hash.iter().take(8).fold(0_u64, |number, byte| (number << 8) | u64::from(*byte)) >> 11
    }
}

/// What is answered once a change is in the history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    Changed { subject: String, topic_id: Option<TopicId>, wait: Duration, unchanged: bool },
    Registered(StorageId),
    Altered(Vec<IsrOutcome>),
}

/// An answer that waits until the active storage nodes have a version.
#[derive(Clone, Debug)]
pub(super) struct Waiter {
    token: Token,
    pub(super) deadline: Monotonic,
    changed: Changed,
    missing: BTreeSet<StorageId>,
}

/// What is remembered of an answer with the request's id.
#[derive(Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Remembered {
    subject: String,
    topic_id: Option<TopicId>,
}

struct Decision {
    records: Vec<Record>,
    cause: String,
    reply: Reply,
}

impl Controller {
    pub(super) fn on_admin(&mut self, noun: &str, verb: &str, payload: &[u8], token: Token, fresh_id: TopicId) {
        if (noun, verb) == ("metadata", "restore") {
            return match admin::decode::<MetadataRestore>(payload) {
                Ok(request) => self.on_restore(request, token),
                Err(error) => self.refuse_request(token, error),
            };
        }
        if self.read(noun, verb, payload, token) {
            return;
        }
        match &self.role {
            Role::Active { .. } => {}
            Role::Halted { why } => {
                let words = format!("nothing is written: {why}; `dmq metadata restore` shows what can be done");
                return self.fail(token, WireError::new(Code::HistoryLost, words));
            }
            Role::Starting | Role::Standby | Role::Electing => {
                return self
                    .fail(token, WireError::new(Code::NotController, "this controller is not active; ask again"));
            }
        }
        let command = |command| Job::Command { token, command };
        let job = match (noun, verb) {
            ("topic", "create") => read(payload, |request| Command::CreateTopic(request, fresh_id)).map(command),
            ("topic", "alter") => read(payload, Command::AlterTopic).map(command),
            ("topic", "delete") => read(payload, Command::DeleteTopic).map(command),
            ("node", "register") => {
                return match admin::decode(payload) {
                    Ok(request) => self.on_register(token, request),
                    Err(error) => self.refuse_request(token, error),
                };
            }
            ("node", "drain") => read(payload, Command::DrainNode).map(command),
            ("node", "replace") => read(payload, Command::ReplaceNode).map(command),
            ("node", "remove") => read(payload, Command::RemoveNode).map(command),
            ("partition", "alter") => admin::decode(payload).map(|request| Job::AlterPartitions { token, request }),
            _ => Err(WireError::new(Code::InvalidRequest, format!("there is no request {noun}.{verb}"))),
        };
        match job {
            Err(error) => self.refuse_request(token, error),
            Ok(_) if self.jobs.len() >= JOBS || self.waiters.len() >= WAITERS => {
                self.fail(token, WireError::new(Code::Busy, "too many requests wait; ask again later"));
            }
            Ok(job) => self.jobs.push_back(job),
        }
    }

    pub(super) fn refuse_request(&mut self, token: Token, error: WireError) {
        if error.code == Code::InvalidRequest {
            let words = error.message.clone();
            self.complain("admin request", || format!("an admin request was refused: {words}"));
        }
        self.fail(token, error);
    }

    /// Begins the next change, if none is under way and one is due.
    pub(super) fn work(&mut self) {
        while self.in_flight.is_none() && matches!(self.role, Role::Active { .. }) && self.may_act() {
            if self.work_for_nodes() || self.work_for_snapshots() {
                // Begun; or it could not even be written down, and is not to be tried again without end.
                return;
            }
            // In turns, so that neither waits for an end of the others.
            let registers = !std::mem::take(&mut self.registered_last) || self.jobs.is_empty();
            if registers && self.work_for_registrations() {
                self.registered_last = true;
                return;
            }
            let Some(job) = self.jobs.pop_front() else { return };
            self.carry_out(job);
        }
    }

    fn carry_out(&mut self, job: Job) {
        let (token, command) = match job {
            Job::AlterPartitions { token, request } => return self.alter_partitions(token, request),
            Job::Command { token, command } => (token, command),
        };
        if self.answered_before(token, &command) {
            return;
        }
        match self.decide(&command) {
            Err(error) => self.fail(token, error),
            Ok(Decision { records, mut reply, .. }) if records.is_empty() => {
                if let Reply::Changed { unchanged, .. } = &mut reply {
                    *unchanged = true;
                }
                self.committed(self.history.position().version, token, reply);
            }
            Ok(Decision { records, cause, reply }) => {
                let request = command.terms().request_id.clone().and_then(|id| match &reply {
                    Reply::Changed { subject, topic_id, .. } => {
                        let remembered = Remembered { subject: subject.clone(), topic_id: *topic_id };
                        Some((id, command.fingerprint(), Arc::from(admin::encode(&remembered))))
                    }
                    Reply::Registered(_) | Reply::Altered(_) => None,
                });
                self.append(records, cause.into(), request, Purpose::Replies(vec![(token, reply)]));
            }
        }
    }

    /// A retry of what took effect gets the answer of then.
    fn answered_before(&mut self, token: Token, command: &Command) -> bool {
        let terms = command.terms();
        let Some(id) = &terms.request_id else { return false };
        #[cfg(test)]
        if crate::simulator::planted(crate::simulator::Bug::RetriedAnew) {
            return false;
        }
        let Some(outcome) = self.image().and_then(|image| image.request(id)) else { return false };
        let (version, same) = (outcome.version, outcome.fingerprint == command.fingerprint());
        match serde_json::from_str::<Remembered>(&outcome.answer) {
            Ok(remembered) if same => {
                let wait = self.wait(terms);
                let Remembered { subject, topic_id } = remembered;
                let reply = Reply::Changed { subject, topic_id, wait, unchanged: false };
                self.committed(version, token, reply);
            }
            Ok(_) | Err(_) => self.fail(token, reused(id)),
        }
        true
    }

    fn wait(&self, terms: &Terms) -> Duration {
        terms.wait_ms.map_or(self.settings.admin_wait, Duration::from_millis).min(LONGEST_WAIT)
    }

    fn decide(&self, command: &Command) -> Result<Decision, WireError> {
        let image = self.image().ok_or_else(|| WireError::new(Code::NotController, "there is no cluster yet"))?;
        // The header of a reply and its subject need some room beside the batch.
        let message_limit = self.settings.message_limit as u64;
        let changed = |subject: String, topic_id, terms: &Terms| {
            let wait = self.wait(terms);
            Reply::Changed { subject, topic_id, wait, unchanged: false }
        };
        match command {
            Command::CreateTopic(request, id) => {
                let TopicCreate { name, partitions, replication_factor, config, terms } = request;
                self.check_version(image, name, terms)?;
                let records =
                    rules::topic::create(image, name, *id, *partitions, *replication_factor, config, message_limit)
                        .map_err(topic_error)?;
                let reply = changed(name.clone(), Some(*id), terms);
                Ok(Decision { records, cause: format!("topic {name} created"), reply })
            }
            Command::AlterTopic(TopicAlter { name, partitions, config, terms }) => {
                self.check_version(image, name, terms)?;
                // Before unclean elections are due, all that wait for one get it together.
                let alter = if self.unclean_at.is_some() { rules::topic::alter_cleanly } else { rules::topic::alter };
                let records = alter(image, name, *partitions, config, message_limit).map_err(topic_error)?;
                let id = image.topic(name).map(|topic| topic.id);
                Ok(Decision {
                    records,
                    cause: format!("topic {name} altered"),
                    reply: changed(name.clone(), id, terms),
                })
            }
            Command::DeleteTopic(TopicNamed { name, terms }) => {
                self.check_version(image, name, terms)?;
                let records = rules::topic::delete(image, name).map_err(topic_error)?;
                let id = image.topic(name).map(|topic| topic.id);
                Ok(Decision {
                    records,
                    cause: format!("topic {name} deleted"),
                    reply: changed(name.clone(), id, terms),
                })
            }
            Command::DrainNode(NodeNamed { id, terms }) => {
                let node = image.storage.get(id).ok_or_else(|| node_error(NodeError::Unknown(*id)))?;
                refuse_version(terms)?;
                match node.state {
                    NodeState::Active | NodeState::Draining => {}
                    NodeState::Removed => return Err(node_error(NodeError::Removed(*id))),
                    NodeState::Fenced => {
                        let words = format!("storage node {id} is fenced: it leads nothing that could be moved away");
                        return Err(WireError::new(Code::InvalidState, words));
                    }
                }
                if node.leaders > 0 && !rules::node::can_drain(image, *id) {
                    let words = format!("storage node {id} leads partitions that nobody else can lead now");
                    return Err(WireError::new(Code::InvalidState, words));
                }
                let records = rules::node::drain(image, *id);
                Ok(Decision {
                    records,
                    cause: format!("storage node {id} drained by request"),
                    reply: changed(id.to_string(), None, terms),
                })
            }
            Command::ReplaceNode(NodeNamed { id, terms }) => {
                refuse_version(terms)?;
                let records = rules::node::replace(image, *id, self.session_live(*id)).map_err(node_error)?;
                Ok(Decision {
                    records,
                    cause: format!("storage node {id} is to be replaced"),
                    reply: changed(id.to_string(), None, terms),
                })
            }
            Command::RemoveNode(NodeNamed { id, terms }) => {
                refuse_version(terms)?;
                let records = rules::node::remove(image, *id, self.session_live(*id)).map_err(node_error)?;
                Ok(Decision {
                    records,
                    cause: format!("storage node {id} removed"),
                    reply: changed(id.to_string(), None, terms),
                })
            }
        }
    }

    fn check_version(&self, image: &Image, name: &str, terms: &Terms) -> Result<(), WireError> {
        let (Some(asked), Some(topic)) = (terms.if_version, image.topic(name)) else { return Ok(()) };
        if topic.changed <= asked {
            return Ok(());
        }
        let story =
            self.tail.story(topic.changed).map(|(time, cause)| format!(" at {time} ({cause})")).unwrap_or_default();
        let words = format!("topic {name} was changed in version {}{story}, after version {asked}", topic.changed);
        Err(WireError::new(Code::VersionConflict, words))
    }

    /// A change that somebody waits for is in the history.
    pub(super) fn committed(&mut self, version: Version, token: Token, reply: Reply) {
        match reply {
            Reply::Changed { subject, topic_id, wait, unchanged } => {
                let active: BTreeSet<_> =
                    self.image().map(|image| image.active_nodes().map(|(id, _)| id).collect()).unwrap_or_default();
                let lacks =
                    |id: &StorageId| self.sessions.get(id).is_none_or(|session| session.position.version < version);
                let missing: BTreeSet<_> = active.iter().copied().filter(lacks).collect();
                let active = active.len() as u32;
                let applied = active - missing.len() as u32;
                let changed = Changed { subject, topic_id, version, applied, active, unchanged };
                let waiter = Waiter { token, deadline: self.mono() + wait, changed, missing };
                if waiter.missing.is_empty() || wait.is_zero() {
                    self.answer_waiter(waiter);
                } else {
                    self.waiters.push(waiter);
                }
            }
            Reply::Registered(storage) => {
                let Some(image) = self.image() else { return };
                let node = image.storage.get(&storage);
                let answer = NodeRegistered {
                    cluster: image.cluster,
                    storage,
                    node_epoch: node.map_or(NodeEpoch(0), |node| node.epoch),
                    pairing: node.and_then(|node| node.pairing),
                    version,
                };
                self.out.push(Effect::Answer { token, payload: admin::encode(&answer).into() });
            }
            Reply::Altered(partitions) => {
                let answer = PartitionAltered { version, partitions };
                self.out.push(Effect::Answer { token, payload: admin::encode(&answer).into() });
            }
        }
    }

    /// A storage node has a version on its disk.
    pub(super) fn waiters_note(&mut self, id: StorageId, version: Version) {
        for waiter in &mut self.waiters {
            if waiter.changed.version <= version && waiter.missing.remove(&id) {
                waiter.changed.applied += 1;
            }
        }
    }

    /// Whoever is no longer active is waited for no more. To be called where a node's state may have changed.
    pub(super) fn waiters_forget_inactive(&mut self) {
        let Some(image) = self.history.image() else { return };
        for waiter in &mut self.waiters {
            waiter.missing.retain(|id| image.is_active(*id));
        }
    }

    pub(super) fn end_waiters(&mut self) {
        let now = self.mono();
        // With a thousand nodes, most inputs end none.
        if !self.waiters.iter().any(|waiter| waiter.missing.is_empty() || now >= waiter.deadline) {
            return;
        }
        let (ended, waiting) =
            std::mem::take(&mut self.waiters).into_iter().partition(|w| w.missing.is_empty() || now >= w.deadline);
        self.waiters = waiting;
        let ended: Vec<Waiter> = ended;
        ended.into_iter().for_each(|waiter| self.answer_waiter(waiter));
    }

    pub(super) fn answer_waiter(&mut self, waiter: Waiter) {
        let payload = admin::encode(&waiter.changed).into();
        self.out.push(Effect::Answer { token: waiter.token, payload });
    }
}

fn read<T: DeserializeOwned>(payload: &[u8], command: impl FnOnce(T) -> Command) -> Result<Command, WireError> {
    admin::decode(payload).map(command)
}

/// Of nodes it is not kept when they were changed.
fn refuse_version(terms: &Terms) -> Result<(), WireError> {
    match terms.if_version {
        Some(_) => Err(WireError::new(Code::InvalidRequest, "ifVersion is for topics: leave it out")),
        None => Ok(()),
    }
}

fn reused(id: &RequestId) -> WireError {
    WireError::new(Code::RequestIdReused, format!("request id {id} was used for another request; take a new one"))
}

fn topic_error(error: TopicError) -> WireError {
    let code = match &error {
        TopicError::Exists { .. } => Code::TopicAlreadyExists,
        TopicError::Unknown { .. } => Code::UnknownTopicOrPartition,
        TopicError::Name(_) | TopicError::Internal { .. } => Code::InvalidTopicException,
        TopicError::NoPartitions
        | TopicError::TooManyPartitions(_)
        | TopicError::TooManyReplicas { .. }
        | TopicError::FewerPartitions { .. } => Code::InvalidPartitions,
        TopicError::Placement(_) => Code::InvalidReplicationFactor,
        TopicError::Config(_) | TopicError::MessageBytes { .. } => Code::InvalidConfig,
    };
    WireError::new(code, error.to_string())
}

pub(super) fn node_error(error: NodeError) -> WireError {
    let code = match &error {
        NodeError::Unknown(_) => Code::UnknownNode,
        NodeError::Removed(_) => Code::NodeRemoved,
        NodeError::Duplicate { .. } => Code::DuplicateNode,
        NodeError::DirectoryMismatch { .. } | NodeError::IdMismatch { .. } => Code::DirectoryMismatch,
        NodeError::Id(_) => Code::InvalidRequest,
        NodeError::Live(_) | NodeError::HoldsReplicas { .. } => Code::NodeInUse,
    };
    WireError::new(code, error.to_string())
}
