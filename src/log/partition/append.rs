//! Appending, by a leader who gives offsets and by a follower who takes them, and rolling to the next segment.

use bytes::Bytes;

use super::super::LogError;
use super::super::batch::{BatchError, BatchHeader, HEADER_BYTES, NONE, TimestampType, check_records};
use super::super::producers::Verdict;
use super::super::segment::{LOG, Segment};
use super::Log;
use crate::types::{LeaderEpoch, Offset};

/// What an append came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AppendInfo {
    pub base_offset: Offset,
    pub last_offset: Offset,
    /// The log's end afterwards.
    pub end: Offset,
    /// The largest timestamp of the batch: the leader's clock where `message.timestamp.type` is LogAppendTime.
    pub max_timestamp: i64,
    /// Nothing was written: the offsets are those of the original, which may not be durable yet.
    pub duplicate: bool,
}

impl Log {
    /// Appends one batch of a producer as a leader of `epoch`, at the log's end. `now_ms` is wall time in milliseconds since
    /// 1970. Readable at once, durable after the next sync.
    ///
    /// # Errors
    /// Of the caller: no whole batch, or one that is refused, by Kafka's rules; the log is as before. Of the disk: the log is
    /// as before too, or says that it takes nothing more.
    pub fn append(&mut self, batch: &Bytes, epoch: LeaderEpoch, now_ms: i64) -> Result<AppendInfo, LogError> {
        self.check_usable()?;
        let mut header = self.check_batch(batch)?;
        if header.has_producer()
            && let Some(info) = self.check_producer(&header)?
        {
            return Ok(info);
        }
        // Behind the look for a duplicate: a producer splits what is too large, which must not be here already.
        self.check_size(batch)?;
        self.check_contents(batch, &header, epoch)?;
        self.check_times(&header, now_ms)?;
        header.base_offset = self.end;
        header.leader_epoch = epoch.0 as i32; // `check_contents` refused what exceeds 31 bits.
        let records = &batch[HEADER_BYTES..];
        if self.config.timestamp_type == TimestampType::LogAppendTime {
            header.stamp_append_time(now_ms);
            header.seal(records);
        }
        self.roll_if_due(&header)?;
        self.write(&[&header.encode(), records], &[&header], now_ms)?;
        Ok(AppendInfo {
            base_offset: header.base_offset,
            last_offset: header.last_offset(),
            end: self.end,
            max_timestamp: header.max_timestamp,
            duplicate: false,
        })
    }

    /// Appends whole batches as a leader sent them, offsets and epochs as given. The log's end afterwards.
    ///
    /// Offsets may leave holes, which compaction at the leader makes; they never fall. Producers are taken note of, not
    /// checked. Batches below the log's end are not skipped: that is a follower that lost its place.
    pub fn append_as_follower(&mut self, batches: &Bytes, now_ms: i64) -> Result<Offset, LogError> {
        self.check_usable()?;
        // All are checked before one is written.
        let (mut headers, mut at, mut end) = (Vec::new(), 0, self.end);
        while at < batches.len() {
            let header = BatchHeader::verify(&batches[at..]).map_err(|source| self.corrupt(source))?;
            header.attributes.compression().map_err(|source| self.corrupt(source))?;
            if header.epoch().is_none() {
                return Err(self.invalid("it has no leader epoch, so no leader has appended it"));
            }
            if header.base_offset < end {
                return Err(LogError::NotContiguous { partition: self.id.clone(), offset: header.base_offset, end });
            }
            let size = header.size();
            end = header.next_offset();
            headers.push((at..at + size, header));
            at += size;
        }
        let mut first = 0;
        while let Some((range, header)) = headers.get(first) {
            self.roll_if_due(header)?;
            // As many as fit into this segment, in one write.
            let room = self.config.segment_bytes.min(i32::MAX as u64).saturating_sub(self.active().bytes);
            let fits = |(other, header): &&(std::ops::Range<usize>, BatchHeader)| {
                (other.end - range.start) as u64 <= room && self.active().holds(header.last_offset())
            };
            let count = headers[first..].iter().take_while(fits).count().max(1);
            let run = &headers[first..first + count];
            let bytes = &batches[range.start..run[count - 1].0.end];
            let run: Vec<&BatchHeader> = run.iter().map(|(_, header)| header).collect();
            self.write(&[bytes], &run, now_ms)?;
            first += count;
        }
        Ok(self.end)
    }

