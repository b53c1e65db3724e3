//! The settings of a process, in layers: defaults, a TOML file, `DMQ_…` variables, flags. The last one that names a
//! setting wins.
//!
//! [`SPECS`] is the one list of what there is: what a file or a variable may say is checked against it, with all faults
//! at once, and the documentation's table is made of it.

use std::fmt;
use std::path::{Path, PathBuf};

use config::{Config, File, FileFormat, Source, Value, ValueKind};
use serde::Deserialize;

use super::nearest::nearest;

/// What a process is told about itself. A duration's unit is in its name.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    pub services: Option<PathBuf>,
    pub heartbeat_interval_ms: u64,
    pub session_timeout_ms: u64,
    pub lease_ms: u64,
    pub admin_wait_ms: u64,
    pub drain_timeout_ms: u64,
    pub push_retry_min_ms: u64,
    pub push_retry_max_ms: u64,
    pub push_max_bytes: usize,
    pub snapshot_every_entries: u64,
    pub snapshot_every_bytes: u64,
    pub history_probe_ms: u64,
    /// 0: three where NATS is a cluster of at least three, else one.
    pub stream_replicas: usize,
    pub start_timeout_ms: u64,
    pub log_level: String,
    pub log_format: LogFormat,
    pub nats: NatsSettings,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// How to reach NATS. What is not set comes from the `NATS_…` variables or a context of the `nats` command line.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NatsSettings {
    pub url: Option<String>,
    pub context: Option<String>,
    pub creds: Option<PathBuf>,
    pub nkey: Option<PathBuf>,
    pub user: Option<String>,
    pub password: Option<String>,
    pub token: Option<String>,
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub inbox_prefix: Option<String>,
    pub ping_interval_ms: u64,
    pub system_url: Option<String>,
    pub system_user: Option<String>,
    pub system_password: Option<String>,
    pub system_creds: Option<PathBuf>,
}

impl NatsSettings {
    pub const DEFAULT_URL: &str = "nats://127.0.0.1:4222";
}

/// One row of the documentation's table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SettingDoc {
    pub key: &'static str,
    pub env: String,
    pub default: &'static str,
    pub meaning: &'static str,
}

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("cannot read the settings file {}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    /// Every fault of every layer, each naming its setting.
    #[error("{}", listed(.0))]
    Faults(Vec<String>),
}

fn listed(faults: &[String]) -> String {
    match faults {
        [one] => format!("wrong setting: {one}"),
        many => format!("wrong settings:\n  - {}", many.join("\n  - ")),
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Number { min: u64, max: u64 },
    Text,
    OneOf(&'static [&'static str]),
}

struct Spec {
    key: &'static str,
    kind: Kind,
    /// Empty where there is none.
    default: &'static str,
    meaning: &'static str,
}

const fn number(key: &'static str, range: (u64, u64), default: &'static str, meaning: &'static str) -> Spec {
    Spec { key, kind: Kind::Number { min: range.0, max: range.1 }, default, meaning }
}

const fn text(key: &'static str, default: &'static str, meaning: &'static str) -> Spec {
    Spec { key, kind: Kind::Text, default, meaning }
}

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

const SPECS: &[Spec] = &[
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
    number("push_max_bytes", (4096, 64 << 20), "524288", "the most bytes of changes in one push"),
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
        "stream_replicas",
        (0, 5),
        "0",
        "copies of the metadata history in NATS: 1, 3 or 5; 0 is 3 where NATS is a cluster of three, else 1",
    ),
    number("start_timeout_ms", (100, 10 * MINUTE), "10000", "after how long without a usable NATS the start gives up"),
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

const PREFIX: &str = "DMQ_";

/// Variables that start with `DMQ_` and are not settings.
const NOT_SETTINGS: [&str; 4] = ["DMQ_CONFIG", "DMQ_NATS_PORT", "DMQ_NATS_SERVER", "DMQ_SERVICES_DIR"];
const NOT_SETTINGS_PREFIX: &str = "DMQ_TEST_";

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

fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "_").to_uppercase())
}

