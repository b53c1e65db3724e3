//! `dmq bench` with the real binary: it says what it measured, and leaves nothing behind. How long anything took is no test.

mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::nats::nats_server_path;

fn bench(folder: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dmq"));
    command.arg("bench").args(flags).args(["--output", "json", "--data"]).arg(folder);
    command.arg("--nats-server").arg(nats_server_path());
    command
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn a_figure_stands_beside_its_floor_and_its_target_and_nothing_stays_behind() {
    let folder = tempfile::tempdir().unwrap();
    let output = bench(folder.path(), &["metadata", "--changes", "5"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    });
    let figures = report["figures"].as_array().unwrap();
    let judged: Vec<_> = figures.iter().filter(|figure| figure["met"].is_boolean()).collect();
    assert_eq!((report["bench"].as_str(), judged.len()), (Some("metadata"), 1), "{report}");
    let [value, floor, ratio] = ["value", "floor", "ratio"].map(|key| judged[0][key].as_f64().unwrap());
    assert!(value > 0.0 && floor > 0.0 && (ratio - value / floor).abs() < 1e-9, "{report}");
    assert_eq!(judged[0]["target"]["atMostRatio"], 2.0);
    // The exit status says whether the target was met.
    assert_eq!(output.status.success(), judged[0]["met"] == true);
    assert!(is_empty(folder.path()));
}

#[test]
fn records_are_measured_beside_processes_that_only_append_or_answer() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--records", "2000", "--rounds", "1"];
    for bench in [&["produce", "--single", "5"][..], &["replicate", "--single", "5"], &["consume"]] {
        let output = self::bench(folder.path(), &[bench, &flags].concat()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{bench:?}: {stderr}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let figures = report["figures"].as_array().unwrap();
        let with_floor = figures.iter().filter(|figure| figure["floor"].as_f64().is_some_and(|floor| floor > 0.0));
        assert!(with_floor.count() >= 2, "{report}");
        assert!(figures[0]["value"].as_f64().unwrap() > 0.0, "{report}");
        let spreads = report["distributions"].as_array().map_or(&[][..], Vec::as_slice);
        assert_eq!(spreads.len(), if bench[0] == "consume" { 0 } else { 2 }, "{report}");
        for spread in spreads {
            let values = spread["quantiles"].as_array().unwrap().iter().map(|quantile| quantile["value"].as_f64());
            assert!(spread["count"].as_u64() >= Some(5) && values.is_sorted(), "{spread}");
        }
        assert!(is_empty(folder.path()));
    }
}

#[test]
fn a_killed_leader_costs_neither_records_nor_those_who_read_along() {
    let folder = tempfile::tempdir().unwrap();
    let output = bench(folder.path(), &["stall", "--kills", "1", "--rate", "200", "--watched"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    });
    let figures = report["figures"].as_array().unwrap();
    let of = |name: &str| figures.iter().find(|figure| figure["name"] == name).unwrap()["value"].as_f64().unwrap();
    assert_eq!((of("records lost"), of("records stored twice")), (0.0, 0.0), "{report}");
    assert!(of("longest from sent to read over a crash, median") > 0.0, "{report}");
    assert!(is_empty(folder.path()));
}

#[test]
fn an_interrupted_bench_ends_what_it_started() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = bench(folder.path(), &["idle", "--seconds", "600"]).stderr(Stdio::null()).spawn().unwrap();
    let logs = || {
        let made = std::fs::read_dir(folder.path()).unwrap().next()?.unwrap().path();
        Some(made.join("logs").join("storage-2.log")).filter(|log| log.exists())
    };
    until("the last process has started", || logs().is_some());
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert!(!ended(&mut child).success());
    // Whoever still ran would write into it, or keep it from being removed.
    assert!(is_empty(folder.path()));
}

fn ended(child: &mut Child) -> std::process::ExitStatus {
    until("the bench has ended", || child.try_wait().unwrap().is_some());
    child.wait().unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
