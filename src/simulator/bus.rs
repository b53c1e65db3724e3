//! The fake NATS: connections, who hears what, requests and their answers, and the weather on the way.
//!
//! What a sender publishes is gone where its connection is; what is on the way to a receiver is gone with the receiver's
//! connection. Delays are drawn for each message, so any two may overtake each other.

use super::producers::Refused;
use super::queue::{MS, SECOND, Time};
use super::stream::{Author, Message};
use super::world::{CONTROLLERS, Event, Mail, PROCS, Proc, World, name};
use crate::controller::core::{AppendResult, Holder, Input, LeaseResult, MetadataHolder};
use crate::metadata::Image;
use crate::storage::core::{self as storage, Call, CallError, FetchReply};
use crate::types::{Connection, Monotonic, Position, Version};
use bytes::Bytes;

/// What may happen to a message, in thousandths.
#[derive(Clone, Copy, Default)]
pub struct Weather {
    pub lost: u32,
    pub repeated: u32,
    /// Delayed by up to two seconds.
    pub slow: u32,
    pub lost_append_acks: u32,
    pub late_appends: u32,
    /// How long a sync of the stream may take.
    pub sync_stall_ms: u64,
}

/// A question to JetStream, or to who has metadata.
pub enum Op {
    Head { asked_at: Monotonic, snapshot: Option<String> },
    Append { attempt: u64, expected: Version, payload: Bytes },
    Read(Version),
    Take { revision: Option<u64>, holder: Holder, sent_at: Monotonic },
    Release(u64),
    Load,
    WriteSnapshot { image: Box<Image>, position: Position },
    Purge(Version),
    ListSnapshots,
    Recreate { image: Box<Image>, position: Position },
    Gather { holder: MetadataHolder, position: Position },
}

/// Who waits for an answer.
pub enum Waiting {
    /// With what it is told where none comes.
    Controller {
        proc: Proc,
        life: u64,
        unknown: Mail,
    },
    Node {
        proc: Proc,
        life: u64,
        asked: Asked,
    },
    Client {
        client: usize,
        attempt: u64,
    },
    Producer {
        producer: usize,
        id: u32,
        sequence: u32,
    },
}

#[derive(Clone, Copy)]
pub enum Asked {
    Register(Call),
    Heartbeat(u64),
    Fetch(Call),
    Isr(Call),
}

pub enum Answer {
    Controller(Mail),
    Body(Bytes),
    Chunk { header: Bytes, bytes: Bytes },
    Produced(Result<(), Refused>),
    NoResponders,
    Timeout,
}

impl World {
    fn latency(&mut self) -> Time {
        let slow = self.weather.slow;
        match self.rng.next() % 1000 {
            roll if roll < u64::from(slow) => {
                self.seen.fault("delayed and reordered messages");
                self.rng.between(5, 2_000) * MS
            }
            roll if roll >= 980 => self.rng.between(1_500, 20_000),
            _ => self.rng.between(60, 900),
        }
    }

    /// How long a message of this process takes to the server; None where it does not arrive.
    pub fn hop_out(&mut self, from: Proc) -> Option<Time> {
        let host = &self.hosts[from];
        if host.connection.is_none() || host.cut_out {
            return None;
        }
        self.hop()
    }

    fn hop(&mut self) -> Option<Time> {
        if self.weather.lost > 0 && self.rng.chance(self.weather.lost) {
            self.seen.fault("lost messages");
            return None;
        }
        Some(self.latency())
    }

    /// How often it arrives: once, usually.
    fn copies(&mut self) -> usize {
        if self.weather.repeated > 0 && self.rng.chance(self.weather.repeated) {
            self.seen.fault("repeated messages");
            return 2;
        }
        1
    }

    /// From the server to a process, which has to be connected now and to stay so.
    pub fn send(&mut self, so_far: Time, to: Proc, mail: impl Fn() -> Mail) {
        for _ in 0..self.copies() {
            let host = &self.hosts[to];
            if host.connection.is_none() {
                return;
            }
            let (life, connection) = (host.life, Some(host.generation));
            if let Some(delay) = self.hop() {
                self.queue.after(so_far + delay, Event::Mail { to, life, connection, mail: mail() });
            }
        }
    }

