//! The running `dmq dev`: starts the parts, sees them die, does what another terminal asks, and ends all in order.
//!
//! Everything that starts, signals or reaps a child happens in one task on the main thread.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::{Outcome, global::GlobalArgs};
use super::ClusterArgs;
use super::control::{self, Asked, Back, Done, Request, Verb};
use super::folder::{DevJson, Folder, Listed};
use super::nats;
use super::printer::Printer;
use super::process::{Process, Recipe, Role};
use crate::client::Admin;
use crate::config::{Services, services_file};

/// How long controllers and storage nodes may take to end: a storage node gives up its drain after 5 s.
const GRACE: Duration = Duration::from_millis(6_000);
/// How long the nats-server may take after them.
const NATS_GRACE: Duration = Duration::from_millis(2_500);
const NATS_START: Duration = Duration::from_secs(20);
/// With --restart, how long what died stays dead.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// Signals closer together than this are one wish to end.
const ONE_WISH: Duration = Duration::from_secs(1);

type Key = (Role, u32);

struct Cluster {
    folder: Folder,
    /// What the admin verbs' subjects begin with.
    admin_prefix: String,
    nats_url: String,
    printer: Printer,
    recipes: BTreeMap<Key, Recipe>,
    running: BTreeMap<Key, Process>,
    /// What is started again, and when.
    due: BTreeMap<Key, Instant>,
    /// Who is told once what they killed is gone.
    killed: Vec<(Done, Back)>,
    restarts: bool,
}

pub async fn run(global: &GlobalArgs, args: ClusterArgs, data: PathBuf) -> anyhow::Result<Outcome> {
    let mut stops = stops()?;
    let mut child_changed = signal(SignalKind::child())?;
    let mut cluster = Cluster::prepare(global, args, data)?;
    let started = tokio::select! {
        started = cluster.start_all() => started.map(|()| true),
        _ = stops.recv() => Ok(false),
    };
    let worked = match started {
        Ok(true) => cluster.supervise(&mut child_changed, &mut stops).await,
        Ok(false) => Ok(()),
        Err(error) => Err(error),
    };
    cluster.stop_all(&mut stops).await;
    worked.map(|()| Outcome::Fine)
}

