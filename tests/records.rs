//! Records through the clients' library, on real processes: what is acknowledged is read back once and in order, whatever the
//! codec, and whoever of the leaders dies meanwhile.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dmq::client::{
    AutoOffsetReset, ConsumeError, Consumer, ConsumerConfig, ConsumerRecord, Delivery, Leaders, ProduceError, Producer,
    ProducerConfig, ProducerRecord, SeekTo,
};
use dmq::config::Services;
use dmq::log::TopicPartition;
use dmq::log::batch::{BatchHeader, Compression};
use dmq::types::{Offset, PartitionId, TopicName, partition_of_key};
use dmq::wire::data::{DataFetch, FetchedHead, Leads};
use futures::{FutureExt, StreamExt};
use support::cluster::Cluster;

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

async fn producer(cluster: &Cluster, config: ProducerConfig) -> Producer {
    Producer::new(cluster.nats.connect().await, Services::default(), config).await.unwrap()
}

async fn consumer(cluster: &Cluster, config: ConsumerConfig) -> Consumer {
    Consumer::new(cluster.nats.connect().await, Services::default(), config)
}

/// Everything that a topic holds now, by partition.
async fn read_all(cluster: &Cluster, name: &TopicName) -> BTreeMap<PartitionId, Vec<ConsumerRecord>> {
    let leaders = Leaders::new(cluster.nats.connect().await, Services::default());
    let mut consumer = consumer(cluster, ConsumerConfig::default()).await;
    let partitions = consumer.partitions(name).await.unwrap();
    consumer.assign_from(partitions.iter().map(|partition| (partition.clone(), SeekTo::Beginning)));
    for partition in &partitions {
        let stands = leaders.offsets(name, partition.partition).await.unwrap();
        consumer.stop_at(partition, stands.high_watermark).unwrap();
    }
    let mut read: BTreeMap<_, Vec<_>> = partitions.iter().map(|partition| (partition.partition, Vec::new())).collect();
    while let Some(record) = consumer.recv().await {
        let record = record.unwrap();
        read.get_mut(&record.partition).unwrap().push(record);
    }
    read
}

#[tokio::test(flavor = "multi_thread")]
async fn records_come_back_as_they_were_sent_in_every_codec_and_keys_keep_to_their_partition() {
    const COUNT: usize = 1_000;
    let cluster = Cluster::start(1, 3);
    cluster.await_healthy();
    for compression in Compression::ALL {
        let name = topic(&format!("codec.{compression}"));
        // The records' timestamps are of years ago.
        let flags = "--partitions 3 --replication-factor 3 --config retention.ms=-1";
        cluster.run(&format!("topic create {name} {flags}")).unwrap();
        // Small batches, so that there are many.
        let config = ProducerConfig { compression, batch_size: 4 << 10, ..ProducerConfig::default() };
        let producer = producer(&cluster, config).await;
        let mut sent = Vec::new();
        for number in 0..COUNT {
            let mut record = ProducerRecord::new(name.clone(), format!("value {number} ").repeat(number % 50))
                .timestamp(1_700_000_000_000 + number as i64)
                .header("number", number.to_string())
                .header("number", "again");
            if number % 3 > 0 {
                record = record.key(format!("key {}", number % 17));
            }
            if number % 11 == 0 {
                record.value = None;
            }
            let delivery = producer.send(record.clone()).await.unwrap();
            sent.push((record, delivery));
        }
        producer.flush().await;
        let mut wanted = BTreeMap::new();
        for (record, delivery) in sent {
            let stored = delivery.await.unwrap();
            if let Some(key) = &record.key {
                assert_eq!(stored.partition, partition_of_key(key, 3));
            }
            assert_eq!(wanted.insert((stored.partition, stored.offset.unwrap()), record), None, "{stored:?}");
        }
        let read = read_all(&cluster, &name).await;
        assert_eq!(read.values().map(Vec::len).sum::<usize>(), COUNT);
        for (partition, records) in read {
            assert!(records.is_sorted_by(|a, b| a.offset < b.offset));
            let mut numbers = Vec::new();
            for record in records {
                let sent = wanted.remove(&(partition, record.offset)).expect("a record that was acknowledged");
                assert_eq!((&record.key, &record.value, &record.headers), (&sent.key, &sent.value, &sent.headers));
                assert_eq!(Some(record.timestamp), sent.timestamp);
                numbers.push(record.timestamp);
            }
            assert!(numbers.is_sorted(), "{compression}: partition {partition} is not in the order of sending");
        }
        assert!(wanted.is_empty());
        producer.close().await;
    }
}

