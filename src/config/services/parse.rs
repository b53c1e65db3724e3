//! From the text of a services.json to `Services`, or to every fault in it with its path and its remedy.
//!
//! Two passes: each entry by itself, then what they must not share and what they must agree on. A fault in one place never
//! hides those in another.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::subject::{self, SubjectError};
use super::tree::{Tree, join, shown};
use super::{CONTROLLER_KINDS, DEFAULT_PREFIX, Fault, Kind, MAX_PREFIX_BYTES, STORAGE_KINDS, Services};
use crate::config::nearest::nearest;
use crate::types::{ControllerId, MAX_NODE_ID, StorageId};

const FILE_KEYS: &[&str] = &["metadataServices", "storageServices", "prefix", "subjects"];
const SHARED_KEYS: &[&str] = &["log", "admin", "data"];
const CONTROLLER_KEYS: &[&str] = &["id", "subjects", "pairedStorageServiceIds", "pairedStorageServiceId"];
const STORAGE_KEYS: &[&str] = &["id", "subjects", "pairedMetadataServiceId", "rack"];
const MAX_RACK_BYTES: usize = 255;

/// Words in keys that older, URL-based files had.
const URL_WORDS: [&str; 7] = ["url", "uri", "address", "endpoint", "host", "port", "server"];

pub(super) fn parse(text: &str) -> Result<Services, Vec<Fault>> {
    // Some editors put a byte order mark in front; serde_json would call it an unexpected character.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let tree = serde_json::from_str::<Tree>(text).map_err(|error| vec![syntax_fault(&error)])?;
    let mut faults = Faults::default();
    let file = read_file(&tree, &mut faults);
    let services = file.map(|file| assemble(&file, &mut faults));
    match services {
        Some(services) if faults.0.is_empty() => Ok(services),
        Some(_) | None => Err(faults.0),
    }
}

pub(super) fn check_prefix(prefix: &str) -> Result<(), Fault> {
    let remedy = format!("write a short word like \"{DEFAULT_PREFIX}\", which is the default");
    let problem = match subject::check(prefix) {
        Err(error) => error.to_string(),
        Ok(()) if prefix.len() > MAX_PREFIX_BYTES => format!("a prefix has at most {MAX_PREFIX_BYTES} bytes"),
        Ok(()) => return Ok(()),
    };
    Err(Fault { path: "prefix".into(), problem, remedy })
}

#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, path: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Fault { path: path.into(), problem: problem.into(), remedy: remedy.into() });
    }
}

/// A subject as the file gives it.
struct Given {
    path: String,
    subject: String,
}

/// One service, as far as it could be read.
struct Entry {
    path: String,
    id: Option<u32>,
    subjects: Vec<(Kind, Given)>,
    /// The ids on the other side, with their paths.
    paired: Vec<(String, u32)>,
    /// Whether `paired` is all of them: the entry says something about its pairing, and all that it says could be read.
    paired_is_all: bool,
    rack: Option<String>,
}

struct File {
    prefix: String,
    /// `log`, `admin` and `data`, as far as they are given.
    shared: BTreeMap<&'static str, Given>,
    controllers: Vec<Entry>,
    storages: Vec<Entry>,
}

// ---- The first pass: every value by itself.

fn syntax_fault(error: &serde_json::Error) -> Fault {
    let text = error.to_string();
    let problem = text.split(" at line ").next().unwrap_or(&text);
    Fault {
        path: format!("line {}, column {}", error.line(), error.column()),
        problem: format!("not valid JSON: {problem}"),
        remedy: "correct it there; a comma too many or too few is the usual reason".into(),
    }
}

