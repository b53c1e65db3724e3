//! Replicas of one partition under a controller, over a network that loses, repeats, delays and reorders, with crashes that
//! lose what was not flushed: whatever was acknowledged or shown stays, at every later leader.
//!
//! Leases are left out on purpose: a leader that does not know it was deposed goes on, and the epochs alone have to make it
//! harmless.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::follower::{FetchFrom, FetchOutcome, Follower, Step};
use super::{EpochHistory, InSync, Leader, ReplicaSession, Settings, Wish};
use crate::types::{LeaderEpoch, Monotonic, NodeEpoch, Offset, PartitionEpoch, StorageId};

const NODES: u32 = 3;
const MIN_INSYNC: usize = 2;

/// A rule that is broken on purpose, to see that the model notices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Planted {
    Nothing,
    /// Acknowledge by the in-sync replicas that the metadata names, whatever was asked.
    CommittedOnly,
    /// Take what a follower has fetched for flushed.
    UnflushedCounts,
    /// A follower cuts off by any answer that says so, also by one to an earlier fetch.
    LateAnswers,
    /// A follower keeps its log where the histories part.
    NoTruncation,
    /// A leader shows what is committed before its own epoch's start is.
    ShowsEarly,
    /// A refusal proves that the request has not taken effect and never will.
    RefusalSettles,
}

/// What the controller holds, version by version.
#[derive(Clone, Debug)]
struct Meta {
    leader: Option<StorageId>,
    leader_epoch: LeaderEpoch,
    epoch: PartitionEpoch,
    isr: Vec<StorageId>,
    node_epochs: Vec<NodeEpoch>,
    active: Vec<bool>,
}

#[derive(Debug)]
enum Role {
    None,
    Leads(Box<Leader<u64>>),
    Follows(Follower),
}

#[derive(Debug)]
struct Node {
    id: StorageId,
    up: bool,
    node_epoch: NodeEpoch,
    /// Each record with the epoch that wrote it.
    log: Vec<(LeaderEpoch, u64)>,
    flushed: usize,
    epochs: EpochHistory,
    high_watermark: Offset,
    role: Role,
    /// How many of the controller's states it has applied.
    applied: usize,
}

impl Node {
    fn end(&self) -> Offset {
        Offset(self.log.len() as i64)
    }

    fn cut(&mut self, to: usize) {
        self.log.truncate(to);
        self.flushed = self.flushed.min(to);
        self.epochs.truncate_to(Offset(to as i64));
    }
}

#[derive(Clone, Debug)]
enum Message {
    Fetch { from: StorageId, to: StorageId, session: ReplicaSession, asked: FetchFrom },
    Fetched { to: StorageId, asked: FetchFrom, outcome: FetchOutcome, records: Vec<(LeaderEpoch, u64)> },
    Alter { from: StorageId, leader_epoch: LeaderEpoch, wish: Wish, node_epochs: Vec<NodeEpoch> },
    Altered { to: StorageId, leader_epoch: LeaderEpoch, on_top_of: PartitionEpoch, granted: bool },
}

struct Model {
    rng: SmallRng,
    planted: Planted,
    /// How much rarer than in the wildest runs nodes crash and are fenced.
    calm: u64,
    now: Monotonic,
    history: Vec<Meta>,
    nodes: Vec<Node>,
    wire: Vec<Message>,
    values: u64,
    acknowledged: Vec<(i64, u64)>,
    shown: Vec<u64>,
    elections: u32,
    truncations: u32,
    grown: u32,
}

impl Model {
    fn new(seed: u64, planted: Planted) -> Self {
        let ids: Vec<_> = (0..NODES).map(StorageId).collect();
        let meta = Meta {
            leader: Some(ids[0]),
            leader_epoch: LeaderEpoch(0),
            epoch: PartitionEpoch(0),
            isr: ids.clone(),
            node_epochs: ids.iter().map(|_| NodeEpoch(1)).collect(),
            active: vec![true; ids.len()],
        };
        let node = |id| Node {
            id,
            up: true,
            node_epoch: NodeEpoch(1),
            log: Vec::new(),
            flushed: 0,
            epochs: EpochHistory::default(),
            high_watermark: Offset::ZERO,
            role: Role::None,
            applied: 0,
        };
        let mut model = Self {
            rng: SmallRng::seed_from_u64(seed),
            planted,
            calm: seed % 8,
            now: Monotonic(0),
            history: vec![meta],
            nodes: ids.into_iter().map(node).collect(),
            wire: Vec::new(),
            values: 0,
            acknowledged: Vec::new(),
            shown: Vec::new(),
            elections: 0,
            truncations: 0,
            grown: 0,
        };
        (0..NODES as usize).for_each(|node| model.apply_next(node).unwrap());
        model
    }

