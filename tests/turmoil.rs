//! Everything fails in turn and at once, at random, while records are written and read: storage nodes, controllers and the NATS
//! server are killed, frozen, and started again. What was acknowledged then is read back once and in order, the replicas are the
//! same to the byte, and the cluster is healthy.
//!
//! `DMQ_TEST_SEED` repeats the faults of a run, `DMQ_TEST_SECONDS` makes it longer.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dmq::client::{
    AutoOffsetReset, Consumer, ConsumerConfig, ConsumerRecord, Delivery, Leaders, Producer, ProducerConfig,
    ProducerRecord, SeekTo,
};
use dmq::config::Services;
use dmq::log::TopicPartition;
use dmq::types::{Offset, PartitionId, TopicName};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::cluster::{Cluster, PATIENCE, Process};

const TOPIC: &str = "turmoil";
const PARTITIONS: u32 = 6;
const CONTROLLERS: u32 = 3;
const NODES: u32 = 4;
const PRODUCERS: u64 = 3;
const KEYS: u64 = 20;
/// How many records one producer sends in a second, at most: what is compared at the end has to be read first.
const RATE: u32 = 400;
/// How many faults there are at once, at most.
const AT_ONCE: usize = 3;

fn topic() -> TopicName {
    TopicName::new(TOPIC).unwrap()
}

fn partitions() -> impl Iterator<Item = TopicPartition> {
    (0..PARTITIONS).map(|partition| TopicPartition { topic: topic(), partition })
}

/// Which record of its key a record is.
fn number(record: &ConsumerRecord) -> u64 {
    std::str::from_utf8(record.value.as_ref().unwrap()).unwrap().trim_end().parse().unwrap()
}

/// A record that was acknowledged.
struct Stored {
    key: String,
    number: u64,
    partition: PartitionId,
    offset: Offset,
}

