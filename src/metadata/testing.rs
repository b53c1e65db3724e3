//! A history in memory for tests: every change goes the way of a real one, encoded and offered, and is checked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::rules::node::{self, NodeError};
use super::rules::registration::{Asked, Registering};
use super::{Entry, History, Image, Offered, PartitionChange, Record, encode_change, invariants};
use crate::types::{
    ClusterId, ControllerEpoch, ControllerId, DirectoryId, IncarnationId, NodeEpoch, RequestId, StorageId, TopicId,
    Version, WallTime,
};

pub struct World {
    pub history: History,
    /// The stream: the message of version n is at n - 1.
    pub stream: Vec<Bytes>,
    /// The longest message.
    pub limit: usize,
    incarnations: u128,
}

pub fn cluster() -> ClusterId {
    ClusterId(Uuid::from_u128(0xc1))
}

pub fn directory(number: u32) -> DirectoryId {
    DirectoryId(Uuid::from_u128(0xd000 + u128::from(number)))
}

pub fn topic_id(number: u32) -> TopicId {
    TopicId(Uuid::from_u128(0x1000 + u128::from(number)))
}

pub fn ids<const N: usize>(ids: [u32; N]) -> Vec<StorageId> {
    ids.map(StorageId).to_vec()
}

pub fn set<const N: usize>(ids: [u32; N]) -> BTreeSet<StorageId> {
    ids.map(StorageId).into()
}

