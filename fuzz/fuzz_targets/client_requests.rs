//! What clients ask of partitions' leaders, headers and all, and what the offsets topic says.
#![no_main]

use bytes::Bytes;
use dmq::fuzzing;
use libfuzzer_sys::fuzz_target;

const OPS: [&str; 7] = ["produce", "fetch", "offsets", "delete", "commit", "committed", "leads"];
const NAMES: [&str; 8] = [
    "Dmq-Format",
    "Dmq-Key",
    "Dmq-Timestamp",
    "Dmq-Acks",
    "Dmq-Timeout-Ms",
    "Dmq-Topic-Id",
    "dmq-key",
    "traceparent",
];

fuzz_target!(|input: (u8, Vec<(u8, &str)>, &[u8], &[u8])| {
    let (op, headers, payload, key) = input;
    let named: Vec<_> = headers.iter().map(|(name, value)| (NAMES[usize::from(*name) % NAMES.len()], *value)).collect();
    fuzzing::request(OPS[usize::from(op) % OPS.len()], &named, Bytes::copy_from_slice(payload));
    fuzzing::offsets(Bytes::copy_from_slice(payload), key, (op < 128).then_some(payload));
});
