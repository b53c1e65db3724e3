//! Lanes before a leader that is played: single decisions, and long runs in which messages, answers and leaders are lost.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

fn pace() -> Pace {
    Pace {
        max_in_flight: 5,
        is_idempotent: true,
        first_patience: MS(500),
        longest_patience: MS(2_000),
        first_backoff: MS(10),
        longest_backoff: MS(1_000),
    }
}

/// A lane with its clock, whose batches are their own names.
struct Bench {
    lane: Lane<u32>,
    now: Instant,
    ids: i64,
    ended: Vec<(u32, End)>,
}

impl Bench {
    fn new(pace: Pace) -> Self {
        Self { lane: Lane::new(pace), now: Instant::now(), ids: 100, ended: Vec::new() }
    }

    fn push(&mut self, name: u32) -> u64 {
        let number = self.lane.push(name, 10, self.now + MS(120_000));
        self.lane.packed(number);
        number
    }

    fn dispatch(&mut self) -> Option<Dispatch> {
        let ids = &mut self.ids;
        self.lane.dispatch(self.now, || {
            *ids += 1;
            *ids
        })
    }

    /// All that may be sent now, as (batch's number, producer id, sequence).
    fn send(&mut self) -> Vec<(u64, i64, i32)> {
        let sent = std::iter::from_fn(|| self.dispatch());
        sent.map(|sent| (sent.number, sent.stamp.unwrap().id, sent.stamp.unwrap().sequence)).collect()
    }

    fn answer(&mut self, number: u64, copy: u64, verdict: Verdict) {
        self.lane.answered(self.now, number, copy, verdict, 1.0, &mut self.ended);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.lane.tick(self.now, &mut self.ended);
    }

    /// With a producer id that leaders know: batch 1 was stored.
    fn known() -> Self {
        let mut bench = Self::new(pace());
        bench.push(1);
        assert_eq!(bench.send(), [(1, 101, 0)]);
        bench.answer(1, 1, Verdict::Stored);
        bench.ended.clear();
        bench
    }
}

#[test]
fn a_leader_that_does_not_answer_is_asked_for_long_before_everything_is_sent_again() {
    let mut bench = Bench::known();
    bench.push(2);
    bench.push(3);
    assert_eq!(bench.send().len(), 2);
    assert!(!bench.lane.doubts(bench.now));
    bench.pass(SHORTEST_DOUBT);
    assert!(bench.lane.doubts(bench.now));
    assert!(!bench.lane.doubts(bench.now), "once");
    assert_eq!(bench.lane.next_deadline(), Some(bench.now + SHORTEST_DOUBT));
    bench.lane.leaderless(bench.now, 1.0);
    assert_eq!(bench.send(), [], "in a while");
    bench.pass(MS(10));
    assert_eq!(bench.send(), [(2, 101, 10), (3, 101, 20)], "under their old sequences");
    bench.lane.leader_changed(bench.now);
    assert_eq!(bench.send(), [(2, 101, 10), (3, 101, 20)]);
    bench.lane.leader_changed(bench.now);
    bench.answer(2, 2, Verdict::Stored);
    assert_eq!(bench.ended, [(2, End::Stored)], "the first copy was stored after all");
}

#[test]
fn what_might_be_stored_twice_is_not_taken_back() {
    let mut bench = Bench::new(Pace { is_idempotent: false, ..pace() });
    bench.push(1);
    assert!(bench.dispatch().is_some());
    bench.answer(1, 1, Verdict::Stored);
    bench.push(2);
    assert!(bench.dispatch().is_some());
    bench.pass(MS(400));
    assert!(!bench.lane.doubts(bench.now));
}

#[test]
fn the_first_batch_of_a_producer_id_goes_alone() {
    let mut bench = Bench::new(pace());
    for name in 1..=3 {
        bench.push(name);
    }
    assert_eq!(bench.send(), [(1, 101, 0)]);
    bench.answer(1, 1, Verdict::Stored);
    assert_eq!(bench.send(), [(2, 101, 10), (3, 101, 20)]);
}

