//! Limits of the system: descriptors and memory.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::scene::new_account;
use support::broker::Broker;
use support::client::{ANY_TOKEN, Client, Peek, Raw, ping_as, subscribe};
use support::events::{ACCOUNT, large_call_event};
use support::publisher::Publisher;
use support::server::{BROKER_PATIENCE, DEMO, Fed, PATIENCE, Server, blackhole};
use support::tcp_proxy::TcpProxy;
use support::wire::UPGRADE_REQUEST;

/// Lets sessions have all descriptors.
const GREEDY: [&str; 2] = ["--max-connections", "1000"];

/// The program with at most so many descriptors.
fn with_descriptors(count: usize, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("ulimit -n {count}; exec \"$@\""), "sh"])
        .arg(blackhole().get_program())
        .args(["--ip", "127.0.0.1", "--port", "0", "--admin", "127.0.0.1:0"])
        .args(args);
    command
}

/// Clients that want in.
fn knock(server: &Server, count: usize) -> Vec<Raw> {
    (0..count)
        .map(|_| {
            let mut raw = Raw::connect(server.address());
            raw.send(UPGRADE_REQUEST.as_bytes());
            raw
        })
        .collect()
}

/// Moves those that are let in within `patience` of one another, in the order of their knocking.
fn let_in(knocking: &mut Vec<Raw>, patience: Duration) -> Vec<Raw> {
    let mut in_now = Vec::new();
    while !knocking.is_empty() && knocking[0].peek(patience) == Peek::Bytes {
        let mut raw = knocking.remove(0);
        assert_eq!(raw.head().status, 101);
        in_now.push(raw);
    }
    in_now
}

#[test]
fn out_of_descriptors_the_server_neither_spins_nor_wedges() {
    let server = Server::spawn(with_descriptors(40, &[&DEMO[..], &GREEDY].concat()));
    let mut knocking = knock(&server, 60);
    server.wait_for_log("cannot accept");
    let mut in_now = let_in(&mut knocking, Duration::from_millis(500));
    assert!(
        in_now.len() > 10 && knocking.len() > 10,
        "{} in, {} knock",
        in_now.len(),
        knocking.len()
    );
    let (cpu, begun) = (server.cpu_nanoseconds(), Instant::now());
    assert_eq!(
        knocking[0].peek(Duration::from_secs(1)),
        Peek::Nothing,
        "there is no room"
    );
    let busy = (server.cpu_nanoseconds() - cpu) as f64 / begun.elapsed().as_nanos() as f64;
    assert!(
        busy < 0.2,
        "{:.0} % of a core while it can do nothing",
        busy * 100.0
    );
    in_now[0].send_text(&ping_as(ANY_TOKEN, "those who are in are served").to_string());
    assert_eq!(in_now[0].json()["status"], "success");
    while !knocking.is_empty() {
        assert!(!in_now.is_empty(), "{} still knock", knocking.len());
        in_now.clear();
        // Whoever was let in by the places that came free makes way for the next.
        in_now = let_in(&mut knocking, PATIENCE / 20);
    }
    let mut late = Raw::upgraded(server.address());
    late.send_text(&ping_as(ANY_TOKEN, "1").to_string());
    assert_eq!(late.json()["status"], "success");
}

#[test]
fn out_of_descriptors_the_broker_is_found_again_and_the_admin_page_answers_once_one_is_free() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let proxy = TcpProxy::to_port(broker.port());
    let url = proxy.amqp_url();
    let server = Server::spawn_patient(
        BROKER_PATIENCE,
        with_descriptors(
            48,
            &[&["--auth", "insecure", "--amqp", &url], &GREEDY[..]].concat(),
        ),
    );
    server.until_ready();
    let mut session = server.client();
    let account = new_account();
    session.must_subscribe(ANY_TOKEN, &account, "call.*.*");
    let mut knocking = knock(&server, 60);
    server.wait_for_log("cannot accept");
    let mut in_now = let_in(&mut knocking, Duration::from_millis(500));
    // The connection that is cut leaves its descriptors to those who knock: the broker has to wait for its turn.
    proxy.cut();
    in_now.extend(let_in(&mut knocking, Duration::from_millis(500)));
    assert!(!knocking.is_empty(), "nobody is left to knock");
    let mut late = Raw::connect(server.admin());
    late.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    drop(knocking);
    drop(in_now);
    assert_eq!(late.last_response().status, 200);
    server.wait_for_metric("amqp_connects_total", 2);
    server.until_ready();
    let event = large_call_event(&account, 1, 1);
    Publisher::connect(&broker.url()).publish(
        "callevt",
        "call.CHANNEL_CREATE.x",
        event.to_string().as_bytes(),
    );
    assert_eq!(session.event()["args"]["Number"], 1);
}

