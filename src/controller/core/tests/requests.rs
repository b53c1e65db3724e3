//! What nodes and people ask for: many at once, more than fits an answer, and what nobody can read.

use super::*;

impl Rig {
    /// Node `id`, which leads them, asks for itself alone in these partitions of `orders`.
    fn alter(&mut self, id: u32, partitions: &[u32]) -> Token {
        let image = self.core.history().image().unwrap();
        let topic = image.topic("orders").unwrap();
        let member = IsrMember { storage: StorageId(id), node_epoch: image.storage[&StorageId(id)].epoch };
        let asked = |number: &u32| {
            let held = image.partition(topic.id, *number).unwrap();
            IsrRequest {
                topic_id: topic.id,
                partition: *number,
                leader_epoch: held.leader_epoch,
                partition_epoch: held.epoch,
                isr: vec![member],
                recovered: false,
                settles: false,
            }
        };
        let partitions = partitions.iter().map(asked).collect();
        let request = PartitionAlter { storage: StorageId(id), node_epoch: member.node_epoch, partitions };
        self.admin("partition", "alter", admin::encode(&request))
    }

    /// For each partition of the request, the epoch that it got or why it was refused.
    fn altered(&self, token: Token) -> Vec<Result<u32, Code>> {
        let answer = self.answer(token).expect("an answer").as_ref().unwrap();
        let answer: PartitionAltered = serde_json::from_slice(answer).unwrap();
        let outcome = |outcome: IsrOutcome| match (outcome.partition_epoch, outcome.error) {
            (Some(epoch), None) => Ok(epoch.0),
            (_, error) => Err(error.unwrap().code),
        };
        answer.partitions.into_iter().map(outcome).collect()
    }
}

#[test]
fn leaders_that_ask_at_the_same_time_get_one_change_and_each_an_answer_of_its_own() {
    let mut rig = Rig::with_nodes();
    let request = r#"{"name":"orders","partitions":4}"#;
    rig.admin("topic", "create", request.into());
    let led = |rig: &Rig, id| -> Vec<u32> {
        let topic = rig.core.history().image().unwrap().topic("orders").unwrap().clone();
        (0..4).filter(|number| topic.partitions[*number as usize].leader == Some(StorageId(id))).collect()
    };
    let (zeros, ones) = (led(&rig, 0), led(&rig, 1));
    assert_eq!((zeros.len(), ones.len()), (2, 2));
    let before = rig.stream.len();
    // While a change is under way all of them wait; a request of one node for several partitions is one change in any case.
    rig.stalled = true;
    rig.create("under way");
    let first = rig.alter(0, &zeros);
    let second = rig.alter(1, &ones);
    let again = rig.alter(0, &zeros[..1]);
    let foreign = rig.alter(1, &zeros[1..]);
    rig.stalled = false;
    let (attempt, expected, payload) = rig.stalled_append.take().expect("the change that is under way");
    let result = rig.append(expected, payload);
    rig.feed(Input::Appended { attempt, result });
    assert_eq!(rig.stream.len(), before + 2, "the change under way, and one for both");
    assert_eq!((rig.altered(first), rig.altered(second)), (vec![Ok(1), Ok(1)], vec![Ok(1), Ok(1)]));
    assert_eq!(rig.altered(again), [Err(Code::InvalidUpdateVersion)], "it asked again for what had changed by then");
    assert_eq!(rig.altered(foreign), [Err(Code::NotLeaderOrFollower)]);
}

