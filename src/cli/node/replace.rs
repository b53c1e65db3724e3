//! `dmq node replace`.

use super::super::{Outcome, global::GlobalArgs, output::Output, session};
use super::NodeArgs;

pub async fn run(global: &GlobalArgs, args: NodeArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let answer = session::open(global).await?.admin.replace_node(args.into_request()).await?;
    out.answer(&answer, |answer, _| super::changed("replaced", answer))?;
    Ok(Outcome::Fine)
}
