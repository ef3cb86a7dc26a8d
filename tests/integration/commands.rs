//! Commands and replies of the whole server, over real sockets (PROTOCOL 3).

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use support::client::{ANY_TOKEN, Client, errors, ping, ping_as, subscribe, success};
use support::events::{ACCOUNT, CALL_ID, OTHER_ACCOUNT, PARENT_ACCOUNT, call_event};
use support::server::{Fed, Server, TokenFile, dead_address, wait_for};
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
fn the_documentations_subscribes_are_answered_with_all_bindings_in_subscription_order() {
    let server = Server::demo(&[]);
    let mut client = Client::connect(server.address());
    let mut subscribed = Vec::new();
    for event in ["CHANNEL_CREATE", "CHANNEL_ANSWER", "CHANNEL_DESTROY"] {
        let binding = format!("call.{event}.*");
        let command = json!({"action": "subscribe", "auth_token": ANY_TOKEN, "request_id": event,
            "data": {"account_id": ACCOUNT, "binding": binding, "name": "My new socket", "metadata": {"test": "test"}}});
        subscribed.push(binding);
        let expected = json!({"action": "reply", "request_id": event, "status": "success",
            "data": {"subscribed": subscribed, "subscriptions": subscribed}});
        assert_eq!(client.ask(&command), expected);
    }
}

#[test]
fn a_command_that_cannot_be_run_gets_its_error_text_and_the_session_lives() {
    let tokens = TokenFile::new(&json!({
        "good": {"account_id": ACCOUNT},
        "root": {"account_id": PARENT_ACCOUNT, "superduper_admin": true},
    }));
    let server = Server::start(&["--source", "demo", "--auth", &tokens.option()]);
    let mut client = Client::connect(server.address());
    let command = |token: Option<&str>, account: &str, binding: &str| {
        let mut command = subscribe("", account, binding);
        command["auth_token"] = json!(token);
        command.to_string()
    };
    let as_good = |data: Value| {
        json!({"action": "subscribe", "auth_token": "good", "data": data}).to_string()
    };
    let action = |name: &str| json!({"action": name}).to_string();
    let of_good = |account: &str, binding: &str| command(Some("good"), account, binding);
    let own = |binding: &str| of_good(ACCOUNT, binding);
    let table: [(&str, Vec<String>); 16] = [
        (
            "authentication token required",
            vec![
                command(None, ACCOUNT, "call.*.*"),
                action("ping"),
                action("unsubscribe"),
                action("other"),
            ],
        ),
        (
            "failed to authenticate token",
            vec![
                command(Some("wrong"), ACCOUNT, "call.*.*"),
                json!({"action": "ping", "auth_token": ["good"]}).to_string(),
            ],
        ),
        (
            "missing required keys in data object",
            vec![
                json!({"action": "subscribe", "auth_token": "good"}).to_string(),
                as_good(json!({})),
            ],
        ),
        (
            "missing required keys : binding",
            vec![
                as_good(json!({"name": "n"})),
                as_good(json!({"account_id": "", "bindings": []})),
                as_good(json!({"account_id": ACCOUNT})),
                as_good(json!({"account_id": OTHER_ACCOUNT, "binding": ""})),
                json!({"action": "unsubscribe", "data": {"bindngs": ["call.*.*"]}}).to_string(),
            ],
        ),
        (
            "unauthorized account id",
            [OTHER_ACCOUNT, "not-an-account"]
                .map(|account| of_good(account, "call.*.*"))
                .into(),
        ),
        (
            "unauthorized wildcard account id",
            vec![of_good("*", "call.*.*")],
        ),
        (
            "event CHANNEL_LOST not supported",
            vec![own("call.CHANNEL_LOST.*")],
        ),
        (
            "invalid format for call subscription : CHANNEL_CREATE",
            vec![own("call.CHANNEL_CREATE")],
        ),
        (
            "invalid format for call subscription : #",
            vec![own("call.#")],
        ),
        (
            "no available subscriptions to requested binding",
            vec![own("weather.today"), own("registration.success")],
        ),
        (
            "ConferenceId required",
            vec![
                own("conference.event.*.*"),
                own("conference.command.*"),
                command(Some("root"), "*", "conference.command.*"),
            ],
        ),
        (
            "missing action",
            vec![json!({"request_id": "r"}).to_string()],
        ),
        ("unknown action fly", vec![action("fly")]),
        (
            "invalid JSON: not an object at line 1 column 0",
            vec!["[]".to_owned()],
        ),
        (
            "invalid JSON: EOF while parsing an object at line 1 column 1",
            vec!["{".to_owned()],
        ),
        (
            "invalid JSON: EOF while parsing a value at line 1 column 0",
            vec![String::new()],
        ),
    ];
    for (error, texts) in table {
        for text in texts {
            client.send_text(&text);
            assert_eq!(errors(&client.recv()), [error], "{text}");
        }
    }
    assert_eq!(success(&client.ask(&ping("alive")))["response"], "pong");
}

