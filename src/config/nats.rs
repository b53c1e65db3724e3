//! How to reach NATS: the settings, the `NATS_…` variables and the contexts of the `nats` command line, in this order,
//! and a connection that is known to be of use before anything else starts.
//!
//! Who connects is decided by the highest layer that names any credentials at all, so that a password never meets
//! another layer's user. The selected context is for a process that was told nothing: where a URL or a context is named,
//! its credentials are not sent to a server that they may not be meant for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr, ServerError};
use rand::RngExt;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::nearest::nearest;
use super::settings::NatsSettings;

/// Before it, limit markers and expiry of keys do not work as the controllers' lease needs them.
const OLDEST_SERVER: (i64, i64, i64) = (2, 12, 3);
const OLDEST_API_LEVEL: usize = 2;
/// For one server to answer, while there is time for others.
const ATTEMPT: Duration = Duration::from_secs(3);
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// A client, and what happens to its connection.
#[derive(Clone, Debug)]
pub struct Connection {
    pub client: Client,
    /// One more with each connection made, the first one included: what a server kept for a connection is then gone.
    pub generation: watch::Receiver<u64>,
    pub connected: watch::Receiver<bool>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// What was said about NATS makes no sense; no server was asked.
    #[error("{0}")]
    Settings(String),
    #[error(
        "NATS at {servers} refused the credentials ({credentials}): check them, or give others with nats.creds, \
         nats.user and nats.password, nats.nkey or nats.token"
    )]
    Refused { servers: String, credentials: String },
    #[error("no NATS at {servers} within {} s (the last error: {last}): start a nats-server, or name one with --nats-url (nats.url)", waited.as_secs_f32())]
    Unreachable { servers: String, waited: Duration, last: String },
    #[error(
        "the nats-server at {servers} is version {version}, but {}.{}.{} or later is needed: upgrade it",
        OLDEST_SERVER.0, OLDEST_SERVER.1, OLDEST_SERVER.2
    )]
    TooOld { servers: String, version: String },
    #[error(
        "NATS at {servers} offers no JetStream to this account ({reason}): start nats-server with -js, or enable \
         JetStream for the account"
    )]
    NoJetStream { servers: String, reason: String },
    #[error(
        "JetStream at {servers} speaks API level {level}, but {OLDEST_API_LEVEL} or more is needed: upgrade every \
         nats-server of the cluster"
    )]
    ApiLevel { servers: String, level: usize },
}

/// Connects as `name`, trying until the deadline; refused credentials end it at once. With `require_jetstream` the
/// server is also asked whether it can do what the metadata history needs.
pub async fn connect(
    settings: &NatsSettings,
    name: &str,
    deadline: Duration,
    require_jetstream: bool,
) -> Result<Connection, ConnectError> {
    let target = Target::of(settings, &Surroundings::of_this_process())?;
    let end = Instant::now() + deadline;
    let connection = open(&target, settings, name, deadline).await?;
    if require_jetstream {
        check_server(&connection.client, &target.shown(), end).await?;
    }
    Ok(connection)
}

/// A connection to the system account, which tells of lost clients at once; none where no credentials for it are set.
pub async fn connect_system(
    settings: &NatsSettings,
    name: &str,
    deadline: Duration,
) -> Result<Option<Client>, ConnectError> {
    match Target::of_system(settings, &Surroundings::of_this_process())? {
        Some(target) => Ok(Some(open(&target, settings, name, deadline).await?.client)),
        None => Ok(None),
    }
}

/// URLs without `user:password@`, for people to read.
pub(super) fn without_credentials(urls: &str) -> String {
    urls.split(',').map(|url| split_credentials(url.trim()).0).collect::<Vec<_>>().join(",")
}

