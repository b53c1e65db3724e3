//! Admin verbs as the endpoints of a NATS micro service, so that `nats micro ls|info|stats` and `nats req` serve a person.
//!
//! Requests come out of one bounded channel, and answers go back through the responder that came with each. Only one process
//! may run the service at a time where one answer is wanted: instances share requests, and `stop` makes an instance silent.

use std::sync::Arc;
use std::time::Duration;

use async_nats::service::{self, NATS_SERVICE_ERROR, NATS_SERVICE_ERROR_CODE, ServiceExt, endpoint};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures::stream::SelectAll;
use futures::{Stream, StreamExt};
use tokio::sync::{RwLock, mpsc, watch};
use tokio::task::JoinHandle;

use super::{BusError, raw};
use crate::wire::{Code, WireError};

/// What the service is called, in `nats micro ls`.
pub const NAME: &str = "dmq-admin";

/// One verb.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointConfig {
    /// Unique; of `A-Z`, `a-z`, `0-9`, `_` and `-`.
    pub name: String,
    pub subject: String,
}

/// A request to one of the endpoints.
pub struct Request {
    /// Its place in the list that the service was started with.
    pub endpoint: usize,
    pub payload: Bytes,
    pub headers: HeaderMap,
    pub responder: Responder,
}

/// A running instance. It also ends, without waiting for anything, when this or the receiver of its requests is dropped.
pub struct AdminService {
    client: Client,
    gate: Arc<Gate>,
    forwarding: JoinHandle<()>,
}

impl Drop for AdminService {
    fn drop(&mut self) {
        self.gate.stopped.send_replace(true);
    }
}

/// Through which every answer passes.
struct Gate {
    stopped: watch::Sender<bool>,
    /// Held for reading while an answer is handed to the connection, so that stopping can wait for the last one.
    answering: RwLock<()>,
}

/// Starts an instance, and returns when the server has its subscriptions. At most `capacity` requests wait in the channel;
/// one more is answered with error 503 at once.
///
/// # Errors
/// `InvalidName` where an endpoint's name or subject is unusable; `Disconnected` or `Timeout`.
pub async fn start(
    client: &Client,
    description: &str,
    endpoints: &[EndpointConfig],
    capacity: usize,
    timeout: Duration,
) -> Result<(AdminService, mpsc::Receiver<Request>), BusError> {
    if !raw::is_connected(client) {
        return Err(BusError::Disconnected);
    }
    for (index, EndpointConfig { name, .. }) in endpoints.iter().enumerate() {
        let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        if !is_name || endpoints[..index].iter().any(|earlier| earlier.name == *name) {
            return Err(BusError::InvalidName(name.clone()));
        }
    }
    let builder = client.service_builder().description(description);
    let starting = builder.start(NAME, env!("CARGO_PKG_VERSION"));
    let service = tokio::time::timeout(timeout, starting).await.map_err(|_| BusError::Timeout)?;
    let service = service.map_err(|_| BusError::Disconnected)?;
    let added = match add(client, &service, endpoints, timeout).await {
        Ok(added) => added,
        Err(error) => {
            // Otherwise it would go on answering `nats micro ping`. Stopping cannot fail: it aborts a task.
            let _ = service.stop().await;
            return Err(error);
        }
    };
    let gate = Arc::new(Gate { stopped: watch::Sender::new(false), answering: RwLock::new(()) });
    let (requests, receiver) = mpsc::channel(capacity.max(1));
    let forwarding = tokio::spawn(forward(service, added, client.clone(), Arc::clone(&gate), requests));
    Ok((AdminService { client: client.clone(), gate, forwarding }, receiver))
}

async fn add(
    client: &Client,
    service: &service::Service,
    endpoints: &[EndpointConfig],
    timeout: Duration,
) -> Result<SelectAll<Indexed>, BusError> {
    let mut added = SelectAll::new();
    for (index, EndpointConfig { name, subject }) in endpoints.iter().enumerate() {
        let adding = service.endpoint_builder().name(name).add(subject);
        let endpoint = tokio::time::timeout(timeout, adding).await.map_err(|_| BusError::Timeout)?;
        let endpoint = endpoint.map_err(|_| BusError::InvalidName(subject.clone()))?;
        added.push(Indexed { index, endpoint });
    }
    raw::round_trip(client, timeout).await?;
    Ok(added)
}

impl AdminService {
    /// Stops the instance: once this returns, it answers nothing more, not even requests that were taken before. Who asked
    /// hears nothing, and asks the next instance.
    pub async fn stop(mut self, timeout: Duration) {
        self.gate.stopped.send_replace(true);
        // Responders give up when they see the flag, so this is soon free.
        drop(self.gate.answering.write().await);
        if tokio::time::timeout(timeout, &mut self.forwarding).await.is_err() {
            self.forwarding.abort();
        }
        // A server that cannot be reached has no subscription of ours either.
        let _ = raw::round_trip(&self.client, timeout).await;
    }
}

