//! The layers, the words about what is wrong, and the table.

use super::*;

fn pairs(said: &[(&str, &str)]) -> Vec<(String, String)> {
    said.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn load(file: Option<&str>, env: &[(&str, &str)], overrides: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dmq.toml");
    if let Some(text) = file {
        std::fs::write(&path, text).unwrap();
    }
    Settings::load(file.map(|_| path.as_path()), pairs(env).into_iter(), &pairs(overrides))
}

fn fault(file: Option<&str>, env: &[(&str, &str)], overrides: &[(&str, &str)]) -> String {
    load(file, env, overrides).unwrap_err().to_string()
}

#[test]
fn each_layer_wins_over_those_below() {
    let file = "lease_ms = 4000\nadmin_wait_ms = 1\nsession_timeout_ms = 9_000\n[nats]\nurl = 'nats://file:1'\nuser = 'f'\npassword = 'p'";
    let env = [("DMQ_LEASE_MS", "5000"), ("DMQ_NATS_URL", "nats://env:1"), ("DMQ_ADMIN_WAIT_MS", "2"), ("PATH", "/")];
    let settings = load(Some(file), &env, &[("admin_wait_ms", "3"), ("nats.inbox_prefix", "_IN.x")]).unwrap();
    assert_eq!(settings.session_timeout_ms, 9000);
    assert_eq!(settings.lease_ms, 5000);
    assert_eq!(settings.admin_wait_ms, 3);
    assert_eq!(settings.heartbeat_interval_ms, 500);
    assert_eq!(settings.nats.url.as_deref(), Some("nats://env:1"));
    assert_eq!(settings.nats.user.as_deref(), Some("f"));
    assert_eq!(settings.nats.inbox_prefix.as_deref(), Some("_IN.x"));
    assert!(!format!("{settings:?}").contains("\"p\""));
}

#[test]
fn an_unknown_word_names_the_nearest_known_one() {
    let said = fault(
        Some("heartbeat_interval = 5\n[nats]\nurls = 'x'"),
        &[("DMQ_SESSION_TIMEOUT", "5"), ("DMQ_NATS_SYSTEM_USERS", "x")],
        &[("leasems", "5")],
    );
    for (word, meant) in [
        ("setting heartbeat_interval ", "heartbeat_interval_ms?"),
        ("nats.urls", "nats.url?"),
        ("DMQ_SESSION_TIMEOUT ", "DMQ_SESSION_TIMEOUT_MS?"),
        ("DMQ_NATS_SYSTEM_USERS", "DMQ_NATS_SYSTEM_USER?"),
        ("leasems", "lease_ms?"),
    ] {
        assert!(said.lines().any(|line| line.contains(word) && line.contains(meant)), "{word}: {said}");
    }
}

#[test]
fn variables_that_are_no_settings_or_empty_are_left_alone() {
    let env = [
        ("DMQ_CONFIG", "x"),
        ("DMQ_TEST_SEED", "x"),
        ("DMQ_NATS_PORT", "x"),
        ("DMQ_SERVICES_DIR", "x"),
        ("DMQ_NATS_SERVER", "x"),
        ("DMQ_NATS_CREDS", ""),
    ];
    assert_eq!(load(None, &env, &[]).unwrap(), Settings::default());
    let system = load(None, &[("DMQ_NATS_SYSTEM_USER", "s"), ("DMQ_NATS_SYSTEM_PASSWORD", "123")], &[]).unwrap();
    assert_eq!(system.nats.system_password.as_deref(), Some("123"));
}

#[test]
fn all_faults_are_told_at_once_with_names_and_ranges() {
    let said = fault(None, &[("DMQ_LEASE_MS", "999"), ("DMQ_LOG_FORMAT", "xml")], &[("push_max_bytes", "many")]);
    assert!(said.contains("DMQ_LEASE_MS must be a whole number between 1000 and 60000"), "{said}");
    assert!(said.contains("DMQ_LOG_FORMAT must be text or json"), "{said}");
    assert!(said.contains("push_max_bytes in the command line"), "{said}");

    let file = "heartbeat_interval_ms = 2000\npush_retry_min_ms = 6000\nlog_level = 'loud'\nstream_replicas = 2\n[nats]\ncert = 'c'\ntoken = 't'\nuser = 'u'\ninbox_prefix = 'a.>'";
    let said = fault(Some(file), &[], &[]);
    for part in [
        "6000 or more",
        "push_retry_min_ms",
        "log_level",
        "stream_replicas",
        "nats.cert and nats.key",
        "nats.user and nats.token exclude",
        "nats.user and nats.password go together",
        "inbox_prefix",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_named() {
    let missing = Settings::load(Some(Path::new("/nowhere/dmq.toml")), std::iter::empty(), &[]).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/dmq.toml"));
    assert!(fault(Some("lease_ms = = 5"), &[], &[]).contains("dmq.toml"));
    assert!(fault(Some("nats = 5"), &[], &[]).contains("no setting nats"));
}

#[test]
fn the_table_lists_every_setting_with_its_default() {
    // A struct that serde fills names all its fields when it refuses one.
    let fields = |refused: String| -> Vec<String> {
        let (_, listed) = refused.split_once("expected one of ").unwrap();
        listed.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let own = fields(serde_json::from_str::<Settings>(r#"{"?": 1}"#).unwrap_err().to_string());
    let nats = fields(serde_json::from_str::<NatsSettings>(r#"{"?": 1}"#).unwrap_err().to_string());
    let mut keys: Vec<String> = own.into_iter().filter(|key| key != "nats").collect();
    keys.extend(nats.into_iter().map(|key| format!("nats.{key}")));
    assert_eq!(table().iter().map(|doc| doc.key.to_owned()).collect::<Vec<_>>(), keys);
    assert!(table().iter().all(|doc| !doc.meaning.is_empty() && doc.env.starts_with("DMQ_")));

    let defaults: Vec<_> = table()
        .into_iter()
        .filter(|doc| !doc.default.is_empty())
        .map(|doc| (doc.env, doc.default.to_owned()))
        .collect();
    let mut loaded = Settings::load(None, defaults.into_iter(), &[]).unwrap();
    assert_eq!(loaded.nats.url.take().as_deref(), Some(NatsSettings::DEFAULT_URL));
    assert_eq!(loaded, Settings::default());
}

/// What is wrong for each setting of the table, said in each layer, names it and its layer.
#[test]
fn no_setting_takes_just_anything() {
    for doc in table() {
        let is_number = doc.default.parse::<u64>().is_ok();
        let (said, toml): (&[&str], &[&str]) = match doc.key {
            "log_format" => (&["xml", "TEXT"], &["'xml'", "5"]),
            _ if is_number => (&["x", "-1", "1.5", "18446744073709551616"], &["'x'", "-1", "1.5", "true", "[1]"]),
            // An empty variable counts as not set.
            _ => (&[" "], &["''", "5", "true", "['a']"]),
        };
        for value in said {
            let fault = fault(None, &[(&doc.env, value)], &[]);
            assert!(fault.contains(&format!("{} must be", doc.env)), "{}={value}: {fault}", doc.env);
            let fault = fault_of_flag(doc.key, value);
            assert!(fault.contains(&format!("{} in the command line must be", doc.key)), "{}: {fault}", doc.key);
        }
        for value in toml {
            let file = match doc.key.strip_prefix("nats.") {
                Some(inner) => format!("[nats]\n{inner} = {value}"),
                None => format!("{} = {value}", doc.key),
            };
            let fault = fault(Some(&file), &[], &[]);
            assert!(fault.contains(&format!("{} in ", doc.key)) && fault.contains("must be"), "{file}: {fault}");
        }
    }
}

fn fault_of_flag(key: &str, value: &str) -> String {
    fault(None, &[], &[(key, value)])
}
