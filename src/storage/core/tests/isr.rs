//! What a leader asks of its in-sync replicas.

use super::support::*;
use crate::metadata::{NodeState, PartitionChange};
use crate::storage::core::{Call, CallError, Effect, Input};
use crate::types::*;
use crate::wire::admin::{IsrMember, IsrOutcome, IsrRequest, PartitionAlter, PartitionAltered};
use crate::wire::{Code, WireError};

/// This node leads a partition whose other replica is fenced and out of sync.
fn alone() -> (Ledger, Node) {
    let mut ledger = Ledger::with_nodes();
    ledger.topic(vec![vec![ME, OTHER]]);
    ledger.state(OTHER, NodeEpoch(5), NodeState::Fenced);
    ledger.partition(PartitionChange {
        partition: 0,
        leader: None,
        isr: Some(vec![ME]),
        waits_for: None,
        recovering: None,
    });
    let node = Node::running(&ledger);
    (ledger, node)
}

fn request(ledger: &Ledger) -> PartitionAlter {
    let partition = ledger.history.image().unwrap().partition(TOPIC, 0).unwrap();
    let isr = vec![
        IsrMember { storage: ME, node_epoch: NodeEpoch(2) },
        IsrMember { storage: OTHER, node_epoch: NodeEpoch(5) },
    ];
    let wish = IsrRequest {
        topic_id: TOPIC,
        partition: 0,
        leader_epoch: partition.leader_epoch,
        partition_epoch: partition.epoch,
        isr,
        recovered: false,
        settles: false,
    };
    PartitionAlter { storage: ME, node_epoch: NodeEpoch(2), partitions: vec![wish] }
}

fn returned() -> (Ledger, Node, Call) {
    let (mut ledger, mut node) = alone();
    let has = ledger.position();
    ledger.state(OTHER, NodeEpoch(5), NodeState::Active);
    let effects = node.push(&ledger.push(has));
    let [Effect::Persist { .. }, Effect::RequestIsr { call, request: asked }] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(*asked, request(&ledger));
    let call = *call;
    node.saved();
    (ledger, node, call)
}

#[test]
fn a_replica_whose_node_is_active_again_is_asked_for_with_its_epoch() {
    returned();
}

#[test]
fn nobody_is_asked_for_who_is_fenced() {
    let (_, mut node) = alone();
    assert!(node.after(10_000, Input::Tick).iter().all(|effect| !matches!(effect, Effect::RequestIsr { .. })));
}

#[test]
fn one_request_is_under_way_at_a_time_and_an_accepted_one_is_not_repeated() {
    let (ledger, mut node, call) = returned();
    assert_eq!(node.take(Input::Tick), []);
    let outcome = IsrOutcome { topic_id: TOPIC, partition: 0, partition_epoch: Some(PartitionEpoch(2)), error: None };
    let body = PartitionAltered { version: ledger.position().version.next(), partitions: vec![outcome] };
    let result = Ok(serde_json::to_vec(&body).unwrap().into());
    assert_eq!(node.take(Input::IsrAnswer { call, result }), []);
    assert_eq!(node.after(100, Input::Tick), []);
}

#[test]
fn a_refused_or_lost_request_is_looked_at_anew_after_a_while() {
    let (ledger, _, _) = returned();
    let error = WireError::new(Code::NotController, "no");
    let outcome = IsrOutcome { topic_id: TOPIC, partition: 0, partition_epoch: None, error: Some(error.clone()) };
    let body = PartitionAltered { version: Version(1), partitions: vec![outcome] };
    let answers = [
        Err(CallError::NoResponders),
        Ok(error.encode()),
        Ok(serde_json::to_vec(&body).unwrap().into()),
        Ok(b"nonsense".as_slice().into()),
    ];
    for result in answers {
        let (_, mut node, call) = returned();
        assert_eq!(node.take(Input::IsrAnswer { call, result }), []);
        let again = node.after(100, Input::Tick);
        assert!(matches!(&again[..], [Effect::RequestIsr { request: asked, .. }] if *asked == request(&ledger)));
    }
}

