//! Reading beside the one who writes.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, RwLock};

use super::*;
use crate::disk::{FileSystem, ReadFile, WriteFile};

/// A file's name, and where.
type LetGo = (String, Range<u64>);
type Hook = Box<dyn FnMut() + Send>;

/// A disk that does something else first, once, where it is asked to read or to change a name.
#[derive(Clone)]
struct Hooked {
    disk: SimDisk,
    reading: Arc<Mutex<Option<Hook>>>,
    changing: Arc<Mutex<Option<Hook>>>,
    /// What need not stay in memory, by file.
    let_go: Arc<Mutex<Vec<LetGo>>>,
}

impl Hooked {
    fn new(seed: u64) -> Self {
        Self { disk: SimDisk::new(seed), reading: Arc::default(), changing: Arc::default(), let_go: Arc::default() }
    }

    fn run(hook: &Mutex<Option<Hook>>) {
        let taken = hook.lock().unwrap().take();
        if let Some(mut hook) = taken {
            hook();
        }
    }
}

struct HookedFile(Box<dyn ReadFile>, Hooked, String);

impl ReadFile for HookedFile {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        Hooked::run(&self.1.reading);
        self.0.read_at(offset, into)
    }

    fn let_go(&self, range: Range<u64>) {
        self.1.let_go.lock().unwrap().push((self.2.clone(), range));
    }
}

