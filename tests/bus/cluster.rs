//! The same on three servers and three replicas, where acknowledgements, leaders and races are others than on one.

use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use dmq::bus::lease::{Lease, LeaseConfig, LeaseEvent};
use dmq::bus::log::{AppendError, FollowEvent, History, HistoryConfig, follow};
use dmq::bus::raw;
use tokio::time::Instant;

use crate::support::nats::{NatsOptions, NatsServer};
use crate::{append, connect_with, eventually, next, payload};

/// Three servers that know each other's routes. A server that was killed keeps its port from everybody else, so three
/// such lend theirs to the routes.
struct Cluster {
    servers: Vec<NatsServer>,
    _ports: Vec<NatsServer>,
}

impl Cluster {
    async fn start() -> Self {
        let ports: Vec<NatsServer> = (0..3)
            .map(|_| {
                let mut server = NatsServer::start();
                server.kill();
                server
            })
            .collect();
        let routes: Vec<String> = ports.iter().map(|server| format!("nats://127.0.0.1:{}", server.port())).collect();
        let options = |server: &NatsServer| NatsOptions {
            bare: false,
            lazy_sync: true,
            extra: format!(
                "cluster {{ name: dmq-test, listen: \"127.0.0.1:{}\", routes: [{}], no_advertise: true }}",
                server.port(),
                routes.join(", ")
            ),
        };
        let servers = ports.iter().map(|server| NatsServer::start_with(&options(server))).collect();
        Self { servers, _ports: ports }
    }

    /// A client of the server at `index` alone.
    async fn connect(&self, index: usize) -> (Client, tokio::sync::watch::Receiver<u64>) {
        connect_with(&self.servers[index], ConnectOptions::new()).await
    }
}

async fn replicated(client: &Client) -> History {
    let config = HistoryConfig { replicas: 3, ..HistoryConfig::default() };
    let history = History::new(client.clone(), config);
    // Until the servers have found each other there is nobody to ask.
    let ensured = eventually(async || history.ensure().await.ok()).await;
    assert_eq!(ensured.differences, [""; 0]);
    history
}

#[tokio::test]
async fn replicated_history_has_one_winner_per_place_and_survives_its_leader() {
    let mut cluster = Cluster::start().await;
    let mut clients = Vec::new();
    for index in 0..3 {
        clients.push(cluster.connect(index).await);
    }
    let history = replicated(&clients[0].0).await;
    let everywhere: Vec<History> =
        clients.iter().map(|(client, _)| History::new(client.clone(), history.config().clone())).collect();
    eventually(async || (append(&history, 0).await == Ok(1)).then_some(())).await;
    let mut followers: Vec<_> = everywhere
        .iter()
        .zip(&clients)
        .map(|(history, (_, generation))| follow(history.clone(), 1, generation.clone(), 16))
        .collect();

    for expected in 1..100 {
        let racing = futures::future::join_all(everywhere.iter().map(|history| append(history, expected))).await;
        let won = racing.iter().filter(|outcome| **outcome == Ok(expected + 1)).count();
        let lost = racing.iter().filter(|outcome| **outcome == Err(AppendError::Conflict)).count();
        assert_eq!((won, lost), (1, 2), "{racing:?}");
    }
    for (history, follower) in everywhere.iter().zip(&mut followers) {
        let read = history.read_range(1, 100, 1 << 20).await.unwrap();
        assert_eq!(read, (1..=100).map(|sequence| (sequence, payload(sequence))).collect::<Vec<_>>());
        for sequence in 1..=100 {
            assert_eq!(next(follower).await, FollowEvent::Entry { sequence, payload: payload(sequence) });
        }
    }

    let stream = async_nats::jetstream::new(clients[0].0.clone()).get_stream("DMQ_METADATA").await.unwrap();
    let leader = stream.cached_info().cluster.as_ref().unwrap().leader.clone().unwrap();
    let is_leader = |server: &NatsServer| leader == format!("dmq-test-{}", server.port());
    let killed = cluster.servers.iter().position(is_leader).unwrap();
    cluster.servers[killed].kill();
    let since = Instant::now();
    let survivors: Vec<usize> = (0..3).filter(|&index| index != killed).collect();
    let history = &everywhere[survivors[0]];
    let mut last = 100;
    eventually(async || {
        let outcome = history.append(100, payload(101), async_nats::HeaderMap::new(), Duration::from_secs(1)).await;
        // An append that nobody acknowledged may have landed: then its place is taken, by itself.
        matches!(outcome, Ok(101) | Err(AppendError::Conflict)).then_some(())
    })
    .await;
    last += 1;
    println!("appended {:?} after the stream's leader was killed", since.elapsed());
    for &index in &survivors {
        let event = next(&mut followers[index]).await;
        assert_eq!(event, FollowEvent::Entry { sequence: last, payload: payload(last) });
    }
    println!("followed {:?} after the stream's leader was killed", since.elapsed());

    cluster.servers[killed].restart();
    raw::established(&clients[killed].0, Duration::from_secs(20)).await.unwrap();
    let event = next(&mut followers[killed]).await;
    assert_eq!(event, FollowEvent::Entry { sequence: last, payload: payload(last) });
    eventually(async || (append(&everywhere[killed], last).await.is_ok()).then_some(())).await;
    for follower in &mut followers {
        assert_eq!(next(follower).await, FollowEvent::Entry { sequence: last + 1, payload: payload(last + 1) });
    }
}

#[tokio::test]
async fn replicated_lease_is_seen_free_on_every_server() {
    let cluster = Cluster::start().await;
    let (client, generation) = cluster.connect(0).await;
    let config = LeaseConfig { replicas: 3, lease: Duration::from_secs(1), ..LeaseConfig::default() };
    let lease = Lease::new(client, config.clone());
    eventually(async || lease.ensure().await.ok()).await;
    let (other, other_generation) = cluster.connect(2).await;
    let other = Lease::new(other, config);
    let mut events = [lease.watch(generation, 16), other.watch(other_generation, 16)];
    for events in &mut events {
        assert_eq!(next(events).await, LeaseEvent::Free { revision: 0 });
    }
    let taken = eventually(async || lease.create("a".into()).await.ok()).await;
    for events in &mut events {
        assert_eq!(next(events).await, LeaseEvent::Held { revision: taken, value: "a".into() });
    }
    for events in &mut events {
        assert!(matches!(next(events).await, LeaseEvent::Free { revision } if revision > taken));
    }
    other.create("b".into()).await.unwrap();
}
