//! `dmq metadata restore`: first what would be done, then, with `--yes`, exactly that.

use super::super::{Outcome, global::GlobalArgs, output, output::Output, session};
use crate::wire::admin::RestorePlan;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Do it, rather than only say what would be done
    #[arg(long)]
    yes: bool,
}

pub async fn run(global: &GlobalArgs, args: Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let admin = session::open(global).await?.admin;
    let plan = admin.plan_restore().await?;
    if !args.yes {
        out.answer(&plan, |plan, _| page(plan))?;
        output::say("Nothing was done. `dmq metadata restore --yes` does it");
        return Ok(Outcome::Fine);
    }
    if !out.is_json() {
        out.line(&page(&plan))?;
    }
    let done = admin.restore(&plan).await?;
    out.answer(&done, |done, _| format!("restored: the history begins anew at version {}\n", done.new_version))?;
    Ok(if done.done { Outcome::Fine } else { Outcome::Unsound })
}

fn page(plan: &RestorePlan) -> String {
    let not_heard = if plan.not_heard.is_empty() { "nobody: all were heard".into() } else { plan.not_heard.join(", ") };
    let mut text = format!(
        "cluster      {}\nlost         {}\nsource       version {} (digest {})\nheld by      {}\nnew version  {}\nnot heard    {not_heard}\n",
        plan.cluster_id,
        plan.halted,
        plan.source.version,
        plan.source.digest,
        plan.holders.join(", "),
        plan.new_version,
    );
    if !plan.not_heard.is_empty() {
        text.push_str("What only those who were not heard have would be lost: start them first, if they can be.\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ClusterId, Digest, Position, Version};

    #[test]
    fn a_plan_names_source_holders_and_who_was_not_heard() {
        let plan = RestorePlan {
            cluster_id: ClusterId(uuid::Uuid::nil()),
            halted: "the stream is gone".into(),
            source: Position { version: Version(41), digest: Digest([0xab; 16]) },
            holders: vec!["controller 1".into(), "storage 3".into()],
            new_version: Version(1_000_000_000),
            not_heard: vec!["storage 2".into()],
            done: false,
        };
        let wanted = "\
cluster      00000000-0000-0000-0000-000000000000
lost         the stream is gone
source       version 41 (digest abababababababababababababababab)
held by      controller 1, storage 3
new version  1000000000
not heard    storage 2
What only those who were not heard have would be lost: start them first, if they can be.
";
        assert_eq!(page(&plan), wanted);
    }
}
