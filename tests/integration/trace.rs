//! The trace (PROTOCOL 8): what those who look are told of a session, an account, a key; and why an event did not arrive.

use std::collections::BTreeMap;

use blackhole::limits::{TRACE_KEYS_TOTAL_MAX, TRACE_LOOKS_MAX};
use fastrand::Rng;
use rustix::process::Signal;
use serde_json::{Value, json};

use support::client::{ANY_TOKEN, Client, Raw, subscribe, subscribe_to_all, success};
use support::events::{ACCOUNT, OTHER_ACCOUNT, call_event, large_call_event};
use support::looker::Looker;
use support::publisher::Publisher;
use support::server::{Fed, Server, TokenFile};
use support::tls::plain_only;
use support::wire::UPGRADE_REQUEST;

use crate::bridge::Host;

const MINE: &str = "the-token-of-mine";
const THEIRS: &str = "the-token-of-theirs";

/// Two accounts with a token each.
fn fed(args: &[&str]) -> Fed {
    let tokens = json!({
        MINE: {"account_id": ACCOUNT, "realm": "mine.example.com"},
        THEIRS: {"account_id": OTHER_ACCOUNT, "realm": "theirs.example.com"},
    });
    Fed::with_tokens(&tokens, args)
}

fn subscribed(server: &Server, token: &str, account: &str, binding: &str) -> Client {
    let mut client = server.client();
    client.must_subscribe(token, account, binding);
    client
}

fn publish_call(fed: &mut Fed, account: &str, event: &str) {
    let body = call_event(account, event, 1);
    fed.publish("callevt", &format!("call.{event}.c"), &body);
}

/// What a line tells of an event: its key, and what became of it.
fn verdict((word, told): (String, Value)) -> (String, String, String) {
    let what = match &*word {
        "matched" => "subscribed_key",
        "not_matched" => "why",
        _ => panic!("{word}: {told}"),
    };
    let text = |name: &str| told[name].as_str().unwrap().to_owned();
    (word, text("routing_key"), text(what))
}

#[test]
fn a_session_is_told_what_it_gets_and_why_it_does_not_get_the_rest() {
    let mut fed = fed(&["--log-level", "debug"]);
    let server = &fed.server;
    let mut mine = subscribed(server, MINE, ACCOUNT, "call.CHANNEL_CREATE.*");
    mine.must_subscribe(MINE, ACCOUNT, "presence.dialog.*");
    let mut neighbour = subscribed(server, MINE, ACCOUNT, "fax.status.*");
    let _theirs = subscribed(server, THEIRS, OTHER_ACCOUNT, "call.*.*");
    let id = mine.session_id();
    let (mut looker, looking) = Looker::look(server.admin(), &format!("session={id}"));
    let mut expected = json!({
        "session": id, "there": true, "session_account_id": ACCOUNT,
        "bindings": [
            {"binding": "call.CHANNEL_CREATE.*", "account_id": ACCOUNT},
            {"binding": "presence.dialog.*", "account_id": ACCOUNT},
        ],
        "keys": [], "keys_without_room": 0, "stopped": [], "source": "up",
    });
    expected["at"] = looking["at"].clone();
    assert_eq!(looking, expected);
    let mut told = |fed: &mut Fed, exchange: &str, key: &str, body: &Value| {
        fed.publish(exchange, key, body);
        verdict(looker.line_but(&["written"]))
    };
    let call = |account, event| call_event(account, event, 1);
    let plain = json!({"Event-Name": "x"});
    let own = json!({"Event-Name": "x", "Account-ID": ACCOUNT});
    let rows = [
        (
            "callevt",
            "call.CHANNEL_CREATE.c",
            call(ACCOUNT, "CHANNEL_CREATE"),
            "call.CHANNEL_CREATE.*",
        ),
        (
            "callevt",
            "call.CHANNEL_CREATE.c",
            call(OTHER_ACCOUNT, "CHANNEL_CREATE"),
            "account not this session's",
        ),
        (
            "callevt",
            "call.CHANNEL_CREATE.c",
            plain.clone(),
            "account not this session's",
        ),
        (
            "callevt",
            "call.CHANNEL_ANSWER.c",
            call(ACCOUNT, "CHANNEL_ANSWER"),
            "other event word",
        ),
        (
            "callevt",
            "call.NOT_LISTED.c",
            call(ACCOUNT, "NOT_LISTED"),
            "other event word",
        ),
        (
            "faxes",
            &format!("fax.status.{ACCOUNT}.1"),
            plain.clone(),
            "not bound by this session",
        ),
        (
            "conference",
            &format!("conference.event.add.{ACCOUNT}.C1.leg"),
            plain.clone(),
            "nobody bound the key",
        ),
        (
            "presence",
            "dialog.mine%2Eexample%2Ecom.c",
            plain.clone(),
            "presence.dialog.*",
        ),
        (
            "presence",
            "dialog.theirs%2Eexample%2Ecom.c",
            plain.clone(),
            "account not this session's",
        ),
        (
            "presence",
            "update.mine%2Eexample%2Ecom.c",
            plain.clone(),
            "nobody bound the key",
        ),
        (
            "elsewhere",
            "call.CHANNEL_CREATE.c",
            own,
            "exchange or family stopped",
        ),
    ];
    for (exchange, key, body, expected) in rows {
        // Of another account, and near no subscription of the session: nothing that it is told of.
        fed.publish("faxes", &format!("fax.status.{OTHER_ACCOUNT}.1"), &plain);
        let (word, told_key, what) = told(&mut fed, exchange, key, &body);
        assert_eq!((&*told_key, &*what), (key, expected), "{exchange} {body}");
        assert_eq!(word == "matched", expected.ends_with(".*"));
        if word == "matched" {
            assert_eq!(mine.event()["subscribed_key"], expected);
        }
    }
    assert_eq!(neighbour.event()["subscribed_key"], "fax.status.*");
    mine.assert_nothing_came(MINE);
}

