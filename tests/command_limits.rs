//! What a session may do, how much of it and for how long, over real sockets (PROTOCOL 3).
#![allow(
    clippy::unwrap_used,
    reason = "a test whose peer answers otherwise must fail"
)]

mod support;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use support::client::{ANY_TOKEN, Client, Raw, errors, ping, ping_as, subscribe, success};
use support::events::ACCOUNT;
use support::server::{Server, TokenFile, wait_for};
use support::wire::client_text;

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// A subscribe to all calls with this `data` beside the account.
fn subscribe_data(data: Value) -> Value {
    let mut command =
        json!({"action": "subscribe", "auth_token": ANY_TOKEN, "data": {"account_id": ACCOUNT}});
    for (key, value) in data.as_object().unwrap() {
        command["data"][key] = value.clone();
    }
    command
}

#[test]
fn commands_beyond_the_rate_limit_are_refused_and_not_run_and_the_bucket_refills() {
    let server = Server::demo(&["--rate-limit-burst", "5", "--rate-limit-per-second", "5"]);
    let (mut client, mut other) = (
        Client::connect(server.address()),
        Client::connect(server.address()),
    );
    let begun = Instant::now();
    let mut bytes = Vec::new();
    for _ in 0..5 {
        bytes.extend(client_text(&ping_as(ANY_TOKEN, "in time").to_string()));
    }
    let mut late = subscribe(ANY_TOKEN, ACCOUNT, "call.*.*");
    late["request_id"] = json!("late");
    bytes.extend(client_text(&late.to_string()));
    client.send_bytes(&bytes);
    for _ in 0..5 {
        assert_eq!(client.recv()["request_id"], "in time");
    }
    let reply = client.recv();
    let expected = format!("rate limiting threshold hit for {}!", client.session_id());
    assert_eq!(
        (errors(&reply), &reply["request_id"]),
        (vec![&*expected], &json!("late"))
    );
    assert_eq!(server.metric("subscriptions"), 0, "it was not run");
    success(&other.ask(&ping_as(
        ANY_TOKEN,
        "another session has a bucket of its own",
    )));
    let again = wait_for("a refill", || {
        let reply = client.ask(&ping("again"));
        (reply["status"] == "success").then(|| begun.elapsed())
    });
    assert!(
        again >= Duration::from_millis(190),
        "after {again:?}, at five a second"
    );
}

#[test]
fn a_thousand_refused_commands_in_a_row_close_the_session_with_1008() {
    let server = Server::demo(&["--rate-limit-burst", "1", "--rate-limit-per-second", "1"]);
    let mut raw = Raw::upgraded(server.address());
    // More than enough: a slow machine's refill may let one in between.
    let frame = client_text(&ping_as(ANY_TOKEN, "x").to_string());
    raw.send(&frame.repeat(3000));
    let mut refused = 0;
    let (code, reason) = loop {
        let (opcode, payload) = raw.frame();
        if opcode == 8 {
            break (
                u16::from_be_bytes([payload[0], payload[1]]),
                String::from_utf8_lossy(&payload[2..]).into_owned(),
            );
        }
        let reply: Value = serde_json::from_slice(&payload).unwrap();
        refused = if reply["status"] == "error" {
            refused + 1
        } else {
            0
        };
    };
    assert_eq!(
        (refused, code, &*reason),
        (999, 1008, "rate limit exceeded"),
        "the thousandth is answered by the close"
    );
    drop(raw);
    server.wait_for_metric("closes_rate_limit_total", 1);
}

#[test]
fn a_session_has_at_most_its_maximum_of_subscriptions() {
    let server = Server::demo(&["--max-subscriptions", "3"]);
    let mut client = Client::connect(server.address());
    let list = |names: &[&str]| {
        let bindings: Vec<String> = names
            .iter()
            .map(|name| format!("call.CHANNEL_CREATE.{name}"))
            .collect();
        subscribe_data(json!({"bindings": bindings}))
    };
    success(&client.ask(&list(&["a", "b"])));
    assert_eq!(
        errors(&client.ask(&list(&["c", "d"]))),
        ["too many subscriptions (max 3)"]
    );
    assert_eq!(server.metric("subscriptions"), 2, "all or nothing");
    success(&client.ask(&list(&["a", "b", "c"])));
    success(&client.ask(&list(&["a"])));
    assert_eq!(
        errors(&client.ask(&list(&["d"]))),
        ["too many subscriptions (max 3)"]
    );
    success(
        &client
            .ask(&json!({"action": "unsubscribe", "data": {"binding": "call.CHANNEL_CREATE.a"}})),
    );
    success(&client.ask(&list(&["d"])));
    success(&Client::connect(server.address()).ask(&list(&["x", "y", "z"])));
}

#[test]
fn metadata_fits_up_to_its_limit_and_a_bigger_one_refuses_the_command() {
    let server = Server::demo(&["--max-metadata-bytes", "40"]);
    let mut client = Client::connect(server.address());
    let with = |length: usize| {
        subscribe_data(json!({"binding": "call.*.*", "metadata": "m".repeat(length - 2)}))
    };
    assert_eq!(
        errors(&client.ask(&with(41))),
        ["metadata too large (max 40 bytes)"]
    );
    for fits in [39, 40] {
        assert_eq!(
            success(&client.ask(&with(fits)))["subscribed"],
            json!(["call.*.*"])
        );
    }
    let mut at_top = ping("top level");
    at_top["metadata"] = json!("m".repeat(39));
    assert_eq!(
        errors(&client.ask(&at_top)),
        ["metadata too large (max 40 bytes)"]
    );
    assert_eq!(server.metric("commands_refused_metadata_total"), 2);
}

#[test]
fn a_session_that_never_authenticates_is_closed_with_1008() {
    let server = Server::demo(&["--auth-timeout-ms", "500"]);
    let mut authenticated = Client::connect(server.address());
    success(&authenticated.ask(&ping_as(ANY_TOKEN, "1")));
    let mut bearer = Client::connect_as(server.address(), ANY_TOKEN);
    let begun = Instant::now();
    let mut client = Client::connect(server.address());
    client.ping_pong(b"life is not enough");
    assert_eq!(
        errors(&client.ask(&ping("1"))),
        ["authentication token required"]
    );
    assert_eq!(
        client.expect_close(),
        (1008, "authentication timeout".to_owned())
    );
    assert!(
        begun.elapsed() >= Duration::from_millis(500),
        "{:?}",
        begun.elapsed()
    );
    success(&authenticated.ask(&ping("2")));
    success(&bearer.ask(&ping("1")));
}

#[test]
fn a_session_whose_token_expires_is_closed_with_4401_and_one_that_was_refreshed_lives() {
    let expires = unix_now() + 2;
    let tokens = TokenFile::new(&json!({
        "short": {"account_id": ACCOUNT, "expires": expires}, "long": {"account_id": ACCOUNT},
    }));
    let server = Server::start(&["--source", "demo", "--auth", &tokens.option()]);
    let mut refreshed = Client::connect_as(server.address(), "short");
    success(&refreshed.ask(&ping_as("long", "refresh")));
    let mut client = Client::connect(server.address());
    success(&client.ask(&ping_as("short", "1")));
    assert_eq!(client.expect_close(), (4401, "token expired".to_owned()));
    assert!(unix_now() >= expires, "not before its time");
    success(&refreshed.ask(&ping("2")));
    let reply = Client::connect(server.address()).ask(&ping_as("short", "3"));
    assert_eq!(errors(&reply), ["failed to authenticate token"]);
    drop(client);
    server.wait_for_metric("closes_expired_total", 1);
}
