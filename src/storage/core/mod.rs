//! A storage node's decisions, without I/O: an input and the time go in, effects come out.
//!
//! [`StorageCore::handle`] takes the input into the state, and then looks at what the state wants done: to register, to send
//! a heartbeat, to write, to fetch, to ask for in-sync replicas, to end. So whatever became possible happens, however it did.
//!
//! Nothing that was not applied is believed: versions, epochs and pairings in a message change nothing by themselves.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod api;
mod assignments;
mod backoff;
mod drain;
mod fetch;
mod isr;
mod leads;
mod persist;
mod push;
mod registration;
mod session;
#[cfg(test)]
mod tests;
mod vet;

use std::collections::BTreeMap;
use std::time::Duration;

pub use api::{
    Applied, Assignment, Call, CallError, Effect, FetchReply, Identity, InSyncOutcome, InSyncWish, Input, Leadership,
    Level, Member, Peer, Place, Settings, Token, Unassigned,
};

use crate::metadata::History;
use crate::types::{ControllerEpoch, ControllerId, Monotonic, NodeEpoch, Position};
use crate::wire::{ErrorBody, WireError, WireMessage, admin};

/// How long a complaint of a kind about a sender is not repeated.
const QUIET: Duration = Duration::from_secs(60);

/// One storage node.
pub struct StorageCore {
    identity: Identity,
    settings: Settings,
    jitter: backoff::Jitter,
    calls: u64,
    now: Monotonic,
    /// What is applied, which may be ahead of the disk.
    history: History,
    disk: persist::OnDisk,
    intake: persist::Intake,
    session: session::Session,
    registration: registration::Registration,
    fetch: fetch::Fetch,
    leads: leads::Leads,
    assignments: assignments::Assignments,
    isr: isr::Isr,
    drain: Option<drain::Drain>,
    said_may_lead: bool,
    complaints: Complaints,
    /// Messages from outside that were refused.
    refused: u64,
    ended: bool,
}

impl StorageCore {
    /// `history` and `controller_epoch` (the highest ever stored) are what this process's disk has.
    pub fn new(identity: Identity, settings: Settings, history: History, controller_epoch: ControllerEpoch) -> Self {
        let controller_epoch = controller_epoch.max(history.controller_epoch());
        let disk = persist::OnDisk { position: history.position(), controller_epoch };
        let mut core = Self {
            jitter: backoff::Jitter(settings.jitter_seed),
            calls: 0,
            now: Monotonic(0),
            disk,
            intake: persist::Intake::default(),
            session: session::Session::default(),
            registration: registration::Registration::default(),
            fetch: fetch::Fetch::default(),
            leads: leads::Leads::default(),
            assignments: assignments::Assignments::default(),
            isr: isr::Isr::default(),
            drain: None,
            said_may_lead: false,
            complaints: Complaints::default(),
            refused: 0,
            ended: false,
            identity,
            settings,
            history,
        };
        core.reread();
        core
    }

    /// Takes one input. Effects are appended to `out`, to be carried out in their order.
    pub fn handle(&mut self, now: Monotonic, input: Input, out: &mut Vec<Effect>) {
        if self.ended {
            return;
        }
        self.now = now;
        let begin = out.len();
        // A lease that is over is over before anything else is looked at.
        self.tell_may_lead(now, out);
        self.take(now, input, out);
        self.settle(now, out);
        if self.ended {
            let exit = out[begin..].iter().position(|effect| matches!(effect, Effect::Exit { .. }));
            out.truncate(exit.map_or(out.len(), |exit| begin + exit + 1));
        }
    }