fn read_file(tree: &Tree, faults: &mut Faults) -> Option<File> {
    const SHAPE: &str = r#"write {"metadataServices": [{"id": 0, "pairedStorageServiceIds": [0]}], "storageServices": [{"id": 0, "pairedMetadataServiceId": 0}]}"#;
    let Tree::Object(fields) = tree else {
        faults.add("(the file)", format!("expected an object, found {}", tree.describe()), SHAPE);
        return None;
    };
    if fields.is_empty() {
        faults.add("(the file)", "it is empty; perhaps another file was meant", format!("{SHAPE}, or give no file"));
        return None;
    }
    let fields = Fields::read("", fields, FILE_KEYS, Context::File, faults);
    let prefix = read_prefix(&fields, faults);
    let shared = read_shared(&fields, &prefix, faults);
    let mut entries = |key, read: fn(&str, &Tree, &str, &mut Faults) -> Option<Entry>| match fields.get(key) {
        None => Vec::new(),
        Some(Tree::Array(items)) => {
            let each = items.iter().enumerate();
            each.filter_map(|(i, item)| read(&format!("{key}[{i}]"), item, &prefix, faults)).collect()
        }
        Some(other) => {
            faults.add(key, format!("expected a list, found {}", other.describe()), format!("write \"{key}\": []"));
            Vec::new()
        }
    };
    let controllers = entries("metadataServices", read_controller);
    let storages = entries("storageServices", read_storage);
    Some(File { prefix, shared, controllers, storages })
}

fn read_prefix(fields: &Fields<'_>, faults: &mut Faults) -> String {
    let checked = match fields.get("prefix") {
        None => return DEFAULT_PREFIX.into(),
        Some(Tree::Text(prefix)) => check_prefix(prefix).map(|()| prefix.clone()),
        Some(other) => Err(Fault {
            path: "prefix".into(),
            problem: format!("expected text, found {}", other.describe()),
            remedy: format!("write \"prefix\": \"{DEFAULT_PREFIX}\""),
        }),
    };
    checked.unwrap_or_else(|fault| {
        faults.0.push(fault);
        DEFAULT_PREFIX.into()
    })
}

fn read_shared(fields: &Fields<'_>, prefix: &str, faults: &mut Faults) -> BTreeMap<&'static str, Given> {
    let mut shared = BTreeMap::new();
    let Some(subjects) = fields.object("subjects", SHARED_KEYS, Context::Shared, faults) else { return shared };
    for key in SHARED_KEYS {
        let Some(value) = subjects.get(key) else { continue };
        let default = shared_default(key, prefix);
        let Some(given) = read_subject(subjects.path(key), value, &default, faults) else { continue };
        if *key != "log" && given.subject.len() > MAX_PREFIX_BYTES {
            let problem = format!("more tokens follow it, so it has at most {MAX_PREFIX_BYTES} bytes");
            faults.add(&given.path, problem, instead(&default));
        } else {
            shared.insert(*key, given);
        }
    }
    shared
}

fn shared_default(key: &str, prefix: &str) -> String {
    let stem = if key == "log" { "metadata.log" } else { key };
    format!("{prefix}.{stem}")
}

fn read_controller(path: &str, tree: &Tree, prefix: &str, faults: &mut Faults) -> Option<Entry> {
    let (fields, id) = read_entry(path, tree, CONTROLLER_KEYS, &CONTROLLER_KINDS, prefix, faults)?;
    let mut listed = Vec::new();
    let mut paired_is_all = false;
    if let Some(one) = fields.get("pairedStorageServiceId") {
        listed.push((fields.path("pairedStorageServiceId"), one));
        paired_is_all = true;
    }
    let key = "pairedStorageServiceIds";
    match fields.get(key) {
        None => {}
        Some(Tree::Array(items)) => {
            listed.extend(items.iter().enumerate().map(|(i, item)| (format!("{}[{i}]", fields.path(key)), item)));
            paired_is_all = true;
        }
        Some(other) => {
            let problem = format!("expected a list of ids, found {}", other.describe());
            faults.add(fields.path(key), problem, "write a list like [0, 1], or one id as \"pairedStorageServiceId\"");
            paired_is_all = false;
        }
    }
    let count = listed.len();
    let readable = listed.into_iter().filter_map(|(at, value)| read_id(&at, value, faults).map(|id| (at, id)));
    let paired: Vec<_> = readable.collect();
    paired_is_all &= paired.len() == count;
    let subjects = read_subjects(&fields, &CONTROLLER_KINDS, prefix, id, faults);
    Some(Entry { path: path.into(), id, subjects, paired, paired_is_all, rack: None })
}

fn read_storage(path: &str, tree: &Tree, prefix: &str, faults: &mut Faults) -> Option<Entry> {
    let (fields, id) = read_entry(path, tree, STORAGE_KEYS, &STORAGE_KINDS, prefix, faults)?;
    let at = fields.path("pairedMetadataServiceId");
    let paired = fields.get("pairedMetadataServiceId").and_then(|value| read_id(&at, value, faults));
    let paired: Vec<_> = paired.map(|id| (at, id)).into_iter().collect();
    let rack = fields.get("rack").and_then(|value| read_rack(fields.path("rack"), value, faults));
    let subjects = read_subjects(&fields, &STORAGE_KINDS, prefix, id, faults);
    Some(Entry { path: path.into(), id, subjects, paired_is_all: !paired.is_empty(), paired, rack })
}

fn read_entry<'a>(
    path: &str,
    tree: &'a Tree,
    known: &'static [&'static str],
    kinds: &'static [Kind],
    prefix: &str,
    faults: &mut Faults,
) -> Option<(Fields<'a>, Option<u32>)> {
    let Tree::Object(fields) = tree else {
        faults.add(path, format!("expected an object, found {}", tree.describe()), "write {\"id\": 0}");
        return None;
    };
    let id = fields.iter().find(|(key, _)| key == "id").map(|(_, value)| value);
    let quiet = id.and_then(|id| read_id("", id, &mut Faults::default()));
    let fields = Fields::read(path, fields, known, Context::Service { kinds, prefix, id: quiet }, faults);
    match id {
        Some(id) => _ = read_id(&join(path, "id"), id, faults),
        None => faults.add(path, "it has no \"id\"", "write \"id\": and a number of its own, from 0"),
    }
    Some((fields, quiet))
}