/// Sends numbered records to every partition in turn, as fast as they are taken, until told to stop. Returns what was acknowledged, as
/// (partition, offset, number), and the numbers that were not.
async fn send_until(
    producer: Producer,
    name: TopicName,
    partitions: u32,
    stop: tokio::sync::watch::Receiver<bool>,
    acknowledged: tokio::sync::watch::Sender<u64>,
) -> (Vec<(PartitionId, Offset, u64)>, Vec<(u64, ProduceError)>) {
    let (sender, mut deliveries) = tokio::sync::mpsc::channel::<(u64, Delivery)>(10_000);
    let hearing = tokio::spawn(async move {
        let (mut stored, mut lost) = (Vec::new(), Vec::new());
        while let Some((number, delivery)) = deliveries.recv().await {
            match delivery.await {
                Ok(metadata) => stored.push((metadata.partition, metadata.offset.unwrap(), number)),
                Err(error) => lost.push((number, error)),
            }
            acknowledged.send_replace(stored.len() as u64);
        }
        (stored, lost)
    });
    let mut number = 0;
    while !*stop.borrow() {
        let partition = (number % u64::from(partitions)) as u32;
        let record = ProducerRecord::new(name.clone(), number.to_string()).partition(partition);
        let delivery = producer.send(record).await.unwrap();
        sender.send((number, delivery)).await.unwrap();
        number += 1;
    }
    producer.close().await;
    drop(sender);
    hearing.await.unwrap()
}

/// Every record is there once and in order, and each acknowledged one at its offset.
fn check(read: &BTreeMap<PartitionId, Vec<ConsumerRecord>>, stored: &[(PartitionId, Offset, u64)]) {
    let mut numbers = BTreeSet::new();
    for (partition, records) in read {
        let number = |record: &ConsumerRecord| -> u64 {
            std::str::from_utf8(record.value.as_ref().unwrap()).unwrap().parse().unwrap()
        };
        let of: Vec<u64> = records.iter().map(number).collect();
        assert!(of.is_sorted_by(|a, b| a < b), "partition {partition} is out of order, or holds a record twice");
        numbers.extend(of);
    }
    assert_eq!(numbers.len(), stored.len(), "every record was acknowledged, and none is there that was not sent");
    for (partition, offset, number) in stored {
        let records = &read[partition];
        let at = records.binary_search_by_key(offset, |record| record.offset).expect("an acknowledged offset");
        assert_eq!(records[at].value.as_deref(), Some(number.to_string().as_bytes()));
    }
}

