//! The nodes' folders: an identity, and the shipped store over a disk that loses what was not synced.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::queue::SECOND;
use super::records::{RecordDisk, SimLog};
use super::sabotage::{Bug, planted};
use super::world::{CONTROLLERS, COPY, Proc, World, name};
use crate::disk::sim::SimDisk;
use crate::disk::{Disk, MetadataStore, Recovered};
use crate::storage::core::Place;
use crate::types::{ClusterId, DirectoryId, NodeEpoch, PartitionId, TopicId};

pub struct Folder {
    pub disk: SimDisk,
    pub directory: DirectoryId,
    pub cluster: Option<ClusterId>,
    pub id: Option<u32>,
    pub node_epoch: Option<NodeEpoch>,
    /// Full, or about to fail.
    pub failing: bool,
    /// The partitions' directories, but for those that a process has open.
    pub partitions: BTreeMap<(String, PartitionId), Directory>,
    pub records: RecordDisk,
}

/// Where a replica's log is. It is found by the topic's name, and a file in it says which topic of that name it is of.
#[derive(Clone)]
pub struct Directory {
    pub topic: TopicId,
    pub log: SimLog,
}

const DIR: &str = "/metadata";

impl Folder {
    /// Where the disk holds what no crash leaves, that is an error of the store's.
    pub fn open(&self) -> Result<(MetadataStore, Recovered), String> {
        MetadataStore::open_on(Arc::new(self.disk.clone()), Path::new(DIR)).map_err(|error| error.to_string())
    }

    pub fn recover(&mut self) {
        self.disk.set_capacity(None);
        self.disk.fail_syncs(0);
        self.failing = false;
    }

    pub fn log(&self, place: Place) -> Option<&SimLog> {
        let of_place = |(name, directory): &(&(String, PartitionId), &Directory)| (directory.topic, name.1) == place;
        self.partitions.iter().find(of_place).map(|(_, directory)| &directory.log)
    }

    pub fn put_log(&mut self, name: String, place: Place, log: SimLog) {
        self.partitions.insert((name, place.1), Directory { topic: place.0, log });
    }

    /// As `storage/partitions/assign.rs` does it: what is of another topic of that name is out of the way then. Whether there was
    /// something of that kind.
    pub fn open_log(&mut self, name: &str, place: Place) -> (SimLog, bool) {
        let found = self.partitions.remove(&(name.to_owned(), place.1));
        let is_other = found.as_ref().is_some_and(|found| found.topic != place.0);
        let trusted = found.filter(|_| !is_other || planted(Bug::OtherTopicTrusted));
        let mut log = trusted.map(|found| found.log).unwrap_or_default();
        log.open(&self.records);
        (log, is_other)
    }

    /// What `identity.json` would say. False where it says something else already.
    pub fn bind(&mut self, cluster: ClusterId, id: u32) -> bool {
        let fits = self.cluster.is_none_or(|bound| bound == cluster) && self.id.is_none_or(|bound| bound == id);
        if fits {
            (self.cluster, self.id) = (Some(cluster), Some(id));
        }
        fits
    }
}

impl World {
    pub fn new_folder(&mut self) -> usize {
        let disk = SimDisk::new(self.rng.next());
        let directory = DirectoryId(self.rng.uuid());
        let (cluster, id, node_epoch, partitions) = (None, None, None, BTreeMap::new());
        self.folders.push(Folder {
            disk,
            directory,
            cluster,
            id,
            node_epoch,
            failing: false,
            partitions,
            records: RecordDisk::default(),
        });
        self.folders.len() - 1
    }

    /// A disk that is full or fails keeps a process from starting, for a while; what it holds never does.
    pub fn start_failed(&mut self, proc: Proc, words: &str) {
        let excused = self.folders[self.hosts[proc].folder].failing || words.contains("failed to sync");
        if !excused {
            self.checker.break_rule(2, || format!("{}: {words}", name(proc)));
        }
        self.folders[self.hosts[proc].folder].disk.kill();
        self.end(proc, (proc != COPY).then_some(SECOND));
    }

    /// All that a running process sees of a folder, on another disk.
    pub fn copy_folder(&mut self, from: usize) -> usize {
        let disk = SimDisk::new(self.rng.next());
        let Folder { disk: old, directory, cluster, id, node_epoch, .. } = &self.folders[from];
        let copied = |path: &std::path::PathBuf| -> std::io::Result<()> {
            let mut file = disk.create(path)?;
            file.append(&old.contents(path).unwrap_or_default())?;
            file.sync()
        };
        let done = old.files().iter().try_for_each(copied).and_then(|()| disk.sync_dir(Path::new(DIR)));
        done.expect("a fresh disk takes everything");
        let (directory, cluster, id, node_epoch) = (*directory, *cluster, *id, *node_epoch);
        let partitions = self.folders[from].partitions.clone();
        let records = RecordDisk::default();
        let mut folder = Folder { disk, directory, cluster, id, node_epoch, failing: false, partitions, records };
        for proc in (CONTROLLERS..=COPY).filter(|proc| self.hosts[*proc].folder == from) {
            let node = self.nodes[proc - CONTROLLERS].as_ref();
            let open = node.into_iter().flat_map(|node| node.replicas.open_logs());
            open.for_each(|(name, place, log)| folder.put_log(name.to_owned(), place, log.clone()));
        }
        self.folders.push(folder);
        self.folders.len() - 1
    }
}
