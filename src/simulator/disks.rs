//! The nodes' folders: an identity, and the shipped store over a disk that loses what was not synced.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::queue::SECOND;
use super::records::{RecordDisk, SimLog};
use super::world::{CONTROLLERS, COPY, Proc, World, name};
use crate::disk::sim::SimDisk;
use crate::disk::{Disk, MetadataStore, Recovered};
use crate::storage::core::Place;
use crate::types::{ClusterId, DirectoryId, NodeEpoch};

pub struct Folder {
    pub disk: SimDisk,
    pub directory: DirectoryId,
    pub cluster: Option<ClusterId>,
    pub id: Option<u32>,
    pub node_epoch: Option<NodeEpoch>,
    /// Full, or about to fail.
    pub failing: bool,
    /// The partitions' logs, while no process has them open.
    pub logs: BTreeMap<Place, SimLog>,
    pub records: RecordDisk,
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
        let (cluster, id, node_epoch, logs) = (None, None, None, BTreeMap::new());
        self.folders.push(Folder {
            disk,
            directory,
            cluster,
            id,
            node_epoch,
            failing: false,
            logs,
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
        let mut logs = self.folders[from].logs.clone();
        for proc in (CONTROLLERS..=COPY).filter(|proc| self.hosts[*proc].folder == from) {
            let node = self.nodes[proc - CONTROLLERS].as_ref();
            let open = node.into_iter().flat_map(|node| node.replicas.engine.held());
            logs.extend(open.map(|(place, log, _)| (place, log.clone())));
        }
        let (directory, cluster, id, node_epoch) = (*directory, *cluster, *id, *node_epoch);
        let folder =
            Folder { disk, directory, cluster, id, node_epoch, failing: false, logs, records: RecordDisk::default() };
        self.folders.push(folder);
        self.folders.len() - 1
    }
}
