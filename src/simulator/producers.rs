//! Those who write and read records: idempotent producers, which send again until they are answered or give up, and consumers.

use std::collections::BTreeMap;

use super::bus::{Answer, Waiting};
use super::queue::{MS, SECOND, Time};
use super::records::Record;
use super::world::{CONTROLLERS, COPY, Event, Proc, World, name};
use crate::storage::core::Place;
use crate::storage::replicas::Acks;
use crate::types::LeaderEpoch;

pub const PRODUCERS: usize = 3;
/// How long one tries to get a record acknowledged.
const PATIENCE: Time = 15 * SECOND;
/// After so long nothing of a record's is under way any more, so that it may be deleted: who begins anew behind it does not know its
/// producer.
pub const OLD: Time = 20 * SECOND;

/// Why a record is not acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    Later,
    OutOfOrder,
}

struct Open {
    value: u64,
    since: Time,
}

struct Session {
    id: u32,
    place: Place,
    acks: Acks,
    /// How many records may be under way.
    window: usize,
    next: u32,
    left: u32,
    open: BTreeMap<u32, Open>,
    refused: u32,
}

#[derive(Default)]
struct Consumer {
    place: Option<Place>,
    generation: u64,
    next: i64,
    epoch: LeaderEpoch,
    /// The last record that it read.
    last: Option<Record>,
}

#[derive(Default)]
pub struct Producers {
    sessions: BTreeMap<usize, Session>,
    consumer: Consumer,
    ids: u32,
    values: u64,
    /// When each partition had how many committed records.
    marks: Vec<(Time, Place, i64)>,
}

impl Producers {
    pub fn is_idle(&self) -> bool {
        self.sessions.is_empty()
    }
}

impl World {
    pub fn producer_turn(&mut self, producer: usize) {
        let now = self.now();
        let healed = self.faults.healed_at.is_some();
        let pause = self.rng.between(10, 150) * MS;
        self.queue.after(pause, Event::Producer(producer));
        let Some(session) = self.producers.sessions.get_mut(&producer) else {
            if !healed {
                self.begin_session(producer);
            }
            return;
        };
        let is_over = session.left == 0 || healed;
        let gives_up = session.open.values().any(|open| now > open.since + PATIENCE) || session.refused > 8;
        if (is_over && session.open.is_empty()) || gives_up {
            self.producers.sessions.remove(&producer);
            return;
        }
        // The first one goes alone: of a producer that a log does not know, it takes any.
        let window = if session.next == 0 { 1 } else { session.window };
        // From the oldest unsettled one on, as the client's: a leader remembers only the last five.
        let oldest = session.open.keys().next().map(|oldest| *oldest as usize);
        let waits = oldest.is_some_and(|oldest| session.next as usize >= oldest + window) || oldest == Some(0);
        if !is_over && !waits {
            let sequence = session.next;
            session.next += 1;
            session.left -= 1;
            self.producers.values += 1;
            session.open.insert(sequence, Open { value: self.producers.values, since: now });
            let id = session.id;
            self.send_again(producer, id, sequence);
        }
    }

    fn begin_session(&mut self, producer: usize) {
        let Some(image) = self.checker.image() else { return };
        let topics: Vec<_> = image.topics.iter().map(|(id, topic)| (*id, topic.partitions.len())).collect();
        if topics.is_empty() {
            return;
        }
        let (topic, partitions) = self.rng.pick(&topics);
        let place = (topic, self.rng.below(partitions.min(2)) as u32);
        self.producers.ids += 1;
        self.checker.producer_writes_to(self.producers.ids, place);
        let session = Session {
            id: self.producers.ids,
            place,
            acks: if self.rng.chance(850) { Acks::All } else { Acks::Leader },
            window: self.rng.pick(&[1, 2, 4]),
            next: 0,
            left: self.rng.between(5, 40) as u32,
            open: BTreeMap::new(),
            refused: 0,
        };
        self.producers.sessions.insert(producer, session);
    }

    pub fn send_again(&mut self, producer: usize, id: u32, sequence: u32) {
        let Some(session) = self.producers.sessions.get(&producer).filter(|session| session.id == id) else { return };
        let Some(open) = session.open.get(&sequence) else { return };
        let record = Record { producer: id, sequence, epoch: LeaderEpoch(0), value: open.value };
        let (place, acks) = (session.place, session.acks);
        let request = self.wait(Waiting::Producer { producer, id, sequence }, 1_200 * MS);
        if !self.rng.chance(self.weather.lost) {
            self.send_record(place, record, acks, request);
        }
    }

