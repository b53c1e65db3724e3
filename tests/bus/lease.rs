//! The controllers' lease.

use std::time::Duration;

use async_nats::Client;
use dmq::bus::lease::{Lease, LeaseConfig, LeaseError, LeaseEvent};
use tokio::time::Instant;

use crate::support::nats::NatsServer;
use crate::{connect, next, restart};

async fn lease(client: &Client, span: Duration) -> Lease {
    let lease = Lease::new(client.clone(), LeaseConfig { lease: span, ..LeaseConfig::default() });
    let ensured = lease.ensure().await.unwrap();
    assert_eq!(ensured.differences, [""; 0]);
    lease
}

#[tokio::test]
async fn lease_has_one_holder_and_a_stale_revision_is_refused() {
    let server = NatsServer::start();
    let (client, generation) = connect(&server).await;
    let missing = Lease::new(client.clone(), LeaseConfig::default());
    assert_eq!(missing.create("a".into()).await, Err(LeaseError::BucketMissing));
    let lease = lease(&client, Duration::from_secs(60)).await;
    let mut events = lease.watch(generation, 16);
    assert_eq!(next(&mut events).await, LeaseEvent::Free { revision: 0 });
    assert_eq!(lease.get().await, Ok(None));

    // The bucket keeps the last value alone, so each change is seen before the next one is made.
    let taken = lease.create("a".into()).await.unwrap();
    assert_eq!(next(&mut events).await, LeaseEvent::Held { revision: taken, value: "a".into() });
    assert_eq!(lease.create("b".into()).await, Err(LeaseError::Held));
    let renewed = lease.update("a2".into(), taken).await.unwrap();
    assert_eq!(next(&mut events).await, LeaseEvent::Held { revision: renewed, value: "a2".into() });
    assert_eq!(lease.update("a3".into(), taken).await, Err(LeaseError::Lost));
    assert_eq!(lease.get().await, Ok(Some((renewed, "a2".into()))));

    let seen_by_others = async_nats::jetstream::new(client).get_key_value("DMQ_CONTROLLER").await.unwrap();
    assert_eq!(seen_by_others.get("active").await.unwrap().unwrap(), "a2");

    assert_eq!(lease.delete(taken).await, Err(LeaseError::Lost));
    lease.delete(renewed).await.unwrap();
    let LeaseEvent::Free { revision } = next(&mut events).await else { panic!("released") };
    assert!(revision > renewed);
    assert_eq!(lease.get().await, Ok(None));
    let again = lease.create("b".into()).await.unwrap();
    assert_eq!(next(&mut events).await, LeaseEvent::Held { revision: again, value: "b".into() });
}

#[tokio::test]
async fn lease_that_is_not_renewed_is_seen_free_and_can_be_taken() {
    let server = NatsServer::start();
    let (client, generation) = connect(&server).await;
    let lease = lease(&client, Duration::from_secs(1)).await;
    let mut events = lease.watch(generation, 16);
    assert_eq!(next(&mut events).await, LeaseEvent::Free { revision: 0 });
    let taken = lease.create("a".into()).await.unwrap();
    let since = Instant::now();
    assert_eq!(next(&mut events).await, LeaseEvent::Held { revision: taken, value: "a".into() });
    let LeaseEvent::Free { revision } = next(&mut events).await else { panic!("expired") };
    let span = since.elapsed();
    println!("a lease of 1 s was seen free after {span:?}");
    assert!(Duration::from_millis(900) < span && span < Duration::from_secs(4), "{span:?}");
    assert!(revision > taken);
    assert_eq!(lease.update("a2".into(), taken).await, Err(LeaseError::Lost));
    let again = lease.create("b".into()).await.unwrap();
    assert_eq!(next(&mut events).await, LeaseEvent::Held { revision: again, value: "b".into() });
}

#[tokio::test]
async fn lease_watch_survives_a_killed_server_and_a_wiped_store() {
    let mut server = NatsServer::start();
    let (client, generation) = connect(&server).await;
    let watched = lease(&client, Duration::from_secs(60)).await;
    let mut events = watched.watch(generation, 16);
    assert_eq!(next(&mut events).await, LeaseEvent::Free { revision: 0 });
    let taken = watched.create("a".into()).await.unwrap();
    assert_eq!(next(&mut events).await, LeaseEvent::Held { revision: taken, value: "a".into() });
    restart(&mut server, &client, |_| {}).await;
    let renewed = watched.update("b".into(), taken).await.unwrap();
    assert_eq!(next(&mut events).await, LeaseEvent::Held { revision: renewed, value: "b".into() });

    restart(&mut server, &client, NatsServer::wipe_store).await;
    let watched = lease(&client, Duration::from_secs(60)).await;
    let taken = watched.create("c".into()).await.unwrap();
    assert!(taken <= renewed, "revisions begin again");
    let mut event = next(&mut events).await;
    if let LeaseEvent::Free { .. } = event {
        event = next(&mut events).await;
    }
    assert_eq!(event, LeaseEvent::Held { revision: taken, value: "c".into() });
}
