//! The store on a disk that loses, tears, fills up and rots.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use proptest::prelude::*;

use super::sim::SimDisk;
use super::*;
use crate::types::{ControllerEpoch, Digest, Position, Version};

const DIR: &str = "data/metadata";

fn position(version: u64) -> Position {
    Position {
        version: Version(version),
        digest: Digest(u128::from(version).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()),
    }
}

/// Some changes are larger than a sector, so that a torn one has holes.
fn change(version: u64) -> StoredChange {
    let message = format!("{{\"version\":{version}}}").repeat(if version.is_multiple_of(5) { 100 } else { 1 });
    StoredChange {
        position: position(version),
        controller_epoch: ControllerEpoch(version / 10),
        messages: vec![(Version(version), Bytes::from(message))],
    }
}

fn open(disk: &SimDisk) -> Result<(MetadataStore, Recovered), StoreError> {
    MetadataStore::open_on(Arc::new(disk.clone()), Path::new(DIR))
}

fn body(version: u64) -> Vec<u8> {
    format!("the state at {version};").repeat(20).into_bytes()
}

fn snapshot_at(store: &mut MetadataStore, version: u64) -> Result<(), StoreError> {
    store.install_snapshot(position(version), ControllerEpoch(version / 10), |out| out.write_all(&body(version)))
}

fn versions(changes: Changes) -> Vec<u64> {
    changes.map(|change| change.unwrap().position.version.0).collect()
}

fn read(mut snapshot: SnapshotReader) -> (Position, Vec<u8>) {
    let mut out = Vec::new();
    snapshot.read_to_end(&mut out).unwrap();
    (snapshot.info().position, out)
}

#[test]
fn what_was_appended_is_recovered_whole() {
    let disk = SimDisk::new(1);
    let (mut store, recovered) = open(&disk).unwrap();
    assert!(recovered.snapshot.is_none());
    assert_eq!(recovered.position, Position::default());
    let split = StoredChange {
        position: position(5),
        controller_epoch: ControllerEpoch(3),
        messages: vec![(Version(3), Bytes::from_static(b"a")), (Version(5), Bytes::from_static(b"b"))],
    };
    let void = StoredChange { position: position(6), controller_epoch: ControllerEpoch(3), messages: Vec::new() };
    store.append(&[change(1), change(2)]).unwrap();
    store.append(&[split.clone(), void.clone()]).unwrap();
    disk.crash();
    let (store, recovered) = open(&disk).unwrap();
    assert_eq!((recovered.position, recovered.controller_epoch), (position(6), ControllerEpoch(3)));
    assert_eq!(recovered.entries.collect::<Result<Vec<_>, _>>().unwrap(), [change(1), change(2), split, void]);
    assert_eq!(store.position(), position(6));
}

#[test]
fn an_append_costs_one_write_and_one_sync() {
    let disk = SimDisk::new(1);
    let (mut store, _) = open(&disk).unwrap();
    for version in 1..100 {
        let before = disk.counts();
        store.append(&[change(version)]).unwrap();
        let after = disk.counts();
        assert_eq!((after.writes - before.writes, after.syncs - before.syncs), (1, 1));
        assert_eq!(after.dir_syncs, before.dir_syncs);
    }
}

#[test]
fn a_change_that_does_not_follow_is_refused() {
    let (mut store, _) = open(&SimDisk::new(1)).unwrap();
    store.append(&[change(1), change(4)]).unwrap();
    for refused in [vec![change(4)], vec![change(3)], vec![change(6), change(6)]] {
        assert!(matches!(store.append(&refused), Err(StoreError::OutOfOrder { .. })));
    }
    store.append(&[]).unwrap();
    assert_eq!(versions(store.read_from(Version(0)).unwrap().unwrap()), [1, 4]);
}

