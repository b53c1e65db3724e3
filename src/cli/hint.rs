//! What to do next, for errors whose own words don't say.

use crate::bus::BusError;
use crate::client::{AdminError, ConsumeError, DataError, ProduceError};
use crate::config::ConnectError;
use crate::wire::Code;

pub fn of(error: &anyhow::Error) -> Option<String> {
    if let Some(ConnectError::Unreachable { .. }) = error.chain().find_map(|cause| cause.downcast_ref()) {
        let text = "start one with `nats-server -js`, or a whole cluster with `dmq dev`; name another one with --nats-url or \
                    --context";
        return Some(text.into());
    }
    if let Some(BusError::NoJetStream) = error.chain().find_map(|cause| cause.downcast_ref()) {
        return Some("start it with `nats-server -js`, or enable JetStream for the account".into());
    }
    error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<AdminError>() {
            return of_admin(error);
        }
        let data = match (cause.downcast_ref::<ProduceError>(), cause.downcast_ref::<ConsumeError>()) {
            (Some(ProduceError::Topic { error, .. }), _) | (_, Some(ConsumeError::Topic { error, .. })) => {
                return of_admin(error);
            }
            (Some(ProduceError::Refused { error, .. }), _) => Some(error),
            (Some(ProduceError::NotInTime { last, .. } | ProduceError::Unknown { last, .. }), _) => last.as_ref(),
            (_, Some(ConsumeError::Refused { error, .. } | ConsumeError::Group { error, .. })) => Some(error),
            _ => cause.downcast_ref::<DataError>(),
        };
        data.and_then(of_data)
    })
}

fn of_data(error: &DataError) -> Option<String> {
    let text = match error {
        DataError::Refused(refusal) => match refusal.code {
            Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => {
                "`dmq topic describe` shows which replicas are in sync, and min.insync.replicas"
            }
            Code::UnknownTopicOrPartition | Code::UnknownTopicId => "`dmq topic list` shows those there are",
            Code::KafkaStorageError => "see the log of the partition's leader, and its disk",
            _ => return None,
        },
        DataError::NoLeader { .. } => "`dmq topic describe` shows who leads; `dmq cluster status` why nobody does",
        DataError::Disconnected => "see whether the NATS server still runs, then try again",
        DataError::NoAnswer { .. } => "try again; `dmq cluster status` shows how the storage nodes are",
        DataError::Unreadable { .. } => "run the version of dmq that the storage nodes run",
        DataError::RefusedOtherwise { .. } | DataError::Bus(_) => return None,
    };
    Some(text.into())
}

fn of_admin(admin: &AdminError) -> Option<String> {
    let text = match admin {
        AdminError::Refused(refusal) => match refusal.code {
            Code::TopicAlreadyExists => "`dmq topic describe` shows the one there is; `dmq topic alter` changes it",
            Code::UnknownTopicOrPartition => "`dmq topic list` shows those there are",
            Code::UnknownNode => "`dmq node list` shows those there are",
            Code::InvalidReplicationFactor => "`dmq node list` shows which nodes are active",
            Code::VersionConflict => "read it again, then decide anew with the version that you saw",
            Code::HistoryLost => "`dmq metadata restore` shows what can be brought back",
            Code::NotController | Code::Busy => "try again in a moment; `dmq cluster status` shows who is active",
            _ => return None,
        },
        AdminError::NoController { .. } => {
            "start one with `dmq controller --id N --data DIR`; where some run, see their logs, and whether --nats-url, \
             --context and --services are the same as theirs"
        }
        AdminError::Disconnected => "see whether the NATS server still runs, then try again",
        AdminError::NoAnswer { .. } => "try again; `dmq cluster status` shows who is active",
        AdminError::Unknown { request_id: Some(id), .. } => {
            return Some(format!("ask again with `--request-id {id}`: it tells, and nothing happens twice"));
        }
        AdminError::Unknown { request_id: None, .. } => "`dmq cluster status` shows what became of it",
        AdminError::Unreadable { .. } => "run the version of dmq that the controllers run",
        AdminError::RefusedOtherwise { .. } | AdminError::Bus(_) => return None,
    };
    Some(text.into())
}
