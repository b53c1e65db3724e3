//! A whole cluster of real processes on a real nats-server: what a newcomer sees, breaks and sees heal.

mod support;

use std::process::Stdio;

use serde_json::Value;
use support::cluster::Cluster;
use support::nats::{NatsOptions, NatsServer};

fn leaders(topic: &Value) -> Vec<Option<u64>> {
    topic["partitions"].as_array().unwrap().iter().map(|partition| partition["leader"].as_u64()).collect()
}

/// Whether a health check is passed, and its words.
fn health(cluster: &Cluster, args: &str) -> (bool, String) {
    let output = cluster.command().arg("health").args(args.split(' ')).args(["--timeout", "3s"]).output().unwrap();
    let words = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(!words.is_empty(), "{output:?}");
    (output.status.success(), words)
}

#[test]
fn a_health_check_passes_where_the_process_of_a_directory_does_its_work_and_says_what_is_wrong_where_not() {
    let mut cluster = Cluster::start(2, 1);
    cluster.await_healthy();
    for id in 0..2 {
        let (is_well, words) = health(&cluster, &format!("--data controller-{id}"));
        assert!(is_well && words.starts_with(&format!("controller {id} is ")), "{words}");
    }
    let (is_well, words) = health(&cluster, "--data storage-0");
    assert!(is_well && words.starts_with("storage node 0 is active, heard "), "{words}");
    // A root of several directories, of which this host uses one.
    std::fs::create_dir(cluster.folder.path().join("root")).unwrap();
    let (is_well, words) = health(&cluster, "--data-root root");
    assert_eq!((is_well, &*words), (false, "no process of this host has taken a directory here"));
    std::os::unix::fs::symlink("../storage-0", cluster.folder.path().join("root/0")).unwrap();
    let (is_well, words) = health(&cluster, "--data-root root");
    assert!(is_well, "{words}");
    let (is_well, words) = health(&cluster, "--data elsewhere");
    assert!(!is_well && words.contains("no directory of a controller or storage node yet"), "{words}");

    cluster.storage[0].kill();
    let words = cluster.await_that("the node is fenced", || match health(&cluster, "--data storage-0") {
        (false, words) => Ok(words),
        (true, words) => Err(words),
    });
    assert!(words.starts_with("storage node 0 is fenced, heard "), "{words}");
    cluster.controllers[1].kill();
    let (is_well, words) = health(&cluster, "--data controller-1");
    assert!(!is_well && words.contains("controller 1 is not heard on NATS"), "{words}");
    cluster.controllers[0].pause();
    assert!(!health(&cluster, "--data controller-0").0, "it is frozen");
}

#[test]
fn a_crashed_leader_is_replaced_and_comes_back_into_every_in_sync_set() {
    let mut cluster = Cluster::start(1, 3);
    cluster.await_healthy();
    let made = cluster.run("topic create orders.eu --partitions 6 --replication-factor 3").unwrap();
    assert_eq!((made["applied"].as_u64(), made["active"].as_u64()), (Some(3), Some(3)), "{made}");
    let before = cluster.run("topic describe orders.eu").unwrap();
    assert!(leaders(&before).contains(&Some(0)), "{before}");

    cluster.storage[0].kill();
    let after = cluster.await_that("others lead", || {
        let topic = cluster.run("topic describe orders.eu")?;
        let led = leaders(&topic).iter().all(|leader| matches!(leader, Some(1 | 2)));
        if led { Ok(topic) } else { Err(topic.to_string()) }
    });
    for (old, new) in std::iter::zip(before["partitions"].as_array().unwrap(), after["partitions"].as_array().unwrap())
    {
        let moved = old["leader"] != new["leader"];
        let raised = new["leaderEpoch"].as_u64() > old["leaderEpoch"].as_u64();
        assert_eq!(moved, raised, "{old} {new}");
    }
    let unhealthy = cluster.run("cluster status").unwrap_err();
    assert!(unhealthy.contains("storage node 0 is fenced"), "{unhealthy}");

    cluster.storage[0] = cluster.node(0);
    let status = cluster.await_healthy();
    assert_eq!(status["underReplicatedPartitions"], 0, "{status}");
}

#[test]
fn a_standby_takes_over_from_a_killed_controller_and_loses_nothing() {
    let mut cluster = Cluster::start(3, 1);
    cluster.await_healthy();
    cluster.run("topic create first").unwrap();
    let before = cluster.run("cluster status").unwrap();
    let active = before["controller"]["id"].as_u64().unwrap() as usize;
    cluster.controllers[active].kill();
    // The command goes on asking until the next controller answers.
    cluster.run("topic create second").unwrap();
    let after = cluster.run("cluster status").unwrap();
    assert_ne!(after["controller"]["id"], before["controller"]["id"]);
    assert!(after["controller"]["epoch"].as_u64() > before["controller"]["epoch"].as_u64(), "{after}");
    let topics = cluster.run("topic list").unwrap();
    let names: Vec<_> = topics["topics"].as_array().unwrap().iter().map(|topic| topic["name"].clone()).collect();
    assert_eq!(names, ["first", "second"]);
    let paired = after["storageNodes"][0]["pairedMetadataServiceId"].as_u64();
    assert_ne!(paired, None);
}

