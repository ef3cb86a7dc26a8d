//! The bytes of permessage-deflate (RFC 7692 section 7.2), without state between messages: one deflater and one inflater
//! serve all sessions.
//!
//! A deflated frame of an event is made to be shared by sessions with and without request ids (see [`super::tail`]): all of
//! its payload but the closing brace is deflated and flushed to the boundary of a byte; behind it stands what each session
//! has of its own, as it is, in a stored block (RFC 1951 section 3.2.4).
//!
//! ```text
//! | header, RSV1 | deflated: {"action":"event",...,"subscription_key":"..." | length | } | 0 |
//! | header, RSV1 | the same bytes                                           | length | ,"request_id":"..."} | 0 |
//! ```
//!
//! A flush ends with an empty stored block; here its length, four bytes, gives way to that of the end. The last byte begins
//! the empty stored block that every message ends with, whose length is not sent (section 7.2.1).
//!
//! Invariants: an inflater never holds more than the bound that it is given, and one byte; neither type shows what passed
//! through it.

use std::fmt;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::codec::DataKind;
use super::frame::{Frame, Header, Opcode};

/// The length of an empty stored block, which every message ends with and no message is sent with (section 7.2.1).
const EMPTY_LENGTH: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];

/// Begins the empty stored block at the end of a message.
const END: u8 = 0x00;

/// What stands behind the deflated part of a frame whose end is one byte, a closing brace.
const BRACE: [u8; 6] = [0x01, 0x00, 0xFE, 0xFF, b'}', END];

/// Bytes that are not shared with a session that has a request id.
pub(super) const OWN_BYTES: usize = BRACE.len();

/// The zlib level of frames of events. Of the platform's example events (1.5, 1.8 and 4.1 KB) level 1, which knows no
/// Huffman codes of its own, leaves 57, 56 and 53 % in 4, 4 and 8 µs; level 2 leaves 46, 45 and 43 % in 11, 11 and 32 µs;
/// level 6 leaves 44, 43 and 41 % in 26, 27 and 50 µs.
pub const LEVEL: u32 = 2;

/// Least that an inflater makes room for at once.
const INFLATED_STEP_MIN: usize = 4 << 10;

/// Most that it makes room for at once.
const INFLATED_STEP_MAX: usize = 256 << 10;

/// Deflates frames of events.
#[derive(Default)]
pub struct Deflater {
    /// Made for the first frame: some 300 KB.
    stream: Option<Box<Compress>>,
    payload: Vec<u8>,
}

impl Deflater {
    /// Returns the deflated frame of an event; `None`: it would be no shorter. The frame must be of a text that ends with a
    /// closing brace, and not deflated. Cost: linear in the frame, some 8 ns a byte.
    pub fn deflate(&mut self, frame: &Frame) -> Option<Frame> {
        let text = frame.payload().strip_suffix(b"}")?;
        self.flush(text)?;
        self.payload.extend_from_slice(&BRACE);
        self.framed(Opcode::Text, frame.len())
    }

    /// Returns the deflated frame of any message; `None`: it would be no shorter.
    pub fn deflate_whole(&mut self, opcode: Opcode, message: &[u8]) -> Option<Frame> {
        self.flush(message)?;
        self.framed(opcode, message.len())
    }

    /// Leaves the deflated text in `payload`, up to the last byte before [`EMPTY_LENGTH`]. `None`: it has no room in as many
    /// bytes as the text.
    fn flush(&mut self, text: &[u8]) -> Option<()> {
        let level = Compression::new(LEVEL);
        let stream = self
            .stream
            .get_or_insert_with(|| Box::new(Compress::new(level, false)));
        stream.reset();
        self.payload.clear();
        self.payload.reserve_exact(text.len());
        let room = self.payload.capacity();
        // One call does all of it, or there is no room.
        stream
            .compress_vec(text, &mut self.payload, FlushCompress::Sync)
            .ok()?;
        let is_whole = stream.total_in() == text.len() as u64 && self.payload.len() < room;
        let kept = self.payload.strip_suffix(&EMPTY_LENGTH)?.len();
        self.payload.truncate(kept);
        is_whole.then_some(())
    }

    fn framed(&self, opcode: Opcode, len_max: usize) -> Option<Frame> {
        let header = Header::deflated(opcode, self.payload.len());
        let header = header.bytes();
        (header.len() + self.payload.len() < len_max)
            .then(|| Frame::raw(&[header, &self.payload].concat()))
    }
}

