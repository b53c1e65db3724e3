//! The settings of a process, in layers: defaults, a TOML file, `DMQ_…` variables, flags. The last one that names a
//! setting wins.
//!
//! [`mod@table`] is the one list of what there is: what a file or a variable may say is checked against it, with all faults
//! at once, and the documentation's table is made of it.

mod layers;
mod table;
#[cfg(test)]
mod tests;
mod validate;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use layers::Layers;
pub use table::{SettingDoc, table};
pub(super) use validate::is_subject;

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
    /// 0: never.
    pub leader_balance_interval_ms: u64,
    /// 0: three where NATS is a cluster of at least three, else one.
    pub stream_replicas: usize,
    pub start_timeout_ms: u64,
    /// 0: without limit.
    pub catch_up_bytes_per_second: u64,
    /// 0: the operating system decides.
    pub page_cache_bytes: u64,
    pub stray_retention_ms: u64,
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
            leader_balance_interval_ms: 10_000,
            stream_replicas: 0,
            start_timeout_ms: 10_000,
            catch_up_bytes_per_second: 0,
            page_cache_bytes: 0,
            stray_retention_ms: 7 * 24 * 3_600_000,
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
