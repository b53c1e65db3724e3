//! One partition's task: finds out where to begin, then fetches, one request after the other, ahead of what is read. What goes wrong
//! it mends where it can, by the consumer's settings, and else says so.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, Subscriber};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use super::chunk;
use super::config::{AutoOffsetReset, ConsumeError, ConsumerConfig, SeekTo};
use super::news::News;
use crate::bus::{BusError, raw};
use crate::client::{Admin, DataError, Leaders, leaders};
use crate::config::Services;
use crate::config::services::DataTarget;
use crate::log::TopicPartition;
use crate::types::{LeaderEpoch, Offset, TopicId};
use crate::wire::Code;
use crate::wire::data::{DataFetch, FORMAT_BATCH, FetchedHead, OffsetsRequest, PartitionOffsets, header, op};

const FIRST_BACKOFF: Duration = Duration::from_millis(5);
const LONGEST_BACKOFF: Duration = Duration::from_millis(250);
/// How long an answer may be late before it is asked for again.
const GRACE: Duration = Duration::from_millis(500);
/// After how long a range that its leader finds damaged is not waited for any more.
const HEALS_WITHIN: Duration = Duration::from_secs(10);
/// After how long without a leader it is looked whether the topic is still there.
const LOOK_AT_TOPIC: Duration = Duration::from_secs(1);

/// What the tasks of a consumer share.
pub(super) struct Shared {
    pub client: Client,
    pub services: Services,
    pub config: ConsumerConfig,
    pub leaders: Leaders,
    pub admin: Admin,
    /// Bytes that may be fetched ahead.
    pub budget: Arc<Semaphore>,
}

/// What a task says.
pub(super) struct Report {
    pub partition: Arc<TopicPartition>,
    /// Of the task; what an earlier one said no longer counts.
    pub generation: u64,
    pub event: Event,
}

pub(super) enum Event {
    /// Reading begins here.
    Begins {
        offset: Offset,
        topic_id: TopicId,
    },
    Fetched(Fetched),
    Failed(ConsumeError),
}

pub(super) struct Fetched {
    pub batches: Bytes,
    /// What was asked for.
    pub from: Offset,
    pub head: FetchedHead,
    /// The part of the budget, until it is read.
    pub permit: OwnedSemaphorePermit,
}

pub(super) struct Fetcher {
    pub shared: Arc<Shared>,
    pub partition: Arc<TopicPartition>,
    pub generation: u64,
    pub reports: mpsc::Sender<Report>,
    /// How many bytes one answer may have.
    pub bytes: u32,
    /// How many answers one fetch may ask for.
    pub answers: usize,
}

/// What is known of the last record that was read before, where an offset was committed.
#[derive(Clone, Copy, Default)]
pub(super) struct Before {
    pub epoch: Option<LeaderEpoch>,
    pub topic_id: Option<TopicId>,
}

/// Where a partition is read.
struct Place {
    offset: Offset,
    /// The leader's, as far as it is known.
    epoch: LeaderEpoch,
    /// Of the last record before.
    last: Option<LeaderEpoch>,
    topic_id: TopicId,
    high_watermark: Option<Offset>,
}

impl Place {
    /// Whether there is more to read than was read, as far as it is known.
    fn is_behind(&self) -> bool {
        self.high_watermark.is_some_and(|end| self.offset < end)
    }
}

/// What comes back of one fetch.
enum Answers {
    One(Option<Message>),
    Many(Subscriber),
}

impl Answers {
    async fn next(&mut self, subject: &str, until: Instant) -> Result<Message, BusError> {
        match self {
            Self::One(answer) => answer.take().ok_or(BusError::Timeout),
            Self::Many(answers) => raw::next_answer(answers, subject, until).await,
        }
    }
}

/// The consumer is gone, or the partition can be read no further.
struct Over;

/// How attempts that came to nothing follow each other.
struct Trouble {
    since: Option<Instant>,
    told: Option<Instant>,
    looked: Option<Instant>,
    backoff: Duration,
    /// How long an answer may be late.
    grace: Duration,
    /// The last answer was damaged.
    was_corrupt: bool,
    /// Cuts short what is waited for.
    news: News,
}

