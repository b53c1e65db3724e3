//! The whole cluster in one process: what there is of it, what can happen, and the loop that lets it happen.

use std::collections::{BTreeMap, VecDeque};

use super::bus::{Answer, Op, Waiting, Weather};
use super::clients::Clients;
use super::controllers::ControllerProc;
use super::disks::Folder;
use super::faults::Faults;
use super::invariants::{Checker, Sent, Violation};
use super::lease::Lease;
use super::nodes::NodeProc;
use super::producers::Producers;
use super::queue::{MS, Queue, Time};
use super::replicas::Data;
use super::report::{Journal, Seen};
use super::rng::Rng;
use super::stream::{Author, Stream};
use crate::controller::core as control;
use crate::storage::core as storage;
use crate::types::{Connection, IncarnationId, Monotonic, StorageId, WallTime};
use bytes::Bytes;

/// Controllers first, then storage nodes, then one more node process, which only ever runs on a copied disk.
pub type Proc = usize;

pub const CONTROLLERS: usize = 3;
pub const NODES: usize = 5;
pub const COPY: Proc = CONTROLLERS + NODES;
pub const PROCS: usize = COPY + 1;

/// 2026-11-25, where the walls' clocks are right.
const WALL_MS: u64 = 1_795_564_800_000;

pub enum Event {
    /// `connection`: arrives over this connection of the receiver's, or not at all.
    Mail {
        to: Proc,
        life: u64,
        connection: Option<u64>,
        mail: Mail,
    },
    Tick {
        to: Proc,
        life: u64,
    },
    Start {
        proc: Proc,
        life: u64,
    },
    Connect {
        proc: Proc,
        life: u64,
    },
    Wake {
        proc: Proc,
        freeze: u64,
    },
    /// The answer to a request that waits, or that none comes any more.
    Answer {
        request: u64,
        answer: Answer,
    },
    /// A question reaches JetStream.
    Asked {
        request: u64,
        author: Author,
        op: Op,
    },
    Synced {
        generation: u64,
    },
    LeaseExpires {
        revision: u64,
    },
    Client(usize),
    Producer(usize),
    SendAgain {
        producer: usize,
        id: u32,
        sequence: u32,
    },
    Consumer,
    Operator,
    Fault,
    Mend(super::faults::Mend),
}

/// What reaches a process.
pub enum Mail {
    Controller(control::Input),
    Node(storage::Input),
    Heartbeat {
        storage: StorageId,
        payload: Bytes,
        request: u64,
        sent: Option<Sent>,
    },
    Admin {
        noun: &'static str,
        verb: &'static str,
        payload: Bytes,
        request: u64,
    },
    Fetch {
        payload: Bytes,
        request: u64,
    },
    Push(Bytes),
    /// For a node's replicas.
    Data(Data),
    /// The lease's key may have changed.
    Watch,
    /// The stream may have more.
    Follow,
    /// The lease's worker has its answer.
    Leased {
        sent_at: Monotonic,
        result: control::LeaseResult,
    },
    /// The disk has done what it was given.
    Written,
}

/// A process as the machine and the network see it.
pub struct Host {
    pub up: bool,
    /// Rises with each start and end, so that what was meant for an earlier one is dropped.
    pub life: u64,
    /// Since when, and whether what arrives is seen to arrive: a busy process's listener goes on, a frozen one's does not.
    pub frozen: Option<Frozen>,
    pub freezes: u64,
    pub inbox: VecDeque<(Time, Mail)>,
    pub connection: Option<Connection>,
    /// Rises with each connection.
    pub generation: u64,
    pub cut_in: bool,
    pub cut_out: bool,
    booted: Time,
    clock_base: u64,
    wall_skew_ms: i64,
    pub incarnation: IncarnationId,
    pub folder: usize,
    tick_at: Option<Time>,
    pub slow_disk_until: Time,
    /// It was told to end.
    pub stopping: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Frozen {
    Stopped,
    Busy,
}

pub struct World {
    pub seed: u64,
    pub rng: Rng,
    pub queue: Queue<Event>,
    /// Of those, what is not the mere passing of time.
    pub events: u64,
    pub hosts: Vec<Host>,
    pub controllers: [Option<Box<ControllerProc>>; CONTROLLERS],
    pub nodes: Vec<Option<Box<NodeProc>>>,
    pub folders: Vec<Folder>,
    pub stream: Stream,
    pub stream_sync_at: Time,
    pub lease: Lease,
    pub waiting: BTreeMap<u64, Waiting>,
    pub next_request: u64,
    pub next_connection: u64,
    pub weather: Weather,
    pub clients: Clients,
    pub producers: Producers,
    pub faults: Faults,
    pub checker: Checker,
    pub journal: Journal,
    pub seen: Seen,
    pub violation: Option<Violation>,
}

impl World {
    pub fn new(seed: u64, tracing: bool) -> Self {
        let mut rng = Rng::new(seed);
        let faults = Faults::draw(&mut rng);
        let mut world = Self {
            seed,
            queue: Queue::new(),
            events: 0,
            hosts: Vec::new(),
            controllers: [const { None }; CONTROLLERS],
            nodes: (0..=NODES).map(|_| None).collect(),
            folders: Vec::new(),
            stream: Stream::default(),
            stream_sync_at: 0,
            lease: Lease::default(),
            waiting: BTreeMap::new(),
            next_request: 0,
            next_connection: 0,
            weather: Weather::default(),
            clients: Clients::new(),
            producers: Producers::default(),
            faults,
            checker: Checker::new(),
            journal: Journal::new(tracing),
            seen: Seen::default(),
            violation: None,
            rng,
        };
        world.populate();
        world
    }

