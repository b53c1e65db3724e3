//! A node's data directory: who it is, and that no other live process uses it.
//!
//! A node *is* its directory, so its identity is made once, with it, and never again where anything hints at an older one.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::files::{Disk, RealDisk, parent_of, publish, temporary_name};
use crate::types::{ClusterId, DirectoryId, NodeEpoch, WallTime};

const FORMAT_VERSION: u32 = 1;
const IDENTITY: &str = "identity.json";
const LOCK: &str = "lock";
const METADATA: &str = "metadata";
/// How many folders a data root may hold.
const ROOT_LIMIT: u32 = 10_000;

/// What the process that owns a directory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    Controller,
    Storage,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Controller => "controller",
            Self::Storage => "storage",
        })
    }
}

/// What `identity.json` holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Identity {
    pub format_version: u32,
    pub directory_id: DirectoryId,
    pub created_at: WallTime,
    pub role: Role,
    /// The cluster that the node joined.
    #[serde(default)]
    pub cluster_id: Option<ClusterId>,
    /// The id that the node has in it: a controller's or a storage node's, as the role says.
    #[serde(default)]
    pub id: Option<u32>,
    /// Of a storage node: the epoch of its last incarnation. A copy of the directory that is put back later has an older one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_epoch: Option<NodeEpoch>,
}

#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    #[error(
        "{} is in use by another dmq process{}: stop that one, or give this one a directory of its own (--data)",
        path.display(), holder.as_ref().map(|holder| format!(" ({holder})")).unwrap_or_default()
    )]
    InUse { path: PathBuf, holder: Option<String> },

    #[error(
        "{} cannot be read as a node's identity ({cause}): restore the file from a backup, or, if its data may be lost, move the whole directory away and let `dmq node replace ID` make way for a new node",
        path.display()
    )]
    Unreadable { path: PathBuf, cause: String },

    #[error(
        "{} is missing although the directory holds a node's metadata: restore the file from a backup, or, if its data may be lost, move the whole directory away and let `dmq node replace ID` make way for a new node",
        path.display()
    )]
    Missing { path: PathBuf },

    #[error(
        "{} has format version {found}, and this dmq knows only {FORMAT_VERSION}: start the newer dmq that wrote it",
        path.display()
    )]
    UnknownFormat { path: PathBuf, found: u64 },

    #[error(
        "{} belongs to a node with the role '{found}', and this process is one with the role '{wanted}': give it another directory (--data)",
        path.display()
    )]
    OtherRole { path: PathBuf, found: Role, wanted: Role },

    #[error(
        "{} belongs to the node with id {found_id} of the cluster {found_cluster}, and cannot become id {id} of the cluster {cluster}: start it with its own id and cluster, or give this node another directory (--data)",
        path.display()
    )]
    Bound { path: PathBuf, found_cluster: ClusterId, found_id: u32, cluster: ClusterId, id: u32 },

    #[error("{} holds {ROOT_LIMIT} folders, and each is in use: give this process another root", root.display())]
    RootFull { root: PathBuf },
}

/// A data directory that this process alone uses, as long as this value lives.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    /// Of a root that several share: its number there.
    number: Option<u32>,
    identity: Identity,
    _lock: Lock,
}

/// The lock goes with the process, however it ends.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    /// By its own word, for a child that was forked and did not begin its program yet has the file open too.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

impl DataDirectory {
    /// Locks a directory and reads whose it is. Where it is missing or empty, it becomes that of a new node.
    pub fn open(path: &Path, role: Role) -> Result<Self, DirectoryError> {
        make_directory(path)?;
        let lock = lock(path)?;
        let identity_path = path.join(IDENTITY);
        let identity = match fs::read(&identity_path) {
            Ok(bytes) => parse(&identity_path, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if path.join(METADATA).exists() {
                    return Err(DirectoryError::Missing { path: identity_path });
                }
                let identity = new_identity(role);
                write(&identity_path, &identity)?;
                identity
            }
            Err(source) => return Err(DirectoryError::Io { action: "read", path: identity_path, source }),
        };
        // Before anybody is told who this is. Also where the identity was found: who made it may have been killed.
        for dir in [path, parent_of(path)] {
            RealDisk.sync_dir(dir).map_err(io_error("sync", dir))?;
        }
        if identity.role != role {
            return Err(DirectoryError::OtherRole { path: path.to_owned(), found: identity.role, wanted: role });
        }
        Ok(Self { path: path.to_owned(), number: None, identity, _lock: lock })
    }

