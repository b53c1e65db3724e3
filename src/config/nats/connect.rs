//! The connection itself: tried until a deadline, checked for what dmq needs of the server, and watched from then on.
//!
//! async-nats would retry a refused login for ever and keep the reason to itself, so the first connection is tried here,
//! one attempt at a time. After that async-nats reconnects by itself, and `ConnectionState` says to what.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, rustls};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::target::{Login, NatsTarget};
use super::{MIN_API_LEVEL, MIN_SERVER_VERSION};
use crate::types::Connection;

/// How long one attempt may take, and one question to JetStream.
const ATTEMPT: Duration = Duration::from_secs(2);

/// The longest pause between attempts, at the start and when reconnecting.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How many events wait for whoever reads them; more are dropped, for the state tells what counts.
const EVENTS: usize = 256;

/// What a process wants of its connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectPlan {
    /// What operators see in the server's list of connections.
    pub name: String,
    /// How long to try, all checks included.
    pub deadline: Duration,
    /// Whether the server must have a JetStream that is new enough.
    pub require_jetstream: bool,
}

/// A connection, and what becomes of it.
#[derive(Debug)]
pub struct Connected {
    pub client: Client,
    /// Whether it is connected now, and how the server knows it. Nothing is lost here but what was superseded.
    pub state: watch::Receiver<ConnectionState>,
    /// What happened, in order; a slow reader loses some.
    ///
    /// While `state` or `events` is held the connection stays open even without a `client`.
    pub events: mpsc::Receiver<ConnectionEvent>,
}

/// A reconnect shows as another `Connection`, even where the time between was too short to be seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ConnectionState {
    Connected(Connection),
    Disconnected,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ConnectionEvent {
    /// Connected anew.
    Connected(Connection),
    Disconnected,
    /// The server is about to end. Where the client knows others it moves there by itself.
    LameDuck,
    /// A subscription, by its number, was read too slowly and lost messages.
    SlowConsumer(u64),
    /// The server or the client complains: a permission that is missing, an attempt to reconnect that failed.
    Complaint(String),
    /// The end: drained or closed.
    Closed,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot use the {what} {}: {message}; correct the path or the file", path.display())]
    File { what: &'static str, path: PathBuf, message: String },
    #[error(
        "NATS at {servers} refuses the login from {login_from}: {message}; check the credentials and the account's users"
    )]
    Refused { servers: String, login_from: String, message: String },
    #[error("TLS with NATS at {servers} fails: {message}; check nats.ca, nats.cert, nats.key and the name in the URL")]
    Tls { servers: String, message: String },
    #[error(
        "no NATS at {servers} (from {servers_from}): {message}; start one with 'nats-server -js', or give another with \
         --nats, DMQ_NATS_URL or NATS_URL"
    )]
    Unreachable { servers: String, servers_from: String, message: String },
    #[error("the NATS server {server} has version {version}; dmq needs {} or later", version_text(MIN_SERVER_VERSION))]
    TooOld { server: String, version: String },
    #[error(
        "JetStream on the NATS server {server} has API level {level}; dmq needs {MIN_API_LEVEL}, so update all servers"
    )]
    JetStreamTooOld { server: String, level: u32 },
    #[error(
        "the NATS server {server} offers this account no JetStream: {message}; start it with -js or 'jetstream {{}}', and \
         allow the account to use it"
    )]
    NoJetStream { server: String, message: String },
}

fn version_text((major, minor, patch): (u32, u32, u32)) -> String {
    format!("{major}.{minor}.{patch}")
}

/// Connects and checks the server, trying again until the plan's deadline; then the last error says what was wrong.
///
/// What no retry can mend, such as a missing file or an old server, ends it at once.
pub async fn connect(target: &NatsTarget, plan: &ConnectPlan) -> Result<Connected, ConnectError> {
    let deadline = Instant::now() + plan.deadline;
    let mut last: Option<ConnectError> = None;
    let mut attempt = 0;
    loop {
        let (raw, events) = mpsc::channel(EVENTS);
        let options = options(target, &plan.name, raw).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        let error = match timeout(left, options.connect(target.servers.as_slice())).await {
            Ok(Ok(client)) => {
                check_server(&client, plan, deadline).await?;
                return Ok(watch_over(client, events));
            }
            Ok(Err(error)) => classify(target, &error),
            // The attempt was cut short by the deadline: an earlier one knows more.
            Err(_) => last.clone().unwrap_or_else(|| unreachable_error(target, "no answer in time".into())),
        };
        if last.as_ref() != Some(&error) {
            tracing::warn!("{error}; trying again");
        }
        attempt += 1;
        let pause = backoff(attempt);
        if Instant::now() + pause >= deadline {
            return Err(error);
        }
        last = Some(error);
        sleep(pause).await;
    }
}

