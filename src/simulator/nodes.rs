//! A storage node: the shipped core, and a shell after the real one's, over the fake NATS and a fake disk.

use std::time::Duration;

use bytes::Bytes;

use super::bus::{Answer, Asked, REQUEST, Waiting};
use super::invariants::Sent;
use super::queue::{MS, SECOND};
use super::replicas::{Command, ReplicasProc};
use super::world::{CONTROLLERS, Mail, Proc, World, name};
use crate::controller::core as control;
use crate::disk::MetadataStore;
use crate::process::recover;
use crate::storage::core::{Applied, Effect, Identity, Input, Place, Settings, StorageCore, Token};
use crate::storage::store;
use crate::types::{ClusterId, ControllerEpoch, Position, StorageId};
use crate::wire::{WireMessage, admin};

pub struct NodeProc {
    pub core: StorageCore,
    pub store: MetadataStore,
    /// Whose push subject the server has a subscription of this process for.
    pub subscribed: Option<StorageId>,
    writing: Option<Write>,
    next_token: u64,
    pub replicas: ReplicasProc,
}

enum Write {
    Changes(Vec<Applied>),
    Snapshot { cluster: ClusterId, position: Position, controller_epoch: ControllerEpoch, pieces: Vec<Bytes> },
}

impl Write {
    fn carry_out(self, disk: &mut MetadataStore) -> Input {
        match self {
            Self::Changes(changes) => store::append(disk, &changes),
            Self::Snapshot { cluster, position, controller_epoch, pieces } => {
                store::install(disk, cluster, position, controller_epoch, pieces)
            }
        }
    }
}

impl World {
    pub fn start_node(&mut self, proc: Proc) {
        let folder = &self.folders[self.hosts[proc].folder];
        let opened = folder.open().and_then(|(store, recovered)| {
            recover(recovered).map(|(history, _)| (store, history)).map_err(|error| error.to_string())
        });
        let (store, history) = match opened {
            Ok(opened) => opened,
            Err(words) => return self.start_failed(proc, &words),
        };
        // In some runs all are started with an id, in the others all take what they get.
        let wanted = self.faults.with_ids.then_some((proc - CONTROLLERS) as u32);
        let identity = Identity {
            directory: folder.directory,
            incarnation: self.hosts[proc].incarnation,
            storage: folder.id.or(wanted).map(StorageId),
            cluster: folder.cluster,
            preferred: None,
            node_epoch: folder.node_epoch,
            rack: None,
        };
        let settings = Settings {
            heartbeat_interval: Duration::from_millis(500),
            drain_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_micros(REQUEST),
            jitter_seed: self.rng.next(),
            isr_batch: 4,
            ..Settings::default()
        };
        let epoch = store.controller_epoch();
        self.check_recovered(proc, &history, epoch);
        let core = StorageCore::new(identity, settings, history, epoch);
        // In half of the runs no follower asks for records before the last ones are on its disk.
        let replicas = ReplicasProc::new(if self.seed.is_multiple_of(2) { 0 } else { 2 });
        let node = NodeProc { core, store, subscribed: None, writing: None, next_token: 0, replicas };
        self.nodes[proc - CONTROLLERS] = Some(Box::new(node));
        self.drive_node(proc, Input::Tick);
    }

    pub fn node_mail(&mut self, proc: Proc, mail: Mail) {
        match mail {
            Mail::Node(input) => {
                if let Input::Subscribed(storage) = input
                    && let Some(node) = &mut self.nodes[proc - CONTROLLERS]
                {
                    node.subscribed = Some(storage);
                }
                self.drive_node(proc, input);
            }
            Mail::Push(payload) => {
                let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
                node.next_token += 1;
                let token = Token(node.next_token);
                let before = node.core.history().position();
                let pairing = self.check_push_before(proc);
                self.drive_node(proc, Input::Push { payload: payload.clone(), token });
                self.check_push_after(proc, before, pairing, &payload);
            }
            Mail::Written => {
                let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
                let Some(write) = node.writing.take() else { return };
                let input = write.carry_out(&mut node.store);
                if let Input::SnapshotInstalled { .. } = &input {
                    self.seen.event("node took a snapshot");
                }
                self.drive_node(proc, input);
            }
            Mail::Data(data) => self.data_mail(proc, data),
            Mail::Controller(_)
            | Mail::Heartbeat { .. }
            | Mail::Admin { .. }
            | Mail::Fetch { .. }
            | Mail::Watch
            | Mail::Follow
            | Mail::Leased { .. } => {}
        }
    }

