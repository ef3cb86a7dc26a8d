//! Clients that come back to a process that does not know them, with a stream of the history and without one (PROTOCOL 10):
//! the real binary, a real RabbitMQ, and servers that are killed.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use support::broker::Broker;
use support::client::Client;
use support::events::{ACCOUNT, OTHER_ACCOUNT, call_event};
use support::publisher::Publisher;
use support::server::{BROKER_PATIENCE, Server, unix_now, wait_within};

use crate::bridge::Host;

const STREAM: [&str; 2] = ["--history", "stream:history"];

const CREATE: &str = "call.CHANNEL_CREATE.*";

fn publish(publisher: &Publisher, account: &str, number: usize) {
    let body = call_event(account, "CHANNEL_CREATE", number).to_string();
    publisher.publish("callevt", "call.CHANNEL_CREATE.c", body.as_bytes());
}

fn subscribe(account: &str, binding: &str, resume: Value) -> Value {
    json!({"action": "subscribe", "auth_token": "any",
        "data": {"account_id": account, "binding": binding, "resume": resume}})
}

fn number(event: &Value) -> usize {
    let number = event["args"]["Number"]
        .as_u64()
        .unwrap_or_else(|| panic!("{event}"));
    usize::try_from(number).unwrap()
}

/// A client that has been subscribed for so long that markers of these seconds stand before its last cursor; its cursor,
/// and the number of the event to come.
fn settled(
    server: &Server,
    publisher: &Publisher,
    account: &str,
    seconds: u64,
) -> (Client, String, usize) {
    let mut client = server.client();
    let reply = client.ask(&subscribe(account, CREATE, json!(true)));
    assert_eq!(reply["status"], "success", "{reply}");
    server.until("kept", |server| server.metric("amqp_stream_bindings") > 0);
    let kept = unix_now();
    wait_within(BROKER_PATIENCE, "the overlap of cursors is over", || {
        (unix_now() >= kept + seconds).then_some(())
    });
    let mut cursor = String::new();
    for next in 0..3 {
        publish(publisher, account, next);
        let event = client.event();
        assert_eq!(number(&event), next);
        event["cursor"].as_str().unwrap().clone_into(&mut cursor);
    }
    (client, cursor, 3)
}

/// What comes up to the notice that ends a replay: the numbers of the events in their order, each once, and the notice.
fn replayed(client: &mut Client) -> (Vec<usize>, Value) {
    let (mut numbers, mut ids, mut times) = (Vec::new(), BTreeSet::new(), Vec::new());
    loop {
        let message = client.pushed();
        if message["action"] != "event" {
            assert!(times.is_sorted(), "{times:?}");
            return (numbers, message);
        }
        assert_eq!(message["replayed"], true, "{message}");
        let cursor = message["cursor"].as_str().unwrap();
        let (id, rest) = cursor.split_once('.').unwrap();
        let (time, _) = rest.split_once('.').unwrap();
        times.push(u64::from_str_radix(time, 36).unwrap());
        if ids.insert(id.to_owned()) {
            numbers.push(number(&message));
        }
    }
}

/// The reply says that what was missed comes; where it does not, the failure shows what the server says of that.
fn assert_resumed(reply: &Value, client: &mut Client, server: &Server) {
    assert_eq!(
        reply["data"]["resumed"],
        true,
        "{reply}\n{}\n{}\n{}",
        client.notice(),
        server.log(),
        server
            .page("/metrics")
            .1
            .lines()
            .filter(|line| line.contains("stream") || line.contains("resume"))
            .filter(|line| !line.starts_with('#'))
            .collect::<Vec<_>>()
            .join("\n")
    );
}

