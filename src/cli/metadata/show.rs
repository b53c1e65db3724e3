//! `dmq metadata show`: JSON, whatever the format asked for.

use super::super::{Outcome, global::GlobalArgs, output::Output, session};

#[derive(clap::Args, Debug)]
pub struct Args {}

pub async fn run(global: &GlobalArgs, _args: Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let answer = session::open(global).await?.admin.show_metadata().await?;
    out.line(&serde_json::to_string_pretty(&answer)?)?;
    Ok(Outcome::Fine)
}
