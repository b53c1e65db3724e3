//! Topics: created, altered and deleted.

use std::collections::BTreeMap;

use super::election::{PARTITIONS_PER_RECORD, REPLICAS_PER_RECORD, elect_leaderless};
use crate::metadata::config::{self, ConfigError};
use crate::metadata::{Image, MAX_PARTITIONS, PlacementError, Record, Topic, place};
use crate::types::{StorageId, TopicId, TopicName, TopicNameError};

const MAX_MESSAGE_BYTES: &str = "max.message.bytes";

/// How many replicas a partition has if nobody says, where there are so many nodes.
const DEFAULT_REPLICATION_FACTOR: usize = 3;

/// The most replicas of one topic's partitions together.
pub const MAX_REPLICAS_OF_TOPIC: usize = 4_000_000;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TopicError {
    #[error("topic {name} exists already")]
    Exists { name: TopicName },
    #[error("there is no topic {name:?}")]
    Unknown { name: String },
    #[error(transparent)]
    Name(#[from] TopicNameError),
    #[error("a topic has at least 1 partition")]
    NoPartitions,
    #[error("a topic has at most {MAX_PARTITIONS} partitions, not {0}")]
    TooManyPartitions(u32),
    #[error(
        "{partitions} partitions of {factor} replicas are more than the {MAX_REPLICAS_OF_TOPIC} replicas that a topic has at most"
    )]
    TooManyReplicas { partitions: u32, factor: usize },
    #[error("topic {name} has {present} partitions, and cannot be brought down to {wanted}")]
    FewerPartitions { name: TopicName, present: u32, wanted: u32 },
    #[error(transparent)]
    Placement(#[from] PlacementError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(
        "{MAX_MESSAGE_BYTES} is {value}, above the {limit} that a NATS message carries here: raise the server's max_payload, or take less"
    )]
    MessageBytes { value: u64, limit: u64 },
}

/// Creates a topic, its replicas spread over several records where they are many.
pub fn create(
    image: &Image,
    name: &str,
    id: TopicId,
    partitions: Option<u32>,
    replication_factor: Option<u32>,
    config: &BTreeMap<String, String>,
    max_message_bytes_limit: u64,
) -> Result<Vec<Record>, TopicError> {
    let name = TopicName::new(name)?;
    if image.names.contains_key(&name) {
        return Err(TopicError::Exists { name });
    }
    let active = image.active_nodes().count();
    let factor = replication_factor.map_or(active.clamp(1, DEFAULT_REPLICATION_FACTOR), |factor| factor as usize);
    let partitions = partitions.unwrap_or(1);
    check_size(partitions, factor)?;
    // Whether so many replicas can be placed at all comes before what depends on their number.
    place(image, 0, factor)?;
    check_config(config, factor, max_message_bytes_limit)?;
    let mut chunks = chunks(place(image, partitions, factor)?, factor);
    let replicas = chunks.next().unwrap_or_default();
    let created = Record::TopicCreated { topic_id: id, name, config: config.clone(), replicas };
    let added = chunks.map(|replicas| Record::PartitionsAdded { topic_id: id, replicas });
    Ok(std::iter::once(created).chain(added).collect())
}

/// Raises the number of partitions, and sets configuration keys, or unsets those whose value is none. Empty where nothing changes.
pub fn alter(
    image: &Image,
    name: &str,
    partitions: Option<u32>,
    config: &BTreeMap<String, Option<String>>,
    max_message_bytes_limit: u64,
) -> Result<Vec<Record>, TopicError> {
    let topic = known(image, name)?;
    let factor = topic.partitions.first().map_or(1, |partition| partition.replicas.len());
    let mut records = Vec::new();
    records.extend(configure(image, topic, config, factor, max_message_bytes_limit)?);
    let present = topic.partitions.len() as u32;
    let wanted = partitions.unwrap_or(present);
    if wanted < present {
        return Err(TopicError::FewerPartitions { name: topic.name.clone(), present, wanted });
    }
    if wanted > present {
        check_size(wanted, factor)?;
        let placed = place(image, wanted - present, factor)?;
        let added = |replicas| Record::PartitionsAdded { topic_id: topic.id, replicas };
        records.extend(chunks(placed, factor).map(added));
    }
    Ok(records)
}

pub fn delete(image: &Image, name: &str) -> Result<Vec<Record>, TopicError> {
    Ok(vec![Record::TopicDeleted { topic_id: known(image, name)?.id }])
}

fn known<'a>(image: &'a Image, name: &str) -> Result<&'a Topic, TopicError> {
    match image.topic(name) {
        Some(topic) => Ok(topic),
        None => {
            TopicName::new(name)?;
            Err(TopicError::Unknown { name: name.into() })
        }
    }
}

fn check_size(partitions: u32, factor: usize) -> Result<(), TopicError> {
    if partitions == 0 {
        return Err(TopicError::NoPartitions);
    }
    if partitions > MAX_PARTITIONS {
        return Err(TopicError::TooManyPartitions(partitions));
    }
    if (partitions as usize).saturating_mul(factor) > MAX_REPLICAS_OF_TOPIC && factor <= crate::metadata::MAX_REPLICAS {
        return Err(TopicError::TooManyReplicas { partitions, factor });
    }
    Ok(())
}

/// Checks the whole configuration of a topic.
fn check_config(config: &BTreeMap<String, String>, factor: usize, limit: u64) -> Result<(), TopicError> {
    config.iter().try_for_each(|(key, value)| config::check(key, value))?;
    match config.get(MAX_MESSAGE_BYTES).and_then(|value| value.parse().ok()) {
        Some(value) if value > limit => return Err(TopicError::MessageBytes { value, limit }),
        Some(_) | None => {}
    }
    Ok(config::check_whole(config, factor)?)
}

/// What sets the keys that differ; and elections, where the topic now allows unclean ones and partitions wait for them.
fn configure(
    image: &Image,
    topic: &Topic,
    keys: &BTreeMap<String, Option<String>>,
    factor: usize,
    limit: u64,
) -> Result<Vec<Record>, TopicError> {
    let mut whole = topic.config.clone();
    let mut changes = BTreeMap::new();
    for (key, value) in keys {
        let before = match value {
            Some(value) => whole.insert(key.clone(), value.clone()),
            None => {
                config::check_key(key)?;
                whole.remove(key)
            }
        };
        if before != *value {
            changes.insert(key.clone(), value.clone());
        }
    }
    // What is set already was checked against the limit of its time.
    let asked = keys.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?))).collect();
    check_config(&asked, factor, limit)?;
    config::check_whole(&whole, factor)?;
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    let mut records = vec![Record::TopicConfigured { topic_id: topic.id, config: changes }];
    let allows = whole.get(config::UNCLEAN_ELECTION).is_some_and(|value| value == "true");
    if allows && topic.partitions.iter().any(|partition| partition.leader.is_none()) {
        records.extend(elect_leaderless(image, &Topic { config: whole, ..topic.clone() }));
    }
    Ok(records)
}

/// The replicas of new partitions, in pieces that a record can hold.
fn chunks(placed: Vec<Vec<StorageId>>, factor: usize) -> impl Iterator<Item = Vec<Vec<StorageId>>> {
    let size = PARTITIONS_PER_RECORD.min(REPLICAS_PER_RECORD / factor.max(1));
    let mut rest = placed.into_iter();
    std::iter::from_fn(move || {
        let chunk: Vec<_> = rest.by_ref().take(size).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}
