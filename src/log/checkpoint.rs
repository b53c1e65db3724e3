//! Kafka's small text files: checkpoints of offsets, and the id of the topic that a directory belongs to.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::path::Path;

use data_encoding::BASE64URL_NOPAD;
use uuid::Uuid;

use super::EpochHistory;
use crate::disk::{self, Disk};
use crate::types::{LeaderEpoch, Offset, PartitionId, TopicId};

pub const LEADER_EPOCHS: &str = "leader-epoch-checkpoint";
pub const PARTITION_METADATA: &str = "partition.metadata";
pub const LOG_STARTS: &str = "log-start-offset-checkpoint";
pub const CLEANED: &str = "cleaner-offset-checkpoint";

/// The largest file of these that is read: some hundred thousand partitions.
pub(super) const MAX_BYTES: u64 = 64 << 20;
const VERSION: &str = "0";

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct CheckpointError {
    pub line: usize,
    pub what: &'static str,
}

/// Reads a leader epoch checkpoint.
pub fn parse_epochs(text: &str) -> Result<EpochHistory, CheckpointError> {
    let starts = entries(text, |words| {
        let (epoch, offset) = words.split_once(' ')?;
        // Kafka's epochs are 31 bits.
        let epoch = u32::try_from(epoch.parse::<i32>().ok()?).ok()?;
        Some((LeaderEpoch(epoch), offset_from(offset)?))
    })?;
    EpochHistory::from_starts(starts).ok_or(CheckpointError { line: 3, what: "epochs and offsets do not rise" })
}

pub fn format_epochs(history: &EpochHistory) -> String {
    format(history.starts().len(), history.starts().iter().map(|(epoch, start)| format!("{epoch} {start}")))
}

/// Offsets of partitions, as in Kafka's `log-start-offset-checkpoint` and its like. The topics are not checked, since
/// Kafka allows names that dmq does not.
pub type Offsets = BTreeMap<(String, PartitionId), Offset>;

/// Reads a checkpoint of offsets.
pub fn parse_offsets(text: &str) -> Result<Offsets, CheckpointError> {
    let entries = entries(text, |words| {
        let mut words = words.split(' ');
        let key = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        let offset = offset_from(words.next()?)?;
        words.next().is_none().then_some((key, offset))
    })?;
    Ok(entries.into_iter().collect())
}

pub fn format_offsets(offsets: &Offsets) -> String {
    format(offsets.len(), offsets.iter().map(|((topic, partition), offset)| format!("{topic} {partition} {offset}")))
}

/// Reads the file that names a directory's topic.
pub fn parse_partition_metadata(text: &str) -> Result<TopicId, CheckpointError> {
    let mut lines = text.lines();
    if lines.next() != Some("version: 0") {
        return Err(CheckpointError { line: 1, what: "it is not \"version: 0\"" });
    }
    let wrong = CheckpointError { line: 2, what: "it is not \"topic_id: \" with 22 characters of base64" };
    let id = lines.next().and_then(|line| line.strip_prefix("topic_id: ")).and_then(uuid_from_base64);
    id.map(TopicId).ok_or(wrong)
}

pub fn format_partition_metadata(topic: TopicId) -> String {
    format!("version: 0\ntopic_id: {}", uuid_to_base64(topic.0))
}

/// Replaces a file as a whole, durably.
pub(super) fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = disk::temporary_name(path);
    let mut file = disk.create(&temporary)?;
    file.append(bytes)?;
    file.sync()?;
    drop(file);
    disk::publish(disk, &temporary, path)
}

/// A whole file, or none where there is none.
pub(super) fn read(disk: &dyn Disk, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let size = file.size()?;
    if size > MAX_BYTES {
        return Err(io::Error::other(format!("it has {size} bytes, and {MAX_BYTES} at most are read")));
    }
    let mut bytes = vec![0; size as usize];
    let read = disk::read_full(&*file, 0, &mut bytes)?;
    bytes.truncate(read);
    Ok(Some(bytes))
}

