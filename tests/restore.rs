//! The history lost, and brought back: from whoever is there, with the most advanced node away, with every process
//! restarted, and where the stream went back.

mod support;

use std::collections::BTreeSet;

use serde_json::Value;
use support::cluster::{Cluster, copy_folder};
use support::stranger::Stranger;

fn names(cluster: &Cluster) -> Vec<String> {
    let topics = cluster.run("topic list").unwrap();
    let names = topics["topics"].as_array().unwrap().iter().map(|topic| topic["name"].as_str().unwrap().to_owned());
    names.collect()
}

/// Until every controller that runs has stopped writing and says so.
fn await_halted(cluster: &Cluster, controllers: &[u32]) {
    cluster.await_that("every controller is halted", || {
        let status = Stranger::new(&cluster.nats).try_status()?;
        let services = status["metadataServices"].as_array().cloned().unwrap_or_default();
        let halted = services.len() == controllers.len() && services.iter().all(|service| service["state"] == "halted");
        if halted { Ok(()) } else { Err(status.to_string()) }
    });
    let refused = cluster.run("topic create refused").expect_err("a change after the history was lost");
    assert!(refused.contains("restore"), "{refused}");
    for id in controllers {
        let log = cluster.log_of(&format!("controller-{id}"));
        assert!(log.contains("HISTORY IS LOST"), "{log}");
    }
}

fn restore(cluster: &Cluster, nodes: u64) -> Value {
    // Until every node that runs is heard: what only it has would be lost otherwise.
    cluster.await_that("all that run are heard", || {
        let plan = Stranger::new(&cluster.nats).try_ask("dmq.admin.metadata.restore", "")?;
        let plan: Value = serde_json::from_slice(&plan).map_err(|error| error.to_string())?;
        let missing = |id: u64| {
            let name = format!("storage node {id}");
            plan["notHeard"].as_array().is_none_or(|missing| missing.iter().any(|who| *who == name))
        };
        if (0..nodes).any(missing) { Err(plan.to_string()) } else { Ok(()) }
    });
    cluster.await_that("it is restored", || cluster.run("metadata restore --yes"))
}

#[test]
fn who_was_away_with_lost_versions_is_recognised_and_takes_a_snapshot() {
    let mut cluster = Cluster::start_with(1, 3, &[("DMQ_ADMIN_WAIT_MS", "200")]);
    cluster.await_healthy();
    cluster.run("topic create kept --partitions 3 --replication-factor 3").unwrap();
    let numbered = |numbers: std::ops::Range<u32>| numbers.map(|number| format!("record {number}")).collect();
    let (before, after): (BTreeSet<String>, BTreeSet<String>) = (numbered(0..300), numbered(300..400));
    let lines = |of: &BTreeSet<String>| of.iter().map(|line| format!("{line}\n")).collect::<String>();
    cluster.produce("kept", &lines(&before));
    // Only node 2, and the controller, come to know of the last changes.
    cluster.storage[0].pause();
    cluster.storage[1].pause();
    let stranger = Stranger::new(&cluster.nats);
    let mut acks = stranger.listen("dmq.metadata.ack.2");
    let lost = stranger.ask("dmq.admin.topic.create", r#"{"name":"lost","replicationFactor":1,"terms":{"waitMs":0}}"#);
    let lost = lost["version"].as_u64().unwrap_or_else(|| panic!("{lost}"));
    acks.find(|ack| ack["position"]["version"].as_u64() >= Some(lost));
    drop(acks);
    drop(stranger);

    for process in cluster.controllers.iter_mut().chain(&mut cluster.storage) {
        process.kill();
    }
    cluster.nats.kill();
    cluster.nats.wipe_store();
    cluster.nats.restart();
    // Node 2 and controller 0, which know more, are away. Controller 1 has an empty disk.
    cluster.storage = (0..2).map(|id| cluster.node(id)).collect();
    cluster.controllers = vec![cluster.controller(1)];
    await_halted(&cluster, &[1]);
    let restored = restore(&cluster, 2);
    let source = restored["source"]["version"].as_u64().unwrap_or_else(|| panic!("{restored}"));
    assert!(source < lost, "{restored}");
    assert!(restored["newVersion"].as_u64() > Some(1_000_000_000), "{restored}");
    cluster.await_that("both nodes are active", || {
        let status = Stranger::new(&cluster.nats).try_status()?;
        let nodes = status["storageNodes"].as_array().cloned().unwrap_or_default();
        let active = nodes.iter().filter(|node| node["state"] == "active").count();
        if active == 2 && status["controller"].is_object() { Ok(()) } else { Err(status.to_string()) }
    });
    assert_eq!(names(&cluster), ["kept"]);
    cluster.run("topic create after --replication-factor 2").unwrap();
    cluster.produce("kept", &lines(&after));

    // They come back: with versions that nobody else has, of a history that is over.
    cluster.storage.push(cluster.node(2));
    cluster.await_healthy();
    let log = cluster.log_of("storage-2");
    assert!(log.contains("took the snapshot"), "{log}");
    cluster.controllers.push(cluster.controller(0));
    cluster.await_that("the old controller has the new history", || {
        let status = cluster.run("cluster status")?;
        let services = status["metadataServices"].as_array().cloned().unwrap_or_default();
        let up = services.iter().any(|service| service["id"] == 0 && service["version"] == status["version"]);
        if up { Ok(()) } else { Err(status.to_string()) }
    });
    let log = cluster.log_of("controller-0");
    assert!(log.contains("took the snapshot"), "{log}");
    assert_eq!(names(&cluster), ["after", "kept"]);
    let read = cluster.consume("kept");
    assert_eq!(read.lines().count(), 400, "each of them once");
    assert_eq!(read.lines().map(str::to_owned).collect::<BTreeSet<_>>(), before.union(&after).cloned().collect());
    let stranger = Stranger::new(&cluster.nats);
    let mut beats = stranger.listen("dmq.heartbeat.*");
    let head = stranger.version();
    let position = |beats: &mut support::stranger::Overheard<'_>, id: u64| {
        beats.find(|beat| beat["storage"] == id && beat["position"]["version"].as_u64() >= Some(head))["position"]
            .clone()
    };
    let (of_zero, of_two) = (position(&mut beats, 0), position(&mut beats, 2));
    assert_eq!(of_zero, of_two, "they have different metadata");
}

