//! End to end: the real binary between a private real RabbitMQ and websocket clients.
//!
//! The tests share one broker, each in a virtual host of its own, so that the platform's exchange names can be used
//! by all at once. Faults of the broker are in `tests/faults`.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use amiquip::ExchangeType;
use rustix::process::Signal;
use serde_json::{Value, json};

use support::broker::Broker;
use support::client::{Client, Python, subscribe, subscribe_to_all};
use support::events::{
    ACCOUNT, CALL_ID, FIXTURES, call_event, database, fixture_key, month_database,
};
use support::publisher::{Publisher, RawPublisher, nested_headers};
use support::server::{BROKER_PATIENCE, Server, dead_address, lines, wait_within};
use support::tls;

/// Another account, which is nobody's relative.
const NEIGHBOUR: &str = "ffeeddccbbaa99887766554433221100";
/// A descendant of [`ACCOUNT`].
const DESCENDANT: &str = "00112233445566778899aabbccddeeff";

const TOKEN: &str = "token-of-the-account";
const NEIGHBOUR_TOKEN: &str = "token-of-the-neighbour";
const DESCENDANT_TOKEN: &str = "token-of-the-descendant";
const ADMIN_TOKEN: &str = "token-of-the-admin";

/// `--auth tokens:` of these four.
const TOKENS: &str = concat!(
    "tokens:",
    env!("CARGO_MANIFEST_DIR"),
    "/tests/fixtures/tokens.json"
);

/// What a test that sends many commands at once is given.
const NO_RATE_LIMIT: [&str; 4] = ["--rate-limit-burst", "1000000", "--max-subscriptions", "0"];

/// Virtual hosts made at the broker's start; a test takes one or two.
const VIRTUAL_HOSTS: usize = 50;

/// A virtual host of the shared broker.
pub(crate) struct Host {
    pub(crate) broker: Arc<Broker>,
    pub(crate) url: String,
}

impl Host {
    pub(crate) fn take() -> Option<Self> {
        static TAKEN: Mutex<(Weak<Broker>, usize)> = Mutex::new((Weak::new(), 0));
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let broker = Broker::shared()?;
        if !taken.0.ptr_eq(&Arc::downgrade(&broker)) {
            // In one call: each starts an Erlang node of its own.
            broker.ctl(&[
                "eval",
                &format!(
                    "[begin Name = integer_to_binary(N), rabbit_vhost:add(Name, <<\"test\">>), \
                     rabbit_auth_backend_internal:set_permissions(<<\"guest\">>, Name, \
                     <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"test\">>) end || N <- lists:seq(1, {VIRTUAL_HOSTS})]."
                ),
            ]);
            *taken = (Arc::downgrade(&broker), 0);
        }
        taken.1 += 1;
        assert!(taken.1 <= VIRTUAL_HOSTS, "more tests than virtual hosts");
        Some(Self {
            url: format!("amqp://guest:guest@127.0.0.1:{}/{}", broker.port(), taken.1),
            broker,
        })
    }

    /// Its name.
    pub(crate) fn vhost(&self) -> &str {
        self.url.rsplit_once('/').unwrap().1
    }

    pub(crate) fn publisher(&self) -> Publisher {
        Publisher::connect(&self.url)
    }
}

/// A bridge in a virtual host of its own that takes any token, and a publisher beside it.
fn bridge(arguments: &[&str]) -> Option<(Host, Server, Publisher)> {
    let host = Host::take()?;
    let server = Server::bridge(&host.url, arguments);
    let publisher = host.publisher();
    Some((host, server, publisher))
}

/// As [`bridge`], for the four tokens of [`TOKENS`].
fn bridge_with_tokens(arguments: &[&str]) -> Option<(Host, Server, Publisher)> {
    let host = Host::take()?;
    let server = Server::authorised(&host.url, TOKENS, arguments);
    let publisher = host.publisher();
    Some((host, server, publisher))
}

/// Publishes a call event as the platform does.
fn publish_call(publisher: &Publisher, account: &str, event: &str, call: &str, number: usize) {
    let body = call_event(account, event, number).to_string();
    publisher.publish("callevt", &format!("call.{event}.{call}"), body.as_bytes());
}

