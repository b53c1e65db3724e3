//! The flags of every command that changes something.

use std::time::Duration;

use clap::Args;

use crate::types::{RequestId, Version};
use crate::wire::admin::Terms;

#[derive(Args, Clone, Debug)]
pub struct TermsArgs {
    /// Change it only if it has not been changed since this version
    #[arg(long, value_name = "N")]
    if_version: Option<u64>,
    #[command(flatten)]
    retry: RetryArgs,
}

/// Those that do not depend on what is changed.
#[derive(Args, Clone, Debug)]
pub struct RetryArgs {
    /// Name the request: repeated under the same id, it takes effect once [default: a new UUID]
    #[arg(long, value_name = "ID", value_parser = request_id)]
    request_id: Option<RequestId>,
    /// How long to wait for the storage nodes to have it on their disks [default: 3s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
}

fn request_id(text: &str) -> Result<RequestId, crate::types::RequestIdError> {
    RequestId::new(text)
}

impl TermsArgs {
    pub fn into_terms(self) -> Terms {
        Terms { if_version: self.if_version.map(Version), ..self.retry.into_terms() }
    }
}

impl RetryArgs {
    pub fn into_terms(self) -> Terms {
        Terms {
            request_id: self.request_id,
            if_version: None,
            wait_ms: self.wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

/// `KEY=VALUE`.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.trim().into(), value.into())),
        _ => Err("write KEY=VALUE, for example retention.ms=86400000".into()),
    }
}

/// Pairs as a map; the same key twice is a mistake.
pub fn unique<V>(
    pairs: impl IntoIterator<Item = (String, V)>,
) -> anyhow::Result<std::collections::BTreeMap<String, V>> {
    let mut map = std::collections::BTreeMap::new();
    for (key, value) in pairs {
        anyhow::ensure!(!map.contains_key(&key), "{key} is given twice; give it once");
        map.insert(key, value);
    }
    Ok(map)
}