impl Trouble {
    fn new(news: News) -> Self {
        let (since, told, looked) = (None, None, None);
        Self { since, told, looked, backoff: FIRST_BACKOFF, grace: GRACE, was_corrupt: false, news }
    }

    fn clear(&mut self) {
        (self.since, self.told, self.looked, self.was_corrupt) = (None, None, None, false);
        (self.backoff, self.grace) = (FIRST_BACKOFF, GRACE);
        self.news.clear();
    }

    /// Somebody else may lead from now on: what was asked is asked again.
    fn led_anew(&mut self) {
        self.since.get_or_insert_with(Instant::now);
        self.backoff = FIRST_BACKOFF;
    }
}

impl Fetcher {
    pub async fn run(self, start: SeekTo, before: Before) {
        let mut trouble = Trouble::new(News::subscribe(&self.shared, &self.partition).await);
        let Ok(mut place) = self.begin(start, before, &mut trouble).await else { return };
        if self.report_begin(&place).await.is_err() {
            return;
        }
        trouble.clear();
        loop {
            let Ok(room) = self.room(&place, &trouble).await else { return };
            if self.fetch(&mut place, room, &mut trouble).await.is_err() {
                return;
            }
        }
    }

    /// Room for an answer. Where there is much to read, answers come, and nobody else needs the room, for some more, so that one is
    /// read and carried while another one is taken.
    async fn room(&self, place: &Place, trouble: &Trouble) -> Result<Vec<OwnedSemaphorePermit>, Over> {
        let budget = || Arc::clone(&self.shared.budget);
        let mut room = vec![budget().acquire_many_owned(self.bytes).await.map_err(|_| Over)?];
        while place.is_behind()
            && trouble.since.is_none()
            && room.len() < self.answers
            && let Ok(more) = budget().try_acquire_many_owned(self.bytes)
        {
            room.push(more);
        }
        Ok(room)
    }

    /// Fetches once, and takes as many answers as there is room for.
    async fn fetch(
        &self,
        place: &mut Place,
        mut room: Vec<OwnedSemaphorePermit>,
        trouble: &mut Trouble,
    ) -> Result<(), Over> {
        let subject = self.shared.services.data_subject(
            op::FETCH,
            DataTarget::Partition(self.partition.partition),
            &self.partition.topic,
        );
        let timeout = self.shared.config.fetch_max_wait + trouble.grace;
        let mut until = Instant::now() + timeout;
        trouble.news.forget();
        let asking = self.ask(place, &subject, room.len() as u32, timeout);
        let Some(answers) = trouble.news.or(asking).await else {
            trouble.led_anew();
            return Ok(());
        };
        let mut answers = match answers {
            Ok(answers) => answers,
            Err(error) => return self.unanswered(place, room, error, trouble).await,
        };
        while let Some(permit) = room.pop() {
            let Some(answer) = trouble.news.or(answers.next(&subject, until)).await else {
                trouble.led_anew();
                return Ok(());
            };
            let answer = answer.map_err(|error| DataError::of_bus(error, &subject, timeout));
            let (head, batches) = match answer.and_then(|message| read(message, &subject)) {
                Ok(answer) => answer,
                Err(error) => {
                    drop((answers, permit));
                    return self.unanswered(place, room, error, trouble).await;
                }
            };
            // Of a leader that did not know yet that its time was over.
            if head.offset < place.offset || head.leader_epoch < place.epoch {
                room.push(permit);
                continue;
            }
            // The one before was lost: those behind it are of no use.
            if head.offset > place.offset {
                return Ok(());
            }
            match chunk::verify(&batches) {
                Ok(epoch) => {
                    trouble.clear();
                    let more = head.more;
                    self.take(place, head, batches, epoch, permit).await?;
                    if !more {
                        return Ok(());
                    }
                    until = Instant::now() + timeout;
                }
                // Once more, in case that it was the way here.
                Err(_) if !trouble.was_corrupt => {
                    trouble.was_corrupt = true;
                    return Ok(());
                }
                Err(error) => {
                    let (partition, detail) = ((*self.partition).clone(), error.to_string());
                    return self.fail(ConsumeError::Corrupt { partition, offset: place.offset, detail }).await;
                }
            }
        }
        Ok(())
    }

