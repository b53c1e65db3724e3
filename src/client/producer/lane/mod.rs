//! What is decided about one partition's batches: which is sent next, with which sequence, which again, and what became of each.
//!
//! Pure: instants, chance and fresh producer ids are passed in. A *copy* is one sending of a batch; copies are numbered in the
//! order in which they are sent. A copy is *open* while nobody knows whether it was stored.
//!
//! - Batches are sent in order, at most `max_in_flight` from the oldest unsettled one on: a leader remembers only the last five of
//!   a producer. Until the first batch of a producer id is acknowledged there is only one, for a leader that does not know the
//!   id takes any sequence.
//! - Whatever has to be sent again is, in order and under its old sequence: a leader stores it once.
//! - A leader that lacks a batch refuses those behind it as out of order. One connection's messages keep their order, so what
//!   was sent before the refused copy is lost, and is sent again at once.
//! - A batch that is given up leaves a gap. The batches behind it get a new producer id, as soon as none of them has an open copy:
//!   a batch under two ids could be stored twice.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::log::batch::ProducerStamp;

/// How a lane paces itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Batches from the oldest unsettled one on.
    pub max_in_flight: usize,
    /// Whether a batch that is sent twice is stored once.
    pub is_idempotent: bool,
    /// For how long an answer is waited for before all that is unanswered is sent again: at first, until answers show how long
    /// they take, and at most.
    pub first_patience: Duration,
    pub longest_patience: Duration,
    /// The wait after a refusal that may pass; doubled from one to the next.
    pub first_backoff: Duration,
    pub longest_backoff: Duration,
}

const SHORTEST_PATIENCE: Duration = Duration::from_millis(200);
/// After how long without an answer, at the earliest, it is asked whether the leader is still the same. Asking costs little;
/// sending everything again does not.
const SHORTEST_DOUBT: Duration = Duration::from_millis(15);

/// What became of a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// The batch is stored.
    Stored,
    /// This copy is not stored, for a reason that may pass.
    NotStored,
    /// It may be stored, and its outcome may yet be learned by sending it again.
    Unknown,
    /// Not stored: a batch before it is missing.
    OutOfOrder,
    /// Not stored: the leader takes no batch of this size. A leader that has the batch says that instead.
    TooLarge,
    /// Not stored, and no copy of it ever will be.
    Refused,
}

/// A batch that left the lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Stored,
    Refused,
    /// Its time was over. It may have been stored nevertheless where a copy is open.
    Expired {
        open: bool,
    },
}

/// A batch to send now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Dispatch {
    pub number: u64,
    pub copy: u64,
    /// None where the producer is not idempotent.
    pub stamp: Option<ProducerStamp>,
}

struct Entry<B> {
    batch: Option<B>,
    number: u64,
    records: i32,
    stamp: Option<ProducerStamp>,
    state: State,
    /// In the order in which they were sent.
    open: Vec<u64>,
    expires: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// It is being compressed.
    Packing,
    Waiting,
    Sent {
        copy: u64,
        at: Instant,
        /// Whether it is the first copy, whose answer shows how long answers take.
        first: bool,
    },
    /// It is too large, and is to be replaced by its halves.
    TooLarge,
    /// It left the lane; batches before it have not.
    Done,
}

pub(super) struct Lane<B> {
    pace: Pace,
    entries: VecDeque<Entry<B>>,
    numbers: u64,
    copies: u64,
    /// The stamp of the next batch that gets one.
    next: Option<ProducerStamp>,
    /// Whether a leader is known to know the producer id.
    is_known: bool,
    /// A batch under the present producer id was given up.
    is_spent: bool,
    patience: Patience,
    /// When anything was last settled, or all was sent again.
    progress: Option<Instant>,
    not_before: Option<Instant>,
    backoff: Duration,
    /// When it was last asked who leads.
    asked: Option<Instant>,
}

/// How long answers take, as TCP's retransmission timer is set (RFC 6298).
struct Patience {
    smooth: Option<Duration>,
    variation: Duration,
    present: Duration,
}

