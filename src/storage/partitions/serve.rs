//! The tasks between NATS and the partitions' thread: what comes in becomes commands, what goes out is published.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use futures::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;

use super::answer::{self, Reply};
use super::coordinator::Loaded;
use super::fetches::Fetch;
use super::groups::Groups;
use super::request::{Format, Request};
use super::{BUDGET_KIB, Command, Lease, Vitals, Whose};
use crate::bus::{BusError, raw};
use crate::log::{LogError, ReadPlan, TimePlan, TopicPartition};
use crate::process::Clock;
use crate::storage::core::{Call, CallError, Place};
use crate::storage::subjects::Subjects;
use crate::types::{LeaderEpoch, Offset, StorageId};
use crate::wire::admin;
use crate::wire::data::{FetchedHead, FoundOffset, Leads, OffsetsRequest, PartitionOffsets, op};
use crate::wire::replica::ReplicaFetch;

/// How many answers may wait to be published.
const REPLIES: usize = 4096;
/// Beyond that an answer is dropped: the connection takes nothing, and whoever waits asks again.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(1);
const SUBSCRIBE_RETRY: Duration = Duration::from_millis(50);

/// How many fetches read from the disk at the same time.
const READS: usize = 16;

/// A fetch whose records are to be read.
pub(super) struct Reading {
    pub(super) plan: ReadPlan,
    pub(super) head: FetchedHead,
    pub(super) fetch: Fetch,
    pub(super) id: TopicPartition,
    /// The most that a batch's records may take decompressed.
    pub(super) limit: usize,
}

/// A time that is looked for.
pub(super) struct Finding {
    pub(super) plan: TimePlan,
    /// The answer, but for what is found.
    pub(super) stands: PartitionOffsets,
    pub(super) place: Place,
    pub(super) request: OffsetsRequest,
    pub(super) reply: Subject,
}

impl Finding {
    /// What is answered, with what kept it from being found; or the request, which has to be looked at again.
    fn carry_out(self) -> Result<(Reply, Option<LogError>), Box<Command>> {
        let Self { plan, mut stands, place, request, reply } = self;
        match plan.find() {
            Ok(found) => {
                let shown = found.filter(|found| found.offset < stands.high_watermark);
                stands.found = shown.map(|found| FoundOffset {
                    offset: found.offset,
                    timestamp: Some(found.timestamp),
                    leader_epoch: found.epoch,
                });
                Ok((Reply::json(reply, &stands), None))
            }
            Err(LogError::Changed { .. }) => {
                let request = Request::Offsets(request);
                Err(Box::new(Command::Data { place, request, reply: Some(reply), _permit: None }))
            }
            Err(error) => Ok((Reply::error(reply, &answer::log_error(&error)), Some(error))),
        }
    }
}

/// A piece of a partition of the offsets topic that is to be read.
pub(super) struct Loading {
    pub(super) plan: ReadPlan,
    pub(super) limit: usize,
    pub(super) place: Place,
    pub(super) leader_epoch: LeaderEpoch,
    /// What was read before.
    pub(super) groups: Groups,
    pub(super) from: Offset,
}

impl Loading {
    fn carry_out(self) -> Loaded {
        let Self { plan, limit, place, leader_epoch, mut groups, from } = self;
        let next = plan.read().map(|fetched| {
            groups.take_in(fetched.batches, limit);
            // Where nothing is left below the end, compaction took it.
            if fetched.next_offset > from { fetched.next_offset } else { Offset(i64::MAX) }
        });
        Loaded { place, leader_epoch, groups, next }
    }
}

/// What became of a fetch.
enum Read {
    Answer {
        reply: Reply,
        /// The answer to be given behind it.
        then: Option<Fetch>,
    },
    /// Too little, or the log was cut meanwhile.
    Again(Fetch),
    Unreadable {
        reply: Reply,
        place: Place,
        error: LogError,
    },
}

impl Reading {
    /// `room` is what one message holds.
    fn carry_out(self, clock: Clock, room: usize) -> Read {
        let Self { plan, mut head, mut fetch, id, limit } = self;
        let fetched = match plan.read() {
            Ok(fetched) => fetched,
            Err(LogError::Changed { .. }) => return Read::Again(fetch),
            Err(error) => {
                let reply = Reply::error(fetch.reply, &answer::log_error(&error));
                return Read::Unreadable { reply, place: fetch.place, error };
            }
        };
        let is_all = fetched.next_offset >= head.high_watermark;
        let now = clock.monotonic();
        if fetched.batches.len() < fetch.min_bytes && is_all && now < fetch.until {
            fetch.beyond = head.high_watermark;
            return Read::Again(fetch);
        }
        head.next_offset = fetched.next_offset;
        match fetch.format {
            Format::Batch => {
                let then = fetch.following(&mut head, now);
                Read::Answer { reply: Reply::batches(fetch.reply, &head, fetched.batches), then }
            }
            Format::Json => {
                let json = answer::records(&id, head, &fetched.batches, fetch.offset, room, limit);
                let reply = match json {
                    Ok(json) => Reply { to: fetch.reply, headers: HeaderMap::new(), payload: json.into() },
                    Err(error) => Reply::error(fetch.reply, &error),
                };
                Read::Answer { reply, then: None }
            }
        }
    }
}

