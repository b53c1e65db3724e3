//! What somebody says who knows of the subjects, and not of what is said there.

use bytes::Bytes;

use crate::controller::core::Input;
use crate::metadata::{Entry, Record, encode_change};
use crate::simulator::stream::Message;
use crate::simulator::world::{CONTROLLERS, Mail, World};
use crate::types::{
    ClusterId, Connection, ControllerEpoch, ControllerId, DirectoryId, IncarnationId, NodeEpoch, Position, StorageId,
    Version, WallTime,
};
use crate::wire::{AckOutcome, Heartbeat, PushAck, WantedState, WireMessage};

impl World {
    /// Anybody may publish anything on any subject.
    pub(super) fn say_something_strange(&mut self) {
        self.seen.fault("strange messages");
        let storage = StorageId(self.rng.below(7) as u32);
        let to = self.rng.below(CONTROLLERS);
        let cluster = self.checker.image().map_or(ClusterId(self.rng.uuid()), |image| image.cluster);
        let huge = Position { version: Version(self.rng.pick(&[1 << 40, u64::MAX, 3])), ..Position::default() };
        let noise = Bytes::from_static(self.rng.pick(&[
            &b"{"[..],
            b"\xff\xfe",
            b"{}",
            b"[[[[",
            b"{\"type\":\"dmq.entry.v2\"}",
        ]));
        match self.rng.below(6) {
            0 => self.strange_entry(cluster),
            1 => {
                let heartbeat = self.strange_heartbeat(storage, cluster, huge);
                let mail = || Mail::Heartbeat { storage, payload: heartbeat.clone(), request: 0, sent: None };
                self.send(0, to, mail);
            }
            2 => {
                let ack = PushAck {
                    cluster: Some(cluster),
                    storage,
                    directory: DirectoryId(self.rng.uuid()),
                    incarnation: IncarnationId(self.rng.uuid()),
                    node_epoch: NodeEpoch(u64::MAX),
                    outcome: AckOutcome::Applied,
                    position: huge,
                    controller_epoch: ControllerEpoch(u64::MAX),
                    pushed: huge,
                    error: None,
                };
                let payload = ack.encode();
                self.send(0, to, || Mail::Controller(Input::Ack { storage, payload: payload.clone() }));
            }
            3 => self.send(0, to, || Mail::Controller(Input::ControllerHeartbeat { payload: noise.clone() })),
            4 => self.send(0, to, || Mail::Heartbeat { storage, payload: noise.clone(), request: 0, sent: None }),
            _ => {
                let node = self.some_node();
                self.send(0, node, || Mail::Push(noise.clone()));
            }
        }
    }

    fn strange_heartbeat(&mut self, storage: StorageId, cluster: ClusterId, position: Position) -> Bytes {
        let heartbeat = Heartbeat {
            cluster: Some(cluster),
            storage,
            directory: DirectoryId(self.rng.uuid()),
            incarnation: IncarnationId(self.rng.uuid()),
            node_epoch: NodeEpoch(7),
            connection: Connection { server: "NA".into(), client: self.rng.next() % 50 },
            sequence: self.rng.next(),
            position,
            controller_epoch: ControllerEpoch(self.rng.next()),
            leader_count: 0,
            follower_count: 0,
            wanted: WantedState::Running,
            health: Default::default(),
        };
        heartbeat.encode()
    }

    /// Onto the log's subject: noise, or what looks like an entry but stands on nothing, or is of another epoch or cluster.
    fn strange_entry(&mut self, cluster: ClusterId) {
        self.seen.fault("strange entries in the stream");
        let kind = self.rng.below(4);
        let epoch = self.checker.image().map_or(ControllerEpoch(0), |image| image.controller_epoch());
        let entry = Entry {
            cluster: if kind == 1 { ClusterId(self.rng.uuid()) } else { cluster },
            controller_epoch: if kind == 2 { ControllerEpoch(epoch.0.saturating_sub(1)) } else { epoch },
            previous: if kind == 3 { Position::default() } else { self.checker.base() },
            committed_at: WallTime(0),
            cause: "a stranger's".into(),
            request: None,
            records: vec![Record::PairingChanged { storage: StorageId(0), controller: Some(ControllerId(9)) }],
        };
        let payload = match kind {
            0 => Bytes::from_static(b"nothing that anybody knows"),
            _ => encode_change(&entry, 1 << 20).map(|mut messages| messages.remove(0)).unwrap_or_default(),
        };
        if self.stream.publish(Message { payload, author: None }).is_some() {
            self.plan_sync();
        }
    }
}
