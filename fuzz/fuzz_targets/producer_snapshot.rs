//! Snapshots of producers, under a checksum that fits.
#![no_main]

use dmq::log::producers::Producers;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Producers::decode(bytes);
    if bytes.len() >= 10 {
        let mut bytes = bytes.to_vec();
        bytes[0..2].copy_from_slice(&1i16.to_be_bytes());
        let entries = ((bytes.len() - 10) / 46) as u32;
        bytes.truncate(10 + entries as usize * 46);
        bytes[6..10].copy_from_slice(&entries.to_be_bytes());
        let crc = crc32c_of(&bytes[6..]);
        bytes[2..6].copy_from_slice(&crc.to_be_bytes());
        if let Ok(producers) = Producers::decode(&bytes) {
            assert_eq!(Producers::decode(&producers.encode()).as_ref(), Ok(&producers));
        }
    }
});

/// CRC-32C, bit by bit.
fn crc32c_of(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}