impl Settings {
    /// Every layer, checked; the faults of all of them at once. `overrides` are pairs of key and value, as in
    /// `nats.url`. An empty variable counts as not set.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        overrides: &[(String, String)],
    ) -> Result<Settings, SettingsError> {
        let mut layers = Layers::default();
        if let Some(path) = file {
            layers.file(path)?;
        }
        layers.variables(env);
        layers.overrides(overrides);
        let settings = layers.settings()?;
        settings.validate()?;
        Ok(settings)
    }

    /// What a single value cannot show: ranges of a whole made by hand, and what settings ask of each other.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let mut faults = self.out_of_range();
        let mut demand = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        let (beat, session) = (self.heartbeat_interval_ms, self.session_timeout_ms);
        demand(
            beat.saturating_mul(3) <= session,
            format!(
                "session_timeout_ms = {session} must be at least three times heartbeat_interval_ms = {beat}: {} or more",
                beat.saturating_mul(3)
            ),
        );
        let (min, max) = (self.push_retry_min_ms, self.push_retry_max_ms);
        demand(min <= max, format!("push_retry_min_ms = {min} must not be above push_retry_max_ms = {max}"));
        demand(
            [0, 1, 3, 5].contains(&self.stream_replicas),
            format!("stream_replicas = {} must be 0, 1, 3 or 5", self.stream_replicas),
        );
        demand(
            is_log_level(&self.log_level),
            format!(
                "log_level = {:?} must be off, error, warn, info, debug or trace, or a list such as info,dmq=debug",
                self.log_level
            ),
        );
        self.nats.demands(&mut demand);
        if faults.is_empty() { Ok(()) } else { Err(SettingsError::Faults(faults)) }
    }

    fn out_of_range(&self) -> Vec<String> {
        let numbers = [
            ("heartbeat_interval_ms", self.heartbeat_interval_ms),
            ("session_timeout_ms", self.session_timeout_ms),
            ("lease_ms", self.lease_ms),
            ("admin_wait_ms", self.admin_wait_ms),
            ("drain_timeout_ms", self.drain_timeout_ms),
            ("push_retry_min_ms", self.push_retry_min_ms),
            ("push_retry_max_ms", self.push_retry_max_ms),
            ("push_max_bytes", self.push_max_bytes as u64),
            ("snapshot_every_entries", self.snapshot_every_entries),
            ("snapshot_every_bytes", self.snapshot_every_bytes),
            ("history_probe_ms", self.history_probe_ms),
            ("start_timeout_ms", self.start_timeout_ms),
            ("nats.ping_interval_ms", self.nats.ping_interval_ms),
        ];
        let fault = |(key, value): (&str, u64)| {
            let Kind::Number { min, max } = spec(key)?.kind else { return None };
            (!(min..=max).contains(&value)).then(|| format!("{key} = {value} must be between {min} and {max}"))
        };
        numbers.into_iter().filter_map(fault).collect()
    }
}

impl NatsSettings {
    fn demands(&self, demand: &mut impl FnMut(bool, String)) {
        let ways = [
            ("nats.creds", self.creds.is_some()),
            ("nats.nkey", self.nkey.is_some()),
            ("nats.user", self.user.is_some()),
            ("nats.token", self.token.is_some()),
        ];
        let set: Vec<&str> = ways.into_iter().filter(|(_, set)| *set).map(|(key, _)| key).collect();
        demand(set.len() <= 1, format!("{} exclude each other: keep one", set.join(" and ")));
        for (user, password, names) in [
            (&self.user, &self.password, "nats.user and nats.password"),
            (&self.system_user, &self.system_password, "nats.system_user and nats.system_password"),
        ] {
            demand(user.is_some() == password.is_some(), format!("{names} go together: set both or neither"));
        }
        demand(
            self.cert.is_some() == self.key.is_some(),
            "nats.cert and nats.key go together: set both or neither".to_owned(),
        );
        demand(
            self.system_user.is_none() || self.system_creds.is_none(),
            "nats.system_user and nats.system_creds exclude each other: keep one".to_owned(),
        );
        if let Some(prefix) = &self.inbox_prefix {
            demand(
                is_subject(prefix),
                format!("nats.inbox_prefix = {prefix:?} must be a subject: words with dots between them, no * or >"),
            );
        }
    }
}

fn is_subject(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && !"*>.".contains(c);
    word.len() <= 249 && word.split('.').all(|token| !token.is_empty() && token.chars().all(plain))
}

fn is_log_level(directives: &str) -> bool {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let level = |word: &str| LEVELS.contains(&word.to_ascii_lowercase().as_str());
    directives.split(',').all(|directive| match directive.trim().rsplit_once('=') {
        Some((part, word)) => !part.is_empty() && level(word),
        None => level(directive.trim()),
    })
}

