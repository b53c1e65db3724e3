//! Leaders' requests for other in-sync replicas. Those that wait at the same time become one change: where many leaders ask at
//! once, as after a node came back, the history does not grow by an entry for each.

use std::collections::BTreeSet;

use super::admin::{Job, Reply};
use super::append::Purpose;
use super::{Controller, Token};
use crate::metadata::rules::partition::{IsrChange, IsrError};
use crate::metadata::{Cause, Image, Record, rules};
use crate::types::PartitionEpoch;
use crate::wire::admin::{IsrOutcome, PartitionAlter};
use crate::wire::{Code, WireError};

/// The most partitions of the requests that are taken together.
const TOGETHER: usize = 10_000;

impl Controller {
    /// Decides this request, and those behind it up to the first that asks for anything else, or for a partition once more.
    pub(super) fn alter_partitions(&mut self, token: Token, request: PartitionAlter) {
        let mut requests = vec![(token, request)];
        let mut asked = BTreeSet::new();
        asked.extend(places(&requests[0].1));
        while let Some(Job::AlterPartitions { request, .. }) = self.jobs.front()
            && asked.len() + request.partitions.len() <= TOGETHER
            && places(request).all(|place| !asked.contains(&place))
        {
            asked.extend(places(request));
            if let Some(Job::AlterPartitions { token, request }) = self.jobs.pop_front() {
                requests.push((token, request));
            }
        }
        let (mut records, mut replies, mut askers) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (token, request) in requests {
            let Some(image) = self.image() else { return };
            match decide(image, &request) {
                Ok((changes, outcomes)) => {
                    if !changes.is_empty() {
                        askers.insert(request.storage);
                    }
                    records.extend(changes);
                    replies.push((token, Reply::Altered(outcomes)));
                }
                Err(error) => self.fail(token, error),
            }
        }
        if records.is_empty() {
            let version = self.history.position().version;
            return replies.into_iter().for_each(|(token, reply)| self.committed(version, token, reply));
        }
        let cause: Cause = format!("{} asked for other in-sync replicas", super::liveness::names(&askers)).into();
        self.append(records, cause, None, Purpose::Replies(replies));
    }
}

fn places(request: &PartitionAlter) -> impl Iterator<Item = (crate::types::TopicId, u32)> + '_ {
    request.partitions.iter().map(|asked| (asked.topic_id, asked.partition))
}

fn decide(image: &Image, request: &PartitionAlter) -> Result<(Vec<Record>, Vec<IsrOutcome>), WireError> {
    let changes: Vec<_> = request
        .partitions
        .iter()
        .map(|asked| IsrChange {
            topic: asked.topic_id,
            partition: asked.partition,
            leader_epoch: asked.leader_epoch,
            partition_epoch: asked.partition_epoch,
            recovered: asked.recovered,
            settles: asked.settles,
            isr: asked.isr.iter().map(|member| (member.storage, member.node_epoch)).collect(),
        })
        .collect();
    let (records, outcomes) =
        rules::partition::alter_isr(image, request.storage, request.node_epoch, &changes).map_err(isr_error)?;
    let outcome = |(change, result): (&IsrChange, Result<PartitionEpoch, IsrError>)| {
        let (partition_epoch, error) = match result {
            Ok(epoch) => (Some(epoch), None),
            Err(error) => (None, Some(isr_error(error))),
        };
        IsrOutcome { topic_id: change.topic, partition: change.partition, partition_epoch, error }
    };
    let outcomes = changes.iter().zip(outcomes).map(outcome).collect();
    Ok((records, outcomes))
}

fn isr_error(error: IsrError) -> WireError {
    let code = match &error {
        IsrError::UnknownNode(_) => Code::UnknownNode,
        IsrError::StaleNodeEpoch { .. } => Code::StaleNodeEpoch,
        IsrError::UnknownPartition { .. } => Code::UnknownTopicOrPartition,
        IsrError::NotController { .. } => Code::NotController,
        IsrError::FencedLeaderEpoch { .. } => Code::FencedLeaderEpoch,
        IsrError::NotLeader { .. } => Code::NotLeaderOrFollower,
        IsrError::StalePartitionEpoch { .. } => Code::InvalidUpdateVersion,
        IsrError::InvalidReplicas { .. } => Code::InvalidReplicaAssignment,
        IsrError::IneligibleReplica { .. } => Code::IneligibleReplica,
        IsrError::Recovering { .. } => Code::InvalidState,
    };
    WireError::new(code, error.to_string())
}
