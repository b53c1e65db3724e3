//! `dmq log dump FILE…`: segments, indexes, snapshots of producers, checkpoints; dmq's and Kafka's alike.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};

use super::super::output::{self, Output};
use super::super::{Outcome, table};
use super::show;
use crate::disk::RealDisk;
use crate::log::checkpoint;
use crate::log::dump::{self, FileKind, IndexDump, SegmentDump, SegmentItem};
use crate::log::producers::Producers;
use crate::types::WallTime;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Files of a partition's directory: *.log, *.index, *.timeindex, *.snapshot, *-checkpoint, partition.metadata
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Every record of a segment; an index held against the segment beside it
    #[arg(long)]
    deep: bool,
}

pub fn run(args: &Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let mut sound = true;
    for path in &args.files {
        if args.files.len() > 1 && !out.is_json() {
            out.line(&format!("{}:", path.display()))?;
        }
        let kind = FileKind::of(path).with_context(|| {
            format!(
                "{} has no name of a log's file: give a *.log, *.index, *.timeindex, *.snapshot, *-checkpoint or \
                 partition.metadata, under the name that it had in its partition's directory",
                path.display()
            )
        })?;
        sound &= one(kind, path, args.deep, out).with_context(|| format!("read {}", path.display()))?;
    }
    Ok(if sound { Outcome::Fine } else { Outcome::Unsound })
}

/// Whether nothing is wrong with it.
fn one(kind: FileKind, path: &Path, deep: bool, out: &mut Output) -> anyhow::Result<bool> {
    match kind {
        FileKind::Segment => segment(path, deep, out),
        FileKind::OffsetIndex => index(&dump::offset_index(&RealDisk, path, deep)?, out, |base, entry| {
            let offset = base + i64::from(entry.relative_offset);
            let text = format!("offset {offset}  position {}", entry.position);
            (text, json!({"offset": offset, "position": entry.position}))
        }),
        FileKind::TimeIndex => index(&dump::time_index(&RealDisk, path, deep)?, out, |base, entry| {
            let offset = base + i64::from(entry.relative_offset);
            let text = format!("timestamp {}  offset {offset}", show::time(entry.timestamp));
            (text, json!({"timestamp": entry.timestamp, "offset": offset}))
        }),
        FileKind::ProducerSnapshot => snapshot(path, out),
        FileKind::EpochCheckpoint => {
            let epochs = checkpoint::parse_epochs(&text(path)?)?;
            for (epoch, start) in epochs.starts() {
                both(
                    out,
                    || format!("epoch {epoch}  start {start}"),
                    || json!({"epoch": epoch, "startOffset": start}),
                )?;
            }
            Ok(true)
        }
        FileKind::OffsetCheckpoint => {
            for ((topic, partition), offset) in checkpoint::parse_offsets(&text(path)?)? {
                let object = || json!({"topic": topic, "partition": partition, "offset": offset});
                both(out, || format!("{topic} {partition}  offset {offset}"), object)?;
            }
            Ok(true)
        }
        FileKind::PartitionMetadata => {
            let topic = checkpoint::parse_partition_metadata(&text(path)?)?;
            let kafka = checkpoint::uuid_to_base64(topic.0);
            let object = || json!({"topicId": topic, "kafkaTopicId": kafka});
            both(out, || format!("topic id {topic} (Kafka writes {kafka})"), object)?;
            Ok(true)
        }
    }
}

fn text(path: &Path) -> anyhow::Result<String> {
    String::from_utf8(dump::read_small(&RealDisk, path)?).context("it is no text")
}

fn both(out: &mut Output, line: impl FnOnce() -> String, object: impl FnOnce() -> Value) -> anyhow::Result<()> {
    let text = if out.is_json() { object().to_string() } else { line() };
    out.line(&text)
}

