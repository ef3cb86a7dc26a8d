//! From a published event to the frames of those who may see it, over real sockets (PROTOCOL 4 and 5).

use serde_json::{Value, json};

use support::client::{ANY_TOKEN, Client, errors, subscribe};
use support::events::{
    ACCOUNT, CALL_ID, OTHER_ACCOUNT, PARENT_ACCOUNT, call_event, events_until_marker, fixtures,
    kazoo_data, subscribe_to_marker,
};
use support::server::{Fed, Scratch, Server};

#[test]
fn the_platforms_events_reach_the_documentations_client_in_style_piston() {
    let mut fed = Fed::insecure(&[]);
    let mut client = Client::connect(fed.server.address());
    for (number, event) in ["CHANNEL_CREATE", "CHANNEL_ANSWER", "CHANNEL_DESTROY"]
        .iter()
        .enumerate()
    {
        let mut command = subscribe(ANY_TOKEN, ACCOUNT, &format!("call.{event}.*"));
        if number == 0 {
            command["request_id"] = json!("first");
        }
        assert_eq!(client.ask(&command)["status"], "success");
    }
    for (number, (key, body)) in fixtures().into_iter().enumerate() {
        fed.publish("callevt", &key, &body);
        let name = body["Event-Name"].as_str().unwrap();
        let mut expected = json!({
            "action": "event", "name": name, "routing_key": format!("call.{ACCOUNT}.{name}.{CALL_ID}"),
            "args": body, "subscribed_key": format!("call.{name}.*"),
            "subscription_key": format!("call.{ACCOUNT}.{name}.*"),
        });
        if number == 0 {
            expected["request_id"] = json!("first");
        }
        let event = client.recv();
        expected["cursor"] = event["cursor"].clone();
        assert_eq!(event, expected, "request_id only if the subscribe had one");
    }
}

#[test]
fn the_platforms_events_reach_a_kazoo_client_normalised() {
    let mut fed = Fed::insecure(&["--style", "kazoo"]);
    let mut by_default = Client::connect(fed.server.address());
    let mut by_choice = Client::connect_with(fed.server.address(), "/socket?style=kazoo", &[]);
    let mut piston = Client::connect_with(fed.server.address(), "/?style=piston", &[]);
    for client in [&mut by_default, &mut by_choice, &mut piston] {
        client.must_subscribe(ANY_TOKEN, ACCOUNT, "call.*.*");
    }
    for (key, mut body) in fixtures() {
        body["Geo-Location"] = json!({"drop": "me"});
        body["Nothing"] = Value::Null;
        body["Deep-List"] = json!([{"Inner-Key": null, "Node": "stays below the top level"}]);
        fed.publish("callevt", &key, &body);
        let name = body["Event-Name"].as_str().unwrap();
        let mut expected = json!({
            "action": "event", "name": name, "routing_key": format!("call.{ACCOUNT}.{name}.{CALL_ID}"),
            "data": kazoo_data(&body), "subscribed_key": "call.*.*",
            "subscription_key": format!("call.{ACCOUNT}.*.*"),
        });
        assert_eq!(
            expected["data"]["custom_channel_vars"]["account_id"], ACCOUNT,
            "the oracle is awake"
        );
        let event = by_default.recv();
        assert!(event["cursor"].is_string(), "{event}");
        expected["cursor"] = event["cursor"].clone();
        assert_eq!(event, expected);
        assert_eq!(by_choice.recv(), expected);
        let event = piston.recv();
        assert_eq!((&event["args"], &event["data"]), (&body, &Value::Null));
    }
}