    /// Closes the active segment, if it has anything, and begins the next one at the log's end. Everything before is durable
    /// then.
    pub fn roll(&mut self) -> Result<(), LogError> {
        self.check_usable()?;
        if self.active().bytes == 0 && self.active().base == self.end {
            return Ok(());
        }
        self.roll_to(self.end)
    }

    fn check_batch(&self, batch: &Bytes) -> Result<BatchHeader, LogError> {
        let header = BatchHeader::verify(batch).map_err(|source| self.corrupt(source))?;
        if header.size() != batch.len() {
            return Err(self.invalid("more bytes follow it; send one batch at a time"));
        }
        Ok(header)
    }

    fn check_size(&self, batch: &Bytes) -> Result<(), LogError> {
        let limit = self.config.max_message_bytes;
        if batch.len() > limit {
            return Err(LogError::TooLarge { partition: self.id.clone(), bytes: batch.len(), limit });
        }
        Ok(())
    }

    fn check_producer(&self, header: &BatchHeader) -> Result<Option<AppendInfo>, LogError> {
        if header.producer_epoch < 0 || header.base_sequence < 0 {
            return Err(self.invalid("it has a producer id without an epoch or a sequence"));
        }
        let (partition, producer) = (self.id.clone(), header.producer_id);
        match self.producers.check(header) {
            Verdict::Append => Ok(None),
            Verdict::Duplicate(stored) => Ok(Some(AppendInfo {
                base_offset: stored.base_offset(),
                last_offset: stored.last_offset,
                end: self.end,
                max_timestamp: match self.config.timestamp_type {
                    TimestampType::CreateTime => header.max_timestamp,
                    TimestampType::LogAppendTime => stored.timestamp,
                },
                duplicate: true,
            })),
            Verdict::OutOfOrder { expected } => {
                Err(LogError::OutOfOrderSequence { partition, producer, expected, given: header.base_sequence })
            }
            Verdict::Fenced { current } => {
                Err(LogError::ProducerFenced { partition, producer, current, given: header.producer_epoch })
            }
        }
    }

    fn check_contents(&self, batch: &Bytes, header: &BatchHeader, epoch: LeaderEpoch) -> Result<(), LogError> {
        if i32::try_from(epoch.0).is_err() {
            return Err(self.invalid("the leader epoch exceeds Kafka's 31 bits"));
        }
        if self.epochs.starts().last().is_some_and(|(last, _)| *last > epoch) {
            return Err(self.invalid("the log has records of a later leader epoch"));
        }
        let attributes = header.attributes;
        if attributes.is_control() || attributes.is_transactional() || attributes.has_delete_horizon() {
            return Err(self.invalid("it is transactional, a control batch or compacted, which no client may append"));
        }
        if header.record_count == 0 || header.record_count - 1 != header.last_offset_delta {
            return Err(self.invalid("its number of records does not fit its offsets"));
        }
        if self.end.0.checked_add(i64::from(header.last_offset_delta) + 1).is_none() {
            return Err(self.invalid("the log has no more offsets"));
        }
        let limit = self.config.max_decompressed_bytes;
        let has_keys = check_records(batch, limit).map_err(|source| self.corrupt(source))?;
        if self.config.compact && !has_keys {
            return Err(self.invalid("it has a record without a key, and the topic is compacted by key"));
        }
        Ok(())
    }

    /// Times decide when segments are closed and deleted, so none may be beyond all measure. The batch's first and largest stand
    /// for all of its records.
    fn check_times(&self, header: &BatchHeader, now_ms: i64) -> Result<(), LogError> {
        if self.config.timestamp_type == TimestampType::LogAppendTime {
            return Ok(());
        }
        let earliest = now_ms.saturating_sub(self.config.timestamp_before_max_ms).max(0);
        let latest = now_ms.saturating_add(self.config.timestamp_after_max_ms);
        let fits = |timestamp: i64| timestamp == NONE || (earliest..=latest).contains(&timestamp);
        match [header.base_timestamp, header.max_timestamp].into_iter().find(|timestamp| !fits(*timestamp)) {
            Some(timestamp) => {
                Err(LogError::InvalidTimestamp { partition: self.id.clone(), timestamp, earliest, latest })
            }
            None => Ok(()),
        }
    }

