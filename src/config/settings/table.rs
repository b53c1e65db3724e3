//! The one list of what can be set, with its range, default and meaning.

use super::NatsSettings;

/// One row of the documentation's table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SettingDoc {
    pub key: &'static str,
    pub env: String,
    pub default: &'static str,
    pub meaning: &'static str,
}

#[derive(Clone, Copy)]
pub(super) enum Kind {
    Number { min: u64, max: u64 },
    Text,
    OneOf(&'static [&'static str]),
}

pub(super) struct Spec {
    pub(super) key: &'static str,
    pub(super) kind: Kind,
    /// Empty where there is none.
    pub(super) default: &'static str,
    pub(super) meaning: &'static str,
}

const fn number(key: &'static str, range: (u64, u64), default: &'static str, meaning: &'static str) -> Spec {
    Spec { key, kind: Kind::Number { min: range.0, max: range.1 }, default, meaning }
}

const fn text(key: &'static str, default: &'static str, meaning: &'static str) -> Spec {
    Spec { key, kind: Kind::Text, default, meaning }
}

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

pub(super) const SPECS: &[Spec] = &[
    text("services", "", "services.json: who is there, on which subjects, paired with whom"),
    number("heartbeat_interval_ms", (50, MINUTE), "500", "how often a storage node sends a heartbeat"),
    number(
        "session_timeout_ms",
        (150, 10 * MINUTE),
        "3000",
        "after how long a silence a storage node is fenced; at least three heartbeats",
    ),
    number("lease_ms", (1000, MINUTE), "2000", "how long the controllers' lease lasts without a renewal"),
    number("admin_wait_ms", (0, MINUTE), "5000", "how long an admin answer waits for the storage nodes"),
    number("drain_timeout_ms", (0, 10 * MINUTE), "5000", "how long a stopping node tries to hand over its leadership"),
    number("push_retry_min_ms", (1, MINUTE), "50", "the first wait before an unanswered push is repeated"),
    number("push_retry_max_ms", (1, HOUR), "5000", "the longest wait before an unanswered push is repeated"),
    number(
        "push_max_bytes",
        (4096, 64 << 20),
        "524288",
        "the most bytes of changes in one push, but for a larger one alone",
    ),
    number(
        "snapshot_every_entries",
        (1, 100_000_000),
        "10000",
        "after how many entries of the history a snapshot is taken",
    ),
    number(
        "snapshot_every_bytes",
        (4096, 1 << 40),
        "67108864",
        "after how many bytes of the history a snapshot is taken",
    ),
    number(
        "history_probe_ms",
        (50, MINUTE),
        "1000",
        "how often the active controller checks that the history is still there",
    ),
    number(
        "leader_balance_interval_ms",
        (0, 24 * HOUR),
        "10000",
        "how often leaderships go back to the preferred replicas that are in sync; 0 is never",
    ),
    number(
        "stream_replicas",
        (0, 5),
        "0",
        "copies of the metadata history in NATS: 1, 3 or 5; 0 is 3 where NATS is a cluster of three, else 1",
    ),
    number("start_timeout_ms", (100, 10 * MINUTE), "10000", "after how long without a usable NATS the start gives up"),
    number(
        "catch_up_bytes_per_second",
        (0, 1 << 40),
        "0",
        "the most that a storage node sends to replicas that are not in sync, all together; 0 is without limit",
    ),
    number(
        "page_cache_bytes",
        (0, 1 << 50),
        "0",
        "how much of the records that it wrote last a storage node leaves in the page cache (on Linux); 0 is as much as there is memory",
    ),
    number(
        "stray_retention_ms",
        (0, 100 * 365 * 24 * HOUR),
        "604800000",
        "how long a storage node keeps the records of topics that it no longer finds in the metadata",
    ),
    text(
        "log_level",
        "info",
        "off, error, warn, info, debug or trace; also for parts, as in `info,dmq::controller=debug`",
    ),
    Spec {
        key: "log_format",
        kind: Kind::OneOf(&["text", "json"]),
        default: "text",
        meaning: "lines for people (text) or for machines (json)",
    },
    text("nats.url", NatsSettings::DEFAULT_URL, "NATS servers, separated by commas"),
    text("nats.context", "", "a context of the nats command line; the selected one where no URL is set"),
    text("nats.creds", "", "a credentials file"),
    text("nats.nkey", "", "a file with an nkey's seed"),
    text("nats.user", "", "a user's name"),
    text("nats.password", "", "the user's password"),
    text("nats.token", "", "a token"),
    text("nats.ca", "", "a file with the certificates of the authority that signed the servers' (PEM)"),
    text("nats.cert", "", "a file with the client's certificate (PEM)"),
    text("nats.key", "", "a file with the client certificate's key (PEM)"),
    text("nats.inbox_prefix", "", "what the subjects of answers start with, `_INBOX` where it is not set"),
    number(
        "nats.ping_interval_ms",
        (100, 10 * MINUTE),
        "2000",
        "how often the connection is checked; it counts as dead after two missed answers",
    ),
    text("nats.system_url", "", "NATS servers for the system account; those of nats.url where it is not set"),
    text("nats.system_user", "", "a user of the system account, to hear of dead nodes at once"),
    text("nats.system_password", "", "the system user's password"),
    text("nats.system_creds", "", "a credentials file of the system account"),
];

pub(super) const PREFIX: &str = "DMQ_";

/// Variables that start with `DMQ_` and are not settings.
pub(super) const NOT_SETTINGS: [&str; 4] = ["DMQ_CONFIG", "DMQ_NATS_PORT", "DMQ_NATS_SERVER", "DMQ_SERVICES_DIR"];
pub(super) const NOT_SETTINGS_PREFIX: &str = "DMQ_TEST_";

/// All settings with their variables, for the documentation.
pub fn table() -> Vec<SettingDoc> {
    let doc = |spec: &Spec| SettingDoc {
        key: spec.key,
        env: variable(spec.key),
        default: spec.default,
        meaning: spec.meaning,
    };
    SPECS.iter().map(doc).collect()
}

pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "_").to_uppercase())
}

pub(super) fn spec(key: &str) -> Option<&'static Spec> {
    SPECS.iter().find(|spec| spec.key == key)
}
