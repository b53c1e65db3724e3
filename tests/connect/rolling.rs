//! A cluster of three nats-servers whose servers are restarted one after another, each told beforehand.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::home::{Home, Process, eventually};
use crate::support::nats::{NatsOptions, NatsServer};

/// Three servers that know each other's routes. A server that was killed keeps its port from everybody else, so three such
/// lend theirs to the routes.
struct Servers {
    servers: Vec<NatsServer>,
    _ports: Vec<NatsServer>,
}

fn three_servers() -> Servers {
    let lent = || {
        let mut server = NatsServer::start();
        server.kill();
        server
    };
    let ports: Vec<NatsServer> = (0..3).map(|_| lent()).collect();
    let routes: Vec<String> = ports.iter().map(|server| format!("nats://127.0.0.1:{}", server.port())).collect();
    let options = |server: &NatsServer| NatsOptions {
        lazy_sync: true,
        extra: format!(
            "lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"500ms\"\n\
             cluster {{ name: dmq-test, listen: \"127.0.0.1:{}\", routes: [{}] }}",
            server.port(),
            routes.join(", ")
        ),
        ..NatsOptions::default()
    };
    let servers = ports.iter().map(|server| NatsServer::start_with(&options(server))).collect();
    Servers { servers, _ports: ports }
}

#[test]
fn a_nats_cluster_that_is_wholly_restarted_finds_everything_back() {
    let mut nats = three_servers();
    let urls: Vec<String> = nats.servers.iter().map(NatsServer::url).collect();
    let urls = urls.join(",");
    let home = Home::new();
    let flags = ["--nats-url", &urls];
    let controller = home.controller(0, &["--nats-url", &urls, "--set", "stream_replicas=3"]);
    let storage = home.storage(0, &flags);
    let logs = || format!("{}\n----\n{}", controller.log(), storage.log());
    let healthy = || eventually("the cluster is healthy", logs, || home.is_healthy(1, &flags).then_some(()));
    healthy();
    let create = ["topic", "create", "kept", "--partitions", "1", "--replication-factor", "1"];
    assert_eq!(home.run(&[&create, &flags[..]].concat()).code, Some(0), "{}", logs());
    std::thread::scope(|scope| {
        for server in &mut nats.servers {
            scope.spawn(|| server.retire());
        }
    });
    assert!(!home.is_healthy(1, &flags));
    for server in &mut nats.servers {
        server.restart();
    }
    healthy();
    let said = home.run(&[&["topic", "describe", "kept"], &flags[..]].concat());
    assert_eq!(said.code, Some(0), "{}\n{}", said.stderr, logs());
}

#[test]
fn a_rolling_restart_of_nats_loses_no_acknowledged_change() {
    let mut nats = three_servers();
    let urls: Vec<String> = nats.servers.iter().map(NatsServer::url).collect();
    let urls = urls.join(",");
    let home = Home::new();
    let flags = ["--nats-url", &urls];
    let told = ["--nats-url", &urls, "--set", "stream_replicas=3"];
    let processes: Vec<Process> =
        (0..2).map(|id| home.controller(id, &told)).chain((0..2).map(|id| home.storage(id, &flags))).collect();
    let logs = || processes.iter().map(Process::log).collect::<Vec<_>>().join("\n----\n");
    let healthy = || eventually("the cluster is healthy", logs, || home.is_healthy(2, &flags).then_some(()));
    healthy();

    let (stop, home) = (AtomicBool::new(false), &home);
    let acknowledged = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut acknowledged = Vec::new();
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                let name = format!("t{number}");
                number += 1;
                let create = ["topic", "create", &name, "--partitions", "1", "--replication-factor", "2"];
                if home.run(&[&create, &flags[..]].concat()).code == Some(0) {
                    acknowledged.push(name);
                }
            }
            (acknowledged, number)
        });
        for server in &mut nats.servers {
            server.retire();
            server.restart();
            healthy();
        }
        stop.store(true, Ordering::Relaxed);
        writing.join().unwrap()
    });
    let (acknowledged, tried) = acknowledged;
    println!("{} of {tried} changes were acknowledged", acknowledged.len());
    assert!(!acknowledged.is_empty());
    let listed: Value = eventually("the topics are listed", logs, || {
        let said = home.run(&[&["topic", "list", "--output", "json"], &flags[..]].concat());
        serde_json::from_str(&said.stdout).ok()
    });
    let names: Vec<&str> =
        listed["topics"].as_array().unwrap().iter().map(|topic| topic["name"].as_str().unwrap()).collect();
    for name in &acknowledged {
        assert!(names.contains(&name.as_str()), "{name} was acknowledged and is gone: {names:?}\n{}", logs());
    }
    for (mut process, number) in processes.into_iter().zip(0..) {
        assert!(process.is_running(), "process {number} ended:\n{}", process.log());
    }
}