#[test]
fn the_documentations_example_client_gets_the_three_fixture_events_untouched() {
    let Some((_host, server, publisher)) = bridge_with_tokens(&[]) else {
        return;
    };
    let mut session = server.client();
    let mut subscribed = Vec::new();
    for (name, _) in FIXTURES {
        let binding = format!("call.{name}.*");
        subscribed.push(binding.clone());
        let reply = session.ask(&json!({
            "action": "subscribe", "auth_token": TOKEN, "request_id": format!("request-{name}"),
            "data": {"account_id": ACCOUNT, "binding": binding, "name": "My new socket", "metadata": {"test": "test"}}
        }));
        let expected = json!({
            "action": "reply", "request_id": format!("request-{name}"), "status": "success",
            "data": {"subscribed": subscribed, "subscriptions": subscribed}
        });
        assert_eq!(reply, expected);
    }
    for (name, body) in FIXTURES {
        publisher.publish("callevt", &fixture_key(name), body.as_bytes());
        let event = session.event();
        let expected = json!({
            "action": "event", "name": name, "routing_key": format!("call.{ACCOUNT}.{name}.{CALL_ID}"),
            "cursor": event["cursor"], "args": serde_json::from_str::<Value>(body).unwrap(), "subscribed_key": format!("call.{name}.*"),
            "subscription_key": format!("call.{ACCOUNT}.{name}.*"), "request_id": format!("request-{name}")
        });
        assert_eq!(event, expected);
    }
    session.assert_nothing_came(TOKEN);
    session.close();
}

#[test]
fn kazoo_clients_get_the_same_event_in_their_style() {
    let Some((_host, server, publisher)) = bridge(&[]) else {
        return;
    };
    let mut session = server.client_at("/?style=kazoo");
    session.must_subscribe("any", ACCOUNT, "call.CHANNEL_DESTROY.*");
    let (name, body) = FIXTURES[2];
    publisher.publish("callevt", &fixture_key(name), body.as_bytes());
    let event = session.event();
    assert_eq!(event.get("args"), None);
    assert_eq!(event["data"]["custom_channel_vars"]["account_id"], ACCOUNT);
    assert_eq!(event["data"]["call_id"], CALL_ID);
    assert_eq!(event["data"].get("node"), None);
}

#[test]
fn a_session_sees_its_own_account_and_its_descendants_and_no_other() {
    let Some((_host, server, publisher)) = bridge_with_tokens(&[]) else {
        return;
    };
    let sessions = [
        (TOKEN, ACCOUNT),
        (TOKEN, DESCENDANT),
        (NEIGHBOUR_TOKEN, NEIGHBOUR),
        (DESCENDANT_TOKEN, DESCENDANT),
        (ADMIN_TOKEN, "*"),
    ];
    let mut sessions = sessions.map(|(token, account)| {
        let mut session = server.client();
        session.must_subscribe(token, account, "call.CHANNEL_CREATE.*");
        (token, account, session)
    });
    for (token, account) in [
        (TOKEN, NEIGHBOUR),
        (NEIGHBOUR_TOKEN, ACCOUNT),
        (DESCENDANT_TOKEN, ACCOUNT),
    ] {
        let reply = server
            .client()
            .ask(&subscribe(token, account, "call.CHANNEL_CREATE.*"));
        assert_eq!(
            reply["data"]["errors"],
            json!(["unauthorized account id"]),
            "{token} for {account}"
        );
    }
    let reply = server
        .client()
        .ask(&subscribe(TOKEN, "*", "call.CHANNEL_CREATE.*"));
    assert_eq!(
        reply["data"]["errors"],
        json!(["unauthorized wildcard account id"])
    );

    for (number, account) in [ACCOUNT, DESCENDANT, NEIGHBOUR].iter().enumerate() {
        publish_call(&publisher, account, "CHANNEL_CREATE", "call", number);
    }
    // Of nobody: for `*` alone. Then one for each, behind which nothing else can hide.
    publisher.publish(
        "callevt",
        "call.CHANNEL_CREATE.call",
        br#"{"Event-Name":"CHANNEL_CREATE","Number":3}"#,
    );
    for account in [ACCOUNT, DESCENDANT, NEIGHBOUR] {
        publish_call(&publisher, account, "CHANNEL_CREATE", "last", 4);
    }
    for (token, account, session) in &mut sessions {
        let expected: &[u64] = match *account {
            "*" => &[0, 1, 2, 3, 4, 4, 4],
            ACCOUNT => &[0, 4],
            DESCENDANT => &[1, 4],
            _ => &[2, 4],
        };
        let seen: Vec<_> = expected
            .iter()
            .map(|_| session.event()["args"]["Number"].as_u64().unwrap())
            .collect();
        assert_eq!(seen, expected, "{token} for {account}");
        session.assert_nothing_came(token);
    }
}