    pub fn drive_node(&mut self, proc: Proc, input: Input) {
        let now = self.clock(proc);
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
        self.checker.note_answer(proc, &input);
        let is_cut = matches!(input, Input::Disconnected);
        let mut effects = Vec::new();
        node.core.handle(now, input, &mut effects);
        self.set_lease(proc, now);
        if is_cut {
            self.command(proc, Command::Disconnected);
        }
        let leads = effects.iter().any(|effect| matches!(effect, Effect::MayLead(true) | Effect::Leads { .. }));
        for effect in effects {
            self.carry_out_for_node(proc, effect);
        }
        if leads {
            self.check_leads(proc);
        }
        self.check_node(proc);
        self.plan_node(proc);
    }

    pub fn plan_node(&mut self, proc: Proc) {
        let Some(node) = &self.nodes[proc - CONTROLLERS] else { return };
        let replicas = &node.replicas;
        let deadlines = [node.core.next_deadline(), replicas.engine.next_deadline(), replicas.faults.deadline()];
        self.plan_tick(proc, deadlines.into_iter().flatten().min());
    }

    /// The process is gone; what its replicas had written is still there.
    pub fn close_node(&mut self, proc: Proc) {
        let Some(mut node) = self.nodes[proc - CONTROLLERS].take() else { return };
        let folder = &mut self.folders[self.hosts[proc].folder];
        node.replicas.take_logs().into_iter().for_each(|(name, place, log)| folder.put_log(name, place, log));
    }

    fn carry_out_for_node(&mut self, proc: Proc, effect: Effect) {
        let life = self.hosts[proc].life;
        match effect {
            Effect::Bind { cluster, storage, node_epoch } => {
                let folder = self.hosts[proc].folder;
                self.folders[folder].node_epoch = Some(node_epoch);
                if !self.folders[folder].bind(cluster, storage.0) {
                    self.end(proc, Some(SECOND));
                }
            }
            Effect::Subscribe { storage } => {
                let delay = self.rng.between(200, 2_000);
                self.report(delay, proc, Mail::Node(Input::Subscribed(storage)));
            }
            Effect::Register { call, request } => {
                let waiting = Waiting::Node { proc, life, asked: Asked::Register(call) };
                self.ask_admin_for_node(proc, waiting, "register", admin::encode(&request).into());
            }
            Effect::RequestIsr { call, request } => {
                self.checker.asked_for_isr(proc, call, request.storage, request.node_epoch);
                let waiting = Waiting::Node { proc, life, asked: Asked::Isr(call) };
                self.ask_admin_for_node(proc, waiting, "alter", admin::encode(&request).into());
            }
            Effect::SendHeartbeat(heartbeat) => {
                let request =
                    self.wait(Waiting::Node { proc, life, asked: Asked::Heartbeat(heartbeat.sequence) }, REQUEST);
                let Some(out) = self.hop_out(proc) else { return };
                self.check_reported(proc, heartbeat.position, heartbeat.controller_epoch);
                let (storage, payload) = (heartbeat.storage, heartbeat.encode());
                let (generation, version) = (self.hosts[proc].generation, heartbeat.position.version);
                let sent = Some(Sent { proc, life, generation, sequence: heartbeat.sequence, version });
                let hearing = self.connected_controllers();
                if hearing.is_empty() {
                    return self.reply_from_server(out, request, Answer::NoResponders);
                }
                for to in hearing {
                    self.send(out, to, || Mail::Heartbeat { storage, payload: payload.clone(), request, sent });
                }
            }
            Effect::Persist { changes } => self.write_for_node(proc, Write::Changes(changes)),
            Effect::InstallSnapshot { cluster, position, controller_epoch, pieces } => {
                self.write_for_node(proc, Write::Snapshot { cluster, position, controller_epoch, pieces });
            }
            Effect::Acknowledge { ack, .. } => {
                self.check_reported(proc, ack.position, ack.controller_epoch);
                let (storage, payload) = (ack.storage, ack.encode());
                let Some(out) = self.hop_out(proc) else { return };
                for to in self.connected_controllers() {
                    self.send(out, to, || Mail::Controller(control::Input::Ack { storage, payload: payload.clone() }));
                }
            }
            Effect::Fetch { call, controller, request } => {
                let waiting = self.wait(Waiting::Node { proc, life, asked: Asked::Fetch(call) }, REQUEST);
                let Some(out) = self.hop_out(proc) else { return };
                let to = controller.0 as usize;
                if to >= CONTROLLERS || self.hosts[to].connection.is_none() {
                    return self.reply_from_server(out, waiting, Answer::NoResponders);
                }
                let payload = request.encode();
                self.send(out, to, || Mail::Fetch { payload: payload.clone(), request: waiting });
            }
            // A restore's gathering is played without messages.
            Effect::ServeFetch { .. } => {}
            Effect::Leads { .. } => {}
            Effect::MayLead(may) => self.command(proc, Command::MayLead(may)),
            Effect::Member(member) => self.command(proc, Command::Member(member)),
            Effect::Peers(peers) => self.command(proc, Command::Peers(peers)),
            Effect::Replicas { assigned, unassigned } => {
                let Some(node) = &self.nodes[proc - CONTROLLERS] else { return };
                // Of a topic that is gone again, that will be told.
                let image = node.core.history().image();
                let named = |(place, assignment): (Place, _)| {
                    Some((place, image?.topics.get(&place.0)?.name.to_string(), assignment))
                };
                let assigned = assigned.into_iter().filter_map(named).collect();
                self.command(proc, Command::Replicas { assigned, unassigned });
            }
            Effect::InSyncAnswers(outcomes) => self.command(proc, Command::InSyncAnswers(outcomes)),
            Effect::Log { words, .. } => {
                self.seen.words(&words);
                self.note(|| format!("{} says: {words}", name(proc)));
            }
            Effect::Exit { words, code } => {
                self.note(|| format!("{} ends with status {code}: {words}", name(proc)));
                self.seen.words(&words);
                self.node_exited(proc, &words);
            }
        }
    }

