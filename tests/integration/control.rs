//! The platform's control over AMQP (PROTOCOL 8), with a real broker: a publisher sends the platform's own messages, and
//! reads the answers from `targeted`.
//!
//! Each test has a virtual host of its own. What the loop does with thousands of sessions is in `switching`.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};
use support::client::Client;
use support::events::{ACCOUNT, call_event};
use support::publisher::{Asker, RawPublisher, nested_headers};
use support::server::{Server, unix_now};

use crate::bridge::Host;

const NEIGHBOUR: &str = "ffeeddccbbaa99887766554433221100";
const DESCENDANT: &str = "00112233445566778899aabbccddeeff";
const TOKEN: &str = "token-of-the-account";
const NEIGHBOUR_TOKEN: &str = "token-of-the-neighbour";

const TOKENS: &str = concat!(
    "tokens:",
    env!("CARGO_MANIFEST_DIR"),
    "/tests/fixtures/tokens.json"
);

/// Seconds from year 0 to 1970, by which the platform's clock is ahead of Unix time.
const GREGORIAN: u64 = 62_167_219_200;

/// A bridge that takes requests, and one who asks, in a virtual host of their own.
fn platform(auth: &str, args: &[&str]) -> Option<(Host, Server, Asker)> {
    let host = Host::take()?;
    let server = Server::authorised(&host.url, auth, args);
    until_asked(&server, 1);
    let asker = Asker::connect(&host.url, "amqp_queue-blackhole@apps001");
    Some((host, server, asker))
}

/// Waits until the control connection has been there so many times.
fn until_asked(server: &Server, times: u64) {
    server.wait_for_metric("amqp_control_connects_total", times);
}

/// A session of `token` with two bindings, a name and metadata.
fn session(server: &Server, token: &str, account: &str, number: usize) -> Client {
    let mut client = server.client();
    let reply = client.ask(&json!({
        "action": "subscribe", "auth_token": token,
        "data": {"account_id": account, "bindings": ["call.CHANNEL_CREATE.*", "fax.status.*"],
                 "name": format!("socket {number}"), "metadata": {"number": number}}
    }));
    assert_eq!(reply["status"], "success", "{reply}");
    client
}

