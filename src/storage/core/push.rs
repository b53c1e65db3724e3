//! Pushed metadata: what is applied, what is answered otherwise, and in which order the reasons come.
//!
//! Duplicates, gaps and reordering are ordinary. Nothing that a push says of itself is believed before the history has it.

use bytes::Bytes;

use super::fetch::Reason;
use super::persist::Answer;
use super::vet::{self, Flaw};
use super::{Effect, Level, StorageCore, Token, decode};
use crate::types::{ControllerId, Monotonic, PairingEpoch, Position};
use crate::wire::{AckOutcome, Code, FetchRequest, PairingField, Push, WireError};

/// What is to be done with a push that can be read.
enum Verdict {
    /// Answered when everything up to here is on the disk.
    Known,
    Gap,
    Forked,
    Apply,
}

impl StorageCore {
    pub(super) fn push(&mut self, now: Monotonic, payload: &Bytes, token: Token, out: &mut Vec<Effect>) {
        let push = match decode::<Push>(payload) {
            Ok(push) => push,
            Err(error) => {
                match decode::<FetchRequest>(payload) {
                    Ok(request) => self.serve_fetch(now, request, token, out),
                    Err(_) => self.refuse(now, token, Position::default(), error, out),
                }
                return;
            }
        };
        let pushed = push.position;
        if let Err(error) = self.check_address(&push) {
            self.refuse(now, token, pushed, error, out);
            return;
        }
        if push.controller_epoch < self.seen_epoch() {
            self.complain_of(now, "push-stale", push.controller, out, || {
                format!("controller {} pushes with epoch {}, which is over", push.controller, push.controller_epoch)
            });
            self.acknowledge(Some(token), AckOutcome::StaleEpoch, pushed, None, out);
            return;
        }
        let known = self.pairing();
        let paired = push.pairing_epoch == known.epoch && known.controller == Some(push.controller);
        #[cfg(test)]
        let paired = paired || crate::simulator::planted(crate::simulator::Bug::AnyonesPush);
        let is_active = self.session.active == Some(push.controller);
        if !paired && is_active && push.entries.is_empty() && push.pairing_epoch >= known.epoch {
            self.stands_in(now, &push, token, out);
            return;
        }
        if !paired && push.pairing_epoch <= known.epoch {
            self.complain_of(now, "push-unpaired", push.controller, out, || not_paired(&push, known));
            self.acknowledge(Some(token), AckOutcome::NotPaired, pushed, None, out);
            return;
        }
        match self.judge(&push) {
            Verdict::Known => {
                self.answer_when_saved(Answer { token: Some(token), outcome: AckOutcome::Duplicate, pushed }, out)
            }
            Verdict::Forked => self.forked(now, &push, token, out),
            Verdict::Gap => {
                self.want_fetch(Reason::Gap, Some(push.controller));
                self.acknowledge(Some(token), AckOutcome::Gap, pushed, None, out);
            }
            Verdict::Apply => self.apply_push(now, &push, paired, known, token, out),
        }
    }

    /// The active controller says how far the history is, without any of it: the paired one is silent. Nothing is applied that
    /// the paired one did not push or this node did not ask for, so the node asks.
    fn stands_in(&mut self, now: Monotonic, push: &Push, token: Token, out: &mut Vec<Effect>) {
        let pushed = push.position;
        match self.judge(push) {
            Verdict::Known => {
                self.answer_when_saved(Answer { token: Some(token), outcome: AckOutcome::Duplicate, pushed }, out);
            }
            Verdict::Forked => self.forked(now, push, token, out),
            Verdict::Gap | Verdict::Apply => {
                self.fetch_from_stand_in(push.controller);
                self.acknowledge(Some(token), AckOutcome::Gap, pushed, None, out);
            }
        }
    }

    fn check_address(&self, push: &Push) -> Result<(), WireError> {
        let Some((cluster, storage)) = self.bound() else {
            return Err(WireError::new(Code::InvalidState, "this node has not joined a cluster yet"));
        };
        if push.cluster != cluster {
            let words = format!("this node is of cluster {cluster}, and the push of {}", push.cluster);
            return Err(WireError::new(Code::InconsistentClusterId, words));
        }
        if push.storage != storage {
            let words = format!("this is storage node {storage}, and the push is for {}", push.storage);
            return Err(WireError::new(Code::UnknownNode, words));
        }
        Ok(())
    }

    /// The newest pairing that is known: that of our metadata, or a newer one that the active controller named.
    pub fn pairing(&self) -> PairingField {
        let known = self.me().map_or(PairingField { controller: None, epoch: PairingEpoch(0) }, |node| PairingField {
            controller: node.pairing,
            epoch: node.pairing_epoch,
        });
        self.session.claim.filter(|claim| claim.epoch > known.epoch).unwrap_or(known)
    }

