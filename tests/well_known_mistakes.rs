//! What a well-known clone of this design got wrong, each against real processes: old pushes rolled nodes back, a push about
//! one partition wiped the others, a dead leader was announced anew, nodes that came back never rejoined the in-sync
//! replicas, messages had no incarnation, epoch or timeout, one slow node held up all, and full snapshots were pushed.

mod support;

use dmq::metadata::{History, write_snapshot};
use dmq::types::{Position, Version};
use dmq::wire::{FetchAnswer, FetchRequest, WireMessage};
use serde_json::{Value, json};
use support::cluster::Cluster;
use support::stranger::{Stranger, with, without};

/// The metadata that a node has on its disk, as the lines of a snapshot.
fn metadata_of(stranger: &Stranger, storage: u32) -> Vec<Value> {
    let mut history = History::new();
    loop {
        let request = FetchRequest { cluster: None, storage: None, from: history.position(), chunk: None };
        let answer = stranger.ask_raw(&format!("dmq.metadata.push.{storage}"), request.encode());
        let answer = FetchAnswer::decode(&answer).expect("an answer to a fetch");
        assert_eq!(
            (&answer.error, answer.snapshot),
            (&None, None),
            "its history is short, and on its disk from the beginning"
        );
        for entry in answer.entries {
            history.skip_to(Version(entry.version.0 - 1));
            history.offer(entry.version, &entry.entry.get().as_bytes().to_vec().into()).expect("it applies");
        }
        history.skip_to(answer.position.version);
        if answer.position == answer.head {
            return lines(&history, answer.head);
        }
    }
}

