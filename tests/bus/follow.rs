//! Following the history: nothing missed, nothing repeated, and every loss said.

use std::time::Duration;

use dmq::bus::log::{FollowEvent, follow};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::support::nats::NatsServer;
use crate::{append, connect, history, next, payload, restart};

async fn expect_entries(events: &mut mpsc::Receiver<FollowEvent>, sequences: std::ops::RangeInclusive<u64>) {
    for sequence in sequences {
        assert_eq!(next(events).await, FollowEvent::Entry { sequence, payload: payload(sequence) });
    }
}

#[tokio::test]
async fn follower_hears_of_an_entry_at_once() {
    let server = NatsServer::start();
    let (client, generation) = connect(&server).await;
    let history = history(&client).await;
    append(&history, 0).await.unwrap();
    let mut events = follow(history.clone(), 1, generation, 16);
    expect_entries(&mut events, 1..=1).await;
    let mut latencies = Vec::new();
    for expected in 1..200 {
        append(&history, expected).await.unwrap();
        let acked = Instant::now();
        expect_entries(&mut events, expected + 1..=expected + 1).await;
        latencies.push(acked.elapsed());
    }
    latencies.sort();
    let median = latencies[latencies.len() / 2];
    println!("from ack to entry: median {median:?}, p99 {:?}", latencies[latencies.len() * 99 / 100]);
    assert!(median < Duration::from_millis(5), "{median:?}");
}

#[tokio::test]
async fn follower_misses_and_repeats_nothing_across_a_killed_server() {
    let mut server = NatsServer::start();
    let (client, generation) = connect(&server).await;
    let history = history(&client).await;
    for expected in 0..10 {
        append(&history, expected).await.unwrap();
    }
    let mut events = follow(history.clone(), 1, generation, 4);
    expect_entries(&mut events, 1..=5).await;
    for round in 1..=3 {
        restart(&mut server, &client, |_| {}).await;
        append(&history, 9 + round).await.unwrap();
        let appended = Instant::now();
        expect_entries(&mut events, if round == 1 { 6..=11 } else { 10 + round..=10 + round }).await;
        assert!(appended.elapsed() < Duration::from_secs(2), "{:?}", appended.elapsed());
    }
    append(&history, 13).await.unwrap();
    expect_entries(&mut events, 14..=14).await;
}

#[tokio::test]
async fn follower_that_is_slow_holds_back_and_loses_nothing() {
    let server = NatsServer::start();
    let (client, generation) = connect(&server).await;
    let history = history(&client).await;
    for expected in 0..2_000 {
        append(&history, expected).await.unwrap();
    }
    let mut events = follow(history.clone(), 1, generation, 1);
    expect_entries(&mut events, 1..=1).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    expect_entries(&mut events, 2..=2_000).await;
}

#[tokio::test]
async fn follower_is_told_of_purged_entries() {
    let server = NatsServer::start();
    let (client, generation) = connect(&server).await;
    let history = history(&client).await;
    for expected in 0..10 {
        append(&history, expected).await.unwrap();
    }
    history.purge_before(8).await.unwrap();
    let mut events = follow(history.clone(), 3, generation.clone(), 16);
    assert_eq!(next(&mut events).await, FollowEvent::Purged { first_available: 8 });
    expect_entries(&mut events, 8..=10).await;

    history.purge_before(11).await.unwrap();
    let mut events = follow(history.clone(), 3, generation, 16);
    assert_eq!(next(&mut events).await, FollowEvent::Purged { first_available: 11 });
    append(&history, 10).await.unwrap();
    expect_entries(&mut events, 11..=11).await;
}

#[tokio::test]
async fn follower_is_told_that_the_stream_is_gone_went_back_or_is_another() {
    let server = NatsServer::start();
    let (client, generation) = connect(&server).await;
    let history = history(&client).await;
    for expected in 0..5 {
        append(&history, expected).await.unwrap();
    }
    let mut events = follow(history.clone(), 1, generation.clone(), 16);
    expect_entries(&mut events, 1..=5).await;
    let deleted = Instant::now();
    history.delete_stream().await.unwrap();
    assert_eq!(next(&mut events).await, FollowEvent::Lost { head: None });
    assert!(deleted.elapsed() < Duration::from_secs(4), "{:?}", deleted.elapsed());

    history.ensure().await.unwrap();
    assert_eq!(next(&mut events).await, FollowEvent::Lost { head: Some(0) });

    let head = history.recreate(100).await.unwrap();
    assert_eq!((head.first, head.last), (100, 99));
    // The stream may be seen missing for a moment.
    while next(&mut events).await != (FollowEvent::Lost { head: Some(99) }) {}
    assert_eq!(next(&mut events).await, FollowEvent::Purged { first_available: 100 });
    append(&history, 99).await.unwrap();
    expect_entries(&mut events, 100..=100).await;

    let mut ahead = follow(history.clone(), 500, generation, 16);
    assert_eq!(next(&mut ahead).await, FollowEvent::Lost { head: Some(100) });
}

#[tokio::test]
async fn follower_is_told_of_a_wiped_store() {
    let mut server = NatsServer::start();
    let (client, generation) = connect(&server).await;
    let history = history(&client).await;
    append(&history, 0).await.unwrap();
    let mut events = follow(history.clone(), 1, generation, 16);
    expect_entries(&mut events, 1..=1).await;
    restart(&mut server, &client, NatsServer::wipe_store).await;
    assert_eq!(next(&mut events).await, FollowEvent::Lost { head: None });
}
