//! Clients' requests to partitions that this node leads. Whoever does not lead says nothing.

use std::time::Duration;

use async_nats::Subject;
use bytes::Bytes;

use super::answer::{self, Reply};
use super::faults::Whose;
use super::fetches::Fetch;
use super::log::Failure;
use super::request::{Format, Request};
use super::serve::{Finding, Reading};
use super::worker::Worker;
use crate::log::{Log, LogError, ReadPlan, TopicPartition};
use crate::storage::core::{Place, Token};
use crate::storage::replicas::{self, Append, AppendError, Input, Led};
use crate::types::{LeaderEpoch, Monotonic, Offset, TopicId};
use crate::wire::data::{
    Acks, Commit, DataFetch, DeleteRecords, FORMAT_BATCH, FetchedHead, FoundOffset, MAX_ANSWERS, OFFSETS_TOPIC,
    OffsetsRequest, PartitionOffsets, Produced, header,
};
use crate::wire::{Code, WireError};

/// Kafka's `LATEST_TIMESTAMP` and `EARLIEST_TIMESTAMP`: no times, but the ends of what can be read.
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
/// Kafka's `DeleteRecordsRequest.HIGH_WATERMARK`, in place of an offset.
const HIGH_WATERMARK: i64 = -1;
/// The longest long poll.
const FETCH_MAX_WAIT: Duration = Duration::from_secs(30);
/// How long a commit is kept in mind whose answer came too late: until the leader changes.
const UNANSWERED_COMMIT: Duration = Duration::from_secs(24 * 3_600);
/// How often it is looked whose time is over.
const TIMEOUT_CHECK: Duration = Duration::from_millis(100);

/// A client that waits for its records to be as safe as it asked for.
pub(super) struct Pending {
    pub(super) place: Place,
    pub(super) reply: Option<Subject>,
    pub(super) until: Monotonic,
    pub(super) answer: Answer,
}

/// What it is told then.
pub(super) enum Answer {
    Produced,
    Committed(Commit),
}

impl Worker {
    pub(super) async fn request(&mut self, now: Monotonic, place: Place, request: Request, reply: Option<Subject>) {
        let Some(led) = self.led(place) else { return };
        match request {
            Request::Produce { batch, acks, timeout, topic_id } => {
                match self.check_topic(place, topic_id).and_then(|()| self.check_internal(place)) {
                    Ok(()) => self.produce(now, place, batch, acks, timeout, reply),
                    Err(error) => self.refuse(reply, &error).await,
                }
            }
            Request::Fetch { fetch, format } => {
                let Some(reply) = reply else { return };
                match self.read_fetch(now, place, led, fetch, format, reply.clone()) {
                    Ok(fetch) => self.fetch(now, fetch).await,
                    Err(error) => self.hub.reply(Reply::error(reply, &error)).await,
                }
            }
            Request::Commit(commit) => self.commit(now, place, commit, reply).await,
            Request::Committed(request) => self.tell_committed(place, request, reply).await,
            Request::Offsets(request) => {
                let Some(reply) = reply else { return };
                self.offsets(place, led, request, reply).await;
            }
            Request::Delete(request) => {
                let answer = self.delete(place, led, &request);
                let Some(reply) = reply else { return };
                self.hub.reply(Reply::of(reply, answer)).await;
            }
        }
    }

    /// What the coordinator keeps in memory is only what it wrote itself.
    fn check_internal(&self, place: Place) -> Result<(), WireError> {
        if self.is_of_offsets(place) {
            let words = format!("{OFFSETS_TOPIC} is written by commits alone");
            return Err(WireError::new(Code::InvalidTopicException, words));
        }
        Ok(())
    }

    pub(super) async fn refuse(&self, reply: Option<Subject>, error: &WireError) {
        if let Some(reply) = reply {
            self.hub.reply(Reply::error(reply, error)).await;
        }
    }