/// Sends numbered records of its own keys until told to stop. What was acknowledged; all has to be.
async fn produce(
    client: async_nats::Client,
    name: u64,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
) -> Vec<Stored> {
    let config = ProducerConfig { batch_size: 16 << 10, ..ProducerConfig::default() };
    let producer = Producer::new(client, Services::default(), config).await.unwrap();
    let (sender, mut deliveries) = tokio::sync::mpsc::channel::<(String, u64, Delivery)>(100_000);
    let hearing = tokio::spawn(async move {
        let mut stored = Vec::new();
        while let Some((key, number, delivery)) = deliveries.recv().await {
            let metadata = delivery.await.unwrap_or_else(|error| panic!("{key} number {number}: {error}"));
            let (partition, offset) = (metadata.partition, metadata.offset.unwrap());
            stored.push(Stored { key, number, partition, offset });
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        stored
    });
    let mut pace = tokio::time::interval(Duration::from_secs(1) / RATE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        pace.tick().await;
        let (key, number) = (format!("{name}/{}", sent % KEYS), sent / KEYS);
        // Some of it is large, so that segments are closed meanwhile.
        let value = format!("{number:<width$}", width = if sent % 7 == 0 { 4_000 } else { 100 });
        let record = ProducerRecord::new(topic(), value).key(key.clone());
        let delivery = producer.send(record).await.unwrap();
        sender.send((key, number, delivery)).await.unwrap();
        sent += 1;
    }
    producer.close().await;
    drop(sender);
    hearing.await.unwrap()
}

type Ends = BTreeMap<PartitionId, Offset>;

/// Reads along from the beginning to the ends that it is told of. Each record's partition, offset, key and number, in the order in
/// which they came.
async fn read_along(
    client: async_nats::Client,
    mut ends: tokio::sync::watch::Receiver<Option<Ends>>,
) -> BTreeMap<PartitionId, Vec<(Offset, String, u64)>> {
    let config = ConsumerConfig { auto_offset_reset: AutoOffsetReset::Error, ..ConsumerConfig::default() };
    let mut consumer = Consumer::new(client, Services::default(), config);
    consumer.assign_from(partitions().map(|partition| (partition, SeekTo::Beginning)));
    let mut seen: BTreeMap<_, Vec<_>> = (0..PARTITIONS).map(|partition| (partition, Vec::new())).collect();
    let mut knows_ends = false;
    loop {
        tokio::select! {
            told = ends.changed(), if !knows_ends => {
                told.unwrap();
                for (partition, end) in ends.borrow_and_update().clone().unwrap() {
                    consumer.stop_at(&TopicPartition { topic: topic(), partition }, end).unwrap();
                }
                knows_ends = true;
            }
            record = consumer.recv() => match record {
                Some(record) => {
                    let record = record.unwrap_or_else(|error| panic!("who reads along: {error}"));
                    let key = String::from_utf8(record.key.clone().unwrap().to_vec()).unwrap();
                    seen.get_mut(&record.partition).unwrap().push((record.offset, key, number(&record)));
                }
                None => return seen,
            }
        }
    }
}

/// Reads as a group that commits now and then and begins anew there, until told to stop. The last commit that was acknowledged, and
/// how far was read.
async fn read_in_turns(client: async_nats::Client, stop: Arc<AtomicBool>) -> (Ends, Ends) {
    let config = || ConsumerConfig {
        group: Some("readers".into()),
        auto_offset_reset: AutoOffsetReset::Earliest,
        ..ConsumerConfig::default()
    };
    let (mut committed, mut read) = (Ends::new(), Ends::new());
    while !stop.load(Ordering::Relaxed) {
        let mut consumer = Consumer::new(client.clone(), Services::default(), config());
        // Nobody may have been there to ask for a while.
        let Ok(()) = consumer.assign(partitions()).await else { continue };
        for (partition, least) in &committed {
            let begin = consumer.position(&TopicPartition { topic: topic(), partition: *partition });
            assert!(begin >= Some(*least), "partition {partition}: {begin:?}, and {least} was committed");
        }
        let (mut begun, turn) = (BTreeSet::new(), Instant::now());
        while turn.elapsed() < Duration::from_secs(2) {
            let Ok(record) = tokio::time::timeout(Duration::from_millis(200), consumer.recv()).await else { continue };
            let record = record.unwrap().unwrap_or_else(|error| panic!("who reads in turns: {error}"));
            let next = Offset(record.offset.0 + 1);
            let before = read.entry(record.partition).or_default();
            if begun.insert(record.partition) {
                assert!(record.offset <= *before, "partition {}: {before} was not read yet", record.partition);
            }
            *before = next.max(*before);
        }
        if consumer.commit().await.is_ok() {
            for partition in partitions() {
                committed.extend(consumer.position(&partition).map(|position| (partition.partition, position)));
            }
        }
    }
    (committed, read)
}

/// What is broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Target {
    Nats,
    Controller(usize),
    Node(usize),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    Kill,
    Freeze,
    /// SIGTERM: it hands over what it leads, and ends.
    Stop,
}

fn process(cluster: &mut Cluster, target: Target) -> Option<&mut Process> {
    match target {
        Target::Nats => None,
        Target::Controller(id) => Some(&mut cluster.controllers[id]),
        Target::Node(id) => Some(&mut cluster.storage[id]),
    }
}

fn break_it(cluster: &mut Cluster, target: Target, fault: Fault) {
    match (process(cluster, target), fault) {
        (Some(process), Fault::Kill) => process.kill(),
        (Some(process), Fault::Freeze) => process.pause(),
        (Some(process), Fault::Stop) => process.terminate(),
        (None, Fault::Kill | Fault::Stop) => cluster.nats.kill(),
        (None, Fault::Freeze) => cluster.nats.pause(),
    }
}

fn mend(cluster: &mut Cluster, target: Target, fault: Fault) {
    match (target, fault) {
        (Target::Nats, Fault::Freeze) => cluster.nats.resume(),
        (Target::Nats, Fault::Kill | Fault::Stop) => cluster.nats.restart(),
        (Target::Controller(_) | Target::Node(_), Fault::Freeze) => {
            process(cluster, target).expect("a process").resume();
        }
        (Target::Controller(_) | Target::Node(_), Fault::Kill | Fault::Stop) => {
            // One that still hands over is not waited for.
            process(cluster, target).expect("a process").kill();
            match target {
                Target::Controller(id) => cluster.controllers[id] = cluster.controller(id as u32),
                Target::Node(id) => cluster.storage[id] = cluster.node(id as u32),
                Target::Nats => {}
            }
        }
    }
}

