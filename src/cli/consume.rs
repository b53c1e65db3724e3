//! `dmq consume`.

use std::io::Write;
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use futures::{FutureExt, StreamExt, TryStreamExt};
use serde::Serialize;
use tokio::sync::watch;

use super::output::{Output, say};
use super::produce::topic_name;
use super::{Outcome, global::GlobalArgs, session};
use crate::client::{Admin, AutoOffsetReset, ConsumeError, Consumer, ConsumerConfig, ConsumerRecord, Leaders, SeekTo};
use crate::log::TopicPartition;
use crate::types::{Offset, PartitionId, TopicName, WallTime};
use crate::wire::data::{GROUP_MAX_BYTES, JsonRecord, PartitionOffsets};

#[derive(clap::Args, Debug)]
#[command(after_long_help = TEMPLATE)]
pub struct Args {
    /// The topic
    #[arg(value_parser = topic_name)]
    topic: TopicName,
    /// Where to begin: 'beginning', 'end', an offset, a time as 2026-01-31T12:00:00Z, or how long ago, as 90s or 2h [default: where
    /// the group has committed, else the beginning]
    #[arg(long, value_name = "PLACE", value_parser = place)]
    from: Option<SeekTo>,
    /// Read only this partition; may be repeated
    #[arg(long, value_name = "N")]
    partition: Vec<PartitionId>,
    /// Commit for this group how far was read, and begin where it has committed
    #[arg(long, value_name = "NAME", value_parser = group)]
    group: Option<String>,
    /// Go on with what is written later, until interrupted [default: end at the present end]
    #[arg(long)]
    follow: bool,
    /// End after so many records
    #[arg(long, value_name = "N")]
    max_records: Option<u64>,
    /// How a record is written [default: its value and a new line]
    #[arg(long, value_name = "TEMPLATE", value_parser = Template::parse)]
    format: Option<Template>,
}

const TEMPLATE: &str = "In a TEMPLATE, {topic}, {partition}, {offset}, {timestamp} (milliseconds since 1970), {time}, {key}, {value}, \
{headers} and {epoch} stand for what they name, and \\n, \\t, \\\\, {{ and }} for themselves. What is not there is empty. With \
--output json each record is a line of JSON: text where it is UTF-8, base64 where it is not (keyBase64, valueBase64).";

fn group(text: &str) -> Result<String, String> {
    let fits = (1..=GROUP_MAX_BYTES).contains(&text.len());
    if fits { Ok(text.into()) } else { Err(format!("a group's name has 1 to {GROUP_MAX_BYTES} bytes")) }
}

fn place(text: &str) -> Result<SeekTo, String> {
    place_at(text, SystemTime::now())
}

fn place_at(text: &str, now: SystemTime) -> Result<SeekTo, String> {
    let at = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        SeekTo::Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    };
    match text {
        "beginning" => return Ok(SeekTo::Beginning),
        "end" => return Ok(SeekTo::End),
        _ => {}
    }
    if let Some(offset) = text.parse().ok().filter(|offset| *offset >= 0) {
        return Ok(SeekTo::Offset(Offset(offset)));
    }
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Ok(at(time));
    }
    match humantime::parse_duration(text).ok().and_then(|ago| now.checked_sub(ago)) {
        Some(time) => Ok(at(time)),
        None => {
            Err("it is beginning, end, an offset, a time as 2026-01-31T12:00:00Z, or how long ago, as 90s or 2h".into())
        }
    }
}

/// How often a group's offsets are committed meanwhile.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// How much is written at once.
const WRITE_BYTES: usize = 64 << 10;

