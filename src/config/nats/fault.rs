//! Why there is no usable connection, in words that say what to do.

use std::error::Error;
use std::time::Duration;

use async_nats::ConnectErrorKind;
use async_nats::rustls::{self, AlertDescription, CertificateError};

use super::check::{OLDEST_API_LEVEL, OLDEST_SERVER};

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
    #[error("no TLS connection to NATS at {servers} ({reason}): {advice}")]
    Tls { servers: String, reason: String, advice: &'static str },
    #[error(
        "NATS at {servers} does not permit us ({credentials}) to {what}: give the user that permission, or connect as \
         another one"
    )]
    Forbidden { servers: String, credentials: String, what: String },
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

/// What NATS does not let this connection do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Denied {
    Publish(String),
    Subscription(String),
}

impl Denied {
    /// From the server's own words: `Permissions Violation for Subscription to "a.b" using queue "q"`.
    pub(super) fn of(text: &str) -> Option<Denied> {
        let rest = text.trim().trim_matches('\'').strip_prefix("Permissions Violation for ")?;
        let subject = || rest.split('"').nth(1).map(str::to_owned);
        if rest.starts_with("Subscription") {
            return subject().map(Denied::Subscription);
        }
        rest.starts_with("Publish").then(subject)?.map(Denied::Publish)
    }
}

/// What is wrong with certificates, and what to do; `None` where it is something else.
pub(super) fn tls_fault(error: &async_nats::ConnectError) -> Option<(String, &'static str)> {
    const FILES: &str = "check the files of --tls-ca, --tls-cert and --tls-key (nats.ca, nats.cert, nats.key)";
    let mut cause = error.source();
    while let Some(inner) = cause {
        // What an I/O error wraps is not its source.
        let wrapped = inner.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        let found = wrapped.and_then(|error| error.downcast_ref::<rustls::Error>());
        if let Some(fault) = found.or_else(|| inner.downcast_ref()) {
            return Some((fault.to_string(), advice(fault).unwrap_or(FILES)));
        }
        cause = inner.source();
    }
    (error.kind() == ConnectErrorKind::Tls).then(|| (error.to_string(), FILES))
}

fn advice(fault: &rustls::Error) -> Option<&'static str> {
    match fault {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            Some("name a file with the certificate of the authority that signed the server's, with --tls-ca (nats.ca)")
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => Some("connect by a name or an address that is in the server's certificate"),
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            Some("give the server a certificate that has not expired")
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => Some(
            "the server wants a client's certificate: name one with --tls-cert and --tls-key (nats.cert, nats.key)",
        ),
        rustls::Error::AlertReceived(
            AlertDescription::UnknownCA | AlertDescription::BadCertificate | AlertDescription::CertificateUnknown,
        ) => Some(
            "the server does not trust our certificate: name one that its authority has signed, with --tls-cert and \
             --tls-key (nats.cert, nats.key)",
        ),
        rustls::Error::InvalidMessage(_) => Some("write nats:// where the server has no TLS, or have it use TLS"),
        // The crate's list of faults is open.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_subject_is_read_from_the_servers_words() {
        let subscription = |subject: &str| Some(Denied::Subscription(subject.to_owned()));
        assert_eq!(Denied::of("Permissions Violation for Subscription to \"a.*\""), subscription("a.*"));
        let queue = "'Permissions Violation for Subscription to \"a\" using queue \"q\"'";
        assert_eq!(Denied::of(queue), subscription("a"));
        let publish = "Permissions Violation for Publish to \"$JS.API.INFO\"";
        assert_eq!(Denied::of(publish), Some(Denied::Publish("$JS.API.INFO".to_owned())));
        assert_eq!(Denied::of("Permissions Violation for Publish to nothing"), None);
        assert_eq!(Denied::of("maximum payload exceeded"), None);
    }
}