    /// Locks the first folder `0`, `1`, … of a root that several processes share, each of which wants one.
    ///
    /// Folders that exist come first, the lowest before others, and only where each of them is in use is one made. A
    /// folder with a broken identity is passed over for a free one, but no new node is made in its place: that is an
    /// error, which names it.
    pub fn open_first_free(root: &Path, role: Role) -> Result<Self, DirectoryError> {
        make_directory(root)?;
        loop {
            let numbers = numbered(root)?;
            let mut broken = None;
            for number in &numbers {
                match Self::open(&root.join(number.to_string()), role) {
                    Ok(directory) => return Ok(Self { number: Some(*number), ..directory }),
                    Err(DirectoryError::InUse { .. }) => {}
                    Err(error) => {
                        tracing::error!(%error, "a folder of the data root cannot be used");
                        broken = broken.or(Some(error));
                    }
                }
            }
            if let Some(error) = broken {
                return Err(error);
            }
            let free = (0..ROOT_LIMIT).find(|number| numbers.binary_search(number).is_err());
            let Some(free) = free else { return Err(DirectoryError::RootFull { root: root.to_owned() }) };
            // Another process may make the same one at this moment, or lock the one made here. Then look again: each
            // round that gives nothing has given somebody else a folder.
            match Self::open(&root.join(free.to_string()), role) {
                Err(DirectoryError::InUse { .. }) => {}
                result => return result.map(|directory| Self { number: Some(free), ..directory }),
            }
        }
    }

    /// Writes down which node of which cluster this is. The same again changes nothing; another is refused.
    pub fn bind(&mut self, cluster: ClusterId, id: u32) -> Result<(), DirectoryError> {
        self.put(self.bound(cluster, id)?)
    }

    /// As [`Self::bind`], of a storage node that was registered: with the epoch of its incarnation, before that does anything.
    pub fn bind_registered(&mut self, cluster: ClusterId, id: u32, epoch: NodeEpoch) -> Result<(), DirectoryError> {
        self.put(Identity { node_epoch: Some(epoch), ..self.bound(cluster, id)? })
    }

    fn bound(&self, cluster: ClusterId, id: u32) -> Result<Identity, DirectoryError> {
        let found_cluster = self.identity.cluster_id.unwrap_or(cluster);
        let found_id = self.identity.id.unwrap_or(id);
        if (found_cluster, found_id) != (cluster, id) {
            return Err(DirectoryError::Bound { path: self.path.clone(), found_cluster, found_id, cluster, id });
        }
        Ok(Identity { cluster_id: Some(cluster), id: Some(id), ..self.identity.clone() })
    }

