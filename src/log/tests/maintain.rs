//! What is taken away: by age and size in small steps, by a client's wish, and where the disk has torn it.

use super::*;

const LIMITS: MaintenanceLimits = MaintenanceLimits { segments: 2, keys: 1_000, bytes: 1 };

/// Calls until nothing is left to do, and what each did.
fn maintain(log: &mut Log, now_ms: i64, high_watermark: Offset) -> Vec<Maintained> {
    let mut all = Vec::new();
    loop {
        let done = log.maintain(now_ms, high_watermark, &LIMITS).unwrap();
        if !done.more {
            assert_eq!(done, Maintained::default());
            return all;
        }
        all.push(done);
    }
}

#[test]
fn an_idle_log_closes_its_segment_and_gives_it_up_step_by_step() {
    let disk = SimDisk::new(60);
    let mut log = open(&disk, LogConfig { segment_ms: 1_000, retention_ms: Some(5_000), ..config() });
    fill(&mut log, 200);
    let segments = log.segment_count();
    assert_eq!(maintain(&mut log, NOW + 900, ALL), [], "nothing is due");
    let done = maintain(&mut log, NOW + 2_000, ALL);
    assert_eq!(done, [Maintained { rolled: true, more: true, ..Maintained::default() }]);
    assert_eq!((log.segment_count(), log.synced_end()), (segments + 1, Offset(200)));
    let done = maintain(&mut log, NOW + 6_000, Offset(100));
    assert!(done.iter().all(|done| (1..=2).contains(&done.deleted)) && done.len() > 1, "{done:?}");
    assert!((50..=100).contains(&log.start().0), "no further than what is committed: {}", log.start());
    maintain(&mut log, NOW + 6_000, ALL);
    assert_eq!((log.start(), log.end(), log.size_bytes(), log.segment_count()), (Offset(200), Offset(200), 0, 1));
    assert_eq!(maintain(&mut log, NOW + 1_000_000, ALL), []);
}

#[test]
fn times_beyond_all_measure_are_refused_and_no_mix_of_the_others_closes_a_segment_for_each_record() {
    let disk = SimDisk::new(63);
    let limits = LogConfig { timestamp_before_max_ms: i64::MAX, timestamp_after_max_ms: 1_000, ..config() };
    let mut log = open(&disk, limits.clone());
    let at = |timestamp| batch_at(timestamp, &["v"]);
    for timestamp in [i64::MIN, -2, NOW + 1_001, i64::MAX] {
        let refused = log.append(&at(timestamp), EPOCH, NOW);
        assert!(matches!(refused, Err(LogError::InvalidTimestamp { .. })), "{timestamp}");
    }
    assert_eq!(log.end(), Offset::ZERO);
    for _ in 0..10 {
        for timestamp in [0, NOW + 1_000, -1, 1, NOW] {
            log.append(&at(timestamp), EPOCH, NOW).unwrap();
        }
    }
    assert!(log.segment_count() <= 3, "{} segments of 50 records", log.segment_count());
    log.set_config(LogConfig { timestamp_before_max_ms: 10, ..limits });
    assert!(matches!(log.append(&at(NOW - 11), EPOCH, NOW), Err(LogError::InvalidTimestamp { .. })));
    log.append(&at(NOW - 10), EPOCH, NOW).unwrap();
    // Whose clock does not count may say what it likes.
    let clock = LogConfig { timestamp_type: TimestampType::LogAppendTime, ..config() };
    log.set_config(clock);
    log.append(&at(i64::MAX), EPOCH, NOW).unwrap();
}

#[test]
fn what_was_set_aside_is_kept_for_its_time_and_removed_a_file_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let mut directory = LogDirectory::open(folder.path().join("logs"), disk, 10).unwrap();
    let id = TopicPartition::new(TopicName::new("gone").unwrap(), 3);
    let topic = TOPIC;
    let mut log = directory.open_log(id.clone(), topic, config(), NOW).unwrap();
    fill(&mut log, 200);
    drop(log);
    let aside = directory.set_aside(&id).unwrap();
    assert_eq!(directory.strays().unwrap(), std::slice::from_ref(&aside));
    assert_eq!(directory.list().unwrap(), []);
    assert_eq!(directory.stray_since(&aside, NOW).unwrap(), NOW);
    assert_eq!(directory.stray_since(&aside, NOW + 500).unwrap(), NOW, "it is remembered");
    assert_eq!(directory.stray_since(&aside, NOW - 500).unwrap(), NOW - 500, "the clock was wrong");
    let files = |dir: &Path| std::fs::read_dir(dir).map_or(0, Iterator::count);
    let mut left = files(&aside);
    assert!(left > 5, "{left}");
    while !directory.remove_some(&aside).unwrap() {
        left -= 1;
        assert_eq!(files(&aside), left);
        assert_eq!(directory.stray_since(&aside, NOW + 9_000).unwrap(), NOW - 500, "it stays remembered to the end");
    }
    assert!(!aside.exists());
    assert_eq!(directory.strays().unwrap(), Vec::<PathBuf>::new());
    assert!(directory.remove_some(&aside).unwrap(), "it is gone already");
}

