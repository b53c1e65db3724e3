//! Running seeds: thousands in the tests, one again in words, or on and on from `make simulate`.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::invariants::Violation;
use super::report::Seen;
use super::sabotage::{Bug, plant};
use super::world::World;

/// How many seeds the tests run, beginning with 0.
const SEEDS: u64 = 5_000;
/// Within how many seeds a planted bug is found.
const BUG_SEEDS: u64 = 1_000;

/// What a seed came to.
struct Outcome {
    seed: u64,
    events: u64,
    seen: Seen,
    violation: Option<Violation>,
}

fn run(world: &mut World) -> Outcome {
    let finished = catch_unwind(AssertUnwindSafe(|| while world.step() && !world.checker.is_done() {}));
    let panicked = finished.err().map(|panic| {
        let literal = panic.downcast_ref::<&str>().map(ToString::to_string);
        let words = panic.downcast_ref::<String>().cloned().or(literal).unwrap_or_default();
        Violation { invariant: 0, words: format!("a panic: {words}") }
    });
    let violation = panicked.or(world.violation.take());
    Outcome { seed: world.seed, events: world.events, seen: std::mem::take(&mut world.seen), violation }
}

/// The same seed again, with its last events in words.
fn tell(seed: u64) -> (String, bool) {
    let mut world = World::new(seed, true);
    let outcome = run(&mut world);
    let story = world.journal.text();
    match outcome.violation {
        Some(Violation { invariant, words }) => {
            let events = outcome.events;
            let verdict = format!("seed {seed} breaks invariant {invariant} with event {events}: {words}");
            (format!("{story}\n{verdict}\nRepeat it with: make simulate SEED={seed}"), true)
        }
        None => (format!("{story}\nseed {seed} breaks nothing in {} events", outcome.events), false),
    }
}

/// Runs seeds from `first` on, on every core, until one breaks a rule or `goes_on` says that it is enough.
fn run_many(first: u64, goes_on: &(dyn Fn(u64) -> bool + Sync), each: &(dyn Fn(&Outcome) + Sync)) -> Option<u64> {
    let (next, broken) = (AtomicU64::new(first), Mutex::new(None::<u64>));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            // The lowest that is broken is the one to tell of, so those before it are finished.
            if !goes_on(seed) || broken.lock().expect("nothing panics in it").is_some_and(|least| least < seed) {
                return;
            }
            let outcome = run(&mut World::new(seed, false));
            each(&outcome);
            if outcome.violation.is_some() {
                let mut broken = broken.lock().expect("nothing panics in it");
                *broken = Some(broken.map_or(outcome.seed, |least| least.min(outcome.seed)));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    broken.into_inner().expect("nothing panics in it")
}

#[test]
fn every_seed_keeps_every_invariant_and_everything_that_can_happen_does() {
    let seen = Mutex::new((Seen::default(), 0));
    let add = |outcome: &Outcome| {
        let mut seen = seen.lock().unwrap();
        seen.0.add(&outcome.seen);
        seen.1 += outcome.events;
        let is_long = outcome.events >= super::faults::EVENTS || outcome.violation.is_some();
        assert!(is_long, "seed {} ends after {} events", outcome.seed, outcome.events);
    };
    if let Some(seed) = run_many(0, &|seed| seed < SEEDS, &add) {
        panic!("{}", tell(seed).0);
    }
    let (seen, events) = seen.into_inner().unwrap();
    println!("{SEEDS} seeds, {events} events, {seen:#?}");
    assert_eq!(seen.missing(), Vec::<&str>::new(), "never happened in {SEEDS} seeds");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [3, 77] {
        let (one, two) = (tell(seed).0, tell(seed).0);
        assert_eq!(one, two);
    }
}

/// Runs seeds with a bug planted until this invariant is the one that is broken.
fn catches(invariant: u32, bug: Bug) {
    plant(Some(bug));
    let mut others = BTreeMap::<u32, u64>::new();
    for seed in 0..BUG_SEEDS {
        match run(&mut World::new(seed, false)).violation {
            Some(found) if found.invariant == invariant => {
                plant(None);
                println!("{bug:?} is caught with seed {seed} by invariant {invariant}: {}", found.words);
                return;
            }
            Some(other) => *others.entry(other.invariant).or_default() += 1,
            None => {}
        }
    }
    plant(None);
    panic!("{bug:?} breaks invariant {invariant} in none of {BUG_SEEDS} seeds, and others in {others:?}");
}

const PLANTED: [(u32, Bug); 32] = [
    (1, Bug::StateOfItsOwn),
    (2, Bug::AcknowledgedEarly),
    (3, Bug::EndlessLease),
    (4, Bug::SameLeaderEpoch),
    (5, Bug::FencedLeads),
    (6, Bug::Deposed),
    (7, Bug::RetriedAnew),
    (8, Bug::ForgetfulSnapshot),
    (10, Bug::OldIncarnation),
    (11, Bug::Impatient),
    (11, Bug::Deaf),
    (12, Bug::EarlyShutdown),
    (14, Bug::AnyonesPush),
    (16, Bug::FencedForGood),
    (3, Bug::LeaselessAck),
    (9, Bug::UnflushedCounts),
    (9, Bug::ShownEarly),
    (9, Bug::DivergenceUnseen),
    (9, Bug::AloneIsEnough),
    (9, Bug::JoinsEarly),
    (9, Bug::AdmissionForgotten),
    (9, Bug::RetryAtOnce),
    (9, Bug::UncleanAnyway),
    (9, Bug::EmptyDiskTrusted),
    (9, Bug::FailedSyncTrusted),
    (9, Bug::FailedAppendStored),
    (15, Bug::CutsTooMuch),
    (15, Bug::CutsBeforeItLeft),
    (9, Bug::OtherTopicTrusted),
    (9, Bug::SetBackTrusted),
    (3, Bug::IdleLease),
    (4, Bug::RestoredTooLow),
];

#[test]
fn each_invariant_catches_the_bug_that_breaks_it() {
    // One of them, for who works on it.
    let only = std::env::var("BUG").ok();
    for (invariant, bug) in PLANTED {
        if only.as_ref().is_none_or(|only| *only == format!("{bug:?}")) {
            catches(invariant, bug);
        }
    }
}

/// `make simulate`: one seed again, or seeds from a random one on until one breaks a rule.
#[test]
#[ignore = "it ends only with a failure"]
fn on_and_on() {
    if let Some(seed) = std::env::var("SEED").ok().filter(|seed| !seed.is_empty()) {
        let (story, is_broken) = tell(seed.parse().expect("SEED is a number"));
        assert!(!is_broken, "{story}");
        return println!("{story}");
    }
    let (first, began) = (rand::random::<u64>() >> 20, Instant::now());
    let done = Mutex::new((0_u64, 0_u64));
    let each = |outcome: &Outcome| {
        let mut done = done.lock().unwrap();
        *done = (done.0 + 1, done.1 + outcome.events);
        if done.0.is_multiple_of(500) {
            let rate = done.1 as f64 / began.elapsed().as_secs_f64();
            println!("{} seeds from {first} on, {} events, {rate:.0} a second", done.0, done.1);
        }
    };
    if let Some(seed) = run_many(first, &|_| true, &each) {
        panic!("{}", tell(seed).0);
    }
}
