//! Bad input against real processes. Every subject is open to anyone whom NATS lets in: whatever comes gets a clear error,
//! is counted, is logged once, and changes nothing.

mod records;
#[path = "../support/mod.rs"]
mod support;

use serde_json::{Value, json};
use support::cluster::{Cluster, copy_folder};
use support::stranger::{Stranger, with};
use uuid::Uuid;

/// Beyond every version that there is, and one that JSON readers still hold exactly.
const HUGE: u64 = 1 << 52;

fn code(answer: &Value) -> &str {
    answer["error"]["code"].as_str().unwrap_or_else(|| panic!("no error: {answer}"))
}

/// Lines of a process's log that hold these words.
fn said(cluster: &Cluster, name: &str, words: &str) -> usize {
    cluster.log_of(name).lines().filter(|line| line.contains(words)).count()
}

/// Nothing panicked, everything runs, and a change goes through to every disk.
fn assert_unharmed(cluster: &mut Cluster) {
    for process in cluster.controllers.iter_mut().chain(&mut cluster.storage) {
        assert!(!process.has_ended(), "a process has ended:\n{}", cluster.nats.log());
    }
    assert!(!cluster.logs().contains("panicked"), "{}", cluster.logs());
    cluster.await_healthy();
    let made = cluster.run(&format!("topic create unharmed-{}", Uuid::new_v4())).unwrap();
    assert_eq!(made["applied"].as_u64(), Some(cluster.storage.len() as u64), "{made}");
}

