//! Kafka's text files: what is read is written again, and then reads the same.
#![no_main]

use dmq::log::checkpoint::{
    format_epochs, format_offsets, format_partition_metadata, parse_epochs, parse_offsets, parse_partition_metadata,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(epochs) = parse_epochs(text) {
        assert_eq!(parse_epochs(&format_epochs(&epochs)).as_ref(), Ok(&epochs));
    }
    if let Ok(offsets) = parse_offsets(text) {
        assert_eq!(parse_offsets(&format_offsets(&offsets)).as_ref(), Ok(&offsets));
    }
    if let Ok(topic) = parse_partition_metadata(text) {
        assert_eq!(parse_partition_metadata(&format_partition_metadata(topic)), Ok(topic));
    }
});
