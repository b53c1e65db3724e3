//! The tests' own nats-server: that it is real, apart from others, and fails as a server fails.

mod support;

use std::ffi::OsString;
use std::time::Duration;

use async_nats::jetstream;
use futures::StreamExt;
use support::nats::{NatsOptions, NatsServer, find_nats_server};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(10);

/// Returns once the server has handled what the client sent before: `flush` only writes to the socket.
async fn settle(client: &async_nats::Client) {
    let inbox = client.new_inbox();
    let mut echo = client.subscribe(inbox.clone()).await.expect("subscribe");
    client.publish(inbox, "".into()).await.expect("publish");
    timeout(DEADLINE, echo.next()).await.expect("an echo in time").expect("an echo");
}

async fn history(client: &async_nats::Client) -> jetstream::stream::Stream {
    let config = jetstream::stream::Config { name: "HISTORY".into(), subjects: vec!["h".into()], ..Default::default() };
    jetstream::new(client.clone()).get_or_create_stream(config).await.expect("the stream")
}

async fn append(client: &async_nats::Client, entry: &'static str) -> u64 {
    let ack = jetstream::new(client.clone()).publish("h", entry.into()).await.expect("publish");
    ack.await.expect("stored").sequence
}

async fn last_sequence(client: &async_nats::Client) -> u64 {
    history(client).await.info().await.expect("the stream's state").state.last_sequence
}

#[tokio::test]
async fn two_servers_at_once_share_nothing() {
    let (one, other) = (NatsServer::start(), NatsServer::start());
    assert_ne!(one.port(), other.port());
    let (to_one, to_other) = (one.connect().await, other.connect().await);
    history(&to_one).await;
    history(&to_other).await;
    assert_eq!(append(&to_one, "only here").await, 1);
    assert_eq!(last_sequence(&to_one).await, 1);
    assert_eq!(last_sequence(&to_other).await, 0);
}

#[tokio::test]
async fn acknowledged_entries_outlive_a_kill() {
    let mut server = NatsServer::start();
    let client = server.connect().await;
    history(&client).await;
    append(&client, "before").await;
    drop(client);
    let port = server.port();
    server.kill();
    assert_eq!(server.pid(), None);
    server.restart();
    assert_eq!(server.port(), port);
    let client = server.connect().await;
    assert_eq!(last_sequence(&client).await, 1);
}

#[tokio::test]
async fn a_wiped_store_is_empty() {
    let mut server = NatsServer::start_with(&NatsOptions { lazy_sync: true, ..Default::default() });
    let client = server.connect().await;
    history(&client).await;
    append(&client, "before").await;
    drop(client);
    server.kill();
    server.wipe_store();
    server.restart();
    let client = server.connect().await;
    assert_eq!(last_sequence(&client).await, 0);
}

#[tokio::test]
async fn a_paused_server_answers_only_when_resumed() {
    let server = NatsServer::start();
    let client = server.connect().await;
    settle(&client).await;
    server.pause();
    let inbox = client.new_inbox();
    let mut echo = client.subscribe(inbox.clone()).await.expect("subscribe");
    client.publish(inbox, "".into()).await.expect("publish");
    let silence = timeout(Duration::from_millis(300), echo.next()).await;
    assert!(silence.is_err(), "a stopped process answered");
    server.resume();
    timeout(DEADLINE, echo.next()).await.expect("an echo in time").expect("an echo");
}

#[tokio::test]
async fn the_system_account_hears_of_a_closed_connection() {
    let server = NatsServer::start();
    let system = server.connect_system().await;
    let mut ends = system.subscribe("$SYS.ACCOUNT.*.DISCONNECT").await.expect("subscribe");
    settle(&system).await;
    let client = async_nats::ConnectOptions::new().name("short-lived").connect(server.url()).await.expect("connect");
    let id = client.server_info().client_id;
    drop(client);
    let message = timeout(DEADLINE, ends.next()).await.expect("an advisory in time").expect("an advisory");
    let advisory: serde_json::Value = serde_json::from_slice(&message.payload).expect("JSON");
    assert_eq!(advisory["client"]["name"], "short-lived");
    assert_eq!(advisory["client"]["id"], id);
    assert_eq!(advisory["reason"], "Client Closed");
}

#[tokio::test]
async fn a_client_without_credentials_hears_nothing_of_the_system_account() {
    let server = NatsServer::start();
    let client = server.connect().await;
    let answer = timeout(DEADLINE, client.request("$SYS.REQ.SERVER.PING", "".into())).await;
    assert!(answer.expect("an answer in time").is_err(), "the system account answered a stranger");
}

#[tokio::test]
async fn extra_configuration_wins_over_the_shipped_one() {
    let server = NatsServer::start_with(&NatsOptions { extra: "max_payload: 64KB".into(), ..Default::default() });
    let client = server.connect().await;
    assert_eq!(client.server_info().max_payload, 64 * 1024);
}

#[test]
fn a_missing_server_is_named_with_the_remedy() {
    let env = |name: &str| (name == "DMQ_TEST_NATS_SERVER").then(|| OsString::from("/nonexistent/nats-server"));
    let missing = find_nats_server(env).expect_err("nothing is there");
    assert_eq!(missing, "DMQ_TEST_NATS_SERVER names /nonexistent/nats-server, which is no nats-server");
}
