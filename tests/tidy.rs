//! The sources keep the order that ARCHITECTURE.md states, and the form that CONTRIBUTING.md asks for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Lines of a file before its tests.
const LONGEST: usize = 600;

/// The modules that do no I/O, and deny it.
const PURE: [&str; 7] =
    ["types", "metadata", "replication", "wire", "controller/core", "storage/core", "storage/replicas"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file, by its path below src/, with its text.
fn sources() -> Vec<(String, String)> {
    let (mut folders, mut found) = (vec![root()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.push((name, std::fs::read_to_string(path).unwrap()));
            }
        }
    }
    found.sort();
    assert!(found.len() > 100, "only {} sources were found", found.len());
    found
}

/// The modules of ARCHITECTURE.md's table, each with the number of its line.
fn layers() -> Vec<(String, usize)> {
    let text = include_str!("../ARCHITECTURE.md");
    let (_, table) = text.split_once("| --- | --- | --- |\n").expect("the table of modules");
    let rows = table.lines().take_while(|line| line.starts_with('|')).enumerate();
    let mut layers = Vec::new();
    for (number, row) in rows {
        let cell = row.split('|').nth(1).expect("a first cell");
        let modules = cell.split('`').filter_map(|word| word.strip_suffix('/'));
        layers.extend(modules.map(|module| (module.to_owned(), number)));
    }
    layers
}

/// The module of the table that a path is in: the most exact one.
fn module_of<'a>(layers: &'a [(String, usize)], path: &str) -> Option<&'a (String, usize)> {
    let within = |module: &str| path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    layers.iter().filter(|(module, _)| within(module)).max_by_key(|(module, _)| module.len())
}

/// What a source names of this crate, as paths: `crate::controller::core::Input` is `controller/core/Input`.
fn named(text: &str) -> impl Iterator<Item = String> + '_ {
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    code.flat_map(|line| line.split("crate::").skip(1)).map(|rest| {
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
        rest[..end].replace("::", "/")
    })
}

/// What is wrong with what a file of this path and text uses.
fn faults(layers: &[(String, usize)], path: &str, text: &str) -> Vec<String> {
    let Some((own, line)) = module_of(layers, path) else {
        return vec![format!("src/{path} is in no module of ARCHITECTURE.md's table")];
    };
    // Bugs that the simulator plants: their lines, like the simulator, are not there outside of tests.
    let is_planted = |name: &str| name.starts_with("simulator/planted") || name.starts_with("simulator/Bug");
    let judge = |name: String| match module_of(layers, &name) {
        _ if is_planted(&name) => None,
        None if name.is_empty() => Some(format!("src/{path} imports several modules at once: one `use` for each")),
        None => Some(format!("src/{path} uses crate::{name}, which is in no module of ARCHITECTURE.md's table")),
        Some((module, of)) if module == own || of < line => None,
        Some((module, _)) => {
            Some(format!("src/{path} ({own}) uses {module}, which is not above it in ARCHITECTURE.md"))
        }
    };
    named(text).filter_map(judge).collect()
}

