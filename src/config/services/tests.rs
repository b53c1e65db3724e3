//! What a services.json means, and what is said about a wrong one.

use proptest::prelude::*;

use super::*;

fn faults(text: &str) -> Vec<(String, String)> {
    let faults = Services::parse(text).expect_err(text);
    faults.into_iter().map(|fault| (fault.path.clone(), format!("{}; {}", fault.problem, fault.remedy))).collect()
}

/// The file has exactly one fault, at `path`, whose message holds every one of `words`.
#[track_caller]
fn one_fault(text: &str, path: &str, words: &[&str]) {
    let found = faults(text);
    assert_eq!(found.len(), 1, "{text}: {found:#?}");
    assert_eq!(found[0].0, path, "{text}: {found:#?}");
    for word in words {
        assert!(found[0].1.contains(word), "{word:?} is not in {:?}", found[0].1);
    }
}

const PAIR: &str = r#"{
  "metadataServices": [ { "id": 0, "subjects": { "fetch": "dmq.metadata.fetch.0" }, "pairedStorageServiceIds": [0] } ],
  "storageServices":  [ { "id": 0, "subjects": { "heartbeat": "dmq.heartbeat.0", "push": "dmq.metadata.push.0" }, "pairedMetadataServiceId": 0 } ]
}"#;

const CUSTOM: &str = r#"{
  "prefix": "eu.dmq",
  "subjects": { "log": "history", "admin": "eu.ops" },
  "metadataServices": [ { "id": 1, "subjects": { "fetch": "m.fetch", "heartbeat": "m.beat" }, "pairedStorageServiceId": 7 } ],
  "storageServices": [
    { "id": 7, "rack": "a", "subjects": { "heartbeat": "s.beat", "ack": "eu.dmq.metadata.ack.seven" } },
    { "id": 8 }
  ]
}"#;

#[test]
fn without_subjects_they_follow_prefix_and_id() {
    let services = Services::parse(PAIR).unwrap();
    assert_eq!(services, Services::default().with_services([ControllerId(0)], [StorageId(0)]));
    assert_eq!(services.pairing(StorageId(0)), Some(ControllerId(0)));
    assert_eq!(
        services.storage(StorageId(12)),
        StorageSubjects {
            heartbeat: "dmq.heartbeat.12".into(),
            push: "dmq.metadata.push.12".into(),
            ack: "dmq.metadata.ack.12".into(),
            replica: "dmq.replica.12".into(),
        }
    );
    assert_eq!(
        services.controller(ControllerId(3)),
        ControllerSubjects { fetch: "dmq.metadata.fetch.3".into(), heartbeat: "dmq.metadata.heartbeat.3".into() }
    );
    assert_eq!(services.log_subject(), "dmq.metadata.log");
    assert_eq!(services.admin_subject("topic", "create"), "dmq.admin.topic.create");
    assert_eq!(services.heartbeats_wildcard(), ["dmq.heartbeat.*"]);
}

#[test]
fn own_subjects_are_heard_beside_the_wildcards_and_lead_back_to_their_service() {
    let services = Services::parse(CUSTOM).unwrap();
    assert_eq!(services.heartbeats_wildcard(), ["eu.dmq.heartbeat.*", "s.beat"]);
    assert_eq!(services.controller_heartbeats_wildcard(), ["eu.dmq.metadata.heartbeat.*", "m.beat"]);
    assert_eq!(services.acks_wildcard(), ["eu.dmq.metadata.ack.*"], "the wildcard hears it already");
    assert_eq!(services.heartbeat_of("s.beat"), Some(StorageId(7)));
    assert_eq!(services.heartbeat_of("eu.dmq.heartbeat.7"), None, "it has another subject");
    assert_eq!(services.heartbeat_of("eu.dmq.heartbeat.9"), Some(StorageId(9)), "not in the file, and may join");
    assert_eq!(services.ack_of("eu.dmq.metadata.ack.seven"), Some(StorageId(7)));
    assert_eq!(services.controller_heartbeat_of("m.beat"), Some(ControllerId(1)));
    assert_eq!(services.owner("m.fetch"), Some(Owner::Fetch(ControllerId(1))));
    for stranger in ["eu.dmq.heartbeat.07", "eu.dmq.heartbeat.+7", "eu.dmq.heartbeat.", "dmq.heartbeat.9", "eu.dmq"] {
        assert_eq!(services.owner(stranger), None, "{stranger}");
    }
    assert_eq!(services.log_subject(), "history");
    assert_eq!(services.admin_subject("topic", "list"), "eu.ops.topic.list");
    assert_eq!(services.rack(StorageId(7)), Some("a"));
    assert_eq!(services.pairing(StorageId(7)), Some(ControllerId(1)), "one side is enough");
    assert_eq!(services.pairing(StorageId(8)), None);
}

