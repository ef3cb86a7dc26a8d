//! The platform's own document about this app, taken as the config file (PROTOCOL 9):
//! `{"_id": "blackhole", "_rev": …, "pvt_…": …, "default": {…}, "NODE@HOST": {…}}`.
//!
//! What is in force is the part `default`, and over it, key by key, the part that is called as this process is
//! (`node_name`). The keys are those of any config file, and those of the platform that mean nothing here, which are
//! passed over and named in a [`Note`], as are the parts of other nodes. What the database keeps for itself (`_…` and
//! `pvt_…`) is passed over without a word.
//!
//! | in the document | what happens |
//! |---|---|
//! | a key of ours | as in any config file, a value that does not fit is refused |
//! | `use_plaintext` | false: as `"port": null` |
//! | one of `PLATFORM_KEYS` | named, passed over |
//! | another key | refused, with the key that is likely meant |
//! | in `autoload_modules`: `bh_…` which is no slip of a module of ours | named, passed over |
//! | another part: an object, and no slip of `default` | named, passed over |

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use serde_json::value::RawValue;

use super::error::ConfigError;
use super::exit::Note;
use super::known;
use super::values::{NodeName, Text, Written};
use crate::closest::closest;
use crate::json::{self, Members};
use crate::routing::families::{FamilyOptions, FamilyProblem};

/// The key that tells such a document, and its value.
const ID: &str = "_id";
const APP: &str = "blackhole";

const DEFAULT: &str = "default";

/// The platform's word on its port without TLS, which is the key [`PORT`] here.
const USE_PLAINTEXT: &str = "use_plaintext";
const PORT: &str = "port";

/// Keys of the platform's app that mean nothing here: what its own listeners need; limits of older versions; and what the
/// platform lists to its users.
const PLATFORM_KEYS: [&str; 11] = [
    "acceptors",
    "bindings",
    "compress_response_body",
    "connections_per_account",
    "connections_per_source_ip",
    "keep_client_alive",
    "message_bucket_rate",
    "message_bucket_size",
    "ssl_password",
    "ssl_workers",
    "url",
];

/// What is passed over, in the words of a note.
const KEYS: &str = "keys";
const MODULES: &str = "modules";
const PARTS: &str = "parts";

/// The names of the platform's modules begin with it. Those that are no families of ours are parts of its own server, or
/// of an app beside it.
const MODULE_PREFIX: &str = "bh_";

/// Longest name that is passed over: the platform's nodes are Erlang's, whose names are no longer.
const NAME_BYTES_MAX: usize = 255;

/// Names of one kind that a note repeats; of more only the number is told. A plant may have hundreds of nodes.
const NAMED_MAX: usize = 20;

/// What such a document says.
pub(super) struct Document {
    /// The keys in force, each once, with where it is written: `default.port`.
    pub(super) keys: BTreeMap<String, (String, Value)>,
    /// What the operator is to be told.
    pub(super) notes: Vec<Note>,
}

/// Whether the members of a config file are such a document.
pub(super) fn is_document<T>(members: &Members<T>) -> bool {
    members.0.iter().any(|(key, _)| key == ID)
}

