//! A whole cluster of real processes on a real nats-server, which tests break and see heal.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::Value;

use super::nats::{NatsServer, SYSTEM_PASSWORD, SYSTEM_USER};

pub const DMQ: &str = env!("CARGO_BIN_EXE_dmq");
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Process(Child);

impl Process {
    /// SIGKILL, of one that may be stopped too. Returns when it is gone.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// SIGSTOP: its connection stays open, and it does nothing any more.
    pub fn pause(&self) {
        kill_process(Pid::from_child(&self.0), Signal::STOP).unwrap();
        waitpid(Some(Pid::from_child(&self.0)), WaitOptions::UNTRACED).unwrap();
    }

    pub fn resume(&self) {
        kill_process(Pid::from_child(&self.0), Signal::CONT).unwrap();
    }

    /// SIGTERM: it ends in its own time.
    pub fn terminate(&self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Cluster {
    pub nats: NatsServer,
    pub folder: tempfile::TempDir,
    pub controllers: Vec<Process>,
    pub storage: Vec<Process>,
    /// Settings of every process.
    env: Vec<(&'static str, String)>,
}

impl Cluster {
    pub fn start(controllers: u32, storage: u32) -> Self {
        Self::start_with(controllers, storage, &[])
    }

    /// With these settings, as environment variables.
    pub fn start_with(controllers: u32, storage: u32, env: &[(&'static str, &str)]) -> Self {
        Self::start_on(NatsServer::start(), controllers, storage, env)
    }

    pub fn start_on(nats: NatsServer, controllers: u32, storage: u32, env: &[(&'static str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let env = env.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let mut cluster = Self { nats, folder, controllers: Vec::new(), storage: Vec::new(), env };
        cluster.controllers = (0..controllers).map(|id| cluster.controller(id)).collect();
        cluster.storage = (0..storage).map(|id| cluster.node(id)).collect();
        cluster
    }

    /// A setting of every process that is started from now on.
    pub fn set(&mut self, name: &'static str, value: &str) {
        self.env.push((name, value.to_owned()));
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(DMQ);
        command.current_dir(self.folder.path()).env("DMQ_NATS_URL", self.nats.url());
        command.env("DMQ_NATS_SYSTEM_USER", SYSTEM_USER).env("DMQ_NATS_SYSTEM_PASSWORD", SYSTEM_PASSWORD);
        command.envs(self.env.iter().map(|(name, value)| (*name, value.as_str())));
        command
    }

    pub fn process(&self, role: &str, id: u32) -> Process {
        self.process_in(role, id, &format!("{role}-{id}"))
    }

    /// A process in a folder of this name, whose log is beside it.
    pub fn process_in(&self, role: &str, id: u32, name: &str) -> Process {
        let data = self.folder.path().join(name);
        let log = std::fs::File::options().create(true).append(true).open(data.with_extension("log")).unwrap();
        let mut command = self.command();
        command.args([role, "--id", &id.to_string(), "--data"]).arg(&data);
        Process(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    pub fn controller(&self, id: u32) -> Process {
        self.process("controller", id)
    }

    pub fn node(&self, id: u32) -> Process {
        self.process("storage", id)
    }

    pub fn run(&self, line: &str) -> Result<Value, String> {
        let output = self.command().args(line.split(' ')).args(["--output", "json"]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        match serde_json::from_slice(&output.stdout) {
            Ok(answer) if output.status.success() => Ok(answer),
            Ok(_) | Err(_) => Err(format!("{line}: {} {stderr}", String::from_utf8_lossy(&output.stdout))),
        }
    }

    /// Writes these lines to a topic. Returns when all in-sync replicas have them on their disks.
    pub fn produce(&self, topic: &str, text: &str) {
        let path = self.folder.path().join("lines.txt");
        std::fs::write(&path, text).unwrap();
        let mut command = self.command();
        let output =
            command.args(["produce", topic, "--delivery-timeout", "60s", "--file"]).arg(&path).output().unwrap();
        assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), self.logs());
    }

    /// What a topic's consumers read, from its beginning to its present end.
    pub fn consume(&self, topic: &str) -> String {
        let output = self.command().args(["consume", topic, "--from", "beginning"]).output().unwrap();
        assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), self.logs());
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn await_that<T>(&self, what: &str, mut found: impl FnMut() -> Result<T, String>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match found() {
                Ok(found) => return found,
                Err(why) if Instant::now() > deadline => {
                    panic!("not within {PATIENCE:?}: {what}: {why}\n{}", self.logs())
                }
                // Each look is a process of its own that asks the cluster, so this is no busy loop.
                Err(_) => {}
            }
        }
    }

    /// Until all the nodes that were started are registered and active, and nothing else is wrong.
    pub fn await_healthy(&self) -> Value {
        let wanted = self.storage.len();
        self.await_that("the cluster is healthy", || {
            let status = self.run("cluster status")?;
            let nodes = status["storageNodes"].as_array().map_or(0, Vec::len);
            if nodes == wanted { Ok(status) } else { Err(status.to_string()) }
        })
    }

    /// What one process has logged.
    pub fn log_of(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name).with_extension("log")).unwrap_or_default()
    }

    pub fn logs(&self) -> String {
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let mut paths: Vec<_> = std::fs::read_dir(self.folder.path()).unwrap().flatten().map(|e| e.path()).collect();
        paths.sort();
        let logs = paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.map(|path| format!("--- {}\n{}", path.display(), read(path))).collect()
    }
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}