    async fn ask(&self, place: &Place, subject: &str, answers: u32, timeout: Duration) -> Result<Answers, DataError> {
        let Shared { client, config, .. } = &*self.shared;
        let request = DataFetch {
            offset: Some(place.offset),
            max_bytes: Some(self.bytes),
            min_bytes: Some(config.fetch_min_bytes),
            max_wait_ms: Some(u32::try_from(config.fetch_max_wait.as_millis()).unwrap_or(u32::MAX)),
            leader_epoch: Some(place.epoch),
            topic_id: Some(place.topic_id),
            answers: (answers > 1).then_some(answers),
        };
        let payload: Bytes = serde_json::to_vec(&request).expect("requests have string keys only").into();
        let mut headers = HeaderMap::new();
        headers.insert(header::FORMAT, FORMAT_BATCH);
        // What has one answer needs no subscription of its own.
        let asked = if answers > 1 {
            raw::request_many(client, subject, headers, payload, timeout).await.map(Answers::Many)
        } else {
            let answer = raw::request_with_deadline(client, subject, Some(headers), payload, timeout).await;
            answer.map(|answer| Answers::One(Some(answer)))
        };
        asked.map_err(|error| DataError::of_bus(error, subject, timeout))
    }

    async fn unanswered(
        &self,
        place: &mut Place,
        room: Vec<OwnedSemaphorePermit>,
        error: DataError,
        trouble: &mut Trouble,
    ) -> Result<(), Over> {
        // Others may need it meanwhile.
        drop(room);
        if let DataError::NoAnswer { .. } = error {
            trouble.grace = (trouble.grace * 2).min(self.shared.config.request_timeout);
        }
        self.mend(place, error, trouble).await
    }

    async fn report(&self, event: Event) -> Result<(), Over> {
        let report = Report { partition: Arc::clone(&self.partition), generation: self.generation, event };
        self.reports.send(report).await.map_err(|_| Over)
    }

    async fn report_begin(&self, place: &Place) -> Result<(), Over> {
        self.report(Event::Begins { offset: place.offset, topic_id: place.topic_id }).await
    }

    async fn fail(&self, error: ConsumeError) -> Result<(), Over> {
        self.report(Event::Failed(error)).await?;
        Err(Over)
    }

    /// Asks the leader where the log stands, until it answers, and where to begin.
    async fn begin(&self, start: SeekTo, before: Before, trouble: &mut Trouble) -> Result<Place, Over> {
        let timestamp = match start {
            SeekTo::Timestamp(timestamp) => Some(timestamp),
            SeekTo::Offset(_) | SeekTo::Beginning | SeekTo::End => None,
        };
        let request = OffsetsRequest { timestamp, leader_epoch: before.epoch, ..OffsetsRequest::default() };
        let stands = self.stands(&request, trouble).await?;
        let (log_start, end) = (stands.log_start_offset, stands.high_watermark);
        let offset = match start {
            SeekTo::Offset(offset) => offset,
            SeekTo::Beginning => log_start,
            SeekTo::End => end,
            SeekTo::Timestamp(_) => stands.found.map_or(end, |found| found.offset),
        };
        let (epoch, topic_id) = (stands.leader_epoch, stands.topic_id);
        let mut place = Place { offset, epoch, last: before.epoch, topic_id, high_watermark: None };
        if before.topic_id.is_some_and(|known| known != topic_id) {
            // Another topic has the name now: nothing of it was read.
            match self.shared.config.auto_offset_reset {
                AutoOffsetReset::Error => self.fail(ConsumeError::NoOffset((*self.partition).clone())).await?,
                AutoOffsetReset::Earliest | AutoOffsetReset::Latest => {
                    self.begin_elsewhere(&mut place, &stands).await?
                }
            }
            return Ok(place);
        }
        // What was read before may have been cut off since.
        if let Some(found) = stands.found.filter(|found| before.epoch.is_some() && found.offset < offset) {
            self.cut(&mut place, found.offset).await?;
        } else if !(log_start..=stands.log_end_offset.max(end)).contains(&offset) {
            self.begin_elsewhere(&mut place, &stands).await?;
        }
        Ok(place)
    }

