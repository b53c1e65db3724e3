//! What clients are answered: heads, batches, errors.
#![no_main]

use batches::sealed;
use bytes::Bytes;
use dmq::fuzzing;
use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
mod batches;

fuzz_target!(|input: (&str, bool, bool, &[u8])| {
    let (head, is_error, as_batches, payload) = input;
    let payload = if as_batches { sealed(payload).into() } else { Bytes::copy_from_slice(payload) };
    fuzzing::answer(head, is_error, payload);
});