    fn put(&mut self, identity: Identity) -> Result<(), DirectoryError> {
        if identity != self.identity {
            write(&self.path.join(IDENTITY), &identity)?;
            self.identity = identity;
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of its folder in the root that it was taken from.
    pub fn number_in_root(&self) -> Option<u32> {
        self.number
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn directory_id(&self) -> DirectoryId {
        self.identity.directory_id
    }

    /// Where the applied metadata is kept.
    pub fn metadata_path(&self) -> PathBuf {
        self.path.join(METADATA)
    }
}

/// Whose directory that is, whether or not a process uses it. None where it has no identity yet.
///
/// # Errors
/// Where the identity cannot be read, or is of another format.
pub fn identity_of(path: &Path) -> Result<Option<Identity>, DirectoryError> {
    let path = path.join(IDENTITY);
    match fs::read(&path) {
        Ok(bytes) => parse(&path, &bytes).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DirectoryError::Io { action: "read", path, source }),
    }
}

/// The folders of a root that a process of this host, or of this container, was the last to lock.
///
/// # Errors
/// Where the root cannot be listed.
pub fn held_by_this_host(root: &Path) -> Result<Vec<PathBuf>, DirectoryError> {
    let of_host = |text: &str| {
        text.trim().split_once(' ').and_then(|(_, rest)| rest.split_once(' ')).map_or("", |t| t.1).to_owned()
    };
    let here = of_host(&myself());
    let folders = numbered(root)?.into_iter().map(|number| root.join(number.to_string()));
    Ok(folders
        .filter(|folder| fs::read_to_string(folder.join(LOCK)).is_ok_and(|text| of_host(&text) == here))
        .collect())
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirectoryError {
    let path = path.to_owned();
    move |source| DirectoryError::Io { action, path, source }
}

fn make_directory(path: &Path) -> Result<(), DirectoryError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("make", path))
}

fn lock(directory: &Path) -> Result<Lock, DirectoryError> {
    let path = directory.join(LOCK);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = open.map_err(io_error("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            // Best effort: the holder may not have written its pid yet.
            let mut text = String::new();
            let _ = file.read_to_string(&mut text);
            let holder = Some(text.trim().to_owned()).filter(|holder| !holder.is_empty());
            return Err(DirectoryError::InUse { path: directory.to_owned(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(DirectoryError::Io { action: "lock", path, source }),
    }
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", myself()));
    written.map_err(io_error("write", &path))?;
    Ok(Lock(file))
}

/// How another process names this one. With the host, because containers that share a volume count pids from 1 each.
fn myself() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match host.trim() {
        "" => format!("pid {}", std::process::id()),
        host => format!("pid {} on {host}", std::process::id()),
    }
}

fn new_identity(role: Role) -> Identity {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Identity {
        format_version: FORMAT_VERSION,
        directory_id: DirectoryId(Uuid::new_v4()),
        created_at: WallTime(now.as_millis() as u64),
        role,
        cluster_id: None,
        id: None,
        node_epoch: None,
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Identity, DirectoryError> {
    let unreadable =
        |error: serde_json::Error| DirectoryError::Unreadable { path: path.to_owned(), cause: error.to_string() };
    // The version first: a newer one may have fields that this dmq does not know.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Format {
        format_version: u64,
    }
    let format: Format = serde_json::from_slice(bytes).map_err(unreadable)?;
    if format.format_version != u64::from(FORMAT_VERSION) {
        return Err(DirectoryError::UnknownFormat { path: path.to_owned(), found: format.format_version });
    }
    serde_json::from_slice(bytes).map_err(unreadable)
}

fn write(path: &Path, identity: &Identity) -> Result<(), DirectoryError> {
    let temporary = temporary_name(path);
    let mut json = serde_json::to_vec_pretty(identity)
        .map_err(|error| DirectoryError::Unreadable { path: path.to_owned(), cause: error.to_string() })?;
    json.push(b'\n');
    let mut options = OpenOptions::new();
    let open = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary);
    let written = open.and_then(|mut file| {
        file.write_all(&json)?;
        file.sync_all()
    });
    written.map_err(io_error("write", &temporary))?;
    publish(&RealDisk, &temporary, path).map_err(io_error("write", path))
}

/// The folders of a root that have a number for a name, lowest first.
fn numbered(root: &Path) -> Result<Vec<u32>, DirectoryError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(root).map_err(io_error("list", root))? {
        let entry = entry.map_err(io_error("list", root))?;
        numbers.extend(number(&entry.file_name()));
    }
    numbers.sort();
    Ok(numbers)
}

fn number(name: &OsStr) -> Option<u32> {
    let name = name.to_str()?;
    let number: u32 = name.parse().ok()?;
    (number.to_string() == name).then_some(number)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};
    use std::sync::Barrier;

    use super::*;

    fn uuid(number: u128) -> ClusterId {
        ClusterId(Uuid::from_u128(number))
    }

    #[test]
    fn a_directory_keeps_its_identity_and_its_binding() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        let mut directory = DataDirectory::open(&path, Role::Storage).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!((directory.identity().cluster_id, directory.identity().id), (None, None));
        directory.bind(uuid(1), 4).unwrap();
        directory.bind(uuid(1), 4).unwrap();
        for (cluster, id) in [(uuid(2), 4), (uuid(1), 5)] {
            assert!(matches!(directory.bind(cluster, id), Err(DirectoryError::Bound { found_id: 4, .. })));
        }
        let before = directory.identity().clone();
        drop(directory);
        let after = DataDirectory::open(&path, Role::Storage).unwrap().identity().clone();
        assert_eq!(after, before);
        assert_eq!((after.cluster_id, after.id), (Some(uuid(1)), Some(4)));
        DataDirectory::open(&path, Role::Storage).unwrap().bind_registered(uuid(1), 4, NodeEpoch(77)).unwrap();
        assert_eq!(identity_of(&path).unwrap(), Some(Identity { node_epoch: Some(NodeEpoch(77)), ..after }));
        let json = fs::read_to_string(path.join(IDENTITY)).unwrap();
        assert!(json.contains("\"formatVersion\": 1") && json.contains("\"role\": \"storage\""), "{json}");
    }

    #[test]
    fn a_directory_in_use_names_who_uses_it() {
        let root = tempfile::tempdir().unwrap();
        let held = DataDirectory::open(root.path(), Role::Storage).unwrap();
        let error = DataDirectory::open(root.path(), Role::Storage).unwrap_err();
        assert!(matches!(&error, DirectoryError::InUse { holder: Some(holder), .. } if *holder == myself()), "{error}");
        drop(held);
        DataDirectory::open(root.path(), Role::Storage).unwrap();
    }

    const CHILD_DIRECTORY: &str = "DMQ_TEST_LOCKED_DIRECTORY";

    #[test]
    #[ignore = "the other process of `a_lock_lasts_as_long_as_the_process_that_holds_it`"]
    fn child_that_holds_a_directory() {
        let Some(path) = std::env::var_os(CHILD_DIRECTORY) else { return };
        let _held = DataDirectory::open(Path::new(&path), Role::Storage).unwrap();
        println!("\nlocked");
        let _ = io::stdin().read(&mut [0]);
    }

    #[test]
    fn a_lock_lasts_as_long_as_the_process_that_holds_it() {
        let root = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--nocapture", "--exact", "disk::directory::tests::child_that_holds_a_directory"])
            .env(CHILD_DIRECTORY, root.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "locked"));
        let error = DataDirectory::open(root.path(), Role::Storage).unwrap_err();
        assert!(matches!(error, DirectoryError::InUse { .. }), "{error}");
        assert!(error.to_string().contains(&format!("(pid {} on ", child.id())), "{error}");
        child.kill().unwrap();
        child.wait().unwrap();
        DataDirectory::open(root.path(), Role::Storage).unwrap();
    }

