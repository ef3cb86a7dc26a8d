//! The way out (PROTOCOL 2 and 3): what balancers, clients and operators see between SIGTERM and the end.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use support::client::{ANY_TOKEN, Client, Raw, ping_as};
use support::events::{ACCOUNT, call_event, large_call_event};
use support::server::{Fed, Server, wait_for};
use support::tls::plain_only;
use support::wire::{UPGRADE_REQUEST, client_text};

/// Longer than any test waits.
const NEVER: &str = "3600";

fn subscribed(mut client: Client) -> Client {
    client.must_subscribe(ANY_TOKEN, ACCOUNT, "call.CHANNEL_CREATE.*");
    client
}

/// What a balancer's check is told.
fn probe(address: SocketAddr) -> (u16, String) {
    let mut probe = Raw::connect(address);
    probe.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    let response = probe.last_response();
    (response.status, response.body)
}

fn wait_until_refused(address: SocketAddr) {
    wait_for("connects are refused", || {
        let error = TcpStream::connect(address).err()?;
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        Some(())
    });
}

fn ping_frame() -> Vec<u8> {
    client_text(&ping_as(ANY_TOKEN, "1").to_string())
}

#[test]
fn during_the_delay_probes_get_503_and_everything_else_is_served_until_a_second_signal() {
    let mut fed = Fed::insecure(&[
        "--drain-delay-seconds",
        NEVER,
        "--drain-seconds",
        NEVER,
        "--going-away-ms",
        "0",
    ]);
    let address = fed.server.address();
    let mut old = subscribed(Client::connect(address));
    assert_eq!(probe(address).0, 200);
    fed.server.signal(Signal::TERM);
    wait_for("a probe is told so", || {
        (probe(address) == (503, "going away\n".to_owned())).then_some(())
    });
    let mut new = subscribed(Client::connect(address));
    fed.publish(
        "callevt",
        "call.CHANNEL_CREATE.x",
        &call_event(ACCOUNT, "CHANNEL_CREATE", 1),
    );
    assert_eq!(
        (
            &old.event()["args"]["Number"],
            &new.event()["args"]["Number"]
        ),
        (&1.into(), &1.into())
    );
    assert_eq!(fed.server.page("/readyz"), (503, "going away\n".to_owned()));
    assert_eq!(fed.server.page("/healthz").0, 200);
    assert_eq!(
        (fed.server.metric("ready"), fed.server.metric("sessions")),
        (0, 2)
    );
    fed.server.signal(Signal::INT);
    assert_eq!(fed.server.wait().code(), Some(0));
    assert!(fed.server.log().contains("closing at once"));
}