#[test]
fn a_module_uses_only_those_above_it() {
    let layers = layers();
    assert!(layers.len() >= 11, "{layers:?}");
    let inner = sources().into_iter().filter(|(path, _)| path != "lib.rs" && path != "main.rs");
    let wrong: Vec<_> = inner.flat_map(|(path, text)| faults(&layers, &path, &text)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_looks_up_or_aside_is_found() {
    let layers = layers();
    for (path, text) in [
        ("types/ids.rs", "use crate::metadata::Image;"),
        ("metadata/image.rs", "fn f() -> crate::wire::Code {}"),
        ("wire/mod.rs", "use crate::bus::raw;"),
        ("controller/core/push.rs", "use crate::controller::shell::Driver;"),
        ("controller/core/push.rs", "use crate::storage::core::Input;"),
        ("storage/shell.rs", "use crate::client::Admin;"),
        ("disk/mod.rs", "use crate::{bus, types};"),
        ("new/mod.rs", ""),
    ] {
        assert_eq!(faults(&layers, path, text).len(), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("types/ids.rs", "// not crate::metadata::Image"),
        ("controller/shell/driver.rs", "use crate::controller::core::Input; use crate::bus::raw;"),
        ("cli/mod.rs", "use crate::storage::{Data, Options};"),
    ] {
        assert_eq!(faults(&layers, path, text), [""; 0], "{path}: {text}");
    }
}

#[test]
fn every_source_says_first_what_it_is_for() {
    let mute: Vec<_> =
        sources().into_iter().filter(|(_, text)| !text.starts_with("//! ")).map(|(path, _)| path).collect();
    assert_eq!(mute, [""; 0]);
}

#[test]
fn no_source_is_too_long_to_be_read_at_once() {
    let is_test = |path: &str| path.ends_with("/tests.rs") || path.contains("/tests/");
    let before_tests = |text: &str| text.lines().take_while(|line| *line != "#[cfg(test)]").count();
    let long = sources().into_iter().filter(|(path, _)| !is_test(path));
    let long: Vec<_> =
        long.map(|(path, text)| (before_tests(&text), path)).filter(|(lines, _)| *lines > LONGEST).collect();
    assert!(long.is_empty(), "longer than {LONGEST} lines before their tests: {long:?}");
}

#[test]
fn the_pure_modules_deny_what_the_world_could_change() {
    let deny = "#![deny(clippy::disallowed_methods, clippy::disallowed_types)]";
    let sources = sources();
    for module in PURE {
        let path = format!("{module}/mod.rs");
        let (_, text) = sources.iter().find(|(found, _)| *found == path).expect("the module's root");
        assert!(text.lines().any(|line| line == deny), "src/{path} lacks {deny}");
    }
    // Whoever allows it again below says so here.
    let allows = |text: &str| text.contains("allow(clippy::disallowed_");
    let inside = |path: &str| PURE.iter().any(|module| path.starts_with(&format!("{module}/")));
    let found = sources.iter().filter(|(path, text)| inside(path) && allows(text));
    let found: BTreeSet<_> = found.map(|(path, _)| path.as_str()).collect();
    assert_eq!(found, BTreeSet::from(["metadata/tests/scale.rs"]));
}

/// Clippy fulfils each expectation only where clippy.toml reaches what stands below it; `make verify` refuses one that is
/// not fulfilled. So nothing here needs to be run.
#[allow(dead_code)]
mod caught {
    #[expect(clippy::disallowed_methods)]
    fn a_clock() -> std::time::Instant {
        std::time::Instant::now()
    }

    #[expect(clippy::disallowed_methods)]
    fn a_wall_clock() -> std::time::SystemTime {
        std::time::SystemTime::now()
    }

    #[expect(clippy::disallowed_methods)]
    fn chance() -> uuid::Uuid {
        uuid::Uuid::new_v4()
    }

    #[expect(clippy::disallowed_methods)]
    fn more_chance() -> u64 {
        rand::random()
    }

    #[expect(clippy::disallowed_methods)]
    fn a_thread() {
        drop(std::thread::spawn(|| {}));
    }

    #[expect(clippy::disallowed_methods)]
    fn a_task() {
        drop(tokio::spawn(async {}));
    }

    #[expect(clippy::disallowed_methods)]
    fn a_file() -> std::io::Result<Vec<u8>> {
        std::fs::read("/etc/hostname")
    }

    #[expect(clippy::disallowed_methods)]
    fn a_variable() -> bool {
        std::env::var("HOME").is_ok()
    }

    #[expect(clippy::disallowed_types)]
    fn an_order_of_chance(map: &std::collections::HashMap<u8, u8>) -> Option<&u8> {
        map.keys().next()
    }

    #[expect(clippy::disallowed_types)]
    fn a_connection(_client: &async_nats::Client) {}
}
