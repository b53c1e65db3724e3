//! The admin verbs' micro service.

use std::time::Duration;

use bytes::Bytes;
use dmq::bus::service::{self, EndpointConfig};
use dmq::bus::{BusError, raw};

use crate::support::nats::NatsServer;
use crate::{ACK, eventually, next};

fn endpoint(name: &str, subject: &str) -> EndpointConfig {
    EndpointConfig { name: name.to_owned(), subject: subject.to_owned() }
}

#[tokio::test]
async fn service_answers_with_bodies_and_errors_until_it_is_stopped() {
    let server = NatsServer::start();
    let (client, asker) = (server.connect().await, server.connect().await);
    let endpoints =
        [endpoint("topic-create", "dmq.admin.topic.create"), endpoint("topic-list", "dmq.admin.topic.list")];
    let (service, mut requests) = service::start(&client, "dmq's admin verbs", &endpoints, 16, ACK).await.unwrap();

    let ask = |subject: &'static str| raw::request_with_deadline(&asker, subject, None, "{}".into(), ACK);
    let answering = async {
        let request = next(&mut requests).await;
        assert_eq!((request.endpoint, request.payload.as_ref()), (1, &b"{}"[..]));
        assert!(request.responder.is_awaited());
        request.responder.ok("[]".into()).await.unwrap();
        let request = next(&mut requests).await;
        assert_eq!(request.endpoint, 0);
        request.responder.error(409, "exists\nalready", r#"{"error":"exists"}"#.into()).await.unwrap();
    };
    let asking = async {
        let answer = ask("dmq.admin.topic.list").await.unwrap();
        assert_eq!((answer.payload.as_ref(), answer.headers), (&b"[]"[..], None));
        let answer = ask("dmq.admin.topic.create").await.unwrap();
        assert_eq!(answer.payload, r#"{"error":"exists"}"#);
        let headers = answer.headers.unwrap();
        assert_eq!(headers.get("Nats-Service-Error").unwrap().as_str(), "exists already");
        assert_eq!(headers.get("Nats-Service-Error-Code").unwrap().as_str(), "409");
    };
    tokio::join!(answering, asking);

    let stats = ask("$SRV.STATS.dmq-admin").await.unwrap();
    let stats: serde_json::Value = serde_json::from_slice(&stats.payload).unwrap();
    assert_eq!(stats["version"], env!("CARGO_PKG_VERSION"));
    let counts = |name: &str| {
        let all = stats["endpoints"].as_array().unwrap();
        let one = all.iter().find(|endpoint| endpoint["name"] == name).unwrap();
        (one["num_requests"].as_u64().unwrap(), one["num_errors"].as_u64().unwrap())
    };
    assert_eq!((counts("topic-create"), counts("topic-list")), ((1, 1), (1, 0)));
    let info = ask("$SRV.INFO.dmq-admin").await.unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info.payload).unwrap();
    assert_eq!(info["endpoints"].as_array().unwrap().len(), 2);

    let taken = async { next(&mut requests).await };
    let short = Duration::from_millis(300);
    let late = raw::request_with_deadline(&asker, "dmq.admin.topic.list", None, Bytes::new(), short);
    let stopping = async {
        let request = taken.await;
        service.stop(ACK).await;
        assert_eq!(request.responder.ok("late".into()).await, Err(service::RespondError::Stopped));
    };
    let (late, ()) = tokio::join!(late, stopping);
    assert_eq!(late.unwrap_err(), BusError::Timeout);
    let nobody = |subject: &str| BusError::NoResponders { subject: subject.to_owned() };
    for subject in ["dmq.admin.topic.list", "$SRV.PING.dmq-admin"] {
        assert_eq!(ask(subject).await.unwrap_err(), nobody(subject));
    }
    assert!(requests.recv().await.is_none());

    let (again, _requests) = service::start(&client, "again", &endpoints, 16, ACK).await.unwrap();
    ask("$SRV.PING.dmq-admin").await.unwrap();
    drop(again);
    eventually(async || {
        ask("$SRV.PING.dmq-admin").await.is_err_and(|error| error == nobody("$SRV.PING.dmq-admin")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn service_that_is_overrun_says_so_at_once() {
    let server = NatsServer::start();
    let client = server.connect().await;
    let bad = [endpoint("a b", "x")];
    assert!(matches!(service::start(&client, "", &bad, 1, ACK).await, Err(BusError::InvalidName(_))));
    let twice = [endpoint("a", "x"), endpoint("a", "y")];
    assert!(matches!(service::start(&client, "", &twice, 1, ACK).await, Err(BusError::InvalidName(_))));

    let (service, _requests) = service::start(&client, "", &[endpoint("a", "x")], 1, ACK).await.unwrap();
    client.publish("x", Bytes::new()).await.unwrap();
    let answer = raw::request_with_deadline(&client, "x", None, Bytes::new(), ACK).await.unwrap();
    assert_eq!(answer.headers.unwrap().get("Nats-Service-Error-Code").unwrap().as_str(), "503");
    service.stop(ACK).await;
}
