//! Clients behind proxies: PROXY headers, `X-Forwarded-For` and `Forwarded`, over real sockets; and every cut of
//! what a proxy sends, fed to a session. The proxies are on 127.0.0.1; 127.0.0.9 is somebody else.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use blackhole::config::{Startup, from_args};
use blackhole::protocol::proxy::Preamble;
use blackhole::routing::families::{Families, FamilyOptions};
use blackhole::session::Session;
use blackhole::session::clock::Now;
use blackhole::session::hub::Hub;
use blackhole::session::id::{ConnId, Peer};
use blackhole::session::limits::SessionLimits;

use support::client::{ANY_TOKEN, Peek, Raw, Response, ping_as, upgrade_with};
use support::server::{PATIENCE, Server, wait_for};
use support::wire::{UPGRADE_REQUEST, client_text};

const V1: &[u8] = b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n";
const V1_IPV6: &[u8] = b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n";
/// 203.0.113.7:4711, with a value behind the addresses.
const V2: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x11\xCB\0\x71\x07\xC0\0\x02\x01\x12\x67\x01\xBB\x04\0\x02xx";
/// The same with a checksum.
const V2_SUMMED: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13\xCB\0\x71\x07\xC0\0\x02\x01\x12\x67\x01\xBB\x03\0\x04\xE6\x4B\x5E\x87";
/// The same with another source and that checksum.
const V2_BADLY_SUMMED: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13\xCB\0\x71\x08\xC0\0\x02\x01\x12\x67\x01\xBB\x03\0\x04\xE6\x4B\x5E\x87";
const V2_LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
const MALFORMED: &[u8] = b"PROXY TCP4 203.0.113.7 192.0.2.1 4711\r\n";

const ELSEWHERE: [u8; 4] = [127, 0, 0, 9];

const PROBE: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";

fn start(args: &[&str]) -> Server {
    let fixed = [
        "--source",
        "demo",
        "--auth",
        "insecure",
        "--log-level",
        "debug",
        "--trusted-proxies",
        "127.0.0.1",
    ];
    Server::start(&[&fixed, args].concat())
}

/// Sends `bytes`. A proxy's header at their start stands in clear, and what is behind it is the client's.
fn send(raw: &mut Raw, bytes: &[&[u8]]) {
    let is_header = |part: &&&[u8]| part.starts_with(b"PROXY ") || part.starts_with(&V2[..12]);
    let (header, rest) = bytes.split_at(bytes.first().filter(is_header).iter().len());
    raw.try_send_behind(&header.concat(), &rest.concat());
}

/// Sends `bytes` and expects to be upgraded.
fn upgraded(mut raw: Raw, bytes: &[&[u8]]) -> Raw {
    send(&mut raw, bytes);
    assert_eq!(raw.head().status, 101);
    raw
}

fn refused(mut raw: Raw, bytes: &[&[u8]]) -> Response {
    send(&mut raw, bytes);
    raw.last_response()
}

fn is_closed_without_a_word(mut raw: Raw, bytes: &[&[u8]]) {
    send(&mut raw, bytes);
    assert_eq!(raw.peek(PATIENCE), Peek::Ended);
}

/// The session of `raw` works, and the log knows it by `id`.
fn is_session(server: &Server, mut raw: Raw, id: &str) {
    raw.send_text(&ping_as(ANY_TOKEN, "1").to_string());
    assert_eq!(raw.json()["data"]["response"], "pong");
    drop(raw);
    server.wait_for_log(&format!("session {id} ended"));
}

#[test]
fn a_proxy_header_makes_its_source_the_session_id() {
    for mode in ["accept", "required"] {
        for (header, id) in [
            (V1, "203.0.113.7:4711"),
            (V1_IPV6, "[2001:db8::7]:4711"),
            (V2, "203.0.113.7:4711"),
            (V2_SUMMED, "203.0.113.7:4711"),
        ] {
            let server = start(&["--proxy-protocol", mode]);
            let raw = Raw::connect(server.address());
            let raw = upgraded(raw, &[header, UPGRADE_REQUEST.as_bytes()]);
            is_session(&server, raw, id);
            assert_eq!(server.metric("proxy_headers_total"), 1);
        }
    }
}