#[test]
fn without_an_account_id_a_subscribe_is_for_the_identitys_own_account() {
    let tokens = json!({
        "mine": {"account_id": ACCOUNT, "descendants": [OTHER_ACCOUNT]},
        "root": {"account_id": PARENT_ACCOUNT, "superduper_admin": true},
    });
    let mut fed = Fed::with_tokens(&tokens, &[]);
    let mut client = Client::connect_as(fed.server.address(), "mine");
    let subscribe_own = |binding: &str| json!({"action": "subscribe", "request_id": binding, "data": {"binding": binding}});
    let mut empty = subscribe_own("call.CHANNEL_DESTROY.*");
    empty["data"]["account_id"] = json!("");
    success(&client.ask(&empty));
    success(&client.ask(&subscribe_own("call.CHANNEL_CREATE.*")));
    client.must_subscribe("mine", OTHER_ACCOUNT, "call.CHANNEL_CREATE.*");
    // Another token, another own account; and of a superduper admin it is one account too, not all.
    let mut as_root = subscribe_own("call.CHANNEL_ANSWER.*");
    as_root["auth_token"] = json!("root");
    let mut admin = Client::connect(fed.server.address());
    success(&admin.ask(&as_root));
    for (number, (account, event)) in [
        (PARENT_ACCOUNT, "CHANNEL_DESTROY"),
        (ACCOUNT, "CHANNEL_DESTROY"),
        (ACCOUNT, "CHANNEL_ANSWER"),
        (PARENT_ACCOUNT, "CHANNEL_ANSWER"),
        (ACCOUNT, "CHANNEL_CREATE"),
        (OTHER_ACCOUNT, "CHANNEL_CREATE"),
    ]
    .into_iter()
    .enumerate()
    {
        let body = call_event(account, event, number);
        fed.publish("callevt", &format!("call.{event}.c"), &body);
    }
    let seen = [1, 4, 5].map(|_| {
        let event = client.event();
        (
            event["args"]["Number"].clone(),
            event["subscription_key"].clone(),
            event["request_id"].clone(),
        )
    });
    let expected = [
        (
            1,
            ACCOUNT,
            "CHANNEL_DESTROY",
            json!("call.CHANNEL_DESTROY.*"),
        ),
        (4, ACCOUNT, "CHANNEL_CREATE", json!("call.CHANNEL_CREATE.*")),
        (5, OTHER_ACCOUNT, "CHANNEL_CREATE", Value::Null),
    ]
    .map(|(number, account, event, id)| {
        (
            json!(number),
            json!(format!("call.{account}.{event}.*")),
            id,
        )
    });
    assert_eq!(seen, expected);
    assert_eq!(admin.event()["args"]["Number"], 3);
    client.assert_nothing_came("mine");
    admin.assert_nothing_came("root");
    // It is the same subscription as one that names the account.
    let mut named = subscribe_own("call.CHANNEL_CREATE.*");
    named["data"]["account_id"] = json!(ACCOUNT);
    assert_eq!(
        success(&client.ask(&named))["subscribed"]
            .as_array()
            .map(Vec::len),
        Some(3)
    );
}

#[test]
fn an_identity_without_an_account_must_name_one() {
    let server = Server::demo(&[]);
    let mut client = Client::connect_as(server.address(), ANY_TOKEN);
    for (data, error) in [
        (
            json!({"binding": "call.*.*"}),
            "missing required keys : account_id",
        ),
        (
            json!({"binding": "nonsense", "account_id": null}),
            "missing required keys : account_id",
        ),
        (
            json!({"name": "n"}),
            "missing required keys : account_id, binding",
        ),
        (
            json!({"bindings": [], "account_id": ""}),
            "missing required keys : account_id, binding",
        ),
        (
            json!({"account_id": ACCOUNT}),
            "missing required keys : binding",
        ),
        (json!({}), "missing required keys in data object"),
    ] {
        let reply = client.ask(&json!({"action": "subscribe", "data": data}));
        assert_eq!(errors(&reply), [error], "{data}");
    }
    let reply = client.ask(&json!({"action": "unsubscribe", "data": {"binding": "call.*.*"}}));
    assert_eq!(success(&reply)["unsubscribed"], json!([]));
}