    fn judge(&self, push: &Push) -> Verdict {
        let ours = self.history.position();
        if push.position.version < ours.version {
            return Verdict::Known;
        }
        if push.position.version == ours.version {
            return if push.position.digest == ours.digest { Verdict::Known } else { Verdict::Forked };
        }
        if push.base.version < ours.version {
            return Verdict::Known;
        }
        // A snapshot is on its way to the disk, and will replace what this could be applied to.
        if push.base.version > ours.version || self.intake.installing() {
            return Verdict::Gap;
        }
        if push.base.digest != ours.digest {
            return Verdict::Forked;
        }
        // The beginning of a history, and versions at the end of which nothing is shown, are taken only from an answer that
        // this node asked for: anybody could make them up.
        let last = push.entries.last().map_or(push.base.version, |entry| entry.version);
        let shown = push.position.version <= last
            || self.session.head.is_some_and(|head| push.position.version <= head.version);
        let nothing = push.entries.is_empty() && push.position.digest != ours.digest;
        if self.history.image().is_none() || nothing || !shown {
            return Verdict::Gap;
        }
        Verdict::Apply
    }

    fn apply_push(
        &mut self,
        now: Monotonic,
        push: &Push,
        paired: bool,
        known: PairingField,
        token: Token,
        out: &mut Vec<Effect>,
    ) {
        if self.intake.is_full(&self.settings) {
            // Unanswered, it will come again.
            self.complain(now, "disk-behind", Level::Warn, out, || {
                "the disk cannot keep up: pushes are left out".into()
            });
            return;
        }
        if !paired && !vet::pairs(&push.entries, push.pairing_epoch, push.storage, push.controller) {
            self.complain_of(now, "push-unpaired", push.controller, out, || not_paired(push, known));
            self.acknowledge(Some(token), AckOutcome::NotPaired, push.position, None, out);
            return;
        }
        match vet::vet(&self.history, push.cluster, push.position, &push.entries) {
            Ok(vetted) => match self.apply(vetted, out) {
                Ok(()) => {
                    let answer = Answer { token: Some(token), outcome: AckOutcome::Applied, pushed: push.position };
                    self.answer_when_saved(answer, out);
                }
                Err(error) => self.refuse(now, token, push.position, error, out),
            },
            Err(Flaw::Forked { .. }) => self.forked(now, push, token, out),
            Err(flaw @ Flaw::Unknown { .. }) => {
                let error = WireError::new(Code::UnsupportedVersion, flaw.to_string());
                self.refuse(now, token, push.position, error, out);
            }
            Err(flaw @ (Flaw::Order(_) | Flaw::NoChange { .. })) => {
                let error = WireError::new(Code::InvalidRequest, flaw.to_string());
                self.refuse(now, token, push.position, error, out);
            }
        }
    }

    fn forked(&mut self, now: Monotonic, push: &Push, token: Token, out: &mut Vec<Effect>) {
        let ours = self.history.position();
        self.complain_of(now, "push-forked", push.controller, out, || {
            let Push { controller, base, position, .. } = push;
            format!("controller {controller} pushes {position} on {base}, and this node has {ours}: two histories")
        });
        self.acknowledge(Some(token), AckOutcome::Forked, push.position, None, out);
    }

    fn refuse(&mut self, now: Monotonic, token: Token, pushed: Position, error: WireError, out: &mut Vec<Effect>) {
        self.refused += 1;
        self.complain(now, "push-refused", Level::Warn, out, || format!("a push was refused: {error}"));
        self.acknowledge(Some(token), AckOutcome::Refused, pushed, Some(error), out);
    }

    fn serve_fetch(&mut self, now: Monotonic, request: FetchRequest, token: Token, out: &mut Vec<Effect>) {
        match (request.cluster, self.identity.cluster) {
            (Some(theirs), Some(ours)) if theirs != ours => {
                self.refused += 1;
                self.complain(now, "fetch-foreign", Level::Warn, out, || {
                    format!("a fetch for cluster {theirs} came here")
                });
            }
            _ => out.push(Effect::ServeFetch { token, request }),
        }
    }

    /// As [`Self::complain`], about one controller's push, which counts as refused.
    fn complain_of(
        &mut self,
        now: Monotonic,
        kind: &'static str,
        of: ControllerId,
        out: &mut Vec<Effect>,
        words: impl FnOnce() -> String,
    ) {
        self.refused += 1;
        if self.complaints.is_news(now, kind, Some(of)) {
            self.log(Level::Warn, out, words);
        }
    }
}

fn not_paired(push: &Push, known: PairingField) -> String {
    let with = known.controller.map_or("nobody".into(), |controller| format!("controller {controller}"));
    let Push { controller, pairing_epoch, .. } = push;
    let since = known.epoch;
    format!(
        "controller {controller} pushes under pairing epoch {pairing_epoch}: this node is paired with {with} since {since}"
    )
}
