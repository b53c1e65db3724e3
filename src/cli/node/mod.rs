//! `dmq node …`.

mod describe;
mod drain;
mod list;
mod remove;
mod replace;

use std::time::Duration;

use clap::Subcommand;

use super::Outcome;
use super::global::GlobalArgs;
use super::output::Output;
use super::table::{Column, Table, or_dash};
use super::terms::RetryArgs;
use crate::types::StorageId;
use crate::wire::admin::{Changed, NodeDescription, NodeNamed};

#[derive(Subcommand, Debug)]
pub enum Command {
    /// List the storage nodes
    List(list::Args),
    /// Show a storage node
    Describe(describe::Args),
    /// Move a node's leaderships away, and keep new ones from it until its process begins anew
    Drain(NodeArgs),
    /// Give up a node's lost directory, so that its id is free for another one
    Replace(NodeArgs),
    /// Remove a node that holds nothing, for good
    Remove(NodeArgs),
}

/// A node that is to be changed.
#[derive(clap::Args, Debug)]
pub struct NodeArgs {
    /// The storage node
    id: StorageId,
    #[command(flatten)]
    retry: RetryArgs,
}

impl NodeArgs {
    fn into_request(self) -> NodeNamed {
        NodeNamed { id: self.id, terms: self.retry.into_terms() }
    }
}

impl Command {
    pub async fn run(self, global: &GlobalArgs, out: &mut Output) -> anyhow::Result<Outcome> {
        match self {
            Self::List(args) => list::run(global, args, out).await,
            Self::Describe(args) => describe::run(global, args, out).await,
            Self::Drain(args) => drain::run(global, args, out).await,
            Self::Replace(args) => replace::run(global, args, out).await,
            Self::Remove(args) => remove::run(global, args, out).await,
        }
    }
}

/// The nodes, one a line.
pub fn table(nodes: &[NodeDescription], width: usize) -> String {
    let columns = [
        Column::Number("NODE"),
        Column::Text("STATE"),
        Column::Number("VERSION"),
        Column::Number("LAG"),
        Column::Number("LEADS"),
        Column::Number("FOLLOWS"),
        Column::Text("PAIRED WITH"),
        Column::Text("RACK"),
        Column::Text("HEARD"),
    ];
    let mut table = Table::new(&columns, width);
    for node in nodes {
        table.row([
            node.id.to_string(),
            node.state.as_str().into(),
            node.version.to_string(),
            node.lag.to_string(),
            node.leader_count.to_string(),
            node.follower_count.to_string(),
            or_dash(node.paired_metadata_service_id),
            or_dash(node.rack.as_ref()),
            heard(node.heard_ms_ago),
        ]);
    }
    table.render()
}

fn heard(ms_ago: Option<u64>) -> String {
    let Some(ms) = ms_ago else { return "never".into() };
    let span = if ms < 1_000 { Duration::from_millis(ms) } else { Duration::from_secs(ms / 1_000) };
    format!("{} ago", humantime::format_duration(span))
}

/// What became of a change, in a sentence.
fn changed(what: &str, changed: &Changed) -> String {
    let Changed { subject, version, applied, active, unchanged, .. } = changed;
    if *unchanged {
        return format!("storage node {subject} {what} already: nothing was to be changed at version {version}");
    }
    format!("storage node {subject} {what} at version {version}; {applied} of {active} active nodes have it")
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::metadata::NodeState;
    use crate::types::{ControllerId, IncarnationId, NodeEpoch, Version};

    pub fn node(id: u32, state: NodeState) -> NodeDescription {
        NodeDescription {
            id: StorageId(id),
            state,
            version: Version(120),
            lag: 0,
            leader_count: 4,
            follower_count: 9,
            paired_metadata_service_id: Some(ControllerId(0)),
            rack: Some("a".into()),
            directory: None,
            incarnation: IncarnationId(uuid::Uuid::nil()),
            node_epoch: NodeEpoch(102),
            heard_ms_ago: Some(210),
            directory_errors: Vec::new(),
            disk_free_bytes: Some(5_000_000_000),
            refused_messages: Some(3),
        }
    }

    #[test]
    fn when_a_node_was_heard_is_said_in_few_words() {
        assert_eq!(heard(None), "never");
        assert_eq!(heard(Some(0)), "0s ago");
        assert_eq!(heard(Some(61_999)), "1m 1s ago");
    }
}
