//! docs/protocol.md: that it names all that there is, and that its programs run and print what it says.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use rustix::process::{Pid, Signal, kill_process};
use support::cluster::{Cluster, PATIENCE};

const DOCUMENT: &str = include_str!("../docs/protocol.md");

/// A program of the document, and what it prints. `…` stands for anything within a line.
struct Example {
    line: usize,
    program: String,
    prints: String,
}

fn examples() -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut lines = DOCUMENT.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let language = line.strip_prefix("```").unwrap_or_default();
        if language.is_empty() {
            continue;
        }
        let block: String = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").fold(
            String::new(),
            |mut block, line| {
                block.push_str(line);
                block.push('\n');
                block
            },
        );
        match language {
            "python" => examples.push(Example { line: number + 1, program: block, prints: String::new() }),
            "text" => examples.last_mut().expect("a program before what it prints").prints = block,
            _ => {}
        }
    }
    examples
}

fn fits(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split('…');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut is_open = false;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        is_open = part.is_empty();
    }
    rest.is_empty() || is_open
}

/// Runs python3, and returns what it printed; an error with what it said instead.
fn python(arguments: &[&Path], env: &[(&str, &str)]) -> Result<String, String> {
    let mut command = Command::new("python3");
    command.args(arguments).envs(env.iter().copied()).stdin(Stdio::null());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("python3, which make needs too");
    let pid = Pid::from_child(&child);
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    let Ok(output) = ended.recv_timeout(PATIENCE) else {
        kill_process(pid, Signal::KILL).expect("our own child");
        let output = ended.recv().expect("it ends").expect("its output");
        return Err(format!("not within {PATIENCE:?}: {}", String::from_utf8_lossy(&output.stdout)));
    };
    let output = output.expect("its output");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[test]
fn every_program_runs_and_prints_what_the_document_shows() {
    let folder = tempfile::tempdir().unwrap();
    let bring = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/nats-py.py");
    let nats_py = python(&[&bring], &[]).unwrap_or_else(|error| panic!("tools/nats-py.py: {error}"));
    let cluster = Cluster::start(1, 2);
    cluster.await_healthy();
    let examples = examples();
    assert!(examples.len() >= 10, "only {} programs were found", examples.len());
    for Example { line, program, prints } in examples {
        let path = folder.path().join("example.py");
        std::fs::write(&path, program).unwrap();
        let printed = python(&[&path], &[("PYTHONPATH", nats_py.trim()), ("NATS_URL", &cluster.nats.url())]);
        let printed = printed.unwrap_or_else(|error| panic!("line {line}: {error}\n{}", cluster.logs()));
        let same = prints.lines().count() == printed.lines().count()
            && std::iter::zip(prints.lines(), printed.lines()).all(|(pattern, line)| fits(pattern, line));
        assert!(same && !prints.is_empty(), "line {line} shows\n{prints}\nand this was printed\n{printed}");
    }
}

#[test]
fn an_ellipsis_stands_for_anything_and_for_nothing_else() {
    for (pattern, line) in [("a", "a"), ("…", ""), ("leads …, follows …", "leads 2, follows 11"), ("[…'a'…]", "['a']")]
    {
        assert!(fits(pattern, line), "{pattern} {line}");
    }
    for (pattern, line) in [("a", "ab"), ("a…b", "a1c"), ("…x", "xy"), ("leads …, follows …", "leads 2")] {
        assert!(!fits(pattern, line), "{pattern} {line}");
    }
}

/// The variants of an enum in a source file.
fn variants(source: &str, name: &str) -> Vec<String> {
    let (_, body) = source.split_once(&format!("pub enum {name} {{\n")).expect("the enum");
    let (body, _) = body.split_once("\n}").expect("its end");
    let names = body.lines().filter_map(|line| line.strip_prefix("    ")).map(|line| line.trim_end_matches(','));
    let names = names.map(|line| line.split([' ', '{', '(']).next().unwrap_or_default());
    names.filter(|name| name.starts_with(|c: char| c.is_ascii_uppercase())).map(str::to_owned).collect()
}

fn camel(name: &str) -> String {
    let mut upper = false;
    let letters = name.chars().filter_map(|letter| {
        let shown = if upper { letter.to_ascii_uppercase() } else { letter };
        upper = letter == '_';
        (!upper).then_some(shown)
    });
    letters.collect()
}

fn lower_first(name: &str) -> String {
    name[..1].to_ascii_lowercase() + &name[1..]
}

fn screaming(name: &str) -> String {
    let broken = name.chars().enumerate().map(|(at, letter)| {
        if at > 0 && letter.is_ascii_uppercase() { format!("_{letter}") } else { letter.to_string() }
    });
    broken.collect::<String>().to_ascii_uppercase()
}

/// Whether the document has it as a word of code.
fn names(word: &str) -> bool {
    let whole = |text: &str| text.split(|c: char| !(c.is_ascii_alphanumeric() || "_.-".contains(c))).any(|w| w == word);
    // Between backticks, or in a block.
    DOCUMENT.split('`').skip(1).step_by(2).any(whole)
}

const WIRE: [&str; 7] = [
    include_str!("../src/wire/admin.rs"),
    include_str!("../src/wire/error.rs"),
    include_str!("../src/wire/fetch.rs"),
    include_str!("../src/wire/heartbeat.rs"),
    include_str!("../src/wire/push.rs"),
    include_str!("../src/wire/data.rs"),
    include_str!("../src/wire/replica.rs"),
];

#[test]
fn every_code_outcome_and_record_is_explained() {
    let missing = |words: Vec<String>| words.into_iter().filter(|word| !names(word)).collect::<Vec<_>>();
    let codes = variants(WIRE[1], "Code");
    assert!(codes.len() > 25, "{codes:?}");
    assert_eq!(missing(codes.iter().map(|code| screaming(code)).collect()), [""; 0]);
    let outcomes = variants(WIRE[4], "AckOutcome");
    assert_eq!(missing(outcomes.iter().map(|outcome| lower_first(outcome)).collect()), [""; 0]);
    for outcome in ["SessionOutcome", "PartitionOutcome"] {
        let outcomes = variants(WIRE[6], outcome);
        assert!(outcomes.len() > 3, "{outcomes:?}");
        assert_eq!(missing(outcomes), [""; 0]);
    }
    let records = variants(include_str!("../src/metadata/record.rs"), "Record");
    assert!(records.len() > 12, "{records:?}");
    assert_eq!(missing(records.iter().map(|record| lower_first(record)).collect()), [""; 0]);
}

#[test]
fn every_verb_and_every_subject_is_explained() {
    for (noun, verb) in dmq::wire::admin::VERBS {
        assert!(names(&format!("{noun}.{verb}")), "{noun}.{verb}");
    }
    let services = dmq::config::Services::default();
    let (storage, controller) = (dmq::types::StorageId(0), dmq::types::ControllerId(0));
    let of_storage = services.storage(storage);
    let of_controller = services.controller(controller);
    let numbered = [
        (of_storage.heartbeat, "<storage>"),
        (of_storage.push, "<storage>"),
        (of_storage.ack, "<storage>"),
        (of_storage.replica, "<storage>"),
        (of_controller.fetch, "<controller>"),
        (of_controller.heartbeat, "<controller>"),
    ];
    for (subject, whose) in numbered {
        let wanted = format!("`{}{whose}`", subject.strip_suffix('0').expect("an id at its end"));
        assert!(DOCUMENT.contains(&wanted), "{wanted}");
    }
    let (admin, data, log) = (services.admin_prefix(), services.data_prefix(), services.log_subject());
    for wanted in [log, format!("{admin}.<noun>.<verb>"), format!("{data}.<op>.<partition>.<topic>")] {
        assert!(DOCUMENT.contains(&format!("`{wanted}`")), "{wanted}");
    }
}

/// The values of the constants in a module of the contract with clients.
fn constants(module: &str) -> Vec<&'static str> {
    let (_, body) = WIRE[5].split_once(&format!("pub mod {module} {{\n")).expect("the module");
    let (body, _) = body.split_once("\n}").expect("its end");
    let values = body.lines().filter_map(|line| line.split_once(": &str = \"")?.1.strip_suffix("\";"));
    values.collect()
}

