//! services.json on the disk: read once, and watched for a change while a process runs.
//!
//! The watcher looks at the content, not at the file's times or at notifications: an editor replaces the file, a mounted
//! folder swaps a link, and neither is reliably told of. A file that is wrong or gone never takes away the last good one.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::services::{Fault, Services};

/// How often the watcher looks, unless told otherwise.
pub const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The largest file that is read, in bytes: some 100,000 services with all their subjects.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ServicesFileError {
    #[error("cannot read {}: {message}; give its path with --services, or none for the defaults", path.display())]
    Unreadable { path: PathBuf, kind: io::ErrorKind, message: String },
    #[error("{} has more than {MAX_FILE_BYTES} bytes; this is no services.json", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} is no UTF-8 text; save it as UTF-8", path.display())]
    NotUtf8 { path: PathBuf },
    /// Every fault of the file.
    #[error("{} has {}:{}", path.display(), Count(faults.len()), Lines(faults))]
    Faulty { path: PathBuf, faults: Vec<Fault> },
}

struct Count(usize);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0 == 1 { "" } else { "s" };
        write!(f, "{} fault{plural}", self.0)
    }
}

struct Lines<'a>(&'a [Fault]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

/// Reads and validates a services.json.
pub fn load(path: &Path) -> Result<Services, ServicesFileError> {
    parse(path, read(path)?)
}

fn read(path: &Path) -> Result<Vec<u8>, ServicesFileError> {
    use io::Read;
    let unreadable = |error: io::Error| ServicesFileError::Unreadable {
        path: path.into(),
        kind: error.kind(),
        message: error.to_string(),
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ServicesFileError::TooLarge { path: path.into() });
    }
    Ok(bytes)
}

fn parse(path: &Path, bytes: Vec<u8>) -> Result<Services, ServicesFileError> {
    let text = String::from_utf8(bytes).map_err(|_| ServicesFileError::NotUtf8 { path: path.into() })?;
    Services::parse(&text).map_err(|faults| ServicesFileError::Faulty { path: path.into(), faults })
}

/// Follows a services.json while a process runs. Dropping it ends the following; the receivers keep the last good file.
#[derive(Debug)]
pub struct Watcher {
    services: watch::Receiver<Arc<Services>>,
    task: JoinHandle<()>,
}

impl Watcher {
    /// Loads the file, which must be good, and follows it from then on, looking every `interval`.
    ///
    /// Needs a tokio runtime.
    pub fn start(path: &Path, interval: Duration) -> Result<Self, ServicesFileError> {
        let bytes = read(path)?;
        let first = Arc::new(parse(path, bytes.clone())?);
        let (sender, services) = watch::channel(first);
        let follower = Follower { path: path.into(), seen: Ok(bytes), sender };
        let task = tokio::spawn(follower.run(interval));
        Ok(Self { services, task })
    }

    /// The last good file, now and after each change.
    pub fn services(&self) -> watch::Receiver<Arc<Services>> {
        self.services.clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Follower {
    path: PathBuf,
    /// What was read last, good or bad, so that each fault is logged once and not once per look.
    seen: Result<Vec<u8>, ServicesFileError>,
    sender: watch::Sender<Arc<Services>>,
}

impl Follower {
    async fn run(mut self, interval: Duration) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let path = self.path.clone();
            // A mount that hangs must not hold up the runtime's threads.
            let Ok(read) = tokio::task::spawn_blocking(move || read(&path)).await else { continue };
            self.look(read);
        }
    }

    fn look(&mut self, read: Result<Vec<u8>, ServicesFileError>) {
        if read == self.seen {
            return;
        }
        self.seen = read.clone();
        match read.and_then(|bytes| parse(&self.path, bytes)) {
            Ok(services) => {
                let changed = self.sender.send_if_modified(|current| {
                    let changed = **current != services;
                    if changed {
                        *current = Arc::new(services);
                    }
                    changed
                });
                let path = self.path.display();
                tracing::info!(%path, changed, "services.json is good; it is in force");
            }
            Err(ServicesFileError::Faulty { path, faults }) => {
                let count = faults.len();
                tracing::warn!(path = %path.display(), count, "services.json has faults; the last good one stays in force");
                for fault in faults {
                    tracing::warn!(path = %path.display(), "services.json: {fault}");
                }
            }
            Err(error) => tracing::warn!("services.json: {error}; the last good one stays in force"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::StorageId;

    const LOOK: Duration = Duration::from_millis(5);

    fn with_storage(id: u32) -> String {
        format!(r#"{{"storageServices": [{{"id": {id}}}]}}"#)
    }

    async fn until_listed(services: &mut watch::Receiver<Arc<Services>>, id: u32) {
        let listed = services.wait_for(|services| services.lists_storage(StorageId(id)));
        tokio::time::timeout(Duration::from_secs(10), listed).await.expect("the change is noticed").unwrap();
    }

    #[test]
    fn what_is_wrong_with_the_file_is_said_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("services.json");
        let error = load(&path).unwrap_err();
        assert!(matches!(&error, ServicesFileError::Unreadable { kind: io::ErrorKind::NotFound, .. }), "{error}");
        std::fs::write(&path, b"\xff").unwrap();
        assert_eq!(load(&path), Err(ServicesFileError::NotUtf8 { path: path.clone() }));
        std::fs::write(&path, r#"{"storageServices": [{"id": -1}, {"id": 1, "x": 0}]}"#).unwrap();
        let text = load(&path).unwrap_err().to_string();
        assert!(text.contains("has 2 faults:\n  storageServices[0].id: "), "{text}");
    }

    #[tokio::test]
    async fn a_change_is_noticed_whether_written_renamed_or_linked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("services.json");
        std::fs::write(&path, with_storage(1)).unwrap();
        let watcher = Watcher::start(&path, LOOK).unwrap();
        let mut services = watcher.services();
        assert!(services.borrow().lists_storage(StorageId(1)));

        std::fs::write(&path, with_storage(2)).unwrap();
        until_listed(&mut services, 2).await;

        let other = dir.path().join("new");
        std::fs::write(&other, with_storage(3)).unwrap();
        std::fs::rename(&other, &path).unwrap();
        until_listed(&mut services, 3).await;

        std::fs::write(&other, with_storage(4)).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        until_listed(&mut services, 4).await;
    }

    #[tokio::test]
    async fn a_bad_or_missing_file_leaves_the_last_good_one_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("services.json");
        std::fs::write(&path, with_storage(1)).unwrap();
        assert!(Watcher::start(&dir.path().join("none"), LOOK).is_err());
        let watcher = Watcher::start(&path, LOOK).unwrap();
        let (sender, services) = watch::channel(watcher.services().borrow().clone());
        let mut follower = Follower { path: path.clone(), seen: read(&path), sender };
        for bad in [Some("{"), None, Some(r#"{"storageServices": [{"id": 1}, {"id": 1}]}"#)] {
            match bad {
                Some(text) => std::fs::write(&path, text).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            follower.look(read(&path));
            assert!(!services.has_changed().unwrap(), "{bad:?}");
            assert!(services.borrow().lists_storage(StorageId(1)));
        }
        std::fs::write(&path, with_storage(2)).unwrap();
        follower.look(read(&path));
        assert!(services.borrow().lists_storage(StorageId(2)));
    }
}
