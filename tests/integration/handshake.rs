//! The HTTP side of the websocket port, over real sockets (PROTOCOL 2).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use support::client::{
    ANY_TOKEN, Client, Peek, Raw, Response, errors, ping, ping_as, subscribe, upgrade_with,
};
use support::events::{ACCOUNT, OTHER_ACCOUNT};
use support::server::{Fed, Server, TokenFile, dead_address, wait_for};
use support::tls::plain_only;
use support::wire::{UPGRADE_REQUEST, client_text};

fn ask(server: &Server, request: &str) -> Response {
    let mut raw = Raw::connect(server.address());
    raw.send(request.as_bytes());
    raw.last_response()
}

/// What a balancer asks.
fn probe(server: &Server, method: &str) -> Response {
    ask(server, &format!("{method} / HTTP/1.1\r\nHost: h\r\n\r\n"))
}

#[test]
fn any_path_is_upgraded_with_the_accept_key_of_the_rfc() {
    let server = Server::demo(&[]);
    for target in [
        "/",
        "/socket/any.path?with=query&style=kazoo",
        "/?style=piston",
    ] {
        let mut raw = Raw::connect(server.address());
        raw.send(
            UPGRADE_REQUEST
                .replacen("GET /", &format!("GET {target}"), 1)
                .as_bytes(),
        );
        let response = raw.head();
        assert_eq!(response.status, 101, "{target}");
        assert_eq!(
            response.header("sec-websocket-accept"),
            Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
        );
        assert_eq!(response.header("upgrade"), Some("websocket"));
        assert_eq!(response.header("connection"), Some("Upgrade"));
        raw.send_text(&ping_as(ANY_TOKEN, "1").to_string());
        assert_eq!(raw.json()["data"]["response"], "pong");
    }
}

