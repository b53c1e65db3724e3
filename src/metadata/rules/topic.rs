//! Topics: created, altered and deleted.

use std::collections::BTreeMap;

use super::election::{PARTITIONS_PER_RECORD, REPLICAS_PER_RECORD, elect_leaderless};
use crate::metadata::config::{self, ConfigError};
use crate::metadata::{Image, MAX_PARTITIONS, PlacementError, Record, Replicas, Topic, place};
use crate::types::{TopicId, TopicName, TopicNameError};

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
    #[error("{name} keeps the groups' offsets: {why}")]
    Internal { name: TopicName, why: &'static str },
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
    check_internal(&name, config)?;
    let mut chunks = chunks(place(image, partitions, factor)?, factor);
    let replicas = chunks.next().unwrap_or_default();
    let created = Record::TopicCreated { topic_id: id, name, config: config.clone(), replicas };
    let added = chunks.map(|replicas| Record::PartitionsAdded { topic_id: id, replicas });
    Ok(std::iter::once(created).chain(added).collect())
}

/// Raises the number of partitions, and sets configuration keys, or unsets those whose value is none. Empty where nothing changes.
/// Where unclean elections are allowed now, partitions that wait for them get leaders.
pub fn alter(
    image: &Image,
    name: &str,
    partitions: Option<u32>,
    config: &BTreeMap<String, Option<String>>,
    max_message_bytes_limit: u64,
) -> Result<Vec<Record>, TopicError> {
    alter_where(image, name, partitions, config, max_message_bytes_limit, false)
}

/// The same without these elections, while those in sync may be about to come.
pub fn alter_cleanly(
    image: &Image,
    name: &str,
    partitions: Option<u32>,
    config: &BTreeMap<String, Option<String>>,
    max_message_bytes_limit: u64,
) -> Result<Vec<Record>, TopicError> {
    alter_where(image, name, partitions, config, max_message_bytes_limit, true)
}

