//! How another terminal asks a running `dmq dev`: one line of JSON each way over a socket in its directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::process::Role;

pub const SOCKET: &str = "dev.sock";

const PATIENCE: Duration = Duration::from_secs(8);
const LONGEST_REQUEST: u64 = 4_096;

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub enum Verb {
    Start,
    Kill,
    Pause,
    Resume,
}

impl Verb {
    pub fn done(self) -> &'static str {
        match self {
            Self::Start => "started",
            Self::Kill => "killed",
            Self::Pause => "paused",
            Self::Resume => "resumed",
        }
    }
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    pub verb: Verb,
    pub role: Role,
    pub id: u32,
}

/// Which process it was done to.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Done {
    pub role: Role,
    pub id: u32,
    pub pid: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Done(Done),
    Error(String),
}

/// The way back to who asked.
pub type Back = oneshot::Sender<Result<Done, String>>;
/// A request with it.
pub type Asked = (Request, Back);

/// Listens in the directory, which the caller owns, until the receiver is dropped.
pub fn listen(folder: &Path) -> anyhow::Result<mpsc::Receiver<Asked>> {
    let (path, _folder) = reachable(folder)?;
    let listener = UnixListener::bind(&path).with_context(|| format!("listen in {}", folder.display()))?;
    let (requests, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    // Out of file descriptors, say: the next one may succeed.
                    Err(_) => { tokio::time::sleep(Duration::from_millis(100)).await; continue }
                },
                () = requests.closed() => return,
            };
            let requests = requests.clone();
            // Who does not speak or listen in time is let go.
            tokio::spawn(tokio::time::timeout(PATIENCE, serve(stream, requests)));
        }
    });
    Ok(receiver)
}

async fn serve(mut stream: UnixStream, requests: mpsc::Sender<Asked>) {
    let (reading, mut writing) = stream.split();
    let mut line = String::new();
    let read = BufReader::new(reading.take(LONGEST_REQUEST)).read_line(&mut line).await;
    let answer = match read.map(|_| serde_json::from_str::<Request>(&line)) {
        Ok(Ok(request)) => {
            let (back, answer) = oneshot::channel();
            let sent = requests.send((request, back)).await;
            let gone = || Err("`dmq dev` is stopping".to_owned());
            match sent {
                Ok(()) => answer.await.unwrap_or_else(|_| gone()),
                Err(_) => gone(),
            }
        }
        Ok(Err(error)) => Err(format!("the request cannot be read: {error}; is it another version of dmq?")),
        Err(error) => Err(format!("the request cannot be read: {error}")),
    };
    let answer = answer.map_or_else(Answer::Error, Answer::Done);
    let mut text = serde_json::to_string(&answer).expect("an answer has string keys only");
    text.push('\n');
    // Who asked may be gone.
    let _ = writing.write_all(text.as_bytes()).await;
}

/// Asks the `dmq dev` that owns the directory.
pub async fn ask(folder: &Path, request: Request) -> anyhow::Result<Done> {
    let nobody = || {
        let folder = folder.display();
        format!(
            "no `dmq dev` runs on {folder}; start one with `dmq dev --data {folder}`, or name its directory with --data"
        )
    };
    let asking = async {
        let (path, _folder) = reachable(folder).with_context(nobody)?;
        let mut stream = UnixStream::connect(&path).await.with_context(nobody)?;
        let mut text = serde_json::to_string(&request)?;
        text.push('\n');
        stream.write_all(text.as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await?;
        anyhow::ensure!(!line.is_empty(), "`dmq dev` ended before it answered");
        match serde_json::from_str(&line)? {
            Answer::Done(done) => Ok(done),
            Answer::Error(words) => Err(anyhow::anyhow!(words)),
        }
    };
    let late = |_| anyhow::anyhow!("`dmq dev` did not answer within {PATIENCE:?}; is it stopped?");
    tokio::time::timeout(PATIENCE, asking).await.map_err(late)?
}

/// The longest path that a socket's address holds everywhere.
const LONGEST_PATH: usize = 100;

/// The socket's path, and what must live while it is used. A long path is gone around through an open directory.
fn reachable(folder: &Path) -> anyhow::Result<(PathBuf, Option<std::fs::File>)> {
    use std::os::fd::AsRawFd;
    let path = folder.join(SOCKET);
    if path.as_os_str().len() <= LONGEST_PATH || !cfg!(target_os = "linux") {
        return Ok((path, None));
    }
    let open = std::fs::File::open(folder).with_context(|| format!("open {}", folder.display()))?;
    Ok((Path::new("/proc/self/fd").join(open.as_raw_fd().to_string()).join(SOCKET), Some(open)))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn asked_in(folder: &Path) {
        let mut requests = listen(folder).unwrap();
        let request = Request { verb: Verb::Kill, role: Role::Storage, id: 1 };
        let asking = ask(folder, request);
        let answering = async {
            let (request, back) = requests.recv().await.unwrap();
            back.send(Ok(Done { role: request.role, id: request.id, pid: 7 })).unwrap();
        };
        let (done, ()) = tokio::join!(asking, answering);
        assert_eq!(done.unwrap(), Done { role: Role::Storage, id: 1, pid: 7 });
    }

    #[tokio::test]
    async fn a_request_is_answered_over_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        asked_in(dir.path()).await;
    }

    #[tokio::test]
    async fn a_directory_with_a_long_path_has_a_socket_too() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("d".repeat(150));
        std::fs::create_dir(&long).unwrap();
        asked_in(&long).await;
    }

    #[tokio::test]
    async fn where_nobody_listens_the_error_says_what_to_start() {
        let dir = tempfile::tempdir().unwrap();
        let request = Request { verb: Verb::Kill, role: Role::Nats, id: 0 };
        let error = ask(dir.path(), request).await.unwrap_err().to_string();
        assert!(error.starts_with("no `dmq dev` runs on "), "{error}");
    }
}
