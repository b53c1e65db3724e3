//! Storage nodes that register. Those that wait at the same time become one change, and in a large cluster each change gathers
//! for a moment: where thousands start at once, the history grows by a few entries, and each of them is pushed to everybody.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::admin::{Reply, node_error};
use super::append::Purpose;
use super::{Controller, Token};
use crate::metadata::rules::registration::{Asked, Registering};
use crate::metadata::{Image, NodeState, Record};
use crate::types::{ClusterId, ControllerId, Monotonic, StorageId, Version};
use crate::wire::admin::NodeRegister;
use crate::wire::{Code, WireError};

/// How many may wait: one after the other they take next to nothing.
const WAITING: usize = 1 << 14;
/// Registrations are gathered for a millisecond per so many nodes, all of which are told of the change.
const NODES_PER_MS: u64 = 10;
const GATHER_AT_MOST: Duration = Duration::from_millis(250);

/// Those that wait for their turn.
#[derive(Clone, Debug, Default)]
pub(super) struct Registrations {
    waiting: VecDeque<(Token, NodeRegister)>,
    /// When the last change of some was begun.
    begun_at: Monotonic,
}

impl Registrations {
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Token> + use<> {
        std::mem::take(&mut self.waiting).into_iter().map(|(token, _)| token)
    }
}

impl Controller {
    pub(super) fn on_register(&mut self, token: Token, request: NodeRegister) {
        if self.registrations.waiting.len() >= WAITING {
            let error = WireError::new(Code::Busy, "too many storage nodes register at once; ask again later");
            return self.fail(token, error);
        }
        self.registrations.waiting.push_back((token, request));
    }

    /// When the next ones have their turn.
    pub(super) fn registrations_due(&self) -> Option<Monotonic> {
        if self.registrations.waiting.is_empty() {
            return None;
        }
        let nodes = self.image().map_or(0, |image| image.storage.len() as u64);
        let gather = Duration::from_millis(nodes / NODES_PER_MS).min(GATHER_AT_MOST);
        Some(self.registrations.begun_at + gather)
    }

    /// Registers all that wait, in one change. True where one was begun.
    pub(super) fn work_for_registrations(&mut self) -> bool {
        if self.registrations_due().is_none_or(|due| self.mono() < due) {
            return false;
        }
        let waiting = std::mem::take(&mut self.registrations.waiting);
        let mut weighed: Vec<(Token, NodeRegister)> = Vec::with_capacity(waiting.len());
        for (token, request) in waiting {
            match self.check_registration(&request).and_then(|()| self.weigh_registration(&request)) {
                Ok(()) => weighed.push((token, request)),
                Err(error) => self.refuse_registration(token, &request, error),
            }
        }
        // Who wants a certain id has the first choice.
        weighed.sort_by_key(|(_, request)| request.storage.is_none());
        let Some((records, set_back, outcomes)) = self.image().map(|image| self.decide_registrations(image, &weighed))
        else {
            return false;
        };
        let mut replies = Vec::with_capacity(weighed.len());
        for ((token, request), outcome) in weighed.iter().zip(outcomes) {
            match outcome {
                Ok(storage) => replies.push((*token, storage)),
                Err(error) => self.refuse_registration(*token, request, error),
            }
        }
        let ids: BTreeSet<_> = replies.iter().map(|(_, storage)| *storage).collect();
        let replies: Vec<_> = replies.into_iter().map(|(token, storage)| (token, Reply::Registered(storage))).collect();
        if records.is_empty() {
            let version = self.history.position().version;
            replies.into_iter().for_each(|(token, reply)| self.committed(version, token, reply));
            return false;
        }
        self.registrations.begun_at = self.mono();
        let cause = match &weighed[..] {
            [(_, one)] => format!("{} registered incarnation {}", super::liveness::names(&ids), one.incarnation),
            _ => format!("{} registered", super::liveness::names(&ids)),
        };
        let cause = match super::liveness::names(&set_back) {
            _ if set_back.is_empty() => cause,
            names => {
                self.complain(&format!("set back {names}"), || {
                    format!("the data of {names} is older than what it had: it counts as lost and is copied anew from others; what nobody else had waits until its topic allows an unclean election")
                });
                format!("{cause}; older data than before: {names}")
            }
        };
        self.append(records, cause.into(), None, Purpose::Replies(replies));
        true
    }

