//! Controllers as a whole, on a real nats-server and real disks: founding, standing by, taking over, halting, restoring.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dmq::client::Admin;
use dmq::config::{NatsSettings, Services};
use dmq::controller::core::Settings;
use dmq::controller::{Options, run_until};
use dmq::process::ProcessError;
use dmq::storage::{Data, Subjects};
use dmq::types::{ControllerId, Position, StorageId, Version};
use dmq::wire::admin::{ClusterStatus, TopicCreate, TopicList};
use dmq::wire::{Code, ControllerRole, ErrorBody, FetchAnswer, FetchRequest, WireMessage};
use futures::StreamExt as _;
use support::nats::{NatsServer, SYSTEM_PASSWORD, SYSTEM_USER};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(20);
const SESSION: Duration = Duration::from_millis(1000);
const LEASE: Duration = Duration::from_millis(1500);

struct Running {
    shutdown: mpsc::Sender<()>,
    task: JoinHandle<Result<(), ProcessError>>,
}

impl Running {
    /// As SIGTERM does it.
    async fn stop(self) {
        self.shutdown.send(()).await.expect("it runs");
        timeout(DEADLINE, self.task).await.expect("it ends in time").expect("it does not panic").expect("it ends well");
    }

    /// As SIGKILL does it, as far as one process can: nothing is given back, and the connection ends.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.expect_err("it was aborted").is_cancelled());
    }
}

struct Cluster {
    nats: NatsServer,
    admin: Admin,
    client: async_nats::Client,
    directories: tempfile::TempDir,
    fast: bool,
    snapshot_every: u64,
    services: watch::Sender<Arc<Services>>,
}

impl Cluster {
    async fn new(fast: bool) -> Self {
        let nats = NatsServer::start();
        let client = nats.connect().await;
        let admin = Admin::new(client.clone(), "dmq.admin");
        let directories = tempfile::tempdir().expect("a folder");
        let services = watch::Sender::new(Arc::new(Services::default()));
        Self { nats, admin, client, directories, fast, snapshot_every: 1_000_000, services }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directories.path().join(name)
    }

    fn nats_settings(&self) -> NatsSettings {
        let system = |text: &str| self.fast.then(|| text.to_owned());
        NatsSettings {
            url: Some(self.nats.url()),
            system_user: system(SYSTEM_USER),
            system_password: system(SYSTEM_PASSWORD),
            ..NatsSettings::default()
        }
    }

    fn controller(&self, id: u32) -> Running {
        self.controller_in(id, &self.path(&format!("controller-{id}")))
    }

    fn controller_in(&self, id: u32, data: &Path) -> Running {
        let (shutdown, told) = mpsc::channel(2);
        let settings = Settings {
            heartbeat_interval: Duration::from_millis(100),
            session_timeout: SESSION,
            lease: LEASE,
            admin_wait: Duration::from_secs(2),
            push_retry_min: Duration::from_millis(50),
            push_retry_max: Duration::from_secs(1),
            push_max_bytes: 512 << 10,
            history_probe: Duration::from_millis(500),
            leader_balance: Some(Duration::from_secs(10)),
            snapshot_every_entries: self.snapshot_every,
            snapshot_every_bytes: 64 << 20,
            message_limit: 900 << 10,
        };
        let options = Options {
            id: ControllerId(id),
            data: data.to_owned(),
            settings,
            nats: self.nats_settings(),
            connect_timeout: Duration::from_secs(5),
            replicas: 1,
            services: self.services.subscribe(),
        };
        Running { shutdown, task: tokio::spawn(run_until(options, told)) }
    }

    fn storage(&self, id: u32) -> Running {
        let (shutdown, told) = mpsc::channel(2);
        let settings = dmq::storage::core::Settings {
            heartbeat_interval: Duration::from_millis(100),
            ..dmq::storage::core::Settings::default()
        };
        let options = dmq::storage::Options {
            data: Data::Directory(self.path(&format!("storage-{id}"))),
            id: Some(StorageId(id)),
            rack: None,
            settings,
            records: dmq::storage::RecordSettings::default(),
            nats: NatsSettings { url: Some(self.nats.url()), ..NatsSettings::default() },
            connect_timeout: Duration::from_secs(5),
            subjects: watch::channel(Arc::new(Services::default()) as Arc<dyn Subjects>).1,
        };
        Running { shutdown, task: tokio::spawn(dmq::storage::run_until(options, told)) }
    }