/// Appends the end that a session has of its own: what stands in the place of [`OWN_BYTES`]. `pieces` together are at most
/// 65,535 bytes.
pub(super) fn write_own_end(pieces: [&[u8]; 3], out: &mut Vec<u8>) {
    let len: usize = pieces.iter().map(|piece| piece.len()).sum();
    let len = u16::try_from(len).unwrap_or(u16::MAX);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&(!len).to_le_bytes());
    for piece in pieces {
        out.extend_from_slice(piece);
    }
    out.push(END);
}

/// Bytes of that end behind the pieces.
pub(super) const BEHIND_OWN: usize = 1;

/// Why a message does not inflate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    /// It is more than its bound allows.
    #[error("message is too big")]
    TooBig,
    /// It is no deflated message.
    #[error("message does not inflate")]
    Corrupt,
    /// It is a text that is not UTF-8.
    #[error("invalid UTF-8")]
    InvalidUtf8,
}

/// An inflated message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Inflated<'a> {
    /// A text.
    Text(&'a str),
    /// Bytes.
    Binary(&'a [u8]),
}

/// Inflates messages of clients.
#[derive(Default)]
pub struct Inflater {
    /// Made for the first message: some 50 KB.
    stream: Option<Box<Decompress>>,
    message: Vec<u8>,
}

impl Inflater {
    /// As [`Inflater::inflate`], and sees whether a text is one.
    ///
    /// # Errors
    /// As there; or it is not UTF-8.
    pub fn inflate_message(
        &mut self,
        kind: DataKind,
        payload: &[u8],
        bytes_max: usize,
    ) -> Result<Inflated<'_>, InflateError> {
        let message = self.inflate(payload, bytes_max)?;
        match kind {
            DataKind::Binary => Ok(Inflated::Binary(message)),
            DataKind::Text => match simdutf8::basic::from_utf8(message) {
                Ok(text) => Ok(Inflated::Text(text)),
                Err(_) => Err(InflateError::InvalidUtf8),
            },
        }
    }

    /// Bytes of the last message, as far as it was inflated.
    #[must_use]
    pub fn inflated_bytes(&self) -> usize {
        self.message.len()
    }

    /// Returns the message of a deflated payload (section 7.2.2), of at most `bytes_max` bytes. A block that says that it is
    /// the last ends it; nothing but padding may follow (section 7.2.3.4). Linear in both: up to 80 ns a byte of the
    /// payload, where it is all tables of codes, and some 1 ns a byte of the message; what is beyond the bound costs
    /// nothing.
    ///
    /// # Errors
    /// The payload is not deflated, or is more than `bytes_max`.
    pub fn inflate(&mut self, payload: &[u8], bytes_max: usize) -> Result<&[u8], InflateError> {
        let stream = self
            .stream
            .get_or_insert_with(|| Box::new(Decompress::new(false)));
        stream.reset(false);
        self.message.clear();
        // One byte more tells that it is too big.
        let most = bytes_max.saturating_add(1);
        self.message.shrink_to(most);
        for (mut rest, padding) in [(payload, &[END][..]), (&EMPTY_LENGTH, &[])] {
            loop {
                let step = (self.message.len().max(4 * payload.len()))
                    .clamp(INFLATED_STEP_MIN, INFLATED_STEP_MAX)
                    .min(most - self.message.len());
                if self.message.len() == self.message.capacity() {
                    self.message.reserve_exact(step);
                }
                let before = stream.total_in();
                let status = stream
                    .decompress_vec(rest, &mut self.message, FlushDecompress::None)
                    .map_err(|_| InflateError::Corrupt)?;
                if self.message.len() > bytes_max {
                    return Err(InflateError::TooBig);
                }
                let read = usize::try_from(stream.total_in() - before);
                rest = rest.get(read.unwrap_or(usize::MAX)..).unwrap_or_default();
                match status {
                    Status::StreamEnd if rest.is_empty() || rest == padding => {
                        return Ok(&self.message);
                    }
                    Status::StreamEnd => return Err(InflateError::Corrupt),
                    Status::Ok | Status::BufError => {}
                }
                if self.message.len() < self.message.capacity() {
                    // It had room, so it wants more input.
                    if !rest.is_empty() {
                        return Err(InflateError::Corrupt);
                    }
                    break;
                }
            }
        }
        Ok(&self.message)
    }
}