fn alter_where(
    image: &Image,
    name: &str,
    partitions: Option<u32>,
    config: &BTreeMap<String, Option<String>>,
    max_message_bytes_limit: u64,
    only_clean: bool,
) -> Result<Vec<Record>, TopicError> {
    let topic = known(image, name)?;
    let factor = topic.partitions.first().map_or(1, |partition| partition.replicas.len());
    let mut records = Vec::new();
    records.extend(configure(image, topic, config, factor, max_message_bytes_limit, only_clean)?);
    let present = topic.partitions.len() as u32;
    let wanted = partitions.unwrap_or(present);
    if wanted < present {
        return Err(TopicError::FewerPartitions { name: topic.name.clone(), present, wanted });
    }
    if wanted > present {
        if topic.name.is_internal() {
            let why = "a group is found by the number of its partitions, which cannot change";
            return Err(TopicError::Internal { name: topic.name.clone(), why });
        }
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

/// What groups commit is never deleted for its age.
fn check_internal(name: &TopicName, config: &BTreeMap<String, String>) -> Result<(), TopicError> {
    if name.is_internal() && config.get("cleanup.policy").is_none_or(|policy| policy != "compact") {
        return Err(TopicError::Internal {
            name: name.clone(),
            why: "its cleanup.policy is compact, and nothing else",
        });
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
    only_clean: bool,
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
    check_internal(&topic.name, &whole)?;
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    let mut records = vec![Record::TopicConfigured { topic_id: topic.id, config: changes }];
    let allows = whole.get(config::UNCLEAN_ELECTION).is_some_and(|value| value == "true");
    if allows && !only_clean && topic.partitions.iter().any(|partition| partition.leader.is_none()) {
        records.extend(elect_leaderless(image, &Topic { config: whole, ..topic.clone() }));
    }
    Ok(records)
}

/// The replicas of new partitions, in pieces that a record can hold.
fn chunks(placed: Vec<Replicas>, factor: usize) -> impl Iterator<Item = Vec<Replicas>> {
    let size = PARTITIONS_PER_RECORD.min(REPLICAS_PER_RECORD / factor.max(1));
    let mut rest = placed.into_iter();
    std::iter::from_fn(move || {
        let chunk: Vec<_> = rest.by_ref().take(size).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::testing::{World, set, topic_id};
    use crate::metadata::{MAX_REPLICAS, Partition};
    use crate::types::{StorageId, Version};

    const LIMIT: u64 = 1_000_000;

    fn keys<const N: usize>(keys: [(&str, &str); N]) -> BTreeMap<String, String> {
        keys.map(|(key, value)| (key.to_string(), value.to_string())).into()
    }

    fn some<const N: usize>(keys: [(&str, Option<&str>); N]) -> BTreeMap<String, Option<String>> {
        keys.map(|(key, value)| (key.to_string(), value.map(str::to_string))).into()
    }

    fn made(world: &World, partitions: Option<u32>, factor: Option<u32>) -> Result<Vec<Record>, TopicError> {
        create(world.image(), "a", topic_id(1), partitions, factor, &BTreeMap::new(), LIMIT)
    }

    #[test]
    fn a_topic_has_one_partition_and_three_replicas_unless_told_otherwise() {
        for (nodes, factor) in [(5, 3), (2, 2)] {
            let mut world = World::with_nodes(nodes);
            world.commit(made(&world, None, None).unwrap());
            let topic = world.image().topic("a").unwrap();
            assert_eq!((topic.partitions.len(), topic.partitions[0].replicas.len()), (1, factor));
            assert_eq!((topic.created, topic.changed), (world.history.seen(), world.history.seen()));
        }
    }

    #[test]
    fn each_mistake_has_its_own_error() {
        let mut world = World::with_nodes(3);
        world.commit(made(&world, None, None).unwrap());
        let name = TopicName::new("a").unwrap();
        assert_eq!(made(&world, None, None), Err(TopicError::Exists { name }));
        let ask = |name, partitions, factor, config: &BTreeMap<_, _>| {
            create(world.image(), name, topic_id(2), partitions, factor, config, LIMIT).unwrap_err()
        };
        let none = BTreeMap::new();
        assert!(matches!(ask("a..b", None, None, &none), TopicError::Name(TopicNameError::EmptyToken)));
        assert_eq!(ask("b", Some(0), None, &none), TopicError::NoPartitions);
        assert_eq!(ask("b", Some(u32::MAX), None, &none), TopicError::TooManyPartitions(u32::MAX));
        let many = PlacementError::TooFewNodes { factor: 4, active: 3 };
        assert_eq!(ask("b", None, Some(4), &keys([("min.insync.replicas", "9")])), TopicError::Placement(many));
        assert_eq!(ask("b", None, Some(0), &none), TopicError::Placement(PlacementError::Factor(0)));
        let absurd = PlacementError::Factor(u32::MAX as usize);
        assert_eq!(ask("b", Some(MAX_PARTITIONS), Some(u32::MAX), &none), TopicError::Placement(absurd));
        let (partitions, factor) = (MAX_PARTITIONS, MAX_REPLICAS as u32);
        let absurd = TopicError::TooManyReplicas { partitions, factor: MAX_REPLICAS };
        assert_eq!(ask("b", Some(partitions), Some(factor), &none), absurd);
        let config = keys([("retention.mss", "1")]);
        assert!(matches!(ask("b", None, None, &config), TopicError::Config(ConfigError::Unknown { .. })));
        let config = keys([("retention.ms", "-2")]);
        assert!(matches!(ask("b", None, None, &config), TopicError::Config(ConfigError::Value { .. })));
        let config = keys([("min.insync.replicas", "4")]);
        assert!(matches!(
            ask("b", None, None, &config),
            TopicError::Config(ConfigError::MinInsyncAboveReplicas { min: 4, replicas: 3 })
        ));
        let config = keys([("max.message.bytes", "1000001")]);
        let error = ask("b", None, None, &config);
        assert_eq!(error, TopicError::MessageBytes { value: 1_000_001, limit: LIMIT });
    }

    #[test]
    fn nodes_that_are_fenced_or_drain_get_no_replica() {
        let mut world = World::with_nodes(4);
        world.fence([0]);
        world.commit(crate::metadata::rules::node::drain(world.image(), StorageId(1)));
        world.commit(made(&world, Some(10), None).unwrap());
        let on = |partition: &Partition| partition.replicas.iter().all(|node| set([2, 3]).contains(node));
        assert!(world.image().topic("a").unwrap().partitions.iter().all(on));
    }

    #[test]
    fn a_large_topic_is_one_change_of_many_messages() {
        let mut world = World::with_nodes(4);
        world.limit = 10_000;
        let before = world.history.seen();
        world.commit(made(&world, Some(5_000), Some(3)).unwrap());
        let topic = world.image().topic("a").unwrap();
        assert_eq!((topic.partitions.len(), topic.created), (5_000, world.history.position().version));
        assert!(world.history.seen() > Version(before.0 + 3));
    }

    #[test]
    fn partitions_only_grow_and_what_there_is_stays() {
        let mut world = World::with_nodes(3);
        world.commit(made(&world, Some(2), Some(2)).unwrap());
        let before = world.image().topic("a").unwrap().clone();
        let more = |wanted| alter(world.image(), "a", Some(wanted), &BTreeMap::new(), LIMIT);
        let name = TopicName::new("a").unwrap();
        assert_eq!(more(1), Err(TopicError::FewerPartitions { name, present: 2, wanted: 1 }));
        assert_eq!(more(2), Ok(Vec::new()));
        let records = more(4).unwrap();
        world.commit(records);
        let after = world.image().topic("a").unwrap();
        assert!(after.partitions.iter().take(2).eq(before.partitions.iter()) && after.partitions.len() == 4);
        assert!(after.partitions[2].replicas.len() == 2 && after.changed > before.changed);
        assert_eq!(after.created, before.created);
    }

    #[test]
    fn the_topic_of_groups_offsets_stays_what_finds_them() {
        let mut world = World::with_nodes(3);
        let make = |world: &World, config: &[(&str, &str)]| {
            let config = config.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            create(world.image(), "__consumer_offsets", topic_id(1), Some(4), None, &config, LIMIT)
        };
        let internal = |result: Result<Vec<Record>, TopicError>| matches!(result, Err(TopicError::Internal { .. }));
        assert!(internal(make(&world, &[])));
        assert!(internal(make(&world, &[("cleanup.policy", "compact,delete")])));
        let made = make(&world, &[("cleanup.policy", "compact")]).unwrap();
        world.commit(made);
        let alter = |partitions, keys| alter(world.image(), "__consumer_offsets", partitions, &keys, LIMIT);
        assert!(internal(alter(Some(5), some([]))));
        assert!(internal(alter(None, some([("cleanup.policy", None)]))));
        assert_eq!(alter(Some(4), some([])), Ok(Vec::new()));
        assert!(alter(None, some([("segment.bytes", Some("1048576"))])).is_ok());
    }

    #[test]
    fn only_keys_that_differ_are_changed() {
        let mut world = World::with_nodes(3);
        world.commit(
            create(world.image(), "a", topic_id(1), None, None, &keys([("retention.ms", "5")]), LIMIT).unwrap(),
        );
        let asked = some([("retention.ms", Some("5")), ("segment.ms", None)]);
        assert_eq!(alter(world.image(), "a", None, &asked, LIMIT), Ok(Vec::new()));
        let asked = some([("retention.ms", None), ("segment.ms", Some("7"))]);
        world.commit(alter(world.image(), "a", None, &asked, LIMIT).unwrap());
        assert_eq!(world.image().topic("a").unwrap().config, keys([("segment.ms", "7")]));
        let asked = some([("retention", None)]);
        assert!(matches!(alter(world.image(), "a", None, &asked, LIMIT), Err(TopicError::Config(_))));
        let asked = some([("min.insync.replicas", Some("4"))]);
        assert!(matches!(alter(world.image(), "a", None, &asked, LIMIT), Err(TopicError::Config(_))));
    }

    #[test]
    fn leaders_and_in_sync_replicas_are_no_change_of_the_topic() {
        let mut world = World::with_nodes(3);
        world.commit(made(&world, None, None).unwrap());
        let before = world.image().topic("a").unwrap().changed;
        world.fence([0, 1]);
        world.unfence([0, 1]);
        assert_eq!(world.image().topic("a").unwrap().changed, before);
    }

    #[test]
    fn to_allow_unclean_elections_elects_where_one_was_missing() {
        let mut world = World::with_nodes(2);
        world.topic(0, [0, 1]);
        world.shrink(0, [0]);
        world.fence([0]);
        let asked = some([(config::UNCLEAN_ELECTION, Some("true"))]);
        world.commit(alter(world.image(), "t0", None, &asked, LIMIT).unwrap());
        assert_eq!(world.standing(0), (Some(1), vec![1]));
    }

    #[test]
    fn a_deleted_topic_is_unknown_and_counts_for_nobody() {
        let mut world = World::with_nodes(3);
        world.commit(made(&world, Some(4), None).unwrap());
        world.commit(delete(world.image(), "a").unwrap());
        let unknown = |name: &str| Err(TopicError::Unknown { name: name.into() });
        assert_eq!(delete(world.image(), "a"), unknown("a"));
        assert_eq!(alter(world.image(), "a", None, &BTreeMap::new(), LIMIT), unknown("a"));
        assert!(matches!(delete(world.image(), ""), Err(TopicError::Name(TopicNameError::Empty))));
        assert!(world.image().storage.values().all(|node| (node.leaders, node.replicas) == (0, 0)));
        world.commit(made(&world, None, None).unwrap());
    }
}
