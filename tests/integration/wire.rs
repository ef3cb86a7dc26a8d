//! Client bytes, however they are cut: the frame codec, the handshake and the commands from outside.
//!
//! Every codec script is fed whole, byte by byte and cut at random, and must give the same each time; every call
//! is checked for what it may keep. tungstenite writes the valid frames and reads them back as the oracle.

use std::io::{self, Cursor, Read, Write};

use blackhole::protocol::admin_request;
use blackhole::protocol::codec::{Codec, CodecError, CodecLimits, DataKind, Item};
use blackhole::protocol::command::{self, CommandLimits};
use blackhole::protocol::handshake;
use blackhole::protocol::http::Parsed;
use proptest::prelude::*;
use tungstenite::protocol::Role;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tungstenite::protocol::frame::{Frame, FrameHeader};
use tungstenite::{Message, WebSocket};

const LIMITS: CodecLimits = CodecLimits {
    message_bytes_max: 100_000,
    deflated_bytes_max: 100_000,
    may_be_deflated: false,
};

/// What the codec may keep beyond the bytes that arrived and a quarter of them: its box and the smallest allocation.
const HEAP_BYTES_FIXED: usize = 300;

const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

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

fn text(text: &str) -> Seen {
    Seen::Text(text.to_owned())
}

/// Feeds `pieces` as reads; each call sees the rest of its piece in memory of its own, as after a suspension.
/// Ends at a close or an error. Panics when a call keeps more than it may.
fn decode(pieces: &[&[u8]], limits: &CodecLimits) -> (Vec<Seen>, Codec) {
    let mut codec = Codec::new();
    let mut seen = Vec::new();
    let mut arrived = 0;
    for piece in pieces {
        arrived += piece.len();
        let mut rest = piece.to_vec();
        loop {
            let length = rest.len();
            let (consumed, item) = match codec.decode(&mut rest, limits) {
                Ok(decoded) => (decoded.consumed, decoded.item.map(own)),
                Err(error) => (0, Some(Seen::Failed(error))),
            };
            let ends = matches!(item, Some(Seen::Close(..) | Seen::Failed(_)));
            let found = item.is_some();
            seen.extend(item);
            if ends {
                return (seen, codec);
            }
            assert!(codec.heap_bytes() <= arrived * 5 / 4 + HEAP_BYTES_FIXED);
            assert_eq!(codec.is_idle(), codec.heap_bytes() == 0);
            if codec.is_idle() {
                arrived = length - consumed;
            }
            if !found {
                assert_eq!(consumed, length, "without an item everything is consumed");
                break;
            }
            rest.drain(..consumed);
        }
    }
    (seen, codec)
}

fn own(item: Item<'_>) -> Seen {
    match item {
        Item::Text(text) => Seen::Text(text.into_owned()),
        Item::Binary(bytes) => Seen::Binary(bytes.into_owned()),
        Item::Deflated(kind, bytes) => Seen::Deflated(kind, bytes.into_owned()),
        Item::Ping(payload) => Seen::Ping(payload.into_owned()),
        Item::Pong(payload) => Seen::Pong(payload.into_owned()),
        Item::Close { code, reason } => Seen::Close(code, reason.into_owned()),
    }
}

/// A small generator whose whole state is its seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) as usize % bound
    }
}

fn cut_at_random(bytes: &[u8], seed: u64) -> Vec<&[u8]> {
    let mut random = Random(seed);
    let longest = 1 + random.below(1 + bytes.len());
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at((1 + random.below(longest)).min(rest.len()));
        pieces.push(piece);
        rest = behind;
    }
    pieces
}

/// Whole, byte by byte, and cut at random under eight seeds: all must give `expected`.
fn check_three_ways(name: &str, bytes: &[u8], limits: &CodecLimits, expected: &[Seen]) {
    assert_eq!(decode(&[bytes], limits).0, expected, "{name}, whole");
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(decode(&single, limits).0, expected, "{name}, byte by byte");
    for seed in 0..8 {
        let pieces = cut_at_random(bytes, seed);
        assert_eq!(decode(&pieces, limits).0, expected, "{name}, seed {seed}");
    }
}