#[test]
fn five_hundred_pipelined_commands_are_answered_in_their_order() {
    let server = Server::demo(&["--rate-limit-burst", "2000"]);
    let mut client = Client::connect(server.address());
    for number in 0..500 {
        let id = number.to_string();
        let command = match number % 4 {
            0 => json!({"action": "subscribe", "auth_token": ANY_TOKEN, "request_id": id,
                "data": {"account_id": ACCOUNT, "binding": format!("call.CHANNEL_CREATE.{}", number % 100)}}),
            1 => ping_as(ANY_TOKEN, &id),
            2 => json!({"action": "nonsense", "request_id": id}),
            _ => json!({"action": "unsubscribe", "request_id": id}),
        };
        client.send(&command);
    }
    // A ping's answer overtakes what waits for its binding.
    let replies: Vec<_> = (0..500).map(|_| client.recv()).collect();
    let is_ping = |reply: &&Value| reply["data"]["response"] == "pong";
    let pings = replies.iter().filter(is_ping).zip((1..500).step_by(4));
    let others = replies.iter().filter(|reply| !is_ping(reply));
    let others = others.zip((0..500).filter(|number| number % 4 != 1));
    assert_eq!(replies.iter().filter(is_ping).count(), 125);
    for (reply, number) in pings.chain(others) {
        assert_eq!(reply["request_id"], number.to_string(), "{reply}");
        assert_eq!(
            reply["status"],
            if number % 4 == 2 { "error" } else { "success" },
            "{reply}"
        );
    }
}

#[test]
fn a_list_with_bad_bindings_is_refused_whole_with_every_error() {
    let server = Server::demo(&[]);
    let mut client = Client::connect(server.address());
    let bindings = [
        "call.CHANNEL_CREATE.*",
        "call.NOTHING.*",
        "weather.today",
        "fax.status.*",
        "conference.command.*",
    ];
    let reply = client.ask(&subscribe_data(json!({"bindings": bindings})));
    let expected = [
        "event NOTHING not supported",
        "no available subscriptions to requested binding",
        "ConferenceId required",
    ];
    assert_eq!(errors(&reply), expected);
    let metrics = server.metrics();
    assert_eq!(
        (metrics["subscriptions"], metrics["amqp_bindings_wanted"]),
        (0, 0),
        "nothing was kept"
    );
    let reply = client.ask(&subscribe_data(
        json!({"bindings": ["fax.status.*", "call.*.*"]}),
    ));
    assert_eq!(
        success(&reply)["subscribed"],
        json!(["fax.status.*", "call.*.*"]),
        "and nothing of it is listed"
    );
}

#[test]
fn binding_is_picked_before_bindings() {
    let server = Server::demo(&[]);
    let mut client = Client::connect(server.address());
    let both = json!({"binding": "call.*.*", "bindings": ["fax.status.*", "nonsense"]});
    assert_eq!(
        success(&client.ask(&subscribe_data(both)))["subscribed"],
        json!(["call.*.*"])
    );
}

#[test]
fn unsubscribe_takes_a_binding_a_list_an_account_or_everything() {
    let server = Server::demo(&[]);
    let mut client = Client::connect(server.address());
    let mine = [
        "call.CHANNEL_CREATE.*",
        "call.CHANNEL_ANSWER.*",
        "call.CHANNEL_DESTROY.*",
        "fax.status.*",
    ];
    success(&client.ask(&subscribe_data(json!({"bindings": mine}))));
    client.must_subscribe(ANY_TOKEN, OTHER_ACCOUNT, "call.CHANNEL_HOLD.*");
    for (data, removed, left) in [
        (
            json!({"binding": mine[0]}),
            vec![mine[0]],
            vec![mine[1], mine[2], mine[3], "call.CHANNEL_HOLD.*"],
        ),
        (
            json!({"binding": mine[0]}),
            vec![],
            vec![mine[1], mine[2], mine[3], "call.CHANNEL_HOLD.*"],
        ),
        (
            json!({"account_id": ACCOUNT, "bindings": [mine[3], "never.had", "call.CHANNEL_HOLD.*", mine[1]]}),
            vec![mine[3], mine[1]],
            vec![mine[2], "call.CHANNEL_HOLD.*"],
        ),
        (
            json!({"account_id": ACCOUNT}),
            vec![mine[2]],
            vec!["call.CHANNEL_HOLD.*"],
        ),
        (json!(null), vec!["call.CHANNEL_HOLD.*"], vec![]),
        (json!({}), vec![], vec![]),
    ] {
        let reply = client.ask(&json!({"action": "unsubscribe", "data": data}));
        assert_eq!(
            success(&reply),
            &json!({"unsubscribed": removed, "subscribed": left, "subscriptions": left}),
            "{data}"
        );
    }
    assert_eq!(server.metric("amqp_bindings_wanted"), 0);
}

