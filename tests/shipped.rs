//! The shipped files agree with each other where they say the same thing twice.

mod support;

#[test]
fn compose_starts_the_nats_server_that_tests_run() {
    let compose = include_str!("../docker-compose.yml");
    let image = compose.lines().find_map(|line| line.trim().strip_prefix("image: nats:")).expect("an image of NATS");
    let minor = image.split('-').next().expect("a version");
    let pinned = support::nats::pinned_version();
    assert!(
        pinned == minor || pinned.strip_prefix(minor).is_some_and(|patch| patch.starts_with('.')),
        "docker-compose.yml starts nats:{image}, and tools/nats-server.txt pins {pinned}"
    );
}

/// The table of settings is made from the code; where they differ, this prints what to put into the README.
#[test]
fn the_readme_lists_every_setting() {
    let rows = dmq::config::table().into_iter().map(|setting| {
        let default = if setting.default.is_empty() { String::new() } else { format!("`{}`", setting.default) };
        format!("| `{}` | `{}` | {default} | {} |\n", setting.key, setting.env, setting.meaning)
    });
    let table: String = rows.collect();
    let table = format!("| key | variable | default | meaning |\n| --- | --- | --- | --- |\n{table}");
    let readme = include_str!("../README.md");
    assert!(readme.contains(&table), "README.md has to hold:\n{table}");
}
