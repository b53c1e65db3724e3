//! Running seeds: many at once, and one again in words.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Mutex;
use std::time::Instant;

use super::invariants::Violation;
use super::report::Seen;
use super::world::World;

/// What a seed came to.
struct Outcome {
    events: u64,
    seen: Seen,
    violation: Option<Violation>,
}

fn run(world: &mut World) -> Outcome {
    while world.step() && !world.checker.is_done() {}
    Outcome { events: world.events, seen: world.seen.clone(), violation: world.violation.clone() }
}

fn run_seed(seed: u64) -> Outcome {
    let mut world = World::new(seed, false);
    let finished = catch_unwind(AssertUnwindSafe(|| run(&mut world)));
    finished.unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "it panicked".into());
        let violation = Some(Violation { invariant: 0, words });
        Outcome { events: world.events, seen: world.seen.clone(), violation }
    })
}

/// The same seed again, with its last events in words.
fn tell(seed: u64) -> String {
    let mut world = World::new(seed, true);
    let finished = catch_unwind(AssertUnwindSafe(|| run(&mut world)));
    let broken = match finished {
        Ok(outcome) => outcome.violation,
        Err(_) => Some(Violation { invariant: 0, words: "it panicked".into() }),
    };
    let story = world.journal.text();
    match broken {
        Some(Violation { invariant, words }) => {
            format!("{story}\nseed {seed} breaks invariant {invariant} after {} events: {words}\nmake simulate SEED={seed}", world.events)
        }
        None => format!("{story}\nseed {seed} breaks nothing in {} events", world.events),
    }
}

#[allow(dead_code)]
pub fn dev() {
    if let Ok(seed) = std::env::var("SEED") {
        eprintln!("{}", tell(seed.parse().unwrap()));
        return;
    }
    let first: u64 = std::env::var("FIRST").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let count: u64 = std::env::var("COUNT").ok().and_then(|s| s.parse().ok()).unwrap_or(20);
    let next = AtomicU64::new(first);
    let stop = AtomicBool::new(false);
    let all = Mutex::new((Seen::default(), 0u64, std::collections::BTreeMap::<u32, Vec<(u64, String)>>::new()));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let outcome = run_seed(seed);
                    let mut all = all.lock().unwrap();
                    all.0.add(&outcome.seen);
                    all.1 += outcome.events;
                    if let Some(violation) = outcome.violation {
                        all.2.entry(violation.invariant).or_default().push((seed, violation.words));
                    }
                }
            });
        }
    });
    let all = all.into_inner().unwrap();
    eprintln!("{:#?}", all.0.faults);
    eprintln!("{:#?}", all.0.events);
    eprintln!("{} events, {:.0}/s", all.1, all.1 as f64 / began.elapsed().as_secs_f64());
    for (invariant, broken) in &all.2 {
        eprintln!("invariant {invariant}: {} seeds", broken.len());
        for (seed, words) in broken.iter().take(6) {
            eprintln!("   {seed}: {}", words.chars().take(300).collect::<String>());
        }
    }
}