#[test]
fn at_most_five_from_the_oldest_unsettled_on_are_in_flight() {
    let mut bench = Bench::known();
    for name in 2..=9 {
        bench.push(name);
    }
    assert_eq!(bench.send().len(), 5);
    // A leader may forget batch 2 once it has five later ones, so nothing is sent before batch 2 is settled.
    bench.answer(3, 3, Verdict::Stored);
    assert_eq!(bench.send(), []);
    bench.answer(2, 2, Verdict::Stored);
    assert_eq!(bench.send(), [(7, 101, 60), (8, 101, 70)]);
}

#[test]
fn what_is_out_of_order_shows_that_what_was_sent_before_is_lost() {
    let mut bench = Bench::known();
    for name in 2..=4 {
        bench.push(name);
    }
    assert_eq!(bench.send().len(), 3);
    // Batch 2 was lost with its leader, and the next one refuses those behind it.
    bench.answer(3, 3, Verdict::OutOfOrder);
    bench.answer(4, 4, Verdict::OutOfOrder);
    assert_eq!(bench.send(), [(2, 101, 10), (3, 101, 20), (4, 101, 30)]);
    // A late word of an old copy changes nothing.
    bench.answer(3, 3, Verdict::OutOfOrder);
    assert_eq!(bench.send(), []);
    (2..=4).for_each(|number| bench.answer(number, number + 3, Verdict::Stored));
    assert_eq!(bench.ended, [(2, End::Stored), (3, End::Stored), (4, End::Stored)]);
    assert!(bench.lane.is_empty());
}

#[test]
fn silence_is_answered_with_the_same_batches_and_more_and_more_patience() {
    let mut bench = Bench::known();
    for name in 2..=3 {
        bench.push(name);
    }
    let sent = bench.send();
    bench.pass(MS(199));
    assert_eq!(bench.send(), []);
    bench.pass(MS(1));
    assert_eq!(bench.send(), sent);
    bench.pass(MS(399));
    assert_eq!(bench.send(), []);
    bench.pass(MS(1));
    assert_eq!(bench.send(), sent);
    // An answer to any of the copies settles it.
    bench.answer(2, 2, Verdict::Stored);
    assert_eq!(bench.ended, [(2, End::Stored)]);
}

#[test]
fn a_refusal_that_may_pass_waits_and_five_for_one_reason_wait_once() {
    let mut bench = Bench::known();
    for name in 2..=6 {
        bench.push(name);
    }
    let sent = bench.send();
    (2..=6).for_each(|number| bench.answer(number, number, Verdict::NotStored));
    assert_eq!((bench.send(), bench.lane.next_deadline()), (vec![], Some(bench.now + MS(10))));
    bench.pass(MS(10));
    assert_eq!(bench.send(), sent);
    (2..=6).for_each(|number| bench.answer(number, number + 5, Verdict::NotStored));
    assert_eq!(bench.lane.next_deadline(), Some(bench.now + MS(20)));
}

#[test]
fn behind_a_batch_that_is_given_up_all_get_a_new_id_once_none_is_open() {
    let mut bench = Bench::known();
    for name in 2..=5 {
        bench.push(name);
    }
    assert_eq!(bench.send().len(), 4);
    bench.answer(2, 2, Verdict::Refused);
    assert_eq!(bench.ended, [(2, End::Refused)]);
    // Batches 3 to 5 were sent and may yet be stored under the old id: nobody gets a new one.
    assert_eq!(bench.send(), []);
    bench.answer(3, 3, Verdict::OutOfOrder);
    bench.answer(4, 4, Verdict::OutOfOrder);
    assert_eq!(bench.send(), []);
    bench.answer(5, 5, Verdict::OutOfOrder);
    bench.pass(MS(10));
    assert_eq!(bench.send(), [(3, 102, 0)]);
    bench.answer(3, 6, Verdict::Stored);
    assert_eq!(bench.send(), [(4, 102, 10), (5, 102, 20)]);
}

#[test]
fn an_expired_batch_says_whether_it_may_have_been_stored() {
    let mut bench = Bench::known();
    for name in 2..=3 {
        bench.push(name);
    }
    assert_eq!(bench.send().len(), 2);
    bench.answer(3, 3, Verdict::NotStored);
    bench.pass(MS(120_000));
    assert_eq!(bench.ended, [(2, End::Expired { open: true }), (3, End::Expired { open: false })]);
    bench.push(4);
    bench.pass(MS(1_000));
    assert_eq!(bench.send(), [(4, 102, 0)]);
}

