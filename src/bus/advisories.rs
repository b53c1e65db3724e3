//! The server's word that a connection has ended, within milliseconds of a crash, for whoever may log in to the system account.
//!
//! It is a hint, sent at most once: what is missed here is left to heartbeats and leases. Anything that is not an advisory
//! is ignored.

use std::time::Duration;

use async_nats::Client;
use futures::StreamExt;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{BusError, raw};

/// The end of one connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disconnect {
    pub server_id: String,
    /// Unique on that server, for its lifetime.
    pub client_id: u64,
    /// What the connection called itself; empty if it did not.
    pub name: String,
    /// In the server's words.
    pub reason: String,
    /// The client's side ended it, as the death of its process does. Otherwise the server did, and the client may live on.
    pub by_client: bool,
}

const SUBJECT: &str = "$SYS.ACCOUNT.*.DISCONNECT";

/// The server's reasons that stand for the client's side: it closed the socket, or the socket was reset. All others, among
/// them `Stale Connection`, `Slow Consumer (…)`, `Server Shutdown` and whatever concerns credentials, are the server's
/// decision.
const BY_CLIENT: [&str; 3] = ["Client Closed", "Read Error", "Write Error"];

#[derive(Deserialize)]
struct Advisory {
    server: Server,
    client: Peer,
    reason: String,
}

#[derive(Deserialize)]
struct Server {
    id: String,
}

#[derive(Deserialize)]
struct Peer {
    id: u64,
    #[serde(default)]
    name: String,
}

/// Listens with a client of the system account, in a task that ends when the receiver is dropped or the client closes. The
/// subscription survives reconnects; what happens meanwhile is missed. At most `capacity` advisories wait in the channel.
///
/// # Errors
/// As [`raw::subscribe`]. A client of another account gets no error: it hears nothing.
pub async fn subscribe(
    client: &Client,
    capacity: usize,
    timeout: Duration,
) -> Result<mpsc::Receiver<Disconnect>, BusError> {
    let mut messages = raw::subscribe(client, SUBJECT, timeout).await?;
    let (events, receiver) = mpsc::channel(capacity.max(1));
    tokio::spawn(async move {
        loop {
            let message = tokio::select! {
                () = events.closed() => return,
                message = messages.next() => message,
            };
            let Some(message) = message else { return };
            let Some(disconnect) = parse(&message.payload) else { continue };
            if events.send(disconnect).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

fn parse(payload: &[u8]) -> Option<Disconnect> {
    let Advisory { server, client, reason } = serde_json::from_slice(payload).ok()?;
    let by_client = BY_CLIENT.contains(&reason.as_str());
    Some(Disconnect { server_id: server.id, client_id: client.id, name: client.name, reason, by_client })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advisory(reason: &str) -> Vec<u8> {
        let json = serde_json::json!({
            "type": "io.nats.server.advisory.v1.client_disconnect",
            "server": { "id": "NA", "name": "n" },
            "client": { "id": 7, "acc": "DMQ", "name": "dmq storage 1" },
            "reason": reason,
        });
        json.to_string().into_bytes()
    }

    #[test]
    fn only_the_clients_own_ending_counts_as_its_end() {
        for reason in ["Client Closed", "Read Error", "Write Error"] {
            assert!(parse(&advisory(reason)).unwrap().by_client, "{reason}");
        }
        for reason in [
            "Stale Connection",
            "Slow Consumer (Pending Bytes)",
            "Slow Consumer (Write Deadline)",
            "Server Shutdown",
            "Authentication Expired",
            "Credentials Revoked",
            "Kicked",
            "Protocol Violation",
            "Maximum Message Payload Exceeded",
            "something new",
        ] {
            assert!(!parse(&advisory(reason)).unwrap().by_client, "{reason}");
        }
    }

    #[test]
    fn what_is_no_advisory_is_ignored() {
        for payload in [&b""[..], b"{}", b"\xff\x00", br#"{"server":{"id":1},"client":{"id":"x"},"reason":null}"#] {
            assert_eq!(parse(payload), None);
        }
    }
}
