//! Leases, and the connection that they hang on.

use super::support::*;
use crate::metadata::{NodeState, PartitionChange};
use crate::storage::core::{CallError, Effect, Input, Leadership};
use crate::types::*;
use crate::wire::{Code, WireError};

#[test]
fn a_lease_counts_from_when_its_heartbeat_was_sent() {
    let ledger = Ledger::with_nodes();
    let mut node = Node::registered(&ledger);
    node.heartbeat_now();
    let sent = node.now;
    let answer = node.answer(&ledger, |answer| answer.lease_ms = 1000);
    assert_eq!(node.after(400, answer), [Effect::MayLead(true)]);
    assert!(node.core.may_lead(sent + std::time::Duration::from_millis(999)));
    assert!(!node.core.may_lead(sent + std::time::Duration::from_millis(1000)));
    let effects = node.after(600, Input::Tick);
    assert_eq!(effects[0], Effect::MayLead(false));
}

#[test]
fn a_lost_connection_ends_the_lease_at_once_and_a_new_one_needs_a_new_answer() {
    let ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let old = node.heartbeat_now();
    let late = node.answer(&ledger, |_| {});
    assert_eq!(node.take(Input::Disconnected), [Effect::MayLead(false)]);
    let effects = node.take(Input::Connected(connection(2)));
    let new = heartbeat(&effects).expect("at once");
    assert_eq!((new.connection, new.sequence), (connection(2), old.sequence + 1));
    assert_eq!(node.take(late), []);
    assert!(!node.core.may_lead(node.now));
    assert_eq!(node.answered(&ledger, |_| {}), [Effect::MayLead(true)]);
}

#[test]
fn nothing_is_sent_while_disconnected() {
    let ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    node.take(Input::Disconnected);
    assert_eq!(node.after(60_000, Input::Tick), []);
    assert_eq!(node.core.next_deadline(), None);
}

#[test]
fn an_answer_counts_once_and_only_for_its_own_heartbeat_and_incarnation() {
    let ledger = Ledger::with_nodes();
    let mut node = Node::registered(&ledger);
    node.heartbeat_now();
    let other = incarnation(OTHER);
    let wrong = node.answer(&ledger, |answer| answer.incarnation = other);
    let shifted = node.answer(&ledger, |answer| answer.sequence += 1);
    let foreign = node.answer(&ledger, |answer| answer.cluster = ClusterId(uuid::Uuid::from_u128(9)));
    for answer in [wrong, shifted, foreign] {
        assert_eq!(node.take(answer), []);
        assert!(!node.core.may_lead(node.now));
    }
    let right = node.answer(&ledger, |answer| answer.lease_ms = 600);
    assert_eq!(node.take(right.clone()), [Effect::MayLead(true)]);
    assert_eq!(node.after(600, right)[0], Effect::MayLead(false));
}

#[test]
fn an_answer_of_an_older_controller_epoch_gives_no_lease() {
    let mut ledger = Ledger::with_nodes();
    let deposed = ledger.clone();
    ledger.elect(1);
    let mut node = Node::registered(&ledger);
    node.heartbeat_now();
    assert_eq!(node.answered(&deposed, |answer| answer.position = ledger.position()), []);
    assert_eq!(node.answered(&ledger, |_| {}), [Effect::MayLead(true)]);
}

#[test]
fn a_forged_huge_controller_epoch_changes_nothing() {
    let ledger = Ledger::with_nodes();
    let mut node = Node::registered(&ledger);
    node.heartbeat_now();
    assert_eq!(node.answered(&ledger, |answer| answer.controller_epoch = ControllerEpoch(1 << 52)), []);
    assert_eq!(node.answered(&ledger, |_| {}), [Effect::MayLead(true)]);
    assert_eq!(node.core.controller_epoch(), ControllerEpoch(1));
}

