//! The `nats` CLI's contexts: `nats/context/NAME.json` below `$XDG_CONFIG_HOME` or `~/.config`, and the selected one's name
//! in `nats/context.txt`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::target::{Layer, NatsTargetError};
use crate::config::settings::{Secret, Variables, split_urls};

/// What of a context dmq uses, and what it must refuse to overlook. Other fields are the CLI's own affair.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Context {
    url: String,
    user: String,
    password: String,
    token: String,
    creds: String,
    nkey: String,
    cert: String,
    key: String,
    ca: String,
    inbox_prefix: String,
    tls_first: bool,
    nsc: String,
    user_jwt: String,
    socks_proxy: String,
    jetstream_domain: String,
}

/// The folder of the `nats` CLI's configuration; none where neither variable is set.
fn folder(variables: &Variables) -> Option<PathBuf> {
    let set = |name| variables.get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?;
    Some(config.join("nats"))
}

/// The name of the selected context, if there is one.
pub(super) fn selected(variables: &Variables) -> Option<String> {
    let text = std::fs::read_to_string(folder(variables)?.join("context.txt")).ok()?;
    let name = text.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// Reads the context of that name.
pub(super) fn load(name: &str, variables: &Variables) -> Result<Layer, NatsTargetError> {
    let unknown = |known: Vec<String>| NatsTargetError::UnknownContext { name: name.into(), known };
    let Some(folder) = folder(variables).map(|folder| folder.join("context")) else { return Err(unknown(Vec::new())) };
    if name.is_empty() || name.contains(['/', '\\']) || name.contains("..") {
        return Err(unknown(names(&folder)));
    }
    let path = folder.join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => unknown(names(&folder)),
        _ => NatsTargetError::BadContext { path: path.clone(), message: error.to_string() },
    })?;
    let context = serde_json::from_str::<Context>(&text)
        .map_err(|error| NatsTargetError::BadContext { path: path.clone(), message: error.to_string() })?;
    context.layer(name, path, variables)
}

fn names(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = files.filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".json")?.to_owned()));
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

impl Context {
    fn layer(self, name: &str, path: PathBuf, variables: &Variables) -> Result<Layer, NatsTargetError> {
        for (field, value) in [
            ("nsc", &self.nsc),
            ("user_jwt", &self.user_jwt),
            ("socks_proxy", &self.socks_proxy),
            ("jetstream_domain", &self.jetstream_domain),
        ] {
            if !value.is_empty() {
                return Err(NatsTargetError::ContextField { path, field });
            }
        }
        let text = |value: String| (!value.is_empty()).then_some(value);
        let file = |value: String| text(value).map(|value| in_home(&value, variables));
        Ok(Layer {
            from: format!("context {name}"),
            urls: split_urls(&self.url),
            creds: file(self.creds),
            nkey: file(self.nkey),
            user: text(self.user),
            password: text(self.password).map(Secret::new),
            token: text(self.token).map(Secret::new),
            ca: file(self.ca),
            cert: file(self.cert),
            key: file(self.key),
            inbox_prefix: text(self.inbox_prefix),
            tls_first: self.tls_first,
        })
    }
}

/// `~/` stands for the home folder, as the CLI has it.
pub(super) fn in_home(path: &str, variables: &Variables) -> PathBuf {
    match (path.strip_prefix("~/"), variables.get("HOME")) {
        (Some(rest), Some(home)) => Path::new(home).join(rest),
        (Some(_), None) | (None, _) => path.into(),
    }
}
