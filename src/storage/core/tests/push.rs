//! Every rule of a push.

use super::support::*;
use crate::metadata::{Entry, Record, encode_change};
use crate::storage::core::{Applied, Effect, Input, Token};
use crate::types::*;
use crate::wire::{AckOutcome, Code};

fn applied(ledger: &Ledger, after: Position) -> Applied {
    let message = |(version, payload): &(Version, bytes::Bytes)| crate::metadata::Message {
        version: *version,
        payload: payload.clone(),
    };
    let newer = ledger.messages.iter().filter(|(version, _)| *version > after.version);
    Applied {
        position: ledger.position(),
        controller_epoch: ledger.history.controller_epoch(),
        messages: newer.map(message).collect(),
    }
}

#[test]
fn a_push_on_top_of_what_the_node_has_is_written_first_and_acknowledged_then() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let base = ledger.position();
    let head = ledger.commit(vec![Record::NoOp {}]);
    assert_eq!(node.push(&ledger.push(base)), [Effect::Persist { changes: vec![applied(&ledger, base)] }]);
    assert_eq!(node.core.persisted(), base);
    assert_eq!(node.saved(), [ack(Some(9), AckOutcome::Applied, head, head, 1)]);
    assert_eq!(node.core.persisted(), head);
}

#[test]
fn a_push_while_the_disk_works_waits_for_its_own_write() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let base = ledger.position();
    let first = ledger.commit(vec![Record::NoOp {}]);
    node.push(&ledger.push(base));
    let second = ledger.commit(vec![Record::NoOp {}]);
    let push = ledger.push(first);
    assert_eq!(node.take(Input::Push { payload: crate::wire::WireMessage::encode(&push), token: Token(10) }), []);
    let effects = node.take(Input::Persisted(first));
    let next = Effect::Persist { changes: vec![applied(&ledger, first)] };
    assert_eq!(effects, [ack(Some(9), AckOutcome::Applied, first, first, 1), next]);
    assert_eq!(node.take(Input::Persisted(second)), [ack(Some(10), AckOutcome::Applied, second, second, 1)]);
}

#[test]
fn a_duplicate_of_what_is_not_on_the_disk_yet_is_not_acknowledged_early() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let base = ledger.position();
    let head = ledger.commit(vec![Record::NoOp {}]);
    let push = ledger.push(base);
    node.push(&push);
    assert_eq!(node.push(&push), []);
    let both = [AckOutcome::Applied, AckOutcome::Duplicate].map(|outcome| ack(Some(9), outcome, head, head, 1));
    assert_eq!(node.saved(), both);
}

#[test]
fn a_stale_or_repeated_push_changes_nothing_and_hears_what_the_node_has() {
    let mut ledger = Ledger::with_nodes();
    let base = ledger.position();
    let old = {
        ledger.commit(vec![Record::NoOp {}]);
        ledger.push(base)
    };
    let head = ledger.commit(vec![Record::NoOp {}]);
    let mut node = Node::running(&ledger);
    for push in [&old, &ledger.push(base)] {
        assert_eq!(node.push(push), [ack(Some(9), AckOutcome::Duplicate, head, push.position, 1)]);
    }
    assert_eq!(node.core.history.position(), head);
}

#[test]
fn a_push_whose_base_is_older_is_ignored_even_if_it_ends_later() {
    let mut ledger = Ledger::with_nodes();
    let base = ledger.position();
    let has = ledger.commit(vec![Record::NoOp {}]);
    let mut node = Node::running(&ledger);
    let head = ledger.commit(vec![Record::NoOp {}]);
    assert_eq!(node.push(&ledger.push(base)), [ack(Some(9), AckOutcome::Duplicate, has, head, 1)]);
}

#[test]
fn pushes_in_the_wrong_order_are_a_gap_and_then_a_fetch() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    let between = ledger.commit(vec![Record::NoOp {}]);
    let first = ledger.push(has);
    let head = ledger.commit(vec![Record::NoOp {}]);
    let effects = node.push(&ledger.push(between));
    assert_eq!(effects[0], ack(Some(9), AckOutcome::Gap, has, head, 1));
    let Effect::Fetch { controller, request, .. } = &effects[1] else { panic!("{effects:?}") };
    assert_eq!((*controller, request.from, request.chunk), (ControllerId(0), has, None));
    // The one that was overtaken arrives after all, and is as good as any.
    assert_eq!(outcome(&node.pushed(&first)), Some((AckOutcome::Applied, between)));
}

#[test]
fn a_push_without_entries_that_ends_elsewhere_says_that_the_node_is_too_far_behind() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    ledger.commit(vec![Record::NoOp {}]);
    let mut push = ledger.push(has);
    push.entries.clear();
    let effects = node.push(&push);
    assert_eq!(outcome(&effects), Some((AckOutcome::Gap, has)));
    assert!(matches!(effects[1], Effect::Fetch { .. }));
}

