//! What can go wrong with the metadata on a node's disk, and what a person can do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::types::{Position, Version};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk refused. Where the store is usable afterwards, none of what was to be written will be believed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    /// Bytes that were once acknowledged have changed or are gone.
    #[error(
        "{} is damaged at byte {offset}: {what}. The cluster's other nodes hold the same metadata: stop this node, move {} away and start it again, and it fetches the metadata anew. Check the disk",
        path.display(), folder_of(path).display()
    )]
    Damaged { path: PathBuf, offset: u64, what: String },

    /// The files don't make one history.
    #[error(
        "the files in {} don't fit together: {what}. The cluster's other nodes hold the same metadata: stop this node, move that folder away and start it again, and it fetches the metadata anew",
        dir.display()
    )]
    Broken { dir: PathBuf, what: String },

    #[error(
        "{} has format version {found}, and this dmq knows only {known}: start the newer dmq that wrote it, or move its folder away and let the node fetch the metadata anew",
        path.display()
    )]
    UnknownFormat { path: PathBuf, found: u32, known: u32 },

    /// An earlier failure left it open what is on the disk. Only reading it again tells.
    #[error("the metadata in {} takes no more writes since this failed: {cause}. Check the disk, then restart this node", dir.display())]
    Poisoned { dir: PathBuf, cause: String },

    /// The caller's mistake: a change that does not come after what is stored.
    #[error("version {given} does not come after version {current}, which is stored already")]
    OutOfOrder { given: Version, current: Version },

    /// A snapshot at or below the stored version must be of this very history.
    #[error(
        "the stored history does not go through {position}, so a snapshot of it cannot replace the history's beginning"
    )]
    NotInHistory { position: Position },

    #[error("one append of {bytes} bytes exceeds the limit of {limit}: append fewer changes at once")]
    TooLarge { bytes: usize, limit: usize },
}

impl StoreError {
    /// Whether the disk is full: the one failure that mends itself once somebody has made room.
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(super) fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), offset, what: what.into() }
    }
}

fn folder_of(path: &Path) -> &Path {
    super::files::parent_of(path)
}
