//! The schemas of `scripts/protocol`, against which every frame is held that a test receives, every answer of the admin
//! address, and every line of a trace. Another hand reads them: the crate `jsonschema`.
//!
//! [`Client`](crate::client::Client), [`Raw`](crate::client::Raw) and [`server_frames`](crate::wire::server_frames) call
//! [`hold_frame`] or [`hold_text`], and [`Client::ask`](crate::client::Client::ask) calls [`hold_command`], so that a test
//! has nothing to do for it; so do those who ask the admin address. What a schema refuses fails the test.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use jsonschema::{Registry, Validator};
use serde_json::{Map, Value, json};

use crate::project_file;

/// Where the schemas refer to each other; nothing is fetched from there.
const BASE: &str = "http://blackhole.invalid/protocol/schemas";

/// A validator for each schema, by the name of its file without `.json`; for each definition of `common` and `admin`,
/// by `common#NAME` and `admin#NAME`.
static VALIDATORS: LazyLock<BTreeMap<String, Validator>> = LazyLock::new(|| {
    let schemas = all();
    let mut registry = Registry::new();
    for (name, schema) in &schemas {
        registry = registry
            .add(format!("{BASE}/{name}.json"), schema.clone())
            .unwrap();
    }
    let registry = registry.prepare().unwrap();
    let build = |place: &str| {
        let built = jsonschema::options()
            .offline()
            .with_registry(&registry)
            .build(&json!({ "$ref": format!("{BASE}/{place}") }));
        built.unwrap_or_else(|error| panic!("{place}: {error}"))
    };
    let mut validators = BTreeMap::new();
    for (name, schema) in &schemas {
        validators.insert(name.clone(), build(&format!("{name}.json")));
        for part in schema["$defs"].as_object().into_iter().flat_map(Map::keys) {
            let place = format!("{name}.json#/$defs/{part}");
            validators.insert(format!("{name}#{part}"), build(&place));
        }
    }
    validators
});

/// The folder of the schemas.
#[must_use]
pub fn folder() -> std::path::PathBuf {
    project_file("scripts/protocol/schemas")
}

/// All schemas, by the names of their files without `.json`.
#[must_use]
pub fn all() -> BTreeMap<String, Value> {
    let files = fs::read_dir(folder()).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    paths.map(|path| (stem(&path), read(&path))).collect()
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_owned()
}

