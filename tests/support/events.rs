//! The platform's events as its publishers send them, and what the two styles make of them (PROTOCOL 5).

use std::process::Command;

use serde_json::{Map, Value, json};

use super::client::Client;
use super::server::Fed;

/// The account of the fixture events.
pub const ACCOUNT: &str = "4b8c6fec4b2597882c0390202d195419";

/// An account that has nothing to do with the others.
pub const OTHER_ACCOUNT: &str = "0123456789abcdef0123456789abcdef";

/// The parent of [`ACCOUNT`].
pub const PARENT_ACCOUNT: &str = "ffffffffffffffffffffffffffffffff";

/// The call of the fixture events.
pub const CALL_ID: &str = "at6dmu4ffk97vnlp6qfq";

/// The platform's three example events in the order of a call: name, and the body as it is published.
pub const FIXTURES: [(&str, &str); 3] = [
    (
        "CHANNEL_CREATE",
        include_str!("../fixtures/events/channel_create.json"),
    ),
    (
        "CHANNEL_ANSWER",
        include_str!("../fixtures/events/channel_answer.json"),
    ),
    (
        "CHANNEL_DESTROY",
        include_str!("../fixtures/events/channel_destroy.json"),
    ),
];

/// The routing key that an event of the call of [`FIXTURES`] is published with.
pub fn fixture_key(name: &str) -> String {
    format!("call.{name}.{CALL_ID}")
}

/// The three of [`FIXTURES`], parsed, with their routing keys.
pub fn fixtures() -> [(String, Value); 3] {
    FIXTURES.map(|(name, text)| (fixture_key(name), serde_json::from_str(text).unwrap()))
}

/// A small call event, numbered.
pub fn call_event(account: &str, event: &str, number: usize) -> Value {
    json!({"Event-Category": "call_event", "Event-Name": event, "Call-ID": "c", "Number": number,
        "Custom-Channel-Vars": {"Account-ID": account}})
}

/// A call event of about `bytes` bytes, numbered.
pub fn large_call_event(account: &str, number: usize, bytes: usize) -> Value {
    let mut event = call_event(account, "CHANNEL_CREATE", number);
    event["Padding"] = json!("x".repeat(bytes));
    event
}

/// The headers that style kazoo drops, as PROTOCOL 5 lists them.
const DROPPED: [&str; 14] = [
    "Access-Group",
    "Defer-Response",
    "Destination-Server",
    "Geo-Location",
    "System-Log-ID",
    "Node",
    "Server-Queue-ID",
    "Raw-Headers",
    "Server-ID",
    "Request-From-PID",
    "Reply-To-PID",
    "AMQP-Broker",
    "AMQP-Broker-Zone",
    "Deliver-To-PID",
];

/// The `data` of style kazoo for a body.
pub fn kazoo_data(body: &Value) -> Value {
    let kept = body
        .as_object()
        .unwrap()
        .iter()
        .filter(|(key, _)| !DROPPED.contains(&&***key));
    normalised(&Value::Object(
        kept.map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
    ))
}

fn normalised(value: &Value) -> Value {
    match value {
        Value::Object(members) => Value::Object(
            members
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| (key.to_lowercase().replace('-', "_"), normalised(value)))
                .collect::<Map<_, _>>(),
        ),
        Value::Array(items) => items.iter().map(normalised).collect(),
        other => other.clone(),
    }
}

/// The word of an account's database in a routing key (PROTOCOL 6, `DB`).
pub fn database(account: &str) -> String {
    format!(
        "account%2F{}%2F{}%2F{}",
        &account[..2],
        &account[2..4],
        &account[4..]
    )
}

/// The word of an account's database of the current UTC month (PROTOCOL 6, `MODB`), by another calendar than ours.
pub fn month_database(account: &str) -> String {
    let output = Command::new("date").args(["-u", "+%Y%m"]).output().unwrap();
    let month = String::from_utf8(output.stdout).unwrap();
    format!("{}-{}", database(account), month.trim())
}

/// Publishes the event that [`subscribe_to_marker`] asks for, and returns the events that `client` got before it:
/// so a test sees what a client does *not* get.
pub fn events_until_marker(fed: &mut Fed, account: &str, client: &mut Client) -> Vec<Value> {
    fed.publish(
        "callevt",
        "call.CHANNEL_HOLD.marker",
        &call_event(account, "CHANNEL_HOLD", 0),
    );
    let mut events = Vec::new();
    loop {
        let event = client.event();
        if event["name"] == "CHANNEL_HOLD" {
            return events;
        }
        events.push(event);
    }
}

/// Subscribes to what [`events_until_marker`] publishes, and to nothing else.
pub fn subscribe_to_marker(client: &mut Client, token: &str, account: &str) {
    client.must_subscribe(token, account, "call.CHANNEL_HOLD.marker");
}