#[test]
fn a_push_of_an_older_controller_epoch_is_refused_with_what_the_node_has() {
    let mut ledger = Ledger::with_nodes();
    let mut deposed = ledger.clone();
    let base = ledger.position();
    let has = ledger.elect(1);
    let mut node = Node::running(&ledger);
    deposed.commit(vec![Record::NoOp {}]);
    deposed.commit(vec![Record::NoOp {}]);
    let push = deposed.push(base);
    assert_eq!(node.push(&push), [ack(Some(9), AckOutcome::StaleEpoch, has, push.position, has.version.0)]);
}

#[test]
fn an_epoch_heard_of_in_an_answer_already_refuses_the_older_one() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    let mut deposed = ledger.clone();
    ledger.elect(1);
    node.heartbeat_now();
    node.answered(&ledger, |_| {});
    deposed.commit(vec![Record::NoOp {}]);
    let push = deposed.push(has);
    assert_eq!(node.push(&push), [ack(Some(9), AckOutcome::StaleEpoch, has, push.position, 1)]);
}

#[test]
fn a_push_of_another_cluster_or_for_another_node_is_refused() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    ledger.commit(vec![Record::NoOp {}]);
    let mut foreign = ledger.push(has);
    foreign.cluster = ClusterId(uuid::Uuid::from_u128(2));
    let mut astray = ledger.push(has);
    astray.storage = OTHER;
    for (push, code) in [(foreign, Code::InconsistentClusterId), (astray, Code::UnknownNode)] {
        let effects = node.push(&push);
        let [Effect::Acknowledge { ack, .. }] = &effects[..] else { panic!("{effects:?}") };
        assert_eq!((ack.outcome, ack.position), (AckOutcome::Refused, has));
        assert_eq!(ack.error.as_ref().map(|error| error.code), Some(code));
    }
    assert_eq!(node.core.history.position(), has);
}

#[test]
fn nobody_but_the_paired_controller_is_listened_to() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    let head = ledger.commit(vec![Record::NoOp {}]);
    let mut another = ledger.push(has);
    another.controller = ControllerId(1);
    let mut former = ledger.push(has);
    former.pairing_epoch = PairingEpoch(2);
    for push in [another, former] {
        assert_eq!(node.push(&push), [ack(Some(9), AckOutcome::NotPaired, has, head, 1)]);
    }
}

#[test]
fn a_forged_huge_pairing_epoch_changes_nothing() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    let head = ledger.commit(vec![Record::NoOp {}]);
    let mut forged = ledger.push(has);
    (forged.controller, forged.pairing_epoch) = (ControllerId(7), PairingEpoch(1 << 52));
    forged.controller_epoch = ControllerEpoch(1 << 52);
    assert_eq!(node.push(&forged), [ack(Some(9), AckOutcome::NotPaired, has, head, 1)]);
    assert_eq!(outcome(&node.pushed(&ledger.push(has))), Some((AckOutcome::Applied, head)));
}

#[test]
fn a_newer_pairing_counts_when_the_pushed_history_itself_has_it() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    let head = ledger.commit(vec![Record::PairingChanged { storage: ME, controller: Some(ControllerId(2)) }]);
    let push = ledger.push(has);
    assert_eq!((push.controller, push.pairing_epoch.0), (ControllerId(2), head.version.0));
    assert_eq!(outcome(&node.pushed(&push)), Some((AckOutcome::Applied, head)));
    let mut former = ledger.push(head);
    (former.controller, former.pairing_epoch) = (ControllerId(0), PairingEpoch(3));
    assert_eq!(outcome(&node.push(&former)), Some((AckOutcome::NotPaired, head)));
}

#[test]
fn a_newer_pairing_in_an_answer_replaces_the_older_one() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    let old = {
        let mut ledger = ledger.clone();
        ledger.commit(vec![Record::NoOp {}]);
        ledger.push(has)
    };
    ledger.commit(vec![Record::PairingChanged { storage: ME, controller: Some(ControllerId(2)) }]);
    node.heartbeat_now();
    node.answered(&ledger, |_| {});
    assert_eq!(outcome(&node.push(&old)), Some((AckOutcome::NotPaired, has)));
    assert_eq!(outcome(&node.pushed(&ledger.push(has))), Some((AckOutcome::Applied, ledger.position())));
}

