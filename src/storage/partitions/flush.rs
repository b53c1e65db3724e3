//! The thread that syncs: one commit at a time for all logs, and while it runs the next one gathers.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};

use tokio::sync::mpsc;

use crate::log::{Committer, SyncTicket};
use crate::storage::core::Place;
use crate::storage::replicas::LogEnd;

pub(super) struct Synced {
    pub(super) end: LogEnd,
    pub(super) ticket: SyncTicket,
    pub(super) result: io::Result<()>,
}

type Job = Vec<(LogEnd, SyncTicket)>;

pub(super) struct Flusher {
    jobs: SyncSender<Job>,
    gathering: BTreeMap<Place, (LogEnd, SyncTicket)>,
    is_running: bool,
}

impl Flusher {
    /// Starts the thread. What was synced comes on the receiver. It ends when the flusher is dropped.
    pub(super) fn start(committer: Committer) -> io::Result<(Self, mpsc::Receiver<Vec<Synced>>)> {
        let (jobs, work) = sync_channel::<Job>(1);
        let (done, synced) = mpsc::channel(1);
        let run = move || {
            while let Ok(job) = work.recv() {
                let tickets: Vec<_> = job.iter().map(|(_, ticket)| ticket).collect();
                let results = committer.commit(&tickets);
                let synced = job.into_iter().zip(results);
                let synced = synced.map(|((end, ticket), result)| Synced { end, ticket, result }).collect();
                if done.blocking_send(synced).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("dmq-sync".into()).spawn(run)?;
        Ok((Self { jobs, gathering: BTreeMap::new(), is_running: false }, synced))
    }

    pub(super) fn add(&mut self, end: LogEnd, ticket: SyncTicket) {
        // A later ticket of the same log covers the earlier one.
        self.gathering.insert(end.place, (end, ticket));
    }

    /// Begins the next commit unless one is under way.
    pub(super) fn begin(&mut self) {
        if !self.is_running && !self.gathering.is_empty() {
            let job = std::mem::take(&mut self.gathering).into_values().collect();
            // One is under way at most, and the channel holds one.
            self.is_running = self.jobs.try_send(job).is_ok();
        }
    }

    pub(super) fn ended(&mut self) {
        self.is_running = false;
    }
}
