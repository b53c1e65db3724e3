//! A storage node as a whole, on a real nats-server and a real disk, before a controller that the test plays.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Message, Subscriber};
use bytes::Bytes;
use dmq::config::Services;
use dmq::metadata::{Entry, History, NodeState, Record, encode_change};
use dmq::process::ProcessError;
use dmq::storage::core::Settings;
use dmq::storage::{Data, Options, RecordSettings, Subjects, run_until};
use dmq::types::*;
use dmq::wire::admin::{NodeRegister, NodeRegistered};
use dmq::wire::*;
use futures::StreamExt;
use support::nats::NatsServer;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(10);
const CLUSTER: ClusterId = ClusterId(uuid::Uuid::from_u128(1));
const NODE: StorageId = StorageId(4);

struct Running {
    shutdown: mpsc::Sender<()>,
    task: JoinHandle<Result<(), ProcessError>>,
}

impl Running {
    async fn ended(self) -> Result<(), ProcessError> {
        timeout(DEADLINE, self.task).await.expect("it ends in time").expect("it does not panic")
    }
}

fn options(nats: &NatsServer, directory: &Path) -> Options {
    let services = Services::default_with("dmq").expect("the default prefix is a good one");
    Options {
        data: Data::Directory(directory.to_owned()),
        id: None,
        rack: None,
        settings: Settings { heartbeat_interval: Duration::from_millis(100), ..Settings::default() },
        nats: dmq::config::NatsSettings { url: Some(nats.url()), ..Default::default() },
        records: RecordSettings::default(),
        connect_timeout: Duration::from_secs(5),
        // The sender may go: these subjects never change.
        subjects: watch::channel(Arc::new(services) as Arc<dyn Subjects>).1,
    }
}

fn start(nats: &NatsServer, directory: &Path) -> Running {
    let (shutdown, told) = mpsc::channel(2);
    Running { shutdown, task: tokio::spawn(run_until(options(nats, directory), told)) }
}

/// A controller, as far as a node sees one.
struct Controller {
    client: Client,
    history: History,
    messages: Vec<(Version, Bytes)>,
    registers: Subscriber,
    heartbeats: Subscriber,
    acks: Subscriber,
    fetches: Subscriber,
}

async fn next(subscriber: &mut Subscriber) -> Message {
    timeout(DEADLINE, subscriber.next()).await.expect("a message in time").expect("the subscription stands")
}

impl Controller {
    async fn new(nats: &NatsServer) -> Self {
        let client = nats.connect().await;
        let on = async |subject: &'static str| client.subscribe(subject).await.expect("subscribe");
        let mut controller = Self {
            registers: on("dmq.admin.node.register").await,
            heartbeats: on("dmq.heartbeat.*").await,
            acks: on("dmq.metadata.ack.*").await,
            fetches: on("dmq.metadata.fetch.0").await,
            history: History::new(),
            messages: Vec::new(),
            client,
        };
        dmq::bus::raw::round_trip(&controller.client, DEADLINE).await.expect("a round trip");
        let id = uuid::Uuid::from_u128(7);
        let (directory, incarnation) = (DirectoryId(id), IncarnationId(id));
        let elected = Record::ControllerElected { controller: ControllerId(0), directory, incarnation };
        controller.write(1, vec![Record::ClusterFounded { cluster: CLUSTER }, elected]);
        controller
    }

    fn write(&mut self, epoch: u64, records: Vec<Record>) -> Position {
        let entry = Entry {
            cluster: CLUSTER,
            controller_epoch: ControllerEpoch(epoch),
            previous: self.history.position(),
            committed_at: WallTime(0),
            cause: "a test".into(),
            request: None,
            records,
        };
        let message = encode_change(&entry, 1 << 20).expect("it fits").remove(0);
        let version = self.history.seen().next();
        self.history.offer(version, &message).expect("it applies");
        self.messages.push((version, message));
        self.history.position()
    }

