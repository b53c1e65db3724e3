//! Following the history: every entry, in order, less than a millisecond after its append, across reconnects and restarts.
//!
//! The consumer behind it is thrown away at the first doubt and built anew from the next sequence needed, so that nothing is
//! missed or repeated. Whether the stream is still the one that was followed is asked of its leader whenever a consumer is
//! built, and every second or two besides: a stream that went back shows nothing by itself.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::log::{Head, History};
use super::push::{self, Keeper, Push, Start};

/// What happens to a history that is followed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FollowEvent {
    /// The next entry.
    Entry { sequence: u64, payload: Bytes },
    /// The entries before `first_available` that were not delivered yet are gone: purged. Take a snapshot. What follows
    /// begins there.
    Purged { first_available: u64 },
    /// The stream is missing (`head` is `None`), ends before what was delivered, or is another one of the same name. Said
    /// once for each head found. Following goes on once the stream reaches beyond what was delivered.
    Lost { head: Option<u64> },
}

/// How often the stream's leader is asked whether the history is still what it was. A loss is seen by the second time.
const CHECK_EVERY: Duration = Duration::from_millis(1_500);
/// Between two askings that must agree before a history is called lost.
const CONFIRM_AFTER: Duration = Duration::from_millis(100);

/// Follows the history from `from` (1 is its beginning), in a task that ends when the receiver is dropped. At most `capacity`
/// events wait in the channel; a receiver that is slower holds the server back. `generation` changes at each reconnect.
pub fn follow(
    history: History,
    from: u64,
    generation: watch::Receiver<u64>,
    capacity: usize,
) -> mpsc::Receiver<FollowEvent> {
    let (events, receiver) = mpsc::channel(capacity.max(1));
    let history = history.within(push::PATIENCE);
    let follower = Follower { history, next: from.max(1), created: None, said_lost: None, events };
    let (client, closed) = (follower.history.client().clone(), follower.events.clone());
    tokio::spawn(push::keep(follower, client, closed, generation));
    receiver
}

struct Follower {
    history: History,
    /// The next sequence needed; everything before it was delivered or said to be purged.
    next: u64,
    /// Which stream is followed, once one was found.
    created: Option<String>,
    /// The last loss reported, until the history is usable again.
    said_lost: Option<Option<u64>>,
    events: mpsc::Sender<FollowEvent>,
}

/// What a look at the stream's head showed.
enum Finding {
    Sound(Head),
    Lost(Option<Head>),
}

impl Keeper for Follower {
    async fn one_consumer(&mut self) {
        let Ok(found) = self.history.head().await else { return };
        let head = match self.examine(found, self.next) {
            Finding::Sound(head) => head,
            Finding::Lost(_) => return self.confirm_lost().await,
        };
        self.said_lost = None;
        self.created = Some(head.created);
        if head.first > self.next && !self.skip_to(head.first).await {
            return;
        }
        let config = self.history.config();
        let (stream, subject, timeout) = (&config.stream, &config.subject, config.timeout);
        let built = Push::create(self.history.client(), stream, subject, Start::At(self.next), timeout).await;
        let Ok(mut push) = built else { return };
        // The stream may have been purged or replaced between the look and the building: look again behind it.
        let mut asked_at = self.next;
        let mut check = Box::pin(look(self.history.clone(), Duration::ZERO));
        loop {
            tokio::select! {
                biased;
                delivery = push.next() => {
                    let Some(delivery) = delivery else { return };
                    if !self.deliver(delivery.sequence, delivery.payload).await {
                        return;
                    }
                }
                found = &mut check => {
                    if let Some(found) = found {
                        match self.examine(found, asked_at) {
                            // Purged beyond what was delivered, with nothing behind it that would show.
                            Finding::Sound(head) if head.first > self.next => return,
                            Finding::Sound(_) => {}
                            Finding::Lost(_) => return self.confirm_lost().await,
                        }
                    }
                    asked_at = self.next;
                    check = Box::pin(look(self.history.clone(), CHECK_EVERY));
                }
            }
        }
    }
}

impl Follower {
    /// False where the consumer delivers what it should not.
    async fn deliver(&mut self, sequence: u64, payload: Bytes) -> bool {
        if sequence < self.next {
            return false;
        }
        if sequence > self.next && !self.skip_to(sequence).await {
            return false;
        }
        let Ok(permit) = self.events.reserve().await else { return false };
        self.next = sequence + 1;
        permit.send(FollowEvent::Entry { sequence, payload });
        true
    }

    async fn skip_to(&mut self, first_available: u64) -> bool {
        let Ok(permit) = self.events.reserve().await else { return false };
        self.next = first_available;
        permit.send(FollowEvent::Purged { first_available });
        true
    }

    /// `asked_at` is what was needed next when the head was asked for: what was delivered since may be beyond it.
    fn examine(&self, found: Option<Head>, asked_at: u64) -> Finding {
        match found {
            Some(head) if self.is_same_stream(&head) && head.last + 1 >= asked_at => Finding::Sound(head),
            other => Finding::Lost(other),
        }
    }

    fn is_same_stream(&self, head: &Head) -> bool {
        self.created.as_ref().is_none_or(|created| *created == head.created)
    }

    /// Asks a second time, and reports what both times showed, once.
    async fn confirm_lost(&mut self) {
        tokio::time::sleep(CONFIRM_AFTER).await;
        let Ok(found) = self.history.head().await else { return };
        let Finding::Lost(found) = self.examine(found, self.next) else { return };
        let head = found.as_ref().map(|head| head.last);
        if self.said_lost != Some(head) {
            let Ok(permit) = self.events.reserve().await else { return };
            self.said_lost = Some(head);
            permit.send(FollowEvent::Lost { head });
        }
        // Another stream is followed from now on, once it reaches beyond what was delivered.
        if let Some(head) = found {
            self.created = Some(head.created);
        }
    }
}

/// The head after a while; `None` where it could not be had.
async fn look(history: History, after: Duration) -> Option<Option<Head>> {
    tokio::time::sleep(after).await;
    history.head().await.ok()
}
