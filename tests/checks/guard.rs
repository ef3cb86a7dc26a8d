//! What of a broker's bytes the AMQP client gets to see (AMQP rails 1 and 3).
//!
//! Input: one byte that seeds the cuts; then what a broker sends.
//!
//! Invariants, read off the frames by a second, plain parser and by the client's own: the same verdict however the
//! bytes are cut, and the same bytes as far as they were passed on; nothing is added, nothing is taken away but the body
//! of a delivery that is too large, whose size is then none and whose frames are heartbeats; nothing else is changed but
//! a start's table, a tune's heartbeat, a delivery's names and a content's flags, type and encoding, and a copy of its
//! timestamp, or of a stream's offset in its place; no
//! frame passes that is above its bound; a whole delivery or content that passes is one that the client can parse, with no
//! table in it.

use std::collections::HashMap;
use std::io::{self, Read};

use amq_protocol::frame::{AMQPFrame, parse_frame};
use amq_protocol::protocol::{AMQPClass, basic, connection};
use blackhole::amqp::pass_through_guard;

const HEADER_BYTES: usize = 7;
const FRAME_BYTES_MAX: usize = 131_072;
const METHOD_BYTES_MAX: usize = 16 << 10;
const BODY_BYTES_MAX: u64 = 64 << 20;
const BACKLOG_BYTES_MAX: u64 = 256 << 20;
/// A larger body is no event: it is swallowed rather than that the backlog grows beyond its bound.
const EVENT_BYTES_MAX: u64 = 8 << 20;
/// What of a content may be changed: class, weight, size, flags, two names of at most 255 bytes, and what stands where the
/// timestamp is copied to, which is found within these bytes.
const CONTENT_BYTES_CHANGED: usize = 4096;
/// The same of a stream's deliveries.
const STREAM_CONTENT_BYTES_CHANGED: usize = 16 << 10;
const FRAME_END: u8 = 0xCE;
/// Above it a stream is not fed byte by byte, which costs its square.
const SINGLE_BYTES_MAX: usize = 4096;

const METHOD: u8 = 1;
const CONTENT: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT_HEADER: [u8; HEADER_BYTES] = [8, 0, 0, 0, 0, 0, 0];
const START: [u8; 4] = [0, 10, 0, 10];
const TUNE: [u8; 4] = [0, 10, 0, 30];
const DELIVER: [u8; 4] = [0, 60, 0, 60];

/// See the module's page.
pub fn check(data: &[u8]) -> String {
    let Some((&seed, stream)) = data.split_first() else {
        return "nothing".to_owned();
    };
    let (_, offsets) = check_as(seed, stream, true);
    let (outcome, _) = check_as(seed, stream, false);
    if offsets > 0 {
        format!("{outcome}, with an offset")
    } else {
        outcome
    }
}

/// Returns what came of it, and how many offsets of a stream were handed on.
fn check_as(seed: u8, stream: &[u8], is_stream: bool) -> (String, usize) {
    let (passed, verdict) = pass(&[stream], is_stream);
    let mut ways = vec![super::cut(stream, seed), super::cut(stream, !seed)];
    if stream.len() <= SINGLE_BYTES_MAX {
        ways.push(stream.chunks(1).collect());
    }
    for pieces in ways {
        let (cut, cut_verdict) = pass(&pieces, is_stream);
        assert_eq!(cut_verdict, verdict, "cut {pieces:?}");
        // Up to a violation, what stands before it is passed on or not, as the reads fall.
        let common = cut.len().min(passed.len());
        assert!(verdict.is_err() || cut.len() == passed.len());
        assert_eq!(cut[..common], passed[..common], "cut {pieces:?}");
        judge(stream, &cut, is_stream);
    }
    let walk = judge(stream, &passed, is_stream);
    let outcome = match verdict {
        Err(violation) => violation,
        Ok(()) if walk.at < stream.len() => {
            let held = stream.len() - walk.at;
            assert!(
                held < HEADER_BYTES + METHOD_BYTES_MAX.max(STREAM_CONTENT_BYTES_CHANGED),
                "{held} bytes held back"
            );
            "in part".to_owned()
        }
        Ok(()) if walk.swallowed > 0 => "swallowed".to_owned(),
        Ok(()) if passed == stream => "unchanged".to_owned(),
        Ok(()) => "defused".to_owned(),
    };
    (outcome, walk.offsets)
}