#[test]
fn subscribing_again_succeeds_and_changes_nothing() {
    let mut fed = Fed::insecure(&[]);
    let mut client = Client::connect(fed.server.address());
    client.must_subscribe(ANY_TOKEN, ACCOUNT, "call.*.*");
    let mut again = subscribe(ANY_TOKEN, ACCOUNT, "call.*.*");
    again["request_id"] = json!("again");
    assert_eq!(
        success(&client.ask(&again))["subscribed"],
        json!(["call.*.*"])
    );
    assert_eq!(fed.server.metric("subscriptions"), 1);
    for number in 0..2 {
        fed.publish(
            "callevt",
            "call.CHANNEL_CREATE.c",
            &call_event(ACCOUNT, "CHANNEL_CREATE", number),
        );
        let event = client.recv();
        assert_eq!(
            event["args"]["Number"], number,
            "one frame an event: {event}"
        );
        assert_eq!(
            event["request_id"],
            Value::Null,
            "the first subscribe had none"
        );
    }
    success(&client.ask(&json!({"action": "unsubscribe", "data": {"binding": "call.*.*"}})));
    assert_eq!(
        fed.server.metric("amqp_bindings_wanted"),
        0,
        "one unsubscribe undoes both"
    );
}

#[test]
fn one_binding_for_two_accounts_is_two_subscriptions_and_an_account_id_tells_them_apart() {
    const BINDING: &str = "call.CHANNEL_CREATE.*";
    let mut fed = Fed::insecure(&[]);
    let mut client = Client::connect_as(fed.server.address(), ANY_TOKEN);
    let mut both = |client: &mut Client| {
        for account in [ACCOUNT, OTHER_ACCOUNT, PARENT_ACCOUNT] {
            let body = call_event(account, "CHANNEL_CREATE", 0);
            fed.publish("callevt", "call.CHANNEL_CREATE.c", &body);
        }
        let body = call_event(PARENT_ACCOUNT, "PARK_PARKED", 0);
        fed.publish("callevt", "call.PARK_PARKED.c", &body);
        let mut seen = Vec::new();
        loop {
            let event = client.event();
            if event["name"] == "PARK_PARKED" {
                return seen;
            }
            let id = event["request_id"].as_str().unwrap_or("none");
            seen.push(id.to_owned());
        }
    };
    client.must_subscribe(ANY_TOKEN, PARENT_ACCOUNT, "call.PARK_PARKED.*");
    let command = |action: &str, id: Value, account: Option<&str>| {
        json!({"action": action, "request_id": id,
            "data": {"binding": BINDING, "account_id": account}})
    };
    success(&client.ask(&command("subscribe", json!(17), Some(ACCOUNT))));
    let reply = client.ask(&command("subscribe", json!("two"), Some(OTHER_ACCOUNT)));
    assert_eq!(
        success(&reply)["subscribed"],
        json!(["call.PARK_PARKED.*", BINDING, BINDING])
    );
    // The first request id stays, and a number is its digits.
    let reply = client.ask(&command("subscribe", json!("again"), Some(ACCOUNT)));
    assert_eq!(reply["request_id"], "again");
    assert_eq!(both(&mut client), ["17", "two"]);
    for (account, removed) in [
        (Some(PARENT_ACCOUNT), vec![]),
        (Some("nobody"), vec![]),
        (Some("*"), vec![]),
        (Some(ACCOUNT), vec![BINDING]),
    ] {
        let reply = client.ask(&command("unsubscribe", json!("u"), account));
        assert_eq!(success(&reply)["unsubscribed"], json!(removed));
    }
    assert_eq!(both(&mut client), ["two"]);
    // A new subscription has the id of its own subscribe.
    success(&client.ask(&command("subscribe", json!(null), Some(ACCOUNT))));
    assert_eq!(both(&mut client), ["none", "two"]);
    let reply = client.ask(&command("unsubscribe", json!("u"), None));
    assert_eq!(
        success(&reply)["unsubscribed"],
        json!([BINDING, BINDING]),
        "without an account it is meant of every one"
    );
    assert_eq!(both(&mut client), [""; 0]);
}

