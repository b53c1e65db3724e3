//! Snapshots and compaction, and bringing a lost history back from the most advanced of all that live.

use super::append::Purpose;
use super::office::Role;
use super::{Controller, Effect, Level, MetadataHolder, Token};
use crate::metadata::{
    Image, NodeState, Record, SnapshotRef, StorageNode, is_plausible, restored_base, restored_version,
};
use crate::types::{ClusterId, Position, StorageId, Version};
use crate::wire::admin::{MetadataRestore, RestorePlan};
use crate::wire::{Code, WireError, admin};

/// A restore under way.
#[derive(Clone, Debug)]
pub(super) struct Restoring {
    token: Token,
    plan: RestorePlan,
    highest: Version,
    holder: MetadataHolder,
    /// It is asked for the snapshots that there are.
    listing: bool,
    pub(super) gathering: Option<MetadataHolder>,
    pub(super) recreating: bool,
    base: Option<Box<(Image, Position)>>,
    made: Option<SnapshotRef>,
}

struct Survey {
    cluster: ClusterId,
    source: Position,
    holders: Vec<MetadataHolder>,
    not_heard: Vec<String>,
}

impl Controller {
    /// Begins a snapshot where enough has come since the last, or commits one that is written.
    pub(super) fn work_for_snapshots(&mut self) -> bool {
        if let Some(snapshot) = self.snapshot_ready.take() {
            let cause = format!("snapshot of version {} was written and read back", snapshot.version);
            self.append(vec![Record::SnapshotCommitted { snapshot }], cause.into(), None, Purpose::Background);
            return true;
        }
        let due = self.entries_since_snapshot >= self.settings.snapshot_every_entries
            || self.bytes_since_snapshot >= self.settings.snapshot_every_bytes;
        if due && !self.snapshot_under_way {
            self.snapshot_under_way = true;
            self.entries_since_snapshot = 0;
            self.bytes_since_snapshot = 0;
            let position = self.history.position();
            if let Some(image) = self.history.image() {
                let image = Box::new(image.clone());
                self.out.push(Effect::WriteSnapshot { image, position });
            }
        }
        false
    }

    pub(super) fn on_snapshot_written(&mut self, result: Result<SnapshotRef, String>) {
        self.snapshot_under_way = false;
        match result {
            Ok(snapshot) if matches!(self.role, Role::Active { .. }) => self.snapshot_ready = Some(snapshot),
            Ok(_) => {}
            Err(words) => self.log(Level::Error, format!("a snapshot of the metadata could not be written: {words}")),
        }
    }

    /// Who has what, of all that were heard lately.
    fn survey(&self) -> Option<Survey> {
        let mut found: Vec<(Position, Option<ClusterId>, MetadataHolder)> = Vec::new();
        let mine = self.history.position();
        if let Some(image) = self.image() {
            found.push((mine, Some(image.cluster), MetadataHolder::Controller(self.me.controller)));
        }
        for (id, peer) in self.peers.iter().filter(|(_, peer)| self.peer_alive(peer)) {
            found.push((peer.message.position, peer.message.cluster, MetadataHolder::Controller(*id)));
        }
        let cluster = found.iter().find_map(|(_, cluster, _)| *cluster);
        for (id, session) in &self.sessions {
            if self.session_live(*id) {
                found.push((session.claimed, session.cluster.or(cluster), MetadataHolder::Storage(*id)));
            }
        }
        let cluster = cluster.or_else(|| found.iter().find_map(|(_, cluster, _)| *cluster))?;
        let of_cluster =
            found.iter().filter(|(position, of, _)| *of == Some(cluster) && position.version > Version::ZERO);
        let source = of_cluster.clone().map(|(position, ..)| *position).max_by_key(|position| position.version)?;
        let holders: Vec<_> =
            of_cluster.filter(|(position, ..)| *position == source).map(|(.., holder)| *holder).collect();
        let heard = |holder: MetadataHolder| found.iter().any(|(.., found)| *found == holder);
        let mut not_heard = Vec::new();
        for id in self.services.controllers.iter().filter(|id| !heard(MetadataHolder::Controller(**id))) {
            not_heard.push(format!("controller {id}"));
        }
        // Who was removed for good is not missed.
        let stays = |(id, node): (&StorageId, &StorageNode)| (node.state != NodeState::Removed).then_some(*id);
        let registered: Vec<_> =
            self.image().map(|image| image.storage.iter().filter_map(stays).collect()).unwrap_or_default();
        let listed = self.services.storage.iter().copied().chain(registered).collect::<std::collections::BTreeSet<_>>();
        for id in listed.iter().filter(|id| !heard(MetadataHolder::Storage(**id))) {
            not_heard.push(format!("storage node {id}"));
        }
        Some(Survey { cluster, source, holders, not_heard })
    }

