//! Batches: what is written reads back, to the byte as Kafka writes it, and what is damaged is found out.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::types::Offset;

const LIMIT: usize = 1 << 20;

fn header(key: &'static str, value: Option<&'static str>) -> Header {
    Header { key: Bytes::from_static(key.as_bytes()), value: value.map(|value| Bytes::from_static(value.as_bytes())) }
}

fn sample(compression: Compression) -> Bytes {
    let mut builder = BatchBuilder::new(compression).producer(ProducerStamp { id: 7, epoch: 1, sequence: 40 });
    builder.push(1_000, Some(b"k"), Some(&b"value ".repeat(20_000)), &[header("h", Some("1")), header("h", None)]);
    builder.push(990, Some(b"k"), None, &[]);
    builder.push(1_020, None, Some(b""), &[]);
    builder.build().unwrap()
}

#[test]
fn records_come_back_from_every_codec() {
    for compression in Compression::ALL {
        let batch = sample(compression);
        let head = BatchHeader::verify(&batch).unwrap();
        assert_eq!(head.attributes.compression(), Ok(compression));
        assert_eq!((head.base_timestamp, head.max_timestamp, head.record_count), (1_000, 1_020, 3));
        assert_eq!((head.producer_id, head.producer_epoch, head.last_sequence()), (7, 1, 42));
        let found: Vec<Record> = records(&batch, LIMIT).unwrap().map(Result::unwrap).collect();
        assert_eq!(found[0].headers, [header("h", Some("1")), header("h", None)], "{compression}");
        assert_eq!(found[0].value.as_ref().unwrap().len(), 120_000);
        assert_eq!((found[1].offset, found[1].timestamp, &found[1].value), (Offset(1), 990, &None));
        assert_eq!((&found[2].key, found[2].value.as_deref()), (&None, Some(&b""[..])));
    }
}

#[test]
fn a_decompression_bomb_stops_at_the_limit() {
    for compression in Compression::ALL {
        let mut builder = BatchBuilder::new(compression);
        builder.push(0, None, Some(&vec![0; 8 * LIMIT]), &[]);
        let batch = builder.build().unwrap();
        if compression != Compression::None {
            assert_eq!(records(&batch, LIMIT).err(), Some(BatchError::TooLarge { limit: LIMIT }), "{compression}");
        }
    }
}

#[test]
fn the_checksum_covers_what_a_leader_does_not_stamp() {
    let batch = sample(Compression::None);
    for at in 0..batch.len() {
        let mut changed = batch.to_vec();
        changed[at] ^= 1;
        // Base offset, and leader epoch.
        let stamped = at < 8 || (12..16).contains(&at);
        assert_eq!(BatchHeader::verify(&changed).is_ok(), stamped, "byte {at}");
    }
}

#[test]
fn sequences_run_over_to_zero() {
    let mut builder =
        BatchBuilder::new(Compression::None).producer(ProducerStamp { id: 7, epoch: 1, sequence: i32::MAX });
    builder.push(0, None, None, &[]).push(0, None, None, &[]);
    assert_eq!(BatchHeader::parse(&builder.build().unwrap()).unwrap().last_sequence(), 0);
}

#[test]
fn a_restamped_batch_is_what_the_other_producer_would_have_sent() {
    for compression in Compression::ALL {
        let build = |stamp| {
            let mut builder = BatchBuilder::new(compression);
            builder.push(1_000, Some(b"k"), Some(&b"value ".repeat(100)), &[]);
            builder.pack().unwrap().seal(stamp)
        };
        let [first, second] = [7, 8].map(|id| Some(ProducerStamp { id, epoch: 0, sequence: 40 }));
        let batch = build(first);
        let held = batch.clone();
        assert_eq!(restamp(batch, second).unwrap(), build(second), "{compression}");
        assert_eq!(held, build(first), "what somebody else holds does not change");
        assert_eq!(restamp(held, None).unwrap(), build(None));
    }
    assert_eq!(ProducerStamp { id: 7, epoch: 0, sequence: i32::MAX }.after(2).sequence, 1);
}

type Content = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(Vec<u8>, Option<Vec<u8>>)>);

fn content() -> impl Strategy<Value = Content> {
    let bytes = || vec(any::<u8>(), 0..40);
    (0i64..1 << 45, option::of(bytes()), option::of(bytes()), vec((bytes(), option::of(bytes())), 0..3))
}

proptest! {
    #[test]
    fn what_is_built_is_read(contents in vec(content(), 1..20), codec in 0usize..5) {
        let mut builder = BatchBuilder::new(Compression::ALL[codec]);
        for (timestamp, key, value, headers) in &contents {
            let header = |(key, value): &(Vec<u8>, Option<Vec<u8>>)| Header {
                key: Bytes::copy_from_slice(key),
                value: value.as_deref().map(Bytes::copy_from_slice),
            };
            let headers: Vec<Header> = headers.iter().map(header).collect();
            builder.push(*timestamp, key.as_deref(), value.as_deref(), &headers);
        }
        let bound = |(_, key, value, headers): &Content| {
            let header = |(key, value): &(Vec<u8>, Option<Vec<u8>>)| Header {
                key: Bytes::copy_from_slice(key),
                value: value.as_deref().map(Bytes::copy_from_slice),
            };
            let headers: Vec<Header> = headers.iter().map(header).collect();
            BatchBuilder::record_size_bound(key.as_deref(), value.as_deref(), &headers)
        };
        prop_assert!(builder.size() <= HEADER_BYTES + contents.iter().map(bound).sum::<usize>());
        let batch = builder.build().unwrap();
        BatchHeader::verify(&batch).unwrap();
        let found: Vec<Record> = records(&batch, LIMIT).unwrap().map(Result::unwrap).collect();
        prop_assert_eq!(found.len(), contents.len());
        for (index, (record, (timestamp, key, value, headers))) in found.iter().zip(&contents).enumerate() {
            prop_assert_eq!(record.offset, Offset(index as i64));
            prop_assert_eq!(record.timestamp, *timestamp);
            prop_assert_eq!(record.key.as_deref(), key.as_deref());
            prop_assert_eq!(record.value.as_deref(), value.as_deref());
            prop_assert_eq!(record.headers.len(), headers.len());
        }
    }

    #[test]
    fn hostile_bytes_do_no_harm(mut bytes in vec(any::<u8>(), 0..300), codec in 0u8..8, count in 0i32..200) {
        if bytes.len() >= HEADER_BYTES {
            // Past the first checks, so that records are decoded.
            let length = (bytes.len() - PREFIX_BYTES) as i32;
            bytes[0] = 0;
            bytes[8..12].copy_from_slice(&length.to_be_bytes());
            bytes[16] = 2;
            bytes[22] = bytes[22] & 0xf8 | codec;
            bytes[23..27].copy_from_slice(&count.to_be_bytes());
            bytes[57..61].copy_from_slice(&count.to_be_bytes());
        }
        let bytes = Bytes::from(bytes);
        let _ = BatchHeader::verify(&bytes);
        if let Ok(records) = records(&bytes, 1 << 16) {
            prop_assert!(records.count() <= count as usize + 1);
        }
    }
}