#[test]
fn of_several_faults_the_first_in_the_order_of_the_checks_is_told() {
    let tokens = TokenFile::new(&json!({"good": {"account_id": ACCOUNT}}));
    let server = Server::start(&["--source", "demo", "--auth", &tokens.option()]);
    let mut client = Client::connect(server.address());
    let wrong = |token: &str, data: Value| json!({"action": "subscribe", "auth_token": token, "request_id": "r", "data": data});
    let of_other = json!({"account_id": OTHER_ACCOUNT, "binding": "call.#"});
    for (command, expected) in [
        (wrong("bad", json!({})), "failed to authenticate token"),
        (
            json!({"action": "fly", "auth_token": "bad", "request_id": "r"}),
            "failed to authenticate token",
        ),
        (
            json!({"action": 5, "request_id": "r"}),
            "authentication token required",
        ),
        (
            wrong("good", json!({"account_id": 5, "binding": 5})),
            "invalid account_id",
        ),
        (
            wrong("good", json!({"account_id": OTHER_ACCOUNT, "binding": 5})),
            "invalid binding",
        ),
        (
            wrong("good", json!({"account_id": OTHER_ACCOUNT})),
            "missing required keys : binding",
        ),
        (wrong("good", of_other), "unauthorized account id"),
        (
            wrong("good", json!({"account_id": "*", "binding": "call.#"})),
            "unauthorized wildcard account id",
        ),
        (
            wrong("good", json!({"binding": "call.#"})),
            "invalid format for call subscription : #",
        ),
    ] {
        let reply = client.ask(&command);
        assert_eq!(errors(&reply), [expected], "{command}");
        assert_eq!(reply["request_id"], "r", "{command}");
    }
    assert_eq!(server.metric("subscriptions"), 0);
}

#[test]
fn a_list_takes_each_binding_once_and_is_answered_in_the_order_of_the_list() {
    let server = Server::demo(&[]);
    let mut client = Client::connect(server.address());
    let twice = [
        "fax.status.*",
        "call.*.*",
        "fax.status.*",
        "dialog.*",
        "presence.dialog.*",
    ];
    let once = ["fax.status.*", "call.*.*", "dialog.*", "presence.dialog.*"];
    let reply = client.ask(&subscribe_data(json!({"bindings": twice})));
    assert_eq!(success(&reply)["subscribed"], json!(once));
    // Refused whole, also what it has already.
    let reply = client.ask(&subscribe_data(
        json!({"bindings": ["call.*.*", "dialog", "update.*"]}),
    ));
    assert_eq!(
        errors(&reply),
        ["invalid format for dialog subscription : "]
    );
    let removed = ["presence.dialog.*", "fax.status.*"];
    let reply = client.ask(&json!({"action": "unsubscribe",
        "data": {"bindings": [removed[0], "update.*", removed[1], removed[0]]}}));
    let left = ["call.*.*", "dialog.*"];
    assert_eq!(
        success(&reply),
        &json!({"unsubscribed": removed, "subscribed": left, "subscriptions": left})
    );
}

#[test]
fn a_reply_carries_the_request_id_or_a_fresh_one_of_32_hex_characters() {
    let server = Server::demo(&[]);
    let mut client = Client::connect(server.address());
    assert_eq!(
        client.ask(&ping_as(ANY_TOKEN, "Ünï \"quoted\" \u{1F4DE}"))["request_id"],
        "Ünï \"quoted\" \u{1F4DE}"
    );
    let mut seen = Vec::new();
    for command in [
        r#"{"action":"ping"}"#,
        r#"{"action":"ping"}"#,
        "{",
        r#"{"action":"fly"}"#,
    ] {
        client.send_text(command);
        let reply = client.recv();
        let id = reply["request_id"].as_str().unwrap().to_owned();
        assert!(
            id.len() == 32
                && id
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
            "{id}"
        );
        assert!(!seen.contains(&id), "{id} twice");
        seen.push(id);
    }
}