    async fn stands(&self, request: &OffsetsRequest, trouble: &mut Trouble) -> Result<PartitionOffsets, Over> {
        let TopicPartition { topic, partition } = &*self.partition;
        // Trouble has its own pace.
        let leaders = self.shared.leaders.clone().within(GRACE);
        loop {
            trouble.news.forget();
            match trouble.news.or(leaders.find_offset(topic, *partition, request)).await {
                Some(Ok(stands)) => return Ok(stands),
                Some(Err(error)) => self.wait(error, trouble).await?,
                None => trouble.led_anew(),
            }
        }
    }

    async fn take(
        &self,
        place: &mut Place,
        head: FetchedHead,
        batches: Bytes,
        last: Option<LeaderEpoch>,
        mut permit: OwnedSemaphorePermit,
    ) -> Result<(), Over> {
        let from = place.offset;
        place.epoch = head.leader_epoch;
        place.last = last.or(place.last);
        place.offset = head.next_offset.max(from);
        let is_news = place.high_watermark != Some(head.high_watermark) || place.offset > from;
        place.high_watermark = Some(head.high_watermark);
        if !is_news {
            return Ok(());
        }
        let unused = permit.num_permits().saturating_sub(batches.len());
        drop(permit.split(unused));
        self.report(Event::Fetched(Fetched { batches, from, head, permit })).await
    }

    async fn mend(&self, place: &mut Place, error: DataError, trouble: &mut Trouble) -> Result<(), Over> {
        match error.code() {
            Some(Code::OffsetOutOfRange) => {
                let stands = self.stands(&OffsetsRequest::default(), trouble).await?;
                self.reset(place, &stands, error, trouble).await
            }
            Some(Code::FencedLeaderEpoch) => {
                let request = OffsetsRequest { leader_epoch: place.last, ..OffsetsRequest::default() };
                let stands = self.stands(&request, trouble).await?;
                place.epoch = stands.leader_epoch;
                // Whoever leads now may lack what was read before.
                match stands.found.filter(|_| place.last.is_some()) {
                    Some(found) if found.offset < place.offset => self.cut(place, found.offset).await,
                    Some(_) | None => Ok(()),
                }
            }
            _ => self.wait(error, trouble).await,
        }
    }

    /// Goes on where the settings say, where the log has no such offset.
    async fn reset(
        &self,
        place: &mut Place,
        stands: &PartitionOffsets,
        error: DataError,
        trouble: &mut Trouble,
    ) -> Result<(), Over> {
        let (log_start, end) = (stands.log_start_offset, stands.high_watermark);
        // It may lead no more, or not know yet how far it may show its log.
        if (log_start..=stands.log_end_offset.max(end)).contains(&place.offset) {
            return self.pause(error, trouble).await;
        }
        self.begin_elsewhere(place, stands).await
    }

    /// Where the settings say, since the log has no such offset.
    async fn begin_elsewhere(&self, place: &mut Place, stands: &PartitionOffsets) -> Result<(), Over> {
        let (log_start, end) = (stands.log_start_offset, stands.high_watermark);
        let to = match self.shared.config.auto_offset_reset {
            AutoOffsetReset::Earliest => log_start,
            AutoOffsetReset::Latest => end,
            AutoOffsetReset::Error => {
                let (partition, offset) = ((*self.partition).clone(), place.offset);
                return self.fail(ConsumeError::OutOfRange { partition, offset, log_start, end }).await;
            }
        };
        tracing::warn!(partition = %self.partition, offset = %place.offset, %to, "the log has no such offset");
        (place.offset, place.epoch, place.last) = (to, stands.leader_epoch, None);
        place.high_watermark = None;
        self.report_begin(place).await
    }