fn spec(key: &str) -> Option<&'static Spec> {
    SPECS.iter().find(|spec| spec.key == key)
}

/// What the layers said so far, the last word of each key, and what was wrong with it.
#[derive(Default)]
struct Layers {
    values: Vec<(&'static str, Value)>,
    faults: Vec<String>,
}

impl Layers {
    fn file(&mut self, path: &Path) -> Result<(), SettingsError> {
        let failed = |reason: String| SettingsError::File { path: path.to_owned(), reason };
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let said = Config::builder()
            .add_source(File::from_str(&text, FileFormat::Toml))
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let place = path.display().to_string();
        for (key, value) in sorted(said.collect().map_err(|error| failed(error.to_string()))?) {
            match (key.as_str(), value.kind) {
                ("nats", ValueKind::Table(nats)) => {
                    for (inner, value) in sorted(nats) {
                        self.said(&place, &format!("nats.{inner}"), value);
                    }
                }
                (_, kind) => self.said(&place, &key, Value::new(None, kind)),
            }
        }
        Ok(())
    }

    fn variables(&mut self, env: impl Iterator<Item = (String, String)>) {
        let is_setting = |name: &str| {
            name.starts_with(PREFIX) && !NOT_SETTINGS.contains(&name) && !name.starts_with(NOT_SETTINGS_PREFIX)
        };
        let mut said: Vec<_> = env.filter(|(name, value)| is_setting(name) && !value.is_empty()).collect();
        said.sort();
        for (name, value) in said {
            match SPECS.iter().find(|spec| variable(spec.key) == name) {
                Some(spec) => self.value(&name, spec, value.into()),
                None => {
                    let known: Vec<String> = SPECS.iter().map(|spec| variable(spec.key)).collect();
                    self.unknown("the environment", "variable", &name, known.iter().map(String::as_str));
                }
            }
        }
    }

    fn overrides(&mut self, overrides: &[(String, String)]) {
        for (key, value) in overrides {
            self.said("the command line", key, value.as_str().into());
        }
    }

    fn said(&mut self, place: &str, key: &str, value: Value) {
        match spec(key) {
            Some(spec) => self.value(&format!("{key} in {place}"), spec, value),
            None => self.unknown(place, "setting", key, SPECS.iter().map(|spec| spec.key)),
        }
    }

    fn unknown<'a>(&mut self, place: &str, what: &str, word: &str, known: impl Iterator<Item = &'a str>) {
        let hint = nearest(word, known).map(|known| format!(": did you mean {known}?")).unwrap_or_default();
        self.faults.push(format!("there is no {what} {word} (in {place}){hint}"));
    }

    fn value(&mut self, name: &str, spec: &'static Spec, value: Value) {
        match checked(spec, value) {
            Ok(value) => {
                self.values.retain(|(key, _)| *key != spec.key);
                self.values.push((spec.key, value));
            }
            Err(wanted) => self.faults.push(format!("{name} must be {wanted}")),
        }
    }

    fn settings(self) -> Result<Settings, SettingsError> {
        if !self.faults.is_empty() {
            return Err(SettingsError::Faults(self.faults));
        }
        let failed = |error: config::ConfigError| SettingsError::Faults(vec![error.to_string()]);
        let mut builder = Config::builder();
        for (key, value) in self.values {
            builder = builder.set_override(key, value).map_err(failed)?;
        }
        builder.build().and_then(Config::try_deserialize).map_err(failed)
    }
}

fn sorted(table: config::Map<String, Value>) -> Vec<(String, Value)> {
    let mut entries: Vec<_> = table.into_iter().collect();
    entries.sort_by(|left, right| left.0.cmp(&right.0));
    entries
}

