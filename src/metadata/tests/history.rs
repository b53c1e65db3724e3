//! What a replica of the history makes of each kind of message.

use super::{load, replay, snapshot};
use crate::metadata::testing::{World, cluster, elected, topic_id};
use crate::metadata::{
    Entry, History, HistoryError, NodeState, Offered, PartitionChange, Record, VoidReason, encode_change,
    restored_base, restored_version,
};
use crate::types::{ClusterId, ControllerEpoch, Digest, Position, RequestId, StorageId, Version};
use bytes::Bytes;

fn message(entry: &Entry) -> Bytes {
    encode_change(entry, 1_000_000).unwrap().remove(0)
}

fn no_op(world: &World) -> Entry {
    world.entry(vec![Record::NoOp {}])
}

/// Publishes what must be void; a change after it must still take effect.
fn is_void(world: &mut World, payload: Bytes, reason: VoidReason) {
    let (before, digest) = (world.image().clone(), world.history.position().digest);
    match world.publish(payload) {
        Offered::Void(got) => assert_eq!(got, reason),
        other => panic!("{other:?} instead of {reason:?}"),
    }
    let version = Version(world.stream.len() as u64);
    assert_eq!((world.image(), world.history.position()), (&before, Position { version, digest }));
    world.commit(vec![Record::NoOp {}]);
}

/// Three parts of one change.
fn parts(world: &World) -> Vec<Bytes> {
    let pair = |_| Record::PairingChanged { storage: StorageId(0), controller: None };
    let messages = encode_change(&world.entry((0..12).map(pair).collect()), 600).unwrap();
    assert!(messages.len() >= 3);
    messages
}

#[test]
fn what_is_not_of_this_history_takes_a_version_and_changes_nothing() {
    let mut world = World::with_nodes(1);
    is_void(&mut world, Bytes::from_static(b"\xff garbage"), VoidReason::NotAnEntry);
    is_void(&mut world, Bytes::from("[".repeat(100_000)), VoidReason::NotAnEntry);
    let other = ClusterId(uuid::Uuid::from_u128(9));
    let foreign = message(&Entry { cluster: other, ..no_op(&world) });
    is_void(&mut world, foreign, VoidReason::OtherCluster(other));
    let forged = ControllerEpoch(u64::MAX);
    let payload = message(&Entry { controller_epoch: forged, ..no_op(&world) });
    is_void(&mut world, payload, VoidReason::OtherEpoch(forged));
    let fork = Position { digest: Digest([1; 16]), ..world.history.base() };
    let payload = message(&Entry { previous: fork, ..no_op(&world) });
    is_void(&mut world, payload, VoidReason::OffChain(fork));
    let past = Position { version: Version(1), ..world.history.base() };
    let payload = message(&Entry { previous: past, ..no_op(&world) });
    is_void(&mut world, payload, VoidReason::OffChain(past));
    let stray = parts(&world).remove(1);
    is_void(&mut world, stray, VoidReason::StrayPart);
}