/// What is passed on of a stream that is read in these pieces, and whether it was refused.
fn pass(pieces: &[&[u8]], is_stream: bool) -> (Vec<u8>, Result<(), String>) {
    let mut passed = Vec::new();
    let verdict = pass_through_guard(Pieces(pieces.iter(), &[]), is_stream, &mut passed);
    let verdict = verdict.map_err(|error| {
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        error.to_string()
    });
    (passed, verdict)
}

/// At most one piece a read; its rest stays for the next.
struct Pieces<'p, 'a>(std::slice::Iter<'p, &'a [u8]>, &'a [u8]);

impl Read for Pieces<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.1.is_empty() {
            let Some(piece) = self.0.next() else {
                return Ok(0);
            };
            self.1 = piece;
        }
        self.1.read(into)
    }
}

/// A walk over a stream and what was passed on of it.
#[derive(Default)]
struct Walk {
    /// Whether offsets stand where timestamps do.
    is_stream: bool,
    /// Where in the stream.
    at: usize,
    /// Bytes of the bodies that were announced to the client.
    bodies: u64,
    /// Contents whose offset was handed on.
    offsets: usize,
    /// Frames swallowed.
    swallowed: usize,
    /// What is under way on a channel: nothing told yet of a delivery, or so many bytes to be swallowed.
    contents: HashMap<[u8; 2], Option<u64>>,
}

/// Walks the frames that were passed on.
fn judge(stream: &[u8], passed: &[u8], is_stream: bool) -> Walk {
    assert!(passed.len() <= stream.len());
    let mut walk = Walk {
        is_stream,
        ..Walk::default()
    };
    let mut at = 0;
    while at < passed.len() {
        at += walk.judge_frame(&stream[walk.at..], &passed[at..]);
    }
    assert!(walk.bodies <= BACKLOG_BYTES_MAX);
    walk
}

impl Walk {
    /// Judges the frame that both begin with, and returns the length of what was passed on of it.
    fn judge_frame(&mut self, stream: &[u8], passed: &[u8]) -> usize {
        let header = &stream[..HEADER_BYTES];
        let kind = header[0];
        let channel = [header[1], header[2]];
        let size = u32::from_be_bytes([header[3], header[4], header[5], header[6]]) as usize;
        assert!(
            matches!(kind, METHOD | CONTENT | BODY | 8),
            "a frame of kind {kind}"
        );
        assert!(size + 8 <= FRAME_BYTES_MAX, "a frame of {size} bytes");
        if kind == BODY
            && let Some(Some(left)) = self.contents.get_mut(&channel)
        {
            assert_eq!(passed[..HEADER_BYTES], HEARTBEAT_HEADER);
            *left = left
                .checked_sub(size as u64)
                .expect("no more than announced");
            if *left == 0 {
                self.contents.remove(&channel);
            }
            self.swallowed += 1;
            let end = HEADER_BYTES + size;
            self.at += stream.len().min(end);
            let Some(&last) = passed.get(HEADER_BYTES) else {
                return HEADER_BYTES;
            };
            assert_eq!(last, stream[end]);
            self.at += 1;
            if last == FRAME_END {
                show_to_the_client(&passed[..=HEADER_BYTES], &[]);
            }
            return HEADER_BYTES + 1;
        }
        assert_eq!(header, &passed[..HEADER_BYTES]);
        let end = HEADER_BYTES + size;
        let looked_at = HEADER_BYTES
            + match kind {
                METHOD => size,
                CONTENT if self.is_stream => size.min(STREAM_CONTENT_BYTES_CHANGED),
                CONTENT => size.min(CONTENT_BYTES_CHANGED),
                _ => 0,
            };
        let payload = &passed[HEADER_BYTES..looked_at];
        let original = &stream[HEADER_BYTES..looked_at];
        match kind {
            METHOD => {
                judge_method(payload, original);
                self.contents.remove(&channel);
                if payload.first_chunk() == Some(&DELIVER) {
                    self.contents.insert(channel, None);
                }
            }
            CONTENT => {
                let is_delivery = self.contents.remove(&channel) == Some(None);
                if let Some(left) = self.judge_content(payload, original, is_delivery) {
                    self.contents.insert(channel, Some(left));
                }
            }
            _ => {}
        }
        let length = passed.len().min(end + 1);
        assert_eq!(passed[looked_at..length], stream[looked_at..length]);
        if passed.get(end) == Some(&FRAME_END) {
            show_to_the_client(&passed[..=end], payload);
        }
        self.at += length;
        length
    }

