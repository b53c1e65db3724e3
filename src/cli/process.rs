//! What a process that lasts is started with: settings in layers, the log, services.json.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::global::GlobalArgs;
use crate::config::{self, LogFormat, Services, Settings, Watcher};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Read where no other file is named and this one is there.
const USUAL: &str = "services.json";

/// The settings: defaults, the file, `DMQ_…` variables, flags.
pub fn settings(global: &GlobalArgs) -> anyhow::Result<Settings> {
    let file = global.config.clone().or_else(|| std::env::var_os("DMQ_CONFIG").map(PathBuf::from));
    let mut flags: Vec<(String, String)> = Vec::new();
    let mut flag = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            flags.push((key.into(), value));
        }
    };
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    flag("services", path(&global.services));
    flag("nats.url", (!global.nats_url.is_empty()).then(|| global.nats_url.join(",")));
    flag("nats.context", global.context.clone());
    flag("nats.creds", path(&global.creds));
    flag("nats.nkey", path(&global.nkey));
    flag("nats.user", global.nats_user.clone());
    flag("nats.ca", path(&global.tls_ca));
    flag("nats.cert", path(&global.tls_cert));
    flag("nats.key", path(&global.tls_key));
    flags.extend(global.set.iter().cloned());
    let asks_for_context = global.context.is_some() && global.nats_url.is_empty();
    let variables =
        std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    // A context that is asked for here and now counts more than a server that a variable names.
    let variables = variables.filter(|(key, _)| !(asks_for_context && key == "DMQ_NATS_URL"));
    Ok(Settings::load(file.as_deref(), variables, &flags)?)
}

/// Begins to log on stderr.
pub fn log(settings: &Settings) -> anyhow::Result<()> {
    let level = &settings.log_level;
    let filter = tracing_subscriber::EnvFilter::try_new(level)
        .map_err(|error| anyhow::anyhow!("log_level = {level:?} cannot be understood: {error}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Fails only where a log exists already, which is as good.
    let _ = match settings.log_format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    Ok(())
}

/// The directory of a process that was given none, below the present one.
pub fn default_data(role: &str, id: impl std::fmt::Display) -> PathBuf {
    Path::new(".dmq").join(format!("{role}-{id}"))
}

/// What services.json says, now and whenever it changes. The watcher has to be kept.
pub struct Named {
    pub services: watch::Receiver<Arc<Services>>,
    _watcher: Option<Watcher>,
}

pub fn services(settings: &Settings) -> anyhow::Result<Named> {
    let usual = Path::new(USUAL);
    let path = match &settings.services {
        Some(path) => path.as_path(),
        None if usual.exists() => usual,
        None => {
            tracing::info!("no services.json: subjects follow the default prefix and the ids");
            let (_, services) = watch::channel(Arc::new(Services::default()));
            return Ok(Named { services, _watcher: None });
        }
    };
    let watcher = Watcher::start(path, LOOK_EVERY)?;
    tracing::info!(path = %path.display(), "read services.json");
    Ok(Named { services: watcher.services(), _watcher: Some(watcher) })
}

/// What services.json says now, for a command that ends soon.
pub fn services_now(settings: &Settings) -> anyhow::Result<Services> {
    let usual = Path::new(USUAL);
    match &settings.services {
        Some(path) => Ok(config::services_file::load(path)?),
        None if usual.exists() => Ok(config::services_file::load(usual)?),
        None => Ok(Services::default()),
    }
}