/// What the tasks share.
#[derive(Clone)]
pub(super) struct Hub {
    client: Client,
    subjects: watch::Receiver<Arc<dyn Subjects>>,
    commands: mpsc::WeakSender<Command>,
    replies: mpsc::Sender<Reply>,
    budget: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    lease: Lease,
    runtime: Handle,
    clock: Clock,
    vitals: Vitals,
}

impl Hub {
    pub(super) fn new(
        client: Client,
        subjects: watch::Receiver<Arc<dyn Subjects>>,
        commands: mpsc::WeakSender<Command>,
        runtime: Handle,
        clock: Clock,
        lease: Lease,
        vitals: Vitals,
    ) -> Self {
        let (replies, outgoing) = mpsc::channel(REPLIES);
        runtime.spawn(publish(client.clone(), outgoing));
        let budget = Arc::new(Semaphore::new(BUDGET_KIB));
        let reads = Arc::new(Semaphore::new(READS));
        Self { client, subjects, commands, replies, budget, reads, lease, runtime, clock, vitals }
    }

    pub(super) fn max_payload(&self) -> usize {
        crate::process::message_room(self.client.max_payload())
    }

    /// Waits where too many answers wait already.
    pub(super) async fn reply(&self, reply: Reply) {
        // The other end is there as long as the runtime.
        let _ = self.replies.send(reply).await;
    }

    /// Reads what a fetch asks for, and answers it.
    pub(super) fn read(&self, reading: Reading) {
        let hub = self.clone();
        self.runtime.spawn(async move {
            let Ok(_permit) = Arc::clone(&hub.reads).acquire_owned().await else { return };
            let (clock, room) = (hub.clock, hub.max_payload());
            match tokio::task::spawn_blocking(move || reading.carry_out(clock, room)).await {
                Ok(Read::Answer { reply, then }) if hub.lease.holds(hub.clock) => {
                    hub.reply(reply).await;
                    // It is read while NATS carries the one before.
                    if let Some(fetch) = then {
                        hub.command(Command::Fetch(fetch)).await;
                    }
                }
                Ok(Read::Again(fetch)) => hub.command(Command::Fetch(fetch)).await,
                Ok(Read::Unreadable { reply, place, error }) => {
                    hub.command(Command::Unreadable { place, error }).await;
                    if hub.lease.holds(hub.clock) {
                        hub.reply(reply).await;
                    }
                }
                Ok(Read::Answer { .. }) | Err(_) => {}
            }
        });
    }

    /// Looks for a time, and answers.
    pub(super) fn find(&self, finding: Finding) {
        let (hub, place) = (self.clone(), finding.place);
        self.runtime.spawn(async move {
            let Ok(_permit) = Arc::clone(&hub.reads).acquire_owned().await else { return };
            match tokio::task::spawn_blocking(move || finding.carry_out()).await {
                Ok(Ok((reply, error))) => {
                    if let Some(error) = error {
                        hub.command(Command::Unreadable { place, error }).await;
                    }
                    if hub.lease.holds(hub.clock) {
                        hub.reply(reply).await;
                    }
                }
                Ok(Err(again)) => hub.command(*again).await,
                Err(_) => {}
            }
        });
    }

    /// Reads a piece of the groups' offsets, and gives it back as a command.
    pub(super) fn load(&self, loading: Loading) {
        let hub = self.clone();
        self.runtime.spawn(async move {
            if let Ok(loaded) = tokio::task::spawn_blocking(move || loading.carry_out()).await {
                hub.command(Command::Loaded(loaded)).await;
            }
        });
    }

    /// Polls another node, and gives its answer back as a command.
    pub(super) fn poll(&self, call: Call, to: StorageId, message: bytes::Bytes, timeout: Duration) {
        let hub = self.clone();
        let subject = self.subjects.borrow().replica(to);
        self.runtime.spawn(async move {
            let answer = raw::request_with_deadline(&hub.client, &subject, None, message, timeout).await;
            let result = answer.map(|message| message.payload).map_err(|error| match error {
                BusError::NoResponders { .. } => CallError::NoResponders,
                error => {
                    tracing::debug!(subject, %error, "a leader did not answer");
                    CallError::Timeout
                }
            });
            hub.command(Command::PollAnswer { call, result }).await;
        });
    }

