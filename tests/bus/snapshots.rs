//! Large objects: whole or not at all.

use std::time::Duration;

use dmq::bus::BusError;
use dmq::bus::snapshots::{Snapshots, SnapshotsConfig};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::PATIENCE;
use crate::support::nats::NatsServer;

#[tokio::test]
async fn snapshot_of_5_mb_comes_back_to_the_byte() {
    let server = NatsServer::start();
    let client = server.connect().await;
    let snapshots = Snapshots::new(client.clone(), SnapshotsConfig::default());
    assert!(matches!(snapshots.put("a", &b""[..]).await, Err(BusError::Missing(_))));
    assert!(snapshots.ensure().await.unwrap().created);
    assert_eq!(snapshots.ensure().await.unwrap().differences, [""; 0]);

    let bytes: Vec<u8> = (0..5_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    assert_eq!(snapshots.put("17-abc", &bytes[..]).await, Ok(5_000_000));
    assert_eq!(snapshots.put("empty", &b""[..]).await, Ok(0));
    let mut snapshot = snapshots.get("17-abc").await.unwrap();
    assert_eq!(snapshot.size(), 5_000_000);
    let mut read = Vec::new();
    timeout(PATIENCE, snapshot.read_to_end(&mut read)).await.unwrap().unwrap();
    assert!(read == bytes);
    let mut read = Vec::new();
    snapshots.get("empty").await.unwrap().read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"");

    assert_eq!(snapshots.list().await.unwrap(), ["17-abc", "empty"]);
    assert_eq!(snapshots.exists("17-abc").await, Ok(true));
    snapshots.delete("17-abc").await.unwrap();
    snapshots.delete("17-abc").await.unwrap();
    snapshots.delete("never").await.unwrap();
    assert_eq!(snapshots.exists("17-abc").await, Ok(false));
    assert_eq!(snapshots.exists("never").await, Ok(false));
    assert!(matches!(snapshots.get("17-abc").await, Err(BusError::Missing(_))));
    assert_eq!(snapshots.list().await.unwrap(), ["empty"]);
}

#[tokio::test]
async fn chunks_of_a_put_that_was_cut_off_are_swept_and_no_others() {
    let server = NatsServer::start();
    let snapshots = Snapshots::new(server.connect().await, SnapshotsConfig::default());
    snapshots.ensure().await.unwrap();
    let whole = vec![1; 300_000];
    snapshots.put("whole", &whole[..]).await.unwrap();
    let broken = failing_after(vec![2; 300_000]);
    assert!(matches!(snapshots.put("broken", broken).await, Err(BusError::Input(_))));
    assert_eq!(snapshots.exists("broken").await, Ok(false));
    assert_eq!(snapshots.sweep().await, Ok(1));
    assert_eq!(snapshots.sweep().await, Ok(0));
    let mut read = Vec::new();
    snapshots.get("whole").await.unwrap().read_to_end(&mut read).await.unwrap();
    assert!(read == whole);
}

/// A reader that fails after `bytes`.
fn failing_after(bytes: Vec<u8>) -> impl tokio::io::AsyncRead + Unpin {
    struct Failing;
    impl tokio::io::AsyncRead for Failing {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Err(std::io::Error::other("the disk is gone")))
        }
    }
    std::io::Cursor::new(bytes).chain(Failing)
}

#[tokio::test]
async fn damaged_snapshot_is_not_read_to_its_end() {
    let server = NatsServer::start();
    let client = server.connect().await;
    let config = SnapshotsConfig { timeout: Duration::from_secs(1), ..SnapshotsConfig::default() };
    let snapshots = Snapshots::new(client.clone(), config);
    snapshots.ensure().await.unwrap();
    let bytes = vec![7; 300_000];
    snapshots.put("s", &bytes[..]).await.unwrap();
    let stream = async_nats::jetstream::new(client).get_stream("OBJ_DMQ_SNAPSHOTS").await.unwrap();
    stream.delete_message(2).await.unwrap();
    let mut read = Vec::new();
    let error = snapshots.get("s").await.unwrap().read_to_end(&mut read).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);

    stream.purge().filter("$O.DMQ_SNAPSHOTS.C.>").await.unwrap();
    let error = timeout(PATIENCE, snapshots.get("s").await.unwrap().read_to_end(&mut read)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}