pub async fn run(global: &GlobalArgs, args: Args, out: &mut Output) -> anyhow::Result<Outcome> {
    anyhow::ensure!(
        args.format.is_none() || !out.is_json(),
        "--format is for text, and --output json writes lines of JSON: leave one of them out"
    );
    let session = session::open(global).await?;
    let config = ConsumerConfig {
        group: args.group.clone(),
        auto_offset_reset: AutoOffsetReset::Earliest,
        api_timeout: session.left,
        ..ConsumerConfig::default()
    };
    let mut consumer = Consumer::new(session.client.clone(), session.services.clone(), config);
    let partitions = wanted(&consumer, &args).await?;
    let leaders = Leaders::new(session.client, session.services).within(session.left);
    // Where the logs begin and end now, asked before anything is read.
    let wanted_offset = matches!(args.from, Some(SeekTo::Offset(_)));
    let stand: Vec<(TopicPartition, PartitionOffsets)> = match args.follow && !wanted_offset {
        true => Vec::new(),
        false => {
            futures::stream::iter(partitions.clone())
                .map(async |partition: TopicPartition| {
                    let stands = leaders.offsets(&partition.topic, partition.partition).await;
                    let stands = stands.with_context(|| format!("find the end of {partition}"))?;
                    anyhow::Ok((partition, stands))
                })
                .buffer_unordered(64)
                .try_collect()
                .await?
        }
    };
    match args.from {
        Some(SeekTo::Offset(from)) => {
            consumer.assign_from(stand.iter().map(|(partition, stands)| (partition.clone(), within(from, stands))));
        }
        Some(from) => consumer.assign_from(partitions.into_iter().map(|partition| (partition, from))),
        None => consumer.assign(partitions).await?,
    }
    for (partition, stands) in stand.into_iter().filter(|_| !args.follow) {
        consumer.stop_at(&partition, stands.high_watermark)?;
    }
    let format = match (&args.format, out.is_json()) {
        (_, true) => Format::Json,
        (Some(template), false) => Format::Template(template.clone()),
        (None, false) => Format::Value,
    };
    let grown = match args.follow && args.partition.is_empty() {
        true => watch_partitions(session.admin.within(LOOK_EVERY), args.topic.clone()),
        false => watch::channel(0).1,
    };
    read(&mut consumer, &args, &format, grown, out).await?;
    Ok(Outcome::Fine)
}

/// How often it is looked whether the topic has more partitions.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How many partitions the topic has, as far as one gets to hear.
fn watch_partitions(admin: Admin, topic: TopicName) -> watch::Receiver<usize> {
    let (sender, receiver) = watch::channel(0);
    tokio::spawn(async move {
        while !sender.is_closed() {
            tokio::time::sleep(LOOK_EVERY).await;
            // Where nobody answers, reading says so.
            if let Ok(topic) = admin.describe_topic(topic.as_str()).await {
                sender.send_if_modified(|count| {
                    std::mem::replace(count, topic.partitions.len()) != topic.partitions.len()
                });
            }
        }
    });
    receiver
}

/// What was added to the topic meanwhile is read from its beginning.
fn read_what_is_new(consumer: &mut Consumer, topic: &TopicName, grown: &mut watch::Receiver<usize>) {
    let count = *grown.borrow_and_update();
    for partition in 0..count as PartitionId {
        let partition = TopicPartition::new(topic.clone(), partition);
        if !consumer.is_assigned(&partition) {
            consumer.add(partition, SeekTo::Beginning);
        }
    }
}

/// Where a log is read from that may not have the offset. That is said.
fn within(wanted: Offset, stands: &PartitionOffsets) -> SeekTo {
    let PartitionOffsets { topic, partition, log_start_offset: start, high_watermark: end, .. } = stands;
    if wanted < *start {
        say(&format!("{topic}-{partition}: there is nothing before offset {start} any more: reading from there"));
        return SeekTo::Offset(*start);
    }
    if wanted > *end {
        say(&format!("{topic}-{partition}: offset {wanted} is beyond the end, which is {end}: reading from there"));
        return SeekTo::Offset(*end);
    }
    SeekTo::Offset(wanted)
}

async fn wanted(consumer: &Consumer, args: &Args) -> anyhow::Result<Vec<TopicPartition>> {
    let mut partitions = consumer.partitions(&args.topic).await?;
    let count = partitions.len();
    if let Some(none) = args.partition.iter().find(|wanted| **wanted as usize >= count) {
        anyhow::bail!("topic {} has {count} partitions, so there is no partition {none}", args.topic);
    }
    partitions.retain(|partition| args.partition.is_empty() || args.partition.contains(&partition.partition));
    Ok(partitions)
}