    fn populate(&mut self) {
        for proc in 0..PROCS {
            let folder = self.new_folder();
            self.hosts.push(Host {
                up: false,
                life: 0,
                frozen: None,
                freezes: 0,
                inbox: VecDeque::new(),
                connection: None,
                generation: 0,
                cut_in: false,
                cut_out: false,
                booted: 0,
                clock_base: 0,
                wall_skew_ms: 0,
                incarnation: IncarnationId(uuid::Uuid::nil()),
                folder,
                tick_at: None,
                slow_disk_until: 0,
                stopping: false,
            });
            if proc != COPY {
                let delay = self.rng.between(0, 400) * MS;
                self.queue.after(delay, Event::Start { proc, life: 0 });
            }
        }
        for client in 0..super::clients::CLIENTS {
            self.queue.after((4_000 + 300 * client as u64) * MS, Event::Client(client));
        }
        for producer in 0..super::producers::PRODUCERS {
            self.queue.after((4_500 + 200 * producer as u64) * MS, Event::Producer(producer));
        }
        self.queue.after(5_000 * MS, Event::Consumer);
        self.queue.after(1_000 * MS, Event::Operator);
        let first = self.rng.between(3_500, 7_000) * MS;
        self.queue.after(first, Event::Fault);
    }

    pub fn now(&self) -> Time {
        self.queue.now
    }

    pub fn note(&mut self, words: impl FnOnce() -> String) {
        self.journal.note(self.queue.now, words);
    }

    /// The process's own monotonic clock.
    pub fn clock(&self, proc: Proc) -> Monotonic {
        self.clock_at(proc, self.now())
    }

    pub fn clock_at(&self, proc: Proc, time: Time) -> Monotonic {
        let host = &self.hosts[proc];
        Monotonic(host.clock_base + time.saturating_sub(host.booted))
    }

    pub fn wall(&self, proc: Proc) -> WallTime {
        let millis = WALL_MS + self.now() / MS;
        WallTime(millis.saturating_add_signed(self.hosts[proc].wall_skew_ms))
    }

    /// Lets the next thing happen. False where nothing is left to, or a rule was broken.
    pub fn step(&mut self) -> bool {
        let Some(event) = self.queue.next() else { return false };
        self.take(event);
        let broken = self.checker.broken.take();
        self.violation = self.violation.take().or(broken);
        self.violation.is_none()
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Tick { to, life } => return self.tick(to, life),
            Event::Mail { to, life, connection, mail: mail @ Mail::Data(_) } => {
                return self.arrive(to, life, connection, mail);
            }
            Event::Mail { to, life, connection, mail } => self.arrive(to, life, connection, mail),
            Event::Start { proc, life } => {
                if self.hosts[proc].life == life {
                    self.start(proc);
                }
            }
            Event::Connect { proc, life } => {
                if self.hosts[proc].life == life {
                    self.connect(proc);
                }
            }
            Event::Wake { proc, freeze } => {
                if self.hosts[proc].freezes == freeze {
                    self.wake(proc);
                }
            }
            Event::Answer { request, answer } => {
                let is_data = matches!(self.waiting.get(&request), None | Some(Waiting::Producer { .. }));
                self.answered(request, answer);
                if is_data {
                    return;
                }
            }
            Event::Asked { request, author, op } => self.serve_jetstream(request, author, op),
            Event::Synced { generation } => {
                if self.stream.generation == generation {
                    self.synced();
                }
            }
            Event::LeaseExpires { revision } => self.lease_expires(revision),
            Event::Client(client) => self.client_turn(client),
            Event::Producer(producer) => return self.producer_turn(producer),
            Event::SendAgain { producer, id, sequence } => return self.send_again(producer, id, sequence),
            Event::Consumer => return self.consumer_turn(),
            Event::Operator => self.operator_turn(),
            Event::Fault => self.fault_turn(),
            Event::Mend(mend) => self.mend(mend),
        }
        self.events += 1;
    }

