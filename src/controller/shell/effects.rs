//! Carrying out what the core decided, in its order. What takes time is begun here and reports back.

use std::future::Future;
use std::time::Duration;

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;

use super::admin;
use super::disk::Job;
use super::driver::{Driver, Reply, Report};
use super::lease::Ask;
use super::{QUESTION, fetch, report, snapshots};
use crate::bus::log::{self, AppendError, History as Log};
use crate::bus::{BusError, raw};
use crate::controller::core::{AppendResult, Effect, Head, Input, LeaseResult, Level, MetadataHolder, Now, Token};
use crate::process::serve::Fetch;
use crate::process::{ProcessError, message_room};
use crate::types::{Monotonic, Position, StorageId, Version};
use crate::wire::CHUNK_HEADER;
use crate::wire::{Code, FetchRequest, WireError, WireMessage};

/// How many entries of the stream wait for the core.
const FOLLOWED: usize = 1_024;
/// After so long in the connection's full queue, a message counts as lost on the way.
const QUEUE_PATIENCE: Duration = Duration::from_millis(20);

impl Driver {
    pub(super) async fn carry_out(&mut self, now: Now, effect: Effect) {
        match effect {
            Effect::AskHead { snapshot } => self.ask_head(now.monotonic, snapshot),
            Effect::Follow { after } => {
                let (log, generation) = (self.jetstream.log.clone(), self.generation.clone());
                self.followed = Some(log::follow(log, after.0 + 1, generation, FOLLOWED));
            }
            Effect::LoadSnapshot => {
                let jetstream = self.jetstream.clone();
                self.begin(async move { Input::Loaded(snapshots::load_newest(&jetstream).await) });
            }
            Effect::Append { attempt, expected, payload } => self.append(attempt, expected, payload),
            Effect::Read { version } => {
                let log = self.jetstream.log.clone();
                self.begin(async move {
                    let result =
                        log.read(version.0).await.map_err(|error| tracing::debug!(%error, "a read of the history"));
                    Input::Read { version, result }
                });
            }
            Effect::TakeLease { revision, holder } => {
                self.ask_lease(now.monotonic, Ask::Take { revision, holder, sent_at: now.monotonic });
            }
            Effect::RenewLease { revision, holder } => {
                self.ask_lease(now.monotonic, Ask::Renew { revision, holder, sent_at: now.monotonic });
            }
            Effect::ReleaseLease { revision } => self.ask_lease(now.monotonic, Ask::Release { revision }),
            // Taken care of behind the other effects.
            Effect::Serve(_) => {}
            Effect::Answer { token, payload } => self.answer(token, Ok(payload)).await,
            Effect::Fail { token, error } => self.answer(token, Err(error)).await,
            Effect::Drop { token } => {
                self.replies.remove(&token);
            }
            Effect::Push { storage, payload } => self.push(storage, payload).await,
            Effect::Announce(message) => {
                let subject = Subject::from(self.services.controller(self.me.controller).heartbeat);
                self.publish(subject, message.encode()).await;
            }
            Effect::Persist(change) => self.store(Job::Persist(change)).await,
            Effect::PersistSkip(position) => self.store(Job::Skip(position)).await,
            Effect::Install { image, position } => self.store(Job::Install { image, position }).await,
            Effect::Bind(cluster) => self.store(Job::Bind { cluster, id: self.me.controller }).await,
            Effect::ServeFetch { token, request, head } => self.serve_fetch(token, request, head).await,
            Effect::WriteSnapshot { image, position } => {
                let (store, busy) = (self.jetstream.snapshots.clone(), self.snapshots_busy.clone());
                self.begin(async move {
                    let _one_at_a_time = busy.lock().await;
                    Input::SnapshotWritten(snapshots::write(&store, image, position).await)
                });
            }
            Effect::Purge { before } => {
                let (jetstream, busy) = (self.jetstream.clone(), self.snapshots_busy.clone());
                self.tasks.spawn(async move {
                    let _one_at_a_time = busy.lock().await;
                    snapshots::purge(&jetstream, before).await;
                });
            }
            Effect::Gather { holder, position } => self.gather(holder, position),
            Effect::ListSnapshots => {
                let jetstream = self.jetstream.clone();
                self.begin(async move { Input::SnapshotsListed(snapshots::newest(&jetstream.snapshots).await) });
            }
            Effect::Recreate { image, position } => {
                let (jetstream, busy) = (self.jetstream.clone(), self.snapshots_busy.clone());
                self.begin(async move {
                    let _one_at_a_time = busy.lock().await;
                    Input::Recreated(snapshots::recreate(&jetstream, image, position).await)
                });
            }
            Effect::Log { level, words } => match level {
                Level::Debug => tracing::debug!(target: "dmq::controller", "{words}"),
                Level::Info => tracing::info!(target: "dmq::controller", "{words}"),
                Level::Warn => tracing::warn!(target: "dmq::controller", "{words}"),
                Level::Error => tracing::error!(target: "dmq::controller", "{words}"),
            },
            Effect::Exit { words } => {
                self.ended.get_or_insert(Err(ProcessError::Ended(words)));
            }
            Effect::Stopped => {
                self.ended.get_or_insert(Ok(()));
            }
        }
    }

