//! Ending: by a grant, by a refusal, by time, and at once where there is nothing to wait for.

use super::support::*;
use crate::storage::core::{CallError, Effect, Input};
use crate::wire::WantedState;

#[test]
fn a_drain_is_told_at_once_and_ends_when_it_is_granted() {
    let ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let effects = node.take(Input::Shutdown);
    assert_eq!(heartbeat(&effects).unwrap().wanted, WantedState::Draining);
    assert_eq!(node.answered(&ledger, |_| {}), []);
    node.heartbeat_now();
    let effects = node.answered(&ledger, |answer| answer.shutdown_granted = true);
    assert_eq!((effects[0].clone(), exits(&effects)), (Effect::MayLead(false), Some(0)));
    assert_eq!(node.take(Input::Tick), []);
}

#[test]
fn a_drain_that_cannot_succeed_ends_at_once() {
    let ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    node.take(Input::Shutdown);
    assert_eq!(exits(&node.answered(&ledger, |answer| answer.drain_impossible = true)), Some(0));
}

#[test]
fn a_drain_gives_up_in_time() {
    let mut ledger = Ledger::with_nodes();
    ledger.topic(vec![vec![ME, OTHER]]);
    let mut node = Node::running(&ledger);
    node.take(Input::Shutdown);
    assert_eq!(exits(&node.after(4_999, Input::Tick)), None);
    assert_eq!(exits(&node.after(1, Input::Tick)), Some(0));
}

#[test]
fn who_was_never_registered_or_is_not_connected_ends_at_once() {
    assert_eq!(exits(&Node::fresh().take(Input::Shutdown)), Some(0));
    let mut node = Node::running(&Ledger::with_nodes());
    node.take(Input::Disconnected);
    assert_eq!(exits(&node.take(Input::Shutdown)), Some(0));
}

#[test]
fn who_leads_nothing_and_is_heard_by_nobody_ends_at_once() {
    let mut ledger = Ledger::with_nodes();
    for leads in [false, true] {
        if leads {
            ledger.topic(vec![vec![ME, OTHER]]);
        }
        let mut node = Node::running(&ledger);
        let sent = heartbeat(&node.take(Input::Shutdown)).unwrap();
        let unheard = Input::HeartbeatAnswer { sequence: sent.sequence, result: Err(CallError::NoResponders) };
        assert_eq!(exits(&node.take(unheard)), (!leads).then_some(0));
    }
}

#[test]
fn a_grant_that_was_not_asked_for_is_passed_over() {
    let ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    node.heartbeat_now();
    assert_eq!(node.answered(&ledger, |answer| answer.shutdown_granted = true), []);
}

#[test]
fn told_twice_it_ends_at_once() {
    let mut node = Node::running(&Ledger::with_nodes());
    node.take(Input::Shutdown);
    assert_eq!(exits(&node.take(Input::Shutdown)), Some(1));
}