#[test]
fn every_refusal_has_its_status_its_line_and_its_headers_and_ends_the_connection() {
    let server = Server::demo(&[]);
    let swapped = |from: &str, to: &str| UPGRADE_REQUEST.replacen(from, to, 1);
    let long = upgrade_with(&[&format!("X-Long: {}", "x".repeat(8 * 1024))]);
    let many = upgrade_with(&["X-Many: 1"; 80]);
    let of_400 = [
        (
            "no HTTP at all\r\n\r\n".to_owned(),
            "malformed HTTP request",
        ),
        (
            "\x16\x03\x01\x02\x00".to_owned(),
            "this port does not speak TLS",
        ),
        (
            swapped("HTTP/1.1", "HTTP/1.0"),
            "a websocket needs HTTP/1.1",
        ),
        (swapped("Host: localhost\r\n", ""), "Host is missing"),
        (
            swapped("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""),
            "Sec-WebSocket-Key is missing",
        ),
        (
            swapped("Connection: Upgrade", "Connection: keep-alive"),
            "Connection must be Upgrade (does a proxy strip it?)",
        ),
        (
            upgrade_with(&["Sec-WebSocket-Protocol: chat"]),
            "no sub-protocol is supported",
        ),
        (
            swapped("GET / ", "GET /?style=other "),
            "style must be piston or kazoo",
        ),
    ]
    .map(|(request, line)| (request, 400, line, None));
    let of_others = [
        (
            swapped("Version: 13", "Version: 8"),
            426,
            "websocket version 13 is required",
            Some(("sec-websocket-version", "13")),
        ),
        (long, 431, "request head is too large", None),
        (many, 431, "request head is too large", None),
        (
            "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(),
            404,
            "not found; for a websocket send an upgrade request",
            None,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n".to_owned(),
            405,
            "method is not allowed",
            Some(("allow", "GET, HEAD")),
        ),
    ];
    for (request, status, line, header) in of_400.into_iter().chain(of_others) {
        let response = ask(&server, &request);
        assert_eq!(
            (response.status, &*response.body),
            (status, &*format!("{line}\n")),
            "{request:?}"
        );
        if let Some((name, value)) = header {
            assert_eq!(response.header(name), Some(value), "{response:?}");
        }
        assert_eq!(response.header("content-type"), Some("text/plain"));
        assert_eq!(
            response.header("content-length"),
            Some(&*(line.len() + 1).to_string())
        );
        assert_eq!(response.header("connection"), Some("close"));
    }
    let head = ask(&server, "HEAD /elsewhere HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!((head.status, &*head.body), (404, ""), "a HEAD gets no body");
}

#[test]
fn the_root_tells_balancers_200_while_connections_are_taken() {
    let server = Server::demo(&[]);
    wait_for("the source to be up", || {
        (probe(&server, "GET").status == 200).then_some(())
    });
    assert_eq!(probe(&server, "GET").body, "ok\n");
    let head = ask(&server, "HEAD / HTTP/1.0\r\n\r\n");
    assert_eq!(
        (head.status, &*head.body, head.header("content-length")),
        (200, "", Some("3"))
    );
    assert!(server.metric("probes_total") >= 3);
}

#[test]
fn the_root_tells_balancers_503_while_the_event_source_is_down_and_upgrades_go_on() {
    let (_socket, dead) = dead_address();
    let url = format!("amqp://guest:guest@{dead}/%2f");
    let server = Server::start(&["--amqp", &url, "--auth", "insecure"]);
    for (method, body) in [("GET", "event source unavailable\n"), ("HEAD", "")] {
        let response = probe(&server, method);
        assert_eq!((response.status, &*response.body), (503, body));
        assert_eq!(response.header("retry-after"), Some("5"));
    }
    let reply = Client::connect(server.address()).ask(&ping_as(ANY_TOKEN, "1"));
    assert_eq!(reply["data"]["response"], "pong");
}

#[test]
fn a_server_told_to_end_answers_503_to_probes_as_long_as_it_listens() {
    let mut server = Server::demo(&["--drain-delay-seconds", "30"]);
    server.signal(Signal::TERM);
    server.until_not_ready();
    for method in ["GET", "HEAD"] {
        let response = probe(&server, method);
        assert_eq!(response.status, 503, "{method}");
        assert!(response.header("retry-after").is_some());
    }
    assert_eq!(server.page("/readyz"), (503, "going away\n".to_owned()));
    server.signal(Signal::TERM);
    assert!(server.wait().success());
}

#[test]
fn a_bearer_token_is_verified_before_the_upgrade_and_then_no_command_needs_one() {
    let tokens = TokenFile::new(&json!({
        "good": {"account_id": ACCOUNT},
        "old": {"account_id": ACCOUNT, "expires": 1},
    }));
    let server = Server::start(&["--source", "demo", "--auth", &tokens.option()]);
    for line in [
        "Authorization: Bearer wrong",
        "Authorization: Bearer old",
        "authorization: bearer",
    ] {
        let response = ask(&server, &upgrade_with(&[line]));
        assert_eq!(
            (response.status, &*response.body),
            (403, "failed to authenticate token\n"),
            "{line}"
        );
    }
    let mut client = Client::connect_as(server.address(), "good");
    assert_eq!(client.ask(&ping("1"))["data"]["response"], "pong");
    let command = |account| json!({"action": "subscribe", "data": {"account_id": account, "binding": "call.*.*"}});
    assert_eq!(client.ask(&command(ACCOUNT))["status"], "success");
    assert_eq!(
        errors(&client.ask(&command(OTHER_ACCOUNT))),
        ["unauthorized account id"]
    );
    let mut other_scheme = Raw::connect(server.address());
    other_scheme.send(upgrade_with(&["Authorization: Basic Z29vZDo="]).as_bytes());
    assert_eq!(
        other_scheme.head().status,
        101,
        "other schemes are not ours"
    );
    assert_eq!(server.metric("authentications_failed_total"), 2);
    assert_eq!(
        server.metric(r#"handshakes_refused_total{reason="token"}"#),
        3
    );
}

#[test]
fn an_absolute_target_without_a_path_picks_the_style_by_its_query() {
    let mut fed = Fed::insecure(&[]);
    let mut raw = Raw::connect(fed.server.address());
    let request = upgrade_with(&["Sec-WebSocket-Protocol: "]);
    raw.send(
        request
            .replace("GET / ", "GET ws://host:5555?style=kazoo ")
            .as_bytes(),
    );
    assert_eq!(raw.head().status, 101);
    raw.send_text(&subscribe(ANY_TOKEN, ACCOUNT, "call.*.*").to_string());
    let mut message = || -> Value { serde_json::from_slice(&raw.frame().1).unwrap() };
    assert_eq!(message()["status"], "success");
    fed.publish(
        "callevt",
        "call.CHANNEL_CREATE.x",
        &json!({"Event-Name": "CHANNEL_CREATE", "Account-ID": ACCOUNT}),
    );
    let event = message();
    assert!(event["data"].is_object(), "style kazoo: {event}");
}

#[test]
fn a_head_request_of_an_admin_page_is_answered_as_a_get_without_the_body() {
    let server = Server::demo(&[]);
    server.until_ready();
    for path in ["/healthz", "/readyz", "/metrics", "/nothing"] {
        let [get, head] = ["GET", "HEAD"].map(|method| {
            let mut raw = Raw::connect(server.admin());
            let fields = "Host: localhost\r\nConnection: close";
            raw.send(format!("{method} {path} HTTP/1.1\r\n{fields}\r\n\r\n").as_bytes());
            raw.last_response()
        });
        assert_eq!(head.status, get.status, "{path}");
        assert_eq!(
            head.header("content-type"),
            get.header("content-type"),
            "{path}"
        );
        assert!(!get.body.is_empty());
        assert_eq!(head.body, "", "{path}");
        let length: usize = head.header("content-length").unwrap().parse().unwrap();
        // The figures of two pages are not of one length.
        let is_near = length.abs_diff(get.body.len()) < 100;
        assert!(is_near && length > 0, "{path}: {length}");
    }
}

#[test]
fn only_listed_origins_and_clients_without_one_are_upgraded() {
    let server = Server::demo(&[
        "--allowed-origins",
        "HTTPS://App.Example:443,https://two.example:8443,http://[::1]:80",
    ]);
    for (origin, status) in [
        ("https://app.example", 101),
        ("HTTPS://APP.EXAMPLE", 101),
        ("https://two.example:8443", 101),
        ("http://[::1]", 101),
        ("http://app.example", 403),
        ("https://app.example.evil.example", 403),
        ("https://two.example", 403),
        ("null", 403),
    ] {
        let mut raw = Raw::connect(server.address());
        raw.send(upgrade_with(&[&format!("Origin: {origin}")]).as_bytes());
        let response = if status == 101 {
            raw.head()
        } else {
            raw.last_response()
        };
        assert_eq!(response.status, status, "{origin}");
        assert!(
            status == 101 || response.body == "origin is not allowed\n",
            "{response:?}"
        );
    }
    drop(Raw::upgraded(server.address()));
    assert_eq!(
        server.metric(r#"handshakes_refused_total{reason="origin"}"#),
        4
    );
}

#[test]
fn one_address_gets_no_more_sessions_than_it_may_and_its_places_come_back() {
    let server = Server::demo(&["--max-connections-per-ip", "2"]);
    server.until_ready();
    let held: Vec<Client> = (0..2).map(|_| Client::connect(server.address())).collect();
    let refused = ask(&server, UPGRADE_REQUEST);
    assert_eq!(
        (refused.status, &*refused.body),
        (429, "too many connections from this address\n")
    );
    let mut neighbour = Raw::connect_from([127, 0, 0, 9], server.address());
    neighbour.send(UPGRADE_REQUEST.as_bytes());
    assert_eq!(
        neighbour.head().status,
        101,
        "another address has places of its own"
    );
    assert_eq!(probe(&server, "GET").status, 200, "probes take no place");
    assert_eq!(server.metric(r#"handshakes_refused_total{reason="ip"}"#), 1);
    for client in held {
        client.close();
    }
    drop(neighbour);
    server.wait_for_metric("sessions", 0);
    server.wait_for_metric("counted_ips", 0);
    let again: Vec<Raw> = (0..2).map(|_| Raw::upgraded(server.address())).collect();
    assert_eq!(ask(&server, UPGRADE_REQUEST).status, 429);
    drop(again);
}

#[test]
fn a_full_process_answers_503_with_retry_after_until_somebody_leaves() {
    if plain_only(&"beyond max_connections nothing is answered over TLS") {
        return;
    }
    let server = Server::demo(&["--max-connections", "3"]);
    let mut held: Vec<Client> = (0..3).map(|_| Client::connect(server.address())).collect();
    for request in [UPGRADE_REQUEST, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"] {
        let refused = ask(&server, request);
        assert_eq!(
            (refused.status, &*refused.body),
            (503, "no more connections can be taken\n")
        );
        assert_eq!(refused.header("retry-after"), Some("5"));
    }
    held.pop().unwrap().close();
    // The place is free once the server has seen the end of the refused connections too.
    wait_for("a place", || {
        let mut raw = Raw::connect(server.address());
        raw.send(UPGRADE_REQUEST.as_bytes());
        (raw.head().status == 101).then_some(())
    });
    assert!(server.metric(r#"handshakes_refused_total{reason="full"}"#) >= 2);
    for client in &mut held {
        assert_eq!(
            client.ask(&ping_as(ANY_TOKEN, "1"))["data"]["response"],
            "pong",
            "the others are untouched"
        );
    }
}

/// Sends `bytes`, which a request begins with, one by one; they must be cut off after 400 ms.
fn drip(address: SocketAddr, bytes: &[u8]) {
    let mut raw = Raw::connect(address);
    let begun = Instant::now();
    let mut drops = bytes.iter().copied();
    loop {
        raw.try_send(&[drops.next().expect("cut off before the head is complete")]);
        match raw.peek(Duration::from_millis(20)) {
            Peek::Nothing => {}
            Peek::Ended => break,
            Peek::Bytes => panic!("an answer"),
        }
    }
    assert!(
        begun.elapsed() >= Duration::from_millis(400),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn a_head_or_what_comes_before_it_that_drips_is_cut_off_after_request_timeout() {
    if plain_only(&"what drips is in clear; tests of `tls` have the same of handshakes") {
        return;
    }
    let proxied = [
        "--proxy-protocol=required",
        "--trusted-proxies=127.0.0.0/8",
        "--request-timeout-ms=400",
    ];
    let proxy_header = b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 5000\r\n";
    let page = format!(
        "GET /metrics HTTP/1.1\r\nX-Long: {}\r\n\r\n",
        "x".repeat(200)
    );
    for options in [&["--request-timeout-ms", "400"][..], &proxied] {
        let server = Server::demo(options);
        let is_proxied = options.len() == proxied.len();
        let first = if is_proxied { &proxy_header[..] } else { b"" };
        drip(
            server.address(),
            &[first, UPGRADE_REQUEST.as_bytes()].concat(),
        );
        drip(server.admin(), page.as_bytes());
        assert_eq!(
            server.metric(r#"connections_dropped_total{reason="handshake_timeout"}"#),
            2
        );
        assert_eq!(server.metric("handshake_deadlines"), 0);
    }
}

#[test]
fn frames_behind_the_head_in_the_same_segment_are_read() {
    let server = Server::demo(&[]);
    let command = client_text(&ping_as(ANY_TOKEN, "right behind").to_string());
    let bytes = [UPGRADE_REQUEST.as_bytes(), &command].concat();
    // Whole, and with the cut inside the head and inside the frame.
    for cut in [bytes.len(), 40, UPGRADE_REQUEST.len() + 3] {
        let mut raw = Raw::connect(server.address());
        raw.send(&bytes[..cut]);
        if cut > UPGRADE_REQUEST.len() {
            assert_eq!(raw.head().status, 101);
            raw.send(&bytes[cut..]);
        } else {
            assert_eq!(raw.peek(Duration::from_millis(20)), Peek::Nothing);
            raw.send(&bytes[cut..]);
            assert_eq!(raw.head().status, 101);
        }
        assert_eq!(raw.json()["request_id"], "right behind", "cut at {cut}");
    }
}
