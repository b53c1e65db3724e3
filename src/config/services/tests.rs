use super::*;

fn faults(text: &str) -> Vec<String> {
    Services::parse(text).expect_err("the file is faulty").iter().map(ToString::to_string).collect()
}

#[test]
fn the_shipped_file_is_sound_and_writes_back_to_itself() {
    let text = include_str!("../../../services.json");
    let services = Services::parse(text).unwrap();
    assert_eq!(services.controller_ids().count(), 3);
    assert_eq!(services.storage_ids().count(), 3);
    assert_eq!(services.pairing(StorageId(1)), Some(ControllerId(1)));
    assert_eq!(Services::parse(&services.to_json()).unwrap().to_json(), services.to_json());
}

#[test]
fn a_service_that_the_file_does_not_name_has_the_subjects_of_its_id() {
    let services = Services::parse(r#"{"metadataServices": [], "storageServices": []}"#).unwrap();
    assert_eq!(services.storage(StorageId(7)).push, "dmq.metadata.push.7");
    assert_eq!(services.storage(StorageId(7)).heartbeat, "dmq.heartbeat.7");
    assert_eq!(services.storage(StorageId(7)).ack, "dmq.metadata.ack.7");
    assert_eq!(services.controller(ControllerId(2)).fetch, "dmq.metadata.fetch.2");
    assert_eq!(services.heartbeat_of("dmq.heartbeat.7"), Some(StorageId(7)));
    assert_eq!(services.heartbeat_of("dmq.heartbeat.x"), None);
    assert_eq!(services.admin_subject("topic", "list"), "dmq.admin.topic.list");
}

#[test]
fn both_spellings_of_a_pairing_are_read() {
    for paired in [r#""pairedStorageServiceId": 4"#, r#""pairedStorageServiceIds": [4]"#] {
        let text = format!(
            r#"{{"metadataServices": [{{"id": 1, {paired}}}], "storageServices": [{{"id": 4, "pairedMetadataServiceId": 1}}]}}"#
        );
        assert_eq!(Services::parse(&text).unwrap().pairing(StorageId(4)), Some(ControllerId(1)), "{paired}");
    }
}

#[test]
fn every_fault_is_named_with_its_path() {
    let bad = [
        (r#"{"metadataServices": [], "storageService": []}"#, "storageService"),
        (r#"{"metadataServices": [{"id": 0}, {"id": 0}], "storageServices": []}"#, "metadataServices[1].id"),
        (r#"{"metadataServices": [{"id": -1}], "storageServices": []}"#, "metadataServices[0].id"),
        (r#"{"metadataServices": [{"id": 1.5}], "storageServices": []}"#, "metadataServices[0].id"),
        (
            r#"{"metadataServices": [{"id": 0, "subjects": {"fetch": "dmq.*"}}], "storageServices": []}"#,
            "metadataServices[0].subjects.fetch",
        ),
        (
            r#"{"metadataServices": [], "storageServices": [{"id": 0, "subjects": {"push": "$SYS.x"}}]}"#,
            "storageServices[0].subjects.push",
        ),
        (
            r#"{"metadataServices": [], "storageServices": [{"id": 0, "subjects": {"push": "a b"}}]}"#,
            "storageServices[0].subjects.push",
        ),
        (
            r#"{"metadataServices": [], "storageServices": [{"id": 0, "subjects": {"push": "x.y", "ack": "x.y"}}]}"#,
            "storageServices[0].subjects",
        ),
        (
            r#"{"metadataServices": [{"id": 0, "pairedStorageServiceIds": [0]}, {"id": 1}],
                "storageServices": [{"id": 0, "pairedMetadataServiceId": 1}]}"#,
            "aired",
        ),
        (
            r#"{"metadataServices": [{"id": 0, "url": "http://localhost:8080"}], "storageServices": []}"#,
            "metadataServices[0].url",
        ),
        ("{", "line 1"),
    ];
    for (text, path) in bad {
        let found = faults(text);
        assert!(found.iter().any(|fault| fault.contains(path)), "{text}: {found:?}");
    }
    let long = format!(
        r#"{{"metadataServices": [], "storageServices": [{{"id": 0, "subjects": {{"push": "{}"}}}}]}}"#,
        "a".repeat(256)
    );
    assert!(faults(&long)[0].contains("storageServices[0].subjects.push"));
}

#[test]
fn a_file_from_the_days_of_urls_is_told_which_subject_to_write() {
    let found = faults(r#"{"metadataServices": [], "storageServices": [{"id": 3, "url": "http://node-3:9000"}]}"#);
    assert!(found[0].contains("subjects") && found[0].contains("dmq.heartbeat.3"), "{found:?}");
}

#[test]
fn all_faults_are_found_at_once() {
    let found = faults(r#"{"metadataServices": [{"id": -1}, {"id": "x"}], "storageServices": [{"id": 0, "more": 1}]}"#);
    assert!(found.len() >= 3, "{found:?}");
}
