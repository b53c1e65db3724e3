//! services.json: the metadata services, the storage services, who is paired with whom, and the subject of each.
//!
//! A service that the file does not name has the default subjects of its id, so that it may still join. Whoever needs a
//! subject asks here; nobody builds one by hand. Pure: reading the file is `services_file`'s job.

mod parse;
mod subject;
mod tree;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use serde_json::{Map, Value, json};

use crate::types::{ControllerId, PartitionId, StorageId, TopicName};

pub use subject::{MAX_SUBJECT_BYTES, SubjectError};

/// What subjects begin with unless the file says otherwise.
pub const DEFAULT_PREFIX: &str = "dmq";

/// The longest prefix, in bytes, that leaves room for every default subject.
pub const MAX_PREFIX_BYTES: usize = MAX_SUBJECT_BYTES - ".metadata.heartbeat.4294967295".len();

/// One thing that is wrong in services.json.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{path}: {problem}; {remedy}")]
pub struct Fault {
    /// Where: `storageServices[1].subjects.push`, or `line 3, column 7` where the text is no JSON.
    pub path: String,
    /// What is wrong there.
    pub problem: String,
    /// What to write instead.
    pub remedy: String,
}

/// The subjects of one storage service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StorageSubjects {
    /// Requests of the node; every controller hears them, the active one answers.
    pub heartbeat: String,
    /// Requests to the node: metadata, from the controller that it is paired with.
    pub push: String,
    /// The node acknowledges pushes here, and all controllers listen.
    pub ack: String,
    /// Requests to the node as a leader, from its followers.
    pub replica: String,
}

/// The subjects of one metadata service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControllerSubjects {
    /// Requests to the controller for metadata that a node lacks.
    pub fetch: String,
    /// The controller's own sign of life, for the other controllers.
    pub heartbeat: String,
}

/// Whose subject one is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Owner {
    StorageHeartbeat(StorageId),
    Push(StorageId),
    Ack(StorageId),
    Replica(StorageId),
    Fetch(ControllerId),
    ControllerHeartbeat(ControllerId),
}

/// Who is to serve a data request: a partition's leader, or any storage node that finds the leader itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DataTarget {
    Partition(PartitionId),
    Auto,
}

impl fmt::Display for DataTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Partition(partition) => partition.fmt(f),
            Self::Auto => f.write_str("auto"),
        }
    }
}

/// A kind of subject that every service of a sort has one of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Kind {
    StorageHeartbeat,
    Push,
    Ack,
    Replica,
    Fetch,
    ControllerHeartbeat,
}

const STORAGE_KINDS: [Kind; 4] = [Kind::StorageHeartbeat, Kind::Push, Kind::Ack, Kind::Replica];
const CONTROLLER_KINDS: [Kind; 2] = [Kind::Fetch, Kind::ControllerHeartbeat];

impl Kind {
    fn all() -> impl Iterator<Item = Self> {
        STORAGE_KINDS.into_iter().chain(CONTROLLER_KINDS)
    }

    /// Its key in `subjects`.
    fn key(self) -> &'static str {
        match self {
            Self::StorageHeartbeat | Self::ControllerHeartbeat => "heartbeat",
            Self::Push => "push",
            Self::Ack => "ack",
            Self::Replica => "replica",
            Self::Fetch => "fetch",
        }
    }

    /// What stands between prefix and id.
    fn stem(self) -> &'static str {
        match self {
            Self::StorageHeartbeat => "heartbeat",
            Self::Push => "metadata.push",
            Self::Ack => "metadata.ack",
            Self::Replica => "replica",
            Self::Fetch => "metadata.fetch",
            Self::ControllerHeartbeat => "metadata.heartbeat",
        }
    }

    fn service(self) -> &'static str {
        match self {
            Self::StorageHeartbeat | Self::Push | Self::Ack | Self::Replica => "storage service",
            Self::Fetch | Self::ControllerHeartbeat => "metadata service",
        }
    }

    fn default_subject(self, prefix: &str, id: impl fmt::Display) -> String {
        format!("{prefix}.{}.{id}", self.stem())
    }

    /// The id whose default this subject is.
    fn default_owner(self, prefix: &str, subject: &str) -> Option<u32> {
        let id = subject.strip_prefix(prefix)?.strip_prefix('.')?.strip_prefix(self.stem())?.strip_prefix('.')?;
        canonical(id)
    }

    fn owner(self, id: u32) -> Owner {
        match self {
            Self::StorageHeartbeat => Owner::StorageHeartbeat(StorageId(id)),
            Self::Push => Owner::Push(StorageId(id)),
            Self::Ack => Owner::Ack(StorageId(id)),
            Self::Replica => Owner::Replica(StorageId(id)),
            Self::Fetch => Owner::Fetch(ControllerId(id)),
            Self::ControllerHeartbeat => Owner::ControllerHeartbeat(ControllerId(id)),
        }
    }
}

