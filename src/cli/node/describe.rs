//! `dmq node describe`.

use super::super::table::or_dash;
use super::super::{Outcome, global::GlobalArgs, output::Output, session};
use crate::types::StorageId;
use crate::wire::admin::{NodeDescription, NodeNamed, Terms};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The storage node
    id: StorageId,
}

pub async fn run(global: &GlobalArgs, args: Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let request = NodeNamed { id: args.id, terms: Terms::default() };
    let answer = session::open(global).await?.admin.describe_node(request).await?;
    out.answer(&answer, |answer, _| page(answer))?;
    Ok(Outcome::Fine)
}

fn page(node: &NodeDescription) -> String {
    let mut lines = vec![
        ("storage node", node.id.to_string()),
        ("state", node.state.as_str().into()),
        ("version", format!("{}, {} behind", node.version, node.lag)),
        ("leads", format!("{} partitions", node.leader_count)),
        ("follows", format!("{} partitions", node.follower_count)),
        ("paired with", or_dash(node.paired_metadata_service_id)),
        ("rack", or_dash(node.rack.as_ref())),
        ("directory", or_dash(node.directory)),
        ("incarnation", node.incarnation.to_string()),
        ("node epoch", node.node_epoch.to_string()),
        ("heard", super::heard(node.heard_ms_ago)),
        ("disk", node.disk_free_bytes.map_or_else(|| "-".into(), |bytes| format!("{} MB free", bytes / 1_000_000))),
        ("refused", node.refused_messages.map_or_else(|| "-".into(), |count| format!("{count} messages"))),
    ];
    lines.extend(node.directory_errors.iter().map(|error| ("directory fault", error.clone())));
    lines.iter().map(|(name, value)| format!("{name:<16}{value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::NodeState;

    #[test]
    fn a_node_is_a_page_of_names_and_values() {
        let wanted = "\
storage node    3
state           draining
version         120, 0 behind
leads           4 partitions
follows         9 partitions
paired with     0
rack            a
directory       -
incarnation     00000000-0000-0000-0000-000000000000
node epoch      102
heard           210ms ago
disk            5000 MB free
refused         3 messages
";
        assert_eq!(page(&crate::cli::node::tests::node(3, NodeState::Draining)), wanted);
    }
}