impl<B> Lane<B> {
    pub fn new(pace: Pace) -> Self {
        let mut patience = Patience { smooth: None, variation: Duration::ZERO, present: pace.first_patience };
        patience.calm(&pace);
        Self {
            pace,
            entries: VecDeque::new(),
            numbers: 0,
            copies: 0,
            next: None,
            is_known: false,
            is_spent: false,
            patience,
            progress: None,
            not_before: None,
            backoff: pace.first_backoff,
            asked: None,
        }
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many batches wait here, or for those before them.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Adds a batch behind the others, and says its number. It is sent once it is [`Self::packed`].
    pub fn push(&mut self, batch: B, records: i32, expires: Instant) -> u64 {
        self.numbers += 1;
        let number = self.numbers;
        let (stamp, state, open) = (None, State::Packing, Vec::new());
        self.entries.push_back(Entry { batch: Some(batch), number, records, stamp, state, open, expires });
        number
    }

    pub fn packed(&mut self, number: u64) {
        if let Some(entry) = self.find(number)
            && entry.state == State::Packing
        {
            entry.state = State::Waiting;
        }
    }

    pub fn batch_mut(&mut self, number: u64) -> Option<&mut B> {
        self.find(number)?.batch.as_mut()
    }

    pub fn batches(&self) -> impl Iterator<Item = &B> {
        self.entries.iter().filter_map(|entry| entry.batch.as_ref())
    }

    fn find(&mut self, number: u64) -> Option<&mut Entry<B>> {
        let first = self.entries.front()?.number;
        // Numbers rise by one, and entries only leave from the front, unless one was replaced by its halves.
        let guess = number.checked_sub(first).and_then(|place| usize::try_from(place).ok());
        let place = match guess.filter(|place| self.entries.get(*place).is_some_and(|entry| entry.number == number)) {
            Some(place) => place,
            None => self.entries.iter().position(|entry| entry.number == number)?,
        };
        self.entries.get_mut(place)
    }

    /// Whether a batch is too large and has to be replaced by its halves.
    pub fn is_too_large(&mut self, number: u64) -> bool {
        self.find(number).is_some_and(|entry| entry.state == State::TooLarge)
    }

    /// Puts two batches in the place of one that is too large: its first records, so many, and the others. They keep the sequences
    /// of their records, so those behind them keep theirs. The numbers of the two.
    pub fn split(&mut self, number: u64, halves: impl FnOnce(B) -> [(B, i32); 2]) -> Option<[u64; 2]> {
        let place = self.entries.iter().position(|entry| entry.number == number)?;
        let Entry { batch, stamp, expires, .. } = self.entries.remove(place)?;
        let [(first, first_count), (second, second_count)] = halves(batch?);
        let second_stamp = stamp.map(|stamp| stamp.after(first_count));
        let numbers = [self.numbers + 1, self.numbers + 2];
        self.numbers += 2;
        let halves = [(first, first_count, stamp), (second, second_count, second_stamp)];
        for (at, ((batch, records, stamp), number)) in halves.into_iter().zip(numbers).enumerate() {
            let (batch, state, open) = (Some(batch), State::Packing, Vec::new());
            self.entries.insert(place + at, Entry { batch, number, records, stamp, state, open, expires });
        }
        Some(numbers)
    }

    fn window(&self) -> usize {
        if self.pace.is_idempotent && !self.is_known { 1 } else { self.pace.max_in_flight.max(1) }
    }

    /// How many batches are packed or unanswered. Those that it was asked about are not counted: their leader may be gone.
    pub fn awaited(&self) -> usize {
        let is_doubted = self.asked.is_some() && self.asked >= self.unanswered_since();
        let counts = |entry: &&Entry<B>| match entry.state {
            State::Packing => true,
            State::Sent { .. } => !is_doubted,
            State::Waiting | State::TooLarge | State::Done => false,
        };
        self.entries.iter().filter(counts).count()
    }

    /// Whether one more batch would be sent at once.
    pub fn has_room(&self, now: Instant) -> bool {
        let sent = |entry: &Entry<B>| matches!(entry.state, State::Sent { .. } | State::Done);
        !self.is_spent
            && self.not_before.is_none_or(|at| at <= now)
            && self.entries.len() < self.window()
            && self.entries.iter().all(sent)
    }

    /// The next batch to send, if it may be sent now. `draw` gives a fresh producer id.
    pub fn dispatch(&mut self, now: Instant, draw: impl FnOnce() -> i64) -> Option<Dispatch> {
        if self.not_before.is_some_and(|at| at > now) {
            return None;
        }
        self.renew();
        let (window, is_spent) = (self.window(), self.is_spent);
        let mut entries = self.entries.iter_mut().take(window);
        let entry = loop {
            let entry = entries.next()?;
            match entry.state {
                State::Done | State::Sent { .. } => {}
                State::Packing | State::TooLarge => return None,
                // It waits for a new id.
                State::Waiting if is_spent && entry.open.is_empty() => {}
                State::Waiting => break entry,
            }
        };
        if self.pace.is_idempotent && entry.stamp.is_none() {
            let stamp = self.next.unwrap_or_else(|| ProducerStamp { id: draw(), epoch: 0, sequence: 0 });
            self.next = Some(stamp.after(entry.records));
            entry.stamp = Some(stamp);
        }
        self.copies += 1;
        let copy = self.copies;
        entry.state = State::Sent { copy, at: now, first: entry.open.is_empty() };
        entry.open.push(copy);
        Some(Dispatch { number: entry.number, copy, stamp: entry.stamp })
    }

    /// Takes a new producer id where the present one is spent and nothing under it is open.
    fn renew(&mut self) {
        if self.is_spent && self.entries.iter().all(|entry| entry.open.is_empty()) {
            (self.is_spent, self.is_known, self.next) = (false, false, None);
            self.entries.iter_mut().for_each(|entry| entry.stamp = None);
        }
    }

    /// Notes what became of a copy. `jitter` spreads the wait that follows, between 0.5 and 1.
    pub fn answered(
        &mut self,
        now: Instant,
        number: u64,
        copy: u64,
        verdict: Verdict,
        jitter: f64,
        ended: &mut Vec<(B, End)>,
    ) {
        let Some(entry) = self.find(number) else { return };
        if entry.state == State::Done {
            return;
        }
        let state = entry.state;
        let is_latest = matches!(state, State::Sent { copy: latest, .. } if latest == copy);
        match verdict {
            Verdict::Stored => {
                let has_stamp = entry.stamp.is_some();
                end(entry, End::Stored, ended);
                if let State::Sent { at, first: true, copy: latest } = state
                    && latest == copy
                {
                    self.patience.sample(now.saturating_duration_since(at), &self.pace);
                }
                // One that was given a new id meanwhile says nothing of that one; then it had no open copy.
                self.is_known |= has_stamp && !self.is_spent;
                self.progressed(now);
            }
            Verdict::TooLarge if entry.records > 1 => {
                // An older copy cannot come any more, or the leader would know it.
                entry.open.retain(|open| *open > copy);
                if is_latest {
                    entry.state = State::TooLarge;
                    self.progressed(now);
                }
            }
            Verdict::Refused | Verdict::TooLarge => {
                let has_stamp = entry.stamp.is_some();
                end(entry, End::Refused, ended);
                self.is_spent |= has_stamp;
                self.progressed(now);
            }
            Verdict::NotStored => {
                entry.open.retain(|open| *open != copy);
                if is_latest {
                    entry.state = State::Waiting;
                    self.back_off(now, jitter);
                }
            }
            Verdict::Unknown => {
                if is_latest {
                    entry.state = State::Waiting;
                    self.back_off(now, jitter);
                }
            }
            Verdict::OutOfOrder => {
                // An older copy cannot come any more, or the leader would know it.
                entry.open.retain(|open| *open > copy);
                let is_settled = entry.open.is_empty();
                if is_latest {
                    entry.state = State::Waiting;
                }
                let mut before = self.entries.iter_mut().take_while(|entry| entry.number != number);
                let mut is_first = true;
                for entry in &mut before {
                    match entry.state {
                        State::Sent { copy: earlier, .. } if earlier < copy => {
                            (entry.state, is_first) = (State::Waiting, false);
                        }
                        State::Sent { .. } | State::Waiting | State::Packing | State::TooLarge => is_first = false,
                        State::Done => {}
                    }
                }
                if is_first && is_latest && is_settled {
                    // Nothing is missing that we could send: the leader has lost what was before.
                    self.is_spent = true;
                    self.back_off(now, jitter);
                }
            }
        }
        self.trim();
    }

    fn progressed(&mut self, now: Instant) {
        self.progress = Some(now);
        self.not_before = None;
        self.backoff = self.pace.first_backoff;
        self.patience.calm(&self.pace);
    }

    fn back_off(&mut self, now: Instant, jitter: f64) {
        // Several refusals for one reason are one step.
        if self.not_before.is_none_or(|at| at <= now) {
            self.not_before = Some(now + self.backoff.mul_f64(jitter));
            self.backoff = (self.backoff * 2).min(self.pace.longest_backoff);
        }
    }

    fn trim(&mut self) {
        while self.entries.front().is_some_and(|entry| entry.state == State::Done) {
            self.entries.pop_front();
        }
    }

    /// Gives up what is over its time, and sends again what was not answered for too long.
    pub fn tick(&mut self, now: Instant, ended: &mut Vec<(B, End)>) {
        let mut progressed = false;
        for entry in self.entries.iter_mut().take_while(|entry| entry.expires <= now) {
            if entry.state == State::Done {
                continue;
            }
            self.is_spent |= entry.stamp.is_some();
            let open = !entry.open.is_empty();
            end(entry, End::Expired { open }, ended);
            progressed = true;
        }
        if progressed {
            self.progress = Some(now);
            self.trim();
        }
        if self.resend_at().is_some_and(|at| at <= now) {
            self.recall();
            self.patience.double(&self.pace);
            self.progress = Some(now);
        }
    }

    /// Whether it is time to ask if the leader is still the one that everything was sent to.
    pub fn doubts(&mut self, now: Instant) -> bool {
        let doubts = self.doubt_at().is_some_and(|at| at <= now);
        if doubts {
            self.asked = Some(now);
        }
        doubts
    }

    /// Nobody leads: what is unanswered is sent again, in a while. `jitter` as for [`Self::answered`].
    pub fn leaderless(&mut self, now: Instant, jitter: f64) {
        if self.recall() {
            self.back_off(now, jitter);
        }
    }

    /// Another leads by now: what is unanswered is sent again, where it is stored once nevertheless.
    pub fn leader_changed(&mut self, now: Instant) {
        if self.pace.is_idempotent && self.recall() {
            self.progressed(now);
        }
    }

    /// Takes back what was sent. It may have been stored, which the next copy of it will tell.
    fn recall(&mut self) -> bool {
        let mut any = false;
        for entry in &mut self.entries {
            if let State::Sent { .. } = entry.state {
                (entry.state, any) = (State::Waiting, true);
            }
        }
        any
    }

    /// Ends all of them.
    pub fn drain(&mut self, ended: &mut Vec<(B, End)>) {
        for entry in &mut self.entries {
            self.is_spent |= entry.stamp.is_some();
            let open = !entry.open.is_empty();
            if entry.state != State::Done {
                end(entry, End::Expired { open }, ended);
            }
        }
        self.trim();
    }

    fn resend_at(&self) -> Option<Instant> {
        Some(self.unanswered_since()? + self.patience.present)
    }

    fn doubt_at(&self) -> Option<Instant> {
        // What is sent again without need may be stored twice where it has no sequence.
        let doubt = self.patience.doubt().filter(|_| self.pace.is_idempotent)?;
        let since = self.unanswered_since()?;
        Some(self.asked.map_or(since, |asked| asked.max(since)) + doubt)
    }

    fn unanswered_since(&self) -> Option<Instant> {
        let sent = self.entries.iter().filter_map(|entry| match entry.state {
            State::Sent { at, .. } => Some(at),
            State::Packing | State::Waiting | State::TooLarge | State::Done => None,
        });
        let oldest = sent.min()?;
        Some(self.progress.map_or(oldest, |at| at.max(oldest)))
    }

    /// When [`Self::tick`], [`Self::doubts`] or [`Self::dispatch`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let is_waiting = self.entries.iter().any(|entry| entry.state == State::Waiting);
        let backoff = self.not_before.filter(|_| is_waiting);
        let expiry = self.entries.front().map(|entry| entry.expires);
        [self.resend_at(), self.doubt_at(), backoff, expiry].into_iter().flatten().min()
    }
}