/// A frame with this first byte, masked, length in its shortest form.
fn frame(first: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let header = FrameHeader {
        is_final: first & 0x80 != 0,
        rsv1: first & 0x40 != 0,
        rsv2: first & 0x20 != 0,
        rsv3: first & 0x10 != 0,
        opcode: OpCode::from(first & 0x0F),
        mask: Some(MASK),
    };
    let mut bytes = Vec::new();
    Frame::from_payload(header, payload.to_vec().into())
        .format(&mut bytes)
        .expect("memory");
    bytes
}

fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(0x88, [&code.to_be_bytes(), reason].concat())
}

/// Name, frames, what must be seen.
type Row = (&'static str, Vec<Vec<u8>>, Vec<Seen>);

#[test]
fn every_script_gives_the_same_however_it_is_cut() {
    let a = |length: usize| "a".repeat(length);
    let failed = |error| vec![Seen::Failed(error)];
    let greeting = "Hello-µ@ßöäüàá-UTF-8!! κόσμε \u{10FFFF}";
    let scripts: Vec<Row> = vec![
        ("nothing", vec![], vec![]),
        (
            "one text",
            vec![frame(0x81, greeting)],
            vec![text(greeting)],
        ),
        (
            "empty messages",
            vec![frame(0x81, ""), frame(0x82, "")],
            vec![text(""), Seen::Binary(vec![])],
        ),
        (
            "every length class",
            [0, 1, 7, 8, 9, 125, 126, 127, 0xFFFF, 0x10000]
                .iter()
                .map(|length| frame(0x81, a(*length)))
                .collect(),
            [0, 1, 7, 8, 9, 125, 126, 127, 0xFFFF, 0x10000]
                .iter()
                .map(|length| text(&a(*length)))
                .collect(),
        ),
        (
            "binary",
            vec![frame(0x82, [0, 0xFF, 0xC0])],
            vec![Seen::Binary(vec![0, 0xFF, 0xC0])],
        ),
        (
            "ping and pong",
            vec![frame(0x89, a(125)), frame(0x8A, ""), frame(0x89, "")],
            vec![
                Seen::Ping(a(125).into_bytes()),
                Seen::Pong(vec![]),
                Seen::Ping(vec![]),
            ],
        ),
        (
            "fragments, one of them empty",
            vec![frame(0x01, "He"), frame(0x00, ""), frame(0x80, "llo")],
            vec![text("Hello")],
        ),
        (
            "a first fragment that is empty",
            vec![frame(0x01, ""), frame(0x80, "")],
            vec![text("")],
        ),
        (
            "binary fragments",
            vec![frame(0x02, [0xFF]), frame(0x80, [0xFE])],
            vec![Seen::Binary(vec![0xFF, 0xFE])],
        ),
        (
            "control frames between fragments come first",
            vec![
                frame(0x01, "a"),
                frame(0x89, "p"),
                frame(0x00, "b"),
                frame(0x8A, "q"),
                frame(0x80, "c"),
                frame(0x81, "d"),
            ],
            vec![
                Seen::Ping(b"p".to_vec()),
                Seen::Pong(b"q".to_vec()),
                text("abc"),
                text("d"),
            ],
        ),
        (
            "characters cut by fragments",
            greeting
                .as_bytes()
                .iter()
                .enumerate()
                .map(|(index, byte)| frame(u8::from(index == 0), [*byte]))
                .chain([frame(0x80, "")])
                .collect(),
            vec![text(greeting)],
        ),
        (
            "an item before the error",
            vec![frame(0x81, "a"), frame(0x83, "")],
            vec![text("a"), Seen::Failed(CodecError::ReservedOpcode)],
        ),
        (
            "close without a body",
            vec![frame(0x88, ""), frame(0x81, "unread")],
            vec![Seen::Close(None, String::new())],
        ),
        (
            "close with a reason",
            vec![close(1000, "bye é".as_bytes()), vec![0xFF; 9]],
            vec![Seen::Close(Some(1000), "bye é".to_owned())],
        ),
        (
            "close with the longest reason",
            vec![close(4999, &[b'x'; 123])],
            vec![Seen::Close(Some(4999), "x".repeat(123))],
        ),
        (
            "close inside a message",
            vec![frame(0x01, "a"), close(1000, b"")],
            vec![Seen::Close(Some(1000), String::new())],
        ),
        (
            "close of one byte",
            vec![frame(0x88, [3])],
            failed(CodecError::MalformedClose),
        ),
        (
            "close reason not UTF-8",
            vec![close(1000, &[0xC3, 0x28])],
            failed(CodecError::InvalidUtf8),
        ),
        (
            "close reason cut",
            vec![close(1000, &[0xC3])],
            failed(CodecError::InvalidUtf8),
        ),
        (
            "not masked",
            vec![vec![0x81, 0x01, b'a']],
            failed(CodecError::Unmasked),
        ),
        (
            "RSV 1",
            vec![frame(0xC1, "a")],
            failed(CodecError::ReservedBit),
        ),
        (
            "RSV 2",
            vec![frame(0xA1, "a")],
            failed(CodecError::ReservedBit),
        ),
        (
            "RSV 3 on a ping",
            vec![frame(0x99, "a")],
            failed(CodecError::ReservedBit),
        ),
        (
            "a ping of 126 bytes",
            vec![frame(0x89, a(126))],
            failed(CodecError::LongControlFrame),
        ),
        (
            "a fragmented ping",
            vec![frame(0x09, "a")],
            failed(CodecError::FragmentedControlFrame),
        ),
        (
            "continuation of nothing",
            vec![frame(0x80, "a")],
            failed(CodecError::NothingToContinue),
        ),
        (
            "continuation after the end",
            vec![frame(0x81, "a"), frame(0x00, "b")],
            vec![text("a"), Seen::Failed(CodecError::NothingToContinue)],
        ),
        (
            "text inside a message",
            vec![frame(0x01, "a"), frame(0x81, "b")],
            failed(CodecError::MessageUnderWay),
        ),
        (
            "binary inside a message",
            vec![frame(0x01, "a"), frame(0x02, "b")],
            failed(CodecError::MessageUnderWay),
        ),
        (
            "125 in two bytes",
            vec![vec![0x81, 0xFE, 0, 125], MASK.to_vec(), vec![0; 125]],
            failed(CodecError::MalformedLength),
        ),
        (
            "65535 in eight bytes",
            vec![
                vec![0x81, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF],
                MASK.to_vec(),
            ],
            failed(CodecError::MalformedLength),
        ),
        (
            "length above 2^63",
            vec![vec![0x81, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], MASK.to_vec()],
            failed(CodecError::MalformedLength),
        ),
        (
            "length of 2^63 - 1",
            vec![
                vec![0x81, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF],
                MASK.to_vec(),
            ],
            failed(CodecError::MessageTooBig),
        ),
        (
            "a message at the limit",
            vec![frame(0x81, a(100_000))],
            vec![text(&a(100_000))],
        ),
        (
            "a header above the limit, nothing else",
            vec![frame(0x82, a(100_001))[..14].to_vec()],
            failed(CodecError::MessageTooBig),
        ),
        (
            "fragments at the limit",
            vec![frame(0x01, a(60_000)), frame(0x80, a(40_000))],
            vec![text(&a(100_000))],
        ),
        (
            "fragments above the limit",
            vec![frame(0x02, a(60_000)), frame(0x80, a(40_001))[..8].to_vec()],
            failed(CodecError::MessageTooBig),
        ),
        (
            "cut characters count for the limit",
            vec![
                frame(0x01, a(99_999)),
                frame(0x00, [0xC3]),
                frame(0x80, [0xA9]),
            ],
            failed(CodecError::MessageTooBig),
        ),
    ];
    for (name, frames, expected) in scripts {
        check_three_ways(name, &frames.concat(), &LIMITS, &expected);
    }
}

#[test]
fn every_reserved_opcode_is_a_violation() {
    for opcode in (0x3..=0x7).chain(0xB..=0xF) {
        let name = format!("opcode {opcode}");
        check_three_ways(
            &name,
            &frame(0x80 | opcode, "a"),
            &LIMITS,
            &[Seen::Failed(CodecError::ReservedOpcode)],
        );
    }
}

#[test]
fn only_close_codes_that_may_be_sent_are_taken() {
    let allowed = |code: u16| {
        matches!(
            code,
            1000 | 1001 | 1002 | 1003 | 1007 | 1008 | 1009 | 1010 | 1011 | 1012 | 1013 | 1014
        ) || (3000..5000).contains(&code)
    };
    for code in 0..=u16::MAX {
        let expected = if allowed(code) {
            Seen::Close(Some(code), String::new())
        } else {
            Seen::Failed(CodecError::InvalidCloseCode)
        };
        assert_eq!(
            decode(&[&close(code, b"")], &LIMITS).0,
            [expected],
            "{code}"
        );
    }
}

#[test]
fn text_that_is_not_utf_8_fails_the_same_in_one_frame_and_in_fragments() {
    let invalid: [&[u8]; 9] = [
        &[0xFF],
        &[b'a', 0x80],
        &[0xC0, 0xAF],
        &[0xE0, 0x80, 0xAF],
        &[0xED, 0xA0, 0x80],
        &[0xF4, 0x90, 0x80, 0x80],
        &[0xF8, 0x88, 0x80, 0x80, 0x80],
        &[0xE2, 0x82],
        &[0xF0, 0x9F, 0x98, b'a'],
    ];
    for bytes in invalid {
        let expected = [Seen::Failed(CodecError::InvalidUtf8)];
        let name = format!("{bytes:x?}");
        check_three_ways(&name, &frame(0x81, bytes), &LIMITS, &expected);
        for at in 0..=bytes.len() {
            let script = [frame(0x01, &bytes[..at]), frame(0x80, &bytes[at..])].concat();
            check_three_ways(&name, &script, &LIMITS, &expected);
        }
    }
}

#[test]
fn invalid_text_fails_before_its_frame_is_complete() {
    let mut whole = frame(
        0x81,
        [&[b'a'; 50_000][..], &[0xF4, 0x90], &[b'a'; 40_000]].concat(),
    );
    let until_the_second_byte = 14 + 50_000 + 2;
    whole.truncate(until_the_second_byte);
    assert_eq!(
        decode(&[&whole], &LIMITS).0,
        [Seen::Failed(CodecError::InvalidUtf8)]
    );
    whole.truncate(until_the_second_byte - 1);
    assert_eq!(
        decode(&[&whole], &LIMITS).0,
        [],
        "F4 alone could still become a character"
    );
}

#[test]
fn errors_close_with_the_codes_of_the_protocol() {
    assert_eq!(CodecError::InvalidUtf8.close_code(), 1007);
    assert_eq!(CodecError::MessageTooBig.close_code(), 1009);
    for error in [
        CodecError::Unmasked,
        CodecError::ReservedBit,
        CodecError::ReservedOpcode,
        CodecError::MalformedLength,
        CodecError::LongControlFrame,
        CodecError::FragmentedControlFrame,
        CodecError::NothingToContinue,
        CodecError::MessageUnderWay,
        CodecError::MalformedClose,
        CodecError::InvalidCloseCode,
    ] {
        assert_eq!(error.close_code(), 1002, "{error}");
        assert!(error.to_string().len() <= 123, "{error} fits a close frame");
    }
}

#[test]
fn a_whole_frame_is_borrowed_and_leaves_nothing_behind() {
    let mut codec = Codec::new();
    for bytes in [
        frame(0x81, "text"),
        frame(0x82, "bytes"),
        frame(0x89, "ping"),
        close(1000, b"bye"),
    ] {
        let mut input = [bytes.clone(), vec![0x81]].concat();
        let range = input.as_ptr_range();
        let decoded = codec.decode(&mut input, &LIMITS).expect("valid");
        assert_eq!(decoded.consumed, bytes.len(), "the next frame is untouched");
        let payload = match decoded.item.expect("complete") {
            Item::Text(std::borrow::Cow::Borrowed(text)) => text.as_bytes(),
            Item::Binary(std::borrow::Cow::Borrowed(bytes))
            | Item::Ping(std::borrow::Cow::Borrowed(bytes)) => bytes,
            Item::Close {
                reason: std::borrow::Cow::Borrowed(reason),
                ..
            } => reason.as_bytes(),
            other => panic!("not borrowed: {other:?}"),
        };
        assert!(range.contains(&payload.as_ptr()));
        assert_eq!((codec.is_idle(), codec.heap_bytes()), (true, 0));
    }
}

#[test]
fn the_debug_texts_hold_nothing_of_a_message() {
    let mut codec = Codec::new();
    let mut input = [frame(0x81, "hunter2"), frame(0x01, "hunter2")].concat();
    let first = codec.decode(&mut input, &LIMITS).expect("valid");
    let (shown, consumed) = (format!("{first:?}"), first.consumed);
    assert!(shown.contains("Text(7 bytes)"), "{shown}");
    codec
        .decode(&mut input[consumed..], &LIMITS)
        .expect("valid");
    let shown = format!("{shown} {codec:?}");
    assert!(!codec.is_idle() && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_deflated_message_comes_out_whole_and_as_it_came() {
    let limits = CodecLimits {
        may_be_deflated: true,
        ..LIMITS
    };
    let deflated = |kind, bytes: &[u8]| Seen::Deflated(kind, bytes.to_vec());
    let not_text = b"\xF2\x48\xFF\x00";
    let bytes = [
        frame(0xC1, not_text),
        frame(0x81, "plain"),
        frame(0x42, b"\xFF1"),
        frame(0x89, "ping"),
        frame(0x00, b""),
        frame(0x80, b"2\xFE"),
        frame(0xC2, b""),
    ]
    .concat();
    let expected = [
        deflated(DataKind::Text, not_text),
        text("plain"),
        Seen::Ping(b"ping".to_vec()),
        deflated(DataKind::Binary, b"\xFF12\xFE"),
        deflated(DataKind::Binary, b""),
    ];
    check_three_ways("deflated", &bytes, &limits, &expected);
    let small = CodecLimits {
        message_bytes_max: 4,
        ..limits
    };
    let bytes = [frame(0x41, "abc"), frame(0x80, "de")].concat();
    let too_big = [Seen::Failed(CodecError::MessageTooBig)];
    check_three_ways("deflated, too big", &bytes, &small, &too_big);
    let small = CodecLimits {
        deflated_bytes_max: 4,
        ..limits
    };
    check_three_ways("too big for a deflated one", &bytes, &small, &too_big);
    let within = [frame(0x41, "ab"), frame(0x80, "cd"), frame(0x81, "plain")].concat();
    let expected = [deflated(DataKind::Text, b"abcd"), text("plain")];
    check_three_ways("only plain ones may be", &within, &small, &expected);
}

#[test]
fn rsv1_stands_only_where_it_means_something() {
    let agreed = CodecLimits {
        may_be_deflated: true,
        ..LIMITS
    };
    let broken = [Seen::Failed(CodecError::ReservedBit)];
    for first in [0xC8, 0xC9, 0xCA, 0xC0, 0xA1, 0x91, 0xE1] {
        check_three_ways("reserved bit", &frame(first, ""), &agreed, &broken);
    }
    for first in [0xC1, 0xC2, 0x41, 0x42] {
        check_three_ways("not agreed on", &frame(first, "x"), &LIMITS, &broken);
    }
    let bytes = [frame(0x41, "x"), frame(0xC0, "y")].concat();
    check_three_ways("a continuation", &bytes, &agreed, &broken);
}

#[test]
fn a_promised_length_costs_no_memory_until_it_arrives() {
    let unlimited = CodecLimits {
        message_bytes_max: usize::MAX,
        ..LIMITS
    };
    let header = [
        &[0x82, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF][..],
        &MASK,
    ]
    .concat();
    let (seen, codec) = decode(&[&header, b"few"], &unlimited);
    assert_eq!(seen, []);
    assert!(
        !codec.is_idle() && codec.heap_bytes() <= HEAP_BYTES_FIXED,
        "{}",
        codec.heap_bytes()
    );
}

#[test]
fn a_message_in_single_byte_fragments_costs_no_more_than_its_bytes() {
    let mut codec = Codec::new();
    let mut feed = |mut bytes: Vec<u8>| {
        let item = codec
            .decode(&mut bytes, &LIMITS)
            .expect("valid")
            .item
            .map(own);
        (item, codec.heap_bytes())
    };
    feed(frame(0x01, ""));
    for _ in 0..100_000 {
        let (item, heap_bytes) = feed(frame(0x00, ""));
        assert!(
            item.is_none() && heap_bytes <= HEAP_BYTES_FIXED,
            "empty fragments cost nothing"
        );
    }
    for sent in 1..=100_000 {
        let (item, heap_bytes) = feed(frame(0x00, "a"));
        assert!(item.is_none() && heap_bytes <= sent * 5 / 4 + HEAP_BYTES_FIXED);
    }
    let (item, heap_bytes) = feed(frame(0x80, ""));
    assert_eq!((item, heap_bytes), (Some(text(&"a".repeat(100_000))), 0));
}

#[test]
fn a_message_that_lacks_a_byte_is_kept_in_no_more_memory_than_it_has_and_moved_seldom() {
    const LENGTH: usize = 60_000;
    for step in [1, 7, 2_000, LENGTH - 1] {
        let mut codec = Codec::new();
        let mut whole = frame(0x81, "a".repeat(LENGTH));
        let last = whole.len() - 1;
        let (mut growths, mut before) = (0, 0);
        for piece in whole[..last].chunks_mut(step) {
            let decoded = codec.decode(piece, &LIMITS).expect("valid");
            assert!(decoded.item.is_none());
            growths += usize::from(codec.heap_bytes() > before);
            before = codec.heap_bytes();
        }
        assert!(
            before <= LENGTH + HEAP_BYTES_FIXED,
            "{step}: {before} bytes"
        );
        assert!(growths < 50, "{step}: moved {growths} times");
        let decoded = codec.decode(&mut whole[last..], &LIMITS).expect("valid");
        assert!(decoded.item.is_some());
    }
}

/// The bytes of a client, as a stream whose end is an error and whose other direction goes nowhere.
struct Script(Cursor<Vec<u8>>);

impl Read for Script {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Script {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What tungstenite's server reads from the same bytes, and whether it ended at a violation rather than at the end.
fn oracle(bytes: &[u8]) -> (Vec<Seen>, bool) {
    let mut socket =
        WebSocket::from_raw_socket(Script(Cursor::new(bytes.to_vec())), Role::Server, None);
    let mut seen = Vec::new();
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => seen.push(Seen::Text(text.to_string())),
            Ok(Message::Binary(bytes)) => seen.push(Seen::Binary(bytes.to_vec())),
            Ok(Message::Ping(payload)) => seen.push(Seen::Ping(payload.to_vec())),
            Ok(Message::Pong(payload)) => seen.push(Seen::Pong(payload.to_vec())),
            Ok(Message::Close(_) | Message::Frame(_)) => return (seen, false),
            Err(tungstenite::Error::Protocol(
                tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
            )) => {
                return (seen, false);
            }
            Err(tungstenite::Error::Protocol(_) | tungstenite::Error::Utf8(_)) => {
                return (seen, true);
            }
            Err(_) => return (seen, false),
        }
    }
}

/// One message: its payload, where it is cut into fragments, and a control frame before each fragment or none.
#[derive(Clone, Debug)]
struct Sent {
    message: Seen,
    cuts: Vec<prop::sample::Index>,
    controls: Vec<Option<(bool, Vec<u8>)>>,
    mask: [u8; 4],
}

fn sent() -> impl Strategy<Value = Sent> {
    let message = prop_oneof![
        ".{0,300}".prop_map(Seen::Text),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Seen::Binary),
    ];
    let control = prop::option::of((any::<bool>(), prop::collection::vec(any::<u8>(), 0..126)));
    (
        message,
        prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        prop::collection::vec(control, 6),
        any::<[u8; 4]>(),
    )
        .prop_map(|(message, cuts, controls, mask)| Sent {
            message,
            cuts,
            controls,
            mask,
        })
}

/// Writes one message with tungstenite's frames; returns what must be read.
fn write(sent: &Sent, bytes: &mut Vec<u8>) -> Vec<Seen> {
    let (first, payload) = match &sent.message {
        Seen::Text(text) => (Data::Text, text.as_bytes()),
        Seen::Binary(payload) => (Data::Binary, &payload[..]),
        other => panic!("not a message: {other:?}"),
    };
    let mut push = |mut frame: Frame| {
        frame.header_mut().mask = Some(sent.mask);
        frame.format(bytes).expect("memory");
    };
    let mut cuts: Vec<usize> = sent
        .cuts
        .iter()
        .map(|cut| cut.index(payload.len() + 1))
        .collect();
    cuts.sort_unstable();
    cuts.push(payload.len());
    let mut expected = Vec::new();
    let mut start = 0;
    for (index, end) in cuts.iter().enumerate() {
        if let Some((is_ping, payload)) = &sent.controls[index] {
            let (frame, seen) = if *is_ping {
                (Frame::ping(payload.clone()), Seen::Ping(payload.clone()))
            } else {
                (Frame::pong(payload.clone()), Seen::Pong(payload.clone()))
            };
            assert!(matches!(
                frame.header().opcode,
                OpCode::Control(Control::Ping | Control::Pong)
            ));
            push(frame);
            expected.push(seen);
        }
        let opcode = OpCode::Data(if index == 0 { first } else { Data::Continue });
        push(Frame::message(
            payload[start..*end].to_vec(),
            opcode,
            index + 1 == cuts.len(),
        ));
        start = *end;
    }
    expected.push(sent.message.clone());
    expected
}

/// Bytes that are almost frames: any first byte, mostly masked, a length that mostly fits, any payload.
fn almost_frames() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        4 => prop::sample::select(vec![0x81, 0x82, 0x01, 0x00, 0x80, 0x89, 0x8A]),
        1 => any::<u8>(),
    ];
    let frame = (
        first,
        prop_oneof![9 => Just(0x80_u8), 1 => Just(0)],
        prop::collection::vec(any::<u8>(), 0..140),
        0..4_u8,
        any::<bool>(),
    )
        .prop_map(|(first, mask_bit, payload, off, is_ascii)| {
            let length = payload.len() as u8 ^ if off == 0 { 1 } else { 0 };
            let mut bytes = vec![first];
            match length {
                0..126 => bytes.push(mask_bit | length),
                _ => bytes.extend([mask_bit | 126, 0, length]),
            }
            bytes.extend([0; 4]);
            bytes.extend(
                payload
                    .iter()
                    .map(|byte| if is_ascii { byte & 0x7F } else { *byte }),
            );
            bytes
        });
    prop_oneof![
        4 => prop::collection::vec(frame, 0..8).prop_map(|frames| frames.concat()),
        1 => prop::collection::vec(any::<u8>(), 0..400),
    ]
}

