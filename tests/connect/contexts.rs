//! What the `nats` command line honours: its contexts and the `NATS_…` variables; and which of the layers counts.

use nkeys::KeyPair;
use serde_json::json;

use crate::home::Home;
use crate::jwt::Operator;
use crate::support::nats::NatsServer;
use crate::tls;
use crate::ways::{TOKEN, USER, nkey_configuration};

/// A server that is not there.
const NOBODY: &str = "nats://127.0.0.1:1";

#[test]
fn a_context_with_a_user_serves_a_whole_cluster() {
    let server = NatsServer::start_bare(USER);
    let home = Home::new();
    home.context("prod", json!({"url": server.url(), "user": "u", "password": "p"}));
    home.serves(&["--context", "prod"]);
}

#[test]
fn contexts_with_a_token_an_nkey_or_credentials() {
    let home = Home::new();
    let token = NatsServer::start_bare(TOKEN);
    home.context("token", json!({"url": token.url(), "token": "t"}));
    // As `nats context save` writes it where the token is given as the user.
    home.context("user-as-token", json!({"url": token.url(), "user": "t", "password": ""}));
    home.reaches(&["--context", "token"]);
    home.reaches(&["--context", "user-as-token"]);

    let key = KeyPair::new_user();
    let nkey = NatsServer::start_bare(&nkey_configuration(&key));
    let seed = home.write("user.nk", &key.seed().unwrap());
    home.context("nkey", json!({"url": nkey.url(), "nkey": seed}));
    home.reaches(&["--context", "nkey"]);

    let operator = Operator::new();
    let trusting = NatsServer::start_bare(&operator.configuration());
    home.write("user.creds", &operator.credentials());
    home.context("creds", json!({"url": trusting.url(), "creds": "~/user.creds"}));
    home.reaches(&["--context", "creds"]);
}

#[test]
fn a_context_with_tls_and_a_client_certificate() {
    let home = Home::new();
    let (server, authority) = tls::server(&home, "127.0.0.1", true);
    authority.write_pair(&home, "client", "client");
    let tls = json!({"url": server.url(), "ca": "~/ca.pem", "cert": "~/client.pem", "key": "~/client.key"});
    home.context("tls", tls);
    home.reaches(&["--context", "tls"]);
}

#[test]
fn what_a_context_has_and_dmq_cannot_is_said_with_what_to_do() {
    let home = Home::new();
    for (field, value, advice) in [
        ("nsc", "nsc://o/a/u", "creds"),
        ("socks_proxy", "socks5://localhost", "without a proxy"),
        ("user_jwt", "x", "credentials file"),
        ("jetstream_domain", "hub", "a server of that domain"),
        ("jetstream_api_prefix", "hub.api", "the account that has the stream"),
    ] {
        home.context("c", json!({"url": NOBODY, field: value}));
        home.run(&["topic", "list", "--context", "c"]).failed_with(&["\"c\"", field, advice]);
    }
    home.context("prod", json!({"url": NOBODY}));
    home.run(&["topic", "list", "--context", "prdo"]).failed_with(&["did you mean prod?"]);
}

#[test]
fn variables_of_the_nats_command_line() {
    let user = NatsServer::start_bare(USER);
    let named = |server: &NatsServer| Home::new().with("NATS_URL", server.url());
    named(&user).with("NATS_USER", "u").with("NATS_PASSWORD", "p").reaches(&[]);
    named(&user).is_refused(&[]);
    let token = NatsServer::start_bare(TOKEN);
    named(&token).with("NATS_TOKEN", "t").reaches(&[]);
    named(&token).with("NATS_USER", "t").reaches(&[]);

    let key = KeyPair::new_user();
    let nkey = NatsServer::start_bare(&nkey_configuration(&key));
    let home = named(&nkey).with("NATS_NKEY", "~/user.nk");
    home.write("user.nk", &key.seed().unwrap());
    home.reaches(&[]);

    let operator = Operator::new();
    let trusting = NatsServer::start_bare(&operator.configuration());
    let home = named(&trusting).with("NATS_CREDS", "~/user.creds");
    home.write("user.creds", &operator.credentials());
    home.reaches(&[]);

    let home = Home::new();
    let (secured, authority) = tls::server(&home, "127.0.0.1", true);
    authority.write_pair(&home, "client", "client");
    let home = home.with("NATS_URL", secured.url()).with("NATS_CA", "~/ca.pem");
    home.with("NATS_CERT", "~/client.pem").with("NATS_KEY", "~/client.key").reaches(&[]);

    let home = Home::new().with("NATS_CONTEXT", "prod");
    home.context("prod", json!({"url": user.url(), "user": "u", "password": "p"}));
    home.reaches(&[]);
}

/// Each layer names another server or user; the one that answers tells which counted.
#[test]
fn a_higher_layer_counts_more() {
    let server = NatsServer::start_bare(USER);
    let url = server.url();
    let home = || {
        let home = Home::new();
        home.context("selected", json!({"url": NOBODY, "user": "u", "password": "wrong"}));
        home.write("nats/context.txt", "selected");
        home
    };
    let toml = |home: &Home, url: &str| {
        home.write("dmq.toml", &format!("[nats]\nurl = {url:?}\nuser = 'u'\npassword = 'p'"));
    };
    // The selected context counts for whom was told nothing.
    home().run(&["topic", "list", "--timeout", "1s"]).failed_with(&[NOBODY]);
    // A file over it, a variable over the file, a flag over the variable.
    let told = home();
    toml(&told, &url);
    told.reaches(&["--config", "dmq.toml"]);
    let told = home().with("DMQ_NATS_URL", &url).with("DMQ_CONFIG", "dmq.toml");
    toml(&told, NOBODY);
    told.reaches(&[]);
    let told = home().with("DMQ_NATS_URL", NOBODY).with("NATS_URL", NOBODY);
    toml(&told, NOBODY);
    told.reaches(&["--config", "dmq.toml", "--nats-url", &url]);
    told.reaches(&["--config", "dmq.toml", "--set", &format!("nats.url={url}")]);
    // dmq's own variables over those of the nats command line, and these over a named context.
    home().with("NATS_URL", NOBODY).with("DMQ_NATS_URL", format!("nats://u:p@{}", &url[7..])).reaches(&[]);
    let told = home().with("NATS_URL", &url).with("NATS_CONTEXT", "dead");
    told.context("dead", json!({"url": NOBODY, "user": "u", "password": "p"}));
    told.reaches(&[]);
    // Credentials come from the highest layer that has any, whole: a password never meets another layer's user.
    let told = home().with("NATS_USER", "nobody").with("NATS_PASSWORD", "p");
    toml(&told, &url);
    told.reaches(&["--config", "dmq.toml"]);
}
