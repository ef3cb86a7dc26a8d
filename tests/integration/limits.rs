//! Every limit below, at and above what it allows, with the counter that tells an operator of it: over real sockets,
//! and on scripted ones under a virtual clock where moments matter. Last, that the counts of sessions do not leak:
//! random connects, refusals, authentications, renewals and ends, judged after every step by a plain model.
//!
//! The rate limit of commands and their size are in `command_limits` and `close_codes`, outboxes in `slow_consumers`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use blackhole::account::AccountId;
use blackhole::config::Config;
use blackhole::handoff::{FromSource, Return, SourceEnd, ToSource};
use blackhole::limits::{
    ADMIN_CONNECTIONS_MAX, LINGER, PARTIAL_MESSAGES_PER_ADDRESS_MAX, PARTIAL_OVERHEAD_BYTES_MAX,
    REFUSALS_MAX, SURPLUS_MAX,
};
use blackhole::metrics::commands::CommandResult;
use blackhole::protocol::http::HEAD_BYTES_MAX;
use blackhole::reactor::{Reactor, Ready};
use blackhole::routing::amqp_binding::Asked;
use blackhole::routing::broker_bindings::BindingCounts;
use blackhole::routing::index::IndexCounts;
use blackhole::session::ListenerKind;
use blackhole::session::id::{ConnId, Peer};
use fastrand::Rng;
use rustix::process::Signal;
use serde_json::{Value, json};

use support::client::{
    ANY_TOKEN, Client, Raw, Response, errors, ping, ping_as, subscribe, subscribe_to_all, success,
    upgrade_with,
};
use support::events::{ACCOUNT, OTHER_ACCOUNT};
use support::scripted::{Scripted, Wire, config, now, reactor, under_seeds};
use support::server::{Server, TokenFile, wait_for};
use support::tls::plain_only;
use support::wire::{UPGRADE_REQUEST, client_frame, client_text, server_frames};

/// What a connection that sends `bytes` is told, and the connection if it was upgraded.
fn knock(server: &Server, bytes: &[u8]) -> (u16, Raw) {
    let mut raw = Raw::connect(server.address());
    raw.send(bytes);
    (raw.head().status, raw)
}

fn refused(server: &Server, bytes: &[u8]) -> Response {
    let mut raw = Raw::connect(server.address());
    raw.send(bytes);
    raw.last_response()
}

fn bearer(token: &str) -> String {
    upgrade_with(&[&format!("Authorization: Bearer {token}")])
}

