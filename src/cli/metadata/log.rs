//! `dmq metadata log`: the history as its stream has it, from NATS itself, so that it can be read without a controller.

use async_nats::Client;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::super::{Outcome, global::GlobalArgs, output::Output, process, session, table};
use super::brief;
use super::judge::Judge;
use crate::bus::log::{FollowEvent, History, HistoryConfig, follow};
use crate::types::Version;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Go on with every change that comes, until stopped
    #[arg(long)]
    pub follow: bool,
    /// Begin with this version, not with the first that the stream still has
    #[arg(long, value_name = "VERSION")]
    from: Option<u64>,
}

const PIECE_BYTES: usize = 1 << 20;

pub async fn run(global: &GlobalArgs, args: &Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let client = session::open(global).await?.client;
    let named = process::services_now(&process::settings(global)?)?;
    let history = history(client, named.log_subject());
    let Some(head) = history.head().await? else {
        anyhow::bail!(
            "there is no history on this NATS: no controller has founded a cluster here, or its stream was lost"
        );
    };
    let mut show = Show { judge: Judge::default(), from: Version(args.from.unwrap_or(0)) };
    if !out.is_json() {
        out.line("   VERSION  TIME                      EPOCH  CAUSE [RECORDS]")?;
    }
    // What precedes the first version asked for is read as well: it tells which entries are void.
    let mut next = head.first;
    while next <= head.last && !out.is_closed() {
        let some = history.read_range(next, head.last, PIECE_BYTES).await?;
        let Some((last, _)) = some.last() else { break };
        next = last + 1;
        for (version, payload) in &some {
            show.entry(out, *version, payload)?;
        }
    }
    if args.follow && !out.is_closed() {
        show.follow(history, next, out).await?;
    }
    Ok(Outcome::Fine)
}

fn history(client: Client, subject: String) -> History {
    History::new(client, HistoryConfig { subject, ..HistoryConfig::default() })
}

struct Show {
    judge: Judge,
    from: Version,
}

impl Show {
    async fn follow(&mut self, history: History, next: u64, out: &mut Output) -> anyhow::Result<()> {
        // The channel is kept: a reconnect is found by the follower's own looks.
        let (_generation, generations) = watch::channel(0);
        let mut events = follow(history, next, generations, 1024);
        while let Some(event) = events.recv().await {
            match event {
                FollowEvent::Entry { sequence, payload } => self.entry(out, sequence, &payload)?,
                FollowEvent::Purged { first_available } => {
                    self.judge = Judge::default();
                    let text = format!("(purged: goes on at version {first_available})");
                    out.line(&if out.is_json() { json!({"purgedTo": first_available}).to_string() } else { text })?;
                }
                FollowEvent::Lost { .. } => anyhow::bail!(
                    "the history's stream is gone, or ends before what was shown; `dmq cluster status` says what the \
                     controllers make of it"
                ),
            }
            if out.is_closed() {
                break;
            }
        }
        Ok(())
    }

    fn entry(&mut self, out: &mut Output, version: u64, payload: &Bytes) -> anyhow::Result<()> {
        let judged = self.judge.judge(Version(version), payload);
        if Version(version) < self.from {
            return Ok(());
        }
        let line = match judged {
            Err(why) if out.is_json() => json!({"version": version, "void": why}).to_string(),
            Err(why) => format!("{version:>10}  VOID: {why}"),
            Ok(_) if out.is_json() => {
                let entry: Value = serde_json::from_slice(payload)?;
                json!({"version": version, "void": null, "entry": entry}).to_string()
            }
            Ok(entry) => {
                let records = entry.records();
                let records = records.map_or_else(|error| format!("unreadable: {error}"), |r| brief::records(&r));
                let part = match entry.part {
                    Some(part) if part.last => format!(" (last part, {})", part.number + 1),
                    Some(part) => format!(" (part {})", part.number + 1),
                    None => String::new(),
                };
                let (time, epoch, cause) = (entry.committed_at, entry.controller_epoch.0, entry.cause);
                format!("{version:>10}  {time}  {epoch:>5}  {cause}{part} [{records}]")
            }
        };
        let width = if out.is_json() { usize::MAX } else { out.width() };
        out.line(&table::cut(&line, width))
    }
}
