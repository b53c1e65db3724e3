//! What the simulator found.

use super::*;

#[test]
fn what_does_not_fit_an_answer_any_more_comes_with_the_next_one() {
    let mut cluster = Cluster::new(3);
    cluster.nodes.iter_mut().for_each(|node| node.engine.settings.answer_max_bytes = RECORD + RECORD / 2);
    cluster.settle(MOMENT);
    // The answer with the first is under way while the others come.
    let tokens: Vec<_> = (0..3).map(|partition| cluster.append(0, (TOPIC, partition), 11, Some(Acks::All))).collect();
    cluster.settle(MOMENT);
    let acknowledged: Vec<_> = cluster.acknowledged.iter().map(|(token, _)| *token).collect();
    assert_eq!(acknowledged, tokens);
}

/// Whoever comes back begins with the metadata on its disk, which may be of a time when it was alone in sync.
#[test]
fn what_was_committed_only_in_the_eyes_of_a_leader_without_a_lease_is_not_shown_by_its_next_leadership() {
    let mut cluster = Cluster::new(1);
    cluster.settle(MOMENT);
    cluster.append(0, PLACE, 11, None);
    cluster.ways.retain(|way| matches!(way, Way::Flush { node: 0, .. }));
    cluster.settle(Duration::ZERO);
    let mut logs = cluster.kill(0, true);
    cluster.places.clear();
    cluster.start(0, BTreeMap::new());
    cluster.give(0, Input::MayLead(false));
    let now = cluster.assignment.clone();
    let stale = Assignment { isr: vec![StorageId(0)], ..now.clone() };
    cluster.give(0, Input::Assigned { place: PLACE, assignment: stale, log: logs.remove(&PLACE) });
    let (leader_epoch, partition_epoch) = (LeaderEpoch(2), PartitionEpoch(2));
    let elected = Assignment { leader_epoch, partition_epoch, ..now };
    cluster.give(0, Input::Assigned { place: PLACE, assignment: elected, log: None });
    cluster.give(0, Input::MayLead(true));
    assert_eq!(cluster.values(0), [11]);
    assert_eq!(cluster.visible(0), None, "the others lack it, and are in sync");
}
