//! One child process: how it starts, where its log goes, and that it does not outlive `dmq dev`.
//!
//! On Linux a child asks the kernel to be killed with its parent before it becomes what it shall be. It does so in a process
//! of our own that then executes the program, so nothing unsafe runs between fork and exec. Elsewhere children outlive a
//! `dmq dev` that was killed with SIGKILL.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::printer::Printer;

#[derive(clap::ValueEnum, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Nats,
    Controller,
    Storage,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nats => "nats",
            Self::Controller => "controller",
            Self::Storage => "storage",
        })
    }
}

/// What is run as a process, again if need be.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub role: Role,
    pub id: u32,
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub env: Vec<(&'static str, String)>,
    pub log: PathBuf,
}

/// How many of its last lines are told when a child dies.
const LAST_LINES: usize = 8;

/// A child that was started and not reaped yet, so its pid is its own.
pub struct Process {
    child: Child,
    reader: Option<JoinHandle<()>>,
    last_lines: Arc<Mutex<VecDeque<String>>>,
    /// Turns true with the line that the nats-server says when it is ready.
    ready: watch::Receiver<bool>,
}

/// The line with which a nats-server says that clients can connect and that JetStream is there.
const READY: &str = "Server is ready";

impl Recipe {
    /// Starts it. To be called from the main thread alone: a child is killed when the thread that started it ends.
    pub fn start(&self, printer: &Printer) -> anyhow::Result<Process> {
        let what = || format!("start {} {}", self.role, self.id);
        let open = File::options().create(true).append(true).open(&self.log);
        let log = open.with_context(|| format!("open {}", self.log.display()))?;
        let (pipe, end) = std::io::pipe().with_context(what)?;
        let ourselves = std::env::current_exe().context("find this program's own file")?;
        let mut command = Command::new(ourselves);
        command.args(["dev", "child", &std::process::id().to_string(), "--"]).arg(&self.program).args(&self.args);
        // What this terminal's NATS is must not reach the children: theirs is the one that is started here.
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_foreign(name)) {
            command.env_remove(name);
        }
        command.envs(self.env.iter().map(|(name, value)| (*name, value)));
        // A group of its own: Ctrl-C reaches `dmq dev` alone, which ends the children in order.
        command.process_group(0).stdin(Stdio::null());
        command.stdout(end.try_clone().with_context(what)?).stderr(end);
        let child = command.spawn().with_context(what)?;
        // It holds the pipe's writing end: while it lives, the log would not end.
        drop(command);
        let last_lines = Arc::new(Mutex::new(VecDeque::new()));
        let (told, ready) = watch::channel(false);
        let copying = Copying {
            log,
            prefix: format!("{}-{}", self.role, self.id),
            role: self.role,
            printer: printer.clone(),
            last_lines: Arc::clone(&last_lines),
            ready: told,
        };
        let reader = std::thread::Builder::new().name(copying.prefix.clone()).spawn(move || copying.run(pipe));
        let reader = Some(reader.with_context(what)?);
        Ok(Process { child, reader, last_lines, ready })
    }
}

fn is_foreign(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("NATS_") || name.starts_with("DMQ_NATS_") || name == "DMQ_SERVICES" || name == "DMQ_DATA"
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal. The child is not reaped yet, so it can reach nobody else.
    pub fn signal(&self, signal: Signal) {
        // It fails only for a child that ended already, which is about to be noticed.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// How it ended, if it did. Once this says so, the pid is somebody else's.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().ok().flatten()?;
        // Its end of the pipe is closed, so the log ends.
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        Some(status)
    }

    pub fn last_lines(&self) -> Vec<String> {
        self.last_lines.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }
}

struct Copying {
    log: File,
    prefix: String,
    role: Role,
    printer: Printer,
    last_lines: Arc<Mutex<VecDeque<String>>>,
    ready: watch::Sender<bool>,
}

impl Copying {
    fn run(mut self, pipe: PipeReader) {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            // A full disk must not stop the child.
            let _ = self.log.write_all(&line);
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end();
            let mut last = self.last_lines.lock().unwrap_or_else(PoisonError::into_inner);
            if last.len() == LAST_LINES {
                last.pop_front();
            }
            last.push_back(text.to_owned());
            drop(last);
            if self.role == Role::Nats && text.contains(READY) {
                self.ready.send_replace(true);
            }
            if let Some(brief) = brief(self.role, text) {
                self.printer.print(format!("{:<13}| {brief}", self.prefix));
            }
        }
    }
}

/// The longest line that is printed; the log has it whole.
const BRIEF: usize = 160;

/// What of a log's line is worth a line on the terminal: no time, no nats-server's chatter.
fn brief(role: Role, line: &str) -> Option<String> {
    let is_time = |word: &str| word.len() >= 20 && word.ends_with('Z') && word.as_bytes()[10] == b'T';
    let text = match line.split_once(' ') {
        Some((first, rest)) if is_time(first) => rest.trim_start(),
        _ => line,
    };
    let is_chatter = match role {
        Role::Nats => !["[WRN]", "[ERR]", "[FTL]"].iter().any(|level| text.contains(level)),
        Role::Controller | Role::Storage => text.is_empty(),
    };
    (!is_chatter).then(|| crate::cli::table::cut(text, BRIEF))
}

/// Turns this process into a child of `parent` that is killed with it. Returns only where that failed.
pub fn become_child(parent: i32, command: &[OsString]) -> anyhow::Error {
    #[cfg(target_os = "linux")]
    {
        if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
            return anyhow::Error::new(error).context("ask to be killed with the parent");
        }
        // It may have ended before that.
        if rustix::process::getppid().map(Pid::as_raw_pid) != Some(parent) {
            return anyhow::anyhow!("`dmq dev` {parent} is gone");
        }
    }
    let Some((program, args)) = command.split_first() else { return anyhow::anyhow!("no program to run") };
    let error = Command::new(program).args(args).exec();
    anyhow::Error::new(error).context(format!("run {}", program.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_brief_on_the_terminal() {
        let line = "2026-11-24T22:18:01.123456Z  INFO dmq::controller: active epoch=3";
        assert_eq!(brief(Role::Controller, line).as_deref(), Some("INFO dmq::controller: active epoch=3"));
        assert_eq!(brief(Role::Nats, "[7] 2026/11/24 22:18:01.1 [INF] Starting nats-server"), None);
        let warning = "[7] 2026/11/24 22:18:01.1 [WRN] slow";
        assert_eq!(brief(Role::Nats, warning).as_deref(), Some(warning));
        assert_eq!(brief(Role::Storage, &"x".repeat(1_000)).map(|text| text.chars().count()), Some(BRIEF));
    }
}
