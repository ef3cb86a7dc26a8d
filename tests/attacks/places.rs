//! Connections that are no sessions: requests begun and never finished, sessions that the server has closed and whose
//! peers stay. They count for their address like sessions do, and take nobody else's place.

use std::net::SocketAddr;
use std::time::Duration;

use crate::judge::alone;
use support::client::{ANY_TOKEN, Peek, Raw, ping_as};
use support::server::Server;
use support::wire::UPGRADE_REQUEST;

/// Places in all, and of one address.
const LIMITS: [&str; 4] = ["--max-connections", "100", "--max-connections-per-ip", "5"];

/// Honest sessions, each from an address of its own.
const HONEST: u8 = 50;

/// Connections that an attacker begins before each honest one: more than there are places, all in all.
const BEGUN: usize = 10;

const UNFINISHED: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n";

/// The proxy that the clients of a test come through, and what is in front of everything that one of them sends.
type Way = fn(client: [u8; 4]) -> (Option<[u8; 4]>, String);

/// From an address of its own.
fn directly(_client: [u8; 4]) -> (Option<[u8; 4]>, String) {
    (None, String::new())
}

/// Through a TCP balancer that tells the address.
fn through_a_proxy(client: [u8; 4]) -> (Option<[u8; 4]>, String) {
    let [a, b, c, d] = client;
    let header = format!("PROXY TCP4 {a}.{b}.{c}.{d} 127.0.0.1 4711 5555\r\n");
    (Some([127, 0, 0, 9]), header)
}

fn connect(server: &Server, way: Way, client: [u8; 4], bytes: &[u8]) -> Raw {
    let (proxy, header) = way(client);
    let mut raw = Raw::connect_from(proxy.unwrap_or(client), server.address());
    raw.try_send_behind(header.as_bytes(), bytes);
    raw
}

/// What [`HONEST`] addresses get, each of which connects between attacks: 101, and an answer to a ping.
fn assert_served(server: &Server, way: Way, mut attack: impl FnMut()) {
    let mut statuses = Vec::new();
    let mut sessions: Vec<Raw> = (0..HONEST)
        .map(|number| {
            attack();
            let mut raw = connect(
                server,
                way,
                [127, 0, 100, number],
                UPGRADE_REQUEST.as_bytes(),
            );
            statuses.push(raw.head().status);
            raw
        })
        .collect();
    let refused = statuses.iter().filter(|status| **status != 101).count();
    println!("{refused} of {HONEST} honest connects refused");
    assert_eq!(refused, 0, "{statuses:?}");
    for session in &mut sessions {
        session.send_text(&ping_as(ANY_TOKEN, "still here").to_string());
        assert_eq!(session.json()["data"]["response"], "pong");
    }
}

fn requests_of_one_address_that_are_never_finished(way: Way, args: &[&str]) {
    let server = Server::demo(args);
    let mut begun = Vec::new();
    assert_served(&server, way, || {
        begun.extend((0..BEGUN).map(|_| connect(&server, way, [127, 0, 66, 6], UNFINISHED)));
    });
}

#[test]
fn requests_of_one_address_that_are_never_finished_take_no_place_of_others() {
    let _alone = alone();
    requests_of_one_address_that_are_never_finished(directly, &LIMITS);
}

#[test]
fn nor_do_they_where_an_address_has_no_limit() {
    let _alone = alone();
    requests_of_one_address_that_are_never_finished(directly, &LIMITS[..2]);
}

#[test]
fn nor_do_they_behind_a_proxy() {
    let _alone = alone();
    let trusting = ["--proxy-protocol", "required", "--trusted-proxies"];
    requests_of_one_address_that_are_never_finished(
        through_a_proxy,
        &[&LIMITS[..], &trusting, &["127.0.0.9"]].concat(),
    );
}

#[test]
fn requests_of_many_addresses_that_are_never_finished_take_no_place_of_others() {
    let _alone = alone();
    let server = Server::demo(&LIMITS);
    let (mut begun, mut next) = (Vec::new(), 0);
    // No address begins more than it may.
    assert_served(&server, directly, || {
        begun.extend((0..BEGUN).map(|_| {
            next += 1;
            connect(&server, directly, [127, 0, 66, next / 5], UNFINISHED)
        }));
        // The oldest are out; the numbers of addresses are used again.
        next %= 250;
    });
}

#[test]
fn sessions_that_were_closed_and_stay_take_no_place_of_others() {
    let _alone = alone();
    let server = Server::demo(&LIMITS);
    let mut left = Vec::new();
    assert_served(&server, directly, || {
        for _ in 0..BEGUN {
            let mut raw = connect(
                &server,
                directly,
                [127, 0, 66, 7],
                UPGRADE_REQUEST.as_bytes(),
            );
            // Closed for a binary message if there was a place for it; the close is not answered.
            raw.try_send(&support::wire::client_frame(0x82, b"binary"));
            raw.peek(Duration::from_secs(1));
            left.push(raw);
        }
    });
}

#[test]
fn answered_requests_whose_peers_stay_take_no_place_of_others() {
    let _alone = alone();
    let server = Server::demo(&LIMITS);
    let mut left = Vec::new();
    assert_served(&server, directly, || {
        for _ in 0..BEGUN {
            left.push(connect(
                &server,
                directly,
                [127, 0, 66, 8],
                b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n",
            ));
        }
    });
}

/// The limit of an address is its limit, whatever its connections are.
#[test]
fn an_address_has_no_more_connections_than_it_may_whatever_they_are() {
    let _alone = alone();
    let server = Server::demo(&LIMITS);
    let address: SocketAddr = server.address();
    let own = [127, 0, 66, 9];
    let mut sessions: Vec<Raw> = (0..5)
        .map(|_| connect(&server, directly, own, UPGRADE_REQUEST.as_bytes()))
        .collect();
    for session in &mut sessions {
        assert_eq!(session.head().status, 101);
    }
    let mut sixth = Raw::connect_from(own, address);
    sixth.send(UPGRADE_REQUEST.as_bytes());
    assert_eq!(sixth.head().status, 429);
    // Closed, not gone: the place is not free before its end.
    sessions[0].send_frame(0x82, b"binary");
    assert_eq!(sessions[0].frame().0, 8);
    let mut early = Raw::connect_from(own, address);
    early.send(UPGRADE_REQUEST.as_bytes());
    assert_eq!(early.head().status, 429);
    drop(sessions.remove(0));
    server.until("a place is free", |_| {
        let mut late = Raw::connect_from(own, address);
        late.send(UPGRADE_REQUEST.as_bytes());
        late.head().status == 101
    });
    for session in &mut sessions {
        assert_eq!(session.peek(Duration::from_millis(1)), Peek::Nothing);
    }
}
