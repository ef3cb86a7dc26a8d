//! The notice `going_away` (PROTOCOL 10): who is told, when, and that whoever moves then misses nothing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use support::client::{ANY_TOKEN, Client, Raw};
use support::events::{ACCOUNT, call_event};
use support::looker::Looker;
use support::server::{Fed, Server, run_to_end};
use support::wire::UPGRADE_REQUEST;

const BINDING: &str = "call.CHANNEL_CREATE.*";

fn subscribed(address: SocketAddr) -> Client {
    let mut client = Client::connect(address);
    client.must_subscribe(ANY_TOKEN, ACCOUNT, BINDING);
    client
}

/// The milliseconds of a notice, which must be this one.
fn within_ms(notice: &Value) -> u64 {
    let within = notice["data"]["within_ms"]
        .as_u64()
        .expect("whole milliseconds");
    let expected = json!({"action": "notice", "name": "going_away", "data": {"within_ms": within}});
    assert_eq!(*notice, expected);
    within
}

/// Ten sessions are told and closed after `order` has told the server to end.
fn all_are_told(order: impl FnOnce(&Server)) {
    let server = Server::demo(&["--drain-seconds", "10", "--going-away-ms", "4000"]);
    let mut clients: Vec<Client> = (0..10).map(|_| subscribed(server.address())).collect();
    let id = clients[9].session_id();
    let (mut looker, _) = Looker::look(server.admin(), &format!("session={id}"));
    let begun = Instant::now();
    order(&server);
    let mut last = u64::MAX;
    for (place, client) in (0..).zip(&mut clients) {
        let within = within_ms(&client.notice());
        assert!(within <= 4000 - 200 * place, "{place} was told too soon");
        assert!(within < last && within > 1000, "{place}: {within} ms left");
        last = within;
    }
    let told = looker.until("going_away");
    assert_eq!(
        (&told["session"], &told["within_ms"]),
        (&json!(id), &json!(last))
    );
    assert_eq!(server.metric("going_away_notices_total"), 10);
    assert_eq!(server.page("/readyz").0, 503);
    assert_eq!(clients[0].expect_close().0, 1001);
    assert!(begun.elapsed() >= Duration::from_secs(4));
    assert!(server.metric("sessions") > 0, "the last is not closed yet");
}

#[test]
fn at_sigterm_all_are_told_within_the_first_half_of_the_time_and_nobody_is_closed_before_it_is_over()
 {
    all_are_told(|server| server.signal(Signal::TERM));
}

#[test]
fn an_operators_drain_tells_as_sigterm_does() {
    all_are_told(|server| {
        let mut order = Raw::connect(server.admin());
        order.send(b"POST /drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(order.head().status, 202);
    });
}

#[test]
fn a_handshake_that_is_finished_behind_the_telling_is_told_at_once() {
    let server = Server::demo(&["--drain-seconds", "60", "--going-away-ms", "50000"]);
    let (begin, end) = UPGRADE_REQUEST.split_at(30);
    let mut late = Raw::connect(server.address());
    late.send(begin.as_bytes());
    server.wait_for_metric("connections", 1);
    let mut early = subscribed(server.address());
    server.signal(Signal::TERM);
    within_ms(&early.notice());
    late.send(end.as_bytes());
    assert_eq!(late.head().status, 101);
    assert!(within_ms(&late.json()) <= 50_000);
    early.assert_nothing_came(ANY_TOKEN);
    assert_eq!(server.metric("going_away_notices_total"), 2);
}

/// The number of an event.
fn number(event: &Value) -> usize {
    assert_eq!(event["action"], "event", "{event}");
    event["args"]["Number"].as_u64().expect("a number") as usize
}

/// The numbers that a client gets which moves when it is told, up to `last`.
fn moves(address: SocketAddr, mut first: Client, last: usize) -> BTreeSet<usize> {
    let mut numbers = BTreeSet::new();
    loop {
        let message = first.pushed();
        if message["action"] == "notice" {
            within_ms(&message);
            break;
        }
        numbers.insert(number(&message));
    }
    let mut second = subscribed(address);
    let newest = number(&second.pushed());
    numbers.insert(newest);
    // Without a cursor the first session is needed until both have told the same event.
    while newest > 0 && !numbers.contains(&(newest - 1)) {
        numbers.insert(number(&first.pushed()));
    }
    first.close();
    while !numbers.contains(&last) {
        numbers.insert(number(&second.pushed()));
    }
    numbers
}

#[test]
fn clients_that_move_when_they_are_told_miss_nothing_and_the_old_process_ends_when_the_last_has() {
    const CLIENTS: usize = 8;
    const LAST: usize = 1 << 20;
    let end = [
        "--reuse-port",
        "--drain-seconds",
        "600",
        "--going-away-ms",
        "2000",
    ];
    let mut old = Fed::insecure(&end);
    let address = old.server.address();
    let port = address.port().to_string();
    let clients: Vec<Client> = (0..CLIENTS).map(|_| subscribed(address)).collect();
    let stays = subscribed(address);
    let mut new = Fed::insecure(&[&end[..], &["--port", &port]].concat());
    let publish = |feds: &mut [&mut Fed], number| {
        for fed in feds {
            let body = call_event(ACCOUNT, "CHANNEL_CREATE", number);
            fed.publish("callevt", "call.CHANNEL_CREATE.x", &body);
        }
    };
    thread::scope(|scope| {
        let readers: Vec<_> = clients
            .into_iter()
            .map(|client| scope.spawn(move || moves(address, client, LAST)))
            .collect();
        old.server.signal(Signal::TERM);
        let mut published = 0;
        while old.server.metric("sessions") > 1 {
            publish(&mut [&mut old, &mut new], published);
            published += 1;
        }
        publish(&mut [&mut new], LAST);
        for reader in readers {
            let numbers = reader.join().expect("a client that moved");
            assert_eq!(numbers.len(), published + 1, "all, and the last");
        }
    });
    assert_eq!(
        new.server.metric("sessions_opened_total"),
        CLIENTS as u64,
        "whoever moved found the new process at once"
    );
    stays.close();
    assert_eq!(old.server.wait().code(), Some(0));
}

#[test]
fn the_time_to_move_is_a_part_of_the_drain() {
    let refused = |ms: &str| {
        let args = [
            "--auth=insecure",
            "--drain-seconds=2",
            "--going-away-ms",
            ms,
        ];
        let output = run_to_end(&[&args[..], &["--check-config"]].concat());
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        (output.status.code(), said)
    };
    assert_eq!(refused("2000").0, Some(0));
    let (code, said) = refused("2001");
    let expected = "--going-away-ms: expected at most 2000, since it is a part of drain_seconds";
    assert!(code == Some(2) && said.contains(expected), "{said}");
}
