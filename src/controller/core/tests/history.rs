//! The stream: what is appended, what others write there, and what is no longer its.

use super::*;

#[test]
fn another_message_in_the_place_of_a_void_one_is_another_history_too() {
    for other in [None, Some(Bytes::from_static(b"something else"))] {
        let mut rig = Rig::active();
        let stranger = Bytes::from_static(b"a stranger's");
        rig.stream.push(stranger.clone());
        let version = Version(rig.stream.len() as u64);
        rig.feed(Input::Entry { version, payload: stranger });
        assert_eq!(rig.core.history.seen(), version);
        rig.feed(Input::Disconnected);
        let forks = other.is_some();
        if let Some(other) = other {
            *rig.stream.last_mut().unwrap() = other;
        }
        rig.feed(Input::Connected(connection(2)));
        rig.pass(Duration::from_secs(1));
        assert_eq!(matches!(rig.core.role, office::Role::Halted { .. }), forks);
    }
}

#[test]
fn a_void_message_that_is_the_same_does_not_hide_that_what_precedes_it_is_another_history() {
    for forks in [false, true] {
        let mut rig = Rig::with_nodes();
        let counts = rig.stream.len() - 1;
        let void = Bytes::from_static(b"on top of what this controller does not have");
        rig.stream.push(void.clone());
        rig.feed(Input::Entry { version: Version(rig.stream.len() as u64), payload: void });
        rig.feed(Input::Disconnected);
        if forks {
            rig.stream[counts] = Bytes::from_static(b"another's");
        }
        rig.feed(Input::Connected(connection(2)));
        rig.pass(Duration::from_secs(1));
        assert_eq!(matches!(rig.core.role, office::Role::Halted { .. }), forks);
    }
}

#[test]
fn what_comes_of_a_stream_that_was_not_looked_at_yet_does_not_hide_that_it_is_another() {
    let mut rig = Rig::with_nodes();
    rig.feed(Input::Disconnected);
    *rig.stream.last_mut().unwrap() = Bytes::from_static(b"another's");
    rig.stream.push(Bytes::from_static(b"on top of it"));
    let (version, payload) = (Version(rig.stream.len() as u64), rig.stream.last().unwrap().clone());
    rig.feed(Input::Entry { version, payload });
    rig.feed(Input::Connected(connection(2)));
    rig.pass(Duration::from_secs(1));
    assert!(matches!(rig.core.role, office::Role::Halted { .. }), "{:?}", rig.core.role);
}

#[test]
fn an_append_that_was_stored_but_not_answered_takes_effect_once() {
    let mut rig = Rig::with_nodes();
    let before = rig.stream.len();
    rig.fates.push_back(Fate::Unanswered);
    rig.create("orders");
    assert_eq!(rig.stream.len(), before + 1);
    assert!(rig.core.history().image().unwrap().topic("orders").is_some());
}

#[test]
fn an_append_that_was_not_stored_leaves_a_no_op_in_its_place_and_is_written_behind_it() {
    let mut rig = Rig::with_nodes();
    let before = rig.stream.len();
    rig.fates.push_back(Fate::Swallowed);
    rig.create("orders");
    assert_eq!(rig.stream.len(), before + 2);
    let filler = ParsedEntry::parse(&rig.stream[before]).unwrap();
    assert_eq!(filler.records().unwrap(), vec![crate::metadata::Record::NoOp {}]);
    assert!(rig.core.history().image().unwrap().topic("orders").is_some());
}

#[test]
fn an_election_that_was_not_stored_leaves_a_void_entry_in_its_place() {
    let mut rig = Rig::new();
    rig.feed(Input::LeaseFree);
    rig.feed(Input::Connected(connection(1)));
    rig.pass(Duration::from_secs(4));
    let before = rig.stream.len();
    rig.feed(Input::Disconnected);
    rig.fates.push_back(Fate::Swallowed);
    rig.feed(Input::Connected(connection(2)));
    rig.feed(Input::LeaseFree);
    rig.pass(Duration::from_secs(1));
    assert_eq!((rig.stream.len(), rig.core.role()), (before + 2, ControllerRole::Active));
    assert_eq!(rig.core.acting_epoch(), Some(ControllerEpoch(rig.stream.len() as u64)));
    let mut replayed = History::new();
    for (version, payload) in (1..).map(Version).zip(&rig.stream) {
        replayed.offer(version, payload).unwrap();
    }
    assert_eq!(replayed.position(), rig.core.history().position());
}

