//! `dmq log dump` on segments that Kafka wrote, and on one that was spoilt.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn kafkas(codec: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/log/testdata/kafka-4.1.1").join(codec)
}

fn dump(arguments: &[&str], file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dmq")).args(["log", "dump"]).args(arguments).arg(file).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn every_record_of_every_codec_is_shown() {
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let segment = kafkas(codec).join("00000000000000000000.log");
        let shown = dump(&["--deep", "--output", "json"], &segment);
        assert!(shown.status.success(), "{codec}: {}", text(&shown.stderr));
        let batches: Vec<Value> = text(&shown.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(batches.iter().all(|batch| batch["compression"] == codec && batch["leaderEpoch"] == 3));
        let records: Vec<&Value> = batches.iter().flat_map(|batch| batch["records"].as_array().unwrap()).collect();
        assert_eq!(records.len(), 50);
        assert_eq!(records[0]["key"], "k0");
        assert_eq!(records[0]["headers"][0]["value"], "v0");
        assert!(records.iter().any(|record| record["value"].is_null()));
        for index in ["00000000000000000000.index", "00000000000000000000.timeindex"] {
            let shown = dump(&["--deep"], &kafkas(codec).join(index));
            assert!(shown.status.success(), "{codec} {index}: {}", text(&shown.stdout));
        }
    }
}

#[test]
fn a_spoilt_segment_is_told_from_a_good_one() {
    let folder = tempfile::tempdir().unwrap();
    let segment = folder.path().join("00000000000000000000.log");
    let mut bytes = std::fs::read(kafkas("none").join("00000000000000000000.log")).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let shown = dump(&[], &segment);
    assert_eq!(shown.status.code(), Some(1));
    assert!(text(&shown.stdout).contains("DAMAGED"), "{}", text(&shown.stdout));
    assert!(text(&shown.stderr).contains("copy the replica anew"), "{}", text(&shown.stderr));
}

#[test]
fn a_file_that_is_none_of_a_log_is_refused_with_what_to_give() {
    let folder = tempfile::tempdir().unwrap();
    let shown = dump(&[], &folder.path().join("notes.txt"));
    assert_eq!(shown.status.code(), Some(1));
    assert!(text(&shown.stderr).contains("give a *.log"), "{}", text(&shown.stderr));
    let shown = dump(&[], &folder.path().join("00000000000000000000.log"));
    assert_eq!(shown.status.code(), Some(1));
    assert!(text(&shown.stderr).contains("No such file"), "{}", text(&shown.stderr));
}