#[test]
fn what_has_its_own_version_as_epoch_and_holds_no_election_is_void_whatever_else_it_holds() {
    let mut world = World::with_nodes(1);
    world.limit = 600;
    let own = |world: &World, records| {
        let controller_epoch = ControllerEpoch(world.history.seen().next().0);
        Entry { controller_epoch, ..world.entry(records) }
    };
    for records in [vec![Record::NoOp {}], vec![], vec![Record::ClusterFounded { cluster: cluster() }]] {
        let payload = message(&own(&world, records));
        is_void(&mut world, payload, VoidReason::NoElection);
    }
    for unreadable in ["7", r#"[{"type":"noOp"},7]"#, r#"[{"type":"partitionMoved"}]"#] {
        let text = String::from_utf8(message(&own(&world, vec![Record::NoOp {}])).to_vec()).unwrap();
        let payload = text.replace(r#"[{"type":"noOp"}]"#, unreadable).into();
        is_void(&mut world, payload, VoidReason::NoElection);
    }
    // In several messages, it is void from the first on, be there an election in a later one.
    let late = (0..40).map(|_| Record::NoOp {}).chain([elected(1)]).collect();
    let messages = encode_change(&own(&world, late), 600).unwrap();
    assert!(messages.len() >= 2);
    assert!(matches!(world.publish(messages[0].clone()), Offered::Void(VoidReason::NoElection)));
    is_void(&mut world, messages[1].clone(), VoidReason::StrayPart);
    world.elect(vec![elected(1)]);
    world.commit(vec![Record::NoOp {}]);
}

#[test]
fn before_a_cluster_is_founded_an_election_alone_is_void() {
    let founding = World::founded().stream[0].clone();
    let mut history = History::new();
    let text = String::from_utf8(founding.to_vec()).unwrap();
    let founds = format!(r#"{{"type":"clusterFounded","cluster":"{}"}},"#, cluster());
    let other = founds.replace(&cluster().to_string(), &uuid::Uuid::from_u128(9).to_string());
    for instead in ["", other.as_str(), r#"{"type":"noOp"},"#] {
        assert!(text.contains(&founds), "{text}");
        let forged = Bytes::from(text.replace(&founds, instead));
        let offered = history.clone().offer(Version(1), &forged);
        assert!(matches!(offered, Ok(Offered::Void(VoidReason::NoElection))), "{instead}: {offered:?}");
    }
    assert!(matches!(history.offer(Version(1), &founding), Ok(Offered::Change(_))));
}

#[test]
fn a_deposed_controller_changes_nothing_after_its_successors_election() {
    let mut world = World::with_nodes(1);
    let old = world.history.controller_epoch();
    world.elect(vec![elected(1)]);
    assert_eq!(world.history.controller_epoch(), ControllerEpoch(world.history.seen().0));
    let late = message(&Entry { controller_epoch: old, ..no_op(&world) });
    is_void(&mut world, late, VoidReason::OtherEpoch(old));
}

#[test]
fn a_change_of_several_messages_takes_effect_with_the_last() {
    let mut world = World::with_nodes(1);
    let (before, position) = (world.image().clone(), world.history.position());
    let messages = parts(&world);
    let last = messages.len() - 1;
    for (number, payload) in messages.into_iter().enumerate() {
        if number < last {
            assert!(matches!(world.publish(payload), Offered::Part));
            assert_eq!((world.image(), world.history.position()), (&before, position));
        } else {
            let Offered::Change(change) = world.publish(payload) else { panic!("the change is whole") };
            assert_eq!((change.base, change.messages.len(), change.records.len()), (position, last + 1, 12));
            assert_eq!(change.position, world.history.position());
        }
    }
    assert_eq!(world.image().storage[&StorageId(0)].pairing_epoch.0, world.history.seen().0);
}

#[test]
fn parts_that_garbage_interrupts_are_void_with_all_that_was_to_follow() {
    let mut world = World::with_nodes(1);
    let (before, digest) = (world.image().clone(), world.history.position().digest);
    let messages = parts(&world);
    world.publish(messages[0].clone());
    assert!(matches!(world.publish(Bytes::from_static(b"?")), Offered::Void(VoidReason::NotAnEntry)));
    assert!(matches!(world.publish(messages[1].clone()), Offered::Void(VoidReason::StrayPart)));
    assert_eq!((world.image(), world.history.position().digest), (&before, digest));
    parts(&world).into_iter().for_each(|payload| drop(world.publish(payload)));
    assert_ne!(world.history.position().digest, digest, "tried again, it takes effect");
}

#[test]
fn an_election_ends_the_parts_of_the_controller_before() {
    let mut world = World::with_nodes(1);
    let messages = parts(&world);
    world.publish(messages[0].clone());
    world.publish(messages[1].clone());
    assert_ne!(world.history.base(), world.history.position());
    let pairing = world.image().storage[&StorageId(0)].pairing_epoch;
    world.elect(vec![elected(1)]);
    assert!(matches!(world.publish(messages[2].clone()), Offered::Void(VoidReason::StrayPart)));
    assert_eq!(world.image().storage[&StorageId(0)].pairing_epoch, pairing);
    world.commit(vec![Record::NoOp {}]);
}

#[test]
fn an_election_of_several_messages_has_the_version_of_its_first_as_epoch() {
    let mut world = World::with_nodes(1);
    world.limit = 600;
    let first = world.history.seen().next();
    world.elect([elected(1)].into_iter().chain((0..20).map(|_| Record::NoOp {})).collect());
    assert!(world.history.seen() > first);
    assert_eq!(world.history.controller_epoch(), ControllerEpoch(first.0));
    world.commit(vec![Record::NoOp {}]);
}

#[test]
fn a_message_again_is_known_and_one_too_far_is_a_gap() {
    let mut world = World::with_nodes(1);
    let (again, next) = (world.stream[2].clone(), message(&no_op(&world)));
    assert!(matches!(world.history.offer(Version(3), &again), Ok(Offered::Known)));
    let (expected, got) = (world.history.seen().next(), Version(world.history.seen().0 + 2));
    assert_eq!(world.history.offer(got, &next).unwrap_err(), HistoryError::Gap { expected, got });
    assert!(matches!(world.history.offer(expected, &next), Ok(Offered::Change(_))));
}

#[test]
fn a_record_that_is_not_known_stops_the_replica_where_it_stands() {
    let mut world = World::with_nodes(1);
    let text = String::from_utf8(message(&no_op(&world)).to_vec()).unwrap();
    let (before, next) = (world.history.position(), world.history.seen().next());
    for newer in [text.replace("noOp", "partitionMoved"), text.replace("dmq.entry.v1", "dmq.entry.v2")] {
        let error = world.history.offer(next, &Bytes::from(newer)).unwrap_err();
        assert!(matches!(error, HistoryError::UnknownRecord { version, .. } if version == next), "{error}");
    }
    assert_eq!((world.history.position(), world.history.seen()), (before, before.version));
}

#[test]
fn a_record_that_breaks_a_rule_stops_the_replica() {
    let world = World::with_nodes(2);
    let outside = PartitionChange {
        partition: 0,
        leader: None,
        isr: Some(vec![StorageId(1)]),
        waits_for: None,
        recovering: None,
    };
    let mut with_topic = World::with_nodes(2);
    with_topic.topic(0, [0, 1]);
    let change = Record::PartitionsChanged { topic_id: topic_id(0), changes: vec![outside] };
    let removed =
        Record::StorageStateChanged { storage: StorageId(0), node_epoch: world.epoch(0), state: NodeState::Removed };
    for (world, record) in [(&with_topic, change), (&world, removed), (&world, elected(1))] {
        let payload = message(&world.entry(vec![record]));
        let error = world.history.clone().offer(world.history.seen().next(), &payload).unwrap_err();
        assert!(matches!(error, HistoryError::Inapplicable { .. }), "{error}");
    }
}

#[test]
fn a_history_begins_with_its_founding_though_garbage_may_precede_it() {
    let mut world = World::founded();
    let founding = Entry {
        controller_epoch: ControllerEpoch(2),
        previous: Position { version: Version(1), digest: Digest::default() },
        ..world.entry(vec![Record::ClusterFounded { cluster: cluster() }, elected(0)])
    };
    let mut late = History::new();
    assert!(matches!(late.offer(Version(1), &Bytes::from_static(b"?")), Ok(Offered::Void(_))));
    assert!(matches!(late.offer(Version(2), &message(&founding)), Ok(Offered::Change(_))));
    world.commit(vec![Record::NoOp {}]);
    let error = History::new().offer(Version(2), &world.stream[1]).unwrap_err();
    assert_eq!(error, HistoryError::NoBeginning(Version(2)), "what was before is purged");
}

#[test]
fn an_answered_request_is_remembered_across_snapshots() {
    let mut world = World::with_nodes(1);
    world.commit_for("r-1", r#"{"done":true}"#, vec![Record::NoOp {}]);
    let outcome = world.image().request(&RequestId::new("r-1").unwrap()).unwrap().clone();
    assert_eq!((outcome.fingerprint, outcome.version, &*outcome.answer), (7, world.history.seen(), r#"{"done":true}"#));
    let restarted = load(&snapshot(world.image(), world.history.position()));
    assert_eq!(restarted.image().unwrap().request(&RequestId::new("r-1").unwrap()), Some(&outcome));
}

#[test]
fn who_hears_only_of_changes_stands_where_all_others_stand() {
    let mut world = World::with_nodes(1);
    let mut pushed = replay(History::new(), &world.stream, Version::ZERO);
    let stalled = parts(&world);
    world.publish(stalled[0].clone());
    world.publish(Bytes::from_static(b"?"));
    world.commit(vec![Record::NoOp {}]);
    let last = world.history.seen();
    pushed.skip_to(Version(last.0 - 1));
    assert!(matches!(pushed.offer(last, world.stream.last().unwrap()), Ok(Offered::Change(_))));
    assert_eq!((pushed.position(), pushed.image()), (world.history.position(), world.history.image()));
}

#[test]
fn a_restored_history_begins_above_all_that_was_given_out_and_with_nobody_leading() {
    let mut world = World::with_nodes(2);
    world.topic(0, [0, 1]);
    let from = world.history.position();
    let (image, position) = restored_base(world.image().clone(), from, Version(3_000_000_123));
    assert!(position.version > Version(3_000_000_123) && position.digest != from.digest);
    let partition = image.partition(topic_id(0), 0).unwrap();
    assert!(partition.leader.is_none() && partition.leader_epoch.0 > 60_000);
    assert!(image.storage.values().all(|node| node.state == NodeState::Fenced && node.leaders == 0));
    // Whoever restores may know nothing of the restore before, but that there was one.
    let (once, _) = restored_base(world.image().clone(), from, from.version);
    let (again, _) = restored_base(world.image().clone(), from, Version(1_000_000_040));
    let epoch = |image: &crate::metadata::Image| image.partition(topic_id(0), 0).unwrap().leader_epoch.0;
    assert!(epoch(&again) > epoch(&once) + 60_000, "{} and {}", epoch(&once), epoch(&again));
    // A partition that is added may have been there in what was lost.
    let mut more = image.clone();
    let added = Record::PartitionsAdded { topic_id: topic_id(0), replicas: vec![[StorageId(0)][..].into()] };
    more.apply(position.version.next(), &added).unwrap();
    let added = more.partition(topic_id(0), 1).unwrap();
    assert_eq!((added.leader_epoch, added.epoch), (partition.leader_epoch, partition.epoch));
    // Nobody was elected yet: epoch 0 is nobody's.
    let mut restored = History::from_image(image.clone(), position);
    let entry = Entry {
        cluster: image.cluster,
        controller_epoch: ControllerEpoch(0),
        previous: position,
        committed_at: crate::types::WallTime(0),
        cause: "a stranger's".into(),
        request: None,
        records: vec![Record::NoOp {}],
    };
    let forged = encode_change(&entry, 1 << 20).unwrap().remove(0);
    let offered = restored.offer(position.version.next(), &forged).unwrap();
    assert!(matches!(offered, Offered::Void(VoidReason::OtherEpoch(_))), "{offered:?}");
    let (_, position) = restored_base(world.image().clone(), from, Version(u64::MAX));
    assert!(position.version < Version(1 << 53), "a forged version does not make the true ones inexact");
    for highest in [Version(0), Version(3_000_000_123), Version((1 << 53) - 1), Version(u64::MAX)] {
        let (_, position) = restored_base(world.image().clone(), from, highest);
        assert_eq!(restored_version(from, highest), position.version, "what is planned is what is done");
    }
    assert!(serde_json::from_str::<Version>(&u64::MAX.to_string()).is_err());
}