fn read_id(path: &str, tree: &Tree, faults: &mut Faults) -> Option<u32> {
    if let Tree::Whole(number) = tree
        && let Some(id) = u32::try_from(*number).ok().filter(|id| *id <= MAX_NODE_ID)
    {
        return Some(id);
    }
    let remedy = match tree {
        Tree::Text(text) if text.parse::<u32>().is_ok() => format!("write {} without quotes", text.trim_matches('+')),
        Tree::Null if !path.ends_with(".id") => "write a number, or leave the key out".into(),
        _ => format!("write a whole number from 0 to {MAX_NODE_ID}"),
    };
    faults.add(path, format!("{} is no id", tree.describe()), remedy);
    None
}

fn read_rack(path: String, tree: &Tree, faults: &mut Faults) -> Option<String> {
    let problem = match tree {
        Tree::Text(rack) if rack.trim().is_empty() => "a rack's name cannot be empty".into(),
        Tree::Text(rack) if rack.len() > MAX_RACK_BYTES => format!("a rack's name has at most {MAX_RACK_BYTES} bytes"),
        Tree::Text(rack) if rack.chars().any(char::is_control) => "a rack's name holds no control characters".into(),
        Tree::Text(rack) => return Some(rack.clone()),
        _ => format!("expected text, found {}", tree.describe()),
    };
    faults.add(path, problem, "write a name like \"rack-1\", or leave the key out");
    None
}

fn read_subjects(
    fields: &Fields<'_>,
    kinds: &'static [Kind],
    prefix: &str,
    id: Option<u32>,
    faults: &mut Faults,
) -> Vec<(Kind, Given)> {
    let known: Vec<&'static str> = kinds.iter().map(|kind| kind.key()).collect();
    let context = Context::Service { kinds, prefix, id };
    let Some(subjects) = fields.object("subjects", &known, context, faults) else { return Vec::new() };
    let read = |kind: &Kind| {
        let value = subjects.get(kind.key())?;
        let default = kind.default_subject(prefix, id.map_or("<id>".into(), |id| id.to_string()));
        Some((*kind, read_subject(subjects.path(kind.key()), value, &default, faults)?))
    };
    kinds.iter().filter_map(read).collect()
}

