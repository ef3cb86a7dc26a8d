use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Instant;

use super::bounds::{BODY_BYTES_MAX, CONTENTS_MAX, Violation};
use super::fields::{
    CONTENT_BYTES_SCREENED_MAX, CONTENT_ENCODING, CONTENT_TYPE, HEADERS,
    STREAM_CONTENT_BYTES_SCREENED_MAX, TIMESTAMP,
};
use super::{FRAME_BYTES_MAX, Guard, METHOD_BYTES_MAX, Vitals, pass_on};
use crate::event;

/// Gives its bytes in pieces of the given sizes, would block between them, and takes `writes` bytes.
struct Script {
    bytes: Vec<u8>,
    piece: usize,
    blocked: bool,
}

impl Read for Script {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.blocked = !self.blocked;
        if self.blocked {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let n = self.piece.min(self.bytes.len()).min(into.len());
        into[..n].copy_from_slice(&self.bytes[..n]);
        self.bytes.drain(..n);
        Ok(n)
    }
}

impl Write for Script {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Ok(0)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Everything a guard passes on, fed in pieces of `piece` bytes.
fn through(bytes: &[u8], piece: usize) -> Result<Vec<u8>, Violation> {
    through_as(Vitals::new(Instant::now()), bytes, piece)
}

fn through_as(vitals: Vitals, bytes: &[u8], piece: usize) -> Result<Vec<u8>, Violation> {
    let script = Script {
        bytes: bytes.to_vec(),
        piece,
        blocked: false,
    };
    let mut guard = Guard::new(script, Arc::new(vitals));
    let (mut passed, mut into) = (Vec::new(), [0; 4096]);
    loop {
        match guard.read(&mut into) {
            Ok(0) => return Ok(passed),
            Ok(n) => passed.extend_from_slice(&into[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                assert_eq!(guard.vitals.violations(), 1);
                let inner = error.into_inner().expect("a violation inside");
                return Err(*inner.downcast::<Violation>().expect("a violation inside"));
            }
        }
    }
}

/// The same, whole, byte by byte, and in between; all must agree.
fn screened(bytes: &[u8]) -> Result<Vec<u8>, Violation> {
    let whole = through(bytes, bytes.len().max(1));
    for piece in [1, 2, 3, 7, 1000] {
        assert_eq!(through(bytes, piece), whole, "in pieces of {piece}");
    }
    whole
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&[kind, 0, 1][..], &size, payload, &[0xce]].concat()
}

/// The same frames, on another channel.
fn on(channel: u8, mut frame: Vec<u8>) -> Vec<u8> {
    frame[2] = channel;
    frame
}

fn deliver(exchange: &[u8], key: &[u8]) -> Vec<u8> {
    deliver_as(7, exchange, key)
}

fn deliver_as(tag: u8, exchange: &[u8], key: &[u8]) -> Vec<u8> {
    let short = |text: &[u8]| [&[u8::try_from(text.len()).expect("short")][..], text].concat();
    let tag_and_flag = [0, 0, 0, 0, 0, 0, 0, tag, 0];
    frame(
        1,
        &[
            &[0, 60, 0, 60][..],
            &short(b"tag"),
            &tag_and_flag,
            &short(exchange),
            &short(key),
        ]
        .concat(),
    )
}

fn content(body: u64, flags: u16, properties: &[u8]) -> Vec<u8> {
    frame(
        2,
        &[
            &[0, 60, 0, 0][..],
            &body.to_be_bytes(),
            &flags.to_be_bytes(),
            properties,
        ]
        .concat(),
    )
}

#[test]
fn a_well_formed_stream_passes_unchanged() {
    let stream = [
        deliver(b"callevt", b"call.CHANNEL_CREATE.x"),
        content(
            3,
            CONTENT_TYPE | CONTENT_ENCODING,
            b"\x10application/json\x04gzip",
        ),
        frame(3, b"abc"),
        frame(8, b""),
        frame(1, &[0, 60, 0, 21, 1, b't']),
    ]
    .concat();
    assert_eq!(screened(&stream), Ok(stream));
}

#[test]
fn every_property_but_type_encoding_and_timestamp_is_hidden_from_the_parser() {
    let table = vec![b'A'; 20_000];
    let hostile = [&b"\x04gzip"[..], &[0, 0, 78, 32], &table].concat();
    let passed =
        screened(&content(1, CONTENT_ENCODING | 0x3fff, &hostile)).expect("nothing to refuse");
    assert_eq!(passed, content(1, CONTENT_ENCODING, &hostile));
}

#[test]
fn what_is_not_utf8_is_substituted_in_place() {
    let passed = screened(&deliver(b"ex\xff", "ü\u{20ac}".as_bytes())).expect("nothing to refuse");
    assert_eq!(passed, deliver(b"ex\x1a", "ü\u{20ac}".as_bytes()));
    let passed = screened(&deliver(b"e", b"a.\xc3(.\xe2\x82")).expect("nothing to refuse");
    assert_eq!(passed, deliver(b"e", b"a.\x1a(.\x1a\x1a"));
    let passed = screened(&content(0, CONTENT_ENCODING, b"\x02g\xfe")).expect("nothing to refuse");
    assert_eq!(passed, content(0, CONTENT_ENCODING, b"\x02g\x1a"));
}

#[test]
fn a_timestamp_is_brought_to_the_front_from_behind_any_other_properties() {
    let stamp = *b"\x00\x01\x02\x03\xff\x05\x06\x07";
    let table = |bytes: usize| {
        [
            &u32::try_from(bytes).expect("small").to_be_bytes()[..],
            &vec![0xfe; bytes],
        ]
        .concat()
    };
    let room = CONTENT_BYTES_SCREENED_MAX - 14;
    for (flags, front, before, is_kept) in [
        (0, &b""[..], vec![], true),
        (
            CONTENT_TYPE | CONTENT_ENCODING,
            b"\x01t\x04gzip",
            vec![],
            true,
        ),
        (1 << 13, b"", table(0), true),
        (1 << 13, b"", table(300), true),
        (1 << 13, b"", table(room - 4 - 8), true),
        (1 << 13, b"", table(room - 4 - 7), false),
        (1 << 13, b"", table(60_000), false),
        (
            0x3f80,
            b"",
            [&table(9)[..], b"\x02\x05\x01c\x00\x03exp\x02id"].concat(),
            true,
        ),
        (
            CONTENT_ENCODING | 0x3f80 | 0x3c,
            b"\x01e",
            [&table(9)[..], b"\x02\x05\x01c\x00\x03exp\x02id"].concat(),
            true,
        ),
        // A table that is said to be longer than the frame, and more flags than basic has.
        (1 << 13, b"", b"\xff\xff\xff\xff".to_vec(), false),
        (1, b"", vec![], false),
    ] {
        let of_parser = flags & (CONTENT_TYPE | CONTENT_ENCODING);
        let behind = [&before[..], &stamp, b"behind"].concat();
        let sent = content(1, flags | TIMESTAMP, &[front, &behind].concat());
        let mut seen = behind.clone();
        let mut flags_seen = of_parser;
        if is_kept {
            seen[..8].copy_from_slice(&stamp);
            flags_seen |= TIMESTAMP;
        }
        let passed = screened(&sent).expect("nothing to refuse");
        assert!(
            passed == content(1, flags_seen, &[front, &seen].concat()),
            "{flags:x} {} bytes",
            before.len()
        );
    }
    let cut = content(1, TIMESTAMP, b"1234567");
    assert_eq!(screened(&cut), Ok(content(1, 0, b"1234567")));
}

#[test]
fn the_offset_of_a_streams_delivery_is_brought_to_the_front_whatever_its_headers_are() {
    let named = |name: &[u8], value: &[u8]| {
        [&[u8::try_from(name.len()).expect("short")][..], name, value].concat()
    };
    let offset = named(b"x-stream-offset", b"l\x00\x01\x02\x03\x04\x05\x06\x07");
    let table = |headers: &[u8]| {
        let length = u32::try_from(headers.len()).expect("small");
        [&length.to_be_bytes()[..], headers].concat()
    };
    let text = |bytes: usize| {
        let length = u32::try_from(bytes).expect("small");
        named(
            b"h",
            &[&b"S"[..], &length.to_be_bytes(), &vec![0xff; bytes]].concat(),
        )
    };
    let every_kind: Vec<u8> = [
        &b"t1"[..],
        b"b1",
        b"B1",
        b"s12",
        b"u12",
        b"U12",
        b"I1234",
        b"i1234",
        b"f1234",
        b"l12345678",
        b"L12345678",
        b"d12345678",
        b"T12345678",
        b"D12345",
        b"V",
        b"S\0\0\0\x02ab",
        b"x\0\0\0\x02ab",
        b"A\0\0\0\x06AAAAAA",
        b"F\0\0\0\x03F\xff\xff",
    ]
    .iter()
    .flat_map(|value| named(b"h", value))
    .collect();
    // What stands before the offset: class, weight, size and flags; the table's length; the text's own head.
    let room = STREAM_CONTENT_BYTES_SCREENED_MAX - 14 - 4 - 7 - offset.len();
    let deep = named(b"a", &[&b"A\0\0\x30\0"[..], &[b'A'; 0x3000]].concat());
    for (headers, is_found) in [
        (table(&offset), true),
        (table(&[&every_kind[..], &offset].concat()), true),
        (table(&[&deep[..], &offset].concat()), true),
        // What is behind it does not matter, not even where it ends.
        (table(&[&offset[..], &text(60_000)].concat()), true),
        ([&[0xff; 4][..], &offset, b"garbage"].concat(), true),
        (table(&[&text(room)[..], &offset].concat()), true),
        (table(&[&text(room + 1)[..], &offset].concat()), false),
        (table(&text(10)), false),
        (table(&named(b"x-stream-offset", b"T12345678")), false),
        (table(&[&named(b"h", b"?")[..], &offset].concat()), false),
        (
            table(&[&named(b"h", b"S\xff\xff\xff\xff")[..], &offset].concat()),
            false,
        ),
        (table(b"\xff"), false),
        (table(b""), false),
    ] {
        let stamp = b"publish'";
        for flags in [
            HEADERS,
            HEADERS | TIMESTAMP,
            HEADERS | TIMESTAMP | CONTENT_ENCODING,
        ] {
            let front = if flags & CONTENT_ENCODING == 0 {
                &b""[..]
            } else {
                b"\x04gzip"
            };
            let behind = [&headers[..], stamp].concat();
            let sent = content(1, flags, &[front, &behind].concat());
            let (mut seen, mut flags_seen) = (behind, flags & CONTENT_ENCODING);
            let mut places = headers.windows(offset.len());
            let end = places.position(|place| place == offset).unwrap_or_default() + offset.len();
            if is_found && 14 + front.len() + end <= STREAM_CONTENT_BYTES_SCREENED_MAX {
                seen[..8].copy_from_slice(b"\x00\x01\x02\x03\x04\x05\x06\x07");
                flags_seen |= TIMESTAMP;
            }
            let expected = content(1, flags_seen, &[front, &seen].concat());
            for piece in [1, 1000, sent.len()] {
                let of_stream = Vitals::of_a_stream(Instant::now());
                let passed = through_as(of_stream, &sent, piece).expect("nothing to refuse");
                assert!(passed == expected, "{flags:x} {:?}", headers.get(..60));
            }
        }
    }
    // Without headers there is no offset, and a publisher's timestamp is none.
    let sent = content(1, TIMESTAMP, b"publish'");
    let passed = through_as(Vitals::of_a_stream(Instant::now()), &sent, 7);
    assert_eq!(passed, Ok(content(1, 0, b"publish'")));
}

#[test]
fn the_brokers_properties_are_blanked_and_its_heartbeat_is_never_off() {
    let start = |table: &[u8]| {
        frame(
            1,
            &[&[0, 10, 0, 10, 0, 9, 0, 0, 0, 9][..], table, b"rest"].concat(),
        )
    };
    assert_eq!(
        screened(&start(b"\x01aAnested")),
        Ok(start(b"\x00x\0\0\0\x03\0\0\0"))
    );
    let tune = |heartbeat| frame(1, &[0, 10, 0, 30, 7, 255, 0, 2, 0, 0, 0, heartbeat]);
    assert_eq!(screened(&tune(0)), Ok(tune(5)));
    assert_eq!(screened(&tune(60)), Ok(tune(60)));
}

#[test]
fn each_breach_of_a_bound_is_refused() {
    let too_large = [&[3, 0, 1][..], &(FRAME_BYTES_MAX - 7).to_be_bytes()].concat();
    let method = frame(1, &vec![0; METHOD_BYTES_MAX + 1]);
    let event = event::BODY_BYTES_MAX as u64;
    let events: Vec<u8> = (0..33)
        .flat_map(|_| [deliver(b"e", b"k"), content(event, 0, b"")].concat())
        .collect();
    let channels: Vec<u8> = (0..=CONTENTS_MAX as u8)
        .flat_map(|channel| on(channel, deliver(b"e", b"k")))
        .collect();
    let rows = [
        (b"AMQP\x00\x00\x09\x01".to_vec(), Violation::NotAFrame(b'A')),
        (b"HTTP".to_vec(), Violation::NotAFrame(b'H')),
        (too_large, Violation::FrameTooLarge(FRAME_BYTES_MAX - 7)),
        (method, Violation::MethodTooLarge(METHOD_BYTES_MAX + 1)),
        (
            content(BODY_BYTES_MAX + 1, 0, b""),
            Violation::BodyTooLarge(BODY_BYTES_MAX + 1),
        ),
        (
            [
                deliver(b"e", b"k"),
                frame(1, &[0, 60, 0, 21, 1, b't']),
                content(BODY_BYTES_MAX + 1, 0, b""),
            ]
            .concat(),
            Violation::BodyTooLarge(BODY_BYTES_MAX + 1),
        ),
        (events, Violation::BacklogTooLarge(33 * event)),
        (channels, Violation::TooManyContents),
        (
            frame(1, &[0, 50, 0, 10, 0]),
            Violation::ClientMethod(50, 10),
        ),
        (frame(1, &[0, 60]), Violation::Truncated),
        (frame(1, &[0, 60, 0, 60, 9]), Violation::Truncated),
        (frame(2, &[0, 60, 0, 0, 0]), Violation::Truncated),
        (content(0, CONTENT_TYPE, b"\x09short"), Violation::Truncated),
    ];
    for (bytes, expected) in rows {
        assert_eq!(screened(&bytes), Err(expected));
    }
}

#[test]
fn bodies_at_their_bounds_pass() {
    let stream: Vec<u8> = (0..4)
        .flat_map(|_| content(BODY_BYTES_MAX, 0, b""))
        .collect();
    assert_eq!(screened(&stream), Ok(stream));
    let largest = frame(3, &vec![b'x'; FRAME_BYTES_MAX as usize - 8]);
    assert_eq!(through(&largest, 4096), Ok(largest));
}

#[test]
fn a_body_that_is_too_large_is_swallowed_and_nothing_else_is() {
    let nothing = frame(8, b"");
    let too_large = || content(BODY_BYTES_MAX + 1, CONTENT_ENCODING, b"\x04gzip");
    let emptied = || content(0, CONTENT_ENCODING, b"\x04gzip");
    let honest = || [deliver(b"e", b"k"), content(3, 0, b""), frame(3, b"abc")].concat();
    let cancel = || frame(1, &[0, 60, 0, 21, 1, b't']);
    let heartbeat = || on(0, nothing.clone());
    // What comes behind `deliver` and a content header that is too large, and what is passed on of it.
    let rows = [
        ("nothing yet", vec![], vec![]),
        (
            "frames of its body, one of them empty",
            vec![frame(3, b"abc"), frame(3, b""), frame(3, &[7; 5000])],
            vec![heartbeat(), heartbeat(), heartbeat()],
        ),
        (
            "heartbeats between them",
            vec![frame(3, b"abc"), heartbeat(), frame(3, b"d")],
            vec![heartbeat(), heartbeat(), heartbeat()],
        ),
        (
            "a delivery of another channel between them, and methods of yet others",
            vec![
                on(2, deliver(b"e", b"k")),
                frame(3, b"abc"),
                on(2, content(4, 0, b"")),
                on(3, cancel()),
                frame(3, b"d"),
                on(2, frame(3, b"mine")),
                on(0, cancel()),
                frame(3, b"d"),
            ],
            vec![
                on(2, deliver(b"e", b"k")),
                heartbeat(),
                on(2, content(4, 0, b"")),
                on(3, cancel()),
                heartbeat(),
                on(2, frame(3, b"mine")),
                on(0, cancel()),
                heartbeat(),
            ],
        ),
        (
            "a body that is too large on another channel too",
            vec![
                on(2, deliver(b"e", b"k")),
                on(2, too_large()),
                frame(3, b"abc"),
                on(2, frame(3, b"def")),
                honest_on(2),
                frame(3, b"abc"),
            ],
            vec![
                on(2, deliver(b"e", b"k")),
                on(2, emptied()),
                heartbeat(),
                heartbeat(),
                honest_on(2),
                heartbeat(),
            ],
        ),
        (
            "less than was announced: a method ends it",
            vec![frame(3, b"abc"), cancel(), honest()],
            vec![heartbeat(), cancel(), honest()],
        ),
        (
            "nothing of what was announced: the next delivery ends it",
            vec![honest(), honest()],
            vec![honest(), honest()],
        ),
    ];
    for (what, behind, expected) in rows {
        let stream = [deliver(b"e", b"k"), too_large(), behind.concat()].concat();
        let expected = [deliver(b"e", b"k"), emptied(), expected.concat()].concat();
        assert_eq!(screened(&stream), Ok(expected), "{what}");
    }
}

fn honest_on(channel: u8) -> Vec<u8> {
    [
        on(channel, deliver(b"e", b"k")),
        on(channel, content(3, 0, b"")),
        on(channel, frame(3, b"abc")),
    ]
    .concat()
}

#[test]
fn a_swallowed_body_ends_with_its_announced_size() {
    let largest = FRAME_BYTES_MAX as usize - 8;
    let announced = BODY_BYTES_MAX + 1;
    let mut frames: Vec<Vec<u8>> = Vec::new();
    let mut left = usize::try_from(announced).expect("64 bits");
    while left > 0 {
        frames.push(frame(3, &vec![b'x'; largest.min(left)]));
        left = left.saturating_sub(largest);
    }
    let heartbeats = on(0, frame(8, b"")).repeat(frames.len());
    let head = |size| [deliver(b"e", b"k"), content(size, 0, b"")].concat();
    let next = [deliver(b"e", b"next"), content(1, 0, b""), frame(3, b"y")].concat();
    let whole = [head(announced), frames.concat(), next.clone()].concat();
    let mut passed = Vec::new();
    pass_on(&*whole, false, &mut passed).expect("nothing to refuse");
    assert!(passed == [head(0), heartbeats, next].concat());

    frames.pop();
    frames.push(frame(3, &vec![b'x'; largest]));
    let longer = [head(announced), frames.concat()].concat();
    let error = pass_on(&*longer, false, &mut Vec::new()).expect_err("too long");
    let beyond = frames.len() as u64 * largest as u64 - announced;
    let violation = error.into_inner().expect("a violation inside");
    assert_eq!(
        violation.downcast_ref(),
        Some(&Violation::BodyTooLong(beyond))
    );
}

#[test]
fn what_would_break_the_backlog_is_swallowed_when_it_is_no_event() {
    let (event, more) = (event::BODY_BYTES_MAX as u64, 64 << 20);
    let announce = |sizes: &[u64]| -> Vec<u8> {
        let frames = sizes
            .iter()
            .flat_map(|size| [deliver(b"e", b"k"), content(*size, 0, b"")]);
        frames.collect::<Vec<_>>().concat()
    };
    for (announced, expected) in [
        (vec![more; 4], vec![more; 4]),
        (vec![more; 5], vec![more, more, more, more, 0]),
        (
            vec![more, more, more, more - event, event + 1, event],
            vec![more, more, more, more - event, 0, event],
        ),
    ] {
        assert_eq!(screened(&announce(&announced)), Ok(announce(&expected)));
    }
}

#[test]
fn the_consumer_tells_a_swallowed_body_from_an_empty_one() {
    let (large, larger) = (BODY_BYTES_MAX + 1, u64::MAX);
    let stream: Vec<u8> = [(1, 0), (2, large), (3, 0), (4, larger), (5, large), (6, 0)]
        .into_iter()
        .flat_map(|(tag, size)| [deliver_as(tag, b"e", b"k"), content(size, 0, b"")].concat())
        .collect();
    let vitals = Arc::new(Vitals::new(Instant::now()));
    Guard::new(&*stream, vitals.clone())
        .read_to_end(&mut Vec::new())
        .expect("nothing to refuse");
    let told: Vec<_> = (1..=6).map(|tag| vitals.swallowed(tag)).collect();
    let expected = [None, Some(large), None, Some(larger), Some(large), None];
    assert_eq!(told, expected);
    assert_eq!(vitals.backlog_bytes(), 0);
}

#[test]
fn a_write_of_nothing_is_an_error_and_not_a_spin() {
    let script = Script {
        bytes: Vec::new(),
        piece: 1,
        blocked: false,
    };
    let mut guard = Guard::new(script, Arc::new(Vitals::new(Instant::now())));
    assert_eq!(
        guard.write(b"x").expect_err("zero bytes taken").kind(),
        io::ErrorKind::WriteZero
    );
}
