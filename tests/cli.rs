//! The command line as somebody types it: the real binary, its output and its exit status.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// What every command ends within, whatever happens.
const LIMIT: Duration = Duration::from_secs(10);

fn dmq(folder: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dmq"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("NATS_") || name.starts_with("DMQ_")) {
        command.env_remove(name);
    }
    // A home without contexts of the `nats` command line.
    command.env("HOME", folder).env("XDG_CONFIG_HOME", folder).current_dir(folder);
    let began = Instant::now();
    let output = command.args(line.split(' ')).stdin(Stdio::null()).output().unwrap();
    assert!(began.elapsed() < LIMIT, "`dmq {line}` took {:?}", began.elapsed());
    output
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A server that is not there: nothing listens on TCP's port 1.
const NOBODY: &str = "nats://127.0.0.1:1";

const FAULTY: &str = r#"{
  "metadataServices": [ { "id": 0, "subjects": { "fetch": "dmq.*.fetch" }, "pairedStorageServiceIds": [0] } ],
  "storageServices": [ { "id": 0, "url": "http://localhost:9000", "pairedMetadataServiceId": 0 },
                       { "id": 0, "pairedMetadataServiceId": 0 } ]
}"#;

#[test]
fn services_check_names_every_fault_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("bad.json"), FAULTY).unwrap();
    let output = dmq(dir.path(), "services check bad.json");
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    for path in ["metadataServices[0].subjects.fetch", "storageServices[0].url", "storageServices[1].id"] {
        assert!(said.contains(path), "{path} is missing in\n{said}");
    }
    let output = dmq(dir.path(), "services check bad.json --output json");
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(answer["valid"], false);
    assert!(answer["faults"].as_array().unwrap().len() >= 3, "{answer}");
}

#[test]
fn services_check_reads_the_usual_file_and_says_that_it_is_good() {
    let dir = tempfile::tempdir().unwrap();
    let good = r#"{"metadataServices": [{"id": 0}], "storageServices": [{"id": 0}, {"id": 1}]}"#;
    fs::write(dir.path().join("services.json"), good).unwrap();
    let output = dmq(dir.path(), "services check");
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    assert_eq!(stdout(&output), "services.json is good: 1 metadata services, 2 storage services\n");
    let output = dmq(dir.path(), "services show --output json");
    let shown: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(shown["storageServices"][1]["subjects"]["heartbeat"], "dmq.heartbeat.1");
}

#[test]
fn a_missing_services_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let output = dmq(dir.path(), "services check nowhere.json");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("nowhere.json"), "{}", stderr(&output));
}

#[test]
fn what_cannot_be_understood_exits_with_2() {
    let dir = tempfile::tempdir().unwrap();
    for line in [
        "nonsense",
        "topic",
        "topic create",
        "topic create t --partitions many",
        "topic create t --config nothing",
        "topic create t --request-id a/b",
        "topic alter t",
        "node describe one",
        "storage",
        "controller --data d",
        "dev kill storage",
        "dev kill broker 0",
        "--output yaml topic list",
        "topic list --timeout 1h",
    ] {
        let output = dmq(dir.path(), line);
        assert_eq!(output.status.code(), Some(2), "dmq {line}: {}", stderr(&output));
        assert!(stdout(&output).is_empty(), "dmq {line} wrote to stdout");
    }
}

#[test]
fn without_nats_every_command_says_so_in_time_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    for command in
        ["topic list", "topic create t", "node list", "metadata log", "metadata show", "metadata restore --yes"]
    {
        let output = dmq(dir.path(), &format!("{command} --nats-url {NOBODY} --timeout 2s"));
        assert_eq!(output.status.code(), Some(1), "dmq {command}");
        let said = stderr(&output);
        assert!(said.starts_with("error: ") && said.contains("127.0.0.1:1"), "{said}");
        assert!(said.contains("nats-server"), "it does not say what to do: {said}");
    }
}

#[test]
fn without_nats_the_status_is_honest_and_whole() {
    let dir = tempfile::tempdir().unwrap();
    let output = dmq(dir.path(), &format!("cluster status --output json --nats-url {NOBODY} --timeout 1s"));
    assert_eq!(output.status.code(), Some(1));
    let status: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&status["healthy"], &status["controller"]), (&Value::Bool(false), &Value::Null));
    assert!(status["problems"][0].as_str().unwrap().contains("127.0.0.1:1"), "{status}");
}

#[test]
fn a_dev_that_does_not_run_cannot_be_asked() {
    let dir = tempfile::tempdir().unwrap();
    for verb in ["start", "kill", "pause", "resume"] {
        let output = dmq(dir.path(), &format!("dev {verb} storage 0 --data d"));
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("no `dmq dev` runs on d"), "{}", stderr(&output));
    }
}

#[test]
fn the_version_and_completions_are_printed() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(stdout(&dmq(dir.path(), "--version")), format!("dmq {}\n", env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish"] {
        let output = dmq(dir.path(), &format!("completions {shell}"));
        assert!(output.status.success() && stdout(&output).contains("metadata"), "{shell}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_dmq"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}