    /// To a process from within itself: its disk, its tasks.
    pub fn report(&mut self, delay: Time, to: Proc, mail: Mail) {
        let life = self.hosts[to].life;
        self.queue.after(delay, Event::Mail { to, life, connection: None, mail });
    }

    pub fn connected_controllers(&self) -> Vec<Proc> {
        (0..CONTROLLERS).filter(|proc| self.hosts[*proc].connection.is_some()).collect()
    }

    pub fn wait(&mut self, waiting: Waiting, timeout: Time) -> u64 {
        self.next_request += 1;
        let request = self.next_request;
        self.waiting.insert(request, waiting);
        self.queue.after(timeout, Event::Answer { request, answer: Answer::Timeout });
        request
    }

    /// The answer to a request, on its way back.
    pub fn reply(&mut self, from: Proc, request: u64, answer: Answer) {
        let Some(out) = self.hop_out(from) else { return };
        self.reply_from_server(out, request, answer);
    }

    pub fn reply_from_server(&mut self, so_far: Time, request: u64, answer: Answer) {
        if let Some(back) = self.hop() {
            self.queue.after(so_far + back, Event::Answer { request, answer });
        }
    }

    pub fn answered(&mut self, request: u64, answer: Answer) {
        let from_within = matches!(answer, Answer::Timeout);
        match self.waiting.get(&request) {
            None => return,
            Some(Waiting::Controller { proc, .. } | Waiting::Node { proc, .. }) => {
                let host = &self.hosts[*proc];
                if !from_within && (host.cut_in || host.connection.is_none()) {
                    return;
                }
            }
            Some(Waiting::Client { .. } | Waiting::Producer { .. }) => {}
        }
        match self.waiting.remove(&request) {
            None => {}
            Some(Waiting::Controller { proc, life, unknown }) => {
                let mail = match answer {
                    Answer::Controller(mail) => mail,
                    Answer::Body(_)
                    | Answer::Chunk { .. }
                    | Answer::Produced(_)
                    | Answer::NoResponders
                    | Answer::Timeout => unknown,
                };
                if self.hosts[proc].life == life {
                    self.report(0, proc, mail);
                }
            }
            Some(Waiting::Node { proc, life, asked }) if self.hosts[proc].life == life => {
                self.report(0, proc, Mail::Node(to_input(asked, answer)));
            }
            // Whom it was for is gone.
            Some(Waiting::Node { .. }) => {}
            Some(Waiting::Client { client, attempt }) => self.client_answered(client, attempt, answer),
            Some(Waiting::Producer { producer, id, sequence }) => {
                self.producer_answered(producer, id, sequence, &answer);
            }
        }
    }

    /// An admin request, to one of those that serve.
    pub fn ask_admin(&mut self, out: Time, noun: &'static str, verb: &'static str, payload: &Bytes, request: u64) {
        let serving: Vec<_> = self
            .connected_controllers()
            .into_iter()
            .filter(|proc| self.controllers[*proc].as_ref().is_some_and(|c| c.serving))
            .collect();
        if serving.is_empty() {
            self.seen.fault("no responders");
            return self.reply_from_server(out, request, Answer::NoResponders);
        }
        let to = self.rng.pick(&serving);
        self.send(out, to, || Mail::Admin { noun, verb, payload: payload.clone(), request });
    }

    /// A question of a controller's shell to JetStream. `unknown` is what the core is told where no answer comes in time.
    pub fn ask(&mut self, proc: Proc, op: Op, unknown: Mail, timeout: Time) {
        let life = self.hosts[proc].life;
        let author = Some(self.hosts[proc].incarnation);
        let is_append = matches!(op, Op::Append { .. });
        let Some(mut out) = self.hop_out(proc) else {
            let is_down = self.hosts[proc].connection.is_none();
            let request = self.wait(Waiting::Controller { proc, life, unknown }, timeout);
            if is_down {
                self.queue.after(0, Event::Answer { request, answer: Answer::Timeout });
            }
            return;
        };
        if is_append && self.rng.chance(self.weather.late_appends) {
            self.seen.fault("appends that land late");
            out += self.rng.between(1_000, 6_000) * MS;
        }
        let request = self.wait(Waiting::Controller { proc, life, unknown }, timeout);
        self.queue.after(out, Event::Asked { request, author, op });
    }

    fn tell(&mut self, request: u64, input: Input) {
        self.reply_from_server(0, request, Answer::Controller(Mail::Controller(input)));
    }

