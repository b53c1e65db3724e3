//! `dmq metadata log`: the history as its stream has it, from NATS itself, so that it can be read without a controller.

use async_nats::Client;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::super::{Outcome, global::GlobalArgs, output::Output, process, session};
use crate::bus::log::{FollowEvent, History, HistoryConfig, follow};
use crate::metadata::{ParsedEntry, Record};

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
    let mut next = args.from.unwrap_or(head.first).max(head.first);
    while next <= head.last && !out.is_closed() {
        let some = history.read_range(next, head.last, PIECE_BYTES).await?;
        let Some((last, _)) = some.last() else { break };
        next = last + 1;
        for (version, payload) in &some {
            show(out, *version, payload)?;
        }
    }
    if args.follow {
        // The channel is kept: a reconnect of this short-lived connection is found by the follower's own looks.
        let (_generation, generations) = watch::channel(0);
        let mut events = follow(history, next, generations, 1024);
        while let Some(event) = events.recv().await {
            match event {
                FollowEvent::Entry { sequence, payload } => show(out, sequence, &payload)?,
                FollowEvent::Purged { first_available } => {
                    out.line(&format!("(purged: goes on at version {first_available})"))?;
                }
                FollowEvent::Lost { .. } => {
                    anyhow::bail!("the history's stream is gone, or ends before what was shown")
                }
            }
            if out.is_closed() {
                break;
            }
        }
    }
    Ok(Outcome::Fine)
}

fn history(client: Client, subject: String) -> History {
    History::new(client, HistoryConfig { subject, ..HistoryConfig::default() })
}

fn show(out: &mut Output, version: u64, payload: &Bytes) -> anyhow::Result<()> {
    let Some(entry) = ParsedEntry::parse(payload) else {
        return if out.is_json() {
            out.line(&json!({"version": version, "void": true}).to_string())
        } else {
            out.line(&format!("{version:>10}  void: not an entry of ours"))
        };
    };
    if out.is_json() {
        let entry: Value = serde_json::from_slice(payload)?;
        return out.line(&json!({"version": version, "entry": entry}).to_string());
    }
    let kinds = entry.records().map(|records| kinds(&records)).unwrap_or_else(|error| format!("unreadable: {error}"));
    out.line(&format!("{version:>10}  {}  e{}  {}  [{kinds}]", entry.committed_at, entry.controller_epoch, entry.cause))
}

/// The kinds of records with how many there are of each, in their order.
fn kinds(records: &[Record]) -> String {
    let mut counted: Vec<(String, usize)> = Vec::new();
    for record in records {
        let kind = serde_json::to_value(record).ok().and_then(|value| Some(value.get("type")?.as_str()?.to_owned()));
        let kind = kind.unwrap_or_default();
        match counted.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => counted.push((kind, 1)),
        }
    }
    let shown = |(kind, count): &(String, usize)| if *count == 1 { kind.clone() } else { format!("{kind}×{count}") };
    counted.iter().map(shown).collect::<Vec<_>>().join(" ")
}
