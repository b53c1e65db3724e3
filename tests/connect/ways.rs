//! Credentials and lists of servers: a controller, a storage node and the command line over each.

use nkeys::KeyPair;

use crate::home::Home;
use crate::jwt::Operator;
use crate::support::nats::NatsServer;

/// A server that is not there: nothing listens on TCP's port 1.
const NOBODY: &str = "nats://127.0.0.1:1";

pub const USER: &str = "jetstream: enabled\nauthorization { user: u, password: p }";
pub const TOKEN: &str = "jetstream: enabled\nauthorization { token: \"t\" }";

pub fn nkey_configuration(key: &KeyPair) -> String {
    format!("jetstream: enabled\nauthorization {{ users: [ {{ nkey: {} }} ] }}", key.public_key())
}

#[test]
fn a_list_of_servers_works_where_the_first_is_dead() {
    let server = NatsServer::start();
    Home::new().serves(&["--nats-url", &format!("{NOBODY},{}", server.url())]);
}

#[test]
fn a_user_with_a_password_is_let_in_and_another_is_not() {
    let server = NatsServer::start_bare(USER);
    let url = server.url();
    Home::new().with("DMQ_NATS_PASSWORD", "p").serves(&["--nats-url", &url, "--nats-user", "u"]);
    Home::new().with("DMQ_NATS_PASSWORD", "wrong").is_refused(&["--nats-url", &url, "--nats-user", "u"]);
    Home::new().is_refused(&["--nats-url", &url]);
}

#[test]
fn a_token_is_let_in() {
    let server = NatsServer::start_bare(TOKEN);
    let url = server.url();
    Home::new().with("DMQ_NATS_TOKEN", "t").serves(&["--nats-url", &url]);
    Home::new().with("DMQ_NATS_TOKEN", "other").is_refused(&["--nats-url", &url]);
}

#[test]
fn an_nkey_is_let_in_and_a_file_without_one_is_named() {
    let (known, unknown) = (KeyPair::new_user(), KeyPair::new_user());
    let server = NatsServer::start_bare(&nkey_configuration(&known));
    let url = server.url();
    let home = Home::new();
    home.write("known.nk", &format!("{}\n", known.seed().unwrap()));
    home.write("unknown.nk", &unknown.seed().unwrap());
    home.write("empty.nk", "\n");
    home.serves(&["--nats-url", &url, "--nkey", "known.nk"]);
    home.is_refused(&["--nats-url", &url, "--nkey", "unknown.nk"]);
    home.run(&["topic", "list", "--nats-url", &url, "--nkey", "empty.nk"])
        .failed_with(&["empty.nk holds no user's nkey seed"]);
}

#[test]
fn a_credentials_file_is_let_in_by_a_server_that_trusts_an_operator() {
    let operator = Operator::new();
    let server = NatsServer::start_bare(&operator.configuration());
    let url = server.url();
    let home = Home::new();
    home.write("dmq.creds", &operator.credentials());
    home.write("stranger.creds", &Operator::stranger());
    home.write("no.creds", "hello");
    home.serves(&["--nats-url", &url, "--creds", "dmq.creds"]);
    home.is_refused(&["--nats-url", &url, "--creds", "stranger.creds"]);
    home.run(&["topic", "list", "--nats-url", &url, "--creds", "no.creds"])
        .failed_with(&["no.creds is no credentials file"]);
    home.run(&["topic", "list", "--nats-url", &url, "--creds", "nowhere.creds"])
        .failed_with(&["cannot read the credentials file nowhere.creds"]);
}