    pub(super) fn on_restore(&mut self, request: MetadataRestore, token: Token) {
        let Role::Halted { why } = &self.role else {
            let words = "the history is whole: there is nothing to restore";
            return self.fail(token, WireError::new(Code::InvalidState, words));
        };
        let why = why.clone();
        // One whose stream is made but whose election came to nothing, since the history was lost again, is over.
        if self.restoring.as_ref().is_some_and(|restoring| restoring.made.is_none()) {
            return self
                .fail(token, WireError::new(Code::Busy, "a restore is under way; look at `dmq cluster status`"));
        }
        let Some(survey) = self.survey() else {
            let words = "nobody that was heard has any metadata: start the nodes that have it, and ask again";
            return self.fail(token, WireError::new(Code::InvalidState, words));
        };
        let highest = self
            .probe
            .beyond
            .as_ref()
            .map_or(Version::ZERO, |(version, ..)| *version)
            .max(survey.source.version)
            .max(self.probe.head);
        let next = restored_version(survey.source, highest).next();
        let plan = RestorePlan {
            cluster_id: survey.cluster,
            halted: why,
            source: survey.source,
            holders: survey.holders.iter().map(|holder| holder.to_string()).collect(),
            new_version: next,
            not_heard: survey.not_heard,
            done: false,
        };
        match request.confirm {
            None => self.out.push(Effect::Answer { token, payload: admin::encode(&plan).into() }),
            Some(confirmed) if confirmed != plan.source => {
                let words = format!(
                    "the most advanced metadata is now {}, not {confirmed}; look at the plan again",
                    plan.source
                );
                self.fail(token, WireError::new(Code::VersionConflict, words));
            }
            Some(_) => {
                if let Some(holder) = survey.holders.first().copied() {
                    self.begin_restore(token, plan, highest, holder);
                }
            }
        }
    }

    /// A snapshot that is left tells of a restore of which nobody who was heard knows.
    fn begin_restore(&mut self, token: Token, plan: RestorePlan, highest: Version, holder: MetadataHolder) {
        self.log(Level::Warn, format!("restoring the history from version {}", plan.source.version));
        let (gathering, base, made) = (None, None, None);
        self.restoring =
            Some(Restoring { token, plan, highest, holder, listing: true, gathering, recreating: false, base, made });
        self.out.push(Effect::ListSnapshots);
    }

    pub(super) fn on_snapshots_listed(&mut self, result: Result<Version, String>) {
        let Some(restoring) = &mut self.restoring else { return };
        if !std::mem::take(&mut restoring.listing) {
            return;
        }
        let version = match result {
            Ok(version) => version,
            Err(words) => return self.give_up_restore(format!("the snapshots cannot be listed: {words}")),
        };
        let (source, holder) = (restoring.plan.source, restoring.holder);
        if is_plausible(version, restoring.highest) {
            restoring.highest = restoring.highest.max(version);
        } else {
            let words = format!("the snapshot of version {version} is nobody's: no history goes that far");
            self.log(Level::Warn, words);
        }
        if self.history.position() == source
            && let Some(image) = self.image().cloned()
        {
            return self.recreate(image, source);
        }
        let Some(restoring) = &mut self.restoring else { return };
        restoring.gathering = Some(holder);
        self.out.push(Effect::Gather { holder, position: source });
    }

    pub(super) fn on_gathered(&mut self, result: Result<Box<(Image, Position)>, String>) {
        let Some(restoring) = &mut self.restoring else { return };
        restoring.gathering = None;
        let source = restoring.plan.source;
        match result {
            Ok(gathered) if gathered.1 == source => self.recreate(gathered.0, source),
            Ok(gathered) => {
                let words = format!("what was gathered is {}, not {source}; ask again", gathered.1);
                self.give_up_restore(words);
            }
            Err(words) => self.give_up_restore(format!("the metadata could not be gathered: {words}")),
        }
    }

    fn recreate(&mut self, image: Image, source: Position) {
        let Some(restoring) = &mut self.restoring else { return };
        let (image, base) = restored_base(image, source, restoring.highest);
        restoring.plan.new_version = base.version.next();
        restoring.recreating = true;
        restoring.base = Some(Box::new((image.clone(), base)));
        self.out.push(Effect::Recreate { image: Box::new(image), position: base });
    }

    fn give_up_restore(&mut self, words: String) {
        self.log(Level::Error, words.clone());
        if let Some(restoring) = self.restoring.take() {
            self.fail(restoring.token, WireError::new(Code::InvalidState, words));
        }
    }

    pub(super) fn on_recreated(&mut self, result: Result<SnapshotRef, String>) {
        let Some(restoring) = &mut self.restoring else { return };
        if !restoring.recreating {
            return;
        }
        restoring.recreating = false;
        match (result, restoring.base.take()) {
            (Ok(snapshot), Some(base)) => {
                restoring.made = Some(snapshot);
                let mut plan = restoring.plan.clone();
                plan.done = true;
                let token = restoring.token;
                let (image, position) = *base;
                self.adopt(image, position);
                self.probe.reset();
                self.out.push(Effect::Follow { after: position.version });
                self.out.push(Effect::Answer { token, payload: admin::encode(&plan).into() });
                self.role = Role::Standby;
                if self.may_act() {
                    self.role = Role::Electing;
                    self.elect();
                } else {
                    // Whenever it is elected, it says what the history was restored from.
                    self.try_lease();
                }
                self.ask_head();
            }
            (Ok(_), None) => self.give_up_restore("the restore was interrupted".into()),
            (Err(words), _) => self.give_up_restore(format!("the history could not be made anew: {words}")),
        }
    }

    /// What the first entry of a restored history says before the election.
    pub(super) fn restored_records(&self) -> Option<Vec<Record>> {
        let restoring = self.restoring.as_ref()?;
        let snapshot = restoring.made.clone()?;
        // Nothing counted since. What means nothing may have come before it: anyone may write to the subject.
        if self.image()?.controller.is_some() {
            return None;
        }
        Some(vec![Record::ClusterRestored { from: restoring.plan.source }, Record::SnapshotCommitted { snapshot }])
    }
}

impl std::fmt::Display for MetadataHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Controller(id) => write!(f, "controller {id}"),
            Self::Storage(id) => write!(f, "storage node {id}"),
        }
    }
}