    #[test]
    fn a_broken_identity_is_an_error_and_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(IDENTITY);
        drop(DataDirectory::open(root.path(), Role::Storage).unwrap());
        let good = fs::read_to_string(&path).unwrap();
        let unknown_field = good.replacen('{', "{ \"color\": 1,", 1);
        let cut = &good[..good.len() / 2];
        for bad in ["", "{}", "null", "\u{0}\u{0}", cut, &unknown_field, "{\"formatVersion\": 1}"] {
            fs::write(&path, bad).unwrap();
            let error = DataDirectory::open(root.path(), Role::Storage).unwrap_err();
            assert!(matches!(error, DirectoryError::Unreadable { .. }), "{bad}: {error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), bad);
        }
        fs::write(&path, "{\"formatVersion\": 2, \"color\": 1}").unwrap();
        let error = DataDirectory::open(root.path(), Role::Storage).unwrap_err();
        assert!(matches!(error, DirectoryError::UnknownFormat { found: 2, .. }), "{error}");

        fs::remove_file(&path).unwrap();
        fs::create_dir(root.path().join(METADATA)).unwrap();
        let error = DataDirectory::open(root.path(), Role::Storage).unwrap_err();
        assert!(matches!(error, DirectoryError::Missing { .. }), "{error}");

        fs::write(&path, good).unwrap();
        DataDirectory::open(root.path(), Role::Storage).unwrap();
    }

    #[test]
    fn a_controllers_directory_is_no_storage_nodes() {
        let root = tempfile::tempdir().unwrap();
        drop(DataDirectory::open(root.path(), Role::Controller).unwrap());
        let error = DataDirectory::open(root.path(), Role::Storage).unwrap_err();
        assert!(matches!(error, DirectoryError::OtherRole { found: Role::Controller, .. }), "{error}");
    }

    /// So many processes (threads here) at once, each of which takes a folder.
    fn open_at_once(root: &Path, count: usize) -> Vec<DataDirectory> {
        let barrier = Barrier::new(count);
        std::thread::scope(|scope| {
            let open = || {
                barrier.wait();
                DataDirectory::open_first_free(root, Role::Storage).unwrap()
            };
            let threads: Vec<_> = (0..count).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    fn ids(directories: &[DataDirectory]) -> BTreeSet<DirectoryId> {
        directories.iter().map(DataDirectory::directory_id).collect()
    }

    #[test]
    fn simultaneous_starts_share_a_root_and_come_back_to_the_same_folders() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("07")).unwrap();
        let first = open_at_once(root.path(), 12);
        let first_ids = ids(&first);
        assert_eq!(first_ids.len(), 12);
        assert_eq!(numbered(root.path()).unwrap(), (0..12).collect::<Vec<_>>());
        drop(first);
        for _ in 0..5 {
            assert_eq!(ids(&open_at_once(root.path(), 12)), first_ids);
        }
    }

    #[test]
    fn folders_that_exist_come_before_new_ones_and_a_broken_one_is_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        for number in ["2", "5"] {
            drop(DataDirectory::open(&root.path().join(number), Role::Storage).unwrap());
        }
        let number = |directory: &DataDirectory| directory.path().file_name().unwrap().to_str().unwrap().to_owned();
        let open = || DataDirectory::open_first_free(root.path(), Role::Storage);
        let held = [open().unwrap(), open().unwrap(), open().unwrap()];
        assert_eq!(held.each_ref().map(number), ["2", "5", "0"]);
        drop(held);
        fs::write(root.path().join("0").join(IDENTITY), "broken").unwrap();
        let held = [open().unwrap(), open().unwrap()];
        assert_eq!(held.each_ref().map(number), ["2", "5"]);
        assert!(matches!(open(), Err(DirectoryError::Unreadable { .. })));
        assert_eq!(numbered(root.path()).unwrap(), [0, 2, 5]);
    }
}