#[test]
fn a_leader_that_settles_what_it_asked_for_gets_a_new_partition_epoch_in_the_history_for_the_same_set() {
    let mut rig = Rig::with_nodes();
    rig.admin("topic", "create", r#"{"name":"orders","replicationFactor":1}"#.into());
    let partition = |rig: &Rig| rig.core.history().image().unwrap().topic("orders").unwrap().partitions[0].clone();
    let held = partition(&rig);
    let leader = held.leader.unwrap();
    let node_epoch = rig.core.history().image().unwrap().storage[&leader].epoch;
    let topic_id = rig.core.history().image().unwrap().topic("orders").unwrap().id;
    let ask = |rig: &mut Rig, settles, partition_epoch| {
        let asked = IsrRequest {
            topic_id,
            partition: 0,
            leader_epoch: held.leader_epoch,
            partition_epoch,
            isr: vec![IsrMember { storage: leader, node_epoch }],
            recovered: false,
            settles,
        };
        let request = PartitionAlter { storage: leader, node_epoch, partitions: vec![asked] };
        let token = rig.admin("partition", "alter", admin::encode(&request));
        rig.altered(token)
    };
    let before = rig.stream.len();
    assert_eq!(ask(&mut rig, false, held.epoch), [Ok(0)]);
    assert_eq!(rig.stream.len(), before, "nothing changes");
    assert_eq!(ask(&mut rig, true, held.epoch), [Ok(1)]);
    assert_eq!(rig.stream.len(), before + 1);
    let after = partition(&rig);
    assert_eq!((after.epoch.0, after.leader_epoch, after.leader), (1, held.leader_epoch, held.leader));
    assert!(after.isr().eq(held.isr()));
    assert_eq!(ask(&mut rig, true, held.epoch), [Err(Code::InvalidUpdateVersion)], "a copy of the request");
}

impl Rig {
    fn registration(number: u32, storage: Option<u32>) -> NodeRegister {
        NodeRegister {
            cluster: None,
            directory: DirectoryId(Uuid::from_u128(5_000 + u128::from(number))),
            incarnation: IncarnationId(Uuid::from_u128(6_000 + u128::from(number))),
            storage: storage.map(StorageId),
            rack: None,
            preferred: None,
            node_epoch: None,
            position: Position::default(),
            connection: connection(10),
        }
    }

    fn registers(&mut self, number: u32, storage: Option<u32>) -> Token {
        self.admin("node", "register", admin::encode(&Self::registration(number, storage)))
    }

    /// The id and the version that a registration was answered with.
    fn registered(&self, token: Token) -> Result<(u32, u64), Code> {
        let answer = self.answer(token).expect("an answer").as_ref().map_err(|error| error.code)?;
        let answer: NodeRegistered = serde_json::from_slice(answer).unwrap();
        assert_eq!((answer.node_epoch.0, answer.pairing), (answer.version.0, Some(ControllerId(0))));
        Ok((answer.storage.0, answer.version.0))
    }
}

#[test]
fn nodes_that_register_at_the_same_time_get_one_change_and_each_an_answer_of_its_own() {
    let mut rig = Rig::active();
    rig.stalled = true;
    let first = rig.registers(0, None);
    let waiting: Vec<_> = (1..500).map(|number| rig.registers(number, None)).collect();
    let wants = rig.registers(500, Some(3));
    let again = rig.registers(7, None);
    let topic = rig.admin("topic", "create", r#"{"name":"orders"}"#.into());
    let before = rig.stream.len() as u64;
    rig.stalled = false;
    let (attempt, expected, payload) = rig.stalled_append.take().expect("the first one alone");
    let result = rig.append(expected, payload);
    rig.feed(Input::Appended { attempt, result });
    assert_eq!(rig.registered(first), Ok((0, before + 1)));
    assert_eq!(rig.answer(topic).unwrap().as_ref().unwrap_err().code, Code::InvalidReplicationFactor, "in turn");
    assert_eq!(rig.stream.len() as u64, before + 2, "one for the first, and one for all that waited behind it");
    assert_eq!(rig.registered(wants), Ok((3, before + 2)), "who wants a certain id has the first choice");
    let ids: Vec<_> = waiting.iter().map(|token| rig.registered(*token).unwrap().0).collect();
    assert_eq!(ids, (4..503).collect::<Vec<_>>());
    assert_eq!(rig.registered(again), Ok((ids[6], before + 2)), "the same incarnation, asked twice");
    assert_eq!(rig.core.history().image().unwrap().storage.len(), 501);
    // Asked once more, by a retry whose answer was lost, nothing changes.
    let retry = rig.registers(7, None);
    rig.pass(Duration::from_millis(60));
    assert_eq!(rig.stream.len() as u64, before + 2);
    let answer: NodeRegistered = serde_json::from_slice(rig.answer(retry).unwrap().as_ref().unwrap()).unwrap();
    assert_eq!((answer.storage.0, answer.node_epoch.0), (ids[6], before + 2));
}

#[test]
fn in_a_large_cluster_registrations_gather_for_a_moment_and_hold_nobody_else_up() {
    let mut rig = Rig::with_nodes();
    rig.stalled = true;
    rig.create("under way");
    for number in 0..400 {
        rig.registers(number, None);
    }
    rig.stalled = false;
    let (attempt, expected, payload) = rig.stalled_append.take().unwrap();
    let result = rig.append(expected, payload);
    rig.feed(Input::Appended { attempt, result });
    let before = rig.stream.len();
    let some: Vec<_> = (400..420).map(|number| rig.registers(number, None)).collect();
    assert!(some.iter().all(|token| rig.answer(*token).is_none()) && rig.stream.len() == before);
    let deadline = rig.core.next_deadline().unwrap();
    assert!(deadline <= rig.now.monotonic + Duration::from_millis(41));
    rig.create("orders");
    assert_eq!(rig.stream.len(), before + 1, "a topic does not wait for them");
    rig.pass(Duration::from_millis(60));
    assert_eq!(rig.stream.len(), before + 2);
    let one = rig.registered(some[0]).unwrap().1;
    assert!(some.iter().all(|token| rig.registered(*token).unwrap().1 == one));
}

#[test]
fn who_waits_to_register_is_told_when_the_controller_is_no_longer_active() {
    let mut rig = Rig::active();
    rig.stalled = true;
    rig.registers(0, None);
    let waits = rig.registers(1, None);
    rig.feed(Input::Disconnected);
    assert_eq!(rig.registered(waits), Err(Code::NotController));
}

impl Rig {
    /// All of a list, in however many answers of at most `limit` bytes, and how many these were.
    fn ask_all(
        &mut self,
        noun: &str,
        verb: &str,
        mut request: serde_json::Value,
        list: &str,
        limit: usize,
    ) -> (Vec<serde_json::Value>, usize) {
        let (mut all, mut answers) = (Vec::new(), 0);
        loop {
            let token = self.admin(noun, verb, request.to_string());
            let answer = self.answer(token).unwrap().clone().unwrap();
            assert!(answer.len() <= limit, "{} bytes", answer.len());
            let mut answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
            all.append(answer[list].as_array_mut().unwrap());
            answers += 1;
            match answer.get("next") {
                Some(next) => request["from"] = next.clone(),
                None => return (all, answers),
            }
        }
    }
}

#[test]
fn what_does_not_fit_one_answer_is_answered_in_several_each_of_which_says_where_to_go_on() {
    const LIMIT: usize = 2_000;
    let mut rig = Rig::active();
    (0..20).for_each(|id| rig.register(id));
    rig.pass(Duration::from_millis(100));
    (0..20).for_each(|id| drop(rig.heartbeat(id, 10 + u64::from(id), 1)));
    rig.pass(Duration::from_millis(100));
    rig.admin("topic", "create", r#"{"name":"orders","partitions":50}"#.into());
    rig.feed(Input::MessageLimit(LIMIT));
    let mut ask = |noun: &str, verb: &str, request: serde_json::Value, list: &str, id: &str| {
        let (all, answers) = rig.ask_all(noun, verb, request, list, LIMIT);
        (all.iter().map(|one| one[id].as_u64().unwrap()).collect::<Vec<_>>(), answers)
    };
    let (partitions, answers) =
        ask("topic", "describe", serde_json::json!({ "name": "orders" }), "partitions", "partition");
    assert_eq!(partitions, (0..50).collect::<Vec<_>>());
    assert!(answers > 3, "{answers} answers");
    for (noun, verb, list) in [("node", "list", "nodes"), ("cluster", "status", "storageNodes")] {
        let (nodes, answers) = ask(noun, verb, serde_json::json!({}), list, "id");
        assert_eq!(nodes, (0..20).collect::<Vec<_>>());
        assert!(answers > 3, "{answers} answers");
    }
}

#[test]
fn a_node_on_an_older_copy_of_its_directory_leaves_the_in_sync_replicas_of_which_others_remain() {
    let mut rig = Rig::with_nodes();
    rig.create("orders");
    let registration = |rig: &Rig, incarnation: u128, node_epoch| NodeRegister {
        cluster: None,
        directory: rig.node(1).directory.unwrap(),
        incarnation: IncarnationId(Uuid::from_u128(incarnation)),
        storage: Some(StorageId(1)),
        rack: None,
        preferred: None,
        node_epoch: Some(node_epoch),
        position: rig.core.history().position(),
        connection: connection(11),
    };
    let knows = rig.node(1).epoch;
    rig.pass(Duration::from_secs(60));
    let isr = |rig: &Rig| {
        let image = rig.core.history().image().unwrap();
        image.topic("orders").unwrap().partitions.first().unwrap().isr().collect::<Vec<_>>()
    };
    let before = isr(&rig);
    assert!(before.len() > 1 && before.contains(&StorageId(1)), "all were fenced at once: {before:?}");
    let request = registration(&rig, 900, NodeEpoch(knows.0));
    let token = rig.admin("node", "register", admin::encode(&request));
    assert!(rig.answer(token).unwrap().is_ok());
    assert_eq!(isr(&rig), before, "it has what it had");
    rig.pass(Duration::from_secs(60));
    let request = registration(&rig, 901, NodeEpoch(knows.0 - 1));
    let token = rig.admin("node", "register", admin::encode(&request));
    assert!(rig.answer(token).unwrap().is_ok());
    let others: Vec<_> = before.into_iter().filter(|node| *node != StorageId(1)).collect();
    assert_eq!(isr(&rig), others, "whatever it has applied meanwhile");
}

#[test]
fn topics_and_metadata_that_do_not_fit_one_answer_are_answered_in_several() {
    const LIMIT: usize = 20_000;
    let mut rig = Rig::active();
    (0..3).for_each(|id| rig.register(id));
    rig.pass(Duration::from_millis(100));
    (0..3).for_each(|id| drop(rig.heartbeat(id, 10 + u64::from(id), 1)));
    rig.pass(Duration::from_millis(100));
    let long = "t".repeat(240);
    let names: Vec<String> = (100..250).map(|number| format!("{long}{number}")).collect();
    for name in &names {
        rig.admin("topic", "create", format!(r#"{{"name":"{name}","partitions":2}}"#));
    }
    rig.admin("topic", "create", r#"{"name":"wide","partitions":2000}"#.into());
    rig.feed(Input::MessageLimit(LIMIT));
    let (topics, answers) = rig.ask_all("topic", "list", serde_json::json!({}), "topics", LIMIT);
    let listed: Vec<_> = topics.iter().map(|topic| topic["name"].as_str().unwrap()).collect();
    assert_eq!(listed, names.iter().map(String::as_str).chain(["wide"]).collect::<Vec<_>>());
    assert!(answers > 2, "{answers} answers");
    let (lines, answers) = rig.ask_all("metadata", "show", serde_json::json!({}), "lines", LIMIT);
    assert!(answers > 2, "{answers} answers");
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let (image, position) = crate::metadata::read_snapshot(&mut text.as_bytes()).unwrap();
    assert_eq!((&image, position), (rig.core.image().unwrap(), rig.core.history.position()));
    let token = rig.admin("metadata", "show", r#"{"from":18446744073709551615}"#.into());
    let beyond: serde_json::Value = serde_json::from_slice(&rig.answer(token).unwrap().clone().unwrap()).unwrap();
    assert_eq!(beyond["lines"], serde_json::json!([]));
}

#[test]
fn bytes_from_outside_change_nothing_and_are_answered() {
    let mut rig = Rig::with_nodes();
    let before = rig.core.history().position();
    let deep = Bytes::from("[".repeat(100_000));
    for (n, payload) in
        [Bytes::from_static(b"\xff\xfe"), Bytes::from_static(b"{}"), Bytes::new(), deep].into_iter().enumerate()
    {
        let token = Token(9000 + n as u64);
        let received_at = rig.now.monotonic;
        rig.feed(Input::Heartbeat { storage: StorageId(0), received_at, payload: payload.clone(), token });
        assert!(rig.answer(token).unwrap().is_err());
        rig.feed(Input::Ack { storage: StorageId(0), payload: payload.clone() });
        rig.feed(Input::ControllerHeartbeat { payload: payload.clone() });
        let token = Token(9100 + n as u64);
        rig.feed(Input::Fetch { payload, token });
        assert!(rig.answer(token).unwrap().is_err());
    }
    let token = rig.admin("topic", "create", r#"{"name":"x","partitons":1}"#.into());
    let error = rig.answer(token).unwrap().as_ref().unwrap_err();
    assert_eq!(error.code, Code::InvalidRequest);
    assert!(error.message.contains("partitons"), "{error}");
    assert_eq!(rig.core.history().position(), before);
}

#[test]
fn what_many_nodes_ask_for_at_once_is_one_change() {
    const NODES: u32 = 200;
    let mut rig = Rig::active();
    let begin = rig.stream.len();
    (0..NODES).for_each(|id| rig.register(id));
    rig.pass(Duration::from_millis(100));
    let before = rig.stream.len();
    assert!(before - begin < NODES as usize / 4, "{} changes to register them", before - begin);
    for id in 0..NODES {
        rig.heartbeat(id, 10 + u64::from(id), 1);
    }
    rig.pass(Duration::from_millis(100));
    assert!((0..NODES).all(|id| rig.node(id).state == NodeState::Active));
    let changes = rig.stream.len() - before;
    assert!(changes < 10, "{changes} changes for {NODES} nodes");
}
