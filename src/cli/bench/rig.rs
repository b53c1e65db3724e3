//! The cluster under test: a nats-server as `dmq dev` runs it, controllers and storage nodes, each a process of its own.
//! Dropped, it kills all of them and removes what they wrote.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::{Duration, Instant};

use anyhow::Context;
use async_nats::Client;
use futures::StreamExt;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::super::dev::folder::Folder;
use super::super::dev::nats;
use super::super::dev::printer::Printer;
use super::super::dev::process::{Process, Recipe, Role};
use super::super::output::say;
use super::figures::{Figure, Machine, Report};
use super::{Place, proc};
use crate::bus::advisories::{self, Disconnect};
use crate::client::Admin;
use crate::config::Services;
use crate::types::{ControllerId, StorageId, Version};
use crate::wire::admin::ClusterStatus;
use crate::wire::{PushAck, WireMessage};

/// What is wanted.
pub struct Plan {
    pub controllers: u32,
    pub storage: u32,
    /// Whether the controllers hear of ended connections.
    pub advisories: bool,
    /// `DMQ_…` variables for controllers and storage nodes.
    pub settings: Vec<(&'static str, String)>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { controllers: 3, storage: 3, advisories: true, settings: Vec::new() }
    }
}

pub type Key = (Role, u32);

pub struct Rig {
    pub services: Services,
    pub url: String,
    pub client: Client,
    pub admin: Admin,
    recipes: BTreeMap<Key, Recipe>,
    running: BTreeMap<Key, Process>,
    folder: Folder,
    /// Removed once nothing runs in it.
    dir: Option<TempDir>,
    keep: bool,
}

