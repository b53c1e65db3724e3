//! `dmq topic …`.

mod alter;
mod create;
mod delete;
mod describe;
mod list;

use clap::Subcommand;

use super::Outcome;
use super::global::GlobalArgs;
use super::output::Output;
use crate::wire::admin::Changed;

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Create a topic
    Create(create::Args),
    /// List the topics
    List(list::Args),
    /// Show a topic's partitions, leaders and replicas
    Describe(describe::Args),
    /// Add partitions to a topic, or change its configuration
    Alter(alter::Args),
    /// Delete a topic and its records
    Delete(delete::Args),
}

impl Command {
    pub async fn run(self, global: &GlobalArgs, out: &mut Output) -> anyhow::Result<Outcome> {
        match self {
            Self::Create(args) => create::run(global, args, out).await,
            Self::List(args) => list::run(global, args, out).await,
            Self::Describe(args) => describe::run(global, args, out).await,
            Self::Alter(args) => alter::run(global, args, out).await,
            Self::Delete(args) => delete::run(global, args, out).await,
        }
    }
}

/// The configuration's keys, for `--help`.
fn keys() -> String {
    let mut text = "Configuration keys (values of KEY=VALUE):\n".to_string();
    for key in crate::metadata::config::KEYS {
        text.push_str(&format!("  {} [default: {}]\n      {}\n", key.name, key.default, key.meaning));
    }
    text
}

/// What became of a change, in a sentence.
fn changed(what: &str, changed: &Changed) -> String {
    let Changed { subject, version, applied, active, unchanged, .. } = changed;
    if *unchanged {
        return format!("topic {subject} is so already: nothing was to be changed at version {version}");
    }
    let mut text = format!("topic {subject} {what} at version {version}; {applied} of {active} active nodes have it");
    if applied < active {
        text.push_str("\nThe others will follow: `dmq cluster status` shows how far each is");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Version;

    #[test]
    fn a_change_says_who_has_it() {
        let mut answer = Changed {
            subject: "orders".into(),
            topic_id: None,
            version: Version(12),
            applied: 3,
            active: 3,
            unchanged: false,
        };
        assert_eq!(changed("created", &answer), "topic orders created at version 12; 3 of 3 active nodes have it");
        answer.applied = 2;
        assert!(changed("created", &answer).contains("will follow"));
        answer.unchanged = true;
        let said = changed("altered", &answer);
        assert_eq!(said, "topic orders is so already: nothing was to be changed at version 12");
    }
}