    fn check_topic(&self, place: Place, wanted: Option<TopicId>) -> Result<(), WireError> {
        match wanted {
            Some(wanted) if wanted != place.0 => {
                let words = format!("topic {wanted} was deleted; {} has its name now", place.0);
                Err(WireError::new(Code::UnknownTopicId, words))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn produce(
        &mut self,
        now: Monotonic,
        place: Place,
        batch: Bytes,
        acks: Acks,
        timeout: Duration,
        reply: Option<Subject>,
    ) {
        let token = self.token();
        let acks = match acks {
            Acks::None => None,
            Acks::Leader => Some(replicas::Acks::Leader),
            Acks::All => Some(replicas::Acks::All),
        };
        if acks.is_some() {
            self.pending.insert(token, Pending { place, reply, until: now + timeout, answer: Answer::Produced });
        }
        let append = Append { place, batch, acks, token, now: self.clock.wall() };
        self.give(now, Input::Append(append));
    }

    pub(super) async fn acknowledge(&mut self, token: Token, result: Result<Offset, AppendError<Failure>>) {
        let Some(Pending { place, reply, answer, .. }) = self.pending.remove(&token) else { return };
        let offset = match (result, answer) {
            (Ok(offset), Answer::Produced) => offset,
            (Ok(_), Answer::Committed(commit)) => {
                let committed = self.committed(place, commit);
                if let Some(reply) = reply.filter(|_| self.led(place).is_some()) {
                    self.hub.reply(Reply::json(reply, &committed)).await;
                }
                return;
            }
            (Err(error), Answer::Produced | Answer::Committed(_)) => {
                self.not_appended(place, &error);
                if let Some(error) = answer::append_error(&error) {
                    self.refuse(reply, &error).await;
                }
                return;
            }
        };
        let (Some(reply), Some(id)) = (reply, self.id(place)) else { return };
        let led = self.led(place);
        let (Some(led), Some(log)) = (led, self.engine.log(place)) else { return };
        let answer = Produced {
            topic: id.topic.to_string(),
            partition: id.partition,
            offset,
            leader_epoch: led.leader_epoch,
            log_start_offset: log.log.start(),
        };
        self.hub.reply(Reply::json(reply, &answer)).await;
    }

    /// Whether or not anybody waits for it: a disk that fails, and a client that sends what is none, are seen to.
    pub(super) fn not_appended(&mut self, place: Place, error: &AppendError<Failure>) {
        let AppendError::Log(failure) = error else { return };
        match failure.error() {
            error if error.is_disk() => self.failed(place, failure),
            LogError::Corrupt { .. } | LogError::InvalidBatch { .. } => {
                self.hub.refuse(Whose::Clients(place), 1, || failure.to_string());
            }
            _ => {}
        }
    }

    pub(super) fn pending_deadline(&self) -> Option<Monotonic> {
        (!self.pending.is_empty()).then_some(self.timeout_check_at)
    }

    /// Tells those whose time is over. What they sent stays in the log, and may yet be committed.
    pub(super) async fn time_out(&mut self, now: Monotonic) {
        if now < self.timeout_check_at {
            return;
        }
        self.timeout_check_at = now + TIMEOUT_CHECK;
        let over: Vec<Token> =
            self.pending.iter().filter(|(_, waiting)| waiting.until <= now).map(|(token, _)| *token).collect();
        for token in over {
            let Some(waiting) = self.pending.get_mut(&token) else { continue };
            let (place, reply) = (waiting.place, waiting.reply.take());
            match waiting.answer {
                Answer::Produced => _ = self.pending.remove(&token),
                // It may count yet, and whoever asks is to hear of it then.
                Answer::Committed(_) => waiting.until = now + UNANSWERED_COMMIT,
            }
            if self.led(place).is_none() {
                continue;
            }
            let words = "the records were written, but not yet by every in-sync replica; they may or may not stay";
            self.refuse(reply, &WireError::new(Code::RequestTimedOut, words)).await;
        }
    }

    fn read_fetch(
        &self,
        now: Monotonic,
        place: Place,
        led: Led,
        fetch: DataFetch,
        format: Format,
        reply: Subject,
    ) -> Result<Fetch, WireError> {
        self.check_topic(place, fetch.topic_id)?;
        check_epoch(led.leader_epoch, fetch.leader_epoch)?;
        let answers = fetch.answers.unwrap_or(1);
        if !(1..=MAX_ANSWERS).contains(&answers) {
            let words = format!("answers is 1 to {MAX_ANSWERS}, not {answers}");
            return Err(WireError::new(Code::InvalidRequest, words));
        }
        if answers > 1 && format == Format::Json {
            let words = format!(
                "{answers} answers are of batches alone: ask for them with the header {}: {FORMAT_BATCH}, or for one as JSON",
                header::FORMAT
            );
            return Err(WireError::new(Code::InvalidRequest, words));
        }
        let start = self.engine.log(place).map_or(Offset::ZERO, |log| log.log.start());
        let room = self.hub.max_payload();
        let wait = Duration::from_millis(fetch.max_wait_ms.unwrap_or(0).into()).min(FETCH_MAX_WAIT);
        let max_bytes = fetch.max_bytes.map_or(room, |bytes| (bytes as usize).min(room));
        Ok(Fetch {
            place,
            offset: fetch.offset.unwrap_or(start),
            beyond: fetch.offset.unwrap_or(start),
            max_bytes,
            min_bytes: fetch.min_bytes.map_or(1, |bytes| (bytes as usize).min(max_bytes)),
            until: now + wait,
            begun: now,
            format,
            leader_epoch: fetch.leader_epoch,
            answers,
            reply,
        })
    }

    /// Answers a fetch, or lets it wait for more.
    pub(super) async fn fetch(&mut self, now: Monotonic, fetch: Fetch) {
        let place = fetch.place;
        let (Some(led), Some(id), Some(log)) =
            (self.led(place), self.id(place), self.engine.log(place).map(|log| &log.log))
        else {
            return;
        };
        let may_wait = now < fetch.until && !self.fetches.is_full();
        match plan(log, led, &fetch, may_wait) {
            Ok(None) => self.fetches.add(fetch),
            Ok(Some((plan, head))) => {
                let limit = log.config().max_decompressed_bytes;
                self.hub.read(Reading { plan, head, fetch, id: id.clone(), limit });
            }
            Err(error) => self.hub.reply(Reply::error(fetch.reply, &error)).await,
        }
    }

    /// Looks for a time aside, since that reads the disk.
    async fn offsets(&mut self, place: Place, led: Led, request: OffsetsRequest, reply: Subject) {
        let stands = match self.stands(place, led, &request) {
            Ok(stands) => stands,
            Err(error) => return self.hub.reply(Reply::error(reply, &error)).await,
        };
        match (request.timestamp, self.engine.log(place)) {
            (Some(timestamp), Some(log)) if timestamp >= 0 => {
                let plan = log.log.locate_time(timestamp);
                self.hub.find(Finding { plan, stands, place, request, reply });
            }
            (Some(_) | None, _) => self.hub.reply(Reply::json(reply, &stands)).await,
        }
    }

    fn stands(&self, place: Place, led: Led, request: &OffsetsRequest) -> Result<PartitionOffsets, WireError> {
        self.check_topic(place, request.topic_id)?;
        let (Some(id), Some(log)) = (self.id(place), self.engine.log(place)) else {
            return Err(WireError::new(Code::NotLeaderOrFollower, "the partition was given up just now"));
        };
        let visible = led.visible.ok_or_else(|| not_yet(id))?;
        let at = |offset| FoundOffset { offset, timestamp: None, leader_epoch: None };
        let found = match (request.timestamp, request.leader_epoch) {
            (Some(_), Some(_)) => {
                let words = "ask for a timestamp or for the end of a leader epoch, not for both";
                return Err(WireError::new(Code::InvalidRequest, words));
            }
            // Of an epoch that has not begun yet nothing is known.
            (None, Some(epoch)) if epoch > led.leader_epoch => None,
            (None, Some(epoch)) => {
                let end = log.log.end_of_epoch(epoch);
                end.map(|end| FoundOffset { leader_epoch: Some(end.epoch), ..at(end.end) })
            }
            (Some(LATEST), None) => Some(at(visible)),
            (Some(EARLIEST), None) => Some(at(log.log.start())),
            (Some(timestamp), None) if timestamp < 0 => {
                let words = format!(
                    "a timestamp is in milliseconds since 1970, or {LATEST} for the latest offset, {EARLIEST} for the \
                     earliest; not {timestamp}"
                );
                return Err(WireError::new(Code::InvalidRequest, words));
            }
            // Looked for on the disk.
            (Some(_), None) | (None, None) => None,
        };
        Ok(describe(place, id, &log.log, led.leader_epoch, visible, found))
    }

    fn delete(&mut self, place: Place, led: Led, request: &DeleteRecords) -> Result<PartitionOffsets, WireError> {
        self.check_topic(place, request.topic_id)?;
        let Some(id) = self.id(place).cloned() else {
            return Err(WireError::new(Code::NotLeaderOrFollower, "the partition was given up just now"));
        };
        self.check_internal(place)?;
        let visible = led.visible.ok_or_else(|| not_yet(&id))?;
        if self.engine.log(place).is_some_and(|log| !log.log.config().delete) {
            let words = format!("{id}: its cleanup.policy is compact, so records go by their keys: send tombstones");
            return Err(WireError::new(Code::PolicyViolation, words));
        }
        let before = match request.before {
            Offset(HIGH_WATERMARK) => visible,
            Offset(negative) if negative < 0 => {
                let words = format!(
                    "{id}: offset {negative} is in no log; {HIGH_WATERMARK} stands for the high watermark, which is {visible}"
                );
                return Err(WireError::new(Code::OffsetOutOfRange, words));
            }
            before => before,
        };
        if let Some(log) = self.engine.log_mut(place)
            && let Err(error) = log.log.delete_records(before, visible)
        {
            let told = answer::log_error(&error);
            if error.is_disk() {
                self.failed(place, &error.into());
            }
            return Err(told);
        }
        let logs = self.engine.held().map(|(_, log, _)| &log.log);
        self.directory.checkpoint(logs).map_err(|error| WireError::new(Code::KafkaStorageError, error.to_string()))?;
        let Some(log) = self.engine.log(place) else {
            return Err(WireError::new(Code::NotLeaderOrFollower, "the partition was given up just now"));
        };
        Ok(describe(place, &id, &log.log, led.leader_epoch, visible, None))
    }
}

/// What to read, and what to say beside it. None: the fetch is to wait.
fn plan(log: &Log, led: Led, fetch: &Fetch, may_wait: bool) -> Result<Option<(ReadPlan, FetchedHead)>, WireError> {
    check_epoch(led.leader_epoch, fetch.leader_epoch)?;
    let visible = match led.visible {
        Some(visible) => visible,
        None if may_wait => return Ok(None),
        None => return Err(not_yet(log.id())),
    };
    // What is not committed yet cannot be read, and is waited for.
    if fetch.offset > log.end() || fetch.offset < log.start() {
        let (id, offset, start) = (log.id(), fetch.offset, log.start());
        let words = format!("{id}: offset {offset} is not in the log, which can be read from {start} to {visible}");
        return Err(WireError::new(Code::OffsetOutOfRange, words));
    }
    if visible <= fetch.beyond && may_wait {
        return Ok(None);
    }
    let below = visible.max(fetch.offset);
    let plan = log.locate(fetch.offset, fetch.max_bytes, below).map_err(|error| answer::log_error(&error))?;
    let head = FetchedHead {
        offset: fetch.offset,
        high_watermark: visible,
        log_start_offset: log.start(),
        next_offset: fetch.offset,
        leader_epoch: led.leader_epoch,
        more: false,
    };
    Ok(Some((plan, head)))
}

fn check_epoch(present: LeaderEpoch, known: Option<LeaderEpoch>) -> Result<(), WireError> {
    match known {
        Some(known) if known > present => {
            let words = format!("leader epoch {known} is not known here yet, {present} is; ask again");
            Err(WireError::new(Code::UnknownLeaderEpoch, words))
        }
        Some(known) if known < present => {
            let words = format!("leader epoch {known} is over, {present} is the present one; check where it ended");
            Err(WireError::new(Code::FencedLeaderEpoch, words))
        }
        Some(_) | None => Ok(()),
    }
}

/// A new leader does not know yet what its predecessor showed.
fn not_yet(id: &TopicPartition) -> WireError {
    let words = format!("{id}: its new leader does not know yet what is committed; ask again");
    WireError::new(Code::NotEnoughReplicas, words)
}

fn describe(
    place: Place,
    id: &TopicPartition,
    log: &Log,
    leader_epoch: LeaderEpoch,
    visible: Offset,
    found: Option<FoundOffset>,
) -> PartitionOffsets {
    PartitionOffsets {
        topic: id.topic.to_string(),
        topic_id: place.0,
        partition: id.partition,
        leader_epoch,
        log_start_offset: log.start(),
        high_watermark: visible,
        log_end_offset: log.end(),
        size_bytes: log.size_bytes(),
        found,
    }
}
