//! Disks that lose or do not take what they are given, under real processes: what is damaged is never served, what does not fit is
//! never acknowledged, and the replica comes back by itself.

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::cluster::Cluster;
use support::stranger::Stranger;

/// Lines of about a kilobyte each, which differ.
fn lines(numbers: std::ops::Range<usize>) -> String {
    numbers.map(|number| format!("{number} {}\n", format!("{number:x}.").repeat(1_000 / 4))).collect()
}

/// The segments of partition 0, in order.
fn segments(cluster: &Cluster, node: usize, topic: &str) -> Vec<PathBuf> {
    let folder = cluster.folder.path().join(format!("storage-{node}/partitions/{topic}-0"));
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    paths.sort();
    paths
}

/// All bytes of a replica of partition 0.
fn bytes(cluster: &Cluster, node: usize, topic: &str) -> Vec<u8> {
    segments(cluster, node, topic).iter().flat_map(|path| std::fs::read(path).unwrap()).collect()
}

fn flip_in_the_middle(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    assert!(middle > 10_000, "{} has {} bytes", path.display(), bytes.len());
    bytes[middle] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

fn partition(cluster: &Cluster, topic: &str) -> Result<Value, String> {
    Ok(cluster.run(&format!("topic describe {topic}"))?["partitions"][0].clone())
}

fn leader(cluster: &Cluster, topic: &str) -> Option<usize> {
    Some(partition(cluster, topic).ok()?["leader"].as_u64()? as usize)
}

fn directory_errors(cluster: &Cluster, node: usize) -> Result<String, String> {
    Ok(cluster.run(&format!("node describe {node}"))?["directoryErrors"].to_string())
}

/// Reads what there is from an offset on, as values, up to the end or the first error.
fn read_on(stranger: &Stranger, topic: &str, from: u64) -> (Vec<String>, Option<Value>) {
    let (mut next, mut values) = (from, Vec::new());
    loop {
        let answer = stranger.ask(&format!("dmq.data.fetch.0.{topic}"), json!({ "offset": next }).to_string());
        let Some(records) = answer["records"].as_array() else { return (values, Some(answer["error"].clone())) };
        values.extend(records.iter().map(|record| record["value"].as_str().unwrap().to_owned()));
        next = answer["nextOffset"].as_u64().unwrap();
        if next == answer["highWatermark"].as_u64().unwrap() {
            return (values, None);
        }
    }
}

#[test]
fn a_closed_segment_that_has_changed_is_never_served_and_is_copied_anew() {
    let mut cluster = Cluster::start(1, 2);
    cluster.await_healthy();
    cluster.run("topic create orders --replication-factor 2 --config segment.bytes=1048576 --config max.message.bytes=65536").unwrap();
    let text = lines(0..3_500);
    let wanted: Vec<&str> = text.lines().collect();
    cluster.produce("orders", &text);
    let stranger = Stranger::new(&cluster.nats);
    for was_leader in [false, true] {
        let led = leader(&cluster, "orders").unwrap();
        let (victim, other) = if was_leader { (led, 1 - led) } else { (1 - led, led) };
        let segments = segments(&cluster, victim, "orders");
        assert!(segments.len() > 2, "{segments:?}");
        let second: u64 = segments[1].file_stem().unwrap().to_str().unwrap().parse().unwrap();
        cluster.storage[victim].kill();
        flip_in_the_middle(&segments[0]);
        cluster.storage[victim] = cluster.node(victim as u32);
        cluster.await_healthy();

        // Nobody has looked there yet. It has to lead before somebody does.
        cluster.storage[other].kill();
        cluster.await_that("the damaged one leads alone", || match partition(&cluster, "orders")? {
            partition if partition["leader"] == victim && partition["isr"] == json!([victim]) => Ok(()),
            partition => Err(partition.to_string()),
        });
        let (before, error) = cluster.await_that("it serves", || match read_on(&stranger, "orders", 0) {
            (_, Some(error)) if error["code"] == "NOT_ENOUGH_REPLICAS" => Err(error.to_string()),
            read => Ok(read),
        });
        assert_eq!(error.expect("an error in place of the damaged records")["code"], "CORRUPT_MESSAGE");
        assert!(!before.is_empty() && before == wanted[..before.len()] && before.len() < second as usize);
        let (behind, error) = read_on(&stranger, "orders", second);
        assert_eq!((behind == wanted[second as usize..], error), (true, None), "what lies behind is served");
        cluster.await_that("the node says so", || match directory_errors(&cluster, victim)? {
            told if told.contains("damaged") => Ok(()),
            told => Err(told),
        });

        cluster.storage[other] = cluster.node(other as u32);
        cluster.await_that("the other one leads, and both are in sync", || match partition(&cluster, "orders")? {
            partition if partition["leader"] == other && partition["isr"].as_array().unwrap().len() == 2 => Ok(()),
            partition => Err(partition.to_string()),
        });
        cluster.await_that("nothing is wrong any more", || match directory_errors(&cluster, victim)? {
            told if told == "[]" || told == "null" => Ok(()),
            told => Err(told),
        });
        assert!(cluster.consume("orders") == text, "not all was read");
        assert!(bytes(&cluster, victim, "orders") == bytes(&cluster, other, "orders"), "the replicas differ");
        assert!(cluster.log_of(&format!("storage-{victim}")).contains("copies anew"), "{}", cluster.logs());
    }
}

#[test]
fn damage_that_is_found_at_the_start_is_copied_anew_or_told_where_there_is_no_other_copy() {
    let mut cluster = Cluster::start(1, 2);
    cluster.await_healthy();
    cluster.run("topic create pair --replication-factor 2 --config max.message.bytes=65536").unwrap();
    cluster.run("topic create lone --replication-factor 1 --config max.message.bytes=65536").unwrap();
    let text = lines(0..500);
    cluster.produce("pair", &text);
    cluster.produce("lone", &text);
    let victim = leader(&cluster, "pair").unwrap();
    cluster.storage[victim].kill();
    flip_in_the_middle(&segments(&cluster, victim, "pair")[0]);
    cluster.storage[victim] = cluster.node(victim as u32);
    cluster.await_that("it is cut and copied", || match cluster.log_of(&format!("storage-{victim}")) {
        log if log.contains("copies anew") => Ok(()),
        log => Err(log),
    });
    cluster.await_healthy();
    assert!(cluster.consume("pair") == text);
    assert!(bytes(&cluster, 0, "pair") == bytes(&cluster, 1, "pair"), "the replicas differ");

    let holder = leader(&cluster, "lone").unwrap();
    cluster.storage[holder].kill();
    flip_in_the_middle(&segments(&cluster, holder, "lone")[0]);
    cluster.storage[holder] = cluster.node(holder as u32);
    cluster.await_that("the node says so", || match directory_errors(&cluster, holder)? {
        told if told.contains("damaged") => Ok(()),
        told => Err(told),
    });
    cluster.await_that("it leads", || leader(&cluster, "lone").ok_or_else(String::new));
    // What can be read is, and it takes more.
    cluster.produce("lone", "more\n");
    let stranger = Stranger::new(&cluster.nats);
    let (before, error) = read_on(&stranger, "lone", 0);
    assert_eq!(error.expect("an error in place of the damaged records")["code"], "CORRUPT_MESSAGE");
    assert!(text.lines().take(before.len()).eq(before.iter().map(String::as_str)) && before.len() < 400);
    assert_eq!(read_on(&stranger, "lone", 500), (vec!["more".to_owned()], None));
}

/// A node that was elected and never heard of it begins with metadata by which it follows another one, and has all that there is.
#[test]
fn what_the_last_in_sync_replica_has_is_not_cut_before_it_knows_that_it_is_the_last() {
    let mut cluster = Cluster::start(1, 2);
    cluster.await_healthy();
    cluster
        .run("topic create orders --replication-factor 2 --config min.insync.replicas=1 --config max.message.bytes=65536")
        .unwrap();
    let text = lines(0..500);
    cluster.produce("orders", &text);
    let first = leader(&cluster, "orders").unwrap();
    let last = 1 - first;
    cluster.storage[last].pause();
    cluster.storage[first].kill();
    cluster.await_that("the other one is elected", || match partition(&cluster, "orders")? {
        partition if partition["leader"] == last && partition["isr"] == json!([last]) => Ok(()),
        partition => Err(partition.to_string()),
    });
    cluster.storage[last].kill();
    flip_in_the_middle(&segments(&cluster, last, "orders")[0]);
    cluster.storage[last] = cluster.node(last as u32);
    let stranger = Stranger::new(&cluster.nats);
    cluster.await_that("it serves", || {
        let stands = stranger.try_ask("dmq.data.offsets.0.orders", "")?;
        let stands = String::from_utf8_lossy(&stands).into_owned();
        if stands.contains("highWatermark") { Ok(()) } else { Err(stands) }
    });
    let (before, error) = read_on(&stranger, "orders", 0);
    assert_eq!(error.expect("an error in place of the damaged records")["code"], "CORRUPT_MESSAGE");
    assert!(text.lines().take(before.len()).eq(before.iter().map(String::as_str)) && before.len() < 400);
    let (behind, error) = read_on(&stranger, "orders", 450);
    assert_eq!(
        (behind, error),
        (text.lines().skip(450).map(str::to_owned).collect(), None),
        "what lies behind is served"
    );
}

#[test]
fn what_groups_committed_is_told_as_far_as_it_can_be_read() {
    let mut cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    let stranger = Stranger::new(&cluster.nats);
    let asked = |op: &str, request: &Value| {
        let answer = stranger.try_ask(&format!("dmq.data.{op}.auto.__consumer_offsets"), request.to_string())?;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        if answer["error"].is_null() { Ok(answer) } else { Err(answer.to_string()) }
    };
    for number in 0..10 {
        let topic = format!("topic-{number}");
        let offset = json!({ "topic": topic, "partition": 0, "offset": 7, "metadata": "x".repeat(4_000) });
        let request = json!({ "group": "readers", "offsets": [offset] });
        cluster.await_that("it is committed", || asked("commit", &request));
    }
    let folder = cluster.folder.path().join("storage-0/partitions");
    let partitions = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let log = partitions
        .map(|path| path.join("00000000000000000000.log"))
        .max_by_key(|path| std::fs::metadata(path).map_or(0, |metadata| metadata.len()));
    cluster.storage[0].kill();
    flip_in_the_middle(&log.unwrap());
    cluster.storage[0] = cluster.node(0);
    let told = cluster.await_that("it is told", || asked("committed", &json!({ "group": "readers" })));
    assert_eq!(told["offsets"].as_array().unwrap().len(), 9, "all but the one that is damaged: {told}");
}

/// A small file system of its own. Its users may still have files open when it goes.
struct Mount(PathBuf);

impl Mount {
    /// None, loudly, where that is not allowed.
    fn new(path: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&path).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "dmq-test"]).arg(&path).output();
        let words = match mount {
            Ok(output) if output.status.success() => return Some(Self(path)),
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        let must = std::env::var("CI").is_ok_and(|ci| ci == "true") && rustix::process::geteuid().is_root();
        assert!(!must, "a tmpfs cannot be mounted: {words}");
        eprintln!("SKIPPED: a full disk is not tried, since a tmpfs cannot be mounted here: {words}");
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_node_whose_disk_is_full_gives_up_what_it_holds_and_takes_it_again_when_there_is_room() {
    fill_and_empty("storage-2");
}

#[test]
fn a_node_whose_disk_of_records_is_full_gives_up_what_it_holds_and_takes_it_again_when_there_is_room() {
    fill_and_empty("storage-2/partitions");
}

/// `full`: the directory of node 2 whose file system is small.
fn fill_and_empty(full: &str) {
    // It is to lead again as soon as it is in sync, though its disk is still full, or its fault not yet forgotten.
    let mut cluster = Cluster::start_with(1, 2, &[("DMQ_LEADER_BALANCE_INTERVAL_MS", "500")]);
    let Some(mount) = Mount::new(cluster.folder.path().join(full)) else { return };
    cluster.storage.push(cluster.node(2));
    cluster.await_healthy();
    cluster.run("topic create orders --partitions 6 --replication-factor 3 --config min.insync.replicas=2 --config max.message.bytes=65536").unwrap();
    let mut text = lines(0..600);
    cluster.produce("orders", &text);
    let leads = |cluster: &Cluster| -> Result<(bool, bool), String> {
        let described = cluster.run("topic describe orders")?;
        let partitions = described["partitions"].as_array().unwrap().clone();
        let is_in_sync = |partition: &Value| partition["isr"].as_array().unwrap().contains(&json!(2));
        Ok((partitions.iter().any(|partition| partition["leader"] == 2), partitions.iter().any(is_in_sync)))
    };
    assert_eq!(leads(&cluster), Ok((true, true)), "there is nothing to give up");

    let filler = mount.0.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    let full = loop {
        if let Err(error) = file.write_all(&[0; 4096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let more = lines(600..3_000);
    cluster.produce("orders", &more);
    text.push_str(&more);
    cluster.await_that("it leads nothing, and is in no in-sync set", || match leads(&cluster)? {
        (false, false) => Ok(()),
        held => Err(format!("{held:?}")),
    });
    cluster.await_that("the node says so", || match directory_errors(&cluster, 2)? {
        told if told.contains("space") => Ok(()),
        told => Err(told),
    });
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert!(sorted(&cluster.consume("orders")) == sorted(&text), "not what was acknowledged, once each");

    drop(file);
    std::fs::remove_file(&filler).unwrap();
    // Changes its partitions before they are due to be tried again.
    cluster.run("topic alter orders --config retention.ms=86400000").unwrap();
    cluster.await_healthy();
    cluster.await_that("nothing is wrong any more", || match directory_errors(&cluster, 2)? {
        told if told == "[]" || told == "null" => Ok(()),
        told => Err(told),
    });
    cluster.produce("orders", "the last\n");
    text.push_str("the last\n");
    assert!(sorted(&cluster.consume("orders")) == sorted(&text));
    assert!(bytes(&cluster, 2, "orders") == bytes(&cluster, 0, "orders"), "the replicas differ");
    assert!(!cluster.storage[2].has_ended() && !cluster.logs().contains("panicked"), "{}", cluster.logs());
}

#[test]
fn a_full_disk_is_told_of_though_nobody_waits_for_what_does_not_fit() {
    let mut cluster = Cluster::start(1, 0);
    let Some(mount) = Mount::new(cluster.folder.path().join("storage-0")) else { return };
    cluster.storage.push(cluster.node(0));
    cluster.await_healthy();
    cluster.run("topic create orders --replication-factor 1").unwrap();
    let stranger = Stranger::new(&cluster.nats);
    stranger.demand("dmq.data.produce.0.orders", &[], "it leads");
    let mut file = std::fs::File::create(mount.0.join("filler")).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    cluster.await_that("the node says so", || {
        // What was told of is tried again after a while.
        stranger.tell_with_headers("dmq.data.produce.0.orders", &[("Dmq-Acks", "0")], vec![b'x'; 60_000]);
        match directory_errors(&cluster, 0)? {
            told if told.contains("space") => Ok(()),
            told => Err(told),
        }
    });
    // The only copy goes on leading, and serves what it has.
    let (values, error) = read_on(&stranger, "orders", 0);
    assert_eq!((values.first().map(String::as_str), error), (Some("it leads"), None));
}