fn offset_from(word: &str) -> Option<Offset> {
    word.parse().ok().filter(|offset| *offset >= 0).map(Offset)
}

fn entries<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, CheckpointError> {
    let mut lines = text.lines();
    if lines.next() != Some(VERSION) {
        return Err(CheckpointError { line: 1, what: "the version is not 0" });
    }
    let count = lines.next().and_then(|line| line.parse::<usize>().ok());
    let count = count.ok_or(CheckpointError { line: 2, what: "the count is no number" })?;
    let mut found = Vec::new();
    for (index, line) in lines.enumerate() {
        let line_number = index + 3;
        found.push(parse(line).ok_or(CheckpointError { line: line_number, what: "it is no entry" })?);
    }
    match found.len() == count {
        true => Ok(found),
        false => Err(CheckpointError { line: 2, what: "there are not as many entries" }),
    }
}

fn format(count: usize, lines: impl Iterator<Item = String>) -> String {
    let mut text = format!("{VERSION}\n{count}\n");
    for line in lines {
        writeln!(text, "{line}").expect("a string takes everything");
    }
    text
}

/// Kafka's text of a UUID: base64 for URLs, without padding.
pub fn uuid_to_base64(id: Uuid) -> String {
    BASE64URL_NOPAD.encode(id.as_bytes())
}

pub fn uuid_from_base64(text: &str) -> Option<Uuid> {
    Uuid::from_slice(&BASE64URL_NOPAD.decode(text.as_bytes()).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::super::TopicPartition;
    use super::*;
    use crate::types::TopicName;

    #[test]
    fn epochs_are_written_as_kafka_writes_them() {
        let mut history = EpochHistory::default();
        history.append(LeaderEpoch(2), Offset(0));
        history.append(LeaderEpoch(5), Offset(17));
        assert_eq!(format_epochs(&history), "0\n2\n2 0\n5 17\n");
        assert_eq!(parse_epochs("0\n2\n2 0\n5 17\n").unwrap(), history);
        for wrong in ["", "1\n0\n", "0\n", "0\n1\n", "0\n1\n2\n", "0\n1\n-2 0\n", "0\n2\n2 0\n2 1\n", "0\n0\n1 1\n"] {
            assert!(parse_epochs(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn offsets_are_written_as_kafka_writes_them() {
        let offsets = Offsets::from([(("orders-eu".into(), 3), Offset(17))]);
        let text = format_offsets(&offsets);
        assert_eq!(text, "0\n1\norders-eu 3 17\n");
        assert_eq!(parse_offsets(&text).unwrap(), offsets);
        assert!(parse_offsets("0\n1\norders 3 -1\n").is_err());
    }

    #[test]
    fn a_topics_id_is_written_as_kafka_writes_it() {
        // Of Kafka's own metadata topic, and one by `Uuid.toString` of Kafka's clients.
        assert_eq!(uuid_to_base64(Uuid::from_u128(1)), "AAAAAAAAAAAAAAAAAAAAAQ");
        let id = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(uuid_to_base64(id), "ASNFZ4mrze8BI0VniavN7w");
        let text = format_partition_metadata(TopicId(id));
        assert_eq!(parse_partition_metadata(&text), Ok(TopicId(id)));
        for wrong in
            ["", "version: 1\ntopic_id: ASNFZ4mrze8BI0VniavN7w", "version: 0\ntopic_id: ASNFZ4mrze8BI0VniavN7x"]
        {
            assert!(parse_partition_metadata(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_directory_has_one_name() {
        let id = TopicPartition::new(TopicName::new("a-b.c").unwrap(), 12);
        assert_eq!(TopicPartition::from_directory("a-b.c-12"), Some(id));
        for name in ["a", "a-", "-1", "a-01", "a-+1", "a-x", "a-4294967296", "a..b-1"] {
            assert_eq!(TopicPartition::from_directory(name), None, "{name}");
        }
    }
}