#[test]
fn every_operation_on_records_and_every_header_has_its_line() {
    let (operations, headers) = (constants("op"), constants("header"));
    assert!(operations.len() >= 6 && headers.len() >= 8, "{operations:?} {headers:?}");
    for word in operations.into_iter().chain(headers) {
        assert!(DOCUMENT.lines().any(|line| line.starts_with(&format!("| `{word}` | "))), "{word}");
    }
}

#[test]
fn every_code_has_the_number_that_it_is_answered_with() {
    let source = include_str!("../src/controller/shell/admin.rs");
    let (_, body) = source.split_once("fn status(code: Code)").expect("the function");
    let mut waiting = Vec::new();
    let mut found = 0;
    for word in body.split_whitespace() {
        if let Some((_, code)) = word.split_once("Code::") {
            waiting.push(screaming(code));
        } else if let Ok(number) = word.trim_end_matches(',').parse::<u16>() {
            for code in waiting.drain(..) {
                found += 1;
                let line = format!("| `{code}` | {number} | ");
                assert!(DOCUMENT.lines().any(|there| there.starts_with(&line)), "{line}");
            }
        }
    }
    assert_eq!(found, variants(WIRE[1], "Code").len());
}

#[test]
fn every_message_and_each_of_its_fields_is_named() {
    let mut fields = 0;
    for line in WIRE.iter().flat_map(|source| source.lines()) {
        if let Some((_, kind)) = line.split_once("const TYPE: &'static str = \"") {
            let kind = kind.trim_end_matches("\";");
            assert!(names(kind), "{kind}");
        }
        let field =
            line.strip_prefix("    pub ").filter(|rest| !rest.starts_with("fn ") && !rest.starts_with("const "));
        let Some((field, _)) = field.and_then(|rest| rest.split_once(':')) else { continue };
        fields += 1;
        let field = camel(field.trim_start_matches("r#"));
        assert!(names(&field), "the field {field}, as in {line:?}");
    }
    assert!(fields > 100, "only {fields} fields were found");
}
