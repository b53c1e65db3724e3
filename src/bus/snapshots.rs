//! Large immutable objects in a JetStream object store, moved in chunks: memory does not grow with their size.
//!
//! Whoever reads one to its end without an error has read exactly what was put: size and SHA-256 are checked at the end, so
//! nothing of it may take effect before. `nats object ls|get` reads the same objects.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream;
use async_nats::jetstream::object_store::{
    DeleteErrorKind, GetErrorKind, InfoErrorKind, Object, ObjectMetadata, ObjectStore, PutErrorKind,
};
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Sleep;

use super::jetstream::{self as api, Ensured};
use super::{BusError, raw};

/// Where snapshots are, and how they are kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotsConfig {
    pub bucket: String,
    /// 1 to 5.
    pub replicas: usize,
    /// For one step: a request, the acknowledgement of a chunk, or the arrival of the next one.
    pub timeout: Duration,
}

impl Default for SnapshotsConfig {
    fn default() -> Self {
        Self { bucket: "DMQ_SNAPSHOTS".to_owned(), replicas: 1, timeout: Duration::from_secs(5) }
    }
}

/// Bytes per message where the server takes so many, and so what one transfer holds in memory several times over.
const CHUNK: usize = 128 * 1024;

/// The bucket, over one connection.
#[derive(Clone)]
pub struct Snapshots {
    client: Client,
    context: jetstream::Context,
    config: SnapshotsConfig,
}

impl Snapshots {
    pub fn new(client: Client, config: SnapshotsConfig) -> Self {
        let mut context = jetstream::new(client.clone());
        context.set_timeout(config.timeout);
        Self { client, context, config }
    }

    pub fn config(&self) -> &SnapshotsConfig {
        &self.config
    }

    /// Creates the bucket if it is missing. What exists is compared and never changed.
    ///
    /// # Errors
    /// Any of [`BusError`]; the bucket may exist nonetheless after `Timeout`.
    pub async fn ensure(&self) -> Result<Ensured, BusError> {
        let bucket = &self.config.bucket;
        let wanted = Config {
            name: format!("OBJ_{bucket}"),
            subjects: vec![format!("$O.{bucket}.C.>"), format!("$O.{bucket}.M.>")],
            description: Some("Snapshots of a dmq cluster's metadata; the history names those that count".to_owned()),
            metadata: HashMap::from([("dmq.role".to_owned(), "metadata-snapshots".to_owned())]),
            storage: StorageType::File,
            discard: DiscardPolicy::New,
            max_messages: -1,
            max_bytes: -1,
            max_messages_per_subject: -1,
            max_consumers: -1,
            num_replicas: self.config.replicas,
            allow_rollup: true,
            // Otherwise a replica that lags could deny a snapshot that was just written.
            allow_direct: false,
            ..Config::default()
        };
        api::ensure(&self.client, &wanted, self.config.timeout).await
    }

    async fn store(&self) -> Result<ObjectStore, BusError> {
        if !raw::is_connected(&self.client) {
            return Err(BusError::Disconnected);
        }
        // The crate does not tell a missing bucket from other failures.
        let stream = format!("OBJ_{}", self.config.bucket);
        if api::info(&self.client, &stream, self.config.timeout).await?.is_none() {
            return Err(BusError::Missing(format!("bucket {}", self.config.bucket)));
        }
        self.within(self.context.get_object_store(&self.config.bucket)).await?.map_err(|_| BusError::Timeout)
    }

    async fn within<T>(&self, step: impl Future<Output = T>) -> Result<T, BusError> {
        // A little more than the crate's own timeout, which then has the word; it does not cover everything.
        tokio::time::timeout(self.config.timeout * 2, step).await.map_err(|_| BusError::Timeout)
    }

    /// Stores what `data` yields under `name`, replacing what was there, and returns its size in bytes. The object exists
    /// only once all of it is stored. For bytes in memory, pass a slice: `&[u8]` is a reader.
    ///
    /// # Errors
    /// `Input` where `data` fails, `Missing` where the bucket is missing, `Timeout` where an acknowledgement did not come;
    /// the object then is the old one or the new one.
    pub async fn put(&self, name: &str, data: impl AsyncRead + Unpin) -> Result<u64, BusError> {
        let store = self.store().await?;
        let chunk = CHUNK.min(self.client.max_payload());
        let meta = ObjectMetadata { name: name.to_owned(), chunk_size: Some(chunk), ..ObjectMetadata::default() };
        // Each step inside ends by the context's timeout, and a reader may take its time.
        let mut data = data;
        let stored = store.put(meta, &mut data).await.map_err(|error| match error.kind() {
            PutErrorKind::ReadChunks => BusError::Input(error.to_string()),
            PutErrorKind::InvalidName => BusError::InvalidName(name.to_owned()),
            _ => failed(&error),
        })?;
        Ok(u64::try_from(stored.size).unwrap_or(u64::MAX))
    }