impl fmt::Debug for Deflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Deflater({} bytes)", self.payload.capacity())
    }
}

impl fmt::Debug for Inflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inflater({} bytes)", self.message.capacity())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tail::Tail;
    use super::*;
    use miniz_oxide::deflate::core::{CompressorOxide, create_comp_flags_from_zip_params};
    use miniz_oxide::deflate::stream::deflate;
    use miniz_oxide::inflate::decompress_to_vec;
    use miniz_oxide::{DataFormat, MZFlush};

    /// What another implementation inflates.
    fn inflated(payload: &[u8]) -> Vec<u8> {
        let last = [0x01, 0x00, 0x00, 0xFF, 0xFF];
        let whole = [payload, &EMPTY_LENGTH, &last].concat();
        decompress_to_vec(&whole).expect("deflated")
    }

    /// What another implementation deflates, flushed and cut as section 7.2.1 says.
    fn deflated(message: &[u8], level: i32) -> Vec<u8> {
        let flags = create_comp_flags_from_zip_params(level, -15, 0);
        let mut compressor = CompressorOxide::new(flags);
        compressor.set_format_and_level(DataFormat::Raw, level as u8);
        let mut out = vec![0; 2 * message.len() + 100];
        let result = deflate(&mut compressor, message, &mut out, MZFlush::Sync);
        assert_eq!(result.bytes_consumed, message.len());
        out.truncate(result.bytes_written);
        assert_eq!(out.split_off(out.len() - 4), EMPTY_LENGTH);
        out
    }

    fn event(length: usize) -> Vec<u8> {
        let words = ["CHANNEL_CREATE", "call", "Account-ID", "\",\"", ":true"];
        let mut rng = fastrand::Rng::with_seed(length as u64);
        let mut text = b"{\"action\":\"event\"".to_vec();
        while text.len() < length {
            text.extend_from_slice(words[rng.usize(..words.len())].as_bytes());
            text.push(rng.u8(b'0'..=b'9'));
        }
        text.push(b'}');
        text
    }

    #[test]
    fn a_deflated_event_is_the_event_for_another_inflater_with_and_without_a_request_id() {
        let mut deflater = Deflater::default();
        for length in [200, 512, 1100, 5000, 66_000, 200_000] {
            let text = event(length);
            let plain = Frame::new(Opcode::Text, &text);
            let frame = deflater.deflate(&plain).expect("it is shorter");
            assert!(frame.is_deflated() && !plain.is_deflated());
            assert!(
                frame.len() < plain.len() * 3 / 4,
                "{} of {length}",
                frame.len()
            );
            assert_eq!(inflated(frame.payload()), text);
            for id in ["", "1", &"g".repeat(36), &"é".repeat(64)] {
                let (mut sent, mut meant) = (Vec::new(), Vec::new());
                Tail(id).write(&frame, &mut sent);
                Tail(id).write(&plain, &mut meant);
                assert_eq!(sent.len(), Tail(id).len_of(&frame));
                assert_eq!(sent.first(), Some(&0xC1));
                let (sent, meant) = (Frame::raw(&sent), Frame::raw(&meant));
                assert_eq!(inflated(sent.payload()), meant.payload(), "{length} {id}");
                let (header, shared) = Tail(id).begin(&frame);
                let mut pieces = [header.bytes(), shared].concat();
                Tail(id).write_end(&frame, &mut pieces);
                assert_eq!(pieces, sent.bytes());
                let mut rewritten = pieces.clone();
                let other = "z".repeat(id.len());
                Tail(&other).rewrite(&frame, &mut rewritten);
                let mut expected = Vec::new();
                Tail(&other).write(&frame, &mut expected);
                assert_eq!(rewritten, expected);
            }
        }
    }

    #[test]
    fn what_would_be_no_shorter_is_not_deflated() {
        let mut deflater = Deflater::default();
        let mut rng = fastrand::Rng::with_seed(1);
        for length in [0, 1, 10, 2000] {
            let mut noise: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(length).collect();
            noise.push(b'}');
            assert_eq!(deflater.deflate(&Frame::new(Opcode::Text, &noise)), None);
        }
        assert_eq!(deflater.deflate(&Frame::new(Opcode::Text, b"")), None);
        assert_eq!(
            deflater.deflate(&Frame::new(Opcode::Text, &[b'x'; 999])),
            None,
            "no brace"
        );
        // And it is as good as new.
        let text = event(1000);
        let frame = deflater
            .deflate(&Frame::new(Opcode::Text, &text))
            .expect("shorter");
        assert_eq!(inflated(frame.payload()), text);
        let whole = deflater
            .deflate_whole(Opcode::Binary, &[b'x'; 999])
            .expect("shorter");
        assert_eq!(inflated(whole.payload()), [b'x'; 999]);
    }

    #[test]
    fn what_another_implementation_deflated_inflates() {
        let mut inflater = Inflater::default();
        for length in [0, 1, 5, 100, 4096, 70_000, 300_000] {
            for level in [0, 1, 6, 9] {
                let text = event(length);
                let payload = deflated(&text, level);
                assert_eq!(inflater.inflate(&payload, text.len()), Ok(&text[..]));
                let too_big = inflater.inflate(&payload, text.len() - 1);
                assert_eq!(too_big, Err(InflateError::TooBig), "{length} {level}");
                assert_eq!(inflater.inflated_bytes(), text.len());
            }
        }
    }

    #[test]
    fn the_examples_of_the_rfc_inflate() {
        let mut inflater = Inflater::default();
        for payload in [
            // Section 7.2.3.1, 7.2.3.3, 7.2.3.4 and 7.2.3.5.
            &[0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00][..],
            &[
                0x00, 0x05, 0x00, 0xFA, 0xFF, b'H', b'e', b'l', b'l', b'o', 0x00,
            ],
            &[0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00, 0x00],
            &[
                0xF2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xFF, 0xFF, 0xCA, 0xC9, 0xC9, 0x07, 0x00,
            ],
            // As it ends without the padding.
            &[0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00],
        ] {
            assert_eq!(
                inflater.inflate(payload, 5),
                Ok(&b"Hello"[..]),
                "{payload:x?}"
            );
        }
        assert_eq!(
            inflater.inflate(&[0x00], 0),
            Ok(&b""[..]),
            "section 7.2.3.6"
        );
        // Section 7.2.3.2: the second message of a client that keeps its window, which it was told not to.
        let second = [0xF2, 0x00, 0x11, 0x00, 0x00];
        assert_eq!(inflater.inflate(&second, 100), Err(InflateError::Corrupt));
    }

    #[test]
    fn a_bomb_stops_at_the_bound_and_leaves_nothing_behind() {
        let mut inflater = Inflater::default();
        let bomb = deflated(&vec![b'x'; 4 << 20], 9);
        assert!(bomb.len() < 20_000, "{}", bomb.len());
        for bound in [0, 1, 1000, 64 << 10] {
            assert_eq!(inflater.inflate(&bomb, bound), Err(InflateError::TooBig));
            assert_eq!(inflater.inflated_bytes(), bound + 1);
            assert!(inflater.message.capacity() <= (bound + 1).max(INFLATED_STEP_MAX));
        }
        let hello = deflated(b"Hello", 6);
        let text = inflater.inflate_message(DataKind::Text, &hello, 5);
        assert!(matches!(text, Ok(Inflated::Text("Hello"))));
        let not_text = deflated(b"\xFF", 6);
        let text = inflater.inflate_message(DataKind::Text, &not_text, 5);
        assert!(matches!(text, Err(InflateError::InvalidUtf8)));
        let bytes = inflater.inflate_message(DataKind::Binary, &not_text, 5);
        assert!(matches!(bytes, Ok(Inflated::Binary(b"\xFF"))));
    }

    #[test]
    fn what_is_not_deflated_is_refused() {
        let mut inflater = Inflater::default();
        let behind = [&deflated(b"", 6)[..], &[0x01, 0x00, 0x00, 0xFF, 0xFF, 0x55]].concat();
        for payload in [
            // A block of the reserved type; a stored block with a wrong length; bytes behind the end.
            &[0x07, 0x00][..],
            &[0x00, 0x05, 0x00, 0xFA, 0xFE, b'H', 0x00],
            &behind,
        ] {
            let result = inflater.inflate(payload, 1000);
            assert_eq!(result, Err(InflateError::Corrupt), "{payload:x?}");
        }
    }

    #[test]
    fn neither_shows_what_passed_through_it() {
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
        let secret = deflater
            .deflate_whole(Opcode::Text, &[b'k'; 500])
            .expect("shorter");
        inflater.inflate(secret.payload(), 500).expect("deflated");
        let shown = format!("{deflater:?} {inflater:?}");
        assert!(shown.len() < 60 && !shown.contains("kk"), "{shown}");
    }
}