/// Writes records until they end, or enough were written, or somebody interrupts, or nobody reads any more.
async fn read(
    consumer: &mut Consumer,
    args: &Args,
    format: &Format,
    mut grown: watch::Receiver<usize>,
    out: &mut Output,
) -> anyhow::Result<()> {
    let mut interrupted = pin!(tokio::signal::ctrl_c());
    let (mut waiting, mut count, mut committed) = (Vec::new(), 0, Instant::now());
    let most = args.max_records.unwrap_or(u64::MAX);
    while count < most && !out.is_closed() {
        let record = match consumer.next().now_or_never() {
            Some(record) => record,
            None => {
                // Nothing more for now: what there is, is shown, and what is shown, is committed.
                write(&mut waiting, out)?;
                commit(consumer, args, &mut committed, COMMIT_EVERY, out).await?;
                let commits = async {
                    match &args.group {
                        Some(_) => tokio::time::sleep_until((committed + COMMIT_EVERY).into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    interrupt = &mut interrupted => {
                        interrupt.context("wait for an interrupt")?;
                        break;
                    }
                    Ok(()) = grown.changed() => {
                        read_what_is_new(consumer, &args.topic, &mut grown);
                        continue;
                    }
                    record = consumer.next() => record,
                    () = commits => {
                        commit(consumer, args, &mut committed, Duration::ZERO, out).await?;
                        continue;
                    }
                }
            }
        };
        match record {
            None => break,
            Some(Ok(record)) => {
                format.write(&record, &mut waiting)?;
                count += 1;
            }
            Some(Err(ConsumeError::NoAnswer { partition, after, error })) => {
                say(&format!("{partition}: nothing could be fetched for {after:?}, trying again: {error}"));
            }
            Some(Err(error)) => {
                write(&mut waiting, out)?;
                return Err(error.into());
            }
        }
        if waiting.len() >= WRITE_BYTES {
            write(&mut waiting, out)?;
            commit(consumer, args, &mut committed, COMMIT_EVERY, out).await?;
            if grown.has_changed().unwrap_or(false) {
                read_what_is_new(consumer, &args.topic, &mut grown);
            }
            if (&mut interrupted).now_or_never().is_some() {
                break;
            }
        }
    }
    write(&mut waiting, out)?;
    commit(consumer, args, &mut committed, Duration::ZERO, out).await
}

fn write(waiting: &mut Vec<u8>, out: &mut Output) -> anyhow::Result<()> {
    if !waiting.is_empty() {
        out.raw(waiting)?;
        waiting.clear();
    }
    Ok(())
}

/// Commits what was written, unless that was done a moment ago, or nobody has read it.
async fn commit(
    consumer: &mut Consumer,
    args: &Args,
    last: &mut Instant,
    after: Duration,
    out: &Output,
) -> anyhow::Result<()> {
    if args.group.is_some() && !out.is_closed() && last.elapsed() >= after {
        consumer.commit().await?;
        *last = Instant::now();
    }
    Ok(())
}

enum Format {
    Value,
    Json,
    Template(Template),
}

#[derive(Serialize)]
struct Line {
    partition: PartitionId,
    #[serde(flatten)]
    record: JsonRecord,
}

impl Format {
    fn write(&self, record: &ConsumerRecord, out: &mut Vec<u8>) -> anyhow::Result<()> {
        match self {
            Self::Value => {
                out.extend_from_slice(record.value.as_deref().unwrap_or_default());
                out.push(b'\n');
            }
            Self::Json => {
                let headers = record.headers.iter().map(|header| (&header.key[..], header.value.as_deref()));
                let (key, value) = (record.key.as_deref(), record.value.as_deref());
                let json = JsonRecord::new(record.offset, record.timestamp, key, value, headers);
                serde_json::to_writer(&mut *out, &Line { partition: record.partition, record: json })?;
                out.push(b'\n');
            }
            Self::Template(template) => template.write(record, out)?,
        }
        Ok(())
    }
}

/// What a record is written like.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Template(Vec<Part>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Text(String),
    Field(Field),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Field {
    Topic,
    Partition,
    Offset,
    Timestamp,
    Time,
    Key,
    Value,
    Headers,
    Epoch,
}

impl Field {
    const ALL: [(&'static str, Self); 9] = [
        ("topic", Self::Topic),
        ("partition", Self::Partition),
        ("offset", Self::Offset),
        ("timestamp", Self::Timestamp),
        ("time", Self::Time),
        ("key", Self::Key),
        ("value", Self::Value),
        ("headers", Self::Headers),
        ("epoch", Self::Epoch),
    ];
}

impl Template {
    fn parse(text: &str) -> Result<Self, String> {
        let (mut parts, mut literal, mut rest) = (Vec::new(), String::new(), text.chars().peekable());
        while let Some(letter) = rest.next() {
            match (letter, rest.peek()) {
                ('{', Some('{')) | ('}', Some('}')) => {
                    rest.next();
                    literal.push(letter);
                }
                ('\\', Some('n' | 't' | '\\')) => match rest.next() {
                    Some('n') => literal.push('\n'),
                    Some('t') => literal.push('\t'),
                    _ => literal.push('\\'),
                },
                ('\\', _) => return Err("behind a \\ comes n, t or another \\".into()),
                ('}', _) => return Err("a } that stands for itself is written }}".into()),
                ('{', _) => {
                    let mut closed = false;
                    let inside = |letter: &char| {
                        closed = *letter == '}';
                        !closed
                    };
                    let name: String = rest.by_ref().take_while(inside).collect();
                    if !closed {
                        return Err(format!("{{{name} has no }} behind it"));
                    }
                    let found = Field::ALL.into_iter().find(|(known, _)| *known == name);
                    let known = || Field::ALL.map(|(name, _)| name).join(", ");
                    let (_, field) =
                        found.ok_or_else(|| format!("{{{name}}} is nothing of a record; there are {}", known()))?;
                    parts.push(Part::Text(std::mem::take(&mut literal)));
                    parts.push(Part::Field(field));
                }
                _ => literal.push(letter),
            }
        }
        parts.push(Part::Text(literal));
        Ok(Self(parts))
    }

    fn write(&self, record: &ConsumerRecord, out: &mut Vec<u8>) -> std::io::Result<()> {
        for part in &self.0 {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Field(Field::Topic) => write!(out, "{}", record.topic)?,
                Part::Field(Field::Partition) => write!(out, "{}", record.partition)?,
                Part::Field(Field::Offset) => write!(out, "{}", record.offset)?,
                Part::Field(Field::Timestamp) => write!(out, "{}", record.timestamp)?,
                Part::Field(Field::Time) => {
                    if let Ok(timestamp) = u64::try_from(record.timestamp) {
                        write!(out, "{}", WallTime(timestamp))?;
                    }
                }
                Part::Field(Field::Key) => out.extend_from_slice(record.key.as_deref().unwrap_or_default()),
                Part::Field(Field::Value) => out.extend_from_slice(record.value.as_deref().unwrap_or_default()),
                Part::Field(Field::Headers) => {
                    for (index, header) in record.headers.iter().enumerate() {
                        out.extend_from_slice(if index > 0 { b"," } else { b"" });
                        out.extend_from_slice(&header.key);
                        out.push(b'=');
                        out.extend_from_slice(header.value.as_deref().unwrap_or_default());
                    }
                }
                Part::Field(Field::Epoch) => {
                    if let Some(epoch) = record.leader_epoch {
                        write!(out, "{epoch}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::log::batch::Header;
    use crate::types::LeaderEpoch;

    fn record() -> ConsumerRecord {
        ConsumerRecord {
            topic: TopicName::new("orders").unwrap(),
            partition: 2,
            offset: Offset(7),
            timestamp: 1_700_000_000_000,
            key: None,
            value: Some(Bytes::from_static(b"\xff{}")),
            headers: vec![Header { key: Bytes::from_static(b"a"), value: Some(Bytes::from_static(b"1")) }],
            leader_epoch: Some(LeaderEpoch(3)),
        }
    }

    #[test]
    fn a_template_writes_what_it_names() {
        let template = r"{{{topic}}} {partition}@{offset} e{epoch}\t{time} [{key}] {headers} {value}\n";
        let mut out = Vec::new();
        Template::parse(template).unwrap().write(&record(), &mut out).unwrap();
        let wanted = b"{orders} 2@7 e3\t2023-11-14T22:13:20.000Z [] a=1 \xff{}\n";
        assert_eq!(out, wanted, "{}", String::from_utf8_lossy(&out));
        assert!(Template::parse("{partition} {ofset}").unwrap_err().contains("offset"));
        for (template, wanted) in [("{key", "no }"), ("x}", "}}"), (r"\q", "n, t")] {
            assert!(Template::parse(template).unwrap_err().contains(wanted), "{template}");
        }
    }

    #[test]
    fn a_record_as_json_is_text_only_where_it_can_be() {
        let mut out = Vec::new();
        Format::Json.write(&record(), &mut out).unwrap();
        let line = r#"{"partition":2,"offset":7,"timestamp":1700000000000,"headers":[{"name":"a","value":"1"}],"valueBase64":"/3t9"}"#;
        assert_eq!(String::from_utf8(out).unwrap(), format!("{line}\n"));
    }

    #[test]
    fn a_place_is_an_offset_a_time_or_how_long_ago() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let place = |text| place_at(text, now).unwrap();
        assert_eq!(place("beginning"), SeekTo::Beginning);
        assert_eq!(place("end"), SeekTo::End);
        assert_eq!(place("42"), SeekTo::Offset(Offset(42)));
        assert_eq!(place("2h"), SeekTo::Timestamp(1_699_992_800_000));
        assert_eq!(place("2023-11-14T22:13:20Z"), SeekTo::Timestamp(1_700_000_000_000));
        assert_eq!(place("2023-11-14 22:13:20"), SeekTo::Timestamp(1_700_000_000_000));
        assert!(place_at("-1", now).is_err() && place_at("yesterday", now).is_err());
    }
}
