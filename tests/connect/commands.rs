//! What a command does where something hangs, and how its answer looks.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use rustix::process::{Pid, Signal, kill_process};

use crate::home::{Home, LIMIT};
use crate::support::nats::{NatsOptions, NatsServer};

/// Every command that asks somebody, as people type it.
const ASKING: [&str; 9] = [
    "topic list",
    "topic describe t",
    "topic create other",
    "topic delete t",
    "node list",
    "node drain 0",
    "cluster status",
    "metadata show",
    "metadata log",
];

/// All at once, so that their deadlines pass together. `Home::run` sees to the limit.
fn all_fail_in_time(home: &Home, url: &str, commands: &[&str], part: &str) {
    std::thread::scope(|scope| {
        for line in commands {
            scope.spawn(move || {
                let mut words: Vec<&str> = line.split(' ').collect();
                words.extend(["--nats-url", url]);
                let said = home.run(&words);
                assert_eq!(said.code, Some(1), "{line}: {}", said.stderr);
                assert!(said.stderr.contains(part), "{line}: {}", said.stderr);
            });
        }
    });
}

#[test]
fn commands_end_in_time_before_a_server_that_accepts_and_never_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    all_fail_in_time(&Home::new(), &url, &ASKING, "no NATS at");
}

#[test]
fn commands_end_in_time_before_a_frozen_server() {
    let server = NatsServer::start();
    server.pause();
    all_fail_in_time(&Home::new(), &server.url(), &ASKING, "no NATS at");
    server.resume();
}

#[test]
fn commands_end_in_time_before_a_frozen_controller() {
    // The shipped server drops a client that is frozen for 5 s, and then nobody listens; this one believes in it.
    let patient = NatsOptions { extra: "ping_interval: \"2m\"".to_owned(), ..NatsOptions::default() };
    let server = NatsServer::start_with(&patient);
    let url = server.url();
    let home = Home::new();
    home.serving(&["--nats-url", &url], |controller, _| {
        let pid = Pid::from_child(&controller.child);
        kill_process(pid, Signal::STOP).unwrap();
        all_fail_in_time(&home, &url, &["topic list", "node list", "cluster status", "metadata show"], "no answer");
        // What may have happened is not called a failure: the same request can be asked again.
        all_fail_in_time(&home, &url, &["topic create other", "topic delete t"], "--request-id");
        kill_process(pid, Signal::CONT).unwrap();
    });
}

#[test]
fn the_log_is_followed_as_changes_come() {
    let server = NatsServer::start();
    let url = server.url();
    let home = Home::new();
    home.serving(&["--nats-url", &url], |_, _| {
        let mut following =
            home.command(&["metadata", "log", "--follow", "--nats-url", &url]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(following.stdout.take().unwrap()).lines();
        let (sender, shown) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let await_line = |part: &str| {
            let mut before = String::new();
            loop {
                let line =
                    shown.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("no line with {part:?} after\n{before}"));
                if line.contains(part) {
                    return;
                }
                before.push_str(&format!("{line}\n"));
            }
        };
        // What was there comes first; then what is new, while it still runs.
        await_line("topic t created");
        let create = ["topic", "create", "later", "--partitions", "1", "--replication-factor", "1", "--nats-url", &url];
        assert_eq!(home.run(&create).code, Some(0));
        await_line("later");
        assert!(following.try_wait().unwrap().is_none(), "it ended by itself");
        following.kill().unwrap();
        following.wait().unwrap();
    });
}

/// A terminal of 80 columns, which needs a pseudo-terminal: python3 has one, and is there wherever tests run.
const TERMINAL: &str = "
import fcntl, os, pty, struct, sys, termios
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
    os.execv(sys.argv[1], sys.argv[1:])
said = b''
while True:
    try:
        some = os.read(terminal, 65536)
    except OSError:
        break
    if not some:
        break
    said += some
os.waitpid(pid, 0)
sys.stdout.buffer.write(said.replace(b'\\r\\n', b'\\n'))
";

#[test]
fn tables_fit_a_terminal_of_80_columns() {
    let server = NatsServer::start();
    let url = server.url();
    let home = Home::new();
    let (long, rack) = ("a-rather-long-name-".repeat(13), "rack-".repeat(30));
    home.serving_with(&["--nats-url", &url], &["--rack", &rack], |_, _| {
        let create = ["topic", "create", &long, "--partitions", "3", "--replication-factor", "1", "--nats-url", &url];
        let said = home.run(&create);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        for line in ["topic list", "node list", "cluster status", "metadata log"] {
            let inner = home.command(&line.split(' ').chain(["--nats-url", &url]).collect::<Vec<_>>());
            let mut outer = Command::new("python3");
            outer.args(["-c", TERMINAL]).arg(inner.get_program()).args(inner.get_args());
            for (name, value) in inner.get_envs() {
                match value {
                    Some(value) => outer.env(name, value),
                    None => outer.env_remove(name),
                };
            }
            let output = outer.current_dir(home.path("")).output().unwrap();
            let shown = String::from_utf8(output.stdout).unwrap();
            assert!(shown.lines().count() >= 2, "{line}: {shown}{}", String::from_utf8_lossy(&output.stderr));
            for shown_line in shown.lines() {
                assert!(shown_line.chars().count() <= 80, "{line}: {shown_line:?} is too wide in\n{shown}");
            }
        }
    });
}

#[test]
fn completions_are_scripts_that_their_shells_take() {
    let home = Home::new();
    for (shell, first) in [("bash", "_dmq()"), ("zsh", "#compdef dmq"), ("fish", "complete -c dmq")] {
        let said = home.run(&["completions", shell]);
        assert_eq!(said.code, Some(0));
        assert!(said.stdout.contains(first), "{shell}");
        let script = home.write(shell, &said.stdout);
        // bash is wherever the tests run; of the others, the one that is there has its say too.
        match Command::new(shell).arg("-n").arg(&script).output() {
            Ok(output) => assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => assert_ne!(shell, "bash", "{error}"),
        }
    }
    let loaded =
        Command::new("bash").args(["-c", "source ./bash && complete -p dmq"]).current_dir(home.path("")).output();
    let loaded = loaded.unwrap();
    assert!(String::from_utf8_lossy(&loaded.stdout).contains("-F _dmq"), "{}", String::from_utf8_lossy(&loaded.stderr));
}
