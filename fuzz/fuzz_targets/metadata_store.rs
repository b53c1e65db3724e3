//! A node's copy of the metadata, with anything in its files, each under the name that it would have.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dmq::disk::sim::SimDisk;
use dmq::disk::{Disk, MetadataStore};
use libfuzzer_sys::fuzz_target;

const DIR: &str = "/metadata";

fuzz_target!(|pieces: Vec<(u8, bool, &[u8])>| {
    let disk = SimDisk::new(1);
    let dir = Path::new(DIR);
    drop(MetadataStore::open_on(Arc::new(disk.clone()), dir));
    let made: Vec<PathBuf> = disk.files();
    for (number, keeps_header, bytes) in pieces {
        let path = &made[usize::from(number) % made.len()];
        // Its own header, or none.
        let header = disk.contents(path).unwrap_or_default();
        let mut file = disk.create(path).expect("the disk works");
        if keeps_header {
            file.append(&header).expect("the disk works");
        }
        file.append(bytes).expect("the disk works");
    }
    let Ok((store, mut recovered)) = MetadataStore::open_on(Arc::new(disk.clone()), dir) else { return };
    assert!(recovered.entries.by_ref().all(|change| change.is_ok()), "what was recovered was checked");
    let position = store.position();
    drop((store, recovered));
    let (again, _) = MetadataStore::open_on(Arc::new(disk), dir).expect("what was opened opens again");
    assert_eq!(again.position(), position);
});