/// What no message can be, with whatever type the receiver would understand.
fn unreadable(kind: &str) -> Vec<(&'static str, Vec<u8>)> {
    let tagged = |fields: &str| format!(r#"{{"type":"{kind}"{fields}}}"#).into_bytes();
    vec![
        ("nothing", Vec::new()),
        ("random bytes", (0..=255).rev().cycle().take(4096).collect()),
        ("no object", b"[1,2,3]".to_vec()),
        ("null", b"null".to_vec()),
        ("half a message", tagged("").split_last().unwrap().1.to_vec()),
        ("missing fields", tagged("")),
        ("wrong types", tagged(r#","storage":"zero","from":7,"cluster":[],"name":{},"id":"x","position":true"#)),
        ("a huge number", tagged(r#","storage":1e400,"from":{"version":1e400}"#)),
        ("a negative number", tagged(r#","storage":-1,"from":{"version":-1,"digest":""}"#)),
        ("more than 64 bits", tagged(r#","storage":99999999999999999999,"from":{"version":99999999999999999999}"#)),
        ("a field twice", format!(r#"{{"type":"{kind}","type":"{kind}"}}"#).into_bytes()),
        ("deep arrays", vec![b'['; 1_000_000]),
        ("deep objects", br#"{"a":"#.repeat(200_000)),
        (
            "deep and known",
            [format!(r#"{{"type":"{kind}","health":"#).into_bytes(), br#"{"a":"#.repeat(190_000)].concat(),
        ),
        ("not UTF-8", [br#"{"type":""#.as_slice(), &[0xff, 0xfe], br#""}"#].concat()),
    ]
}

#[test]
fn what_cannot_be_read_is_answered_counted_and_said_once() {
    let mut cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    let stranger = Stranger::new(&cluster.nats);
    let before = stranger.version();
    let requests = [
        ("dmq.heartbeat.0", "dmq.heartbeat.v1", "a heartbeat on the subject of storage node 0 was refused"),
        ("dmq.metadata.fetch.0", "dmq.metadata.fetch.v1", "a fetch of metadata was refused"),
        ("dmq.admin.topic.delete", "dmq.admin.v1", "an admin request was refused"),
    ];
    for (subject, kind, words) in requests {
        let (bad, counted) = (unreadable(kind), stranger.refused());
        for (what, payload) in &bad {
            let answer = stranger.ask(subject, payload.clone());
            assert_eq!(code(&answer), "INVALID_REQUEST", "{subject}: {what}: {answer}");
            assert!(answer["error"]["message"].as_str().is_some_and(|words| words.len() > 10), "{answer}");
        }
        assert_eq!(stranger.refused(), counted + bad.len() as u64, "{subject}");
        assert_eq!(said(&cluster, "controller-0", words), 1, "{subject}: {}", cluster.logs());
    }
    // What is not answered by its nature is counted and said all the same.
    for (subject, kind, words) in [
        ("dmq.metadata.ack.0", "dmq.metadata.ack.v1", "an acknowledgement of storage node 0 was refused"),
        ("dmq.metadata.heartbeat.0", "dmq.metadata.heartbeat.v1", "a controller's heartbeat was refused"),
    ] {
        let (bad, counted) = (unreadable(kind), stranger.refused());
        bad.iter().for_each(|(_, payload)| stranger.tell(subject, payload.clone()));
        cluster.await_that("all are counted", || match stranger.refused() - counted {
            count if count == bad.len() as u64 => Ok(()),
            count => Err(format!("{subject}: {count} of {}", bad.len())),
        });
        assert_eq!(said(&cluster, "controller-0", words), 1, "{subject}: {}", cluster.logs());
    }
    let bad = unreadable("dmq.metadata.push.v1");
    for (what, payload) in &bad {
        let answer = stranger.ask("dmq.metadata.push.0", payload.clone());
        assert_eq!((answer["outcome"].as_str(), code(&answer)), (Some("refused"), "INVALID_REQUEST"), "{what}");
    }
    cluster.await_that("the node has told its count", || {
        let node = cluster.run("node describe 0")?;
        let counted = node["refusedMessages"].as_u64() == Some(bad.len() as u64);
        if counted { Ok(()) } else { Err(node.to_string()) }
    });
    assert_eq!(said(&cluster, "storage-0", "a push was refused"), 1, "{}", cluster.logs());
    assert_eq!(stranger.version(), before, "something was written");
    assert_unharmed(&mut cluster);
}

#[test]
fn an_unknown_version_of_the_protocol_is_told_which_one_is_understood() {
    let mut cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    let stranger = Stranger::new(&cluster.nats);
    let before = (stranger.version(), stranger.refused());
    let payload = r#"{"type":"dmq.heartbeat.v2","storage":0}"#;
    for (subject, known) in [
        ("dmq.heartbeat.0", "dmq.heartbeat.v1"),
        ("dmq.metadata.fetch.0", "dmq.metadata.fetch.v1"),
        ("dmq.metadata.push.0", "dmq.metadata.push.v1"),
    ] {
        let answer = stranger.ask(subject, payload);
        assert_eq!(code(&answer), "UNSUPPORTED_VERSION", "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(known), "{answer}");
    }
    assert_eq!((stranger.version(), stranger.refused()), (before.0, before.1 + 2));
    assert_unharmed(&mut cluster);
}

#[test]
fn an_unknown_field_in_an_admin_request_is_refused_for_every_verb() {
    let mut cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    let stranger = Stranger::new(&cluster.nats);
    let (before, counted) = (stranger.version(), stranger.refused());
    for (noun, verb) in dmq::wire::admin::VERBS {
        let answer = stranger.ask(&format!("dmq.admin.{noun}.{verb}"), r#"{"nosuch":1}"#);
        assert_eq!(code(&answer), "INVALID_REQUEST", "{noun}.{verb}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("nosuch"), "{answer}");
    }
    for (verb, payload, field) in [
        ("topic.create", json!({ "name": "a", "terms": { "waitMS": 1 } }), "waitMS"),
        ("topic.create", json!({ "name": "a", "replicationfactor": 1 }), "replicationfactor"),
        ("metadata.restore", json!({ "confirm": { "version": 1, "digest": "00" }, "yes": true }), "digest"),
    ] {
        let answer = stranger.ask(&format!("dmq.admin.{verb}"), payload.to_string());
        assert_eq!(code(&answer), "INVALID_REQUEST", "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(field), "{answer}");
    }
    assert_eq!(stranger.refused(), counted + dmq::wire::admin::VERBS.len() as u64 + 3);
    assert_eq!(said(&cluster, "controller-0", "an admin request was refused"), 1);
    assert_eq!(stranger.version(), before, "something was written");
    assert_unharmed(&mut cluster);
}

/// An error's words may quote what was sent, and travel in a header too.
#[test]
fn what_is_long_is_refused_in_few_words() {
    let mut cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    cluster.run("topic create orders --replication-factor 1").unwrap();
    let stranger = Stranger::new(&cluster.nats);
    let long = "a".repeat(900_000);
    let field = json!({ long.as_str(): 1 }).to_string();
    let mut requests: Vec<_> = dmq::wire::admin::VERBS
        .iter()
        .map(|(noun, verb)| (format!("dmq.admin.{noun}.{verb}"), field.clone()))
        .collect();
    requests.extend(["topic.describe", "topic.delete"].map(|verb| {
        let name = json!({ "name": long }).to_string();
        (format!("dmq.admin.{verb}"), name)
    }));
    requests.extend(["fetch", "offsets", "delete"].map(|op| (format!("dmq.data.{op}.0.orders"), field.clone())));
    for (subject, kind) in [
        ("dmq.heartbeat.0", "dmq.heartbeat.v1"),
        ("dmq.metadata.fetch.0", "dmq.metadata.fetch.v1"),
        ("dmq.metadata.push.0", "dmq.metadata.push.v1"),
    ] {
        let message = json!({ "type": kind, "storage": long });
        requests.push((subject.into(), message.to_string()));
    }
    for (subject, payload) in requests {
        let answer = stranger.ask(&subject, payload);
        assert!(!code(&answer).is_empty(), "{subject}: {answer}");
        let words = answer["error"]["message"].as_str().unwrap();
        assert!((10..1_500).contains(&words.len()), "{subject}: {} bytes", words.len());
    }
    let logs = cluster.logs();
    assert_eq!(logs.lines().map(str::len).filter(|bytes| *bytes > 3_000).max(), None, "a log's line is too long");
    assert_unharmed(&mut cluster);
}

#[test]
fn a_heartbeat_counts_only_from_a_registered_incarnation_on_its_own_subject() {
    let mut cluster = Cluster::start(1, 2);
    cluster.await_healthy();
    let stranger = Stranger::new(&cluster.nats);
    let real = stranger.listen("dmq.heartbeat.0").next();
    // One of a node that is removed: it is drained, killed, and taken out.
    let gone = stranger.listen("dmq.heartbeat.1").next();
    cluster.storage.pop().unwrap().kill();
    cluster.await_that("node 1 is removed", || cluster.run("node remove 1"));

    let before = stranger.version();
    let other = Uuid::new_v4().to_string();
    let cases = [
        ("dmq.heartbeat.7", with(&real, json!({ "storage": 7 })), "UNKNOWN_NODE"),
        ("dmq.heartbeat.1", gone.to_string().into_bytes(), "NODE_REMOVED"),
        ("dmq.heartbeat.0", with(&real, json!({ "incarnation": other, "nodeEpoch": 1 })), "STALE_NODE_EPOCH"),
        ("dmq.heartbeat.0", with(&real, json!({ "directory": other })), "DIRECTORY_MISMATCH"),
        ("dmq.heartbeat.0", with(&real, json!({ "cluster": other })), "INCONSISTENT_CLUSTER_ID"),
        ("dmq.heartbeat.1", real.to_string().into_bytes(), "INVALID_REQUEST"),
        ("dmq.heartbeat.abc", real.to_string().into_bytes(), "INVALID_REQUEST"),
        ("dmq.heartbeat.007", real.to_string().into_bytes(), "INVALID_REQUEST"),
        ("dmq.heartbeat.99999999999", real.to_string().into_bytes(), "INVALID_REQUEST"),
    ];
    for (subject, payload, expected) in cases {
        let counted = stranger.refused();
        for _ in 0..3 {
            let answer = stranger.ask(subject, payload.clone());
            assert_eq!(code(&answer), expected, "{subject}: {answer}");
            assert!(matches!(answer["leaseMs"].as_u64(), None | Some(0)), "a lease for a stranger: {answer}");
        }
        assert_eq!(stranger.refused(), counted + 3, "{subject} {expected}");
    }
    for (words, times) in [
        ("storage node 7 is not registered", 1),
        ("storage node 1 was removed", 1),
        // Two subjects that are no service's, and one more: they can be made up without end.
        ("is no service's subject", 1),
    ] {
        assert_eq!(said(&cluster, "controller-0", words), times, "{words}\n{}", cluster.logs());
    }
    assert_eq!(stranger.version(), before, "something was written");
    assert_unharmed(&mut cluster);
}

#[test]
fn of_two_nodes_with_one_id_the_second_is_refused_and_told_what_to_do() {
    let mut cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    let real = cluster.run("node describe 0").unwrap();
    // Another directory with the same id.
    let mut other = cluster.process_in("storage", 0, "storage-other");
    cluster.await_that("the second one ends", || other.has_ended().then_some(()).ok_or_else(String::new));
    let log = cluster.log_of("storage-other");
    assert!(log.contains("dmq node replace 0"), "{log}");
    assert!(cluster.log_of("controller-0").contains("the registration of data directory"), "{}", cluster.logs());
    // The same directory in two processes.
    let mut twice = cluster.process("storage", 0);
    cluster.await_that("the second one ends", || twice.has_ended().then_some(()).ok_or_else(String::new));
    assert!(cluster.log_of("storage-0").contains("in use"), "{}", cluster.log_of("storage-0"));
    // A copy of the directory. It waits for the session of the first to end, which it does not.
    copy_folder(&cluster.folder.path().join("storage-0"), &cluster.folder.path().join("storage-copy"));
    let copied = cluster.process_in("storage", 0, "storage-copy");
    cluster.await_that("the copy is refused", || {
        let log = cluster.log_of("storage-copy");
        if log.contains("is running already") { Ok(()) } else { Err(log) }
    });
    drop(copied);
    let still = cluster.run("node describe 0").unwrap();
    assert_eq!((&still["incarnation"], &still["state"]), (&real["incarnation"], &json!("active")));
    assert_unharmed(&mut cluster);
}

#[test]
fn forged_versions_and_epochs_change_nothing() {
    let mut cluster = Cluster::start(2, 1);
    cluster.await_healthy();
    let stranger = Stranger::new(&cluster.nats);
    let mut pushes = stranger.listen("dmq.metadata.push.0");
    let mut acks = stranger.listen("dmq.metadata.ack.0");
    cluster.run("topic create watched").unwrap();
    let (push, ack) = (pushes.next(), acks.next());
    let heartbeat = stranger.listen("dmq.heartbeat.0").next();
    let controller = stranger.listen("dmq.metadata.heartbeat.*").next();
    let has = heartbeat["position"].clone();
    let (before, other) = (stranger.status(), Uuid::new_v4().to_string());
    let [far, farther] = [HUGE, HUGE + 1].map(|version| json!({ "version": version, "digest": "ab".repeat(16) }));

    let strange =
        json!({ "incarnation": other, "position": far, "controllerEpoch": HUGE, "nodeEpoch": HUGE, "sequence": HUGE });
    let answer = stranger.ask("dmq.heartbeat.0", with(&heartbeat, strange.clone()));
    assert_eq!(code(&answer), "STALE_NODE_EPOCH", "{answer}");
    let counted = stranger.refused();
    stranger.tell(
        "dmq.metadata.ack.0",
        with(&ack, json!({ "incarnation": other, "position": far, "controllerEpoch": HUGE })),
    );
    cluster.await_that("the ack is counted", || if stranger.refused() > counted { Ok(()) } else { Err(String::new()) });
    // A third controller, far ahead of all.
    let ahead =
        json!({ "controller": 9, "incarnation": other, "position": far, "controllerEpoch": HUGE, "role": "active" });
    stranger.tell("dmq.metadata.heartbeat.9", with(&controller, ahead));

    for (fields, outcome) in [
        // It begins before what the node has, so there is nothing in it that could be missing.
        (json!({ "controllerEpoch": HUGE, "pairingEpoch": HUGE, "position": far }), "duplicate"),
        (json!({ "controllerEpoch": HUGE, "pairingEpoch": HUGE, "base": far, "position": farther }), "gap"),
        (json!({ "controllerEpoch": HUGE, "pairingEpoch": HUGE, "base": has, "position": far, "entries": [] }), "gap"),
        (json!({ "controllerEpoch": HUGE, "controller": 9, "base": has, "position": far }), "notPaired"),
        (json!({ "controllerEpoch": 0, "base": has, "position": far }), "staleEpoch"),
        (json!({ "cluster": other }), "refused"),
        (json!({ "storage": 7 }), "refused"),
    ] {
        let answer = stranger.ask("dmq.metadata.push.0", with(&push, fields.clone()));
        assert_eq!(answer["outcome"], outcome, "{fields}: {answer}");
        assert_eq!(answer["position"], has, "{answer}");
    }
    // What follows from where the node stands, by the digest even, but is no change of the history.
    let entry = json!({ "version": HUGE, "entry": { "type": "dmq.entry.v1", "controllerEpoch": HUGE } });
    let forged = json!({ "base": has, "position": far, "entries": [entry] });
    let answer = stranger.ask("dmq.metadata.push.0", with(&push, forged));
    assert_ne!(answer["outcome"], "applied", "{answer}");
    assert_eq!(answer["position"], has, "{answer}");

    let fetched = stranger.ask(
        "dmq.metadata.fetch.0",
        json!({ "type": "dmq.metadata.fetch.v1", "from": far, "chunk": { "snapshot": far, "offset": u64::MAX } })
            .to_string(),
    );
    assert_eq!((&fetched["entries"], &fetched["head"]["version"]), (&json!([]), &before["version"]), "{fetched}");

    let after = stranger.status();
    assert_eq!((&after["version"], &after["controller"]), (&before["version"], &before["controller"]), "{after}");
    assert_unharmed(&mut cluster);
}

/// A copy of a node's own heartbeat is believed, but not whatever it says.
#[test]
fn a_version_that_no_history_comes_to_is_not_taken_for_a_lost_one() {
    let mut cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    let stranger = Stranger::new(&cluster.nats);
    let heartbeat = stranger.listen("dmq.heartbeat.0").next();
    let next = heartbeat["sequence"].as_u64().unwrap() + 1;
    for version in [u64::MAX, 1 << 53, (1 << 53) - 1, 1 << 41] {
        let position = json!({ "version": version, "digest": "ab".repeat(16) });
        let forged = with(&heartbeat, json!({ "position": position, "sequence": next }));
        let answer = stranger.ask("dmq.heartbeat.0", forged);
        assert_eq!(code(&answer), "INVALID_REQUEST", "{version}: {answer}");
        let restore = stranger.ask("dmq.admin.metadata.restore", "");
        assert_eq!(code(&restore), "INVALID_STATE", "the history is whole: {restore}");
    }
    // One that may be is looked into, until the node itself says that it is not so.
    let heartbeat = stranger.listen("dmq.heartbeat.0").next();
    let next = heartbeat["sequence"].as_u64().unwrap() + 3;
    let position = json!({ "version": 1_000_000_000, "digest": "ab".repeat(16) });
    stranger.tell("dmq.heartbeat.0", with(&heartbeat, json!({ "position": position, "sequence": next })));
    cluster.await_that("the node has contradicted it", || {
        let count = said(&cluster, "controller-0", "somebody else said so in its name");
        if count == 1 { Ok(()) } else { Err(cluster.logs()) }
    });
    assert_unharmed(&mut cluster);
}

#[test]
fn what_a_stranger_writes_into_the_history_is_void() {
    let mut cluster = Cluster::start(2, 2);
    cluster.await_healthy();
    cluster.run("topic create before").unwrap();
    let stranger = Stranger::new(&cluster.nats);
    let (status, counted) = (stranger.status(), stranger.refused());
    let version = status["version"].as_u64().unwrap();
    let real = stranger.entry(version);
    let digest = stranger.ask(
        "dmq.metadata.fetch.0",
        json!({ "type": "dmq.metadata.fetch.v1", "from": { "version": 0, "digest": "00".repeat(16) } }).to_string(),
    )["head"]["digest"]
        .clone();
    let delete = json!([{ "type": "topicDeleted", "topicId": real["records"][0]["topicId"] }]);
    let mut expected = version;
    let mut write = |payload: Vec<u8>| {
        expected += 1;
        assert_eq!(stranger.store("dmq.metadata.log", payload), expected, "somebody else wrote in between");
        json!({ "version": expected, "digest": digest })
    };
    let mut head = write(b"hello".to_vec());
    head = write(with(&real, json!({ "previous": head, "cluster": Uuid::new_v4().to_string(), "records": delete })));
    head = write(with(&real, json!({ "previous": head, "controllerEpoch": 0, "records": delete })));
    write(with(&real, json!({ "previous": head, "controllerEpoch": HUGE, "records": delete })));
    // The very entry that stands there, once more, and one on top of what is no more.
    head = write(serde_json::to_vec(&real).unwrap());
    let forked = json!({ "version": head["version"], "digest": "00".repeat(16) });
    head = write(with(&real, json!({ "previous": forked, "records": delete })));
    // On top of exactly what precedes it, in the epoch that an election in this place would have, and no election.
    let own = head["version"].as_u64().unwrap() + 1;
    head = write(with(&real, json!({ "previous": head, "controllerEpoch": own, "records": delete })));
    let own = head["version"].as_u64().unwrap() + 1;
    head = write(with(&real, json!({ "previous": head, "controllerEpoch": own, "records": [{ "type": "moved" }] })));
    write(with(&real, json!({ "previous": head, "type": "dmq.entry.v9", "records": 7, "controllerEpoch": 0 })));
    write(b"[".repeat(500_000));

    let nodes_have_it =
        |status: &Value| status["storageNodes"].as_array().unwrap().iter().all(|node| node["version"] == expected);
    cluster.await_that("every node has moved over it", || {
        let status = stranger.status();
        if status["version"] == expected && nodes_have_it(&status) { Ok(()) } else { Err(status.to_string()) }
    });
    assert_eq!(stranger.refused(), counted + (expected - version));
    assert_eq!(said(&cluster, "controller-0", "of the history is void"), 1, "{}", cluster.logs());
    assert_eq!(stranger.status()["controller"], status["controller"], "it gave up its office");
    let topics = cluster.run("topic list").unwrap();
    assert_eq!(topics["topics"].as_array().unwrap().len(), 1, "{topics}");
    let log = cluster.command().args(["metadata", "log"]).output().unwrap();
    let log = String::from_utf8_lossy(&log.stdout).into_owned();
    let void = log.lines().filter(|line| line.contains("VOID")).count() as u64;
    assert_eq!(void, expected - version, "{log}");
    assert_unharmed(&mut cluster);
}

#[test]
fn a_stranger_at_the_lease_disturbs_only_for_a_moment() {
    let mut cluster = Cluster::start(2, 1);
    cluster.await_healthy();
    let stranger = Stranger::new(&cluster.nats);
    let before = stranger.version();
    stranger.store("$KV.DMQ_CONTROLLER.active", "nonsense");
    stranger.store(
        "$KV.DMQ_CONTROLLER.active",
        json!({ "controller": 9, "incarnation": Uuid::nil(), "connection": { "server": "N", "client": 1 } })
            .to_string(),
    );
    let after = cluster.await_healthy();
    assert!(after["version"].as_u64() >= Some(before), "{after}");
    assert_unharmed(&mut cluster);
}