    /// Runs beside the driver, and reports what came of it.
    fn begin(&mut self, work: impl Future<Output = Input> + Send + 'static) {
        let reports = self.reports.clone();
        self.tasks.spawn(async move { report(&reports, work.await).await });
    }

    fn ask_head(&mut self, asked_at: Monotonic, snapshot: Option<String>) {
        let jetstream = self.jetstream.clone();
        self.begin(async move {
            let asking = async {
                let Some(head) = jetstream.log.head().await? else { return Ok(Head::Missing) };
                // A history that still has its beginning depends on no snapshot.
                let snapshot = match snapshot.filter(|_| head.first > 1) {
                    Some(name) => match jetstream.snapshots.exists(&name).await {
                        Err(BusError::Missing(_)) => false,
                        found => found?,
                    },
                    None => true,
                };
                Ok(Head::Present { first: Version(head.first), last: Version(head.last), snapshot })
            };
            let head = match tokio::time::timeout(QUESTION, asking).await {
                Ok(Ok(head)) => Some(head),
                Ok(Err(error)) => {
                    let error: BusError = error;
                    tracing::debug!(%error, "the history's head");
                    None
                }
                Err(_) => None,
            };
            Input::Head { asked_at, head }
        });
    }

    fn append(&mut self, attempt: u64, expected: Version, payload: Bytes) {
        let log = self.jetstream.log.clone();
        let lost = self.belongs_to.filter(|_| expected == Version::ZERO);
        self.begin(async move {
            let result = match lost {
                // A directory that has lost its metadata may take it from the others, and found nothing.
                Some(cluster) => AppendResult::Refused(format!(
                    "this controller's directory belongs to cluster {cluster}, whose history is gone: start the others first"
                )),
                None => append(&log, expected, payload).await,
            };
            Input::Appended { attempt, result }
        });
    }

    fn ask_lease(&mut self, sent_at: Monotonic, ask: Ask) {
        if self.asks.try_send(ask).is_err() {
            self.begin(std::future::ready(Input::LeaseAnswer { sent_at, result: LeaseResult::Unknown }));
        }
    }

    async fn store(&mut self, job: Job) {
        // It fails where the thread is gone, which the driver notices by itself.
        let _ = self.jobs.send(job).await;
    }

    async fn answer(&mut self, token: Token, answer: Result<Bytes, WireError>) {
        if self.heartbeat.as_ref().is_some_and(|(asked, _)| *asked == token)
            && let Some((_, reply)) = self.heartbeat.take()
        {
            return self.publish(reply, answer.unwrap_or_else(|error| error.encode())).await;
        }
        match self.replies.remove(&token) {
            None => {}
            Some(Reply::Plain(reply)) => self.publish(reply, answer.unwrap_or_else(|error| error.encode())).await,
            Some(Reply::Admin(responder)) => {
                let responder = *responder;
                let most = self.client.max_payload();
                let answering = async {
                    match answer {
                        Ok(payload) => admin::answer(responder, payload, most).await,
                        Err(error) => admin::fail(responder, &error).await,
                    }
                };
                // The core waits for nobody; whoever hears nothing asks again.
                let _ = tokio::time::timeout(QUEUE_PATIENCE, answering).await;
            }
        }
    }