#[test]
fn a_head_may_have_8_kib_and_not_a_byte_more() {
    let server = Server::demo(&[]);
    let padding = HEAD_BYTES_MAX - upgrade_with(&["X-Padding: "]).len();
    for (more, status) in [(0, 101), (1, 101), (2, 431)] {
        let padded = format!("X-Padding: {}", "x".repeat(padding - 1 + more));
        let request = upgrade_with(&[&padded]);
        assert_eq!(request.len(), HEAD_BYTES_MAX - 1 + more);
        assert_eq!(knock(&server, request.as_bytes()).0, status, "{more}");
    }
    assert_eq!(
        server.metric(r#"handshakes_refused_total{reason="head"}"#),
        1
    );
}

#[test]
fn a_session_has_256_subscriptions_by_default() {
    let server = Server::demo(&[]);
    let mut client = Client::connect(server.address());
    let names: Vec<String> = (0..257)
        .map(|n| format!("call.CHANNEL_CREATE.{n}"))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    client.must_subscribe_to_all(ANY_TOKEN, ACCOUNT, &names[..255]);
    client.must_subscribe(ANY_TOKEN, ACCOUNT, names[255]);
    let over = "too many subscriptions (max 256)";
    assert_eq!(
        errors(&client.subscribe(ANY_TOKEN, ACCOUNT, names[256])),
        [over]
    );
    let all = subscribe_to_all(ANY_TOKEN, ACCOUNT, &names);
    assert_eq!(errors(&client.ask(&all)), [over]);
    let metrics = server.metrics();
    assert_eq!(metrics["subscriptions"], 256);
    assert_eq!(
        metrics[r#"commands_total{result="too_many_subscriptions"}"#],
        2
    );
}

#[test]
fn an_ipv6_network_of_64_bits_is_one_address() {
    let server = Server::demo(&[
        "--max-connections-per-ip",
        "2",
        "--proxy-protocol",
        "accept",
        "--trusted-proxies",
        "127.0.0.0/8",
    ]);
    let from = |address: &str| {
        let header = format!("PROXY TCP6 {address} 2001:db8::1 4711 443\r\n");
        let mut raw = Raw::connect(server.address());
        raw.try_send_behind(header.as_bytes(), UPGRADE_REQUEST.as_bytes());
        (raw.head().status, raw)
    };
    let (one, held) = from("2001:db8:1:2::1");
    let (two, _held) = from("2001:db8:1:2:ffff:ffff:ffff:ffff");
    assert_eq!([one, two], [101, 101]);
    assert_eq!(from("2001:db8:1:2:8000::").0, 429, "the same /64");
    let (neighbour, _neighbour) = from("2001:db8:1:3::1");
    assert_eq!(neighbour, 101, "the next /64");
    let metrics = server.metrics();
    assert_eq!(metrics["counted_ips"], 2);
    assert_eq!(metrics[r#"handshakes_refused_total{reason="ip"}"#], 1);
    drop(held);
    server.wait_for_metric("sessions", 2);
    assert_eq!(from("2001:db8:1:2:8000::").0, 101, "a place is free");
}

/// Two tokens of one account, one of another, and a superduper admin of the first.
fn owners() -> Value {
    json!({
        "a1": {"account_id": ACCOUNT}, "a2": {"account_id": ACCOUNT},
        "admin": {"account_id": ACCOUNT, "superduper_admin": true},
        "b": {"account_id": OTHER_ACCOUNT, "descendants": [ACCOUNT]},
    })
}

fn with_account_limit(tokens: &TokenFile) -> Server {
    let auth = tokens.option();
    Server::start(&[
        "--source",
        "demo",
        "--auth",
        &auth,
        "--max-connections-per-account",
        "2",
    ])
}

#[test]
fn an_account_has_no_more_sessions_than_it_may_however_they_authenticate() {
    let tokens = TokenFile::new(&owners());
    let server = with_account_limit(&tokens);
    let full = ["too many sessions of this account (max 2)"];
    let mut by_bearer = Client::connect_as(server.address(), "a1");
    let mut by_command = Client::connect(server.address());
    let mut late = Client::connect(server.address());
    success(&by_command.ask(&ping_as("a2", "at the limit")));
    for token in ["a1", "a2", "admin"] {
        let answer = refused(&server, bearer(token).as_bytes());
        assert_eq!(
            (answer.status, &*answer.body),
            (429, "too many sessions of this account\n")
        );
        assert_eq!(errors(&late.ask(&ping_as(token, "above it"))), full);
    }
    // Refused, it is what it was: open, and nobody.
    assert_eq!(
        errors(&late.ask(&ping("1"))),
        ["authentication token required"]
    );
    let metrics = server.metrics();
    assert_eq!(metrics[r#"handshakes_refused_total{reason="account"}"#], 3);
    assert_eq!(metrics[r#"commands_total{result="too_many_sessions"}"#], 3);
    assert_eq!((metrics["sessions"], metrics["counted_accounts"]), (3, 1));
    // Another token of the own account takes no second place, nor does the account that one descends from.
    success(&by_bearer.ask(&ping_as("admin", "again")));
    success(&late.ask(&ping_as("b", "another account")));
    assert_eq!(errors(&late.ask(&ping_as("a1", "move"))), full);
    success(&late.ask(&subscribe("b", ACCOUNT, "call.*.*")));
    assert_eq!(server.metric("counted_accounts"), 2);
    // Who moves to another account, or goes, leaves a place.
    success(&by_command.ask(&ping_as("b", "move")));
    success(&late.ask(&ping_as("a1", "move")));
    by_bearer.close();
    server.wait_for_metric("sessions", 2);
    let mut last = Client::connect_as(server.address(), "a2");
    success(&last.ask(&ping("1")));
    for client in [by_command, late, last] {
        client.close();
    }
    server.wait_for_metric("sessions", 0);
    assert_eq!(server.metric("counted_accounts"), 0);
}

#[test]
fn a_token_that_changes_hands_takes_its_sessions_along_and_closes_none() {
    let tokens = TokenFile::new(&owners());
    let server = with_account_limit(&tokens);
    let mut clients = ["a1", "a2", "b"].map(|token| Client::connect_as(server.address(), token));
    let mut changed = owners();
    changed["b"] = json!({"account_id": ACCOUNT});
    tokens.write(&changed.to_string());
    server.signal(Signal::HUP);
    server.wait_for_metric("config_reloads_total", 1);
    for client in &mut clients {
        success(&client.ask(&ping("alive")));
    }
    assert_eq!(server.metric("counted_accounts"), 1);
    let [first, second, third] = clients;
    first.close();
    server.wait_for_metric("sessions", 2);
    assert_eq!(
        knock(&server, bearer("b").as_bytes()).0,
        429,
        "the third still counts"
    );
    second.close();
    server.wait_for_metric("sessions", 1);
    assert_eq!(knock(&server, bearer("b").as_bytes()).0, 101);
    third.close();
    server.wait_for_metric("counted_accounts", 0);
}

#[test]
fn an_insecure_servers_sessions_are_of_no_account() {
    let server = Server::demo(&["--max-connections-per-account", "1"]);
    let held: Vec<Client> = (0..3)
        .map(|_| Client::connect_as(server.address(), ANY_TOKEN))
        .collect();
    assert_eq!(server.metric("counted_accounts"), 0);
    drop(held);
}

#[test]
fn connections_above_the_accept_rate_wait_and_none_is_lost() {
    const RATE: usize = 5;
    let server = Server::demo(&["--max-accept-rate", "5"]);
    let knock = || {
        let mut raw = Raw::connect(server.address());
        raw.send(UPGRADE_REQUEST.as_bytes());
        raw
    };
    let begun = Instant::now();
    let mut at_once: Vec<Raw> = (0..RATE).map(|_| knock()).collect();
    for raw in &mut at_once {
        assert_eq!(raw.head().status, 101);
    }
    assert_eq!(server.metric("accept_rate_pauses_total"), 0, "at the rate");
    let turns = server.metric("turn_seconds_count");
    let mut waiting: Vec<Raw> = (0..3 * RATE).map(|_| knock()).collect();
    for raw in &mut waiting {
        assert_eq!(raw.head().status, 101);
    }
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(2990),
        "{took:?} for fifteen more"
    );
    let metrics = server.metrics();
    assert!(metrics["accept_rate_pauses_total"] > 0);
    let turns = metrics["turn_seconds_count"] - turns;
    assert!(turns < 500, "{turns} turns: the loop spins while they wait");
    assert_eq!(metrics["sessions"], 4 * RATE as u64);
    assert_eq!(metrics[r#"handshakes_refused_total{reason="full"}"#], 0);
}

#[test]
fn a_full_process_answers_however_many_come_and_keeps_none_of_them() {
    if plain_only(&"beyond max_connections nothing is answered over TLS") {
        return;
    }
    let server = Server::demo(&["--max-connections", "3"]);
    let mut held: Vec<Client> = (0..3).map(|_| Client::connect(server.address())).collect();
    // None of them goes away: if they took places, the later ones would be reset.
    let refused: Vec<Raw> = (0..4 * REFUSALS_MAX)
        .map(|_| {
            let mut raw = Raw::connect(server.address());
            raw.send(UPGRADE_REQUEST.as_bytes());
            let answer = raw.head();
            assert_eq!(
                (answer.status, answer.header("retry-after")),
                (503, Some("5"))
            );
            raw
        })
        .collect();
    let metrics = server.metrics();
    assert_eq!(
        metrics["connections"], 3,
        "that of the page is none of them"
    );
    assert_eq!(
        metrics[r#"handshakes_refused_total{reason="full"}"#],
        refused.len() as u64
    );
    assert_eq!(metrics[r#"connections_dropped_total{reason="full"}"#], 0);
    for mut raw in refused {
        assert_eq!(raw.rest(), "no more connections can be taken\n");
    }
    held.pop().unwrap().close();
    // The connections that ask for the page take a place, too, until they are seen to end.
    wait_for("a place", || {
        (knock(&server, UPGRADE_REQUEST.as_bytes()).0 == 101).then_some(())
    });
}

#[test]
fn zero_is_no_limit() {
    let server = Server::demo(&[
        "--max-connections=0",
        "--max-connections-per-ip=0",
        "--max-connections-per-account=0",
        "--max-accept-rate=0",
        "--max-subscriptions=0",
        "--max-message-bytes=0",
        "--max-metadata-bytes=0",
    ]);
    let mut clients: Vec<Client> = (0..60).map(|_| Client::connect(server.address())).collect();
    let client = &mut clients[0];
    let names: Vec<String> = (0..600)
        .map(|n| format!("call.CHANNEL_CREATE.{n}"))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    client.must_subscribe_to_all(ANY_TOKEN, ACCOUNT, &names);
    let mut large = ping_as(ANY_TOKEN, "large");
    large["metadata"] = json!("m".repeat(300_000));
    success(&client.ask(&large));
    let metrics = server.metrics();
    assert_eq!((metrics["sessions"], metrics["subscriptions"]), (60, 600));
    assert_eq!(metrics["accept_rate_pauses_total"], 0);
}

// On scripted sockets.

/// A loop that takes connections from scripted sockets.
struct Loop {
    reactor: Reactor<Scripted>,
    source: SourceEnd,
    clock: Duration,
}

type Wires = Rc<RefCell<Wire>>;

impl Loop {
    fn new(config: &Config, seed: u64) -> Self {
        let (source, reactor) = reactor(config, 1000, seed);
        source.send(FromSource::Up(Return::Anew)).unwrap();
        let mut new = Self {
            reactor,
            source,
            clock: Duration::ZERO,
        };
        new.turn(&[]);
        new
    }

    /// A connection that has sent `bytes`.
    fn accept(
        &mut self,
        peer: SocketAddr,
        listener: ListenerKind,
        bytes: &[u8],
    ) -> (Option<ConnId>, Wires) {
        let wire = Wire::new(usize::MAX, usize::MAX);
        wire.borrow_mut().send(bytes);
        let socket = Scripted(wire.clone());
        let peer = Peer::from(peer);
        let id = self.reactor.accept(socket, peer, listener, now(self.clock));
        (id, wire)
    }

    /// Turns until nothing is left to be done now; the source confirms what it is asked for.
    fn turn(&mut self, ready: &[Ready]) {
        let now = now(self.clock);
        self.reactor.turn(ready, now);
        for _ in 0..1000 {
            let mut bound = Vec::new();
            for command in self.source.commands.try_iter().flatten() {
                if let ToSource::Bind {
                    binding, ticket, ..
                } = command
                {
                    bound.push(Asked { binding, ticket });
                }
            }
            let is_asked = !bound.is_empty();
            if is_asked {
                self.source.send(FromSource::Bound(bound)).unwrap();
            }
            if !is_asked && self.reactor.patience(now) > Duration::ZERO {
                return;
            }
            self.reactor.turn(&[], now);
        }
        panic!("does not come to rest");
    }

    /// Lets `clients` be heard.
    fn hear(&mut self, clients: impl IntoIterator<Item = ConnId>) {
        let ready = |id| Ready {
            id,
            readable: true,
            writable: true,
            read_closed: false,
        };
        let ready: Vec<Ready> = clients.into_iter().map(ready).collect();
        self.turn(&ready);
    }

    fn wait(&mut self, time: Duration) {
        self.clock += time;
        self.turn(&[]);
    }

    fn is_there(&self, id: ConnId) -> bool {
        self.reactor.connections().get(id).is_some()
    }
}

/// The response that a server sent as the last word on `wire`: status and body.
fn response(wire: &Wires) -> (u16, String) {
    let bytes = std::mem::take(&mut wire.borrow_mut().to_client);
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect("a whole head");
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    (status.expect("a status"), body.to_owned())
}

fn frames(wire: &Wires) -> Vec<(u8, Vec<u8>)> {
    let bytes = std::mem::take(&mut wire.borrow_mut().to_client);
    let (frames, used) = server_frames(&bytes);
    assert_eq!(used, bytes.len(), "whole frames");
    frames
}

/// The code of the one close frame that came.
fn close_code(wire: &Wires) -> u16 {
    match &frames(wire)[..] {
        [(8, payload)] => u16::from_be_bytes([payload[0], payload[1]]),
        other => panic!("{other:?} instead of a close"),
    }
}

const STRANGER: ([u8; 4], u16) = ([203, 0, 113, 1], 4711);
const PROXY: ([u8; 4], u16) = ([10, 0, 0, 1], 4711);

#[test]
fn a_full_table_takes_in_nobody_but_a_few_whose_requests_are_not_whole_and_the_admin() {
    let mut full = Loop::new(
        &Config {
            max_connections: Some(2),
            ..config(&[
                "--auth=insecure",
                "--proxy-protocol=accept",
                "--trusted-proxies=10.0.0.0/8",
            ])
        },
        1,
    );
    let stranger = SocketAddr::from(STRANGER);
    let half = &UPGRADE_REQUEST.as_bytes()[..50];
    let whole = UPGRADE_REQUEST.as_bytes();
    let taken: Vec<ConnId> = (0..2)
        .map(|_| {
            full.accept(stranger, ListenerKind::Clients, whole)
                .0
                .unwrap()
        })
        .collect();
    full.turn(&[]);
    let text = "no more connections can be taken\n";
    let header = "PROXY TCP4 198.51.100.1 192.0.2.1 4711 443\r\n";
    let get = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let head = "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n";
    let behind_a_proxy = header.to_owned() + UPGRADE_REQUEST;
    let mut refused = 0;
    let mut tell_at_once = |full: &mut Loop| {
        for (peer, request, body) in [
            (STRANGER, UPGRADE_REQUEST, text),
            (STRANGER, get, text),
            (STRANGER, head, ""),
            (PROXY, &*behind_a_proxy, text),
            (PROXY, UPGRADE_REQUEST, text),
        ] {
            let (id, wire) = full.accept(peer.into(), ListenerKind::Clients, request.as_bytes());
            refused += 1;
            assert_eq!(id, None, "{request}: it is closed already");
            assert_eq!(response(&wire), (503, body.to_owned()), "{request}");
            assert!(wire.borrow().to_server.is_empty(), "unread: a reset");
            let metrics = &full.reactor.hub.metrics;
            assert_eq!(metrics.handshakes_refused_full_total, refused);
        }
    };
    for _ in 0..REFUSALS_MAX {
        tell_at_once(&mut full);
    }
    assert_eq!(full.reactor.connections().len(), 2);

    // Not whole, more than whole, or nothing to answer: kept, told, and read to the end.
    let more = UPGRADE_REQUEST.to_owned() + "more";
    let kept: Vec<(ConnId, Wires)> = ["", &header[..20], "nonsense\r\n\r\n", &more]
        .iter()
        .cycle()
        .take(REFUSALS_MAX)
        .map(|bytes| {
            let (id, wire) = full.accept(PROXY.into(), ListenerKind::Clients, bytes.as_bytes());
            (id.unwrap(), wire)
        })
        .collect();
    let dropped = |full: &Loop| full.reactor.hub.metrics.connections_dropped_full_total;
    assert_eq!(dropped(&full), 0);
    let (id, wire) = full.accept(stranger, ListenerKind::Clients, half);
    assert_eq!((id, dropped(&full)), (None, 1));
    assert!(wire.borrow().to_client.is_empty(), "closed without a word");
    full.turn(&[]);
    for (id, wire) in &kept {
        assert_eq!(response(wire), (503, text.to_owned()));
        assert!(full.is_there(*id) && wire.borrow().server_shut);
        wire.borrow_mut().send(b"the rest");
    }
    full.hear(kept.iter().map(|(id, _)| *id));
    assert!(
        kept.iter()
            .all(|(_, wire)| wire.borrow().to_server.is_empty())
    );

    // The admin address has room of its own, in which the newest finds a place; and whole requests are still answered.
    let silent: Vec<ConnId> = (0..2 * ADMIN_CONNECTIONS_MAX)
        .map(|_| {
            let (id, _) = full.accept(stranger, ListenerKind::Admin, b"");
            full.turn(&[]);
            id.unwrap()
        })
        .collect();
    let page = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let (id, wire) = full.accept(stranger, ListenerKind::Admin, page);
    full.turn(&[]);
    assert_eq!(response(&wire), (200, "ok\n".to_owned()));
    let pages: Vec<ConnId> = silent.into_iter().chain(id).collect();
    let are_there = pages.iter().filter(|id| full.is_there(**id)).count();
    assert_eq!(are_there, ADMIN_CONNECTIONS_MAX);
    let metrics = &full.reactor.hub.metrics;
    assert_eq!(
        metrics.admin_connections_evicted_total as usize,
        ADMIN_CONNECTIONS_MAX + 1
    );
    assert_eq!(
        (metrics.admin_connections_refused_total, dropped(&full)),
        (0, 1)
    );
    let (id, wire) = full.accept(stranger, ListenerKind::Clients, UPGRADE_REQUEST.as_bytes());
    assert_eq!((id, response(&wire).0), (None, 503));

    full.wait(LINGER);
    assert!(kept.iter().all(|(id, _)| !full.is_there(*id)), "time is up");
    for page in pages {
        full.reactor.abandon(page, now(full.clock));
    }
    full.turn(&[]);
    assert_eq!(full.reactor.connections().len(), 2);
    full.reactor.abandon(taken[0], now(full.clock));
    full.turn(&[]);
    let (id, wire) = full.accept(stranger, ListenerKind::Clients, UPGRADE_REQUEST.as_bytes());
    full.turn(&[]);
    assert!(id.is_some_and(|id| full.is_there(id)), "a place was free");
    assert_eq!(response(&wire).0, 101);
}

#[test]
fn a_turn_begins_a_few_requests_of_the_admin_address_and_the_next_ones_the_rest() {
    let mut the = Loop::new(&config(&["--auth=insecure"]), 1);
    let page = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let wires: Vec<(ConnId, Wires)> = (0..10)
        .map(|_| {
            let (id, wire) = the.accept(
                STRANGER.into(),
                ListenerKind::Admin,
                page.repeat(2).as_bytes(),
            );
            (id.unwrap(), wire)
        })
        .collect();
    let answers = || -> usize {
        let of = |(_, wire): &(ConnId, Wires)| {
            let bytes = &wire.borrow().to_client;
            bytes.windows(9).filter(|nine| nine == b"HTTP/1.1 ").count()
        };
        wires.iter().map(of).sum()
    };
    let moment = now(the.clock);
    let mut before = 0;
    while before < 20 {
        the.reactor.turn(&[], moment);
        let after = answers();
        assert!(
            (1..=4).contains(&(after - before)),
            "{before}, then {after}"
        );
        before = after;
        let is_pressing = the.reactor.patience(moment) == Duration::ZERO;
        assert!(is_pressing || before == 20, "{before}");
    }
    // Who has gone while its request waited is passed over.
    let gone: Vec<ConnId> = (0..6)
        .map(|_| {
            let (id, _) = the.accept(STRANGER.into(), ListenerKind::Admin, page.as_bytes());
            id.unwrap()
        })
        .collect();
    the.reactor.turn(&[], moment);
    for id in gone {
        the.reactor.abandon(id, moment);
    }
    the.turn(&[]);
    assert_eq!(the.reactor.connections().len(), wires.len());
}

#[test]
fn askers_who_read_a_little_all_the_time_do_not_keep_an_operator_out() {
    let mut the = Loop::new(&config(&["--auth=insecure", "--send-timeout-ms=1000"]), 1);
    let page = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let slow: Vec<(ConnId, Wires)> = (0..ADMIN_CONNECTIONS_MAX)
        .map(|_| {
            let (id, wire) = the.accept(STRANGER.into(), ListenerKind::Admin, page);
            wire.borrow_mut().room = 10;
            (id.unwrap(), wire)
        })
        .collect();
    the.turn(&[]);
    // All wait for answers that have just come.
    let (_, wire) = the.accept(STRANGER.into(), ListenerKind::Admin, page);
    the.turn(&[]);
    assert_eq!(response(&wire).0, 503);
    assert_eq!(the.reactor.hub.metrics.admin_connections_refused_total, 1);
    for _ in 0..20 {
        for (_, wire) in &slow {
            wire.borrow_mut().room = 10;
        }
        the.hear(slow.iter().map(|(id, _)| *id));
        the.wait(Duration::from_millis(100));
    }
    assert!(slow.iter().all(|(id, _)| the.is_there(*id)), "they read");
    let (_, wire) = the.accept(STRANGER.into(), ListenerKind::Admin, page);
    the.turn(&[]);
    assert_eq!(response(&wire).0, 200);
    let there = slow.iter().filter(|(id, _)| the.is_there(*id)).count();
    assert_eq!(there, ADMIN_CONNECTIONS_MAX - 1);
}

#[test]
fn a_full_process_takes_the_places_of_those_who_hold_most_without_finishing_their_handshake() {
    let mut full = Loop::new(
        &Config {
            max_connections: Some(8),
            ..config(&[
                "--auth=insecure",
                "--proxy-protocol=accept",
                "--trusted-proxies=10.0.0.0/8",
            ])
        },
        1,
    );
    let from = |last: u8| SocketAddr::from(([203, 0, 113, last], 4711));
    let (whole, half) = (UPGRADE_REQUEST, &UPGRADE_REQUEST[..50]);
    let proxied = |last: u8| format!("PROXY TCP4 203.0.113.{last} 192.0.2.1 4711 443\r\n{half}");
    // Of the first address three, one of them through a proxy; of the second two; of the third one; and two sessions.
    let mut held: Vec<(ConnId, Wires)> = Vec::new();
    for (peer, bytes) in [
        (from(1), half.to_owned()),
        (from(2), String::new()),
        (PROXY.into(), proxied(1)),
        (from(9), whole.to_owned()),
        (from(2), half.to_owned()),
        (from(3), half.to_owned()),
        (from(9), whole.to_owned()),
        (from(1), half.to_owned()),
    ] {
        let (id, wire) = full.accept(peer, ListenerKind::Clients, bytes.as_bytes());
        full.turn(&[]);
        held.push((id.unwrap(), wire));
    }
    // Who has most gives the oldest, until nobody is left whose handshake is not finished.
    // Of equals the highest address does.
    for (round, evicted) in [0, 1, 2, 5, 4, 7].into_iter().enumerate() {
        let (id, wire) = full.accept(from(100), ListenerKind::Clients, whole.as_bytes());
        full.turn(&[]);
        assert_eq!(response(&wire).0, 101, "round {round}");
        assert!(id.is_some_and(|id| full.is_there(id)));
        let (gone, told) = &held[evicted];
        assert!(!full.is_there(*gone), "round {round}: {evicted} is there");
        assert_eq!(response(told).0, 503, "it is told");
        assert_eq!(full.reactor.connections().len(), 8);
        let evictions = full.reactor.hub.metrics.handshakes_evicted_total;
        assert_eq!(evictions, round as u64 + 1);
    }
    let (id, wire) = full.accept(from(100), ListenerKind::Clients, whole.as_bytes());
    assert_eq!((id, response(&wire).0), (None, 503), "sessions stay");
    // Who is not finished and comes last goes first, if nobody else is.
    full.reactor.abandon(held[3].0, now(full.clock));
    full.turn(&[]);
    let (late, _) = full.accept(from(100), ListenerKind::Clients, half.as_bytes());
    full.turn(&[]);
    let (_, wire) = full.accept(from(50), ListenerKind::Clients, whole.as_bytes());
    full.turn(&[]);
    assert_eq!(response(&wire).0, 101);
    assert!(!full.is_there(late.unwrap()));
}

#[test]
fn a_connection_counts_for_its_address_from_accept_to_end_and_who_is_one_too_many_is_told() {
    const MAX: usize = 5;
    let mut the = Loop::new(
        &Config {
            max_connections_per_ip: Some(MAX),
            ..config(&[
                "--auth=insecure",
                "--proxy-protocol=accept",
                "--trusted-proxies=10.0.0.0/8",
            ])
        },
        1,
    );
    let stranger = SocketAddr::from(STRANGER);
    let (whole, half) = (
        UPGRADE_REQUEST.as_bytes(),
        &UPGRADE_REQUEST.as_bytes()[..50],
    );
    let get = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let held: Vec<(ConnId, Wires)> = (0..MAX)
        .map(|_| {
            let (id, wire) = the.accept(stranger, ListenerKind::Clients, half);
            (id.unwrap(), wire)
        })
        .collect();
    the.turn(&[]);
    // However many come with a whole request, each is answered, and none is kept.
    let header = "PROXY TCP4 203.0.113.1 192.0.2.1 4711 443\r\n";
    let proxied = header.to_owned() + UPGRADE_REQUEST;
    let forwarded = upgrade_with(&["X-Forwarded-For: 203.0.113.1"]);
    for _ in 0..2 * SURPLUS_MAX {
        for (peer, request, status) in [
            (STRANGER, whole, 429),
            (STRANGER, &get[..], 200),
            (PROXY, proxied.as_bytes(), 429),
            (PROXY, forwarded.as_bytes(), 429),
        ] {
            let (id, wire) = the.accept(peer.into(), ListenerKind::Clients, request);
            the.turn(&[]);
            assert_eq!(response(&wire).0, status);
            assert!(id.is_none_or(|id| !the.is_there(id)));
        }
    }
    assert_eq!(the.reactor.connections().len(), MAX);
    assert_eq!(the.reactor.hub.occupancy.surplus(), 0);
    // One whose request is not whole is kept to be told, as long as they are few.
    let kept: Vec<(ConnId, Wires)> = (0..SURPLUS_MAX)
        .map(|number| match number % 3 {
            0 => the.accept(stranger, ListenerKind::Clients, half),
            1 => the.accept(stranger, ListenerKind::Clients, b""),
            _ => the.accept(PROXY.into(), ListenerKind::Clients, header.as_bytes()),
        })
        .map(|(id, wire)| (id.unwrap(), wire))
        .collect();
    the.turn(&[]);
    for (peer, bytes) in [
        (STRANGER, half),
        (STRANGER, b""),
        (PROXY, header.as_bytes()),
    ] {
        let (id, wire) = the.accept(peer.into(), ListenerKind::Clients, bytes);
        the.turn(&[]);
        assert!(id.is_none_or(|id| !the.is_there(id)));
        assert!(wire.borrow().to_client.is_empty(), "without a word");
    }
    let metrics = &the.reactor.hub.metrics;
    assert_eq!(metrics.connections_dropped_ip_total, 3);
    assert_eq!(the.reactor.hub.occupancy.surplus(), SURPLUS_MAX);
    for (number, (id, wire)) in kept.iter().enumerate().skip(1) {
        let rest = if number % 3 == 0 { &whole[50..] } else { whole };
        wire.borrow_mut().send(rest);
        the.hear([*id]);
        assert_eq!(response(wire).0, 429, "{number}");
        assert!(!the.is_there(*id));
    }
    // A place that is free when the request is whole is taken.
    the.reactor.abandon(held[0].0, now(the.clock));
    the.turn(&[]);
    kept[0].1.borrow_mut().send(&whole[50..]);
    the.hear([kept[0].0]);
    assert_eq!(response(&kept[0].1).0, 101);
    assert_eq!(the.reactor.hub.occupancy.surplus(), 0);
    // Who is closed and does not go still counts.
    kept[0].1.borrow_mut().send(&client_frame(0x82, b"binary"));
    the.hear([kept[0].0]);
    assert_eq!(close_code(&kept[0].1), 1003);
    assert_eq!(the.reactor.hub.occupancy.ips().taken(&stranger.ip()), MAX);
    let (_, wire) = the.accept(stranger, ListenerKind::Clients, whole);
    assert_eq!(response(&wire).0, 429);
    kept[0].1.borrow_mut().client_closed = true;
    the.hear([kept[0].0]);
    let (_, wire) = the.accept(stranger, ListenerKind::Clients, whole);
    the.turn(&[]);
    assert_eq!(response(&wire).0, 101);
    // Another address is not concerned.
    let (_, wire) = the.accept(([203, 0, 113, 2], 1).into(), ListenerKind::Clients, whole);
    the.turn(&[]);
    assert_eq!(response(&wire).0, 101);
}

/// A text frame of `length` bytes that lacks its last.
fn unfinished(length: usize) -> Vec<u8> {
    let mut frame = client_frame(0x81, &vec![b' '; length]);
    frame.pop();
    frame
}

#[test]
fn unfinished_messages_are_bounded_in_all_and_of_an_address_that_has_not_authenticated() {
    const MESSAGE: usize = 10_000;
    let of_address = PARTIAL_MESSAGES_PER_ADDRESS_MAX * (MESSAGE + PARTIAL_OVERHEAD_BYTES_MAX);
    let in_all = 3 * of_address;
    let mut the = Loop::new(
        &Config {
            max_message_bytes: Some(MESSAGE),
            max_partials_bytes: Some(in_all),
            ..config(&["--auth=insecure"])
        },
        1,
    );
    let open = |the: &mut Loop, last: u8, token: Option<&str>| {
        let peer = SocketAddr::from(([203, 0, 113, last], 4711));
        let (id, wire) = the.accept(peer, ListenerKind::Clients, UPGRADE_REQUEST.as_bytes());
        the.turn(&[]);
        assert_eq!(response(&wire).0, 101);
        if let Some(token) = token {
            let text = ping_as(token, "authenticated").to_string();
            wire.borrow_mut().send(&client_text(&text));
            the.hear([id.unwrap()]);
            assert_eq!(frames(&wire).len(), 1);
        }
        (id.unwrap(), wire)
    };
    let send = |the: &mut Loop, (id, wire): &(ConnId, Wires), bytes: &[u8]| {
        wire.borrow_mut().send(bytes);
        the.hear([*id]);
    };
    let partial = |the: &Loop| the.reactor.hub.partials.bytes();

    // The largest of the address goes as soon as there is one too many, and a command of the largest size passes.
    let mut held: Vec<(ConnId, Wires)> = Vec::new();
    for number in 0..3 * PARTIAL_MESSAGES_PER_ADDRESS_MAX {
        let one = open(&mut the, 1, None);
        send(&mut the, &one, &unfinished(MESSAGE));
        held.push(one);
        assert!(partial(&the) <= of_address, "{number}: {}", partial(&the));
    }
    let closed = |the: &Loop| the.reactor.hub.metrics.closes_partials_full_total;
    assert!(closed(&the) == 0, "they do not count before they are gone");
    let honest = open(&mut the, 1, None);
    let ping = ping_as(ANY_TOKEN, "honest").to_string();
    let whole = client_text(&format!("{ping:MESSAGE$}"));
    send(&mut the, &honest, &whole[..5_000]);
    send(&mut the, &honest, &whole[5_000..]);
    assert_eq!(frames(&honest.1).len(), 1, "it got its reply");
    let told: Vec<&(ConnId, Wires)> = held
        .iter()
        .filter(|(_, wire)| !wire.borrow().to_client.is_empty())
        .collect();
    assert!(told.len() >= 2 * PARTIAL_MESSAGES_PER_ADDRESS_MAX);
    for (_, wire) in told {
        assert_eq!(close_code(wire), 1008);
    }
    // Those of another address are not concerned, nor is who has authenticated; and requests count as messages do.
    let before = partial(&the);
    let other = open(&mut the, 2, None);
    send(&mut the, &other, &unfinished(MESSAGE));
    let known: Vec<(ConnId, Wires)> = (0..PARTIAL_MESSAGES_PER_ADDRESS_MAX)
        .map(|_| open(&mut the, 1, Some(ANY_TOKEN)))
        .collect();
    for one in &known {
        send(&mut the, one, &unfinished(MESSAGE));
        assert!(the.is_there(one.0) && frames(&one.1).is_empty());
    }
    let kept = partial(&the) - before;
    assert!(kept >= (PARTIAL_MESSAGES_PER_ADDRESS_MAX + 1) * (MESSAGE - 1));
    let request = upgrade_with(&[&format!("X-Padding: {}", "x".repeat(HEAD_BYTES_MAX / 2))]);
    let requests: Vec<(Option<ConnId>, Wires)> = (0..40)
        .map(|_| {
            let peer = SocketAddr::from(([203, 0, 113, 3], 4711));
            let asked = the.accept(
                peer,
                ListenerKind::Clients,
                &request.as_bytes()[..HEAD_BYTES_MAX / 2],
            );
            the.turn(&[]);
            asked
        })
        .collect();
    let gone = |(id, _): &&(Option<ConnId>, Wires)| id.is_none_or(|id| !the.is_there(id));
    assert!(requests.iter().filter(gone).count() >= 40 - of_address / (HEAD_BYTES_MAX / 2));
    // In all, whoever it is: the largest goes.
    for last in 10..30 {
        let one = open(&mut the, last, Some(ANY_TOKEN));
        send(&mut the, &one, &unfinished(MESSAGE / 2));
        assert!(partial(&the) <= in_all, "{}", partial(&the));
        assert!(frames(&one.1).is_empty(), "there were larger ones");
    }
    assert!(known.iter().any(|(_, wire)| close_code(wire) == 1008));
    let sum = the.reactor.connections().iter();
    let sum: usize = sum.map(|(_, one)| one.session.partial_bytes()).sum();
    assert_eq!(partial(&the), sum);
}

#[test]
fn a_session_must_authenticate_within_its_time_to_the_nanosecond() {
    let mut timed = Loop::new(&config(&["--auth=insecure", "--auth-timeout-ms=5000"]), 1);
    let mut open = || {
        let (id, wire) = timed.accept(
            STRANGER.into(),
            ListenerKind::Clients,
            UPGRADE_REQUEST.as_bytes(),
        );
        timed.turn(&[]);
        assert_eq!(response(&wire).0, 101);
        (id.unwrap(), wire)
    };
    let (late, in_time) = (open(), open());
    let tick = Duration::from_nanos(1);
    timed.wait(Duration::from_secs(5) - tick);
    assert!(frames(&late.1).is_empty());
    let text = ping_as(ANY_TOKEN, "in time").to_string();
    in_time.1.borrow_mut().send(&client_text(&text));
    timed.hear([in_time.0]);
    assert_eq!(frames(&in_time.1).len(), 1);
    timed.wait(tick);
    assert_eq!(close_code(&late.1), 1008);
    timed.wait(Duration::from_secs(3600));
    assert!(frames(&in_time.1).is_empty() && timed.is_there(in_time.0));
    assert_eq!(
        timed.reactor.hub.metrics.closes_never_authenticated_total,
        1
    );
}

// The counts under random lives.

const TABLE_MAX: usize = 10;
const PER_IP_MAX: usize = 3;
const PER_ACCOUNT_MAX: usize = 2;
const SUBSCRIPTIONS_MAX: usize = 3;
const METADATA_MAX: usize = 40;
const MESSAGE_MAX: usize = 1000;
const AUTH_TIMEOUT: Duration = Duration::from_secs(4);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
const ACCOUNTS: usize = 3;
/// The last is never on file.
const TOKENS: usize = 6;
const BINDINGS: [&str; 4] = ["call.*.a", "call.*.b", "call.*.c", "call.*.d"];
const GOOD_ORIGIN: &str = "https://good.example";
const SEEDS: u64 = 96;
const STEPS: usize = 400;

fn account(number: usize) -> AccountId {
    AccountId::parse(&format!("{number:032x}")).unwrap()
}

/// What a token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    account: usize,
    is_superduper: bool,
}

/// What a client asks for when it connects.
#[derive(Debug)]
struct Wish {
    network: IpAddr,
    /// Bytes of the request behind which the network is known.
    known_after: usize,
    token: Option<usize>,
    origin: Option<&'static str>,
    is_large: bool,
    request: Vec<u8>,
}

#[derive(Debug)]
enum Life {
    /// Its request is not whole; what is still to be sent.
    Asking { wish: Wish, rest: Vec<u8> },
    Open {
        identity: Option<(usize, Owner)>,
        subscriptions: Vec<(usize, &'static str)>,
    },
    /// Refused, closed, or gone.
    Ended,
}

#[derive(Debug)]
struct One {
    id: ConnId,
    wire: Wires,
    /// When its life, or the part of it before or behind the upgrade, began.
    since: Duration,
    life: Life,
    /// The network that it counts for, from the moment that is known to its very end.
    network: Option<IpAddr>,
    /// It is known, and there was no place.
    is_surplus: bool,
    /// The account that it counts for to its very end.
    account: Option<usize>,
}

struct World {
    rng: Rng,
    the: Loop,
    file: TokenFile,
    owners: Vec<Option<Owner>>,
    clients: Vec<One>,
    next_port: u16,
    /// What clients were told, by the counter that must say the same.
    told: HashMap<&'static str, u64>,
    /// Bindings of the subscriptions that the last judged command ended before it ran.
    ended: Vec<&'static str>,
}

impl World {
    fn new(seed: u64) -> Self {
        let file = TokenFile::new(&json!({}));
        let auth = format!("--auth={}", file.option());
        let config = Config {
            max_connections: Some(TABLE_MAX),
            max_connections_per_ip: Some(PER_IP_MAX),
            max_connections_per_account: Some(PER_ACCOUNT_MAX),
            max_subscriptions: Some(SUBSCRIPTIONS_MAX),
            max_metadata_bytes: Some(METADATA_MAX),
            max_message_bytes: Some(MESSAGE_MAX),
            allowed_origins: vec![GOOD_ORIGIN.to_owned()],
            auth_timeout: AUTH_TIMEOUT,
            request_timeout: REQUEST_TIMEOUT,
            rate_limit_burst: 1_000_000,
            ..config(&[
                &auth,
                "--proxy-protocol=accept",
                "--trusted-proxies=10.0.0.0/8",
            ])
        };
        let mut world = Self {
            rng: Rng::with_seed(seed),
            the: Loop::new(&config, seed),
            file,
            owners: vec![None; TOKENS],
            clients: Vec::new(),
            next_port: 1000,
            told: HashMap::new(),
            ended: Vec::new(),
        };
        world.renew();
        world
    }

    fn step(&mut self) {
        match self.rng.u32(0..100) {
            0..35 => self.connect(),
            35..40 => self.finish_request(),
            40..68 => self.command(),
            68..82 => self.leave(),
            82..88 => self.hang_up(),
            88..92 => self.renew(),
            _ => self.wait(),
        }
        self.check();
        let the = &self.the;
        self.clients.retain(|one| {
            let is_there = the.is_there(one.id);
            assert!(is_there || matches!(one.life, Life::Ended), "{one:?}");
            is_there
        });
    }

    fn told(&mut self, counter: &'static str) {
        *self.told.entry(counter).or_default() += 1;
    }

    fn count(&self, is: impl Fn(&One) -> bool) -> usize {
        let there = self.clients.iter().filter(|one| self.the.is_there(one.id));
        there.filter(|one| is(one)).count()
    }

    fn of_network(&self, wanted: IpAddr) -> usize {
        self.count(|one| one.network == Some(wanted))
    }

    fn of_account(&self, wanted: usize) -> usize {
        self.count(|one| one.account == Some(wanted))
    }

    /// The oldest unfinished handshake of the address that has most; of equals the highest address.
    fn first_to_go(&self) -> Option<usize> {
        let unfinished = || {
            let clients = self.clients.iter().enumerate();
            clients.filter_map(|(index, one)| Some((index, one.unfinished_at()?)))
        };
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        unfinished().for_each(|(_, address)| *counts.entry(address).or_default() += 1);
        let (most, _) = counts.into_iter().max_by_key(|(ip, count)| (*count, *ip))?;
        let mut of_most = unfinished().filter(|(_, address)| *address == most);
        of_most.next().map(|(index, _)| index)
    }

    fn pick(&mut self, is: impl Fn(&Life) -> bool) -> Option<usize> {
        let fit: Vec<usize> = (0..self.clients.len())
            .filter(|index| is(&self.clients[*index].life))
            .collect();
        (!fit.is_empty()).then(|| fit[self.rng.usize(0..fit.len())])
    }

    /// An upgrade request with its peer, from one of four networks: of its own, or through a proxy that tells in
    /// either way.
    fn wish(&mut self) -> (SocketAddr, Wish) {
        let number = self.rng.u8(1..3);
        let (ip, network) = if self.rng.bool() {
            let ip = IpAddr::from([203, 0, 113, number]);
            (ip, ip)
        } else {
            let network = [0x2001, 0xdb8, 0, number.into(), 0, 0, 0, 0];
            let mut ip = network;
            ip[4..].fill_with(|| self.rng.u16(..));
            (IpAddr::from(ip), IpAddr::from(network))
        };
        let token = (self.rng.u32(0..3) > 0).then(|| self.rng.usize(0..TOKENS));
        let origin = match self.rng.u32(0..10) {
            0 => Some("null"),
            1..4 => None,
            _ => Some(GOOD_ORIGIN),
        };
        let is_large = self.rng.u32(0..25) == 0;
        self.next_port += 1;
        let (mut peer, mut header, mut lines) = ((ip, self.next_port), String::new(), Vec::new());
        let mut is_forwarded = false;
        match self.rng.u32(0..3) {
            0 => {}
            1 => {
                peer = (IpAddr::from(PROXY.0), self.next_port);
                let (family, to) = match ip {
                    IpAddr::V4(_) => ("TCP4", "192.0.2.1"),
                    IpAddr::V6(_) => ("TCP6", "2001:db8::1"),
                };
                header = format!("PROXY {family} {ip} {to} {} 443\r\n", self.next_port);
            }
            _ => {
                peer = (IpAddr::from(PROXY.0), self.next_port);
                lines.push(format!("X-Forwarded-For: {ip}"));
                is_forwarded = true;
            }
        }
        lines.extend(token.map(|token| format!("Authorization: Bearer t{token}")));
        lines.extend(origin.map(|origin| format!("Origin: {origin}")));
        lines.extend(is_large.then(|| format!("X-Large: {}", "x".repeat(HEAD_BYTES_MAX))));
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let known_after = header.len();
        let request = (header + &upgrade_with(&lines)).into_bytes();
        let wish = Wish {
            network,
            known_after: if is_forwarded {
                request.len()
            } else {
                known_after
            },
            token,
            origin,
            is_large,
            request,
        };
        (peer.into(), wish)
    }

    fn connect(&mut self) {
        let (peer, wish) = self.wish();
        let cut = if self.rng.u32(0..5) == 0 {
            self.rng.usize(0..wish.request.len().min(100))
        } else {
            wish.request.len()
        };
        let mut beyond = self.the.reactor.connections().len().checked_sub(TABLE_MAX);
        let evicted = beyond.and_then(|_| self.first_to_go());
        let (id, wire) = self
            .the
            .accept(peer, ListenerKind::Clients, &wish.request[..cut]);
        if let Some(index) = evicted {
            beyond = None;
            self.told(r#"connections_dropped_total{reason="evicted"}"#);
            let one = &mut self.clients[index];
            assert_eq!(response(&one.wire).0, 503, "{one:?}");
            assert!(!self.the.is_there(one.id), "{one:?}");
            one.life = Life::Ended;
        }
        let mut one = One {
            // That of nobody, for one that was closed at once.
            id: id.unwrap_or(ConnId {
                slot: u32::MAX,
                generation: u32::MAX,
            }),
            wire,
            since: self.the.clock,
            life: Life::Ended,
            network: None,
            is_surplus: false,
            account: None,
        };
        let Some(beyond) = beyond else {
            if cut >= wish.known_after && cut < wish.request.len() {
                one.is_surplus = self.of_network(wish.network) >= PER_IP_MAX;
                one.network = Some(wish.network).filter(|_| !one.is_surplus);
            }
            one.life = Life::Asking {
                rest: wish.request[cut..].to_vec(),
                wish,
            };
            self.clients.push(one);
            if cut == self.clients.last().map_or(0, |one| one.requested()) {
                self.upgrade(self.clients.len() - 1);
            } else {
                self.the.turn(&[]);
            }
            return;
        };
        if id.is_some() && wish.known_after == 0 {
            // It counts too, though it is kept only to be told.
            one.is_surplus = self.of_network(wish.network) >= PER_IP_MAX;
            one.network = Some(wish.network).filter(|_| !one.is_surplus);
        }
        self.the.turn(&[]);
        let is_whole = cut == wish.request.len() && !wish.is_large;
        if is_whole || beyond < REFUSALS_MAX {
            self.told(r#"handshakes_refused_total{reason="full"}"#);
            assert_eq!(response(&one.wire).0, 503);
            assert_eq!(id.is_none(), is_whole);
        } else {
            assert_eq!(id, None);
            self.told(r#"connections_dropped_total{reason="full"}"#);
        }
        if id.is_some() {
            self.clients.push(one);
        }
    }

    fn finish_request(&mut self) {
        if let Some(index) = self.pick(|life| matches!(life, Life::Asking { .. })) {
            let one = &mut self.clients[index];
            if let Life::Asking { rest, .. } = &mut one.life {
                one.wire.borrow_mut().send(&std::mem::take(rest));
            }
            self.upgrade(index);
        }
    }

    /// The request is whole: it is judged before the loop does it.
    fn upgrade(&mut self, index: usize) {
        let life = std::mem::replace(&mut self.clients[index].life, Life::Ended);
        let Life::Asking { wish, .. } = life else {
            panic!("it asks")
        };
        let is_told = !wish.is_large || wish.known_after < wish.request.len();
        if self.clients[index].network.is_none() && is_told {
            let is_surplus = self.of_network(wish.network) >= PER_IP_MAX;
            let one = &mut self.clients[index];
            one.is_surplus = is_surplus;
            one.network = Some(wish.network).filter(|_| !is_surplus);
        }
        let identity = wish.token.map(|token| (token, self.owners[token]));
        let owner = identity.and_then(|(_, owner)| owner);
        let refusal = if wish.is_large {
            Some((431, "request head is too large", "head"))
        } else if wish.origin.is_some_and(|origin| origin != GOOD_ORIGIN) {
            Some((403, "origin is not allowed", "origin"))
        } else if identity.is_some() && owner.is_none() {
            Some((403, "failed to authenticate token", "token"))
        } else if self.clients[index].is_surplus {
            Some((429, "too many connections from this address", "ip"))
        } else if owner.is_some_and(|owner| self.of_account(owner.account) >= PER_ACCOUNT_MAX) {
            Some((429, "too many sessions of this account", "account"))
        } else {
            None
        };
        let id = self.clients[index].id;
        self.the.hear([id]);
        let answer = response(&self.clients[index].wire);
        if let Some((status, text, counter)) = refusal {
            assert_eq!(answer, (status, format!("{text}\n")), "{wish:?}");
            self.told("handshakes_refused_total");
            let one = &self.clients[index];
            let is_gone = !self.the.is_there(one.id);
            assert!(is_gone || !one.is_surplus, "kept for nothing: {one:?}");
            return self.told(counter);
        }
        assert_eq!(answer, (101, String::new()), "{wish:?}");
        self.told("opened");
        let one = &mut self.clients[index];
        one.since = self.the.clock;
        one.account = owner.map(|owner| owner.account);
        one.life = Life::Open {
            identity: wish.token.zip(owner),
            subscriptions: Vec::new(),
        };
    }

    fn command(&mut self) {
        let Some(index) = self.pick(|life| matches!(life, Life::Open { .. })) else {
            return;
        };
        let token = (self.rng.u32(0..3) > 0).then(|| self.rng.usize(0..TOKENS));
        let metadata = (self.rng.u32(0..4) == 0).then(|| self.rng.usize(37..44));
        let mut wanted = BINDINGS;
        self.rng.shuffle(&mut wanted);
        let wanted = &wanted[..self.rng.usize(0..5)];
        let expected = self.judge(index, token, metadata, wanted);

        let mut command = match &self.clients[index].life {
            Life::Open {
                identity: Some((_, owner)),
                ..
            } if !wanted.is_empty() => {
                let account = account(owner.account).to_string();
                json!({"action": "subscribe", "data": {"account_id": account, "bindings": wanted}})
            }
            _ => json!({"action": "ping"}),
        };
        if let Some(token) = token {
            command["auth_token"] = format!("t{token}").into();
        }
        if let Some(length) = metadata {
            command["metadata"] = "m".repeat(length - 2).into();
        }
        let one = &self.clients[index];
        one.wire
            .borrow_mut()
            .send(&client_text(&command.to_string()));
        let id = one.id;
        self.the.hear([id]);
        let mut frames = frames(&self.clients[index].wire);
        let ended = std::mem::take(&mut self.ended);
        if !ended.is_empty() {
            let (_, notice) = frames.remove(0);
            assert_eq!(notice, ended_notice("identity", &ended), "{command}");
        }
        let [(1, reply)] = &frames[..] else {
            panic!("{frames:?} instead of one reply to {command}")
        };
        let reply: Value = serde_json::from_slice(reply).unwrap();
        match expected {
            Ok(subscribed) if command["action"] == "subscribe" => {
                let listed = success(&reply)["subscribed"].as_array().unwrap();
                assert_eq!(listed.len(), subscribed, "{command}");
            }
            Ok(_) => assert_eq!(success(&reply)["response"], "pong"),
            Err(text) => assert_eq!(errors(&reply), [text], "{command}"),
        }
    }

    /// What a command is answered, and what it makes of the session: its subscriptions then, or the error.
    fn judge(
        &mut self,
        index: usize,
        token: Option<usize>,
        metadata: Option<usize>,
        wanted: &[&'static str],
    ) -> Result<usize, String> {
        let Life::Open { identity, .. } = self.clients[index].life else {
            panic!("it is open")
        };
        if let Some(token) = token.filter(|token| identity.is_none_or(|(own, _)| own != *token)) {
            let Some(owner) = self.owners[token] else {
                return Err("failed to authenticate token".to_owned());
            };
            let is_new = identity.is_none_or(|(_, own)| own.account != owner.account);
            if is_new && self.of_account(owner.account) >= PER_ACCOUNT_MAX {
                self.told(r#"commands_total{result="too_many_sessions"}"#);
                return Err(format!(
                    "too many sessions of this account (max {PER_ACCOUNT_MAX})"
                ));
            }
            self.ended = self.clients[index].become_owner(token, owner);
        } else if identity.is_none() {
            return Err("authentication token required".to_owned());
        }
        let Life::Open {
            identity: Some((_, owner)),
            subscriptions,
            ..
        } = &mut self.clients[index].life
        else {
            panic!("it is authenticated")
        };
        if metadata.is_some_and(|length| length > METADATA_MAX) {
            self.told(r#"commands_total{result="metadata_too_large"}"#);
            return Err(format!("metadata too large (max {METADATA_MAX} bytes)"));
        }
        let mut more = subscriptions.clone();
        for binding in wanted {
            let wanted = (owner.account, *binding);
            if !more.contains(&wanted) {
                more.push(wanted);
            }
        }
        if more.len() > SUBSCRIPTIONS_MAX {
            self.told(r#"commands_total{result="too_many_subscriptions"}"#);
            return Err(format!("too many subscriptions (max {SUBSCRIPTIONS_MAX})"));
        }
        *subscriptions = more;
        Ok(subscriptions.len())
    }

    /// A client goes, or does what ends its session.
    fn leave(&mut self) {
        let Some(index) = self.pick(|life| !matches!(life, Life::Ended)) else {
            return;
        };
        let is_open = matches!(self.clients[index].life, Life::Open { .. });
        let one = &mut self.clients[index];
        one.life = Life::Ended;
        let mut wire = one.wire.borrow_mut();
        let code = match self.rng.u32(0..if is_open { 5 } else { 2 }) {
            0 => {
                wire.is_reset = true;
                None
            }
            1 => {
                wire.client_closed = true;
                None
            }
            2 => {
                wire.send(&client_frame(0x88, &1000_u16.to_be_bytes()));
                Some(1000)
            }
            3 => {
                wire.send(&client_frame(0xC1, b""));
                Some(1002)
            }
            _ => {
                wire.send(&client_frame(0x81, &[b' '; MESSAGE_MAX + 1]));
                Some(1009)
            }
        };
        drop(wire);
        let (id, wire) = (one.id, one.wire.clone());
        self.the.hear([id]);
        match code {
            Some(code) => assert_eq!(close_code(&wire), code),
            None => assert!(!self.the.is_there(id), "nothing is left of it"),
        }
    }

    /// A client whose session is closed already closes its side.
    fn hang_up(&mut self) {
        if let Some(index) = self.pick(|life| matches!(life, Life::Ended)) {
            let one = &self.clients[index];
            one.wire.borrow_mut().client_closed = true;
            let id = one.id;
            self.the.hear([id]);
            assert!(!self.the.is_there(id));
        }
    }

    /// SIGHUP with another token file: tokens come, go and change hands.
    fn renew(&mut self) {
        let mut file = serde_json::Map::new();
        for token in 0..TOKENS - 1 {
            let owner = Owner {
                account: self.rng.usize(0..ACCOUNTS),
                is_superduper: self.rng.u32(0..5) == 0,
            };
            let owner = match self.owners[token] {
                Some(before) if self.rng.u32(0..3) > 0 => Some(before),
                _ => (self.rng.u32(0..4) > 0).then_some(owner),
            };
            self.owners[token] = owner;
            if let Some(owner) = owner {
                file.insert(
                    format!("t{token}"),
                    json!({"account_id": account(owner.account).to_string(),
                        "superduper_admin": owner.is_superduper}),
                );
            }
        }
        self.file.write(&Value::Object(file).to_string());
        self.the
            .reactor
            .hub
            .authenticator
            .reload(blackhole::config::read_tokens, blackhole::config::read_keys)
            .unwrap();
        self.the.reactor.renew_identities();
        self.the.turn(&[]);
        for index in 0..self.clients.len() {
            let one = &mut self.clients[index];
            let Life::Open {
                identity: Some((token, _)),
                ..
            } = one.life
            else {
                continue;
            };
            match self.owners[token] {
                Some(owner) => {
                    let ended = one.become_owner(token, owner);
                    let told = frames(&one.wire);
                    let expected = (!ended.is_empty()).then(|| (1, ended_notice("rights", &ended)));
                    assert_eq!(told, expected.into_iter().collect::<Vec<_>>());
                }
                None => {
                    assert_eq!(close_code(&one.wire), 4401);
                    one.life = Life::Ended;
                }
            }
        }
    }

    fn wait(&mut self) {
        let most = if self.rng.bool() { 200 } else { 3000 };
        let time = self.rng.u64(0..most);
        self.the.wait(Duration::from_millis(time));
        for index in 0..self.clients.len() {
            let one = &mut self.clients[index];
            let age = self.the.clock - one.since;
            match one.life {
                Life::Open { identity: None, .. } if age >= AUTH_TIMEOUT => {
                    assert_eq!(close_code(&one.wire), 1008);
                    one.life = Life::Ended;
                    self.told("never authenticated");
                }
                Life::Asking { .. } if age >= REQUEST_TIMEOUT => {
                    assert!(!self.the.is_there(one.id));
                    one.life = Life::Ended;
                    self.told(r#"connections_dropped_total{reason="handshake_timeout"}"#);
                }
                _ => {}
            }
        }
    }

    /// The loop counts as the model does.
    fn check(&self) {
        let hub = &self.the.reactor.hub;
        let (mut networks, mut accounts) = (HashMap::new(), HashMap::new());
        let mut all = 0;
        let there = |one: &&One| self.the.is_there(one.id);
        for one in self.clients.iter().filter(there) {
            if let Some(network) = one.network {
                *networks.entry(network).or_insert(0) += 1;
            }
            if let Some(number) = one.account {
                *accounts.entry(account(number)).or_insert(0) += 1;
            }
            if let Life::Open { subscriptions, .. } = &one.life {
                assert!(frames(&one.wire).is_empty(), "nobody asked {one:?}");
                all += subscriptions.len();
            }
        }
        assert_eq!(hub.occupancy.surplus(), self.count(|one| one.is_surplus));
        for (network, count) in &networks {
            assert_eq!(hub.occupancy.ips().taken(network), *count, "{network}");
            assert!(*count <= PER_IP_MAX);
        }
        for (account, count) in &accounts {
            assert_eq!(hub.occupancy.accounts().taken(account), *count, "{account}");
        }
        assert_eq!(
            (
                hub.occupancy.ips().kinds(),
                hub.occupancy.accounts().kinds()
            ),
            (networks.len(), accounts.len())
        );
        assert_eq!(hub.subscriptions.index().counts().subscriptions, all);
        let beyond = self.the.reactor.connections().len().max(TABLE_MAX) - TABLE_MAX;
        assert!(beyond <= REFUSALS_MAX);
        let metrics = &hub.metrics;
        for (told, counted) in [
            ("opened", metrics.sessions_opened_total),
            (
                r#"handshakes_refused_total{reason="full"}"#,
                metrics.handshakes_refused_full_total,
            ),
            (
                r#"connections_dropped_total{reason="full"}"#,
                metrics.connections_dropped_full_total,
            ),
            (
                r#"connections_dropped_total{reason="evicted"}"#,
                metrics.handshakes_evicted_total,
            ),
            ("none", metrics.connections_dropped_ip_total),
            (
                "handshakes_refused_total",
                metrics.handshakes_refused_total() - metrics.handshakes_refused_full_total,
            ),
            ("ip", metrics.handshakes_refused_ip_total),
            ("account", metrics.handshakes_refused_account_total),
            ("origin", metrics.handshakes_refused_origin_total),
            ("token", metrics.handshakes_refused_token_total),
            ("head", metrics.handshakes_refused_head_total),
            (
                r#"connections_dropped_total{reason="handshake_timeout"}"#,
                metrics.handshake_timeouts_total,
            ),
            (
                r#"commands_total{result="too_many_sessions"}"#,
                metrics.commands.of_result(CommandResult::TooManySessions),
            ),
            (
                r#"commands_total{result="too_many_subscriptions"}"#,
                metrics
                    .commands
                    .of_result(CommandResult::TooManySubscriptions),
            ),
            (
                r#"commands_total{result="metadata_too_large"}"#,
                metrics.commands.of_result(CommandResult::MetadataTooLarge),
            ),
        ] {
            assert_eq!(counted, self.told.get(told).copied().unwrap_or(0), "{told}");
        }
    }

    /// Everybody goes in their own way: nothing is left of anybody.
    fn end(&mut self) {
        for one in &self.clients {
            let mut wire = one.wire.borrow_mut();
            match self.rng.u32(0..3) {
                0 => wire.is_reset = true,
                1 => wire.client_closed = true,
                _ => wire.send(&client_frame(0xC1, b"")),
            }
        }
        let ids: Vec<ConnId> = self.clients.iter().map(|one| one.id).collect();
        self.the.hear(ids);
        self.the.wait(Duration::from_secs(60));
        let hub = &self.the.reactor.hub;
        assert_eq!(
            (
                hub.occupancy.ips().kinds(),
                hub.occupancy.accounts().kinds()
            ),
            (0, 0)
        );
        assert_eq!(hub.occupancy.surplus(), 0);
        assert_eq!(self.the.reactor.connections().len(), 0);
        assert_eq!(hub.subscriptions.index().counts(), IndexCounts::default());
        assert_eq!(
            hub.subscriptions.broker().counts(),
            BindingCounts::default()
        );
        assert_eq!(hub.deadlines.next_due(), None);
        let metrics = &hub.metrics;
        assert_eq!(metrics.sessions_opened_total, metrics.closes_total());
        assert_eq!(
            metrics.closes_never_authenticated_total,
            self.told.get("never authenticated").copied().unwrap_or(0)
        );
    }
}

impl One {
    /// Bytes of its whole request.
    fn requested(&self) -> usize {
        match &self.life {
            Life::Asking { wish, .. } => wish.request.len(),
            Life::Open { .. } | Life::Ended => 0,
        }
    }

    /// The address that its unfinished handshake is counted for, if it has one.
    fn unfinished_at(&self) -> Option<IpAddr> {
        match &self.life {
            Life::Asking { wish, rest } => {
                let is_known = wish.request.len() - rest.len() >= wish.known_after;
                Some(if is_known {
                    wish.network
                } else {
                    PROXY.0.into()
                })
            }
            Life::Open { .. } | Life::Ended => None,
        }
    }

    /// It speaks for `owner` from now on, and keeps only what that may see. Returns what it does not keep.
    fn become_owner(&mut self, token: usize, owner: Owner) -> Vec<&'static str> {
        let Life::Open {
            identity,
            subscriptions,
            ..
        } = &mut self.life
        else {
            return Vec::new();
        };
        *identity = Some((token, owner));
        self.account = Some(owner.account);
        let stays = |account: usize| owner.is_superduper || account == owner.account;
        let ended = subscriptions.iter().filter(|(account, _)| !stays(*account));
        let ended = ended.map(|(_, binding)| *binding).collect();
        subscriptions.retain(|(account, _)| stays(*account));
        ended
    }
}

/// The notice of these subscriptions' end.
fn ended_notice(reason: &str, bindings: &[&str]) -> Vec<u8> {
    let bindings = json!(bindings);
    format!(
        r#"{{"action":"notice","name":"subscriptions_ended","data":{{"reason":"{reason}","bindings":{bindings}}}}}"#
    )
    .into_bytes()
}

#[test]
fn counts_of_sessions_never_leak_whatever_becomes_of_them() {
    let told = under_seeds(SEEDS, |seed| {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.end();
        world.told
    });
    let mut all: HashMap<&str, u64> = HashMap::new();
    for (counter, count) in told.iter().flatten() {
        *all.entry(counter).or_default() += count;
    }
    println!("{all:?}");
    if told.len() > 1 {
        for counter in [
            "opened",
            r#"handshakes_refused_total{reason="full"}"#,
            "ip",
            "account",
            "origin",
            "token",
            "head",
            r#"connections_dropped_total{reason="evicted"}"#,
            r#"connections_dropped_total{reason="handshake_timeout"}"#,
            "never authenticated",
            r#"commands_total{result="too_many_sessions"}"#,
            r#"commands_total{result="too_many_subscriptions"}"#,
            r#"commands_total{result="metadata_too_large"}"#,
        ] {
            assert!(all[counter] > 50, "{counter} was hardly tried: {all:?}");
        }
    }
}