#[test]
fn a_snapshot_beside_appends_keeps_what_came_after_it() {
    let disk = SimDisk::new(1);
    let (mut store, _) = open(&disk).unwrap();
    (1..=3).for_each(|version| store.append(&[change(version)]).unwrap());
    store.roll().unwrap();
    let mut writer = store.snapshot_writer(position(3), ControllerEpoch(0)).unwrap();
    store.append(&[change(4)]).unwrap();
    std::io::Write::write_all(&mut writer, &body(3)).unwrap();
    let finished = writer.finish().unwrap();
    store.append(&[change(5)]).unwrap();
    store.install(finished).unwrap();
    assert_eq!(store.position(), position(5));
    assert!(store.read_from(Version(2)).unwrap().is_none(), "what the snapshot covers is gone");
    assert_eq!(versions(store.read_from(Version(3)).unwrap().unwrap()), [4, 5]);
    assert_eq!(disk.files().len(), 2, "{:?}", disk.files());
    disk.crash();
    let (_, recovered) = open(&disk).unwrap();
    assert_eq!(read(recovered.snapshot.unwrap()), (position(3), body(3)));
    assert_eq!(versions(recovered.entries), [4, 5]);
}

#[test]
fn a_snapshot_of_another_history_does_not_replace_this_ones_beginning() {
    let (mut store, _) = open(&SimDisk::new(1)).unwrap();
    store.append(&[change(1), change(2), change(5)]).unwrap();
    let forked = Position { digest: Digest([7; 16]), ..position(2) };
    for refused in [forked, position(4)] {
        let result = store.install_snapshot(refused, ControllerEpoch(0), |_| Ok(()));
        assert!(matches!(result, Err(StoreError::NotInHistory { position }) if position == refused), "{result:?}");
    }
    assert!(store.reader().holds(position(2)).unwrap());
    assert!(!store.reader().holds(forked).unwrap());
    assert!(!store.reader().holds(position(9)).unwrap());
    snapshot_at(&mut store, 2).unwrap();
    assert!(matches!(snapshot_at(&mut store, 1), Err(StoreError::NotInHistory { .. })));
}

#[test]
fn a_snapshot_of_a_later_version_begins_the_log_anew() {
    let disk = SimDisk::new(1);
    let (mut store, _) = open(&disk).unwrap();
    store.append(&[change(1), change(2)]).unwrap();
    snapshot_at(&mut store, 50).unwrap();
    assert_eq!((store.position(), store.controller_epoch()), (position(50), ControllerEpoch(5)));
    assert!(store.read_from(Version(2)).unwrap().is_none());
    store.append(&[change(51)]).unwrap();
    let (_, recovered) = open(&disk).unwrap();
    assert_eq!(read(recovered.snapshot.unwrap()), (position(50), body(50)));
    assert_eq!(versions(recovered.entries), [51]);
}

#[test]
fn the_controller_epoch_never_goes_back() {
    let disk = SimDisk::new(1);
    let (mut store, _) = open(&disk).unwrap();
    store.append(&[StoredChange { controller_epoch: ControllerEpoch(40), ..change(1) }]).unwrap();
    store.append(&[change(2)]).unwrap();
    store.install_snapshot(position(2), ControllerEpoch(1), |_| Ok(())).unwrap();
    assert_eq!(open(&disk).unwrap().1.controller_epoch, ControllerEpoch(40));
    store.install_snapshot(position(9), ControllerEpoch(1), |_| Ok(())).unwrap();
    assert_eq!(open(&disk).unwrap().1.controller_epoch, ControllerEpoch(40));
}

