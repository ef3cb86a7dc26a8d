//! The protocol for machines: `scripts/protocol`. That real traffic is as the schemas say is held wherever tests receive
//! frames (`support::schemas`); here, that the schemas refuse what is not so, that the examples of the AsyncAPI file are
//! what a server takes and sends, and that nothing is missing in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use proptest::prelude::*;
use rustix::process::Signal;
use serde_json::{Map, Value, json};

use blackhole::history::Why;
use blackhole::protocol::command::{
    Action, CommandError, CommandLimits, Field, MissingKeys, parse,
};
use blackhole::protocol::reply::EndReason;
use blackhole::routing::families::BindingError;
use blackhole::schemas::{ASYNCAPI, FILES, SCHEMA};
use support::client::{ANY_TOKEN, Client, Raw};
use support::events::{ACCOUNT, CALL_ID, large_call_event};
use support::project_file;
use support::publisher::Publisher;
use support::schemas::{all, faults, hold_schema, kind_of, plain};
use support::server::{Fed, Scratch, Server, TokenFile};

use crate::bridge::Host;

const TOKEN: &str = "token-of-the-account";
const NEIGHBOUR_TOKEN: &str = "token-of-the-neighbour";
const NEIGHBOUR: &str = "ffeeddccbbaa99887766554433221100";
const BINDING: &str = "call.CHANNEL_CREATE.*";