#[test]
fn a_server_that_is_killed_loses_nothing_for_those_who_come_back() {
    let Some(host) = Host::take() else { return };
    let publisher = host.publisher();
    let server = Server::bridge(&host.url, &STREAM);
    let (client, cursor, next) = settled(&server, &publisher, ACCOUNT, 4);
    drop((client, server));
    // Nobody is there; and others' events are none of the client's business.
    for number in next..next + 300 {
        publish(&publisher, ACCOUNT, number);
        publish(&publisher, OTHER_ACCOUNT, number);
    }
    publisher.settle();
    let server = Server::bridge(&host.url, &STREAM);
    let mut client = server.client();
    let reply = client.ask(&subscribe(ACCOUNT, CREATE, json!(cursor)));
    assert_resumed(&reply, &mut client, &server);
    assert_eq!(
        reply["data"]["cursor"], cursor,
        "no place beyond what it was sent"
    );
    // Published while it catches up: replayed or live, and in any case once.
    publish(&publisher, ACCOUNT, next + 300);
    let (mut numbers, notice) = replayed(&mut client);
    assert_eq!(notice["name"], "resumed", "{notice}");
    while numbers.last() != Some(&(next + 300)) {
        let event = client.event();
        assert_eq!(event.get("replayed"), None, "{event}");
        numbers.push(number(&event));
    }
    // All that was missed, in order, behind what overlaps.
    let missed: Vec<_> = numbers.iter().copied().skip_while(|n| *n < next).collect();
    assert_eq!(missed, (next..=next + 300).collect::<Vec<_>>());
    assert!(numbers.is_sorted());
    // And it is live, with cursors of its own process, from which it resumes as ever.
    publish(&publisher, ACCOUNT, next + 301);
    let live = client.event();
    assert_eq!((number(&live), live.get("replayed")), (next + 301, None));
    let mut again = server.client();
    let reply = again.ask(&subscribe(ACCOUNT, CREATE, live["cursor"].clone()));
    assert_eq!(reply["data"]["resumed"], true, "{reply}");
    assert_eq!(again.notice()["name"], "resumed");
    // Another tenant gets what is its own, from the same cursor.
    let mut other = server.client();
    let reply = other.ask(&subscribe(OTHER_ACCOUNT, CREATE, json!(cursor)));
    assert_eq!(reply["data"]["resumed"], true, "{reply}");
    let (numbers, notice) = replayed(&mut other);
    assert_eq!(notice["name"], "resumed", "{notice}");
    assert_eq!(numbers, (next..next + 300).collect::<Vec<_>>());
    // What was loaded is given back when nobody needs it.
    server.wait_for_metric("history_stored_bytes", 0);
}

#[test]
fn a_cursor_from_the_stream_is_good_in_a_third_process() {
    let Some(host) = Host::take() else { return };
    let publisher = host.publisher();
    let server = Server::bridge(&host.url, &STREAM);
    let (client, mut cursor, next) = settled(&server, &publisher, ACCOUNT, 12);
    drop((client, server));
    let mut seen: BTreeSet<usize> = (0..next).collect();
    let mut published = next;
    // Killed again and again, in the middle of the replay.
    for stop_after in [50, 120] {
        for _ in 0..200 {
            publish(&publisher, ACCOUNT, published);
            published += 1;
        }
        publisher.settle();
        let server = Server::bridge(&host.url, &STREAM);
        let mut client = server.client();
        let reply = client.ask(&subscribe(ACCOUNT, CREATE, json!(cursor)));
        assert_resumed(&reply, &mut client, &server);
        for _ in 0..stop_after {
            let event = client.event();
            cursor = event["cursor"].as_str().unwrap().to_owned();
            seen.insert(number(&event));
        }
    }
    let server = Server::bridge(&host.url, &STREAM);
    let mut client = server.client();
    let reply = client.ask(&subscribe(ACCOUNT, CREATE, json!(cursor)));
    assert_eq!(reply["data"]["resumed"], true, "{reply}");
    let (numbers, notice) = replayed(&mut client);
    assert_eq!(notice["name"], "resumed", "{notice}");
    seen.extend(numbers);
    assert_eq!(seen, (0..published).collect::<BTreeSet<_>>());
}

