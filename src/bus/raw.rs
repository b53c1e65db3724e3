//! Core NATS as it really behaves: requests with a deadline, subscriptions that are in place when the call returns, and who
//! this connection is.
//!
//! Nothing here retries. A request that was under way when the connection broke runs into its timeout, unless the caller
//! gives it up at the next generation.

use std::sync::Arc;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::connection::State;
use async_nats::{Client, HeaderMap, Message, Request, StatusCode, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::Instant;

use super::BusError;
use crate::types::Connection;

/// The identity of the present connection, or `None` while there is none. It changes with every reconnect, and for an
/// instant after one it may still be the old one: where that matters, use [`established`].
pub fn connection(client: &Client) -> Option<Connection> {
    if !is_connected(client) {
        return None;
    }
    let info = client.try_server_info()?;
    Some(Connection { server: Arc::from(info.server_id.as_str()), client: info.client_id })
}

/// Whether the connection stands, as far as this side knows.
pub fn is_connected(client: &Client) -> bool {
    client.connection_state() == State::Connected
}

/// The identity of the present connection, once the server has answered on it.
///
/// # Errors
/// `Disconnected` or `Timeout`.
pub async fn established(client: &Client, timeout: Duration) -> Result<Connection, BusError> {
    // What was sent before a loss was noticed is never answered, so an attempt is given up early.
    const ATTEMPT: Duration = Duration::from_millis(250);
    let deadline = Instant::now() + timeout;
    until_connected(client, timeout).await;
    // The crate calls itself connected before it has taken over what the new server said of itself; by the time that
    // anything was sent and received, it has. So an identity that stands before and after is that of the connection.
    let mut before = connection(client);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let has_answered = match round_trip(client, ATTEMPT.min(left)).await {
            Ok(()) => true,
            Err(BusError::Timeout) if left > ATTEMPT => false,
            Err(error) => return Err(error),
        };
        match connection(client) {
            Some(now) if has_answered && before.as_ref() == Some(&now) => return Ok(now),
            after => before = after,
        }
    }
}

/// Waits until the connection stands, at most `timeout`. The generation changes an instant before it does.
pub(super) async fn until_connected(client: &Client, timeout: Duration) {
    const LOOK_EVERY: Duration = Duration::from_millis(2);
    let looking = async {
        while !is_connected(client) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    // Not connected in time: whatever the caller does next will say so.
    let _ = tokio::time::timeout(timeout, looking).await;
}

/// Sends a request and waits for one answer, at most `timeout`.
///
/// # Errors
/// `Disconnected`, `TooLarge` and `InvalidName`: nothing was sent. `NoResponders`: nobody got it, known at once. `Timeout`:
/// it may have been received and acted upon.
pub async fn request_with_deadline(
    client: &Client,
    subject: &str,
    headers: Option<HeaderMap>,
    payload: Bytes,
    timeout: Duration,
) -> Result<Message, BusError> {
    if !is_connected(client) {
        return Err(BusError::Disconnected);
    }
    let size = payload.len();
    let mut request = Request::new().payload(payload).timeout(Some(timeout));
    if let Some(headers) = headers {
        request = request.headers(headers);
    }
    // The crate's own timeout starts once the request is queued, and the queue may be full: hence a second one around it.
    match tokio::time::timeout(timeout, client.send_request(subject.to_owned(), request)).await {
        Err(_) => Err(BusError::Timeout),
        Ok(Ok(message)) => Ok(message),
        Ok(Err(error)) => Err(match error.kind() {
            RequestErrorKind::NoResponders => BusError::NoResponders { subject: subject.to_owned() },
            RequestErrorKind::InvalidSubject => BusError::InvalidName(subject.to_owned()),
            RequestErrorKind::MaxPayloadExceeded => BusError::TooLarge { size, limit: client.max_payload() },
            // The connection ended for good between queueing and the answer: as open as a timeout.
            RequestErrorKind::TimedOut | RequestErrorKind::Other => BusError::Timeout,
        }),
    }
}

/// Sends a request that may have several answers, which come on an inbox of its own: see [`next_answer`].
///
/// # Errors
/// `Disconnected`, `TooLarge` and `InvalidName`: nothing was sent. `Timeout`: the connection's queue was full for so long.
pub async fn request_many(
    client: &Client,
    subject: &str,
    headers: HeaderMap,
    payload: Bytes,
    timeout: Duration,
) -> Result<Subscriber, BusError> {
    if !is_connected(client) {
        return Err(BusError::Disconnected);
    }
    let inbox = client.new_inbox();
    let answers = subscribe_unconfirmed(client, &inbox, timeout).await?;
    publish_with_reply(client, subject, &inbox, headers, payload, timeout).await?;
    Ok(answers)
}

/// The next answer to a request to `subject`.
///
/// # Errors
/// `NoResponders`: nobody got the request. `Timeout`: no answer came until then. `Disconnected`: the connection has ended for good.
pub async fn next_answer(answers: &mut Subscriber, subject: &str, until: Instant) -> Result<Message, BusError> {
    match tokio::time::timeout_at(until, answers.next()).await {
        Err(_) => Err(BusError::Timeout),
        Ok(None) => Err(BusError::Disconnected),
        Ok(Some(message)) if message.status == Some(StatusCode::NO_RESPONDERS) => {
            Err(BusError::NoResponders { subject: subject.to_owned() })
        }
        Ok(Some(message)) => Ok(message),
    }
}

/// Publishes with a reply subject, whose answers the caller has already subscribed to.
///
/// # Errors
/// As [`publish`].
pub async fn publish_with_reply(
    client: &Client,
    subject: &str,
    reply: &str,
    headers: HeaderMap,
    payload: Bytes,
    timeout: Duration,
) -> Result<(), BusError> {
    let size = payload.len();
    let sending = client.publish_with_reply_and_headers(subject.to_owned(), reply.to_owned(), headers, payload);
    sent(client, subject, size, timeout, sending).await
}

/// Publishes at most once: handed to the connection, not known to have arrived.
///
/// # Errors
/// Nothing was sent, except with `Timeout`: the connection's queue was full for so long.
pub async fn publish(
    client: &Client,
    subject: &str,
    headers: HeaderMap,
    payload: Bytes,
    timeout: Duration,
) -> Result<(), BusError> {
    let size = payload.len();
    sent(client, subject, size, timeout, client.publish_with_headers(subject.to_owned(), headers, payload)).await
}

async fn sent(
    client: &Client,
    subject: &str,
    size: usize,
    timeout: Duration,
    sending: impl Future<Output = Result<(), async_nats::PublishError>>,
) -> Result<(), BusError> {
    use async_nats::client::PublishErrorKind;
    if !is_connected(client) {
        return Err(BusError::Disconnected);
    }
    match tokio::time::timeout(timeout, sending).await {
        Err(_) => Err(BusError::Timeout),
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => BusError::TooLarge { size, limit: client.max_payload() },
            PublishErrorKind::InvalidSubject => BusError::InvalidName(subject.to_owned()),
            PublishErrorKind::Send => BusError::Disconnected,
        }),
    }
}