#[test]
fn another_token_makes_this_and_later_commands_run_as_another() {
    let tokens = TokenFile::new(&json!({
        "one": {"account_id": ACCOUNT}, "two": {"account_id": OTHER_ACCOUNT},
    }));
    let server = Server::start(&["--source", "demo", "--auth", &tokens.option()]);
    let mut client = Client::connect(server.address());
    let without_token = |account| json!({"action": "subscribe", "data": {"account_id": account, "binding": "call.*.*"}});
    client.must_subscribe("one", ACCOUNT, "call.*.*");
    success(&client.ask(&without_token(ACCOUNT)));
    client.must_subscribe("two", OTHER_ACCOUNT, "call.*.*");
    assert_eq!(
        errors(&client.ask(&without_token(ACCOUNT))),
        ["unauthorized account id"]
    );
    success(&client.ask(&without_token(OTHER_ACCOUNT)));
    let refused = client.subscribe("three", OTHER_ACCOUNT, "call.*.*");
    assert_eq!(errors(&refused), ["failed to authenticate token"]);
    success(&client.ask(&without_token(OTHER_ACCOUNT)));
}

#[test]
fn without_a_broker_a_subscribe_fails_after_request_timeout_and_nothing_of_it_is_kept() {
    let (_socket, dead) = dead_address();
    let url = format!("amqp://guest:guest@{dead}/%2f");
    let server = Server::start(&[
        "--amqp",
        &url,
        "--auth",
        "insecure",
        "--request-timeout-ms",
        "400",
    ]);
    let mut client = Client::connect(server.address());
    success(&client.ask(&ping_as(ANY_TOKEN, "0")));
    let begun = Instant::now();
    client.send(&subscribe(ANY_TOKEN, ACCOUNT, "call.*.*"));
    client.send(&json!({"action": "fly", "request_id": "behind"}));
    client.send(&ping("at once"));
    assert_eq!(client.recv()["request_id"], "at once");
    let reply = client.recv();
    assert_eq!(errors(&reply), ["event source unavailable"]);
    assert!(
        begun.elapsed() >= Duration::from_millis(400),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(
        client.recv()["request_id"],
        "behind",
        "replies keep their order, so it had to wait"
    );
    let metrics = server.metrics();
    for gauge in [
        "subscriptions",
        "subscription_groups",
        "amqp_bindings_wanted",
        "subscribes_waiting",
    ] {
        assert_eq!(metrics[gauge], 0, "{gauge}");
    }
    assert_eq!(metrics[r#"commands_total{result="broker_timeout"}"#], 1);
    // One that leaves while it waits takes its wish along.
    client.send(&subscribe(ANY_TOKEN, ACCOUNT, "call.*.*"));
    server.wait_for_metric("subscribes_waited_total", 2);
    drop(client);
    server.wait_for_metric("amqp_bindings_wanted", 0);
    server.wait_for_metric("connections", 0);
}

#[test]
fn however_much_is_sent_behind_a_subscribe_that_waits_is_answered_in_order_and_bounded() {
    const BEHIND: usize = 4000;
    let (_socket, dead) = dead_address();
    let url = format!("amqp://guest:guest@{dead}/%2f");
    let server = Server::start(&[
        "--amqp",
        &url,
        "--auth",
        "insecure",
        "--request-timeout-ms",
        "60000",
        "--rate-limit-burst",
        "100000",
    ]);
    let mut client = Client::connect(server.address());
    client.send(&subscribe(ANY_TOKEN, ACCOUNT, "call.*.*"));
    let mut bytes = Vec::new();
    for number in 0..BEHIND {
        let command = json!({"action": "fly", "request_id": number.to_string()});
        bytes.extend(client_text(&command.to_string()));
    }
    client.send_bytes(&bytes);
    // More than is held: what waits is given up, long before its time.
    assert_eq!(errors(&client.recv()), ["event source unavailable"]);
    for number in 0..BEHIND {
        assert_eq!(client.recv()["request_id"], number.to_string());
    }
    let metrics = server.metrics();
    assert_eq!(metrics["commands_total"], 1 + BEHIND as u64);
    assert_eq!(metrics[r#"commands_total{result="given_up"}"#], 1);
    let held = metrics["replies_held_total"];
    assert!((1000..=1024).contains(&held), "{held} were held");
    assert_eq!(metrics["replies_held_bytes"], 0);
    assert_eq!(metrics["amqp_bindings_wanted"], 0);
}

#[test]
fn repeated_keys_and_deep_nesting_do_no_harm() {
    let server = Server::demo(&[]);
    let mut client = Client::connect(server.address());
    client.send_text(&format!(
        r#"{{"action":"fly","action":"subscribe","auth_token":"{ANY_TOKEN}","request_id":"a","request_id":"b",
            "data":{{"account_id":"x"}},"data":{{"account_id":"{ACCOUNT}","binding":"call.*.*","binding":"fax.status.*"}}}}"#
    ));
    let reply = client.recv();
    assert_eq!(reply["request_id"], "b", "the last counts");
    assert_eq!(success(&reply)["subscribed"], json!(["fax.status.*"]));
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let depth = 5000;
        let deep = format!("{}1{}", open.repeat(depth), close.repeat(depth));
        for text in [
            deep.clone(),
            format!(r#"{{"action":"ping","skipped":{deep}}}"#),
            format!(
                r#"{{"action":"subscribe","data":{{"account_id":"{ACCOUNT}","bindings":{deep}}}}}"#
            ),
            format!(r#"{{"action":"ping","data":{{"metadata":{deep}}}}}"#),
            format!(r#"{{"action":"ping","auth_token":{deep}}}"#),
        ] {
            client.send_text(&text);
            assert_eq!(client.recv()["action"], "reply");
        }
    }
    success(&client.ask(&ping("alive")));
    assert_eq!(server.metric("sessions"), 1);
}

#[test]
fn a_field_that_cannot_be_read_is_told_under_the_clients_own_request_id() {
    let server = Server::demo(&["--rate-limit-burst", "20", "--rate-limit-per-second", "1"]);
    let mut client = Client::connect(server.address());
    success(&client.ask(&ping_as(ANY_TOKEN, "authenticated")));
    let deep = "[".repeat(200) + &"]".repeat(200);
    for (fields, error) in [
        (
            r#""action":"ping","name":"\ud83d""#.to_owned(),
            "invalid name",
        ),
        (
            r#""action":"subscribe","data":1e400"#.to_owned(),
            "missing required keys in data object",
        ),
        (
            format!(r#""action":"subscribe","data":{{"account_id":"{ACCOUNT}","binding":{deep}}}"#),
            "invalid binding",
        ),
        (
            format!(r#""action":"ping","metadata":["{}"]"#, r"\udc00"),
            "invalid metadata",
        ),
    ] {
        client.send_text(&format!(r#"{{{fields},"request_id":"mine"}}"#));
        let reply = client.recv();
        assert_eq!(
            (errors(&reply), &reply["request_id"]),
            (vec![error], &json!("mine"))
        );
    }
    client.send_text(r#"{"action":"ping","\ud83d":1e400,"request_id":"mine"}"#);
    let reply = client.recv();
    success(&reply);
    assert_eq!(reply["request_id"], "mine");
    let refused = wait_for("the rate limit", || {
        client.send_text(r#"{"action":"ping","name":"\ud83d","request_id":"mine"}"#);
        let reply = client.recv();
        assert_eq!(reply["request_id"], "mine");
        (errors(&reply) != ["invalid name"]).then(|| errors(&reply).join(""))
    });
    assert!(
        refused.starts_with("rate limiting threshold hit"),
        "{refused}"
    );
}

#[test]
fn name_and_metadata_are_taken_at_either_level_and_change_no_reply() {
    let server = Server::demo(&[]);
    let mut client = Client::connect(server.address());
    let mut command = subscribe(
        ANY_TOKEN,
        ACCOUNT,
        &format!("call.CHANNEL_CREATE.{CALL_ID}"),
    );
    command["name"] = json!("a label");
    command["metadata"] = json!([1, {"two": null}]);
    let subscribed = [format!("call.CHANNEL_CREATE.{CALL_ID}")];
    let expected = json!({"subscribed": subscribed, "subscriptions": subscribed});
    assert_eq!(success(&client.ask(&command)), &expected);
    let mut bad = ping("bad");
    bad["name"] = json!(7);
    assert_eq!(errors(&client.ask(&bad)), ["invalid name"]);
}
