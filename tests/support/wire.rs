//! The client's side of the wire, byte by byte, for tests that script it.

pub use crate::client_frame::client_frame;
use std::fs;

use crate::project_file;
use crate::schemas::hold_text;

/// A valid upgrade request.
pub const UPGRADE_REQUEST: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// A whole text message in one frame.
pub fn client_text(text: &str) -> Vec<u8> {
    client_frame(0x81, text.as_bytes())
}

/// The payload of a deflated message, of at most so many bytes, that inflates to nothing and takes as long as any: all of it is
/// blocks that have nothing but their tables of codes (RFC 1951 section 3.2.7).
pub fn deflated_tables(bytes_max: usize) -> Vec<u8> {
    const EMPTY_LENGTH: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];
    let path = project_file("tests/fuzz/corpus/deflate/empty_dynamic_blocks");
    let input = fs::read(path).expect("the input of the fuzz target");
    // Behind the byte that is not of the payload; it begins the empty stored block at its end.
    let blocks = &input[1..];
    let times = (bytes_max + EMPTY_LENGTH.len()) / (blocks.len() + EMPTY_LENGTH.len());
    vec![blocks; times].join(&EMPTY_LENGTH[..])
}

/// The complete server frames at the start of `bytes`, as (opcode, payload), and how many bytes they take.
///
/// Panics on anything that a server must not send: a text, if it can be read, that is not as its schema says.
pub fn server_frames(bytes: &[u8]) -> (Vec<(u8, Vec<u8>)>, usize) {
    let (mut frames, mut at) = (Vec::new(), 0);
    while let Some((header, payload)) = server_frame(&bytes[at..]) {
        let end = at + payload.end;
        let payload = &bytes[at + payload.start..end];
        if header == 0x81 {
            hold_text(payload);
        }
        frames.push((header & 0x0F, payload.to_vec()));
        at = end;
    }
    (frames, at)
}

fn server_frame(bytes: &[u8]) -> Option<(u8, std::ops::Range<usize>)> {
    let (&first, rest) = bytes.split_first()?;
    let &second = rest.first()?;
    assert!(
        matches!(first, 0x81 | 0x88 | 0x89 | 0x8A),
        "first byte {first:#x} of a server frame"
    );
    assert!(second & 0x80 == 0, "a server frame is never masked");
    let (start, length) = match second {
        126 => (
            4,
            u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?) as usize,
        ),
        127 => (
            10,
            u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize,
        ),
        length => (2, length as usize),
    };
    (bytes.len() >= start + length).then_some((first, start..start + length))
}