/// A number as it is written in a subject: `007` is not 7, or one service would have several subjects.
fn canonical(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (digits && (text == "0" || !text.starts_with('0'))).then(|| text.parse().ok()).flatten()
}

/// The services, their subjects and their pairing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Services {
    prefix: String,
    log: Option<String>,
    admin: Option<String>,
    data: Option<String>,
    controllers: BTreeSet<ControllerId>,
    /// With the rack, where one is given.
    storages: BTreeMap<StorageId, Option<String>>,
    pairing: BTreeMap<StorageId, ControllerId>,
    /// The subjects that are not the default ones of their service.
    custom: BTreeMap<(Kind, u32), String>,
    /// `custom` the other way round.
    owners: HashMap<String, Owner>,
}

impl Default for Services {
    fn default() -> Self {
        Self {
            prefix: DEFAULT_PREFIX.into(),
            log: None,
            admin: None,
            data: None,
            controllers: BTreeSet::new(),
            storages: BTreeMap::new(),
            pairing: BTreeMap::new(),
            custom: BTreeMap::new(),
            owners: HashMap::new(),
        }
    }
}

impl Services {
    /// Reads the text of a services.json; where it has faults, all of them.
    pub fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        parse::parse(text)
    }

    /// What holds where there is no file: nobody is listed, and every subject follows from `prefix` and the ids.
    pub fn default_with(prefix: &str) -> Result<Self, Fault> {
        parse::check_prefix(prefix)?;
        Ok(Self { prefix: prefix.into(), ..Self::default() })
    }

    /// The same with these services, storage services spread evenly over the metadata services.
    #[must_use]
    pub fn with_services(
        mut self,
        controllers: impl IntoIterator<Item = ControllerId>,
        storages: impl IntoIterator<Item = StorageId>,
    ) -> Self {
        self.controllers.extend(controllers);
        self.storages.extend(storages.into_iter().map(|id| (id, None)));
        let Self { controllers, storages, pairing, .. } = &mut self;
        let turns = controllers.iter().cycle();
        pairing.extend(storages.keys().zip(turns).map(|(storage, controller)| (*storage, *controller)));
        self
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The listed metadata services, in order of their ids.
    pub fn controller_ids(&self) -> impl Iterator<Item = ControllerId> {
        self.controllers.iter().copied()
    }

    /// The listed storage services, in order of their ids.
    pub fn storage_ids(&self) -> impl Iterator<Item = StorageId> {
        self.storages.keys().copied()
    }

    pub fn lists_controller(&self, id: ControllerId) -> bool {
        self.controllers.contains(&id)
    }

    pub fn lists_storage(&self, id: StorageId) -> bool {
        self.storages.contains_key(&id)
    }

    /// The rack that the file gives a storage service.
    pub fn rack(&self, id: StorageId) -> Option<&str> {
        self.storages.get(&id)?.as_deref()
    }

    /// The metadata service that the file pairs a storage service with.
    pub fn pairing(&self, id: StorageId) -> Option<ControllerId> {
        self.pairing.get(&id).copied()
    }

    /// The storage services that the file pairs a metadata service with, in order of their ids.
    pub fn paired_with(&self, id: ControllerId) -> impl Iterator<Item = StorageId> {
        self.pairing.iter().filter(move |(_, controller)| **controller == id).map(|(storage, _)| *storage)
    }

    /// The subjects of a storage service, listed or not.
    pub fn storage(&self, id: StorageId) -> StorageSubjects {
        StorageSubjects {
            heartbeat: self.subject(Kind::StorageHeartbeat, id.0),
            push: self.subject(Kind::Push, id.0),
            ack: self.subject(Kind::Ack, id.0),
            replica: self.subject(Kind::Replica, id.0),
        }
    }

    /// The subjects of a metadata service, listed or not.
    pub fn controller(&self, id: ControllerId) -> ControllerSubjects {
        ControllerSubjects {
            fetch: self.subject(Kind::Fetch, id.0),
            heartbeat: self.subject(Kind::ControllerHeartbeat, id.0),
        }
    }

    /// What to subscribe to so as to hear every storage service's heartbeats, each once, listed or not.
    pub fn heartbeats_wildcard(&self) -> Vec<String> {
        self.wildcards(Kind::StorageHeartbeat)
    }

    /// What to subscribe to so as to hear every storage service's acknowledgements of pushes, each once.
    pub fn acks_wildcard(&self) -> Vec<String> {
        self.wildcards(Kind::Ack)
    }

    /// What to subscribe to so as to hear every metadata service's heartbeats, each once.
    pub fn controller_heartbeats_wildcard(&self) -> Vec<String> {
        self.wildcards(Kind::ControllerHeartbeat)
    }

    /// Whose subject this is: the service to which the file gives it, or else the one whose default it is.
    pub fn owner(&self, subject: &str) -> Option<Owner> {
        if let Some(owner) = self.owners.get(subject) {
            return Some(*owner);
        }
        Kind::all().find_map(|kind| {
            let id = kind.default_owner(&self.prefix, subject)?;
            // Whoever has another subject from the file does not have its default one as well.
            (!self.custom.contains_key(&(kind, id))).then(|| kind.owner(id))
        })
    }

    /// The storage service whose heartbeats come on this subject.
    pub fn heartbeat_of(&self, subject: &str) -> Option<StorageId> {
        match self.owner(subject)? {
            Owner::StorageHeartbeat(id) => Some(id),
            Owner::Push(_) | Owner::Ack(_) | Owner::Replica(_) => None,
            Owner::Fetch(_) | Owner::ControllerHeartbeat(_) => None,
        }
    }

    /// The storage service whose acknowledgements come on this subject.
    pub fn ack_of(&self, subject: &str) -> Option<StorageId> {
        match self.owner(subject)? {
            Owner::Ack(id) => Some(id),
            Owner::StorageHeartbeat(_) | Owner::Push(_) | Owner::Replica(_) => None,
            Owner::Fetch(_) | Owner::ControllerHeartbeat(_) => None,
        }
    }

    /// The metadata service whose heartbeats come on this subject.
    pub fn controller_heartbeat_of(&self, subject: &str) -> Option<ControllerId> {
        match self.owner(subject)? {
            Owner::ControllerHeartbeat(id) => Some(id),
            Owner::StorageHeartbeat(_) | Owner::Push(_) | Owner::Ack(_) | Owner::Replica(_) | Owner::Fetch(_) => None,
        }
    }

    /// The subject of the metadata log's stream.
    pub fn log_subject(&self) -> String {
        self.log.clone().unwrap_or_else(|| format!("{}.metadata.log", self.prefix))
    }

    /// What admin subjects begin with, without the dot after it.
    pub fn admin_prefix(&self) -> String {
        self.admin.clone().unwrap_or_else(|| format!("{}.admin", self.prefix))
    }

    /// The subject of an admin command: `dmq.admin.topic.create`.
    pub fn admin_subject(&self, noun: &str, verb: &str) -> String {
        format!("{}.{noun}.{verb}", self.admin_prefix())
    }

    /// What data subjects begin with, without the dot after it.
    pub fn data_prefix(&self) -> String {
        self.data.clone().unwrap_or_else(|| format!("{}.data", self.prefix))
    }

    /// The subject of a data request: `dmq.data.produce.0.orders`, `dmq.data.produce.auto.orders`.
    pub fn data_subject(&self, op: &str, target: DataTarget, topic: &TopicName) -> String {
        format!("{}.{op}.{target}.{topic}", self.data_prefix())
    }

    /// The data subject of one operation without a partition, for any topic.
    pub fn data_auto_wildcard(&self, op: &str) -> String {
        format!("{}.{op}.{}.>", self.data_prefix(), DataTarget::Auto)
    }

    /// The operation, target and topic that a data subject names.
    pub fn read_data_subject<'a>(&self, subject: &'a str) -> Option<(&'a str, DataTarget, TopicName)> {
        let mut tokens = subject.strip_prefix(&self.data_prefix())?.strip_prefix('.')?.splitn(3, '.');
        let (op, target, topic) = (tokens.next()?, tokens.next()?, tokens.next()?);
        let target = match target {
            "auto" => DataTarget::Auto,
            partition => DataTarget::Partition(canonical(partition)?),
        };
        Some((op, target, TopicName::new(topic).ok()?))
    }

    /// The canonical services.json: every service with its subjects spelled out, pairings on both sides.
    pub fn to_json(&self) -> String {
        let controllers: Vec<_> = self.controllers.iter().map(|id| self.controller_json(*id)).collect();
        let storages: Vec<_> = self.storages.keys().map(|id| self.storage_json(*id)).collect();
        let mut shared = Map::new();
        for (key, subject) in [("log", &self.log), ("admin", &self.admin), ("data", &self.data)] {
            shared.extend(subject.iter().map(|subject| (key.into(), json!(subject))));
        }
        let mut file = Map::new();
        if self.prefix != DEFAULT_PREFIX {
            file.insert("prefix".into(), json!(self.prefix));
        }
        if !shared.is_empty() {
            file.insert("subjects".into(), Value::Object(shared));
        }
        file.insert("metadataServices".into(), json!(controllers));
        file.insert("storageServices".into(), json!(storages));
        // A `Value` has no map with keys that are not text, the only thing that could fail.
        format!("{:#}\n", Value::Object(file))
    }

    fn controller_json(&self, id: ControllerId) -> Value {
        let paired: Vec<_> = self.paired_with(id).collect();
        let subjects = self.subjects_json(&CONTROLLER_KINDS, id.0);
        json!({ "id": id, "subjects": subjects, "pairedStorageServiceIds": paired })
    }

    fn storage_json(&self, id: StorageId) -> Value {
        let mut entry = Map::new();
        entry.insert("id".into(), json!(id));
        entry.extend(self.rack(id).map(|rack| ("rack".into(), json!(rack))));
        entry.insert("subjects".into(), self.subjects_json(&STORAGE_KINDS, id.0));
        entry.extend(self.pairing(id).map(|controller| ("pairedMetadataServiceId".into(), json!(controller))));
        Value::Object(entry)
    }

    fn subjects_json(&self, kinds: &[Kind], id: u32) -> Value {
        kinds.iter().map(|kind| (kind.key().to_owned(), json!(self.subject(*kind, id)))).collect()
    }

    fn subject(&self, kind: Kind, id: u32) -> String {
        self.custom.get(&(kind, id)).cloned().unwrap_or_else(|| kind.default_subject(&self.prefix, id))
    }

    fn wildcards(&self, kind: Kind) -> Vec<String> {
        let wildcard = kind.default_subject(&self.prefix, '*');
        let custom = self.custom.iter().filter(|((of, _), _)| *of == kind).map(|(_, subject)| subject);
        let outside: Vec<_> = custom.filter(|subject| !subject::meet(&wildcard, subject)).cloned().collect();
        std::iter::once(wildcard).chain(outside).collect()
    }
}

#[cfg(test)]
mod tests;