    /// Checks one content and returns the length of its body when that is to be swallowed.
    fn judge_content(&mut self, payload: &[u8], original: &[u8], is_delivery: bool) -> Option<u64> {
        let [_, _, _, _, size @ ..] = original.first_chunk::<12>().expect("a class and a size");
        let body = u64::from_be_bytes(*size);
        let is_swallowed = body > BODY_BYTES_MAX
            || body > EVENT_BYTES_MAX && self.bodies + body > BACKLOG_BYTES_MAX;
        assert_eq!(payload[..4], original[..4]);
        if is_swallowed {
            assert!(is_delivery, "a body of {body} bytes of nothing");
            assert_eq!(payload[4..12], [0; 8]);
        } else {
            assert_eq!(payload[4..12], original[4..12]);
            self.bodies += body;
        }
        let flags = payload[12];
        assert_eq!(flags, original[12] & 0xC0, "of these, type and encoding");
        let mut at = 14;
        for flag in [0x80, 0x40] {
            if flags & flag != 0 {
                at = judge_name(payload, original, at);
            }
        }
        let find = if self.is_stream {
            offset_of
        } else {
            timestamp_of
        };
        let timestamp = find([original[12], original[13]], &original[at..]);
        let is_kept = timestamp.is_some();
        self.offsets += usize::from(self.is_stream && is_kept);
        assert_eq!(
            payload[13],
            if is_kept { 0x40 } else { 0 },
            "of these, the timestamp"
        );
        if let Some(timestamp) = timestamp {
            assert_eq!(payload[at..at + 8], *timestamp);
            at += 8;
        }
        assert_eq!(payload[at..], original[at..]);
        is_swallowed.then_some(body)
    }
}

/// The timestamp among the properties behind type and encoding, if these flags announce one that is there.
fn timestamp_of(flags: [u8; 2], properties: &[u8]) -> Option<&[u8]> {
    let [high, low] = flags;
    if low & 0x40 == 0 || low & 1 != 0 {
        return None;
    }
    let mut at = 0;
    if high & 0x20 != 0 {
        let length: [u8; 4] = properties.get(..4)?.try_into().ok()?;
        at = 4 + u32::from_be_bytes(length) as usize;
    }
    at += usize::from(high & 0x10 != 0) + usize::from(high & 0x08 != 0);
    for is_there in [high & 4 != 0, high & 2 != 0, high & 1 != 0, low & 0x80 != 0] {
        if is_there {
            at += 1 + usize::from(*properties.get(at)?);
        }
    }
    properties.get(at..at + 8)
}

/// The offset among the headers behind type and encoding, if these flags announce headers and it is a long.
fn offset_of([high, low]: [u8; 2], properties: &[u8]) -> Option<&[u8]> {
    if high & 0x20 == 0 || low & 1 != 0 {
        return None;
    }
    let length: [u8; 4] = properties.get(..4)?.try_into().ok()?;
    let headers = properties.get(4..)?;
    let headers = &headers[..headers.len().min(u32::from_be_bytes(length) as usize)];
    let mut at = 0;
    while at < headers.len() {
        let name_end = at + 1 + usize::from(headers[at]);
        let name = headers.get(at + 1..name_end)?;
        let kind = *headers.get(name_end)?;
        let value = name_end + 1;
        if name == b"x-stream-offset" {
            return headers.get(value..value + 8).filter(|_| kind == b'l');
        }
        let length = match kind {
            b'V' => 0,
            b't' | b'b' | b'B' => 1,
            b's' | b'u' | b'U' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'l' | b'L' | b'd' | b'T' => 8,
            b'S' | b'x' | b'A' | b'F' => {
                let length: [u8; 4] = headers.get(value..value + 4)?.try_into().ok()?;
                4 + u32::from_be_bytes(length) as usize
            }
            _ => return None,
        };
        at = value + length;
        if at > headers.len() {
            return None;
        }
    }
    None
}

