//! Who is heard and who is not: fencing, leases, and an office that begins anew.

use super::*;

#[test]
fn the_end_of_a_nodes_connection_fences_it_at_once_and_moves_what_it_led() {
    let mut rig = Rig::with_nodes();
    rig.create("orders");
    assert!(rig.node(0).leaders > 0);
    rig.feed(Input::ConnectionEnded(connection(10)));
    assert_eq!((rig.node(0).state, rig.node(0).leaders), (NodeState::Fenced, 0));
    assert_eq!(rig.node(1).leaders, 2);
}

#[test]
fn an_advisory_about_a_connection_that_is_not_the_last_reported_changes_nothing() {
    let mut rig = Rig::with_nodes();
    rig.heartbeat(0, 77, 3);
    rig.feed(Input::ConnectionEnded(connection(10)));
    assert_eq!(rig.node(0).state, NodeState::Active);
}

#[test]
fn a_late_heartbeat_over_an_ended_connection_revives_nobody() {
    let mut rig = Rig::with_nodes();
    rig.feed(Input::ConnectionEnded(connection(10)));
    assert!(rig.heartbeat(0, 10, 3).is_none());
    assert_eq!(rig.node(0).state, NodeState::Fenced);
    rig.heartbeat(0, 78, 4);
    rig.heartbeat(0, 78, 5);
    assert_eq!(rig.node(0).state, NodeState::Active);
}

#[test]
fn a_silent_node_is_fenced_after_its_session_and_one_that_heartbeats_is_not() {
    let mut rig = Rig::with_nodes();
    for sequence in 3..12 {
        rig.heartbeat(1, 11, sequence);
        rig.pass(Duration::from_millis(500));
    }
    assert_eq!(rig.node(0).state, NodeState::Fenced);
    assert_eq!(rig.node(1).state, NodeState::Active);
}

#[test]
fn progress_that_could_not_be_heard_is_waited_for_by_who_comes_to_office_anew() {
    let mut rig = Rig::with_nodes();
    // Node 0 is heard without the last change.
    let (behind, sequence) = (rig.core.history().position(), 3);
    rig.create("orders");
    rig.heartbeat_at(0, 10, sequence, behind);
    rig.feed(Input::Disconnected);
    rig.pass(Duration::from_secs(4));
    rig.feed(Input::Connected(connection(2)));
    rig.feed(Input::LeaseFree);
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.core.role(), ControllerRole::Active);
    assert_eq!(rig.node(0).state, NodeState::Active, "its lease may run, and what it has was not heard for long");
    rig.pass(Duration::from_secs(3));
    assert_eq!(rig.node(0).state, NodeState::Fenced);
}

#[test]
fn a_controller_that_was_silent_for_a_session_gets_its_nodes_back() {
    let mut rig = Rig::with_nodes();
    let pairings = [(StorageId(0), ControllerId(1))].into();
    let view = ServicesView { pairings, ..ServicesView::default() };
    let mut sequence = 2;
    let mut live = |rig: &mut Rig, peer: bool| {
        for _ in 0..10 {
            sequence += 1;
            rig.heartbeat(0, 10, sequence);
            rig.heartbeat(1, 11, sequence);
            if peer {
                rig.peer_heartbeat(1, sequence);
            }
            rig.pass(Duration::from_millis(500));
        }
    };
    rig.feed(Input::Services(std::sync::Arc::new(view)));
    live(&mut rig, true);
    assert_eq!(rig.node(0).pairing, Some(ControllerId(1)));
    live(&mut rig, false);
    assert_eq!(rig.node(0).pairing, Some(ControllerId(0)));
    live(&mut rig, true);
    assert_eq!(rig.node(0).pairing, Some(ControllerId(1)));
}

#[test]
fn no_lease_is_given_to_a_node_that_lacks_the_change_that_took_its_leadership() {
    let mut rig = Rig::with_nodes();
    assert!(rig.heartbeat(0, 10, 3).unwrap().lease_ms > 0);
    rig.create("orders");
    rig.feed(Input::ConnectionEnded(connection(10)));
    // It is back over another connection, and has not been unfenced yet when it first asks.
    let answer = rig.heartbeat(0, 79, 4).unwrap();
    assert_eq!((answer.lease_ms, answer.state), (0, NodeState::Fenced));
}