/// The value as the kind wants it, or what it wants. A value is not repeated: it may be a password.
fn checked(spec: &Spec, value: Value) -> Result<Value, String> {
    match spec.kind {
        Kind::Number { min, max } => {
            let wanted = format!("a whole number between {min} and {max}");
            let number = match value.kind {
                ValueKind::String(text) => text.trim().replace('_', "").parse::<u64>().ok(),
                ValueKind::I64(number) => u64::try_from(number).ok(),
                ValueKind::U64(number) => Some(number),
                _ => None,
            };
            number.filter(|number| (min..=max).contains(number)).map(Value::from).ok_or(wanted)
        }
        Kind::Text => match value.kind {
            ValueKind::String(text) if !text.trim().is_empty() => Ok(text.into()),
            _ => Err("a text that is not empty".to_owned()),
        },
        Kind::OneOf(words) => match value.kind {
            ValueKind::String(text) if words.contains(&text.as_str()) => Ok(text.into()),
            _ => Err(words.join(" or ")),
        },
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            services: None,
            heartbeat_interval_ms: 500,
            session_timeout_ms: 3000,
            lease_ms: 2000,
            admin_wait_ms: 5000,
            drain_timeout_ms: 5000,
            push_retry_min_ms: 50,
            push_retry_max_ms: 5000,
            push_max_bytes: 512 << 10,
            snapshot_every_entries: 10_000,
            snapshot_every_bytes: 64 << 20,
            history_probe_ms: 1000,
            stream_replicas: 0,
            start_timeout_ms: 10_000,
            log_level: "info".to_owned(),
            log_format: LogFormat::Text,
            nats: NatsSettings::default(),
        }
    }
}

impl Default for NatsSettings {
    fn default() -> NatsSettings {
        NatsSettings {
            url: None,
            context: None,
            creds: None,
            nkey: None,
            user: None,
            password: None,
            token: None,
            ca: None,
            cert: None,
            key: None,
            inbox_prefix: None,
            ping_interval_ms: 2000,
            system_url: None,
            system_user: None,
            system_password: None,
            system_creds: None,
        }
    }
}