impl Disk for Hooked {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        self.disk.create(path)
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        self.disk.append(path)
    }

    fn overwrite(&self, path: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.overwrite(path, at, bytes)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        Hooked::run(&self.reading);
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        Ok(Box::new(HookedFile(self.disk.open(path)?, self.clone(), name)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Hooked::run(&self.changing);
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Hooked::run(&self.changing);
        self.disk.remove(path)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.remove_dir_all(dir)
    }

    fn size(&self, path: &Path) -> io::Result<u64> {
        self.disk.size(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }

    fn file_system(&self, dir: &Path) -> io::Result<Option<Box<dyn FileSystem>>> {
        self.disk.file_system(dir)
    }
}

fn open_hooked(disk: &Hooked, config: LogConfig) -> Log {
    let files = Files::new(Arc::new(disk.clone()), 8);
    Log::open(id(), dir(), config, files, OpenOptions::new(TOPIC), NOW).unwrap()
}

fn compacting() -> LogConfig {
    LogConfig { compact: true, delete: false, ..config() }
}

/// Batches of one key, so that compaction leaves one.
fn fill_one_key(log: &mut Log, count: usize) {
    let value = "v".repeat(300);
    for _ in 0..count {
        log.append(&keyed(&[("k", Some(&value)), ("k", Some("last"))]), EPOCH, NOW).unwrap();
    }
}

#[test]
fn a_plan_that_is_read_late_reads_what_was_there_or_says_that_it_changed() {
    type Change = fn(&mut Log);
    let harmless: [Change; 4] =
        [|log| fill(log, 50), |log| log.roll().unwrap(), |log| log.sync().unwrap(), |log| log.checkpoint().unwrap()];
    let disturbing: [Change; 5] = [
        |log| {
            let end = log.truncate_to(Offset(31), NOW).unwrap();
            log.append(&numbered(end.0 + 7), LeaderEpoch(9), NOW).unwrap();
        },
        |log| log.reset_to(Offset(0)).unwrap(),
        |log| _ = log.delete_before(Offset(100)).unwrap(),
        |log| {
            log.set_config(LogConfig { retention_bytes: Some(2_000), ..config() });
            assert!(log.delete_old(NOW, ALL).unwrap() > 0);
        },
        |log| {
            log.set_config(compacting());
            fill_one_key(log, 60);
            log.roll().unwrap();
            log.compact(NOW, ALL, 1_000).unwrap();
        },
    ];
    for (changes, same) in [(&harmless[..], true), (&disturbing[..], false)] {
        for (number, change) in changes.iter().enumerate() {
            let disk = SimDisk::new(40);
            let mut log = open(&disk, config());
            fill(&mut log, 120);
            let wanted = log.read(Offset(30), 700, ALL).unwrap();
            let plan = log.locate(Offset(30), 700, ALL).unwrap();
            change(&mut log);
            match plan.read() {
                Ok(found) => assert!(same && found == wanted, "{number}"),
                Err(LogError::Changed { .. }) => assert!(!same, "{number}"),
                Err(other) => panic!("{number}: {other}"),
            }
        }
    }
    let disk = SimDisk::new(40);
    let mut log = open(&disk, config());
    fill(&mut log, 120);
    let plan = log.locate(Offset(30), 700, ALL).unwrap();
    drop(log);
    assert!(matches!(plan.read(), Err(LogError::Changed { .. })), "its directory may be another's");
}

#[test]
fn a_plan_for_what_cannot_be_read_says_so_at_once() {
    let disk = SimDisk::new(41);
    let mut log = open(&disk, config());
    fill(&mut log, 100);
    log.delete_before(Offset(50)).unwrap();
    for offset in [0, 49, 101] {
        assert!(matches!(log.locate(Offset(offset), 10, ALL), Err(LogError::OffsetOutOfRange { .. })));
    }
    assert!(log.locate(Offset(100), 10, ALL).unwrap().is_empty());
    assert!(log.locate(Offset(60), 10, Offset(60)).unwrap().is_empty());
    let before = disk.steps();
    assert!(!log.locate(Offset(50), 10, ALL).unwrap().is_empty());
    assert_eq!(disk.steps(), before, "it touches no file");
}

#[test]
fn a_reader_that_the_disk_keeps_waiting_keeps_nobody_else_waiting() {
    let disk = Hooked::new(42);
    let mut log = open_hooked(&disk, config());
    fill(&mut log, 100);
    log.checkpoint().unwrap();
    let log = RwLock::new(log);
    let wanted = log.read().unwrap().read(Offset(60), 700, ALL).unwrap();
    // While it opens its file, and while it reads it.
    let log = {
        drop(log);
        RwLock::new(open_hooked(&disk, config()))
    };
    for _ in 0..2 {
        let (entered, has_entered): (Sender<()>, Receiver<()>) = channel();
        let (release, released): (Sender<()>, Receiver<()>) = channel();
        std::thread::scope(|scope| {
            // Whatever fails here lets the reader go.
            let release = release;
            let plan = log.read().unwrap().locate(Offset(60), 700, ALL).unwrap();
            *disk.reading.lock().unwrap() = Some(Box::new(move || {
                entered.send(()).unwrap();
                _ = released.recv();
            }));
            let reader = scope.spawn(move || plan.read());
            has_entered.recv().unwrap();
            let mut held = log.try_write().expect("nobody holds it");
            fill(&mut held, 30);
            held.sync().unwrap();
            assert_eq!(offsets(&records_from(&held, Offset(100))).first(), Some(&100));
            drop(held);
            release.send(()).unwrap();
            assert_eq!(reader.join().unwrap().unwrap(), wanted);
        });
    }
}

#[test]
fn no_handle_is_kept_of_a_file_whose_name_went_to_another_while_it_was_opened() {
    for change in 0..12 {
        let disk = Hooked::new(43);
        let mut log = open_hooked(&disk, compacting());
        fill_one_key(&mut log, 60);
        log.roll().unwrap();
        let plan = log.locate(Offset(20), 700, ALL).unwrap();
        // A reader comes before the so-manieth change, and fills the cache.
        fn arm(disk: &Hooked, left: usize, plan: ReadPlan, met: Arc<AtomicBool>) {
            let inner = disk.clone();
            let mut plan = Some(plan);
            *disk.changing.lock().unwrap() = Some(Box::new(move || {
                let plan = plan.take().unwrap();
                if left > 0 {
                    return arm(&inner, left - 1, plan, met.clone());
                }
                met.store(true, Ordering::Relaxed);
                _ = plan.read();
            }));
        }
        let met = Arc::new(AtomicBool::new(false));
        arm(&disk, change, plan, met.clone());
        log.compact(NOW, ALL, 1_000).unwrap();
        assert!(met.load(Ordering::Relaxed), "{change}");
        let found = log.read(Offset(20), 1 << 20, ALL).unwrap();
        assert_eq!(offsets(&decode(&found.batches)), [119], "{change}");
    }
}

#[test]
fn readers_beside_a_writer_who_cuts_never_see_what_is_not_there() {
    const ROUNDS: u64 = 20;
    let folder = tempfile::tempdir().unwrap();
    let files = Files::new(Arc::new(RealDisk), 8);
    let log = Log::open(id(), folder.path().join("orders-0"), config(), files, OpenOptions::new(TOPIC), NOW).unwrap();
    // The log, and beside it what each offset holds.
    let shared = RwLock::new((log, Vec::<String>::new()));
    let (done, good, changed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for reader in 0..2u64 {
            let (shared, done, good, changed) = (&shared, &done, &good, &changed);
            scope.spawn(move || {
                let mut random = reader * 7 + 1;
                while !done.load(Ordering::Relaxed) {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let (plan, from, wanted) = {
                        let held = shared.read().unwrap();
                        let from = (random >> 33) as usize % (held.1.len() + 1);
                        let wanted: Vec<String> = held.1[from..].iter().take(40).cloned().collect();
                        (held.0.locate(Offset(from as i64), 2_500, ALL).unwrap(), from, wanted)
                    };
                    match plan.read() {
                        Ok(found) => {
                            let found = decode(&found.batches);
                            assert!(!found.is_empty() || wanted.is_empty());
                            for (record, wanted) in
                                found.iter().filter(|record| record.offset.0 >= from as i64).zip(wanted)
                            {
                                assert_eq!(record.value.as_deref(), Some(wanted.as_bytes()), "{}", record.offset);
                            }
                            good.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(LogError::Changed { .. }) => _ = changed.fetch_add(1, Ordering::Relaxed),
                        Err(other) => panic!("{other}"),
                    }
                }
            });
        }
        let enough = || good.load(Ordering::Relaxed) > 100 && changed.load(Ordering::Relaxed) > 20;
        for round in (0..u64::MAX).take_while(|round| *round < ROUNDS || !enough()) {
            for number in 0..10 {
                let mut held = shared.write().unwrap();
                let value = format!("{round}-{number}-{:-<90}", held.1.len());
                held.0.append(&batch_at(NOW, &[&value]), LeaderEpoch(round as u32 + 1), NOW).unwrap();
                held.1.push(value);
            }
            let mut held = shared.write().unwrap();
            let kept = held.1.len() - 5 - (round % 5) as usize;
            held.0.truncate_to(Offset(kept as i64), NOW).unwrap();
            held.1.truncate(kept);
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn where_the_page_cache_is_bounded_the_oldest_that_is_durable_leaves_it_also_over_segments() {
    const LIMIT: u64 = 10_000;
    let disk = Hooked::new(44);
    let files = Files::new(Arc::new(disk.clone()), 8);
    files.bound_page_cache(LIMIT);
    let mut log = Log::open(id(), dir(), config(), files, OpenOptions::new(TOPIC), NOW).unwrap();
    fill(&mut log, 2);
    assert_eq!(*disk.let_go.lock().unwrap(), [], "nothing is durable yet");
    for _ in 0..129 {
        log.sync().unwrap();
        fill(&mut log, 2);
    }
    log.sync().unwrap();
    let gone = std::mem::take(&mut *disk.let_go.lock().unwrap());
    let total: u64 = gone.iter().map(|(_, range)| range.end - range.start).sum();
    // What becomes durable at once goes at once: two batches.
    let least = log.size_bytes() - LIMIT;
    assert!((least..least + 500).contains(&total), "{total} of {least}: {gone:?}");
    assert!(gone.iter().map(|(name, _)| name).collect::<std::collections::BTreeSet<_>>().len() > 1, "{gone:?}");
    for pair in gone.windows(2) {
        let [(before, first), (name, range)] = pair else { unreachable!() };
        assert!(if before == name { first.end == range.start } else { before < name && range.start == 0 }, "{gone:?}");
    }
    // Whoever reads so far back leaves nothing of it behind; at the end all stays.
    log.read(Offset(0), 500, ALL).unwrap();
    let read = std::mem::take(&mut *disk.let_go.lock().unwrap());
    assert!(matches!(&read[..], [(name, _)] if *name == gone[0].0), "{read:?}");
    log.read(Offset(log.end().0 - 1), 500, ALL).unwrap();
    assert_eq!(*disk.let_go.lock().unwrap(), []);
}
