//! What comes from outside and cannot be relied on: wall clocks, crowds of strangers, nodes that nobody could register.

use super::*;
use crate::metadata::Record;
use crate::types::Digest;
use crate::wire::ControllerHeartbeat;
use crate::wire::admin::RestorePlan;

/// What a controller wrote, said and decided over some seconds in which a node dies and comes back; its wall clock is set
/// anew before each step.
fn history_under(clock: impl Fn(u64) -> u64) -> (Vec<Vec<Record>>, Vec<StorageId>, usize, ControllerRole) {
    let mut rig = Rig::with_nodes();
    for step in 0..40 {
        rig.now.wall = WallTime(clock(step));
        let sequence = 3 + step;
        rig.heartbeat(1, 11, sequence);
        if !(8..20).contains(&step) {
            rig.heartbeat(0, 10, sequence);
        }
        if step % 9 == 0 {
            rig.create(&format!("topic-{step}"));
        }
        rig.pass(Duration::from_millis(500));
    }
    let records = |payload: &Bytes| ParsedEntry::parse(payload).unwrap().records().unwrap();
    (rig.stream.iter().map(records).collect(), rig.pushes, rig.answers.len(), rig.core.role())
}

#[test]
fn a_wall_clock_that_is_an_hour_off_or_jumps_decides_nothing() {
    const HOUR: u64 = 3_600_000;
    let start = 1_795_552_800_000;
    let right = history_under(|step| start + step * 500);
    let is_fenced = |record: &Record| matches!(record, Record::StorageStateChanged { state: NodeState::Fenced, .. });
    assert!(right.0.iter().flatten().any(is_fenced), "the node that fell silent was never fenced");
    assert_eq!(history_under(|step| start + step * 500 - HOUR), right, "an hour behind");
    assert_eq!(history_under(|step| start - step * HOUR), right, "backwards");
    assert_eq!(history_under(|step| if step % 2 == 0 { 0 } else { u64::MAX }), right, "to and fro");
}

fn heartbeat_of(rig: &Rig, directory: u128, position: Position) -> Bytes {
    let heartbeat = Heartbeat {
        cluster: Some(ClusterId(Uuid::from_u128(3))),
        storage: StorageId(0),
        directory: DirectoryId(Uuid::from_u128(directory)),
        incarnation: IncarnationId(Uuid::from_u128(777)),
        node_epoch: NodeEpoch(0),
        connection: connection(70),
        sequence: 1 + rig.tokens,
        position,
        controller_epoch: ControllerEpoch(1),
        leader_count: 0,
        follower_count: 0,
        wanted: WantedState::Starting,
        health: Health::default(),
    };
    heartbeat.encode()
}

fn plan(rig: &mut Rig) -> RestorePlan {
    let token = rig.admin("metadata", "restore", String::new());
    serde_json::from_slice(rig.answer(token).unwrap().as_ref().unwrap()).unwrap()
}

#[test]
fn a_restarted_node_that_has_more_than_any_controller_is_what_a_restore_begins_from() {
    let mut rig = Rig::with_nodes();
    rig.create("orders");
    rig.missing = true;
    rig.pass(Duration::from_secs(3));
    assert_eq!(rig.core.role(), ControllerRole::Halted);
    let mine = rig.core.history().position();
    let more = Position { version: mine.version.next(), digest: Digest([9; 16]) };
    let (storage, received_at) = (StorageId(0), rig.now.monotonic);
    // Another directory under its id is nobody's.
    for (directory, expected) in [(55, mine), (100, more)] {
        let payload = heartbeat_of(&rig, directory, more);
        rig.feed(Input::Heartbeat { storage, received_at, payload, token: Token(7_000) });
        assert_eq!(plan(&mut rig).source, expected, "directory {directory}");
    }
    let plan = plan(&mut rig);
    assert_eq!(plan.holders, ["storage node 0"]);
    assert_eq!(plan.not_heard, ["storage node 1"]);
}

