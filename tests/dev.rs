//! `dmq dev` as a whole: real processes that can be broken on purpose, and that all end with it.

mod support;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use support::nats::nats_server_path;

const DMQ: &str = env!("CARGO_BIN_EXE_dmq");
const PATIENCE: Duration = Duration::from_secs(60);

struct Dev {
    child: Child,
    folder: tempfile::TempDir,
}

impl Dev {
    fn start(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = File::create(folder.path().join("stdout")).unwrap();
        let child = command(folder.path())
            .args(["dev", "--data", "d", "--nats-port", "0", "--nats-server"])
            .arg(nats_server_path())
            .args(flags)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("d")
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("stdout")).unwrap_or_default()
    }

    fn json(&self) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.data().join("dev.json")).ok()?).ok()
    }

    fn pid(&self, role: &str, id: u64) -> Option<u64> {
        let json = self.json()?;
        let listed = json["processes"].as_array()?;
        listed.iter().find(|listed| listed["role"] == role && listed["id"] == id)?["pid"].as_u64()
    }

    fn pids(&self) -> Vec<u64> {
        let json = self.json().unwrap_or_default();
        json["processes"].as_array().into_iter().flatten().filter_map(|listed| listed["pid"].as_u64()).collect()
    }

    fn await_that(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Until everything runs, and nothing is about to be started any more.
    fn await_started(&self, count: usize) {
        self.await_that("all processes run", || self.pids().len() == count && self.data().join("dev.sock").exists());
    }

    fn run(&self, line: &str) -> Output {
        command(self.folder.path()).args(line.split(' ')).output().unwrap()
    }

    fn status(&self) -> Value {
        let url = self.json().and_then(|json| Some(json["natsUrl"].as_str()?.to_owned())).unwrap_or_default();
        let output = self.run(&format!("cluster status --output json --timeout 2s --nats-url {url}"));
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(folder: &Path) -> Command {
    let mut command = Command::new(DMQ);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("NATS_") || name.starts_with("DMQ_")) {
        command.env_remove(name);
    }
    command.env("HOME", folder).env("XDG_CONFIG_HOME", folder).current_dir(folder).stdin(Stdio::null());
    command
}

fn is_alive(pid: u64) -> bool {
    // A process that ended and was not reaped yet is dead.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.as_bytes()[0]);
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    test_kill_process(pid).is_ok() && !matches!(state, Some(b'Z' | b'X'))
}

#[test]
fn a_whole_cluster_starts_and_becomes_healthy() {
    let dev = Dev::start(&["--controllers", "3", "--storage", "3"]);
    dev.await_started(7);
    // Before a node has registered there is nothing that could be wrong with it.
    dev.await_that("three nodes are registered and it is healthy", || {
        let status = dev.status();
        status["storageNodes"].as_array().is_some_and(|nodes| nodes.len() == 3) && status["healthy"] == true
    });
}

#[test]
fn a_killed_process_stays_dead_until_it_is_started_again() {
    let dev = Dev::start(&["--controllers", "1", "--storage", "1"]);
    dev.await_started(3);
    let before = dev.pid("storage", 0).unwrap();
    assert!(dev.run("dev kill storage 0 --data d").status.success());
    assert_eq!(dev.pid("storage", 0), None, "it is gone once the command returns");
    assert!(!is_alive(before));
    let started = dev.run("dev start storage 0 --data d");
    assert!(started.status.success(), "{started:?}");
    let after = dev.pid("storage", 0).expect("dev.json has the new pid once the command returns");
    assert!(after != before && is_alive(after));
    let twice = dev.run("dev start storage 0 --data d");
    assert_eq!(twice.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&twice.stderr).contains("runs already"));
    dev.await_that("its end was said", || dev.said().contains("storage 0 (pid "));
}

#[test]
fn with_restart_what_died_comes_back() {
    let dev = Dev::start(&["--controllers", "1", "--storage", "1", "--restart"]);
    dev.await_started(3);
    let before = dev.pid("storage", 0).unwrap();
    assert!(dev.run("dev kill storage 0 --data d").status.success());
    dev.await_that("it runs again", || dev.pid("storage", 0).is_some_and(|pid| pid != before));
}

#[test]
fn a_paused_process_stands_still_and_goes_on() {
    let dev = Dev::start(&["--controllers", "1", "--storage", "1"]);
    dev.await_started(3);
    let pid = dev.pid("storage", 0).unwrap();
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.as_bytes()[0]
    };
    assert!(dev.run("dev pause storage 0 --data d").status.success());
    dev.await_that("it is stopped", || state() == b'T');
    assert!(dev.run("dev resume storage 0 --data d").status.success());
    dev.await_that("it goes on", || state() != b'T');
}

#[test]
fn all_end_in_order_within_10_s_even_a_paused_one() {
    let mut dev = Dev::start(&["--controllers", "1", "--storage", "2"]);
    dev.await_started(4);
    let pids = dev.pids();
    assert!(dev.run("dev pause storage 1 --data d").status.success());
    let began = Instant::now();
    // As `timeout` and `make` do: to the process and once more to its group.
    dev.signal(Signal::TERM);
    dev.signal(Signal::INT);
    let status = dev.child.wait().unwrap();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(status.success(), "{status}");
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    assert!(dev.json().is_none(), "dev.json is left behind");
}

#[cfg(target_os = "linux")]
#[test]
fn no_child_outlives_a_dev_that_was_killed() {
    let mut dev = Dev::start(&["--controllers", "1", "--storage", "1"]);
    dev.await_started(3);
    let pids = dev.pids();
    dev.child.kill().unwrap();
    dev.child.wait().unwrap();
    dev.await_that("all are gone", || pids.iter().all(|pid| !is_alive(*pid)));
    // What it left behind does not hinder the next one: its lock ended with it.
    let refused = dev.run("dev kill storage 0 --data d");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no `dmq dev` runs on d"), "{refused:?}");
}

#[test]
fn a_directory_has_one_dev_at_a_time() {
    let dev = Dev::start(&["--controllers", "1", "--storage", "0"]);
    dev.await_started(2);
    let line = format!("dev --data d --nats-port 0 --nats-server {}", nats_server_path().display());
    let second = dev.run(&line);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another `dmq dev` runs on"), "{second:?}");
}

#[test]
fn a_taken_port_is_said_before_anything_starts() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = command(folder.path())
        .args(["dev", "--data", "d", "--nats-port", &port, "--nats-server"])
        .arg(nats_server_path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&port) && said.contains("--nats-port"), "{said}");
}
