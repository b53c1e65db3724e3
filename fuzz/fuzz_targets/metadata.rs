//! Messages of the history, and snapshots of the metadata.
#![no_main]

use bytes::Bytes;
use dmq::metadata::{History, ParsedEntry, read_snapshot, write_snapshot};
use dmq::types::Version;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = ParsedEntry::parse(bytes);
    if let Ok((image, position)) = read_snapshot(&mut &bytes[..]) {
        let mut written = Vec::new();
        write_snapshot(&image, position, &mut written).expect("memory takes everything");
        let (again, at) = read_snapshot(&mut &written[..]).expect("what we write we read");
        assert!(again == image && at == position);
        let mut history = History::from_image(image, position);
        let _ = history.offer(Version(position.version.0.saturating_add(1)), &Bytes::copy_from_slice(bytes));
    }
    let mut history = History::new();
    for (number, message) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let _ = history.offer(Version(number as u64 + 1), &Bytes::copy_from_slice(message));
    }
});
