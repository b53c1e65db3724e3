//! What leaders' replicas wish of the controller, and what they are told of it.

use super::support::*;
use crate::metadata::NodeState;
use crate::storage::core::{Call, CallError, Effect, InSyncOutcome, InSyncWish, Input};
use crate::types::*;
use crate::wire::admin::{IsrMember, IsrOutcome, PartitionAltered};
use crate::wire::{Code, WireError};

const ME_NOW: (StorageId, NodeEpoch) = (ME, NodeEpoch(2));
const OTHER_NOW: (StorageId, NodeEpoch) = (OTHER, NodeEpoch(5));

fn wish(partition: PartitionId) -> InSyncWish {
    InSyncWish {
        place: (TOPIC, partition),
        leader_epoch: LeaderEpoch(0),
        partition_epoch: PartitionEpoch(1),
        members: vec![ME_NOW, OTHER_NOW],
        settles: false,
        recovered: false,
    }
}

fn outcome(partition: PartitionId, granted: bool) -> InSyncOutcome {
    InSyncOutcome { place: (TOPIC, partition), leader_epoch: LeaderEpoch(0), on_top_of: PartitionEpoch(1), granted }
}

fn answers(outcomes: impl IntoIterator<Item = InSyncOutcome>) -> Vec<Effect> {
    vec![Effect::InSyncAnswers(outcomes.into_iter().collect())]
}

fn running() -> Node {
    let mut ledger = Ledger::with_nodes();
    ledger.topic(vec![vec![ME, OTHER], vec![ME, OTHER]]);
    Node::running(&ledger)
}

fn asked() -> (Node, Call) {
    let mut node = running();
    let effects = node.take(Input::InSyncWishes(vec![wish(0)]));
    let [Effect::RequestIsr { call, request }] = &effects[..] else { panic!("{effects:?}") };
    let members = [ME_NOW, OTHER_NOW].map(|(storage, node_epoch)| IsrMember { storage, node_epoch });
    assert_eq!((request.storage, request.node_epoch), ME_NOW);
    assert_eq!((request.partitions.len(), &request.partitions[0].isr[..]), (1, &members[..]));
    (node, *call)
}

fn altered(error: Option<WireError>) -> Vec<u8> {
    let partition_epoch = error.is_none().then_some(PartitionEpoch(2));
    let outcome = IsrOutcome { topic_id: TOPIC, partition: 0, partition_epoch, error };
    serde_json::to_vec(&PartitionAltered { version: Version(9), partitions: vec![outcome] }).unwrap()
}

#[test]
fn a_wish_is_asked_at_once_and_granted_once() {
    let (mut node, call) = asked();
    assert_eq!(node.take(Input::Tick), []);
    node.take(Input::IsrAnswer { call, result: Ok(altered(None).into()) });
    assert_eq!(node.told, answers([outcome(0, true)]));
    node.take(Input::IsrAnswer { call, result: Ok(altered(None).into()) });
    assert_eq!(node.told, []);
}

#[test]
fn a_refused_or_lost_request_goes_back_to_who_wished() {
    let error = WireError::new(Code::NotController, "no");
    let lost = [
        Err(CallError::NoResponders),
        Err(CallError::Timeout),
        Ok(error.encode()),
        Ok(altered(Some(error.clone())).into()),
        Ok(b"nonsense".as_slice().into()),
    ];
    for result in lost {
        let (mut node, call) = asked();
        node.take(Input::IsrAnswer { call, result });
        assert_eq!(node.told, answers([outcome(0, false)]));
    }
    let (mut node, _) = asked();
    node.after(2_000, Input::Tick);
    assert_eq!(node.told, answers([outcome(0, false)]), "no answer came");
    let (mut node, _) = asked();
    node.take(Input::Disconnected);
    assert_eq!(node.told, answers([outcome(0, false)]));
}

#[test]
fn after_a_failure_the_controller_is_left_alone_for_a_while() {
    let (mut node, call) = asked();
    node.take(Input::IsrAnswer { call, result: Err(CallError::Timeout) });
    assert_eq!(node.take(Input::InSyncWishes(vec![wish(0)])), []);
    assert!(matches!(node.after(100, Input::Tick)[..], [Effect::RequestIsr { .. }]));
}

#[test]
fn one_request_is_under_way_and_a_newer_wish_replaces_one_that_waits() {
    let (mut node, call) = asked();
    let newer = InSyncWish { partition_epoch: PartitionEpoch(3), ..wish(1) };
    assert_eq!(node.take(Input::InSyncWishes(vec![wish(1)])), []);
    assert_eq!(node.take(Input::InSyncWishes(vec![newer])), []);
    let effects = node.take(Input::IsrAnswer { call, result: Ok(altered(None).into()) });
    let [Effect::RequestIsr { request, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(request.partitions.len(), 1);
    assert_eq!((request.partitions[0].partition, request.partitions[0].partition_epoch), (1, PartitionEpoch(3)));
}

#[test]
fn who_may_not_lead_asks_for_nothing() {
    let mut node = running();
    node.take(Input::Disconnected);
    assert_eq!(node.take(Input::InSyncWishes(vec![wish(0)])), []);
    assert_eq!(node.told, answers([outcome(0, false)]));
}

#[test]
fn what_does_not_fit_one_message_is_asked_for_after_the_answer() {
    let mut node = running();
    node.take(Input::MessageLimit(700));
    let mut effects = node.take(Input::InSyncWishes((0..5).map(wish).collect()));
    let mut asked = Vec::new();
    while let Some(Effect::RequestIsr { call, request }) = effects.first() {
        let bytes = serde_json::to_vec(request).unwrap().len();
        assert!(bytes <= 700 + 100, "{bytes} bytes");
        asked.push(request.partitions.iter().map(|wish| wish.partition).collect::<Vec<_>>());
        let outcome = |partition| IsrOutcome {
            topic_id: TOPIC,
            partition,
            partition_epoch: Some(PartitionEpoch(2)),
            error: None,
        };
        let partitions = asked.last().unwrap().iter().copied().map(outcome).collect();
        let body = serde_json::to_vec(&PartitionAltered { version: Version(9), partitions }).unwrap();
        effects = node.take(Input::IsrAnswer { call: *call, result: Ok(body.into()) });
    }
    assert_eq!(asked, [vec![0, 1], vec![2, 3], vec![4]]);
}

#[test]
fn wishes_name_incarnations_that_the_controller_checks() {
    let mut ledger = Ledger::with_nodes();
    ledger.topic(vec![vec![ME, OTHER]]);
    ledger.state(OTHER, NodeEpoch(5), NodeState::Fenced);
    let mut node = Node::running(&ledger);
    let effects = node.take(Input::InSyncWishes(vec![InSyncWish { settles: true, recovered: true, ..wish(0) }]));
    let [Effect::RequestIsr { request, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert!(request.partitions[0].recovered && request.partitions[0].settles);
}
