//! Permessage-deflate over real sockets (RFC 7692): what is agreed on, what is sent and taken deflated, and what closes a
//! session. Another implementation of deflate reads and writes at the client's end.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use blackhole::config::{self, Startup};
use blackhole::limits::{
    DEFLATED_BYTES_PER_FRAME, DEFLATED_MESSAGE_BYTES_MAX, FRAMES_READ_PER_TURN_MAX,
    INFLATED_MESSAGE_BYTES_MAX,
};
use blackhole::protocol::proxy::Preamble;
use blackhole::routing::families::Families;
use blackhole::session::Session;
use blackhole::session::clock::Now;
use blackhole::session::hub::Hub;
use blackhole::session::id::{ConnId, Peer};
use blackhole::session::limits::SessionLimits;
use miniz_oxide::deflate::core::{CompressorOxide, create_comp_flags_from_zip_params};
use miniz_oxide::deflate::stream::deflate;
use miniz_oxide::inflate::decompress_to_vec;
use miniz_oxide::{DataFormat, MZFlush};
use serde_json::{Value, json};

use support::client::{ANY_TOKEN, Python, Raw, ping_as, subscribe, upgrade_with};
use support::events::{ACCOUNT, FIXTURES, call_event, fixtures, large_call_event};
use support::project_file;
use support::server::{Fed, Server};
use support::tls;
use support::wire::{client_frame, client_text, deflated_tables};

const EXTENSION: &str = "sec-websocket-extensions";
const ANSWER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
const COMPRESSION: &str = "--compression";

/// Sessions that make deflating worth it.
const MANY: usize = 20;

/// The payload of a deflated message.
fn deflated(message: &[u8]) -> Vec<u8> {
    let mut compressor = CompressorOxide::new(create_comp_flags_from_zip_params(9, -15, 0));
    compressor.set_format_and_level(DataFormat::Raw, 9);
    let mut out = vec![0; message.len() + 100];
    let result = deflate(&mut compressor, message, &mut out, MZFlush::Sync);
    assert_eq!(result.bytes_consumed, message.len());
    out.truncate(result.bytes_written - 4);
    out
}

fn inflated(payload: &[u8]) -> Vec<u8> {
    let ends = [0x00, 0x00, 0xFF, 0xFF, 0x01, 0x00, 0x00, 0xFF, 0xFF];
    decompress_to_vec(&[payload, &ends].concat()).expect("a deflated message")
}

/// Upgrades with this offer; `None`: with none. Returns the answer, too.
fn upgraded(server: &Server, offer: Option<&str>) -> (Raw, Option<String>) {
    let line = offer.map(|offer| format!("Sec-WebSocket-Extensions: {offer}"));
    let lines: Vec<&str> = line.as_deref().into_iter().collect();
    let mut raw = Raw::connect(server.address());
    raw.send(upgrade_with(&lines).as_bytes());
    let head = raw.head();
    assert_eq!(head.status, 101);
    let answer = head.header(EXTENSION).map(str::to_owned);
    (raw, answer)
}

/// Upgrades with an offer that must be answered like this.
fn agreed(server: &Server, offer: &str, answer: &str) -> Raw {
    let (raw, answered) = upgraded(server, Some(offer));
    assert_eq!(answered.as_deref(), Some(answer), "{offer}");
    raw
}

fn send_deflated(raw: &mut Raw, text: &str) {
    raw.send_frame(0xC1, &deflated(text.as_bytes()));
}

/// The next message, and whether it came deflated.
fn message(raw: &mut Raw) -> (Value, bool, usize) {
    let (first, payload) = raw.any_frame();
    let text = match first {
        0x81 => payload.clone(),
        0xC1 => inflated(&payload),
        other => panic!("{other:#x}"),
    };
    let message = serde_json::from_slice(&text).expect("JSON");
    (message, first == 0xC1, payload.len())
}

