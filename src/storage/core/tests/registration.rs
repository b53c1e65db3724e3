//! Joining: first the registration, then all else.

use super::support::*;
use crate::storage::core::{Call, CallError, Effect, Input};
use crate::types::*;
use crate::wire::{Code, WantedState, WireError};

fn refuse(node: &mut Node, code: Code) -> Vec<Effect> {
    let call = Call(node.core.calls);
    let body = WireError::new(code, "no").encode();
    node.take(Input::RegisterAnswer { call, result: Ok(body) })
}

#[test]
fn a_new_node_registers_is_bound_subscribes_and_only_then_heartbeats() {
    let mut node = Node::fresh();
    let effects = node.take(Input::Connected(connection(1)));
    let [Effect::Register { request, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((request.cluster, request.storage, request.position), (None, None, Position::default()));
    let effects = node.register_answered(&Ledger::founded());
    assert_eq!(effects[0], Effect::Bind { cluster: CLUSTER, storage: ME, node_epoch: NodeEpoch(2) });
    assert_eq!(effects[1], Effect::Subscribe { storage: ME });
    let first = heartbeat(&effects).unwrap();
    assert_eq!((first.node_epoch, first.wanted), (NodeEpoch(2), WantedState::Starting));
    let effects = node.take(Input::Subscribed(ME));
    assert_eq!(heartbeat(&effects).unwrap().wanted, WantedState::Running);
}

#[test]
fn a_node_tells_the_last_epoch_that_its_directory_was_given_and_writes_down_each_new_one() {
    let ledger = Ledger::with_nodes();
    let mut node = Node::bound(ledger.history.clone());
    node.core.identity.node_epoch = Some(NodeEpoch(1));
    let effects = node.take(Input::Connected(connection(1)));
    let Some(Effect::Register { request, .. }) = effects.get(1) else { panic!("{effects:?}") };
    assert_eq!(request.node_epoch, Some(NodeEpoch(1)));
    let effects = node.register_answered(&ledger);
    let given = node.core.node_epoch().unwrap();
    assert_eq!(effects[0], Effect::Bind { cluster: CLUSTER, storage: ME, node_epoch: given });
    assert_eq!(node.core.identity.node_epoch, Some(given));
}

#[test]
fn only_a_node_without_an_id_prefers_one() {
    let asked = |storage| {
        let mut node = Node::fresh();
        node.core.identity.preferred = Some(StorageId(4));
        node.core.identity.storage = storage;
        let effects = node.take(Input::Connected(connection(1)));
        let [Effect::Register { request, .. }] = &effects[..] else { panic!("{effects:?}") };
        request.preferred
    };
    assert_eq!((asked(None), asked(Some(ME))), (Some(StorageId(4)), None));
}

#[test]
fn a_node_that_joined_once_heartbeats_before_it_is_registered() {
    let ledger = Ledger::with_nodes();
    let mut node = Node::bound(ledger.history.clone());
    let effects = node.take(Input::Connected(connection(1)));
    assert_eq!(effects[0], Effect::Subscribe { storage: ME });
    assert!(matches!(effects[1], Effect::Register { .. }));
    let heartbeat = heartbeat(&effects).unwrap();
    assert_eq!((heartbeat.node_epoch, heartbeat.position), (NodeEpoch(0), ledger.position()));
    assert_eq!(heartbeat.wanted, WantedState::Starting);
    // Nothing that is answered to it gives a lease.
    assert_eq!(node.answered(&ledger, |_| {}), []);
    assert!(!node.core.may_lead(node.now));
}

#[test]
fn a_refusal_that_may_pass_is_retried_ever_more_slowly() {
    for code in [Code::DuplicateNode, Code::NotController, Code::HistoryLost, Code::InconsistentClusterId] {
        let mut node = Node::bound(Ledger::with_nodes().history);
        node.take(Input::Connected(connection(1)));
        let mut waits = Vec::new();
        for _ in 0..8 {
            assert_eq!(exits(&refuse(&mut node, code)), None);
            let started = node.now;
            while !node.take(Input::Tick).iter().any(|effect| matches!(effect, Effect::Register { .. })) {
                node.now = node.core.next_deadline().unwrap();
            }
            waits.push(node.now.since(started).as_millis());
        }
        assert!(waits[0] <= 100 && waits[7] >= 1000 && waits[7] <= 2000, "{code:?}: {waits:?}");
    }
}

#[test]
fn a_refusal_that_only_a_person_can_mend_ends_the_process() {
    for code in [Code::DirectoryMismatch, Code::NodeRemoved] {
        let mut node = Node::bound(Ledger::with_nodes().history);
        node.take(Input::Connected(connection(1)));
        assert_eq!(exits(&refuse(&mut node, code)), Some(1), "{code:?}");
    }
}

#[test]
fn an_answer_that_never_comes_is_asked_for_again() {
    let mut node = Node::fresh();
    node.take(Input::Connected(connection(1)));
    assert_eq!(node.after(2000, Input::Tick), []);
    assert!(matches!(node.after(100, Input::Tick)[..], [Effect::Register { call: Call(2), .. }]));
    // The first one's answer comes late, and is nobody's.
    assert_eq!(node.take(Input::RegisterAnswer { call: Call(1), result: Err(CallError::Timeout) }), []);
}

#[test]
fn a_registration_in_another_cluster_is_not_taken() {
    let mut node = Node::bound(Ledger::with_nodes().history);
    node.core.identity.cluster = Some(ClusterId(uuid::Uuid::from_u128(9)));
    node.take(Input::Connected(connection(1)));
    node.register_answered(&Ledger::with_nodes());
    assert_eq!(node.core.node_epoch(), None);
}

#[test]
fn a_reconnect_needs_no_new_registration() {
    let ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    node.take(Input::Disconnected);
    let effects = node.take(Input::Connected(connection(2)));
    assert!(matches!(effects[..], [Effect::SendHeartbeat(_)]), "{effects:?}");
}
