//! The config file: one JSON object of the keys of [`Options`], with underscores.
//!
//! Invariant: a message names the file and the key, and repeats no key that may be a secret of another file.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use super::cli;
use super::error::ConfigError;
use super::options::Options;
use crate::json::{self, Members};

/// Reads `file`. Keys that are not in it have their defaults.
///
/// # Errors
/// The file cannot be read or is not a JSON object; a key is unknown, given twice, or its value does not fit.
pub(super) fn read(file: &Path) -> Result<Options, ConfigError> {
    let text = fs::read_to_string(file).map_err(|error| ConfigError::File {
        file: file.to_owned(),
        problem: format!("cannot be read: {error}"),
    })?;
    parse(file, &text)
}

fn parse(file: &Path, text: &str) -> Result<Options, ConfigError> {
    let members: Members<Value> =
        serde_json::from_str(text).map_err(|error| ConfigError::File {
            file: file.to_owned(),
            problem: json::problem(&error, "a JSON object of keys and values"),
        })?;
    let wrong = |key: &str, problem: String| ConfigError::Value {
        place: place(file, key),
        problem,
    };
    let known = cli::defaults();
    for (index, (key, value)) in members.0.iter().enumerate() {
        if !known.contains_key(key) {
            return Err(match shown(key, value) {
                Some(key) => wrong(key, unknown(key, known.keys())),
                None => wrong(&format!("key {}", index + 1), UNKNOWN.to_owned()),
            });
        }
        let alone = Map::from_iter([(key.clone(), value.clone())]);
        serde_json::from_value::<Options>(Value::Object(alone))
            .map_err(|error| wrong(key, error.to_string()))?;
    }
    if let Some((key, _)) = members.repeated().and_then(|index| members.0.get(index)) {
        return Err(wrong(key, "given twice".to_owned()));
    }
    // Each key fits by itself, and no rule spans two of them here.
    serde_json::from_value(Value::Object(members.0.into_iter().collect())).map_err(|error| {
        ConfigError::File {
            file: file.to_owned(),
            problem: error.to_string(),
        }
    })
}

/// How messages name a key of the file.
pub(super) fn place(file: &Path, key: &str) -> String {
    format!("{}: {key}", file.display())
}

const UNKNOWN: &str = "unknown key; blackhole --help lists them, with dashes for underscores";

/// Returns an unknown key if a message may repeat it. In a file that was not meant as a config file, such as the token
/// file, keys may be secrets: a key is shown only if it is written as our keys are and its value is not an object.
fn shown<'k>(key: &'k str, value: &Value) -> Option<&'k str> {
    let is_plain = |byte| matches!(byte, b'a'..=b'z' | b'_' | b'-');
    (key.bytes().all(is_plain) && !value.is_object()).then_some(key)
}

/// Returns the message about an unknown key, with the key that is likely meant: dashes for underscores, or a typing
/// error.
fn unknown<'a>(key: &str, known: impl Iterator<Item = &'a String>) -> String {
    let meant = key.replace('-', "_").to_ascii_lowercase();
    let closest = known
        .map(|name| (strsim::levenshtein(&meant, name), name))
        .min();
    match closest {
        Some((steps, name)) if steps <= 2.max(name.len() / 4) => {
            format!("unknown key; did you mean {name}?")
        }
        _ => UNKNOWN.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        parse(Path::new("config.json"), text)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn a_file_that_does_not_fit_is_refused_with_file_key_and_expectation() {
        let long = "x".repeat(40);
        for (text, expected) in [
            (
                r#"{"port": "abc"}"#,
                "config.json: port: expected a whole number from 0 to 65535, found \"abc\"",
            ),
            (
                r#"{"port": null}"#,
                "config.json: port: expected a whole number from 0 to 65535, found null",
            ),
            (
                r#"{"prot": 1}"#,
                "config.json: prot: unknown key; did you mean port?",
            ),
            (
                r#"{"max-outbox-bytes": 1}"#,
                "config.json: max-outbox-bytes: unknown key; did you mean max_outbox_bytes?",
            ),
            (
                r#"{"config": "x"}"#,
                "config.json: config: unknown key; blackhole --help lists them, with dashes for underscores",
            ),
            (
                r#"{"port": 1, "Hunter2": 1}"#,
                "config.json: key 2: unknown key; blackhole --help lists them, with dashes for underscores",
            ),
            (
                r#"{"hunter": {"account_id": "x"}}"#,
                "config.json: key 1: unknown key; blackhole --help lists them, with dashes for underscores",
            ),
            (
                r#"{"source": "amqp://user:hunter2@broker"}"#,
                "config.json: source: expected amqp, demo or replay:FILE",
            ),
            (
                r#"{"port": 1, "ip": "::", "port": 1}"#,
                "config.json: port: given twice",
            ),
            (
                r#"{"amqp": "amqp://broker"}"#,
                "config.json: amqp: expected a list, each item a broker URL such as amqp://user:password@127.0.0.1:5672/%2f",
            ),
            (
                r#"{"amqp": ["amqps://a", "amqpz://b"]}"#,
                "config.json: amqp: item 2: the scheme is neither amqp nor amqps; expected a broker URL such as amqp://user:password@127.0.0.1:5672/%2f",
            ),
            (
                r#"{"families": [1]}"#,
                "config.json: families: item 1: expected a JSON object, found 1",
            ),
            (
                r#"{"request_timeout_ms": 0}"#,
                "config.json: request_timeout_ms: expected a whole number from 1 to 4294967295, found 0",
            ),
            (
                r#"{"gap_notices": "no"}"#,
                "config.json: gap_notices: expected true or false, found \"no\"",
            ),
            (
                "[]",
                "config.json: line 1 column 0: expected a JSON object of keys and values",
            ),
            (
                "{\n\"port\": 1,\n}",
                "config.json: not JSON: trailing comma at line 3 column 1",
            ),
            (
                "",
                "config.json: not JSON: EOF while parsing a value at line 1 column 0",
            ),
            (
                &format!(r#"{{"{long}": 1}}"#),
                &format!(
                    "config.json: {long}: unknown key; blackhole --help lists them, with dashes for underscores"
                ),
            ),
        ] {
            assert_eq!(problem(text), expected, "{text}");
        }
    }

    #[test]
    fn a_file_with_every_key_at_its_default_changes_nothing() {
        let text = serde_json::to_string(&Options::default()).expect("options are JSON");
        let read = parse(Path::new("config.json"), &text).expect("the defaults are valid");
        assert_eq!(
            serde_json::to_string(&read).expect("options are JSON"),
            text
        );
    }

    #[test]
    fn the_closest_key_is_suggested_unless_it_takes_too_many_slips() {
        for (key, meant) in [
            ("prot", Some("port")),
            ("pi", Some("ip")),
            ("amp", Some("amqp")),
            ("AMQP", Some("amqp")),
            ("admn", Some("admin")),
            ("", Some("ip")),
            ("xx", Some("ip")),
            ("max-connections-per-ip", Some("max_connections_per_ip")),
            ("connections_per_ip", Some("max_connections_per_ip")),
            ("timeout", None),
            ("configuration", None),
            ("päfetch", Some("prefetch")),
        ] {
            let expected = meant.map_or(UNKNOWN.to_owned(), |meant| {
                format!("unknown key; did you mean {meant}?")
            });
            assert_eq!(unknown(key, cli::defaults().keys()), expected, "{key}");
        }
    }
}
