//! TLS with an authority of one's own.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::home::Home;
use crate::support::nats::NatsServer;

/// An authority, a server's certificate for 127.0.0.1 and a client's, as files in a home.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Writes `NAME.pem` and `NAME.key`, valid for a host.
    pub fn write_pair(&self, home: &Home, name: &str, host: &str) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        home.write(&format!("{name}.pem"), &certificate.pem());
        home.write(&format!("{name}.key"), &key.serialize_pem());
    }

    pub fn write(&self, home: &Home, name: &str) {
        home.write(name, &self.pem);
    }
}

/// A server with a certificate for `host`, and the authority that signed it in `ca.pem`.
pub fn server(home: &Home, host: &str, asks_for_clients: bool) -> (NatsServer, Authority) {
    let authority = Authority::new("dmq test");
    authority.write(home, "ca.pem");
    authority.write_pair(home, "server", host);
    let file = |name: &str| home.path(name).display().to_string();
    let verify =
        if asks_for_clients { format!(", ca_file: {:?}, verify: true", file("ca.pem")) } else { String::new() };
    let server = NatsServer::start_bare(&format!(
        "jetstream: enabled\ntls {{ cert_file: {:?}, key_file: {:?}{verify} }}",
        file("server.pem"),
        file("server.key")
    ));
    (server, authority)
}

#[test]
fn an_authority_of_ones_own_is_trusted_where_it_is_named() {
    let home = Home::new();
    let (server, _) = server(&home, "127.0.0.1", false);
    home.serves(&["--nats-url", &server.url(), "--tls-ca", "ca.pem"]);
}

#[test]
fn an_authority_that_is_not_named_is_said_to_be_missing() {
    let home = Home::new();
    let (server, _) = server(&home, "127.0.0.1", false);
    let url = server.url();
    let words = ["no TLS connection", "UnknownIssuer", "--tls-ca (nats.ca)"];
    home.failing_controller(&["--nats-url", &url]).failed_with(&words);
    home.failing_storage(&["--nats-url", &url]).failed_with(&words);
    home.run(&["topic", "list", "--nats-url", &url]).failed_with(&words);
    Authority::new("another").write(&home, "other.pem");
    home.run(&["topic", "list", "--nats-url", &url, "--tls-ca", "other.pem"]).failed_with(&["no TLS connection"]);
    home.run(&["topic", "list", "--nats-url", &url, "--tls-ca", "nowhere.pem"])
        .failed_with(&["cannot read the file of certificates nowhere.pem"]);
}

#[test]
fn a_certificate_for_another_host_and_a_server_without_tls_are_told_apart() {
    let home = Home::new();
    let (named, _) = server(&home, "nats.example", false);
    home.run(&["topic", "list", "--nats-url", &named.url(), "--tls-ca", "ca.pem"])
        .failed_with(&["no TLS connection", "in the server's certificate"]);
    let plain = NatsServer::start();
    let url = plain.url().replace("nats://", "tls://");
    home.run(&["topic", "list", "--nats-url", &url]).failed_with(&["no TLS connection", "write nats://"]);
}

#[test]
fn a_client_shows_its_certificate_where_the_server_asks_for_one() {
    let home = Home::new();
    let (server, authority) = server(&home, "127.0.0.1", true);
    let url = server.url();
    authority.write_pair(&home, "client", "client");
    Authority::new("another").write_pair(&home, "stranger", "stranger");
    let with = |name: &str| {
        [
            "--nats-url",
            &url,
            "--tls-ca",
            "ca.pem",
            "--tls-cert",
            &format!("{name}.pem"),
            "--tls-key",
            &format!("{name}.key"),
        ]
        .map(str::to_owned)
    };
    let client = with("client");
    home.serves(&client.each_ref().map(String::as_str));
    home.run(&["topic", "list", "--nats-url", &url, "--tls-ca", "ca.pem"])
        .failed_with(&["the server wants a client's certificate", "--tls-cert"]);
    let stranger = with("stranger");
    home.run(&[&["topic", "list"], &stranger.each_ref().map(String::as_str)[..]].concat())
        .failed_with(&["no TLS connection", "--tls-cert"]);
}