/// Reads the document `text` of `file`. `node_name`: the one of the command line, if there is one; it wins over that of
/// the part `default`, which wins over `usual`.
///
/// # Errors
/// The document is another app's; a part is no object; a key or a module is unknown, given twice, or its value does not
/// fit.
pub(super) fn read(
    file: &Path,
    text: &str,
    node_name: Option<&NodeName>,
    usual: &NodeName,
) -> Result<Document, ConfigError> {
    let parts: Members<&RawValue> =
        serde_json::from_str(text).map_err(|error| ConfigError::File {
            file: file.to_owned(),
            problem: json::problem(&error, "a JSON object"),
        })?;
    let wrong = |key: &str, problem: &str| ConfigError::Value {
        place: known::place(file, key),
        problem: problem.to_owned(),
    };
    if let Some(index) = parts.repeated() {
        return Err(wrong(&format!("key {}", index + 1), "given twice"));
    }
    let find = |name: &str| parts.0.iter().find(|(part, _)| part == name);
    let is_this_app = |id: &RawValue| id.get() == format!("{APP:?}");
    if !find(ID).is_some_and(|(_, id)| is_this_app(id)) {
        return Err(wrong(
            ID,
            &format!("expected {APP:?}, the document of this app"),
        ));
    }
    let mut reader = Reader {
        file,
        keys: BTreeMap::new(),
        passed_over: BTreeMap::new(),
    };
    if let Some((_, part)) = find(DEFAULT) {
        reader.take(DEFAULT, part)?;
    }
    let own = match (node_name, reader.keys.get("node_name")) {
        (Some(name), _) => name.print(),
        (None, Some((_, Value::String(name)))) => name.clone(),
        (None, _) => usual.print(),
    };
    let part = find(&own);
    if let Some((_, part)) = part {
        reader.take(&own, part)?;
    }
    let has_own = part.is_some();
    reader.take_use_plaintext()?;
    reader.pass_over_keys();
    reader.pass_over_modules()?;
    for (index, (name, part)) in parts.0.iter().enumerate() {
        let is_of_the_database = name.starts_with('_') || name.starts_with("pvt_");
        if is_of_the_database || name == DEFAULT || *name == own {
            continue;
        }
        let is_slip = closest(name, [DEFAULT].into_iter()).is_some();
        if part.get().starts_with('{') && is_name(name) && !is_slip {
            reader.pass_over(PARTS, name);
            continue;
        }
        let place = match is_name(name) {
            true => name.clone(),
            false => format!("key {}", index + 1),
        };
        let problem = match is_slip {
            true => format!("unknown; did you mean {DEFAULT}?"),
            false => format!("expected in the part {DEFAULT}, or in that of a node"),
        };
        return Err(wrong(&place, &problem));
    }
    let document = format!("{}: the platform's own document; in force:", file.display());
    let mut notes = vec![if has_own {
        Note::info(format!("{document} {DEFAULT}, and over it {own}"))
    } else {
        let text = format!("{document} {DEFAULT} alone; it has no part {own} (node_name)");
        if reader.passed_over.contains_key(PARTS) {
            Note::warning(text)
        } else {
            Note::info(text)
        }
    }];
    notes.extend(reader.note());
    Ok(Document {
        keys: reader.keys,
        notes,
    })
}

