//! What a process finds around it: the environment's `NATS_…` variables and the `nats` command line's contexts.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ConnectError;
use crate::config::nearest::nearest;
use crate::config::settings::is_subject;

/// What the process finds around it.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    pub(super) variables: Vec<(String, String)>,
    /// Where the `nats` command line keeps its contexts.
    pub(super) contexts: Option<PathBuf>,
    pub(super) home: Option<PathBuf>,
}

impl Surroundings {
    pub(super) fn of_this_process() -> Surroundings {
        let named = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let configuration = std::env::var_os("XDG_CONFIG_HOME")
            .filter(|folder| !folder.is_empty())
            .map(PathBuf::from)
            .or_else(|| home.as_ref().map(|home| home.join(".config")));
        Surroundings {
            variables: std::env::vars_os().filter_map(named).collect(),
            contexts: configuration.map(|folder| folder.join("nats")),
            home,
        }
    }

    pub(super) fn variable(&self, name: &str) -> Option<String> {
        let (_, value) = self.variables.iter().find(|(known, _)| known == name)?;
        (!value.is_empty()).then(|| value.clone())
    }

    pub(super) fn path(&self, path: &Path) -> PathBuf {
        match (path.strip_prefix("~"), &self.home) {
            (Ok(below), Some(home)) => home.join(below),
            _ => path.to_owned(),
        }
    }

    pub(super) fn selected_context(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.contexts.as_ref()?.join("context.txt")).ok()?;
        let name = text.trim();
        (!name.is_empty()).then(|| name.to_owned())
    }

    pub(super) fn context(&self, name: &str) -> Result<Context, ConnectError> {
        let wrong = |reason: String| ConnectError::Settings(format!("the nats context {name:?} {reason}"));
        if name.contains(['/', '\\']) || name.contains("..") {
            return Err(wrong("is no name of a context".to_owned()));
        }
        let folder = self.contexts.as_ref().map(|folder| folder.join("context"));
        let folder = folder.ok_or_else(|| wrong("cannot be looked up without HOME or XDG_CONFIG_HOME".to_owned()))?;
        let path = folder.join(format!("{name}.json"));
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let known = contexts_in(&folder);
                let hint =
                    nearest(name, known.iter().map(String::as_str)).map(|known| format!(": did you mean {known}?"));
                return Err(wrong(format!("is not in {}{}", folder.display(), hint.unwrap_or_default())));
            }
            Err(error) => return Err(wrong(format!("cannot be read from {}: {error}", path.display()))),
        };
        let context: Context = serde_json::from_str(&text)
            .map_err(|error| wrong(format!("in {} is no context: {error}", path.display())))?;
        for (field, value, instead) in [
            ("nsc", &context.nsc, "export them with `nsc generate creds` and name the file as the context's creds"),
            ("socks_proxy", &context.socks_proxy, "name a server that is reached without a proxy"),
            ("user_jwt", &context.user_jwt, "name a credentials file, which holds the JWT and its key"),
            ("jetstream_domain", &context.jetstream_domain, "name a server of that domain itself"),
            ("jetstream_api_prefix", &context.jetstream_api_prefix, "connect to the account that has the stream"),
        ] {
            if !value.is_empty() {
                return Err(wrong(format!("uses {field}, which dmq does not support: {instead}")));
            }
        }
        let prefix = &context.inbox_prefix;
        if !prefix.is_empty() && !is_subject(prefix) {
            return Err(wrong(format!("has an inbox_prefix that is no subject: {prefix:?}")));
        }
        Ok(context)
    }
}

fn contexts_in(folder: &Path) -> Vec<String> {
    let name = |entry: std::fs::DirEntry| Some(entry.file_name().to_str()?.strip_suffix(".json")?.to_owned());
    let mut names: Vec<String> =
        std::fs::read_dir(folder).map(|entries| entries.flatten().filter_map(name).collect()).unwrap_or_default();
    names.sort();
    names
}

/// A context's file, as far as it matters here. What is not set is empty.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Context {
    pub(super) url: String,
    pub(super) token: String,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) creds: String,
    pub(super) nkey: String,
    pub(super) cert: String,
    pub(super) key: String,
    pub(super) ca: String,
    pub(super) inbox_prefix: String,
    pub(super) tls_first: bool,
    nsc: String,
    socks_proxy: String,
    user_jwt: String,
    jetstream_domain: String,
    jetstream_api_prefix: String,
}
