//! The fake KV key of the controllers' lease, which expires by its age.

use crate::controller::core::{Holder, LeaseResult};

#[derive(Default)]
pub struct Lease {
    pub revision: u64,
    pub held: Option<Held>,
}

pub struct Held {
    pub holder: Holder,
    pub revision: u64,
}

impl Lease {
    /// Creates the key where `expected` is None and there is none, or replaces it at that revision.
    pub fn put(&mut self, expected: Option<u64>, holder: Holder) -> LeaseResult {
        if self.held.as_ref().map(|held| held.revision) != expected {
            return LeaseResult::Lost;
        }
        self.revision += 1;
        self.held = Some(Held { holder, revision: self.revision });
        LeaseResult::Ours(self.revision)
    }

    /// False where it is not at that revision.
    pub fn release(&mut self, revision: u64) -> bool {
        if self.held.as_ref().is_none_or(|held| held.revision != revision) {
            return false;
        }
        self.forget();
        true
    }

    /// The key is gone; a marker takes a revision.
    pub fn forget(&mut self) {
        self.revision += 1;
        self.held = None;
    }
}
