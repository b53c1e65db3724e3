//! The subjects that a storage node speaks on.

use crate::config::Services;
use crate::types::{ControllerId, StorageId};

/// The subjects of whoever this node speaks to: what services.json says.
pub trait Subjects: Send + Sync {
    fn heartbeat(&self, storage: StorageId) -> String;
    fn push(&self, storage: StorageId) -> String;
    fn ack(&self, storage: StorageId) -> String;
    fn fetch(&self, controller: ControllerId) -> String;
    fn admin(&self, noun: &str, verb: &str) -> String;
}

impl Subjects for Services {
    fn heartbeat(&self, storage: StorageId) -> String {
        self.storage(storage).heartbeat
    }

    fn push(&self, storage: StorageId) -> String {
        self.storage(storage).push
    }

    fn ack(&self, storage: StorageId) -> String {
        self.storage(storage).ack
    }

    fn fetch(&self, controller: ControllerId) -> String {
        self.controller(controller).fetch
    }

    fn admin(&self, noun: &str, verb: &str) -> String {
        self.admin_subject(noun, verb)
    }
}
