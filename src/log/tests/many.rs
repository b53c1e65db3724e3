//! What is done to many logs at once.

use super::*;
use crate::log::producers::Producers;

fn wanted(count: u32) -> Vec<WantedLog> {
    let topic = || TopicName::new("orders").unwrap();
    (0..count)
        .map(|partition| WantedLog { id: TopicPartition::new(topic(), partition), topic: TOPIC, config: config() })
        .collect()
}

fn directory(disk: &SimDisk) -> Result<LogDirectory, LogDirectoryError> {
    LogDirectory::open("/logs".into(), Arc::new(disk.clone()), 8)
}

fn open_all(node: &LogDirectory, count: u32) -> Result<Vec<Log>, LogError> {
    node.open_logs(wanted(count), NOW).into_iter().collect()
}

fn checkpoint_all(node: &LogDirectory, logs: &mut [Log]) -> Result<(), LogError> {
    node.checkpoint_all(&mut logs.iter_mut().collect::<Vec<_>>()).into_iter().collect()
}

/// What is there when all are opened anew.
fn state(disk: &SimDisk, count: u32) -> Vec<(Offset, Producers, EpochHistory, usize)> {
    let node = directory(disk).unwrap();
    let logs = open_all(&node, count).unwrap();
    let state =
        |log: &Log| (log.end(), log.producers().clone(), log.epochs().clone(), records_from(log, Offset::ZERO).len());
    logs.iter().map(state).collect()
}

#[test]
fn many_logs_are_made_by_one_sync_and_checkpointed_by_four() {
    let disk = SimDisk::new(50);
    let node = directory(&disk).unwrap();
    let before = disk.counts();
    let mut logs = open_all(&node, 100).unwrap();
    assert_eq!(disk.counts().syncs - before.syncs, 1);
    assert!(logs.iter().enumerate().all(|(number, log)| log.id().partition == number as u32));
    disk.crash();
    assert_eq!(directory(&disk).unwrap().list().unwrap().len(), 100, "they are there for good");
    drop(logs);
    let node = directory(&disk).unwrap();
    logs = open_all(&node, 100).unwrap();
    logs.iter_mut().skip(1).for_each(|log| {
        fill(log, 20);
        log.append(&produced(0), EPOCH, NOW).unwrap();
    });
    let before = disk.counts();
    checkpoint_all(&node, &mut logs).unwrap();
    let (syncs, dir_syncs) = (disk.counts().syncs - before.syncs, disk.counts().dir_syncs - before.dir_syncs);
    assert_eq!((syncs, dir_syncs), (4, 0));
    let before = disk.counts();
    checkpoint_all(&node, &mut logs).unwrap();
    assert_eq!(disk.counts(), before, "nothing has changed");
    disk.crash();
    let found = state(&disk, 100);
    assert!(found[0].0 == Offset::ZERO && found[1..].iter().all(|(end, _, _, records)| end.0 == 22 && *records == 22));
    // It needs no scan: the bytes behind the last index entry, and no more, are read.
    let alone = SimDisk::new(50);
    let mut log = open(&alone, config());
    fill(&mut log, 20);
    log.append(&produced(0), EPOCH, NOW).unwrap();
    log.checkpoint().unwrap();
    for kind in ["log", "index", "timeindex"] {
        let path = |dir: &str| segment::path(Path::new(dir), Offset::ZERO, kind);
        assert_eq!(disk.contents(&path("/logs/orders-7")), alone.contents(&path("/logs/orders-0")), "{kind}");
    }
}

#[test]
fn whoever_stops_while_many_are_made_or_checkpointed_finds_what_was_synced() {
    const COUNT: u32 = 3;
    /// How far it came.
    fn work(disk: &SimDisk, synced: &mut i64) -> Result<(), Box<dyn std::error::Error>> {
        let node = directory(disk)?;
        let mut logs = open_all(&node, COUNT)?;
        for round in 0..3 {
            if round == 1 {
                // Its indexes are made anew.
                disk.remove(&logs[0].dir().join(checkpoint::LEADER_EPOCHS))?;
                disk.sync_dir(logs[0].dir())?;
                logs[0] = open_all(&node, 1)?.remove(0);
            }
            for log in &mut logs {
                log.append(&produced(round * 2), LeaderEpoch(round as u32 + 1), NOW)?;
            }
            checkpoint_all(&node, &mut logs)?;
            *synced = i64::from(round) * 2 + 2;
        }
        Ok(())
    }
    let whole = SimDisk::new(0);
    work(&whole, &mut 0).unwrap();
    let steps = whole.steps();
    for (is_kill, at) in [false, true].into_iter().flat_map(|kill| (0..120).map(move |part| (kill, steps * part / 120)))
    {
        let (disk, mut synced) = (SimDisk::new(at), 0);
        disk.crash_after(at);
        let stopped = work(&disk, &mut synced).unwrap_err();
        assert!(stopped.to_string().contains("has stopped"), "{stopped}");
        if is_kill {
            disk.kill()
        } else {
            disk.crash()
        }
        for (end, producers, epochs, records) in state(&disk, COUNT) {
            assert!(end.0 >= synced && end.0 <= 6, "{at}: {end} of {synced}");
            assert_eq!(records as i64, end.0);
            assert_eq!(epochs.starts().len() as i64, end.0 / 2, "{at}");
            let last = producers.get(4).and_then(|state| state.batches.back()).map(|last| last.last_offset.0 + 1);
            assert_eq!(last.unwrap_or(0), end.0, "{at}");
        }
    }
}

#[test]
fn one_log_that_cannot_be_opened_stops_no_other() {
    let disk = SimDisk::new(51);
    let node = directory(&disk).unwrap();
    drop(open_all(&node, 3).unwrap());
    let mut all = wanted(5);
    all[1].topic = TopicId(Uuid::from_u128(8));
    let opened = node.open_logs(all, NOW);
    assert!(matches!(opened[1], Err(LogError::OtherTopic { .. })));
    assert_eq!(opened.iter().filter(|result| result.is_ok()).count(), 4);
}

#[test]
fn a_failed_sync_of_a_checkpoint_is_everybodys_and_can_be_repeated() {
    for good in 0..4 {
        let disk = SimDisk::new(52);
        let node = directory(&disk).unwrap();
        let mut logs = open_all(&node, 8).unwrap();
        logs.iter_mut().for_each(|log| fill(log, 20));
        assert!(node.commit(&mut logs.iter_mut().collect::<Vec<_>>()).iter().all(Result::is_ok));
        disk.fail_syncs_after(good, 1);
        let result = node.checkpoint_all(&mut logs.iter_mut().collect::<Vec<_>>());
        assert_eq!(result.iter().filter(|result| result.is_err()).count(), if good < 3 { 8 } else { 0 }, "{good}");
        disk.fail_syncs_after(0, 0);
        checkpoint_all(&node, &mut logs).unwrap();
        disk.crash();
        assert!(state(&disk, 8).iter().all(|(end, ..)| *end == Offset(20)));
    }
}
