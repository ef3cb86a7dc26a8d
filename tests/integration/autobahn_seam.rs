//! Where the conformance suite's echo server departs from the product: nowhere but in what becomes of a complete
//! message. A session is driven here without socket and loop.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use blackhole::config::{self, Startup};
use blackhole::protocol::frame::{Frame, Opcode};
use blackhole::protocol::proxy::Preamble;
use blackhole::routing::families::Families;
use blackhole::session::clock::Now;
use blackhole::session::close::CloseReason;
use blackhole::session::hub::{Context, Hub};
use blackhole::session::id::{ConnId, Peer};
use blackhole::session::limits::SessionLimits;
use blackhole::session::scratch::Scratch;
use blackhole::session::{Message, Session};
use support::wire::{UPGRADE_REQUEST, client_frame, client_text, server_frames};

const ID: ConnId = ConnId {
    slot: 0,
    generation: 0,
};
const NOW: Now = Now {
    clock: Duration::ZERO,
    unix_ms: 1_700_000_000_000,
};
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x8;

fn hub() -> Hub {
    let args = ["blackhole", "--auth=insecure"].map(Into::into);
    let Startup::Run(config) = config::from_args(args.into_iter()).unwrap();
    let authenticator = config.authenticator().unwrap();
    let families = Families::new(&config.families).unwrap();
    Hub::new(
        SessionLimits::from(&config),
        authenticator,
        families,
        NOW,
        1,
    )
}

/// An open session, its upgrade response written.
fn open(hub: &mut Hub) -> Session {
    let peer = Peer::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
    let mut session = Session::new(Preamble::Done, peer, Duration::ZERO, hub);
    session.on_bytes(
        &mut UPGRADE_REQUEST.as_bytes().to_vec(),
        &mut hub.context(ID, NOW),
    );
    assert!(written(&mut session, hub).starts_with(b"HTTP/1.1 101"));
    session
}

/// What the session has to say, taken all at once.
fn written(session: &mut Session, hub: &mut Hub) -> Vec<u8> {
    let mut bytes = Vec::new();
    session.outbox.flush(
        |slices| {
            bytes = slices
                .iter()
                .flat_map(|slice| slice.iter().copied())
                .collect();
            Ok(bytes.len())
        },
        &mut Scratch::default(),
        NOW.clock,
        &mut hub.outboxes,
    );
    bytes
}

fn send(session: &mut Session, hub: &mut Hub, mut bytes: Vec<u8>) -> Vec<(u8, Vec<u8>)> {
    session.on_bytes(&mut bytes, &mut hub.context(ID, NOW));
    server_frames(&written(session, hub)).0
}

#[test]
fn the_server_answers_text_as_a_command_and_closes_binary_with_1003() {
    let mut hub = hub();
    let mut session = open(&mut hub);
    let replies = send(&mut session, &mut hub, client_text("not a command"));
    let [(TEXT, reply)] = &replies[..] else {
        panic!("one reply expected: {replies:?}")
    };
    let reply: serde_json::Value = serde_json::from_slice(reply).unwrap();
    assert_eq!(
        (&reply["action"], &reply["status"]),
        (&"reply".into(), &"error".into())
    );

    let mut bytes = client_frame(BINARY, b"binary");
    bytes.extend(client_text("behind what closed the session"));
    let frames = send(&mut session, &mut hub, bytes);
    let expected = CloseReason::Binary.frame().unwrap();
    assert_eq!(expected.0, 1003);
    assert_eq!(
        frames,
        [(
            CLOSE,
            [&expected.0.to_be_bytes(), expected.1.as_bytes()].concat()
        )]
    );
    assert!(session.is_closing());
}

#[test]
fn a_hub_with_another_use_of_messages_is_given_each_complete_message_and_nothing_else() {
    fn kinds(session: &mut Session, message: Message<'_>, cx: &mut Context<'_>) {
        let seen = match message {
            Message::Text(text) => format!("text {text}"),
            Message::Binary(bytes) => format!("binary {}", bytes.len()),
        };
        session.push(Frame::new(Opcode::Text, seen.as_bytes()), cx);
    }
    let mut hub = hub();
    hub.on_message = kinds;
    let mut session = open(&mut hub);
    let bytes = [
        client_frame(0x01, b"in "),
        client_frame(0x89, b"ping"),
        client_frame(0x8A, b"pong"),
        client_frame(0x80, b"parts"),
        client_frame(BINARY, b"123"),
        client_frame(0x88, &1000_u16.to_be_bytes()),
    ]
    .concat();
    assert_eq!(
        send(&mut session, &mut hub, bytes),
        [
            (0xA, b"ping".to_vec()),
            (TEXT, b"text in parts".to_vec()),
            (TEXT, b"binary 3".to_vec()),
            (CLOSE, 1000_u16.to_be_bytes().to_vec()),
        ]
    );
    assert_eq!(hub.metrics.commands.total(), 0);
}
