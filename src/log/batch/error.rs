//! Why bytes are not a record batch.

use super::Compression;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BatchError {
    /// More bytes are needed than there are: the end of a file that is still written, or a torn batch.
    #[error("the batch needs {needed} bytes, and there are only {available}")]
    Truncated { needed: usize, available: usize },
    #[error("the batch has magic {0}, and only 2 is known: let the producer use Kafka's message format 2")]
    Magic(i8),
    #[error("the batch says that {0} bytes follow, which cannot be")]
    Length(i32),
    #[error("the batch's offsets, from {base} with {delta} more, cannot be")]
    Offsets { base: i64, delta: i32 },
    #[error("the batch says that it has {0} records, which cannot be")]
    Count(i32),
    #[error("the batch's checksum is {stored:08x}, and that of its bytes is {computed:08x}")]
    Crc { stored: u32, computed: u32 },
    #[error("the batch has compression type {0}, which is not known")]
    Compression(u8),
    #[error("the batch's {codec} bytes cannot be decompressed: {what}")]
    Decompress { codec: Compression, what: String },
    #[error("the batch's records take more than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("record {index} of the batch is damaged: {what}")]
    Record { index: i32, what: &'static str },
}