#[test]
fn what_was_written_and_what_a_match_was_found_by_is_told() {
    if plain_only(&"the bytes of the socket are not those of the frames there") {
        return;
    }
    let mut fed = fed(&[]);
    let mut mine = fed.server.client();
    let mut command = subscribe(MINE, ACCOUNT, "call.*.*");
    command["request_id"] = json!("r1");
    success(&mine.ask(&command));
    let id = mine.session_id();
    let (mut looker, _) = Looker::look(fed.server.admin(), &format!("session={id}&limit=2"));
    publish_call(&mut fed, ACCOUNT, "CHANNEL_CREATE");
    let (_, mut matched) = looker.line();
    let (word, written) = looker.line();
    assert!(matched.as_object_mut().unwrap().remove("at").is_some());
    let expected = json!({
        "exchange": "callevt", "routing_key": "call.CHANNEL_CREATE.c", "account_id": ACCOUNT,
        "name": "CHANNEL_CREATE", "session": id, "subscribed_key": "call.*.*",
        "subscription_key": format!("call.{ACCOUNT}.*.*"), "for_account_id": ACCOUNT,
        "queued": 1, "dropped": 0,
    });
    assert_eq!(matched, expected);
    assert_eq!(
        (&*word, &written["session"], &written["waiting_bytes"]),
        ("written", &json!(id), &json!(0))
    );
    let event = mine.recv_text();
    // The frame's head has 4 bytes.
    assert_eq!(written["bytes"], event.len() + 4);
    let rest = looker.rest();
    assert_eq!(rest.len(), 1, "{rest:?}");
    assert_eq!((&*rest[0].0, &rest[0].1["why"]), ("ended", &json!("limit")));
    fed.server.wait_for_metric("trace_looks", 0);
}

