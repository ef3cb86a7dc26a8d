//! What a session may do, how much of it and for how long, over real sockets (PROTOCOL 3).

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use support::client::{ANY_TOKEN, Client, Raw, errors, ping, ping_as, subscribe, success};
use support::events::{ACCOUNT, OTHER_ACCOUNT};
use support::server::{Scratch, Server, TokenFile, unix_now, wait_for};
use support::wire::client_text;

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
    let own = raw.session_id();
    drop(raw);
    server.wait_for_metric(r#"closes_total{reason="rate_limit"}"#, 1);
    server.wait_for_log(&format!("session {own} closed: rate limit"));
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
    assert_eq!(
        server.metric(r#"commands_total{result="metadata_too_large"}"#),
        2
    );
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
    server.wait_for_metric(r#"closes_total{reason="expired"}"#, 1);
}

#[test]
fn a_session_that_was_refreshed_in_time_keeps_its_subscriptions_past_the_old_expiry() {
    let expires = unix_now() + 3;
    let tokens = TokenFile::new(&json!({
        "short": {"account_id": ACCOUNT, "expires": expires}, "long": {"account_id": ACCOUNT},
    }));
    let server = Server::start(&["--source", "demo", "--auth", &tokens.option()]);
    let mut witness = Client::connect_as(server.address(), "short");
    let mut client = Client::connect(server.address());
    client.must_subscribe("short", ACCOUNT, "call.CHANNEL_CREATE.*");
    success(&client.ask(&ping_as("long", "refresh")));
    assert_eq!(witness.expect_close(), (4401, "token expired".to_owned()));
    let reply = client.subscribe("long", ACCOUNT, "call.CHANNEL_DESTROY.*");
    assert_eq!(
        success(&reply)["subscribed"],
        json!(["call.CHANNEL_CREATE.*", "call.CHANNEL_DESTROY.*"])
    );
    assert_eq!(
        errors(&client.ask(&ping_as("short", "back"))),
        ["failed to authenticate token"],
        "and that changes nothing"
    );
    success(&client.ask(&ping("1")));
}

#[test]
fn after_its_close_for_an_expired_token_a_session_runs_no_command_with_whatever_token() {
    let tokens = TokenFile::new(&json!({
        "short": {"account_id": ACCOUNT, "expires": unix_now() + 2}, "long": {"account_id": ACCOUNT},
    }));
    let server = Server::start(&["--source", "demo", "--auth", &tokens.option()]);
    let mut raw = Raw::upgraded(server.address());
    raw.send_text(&subscribe("short", ACCOUNT, "call.*.*").to_string());
    success(&raw.json());
    let (opcode, payload) = raw.frame();
    assert_eq!((opcode, &payload[..2]), (8, &4401_u16.to_be_bytes()[..]));
    assert_eq!(server.metric("subscriptions"), 0);
    let commands = server.metric("commands_total");
    raw.try_send(&client_text(
        &subscribe("long", ACCOUNT, "call.*.*").to_string(),
    ));
    assert!(raw.rest().is_empty(), "no answer");
    drop(raw);
    server.wait_for_metric(r#"closes_total{reason="expired"}"#, 1);
    server.wait_for_metric("connections", 0);
    assert_eq!(
        (
            server.metric("commands_total"),
            server.metric("subscriptions")
        ),
        (commands, 0)
    );
}

#[test]
fn sighup_closes_whose_token_is_gone_and_renews_what_the_others_may() {
    let expires = unix_now() + 4;
    let tokens = TokenFile::new(&json!({
        "kept": {"account_id": ACCOUNT},
        "revoked": {"account_id": ACCOUNT},
        "shortened": {"account_id": ACCOUNT},
        "extended": {"account_id": ACCOUNT, "expires": expires},
        "narrowed": {"account_id": ACCOUNT, "descendants": [OTHER_ACCOUNT]},
    }));
    let server = Server::start(&["--source", "demo", "--auth", &tokens.option()]);
    let session = |token| {
        let mut client = Client::connect(server.address());
        client.must_subscribe(token, ACCOUNT, "call.*.*");
        client
    };
    let (mut kept, mut revoked) = (session("kept"), session("revoked"));
    let (mut shortened, mut extended) = (session("shortened"), session("extended"));
    let mut narrowed = session("narrowed");
    narrowed.must_subscribe("narrowed", OTHER_ACCOUNT, "call.PARK_PARKED.*");
    let mut bearer = Client::connect_as(server.address(), "revoked");
    let mut stranger = Client::connect(server.address());
    assert_eq!(server.metric("subscriptions"), 6);

    let text = json!({
        "kept": {"account_id": ACCOUNT},
        "shortened": {"account_id": ACCOUNT, "expires": 1},
        "extended": {"account_id": ACCOUNT},
        "narrowed": {"account_id": ACCOUNT},
    });
    tokens.write(&text.to_string());
    server.signal(Signal::HUP);
    for closed in [&mut revoked, &mut shortened, &mut bearer] {
        assert_eq!(closed.expect_close(), (4401, "token expired".to_owned()));
    }
    server.wait_for_metric(r#"closes_total{reason="expired"}"#, 3);
    assert_eq!(
        server.metric("subscriptions"),
        3,
        "of the kept, the extended, and one of the narrowed"
    );
    success(&kept.ask(&ping("1")));
    let reply = narrowed.ask(&json!({"action": "unsubscribe"}));
    assert_eq!(success(&reply)["unsubscribed"], json!(["call.*.*"]));
    assert_eq!(
        errors(&narrowed.subscribe("narrowed", OTHER_ACCOUNT, "call.*.*")),
        ["unauthorized account id"]
    );
    assert_eq!(
        errors(&stranger.ask(&ping_as("revoked", "1"))),
        ["failed to authenticate token"]
    );
    wait_for("a second after the old expiry", || {
        (unix_now() > expires + 1).then_some(())
    });
    success(&extended.ask(&ping("1")));
    assert_eq!(server.metric(r#"closes_total{reason="expired"}"#), 3);
}

#[test]
fn a_reread_that_takes_its_time_holds_up_nobody_and_the_last_state_of_the_file_counts() {
    let tokens = TokenFile::new(&json!({"old": {"account_id": ACCOUNT}}));
    let server = Server::start(&["--source", "demo", "--auth", &tokens.option()]);
    let mut client = Client::connect(server.address());
    success(&client.ask(&ping_as("old", "1")));
    // Whoever reads the file now waits until somebody writes it.
    let path = tokens.path();
    std::fs::remove_file(&path).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.unwrap().success());
    server.signal(Signal::HUP);
    let mut pipe = wait_for("the reader at the pipe", || {
        let mut options = std::fs::OpenOptions::new();
        let options = options.write(true).custom_flags(libc::O_NONBLOCK);
        options.open(&path).ok()
    });
    for number in 0..20 {
        success(&client.ask(&ping(&number.to_string())));
    }
    assert_eq!(server.metric("config_reloads_total"), 0);
    // Told again meanwhile: what is there when the first reading is through is read, too.
    server.signal(Signal::HUP);
    success(&client.ask(&ping("2")));
    std::fs::remove_file(&path).unwrap();
    let content = |token: &str| {
        json!({"old": {"account_id": ACCOUNT}, token: {"account_id": ACCOUNT}}).to_string()
    };
    tokens.write(&content("last"));
    pipe.write_all(content("first").as_bytes()).unwrap();
    drop(pipe);
    server.wait_for_metric("config_reloads_total", 2);
    let mut late = Client::connect(server.address());
    assert_eq!(
        errors(&late.ask(&ping_as("first", "1"))),
        ["failed to authenticate token"]
    );
    success(&late.ask(&ping_as("last", "2")));
    success(&client.ask(&ping("3")));
}

#[test]
fn accounts_with_one_realm_and_families_open_to_all_are_warned_of_by_name() {
    let tokens = TokenFile::new(&json!({
        "secret-1": {"account_id": ACCOUNT, "realm": "one.example"},
        "secret-2": {"account_id": OTHER_ACCOUNT, "realm": "two.example"},
    }));
    let family = |binding: &str, key: &str, required: Value| {
        json!({"name": "queue", "binding": binding, "exchange": "queues", "keys": [key],
            "account": "none", "required": required})
    };
    let document = json!({"families": [
        family("queue.{id}", "queue.{id}", json!({"id": "QueueId required"})),
        family("member.{event}.{id}", "member.{event}.{id}", json!({"event": "Event required"})),
        family("status", "status", json!({})),
    ]});
    let file = Scratch::file("blackhole.json", &document.to_string());
    let server = Server::start(&[
        "--source",
        "demo",
        "--auth",
        &tokens.option(),
        "--config",
        file.path().to_str().unwrap(),
    ]);
    let log = wait_for("the last family's warning", || {
        Some(server.log()).filter(|log| log.contains("families[2]: "))
    });
    assert!(!log.contains("have one realm"), "{log}");
    for (family, is_warned_of) in [(0, false), (1, true), (2, true)] {
        let line = format!("families[{family}]: with account `none`");
        assert_eq!(log.contains(&line), is_warned_of, "{family}: {log}");
    }
    let both = json!({
        "secret-1": {"account_id": ACCOUNT, "realm": "one.example"},
        "secret-2": {"account_id": OTHER_ACCOUNT, "realm": "one.example"},
    });
    tokens.write(&both.to_string());
    server.signal(Signal::HUP);
    server.wait_for_metric("config_reloads_total", 1);
    let warning = format!("accounts {OTHER_ACCOUNT} and {ACCOUNT} have one realm");
    let log = wait_for("the warning", || {
        Some(server.log()).filter(|log| log.contains(&warning))
    });
    assert!(!log.contains("secret"), "{log}");
}
