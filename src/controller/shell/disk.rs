//! The controller's own copy of the metadata: one thread that alone writes it.

use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tokio::sync::mpsc::Sender;

use super::{ControllerError, Event};
use crate::controller::core::Input;
use crate::disk::{DataDirectory, MetadataStore, Role, StoreError, StoredChange};
use crate::metadata::{Change, History, Image, write_snapshot};
use crate::storage::recover;
use crate::types::{ControllerEpoch, Position};

pub(super) enum Job {
    Persist(Arc<Change>),
    /// Versions up to here changed nothing.
    Skip(Position, ControllerEpoch),
    Install(Box<Image>, Position),
}

/// Changes that one sync may cover.
const BATCH: usize = 256;

pub(super) type Opened = (DataDirectory, MetadataStore, History, Option<Change>);

pub(super) fn open(path: &Path) -> Result<Opened, ControllerError> {
    let directory = DataDirectory::open(path, Role::Controller)?;
    let (store, recovered) = MetadataStore::open(&directory.metadata_path())?;
    if recovered.torn_bytes_cut > 0 {
        tracing::warn!(bytes = recovered.torn_bytes_cut, "the end of the metadata's log was torn, and cut");
    }
    let history = recover(recovered)?;
    Ok((directory, store, history, None))
}

/// Starts the thread. It ends when the last sender of jobs is gone.
pub(super) fn start(store: MetadataStore, events: Sender<Event>) -> std::io::Result<SyncSender<Job>> {
    let (sender, jobs) = sync_channel(8192);
    std::thread::Builder::new().name("dmq-metadata".into()).spawn(move || work(store, &jobs, &events))?;
    Ok(sender)
}

fn work(mut store: MetadataStore, jobs: &Receiver<Job>, events: &Sender<Event>) {
    let mut next = None;
    while let Some(job) = next.take().or_else(|| jobs.recv().ok()) {
        let result = match job {
            Job::Install(image, position) => install(&mut store, &image, position),
            first @ (Job::Persist(_) | Job::Skip(..)) => {
                let mut changes: Vec<_> = stored(first).into_iter().collect();
                while changes.len() < BATCH {
                    match jobs.try_recv() {
                        Ok(job @ Job::Install(..)) => {
                            next = Some(job);
                            break;
                        }
                        Ok(job @ (Job::Persist(_) | Job::Skip(..))) => changes.extend(stored(job)),
                        Err(_) => break,
                    }
                }
                store.append(&changes)
            }
        };
        let input = match result {
            Ok(()) => Input::Persisted(store.position()),
            Err(error) => Input::PersistFailed(error.to_string()),
        };
        if events.blocking_send(Event::Input(input)).is_err() {
            return;
        }
    }
}

fn stored(job: Job) -> Option<StoredChange> {
    match job {
        Job::Persist(change) => Some(StoredChange {
            position: change.position,
            controller_epoch: change.controller_epoch,
            messages: change.messages.iter().map(|message| (message.version, message.payload.clone())).collect(),
        }),
        Job::Skip(position, controller_epoch) => {
            Some(StoredChange { position, controller_epoch, messages: Vec::new() })
        }
        Job::Install(..) => None,
    }
}

fn install(store: &mut MetadataStore, image: &Image, position: Position) -> Result<(), StoreError> {
    store.install_snapshot(position, image.controller_epoch(), |writer| {
        let mut buffered = BufWriter::new(writer);
        write_snapshot(image, position, &mut buffered).map_err(std::io::Error::other)?;
        std::io::Write::flush(&mut buffered)
    })
}
