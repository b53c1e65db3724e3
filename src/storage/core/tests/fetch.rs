//! Fetching: who is asked, what is taken, and what a snapshot may replace.

use bytes::Bytes;

use super::support::*;
use crate::metadata::{History, Record, restored_base, write_snapshot};
use crate::storage::core::{Call, CallError, Effect, FetchReply, Input};
use crate::types::*;
use crate::wire::{AckOutcome, ChunkHeader, ChunkRequest, FetchAnswer, FetchRequest, WireMessage};

fn fetched(effects: &[Effect]) -> Option<(Call, ControllerId, FetchRequest)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Fetch { call, controller, request } => Some((*call, *controller, request.clone())),
        _ => None,
    })
}

fn reply(call: Call, answer: &FetchAnswer) -> Input {
    Input::FetchAnswer { call, result: Ok(FetchReply::Answer(answer.encode())) }
}

/// A node that is behind the ledger's head by one change, has heard so, and has waited.
fn behind(mut ledger: Ledger) -> (Ledger, Node, Position, Call) {
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    ledger.commit(vec![Record::NoOp {}]);
    node.heartbeat_now();
    assert_eq!(node.answered(&ledger, |_| {}), [], "the push that the heartbeat triggers has its chance first");
    let (call, controller, request) = fetched(&node.after(500, Input::Tick)).expect("it stays behind");
    assert_eq!((controller, request.from, request.chunk), (ControllerId(0), has, None));
    (ledger, node, has, call)
}

#[test]
fn who_stays_behind_fetches_and_acknowledges_what_it_took() {
    let (ledger, mut node, has, call) = behind(Ledger::with_nodes());
    let effects = node.take(reply(call, &ledger.fetch_answer(has)));
    assert!(matches!(effects[..], [Effect::Persist { .. }]), "{effects:?}");
    let head = ledger.position();
    assert_eq!(node.saved(), [ack(None, AckOutcome::Applied, head, head, 1)]);
}

#[test]
fn where_the_paired_controller_brings_nothing_the_active_one_is_asked() {
    let mut ledger = Ledger::with_nodes();
    ledger.elect(1);
    let (_, mut node, has, call) = behind(ledger);
    node.take(Input::FetchAnswer { call, result: Err(CallError::NoResponders) });
    let (_, controller, request) = fetched(&node.after(100, Input::Tick)).unwrap();
    assert_eq!((controller, request.from), (ControllerId(1), has));
}

#[test]
fn a_lost_answer_is_asked_for_again_and_a_late_one_is_nobodys() {
    let (ledger, mut node, has, call) = behind(Ledger::with_nodes());
    node.after(2000, Input::Tick);
    let (second, ..) = fetched(&node.after(100, Input::Tick)).unwrap();
    assert_eq!(node.take(reply(call, &ledger.fetch_answer(has))), []);
    assert!(!node.take(reply(second, &ledger.fetch_answer(has))).is_empty());
}

#[test]
fn an_answer_that_a_push_has_overtaken_is_dropped() {
    let (mut ledger, mut node, has, call) = behind(Ledger::with_nodes());
    let late = ledger.fetch_answer(has);
    ledger.commit(vec![Record::NoOp {}]);
    node.pushed(&ledger.push(has));
    assert_eq!(node.take(reply(call, &late)), []);
    assert_eq!(node.core.persisted(), ledger.position());
}

#[test]
fn a_forked_answer_is_not_applied() {
    let (ledger, mut node, has, call) = behind(Ledger::with_nodes());
    let mut forked = ledger.fetch_answer(has);
    forked.position.digest = Digest([1; 16]);
    assert_eq!(node.take(reply(call, &forked)), []);
    assert_eq!(node.core.history.position(), has);
}