fn ids(data: &Value) -> BTreeSet<String> {
    let ids = data.as_array().unwrap().iter();
    ids.map(|one| one["websocket_session_id"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn hundreds_of_sessions_are_told_in_one_answer_and_only_those_that_are_asked_for() {
    let Some((_host, server, asker)) = platform(TOKENS, &["--node-name", "blackhole@test"]) else {
        return;
    };
    let began = unix_now();
    let mine: Vec<Client> = (0..300)
        .map(|number| session(&server, TOKEN, ACCOUNT, number))
        .collect();
    let neighbours: Vec<Client> = (0..3)
        .map(|number| session(&server, NEIGHBOUR_TOKEN, NEIGHBOUR, number))
        .collect();
    let _unknown = server.client();

    asker.ask_for_sessions(&json!({"Account-ID": ACCOUNT, "Auth-Account-ID": ACCOUNT}));
    let answer = asker.answer();
    assert_eq!(answer.pid.as_deref(), Some("<0.1234.0>"));
    let mut headers = answer.json.clone();
    let data = headers.as_object_mut().unwrap().remove("Data").unwrap();
    let expected = json!({
        "Event-Category": "websockets", "Event-Name": "get_resp", "Msg-ID": "msg-1", "App-Name": "blackhole",
        "App-Version": env!("CARGO_PKG_VERSION"), "Node": "blackhole@test"
    });
    assert_eq!(headers, expected);
    let own: BTreeSet<String> = mine.iter().map(Client::session_id).collect();
    assert_eq!(ids(&data), own);
    for (number, client) in mine.iter().enumerate() {
        let id = client.session_id();
        let is_it = |one: &&Value| one["websocket_session_id"] == *id;
        let mut one = data.as_array().unwrap().iter().find(is_it).unwrap().clone();
        let timestamp = one.as_object_mut().unwrap().remove("timestamp").unwrap();
        let came = timestamp.as_u64().unwrap() - GREGORIAN;
        assert!((began..=unix_now()).contains(&came), "{came}");
        let expected = json!({
            "bindings": ["call.CHANNEL_CREATE.*", "fax.status.*"], "websocket_session_id": id,
            "name": format!("socket {number}"), "metadata": {"number": number},
            "destination": blackhole::sys::host_name(), "source": "127.0.0.1"
        });
        assert_eq!(one, expected);
    }
    for secret in [TOKEN, NEIGHBOUR_TOKEN, ACCOUNT, NEIGHBOUR] {
        assert!(!answer.text.contains(secret), "{secret} in an answer");
    }

    // One session; and a plain queue as the Server-ID.
    let neighbour = neighbours[1].session_id();
    let plain = "amqp_queue-blackhole@apps001";
    asker.ask_for_sessions(&json!({"Socket-ID": neighbour, "Server-ID": plain, "Msg-ID": "2"}));
    let answer = asker.answer();
    assert_eq!((&answer.pid, &answer.json["Msg-ID"]), (&None, &json!("2")));
    assert_eq!(ids(&answer.json["Data"]), [neighbour.clone()].into());

    for nobody in [
        json!({"Account-ID": DESCENDANT}),
        json!({"Account-ID": "no account"}),
        json!({"Account-ID": ACCOUNT, "Socket-ID": neighbour}),
        json!({"Socket-ID": "127.0.0.1:1"}),
        json!({"Socket-ID": "no socket"}),
    ] {
        asker.ask_for_sessions(&nobody);
        assert_eq!(asker.answer().json["Data"], json!([]), "{nobody}");
    }
    drop(mine);
    server.wait_for_metric("sessions", 4);
    asker.ask_for_sessions(&json!({"Account-ID": ACCOUNT}));
    assert_eq!(asker.answer().json["Data"], json!([]));
    assert_eq!(server.metric("amqp_control_answers_total"), 8);
    assert_eq!(server.metric("amqp_control_refused_total"), 0);
}

#[test]
fn what_is_no_request_gets_no_answer_and_is_counted() {
    let Some((host, server, asker)) = platform("insecure", &[]) else {
        return;
    };
    let wrong = [
        json!({"Server-ID": null}),
        json!({"Server-ID": ""}),
        json!({"Server-ID": format!("pid://<0.1.0>/{}", "q".repeat(256))}),
        json!({"Server-ID": "pid://nobody"}),
        json!({"Server-ID": {"a": 1}}),
        json!({"Event-Name": "get_resp"}),
        json!({"Account-ID": null}),
        json!({"Account-ID": 7}),
    ];
    for more in &wrong {
        let mut request = json!({"Account-ID": ACCOUNT});
        request
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        asker.ask_for_sessions(&request);
    }
    asker.ask_for_module("bh_call", "restart", &json!({}));
    asker.send("sysconf", "websockets.get", b"");
    asker.send("sysconf", "websockets.get", b"{\"a\"");
    asker.send("sysconf", "websockets.get", b"\xff\xfe");
    asker.send("kapps", "ws.module_req", "[".repeat(60_000).as_bytes());
    // Whole and good, but for its size.
    asker.ask_for_sessions(&json!({"Account-ID": ACCOUNT, "Padding": "x".repeat(70_000)}));
    asker.ask_for_sessions(&json!({"Account-ID": ACCOUNT, "Padding": "x".repeat(1 << 20)}));
    let refused = wrong.len() as u64 + 7;
    server.wait_for_metric("amqp_control_refused_total", refused);
    // To the default virtual host only, so it is nobody's request; the guard is tested in `tests/amqp`.
    let mut raw = RawPublisher::connect(host.broker.port());
    raw.publish("", b"nobody", Some(&nested_headers(4000)), b"{}");
    raw.finish();

    asker.ask_for_sessions(&json!({"Account-ID": ACCOUNT, "Msg-ID": "the first answer"}));
    assert_eq!(asker.answer().json["Msg-ID"], "the first answer");
    assert_eq!(server.metric("amqp_control_refused_total"), refused);
    assert_eq!(server.metric("amqp_control_connects_total"), 1);
    assert_eq!(server.metric("amqp_control_failures_total"), 0);
    server.wait_for_log("amqp: control: a request gets no answer: ");
}

#[test]
fn a_stopped_family_ends_its_subscriptions_and_comes_back_when_it_is_started() {
    let Some((host, server, asker)) = platform(TOKENS, &[]) else {
        return;
    };
    let publisher = host.publisher();
    let mut sessions: Vec<Client> = (0..100)
        .map(|number| session(&server, TOKEN, ACCOUNT, number))
        .collect();
    assert_eq!(server.metric("amqp_bindings_wanted"), 2);
    let stopped = json!({"Persist": false});
    let answer = asker.switch("bh_call", "stop", &stopped);
    let mut expected = json!({
        "Event-Category": "websockets", "Event-Name": "module_resp", "Msg-ID": "msg-1", "App-Name": "blackhole",
        "App-Version": env!("CARGO_PKG_VERSION"), "Persisted": false, "Started": false
    });
    expected["Node"] = json!(format!("blackhole@{}", blackhole::sys::host_name()));
    assert_eq!(answer, expected);
    for session in &mut sessions {
        let expected = json!({
            "action": "notice", "name": "subscriptions_ended",
            "data": {"reason": "module", "bindings": ["call.CHANNEL_CREATE.*"]}
        });
        assert_eq!(session.notice(), expected);
    }
    assert_eq!(server.metric("subscriptions_ended_total"), 100);
    server.wait_for_metric("amqp_thread_bindings_in_force", 1);
    let session = &mut sessions[0];
    let reply = session.subscribe(TOKEN, ACCOUNT, "call.CHANNEL_CREATE.*");
    let refused = json!(["no available subscriptions to requested binding"]);
    assert_eq!(reply["data"]["errors"], refused);
    // The other families go on.
    let body = json!({"Event-Name": "status", "Account-ID": ACCOUNT}).to_string();
    let key = format!("fax.status.{ACCOUNT}.1");
    publisher.publish("faxes", &key, body.as_bytes());
    assert_eq!(session.event()["subscribed_key"], "fax.status.*");
    // Stopped once more it is still stopped.
    assert_eq!(asker.switch("bh_call", "stop", &stopped)["Started"], false);

    let answer = asker.switch("bh_call", "start", &stopped);
    assert_eq!(
        (&answer["Started"], &answer["Error"]),
        (&json!(true), &Value::Null)
    );
    session.must_subscribe(TOKEN, ACCOUNT, "call.CHANNEL_CREATE.*");
    let body = call_event(ACCOUNT, "CHANNEL_CREATE", 1).to_string();
    publisher.publish("callevt", "call.CHANNEL_CREATE.1", body.as_bytes());
    assert_eq!(session.event()["subscribed_key"], "call.CHANNEL_CREATE.*");
    sessions[1].assert_nothing_came_after_the_fax();

    let answer = asker.switch("bh_nothing", "start", &stopped);
    let error = json!("module doesn't exist");
    assert_eq!(
        (&answer["Started"], &answer["Error"]),
        (&json!(false), &error)
    );
    // Kept nowhere, and done all the same.
    let answer = asker.switch("bh_fax", "stop", &json!({}));
    assert_eq!(
        (&answer["Persisted"], &answer["Started"]),
        (&json!(false), &json!(false))
    );
    let error = "not kept: the process was started without --config";
    assert_eq!(answer["Error"], error);
    assert_eq!(server.metric("modules_switched_total"), 3);
}

/// A session that is shown to have got the fax event, and nothing behind it.
trait AfterTheFax {
    fn assert_nothing_came_after_the_fax(&mut self);
}

impl AfterTheFax for Client {
    fn assert_nothing_came_after_the_fax(&mut self) {
        assert_eq!(self.event()["subscribed_key"], "fax.status.*");
        self.assert_nothing_came(TOKEN);
    }
}

#[test]
fn a_change_that_is_kept_outlives_a_restart() {
    let Some(host) = Host::take() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.json");
    fs::write(&config, r#"{"autoload_modules": ["bh_call", "bh_fax"]}"#).unwrap();
    let file = folder.path().join("config.json.modules.json");
    let start = || {
        let config = config.to_str().unwrap();
        let server = Server::authorised(&host.url, TOKENS, &["--config", config]);
        until_asked(&server, 1);
        server
    };
    let has = |server: &Server| {
        let mut client = server.client();
        [
            "call.CHANNEL_CREATE.*",
            "fax.status.*",
            "object.doc_edited.user",
        ]
        .map(|binding| client.subscribe(TOKEN, ACCOUNT, binding)["status"] == "success")
    };
    let asker = Asker::connect(&host.url, "q");
    let kept = || serde_json::from_str::<Value>(&fs::read_to_string(&file).unwrap()).unwrap();

    let mut server = start();
    assert_eq!(has(&server), [true, true, false]);
    for (module, action) in [("bh_fax", "stop"), ("bh_object", "start")] {
        let answer = asker.switch(module, action, &json!({"Persist": true}));
        assert_eq!(answer["Persisted"], true, "{answer}");
    }
    assert_eq!(
        asker.switch("bh_call", "stop", &json!({"Persist": false}))["Persisted"],
        false
    );
    assert_eq!(kept(), json!({"bh_fax": false, "bh_object": true}));
    assert_eq!(has(&server), [false, false, true]);
    assert!(server.stop().success());

    let mut server = start();
    assert_eq!(has(&server), [true, false, true]);
    // As on the platform, a change is kept unless it says otherwise.
    assert_eq!(
        asker.switch("bh_fax", "start", &json!({}))["Persisted"],
        true
    );
    assert!(server.stop().success());

    let mut server = start();
    assert_eq!(has(&server), [true, true, true]);
    // Where nothing can be written, the change is made, and said not to be kept.
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let answer = asker.switch("bh_fax", "stop", &json!({}));
    assert_eq!(
        (&answer["Persisted"], &answer["Started"]),
        (&json!(false), &json!(false))
    );
    assert_eq!(answer["Error"], "not kept: its file cannot be written");
    assert_eq!(has(&server), [true, false, true]);
    server.wait_for_log("module bh_fax: not kept: ");
    assert!(server.stop().success());
}

#[test]
fn more_requests_than_the_loop_takes_are_answered_in_time_or_counted() {
    let Some((_host, server, asker)) = platform(TOKENS, &[]) else {
        return;
    };
    let mut session = session(&server, TOKEN, ACCOUNT, 0);
    const ASKED: u64 = 400;
    for _ in 0..ASKED {
        asker.ask_for_sessions(&json!({"Account-ID": ACCOUNT}));
    }
    server.until("each request answered or dropped", |server| {
        let metrics = server.metrics();
        metrics["amqp_control_answers_total"] + metrics["amqp_control_dropped_total"] == ASKED
    });
    let metrics = server.metrics();
    let (answered, dropped) = (
        metrics["amqp_control_answers_total"],
        metrics["amqp_control_dropped_total"],
    );
    assert!(
        answered >= 50 + 64 && dropped > 0,
        "{answered} answered, {dropped} dropped"
    );
    for _ in 0..answered {
        assert_eq!(asker.answer().json["Data"].as_array().unwrap().len(), 1);
    }
    session.assert_nothing_came(TOKEN);
}

#[test]
fn a_user_who_may_not_is_told_once_and_the_events_flow() {
    let Some(host) = Host::take() else {
        return;
    };
    let vhost = host.url.rsplit('/').next().unwrap();
    // Everything but the three exchanges, which are there.
    let others = "^(?!sysconf$|kapps$|targeted$).*";
    let _asker = Asker::connect(&host.url, "q");
    let user = format!("events-{vhost}");
    host.broker.ctl(&["add_user", &user, "s3cret"]);
    let give = |patterns: [&str; 3]| {
        let [configure, write, read] = patterns;
        let given = [
            "set_permissions",
            "-p",
            vhost,
            &user,
            configure,
            write,
            read,
        ];
        host.broker.ctl(&given);
    };
    give([others, others, others]);
    let url = host.url.replace("guest:guest", &format!("{user}:s3cret"));
    let server = Server::bridge(&url, &[]);
    let line = server.wait_for_log(
        "the user needs write on queues named amq.gen-… and read on exchange sysconf",
    );
    assert!(
        line.contains("next try in 60000 ms") && !line.contains("s3cret"),
        "{line}"
    );
    server.wait_for_metric("amqp_control_denied_total", 1);
    let mut session = session(&server, "any", ACCOUNT, 0);
    let publisher = host.publisher();
    let body = call_event(ACCOUNT, "CHANNEL_CREATE", 1).to_string();
    publisher.publish("callevt", "call.CHANNEL_CREATE.1", body.as_bytes());
    assert_eq!(session.event()["subscribed_key"], "call.CHANNEL_CREATE.*");
    assert_eq!(server.metric("amqp_disconnects_total"), 0);

    // One who may read and not answer: told with the first answer.
    give([others, others, ".*"]);
    let server = Server::bridge(&url, &[]);
    until_asked(&server, 1);
    _asker.ask_for_sessions(&json!({"Account-ID": ACCOUNT}));
    server.wait_for_log("connection lost: the user needs write on exchange targeted");
    assert_eq!(server.metric("amqp_control_answers_lost_total"), 1);
}

#[test]
fn switched_off_or_without_a_broker_there_is_no_control() {
    let Some(host) = Host::take() else {
        return;
    };
    let off = Server::bridge(&host.url, &["--control=false"]);
    let asker = Asker::connect(&host.url, "q");
    let on = Server::bridge(&host.url, &["--node-name", "blackhole@on"]);
    until_asked(&on, 1);
    asker.ask_for_sessions(&json!({"Account-ID": ACCOUNT}));
    assert_eq!(asker.answer().json["Node"], "blackhole@on");
    let demo = Server::demo(&[]);
    for server in [&off, &demo] {
        assert_eq!(server.metric("amqp_control_connects_total"), 0);
        assert!(!server.log().contains("control"), "{}", server.log());
    }
}