async fn options(target: &NatsTarget, name: &str, raw: mpsc::Sender<Event>) -> Result<ConnectOptions, ConnectError> {
    let options = connect_options(target).await?;
    Ok(options.name(name).event_callback(move |event| {
        // Waiting here would hold up the events behind; the state is settled by those that fit.
        raw.try_send(event).ok();
        std::future::ready(())
    }))
}

/// How to connect to the target, for whoever watches over the connection itself: name and callbacks are still to be set.
///
/// # Errors
/// `File`, where one that the target names cannot be used.
pub async fn connect_options(target: &NatsTarget) -> Result<ConnectOptions, ConnectError> {
    let mut options = match &target.login {
        Login::Nobody => ConnectOptions::new(),
        Login::Creds(path) => {
            let text = read("credentials file", path).await?;
            ConnectOptions::with_credentials(&text).map_err(|error| ConnectError::File {
                what: "credentials file",
                path: path.clone(),
                message: error.to_string(),
            })?
        }
        Login::Nkey(path) => ConnectOptions::with_nkey(seed(path, &read("nkey file", path).await?)?),
        Login::User { user, password } => {
            ConnectOptions::with_user_and_password(user.clone(), password.reveal().to_owned())
        }
        Login::Token(token) => ConnectOptions::with_token(token.reveal().to_owned()),
    };
    if let Some(ca) = &target.ca {
        read_pem("file of authorities", ca).await?;
        options = options.add_root_certificates(ca.clone());
    }
    if let Some((cert, key)) = &target.identity {
        read_pem("client certificate", cert).await?;
        read_pem("client key", key).await?;
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    if target.tls_first {
        options = options.tls_first();
    }
    if let Some(prefix) = &target.inbox_prefix {
        options = options.custom_inbox_prefix(prefix);
    }
    Ok(options.ping_interval(target.ping_interval).connection_timeout(ATTEMPT).reconnect_delay_callback(backoff))
}

/// The pause before an attempt, counted from 1: at once, then twice as long each time, half of it by chance, so that a
/// thousand nodes do not come back in step.
fn backoff(attempt: usize) -> Duration {
    let doubled = Duration::from_millis(10).saturating_mul(1 << attempt.min(16));
    match attempt {
        0 | 1 => Duration::from_millis(rand::random_range(0..10)),
        _ => doubled.min(LONGEST_PAUSE).mul_f64(rand::random_range(0.5..1.0)),
    }
}

async fn read(what: &'static str, path: &Path) -> Result<String, ConnectError> {
    let text = tokio::fs::read_to_string(path).await;
    text.map_err(|error| ConnectError::File { what, path: path.into(), message: error.to_string() })
}

async fn read_pem(what: &'static str, path: &Path) -> Result<(), ConnectError> {
    if read(what, path).await?.contains("-----BEGIN ") {
        return Ok(());
    }
    Err(ConnectError::File { what, path: path.into(), message: "there is no PEM in it".into() })
}

/// The line with a user's seed; the rest may be comments.
fn seed(path: &Path, text: &str) -> Result<String, ConnectError> {
    let line = text.lines().map(str::trim).find(|line| line.starts_with("SU"));
    line.map(str::to_owned).ok_or_else(|| ConnectError::File {
        what: "nkey file",
        path: path.into(),
        message: "there is no user's seed in it, a line that begins with SU".into(),
    })
}

fn unreachable_error(target: &NatsTarget, message: String) -> ConnectError {
    ConnectError::Unreachable { servers: target.shown_servers(), servers_from: target.servers_from.clone(), message }
}

fn classify(target: &NatsTarget, error: &async_nats::ConnectError) -> ConnectError {
    let servers = target.shown_servers();
    let message = error.to_string();
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            ConnectError::Refused { servers, login_from: target.login_from.clone(), message }
        }
        ConnectErrorKind::Tls => ConnectError::Tls { servers, message },
        ConnectErrorKind::ServerParse
        | ConnectErrorKind::Dns
        | ConnectErrorKind::TimedOut
        | ConnectErrorKind::Io
        | ConnectErrorKind::MaxReconnects => {
            let refused = message.contains("authentication") || message.contains("authorization");
            match (is_tls(error), refused) {
                (true, _) => ConnectError::Tls { servers, message },
                (false, true) => ConnectError::Refused { servers, login_from: target.login_from.clone(), message },
                (false, false) => unreachable_error(target, message),
            }
        }
    }
}

/// Whether rustls is behind it: async-nats reports a failed handshake as an ordinary I/O error.
fn is_tls(error: &async_nats::ConnectError) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        let inside = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if cause.is::<rustls::Error>() || inside.is_some_and(|inside| inside.is::<rustls::Error>()) {
            return true;
        }
        source = cause.source();
    }
    false
}