#[test]
fn a_data_subject_reads_back() {
    let services = Services::default();
    let topic = TopicName::new("orders.eu").unwrap();
    for (target, subject) in [
        (DataTarget::Partition(0), "dmq.data.produce.0.orders.eu"),
        (DataTarget::Auto, "dmq.data.produce.auto.orders.eu"),
    ] {
        assert_eq!(services.data_subject("produce", target, &topic), subject);
        assert_eq!(services.read_data_subject(subject), Some(("produce", target, topic.clone())));
    }
    assert_eq!(services.data_auto_wildcard("produce"), "dmq.data.produce.auto.>");
    for wrong in ["dmq.data.produce.0", "dmq.data.produce.00.a", "dmq.data.produce.-1.a", "dmq.dataset.a.0.b"] {
        assert_eq!(services.read_data_subject(wrong), None, "{wrong}");
    }
}

#[test]
fn what_is_written_reads_back_the_same() {
    for text in [PAIR, CUSTOM, r#"{"metadataServices": [], "storageServices": []}"#] {
        let services = Services::parse(text).unwrap();
        assert_eq!(Services::parse(&services.to_json()), Ok(services));
    }
}

#[test]
fn storage_services_are_spread_evenly() {
    let services = Services::default().with_services((0..3).map(ControllerId), (0..5).map(StorageId));
    let counts: Vec<_> = services.controller_ids().map(|id| services.paired_with(id).count()).collect();
    assert_eq!(counts, [2, 2, 1]);
    assert_eq!(Services::default().with_services([], [StorageId(0)]).pairing(StorageId(0)), None);
}

#[test]
fn what_is_no_json_is_shown_by_line_and_column() {
    one_fault("{\n  \"storageServices\": [,]\n}", "line 2, column 23", &["not valid JSON"]);
    one_fault("", "line 1, column 0", &["EOF"]);
    one_fault(&"[".repeat(100_000), "line 1, column 128", &["recursion"]);
    assert!(Services::parse(&format!("\u{feff}{PAIR}")).is_ok());
}

