//! Which layer wins, and what is said about a wrong setting.

use std::collections::BTreeSet;

use super::*;

fn sources(file: Option<&tempfile::NamedTempFile>, variables: &[(&str, &str)], flags: &[(&str, &str)]) -> Sources {
    let owned = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<Vec<_>>();
    Sources {
        file: file.map(|file| file.path().into()),
        variables: owned(variables).into_iter().collect(),
        flags: owned(flags),
        ..Sources::default()
    }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn faults(sources: &Sources) -> Vec<String> {
    match Settings::load(sources) {
        Err(SettingsError::Faulty(faults)) => faults.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_setting_is_in_the_table_and_has_its_default() {
    let settings = Settings::load(&Sources::default()).unwrap();
    let json = serde_json::to_value(&settings).unwrap();
    let mut keys = BTreeSet::new();
    for (key, value) in json.as_object().unwrap() {
        match value.as_object() {
            Some(group) => keys.extend(group.keys().map(|inner| format!("{key}.{inner}"))),
            None => _ = keys.insert(key.clone()),
        }
    }
    assert_eq!(keys, table().iter().map(|row| row.key.to_owned()).collect());
    for row in table() {
        let value = row.key.split('.').fold(&json, |value, key| &value[key]);
        if value.is_number() || value.is_boolean() {
            assert_eq!(value.to_string(), row.default, "{}", row.key);
        }
        let quantity = row.allowed.starts_with("a whole number");
        assert!(!quantity || (!row.unit.is_empty() && !row.meaning.is_empty()), "{} has a unit", row.key);
        assert!(row.unit != "ms" || row.key.ends_with("_ms"), "{} has its unit in its name", row.key);
    }
}

#[test]
fn flags_go_before_variables_before_the_file_before_defaults() {
    let file = file(
        "heartbeat_interval_ms = 101\nsession_timeout_ms = 1001\nlease_ms = 1001\n[push]\nmax_bytes = 2048\n\
         [nats]\nurl = ['nats://a', 'tls://b:1']\ntls_first = true\n",
    );
    let variables =
        [("DMQ_SESSION_TIMEOUT_MS", "1002"), ("DMQ_LEASE_MS", "1002"), ("DMQ_ADMIN_WAIT_MS", ""), ("HOME", "/")];
    let settings = Settings::load(&sources(Some(&file), &variables, &[("lease_ms", "1003")])).unwrap();
    assert_eq!(settings.heartbeat_interval_ms, 101);
    assert_eq!(settings.session_timeout_ms, 1002);
    assert_eq!(settings.lease_ms, 1003);
    assert_eq!(settings.admin_wait_ms, 5000, "an empty variable is none");
    assert_eq!(settings.push.max_bytes, 2048);
    assert_eq!(settings.nats.url, ["nats://a", "tls://b:1"].map(ServerUrl::new));
    assert!(settings.nats.tls_first);
    let path = file.path().to_str().unwrap();
    let by_variable =
        Settings::load(&sources(None, &[("DMQ_CONFIG", path), ("DMQ_NATS_URL", "a:1, b:2")], &[])).unwrap();
    assert_eq!(by_variable.lease_ms, 1001);
    assert_eq!(by_variable.nats.url, ["a:1", "b:2"].map(ServerUrl::new));
}

#[test]
fn what_is_unknown_is_named_with_the_nearest_known() {
    let file = file("lease = 1\n[push]\nretry_min = 2\n[extra]\n");
    let found = faults(&sources(Some(&file), &[("DMQ_HEARTBEAT_INTERVAL", "1")], &[("leasems", "1")]));
    let wanted = [
        ("unknown setting \"extra\"", ""),
        ("unknown setting \"lease\"", "lease_ms"),
        ("unknown setting \"push.retry_min\"", "push.retry_min_ms"),
        ("unknown setting \"DMQ_HEARTBEAT_INTERVAL\"", "DMQ_HEARTBEAT_INTERVAL_MS"),
        ("unknown setting \"leasems\"", "lease_ms"),
    ];
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
    for (fault, (what, nearest)) in found.iter().zip(wanted) {
        assert!(fault.contains(what) && fault.contains(nearest), "{fault}");
    }
    let links = [("DMQ_SERVICE_HOST", "10.0.0.1"), ("DMQ_PORT_4222_TCP", "tcp://10.0.0.1:4222")];
    assert!(Settings::load(&sources(None, &links, &[])).is_ok(), "Kubernetes sets these");
    let others =
        Sources { other_variables: vec!["DMQ_OUTPUT".into()], ..sources(None, &[("DMQ_OUTPUT", "json")], &[]) };
    assert!(Settings::load(&others).is_ok());
}

#[test]
fn every_wrong_value_is_named_with_its_layer_and_range() {
    let file = file("lease_ms = 999\nsession_timeout_ms = 3000.5\n[nats]\npassword = 7\nurl = 'http://a'\n");
    let variables = [
        ("DMQ_STREAM_REPLICAS", "-1"),
        ("DMQ_LOG_FORMAT", "xml"),
        ("DMQ_LOG_LEVEL", "dmq=loud"),
        ("DMQ_PREFIX", "a b"),
    ];
    let found = faults(&sources(Some(&file), &variables, &[("nats.tls_first", "maybe"), ("nats.inbox_prefix", "a.*")]));
    let path = file.path().to_str().unwrap();
    let wanted = [
        vec!["prefix = \"a b\" (DMQ_PREFIX)", "subject"],
        vec!["session_timeout_ms = \"3000.5\"", "whole number from 100"],
        vec!["lease_ms = \"999\"", path, "from 1000 to 600000"],
        vec!["stream_replicas = \"-1\" (DMQ_STREAM_REPLICAS)", "from 0 to 5"],
        vec!["log.level = \"dmq=loud\"", "trace"],
        vec!["log.format = \"xml\"", "text or json"],
        vec!["nats.url = \"http://a\"", "nats://host:4222"],
        vec!["nats.password = (secret)", "in quotes"],
        vec!["nats.tls_first = \"maybe\" (flag)", "true or false"],
        vec!["nats.inbox_prefix = \"a.*\"", "wildcards"],
    ];
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
    for (fault, words) in found.iter().zip(wanted) {
        assert!(words.iter().all(|word| fault.contains(word)), "{fault} lacks one of {words:?}");
    }
}

#[test]
fn settings_that_do_not_go_together_are_refused() {
    let flags = [
        ("heartbeat_interval_ms", "1001"),
        ("push.retry_min_ms", "5001"),
        ("nats.creds", "a"),
        ("nats.token", "b"),
        ("nats.cert", "c"),
        ("nats.system_password", "d"),
        ("nats.system_url", "nats://e"),
    ];
    let found = faults(&sources(None, &[], &flags));
    let wanted = [
        "set it to 3003 or more",
        "push.retry_min_ms = 5001 must not exceed push.retry_max_ms = 5000",
        "give one of nats.creds, nats.token",
        "nats.cert is given without nats.key",
        "nats.system_password is given without nats.system_user",
        "nats.system_url is given without",
    ];
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
    for (fault, words) in found.iter().zip(wanted) {
        assert!(fault.contains(words), "{fault} lacks {words}");
    }
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_named() {
    let missing = Sources { file: Some("/nowhere/dmq.toml".into()), ..Sources::default() };
    let error = Settings::load(&missing).unwrap_err().to_string();
    assert!(error.contains("/nowhere/dmq.toml") && error.contains("--config"), "{error}");
    let file = file("a = = 1");
    let error = Settings::load(&sources(Some(&file), &[], &[])).unwrap_err();
    assert!(matches!(&error, SettingsError::NotToml { message, .. } if message.contains("line 1")), "{error}");
}

#[test]
fn secrets_are_not_shown() {
    let settings =
        Settings::load(&sources(None, &[("DMQ_NATS_TOKEN", "hush"), ("DMQ_NATS_URL", "nats://me:hush@a:1")], &[]))
            .unwrap();
    assert_eq!(settings.nats.token.as_ref().map(Secret::reveal), Some("hush"));
    assert!(!format!("{settings:?}").contains("hush"));
    assert!(!serde_json::to_string(&settings).unwrap().contains("hush"));
}

#[test]
fn a_url_is_shown_without_its_login() {
    for (url, shown) in [("nats://u:p@a:1", "nats://(secret)@a:1"), ("t@a", "(secret)@a"), ("tls://a:1", "tls://a:1")] {
        assert_eq!(ServerUrl::new(url).to_string(), shown);
    }
}
