//! The keys that a config file may hold, and the wording of what is wrong with one.
//!
//! Invariant: a message names the file and the key, and repeats no key that may be a secret of another file.

use std::path::Path;

use serde_json::{Map, Value};

use super::cli;
use super::error::ConfigError;
use super::options::Options;
use crate::closest::closest;
use crate::json::Members;

/// Checks that each member is a key with a value that fits, or one of `passed_over`, and that none stands twice. `place`
/// names a key.
pub(super) fn check(
    place: &dyn Fn(&str) -> String,
    members: &Members<Value>,
    passed_over: &[&str],
) -> Result<(), ConfigError> {
    let wrong = |key: &str, problem: String| ConfigError::Value {
        place: place(key),
        problem,
    };
    let known = cli::defaults();
    for (index, (key, value)) in members.0.iter().enumerate() {
        if passed_over.contains(&&**key) {
            continue;
        }
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
    match members.repeated().and_then(|index| members.0.get(index)) {
        Some((key, _)) => Err(wrong(key, "given twice".to_owned())),
        None => Ok(()),
    }
}

/// How messages name a key of `file`.
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
    match closest(key, known.map(String::as_str)) {
        Some(name) => format!("unknown key; did you mean {name}?"),
        None => UNKNOWN.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
