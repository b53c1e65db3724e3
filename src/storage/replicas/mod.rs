//! The replicas of one storage node: which of them lead and which follow, what followers are sent, and who is acknowledged.
//!
//! No async, no clock, no bus: an input and the time go in, effects come out. Logs are written through [`Log`], whose real
//! implementation writes files; only their flushing is an effect, so that one flush serves many partitions.
//!
//! Split by concern: `assign` takes what the metadata says, `follow` polls leaders, `lead` answers followers, `clients`
//! appends and acknowledges, `in_sync` asks the controller, `throttle` holds back who catches up.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod api;
mod assign;
mod clients;
mod faults;
mod follow;
mod in_sync;
mod lead;
#[cfg(test)]
mod tests;
mod throttle;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

pub use api::{Acks, Append, AppendError, Effect, Input, Log, LogEnd, Read, Settings};
pub use faults::{Faults, Retry, Standing, TakeUp, declines_to, resignation};

use crate::replication::{Follower, InSync, Leader};
use crate::storage::core::{Assignment, Call, Member, Peer, Place, Token};
use crate::types::{LeaderEpoch, Monotonic, Offset, StorageId};
use follow::Link;
use lead::Session;
use throttle::Throttle;

/// Who waits for a client's acknowledgement, and the first offset of its records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Waiter {
    token: Token,
    first: Offset,
}

#[derive(Debug)]
enum Role {
    Leads(Box<Leader<Waiter>>),
    Follows(Follower),
    /// There is no leader, or it is not known who.
    Waits,
}

#[derive(Debug)]
struct Replica<L> {
    log: L,
    flushed: Offset,
    /// How often the log was cut off.
    generation: u64,
    high_watermark: Offset,
    assignment: Assignment,
    role: Role,
    /// With `acks=1`: what waits for this disk alone.
    local: Vec<(Offset, Waiter)>,
}

/// The replicas' engine of one node.
pub struct Replicas<L: Log> {
    settings: Settings,
    member: Option<Member>,
    peers: BTreeMap<StorageId, Peer>,
    may_lead: bool,
    held: BTreeMap<Place, Replica<L>>,
    /// To those whom this node follows.
    links: BTreeMap<StorageId, Link>,
    /// Of those who follow this node.
    sessions: BTreeMap<StorageId, Session>,
    throttle: Throttle,
    /// How often each replica's log was opened anew in this incarnation: it may have lost what it had said that it has.
    attempts: BTreeMap<Place, u32>,
    /// Of leaderships that ended while it was open whether somebody had been admitted: it still is, where this node leads again in the
    /// same leader epoch, as it may after its log failed.
    open_admissions: BTreeMap<Place, (LeaderEpoch, InSync)>,
    /// Written, and no flush asked for yet.
    unflushed: BTreeSet<Place>,
    /// Led, and to be looked at: somebody may join or leave the in-sync replicas.
    asks: BTreeSet<Place>,
    /// Led, and some follower lacks something.
    behind: BTreeSet<Place>,
    /// The high watermark, or who leads, may have changed since it was last asked.
    moved: BTreeSet<Place>,
    lag_check_at: Monotonic,
    next_call: u64,
    /// As a follower, with any leader.
    sessions_begun: u64,
    /// Polls of no follower, since that was last asked.
    refused: u64,
}

/// How a partition stands that is led here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Led {
    pub leader_epoch: LeaderEpoch,
    /// Up to where consumers may read. None: that is not known yet.
    pub visible: Option<Offset>,
}

