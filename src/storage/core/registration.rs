//! Registering this incarnation, which comes before anything that counts.
//!
//! It is repeated until it is answered: the session of the incarnation before may still run, and there may be no active
//! controller. A heartbeat's answer that says the registration is gone begins it anew.

use bytes::Bytes;

use super::backoff::{Retry, Waiting};
use super::{Call, CallError, Effect, Level, StorageCore, answer_of};
use crate::types::{ClusterId, Monotonic, NodeEpoch, StorageId};
use crate::wire::admin::{NodeRegister, NodeRegistered};
use crate::wire::{Code, NodeRefusal, WireError};

#[derive(Default)]
pub(super) struct Registration {
    /// That of this incarnation, once it is registered.
    pub(super) node_epoch: Option<NodeEpoch>,
    pub(super) subscribed: bool,
    subscribing: bool,
    waiting: Option<Waiting>,
    retry: Retry,
}

impl Registration {
    pub(super) fn deadline(&self) -> Option<Monotonic> {
        match (&self.waiting, self.node_epoch) {
            (Some(waiting), _) => Some(waiting.until),
            (None, None) => self.retry.due_at(),
            (None, Some(_)) => None,
        }
    }

    pub(super) fn connection_changed(&mut self) {
        self.waiting = None;
        self.subscribing = false;
        self.retry.reset();
    }
}

impl StorageCore {
    /// The cluster and the id under which this node's directory is known, if it ever joined one.
    pub(super) fn bound(&self) -> Option<(ClusterId, StorageId)> {
        self.identity.cluster.zip(self.identity.storage)
    }

    pub(super) fn step_registration(&mut self, now: Monotonic, out: &mut Vec<Effect>) {
        if let Some(waiting) = self.registration.waiting
            && now >= waiting.until
        {
            self.registration.waiting = None;
            self.registration.retry.failed(now, &self.settings, &mut self.jitter);
        }
        let Some(connection) = self.session.connection.clone() else { return };
        if let Some((_, storage)) = self.bound()
            && !self.registration.subscribed
            && !self.registration.subscribing
        {
            self.registration.subscribing = true;
            out.push(Effect::Subscribe { storage });
        }
        let open = self.registration.node_epoch.is_none() && self.registration.waiting.is_none();
        if !open || self.drain.is_some() || !self.registration.retry.is_due(now) {
            return;
        }
        let call = self.call();
        self.registration.waiting = Some(Waiting { call, until: now + self.settings.request_timeout });
        let request = NodeRegister {
            cluster: self.identity.cluster,
            directory: self.identity.directory,
            incarnation: self.identity.incarnation,
            storage: self.identity.storage,
            rack: self.identity.rack.as_deref().map(str::to_owned),
            preferred: self.identity.preferred.filter(|_| self.identity.storage.is_none()),
            node_epoch: self.identity.node_epoch,
            position: self.disk.position,
            connection,
        };
        out.push(Effect::Register { call, request });
    }

    pub(super) fn subscribed(&mut self, now: Monotonic, storage: StorageId) {
        if self.identity.storage == Some(storage) {
            self.registration.subscribing = false;
            self.registration.subscribed = true;
            self.session.due = Some(now);
        }
    }

    /// The subject may be another now; until the shell has moved there, the old subscription stands.
    pub(super) fn services_changed(&mut self, out: &mut Vec<Effect>) {
        if let Some((_, storage)) = self.bound()
            && self.registration.subscribed
        {
            out.push(Effect::Subscribe { storage });
        }
    }

    pub(super) fn register_answer(
        &mut self,
        now: Monotonic,
        call: Call,
        result: Result<Bytes, CallError>,
        out: &mut Vec<Effect>,
    ) {
        if self.registration.waiting.is_none_or(|waiting| waiting.call != call) {
            return;
        }
        self.registration.waiting = None;
        let answer = match result {
            Ok(body) => answer_of::<NodeRegistered>(&body),
            Err(CallError::NoResponders) => {
                self.registration.retry.failed(now, &self.settings, &mut self.jitter);
                self.complain(now, "register-unheard", Level::Warn, out, || {
                    "no controller answers: this node registers as soon as one does".into()
                });
                return;
            }
            Err(CallError::Timeout) => {
                self.registration.retry.failed(now, &self.settings, &mut self.jitter);
                return;
            }
        };
        match answer.and_then(|registered| self.check_registered(registered)) {
            Ok(registered) => self.registered(now, &registered, out),
            Err(error) => match error.code.for_node() {
                // Only a person can help, by changing how this node is started.
                NodeRefusal::Removed | NodeRefusal::OtherDirectory => {
                    self.exit(format!("this node cannot join: {error}"), 1, out)
                }
                NodeRefusal::Unregistered | NodeRefusal::Retry => {
                    self.registration.retry.failed(now, &self.settings, &mut self.jitter);
                    self.complain(now, "register-refused", Level::Warn, out, || {
                        format!("not registered yet, it is tried again: {error}")
                    });
                }
            },
        }
    }

    fn check_registered(&self, registered: NodeRegistered) -> Result<NodeRegistered, WireError> {
        let wrong = |code, words: String| Err(WireError::new(code, words));
        if let Some(ours) = self.identity.cluster
            && ours != registered.cluster
        {
            let words = format!("this node is of cluster {ours}, and the controller of {}", registered.cluster);
            return wrong(Code::InconsistentClusterId, words);
        }
        if let Some(ours) = self.identity.storage
            && ours != registered.storage
        {
            let words = format!("this is storage node {ours}, and the controller registered {}", registered.storage);
            return wrong(Code::InvalidState, words);
        }
        if registered.node_epoch.0 > registered.version.0 || registered.node_epoch == NodeEpoch(0) {
            let words = format!("node epoch {} cannot be at version {}", registered.node_epoch, registered.version);
            return wrong(Code::InvalidState, words);
        }
        Ok(registered)
    }

    fn registered(&mut self, now: Monotonic, registered: &NodeRegistered, out: &mut Vec<Effect>) {
        if self.identity.cluster.is_none() {
            self.identity.cluster = Some(registered.cluster);
            self.identity.storage = Some(registered.storage);
        }
        let NodeRegistered { cluster, storage, node_epoch, .. } = *registered;
        if self.identity.node_epoch != Some(node_epoch) {
            self.identity.node_epoch = Some(node_epoch);
            out.push(Effect::Bind { cluster, storage, node_epoch });
        }
        self.registration.retry.reset();
        self.registration.node_epoch = Some(registered.node_epoch);
        self.session.renew(now);
        self.log(Level::Info, out, || {
            let NodeRegistered { cluster, storage, node_epoch, version, .. } = registered;
            format!(
                "registered as storage node {storage} of cluster {cluster}, node epoch {node_epoch}, version {version}"
            )
        });
    }

    /// The registration no longer holds: nothing counts until there is another one.
    pub(super) fn register_anew(&mut self, now: Monotonic) {
        if self.registration.node_epoch.take().is_some() {
            self.registration.retry.failed(now, &self.settings, &mut self.jitter);
        }
    }
}
