//! Which servers and which login it comes to: dmq's settings, then the `nats` CLI's variables, then a context, then the
//! defaults.
//!
//! Field by field the first that says something wins, with two exceptions. A login is taken whole from one layer, for a
//! user from here and a token from there are nobody. And the context that is merely *selected* counts only where nobody
//! gives a URL: its login must not go to a server that it does not name.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::ServerAddr;

use super::context;
use crate::config::services::is_inbox_prefix;
use crate::config::settings::{NatsSettings, Secret, ServerUrl, Variables, is_server, split_urls};

const DEFAULT_URL: &str = "nats://127.0.0.1:4222";

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NatsTargetError {
    #[error("{from}: {url} is no NATS server; write one like nats://host:4222 or tls://host:4222")]
    BadUrl { url: ServerUrl, from: String },
    #[error("there is no nats context {name:?}; {}", known_contexts(known))]
    UnknownContext { name: String, known: Vec<String> },
    #[error("cannot read the nats context in {}: {message}; see 'nats context edit'", path.display())]
    BadContext { path: PathBuf, message: String },
    #[error("the nats context in {} uses {field}, which dmq cannot; give a URL and a credentials file instead", path.display())]
    ContextField { path: PathBuf, field: &'static str },
    #[error("{from}: {given} is given without {missing}; give both or neither")]
    Half { from: String, given: &'static str, missing: &'static str },
    #[error("{from}: {prefix:?} cannot begin the subjects of answers; give a NATS subject without wildcards")]
    BadInboxPrefix { prefix: String, from: String },
}

fn known_contexts(known: &[String]) -> String {
    if known.is_empty() {
        "there are none; see 'nats context add'".into()
    } else {
        format!("there are {}", known.join(", "))
    }
}

/// How to log in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Login {
    Nobody,
    /// A file with a JWT and its seed.
    Creds(PathBuf),
    /// A file with an nkey's seed.
    Nkey(PathBuf),
    User {
        user: String,
        password: Secret,
    },
    Token(Secret),
}

/// All that a connection needs to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NatsTarget {
    /// Without logins in them.
    pub servers: Vec<ServerAddr>,
    /// Who named the servers: a setting, a variable, a context.
    pub servers_from: String,
    pub login: Login,
    pub login_from: String,
    pub ca: Option<PathBuf>,
    /// The client's certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    pub tls_first: bool,
    pub inbox_prefix: Option<String>,
    pub ping_interval: Duration,
}

/// What one source says.
#[derive(Default)]
pub(super) struct Layer {
    pub from: String,
    pub urls: Vec<String>,
    pub creds: Option<PathBuf>,
    pub nkey: Option<PathBuf>,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub token: Option<Secret>,
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub inbox_prefix: Option<String>,
    pub tls_first: bool,
}

impl NatsTarget {
    /// Settles it for the settings and the process's variables; reads a context's file where one is used.
    pub fn resolve(settings: &NatsSettings, variables: &Variables) -> Result<Self, NatsTargetError> {
        let mut layers = vec![Layer::of_settings(settings), Layer::of_variables(variables)];
        let set = |name| variables.get(name).filter(|value| !value.is_empty()).cloned();
        let named = settings.context.clone().or_else(|| set("NATS_CONTEXT"));
        let selected = || if layers.iter().all(|l| l.urls.is_empty()) { context::selected(variables) } else { None };
        if let Some(name) = named.or_else(selected) {
            layers.push(context::load(&name, variables)?);
        }
        layers.push(Layer { from: "default".into(), urls: vec![DEFAULT_URL.into()], ..Layer::default() });
        Self::of_layers(&layers, Duration::from_millis(settings.ping_interval_ms))
    }