    /// The first status that fits.
    async fn status(&self, what: &str, fits: impl Fn(&ClusterStatus) -> bool) -> ClusterStatus {
        let mut last = "no answer".to_owned();
        let asking = async {
            loop {
                match self.admin.clone().within(Duration::from_millis(500)).cluster_status().await {
                    Ok(status) if fits(&status) => return status,
                    Ok(status) => last = format!("{status:?}"),
                    Err(error) => last = error.to_string(),
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match timeout(DEADLINE, asking).await {
            Ok(status) => status,
            Err(_) => panic!("not in time: {what}; last {last}"),
        }
    }

    async fn active(&self, id: u32) -> ClusterStatus {
        let is_active = |status: &ClusterStatus| status.controller.is_some_and(|active| active.id == ControllerId(id));
        self.status(&format!("controller {id} is active"), is_active).await
    }

    async fn standby(&self, id: u32) -> ClusterStatus {
        let stands_by = |status: &ClusterStatus| {
            let of = |service: &dmq::wire::admin::MetadataServiceStatus| {
                let caught_up = service.version == status.version;
                service.id == ControllerId(id) && service.state == ControllerRole::Standby && caught_up
            };
            status.metadata_services.iter().any(of)
        };
        self.status(&format!("controller {id} stands by"), stands_by).await
    }

    async fn active_nodes(&self, count: usize) -> ClusterStatus {
        let are_active = |status: &ClusterStatus| {
            let active = |node: &&dmq::wire::admin::NodeDescription| node.state == dmq::metadata::NodeState::Active;
            status.storage_nodes.iter().filter(active).count() == count
        };
        self.status(&format!("{count} storage nodes are active"), are_active).await
    }

    async fn create_topic(&self, name: &str) -> dmq::wire::admin::Changed {
        let request = TopicCreate {
            name: name.into(),
            partitions: Some(3),
            replication_factor: Some(1),
            config: Default::default(),
            terms: Default::default(),
        };
        self.admin.create_topic(request).await.unwrap_or_else(|error| panic!("create {name}: {error}"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_active_controller_is_succeeded_at_once_where_the_server_tells_of_its_end() {
    let cluster = Cluster::new(true).await;
    let began = Instant::now();
    let first = cluster.controller(0);
    let founded = cluster.active(0).await;
    assert!(began.elapsed() >= SESSION, "it founded a cluster before it could hear of one: {:?}", began.elapsed());
    let second = cluster.controller(1);
    cluster.standby(1).await;
    let killed = Instant::now();
    first.kill().await;
    let succeeded = cluster.active(1).await;
    let took = killed.elapsed();
    assert!(took < LEASE, "the successor waited for the lease: {took:?}");
    println!("failover to the first answer took {took:?}");
    assert_eq!(succeeded.cluster_id, founded.cluster_id);
    assert!(succeeded.controller.unwrap().epoch > founded.controller.unwrap().epoch);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_active_controller_is_succeeded_after_its_lease_where_nobody_tells() {
    let cluster = Cluster::new(false).await;
    let first = cluster.controller(0);
    cluster.active(0).await;
    let second = cluster.controller(1);
    cluster.standby(1).await;
    let killed = Instant::now();
    first.kill().await;
    cluster.active(1).await;
    let took = killed.elapsed();
    assert!(took < LEASE + Duration::from_millis(1500), "{took:?}");
    println!("failover without advisories took {took:?}");
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_with_only_the_nats_command_line_is_answered() {
    let cluster = Cluster::new(false).await;
    let controller = cluster.controller(0);
    cluster.active(0).await;
    let ask = async |subject: &'static str, body: &'static str| {
        timeout(DEADLINE, cluster.client.request(subject, body.into())).await.expect("in time").expect("an answer")
    };
    let answer = ask("dmq.admin.topic.list", "").await;
    let list: TopicList = serde_json::from_slice(&answer.payload).unwrap();
    assert!(list.topics.is_empty());
    let refused = ask("dmq.admin.topic.list", r#"{"unknown": 1}"#).await;
    let body: ErrorBody = serde_json::from_slice(&refused.payload).unwrap();
    assert_eq!(body.error.code, Code::InvalidRequest);
    let headers = refused.headers.expect("an error has headers");
    assert_eq!(headers.get("Nats-Service-Error-Code").map(|code| code.as_str()), Some("400"));
    let info = ask("$SRV.INFO.dmq-admin", "").await;
    let info: serde_json::Value = serde_json::from_slice(&info.payload).unwrap();
    assert_eq!(info["endpoints"].as_array().unwrap().len(), dmq::wire::admin::VERBS.len());
    controller.stop().await;
    // It gave back what it had, and is silent.
    let silent = cluster.client.request("dmq.admin.topic.list", "".into()).await;
    assert_eq!(silent.unwrap_err().kind(), async_nats::client::RequestErrorKind::NoResponders);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_stream_halts_the_controllers_until_it_is_restored() {
    let cluster = Cluster::new(false).await;
    let (first, second) = (cluster.controller(0), cluster.controller(1));
    let founded = cluster.status("a controller is active", |status| status.controller.is_some()).await;
    let node = cluster.storage(0);
    cluster.active_nodes(1).await;
    let created = cluster.create_topic("orders").await;
    assert_eq!((created.applied, created.active), (1, 1));

    let jetstream = async_nats::jetstream::new(cluster.client.clone());
    jetstream.delete_stream("DMQ_METADATA").await.unwrap();
    let wiped = Instant::now();
    let halted = |status: &ClusterStatus| {
        !status.healthy && status.metadata_services.iter().all(|service| service.state == ControllerRole::Halted)
    };
    cluster.status("all controllers are halted", halted).await;
    assert!(wiped.elapsed() < Duration::from_secs(5), "{:?}", wiped.elapsed());
    assert!(jetstream.get_stream("DMQ_METADATA").await.is_err(), "nobody makes a lost history anew");

    let plan = cluster.admin.plan_restore().await.unwrap();
    assert!(plan.source.version >= created.version, "{plan:?}");
    let restored = cluster.admin.restore(&plan).await.unwrap();
    assert!(restored.done);
    let active = cluster.status("a controller is active again", |status| status.controller.is_some()).await;
    assert_eq!(active.cluster_id, founded.cluster_id);
    assert!(active.version >= restored.new_version && active.version > Version(1_000_000_000));
    cluster.active_nodes(1).await;
    let topics = cluster.admin.list_topics().await.unwrap();
    assert_eq!(topics.topics.iter().map(|topic| &*topic.name).collect::<Vec<_>>(), ["orders"]);
    cluster.create_topic("payments").await;
    for controller in [first, second] {
        controller.stop().await;
    }
    node.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_goes_on_from_its_disk_after_a_restart() {
    let cluster = Cluster::new(false).await;
    let controller = cluster.controller(0);
    let before = cluster.active(0).await;
    let node = cluster.storage(0);
    cluster.active_nodes(1).await;
    let created = cluster.create_topic("orders").await;
    controller.stop().await;
    let again = cluster.controller(0);
    let after = cluster.active(0).await;
    assert_eq!(after.cluster_id, before.cluster_id);
    assert!(after.version > created.version);
    assert_eq!(after.topics, 1);
    cluster.active_nodes(1).await;
    // The same directory under another id is another controller's.
    again.stop().await;
    let other = cluster.controller_in(7, &cluster.path("controller-0"));
    let error = timeout(DEADLINE, other.task).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, ProcessError::OtherId { .. }), "{error}");
    node.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purged_history_is_taken_up_from_its_snapshot_and_served_from_disks() {
    let mut cluster = Cluster::new(false).await;
    cluster.snapshot_every = 10;
    let first = cluster.controller(0);
    cluster.active(0).await;
    let node = cluster.storage(0);
    cluster.active_nodes(1).await;
    let jetstream = async_nats::jetstream::new(cluster.client.clone());
    // What is left where a controller died while it wrote a snapshot.
    let cut_off = async {
        while jetstream.get_stream("OBJ_DMQ_SNAPSHOTS").await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        jetstream.publish("$O.DMQ_SNAPSHOTS.C.cut-off", "half".into()).await.unwrap().await.unwrap();
    };
    timeout(DEADLINE, cut_off).await.expect("the bucket is there");
    let mut number = 0;
    let purged = async {
        loop {
            number += 1;
            cluster.create_topic(&format!("topic-{number}")).await;
            let stream = jetstream.get_stream("DMQ_METADATA").await.unwrap();
            if stream.cached_info().state.first_sequence > 1 {
                return;
            }
        }
    };
    timeout(DEADLINE, purged).await.expect("the history is purged behind a snapshot");
    // What is older than the last two is gone, and what a writer left that was cut off.
    let tidy = async {
        loop {
            let objects = jetstream.get_object_store("DMQ_SNAPSHOTS").await.unwrap();
            let count = objects.list().await.unwrap().count().await;
            let chunks = jetstream.get_stream("OBJ_DMQ_SNAPSHOTS").await.unwrap();
            let left = chunks.get_last_raw_message_by_subject("$O.DMQ_SNAPSHOTS.C.cut-off").await.is_ok();
            if count <= 2 && !left {
                return;
            }
            number += 1;
            cluster.create_topic(&format!("topic-{number}")).await;
        }
    };
    timeout(DEADLINE, tidy).await.expect("old snapshots are removed behind a new one");
    // One with an empty disk begins from the snapshot, and has all of it.
    let second = cluster.controller(1);
    let status = cluster.standby(1).await;
    assert_eq!(status.topics, number);

    let request = FetchRequest { cluster: None, storage: None, from: Position::default(), chunk: None };
    let answer = cluster.client.request("dmq.metadata.fetch.1", request.encode()).await.unwrap();
    let answer = FetchAnswer::decode(&answer.payload).unwrap();
    assert!(answer.snapshot.is_some(), "what came before is gone from its log: {answer:?}");
    let request = FetchRequest { from: answer.snapshot.unwrap(), ..request };
    let answer = cluster.client.request("dmq.metadata.fetch.1", request.encode()).await.unwrap();
    let answer = FetchAnswer::decode(&answer.payload).unwrap();
    assert_eq!((answer.error, answer.position), (None, answer.head));

    // And it can carry on alone.
    first.kill().await;
    cluster.active(1).await;
    cluster.create_topic("last").await;
    second.stop().await;
    node.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_only_a_storage_node_has_is_restored_from_it() {
    let mut cluster = Cluster::new(false).await;
    let controller = cluster.controller(0);
    let founded = cluster.active(0).await;
    let node = cluster.storage(0);
    cluster.active_nodes(1).await;
    let created = cluster.create_topic("orders").await;
    controller.kill().await;
    cluster.nats.kill();
    cluster.nats.wipe_store();
    cluster.nats.restart();

    let fresh = cluster.controller_in(1, &cluster.path("fresh"));
    let halted = cluster
        .status("the fresh controller is halted", |status| {
            status.metadata_services.iter().any(|service| service.state == ControllerRole::Halted)
        })
        .await;
    assert!(!halted.healthy);
    let plan = cluster.admin.plan_restore().await.unwrap();
    assert!(plan.source.version >= created.version, "{plan:?}");
    assert_eq!(plan.cluster_id, founded.cluster_id.unwrap());
    cluster.admin.restore(&plan).await.unwrap();
    let active = cluster.active(1).await;
    assert_eq!((active.cluster_id, active.topics), (founded.cluster_id, 1));
    cluster.active_nodes(1).await;
    fresh.stop().await;
    node.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_services_json_moves_the_subjects_without_a_restart() {
    let cluster = Cluster::new(false).await;
    let controller = cluster.controller(0);
    cluster.active(0).await;
    let text = r#"{
        "subjects": { "admin": "ops.admin" },
        "metadataServices": [ { "id": 0, "subjects": { "fetch": "ops.fetch" }, "pairedStorageServiceIds": [0] } ],
        "storageServices": [ { "id": 0, "subjects": { "heartbeat": "ops.beat" } } ]
    }"#;
    cluster.services.send_replace(Arc::new(Services::parse(text).unwrap()));
    let moved = Cluster { admin: Admin::new(cluster.client.clone(), "ops.admin"), ..cluster };
    moved.active(0).await;
    let ask = async |subject: &'static str| moved.client.request(subject, "{}".into()).await;
    // What it says of a request that cannot be read shows that it listens there. The three move one after another.
    let settled = async {
        for (subject, is_served) in [("ops.fetch", true), ("ops.beat", true), ("dmq.metadata.fetch.0", false)] {
            while ask(subject).await.is_ok_and(|answer| answer.payload.starts_with(br#"{"error""#)) != is_served {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    timeout(DEADLINE, settled).await.expect("it listens where the new file says, and nowhere else");
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_services_json_cannot_move_the_history_and_the_status_says_so() {
    let cluster = Cluster::new(false).await;
    let controller = cluster.controller(0);
    cluster.active(0).await;
    let moves = r#"{ "subjects": { "log": "ops.log" } }"#;
    cluster.services.send_replace(Arc::new(Services::parse(moves).unwrap()));
    let says = |status: &ClusterStatus| status.problems.iter().any(|problem| problem.contains("ops.log"));
    cluster.status("it is said", says).await;
    let node = cluster.storage(0);
    cluster.active_nodes(1).await;
    let created = cluster.create_topic("orders").await;
    assert_eq!((created.applied, created.active), (1, 1), "it goes on under the subject of before");
    cluster.services.send_replace(Arc::new(Services::default()));
    cluster.status("it is taken back", |status| status.healthy).await;
    controller.stop().await;
    node.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn controllers_come_back_by_themselves_after_nats_was_away() {
    let mut cluster = Cluster::new(false).await;
    let (first, second) = (cluster.controller(0), cluster.controller(1));
    let before = cluster.status("a controller is active", |status| status.controller.is_some()).await;
    cluster.nats.kill();
    cluster.nats.restart();
    let after = cluster.status("a controller is active again", |status| status.version > before.version).await;
    assert_eq!(after.cluster_id, before.cluster_id);
    for controller in [first, second] {
        controller.stop().await;
    }
}
