//! Bad input to whoever serves records: clients' requests, batches, followers' polls, groups' commits.

use std::collections::BTreeSet;

use dmq::log::batch::{BatchBuilder, Compression, HEADER_BYTES, ProducerStamp};
use dmq::types::{ClusterId, LeaderEpoch, NodeEpoch, Offset, StorageId, TopicId};
use dmq::wire::replica::{ReplicaAnswer, ReplicaFetch, ReplicaPosition, SessionOutcome};
use serde_json::{Value, json};
use uuid::Uuid;

use super::support::cluster::Cluster;
use super::support::stranger::Stranger;
use super::{assert_unharmed, code, said, unreadable};

const BATCH: (&str, &str) = ("Dmq-Format", "batch");
const COMMIT: &str = "dmq.data.commit.auto.__consumer_offsets";
const COMMITTED: &str = "dmq.data.committed.auto.__consumer_offsets";

fn json_of(answer: &async_nats::Message) -> Value {
    serde_json::from_slice(&answer.payload).unwrap_or_else(|error| panic!("{error}: {:?}", answer.payload))
}

/// The code of an error, which its header and its body agree on, and which comes with words.
fn code_of(answer: &async_nats::Message) -> Option<String> {
    let named = answer.headers.as_ref()?.get("Dmq-Error")?.to_string();
    let body = json_of(answer);
    assert_eq!(code(&body), named, "{body}");
    assert!(body["error"]["message"].as_str().is_some_and(|words| words.len() > 10), "{body}");
    Some(named)
}

fn stands(stranger: &Stranger, topic: &str) -> Value {
    json_of(&stranger.demand(&format!("dmq.data.offsets.0.{topic}"), &[], ""))
}

/// Until the node has told so many refused messages: one that is answered is counted before.
fn await_refused(cluster: &Cluster, node: u32, count: u64) {
    cluster.await_that("the node has told its count", || {
        let described = cluster.run(&format!("node describe {node}"))?;
        if described["refusedMessages"].as_u64() == Some(count) { Ok(()) } else { Err(described.to_string()) }
    });
}