fn must_subscribe(raw: &mut Raw, request_id: Option<&str>) {
    let mut command = subscribe(ANY_TOKEN, ACCOUNT, "call.*.*");
    if let Some(id) = request_id {
        command["request_id"] = json!(id);
    }
    send_deflated(raw, &command.to_string());
    let (reply, is_deflated, _) = message(raw);
    assert_eq!(reply["status"], "success", "{reply}");
    assert!(!is_deflated, "replies are not");
}

#[test]
fn compression_is_agreed_on_only_if_it_is_on_and_offered_as_it_may_be() {
    let off = Server::demo(&[]);
    let (mut raw, answer) = upgraded(&off, Some("permessage-deflate"));
    assert_eq!(answer, None);
    send_deflated(&mut raw, "{}");
    assert_eq!(raw.expect_close().0, Some(1002), "it was not agreed on");

    let on = Server::demo(&[COMPRESSION]);
    let echoed = format!("{ANSWER}; server_max_window_bits=10");
    for (offer, answer) in [
        (None, None),
        (Some("permessage-deflate"), Some(ANSWER)),
        (
            Some("permessage-deflate; client_max_window_bits"),
            Some(ANSWER),
        ),
        (
            Some("permessage-deflate; server_max_window_bits=10"),
            Some(&*echoed),
        ),
        (Some("permessage-deflate; server_max_window_bits=16"), None),
        (Some("x-webkit-deflate-frame"), None),
    ] {
        let (mut raw, answered) = upgraded(&on, offer);
        assert_eq!(answered.as_deref(), answer, "{offer:?}");
        raw.send_text(&ping_as(ANY_TOKEN, "p").to_string());
        assert_eq!(raw.json()["request_id"], "p", "{offer:?}");
    }
    let metrics = on.metrics();
    let counted = ["compression_agreed_total", "compression_declined_total"];
    assert_eq!(counted.map(|name| metrics[name]), [3, 1]);
    on.wait_for_metric("sessions_compressed", 0);
}

#[test]
fn a_deflated_command_is_run_whole_in_fragments_and_between_others() {
    let server = Server::demo(&[COMPRESSION]);
    let mut raw = agreed(&server, "permessage-deflate", ANSWER);
    let ping = |id| ping_as(ANY_TOKEN, id).to_string();
    send_deflated(&mut raw, &ping("one"));
    assert_eq!(raw.json()["request_id"], "one");
    let payload = deflated(ping("two").as_bytes());
    let (head, tail) = payload.split_at(payload.len() / 2);
    raw.send_frame(0x41, head);
    raw.send_frame(0x89, b"between");
    raw.send_frame(0x00, b"");
    raw.send_frame(0x80, tail);
    assert_eq!(raw.frame(), (0xA, b"between".to_vec()));
    assert_eq!(raw.json()["request_id"], "two");
    raw.send(&[client_text(&ping("three")), client_frame(0xC1, &payload)].concat());
    assert_eq!(raw.json()["request_id"], "three");
    assert_eq!(raw.json()["request_id"], "two");
    let metrics = server.metrics();
    assert_eq!(metrics["inflated_messages_total"], 3);
    let bytes = ping("one").len() + 2 * ping("two").len();
    assert_eq!(metrics["inflated_bytes_after_total"], bytes as u64);
}