#[test]
fn a_new_node_takes_the_beginning_only_from_an_answer() {
    let ledger = Ledger::with_nodes();
    let mut node = Node::fresh();
    node.take(Input::Connected(connection(1)));
    node.register_answered(&ledger);
    let effects = node.push(&ledger.push(Position::default()));
    assert_eq!(outcome(&effects), Some((AckOutcome::Gap, Position::default())));
    let (call, ..) = fetched(&effects).unwrap();
    let effects = node.take(reply(call, &ledger.fetch_answer(Position::default())));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Persist { .. })), "{effects:?}");
    assert_eq!(outcome(&node.saved()), Some((AckOutcome::Applied, ledger.position())));
    assert_eq!(node.core.history.image(), ledger.history.image());
}

fn snapshot_bytes(history: &History) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_snapshot(history.image().unwrap(), history.position(), &mut bytes).unwrap();
    bytes
}

fn offer(ledger: &Ledger, snapshot: Position) -> FetchAnswer {
    let mut answer = ledger.fetch_answer(ledger.position());
    (answer.position, answer.snapshot) = (snapshot, Some(snapshot));
    answer
}

fn chunk(call: Call, snapshot: Position, offset: usize, total: usize, bytes: &[u8]) -> Input {
    let header = ChunkHeader { snapshot, offset: offset as u64, total: total as u64 };
    let header = serde_json::to_vec(&header).unwrap().into();
    Input::FetchAnswer { call, result: Ok(FetchReply::Chunk { header, bytes: Bytes::copy_from_slice(bytes) }) }
}

#[test]
fn a_snapshot_comes_in_pieces_in_order_and_then_replaces_the_history() {
    let (mut ledger, mut node, _, call) = behind(Ledger::with_nodes());
    ledger.topic(vec![vec![ME]]);
    let (there, bytes) = (ledger.position(), snapshot_bytes(&ledger.history));
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let (call, _, request) = fetched(&node.take(reply(call, &offer(&ledger, there)))).unwrap();
    assert_eq!(request.chunk, Some(ChunkRequest { snapshot: there, offset: 0 }));
    let (call, _, request) = fetched(&node.take(chunk(call, there, 0, bytes.len(), first))).unwrap();
    assert_eq!(request.chunk, Some(ChunkRequest { snapshot: there, offset: first.len() as u64 }));
    let effects = node.take(chunk(call, there, first.len(), bytes.len(), second));
    let install = Effect::InstallSnapshot {
        cluster: CLUSTER,
        position: there,
        controller_epoch: ControllerEpoch(1),
        pieces: vec![Bytes::copy_from_slice(first), Bytes::copy_from_slice(second)],
    };
    assert_eq!(effects, [install]);
    let image = Box::new(ledger.history.image().unwrap().clone());
    let effects = node.take(Input::SnapshotInstalled { image, position: there });
    assert!(matches!(&effects[0], Effect::Leads { gained, .. } if gained.len() == 1), "{effects:?}");
    assert_eq!(effects[1], ack(None, AckOutcome::Applied, there, there, 1));
    assert_eq!(node.core.persisted(), there);
}

#[test]
fn a_snapshot_that_is_replaced_meanwhile_is_begun_anew() {
    let (mut ledger, mut node, _, call) = behind(Ledger::with_nodes());
    let old = ledger.position();
    let (call, ..) = fetched(&node.take(reply(call, &offer(&ledger, old)))).unwrap();
    let new = ledger.commit(vec![Record::NoOp {}]);
    let (_, _, request) = fetched(&node.take(reply(call, &offer(&ledger, new)))).unwrap();
    assert_eq!(request.chunk, Some(ChunkRequest { snapshot: new, offset: 0 }));
}

#[test]
fn a_wrong_piece_is_asked_for_again() {
    let (ledger, mut node, _, call) = behind(Ledger::with_nodes());
    let there = ledger.position();
    let (call, ..) = fetched(&node.take(reply(call, &offer(&ledger, there)))).unwrap();
    assert_eq!(node.take(chunk(call, there, 5, 100, b"abc")), []);
    let (call, _, request) = fetched(&node.after(100, Input::Tick)).unwrap();
    assert_eq!(request.chunk, Some(ChunkRequest { snapshot: there, offset: 0 }));
    let lying =
        Input::FetchAnswer { call, result: Ok(FetchReply::Chunk { header: Bytes::new(), bytes: Bytes::new() }) };
    assert_eq!(node.take(lying), []);
}