#[test]
fn an_event_published_the_moment_a_success_is_read_is_never_lost() {
    const ROUNDS: usize = 300;
    let Some((_host, server, publisher)) = bridge(&NO_RATE_LIMIT) else {
        return;
    };
    let (mut first, mut second) = (server.client(), server.client());
    for round in 0..ROUNDS {
        let call = format!("round-{round}");
        let command = subscribe("any", ACCOUNT, &format!("call.CHANNEL_CREATE.{call}"));
        // The second session's subscribe shares a binding that is new, under way, or in force.
        first.send(&command);
        if round % 3 == 0 {
            assert_eq!(first.reply()["status"], "success");
        }
        second.send(&command);
        assert_eq!(second.reply()["status"], "success");
        publish_call(&publisher, ACCOUNT, "CHANNEL_CREATE", &call, round);
        assert_eq!(second.event()["args"]["Number"], round);
        if round % 3 != 0 {
            assert_eq!(first.reply()["status"], "success");
        }
        assert_eq!(first.event()["args"]["Number"], round);
    }
}

#[test]
fn an_event_published_after_a_success_is_not_lost_to_the_unbind_of_the_subscription_before() {
    const ROUNDS: usize = 300;
    let Some((_host, server, publisher)) = bridge(&NO_RATE_LIMIT) else {
        return;
    };
    let mut session = server.client();
    for round in 0..ROUNDS {
        session.must_subscribe("any", ACCOUNT, "call.CHANNEL_CREATE.same");
        publish_call(&publisher, ACCOUNT, "CHANNEL_CREATE", "same", round);
        assert_eq!(session.event()["args"]["Number"], round);
        session.send(&json!({"action": "unsubscribe"}));
        if round % 2 == 0 {
            assert_eq!(
                session.reply()["data"]["unsubscribed"],
                json!(["call.CHANNEL_CREATE.same"])
            );
        } else {
            // Unsubscribe and subscribe under way together.
            session.send(&subscribe("any", ACCOUNT, "call.CHANNEL_CREATE.same"));
            session.reply();
            assert_eq!(session.reply()["status"], "success");
            publish_call(&publisher, ACCOUNT, "CHANNEL_CREATE", "same", round);
            assert_eq!(session.event()["args"]["Number"], round);
        }
    }
}

#[test]
fn one_sessions_unsubscribe_or_death_never_starves_another_that_shares_the_binding() {
    let Some((_host, server, publisher)) = bridge(&NO_RATE_LIMIT) else {
        return;
    };
    let binding = "call.CHANNEL_CREATE.shared";
    let mut survivor = server.client();
    survivor.must_subscribe("any", ACCOUNT, binding);
    for round in 0..60 {
        let mut other = server.client();
        other.must_subscribe("any", ACCOUNT, binding);
        match round % 3 {
            0 => {
                let reply =
                    other.ask(&json!({"action": "unsubscribe", "data": {"binding": binding}}));
                assert_eq!(reply["data"]["unsubscribed"], json!([binding]));
            }
            1 => other.close(),
            // Without a goodbye.
            _ => drop(other),
        }
        publish_call(&publisher, ACCOUNT, "CHANNEL_CREATE", "shared", round);
        assert_eq!(survivor.event()["args"]["Number"], round);
    }
    server.wait_for_metric("subscriptions", 1);
    // Well behind any unbind that may have been delayed.
    publish_call(&publisher, ACCOUNT, "CHANNEL_CREATE", "shared", 60);
    assert_eq!(survivor.event()["args"]["Number"], 60);
    assert_eq!(server.metric("amqp_bindings_wanted"), 1);
    assert_eq!(server.metric("amqp_unbinds_total"), 0);
}

#[test]
fn the_last_unsubscribe_takes_the_binding_off_the_broker() {
    let Some((_host, server, _publisher)) = bridge(&[]) else {
        return;
    };
    let mut session = server.client();
    session.must_subscribe_to_all(
        "any",
        ACCOUNT,
        &["call.CHANNEL_CREATE.*", "call.CHANNEL_DESTROY.*"],
    );
    session.ask(&json!({"action": "unsubscribe", "data": {"binding": "call.CHANNEL_CREATE.*"}}));
    server.wait_for_metric("amqp_unbinds_total", 1);
    drop(session);
    server.wait_for_metric("amqp_unbinds_total", 2);
    server.wait_for_metric("amqp_bindings_in_force", 0);
}

#[test]
fn an_exchange_that_is_absent_is_created_and_its_publisher_may_declare_it_later() {
    let Some((_host, server, publisher)) = bridge(&[]) else {
        return;
    };
    let mut session = server.client();
    session.must_subscribe("any", ACCOUNT, "call.CHANNEL_CREATE.*");
    publisher.declare(ExchangeType::Topic, "callevt");
    publish_call(&publisher, ACCOUNT, "CHANNEL_CREATE", "call", 1);
    assert_eq!(session.event()["args"]["Number"], 1);
}