    pub fn serve_jetstream(&mut self, request: u64, author: Author, op: Op) {
        match op {
            Op::Head { asked_at, snapshot } => {
                let head = Some(self.stream.head(snapshot.as_deref()));
                self.tell(request, Input::Head { asked_at, head });
            }
            Op::Append { attempt, expected, payload } => {
                self.store(request, attempt, expected, Message { payload, author })
            }
            Op::Read(version) => {
                let found = self.stream.get(version.0).map(|message| message.payload.clone());
                let result = if self.stream.exists { Ok(found) } else { Err(()) };
                self.tell(request, Input::Read { version, result });
            }
            Op::Take { revision, holder, sent_at } => {
                let result = self.lease.put(revision, holder);
                if let LeaseResult::Ours(revision) = result {
                    self.lease_changed();
                    // Freed up to a third of a second late.
                    let lasts = super::controllers::LEASE_MS * MS + self.rng.between(0, 330) * MS;
                    self.queue.after(lasts, Event::LeaseExpires { revision });
                }
                self.reply_from_server(0, request, Answer::Controller(Mail::Leased { sent_at, result }));
            }
            Op::Release(revision) => {
                if self.lease.release(revision) {
                    self.lease_changed();
                }
            }
            Op::Load => {
                let loaded = self.stream.newest_snapshot();
                self.tell(request, Input::Loaded(loaded));
            }
            Op::WriteSnapshot { image, position } => {
                let written = self.write_snapshot(&image, position);
                self.tell(request, Input::SnapshotWritten(written));
            }
            Op::Purge(before) => self.stream.purge(before.0),
            Op::ListSnapshots => {
                let newest = self.stream.newest_object();
                self.tell(request, Input::SnapshotsListed(Ok(newest)));
            }
            Op::Recreate { image, position } => self.recreate(request, &image, position),
            Op::Gather { holder, position } => {
                let gathered = self.gather(holder, position);
                self.seen.event("gathered metadata for a restore");
                self.tell(request, Input::Loaded(gathered));
            }
        }
    }

    fn store(&mut self, request: u64, attempt: u64, expected: Version, message: Message) {
        if !self.stream.exists && expected == Version::ZERO {
            self.stream.create(1);
        }
        match self.stream.append(expected.0, message) {
            Ok(_) => {
                self.plan_sync();
                let stored = Input::Appended { attempt, result: AppendResult::Stored };
                if self.rng.chance(self.weather.lost_append_acks) {
                    return self.seen.fault("lost append acknowledgements");
                }
                // Behind the sync, which the server waits for.
                let wait = self.stream_sync_at - self.now();
                self.reply_from_server(wait, request, Answer::Controller(Mail::Controller(stored)));
            }
            Err(result) => self.tell(request, Input::Appended { attempt, result }),
        }
    }

    pub fn plan_sync(&mut self) {
        let stall = self.weather.sync_stall_ms;
        let took = if stall > 0 { self.rng.between(0, stall) * MS } else { self.rng.between(100, 1_500) };
        self.stream_sync_at = self.stream_sync_at.max(self.now() + took);
        let generation = self.stream.generation;
        self.queue.after(self.stream_sync_at - self.now(), Event::Synced { generation });
    }

    pub fn synced(&mut self) {
        let Some((sequence, message)) = self.stream.sync() else { return };
        self.note(|| format!("version {sequence} is stored: {}", super::report::brief(&message.payload)));
        self.check_stored(sequence, &message);
        for proc in self.connected_controllers() {
            self.send(0, proc, || Mail::Follow);
        }
    }

    fn recreate(&mut self, request: u64, image: &Image, position: Position) {
        if self.stream.last() > position.version.0 {
            return self.tell(request, Input::Recreated(Err("made anew by another controller meanwhile".into())));
        }
        let made = self.write_snapshot(image, position);
        self.stream.create(position.version.0 + 1);
        self.note(|| format!("the stream is made anew behind {}", position.version));
        self.seen.event("restored history");
        self.check_recreated(image, position);
        self.tell(request, Input::Recreated(made));
    }

    pub fn lease_changed(&mut self) {
        for proc in 0..CONTROLLERS {
            self.send(0, proc, || Mail::Watch);
        }
    }