#[test]
fn the_same_version_with_another_digest_is_a_fork() {
    let mut ledger = Ledger::with_nodes();
    let base = ledger.position();
    let mut forked = ledger.clone();
    let has = ledger.commit(vec![Record::NoOp {}]);
    let mut node = Node::running(&ledger);
    forked.topic(vec![vec![ME]]);
    let same = forked.push(base);
    assert_eq!(node.push(&same), [ack(Some(9), AckOutcome::Forked, has, same.position, 1)]);
    let there = forked.position();
    forked.commit(vec![Record::NoOp {}]);
    let beyond = forked.push(there);
    assert_eq!(node.push(&beyond), [ack(Some(9), AckOutcome::Forked, has, beyond.position, 1)]);
    assert_eq!(node.core.history.position(), has);
}

#[test]
fn entries_that_do_not_lead_to_the_digest_that_they_name_are_a_fork_and_leave_no_trace() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    let head = ledger.topic(vec![vec![ME, OTHER]]);
    let mut push = ledger.push(has);
    push.position.digest = Digest([1; 16]);
    assert_eq!(outcome(&node.push(&push)), Some((AckOutcome::Forked, has)));
    assert!(node.core.history.image().unwrap().topics.is_empty());
    assert_eq!(outcome(&node.pushed(&ledger.push(has))), Some((AckOutcome::Applied, head)));
}

#[test]
fn a_change_in_parts_is_taken_whole_or_not_at_all() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    let records = (0..40).map(|_| Record::PairingChanged { storage: OTHER, controller: None }).collect();
    let head = ledger.commit_split(records, 900);
    let whole = ledger.push(has);
    assert!(whole.entries.len() > 2);
    let mut half = whole.clone();
    half.entries.pop();
    let last = half.entries.last().unwrap().version;
    let digest = half
        .entries
        .iter()
        .fold(has.digest, |digest, entry| crate::metadata::chain(digest, entry.version, entry.entry.get().as_bytes()));
    half.position = Position { version: last, digest };
    assert_eq!(outcome(&node.push(&half)), Some((AckOutcome::Refused, has)));
    let effects = node.push(&whole);
    let [Effect::Persist { changes }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((changes.len(), changes[0].messages.len()), (1, whole.entries.len()));
    assert_eq!(outcome(&node.saved()), Some((AckOutcome::Applied, head)));
}

#[test]
fn void_versions_are_passed_over_and_kept_on_the_disk() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    ledger.garbage();
    ledger.commit(vec![Record::NoOp {}]);
    let head = ledger.garbage();
    // What only the end of a push says of void versions may be made up; the answer to a heartbeat confirms it.
    assert_eq!(outcome(&node.push(&ledger.push(has))), Some((AckOutcome::Gap, has)));
    node.heartbeat_now();
    node.answered(&ledger, |_| {});
    let effects = node.push(&ledger.push(has));
    let [Effect::Persist { changes }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(changes.iter().map(|change| change.messages.len()).collect::<Vec<_>>(), [1, 0]);
    assert_eq!(changes[1].position, head);
    assert_eq!(outcome(&node.saved()), Some((AckOutcome::Applied, head)));
}

#[test]
fn a_record_that_this_program_does_not_know_is_refused_and_what_precedes_it_is_kept() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    let known = ledger.commit(vec![Record::NoOp {}]);
    let entry = Entry {
        cluster: CLUSTER,
        controller_epoch: ControllerEpoch(1),
        previous: known,
        committed_at: WallTime(1),
        cause: "tomorrow".into(),
        request: None,
        records: vec![Record::NoOp {}],
    };
    let text = String::from_utf8(encode_change(&entry, 10_000).unwrap()[0].to_vec()).unwrap();
    let text = text.replace(r#""type":"noOp""#, r#""type":"ofTomorrow""#);
    ledger.messages.push((known.version.next(), text.clone().into()));
    let version = known.version.next();
    let position = Position { version, digest: crate::metadata::chain(known.digest, version, text.as_bytes()) };
    let mut push = ledger.push(has);
    push.position = position;
    push.entries = ledger.entries(has.version, version);
    let effects = node.push(&push);
    let Effect::Acknowledge { ack, .. } = &effects[0] else { panic!("{effects:?}") };
    assert_eq!(ack.outcome, AckOutcome::Refused);
    assert_eq!(ack.error.as_ref().map(|error| error.code), Some(Code::UnsupportedVersion));
    assert_eq!(node.core.history.position(), known);
}

#[test]
fn a_failed_write_is_repeated_and_nothing_is_acknowledged_before() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    let head = ledger.commit(vec![Record::NoOp {}]);
    let first = node.push(&ledger.push(has));
    assert_eq!(node.take(Input::PersistFailed { words: "full".into(), fatal: false }), []);
    assert_eq!(node.after(100, Input::Tick), first);
    assert_eq!(node.saved(), [ack(Some(9), AckOutcome::Applied, head, head, 1)]);
}