impl<L: Log> Replicas<L> {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            member: None,
            peers: BTreeMap::new(),
            may_lead: false,
            held: BTreeMap::new(),
            links: BTreeMap::new(),
            sessions: BTreeMap::new(),
            throttle: Throttle::default(),
            attempts: BTreeMap::new(),
            open_admissions: BTreeMap::new(),
            unflushed: BTreeSet::new(),
            asks: BTreeSet::new(),
            behind: BTreeSet::new(),
            moved: BTreeSet::new(),
            lag_check_at: Monotonic(0),
            next_call: 0,
            sessions_begun: 0,
            refused: 0,
        }
    }

    /// The server takes messages of so many bytes.
    pub fn limit_messages(&mut self, bytes: usize) {
        self.settings.message_max_bytes = bytes;
    }

    /// Takes inputs in the order in which they came. Many may be given before [`Self::step`], which sees to what they led to.
    pub fn take(&mut self, now: Monotonic, input: Input<L>, out: &mut Vec<Effect<L::Error>>) {
        match input {
            Input::Member(member) => self.set_member(member),
            Input::Peers(peers) => self.set_peers(peers),
            Input::Assigned { place, assignment, log } => self.assign(now, place, assignment, log, out),
            Input::Unassigned(place) => self.unassign(place, out),
            Input::Declined { place, leader } => self.decline(now, place, leader),
            Input::MayLead(may) => self.set_may_lead(may, out),
            Input::Disconnected => self.links.values_mut().for_each(|link| link.reset(now)),
            Input::Poll { payload, token } => self.poll(now, &payload, token, out),
            Input::PollAnswer { call, result } => self.poll_answer(now, call, result, out),
            Input::Append(append) => self.append(now, append, out),
            Input::Flushed(logs) => self.flushed(now, logs, out),
            Input::InSyncAnswer(outcome) => self.in_sync_answer(outcome),
            Input::Tick => {}
        }
    }

    /// Does what the inputs since the last step call for: one flush, one request to the controller, polls and answers.
    pub fn step(&mut self, now: Monotonic, out: &mut Vec<Effect<L::Error>>) {
        self.step_flush(out);
        self.step_sessions(now, out);
        self.step_links(now, out);
        self.step_in_sync(now, out);
    }

    /// When [`Self::step`] is needed although nothing came in.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        let lag = (!self.behind.is_empty()).then_some(self.lag_check_at);
        let sessions = self.sessions.values().filter_map(Session::deadline);
        let links = self.links.values().filter_map(Link::deadline);
        sessions.chain(links).chain(lag).chain(self.throttle.deadline()).min()
    }

    /// None where it is not led here, or nothing may be served.
    pub fn led(&self, place: Place) -> Option<Led> {
        match &self.held.get(&place)?.role {
            Role::Leads(leader) if self.may_lead => {
                Some(Led { leader_epoch: leader.leader_epoch(), visible: leader.visible() })
            }
            Role::Leads(_) | Role::Follows(_) | Role::Waits => None,
        }
    }

    /// The partitions whose high watermark, or leader, may have changed since this was last called.
    pub fn take_moved(&mut self) -> BTreeSet<Place> {
        std::mem::take(&mut self.moved)
    }

    /// How many polls came from another cluster, or no registered incarnation, since this was last called.
    pub fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }

    /// The replicas that are held, with the end of what is committed as far as this node knows.
    pub fn held(&self) -> impl Iterator<Item = (Place, &L, Offset)> {
        self.held.iter().map(|(place, replica)| (*place, &replica.log, replica.high_watermark))
    }

    /// A replica's log, for what leaves its end and its epochs alone: its configuration, flushing, deleting old records.
    pub fn log_mut(&mut self, place: Place) -> Option<&mut L> {
        Some(&mut self.held.get_mut(&place)?.log)
    }

    /// All of them, as [`Self::log_mut`] gives one.
    pub fn logs_mut(&mut self) -> impl Iterator<Item = &mut L> {
        self.held.values_mut().map(|replica| &mut replica.log)
    }

    /// The first replica behind this one, or the very first, and the end of what is committed as far as this node knows.
    pub fn next_held(&self, behind: Option<Place>) -> Option<(Place, Offset)> {
        let next = behind.and_then(|place| self.held.range((Bound::Excluded(place), Bound::Unbounded)).next());
        let (place, replica) = next.or_else(|| self.held.first_key_value())?;
        Some((*place, replica.high_watermark))
    }

    /// The end of what is committed, as far as this node knows.
    pub fn high_watermark(&self, place: Place) -> Option<Offset> {
        Some(self.held.get(&place)?.high_watermark)
    }

    pub fn log(&self, place: Place) -> Option<&L> {
        Some(&self.held.get(&place)?.log)
    }

    /// All that it knows of a replica, for who looks for a fault.
    #[cfg(test)]
    pub(crate) fn story(&self, place: Place) -> String
    where
        L: std::fmt::Debug,
    {
        let links: Vec<_> = self.links.iter().filter(|(_, link)| link.concerns(place)).collect();
        let sessions: Vec<_> = self.sessions.iter().filter(|(_, session)| session.concerns(place)).collect();
        let waits = (self.asks.contains(&place), self.behind.contains(&place), self.unflushed.contains(&place));
        let held = self
            .held
            .get(&place)
            .map(|held| (held.log.start(), held.log.end(), held.flushed, &held.assignment, &held.role));
        format!("{held:?} {links:?} {sessions:?} {waits:?}")
    }

    fn call(&mut self) -> Call {
        self.next_call += 1;
        Call(self.next_call)
    }

    fn step_flush(&mut self, out: &mut Vec<Effect<L::Error>>) {
        let places = std::mem::take(&mut self.unflushed);
        let end = |place| {
            let replica = self.held.get(&place)?;
            Some(LogEnd { place, end: replica.log.end(), generation: replica.generation })
        };
        let logs: Vec<_> = places.into_iter().filter_map(end).collect();
        if !logs.is_empty() {
            out.push(Effect::Flush(logs));
        }
    }

    fn flushed(&mut self, now: Monotonic, logs: Vec<LogEnd>, out: &mut Vec<Effect<L::Error>>) {
        for LogEnd { place, end, generation } in logs {
            let held = self.held.get_mut(&place);
            let Some(replica) = held.filter(|replica| replica.generation == generation) else { continue };
            replica.flushed = replica.flushed.max(end);
            match &mut replica.role {
                Role::Leads(leader) => {
                    leader.flushed(replica.flushed);
                    self.acknowledge(place, out);
                }
                Role::Follows(follower) => {
                    let leader = follower.leader();
                    if let Some(link) = self.links.get_mut(&leader) {
                        link.flushed(now, place, replica.flushed >= replica.log.end());
                    }
                }
                Role::Waits => {}
            }
        }
    }

    /// By how many records the follower lags most that lags most, of what is led here.
    pub fn largest_lag(&self) -> u64 {
        let lag = |place: &Place| match &self.held.get(place)?.role {
            Role::Leads(leader) => leader.largest_lag(),
            Role::Follows(_) | Role::Waits => None,
        };
        self.behind.iter().filter_map(lag).max().unwrap_or(0)
    }

    /// The log failed: nobody may count on it. It stays here until the replica is given up.
    fn fail(&mut self, place: Place, error: L::Error, out: &mut Vec<Effect<L::Error>>) {
        if let Some(mut replica) = self.held.remove(&place) {
            self.leave_role(place, &mut replica, out);
            self.unflushed.remove(&place);
            self.held.insert(place, replica);
        }
        out.push(Effect::Failed { place, error });
    }
}