    fn meta(&self) -> &Meta {
        self.history.last().unwrap()
    }

    fn step(&mut self) -> Result<(), String> {
        self.now = self.now + Duration::from_millis(self.rng.random_range(1..200));
        let node = self.rng.random_range(0..NODES as usize);
        let faulty = self.rng.random_range(0..=self.calm) == 0;
        match self.rng.random_range(0..1000) {
            0..120 => self.produce(node),
            120..260 => self.flush(node),
            260..430 => self.fetch(node),
            430..800 => self.deliver()?,
            800..900 => self.apply_next(node)?,
            900..945 => self.ask(node),
            945..965 => self.timeout(node),
            965..968 if faulty => self.crash(node),
            968..978 => self.restart(node),
            978..985 if faulty => self.fence(node),
            _ => self.unfence(node),
        }
        self.watch(node)
    }

    fn produce(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        if let Role::Leads(leader) = &mut node.role
            && leader.check_append().is_ok()
        {
            let offset = Offset(node.log.len() as i64);
            for _ in 0..self.rng.random_range(1..4) {
                self.values += 1;
                node.log.push((leader.leader_epoch(), self.values));
            }
            node.epochs.append(leader.leader_epoch(), offset);
            let end = Offset(node.log.len() as i64);
            leader.appended(self.now, end);
            leader.wait_for(end, self.values);
        }
    }

    fn flush(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        if node.up {
            node.flushed = node.log.len();
            if let Role::Leads(leader) = &mut node.role {
                leader.flushed(Offset(node.flushed as i64));
            }
        }
    }

    fn fetch(&mut self, node: usize) {
        let held = &self.nodes[node];
        if let Role::Follows(follower) = &held.role {
            let mut asked = follower.fetch_from(&held.epochs, held.end(), Offset(held.flushed as i64));
            if self.planted == Planted::UnflushedCounts {
                asked.flushed = asked.offset;
            }
            let session = ReplicaSession { node_epoch: held.node_epoch, attempt: 0 };
            self.wire.push(Message::Fetch { from: held.id, to: follower.leader(), session, asked });
        }
    }

    fn ask(&mut self, node: usize) {
        let meta = self.history[self.nodes[node].applied - 1].clone();
        let held = &mut self.nodes[node];
        let Role::Leads(leader) = &mut held.role else { return };
        let fit = |id: StorageId, epoch| meta.active[id.0 as usize] && meta.node_epochs[id.0 as usize] == epoch;
        if let Some(wish) = leader.wish(self.now, false, fit) {
            leader.in_sync_mut().asking(&wish);
            let epoch = |id: &StorageId| leader.node_epoch(*id).unwrap_or(held.node_epoch);
            let node_epochs = wish.members.iter().map(epoch).collect();
            self.wire.push(Message::Alter { from: held.id, leader_epoch: leader.leader_epoch(), wish, node_epochs });
        }
    }

    /// The leader gives up waiting for the controller's answer.
    fn timeout(&mut self, node: usize) {
        if let Role::Leads(leader) = &mut self.nodes[node].role {
            let epoch = leader.in_sync().partition_epoch();
            leader.in_sync_mut().not_granted(epoch);
        }
    }

    fn deliver(&mut self) -> Result<(), String> {
        if self.wire.is_empty() {
            return Ok(());
        }
        // Mostly one of the newest, so that something gets done; now and then a very old one, or a copy.
        let index = match self.rng.random_range(0..10) {
            0 => self.rng.random_range(0..self.wire.len()),
            _ => self.wire.len() - 1 - self.rng.random_range(0..self.wire.len().min(3)),
        };
        let message = match self.rng.random_range(0..10) {
            0 => self.wire[index].clone(),
            1 => {
                self.wire.swap_remove(index);
                return Ok(());
            }
            _ => self.wire.swap_remove(index),
        };
        if self.wire.len() > 60 {
            self.wire.remove(0);
        }
        self.handle(message)
    }