#[test]
fn a_snapshot_is_served_in_chunks_until_another_replaces_it() {
    let disk = SimDisk::new(1);
    let (mut store, _) = open(&disk).unwrap();
    snapshot_at(&mut store, 7).unwrap();
    let reader = store.reader();
    let (mut served, mut info) = (Vec::new(), None);
    loop {
        let chunk = reader.snapshot_chunk(position(7), served.len() as u64, 100).unwrap().unwrap();
        if chunk.bytes.is_empty() {
            break;
        }
        served.extend_from_slice(&chunk.bytes);
        info = Some(chunk.info);
    }
    assert_eq!(served, body(7));
    let info = info.unwrap();
    assert_eq!((info.body_bytes, info.body_crc), (served.len() as u64, crc32c::crc32c(&served)));
    assert!(reader.snapshot_chunk(position(7), u64::MAX, 100).unwrap().unwrap().bytes.is_empty());
    snapshot_at(&mut store, 8).unwrap();
    assert_eq!(reader.snapshot_chunk(position(7), 0, 100).unwrap(), None);
}

#[test]
fn a_full_disk_refuses_without_harm_and_is_usable_once_there_is_room() {
    for room in 0..200 {
        let disk = SimDisk::new(room);
        let (mut store, _) = open(&disk).unwrap();
        store.append(&[change(1)]).unwrap();
        let used = disk.files().iter().map(|file| disk.contents(file).unwrap().len() as u64).sum::<u64>();
        disk.set_capacity(Some(used + room));
        let error = store.append(&[change(2), change(5)]).unwrap_err();
        assert!(error.is_out_of_space() && !store.is_poisoned(), "{error}");
        assert!(snapshot_at(&mut store, 1).unwrap_err().is_out_of_space());
        assert!(snapshot_at(&mut store, 90).unwrap_err().is_out_of_space());
        assert!(!store.is_poisoned() && disk.files().len() == 1, "{:?}", disk.files());
        assert_eq!(versions(store.read_from(Version(0)).unwrap().unwrap()), [1]);
        if room % 2 == 0 {
            disk.crash();
            disk.set_capacity(None);
            (store, _) = open(&disk).unwrap();
            assert_eq!(store.position(), position(1), "what was refused is not believed later");
        }
        disk.set_capacity(None);
        store.append(&[change(2)]).unwrap();
        disk.crash();
        assert_eq!(versions(open(&disk).unwrap().1.entries), [1, 2]);
    }
}

#[test]
fn a_failed_sync_is_never_tried_again() {
    let disk = SimDisk::new(1);
    let (mut store, _) = open(&disk).unwrap();
    store.append(&[change(1)]).unwrap();
    disk.fail_syncs(1);
    assert!(matches!(store.append(&[change(2)]), Err(StoreError::Io { action: "sync", .. })));
    let syncs = disk.counts().syncs;
    assert!(matches!(store.append(&[change(2)]), Err(StoreError::Poisoned { .. })));
    assert!(matches!(store.roll(), Err(StoreError::Poisoned { .. })));
    assert!(matches!(snapshot_at(&mut store, 1), Err(StoreError::Poisoned { .. })));
    assert_eq!(disk.counts().syncs, syncs);
    assert_eq!(versions(store.read_from(Version(0)).unwrap().unwrap()), [1], "reading goes on");
    let (_, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.position, position(1), "a restarted process does not take the kernel's word for it");
}

/// A store with a snapshot, a full segment, and a last one with several appends.
fn furnished() -> (SimDisk, PathBuf, PathBuf, PathBuf) {
    let disk = SimDisk::new(1);
    let (mut store, _) = open(&disk).unwrap();
    store.append(&[change(1)]).unwrap();
    snapshot_at(&mut store, 1).unwrap();
    (2..=6).for_each(|version| store.append(&[change(version)]).unwrap());
    store.roll().unwrap();
    (7..=9).for_each(|version| store.append(&[change(version)]).unwrap());
    let dir = Path::new(DIR);
    (
        disk,
        dir.join(snapshot::file_name(position(1))),
        dir.join(segment::file_name(Version(1))),
        dir.join(segment::file_name(Version(6))),
    )
}

