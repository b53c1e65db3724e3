//! Directories that were set aside: of topics that were deleted, or vanished, while this node was away. They are kept for a while,
//! for who misses something, and then removed, a file at a time.

use std::io;
use std::path::{Path, PathBuf};

use super::super::checkpoint;
use super::{LogDirectory, LogDirectoryError, io_error};

/// What the names of such directories end with, in Kafka's form. No partition's does.
pub(super) const STRAY: &str = "-stray";
/// Since when it is kept, in milliseconds since 1970. A directory's own times are not of its renaming.
const SINCE: &str = "stray-since";

impl LogDirectory {
    /// The directories that were set aside.
    pub fn strays(&self) -> Result<Vec<PathBuf>, LogDirectoryError> {
        let mut names = self.files.disk().list(&self.dir).map_err(io_error("list", &self.dir))?;
        names.retain(|name| name.ends_with(STRAY));
        names.sort();
        Ok(names.into_iter().map(|name| self.dir.join(name)).collect())
    }

    /// Since when a directory is set aside: since it was first asked. `now_ms` is wall time in milliseconds since 1970, and so is
    /// the answer.
    pub fn stray_since(&self, stray: &Path, now_ms: i64) -> Result<i64, LogDirectoryError> {
        let path = stray.join(SINCE);
        let bytes = checkpoint::read(self.files.disk(), &path).map_err(io_error("read", &path))?;
        let known = bytes.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.trim().parse().ok());
        // A time to come is of a clock that was wrong: it would be kept for ever.
        if let Some(since) = known.filter(|since| *since <= now_ms) {
            return Ok(since);
        }
        checkpoint::replace(self.files.disk(), &path, now_ms.to_string().as_bytes())
            .map_err(io_error("write", &path))?;
        Ok(now_ms)
    }

    /// Removes one file of such a directory, or at last the directory itself. Whether it is gone. A crash leaves what is to be
    /// removed yet under the same name.
    pub fn remove_some(&self, stray: &Path) -> Result<bool, LogDirectoryError> {
        let disk = self.files.disk();
        let names = match disk.list(stray) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(io_error("list", stray)(error)),
        };
        // The time goes with the directory, or it would be kept as long again after a crash.
        if let Some(name) = names.iter().filter(|name| *name != SINCE).min() {
            let path = stray.join(name);
            disk.remove(&path).map_err(io_error("remove", &path))?;
            return Ok(false);
        }
        disk.remove_dir_all(stray).map_err(io_error("remove", stray))?;
        disk.sync_dir(&self.dir).map_err(io_error("sync", &self.dir))?;
        Ok(true)
    }
}