#[test]
fn what_the_stream_does_not_have_is_told() {
    let Some(host) = Host::take() else { return };
    let publisher = host.publisher();
    let told = |server: &Server, binding: &str, cursor: &Value| {
        let mut client = server.client();
        let reply = client.ask(&subscribe(ACCOUNT, binding, cursor.clone()));
        assert_eq!(reply["status"], "success", "{reply}");
        assert_eq!(reply["data"]["resumed"], false, "{reply}");
        let notice = client.notice();
        assert_eq!(
            (&notice["name"], &notice["data"]["reason"]),
            (&json!("gap"), &json!("resume"))
        );
        // And it is live.
        publish(&publisher, ACCOUNT, 7);
        if binding == CREATE {
            let event = client.event();
            assert_eq!((number(&event), event.get("replayed")), (7, None));
        }
        notice["data"]["why"].as_str().unwrap().to_owned()
    };
    let server = Server::bridge(&host.url, &STREAM);
    let (client, cursor, _) = settled(&server, &publisher, ACCOUNT, 4);
    let cursor = json!(cursor);
    let (_, rest) = cursor.as_str().unwrap().split_once('.').unwrap();
    let (time, mark) = rest.split_once('.').unwrap();
    let time = u64::from_str_radix(time, 36).unwrap();
    let at = |time: u64, mark: &str| json!(format!("0.{}.{mark}", base_36(time)));
    // Of before the stream; of the future; of a family that nobody kept; of long ago.
    drop((client, server));
    let server = Server::bridge(&host.url, &STREAM);
    assert_eq!(told(&server, CREATE, &at(time - 100_000, mark)), "outage");
    assert_eq!(told(&server, CREATE, &at(time + 100_000, mark)), "unknown");
    assert_eq!(
        told(&server, CREATE, &at(time - 4_000_000, mark)),
        "expired"
    );
    let fax = told(&server, "fax.status.*", &cursor);
    assert!(["expired", "unknown"].contains(&&*fax), "{fax}");
    // Deleted: nothing of before is there, and clients are told so or, while it is away, that it is.
    host.broker
        .ctl(&["delete_queue", "--vhost", host.vhost(), "history"]);
    drop(server);
    let server = Server::bridge(&host.url, &STREAM);
    server.wait_for_metric("amqp_stream_up", 1);
    assert_eq!(told(&server, CREATE, &cursor), "expired");
    drop(server);
    // Declared otherwise: it takes no markers of this process, so nobody would get to the end of it.
    let other = [
        &STREAM[..],
        &["--history-stream-max-age", "2h"],
        &["--request-timeout-ms", "3000"],
    ]
    .concat();
    let server = Server::bridge(&host.url, &other);
    server.wait_for_log("406");
    assert_eq!(told(&server, CREATE, &cursor), "outage");
    drop(server);
    // Without a stream.
    let server = Server::bridge(&host.url, &[]);
    assert_eq!(told(&server, CREATE, &cursor), "expired");
    assert_eq!(server.metric("amqp_stream_markers_total"), 0);
}

fn base_36(mut number: u64) -> String {
    let mut digits = Vec::new();
    while number > 0 {
        digits.push(char::from_digit((number % 36) as u32, 36).unwrap());
        number /= 36;
    }
    digits.iter().rev().collect()
}

#[test]
fn a_queue_that_is_no_stream_is_told_and_disturbs_nobody() {
    let Some(host) = Host::take() else { return };
    let publisher = host.publisher();
    publisher.declare_queue("history");
    let server = Server::bridge(&host.url, &STREAM);
    server.wait_for_log("events are not kept");
    let mut client = server.client();
    let cursor = {
        let reply = client.ask(&subscribe(ACCOUNT, CREATE, json!(true)));
        reply["data"]["cursor"].clone()
    };
    publish(&publisher, ACCOUNT, 1);
    assert_eq!(number(&client.event()), 1);
    // What the process itself knows needs no stream.
    let mut again = server.client();
    let reply = again.ask(&subscribe(ACCOUNT, CREATE, cursor));
    assert_eq!(reply["data"]["resumed"], true, "{reply}");
    assert_eq!(replayed(&mut again).0, [1]);
    wait_within(std::time::Duration::from_secs(5), "no read", || {
        (server.metric("amqp_stream_reads_total") == 0).then_some(())
    });
}