#[test]
fn an_account_is_told_who_comes_what_is_asked_for_and_who_goes_and_never_a_token() {
    let fed = fed(&["--rate-limit-burst", "40"]);
    let server = &fed.server;
    let (mut looker, looking) = Looker::look(server.admin(), &format!("account={ACCOUNT}"));
    assert_eq!(
        (&looking["account_id"], &looking["realm"]),
        (&json!(ACCOUNT), &Value::Null)
    );
    let commands = &["bound", "opened", "closed"];
    let mut theirs = subscribed(server, THEIRS, OTHER_ACCOUNT, "call.*.*");
    let mut mine = Client::connect_as(server.address(), MINE);
    let id = mine.session_id();
    let opened = looker.until("opened");
    assert_eq!(
        (&opened["session"], &opened["account_id"], &opened["style"]),
        (&json!(id), &json!(ACCOUNT), &json!("piston"))
    );
    let mut told = |command: &Value| {
        mine.ask(command);
        let (mut word, mut told) = looker.line_but(commands);
        if told["outcome"] == "waits" {
            assert_eq!(told["waits_for"], "broker");
            (word, told) = looker.line_but(commands);
        }
        assert_eq!(
            (&*word, &told["session"], &told["account_id"]),
            ("command", &json!(id), &json!(ACCOUNT))
        );
        for name in ["at", "session", "account_id"] {
            told.as_object_mut().unwrap().remove(name);
        }
        told
    };
    let mut odd = subscribe(MINE, ACCOUNT, "call.*.*");
    odd["request_id"] = json!("r1");
    odd["password"] = json!("the-password");
    odd["data"]["secret"] = json!("the-secret");
    odd["data"]["metadata"] = json!({"k": "the-metadata"});
    odd["data"]["name"] = json!("the-name");
    assert_eq!(
        told(&odd),
        json!({"action": "subscribe", "request_id": "r1", "for_account_id": ACCOUNT, "bindings": ["call.*.*"], "outcome": "ok"})
    );
    assert_eq!(
        told(&subscribe_to_all(
            MINE,
            ACCOUNT,
            &["call.CHANEL.*", "nothing.*"]
        )),
        json!({
            "action": "subscribe", "for_account_id": ACCOUNT, "bindings": ["call.CHANEL.*", "nothing.*"],
            "outcome": "error",
            "errors": ["event CHANEL not supported", "no available subscriptions to requested binding"],
        })
    );
    assert_eq!(
        told(&subscribe(MINE, OTHER_ACCOUNT, "call.*.*"))["errors"],
        json!(["unauthorized account id"])
    );
    assert_eq!(
        told(&json!({"action": "ping"})),
        json!({"action": "ping", "outcome": "ok"})
    );
    assert_eq!(
        told(&json!({"action": format!("do {MINE}"), "auth_token": MINE})),
        json!({"action": "unknown", "outcome": "error", "errors": ["unknown action"]})
    );
    // A client that mixes its members up.
    let mixed = json!({"action": "subscribe", "auth_token": MINE, "request_id": MINE,
        "data": {"account_id": MINE, "bindings": [MINE, format!("call.{MINE}.x"), format!("call.*.{MINE}")]}});
    let mixed = told(&mixed);
    assert_eq!(mixed["request_id"], "(token)");
    assert_eq!(
        mixed["bindings"],
        json!(["(token)", "call.(token).x", "call.*.(token)"])
    );
    let later = json!({"action": "subscribe", "request_id": MINE, "data": {"binding": format!("call.*.{MINE}")}});
    assert_eq!(told(&later)["bindings"], json!(["call.*.(token)"]));
    let wrong = json!({"action": "ping", "auth_token": "not-a-token"});
    assert_eq!(
        told(&wrong)["errors"],
        json!(["failed to authenticate token"])
    );
    assert_eq!(told(&json!({"action": "unsubscribe"}))["outcome"], "ok");
    mine.close();
    let closed = looker.until("closed");
    assert_eq!(
        (&closed["session"], &closed["reason"], &closed["code"]),
        (&json!(id), &json!("closed by the peer"), &Value::Null)
    );
    theirs.send_bytes(b"binary");
    let other = Client::connect_as(server.address(), MINE);
    looker.until("opened");
    server.signal(Signal::TERM);
    let mut rest = looker.rest();
    let last = rest.pop().unwrap();
    let (word, closed) = rest.iter().find(|(word, _)| word == "closed").unwrap();
    assert_eq!(
        (&**word, &closed["reason"], &closed["code"]),
        ("closed", &json!("drain"), &json!(1001))
    );
    assert_eq!((&*last.0, &last.1["why"]), ("ended", &json!("drain")));
    drop(other);
    for secret in [
        MINE,
        THEIRS,
        "not-a-token",
        "the-password",
        "the-secret",
        "the-metadata",
        "the-name",
        OTHER_ACCOUNT,
    ] {
        // The other account is named by one command of ours, and by nothing else.
        let times = looker.text.matches(secret).count();
        assert_eq!(
            times,
            usize::from(secret == OTHER_ACCOUNT),
            "{secret} in\n{}",
            looker.text
        );
    }
}

#[test]
fn what_a_command_asks_for_is_told_where_any_token_is_taken_too() {
    let server = Server::demo(&[]);
    let (mut looker, _) = Looker::look(server.admin(), &format!("account={ACCOUNT}"));
    let mut client = Client::connect(server.address());
    client.ask(&subscribe("whatever", ACCOUNT, "call.*.*"));
    let told = looker.until("command");
    assert_eq!(
        (&told["for_account_id"], &told["bindings"]),
        (&json!(ACCOUNT), &json!(["call.*.*"]))
    );
}

#[test]
fn of_a_session_that_is_not_there_it_is_not_said_that_it_bound_nothing() {
    let mut fed = fed(&[]);
    let client = subscribed(&fed.server, MINE, ACCOUNT, "call.*.*");
    let id = client.session_id();
    let key = "key=call.CHANNEL_CREATE.*";
    let (mut of_session, _) = Looker::look(fed.server.admin(), &format!("session={id}&{key}"));
    let (mut of_key, _) = Looker::look(fed.server.admin(), key);
    drop(client);
    of_session.until("closed");
    publish_call(&mut fed, ACCOUNT, "CHANNEL_CREATE");
    assert_eq!(of_key.until("not_matched")["why"], "nobody bound the key");
    fed.server.signal(Signal::TERM);
    let (word, told) = of_session.line_but(&["bound"]);
    assert_eq!((&*word, &told["why"]), ("ended", &json!("drain")), "{told}");
}