#[test]
fn a_frozen_standby_does_not_hold_up_the_nodes_that_it_is_paired_with() {
    // Nodes are paired anew only after a session, and would look for what is missing themselves only after a heartbeat's
    // time and an unanswered fetch: both later than the answer is waited for.
    let settings = [("DMQ_SESSION_TIMEOUT_MS", "6000"), ("DMQ_HEARTBEAT_INTERVAL_MS", "1500")];
    let cluster = Cluster::start_with(2, 3, &settings);
    let status = cluster.await_healthy();
    let active = status["controller"]["id"].as_u64().unwrap();
    let paired = |status: &Value| {
        let nodes = status["storageNodes"].as_array().unwrap().iter();
        nodes.map(|node| node["pairedMetadataServiceId"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert!(paired(&status).iter().any(|controller| *controller != active), "{status}");
    cluster.controllers[1 - active as usize].pause();
    let made = cluster.run("topic create orders --wait 3s").unwrap();
    assert_eq!((made["applied"].as_u64(), made["active"].as_u64()), (Some(3), Some(3)), "{made}");
}

#[test]
fn a_wiped_history_stops_the_writes_and_is_restored_from_the_nodes() {
    let cluster = Cluster::start(2, 2);
    cluster.await_healthy();
    let made = cluster.run("topic create kept --partitions 4").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let jetstream = async_nats::jetstream::new(cluster.nats.connect().await);
        jetstream.delete_stream("DMQ_METADATA").await.unwrap();
    });
    cluster.await_that("the loss is said", || match cluster.run("cluster status") {
        Err(status) if status.contains("halted") => Ok(()),
        Err(status) => Err(status),
        Ok(status) => Err(status.to_string()),
    });
    let refused = cluster.run("topic create lost").unwrap_err();
    assert!(refused.contains("restore"), "{refused}");
    cluster.await_that("it is restored", || cluster.run("metadata restore --yes"));
    let status = cluster.await_healthy();
    assert!(status["version"].as_u64().unwrap() > made["version"].as_u64().unwrap() + 1_000_000, "{status}");
    let topic = cluster.run("topic describe kept").unwrap();
    assert!(
        topic["partitions"].as_array().unwrap().iter().all(|p| p["leaderEpoch"].as_u64() > Some(65_535)),
        "{topic}"
    );
    cluster.run("topic create after").unwrap();
}

#[test]
fn a_retry_gets_the_same_answer_and_others_are_told_what_is_wrong() {
    let cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    let first = cluster.run("topic create once --partitions 2 --request-id r-1").unwrap();
    let again = cluster.run("topic create once --partitions 2 --request-id r-1").unwrap();
    assert_eq!((&first["version"], &first["topicId"]), (&again["version"], &again["topicId"]));
    for (line, words) in [
        ("topic create once --partitions 3 --request-id r-1", "another request"),
        ("topic create once", "exists already"),
        ("topic create bad..name", "'..'"),
        ("topic create none --partitions 0", "at least 1 partition"),
        ("topic create many --replication-factor 2", "1 are active"),
        ("topic create odd --config retention_ms=1", "did you mean retention.ms"),
        ("topic describe absent", "no topic"),
    ] {
        let error = cluster.run(line).expect_err(line);
        assert!(error.contains(words), "{error}");
    }
}

fn server_of(max_payload: &str) -> NatsServer {
    let extra = format!("max_payload: {max_payload}");
    NatsServer::start_with(&NatsOptions { extra, ..NatsOptions::default() })
}

#[test]
fn a_topic_larger_than_a_message_is_split_and_never_seen_half_done() {
    let mut cluster = Cluster::start_on(server_of("64KB"), 2, 2, &[]);
    let before = cluster.await_healthy();
    let create = "topic create big --partitions 20000 --replication-factor 2 --wait 0s --timeout 9s --output json";
    let mut creating = cluster.command().args(create.split(' ')).stdout(Stdio::piped()).spawn().unwrap();
    let partitions = |cluster: &Cluster| {
        let list = cluster.run("topic list").unwrap();
        list["topics"].as_array().unwrap().first().map(|topic| topic["partitions"].as_u64().unwrap())
    };
    while creating.try_wait().unwrap().is_none() {
        let seen = partitions(&cluster);
        assert!(matches!(seen, None | Some(20_000)), "half done: {seen:?}");
    }
    let made = creating.wait_with_output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    cluster.await_that("all nodes have it", || {
        let status = cluster.run("cluster status")?;
        let nodes = status["storageNodes"].as_array().unwrap();
        let all_have = nodes.iter().all(|node| node["version"].as_u64() >= made["version"].as_u64());
        if all_have { Ok(()) } else { Err(status.to_string()) }
    });
    let messages = made["version"].as_u64().unwrap() - before["version"].as_u64().unwrap();
    assert!(messages > 1, "{messages} messages");
    // Whoever takes over has all of it, and a node that comes back joins all of it, by requests that fit.
    let active = before["controller"]["id"].as_u64().unwrap() as usize;
    cluster.controllers[active].kill();
    cluster.storage[0].kill();
    cluster.storage[0] = cluster.node(0);
    let status = cluster.await_healthy();
    assert_eq!((&status["partitions"], partitions(&cluster)), (&20_000.into(), Some(20_000)), "{status}");
}

#[test]
fn a_server_that_takes_too_small_messages_is_refused_with_words() {
    let nats = server_of("32KB");
    let cluster = Cluster::start_on(nats, 0, 0, &[]);
    let output = cluster.command().args(["controller", "--id", "0", "--data", "controller-0"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("raise max_payload"), "{said}");
}
