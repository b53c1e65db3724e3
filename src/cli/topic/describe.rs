//! `dmq topic describe`.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use serde::Serialize;
use tokio::time::Instant;

use super::super::table::{Column, Table, list, or_dash};
use super::super::{Outcome, global::GlobalArgs, output::Output, session};
use crate::client::Leaders;
use crate::types::{Offset, PartitionId, TopicId, TopicName, Version};
use crate::wire::admin::{PartitionDescription, TopicDescription};
use crate::wire::data::PartitionOffsets;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The topic
    name: String,
}

/// For how long leaders are waited for, all of them together. One that says nothing is unknown.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// How many are asked at once.
const AT_ONCE: usize = 256;

/// What the controllers say of a topic, and its leaders of their logs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    name: String,
    topic_id: TopicId,
    version: Version,
    created_version: Version,
    config: BTreeMap<String, String>,
    partitions: Vec<Partition>,
}

#[derive(Serialize)]
struct Partition {
    #[serde(flatten)]
    description: PartitionDescription,
    #[serde(flatten)]
    log: Log,
}

/// Null where the leader says nothing.
#[derive(Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Log {
    log_start_offset: Option<Offset>,
    high_watermark: Option<Offset>,
    log_end_offset: Option<Offset>,
    size_bytes: Option<u64>,
}

impl From<PartitionOffsets> for Log {
    fn from(stands: PartitionOffsets) -> Self {
        Self {
            log_start_offset: Some(stands.log_start_offset),
            high_watermark: Some(stands.high_watermark),
            log_end_offset: Some(stands.log_end_offset),
            size_bytes: Some(stands.size_bytes),
        }
    }
}

impl Described {
    fn new(topic: TopicDescription, logs: &BTreeMap<PartitionId, Log>) -> Self {
        let partition = |description: PartitionDescription| Partition {
            log: logs.get(&description.partition).copied().unwrap_or_default(),
            description,
        };
        Self {
            name: topic.name,
            topic_id: topic.topic_id,
            version: topic.version,
            created_version: topic.created_version,
            config: topic.config,
            partitions: topic.partitions.into_iter().map(partition).collect(),
        }
    }
}

pub async fn run(global: &GlobalArgs, args: Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let session = session::open(global).await?;
    let topic = session.admin.describe_topic(&args.name).await?;
    let patience = PATIENCE.min(session.left);
    let leaders = Leaders::new(session.client, session.services).within(patience);
    let logs = logs(&leaders, &TopicName::new(&topic.name)?, &topic, Instant::now() + patience).await;
    out.answer(&Described::new(topic, &logs), table)?;
    Ok(Outcome::Fine)
}

async fn logs(
    leaders: &Leaders,
    name: &TopicName,
    topic: &TopicDescription,
    deadline: Instant,
) -> BTreeMap<PartitionId, Log> {
    let led = topic.partitions.iter().filter(|partition| partition.leader.is_some());
    let asked = led.map(|partition| partition.partition);
    let mut answers = futures::stream::iter(asked)
        .map(async |partition| (partition, leaders.offsets(name, partition).await))
        .buffer_unordered(AT_ONCE);
    let mut logs = BTreeMap::new();
    while let Ok(Some((partition, answer))) = tokio::time::timeout_at(deadline, answers.next()).await {
        logs.extend(answer.ok().map(|stands| (partition, stands.into())));
    }
    logs
}

fn table(topic: &Described, width: usize) -> String {
    let mut text = format!("topic {}  id {}\n", topic.name, topic.topic_id);
    text.push_str(&format!("created at version {}, shown at version {}\n", topic.created_version, topic.version));
    for (key, value) in &topic.config {
        text.push_str(&format!("{key}={value}\n"));
    }
    text.push('\n');
    let columns = [
        Column::Number("PARTITION"),
        Column::Text("LEADER"),
        Column::Number("EPOCH"),
        Column::Text("REPLICAS"),
        Column::Text("IN SYNC"),
        Column::Number("START"),
        Column::Number("HIGH WATERMARK"),
        Column::Number("END"),
        Column::Number("BYTES"),
    ];
    let mut table = Table::new(&columns, width);
    for Partition { description, log } in &topic.partitions {
        table.row([
            description.partition.to_string(),
            leader(description),
            description.leader_epoch.to_string(),
            list(&description.replicas),
            list(&description.isr),
            or_dash(log.log_start_offset),
            or_dash(log.high_watermark),
            or_dash(log.log_end_offset),
            or_dash(log.size_bytes),
        ]);
    }
    text.push_str(&table.render());
    text
}

fn leader(partition: &PartitionDescription) -> String {
    match partition.leader {
        Some(leader) if partition.recovering => format!("{leader} (recovering)"),
        Some(leader) => leader.to_string(),
        None => "none".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LeaderEpoch, PartitionEpoch, StorageId};

    #[test]
    fn a_partition_without_a_leader_says_none_and_one_that_recovers_says_so() {
        let partition = |partition, leader: Option<u32>| PartitionDescription {
            partition,
            leader: leader.map(StorageId),
            leader_epoch: LeaderEpoch(2),
            partition_epoch: PartitionEpoch(3),
            replicas: [0, 1, 2].map(StorageId).to_vec(),
            isr: vec![StorageId(1)],
            recovering: partition == 2,
        };
        let topic = TopicDescription {
            name: "orders".into(),
            topic_id: TopicId(uuid::Uuid::nil()),
            version: Version(9),
            created_version: Version(5),
            config: BTreeMap::from([("retention.ms".into(), "1000".into())]),
            partitions: vec![partition(0, Some(1)), partition(1, None), partition(2, Some(1))],
            next: None,
        };
        let log = Log {
            log_start_offset: Some(Offset(5)),
            high_watermark: Some(Offset(70)),
            log_end_offset: Some(Offset(72)),
            size_bytes: Some(4_096),
        };
        let described = Described::new(topic, &BTreeMap::from([(0, log)]));
        let wanted = "\
topic orders  id 00000000-0000-0000-0000-000000000000
created at version 5, shown at version 9
retention.ms=1000

PARTITION  LEADER          EPOCH  REPLICAS  IN SYNC  START  HIGH WATERMARK  END  BYTES
        0  1                   2  0,1,2     1            5              70   72   4096
        1  none                2  0,1,2     1            -               -    -      -
        2  1 (recovering)      2  0,1,2     1            -               -    -      -
";
        assert_eq!(table(&described, 120), wanted);
        let json = serde_json::to_value(&described).unwrap();
        assert_eq!(
            (&json["partitions"][0]["highWatermark"], &json["partitions"][0]["leaderEpoch"]),
            (&70.into(), &2.into())
        );
        assert!(json["partitions"][1]["highWatermark"].is_null());
    }
}
