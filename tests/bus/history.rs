//! The history's stream: compare-and-set, reads, purging and rebirth.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use dmq::bus::log::{AppendError, History, HistoryConfig};
use dmq::bus::{BusError, raw};

use crate::support::nats::NatsServer;
use crate::{ACK, append, connect, eventually, history, payload};

#[tokio::test]
async fn history_is_created_once_and_differences_are_said_not_mended() {
    let server = NatsServer::start();
    let client = server.connect().await;
    let history = History::new(client.clone(), HistoryConfig::default());
    assert_eq!(history.head().await, Ok(None));
    assert_eq!(history.read(1).await, Err(BusError::Missing("DMQ_METADATA".to_owned())));
    assert_eq!(append(&history, 0).await, Err(AppendError::StreamMissing));

    let made = history.ensure().await.unwrap();
    assert!(made.created && made.differences.is_empty(), "{made:?}");
    let found = history.ensure().await.unwrap();
    assert!(!found.created && found.differences.is_empty(), "{found:?}");
    let head = history.head().await.unwrap().unwrap();
    assert_eq!((head.first, head.last), (1, 0));

    let other = HistoryConfig { subject: "dmq.other.log".to_owned(), ..HistoryConfig::default() };
    let found = History::new(client, other).ensure().await.unwrap();
    let said = r#"stream DMQ_METADATA: subjects is ["dmq.metadata.log"], wanted ["dmq.other.log"]"#;
    assert_eq!((found.created, found.differences), (false, vec![said.to_owned()]));
}

#[tokio::test]
async fn append_lands_at_the_expected_place_or_nowhere() {
    let server = NatsServer::start();
    let history = history(&server.connect().await).await;
    assert_eq!(append(&history, 0).await, Ok(1));
    assert_eq!(append(&history, 0).await, Err(AppendError::Conflict), "expected too little");
    assert_eq!(append(&history, 7).await, Err(AppendError::Conflict), "expected too much");
    assert_eq!(append(&history, 1).await, Ok(2));
    assert_eq!(history.read(2).await, Ok(Some(payload(2))));
    assert_eq!(history.read(3).await, Ok(None));

    let large = Bytes::from(vec![0; 2 << 20]);
    let refused = history.append(2, large, HeaderMap::new(), ACK).await;
    assert_eq!(refused, Err(AppendError::TooLarge { size: 2 << 20 }));

    let racing = futures::future::join_all((0..16).map(|_| append(&history, 2))).await;
    assert_eq!(racing.iter().filter(|outcome| **outcome == Ok(3)).count(), 1, "{racing:?}");
    assert_eq!(racing.iter().filter(|outcome| **outcome == Err(AppendError::Conflict)).count(), 15, "{racing:?}");
}

#[tokio::test]
async fn append_whose_ack_is_lost_is_unknown_and_settled_by_its_place() {
    let mut server = NatsServer::start();
    let (client, _generation) = connect(&server).await;
    let history = history(&client).await;
    append(&history, 0).await.unwrap();

    server.pause();
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", "mine");
    let outcome = history.append(1, payload(2), headers, Duration::from_millis(100)).await;
    assert_eq!(outcome, Err(AppendError::Unknown));
    server.resume();
    assert_eq!(eventually(async || history.read(2).await.unwrap()).await, payload(2));
    assert_eq!(append(&history, 1).await, Err(AppendError::Conflict));

    server.kill();
    eventually(async || (!raw::is_connected(&client)).then_some(())).await;
    assert_eq!(append(&history, 2).await, Err(AppendError::Disconnected));
    assert_eq!(history.head().await, Err(BusError::Disconnected));
    server.restart();
    eventually(async || raw::is_connected(&client).then_some(())).await;
    assert_eq!(history.head().await.unwrap().unwrap().last, 2, "what was refused while disconnected is not sent later");
}

#[tokio::test]
async fn range_is_read_in_order_and_over_what_was_purged() {
    let server = NatsServer::start();
    let history = history(&server.connect().await).await;
    for expected in 0..300 {
        append(&history, expected).await.unwrap();
    }
    let all = |from, to| (from..=to).map(|sequence| (sequence, payload(sequence))).collect::<Vec<_>>();
    assert_eq!(history.read_range(0, 300, 1 << 20).await.unwrap(), all(1, 300));
    assert_eq!(history.read_range(290, 999, 1 << 20).await.unwrap(), all(290, 300));
    assert_eq!(history.read_range(301, 999, 1 << 20).await.unwrap(), []);
    assert_eq!(history.read_range(9, 8, 1 << 20).await.unwrap(), []);

    let mut read = Vec::new();
    let mut calls = 0;
    while read.len() < 300 {
        let more = history.read_range(read.len() as u64 + 1, 300, 1_000).await.unwrap();
        assert!(!more.is_empty() && more.len() < 100, "bounded by bytes, and progress: {}", more.len());
        read.extend(more);
        calls += 1;
    }
    assert_eq!(read, all(1, 300));
    assert!(calls > 3, "{calls}");

    history.purge_before(1).await.unwrap();
    assert_eq!(history.head().await.unwrap().unwrap().first, 1, "nothing is before the first entry");
    history.purge_before(250).await.unwrap();
    let head = history.head().await.unwrap().unwrap();
    assert_eq!((head.first, head.last), (250, 300));
    assert_eq!(history.read(249).await, Ok(None));
    assert_eq!(history.read_range(1, 300, 1 << 20).await.unwrap(), all(250, 300));
    assert_eq!(history.read_range(1, 200, 1 << 20).await.unwrap(), []);
}

#[tokio::test]
async fn recreated_history_begins_where_it_is_told_and_can_be_purged() {
    let server = NatsServer::start();
    let history = history(&server.connect().await).await;
    append(&history, 0).await.unwrap();
    let before = history.head().await.unwrap().unwrap();
    let head = history.recreate(1_000).await.unwrap();
    assert_eq!((head.first, head.last), (1_000, 999));
    assert_ne!(head.created, before.created);
    assert_eq!(append(&history, 0).await, Err(AppendError::Conflict));
    for expected in 999..1_009 {
        assert_eq!(append(&history, expected).await, Ok(expected + 1));
    }
    history.purge_before(1_005).await.unwrap();
    let head = history.head().await.unwrap().unwrap();
    assert_eq!((head.first, head.last), (1_005, 1_009));
    history.purge_before(1_010).await.unwrap();
    let head = history.head().await.unwrap().unwrap();
    assert_eq!((head.first, head.last), (1_010, 1_009));
    assert_eq!(append(&history, 1_009).await, Ok(1_010));

    history.delete_stream().await.unwrap();
    history.delete_stream().await.unwrap();
    assert_eq!(history.recreate(1).await.unwrap().last, 0);
}