#[test]
fn a_key_is_bound_for_the_look_so_that_what_nobody_asked_for_is_told() {
    let mut fed = fed(&[]);
    let admin = fed.server.admin();
    // The source plays once a key is bound: without the look's nothing came.
    let (mut looker, looking) = Looker::look(admin, "key=call.CHANNEL_CREATE.*");
    let key = json!({"exchange": "callevt", "key": "call.CHANNEL_CREATE.*"});
    assert_eq!(looking["keys"], json!([key]));
    let (word, bound) = looker.line();
    assert_eq!((&*word, &bound["key"]), ("bound", &key["key"]));
    publish_call(&mut fed, ACCOUNT, "CHANNEL_CREATE");
    assert_eq!(verdict(looker.line()).2, "nobody bound the key");
    publish_call(&mut fed, ACCOUNT, "CHANNEL_ANSWER");
    let mut clients = [(MINE, ACCOUNT), (MINE, ACCOUNT), (THEIRS, OTHER_ACCOUNT)]
        .map(|(token, account)| subscribed(&fed.server, token, account, "call.CHANNEL_CREATE.*"));
    publish_call(&mut fed, ACCOUNT, "CHANNEL_CREATE");
    let (word, matched) = looker.line_but(&["command"]);
    assert_eq!(
        (
            &*word,
            &matched["sessions"],
            &matched["queued"],
            &matched["for_account_id"]
        ),
        ("matched", &json!(2), &json!(2), &json!(ACCOUNT))
    );
    clients[0].event();
    assert_eq!(fed.server.metric("amqp_bindings_wanted"), 1);

    // What a session has bound stays when the look ends, and what a look has bound when the session does.
    drop(looker);
    fed.server.wait_for_metric("trace_looks", 0);
    assert_eq!(fed.server.metric("amqp_bindings_wanted"), 1);
    publish_call(&mut fed, ACCOUNT, "CHANNEL_CREATE");
    clients[0].event();
    let (mut looker, _) = Looker::look(admin, "key=call.CHANNEL_CREATE.*&event=CHANNEL_CREATE");
    for client in clients {
        client.close();
    }
    fed.server.wait_for_metric("sessions", 0);
    assert_eq!(fed.server.metric("amqp_bindings_wanted"), 1);
    publish_call(&mut fed, ACCOUNT, "CHANNEL_CREATE");
    assert_eq!(
        verdict(looker.line_but(&["bound"])).2,
        "nobody bound the key"
    );
    drop(looker);
    fed.server.wait_for_metric("amqp_bindings_wanted", 0);
}

#[test]
fn a_family_that_is_switched_off_is_told_when_the_look_begins_and_when_its_event_comes() {
    let modules = [
        "bh_call",
        "bh_conference",
        "bh_object",
        "bh_presence",
        "bh_registration",
    ];
    let mut fed = fed(&["--autoload-modules", &modules.join(",")]);
    let mine = subscribed(&fed.server, MINE, ACCOUNT, "call.*.*");
    let id = mine.session_id();
    let query = format!("session={id}&account={ACCOUNT}&event=fax");
    let (mut looker, looking) = Looker::look(fed.server.admin(), &query);
    assert_eq!(looking["stopped"], json!(["bh_fax"]));
    assert_eq!(looking["realm"], "mine.example.com");
    let keys = looking["keys"].as_array().unwrap();
    assert!(
        !keys.iter().any(|key| key["exchange"] == "faxes"),
        "{keys:?}"
    );
    assert!(
        keys.contains(&json!({"exchange": "presence", "key": "dialog.mine%2Eexample%2Ecom.*"})),
        "{keys:?}"
    );
    publish_call(&mut fed, ACCOUNT, "CHANNEL_CREATE");
    fed.publish(
        "faxes",
        &format!("fax.status.{ACCOUNT}.1"),
        &json!({"Event-Name": "y"}),
    );
    let (word, key, why) = verdict(looker.line_but(&["bound", "written"]));
    assert_eq!(
        (&*word, &*why),
        ("not_matched", "exchange or family stopped")
    );
    assert_eq!(key, format!("fax.status.{ACCOUNT}.1"));
    let (_, looking) = Looker::look(fed.server.admin(), "key=fax.status.*");
    assert_eq!(
        (&looking["keys"], &looking["stopped"]),
        (&json!([]), &json!(["bh_fax"]))
    );
}

#[test]
fn an_event_that_was_dropped_because_the_session_is_slow_is_told() {
    let mut fed = fed(&["--slow-consumer", "drop", "--max-queued-messages", "1"]);
    let mut slow = Client::connect_narrow(fed.server.address());
    slow.must_subscribe(MINE, ACCOUNT, "call.*.*");
    let id = slow.session_id();
    let (mut looker, _) = Looker::look(fed.server.admin(), &format!("session={id}"));
    let mut body = call_event(ACCOUNT, "CHANNEL_CREATE", 1);
    body["Padding"] = json!("x".repeat(1 << 20));
    let mut outcomes = Vec::new();
    while outcomes
        .last()
        .is_none_or(|what| what != "session slow: dropped")
    {
        fed.publish("callevt", "call.CHANNEL_CREATE.c", &body);
        outcomes.push(verdict(looker.line_but(&["written"])).2);
        assert!(outcomes.len() < 50, "{outcomes:?}");
    }
    let matched = outcomes.len() - 1;
    assert!(
        matched > 0 && outcomes[..matched].iter().all(|what| what == "call.*.*"),
        "{outcomes:?}"
    );
    fed.server.wait_for_metric("frames_dropped_total", 1);
    (0..matched).for_each(|_| drop(slow.event()));
    assert_eq!(
        slow.notice()["data"]["dropped"],
        1,
        "after {matched} events"
    );
}

