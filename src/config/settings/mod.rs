//! The settings, in layers: defaults, a TOML file, `DMQ_…` variables, flags; the later wins.
//!
//! All that is wrong is said at once, with the setting's name, where the value came from and what it may be. Which NATS
//! server it comes to in the end, with the `nats` CLI's variables and contexts, is decided in `nats`.

mod layers;
mod table;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};

pub use layers::{Sources, Variables};
pub(in crate::config) use layers::{is_server, split_urls};
pub use table::{SettingDoc, table};

/// All that a process can be told. Settings without a group stand at the top of the file.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Settings {
    /// services.json.
    pub services: Option<PathBuf>,
    /// What subjects begin with where no services.json is given.
    pub prefix: String,
    pub heartbeat_interval_ms: u64,
    pub session_timeout_ms: u64,
    /// The active controller's lease.
    pub lease_ms: u64,
    pub admin_wait_ms: u64,
    pub drain_timeout_ms: u64,
    pub replica_lag_time_max_ms: u64,
    pub history_probe_ms: u64,
    pub start_timeout_ms: u64,
    /// Replicas of the history's stream; 0: three where the server is clustered, else one.
    pub stream_replicas: u64,
    pub push: PushSettings,
    pub snapshot: SnapshotSettings,
    pub log: LogSettings,
    pub nats: NatsSettings,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct PushSettings {
    pub retry_min_ms: u64,
    pub retry_max_ms: u64,
    pub max_bytes: u64,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SnapshotSettings {
    pub every_entries: u64,
    pub every_bytes: u64,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct LogSettings {
    /// A level, or directives by module, as `tracing_subscriber::EnvFilter` reads them.
    pub level: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// How to reach NATS, as far as dmq's own settings say so.
#[derive(Clone, PartialEq, Default, Debug, Serialize)]
pub struct NatsSettings {
    /// Empty where none is given: then `NATS_URL`, a context or the default decides.
    pub url: Vec<ServerUrl>,
    pub context: Option<String>,
    pub creds: Option<PathBuf>,
    /// A file with the seed.
    pub nkey: Option<PathBuf>,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub token: Option<Secret>,
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub tls_first: bool,
    pub inbox_prefix: Option<String>,
    pub ping_interval_ms: u64,
    /// Empty: the same servers.
    pub system_url: Vec<ServerUrl>,
    pub system_user: Option<String>,
    pub system_password: Option<Secret>,
    pub system_creds: Option<PathBuf>,
}

/// A password or token: neither logs nor JSON show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(secret)")
    }
}

/// A NATS server as somebody wrote it, perhaps with a password in it, which neither logs nor JSON show.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl(String);

impl ServerUrl {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// All of it, for the one place that reads it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_login(&self.0))
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", without_login(&self.0))
    }
}

impl Serialize for ServerUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&without_login(&self.0))
    }
}

/// A URL without the name and password before its `@`.
fn without_login(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (&url[..scheme.len() + 3], rest));
    rest.rsplit_once('@').map_or_else(|| url.to_owned(), |(_, host)| format!("{scheme}(secret)@{host}"))
}

/// One thing that is wrong with the settings.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SettingFault {
    #[error("{from}: unknown setting {key:?}; perhaps {nearest} was meant")]
    Unknown { key: String, from: String, nearest: String },
    #[error("{key} = {value} ({from}): it must be {allowed}")]
    Value { key: String, value: String, from: String, allowed: String },
    /// Two settings that do not go together.
    #[error("{0}")]
    Together(String),
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("cannot read the settings in {}: {message}; see --config and DMQ_CONFIG", path.display())]
    Unreadable { path: PathBuf, message: String },
    #[error("the settings in {} are not valid TOML: {message}", path.display())]
    NotToml { path: PathBuf, message: String },
    /// Every fault of the settings.
    #[error("the settings are wrong:{}", .0.iter().map(|fault| format!("\n  {fault}")).collect::<String>())]
    Faulty(Vec<SettingFault>),
}

impl Settings {
    /// Reads all layers. The only I/O is reading the file.
    pub fn load(sources: &Sources) -> Result<Self, SettingsError> {
        layers::load(sources)
    }

    pub fn heartbeat_interval(&self) -> Duration {
        Duration::from_millis(self.heartbeat_interval_ms)
    }

    pub fn session_timeout(&self) -> Duration {
        Duration::from_millis(self.session_timeout_ms)
    }

    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    pub fn start_timeout(&self) -> Duration {
        Duration::from_millis(self.start_timeout_ms)
    }

    /// What each setting has to do with others.
    fn check_together(&self, faults: &mut Vec<SettingFault>) {
        let mut demand = |holds: bool, otherwise: &dyn Fn() -> String| {
            if !holds {
                faults.push(SettingFault::Together(otherwise()));
            }
        };
        demand(self.heartbeat_interval_ms * 3 <= self.session_timeout_ms, &|| {
            format!(
                "session_timeout_ms = {} must be at least three times heartbeat_interval_ms = {}, or one lost heartbeat \
                 fences a node; set it to {} or more",
                self.session_timeout_ms,
                self.heartbeat_interval_ms,
                self.heartbeat_interval_ms * 3
            )
        });
        demand(self.push.retry_min_ms <= self.push.retry_max_ms, &|| {
            let PushSettings { retry_min_ms, retry_max_ms, .. } = self.push;
            format!("push.retry_min_ms = {retry_min_ms} must not exceed push.retry_max_ms = {retry_max_ms}")
        });
        let nats = &self.nats;
        let ways = [
            ("nats.creds", nats.creds.is_some()),
            ("nats.nkey", nats.nkey.is_some()),
            ("nats.user", nats.user.is_some()),
            ("nats.token", nats.token.is_some()),
        ];
        let given: Vec<_> = ways.iter().filter(|(_, given)| *given).map(|(key, _)| *key).collect();
        demand(given.len() <= 1, &|| format!("give one of {}: each is a way to log in", given.join(", ")));
        for (left, has_left, right, has_right) in [
            ("nats.user", nats.user.is_some(), "nats.password", nats.password.is_some()),
            ("nats.cert", nats.cert.is_some(), "nats.key", nats.key.is_some()),
            ("nats.system_user", nats.system_user.is_some(), "nats.system_password", nats.system_password.is_some()),
        ] {
            let (with, without) = if has_left { (left, right) } else { (right, left) };
            demand(has_left == has_right, &|| format!("{with} is given without {without}; give both or neither"));
        }
        demand(nats.system_user.is_none() || nats.system_creds.is_none(), &|| {
            "give one of nats.system_user, nats.system_creds: each is a way to log in".into()
        });
        demand(nats.system_url.is_empty() || nats.system_user.is_some() || nats.system_creds.is_some(), &|| {
            "nats.system_url is given without nats.system_user or nats.system_creds; give one of them".into()
        });
    }
}

#[cfg(test)]
mod tests;
