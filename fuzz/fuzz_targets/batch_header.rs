//! A batch's header: whatever the bytes, what is taken stays within them and within Kafka's offsets.
#![no_main]

use dmq::log::batch::{BatchHeader, HEADER_BYTES};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = BatchHeader::parse(bytes) {
        assert!(header.size() >= HEADER_BYTES);
        assert!(header.base_offset <= header.last_offset() && header.last_offset() < header.next_offset());
        let _ = (header.last_sequence(), header.epoch(), header.delete_horizon_ms(), header.attributes.compression());
    }
    if let Ok(header) = BatchHeader::verify(bytes) {
        assert!(header.size() <= bytes.len());
    }
});