fn judge_method(payload: &[u8], original: &[u8]) {
    assert!(
        payload.len() <= METHOD_BYTES_MAX,
        "a method of {} bytes",
        payload.len()
    );
    match payload.first_chunk() {
        Some(&START) => {
            let table = u32::from_be_bytes([payload[6], payload[7], payload[8], payload[9]]);
            let end = 10 + table as usize;
            let table = &payload[10..end];
            // Empty, too short to nest, or one array of bytes.
            assert!(table.len() < 6 || table[..2] == *b"\0x");
            let length = table.len().saturating_sub(6) as u32;
            assert!(table.len() < 6 || table[2..6] == length.to_be_bytes());
            assert_eq!(payload[..10], original[..10]);
            assert_eq!(payload[end..], original[end..]);
        }
        Some(&TUNE) => {
            assert_ne!(payload[10..12], [0, 0], "a heartbeat that is off");
            assert_eq!(payload[..10], original[..10]);
            assert_eq!(payload[12..], original[12..]);
            assert!(original[10..12] == [0, 0] || original[10..12] == payload[10..12]);
        }
        Some(&DELIVER) => {
            let tag_end = 5 + usize::from(payload[4]);
            let exchange = tag_end + 9;
            assert_eq!(payload[..exchange], original[..exchange]);
            let key = judge_name(payload, original, exchange);
            let end = judge_name(payload, original, key);
            assert_eq!(payload[end..], original[end..]);
        }
        Some([_, class, _, method]) => {
            assert_eq!(payload, original);
            // Every method of the specification that carries a table, but for the start's.
            let with_table = [
                (10, 11),
                (40, 10),
                (40, 30),
                (40, 40),
                (50, 10),
                (50, 20),
                (50, 50),
                (60, 20),
            ];
            let is_wide = payload[0] != 0 || payload[2] != 0;
            assert!(is_wide || !with_table.contains(&(*class, *method)));
        }
        None => panic!("a method without a name"),
    }
}

/// Checks the short string at `at` and returns where it ends.
fn judge_name(payload: &[u8], original: &[u8], at: usize) -> usize {
    let end = at + 1 + usize::from(payload[at]);
    assert_eq!(payload[at], original[at]);
    let (name, was) = (&payload[at + 1..end], &original[at + 1..end]);
    assert!(
        std::str::from_utf8(name).is_ok(),
        "a name that is not UTF-8"
    );
    if std::str::from_utf8(was).is_ok() {
        assert_eq!(name, was);
    } else {
        assert!(name.contains(&0x1A), "a substitution that does not show");
    }
    end
}

/// The client's own parser, which ends the connection over what it cannot read.
fn show_to_the_client(frame: &[u8], payload: &[u8]) {
    let parsed = parse_frame(frame);
    match parsed {
        Ok((rest, AMQPFrame::Header(_, _, content))) => {
            assert!(rest.is_empty() && content.properties.headers().is_none());
        }
        Ok((
            _,
            AMQPFrame::Method(_, AMQPClass::Connection(connection::AMQPMethod::Start(start))),
        )) => {
            assert!(start.server_properties.len() <= 1, "no table inside");
        }
        Ok((_, AMQPFrame::Method(_, AMQPClass::Basic(basic::AMQPMethod::Deliver(_))))) => {}
        Ok((_, AMQPFrame::Method(..))) => assert_ne!(payload.first_chunk(), Some(&DELIVER)),
        Ok(_) => {}
        // What a publisher has no hand in may fail: the consumer tag is ours.
        Err(_) if payload.first_chunk() == Some(&DELIVER) => {
            let tag = &payload[5..5 + usize::from(payload[4])];
            assert!(
                std::str::from_utf8(tag).is_err(),
                "a delivery ends the connection"
            );
        }
        Err(_) => assert_eq!(frame[0], METHOD, "a content ends the connection"),
    }
}
