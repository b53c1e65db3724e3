//! `dmq produce` and `dmq consume` as somebody types them: the real binary on a real cluster.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::cluster::{Cluster, PATIENCE};

fn dmq(cluster: &Cluster, line: &str, input: &[u8]) -> Output {
    let mut command = cluster.command();
    let command = command.args(line.split(' ')).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // One that fails at once does not read.
    let writing = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    output
}

fn fine(cluster: &Cluster, line: &str, input: &[u8]) -> String {
    let output = dmq(cluster, line, input);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "dmq {line}: {stderr}\n{}", cluster.logs());
    assert_eq!(stderr, "", "dmq {line}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(cluster: &Cluster, line: &str, input: &[u8]) -> String {
    let output = dmq(cluster, line, input);
    assert_eq!(output.status.code(), Some(1), "dmq {line}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn lines_become_records_and_records_lines() {
    let cluster = Cluster::start(1, 2);
    cluster.await_healthy();
    cluster.run("topic create orders --partitions 2 --replication-factor 2").unwrap();
    let input = b"a=1\nb=2\nc\xff=\xfe\na==\n";
    let done = fine(&cluster, "produce orders --key-separator = --partition 1 --header trace=7 --output json", input);
    let done: Value = serde_json::from_str(&done).unwrap();
    assert_eq!((&done["records"], &done["bytes"]), (&json!(4), &json!(9)));
    let lines = fine(&cluster, "consume orders --output json", b"");
    let read: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let seen: Vec<_> =
        read.iter().map(|record| (record["offset"].as_u64().unwrap(), &record["key"], &record["value"])).collect();
    let null = Value::Null;
    assert_eq!(
        seen,
        [
            (0, &json!("a"), &json!("1")),
            (1, &json!("b"), &json!("2")),
            (2, &null, &null),
            (3, &json!("a"), &json!("="))
        ]
    );
    assert_eq!((&read[2]["keyBase64"], &read[2]["valueBase64"]), (&json!("Y/8="), &json!("/g==")));
    assert_eq!((&read[0]["partition"], &read[0]["headers"]), (&json!(1), &json!([{"name": "trace", "value": "7"}])));

    for codec in ["gzip", "snappy", "lz4", "zstd"] {
        fine(&cluster, &format!("produce orders --compression {codec} --acks 1 --partition 0"), codec.as_bytes());
    }
    assert_eq!(fine(&cluster, "consume orders --partition 0", b""), "gzip\nsnappy\nlz4\nzstd\n");
    assert_eq!(fine(&cluster, "consume orders --partition 0 --from 2", b""), "lz4\nzstd\n");
    assert_eq!(fine(&cluster, "consume orders --partition 0 --from end", b""), "");
    assert_eq!(fine(&cluster, "consume orders --partition 0 --from 1h --max-records 1", b""), "gzip\n");
    let template = r"consume orders --partition 1 --max-records 2 --format {partition}@{offset}:{key}\n";
    assert_eq!(fine(&cluster, template, b""), "1@0:a\n1@1:b\n");
}

#[test]
fn a_group_reads_each_record_once_also_where_somebody_interrupts() {
    let cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    cluster.run("topic create work").unwrap();
    fine(&cluster, "produce work", b"1\n2\n3\n");
    assert_eq!(fine(&cluster, "consume work --group g --max-records 2", b""), "1\n2\n");
    let mut following = follow(&cluster, "consume work --group g --follow");
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "3");
    fine(&cluster, "produce work", b"4\n");
    assert_eq!(lines.next().unwrap().unwrap(), "4");
    kill_process(Pid::from_child(&following), Signal::INT).unwrap();
    assert!(ended(&mut following).success());
    assert_eq!(fine(&cluster, "consume work --group g", b""), "");
    fine(&cluster, "produce work", b"5\n");
    assert_eq!(fine(&cluster, "consume work --group g", b""), "5\n");
    assert_eq!(fine(&cluster, "consume work --group other", b""), "1\n2\n3\n4\n5\n");
}

