//! Settings that make no sense end the start at once, with the name of what is wrong and of where it was said.

use crate::home::Home;

/// Nobody is asked: the faults come before any server.
fn refuses(home: &Home, flags: &[&str], parts: &[&str]) {
    home.failing_controller(flags).failed_with(parts);
    home.failing_storage(flags).failed_with(parts);
    home.run(&[&["topic", "list"], flags].concat()).failed_with(parts);
}

#[test]
fn a_value_of_each_kind_is_named_with_what_it_must_be() {
    let home = Home::new()
        .with("DMQ_LEASE_MS", "999")
        .with("DMQ_LOG_FORMAT", "xml")
        .with("DMQ_NATS_PING_INTERVAL_MS", "soon")
        .with("DMQ_CONFIG", "dmq.toml");
    home.write("dmq.toml", "push_max_bytes = -1\nservices = ''\n[nats]\nuser = 5\n");
    refuses(
        &home,
        &["--set", "snapshot_every_entries=0"],
        &[
            "DMQ_LEASE_MS must be a whole number between 1000 and 60000",
            "DMQ_LOG_FORMAT must be text or json",
            "DMQ_NATS_PING_INTERVAL_MS must be a whole number",
            "push_max_bytes in dmq.toml must be a whole number between 4096",
            "services in dmq.toml must be a text that is not empty",
            "nats.user in dmq.toml must be a text",
            "snapshot_every_entries in the command line must be a whole number between 1",
        ],
    );
}

#[test]
fn unknown_keys_and_variables_are_named_with_the_nearest_known_one() {
    let home = Home::new().with("DMQ_LEASE", "1500").with("DMQ_NATS_URI", "nats://x");
    home.write("dmq.toml", "heartbeat_ms = 5\n[nats]\nurls = 'x'\n[storage]\nid = 1\n");
    refuses(
        &home,
        &["--config", "dmq.toml", "--set", "leases_ms=5"],
        &[
            "there is no variable DMQ_LEASE (in the environment): did you mean DMQ_LEASE_MS?",
            "there is no variable DMQ_NATS_URI (in the environment): did you mean DMQ_NATS_URL?",
            "there is no setting heartbeat_ms (in dmq.toml)",
            "there is no setting nats.urls (in dmq.toml): did you mean nats.url?",
            "there is no setting storage (in dmq.toml)",
            "there is no setting leases_ms (in the command line): did you mean lease_ms?",
        ],
    );
}

#[test]
fn settings_that_contradict_each_other_are_named_together() {
    let home = Home::new().with("DMQ_NATS_TOKEN", "t").with("DMQ_NATS_PASSWORD", "secret");
    let said = home.failing_controller(&["--creds", "c", "--tls-cert", "x.pem", "--set", "session_timeout_ms=1000"]);
    said.failed_with(&[
        "session_timeout_ms = 1000 must be at least three times heartbeat_interval_ms = 500: 1500 or more",
        "nats.creds and nats.token exclude each other: keep one",
        "nats.user and nats.password go together",
        "nats.cert and nats.key go together",
    ]);
    assert!(!said.stderr.contains("secret"), "{}", said.stderr);
}

#[test]
fn log_levels_are_refused_where_they_cannot_be_understood() {
    let home = Home::new();
    refuses(&home, &["--set", "log_level=loud"], &["log_level = \"loud\" must be off, error, warn"]);
    home.failing_controller(&["--set", "log_level=dmq[=debug"]).failed_with(&["log_level = \"dmq[=debug\""]);
}

#[test]
fn files_that_are_missing_or_broken_are_named() {
    let home = Home::new();
    refuses(&home, &["--config", "nowhere.toml"], &["cannot read the settings file nowhere.toml"]);
    home.write("bad.toml", "lease_ms = = 5");
    refuses(&home, &["--config", "bad.toml"], &["bad.toml", "line 1"]);
    refuses(&home, &["--services", "nowhere.json"], &["nowhere.json"]);
    refuses(&home, &["--nats-url", "http://x"], &["\"http://x\" is no NATS server", "nats://HOST:PORT"]);
}
