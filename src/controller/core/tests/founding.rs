//! A controller that begins: it founds a cluster only where there is none.

use super::*;

#[test]
fn a_cluster_is_founded_only_after_a_session_in_which_nobody_names_one() {
    let mut rig = Rig::new();
    rig.feed(Input::LeaseFree);
    rig.feed(Input::Connected(connection(1)));
    rig.pass(Duration::from_millis(2900));
    assert_eq!((rig.core.role(), rig.stream.len()), (ControllerRole::Starting, 0));
    rig.pass(Duration::from_millis(300));
    assert_eq!(rig.core.role(), ControllerRole::Active);
    assert!(rig.serving);
    assert_eq!(rig.core.acting_epoch(), Some(ControllerEpoch(1)));
}

/// A controller with an empty disk, and what a node of the cluster that `other` founded says to it.
fn fresh_before(other: &Rig) -> (Rig, impl Fn(&mut Rig, u64) + use<>) {
    let (position, node_epoch) = (other.core.history().position(), other.node(0).epoch);
    let say = move |rig: &mut Rig, sequence| {
        let heartbeat = Heartbeat {
            cluster: Some(ClusterId(Uuid::from_u128(3))),
            storage: StorageId(0),
            directory: DirectoryId(Uuid::from_u128(100)),
            incarnation: IncarnationId(Uuid::from_u128(200)),
            node_epoch,
            connection: connection(10),
            sequence,
            position,
            controller_epoch: ControllerEpoch(1),
            leader_count: 0,
            follower_count: 0,
            wanted: WantedState::Running,
            health: Health::default(),
        };
        let (received_at, payload) = (rig.now.monotonic, heartbeat.encode());
        rig.feed(Input::Heartbeat { storage: StorageId(0), received_at, payload, token: Token(9_000 + sequence) });
    };
    (Rig::new(), say)
}

#[test]
fn a_fresh_controller_reads_the_history_before_it_believes_that_it_is_lost() {
    let other = Rig::with_nodes();
    let (mut rig, say) = fresh_before(&other);
    rig.stream = other.stream.clone();
    say(&mut rig, 1);
    rig.feed(Input::LeaseHeld { holder: None, revision: 9 });
    rig.feed(Input::Connected(connection(2)));
    for sequence in 2..10 {
        say(&mut rig, sequence);
        rig.pass(Duration::from_millis(400));
        assert_eq!(rig.core.role(), ControllerRole::Starting);
    }
    for (version, payload) in (1..).map(Version).zip(other.stream) {
        rig.feed(Input::Entry { version, payload });
    }
    say(&mut rig, 10);
    rig.pass(Duration::from_millis(100));
    assert_eq!(rig.core.history().position(), rig.core.durable());
    assert_ne!(rig.core.role(), ControllerRole::Halted);
    assert_ne!(rig.core.role(), ControllerRole::Starting);
}

#[test]
fn a_fresh_controller_founds_nothing_where_a_node_names_a_cluster_whose_stream_is_gone() {
    let other = Rig::with_nodes();
    for garbage in [vec![], vec![Bytes::from_static(b"from a stranger")]] {
        let (mut rig, say) = fresh_before(&other);
        rig.stream = garbage.clone();
        rig.feed(Input::LeaseFree);
        rig.feed(Input::Connected(connection(2)));
        for (version, payload) in (1..).map(Version).zip(garbage.clone()) {
            rig.feed(Input::Entry { version, payload });
        }
        for sequence in 1..10 {
            say(&mut rig, sequence);
            rig.pass(Duration::from_millis(500));
        }
        assert_eq!((rig.core.role(), rig.stream.len()), (ControllerRole::Halted, garbage.len()));
        assert!(rig.serving, "somebody has to answer for the state of things");
    }
}

#[test]
fn a_fresh_controller_founds_nothing_where_another_controller_has_a_cluster() {
    let mut rig = Rig::new();
    rig.feed(Input::LeaseFree);
    rig.feed(Input::Connected(connection(2)));
    for sequence in 1..10 {
        let heartbeat = ControllerHeartbeat {
            cluster: Some(ClusterId(Uuid::from_u128(77))),
            controller: ControllerId(1),
            directory: DirectoryId(Uuid::from_u128(50)),
            incarnation: IncarnationId(Uuid::from_u128(51)),
            connection: connection(3),
            sequence,
            role: ControllerRole::Halted,
            position: Position { version: Version(5), ..Position::default() },
            controller_epoch: ControllerEpoch(1),
            halted: None,
        };
        rig.feed(Input::ControllerHeartbeat { payload: heartbeat.encode() });
        rig.pass(Duration::from_millis(500));
    }
    assert_eq!((rig.core.role(), rig.stream.len()), (ControllerRole::Halted, 0));
}