fn asyncapi() -> Value {
    let text = fs::read_to_string(project_file("scripts/protocol/asyncapi.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The examples of the AsyncAPI file, by message and name.
fn examples() -> BTreeMap<String, Value> {
    let file = asyncapi();
    let messages = file["components"]["messages"].as_object().unwrap();
    let of_message = |(message, told): (&String, &Value)| -> Vec<(String, Value)> {
        let examples = told["examples"].as_array().unwrap().iter();
        let named = examples.map(|example| {
            let name = example["name"].as_str().unwrap();
            (format!("{message}/{name}"), example["payload"].clone())
        });
        named.collect()
    };
    messages.iter().flat_map(of_message).collect()
}

fn is_command(kind: &str) -> bool {
    ["subscribe", "unsubscribe", "ping"].contains(&kind)
}

#[test]
fn every_schema_is_one_of_2020_12_and_one_of_draft_07_by_which_asyncapi_reads_it() {
    for (name, schema) in all() {
        hold_schema(&name, &schema);
    }
}

/// The names of the files that a union lists.
fn listed(union: &Value) -> BTreeSet<String> {
    let parts = union["oneOf"].as_array().unwrap().iter();
    let names = parts.map(|part| part["$ref"].as_str().unwrap());
    names
        .map(|name| name.strip_suffix(".json").unwrap().to_owned())
        .collect()
}

#[test]
fn every_message_has_a_schema_and_examples_and_every_operation_its_messages() {
    let (file, schemas) = (asyncapi(), all());
    assert_eq!(file["info"]["version"], env!("CARGO_PKG_VERSION"));
    let commands = listed(&schemas["command"]);
    let frames = listed(&schemas["server-frame"]);
    let mut files: BTreeSet<String> = schemas.into_keys().collect();
    for shared in ["command", "server-frame", "common", "admin"] {
        assert!(files.remove(shared), "{shared}");
    }
    assert_eq!(files, &commands | &frames, "in one of the unions");
    let messages = file["components"]["messages"].as_object().unwrap();
    assert_eq!(files, messages.keys().cloned().collect(), "and a message");
    for (name, message) in messages {
        assert_eq!(message["payload"]["$ref"], format!("schemas/{name}.json"));
        assert_ne!(message["examples"], json!([]));
        let on_channel = &file["channels"]["session"]["messages"][name]["$ref"];
        assert_eq!(*on_channel, format!("#/components/messages/{name}"));
    }
    let mut used = BTreeSet::new();
    for operation in file["operations"].as_object().unwrap().values() {
        let is_command = operation["action"] == "receive";
        for (messages, expected) in [
            (
                &operation["messages"],
                if is_command { &commands } else { &frames },
            ),
            (&operation["reply"]["messages"], &frames),
        ] {
            for message in messages.as_array().into_iter().flatten() {
                let message = message["$ref"].as_str().unwrap();
                let name = message.rsplit('/').next().unwrap();
                assert!(expected.contains(name), "{name}");
                used.insert(name.to_owned());
            }
        }
    }
    assert_eq!(used, files);
}

/// What differs from run to run is as it stands in the file: the time and the process of cursors, lengths of time, and how
/// many events a socket did not take.
fn steadied(value: &Value) -> Value {
    let member = |(key, value): (&String, &Value)| {
        let steady = match (&**key, value) {
            ("cursor" | "resume", Value::String(cursor)) => {
                let id = cursor.split('.').next().unwrap();
                let time = if id == "0" { "mid8x2q0" } else { "mid8x2q7" };
                json!(format!("{id}.{time}.k3v9zq"))
            }
            ("dropped", Value::Number(_)) => json!(12),
            ("seconds", Value::Number(_)) => json!(3.2),
            ("within_ms", Value::Number(_)) => json!(4000),
            _ => steadied(value),
        };
        (key.clone(), steady)
    };
    match value {
        Value::Object(members) => Value::Object(members.iter().map(member).collect()),
        other => other.clone(),
    }
}

/// What was sent and received, by message and name.
#[derive(Default)]
struct Seen(BTreeMap<String, Value>);

impl Seen {
    fn note(&mut self, name: &str, payload: &Value) {
        let before = self.0.insert(name.to_owned(), steadied(payload));
        assert_eq!(before, None, "{name}");
    }

    /// Sends the example of this name, with this cursor if it has one, and notes it and its reply.
    fn ask(
        &mut self,
        client: &mut Client,
        name: &str,
        cursor: Option<&str>,
        answer: &str,
    ) -> Value {
        let mut command = examples()[name].clone();
        if let Some(cursor) = cursor {
            command["data"]["resume"] = json!(cursor);
        }
        let reply = client.ask(&command);
        self.note(name, &command);
        self.note(answer, &reply);
        reply
    }
}

/// Sessions of a server that is fed by hand.
fn see_a_life(seen: &mut Seen) {
    let tokens = TokenFile::new(&json!({
        TOKEN: {"account_id": ACCOUNT}, NEIGHBOUR_TOKEN: {"account_id": NEIGHBOUR},
    }));
    let ending = ["--going-away-ms", "4000", "--drain-seconds", "10"];
    let mut fed = Fed::start(&[&["--auth", &*tokens.option()], &ending[..]].concat());
    let mut client = fed.server.client();
    let reply = seen.ask(&mut client, "subscribe/first", None, "subscribed/first");
    let cursor = reply["data"]["cursor"].as_str().unwrap();

    let mut kazoo = fed.server.client_at("/?style=kazoo");
    kazoo.must_subscribe(TOKEN, ACCOUNT, BINDING);
    let body = &examples()["event-piston/live"]["args"];
    let key = format!("call.CHANNEL_CREATE.{CALL_ID}");
    fed.publish("callevt", &key, body);
    seen.note("event-piston/live", &client.event());
    seen.note("event-kazoo/live", &kazoo.event());
    seen.ask(&mut client, "ping/ping", None, "pong/pong");
    let mut foreign = examples()["subscribe/first"].clone();
    foreign["request_id"] = json!("r4");
    foreign["data"]["account_id"] = json!(NEIGHBOUR);
    seen.note("error/foreign", &client.ask(&foreign));

    let mut again = Client::connect_as(fed.server.address(), TOKEN);
    seen.ask(
        &mut again,
        "subscribe/again",
        Some(cursor),
        "subscribed/again",
    );
    seen.note("event-piston/replayed", &again.event());
    seen.note("resumed/one", &again.notice());
    let mut lost = Client::connect_as(fed.server.address(), TOKEN);
    let mut command = examples()["subscribe/again"].clone();
    command["data"]["resume"] = json!("0.zzzzzzzz.aaaaaa");
    seen.note("subscribed/lost", &lost.ask(&command));
    seen.note("gap/resume", &lost.notice());

    seen.ask(&mut client, "unsubscribe/one", None, "unsubscribed/one");
    again.send(&json!({"action": "ping", "auth_token": NEIGHBOUR_TOKEN}));
    seen.note("subscriptions_ended/identity", &again.notice());
    fed.server.signal(Signal::TERM);
    seen.note("going_away/soon", &kazoo.notice());
}

/// A client that does not read.
fn see_a_slow_client(seen: &mut Seen) {
    let policy = ["--slow-consumer", "drop", "--max-queued-messages", "5"];
    let mut fed = Fed::insecure(&policy);
    let mut slow = Client::connect_narrow(fed.server.address());
    slow.must_subscribe(ANY_TOKEN, ACCOUNT, BINDING);
    let mut published = 0;
    let mut publish = |fed: &mut Fed| {
        let event = large_call_event(ACCOUNT, published, 32 << 10);
        fed.publish("callevt", "call.CHANNEL_CREATE.x", &event);
        published += 1;
    };
    while fed.server.metric("frames_dropped_total") == 0 {
        publish(&mut fed);
    }
    let mut last = slow.ask(&json!({"action": "ping"}));
    fed.server.wait_for_metric("outboxes_blocked", 0);
    publish(&mut fed);
    while last["action"] != "notice" {
        last = slow.pushed();
    }
    seen.note("gap/slow", &last);
}

/// A queue that is deleted at the broker. False: there is no broker here.
fn see_a_lost_queue(seen: &mut Seen) -> bool {
    let Some(host) = Host::take() else {
        return false;
    };
    let server = Server::bridge(&host.url, &["--control=false"]);
    let mut client = server.client();
    client.must_subscribe(ANY_TOKEN, ACCOUNT, BINDING);
    let ctl = |command: &[&str]| {
        let whole = [&command[..1], &["--vhost", host.vhost()], &command[1..]].concat();
        host.broker.ctl(&whole)
    };
    let queue = ctl(&["list_queues", "--no-table-headers", "name"]);
    ctl(&["delete_queue", queue.trim()]);
    server.wait_for_metric("source_outages_total", 1);
    server.until_ready();
    let publisher = Publisher::connect(&host.url);
    let body = json!({"Event-Name": "CHANNEL_CREATE", "Account-ID": ACCOUNT}).to_string();
    publisher.publish("callevt", "call.CHANNEL_CREATE.x", body.as_bytes());
    seen.note("gap/broker", &client.notice());
    true
}

#[test]
fn the_examples_are_what_a_server_takes_and_sends() {
    let mut seen = Seen::default();
    see_a_life(&mut seen);
    see_a_slow_client(&mut seen);
    let mut told = examples();
    if !see_a_lost_queue(&mut seen) {
        told.remove("gap/broker");
    }
    let names = |all: &BTreeMap<String, Value>| -> Vec<String> { all.keys().cloned().collect() };
    assert_eq!(names(&seen.0), names(&told));
    for (name, payload) in &seen.0 {
        assert_eq!(payload, &told[name], "{name} is in truth\n{payload}\n");
    }
}

#[test]
fn every_example_fits_one_schema_and_no_other() {
    for (name, payload) in examples() {
        let kind = name.split('/').next().unwrap();
        let fits: Vec<String> = all()
            .into_keys()
            .filter(|schema| !["common", "admin"].contains(&&**schema))
            .filter(|schema| faults(schema, &payload).is_empty())
            .collect();
        let union = if is_command(kind) {
            "command"
        } else {
            "server-frame"
        };
        let expected: BTreeSet<&str> = [kind, union].into();
        assert_eq!(
            fits.iter().map(String::as_str).collect::<BTreeSet<_>>(),
            expected
        );
        if !is_command(kind) {
            assert_eq!(kind_of(&payload), Some(kind));
        }
    }
}

/// What a client may find missing in a frame.
const OPTIONAL: [&str; 5] = ["name", "request_id", "cursor", "replayed", "resumed"];

/// What is the platform's, and free.
fn is_free(kind: &str, path: &str) -> bool {
    path.starts_with("/args") || kind == "event-kazoo" && path.starts_with("/data")
}

/// Every frame that differs from `frame` in one thing that the protocol does not allow, with what that is.
fn spoilt(kind: &str, frame: &Value) -> Vec<(String, Value)> {
    fn walk(kind: &str, frame: &Value, path: &str, out: &mut Vec<(String, Value)>) {
        let with = |change: &dyn Fn(&mut Value)| {
            let mut other = frame.clone();
            change(other.pointer_mut(path).unwrap());
            other
        };
        let here = frame.pointer(path).unwrap();
        if !path.is_empty() {
            for other in [
                json!(null),
                json!(["x"]),
                json!(true),
                json!(-1),
                json!(""),
                json!({"x": 1}),
            ] {
                let is_same_kind = match here {
                    // What the platform's bodies may be, and flags that may be either.
                    Value::Object(_) => other.is_object() && is_free(kind, path),
                    Value::Bool(_) => other.is_boolean(),
                    Value::Array(_) => other == json!(["x"]),
                    _ => path == "/name" && kind.starts_with("event") && other.is_string(),
                };
                if !is_same_kind {
                    let what = format!("{path} is {other}");
                    out.push((what, with(&|value| *value = other.clone())));
                }
            }
        }
        let Value::Object(members) = here else {
            return;
        };
        if is_free(kind, path) {
            return;
        }
        let what = format!("{path}/extra is there");
        out.push((what, with(&|value| value["extra"] = json!(1))));
        for key in members.keys() {
            let path_of_key = format!("{path}/{key}");
            let is_optional =
                OPTIONAL.contains(&&**key) && (kind.starts_with("event") || path == "/data");
            // The cursor of a replayed event is there, for it was found by its place.
            let is_bound = key == "cursor" && frame.get("replayed").is_some();
            if !is_optional || is_bound {
                let what = format!("{path_of_key} is missing");
                let without = |value: &mut Value| drop(value.as_object_mut().unwrap().remove(key));
                out.push((what, with(&without)));
            }
            walk(kind, frame, &path_of_key, out);
        }
    }
    let mut out = Vec::new();
    walk(kind, frame, "", &mut out);
    out
}

#[test]
fn a_frame_with_one_thing_wrong_does_not_fit_its_schema() {
    let mut rows = 0;
    for (name, payload) in examples() {
        let kind = name.split('/').next().unwrap();
        if is_command(kind) {
            continue;
        }
        for (what, frame) in spoilt(kind, &payload) {
            rows += 1;
            let faults = faults(kind, &frame);
            assert!(!faults.is_empty(), "{name}: {what}: {frame}");
        }
    }
    assert!(rows > 500, "{rows}");
}

#[test]
fn words_and_numbers_that_the_server_never_sends_fit_no_schema() {
    let examples = examples();
    let with = |name: &str, path: &str, value: Value| {
        let mut frame = examples[name].clone();
        *frame.pointer_mut(path).unwrap() = value;
        frame
    };
    for frame in [
        with("gap/slow", "/data/dropped", json!(0)),
        with("gap/slow", "/data/dropped", json!(1.5)),
        with("gap/slow", "/data/reason", json!("event_source")),
        with("gap/broker", "/data/seconds", json!(-0.1)),
        with("gap/resume", "/data/why", json!("lost")),
        with("going_away/soon", "/data/within_ms", json!(0.5)),
        with("resumed/one", "/data/events", json!("1")),
        with(
            "subscriptions_ended/identity",
            "/data/reason",
            json!("token"),
        ),
        with("subscriptions_ended/identity", "/data/bindings", json!([])),
        with("pong/pong", "/data/response", json!("ping")),
        with(
            "pong/pong",
            "/data/cursor",
            json!("A171DCA904ED6A49.mid8x2q7.k3v9zq"),
        ),
        with("pong/pong", "/data/cursor", json!("0.0mid8x2q.k3v9zq")),
        with("pong/pong", "/data/cursor", json!("0.mid8x2q7.k3v9z")),
        with("pong/pong", "/status", json!("ok")),
        with("error/foreign", "/data/errors", json!([])),
        with("subscribed/first", "/request_id", json!("r".repeat(129))),
        with("event-piston/live", "/action", json!("Event")),
        with("event-piston/replayed", "/replayed", json!(false)),
        with("event-kazoo/live", "/data", json!({"Call_ID": "x"})),
        with("event-kazoo/live", "/data", json!({"call-id": "x"})),
        with(
            "event-kazoo/live",
            "/data",
            json!({"a": {"b": [{"c": null}]}}),
        ),
    ] {
        assert!(!faults("server-frame", &frame).is_empty(), "{frame}");
    }
    for command in [
        json!({}),
        json!({"action": "publish"}),
        with("subscribe/first", "/auth_token", json!(7)),
        with("subscribe/first", "/data", json!({"account_id": ACCOUNT})),
        with("subscribe/first", "/data", json!("call.*.*")),
        with("subscribe/first", "/data/account_id", json!("mine")),
        with("subscribe/first", "/data/resume", json!("yesterday")),
        with("subscribe/again", "/data/bindings", json!([])),
        with("subscribe/again", "/data/bindings", json!([""])),
        with("subscribe/again", "/data/bindings", json!(BINDING)),
        with("unsubscribe/one", "/data", json!({"name": "x"})),
        with("ping/ping", "/request_id", json!(["r"])),
    ] {
        assert!(!faults("command", &command).is_empty(), "{command}");
    }
}

#[test]
fn every_text_of_an_error_and_every_word_of_a_notice_is_listed() {
    let fields = [
        Field::Action,
        Field::AccountId,
        Field::Binding,
        Field::Bindings,
        Field::Metadata,
        Field::Name,
        Field::Resume,
        Field::RequestId,
    ];
    let missing = [(true, true), (true, false), (false, true)].map(|(account_id, binding)| {
        CommandError::MissingKeys(MissingKeys {
            account_id,
            binding,
        })
    });
    let others = [
        CommandError::AuthenticationRequired,
        CommandError::AuthenticationFailed,
        CommandError::AuthenticationUnavailable,
        CommandError::MissingData,
        CommandError::UnauthorizedAccount,
        CommandError::UnauthorizedWildcard,
        CommandError::RateLimited("[2001:db8::1]:5".into()),
        CommandError::MissingAction,
        CommandError::UnknownAction("x\ny".into()),
        CommandError::TooManySubscriptions(1),
        CommandError::TooManyBindings(1),
        CommandError::TooManyBindingsOfAccount(1),
        CommandError::TooManySessions(1),
        CommandError::EventSourceUnavailable,
        CommandError::MetadataTooLarge(1),
    ];
    let unread = ["", "[", "null", "{\"a\":}"].map(|text| parse(text, &LIMITS).unwrap_err());
    let of_bindings = [
        BindingError::NoSubscriptions,
        BindingError::InvalidFormat {
            family: "call".into(),
            rest: "x\n.y".into(),
        },
        BindingError::NotSupported("X Y\n".into()),
        BindingError::Required("ConferenceId required".into()),
    ];
    let texts = fields
        .map(CommandError::Invalid)
        .into_iter()
        .chain(missing)
        .chain(others)
        .chain(unread);
    let texts = texts.map(|error| error.to_string());
    for text in texts.chain(of_bindings.map(|error| error.to_string())) {
        assert_eq!(
            faults("common#known_error", &json!(text)),
            [""; 0],
            "{text}"
        );
    }
    assert!(!faults("common#known_error", &json!("no such luck")).is_empty());
    for why in [Why::Expired, Why::Unknown, Why::TooMany, Why::Outage] {
        let notice = json!({"action": "notice", "name": "gap", "data": {"reason": "resume", "why": why.word()}});
        assert_eq!(faults("gap", &notice), [""; 0]);
    }
    for reason in [EndReason::Identity, EndReason::Rights, EndReason::Module] {
        let data = json!({"reason": reason.word(), "bindings": [BINDING]});
        let notice = json!({"action": "notice", "name": "subscriptions_ended", "data": data});
        assert_eq!(faults("subscriptions_ended", &notice), [""; 0]);
    }
}

#[test]
fn the_close_codes_are_those_of_the_server() {
    let source = include_str!("../../src/session/close.rs");
    let frames = source.split("Some((").skip(1).map(|rest| {
        let (code, rest) = rest.split_once(", \"").unwrap();
        (
            code.parse::<u64>().unwrap(),
            rest.split('"').next().unwrap(),
        )
    });
    let frames: BTreeSet<(u64, &str)> = frames.collect();
    let file = asyncapi();
    let listed = file["channels"]["session"]["x-close-codes"]
        .as_array()
        .unwrap();
    let listed = listed.iter().map(|row| {
        assert!(row["connect_again"].is_boolean(), "{row}");
        (
            row["code"].as_u64().unwrap(),
            row["reason"].as_str().unwrap(),
        )
    });
    assert!(frames.len() > 10);
    assert_eq!(listed.collect::<BTreeSet<_>>(), frames);
}

const LIMITS: CommandLimits = CommandLimits {
    metadata_bytes_max: 4096,
};

/// A value that a client may send, or may send by mistake, for any field.
fn any_field() -> impl Strategy<Value = Value> {
    let cursor = "a171dca904ed6a49.mid8x2q7.k3v9zq";
    prop_oneof![
        3 => prop::sample::select(vec![json!("x"), json!(ACCOUNT), json!("*"), json!(cursor), json!([BINDING]), json!(true)]),
        1 => prop::sample::select(vec![
            json!(null), json!(""), json!(7), json!(false), json!([]), json!([""]), json!(["x", 1]), json!({}),
            json!({"a": 1}), json!("n".repeat(257)), json!("é"), json!(1.5),
        ]),
    ]
}

fn object(keys: &'static [&'static str]) -> impl Strategy<Value = Map<String, Value>> {
    let members = prop::collection::vec((prop::sample::select(keys), any_field()), 0..5);
    members.prop_map(|members| {
        members
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    })
}

fn any_command() -> impl Strategy<Value = Value> {
    let actions = vec![
        json!("subscribe"),
        json!("unsubscribe"),
        json!("ping"),
        json!("x"),
        json!(1),
        json!(null),
    ];
    let data = object(&[
        "account_id",
        "binding",
        "bindings",
        "resume",
        "name",
        "metadata",
        "extra",
    ]);
    let data = prop_oneof![6 => data.prop_map(Value::Object), 1 => any_field()];
    let top = object(&["auth_token", "request_id", "name", "metadata", "extra"]);
    (
        prop::sample::select(actions),
        prop::option::weighted(0.9, data),
        top,
    )
        .prop_map(|(action, data, mut top)| {
            top.insert("action".to_owned(), action);
            if let Some(data) = data {
                top.insert("data".to_owned(), data);
            }
            Value::Object(top)
        })
}

/// Whether the server runs it, as far as that is told by its shape.
fn runs(command: &Value) -> bool {
    let text = command.to_string();
    let Ok(read) = parse(&text, &LIMITS) else {
        return false;
    };
    let names_bindings = match &read.action {
        Ok((Action::Subscribe { bindings, .. }, _)) => !bindings.is_empty(),
        Ok(_) => true,
        Err(_) => false,
    };
    names_bindings && read.auth_token.is_ok()
}

/// What the server takes although no schema allows it, beside what [`plain`] takes away: an account that is none, which it
/// refuses by another word; `bindings` of any kind beside a `binding`, and a label of any kind beside that in `data`; the
/// `data` of a ping, at which it does not look.
fn is_beside_the_schema(command: &Value) -> bool {
    let data = &command["data"];
    let account = data["account_id"].as_str().unwrap_or(ACCOUNT);
    let has_both = data["binding"].is_string() && data.get("bindings").is_some();
    let is_named_twice = data.get("name").is_some() && command.get("name").is_some();
    let is_ping = command["action"] == "ping";
    ![ACCOUNT, "*"].contains(&account) || has_both || is_named_twice || is_ping && !data.is_null()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_command_that_fits_the_schema_runs_and_one_that_runs_fits_it(command in any_command()) {
        let fits = |command: &Value| faults("command", command).is_empty();
        if fits(&command) {
            prop_assert!(runs(&command), "fits, and is refused");
        }
        if runs(&command) && ![&command, &plain(&command)].into_iter().any(is_beside_the_schema) {
            prop_assert!(fits(&plain(&command)), "runs, and does not fit: {:?}", faults("command", &plain(&command)));
        }
    }
}

#[test]
fn the_admin_address_shows_every_file_to_whoever_asks() {
    let token = Scratch::file("token", "secret\n");
    let token = token.path().to_str().unwrap();
    let server = Server::demo(&["--admin-token", token]);
    let folder = project_file("scripts/protocol");
    let mut names = vec!["asyncapi.json".to_owned()];
    names.extend(all().into_keys().map(|name| format!("schemas/{name}.json")));
    let served: BTreeSet<&str> = FILES.iter().map(|(path, _, _)| *path).collect();
    assert_eq!(served.len(), names.len(), "{served:?}");
    for name in names {
        let mut raw = Raw::connect(server.admin());
        let head = "Host: localhost\r\nConnection: close\r\n\r\n";
        raw.send(format!("GET /protocol/{name} HTTP/1.1\r\n{head}").as_bytes());
        let response = raw.last_response();
        let expected = if name == "asyncapi.json" {
            ASYNCAPI
        } else {
            SCHEMA
        };
        let kind = response.header("content-type");
        assert_eq!((response.status, kind), (200, Some(expected)), "{name}");
        let file = fs::read_to_string(folder.join(&name)).unwrap();
        assert!(response.body == file, "{name}: built from another file");
    }
    assert_eq!(server.page("/protocol/schemas/nothing.json").0, 401);
}