#[test]
fn a_flipped_bit_is_an_error_that_names_the_file_and_what_to_do() {
    let (disk, snapshot, older, last) = furnished();
    let size = |path: &Path| disk.contents(path).unwrap().len() as u64;
    let last_frame = size(&last) - size_of_frame(9);
    for file in [&snapshot, &older, &last] {
        for offset in 0..size(file) {
            let bit = (offset % 8) as u8;
            assert!(disk.flip_bit(file, offset, bit));
            match open(&disk) {
                Err(error @ StoreError::Damaged { .. }) => {
                    let text = error.to_string();
                    assert!(
                        text.contains(file.to_str().unwrap()) && text.contains("move data/metadata away"),
                        "{text}"
                    );
                }
                Err(error) => panic!("byte {offset} of {}: {error}", file.display()),
                // Nothing on the disk tells the last append, flipped, from one that was torn.
                Ok((_, recovered)) => {
                    assert!(file == &last && offset >= last_frame, "byte {offset} of {}", file.display());
                    assert_eq!(versions(recovered.entries), [2, 3, 4, 5, 6, 7, 8]);
                    assert_eq!(recovered.torn_bytes_cut, size_of_frame(9));
                    let (mut store, _) = open(&disk).unwrap();
                    store.append(&[change(9)]).unwrap();
                    continue;
                }
            }
            assert!(disk.flip_bit(file, offset, bit));
        }
    }
    assert_eq!(open(&disk).unwrap().1.position, position(9));
}

fn size_of_frame(version: u64) -> u64 {
    let mut frame = Vec::new();
    codec::encode_frame(&mut frame, 0, Version(version - 1), &[change(version)]).unwrap();
    frame.len() as u64
}

#[test]
fn a_missing_file_is_an_error_and_not_a_shorter_history() {
    let (_, snapshot, older, last) = furnished();
    for lost in [vec![&snapshot], vec![&older], vec![&older, &last]] {
        let (disk, ..) = furnished();
        lost.iter().for_each(|path| disk.remove(path).unwrap());
        assert!(matches!(open(&disk).err(), Some(StoreError::Broken { .. })), "{lost:?}");
    }
}

#[test]
fn damage_that_comes_while_running_ends_the_reading_with_an_error() {
    let (disk, _, older, _) = furnished();
    let (store, _) = open(&disk).unwrap();
    assert!(disk.flip_bit(&older, codec::FILE_HEADER_BYTES as u64 + size_of_frame(2) + 70, 0));
    let mut changes = store.read_from(Version(1)).unwrap().unwrap();
    assert_eq!(changes.next().unwrap().unwrap(), change(2));
    assert!(matches!(changes.next(), Some(Err(StoreError::Damaged { .. }))));
    assert!(changes.next().is_none());
}

/// What the store should hold: the snapshot's version, and the versions after it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Model {
    snapshot: Option<u64>,
    changes: Vec<u64>,
}

impl Model {
    fn version(&self) -> u64 {
        self.changes.last().copied().or(self.snapshot).unwrap_or(0)
    }

    fn with_snapshot(&self, version: u64) -> Self {
        let changes = self.changes.iter().copied().filter(|change| *change > version).collect();
        Self { snapshot: Some(version), changes }
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// Changes with these steps between their versions.
    Append(Vec<u64>),
    Roll,
    /// A snapshot of the n-th newest version there is.
    Compact(usize),
    /// A snapshot of a version that is so much later.
    Reset(u64),
    /// The process ends, and the machine goes on.
    Kill,
    Crash,
    /// The process ends after so many steps, and the machine goes on.
    KillAfter(u64),
    /// Power fails after so many steps, whatever is going on then.
    CrashAfter(u64),
    FullDisk(u64),
    FailSync,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => prop::collection::vec(1_u64..4, 1..4).prop_map(Op::Append),
        2 => Just(Op::Roll),
        3 => (0_usize..6).prop_map(Op::Compact),
        1 => (1_u64..20).prop_map(Op::Reset),
        1 => Just(Op::Kill),
        2 => (0_u64..3000).prop_map(Op::KillAfter),
        1 => Just(Op::Crash),
        4 => (0_u64..3000).prop_map(Op::CrashAfter),
        2 => (0_u64..50).prop_map(Op::CrashAfter),
        1 => (0_u64..3000).prop_map(Op::FullDisk),
        1 => Just(Op::FailSync),
    ]
}

