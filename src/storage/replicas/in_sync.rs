//! Who shall be in sync: looked at where something changed, and now and then where a follower lacks something.

use super::{Effect, Log, Replicas, Role};
use crate::storage::core::{InSyncOutcome, InSyncWish, Place};
use crate::types::Monotonic;

impl<L: Log> Replicas<L> {
    pub(super) fn step_in_sync(&mut self, now: Monotonic, out: &mut Vec<Effect<L::Error>>) {
        if now >= self.lag_check_at {
            self.lag_check_at = now + self.settings.lag_check;
            self.look_for_laggards();
        }
        if self.asks.is_empty() || !self.may_lead {
            return;
        }
        let mut wishes = Vec::new();
        while wishes.len() < self.settings.isr_batch
            && let Some(place) = self.asks.pop_first()
        {
            wishes.extend(self.wish(now, place));
        }
        if !wishes.is_empty() {
            out.push(Effect::AskInSync(wishes));
        }
    }

    fn look_for_laggards(&mut self) {
        let held = &self.held;
        self.behind.retain(|place| {
            let Some(replica) = held.get(place) else { return false };
            let Role::Leads(leader) = &replica.role else { return false };
            let whole = replica.assignment.isr.len() == replica.assignment.replicas.len();
            !whole
                || replica.assignment.recovering
                || leader.in_sync().maximal().count() > leader.in_sync().committed().len()
                || leader.lag_deadline().is_some()
        });
        self.asks.extend(self.behind.iter().copied());
    }

    fn wish(&mut self, now: Monotonic, place: Place) -> Option<InSyncWish> {
        let member = self.member?;
        let replica = self.held.get_mut(&place)?;
        let Role::Leads(leader) = &mut replica.role else { return None };
        let peers = &self.peers;
        let fit = |node, epoch| peers.get(&node).is_some_and(|peer| peer.active && peer.node_epoch == epoch);
        // After an unclean election nobody joins before the leader has said that it has recovered: once its own epoch's start
        // is committed, which it is by its own disk alone.
        let recovered = replica.assignment.recovering;
        if recovered && leader.visible().is_none() {
            self.behind.insert(place);
            return None;
        }
        let wish = leader.wish(now, recovered, fit)?;
        let epoch = |node| {
            let heard = leader.node_epoch(node);
            if node == member.storage { Some(member.node_epoch) } else { heard }
        };
        let members = wish.members.iter().map(|node| Some((*node, epoch(*node)?))).collect::<Option<_>>()?;
        leader.in_sync_mut().asking(&wish);
        self.behind.insert(place);
        let leader_epoch = leader.leader_epoch();
        self.let_go_of(place);
        let (partition_epoch, settles) = (wish.partition_epoch, wish.settles);
        Some(InSyncWish { place, leader_epoch, partition_epoch, members, settles, recovered })
    }

    pub(super) fn in_sync_answer(&mut self, outcome: InSyncOutcome) {
        let InSyncOutcome { place, leader_epoch, on_top_of, granted } = outcome;
        let Some(replica) = self.held.get_mut(&place) else { return };
        let Role::Leads(leader) = &mut replica.role else { return };
        if leader.leader_epoch() != leader_epoch {
            return;
        }
        if granted {
            leader.in_sync_mut().granted(on_top_of);
        } else {
            // Asked again at the next check, not at once.
            leader.in_sync_mut().not_granted(on_top_of);
            self.behind.insert(place);
        }
    }
}
