//! The layers laid over each other, and every value checked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::{Config, ConfigError, File, FileFormat, Source, Value, ValueKind};

use super::table::{Kind, SETTINGS, Setting, find, variable};
use super::{
    LogFormat, LogSettings, NatsSettings, PushSettings, Secret, ServerUrl, SettingFault, Settings, SettingsError,
    SnapshotSettings,
};
use crate::config::nearest::nearest;
use crate::config::services::Services;

/// The variable that names the settings' file.
const CONFIG_VARIABLE: &str = "DMQ_CONFIG";

/// The process's variables, or a test's.
pub type Variables = BTreeMap<String, String>;

/// Where the settings come from.
#[derive(Clone, Default, Debug)]
pub struct Sources {
    /// The flag `--config`; before `DMQ_CONFIG`.
    pub file: Option<PathBuf>,
    /// All variables; only `DMQ_…` ones count here.
    pub variables: Variables,
    /// `DMQ_…` variables that are no settings, and that somebody else reads.
    pub other_variables: Vec<String>,
    /// Flags, by the keys of their settings.
    pub flags: Vec<(String, String)>,
}

impl Sources {
    /// The process's own variables. What is no UTF-8 in them is replaced: it can be no valid setting, and is named as such.
    pub fn of_process() -> Self {
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        let variables = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
        Self { variables, ..Self::default() }
    }
}

pub(super) fn load(sources: &Sources) -> Result<Settings, SettingsError> {
    let mut faults = Vec::new();
    let named = sources.variables.get(CONFIG_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    let mut layered = Layered::default();
    if let Some(path) = sources.file.clone().or(named) {
        layered.lay_file(&path, &mut faults)?;
    }
    layered.lay_variables(sources, &mut faults);
    layered.lay_flags(sources, &mut faults);
    let tree = layered.build().and_then(|config| config.collect());
    let tree = tree.map_err(|error| SettingsError::Faulty(vec![SettingFault::Together(error.to_string())]))?;
    let mut values = Vec::new();
    flatten("", tree, &mut values);
    let values = values.into_iter().collect();
    let settings = Reader { values: &values, faults: &mut faults }.read();
    // Two wrong numbers say nothing about how they would go together.
    if faults.is_empty() {
        settings.check_together(&mut faults);
    }
    if faults.is_empty() { Ok(settings) } else { Err(SettingsError::Faulty(faults)) }
}

/// From the weakest layer to the strongest: each is a `config` source of its own.
#[derive(Default)]
struct Layered(Vec<Config>);

impl Layered {
    fn lay_file(&mut self, path: &Path, faults: &mut Vec<SettingFault>) -> Result<(), SettingsError> {
        let unreadable = |message| SettingsError::Unreadable { path: path.into(), message };
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
        let file = File::from_str(&text, FileFormat::Toml);
        let not_toml = |error: ConfigError| SettingsError::NotToml { path: path.into(), message: error.to_string() };
        let mut found = Vec::new();
        flatten("", file.collect().map_err(not_toml)?, &mut found);
        let from = path.display().to_string();
        let known = found.into_iter().filter_map(|(key, value)| {
            if find(&key).is_some() {
                return Some((key, Value::new(Some(&from), value.kind)));
            }
            faults.push(unknown(&key, &from, |setting| setting.key.into()));
            None
        });
        let known: Vec<_> = known.collect();
        self.lay(known, faults);
        Ok(())
    }

    fn lay_variables(&mut self, sources: &Sources, faults: &mut Vec<SettingFault>) {
        let mut found = Vec::new();
        for (name, value) in &sources.variables {
            let ours = name.starts_with("DMQ_") && name != CONFIG_VARIABLE && !sources.other_variables.contains(name);
            if !ours || is_service_link(name) {
                continue;
            }
            match SETTINGS.iter().find(|setting| variable(setting.key) == *name) {
                // As everywhere in a shell, an empty variable is one that is not set.
                Some(_) if value.is_empty() => {}
                Some(setting) => found.push((setting.key.to_owned(), Value::new(Some(name), value.clone()))),
                None => faults.push(unknown(name, "environment", |setting| variable(setting.key))),
            }
        }
        self.lay(found, faults);
    }

    fn lay_flags(&mut self, sources: &Sources, faults: &mut Vec<SettingFault>) {
        let mut found = Vec::new();
        let from = "flag".to_owned();
        for (key, value) in &sources.flags {
            match find(key) {
                Some(_) => found.push((key.clone(), Value::new(Some(&from), value.clone()))),
                None => faults.push(unknown(key, &from, |setting| setting.key.into())),
            }
        }
        self.lay(found, faults);
    }

    fn lay(&mut self, values: Vec<(String, Value)>, faults: &mut Vec<SettingFault>) {
        let start = Ok(Config::builder());
        let layer = values.into_iter().fold(start, |builder: Result<_, ConfigError>, (key, value)| {
            builder.and_then(|builder| builder.set_override(key, value))
        });
        match layer.and_then(|builder| builder.build()) {
            Ok(layer) => self.0.push(layer),
            Err(error) => faults.push(SettingFault::Together(error.to_string())),
        }
    }

    fn build(self) -> Result<Config, ConfigError> {
        let mut builder = Config::builder();
        for setting in SETTINGS {
            builder = match setting.kind {
                Kind::Number { default, .. } => builder.set_default(setting.key, default)?,
                Kind::Flag { default } => builder.set_default(setting.key, default)?,
                Kind::Choice { default, .. } => builder.set_default(setting.key, default)?,
                Kind::Text { .. } | Kind::Secret | Kind::List { .. } => builder,
            };
        }
        self.0.into_iter().fold(builder, |builder, layer| builder.add_source(layer)).build()
    }
}

/// Variables that Kubernetes sets in every container beside a service called `dmq`; nobody wrote them for us.
fn is_service_link(name: &str) -> bool {
    name.starts_with("DMQ_SERVICE_HOST") || name.starts_with("DMQ_SERVICE_PORT") || name.starts_with("DMQ_PORT")
}

fn unknown(key: &str, from: &str, shown: fn(&Setting) -> String) -> SettingFault {
    let known: Vec<_> = SETTINGS.iter().map(shown).collect();
    let nearest = nearest(key, known.iter().map(String::as_str)).unwrap_or_default().to_owned();
    SettingFault::Unknown { key: key.into(), from: from.into(), nearest }
}

/// The leaves of the file. A group in which something stands is looked into; one that is a setting's name is its value.
fn flatten(path: &str, table: config::Map<String, Value>, found: &mut Vec<(String, Value)>) {
    let sorted: BTreeMap<_, _> = table.into_iter().collect();
    for (key, value) in sorted {
        let key = if path.is_empty() { key } else { format!("{path}.{key}") };
        match value.kind {
            ValueKind::Table(inner) if find(&key).is_none() && !inner.is_empty() => flatten(&key, inner, found),
            _ => found.push((key, value)),
        }
    }
}

/// Takes each setting out of the layers, and notes what is wrong with it.
struct Reader<'a> {
    values: &'a BTreeMap<String, Value>,
    faults: &'a mut Vec<SettingFault>,
}

