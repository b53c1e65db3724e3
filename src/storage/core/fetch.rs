//! Fetching what is missing: entries from where the node stands, or a snapshot in pieces where they are gone.
//!
//! One request is under way at a time. A gap is fetched at once; a node that merely stays behind waits a heartbeat for the
//! push that its heartbeat triggers. The paired controller and the active one take turns where the first brings nothing, and
//! the active one is asked at once where it says that it had to step in for the paired one.

use bytes::Bytes;

use super::backoff::{Jitter, Retry, Waiting};
use super::persist::Answer;
use super::vet::vet;
use super::{Call, CallError, Effect, FetchReply, Level, Settings, StorageCore, decode};
use crate::types::{ControllerId, Monotonic, Position};
use crate::wire::{AckOutcome, ChunkHeader, ChunkRequest, Code, FetchAnswer, FetchRequest, WireError};

/// After how many failures on the way a snapshot is given up.
const PATIENCE: u32 = 3;

/// Why a fetch is wanted at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reason {
    /// A push does not begin where the node stands.
    Gap,
    /// An answer before brought a part of it.
    More,
}

#[derive(Default)]
enum Phase {
    #[default]
    Entries,
    Snapshot {
        position: Position,
        from: ControllerId,
        offset: u64,
        total: Option<u64>,
        pieces: Vec<Bytes>,
    },
    /// Complete, and waits until the disk is free.
    Whole {
        position: Position,
        pieces: Vec<Bytes>,
    },
}

/// A request under way.
struct Asked {
    waiting: Waiting,
    controller: ControllerId,
    from: Position,
}

#[derive(Default)]
pub(super) struct Fetch {
    wanted: Option<Reason>,
    /// Who pushed what left a gap: asked where nobody better is known.
    hint: Option<ControllerId>,
    /// The active controller, which stands in for the paired one: asked until it fails or brings nothing more.
    stands_in: Option<ControllerId>,
    asked: Option<Asked>,
    phase: Phase,
    retry: Retry,
    /// Even: the paired controller's turn. Odd: the active one's.
    turn: u32,
    /// Since when the node has been behind the head without any progress.
    behind_since: Option<Monotonic>,
}

impl Fetch {
    pub(super) fn connection_changed(&mut self) {
        self.asked = None;
        self.retry.reset();
    }

    pub(super) fn progressed(&mut self) {
        self.behind_since = None;
    }

    /// What follows the snapshot is wanted at once.
    pub(super) fn installed(&mut self) {
        self.wanted = Some(Reason::More);
        self.retry.reset();
    }

    pub(super) fn failed(&mut self, now: Monotonic, settings: &Settings, jitter: &mut Jitter) {
        self.asked = None;
        self.stands_in = None;
        self.retry.failed(now, settings, jitter);
        match &self.phase {
            Phase::Snapshot { .. } if self.retry.failures() < PATIENCE => {}
            Phase::Entries | Phase::Snapshot { .. } | Phase::Whole { .. } => {
                self.phase = Phase::Entries;
                self.turn = self.turn.wrapping_add(1);
            }
        }
    }

    /// What an answer brought is all there was, or is not.
    fn want_more(&mut self, more: bool) {
        self.wanted = more.then_some(Reason::More);
        self.stands_in = self.stands_in.filter(|_| more);
    }

    fn in_snapshot(&self) -> bool {
        matches!(self.phase, Phase::Snapshot { .. })
    }

    pub(super) fn deadlines(&self, settings: &Settings) -> impl Iterator<Item = Monotonic> {
        let waiting = self.asked.as_ref().map(|asked| asked.waiting.until);
        let grace = self.behind_since.map(|since| since + settings.heartbeat_interval);
        [waiting, grace, self.retry.due_at()].into_iter().flatten()
    }
}

impl StorageCore {
    pub(super) fn want_fetch(&mut self, reason: Reason, hint: Option<ControllerId>) {
        self.fetch.wanted = Some(reason);
        self.fetch.hint = hint.or(self.fetch.hint);
    }

    /// The active controller says that there is more, since the paired one has not brought it. What the paired one was asked is
    /// not waited for, unless it is handing out a snapshot: that takes its time, and would begin anew.
    pub(super) fn fetch_from_stand_in(&mut self, active: ControllerId) {
        self.fetch.wanted = Some(Reason::Gap);
        if self.fetch.stands_in == Some(active) || !matches!(self.fetch.phase, Phase::Entries) {
            return;
        }
        self.fetch.stands_in = Some(active);
        self.fetch.asked.take_if(|asked| asked.controller != active);
        self.fetch.retry.reset();
    }