    /// Listens to this node's followers, until it is aborted.
    pub(super) fn listen_to_followers(&self, me: StorageId) -> AbortHandle {
        let (hub, subject) = (self.clone(), self.subjects.borrow().replica(me));
        let task = self.runtime.spawn(async move {
            let Some(mut polls) = hub.subscribe(&subject).await else { return };
            while let Some(Message { payload, reply, .. }) = polls.next().await {
                let Some(reply) = reply else {
                    hub.refuse(Whose::Followers, 1, || "a poll that names no place for its answer".into());
                    continue;
                };
                // Read here and in the engine, so that nothing is kept of whoever will get no answer.
                match ReplicaFetch::decode(&payload) {
                    Ok(_) => hub.command(Command::Poll { payload, reply }).await,
                    // Whoever sends that is no follower that keeps to this protocol, and has nothing to wait for.
                    Err(error) => hub.refuse(Whose::Followers, 1, || format!("a poll: {error}")),
                }
            }
        });
        task.abort_handle()
    }

    /// Listens to the clients of a partition that this node leads, until it is aborted, and tells them so.
    pub(super) fn listen_to_clients(&self, place: Place, id: &TopicPartition, leads: Option<Leads>) -> AbortHandle {
        let (hub, subjects) = (self.clone(), self.subjects.borrow());
        let subject = subjects.partition(&id.topic, id.partition);
        let told_on = subjects.data(op::LEADS, &id.topic, id.partition);
        let task = self.runtime.spawn(async move {
            let Some(mut messages) = hub.subscribe(&subject).await else { return };
            // Behind the subscription on this connection, so whoever hears it and asks again is heard.
            if let Some(leads) = leads {
                hub.tell(&told_on, &leads).await;
            }
            while let Some(message) = messages.next().await {
                hub.take(place, message).await;
            }
        });
        task.abort_handle()
    }

    /// Tells the clients of partitions that this node leads them, and is heard there.
    pub(super) fn tell_leads(&self, led: Vec<(TopicPartition, Leads)>) {
        let hub = self.clone();
        self.runtime.spawn(async move {
            for (id, leads) in led {
                let subject = hub.subjects.borrow().data(op::LEADS, &id.topic, id.partition);
                hub.tell(&subject, &leads).await;
            }
        });
    }

    async fn tell(&self, subject: &str, leads: &Leads) {
        if !self.lease.holds(self.clock) {
            return;
        }
        let payload = admin::encode(leads).into();
        if let Err(error) = raw::publish(&self.client, subject, HeaderMap::new(), payload, PUBLISH_TIMEOUT).await {
            tracing::debug!(subject, %error, "who waits for a leader was not told");
        }
    }

    async fn take(&self, place: Place, message: Message) {
        let request = {
            let subjects = self.subjects.borrow();
            let Some((op, _, _)) = subjects.read_data(&message.subject) else { return };
            if op == op::LEADS && message.reply.is_none() {
                // This node's own, or that of the next leader, whom nobody here can vouch for.
                if let Err(error) = admin::decode::<Leads>(&message.payload) {
                    self.refuse(Whose::Clients(place), 1, || format!("{}: {error}", message.subject));
                }
                return;
            }
            Request::read(op, &message, self.clock.wall())
        };
        let (reply, size) = (message.reply, message.length);
        match request {
            Ok(request) => {
                let permits = size.div_ceil(1024).min(BUDGET_KIB) as u32;
                let permit = Arc::clone(&self.budget).acquire_many_owned(permits).await.ok();
                self.command(Command::Data { place, request, reply, _permit: permit }).await;
            }
            Err(error) => {
                self.refuse(Whose::Clients(place), 1, || format!("{}: {error}", message.subject));
                if let Some(reply) = reply {
                    self.reply(Reply::error(reply, &error)).await;
                }
            }
        }
    }

    /// Counts what nobody sends who keeps to the protocol.
    pub(super) fn refuse(&self, whose: Whose, count: u64, why: impl FnOnce() -> String) {
        self.vitals.refuse(self.clock.monotonic(), whose, count, why);
    }

    async fn command(&self, command: Command) {
        // Where the node ends, nobody is left to take it.
        if let Some(commands) = self.commands.upgrade() {
            let _ = commands.send(command).await;
        }
    }

    /// None where NATS takes no such subject.
    async fn subscribe(&self, subject: &str) -> Option<Subscriber> {
        loop {
            match self.client.subscribe(Subject::from(subject)).await {
                Ok(subscriber) => return Some(subscriber),
                Err(error) => {
                    tracing::warn!(subject, %error, "cannot subscribe yet");
                    tokio::time::sleep(SUBSCRIBE_RETRY).await;
                }
            }
        }
    }
}

async fn publish(client: Client, mut outgoing: mpsc::Receiver<Reply>) {
    while let Some(Reply { to, headers, payload }) = outgoing.recv().await {
        if let Err(error) = raw::publish(&client, &to, headers, payload, PUBLISH_TIMEOUT).await {
            tracing::debug!(subject = %to, %error, "an answer was not sent");
        }
    }
}