    fn handle(&mut self, message: Message) -> Result<(), String> {
        match message {
            Message::Fetch { from, to, session, asked } => self.fetched(from, to, session, &asked),
            Message::Fetched { to, asked, outcome, records } => self.answered(to, asked, outcome, &records)?,
            Message::Alter { from, leader_epoch, wish, node_epochs } => {
                self.alter(from, leader_epoch, &wish, &node_epochs);
            }
            Message::Altered { to, leader_epoch, on_top_of, granted } => {
                self.altered(to, leader_epoch, on_top_of, granted);
            }
        }
        Ok(())
    }

    fn altered(&mut self, to: StorageId, leader_epoch: LeaderEpoch, on_top_of: PartitionEpoch, granted: bool) {
        let Role::Leads(leader) = &mut self.nodes[to.0 as usize].role else { return };
        if leader.leader_epoch() != leader_epoch {
            return;
        }
        let in_sync = leader.in_sync_mut();
        if granted {
            in_sync.granted(on_top_of);
        } else if self.planted == Planted::RefusalSettles && on_top_of == in_sync.partition_epoch() {
            *in_sync = InSync::new(on_top_of, in_sync.committed().to_vec());
        } else {
            in_sync.not_granted(on_top_of);
        }
    }

    fn fetched(&mut self, from: StorageId, to: StorageId, session: ReplicaSession, asked: &FetchFrom) {
        let node = &mut self.nodes[to.0 as usize];
        let Role::Leads(leader) = &mut node.role else { return };
        let outcome = leader.fetched(self.now, from, session, asked, Offset::ZERO, &node.epochs);
        let Ok(outcome) = outcome else { return };
        let agrees = matches!(outcome, FetchOutcome::Agrees { .. });
        let start = if agrees { asked.offset.0 as usize } else { node.log.len() };
        let records = node.log[start..].iter().take(self.rng.random_range(1..6)).copied().collect();
        self.wire.push(Message::Fetched { to: from, asked: *asked, outcome, records });
    }

    fn answered(
        &mut self,
        to: StorageId,
        mut asked: FetchFrom,
        outcome: FetchOutcome,
        records: &[(LeaderEpoch, u64)],
    ) -> Result<(), String> {
        let planted = self.planted;
        let node = &mut self.nodes[to.0 as usize];
        let (end, flushed) = (node.end(), Offset(node.flushed as i64));
        let Role::Follows(follower) = &mut node.role else { return Ok(()) };
        if planted == Planted::LateAnswers && matches!(outcome, FetchOutcome::Diverged(_)) {
            let epoch = asked.leader_epoch;
            asked = follower.fetch_from(&node.epochs, end, flushed);
            asked.leader_epoch = epoch;
        }
        let step = follower.answer(&asked, outcome, &node.epochs, end);
        match step {
            Step::Ignore => {}
            Step::Append { .. } => {
                for (epoch, value) in records {
                    node.epochs.append(*epoch, node.end());
                    node.log.push((*epoch, *value));
                }
            }
            Step::TruncateTo(_) if planted == Planted::NoTruncation => {
                // It takes the leader's word for its own log instead.
                let last = node.epochs.last(end).unwrap_or_default();
                node.epochs.append(LeaderEpoch(last.0.max(asked.leader_epoch.0)), end);
            }
            Step::TruncateTo(offset) => {
                self.truncations += 1;
                node.cut(offset.0 as usize);
            }
            Step::RestartAt(offset) => return Err(format!("nothing was deleted, and {to} begins anew at {offset}")),
        }
        let end = node.end();
        if let (Role::Follows(follower), Step::Append { .. }) = (&mut node.role, step) {
            follower.learned(outcome, end);
        }
        if let Role::Follows(follower) = &node.role {
            node.high_watermark = follower.high_watermark();
        }
        Ok(())
    }

    /// The controller's rules, as kraft.md and `metadata/rules/partition.rs` have them.
    fn alter(&mut self, from: StorageId, leader_epoch: LeaderEpoch, wish: &Wish, node_epochs: &[NodeEpoch]) {
        let mut meta = self.meta().clone();
        let fit = |(id, epoch): (&StorageId, &NodeEpoch)| {
            meta.active[id.0 as usize] && meta.node_epochs[id.0 as usize] == *epoch
        };
        let granted = meta.leader == Some(from)
            && meta.leader_epoch == leader_epoch
            && meta.epoch == wish.partition_epoch
            && wish.members.iter().zip(node_epochs).all(fit);
        if granted {
            self.grown += u32::from(wish.members.len() > meta.isr.len());
            meta.isr = wish.members.clone();
            meta.epoch.0 += 1;
            self.history.push(meta);
        }
        let on_top_of = wish.partition_epoch;
        self.wire.push(Message::Altered { to: from, leader_epoch, on_top_of, granted });
    }

