//! One layer upon another: each value checked as it is said, with its place, and every fault kept.

use std::path::Path;

use config::{Config, File, FileFormat, Source, Value, ValueKind};

use super::table::{Kind, NOT_SETTINGS, NOT_SETTINGS_PREFIX, PREFIX, SPECS, Spec, spec, variable};
use super::{Settings, SettingsError};
use crate::config::nearest::nearest;

/// What the layers said so far, the last word of each key, and what was wrong with it.
#[derive(Default)]
pub(super) struct Layers {
    values: Vec<(&'static str, Value)>,
    faults: Vec<String>,
}

impl Layers {
    pub(super) fn file(&mut self, path: &Path) -> Result<(), SettingsError> {
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

    pub(super) fn variables(&mut self, env: impl Iterator<Item = (String, String)>) {
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

    pub(super) fn overrides(&mut self, overrides: &[(String, String)]) {
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

    pub(super) fn settings(self) -> Result<Settings, SettingsError> {
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