#[test]
fn a_wiped_history_is_restored_by_processes_that_all_began_anew() {
    let mut cluster = Cluster::start(2, 2);
    cluster.await_healthy();
    let made = cluster.run("topic create kept --partitions 4 --replication-factor 2").unwrap();
    let id = cluster.run("cluster status").unwrap()["clusterId"].clone();
    for process in cluster.controllers.iter_mut().chain(&mut cluster.storage) {
        process.kill();
    }
    cluster.nats.kill();
    cluster.nats.wipe_store();
    cluster.nats.restart();
    cluster.controllers = (0..2).map(|id| cluster.controller(id)).collect();
    cluster.storage = (0..2).map(|id| cluster.node(id)).collect();
    await_halted(&cluster, &[0, 1]);
    restore(&cluster, 2);
    let status = cluster.await_healthy();
    assert_eq!(status["clusterId"], id);
    assert!(status["version"].as_u64() > Some(1_000_000_000), "{status}");
    let topic = cluster.run("topic describe kept").unwrap();
    assert_eq!(topic["topicId"], made["topicId"]);
    cluster.run("topic create after").unwrap();
}

#[test]
fn a_stream_that_went_back_is_brought_forward_again() {
    let mut cluster = Cluster::start(2, 2);
    cluster.await_healthy();
    cluster.run("topic create early --replication-factor 2").unwrap();
    // A copy of the store, as of a backup or of a server that was down for a while.
    let backup = tempfile::tempdir().unwrap();
    cluster.nats.kill();
    copy_folder(&cluster.nats.store_dir(), &backup.path().join("store"));
    cluster.nats.restart();
    cluster.await_healthy();
    let late = cluster.run("topic create late --replication-factor 2").unwrap();
    assert_eq!(late["applied"], 2, "{late}");

    cluster.nats.kill();
    cluster.nats.wipe_store();
    copy_folder(&backup.path().join("store"), &cluster.nats.store_dir());
    cluster.nats.restart();
    await_halted(&cluster, &[0, 1]);
    let restored = restore(&cluster, 2);
    assert!(restored["source"]["version"].as_u64() >= late["version"].as_u64(), "{restored}");
    cluster.await_healthy();
    assert_eq!(names(&cluster), ["early", "late"]);
    cluster.run("topic create after").unwrap();
    assert_eq!(names(&cluster), ["after", "early", "late"]);
}
