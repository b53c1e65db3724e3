//! Which partition a key belongs to, as Kafka's clients and connectors decide it.

use super::PartitionId;

/// Kafka's 32-bit murmur2 (`Utils.murmur2`), with its seed.
pub fn murmur2(bytes: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    // Java's arithmetic is modulo 2^32 too, and its lengths fit.
    let mut h = SEED ^ bytes.len() as u32;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> R;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * index);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ h >> 15
}

/// The partition of a key, of `count` partitions (`toPositive(murmur2(key)) % count`); 0 where there are none.
pub fn partition_of_key(key: &[u8], count: u32) -> PartitionId {
    (murmur2(key) & 0x7fff_ffff).checked_rem(count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_kafkas() {
        // From Kafka's UtilsTest.
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }

    #[test]
    fn a_negative_hash_names_a_partition_too() {
        assert_eq!(partition_of_key(b"21", 7), ((-973_932_308i32 & 0x7fff_ffff) % 7) as u32);
        assert_eq!(partition_of_key(b"21", 1), 0);
        assert_eq!(partition_of_key(b"21", 0), 0);
    }
}
