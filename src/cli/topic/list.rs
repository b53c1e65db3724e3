//! `dmq topic list`.

use super::super::table::{Column, Table};
use super::super::{Outcome, global::GlobalArgs, output::Output, session};
use crate::wire::admin::TopicList;

#[derive(clap::Args, Debug)]
pub struct Args {}

pub async fn run(global: &GlobalArgs, _args: Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let answer = session::open(global).await?.admin.list_topics().await?;
    out.answer(&answer, table)?;
    Ok(Outcome::Fine)
}

fn table(list: &TopicList, width: usize) -> String {
    if list.topics.is_empty() {
        return "There are no topics: `dmq topic create NAME` makes one\n".into();
    }
    let columns = [
        Column::Text("NAME"),
        Column::Number("PARTITIONS"),
        Column::Number("REPLICAS"),
        Column::Number("LEADERLESS"),
        Column::Number("UNDER-REPLICATED"),
    ];
    let mut table = Table::new(&columns, width);
    for topic in &list.topics {
        let counts = [
            topic.partitions,
            topic.replication_factor,
            topic.leaderless_partitions,
            topic.under_replicated_partitions,
        ];
        table.row(std::iter::once(topic.name.clone()).chain(counts.map(|count| count.to_string())));
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{TopicId, Version};
    use crate::wire::admin::TopicSummary;

    #[test]
    fn topics_stand_one_a_line() {
        let topic = TopicSummary {
            name: "orders".into(),
            topic_id: TopicId(uuid::Uuid::nil()),
            partitions: 12,
            replication_factor: 3,
            leaderless_partitions: 0,
            under_replicated_partitions: 4,
        };
        let wanted = "\
NAME    PARTITIONS  REPLICAS  LEADERLESS  UNDER-REPLICATED
orders          12         3           0                 4
";
        assert_eq!(table(&TopicList { version: Version(7), topics: vec![topic], next: None }, 80), wanted);
        assert!(table(&TopicList { version: Version(7), topics: vec![], next: None }, 80).contains("topic create"));
    }
}
