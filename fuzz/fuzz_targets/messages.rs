//! What processes and clients send each other: whatever is read is written again, and then reads the same.
#![no_main]

use bytes::Bytes;
use dmq::wire::replica::{ReplicaAnswer, ReplicaFetch};
use dmq::wire::{
    ControllerHeartbeat, FetchAnswer, FetchRequest, Heartbeat, HeartbeatAnswer, Push, PushAck, WireMessage, admin, data,
};
use libfuzzer_sys::fuzz_target;

/// Under its own type, so that the fields are come to.
fn round_trip<T: WireMessage>(body: &str) {
    let tagged = format!("{{\"type\":\"{}\",{body}", T::TYPE);
    for payload in [body.as_bytes(), tagged.as_bytes()] {
        if let Ok(message) = T::decode(payload) {
            let encoded = message.encode();
            let again = T::decode(&encoded).expect("what we write we read");
            assert_eq!(again.encode(), encoded);
        }
    }
}

fn admin_request(body: &[u8]) {
    let _ = admin::decode::<admin::Terms>(body);
    let _ = admin::decode::<admin::TopicCreate>(body);
    let _ = admin::decode::<admin::TopicAlter>(body);
    let _ = admin::decode::<admin::TopicDescribe>(body);
    let _ = admin::decode::<admin::TopicNamed>(body);
    let _ = admin::decode::<admin::NodeRegister>(body);
    let _ = admin::decode::<admin::NodeNamed>(body);
    let _ = admin::decode::<admin::PartitionAlter>(body);
    let _ = admin::decode::<admin::MetadataRestore>(body);
}

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    // Behind a frame that fits, so that the header is come to.
    let cut = rest.len().min(usize::from(*first));
    let mut framed = vec![1];
    framed.extend_from_slice(&(cut as u32).to_le_bytes());
    framed.extend_from_slice(rest);
    for payload in [Bytes::copy_from_slice(bytes), framed.into()] {
        if let Ok(fetch) = ReplicaFetch::decode(&payload) {
            assert_eq!(ReplicaFetch::decode(&fetch.encode()).as_ref(), Ok(&fetch));
        }
        if let Ok((answer, batches)) = ReplicaAnswer::decode(&payload) {
            assert_eq!(ReplicaAnswer::decode(&answer.encode(&batches)), Ok((answer, batches)));
        }
    }
    let Ok(text) = std::str::from_utf8(rest) else { return };
    match first % 8 {
        0 => round_trip::<Heartbeat>(text),
        1 => round_trip::<HeartbeatAnswer>(text),
        2 => round_trip::<ControllerHeartbeat>(text),
        3 => round_trip::<FetchRequest>(text),
        4 => round_trip::<FetchAnswer>(text),
        5 => round_trip::<Push>(text),
        6 => round_trip::<PushAck>(text),
        _ => {
            admin_request(rest);
            let _ = data::Acks::parse(text);
        }
    }
});