#[test]
fn a_proxy_header_that_drips_is_gathered_and_one_that_never_ends_is_cut_off() {
    let server = start(&[
        "--proxy-protocol",
        "required",
        "--request-timeout-ms",
        "3000",
    ]);
    let mut raw = Raw::connect(server.address());
    for byte in V2 {
        raw.try_send_behind(&[*byte], b"");
    }
    for byte in UPGRADE_REQUEST.bytes() {
        raw.send(&[byte]);
    }
    assert_eq!(raw.head().status, 101);
    is_session(&server, raw, "203.0.113.7:4711");
    is_closed_without_a_word(Raw::connect_plainly(server.address()), &[&V2[..20]]);
    assert_eq!(
        server.metric(r#"connections_dropped_total{reason="handshake_timeout"}"#),
        1
    );
}

#[test]
fn a_header_without_an_address_leaves_the_connections_own() {
    let server = start(&["--proxy-protocol", "required"]);
    let unix = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\xD8"[..], &[b'/'; 216]].concat();
    for header in [V2_LOCAL, b"PROXY UNKNOWN\r\n", &unix] {
        server.wait_for_metric("source_up", 1);
        let answer = refused(Raw::connect(server.address()), &[header, PROBE]);
        assert_eq!(answer.status, 200, "a balancer's health check");
        // Whose bytes these are the header does not tell, so what they say of themselves does not count.
        let claim = upgrade_with(&["X-Forwarded-For: 198.51.100.1"]);
        let raw = upgraded(Raw::connect(server.address()), &[header, claim.as_bytes()]);
        drop(raw);
    }
    server.wait_for_metric("sessions", 0);
    assert!(
        server
            .wait_for_log("connection lost")
            .contains("session 127.0.0.1:")
    );
    assert!(!server.log().contains("198.51.100.1"), "{}", server.log());
}

#[test]
fn required_refuses_strangers_and_proxies_that_do_not_say_for_whom() {
    let server = start(&["--proxy-protocol", "required"]);
    is_closed_without_a_word(
        Raw::connect_from(ELSEWHERE, server.address()),
        &[V1, UPGRADE_REQUEST.as_bytes()],
    );
    server.wait_for_log("closed: not one of trusted_proxies");
    assert_eq!(
        server.metric(r#"connections_dropped_total{reason="untrusted_proxy"}"#),
        1
    );

    let connect = || Raw::connect(server.address());
    is_closed_without_a_word(connect(), &[UPGRADE_REQUEST.as_bytes()]);
    is_closed_without_a_word(connect(), &[MALFORMED, UPGRADE_REQUEST.as_bytes()]);
    is_closed_without_a_word(connect(), &[V2_BADLY_SUMMED, UPGRADE_REQUEST.as_bytes()]);
    let too_long = [&V2[..14], b"\xFF\xFF"].concat();
    is_closed_without_a_word(connect(), &[&too_long]);
    assert_eq!(
        server.metric(r#"connections_dropped_total{reason="proxy_header_missing"}"#),
        1
    );
    assert_eq!(
        server.metric(r#"connections_dropped_total{reason="proxy_header_malformed"}"#),
        3
    );
    assert_eq!(server.metric("sessions_opened_total"), 0);
    assert_eq!(server.metric("proxy_headers_total"), 0);
    assert_eq!(server.page("/healthz").0, 200, "admin pages need no header");
}

#[test]
fn accept_takes_proxies_without_a_header_and_strangers_without_one_only() {
    let server = start(&["--proxy-protocol", "accept"]);
    drop(upgraded(
        Raw::connect(server.address()),
        &[UPGRADE_REQUEST.as_bytes()],
    ));
    let stranger = || Raw::connect_from(ELSEWHERE, server.address());
    drop(upgraded(stranger(), &[UPGRADE_REQUEST.as_bytes()]));
    for header in [V1, V1_IPV6, V2, V2_LOCAL, b"PROXY UNKNOWN\r\n"] {
        // In clear, before all TLS.
        let answer = refused(stranger().plainly(), &[header, UPGRADE_REQUEST.as_bytes()]);
        assert_eq!(
            (answer.status, &*answer.body),
            (400, "no PROXY header is taken from this address\n"),
            "{}",
            header.escape_ascii()
        );
    }
    is_closed_without_a_word(Raw::connect(server.address()), &[MALFORMED]);
    assert_eq!(server.metric("proxy_headers_untrusted_total"), 5);
    assert_eq!(
        server.metric(r#"connections_dropped_total{reason="proxy_header_malformed"}"#),
        1
    );
    // Nobody else is known yet than the proxy, which has to be set right.
    let told = server.wait_for_log("closed: malformed PROXY header");
    assert!(told.contains("session 127.0.0.1:"), "{told}");
    assert!(!server.log().contains("203.0.113.7"), "{}", server.log());
}

#[test]
fn a_client_cannot_hide_behind_a_second_header_of_its_own() {
    let server = start(&["--proxy-protocol", "required"]);
    for first in [V1, V2_LOCAL] {
        let second = b"PROXY TCP4 198.51.100.1 192.0.2.1 1 2\r\n";
        let raw = Raw::connect(server.address());
        let answer = refused(raw, &[first, second, UPGRADE_REQUEST.as_bytes()]);
        assert_eq!(answer.status, 400, "{}", first.escape_ascii());
    }
    assert_eq!(server.metric("proxy_headers_total"), 2);
    assert!(!server.log().contains("198.51.100.1"), "{}", server.log());
}

#[test]
fn off_refuses_every_proxy_header() {
    let server = start(&[]);
    for header in [V1, V2] {
        let answer = refused(
            Raw::connect_plainly(server.address()),
            &[header, UPGRADE_REQUEST.as_bytes()],
        );
        assert_eq!(answer.status, 400);
    }
    assert_eq!(server.metric("proxy_headers_untrusted_total"), 2);
}

#[test]
fn the_limit_of_one_address_counts_whom_the_proxy_names() {
    let server = start(&[
        "--proxy-protocol",
        "accept",
        "--max-connections-per-ip",
        "1",
    ]);
    let request = UPGRADE_REQUEST.as_bytes();
    let connect = || Raw::connect(server.address());
    let one = upgraded(connect(), &[V1, request]);
    let other_port = b"PROXY TCP4 203.0.113.7 192.0.2.1 4712 443\r\n";
    assert_eq!(refused(connect(), &[other_port, request]).status, 429);
    let forwarded = upgrade_with(&["X-Forwarded-For: 203.0.113.7"]);
    assert_eq!(refused(connect(), &[forwarded.as_bytes()]).status, 429);
    let same_network = upgrade_with(&["X-Forwarded-For: 2001:db8::8"]);
    let six = upgraded(connect(), &[V1_IPV6, request]);
    assert_eq!(refused(connect(), &[same_network.as_bytes()]).status, 429);
    let proxy = upgraded(connect(), &[request]);
    assert_eq!(server.metric("counted_ips"), 3);
    drop((one, six, proxy));
    server.wait_for_metric("counted_ips", 0);
    drop(upgraded(Raw::connect(server.address()), &[V1, request]));
}

#[test]
fn forwarding_headers_count_from_trusted_proxies_only() {
    let server = start(&[]);
    for lines in [
        &["X-Forwarded-For: 6.6.6.6, 198.51.100.1:99"][..],
        &["Forwarded: for=6.6.6.6, for=\"198.51.100.1:99\""],
    ] {
        let request = upgrade_with(lines);
        let raw = upgraded(Raw::connect(server.address()), &[request.as_bytes()]);
        is_session(&server, raw, "198.51.100.1:99");
        let raw = Raw::connect_from(ELSEWHERE, server.address());
        drop(upgraded(raw, &[request.as_bytes()]));
    }
    wait_for("both strangers in the log", || {
        (server.log().matches("session 127.0.0.9:").count() == 2).then_some(())
    });
    assert_eq!(server.metric("forwarded_peers_total"), 2);
    assert!(!server.log().contains("6.6.6.6"), "{}", server.log());

    let clash = upgrade_with(&["X-Forwarded-For: 6.6.6.6", "Forwarded: for=198.51.100.1"]);
    let answer = refused(Raw::connect(server.address()), &[clash.as_bytes()]);
    assert_eq!(
        (answer.status, &*answer.body),
        (400, "Forwarded and X-Forwarded-For disagree\n")
    );
}

#[test]
fn behind_a_balancer_the_forwarding_headers_of_the_client_it_names_do_not_count() {
    let server = start(&[
        "--proxy-protocol",
        "required",
        "--trusted-proxies",
        "10.0.0.0/8",
    ]);
    let request = upgrade_with(&["X-Forwarded-For: 198.51.100.1"]);
    let raw = upgraded(Raw::connect(server.address()), &[V1, request.as_bytes()]);
    is_session(&server, raw, "203.0.113.7:4711");
    // But those of a trusted proxy that it names do, with the port of that proxy's connection.
    let inner = b"PROXY TCP4 10.1.1.1 192.0.2.1 5000 443\r\n";
    let raw = upgraded(Raw::connect(server.address()), &[inner, request.as_bytes()]);
    is_session(&server, raw, "198.51.100.1:5000");
}

#[test]
fn header_head_and_frames_cut_anywhere_make_the_same_session() {
    let line = [
        "blackhole",
        "--auth=insecure",
        "--source=demo",
        "--trusted-proxies=127.0.0.1",
    ];
    let Startup::Run(config) = from_args(line.into_iter().map(OsString::from)).unwrap();
    let families = Families::new(&FamilyOptions::default()).unwrap();
    let authenticator = config.authenticator().unwrap();
    let now = Now {
        clock: Duration::ZERO,
        unix_ms: 1_700_000_000_000,
    };
    let mut hub = Hub::new(
        SessionLimits::from(&config),
        authenticator,
        families,
        now,
        1,
    );
    let id = ConnId {
        slot: 0,
        generation: 0,
    };
    let command = client_text(&ping_as(ANY_TOKEN, "1").to_string());
    let claim = upgrade_with(&["X-Forwarded-For: 198.51.100.1"]);
    for (preamble, header, expected) in [
        (Preamble::Required, V1, "203.0.113.7:4711"),
        (Preamble::Required, V1_IPV6, "[2001:db8::7]:4711"),
        (Preamble::Required, V2, "203.0.113.7:4711"),
        (Preamble::Optional, V2, "203.0.113.7:4711"),
        (Preamble::Optional, V2_LOCAL, "127.0.0.1:9"),
        (Preamble::Optional, b"", "198.51.100.1:9"),
        (Preamble::Optional, b"\r\n\r\n", "198.51.100.1:9"),
        (Preamble::Done, b"", "198.51.100.1:9"),
    ] {
        let bytes = [header, claim.as_bytes(), &command].concat();
        let mut feed = |pieces: Vec<&[u8]>| {
            let peer = Peer::from(SocketAddr::from(([127, 0, 0, 1], 9)));
            let mut session = Session::new(preamble, peer, Duration::ZERO, &mut hub);
            let before = hub.metrics.commands.total();
            for piece in &pieces {
                assert_eq!(
                    session.on_bytes(&mut piece.to_vec(), &mut hub.context(id, now)),
                    None
                );
            }
            let cut = pieces[0].len();
            assert!(session.is_open(), "{}: cut at {cut}", header.escape_ascii());
            assert_eq!(session.peer(&hub).to_string(), expected, "cut at {cut}");
            assert_eq!(hub.metrics.commands.total(), before + 1, "cut at {cut}");
            session.on_end(true, &mut hub.context(id, now));
            session.dissolve(&mut hub);
            assert!(hub.peers.is_empty());
        };
        for cut in 0..=bytes.len() {
            let (one, other) = bytes.split_at(cut);
            feed(vec![one, other]);
        }
        feed(bytes.chunks(1).collect());
    }
}
