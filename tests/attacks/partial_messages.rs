//! Messages begun and never finished: each may be as long as a command, and there may be as many as there are
//! sessions, none of which has to say who it is.

use std::net::SocketAddr;

use serde_json::json;

use crate::judge::alone;
use support::client::{ANY_TOKEN, Raw, ping_as};
use support::server::Server;
use support::wire::{UPGRADE_REQUEST, client_frame};

const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Sessions of an attacker.
const SESSIONS: usize = 400;

/// No partial message is given up for its time while a test runs.
const PATIENT: [&str; 2] = ["--message-timeout-ms", "120000"];

/// The largest text message that a client may send: a ping.
fn whole_command() -> Vec<u8> {
    let mut ping = ping_as(ANY_TOKEN, "whole");
    ping["data"] = json!({"padding": ""});
    let padding = "x".repeat(MESSAGE_BYTES_MAX - ping.to_string().len());
    ping["data"]["padding"] = padding.into();
    let text = ping.to_string();
    assert_eq!(text.len(), MESSAGE_BYTES_MAX);
    client_frame(0x81, text.as_bytes())
}

/// Waits until the server has read what is there for it to read: for some looks in a row it has read no more.
fn until_read(server: &Server) {
    let (mut before, mut looks) = (0, 0);
    server.until("everything is read", |server| {
        let read = server.metric("read_bytes_total");
        looks = if read > before + 1000 { 0 } else { looks + 1 };
        before = read;
        looks > 10
    });
}

fn upgraded_from(ip: [u8; 4], address: SocketAddr) -> Raw {
    let mut raw = Raw::connect_from(ip, address);
    raw.send(UPGRADE_REQUEST.as_bytes());
    assert_eq!(raw.head().status, 101);
    raw
}

/// A session that nobody has authenticated, and that has sent all of a message but its last byte.
fn begin(ip: [u8; 4], address: SocketAddr, whole: &[u8]) -> Raw {
    let mut raw = upgraded_from(ip, address);
    raw.try_send(&whole[..whole.len() - 1]);
    raw
}

/// The whole of a large command, in two parts, is answered.
fn assert_takes_whole(session: &mut Raw, whole: &[u8], between: impl FnOnce()) {
    let (first, second) = whole.split_at(whole.len() / 2);
    session.send(first);
    between();
    session.send(second);
    let reply = session.json();
    assert_eq!(reply["data"]["response"], "pong", "{reply}");
}

/// As [`SESSIONS`] messages are begun from `ip`, server memory grows by no more than `bytes_max`; then those who are
/// at home elsewhere, or have authenticated, are served.
fn messages_begun_take_no_more_than(args: &[&str], bytes_max: u64, ip: impl Fn(usize) -> [u8; 4]) {
    let server = Server::demo(&[&PATIENT, args].concat());
    let address = server.address();
    let whole = whole_command();
    let mut honest = upgraded_from([127, 0, 100, 1], address);
    let mut authenticated = upgraded_from(ip(0), address);
    assert_takes_whole(&mut authenticated, &whole, || ());
    // What sessions cost that begin nothing is not the messages'.
    let mut idle: Vec<Raw> = (0..SESSIONS)
        .map(|number| upgraded_from(ip(number), address))
        .collect();
    let before = server.resident_bytes();
    for session in &mut idle {
        session.try_send(&whole[..whole.len() - 1]);
    }
    until_read(&server);
    let sent = SESSIONS * (whole.len() - 1);
    // Whole commands of others, between which it has read what was sent.
    assert_takes_whole(&mut authenticated, &whole, || ());
    let mut late = Vec::new();
    assert_takes_whole(&mut honest, &whole, || {
        late.push(begin(ip(0), address, &whole));
    });
    let mut newcomer = upgraded_from([127, 0, 100, 2], address);
    assert_takes_whole(&mut newcomer, &whole, || {
        late.push(begin(ip(1), address, &whole));
    });
    let grown = server.resident_bytes().saturating_sub(before);
    println!(
        "{SESSIONS} messages begun, {} KiB sent: resident memory grown by {} KiB",
        sent >> 10,
        grown >> 10
    );
    assert!(
        grown <= bytes_max,
        "{grown} bytes more are resident, {bytes_max} at most"
    );
}

/// As many heads of requests as messages, each as long as a head may be and a byte less, from one address.
#[test]
fn heads_begun_from_one_address_take_what_their_bytes_take() {
    let _alone = alone();
    let server = Server::demo(&["--request-timeout-ms", "120000"]);
    let mut begun: Vec<Raw> = (0..SESSIONS)
        .map(|_| Raw::connect_from([127, 0, 66, 2], server.address()))
        .collect();
    let before = server.resident_bytes();
    let mut head = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ".to_vec();
    head.resize(8191, b'x');
    for raw in &mut begun {
        raw.try_send(&head);
    }
    until_read(&server);
    let grown = server.resident_bytes().saturating_sub(before);
    println!(
        "the heads: {} KiB sent, grown by {} KiB",
        (SESSIONS * head.len()) >> 10,
        grown >> 10
    );
    assert!(
        grown <= 2 * (SESSIONS * head.len()) as u64,
        "{grown} bytes more are resident"
    );
}

/// Replies to those who do not read them, and have not said who they are.
#[test]
fn replies_that_one_address_does_not_read_take_what_a_few_sessions_take() {
    let _alone = alone();
    let server = Server::demo(&PATIENT);
    let mut sessions: Vec<Raw> = (0..SESSIONS)
        .map(|_| Raw::upgraded_narrow(server.address()))
        .collect();
    let before = server.resident_bytes();
    // As many as do not close the session.
    let commands = client_frame(0x81, b"{}").repeat(1000);
    for session in &mut sessions {
        session.try_send(&commands);
    }
    until_read(&server);
    let grown = server.resident_bytes().saturating_sub(before);
    println!(
        "the replies: grown by {} KiB; {:?}",
        grown >> 10,
        server.metrics().get("outboxes_bytes")
    );
    assert!(grown <= 16 << 20, "{grown} bytes more are resident");
}

#[test]
fn messages_begun_from_one_address_take_what_a_few_commands_take() {
    let _alone = alone();
    // The rest: what the allocator keeps, and what closed sessions leave until their peers go.
    messages_begun_take_no_more_than(&[], 6 << 20, |_| [127, 0, 66, 1]);
}

#[test]
fn messages_begun_from_many_addresses_take_what_all_may_take() {
    let _alone = alone();
    messages_begun_take_no_more_than(&["--max-partials-bytes", "4194304"], 10 << 20, |number| {
        let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
        [127, 0, 70 + high, low]
    });
}