fn end<B>(entry: &mut Entry<B>, how: End, ended: &mut Vec<(B, End)>) {
    entry.state = State::Done;
    entry.open.clear();
    ended.extend(entry.batch.take().map(|batch| (batch, how)));
}

impl Patience {
    fn sample(&mut self, took: Duration, pace: &Pace) {
        let smooth = match self.smooth {
            None => {
                self.variation = took / 2;
                took
            }
            Some(smooth) => {
                self.variation = (self.variation * 3 + smooth.abs_diff(took)) / 4;
                (smooth * 7 + took) / 8
            }
        };
        self.smooth = Some(smooth);
        self.calm(pace);
    }

    /// Forgets that it was doubled.
    fn calm(&mut self, pace: &Pace) {
        if !pace.is_idempotent {
            // What is sent again may be stored twice.
            self.present = pace.longest_patience;
            return;
        }
        let of_answers = |smooth: Duration| (smooth + self.variation * 4).max(SHORTEST_PATIENCE);
        self.present = self.smooth.map_or(pace.first_patience, of_answers).min(pace.longest_patience);
    }

    /// After how long something may be wrong. None: it is not known how long answers take.
    fn doubt(&self) -> Option<Duration> {
        Some((self.smooth? + self.variation * 4).max(SHORTEST_DOUBT))
    }

    fn double(&mut self, pace: &Pace) {
        self.present = (self.present * 2).min(pace.longest_patience);
    }
}

#[cfg(test)]
mod tests;