#[test]
fn what_clients_send_that_cannot_be_read_is_answered_counted_and_said_once() {
    let mut cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    cluster.run("topic create orders --replication-factor 1").unwrap();
    let stranger = Stranger::new(&cluster.nats);
    assert_eq!(code_of(&stranger.demand("dmq.data.produce.0.orders", &[], "first")), None);
    let (version, before) = (stranger.version(), stands(&stranger, "orders"));
    let mut count = 0;
    for op in ["fetch", "offsets", "delete", "commit", "committed"] {
        for (what, payload) in unreadable("dmq.data.v1") {
            // An empty payload asks these for what they say of themselves.
            if payload.is_empty() && matches!(op, "fetch" | "offsets") {
                continue;
            }
            let answer = stranger.demand(&format!("dmq.data.{op}.0.orders"), &[], payload);
            assert_eq!(code_of(&answer).as_deref(), Some("INVALID_REQUEST"), "{op}: {what}");
            count += 1;
        }
    }
    let long = "x".repeat(10_000);
    let headers = [
        ("Dmq-Format", "avro"),
        ("Dmq-Format", ""),
        ("Dmq-Format", &long),
        ("Dmq-Acks", "2"),
        ("Dmq-Acks", ""),
        ("Dmq-Acks", "ALL"),
        ("Dmq-Timeout-Ms", "-1"),
        ("Dmq-Timeout-Ms", "soon"),
        ("Dmq-Timeout-Ms", "99999999999999999999"),
        ("Dmq-Timestamp", "1e9"),
        ("Dmq-Timestamp", "9223372036854775808"),
        ("Dmq-Topic-Id", "orders"),
        ("Dmq-Topic-Id", &long),
        // Nearly one of ours, or one of an answer's.
        ("Dmq-Kay", "k"),
        ("dmq-key", "k"),
        ("DMQ-ACKS", "0"),
        ("Dmq-Head", "{}"),
    ];
    for (name, value) in headers {
        let answer = stranger.demand("dmq.data.produce.0.orders", &[(name, value)], "x");
        assert_eq!(code_of(&answer).as_deref(), Some("INVALID_REQUEST"), "{name}: {value}");
        let body = json_of(&answer);
        let words = body["error"]["message"].as_str().unwrap();
        assert!(words.contains(name) && words.len() < 300, "{words}");
        count += 1;
    }
    // Nobody waits for an answer, and it counts all the same.
    stranger.tell_with_headers("dmq.data.produce.0.orders", &[BATCH, ("Dmq-Acks", "0")], "garbage");
    count += 1;
    for op in ["nosuch", "PRODUCE", &"o".repeat(1_000)] {
        let answer = stranger.demand(&format!("dmq.data.{op}.0.orders"), &[], "");
        assert_eq!(code_of(&answer).as_deref(), Some("INVALID_REQUEST"), "{op}");
        count += 1;
    }
    await_refused(&cluster, 0, count);
    assert_eq!(said(&cluster, "storage-0", "a message was refused"), 1, "{}", cluster.log_of("storage-0"));
    assert_eq!(stands(&stranger, "orders"), before, "something was written");

    // Whoever names no partition is answered by any node.
    for (subject, payload, wanted) in [
        ("dmq.data.produce.auto.absent", "x", "UNKNOWN_TOPIC_OR_PARTITION"),
        ("dmq.data.produce.auto.a,b", "x", "INVALID_TOPIC_EXCEPTION"),
        (COMMIT, "nonsense", "INVALID_REQUEST"),
        (COMMIT, r#"{"group":"","offsets":[]}"#, "INVALID_GROUP_ID"),
        (COMMITTED, "[]", "INVALID_REQUEST"),
    ] {
        assert_eq!(code_of(&stranger.demand(subject, &[], payload)).as_deref(), Some(wanted), "{subject} {payload}");
    }
    await_refused(&cluster, 0, count + 4);
    assert_eq!(said(&cluster, "storage-0", "a message was refused"), 2, "{}", cluster.log_of("storage-0"));
    assert_eq!(stranger.version(), version, "something was written");
    assert_unharmed(&mut cluster);
}

#[test]
fn what_can_be_read_and_makes_no_sense_has_its_error_and_changes_nothing() {
    let mut cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    cluster.run("topic create orders --replication-factor 1").unwrap();
    let stranger = Stranger::new(&cluster.nats);
    for number in 0..3 {
        let value = format!("value {number}");
        assert_eq!(code_of(&stranger.demand("dmq.data.produce.0.orders", &[], value)), None);
    }
    let before = stands(&stranger, "orders");
    assert_eq!((&before["logEndOffset"], &before["highWatermark"]), (&json!(3), &json!(3)));
    let other = Uuid::new_v4().to_string();
    let none: Option<&str> = None;
    let cases = [
        ("fetch", json!({ "offset": -1 }), Some("OFFSET_OUT_OF_RANGE")),
        ("fetch", json!({ "offset": i64::MAX }), Some("OFFSET_OUT_OF_RANGE")),
        ("fetch", json!({ "offset": i64::MIN }), Some("OFFSET_OUT_OF_RANGE")),
        ("fetch", json!({ "offset": u64::MAX }), Some("INVALID_REQUEST")),
        ("fetch", json!({ "offset": 1.5 }), Some("INVALID_REQUEST")),
        ("fetch", json!({ "maxBytes": -1 }), Some("INVALID_REQUEST")),
        ("fetch", json!({ "answers": 0 }), Some("INVALID_REQUEST")),
        ("fetch", json!({ "answers": 2 }), Some("INVALID_REQUEST")),
        ("fetch", json!({ "answers": u32::MAX }), Some("INVALID_REQUEST")),
        ("fetch", json!({ "answers": 1 }), none),
        ("fetch", json!({ "maxWaitMs": 1u64 << 32 }), Some("INVALID_REQUEST")),
        ("fetch", json!({ "leaderEpoch": u32::MAX }), Some("UNKNOWN_LEADER_EPOCH")),
        ("fetch", json!({ "topicId": "orders" }), Some("INVALID_REQUEST")),
        ("fetch", json!({ "topicId": other }), Some("UNKNOWN_TOPIC_ID")),
        ("fetch", json!({ "maxBytes": 0, "minBytes": u32::MAX }), none),
        ("fetch", json!({ "maxBytes": u32::MAX, "minBytes": u32::MAX }), none),
        ("offsets", json!({ "topicId": other }), Some("UNKNOWN_TOPIC_ID")),
        ("offsets", json!({ "timestamp": i64::MIN }), Some("INVALID_REQUEST")),
        ("offsets", json!({ "timestamp": -3 }), Some("INVALID_REQUEST")),
        ("offsets", json!({ "timestamp": 0, "leaderEpoch": 0 }), Some("INVALID_REQUEST")),
        ("offsets", json!({ "timestamp": i64::MAX }), none),
        ("offsets", json!({ "timestamp": u64::MAX }), Some("INVALID_REQUEST")),
        ("offsets", json!({ "leaderEpoch": u32::MAX }), none),
        ("delete", json!({ "before": 4 }), Some("OFFSET_OUT_OF_RANGE")),
        ("delete", json!({ "before": i64::MAX }), Some("OFFSET_OUT_OF_RANGE")),
        ("delete", json!({ "before": 1, "topicId": other }), Some("UNKNOWN_TOPIC_ID")),
        ("delete", json!({ "before": i64::MIN }), Some("OFFSET_OUT_OF_RANGE")),
        ("delete", json!({ "before": -2 }), Some("OFFSET_OUT_OF_RANGE")),
        (
            "commit",
            json!({ "group": "g", "offsets": [{ "topic": "orders", "partition": 0, "offset": 1 }] }),
            Some("INVALID_REQUEST"),
        ),
        ("committed", json!({ "group": "g" }), Some("INVALID_REQUEST")),
    ];
    for (op, request, wanted) in cases {
        let answer = stranger.demand(&format!("dmq.data.{op}.0.orders"), &[], request.to_string());
        assert_eq!(code_of(&answer).as_deref(), wanted, "{op} {request}: {}", json_of(&answer));
    }
    let found = |request: Value| {
        let answer = stranger.demand("dmq.data.offsets.0.orders", &[], request.to_string());
        json_of(&answer).get("found").cloned()
    };
    assert_eq!(found(json!({ "timestamp": -1 })), Some(json!({ "offset": 3 })), "Kafka's latest");
    assert_eq!(found(json!({ "timestamp": -2 })), Some(json!({ "offset": 0 })), "Kafka's earliest");
    assert_eq!(found(json!({ "leaderEpoch": 0 })), Some(json!({ "offset": 3, "leaderEpoch": 0 })));
    assert_eq!(found(json!({ "leaderEpoch": 7 })), None, "an epoch that has not begun");
    let large = vec![b'x'; 1_000_000];
    for (headers, payload, wanted) in [
        (&[("Dmq-Topic-Id", other.as_str())][..], b"x".to_vec(), "UNKNOWN_TOPIC_ID"),
        (&[], large.clone(), "MESSAGE_TOO_LARGE"),
        (&[BATCH], large, "CORRUPT_MESSAGE"),
        (&[BATCH], Vec::new(), "CORRUPT_MESSAGE"),
        (&[BATCH], vec![b'['; 900_000], "CORRUPT_MESSAGE"),
    ] {
        let answer = stranger.demand("dmq.data.produce.0.orders", headers, payload);
        assert_eq!(code_of(&answer).as_deref(), Some(wanted), "{headers:?}");
    }
    assert_eq!(stands(&stranger, "orders"), before, "something was written, or deleted");
    // What may be of any size comes back as it went.
    for timestamp in [i64::MIN, -2, i64::MAX] {
        let headers = [("Dmq-Timestamp", &*timestamp.to_string())];
        let refused = stranger.demand("dmq.data.produce.0.orders", &headers, "");
        assert_eq!(code_of(&refused).as_deref(), Some("INVALID_TIMESTAMP"), "{timestamp}");
    }
    for timestamp in [0, -1] {
        let headers = [("Dmq-Timestamp", &*timestamp.to_string()), ("Dmq-Key", ""), ("x", "y")];
        let stored = json_of(&stranger.demand("dmq.data.produce.0.orders", &headers, ""));
        let fetch = json!({ "offset": stored["offset"] }).to_string();
        let read = stranger.ask("dmq.data.fetch.0.orders", fetch);
        assert_eq!(read["records"][0]["timestamp"], json!(timestamp), "{read}");
    }
    assert_unharmed(&mut cluster);
}

/// A batch of three records, of an idempotent producer.
fn batch(producer: Option<ProducerStamp>) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Compression::None);
    for number in 0..3u8 {
        builder.push(1_700_000_000_000 + i64::from(number), Some(&[b'k', number]), Some(b"a value"), &[]);
    }
    match producer {
        Some(producer) => builder.producer(producer).build().unwrap().to_vec(),
        None => builder.build().unwrap().to_vec(),
    }
}