    async fn push(&mut self, storage: StorageId, payload: Bytes) {
        let services = &self.services;
        let (push, ack) = self.subjects.entry(storage).or_insert_with(|| {
            let subjects = services.storage(storage);
            (subjects.push.into(), subjects.ack.into())
        });
        if !raw::is_connected(&self.client) {
            return;
        }
        // The ack subject is the reply subject: so the server's word that nobody listens comes there as well.
        let sending = self.client.publish_with_reply(push.clone(), ack.clone(), payload);
        said(tokio::time::timeout(QUEUE_PATIENCE, sending).await.ok(), "a push");
    }

    /// Publishes without waiting for more than a full queue: what is lost here is made good like what is lost on the way.
    async fn publish(&mut self, subject: Subject, payload: Bytes) {
        if !raw::is_connected(&self.client) {
            return;
        }
        let sending = self.client.publish(subject, payload);
        said(tokio::time::timeout(QUEUE_PATIENCE, sending).await.ok(), "a message");
    }

    async fn serve_fetch(&mut self, token: Token, request: FetchRequest, head: Position) {
        let Some(Reply::Plain(reply)) = self.replies.remove(&token) else { return };
        let cluster = self.core.history().image().map(|image| image.cluster);
        let (Some(cluster), Ok(permit)) = (cluster, self.fetches_under_way.clone().try_acquire_owned()) else {
            let error = WireError::new(Code::Busy, "too many fetches are under way; ask again soon");
            return self.publish(reply, error.encode()).await;
        };
        let max_bytes = message_room(self.client.max_payload());
        let (reader, controller) = (self.reader.clone(), self.me.controller);
        let fetch = Fetch { reader, cluster, controller, request, head, max_bytes };
        let (client, reports) = (self.client.clone(), self.reports.clone());
        self.tasks.spawn(async move {
            let _one_of_a_few = permit;
            let Ok(served) = tokio::task::spawn_blocking(move || fetch.serve()).await else { return };
            if served.wants_snapshot {
                // Where it is not heard, the next fetch says so again.
                let _ = reports.send(Report::WantsSnapshot).await;
            }
            let mut headers = HeaderMap::new();
            if let Some(header) = served.header {
                headers.insert(CHUNK_HEADER, header.as_str());
            }
            if let Err(error) = raw::publish(&client, &reply, headers, served.body, QUESTION).await {
                tracing::debug!(%error, "an answer to a fetch was not sent");
            }
        });
    }

    fn gather(&mut self, holder: MetadataHolder, position: Position) {
        let subject = match holder {
            MetadataHolder::Controller(id) => self.services.controller(id).fetch,
            MetadataHolder::Storage(id) => self.services.storage(id).push,
        };
        let client = self.client.clone();
        self.begin(async move { Input::Loaded(fetch::gather(&client, &subject, position).await) });
    }
}

/// Says so where a message was not sent. Under load that would be once per message, so only for those who look closely.
fn said(sent: Option<Result<(), async_nats::PublishError>>, what: &str) {
    match sent {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::debug!(%error, "{what} was not sent"),
        None => tracing::debug!("{what} was not sent: the connection's queue is full"),
    }
}

async fn append(log: &Log, expected: Version, payload: Bytes) -> AppendResult {
    // The entry that founds a cluster is the only one for which a stream is made: a missing one is a lost history otherwise.
    if expected == Version::ZERO
        && let Err(error) = log.ensure().await
    {
        return AppendResult::Refused(format!("the history's stream cannot be made: {error}"));
    }
    match log.append(expected.0, payload, HeaderMap::new(), QUESTION).await {
        Ok(sequence) if sequence == expected.next().0 => AppendResult::Stored,
        // A server that ignores what is expected: what stands where has to be read.
        Ok(_) => AppendResult::Conflict,
        // Where there is no leader at the moment, reading the place shows when there is one, and the head if there is none.
        Err(AppendError::Conflict | AppendError::StreamMissing) => AppendResult::Conflict,
        Err(AppendError::Unknown | AppendError::Disconnected) => AppendResult::Unknown,
        Err(error @ (AppendError::TooLarge { .. } | AppendError::Refused(_))) => {
            AppendResult::Refused(error.to_string())
        }
    }
}