#[test]
fn what_a_stranger_writes_to_the_history_is_void_and_holds_nothing_up() {
    let mut rig = Rig::with_nodes();
    let before = rig.stream.len();
    rig.fates.extend([Fate::Preceded, Fate::Preceded]);
    rig.create("orders");
    assert_eq!(rig.stream.len(), before + 3);
    assert_eq!(rig.core.role(), ControllerRole::Active);
    assert!(rig.core.history().image().unwrap().topic("orders").is_some());
}

#[test]
fn a_lost_history_stops_the_writes_without_waiting_for_one() {
    let mut rig = Rig::with_nodes();
    rig.missing = true;
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.core.role(), ControllerRole::Halted);
    assert!(rig.serving, "whoever holds the lease answers for the state of things");
    let token = rig.create("orders");
    assert_eq!(rig.answer(token).unwrap().as_ref().unwrap_err().code, Code::HistoryLost);
}

#[test]
fn a_controller_whose_connection_ends_acts_no_more() {
    let mut rig = Rig::with_nodes();
    rig.feed(Input::Disconnected);
    assert_eq!(rig.core.acting_epoch(), None);
    assert!(!rig.serving);
}

#[test]
fn a_deposed_controller_gives_up_when_it_reads_its_successors_election() {
    let mut rig = Rig::with_nodes();
    let (image, previous) = (rig.core.history().image().unwrap().clone(), rig.core.history().position());
    let elected = crate::metadata::Record::ControllerElected {
        controller: ControllerId(1),
        directory: DirectoryId(Uuid::from_u128(50)),
        incarnation: IncarnationId(Uuid::from_u128(51)),
    };
    let entry = crate::metadata::Entry {
        cluster: image.cluster,
        controller_epoch: ControllerEpoch(previous.version.next().0),
        previous,
        committed_at: WallTime(0),
        cause: "a test".into(),
        request: None,
        records: vec![elected],
    };
    rig.stream.extend(crate::metadata::encode_change(&entry, 10_000).unwrap());
    let token = rig.create("orders");
    assert_eq!(rig.core.role(), ControllerRole::Standby);
    assert_eq!(rig.answer(token).unwrap().as_ref().unwrap_err().code, Code::Unknown);
    assert!(rig.core.history().image().unwrap().topic("orders").is_none());
}

#[test]
fn a_history_is_followed_on_only_once_its_last_message_is_seen_to_be_the_streams() {
    let mut rig = Rig::with_nodes();
    rig.feed(Input::Disconnected);
    // Another controller's entry stands where this one's last was, and the question for it is not answered.
    *rig.stream.last_mut().unwrap() = Bytes::from_static(b"another's");
    rig.deaf = true;
    rig.feed(Input::Connected(connection(2)));
    rig.feed(Input::LeaseFree);
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.core.role(), ControllerRole::Starting);
    rig.deaf = false;
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.core.role(), ControllerRole::Halted);
}

#[test]
fn a_history_that_is_lost_again_before_its_restorer_is_elected_can_be_restored_again() {
    let (mut rig, source) = Rig::restoring();
    let made = Ok(crate::metadata::SnapshotRef { version: Version(1), digest: source.digest, bytes: 1 });
    // The election on top of it finds no stream any more.
    rig.fates.push_back(Fate::Swallowed);
    rig.feed(Input::Recreated(made));
    rig.pass(Duration::from_secs(10));
    assert_eq!(rig.core.role(), ControllerRole::Halted);
    let token = rig.admin("metadata", "restore", String::new());
    let plan: admin::RestorePlan = serde_json::from_slice(rig.answer(token).unwrap().as_ref().unwrap()).unwrap();
    assert!(!plan.done);
}

#[test]
fn a_restore_begins_above_one_that_only_its_snapshot_tells_of() {
    let restored = |listed: Result<u64, &str>| {
        let mut rig = Rig::with_nodes();
        rig.missing = true;
        rig.pass(Duration::from_secs(2));
        let source = rig.core.history().position();
        let restore = admin::encode(&admin::MetadataRestore { confirm: Some(source) });
        let token = rig.admin("metadata", "restore", restore);
        rig.feed(Input::SnapshotsListed(listed.map(Version).map_err(str::to_owned)));
        let made = crate::metadata::SnapshotRef { version: Version(1), digest: source.digest, bytes: 1 };
        rig.feed(Input::Recreated(Ok(made)));
        let answer = rig.answer(token).unwrap().clone();
        answer.map(|plan| serde_json::from_slice::<admin::RestorePlan>(&plan).unwrap().new_version.0)
    };
    assert_eq!(restored(Ok(0)).unwrap(), 1_000_000_001);
    assert_eq!(restored(Ok(1_000_000_017)).unwrap(), 2_000_000_001);
    assert_eq!(restored(Ok(1 << 52)).unwrap(), 1_000_000_001, "nobody's");
    assert!(restored(Err("nobody answers")).unwrap_err().message.contains("cannot be listed: nobody answers"));
}