pub fn elected(controller: u32) -> Record {
    let directory = DirectoryId(Uuid::from_u128(0xcd00 + u128::from(controller)));
    let incarnation = IncarnationId(Uuid::from_u128(0xc100 + u128::from(controller)));
    Record::ControllerElected { controller: ControllerId(controller), directory, incarnation }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registration {
    pub storage: StorageId,
    pub records: Vec<Record>,
}

/// One registration alone.
pub fn register(
    image: &Image,
    listed: &BTreeSet<StorageId>,
    live: &dyn Fn(StorageId) -> bool,
    wanted: Option<StorageId>,
    directory: DirectoryId,
    incarnation: IncarnationId,
    rack: Option<Arc<str>>,
) -> Result<Registration, NodeError> {
    let mut registering = Registering::new(image, listed);
    let storage = registering
        .add(Asked { wanted, preferred: None, directory, knows: Version(u64::MAX), incarnation, rack }, live)?;
    Ok(Registration { storage, records: registering.records() })
}

impl World {
    /// A cluster that controller 0 founded.
    pub fn founded() -> Self {
        let mut world = Self { history: History::new(), stream: Vec::new(), limit: 1_000_000, incarnations: 0 };
        world.elect(vec![Record::ClusterFounded { cluster: cluster() }, elected(0)]);
        world
    }

    /// With active nodes 0 to `nodes` - 1, each in the directory of its number.
    pub fn with_nodes(nodes: u32) -> Self {
        let mut world = Self::founded();
        (0..nodes).for_each(|id| world.register(id));
        world.commit(node::unfence(world.image(), &(0..nodes).map(StorageId).collect()));
        world
    }

    pub fn image(&self) -> &Image {
        self.history.image().expect("the cluster was founded")
    }

    pub fn entry(&self, records: Vec<Record>) -> Entry {
        Entry {
            cluster: cluster(),
            controller_epoch: self.history.controller_epoch(),
            previous: self.history.base(),
            committed_at: WallTime(1_795_552_800_000 + self.history.seen().0),
            cause: "a test".into(),
            request: None,
            records,
        }
    }

    /// Registers a node anew whose disk knows its life up to this version. Those whose disks were set back.
    pub fn comes_back(&mut self, id: u32, knows: u64) -> Vec<StorageId> {
        let asked = Asked {
            wanted: None,
            preferred: None,
            directory: directory(id),
            knows: Version(knows),
            incarnation: self.incarnation(),
            rack: None,
        };
        let listed = set([]);
        let mut registering = Registering::new(self.image(), &listed);
        assert_eq!(registering.add(asked, &|_| false), Ok(StorageId(id)));
        let set_back = registering.set_back().collect();
        let records = registering.records();
        self.commit(records);
        set_back
    }

    /// Commits a change under the next version as its controller epoch.
    pub fn elect(&mut self, records: Vec<Record>) {
        let epoch = ControllerEpoch(self.history.seen().next().0);
        self.write(&Entry { controller_epoch: epoch, ..self.entry(records) });
    }

    /// Commits a change, unless it is none.
    pub fn commit(&mut self, records: Vec<Record>) {
        if !records.is_empty() {
            self.write(&self.entry(records));
        }
    }

    pub fn commit_for(&mut self, request: &str, answer: &str, records: Vec<Record>) {
        let request = Some((RequestId::new(request).unwrap(), 7, answer.into()));
        self.write(&Entry { request, ..self.entry(records) });
    }

    fn write(&mut self, entry: &Entry) {
        let messages = encode_change(entry, self.limit).unwrap();
        let last = messages.len() - 1;
        for (number, payload) in messages.into_iter().enumerate() {
            let offered = self.publish(payload);
            assert!(
                matches!((number == last, &offered), (true, Offered::Change(_)) | (false, Offered::Part)),
                "{offered:?}"
            );
        }
        invariants::check(self.image()).unwrap_or_else(|wrong| panic!("{wrong}, after {:?}", entry.records));
    }

    /// Puts whatever it is onto the stream.
    pub fn publish(&mut self, payload: Bytes) -> Offered {
        self.stream.push(payload.clone());
        self.history.offer(Version(self.stream.len() as u64), &payload).unwrap()
    }

    pub fn incarnation(&mut self) -> IncarnationId {
        self.incarnations += 1;
        IncarnationId(Uuid::from_u128(self.incarnations))
    }

    /// A new incarnation of the node, in the directory of its number.
    pub fn register(&mut self, id: u32) {
        let incarnation = self.incarnation();
        let wanted = Some(StorageId(id));
        let registered = register(self.image(), &BTreeSet::new(), &|_| false, wanted, directory(id), incarnation, None);
        self.commit(registered.unwrap().records);
    }

    pub fn fence<const N: usize>(&mut self, nodes: [u32; N]) {
        self.commit(node::fence(self.image(), &set(nodes)));
    }

    pub fn unfence<const N: usize>(&mut self, nodes: [u32; N]) {
        self.commit(node::unfence(self.image(), &set(nodes)));
    }

    /// A topic named `t<number>` with one partition on these nodes.
    pub fn topic<const N: usize>(&mut self, number: u32, nodes: [u32; N]) {
        self.topic_with(number, nodes, BTreeMap::new());
    }

    pub fn topic_with<const N: usize>(&mut self, number: u32, nodes: [u32; N], config: BTreeMap<String, String>) {
        let name = crate::types::TopicName::new(&format!("t{number}")).unwrap();
        let replicas = vec![ids(nodes).into()];
        self.commit(vec![Record::TopicCreated { topic_id: topic_id(number), name, config, replicas }]);
    }

    /// Sets a partition's in-sync replicas.
    pub fn shrink<const N: usize>(&mut self, topic: u32, isr: [u32; N]) {
        let change =
            PartitionChange { partition: 0, leader: None, isr: Some(ids(isr)), waits_for: None, recovering: None };
        self.commit(vec![Record::PartitionsChanged { topic_id: topic_id(topic), changes: vec![change] }]);
    }

    /// Leader and in-sync replicas of partition 0 of the topic.
    pub fn standing(&self, topic: u32) -> (Option<u32>, Vec<u32>) {
        let partition = self.image().partition(topic_id(topic), 0).unwrap();
        (partition.leader.map(|leader| leader.0), partition.isr().map(|node| node.0).collect())
    }

    pub fn leader_epoch(&self, topic: u32) -> u32 {
        self.image().partition(topic_id(topic), 0).unwrap().leader_epoch.0
    }

    pub fn epoch(&self, node: u32) -> NodeEpoch {
        self.image().storage[&StorageId(node)].epoch
    }
}