async fn check_server(client: &Client, plan: &ConnectPlan, deadline: Instant) -> Result<(), ConnectError> {
    let info = client.server_info();
    let server = if info.server_name.is_empty() { info.server_id } else { info.server_name };
    // A version that is no version is a build of somebody's own: they know what they do.
    if version(&info.version).is_some_and(|version| version < MIN_SERVER_VERSION) {
        return Err(ConnectError::TooOld { server, version: info.version });
    }
    if !plan.require_jetstream {
        return Ok(());
    }
    let mut attempt = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let message = match timeout(left.min(ATTEMPT), client.request("$JS.API.INFO", "".into())).await {
            Ok(Ok(answer)) => match level(&answer.payload) {
                Ok(level) if level < MIN_API_LEVEL => return Err(ConnectError::JetStreamTooOld { server, level }),
                Ok(_) => return Ok(()),
                Err(message) => message,
            },
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer on $JS.API.INFO in time".into(),
        };
        // A cluster that has just started has no JetStream for a while, so one refusal settles nothing.
        attempt += 1;
        let pause = backoff(attempt + 2);
        if Instant::now() + pause >= deadline {
            return Err(ConnectError::NoJetStream { server, message });
        }
        sleep(pause).await;
    }
}

/// The API level in JetStream's answer about the account, or what it says against it.
fn level(payload: &[u8]) -> Result<u32, String> {
    #[derive(Deserialize)]
    struct Answer {
        api: Option<Api>,
        error: Option<Complaint>,
    }
    #[derive(Deserialize)]
    struct Api {
        #[serde(default)]
        level: u32,
    }
    #[derive(Deserialize)]
    struct Complaint {
        #[serde(default)]
        description: String,
    }
    let answer: Answer =
        serde_json::from_slice(payload).map_err(|error| format!("an answer that is no JSON: {error}"))?;
    match (answer.error, answer.api) {
        (Some(error), _) => Err(error.description),
        (None, Some(api)) => Ok(api.level),
        (None, None) => Err("an answer without its API level".into()),
    }
}

/// `2.12.3`, also with something after it (`2.12.3-RC.1`).
fn version(text: &str) -> Option<(u32, u32, u32)> {
    let core = text.trim_start_matches('v').split(['-', '+']).next()?;
    let mut parts = core.split('.').map(|part| part.parse().ok());
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(major), Some(minor), Some(patch), None) => Some((major?, minor?, patch?)),
        _ => None,
    }
}

fn connection(client: &Client) -> Connection {
    let info = client.server_info();
    Connection { server: info.server_id.into(), client: info.client_id }
}

fn watch_over(client: Client, raw: mpsc::Receiver<Event>) -> Connected {
    let (state_sender, state) = watch::channel(ConnectionState::Connected(connection(&client)));
    let (event_sender, events) = mpsc::channel(EVENTS);
    let present = connection(&client);
    let overseer = Overseer { client: client.clone(), present, raw, state: state_sender, events: event_sender };
    tokio::spawn(overseer.run());
    Connected { client, state, events }
}

/// Turns async-nats's events into ours until nobody listens any more.
struct Overseer {
    client: Client,
    /// The connection last told of.
    present: Connection,
    raw: mpsc::Receiver<Event>,
    state: watch::Sender<ConnectionState>,
    events: mpsc::Sender<ConnectionEvent>,
}

impl Overseer {
    async fn run(mut self) {
        let mut first = true;
        loop {
            let nobody_listens = async { tokio::join!(self.state.closed(), self.events.closed()) };
            let event = tokio::select! {
                event = self.raw.recv() => event,
                _ = nobody_listens => return,
            };
            let event = match event {
                // The first connection is known from the start.
                Some(Event::Connected) if std::mem::take(&mut first) => continue,
                Some(Event::Connected) => ConnectionEvent::Connected(self.reconnected().await),
                Some(Event::Disconnected) => ConnectionEvent::Disconnected,
                Some(Event::LameDuckMode) => ConnectionEvent::LameDuck,
                Some(Event::SlowConsumer(subscription)) => ConnectionEvent::SlowConsumer(subscription),
                Some(Event::ServerError(error)) => ConnectionEvent::Complaint(error.to_string()),
                Some(Event::ClientError(error)) => ConnectionEvent::Complaint(error.to_string()),
                Some(Event::Draining) => continue,
                Some(Event::Closed) | None => ConnectionEvent::Closed,
            };
            self.tell(&event);
            if event == ConnectionEvent::LameDuck {
                self.move_away().await;
            }
            let closed = event == ConnectionEvent::Closed;
            if self.events.try_send(event).is_err() {
                tracing::debug!("an event of the NATS connection found no reader");
            }
            if closed {
                return;
            }
        }
    }

