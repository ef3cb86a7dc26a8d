//! Client text to command (PROTOCOL 3).
//!
//! Input: the text of one message. Where it has the word `TOKEN`, that stands for a secret.
//!
//! Invariants: every JSON object is a command, whatever its fields hold; what is understood is what a plain reading of
//! the JSON tree gives; every bound holds; an error's text
//! comes whole through a reply; the text of an error that refuses the whole message, and what `Debug` shows of a
//! command whose auth token the secret is, do not depend on the secret.

use blackhole::protocol::command::{
    ACTION_ECHO_BYTES_MAX, Action, Command, CommandError, CommandLimits, Field, METADATA_DEPTH_MAX,
    MissingKeys, NAME_BYTES_MAX, REQUEST_ID_BYTES_MAX, Unsubscribe, first_request_id, parse,
};
use blackhole::protocol::frame::FrameBuilder;
use blackhole::protocol::reply::errors;
use serde::de::IgnoredAny;
use serde_json::Value;

const LIMITS: CommandLimits = CommandLimits {
    metadata_bytes_max: 200,
};

/// Two secrets of one length, neither of which begins with a letter that can go on within another JSON token.
const SECRETS: [&str; 2] = ["q3cret-one", "z9uiet-two"];

/// See the module's page.
pub fn check(data: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(data) else {
        return "not text".to_owned();
    };
    keeps_secrets(text);
    check_first_request_id(text);
    match parse(text, &LIMITS) {
        Ok(command) => {
            check_bounds(&command);
            check_against_the_tree(text, &command);
            match &command.action {
                Ok((Action::Subscribe { .. }, _)) => "subscribe".to_owned(),
                Ok((Action::Unsubscribe(_), _)) => "unsubscribe".to_owned(),
                Ok((Action::Ping, _)) => "ping".to_owned(),
                Err(error) => check_error(error),
            }
        }
        Err(error) => {
            match serde_json::from_str::<Value>(text) {
                Ok(Value::Object(tree)) => {
                    let invalid = CommandError::Invalid(Field::RequestId);
                    assert_eq!(error, invalid, "of {tree:?}");
                    let is_number = tree.get("request_id").is_some_and(Value::is_number);
                    assert!(is_number || request_id(&tree).is_err());
                }
                Ok(_) => assert!(matches!(error, CommandError::InvalidJson(_))),
                // A tree cannot hold all that is JSON: deep nesting, large numbers, half a surrogate pair.
                Err(_) if is_object(text) => {
                    assert_eq!(error, CommandError::Invalid(Field::RequestId));
                }
                Err(_) => assert!(matches!(error, CommandError::InvalidJson(_))),
            }
            check_error(&error)
        }
    }
}