    fn of_layers(layers: &[Layer], ping_interval: Duration) -> Result<Self, NatsTargetError> {
        // The last layer, the default, always has a URL.
        let place = layers.iter().position(|layer| !layer.urls.is_empty()).unwrap_or(layers.len() - 1);
        let (servers, url_login) = read_urls(&layers[place])?;
        let mut login = (Login::Nobody, "default");
        for (i, layer) in layers.iter().enumerate() {
            let own = layer.login()?;
            let in_url = if i == place { url_login.clone() } else { None };
            if let Some(found) = own.or(in_url) {
                login = (found, &layer.from);
                break;
            }
        }
        let mut identity = None;
        for layer in layers {
            identity = match (&layer.cert, &layer.key) {
                (None, None) => continue,
                (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
                (Some(_), None) => return Err(layer.half("a client certificate", "its key")),
                (None, Some(_)) => return Err(layer.half("a certificate's key", "the certificate")),
            };
            break;
        }
        let inbox = layers.iter().find_map(|layer| Some((layer.inbox_prefix.clone()?, &layer.from)));
        if let Some((prefix, from)) = &inbox
            && !is_inbox_prefix(prefix)
        {
            return Err(NatsTargetError::BadInboxPrefix { prefix: prefix.clone(), from: from.to_string() });
        }
        Ok(Self {
            servers,
            servers_from: layers[place].from.clone(),
            login: login.0,
            login_from: login.1.into(),
            ca: layers.iter().find_map(|layer| layer.ca.clone()),
            identity,
            tls_first: layers.iter().any(|layer| layer.tls_first),
            inbox_prefix: inbox.map(|(prefix, _)| prefix),
            ping_interval,
        })
    }

    /// The same for the system account, where the settings give a login for it.
    pub fn system(&self, settings: &NatsSettings) -> Result<Option<Self>, NatsTargetError> {
        let layer = Layer {
            from: "settings (nats.system_…)".into(),
            urls: settings.system_url.iter().map(|url| url.reveal().to_owned()).collect(),
            creds: settings.system_creds.clone(),
            user: settings.system_user.clone(),
            password: settings.system_password.clone(),
            ..Layer::default()
        };
        let Some(login) = layer.login()? else { return Ok(None) };
        let (servers, servers_from) = if layer.urls.is_empty() {
            (self.servers.clone(), self.servers_from.clone())
        } else {
            (read_urls(&layer)?.0, layer.from.clone())
        };
        // The account's permissions for inboxes are its own.
        let target = Self { servers, servers_from, login, login_from: layer.from, inbox_prefix: None, ..self.clone() };
        Ok(Some(target))
    }

    /// The servers for a sentence.
    pub fn shown_servers(&self) -> String {
        self.servers.iter().map(|server| server.clone().into_inner().to_string()).collect::<Vec<_>>().join(", ")
    }
}

impl Layer {
    fn of_settings(settings: &NatsSettings) -> Self {
        Self {
            from: "settings (nats.…)".into(),
            urls: settings.url.iter().map(|url| url.reveal().to_owned()).collect(),
            creds: settings.creds.clone(),
            nkey: settings.nkey.clone(),
            user: settings.user.clone(),
            password: settings.password.clone(),
            token: settings.token.clone(),
            ca: settings.ca.clone(),
            cert: settings.cert.clone(),
            key: settings.key.clone(),
            inbox_prefix: settings.inbox_prefix.clone(),
            tls_first: settings.tls_first,
        }
    }

    fn of_variables(variables: &Variables) -> Self {
        let set = |name: &str| variables.get(name).filter(|value| !value.is_empty()).cloned();
        let file = |name: &str| set(name).map(|path| context::in_home(&path, variables));
        let (user, password) = (set("NATS_USER"), set("NATS_PASSWORD"));
        // As the CLI has it: a user without a password is a token.
        let (user, token) = if password.is_none() { (None, user) } else { (user, None) };
        Self {
            from: "NATS_… variables".into(),
            urls: set("NATS_URL").map(|urls| split_urls(&urls)).unwrap_or_default(),
            creds: file("NATS_CREDS"),
            nkey: file("NATS_NKEY"),
            user,
            password: password.map(Secret::new),
            token: set("NATS_TOKEN").or(token).map(Secret::new),
            ca: file("NATS_CA"),
            cert: file("NATS_CERT"),
            key: file("NATS_KEY"),
            inbox_prefix: None,
            tls_first: false,
        }
    }

    /// The login, in the CLI's order where there are several.
    fn login(&self) -> Result<Option<Login>, NatsTargetError> {
        Ok(match (&self.user, &self.password) {
            (Some(user), Some(password)) => Some(Login::User { user: user.clone(), password: password.clone() }),
            (Some(_), None) => return Err(self.half("a user", "a password")),
            (None, Some(_)) => return Err(self.half("a password", "a user")),
            (None, None) => {
                let creds = self.creds.clone().map(Login::Creds);
                creds.or_else(|| self.nkey.clone().map(Login::Nkey)).or_else(|| self.token.clone().map(Login::Token))
            }
        })
    }

