//! The bus against real nats-servers: what is said here holds for the bytes and sequences, whatever they mean.

mod cluster;
mod follow;
mod history;
mod lease;
mod service;
mod snapshots;
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, HeaderMap};
use bytes::Bytes;
use dmq::bus::log::{AppendError, History, HistoryConfig};
use dmq::bus::{BusError, advisories, raw};
use support::nats::{NatsOptions, NatsServer, SYSTEM_PASSWORD, SYSTEM_USER};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);
const ACK: Duration = Duration::from_secs(5);

/// A connection with its generation, as whoever connects provides it.
async fn connect(server: &NatsServer) -> (Client, watch::Receiver<u64>) {
    connect_with(server, ConnectOptions::new()).await
}

async fn connect_with(server: &NatsServer, options: ConnectOptions) -> (Client, watch::Receiver<u64>) {
    let (raise, generation) = watch::channel(0);
    let options = options.reconnect_delay_callback(|_| Duration::from_millis(20)).event_callback(move |event| {
        if event == Event::Connected {
            raise.send_modify(|generation| *generation += 1);
        }
        std::future::ready(())
    });
    (server.connect_with(options).await, generation)
}

/// Kills the server and waits until the client is connected to its successor.
async fn restart(server: &mut NatsServer, client: &Client, before_it_starts: impl FnOnce(&NatsServer)) {
    let connection = raw::connection(client);
    server.kill();
    before_it_starts(server);
    server.restart();
    eventually(async || raw::established(client, PATIENCE).await.ok().filter(|now| Some(now) != connection.as_ref()))
        .await;
}

async fn history(client: &Client) -> History {
    let history = History::new(client.clone(), HistoryConfig::default());
    history.ensure().await.unwrap();
    history
}

async fn append(history: &History, expected: u64) -> Result<u64, AppendError> {
    history.append(expected, payload(expected + 1), HeaderMap::new(), ACK).await
}

fn payload(sequence: u64) -> Bytes {
    Bytes::from(format!("entry {sequence}"))
}

async fn next<T>(receiver: &mut mpsc::Receiver<T>) -> T {
    timeout(PATIENCE, receiver.recv()).await.expect("an event in time").expect("the channel is open")
}

/// Asks until the answer is as wanted.
async fn eventually<T, F: Future<Output = Option<T>>>(mut ask: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "what was waited for did not come");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn end_of_a_connection_is_told_within_a_second() {
    let mut server = NatsServer::start();
    let options = ConnectOptions::with_user_and_password(SYSTEM_USER.to_owned(), SYSTEM_PASSWORD.to_owned());
    let (system, _generation) = connect_with(&server, options).await;
    let mut ends = advisories::subscribe(&system, 16, ACK).await.unwrap();

    let victim = server.connect_with(ConnectOptions::new().name("dmq storage 1")).await;
    let connection = raw::connection(&victim).unwrap();
    let dropped = Instant::now();
    drop(victim);
    let end = next(&mut ends).await;
    assert!(dropped.elapsed() < Duration::from_secs(1), "{:?}", dropped.elapsed());
    assert_eq!((end.server_id.as_str(), end.client_id), (&*connection.server, connection.client));
    assert_eq!(end.name, "dmq storage 1");
    assert!(end.by_client, "{}", end.reason);

    system.publish("$SYS.ACCOUNT.DMQ.DISCONNECT", "no advisory".into()).await.unwrap();
    restart(&mut server, &system, |_| {}).await;
    raw::round_trip(&system, ACK).await.unwrap();
    drop(server.connect_with(ConnectOptions::new().name("dmq storage 2")).await);
    while next(&mut ends).await.name != "dmq storage 2" {}
}

#[tokio::test]
async fn reason_tells_a_dead_client_from_one_that_the_server_gave_up() {
    let impatient = NatsOptions { extra: "ping_interval: \"200ms\"\nping_max: 1".to_owned(), ..NatsOptions::default() };
    let server = NatsServer::start_with(&impatient);
    let system = server
        .connect_with(ConnectOptions::with_user_and_password(SYSTEM_USER.to_owned(), SYSTEM_PASSWORD.to_owned()))
        .await;
    let mut ends = advisories::subscribe(&system, 16, ACK).await.unwrap();
    // A socket as a killed process leaves it: closed by the system, with and without something unread in it.
    for (name, unread) in [("closed", false), ("reset", true)] {
        let mut socket = bare_client(&server, name).await;
        if unread {
            socket.write_all(b"PING\r\n").await.unwrap();
            socket.readable().await.unwrap();
        }
        let dropped = Instant::now();
        drop(socket);
        let end = next(&mut ends).await;
        println!("{name}: {} after {:?}", end.reason, dropped.elapsed());
        assert_eq!((end.name.as_str(), end.by_client), (name, true), "{}", end.reason);
        assert!(dropped.elapsed() < Duration::from_secs(1), "{:?}", dropped.elapsed());
    }
    let _silent = bare_client(&server, "frozen").await;
    let end = next(&mut ends).await;
    assert_eq!((end.name.as_str(), end.reason.as_str(), end.by_client), ("frozen", "Stale Connection", false));
}

/// A connection that does nothing by itself.
async fn bare_client(server: &NatsServer, name: &str) -> TcpStream {
    let mut socket = TcpStream::connect(("127.0.0.1", server.port())).await.unwrap();
    let hello =
        format!("CONNECT {{\"name\":\"{name}\",\"verbose\":false,\"lang\":\"t\",\"version\":\"0\"}}\r\nPING\r\n");
    socket.write_all(hello.as_bytes()).await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"PONG\r\n") {
        socket.read_buf(&mut heard).await.unwrap();
    }
    socket
}

#[tokio::test]
async fn subscription_is_in_place_when_the_call_returns() {
    let server = NatsServer::start();
    let (here, there) = (server.connect().await, server.connect().await);
    for round in 0..200 {
        let subject = format!("subject.{round}");
        let subscription = raw::subscribe(&here, &subject, ACK).await.unwrap();
        there.publish(subject, "x".into()).await.unwrap();
        let mut subscription = subscription;
        timeout(ACK, futures::StreamExt::next(&mut subscription)).await.unwrap().unwrap();
    }
    assert_eq!(raw::subscribe(&here, "a b", ACK).await.unwrap_err(), BusError::InvalidName("a b".to_owned()));
    let asked = Instant::now();
    let nobody = raw::request_with_deadline(&here, "nobody", None, Bytes::new(), PATIENCE).await.unwrap_err();
    assert_eq!(nobody, BusError::NoResponders { subject: "nobody".to_owned() });
    assert!(asked.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn connection_is_another_one_after_a_reconnect() {
    let mut server = NatsServer::start();
    let (client, mut generation) = connect(&server).await;
    let before = raw::connection(&client).unwrap();
    generation.borrow_and_update();
    server.kill();
    eventually(async || raw::connection(&client).is_none().then_some(())).await;
    assert_eq!(raw::round_trip(&client, ACK).await, Err(BusError::Disconnected));
    server.restart();
    timeout(PATIENCE, generation.changed()).await.unwrap().unwrap();
    let after = raw::established(&client, ACK).await.unwrap();
    assert_ne!(before, after);
}