proptest! {
    #[test]
    fn valid_messages_come_out_as_they_were_sent(sent in prop::collection::vec(sent(), 0..5), seed: u64) {
        let mut bytes = Vec::new();
        let expected: Vec<Seen> = sent.iter().flat_map(|sent| write(sent, &mut bytes)).collect();
        prop_assert_eq!(&oracle(&bytes).0, &expected);
        let (seen, codec) = decode(&cut_at_random(&bytes, seed), &LIMITS);
        prop_assert_eq!(seen, expected);
        prop_assert!(codec.is_idle());
        prop_assert_eq!(codec.heap_bytes(), 0);
    }

    #[test]
    fn any_bytes_give_the_same_however_they_are_cut(bytes in almost_frames(), seed: u64) {
        let limits = CodecLimits { message_bytes_max: 300, ..LIMITS };
        let (whole, _) = decode(&[&bytes], &limits);
        let (cut, _) = decode(&cut_at_random(&bytes, seed), &limits);
        prop_assert_eq!(whole, cut);
    }

    #[test]
    fn what_the_oracle_refuses_is_refused(bytes in almost_frames()) {
        let (theirs, refused) = oracle(&bytes);
        let (ours, _) = decode(&[&bytes], &LIMITS);
        if refused {
            prop_assert!(matches!(ours.last(), Some(Seen::Failed(_) | Seen::Close(..))), "{:?} {:?}", ours, theirs);
        }
        if let Some((Seen::Failed(_), valid)) = ours.split_last() {
            prop_assert!(theirs.starts_with(valid), "{:?} {:?}", ours, theirs);
        }
    }

    #[test]
    fn a_judged_request_is_judged_the_same_with_more_behind_it(
        head in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "(GET|HEAD|PUT) [/a-z?=&:*]{1,20} HTTP/1.[01]\r\n((Host|Upgrade|Connection|Sec-WebSocket-(Key|Version)|Authorization): ?[ -~]{0,30}\r\n){0,8}\r\n"
                .prop_map(String::into_bytes),
        ],
        more in prop::collection::vec(any::<u8>(), 0..50),
        at: prop::sample::Index,
    ) {
        let whole = [&head[..], &more].concat();
        let part = &whole[..at.index(whole.len() + 1)];
        if let Parsed::Complete { consumed, request } = handshake::parse(part) {
            prop_assert!(consumed <= part.len());
            let Parsed::Complete { request: later, .. } = handshake::parse(&whole) else {
                return Err(TestCaseError::fail("complete became incomplete"));
            };
            prop_assert_eq!(request, later);
        }
        let _ = admin_request::parse(&whole, None);
    }

    #[test]
    fn no_damage_to_a_command_brings_its_token_into_an_error(
        noise in "[\\PC\"{}\\[\\]:,0-9ntf\\\\]{0,20}",
        at: prop::sample::Index,
        removed in 0..40_usize,
    ) {
        let whole = r#"{"data":{"account_id":"a","binding":"b"},"auth_token":"hunter2","request_id":"r","action":"subscribe"}"#;
        let start = at.index(whole.len());
        let end = (start + removed).min(whole.len());
        let damaged = format!("{}{noise}{}", &whole[..start], &whole[end..]);
        let shown = match command::parse(&damaged, &CommandLimits { metadata_bytes_max: 4096 }) {
            Ok(command) => command.action.err().map(|error| error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(shown) = shown.filter(|shown| !shown.starts_with("unknown action")) {
            prop_assert!(!shown.contains("hunter2"), "{}", shown);
        }
    }

    #[test]
    fn any_text_is_a_command_or_an_error(text in "[\\PC\"{}\\[\\]:,0-9ntf\\\\]{0,200}") {
        let parsed = command::parse(&text, &CommandLimits { metadata_bytes_max: 16 });
        prop_assert!(parsed.is_ok() || parsed.is_err_and(|error| error.to_string().starts_with("invalid")));
    }
}