#[test]
fn a_stream_that_takes_nothing_from_us_is_told_within_seconds() {
    let Some(broker) = Broker::own() else { return };
    let arguments = [&STREAM[..], &["--request-timeout-ms", "5000"]].concat();
    let publisher = Publisher::connect(&broker.url());
    let server = Server::bridge(&broker.url(), &arguments);
    let (client, cursor, next) = settled(&server, &publisher, ACCOUNT, 4);
    drop((client, server));
    for number in next..next + 10 {
        publish(&publisher, ACCOUNT, number);
    }
    publisher.settle();
    let server = Server::bridge(&broker.url(), &arguments);
    server.wait_for_metric("amqp_stream_up", 1);
    let resume = |cursor: &str| {
        let mut client = server.client();
        let reply = client.ask(&subscribe(ACCOUNT, CREATE, json!(cursor)));
        (client, reply)
    };
    // The broker has no memory left: whoever publishes waits.
    broker.ctl(&["set_vm_memory_high_watermark", "0.000001"]);
    let before = server.metric("amqp_stream_markers_total");
    let (mut early, reply) = resume(&cursor);
    if reply["data"]["resumed"] == true {
        let (numbers, notice) = replayed(&mut early);
        assert!(numbers.contains(&(next + 9)), "{numbers:?}");
        assert_eq!(notice["data"]["why"], "outage", "{notice}");
    } else {
        assert_eq!(early.notice()["data"]["why"], "outage", "{reply}");
    }
    assert!(server.metric("amqp_stream_markers_total") <= before + 1);
    let (mut late, reply) = resume(&cursor);
    assert_eq!(reply["data"]["resumed"], false, "{reply}");
    assert_eq!(late.notice()["data"]["why"], "outage");
    // And as ever when it takes something again.
    broker.ctl(&["set_vm_memory_high_watermark", "0.6"]);
    wait_within(BROKER_PATIENCE, "markers", || {
        (server.metric("amqp_stream_markers_total") > before + 1).then_some(())
    });
    let (mut again, reply) = resume(&cursor);
    assert_eq!(reply["data"]["resumed"], true, "{reply}");
    let (numbers, notice) = replayed(&mut again);
    assert_eq!(notice["name"], "resumed", "{notice}");
    assert!((next..next + 10).all(|number| numbers.contains(&number)));
    server.wait_for_metric("history_stored_bytes", 0);
}

#[test]
fn a_stream_that_was_trimmed_is_told() {
    let Some(host) = Host::take() else { return };
    let publisher = host.publisher();
    let arguments = [&STREAM[..], &["--history-stream-max-bytes", "1000000"]].concat();
    let server = Server::bridge(&host.url, &arguments);
    let (client, cursor, _) = settled(&server, &publisher, ACCOUNT, 4);
    drop((client, server));
    let mut body = call_event(OTHER_ACCOUNT, "CHANNEL_CREATE", 0);
    body["Padding"] = json!("x".repeat(100_000));
    let body = body.to_string();
    // More than three of its segments of 16 MB.
    for _ in 0..500 {
        publisher.publish("callevt", "call.CHANNEL_CREATE.c", body.as_bytes());
    }
    publisher.settle();
    let server = Server::bridge(&host.url, &arguments);
    server.wait_for_metric("amqp_stream_up", 1);
    let mut client = server.client();
    let reply = client.ask(&subscribe(ACCOUNT, CREATE, json!(cursor)));
    assert_eq!(reply["data"]["resumed"], false, "{reply}");
    let notice = client.notice();
    assert_eq!(notice["data"]["why"], "expired", "{notice}");
    publish(&publisher, ACCOUNT, 7);
    assert_eq!(number(&client.event()), 7);
    server.wait_for_metric("history_stored_bytes", 0);
}