async fn open(
    target: &Target,
    settings: &NatsSettings,
    name: &str,
    deadline: Duration,
) -> Result<Connection, ConnectError> {
    let servers = target.addresses()?;
    let (start, mut attempt, mut last) = (Instant::now(), 0, "no answer".to_owned());
    loop {
        let left = deadline.saturating_sub(start.elapsed());
        let (generation, generation_seen) = watch::channel(0);
        let (connected, connected_seen) = watch::channel(false);
        let options = target
            .options()?
            .name(name)
            .ping_interval(Duration::from_millis(settings.ping_interval_ms))
            .connection_timeout(ATTEMPT.min(left))
            .reconnect_delay_callback(reconnect_delay)
            .event_callback(move |event| {
                tell(&event, &generation, &connected);
                std::future::ready(())
            });
        match timeout(left, options.connect(&servers[..])).await {
            Ok(Ok(client)) => {
                let mut connection = Connection { client, generation: generation_seen, connected: connected_seen };
                // The event of a connection that is made is already under way.
                timeout(ATTEMPT, connection.generation.wait_for(|seen| *seen > 0)).await.ok();
                return Ok(connection);
            }
            Ok(Err(error)) => match error.kind() {
                ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                    let credentials = target.credentials.shown();
                    return Err(ConnectError::Refused { servers: target.shown(), credentials });
                }
                _ => last = error.to_string(),
            },
            Err(_) => {}
        }
        let wait = backoff(attempt);
        attempt += 1;
        if start.elapsed() + wait >= deadline {
            return Err(ConnectError::Unreachable { servers: target.shown(), waited: deadline, last });
        }
        tracing::debug!(servers = target.shown(), error = last, "NATS is not there yet");
        sleep(wait).await;
    }
}

fn tell(event: &Event, generation: &watch::Sender<u64>, connected: &watch::Sender<bool>) {
    match event {
        Event::Connected => {
            connected.send_replace(true);
            generation.send_modify(|generation| *generation += 1);
        }
        Event::Disconnected | Event::Closed => {
            connected.send_replace(false);
            tracing::warn!("the connection to NATS is lost");
        }
        Event::ServerError(ServerError::AuthorizationViolation) => {
            tracing::error!("NATS refuses the credentials");
        }
        Event::SlowConsumer(_) | Event::ServerError(_) | Event::ClientError(_) => tracing::warn!("NATS: {event}"),
        Event::LameDuckMode | Event::Draining => tracing::info!("NATS: {event}"),
    }
}

/// The client also asks before its very first attempt, which must not wait.
fn reconnect_delay(attempt: usize) -> Duration {
    attempt.checked_sub(2).map(backoff).unwrap_or_default()
}

/// Doubles, half of it by chance, so that a restarted server does not see everyone at the same moment.
fn backoff(attempt: usize) -> Duration {
    let doublings = u32::try_from(attempt.min(16)).unwrap_or(16);
    let most = SHORTEST_WAIT.saturating_mul(1 << doublings).min(LONGEST_WAIT);
    most.mul_f64(rand::rng().random_range(0.5..1.0))
}

async fn check_server(client: &Client, servers: &str, end: Instant) -> Result<(), ConnectError> {
    let servers = servers.to_owned();
    let (major, minor, patch) = OLDEST_SERVER;
    if !client.is_server_compatible(major, minor, patch) {
        let version = client.try_server_info().map(|info| info.version).unwrap_or_default();
        return Err(ConnectError::TooOld { servers, version });
    }
    let mut attempt = 0;
    loop {
        let left = end.saturating_duration_since(Instant::now()).max(SHORTEST_WAIT);
        let reason = match timeout(left.min(ATTEMPT), account(client)).await {
            Ok(Ok(Some(level))) if level < OLDEST_API_LEVEL => return Err(ConnectError::ApiLevel { servers, level }),
            Ok(Ok(Some(_))) => return Ok(()),
            // Nobody ever listens there on a server without JetStream, and nobody yet in a cluster that just starts.
            Ok(Ok(None)) => "nobody answers $JS.API.INFO".to_owned(),
            Ok(Err(reason)) => reason,
            Err(_) => "no answer to $JS.API.INFO in time".to_owned(),
        };
        let wait = backoff(attempt);
        attempt += 1;
        let offers = client.try_server_info().is_some_and(|info| info.jetstream);
        if !offers && client.try_server_info().is_some_and(|info| info.cluster.is_none())
            || Instant::now() + wait >= end
        {
            return Err(ConnectError::NoJetStream { servers, reason });
        }
        sleep(wait).await;
    }
}

