//! One ephemeral push consumer: in order, without acknowledgements, and gone at the first irregularity.
//!
//! The crate's own ordered consumers stall for seconds when a server crashes, and heal themselves out of sight. This one
//! reports the first missed heartbeat or sequence and leaves it to its owner to build another one from where it is.

use std::time::Duration;

use async_nats::{Client, HeaderMap, StatusCode, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{BusError, jetstream, raw};

/// How often the server speaks where there is nothing to deliver.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Silence for so long means that the consumer or its server is gone.
const SILENCE: Duration = Duration::from_millis(1_750);
/// The server forgets the consumer when nobody has listened for so long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(5);

/// How long building a consumer waits for an answer: while a stream has no leader nobody answers, and asking again soon after
/// there is one makes the difference.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);

/// Where delivery begins.
pub(super) enum Start {
    At(u64),
    LastPerSubject,
}

/// A message as the stream holds it.
pub(super) struct Delivery {
    pub(super) sequence: u64,
    pub(super) headers: Option<HeaderMap>,
    pub(super) payload: Bytes,
}

pub(super) struct Push {
    client: Client,
    subscriber: Subscriber,
    /// The consumer's own count of what it delivered.
    delivered: u64,
    last_heard: Instant,
}

impl Push {
    /// Builds a consumer on `stream`, of the messages on `filter`.
    pub(super) async fn create(
        client: &Client,
        stream: &str,
        filter: &str,
        start: Start,
        timeout: Duration,
    ) -> Result<Self, BusError> {
        let inbox = client.new_inbox();
        // On one connection the server sees the subscription before the consumer, so no delivery is missed.
        let subscriber = client.subscribe(inbox.clone()).await.map_err(|_| BusError::Disconnected)?;
        let name = format!("dmq-{}", uuid::Uuid::new_v4().simple());
        let mut config = json!({
            "name": name,
            "description": "dmq follows; rebuilt after every reconnect",
            "deliver_subject": inbox,
            "ack_policy": "none",
            "replay_policy": "instant",
            "filter_subject": filter,
            "max_deliver": 1,
            "flow_control": true,
            "idle_heartbeat": nanos(HEARTBEAT),
            "inactive_threshold": nanos(FORGOTTEN_AFTER),
            "mem_storage": true,
            "num_replicas": 1,
        });
        match start {
            Start::At(sequence) => {
                config["deliver_policy"] = json!("by_start_sequence");
                config["opt_start_seq"] = json!(sequence.max(1));
            }
            Start::LastPerSubject => config["deliver_policy"] = json!("last_per_subject"),
        }
        let verb = format!("CONSUMER.CREATE.{stream}.{name}.{filter}");
        let body = json!({ "stream_name": stream, "config": config, "action": "create" });
        jetstream::call::<Value>(client, &verb, stream, &body, timeout).await?;
        Ok(Self { client: client.clone(), subscriber, delivered: 0, last_heard: Instant::now() })
    }

    /// The next message, or `None` when another consumer has to be built. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<Delivery> {
        loop {
            let silence = self.last_heard + SILENCE;
            let message = tokio::time::timeout_at(silence, self.subscriber.next()).await.ok()??;
            self.last_heard = Instant::now();
            match message.status {
                None => {
                    let place = message.reply.as_deref().and_then(Place::parse)?;
                    if place.delivered != self.delivered + 1 {
                        return None;
                    }
                    self.delivered = place.delivered;
                    let (headers, payload) = (message.headers, message.payload);
                    return Some(Delivery { sequence: place.sequence, headers, payload });
                }
                Some(StatusCode::IDLE_HEARTBEAT) => {
                    let header = |name| message.headers.as_ref().and_then(|headers| headers.get_last(name));
                    // With a reply subject it asks for flow control. A heartbeat names the same subject where our
                    // answer was lost and delivery therefore stands still.
                    let stalled = header("Nats-Consumer-Stalled").map(|subject| subject.as_str().to_owned());
                    if let Some(subject) = message.reply.as_ref().map(|reply| reply.to_string()).or(stalled) {
                        self.client.publish(subject, Bytes::new()).await.ok()?;
                    }
                    let count = header("Nats-Last-Consumer").and_then(|count| count.as_str().parse::<u64>().ok());
                    if count.is_some_and(|count| count != self.delivered) {
                        return None;
                    }
                }
                // The consumer was deleted, its server is shutting down, or its leader moved.
                Some(_) => return None,
            }
        }
    }
}

/// Who listens through one consumer after another.
pub(super) trait Keeper: Send {
    /// Builds a consumer and passes on what it delivers, until there is a reason to build another. May be dropped at any
    /// await, and must have lost nothing then.
    fn one_consumer(&mut self) -> impl Future<Output = ()> + Send;
}

/// Between attempts while nothing works.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// Has one consumer built after another, at once when the connection's generation changes, until nobody receives `events`.
pub(super) async fn keep<E: Send>(
    mut keeper: impl Keeper,
    client: Client,
    events: mpsc::Sender<E>,
    mut generation: watch::Receiver<u64>,
) {
    generation.borrow_and_update();
    loop {
        let is_new = tokio::select! {
            biased;
            () = events.closed() => return,
            () = next(&mut generation) => true,
            () = keeper.one_consumer() => tokio::select! {
                biased;
                () = events.closed() => return,
                () = next(&mut generation) => true,
                () = tokio::time::sleep(RETRY_AFTER) => false,
            },
        };
        if is_new {
            raw::until_connected(&client, RETRY_AFTER).await;
        }
    }
}

/// Completes when the generation changes; never, once nobody can change it.
async fn next(generation: &mut watch::Receiver<u64>) {
    if generation.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// What a delivery's reply subject tells: `$JS.ACK.[domain.account.]stream.consumer.tries.sequence.delivered.time.pending[.random]`.
struct Place {
    sequence: u64,
    delivered: u64,
}

impl Place {
    fn parse(reply: &str) -> Option<Self> {
        let tokens: Vec<&str> = reply.split('.').collect();
        let behind_names = match tokens.len() {
            9 => 4,
            11.. => 6,
            _ => return None,
        };
        if tokens[..2] != ["$JS", "ACK"] {
            return None;
        }
        let number = |at: usize| tokens.get(behind_names + at)?.parse().ok();
        Some(Self { sequence: number(1)?, delivered: number(2)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_deliverys_reply_subject_are_read() {
        for reply in ["$JS.ACK.S.C.1.42.7.1700000000.3", "$JS.ACK.hub.abc.S.C.1.42.7.1700000000.3.x"] {
            let place = Place::parse(reply).unwrap();
            assert_eq!((place.sequence, place.delivered), (42, 7), "{reply}");
        }
        for reply in ["", "$JS.ACK", "$JS.ACK.S.C.1.x.7.1.3", "_INBOX.a.b.c.d.e.f.g.h"] {
            assert!(Place::parse(reply).is_none(), "{reply}");
        }
    }
}