/// What the checksum covers begins here; before it, base offset and leader epoch are the leader's to set.
const COVERED: usize = 21;

fn is_the_leaders(at: usize) -> bool {
    at < 8 || (12..16).contains(&at)
}

fn seal(batch: &mut [u8]) {
    let crc = crc32c::crc32c(&batch[COVERED..]);
    batch[17..COVERED].copy_from_slice(&crc.to_be_bytes());
}

#[test]
fn a_garbled_batch_is_never_taken_and_one_that_lies_under_a_right_checksum_harms_nobody() {
    let mut cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    cluster.run("topic create orders --replication-factor 1 --config retention.ms=-1").unwrap();
    let stranger = Stranger::new(&cluster.nats);
    let send = |payload: &[u8]| stranger.demand("dmq.data.produce.0.orders", &[BATCH], payload);
    let good = batch(Some(ProducerStamp { id: 7, epoch: 0, sequence: 0 }));
    let mut taken = 0;
    for at in 0..good.len() {
        for mask in [0x01, 0x80, 0xff] {
            let mut garbled = good.clone();
            garbled[at] ^= mask;
            let answer = send(&garbled);
            match code_of(&answer).as_deref() {
                // The first is stored, and the others are the same batch again.
                None => {
                    assert!(is_the_leaders(at), "byte {at} with {mask:#x} was taken: {}", json_of(&answer));
                    assert_eq!(json_of(&answer)["offset"], 0);
                    taken += 1;
                }
                Some(why) => assert!(matches!(why, "CORRUPT_MESSAGE" | "INVALID_RECORD"), "byte {at}: {why}"),
            }
        }
    }
    assert!(taken > 20, "{taken}");
    for length in 0..good.len() {
        assert_eq!(code_of(&send(&good[..length])).as_deref(), Some("CORRUPT_MESSAGE"), "{length} bytes");
    }
    for behind in [b"\0".as_slice(), &good, &[0xff; 100]] {
        assert_eq!(code_of(&send(&[&good[..], behind].concat())).as_deref(), Some("INVALID_RECORD"));
    }
    assert_eq!(stands(&stranger, "orders")["logEndOffset"], 3, "only the good one is there");

    // A checksum that is right over whatever the bytes say. What is taken is read again, by everybody.
    let plain = batch(None);
    let mut stored = 3;
    for at in COVERED..plain.len() {
        for mask in [0x01, 0x02, 0x08, 0x10, 0x40, 0x80, 0xff] {
            let mut lying = plain.clone();
            lying[at] ^= mask;
            seal(&mut lying);
            let answer = send(&lying);
            match code_of(&answer).as_deref() {
                None => {
                    let stored_at = json_of(&answer)["offset"].as_i64().unwrap();
                    assert!(stored_at <= stored, "byte {at}: {}", json_of(&answer));
                    stored = stored.max(stored_at + 3);
                }
                Some(why) => assert!(
                    matches!(
                        why,
                        "CORRUPT_MESSAGE"
                            | "INVALID_RECORD"
                            | "OUT_OF_ORDER_SEQUENCE_NUMBER"
                            | "INVALID_PRODUCER_EPOCH"
                            | "INVALID_TIMESTAMP"
                    ),
                    "byte {at}: {why}"
                ),
            }
        }
    }
    for bits in 0..=255u8 {
        let mut lying = plain.clone();
        lying[COVERED + 1] = bits;
        seal(&mut lying);
        let answer = send(&lying);
        assert!(
            bits & 0x30 == 0 || code_of(&answer).is_some(),
            "a transactional or control batch was taken: {bits:#x}"
        );
        if code_of(&answer).is_none() {
            stored += 3;
        }
    }
    assert_eq!(stands(&stranger, "orders")["logEndOffset"], stored);
    let (mut next, mut read) = (0, 0);
    while next < stored {
        let answer = stranger.ask("dmq.data.fetch.0.orders", json!({ "offset": next }).to_string());
        read += answer["records"].as_array().unwrap_or_else(|| panic!("{answer}")).len() as i64;
        next = answer["nextOffset"].as_i64().unwrap();
    }
    assert_eq!(read, stored);
    // A record's own bytes: random behind a header that is right.
    let mut random = plain.clone();
    random[HEADER_BYTES..]
        .iter_mut()
        .zip((0..=255u8).cycle())
        .for_each(|(byte, other)| *byte ^= other.wrapping_mul(37));
    seal(&mut random);
    assert_eq!(code_of(&send(&random)).as_deref(), Some("CORRUPT_MESSAGE"));
    assert_unharmed(&mut cluster);
}