fn lines(history: &History, position: Position) -> Vec<Value> {
    let mut text = Vec::new();
    write_snapshot(history.image().expect("a cluster"), position, &mut text).expect("a vector takes it");
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

fn topics(lines: &[Value]) -> Vec<&str> {
    let mut names: Vec<_> = lines.iter().filter_map(|line| line["topic"]["name"].as_str()).collect();
    names.sort_unstable();
    names
}

#[test]
fn an_old_push_rolls_no_node_back() {
    let cluster = Cluster::start(1, 2);
    cluster.await_healthy();
    let stranger = Stranger::new(&cluster.nats);
    let mut pushes = stranger.listen("dmq.metadata.push.0");
    for name in ["a", "b", "c"] {
        cluster.run(&format!("topic create {name}")).unwrap();
    }
    let head = stranger.version();
    let mut old = Vec::new();
    while old.last().is_none_or(|push: &Value| push["position"]["version"].as_u64() < Some(head)) {
        old.push(pushes.next());
    }
    assert!(old.len() >= 3, "{old:?}");
    // As they were, in any order, and as if they were newer.
    for push in old.iter().rev().chain(&old) {
        for fields in [json!({}), json!({ "controllerEpoch": 1_u64 << 40, "pairingEpoch": 1_u64 << 40 })] {
            let answer = stranger.ask("dmq.metadata.push.0", with(push, fields));
            assert_eq!(
                (&answer["outcome"], &answer["position"]["version"]),
                (&json!("duplicate"), &json!(head)),
                "{answer}"
            );
        }
    }
    assert_eq!(topics(&metadata_of(&stranger, 0)), ["a", "b", "c"]);
    cluster.await_healthy();
}

#[test]
fn a_push_about_one_partition_leaves_all_others_as_they_were() {
    let mut cluster = Cluster::start(1, 3);
    cluster.await_healthy();
    let stranger = Stranger::new(&cluster.nats);
    cluster.run("topic create one --partitions 1 --replication-factor 3").unwrap();
    cluster.run("topic create many --partitions 30 --replication-factor 3").unwrap();
    let one = cluster.run("topic describe one").unwrap();
    let leader = one["partitions"][0]["leader"].as_u64().unwrap() as usize;
    // Its configuration, then the leaders of some: a few partitions of many topics.
    cluster.run("topic alter one --config retention.ms=1000").unwrap();
    cluster.storage[leader].kill();
    cluster.await_that("another one leads", || {
        let one = cluster.run("topic describe one")?;
        let now = one["partitions"][0]["leader"].as_u64();
        if now.is_some_and(|now| now as usize != leader) { Ok(()) } else { Err(one.to_string()) }
    });
    cluster.run("topic alter one --config retention.ms=2000").unwrap();
    let shown = stranger.ask("dmq.admin.metadata.show", "");
    for node in (0..3).filter(|node| *node != leader) {
        assert_eq!(
            Value::Array(metadata_of(&stranger, node as u32)),
            shown["lines"],
            "storage node {node} has other metadata"
        );
    }
}

#[test]
fn a_dead_leader_is_announced_by_nothing_that_it_said_before() {
    let mut cluster = Cluster::start(1, 2);
    cluster.await_healthy();
    let stranger = Stranger::new(&cluster.nats);
    cluster.run("topic create orders --partitions 4 --replication-factor 2").unwrap();
    let last = stranger.listen("dmq.heartbeat.0").next();
    cluster.storage[0].kill();
    let moved = cluster.await_that("the other one leads all", || {
        let topic = cluster.run("topic describe orders")?;
        let led = topic["partitions"].as_array().unwrap().iter().all(|partition| partition["leader"] == 1);
        if led { Ok(topic) } else { Err(topic.to_string()) }
    });
    let version = stranger.version();
    // Late on the way, or said anew by somebody: its connection has ended, and nothing over that counts.
    for more in 0..5 {
        let sequence = last["sequence"].as_u64().unwrap() + more;
        stranger.tell("dmq.heartbeat.0", with(&last, json!({ "sequence": sequence })));
    }
    // Heartbeats are taken in order: once this one is answered, those before it were heard.
    stranger.ask("dmq.heartbeat.7", with(&last, json!({ "storage": 7 })));
    let status = stranger.status();
    assert_eq!(status["version"], version, "something was written: {status}");
    assert_eq!(status["storageNodes"][0]["state"], "fenced", "{status}");
    assert_eq!(cluster.run("topic describe orders").unwrap()["partitions"], moved["partitions"]);
}

#[test]
fn nodes_that_come_back_rejoin_every_in_sync_set() {
    let mut cluster = Cluster::start(1, 3);
    cluster.await_healthy();
    cluster.run("topic create orders --partitions 12 --replication-factor 3").unwrap();
    // One after the other, and then two at once.
    for dead in [vec![0], vec![1, 2]] {
        for id in &dead {
            cluster.storage[*id].kill();
        }
        cluster.await_that("they are out of the in-sync sets", || {
            let topic = cluster.run("topic describe orders")?;
            let out = |partition: &Value| partition["isr"].as_array().is_some_and(|isr| isr.len() == 3 - dead.len());
            if topic["partitions"].as_array().unwrap().iter().all(out) { Ok(()) } else { Err(topic.to_string()) }
        });
        for id in &dead {
            cluster.storage[*id] = cluster.node(*id as u32);
        }
        cluster.await_healthy();
        let topic = cluster.run("topic describe orders").unwrap();
        for partition in topic["partitions"].as_array().unwrap() {
            let mut isr: Vec<_> = partition["isr"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
            isr.sort_unstable();
            assert_eq!(isr, [0, 1, 2], "{partition}");
        }
    }
}

#[test]
fn a_message_without_incarnation_epoch_or_position_is_refused() {
    let cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    let stranger = Stranger::new(&cluster.nats);
    let (mut pushes, mut beats) = (stranger.listen("dmq.metadata.push.0"), stranger.listen("dmq.heartbeat.0"));
    cluster.run("topic create watched").unwrap();
    let (push, heartbeat) = (pushes.next(), beats.next());
    let code = |answer: Value| answer["error"]["code"].as_str().map(str::to_owned);
    for field in ["storage", "directory", "incarnation", "connection", "sequence", "position"] {
        let answer = stranger.ask("dmq.heartbeat.0", without(&heartbeat, field));
        assert_eq!(code(answer).as_deref(), Some("INVALID_REQUEST"), "{field}");
    }
    for field in ["cluster", "controller", "controllerEpoch", "storage", "pairingEpoch", "base", "position", "entries"]
    {
        let answer = stranger.ask("dmq.metadata.push.0", without(&push, field));
        assert_eq!(code(answer).as_deref(), Some("INVALID_REQUEST"), "{field}");
    }
    cluster.await_healthy();
}

#[test]
fn who_hears_nothing_stops_by_itself() {
    let cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    cluster.run("topic create led").unwrap();
    let may_lead = |may: bool| {
        let words = format!("whether this node may lead may={may}");
        cluster.log_of("storage-0").lines().filter(|line| line.contains(&words)).count()
    };
    cluster.await_that("it has a lease", || if may_lead(true) > 0 { Ok(()) } else { Err(cluster.log_of("storage-0")) });
    let (given, taken) = (may_lead(true), may_lead(false));
    // Frozen, it neither answers nor ends its connection: only time tells.
    cluster.controllers[0].pause();
    cluster.await_that("the lease runs out", || {
        if may_lead(false) > taken { Ok(()) } else { Err(cluster.log_of("storage-0")) }
    });
    cluster.controllers[0].resume();
    cluster.await_that("it has a lease again", || {
        if may_lead(true) > given { Ok(()) } else { Err(cluster.log_of("storage-0")) }
    });
}

#[test]
fn one_slow_node_holds_up_nobody() {
    let mut cluster = Cluster::start(1, 3);
    cluster.await_healthy();
    // So long a session that the frozen node is not fenced: it is waited for, or not, as what it is.
    cluster.set("DMQ_SESSION_TIMEOUT_MS", "600000");
    cluster.controllers[0].kill();
    cluster.controllers[0] = cluster.controller(0);
    cluster.await_healthy();
    let stranger = Stranger::new(&cluster.nats);
    let mut acks = [0, 1, 2].map(|node| stranger.listen(&format!("dmq.metadata.ack.{node}")));
    let mut slow = stranger.listen("dmq.metadata.push.2");
    cluster.storage[2].pause();
    let create = |name: &str, wait: u64| {
        let request = json!({ "name": name, "partitions": 3, "replicationFactor": 3, "terms": { "waitMs": wait } });
        let made = stranger.ask("dmq.admin.topic.create", request.to_string());
        made["version"]
            .as_u64()
            .map(|version| (version, made["applied"].as_u64(), made["active"].as_u64()))
            .unwrap_or_else(|| panic!("{made}"))
    };
    let mut version = 0;
    for number in 0..20 {
        (version, ..) = create(&format!("topic-{number}"), 0);
    }
    for ack in &mut acks[..2] {
        ack.find(|ack| ack["position"]["version"].as_u64() >= Some(version));
    }
    // An answer says what it is waiting for no longer.
    let (_, applied, active) = create("waited-for", 100);
    assert_eq!((applied, active), (Some(2), Some(3)));
    // The push that it does not acknowledge is sent again, and nothing else is sent to it meanwhile.
    let first = slow.next();
    let again = slow.next();
    assert_eq!(again["base"], first["base"], "{again}");
    cluster.storage[2].resume();
    let head = stranger.version();
    acks[2].find(|ack| ack["position"]["version"].as_u64() >= Some(head));
    assert_eq!(metadata_of(&stranger, 2), metadata_of(&stranger, 0));
}

#[test]
fn a_push_holds_what_is_new_and_nothing_else() {
    let cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    let stranger = Stranger::new(&cluster.nats);
    let mut pushes = stranger.listen("dmq.metadata.push.0");
    let mut fetches = stranger.listen("dmq.metadata.fetch.*");
    for number in 0..40 {
        cluster.run(&format!("topic create topic-{number} --partitions 50")).unwrap();
    }
    let (head, mut before) = (stranger.version(), Value::Null);
    loop {
        let (_, payload) = pushes.next_raw();
        let push: Value = serde_json::from_slice(&payload).unwrap();
        let (base, position) = (&push["base"], &push["position"]);
        assert!(before.is_null() || *base == before, "it begins elsewhere than where the one before ended: {push}");
        let entries = push["entries"].as_array().unwrap();
        assert!(entries.iter().all(|entry| entry["version"].as_u64() > base["version"].as_u64()), "{push}");
        assert!(!entries.is_empty() && payload.len() < 8_192, "{} bytes for {} entries", payload.len(), entries.len());
        before = position.clone();
        if position["version"].as_u64() >= Some(head) {
            break;
        }
    }
    // Nobody needed more than the pushes. What was said before this comes before it.
    stranger.tell("dmq.metadata.fetch.none", "{}");
    assert_eq!(fetches.next_raw().0, "dmq.metadata.fetch.none");
}