    async fn cut(&self, place: &mut Place, end: Offset) -> Result<(), Over> {
        let offset = place.offset;
        if self.shared.config.auto_offset_reset == AutoOffsetReset::Error {
            let partition = (*self.partition).clone();
            return self.fail(ConsumeError::Truncated { partition, offset, end }).await;
        }
        tracing::warn!(partition = %self.partition, %offset, %end, "the log was cut off");
        (place.offset, place.last, place.high_watermark) = (end, None, None);
        self.report_begin(place).await
    }

    /// Waits before the next attempt. An error that cannot pass ends it.
    async fn wait(&self, error: DataError, trouble: &mut Trouble) -> Result<(), Over> {
        // A leader that finds its log damaged makes room for another one, where there is one.
        let lasts = trouble.since.map_or(Duration::ZERO, |since| since.elapsed());
        let heals = error.code() == Some(Code::CorruptMessage) && lasts < HEALS_WITHIN;
        if heals || error.may_pass() {
            return self.pause(error, trouble).await;
        }
        self.fail(ConsumeError::Refused { partition: (*self.partition).clone(), error }).await
    }

    /// Waits before the next attempt, and says so where it has lasted for long.
    async fn pause(&self, error: DataError, trouble: &mut Trouble) -> Result<(), Over> {
        let now = Instant::now();
        let since = *trouble.since.get_or_insert(now);
        if matches!(error, DataError::NoLeader { .. })
            && now.duration_since(trouble.looked.unwrap_or(since)) >= LOOK_AT_TOPIC
        {
            trouble.looked = Some(now);
            self.look_at_topic().await?;
        }
        let after = self.shared.config.api_timeout;
        if now.duration_since(trouble.told.unwrap_or(since)) >= after {
            trouble.told = Some(now);
            let partition = (*self.partition).clone();
            self.report(Event::Failed(ConsumeError::NoAnswer { partition, after, error })).await?;
        }
        let backoff = trouble.backoff.mul_f64(rand::random_range(0.5..=1.0));
        trouble.backoff = (trouble.backoff * 2).min(LONGEST_BACKOFF);
        if trouble.news.or(tokio::time::sleep(backoff)).await.is_none() {
            trouble.led_anew();
        }
        Ok(())
    }

    /// Ends it where the controllers know no such partition.
    async fn look_at_topic(&self) -> Result<(), Over> {
        let TopicPartition { topic, partition } = &*self.partition;
        let described = self.shared.admin.clone().within(LOOK_AT_TOPIC).describe_topic(topic.as_str()).await;
        let error = match described {
            Ok(described) if described.partitions.len() as u32 > *partition => return Ok(()),
            Ok(described) => {
                let count = described.partitions.len();
                let words = format!("topic {topic} has {count} partitions");
                crate::wire::WireError::new(Code::UnknownTopicOrPartition, words).into()
            }
            Err(error) if error.code() == Some(Code::UnknownTopicOrPartition) => error,
            // Nobody to ask: it stays open.
            Err(_) => return Ok(()),
        };
        self.fail(ConsumeError::Topic { topic: topic.clone(), error }).await
    }
}

/// What an answer says, and its batches.
pub(super) fn read(message: Message, subject: &str) -> Result<(FetchedHead, Bytes), DataError> {
    if let Some(error) = leaders::refusal(&message) {
        return Err(error);
    }
    let unreadable = |detail: String| DataError::Unreadable { subject: subject.into(), detail };
    let head = message.headers.as_ref().and_then(|headers| headers.get(header::HEAD));
    let head = head.ok_or_else(|| unreadable(format!("it has no header {}", header::HEAD)))?;
    let head = serde_json::from_str(head.as_str()).map_err(|error| unreadable(error.to_string()))?;
    Ok((head, message.payload))
}