    fn half(&self, given: &'static str, missing: &'static str) -> NatsTargetError {
        NatsTargetError::Half { from: self.from.clone(), given, missing }
    }
}

/// The servers, and the login that stands in the first URL that has one: async-nats would overlook it.
fn read_urls(layer: &Layer) -> Result<(Vec<ServerAddr>, Option<Login>), NatsTargetError> {
    let mut login = None;
    let mut servers = Vec::new();
    for text in &layer.urls {
        let bad = || NatsTargetError::BadUrl { url: ServerUrl::new(text), from: layer.from.clone() };
        if !is_server(text) {
            return Err(bad());
        }
        let server: ServerAddr = text.parse().map_err(|_| bad())?;
        let mut url = server.into_inner();
        let user = decoded(url.username());
        match url.password().map(decoded) {
            Some(password) => {
                login.get_or_insert(Login::User { user, password: Secret::new(password) });
            }
            None if !user.is_empty() => _ = login.get_or_insert(Login::Token(Secret::new(user))),
            None => {}
        }
        url.set_username("").map_err(|()| bad())?;
        url.set_password(None).map_err(|()| bad())?;
        servers.push(ServerAddr::from_url(url).map_err(|_| bad())?);
    }
    Ok((servers, login))
}

/// `%40` is `@`, as in every URL.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digit = |i: usize| tail.get(i).and_then(|byte| (*byte as char).to_digit(16));
        match (*first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    /// A home with contexts `east` (selected) and `west`.
    fn home() -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(".config/nats/context");
        std::fs::create_dir_all(&folder).unwrap();
        let east = r#"{"url": "nats://east:1,nats://east:2", "creds": "~/east.creds", "inbox_prefix": "_INBOX.east", "description": "x"}"#;
        std::fs::write(folder.join("east.json"), east).unwrap();
        let west = r#"{"url": "tls://west:1", "user": "me", "password": "hush", "ca": "/ca.pem", "tls_first": true}"#;
        std::fs::write(folder.join("west.json"), west).unwrap();
        std::fs::write(folder.join("odd.json"), r#"{"url": "nats://a", "nsc": "nsc://a/b/c"}"#).unwrap();
        std::fs::write(home.path().join(".config/nats/context.txt"), "east\n").unwrap();
        home
    }

    fn shown(target: &NatsTarget) -> (String, &Login) {
        (target.shown_servers(), &target.login)
    }

    fn me() -> Login {
        Login::User { user: "me".into(), password: Secret::new("hush") }
    }

    #[test]
    fn with_nothing_said_it_is_the_local_server() {
        let target = NatsTarget::resolve(&NatsSettings::default(), &variables(&[])).unwrap();
        assert_eq!(shown(&target), (DEFAULT_URL.into(), &Login::Nobody));
        assert_eq!(target.servers_from, "default");
    }

    #[test]
    fn the_selected_context_counts_only_where_nobody_gives_a_url() {
        let home = home();
        let at_home = ("HOME", home.path().to_str().unwrap());
        let east = NatsTarget::resolve(&NatsSettings::default(), &variables(&[at_home])).unwrap();
        let creds = Login::Creds(home.path().join("east.creds"));
        assert_eq!(shown(&east), ("nats://east:1, nats://east:2".into(), &creds));
        assert_eq!(east.inbox_prefix.as_deref(), Some("_INBOX.east"));
        assert_eq!(east.servers_from, "context east");
        let elsewhere =
            NatsTarget::resolve(&NatsSettings::default(), &variables(&[at_home, ("NATS_URL", "b:1")])).unwrap();
        assert_eq!(shown(&elsewhere), ("nats://b:1".into(), &Login::Nobody), "no login for whom it does not name");
    }

    #[test]
    fn a_named_context_yields_to_variables_and_those_to_settings() {
        let home = home();
        let at_home = ("HOME", home.path().to_str().unwrap());
        let settings = NatsSettings { context: Some("west".into()), ..NatsSettings::default() };
        let west = NatsTarget::resolve(&settings, &variables(&[at_home, ("NATS_CONTEXT", "east")])).unwrap();
        assert_eq!(shown(&west), ("tls://west:1".into(), &me()));
        assert_eq!((west.ca.as_deref(), west.tls_first), (Some("/ca.pem".as_ref()), true));
        let all = [at_home, ("NATS_URL", "nats://var:1"), ("NATS_TOKEN", "t"), ("NATS_CONTEXT", "west")];
        let by_variables = NatsTarget::resolve(&NatsSettings::default(), &variables(&all)).unwrap();
        assert_eq!(shown(&by_variables), ("nats://var:1".into(), &Login::Token(Secret::new("t"))));
        assert!(by_variables.tls_first, "what the variables leave open, the named context says");
        let settings = NatsSettings { url: vec![ServerUrl::new("set:1")], nkey: Some("n".into()), ..settings };
        let by_settings = NatsTarget::resolve(&settings, &variables(&all)).unwrap();
        assert_eq!(shown(&by_settings), ("nats://set:1".into(), &Login::Nkey("n".into())));
    }

    #[test]
    fn contexts_that_cannot_be_used_are_named() {
        let home = home();
        let at_home = ("HOME", home.path().to_str().unwrap());
        let named = |name: &str| {
            let settings = NatsSettings { context: Some(name.into()), ..NatsSettings::default() };
            NatsTarget::resolve(&settings, &variables(&[at_home])).unwrap_err().to_string()
        };
        assert!(named("north").contains("there are east, odd, west"), "{}", named("north"));
        assert!(named("../nats/context/east").contains("no nats context"));
        assert!(named("odd").contains("uses nsc"));
        let xdg = variables(&[at_home, ("XDG_CONFIG_HOME", "/nowhere"), ("NATS_CONTEXT", "east")]);
        let error = NatsTarget::resolve(&NatsSettings::default(), &xdg).unwrap_err();
        assert_eq!(error, NatsTargetError::UnknownContext { name: "east".into(), known: Vec::new() });
    }

    #[test]
    fn a_login_in_a_url_is_used_and_not_shown() {
        let resolve = |url: &str| NatsTarget::resolve(&NatsSettings::default(), &variables(&[("NATS_URL", url)]));
        let target = resolve("nats://me:hush@a:1,b:2").unwrap();
        assert_eq!(shown(&target), ("nats://a:1, nats://b:2".into(), &me()));
        assert_eq!(resolve("nats://to%40ken@a").unwrap().login, Login::Token(Secret::new("to@ken")));
        for bad in ["http://a", "nats://", "ws://a", "nats://a b"] {
            let error = resolve(bad).unwrap_err().to_string();
            assert!(error.contains("is no NATS server"), "{error}");
        }
        let error = resolve("http://me:hush@a").unwrap_err().to_string();
        assert!(!error.contains("hush"), "{error}");
    }

    #[test]
    fn halves_are_refused_and_a_user_alone_is_a_token() {
        let resolve = |pairs: &[(&str, &str)]| NatsTarget::resolve(&NatsSettings::default(), &variables(pairs));
        assert_eq!(resolve(&[("NATS_USER", "t")]).unwrap().login, Login::Token(Secret::new("t")));
        for name in ["NATS_PASSWORD", "NATS_CERT", "NATS_KEY"] {
            assert!(matches!(resolve(&[(name, "x")]), Err(NatsTargetError::Half { .. })), "{name}");
        }
    }

    #[test]
    fn the_system_account_has_its_own_login_on_the_same_servers() {
        let settings = NatsSettings { url: vec![ServerUrl::new("a:1")], ..NatsSettings::default() };
        let target = NatsTarget::resolve(&settings, &variables(&[])).unwrap();
        assert_eq!(target.system(&settings), Ok(None));
        let settings =
            NatsSettings { system_user: Some("me".into()), system_password: Some(Secret::new("hush")), ..settings };
        let system = target.system(&settings).unwrap().unwrap();
        assert_eq!(shown(&system), ("nats://a:1".into(), &me()));
        let settings = NatsSettings { system_url: vec![ServerUrl::new("b:1")], ..settings };
        assert_eq!(target.system(&settings).unwrap().unwrap().shown_servers(), "nats://b:1");
    }
}