fn read_subject(path: String, tree: &Tree, default: &str, faults: &mut Faults) -> Option<Given> {
    let Tree::Text(subject) = tree else {
        faults.add(path, format!("expected a subject, found {}", tree.describe()), instead(default));
        return None;
    };
    match subject::check(subject) {
        Ok(()) => Some(Given { path, subject: subject.clone() }),
        Err(error @ SubjectError::Wildcard(..)) => {
            faults.add(path, error.to_string(), format!("{}; dmq makes the wildcards itself", instead(default)));
            None
        }
        Err(error) => {
            faults.add(path, error.to_string(), instead(default));
            None
        }
    }
}

fn instead(default: &str) -> String {
    format!("write \"{default}\", or leave the key out, which means the same")
}

/// An object's fields, whose keys have been checked.
struct Fields<'a> {
    path: String,
    fields: &'a [(String, Tree)],
}

/// Where an object stands, for the remedies.
#[derive(Clone, Copy)]
enum Context<'a> {
    File,
    Shared,
    Service { kinds: &'static [Kind], prefix: &'a str, id: Option<u32> },
}

impl<'a> Fields<'a> {
    fn read(
        path: &str,
        fields: &'a [(String, Tree)],
        known: &[&'static str],
        context: Context<'_>,
        faults: &mut Faults,
    ) -> Self {
        let mut seen = BTreeSet::new();
        for (key, value) in fields {
            let at = join(path, key);
            if !known.contains(&key.as_str()) {
                let (problem, remedy) = unknown_key(key, value, known, context);
                faults.add(at, problem, remedy);
            } else if !seen.insert(key) {
                faults.add(at, "this key stands here twice", "keep one of them");
            }
        }
        Self { path: path.into(), fields }
    }

    fn get(&self, key: &str) -> Option<&'a Tree> {
        self.fields.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    fn path(&self, key: &str) -> String {
        join(&self.path, key)
    }

    fn object(&self, key: &str, known: &[&'static str], context: Context<'_>, faults: &mut Faults) -> Option<Self> {
        match self.get(key)? {
            Tree::Object(fields) => Some(Self::read(&self.path(key), fields, known, context, faults)),
            other => {
                let found = format!("expected an object, found {}", other.describe());
                faults.add(self.path(key), found, "leave it out to get the default subjects");
                None
            }
        }
    }
}

fn unknown_key(key: &str, value: &Tree, known: &[&'static str], context: Context<'_>) -> (String, String) {
    let lower = key.to_lowercase();
    let url = matches!(value, Tree::Text(text) if text.contains("://")) || URL_WORDS.iter().any(|w| lower.contains(w));
    if let (true, Context::Service { kinds, prefix, id }) = (url, context) {
        let named = kinds.iter().find(|kind| lower.contains(kind.key()));
        let usual = kinds.iter().find(|kind| matches!(kind, Kind::Push | Kind::Fetch));
        if let Some(kind) = named.or(usual) {
            let subject = kind.default_subject(prefix, id.map_or("<id>".into(), |id| id.to_string()));
            let remedy = format!(
                "remove it and write \"subjects\": {{\"{}\": \"{subject}\"}}, or no \"subjects\" at all, which means the same",
                kind.key()
            );
            return ("services are reached on NATS subjects and have no URLs".into(), remedy);
        }
    }
    let all = known.iter().map(|key| format!("\"{key}\"")).collect::<Vec<_>>().join(", ");
    let remedy = match nearest(key, known.iter().copied()) {
        Some(near) => format!("perhaps \"{near}\" was meant (known here: {all})"),
        None => "remove it".into(),
    };
    (format!("unknown key {}", shown(key)), remedy)
}

// ---- The second pass: what services must not share, and what they must agree on.

fn assemble(file: &File, faults: &mut Faults) -> Services {
    let controllers = by_id(&file.controllers, "metadata service", faults);
    let storages = by_id(&file.storages, "storage service", faults);
    check_shared(file, faults);
    let entries = || file.controllers.iter().chain(&file.storages);
    check_subjects(file, entries(), faults);

    let mut services = Services { prefix: file.prefix.clone(), ..Services::default() };
    let shared = |key| {
        let given = file.shared.get(key).map(|given| given.subject.clone());
        given.filter(|subject| *subject != shared_default(key, &file.prefix))
    };
    (services.log, services.admin, services.data) = (shared("log"), shared("admin"), shared("data"));
    for entry in entries() {
        let Some(id) = entry.id else { continue };
        for (kind, given) in &entry.subjects {
            if given.subject != kind.default_subject(&file.prefix, id) {
                services.custom.insert((*kind, id), given.subject.clone());
                services.owners.insert(given.subject.clone(), kind.owner(id));
            }
        }
    }
    services.pairing = pair(file, &controllers, &storages, faults);
    services.controllers = controllers.keys().map(|id| ControllerId(*id)).collect();
    services.storages = storages.iter().map(|(id, entry)| (StorageId(*id), entry.rack.clone())).collect();
    services
}

fn by_id<'a>(entries: &'a [Entry], service: &str, faults: &mut Faults) -> BTreeMap<u32, &'a Entry> {
    let mut known: BTreeMap<u32, &Entry> = BTreeMap::new();
    let highest = entries.iter().filter_map(|entry| entry.id).max().unwrap_or(0);
    for entry in entries {
        let Some(id) = entry.id else { continue };
        if let Some(first) = known.get(&id) {
            let problem = format!("{service} {id} is already at {}", first.path);
            let remedy = match highest.checked_add(1) {
                Some(free) => format!("give it an id of its own, such as {free}"),
                None => "give it an id of its own".into(),
            };
            faults.add(join(&entry.path, "id"), problem, remedy);
        } else {
            known.insert(id, entry);
        }
    }
    known
}

/// `log`, `admin` and `data` must keep clear of each other and of what services have.
fn check_shared(file: &File, faults: &mut Faults) {
    for (key, given) in &file.shared {
        let default = shared_default(key, &file.prefix);
        let own = reserve(key, &given.subject);
        let others = SHARED_KEYS.iter().filter(|other| *other != key).map(|other| {
            let subject = file.shared.get(other).map(|given| given.subject.clone());
            (*other, subject.unwrap_or_else(|| shared_default(other, &file.prefix)))
        });
        let shared = others.map(|(other, subject)| (reserve(other, &subject), shared_name(other).to_owned()));
        let kinds = Kind::all().map(|kind| (kind.default_subject(&file.prefix, '*'), kind_name(kind)));
        let mut taken = kinds.chain(shared);
        if let Some((pattern, whose)) = taken.find(|(pattern, _)| subject::meet(&own, pattern)) {
            let problem = format!("{} meets \"{pattern}\", {whose}", shown(&given.subject));
            faults.add(&given.path, problem, instead(&default));
        }
    }
}

/// What `log`, `admin` or `data` takes up.
fn reserve(key: &str, subject: &str) -> String {
    if key == "log" { subject.into() } else { format!("{subject}.>") }
}

fn shared_name(key: &str) -> &'static str {
    match key {
        "log" => "the metadata log's subject",
        "admin" => "the admin commands' subjects",
        _ => "the data subjects",
    }
}