    fn crash(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        if node.up {
            node.up = false;
            node.role = Role::None;
            // A crash of the machine: what was not flushed is gone, or only some of it is.
            let kept = self.rng.random_range(node.flushed..=node.log.len());
            node.cut(kept);
            node.flushed = node.log.len();
            node.high_watermark = Offset(self.rng.random_range(0..=node.high_watermark.0.min(kept as i64)));
        }
    }

    /// It registers with a new node epoch: fenced until it has caught up with the metadata.
    fn restart(&mut self, node: usize) {
        if !self.nodes[node].up {
            let mut meta = self.meta().clone();
            let epoch = NodeEpoch(self.history.len() as u64 + 1);
            meta.node_epochs[node] = epoch;
            self.leave(&mut meta, node);
            self.history.push(meta);
            let held = &mut self.nodes[node];
            (held.up, held.node_epoch) = (true, epoch);
        }
    }

    /// Rightly or not.
    fn fence(&mut self, node: usize) {
        let mut meta = self.meta().clone();
        if meta.active[node] {
            self.leave(&mut meta, node);
            self.history.push(meta);
        }
    }

    fn unfence(&mut self, node: usize) {
        let mut meta = self.meta().clone();
        let held = &self.nodes[node];
        if held.up && !meta.active[node] && held.applied == self.history.len() {
            meta.active[node] = true;
            self.elect(&mut meta);
            self.history.push(meta);
        }
    }

    fn leave(&mut self, meta: &mut Meta, node: usize) {
        let id = StorageId(node as u32);
        meta.active[node] = false;
        if meta.isr.len() > 1 && meta.isr.contains(&id) {
            meta.isr.retain(|member| *member != id);
            meta.epoch.0 += 1;
        }
        if meta.leader == Some(id) {
            meta.leader = None;
            self.elect(meta);
        }
    }

    fn elect(&mut self, meta: &mut Meta) {
        if meta.leader.is_none() {
            meta.leader = meta.isr.iter().copied().find(|member| meta.active[member.0 as usize]);
            meta.leader_epoch.0 += 1;
            meta.epoch.0 += 1;
            self.elections += 1;
        }
    }

    fn apply_next(&mut self, node: usize) -> Result<(), String> {
        let now = self.now;
        let held = &mut self.nodes[node];
        let Some(meta) = self.history.get(held.applied).filter(|_| held.up) else { return Ok(()) };
        held.applied += 1;
        let present = match &held.role {
            Role::None => None,
            Role::Leads(leader) => Some(leader.leader_epoch()),
            Role::Follows(follower) => Some(follower.leader_epoch()),
        };
        // Another incarnation's leadership is not this one's.
        let mine = meta.node_epochs[node] == held.node_epoch;
        if present != Some(meta.leader_epoch) {
            held.role = match meta.leader {
                Some(leader) if leader == held.id && mine => {
                    let settings = Settings { lag_max: Duration::from_secs(2), min_insync: MIN_INSYNC };
                    let ends = (held.high_watermark, Offset(held.flushed as i64), held.end());
                    let in_sync = InSync::new(meta.epoch, meta.isr.iter().copied());
                    let mut leader = Leader::new(held.id, meta.leader_epoch, settings, in_sync, ends);
                    leader.replicas(now, (0..NODES).map(|id| (StorageId(id), meta.node_epochs[id as usize])));
                    held.epochs.append(meta.leader_epoch, held.end());
                    Role::Leads(Box::new(leader))
                }
                Some(leader) if leader != held.id => {
                    Role::Follows(Follower::new(leader, meta.leader_epoch, held.high_watermark))
                }
                Some(_) | None => Role::None,
            };
            if matches!(held.role, Role::Leads(_)) {
                let log = &held.log;
                let lost = self
                    .acknowledged
                    .iter()
                    .find(|(at, value)| log.get(*at as usize).is_none_or(|(_, held)| held != value));
                if let Some(lost) = lost {
                    return Err(format!("{:?} was acknowledged, and {} leads without it", lost, held.id));
                }
            }
        } else if let Role::Leads(leader) = &mut held.role {
            leader.replicas(now, (0..NODES).map(|id| (StorageId(id), meta.node_epochs[id as usize])));
            leader.commit_in_sync(meta.epoch, meta.isr.iter().copied());
        }
        Ok(())
    }

