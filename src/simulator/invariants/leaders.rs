//! Who leads holds a lease, or stops: no two nodes ever lead a partition at the same moment.

use crate::simulator::queue::Time;
use crate::simulator::world::{COPY, CONTROLLERS, Proc, World, name};
use crate::types::{LeaderEpoch, PartitionId, TopicId};

impl World {
    /// Looks at a node that has come to lead something, or may lead again.
    pub fn check_leads(&mut self, proc: Proc) {
        if self.checker.lost {
            return;
        }
        for (topic, partition, epoch) in self.leads(proc) {
            for other in (CONTROLLERS..=COPY).filter(|other| *other != proc) {
                let found = self.leads(other).into_iter().find(|(t, p, _)| (*t, *p) == (topic, partition));
                if let Some((.., theirs)) = found {
                    self.checker.break_rule(3, || {
                        let (one, two) = (name(proc), name(other));
                        format!("{one} leads partition {partition} of {topic} in epoch {epoch}, and {two} in {theirs}")
                    });
                }
            }
        }
    }

    fn leads(&self, proc: Proc) -> Vec<(TopicId, PartitionId, LeaderEpoch)> {
        let now: Time = self.now();
        let Some(node) = &self.nodes[proc - CONTROLLERS] else { return Vec::new() };
        if !node.core.may_lead(self.clock_at(proc, now)) {
            return Vec::new();
        }
        node.core.leads().map(|held| (held.topic, held.partition, held.leader_epoch)).collect()
    }
}
