//! What the node's replicas are told of the metadata, and when.

use super::support::*;
use crate::metadata::{NodeState, PartitionChange, Record};
use crate::storage::core::{Assignment, Effect, Input, Member, Peer, Unassigned};
use crate::types::*;

const PLACE: (TopicId, PartitionId) = (TOPIC, 0);

fn assignment(leader: Option<StorageId>, leader_epoch: u32, partition_epoch: u32) -> Assignment {
    Assignment {
        leader,
        leader_epoch: LeaderEpoch(leader_epoch),
        partition_epoch: PartitionEpoch(partition_epoch),
        isr: vec![ME, OTHER],
        replicas: vec![ME, OTHER],
        min_insync: 1,
        recovering: false,
    }
}

fn assigned(assignment: Assignment) -> Effect {
    Effect::Replicas { assigned: vec![(PLACE, assignment)], unassigned: Vec::new() }
}

fn with_topic() -> Ledger {
    let mut ledger = Ledger::with_nodes();
    ledger.topic(vec![vec![ME, OTHER]]);
    ledger
}

#[test]
fn once_registered_it_tells_who_it_is_and_what_it_holds() {
    let ledger = with_topic();
    let mut node = Node::bound(ledger.history.clone());
    node.take(Input::Connected(connection(1)));
    assert_eq!(node.told, [], "nobody knows yet in which incarnation");
    node.take(Input::Subscribed(ME));
    node.register_answered(&ledger);
    let member = Member { cluster: CLUSTER, storage: ME, node_epoch: NodeEpoch(2) };
    let peer = |epoch| Peer { node_epoch: NodeEpoch(epoch), active: true };
    let peers = [(ME, peer(2)), (OTHER, peer(5))].into();
    let told = [Effect::Member(member), Effect::Peers(peers), assigned(assignment(Some(ME), 0, 0))];
    assert_eq!(node.told, told);
    node.take(Input::Tick);
    assert_eq!(node.told, [], "nothing changed");
}

#[test]
fn what_it_gains_is_told_once_it_is_on_the_disk_and_what_it_loses_at_once() {
    let mut ledger = with_topic();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    let change = |leader| PartitionChange {
        partition: 0,
        leader: Some(Some(leader)),
        isr: None,
        waits_for: None,
        recovering: None,
    };
    ledger.partition(change(OTHER));
    node.push(&ledger.push(has));
    assert_eq!(node.told, [assigned(assignment(None, 1, 1))], "it serves nothing that another node may lead");
    node.saved();
    assert_eq!(node.told, [assigned(assignment(Some(OTHER), 1, 1))]);
    let has = ledger.position();
    ledger.partition(change(ME));
    node.push(&ledger.push(has));
    assert_eq!(node.told, []);
    node.saved();
    assert_eq!(node.told, [assigned(assignment(Some(ME), 2, 2))]);
}

#[test]
fn a_deleted_topic_is_given_up_for_good_and_one_that_a_snapshot_does_not_know_is_not() {
    let mut ledger = with_topic();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    ledger.commit(vec![Record::TopicDeleted { topic_id: TOPIC }]);
    node.pushed(&ledger.push(has));
    let gone = |is_deliberate| Effect::Replicas {
        assigned: Vec::new(),
        unassigned: vec![Unassigned { place: PLACE, is_deliberate }],
    };
    assert_eq!(node.told, [gone(true)]);

    let ledger = with_topic();
    let mut node = Node::running(&ledger);
    let mut other = Ledger::with_nodes();
    for _ in 0..5 {
        other.commit(vec![Record::NoOp {}]);
    }
    let mut out = Vec::new();
    node.core.history = other.history;
    node.core.disk.position = node.core.history.position();
    node.core.reread();
    node.core.announce_assignments(&mut out);
    assert!(out.contains(&gone(false)), "{out:?}");
}

#[test]
fn peers_are_told_when_one_of_them_changes() {
    let mut ledger = with_topic();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    ledger.state(OTHER, NodeEpoch(5), NodeState::Fenced);
    node.push(&ledger.push(has));
    let peers = [
        (ME, Peer { node_epoch: NodeEpoch(2), active: true }),
        (OTHER, Peer { node_epoch: NodeEpoch(5), active: false }),
    ];
    assert_eq!(node.told, [Effect::Peers(peers.into())]);
}

#[test]
fn a_changed_configuration_is_told_of_its_replicas() {
    let mut ledger = with_topic();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    let config = [("min.insync.replicas".to_owned(), Some("2".to_owned()))].into();
    ledger.commit(vec![Record::TopicConfigured { topic_id: TOPIC, config }]);
    node.pushed(&ledger.push(has));
    assert_eq!(node.told, [assigned(Assignment { min_insync: 2, ..assignment(Some(ME), 0, 0) })]);
}