    pub(super) fn step_fetch(&mut self, now: Monotonic, out: &mut Vec<Effect>) {
        if self.fetch.asked.as_ref().is_some_and(|asked| now >= asked.waiting.until) {
            self.fetch.failed(now, &self.settings, &mut self.jitter);
        }
        let ours = self.history.position();
        let is_behind = self.session.head.is_some_and(|head| head.version > ours.version);
        self.fetch.behind_since = is_behind.then(|| self.fetch.behind_since.unwrap_or(now));
        let late = self.fetch.behind_since.is_some_and(|since| now.since(since) >= self.settings.heartbeat_interval);
        let (Some(_), Some((cluster, storage))) = (&self.session.connection, self.bound()) else { return };
        let busy = self.fetch.asked.is_some()
            || matches!(self.fetch.phase, Phase::Whole { .. })
            || self.intake.installing()
            || self.intake.is_full(&self.settings);
        let wanted = late || self.fetch.wanted.is_some() || self.fetch.in_snapshot();
        if busy || !wanted || !self.fetch.retry.is_due(now) {
            return;
        }
        let (controller, chunk) = match &self.fetch.phase {
            Phase::Snapshot { position, from, offset, .. } => {
                (*from, Some(ChunkRequest { snapshot: *position, offset: *offset }))
            }
            Phase::Entries | Phase::Whole { .. } => match self.fetch_from() {
                Some(controller) => (controller, None),
                None => return,
            },
        };
        let call = self.call();
        let waiting = Waiting { call, until: now + self.settings.request_timeout };
        self.fetch.asked = Some(Asked { waiting, controller, from: ours });
        let request = FetchRequest { cluster: Some(cluster), storage: Some(storage), from: ours, chunk };
        out.push(Effect::Fetch { call, controller, request });
    }

    /// Whose turn it is.
    fn fetch_from(&self) -> Option<ControllerId> {
        if self.fetch.stands_in.is_some() {
            return self.fetch.stands_in;
        }
        let (paired, active) = (self.pairing().controller, self.session.active);
        let (first, second) = if self.fetch.turn.is_multiple_of(2) { (paired, active) } else { (active, paired) };
        first.or(second).or(self.fetch.hint)
    }

    pub(super) fn fetch_answer(
        &mut self,
        now: Monotonic,
        call: Call,
        result: Result<FetchReply, CallError>,
        out: &mut Vec<Effect>,
    ) {
        let Some(asked) = self.fetch.asked.take_if(|asked| asked.waiting.call == call) else { return };
        let done = match result {
            Ok(FetchReply::Answer(body)) => {
                decode::<FetchAnswer>(&body).and_then(|answer| self.take_answer(&asked, answer, out))
            }
            Ok(FetchReply::Chunk { header, bytes }) => self.take_chunk(&header, bytes),
            Err(CallError::NoResponders) => Err(WireError::new(Code::NotController, "nobody listens there")),
            Err(CallError::Timeout) => Err(WireError::new(Code::RequestTimedOut, "no answer came in time")),
        };
        match done {
            Ok(()) => self.fetch.retry.reset(),
            Err(error) => {
                self.fetch.failed(now, &self.settings, &mut self.jitter);
                self.complain(now, "fetch", Level::Warn, out, || {
                    format!("fetching metadata from controller {} failed: {error}", asked.controller)
                });
            }
        }
    }