    /// Kafka's rule: by size, by the age of the segment's first record, and where an offset would not fit any more. A record
    /// without a time closes nothing.
    fn roll_if_due(&mut self, header: &BatchHeader) -> Result<(), LogError> {
        let active = self.active();
        let full = active.bytes > 0 && active.bytes + header.size() as u64 > self.config.segment_bytes;
        // Positions have 31 bits, whatever the configuration says.
        let too_long = active.bytes > 0 && active.bytes + header.size() as u64 > i32::MAX as u64;
        let time = header.max_timestamp;
        let old = active.first_timestamp.is_some_and(|first| time.saturating_sub(first) > self.config.roll_ms());
        if full || too_long || old || !active.holds(header.last_offset()) {
            self.roll_to(header.base_offset.max(self.end))?;
        }
        Ok(())
    }

    /// The next segment begins at `base`, at or behind the log's end.
    pub(super) fn roll_to(&mut self, base: Offset) -> Result<(), LogError> {
        self.seal_active()?;
        if base == self.active().base {
            return Ok(()); // It is empty already.
        }
        let dir = self.dir.clone();
        let created = Segment::create(&self.files, &dir, base);
        let created = created.and_then(|segment| self.files.disk().sync_dir(&dir).map(|()| segment));
        let segment = match created {
            Ok(segment) => segment,
            Err(error) => {
                // A smaller batch may still fit into the old segment: nothing may stand there that looks like the next one.
                let removed = Segment::empty(base).remove(&self.files, &dir);
                let error = self.io("create a segment in", &dir)(error);
                return Err(if removed.is_ok() { error } else { self.poison(error) });
            }
        };
        self.files.close(&self.path(self.active().base, LOG));
        self.segments.insert(base, segment);
        self.end = base;
        self.synced = base;
        Ok(())
    }

    /// Makes the active segment what a closed one has to be: whole, synced, with its indexes.
    fn seal_active(&mut self) -> Result<(), LogError> {
        #[cfg(test)]
        if crate::log::planted(crate::log::Bug::RollsUnsynced) {
            self.synced = self.end;
        }
        self.sync()?;
        self.active_mut().note_time();
        self.checkpoint()
    }

    /// Writes bytes to the active segment, at once, and takes in the batches that they are.
    fn write(&mut self, parts: &[&[u8]], headers: &[&BatchHeader], now_ms: i64) -> Result<(), LogError> {
        let path = self.path(self.active().base, LOG);
        let mut position = self.active().bytes;
        let writer = self.files.writer(&path).map_err(self.io("open", &path))?;
        let mut file = writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Err(error) = file.append_parts(parts) {
            // None of it may stay: the next batch would come behind it.
            let cut = file.truncate(position);
            drop(file);
            let error = self.io("append to", &path)(error);
            return Err(match cut {
                Ok(()) => error,
                Err(_) => self.poison(error),
            });
        }
        drop(file);
        let interval = self.config.index_interval_bytes;
        for header in headers {
            let active = self.active_mut();
            active.note(header, position, interval);
            position += header.size() as u64;
            active.bytes = position;
            self.take_in(header, now_ms);
            self.end = header.next_offset();
        }
        #[cfg(test)]
        if crate::log::planted(crate::log::Bug::IndexAhead) {
            self.spill()?;
        }
        Ok(())
    }

    /// What a batch in the log says about epochs and producers.
    fn take_in(&mut self, header: &BatchHeader, now_ms: i64) {
        self.note_epoch(header);
        self.producers.apply(header, now_ms);
    }

    /// The first epoch begins where the log does, whatever compaction took from its beginning.
    pub(super) fn note_epoch(&mut self, header: &BatchHeader) {
        if let Some(epoch) = header.epoch() {
            let base = header.base_offset;
            let held = self.epochs.starts().iter().rev().find(|(_, start)| *start <= base);
            if held.is_some_and(|(held, _)| *held == epoch) {
                return; // A scan comes to what is known already.
            }
            let offset = if self.epochs.starts().is_empty() { base.min(self.start) } else { base };
            self.epochs_changed |= self.epochs.append(epoch, offset);
        }
    }

    pub(super) fn corrupt(&self, source: BatchError) -> LogError {
        LogError::Corrupt { partition: self.id.clone(), source }
    }

    fn invalid(&self, what: &'static str) -> LogError {
        LogError::InvalidBatch { partition: self.id.clone(), what }
    }
}