#[test]
fn a_node_that_was_removed_is_not_missed_by_a_restore() {
    let mut rig = Rig::with_nodes();
    rig.feed(Input::ConnectionEnded(connection(11)));
    let token = rig.admin("node", "remove", r#"{"id":1,"terms":{"waitMs":0}}"#.into());
    assert!(rig.answer(token).unwrap().is_ok());
    rig.missing = true;
    rig.pass(Duration::from_secs(4));
    assert_eq!(plan(&mut rig).not_heard, ["storage node 0"]);
}

#[test]
fn a_node_that_comes_back_with_more_than_the_history_stops_the_writes_before_it_is_registered() {
    let mut rig = Rig::with_nodes();
    let (before, head) = (rig.stream.len(), rig.core.history().position());
    let more = Position { version: Version(head.version.0 + 3), digest: Digest([9; 16]) };
    let register = |rig: &mut Rig, directory: u128, storage| {
        let request = NodeRegister {
            cluster: Some(ClusterId(Uuid::from_u128(3))),
            directory: DirectoryId(Uuid::from_u128(directory)),
            incarnation: IncarnationId(Uuid::from_u128(777)),
            storage: Some(StorageId(storage)),
            rack: None,
            preferred: None,
            node_epoch: None,
            position: more,
            connection: connection(70),
        };
        let token = rig.admin("node", "register", admin::encode(&request));
        rig.answer(token).unwrap().as_ref().map_err(|error| error.code).cloned()
    };
    rig.feed(Input::ConnectionEnded(connection(10)));
    let fenced = rig.stream.len();
    assert!(fenced > before);
    assert_eq!(register(&mut rig, 100, 0), Err(Code::Busy));
    rig.pass(Duration::from_secs(2));
    assert_eq!((rig.core.role(), rig.stream.len()), (ControllerRole::Halted, fenced));
    let payload = heartbeat_of(&rig, 100, more);
    let (storage, received_at) = (StorageId(0), rig.now.monotonic);
    rig.feed(Input::Heartbeat { storage, received_at, payload, token: Token(7_000) });
    assert_eq!(plan(&mut rig).source, more);
    // Of a directory that nobody knows it says nothing.
    let mut rig = Rig::with_nodes();
    assert!(register(&mut rig, 4_242, 9).is_ok());
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.core.role(), ControllerRole::Active);
}

#[test]
fn a_restarted_node_counts_for_nothing_while_the_history_is_whole() {
    let mut rig = Rig::with_nodes();
    let mine = rig.core.history().position();
    let more = Position { version: Version(mine.version.0 + 1_000), digest: Digest([9; 16]) };
    let payload = heartbeat_of(&rig, 100, more);
    let (storage, received_at) = (StorageId(0), rig.now.monotonic);
    rig.feed(Input::Heartbeat { storage, received_at, payload, token: Token(7_000) });
    rig.pass(Duration::from_secs(2));
    assert_eq!((rig.core.role(), rig.core.history().position()), (ControllerRole::Active, mine));
}

#[test]
fn a_crowd_of_made_up_controllers_takes_a_bounded_room_and_is_forgotten() {
    let mut rig = Rig::with_nodes();
    let before = rig.core.refused;
    for id in 1..1_000 {
        let heartbeat = ControllerHeartbeat {
            cluster: Some(ClusterId(Uuid::from_u128(3))),
            controller: ControllerId(id),
            directory: DirectoryId(Uuid::from_u128(u128::from(id))),
            incarnation: IncarnationId(Uuid::from_u128(u128::from(id))),
            connection: connection(u64::from(id)),
            sequence: 1,
            role: ControllerRole::Standby,
            position: Position::default(),
            controller_epoch: ControllerEpoch(0),
            halted: None,
        };
        rig.feed(Input::ControllerHeartbeat { payload: heartbeat.encode() });
    }
    assert_eq!((rig.core.peers.len(), rig.core.refused - before), (256, 999 - 256));
    rig.pass(Duration::from_secs(61));
    assert!(rig.core.peers.is_empty());
}

#[test]
fn a_message_on_a_subject_that_is_no_services_is_answered_and_counted() {
    let mut rig = Rig::with_nodes();
    let before = rig.core.refused;
    for n in 0..3 {
        let token = Token(8_000 + n);
        rig.feed(Input::Stray { subject: format!("dmq.heartbeat.x{n}"), token });
        assert_eq!(rig.answer(token).unwrap().as_ref().unwrap_err().code, Code::InvalidRequest);
    }
    assert_eq!(rig.core.refused, before + 3);
}