    pub fn producer_answered(&mut self, producer: usize, id: u32, sequence: u32, answer: &Answer) {
        let Some(session) = self.producers.sessions.get_mut(&producer).filter(|session| session.id == id) else {
            return;
        };
        match answer {
            Answer::Produced(Ok(())) => {
                session.open.remove(&sequence);
                return self.seen.event("record acknowledged");
            }
            Answer::Produced(Err(Refused::OutOfOrder)) if session.open.keys().next() == Some(&sequence) => {
                session.refused += 1;
            }
            Answer::Produced(Err(_)) | Answer::NoResponders | Answer::Timeout => {}
            Answer::Body(_) | Answer::Chunk { .. } | Answer::Controller(_) => return,
        }
        let pause = self.rng.between(30, 400) * MS;
        self.queue.after(pause, Event::SendAgain { producer, id, sequence });
    }

    /// Reads what is shown, from whoever serves it.
    pub fn consumer_turn(&mut self) {
        let pause = self.rng.between(60, 500) * MS;
        self.queue.after(pause, Event::Consumer);
        let places = self.checker.written();
        if places.is_empty() {
            return;
        }
        let consumer = &mut self.producers.consumer;
        if consumer.place.is_none_or(|place| !places.contains(&place)) || self.rng.chance(100) {
            let place = self.rng.pick(&places);
            *consumer = Consumer { place: Some(place), ..Consumer::default() };
        }
        let Some(place) = consumer.place else { return };
        let shows = |proc: &Proc| {
            let node = self.nodes[*proc - CONTROLLERS].as_ref().filter(|_| self.hosts[*proc].frozen.is_none())?;
            let led = node.replicas.led(self.clock(*proc), place)?;
            Some((*proc, led.leader_epoch, led.visible?.0))
                .filter(|_| !self.checker.is_past_restore(place, led.leader_epoch))
        };
        let serving: Vec<_> = (CONTROLLERS..=COPY).filter_map(|proc| shows(&proc)).collect();
        for (proc, epoch, visible) in serving {
            if self.comes_to_damage(proc, place, visible) {
                continue;
            }
            self.consume(proc, place, epoch, visible);
            self.age(proc, place, visible);
        }
    }

    /// It is told so, and goes on elsewhere.
    fn comes_to_damage(&mut self, proc: Proc, place: Place, visible: i64) -> bool {
        let node = self.nodes[proc - CONTROLLERS].as_ref();
        let Some(log) = node.and_then(|node| node.replicas.engine.log(place)) else { return false };
        let Some(offset) = log.first_damaged(self.producers.consumer.next..visible) else { return false };
        self.producers.consumer = Consumer::default();
        self.unreadable(proc, place, offset);
        self.drive_replicas(proc, Vec::new());
        true
    }

    fn consume(&mut self, proc: Proc, place: Place, epoch: LeaderEpoch, visible: i64) {
        let Some(generation) = self.checker.generation(place) else { return };
        let consumer = &mut self.producers.consumer;
        if consumer.generation != generation {
            *consumer = Consumer { place: Some(place), generation, epoch: consumer.epoch, ..Consumer::default() };
        }
        // It fetches with the leader epoch that it knows: an older leader refuses.
        if epoch < consumer.epoch {
            return;
        }
        consumer.epoch = epoch;
        if visible < consumer.next {
            let next = consumer.next;
            let words = format!("{} shows {place:?} up to {visible}, and a consumer has read up to {next}", name(proc));
            return self.checker.break_rule(9, || words);
        }
        let node = self.nodes[proc - CONTROLLERS].as_ref();
        let Some(log) = node.and_then(|node| node.replicas.engine.log(place)) else { return };
        let before = consumer.next - 1;
        let differs = consumer.last.is_some_and(|last| log.get(before).is_some_and(|now| *now != last));
        if differs {
            let (last, now) = (consumer.last, log.get(before).copied());
            let words = format!("a consumer has read {last:?} at {before} of {place:?}, and it is {now:?}");
            return self.checker.break_rule(9, || words);
        }
        consumer.next = visible;
        consumer.last = log.get(visible - 1).copied();
    }

    /// What is old is deleted now and then.
    fn age(&mut self, proc: Proc, place: Place, visible: i64) {
        let now = self.now();
        self.producers.marks.push((now, place, visible));
        let old = self.producers.marks.iter().filter(|(at, of, _)| *of == place && *at + OLD < now);
        let before = old.map(|(.., end)| *end).max().unwrap_or(0);
        if before > 0 && self.rng.chance(300) {
            self.producers.marks.retain(|(at, of, _)| *of != place || *at + OLD >= now);
            self.delete_old(proc, place, before);
        }
    }
}