#[test]
fn the_lease_of_who_makes_no_progress_is_over_before_it_is_fenced_for_that() {
    let mut rig = Rig::with_nodes();
    let (behind, began) = (rig.core.history().position(), rig.now.monotonic);
    // Of a topic with one replica nobody else is in sync, and where it may be, another one is elected at once.
    rig.create("orders");
    let (mut until, mut sequence) = (began, 3);
    while rig.node(0).state == NodeState::Active {
        let sent = rig.now.monotonic;
        let answer = rig.heartbeat_at(0, 10, sequence, behind).unwrap();
        until = until.max(sent + Duration::from_millis(answer.lease_ms));
        rig.pass(Duration::from_millis(250));
        sequence += 1;
    }
    assert!(
        until > began + Duration::from_secs(2) && until < rig.now.monotonic,
        "{until:?} of {:?}",
        rig.now.monotonic
    );
}

#[test]
fn who_has_what_this_controller_does_not_know_to_be_stored_yet_does_not_lag() {
    let mut rig = Rig::with_nodes();
    let before = rig.core.history().position();
    rig.create("orders");
    rig.heartbeat_at(0, 10, 3, before);
    // The answer is late, and another controller pushes what the stream has.
    rig.fates.push_back(Fate::Held);
    rig.deaf = true;
    rig.create("clicks");
    let [(_, _, payload)] = &rig.held[..] else { panic!("{:?}", rig.held) };
    let payload = payload.clone();
    rig.stream.push(payload.clone());
    let head = rig.core.history().position();
    let beyond = Position { version: head.version.next(), ..head };
    for sequence in 4..12 {
        rig.heartbeat_at(0, 10, sequence, beyond);
        rig.heartbeat(1, 11, sequence);
        rig.pass(Duration::from_millis(500));
    }
    rig.feed(Input::Entry { version: beyond.version, payload });
    rig.pass(Duration::from_millis(100));
    assert_eq!(rig.core.history().position().version, beyond.version);
    assert_eq!((rig.core.role(), rig.node(0).state), (ControllerRole::Active, NodeState::Active));
}

#[test]
fn who_lost_a_leadership_before_this_process_began_gets_no_lease_before_it_knows() {
    let mut rig = Rig::with_nodes();
    let before = rig.core.history().position();
    rig.create("orders");
    let mut again = Rig::new();
    again.stream = rig.stream.clone();
    let me = Identity { incarnation: IncarnationId(Uuid::from_u128(9)), ..rig.core.me };
    again.core = Controller::new(me, settings(), rig.core.history().clone(), None);
    again.feed(Input::LeaseFree);
    again.feed(Input::Connected(connection(7)));
    again.pass(Duration::from_millis(100));
    assert_eq!(again.core.role(), ControllerRole::Active);
    assert_eq!(again.heartbeat_at(0, 10, 3, before).unwrap().lease_ms, 0);
    assert!(again.heartbeat(0, 10, 4).unwrap().lease_ms > 0);
}

#[test]
fn heartbeats_that_wait_in_a_busy_controllers_queue_are_heard_before_silence_counts() {
    let mut rig = Rig::with_nodes();
    for sequence in 3..8 {
        rig.heartbeat(1, 11, sequence);
        rig.pass(Duration::from_millis(500));
    }
    // Busy for a second, it looks at the time first, and only then at what has come meanwhile.
    rig.now.monotonic = rig.now.monotonic + Duration::from_secs(1);
    rig.feed(Input::Tick);
    assert_eq!(rig.node(0).state, NodeState::Active);
    rig.heartbeat(0, 10, 3);
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.node(0).state, NodeState::Active);
}

