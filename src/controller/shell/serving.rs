//! Requests and their answers: who waits for what, and the admin micro service while this controller is the one to ask.

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Event, Shell, TIMEOUT};
use crate::bus::raw;
use crate::bus::service::{self, AdminService, EndpointConfig, Request, Responder};
use crate::controller::core::Token;
use crate::storage::serve::{CHUNK_HEADER, Served, serve};
use crate::types::StorageId;
use crate::wire::{Code, FetchRequest, WireError, admin};

/// Who waits for an answer.
pub(super) enum Pending {
    Message(Subject),
    Admin(Box<Responder>),
    Nobody,
}

impl Pending {
    pub(super) fn from_reply(reply: Option<Subject>) -> Self {
        reply.map_or(Self::Nobody, Self::Message)
    }
}

pub(super) struct Started {
    wish: u64,
    service: AdminService,
    requests: mpsc::Receiver<Request>,
}

/// The micro service, or none. Each wish to start or stop supersedes those before.
#[derive(Default)]
pub(super) struct Desk {
    wish: u64,
    open: Option<Started>,
}

impl Desk {
    pub(super) async fn next(&mut self) -> Option<Request> {
        match &mut self.open {
            Some(open) => open.requests.recv().await,
            None => std::future::pending().await,
        }
    }

    pub(super) fn started(&mut self, started: Started) {
        if started.wish == self.wish {
            self.open = Some(started);
        }
    }

    pub(super) async fn stop(&mut self) {
        self.wish += 1;
        if let Some(open) = self.open.take() {
            open.service.stop(TIMEOUT).await;
        }
    }
}

impl Shell {
    pub(super) async fn serve(&mut self, serve: bool) {
        if serve == self.desk.open.is_some() {
            return;
        }
        if !serve {
            return self.desk.stop().await;
        }
        self.desk.wish += 1;
        let (wish, client, events) = (self.desk.wish, self.client.clone(), self.events.clone());
        let named = self.named.clone();
        tokio::spawn(async move {
            let endpoint = |(noun, verb): &(&str, &str)| EndpointConfig {
                name: format!("{noun}-{verb}"),
                subject: named.admin_subject(noun, verb),
            };
            let endpoints: Vec<_> = admin::VERBS.iter().map(endpoint).collect();
            match service::start(&client, "dmq's admin requests", &endpoints, 1024, TIMEOUT).await {
                Ok((service, requests)) => {
                    let _ = events.send(Event::Served(Started { wish, service, requests })).await;
                }
                Err(error) => tracing::error!(%error, "admin requests cannot be served"),
            }
        });
    }

    pub(super) async fn answer(&mut self, token: Token, answer: Result<Bytes, WireError>) {
        match self.pending.remove(&token) {
            Some(Pending::Message(reply)) => {
                let payload = answer.unwrap_or_else(|error| error.encode());
                self.publish(reply, payload).await;
            }
            Some(Pending::Admin(responder)) => {
                let sent = match answer {
                    Ok(payload) => responder.ok(payload).await,
                    Err(error) => responder.error(status(error.code), &one_line(&error.message), error.encode()).await,
                };
                if let Err(error) = sent {
                    tracing::debug!(?error, "an admin request was not answered");
                }
            }
            Some(Pending::Nobody) | None => {}
        }
    }

    pub(super) fn serve_fetch(&mut self, token: Token, request: FetchRequest) {
        let (Some(Pending::Message(reply)), Some(cluster)) = (self.pending.remove(&token), self.cluster) else {
            return;
        };
        let (reader, client, id) = (self.reader.clone(), self.client.clone(), StorageId(self.id.0));
        tokio::spawn(async move {
            let limit = client.max_payload().saturating_sub(64 << 10).max(64 << 10);
            let work = move || serve(&reader, cluster, id, &request, limit);
            let Ok(Served { header, body }) = tokio::task::spawn_blocking(work).await else { return };
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(CHUNK_HEADER, header.as_str());
            }
            if let Err(error) = raw::publish(&client, &reply, headers, body, TIMEOUT).await {
                tracing::debug!(%error, "a fetch was not answered");
            }
        });
    }
}

/// A header is one line.
fn one_line(words: &str) -> String {
    words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1000).collect()
}

/// The number in `Nats-Service-Error-Code`, after HTTP.
fn status(code: Code) -> u16 {
    match code {
        Code::InvalidRequest
        | Code::UnsupportedVersion
        | Code::InvalidTopicException
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidConfig
        | Code::InvalidReplicaAssignment
        | Code::MessageTooLarge => 400,
        Code::UnknownTopicOrPartition | Code::UnknownNode => 404,
        Code::TopicAlreadyExists
        | Code::VersionConflict
        | Code::RequestIdReused
        | Code::NodeRemoved
        | Code::DuplicateNode
        | Code::DirectoryMismatch
        | Code::StaleNodeEpoch
        | Code::FencedLeaderEpoch
        | Code::NotLeaderOrFollower
        | Code::InvalidUpdateVersion
        | Code::IneligibleReplica
        | Code::NodeInUse
        | Code::InconsistentClusterId
        | Code::InvalidState => 409,
        Code::NotController | Code::HistoryLost | Code::Busy => 503,
        Code::Unknown | Code::RequestTimedOut => 504,
    }
}
