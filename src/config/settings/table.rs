//! Every setting: its key, its default, what it may be and what it means. The README's table is made from this.

use std::fmt;

/// What a setting may be.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Kind {
    Number {
        default: u64,
        min: u64,
        max: u64,
    },
    Flag {
        default: bool,
    },
    Choice {
        default: &'static str,
        of: &'static [&'static str],
    },
    /// The text that holds where none is given is only shown, for it may depend on more than the settings.
    Text {
        shown: &'static str,
    },
    Secret,
    /// Several, in a TOML list or separated by commas.
    List {
        shown: &'static str,
    },
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number { min, max, .. } => write!(f, "a whole number from {min} to {max}"),
            Self::Flag { .. } => f.write_str("true or false"),
            Self::Choice { of, .. } => write!(f, "one of {}", of.join(", ")),
            Self::Text { .. } | Self::Secret => f.write_str("text"),
            Self::List { .. } => f.write_str("a list of texts"),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Setting {
    pub key: &'static str,
    pub kind: Kind,
    pub unit: &'static str,
    pub meaning: &'static str,
}

/// One row of the settings' table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SettingDoc {
    /// As in the TOML file: `push.retry_min_ms` stands in the group `[push]`.
    pub key: &'static str,
    /// The variable that sets it.
    pub env: String,
    /// What holds where nobody says otherwise.
    pub default: String,
    /// `ms`, `bytes`, …; empty where the value is no quantity.
    pub unit: &'static str,
    /// What it may be.
    pub allowed: String,
    pub meaning: &'static str,
}

/// The settings' table, in the order in which a reader wants them.
pub fn table() -> Vec<SettingDoc> {
    let row = |setting: &Setting| SettingDoc {
        key: setting.key,
        env: variable(setting.key),
        default: match setting.kind {
            Kind::Number { default, .. } => default.to_string(),
            Kind::Flag { default } => default.to_string(),
            Kind::Choice { default, .. } => default.into(),
            Kind::Text { shown } | Kind::List { shown } => shown.into(),
            Kind::Secret => String::new(),
        },
        unit: setting.unit,
        allowed: setting.kind.to_string(),
        meaning: setting.meaning,
    };
    SETTINGS.iter().map(row).collect()
}

/// The variable that sets a key.
pub(super) fn variable(key: &str) -> String {
    format!("DMQ_{}", key.replace('.', "_").to_uppercase())
}

pub(super) fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

const fn number(
    key: &'static str,
    default: u64,
    min: u64,
    max: u64,
    unit: &'static str,
    meaning: &'static str,
) -> Setting {
    Setting { key, kind: Kind::Number { default, min, max }, unit, meaning }
}

const fn millis(key: &'static str, default: u64, min: u64, max: u64, meaning: &'static str) -> Setting {
    number(key, default, min, max, "ms", meaning)
}

const fn text(key: &'static str, shown: &'static str, unit: &'static str, meaning: &'static str) -> Setting {
    Setting { key, kind: Kind::Text { shown }, unit, meaning }
}

const fn secret(key: &'static str, meaning: &'static str) -> Setting {
    Setting { key, kind: Kind::Secret, unit: "", meaning }
}

const HOUR_MS: u64 = 3_600_000;

#[rustfmt::skip]
pub(super) const SETTINGS: &[Setting] = &[
    text("services", "none", "path", "services.json; without one, subjects follow from prefix and ids"),
    text("prefix", "dmq", "subject", "what subjects begin with where no services.json is given"),
    millis("heartbeat_interval_ms", 500, 10, 60_000, "how often a storage node heartbeats"),
    millis("session_timeout_ms", 3_000, 100, HOUR_MS, "a storage node silent for that long is fenced; at least three heartbeat intervals"),
    millis("lease_ms", 2_000, 1_000, 600_000, "how long the active controller stays so without renewing; JetStream serves no shorter ages than 1 s"),
    millis("admin_wait_ms", 5_000, 0, 600_000, "how long an admin answer waits for the storage nodes to have the change on their disks"),
    millis("drain_timeout_ms", 5_000, 0, 600_000, "how long a process that is told to end tries to hand over first"),
    millis("replica_lag_time_max_ms", 10_000, 100, HOUR_MS, "a follower that has not caught up for that long leaves the in-sync replicas"),
    millis("history_probe_ms", 1_000, 50, 60_000, "how often controllers check that the metadata history is still the one they know"),
    millis("start_timeout_ms", 10_000, 100, HOUR_MS, "how long a start waits for NATS and JetStream before it ends with what was wrong"),
    number("stream_replicas", 0, 0, 5, "replicas", "of the metadata history in JetStream; 0: three where the server is clustered, else one"),
    millis("push.retry_min_ms", 50, 1, 60_000, "pause before the first retry of a push; it doubles with each"),
    millis("push.retry_max_ms", 5_000, 1, 600_000, "longest pause between retries of a push"),
    number("push.max_bytes", 524_288, 1_024, 67_108_864, "bytes", "largest push; the server's max_payload bounds it too"),
    number("snapshot.every_entries", 10_000, 1, 1_000_000_000, "entries", "of the history after which the metadata is written as a snapshot"),
    number("snapshot.every_bytes", 67_108_864, 4_096, 1 << 40, "bytes", "of the history after which the metadata is written as a snapshot"),
    text("log.level", "info", "level", "error, warn, info, debug, trace, or by module: info,dmq=debug"),
    Setting { key: "log.format", kind: Kind::Choice { default: "text", of: &["text", "json"] }, unit: "", meaning: "of the log on stderr" },
    Setting { key: "nats.url", kind: Kind::List { shown: "nats://127.0.0.1:4222" }, unit: "URLs", meaning: "the NATS servers, separated by commas or as a list" },
    text("nats.context", "the selected one", "name", "the nats CLI's context to use; the selected one is used only where no URL is given"),
    text("nats.creds", "none", "path", "credentials file (JWT and seed)"),
    text("nats.nkey", "none", "path", "file with an nkey's seed"),
    text("nats.user", "none", "name", "user; wants a password"),
    secret("nats.password", "the user's password"),
    secret("nats.token", "a token instead of a user"),
    text("nats.ca", "the system's", "path", "certificates of the authorities to trust, in PEM"),
    text("nats.cert", "none", "path", "client certificate, in PEM; wants a key"),
    text("nats.key", "none", "path", "the client certificate's key, in PEM"),
    Setting { key: "nats.tls_first", kind: Kind::Flag { default: false }, unit: "", meaning: "TLS before the server's greeting" },
    text("nats.inbox_prefix", "_INBOX", "subject", "what the subjects of answers begin with, so that permissions can name it"),
    millis("nats.ping_interval_ms", 2_000, 100, 600_000, "how often to ask a silent server; two missed answers end the connection"),
    Setting { key: "nats.system_url", kind: Kind::List { shown: "nats.url" }, unit: "URLs", meaning: "the NATS servers for the system account" },
    text("nats.system_user", "none", "name", "the system account's user; with it controllers see a crash within milliseconds"),
    secret("nats.system_password", "the system account's password"),
    text("nats.system_creds", "none", "path", "the system account's credentials file, instead of user and password"),
];
