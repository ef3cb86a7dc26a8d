//! Events that a publisher makes as costly as it can: what the server does with one grows with its bytes.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::judge::{alone, assert_times};
use support::client::{ANY_TOKEN, Client, subscribe};
use support::events::{ACCOUNT, call_event, large_call_event};
use support::server::Fed;

/// Events that are measured together.
const EVENTS: usize = 5;

fn cpu_of(fed: &mut Fed, session: &mut Client, body: &Value) -> Duration {
    let text = body.to_string();
    let mut once = |fed: &mut Fed| {
        fed.publish_text("callevt", "call.CHANNEL_CREATE.call", &text);
        let event = session.event();
        assert_eq!(event["name"], "CHANNEL_CREATE");
    };
    once(fed);
    let before = fed.server.cpu_nanoseconds();
    for _ in 0..EVENTS {
        once(fed);
    }
    Duration::from_nanos(fed.server.cpu_nanoseconds() - before)
}

fn event_with(name: &str, value: Value) -> Value {
    let mut event = call_event(ACCOUNT, "CHANNEL_CREATE", 1);
    event[name] = value;
    event
}

type Shape = fn(usize) -> Value;

#[test]
fn an_event_costs_what_its_bytes_cost_whatever_is_in_them() {
    let _alone = alone();
    let shapes: [(&str, Shape); 5] = [
        ("members", |count| {
            let mut event = call_event(ACCOUNT, "CHANNEL_CREATE", 1);
            for number in 0..count {
                event[format!("Key-{number}")] = json!(number);
            }
            event
        }),
        ("members one level down", |count| {
            let members: Map<String, Value> = (0..count)
                .map(|number| (format!("Key-{number}"), json!(null)))
                .collect();
            event_with(
                "Custom-Channel-Vars",
                json!({"Account-ID": ACCOUNT, "Below": members}),
            )
        }),
        ("escapes", |count| {
            event_with("Text", json!("\"\u{1}".repeat(count)))
        }),
        ("upper case", |count| {
            event_with(&"A-".repeat(count), json!(1))
        }),
        ("levels", |count| {
            // As deep as is taken, as often as it fits.
            let deep = (0..100).fold(json!(1), |inner, _| json!({"A-B": inner}));
            event_with("Deep", Value::Array(vec![deep; count / 100]))
        }),
    ];
    for style in ["piston", "kazoo"] {
        for (what, shape) in shapes {
            let mut fed = Fed::insecure(&["--style", style]);
            let mut session = fed.server.client();
            session.must_subscribe(ANY_TOKEN, ACCOUNT, "call.*.*");
            let (few, many) = [2_000, 16_000]
                .map(|count| cpu_of(&mut fed, &mut session, &shape(count)))
                .into();
            assert_times(
                &format!("cpu of 16,000 {what}, {style}, by 2,000"),
                few,
                many,
                16.0,
            );
        }
    }
}

#[test]
fn a_large_event_is_in_memory_once_though_each_session_has_a_request_id_and_reads_slowly() {
    const SESSIONS: usize = 60;
    const BYTES: usize = 4 << 20;
    let _alone = alone();
    let mut fed = Fed::insecure(&[]);
    let mut clients: Vec<Client> = (0..SESSIONS)
        .map(|number| {
            let mut client = Client::connect_narrow(fed.server.address());
            let mut command = subscribe(ANY_TOKEN, ACCOUNT, "call.CHANNEL_CREATE.*");
            command["request_id"] = format!("{number:08x}-77aa-4f00-9c1e-8a6b2f3d5e71").into();
            assert_eq!(client.ask(&command)["status"], "success");
            client
        })
        .collect();
    let idle = fed.server.resident_bytes();
    fed.server.forget_peak();
    fed.publish(
        "callevt",
        "call.CHANNEL_CREATE.1",
        &large_call_event(ACCOUNT, 1, BYTES),
    );
    // What the sockets do not take waits: far more than there is memory for copies under the bound below.
    fed.server.until("all are blocked", |server| {
        server.metric("outboxes_blocked") == SESSIONS as u64
    });
    let waiting = fed.server.metric("outboxes_blocked_bytes");
    assert!(waiting > 64 << 20, "{waiting} bytes wait");
    for (number, client) in clients.iter_mut().enumerate() {
        let event = client.event();
        assert_eq!(
            event["request_id"],
            format!("{number:08x}-77aa-4f00-9c1e-8a6b2f3d5e71")
        );
    }
    let peak = fed.server.peak_bytes() - idle;
    println!("{} KiB above idle", peak >> 10);
    assert!(peak < 24 << 20, "{peak} bytes");
}