    fn refuse_registration(&mut self, token: Token, request: &NodeRegister, error: WireError) {
        let directory = request.directory;
        self.complain(&format!("register {directory}"), || {
            format!("the registration of data directory {directory}: {error}")
        });
        self.fail(token, error);
    }

    fn check_registration(&self, request: &NodeRegister) -> Result<(), WireError> {
        let cluster = self.image().map(|image| image.cluster);
        let is_other = |theirs: &ClusterId| cluster.is_some_and(|ours| ours != *theirs);
        if let (Some(theirs), Some(ours)) = (request.cluster.filter(is_other), cluster) {
            let words = format!(
                "this is cluster {ours}, and the data directory belongs to cluster {theirs}: start the node with another directory"
            );
            return Err(WireError::new(Code::InconsistentClusterId, words));
        }
        if request.rack.as_ref().is_some_and(|rack| rack.is_empty() || rack.len() > 255) {
            return Err(WireError::new(Code::InvalidRequest, "a rack's name has 1 to 255 bytes"));
        }
        self.check_claim(request.position)
    }

    /// A node of this cluster that comes back with more than the history has: it is looked into before anything is written
    /// behind it. What else a registration says of versions counts for nothing.
    fn weigh_registration(&mut self, request: &NodeRegister) -> Result<(), WireError> {
        let (Some(image), head) = (self.image(), self.history.position().version) else { return Ok(()) };
        if request.position.version <= head {
            return Ok(());
        }
        let known = image.by_directory(request.directory).filter(|(_, node)| node.state != NodeState::Removed);
        let Some((id, _)) = known else { return Ok(()) };
        self.weigh_claim(request.position, || format!("storage node {id}"));
        let version = request.position.version;
        let words =
            format!("storage node {id} has version {version}, beyond {head} here: that is looked into; ask again");
        Err(WireError::new(Code::Busy, words))
    }

    /// The records, whose data was set back, and for each request the id that it gets.
    fn decide_registrations(
        &self,
        image: &Image,
        requests: &[(Token, NodeRegister)],
    ) -> (Vec<Record>, BTreeSet<StorageId>, Vec<Result<StorageId, WireError>>) {
        let mut registering = Registering::new(image, &self.services.storage);
        let outcome = |(_, request): &(Token, NodeRegister)| {
            let asked = Asked {
                wanted: request.storage,
                preferred: request.preferred,
                // What is applied may have been pushed before this incarnation asked; its own epochs are written by it alone.
                knows: request.node_epoch.map_or(request.position.version, |epoch| Version(epoch.0)),
                directory: request.directory,
                incarnation: request.incarnation,
                rack: request.rack.as_deref().map(Arc::from),
            };
            // Who was heard already, unregistered, while nothing could be written is no other process than itself.
            let is_itself =
                |id| self.sessions.get(&id).is_some_and(|session| session.incarnation == request.incarnation);
            let live = |id| !is_itself(id) && self.session_live(id);
            registering.add(asked, &live).map_err(node_error)
        };
        let outcomes = requests.iter().map(outcome).collect();
        let newcomers: Vec<_> = registering.newcomers().collect();
        let set_back = registering.set_back().collect();
        let mut records = registering.records();
        // Paired at once, so that what they are told first is whom they belong to.
        records.extend(self.first_pairings(image, newcomers));
        (records, set_back, outcomes)
    }

    /// With the file's controller if it lives, else with the one that has the fewest nodes.
    fn first_pairings(&self, image: &Image, newcomers: Vec<StorageId>) -> Vec<Record> {
        let mut load: BTreeMap<ControllerId, usize> =
            self.peers.iter().filter(|(_, peer)| self.peer_alive(peer)).map(|(id, _)| (*id, 0)).collect();
        load.insert(self.me.controller, 0);
        for controller in image.storage.values().filter_map(|node| node.pairing) {
            load.entry(controller).and_modify(|count| *count += 1);
        }
        let pair = |storage: StorageId| {
            let listed = self.services.pairings.get(&storage).filter(|controller| load.contains_key(controller));
            let least = || load.iter().min_by_key(|(controller, count)| (**count, **controller)).map(|(id, _)| *id);
            let controller = listed.copied().or_else(least);
            if let Some(count) = controller.and_then(|controller| load.get_mut(&controller)) {
                *count += 1;
            }
            Record::PairingChanged { storage, controller }
        };
        newcomers.into_iter().map(pair).collect()
    }
}
