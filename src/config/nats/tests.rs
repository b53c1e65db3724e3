//! From settings, variables and contexts to servers and credentials.

use super::context::Surroundings;
use super::target::{Credentials, Target};
use super::url::{credentials_of, decoded};
use super::*;

struct Home {
    folder: tempfile::TempDir,
    around: Surroundings,
}

fn home(contexts: &[(&str, &str)], selected: Option<&str>, variables: &[(&str, &str)]) -> Home {
    let folder = tempfile::tempdir().unwrap();
    let nats = folder.path().join(".config/nats");
    std::fs::create_dir_all(nats.join("context")).unwrap();
    for (name, text) in contexts {
        std::fs::write(nats.join("context").join(format!("{name}.json")), text).unwrap();
    }
    if let Some(name) = selected {
        std::fs::write(nats.join("context.txt"), format!("{name}\n")).unwrap();
    }
    let around = Surroundings {
        variables: variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        contexts: Some(nats),
        home: Some(folder.path().to_owned()),
    };
    Home { folder, around }
}

fn url(url: &str) -> NatsSettings {
    NatsSettings { url: Some(url.to_owned()), ..NatsSettings::default() }
}

fn user(user: &str, password: &str) -> Credentials {
    Credentials::User(user.to_owned(), password.to_owned())
}

const PROD: &str = r#"{"description":"x","url":"nats://prod:4222","user":"u","password":"p","token":"","creds":"","nkey":"","cert":"","key":"","ca":"~/ca.pem","nsc":"","jetstream_domain":"","inbox_prefix":"_IN","color_scheme":""}"#;
const TEST: &str = r#"{"url":"nats://test:4222","creds":"~/test.creds"}"#;

#[test]
fn nobody_told_anything_means_the_default() {
    let target = Target::of(&NatsSettings::default(), &home(&[], None, &[]).around).unwrap();
    assert_eq!(target.servers, [NatsSettings::DEFAULT_URL]);
    assert!(target.credentials == Credentials::None);
}

#[test]
fn contexts_are_read_and_the_named_one_wins_over_the_selected_one() {
    let home = home(&[("prod", PROD), ("test", TEST)], Some("prod"), &[]);
    let selected = Target::of(&NatsSettings::default(), &home.around).unwrap();
    assert_eq!(selected.servers, ["nats://prod:4222"]);
    assert!(selected.credentials == user("u", "p"));
    assert_eq!(selected.ca, Some(home.folder.path().join("ca.pem")));
    assert_eq!(selected.inbox_prefix.as_deref(), Some("_IN"));

    let settings = NatsSettings { context: Some("test".to_owned()), ..NatsSettings::default() };
    let named = Target::of(&settings, &home.around).unwrap();
    assert_eq!(named.servers, ["nats://test:4222"]);
    assert!(named.credentials == Credentials::File(home.folder.path().join("test.creds")));
    assert_eq!(named.ca, None);
}

#[test]
fn settings_win_over_variables_and_these_over_contexts() {
    let variables =
        [("NATS_URL", "nats://var:4222"), ("NATS_CONTEXT", "prod"), ("NATS_TOKEN", "t"), ("NATS_PASSWORD", "")];
    let home = home(&[("prod", PROD)], None, &variables);
    let target = Target::of(&NatsSettings::default(), &home.around).unwrap();
    assert_eq!(target.servers, ["nats://var:4222"]);
    assert!(target.credentials == Credentials::Token("t".to_owned()));
    assert_eq!(target.inbox_prefix.as_deref(), Some("_IN"));

    let target = Target::of(&url("nats://a:b%40c@own:1, nats://other:2"), &home.around).unwrap();
    assert_eq!(target.servers, ["nats://own:1", "nats://other:2"]);
    assert!(target.credentials == user("a", "b@c"));
}

#[test]
fn the_selected_context_is_not_for_another_server() {
    let home = home(&[("prod", PROD)], Some("prod"), &[]);
    let target = Target::of(&url("nats://own:1"), &home.around).unwrap();
    assert!(target.credentials == Credentials::None);
}

#[test]
fn what_cannot_be_used_is_said_with_its_name() {
    let home = home(
        &[("prod", PROD), ("nsc", r#"{"nsc":"nsc://a/b/c"}"#), ("bad", "{"), ("inbox", r#"{"inbox_prefix":"a.>"}"#)],
        None,
        &[],
    );
    for (name, part) in [
        ("prd", "did you mean prod?"),
        ("nsc", "uses nsc"),
        ("bad", "no context"),
        ("../x", "no name"),
        ("inbox", "inbox_prefix"),
    ] {
        let settings = NatsSettings { context: Some(name.to_owned()), ..NatsSettings::default() };
        let fault = Target::of(&settings, &home.around).err().unwrap().to_string();
        assert!(fault.contains(part), "{fault}");
    }
    let fault = Target::of(&url("nats://a:b@x,nats://c:d@y"), &home.around).err().unwrap().to_string();
    assert!(fault.contains("different credentials") && !fault.contains("a:b"), "{fault}");
    let target = Target::of(&url("http://x"), &home.around).unwrap();
    assert!(target.addresses().unwrap_err().to_string().contains("nats://HOST:PORT"));
}

#[test]
fn the_system_account_has_its_own_credentials_or_no_connection() {
    let around = home(&[], None, &[]).around;
    let mut settings = url("nats://a:b@own:1");
    assert!(Target::of_system(&settings, &around).unwrap().is_none());
    (settings.system_user, settings.system_password) = (Some("sys".to_owned()), Some("s".to_owned()));
    let target = Target::of_system(&settings, &around).unwrap().unwrap();
    assert_eq!(target.servers, ["nats://own:1"]);
    assert!(target.credentials == user("sys", "s"));
}

#[test]
fn credentials_are_split_out_of_urls() {
    assert_eq!(without_credentials("nats://u:p@h:1, h2,tls://t@h3"), "nats://h:1,h2,tls://h3");
    let token = credentials_of("nats://tok@h").unwrap();
    assert!(token == Some(Credentials::Token("tok".to_owned())));
    assert_eq!(decoded("100%"), "100%");
    assert_eq!(decoded("%2Fa%zz"), "/a%zz");
}

#[test]
fn waits_grow_to_a_limit_and_the_first_attempt_has_none() {
    assert_eq!(reconnect_delay(1), Duration::ZERO);
    assert!(backoff(0) >= SHORTEST_WAIT / 2 && backoff(0) <= SHORTEST_WAIT);
    assert!(backoff(usize::MAX) <= LONGEST_WAIT);
}

#[tokio::test]
async fn a_server_that_never_comes_ends_with_the_last_error_at_the_deadline() {
    let start = Instant::now();
    let deadline = Duration::from_millis(600);
    let fault = connect(&url("nats://u:secret@127.0.0.1:1"), "test", deadline, true).await.unwrap_err().to_string();
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(fault.contains("127.0.0.1:1") && fault.contains("refused") && !fault.contains("secret"), "{fault}");
}