/// The API level; none where nobody answers.
async fn account(client: &Client) -> Result<Option<usize>, String> {
    #[derive(Deserialize)]
    struct Answer {
        error: Option<Fault>,
        #[serde(default)]
        api: Api,
    }
    #[derive(Deserialize)]
    struct Fault {
        description: String,
    }
    #[derive(Default, Deserialize)]
    struct Api {
        #[serde(default)]
        level: usize,
    }
    let answer = match client.request("$JS.API.INFO", Default::default()).await {
        Ok(answer) => answer,
        Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let answer: Answer = serde_json::from_slice(&answer.payload).map_err(|error| error.to_string())?;
    match answer.error {
        Some(fault) => Err(fault.description),
        None => Ok(Some(answer.api.level)),
    }
}

/// What the process finds around it.
#[derive(Clone, Debug, Default)]
struct Surroundings {
    variables: Vec<(String, String)>,
    /// Where the `nats` command line keeps its contexts.
    contexts: Option<PathBuf>,
    home: Option<PathBuf>,
}

impl Surroundings {
    fn of_this_process() -> Surroundings {
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

    fn variable(&self, name: &str) -> Option<String> {
        let (_, value) = self.variables.iter().find(|(known, _)| known == name)?;
        (!value.is_empty()).then(|| value.clone())
    }

    fn path(&self, path: &Path) -> PathBuf {
        match (path.strip_prefix("~"), &self.home) {
            (Ok(below), Some(home)) => home.join(below),
            _ => path.to_owned(),
        }
    }

    fn selected_context(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.contexts.as_ref()?.join("context.txt")).ok()?;
        let name = text.trim();
        (!name.is_empty()).then(|| name.to_owned())
    }

    fn context(&self, name: &str) -> Result<Context, ConnectError> {
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
        for (field, value) in [
            ("nsc", &context.nsc),
            ("socks_proxy", &context.socks_proxy),
            ("user_jwt", &context.user_jwt),
            ("jetstream_domain", &context.jetstream_domain),
            ("jetstream_api_prefix", &context.jetstream_api_prefix),
        ] {
            if !value.is_empty() {
                return Err(wrong(format!(
                    "uses {field}, which dmq cannot: name the servers and a credentials file instead"
                )));
            }
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
struct Context {
    url: String,
    token: String,
    user: String,
    password: String,
    creds: String,
    nkey: String,
    cert: String,
    key: String,
    ca: String,
    inbox_prefix: String,
    tls_first: bool,
    nsc: String,
    socks_proxy: String,
    user_jwt: String,
    jetstream_domain: String,
    jetstream_api_prefix: String,
}

/// What one place says; the highest that says something wins.
#[derive(Default)]
struct Layer {
    url: Option<String>,
    creds: Option<PathBuf>,
    nkey: Option<PathBuf>,
    user: Option<String>,
    password: Option<String>,
    token: Option<String>,
    ca: Option<PathBuf>,
    certificate: Option<(PathBuf, PathBuf)>,
    inbox_prefix: Option<String>,
    tls_first: bool,
}

impl Layer {
    fn of_settings(settings: &NatsSettings) -> Layer {
        Layer {
            url: settings.url.clone(),
            creds: settings.creds.clone(),
            nkey: settings.nkey.clone(),
            user: settings.user.clone(),
            password: settings.password.clone(),
            token: settings.token.clone(),
            ca: settings.ca.clone(),
            certificate: settings.cert.clone().zip(settings.key.clone()),
            inbox_prefix: settings.inbox_prefix.clone(),
            tls_first: false,
        }
    }

    fn of_variables(around: &Surroundings) -> Layer {
        let path = |name: &str| around.variable(name).map(PathBuf::from);
        Layer {
            url: around.variable("NATS_URL"),
            creds: path("NATS_CREDS"),
            nkey: path("NATS_NKEY"),
            user: around.variable("NATS_USER"),
            password: around.variable("NATS_PASSWORD"),
            token: around.variable("NATS_TOKEN"),
            ca: path("NATS_CA"),
            certificate: path("NATS_CERT").zip(path("NATS_KEY")),
            inbox_prefix: None,
            tls_first: false,
        }
    }

    fn of_context(context: Context) -> Layer {
        let text = |value: String| (!value.is_empty()).then_some(value);
        let path = |value: String| text(value).map(PathBuf::from);
        Layer {
            url: text(context.url),
            creds: path(context.creds),
            nkey: path(context.nkey),
            user: text(context.user),
            password: text(context.password),
            token: text(context.token),
            ca: path(context.ca),
            certificate: path(context.cert).zip(path(context.key)),
            inbox_prefix: text(context.inbox_prefix),
            tls_first: context.tls_first,
        }
    }

    /// As the `nats` command line has it, a user without a password is a token.
    fn credentials(&self) -> Result<Option<Credentials>, ConnectError> {
        if let Some(creds) = &self.creds {
            return Ok(Some(Credentials::File(creds.clone())));
        }
        if let Some(nkey) = &self.nkey {
            return Ok(Some(Credentials::Nkey(nkey.clone())));
        }
        match (&self.user, &self.password, &self.token) {
            (Some(user), Some(password), _) => Ok(Some(Credentials::User(user.clone(), password.clone()))),
            (_, _, Some(token)) | (Some(token), None, None) => Ok(Some(Credentials::Token(token.clone()))),
            _ => self.url.as_deref().map_or(Ok(None), credentials_of),
        }
    }
}

#[derive(Clone, PartialEq, Eq)]
enum Credentials {
    None,
    File(PathBuf),
    Nkey(PathBuf),
    User(String, String),
    Token(String),
}

impl Credentials {
    fn shown(&self) -> String {
        match self {
            Credentials::None => "none were given".to_owned(),
            Credentials::File(path) => format!("the file {}", path.display()),
            Credentials::Nkey(_) => "an nkey".to_owned(),
            Credentials::User(user, _) => format!("user {user}"),
            Credentials::Token(_) => "a token".to_owned(),
        }
    }
}

/// Where to connect to, and as whom.
struct Target {
    servers: Vec<String>,
    credentials: Credentials,
    ca: Option<PathBuf>,
    certificate: Option<(PathBuf, PathBuf)>,
    inbox_prefix: Option<String>,
    tls_first: bool,
}

impl Target {
    fn of(settings: &NatsSettings, around: &Surroundings) -> Result<Target, ConnectError> {
        let mut layers = vec![Layer::of_settings(settings), Layer::of_variables(around)];
        let named = settings.context.clone().or_else(|| around.variable("NATS_CONTEXT"));
        let told = layers.iter().any(|layer| layer.url.is_some());
        let context = named.or_else(|| if told { None } else { around.selected_context() });
        if let Some(name) = context {
            layers.push(Layer::of_context(around.context(&name)?));
        }
        Target::of_layers(&layers, around)
    }

    /// As the system account, by its own credentials; the rest is as for everyone.
    fn of_system(settings: &NatsSettings, around: &Surroundings) -> Result<Option<Target>, ConnectError> {
        let own = Layer {
            url: settings.system_url.clone(),
            creds: settings.system_creds.clone(),
            user: settings.system_user.clone(),
            password: settings.system_password.clone(),
            ..Layer::default()
        };
        let Some(credentials) = own.credentials()? else { return Ok(None) };
        let mut target = Target::of(settings, around)?;
        target.credentials = credentials.at_home(around);
        target.inbox_prefix = None;
        if let Some(url) = &own.url {
            target.servers = servers_of(url);
        }
        Ok(Some(target))
    }

    fn of_layers(layers: &[Layer], around: &Surroundings) -> Result<Target, ConnectError> {
        let urls = layers.iter().find_map(|layer| layer.url.as_deref()).unwrap_or(NatsSettings::DEFAULT_URL);
        let mut credentials = Credentials::None;
        for layer in layers {
            if let Some(found) = layer.credentials()? {
                credentials = found.at_home(around);
                break;
            }
        }
        let certificate = layers.iter().find_map(|layer| layer.certificate.as_ref());
        Ok(Target {
            servers: servers_of(urls),
            credentials,
            ca: layers.iter().find_map(|layer| layer.ca.as_ref()).map(|path| around.path(path)),
            certificate: certificate.map(|(cert, key)| (around.path(cert), around.path(key))),
            inbox_prefix: layers.iter().find_map(|layer| layer.inbox_prefix.clone()),
            tls_first: layers.iter().any(|layer| layer.tls_first),
        })
    }

    fn shown(&self) -> String {
        self.servers.join(",")
    }

    fn addresses(&self) -> Result<Vec<ServerAddr>, ConnectError> {
        if self.servers.is_empty() {
            return Err(ConnectError::Settings("nats.url names no server: write nats://HOST:PORT".to_owned()));
        }
        let address = |server: &String| {
            server.parse().map_err(|error| {
                ConnectError::Settings(format!("{server:?} is no NATS server ({error}): write nats://HOST:PORT"))
            })
        };
        self.servers.iter().map(address).collect()
    }

    /// Reads the files anew each time: secrets may be mounted late or change.
    fn options(&self) -> Result<ConnectOptions, ConnectError> {
        let mut options = ConnectOptions::new();
        options = match &self.credentials {
            Credentials::None => options,
            Credentials::File(path) => options.credentials(&read(path, "credentials file")?).map_err(|error| {
                ConnectError::Settings(format!("{} is no credentials file: {error}", path.display()))
            })?,
            Credentials::Nkey(path) => options.nkey(seed(path)?),
            Credentials::User(user, password) => options.user_and_password(user.clone(), password.clone()),
            Credentials::Token(token) => options.token(token.clone()),
        };
        if let Some(ca) = &self.ca {
            read(ca, "file of certificates")?;
            options = options.add_root_certificates(ca.clone());
        }
        if let Some((cert, key)) = &self.certificate {
            read(cert, "certificate")?;
            read(key, "certificate's key")?;
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        if let Some(prefix) = &self.inbox_prefix {
            options = options.custom_inbox_prefix(prefix);
        }
        if self.tls_first {
            options = options.tls_first();
        }
        Ok(options)
    }
}

impl Credentials {
    fn at_home(self, around: &Surroundings) -> Credentials {
        match self {
            Credentials::File(path) => Credentials::File(around.path(&path)),
            Credentials::Nkey(path) => Credentials::Nkey(around.path(&path)),
            other => other,
        }
    }
}

fn read(path: &Path, what: &str) -> Result<String, ConnectError> {
    std::fs::read_to_string(path)
        .map_err(|error| ConnectError::Settings(format!("cannot read the {what} {}: {error}", path.display())))
}

/// The seed in the file; as the `nats` command line does not, a seed itself is taken too.
fn seed(path: &Path) -> Result<String, ConnectError> {
    let is_seed =
        |line: &&str| line.len() == 58 && line.starts_with("SU") && line.bytes().all(|b| b.is_ascii_alphanumeric());
    if let Some(seed) = path.to_str().filter(is_seed) {
        return Ok(seed.to_owned());
    }
    let text = read(path, "nkey")?;
    text.lines().map(str::trim).find(is_seed).map(str::to_owned).ok_or_else(|| {
        ConnectError::Settings(format!("{} holds no user's nkey seed: a line that starts with SU", path.display()))
    })
}

fn servers_of(urls: &str) -> Vec<String> {
    let url = |url: &str| split_credentials(url.trim()).0;
    urls.split(',').map(url).filter(|url| !url.is_empty()).collect()
}

/// The credentials that URLs carry, which must agree: one connection has one user.
fn credentials_of(urls: &str) -> Result<Option<Credentials>, ConnectError> {
    let mut found = None;
    for (user, password) in urls.split(',').filter_map(|url| split_credentials(url.trim()).1) {
        let credentials = match password {
            Some(password) => Credentials::User(user, password),
            None => Credentials::Token(user),
        };
        if found.as_ref().is_some_and(|found| *found != credentials) {
            let servers = without_credentials(urls);
            return Err(ConnectError::Settings(format!(
                "the URLs of {servers} carry different credentials: give one for all"
            )));
        }
        found = Some(credentials);
    }
    Ok(found)
}

/// The URL without its credentials, and the user and password, or the token, in them.
fn split_credentials(url: &str) -> (String, Option<(String, Option<String>)>) {
    let (scheme, rest) = url.find("://").map_or(("", url), |at| url.split_at(at + 3));
    let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    // A password may hold a slash although it should not: the last @ decides.
    let (authority, tail) = if host.contains('@') { (host, path) } else { (rest, "") };
    match authority.rsplit_once('@') {
        Some((credentials, host)) => {
            let (user, password) = match credentials.split_once(':') {
                Some((user, password)) => (decoded(user), Some(decoded(password))),
                None => (decoded(credentials), None),
            };
            (format!("{scheme}{host}{tail}"), Some((user, password)))
        }
        None => (url.to_owned(), None),
    }
}

/// Without percent signs' encoding; what is none stays.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut plain, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let code = bytes.get(at + 1..at + 3).filter(|_| byte == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match code.filter(|hex| !hex.starts_with('+')).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(code) => {
                plain.push(code);
                at += 3;
            }
            None => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(plain).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Home {
        folder: tempfile::TempDir,
        around: Surroundings,
    }

    fn home(contexts: &[(&str, &str)], selected: Option<&str>, variables: &[(&str, &str)]) -> Home {
        let folder = tempfile::tempdir().unwrap();
        let nats = folder.path().join(".config/nats");
        std::fs::create_dir_all(nats.join("context")).unwrap();
        for (name, text) in contexts {
            std::fs::write(nats.join("context").join(format!("{name}.json")), text).unwrap();
        }
        if let Some(name) = selected {
            std::fs::write(nats.join("context.txt"), format!("{name}\n")).unwrap();
        }
        let around = Surroundings {
            variables: variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            contexts: Some(nats),
            home: Some(folder.path().to_owned()),
        };
        Home { folder, around }
    }

    fn url(url: &str) -> NatsSettings {
        NatsSettings { url: Some(url.to_owned()), ..NatsSettings::default() }
    }

    fn user(user: &str, password: &str) -> Credentials {
        Credentials::User(user.to_owned(), password.to_owned())
    }

    const PROD: &str = r#"{"description":"x","url":"nats://prod:4222","user":"u","password":"p","token":"","creds":"","nkey":"","cert":"","key":"","ca":"~/ca.pem","nsc":"","jetstream_domain":"","inbox_prefix":"_IN","color_scheme":""}"#;
    const TEST: &str = r#"{"url":"nats://test:4222","creds":"~/test.creds"}"#;

    #[test]
    fn nobody_told_anything_means_the_default() {
        let target = Target::of(&NatsSettings::default(), &home(&[], None, &[]).around).unwrap();
        assert_eq!(target.servers, [NatsSettings::DEFAULT_URL]);
        assert!(target.credentials == Credentials::None);
    }

    #[test]
    fn contexts_are_read_and_the_named_one_wins_over_the_selected_one() {
        let home = home(&[("prod", PROD), ("test", TEST)], Some("prod"), &[]);
        let selected = Target::of(&NatsSettings::default(), &home.around).unwrap();
        assert_eq!(selected.servers, ["nats://prod:4222"]);
        assert!(selected.credentials == user("u", "p"));
        assert_eq!(selected.ca, Some(home.folder.path().join("ca.pem")));
        assert_eq!(selected.inbox_prefix.as_deref(), Some("_IN"));

        let settings = NatsSettings { context: Some("test".to_owned()), ..NatsSettings::default() };
        let named = Target::of(&settings, &home.around).unwrap();
        assert_eq!(named.servers, ["nats://test:4222"]);
        assert!(named.credentials == Credentials::File(home.folder.path().join("test.creds")));
        assert_eq!(named.ca, None);
    }

    #[test]
    fn settings_win_over_variables_and_these_over_contexts() {
        let variables =
            [("NATS_URL", "nats://var:4222"), ("NATS_CONTEXT", "prod"), ("NATS_TOKEN", "t"), ("NATS_PASSWORD", "")];
        let home = home(&[("prod", PROD)], None, &variables);
        let target = Target::of(&NatsSettings::default(), &home.around).unwrap();
        assert_eq!(target.servers, ["nats://var:4222"]);
        assert!(target.credentials == Credentials::Token("t".to_owned()));
        assert_eq!(target.inbox_prefix.as_deref(), Some("_IN"));

        let target = Target::of(&url("nats://a:b%40c@own:1, nats://other:2"), &home.around).unwrap();
        assert_eq!(target.servers, ["nats://own:1", "nats://other:2"]);
        assert!(target.credentials == user("a", "b@c"));
    }

    #[test]
    fn the_selected_context_is_not_for_another_server() {
        let home = home(&[("prod", PROD)], Some("prod"), &[]);
        let target = Target::of(&url("nats://own:1"), &home.around).unwrap();
        assert!(target.credentials == Credentials::None);
    }

    #[test]
    fn what_cannot_be_used_is_said_with_its_name() {
        let home = home(&[("prod", PROD), ("nsc", r#"{"nsc":"nsc://a/b/c"}"#), ("bad", "{")], None, &[]);
        for (name, part) in
            [("prd", "did you mean prod?"), ("nsc", "uses nsc"), ("bad", "no context"), ("../x", "no name")]
        {
            let settings = NatsSettings { context: Some(name.to_owned()), ..NatsSettings::default() };
            let fault = Target::of(&settings, &home.around).err().unwrap().to_string();
            assert!(fault.contains(part), "{fault}");
        }
        let fault = Target::of(&url("nats://a:b@x,nats://c:d@y"), &home.around).err().unwrap().to_string();
        assert!(fault.contains("different credentials") && !fault.contains("a:b"), "{fault}");
        let target = Target::of(&url("http://x"), &home.around).unwrap();
        assert!(target.addresses().unwrap_err().to_string().contains("nats://HOST:PORT"));
    }

    #[test]
    fn the_system_account_has_its_own_credentials_or_no_connection() {
        let around = home(&[], None, &[]).around;
        let mut settings = url("nats://a:b@own:1");
        assert!(Target::of_system(&settings, &around).unwrap().is_none());
        (settings.system_user, settings.system_password) = (Some("sys".to_owned()), Some("s".to_owned()));
        let target = Target::of_system(&settings, &around).unwrap().unwrap();
        assert_eq!(target.servers, ["nats://own:1"]);
        assert!(target.credentials == user("sys", "s"));
    }

    #[test]
    fn credentials_are_split_out_of_urls() {
        assert_eq!(without_credentials("nats://u:p@h:1, h2,tls://t@h3"), "nats://h:1,h2,tls://h3");
        let token = credentials_of("nats://tok@h").unwrap();
        assert!(token == Some(Credentials::Token("tok".to_owned())));
        assert_eq!(decoded("100%"), "100%");
        assert_eq!(decoded("%2Fa%zz"), "/a%zz");
    }

    #[test]
    fn waits_grow_to_a_limit_and_the_first_attempt_has_none() {
        assert_eq!(reconnect_delay(1), Duration::ZERO);
        assert!(backoff(0) >= SHORTEST_WAIT / 2 && backoff(0) <= SHORTEST_WAIT);
        assert!(backoff(usize::MAX) <= LONGEST_WAIT);
    }

    #[tokio::test]
    async fn a_server_that_never_comes_ends_with_the_last_error_at_the_deadline() {
        let start = Instant::now();
        let deadline = Duration::from_millis(600);
        let fault = connect(&url("nats://u:secret@127.0.0.1:1"), "test", deadline, true).await.unwrap_err().to_string();
        assert!(start.elapsed() < Duration::from_secs(2));
        assert!(fault.contains("127.0.0.1:1") && fault.contains("refused") && !fault.contains("secret"), "{fault}");
    }
}
