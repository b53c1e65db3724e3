//! The nats-server of a `dmq dev`: which one, on which port, and its configuration.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use super::folder::Folder;
use super::process::{Recipe, Role};

/// Below every platform's ephemeral ports: a client that reconnects to a killed server's port cannot be given that very port
/// as its own end, and so be connected to itself.
const FREE_PORTS: std::ops::Range<u16> = 10_000..32_000;

const OLDEST: (u32, u32, u32) = (2, 12, 3);

pub const SYSTEM_USER: &str = "sys";

/// The configuration: the shipped one, quicker in finding out that a client is frozen.
fn configuration() -> String {
    // A key given twice counts as given last.
    format!(
        "{}\n# For `dmq dev`: a frozen process is seen within seconds.\nping_interval: \"1s\"\nping_max: 2\n",
        SHIPPED
    )
}

const SHIPPED: &str = include_str!("../../../deploy/nats.conf");

/// How much garbage Go lets lie, in percent of what is in use. The server holds a few megabytes, and allocates one for each message of
/// that size: with Go's 100 it would clean up after every few of them, for a third of its processor's time.
const GOGC: &str = "400";

/// How to run the server in this folder.
pub fn recipe(folder: &Folder, program: PathBuf, port: u16, password: &str) -> anyhow::Result<Recipe> {
    folder.replace("nats.conf", configuration().as_bytes())?;
    let args = ["--addr".into(), "127.0.0.1".into(), "--port".into(), port.to_string().into()];
    let files = [
        "--config".into(),
        folder.path().join("nats.conf").into_os_string(),
        "--store_dir".into(),
        folder.path().join("nats").into_os_string(),
        "--name".into(),
        "dmq-dev".into(),
    ];
    let mut env = vec![("DMQ_NATS_SYSTEM_USER", SYSTEM_USER.into()), ("DMQ_NATS_SYSTEM_PASSWORD", password.into())];
    if std::env::var_os("GOGC").is_none() {
        env.push(("GOGC", GOGC.into()));
    }
    Ok(Recipe {
        role: Role::Nats,
        id: 0,
        program,
        args: args.into_iter().chain(files).collect(),
        env,
        log: folder.log(Role::Nats, 0),
    })
}

/// The port to use: the one asked for, if it is free, or a free one for 0.
pub fn port(wanted: u16) -> anyhow::Result<u16> {
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    if wanted != 0 {
        let what = || {
            format!("port {wanted} on 127.0.0.1 cannot be used; choose another with --nats-port, or 0 for a free one")
        };
        return is_free(wanted).map(|_| wanted).with_context(what);
    }
    let tries = std::iter::repeat_with(|| rand::random_range(FREE_PORTS)).take(1_000);
    let mut tries = tries;
    tries.find(|port| is_free(*port).is_ok()).context("no free port was found; name one with --nats-port")
}

/// The server's program: the one named, else the first on PATH that is new enough.
pub fn program(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(path) = named {
        let version = version_of(&path).with_context(|| format!("{} is no nats-server that runs", path.display()))?;
        anyhow::ensure!(
            version >= OLDEST,
            "{} is nats-server {version:?}; dmq needs {OLDEST:?} or later",
            path.display()
        );
        // A relative path would be looked for on PATH.
        return path.canonicalize().with_context(|| format!("find {}", path.display()));
    }
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let here = std::fs::read_dir(".tools").into_iter().flatten().flatten().map(|entry| entry.path());
    std::env::split_paths(&on_path)
        .chain(here)
        .map(|folder| folder.join("nats-server"))
        .filter_map(|path| path.canonicalize().ok())
        .find(|path| version_of(path).is_some_and(|version| version >= OLDEST))
        .with_context(|| {
            let (major, minor, patch) = OLDEST;
            format!(
                "no nats-server of version {major}.{minor}.{patch} or later is on PATH; `make dev` brings one, or name one \
                 with --nats-server"
            )
        })
}

fn version_of(path: &Path) -> Option<(u32, u32, u32)> {
    if !path.is_file() {
        return None;
    }
    let output = Command::new(path).arg("--version").stdin(Stdio::null()).output().ok()?;
    parse_version(&String::from_utf8(output.stdout).ok()?)
}

/// The numbers of `nats-server: v2.15.1`; a suffix as in `2.15.1-RC.1` is left out.
fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let numbers = text.trim().strip_prefix("nats-server: v")?.split('-').next()?;
    let mut numbers = numbers.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(parse_version("nats-server: v2.15.1\n"), Some((2, 15, 1)));
        assert_eq!(parse_version("nats-server: v2.12.10-RC.1"), Some((2, 12, 10)));
        assert_eq!(parse_version("something else"), None);
        assert!(parse_version("nats-server: v2.12.10").unwrap() > OLDEST);
    }

    #[test]
    fn a_taken_port_is_named_with_the_way_out() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let number = taken.local_addr().unwrap().port();
        let error = port(number).unwrap_err().to_string();
        assert!(error.contains(&number.to_string()) && error.contains("--nats-port"), "{error}");
        assert!(FREE_PORTS.contains(&port(0).unwrap()));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = program(Some("/nonexistent/nats-server".into())).unwrap_err().to_string();
        assert_eq!(error, "/nonexistent/nats-server is no nats-server that runs");
    }

    #[test]
    fn what_is_shipped_syncs_always_and_asks_for_the_password_outside_the_file() {
        assert!(SHIPPED.contains("sync_interval: always"));
        assert!(SHIPPED.contains("$DMQ_NATS_SYSTEM_PASSWORD"));
    }
}