#[test]
fn a_forged_poll_moves_nothing_and_keeps_no_follower_out() {
    let mut cluster = Cluster::start(1, 2);
    cluster.await_healthy();
    cluster.run("topic create orders --replication-factor 2 --config min.insync.replicas=2").unwrap();
    let stranger = Stranger::new(&cluster.nats);
    let described = cluster.run("topic describe orders").unwrap();
    let topic: TopicId = described["topicId"].as_str().unwrap().parse().unwrap();
    let leader = described["partitions"][0]["leader"].as_u64().unwrap() as u32;
    let follower = 1 - leader;
    let subject = format!("dmq.replica.{leader}");
    let node = cluster.run(&format!("node describe {follower}")).unwrap();
    let epoch = NodeEpoch(node["nodeEpoch"].as_u64().unwrap());
    let ours: ClusterId = stranger.status()["clusterId"].as_str().unwrap().parse().unwrap();
    let before = (stranger.version(), stands(&stranger, "orders"));

    let refused = cluster.run(&format!("node describe {leader}")).unwrap()["refusedMessages"].as_u64().unwrap();
    let forged = |change: &dyn Fn(&mut ReplicaFetch)| {
        let everything = ReplicaPosition {
            topic,
            partition: 0,
            leader_epoch: LeaderEpoch(0),
            attempt: 0,
            offset: Offset(i64::MAX),
            last_epoch: Some(LeaderEpoch(0)),
            flushed: Offset(i64::MAX),
        };
        let mut poll = ReplicaFetch {
            cluster: ours,
            storage: StorageId(follower),
            node_epoch: epoch,
            session: u64::MAX,
            sequence: 0,
            taken: None,
            max_bytes: u32::MAX,
            max_wait_ms: 0,
            positions: vec![everything],
            dropped: Vec::new(),
        };
        change(&mut poll);
        let answer = stranger.ask_raw(&subject, poll.encode());
        ReplicaAnswer::decode(&answer.into()).unwrap().0.outcome
    };
    assert_eq!(forged(&|poll| poll.cluster = ClusterId(Uuid::new_v4())), SessionOutcome::Refused);
    assert_eq!(forged(&|poll| poll.node_epoch = NodeEpoch(epoch.0 - 1)), SessionOutcome::Refused);
    assert_eq!(forged(&|poll| poll.storage = StorageId(u32::MAX)), SessionOutcome::Refused);
    assert_eq!(forged(&|poll| poll.node_epoch = NodeEpoch(u64::MAX)), SessionOutcome::NotServing);
    assert_eq!(forged(&|poll| poll.sequence = u32::MAX), SessionOutcome::UnknownSession);

    // What cannot be read has no answer.
    let mut answers = stranger.listen("strangers.inbox");
    let whole = ReplicaFetch {
        cluster: ours,
        storage: StorageId(follower),
        node_epoch: epoch,
        session: u64::MAX,
        sequence: 0,
        taken: None,
        max_bytes: 1,
        max_wait_ms: 0,
        positions: Vec::new(),
        dropped: Vec::new(),
    };
    let whole = whole.encode();
    let mut bad: Vec<Vec<u8>> = unreadable("dmq.replica.v1").into_iter().map(|(_, payload)| payload).collect();
    bad.extend((0..whole.len()).map(|length| whole[..length].to_vec()));
    bad.push([&whole[..], b"more"].concat());
    bad.push([b"\x01\xff\xff\xff\xff".as_slice(), &[0xff; 1000]].concat());
    // A header that says it has 2^64 positions.
    let endless = [&whole[5..whole.len() - 2], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]].concat();
    bad.push([&[1], &(endless.len() as u32).to_le_bytes()[..], &endless].concat());
    for payload in &bad {
        stranger.tell_with_reply(&subject, "strangers.inbox", payload.clone());
    }
    await_refused(&cluster, leader, refused + 3 + bad.len() as u64);
    assert!(answers.is_silent());
    assert_eq!(said(&cluster, &format!("storage-{leader}"), "a message was refused"), 1, "{}", cluster.logs());

    assert_eq!((stranger.version(), stands(&stranger, "orders")), before, "something was moved");
    // The real follower is heard: both have to have it.
    let stored = stranger.demand("dmq.data.produce.0.orders", &[], "hello");
    assert_eq!(code_of(&stored), None, "{}", json_of(&stored));
    let isr = cluster.run("topic describe orders").unwrap()["partitions"][0]["isr"].as_array().unwrap().len();
    assert_eq!(isr, 2);
    assert_unharmed(&mut cluster);
}

