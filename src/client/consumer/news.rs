//! Word of who begins to lead a partition. What was asked before went to somebody who may be gone without a word, so it is not
//! waited for any longer.
//!
//! Anybody may say so. Hence nothing else follows from it, it is heeded ever more rarely until an answer comes, and of what is heard
//! nothing is kept but that it was.

use std::time::Duration;

use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::Instant;

use super::fetcher::Shared;
use crate::bus::raw;
use crate::config::services::DataTarget;
use crate::log::TopicPartition;
use crate::wire::data::op;

/// How far apart two words are at first that are heeded. Each doubles it.
const APART: Duration = Duration::from_millis(5);

pub(super) struct News {
    /// Closed where the connection takes no subscription: then a new leader is found when the old one's answer is late.
    heard: watch::Receiver<()>,
    not_before: Option<Instant>,
    apart: Duration,
    longest_apart: Duration,
}

impl News {
    pub async fn subscribe(shared: &Shared, partition: &TopicPartition) -> Self {
        let target = DataTarget::Partition(partition.partition);
        let subject = shared.services.data_subject(op::LEADS, target, &partition.topic);
        let (hear, heard) = watch::channel(());
        match raw::subscribe_unconfirmed(&shared.client, &subject, shared.config.api_timeout).await {
            Ok(mut words) => {
                tokio::spawn(async move {
                    loop {
                        tokio::select! {
                            // Nobody wants to know any more.
                            () = hear.closed() => break,
                            word = words.next() => match word {
                                Some(_) => hear.send_modify(|()| {}),
                                None => break,
                            },
                        }
                    }
                });
            }
            Err(error) => tracing::debug!(subject, %error, "new leaders will not be heard of"),
        }
        Self { heard, not_before: None, apart: APART, longest_apart: shared.config.request_timeout }
    }

    /// An answer came: the next word is heeded at once.
    pub fn clear(&mut self) {
        (self.not_before, self.apart) = (None, APART);
    }

    /// Forgets what was heard so far: whoever is asked from now on has said so already.
    pub fn forget(&mut self) {
        self.heard.mark_unchanged();
    }

    /// What comes of it, or None where somebody begins to lead before that.
    pub async fn or<T>(&mut self, waited_for: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = waited_for => Some(done),
            () = self.next() => None,
        }
    }

    async fn next(&mut self) {
        if let Some(at) = self.not_before {
            tokio::time::sleep_until(at).await;
        }
        if self.heard.changed().await.is_err() {
            return std::future::pending().await;
        }
        self.not_before = Some(Instant::now() + self.apart);
        self.apart = (self.apart * 2).min(self.longest_apart);
    }
}