#[test]
fn after_the_delay_the_port_is_closed_the_sessions_drain_and_the_admin_pages_stay_to_the_end() {
    let mut server = Server::demo(&[
        "--drain-delay-seconds",
        "1",
        "--drain-seconds",
        "5",
        "--going-away-ms",
        "0",
    ]);
    let mut clients: Vec<Client> = (0..4).map(|_| subscribed(server.client())).collect();
    let begun = Instant::now();
    server.signal(Signal::TERM);
    wait_until_refused(server.address());
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(clients[0].expect_close().0, 1001);
    assert_eq!(server.page("/readyz").0, 503);
    assert_eq!(server.page("/healthz").0, 200);
    assert!(server.metric("sessions") > 0, "the last is not closed yet");
    for client in &mut clients[1..] {
        assert_eq!(client.expect_close().0, 1001);
    }
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn without_sessions_the_end_comes_right_after_the_delay() {
    let mut server = Server::demo(&["--drain-delay-seconds", "1", "--drain-seconds", NEVER]);
    let begun = Instant::now();
    assert_eq!(server.stop().code(), Some(0));
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[test]
fn whoever_waits_in_the_queue_when_accepts_stop_is_served_and_closed_with_1001() {
    if plain_only(&"a process that is stopped takes no part in a handshake") {
        return;
    }
    let mut server = Server::demo(&["--drain-seconds", "2", "--going-away-ms", "0"]);
    server.signal(Signal::STOP);
    let waiting: Vec<Raw> = (0..50)
        .map(|_| {
            let mut raw = Raw::connect(server.address());
            raw.send(UPGRADE_REQUEST.as_bytes());
            raw.send(&ping_frame());
            raw
        })
        .collect();
    server.signal(Signal::TERM);
    server.signal(Signal::CONT);
    for mut raw in waiting {
        assert_eq!(raw.head().status, 101);
        assert_eq!(raw.json()["status"], "success");
        assert_eq!(raw.expect_close().0, Some(1001));
    }
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_handshake_that_was_begun_before_the_port_closed_is_finished_and_the_session_drained() {
    let mut server = Server::demo(&["--drain-seconds", "5", "--going-away-ms", "0"]);
    let (begin, end) = UPGRADE_REQUEST.split_at(30);
    let mut raw = Raw::connect(server.address());
    raw.send(begin.as_bytes());
    server.wait_for_metric("connections", 1);
    server.signal(Signal::TERM);
    wait_until_refused(server.address());
    raw.send(end.as_bytes());
    assert_eq!(raw.head().status, 101);
    raw.send(&ping_frame());
    assert_eq!(raw.json()["status"], "success");
    assert_eq!(raw.expect_close().0, Some(1001));
    assert_eq!(server.wait().code(), Some(0));
}

/// Publishes large events until a metric is above zero, because somebody does not read them; returns how many.
fn flood(fed: &mut Fed, metric: &str) -> usize {
    let mut count = 0;
    while fed.server.metric(metric) == 0 {
        for _ in 0..16 {
            let event = large_call_event(ACCOUNT, count, 32 << 10);
            fed.publish("callevt", "call.CHANNEL_CREATE.x", &event);
            count += 1;
        }
        let so_far = count as u64;
        fed.server.wait_for_metric("events_total", so_far);
    }
    count
}

#[test]
fn a_session_closed_by_the_drain_gets_every_frame_that_waited_for_it() {
    let mut fed = Fed::insecure(&[
        "--drain-seconds",
        "10",
        "--going-away-ms",
        "0",
        "--max-outbox-bytes",
        "0",
    ]);
    let mut slow = subscribed(Client::connect_narrow(fed.server.address()));
    let count = flood(&mut fed, "outboxes_blocked");
    fed.server.signal(Signal::TERM);
    fed.server.wait_for_metric("subscriptions", 0);
    assert_eq!(fed.server.metric("outboxes_blocked"), 1);
    let (events, code, _) = slow.read_to_close();
    let numbers: Vec<_> = events
        .iter()
        .map(|event| event["args"]["Number"].as_u64())
        .collect();
    assert_eq!(numbers, (0..count as u64).map(Some).collect::<Vec<_>>());
    assert_eq!(code, 1001);
    assert_eq!(fed.server.wait().code(), Some(0));
}

#[test]
fn a_session_closed_by_the_drain_is_told_of_the_events_that_were_dropped_for_it() {
    let policy = ["--slow-consumer", "drop", "--max-queued-messages", "5"];
    let mut fed = Fed::insecure(
        &[
            &["--drain-seconds", "10", "--going-away-ms", "0"],
            &policy[..],
        ]
        .concat(),
    );
    let mut slow = subscribed(Client::connect_narrow(fed.server.address()));
    let count = flood(&mut fed, "frames_dropped_total");
    fed.server.signal(Signal::TERM);
    fed.server.wait_for_metric("subscriptions", 0);
    let (mut messages, code, _) = slow.read_to_close();
    let notice = messages.pop().unwrap();
    assert_eq!(
        (&notice["name"], &notice["data"]["reason"]),
        (&"gap".into(), &"slow_consumer".into())
    );
    assert_eq!(notice["data"]["dropped"], count - messages.len());
    assert_eq!(code, 1001);
}