#[test]
fn an_epoch_that_the_history_turns_out_not_to_have_is_forgotten() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    node.heartbeat_now();
    node.answered(&ledger, |answer| {
        answer.controller_epoch = ControllerEpoch(has.version.0 + 1);
        answer.position = Position { version: has.version.next(), digest: Digest([3; 16]) };
    });
    assert_eq!(node.core.seen_epoch().0, has.version.0 + 1);
    // While it holds, the controller that was elected last counts for nothing; it is fetched, and disproved.
    ledger.commit(vec![crate::metadata::Record::NoOp {}]);
    let effects = node.after(500, Input::Tick);
    let call = effects.iter().find_map(|effect| match effect {
        Effect::Fetch { call, .. } => Some(*call),
        _ => None,
    });
    let answer = crate::wire::WireMessage::encode(&ledger.fetch_answer(has));
    let result = Ok(crate::storage::core::FetchReply::Answer(answer));
    node.take(Input::FetchAnswer { call: call.unwrap(), result });
    assert_eq!(node.core.seen_epoch(), ControllerEpoch(1));
}

#[test]
fn who_is_fenced_in_the_answer_or_in_the_metadata_does_not_lead() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    node.heartbeat_now();
    assert_eq!(node.answered(&ledger, |answer| answer.state = NodeState::Fenced), [Effect::MayLead(false)]);
    node.heartbeat_now();
    assert_eq!(node.answered(&ledger, |_| {}), [Effect::MayLead(true)]);
    let has = ledger.position();
    ledger.state(ME, NodeEpoch(2), NodeState::Fenced);
    assert!(node.push(&ledger.push(has)).contains(&Effect::MayLead(false)));
}

#[test]
fn an_answer_without_a_lease_leaves_the_one_before_running() {
    let ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    node.heartbeat_now();
    assert_eq!(node.answered(&ledger, |answer| answer.lease_ms = 0), []);
    assert!(node.core.may_lead(node.now));
}

#[test]
fn a_leadership_ends_when_it_is_applied_and_begins_when_it_is_on_the_disk() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let before = ledger.position();
    let created = ledger.topic(vec![vec![ME, OTHER], vec![OTHER, ME]]);
    let effects = node.push(&ledger.push(before));
    assert!(matches!(effects[..], [Effect::Persist { .. }]), "{effects:?}");
    let led = Leadership { topic: TOPIC, partition: 0, leader_epoch: LeaderEpoch(0) };
    assert_eq!(node.saved()[0], Effect::Leads { gained: vec![led], lost: vec![] });
    ledger.partition(PartitionChange {
        partition: 0,
        leader: Some(Some(OTHER)),
        isr: None,
        waits_for: None,
        recovering: None,
    });
    let effects = node.push(&ledger.push(created));
    assert_eq!(effects[0], Effect::Leads { gained: vec![], lost: vec![led] });
    assert!(matches!(effects[1], Effect::Persist { .. }));
}

#[test]
fn another_incarnation_in_the_metadata_takes_the_leadership_away() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    let another = IncarnationId(uuid::Uuid::from_u128(999));
    let storage = ME;
    ledger.commit(vec![crate::metadata::Record::StorageRegistered {
        storage,
        directory: directory(ME),
        incarnation: another,
        rack: None,
    }]);
    assert_eq!(node.push(&ledger.push(has))[0], Effect::MayLead(false));
}

#[test]
fn a_lost_registration_is_made_anew_and_the_lease_ends() {
    for code in [Code::UnknownNode, Code::StaleNodeEpoch, Code::DuplicateNode, Code::DirectoryMismatch] {
        let ledger = Ledger::with_nodes();
        let mut node = Node::running(&ledger);
        node.heartbeat_now();
        let error = WireError::new(code, "no");
        assert_eq!(node.answered(&ledger, |answer| answer.error = Some(error)), [Effect::MayLead(false)]);
        let effects = node.after(100, Input::Tick);
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Register { .. })), "{code:?}: {effects:?}");
    }
}

#[test]
fn a_removed_node_ends_with_an_error() {
    let ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    node.heartbeat_now();
    let error = WireError::new(Code::NodeRemoved, "removed");
    let effects = node.answered(&ledger, |answer| answer.error = Some(error));
    assert_eq!((effects[0].clone(), exits(&effects)), (Effect::MayLead(false), Some(1)));
}

#[test]
fn a_node_that_nobody_hears_asks_sooner() {
    let ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let sent = node.heartbeat_now();
    node.take(Input::HeartbeatAnswer { sequence: sent.sequence, result: Err(CallError::NoResponders) });
    assert!(heartbeat(&node.after(125, Input::Tick)).is_some());
}
