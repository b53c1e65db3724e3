//! What must hold of every image, whatever the order of changes that led to it. For tests and the simulator; it mends nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::image::{Image, MAX_PARTITIONS, MAX_REPLICAS, NodeState, Partition, Topic};
use crate::types::{PartitionId, StorageId};

/// What is wrong with the image, in words.
pub fn check(image: &Image) -> Result<(), String> {
    let mut counts: BTreeMap<StorageId, (u32, u32)> = BTreeMap::new();
    for (id, topic) in &image.topics {
        if topic.id != *id || image.names.get(&topic.name) != Some(id) {
            return Err(format!("topic {} is not where its name and id say", topic.name));
        }
        check_topic(image, topic, &mut counts)?;
    }
    if image.names.len() != image.topics.len() {
        return Err(format!("{} names for {} topics", image.names.len(), image.topics.len()));
    }
    check_nodes(image, &counts)?;
    let order: BTreeSet<_> = image.request_order.iter().collect();
    if order.len() != image.request_order.len() || !order.into_iter().eq(image.requests.keys()) {
        return Err("the requests and their order differ".into());
    }
    Ok(())
}

fn check_topic(image: &Image, topic: &Topic, counts: &mut BTreeMap<StorageId, (u32, u32)>) -> Result<(), String> {
    if topic.partitions.is_empty() || topic.partitions.len() > MAX_PARTITIONS as usize {
        return Err(format!("topic {} has {} partitions", topic.name, topic.partitions.len()));
    }
    if topic.changed < topic.created {
        return Err(format!("topic {} was changed at {} before it was created", topic.name, topic.changed));
    }
    for (number, partition) in (0..).zip(topic.partitions.iter()) {
        check_partition(image, topic, number, partition)
            .map_err(|wrong| format!("partition {number} of topic {}: {wrong}", topic.name))?;
        for replica in &partition.replicas {
            counts.entry(*replica).or_default().1 += 1;
        }
        if let Some(leader) = partition.leader {
            counts.entry(leader).or_default().0 += 1;
        }
    }
    if let Some(beyond) = topic.recovering.iter().find(|number| **number as usize >= topic.partitions.len()) {
        return Err(format!("partition {beyond} of topic {} recovers but does not exist", topic.name));
    }
    match topic.waits_for.keys().find(|number| **number as usize >= topic.partitions.len()) {
        Some(beyond) => Err(format!("partition {beyond} of topic {} waits but does not exist", topic.name)),
        None => Ok(()),
    }
}

fn check_partition(image: &Image, topic: &Topic, number: PartitionId, partition: &Partition) -> Result<(), String> {
    let replicas: BTreeSet<_> = partition.replicas.iter().collect();
    if replicas.len() != partition.replicas.len() || !(1..=MAX_REPLICAS).contains(&replicas.len()) {
        return Err(format!("its replicas are {:?}", partition.replicas));
    }
    if let Some(unknown) = replicas.iter().find(|replica| !image.storage.contains_key(replica)) {
        return Err(format!("its replica {unknown} is no node"));
    }
    if partition.isr_len() == 0 || partition.isr().count() != partition.isr_len() {
        return Err("its in-sync replicas are none, or not among its replicas".into());
    }
    if topic.recovering.contains(&number) && partition.isr_len() != 1 {
        return Err("it recovers from an unclean election, and others than its leader are in sync".into());
    }
    if let Some(leader) = partition.leader {
        if !partition.in_sync(leader) {
            return Err(format!("its leader {leader} is not in sync"));
        }
        if !image.storage.get(&leader).is_some_and(|node| node.state.serves()) {
            return Err(format!("its leader {leader} is fenced or removed"));
        }
        if topic.waits_for.contains_key(&number) {
            return Err(format!("it waits for a directory although {leader} leads it"));
        }
    }
    Ok(())
}

fn check_nodes(image: &Image, counts: &BTreeMap<StorageId, (u32, u32)>) -> Result<(), String> {
    let mut directories = BTreeSet::new();
    for (id, node) in &image.storage {
        let (leaders, replicas) = counts.get(id).copied().unwrap_or_default();
        if (node.leaders, node.replicas) != (leaders, replicas) {
            let said = (node.leaders, node.replicas);
            return Err(format!("node {id} leads {leaders} of {replicas}, but its counts say {said:?}"));
        }
        if node.state == NodeState::Removed && replicas > 0 {
            return Err(format!("node {id} is removed and holds {replicas} replicas"));
        }
        if node.state.serves() && node.directory.is_none() {
            return Err(format!("node {id} is {} without a directory", node.state.as_str()));
        }
        if node.directory.is_some_and(|directory| !directories.insert(directory)) {
            return Err(format!("node {id} shares its directory with another"));
        }
        if id.0 >= image.next_storage {
            return Err(format!("node {id} is not below the next id, {}", image.next_storage));
        }
    }
    Ok(())
}
