//! Snapshots: an image as lines of JSON, the same bytes for the same image everywhere.
//!
//! The first line is the header, the last one counts the lines between. Written and read as a stream, a topic's partitions
//! in lines of at most 10,000, so that a million of them need no buffer of their size.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, BufRead, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::image::{ElectedController, Image, NodeState, Partition, RequestOutcome, StorageNode, Topic};
use super::partitions::Partitions;
use super::record::SnapshotRef;
use crate::types::{
    ClusterId, ControllerEpoch, ControllerId, DirectoryId, IncarnationId, LeaderEpoch, NodeEpoch, PairingEpoch,
    PartitionEpoch, PartitionId, Position, RequestId, StorageId, TopicId, TopicName, Version,
};

const SNAPSHOT_TYPE: &str = "dmq.snapshot.v1";
const PARTITIONS_PER_LINE: usize = 10_000;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("cannot read or write the snapshot: {0}")]
    Io(#[from] io::Error),
    #[error("line {line} of the snapshot: {detail}")]
    Malformed { line: u64, detail: String },
    #[error("the snapshot has type {0}, which this program cannot read: run the version of dmq that wrote it")]
    UnknownType(String),
    #[error("the snapshot ends before its last line")]
    Truncated,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    r#type: String,
    cluster: ClusterId,
    position: Position,
    controller: Option<ControllerLine>,
    next_storage: u32,
    topics_created: u64,
    snapshot: Option<SnapshotRef>,
    restored_from: Option<Position>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ControllerLine {
    id: ControllerId,
    directory: DirectoryId,
    incarnation: IncarnationId,
    epoch: ControllerEpoch,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeLine {
    id: StorageId,
    directory: Option<DirectoryId>,
    incarnation: IncarnationId,
    epoch: NodeEpoch,
    state: NodeState,
    rack: Option<Arc<str>>,
    pairing: Option<ControllerId>,
    pairing_epoch: PairingEpoch,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    served: Option<(DirectoryId, NodeEpoch)>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TopicLine {
    id: TopicId,
    name: TopicName,
    created: Version,
    changed: Version,
    config: BTreeMap<String, String>,
    waits_for: BTreeMap<PartitionId, DirectoryId>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    recovering: BTreeSet<PartitionId>,
}

/// Replicas, in-sync replicas, leader, leader epoch, partition epoch.
type PartitionTuple = (Vec<StorageId>, Vec<StorageId>, Option<StorageId>, LeaderEpoch, PartitionEpoch);

#[derive(Serialize, Deserialize)]
struct PartitionsLine {
    topic: TopicId,
    partitions: Vec<PartitionTuple>,
}

#[derive(Serialize, Deserialize)]
struct RequestLine {
    id: RequestId,
    fingerprint: u64,
    version: Version,
    answer: Arc<str>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Line {
    Node(NodeLine),
    Topic(TopicLine),
    Partitions(PartitionsLine),
    Request(RequestLine),
    End { lines: u64 },
}

/// A line of an image, which becomes bytes only where somebody wants it.
enum Part<'a> {
    Header,
    Node(StorageId, &'a StorageNode),
    Topic(&'a Topic),
    /// So many partitions, from the one with this number on.
    Partitions(&'a Topic, usize, usize),
    Request(&'a RequestId, &'a RequestOutcome),
    /// How many lines there were between this one and the header.
    End(u64),
}

fn parts(image: &Image, partitions_per_line: usize) -> impl Iterator<Item = Part<'_>> {
    let between = move || lines_between(image, partitions_per_line);
    let end = std::iter::once_with(move || Part::End(between().count() as u64));
    std::iter::once(Part::Header).chain(between()).chain(end)
}

fn lines_between(image: &Image, partitions_per_line: usize) -> impl Iterator<Item = Part<'_>> {
    let nodes = image.storage.iter().map(|(id, node)| Part::Node(*id, node));
    let topics = image.topics.values().flat_map(move |topic| {
        let starts = (0..topic.partitions.len()).step_by(partitions_per_line);
        let partitions = starts.map(move |start| Part::Partitions(topic, start, partitions_per_line));
        std::iter::once(Part::Topic(topic)).chain(partitions)
    });
    let requests = image.request_order.iter();
    let requests = requests.filter_map(|id| Some(Part::Request(id, image.requests.get(id)?)));
    nodes.chain(topics).chain(requests)
}

fn write_part(part: &Part<'_>, image: &Image, position: Position, writer: &mut dyn Write) -> Result<(), SnapshotError> {
    let line = match part {
        Part::Header => return write_line(writer, &header(image, position)),
        Part::Node(id, node) => Line::Node(NodeLine {
            id: *id,
            directory: node.directory,
            incarnation: node.incarnation,
            epoch: node.epoch,
            state: node.state,
            rack: node.rack.clone(),
            pairing: node.pairing,
            pairing_epoch: node.pairing_epoch,
            served: node.served,
        }),
        Part::Topic(topic) => Line::Topic(TopicLine {
            id: topic.id,
            name: topic.name.clone(),
            created: topic.created,
            changed: topic.changed,
            config: topic.config.clone(),
            waits_for: topic.waits_for.clone(),
            recovering: topic.recovering.clone(),
        }),
        Part::Partitions(topic, start, count) => {
            let numbers = *start..start.saturating_add(*count);
            let partitions = numbers.map_while(|number| topic.partitions.get(number)).map(to_tuple).collect();
            Line::Partitions(PartitionsLine { topic: topic.id, partitions })
        }
        Part::Request(id, RequestOutcome { fingerprint, version, answer }) => {
            let (id, answer) = ((*id).clone(), answer.clone());
            Line::Request(RequestLine { id, fingerprint: *fingerprint, version: *version, answer })
        }
        Part::End(lines) => Line::End { lines: *lines },
    };
    write_line(writer, &line)
}

fn header(image: &Image, position: Position) -> Header {
    let topics_created = image.topics_created;
    #[cfg(test)]
    let topics_created =
        if crate::simulator::planted(crate::simulator::Bug::ForgetfulSnapshot) { 0 } else { topics_created };
    Header {
        r#type: SNAPSHOT_TYPE.into(),
        cluster: image.cluster,
        position,
        controller: image.controller.as_ref().map(|controller| ControllerLine {
            id: controller.id,
            directory: controller.directory,
            incarnation: controller.incarnation,
            epoch: controller.epoch,
        }),
        next_storage: image.next_storage,
        topics_created,
        snapshot: image.snapshot.clone(),
        restored_from: image.restored_from,
    }
}

/// Writes the image at `position`. The writer should be buffered.
pub fn write_snapshot(image: &Image, position: Position, writer: &mut dyn Write) -> Result<(), SnapshotError> {
    parts(image, PARTITIONS_PER_LINE).try_for_each(|part| write_part(&part, image, position, writer))
}

/// As many lines as fit into `room` bytes with a comma behind each, from the line with this number on, and the number of the
/// first that does not fit. One line at least where there is one. Lines of partitions are shorter here than in a snapshot, so
/// that each fits the smallest message.
pub fn show_lines(
    image: &Image,
    position: Position,
    from: usize,
    room: usize,
) -> Result<(Vec<serde_json::Value>, Option<usize>), SnapshotError> {
    /// Of the widest replicas and ids.
    const PARTITIONS_PER_SHOWN_LINE: usize = 50;
    let (mut lines, mut size) = (Vec::new(), 0);
    for (number, part) in parts(image, PARTITIONS_PER_SHOWN_LINE).enumerate().skip(from) {
        let mut line = Vec::new();
        write_part(&part, image, position, &mut line)?;
        // With the end of the line for the comma.
        size += line.len();
        if size > room && !lines.is_empty() {
            return Ok((lines, Some(number)));
        }
        lines.push(serde_json::from_slice(&line).map_err(io::Error::from)?);
    }
    Ok((lines, None))
}

fn to_tuple(partition: &Partition) -> PartitionTuple {
    let (replicas, isr) = (partition.replicas.to_vec(), partition.isr().collect());
    (replicas, isr, partition.leader, partition.leader_epoch, partition.epoch)
}

fn write_line<T: Serialize>(writer: &mut dyn Write, line: &T) -> Result<(), SnapshotError> {
    serde_json::to_writer(&mut *writer, line).map_err(io::Error::from)?;
    writer.write_all(b"\n")?;
    Ok(())
}

/// Reads a snapshot to its last line; what follows that is left unread.
pub fn read_snapshot(reader: &mut dyn BufRead) -> Result<(Image, Position), SnapshotError> {
    let mut buffer = Vec::new();
    let header: Header = read_line(reader, &mut buffer, 1)?.ok_or(SnapshotError::Truncated)?;
    if header.r#type != SNAPSHOT_TYPE {
        return Err(SnapshotError::UnknownType(header.r#type));
    }
    let mut image = Image::empty(header.cluster);
    image.controller = header.controller.map(|controller| ElectedController {
        id: controller.id,
        directory: controller.directory,
        incarnation: controller.incarnation,
        epoch: controller.epoch,
    });
    image.next_storage = header.next_storage;
    image.topics_created = header.topics_created;
    image.snapshot = header.snapshot;
    image.restored_from = header.restored_from;
    let mut order = VecDeque::new();
    let mut count = 0;
    loop {
        let number = count + 2;
        let malformed = |detail: &str| SnapshotError::Malformed { line: number, detail: detail.into() };
        match read_line(reader, &mut buffer, number)?.ok_or(SnapshotError::Truncated)? {
            Line::Node(line) => {
                image.storage.insert(line.id, to_node(line).1);
            }
            Line::Topic(line) => {
                image.names.insert(line.name.clone(), line.id);
                let topic = Topic {
                    id: line.id,
                    name: line.name,
                    created: line.created,
                    changed: line.changed,
                    config: line.config,
                    partitions: Partitions::default(),
                    waits_for: line.waits_for,
                    recovering: line.recovering,
                };
                image.topics.insert(line.id, Arc::new(topic));
            }
            Line::Partitions(line) => {
                let partitions = line.partitions.iter().map(to_partition).collect::<Option<Vec<_>>>();
                let partitions =
                    partitions.ok_or_else(|| malformed("replicas, in-sync replicas and a leader that don't fit"))?;
                image.count(partitions.iter(), 1);
                let topic = image.topics.get_mut(&line.topic).ok_or_else(|| malformed("an unknown topic"))?;
                Arc::make_mut(topic).partitions.extend(partitions);
            }
            Line::Request(RequestLine { id, fingerprint, version, answer }) => {
                order.push_back(id.clone());
                image.requests.insert(id, RequestOutcome { fingerprint, version, answer });
            }
            Line::End { lines } if lines == count => break,
            Line::End { .. } => return Err(malformed("the count of lines is wrong")),
        }
        count += 1;
    }
    image.request_order = order;
    Ok((image, header.position))
}

fn to_node(line: NodeLine) -> (StorageId, StorageNode) {
    let node = StorageNode {
        directory: line.directory,
        incarnation: line.incarnation,
        epoch: line.epoch,
        state: line.state,
        rack: line.rack,
        pairing: line.pairing,
        pairing_epoch: line.pairing_epoch,
        served: line.served,
        leaders: 0,
        replicas: 0,
    };
    (line.id, node)
}

fn to_partition((replicas, isr, leader, leader_epoch, epoch): &PartitionTuple) -> Option<Partition> {
    let once = replicas.iter().enumerate().all(|(n, node)| !replicas[..n].contains(node));
    if replicas.is_empty() || replicas.len() > super::image::MAX_REPLICAS || !once {
        return None;
    }
    let mut partition = Partition::new(replicas);
    partition.leader = *leader;
    partition.leader_epoch = *leader_epoch;
    partition.epoch = *epoch;
    (partition.set_isr(isr) && leader.is_none_or(|leader| partition.in_sync(leader))).then_some(partition)
}

fn read_line<T: serde::de::DeserializeOwned>(
    reader: &mut dyn BufRead,
    buffer: &mut Vec<u8>,
    line: u64,
) -> Result<Option<T>, SnapshotError> {
    buffer.clear();
    if reader.read_until(b'\n', buffer)? == 0 {
        return Ok(None);
    }
    let malformed = |error: serde_json::Error| SnapshotError::Malformed { line, detail: error.to_string() };
    serde_json::from_slice(buffer).map(Some).map_err(malformed)
}

/// The position that a snapshot's header line names.
pub fn snapshot_base(header: &[u8]) -> Option<Position> {
    serde_json::from_slice::<Header>(header).ok().map(|header| header.position)
}