fn segment(path: &Path, deep: bool, out: &mut Output) -> anyhow::Result<bool> {
    let items = SegmentDump::open(&RealDisk, path, deep)?;
    let (mut batches, mut records, mut bytes, mut faults) = (0u64, 0u64, 0u64, 0u64);
    let mut ends = None;
    if !out.is_json() {
        out.line(show::HEADING)?;
    }
    let width = out.width();
    for item in items {
        if out.is_closed() {
            break;
        }
        match item? {
            SegmentItem::Batch { position, header, records: found } => {
                batches += 1;
                records += u64::try_from(header.record_count).unwrap_or(0);
                bytes = position + header.size() as u64;
                ends = Some((ends.map_or(header.base_offset, |(first, _)| first), header.last_offset()));
                if out.is_json() {
                    let (object, is_sound) = show::batch_object(position, &header, found);
                    faults += u64::from(!is_sound);
                    out.line(&object.to_string())?;
                    continue;
                }
                out.line(&show::batch_line(position, &header))?;
                match found {
                    None => {}
                    Some(Ok(found)) => {
                        for record in &found {
                            out.line(&table::cut(&show::record_line(record), width))?;
                        }
                    }
                    Some(Err(error)) => {
                        faults += 1;
                        out.line(&format!("  DAMAGED: {error}"))?;
                    }
                }
            }
            SegmentItem::Damage { positions, offsets, what } => {
                faults += 1;
                let size = positions.end - positions.start;
                let line = || format!("{:>10}  DAMAGED: {size} bytes: {what}", positions.start);
                let object = || {
                    json!({"position": positions.start, "size": size, "damaged": what,
                        "fromOffset": offsets.start, "toOffset": offsets.end})
                };
                both(out, line, object)?;
            }
        }
    }
    if !out.is_json() {
        let range = ends.map_or_else(|| "no offsets".into(), |(first, last)| format!("offsets {first} to {last}"));
        out.line(&format!("{batches} batches, {records} records, {range}, {bytes} bytes"))?;
    }
    if faults > 0 {
        output::say(&format!(
            "{} places are damaged. A torn tail is cut off when the node starts; where batches follow a damage, copy the \
             replica anew from another one",
            faults
        ));
    }
    Ok(faults == 0)
}

fn index<E>(dump: &IndexDump<E>, out: &mut Output, show: impl Fn(i64, &E) -> (String, Value)) -> anyhow::Result<bool> {
    for entry in &dump.entries {
        let (line, object) = show(dump.base.0, entry);
        both(out, || line, || object)?;
    }
    for fault in &dump.faults {
        both(out, || format!("DAMAGED: {fault}"), || json!({"damaged": fault}))?;
    }
    if !out.is_json() {
        let room = match dump.preallocated {
            0 => String::new(),
            bytes => format!(", and {bytes} bytes of room for more"),
        };
        out.line(&format!("{} entries{room}", dump.entries.len()))?;
    }
    if !dump.faults.is_empty() {
        output::say("stop the node and delete the index: it is built anew from its segment when the node starts");
    }
    Ok(dump.faults.is_empty())
}

fn snapshot(path: &Path, out: &mut Output) -> anyhow::Result<bool> {
    let producers = Producers::decode(&dump::read_small(&RealDisk, path)?)
        .context("it is damaged: delete it while the node is stopped, and the node reads the batches instead")?;
    let mut all: Vec<_> = producers.iter().collect();
    all.sort_by_key(|(id, _)| *id);
    for (id, state) in all {
        for stored in &state.batches {
            let (epoch, last) = (state.epoch, stored.last_sequence);
            let (base, end) = (stored.base_offset(), stored.last_offset);
            let line = || format!("producer {id}  epoch {epoch}  last sequence {last}  offsets {base} to {end}");
            let object = || {
                json!({"producerId": id, "producerEpoch": epoch, "lastSequence": last, "baseOffset": base,
                    "lastOffset": end, "timestamp": stored.timestamp})
            };
            both(out, line, object)?;
        }
    }
    Ok(true)
}

/// Milliseconds since 1970 as people read them.
pub(super) fn wall_time(timestamp: i64) -> Option<WallTime> {
    u64::try_from(timestamp).ok().map(WallTime)
}