    fn entries(&self, after: Version) -> Vec<PushEntry> {
        let newer = self.messages.iter().filter(|(version, _)| *version > after);
        let raw = |bytes: &Bytes| serde_json::value::RawValue::from_string(String::from_utf8_lossy(bytes).into_owned());
        newer.map(|(version, bytes)| PushEntry { version: *version, entry: raw(bytes).expect("JSON") }).collect()
    }

    async fn reply(&self, to: &Message, body: Bytes) {
        self.client.publish(to.reply.clone().expect("a request"), body).await.expect("publish");
    }

    /// Registers the node, pairs it, and makes it active.
    async fn register(&mut self) -> NodeRegister {
        let message = next(&mut self.registers).await;
        let request: NodeRegister = admin::decode(&message.payload).expect("a registration");
        let (storage, directory, incarnation) = (NODE, request.directory, request.incarnation);
        let registered = self.write(1, vec![Record::StorageRegistered { storage, directory, incarnation, rack: None }]);
        let node_epoch = NodeEpoch(registered.version.0);
        self.write(1, vec![Record::PairingChanged { storage, controller: Some(ControllerId(0)) }]);
        self.write(1, vec![Record::StorageStateChanged { storage, node_epoch, state: NodeState::Active }]);
        let (cluster, version) = (CLUSTER, registered.version);
        let body = NodeRegistered { cluster, storage, node_epoch, pairing: None, version };
        self.reply(&message, admin::encode(&body).into()).await;
        request
    }

    /// Answers heartbeats until one fits.
    async fn heartbeat(&mut self, granted: bool, fits: impl Fn(&Heartbeat) -> bool) -> Heartbeat {
        loop {
            let message = next(&mut self.heartbeats).await;
            let heartbeat = Heartbeat::decode(&message.payload).expect("a heartbeat");
            let node = &self.history.image().expect("founded").storage[&NODE];
            let answer = HeartbeatAnswer {
                cluster: CLUSTER,
                controller: ControllerId(0),
                controller_epoch: ControllerEpoch(1),
                position: self.history.position(),
                incarnation: heartbeat.incarnation,
                sequence: heartbeat.sequence,
                node_epoch: node.epoch,
                state: node.state,
                pairing: PairingField { controller: node.pairing, epoch: node.pairing_epoch },
                lease_ms: 1000,
                shutdown_granted: granted,
                drain_impossible: false,
                error: None,
            };
            self.reply(&message, answer.encode()).await;
            if fits(&heartbeat) {
                return heartbeat;
            }
        }
    }

    async fn serve_fetch(&mut self) -> FetchRequest {
        let message = next(&mut self.fetches).await;
        let request = FetchRequest::decode(&message.payload).expect("a fetch");
        let answer = FetchAnswer {
            cluster: CLUSTER,
            controller: ControllerId(0),
            controller_epoch: ControllerEpoch(1),
            head: self.history.position(),
            position: self.history.position(),
            entries: self.entries(request.from.version),
            snapshot: None,
            error: None,
        };
        self.reply(&message, answer.encode()).await;
        request
    }

    async fn push(&self, base: Position) {
        let push = Push {
            cluster: CLUSTER,
            controller: ControllerId(0),
            controller_epoch: ControllerEpoch(1),
            storage: NODE,
            pairing_epoch: self.history.image().expect("founded").storage[&NODE].pairing_epoch,
            base,
            position: self.history.position(),
            entries: self.entries(base.version),
        };
        let (subject, reply) = (format!("dmq.metadata.push.{NODE}"), format!("dmq.metadata.ack.{NODE}"));
        self.client.publish_with_reply(subject, reply, push.encode()).await.expect("publish");
    }

    async fn ack(&mut self, of: AckOutcome) -> PushAck {
        loop {
            let ack = PushAck::decode(&next(&mut self.acks).await.payload).expect("an acknowledgement");
            if ack.outcome == of {
                return ack;
            }
        }
    }

