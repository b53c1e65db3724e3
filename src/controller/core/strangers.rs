//! What comes from nobody who is registered, and how much room it may take.

use super::{Controller, Effect, Token};
use crate::types::{ControllerId, Monotonic, NodeEpoch, Version};
use crate::wire::{Code, Heartbeat, WireError};

/// Before a cluster is founded anybody may claim to be a node of one.
pub(super) const MAX_SESSIONS: usize = 1 << 17;
/// Anybody may claim to be a controller. How many silent ones are remembered, and for how many sessions.
const MAX_PEERS: usize = 256;
const PEER_KEPT_SESSIONS: u32 = 20;

impl Controller {
    pub(super) fn on_stray(&mut self, subject: &str, token: Token) {
        let shown: String = subject.chars().take(255).collect();
        let words = format!(
            "{shown} is no service's subject by this controller's services.json, which is what counts: start the sender with the same file"
        );
        // Subjects can be made up without end, so they are one kind of complaint.
        self.complain("stray", || format!("a message was refused: {words}"));
        let error = WireError::new(Code::InvalidRequest, words);
        if self.answers() { self.fail(token, error) } else { self.out.push(Effect::Drop { token }) }
    }

    /// Before there is a cluster here, a node that has one says so. Whether its history is lost, or only not read yet, the
    /// stream's head will show.
    pub(super) fn heard_before_founding(&mut self, heartbeat: &Heartbeat, received_at: Monotonic) {
        if let Some(cluster) = heartbeat.cluster
            && heartbeat.position.version > Version::ZERO
        {
            self.hear(heartbeat, received_at);
            let id = heartbeat.storage;
            self.weigh_claim(heartbeat.position, || format!("storage node {id} (of cluster {cluster})"));
        }
    }

    /// Nobody can register where nothing is written. What a restarted node of this cluster has counts for a restore all the
    /// same: it may have more than any controller.
    pub(super) fn heard_while_halted(&mut self, heartbeat: &Heartbeat, received_at: Monotonic) {
        let is_known = self.image().is_some_and(|image| {
            let node = image.storage.get(&heartbeat.storage);
            let same = node.is_some_and(|node| node.directory == Some(heartbeat.directory));
            same && heartbeat.cluster == Some(image.cluster) && heartbeat.node_epoch == NodeEpoch(0)
        });
        if is_known {
            self.hear(heartbeat, received_at);
        }
    }

    /// Whether there is room to remember that controller.
    pub(super) fn may_be_peer(&self, id: ControllerId) -> bool {
        self.peers.len() < MAX_PEERS || self.peers.contains_key(&id)
    }

    pub(super) fn forget_peers(&mut self) {
        let (now, kept) = (self.mono(), self.settings.session_timeout * PEER_KEPT_SESSIONS);
        self.peers.retain(|_, peer| now.since(peer.heard) < kept);
    }
}
