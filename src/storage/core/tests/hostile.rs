//! Whatever comes from outside: no panic, and nothing changes that was not proved.

use bytes::Bytes;
use proptest::prelude::*;

use super::support::*;
use crate::metadata::Record;
use crate::storage::core::{Call, Effect, FetchReply, Input, Token};
use crate::types::*;
use crate::wire::WireMessage;

fn inputs(node: &Node, payload: &Bytes) -> Vec<Input> {
    let sequence = node.core.session.last_sequence();
    let (call, result) = (Call(node.core.calls), Ok(payload.clone()));
    vec![
        Input::Push { payload: payload.clone(), token: Token(1) },
        Input::HeartbeatAnswer { sequence, result: result.clone() },
        Input::RegisterAnswer { call, result: result.clone() },
        Input::IsrAnswer { call, result },
        Input::FetchAnswer { call, result: Ok(FetchReply::Answer(payload.clone())) },
        Input::FetchAnswer { call, result: Ok(FetchReply::Chunk { header: payload.clone(), bytes: payload.clone() }) },
    ]
}

/// A node that has asked for everything it can ask for, and what would be good messages for it.
fn scene() -> (Node, Ledger, Vec<Bytes>) {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    ledger.topic(vec![vec![ME, OTHER]]);
    let records = (0..20).map(|_| Record::PairingChanged { storage: OTHER, controller: None }).collect();
    ledger.commit_split(records, 700);
    node.heartbeat_now();
    let Input::HeartbeatAnswer { result: Ok(answer), .. } = node.answer(&ledger, |_| {}) else { unreachable!() };
    let push = ledger.push(has);
    let mut gap = push.clone();
    gap.base.version = gap.base.version.next();
    node.push(&gap);
    let good = vec![push.encode(), answer, ledger.fetch_answer(has).encode()];
    (node, ledger, good)
}

fn unmoved(node: &Node, has: Position, epoch: ControllerEpoch) {
    assert_eq!((node.core.persisted(), node.core.controller_epoch()), (has, epoch));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_bytes_change_nothing(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (mut node, _, _) = scene();
        let (has, epoch) = (node.core.history.position(), node.core.controller_epoch());
        for input in inputs(&node, &payload.into()) {
            let effects = node.take(input);
            prop_assert_eq!(exits(&effects), None);
            let writes = effects.iter().any(|effect| matches!(effect, Effect::Persist { .. }));
            prop_assert!(!writes);
        }
        prop_assert_eq!(node.core.history.position(), has);
        unmoved(&node, has, epoch);
    }

    #[test]
    fn a_good_message_with_some_bytes_changed_leads_nowhere_but_along_the_history(
        which in 0usize..3,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let (mut node, ledger, good) = scene();
        let (has, epoch) = (node.core.history.position(), node.core.controller_epoch());
        let mut payload = good[which].to_vec();
        for (at, byte) in changes {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        for input in inputs(&node, &payload.into()) {
            node.take(input);
        }
        let now = node.core.history.position();
        prop_assert!(now == has || now == ledger.position(), "{now}");
        prop_assert_eq!(node.core.persisted(), has);
        prop_assert!(node.core.controller_epoch() == epoch);
    }
}

#[test]
fn deep_nesting_and_absurd_numbers_are_refused() {
    let (mut node, _, good) = scene();
    let has = node.core.history.position();
    let text = String::from_utf8(good[0].to_vec()).unwrap();
    let huge = text.replacen("\"version\":", "\"version\":99999999999999999999999", 1);
    for payload in ["[".repeat(1 << 20), "{\"a\":".repeat(100_000), huge, text[..text.len() / 2].to_owned()] {
        for input in inputs(&node, &payload.into()) {
            node.take(input);
        }
    }
    assert_eq!(node.core.history.position(), has);
}

#[test]
fn a_forged_jump_over_versions_needs_an_answer_that_shows_it() {
    let ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    let mut push = ledger.push(has);
    push.position.version = Version(1 << 52);
    assert!(!node.push(&push).iter().any(|effect| matches!(effect, Effect::Persist { .. })));
    assert_eq!(node.core.history.position(), has);
}

#[test]
fn a_complaint_is_made_once_per_kind_and_minute() {
    let ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let mut logged = |after: u64| {
        node.now = node.now + std::time::Duration::from_millis(after);
        let mut out = Vec::new();
        node.core.handle(node.now, Input::Push { payload: Bytes::from_static(b"x"), token: Token(1) }, &mut out);
        out.iter().filter(|effect| matches!(effect, Effect::Log { .. })).count()
    };
    assert_eq!([logged(0), logged(10), logged(59_000), logged(60_000)], [1, 0, 0, 1]);
}