#[test]
fn style_piston_hands_the_body_on_as_it_was_written() {
    let mut fed = Fed::insecure(&[]);
    let mut client = Client::connect(fed.server.address());
    client.must_subscribe(ANY_TOKEN, ACCOUNT, "call.*.*");
    let body = format!(
        r#"{{ "Z":1.50e+2,  "Event-Name" : "CHANNEL_CREATE", "Account-ID":"{ACCOUNT}", "A":"\u00e9\/\ud83d\udcde", "A":null,"N":12345678901234567890123 }}"#
    );
    fed.publish_text("callevt", "call.CHANNEL_CREATE.x", &body);
    let text = client.recv_text();
    assert!(text.contains(&format!(r#""args":{body},"#)), "{text}");
}

#[test]
fn a_session_sees_the_accounts_of_its_identity_and_no_other() {
    let tokens = json!({
        "mine": {"account_id": ACCOUNT},
        "theirs": {"account_id": OTHER_ACCOUNT},
        "parents": {"account_id": PARENT_ACCOUNT, "descendants": [ACCOUNT]},
        "roots": {"account_id": OTHER_ACCOUNT, "superduper_admin": true},
    });
    let mut fed = Fed::with_tokens(&tokens, &[]);
    let address = fed.server.address();
    let binding = "call.*.*";
    let mut mine = Client::connect_as(address, "mine");
    mine.must_subscribe("mine", ACCOUNT, binding);
    let mut theirs = Client::connect_as(address, "theirs");
    theirs.must_subscribe("theirs", OTHER_ACCOUNT, binding);
    let mut parents = Client::connect_as(address, "parents");
    parents.must_subscribe("parents", ACCOUNT, binding);
    parents.must_subscribe("parents", PARENT_ACCOUNT, binding);
    let mut roots = Client::connect_as(address, "roots");
    roots.must_subscribe("roots", "*", binding);
    for (client, token, accounts) in [
        (&mut mine, "mine", &[OTHER_ACCOUNT, PARENT_ACCOUNT][..]),
        (&mut theirs, "theirs", &[ACCOUNT]),
        (&mut parents, "parents", &[OTHER_ACCOUNT]),
    ] {
        for account in accounts {
            assert_eq!(
                errors(&client.subscribe(token, account, binding)),
                ["unauthorized account id"]
            );
        }
        assert_eq!(
            errors(&client.subscribe(token, "*", binding)),
            ["unauthorized wildcard account id"]
        );
    }

    let plain = |account: &str, number: usize| json!({"Event-Name": "CHANNEL_CREATE", "Account-ID": account, "Number": number});
    let mut unclear = call_event(ACCOUNT, "CHANNEL_CREATE", 6);
    unclear["Account-ID"] = json!(OTHER_ACCOUNT);
    let mut without = call_event("", "CHANNEL_CREATE", 4);
    without
        .as_object_mut()
        .unwrap()
        .remove("Custom-Channel-Vars");
    for body in [
        call_event(ACCOUNT, "CHANNEL_CREATE", 0),
        call_event(OTHER_ACCOUNT, "CHANNEL_CREATE", 1),
        plain(PARENT_ACCOUNT, 2),
        plain(ACCOUNT, 3),
        without,
        call_event("*", "CHANNEL_CREATE", 5),
        unclear,
    ] {
        fed.publish("callevt", "call.CHANNEL_CREATE.x", &body);
    }
    for (who, client, account, expected) in [
        ("mine", &mut mine, ACCOUNT, vec![0, 3]),
        (
            "theirs: Account-ID comes before the channel's",
            &mut theirs,
            OTHER_ACCOUNT,
            vec![1, 6],
        ),
        ("parents", &mut parents, PARENT_ACCOUNT, vec![0, 2, 3]),
        (
            "roots, also what has no account",
            &mut roots,
            ACCOUNT,
            vec![0, 1, 2, 3, 4, 5, 6],
        ),
    ] {
        let events = events_until_marker(&mut fed, account, client);
        let numbers: Vec<u64> = events
            .iter()
            .filter(|event| event["name"] == "CHANNEL_CREATE")
            .map(|event| event["args"]["Number"].as_u64().unwrap())
            .collect();
        assert_eq!(numbers, expected, "{who}");
    }
}

#[test]
fn a_session_gets_a_frame_for_each_of_its_subscriptions_that_match() {
    let mut fed = Fed::insecure(&[]);
    let mut client = Client::connect(fed.server.address());
    let bindings = [
        "call.*.*",
        "call.CHANNEL_CREATE.*",
        "call.CHANNEL_CREATE.a.b",
        "call.*.a.b",
        "call.CHANNEL_CREATE.a",
    ];
    for binding in bindings {
        client.must_subscribe(ANY_TOKEN, ACCOUNT, binding);
    }
    subscribe_to_marker(&mut client, ANY_TOKEN, ACCOUNT);
    // A call id with a dot: one escaped word in the key that is published.
    fed.publish(
        "callevt",
        "call.CHANNEL_CREATE.a%2Eb",
        &call_event(ACCOUNT, "CHANNEL_CREATE", 1),
    );
    let events = events_until_marker(&mut fed, ACCOUNT, &mut client);
    let mut keys: Vec<(&str, &str)> = events
        .iter()
        .map(|event| {
            (
                event["subscribed_key"].as_str().unwrap(),
                event["subscription_key"].as_str().unwrap(),
            )
        })
        .collect();
    keys.sort_unstable();
    let key = |rest: &str| format!("call.{ACCOUNT}.{rest}");
    let mut expected = [
        ("call.*.*", key("*.*")),
        ("call.CHANNEL_CREATE.*", key("CHANNEL_CREATE.*")),
        ("call.CHANNEL_CREATE.a.b", key("CHANNEL_CREATE.a%2Eb")),
        ("call.*.a.b", key("*.a%2Eb")),
    ];
    expected.sort_unstable();
    assert_eq!(
        keys,
        expected
            .iter()
            .map(|(one, other)| (*one, &**other))
            .collect::<Vec<_>>()
    );
}

#[test]
fn sessions_with_the_same_subscription_share_it_and_the_leaving_of_one_starves_no_other() {
    let mut fed = Fed::insecure(&[]);
    let address = fed.server.address();
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(address)).collect();
    for client in &mut clients {
        client.must_subscribe(ANY_TOKEN, ACCOUNT, "call.CHANNEL_CREATE.*");
    }
    let metrics = fed.server.metrics();
    let shared = [
        "subscriptions",
        "subscription_groups",
        "amqp_bindings_wanted",
        "amqp_bindings_in_force",
    ];
    assert_eq!(shared.map(|gauge| metrics[gauge]), [3, 1, 1, 1]);
    let mut number = 0;
    let mut all_get = |fed: &mut Fed, clients: &mut [Client]| {
        number += 1;
        fed.publish(
            "callevt",
            "call.CHANNEL_CREATE.x",
            &call_event(ACCOUNT, "CHANNEL_CREATE", number),
        );
        for client in clients {
            assert_eq!(client.recv()["args"]["Number"], number);
        }
    };
    all_get(&mut fed, &mut clients);
    let reply = clients[0].ask(&json!({"action": "unsubscribe"}));
    assert_eq!(
        reply["data"]["unsubscribed"],
        json!(["call.CHANNEL_CREATE.*"])
    );
    all_get(&mut fed, &mut clients[1..]);
    drop(clients.pop());
    fed.server.wait_for_metric("sessions", 2);
    all_get(&mut fed, &mut clients[1..]);
    let reply = clients[0].ask(&json!({"action": "ping"}));
    assert_eq!(
        reply["status"], "success",
        "nothing came to the one that unsubscribed"
    );
    assert_eq!(fed.server.metric("amqp_bindings_wanted"), 1);
}

#[test]
fn an_event_published_once_the_reply_is_read_is_delivered() {
    let mut fed = Fed::insecure(&["--rate-limit-burst", "1000"]);
    let mut client = Client::connect(fed.server.address());
    for number in 0..200 {
        client.must_subscribe(ANY_TOKEN, ACCOUNT, &format!("call.CHANNEL_CREATE.{number}"));
        let body = call_event(ACCOUNT, "CHANNEL_CREATE", number);
        fed.publish("callevt", &format!("call.CHANNEL_CREATE.{number}"), &body);
        assert_eq!(client.recv()["args"]["Number"], number);
    }
}

#[test]
fn a_recorded_file_is_played_from_the_first_subscription_on() {
    let lines = fixtures().map(|(key, body)| {
        json!({"exchange": "callevt", "routing_key": key, "body": body}).to_string()
    });
    let file = Scratch::file(
        "calls.jsonl",
        &format!("{}\nno event\n{}\n{}\n", lines[0], lines[1], lines[2]),
    );
    let source = format!("replay:{}", file.path().display());
    let server = Server::start(&["--source", &source, "--auth", "insecure"]);
    let mut client = Client::connect(server.address());
    client.must_subscribe(ANY_TOKEN, ACCOUNT, "call.*.*");
    for (_, body) in fixtures() {
        assert_eq!(client.recv()["args"], body);
    }
    assert_eq!(
        (server.metric("events_total"), server.metric("source_up")),
        (3, 1),
        "played once, and up"
    );
}
