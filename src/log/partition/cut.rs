//! Taking away: the log's end where histories part, its beginning where it is old, too large, or not wanted any more.

use super::super::producers::Producers;
use super::super::scan::{Begin, Found, Scan, Scanner};
use super::super::segment::{self, LOG, SNAPSHOT, Segment};
use super::super::{EpochHistory, LogError};
use super::Log;
use crate::types::Offset;

impl Log {
    /// Cuts off everything at and behind `offset`, durably. Where a batch has records on both sides it goes as a whole. The
    /// log's end afterwards. `now_ms` is wall time in milliseconds since 1970.
    pub fn truncate_to(&mut self, offset: Offset, now_ms: i64) -> Result<Offset, LogError> {
        self.check_usable()?;
        if offset >= self.end {
            return Ok(self.end);
        }
        if offset < self.first().base {
            return self.reset_to(offset).map(|()| offset);
        }
        match self.cut_end(offset, now_ms) {
            Ok(()) => Ok(self.end),
            Err(error) => Err(self.poison(error)),
        }
    }

    /// Drops everything and goes on at `offset`, durably: a follower whose log ends before its leader's begins.
    pub fn reset_to(&mut self, offset: Offset) -> Result<(), LogError> {
        self.check_usable()?;
        match self.drop_all(offset) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.poison(error)),
        }
    }

    /// Makes `offset` the first one that may be read, and deletes the segments that are wholly before it. Who calls it
    /// remembers the new start: a crash before that brings back what was still there. Kafka's DeleteRecords; `offset` is at
    /// most the high watermark.
    pub fn delete_before(&mut self, offset: Offset) -> Result<Offset, LogError> {
        self.check_usable()?;
        if offset > self.end {
            let (partition, start, end) = (self.id.clone(), self.start, self.end);
            return Err(LogError::OffsetOutOfRange { partition, offset, start, end });
        }
        self.advance_start(offset)?;
        self.remove_segments_before_start()?;
        Ok(self.start)
    }

    /// Kafka's DeleteRecords: what [`Self::delete_before`] does, and never more than is committed.
    ///
    /// # Errors
    /// `OffsetOutOfRange` behind the high watermark.
    pub fn delete_records(&mut self, offset: Offset, high_watermark: Offset) -> Result<Offset, LogError> {
        if offset > high_watermark {
            let (partition, start) = (self.id.clone(), self.start);
            return Err(LogError::OffsetOutOfRange { partition, offset, start, end: high_watermark });
        }
        self.delete_before(offset)
    }

    /// Deletes the oldest segments that `retention.ms` and `retention.bytes` give up, as far as all their records are below
    /// `below`, the high watermark. `now_ms` is wall time in milliseconds since 1970. How many segments went.
    pub fn delete_old(&mut self, now_ms: i64, below: Offset) -> Result<usize, LogError> {
        self.delete_some(now_ms, below, usize::MAX)
    }

    /// The same, of so many segments at most.
    pub(super) fn delete_some(&mut self, now_ms: i64, below: Offset, limit: usize) -> Result<usize, LogError> {
        self.check_usable()?;
        self.producers.expire(now_ms.saturating_sub(self.config.producer_expiration_ms));
        if !self.config.delete {
            return Ok(0);
        }
        let mut size = self.size_bytes();
        let mut start = self.start;
        for segment in self.segments.values().take(limit) {
            let end = self.upper_bound(segment.base);
            let old = |ms: i64| segment.largest.0 >= 0 && now_ms.saturating_sub(segment.largest.0) > ms;
            let too_old = self.config.retention_ms.is_some_and(old);
            let too_much = self.config.retention_bytes.is_some_and(|limit| size - segment.bytes >= limit);
            let active = segment.base == self.active().base;
            // Compaction may have emptied a closed segment; the active one is no older for being empty.
            let goes = if segment.bytes == 0 { !active } else { too_old || too_much };
            #[cfg(test)]
            let goes = goes || active && crate::log::planted(crate::log::Bug::DeletesTheActive);
            #[cfg(test)]
            let below = if crate::log::planted(crate::log::Bug::DeletesTheUncommitted) { end } else { below };
            if end > below || !goes {
                break;
            }
            size -= segment.bytes;
            start = end;
        }
        if start == self.start {
            return Ok(0);
        }
        if start > self.active().base {
            // The offsets must go on where they were: the next segment's name says it.
            self.roll()?;
        }
        self.advance_start(start)?;
        self.remove_segments_before_start()
    }

    fn advance_start(&mut self, offset: Offset) -> Result<(), LogError> {
        if offset > self.start {
            self.start = offset;
            let held = self.epochs.clone();
            self.epochs.start_at(offset);
            self.epochs_changed |= self.epochs != held;
        }
        Ok(())
    }

    fn remove_segments_before_start(&mut self) -> Result<usize, LogError> {
        let mut removed = 0;
        // Oldest first, each durably, so that a crash leaves no hole.
        while self.segments.len() > 1 && self.upper_bound(self.first().base) <= self.start {
            let base = self.first().base;
            self.disturbances.note();
            self.first().remove(&self.files, &self.dir).map_err(self.io("remove a segment of", &self.dir))?;
            self.segments.remove(&base);
            if self.snapshot != Some(base) {
                self.remove_snapshot(base)?;
            }
            removed += 1;
        }
        let first = self.first().base;
        self.damages.retain(|damage| damage.offsets.end > first);
        Ok(removed)
    }

    fn cut_end(&mut self, offset: Offset, now_ms: i64) -> Result<(), LogError> {
        self.cuts += 1;
        self.disturbances.note();
        let (files, dir) = (self.files.clone(), self.dir.clone());
        // Newest first, each durably, so that a crash leaves no hole. One that begins at the cut stays, empty: its snapshot may be
        // all that knows of producers whose batches were compacted away.
        while self.active().base > offset && self.segments.len() > 1 {
            let base = self.active().base;
            self.active().remove(&files, &dir).map_err(self.io("remove a segment of", &dir))?;
            self.segments.remove(&base);
        }
        let base = self.active().base;
        let path = self.path(base, LOG);
        let (position, end, is_hole) = self.place_of(offset).map_err(self.io("read", &path))?;
        // The indexes go first: what they cover is believed when the log is opened. Then the epochs.
        self.active_mut().cut_indexes(&files, &dir, end).map_err(self.io("cut an index in", &dir))?;
        #[cfg(test)]
        let held = self.epochs.clone();
        self.epochs.truncate_to(end);
        #[cfg(test)]
        if crate::log::planted(crate::log::Bug::EpochsOutliveACut) {
            self.epochs = held;
        }
        self.epochs_changed = true;
        self.write_epochs()?;
        let kept = self.remove_snapshots_above(self.snapshot_offsets()?, end)?;
        files.forget(&path);
        let cut = files.disk().append(&path).and_then(|mut file| {
            file.truncate(position)?;
            file.sync()
        });
        cut.map_err(self.io("cut", &path))?;
        self.end = end;
        self.synced = end;
        self.start = self.start.min(end);
        self.cleaned = self.cleaned.min(end);
        self.damages.retain(|damage| damage.offsets.start < end);
        self.recount(position, end).map_err(self.io("read", &path))?;
        #[cfg(test)]
        if crate::log::planted(crate::log::Bug::ProducersOutliveACut) {
            return Ok(());
        }
        self.load_producers(kept, now_ms)?;
        if is_hole && end < offset {
            // Compaction has left a hole before the cut: its offsets stay used.
            self.roll_to(offset)?;
        }
        Ok(())
    }

    /// Where in the active segment the last readable batch up to an offset ends, and the log's end if it is cut there; and whether
    /// only a hole lies between it and the offset. Nothing damaged is left at the end: it would be taken for a torn tail when the
    /// log is opened, and the log would end elsewhere.
    pub(super) fn place_of(&self, offset: Offset) -> std::io::Result<(u64, Offset, bool)> {
        let segment = self.active();
        let from = segment.floor(&self.files, &self.dir, Offset(offset.0 - 1))?;
        if let Some(place) = self.place_behind(from, offset)? {
            return Ok(place);
        }
        // The batch of the index entry is damaged itself.
        let place = self.place_behind(Begin::in_segment(segment.base, None), offset)?;
        Ok(place.expect("at its beginning every segment has a place"))
    }

    /// The same, as far as the batches from a position on tell; none where the first of them is damaged.
    fn place_behind(&self, from: Begin, offset: Offset) -> std::io::Result<Option<(u64, Offset, bool)>> {
        let segment = self.active();
        let file = self.files.reader(&self.path(segment.base, LOG))?;
        let scan = Scan { base: segment.base, from, end: segment.bytes, below: self.end, verify: true };
        let mut scanner = Scanner::new(file, scan);
        let mut place = (from.position() == 0).then_some((0, segment.base));
        let mut is_hole = true;
        while let Some(found) = scanner.next()? {
            match found {
                Found::Batch { position, header } if header.next_offset() <= offset => {
                    place = Some((position + header.size() as u64, header.next_offset()));
                    is_hole = true;
                }
                Found::Batch { header, .. } => {
                    is_hole &= header.base_offset >= offset;
                    break;
                }
                Found::Damage { .. } => is_hole = false,
            }
        }
        Ok(place.map(|(position, end)| (position, end, is_hole)))
    }

    /// The largest timestamp, and the entry that is due next, after a cut: the batches behind the last index entry tell.
    fn recount(&mut self, position: u64, end: Offset) -> std::io::Result<()> {
        let interval = self.config.index_interval_bytes;
        let base = self.active().base;
        let file = self.files.reader(&self.path(base, LOG))?;
        let active = self.active_mut();
        active.bytes = position;
        let from = Begin::in_segment(base, active.offsets.last());
        active.count_from(from.position());
        self.active_mut().first_timestamp = self.first_timestamp(base)?;
        let scan = Scan { base, from, end: position, below: end, verify: false };
        let mut scanner = Scanner::new(file, scan);
        while let Some(found) = scanner.next()? {
            if let Found::Batch { position, header } = found {
                self.active_mut().note(&header, position, interval);
            }
        }
        Ok(())
    }

    fn snapshot_offsets(&self) -> Result<Vec<Offset>, LogError> {
        let names = self.files.disk().list(&self.dir).map_err(self.io("list", &self.dir))?;
        let offset = |name: &String| match segment::parse_name(name)? {
            (offset, SNAPSHOT) => Some(offset),
            _ => None,
        };
        let mut offsets: Vec<Offset> = names.iter().filter_map(offset).collect();
        offsets.sort_unstable();
        Ok(offsets)
    }

    /// Removes those of the snapshots that know more than the log has, durably: once the log has grown up to one that a loss of power
    /// brought back, it would be believed. Those that stay.
    pub(super) fn remove_snapshots_above(
        &self,
        mut snapshots: Vec<Offset>,
        end: Offset,
    ) -> Result<Vec<Offset>, LogError> {
        let above = snapshots.split_off(snapshots.partition_point(|offset| *offset <= end));
        above.iter().try_for_each(|offset| self.remove_snapshot(*offset))?;
        if !above.is_empty() {
            self.files.disk().sync_dir(&self.dir).map_err(self.io("sync", &self.dir))?;
        }
        Ok(snapshots)
    }

    fn drop_all(&mut self, offset: Offset) -> Result<(), LogError> {
        self.cuts += 1;
        self.disturbances.note();
        let (files, dir) = (self.files.clone(), self.dir.clone());
        while let Some((base, segment)) = self.segments.pop_last() {
            let removed = segment.remove(&files, &dir);
            if let Err(error) = removed {
                self.segments.insert(base, segment);
                return Err(self.io("remove a segment of", &dir)(error));
            }
            if self.segments.is_empty() {
                let created = Segment::create(&files, &dir, offset);
                let created = created.and_then(|new| files.disk().sync_dir(&dir).map(|()| new));
                match created {
                    Ok(new) => self.segments.insert(offset, new),
                    Err(error) => {
                        self.segments.insert(base, segment); // There is always one; nothing is written to it any more.
                        return Err(self.io("create a segment in", &dir)(error));
                    }
                };
                break;
            }
        }
        for snapshot in self.snapshot_offsets()? {
            self.remove_snapshot(snapshot)?;
        }
        (self.start, self.end, self.synced, self.cleaned) = (offset, offset, offset, offset);
        (self.epochs, self.epochs_changed) = (EpochHistory::default(), true);
        (self.producers, self.snapshot) = (Producers::default(), None);
        self.damages.clear();
        self.write_epochs()
    }
}