    /// async-nats tells of a connection just before it shows its data, which differ from the last one's: at a server that
    /// is the same, ids rise, and a server that starts anew has another name.
    async fn reconnected(&mut self) -> Connection {
        let until = Instant::now() + Duration::from_secs(1);
        while connection(&self.client) == self.present && Instant::now() < until {
            sleep(Duration::from_millis(1)).await;
        }
        self.present = connection(&self.client);
        self.present.clone()
    }

    fn tell(&self, event: &ConnectionEvent) {
        match event {
            ConnectionEvent::Connected(connection) => {
                tracing::info!(server = %connection.server, client = connection.client, "connected to NATS again");
                self.state.send_replace(ConnectionState::Connected(connection.clone()));
            }
            ConnectionEvent::Disconnected | ConnectionEvent::Closed => {
                tracing::warn!("disconnected from NATS");
                self.state.send_replace(ConnectionState::Disconnected);
            }
            ConnectionEvent::LameDuck => tracing::warn!("the NATS server is about to end"),
            ConnectionEvent::SlowConsumer(subscription) => {
                tracing::warn!(subscription, "a NATS subscription was read too slowly and lost messages");
            }
            ConnectionEvent::Complaint(message) => tracing::warn!("NATS: {message}"),
        }
    }

    /// From a server that is about to end to another, where one is known.
    async fn move_away(&self) {
        let known = self.client.server_pool().await.map_or(1, |servers| servers.len());
        if known > 1 && self.client.force_reconnect().await.is_err() {
            tracing::debug!("the NATS client has ended already");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{NatsSettings, Secret, ServerUrl, Variables};

    fn target(url: &str) -> NatsTarget {
        let settings =
            NatsSettings { url: vec![ServerUrl::new(url)], ping_interval_ms: 2_000, ..NatsSettings::default() };
        NatsTarget::resolve(&settings, &Variables::new()).unwrap()
    }

    fn plan(millis: u64) -> ConnectPlan {
        ConnectPlan { name: "test".into(), deadline: Duration::from_millis(millis), require_jetstream: true }
    }

    #[test]
    fn versions_compare_by_their_numbers() {
        assert_eq!(version("2.12.3"), Some((2, 12, 3)));
        assert_eq!(version("v2.15.1-RC.1"), Some((2, 15, 1)));
        assert!(version("2.9.10") < Some(MIN_SERVER_VERSION));
        for text in ["", "2", "2.1", "a.b.c", "2.1.0.0"] {
            assert_eq!(version(text), None, "{text}");
        }
    }

    #[test]
    fn jetstreams_answer_is_its_level_or_what_it_says_against_it() {
        assert_eq!(level(br#"{"type": "x", "api": {"level": 3}}"#), Ok(3));
        assert_eq!(level(br#"{"api": {"total": 3}}"#), Ok(0), "old servers have no level");
        let refusal =
            br#"{"error": {"code": 503, "err_code": 10039, "description": "jetstream not enabled for account"}}"#;
        assert_eq!(level(refusal), Err("jetstream not enabled for account".into()));
        assert!(level(b"{}").is_err() && level(b"x").is_err());
    }

    #[test]
    fn pauses_grow_to_their_bound() {
        assert!(backoff(1) < Duration::from_millis(10));
        assert!((2..100).map(backoff).all(|pause| pause <= LONGEST_PAUSE));
        assert!(backoff(50) >= LONGEST_PAUSE / 2);
    }

    #[tokio::test]
    async fn who_reaches_nobody_is_told_so_after_the_deadline() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let started = Instant::now();
        let error = connect(&target(&format!("127.0.0.1:{port}")), &plan(300)).await.unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(5));
        assert!(matches!(&error, ConnectError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
    }

    #[tokio::test]
    async fn files_that_cannot_be_used_end_it_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "nothing of use").unwrap();
        let base = target("127.0.0.1:1");
        for target in [
            NatsTarget { login: Login::Creds(path.clone()), ..base.clone() },
            NatsTarget { login: Login::Nkey(path.clone()), ..base.clone() },
            NatsTarget { ca: Some(path.clone()), ..base.clone() },
            NatsTarget { identity: Some((path.clone(), dir.path().join("none"))), ..base.clone() },
        ] {
            let error = connect(&target, &plan(60_000)).await.unwrap_err();
            assert!(matches!(&error, ConnectError::File { .. }), "{error}");
        }
    }

    #[test]
    fn an_error_shows_no_password() {
        let target = NatsTarget { login: Login::Token(Secret::new("hush")), ..target("nats://me:hush@a:1") };
        assert!(!format!("{target:?} {}", unreachable_error(&target, "x".into())).contains("hush"));
    }
}
