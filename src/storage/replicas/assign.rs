//! What the metadata says of this node's replicas, and what a change of leader does to them.

use std::collections::BTreeMap;

use super::follow::Link;
use super::{AppendError, Effect, Log, Replica, Replicas, Role, Settings};
use crate::replication::{Follower, InSync, Leader, Settings as LeaderSettings};
use crate::storage::core::{Assignment, Member, Peer, Place};
use crate::types::{Monotonic, NodeEpoch, Offset, StorageId};

impl<L: Log> Replicas<L> {
    pub(super) fn set_member(&mut self, member: Member) {
        self.member = Some(member);
    }

    pub(super) fn set_peers(&mut self, peers: BTreeMap<StorageId, Peer>) {
        self.peers = peers;
        self.asks.extend(self.behind.iter().copied());
    }

    pub(super) fn set_may_lead(&mut self, may: bool, out: &mut Vec<Effect<L::Error>>) {
        self.may_lead = may;
        if may {
            let led: Vec<_> = self.held.iter().filter(|(_, held)| matches!(held.role, Role::Leads(_))).collect();
            let led: Vec<_> = led.into_iter().map(|(place, _)| *place).collect();
            for place in led {
                self.acknowledge(place, out);
            }
        } else {
            self.close_sessions(out);
        }
    }

    pub(super) fn assign(
        &mut self,
        now: Monotonic,
        place: Place,
        assignment: Assignment,
        log: Option<L>,
        out: &mut Vec<Effect<L::Error>>,
    ) {
        let Some(me) = self.member.map(|member| member.storage) else { return };
        match self.held.remove(&place) {
            Some(replica) => self.reassign(now, me, place, replica, assignment, out),
            None => {
                let Some(log) = log else { return };
                self.decline_no_more(place);
                let attempt = *self.attempts.entry(place).and_modify(|attempt| *attempt += 1).or_insert(0);
                let (flushed, high_watermark) = (log.end(), log.start());
                let before = Assignment { leader: None, ..assignment.clone() };
                let role = Role::Waits;
                let replica = Replica {
                    log,
                    flushed,
                    // What a flush of the log before it says, is not of this one.
                    generation: u64::from(attempt) << 32,
                    high_watermark,
                    assignment: before,
                    role,
                    local: Vec::new(),
                };
                self.reassign(now, me, place, replica, assignment, out);
            }
        }
    }

    fn reassign(
        &mut self,
        now: Monotonic,
        me: StorageId,
        place: Place,
        mut replica: Replica<L>,
        assignment: Assignment,
        out: &mut Vec<Effect<L::Error>>,
    ) {
        let before = &replica.assignment;
        let same = before.leader == assignment.leader && before.leader_epoch == assignment.leader_epoch;
        if assignment.leader_epoch < before.leader_epoch {
            self.held.insert(place, replica);
            return;
        }
        replica.assignment = assignment;
        if !same {
            self.leave_role(place, &mut replica, out);
            if let Err(error) = self.take_role(now, me, place, &mut replica, out) {
                self.held.insert(place, replica);
                out.push(Effect::Failed { place, error });
                return;
            }
        }
        if let Role::Leads(leader) = &mut replica.role {
            let held = &replica.assignment;
            leader.set_settings(leader_settings(&self.settings, held));
            let epoch = |node: &StorageId| self.peers.get(node).map_or(NodeEpoch(0), |peer| peer.node_epoch);
            leader.replicas(now, held.replicas.iter().map(|node| (*node, epoch(node))));
            leader.commit_in_sync(held.partition_epoch, held.isr.iter().copied());
            self.asks.insert(place);
            if held.isr.len() < held.replicas.len() || held.recovering {
                self.behind.insert(place);
            }
        }
        self.held.insert(place, replica);
        self.let_go_of(place);
        self.acknowledge(place, out);
    }

