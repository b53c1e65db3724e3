//! A person's home, in which the binary is run: nothing of this machine's settings is seen there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// What every command ends within, whatever happens.
pub const LIMIT: Duration = Duration::from_secs(10);
/// Far beyond what a cluster's start takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Quick enough for a test, and as the settings' ranges allow.
const QUICK: [&str; 6] =
    ["--set", "session_timeout_ms=900", "--set", "heartbeat_interval_ms=150", "--set", "lease_ms=1000"];

pub struct Home {
    folder: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl Home {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), variables: Vec::new() }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    pub fn context(&self, name: &str, json: Value) {
        self.write(&format!("nats/context/{name}.json"), &json.to_string());
    }

    pub fn command<S: AsRef<str>>(&self, line: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dmq"));
        let is_ours = |name: &String| name.starts_with("NATS_") || name.starts_with("DMQ_");
        for (name, _) in std::env::vars().filter(|(name, _)| is_ours(name)) {
            command.env_remove(name);
        }
        command.env("HOME", self.folder.path()).env("XDG_CONFIG_HOME", self.folder.path());
        command.envs(self.variables.iter().map(|(name, value)| (name, value))).current_dir(self.folder.path());
        command.args(line.iter().map(AsRef::as_ref)).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn run<S: AsRef<str>>(&self, line: &[S]) -> Said {
        let began = Instant::now();
        let output = self.command(line).output().unwrap();
        let line: Vec<&str> = line.iter().map(AsRef::as_ref).collect();
        assert!(began.elapsed() < LIMIT, "`dmq {}` took {:?}", line.join(" "), began.elapsed());
        Said::of(&output)
    }

    /// Starts a process that lasts.
    pub fn spawn<S: AsRef<str>>(&self, log: &str, line: &[S]) -> Process {
        let log = self.path(log);
        let file = File::create(&log).unwrap();
        let child = self.command(line).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Process { child, log }
    }

    /// A controller that is expected to end by itself.
    pub fn failing_controller(&self, flags: &[&str]) -> Said {
        self.run(&[&["controller", "--id", "0", "--data", "c", "--set", "start_timeout_ms=1500"], flags].concat())
    }

    /// A storage node that is expected to end by itself.
    pub fn failing_storage(&self, flags: &[&str]) -> Said {
        self.run(&[&["storage", "--id", "0", "--data", "s", "--set", "start_timeout_ms=1500"], flags].concat())
    }

    /// Runs a controller, a storage node and the command line, all told the same about NATS, until a topic is there.
    pub fn serves(&self, flags: &[&str]) {
        self.serving(flags, |_, _| {});
    }

    /// As [`Home::serves`], and does something with the controller and the storage node.
    pub fn serving(&self, flags: &[&str], then: impl FnOnce(&Process, &Process)) {
        self.serving_with(flags, &[], then);
    }

    /// As [`Home::serving`], with more flags for the storage node alone.
    pub fn serving_with(&self, flags: &[&str], storage_flags: &[&str], then: impl FnOnce(&Process, &Process)) {
        let controller = self.controller(0, flags);
        let storage = self.storage(0, &[flags, storage_flags].concat());
        let logs = || format!("controller:\n{}\nstorage:\n{}", controller.log(), storage.log());
        eventually("the cluster is healthy with one node", logs, || self.is_healthy(1, flags).then_some(()));
        let create = ["topic", "create", "t", "--partitions", "1", "--replication-factor", "1"];
        let said = self.run(&[&create, flags].concat());
        assert_eq!(said.code, Some(0), "{}\n{}", said.stderr, logs());
        then(&controller, &storage);
    }

    /// A controller with short times.
    pub fn controller(&self, id: u32, flags: &[&str]) -> Process {
        self.process("controller", id, flags)
    }

    /// A storage node with short times.
    pub fn storage(&self, id: u32, flags: &[&str]) -> Process {
        self.process("storage", id, flags)
    }

    fn process(&self, role: &str, id: u32, flags: &[&str]) -> Process {
        let (id, name) = (id.to_string(), format!("{role}-{id}"));
        let line = [&[role, "--id", &id, "--data", &name], &QUICK[..], flags].concat();
        self.spawn(&format!("{name}.log"), &line)
    }

    /// Whether the cluster calls itself healthy, with so many storage nodes.
    pub fn is_healthy(&self, nodes: usize, flags: &[&str]) -> bool {
        let said = self.run(&[&["cluster", "status", "--output", "json", "--timeout", "3s"], flags].concat());
        let answer: Value = serde_json::from_str(&said.stdout).unwrap_or_default();
        said.code == Some(0) && answer["storageNodes"].as_array().is_some_and(|known| known.len() == nodes)
    }

    /// Asks a JetStream without any cluster on it, which only who is connected is told.
    pub fn reaches(&self, flags: &[&str]) {
        let said = self.run(&[&["metadata", "log"], flags].concat());
        assert!(said.stderr.contains("there is no history on this NATS"), "{flags:?}: {}", said.stderr);
    }

    /// As [`Home::reaches`], and is refused.
    pub fn is_refused(&self, flags: &[&str]) {
        let said = self.run(&[&["metadata", "log"], flags].concat());
        assert!(said.stderr.contains("refused the credentials"), "{flags:?}: {}", said.stderr);
    }
}

/// How a command ended, and what it said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// It failed as a command or process fails, and its last words have these parts.
    #[track_caller]
    pub fn failed_with(&self, parts: &[&str]) {
        assert_eq!(self.code, Some(1), "{}", self.stderr);
        let words = self.stderr.split_once("error: ").map_or("", |(_, words)| words);
        for part in parts {
            assert!(words.contains(part), "{part:?} is missing in\n{}", self.stderr);
        }
    }
}

/// A process of ours, killed with the test.
pub struct Process {
    pub child: Child,
    log: PathBuf,
}

impl Process {
    pub fn log(&self) -> String {
        read(&self.log)
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Asks until the answer is as wanted.
#[track_caller]
pub fn eventually<T>(what: &str, context: impl Fn() -> String, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}\n{}", context());
        std::thread::sleep(Duration::from_millis(20));
    }
}