fn read(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Panics unless a schema is one of 2020-12, and read as draft 07 one of that: AsyncAPI reads it so.
pub fn hold_schema(name: &str, schema: &Value) {
    assert_eq!(
        schema["$schema"], "https://json-schema.org/draft/2020-12/schema",
        "{name}"
    );
    jsonschema::meta::validate(schema).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut old = schema.clone();
    old.as_object_mut().unwrap().remove("$schema");
    let held = jsonschema::draft7::meta::validate(&old);
    held.unwrap_or_else(|error| panic!("{name} as draft 07: {error}"));
}

/// Why `value` does not fit the schema of this name, a line each; none: it fits.
pub fn faults(schema: &str, value: &Value) -> Vec<String> {
    let validator = VALIDATORS
        .get(schema)
        .unwrap_or_else(|| panic!("no schema {schema}"));
    let errors = validator.iter_errors(value);
    errors
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

/// Panics unless `value` fits the schema of this name.
pub fn hold(schema: &str, value: &Value) {
    let faults = faults(schema, value);
    assert!(
        faults.is_empty(),
        "not as {schema}.json of scripts/protocol says:\n{}\n{value}",
        faults.join("\n")
    );
}

/// The schema of a frame of the server, told by what tells a client. `None`: it is none of the protocol's.
#[must_use]
pub fn kind_of(frame: &Value) -> Option<&'static str> {
    let (data, name) = (&frame["data"], frame["name"].as_str());
    let kind = match (frame["action"].as_str()?, name) {
        ("reply", _) if frame["status"] == "error" => "error",
        ("reply", _) if data.get("response").is_some() => "pong",
        ("reply", _) if data.get("unsubscribed").is_some() => "unsubscribed",
        ("reply", _) => "subscribed",
        ("event", _) if frame.get("args").is_some() => "event-piston",
        ("event", _) => "event-kazoo",
        ("notice", Some("gap")) => "gap",
        ("notice", Some("resumed")) => "resumed",
        ("notice", Some("subscriptions_ended")) => "subscriptions_ended",
        ("notice", Some("going_away")) => "going_away",
        _ => return None,
    };
    Some(kind)
}

/// Panics unless a frame of the server is as its schema says, and its errors, if it has some, are of those that the
/// schemas list.
pub fn hold_frame(frame: &Value) {
    let kind = kind_of(frame).unwrap_or_else(|| panic!("no frame of the protocol: {frame}"));
    hold(kind, frame);
    for error in errors(frame) {
        hold("common#known_error", error);
    }
}

/// As [`hold_frame`], of a text as it came. One that `serde_json` cannot read, as the body of an event may be, is passed
/// over: half a surrogate pair, a number that no float holds.
pub fn hold_text(text: &[u8]) {
    if let Ok(frame) = serde_json::from_slice(text) {
        hold_frame(&frame);
    }
}

/// Panics unless the body of an answer of the admin address is as one of the schemas of such answers says.
pub fn hold_answer(body: &str) {
    let answer = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"));
    hold("admin#answer", &answer);
}

/// Panics unless a command and its reply are as the schema of commands says: one that fits it is never refused for its
/// shape, and one that is done fits it, but for what the server takes beside ([`plain`]). A reply to another command is
/// passed over.
pub fn hold_command(command: &Value, reply: &Value) {
    let id = plain(command)["request_id"].clone();
    if id.is_string() && id != reply["request_id"] {
        return;
    }
    let faults = faults("command", command);
    let of_shape: Vec<&Value> = errors(reply)
        .filter(|error| is_of_shape(error.as_str().unwrap_or_default()))
        .collect();
    assert!(
        !faults.is_empty() || of_shape.is_empty(),
        "fits command.json and is refused for its shape: {of_shape:?}\n{command}"
    );
    if reply["status"] == "success" && !faults.is_empty() {
        hold("command", &plain(command));
    }
}

fn errors(reply: &Value) -> impl Iterator<Item = &Value> {
    let errors = (reply["status"] == "error").then(|| reply["data"]["errors"].as_array());
    errors.flatten().into_iter().flatten()
}

/// Whether an error says that a command is not as commands are, whoever sends it.
fn is_of_shape(error: &str) -> bool {
    const TEXTS: [&str; 4] = [
        "missing action",
        "missing required keys in data object",
        "missing required keys : binding",
        "missing required keys : account_id, binding",
    ];
    TEXTS.contains(&error)
        || ["invalid JSON: ", "unknown action "]
            .iter()
            .any(|beginning| error.starts_with(beginning))
        || error
            .strip_prefix("invalid ")
            .is_some_and(|field| !field.contains(' '))
}

/// A command as its author may have meant it: the server takes `null` and an empty text for absent, a number for a request
/// id, and in an unsubscribe anything for an account, of which there is then nothing to end.
#[must_use]
pub fn plain(command: &Value) -> Value {
    let mut plain = command.clone();
    if let Some(id) = plain.get_mut("request_id").filter(|id| id.is_number()) {
        *id = json!(id.to_string());
    }
    let is_unsubscribe = plain["action"] == "unsubscribe";
    if let Some(account) = plain.pointer_mut("/data/account_id")
        && is_unsubscribe
        && account.as_str().is_some_and(|id| !id.is_empty())
    {
        *account = json!("*");
    }
    if plain["data"] == json!({}) {
        plain["data"] = Value::Null;
    }
    let is_there = |value: &Value| !value.is_null() && *value != "";
    if let Value::Object(members) = &mut plain {
        if let Some(Value::Object(data)) = members.get_mut("data") {
            data.retain(|_, value| is_there(value));
        }
        members.retain(|_, value| is_there(value));
    }
    plain
}