#[test]
fn a_snapshot_never_takes_the_node_back_nor_comes_from_an_older_epoch() {
    let mut ledger = Ledger::with_nodes();
    let old = ledger.position();
    ledger.elect(1);
    let (ledger, mut node, has, call) = behind(ledger);
    let mut stale = offer(&ledger, ledger.position());
    stale.controller_epoch = ControllerEpoch(1);
    assert_eq!(node.take(reply(call, &stale)), []);
    let (call, ..) = fetched(&node.after(100, Input::Tick)).unwrap();
    assert_eq!(node.take(reply(call, &offer(&ledger, old))), []);
    assert_eq!(node.core.history.position(), has);
}

#[test]
fn a_restored_history_replaces_the_nodes_own_and_its_epochs_do_not_fall() {
    let mut ledger = Ledger::with_nodes();
    ledger.elect(1);
    let (ledger, mut node, has, call) = behind(ledger);
    let (image, base) = restored_base(ledger.history.image().unwrap().clone(), has, ledger.position().version);
    let restored = History::from_image(image.clone(), base);
    let bytes = snapshot_bytes(&restored);
    let mut answer = offer(&ledger, base);
    answer.controller_epoch = ControllerEpoch(base.version.0 + 1);
    let (call, ..) = fetched(&node.take(reply(call, &answer))).unwrap();
    node.take(chunk(call, base, 0, bytes.len(), &bytes));
    node.take(Input::SnapshotInstalled { image: Box::new(image), position: base });
    assert_eq!((node.core.persisted(), node.core.controller_epoch()), (base, ControllerEpoch(8)));
}

#[test]
fn a_snapshot_that_cannot_be_read_leaves_the_node_as_it_was() {
    let (ledger, mut node, has, call) = behind(Ledger::with_nodes());
    let there = ledger.position();
    let (call, ..) = fetched(&node.take(reply(call, &offer(&ledger, there)))).unwrap();
    assert!(matches!(node.take(chunk(call, there, 0, 3, b"abc"))[..], [Effect::InstallSnapshot { .. }]));
    assert_eq!(node.take(Input::SnapshotUnusable { words: "torn".into() }), []);
    assert_eq!(node.core.history.position(), has);
    assert_eq!(outcome(&node.pushed(&ledger.push(has))), Some((AckOutcome::Applied, there)));
}

#[test]
fn a_disk_that_takes_no_snapshot_is_told_with_the_heartbeats() {
    let (ledger, mut node, _, call) = behind(Ledger::with_nodes());
    let there = ledger.position();
    let bytes = snapshot_bytes(&ledger.history);
    let (call, ..) = fetched(&node.take(reply(call, &offer(&ledger, there)))).unwrap();
    node.take(chunk(call, there, 0, bytes.len(), &bytes));
    assert_eq!(node.heartbeat_now().health.directory_errors, Vec::<String>::new());
    node.take(Input::PersistFailed { words: "no space left".into(), fatal: false });
    let effects = node.after(500, Input::Tick);
    assert_eq!(heartbeat(&effects).unwrap().health.directory_errors, ["no space left"]);
    // What is fetched then is taken.
    let (call, ..) = fetched(&effects).unwrap();
    let (call, ..) = fetched(&node.take(reply(call, &offer(&ledger, there)))).unwrap();
    node.take(chunk(call, there, 0, bytes.len(), &bytes));
    let image = Box::new(ledger.history.image().unwrap().clone());
    node.take(Input::SnapshotInstalled { image, position: there });
    assert_eq!(node.heartbeat_now().health.directory_errors, Vec::<String>::new());
}

#[test]
fn somebody_elses_fetch_is_served_from_the_disk() {
    let mut node = Node::running(&Ledger::with_nodes());
    let request = FetchRequest { cluster: Some(CLUSTER), storage: None, from: Position::default(), chunk: None };
    let token = crate::storage::core::Token(4);
    let effects = node.take(Input::Push { payload: request.encode(), token });
    assert_eq!(effects, [Effect::ServeFetch { token, request }]);
}