#[test]
fn groups_offsets_are_written_by_commits_alone_and_only_by_such_as_make_sense() {
    let mut cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    let stranger = Stranger::new(&cluster.nats);
    let offset = json!({ "topic": "orders", "partition": 0, "offset": 5, "metadata": "kept" });
    let real = json!({ "group": "billing", "offsets": [offset] });
    // The first commit may wait longer than one request does.
    cluster.await_that("a group has committed", || match stranger.try_ask(COMMIT, real.to_string()) {
        Ok(answer) if serde_json::from_slice::<Value>(&answer).unwrap() == real => Ok(()),
        Ok(answer) => Err(String::from_utf8_lossy(&answer).into_owned()),
        Err(why) => Err(why),
    });
    // Only the group's own partition takes it, and the others say which that is.
    let (mut taken, mut named) = (Vec::new(), BTreeSet::new());
    for at in 0..16 {
        let answer = stranger.demand(&format!("dmq.data.commit.{at}.__consumer_offsets"), &[], real.to_string());
        match code_of(&answer).as_deref() {
            None => taken.push(at),
            Some("NOT_COORDINATOR") => _ = named.insert(json_of(&answer)["error"]["message"].to_string()),
            Some(other) => panic!("{at}: {other}"),
        }
    }
    assert_eq!((taken.len(), named.len()), (1, 15), "{taken:?} {named:?}");
    assert!(named.iter().all(|words| words.contains(&format!("leads partition {} of", taken[0]))), "{named:?}");
    let version = stranger.version();
    let held = |stranger: &Stranger| -> Vec<Value> {
        (0..16)
            .map(|at| json_of(&stranger.demand(&format!("dmq.data.offsets.{at}.__consumer_offsets"), &[], "")))
            .collect()
    };
    let before = held(&stranger);

    let garbage = batch(None);
    for partition in 0..16 {
        for (headers, payload) in [(&[][..], b"garbage".as_slice()), (&[("Dmq-Key", "k")], b""), (&[BATCH], &garbage)] {
            let subject = format!("dmq.data.produce.{partition}.__consumer_offsets");
            let answer = stranger.demand(&subject, headers, payload);
            assert_eq!(code_of(&answer).as_deref(), Some("INVALID_TOPIC_EXCEPTION"), "{subject} {headers:?}");
        }
    }
    let answer = stranger.demand("dmq.data.produce.auto.__consumer_offsets", &[], "garbage");
    assert_eq!(code_of(&answer).as_deref(), Some("INVALID_TOPIC_EXCEPTION"));
    let answer = stranger.demand("dmq.data.delete.0.__consumer_offsets", &[], json!({ "before": -1 }).to_string());
    assert_eq!(code_of(&answer).as_deref(), Some("INVALID_TOPIC_EXCEPTION"));
    for change in [json!({ "partitions": 17 }), json!({ "config": { "cleanup.policy": "delete" } })] {
        let mut request = json!({ "name": "__consumer_offsets" });
        change.as_object().unwrap().iter().for_each(|(name, value)| request[name] = value.clone());
        let answer = stranger.ask("dmq.admin.topic.alter", request.to_string());
        assert_eq!(code(&answer), "INVALID_TOPIC_EXCEPTION", "{answer}");
    }

    let one = |fields: Value| {
        let mut changed = offset.clone();
        fields.as_object().unwrap().iter().for_each(|(name, value)| changed[name] = value.clone());
        json!({ "group": "billing", "offsets": [changed] })
    };
    let many: Vec<Value> = (0..10_001).map(|at| json!({ "topic": "t", "partition": at, "offset": 1 })).collect();
    let wordy: Vec<Value> = (0..250)
        .map(|at| json!({ "topic": "t", "partition": at, "offset": 1, "metadata": "x".repeat(4_000) }))
        .collect();
    let cases = [
        (json!({ "group": "", "offsets": [offset] }), "INVALID_GROUP_ID"),
        (json!({ "group": "g".repeat(256), "offsets": [offset] }), "INVALID_GROUP_ID"),
        (json!({ "group": "é".repeat(128), "offsets": [offset] }), "INVALID_GROUP_ID"),
        (json!({ "group": 7, "offsets": [offset] }), "INVALID_REQUEST"),
        (json!({ "group": "billing", "offsets": [] }), "INVALID_REQUEST"),
        (json!({ "group": "billing", "offsets": many }), "INVALID_REQUEST"),
        (json!({ "group": "billing", "offsets": wordy }), "MESSAGE_TOO_LARGE"),
        (json!({ "group": "billing", "offsets": [offset], "members": [] }), "INVALID_REQUEST"),
        (one(json!({ "offset": -1 })), "INVALID_REQUEST"),
        (json!({ "group": "billing", "offsets": [{ "topic": "t", "partition": 0 }] }), "INVALID_REQUEST"),
        (one(json!({ "offset": i64::MIN })), "INVALID_REQUEST"),
        (one(json!({ "offset": u64::MAX })), "INVALID_REQUEST"),
        (one(json!({ "partition": -1 })), "INVALID_REQUEST"),
        (one(json!({ "partition": u32::MAX })), "INVALID_REQUEST"),
        (one(json!({ "leaderEpoch": u32::MAX })), "INVALID_REQUEST"),
        (one(json!({ "topic": "a b" })), "INVALID_TOPIC_EXCEPTION"),
        (one(json!({ "topic": "" })), "INVALID_TOPIC_EXCEPTION"),
        (one(json!({ "metadata": "x".repeat(4_097) })), "OFFSET_METADATA_TOO_LARGE"),
    ];
    for (request, wanted) in &cases {
        let answer = stranger.demand(COMMIT, &[], request.to_string());
        let shown: String = request.to_string().chars().take(200).collect();
        assert_eq!(code_of(&answer).as_deref(), Some(*wanted), "{shown}");
    }
    assert_eq!((stranger.version(), held(&stranger)), (version, before), "something was written");
    // Names that are only odd are names: another coordinator reads them from its disk.
    for group in ["\0", "a.b *>", "\n", "🦀", &"g".repeat(255)] {
        let odd = json!({ "group": group, "offsets": [offset] });
        assert_eq!(stranger.ask(COMMIT, odd.to_string()), odd);
    }
    cluster.storage[0].kill();
    cluster.storage[0] = cluster.node(0);
    cluster.await_healthy();
    for group in ["billing", "\0", "a.b *>", "\n", "🦀", &"g".repeat(255)] {
        let wanted = json!({ "group": group, "offsets": [offset] });
        cluster.await_that("the coordinator has read its partition", || {
            let answer = stranger.try_ask(COMMITTED, json!({ "group": group }).to_string())?;
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            if answer.get("error").is_some() {
                return Err(answer.to_string());
            }
            assert_eq!(answer, wanted);
            Ok(())
        });
    }
    assert_unharmed(&mut cluster);
}