    /// Opens the object for reading.
    ///
    /// # Errors
    /// `Missing` where there is no such object or bucket; any other of [`BusError`]. Reading fails with `TimedOut` where the
    /// next chunk does not come, and with `InvalidData` where the whole is not what was put.
    pub async fn get(&self, name: &str) -> Result<Snapshot, BusError> {
        let store = self.store().await?;
        let object = self.within(store.get(name)).await?.map_err(|error| match error.kind() {
            GetErrorKind::NotFound => BusError::Missing(format!("object {name}")),
            GetErrorKind::InvalidName => BusError::InvalidName(name.to_owned()),
            _ => failed(&error),
        })?;
        if object.info.digest.is_none() {
            return Err(BusError::Corrupt(format!("object {name}, which has no digest,")));
        }
        let size = u64::try_from(object.info.size).unwrap_or(u64::MAX);
        Ok(Snapshot { object, size, read: 0, patience: self.config.timeout, waiting: None })
    }

    /// Whether there is such an object.
    ///
    /// # Errors
    /// `Missing` where the bucket is missing; any other of [`BusError`].
    pub async fn exists(&self, name: &str) -> Result<bool, BusError> {
        let store = self.store().await?;
        match self.within(store.info(name)).await? {
            Ok(info) => Ok(!info.deleted),
            Err(error) if error.kind() == InfoErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Deletes the object. That there was none is no error.
    ///
    /// # Errors
    /// `Missing` where the bucket is missing; any other of [`BusError`].
    pub async fn delete(&self, name: &str) -> Result<(), BusError> {
        let store = self.store().await?;
        match self.within(store.delete(name)).await? {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == DeleteErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(&error)),
        }
    }

    /// The names of all objects, sorted.
    ///
    /// # Errors
    /// `Missing` where the bucket is missing; any other of [`BusError`].
    pub async fn list(&self) -> Result<Vec<String>, BusError> {
        let store = self.store().await?;
        let mut objects = self.within(store.list()).await?.map_err(|error| failed(&error))?;
        let mut names = Vec::new();
        while let Some(object) = self.within(objects.next()).await? {
            names.push(object.map_err(|error| failed(&error))?.name);
        }
        names.sort();
        Ok(names)
    }

    /// Removes the chunks that belong to no object, as a `put` that was cut off leaves them, and returns of how many such
    /// attempts. Only for the one process that puts: what somebody else is putting at the moment is removed as well.
    ///
    /// # Errors
    /// `Missing` where the bucket is missing; any other of [`BusError`].
    pub async fn sweep(&self) -> Result<usize, BusError> {
        let store = self.store().await?;
        let (bucket, timeout) = (&self.config.bucket, self.config.timeout);
        let stream = format!("OBJ_{bucket}");
        // What is there is asked for before what is used, so that an object put in between keeps its chunks.
        let body = json!({ "subjects_filter": format!("$O.{bucket}.C.>") });
        let found: Chunks = api::call(&self.client, &format!("STREAM.INFO.{stream}"), &stream, &body, timeout).await?;
        let mut orphans = found.state.subjects.unwrap_or_default();
        let mut objects = self.within(store.list()).await?.map_err(|error| failed(&error))?;
        while let Some(object) = self.within(objects.next()).await? {
            let object = object.map_err(|error| failed(&error))?;
            orphans.remove(&format!("$O.{bucket}.C.{}", object.nuid));
        }
        for subject in orphans.keys() {
            let verb = format!("STREAM.PURGE.{stream}");
            api::call::<Value>(&self.client, &verb, &stream, &json!({ "filter": subject }), timeout).await?;
        }
        Ok(orphans.len())
    }
}

#[derive(Deserialize)]
struct Chunks {
    state: ChunkSubjects,
}

#[derive(Deserialize)]
struct ChunkSubjects {
    subjects: Option<HashMap<String, u64>>,
}

/// The crate hides most causes, and the ones that matter here are missing answers.
fn failed(error: &(impl std::error::Error + 'static)) -> BusError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(refusal) = inner.downcast_ref::<jetstream::Error>() {
            return BusError::Refused { code: refusal.error_code().0, text: refusal.to_string() };
        }
        cause = inner.source();
    }
    BusError::Timeout
}

/// A snapshot that is being read. Reading waits for the network at most the configured timeout at a time.
pub struct Snapshot {
    object: Object,
    size: u64,
    read: u64,
    patience: Duration,
    /// Runs only while a chunk is awaited: the reader may take its time between two of them.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Snapshot {
    /// In bytes, as it was put.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl AsyncRead for Snapshot {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.object).poll_read(cx, buf) {
            Poll::Pending => {
                let waiting = this.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(this.patience)));
                waiting.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
            }
            Poll::Ready(Err(error)) => {
                // The crate may fail after it has filled some of the buffer, which no reader expects.
                buf.set_filled(before);
                Poll::Ready(Err(error))
            }
            Poll::Ready(Ok(())) => {
                let got = (buf.filled().len() - before) as u64;
                this.read += got;
                this.waiting = None;
                if got == 0 && this.read != this.size {
                    let text = format!("{} bytes of {}", this.read, this.size);
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}
