//! The frame codec (RFC 6455 section 5).
//!
//! Input: one byte, whose lowest two bits choose the size limit, whose third says whether permessage-deflate was agreed on,
//! and all of which seeds the cuts; then what a client sends.
//!
//! Invariants: the same items whole, byte by byte and cut anywhere; heap memory follows what has arrived; no item is
//! above its limit; tungstenite reads the same messages from the same bytes and fails where we fail, but that it
//! - waits for the end of a frame or of a text that we refuse as soon as it cannot become valid;
//! - takes lengths that are not in their shortest form;
//! - does not know the close code 1014, and calls a close with a bad code a close of its own making;
//! - knows no deflated messages: it fails at the first.

use std::io::{self, Cursor, Read, Write};

use blackhole::protocol::codec::{
    CONTROL_BYTES_MAX, Codec, CodecError, CodecLimits, DataKind, Item,
};
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};

const LIMITS: [usize; 4] = [100_000, 1000, 125, 5];

/// The limit of deflated messages, between these.
const DEFLATED_BYTES_MAX: usize = 300;

/// What the codec may keep beyond the bytes that arrived and a quarter of them: its box and the smallest allocation.
const HEAP_BYTES_FIXED: usize = 300;

/// Close code 1014, "bad gateway": registered after tungstenite's list was made.
const BAD_GATEWAY: u16 = 1014;

#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Deflated(DataKind, Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
    Failed(CodecError),
}

/// See the module's page.
pub fn check(data: &[u8]) -> String {
    let Some((&choice, stream)) = data.split_first() else {
        return "nothing".to_owned();
    };
    let limits = CodecLimits {
        message_bytes_max: LIMITS[usize::from(choice & 3)],
        deflated_bytes_max: DEFLATED_BYTES_MAX,
        may_be_deflated: choice & 4 != 0,
    };
    let (seen, is_idle) = decode(&[stream], &limits);
    let singles: Vec<&[u8]> = stream.chunks(1).collect();
    for pieces in [
        singles,
        super::cut(stream, choice),
        super::cut(stream, !choice),
    ] {
        assert_eq!(
            decode(&pieces, &limits),
            (seen.clone(), is_idle),
            "cut {pieces:?}"
        );
    }
    agree_with_the_oracle(&seen, stream, &limits);
    match seen.last() {
        Some(Seen::Failed(error)) => format!("{error:?}"),
        Some(Seen::Close(..)) => "close".to_owned(),
        _ if !is_idle => "in part".to_owned(),
        Some(_) if seen.iter().any(is_deflated) => "deflated messages".to_owned(),
        Some(_) => "messages".to_owned(),
        None => "nothing".to_owned(),
    }
}

/// Everything up to a close or an error, and whether nothing was left in part.
fn decode(pieces: &[&[u8]], limits: &CodecLimits) -> (Vec<Seen>, bool) {
    let mut codec = Codec::new();
    let mut seen = Vec::new();
    let mut arrived = 0;
    for piece in pieces {
        let mut bytes = piece.to_vec();
        let mut rest = &mut bytes[..];
        arrived += rest.len();
        while !rest.is_empty() {
            let length = rest.len();
            let (consumed, item) = match codec.decode(rest, limits) {
                Ok(decoded) => (decoded.consumed, decoded.item.map(|item| own(item, limits))),
                Err(error) => (0, Some(Seen::Failed(error))),
            };
            let is_last = matches!(item, Some(Seen::Close(..) | Seen::Failed(_)));
            let found = item.is_some();
            seen.extend(item);
            if is_last {
                return (seen, true);
            }
            assert!(consumed <= length);
            assert!(
                found || consumed == length,
                "without an item all is consumed"
            );
            assert!(codec.heap_bytes() <= arrived * 5 / 4 + HEAP_BYTES_FIXED);
            assert_eq!(codec.is_idle(), codec.heap_bytes() == 0);
            if codec.is_idle() {
                arrived = length - consumed;
            }
            rest = &mut rest[consumed..];
        }
    }
    (seen, codec.is_idle())
}

