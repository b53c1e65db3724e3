//! `dmq topic describe`.

use super::super::table::{Column, Table, list};
use super::super::{Outcome, global::GlobalArgs, output::Output, session};
use crate::wire::admin::{PartitionDescription, TopicDescription};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The topic
    name: String,
}

pub async fn run(global: &GlobalArgs, args: Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let answer = session::open(global).await?.admin.describe_topic(&args.name).await?;
    out.answer(&answer, table)?;
    Ok(Outcome::Fine)
}

fn table(topic: &TopicDescription, width: usize) -> String {
    let mut text = format!("topic {}  id {}\n", topic.name, topic.topic_id);
    text.push_str(&format!("created at version {}, shown at version {}\n", topic.created_version, topic.version));
    for (key, value) in &topic.config {
        text.push_str(&format!("{key}={value}\n"));
    }
    text.push('\n');
    let columns = [
        Column::Number("PARTITION"),
        Column::Text("LEADER"),
        Column::Number("LEADER EPOCH"),
        Column::Text("REPLICAS"),
        Column::Text("IN SYNC"),
    ];
    let mut table = Table::new(&columns, width);
    for partition in &topic.partitions {
        table.row([
            partition.partition.to_string(),
            leader(partition),
            partition.leader_epoch.to_string(),
            list(&partition.replicas),
            list(&partition.isr),
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
    use std::collections::BTreeMap;

    use super::*;
    use crate::types::{LeaderEpoch, PartitionEpoch, StorageId, TopicId, Version};

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
        let wanted = "\
topic orders  id 00000000-0000-0000-0000-000000000000
created at version 5, shown at version 9
retention.ms=1000

PARTITION  LEADER          LEADER EPOCH  REPLICAS  IN SYNC
        0  1                          2  0,1,2     1
        1  none                       2  0,1,2     1
        2  1 (recovering)             2  0,1,2     1
";
        assert_eq!(table(&topic, 80), wanted);
    }
}
