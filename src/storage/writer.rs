//! The thread that alone writes the node's metadata: one job after the other, each answered when it is on the disk.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Bytes;
use tokio::sync::mpsc::Sender;

use super::core::Applied;
use super::shell::Event;
use super::store;
use crate::disk::{FinishedSnapshot, MetadataStore};
use crate::metadata::{Image, write_snapshot};
use crate::types::{ClusterId, ControllerEpoch, Position};

pub(super) enum Job {
    Persist(Vec<Applied>),
    Install {
        cluster: ClusterId,
        position: Position,
        controller_epoch: ControllerEpoch,
        pieces: Vec<Bytes>,
    },
    /// Begin the stored history anew with this image, so that the next start reads less. What is written on a thread of its
    /// own comes back through `back`, which the worker itself must not hold: it would never end.
    Compact {
        image: Box<Image>,
        position: Position,
        controller_epoch: ControllerEpoch,
        back: SyncSender<Job>,
    },
    /// What a thread of its own wrote for `Compact`.
    Compacted(Result<FinishedSnapshot, String>),
}

/// Below this a log is not worth a snapshot.
const COMPACT_MIN_BYTES: u64 = 64 << 20;

/// Whether the log has become long, beside the snapshot that it follows.
fn wants_compaction(store: &MetadataStore) -> bool {
    let snapshot = store.snapshot().map_or(0, |info| info.body_bytes);
    store.log_bytes() > COMPACT_MIN_BYTES.max(snapshot.saturating_mul(4))
}

/// Starts the thread. It ends when the last sender of jobs is gone.
pub(super) fn start(store: MetadataStore, events: Sender<Event>) -> std::io::Result<SyncSender<Job>> {
    let (sender, jobs) = sync_channel(8);
    std::thread::Builder::new().name("dmq-metadata".into()).spawn(move || work(store, &jobs, &events))?;
    Ok(sender)
}

fn work(mut store: MetadataStore, jobs: &Receiver<Job>, events: &Sender<Event>) {
    while let Ok(job) = jobs.recv() {
        let event = match job {
            Job::Persist(changes) => persist(&mut store, &changes),
            Job::Install { cluster, position, controller_epoch, pieces } => {
                Event::Input(store::install(&mut store, cluster, position, controller_epoch, pieces))
            }
            Job::Compact { image, position, controller_epoch, back } => {
                match compact(&mut store, image, position, controller_epoch, back) {
                    Ok(()) => continue,
                    Err(error) => Event::Compacted(Err(error)),
                }
            }
            Job::Compacted(written) => Event::Compacted(
                written.and_then(|finished| store.install(finished).map_err(|error| error.to_string())),
            ),
        };
        if events.blocking_send(event).is_err() {
            return;
        }
    }
}

fn persist(store: &mut MetadataStore, changes: &[Applied]) -> Event {
    let input = store::append(store, changes);
    Event::Disk { input, wants_compaction: wants_compaction(store) }
}

fn compact(
    store: &mut MetadataStore,
    image: Box<Image>,
    position: Position,
    controller_epoch: ControllerEpoch,
    back: SyncSender<Job>,
) -> Result<(), String> {
    if store.position() == position {
        store.roll().map_err(|error| error.to_string())?;
    }
    let mut writer = store.snapshot_writer(position, controller_epoch).map_err(|error| error.to_string())?;
    let write = move || {
        let written = write_snapshot(&image, position, &mut writer).map_err(|error| error.to_string());
        let finished = written.and_then(|()| writer.finish().map_err(|error| error.to_string()));
        // Nobody is there to take it where the process ends.
        let _ = back.send(Job::Compacted(finished));
    };
    let thread = std::thread::Builder::new().name("dmq-snapshot".into()).spawn(write);
    thread.map(drop).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::core::Input;
    use super::*;
    use crate::metadata::{Entry, History, Record, encode_change};
    use crate::process::recover;
    use crate::types::{ControllerId, DirectoryId, IncarnationId, WallTime};

    #[tokio::test]
    async fn what_was_written_is_recovered_the_same_from_the_log_and_from_a_shortened_one() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = ClusterId(uuid::Uuid::from_u128(1));
        let (directory, incarnation) = (DirectoryId(cluster.0), IncarnationId(cluster.0));
        let elected = Record::ControllerElected { controller: ControllerId(0), directory, incarnation };
        let entry = Entry {
            cluster,
            controller_epoch: ControllerEpoch(1),
            previous: Position::default(),
            committed_at: WallTime(0),
            cause: "a test".into(),
            request: None,
            records: vec![Record::ClusterFounded { cluster }, elected],
        };
        let (mut history, payload) = (History::new(), encode_change(&entry, 1 << 20).unwrap().remove(0));
        let version = Position::default().version.next();
        history.offer(version, &payload).unwrap();
        let messages = vec![crate::metadata::Message { version, payload }];
        let (position, controller_epoch) = (history.position(), ControllerEpoch(1));

        let (events, mut heard) = tokio::sync::mpsc::channel(8);
        let jobs = start(MetadataStore::open(folder.path()).unwrap().0, events).unwrap();
        jobs.send(Job::Persist(vec![Applied { position, controller_epoch, messages }])).unwrap();
        let persisted = heard.recv().await;
        assert!(matches!(persisted, Some(Event::Disk { input: Input::Persisted(at), .. }) if at == position));
        let image = Box::new(history.image().unwrap().clone());
        jobs.send(Job::Compact { image, position, controller_epoch, back: jobs.clone() }).unwrap();
        assert!(matches!(heard.recv().await, Some(Event::Compacted(Ok(())))));
        drop((jobs, heard));

        let (_, recovered) = MetadataStore::open(folder.path()).unwrap();
        assert!(recovered.snapshot.is_some());
        let (again, _) = recover(recovered).unwrap();
        assert_eq!((again.position(), again.image()), (position, history.image()));
    }
}
