//! Those who administer the cluster: clients that retry with the same request id, and an operator who restores a lost
//! history and frees the ids of lost directories.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::bus::{Answer, Waiting};
use super::queue::{MS, SECOND, Time};
use super::world::{CONTROLLERS, Event, World};
use crate::types::{RequestId, StorageId, Version};
use crate::wire::admin::{
    self, Changed, MetadataRestore, NodeNamed, RestorePlan, Terms, TopicAlter, TopicCreate, TopicNamed,
};
use crate::wire::{Code, ErrorBody};

pub const CLIENTS: usize = 3;
const OPERATOR: usize = CLIENTS;
const NAMES: [&str; 6] = ["orders", "orders.eu", "clicks", "audit", "payments", "mail"];

pub struct Operation {
    noun: &'static str,
    verb: &'static str,
    payload: Bytes,
    pub id: RequestId,
    name: String,
    /// How often it was sent, and whether any of that may still arrive.
    sent: u32,
    give_up_at: Time,
}

#[derive(Default)]
pub struct Clients {
    operations: BTreeMap<usize, (u64, Operation)>,
    count: u64,
    /// What each topic's version was when a client last heard of it.
    versions: BTreeMap<String, Version>,
    /// Ids whose directories are lost.
    pub to_replace: BTreeSet<u32>,
    restore: Option<u64>,
    /// What the operator agreed to last.
    pub restored: Option<RestorePlan>,
}

impl Clients {
    pub fn new() -> Self {
        Self::default()
    }

    /// The id of the request that is under way, and which attempt of the client's it is.
    pub fn request_of(&self, client: usize, attempt: u64) -> Option<&RequestId> {
        self.operations.get(&client).filter(|(present, _)| *present == attempt).map(|(_, operation)| &operation.id)
    }

    pub fn is_idle(&self) -> bool {
        self.operations.is_empty()
    }
}

impl World {
    pub fn client_turn(&mut self, client: usize) {
        if !self.clients.operations.contains_key(&client) {
            if self.faults.healed_at.is_some() && self.clients.to_replace.is_empty() {
                return;
            }
            let operation = self.new_operation();
            self.clients.count += 1;
            self.clients.operations.insert(client, (self.clients.count, operation));
        }
        self.attempt(client);
    }

    fn attempt(&mut self, client: usize) {
        let now = self.now();
        let repeats = self.weather.repeated > 0;
        let Some((attempt, operation)) = self.clients.operations.get_mut(&client) else { return };
        if now >= operation.give_up_at {
            self.clients.operations.remove(&client);
            return self.queue.after(100 * MS, Event::Client(client));
        }
        operation.sent += 1 + u32::from(repeats);
        let (noun, verb, payload, attempt) = (operation.noun, operation.verb, operation.payload.clone(), *attempt);
        let words = (operation.id.clone(), operation.name.clone());
        self.note(|| format!("client {client} asks {noun}.{verb} {} as {}", words.1, words.0));
        let request = self.wait(Waiting::Client { client, attempt }, 3 * SECOND);
        if !self.rng.chance(self.weather.lost) {
            self.ask_admin(200, noun, verb, &payload, request);
        }
    }