async fn until_more(acknowledged: &mut tokio::sync::watch::Receiver<u64>, more: u64) {
    let wanted = *acknowledged.borrow() + more;
    let waiting = acknowledged.wait_for(|count| *count >= wanted);
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("records are acknowledged again").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_acknowledged_while_leaders_were_killed_is_read_back_once_and_in_order() {
    const PARTITIONS: u32 = 3;
    let mut cluster = Cluster::start(1, 3);
    cluster.await_healthy();
    let name = topic("failover");
    cluster
        .run(&format!(
            "topic create {name} --partitions {PARTITIONS} --replication-factor 3 --config min.insync.replicas=2"
        ))
        .unwrap();
    let config = ProducerConfig { batch_size: 2 << 10, ..ProducerConfig::default() };
    let producer = producer(&cluster, config).await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let (count, mut acknowledged) = tokio::sync::watch::channel(0);

    // Somebody reads along, and goes on through all of it.
    let mut follower = consumer(&cluster, ConsumerConfig::default()).await;
    follower.assign_from(
        (0..PARTITIONS).map(|partition| (TopicPartition { topic: name.clone(), partition }, SeekTo::Beginning)),
    );
    let (until, mut ends) = tokio::sync::mpsc::channel::<BTreeMap<PartitionId, Offset>>(1);
    let following = tokio::spawn(async move {
        let mut seen = Vec::new();
        loop {
            tokio::select! {
                Some(ends) = ends.recv() => {
                    for (partition, end) in ends {
                        let topic = topic("failover");
                        follower.stop_at(&TopicPartition { topic, partition }, end).unwrap();
                    }
                }
                record = follower.recv() => match record {
                    Some(record) => {
                        let record = record.unwrap();
                        seen.push((record.partition, record.offset));
                    }
                    None => return seen,
                }
            }
        }
    });

    let sending = tokio::spawn(send_until(producer, name.clone(), PARTITIONS, stopped, count));
    for node in 0..3 {
        until_more(&mut acknowledged, 3_000).await;
        cluster.storage[node].kill();
        until_more(&mut acknowledged, 3_000).await;
        cluster.storage[node] = cluster.node(node as u32);
        tokio::task::block_in_place(|| cluster.await_healthy());
    }
    stop.send(true).unwrap();
    let (stored, lost) = sending.await.unwrap();
    assert!(lost.is_empty(), "{lost:?}");
    let read = read_all(&cluster, &name).await;

    check(&read, &stored);
    let ends = read.iter().map(|(partition, records)| (*partition, Offset(records.last().unwrap().offset.0 + 1)));
    until.send(ends.collect()).await.unwrap();
    let seen = following.await.unwrap();
    for partition in 0..PARTITIONS {
        let of = |wanted: &[(PartitionId, Offset)]| -> Vec<Offset> {
            wanted.iter().filter(|(of, _)| *of == partition).map(|(_, offset)| *offset).collect()
        };
        let there: Vec<_> = read[&partition].iter().map(|record| (partition, record.offset)).collect();
        assert_eq!(of(&seen), of(&there), "who read along saw each record once, in order");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_acknowledged_while_nats_was_restarted_is_read_back_once_and_in_order() {
    let mut cluster = Cluster::start(1, 2);
    cluster.await_healthy();
    let name = topic("restart");
    cluster.run("topic create restart --partitions 2 --replication-factor 2").unwrap();
    let producer = producer(&cluster, ProducerConfig { batch_size: 2 << 10, ..ProducerConfig::default() }).await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let (count, mut acknowledged) = tokio::sync::watch::channel(0);
    let sending = tokio::spawn(send_until(producer, name.clone(), 2, stopped, count));
    for _ in 0..2 {
        until_more(&mut acknowledged, 2_000).await;
        tokio::task::block_in_place(|| cluster.nats.restart());
        until_more(&mut acknowledged, 2_000).await;
    }
    stop.send(true).unwrap();
    let (stored, lost) = sending.await.unwrap();
    assert!(lost.is_empty(), "{lost:?}");
    check(&read_all(&cluster, &name).await, &stored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_acknowledged_while_a_leader_or_nats_stood_still_is_read_back_once_and_in_order() {
    let cluster = Cluster::start(1, 3);
    cluster.await_healthy();
    let name = topic("frozen");
    cluster.run("topic create frozen --partitions 2 --replication-factor 3 --config min.insync.replicas=2").unwrap();
    let producer = producer(&cluster, ProducerConfig { batch_size: 2 << 10, ..ProducerConfig::default() }).await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let (count, mut acknowledged) = tokio::sync::watch::channel(0);
    let sending = tokio::spawn(send_until(producer, name.clone(), 2, stopped, count));

    until_more(&mut acknowledged, 2_000).await;
    let leader = || Ok::<_, String>(cluster.run("topic describe frozen")?["partitions"][0]["leader"].as_u64());
    let first = leader().unwrap().unwrap();
    cluster.storage[first as usize].pause();
    tokio::task::block_in_place(|| {
        cluster.await_that("another one leads", || match leader()? {
            Some(next) if next != first => Ok(()),
            found => Err(format!("{found:?}")),
        });
    });
    until_more(&mut acknowledged, 2_000).await;
    cluster.storage[first as usize].resume();
    tokio::task::block_in_place(|| cluster.await_healthy());

    let lapses = |node: u32| cluster.log_of(&format!("storage-{node}")).matches("may=false").count();
    let before = [0, 1, 2].map(lapses);
    cluster.nats.pause();
    tokio::task::block_in_place(|| {
        cluster.await_that("no node may lead", || match [0, 1, 2].map(lapses) {
            now if now.iter().zip(before).all(|(now, before)| *now > before) => Ok(()),
            now => Err(format!("{now:?}")),
        });
    });
    cluster.nats.resume();
    until_more(&mut acknowledged, 2_000).await;
    stop.send(true).unwrap();
    let (stored, lost) = sending.await.unwrap();
    assert!(lost.is_empty(), "{lost:?}");
    check(&read_all(&cluster, &name).await, &stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_whose_records_the_operating_system_may_lose_keeps_them_when_processes_die() {
    let mut cluster = Cluster::start(1, 3);
    cluster.await_healthy();
    let name = topic("relaxed");
    let flush = "--config flush=os-may-lose-acknowledged-records";
    cluster.run(&format!("topic create {name} --replication-factor 3 {flush}")).unwrap();
    write_numbers(&cluster, &name, 500).await;
    let described = cluster.run("topic describe relaxed").unwrap();
    let leader = described["partitions"][0]["leader"].as_u64().unwrap() as usize;
    cluster.storage[leader].kill();
    write_numbers(&cluster, &name, 500).await;
    cluster.storage[leader] = cluster.node(leader as u32);
    cluster.await_healthy();
    (0..3).for_each(|node| cluster.storage[node].kill());
    (0..3).for_each(|node| cluster.storage[node] = cluster.node(node as u32));
    cluster.await_healthy();
    let read = read_all(&cluster, &name).await.remove(&0).unwrap();
    let values: Vec<_> = read.iter().map(|record| record.value.clone().unwrap()).collect();
    let wanted: Vec<_> = (0..2).flat_map(|_| 0..500).map(|number| format!("{number:>100}")).collect();
    assert_eq!(values, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_while_a_topic_was_deleted_and_made_anew_has_the_new_ones_records() {
    // A node that stands still counts as active for long, so the new topic has a replica there.
    let mut cluster = Cluster::start_with(1, 2, &[("DMQ_SESSION_TIMEOUT_MS", "10000"), ("DMQ_ADMIN_WAIT_MS", "200")]);
    cluster.await_healthy();
    let name = topic("reborn");
    let create = "topic create reborn --replication-factor 2 --config min.insync.replicas=1";
    cluster.run(create).unwrap();
    write_numbers(&cluster, &name, 700).await;
    cluster.storage[1].pause();
    cluster.run("topic delete reborn").unwrap();
    cluster.run(create).unwrap();
    cluster.storage[1].kill();
    write_numbers(&cluster, &name, 300).await;
    cluster.storage[1] = cluster.node(1);
    cluster.await_healthy();
    // Whatever is read now, the one that was away has.
    cluster.storage[0].kill();
    let read = read_all(&cluster, &name).await.remove(&0).unwrap();
    let found: Vec<_> = read.iter().map(|record| (record.offset.0, record.value.clone().unwrap())).collect();
    let wanted: Vec<_> = (0..300).map(|number| (number, bytes::Bytes::from(format!("{number:>100}")))).collect();
    assert_eq!(found, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_waits_for_so_many_bytes_and_for_no_longer_than_it_says() {
    let cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    let name = topic("polled");
    cluster.run("topic create polled").unwrap();
    let client = cluster.nats.connect().await;
    let producer = producer(&cluster, ProducerConfig::default()).await;
    let fetch = |request: serde_json::Value| {
        let client = client.clone();
        let request = async_nats::Request::new().payload(request.to_string().into()).timeout(None);
        async move { client.send_request("dmq.data.fetch.0.polled", request).await }
    };
    let values = |answer: async_nats::Message| -> Vec<usize> {
        let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
        answer["records"].as_array().unwrap().iter().map(|record| record["value"].as_str().unwrap().len()).collect()
    };
    write_numbers(&cluster, &name, 1).await;
    // One record is not enough, and two are.
    let waiting = tokio::spawn(fetch(serde_json::json!({ "offset": 0, "minBytes": 1_000, "maxWaitMs": 30_000 })));
    let large = ProducerRecord::new(name.clone(), vec![b'x'; 1_000]);
    producer.send(large).await.unwrap().await.unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("long before its time is over");
    assert_eq!(values(answer.unwrap().unwrap()), [100, 1_000]);
    // Where that is all there is, it is told once the time is over.
    let asked = std::time::Instant::now();
    let answer = fetch(serde_json::json!({ "offset": 1, "minBytes": 100_000, "maxWaitMs": 300 })).await.unwrap();
    assert!(asked.elapsed() >= Duration::from_millis(300), "{:?}", asked.elapsed());
    assert_eq!(values(answer), [1_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_goes_wherever_it_is_told_and_says_where_it_cannot() {
    let cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    let name = topic("seek");
    cluster.run("topic create seek --config retention.ms=-1").unwrap();
    let producer = producer(&cluster, ProducerConfig::default()).await;
    for number in 0..100 {
        let record = ProducerRecord::new(name.clone(), number.to_string()).timestamp(1_000 + 10 * number);
        drop(producer.send(record).await.unwrap());
    }
    producer.close().await;
    let partition = TopicPartition { topic: name.clone(), partition: 0 };
    let config = ConsumerConfig { auto_offset_reset: AutoOffsetReset::Error, ..ConsumerConfig::default() };
    let mut consumer = consumer(&cluster, config).await;
    consumer.assign_from([(partition.clone(), SeekTo::Beginning)]);
    for (to, offset) in [
        (SeekTo::Beginning, 0),
        (SeekTo::Offset(Offset(42)), 42),
        (SeekTo::Timestamp(1_505), 51),
        (SeekTo::Offset(Offset(99)), 99),
    ] {
        consumer.seek(&partition, to).unwrap();
        let record = consumer.recv().await.unwrap().unwrap();
        assert_eq!(
            (record.offset, consumer.position(&partition)),
            (Offset(offset), Some(Offset(offset + 1))),
            "{to:?}"
        );
    }
    let leaders = Leaders::new(cluster.nats.connect().await, Services::default());
    leaders.delete_records(&name, 0, Offset(50)).await.unwrap();
    consumer.seek(&partition, SeekTo::Offset(Offset(42))).unwrap();
    let error = consumer.recv().await.unwrap().unwrap_err();
    let wanted = ConsumeError::OutOfRange {
        partition: partition.clone(),
        offset: Offset(42),
        log_start: Offset(50),
        end: Offset(100),
    };
    assert_eq!(error, wanted);
    consumer.seek(&partition, SeekTo::Beginning).unwrap();
    assert_eq!(consumer.recv().await.unwrap().unwrap().offset, Offset(50));
    assert_eq!(
        consumer.seek(&TopicPartition { topic: name, partition: 1 }, SeekTo::End),
        Err(ConsumeError::NotAssigned(TopicPartition { topic: topic("seek"), partition: 1 }))
    );
}

/// Writes `count` records of 100 bytes, which are their numbers, in small batches.
async fn write_numbers(cluster: &Cluster, name: &TopicName, count: usize) {
    let producer = producer(cluster, ProducerConfig { batch_size: 1 << 10, ..ProducerConfig::default() }).await;
    for number in 0..count {
        drop(producer.send(ProducerRecord::new(name.clone(), format!("{number:>100}"))).await.unwrap());
    }
    producer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_fetch_has_as_many_answers_as_it_asks_for_and_as_there_are_records() {
    const COUNT: usize = 400;
    let cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    let name = topic("answers");
    cluster.run("topic create answers").unwrap();
    write_numbers(&cluster, &name, COUNT).await;
    let client = cluster.nats.connect().await;
    let cases = [
        ("as many as it asks for", 0, 3_000, 3, 3..=3),
        ("from within a batch on", 7, 3_000, 8, 8..=8),
        ("fewer, up to the end", COUNT - 20, 1_500, 8, 2..=8),
        ("all of it in one", 0, 900_000, 8, 1..=1),
        ("nothing, at the end", COUNT, 900_000, 8, 1..=1),
    ];
    for (what, offset, max_bytes, answers, wanted) in cases {
        let inbox = client.new_inbox();
        let mut heard = client.subscribe(inbox.clone()).await.unwrap();
        let request = serde_json::json!({ "offset": offset, "maxBytes": max_bytes, "answers": answers }).to_string();
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Dmq-Format", "batch");
        let subject = "dmq.data.fetch.0.answers";
        client.publish_with_reply_and_headers(subject, inbox, headers, request.into()).await.unwrap();
        let (mut next, mut count) = (offset as i64, 0);
        loop {
            let answer = tokio::time::timeout(Duration::from_secs(10), heard.next()).await.expect(what).unwrap();
            let head: FetchedHead =
                serde_json::from_str(answer.headers.unwrap().get("Dmq-Head").unwrap().as_str()).unwrap();
            assert_eq!(head.offset, Offset(next), "{what}: each begins where the one before ended");
            let first = BatchHeader::verify(&answer.payload).map_or(head.offset, |batch| batch.base_offset);
            assert!(first <= head.offset && head.next_offset.0 >= next, "{what}: {head:?}");
            (next, count) = (head.next_offset.0, count + 1);
            if !head.more {
                break;
            }
        }
        assert!(wanted.contains(&count), "{what}: {count} answers");
        assert!(count == answers || next == COUNT as i64, "{what}: it went on to {next} only");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_behind_asks_for_many_answers_at_once_and_goes_on_where_their_leader_died() {
    const COUNT: usize = 20_000;
    let mut cluster = Cluster::start(1, 3);
    cluster.await_healthy();
    let name = topic("behind");
    cluster.run("topic create behind --replication-factor 3").unwrap();
    write_numbers(&cluster, &name, COUNT).await;
    let mut asked = cluster.nats.connect().await.subscribe("dmq.data.fetch.0.behind").await.unwrap();
    let partition = TopicPartition { topic: name, partition: 0 };
    let config = ConsumerConfig {
        max_partition_fetch_bytes: 64 << 10,
        max_prefetch_bytes: 8 * (64 << 10),
        ..ConsumerConfig::default()
    };
    let mut reading = consumer(&cluster, config).await;
    reading.assign_from([(partition.clone(), SeekTo::Beginning)]);
    reading.stop_at(&partition, Offset(COUNT as i64)).unwrap();
    let described = cluster.run("topic describe behind").unwrap();
    let mut leader = cluster.storage.remove(described["partitions"][0]["leader"].as_u64().unwrap() as usize);
    // While answers are on their way: nobody waits for it.
    let (kill, told) = tokio::sync::oneshot::channel();
    let killing = tokio::task::spawn_blocking(move || {
        told.blocking_recv().unwrap();
        leader.kill();
    });
    let (mut next, mut kill, mut requests) = (0, Some(kill), Vec::<DataFetch>::new());
    while let Some(record) = reading.recv().await {
        let record = record.unwrap();
        assert_eq!(record.offset.0 as usize, next);
        assert_eq!(record.value.as_deref(), Some(format!("{next:>100}").as_bytes()));
        next += 1;
        if next == COUNT / 4 {
            requests = std::iter::from_fn(|| asked.next().now_or_never().flatten())
                .map(|message| serde_json::from_slice(&message.payload).unwrap())
                .collect();
            // Or there would be no "no responders" while nobody leads.
            asked.unsubscribe().await.unwrap();
            kill.take().unwrap().send(()).unwrap();
        }
    }
    killing.await.unwrap();
    assert_eq!(next, COUNT);
    let most = requests.iter().filter_map(|request| request.answers).max();
    assert!(most.is_some_and(|most| most > 1), "{requests:?}");
    assert!(requests.windows(2).all(|pair| pair[0].offset <= pair[1].offset), "{requests:?}");
}

/// The next message that fits, which has to come before anything that is waited for by the clock.
async fn heard<T>(
    subscriber: &mut async_nats::Subscriber,
    what: &str,
    mut fits: impl FnMut(&async_nats::Message) -> Option<T>,
) -> T {
    let listening = async {
        loop {
            if let Some(found) = fits(&subscriber.next().await.unwrap()) {
                return found;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), listening).await.expect(what)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_at_a_leader_that_dies_hears_of_the_next_one() {
    let mut cluster = Cluster::start(1, 3);
    cluster.await_healthy();
    let name = topic("news");
    let observer = cluster.nats.connect().await;
    // Whoever hears all that is said keeps NATS from telling that nobody leads.
    let mut fetches = observer.subscribe("dmq.data.fetch.>").await.unwrap();
    let mut news = observer.subscribe("dmq.data.leads.0.news").await.unwrap();
    observer.flush().await.unwrap();
    cluster.run("topic create news --replication-factor 3").unwrap();
    let leads = |message: &async_nats::Message| serde_json::from_slice::<Leads>(&message.payload).ok();
    let first = heard(&mut news, "somebody leads", leads).await;
    let described = cluster.run("topic describe news").unwrap();
    assert_eq!(described["topicId"], first.topic_id.to_string());
    assert_eq!(described["partitions"][0]["leader"], first.storage.0);

    // Far longer than anything here takes.
    let config = ConsumerConfig { fetch_max_wait: Duration::from_secs(300), ..ConsumerConfig::default() };
    let mut waiting = consumer(&cluster, config).await;
    waiting.assign_from([(TopicPartition { topic: name.clone(), partition: 0 }, SeekTo::Beginning)]);
    let asked = |message: &async_nats::Message| {
        let asked: DataFetch = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!(asked.offset, Some(Offset(0)));
        Some(())
    };
    heard(&mut fetches, "a fetch that waits", asked).await;
    // Anybody may say so, whatever it is: it is asked again, and nothing else follows.
    for forged in ["", r#"{"storage": 9, "leaderEpoch": 2000000000}"#] {
        observer.publish("dmq.data.leads.0.news", forged.into()).await.unwrap();
        heard(&mut fetches, "it is asked again", asked).await;
    }

    cluster.storage[first.storage.0 as usize].kill();
    let next = heard(&mut news, "another one leads", |message| {
        leads(message).filter(|next| next.leader_epoch > first.leader_epoch)
    });
    assert_ne!(next.await.storage, first.storage);
    let producer = producer(&cluster, ProducerConfig::default()).await;
    let sent = producer.send(ProducerRecord::new(name, "after it")).await.unwrap();
    assert_eq!(sent.await.unwrap().offset, Some(Offset(0)));
    let read = tokio::time::timeout(Duration::from_secs(20), waiting.recv()).await.expect("it is read");
    assert_eq!(read.unwrap().unwrap().value.as_deref(), Some("after it".as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sent_says_why_and_memory_stays_bounded() {
    let cluster = Cluster::start(1, 1);
    cluster.await_healthy();
    cluster.run("topic create bounded --partitions 2").unwrap();
    let name = topic("bounded");
    let config = ProducerConfig {
        batch_size: 16 << 10,
        max_request_size: 64 << 10,
        buffer_memory: 64 << 10,
        max_block: Duration::from_millis(300),
        delivery_timeout: Duration::from_secs(2),
        ..ProducerConfig::default()
    };
    let producer = producer(&cluster, config).await;
    let large = ProducerRecord::new(name.clone(), vec![0; 70_000]);
    assert!(matches!(producer.send(large).await, Err(ProduceError::TooLarge { .. })));
    let nowhere = ProducerRecord::new(name.clone(), "x").partition(2);
    assert!(matches!(producer.send(nowhere).await, Err(ProduceError::NoPartition { count: 2, .. })));
    let unknown = producer.send(ProducerRecord::new(topic("unknown"), "x")).await;
    assert!(matches!(unknown, Err(ProduceError::Topic { .. })), "{unknown:?}");

    // Nobody answers: what was sent fills the buffer, and each record learns in time what became of it.
    cluster.storage[0].pause();
    let mut sent = Vec::new();
    let full = loop {
        match producer.send(ProducerRecord::new(name.clone(), vec![1; 1_000])).await {
            Ok(delivery) => sent.push(delivery),
            Err(error) => break error,
        }
    };
    assert!(matches!(full, ProduceError::BufferFull { limit: 65_536, .. }), "{full}");
    assert!((40..=65).contains(&sent.len()), "{}", sent.len());
    for delivery in sent {
        let error = delivery.await.unwrap_err();
        assert!(matches!(error, ProduceError::Unknown { .. } | ProduceError::NotInTime { .. }), "{error}");
    }
    cluster.storage[0].resume();
    // The same partition takes records again, under another producer id.
    let config = ProducerConfig { delivery_timeout: Duration::from_secs(60), ..ProducerConfig::default() };
    let patient = self::producer(&cluster, config).await;
    assert!(patient.send(ProducerRecord::new(name.clone(), "x")).await.unwrap().await.is_ok());
    let mut again = None;
    for _ in 0..20 {
        again = Some(producer.send(ProducerRecord::new(name.clone(), "x")).await.unwrap().await);
        if again.as_ref().is_some_and(Result::is_ok) {
            break;
        }
    }
    assert!(again.unwrap().is_ok());
    producer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_a_topic_takes_no_longer_are_split_and_stored_once_and_in_order() {
    const COUNT: u64 = 600;
    let cluster = Cluster::start(1, 2);
    cluster.await_healthy();
    let name = topic("smaller");
    cluster.run("topic create smaller --partitions 1 --replication-factor 2").unwrap();
    for compression in [Compression::None, Compression::Lz4] {
        cluster.run("topic alter smaller --config max.message.bytes=900000").unwrap();
        let config = ProducerConfig {
            batch_size: 200 << 10,
            linger: Duration::from_millis(200),
            compression,
            ..ProducerConfig::default()
        };
        let producer = producer(&cluster, config).await;
        producer.partitions(&name).await.unwrap();
        cluster.run("topic alter smaller --config max.message.bytes=20000").unwrap();
        let before = read_all(&cluster, &name).await[&0].len();
        // Of digits that no codec makes a tenth of.
        let value = |number: u64| -> String {
            (0..50).map(|at| format!("{:019}", number * 0x9e37 + at * 0x79b97f4a7)).collect()
        };
        let mut sent = Vec::new();
        for number in 0..COUNT {
            sent.push(producer.send(ProducerRecord::new(name.clone(), value(number))).await.unwrap());
        }
        producer.flush().await;
        let mut offsets = Vec::new();
        for delivery in sent {
            // Flushed is settled.
            offsets.push(delivery.settled().unwrap().unwrap().offset.unwrap().0 as usize);
        }
        assert_eq!(offsets, (before..before + COUNT as usize).collect::<Vec<_>>(), "{compression}");
        let read = read_all(&cluster, &name).await;
        for (number, record) in (0..).zip(&read[&0][before..]) {
            assert_eq!(record.value.as_deref(), Some(value(number).as_bytes()), "{compression}: {number}");
        }
        assert_eq!(read[&0].len(), before + COUNT as usize);
        // A record that is too large by itself is refused with words, and once the topic is looked up again it is not even sent.
        let large = loop {
            match producer.send(ProducerRecord::new(name.clone(), vec![b'x'; 30_000])).await {
                Ok(delivery) if compression == Compression::None => {
                    let refused = delivery.await.unwrap_err().to_string();
                    assert!(refused.contains("exceeds max.message.bytes, which is 20000"), "{refused}");
                }
                Ok(delivery) => _ = delivery.await.unwrap(),
                Err(error) => break error,
            }
        };
        assert!(matches!(large, ProduceError::TooLarge { limit: 20_000, .. }), "{large}");
        producer.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_goes_on_where_it_has_committed() {
    let cluster = Cluster::start(1, 3);
    cluster.await_healthy();
    let name = topic("work");
    cluster.run("topic create work --partitions 2").unwrap();
    let producer = producer(&cluster, ProducerConfig::default()).await;
    for number in 0..100 {
        let record = ProducerRecord::new(name.clone(), number.to_string()).partition(number % 2);
        drop(producer.send(record).await.unwrap());
    }
    producer.close().await;
    let config = || ConsumerConfig {
        group: Some("workers".into()),
        auto_offset_reset: AutoOffsetReset::Earliest,
        ..ConsumerConfig::default()
    };
    let mut seen = BTreeSet::new();
    for _ in 0..4 {
        let mut consumer = consumer(&cluster, config()).await;
        let partitions = consumer.partitions(&name).await.unwrap();
        consumer.assign(partitions).await.unwrap();
        for _ in 0..25 {
            let record = consumer.recv().await.unwrap().unwrap();
            assert!(seen.insert((record.partition, record.offset)), "{record:?} was read before");
        }
        consumer.commit().await.unwrap();
    }
    assert_eq!(seen.len(), 100);
    let consumer = consumer(&cluster, config()).await;
    let committed = consumer.committed().await.unwrap();
    let ends: Vec<_> = committed.iter().map(|(partition, offset)| (partition.partition, offset.0)).collect();
    assert_eq!(ends, [(0, 50), (1, 50)]);
}