    fn ask_admin_for_node(&mut self, proc: Proc, waiting: Waiting, verb: &'static str, payload: Bytes) {
        let request = self.wait(waiting, REQUEST);
        let Some(out) = self.hop_out(proc) else { return };
        let noun = if verb == "register" { "node" } else { "partition" };
        self.ask_admin(out, noun, verb, &payload, request);
    }

    fn write_for_node(&mut self, proc: Proc, write: Write) {
        // Metadata may wait where records do not: it has files of its own.
        let stall = if self.rng.chance(30) { self.rng.between(50, 1_500) * MS } else { 0 };
        let delay = self.disk_time(proc) + stall;
        if let Some(node) = &mut self.nodes[proc - CONTROLLERS] {
            node.writing = Some(write);
        }
        self.report(delay, proc, Mail::Written);
    }

    /// The machine stops in the middle of what the disk is given.
    pub fn tear_node_write(&mut self, proc: Proc, steps: u64) {
        let Some(node) = &mut self.nodes[proc - CONTROLLERS] else { return };
        let Some(write) = node.writing.take() else { return };
        self.folders[self.hosts[proc].folder].disk.crash_after(steps);
        write.carry_out(&mut node.store);
    }

    fn node_exited(&mut self, proc: Proc, words: &str) {
        self.close_node(proc);
        let folder = self.hosts[proc].folder;
        self.folders[folder].disk.kill();
        // Where the node was removed, whoever runs it gives it an empty directory.
        if words.contains("was removed") {
            self.hosts[proc].folder = self.new_folder();
        }
        if words.contains("dmq node replace") && self.faults.with_ids {
            self.clients.to_replace.insert((proc - CONTROLLERS) as u32);
        } else if words.contains("dmq node replace") {
            // Its id was given out in a history that was lost, and belongs to another now.
            self.hosts[proc].folder = self.new_folder();
        }
        // It was registered in two histories, of which the one is lost that its directory knows.
        if words.contains("start it with that id") {
            self.checker.disk_emptied();
            self.hosts[proc].folder = self.new_folder();
        }
        let delay = self.rng.between(300, 3_000) * MS;
        let restart = if proc == super::world::COPY { None } else { Some(delay) };
        self.end(proc, restart);
    }
}