/// Waits until the server has handled everything that this connection sent before. A flush writes to the socket and promises
/// less. Another server of the same cluster may learn of a subscription a moment later.
///
/// # Errors
/// `Disconnected`, or `Timeout`.
pub async fn round_trip(client: &Client, timeout: Duration) -> Result<(), BusError> {
    if !is_connected(client) {
        return Err(BusError::Disconnected);
    }
    let inbox = client.new_inbox();
    let there_and_back = async {
        let mut echo = client.subscribe(inbox.clone()).await.map_err(|_| BusError::Disconnected)?;
        client.publish(inbox, Bytes::new()).await.map_err(|_| BusError::Disconnected)?;
        echo.next().await.map(drop).ok_or(BusError::Disconnected)
    };
    tokio::time::timeout(timeout, there_and_back).await.map_err(|_| BusError::Timeout)?
}

/// Subscribes: the server has the subscription by the time that it handles what this connection sends afterwards, so the answers
/// to that are received.
///
/// # Errors
/// `InvalidName` where NATS takes no such subject; `Disconnected`: the connection has ended for good; `Timeout`: its queue was
/// full for so long.
pub async fn subscribe_unconfirmed(client: &Client, subject: &str, timeout: Duration) -> Result<Subscriber, BusError> {
    let asked = tokio::time::timeout(timeout, client.subscribe(subject.to_owned())).await;
    confirmed_kind(subject, asked)
}

/// Subscribes, and returns when the server has the subscription: what is published afterwards on this server is received.
///
/// # Errors
/// `InvalidName` where NATS takes no such subject; `Disconnected` or `Timeout` where the server did not confirm.
pub async fn subscribe(client: &Client, subject: &str, timeout: Duration) -> Result<Subscriber, BusError> {
    let subscriber = subscribe_unconfirmed(client, subject, timeout).await?;
    round_trip(client, timeout).await?;
    Ok(subscriber)
}

/// As [`subscribe`], sharing the messages with the other members of a queue group.
///
/// # Errors
/// As [`subscribe`].
pub async fn queue_subscribe(
    client: &Client,
    subject: &str,
    group: &str,
    timeout: Duration,
) -> Result<Subscriber, BusError> {
    let asked = tokio::time::timeout(timeout, client.queue_subscribe(subject.to_owned(), group.to_owned())).await;
    let subscriber = confirmed_kind(subject, asked)?;
    round_trip(client, timeout).await?;
    Ok(subscriber)
}

fn confirmed_kind(
    subject: &str,
    asked: Result<Result<Subscriber, async_nats::SubscribeError>, tokio::time::error::Elapsed>,
) -> Result<Subscriber, BusError> {
    use async_nats::client::SubscribeErrorKind;
    asked.map_err(|_| BusError::Timeout)?.map_err(|error| match error.kind() {
        SubscribeErrorKind::InvalidSubject | SubscribeErrorKind::InvalidQueueName => {
            BusError::InvalidName(subject.to_owned())
        }
        SubscribeErrorKind::Other => BusError::Disconnected,
    })
}
