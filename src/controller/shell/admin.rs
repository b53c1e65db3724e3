//! The micro service of the admin verbs: there while this controller serves, and silent otherwise.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::bus::service::{self, EndpointConfig, Request, Responder};
use crate::config::Services;
use crate::wire::admin::VERBS;
use crate::wire::{Code, WireError};

/// A request to one of [`VERBS`].
pub(super) struct AdminRequest {
    pub(super) noun: &'static str,
    pub(super) verb: &'static str,
    pub(super) payload: Bytes,
    pub(super) responder: Responder,
}

/// How many requests may wait for the core.
pub(super) const WAITING: usize = 1_024;
const PATIENCE: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(50);
const DESCRIPTION: &str = "Administers a dmq cluster: topics, nodes, metadata";

/// Starts and stops the service as `wanted` says, and starts it anew where its subjects change.
pub(super) async fn work(
    client: Client,
    mut services: watch::Receiver<Arc<Services>>,
    mut wanted: watch::Receiver<bool>,
    requests: mpsc::Sender<AdminRequest>,
) {
    loop {
        if !until(&mut wanted, true).await {
            return;
        }
        let endpoints = endpoints(&services.borrow_and_update());
        let (running, mut asked) = match service::start(&client, DESCRIPTION, &endpoints, WAITING, PATIENCE).await {
            Ok(started) => started,
            Err(error) => {
                tracing::warn!(%error, "the admin service did not start");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        tracing::info!("admin requests are answered here");
        let goes_on = loop {
            tokio::select! {
                biased;
                goes_on = until(&mut wanted, false) => break goes_on,
                () = next_change(&mut services) => {
                    if self::endpoints(&services.borrow_and_update()) != endpoints {
                        break true;
                    }
                }
                request = asked.recv() => match request {
                    Some(request) => forward(&requests, request).await,
                    None => break true,
                },
            }
        };
        running.stop(PATIENCE).await;
        tracing::info!("admin requests are no longer answered here");
        if !goes_on {
            return;
        }
    }
}

/// Waits until that is wanted. False once nobody wants anything any more.
async fn until(wanted: &mut watch::Receiver<bool>, value: bool) -> bool {
    wanted.wait_for(|wanted| *wanted == value).await.is_ok()
}

/// Never, once nobody can change it any more: what was last said holds.
async fn next_change(services: &mut watch::Receiver<Arc<Services>>) {
    if services.changed().await.is_err() {
        std::future::pending().await
    }
}

fn endpoints(services: &Services) -> Vec<EndpointConfig> {
    let endpoint = |(noun, verb): &(&str, &str)| EndpointConfig {
        name: format!("{noun}-{verb}"),
        subject: services.admin_subject(noun, verb),
    };
    VERBS.iter().map(endpoint).collect()
}

async fn forward(requests: &mpsc::Sender<AdminRequest>, request: Request) {
    let Request { endpoint, payload, responder, headers: _ } = request;
    let Some((noun, verb)) = VERBS.get(endpoint).copied() else { return };
    match requests.try_send(AdminRequest { noun, verb, payload, responder }) {
        Ok(()) => {}
        Err(mpsc::error::TrySendError::Full(request) | mpsc::error::TrySendError::Closed(request)) => {
            let error = WireError::new(Code::Busy, "too many requests wait at the controller; ask again later");
            fail(request.responder, &error).await;
        }
    }
}

/// Answers; where the answer is too large for a message, with an error that says so.
pub(super) async fn answer(responder: Responder, payload: Bytes, most: usize) {
    if payload.len() > most {
        let words = format!("the answer has {} bytes, and a message at most {most}: ask for less", payload.len());
        return fail(responder, &WireError::new(Code::MessageTooLarge, words)).await;
    }
    // Whoever hears nothing asks again, as after any loss.
    if let Err(error) = responder.ok(payload).await {
        tracing::debug!(%error, "an admin answer was not sent");
    }
}

pub(super) async fn fail(responder: Responder, error: &WireError) {
    let body = error.encode();
    if let Err(unsent) = responder.error(status(error.code), &error.message, body).await {
        tracing::debug!(error = %unsent, "an admin answer was not sent");
    }
}

/// HTTP's numbers, as micro services use them.
fn status(code: Code) -> u16 {
    match code {
        Code::InvalidRequest
        | Code::UnsupportedVersion
        | Code::InvalidTopicException
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidConfig
        | Code::InvalidReplicaAssignment
        | Code::CorruptMessage
        | Code::InvalidRecord
        | Code::InvalidGroupId
        | Code::InvalidTimestamp
        | Code::PolicyViolation
        | Code::OffsetMetadataTooLarge => 400,
        Code::UnknownTopicOrPartition | Code::UnknownTopicId | Code::UnknownNode => 404,
        Code::TopicAlreadyExists
        | Code::VersionConflict
        | Code::RequestIdReused
        | Code::NodeRemoved
        | Code::DuplicateNode
        | Code::DirectoryMismatch
        | Code::StaleNodeEpoch
        | Code::FencedLeaderEpoch
        | Code::UnknownLeaderEpoch
        | Code::NotLeaderOrFollower
        | Code::InvalidUpdateVersion
        | Code::IneligibleReplica
        | Code::OutOfOrderSequenceNumber
        | Code::NotCoordinator
        | Code::InvalidProducerEpoch
        | Code::NodeInUse
        | Code::InconsistentClusterId
        | Code::InvalidState => 409,
        Code::MessageTooLarge => 413,
        Code::OffsetOutOfRange => 416,
        Code::NotController
        | Code::HistoryLost
        | Code::Busy
        | Code::CoordinatorLoadInProgress
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::KafkaStorageError => 503,
        Code::Unknown | Code::RequestTimedOut => 504,
    }
}
