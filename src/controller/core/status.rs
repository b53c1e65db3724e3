//! Answers to people who look: topics, nodes, and how the cluster does. Versions come from acknowledgements, counts from the
//! metadata, neither from a heartbeat that may be old.

use std::ops::Bound;

use serde::Serialize;

use super::office::Role;
use super::{Controller, Token};
use crate::metadata::{Image, NodeState, StorageNode, Topic};
use crate::types::{PartitionId, StorageId, Version};
use crate::wire::admin::{
    ActiveController, ClusterStatus, MetadataServiceStatus, MetadataShown, NodeDescription, NodeList,
    PartitionDescription, TopicDescription, TopicList, TopicSummary,
};
use crate::wire::{Code, WireError, admin};

/// How many storage nodes that are not active a status names.
const NAMED: usize = 100;

impl Controller {
    pub(super) fn list_topics(&self, image: &Image, from: &str) -> TopicList {
        let mut list = TopicList { version: self.history.position().version, topics: Vec::new(), next: None };
        let wanted = image.names.range::<str, _>((Bound::Included(from), Bound::Unbounded));
        let topics = wanted.filter_map(|(_, id)| image.topics.get(id)).map(|topic| summarise(topic));
        (list.topics, list.next) = page(self.room_beside(&list), topics, |topic| topic.name.clone());
        list
    }

    pub(super) fn describe_topic(
        &self,
        image: &Image,
        name: &str,
        from: PartitionId,
    ) -> Result<TopicDescription, WireError> {
        let unknown = || {
            let words = format!("there is no topic {name:?}; `dmq topic list` shows those there are");
            WireError::new(Code::UnknownTopicOrPartition, words)
        };
        let topic = image.topic(name).ok_or_else(unknown)?;
        let describe = |(number, partition): (usize, &crate::metadata::Partition)| PartitionDescription {
            partition: number as u32,
            leader: partition.leader,
            leader_epoch: partition.leader_epoch,
            partition_epoch: partition.epoch,
            replicas: partition.replicas.to_vec(),
            isr: partition.isr().collect(),
            recovering: topic.recovering.contains(&(number as u32)),
        };
        let mut description = TopicDescription {
            name: topic.name.to_string(),
            topic_id: topic.id,
            version: self.history.position().version,
            created_version: topic.created,
            config: topic.config.clone(),
            partitions: Vec::new(),
            next: None,
        };
        let wanted = topic.partitions.iter().enumerate().skip(from as usize).map(describe);
        (description.partitions, description.next) =
            page(self.room_beside(&description), wanted, |partition| partition.partition);
        Ok(description)
    }

    fn describe_node(&self, id: StorageId, node: &StorageNode) -> NodeDescription {
        // Nobody registers while nothing is written: what a restarted node says of itself is all there is.
        let is_halted = matches!(self.role, Role::Halted { .. });
        let session = self.sessions.get(&id).filter(|session| is_halted || session.incarnation == node.incarnation);
        let version = session.map_or(Version::ZERO, |session| match is_halted {
            true => session.position.version.max(session.claimed.version),
            false => session.position.version,
        });
        let heard = session.filter(|session| session.connection.is_some()).and_then(|session| session.heard);
        NodeDescription {
            id,
            state: node.state,
            version,
            lag: self.history.position().version.0.saturating_sub(version.0),
            leader_count: node.leaders,
            follower_count: node.followers(),
            paired_metadata_service_id: node.pairing,
            rack: node.rack.as_deref().map(str::to_string),
            directory: node.directory,
            incarnation: node.incarnation,
            node_epoch: node.epoch,
            heard_ms_ago: heard.map(|heard| u64::try_from(self.mono().since(heard).as_millis()).unwrap_or(u64::MAX)),
            directory_errors: session.map(|session| session.health.directory_errors.clone()).unwrap_or_default(),
            disk_free_bytes: heard.and(session).map(|session| session.health.disk_free_bytes),
            refused_messages: heard.and(session).map(|session| session.health.refused_messages),
        }
    }