#[test]
fn what_cannot_be_done_is_said_with_what_to_do() {
    let mut cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    cluster.run("topic create small --config max.message.bytes=2000").unwrap();
    for line in ["produce nowhere", "consume nowhere"] {
        let said = refused(&cluster, line, b"x\n");
        assert!(said.contains("nowhere") && said.contains("dmq topic list"), "{said}");
    }
    assert!(refused(&cluster, "consume small --partition 1", b"").contains("no partition 1"));
    assert!(refused(&cluster, "produce small --partition 1", b"x\n").contains("no partition 1"));
    assert!(refused(&cluster, "produce small --key-separator :", b"a:1\nb\n").contains("line 2"));
    let said = refused(&cluster, "produce small", &vec![b'x'; 3_000]);
    assert!(said.contains("line 1") && said.contains("2000"), "{said}");
    // What stands before it was stored.
    assert_eq!(fine(&cluster, "consume small --format {key}{value}", b""), "a1");

    cluster.storage[0].kill();
    cluster.await_that("nobody leads", || {
        let topic = cluster.run("topic describe small")?;
        let partition = &topic["partitions"][0];
        if partition["leader"].is_null() && partition["highWatermark"].is_null() {
            Ok(())
        } else {
            Err(topic.to_string())
        }
    });
    let said = refused(&cluster, "produce small --delivery-timeout 1s", b"x\n");
    assert!(said.contains("not stored within 1s") && said.contains("dmq topic describe"), "{said}");
    let said = refused(&cluster, "consume small --timeout 1s", b"");
    assert!(said.contains("small-0") && said.contains("dmq topic describe"), "{said}");
}

#[test]
fn describe_shows_where_each_log_stands_and_nothing_of_one_whose_leader_is_silent() {
    let cluster = Cluster::start(1, 2);
    cluster.await_healthy();
    cluster.run("topic create logs --partitions 2 --replication-factor 1").unwrap();
    fine(&cluster, "produce logs --partition 0", b"1\n2\n3\n");
    fine(&cluster, "produce logs --partition 1", b"1\n");
    let ends = |topic: &Value| -> Vec<Value> {
        topic["partitions"].as_array().unwrap().iter().map(|partition| partition["highWatermark"].clone()).collect()
    };
    let topic = cluster.run("topic describe logs").unwrap();
    assert_eq!(ends(&topic), [3, 1], "{topic}");
    assert_eq!(
        (&topic["partitions"][0]["logStartOffset"], &topic["partitions"][0]["logEndOffset"]),
        (&json!(0), &json!(3))
    );
    assert!(topic["partitions"][0]["sizeBytes"].as_u64().unwrap() > 61, "{topic}");
    let leader = topic["partitions"][0]["leader"].as_u64().unwrap();
    cluster.storage[leader as usize].pause();
    let began = Instant::now();
    let topic = cluster.run("topic describe logs").unwrap();
    assert_eq!(ends(&topic), [Value::Null, json!(1)], "{topic}");
    assert!(began.elapsed() < Duration::from_secs(5));
    cluster.storage[leader as usize].resume();
}

#[test]
fn an_offset_that_the_log_has_not_is_said_and_never_committed() {
    let cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    cluster.run("topic create orders --replication-factor 1").unwrap();
    fine(&cluster, "produce orders", b"a\nb\nc\n");
    let said = |line: &str| {
        let output = dmq(&cluster, line, b"");
        assert!(output.status.success(), "{output:?}");
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (read, words) = said("consume orders --from 9999 --group readers");
    assert_eq!(read, "");
    assert!(words.contains("orders-0: offset 9999 is beyond the end, which is 3"), "{words}");
    fine(&cluster, "produce orders", b"d\n");
    assert_eq!(fine(&cluster, "consume orders --group readers", b""), "d\n");
    let refusal = refused(&cluster, "consume orders --format {value} --output json", b"");
    assert!(refusal.contains("--format"), "{refusal}");
}

#[test]
fn a_topic_that_is_made_anew_is_read_from_its_beginning() {
    let cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    for (values, wanted) in [("a\nb\nc\n", "a\nb\nc\n"), ("x\ny\nz\nw\n", "x\ny\nz\nw\n")] {
        cluster.run("topic create orders --replication-factor 1").unwrap();
        fine(&cluster, "produce orders", values.as_bytes());
        assert_eq!(fine(&cluster, "consume orders --group readers", b""), wanted);
        assert_eq!(fine(&cluster, "consume orders --group readers", b""), "");
        cluster.run("topic delete orders").unwrap();
    }
}

#[test]
fn who_follows_a_topic_reads_what_is_added_to_it() {
    let cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    cluster.run("topic create orders --replication-factor 1").unwrap();
    fine(&cluster, "produce orders", b"old\n");
    let mut child = follow(&cluster, "consume orders --follow");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some("old"));
    cluster.run("topic alter orders --partitions 2").unwrap();
    fine(&cluster, "produce orders --partition 1", b"new\n");
    assert_eq!(lines.next().as_deref(), Some("new"));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_rate_is_kept() {
    let cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    cluster.run("topic create slow").unwrap();
    let began = Instant::now();
    fine(&cluster, "produce slow --rate 20", b"1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n");
    assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
}

fn follow(cluster: &Cluster, line: &str) -> Child {
    cluster.command().args(line.split(' ')).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
}

fn ended(child: &mut Child) -> std::process::ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}