/// A store on a fake disk, and what is known of it.
struct Run {
    disk: SimDisk,
    store: MetadataStore,
    model: Model,
    /// Whether what ends next is the process alone.
    power_stays: bool,
    recoveries: u32,
}

impl Run {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed);
        let (store, _) = open(&disk).unwrap();
        Self { disk, store, model: Model::default(), power_stays: false, recoveries: 0 }
    }

    /// Opens the store again, which must hold what was there before the last operation, or, if it failed, `after` it.
    fn recover(&mut self, after: Option<Model>) {
        let (store, recovered) = match open(&self.disk) {
            Ok(opened) => opened,
            // The power fails again, during recovery, or the disk is still bad.
            Err(StoreError::Io { .. }) => {
                self.disk.set_capacity(None);
                self.disk.crash();
                open(&self.disk).unwrap_or_else(|error| panic!("{error}"))
            }
            Err(error) => panic!("{error}"),
        };
        self.disk.crash_after(u64::MAX >> 1); // Not while the test looks.
        let snapshot = recovered.snapshot.map(|snapshot| {
            let (at, bytes) = read(snapshot);
            assert_eq!(bytes, body(at.version.0));
            at.version.0
        });
        let changes: Vec<_> = recovered.entries.map(|change| change.unwrap()).collect();
        changes.iter().for_each(|found| assert_eq!(*found, change(found.position.version.0)));
        let found = Model { snapshot, changes: changes.iter().map(|change| change.position.version.0).collect() };
        let before = &self.model;
        assert!(found == *before || Some(&found) == after.as_ref(), "{found:?} is neither {before:?} nor {after:?}");
        assert_eq!(recovered.position.version.0, found.version());
        assert_eq!(recovered.controller_epoch.0, found.version() / 10);
        self.store = store;
        self.model = found;
        self.recoveries += 1;
    }

    fn step(&mut self, op: &Op) {
        let mut after = self.model.clone();
        let result = match op {
            Op::Append(steps) => {
                for step in steps {
                    after.changes.push(after.version() + step);
                }
                let new: Vec<_> =
                    after.changes[self.model.changes.len()..].iter().map(|version| change(*version)).collect();
                self.store.append(&new)
            }
            Op::Roll => self.store.roll(),
            Op::Compact(back) => {
                let Some(version) = self.model.changes.iter().rev().nth(*back).copied() else { return };
                after = self.model.with_snapshot(version);
                snapshot_at(&mut self.store, version)
            }
            Op::Reset(steps) => {
                after = Model { snapshot: Some(self.model.version() + steps), changes: Vec::new() };
                snapshot_at(&mut self.store, after.version())
            }
            Op::Kill => {
                self.disk.kill();
                return self.recover(None);
            }
            Op::KillAfter(steps) => {
                self.power_stays = true;
                return self.disk.crash_after(*steps);
            }
            Op::Crash => {
                self.disk.crash();
                return self.recover(None);
            }
            Op::CrashAfter(steps) => {
                self.power_stays = false;
                return self.disk.crash_after(*steps);
            }
            Op::FullDisk(room) => {
                let used: usize =
                    self.disk.files().iter().filter_map(|file| self.disk.contents(file)).map(|file| file.len()).sum();
                return self.disk.set_capacity(Some(used as u64 + room));
            }
            Op::FailSync => return self.disk.fail_syncs(1),
        };
        match result {
            Ok(()) => {
                self.model = after;
                self.check_reading();
            }
            Err(error) if error.is_out_of_space() && !self.store.is_poisoned() => {
                self.disk.set_capacity(None);
                // Nothing of it will come back, as the next recovery shows.
                self.check_reading();
            }
            Err(_) => {
                self.disk.set_capacity(None);
                match self.power_stays {
                    true => self.disk.kill(),
                    false => self.disk.crash(),
                }
                self.recover(Some(after));
            }
        }
    }

    /// What is read beside the writer is what was stored.
    fn check_reading(&self) {
        let from = self.model.snapshot.unwrap_or(0);
        match self.store.read_from(Version(from)) {
            Ok(changes) => {
                let changes: Result<Vec<_>, _> = changes.unwrap().collect();
                let Ok(changes) = changes else { return }; // The power failed.
                let read: Vec<_> = changes.iter().map(|change| change.position.version.0).collect();
                assert_eq!(read, self.model.changes);
            }
            Err(error) => assert!(matches!(error, StoreError::Io { .. }), "{error}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn whatever_fails_what_was_acknowledged_is_recovered_and_nothing_half_done(
        seed: u64,
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let mut run = Run::new(seed);
        ops.iter().for_each(|op| run.step(op));
        run.step(&Op::Crash);
    }

    #[test]
    fn random_bytes_are_refused_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), which in 0..3) {
        let (disk, snapshot, older, last) = furnished();
        let path = [snapshot, older, last][which as usize].clone();
        let mut file = disk.create(&path).unwrap();
        file.append(&bytes).unwrap();
        prop_assert!(open(&disk).is_err());
    }
}

