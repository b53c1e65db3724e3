//! Finding out, at the start, what a folder of metadata files holds.
//!
//! A crash leaves one of few states, and each has one reading: the newest snapshot (it got its name only when it was
//! whole), and what the entries log holds after it. What they replace is removed. Everything else is an error, because
//! to go on from half a history would be to believe it.

use std::path::Path;
use std::sync::Arc;

use super::codec::FileHeader;
use super::error::StoreError;
use super::files::{Disk, TEMPORARY, WriteFile};
use super::reader::{MetadataReader, Shared, State};
use super::segment::{self, Scanned};
use super::snapshot::{self, SnapshotInfo};
use crate::types::{ControllerEpoch, Position, Version};

pub(super) struct Opened {
    pub shared: Arc<Shared>,
    pub active: Box<dyn WriteFile>,
    pub torn_bytes_cut: u64,
}

/// The names in the folder that mean something, each kind oldest first.
struct Names {
    snapshots: Vec<Position>,
    segments: Vec<Version>,
}

pub(super) fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Opened, StoreError> {
    disk.create_dir(dir).map_err(StoreError::io("make", dir))?;
    let names = list(&*disk, dir)?;
    // A process that was killed may have left names and bytes that only the kernel's memory holds. Make them durable
    // before they are believed.
    disk.sync_dir(dir).map_err(StoreError::io("sync", dir))?;

    let snapshot = match names.snapshots.last() {
        Some(position) => Some(snapshot::verify(&*disk, dir, *position)?),
        None => None,
    };
    let from = snapshot.map_or_else(Position::default, |snapshot| snapshot.position);
    // The last segment that begins at or before the snapshot; what is older is covered by it.
    let first = names.segments.iter().rposition(|base| *base <= from.version);
    let scanned = match first {
        Some(first) => scan_chain(&*disk, dir, &names.segments[first..])?,
        None if names.segments.is_empty() && snapshot.is_none() => Vec::new(),
        None => {
            let what = format!("no entries log begins at or before version {}", from.version);
            return Err(StoreError::Broken { dir: dir.to_owned(), what });
        }
    };
    let kept_from = first.unwrap_or(0);
    let (opened, keep_segments) = assemble(disk, dir, snapshot, scanned)?;
    let obsolete_segments = if keep_segments { &names.segments[..kept_from] } else { &names.segments[..] };
    let obsolete = names.snapshots.iter().rev().skip(1).map(|position| snapshot::file_name(*position));
    let obsolete = obsolete.chain(obsolete_segments.iter().map(|base| segment::file_name(*base)));
    let current = opened.shared.lock().segments.iter().map(|segment| segment.path.clone()).collect::<Vec<_>>();
    for name in obsolete {
        let path = dir.join(name);
        if !current.contains(&path) {
            remove(&*opened.shared.disk, &path);
        }
    }
    Ok(opened)
}

/// Removes what is no longer needed. It does no harm where it stays, and the next start tries again.
pub(super) fn remove(disk: &dyn Disk, path: &Path) {
    if let Err(error) = disk.remove(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove a file of superseded metadata");
    }
}

fn list(disk: &dyn Disk, dir: &Path) -> Result<Names, StoreError> {
    let mut names = Names { snapshots: Vec::new(), segments: Vec::new() };
    for name in disk.list(dir).map_err(StoreError::io("list", dir))? {
        if name.ends_with(TEMPORARY) {
            remove(disk, &dir.join(name));
        } else if let Some(position) = snapshot::parse_name(&name) {
            names.snapshots.push(position);
        } else if let Some(base) = segment::parse_name(&name) {
            names.segments.push(base);
        } else {
            tracing::warn!(dir = %dir.display(), name, "not a file of dmq's: left alone");
        }
    }
    names.snapshots.sort_by_key(|position| position.version);
    names.segments.sort();
    if let [.., a, b] = names.snapshots[..]
        && a.version == b.version
    {
        let what = format!("there are two snapshots of version {} with different digests", a.version);
        return Err(StoreError::Broken { dir: dir.to_owned(), what });
    }
    Ok(names)
}

/// Reads segments that must continue each other.
fn scan_chain(disk: &dyn Disk, dir: &Path, bases: &[Version]) -> Result<Vec<Scanned>, StoreError> {
    let mut chain: Vec<Scanned> = Vec::new();
    for (index, base) in bases.iter().enumerate() {
        let path = dir.join(segment::file_name(*base));
        let scanned = segment::scan(disk, &path, *base, index + 1 == bases.len())?;
        if let Some(previous) = chain.last()
            && previous.last != scanned.segment.base
        {
            let (ends, begins) = (previous.last, scanned.segment.base);
            let what = format!("an entries log ends at {ends}, and the next begins at {begins}");
            return Err(StoreError::Broken { dir: dir.to_owned(), what });
        }
        chain.push(scanned);
    }
    Ok(chain)
}

/// Makes one state of the snapshot and the log, and says whether the log is part of it.
fn assemble(
    disk: Arc<dyn Disk>,
    dir: &Path,
    snapshot: Option<SnapshotInfo>,
    scanned: Vec<Scanned>,
) -> Result<(Opened, bool), StoreError> {
    let from = snapshot.map_or_else(Position::default, |snapshot| snapshot.position);
    let epochs = scanned.iter().map(|scanned| scanned.controller_epoch);
    let epochs = epochs.chain(snapshot.map(|snapshot| snapshot.controller_epoch));
    let controller_epoch = epochs.max().unwrap_or(ControllerEpoch(0));

    let last = match scanned.last() {
        // A log that ends before the snapshot is what the snapshot replaced; a crash came before its removal.
        Some(last) if last.last.version >= from.version => last,
        Some(_) | None => {
            let new = segment::prepare(&*disk, dir, FileHeader { position: from, controller_epoch })?;
            let (segment, active) = new.publish(&*disk)?;
            let state = State { segments: vec![segment], position: from, controller_epoch, snapshot };
            let shared = Arc::new(Shared::new(disk, dir.to_owned(), state));
            return Ok((Opened { shared, active, torn_bytes_cut: 0 }, false));
        }
    };
    let (path, position, torn_bytes_cut) = (last.segment.path.clone(), last.last, last.torn_bytes);
    let mut active = disk.append(&path).map_err(StoreError::io("open", &path))?;
    if torn_bytes_cut > 0 {
        active.truncate(last.segment.durable_bytes).map_err(StoreError::io("cut the torn end of", &path))?;
    }
    active.sync().map_err(StoreError::io("sync", &path))?;

    let segments = scanned.into_iter().map(|scanned| scanned.segment).collect();
    // Without the snapshot, so that the log alone has to show that it goes through the snapshot's position.
    let state = State { segments, position, controller_epoch, snapshot: None };
    let shared = Arc::new(Shared::new(disk, dir.to_owned(), state));
    if !(MetadataReader { shared: shared.clone() }).holds(from)? {
        let what = format!("the entries log does not go through the snapshot's position {from}");
        return Err(StoreError::Broken { dir: dir.to_owned(), what });
    }
    shared.lock().snapshot = snapshot;
    Ok((Opened { shared, active, torn_bytes_cut }, true))
}