#[test]
fn an_event_that_closes_the_session_because_it_is_slow_is_not_told_as_matched() {
    let mut fed = fed(&["--slow-consumer", "close", "--max-outbox-bytes", "65536"]);
    let mut slow = Client::connect_narrow(fed.server.address());
    slow.must_subscribe(MINE, ACCOUNT, "call.*.*");
    let id = slow.session_id();
    let (mut looker, _) = Looker::look(fed.server.admin(), &format!("session={id}"));
    let mut body = call_event(ACCOUNT, "CHANNEL_CREATE", 1);
    body["Padding"] = json!("x".repeat(1 << 20));
    let (mut matched, mut last) = (0, None);
    let closed = loop {
        fed.publish("callevt", "call.CHANNEL_CREATE.c", &body);
        match looker.line_but(&["written"]) {
            (word, told) if word == "closed" => break told,
            told => {
                if let Some(before) = last.replace(verdict(told)) {
                    assert_eq!(before.2, "call.*.*", "after the first that is lost it ends");
                    matched += 1;
                }
            }
        }
        assert!(matched < 50, "{last:?}");
    };
    assert_eq!(closed["reason"], "slow consumer");
    let (word, _, why) = last.expect("an event was told");
    assert_eq!((&*word, &*why), ("not_matched", "session slow: dropped"));
    assert!(matched > 0);
    assert_eq!(fed.server.metric("frames_delivered_total"), matched);
}