#[test]
fn what_does_not_inflate_within_its_bound_closes_the_session() {
    let server = Server::demo(&[COMPRESSION, "--max-message-bytes", "2000"]);
    let megabytes = deflated(&vec![b' '; 16 << 20]);
    let small: Vec<u8> = (0..50)
        .flat_map(|_| client_frame(0xC1, &deflated(&[b' '; 2001])))
        .collect();
    for (what, bytes, code, reason) in [
        (
            "a bomb",
            client_frame(0xC1, &deflated(&[b' '; 2001])),
            1009,
            "message too big",
        ),
        (
            "its header alone",
            client_frame(0xC1, &megabytes),
            1009,
            "message too big",
        ),
        ("many bombs", small, 1009, "message too big"),
        (
            "no deflated bytes",
            client_frame(0xC1, b"\x07\x00"),
            1007,
            "invalid compressed data",
        ),
        (
            "not UTF-8",
            client_frame(0xC1, &deflated(b"\"\xFF\"")),
            1007,
            "invalid UTF-8",
        ),
        (
            "a binary message",
            client_frame(0xC2, &deflated(b"{}")),
            1003,
            "binary messages are not supported",
        ),
        (
            "a deflated ping",
            client_frame(0xC9, b""),
            1002,
            "protocol violation",
        ),
        (
            "a deflated continuation",
            [client_frame(0x41, b"x"), client_frame(0xC0, b"y")].concat(),
            1002,
            "protocol violation",
        ),
        ("RSV2", client_frame(0xA1, b""), 1002, "protocol violation"),
    ] {
        let mut raw = agreed(&server, "permessage-deflate", ANSWER);
        let ping = ping_as(ANY_TOKEN, "p").to_string();
        raw.send_text(&ping);
        raw.try_send(&[bytes, client_text(&ping)].concat());
        assert_eq!(raw.json()["request_id"], "p", "{what}");
        assert_eq!(
            raw.expect_close(),
            (Some(code), reason.to_owned()),
            "{what}"
        );
    }
    server.wait_for_metric("sessions", 0);
    server.wait_for_metric("sessions_compressed", 0);
    let metrics = server.metrics();
    let closes = ["protocol", "binary", "invalid_text", "corrupt", "too_big"]
        .map(|kind| metrics[&format!(r#"closes_total{{reason="{kind}"}}"#)]);
    assert_eq!(closes, [3, 1, 1, 1, 3]);
    // The header of the large one was enough.
    assert_eq!(metrics["inflate_refused_total"], 4);
}

#[test]
fn a_deflated_message_before_the_answer_to_the_offer_is_a_violation() {
    let server = Server::demo(&[COMPRESSION]);
    let mut raw = Raw::connect(server.address());
    let head = upgrade_with(&["Sec-WebSocket-Extensions: permessage-deflate"]);
    raw.send(&[head.as_bytes(), &client_frame(0xC1, &deflated(b"{}"))].concat());
    assert_eq!(raw.head().header(EXTENSION), Some(ANSWER));
    assert_eq!(raw.expect_close().0, Some(1002));
}

#[test]
fn an_event_is_deflated_once_for_all_who_agreed_and_each_gets_what_the_others_get() {
    let mut fed = Fed::insecure(&[COMPRESSION]);
    let small_window = format!("{ANSWER}; server_max_window_bits=9");
    let mut sessions: Vec<(Raw, Option<String>, bool)> = (0..MANY)
        .map(|number| {
            let (offer, answer) = match number % 5 {
                4 => (
                    "permessage-deflate; server_max_window_bits=9",
                    &*small_window,
                ),
                _ => ("permessage-deflate", ANSWER),
            };
            let id = (number % 3 > 0).then(|| format!("request {number} \"é\""));
            (agreed(&fed.server, offer, answer), id, number % 5 < 4)
        })
        .collect();
    for (raw, id, _) in &mut sessions {
        must_subscribe(raw, id.as_deref());
    }
    let (mut plain, answer) = upgraded(&fed.server, None);
    assert_eq!(answer, None);
    plain.send_text(&subscribe(ANY_TOKEN, ACCOUNT, "call.*.*").to_string());
    assert_eq!(plain.json()["status"], "success");

    for (key, body) in fixtures() {
        fed.publish("callevt", &key, &body);
        let meant = plain.json();
        assert_eq!(meant["args"], body);
        for (raw, id, takes_deflated) in &mut sessions {
            let (mut event, is_deflated, bytes) = message(raw);
            assert_eq!(is_deflated, *takes_deflated, "{event}");
            assert!(
                !is_deflated || 3 * bytes < 2 * event.to_string().len(),
                "{bytes}"
            );
            let own = event
                .as_object_mut()
                .expect("an object")
                .remove("request_id");
            assert_eq!(own, id.clone().map(Value::from));
            let mut meant = meant.clone();
            // Each has an `subscribed_key` of one and the same subscription.
            meant
                .as_object_mut()
                .expect("an object")
                .remove("request_id");
            assert_eq!(event, meant);
        }
    }
    let metrics = fed.server.metrics();
    assert_eq!(metrics["deflated_frames_total"], FIXTURES.len() as u64);
    let takers = MANY * 4 / 5;
    assert_eq!(
        metrics["frames_delivered_deflated_total"],
        (takers * FIXTURES.len()) as u64
    );
    let [before, after, saved] = [
        "deflated_bytes_before_total",
        "deflated_bytes_after_total",
        "frames_delivered_saved_bytes_total",
    ]
    .map(|name| metrics[name]);
    assert!(2 * after < before, "{after} of {before}");
    assert_eq!(saved, (before - after) * takers as u64);
}

#[test]
fn an_event_that_is_small_or_for_few_is_sent_as_it_is() {
    let mut fed = Fed::insecure(&[COMPRESSION]);
    let mut sessions: Vec<Raw> = (0..MANY)
        .map(|_| agreed(&fed.server, "permessage-deflate", ANSWER))
        .collect();
    let (one, others) = sessions.split_first_mut().expect("some");
    must_subscribe(one, None);
    let (large, huge) = (
        large_call_event(ACCOUNT, 1, 5000),
        large_call_event(ACCOUNT, 3, 99_000),
    );
    fed.publish("callevt", "call.CHANNEL_CREATE.x", &large);
    assert!(!message(one).1, "for one");
    for other in others {
        must_subscribe(other, None);
    }
    fed.publish(
        "callevt",
        "call.CHANNEL_CREATE.x",
        &call_event(ACCOUNT, "CHANNEL_CREATE", 2),
    );
    fed.publish("callevt", "call.CHANNEL_CREATE.x", &huge);
    fed.publish("callevt", "call.CHANNEL_CREATE.x", &large);
    for raw in &mut sessions {
        let seen = [(); 3].map(|()| message(raw));
        let numbers = seen
            .each_ref()
            .map(|(event, ..)| event["args"]["Number"].clone());
        assert_eq!(numbers, [2, 3, 1]);
        assert_eq!(
            seen.map(|(_, is_deflated, _)| is_deflated),
            [false, false, true]
        );
    }
    assert_eq!(fed.server.metrics()["deflated_frames_total"], 1);
}

#[test]
fn a_client_by_another_hand_sends_and_reads_compressed_messages() {
    let Some(python) = Python::installed() else {
        return;
    };
    let mut fed = Fed::insecure(&[COMPRESSION]);
    let script = project_file("tests/clients/compressed.py");
    let mut client = python
        .command()
        .arg(script)
        .args([
            &format!("{}/", tls::url(fed.server.address())),
            &MANY.to_string(),
            ACCOUNT,
        ])
        .envs(tls::peer_at(fed.server.address()).map(|peer| ("SSL_CERT_FILE", peer.ca)))
        .spawn()
        .unwrap();
    let mut said = BufReader::new(client.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "subscribed");
    let [(key, body), ..] = fixtures();
    fed.publish("callevt", &key, &body);
    let events: Vec<Value> = said
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    assert!(client.wait().unwrap().success());
    assert_eq!(events.len(), MANY);
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["args"], body);
        let id = (number % 2 == 1).then(|| format!("request {number}"));
        assert_eq!(event.get("request_id").cloned(), id.map(Value::from));
    }
    let metrics = fed.server.metrics();
    let many = MANY as u64;
    assert_eq!(metrics["inflated_messages_total"], many);
    assert_eq!(metrics["frames_delivered_deflated_total"], many);
}

#[test]
fn an_inflated_message_has_the_share_of_a_turn_that_its_bytes_have() {
    let args = ["blackhole", "--auth=insecure", COMPRESSION].map(Into::into);
    let Startup::Run(config) = config::from_args(args.into_iter()).unwrap();
    let now = Now {
        clock: Duration::ZERO,
        unix_ms: 1_700_000_000_000,
    };
    let id = ConnId {
        slot: 0,
        generation: 0,
    };
    let mut hub = Hub::new(
        SessionLimits::from(&config),
        config.authenticator().unwrap(),
        Families::new(&config.families).unwrap(),
        now,
        1,
    );
    let peer = Peer::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
    let mut session = Session::new(Preamble::Done, peer, Duration::ZERO, &mut hub);
    let mut request = upgrade_with(&["Sec-WebSocket-Extensions: permessage-deflate"]).into_bytes();
    session.on_bytes(&mut request, &mut hub.context(id, now));
    assert!(session.is_open() && session.takes_deflated(1));
    let text = [&b"{}"[..], &[b' '; (64 << 10) - 2]].concat();
    let blanks = deflated(&text);
    assert!(blanks.len() < 200, "{}", blanks.len());
    // What nothing comes of counts, too, and is the share of a turn when it is as long as it may be.
    let tables = deflated_tables(DEFLATED_MESSAGE_BYTES_MAX);
    for (payload, inflated_bytes) in [(blanks, text.len()), (tables, 0)] {
        hub.work.frames_read = 0;
        let mut frame = client_frame(0xC1, &payload);
        session.on_bytes(&mut frame, &mut hub.context(id, now));
        assert!(session.is_open());
        assert_eq!(
            hub.work.frames_read,
            1 + payload.len() / DEFLATED_BYTES_PER_FRAME + inflated_bytes / (1 << 10)
        );
        if inflated_bytes == 0 {
            assert!(hub.work.frames_read * 10 / 9 > FRAMES_READ_PER_TURN_MAX);
        }
    }
    let after = hub.metrics.inflated_bytes_after_total;
    assert_eq!(after, text.len() as u64);
}

#[test]
fn a_deflated_message_has_bounds_of_its_own_where_plain_ones_have_none() {
    let args = [COMPRESSION, "--max-message-bytes", "0"];
    let server = Server::demo(&args);
    let most = INFLATED_MESSAGE_BYTES_MAX;
    let ping = ping_as(ANY_TOKEN, "p").to_string();
    let padded = format!("{ping}{}", " ".repeat(most - ping.len()));
    let mut raw = agreed(&server, "permessage-deflate", ANSWER);
    send_deflated(&mut raw, &padded);
    assert_eq!(raw.json()["request_id"], "p");
    raw.send_frame(0xC1, &deflated_tables(DEFLATED_MESSAGE_BYTES_MAX));
    assert_eq!(raw.json()["status"], "error");
    // A plain one may be longer.
    raw.send_text(&format!("{padded} "));
    assert_eq!(raw.json()["request_id"], "p");

    let half = vec![0; DEFLATED_MESSAGE_BYTES_MAX / 2 + 1];
    let inflates_to_more = client_frame(0xC1, &deflated(format!("{padded} ").as_bytes()));
    let header = client_frame(0xC1, &[&half[..], &half].concat());
    let fragments = [client_frame(0x41, &half), client_frame(0x80, &half)].concat();
    for (what, bytes) in [
        ("inflates to more", inflates_to_more),
        ("the header tells", header[..8].to_vec()),
        ("in fragments", fragments),
    ] {
        let mut raw = agreed(&server, "permessage-deflate", ANSWER);
        raw.send_text(&ping);
        assert_eq!(raw.json()["request_id"], "p", "{what}");
        raw.try_send(&bytes);
        let too_big = (Some(1009), "message too big".to_owned());
        assert_eq!(raw.expect_close(), too_big, "{what}");
    }
    // Only the first was looked at, and not beyond its bound.
    let metrics = server.metrics();
    assert_eq!(metrics["inflate_refused_total"], 1);
    assert_eq!(metrics["inflated_bytes_after_total"], most as u64);
}
