//! The digest that is chained over the history.

use sha2::{Digest as _, Sha256};

use crate::types::{Digest, Position, Version};

/// The digest after the message `payload` at `version`, given that of the history before it.
pub fn chain(previous: Digest, version: Version, payload: &[u8]) -> Digest {
    let mut hash = Sha256::new();
    hash.update(previous.0);
    hash.update(version.0.to_be_bytes());
    hash.update(payload);
    first_half(hash)
}

/// The digest of a restored history's base at `version`, made from the metadata that stood at `from`.
pub fn restored_digest(from: Position, version: Version) -> Digest {
    let mut hash = Sha256::new();
    hash.update(b"dmq restored");
    hash.update(from.version.0.to_be_bytes());
    hash.update(from.digest.0);
    hash.update(version.0.to_be_bytes());
    first_half(hash)
}

fn first_half(hash: Sha256) -> Digest {
    let full = hash.finalize();
    let mut half = [0; 16];
    half.copy_from_slice(&full[..16]);
    Digest(half)
}