    fn tick(&mut self, to: Proc, life: u64) {
        let now = self.now();
        let host = &mut self.hosts[to];
        if host.life != life || !host.up || host.tick_at != Some(now) {
            return;
        }
        host.tick_at = None;
        if host.frozen.is_some() {
            return;
        }
        if to < CONTROLLERS {
            self.drive_controller(to, control::Input::Tick);
        } else {
            self.drive_node(to, storage::Input::Tick);
            self.drive_replicas(to, Vec::new());
        }
    }

    /// Sees to it that the process is woken when its core wants to be.
    pub fn plan_tick(&mut self, proc: Proc, deadline: Option<Monotonic>) {
        let now = self.now();
        let host = &mut self.hosts[proc];
        let Some(deadline) = deadline.filter(|_| host.up) else { return };
        let at = (host.booted + deadline.0.saturating_sub(host.clock_base)).max(now + MS);
        if host.tick_at.is_some_and(|planned| planned <= at && planned > now) {
            return;
        }
        host.tick_at = Some(at);
        let life = host.life;
        self.queue.after(at - now, Event::Tick { to: proc, life });
    }

    fn arrive(&mut self, to: Proc, life: u64, connection: Option<u64>, mail: Mail) {
        let now = self.now();
        let host = &mut self.hosts[to];
        let lost = connection.is_some_and(|sent| host.generation != sent || host.cut_in || host.connection.is_none());
        if host.life != life || !host.up || lost {
            return;
        }
        let frozen = host.frozen.is_some();
        if let Mail::Heartbeat { sent: Some(sent), .. } = &mail {
            let sent = *sent;
            self.heartbeat_arrives(to, now, sent);
        }
        if frozen {
            self.hosts[to].inbox.push_back((now, mail));
            return;
        }
        self.deliver(to, now, mail);
    }

    pub fn deliver(&mut self, to: Proc, arrived: Time, mail: Mail) {
        if to < CONTROLLERS {
            self.controller_mail(to, arrived, mail);
        } else {
            self.node_mail(to, mail);
        }
    }

    pub fn wake(&mut self, proc: Proc) {
        let Some(frozen) = self.hosts[proc].frozen.take() else { return };
        let now = self.now();
        self.note(|| format!("{} goes on", name(proc)));
        let life = self.hosts[proc].life;
        self.hosts[proc].tick_at = None;
        while self.hosts[proc].life == life
            && let Some((arrived, mail)) = self.hosts[proc].inbox.pop_front()
        {
            self.deliver(proc, if frozen == Frozen::Busy { arrived } else { now }, mail);
        }
        if self.hosts[proc].life == life {
            let at = now + MS;
            self.hosts[proc].tick_at = Some(at);
            self.queue.after(MS, Event::Tick { to: proc, life });
        }
    }

    pub fn start(&mut self, proc: Proc) {
        let now = self.now();
        let incarnation = IncarnationId(self.rng.uuid());
        let clock_base = self.rng.between(0, 1_000_000_000);
        let hour = 3_600_000;
        let wall_skew_ms = if self.rng.chance(200) { self.rng.pick(&[-hour, hour]) } else { 0 };
        if wall_skew_ms != 0 {
            self.seen.fault("wall clock off by an hour");
        }
        let host = &mut self.hosts[proc];
        host.life += 1;
        host.up = true;
        host.frozen = None;
        host.inbox.clear();
        host.booted = now;
        host.clock_base = clock_base;
        host.wall_skew_ms = wall_skew_ms;
        host.incarnation = incarnation;
        host.tick_at = None;
        host.stopping = false;
        let life = host.life;
        self.note(|| format!("{} starts", name(proc)));
        if proc < CONTROLLERS {
            self.start_controller(proc);
        } else {
            self.start_node(proc);
        }
        let delay = self.rng.between(2, 60) * MS;
        self.queue.after(delay, Event::Connect { proc, life });
    }

    /// The process is gone, and with it its connection. It is started again after `restart`, where that is given.
    pub fn end(&mut self, proc: Proc, restart: Option<Time>) {
        if !self.hosts[proc].up {
            return;
        }
        self.note(|| format!("{} ends", name(proc)));
        self.hang_up(proc, true);
        let host = &mut self.hosts[proc];
        host.up = false;
        host.life += 1;
        host.inbox.clear();
        host.frozen = None;
        let life = host.life;
        if proc < CONTROLLERS {
            self.controllers[proc] = None;
        } else {
            self.close_node(proc);
        }
        if let Some(delay) = restart {
            self.queue.after(delay, Event::Start { proc, life });
        }
    }
}

pub fn name(proc: Proc) -> String {
    match proc {
        proc if proc < CONTROLLERS => format!("controller {proc}"),
        COPY => "copied node".into(),
        proc => format!("node {}", proc - CONTROLLERS),
    }
}
