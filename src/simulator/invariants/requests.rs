//! What clients were told holds.

use bytes::Bytes;

use super::Checker;
use crate::metadata::Image;
use crate::simulator::world::{CONTROLLERS, COPY, Proc, World};
use crate::types::{RequestId, Version};
use crate::wire::ErrorBody;

impl Checker {
    pub(super) fn took_effect(&mut self, request: &RequestId, version: Version) {
        if let Some(before) = self.effects.insert(request.clone(), version) {
            self.break_rule(7, || format!("request {request} took effect at {before} and again at {version}"));
        }
    }
}

impl World {
    pub fn check_acknowledged(&mut self, request: &RequestId, version: Version) {
        let checker = &mut self.checker;
        if checker.lost {
            return;
        }
        // What changes nothing needs no record of it.
        let known = checker.image().and_then(|image| image.request(request)).map(|outcome| outcome.version);
        match known {
            Some(stored) if stored == version => drop(checker.acknowledged.insert(request.clone(), version)),
            Some(stored) => {
                checker.break_rule(7, || format!("request {request} is answered {version}, and stands at {stored}"));
            }
            None if checker.effects.contains_key(request) || version > checker.history.position().version => {
                checker.break_rule(7, || format!("request {request} is answered {version}, and is not in the history"));
            }
            None => {}
        }
    }

    /// Who knows that a request took effect does not refuse its retry.
    pub(super) fn check_refusal(&mut self, controller: Proc, client: usize, attempt: u64, payload: &Bytes) {
        let Some(request) = self.clients.request_of(client, attempt) else { return };
        let Ok(refusal) = serde_json::from_slice::<ErrorBody>(payload) else { return };
        let image = self.controllers[controller].as_ref().and_then(|c| c.core.history().image());
        let is_known = image.is_some_and(|image| image.request(request).is_some());
        if is_known && !crate::simulator::clients::is_open(refusal.error.code) {
            let words = format!("request {request} took effect, and its retry is refused: {}", refusal.error);
            self.checker.break_rule(7, || words);
        }
    }

    pub fn check_refused(&mut self, request: &RequestId) {
        self.checker.refused.push(request.clone());
    }

    /// What a process that was heard has on its disk is restored.
    pub(super) fn check_restored_requests(&mut self, image: &Image) {
        let reachable = |proc: &usize| {
            let host = &self.hosts[*proc];
            host.connection.is_some() && host.frozen.is_none() && !host.cut_in && !host.cut_out
        };
        // Whoever does without some does without those as well of whom nobody who was heard knows.
        let is_hasty = self.clients.restored.as_ref().is_some_and(|plan| !plan.not_heard.is_empty());
        let mut has: Vec<&Image> = Vec::new();
        for proc in (0..COPY).filter(|proc| !is_hasty && reachable(proc)) {
            let (history, durable) = match proc < CONTROLLERS {
                true => match &self.controllers[proc] {
                    Some(controller) => (controller.core.history(), controller.core.durable()),
                    None => continue,
                },
                false => match &self.nodes[proc - CONTROLLERS] {
                    Some(node) => (node.core.history(), node.core.persisted()),
                    None => continue,
                },
            };
            if durable == history.position() {
                has.extend(history.image());
            }
        }
        let gone: Vec<_> =
            self.checker.acknowledged.keys().filter(|request| image.request(request).is_none()).cloned().collect();
        for request in gone {
            if has.iter().any(|held| held.request(&request).is_some() && held.cluster == image.cluster) {
                let words = format!("request {request} was acknowledged, is on a disk, and is not restored");
                self.checker.break_rule(7, || words);
            }
            self.checker.acknowledged.remove(&request);
        }
        let effects = &mut self.checker.effects;
        effects.retain(|request, _| image.request(request).is_some());
    }

    pub fn check_requests_at_the_end(&mut self) {
        let Some(image) = self.checker.image() else { return };
        let lost = self.checker.acknowledged.keys().find(|request| image.request(request).is_none()).cloned();
        let taken = self.checker.refused.iter().find(|request| image.request(request).is_some()).cloned();
        if let Some(request) = lost {
            self.checker.break_rule(7, || format!("request {request} was acknowledged and is gone"));
        }
        if let Some(request) = taken {
            self.checker.break_rule(7, || format!("request {request} was refused and took effect"));
        }
    }
}