fn kind_name(kind: Kind) -> String {
    format!("the {}s' default \"{}\" subjects", kind.service(), kind.key())
}

/// No two services share a subject, and none has one that is another's default or is reserved.
fn check_subjects<'a>(file: &File, entries: impl Iterator<Item = &'a Entry>, faults: &mut Faults) {
    let shared = SHARED_KEYS.iter().map(|key| {
        let given = file.shared.get(key).map(|given| given.subject.clone());
        let subject = given.unwrap_or_else(|| shared_default(key, &file.prefix));
        (reserve(key, &subject), subject, shared_name(key))
    });
    let shared: Vec<_> = shared.collect();
    let wildcards: Vec<_> = Kind::all().map(|kind| (kind, kind.default_subject(&file.prefix, '*'))).collect();
    let mut first: HashMap<&str, &str> = HashMap::new();
    for entry in entries {
        for (kind, Given { path, subject }) in &entry.subjects {
            let id = entry.id.map_or("<id>".into(), |id| id.to_string());
            let default = kind.default_subject(&file.prefix, &id);
            if let Some(other) = first.get(subject.as_str()) {
                let problem = format!("{} is already the subject at {other}", shown(subject));
                faults.add(path, problem, instead(&default));
                continue;
            }
            first.insert(subject, path);
            let in_shared = shared.iter().find(|(pattern, base, _)| subject == base || subject::meet(pattern, subject));
            let in_kind = wildcards.iter().find(|(_, wildcard)| subject::meet(wildcard, subject));
            let problem = match (in_shared, in_kind) {
                (Some((pattern, _, whose)), _) => format!("{} meets \"{pattern}\", {whose}", shown(subject)),
                (None, Some((of, wildcard))) if of != kind => {
                    format!("{} meets \"{wildcard}\", {}", shown(subject), kind_name(*of))
                }
                // One's own default is fine to spell out; that of another id is not, for that service may join any time.
                (None, Some(_)) => match (kind.default_owner(&file.prefix, subject), entry.id) {
                    (Some(owner), Some(id)) if owner != id => {
                        format!("{} is the default subject of {} {owner}", shown(subject), kind.service())
                    }
                    (Some(_) | None, _) => continue,
                },
                (None, None) => continue,
            };
            faults.add(path, problem, instead(&default));
        }
    }
}

