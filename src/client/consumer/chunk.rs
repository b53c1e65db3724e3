//! What one fetch brought: whole batches, whose records are read one by one as slices of the answer.

use bytes::Bytes;

use crate::log::batch::{BatchError, BatchHeader, Record, Records, records};
use crate::types::{LeaderEpoch, Offset};

/// Batches that wait to be read.
pub(super) struct Chunk {
    rest: Bytes,
    /// Records before it are passed over: the first batch may begin earlier than was asked for.
    from: Offset,
    limit: usize,
    batch: Option<(Records, Option<LeaderEpoch>)>,
}

/// Checks every batch, and says of which leader epoch the last one is.
pub(super) fn verify(mut batches: &[u8]) -> Result<Option<LeaderEpoch>, BatchError> {
    let mut epoch = None;
    while !batches.is_empty() {
        let header = BatchHeader::verify(batches)?;
        epoch = header.epoch();
        batches = &batches[header.size()..];
    }
    Ok(epoch)
}

impl Chunk {
    /// Of batches that [`verify`] has passed. `limit`: the most bytes that a batch may decompress to.
    pub fn new(batches: Bytes, from: Offset, limit: usize) -> Self {
        Self { rest: batches, from, limit, batch: None }
    }
}

impl Iterator for Chunk {
    type Item = Result<(Record, Option<LeaderEpoch>), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((records, epoch)) = &mut self.batch {
                match records.next() {
                    Some(Ok(record)) if record.offset < self.from => continue,
                    Some(result) => return Some(result.map(|record| (record, *epoch))),
                    None => self.batch = None,
                }
            }
            if self.rest.is_empty() {
                return None;
            }
            match self.open() {
                Ok(batch) => self.batch = batch,
                Err(error) => {
                    self.rest.clear();
                    return Some(Err(error));
                }
            }
        }
    }
}

impl Chunk {
    /// The next batch; None where it holds nothing for a consumer.
    fn open(&mut self) -> Result<Option<(Records, Option<LeaderEpoch>)>, BatchError> {
        let header = BatchHeader::parse(&self.rest)?;
        let size = header.size();
        if size > self.rest.len() {
            return Err(BatchError::Truncated { needed: size, available: self.rest.len() });
        }
        let batch = self.rest.split_to(size);
        if header.attributes.is_control() || header.last_offset() < self.from {
            return Ok(None);
        }
        Ok(Some((records(&batch, self.limit)?, header.epoch())))
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::log::batch::{BatchBuilder, Compression};

    fn batches() -> Bytes {
        let mut all = BytesMut::new();
        for (base, codec) in [(0i64, Compression::None), (3, Compression::Zstd)] {
            let mut builder = BatchBuilder::new(codec);
            for number in 0..3 {
                builder.push(base + number, None, Some(format!("value {}", base + number).as_bytes()), &[]);
            }
            let mut batch = builder.build().unwrap().to_vec();
            // As a leader stamps it: neither is covered by the checksum.
            batch[..8].copy_from_slice(&base.to_be_bytes());
            batch[12..16].copy_from_slice(&(base as i32 + 7).to_be_bytes());
            all.extend_from_slice(&batch);
        }
        all.freeze()
    }

    #[test]
    fn records_before_the_place_that_was_asked_for_are_passed_over() {
        let batches = batches();
        assert_eq!(verify(&batches), Ok(Some(LeaderEpoch(10))));
        let read: Vec<_> = Chunk::new(batches, Offset(2), 1 << 20).map(Result::unwrap).collect();
        let found: Vec<_> = read.iter().map(|(record, epoch)| (record.offset.0, epoch.unwrap().0)).collect();
        assert_eq!(found, [(2, 7), (3, 10), (4, 10), (5, 10)]);
        assert_eq!(read[0].0.value.as_deref(), Some(&b"value 2"[..]));
    }

    #[test]
    fn an_uncompressed_value_is_a_slice_of_the_answer() {
        let batches = batches();
        let within = batches.as_ptr_range();
        let (record, _) = Chunk::new(batches.clone(), Offset(0), 1 << 20).next().unwrap().unwrap();
        assert!(within.contains(&record.value.unwrap().as_ptr()));
    }

    #[test]
    fn what_is_damaged_or_cut_off_is_found() {
        let batches = batches();
        for at in [30, batches.len() - 1] {
            let mut changed = batches.to_vec();
            changed[at] ^= 1;
            assert!(matches!(verify(&changed), Err(BatchError::Crc { .. })), "byte {at}");
        }
        assert!(matches!(verify(&batches[..batches.len() - 1]), Err(BatchError::Truncated { .. })));
    }
}
