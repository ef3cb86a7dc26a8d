//! What must hold for any bytes whatever: one `check` for each boundary where bytes come in from outside.
//!
//! Shared by the fuzz targets, which look for inputs that break one, and by the tests of the server, which replay the
//! inputs kept in `tests/fuzz/corpus` with the stable toolchain.
//!
//! A `check` panics when an invariant is broken and otherwise names what the input came to, so that a test can tell
//! whether the corpus still reaches what it is kept for. Each module describes its inputs and its invariants.
#![allow(
    clippy::missing_panics_doc,
    reason = "a check panics when an invariant is broken, as told above"
)]

pub mod binding;
pub mod codec;
pub mod command;
pub mod deflate;
pub mod event;
pub mod family;
pub mod forwarded;
pub mod guard;
pub mod handshake;
pub mod jwt;
pub mod proxy;
pub mod records;

use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Data, OpCode};

/// Checks one input; panics when an invariant is broken, and returns what the input came to.
pub type Check = fn(&[u8]) -> String;

/// Every target, by the name of its folder in `corpus/`.
pub const TARGETS: [(&str, Check); 12] = [
    ("binding", binding::check),
    ("codec", codec::check),
    ("command", command::check),
    ("deflate", deflate::check),
    ("event", event::check),
    ("family", family::check),
    ("forwarded", forwarded::check),
    ("guard", guard::check),
    ("handshake", handshake::check),
    ("jwt", jwt::check),
    ("proxy", proxy::check),
    ("records", records::check),
];

/// Cuts `bytes` into pieces of 1 to 64 bytes whose lengths follow from `seed`.
fn cut(bytes: &[u8], seed: u8) -> Vec<&[u8]> {
    let mut state = u32::from(seed) + 1;
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let length = 1 + (state >> 26) as usize;
        let (piece, behind) = rest.split_at(length.min(rest.len()));
        pieces.push(piece);
        rest = behind;
    }
    pieces
}

/// The text inside a server's text frame, whose header must be whole, unmasked and as short as can be.
fn payload_of(frame: &[u8]) -> &str {
    let mut cursor = Cursor::new(frame);
    let (header, length) = FrameHeader::parse(&mut cursor)
        .expect("a valid header")
        .expect("a whole header");
    assert!(header.is_final && header.mask.is_none());
    assert!(!header.rsv1 && !header.rsv2 && !header.rsv3);
    assert_eq!(header.opcode, OpCode::Data(Data::Text));
    let start = header.len(length);
    assert_eq!(cursor.position(), start as u64, "the shortest header");
    assert_eq!(frame.len() - start, length as usize, "the whole payload");
    std::str::from_utf8(&frame[start..]).expect("a text frame is UTF-8")
}