/// Faults at random for so long, of which every one is mended after a while.
fn rage(cluster: &mut Cluster, seed: u64, span: Duration) {
    let (mut rng, began) = (StdRng::seed_from_u64(seed), Instant::now());
    let mut broken: BTreeMap<Target, (Fault, Duration)> = BTreeMap::new();
    let mut next = Duration::ZERO;
    loop {
        let now = began.elapsed();
        let due: Vec<_> = broken.iter().filter(|(_, (_, until))| *until <= now || now > span).collect();
        let due: Vec<_> = due.into_iter().map(|(target, (fault, _))| (*target, *fault)).collect();
        for (target, fault) in due {
            eprintln!("{:6.2}s {target:?} is mended", now.as_secs_f64());
            mend(cluster, target, fault);
            broken.remove(&target);
        }
        if now > span {
            return;
        }
        if now >= next {
            let target = match rng.random_range(0..10) {
                0 => Target::Nats,
                1..=3 => Target::Controller(rng.random_range(0..CONTROLLERS as usize)),
                _ => Target::Node(rng.random_range(0..NODES as usize)),
            };
            let fault = match rng.random_range(0..5) {
                0 | 1 => Fault::Kill,
                2 | 3 => Fault::Freeze,
                _ => Fault::Stop,
            };
            // Some outlast a session and a lease, most do not.
            let lasts = Duration::from_millis(match rng.random_range(0..4) {
                0 => rng.random_range(3_000..6_000),
                _ => rng.random_range(0..2_000),
            });
            next = now + Duration::from_millis(rng.random_range(0..2_500));
            if broken.len() < AT_ONCE && !broken.contains_key(&target) {
                eprintln!("{:6.2}s {target:?}: {fault:?} for {:.2} s", now.as_secs_f64(), lasts.as_secs_f64());
                break_it(cluster, target, fault);
                broken.insert(target, (fault, now + lasts));
            }
        }
        let until = broken.values().map(|(_, until)| *until).chain([next, span]).min().unwrap_or(span);
        // Time itself is what is waited for.
        std::thread::sleep(until.saturating_sub(began.elapsed()) + Duration::from_millis(1));
        let whole: Vec<_> = (0..CONTROLLERS as usize).map(Target::Controller).collect();
        let whole: Vec<_> = whole.into_iter().chain((0..NODES as usize).map(Target::Node)).collect();
        for target in whole.into_iter().filter(|target| !broken.contains_key(target)) {
            let ended = process(cluster, target).is_some_and(Process::has_ended);
            assert!(!ended, "{target:?} ended by itself\n{}", cluster.logs());
        }
    }
}

/// The bytes of each replica's records, by partition and node.
fn replicas(cluster: &Cluster) -> BTreeMap<PartitionId, BTreeMap<u32, Vec<u8>>> {
    let mut found: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for node in 0..NODES {
        for partition in 0..PARTITIONS {
            let folder = cluster.folder.path().join(format!("storage-{node}/partitions/{TOPIC}-{partition}"));
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            let mut segments: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
            segments.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
            segments.sort();
            let bytes = segments.iter().flat_map(|path| std::fs::read(path).unwrap()).collect();
            found.entry(partition).or_default().insert(node, bytes);
        }
    }
    found
}

async fn ends(leaders: &Leaders) -> Ends {
    let mut ends = Ends::new();
    for partition in 0..PARTITIONS {
        let stands = leaders.offsets(&topic(), partition).await.unwrap();
        assert_eq!(stands.high_watermark, stands.log_end_offset, "nobody writes, and all are in sync");
        ends.insert(partition, stands.high_watermark);
    }
    ends
}