#[test]
fn who_may_not_lead_asks_for_nothing() {
    let (mut ledger, mut node) = alone();
    node.take(Input::Disconnected);
    let has = ledger.position();
    ledger.state(OTHER, NodeEpoch(5), NodeState::Active);
    assert!(matches!(node.push(&ledger.push(has))[..], [Effect::Persist { .. }]));
}

#[test]
fn a_leader_from_an_unclean_election_says_that_it_has_recovered_even_where_nobody_can_join_it() {
    let mut ledger = Ledger::with_nodes();
    ledger.topic(vec![vec![OTHER, ME]]);
    ledger.partition(PartitionChange {
        partition: 0,
        leader: Some(Some(ME)),
        isr: Some(vec![ME]),
        waits_for: None,
        recovering: Some(true),
    });
    ledger.state(OTHER, NodeEpoch(5), NodeState::Fenced);
    let mut node = Node::registered(&ledger);
    node.heartbeat_now();
    let effects = node.answered(&ledger, |_| {});
    let asked = effects.iter().find_map(|effect| match effect {
        Effect::RequestIsr { request, .. } => Some(request.clone()),
        _ => None,
    });
    let asked = asked.expect("it says so as soon as it may lead").partitions;
    let me = IsrMember { storage: ME, node_epoch: NodeEpoch(2) };
    assert_eq!((asked.len(), asked[0].recovered, &asked[0].isr), (1, true, &vec![me]));
    // Once that is in the history there is nothing left to say.
    let has = ledger.position();
    let said = PartitionChange { partition: 0, leader: None, isr: None, waits_for: None, recovering: Some(false) };
    ledger.partition(said);
    let mut node = Node::running(&ledger);
    let effects = node.after(10_000, Input::Tick);
    assert!(effects.iter().all(|effect| !matches!(effect, Effect::RequestIsr { .. })), "{effects:?} after {has}");
}

#[test]
fn what_does_not_fit_one_message_is_asked_for_after_the_answer() {
    let (mut ledger, _) = alone();
    ledger.state(OTHER, NodeEpoch(5), NodeState::Active);
    for number in 1..5 {
        let replicas = vec![vec![ME, OTHER].into()];
        ledger.commit(vec![crate::metadata::Record::PartitionsAdded { topic_id: TOPIC, replicas }]);
        let partition = number;
        ledger.partition(PartitionChange {
            partition,
            leader: None,
            isr: Some(vec![ME]),
            waits_for: None,
            recovering: None,
        });
    }
    let mut node = Node::registered(&ledger);
    node.take(Input::MessageLimit(700));
    node.heartbeat_now();
    let mut effects = node.answered(&ledger, |_| {});
    let mut asked = Vec::new();
    while let Some(Effect::RequestIsr { call, request }) =
        effects.iter().find(|effect| matches!(effect, Effect::RequestIsr { .. }))
    {
        let bytes = serde_json::to_vec(request).unwrap().len();
        assert!(bytes <= 700 + 100, "{bytes} bytes");
        asked.push(request.partitions.iter().map(|wish| wish.partition).collect::<Vec<_>>());
        let base = ledger.position();
        let partitions: Vec<_> = request
            .partitions
            .iter()
            .map(|wish| IsrOutcome {
                topic_id: TOPIC,
                partition: wish.partition,
                partition_epoch: Some(PartitionEpoch(2)),
                error: None,
            })
            .collect();
        for outcome in &partitions {
            ledger.partition(PartitionChange {
                partition: outcome.partition,
                leader: None,
                isr: Some(vec![ME, OTHER]),
                waits_for: None,
                recovering: None,
            });
        }
        let body = PartitionAltered { version: ledger.position().version, partitions };
        let call = *call;
        node.pushed(&ledger.push(base));
        effects = node.take(Input::IsrAnswer { call, result: Ok(serde_json::to_vec(&body).unwrap().into()) });
    }
    assert_eq!(asked, [vec![0, 1], vec![2, 3], vec![4]]);
}
