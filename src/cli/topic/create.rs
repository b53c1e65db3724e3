//! `dmq topic create`.

use super::super::terms::{TermsArgs, key_value, unique};
use super::super::{Outcome, global::GlobalArgs, output::Output, session};
use crate::wire::admin::TopicCreate;

#[derive(clap::Args, Debug)]
#[command(after_long_help = super::keys())]
pub struct Args {
    /// 1 to 249 characters of A-Z, a-z, 0-9, '.', '_' and '-'
    name: String,
    /// How many partitions it has [default: 1]
    #[arg(long, value_name = "N")]
    partitions: Option<u32>,
    /// How many nodes hold each partition [default: 3, or as many as there are active nodes]
    #[arg(long, value_name = "N")]
    replication_factor: Option<u32>,
    /// A configuration key, as Kafka names it; may be repeated. `--help` lists them
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(in crate::cli) config: Vec<(String, String)>,
    #[command(flatten)]
    terms: TermsArgs,
}

pub async fn run(global: &GlobalArgs, args: Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let Args { name, partitions, replication_factor, config, terms } = args;
    let config = unique(config)?;
    let request = TopicCreate { name, partitions, replication_factor, config, terms: terms.into_terms() };
    let answer = session::open(global).await?.admin.create_topic(request).await?;
    out.answer(&answer, |answer, _| super::changed("created", answer))?;
    Ok(Outcome::Fine)
}