    /// A node that has joined and has everything.
    async fn joined(&mut self) {
        self.register().await;
        self.heartbeat(false, |heartbeat| heartbeat.wanted == WantedState::Running).await;
        let request = self.serve_fetch().await;
        assert_eq!(request.from, Position::default());
        assert_eq!(self.ack(AckOutcome::Applied).await.position, self.history.position());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_joins_follows_drains_and_comes_back_with_what_it_had() {
    let (nats, directory) = (NatsServer::start(), tempfile::tempdir().unwrap());
    let mut controller = Controller::new(&nats).await;
    let node = start(&nats, directory.path());
    controller.joined().await;

    let base = controller.history.position();
    let head = controller.write(1, vec![Record::NoOp {}]);
    controller.push(base).await;
    assert_eq!(controller.ack(AckOutcome::Applied).await.position, head);
    let heartbeat = controller.heartbeat(false, |heartbeat| heartbeat.position == head).await;
    assert!(heartbeat.health.disk_total_bytes > 0 && heartbeat.health.memory_bytes > 0);

    node.shutdown.send(()).await.unwrap();
    controller.heartbeat(true, |heartbeat| heartbeat.wanted == WantedState::Draining).await;
    node.ended().await.expect("a clean end");

    let again = start(&nats, directory.path());
    let request = controller.register().await;
    assert_eq!((request.cluster, request.storage, request.position), (Some(CLUSTER), Some(NODE), head));
    let last = controller.history.position();
    controller.heartbeat(false, |heartbeat| heartbeat.wanted == WantedState::Running).await;
    controller.push(head).await;
    assert_eq!(controller.ack(AckOutcome::Applied).await.position, last);
    again.shutdown.send(()).await.unwrap();
    controller.heartbeat(true, |heartbeat| heartbeat.wanted == WantedState::Draining).await;
    again.ended().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_serves_what_its_disk_has_to_whoever_rebuilds_the_history() {
    let (nats, directory) = (NatsServer::start(), tempfile::tempdir().unwrap());
    let mut controller = Controller::new(&nats).await;
    let node = start(&nats, directory.path());
    controller.joined().await;
    let request = FetchRequest { cluster: Some(CLUSTER), storage: None, from: Position::default(), chunk: None };
    let asked = controller.client.request(format!("dmq.metadata.push.{NODE}"), request.encode());
    let answer = FetchAnswer::decode(&timeout(DEADLINE, asked).await.unwrap().unwrap().payload).unwrap();
    assert_eq!((answer.position, answer.entries.len()), (controller.history.position(), controller.messages.len()));
    let same = answer.entries.iter().zip(&controller.messages);
    assert!(
        same.into_iter().all(|(entry, (version, bytes))| {
            entry.version == *version && entry.entry.get().as_bytes() == &bytes[..]
        })
    );
    node.task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reconnect_a_node_is_heard_on_its_new_connection_and_pushed_to() {
    let (mut nats, directory) = (NatsServer::start(), tempfile::tempdir().unwrap());
    let mut controller = Controller::new(&nats).await;
    let node = start(&nats, directory.path());
    controller.joined().await;
    let before = controller.heartbeat(false, |_| true).await;
    nats.restart();
    let after = controller.heartbeat(false, |heartbeat| heartbeat.connection != before.connection).await;
    assert_eq!(after.incarnation, before.incarnation);
    let base = controller.history.position();
    let head = controller.write(1, vec![Record::NoOp {}]);
    controller.push(base).await;
    assert_eq!(controller.ack(AckOutcome::Applied).await.position, head);
    node.task.abort();
}

#[tokio::test]
async fn a_server_that_is_not_there_ends_the_start_with_its_address() {
    let (mut nats, directory) = (NatsServer::start(), tempfile::tempdir().unwrap());
    nats.kill();
    let options = Options { connect_timeout: Duration::from_secs(1), ..options(&nats, directory.path()) };
    let (_shutdown, told) = mpsc::channel(1);
    let error = run_until(options, told).await.expect_err("nobody is there").to_string();
    assert!(error.contains(&nats.url()), "{error}");
}
