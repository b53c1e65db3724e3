//! `dmq topic alter`.

use super::super::terms::{TermsArgs, key_value, unique};
use super::super::{Outcome, global::GlobalArgs, output::Output, session};
use crate::wire::admin::TopicAlter;

#[derive(clap::Args, Debug)]
#[command(after_long_help = super::keys())]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true).args(["partitions", "config", "unset"]))]
pub struct Args {
    /// The topic
    name: String,
    /// How many partitions it shall have: no fewer than now
    #[arg(long, value_name = "N")]
    partitions: Option<u32>,
    /// A configuration key to set; may be repeated. `--help` lists them
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    config: Vec<(String, String)>,
    /// A configuration key to set back to its default; may be repeated
    #[arg(long, value_name = "KEY")]
    unset: Vec<String>,
    #[command(flatten)]
    terms: TermsArgs,
}

pub async fn run(global: &GlobalArgs, args: Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let Args { name, partitions, config, unset, terms } = args;
    let set = config.into_iter().map(|(key, value)| (key, Some(value)));
    let config = unique(set.chain(unset.into_iter().map(|key| (key, None))))?;
    let request = TopicAlter { name, partitions, config, terms: terms.into_terms() };
    let answer = session::open(global).await?.admin.alter_topic(request).await?;
    out.answer(&answer, |answer, _| super::changed("altered", answer))?;
    Ok(Outcome::Fine)
}