/// How long a cluster may take to do what it does in a second.
pub const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Rig {
    /// Starts the nats-server, and everybody in the plan; nobody has to be ready yet. On the main thread alone.
    pub async fn start(place: &Place, plan: &Plan) -> anyhow::Result<Self> {
        let program = nats::program(place.nats_server.clone())?;
        let mut builder = tempfile::Builder::new();
        builder.prefix("dmq-bench-");
        let dir = match &place.data {
            Some(folder) => {
                std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
                let folder = folder.canonicalize().with_context(|| format!("find {}", folder.display()))?;
                builder.tempdir_in(folder)
            }
            None => builder.tempdir(),
        };
        let dir = dir.context("make a folder for the data")?;
        let folder = Folder::take(dir.path().to_owned())?;
        let port = nats::port(0)?;
        let url = format!("nats://127.0.0.1:{port}");
        let services = Services::default_with(crate::config::services::DEFAULT_PREFIX)?
            .with_services((0..plan.controllers).map(ControllerId), (0..plan.storage).map(StorageId));
        folder.replace("services.json", services.to_json().as_bytes())?;
        let password = folder.system_password()?;
        let server = nats::recipe(&folder, program, port, &password)?;
        let server = server.start(&Printer::silent())?;
        let client = first_client(&server, &url).await?;
        let admin = Admin::new(client.clone(), services.admin_prefix());
        let mut rig = Self {
            services,
            url,
            client,
            admin,
            recipes: BTreeMap::new(),
            running: BTreeMap::from([((Role::Nats, 0), server)]),
            folder,
            dir: Some(dir),
            keep: place.keep,
        };
        rig.add_recipes(plan, &password)?;
        let all: Vec<Key> = rig.recipes.keys().copied().collect();
        all.into_iter().try_for_each(|key| rig.launch(key))?;
        Ok(rig)
    }

    fn add_recipes(&mut self, plan: &Plan, password: &str) -> anyhow::Result<()> {
        let program = std::env::current_exe().context("find this program's own file")?;
        for (role, count) in [(Role::Controller, plan.controllers), (Role::Storage, plan.storage)] {
            for id in 0..count {
                let mut args: Vec<OsString> =
                    [role.to_string(), "--id".into(), id.to_string(), "--data".into()].map(Into::into).into();
                args.push(self.folder.path().join(format!("{role}-{id}")).into_os_string());
                args.extend(["--services".into(), self.folder.path().join("services.json").into_os_string()]);
                let mut env = vec![("DMQ_NATS_URL", self.url.clone())];
                env.extend(plan.settings.iter().cloned());
                if role == Role::Controller && plan.advisories {
                    env.push(("DMQ_NATS_SYSTEM_USER", nats::SYSTEM_USER.into()));
                    env.push(("DMQ_NATS_SYSTEM_PASSWORD", password.into()));
                }
                let log = self.folder.log(role, id);
                self.recipes.insert((role, id), Recipe { role, id, program: program.clone(), args, env, log });
            }
        }
        Ok(())
    }

    /// Starts one that does not run.
    pub fn launch(&mut self, key: Key) -> anyhow::Result<()> {
        let recipe = self.recipes.get(&key).with_context(|| format!("no {} {} is planned", key.0, key.1))?;
        let process = recipe.start(&Printer::silent())?;
        self.running.insert(key, process);
        Ok(())
    }

    pub fn pid(&self, key: Key) -> anyhow::Result<u32> {
        self.running.get(&key).map(Process::pid).with_context(|| format!("{} {} does not run", key.0, key.1))
    }

    /// Sends a signal, and says when.
    pub fn signal(&self, key: Key, signal: Signal) -> anyhow::Result<Instant> {
        let process = self.running.get(&key).with_context(|| format!("{} {} does not run", key.0, key.1))?;
        let at = Instant::now();
        process.signal(signal);
        Ok(at)
    }

    /// Waits until one that was told to end has ended.
    pub async fn until_ended(&mut self, key: Key) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Some(process) = self.running.get_mut(&key) {
            if process.ended().is_some() {
                self.running.remove(&key);
            } else {
                anyhow::ensure!(Instant::now() < deadline, "{} {} does not end", key.0, key.1);
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }

    pub fn path(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Removes the data of one that does not run.
    pub fn wipe(&self, key: Key) -> anyhow::Result<()> {
        let path = self.folder.path().join(format!("{}-{}", key.0, key.1));
        std::fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// Another connection, of its own socket.
    pub async fn connect(&self, name: &str) -> anyhow::Result<Client> {
        let options = async_nats::ConnectOptions::new().name(name);
        options.connect(&self.url).await.with_context(|| format!("connect to {}", self.url))
    }

    /// Waits for a state of the cluster, and returns it.
    pub async fn until(
        &mut self,
        what: &str,
        patience: Duration,
        mut holds: impl FnMut(&ClusterStatus) -> bool,
    ) -> anyhow::Result<ClusterStatus> {
        let deadline = Instant::now() + patience;
        loop {
            let asked = self.admin.clone().within(Duration::from_secs(5)).cluster_status().await;
            let seen = match asked {
                Ok(status) if holds(&status) => return Ok(status),
                Ok(status) => status.problems.join("; "),
                Err(error) => error.to_string(),
            };
            for (key, process) in &mut self.running {
                if let Some(status) = process.ended() {
                    let last = process.last_lines().join("\n  ");
                    anyhow::bail!("{} {} ended by itself ({status}); its log ends with\n  {last}", key.0, key.1);
                }
            }
            anyhow::ensure!(Instant::now() < deadline, "{what} did not come about within {patience:?}: {seen}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until so many storage nodes serve, and nothing is wrong.
    pub async fn until_healthy(&mut self, nodes: u32) -> anyhow::Result<ClusterStatus> {
        let all = |status: &ClusterStatus| status.healthy && status.storage_nodes.len() == nodes as usize;
        self.until("a healthy cluster", PATIENCE, all).await
    }

    /// The acknowledgements of pushes, as this process hears them from now on.
    pub async fn acks(&self) -> anyhow::Result<mpsc::Receiver<Ack>> {
        /// More than a bench leaves unread.
        const WAITING: usize = 1 << 16;
        let client = self.connect("bench acks").await?;
        let (sender, receiver) = mpsc::channel(WAITING);
        for subject in self.services.acks_wildcard() {
            let mut heard = client.subscribe(subject).await?;
            let sender = sender.clone();
            tokio::spawn(async move {
                while let Some(message) = heard.next().await {
                    let at = Instant::now();
                    let Ok(ack) = PushAck::decode(&message.payload) else { continue };
                    let ack = Ack { at, storage: ack.storage, version: ack.position.version };
                    if sender.send(ack).await.is_err() {
                        return;
                    }
                }
            });
        }
        // The server has the subscriptions once it has answered what was sent after them.
        crate::bus::raw::round_trip(&client, PATIENCE).await?;
        Ok(receiver)
    }

    /// The ends of connections, and when this process heard of each.
    pub async fn advisories(&self) -> anyhow::Result<mpsc::Receiver<(Instant, Disconnect)>> {
        const WAITING: usize = 1 << 12;
        let password = self.folder.system_password()?;
        let options = async_nats::ConnectOptions::with_user_and_password(nats::SYSTEM_USER.into(), password);
        let client = options.name("bench system").connect(&self.url).await.context("connect to the system account")?;
        let mut heard = advisories::subscribe(&client, WAITING, PATIENCE).await?;
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            // Whoever only listens has to keep its connection.
            let _client = client;
            while let Some(disconnect) = heard.recv().await {
                if sender.send((Instant::now(), disconnect)).await.is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    /// Starts `dmq bench …` as one more process. Its number is beyond any storage node's.
    pub fn helper(&mut self, number: u32, args: impl IntoIterator<Item = String>) -> anyhow::Result<Key> {
        let program = std::env::current_exe().context("find this program's own file")?;
        let args = std::iter::once("bench".to_owned()).chain(args).map(Into::into).collect();
        let key = (Role::Storage, number);
        let log = self.folder.log(key.0, key.1);
        self.recipes.insert(key, Recipe { role: key.0, id: key.1, program, args, env: Vec::new(), log });
        self.launch(key)?;
        Ok(key)
    }

    /// What one has written to its log so far.
    pub fn said(&self, key: Key) -> anyhow::Result<String> {
        let path = self.folder.log(key.0, key.1);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// Starts a process that answers whatever it hears on a subject with as many bytes as a heartbeat's answer has, and
    /// does nothing else: the floor of whatever answers.
    pub async fn echo(&mut self) -> anyhow::Result<Echo> {
        const NUMBER: u32 = 1_000;
        let subject = "bench.bare".to_owned();
        let key = self.helper(NUMBER, ["bare".into(), self.url.clone(), subject.clone()])?;
        let answering = async {
            while self.client.request(subject.clone(), "".into()).await.is_err() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(PATIENCE, answering).await.context("the bare answerer does not answer")?;
        Ok(Echo { pid: self.pid(key)?, subject })
    }

    pub fn report(&self, bench: &str, figures: Vec<Figure>) -> Report {
        let machine = Machine {
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            memory_mb: proc::memory_mb(),
            kernel: proc::kernel(),
            nats_server: self.client.server_info().version,
            optimised: !cfg!(debug_assertions),
        };
        Report { bench: bench.into(), machine, figures, distributions: Vec::new() }
    }
}

/// A process that only answers.
pub struct Echo {
    pub pid: u32,
    pub subject: String,
}

/// A node has so much on its disk.
#[derive(Clone, Copy, Debug)]
pub struct Ack {
    pub at: Instant,
    pub storage: StorageId,
    pub version: Version,
}

/// Waits until all of `nodes` have the version, and says when the last one had.
pub async fn until_acked(
    acks: &mut mpsc::Receiver<Ack>,
    mut nodes: std::collections::BTreeSet<StorageId>,
    version: Version,
    patience: Duration,
) -> anyhow::Result<Instant> {
    let hearing = async {
        loop {
            let ack = acks.recv().await.context("the connection to NATS has ended")?;
            if ack.version >= version && nodes.remove(&ack.storage) && nodes.is_empty() {
                return Ok(ack.at);
            }
        }
    };
    match tokio::time::timeout(patience, hearing).await {
        Ok(at) => at,
        Err(_) => anyhow::bail!("version {version} did not reach every storage node within {patience:?}"),
    }
}

/// Waits until the server serves, and connects.
async fn first_client(server: &Process, url: &str) -> anyhow::Result<Client> {
    let mut ready = server.ready();
    match tokio::time::timeout(PATIENCE, ready.wait_for(|ready| *ready)).await {
        Ok(Ok(_)) => {}
        Ok(Err(_)) | Err(_) => {
            anyhow::bail!("the nats-server did not start; its log ends with\n  {}", server.last_lines().join("\n  "))
        }
    }
    let options = async_nats::ConnectOptions::new().name("bench");
    options.connect(url).await.with_context(|| format!("connect to {url}"))
}

impl Drop for Rig {
    fn drop(&mut self) {
        for process in self.running.values() {
            process.signal(Signal::KILL);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.running.values_mut().any(|process| process.ended().is_none()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        if let Some(dir) = self.dir.take().filter(|_| self.keep) {
            say(&format!("data and logs are in {}", dir.keep().display()));
        }
    }
}