/// Settings go into logs, passwords do not.
impl fmt::Debug for NatsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = |value: &Option<String>| value.as_ref().map(|_| "***");
        let url = |value: &Option<String>| value.as_deref().map(super::nats::without_credentials);
        f.debug_struct("NatsSettings")
            .field("url", &url(&self.url))
            .field("context", &self.context)
            .field("creds", &self.creds)
            .field("nkey", &self.nkey.as_ref().map(|_| "***"))
            .field("user", &self.user)
            .field("password", &secret(&self.password))
            .field("token", &secret(&self.token))
            .field("ca", &self.ca)
            .field("cert", &self.cert)
            .field("key", &self.key)
            .field("inbox_prefix", &self.inbox_prefix)
            .field("ping_interval_ms", &self.ping_interval_ms)
            .field("system_url", &url(&self.system_url))
            .field("system_user", &self.system_user)
            .field("system_password", &secret(&self.system_password))
            .field("system_creds", &self.system_creds)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(said: &[(&str, &str)]) -> Vec<(String, String)> {
        said.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn load(file: Option<&str>, env: &[(&str, &str)], overrides: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dmq.toml");
        if let Some(text) = file {
            std::fs::write(&path, text).unwrap();
        }
        Settings::load(file.map(|_| path.as_path()), pairs(env).into_iter(), &pairs(overrides))
    }

    fn fault(file: Option<&str>, env: &[(&str, &str)], overrides: &[(&str, &str)]) -> String {
        load(file, env, overrides).unwrap_err().to_string()
    }

    #[test]
    fn each_layer_wins_over_those_below() {
        let file = "lease_ms = 4000\nadmin_wait_ms = 1\nsession_timeout_ms = 9_000\n[nats]\nurl = 'nats://file:1'\nuser = 'f'\npassword = 'p'";
        let env =
            [("DMQ_LEASE_MS", "5000"), ("DMQ_NATS_URL", "nats://env:1"), ("DMQ_ADMIN_WAIT_MS", "2"), ("PATH", "/")];
        let settings = load(Some(file), &env, &[("admin_wait_ms", "3"), ("nats.inbox_prefix", "_IN.x")]).unwrap();
        assert_eq!(settings.session_timeout_ms, 9000);
        assert_eq!(settings.lease_ms, 5000);
        assert_eq!(settings.admin_wait_ms, 3);
        assert_eq!(settings.heartbeat_interval_ms, 500);
        assert_eq!(settings.nats.url.as_deref(), Some("nats://env:1"));
        assert_eq!(settings.nats.user.as_deref(), Some("f"));
        assert_eq!(settings.nats.inbox_prefix.as_deref(), Some("_IN.x"));
        assert!(!format!("{settings:?}").contains("\"p\""));
    }

    #[test]
    fn an_unknown_word_names_the_nearest_known_one() {
        let said = fault(
            Some("heartbeat_interval = 5\n[nats]\nurls = 'x'"),
            &[("DMQ_SESSION_TIMEOUT", "5"), ("DMQ_NATS_SYSTEM_USERS", "x")],
            &[("leasems", "5")],
        );
        for (word, meant) in [
            ("setting heartbeat_interval ", "heartbeat_interval_ms?"),
            ("nats.urls", "nats.url?"),
            ("DMQ_SESSION_TIMEOUT ", "DMQ_SESSION_TIMEOUT_MS?"),
            ("DMQ_NATS_SYSTEM_USERS", "DMQ_NATS_SYSTEM_USER?"),
            ("leasems", "lease_ms?"),
        ] {
            assert!(said.lines().any(|line| line.contains(word) && line.contains(meant)), "{word}: {said}");
        }
    }

    #[test]
    fn variables_that_are_no_settings_or_empty_are_left_alone() {
        let env = [
            ("DMQ_CONFIG", "x"),
            ("DMQ_TEST_SEED", "x"),
            ("DMQ_NATS_PORT", "x"),
            ("DMQ_SERVICES_DIR", "x"),
            ("DMQ_NATS_SERVER", "x"),
            ("DMQ_NATS_CREDS", ""),
        ];
        assert_eq!(load(None, &env, &[]).unwrap(), Settings::default());
        let system = load(None, &[("DMQ_NATS_SYSTEM_USER", "s"), ("DMQ_NATS_SYSTEM_PASSWORD", "123")], &[]).unwrap();
        assert_eq!(system.nats.system_password.as_deref(), Some("123"));
    }

    #[test]
    fn all_faults_are_told_at_once_with_names_and_ranges() {
        let said = fault(None, &[("DMQ_LEASE_MS", "999"), ("DMQ_LOG_FORMAT", "xml")], &[("push_max_bytes", "many")]);
        assert!(said.contains("DMQ_LEASE_MS must be a whole number between 1000 and 60000"), "{said}");
        assert!(said.contains("DMQ_LOG_FORMAT must be text or json"), "{said}");
        assert!(said.contains("push_max_bytes in the command line"), "{said}");

        let file = "heartbeat_interval_ms = 2000\npush_retry_min_ms = 6000\nlog_level = 'loud'\nstream_replicas = 2\n[nats]\ncert = 'c'\ntoken = 't'\nuser = 'u'\ninbox_prefix = 'a.>'";
        let said = fault(Some(file), &[], &[]);
        for part in [
            "6000 or more",
            "push_retry_min_ms",
            "log_level",
            "stream_replicas",
            "nats.cert and nats.key",
            "nats.user and nats.token exclude",
            "nats.user and nats.password go together",
            "inbox_prefix",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn a_file_that_is_missing_or_no_toml_is_named() {
        let missing = Settings::load(Some(Path::new("/nowhere/dmq.toml")), std::iter::empty(), &[]).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/dmq.toml"));
        assert!(fault(Some("lease_ms = = 5"), &[], &[]).contains("dmq.toml"));
        assert!(fault(Some("nats = 5"), &[], &[]).contains("no setting nats"));
    }

    #[test]
    fn the_table_lists_every_setting_with_its_default() {
        // A struct that serde fills names all its fields when it refuses one.
        let fields = |refused: String| -> Vec<String> {
            let (_, listed) = refused.split_once("expected one of ").unwrap();
            listed.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        let own = fields(serde_json::from_str::<Settings>(r#"{"?": 1}"#).unwrap_err().to_string());
        let nats = fields(serde_json::from_str::<NatsSettings>(r#"{"?": 1}"#).unwrap_err().to_string());
        let mut keys: Vec<String> = own.into_iter().filter(|key| key != "nats").collect();
        keys.extend(nats.into_iter().map(|key| format!("nats.{key}")));
        assert_eq!(table().iter().map(|doc| doc.key.to_owned()).collect::<Vec<_>>(), keys);
        assert!(table().iter().all(|doc| !doc.meaning.is_empty() && doc.env.starts_with("DMQ_")));

        let defaults: Vec<_> = table()
            .into_iter()
            .filter(|doc| !doc.default.is_empty())
            .map(|doc| (doc.env, doc.default.to_owned()))
            .collect();
        let mut loaded = Settings::load(None, defaults.into_iter(), &[]).unwrap();
        assert_eq!(loaded.nats.url.take().as_deref(), Some(NatsSettings::DEFAULT_URL));
        assert_eq!(loaded, Settings::default());
    }
}
