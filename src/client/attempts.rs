//! One logical request, over as many attempts as its deadline has room for.
//!
//! An attempt that nobody answers for a while is joined by another one rather than given up: the answer may be on its way,
//! or whoever got the request is gone. Whichever is answered first decides, so every attempt must carry the same request.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;

const LONGEST_PATIENCE: Duration = Duration::from_secs(4);

/// How attempts follow each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// The wait before the next attempt where the last one came to nothing at once; doubled from one to the next.
    pub first_backoff: Duration,
    pub longest_backoff: Duration,
    /// How long an attempt stays alone without an answer; doubled for each that joins it.
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self { first_backoff: ms(5), longest_backoff: ms(100), patience: ms(1_000) }
    }
}

/// What an attempt came to.
pub(super) enum Attempt<T, E> {
    Decided(Result<T, E>),
    /// Nothing was decided, and this is why.
    Again(E),
}

/// Whether an attempt without an answer may be joined by another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Repeat {
    Freely,
    /// Only where the attempt is known to have come to nothing.
    OnlyAfterRefusal,
}

/// Runs attempts until one decides or the deadline is over; then the last reason for trying again is returned, where there
/// was any. `attempt` is given how much time there is.
pub(super) async fn run<T, E, F>(
    deadline: Instant,
    pace: Pace,
    repeat: Repeat,
    mut attempt: impl FnMut(Duration) -> F,
) -> Result<T, Option<E>>
where
    E: Clone,
    F: Future<Output = Attempt<T, E>>,
    T: Sized,
{
    let mut pending = FuturesUnordered::new();
    let mut why: Option<E> = None;
    let (mut backoff, mut patience) = (pace.first_backoff, pace.patience);
    let mut launch_at = Some(Instant::now());
    loop {
        let launch = async {
            match launch_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(outcome) = pending.next() => match outcome {
                Attempt::Decided(decided) => return decided.map_err(Some),
                Attempt::Again(reason) => {
                    why = Some(reason);
                    let next = Instant::now() + jittered(backoff);
                    backoff = (backoff * 2).min(pace.longest_backoff);
                    launch_at = Some(launch_at.map_or(next, |planned| planned.min(next)));
                }
            },
            () = tokio::time::sleep_until(deadline) => return Err(why),
            () = launch => {
                let now = Instant::now();
                if !pending.is_empty() {
                    patience = (patience * 2).min(LONGEST_PATIENCE);
                }
                pending.push(attempt(deadline.saturating_duration_since(now)));
                launch_at = match repeat {
                    Repeat::Freely => Some(now + patience),
                    Repeat::OnlyAfterRefusal => None,
                };
            }
        }
    }
}

/// Between half and all of it, so that clients that failed together don't come back together.
fn jittered(backoff: Duration) -> Duration {
    backoff.mul_f64(rand::random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn pace() -> Pace {
        Pace { first_backoff: MS(1), longest_backoff: MS(4), patience: MS(20) }
    }

    fn within(ms: u64) -> Instant {
        Instant::now() + MS(ms)
    }

    #[tokio::test]
    async fn a_refused_attempt_is_repeated_until_one_decides() {
        let count = Cell::new(0);
        let outcome: Result<u32, Option<&str>> = run(within(8_000), pace(), Repeat::Freely, |_| {
            count.set(count.get() + 1);
            let number = count.get();
            async move { if number < 4 { Attempt::Again("busy") } else { Attempt::Decided(Ok(number)) } }
        })
        .await;
        assert_eq!(outcome, Ok(4));
    }

    #[tokio::test]
    async fn attempts_end_with_the_deadline_and_say_why_the_last_one_failed() {
        let (start, deadline) = (Instant::now(), within(50));
        let fast = Pace { longest_backoff: Duration::from_micros(100), ..pace() };
        let outcome: Result<(), _> =
            run(deadline, fast, Repeat::Freely, async |_| Attempt::Again("nobody listens")).await;
        assert_eq!(outcome, Err(Some("nobody listens")));
        assert!(start.elapsed() >= MS(50));
    }

    #[tokio::test]
    async fn a_silent_attempt_is_joined_by_another_and_its_late_answer_still_counts() {
        let count = Cell::new(0);
        let (answer, answered) = tokio::sync::watch::channel(false);
        let outcome: Result<u32, Option<()>> = run(within(8_000), pace(), Repeat::Freely, |_| {
            count.set(count.get() + 1);
            let number = count.get();
            if number == 2 {
                answer.send_replace(true);
            }
            let mut answered = answered.clone();
            async move {
                if number > 1 {
                    std::future::pending::<()>().await;
                }
                // It fails where the sender is gone, which outlives this.
                let _ = answered.wait_for(|answered| *answered).await;
                Attempt::Decided(Ok(number))
            }
        })
        .await;
        assert_eq!((outcome, count.get()), (Ok(1), 2));
    }

    #[tokio::test]
    async fn what_must_not_happen_twice_is_not_sent_again_while_its_outcome_is_open() {
        let count = Cell::new(0);
        let outcome: Result<(), Option<()>> = run(within(100), pace(), Repeat::OnlyAfterRefusal, |_| {
            count.set(count.get() + 1);
            std::future::pending()
        })
        .await;
        assert_eq!((outcome, count.get()), (Err(None), 1));
    }
}
