//! `dmq node drain`.

use super::super::{Outcome, global::GlobalArgs, output::Output, session};
use super::NodeArgs;

pub async fn run(global: &GlobalArgs, args: NodeArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let answer = session::open(global).await?.admin.drain_node(args.into_request()).await?;
    out.answer(&answer, |answer, _| super::changed("drains as decided", answer))?;
    Ok(Outcome::Fine)
}
