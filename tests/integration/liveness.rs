//! Peers that fall silent and messages that are not finished, over real sockets; the times themselves are tested on a
//! virtual clock (`tests/simulation`).

use std::time::{Duration, Instant};

use support::client::{ANY_TOKEN, Peek, Raw, ping_as};
use support::server::{PATIENCE, Server, wait_for};

const PING: u8 = 0x9;
/// First byte of a pong.
const PONG: u8 = 0x8A;

/// Pinged after 0.4 s of silence, give or take a fifth, and dead 0.3 s later.
const KEEP_ALIVE: [&str; 4] = ["--ping-interval-ms", "400", "--pong-timeout-ms", "300"];

#[test]
fn a_client_that_answers_no_ping_is_told_1001_and_dropped_without_waiting_for_it() {
    let server = Server::demo(&KEEP_ALIVE);
    let mut raw = Raw::upgraded(server.address());
    let begun = Instant::now();
    assert_eq!(raw.frame(), (PING, b"alive".to_vec()));
    assert_eq!(raw.expect_close(), (Some(1001), "ping timeout".to_owned()));
    // Never early: the ping may have come a tenth of a second before the fifth.
    assert!(begun.elapsed() >= Duration::from_millis(300));
    server.wait_for_metric("sessions", 0);
    assert_eq!(server.metric(r#"closes_total{reason="dead"}"#), 1);
    assert_eq!(server.metric(r#"closes_total{reason="drain"}"#), 0);
}

#[test]
fn a_client_that_answers_pings_stays_and_is_served() {
    let server = Server::demo(&KEEP_ALIVE);
    let mut raw = Raw::upgraded(server.address());
    for _ in 0..5 {
        let (opcode, payload) = raw.frame();
        assert_eq!((opcode, &*payload), (PING, &b"alive"[..]));
        raw.send_frame(PONG, &payload);
    }
    raw.send_text(&ping_as(ANY_TOKEN, "served").to_string());
    while {
        let (opcode, payload) = raw.frame();
        opcode == PING || !String::from_utf8_lossy(&payload).contains("served")
    } {}
    let metrics = server.metrics();
    assert_eq!(
        (
            metrics[r#"closes_total{reason="dead"}"#],
            metrics["sessions"]
        ),
        (0, 1)
    );
    assert!(metrics["pings_sent_total"] >= 5);
}

#[test]
fn a_client_with_nothing_to_say_is_closed_with_1000_at_the_idle_limit() {
    let server = Server::demo(&["--idle-timeout-ms", "500", "--ping-interval-ms", "0"]);
    let mut raw = Raw::upgraded(server.address());
    let begun = Instant::now();
    assert_eq!(raw.expect_close(), (Some(1000), "idle timeout".to_owned()));
    assert!(
        begun.elapsed() >= Duration::from_millis(400),
        "{:?}",
        begun.elapsed()
    );
    drop(raw);
    server.wait_for_metric("sessions", 0);
    let metrics = server.metrics();
    assert_eq!(
        (
            metrics[r#"closes_total{reason="idle"}"#],
            metrics["pings_sent_total"]
        ),
        (1, 0)
    );
}

#[test]
fn a_message_that_drips_is_cut_off_at_the_message_timeout_and_its_memory_is_free() {
    let server = Server::demo(&["--message-timeout-ms", "400"]);
    let mut raw = Raw::upgraded(server.address());
    let begun = Instant::now();
    raw.send_frame(0x01, b"{");
    wait_for("the message to be kept", || {
        (server.metric("partial_messages_bytes") > 0).then_some(())
    });
    loop {
        // A fragment, complete, now and then: bytes come, and the message does not end.
        raw.try_send(&support::wire::client_frame(0x00, b" "));
        match raw.peek(Duration::from_millis(20)) {
            Peek::Nothing => assert!(begun.elapsed() < PATIENCE, "never cut off"),
            Peek::Bytes | Peek::Ended => break,
        }
    }
    assert!(begun.elapsed() >= Duration::from_millis(400));
    let (opcode, payload) = raw.frame();
    assert_eq!(opcode, 0x8);
    assert_eq!(payload[..2], 1008_u16.to_be_bytes());
    assert_eq!(payload[2..], *b"message timeout");
    drop(raw);
    server.wait_for_metric("sessions", 0);
    let metrics = server.metrics();
    assert_eq!(
        (
            metrics[r#"closes_total{reason="message_timeout"}"#],
            metrics["partial_messages_bytes"]
        ),
        (1, 0)
    );
}