#[test]
fn full_of_sessions_the_broker_is_found_again_and_the_admin_page_answers_at_once() {
    let Some(broker) = Broker::shared() else {
        return;
    };
    let proxy = TcpProxy::to_port(broker.port());
    let url = proxy.amqp_url();
    // 96 of them are kept back for all that is no session.
    let server = Server::spawn_patient(
        BROKER_PATIENCE,
        with_descriptors(132, &["--auth", "insecure", "--amqp", &url]),
    );
    server.until_ready();
    let mut session = server.client();
    session.must_subscribe(ANY_TOKEN, &new_account(), "call.*.*");
    let mut knocking = knock(&server, 50);
    let statuses: Vec<u16> = knocking.iter_mut().map(|raw| raw.head().status).collect();
    let in_now = statuses.iter().filter(|status| **status == 101).count();
    assert!((25..=36).contains(&in_now), "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 101 | 503)));
    proxy.cut();
    server.wait_for_metric("amqp_connects_total", 2);
    session.assert_nothing_came(ANY_TOKEN);
    assert_eq!(server.page("/healthz").0, 200);
    assert_eq!(server.metric("accept_errors_total"), 0);
}

/// What all outboxes may hold together.
const OUTBOXES: u64 = 64 << 20;

/// What else may become resident.
const BESIDE: u64 = 64 << 20;

/// Floods a thousand clients, each on an account of its own so that no two share a frame, and none of which ever
/// reads, with events of 2 KB until the outboxes have been full for long; memory stays below its bound all the
/// while, and one that reads gets every event of its account.
fn flood_a_thousand(args: &[&str], is_full: impl Fn(&Server) -> bool) -> Server {
    const CLIENTS: usize = 1000;
    const BODY_BYTES: usize = 2 << 10;
    let outboxes = OUTBOXES.to_string();
    let mut fed = Fed::insecure(
        &[
            &[
                "--max-outboxes-bytes",
                &outboxes,
                "--send-timeout-ms",
                "120000",
            ],
            args,
        ]
        .concat(),
    );
    let address = fed.server.address();
    let mut healthy = Client::connect(address);
    healthy.must_subscribe(ANY_TOKEN, ACCOUNT, "call.*.*");
    let account = |client: usize| format!("{client:032x}");
    let deaf: Vec<Raw> = (0..CLIENTS)
        .map(|client| {
            let mut raw = Raw::upgraded_narrow(address);
            let command = subscribe(ANY_TOKEN, &account(client), "call.*.*");
            raw.send_text(&command.to_string());
            assert_eq!(raw.json()["status"], "success");
            raw
        })
        .collect();
    let before = fed.server.resident_bytes();
    let (mut most, mut sent, mut full_at) = (before, 0_usize, None);
    for round in 0.. {
        for client in 0..CLIENTS {
            fed.publish(
                "callevt",
                "call.CHANNEL_CREATE.x",
                &large_call_event(&account(client), round, BODY_BYTES),
            );
        }
        sent += CLIENTS;
        fed.publish(
            "callevt",
            "call.CHANNEL_CREATE.x",
            &large_call_event(ACCOUNT, round, BODY_BYTES),
        );
        assert_eq!(healthy.event()["args"]["Number"], round);
        most = most.max(fed.server.resident_bytes());
        if full_at.is_none() && is_full(&fed.server) {
            full_at = Some(round);
        }
        // As much again, that is what must not make a difference.
        if full_at.is_some_and(|full_at| round >= full_at + 32) {
            break;
        }
        assert!(round < 4000, "never full");
    }
    eprintln!(
        "{args:?}: {sent} events of 2 KB to {CLIENTS} clients that never read: {} MiB before, at most {} MiB, {} MiB in outboxes",
        before >> 20,
        most >> 20,
        fed.server.metric("outboxes_blocked_bytes") >> 20
    );
    assert!(
        most < before + OUTBOXES + BESIDE,
        "{} MiB more",
        (most - before) >> 20
    );
    assert!(fed.server.metric("outboxes_blocked_bytes") <= OUTBOXES);
    drop(deaf);
    fed.server
}

#[test]
fn memory_stays_below_its_bound_under_policy_close_with_a_thousand_that_never_read() {
    let server = flood_a_thousand(&[], |server| server.metric("subscriptions") < 900);
    server.until("nobody is left", |server| server.metric("sessions") <= 1);
    assert!(server.metric(r#"closes_total{reason="outboxes_full"}"#) > 100);
}

#[test]
fn memory_stays_below_its_bound_under_policy_drop_with_a_thousand_that_never_read() {
    let server = flood_a_thousand(&["--slow-consumer", "drop"], |server| {
        server.metric("frames_dropped_total") > 20_000
    });
    server.until("nobody is left", |server| server.metric("sessions") <= 1);
}
