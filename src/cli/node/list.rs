//! `dmq node list`.

use super::super::{Outcome, global::GlobalArgs, output::Output, session};

#[derive(clap::Args, Debug)]
pub struct Args {}

pub async fn run(global: &GlobalArgs, _args: Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let answer = session::open(global).await?.admin.list_nodes().await?;
    out.answer(&answer, |answer, width| {
        if answer.nodes.is_empty() {
            return "There are no storage nodes: `dmq storage --data DIR` starts one\n".into();
        }
        super::table(&answer.nodes, width)
    })?;
    Ok(Outcome::Fine)
}