    fn take_answer(&mut self, asked: &Asked, answer: FetchAnswer, out: &mut Vec<Effect>) -> Result<(), WireError> {
        if let Some(error) = answer.error {
            return Err(error);
        }
        if Some(answer.cluster) != self.identity.cluster {
            let words = format!("the answer is from cluster {}", answer.cluster);
            return Err(WireError::new(Code::InconsistentClusterId, words));
        }
        if let Some(snapshot) = answer.snapshot {
            return self.begin_snapshot(asked.controller, snapshot, &answer);
        }
        self.fetch.phase = Phase::Entries;
        let ours = self.history.position();
        if ours != asked.from {
            // A push was faster. What is still missing is seen at the next look.
            self.fetch.want_more(answer.head.version > ours.version);
            return Ok(());
        }
        if answer.position.version <= ours.version {
            self.fetch.want_more(false);
            let is_behind = self.session.head.is_some_and(|head| head.version > ours.version);
            let words = "it has nothing newer than this node";
            return if is_behind { Err(WireError::new(Code::Unknown, words)) } else { Ok(()) };
        }
        let vetted = vet(&self.history, answer.cluster, answer.position, &answer.entries)
            .map_err(|flaw| WireError::new(Code::InvalidState, flaw.to_string()))?;
        let applied = self.apply(vetted, out);
        if self.history.position() != ours {
            let pushed = self.history.position();
            self.answer_when_saved(Answer { token: None, outcome: AckOutcome::Applied, pushed }, out);
        }
        if let Err(error) = applied {
            if error.code == Code::UnsupportedVersion {
                // Asked for, and still unknown: this program is too old for its cluster.
                self.exit(format!("the metadata cannot be followed any further: {error}"), 1, out);
            }
            return Err(error);
        }
        self.fetch.want_more(answer.head.version > self.history.position().version);
        Ok(())
    }

    /// A snapshot replaces everything, so it has to be later than all that the node has, and from a controller that knows of
    /// every election that the node knows of.
    fn begin_snapshot(
        &mut self,
        from: ControllerId,
        position: Position,
        answer: &FetchAnswer,
    ) -> Result<(), WireError> {
        if matches!(&self.fetch.phase, Phase::Snapshot { position: begun, .. } if *begun == position) {
            return Err(WireError::new(Code::InvalidState, "a piece was asked for, and only the snapshot named again"));
        }
        let ours = self.history.position();
        if position.version <= ours.version || answer.controller_epoch < self.seen_epoch() {
            self.fetch.phase = Phase::Entries;
            let (epoch, seen) = (answer.controller_epoch, self.seen_epoch());
            let words = format!(
                "its snapshot at {} of epoch {epoch} is not beyond {} and {seen}",
                position.version, ours.version
            );
            return Err(WireError::new(Code::InvalidState, words));
        }
        self.fetch.phase = Phase::Snapshot { position, from, offset: 0, total: None, pieces: Vec::new() };
        Ok(())
    }

    fn take_chunk(&mut self, header: &[u8], bytes: Bytes) -> Result<(), WireError> {
        let header: ChunkHeader = serde_json::from_slice(header).map_err(|error| WireError::malformed(&error))?;
        let Phase::Snapshot { position, offset, total, pieces, .. } = &mut self.fetch.phase else {
            return Err(WireError::new(Code::InvalidState, "a piece of a snapshot came unasked"));
        };
        let end = header.offset.checked_add(bytes.len() as u64).filter(|end| *end <= header.total);
        let fits =
            header.snapshot == *position && header.offset == *offset && total.is_none_or(|total| total == header.total);
        let (true, Some(end), false) = (fits, end, bytes.is_empty()) else {
            return Err(WireError::new(Code::InvalidState, "it is not the piece that was asked for"));
        };
        *total = Some(header.total);
        *offset = end;
        pieces.push(bytes);
        if end == header.total {
            let (position, pieces) = (*position, std::mem::take(pieces));
            self.fetch.phase = Phase::Whole { position, pieces };
        }
        Ok(())
    }

    /// Gives a complete snapshot to the disk, which is free, unless the node has got beyond it.
    pub(super) fn step_install(&mut self, now: Monotonic, out: &mut Vec<Effect>) {
        let Phase::Whole { position, pieces } = &mut self.fetch.phase else { return };
        let (position, pieces) = (*position, std::mem::take(pieces));
        self.fetch.phase = Phase::Entries;
        let Some(cluster) = self.identity.cluster else { return };
        if position.version > self.history.position().version {
            self.intake.install(now, position);
            let controller_epoch = self.known_epoch();
            out.push(Effect::InstallSnapshot { cluster, position, controller_epoch, pieces });
        }
    }

    pub(super) fn snapshot_unusable(&mut self, now: Monotonic, words: &str, out: &mut Vec<Effect>) {
        self.snapshot_failed(now);
        self.complain(now, "snapshot", Level::Error, out, || format!("a fetched snapshot cannot be used: {words}"));
    }
}