#[test]
fn a_leader_that_lost_what_it_had_acknowledged_is_written_to_under_a_new_id() {
    let mut bench = Bench::known();
    bench.push(2);
    assert_eq!(bench.send(), [(2, 101, 10)]);
    bench.answer(2, 2, Verdict::OutOfOrder);
    bench.pass(MS(10));
    assert_eq!(bench.send(), [(2, 102, 0)]);
}

#[test]
fn without_idempotence_nothing_is_stamped_and_only_the_request_timeout_sends_again() {
    let mut bench = Bench::new(Pace { is_idempotent: false, longest_patience: MS(30_000), ..pace() });
    for name in 1..=2 {
        bench.push(name);
    }
    let sent: Vec<_> = std::iter::from_fn(|| bench.dispatch()).map(|sent| (sent.number, sent.stamp)).collect();
    assert_eq!(sent, [(1, None), (2, None)]);
    bench.answer(1, 1, Verdict::Stored);
    bench.pass(MS(29_999));
    assert_eq!(bench.dispatch(), None);
    bench.pass(MS(1));
    assert_eq!(bench.dispatch().map(|sent| sent.number), Some(2));
}

/// A partition's leaders, one after the other, as far as a producer sees them: one log, since acknowledged batches stay.
#[derive(Default)]
struct Leaders {
    log: Vec<u32>,
    /// Per producer id: the last five batches, as (first sequence, last sequence).
    producers: BTreeMap<i64, Vec<(i32, i32)>>,
}

impl Leaders {
    fn append(&mut self, name: u32, records: i32, stamp: ProducerStamp) -> Verdict {
        let last = stamp.sequence + records - 1;
        let known = self.producers.entry(stamp.id).or_default();
        if known.contains(&(stamp.sequence, last)) {
            return Verdict::Stored;
        }
        if known.last().is_some_and(|(_, last)| last + 1 != stamp.sequence) {
            return Verdict::OutOfOrder;
        }
        known.push((stamp.sequence, last));
        if known.len() > 5 {
            known.remove(0);
        }
        self.log.push(name);
        Verdict::Stored
    }
}

/// What is on its way to the leader, in order: name and dispatch.
type Way = VecDeque<(u32, Dispatch)>;

fn run(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut bench = Bench::new(pace());
    let (mut leaders, mut way, mut answers) = (Leaders::default(), Way::new(), Vec::new());
    let (mut names, mut is_there) = (0, true);
    for step in 0..4_000 {
        let heals = step >= 3_000;
        match random.random_range(0..100) {
            0..20 if !heals => {
                names += 1;
                bench.push(names);
            }
            // The leader takes what comes next, and its answer is on its way, or is lost.
            0..70 => {
                if let Some((name, sent)) = way.pop_front() {
                    let verdict = match is_there {
                        // Everything else is as if nobody had heard it.
                        true if heals || random.random_bool(0.97) => leaders.append(name, 10, sent.stamp.unwrap()),
                        true if random.random_bool(0.2) => Verdict::Refused,
                        true | false => Verdict::NotStored,
                    };
                    if heals || random.random_bool(0.95) {
                        answers.push((sent, verdict));
                    }
                }
            }
            70..72 if !heals => way.clear(),
            72..74 => is_there = heals || !is_there,
            74..76 => bench.pass(MS(random.random_range(1..300))),
            76 if !heals => bench.pass(MS(random.random_range(1..100_000))),
            77..80 => bench.pass(MS(1)),
            _ => {
                if !answers.is_empty() {
                    let (sent, verdict): (Dispatch, _) = answers.remove(random.random_range(0..answers.len()));
                    bench.answer(sent.number, sent.copy, verdict);
                }
            }
        }
        while let Some(sent) = bench.dispatch() {
            let name = *bench.lane.batch_mut(sent.number).unwrap();
            way.push_back((name, sent));
        }
    }
    let mut rounds = 0;
    while !bench.lane.is_empty() {
        rounds += 1;
        assert!(rounds < 1_000, "seed {seed}: it does not come to an end");
        bench.pass(MS(50));
        while let Some(sent) = bench.dispatch() {
            way.push_back((*bench.lane.batch_mut(sent.number).unwrap(), sent));
        }
        for (name, sent) in way.drain(..) {
            let verdict = leaders.append(name, 10, sent.stamp.unwrap());
            bench.answer(sent.number, sent.copy, verdict);
        }
    }
    let mut once = BTreeSet::new();
    assert!(leaders.log.iter().all(|name| once.insert(*name)), "seed {seed}: stored twice: {:?}", leaders.log);
    let of = |wanted: fn(End) -> bool| -> BTreeSet<u32> {
        bench.ended.iter().filter(|(_, end)| wanted(*end)).map(|(name, _)| *name).collect()
    };
    let stored = of(|end| end == End::Stored);
    assert!(stored.is_subset(&once), "seed {seed}: acknowledged and not there");
    let absent = of(|end| matches!(end, End::Expired { open: false }));
    assert!(absent.is_disjoint(&once), "seed {seed}: said not to be stored, and is");
    let acknowledged: Vec<u32> = leaders.log.iter().copied().filter(|name| stored.contains(name)).collect();
    assert!(acknowledged.is_sorted(), "seed {seed}: out of order: {acknowledged:?}");
    assert_eq!(bench.ended.len(), names as usize, "seed {seed}: each ends once");
}

