//! `dmq topic delete`.

use super::super::terms::TermsArgs;
use super::super::{Outcome, global::GlobalArgs, output::Output, session};
use crate::wire::admin::TopicNamed;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The topic
    name: String,
    #[command(flatten)]
    terms: TermsArgs,
}

pub async fn run(global: &GlobalArgs, args: Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let request = TopicNamed { name: args.name, terms: args.terms.into_terms() };
    let answer = session::open(global).await?.admin.delete_topic(request).await?;
    out.answer(&answer, |answer, _| super::changed("deleted", answer))?;
    Ok(Outcome::Fine)
}
