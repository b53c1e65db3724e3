//! Places in the metadata's history, and the epochs that come from them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A metadata version: the sequence, in the history's stream, of the entry that made it. 0 is before the first entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Version(pub u64);

/// The highest version that is read: every JSON reader holds it exactly.
const MAX_VERSION: u64 = (1 << 53) - 1;

impl TryFrom<u64> for Version {
    type Error = String;

    fn try_from(number: u64) -> Result<Self, String> {
        if number <= MAX_VERSION { Ok(Self(number)) } else { Err(format!("a version is at most {MAX_VERSION}")) }
    }
}

impl From<Version> for u64 {
    fn from(version: Version) -> Self {
        version.0
    }
}

impl Version {
    pub const ZERO: Self = Self(0);

    /// The version after this one. Versions stay far below 2^53, so that every JSON reader holds them exactly.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

macro_rules! epoch {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "e{}", self.0)
            }
        }
    };
}

epoch! {
    /// The version of the entry that elected the controller. Entries of a superseded epoch change nothing.
    ControllerEpoch(u64)
}
epoch! {
    /// The version of the entry that registered a storage node's present incarnation.
    NodeEpoch(u64)
}
epoch! {
    /// The version of the entry that last changed a storage node's pairing.
    PairingEpoch(u64)
}
epoch! {
    /// Rises with every change of a partition's leader (Kafka's `leaderEpoch`; 31 bits there).
    LeaderEpoch(u32)
}
epoch! {
    /// Rises with every change of a partition at all (Kafka's `partitionEpoch`).
    PartitionEpoch(u32)
}

/// A digest chained over the history: that of an entry covers its predecessor's. 128 bits of SHA-256, 32 hex digits in JSON.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub [u8; 16]);

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a digest is 32 hexadecimal digits")]
pub struct DigestError;

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let digits = text.as_bytes();
        if digits.len() != 32 {
            return Err(DigestError);
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let (high, low) = ((pair[0] as char).to_digit(16), (pair[1] as char).to_digit(16));
            let (Some(high), Some(low)) = (high, low) else { return Err(DigestError) };
            *byte = (high * 16 + low) as u8;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A version together with the digest of the history up to it: it names one state of the metadata, everywhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug, Serialize, Deserialize)]
pub struct Position {
    pub version: Version,
    pub digest: Digest,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.version, self.digest)
    }
}