#[test]
fn whatever_is_lost_acknowledged_batches_are_stored_once_and_in_order() {
    (0..300).for_each(run);
}

#[test]
fn a_batch_that_is_too_large_is_replaced_by_its_halves_under_the_sequences_of_their_records() {
    let mut bench = Bench::new(pace());
    bench.push(1);
    assert_eq!(bench.send(), [(1, 101, 0)]);
    bench.answer(1, 1, Verdict::Stored);
    (2..=4).for_each(|name| _ = bench.push(name));
    assert_eq!(bench.send(), [(2, 101, 10), (3, 101, 20), (4, 101, 30)]);
    bench.answer(2, 2, Verdict::TooLarge);
    assert!(bench.lane.is_too_large(2) && !bench.lane.is_too_large(3));
    assert_eq!(bench.send(), [], "nothing overtakes it");
    let numbers = bench.lane.split(2, |name| [(name * 10, 4), (name * 10 + 1, 6)]).unwrap();
    assert_eq!((numbers, bench.lane.len()), ([5, 6], 4));
    // They are packed first. What was sent behind them is refused meanwhile.
    bench.answer(3, 3, Verdict::OutOfOrder);
    bench.answer(4, 4, Verdict::OutOfOrder);
    assert_eq!(bench.send(), []);
    numbers.into_iter().for_each(|number| bench.lane.packed(number));
    assert_eq!(bench.send(), [(5, 101, 10), (6, 101, 14), (3, 101, 20), (4, 101, 30)]);
    // A half that is still too large is halved again; a late answer to what there was before says nothing.
    bench.answer(2, 2, Verdict::TooLarge);
    bench.answer(5, 5, Verdict::Stored);
    bench.answer(6, 6, Verdict::TooLarge);
    let numbers = bench.lane.split(6, |name| [(name * 10, 3), (name * 10 + 1, 3)]).unwrap();
    numbers.into_iter().for_each(|number| bench.lane.packed(number));
    bench.answer(3, 7, Verdict::OutOfOrder);
    bench.answer(4, 8, Verdict::OutOfOrder);
    assert_eq!(bench.send(), [(7, 101, 14), (8, 101, 17), (3, 101, 20), (4, 101, 30)]);
    for (number, copy) in [(7, 9), (8, 10), (3, 11), (4, 12)] {
        bench.answer(number, copy, Verdict::Stored);
    }
    let names: Vec<u32> = bench.ended.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, [1, 20, 210, 211, 3, 4]);
    assert!(bench.ended.iter().all(|(_, end)| *end == End::Stored) && bench.lane.is_empty());
}

#[test]
fn a_single_record_that_is_too_large_is_refused() {
    let mut bench = Bench::new(pace());
    let number = bench.lane.push(1, 1, bench.now + MS(120_000));
    bench.lane.packed(number);
    bench.send();
    bench.answer(1, 1, Verdict::TooLarge);
    assert_eq!(bench.ended, [(1, End::Refused)]);
}
