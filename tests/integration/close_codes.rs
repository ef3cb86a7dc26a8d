//! Frames that end a session, and control frames that do not, over real sockets (PROTOCOL 3, RFC 6455 section 5).

use support::client::{ANY_TOKEN, Raw, ping_as, subscribe};
use support::events::ACCOUNT;
use support::server::Server;
use support::wire::{client_frame, client_text};

fn ping_text() -> String {
    ping_as(ANY_TOKEN, "p").to_string()
}

/// Expects the server to close `raw` with this code and reason, and then to end the connection.
fn expect(raw: &mut Raw, code: u16, reason: &str, what: &str) {
    assert_eq!(
        raw.expect_close(),
        (Some(code), reason.to_owned()),
        "{what}"
    );
}

#[test]
fn what_may_not_be_sent_closes_the_session_with_its_code() {
    let server = Server::demo(&["--max-message-bytes", "2000"]);
    let ping = ping_text();
    let mut unmasked = vec![0x81, u8::try_from(ping.len()).unwrap()];
    unmasked.extend(ping.bytes());
    let violations = [
        ("no mask", unmasked),
        ("reserved bit", client_frame(0xC1, b"{}")),
        ("reserved data opcode", client_frame(0x83, b"")),
        ("reserved control opcode", client_frame(0x8B, b"")),
        ("fragmented ping", client_frame(0x09, b"")),
        ("long ping", client_frame(0x89, &[b'x'; 126])),
        ("nothing to continue", client_frame(0x80, b"{}")),
        (
            "message inside a message",
            [client_frame(0x01, b"{"), client_frame(0x81, b"}")].concat(),
        ),
        ("close with half a code", client_frame(0x88, &[3])),
        (
            "close with a code that is never sent",
            client_frame(0x88, &1005_u16.to_be_bytes()),
        ),
        (
            "length not in its shortest form",
            vec![0x81, 0x80 | 126, 0, 1, 0, 0, 0, 0, b'x'],
        ),
    ];
    let codes = [
        (
            "binary",
            client_frame(0x82, b"{}"),
            1003,
            "binary messages are not supported",
        ),
        (
            "binary in fragments",
            [client_frame(0x02, b"{"), client_frame(0x80, b"}")].concat(),
            1003,
            "binary messages are not supported",
        ),
        (
            "text that is not UTF-8",
            client_frame(0x81, b"\"\xFF\""),
            1007,
            "invalid UTF-8",
        ),
        (
            "close reason that is not UTF-8",
            client_frame(0x88, b"\x03\xE8\xFF"),
            1007,
            "invalid UTF-8",
        ),
        (
            "one byte too many",
            client_frame(0x81, &[b' '; 2001]),
            1009,
            "message too big",
        ),
        (
            "too many bytes in fragments",
            [client_frame(0x01, &[b' '; 2000]), client_frame(0x80, b" ")].concat(),
            1009,
            "message too big",
        ),
        // Refused by its header: nothing of it need be there.
        (
            "a terabyte promised",
            vec![0x81, 0x80 | 127, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4],
            1009,
            "message too big",
        ),
    ];
    let violations = violations.map(|(what, bytes)| (what, bytes, 1002, "protocol violation"));
    for (what, bytes, code, reason) in violations.into_iter().chain(codes) {
        let mut raw = Raw::upgraded(server.address());
        // What comes before is answered, what comes behind is not read.
        raw.send(&[client_text(&ping), bytes, client_text(&ping)].concat());
        assert_eq!(raw.json()["request_id"], "p", "{what}");
        expect(&mut raw, code, reason, what);
    }
    server.wait_for_metric("sessions", 0);
    let metrics = server.metrics();
    let closes = ["protocol", "binary", "invalid_text", "too_big"]
        .map(|kind| metrics[&format!(r#"closes_total{{reason="{kind}"}}"#)]);
    assert_eq!(closes, [11, 2, 2, 3]);
}

#[test]
fn a_command_up_to_the_size_limit_is_run_whole_and_in_fragments() {
    for (args, limit) in [(&["--max-message-bytes", "300"][..], 300), (&[], 64 << 10)] {
        let server = Server::demo(args);
        let mut raw = Raw::upgraded(server.address());
        let mut text = ping_text();
        text.push_str(&" ".repeat(limit - text.len()));
        for text in [&text[..limit - 1], &text] {
            raw.send_text(text);
            assert_eq!(raw.json()["data"]["response"], "pong", "{limit}");
        }
        let (head, tail) = text.split_at(limit / 3);
        raw.send_frame(0x01, head.as_bytes());
        raw.send_frame(0x80, tail.as_bytes());
        assert_eq!(raw.json()["data"]["response"], "pong", "{limit}");
        raw.send_text(&(text + " "));
        expect(&mut raw, 1009, "message too big", "one byte more");
    }
}

#[test]
fn a_ping_is_answered_with_its_payload_and_a_pong_is_ignored() {
    let server = Server::demo(&[]);
    let mut raw = Raw::upgraded(server.address());
    for payload in [&b""[..], b"hello", &[0xFF; 125]] {
        raw.send_frame(0x8A, b"nobody asked");
        raw.send_frame(0x89, payload);
        assert_eq!(raw.frame(), (0xA, payload.to_vec()));
    }
}

#[test]
fn a_fragmented_command_is_run_and_a_ping_between_its_fragments_is_answered_at_once() {
    let server = Server::demo(&[]);
    let mut raw = Raw::upgraded(server.address());
    let text = ping_as(ANY_TOKEN, "zerstückelt").to_string();
    // The cut is inside a character.
    let cut = text.find('ü').unwrap() + 1;
    raw.send_frame(0x01, &text.as_bytes()[..cut]);
    raw.send_frame(0x89, b"between");
    assert_eq!(raw.frame(), (0xA, b"between".to_vec()));
    raw.send_frame(0x00, b"");
    raw.send_frame(0x80, &text.as_bytes()[cut..]);
    assert_eq!(raw.json()["request_id"], "zerstückelt");
}

#[test]
fn a_peers_close_is_answered_with_its_code_and_the_server_ends_the_connection() {
    let server = Server::demo(&[]);
    for code in [1000, 1001, 3000, 4999] {
        let mut raw = Raw::upgraded(server.address());
        let payload = [&u16::to_be_bytes(code)[..], b"bye"].concat();
        raw.send(
            &[
                client_text(&ping_text()),
                client_frame(0x88, &payload),
                client_text(&ping_text()),
            ]
            .concat(),
        );
        assert_eq!(
            raw.json()["request_id"],
            "p",
            "what came before is answered"
        );
        expect(&mut raw, code, "", "the code comes back");
    }
    let mut raw = Raw::upgraded(server.address());
    raw.send_frame(0x88, b"");
    assert_eq!(
        raw.expect_close(),
        (None, String::new()),
        "a close without a code gets one without"
    );
    server.wait_for_metric("sessions", 0);
    assert_eq!(server.metric(r#"closes_total{reason="peer"}"#), 5);
}

#[test]
fn a_peer_that_ends_its_stream_without_a_close_frame_is_gone_with_all_it_had() {
    let server = Server::demo(&[]);
    let mut raw = Raw::upgraded(server.address());
    raw.send_text(&subscribe(ANY_TOKEN, ACCOUNT, "call.*.*").to_string());
    assert_eq!(raw.json()["status"], "success");
    assert_eq!(server.metric("subscriptions"), 1);
    raw.shutdown_write();
    server.wait_for_metric(r#"closes_total{reason="lost"}"#, 1);
    let metrics = server.metrics();
    assert_eq!(
        (
            metrics["subscriptions"],
            metrics["amqp_bindings_wanted"],
            metrics["sessions"]
        ),
        (0, 0, 0)
    );
}

#[test]
fn however_sessions_end_every_gauge_is_back_where_it_was() {
    let server = Server::demo(&["--max-connections-per-ip", "1000"]);
    let gauges = [
        "sessions",
        "subscriptions",
        "subscription_groups",
        "interned_strings",
        "subscriptions_with_request_id",
        "amqp_bindings_wanted",
        "subscribes_waiting",
        "outboxes_blocked_bytes",
        "flush_list",
        "reread_list",
        "auth_deadlines",
        "counted_ips",
    ];
    server.wait_for_metric("source_up", 1);
    let mut open = Vec::new();
    for number in 0..120 {
        let mut raw = Raw::upgraded(server.address());
        for binding in [
            "call.*.*".to_owned(),
            format!("call.CHANNEL_CREATE.{number}"),
        ] {
            let mut command = subscribe(ANY_TOKEN, ACCOUNT, &binding);
            command["request_id"] = format!("r{number}").into();
            raw.send_text(&command.to_string());
        }
        if number % 2 == 0 {
            for _ in 0..2 {
                // Answered, or a made-up event that came between.
                raw.frame();
            }
        }
        open.push(raw);
    }
    server.wait_for_metric("sessions", 120);
    for (number, mut raw) in open.into_iter().enumerate() {
        match number % 5 {
            0 => raw.reset(),
            1 => raw.shutdown_write(),
            2 => raw.send_frame(0x88, &1000_u16.to_be_bytes()),
            3 => raw.send_frame(0xC1, b""),
            _ => drop(raw),
        }
    }
    server.wait_for_metric("sessions", 0);
    server.until("all gauges at zero", |server| {
        let now = server.metrics();
        now["connections"] == 0 && gauges.iter().all(|gauge| now[*gauge] == 0)
    });
    let after = server.metrics();
    assert_eq!(after["sessions_opened_total"], after["closes_total"]);
}