#[test]
fn a_file_that_says_nothing_is_taken_for_the_wrong_one() {
    one_fault("{}", "(the file)", &["empty", "metadataServices"]);
    one_fault("[]", "(the file)", &["expected an object, found a list"]);
    assert!(Services::parse(r#"{"prefix": "a"}"#).is_ok());
}

#[test]
fn unknown_keys_are_shown_with_the_nearest_known() {
    one_fault(r#"{"storage_services": []}"#, "storage_services", &["perhaps \"storageServices\""]);
    one_fault(r#"{"storageServices": [{"id": 0, "rak": "a"}]}"#, "storageServices[0].rak", &["perhaps \"rack\""]);
    one_fault(
        r#"{"metadataServices": [{"id": 0, "subjects": {"psh e": "a"}}]}"#,
        "metadataServices[0].subjects[\"psh e\"]",
        &["\"fetch\", \"heartbeat\""],
    );
    one_fault(r#"{"storageServices": [{"id": 0, "id": 1}]}"#, "storageServices[0].id", &["twice"]);
}

#[test]
fn files_from_the_days_of_urls_are_told_the_subject() {
    let remedy = r#""subjects": {"push": "dmq.metadata.push.4"}"#;
    let text = r#"{"storageServices": [{"id": 4, "url": "http://localhost:8080"}]}"#;
    one_fault(text, "storageServices[0].url", &[remedy, "no URLs"]);
    let text = r#"{"storageServices": [{"id": 4, "heartbeatUrl": "x"}]}"#;
    one_fault(text, "storageServices[0].heartbeatUrl", &[r#"{"heartbeat": "dmq.heartbeat.4"}"#]);
    let text = r#"{"metadataServices": [{"id": 1, "url": "http://localhost:8080"}]}"#;
    one_fault(text, "metadataServices[0].url", &[r#""subjects": {"fetch": "dmq.metadata.fetch.1"}"#]);
    let text = r#"{"storageServices": [{"id": 4, "subjects": {"push": "http://localhost/push"}}]}"#;
    one_fault(text, "storageServices[0].subjects.push", &["is a URL", "\"dmq.metadata.push.4\""]);
}

#[test]
fn numbers_that_are_no_ids_are_refused() {
    for (id, words) in [
        ("-1", "whole number from 0 to 2147483647"),
        ("1.5", "1.5 is no id"),
        ("2147483648", "2147483648 is no id"),
        ("1e300", "is no id"),
        ("\"3\"", "write 3 without quotes"),
        ("null", "write a whole number"),
        ("[0]", "a list is no id"),
    ] {
        one_fault(&format!(r#"{{"storageServices": [{{"id": {id}}}]}}"#), "storageServices[0].id", &[words]);
    }
    one_fault(r#"{"storageServices": [{}]}"#, "storageServices[0]", &["no \"id\""]);
    assert!(Services::parse(r#"{"storageServices": [{"id": 2147483647}]}"#).is_ok());
}

#[test]
fn subjects_that_nats_would_refuse_are_refused() {
    for subject in ["", "a b", "a..b", ".a", "a.", "$SYS.a", "a.*", "a.>", "a\\tb", &"a".repeat(256)] {
        let text = format!(r#"{{"storageServices": [{{"id": 1, "subjects": {{"push": "{subject}"}}}}]}}"#);
        one_fault(&text, "storageServices[0].subjects.push", &["write \"dmq.metadata.push.1\""]);
        one_fault(&format!(r#"{{"prefix": "{subject}"}}"#), "prefix", &["\"dmq\""]);
    }
    one_fault(&format!(r#"{{"prefix": "{}"}}"#, "a".repeat(MAX_PREFIX_BYTES + 1)), "prefix", &["at most 225 bytes"]);
    let services = Services::default_with(&"a".repeat(MAX_PREFIX_BYTES)).unwrap();
    assert_eq!(services.controller(ControllerId(u32::MAX)).heartbeat.len(), MAX_SUBJECT_BYTES);
}

#[test]
fn nobody_shares_a_subject() {
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"metadataServices": [{{"id": 0, "subjects": {a}}}], "storageServices": [{{"id": 0, "subjects": {b}}}]}}"#
        )
    };
    let text = two(r#"{"fetch": "same"}"#, r#"{"push": "same"}"#);
    one_fault(
        &text,
        "storageServices[0].subjects.push",
        &["already the subject at metadataServices[0].subjects.fetch"],
    );
    let text = two("{}", r#"{"push": "same", "ack": "same"}"#);
    one_fault(&text, "storageServices[0].subjects.ack", &["already the subject at storageServices[0].subjects.push"]);
    for (subject, words) in [
        ("dmq.metadata.push.1", "default subject of storage service 1"),
        ("dmq.heartbeat.x", "default \"heartbeat\" subjects"),
        ("dmq.metadata.log", "metadata log"),
        ("dmq.admin", "admin commands"),
        ("dmq.admin.topic.create", "admin commands"),
        ("dmq.data.produce.0.orders", "data subjects"),
    ] {
        let text = two("{}", &format!(r#"{{"push": "{subject}"}}"#));
        one_fault(&text, "storageServices[0].subjects.push", &[words, "write \"dmq.metadata.push.0\""]);
    }
    one_fault(r#"{"subjects": {"admin": "dmq.metadata"}}"#, "subjects.admin", &["meets"]);
    one_fault(r#"{"subjects": {"log": "dmq.data.x"}}"#, "subjects.log", &["the data subjects"]);
    one_fault(r#"{"subjects": {"log": "dmq.heartbeat.0"}}"#, "subjects.log", &["heartbeat"]);
}

#[test]
fn ids_and_pairings_agree() {
    let file =
        |metadata: &str, storage: &str| format!(r#"{{"metadataServices": {metadata}, "storageServices": {storage}}}"#);
    let text = file("[]", r#"[{"id": 0}, {"id": 0}]"#);
    one_fault(&text, "storageServices[1].id", &["storage service 0 is already at storageServices[0]", "such as 1"]);
    let text = file(r#"[{"id": 0, "pairedStorageServiceIds": [5]}]"#, "[]");
    one_fault(&text, "metadataServices[0].pairedStorageServiceIds[0]", &["no storage service 5"]);
    let text = file("[]", r#"[{"id": 0, "pairedMetadataServiceId": 5}]"#);
    one_fault(&text, "storageServices[0].pairedMetadataServiceId", &["no metadata service 5"]);
    let text =
        file(r#"[{"id": 0, "pairedStorageServiceId": 0}, {"id": 1}]"#, r#"[{"id": 0, "pairedMetadataServiceId": 1}]"#);
    one_fault(&text, "storageServices[0].pairedMetadataServiceId", &["pairs storage service 0 with 0"]);
    let text = file(r#"[{"id": 0, "pairedStorageServiceIds": []}]"#, r#"[{"id": 0, "pairedMetadataServiceId": 0}]"#);
    one_fault(&text, "storageServices[0].pairedMetadataServiceId", &["does not list storage service 0"]);
    let both = r#"[{"id": 0, "pairedStorageServiceId": 0}, {"id": 1, "pairedStorageServiceIds": [0]}]"#;
    let text = file(both, r#"[{"id": 0}]"#);
    one_fault(&text, "metadataServices[1].pairedStorageServiceIds[0]", &["already paired with metadata service 0"]);
    let text = file(r#"[{"id": 0, "pairedStorageServiceIds": ["0"]}]"#, r#"[{"id": 0, "pairedMetadataServiceId": 0}]"#);
    one_fault(&text, "metadataServices[0].pairedStorageServiceIds[0]", &["without quotes"]);
    assert!(Services::parse(&file(r#"[{"id": 0}]"#, r#"[{"id": 0, "pairedMetadataServiceId": 0}]"#)).is_ok());
}

#[test]
fn every_fault_is_reported_at_once() {
    let text = r#"{
        "prefix": "$x",
        "extra": 1,
        "metadataServices": [{"id": -1, "pairedStorageServiceIds": {}}, 7],
        "storageServices": [{"id": 0, "subjects": {"push": "a.*", "ack": "q"}, "rack": ""}, {"id": 0, "subjects": {"ack": "q"}}]
    }"#;
    let paths: Vec<_> = faults(text).into_iter().map(|(path, _)| path).collect();
    assert_eq!(
        paths,
        [
            "extra",
            "prefix",
            "metadataServices[0].id",
            "metadataServices[0].pairedStorageServiceIds",
            "metadataServices[1]",
            "storageServices[0].rack",
            "storageServices[0].subjects.push",
            "storageServices[1].id",
            "storageServices[1].subjects.ack",
        ]
    );
}

/// JSON that is near to a services.json, and some that is not.
fn json_like() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        (0u32..4).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z.*>$ ]{0,8}".prop_map(Value::from),
        prop_oneof![Just("dmq.heartbeat.1"), Just("dmq.metadata.push.0"), Just("http://a")].prop_map(Value::from),
    ];
    let keys = [FILE_KEYS, SERVICE_KEYS].concat();
    leaf.prop_recursive(5, 48, 6, move |inner| {
        let key = prop_oneof![4 => proptest::sample::select(keys.clone()).prop_map(str::to_owned), 1 => "[a-zU ]{0,6}"];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..6)
                .prop_map(|fields| fields.into_iter().collect::<Map<_, _>>().into()),
        ]
    })
}

const FILE_KEYS: &[&str] = &["metadataServices", "storageServices", "prefix", "subjects"];
const SERVICE_KEYS: &[&str] = &[
    "id",
    "push",
    "ack",
    "fetch",
    "heartbeat",
    "rack",
    "pairedStorageServiceIds",
    "pairedMetadataServiceId",
    "subjects",
];

proptest! {
    #[test]
    fn no_text_brings_it_down_and_what_it_takes_reads_back(value in json_like()) {
        match Services::parse(&value.to_string()) {
            Ok(services) => prop_assert_eq!(Services::parse(&services.to_json()), Ok(services)),
            Err(faults) => prop_assert!(faults.iter().all(|fault| !fault.path.is_empty() && !fault.remedy.is_empty())),
        }
    }

    #[test]
    fn every_services_subject_is_heard_and_leads_back_to_it(ids in prop::collection::btree_set(0u32..20, 0..6), odd in 0u32..3) {
        let storages: Vec<_> = ids.iter().map(|id| match (id + odd) % 3 {
            0 => json!({"id": id}),
            1 => json!({"id": id, "subjects": {"heartbeat": format!("own.{id}")}}),
            _ => json!({"id": id, "subjects": {"heartbeat": format!("dmq.heartbeat.n{id}")}}),
        }).collect();
        let services = Services::parse(&json!({"storageServices": storages}).to_string()).unwrap();
        for id in (0..22).map(StorageId) {
            let subject = services.storage(id).heartbeat;
            prop_assert_eq!(services.heartbeat_of(&subject), Some(id));
            let heard = services.heartbeats_wildcard().iter().filter(|wildcard| subject::meet(wildcard, &subject)).count();
            prop_assert_eq!(heard, 1);
        }
    }
}