/// What has been read so far.
struct Reader<'f> {
    file: &'f Path,
    keys: BTreeMap<String, (String, Value)>,
    /// What is passed over, by kind: each name once.
    passed_over: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Reader<'_> {
    /// Lays the keys of one part over those before it.
    fn take(&mut self, name: &str, part: &RawValue) -> Result<(), ConfigError> {
        let place = known::place(self.file, name);
        let members: Members<Value> =
            serde_json::from_str(part.get()).map_err(|_| ConfigError::Value {
                place: place.clone(),
                problem: "expected a JSON object of keys and values".to_owned(),
            })?;
        let place = |key: &str| format!("{place}.{key}");
        known::check(
            &place,
            &members,
            &[&PLATFORM_KEYS[..], &[USE_PLAINTEXT]].concat(),
        )?;
        let of_this_part = |(key, value)| {
            let written = format!("{name}.{key}");
            (key, (written, value))
        };
        self.keys.extend(members.0.into_iter().map(of_this_part));
        Ok(())
    }

    /// Puts `"port": null` in the place of `"use_plaintext": false`.
    fn take_use_plaintext(&mut self) -> Result<(), ConfigError> {
        let Some((written, value)) = self.keys.remove(USE_PLAINTEXT) else {
            return Ok(());
        };
        let is_open = bool::from_json(&value).map_err(|problem| ConfigError::Value {
            place: known::place(self.file, &written),
            problem: problem.0,
        })?;
        if !is_open {
            self.keys.insert(PORT.to_owned(), (written, Value::Null));
        }
        Ok(())
    }

    /// Takes out what means nothing here.
    fn pass_over_keys(&mut self) {
        for key in PLATFORM_KEYS {
            if self.keys.remove(key).is_some() {
                self.pass_over(KEYS, key);
            }
        }
    }

    /// Takes the modules that mean nothing here out of `autoload_modules`.
    fn pass_over_modules(&mut self) -> Result<(), ConfigError> {
        let mut known = FamilyOptions::default().autoload_modules;
        if let Some((_, Value::Array(families))) = self.keys.get("families") {
            let module = |family: &Value| {
                let name = family.get("module").or(family.get("name"));
                name.and_then(Value::as_str).map(str::to_owned)
            };
            known.extend(families.iter().filter_map(module));
        }
        let Some((written, Value::Array(modules))) = self.keys.get_mut("autoload_modules") else {
            return Ok(());
        };
        let mut passed_over = Vec::new();
        let mut kept = Vec::new();
        for (index, module) in std::mem::take(modules).into_iter().enumerate() {
            let name = module.as_str().unwrap_or_default();
            if known.iter().any(|known| known == name) {
                kept.push(module);
                continue;
            }
            let problem = match closest(name, known.iter().map(String::as_str)) {
                Some(meant) => format!("unknown module; did you mean {meant}?"),
                None if name.starts_with(MODULE_PREFIX) && is_name(name) => {
                    passed_over.push(name.to_owned());
                    continue;
                }
                None => FamilyProblem::UnknownModule(name.to_owned()).to_string(),
            };
            let place = known::place(self.file, &format!("{written}[{index}]"));
            return Err(ConfigError::Value { place, problem });
        }
        *modules = kept;
        for module in passed_over {
            self.pass_over(MODULES, &module);
        }
        Ok(())
    }

    fn pass_over(&mut self, kind: &'static str, name: &str) {
        let names = self.passed_over.entry(kind).or_default();
        names.insert(name.to_owned());
    }

    /// What was passed over, in one line.
    fn note(&self) -> Option<Note> {
        let of_kind = |(kind, names): (&&str, &BTreeSet<String>)| {
            let named: Vec<&str> = names.iter().take(NAMED_MAX).map(String::as_str).collect();
            let named = named.join(", ");
            match names.len().checked_sub(NAMED_MAX) {
                Some(more @ 1..) => format!("{kind} {named} and {more} more"),
                _ => format!("{kind} {named}"),
            }
        };
        let kinds: Vec<String> = self.passed_over.iter().map(of_kind).collect();
        (!kinds.is_empty()).then(|| {
            Note::info(format!(
                "{}: passed over, since it means nothing here: {}",
                self.file.display(),
                kinds.join("; ")
            ))
        })
    }
}

/// Whether a message may repeat the name of a part or a module.
fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Modules that the platform's releases and the apps beside it are known to have.
    const OF_THE_PLATFORM: [&str; 18] = [
        "bh_acdc_queue",
        "bh_acdc_stats",
        "bh_api",
        "bh_auth",
        "bh_authz_subscribe",
        "bh_cmd",
        "bh_events",
        "bh_limit",
        "bh_limits",
        "bh_live",
        "bh_ping",
        "bh_queue_live",
        "bh_qubicle",
        "bh_relay",
        "bh_skel",
        "bh_stream",
        "bh_token",
        "bh_token_auth",
    ];

    #[test]
    fn nothing_of_the_platforms_is_taken_for_a_slip_of_ours() {
        let families = FamilyOptions::default().autoload_modules;
        for module in OF_THE_PLATFORM {
            let closest = closest(module, families.iter().map(String::as_str));
            assert_eq!(closest, None, "{module}");
            assert!(module.starts_with(MODULE_PREFIX) && is_name(module));
        }
        assert!(PLATFORM_KEYS.is_sorted());
        for key in PLATFORM_KEYS.into_iter().chain([USE_PLAINTEXT]) {
            let ours = super::super::cli::defaults();
            assert!(!ours.contains_key(key), "{key} means something here");
        }
    }

    #[test]
    fn a_note_names_as_many_as_it_may_and_counts_the_rest() {
        let nodes: String = (0..NAMED_MAX + 3)
            .map(|node| format!(r#","n{node:02}@h":{{}}"#))
            .collect();
        let text = format!(r#"{{"_id":"blackhole"{nodes}}}"#);
        let name = NodeName("a@b".to_owned());
        let read = read(Path::new("f"), &text, None, &name).expect("a document");
        let texts: Vec<&str> = read.notes.iter().map(|note| &*note.text).collect();
        assert!(texts[1].ends_with("n18@h, n19@h and 3 more"), "{texts:?}");
        assert_eq!(read.notes[0].level, log::Level::Warn);
    }
}