impl Reader<'_> {
    fn read(mut self) -> Settings {
        Settings {
            services: self.path("services"),
            prefix: self.prefix(),
            heartbeat_interval_ms: self.number("heartbeat_interval_ms"),
            session_timeout_ms: self.number("session_timeout_ms"),
            lease_ms: self.number("lease_ms"),
            admin_wait_ms: self.number("admin_wait_ms"),
            drain_timeout_ms: self.number("drain_timeout_ms"),
            replica_lag_time_max_ms: self.number("replica_lag_time_max_ms"),
            history_probe_ms: self.number("history_probe_ms"),
            start_timeout_ms: self.number("start_timeout_ms"),
            stream_replicas: self.number("stream_replicas"),
            push: PushSettings {
                retry_min_ms: self.number("push.retry_min_ms"),
                retry_max_ms: self.number("push.retry_max_ms"),
                max_bytes: self.number("push.max_bytes"),
            },
            snapshot: SnapshotSettings {
                every_entries: self.number("snapshot.every_entries"),
                every_bytes: self.number("snapshot.every_bytes"),
            },
            log: LogSettings { level: self.log_level(), format: self.log_format() },
            nats: self.nats(),
        }
    }

    fn nats(&mut self) -> NatsSettings {
        NatsSettings {
            url: self.urls("nats.url"),
            context: self.text("nats.context"),
            creds: self.path("nats.creds"),
            nkey: self.path("nats.nkey"),
            user: self.text("nats.user"),
            password: self.text("nats.password").map(Secret::new),
            token: self.text("nats.token").map(Secret::new),
            ca: self.path("nats.ca"),
            cert: self.path("nats.cert"),
            key: self.path("nats.key"),
            tls_first: self.flag("nats.tls_first"),
            inbox_prefix: self.inbox_prefix(),
            ping_interval_ms: self.number("nats.ping_interval_ms"),
            system_url: self.urls("nats.system_url"),
            system_user: self.text("nats.system_user"),
            system_password: self.text("nats.system_password").map(Secret::new),
            system_creds: self.path("nats.system_creds"),
        }
    }

    fn value(&self, key: &str) -> Option<Value> {
        self.values.get(key).cloned()
    }

    fn fault(&mut self, key: &str, value: &Value, allowed: impl Into<String>) {
        // A URL may hold a password as well.
        let secret = find(key).is_some_and(|setting| matches!(setting.kind, Kind::Secret))
            || (key.ends_with("url") && value.to_string().contains('@'));
        let shown = if secret { "(secret)".into() } else { super::super::services::shown(&value.to_string()) };
        let from = value.origin().unwrap_or("default").to_owned();
        self.faults.push(SettingFault::Value { key: key.into(), value: shown, from, allowed: allowed.into() });
    }

    fn number(&mut self, key: &'static str) -> u64 {
        let Some(Setting { kind: kind @ Kind::Number { default, min, max }, .. }) = find(key) else {
            unreachable!("{key} is a number in the table, as a test checks");
        };
        let Some(value) = self.value(key) else { return *default };
        let number = match &value.kind {
            ValueKind::I64(number) => u64::try_from(*number).ok(),
            ValueKind::U64(number) => Some(*number),
            ValueKind::I128(number) => u64::try_from(*number).ok(),
            ValueKind::U128(number) => u64::try_from(*number).ok(),
            ValueKind::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if (*min..=*max).contains(&number) => number,
            Some(_) | None => {
                self.fault(key, &value, kind.to_string());
                *default
            }
        }
    }

    fn flag(&mut self, key: &'static str) -> bool {
        let Some(value) = self.value(key) else { return false };
        let flag = match &value.kind {
            ValueKind::Boolean(flag) => Some(*flag),
            ValueKind::String(text) => match text.trim().to_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Some(true),
                "false" | "0" | "no" | "off" => Some(false),
                _ => None,
            },
            _ => None,
        };
        if flag.is_none() {
            self.fault(key, &value, "true or false");
        }
        flag.unwrap_or(false)
    }

    fn text(&mut self, key: &'static str) -> Option<String> {
        let value = self.value(key)?;
        match &value.kind {
            ValueKind::String(text) if !text.is_empty() => Some(text.clone()),
            // A password of digits alone, unquoted in TOML, would lose its leading zeros: say so rather than guess.
            _ => {
                self.fault(key, &value, "text, in quotes and not empty");
                None
            }
        }
    }

    fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    fn urls(&mut self, key: &'static str) -> Vec<ServerUrl> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let urls = match &value.kind {
            ValueKind::String(text) => Some(split_urls(text)),
            ValueKind::Array(items) => items
                .iter()
                .map(|item| match &item.kind {
                    ValueKind::String(text) => Some(text.trim().to_owned()),
                    _ => None,
                })
                .collect(),
            _ => None,
        };
        match urls {
            Some(urls) if !urls.is_empty() && urls.iter().all(|url| is_server(url)) => {
                urls.into_iter().map(ServerUrl::new).collect()
            }
            Some(_) | None => {
                self.fault(key, &value, "one or more NATS servers like nats://host:4222 or tls://host:4222");
                Vec::new()
            }
        }
    }

    fn prefix(&mut self) -> String {
        let default = Services::default().prefix().to_owned();
        let Some(prefix) = self.text("prefix") else { return default };
        match (Services::default_with(&prefix), self.value("prefix")) {
            (Err(fault), Some(value)) => {
                self.fault("prefix", &value, format!("the beginning of a NATS subject: {}", fault.problem));
                default
            }
            (Ok(_), _) | (Err(_), None) => prefix,
        }
    }

    fn inbox_prefix(&mut self) -> Option<String> {
        let prefix = self.text("nats.inbox_prefix")?;
        let fits = super::super::services::is_inbox_prefix(&prefix);
        if let (false, Some(value)) = (fits, self.value("nats.inbox_prefix")) {
            self.fault("nats.inbox_prefix", &value, "a NATS subject without wildcards, spaces and empty tokens");
        }
        fits.then_some(prefix)
    }

    fn log_level(&mut self) -> String {
        let default = "info".to_owned();
        let Some(level) = self.text("log.level") else { return default };
        if let (Err(_), Some(value)) = (tracing_subscriber::EnvFilter::try_new(&level), self.value("log.level")) {
            self.fault("log.level", &value, "error, warn, info, debug or trace, or by module: info,dmq=debug");
            return default;
        }
        level
    }

    fn log_format(&mut self) -> LogFormat {
        let Some(value) = self.value("log.format") else { return LogFormat::Text };
        match &value.kind {
            ValueKind::String(text) if text == "text" => LogFormat::Text,
            ValueKind::String(text) if text == "json" => LogFormat::Json,
            _ => {
                self.fault("log.format", &value, "text or json");
                LogFormat::Text
            }
        }
    }
}

/// The URLs of a list with commas.
pub(in crate::config) fn split_urls(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned).collect()
}

pub(in crate::config) fn is_server(url: &str) -> bool {
    url.parse::<async_nats::ServerAddr>().is_ok_and(|server| !server.is_websocket() && !server.host().is_empty())
}