/// Who is paired with whom. Either side may say so; what both say must agree.
fn pair(
    file: &File,
    controllers: &BTreeMap<u32, &Entry>,
    storages: &BTreeMap<u32, &Entry>,
    faults: &mut Faults,
) -> BTreeMap<StorageId, ControllerId> {
    // An entry whose id cannot be read may be the one that is missed.
    let all_controllers = file.controllers.iter().all(|entry| entry.id.is_some());
    let all_storages = file.storages.iter().all(|entry| entry.id.is_some());
    let mut pairing: BTreeMap<u32, (u32, &str)> = BTreeMap::new();
    for (controller, entry) in controllers {
        for (path, storage) in &entry.paired {
            if !storages.contains_key(storage) {
                if !all_storages {
                    continue;
                }
                let problem = format!("there is no storage service {storage} in the file");
                faults.add(path, problem, "add it to \"storageServices\", or remove it here");
            } else if let Some((other, first)) = pairing.get(storage) {
                let problem =
                    format!("storage service {storage} is already paired with metadata service {other} at {first}");
                faults.add(path, problem, "keep it in one of the two places");
            } else {
                pairing.insert(*storage, (*controller, path));
            }
        }
    }
    for (storage, entry) in storages {
        let Some((path, controller)) = entry.paired.first() else { continue };
        let Some(other) = controllers.get(controller) else {
            if !all_controllers {
                continue;
            }
            let problem = format!("there is no metadata service {controller} in the file");
            faults.add(path, problem, "add it to \"metadataServices\", or name one that is there");
            continue;
        };
        match pairing.get(storage) {
            Some((paired, _)) if paired == controller => {}
            Some((paired, first)) => {
                let problem =
                    format!("it says {controller}, but {first} pairs storage service {storage} with {paired}");
                faults.add(path, problem, format!("write {paired} here, or remove {storage} there"));
            }
            None if other.paired_is_all => {
                let there = &other.path;
                let problem = format!("it says {controller}, but {there} does not list storage service {storage}");
                faults.add(path, problem, format!("add {storage} to {there}.pairedStorageServiceIds"));
            }
            None => _ = pairing.insert(*storage, (*controller, path)),
        }
    }
    pairing.into_iter().map(|(storage, (controller, _))| (StorageId(storage), ControllerId(controller))).collect()
}