#[test]
fn questions_that_make_no_sense_are_refused_and_so_are_lookers_beyond_the_bound() {
    let fed = fed(&[]);
    let admin = fed.server.admin();
    for (query, expected) in [
        ("", "session"),
        ("event=CHANNEL_CREATE", "session"),
        ("limit=5", "session"),
        ("key=call.CHANEL_CREATE.*", "`call.CHANNEL_CREATE.*`"),
        ("key=", "key"),
        ("key=call.%23", "call."),
        ("session=127.0.0.1", "session"),
        ("account=12", "account"),
        (&format!("account={ACCOUNT}&limit=many"), "limit"),
        (&format!("account={ACCOUNT}&colour=red"), "colour"),
    ] {
        let (status, text) = Looker::refused(admin, query);
        assert_eq!(status, 400, "{query}: {text}");
        assert!(
            text.contains(expected) && text.lines().count() == 1,
            "{query}: {text}"
        );
    }
    // Who asks for the head only looks at nothing.
    let mut raw = Raw::connect(admin);
    let request = format!("HEAD /trace?account={ACCOUNT} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    raw.send(request.as_bytes());
    let response = raw.last_response();
    assert_eq!((response.status, &*response.body), (200, ""));
    assert_eq!(fed.server.metric("trace_looks"), 0);
    assert_eq!(fed.server.metric("amqp_bindings_wanted"), 0);
    let account = format!("account={ACCOUNT}");
    let ask = |_| Looker::look(admin, &account);
    let mut lookers: Vec<_> = (0..TRACE_LOOKS_MAX).map(ask).collect();
    assert_eq!(Looker::refused(admin, &account).0, 503);
    // Each holds its keys, and equal ones are bound once.
    let [first, last] = [0, TRACE_LOOKS_MAX - 1].map(|at| &lookers[at].1);
    let count = |looking: &Value| looking["keys"].as_array().unwrap().len();
    assert_eq!(first["keys_without_room"], 0);
    assert!(
        count(first) > 10 && count(first) * TRACE_LOOKS_MAX <= TRACE_KEYS_TOTAL_MAX,
        "{first}"
    );
    assert_eq!(count(last), count(first));
    assert_eq!(
        fed.server.metric("amqp_bindings_wanted"),
        count(first) as u64
    );
    lookers.pop();
    fed.server
        .wait_for_metric("trace_looks", TRACE_LOOKS_MAX as u64 - 1);
    let looker = Looker::look(admin, &account);
    drop((looker, lookers));
    fed.server.wait_for_metric("trace_looks", 0);
    fed.server.wait_for_metric("amqp_bindings_wanted", 0);
}

#[test]
fn several_lookers_are_each_told_what_they_look_at() {
    let mut fed = fed(&[]);
    let server = &fed.server;
    let admin = server.admin();
    let mut mine = subscribed(server, MINE, ACCOUNT, "call.CHANNEL_CREATE.*");
    let mut theirs = subscribed(server, THEIRS, OTHER_ACCOUNT, "call.CHANNEL_CREATE.*");
    let queries = [
        format!("session={}", mine.session_id()),
        format!("session={}", theirs.session_id()),
        format!("account={ACCOUNT}"),
        format!("account={OTHER_ACCOUNT}&key=call.CHANNEL_CREATE.*"),
    ];
    let mut lookers = queries.map(|query| Looker::look(admin, &query).0);
    publish_call(&mut fed, ACCOUNT, "CHANNEL_CREATE");
    publish_call(&mut fed, OTHER_ACCOUNT, "CHANNEL_CREATE");
    mine.event();
    theirs.event();
    let (key, not) = ("call.CHANNEL_CREATE.*", "account not this session's");
    let expected: [&[&str]; 4] = [&[key, not], &[not, key], &[key], &[key]];
    for (looker, expected) in lookers.iter_mut().zip(expected) {
        for expected in expected {
            assert_eq!(
                verdict(looker.line_but(&["bound", "written", "command"])).2,
                *expected
            );
        }
    }
    // One that goes takes nothing from the others.
    let [first, _second, _third, mut last] = lookers;
    drop(first);
    fed.server.wait_for_metric("trace_looks", 3);
    publish_call(&mut fed, OTHER_ACCOUNT, "CHANNEL_CREATE");
    assert_eq!(verdict(last.line_but(&["bound"])).2, key);
}

#[test]
fn a_burst_is_told_as_far_as_the_turn_allows_and_the_rest_is_counted() {
    const EVENTS: u64 = 3000;
    let mut fed = fed(&[]);
    let mut mine = subscribed(&fed.server, MINE, ACCOUNT, "call.*.*");
    let query = format!("session={}&key=call.CHANNEL_CREATE.*", mine.session_id());
    let (mut looker, _) = Looker::look(fed.server.admin(), &query);
    for number in 0..EVENTS {
        let body = call_event(ACCOUNT, "CHANNEL_CREATE", number.try_into().unwrap());
        fed.publish("callevt", "call.CHANNEL_CREATE.c", &body);
        if number % 100 == 99 {
            for _ in 0..100 {
                mine.event();
            }
        }
    }
    let (mut told, mut written) = (0, 0);
    while told < EVENTS {
        let (word, line) = looker.line();
        match &*word {
            "matched" => told += 1,
            "written" => written += 1,
            "left_out" => {
                told += line["lines"].as_u64().unwrap() + line["events"].as_u64().unwrap()
            }
            "bound" => {}
            _ => panic!("{word}: {line}"),
        }
    }
    assert!(written > 0);
}

#[test]
fn a_looker_that_does_not_read_loses_lines_and_is_told_how_many() {
    const COMMANDS: usize = 1200;
    let fed = fed(&[
        "--rate-limit-burst",
        "1000000",
        "--send-timeout-ms",
        "60000",
        "--max-message-bytes",
        "100000",
    ]);
    let mut mine = Client::connect_as(fed.server.address(), MINE);
    let account = format!("account={ACCOUNT}");
    let mut looker = Looker::look_narrowly(fed.server.admin(), &account);
    // Some 16 KiB a line.
    let bindings: Vec<String> = (0..64)
        .map(|number| format!("call.*.{number}{}", "x".repeat(240)))
        .collect();
    for number in 0..COMMANDS {
        let command = json!({"action": "unsubscribe", "request_id": format!("n{number}"), "data": {"bindings": bindings}});
        let reply = mine.ask(&command);
        assert_eq!(
            reply["request_id"],
            format!("n{number}"),
            "nobody waits for the looker"
        );
    }
    let last = json!({"action": "ping", "request_id": "last"});
    let (mut told, mut lost) = (0, 0);
    while told + lost < COMMANDS {
        let (word, line) = looker.line();
        match &*word {
            "command" => told += 1,
            "left_out" => lost += usize::try_from(line["lines"].as_u64().unwrap()).unwrap(),
            "looking" | "bound" | "opened" => {}
            _ => panic!("{word}: {line}"),
        }
    }
    assert!(lost > 0, "{told} lines were told");
    assert_eq!(told + lost, COMMANDS);
    mine.ask(&last);
    assert_eq!(looker.until("command")["request_id"], "last");
}

#[test]
fn an_event_that_is_handed_out_in_slices_is_told_once_for_each_subscription() {
    const BINDINGS: [&str; 4] = [
        "call.*.*",
        "call.*.c",
        "call.CHANNEL_CREATE.*",
        "call.CHANNEL_CREATE.c",
    ];
    let mut fed = fed(&["--max-outbox-bytes", "100000000"]);
    let admin = fed.server.admin();
    let mut sessions = ["piston", "kazoo"].map(|style| {
        let mut client = fed.server.client_at(&format!("/?style={style}"));
        client.must_subscribe_to_all(MINE, ACCOUNT, &BINDINGS);
        let (looker, _) = Looker::look(admin, &format!("session={}", client.session_id()));
        (client, looker)
    });
    let body = large_call_event(ACCOUNT, 1, 3 << 20);
    fed.publish("callevt", "call.CHANNEL_CREATE.c", &body);
    for (client, looker) in &mut sessions {
        let mut got = BINDINGS.map(|_| {
            client.event()["subscribed_key"]
                .as_str()
                .unwrap()
                .to_owned()
        });
        let mut told = BINDINGS.map(|_| verdict(looker.line_but(&["written"])).2);
        got.sort();
        told.sort();
        assert_eq!(told, got);
    }
    assert_eq!(fed.server.metric("events_sliced_total"), 1);
    publish_call(&mut fed, ACCOUNT, "CHANNEL_ANSWER");
    let told = verdict(sessions[0].1.line_but(&["written"]));
    assert_eq!(told.1, "call.CHANNEL_ANSWER.c", "nothing was told twice");
}

#[test]
fn a_close_by_the_operator_and_one_by_the_client_are_told_with_their_codes() {
    let fed = fed(&[]);
    let admin = fed.server.admin();
    let mut mine = subscribed(&fed.server, MINE, ACCOUNT, "call.*.*");
    let other = subscribed(&fed.server, MINE, ACCOUNT, "call.*.*");
    let (mut looker, _) = Looker::look(admin, &format!("account={ACCOUNT}"));
    let id = mine.session_id();
    let mut asker = Raw::connect(admin);
    let request = format!(
        "DELETE /v2/sessions/{id}?code=4321&reason=because HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    );
    asker.send(request.as_bytes());
    assert_eq!(asker.last_response().status, 200);
    assert_eq!(mine.expect_close(), (4321, "because".to_owned()));
    let closed = looker.until("closed");
    assert_eq!(
        (&closed["session"], &closed["code"], &closed["reason"]),
        (&json!(id), &json!(4321), &json!("closed by the operator"))
    );
    let mut raw = Raw::upgraded(fed.server.address());
    raw.send_text(&subscribe(MINE, ACCOUNT, "call.*.*").to_string());
    looker.until("command");
    raw.send_frame(0x88, &4000_u16.to_be_bytes());
    let closed = looker.until("closed");
    assert_eq!(
        (&closed["session"], &closed["code"]),
        (&json!(raw.session_id()), &json!(4000))
    );
    drop(other);
    assert_eq!(looker.until("closed")["reason"], "connection lost");
}

#[test]
fn subscriptions_that_are_taken_away_and_a_token_that_is_are_told() {
    let entry =
        |descendants: &[&str]| json!({"account_id": OTHER_ACCOUNT, "descendants": descendants});
    let file = TokenFile::new(&json!({THEIRS: entry(&[ACCOUNT])}));
    let fed = Fed::start(&["--auth", &file.option()]);
    let mut theirs = subscribed(&fed.server, THEIRS, ACCOUNT, "call.*.*");
    theirs.must_subscribe(THEIRS, OTHER_ACCOUNT, "fax.status.*");
    let id = theirs.session_id();
    let (mut looker, _) = Looker::look(fed.server.admin(), &format!("session={id}"));
    file.write(&json!({THEIRS: entry(&[])}).to_string());
    fed.server.signal(Signal::HUP);
    let ended = looker.until("subscriptions_ended");
    assert_eq!(
        (&ended["bindings"], &ended["reason"]),
        (&json!(["call.*.*"]), &json!("rights"))
    );
    file.write("{}");
    fed.server.signal(Signal::HUP);
    let closed = looker.until("closed");
    assert_eq!(
        (&closed["session"], &closed["code"], &closed["reason"]),
        (&json!(id), &json!(4401), &json!("token expired"))
    );
}

fn one_of<'a>(random: &mut Rng, all: &[&'a str]) -> &'a str {
    all[random.usize(..all.len())]
}