struct Indexed {
    index: usize,
    endpoint: endpoint::Endpoint,
}

impl Stream for Indexed {
    type Item = (usize, service::Request);

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let index = self.index;
        self.endpoint.poll_next_unpin(cx).map(|request| request.map(|request| (index, request)))
    }
}

async fn forward(
    service: service::Service,
    mut endpoints: SelectAll<Indexed>,
    client: Client,
    gate: Arc<Gate>,
    requests: mpsc::Sender<Request>,
) {
    let mut stopped = gate.stopped.subscribe();
    loop {
        let next = tokio::select! {
            biased;
            // An error says that the gate is gone, which this task itself holds.
            _ = stopped.wait_for(|stopped| *stopped) => break,
            () = requests.closed() => break,
            next = endpoints.next() => next,
        };
        let Some((endpoint, request)) = next else { break };
        let payload = request.message.payload.clone();
        let headers = request.message.headers.clone().unwrap_or_default();
        let responder = Responder { client: client.clone(), request, gate: Arc::clone(&gate) };
        match requests.try_send(Request { endpoint, payload, headers, responder }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(request)) => {
                let error = WireError::new(Code::Busy, "too many requests wait; try again");
                // Whether or not it arrives, the requester tries again.
                let _ = request.responder.error(503, &error.message, error.encode()).await;
            }
            Err(mpsc::error::TrySendError::Closed(_)) => break,
        }
    }
    // It cannot fail: it aborts the task that answers for `nats micro`.
    let _ = service.stop().await;
    for Indexed { endpoint, .. } in endpoints.iter_mut() {
        // It fails where the connection is closed, and with it the subscription.
        let _ = endpoint.stop().await;
    }
}

/// Answers one request. Dropped without an answer, it leaves the requester to its timeout.
pub struct Responder {
    client: Client,
    request: service::Request,
    gate: Arc<Gate>,
}

/// Why an answer was not sent.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RespondError {
    /// The instance was stopped: somebody else answers now.
    #[error("the service was stopped")]
    Stopped,
    /// There is no connection. An answer kept for later would come late and stale.
    #[error("not connected to NATS")]
    Disconnected,
    /// The answer exceeds what the server carries. Answer with an error that says so.
    #[error("the answer is too large for one message")]
    TooLarge,
}

impl Responder {
    /// Whether the requester waits for an answer. A request without a reply subject is answered by dropping the answer.
    pub fn is_awaited(&self) -> bool {
        self.request.message.reply.is_some()
    }

    /// Sends a result.
    ///
    /// # Errors
    /// [`RespondError`]; nothing was sent.
    pub async fn ok(self, body: Bytes) -> Result<(), RespondError> {
        if !self.is_awaited() {
            return Ok(());
        }
        self.while_open(self.request.respond(Ok(body))).await
    }

    /// Sends an error: its code and text in the headers that micro services use, and `body`, as JSON, for programs.
    ///
    /// # Errors
    /// [`RespondError`]; nothing was sent.
    pub async fn error(mut self, code: u16, text: &str, body: Bytes) -> Result<(), RespondError> {
        // The crate sends errors without a body. So the answer is sent here; then the crate is given the error with a reply
        // subject that it refuses to publish to, which sends nothing and counts it for `nats micro stats`.
        let reply = self.request.message.reply.replace("".into());
        // A header ends at a line break.
        let text = text.replace(['\r', '\n'], " ");
        let mut headers = HeaderMap::new();
        headers.insert(NATS_SERVICE_ERROR, text.as_str());
        headers.insert(NATS_SERVICE_ERROR_CODE, code.to_string());
        let sent = match reply {
            Some(reply) => self.while_open(self.client.publish_with_headers(reply, headers, body)).await,
            None => Ok(()),
        };
        let _ = self.request.respond(Err(service::error::Error { status: text, code: code.into() })).await;
        sent
    }

    async fn while_open(
        &self,
        sending: impl Future<Output = Result<(), async_nats::PublishError>>,
    ) -> Result<(), RespondError> {
        use async_nats::client::PublishErrorKind;
        let _answering = self.gate.answering.read().await;
        let mut stopped = self.gate.stopped.subscribe();
        if !raw::is_connected(&self.client) {
            return Err(RespondError::Disconnected);
        }
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => Err(RespondError::Stopped),
            sent = sending => sent.map_err(|error| match error.kind() {
                PublishErrorKind::MaxPayloadExceeded => RespondError::TooLarge,
                PublishErrorKind::Send | PublishErrorKind::InvalidSubject => RespondError::Disconnected,
            }),
        }
    }
}