    pub(super) fn list_nodes(&self, image: &Image, from: Option<StorageId>) -> NodeList {
        let mut list = NodeList { version: self.history.position().version, nodes: Vec::new(), next: None };
        (list.nodes, list.next) = self.nodes_from(image, from, self.room_beside(&list));
        list
    }

    /// As many nodes as fit, and the one to go on from.
    fn nodes_from(
        &self,
        image: &Image,
        from: Option<StorageId>,
        room: usize,
    ) -> (Vec<NodeDescription>, Option<StorageId>) {
        let known = image.storage.range(from.unwrap_or(StorageId(0))..);
        let present = known.filter(|(_, node)| node.state != NodeState::Removed);
        page(room, present.map(|(id, node)| self.describe_node(*id, node)), |node| node.id)
    }

    /// The bytes that a message has for what is listed in an answer.
    fn room_beside<T: Serialize>(&self, rest: &T) -> usize {
        /// For the field that says where to go on: the longest is a topic's name.
        const NEXT: usize = 300;
        self.settings.message_limit.saturating_sub(admin::encode(rest).len() + NEXT)
    }

    pub(super) fn describe_one_node(&self, image: &Image, id: StorageId) -> Result<NodeDescription, WireError> {
        let words = || format!("there is no storage node {id}; `dmq node list` shows those there are");
        let node = image.storage.get(&id).ok_or_else(|| WireError::new(Code::UnknownNode, words()))?;
        Ok(self.describe_node(id, node))
    }