/// Whether it is JSON by its grammar, and an object.
fn is_object(text: &str) -> bool {
    text.trim_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// Unless there are several, the one that is found early is the one that the whole has.
fn check_first_request_id(text: &str) {
    let found = first_request_id(text);
    if let Ok(command) = parse(text, &LIMITS)
        && text.matches("request").count() < 2
        && !text.contains("\\u")
    {
        assert_eq!(found, command.request_id);
    }
}

fn keeps_secrets(text: &str) {
    let occurrences = text.matches("TOKEN").count();
    if occurrences == 0 || text.contains(SECRETS[0]) {
        return;
    }
    let [one, two] = SECRETS.map(|secret| text.replace("TOKEN", secret));
    match (parse(&one, &LIMITS), parse(&two, &LIMITS)) {
        (Err(one), Err(two)) => {
            assert_eq!(one.to_string(), two.to_string());
            assert_eq!(format!("{one:?}"), format!("{two:?}"));
        }
        (Ok(one), Ok(two)) => {
            let is_secret = |token: &str| occurrences == 1 && token.contains(SECRETS[0]);
            if matches!(&one.auth_token, Ok(Some(token)) if is_secret(token)) {
                assert_eq!(format!("{one:?}"), format!("{two:?}"));
            }
        }
        (one, two) => panic!("{one:?} differs from {two:?}"),
    }
}

fn check_bounds(command: &Command<'_>) {
    if let Some(id) = &command.request_id {
        assert!(!id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX);
    }
    if let Ok(Some(token)) = &command.auth_token {
        assert!(!token.is_empty());
    }
    let Ok((action, label)) = &command.action else {
        return;
    };
    if let Some(name) = &label.name {
        assert!(!name.is_empty() && name.len() <= NAME_BYTES_MAX);
    }
    if let Some(metadata) = label.metadata {
        assert!(metadata.get().len() <= LIMITS.metadata_bytes_max);
        if let Ok(tree) = serde_json::from_str(metadata.get()) {
            assert!(depth(&tree) <= METADATA_DEPTH_MAX);
        }
    }
    let bindings = match action {
        Action::Subscribe { bindings, .. } => bindings,
        Action::Unsubscribe(Unsubscribe::Bindings { bindings, .. }) => {
            assert!(!bindings.is_empty());
            bindings
        }
        Action::Unsubscribe(_) | Action::Ping => return,
    };
    assert!(bindings.iter().all(|binding| !binding.is_empty()));
}

fn depth(tree: &Value) -> usize {
    match tree {
        Value::Array(elements) => 1 + elements.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// The error comes out of a reply as it went in; returns what kind it is.
fn check_error(error: &CommandError) -> String {
    let text = error.to_string();
    if let CommandError::UnknownAction(echo) = error {
        assert!(echo.len() <= ACTION_ECHO_BYTES_MAX);
    } else {
        assert!(text.len() <= 128, "the text has a fixed form: {text}");
    }
    let frame = errors(&mut FrameBuilder::new(), "r", [error]);
    let reply: Value =
        serde_json::from_str(super::payload_of(frame.bytes())).expect("a reply is JSON");
    assert_eq!(reply["status"], "error");
    assert_eq!(reply["data"]["errors"][0], text.as_str());
    let kind = format!("{error:?}");
    if let CommandError::Invalid(_) = error {
        return kind;
    }
    kind.split(['(', ' ']).next().unwrap_or_default().to_owned()
}

type Members = serde_json::Map<String, Value>;

/// Reads the same text as a tree and compares.
fn check_against_the_tree(text: &str, command: &Command<'_>) {
    let tree = match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(tree)) => tree,
        Ok(other) => panic!("a command out of {other}"),
        Err(_) => {
            assert!(is_object(text), "a command out of what is no object");
            return;
        }
    };
    let id = request_id(&tree).expect("valid");
    match tree.get("request_id") {
        Some(Value::Number(_)) => assert!(command.request_id.is_some()),
        _ => assert_eq!(command.request_id.as_deref(), id),
    }
    let token = match tree.get("auth_token") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(token)) => Ok(Some(token.as_str()).filter(|token| !token.is_empty())),
        Some(_) => Err(&CommandError::AuthenticationFailed),
    };
    assert_eq!(command.auth_token.as_ref().map(Option::as_deref), token);
    match (&command.action, expected_action(&tree)) {
        (Ok((action, label)), Ok(expected)) => {
            assert_eq!(*action, expected);
            let (name, metadata) = (labelled(&tree, "name"), labelled(&tree, "metadata"));
            let name = name.and_then(Value::as_str).filter(|name| !name.is_empty());
            assert_eq!(label.name.as_deref(), name);
            let kept = label.metadata.map(|metadata| {
                serde_json::from_str(metadata.get()).expect("part of a valid tree")
            });
            assert_eq!(kept.as_ref(), metadata);
        }
        (Err(CommandError::Invalid(Field::Name)), Ok(_)) => match labelled(&tree, "name") {
            Some(Value::String(name)) => assert!(name.len() > NAME_BYTES_MAX),
            name => assert!(name.is_some()),
        },
        (Err(CommandError::MetadataTooLarge(_)), Ok(_)) => {
            assert!(labelled(&tree, "metadata").is_some());
        }
        (Err(CommandError::Invalid(Field::Metadata)), Ok(_)) => {
            assert!(labelled(&tree, "metadata").map_or(0, depth) > METADATA_DEPTH_MAX);
        }
        (Err(error), Err(expected)) => assert_eq!(*error, expected),
        (found, expected) => panic!("{found:?} instead of {expected:?}"),
    }
}