#[test]
fn a_crash_at_any_byte_recovers_to_before_or_after() {
    let script = [
        Op::Append(vec![1]),
        Op::Append(vec![2, 1, 1]),
        Op::Roll,
        Op::Append(vec![1]),
        Op::Compact(1),
        Op::Append(vec![1, 1]),
        Op::Compact(0),
        Op::Append(vec![1]),
        Op::Reset(5),
        Op::Append(vec![1]),
    ];
    let mut whole = Run::new(0);
    let begun = whole.disk.steps();
    script.iter().for_each(|op| whole.step(op));
    let steps = whole.disk.steps() - begun;
    for seed in 0..4 {
        for at in 0..steps {
            let mut run = Run::new(seed * steps + at);
            run.step(&if seed < 2 { Op::KillAfter(at) } else { Op::CrashAfter(at) });
            for op in &script {
                run.step(op);
                // Sometimes go on to the end, and sometimes lose the power soon after.
                if run.recoveries > 0 && seed % 2 == 0 {
                    run.step(&Op::Append(vec![1]));
                    break;
                }
            }
            run.step(&Op::Crash);
        }
    }
}

#[test]
fn readers_see_a_history_without_gaps_while_it_is_written_and_compacted() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = MetadataStore::open(&dir.path().join("metadata")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (reader, done) = (store.reader(), &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let from = reader.snapshot().map_or(0, |info| info.position.version.0);
                    // Compacted between the two calls: the client begins anew.
                    let Some(changes) = reader.read_from(Version(from)).unwrap() else { continue };
                    let read = versions(changes);
                    assert!(read.iter().copied().eq(from + 1..from + 1 + read.len() as u64), "{read:?} after {from}");
                    if let Some(chunk) = reader.snapshot_chunk(position(from), 0, 1 << 20).unwrap() {
                        assert_eq!(chunk.bytes, body(from));
                    }
                }
            });
        }
        for version in 1..=300 {
            store.append(&[change(version)]).unwrap();
            if version % 20 == 0 {
                snapshot_at(&mut store, version - version % 3).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    drop(store);
    let (_, recovered) = MetadataStore::open(&dir.path().join("metadata")).unwrap();
    assert_eq!(recovered.position, position(300));
    assert_eq!(std::fs::read_dir(dir.path().join("metadata")).unwrap().count(), 2);
}