#[test]
fn compaction_in_steps_comes_to_what_it_comes_to_at_once() {
    let fill_keys = |log: &mut Log| {
        for round in 0..150 {
            let keys = [format!("k{}", round % 9), format!("j{}", round % 40)];
            log.append(&keyed(&[(&keys[0], Some("v")), (&keys[1], Some(&keys[0]))]), EPOCH, NOW).unwrap();
        }
        log.roll().unwrap();
    };
    let config = || LogConfig { compact: true, delete: false, segment_bytes: 1_500, ..config() };
    let mut logs = [SimDisk::new(61), SimDisk::new(62)].map(|disk| open(&disk, config()));
    logs.iter_mut().for_each(fill_keys);
    logs[0].compact(NOW, ALL, 1_000).unwrap();
    // What comes meanwhile is not looked at, and a cut makes it begin anew.
    let mut steps = 0;
    loop {
        let done = logs[1].maintain(NOW, Offset(290), &LIMITS).unwrap();
        if !done.more {
            break;
        }
        assert!(logs[1].first_dirty() <= Offset(290), "no further than what is committed");
        steps += 1;
        if steps == 3 {
            logs[1].append(&keyed(&[("k1", Some("cut off again"))]), EPOCH, NOW).unwrap();
            logs[1].truncate_to(Offset(300), NOW).unwrap();
        }
    }
    assert!(steps > 10, "{steps}");
    let config = LogConfig { min_cleanable_dirty_percent: 0, ..logs[1].config().clone() };
    logs[1].set_config(config);
    let limits = MaintenanceLimits { bytes: u64::MAX, ..LIMITS };
    while logs[1].maintain(NOW, ALL, &limits).unwrap().more {}
    assert_eq!(records_from(&logs[1], Offset::ZERO), records_from(&logs[0], Offset::ZERO));
}

#[test]
fn records_are_deleted_for_a_client_up_to_the_high_watermark() {
    let disk = SimDisk::new(63);
    let mut log = open(&disk, config());
    fill(&mut log, 100);
    let refused = log.delete_records(Offset(61), Offset(60));
    assert!(matches!(refused, Err(LogError::OffsetOutOfRange { end: Offset(60), .. })));
    assert_eq!(log.start(), Offset::ZERO);
    assert_eq!(log.delete_records(Offset(60), Offset(60)).unwrap(), Offset(60));
    assert_eq!(log.delete_records(Offset(10), Offset(60)).unwrap(), Offset(60), "the start never falls");
    assert_eq!(offsets(&records_from(&log, Offset(60))), (60..100).collect::<Vec<_>>());
}

/// Whatever is damaged, in the first batch or the last, in a closed segment or the active one: the replica cuts there, and
/// copies on until it has the leader's bytes.
#[test]
fn a_replica_cuts_at_its_first_damage_and_copies_on() {
    let leader_disk = SimDisk::new(64);
    let mut leader = open(&leader_disk, config());
    for number in 0..90 {
        leader.append(&numbered(number), LeaderEpoch(1 + number as u32 / 20), NOW).unwrap();
        leader.append(&produced(number as i32 * 2), LeaderEpoch(1 + number as u32 / 20), NOW).unwrap();
    }
    let copy = |from: &Log, to: &mut Log| {
        while to.end() < from.end() {
            let fetched = from.read(to.end(), 900, ALL).unwrap();
            to.append_as_follower(&fetched.batches, NOW).unwrap();
        }
    };
    let logs = |disk: &SimDisk| -> Vec<PathBuf> {
        disk.files().into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "log")).collect()
    };
    let mut met = 0;
    for (number, at) in (0..logs(&leader_disk).len()).flat_map(|number| [70, 1_000, 3_000].map(|at| (number, at))) {
        let disk = SimDisk::new(65);
        let mut log = open(&disk, config());
        copy(&leader, &mut log);
        log.sync().unwrap();
        let segments = logs(&disk);
        disk.flip_bit(&segments[number], at, 3);
        drop(log);
        // All of it is read, as it is where the indexes and the epochs are gone too.
        disk.remove(&dir().join(checkpoint::LEADER_EPOCHS)).unwrap();
        let mut log = open(&disk, config());
        if let Some(first) = log.first_damage() {
            met += 1;
            assert_eq!(log.truncate_to(first, NOW).unwrap(), first);
            assert_eq!((log.end(), log.first_damage()), (first, None));
        }
        copy(&leader, &mut log);
        log.checkpoint().unwrap();
        assert_eq!(records_from(&log, Offset::ZERO), records_from(&leader, Offset::ZERO));
        assert_eq!((log.epochs(), log.producers()), (leader.epochs(), leader.producers()));
        drop(log);
        disk.crash();
        assert_eq!(open(&disk, config()).end(), leader.end());
    }
    assert!(met > 10, "{met}");
}

#[test]
fn what_is_overdue_is_compacted_however_little_is_dirty() {
    let folder = tempfile::tempdir().unwrap();
    let config = LogConfig { compact: true, min_cleanable_dirty_percent: 100, ..LogConfig::default() };
    let directory = LogDirectory::open(folder.path().into(), std::sync::Arc::new(crate::disk::RealDisk), 16).unwrap();
    let id = TopicPartition::new(crate::types::TopicName::new("t").unwrap(), 0);
    let topic = crate::types::TopicId(uuid::Uuid::from_u128(1));
    let mut log = directory.open_log(id, topic, config, NOW).unwrap();
    for value in ["a", "b"] {
        log.append(&keyed(&[("k", Some(value))]), EPOCH, NOW).unwrap();
        log.roll().unwrap();
    }
    while log.maintain(NOW, ALL, &LIMITS).unwrap().more {}
    log.append(&keyed(&[("k", Some("c"))]), EPOCH, NOW).unwrap();
    log.roll().unwrap();
    let compacted = |log: &mut Log| {
        std::iter::from_fn(|| Some(log.maintain(NOW + 1_000, ALL, &LIMITS).unwrap()).filter(|done| done.more)).count()
    };
    assert_eq!(compacted(&mut log), 0, "only a third is dirty");
    log.set_config(LogConfig { max_compaction_lag_ms: 500, ..log.config().clone() });
    assert!(compacted(&mut log) > 0);
}