    pub fn lease_expires(&mut self, revision: u64) {
        if self.lease.held.as_ref().is_some_and(|held| held.revision == revision) {
            self.note(|| "the lease expires".into());
            self.lease.forget();
            self.lease_changed();
        }
    }

    pub fn connect(&mut self, proc: Proc) {
        if !self.hosts[proc].up || self.hosts[proc].connection.is_some() {
            return;
        }
        self.next_connection += 1;
        let connection = Connection { server: "NA".into(), client: self.next_connection };
        self.note(|| format!("{} is connected as client {}", name(proc), connection.client));
        let host = &mut self.hosts[proc];
        host.connection = Some(connection.clone());
        host.generation += 1;
        if proc < CONTROLLERS {
            // The watch is built anew, and says first how things stand.
            if let Some(controller) = &mut self.controllers[proc] {
                controller.watched = None;
            }
            self.report(500, proc, Mail::Controller(Input::Connected(connection)));
            self.report(600, proc, Mail::Watch);
            self.report(700, proc, Mail::Follow);
        } else {
            self.report(500, proc, Mail::Node(storage::Input::Connected(connection)));
        }
    }

    /// The connection ends: by the client's side, which the system account tells of sooner or later, or by the server's.
    pub fn hang_up(&mut self, proc: Proc, by_client: bool) {
        let Some(connection) = self.hosts[proc].connection.take() else { return };
        self.note(|| format!("connection {} of {} ends", connection.client, name(proc)));
        let down = if proc < CONTROLLERS {
            Mail::Controller(Input::Disconnected)
        } else {
            Mail::Node(storage::Input::Disconnected)
        };
        if self.hosts[proc].frozen.is_some() {
            let now = self.now();
            self.hosts[proc].inbox.push_back((now, down));
        } else {
            let now = self.now();
            self.deliver(proc, now, down);
        }
        if !by_client || self.hosts[proc].cut_out {
            return;
        }
        let late = self.rng.chance(self.faults.late_advisories);
        let delay = if late { self.rng.between(200, 9_000) * MS } else { self.rng.between(1, 5) * MS };
        for to in (0..CONTROLLERS).filter(|to| *to != proc) {
            if self.rng.chance(self.faults.lost_advisories) {
                continue;
            }
            if late {
                self.seen.fault("late advisories");
            }
            let delay = delay + self.latency();
            let (life, mail) = (self.hosts[to].life, Mail::Controller(Input::ConnectionEnded(connection.clone())));
            self.queue.after(delay, Event::Mail { to, life, connection: None, mail });
        }
    }

    /// All connections end, and are made anew: the server restarts.
    pub fn hang_up_all(&mut self) {
        for proc in 0..PROCS {
            self.hang_up(proc, false);
            self.reconnect_after(proc, 5 * MS, 800 * MS);
        }
    }

    pub fn reconnect_after(&mut self, proc: Proc, least: Time, most: Time) {
        let (delay, life) = (self.rng.between(least, most), self.hosts[proc].life);
        self.queue.after(delay, Event::Connect { proc, life });
    }
}

fn to_input(asked: Asked, answer: Answer) -> storage::Input {
    let body = |answer| match answer {
        Answer::Body(body) => Ok(body),
        Answer::NoResponders => Err(CallError::NoResponders),
        Answer::Chunk { .. } | Answer::Controller(_) | Answer::Produced(_) | Answer::Timeout => Err(CallError::Timeout),
    };
    match (asked, answer) {
        (Asked::Register(call), answer) => storage::Input::RegisterAnswer { call, result: body(answer) },
        (Asked::Heartbeat(sequence), answer) => storage::Input::HeartbeatAnswer { sequence, result: body(answer) },
        (Asked::Isr(call), answer) => storage::Input::IsrAnswer { call, result: body(answer) },
        (Asked::Fetch(call), Answer::Chunk { header, bytes }) => {
            storage::Input::FetchAnswer { call, result: Ok(FetchReply::Chunk { header, bytes }) }
        }
        (Asked::Fetch(call), answer) => {
            storage::Input::FetchAnswer { call, result: body(answer).map(FetchReply::Answer) }
        }
    }
}

/// How long a controller waits for JetStream.
pub const QUESTION: Time = 1_800 * MS;
/// How long a storage node waits for an answer.
pub const REQUEST: Time = 2 * SECOND;