/// Each time that somebody wants an end.
fn stops() -> anyhow::Result<mpsc::Receiver<()>> {
    let [mut interrupt, mut terminate, mut hangup] =
        [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut last: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            // `timeout` and `make` signal the process and its group: that is one wish, not two.
            if last.replace(Instant::now()).is_some_and(|last| last.elapsed() < ONE_WISH) {
                continue;
            }
            if sender.send(()).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

impl Cluster {
    fn prepare(global: &GlobalArgs, args: ClusterArgs, data: PathBuf) -> anyhow::Result<Self> {
        let program = nats::program(args.nats_server)?;
        let folder = Folder::take(data)?;
        let port = nats::port(args.nats_port)?;
        let password = folder.system_password()?;
        let nats_url = format!("nats://127.0.0.1:{port}");
        let (services, file) = match &global.services {
            Some(path) => {
                let services = services_file::load(path)?;
                (services, path.canonicalize().with_context(|| format!("find {}", path.display()))?)
            }
            None => {
                let (controllers, storage) = (args.controllers.unwrap_or(3), args.storage.unwrap_or(3));
                let ids = |count| 0..count;
                let services = Services::default_with(crate::config::services::DEFAULT_PREFIX)?.with_services(
                    ids(controllers).map(crate::types::ControllerId),
                    ids(storage).map(crate::types::StorageId),
                );
                folder.replace("services.json", services.to_json().as_bytes())?;
                (services, folder.path().join("services.json"))
            }
        };
        let controllers: Vec<u32> = services.controller_ids().map(|id| id.0).collect();
        let storage: Vec<u32> = services.storage_ids().map(|id| id.0).collect();
        let mut cluster = Self {
            admin_prefix: services.admin_prefix(),
            nats_url,
            printer: Printer::start().context("start the printer")?,
            recipes: BTreeMap::new(),
            running: BTreeMap::new(),
            due: BTreeMap::new(),
            killed: Vec::new(),
            restarts: args.restart,
            folder,
        };
        cluster.add(nats::recipe(&cluster.folder, program, port, &password)?);
        let env = vec![
            ("DMQ_NATS_URL", cluster.nats_url.clone()),
            ("DMQ_NATS_SYSTEM_USER", nats::SYSTEM_USER.into()),
            ("DMQ_NATS_SYSTEM_PASSWORD", password),
        ];
        let ourselves = std::env::current_exe().context("find this program's own file")?;
        for (role, ids, count) in
            [(Role::Controller, &controllers, args.controllers), (Role::Storage, &storage, args.storage)]
        {
            for id in chosen(role, ids, count)? {
                let mut args = vec![role.to_string().into(), "--id".into(), id.to_string().into(), "--data".into()];
                args.push(cluster.folder.path().join(format!("{role}-{id}")).into_os_string());
                args.extend(["--services".into(), file.clone().into_os_string()]);
                args.extend(global.config.iter().flat_map(|file| ["--config".into(), file.clone().into_os_string()]));
                let log = cluster.folder.log(role, id);
                // Only controllers may listen to the system account: it tells of every connection's end.
                let env = if role == Role::Controller { env.clone() } else { env[..1].to_vec() };
                cluster.add(Recipe { role, id, program: ourselves.clone(), args, env, log });
            }
        }
        Ok(cluster)
    }

    fn add(&mut self, recipe: Recipe) {
        self.recipes.insert((recipe.role, recipe.id), recipe);
    }

    async fn start_all(&mut self) -> anyhow::Result<()> {
        self.start((Role::Nats, 0))?;
        self.until_nats_is_ready().await?;
        let others: Vec<Key> = self.recipes.keys().filter(|(role, _)| *role != Role::Nats).copied().collect();
        others.into_iter().try_for_each(|key| self.start(key).map(drop))?;
        self.write_dev_json()?;
        let (data, url) = (self.folder.path().display(), &self.nats_url);
        self.printer.print(format!("NATS is at {url}; logs are in {data}/logs; Ctrl-C ends everything"));
        self.printer.print(format!("break something: dmq dev kill storage 0 --data {data}"));
        let nodes = self.recipes.keys().filter(|(role, _)| *role == Role::Storage).count();
        let (url, prefix) = (self.nats_url.clone(), self.admin_prefix.clone());
        tokio::spawn(announce_health(url, prefix, nodes, self.printer.clone()));
        Ok(())
    }

    async fn until_nats_is_ready(&mut self) -> anyhow::Result<()> {
        let key = (Role::Nats, 0);
        let nats = self.running.get(&key).context("the nats-server is not running")?;
        let mut ready = nats.ready();
        // It fails where the log ended, and with it the server.
        match tokio::time::timeout(NATS_START, ready.wait_for(|ready| *ready)).await {
            Ok(Ok(_)) => Ok(()),
            _ => {
                let lines = nats.last_lines().join("\n  ");
                anyhow::bail!("the nats-server did not start; its log ends with\n  {lines}")
            }
        }
    }

    fn start(&mut self, key: Key) -> anyhow::Result<u32> {
        let recipe = self.recipes.get(&key).context("no such process")?;
        let process = recipe.start(&self.printer)?;
        let pid = process.pid();
        self.printer.print(format!("started {} {} (pid {pid})", key.0, key.1));
        self.running.insert(key, process);
        self.due.remove(&key);
        Ok(pid)
    }

    fn write_dev_json(&self) -> anyhow::Result<()> {
        let listed = |(&(role, id), process): (&Key, &Process)| Listed { role, id, pid: process.pid() };
        let processes = self.running.iter().map(listed).collect();
        self.folder.write_dev_json(&DevJson { nats_url: self.nats_url.clone(), processes })
    }

    async fn supervise(
        &mut self,
        child_changed: &mut tokio::signal::unix::Signal,
        stops: &mut mpsc::Receiver<()>,
    ) -> anyhow::Result<()> {
        let mut requests: mpsc::Receiver<Asked> = control::listen(self.folder.path())?;
        // What died before anybody listened.
        self.notice_deaths()?;
        loop {
            let next_start = self.due.values().min().copied();
            let starting = async {
                match next_start {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = stops.recv() => return Ok(()),
                _ = child_changed.recv() => self.notice_deaths()?,
                Some((request, back)) = requests.recv() => match self.carry_out(request) {
                    Ok(done) if request.verb == Verb::Kill => self.killed.push((done, back)),
                    // Who asked may be gone.
                    carried_out => _ = back.send(carried_out.map_err(|error| format!("{error:#}"))),
                },
                () = starting => {
                    let now = Instant::now();
                    let keys: Vec<Key> = self.due.iter().filter(|(_, at)| **at <= now).map(|(key, _)| *key).collect();
                    for key in keys {
                        self.start(key)?;
                    }
                    self.write_dev_json()?;
                }
            }
        }
    }

    fn carry_out(&mut self, request: Request) -> anyhow::Result<Done> {
        let key = (request.role, request.id);
        self.notice_deaths()?;
        let (role, id) = key;
        anyhow::ensure!(self.recipes.contains_key(&key), "this cluster has no {role} {id}; dev.json lists what it has");
        let done = |pid| Done { role, id, pid };
        if request.verb == Verb::Start {
            if let Some(process) = self.running.get(&key) {
                anyhow::bail!("{role} {id} runs already (pid {})", process.pid());
            }
            let pid = self.start(key)?;
            self.write_dev_json()?;
            return Ok(done(pid));
        }
        let process = self.running.get(&key).with_context(|| {
            format!("{role} {id} does not run; start it with `dmq dev start {role} {id} --data DIR`")
        })?;
        process.signal(match request.verb {
            Verb::Start | Verb::Kill => Signal::KILL,
            Verb::Pause => Signal::STOP,
            Verb::Resume => Signal::CONT,
        });
        let done = done(process.pid());
        if request.verb != Verb::Kill {
            self.printer.print(format!("{} {role} {id} (pid {})", request.verb.done(), done.pid));
        }
        Ok(done)
    }

    /// Reaps what ended and says how.
    fn notice_deaths(&mut self) -> anyhow::Result<()> {
        let ended: Vec<_> =
            self.running.iter_mut().filter_map(|(key, p)| p.ended().map(|status| (*key, status))).collect();
        if ended.is_empty() {
            return Ok(());
        }
        let mut told = Vec::new();
        for (key @ (role, id), status) in ended {
            let Some(process) = self.running.remove(&key) else { continue };
            told.extend(self.killed.extract_if(.., |(done, _)| done.pid == process.pid()));
            self.printer.print(format!("{role} {id} (pid {}) ended: {status}; its log ends with", process.pid()));
            for line in process.last_lines() {
                self.printer.print(format!("  {}", crate::cli::table::cut(&line, 200)));
            }
            if self.restarts {
                self.due.insert(key, Instant::now() + RESTART_AFTER);
            } else {
                let data = self.folder.path().display();
                self.printer.print(format!("  start it again: dmq dev start {role} {id} --data {data}"));
            }
        }
        self.write_dev_json()?;
        for (done, back) in told {
            // Who asked may be gone.
            let _ = back.send(Ok(done));
        }
        Ok(())
    }

    /// Ends everything: controllers and storage nodes at once, for where all stop nobody has to take over; then the server.
    async fn stop_all(&mut self, again: &mut mpsc::Receiver<()>) {
        let others = |key: &Key| key.0 != Role::Nats;
        self.stop(others, GRACE, again).await;
        self.stop(|_| true, NATS_GRACE, again).await;
        self.folder.leave();
        self.printer.print("all ended".into());
        self.printer.flush();
    }

    async fn stop(&mut self, which: impl Fn(&Key) -> bool, grace: Duration, again: &mut mpsc::Receiver<()>) {
        const LOOK_EVERY: Duration = Duration::from_millis(20);
        for (_, process) in self.running.iter().filter(|(key, _)| which(key)) {
            process.signal(Signal::TERM);
            // A frozen one hears nothing until it goes on.
            process.signal(Signal::CONT);
        }
        let waiting = async {
            loop {
                self.running.retain(|key, process| !which(key) || process.ended().is_none());
                if !self.running.keys().any(&which) {
                    return;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            () = waiting => return,
            () = tokio::time::sleep(grace) => {}
            // Somebody is in a hurry.
            _ = again.recv() => {}
        }
        for (&(role, id), process) in self.running.iter().filter(|(key, _)| which(key)) {
            self.printer.print(format!("{role} {id} did not end in time and is killed"));
            process.signal(Signal::KILL);
        }
        let dead = async {
            while self.running.iter_mut().any(|(key, process)| which(key) && process.ended().is_none()) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        // A process in an uninterruptible wait for a disk may outlive even that.
        let _ = tokio::time::timeout(Duration::from_secs(1), dead).await;
        self.running.retain(|key, _| !which(key));
    }
}

/// The first `count` of the ids that services.json lists; all where no count is given.
fn chosen(role: Role, ids: &[u32], count: Option<u32>) -> anyhow::Result<Vec<u32>> {
    let count = count.map_or(ids.len(), |count| count as usize);
    anyhow::ensure!(
        count <= ids.len(),
        "--{} {count} is more than the {} that services.json lists",
        if role == Role::Controller { "controllers" } else { "storage" },
        ids.len()
    );
    Ok(ids[..count].to_vec())
}

/// Says when the cluster is first healthy, with all its nodes: one that has never appeared does not make it unhealthy.
async fn announce_health(nats_url: String, admin_prefix: String, nodes: usize, printer: Printer) {
    const GIVE_UP: Duration = Duration::from_secs(60);
    const LOOK_EVERY: Duration = Duration::from_millis(250);
    let began = Instant::now();
    let connecting = async_nats::ConnectOptions::new().name("dmq dev").connect(nats_url);
    let Ok(client) = connecting.await else { return };
    let admin = Admin::new(client, admin_prefix).within(Duration::from_secs(2));
    while began.elapsed() < GIVE_UP {
        if admin.cluster_status().await.is_ok_and(|status| status.healthy && status.storage_nodes.len() >= nodes) {
            printer.print(format!("the cluster is healthy, after {:.1} s", began.elapsed().as_secs_f64()));
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    printer.print("the cluster is not healthy yet: `dmq cluster status` says why".into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_processes_than_are_listed_are_refused() {
        assert_eq!(chosen(Role::Storage, &[0, 4, 5], Some(2)).unwrap(), [0, 4]);
        assert_eq!(chosen(Role::Storage, &[0, 4, 5], None).unwrap(), [0, 4, 5]);
        let error = chosen(Role::Controller, &[0], Some(2)).unwrap_err().to_string();
        assert_eq!(error, "--controllers 2 is more than the 1 that services.json lists");
    }
}