/// A subscription to calls: account, event, call id; `*` is any.
type Wanted<'a> = (&'a str, &'a str, &'a str);

/// Why an event did not reach a session with these subscriptions, judged as a person would.
fn judged(wanted: &[Wanted<'_>], event: Wanted<'_>, is_others: bool) -> &'static str {
    let is = |pattern: &str, word: &str| pattern == "*" || pattern == word;
    let any = |test: &dyn Fn(&Wanted<'_>) -> bool| wanted.iter().any(test);
    if any(&|one| is(one.1, event.1) && is(one.2, event.2)) {
        "account not this session's"
    } else if any(&|one| one.0 == event.0 && is(one.2, event.2)) {
        "other event word"
    } else if is_others {
        "not bound by this session"
    } else {
        "nobody bound the key"
    }
}

#[test]
fn what_is_told_is_what_happens_for_any_subscriptions_and_events() {
    const SESSIONS: usize = 4;
    const ROUNDS: usize = 12;
    let accounts = [ACCOUNT, OTHER_ACCOUNT, "ffffffffffffffffffffffffffffffff"];
    let words = ["CHANNEL_CREATE", "CHANNEL_ANSWER", "CHANNEL_DESTROY"];
    let ids = ["a", "b", "c"];
    let mut random = Rng::with_seed(20_261_126);
    let mut fed = Fed::insecure(&["--rate-limit-burst", "1000000"]);
    for round in 0..ROUNDS {
        let mut sessions: Vec<(Client, Looker, Vec<Wanted<'_>>)> = Vec::new();
        for _ in 0..SESSIONS {
            let mut client = fed.server.client();
            let mut wanted = Vec::new();
            for _ in 0..random.usize(..4) {
                let one = (
                    one_of(&mut random, &accounts),
                    one_of(&mut random, &[words[0], words[1], "*"]),
                    one_of(&mut random, &["a", "b", "*"]),
                );
                if !wanted.contains(&one) {
                    client.must_subscribe(ANY_TOKEN, one.0, &format!("call.{}.{}", one.1, one.2));
                    wanted.push(one);
                }
            }
            client.must_subscribe(ANY_TOKEN, ACCOUNT, "fax.status.marker");
            let query = format!("session={}", client.session_id());
            let (looker, _) = Looker::look(fed.server.admin(), &query);
            sessions.push((client, looker, wanted));
        }
        let mut events = Vec::new();
        for number in 0..15 {
            let event = (
                one_of(&mut random, &accounts),
                one_of(&mut random, &words),
                one_of(&mut random, &ids),
            );
            let name = format!("{round}-{number}");
            let body = json!({"Event-Name": name, "Account-ID": event.0});
            fed.publish("callevt", &format!("call.{}.{}", event.1, event.2), &body);
            events.push((name, event));
        }
        let marker = json!({"Event-Name": "marker"});
        fed.publish("faxes", &format!("fax.status.{ACCOUNT}.marker"), &marker);

        // By event: what each session got, and what was told of it.
        let mut got: Vec<BTreeMap<String, Vec<String>>> = Vec::new();
        let mut told: Vec<BTreeMap<String, Vec<String>>> = Vec::new();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        for (client, looker, _) in &mut sessions {
            let (mut own, mut lines) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::<_, Vec<_>>::new());
            loop {
                let event = client.event();
                if event["name"] == "marker" {
                    break;
                }
                let key = text(&event["subscribed_key"]);
                own.entry(text(&event["name"])).or_default().push(key);
            }
            loop {
                let (word, line) = looker.line_but(&["written"]);
                if line["name"] == "marker" {
                    break;
                }
                let what = if word == "matched" {
                    "subscribed_key"
                } else {
                    "why"
                };
                lines
                    .entry(text(&line["name"]))
                    .or_default()
                    .push(text(&line[what]));
            }
            got.push(own);
            told.push(lines);
        }
        for (name, event) in &events {
            for (at, (_, _, wanted)) in sessions.iter().enumerate() {
                let expected = match got[at].get(name) {
                    Some(keys) => keys.clone(),
                    None => {
                        let is_others = got.iter().any(|own| own.contains_key(name));
                        let why = judged(wanted, *event, is_others);
                        // Of an event of another account that is near nothing of its own a session is not told.
                        let is_own =
                            event.0 == ACCOUNT || wanted.iter().any(|one| one.0 == event.0);
                        let is_told = is_own || why == "account not this session's";
                        if is_told {
                            vec![why.to_owned()]
                        } else {
                            Vec::new()
                        }
                    }
                };
                let found = told[at].get(name).cloned().unwrap_or_default();
                assert_eq!(
                    found, expected,
                    "round {round}, event {name} {event:?}, session {wanted:?}"
                );
            }
        }
        for (client, ..) in sessions {
            client.close();
        }
        fed.server.wait_for_metric("trace_looks", 0);
    }
}

#[test]
fn a_broker_binds_what_is_looked_at_and_unbinds_it_when_the_look_ends() {
    let Some(host) = Host::take() else { return };
    let server = Server::bridge(&host.url, &[]);
    let publisher = Publisher::connect(&host.url);
    let publish = |number| {
        let body = call_event(ACCOUNT, "CHANNEL_CREATE", number).to_string();
        publisher.publish("callevt", "call.CHANNEL_CREATE.c", body.as_bytes());
    };
    let admin = server.admin();
    let (mut looker, looking) = Looker::look(admin, &format!("account={ACCOUNT}"));
    let keys = looking["keys"].as_array().unwrap().len();
    for _ in 0..keys {
        assert_eq!(looker.line().0, "bound");
    }
    assert_eq!(server.metric("amqp_bindings_in_force"), keys as u64);
    publish(1);
    assert_eq!(verdict(looker.line()).2, "nobody bound the key");
    let mut mine = subscribed(&server, ANY_TOKEN, ACCOUNT, "call.CHANNEL_CREATE.*");
    publish(2);
    assert_eq!(
        verdict(looker.line_but(&["command"])).2,
        "call.CHANNEL_CREATE.*"
    );
    drop(looker);
    // The session's own binding is left, and brings what it did.
    server.wait_for_metric("amqp_bindings_wanted", 1);
    publish(3);
    assert_eq!(
        [mine.event(), mine.event()].map(|event| event["args"]["Number"].clone()),
        [2, 3].map(Value::from)
    );
    mine.close();
    server.wait_for_metric("amqp_bindings_in_force", 0);
}

#[test]
fn a_session_that_comes_is_told_to_who_waits_for_it() {
    let fed = fed(&[]);
    let mut raw = Raw::connect(fed.server.address());
    let id = raw.session_id();
    let (mut looker, looking) = Looker::look(fed.server.admin(), &format!("session={id}"));
    assert_eq!(
        (&looking["there"], &looking["bindings"]),
        (&json!(false), &json!([]))
    );
    raw.send(UPGRADE_REQUEST.as_bytes());
    raw.head();
    assert_eq!(looker.line().1["session"], id);
    raw.send_text(&subscribe(MINE, ACCOUNT, "call.*.*").to_string());
    assert_eq!(looker.until("command")["waits_for"], "broker");
    assert_eq!(looker.until("command")["outcome"], "ok");
    assert!(looker.text.contains("event: written"), "{}", looker.text);
    raw.shutdown_write();
    let closed = looker.until("closed");
    assert_eq!(closed["reason"], "connection lost");
}
