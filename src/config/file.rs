//! The config file: one JSON object of the keys of [`Options`], with underscores; or the platform's own document
//! ([`document`]).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use super::error::ConfigError;
use super::exit::Note;
use super::options::Options;
use super::values::NodeName;
use super::{document, known};
use crate::json::{self, Members};

/// What a config file says.
#[derive(Default)]
pub(super) struct FromFile {
    pub(super) options: Options,
    /// What the operator is to be told of it.
    pub(super) notes: Vec<Note>,
    /// Of the platform's document, where each key is written: `default.port`.
    written: BTreeMap<String, String>,
}

impl FromFile {
    /// How messages name a key of `file`, or a path below one.
    pub(super) fn place(&self, file: &Path, path: &str) -> String {
        let (key, below) = path.split_at(path.find(['[', '.']).unwrap_or(path.len()));
        match self.written.get(key) {
            Some(written) => known::place(file, &format!("{written}{below}")),
            None => known::place(file, path),
        }
    }
}

/// Reads `file`. Keys that are not in it have their defaults. Of the platform's document it takes the part of
/// `node_name`, or else of the one that the document gives, or else of `usual`.
///
/// # Errors
/// The file cannot be read or is not a JSON object; a key is unknown, given twice, or its value does not fit.
pub(super) fn read(
    file: &Path,
    node_name: Option<&NodeName>,
    usual: &NodeName,
) -> Result<FromFile, ConfigError> {
    let text = fs::read_to_string(file).map_err(|error| ConfigError::File {
        file: file.to_owned(),
        problem: format!("cannot be read: {error}"),
    })?;
    parse(file, &text, node_name, usual)
}

fn parse(
    file: &Path,
    text: &str,
    node_name: Option<&NodeName>,
    usual: &NodeName,
) -> Result<FromFile, ConfigError> {
    let members: Members<Value> =
        serde_json::from_str(text).map_err(|error| ConfigError::File {
            file: file.to_owned(),
            problem: json::problem(&error, "a JSON object of keys and values"),
        })?;
    let mut read = FromFile::default();
    let keys: Map<String, Value> = if document::is_document(&members) {
        let document::Document { keys, notes } = document::read(file, text, node_name, usual)?;
        read.notes = notes;
        let written = |(key, (written, _)): (&String, &(String, _))| (key.clone(), written.clone());
        read.written = keys.iter().map(written).collect();
        keys.into_iter()
            .map(|(key, (_, value))| (key, value))
            .collect()
    } else {
        known::check(&|key: &str| known::place(file, key), &members, &[])?;
        members.0.into_iter().collect()
    };
    // Each key fits by itself, and no rule spans two of them here.
    read.options =
        serde_json::from_value(Value::Object(keys)).map_err(|error| ConfigError::File {
            file: file.to_owned(),
            problem: error.to_string(),
        })?;
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<FromFile, ConfigError> {
        let usual = NodeName("blackhole@host".to_owned());
        super::parse(Path::new("config.json"), text, None, &usual)
    }

    fn problem(text: &str) -> String {
        parse(text)
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
                "config.json: port: expected a whole number from 0 to 65535, or null, found \"abc\"",
            ),
            (
                r#"{"ssl_port": null}"#,
                "config.json: ssl_port: expected a whole number from 0 to 65535, found null",
            ),
            (
                r#"{"ssl_cert": ["a.pem", ""]}"#,
                "config.json: ssl_cert: item 2: expected the name of a file",
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
        let read = parse(&text).expect("the defaults are valid");
        assert_eq!(
            serde_json::to_string(&read.options).expect("options are JSON"),
            text
        );
    }
}