#[test]
fn a_disk_that_takes_nothing_any_more_ends_the_process() {
    let mut ledger = Ledger::with_nodes();
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    ledger.commit(vec![Record::NoOp {}]);
    node.push(&ledger.push(has));
    let effects = node.take(Input::PersistFailed { words: "gone".into(), fatal: true });
    assert_eq!(effects[0], Effect::MayLead(false));
    assert_eq!(exits(&effects), Some(1));
}

#[test]
fn a_push_about_one_partition_leaves_the_others_alone() {
    let mut ledger = Ledger::with_nodes();
    ledger.topic(vec![vec![ME, OTHER], vec![OTHER, ME]]);
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    let change = crate::metadata::PartitionChange {
        partition: 0,
        leader: Some(Some(OTHER)),
        isr: None,
        waits_for: None,
        recovering: None,
    };
    ledger.partition(change);
    node.pushed(&ledger.push(has));
    let image = node.core.history.image().unwrap();
    assert_eq!(image.partition(TOPIC, 0).unwrap().leader, Some(OTHER));
    assert_eq!(image.partition(TOPIC, 1), ledger.history.image().unwrap().partition(TOPIC, 1));
}

/// What controller 1, which is active, sends to a node that is paired with controller 0.
fn steps_in(ledger: &Ledger, base: Position) -> crate::wire::Push {
    crate::wire::Push { controller: ControllerId(1), entries: Vec::new(), ..ledger.push(base) }
}

#[test]
fn what_the_active_controller_says_in_place_of_a_silent_one_is_fetched_from_it_and_not_believed() {
    let mut ledger = Ledger::with_nodes();
    ledger.elect(1);
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    ledger.commit(vec![Record::NoOp {}]);
    let head = ledger.commit(vec![Record::NoOp {}]);
    let effects = node.push(&steps_in(&ledger, has));
    assert_eq!(outcome(&effects), Some((AckOutcome::Gap, has)));
    let Effect::Fetch { call, controller, request } = &effects[1] else { panic!("{effects:?}") };
    assert_eq!((*controller, request.from), (ControllerId(1), has));
    let body = crate::wire::WireMessage::encode(&ledger.fetch_answer(has));
    node.take(Input::FetchAnswer { call: *call, result: Ok(crate::storage::core::FetchReply::Answer(body)) });
    let effects = node.saved();
    assert_eq!(effects, [ack(None, AckOutcome::Applied, head, head, 8)]);
    // What it knows already it says so, and asks nobody.
    assert_eq!(node.push(&steps_in(&ledger, has)), [ack(Some(9), AckOutcome::Duplicate, head, head, 8)]);
}

#[test]
fn what_was_asked_of_a_silent_controller_is_not_waited_for_once_the_active_one_steps_in() {
    let mut ledger = Ledger::with_nodes();
    ledger.elect(1);
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    let between = ledger.commit(vec![Record::NoOp {}]);
    ledger.commit(vec![Record::NoOp {}]);
    let effects = node.push(&ledger.push(between));
    assert!(matches!(effects[1], Effect::Fetch { controller: ControllerId(0), .. }), "{effects:?}");
    let effects = node.push(&steps_in(&ledger, has));
    assert!(matches!(effects[1], Effect::Fetch { controller: ControllerId(1), .. }), "{effects:?}");
    // It has failed as well: the paired one has its turn again.
    let Effect::Fetch { call, .. } = effects[1] else { panic!() };
    node.take(Input::FetchAnswer { call, result: Err(crate::storage::core::CallError::NoResponders) });
    let effects = node.after(2_000, Input::Tick);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Fetch { .. })), "{effects:?}");
}

#[test]
fn only_the_active_controller_steps_in_and_only_without_entries() {
    let mut ledger = Ledger::with_nodes();
    ledger.elect(1);
    let mut node = Node::running(&ledger);
    let has = ledger.position();
    let head = ledger.commit(vec![Record::NoOp {}]);
    let stranger = crate::wire::Push { controller: ControllerId(2), ..steps_in(&ledger, has) };
    let pushes = crate::wire::Push { controller: ControllerId(1), ..ledger.push(has) };
    for push in [stranger, pushes] {
        assert_eq!(node.push(&push), [ack(Some(9), AckOutcome::NotPaired, has, head, 8)]);
    }
    let stale = crate::wire::Push { controller_epoch: ControllerEpoch(1), ..steps_in(&ledger, has) };
    assert_eq!(node.push(&stale), [ack(Some(9), AckOutcome::StaleEpoch, has, head, 8)]);
    // Versions that changed nothing are no exception: their end is believed only from who was asked.
    let void = ledger.garbage();
    let mut node = Node::running(&ledger);
    node.answered(&ledger, |_| {});
    let beyond = ledger.garbage();
    let effects = node.push(&steps_in(&ledger, void));
    assert_eq!(outcome(&effects), Some((AckOutcome::Gap, void)));
    assert_eq!(node.core.history.position(), void);
    assert_ne!(void, beyond);
}