#[test]
fn a_clashing_exchange_is_unavailable_at_once_and_heals_while_others_go_on() {
    let Some(host) = Host::take() else {
        return;
    };
    let publisher = host.publisher();
    publisher.declare(ExchangeType::Direct, "faxes");
    // Longer than a test may take: nothing here is a matter of time.
    let server = Server::bridge(&host.url, &["--request-timeout-ms", "600000"]);
    let (mut fax, mut call) = (server.client(), server.client());
    call.must_subscribe("any", ACCOUNT, "call.CHANNEL_CREATE.*");
    for number in 1..=3 {
        fax.send(&subscribe(
            "any",
            ACCOUNT,
            &format!("fax.status.fax{number}"),
        ));
    }
    fax.send(&subscribe("any", ACCOUNT, "call.CHANNEL_ANSWER.*"));
    fax.send(&json!({"action": "ping", "request_id": "ping"}));
    publish_call(&publisher, ACCOUNT, "CHANNEL_CREATE", "call", 1);
    assert_eq!(call.event()["args"]["Number"], 1);
    let mut replies: Vec<Value> = (0..5).map(|_| fax.reply()).collect();
    let is_ping = |reply: &Value| reply["request_id"] == "ping";
    let ping = replies.iter().position(is_ping).unwrap();
    assert_eq!(replies.remove(ping)["data"]["response"], "pong");
    for reply in &replies[..3] {
        let error = json!(["event source unavailable"]);
        assert_eq!(reply["data"]["errors"], error, "{reply}");
    }
    let subscribed = json!(["call.CHANNEL_ANSWER.*"]);
    assert_eq!(replies[3]["data"]["subscribed"], subscribed);
    assert_eq!(
        server.metric(r#"commands_total{result="broker_refused"}"#),
        3
    );
    fax.ask(&json!({"action": "unsubscribe"}));
    assert_eq!(
        server.metric("subscriptions"),
        1,
        "nothing is kept of the refused"
    );

    publisher.delete("faxes");
    publisher.declare(ExchangeType::Topic, "faxes");
    // It is tried again every 5 s, so one of a few tries succeeds; each is a command of its own.
    server.until("healed", |_| {
        fax.ask(&subscribe("any", ACCOUNT, "fax.status.fax1"))["status"] == "success"
    });
    let body = json!({"Event-Name": "fax_status", "Account-ID": ACCOUNT}).to_string();
    publisher.publish(
        "faxes",
        &format!("fax.status.{ACCOUNT}.fax1"),
        body.as_bytes(),
    );
    // Its binding may have been healed while it held it, which is told.
    let mut frame = fax.pushed();
    if frame["action"] == "notice" {
        frame = fax.pushed();
    }
    assert_eq!(frame["name"], "fax_status", "{frame}");
    assert_eq!(server.metric("amqp_disconnects_total"), 0);
}

#[test]
fn hostile_publishes_are_counted_and_no_session_notices() {
    // The raw publisher speaks to the default virtual host only; no other test of this file uses it.
    let Some(Host { broker, .. }) = Host::take() else {
        return;
    };
    let server = Server::bridge(&broker.url(), &[]);
    let publisher = Publisher::connect(&broker.url());
    let mut session = server.client();
    session.must_subscribe("any", ACCOUNT, "call.CHANNEL_CREATE.*");
    let key = "call.CHANNEL_CREATE.call";
    let good = call_event(ACCOUNT, "CHANNEL_CREATE", 1).to_string();
    let mut raw = RawPublisher::connect(broker.port());
    for depth in [4_000, 20_000] {
        raw.publish(
            "callevt",
            key.as_bytes(),
            Some(&nested_headers(depth)),
            good.as_bytes(),
        );
    }
    raw.publish(
        "callevt",
        b"call.CHANNEL_CREATE.\xff\xfe",
        None,
        good.as_bytes(),
    );
    raw.finish();
    let bomb = gzip(&vec![b' '; 100 << 20]);
    publisher.publish_encoded("callevt", key, &bomb, Some("gzip"));
    publisher.publish_encoded("callevt", key, b"not gzip", Some("gzip"));
    publisher.publish_encoded("callevt", key, good.as_bytes(), Some("br"));
    publisher.publish("callevt", key, br#"{"Event-Name":"CHANNEL_CREATE""#);
    publisher.publish("callevt", key, br#"["CHANNEL_CREATE"]"#);
    publisher.publish("callevt", key, b"{\"Event-Name\":\"\xff\"}");
    publisher.publish("callevt", key, &vec![b' '; (8 << 20) + 1]);
    publish_call(&publisher, ACCOUNT, "CHANNEL_CREATE", "call", 2);

    // Headers are nobody's business, so the events below them are as good as any.
    for number in [1, 1, 2] {
        assert_eq!(session.event()["args"]["Number"], number);
    }
    session.assert_nothing_came("any");
    for (counter, expected) in [
        (r#"amqp_undecodable_total{reason="routing_key"}"#, 1),
        (r#"amqp_undecodable_total{reason="too_large"}"#, 2),
        (r#"amqp_undecodable_total{reason="broken_gzip"}"#, 1),
        (r#"amqp_undecodable_total{reason="unknown_encoding"}"#, 1),
        (r#"amqp_undecodable_total{reason="not_json_object"}"#, 2),
        (r#"amqp_undecodable_total{reason="not_utf8"}"#, 1),
        ("amqp_disconnects_total", 0),
        ("amqp_panics_total", 0),
        ("gap_notices_total", 0),
    ] {
        assert_eq!(server.metric(counter), expected, "{counter}");
    }
}

#[test]
fn a_gzip_body_is_delivered_inflated() {
    let Some((_host, server, publisher)) = bridge(&[]) else {
        return;
    };
    let mut session = server.client();
    session.must_subscribe("any", ACCOUNT, "call.CHANNEL_DESTROY.*");
    let (name, body) = FIXTURES[2];
    publisher.publish_encoded(
        "callevt",
        &fixture_key(name),
        &gzip(body.as_bytes()),
        Some("gzip"),
    );
    assert_eq!(
        session.event()["args"],
        serde_json::from_str::<Value>(body).unwrap()
    );
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// One form of client binding and an event that a platform's publisher would send for an account.
struct Row {
    binding: &'static str,
    exchange: &'static str,
    /// The routing key for an account.
    key: fn(&str) -> String,
    /// The event's canonical routing key, where it is another.
    canonical: Option<fn(&str) -> String>,
    /// The subscription key.
    subscription: fn(&str) -> String,
    /// What the body holds beside `Event-Name`, `Account-ID` and `Number`.
    more: &'static str,
    name: &'static str,
}

/// The realm of an account in [`TOKENS`], escaped as the platform's publishers do.
fn realm(account: &str) -> &'static str {
    match account {
        ACCOUNT => "sip%2Eexample%2Ecom",
        _ => "sip%2Eneighbour%2Eexample",
    }
}

/// Every row of the protocol's table of families, and both document spellings.
const ROWS: &[Row] = &[
    Row {
        binding: "call.CHANNEL_BRIDGE.*",
        exchange: "callevt",
        key: |_| "call.CHANNEL_BRIDGE.call".to_owned(),
        canonical: Some(|account| format!("call.{account}.CHANNEL_BRIDGE.call")),
        subscription: |account| format!("call.{account}.CHANNEL_BRIDGE.*"),
        more: "{}",
        name: "an_event",
    },
    Row {
        binding: "call.*.a call.id@host",
        exchange: "callevt",
        key: |_| "call.PARK_PARKED.a+call%2Eid%40host".to_owned(),
        canonical: Some(|account| format!("call.{account}.PARK_PARKED.a+call%2Eid%40host")),
        subscription: |account| format!("call.{account}.*.a+call%2Eid%40host"),
        more: "{}",
        name: "an_event",
    },
    Row {
        binding: "conference.event.conf1.*",
        exchange: "conference",
        key: |account| format!("conference.event.participant-event.{account}.conf1.call"),
        canonical: None,
        subscription: |account| format!("conference.event.*.{account}.conf1.*"),
        more: r#"{"Event":"participant-event"}"#,
        name: "an_event",
    },
    Row {
        binding: "conference.event.conf2.call",
        exchange: "conference",
        key: |_| "conference.event.conf2.call".to_owned(),
        canonical: Some(|account| format!("conference.event.add-member.{account}.conf2.call")),
        subscription: |account| format!("conference.event.*.{account}.conf2.call"),
        more: r#"{"Event":"add-member"}"#,
        name: "an_event",
    },
    Row {
        binding: "conference.event.add-member.conf3.call",
        exchange: "conference",
        key: |account| format!("conference.event.add-member.{account}.conf3.call"),
        canonical: None,
        subscription: |account| format!("conference.event.add-member.{account}.conf3.call"),
        more: r#"{"Event":"add-member"}"#,
        name: "an_event",
    },
    Row {
        binding: "fax.status.fax1",
        exchange: "faxes",
        key: |account| format!("fax.status.{account}.fax1"),
        canonical: None,
        subscription: |account| format!("fax.status.{account}.fax1"),
        more: "{}",
        name: "an_event",
    },
    Row {
        binding: "fax.object.doc_edited",
        exchange: "configuration",
        key: |account| format!("doc_edited.{}.fax.id", month_database(account)),
        canonical: None,
        subscription: |account| format!("doc_edited.{}.fax.*", month_database(account)),
        more: r#"{"Type":"fax"}"#,
        name: "an_event_fax",
    },
    Row {
        binding: "object.doc_created.fax",
        exchange: "configuration",
        key: |account| format!("doc_created.{}.fax.id", month_database(account)),
        canonical: None,
        subscription: |account| format!("doc_created.{}.fax.*", month_database(account)),
        more: r#"{"Type":"fax"}"#,
        name: "an_event_fax",
    },
    Row {
        binding: "object.doc_edited.user",
        exchange: "configuration",
        key: |account| format!("doc_edited.{}.user.id", database(account)),
        canonical: None,
        subscription: |account| format!("doc_edited.{}.user.*", database(account)),
        more: r#"{"Type":"user"}"#,
        name: "an_event_user",
    },
    Row {
        binding: "object.doc_deleted.*",
        exchange: "configuration",
        key: |account| format!("doc_deleted.{}.mailbox_message.id", month_database(account)),
        canonical: None,
        subscription: |account| format!("doc_deleted.{}.*.*", month_database(account)),
        more: r#"{"Type":"mailbox_message"}"#,
        name: "an_event_mailbox_message",
    },
    Row {
        binding: "doc_created.*.device.*",
        exchange: "configuration",
        key: |account| format!("doc_created.{}.device.id", database(account)),
        canonical: None,
        subscription: |account| format!("doc_created.{}.device.*", database(account)),
        more: r#"{"Type":"device"}"#,
        name: "an_event_device",
    },
    Row {
        binding: "doc_created.*.mailbox_message.id2",
        exchange: "configuration",
        key: |account| {
            format!(
                "doc_created.{}.mailbox_message.id2",
                month_database(account)
            )
        },
        canonical: None,
        subscription: |account| {
            format!(
                "doc_created.{}.mailbox_message.id2",
                month_database(account)
            )
        },
        more: r#"{"Type":"mailbox_message"}"#,
        name: "an_event_mailbox_message",
    },
    Row {
        binding: "presence.dialog.call.id",
        exchange: "presence",
        key: |account| format!("dialog.{}.call%2Eid", realm(account)),
        canonical: None,
        subscription: |account| format!("dialog.{}.call%2Eid", realm(account)),
        more: "{}",
        name: "an_event",
    },
    Row {
        binding: "presence.update.*",
        exchange: "presence",
        key: |account| format!("update.{}.call", realm(account)),
        canonical: None,
        subscription: |account| format!("update.{}.*", realm(account)),
        more: "{}",
        name: "an_event",
    },
    Row {
        binding: "presence.mwi_updates.*",
        exchange: "presence",
        key: |account| format!("mwi_updates.{}.1001", realm(account)),
        canonical: None,
        subscription: |account| format!("mwi_updates.{}.*", realm(account)),
        more: "{}",
        name: "an_event",
    },
    Row {
        binding: "dialog.call.id",
        exchange: "presence",
        key: |account| format!("dialog.{}.call%2Eid", realm(account)),
        canonical: None,
        subscription: |account| format!("dialog.{}.call%2Eid", realm(account)),
        more: "{}",
        name: "an_event",
    },
    Row {
        binding: "update.*",
        exchange: "presence",
        key: |account| format!("update.{}.other", realm(account)),
        canonical: None,
        subscription: |account| format!("update.{}.*", realm(account)),
        more: "{}",
        name: "an_event",
    },
    Row {
        binding: "mwi_updates.1002",
        exchange: "presence",
        key: |account| format!("mwi_updates.{}.1002", realm(account)),
        canonical: None,
        subscription: |account| format!("mwi_updates.{}.1002", realm(account)),
        more: "{}",
        name: "an_event",
    },
    Row {
        binding: "registration.success",
        exchange: "registrar",
        key: |account| format!("registration.success.{}.user", realm(account)),
        canonical: None,
        subscription: |account| format!("registration.success.{}.*", realm(account)),
        more: "{}",
        name: "an_event",
    },
];

#[test]
fn every_family_gets_its_accounts_event_through_the_broker_and_never_a_neighbours() {
    let Some((_host, server, publisher)) = bridge_with_tokens(&[]) else {
        return;
    };
    for row in ROWS {
        let mut sessions =
            [(TOKEN, ACCOUNT), (NEIGHBOUR_TOKEN, NEIGHBOUR)].map(|(token, account)| {
                let mut session = server.client();
                session.must_subscribe(token, account, row.binding);
                (token, account, session)
            });
        // Each session's own event comes behind the other's, which it would have to see first.
        for (number, account) in [NEIGHBOUR, ACCOUNT, NEIGHBOUR].into_iter().enumerate() {
            let mut body: Value = serde_json::from_str(row.more).unwrap();
            body["Event-Name"] = json!("an_event");
            body["Account-ID"] = json!(account);
            body["Number"] = json!(number);
            publisher.publish(
                row.exchange,
                &(row.key)(account),
                body.to_string().as_bytes(),
            );
        }
        for (token, account, session) in &mut sessions {
            let numbers: &[usize] = if *account == ACCOUNT { &[1] } else { &[0, 2] };
            for number in numbers {
                let event = session.event();
                let of = format!("{} for {account}: {event}", row.binding);
                assert_eq!(event["args"]["Number"], *number, "{of}");
                assert_eq!(event["args"]["Account-ID"], **account, "{of}");
                assert_eq!(event["name"], row.name, "{of}");
                assert_eq!(event["subscribed_key"], row.binding, "{of}");
                assert_eq!(
                    event["routing_key"],
                    row.canonical.unwrap_or(row.key)(account),
                    "{of}"
                );
                assert_eq!(
                    event["subscription_key"],
                    (row.subscription)(account),
                    "{of}"
                );
            }
            session.assert_nothing_came(token);
        }
    }
    let families: BTreeSet<_> = ROWS.iter().map(|row| row.exchange).collect();
    let expected = [
        "callevt",
        "conference",
        "configuration",
        "faxes",
        "presence",
        "registrar",
    ];
    assert_eq!(
        families,
        BTreeSet::from(expected),
        "every exchange of the platform is in the table"
    );
}

#[test]
fn a_conference_command_reaches_whoever_names_the_conference() {
    let Some((_host, server, publisher)) = bridge_with_tokens(&[]) else {
        return;
    };
    let mut session = server.client();
    session.must_subscribe(TOKEN, ACCOUNT, "conference.command.conf1");
    let reply = session.ask(&subscribe(TOKEN, ACCOUNT, "conference.command.*"));
    assert_eq!(reply["data"]["errors"], json!(["ConferenceId required"]));
    for conference in ["conf2", "conf1"] {
        let body = json!({"Event-Name": "command", "Conference-ID": conference}).to_string();
        publisher.publish(
            "conference",
            &format!("conference.command.{conference}"),
            body.as_bytes(),
        );
    }
    let event = session.event();
    assert_eq!(event["args"]["Conference-ID"], "conf1");
    assert_eq!(event["subscription_key"], "conference.command.conf1");
    session.assert_nothing_came(TOKEN);
}

#[test]
fn an_operators_own_family_is_bridged_like_the_platforms() {
    let family = r#"{"name":"queue","binding":"queue.stats.{queue}","exchange":"acdc",
                     "keys":["stats.{account}.{queue}"]}"#;
    let Some((_host, server, publisher)) = bridge(&["--families", family]) else {
        return;
    };
    let mut session = server.client();
    session.must_subscribe("any", ACCOUNT, "queue.stats.*");
    for account in [NEIGHBOUR, ACCOUNT] {
        let body = json!({"Event-Name": "stats", "Account-ID": account}).to_string();
        publisher.publish("acdc", &format!("stats.{account}.q1"), body.as_bytes());
    }
    assert_eq!(session.event()["args"]["Account-ID"], ACCOUNT);
}

#[test]
fn ten_thousand_new_bindings_of_a_burst_of_subscribes_are_all_answered_success() {
    const SESSIONS: usize = 100;
    const BINDINGS: usize = 100;
    let Some((_host, server, publisher)) = bridge(&["--request-timeout-ms", "60000"]) else {
        return;
    };
    let mut sessions: Vec<Client> = (0..SESSIONS).map(|_| server.client()).collect();
    let begun = Instant::now();
    for (number, session) in sessions.iter_mut().enumerate() {
        let bindings: Vec<_> = (0..BINDINGS)
            .map(|binding| format!("call.CHANNEL_CREATE.{number}-{binding}"))
            .collect();
        let bindings: Vec<_> = bindings.iter().map(String::as_str).collect();
        session.send(&subscribe_to_all("any", ACCOUNT, &bindings));
    }
    for session in &mut sessions {
        let reply = session.reply();
        assert_eq!(reply["status"], "success", "{reply}");
        assert_eq!(
            reply["data"]["subscribed"].as_array().map(Vec::len),
            Some(BINDINGS)
        );
    }
    println!(
        "{} bindings in force after {:?}",
        SESSIONS * BINDINGS,
        begun.elapsed()
    );
    assert_eq!(
        server.metric("amqp_bindings_in_force"),
        (SESSIONS * BINDINGS) as u64
    );
    for (number, session) in sessions.iter_mut().enumerate() {
        publish_call(
            &publisher,
            ACCOUNT,
            "CHANNEL_CREATE",
            &format!("{number}-{}", BINDINGS - 1),
            number,
        );
        assert_eq!(session.event()["args"]["Number"], number);
    }
}

#[test]
fn a_thousand_events_in_a_row_arrive_complete_and_in_order_for_two_sessions() {
    let Some((_host, server, publisher)) = bridge(&[]) else {
        return;
    };
    let mut sessions = [server.client(), server.client()];
    for session in &mut sessions {
        session.must_subscribe("any", ACCOUNT, "call.*.*");
    }
    let events = ["CHANNEL_CREATE", "CHANNEL_ANSWER", "CHANNEL_DESTROY"];
    for number in 0..1000 {
        publish_call(
            &publisher,
            ACCOUNT,
            events[number % 3],
            &format!("call-{}", number / 3),
            number,
        );
    }
    for session in &mut sessions {
        for number in 0..1000 {
            assert_eq!(session.event()["args"]["Number"], number);
        }
        session.assert_nothing_came("any");
    }
}

#[test]
fn sigterm_closes_sessions_with_1001_exits_0_and_leaves_no_queue_behind() {
    let Some((host, mut server, publisher)) =
        bridge(&["--drain-seconds", "1", "--going-away-ms", "0"])
    else {
        return;
    };
    let mut session = server.client();
    session.must_subscribe("any", ACCOUNT, "call.*.*");
    publish_call(&publisher, ACCOUNT, "CHANNEL_CREATE", "call", 1);
    session.event();
    let virtual_host = host.url.rsplit('/').next().unwrap();
    let queues = || {
        host.broker.ctl(&[
            "list_queues",
            "--vhost",
            virtual_host,
            "--no-table-headers",
            "name",
        ])
    };
    server.wait_for_metric("amqp_control_connects_total", 1);
    // That of the events, and that of the platform's requests.
    assert_eq!(queues().lines().count(), 2);
    server.signal(Signal::TERM);
    assert_eq!(session.expect_close().0, 1001);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    wait_within(BROKER_PATIENCE, "its queues are gone", || {
        queues().trim().is_empty().then_some(())
    });
}

#[test]
fn a_dead_broker_first_in_the_list_is_passed_over() {
    let Some(host) = Host::take() else {
        return;
    };
    let (_socket, dead) = dead_address();
    let server = Server::bridge(
        &format!("amqp://guest:guest@{dead}/%2f"),
        &["--amqp", &host.url],
    );
    let mut session = server.client();
    session.must_subscribe("any", ACCOUNT, "call.*.*");
    publish_call(&host.publisher(), ACCOUNT, "CHANNEL_CREATE", "call", 1);
    assert_eq!(session.event()["args"]["Number"], 1);
    assert!(server.metric("amqp_connect_failures_total") >= 1);
}

#[test]
fn a_wrong_password_leaves_sessions_connected_and_unready_and_is_in_no_log() {
    let Some(host) = Host::take() else {
        return;
    };
    let wrong = host.url.replace("guest:guest", "guest:wr0ng-s3cret");
    let server = Server::unready(
        &wrong,
        &["--auth", "insecure", "--request-timeout-ms", "1000"],
    );
    server.wait_for_log("invalid credentials");
    assert_eq!(server.page("/readyz").0, 503);
    assert_eq!(server.page("/healthz").0, 200);
    let mut session = server.client();
    let reply = session.ask(&subscribe("t0p-s3cret", ACCOUNT, "call.*.*"));
    assert_eq!(reply["data"]["errors"], json!(["event source unavailable"]));
    session.assert_nothing_came("t0p-s3cret");
    for secret in ["wr0ng-s3cret", "t0p-s3cret"] {
        assert!(!server.log().contains(secret), "{}", server.log());
        assert!(!server.page("/metrics").1.contains(secret));
    }
}

#[test]
fn a_client_by_another_hand_gets_the_documentations_example() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let Some((_host, server, publisher)) = bridge_with_tokens(&[]) else {
        return;
    };
    let Some(python) = Python::installed() else {
        return;
    };
    let mut client = python
        .command()
        .arg(tests.join("clients/example.py"))
        .args([&format!("{}/", tls::url(server.address())), TOKEN, ACCOUNT])
        .envs(tls::peer_at(server.address()).map(|peer| ("SSL_CERT_FILE", peer.ca)))
        .arg(tests.join("fixtures/events"))
        .spawn()
        .unwrap();
    let said = lines(client.stdout.take().unwrap());
    assert_eq!(said.recv_timeout(BROKER_PATIENCE).unwrap(), "subscribed");
    for (name, body) in FIXTURES {
        publisher.publish("callevt", &fixture_key(name), body.as_bytes());
    }
    let rest: Vec<_> = said.iter().collect();
    assert!(
        client.wait().unwrap().success(),
        "{rest:?}\n{}",
        server.log()
    );
    assert_eq!(rest, ["done"]);
    server.wait_for_metric("sessions", 0);
    assert_eq!(server.metric(r#"closes_total{reason="peer"}"#), 1);
}