#[test]
fn where_nobody_leads_who_names_no_partition_is_told_so_and_nothing_is_stored() {
    let mut cluster = Cluster::start(1, 2);
    cluster.await_healthy();
    cluster.run("topic create orders --partitions 2 --replication-factor 1").unwrap();
    let stranger = Stranger::new(&cluster.nats);
    cluster.storage[1].kill();
    cluster.await_that("a partition has no leader", || {
        let described = cluster.run("topic describe orders")?;
        let leaders = described["partitions"].as_array().unwrap().iter().map(|one| &one["leader"]);
        if leaders.filter(|leader| leader.is_null()).count() == 1 { Ok(()) } else { Err(described.to_string()) }
    });
    // In turn, by the only node that is left.
    let codes: BTreeSet<_> =
        (0..2).map(|_| code_of(&stranger.demand("dmq.data.produce.auto.orders", &[], "x"))).collect();
    assert_eq!(codes, BTreeSet::from([None, Some("NOT_LEADER_OR_FOLLOWER".into())]));
    cluster.storage[1] = cluster.node(1);
    cluster.await_healthy();
    let ends = |stranger: &Stranger| {
        let end =
            |at| json_of(&stranger.demand(&format!("dmq.data.offsets.{at}.orders"), &[], ""))["logEndOffset"].as_i64();
        end(0).zip(end(1)).map(|(one, other)| one + other)
    };
    assert_eq!(ends(&stranger), Some(1));
    assert_unharmed(&mut cluster);
}
