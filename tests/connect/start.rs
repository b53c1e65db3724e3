//! A start that cannot succeed ends by itself, with what is wrong and what to do.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use crate::home::{Home, eventually};
use crate::support::nats::NatsServer;
use crate::ways::USER;

#[test]
fn nobody_at_the_url() {
    let words = ["no NATS at nats://127.0.0.1:1 within 1.5 s", "Connection refused", "start a nats-server"];
    Home::new().failing_controller(&["--nats-url", "nats://127.0.0.1:1"]).failed_with(&words);
    Home::new().failing_storage(&["--nats-url", "nats://127.0.0.1:1"]).failed_with(&words);
}

#[test]
fn a_server_that_accepts_and_never_speaks() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let words = [&format!("no NATS at {url} within 1.5 s"), "start a nats-server"];
    Home::new().failing_controller(&["--nats-url", &url]).failed_with(&words);
}

#[test]
fn refused_credentials() {
    let server = NatsServer::start_bare(USER);
    let url = server.url();
    let words = ["refused the credentials (user u)", "nats.user and nats.password"];
    Home::new()
        .with("DMQ_NATS_PASSWORD", "x")
        .failing_controller(&["--nats-url", &url, "--nats-user", "u"])
        .failed_with(&words);
    Home::new()
        .with("DMQ_NATS_PASSWORD", "x")
        .failing_storage(&["--nats-url", &url, "--nats-user", "u"])
        .failed_with(&words);
    Home::new().failing_storage(&["--nats-url", &url]).failed_with(&["refused the credentials (none were given)"]);
}

#[test]
fn a_server_without_jetstream() {
    let server = NatsServer::start_bare("");
    Home::new().failing_controller(&["--nats-url", &server.url()]).failed_with(&["offers no JetStream", "with -js"]);
}

#[test]
fn an_account_without_jetstream() {
    let server = NatsServer::start_bare(
        "jetstream: enabled\naccounts { A { users: [ {user: u, password: p} ] }, B { jetstream: enabled } }",
    );
    Home::new()
        .with("DMQ_NATS_PASSWORD", "p")
        .failing_controller(&["--nats-url", &server.url(), "--nats-user", "u"])
        .failed_with(&["offers no JetStream", "not enabled for account", "enable JetStream for the account"]);
}

#[test]
fn a_server_that_is_too_old() {
    let url = old_server("2.9.25");
    Home::new().failing_controller(&["--nats-url", &url]).failed_with(&[
        "is version 2.9.25",
        "2.12.3 or later",
        "upgrade it",
    ]);
}

/// A server as far as an old one matters: its INFO, and its answers to PING.
fn old_server(version: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            std::thread::spawn(move || old_connection(stream, version));
        }
    });
    url
}

fn old_connection(mut stream: TcpStream, version: &str) -> std::io::Result<()> {
    let info = format!(
        "INFO {{\"server_id\":\"NOLD\",\"server_name\":\"old\",\"version\":\"{version}\",\"go\":\"\",\"host\":\"127.0.0.1\",\"port\":1,\
         \"headers\":true,\"max_payload\":1048576,\"proto\":1,\"jetstream\":true,\"client_id\":1}}\r\n"
    );
    stream.write_all(info.as_bytes())?;
    for line in BufReader::new(stream.try_clone()?).lines() {
        if line?.starts_with("PING") {
            stream.write_all(b"PONG\r\n")?;
        }
    }
    Ok(())
}

#[test]
fn a_missing_permission_is_named_with_its_subject() {
    let server = |permissions: &str| {
        NatsServer::start_bare(&format!(
            "jetstream: enabled\nauthorization {{ users: [ {{ user: u, password: p, permissions: {{ {permissions} }} }} ] }}"
        ))
    };
    let home = || Home::new().with("DMQ_NATS_PASSWORD", "p").with("DMQ_NATS_USER", "u");
    for (permissions, what) in [
        ("subscribe: { deny: [\"dmq.heartbeat.*\"] }", "subscribe to dmq.heartbeat.*"),
        ("subscribe: { deny: [\"_INBOX.>\"] }", "subscribe to _INBOX."),
        ("publish: { deny: [\"$JS.API.INFO\"] }", "publish to $JS.API.INFO"),
    ] {
        let server = server(permissions);
        home().failing_controller(&["--nats-url", &server.url()]).failed_with(&[
            "does not permit us (user u) to",
            what,
            "give the user that permission",
        ]);
    }
    let server = server("subscribe: { deny: [\"_INBOX.>\"] }");
    home().failing_storage(&["--nats-url", &server.url()]).failed_with(&["does not permit us", "subscribe to _INBOX."]);
}

#[test]
fn a_storage_node_that_may_not_hear_its_pushes_ends() {
    let server = NatsServer::start_bare(
        "jetstream: enabled\nauthorization { users: [ {user: u, password: p}, \
         {user: deaf, password: p, permissions: {subscribe: {deny: [\"dmq.metadata.push.*\"]}}} ] }",
    );
    let (url, home) = (server.url(), Home::new().with("DMQ_NATS_PASSWORD", "p"));
    let flags = ["--nats-url", &url, "--nats-user", "u"];
    let controller = home.controller(0, &flags);
    eventually("a controller is active", || controller.log(), || home.is_healthy(0, &flags).then_some(()));
    home.run(&["storage", "--id", "0", "--data", "s", "--nats-url", &url, "--nats-user", "deaf"])
        .failed_with(&["does not permit us (user deaf) to subscribe to dmq.metadata.push.0"]);
}
