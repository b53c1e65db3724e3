//! Clients' appends, and their acknowledgements.

use bytes::Bytes;

use super::{Acks, AppendError, Effect, Log, Place, Replicas, Role, Waiter};
use crate::storage::core::Token;
use crate::types::{Monotonic, Offset, WallTime};

impl<L: Log> Replicas<L> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn append(
        &mut self,
        now: Monotonic,
        place: Place,
        batch: Bytes,
        acks: Option<Acks>,
        token: Token,
        wall: WallTime,
        out: &mut Vec<Effect<L::Error>>,
    ) {
        match self.try_append(now, place, batch, acks, token, wall) {
            Ok(end) => {
                self.unflushed.insert(place);
                self.behind.insert(place);
                self.tell_followers(place, end);
            }
            Err(error) if acks.is_some() => out.push(Effect::Acknowledge { token, result: Err(error) }),
            Err(_) => {}
        }
    }

    /// The log's end afterwards.
    fn try_append(
        &mut self,
        now: Monotonic,
        place: Place,
        batch: Bytes,
        acks: Option<Acks>,
        token: Token,
        wall: WallTime,
    ) -> Result<Offset, AppendError<L::Error>> {
        let waiting_max = self.settings.waiting_max;
        let replica = self.held.get_mut(&place).filter(|_| self.may_lead).ok_or(AppendError::NotLeader)?;
        let Role::Leads(leader) = &mut replica.role else { return Err(AppendError::NotLeader) };
        if acks == Some(Acks::All) {
            leader.check_append().map_err(AppendError::Acks)?;
        }
        if leader.waiting() + replica.local.len() >= waiting_max {
            return Err(AppendError::Busy(waiting_max));
        }
        let first = replica.log.append(batch, leader.leader_epoch(), wall).map_err(AppendError::Log)?;
        let end = replica.log.end();
        leader.appended(now, end);
        match acks {
            Some(Acks::All) => leader.wait_for(end, Waiter { token, first }),
            Some(Acks::Leader) => replica.local.push((end, Waiter { token, first })),
            None => {}
        }
        Ok(end)
    }

    /// Acknowledges whoever waits no longer, if this node may lead: otherwise nobody is told anything.
    pub(super) fn acknowledge(&mut self, place: Place, out: &mut Vec<Effect<L::Error>>) {
        let Some(replica) = self.held.get_mut(&place).filter(|_| self.may_lead) else { return };
        let Role::Leads(leader) = &mut replica.role else { return };
        while let Some((waiter, outcome)) = leader.pop_acknowledged() {
            let result = outcome.map(|_| waiter.first).map_err(AppendError::Acks);
            out.push(Effect::Acknowledge { token: waiter.token, result });
        }
        let flushed = replica.flushed;
        let done = replica.local.iter().take_while(|(end, _)| *end <= flushed).count();
        for (_, waiter) in replica.local.drain(..done) {
            out.push(Effect::Acknowledge { token: waiter.token, result: Ok(waiter.first) });
        }
        replica.high_watermark = replica.high_watermark.max(leader.high_watermark());
    }
}