    pub(super) fn cluster_status(&self, from: Option<StorageId>) -> ClusterStatus {
        let mut problems = Vec::new();
        let active = match &self.role {
            Role::Active { epoch, .. } => Some(ActiveController { id: self.me.controller, epoch: *epoch }),
            Role::Halted { why } => {
                problems.push(format!("the history is lost: {why}; `dmq metadata restore` shows what can be done"));
                None
            }
            Role::Starting | Role::Standby | Role::Electing => None,
        };
        if active.is_none() {
            problems.push("no controller is active".to_string());
        }
        problems.extend(self.services.problems.iter().cloned());
        let mut status = ClusterStatus {
            cluster_id: self.image().map(|image| image.cluster),
            version: self.history.position().version,
            healthy: false,
            problems,
            controller: active,
            metadata_services: self.metadata_services(),
            storage_nodes: Vec::new(),
            topics: 0,
            partitions: 0,
            leaderless_partitions: 0,
            under_replicated_partitions: 0,
            recovering_partitions: 0,
            refused_messages: self.refused,
            next: None,
        };
        if let Some(image) = self.image() {
            for topic in image.topics.values() {
                status.recovering_partitions += topic.recovering.len() as u64;
                let topic = summarise(topic);
                status.topics += 1;
                status.partitions += u64::from(topic.partitions);
                status.leaderless_partitions += u64::from(topic.leaderless_partitions);
                status.under_replicated_partitions += u64::from(topic.under_replicated_partitions);
            }
        }
        let nodes = self.image().into_iter().flat_map(|image| image.storage.iter());
        let mut not_active = nodes.filter(|(_, node)| !matches!(node.state, NodeState::Active | NodeState::Removed));
        for (id, node) in not_active.by_ref().take(NAMED) {
            status.problems.push(format!("storage node {id} is {}", node.state.as_str()));
        }
        match not_active.count() {
            0 => {}
            more => status.problems.push(format!("{more} more storage nodes are not active")),
        }
        if status.leaderless_partitions > 0
            && let Some(image) = self.image()
        {
            status.problems.extend(super::leaderless::why_leaderless(image));
        }
        let counts = [
            (status.under_replicated_partitions, "under-replicated"),
            (status.recovering_partitions, "recovering from an unclean election"),
        ];
        for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
            status.problems.push(format!("{count} partitions are {what}"));
        }
        status.healthy = status.problems.is_empty();
        if let Some(image) = self.image() {
            (status.storage_nodes, status.next) = self.nodes_from(image, from, self.room_beside(&status));
        }
        status
    }

    fn metadata_services(&self) -> Vec<MetadataServiceStatus> {
        let me = MetadataServiceStatus {
            id: self.me.controller,
            state: self.role.on_the_wire(),
            version: self.history.position().version,
        };
        let alive = self.peers.iter().filter(|(_, peer)| self.peer_alive(peer));
        let others = alive.map(|(id, peer)| MetadataServiceStatus {
            id: *id,
            state: peer.message.role,
            version: peer.message.position.version,
        });
        let mut all: Vec<_> = others.chain([me]).collect();
        all.sort_by_key(|service| service.id);
        all
    }

    /// Answers what only reads. False where the verb is another.
    pub(super) fn read(&mut self, noun: &str, verb: &str, payload: &[u8], token: Token) -> bool {
        let nodes = || admin::decode::<admin::NodesFrom>(payload);
        let Some(image) = self.history.image() else {
            if (noun, verb) == ("cluster", "status") {
                let status = admin::encode(&self.cluster_status(None));
                self.out.push(super::Effect::Answer { token, payload: status.into() });
                return true;
            }
            return false;
        };
        let answer = match (noun, verb) {
            ("topic", "list") => admin::decode::<admin::TopicsFrom>(payload)
                .map(|asked| admin::encode(&self.list_topics(image, &asked.from))),
            ("topic", "describe") => admin::decode::<admin::TopicDescribe>(payload)
                .and_then(|asked| self.describe_topic(image, &asked.name, asked.from))
                .map(|found| admin::encode(&found)),
            ("node", "list") => nodes().map(|asked| admin::encode(&self.list_nodes(image, asked.from))),
            ("node", "describe") => admin::decode::<admin::NodeNamed>(payload)
                .and_then(|asked| self.describe_one_node(image, asked.id))
                .map(|found| admin::encode(&found)),
            ("cluster", "status") => nodes().map(|asked| admin::encode(&self.cluster_status(asked.from))),
            ("metadata", "show") => admin::decode::<admin::LinesFrom>(payload)
                .and_then(|asked| self.show(image, asked.from))
                .map(|shown| admin::encode(&shown)),
            _ => return false,
        };
        match answer {
            Ok(answer) => self.out.push(super::Effect::Answer { token, payload: answer.into() }),
            Err(error) => self.refuse_request(token, error),
        }
        true
    }

    /// The image, in the lines of a snapshot.
    fn show(&self, image: &Image, from: u64) -> Result<MetadataShown, WireError> {
        let position = self.history.position();
        let mut shown = MetadataShown { version: position.version, lines: Vec::new(), next: None };
        let (from, room) = (usize::try_from(from).unwrap_or(usize::MAX), self.room_beside(&shown));
        let failed = |error: crate::metadata::SnapshotError| WireError::new(Code::InvalidState, error.to_string());
        let (lines, next) = crate::metadata::show_lines(image, position, from, room).map_err(failed)?;
        (shown.lines, shown.next) = (lines, next.map(|next| next as u64));
        Ok(shown)
    }
}

/// As many as fit into so many bytes, and the first that does not. One at least, so that whoever asks goes on.
fn page<T: Serialize, K>(room: usize, all: impl Iterator<Item = T>, key: impl Fn(&T) -> K) -> (Vec<T>, Option<K>) {
    let (mut taken, mut size) = (Vec::new(), 0);
    for one in all {
        size += admin::encode(&one).len() + 1;
        if size > room && !taken.is_empty() {
            return (taken, Some(key(&one)));
        }
        taken.push(one);
    }
    (taken, None)
}

fn summarise(topic: &Topic) -> TopicSummary {
    let count =
        |pick: fn(&crate::metadata::Partition) -> bool| topic.partitions.iter().filter(|p| pick(p)).count() as u32;
    TopicSummary {
        name: topic.name.to_string(),
        topic_id: topic.id,
        partitions: topic.partitions.len() as u32,
        replication_factor: topic.partitions.first().map_or(0, |partition| partition.replicas.len() as u32),
        leaderless_partitions: count(|partition| partition.leader.is_none()),
        under_replicated_partitions: count(crate::metadata::Partition::under_replicated),
    }
}
