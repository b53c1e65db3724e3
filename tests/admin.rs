//! The client of the admin verbs, on a real nats-server, before a controller that the test plays.

mod support;

use std::time::{Duration, Instant};

use async_nats::{Client, Subscriber};
use dmq::client::{Admin, AdminError};
use dmq::types::Version;
use dmq::wire::admin::{Changed, TopicCreate};
use dmq::wire::{Code, WireError};
use futures::StreamExt;
use serde_json::{Value, json};
use support::nats::NatsServer;

const SUBJECT: &str = "dmq.admin.topic.create";

async fn subscribe(client: &Client) -> Subscriber {
    dmq::bus::raw::subscribe(client, SUBJECT, Duration::from_secs(5)).await.unwrap()
}

fn request() -> TopicCreate {
    TopicCreate {
        name: "orders".into(),
        partitions: None,
        replication_factor: None,
        config: Default::default(),
        terms: Default::default(),
    }
}

fn created() -> Vec<u8> {
    let changed = Changed {
        subject: "orders".into(),
        topic_id: None,
        version: Version(5),
        applied: 3,
        active: 3,
        unchanged: false,
    };
    serde_json::to_vec(&changed).unwrap()
}

/// Answers requests in turn, the last answer again and again; returns the request ids when told to stop.
async fn answer(client: Client, mut requests: Subscriber, answers: Vec<Option<Vec<u8>>>) -> Vec<String> {
    let mut ids = Vec::new();
    for answer in answers {
        let message = requests.next().await.unwrap();
        let body: Value = serde_json::from_slice(&message.payload).unwrap();
        ids.push(body["terms"]["requestId"].as_str().unwrap().to_owned());
        if let Some(answer) = answer {
            client.publish(message.reply.unwrap(), answer.into()).await.unwrap();
            // A client that is dropped unflushed loses what it published.
            client.flush().await.unwrap();
        }
    }
    ids
}

fn refusal(code: Code) -> Option<Vec<u8>> {
    Some(WireError::new(code, "words").encode().to_vec())
}

#[tokio::test]
async fn a_request_keeps_its_id_over_every_retry() {
    let server = NatsServer::start();
    let (asking, answering) = (server.connect().await, server.connect().await);
    let requests = subscribe(&answering).await;
    let answers = vec![
        refusal(Code::NotController),
        refusal(Code::Busy),
        refusal(Code::Unknown),
        // Silence: another attempt joins.
        None,
        Some(created()),
    ];
    let played = tokio::spawn(answer(answering, requests, answers));
    let changed = Admin::new(asking, "dmq.admin").create_topic(request()).await.unwrap();
    assert_eq!(changed.version, Version(5));
    let ids = played.await.unwrap();
    assert_eq!(ids.len(), 5);
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test]
async fn a_refusal_is_final_and_typed() {
    let server = NatsServer::start();
    let (asking, answering) = (server.connect().await, server.connect().await);
    let requests = subscribe(&answering).await;
    let played = tokio::spawn(answer(answering, requests, vec![refusal(Code::TopicAlreadyExists)]));
    let error = Admin::new(asking, "dmq.admin").create_topic(request()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::TopicAlreadyExists));
    assert_eq!(played.await.unwrap().len(), 1);
}

#[tokio::test]
async fn where_nobody_listens_it_waits_for_somebody_until_the_deadline() {
    let server = NatsServer::start();
    let admin = Admin::new(server.connect().await, "dmq.admin").within(Duration::from_millis(400));
    let began = Instant::now();
    let error = admin.create_topic(request()).await.unwrap_err();
    assert_eq!(error, AdminError::NoController { subject: SUBJECT.into() });
    assert!((400..2_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());

    let admin = admin.within(Duration::from_secs(8));
    let asked = tokio::spawn(async move { admin.create_topic(request()).await });
    let late = server.connect().await;
    let requests = subscribe(&late).await;
    answer(late, requests, vec![Some(created())]).await;
    assert!(asked.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_change_without_an_answer_is_unknown_and_a_question_merely_unanswered() {
    let server = NatsServer::start();
    let answering = server.connect().await;
    let _silent = subscribe(&answering).await;
    let _silent_too =
        dmq::bus::raw::subscribe(&answering, "dmq.admin.topic.list", Duration::from_secs(5)).await.unwrap();
    let admin = Admin::new(server.connect().await, "dmq.admin").within(Duration::from_millis(300));
    let error = admin.create_topic(request()).await.unwrap_err();
    assert!(matches!(&error, AdminError::Unknown { request_id: Some(_), .. }), "{error:?}");
    let error = admin.list_topics().await.unwrap_err();
    assert!(matches!(&error, AdminError::NoAnswer { .. }), "{error:?}");
}

/// Answers requests in turn, and returns from where each asked.
async fn play(client: Client, subject: &str, answers: Vec<Value>) -> tokio::task::JoinHandle<Vec<Value>> {
    let mut requests = dmq::bus::raw::subscribe(&client, subject, Duration::from_secs(5)).await.unwrap();
    tokio::spawn(async move {
        let mut from = Vec::new();
        for answer in answers {
            let message = requests.next().await.unwrap();
            let body: Value = serde_json::from_slice(&message.payload).unwrap();
            from.push(body["from"].clone());
            client.publish(message.reply.unwrap(), answer.to_string().into()).await.unwrap();
            client.flush().await.unwrap();
        }
        from
    })
}

#[tokio::test]
async fn topics_are_put_together_from_several_answers_and_metadata_from_those_of_one_version() {
    let server = NatsServer::start();
    let admin = Admin::new(server.connect().await, "dmq.admin");
    let topic = |name| {
        json!({ "name": name, "topicId": "00000000-0000-0000-0000-000000000007", "partitions": 1,
            "replicationFactor": 1, "leaderlessPartitions": 0, "underReplicatedPartitions": 0 })
    };
    let pages = vec![
        json!({ "version": 5, "topics": [topic("a")], "next": "b" }),
        json!({ "version": 6, "topics": [topic("b")] }),
    ];
    let asked = play(server.connect().await, "dmq.admin.topic.list", pages).await;
    let list = admin.list_topics().await.unwrap();
    assert_eq!(list.topics.iter().map(|topic| topic.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((list.next, asked.await.unwrap()), (None, vec![Value::Null, json!("b")]));

    let page =
        |version: u64, line: u64, next: Option<u64>| json!({ "version": version, "lines": [line], "next": next });
    let pages = vec![page(5, 10, Some(1)), page(6, 91, None), page(6, 20, Some(1)), page(6, 21, None)];
    let asked = play(server.connect().await, "dmq.admin.metadata.show", pages).await;
    assert_eq!(admin.show_metadata().await.unwrap(), json!([20, 21]));
    assert_eq!(asked.await.unwrap(), [0, 1, 0, 1].map(Value::from));
}
