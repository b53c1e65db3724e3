//! Clients' appends, and their acknowledgements.

use super::{Acks, Append, AppendError, Effect, Log, Replicas, Role, Waiter};
use crate::storage::core::Place;
use crate::types::{Monotonic, Offset};

impl<L: Log> Replicas<L> {
    pub(super) fn append(&mut self, now: Monotonic, append: Append, out: &mut Vec<Effect<L::Error>>) {
        let Append { place, acks, token, .. } = append;
        match self.try_append(now, append) {
            Ok(end) => {
                self.unflushed.insert(place);
                self.behind.insert(place);
                self.tell_followers(place, end);
            }
            Err(error) if acks.is_some() => out.push(Effect::Acknowledge { token, result: Err(error) }),
            Err(error) => out.push(Effect::Dropped { place, error }),
        }
    }

    /// The log's end afterwards.
    fn try_append(&mut self, now: Monotonic, append: Append) -> Result<Offset, AppendError<L::Error>> {
        let Append { place, batch, acks, token, now: wall } = append;
        let waiting_max = self.settings.waiting_max;
        let replica = self.held.get_mut(&place).filter(|_| self.may_lead).ok_or(AppendError::NotLeader)?;
        let Role::Leads(leader) = &mut replica.role else { return Err(AppendError::NotLeader) };
        if acks == Some(Acks::All) {
            leader.check_append().map_err(AppendError::Acks)?;
        }
        if leader.waiting() + replica.local.len() >= waiting_max {
            return Err(AppendError::Busy(waiting_max));
        }
        #[cfg(test)]
        let before = replica.log.end();
        let appended = replica.log.append(batch, leader.leader_epoch(), wall);
        #[cfg(test)]
        let appended = if crate::simulator::planted(crate::simulator::Bug::FailedAppendStored) {
            appended.or(Ok(before))
        } else {
            appended
        };
        let first = appended.map_err(AppendError::Log)?;
        let end = replica.log.end();
        #[cfg(test)]
        if end == before && crate::simulator::planted(crate::simulator::Bug::RetryAtOnce) {
            replica.local.insert(0, (Offset::ZERO, Waiter { token, first }));
            return Ok(end);
        }
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
        let Some(replica) = self.held.get_mut(&place) else { return };
        let may_lead = self.may_lead;
        #[cfg(test)]
        let may_lead = may_lead || crate::simulator::planted(crate::simulator::Bug::LeaselessAck);
        let Role::Leads(leader) = &mut replica.role else { return };
        if !may_lead {
            return;
        }
        self.moved.insert(place);
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
        replica.log.committed(replica.high_watermark);
    }
}
