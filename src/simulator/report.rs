//! What a run leaves behind: how often each kind of thing happened, and, where it is repeated, its last events in words.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;

use super::queue::{SECOND, Time};
use crate::metadata::ParsedEntry;

const KEPT: usize = 40;

pub struct Journal {
    on: bool,
    lines: VecDeque<String>,
}

impl Journal {
    pub fn new(on: bool) -> Self {
        Self { on, lines: VecDeque::new() }
    }

    pub fn note(&mut self, now: Time, words: impl FnOnce() -> String) {
        if !self.on {
            return;
        }
        let line = format!("{:>4}.{:06} {}", now / SECOND, now % SECOND, words());
        if std::env::var_os("SIMULATOR_JOURNAL").is_some() {
            eprintln!("{line}");
        }
        self.lines.push_back(line);
        if self.lines.len() > KEPT {
            self.lines.pop_front();
        }
    }

    pub fn text(&self) -> String {
        self.lines.iter().fold(String::new(), |mut text, line| {
            let _ = writeln!(text, "{line}");
            text
        })
    }
}

/// How often what happened.
#[derive(Default, Clone, Debug)]
pub struct Seen {
    pub faults: BTreeMap<&'static str, u64>,
    pub events: BTreeMap<&'static str, u64>,
}

impl Seen {
    pub fn fault(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }

    pub fn event(&mut self, kind: &'static str) {
        *self.events.entry(kind).or_default() += 1;
    }

    pub fn add(&mut self, other: &Self) {
        for (kind, count) in &other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        for (kind, count) in &other.events {
            *self.events.entry(kind).or_default() += count;
        }
    }

    /// What a core says of itself is the surest sign that it came there.
    pub fn words(&mut self, words: &str) {
        const SIGNS: &[(&str, &str)] = &[
            ("this controller is active", "takeover"),
            ("no longer active", "resignation"),
            ("trying for the lease", "lease tried for after an advisory"),
            ("is forked", "fork noticed"),
            ("THE METADATA'S HISTORY IS LOST", "lost history noticed"),
            ("the history is whole again", "history whole again"),
            ("drained: others lead", "granted shutdown"),
            ("nobody else can lead", "drain impossible"),
            ("the drain took too long", "drain given up"),
            ("could not be settled in time", "append not settled"),
            ("another live process", "double controller"),
            ("was removed", "node was told that it is removed"),
            ("the disk did not take metadata", "disk full or failing"),
            ("the disk takes no more metadata", "sync failed"),
            ("which is over", "push of an old epoch refused"),
            ("this node is paired with", "push of another pairing refused"),
        ];
        for (sign, kind) in SIGNS {
            if words.contains(sign) {
                self.event(kind);
            }
        }
    }
}

/// An entry of the history in a few words.
pub fn brief(payload: &[u8]) -> String {
    match ParsedEntry::parse(payload) {
        Some(entry) => format!("{} (epoch {}, on {})", entry.cause, entry.controller_epoch, entry.previous.version),
        None => "no entry".into(),
    }
}

/// Every kind of fault.
const FAULTS: &[&str] = &[
    "all but one away while the stream is lost",
    "appends that land late",
    "busy processes",
    "copied disks",
    "cut links",
    "damaged records",
    "delayed and reordered messages",
    "empty disks",
    "ended connections",
    "failed syncs",
    "failed syncs of records",
    "frozen processes",
    "full disks",
    "full disks of records",
    "killed processes",
    "late advisories",
    "lease that two believe to hold",
    "links cut one way",
    "lost append acknowledgements",
    "lost messages",
    "no responders",
    "old disks",
    "power cuts",
    "repeated messages",
    "slow disks",
    "slow stream",
    "strange entries in the stream",
    "strange messages",
    "stream lost its unsynced tail",
    "stream that went back",
    "terminated controllers",
    "terminated nodes",
    "wall clock off by an hour",
    "wiped JetStream, all controllers restarted",
    "wiped stream",
];

/// What the cores have to come through.
const EVENTS: &[&str] = &[
    "acknowledgement refused for want of in-sync replicas",
    "append not settled",
    "append refused for want of in-sync replicas",
    "change of several messages",
    "controller took a snapshot",
    "damage found",
    "damaged replica cut",
    "damaged records deleted",
    "directory of a deleted topic set aside",
    "disk set back that is recognised",
    "disk full or failing",
    "drain",
    "drain given up",
    "drain impossible",
    "fence",
    "fork noticed",
    "gathered metadata for a restore",
    "granted shutdown",
    "halted",
    "history whole again",
    "in-sync replicas grow",
    "in-sync replicas restored from before some left",
    "in-sync replicas shrink",
    "leader changed with records in flight",
    "leaders elected",
    "last in-sync replica kept on a full disk",
    "lease tried for after an advisory",
    "log begun anew behind what was deleted",
    "log cut off",
    "lost history noticed",
    "node removed",
    "node replaced",
    "node took a snapshot",
    "node was told that it is removed",
    "old records deleted",
    "pairing",
    "partition waits for a lost directory",
    "partitions changed alike",
    "push applied",
    "push of an old epoch refused",
    "push of another pairing refused",
    "record acknowledged",
    "records lost by a restore",
    "records lost by an unclean election",
    "records lost with a disk",
    "replay from a snapshot",
    "replica given up",
    "replica opened again",
    "resignation",
    "restart with metadata",
    "restored history",
    "restored while the newest was away",
    "retried request",
    "retry found to be one",
    "settled append",
    "silent node fenced",
    "snapshot committed",
    "sync failed",
    "takeover",
    "topic altered",
    "topic created",
    "topic deleted",
    "topic made anew",
    "unfence",
    "version conflict",
    "void entry",
];

impl Seen {
    /// What should have happened and never did.
    pub fn missing(&self) -> Vec<&'static str> {
        let faults = FAULTS.iter().filter(|kind| !self.faults.contains_key(**kind));
        faults.chain(EVENTS.iter().filter(|kind| !self.events.contains_key(**kind))).copied().collect()
    }
}