    /// Whoever waits at a leadership that ends learns that its fate is open.
    pub(super) fn leave_role(&mut self, place: Place, replica: &mut Replica<L>, out: &mut Vec<Effect<L::Error>>) {
        let local = std::mem::take(&mut replica.local).into_iter().map(|(_, waiter)| waiter);
        let mut over: Vec<_> = local.collect();
        match std::mem::replace(&mut replica.role, Role::Waits) {
            Role::Leads(leader) => {
                let mut in_sync = leader.in_sync().clone();
                if in_sync.maximal().count() > in_sync.committed().len() {
                    // The answer may find nobody.
                    in_sync.not_granted(in_sync.partition_epoch());
                    self.open_admissions.insert(place, (leader.leader_epoch(), in_sync));
                }
                // What it took for committed without a lease does not count: who comes back begins with the metadata on its
                // disk, and may have been alone in sync by that.
                over.extend(leader.into_waiting());
                self.sessions.values_mut().for_each(|session| session.role_changed(place));
                self.moved.insert(place);
                out.push(Effect::LeadsNoMore(place));
            }
            Role::Follows(follower) => {
                replica.high_watermark = follower.high_watermark();
                if let Some(link) = self.links.get_mut(&follower.leader()) {
                    link.drop_place(place);
                }
            }
            Role::Waits => {}
        }
        for waiter in over {
            out.push(Effect::Acknowledge { token: waiter.token, result: Err(AppendError::NotLeader) });
        }
        self.behind.remove(&place);
        self.asks.remove(&place);
    }

    fn take_role(
        &mut self,
        now: Monotonic,
        me: StorageId,
        place: Place,
        replica: &mut Replica<L>,
        out: &mut Vec<Effect<L::Error>>,
    ) -> Result<(), L::Error> {
        let held = &replica.assignment;
        let open = self.open_admissions.remove(&place).filter(|(epoch, _)| *epoch == held.leader_epoch);
        match held.leader {
            Some(leader) if leader == me => {
                let new = || InSync::new(held.partition_epoch, held.isr.iter().copied());
                let in_sync = open.map_or_else(new, |(_, in_sync)| in_sync);
                let ends: (Offset, Offset, Offset) = (replica.high_watermark, replica.flushed, replica.log.end());
                let settings = leader_settings(&self.settings, held);
                let leader = Leader::new(me, held.leader_epoch, settings, in_sync, ends);
                replica.log.begin_epoch(held.leader_epoch)?;
                replica.role = Role::Leads(Box::new(leader));
                out.push(Effect::Leads { place, leader_epoch: held.leader_epoch });
                // Followers may have polled for it before this node knew that it leads.
                self.sessions.values_mut().for_each(|session| session.role_changed(place));
            }
            Some(leader) => {
                replica.role = Role::Follows(Follower::new(leader, held.leader_epoch, replica.high_watermark));
                let link = self.links.entry(leader).or_insert_with(|| Link::new(now));
                link.add_place(place, replica.flushed >= replica.log.end());
            }
            None => replica.role = Role::Waits,
        }
        Ok(())
    }

    pub(super) fn unassign(&mut self, place: Place, out: &mut Vec<Effect<L::Error>>) {
        self.decline_no_more(place);
        if let Some(mut replica) = self.held.remove(&place) {
            self.leave_role(place, &mut replica, out);
            self.unflushed.remove(&place);
        }
    }

    pub(super) fn decline(&mut self, now: Monotonic, place: Place, leader: StorageId) {
        if !self.held.contains_key(&place) {
            self.decline_no_more(place);
            self.links.entry(leader).or_insert_with(|| Link::new(now)).decline(now, place);
        }
    }

    fn decline_no_more(&mut self, place: Place) {
        self.links.values_mut().for_each(|link| _ = link.declines_no_more(place));
    }
}

fn leader_settings(settings: &Settings, assignment: &Assignment) -> LeaderSettings {
    LeaderSettings { lag_max: settings.lag_max, min_insync: assignment.min_insync }
}