fn own(item: Item<'_>, limits: &CodecLimits) -> Seen {
    let (seen, length, max) = match item {
        Item::Text(text) => {
            let length = text.len();
            (
                Seen::Text(text.into_owned()),
                length,
                limits.message_bytes_max,
            )
        }
        Item::Binary(bytes) => {
            let length = bytes.len();
            (
                Seen::Binary(bytes.into_owned()),
                length,
                limits.message_bytes_max,
            )
        }
        Item::Deflated(kind, bytes) => {
            let length = bytes.len();
            let seen = Seen::Deflated(kind, bytes.into_owned());
            let max = limits.message_bytes_max.min(limits.deflated_bytes_max);
            (seen, length, max)
        }
        Item::Ping(payload) => {
            let length = payload.len();
            (Seen::Ping(payload.into_owned()), length, CONTROL_BYTES_MAX)
        }
        Item::Pong(payload) => {
            let length = payload.len();
            (Seen::Pong(payload.into_owned()), length, CONTROL_BYTES_MAX)
        }
        Item::Close { code, reason } => {
            let length = reason.len() + 2;
            (
                Seen::Close(code, reason.into_owned()),
                length,
                CONTROL_BYTES_MAX,
            )
        }
    };
    assert!(length <= max, "an item of {length} bytes above {max}");
    seen
}

fn is_deflated(seen: &Seen) -> bool {
    matches!(seen, Seen::Deflated(..))
}

/// The client's bytes, after which a read would block; what is written goes nowhere.
struct Script<'a>(Cursor<&'a [u8]>);

impl Read for Script<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.0.read(into)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            read => Ok(read),
        }
    }
}

impl Write for Script<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How the oracle ended.
#[derive(Debug, PartialEq)]
enum End {
    Waits,
    Closed,
    Failed,
}

fn oracle(stream: &[u8], limits: &CodecLimits) -> (Vec<Seen>, End) {
    let config = WebSocketConfig::default()
        .read_buffer_size(1024)
        .max_message_size(Some(limits.message_bytes_max))
        .max_frame_size(Some(limits.message_bytes_max.max(CONTROL_BYTES_MAX)));
    let script = Script(Cursor::new(stream));
    let mut socket = WebSocket::from_raw_socket(script, Role::Server, Some(config));
    let mut seen = Vec::new();
    loop {
        seen.push(match socket.read() {
            Ok(Message::Text(text)) => Seen::Text(text.to_string()),
            Ok(Message::Binary(bytes)) => Seen::Binary(bytes.to_vec()),
            Ok(Message::Ping(payload)) => Seen::Ping(payload.to_vec()),
            Ok(Message::Pong(payload)) => Seen::Pong(payload.to_vec()),
            Ok(Message::Close(None)) => {
                seen.push(Seen::Close(None, String::new()));
                return (seen, End::Closed);
            }
            Ok(Message::Close(Some(close))) => {
                seen.push(Seen::Close(
                    Some(close.code.into()),
                    close.reason.to_string(),
                ));
                return (seen, End::Closed);
            }
            Ok(Message::Frame(_)) => unreachable!("never read"),
            Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                return (seen, End::Waits);
            }
            Err(_) => return (seen, End::Failed),
        });
    }
}

fn agree_with_the_oracle(seen: &[Seen], stream: &[u8], limits: &CodecLimits) {
    let (theirs, end) = oracle(stream, limits);
    if limits.may_be_deflated && end == End::Failed {
        // Perhaps at a deflated message; up to there it has seen what we have.
        let is_same = |(theirs, ours)| theirs == ours;
        let all = theirs
            .iter()
            .zip(seen)
            .filter(|(_, ours)| !matches!(ours, Seen::Failed(_)));
        assert!(all.into_iter().all(is_same), "{seen:?} and {theirs:?}");
        return;
    }
    assert!(!seen.iter().any(is_deflated));
    let (last, before) = match seen.split_last() {
        Some((last @ (Seen::Close(..) | Seen::Failed(_)), before)) => (Some(last), before),
        _ => (None, seen),
    };
    assert_eq!(
        theirs.get(..before.len()),
        Some(before),
        "the messages before {last:?}"
    );
    let behind = &theirs[before.len()..];
    match last {
        None => assert_eq!((behind, end), (&[][..], End::Waits), "more than {seen:?}"),
        Some(Seen::Close(Some(BAD_GATEWAY), _)) => assert_eq!(end, End::Closed),
        Some(close @ Seen::Close(..)) => assert_eq!(behind, std::slice::from_ref(close)),
        Some(Seen::Failed(CodecError::MalformedLength)) => {}
        Some(Seen::Failed(CodecError::InvalidCloseCode)) => {
            assert!(end == End::Failed || matches!(behind, [Seen::Close(Some(1002), _)]));
        }
        Some(failed) => {
            assert!(
                behind.is_empty() && end != End::Closed,
                "{behind:?} after {failed:?}"
            );
        }
    }
}