    pub fn client_answered(&mut self, client: usize, attempt: u64, answer: Answer) {
        if client == OPERATOR {
            return self.restore_answered(attempt, answer);
        }
        if self.clients.operations.get(&client).is_none_or(|(present, _)| *present != attempt) {
            return;
        }
        let body = match answer {
            Answer::Body(body) => body,
            Answer::NoResponders
            | Answer::Timeout
            | Answer::Chunk { .. }
            | Answer::Controller(_)
            | Answer::Produced(_) => {
                return self.try_again(client);
            }
        };
        let outcome = match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(refused) => Err(refused.error),
            Err(_) => admin::decode::<Changed>(&body),
        };
        match outcome {
            Err(error) if is_open(error.code) => self.try_again(client),
            outcome => {
                let Some((_, operation)) = self.clients.operations.remove(&client) else { return };
                self.note(|| format!("client {client} is answered {:?}", String::from_utf8_lossy(&body)));
                self.decided(&operation, outcome.map_err(|error| error.code));
                let pause = self.rng.between(50, 900) * MS;
                self.queue.after(pause, Event::Client(client));
            }
        }
    }

    fn try_again(&mut self, client: usize) {
        self.seen.event("retried request");
        let pause = self.rng.between(50, 400) * MS;
        self.queue.after(pause, Event::Client(client));
    }

    fn decided(&mut self, operation: &Operation, outcome: Result<Changed, Code>) {
        if operation.verb == "replace" {
            // Where it was refused, who still cannot join says it again.
            self.clients.to_replace.retain(|id| id.to_string() != operation.name);
        }
        match outcome {
            Ok(changed) => {
                self.seen.event(match operation.verb {
                    "create" => "topic created",
                    "alter" => "topic altered",
                    "delete" => "topic deleted",
                    "drain" => "drain asked for",
                    "replace" => "node replaced",
                    _ => "node removed",
                });
                self.clients.versions.insert(operation.name.clone(), changed.version);
                self.check_acknowledged(&operation.id, changed.version);
            }
            Err(code) => {
                if code == Code::VersionConflict {
                    self.seen.event("version conflict");
                }
                // Of several copies a later one may be taken although an earlier one was refused.
                if operation.sent == 1 {
                    self.check_refused(&operation.id);
                }
            }
        }
    }

    fn new_operation(&mut self) -> Operation {
        let id = RequestId::new(&format!("r{}", self.clients.count)).expect("these characters fit");
        let healed = self.faults.healed_at.is_some();
        let rng = &mut self.rng;
        let mut name = rng.pick(&NAMES).to_string();
        let wait_ms = rng.pick(&[None, Some(0), Some(300)]);
        let mut terms = Terms { request_id: Some(id.clone()), if_version: None, wait_ms };
        let to_replace = self.clients.to_replace.first().copied();
        let (noun, verb, payload) = match rng.below(20) {
            _ if to_replace.is_some() && (healed || rng.chance(500)) => {
                let id = StorageId(to_replace.unwrap_or(0));
                name = id.to_string();
                ("node", "replace", admin::encode(&NodeNamed { id, terms }))
            }
            0..8 => {
                let unclean = rng.chance(200);
                let config = if unclean {
                    BTreeMap::from([("unclean.leader.election.enable".to_string(), "true".to_string())])
                } else {
                    BTreeMap::new()
                };
                let partitions = Some(rng.between(1, 4) as u32);
                let replication_factor = rng.pick(&[None, Some(1), Some(2), Some(3)]);
                let create = TopicCreate { name: name.clone(), partitions, replication_factor, config, terms };
                ("topic", "create", admin::encode(&create))
            }
            8..13 => {
                if rng.chance(500) {
                    terms.if_version = self.clients.versions.get(&name).copied();
                }
                let partitions = if rng.chance(300) { Some(rng.between(2, 5) as u32) } else { None };
                let value = if rng.chance(800) { Some(rng.between(1, 1_000_000).to_string()) } else { None };
                let config = BTreeMap::from([("retention.ms".to_string(), value)]);
                ("topic", "alter", admin::encode(&TopicAlter { name: name.clone(), partitions, config, terms }))
            }
            13..16 => ("topic", "delete", admin::encode(&TopicNamed { name: name.clone(), terms })),
            which => {
                let id = StorageId(rng.below(7) as u32);
                name = id.to_string();
                let verb = ["drain", "drain", "replace", "remove"][which - 16];
                ("node", verb, admin::encode(&NodeNamed { id, terms }))
            }
        };
        let give_up_at = self.now() + 20 * SECOND;
        Operation { noun, verb, payload: payload.into(), id, name, sent: 0, give_up_at }
    }

    /// Looks after the cluster once a second.
    pub fn operator_turn(&mut self) {
        self.queue.after(SECOND, Event::Operator);
        self.look_for_progress();
        if self.faults.healed_at.is_some() && self.clients.is_idle() && !self.clients.to_replace.is_empty() {
            self.client_turn(0);
        }
        self.look_after_forked();
        self.look_after_damaged();
        let is_halted = |controller: &super::controllers::ControllerProc| {
            controller.serving && controller.core.role() == crate::wire::ControllerRole::Halted
        };
        if self.clients.restore.is_none() && self.controllers.iter().flatten().any(|controller| is_halted(controller)) {
            self.seen.event("halted");
            self.ask_restore(&MetadataRestore::default());
        }
    }

    /// A controller that stays halted while another is active has a history that was lost: its directory is moved away.
    fn look_after_forked(&mut self) {
        let is_late = self.faults.healed_at.is_some_and(|at| self.now() > at + 25 * SECOND);
        let acts = |proc: &usize| self.controllers[*proc].as_ref().is_some_and(|c| c.core.acting_epoch().is_some());
        let halted = |proc: &usize| {
            self.controllers[*proc].as_ref().is_some_and(|c| c.core.role() == crate::wire::ControllerRole::Halted)
        };
        // Or it is the active one that has another history than the stream and begins from a snapshot, so that it cannot know.
        let is_later = self.faults.healed_at.is_some_and(|at| self.now() > at + 55 * SECOND);
        let acting = (0..CONTROLLERS).find(acts);
        if is_late && let (Some(acting), Some(halted)) = (acting, (0..CONTROLLERS).find(halted)) {
            let proc = if is_later { acting } else { halted };
            self.seen.event("forked controller begins anew");
            self.crash(proc, true, Some(100 * MS));
            self.hosts[proc].folder = self.new_folder();
        }
    }

    /// What cannot be read, and nobody else has, is deleted: until then nobody else can follow. But not before nobody sends it again.
    fn look_after_damaged(&mut self) {
        if self.faults.healed_at.is_some_and(|at| self.now() > at + super::producers::OLD) {
            (CONTROLLERS..super::world::COPY).for_each(|proc| self.delete_damaged(proc));
        }
    }

    fn ask_restore(&mut self, request: &MetadataRestore) {
        self.clients.count += 1;
        let attempt = self.clients.count;
        self.clients.restore = Some(attempt);
        let waiting = self.wait(Waiting::Client { client: OPERATOR, attempt }, 8 * SECOND);
        self.ask_admin(200, "metadata", "restore", &admin::encode(request).into(), waiting);
    }

    fn restore_answered(&mut self, attempt: u64, answer: Answer) {
        if self.clients.restore.take_if(|present| *present == attempt).is_none() {
            return;
        }
        let Answer::Body(body) = answer else { return };
        let Ok(plan) = admin::decode::<RestorePlan>(&body) else {
            return self.note(|| format!("the restore is answered {:?}", String::from_utf8_lossy(&body)));
        };
        // Whatever only somebody else has would be lost: a careful person waits for them, while there is hope.
        let waits = !self.faults.hasty && self.faults.healed_at.is_none_or(|at| self.now() < at + 20 * SECOND);
        if !plan.done && (plan.not_heard.is_empty() || !waits) {
            self.note(|| format!("the operator restores {} (not heard: {:?})", plan.source, plan.not_heard));
            self.ask_restore(&MetadataRestore { confirm: Some(plan.source) });
            self.clients.restored = Some(plan);
        }
    }
}

/// Whether the request may still take effect, or was not looked at.
pub fn is_open(code: Code) -> bool {
    matches!(code, Code::NotController | Code::Unknown | Code::Busy | Code::HistoryLost | Code::RequestTimedOut)
}