#[test]
fn whatever_fails_what_was_acknowledged_is_there_once_and_in_order_and_all_replicas_are_alike() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a whole number"));
    let seed = number("DMQ_TEST_SEED").unwrap_or_else(rand::random);
    let span = Duration::from_secs(number("DMQ_TEST_SECONDS").unwrap_or(40));
    eprintln!("DMQ_TEST_SEED={seed}");
    // A process may be started while there is no NATS.
    let mut cluster = Cluster::start_with(CONTROLLERS, NODES, &[("DMQ_START_TIMEOUT_MS", "60000")]);
    cluster.await_healthy();
    let flags = "--replication-factor 3 --config min.insync.replicas=2 --config segment.bytes=1048576";
    cluster.run(&format!("topic create {TOPIC} --partitions {PARTITIONS} {flags}")).unwrap();

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (tell_ends, told_ends) = tokio::sync::watch::channel(None);
    let client = || runtime.block_on(cluster.nats.connect());
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|name| runtime.spawn(produce(client(), name, Arc::clone(&stop), Arc::clone(&acknowledged))))
        .collect();
    let along = runtime.spawn(read_along(client(), told_ends));
    let in_turns = runtime.spawn(read_in_turns(client(), Arc::clone(&stop)));
    let leaders = Leaders::new(client(), Services::default());

    rage(&mut cluster, seed, span);

    let before = acknowledged.load(Ordering::Relaxed);
    cluster.await_healthy();
    cluster.await_that("records are acknowledged again", || {
        let more = acknowledged.load(Ordering::Relaxed) - before;
        if more > 100 { Ok(()) } else { Err(format!("{before} were, and {more} since")) }
    });
    stop.store(true, Ordering::Relaxed);
    let patient = |what: &str| format!("{what} within {PATIENCE:?}\n{}", cluster.logs());
    let in_time = |task| async { tokio::time::timeout(PATIENCE, task).await };
    let mut stored = Vec::new();
    for producer in producers {
        stored.extend(runtime.block_on(in_time(producer)).unwrap_or_else(|_| panic!("{}", patient("stored"))).unwrap());
    }
    let (committed, in_turns) =
        runtime.block_on(async { tokio::time::timeout(PATIENCE, in_turns).await }).unwrap().unwrap();
    cluster.await_healthy();
    let ends = runtime.block_on(ends(&leaders));
    tell_ends.send(Some(ends.clone())).unwrap();
    let seen = runtime.block_on(async { tokio::time::timeout(PATIENCE, along).await });
    let seen = seen.unwrap_or_else(|_| panic!("{}", patient("read along"))).unwrap();

    eprintln!("{} records were acknowledged", stored.len());
    assert!(stored.len() > 1_000, "{}", stored.len());
    // Once, in the order of each key, and none that was not sent.
    let mut of_key: BTreeMap<&str, u64> = BTreeMap::new();
    let mut at: BTreeMap<(PartitionId, Offset), (&str, u64)> = BTreeMap::new();
    for (partition, records) in &seen {
        assert!(records.is_sorted_by(|a, b| a.0 < b.0), "partition {partition} was read in another order, or twice");
        assert_eq!(records.len() as i64, ends[partition].0, "partition {partition} was read without a gap");
        for (offset, key, number) in records {
            let next = of_key.entry(key).or_default();
            assert_eq!(number, next, "{key} at {partition}/{offset}");
            *next += 1;
            at.insert((*partition, *offset), (key, *number));
        }
    }
    for Stored { key, number, partition, offset } in &stored {
        assert_eq!(at.remove(&(*partition, *offset)), Some((&**key, *number)), "at {partition}/{offset}");
    }
    assert!(at.is_empty(), "all that is there was acknowledged: {at:?}");
    for (partition, offset) in &committed {
        assert!(in_turns.get(partition).copied().unwrap_or_default() >= *offset, "{committed:?} {in_turns:?}");
    }
    let group = runtime.block_on(leaders.committed("readers", None)).unwrap();
    for (partition, least) in &committed {
        let known = group.offsets.iter().find(|offset| offset.partition == *partition).and_then(|known| known.offset);
        assert!(known >= Some(*least), "partition {partition}: {known:?}, and {least} was committed");
    }

    for (partition, replicas) in replicas(&cluster) {
        assert_eq!(replicas.len(), 3, "partition {partition} has {:?}", replicas.keys());
        let mut replicas = replicas.into_iter();
        let (first, bytes) = replicas.next().unwrap();
        for (node, other) in replicas {
            assert!(bytes == other, "partition {partition} differs between the nodes {first} and {node}");
        }
    }
    let logs = cluster.logs();
    assert!(!logs.contains("panicked"), "{logs}");
}
