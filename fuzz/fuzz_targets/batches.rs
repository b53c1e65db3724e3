//! What several targets do with bytes: batches made of them that pass as far as their checksums.

/// Goes over bytes as if they were batches and gives each a length that fits, the magic, and its checksum. The rest of each
/// header is as it was found.
pub fn sealed(bytes: &[u8]) -> Vec<u8> {
    const HEADER: usize = 61;
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while bytes.len() - at >= HEADER {
        let left = bytes.len() - at;
        let asked = u32::from_be_bytes([bytes[at + 8], bytes[at + 9], bytes[at + 10], bytes[at + 11]]) as usize % 512;
        let size = (HEADER + asked).min(left);
        bytes[at + 8..at + 12].copy_from_slice(&((size - 12) as u32).to_be_bytes());
        bytes[at + 16] = 2;
        let crc = crc32c_of(&bytes[at + 21..at + size]);
        bytes[at + 17..at + 21].copy_from_slice(&crc.to_be_bytes());
        at += size;
    }
    bytes
}

/// CRC-32C, bit by bit.
pub fn crc32c_of(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}
