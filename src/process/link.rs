//! The watch over the connection to NATS.

use std::future::Future;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::bus::raw;
use crate::types;

/// What becomes of the connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkEvent {
    /// It stands, and the server has every subscription.
    Up {
        connection: types::Connection,
        /// The longest message that this server takes, in bytes.
        max_payload: usize,
    },
    Down,
}

/// Whether the connection is up, and which one it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct State {
    generation: u64,
    up: bool,
}

struct States {
    generation: watch::Receiver<u64>,
    connected: watch::Receiver<bool>,
}

impl States {
    fn look(&mut self) -> State {
        State { generation: *self.generation.borrow_and_update(), up: *self.connected.borrow_and_update() }
    }

    /// False once the client is gone.
    async fn changed(&mut self) -> bool {
        tokio::select! {
            changed = self.generation.changed() => changed.is_ok(),
            changed = self.connected.changed() => changed.is_ok(),
        }
    }

    fn has_changed(&self) -> bool {
        self.generation.has_changed().unwrap_or(true) || self.connected.has_changed().unwrap_or(true)
    }
}

/// Reports when the connection is lost, and when it stands again with every subscription in place. Each time that it was
/// reported to stand, `tend` is run, until it is done or the connection has changed.
pub async fn watch<E: From<LinkEvent>, F: Future<Output = ()>>(
    connection: crate::config::Connection,
    events: mpsc::Sender<E>,
    tend: impl Fn() -> F,
) {
    const PATIENCE: Duration = Duration::from_secs(2);
    const RETRY: Duration = Duration::from_millis(50);
    let crate::config::Connection { client, generation, connected, .. } = connection;
    let mut states = States { generation, connected };
    let mut said: Option<State> = None;
    loop {
        let now = states.look();
        if said.is_some_and(|said| said != now) {
            said = None;
            if events.send(LinkEvent::Down.into()).await.is_err() {
                return;
            }
        }
        if now.up && said.is_none() {
            // The client repeats its subscriptions before anything else that it sends.
            let established = raw::established(&client, PATIENCE).await;
            if let (Ok(connection), false) = (established, states.has_changed()) {
                let up = LinkEvent::Up { connection, max_payload: client.max_payload() };
                if events.send(up.into()).await.is_err() {
                    return;
                }
                said = Some(now);
                tokio::select! {
                    () = tend() => {}
                    // They are looked at anew.
                    _ = states.changed() => {}
                }
                continue;
            }
        }
        let is_said = said.is_some() || !now.up;
        tokio::select! {
            goes_on = states.changed() => if !goes_on { return },
            () = tokio::time::sleep(RETRY), if !is_said => {}
        }
    }
}