#[test]
fn who_lost_a_leadership_before_it_was_first_heard_gets_no_lease_before_it_knows() {
    let mut rig = Rig::with_nodes();
    rig.create("orders");
    let (followed, before) = (rig.core.history().clone(), rig.core.history().position());
    // Another controller does not hear the nodes, and only reads that node 0 was fenced and unfenced.
    rig.feed(Input::ConnectionEnded(connection(10)));
    rig.heartbeat(0, 79, 4);
    rig.heartbeat(0, 79, 5);
    assert_eq!(rig.node(0).state, NodeState::Active);
    let mut other = Rig::new();
    other.stream = rig.stream[..before.version.0 as usize].to_vec();
    let me = Identity { incarnation: IncarnationId(Uuid::from_u128(9)), ..rig.core.me };
    other.core = Controller::new(me, settings(), followed, None);
    other.feed(Input::Connected(connection(7)));
    other.stream = rig.stream.clone();
    for (version, payload) in
        (1..).map(Version).zip(rig.stream.clone()).filter(|(version, _)| *version > before.version)
    {
        other.feed(Input::Entry { version, payload });
    }
    other.feed(Input::LeaseFree);
    other.pass(Duration::from_millis(100));
    assert_eq!(other.core.role(), ControllerRole::Active);
    assert_eq!(other.heartbeat_at(0, 80, 6, before).unwrap().lease_ms, 0);
    assert!(other.heartbeat(0, 80, 7).unwrap().lease_ms > 0);
}

#[test]
fn a_new_office_waits_for_who_is_in_sync_before_it_elects_another() {
    for (comes_back, is_late) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut rig = Rig::with_nodes();
        let allowed = ("unclean.leader.election.enable".to_owned(), "true".to_owned());
        let request = TopicCreate {
            name: "orders".into(),
            partitions: Some(1),
            replication_factor: Some(2),
            config: if is_late { Default::default() } else { [allowed.clone()].into() },
            terms: Default::default(),
        };
        rig.admin("topic", "create", admin::encode(&request));
        let leader = |rig: &Rig| rig.core.history().image().unwrap().topic("orders").unwrap().partitions[0].leader;
        // The one is alone in sync, then nobody is there, and the office begins anew.
        rig.feed(Input::ConnectionEnded(connection(11)));
        rig.feed(Input::ConnectionEnded(connection(10)));
        rig.feed(Input::Disconnected);
        rig.feed(Input::Connected(connection(2)));
        rig.feed(Input::LeaseFree);
        rig.pass(Duration::from_millis(500));
        assert_eq!((rig.core.role(), leader(&rig)), (ControllerRole::Active, None));
        let mut sequence = 3;
        let mut live = |rig: &mut Rig, ids: &[u32]| {
            sequence += 1;
            ids.iter().for_each(|id| _ = rig.heartbeat(*id, 70 + u64::from(*id), sequence));
            rig.pass(Duration::from_millis(500));
        };
        (0..2).for_each(|_| live(&mut rig, &[1]));
        if is_late {
            let config = [(allowed.0, Some(allowed.1))].into();
            let request = TopicAlter { name: "orders".into(), partitions: None, config, terms: Default::default() };
            rig.admin("topic", "alter", admin::encode(&request));
        }
        assert_eq!((rig.node(1).state, leader(&rig)), (NodeState::Active, None));
        let back: &[u32] = if comes_back { &[0, 1] } else { &[1] };
        (0..10).for_each(|_| live(&mut rig, back));
        assert_eq!(leader(&rig), Some(StorageId(if comes_back { 0 } else { 1 })));
    }
}

/// Another controller may have heard it, and given it a lease, where this one did not.
#[test]
fn a_directory_whose_node_serves_is_not_taken_over_from_who_was_not_heard_before_this_office() {
    let mut rig = Rig::with_nodes();
    for revision in 9..17 {
        rig.feed(Input::LeaseHeld { holder: None, revision });
        assert_eq!(rig.core.role(), ControllerRole::Standby);
        rig.pass(Duration::from_millis(500));
    }
    rig.feed(Input::LeaseFree);
    rig.pass(Duration::from_millis(500));
    assert_eq!((rig.core.role(), rig.node(0).state), (ControllerRole::Active, NodeState::Active));
    let before = rig.node(0).incarnation;
    let copy = NodeRegister {
        cluster: None,
        directory: rig.node(0).directory.unwrap(),
        incarnation: IncarnationId(Uuid::from_u128(999)),
        storage: Some(StorageId(0)),
        rack: None,
        preferred: None,
        node_epoch: Some(rig.node(0).epoch),
        position: rig.core.history().position(),
        connection: connection(99),
    };
    let token = rig.admin("node", "register", admin::encode(&copy));
    assert!(rig.answer(token).unwrap().is_err());
    assert_eq!(rig.node(0).incarnation, before);
    rig.pass(Duration::from_secs(3));
    rig.admin("node", "register", admin::encode(&copy));
    assert_eq!(rig.node(0).incarnation, copy.incarnation);
}