    /// What clients see of this node.
    fn watch(&mut self, node: usize) -> Result<(), String> {
        let planted = self.planted;
        let node = &mut self.nodes[node];
        let Role::Leads(leader) = &mut node.role else { return Ok(()) };
        let mut visible = if planted == Planted::ShowsEarly { Some(leader.high_watermark()) } else { leader.visible() };
        if planted == Planted::CommittedOnly {
            let has = |id: StorageId| match id == node.id {
                true => Some(node.flushed as i64),
                false => Some(node.log.len() as i64 - leader.lag(id)?),
            };
            let least =
                leader.in_sync().committed().iter().map(|id| has(*id)).try_fold(i64::MAX, |a, b| Some(a.min(b?)));
            visible = least.map(Offset).or(visible);
        }
        while let Some((_, outcome)) = leader.pop_acknowledged() {
            if let Ok(end) = outcome {
                let at = end.0 - 1;
                self.acknowledged.push((at, node.log[at as usize].1));
            }
        }
        node.high_watermark = node.high_watermark.max(leader.high_watermark());
        if let Some(visible) = visible {
            let end = visible.0 as usize;
            let newest = leader.leader_epoch() == self.history.last().unwrap().leader_epoch;
            if newest && end < self.shown.len() {
                return Err(format!("{} was shown, and leader {} shows only {end}", self.shown.len(), node.id));
            }
            for (at, (_, value)) in node.log[..end].iter().enumerate() {
                match self.shown.get(at) {
                    Some(shown) if shown != value => {
                        return Err(format!("offset {at} was {shown} and is {value} at {}", node.id));
                    }
                    Some(_) => {}
                    None => self.shown.push(*value),
                }
            }
        }
        Ok(())
    }

    /// No more faults: everything is to come right.
    fn heal(&mut self) -> Result<(), String> {
        for _ in 0..400 {
            for node in 0..NODES as usize {
                self.now = self.now + Duration::from_millis(300);
                self.restart(node);
                while self.nodes[node].applied < self.history.len() {
                    self.apply_next(node)?;
                }
                self.unfence(node);
                self.produce(node);
                self.flush(node);
                self.timeout(node);
                self.fetch(node);
                self.ask(node);
                // One message and what it leads to; older ones are lost by now.
                while let Some(message) = self.wire.pop() {
                    self.wire.clear();
                    self.handle(message)?;
                }
                self.watch(node)?;
            }
            let whole = self.meta().isr.len() == NODES as usize;
            if whole && self.acknowledged.last().is_some_and(|(_, value)| *value + 50 > self.values) {
                return Ok(());
            }
        }
        Err(format!("it did not heal: {:?}", self.meta()))
    }
}

fn run(seed: u64, planted: Planted, steps: u32) -> Result<Model, String> {
    let mut model = Model::new(seed, planted);
    for step in 0..steps {
        model.step().map_err(|wrong| format!("seed {seed}, step {step}: {wrong}"))?;
    }
    model.heal().map_err(|wrong| format!("seed {seed}, healing: {wrong}"))?;
    Ok(model)
}

#[test]
fn what_was_acknowledged_or_shown_stays_at_every_later_leader() {
    let (mut acknowledged, mut elections, mut truncations, mut grown) = (0, 0, 0, 0);
    for seed in 0..10_000 {
        let model = run(seed, Planted::Nothing, 2_000).unwrap_or_else(|wrong| panic!("{wrong}"));
        acknowledged += model.acknowledged.len();
        elections += model.elections;
        truncations += model.truncations;
        grown += model.grown;
    }
    println!("{acknowledged} acknowledged, {elections} elections, {truncations} truncations, {grown} admissions");
    assert!(acknowledged > 20_000, "{acknowledged}");
    assert!(elections > 10_000, "{elections}");
    assert!(truncations > 1_000, "{truncations}");
    assert!(grown > 5_000, "{grown}");
}

#[test]
fn each_planted_bug_is_found() {
    for planted in [
        Planted::CommittedOnly,
        Planted::UnflushedCounts,
        Planted::LateAnswers,
        Planted::NoTruncation,
        Planted::ShowsEarly,
        Planted::RefusalSettles,
    ] {
        // The wildest ones.
        let found = (0..20_000).find_map(|seed| run(seed * 8, planted, 2_000).err());
        println!("{planted:?}: {}", found.as_deref().unwrap_or("not found"));
        assert!(found.is_some(), "{planted:?}");
    }
}
