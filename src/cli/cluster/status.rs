//! `dmq cluster status`. Where nobody answers, that is the status.

use super::super::table::{Column, Table};
use super::super::{Outcome, global::GlobalArgs, node, output::Output, report, session};
use crate::types::Version;
use crate::wire::admin::ClusterStatus;

#[derive(clap::Args, Debug)]
pub struct Args {}

pub async fn run(global: &GlobalArgs, _args: Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let status = match ask(global).await {
        Ok(status) => status,
        Err(error) => {
            report(&error);
            unanswered(format!("{error:#}"))
        }
    };
    out.answer(&status, table)?;
    Ok(if status.healthy { Outcome::Fine } else { Outcome::Unsound })
}

async fn ask(global: &GlobalArgs) -> anyhow::Result<ClusterStatus> {
    Ok(session::open(global).await?.admin.cluster_status().await?)
}

/// The status as far as it is known when no controller says it.
fn unanswered(problem: String) -> ClusterStatus {
    ClusterStatus {
        cluster_id: None,
        version: Version::ZERO,
        healthy: false,
        problems: vec![problem],
        controller: None,
        metadata_services: Vec::new(),
        storage_nodes: Vec::new(),
        topics: 0,
        partitions: 0,
        leaderless_partitions: 0,
        under_replicated_partitions: 0,
        recovering_partitions: 0,
        refused_messages: 0,
        next: None,
    }
}

fn table(status: &ClusterStatus, width: usize) -> String {
    let mut text = match status.cluster_id {
        Some(id) => format!("cluster {id} at version {}\n", status.version),
        None => "cluster unknown\n".into(),
    };
    text.push_str(&match status.controller {
        Some(active) => format!("controller {} is active, in epoch {}\n", active.id, active.epoch),
        None if status.cluster_id.is_some() => "no controller is active\n".into(),
        // Nobody has said.
        None => String::new(),
    });
    if status.cluster_id.is_some() {
        let ClusterStatus { topics, partitions, leaderless_partitions, under_replicated_partitions, .. } = status;
        text.push_str(&format!(
            "topics {topics}, partitions {partitions}, leaderless {leaderless_partitions}, under-replicated \
             {under_replicated_partitions}\n"
        ));
    }
    if status.refused_messages > 0 {
        text.push_str(&format!("{} messages were refused since this controller started\n", status.refused_messages));
    }
    if !status.metadata_services.is_empty() {
        let columns = [Column::Number("CONTROLLER"), Column::Text("STATE"), Column::Number("VERSION")];
        let mut table = Table::new(&columns, width);
        for service in &status.metadata_services {
            table.row([service.id.to_string(), service.state.as_str().into(), service.version.to_string()]);
        }
        text.push_str(&format!("\n{}", table.render()));
    }
    if !status.storage_nodes.is_empty() {
        text.push_str(&format!("\n{}", node::table(&status.storage_nodes, width)));
    }
    text.push_str(if status.healthy { "\nhealthy\n" } else { "\nNOT HEALTHY\n" });
    for problem in &status.problems {
        text.push_str(&format!("  {problem}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::node::tests::node;
    use crate::metadata::NodeState;
    use crate::types::{ClusterId, ControllerEpoch, ControllerId};
    use crate::wire::ControllerRole;
    use crate::wire::admin::{ActiveController, MetadataServiceStatus};

    fn status() -> ClusterStatus {
        ClusterStatus {
            cluster_id: Some(ClusterId(uuid::Uuid::nil())),
            version: Version(120),
            healthy: false,
            problems: vec!["storage node 1 is fenced".into()],
            controller: Some(ActiveController { id: ControllerId(0), epoch: ControllerEpoch(101) }),
            metadata_services: vec![MetadataServiceStatus {
                id: ControllerId(0),
                state: ControllerRole::Active,
                version: Version(120),
            }],
            storage_nodes: vec![node(0, NodeState::Active), node(1, NodeState::Fenced)],
            topics: 2,
            partitions: 13,
            leaderless_partitions: 0,
            under_replicated_partitions: 4,
            recovering_partitions: 0,
            refused_messages: 0,
            next: None,
        }
    }

    #[test]
    fn the_status_reads_as_a_page() {
        let wanted = "\
cluster 00000000-0000-0000-0000-000000000000 at version 120
controller 0 is active, in epoch 101
topics 2, partitions 13, leaderless 0, under-replicated 4

CONTROLLER  STATE   VERSION
         0  active      120

NODE  STATE   VERSION  LAG  LEADS  FOLLOWS  PAIRED WITH  RACK  HEARD
   0  active      120    0      4        9  0            a     210ms ago
   1  fenced      120    0      4        9  0            a     210ms ago

NOT HEALTHY
  storage node 1 is fenced
";
        assert_eq!(table(&status(), 80), wanted);
    }

    #[test]
    fn it_fits_a_terminal_whatever_the_numbers() {
        let mut status = status();
        for node in &mut status.storage_nodes {
            node.version = Version(1_000_000_123_456);
            node.rack = Some("a-rack-with-a-name-that-somebody-thought-about-for-long".into());
        }
        let text = table(&status, 80);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn without_an_answer_nothing_is_claimed() {
        let json = serde_json::to_value(unanswered("no controller answers".into())).unwrap();
        assert_eq!((&json["healthy"], &json["controller"]), (&false.into(), &serde_json::Value::Null));
        assert_eq!(json["problems"][0], "no controller answers");
    }
}