    fn take(&mut self, now: Monotonic, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::MessageLimit(bytes) => self.settings.request_max_bytes = bytes,
            Input::Connected(connection) => self.connected(now, connection, out),
            Input::Disconnected => self.disconnected(now, out),
            Input::Tick => {}
            Input::Subscribed(storage) => self.subscribed(now, storage),
            Input::RegisterAnswer { call, result } => self.register_answer(now, call, result, out),
            Input::HeartbeatAnswer { sequence, result } => self.heartbeat_answer(now, sequence, result, out),
            Input::Push { payload, token } => self.push(now, &payload, token, out),
            Input::FetchAnswer { call, result } => self.fetch_answer(now, call, result, out),
            Input::IsrAnswer { call, result } => self.isr_answer(now, call, result, out),
            Input::Persisted(position) => self.persisted_to(position, out),
            Input::PersistFailed { words, fatal } => self.persist_failed(now, words, fatal, out),
            Input::SnapshotInstalled { image, position } => self.snapshot_installed(*image, position, out),
            Input::SnapshotUnusable { words } => self.snapshot_unusable(now, &words, out),
            Input::InSyncWishes(wishes) => self.in_sync_wishes(wishes),
            Input::Health(health) => self.session.health = health,
            Input::ServicesChanged => self.services_changed(out),
            Input::Shutdown => self.shutdown(now, out),
        }
    }

    fn settle(&mut self, now: Monotonic, out: &mut Vec<Effect>) {
        if self.ended {
            return;
        }
        self.step_drain(now, out);
        self.announce_gained(out);
        self.announce_assignments(out);
        self.tell_may_lead(now, out);
        self.step_registration(now, out);
        self.hasten_lease(now);
        self.step_heartbeat(now, out);
        self.step_disk(now, out);
        self.step_fetch(now, out);
        self.step_isr(now, out);
    }

    /// When an [`Input::Tick`] is needed at the latest.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        if self.ended {
            return None;
        }
        let once = [self.registration.deadline(), self.intake.deadline(), self.drain.as_ref().map(|drain| drain.until)];
        let all = once.into_iter().flatten();
        let all = all.chain(self.session.deadlines()).chain(self.fetch.deadlines(&self.settings));
        // What is over was looked at in the last call, and waits for something else than time.
        all.chain(self.isr.deadlines()).filter(|deadline| *deadline > self.now).min()
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What is applied in memory. It may be ahead of the disk.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// What is on this node's disk: what it reports.
    pub fn persisted(&self) -> Position {
        self.disk.position
    }

    /// Whether nothing applied waits for the disk.
    pub fn is_saved(&self) -> bool {
        self.intake.is_idle()
    }

    /// The highest controller epoch on this node's disk: what it reports.
    pub fn controller_epoch(&self) -> ControllerEpoch {
        self.disk.controller_epoch
    }

    /// The epoch of this incarnation, once it is registered.
    pub fn node_epoch(&self) -> Option<NodeEpoch> {
        self.registration.node_epoch
    }

    /// What the node leads by the metadata on its disk, whether or not it [may](Self::may_lead).
    pub fn leads(&self) -> impl Iterator<Item = Leadership> + '_ {
        self.leads.iter()
    }

    fn call(&mut self) -> Call {
        self.calls += 1;
        Call(self.calls)
    }

    fn exit(&mut self, words: String, code: u8, out: &mut Vec<Effect>) {
        if self.ended {
            return;
        }
        self.ended = true;
        if std::mem::take(&mut self.said_may_lead) {
            out.push(Effect::MayLead(false));
        }
        out.push(Effect::Exit { words, code });
    }

    fn log(&self, level: Level, out: &mut Vec<Effect>, words: impl FnOnce() -> String) {
        out.push(Effect::Log { level, words: words() });
    }

    /// Says it unless the same kind of thing was said within the last minute.
    fn complain(
        &mut self,
        now: Monotonic,
        kind: &'static str,
        level: Level,
        out: &mut Vec<Effect>,
        words: impl FnOnce() -> String,
    ) {
        if self.complaints.is_news(now, kind, None) {
            self.log(level, out, words);
        }
    }
}

/// When each kind of complaint, about each sender, was last made.
#[derive(Default)]
struct Complaints(BTreeMap<(&'static str, Option<ControllerId>), Monotonic>);

impl Complaints {
    /// Senders can be made up, so that what is kept about them has a bound.
    const KEPT: usize = 256;

    fn is_news(&mut self, now: Monotonic, kind: &'static str, of: Option<ControllerId>) -> bool {
        if self.0.len() >= Self::KEPT {
            self.0.retain(|_, at| now.since(*at) < QUIET);
        }
        let full = self.0.len() >= Self::KEPT;
        match self.0.get_mut(&(kind, of)) {
            Some(at) if now.since(*at) < QUIET => false,
            Some(at) => {
                *at = now;
                true
            }
            None if full => false,
            None => {
                self.0.insert((kind, of), now);
                true
            }
        }
    }
}

fn decode<T: WireMessage>(payload: &[u8]) -> Result<T, WireError> {
    T::decode(payload)
}

/// The answer to an admin request, or the error that stands in its place.
fn answer_of<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, WireError> {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(refused) => Err(refused.error),
        Err(_) => admin::decode(body),
    }
}
