//! A batch's records behind a header that passes, in every codec.
#![no_main]

use bytes::Bytes;
use dmq::log::batch::{BatchHeader, HEADER_BYTES, records};
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let [codec, count, body @ ..] = bytes else { return };
    let mut batch = vec![0; HEADER_BYTES];
    batch.extend_from_slice(body);
    let length = (batch.len() - 12) as i32;
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    batch[16] = 2;
    batch[22] = *codec;
    batch[26] = *count;
    batch[60] = *count;
    let batch = Bytes::from(batch);
    let header = BatchHeader::parse(&batch).expect("the header was made to pass");
    let Ok(records) = records(&batch, LIMIT) else { return };
    let mut bytes = 0;
    for record in records.map_while(Result::ok) {
        assert!((header.base_offset..=header.last_offset()).contains(&record.offset));
        bytes += record.key.map_or(0, |key| key.len()) + record.value.map_or(0, |value| value.len());
    }
    assert!(bytes <= LIMIT.max(body.len()));
});