/// The request id, if it can be told: of a number a tree keeps the value and not the digits.
fn request_id(tree: &Members) -> Result<Option<&str>, ()> {
    match tree.get("request_id") {
        None | Some(Value::Null | Value::Number(_)) => Ok(None),
        Some(Value::String(id)) if id.len() > REQUEST_ID_BYTES_MAX => Err(()),
        Some(Value::String(id)) => Ok(Some(id.as_str()).filter(|id| !id.is_empty())),
        Some(Value::Bool(_) | Value::Array(_) | Value::Object(_)) => Err(()),
    }
}

/// A label's value: that of `data` counts before that of the top level, and `null` is none.
fn labelled<'a>(tree: &'a Members, key: &str) -> Option<&'a Value> {
    let of_data = tree.get("data").and_then(|data| data.get(key));
    let is_there = |value: &&Value| !value.is_null();
    of_data.filter(is_there).or(tree.get(key).filter(is_there))
}

/// A text that is not empty; `None` when it is empty, `null` or absent.
fn text<'a>(
    members: &'a Members,
    key: &str,
    field: Field,
) -> Result<Option<&'a str>, CommandError> {
    match members.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(_) => Err(CommandError::Invalid(field)),
    }
}

/// `binding`, else `bindings`.
fn bindings(data: &Members) -> Result<Option<Vec<&str>>, CommandError> {
    if let Some(binding) = text(data, "binding", Field::Binding)? {
        return Ok(Some(vec![binding]));
    }
    let invalid = || CommandError::Invalid(Field::Bindings);
    match data.get("bindings") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(bindings)) => {
            let bindings = bindings
                .iter()
                .map(|binding| binding.as_str().filter(|binding| !binding.is_empty()))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(invalid)?;
            Ok(Some(bindings).filter(|bindings| !bindings.is_empty()))
        }
        Some(_) => Err(invalid()),
    }
}

fn expected_action(tree: &Members) -> Result<Action<'_>, CommandError> {
    let action = text(tree, "action", Field::Action)?.ok_or(CommandError::MissingAction)?;
    let empty = Members::new();
    let data = match tree.get("data") {
        None | Some(Value::Null) => None,
        Some(Value::Object(data)) => Some(data).filter(|data| !data.is_empty()),
        Some(_) if matches!(action, "subscribe" | "unsubscribe") => {
            return Err(CommandError::MissingData);
        }
        Some(_) => None,
    };
    let is_absent = |key| data.unwrap_or(&empty).get(key).is_none_or(Value::is_null);
    let (account, bindings) = match (action, data) {
        ("subscribe" | "unsubscribe", Some(data)) => {
            let account = text(data, "account_id", Field::AccountId)?;
            (account, bindings(data)?)
        }
        _ => (None, None),
    };
    let missing = CommandError::MissingKeys(MissingKeys {
        account_id: false,
        binding: true,
    });
    let cow = |bindings: Vec<_>| {
        bindings
            .into_iter()
            .map(std::borrow::Cow::Borrowed)
            .collect()
    };
    match (action, account, bindings) {
        ("subscribe", _, _) if data.is_none() => Err(CommandError::MissingData),
        ("subscribe", account_id, bindings) => Ok(Action::Subscribe {
            account_id: account_id.map(Into::into),
            bindings: cow(bindings.unwrap_or_default()),
            resume: None,
        }),
        ("unsubscribe", _, _) if data.is_none() => Ok(Action::Unsubscribe(Unsubscribe::All)),
        ("unsubscribe", account_id, Some(bindings)) => {
            Ok(Action::Unsubscribe(Unsubscribe::Bindings {
                account_id: account_id.map(Into::into),
                bindings: cow(bindings),
            }))
        }
        ("unsubscribe", Some(account), None) if is_absent("binding") && is_absent("bindings") => {
            Ok(Action::Unsubscribe(Unsubscribe::Account(account.into())))
        }
        ("unsubscribe", _, None) => Err(missing),
        ("ping", _, _) => Ok(Action::Ping),
        (unknown, _, _) => {
            let end = unknown.floor_char_boundary(ACTION_ECHO_BYTES_MAX);
            Err(CommandError::UnknownAction(unknown[..end].into()))
        }
    }
}
