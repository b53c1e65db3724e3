//! Where to connect to and as whom: what the layers come to.

use std::path::{Path, PathBuf};

use async_nats::{ConnectOptions, ServerAddr};

use super::ConnectError;
use super::context::{Context, Surroundings};
use super::url::{credentials_of, servers_of};
use crate::config::settings::NatsSettings;

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
pub(super) enum Credentials {
    None,
    File(PathBuf),
    Nkey(PathBuf),
    User(String, String),
    Token(String),
}

impl Credentials {
    pub(super) fn shown(&self) -> String {
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
pub(super) struct Target {
    pub(super) servers: Vec<String>,
    pub(super) credentials: Credentials,
    pub(super) ca: Option<PathBuf>,
    certificate: Option<(PathBuf, PathBuf)>,
    pub(super) inbox_prefix: Option<String>,
    tls_first: bool,
}

impl Target {
    pub(super) fn of(settings: &NatsSettings, around: &Surroundings) -> Result<Target, ConnectError> {
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
    pub(super) fn of_system(settings: &NatsSettings, around: &Surroundings) -> Result<Option<Target>, ConnectError> {
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

    pub(super) fn shown(&self) -> String {
        self.servers.join(",")
    }

    pub(super) fn addresses(&self) -> Result<Vec<ServerAddr>, ConnectError> {
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
    pub(super) fn options(&self) -> Result<ConnectOptions, ConnectError> {
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
