//! Index files, of offsets and of times.
#![no_main]

use dmq::log::index::{OffsetEntry, TimeEntry, parse_index};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(entries) = parse_index::<OffsetEntry>(bytes) {
        assert!(entries.windows(2).all(|pair| pair[0].relative_offset < pair[1].relative_offset));
    }
    if let Ok(entries) = parse_index::<TimeEntry>(bytes) {
        assert!(entries.windows(2).all(|pair| pair[0].timestamp < pair[1].timestamp));
    }
});
