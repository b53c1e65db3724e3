//! Changes on their way to the storage nodes, and the answers that wait for them.

use super::*;

#[test]
fn an_admin_answer_waits_until_every_active_node_has_the_change() {
    let mut rig = Rig::with_nodes();
    let token = rig.create("orders");
    rig.acknowledge(0);
    assert!(rig.answer(token).is_none());
    rig.acknowledge(1);
    let answer: admin::Changed = serde_json::from_slice(rig.answer(token).unwrap().as_ref().unwrap()).unwrap();
    assert_eq!((answer.applied, answer.active, answer.version.0), (2, 2, rig.stream.len() as u64));
}

#[test]
fn the_active_controller_steps_in_where_anothers_push_is_not_acknowledged_in_time() {
    let mut rig = Rig::with_a_standby();
    rig.create("orders");
    rig.acknowledge(0);
    assert_eq!(rig.pushed(), [(0, 1)], "the one that is paired pushes first");
    rig.pass(Duration::from_millis(100));
    assert_eq!(rig.pushed(), [(1, 0)], "the node is to fetch: nothing of the history comes from who is not paired");
    rig.acknowledge(1);
    rig.pass(Duration::from_millis(400));
    assert_eq!(rig.pushed(), []);
    // Whose pushes are acknowledged needs nobody to step in.
    rig.peer(2);
    rig.create("more");
    rig.acknowledge(0);
    rig.acknowledge(1);
    rig.pass(Duration::from_millis(400));
    assert_eq!(rig.pushed(), [(0, 1)]);
}

#[test]
fn the_active_controller_steps_in_at_once_for_a_controller_that_is_not_heard() {
    let mut rig = Rig::with_a_standby();
    rig.pass(Duration::from_millis(1300));
    for id in 0..2 {
        rig.heartbeat(id, 10 + u64::from(id), 3);
    }
    rig.create("orders");
    assert_eq!(rig.pushed(), [(0, 1), (1, 0)]);
    rig.acknowledge(0);
    rig.pass(Duration::from_millis(1000));
    let again = rig.pushed();
    assert!((2..=5).contains(&again.len()) && again.iter().all(|push| *push == (1, 0)), "with backoff: {again:?}");
}

#[test]
fn a_controller_that_is_not_active_pushes_to_its_own_nodes_alone() {
    let mut rig = Rig::with_a_standby();
    rig.feed(Input::LeaseHeld { holder: None, revision: 1_000 });
    assert_eq!(rig.core.role(), ControllerRole::Standby);
    let (image, previous) = (rig.core.history().image().unwrap().clone(), rig.core.history().position());
    let entry = crate::metadata::Entry {
        cluster: image.cluster,
        controller_epoch: image.controller_epoch(),
        previous,
        committed_at: WallTime(0),
        cause: "a test".into(),
        request: None,
        records: vec![crate::metadata::Record::NoOp {}],
    };
    let payload = crate::metadata::encode_change(&entry, 10_000).unwrap().remove(0);
    rig.stream.push(payload.clone());
    rig.feed(Input::Entry { version: previous.version.next(), payload });
    rig.acknowledge(0);
    rig.pass(Duration::from_millis(200));
    assert_eq!(rig.pushed(), [(0, 1)]);
}

#[test]
fn a_push_that_nobody_hears_is_repeated_when_the_node_is_heard_and_not_before() {
    let mut rig = Rig::with_nodes();
    rig.acknowledge(0);
    rig.acknowledge(1);
    rig.pushed();
    let before = rig.core.history().position();
    rig.create("orders");
    rig.acknowledge(1);
    assert_eq!(rig.pushed(), [(0, 1), (1, 1)]);
    rig.feed(Input::PushUnheard { storage: StorageId(0) });
    rig.pass(Duration::from_millis(1000));
    rig.create("more");
    rig.acknowledge(1);
    assert_eq!(rig.pushed(), [(1, 1)]);
    rig.heartbeat_at(0, 10, 3, before);
    assert_eq!(rig.pushed(), [(0, 2)], "at once, and all that it lacks");
}
