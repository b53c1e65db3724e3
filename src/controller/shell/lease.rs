//! The worker that takes, renews and gives back the lease: one request at a time, in the order in which they were asked.

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::driver::Report;
use super::report;
use crate::bus::lease::{Lease, LeaseError, LeaseEvent};
use crate::controller::core::{Holder, Input, LeaseResult};
use crate::types::Monotonic;

pub(super) enum Ask {
    Take { revision: Option<u64>, holder: Holder, sent_at: Monotonic },
    Renew { revision: u64, holder: Holder, sent_at: Monotonic },
    Release { revision: u64 },
}

/// How many requests may wait. The core has one under way at a time, and may give up waiting for it.
pub(super) const WAITING: usize = 16;

/// Works until nobody asks any more.
pub(super) async fn work(
    lease: Lease,
    mut generation: watch::Receiver<u64>,
    mut asks: mpsc::Receiver<Ask>,
    reports: mpsc::Sender<Report>,
) {
    // What was last got: a renewal may succeed whose answer the core had given up on.
    let mut own = None;
    while let Some(ask) = asks.recv().await {
        generation.borrow_and_update();
        let (sent_at, asking) = match ask {
            Ask::Take { revision, holder, sent_at } => (sent_at, write(&lease, revision, holder)),
            Ask::Renew { revision, holder, sent_at } => (sent_at, write(&lease, Some(revision), holder)),
            Ask::Release { revision } => {
                let revision = own.take().map_or(revision, |own: u64| own.max(revision));
                // Where it does not arrive, the lease ends by itself.
                if let Err(error) = lease.delete(revision).await {
                    tracing::debug!(%error, "the lease was not given back");
                }
                continue;
            }
        };
        // What was under way when the connection broke is never answered.
        let result = tokio::select! {
            result = asking => result,
            _ = generation.changed() => LeaseResult::Unknown,
        };
        own = match &result {
            LeaseResult::Ours(revision) => Some(*revision),
            LeaseResult::Lost => None,
            LeaseResult::Unknown => own,
        };
        report(&reports, Input::LeaseAnswer { sent_at, result }).await;
    }
}

async fn write(lease: &Lease, revision: Option<u64>, holder: Holder) -> LeaseResult {
    let value = serde_json::to_vec(&holder).map(Bytes::from).unwrap_or_default();
    let put = |value: Bytes| async {
        match revision {
            Some(revision) => lease.update(value, revision).await,
            None => lease.create(value).await,
        }
    };
    let result = match put(value.clone()).await {
        Err(LeaseError::BucketMissing) => match lease.ensure().await {
            Ok(_) => lease.create(value).await,
            Err(error) => Err(LeaseError::Bus(error)),
        },
        other => other,
    };
    match result {
        Ok(revision) => LeaseResult::Ours(revision),
        Err(LeaseError::Held | LeaseError::Lost) => LeaseResult::Lost,
        Err(error @ (LeaseError::Unknown | LeaseError::BucketMissing | LeaseError::Bus(_))) => {
            tracing::debug!(%error, "the lease's bucket gave no answer");
            LeaseResult::Unknown
        }
    }
}

/// What the core is told of a change of the key.
pub(super) fn to_input(event: LeaseEvent) -> Input {
    match event {
        // Whatever else somebody wrote there, it is held.
        LeaseEvent::Held { revision, value } => {
            Input::LeaseHeld { holder: serde_json::from_slice(&value).ok(), revision }
        }
        LeaseEvent::Free { .. } => Input::LeaseFree,
    }
}
