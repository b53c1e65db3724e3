//! What followers and clients cannot do to a leader, and how fast it brings back who was away.

use std::num::NonZeroU64;

use super::*;

/// What node 0 answers to a poll, at once or when its time is over.
fn answer(cluster: &mut Cluster, poll: &ReplicaFetch) -> SessionOutcome {
    let token = Token(u64::MAX);
    let mut out = Vec::new();
    let engine = &mut cluster.nodes[0].engine;
    engine.take(cluster.now, Input::Poll { payload: poll.encode(), token }, &mut out);
    engine.step(cluster.now, &mut out);
    let answer = out.iter().find_map(|effect| match effect {
        Effect::Answer { token: to, message } if *to == token => Some(outcome(message)),
        _ => None,
    });
    answer.expect("an answer")
}

#[test]
fn a_poll_with_the_highest_session_there_is_keeps_the_follower_out_for_a_moment_only() {
    let mut cluster = Cluster::new(1);
    cluster.settle(MOMENT);
    assert!(matches!(answer(&mut cluster, &poll(u64::MAX)), SessionOutcome::Partitions(_)));
    cluster.append(0, PLACE, 11, Some(Acks::All));
    // As long as its last poll waits for the answer that the stranger took.
    cluster.settle(Duration::from_secs(5));
    assert_eq!(cluster.acknowledged.len(), 1);
    assert_eq!(cluster.assignment.isr.len(), 3);
}

#[test]
fn a_session_that_is_over_does_not_begin_again_with_a_poll_that_comes_late() {
    let mut cluster = Cluster::new(1);
    cluster.settle(MOMENT);
    for session in [100, 7, 9] {
        assert!(matches!(answer(&mut cluster, &poll(session)), SessionOutcome::Partitions(_)), "{session}");
    }
    for late in [100, 7, 9, 1] {
        assert_eq!(answer(&mut cluster, &poll(late)), SessionOutcome::UnknownSession, "{late}");
    }
    // Of another incarnation nothing was ever heard.
    cluster.nodes[1].node_epoch += 1;
    cluster.peers();
    let anew = ReplicaFetch { node_epoch: NodeEpoch(2), ..poll(7) };
    assert!(matches!(answer(&mut cluster, &anew), SessionOutcome::Partitions(_)));
}

#[test]
fn what_cannot_be_written_is_told_of_though_nobody_waits_for_it() {
    let mut cluster = Cluster::new(1);
    cluster.settle(MOMENT);
    cluster.nodes[0].engine.log_mut(PLACE).unwrap().broken = true;
    cluster.append(0, PLACE, 11, None);
    assert_eq!(cluster.dropped, [(PLACE, AppendError::Log(Broken))]);
    assert_eq!(cluster.acknowledged, []);
}

#[test]
fn who_is_not_in_sync_catches_up_no_faster_than_it_may_and_the_others_are_not_held_back() {
    const RECORDS: u64 = 200;
    let mut cluster = Cluster::new(1);
    // Ten records in a second.
    let rate = NonZeroU64::new(10 * RECORD as u64);
    cluster.nodes.iter_mut().for_each(|node| node.engine.settings.catch_up_rate = rate);
    cluster.settle(MOMENT);
    let logs = cluster.kill(2, true);
    cluster.peers();
    cluster.elect(Some(0), &[0, 1]);
    cluster.settle(Duration::from_secs(1));
    for value in 0..RECORDS {
        cluster.append(0, PLACE, value, Some(Acks::All));
    }
    let began = cluster.now;
    cluster.settle(MOMENT);
    assert_eq!(cluster.acknowledged.len(), RECORDS as usize, "who is in sync has them at once");

    cluster.start(2, logs);
    cluster.nodes[2].engine.settings.catch_up_rate = rate;
    for second in 1..=8 {
        cluster.settle(Duration::from_secs(1));
        let have = cluster.values(2).len();
        let most = 10 * (second + 2);
        assert!((10 * (second - 1)..=most).contains(&have), "{have} records after {second} s");
        let token = cluster.append(0, PLACE, 1_000, Some(Acks::All));
        cluster.settle(MOMENT);
        assert!(cluster.acknowledged.contains(&(token, Ok(Offset(RECORDS as i64 + second as i64 - 1)))));
    }
    assert_eq!(cluster.assignment.isr, [0, 1].map(StorageId));
    cluster.settle(Duration::from_secs(20));
    assert_eq!(cluster.assignment.isr, [0, 1, 2].map(StorageId));
    assert!(cluster.now.since(began) > Duration::from_secs(20));
    // In sync, it is held back no more.
    let acknowledged = cluster.acknowledged.len();
    for value in 0..RECORDS {
        cluster.append(0, PLACE, value, Some(Acks::All));
    }
    cluster.settle(MOMENT);
    assert_eq!(cluster.acknowledged.len(), acknowledged + RECORDS as usize);
}

#[test]
fn a_new_leader_does_not_wait_for_a_member_whose_log_is_closed() {
    for declines in [false, true] {
        let mut cluster = Cluster::new(1);
        cluster.settle(MOMENT);
        // The leader is told, and another one is elected before the in-sync replicas change.
        cluster.give(2, Input::Unassigned(PLACE));
        cluster.elect(Some(1), &[0, 1, 2]);
        if declines {
            cluster.give(2, Input::Declined { place: PLACE, leader: StorageId(1) });
        }
        // Whoever may be elected yet is not told that nobody counts on it.
        let mut asked = Vec::new();
        while !cluster.ways.is_empty() {
            match cluster.ways.remove(0) {
                alter @ Way::Alter { node: 1, .. } => asked.push(alter),
                way => cluster.arrive(way),
            }
        }
        assert_eq!((asked.len(), &cluster.left[..]), (usize::from(declines), &[][..]));
        cluster.ways.extend(asked);
        cluster.settle(Duration::from_secs(1));
        let told: &[_] = if declines { &[(2, PLACE, LeaderEpoch(2))] } else { &[] };
        assert_eq!(cluster.left, told);
        cluster.append(1, PLACE, 11, Some(Acks::All));
        cluster.settle(MOMENT);
        assert_eq!(cluster.acknowledged.len(), usize::from(declines), "declines: {declines}");
        assert_eq!(cluster.assignment.isr.contains(&StorageId(2)), !declines);
    }
}