#[test]
fn the_first_entry_of_a_restored_history_names_its_snapshot_whatever_was_written_before_it() {
    let (mut rig, source) = Rig::restoring();
    let base = crate::metadata::restored_version(source, source.version);
    rig.made_anew = Some(base);
    let made = crate::metadata::SnapshotRef { version: base, digest: source.digest, bytes: 1 };
    rig.fates.extend([Fate::Held, Fate::Held]);
    rig.feed(Input::Recreated(Ok(made.clone())));
    rig.pass(Duration::from_secs(1));
    let [(attempt, expected, _)] = rig.held[..] else { panic!("{:?} {:?}", rig.core.role, rig.held) };
    assert_eq!(expected, base);
    // A stranger's message came before it.
    rig.made_anew = Some(base.next());
    rig.feed(Input::Entry { version: base.next(), payload: Bytes::from_static(b"a stranger's") });
    rig.feed(Input::Appended { attempt, result: AppendResult::Conflict });
    rig.pass(Duration::from_secs(1));
    let [_, (_, expected, payload)] = &rig.held[..] else { panic!("{:?} {:?}", rig.core.role, rig.held) };
    assert_eq!(*expected, base.next());
    let records = ParsedEntry::parse(payload).unwrap().records().unwrap();
    assert!(records.contains(&crate::metadata::Record::SnapshotCommitted { snapshot: made }), "{records:?}");
}

#[test]
fn who_gets_the_lease_while_a_snapshot_is_loaded_takes_office_once_it_has_caught_up() {
    let mut rig = Rig::with_nodes();
    let (image, from) = (rig.core.history().image().unwrap().clone(), rig.core.history().position());
    rig.missing = true;
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.core.role(), ControllerRole::Halted);
    // Another controller has made the stream anew, and is gone; a stranger was the first to write.
    let (image, base) = crate::metadata::restored_base(image, from, from.version);
    (rig.made_anew, rig.behind) = (Some(base.version), 1);
    rig.pass(Duration::from_secs(2));
    rig.feed(Input::LeaseFree);
    rig.fates.push_back(Fate::Held);
    rig.feed(Input::Loaded(Ok(Box::new((image, base)))));
    rig.feed(Input::Entry { version: base.version.next(), payload: Bytes::from_static(b"a stranger's") });
    rig.pass(Duration::from_secs(1));
    let [(_, expected, payload)] = &rig.held[..] else { panic!("{:?} {:?}", rig.core.role, rig.held) };
    assert_eq!(*expected, base.version.next());
    assert!(ParsedEntry::parse(payload).unwrap().elects(true));
}

#[test]
fn the_late_answer_to_an_append_that_was_given_up_is_not_taken_for_that_of_the_no_op_in_its_place() {
    let mut rig = Rig::with_nodes();
    let token = rig.create("first");
    assert!(rig.answer(token).is_none(), "it waits for the nodes");
    // The append is not answered, and its place is found empty; then it lands after all, before the no-op.
    rig.fates.extend([Fate::Held, Fate::Held]);
    rig.create("orders");
    rig.pass(Duration::from_secs(2));
    let [(first, _, payload), (second, ..)] = &rig.held[..] else { panic!("{:?}", rig.held) };
    let (first, second) = (*first, *second);
    rig.stream.push(payload.clone());
    rig.feed(Input::Appended { attempt: first, result: AppendResult::Stored });
    rig.feed(Input::Appended { attempt: second, result: AppendResult::Conflict });
    assert!(rig.core.history().image().unwrap().topic("orders").is_some());
    let mut replayed = History::new();
    for (version, payload) in (1..).map(Version).zip(&rig.stream) {
        replayed.offer(version, payload).unwrap();
    }
    assert_eq!(replayed.position(), rig.core.history().position());
}
