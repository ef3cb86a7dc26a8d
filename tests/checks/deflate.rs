//! Permessage-deflate (RFC 7692 section 7.2), in both directions.
//!
//! Input: one byte, whose lowest two bits choose the size limit and whose third says whether the message is a text; then
//! the payload of a deflated message. The same bytes are also the text of an event that is deflated.
//!
//! Invariants: what inflates is what miniz_oxide inflates, as far as that comes, and within its limit; what miniz_oxide
//! inflates whole is not refused but for its size, for a text that is none, or for more than padding behind its end. The
//! inflater forgets a message before the next one. What is deflated, miniz_oxide and our own inflater inflate to what was there,
//! with a request id and without; it is shorter, and has the same header as another parser reads.

use std::cell::RefCell;
use std::io::Cursor;

use blackhole::protocol::codec::DataKind;
use blackhole::protocol::deflate::{Deflater, InflateError, Inflated, Inflater};
use blackhole::protocol::frame::{Frame, Opcode};
use blackhole::protocol::tail::Tail;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use miniz_oxide::inflate::decompress_to_vec_with_limit;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Data, OpCode};

const LIMITS: [usize; 4] = [100_000, 1000, 100, 0];

/// The length of the empty stored block that is not sent.
const EMPTY_LENGTH: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];

const REQUEST_ID: &str = "0b9f4a52-77aa-4f00-9c1e-8a6b2f3d5e71";

thread_local! {
    /// One for all inputs, as the loop has one for all sessions.
    static BOTH: RefCell<(Deflater, Inflater)> = RefCell::default();
}

/// See the module's page.
pub fn check(data: &[u8]) -> String {
    let Some((&choice, payload)) = data.split_first() else {
        return "nothing".to_owned();
    };
    BOTH.with_borrow_mut(|(deflater, inflater)| {
        check_deflating(deflater, inflater, payload);
        let bytes_max = LIMITS[usize::from(choice & 3)];
        let kind = if choice & 4 == 0 {
            DataKind::Binary
        } else {
            DataKind::Text
        };
        let first = own(inflater.inflate_message(kind, payload, bytes_max));
        assert!(inflater.inflated_bytes() <= bytes_max + 1);
        let again = own(inflater.inflate_message(kind, payload, bytes_max));
        assert_eq!(first, again, "the second time");
        agree_with_the_oracle(&first, payload, bytes_max);
        match first {
            Ok(_) => "inflated".to_owned(),
            Err(error) => error.to_string(),
        }
    })
}

fn own(inflated: Result<Inflated<'_>, InflateError>) -> Result<Vec<u8>, InflateError> {
    inflated.map(|inflated| match inflated {
        Inflated::Text(text) => text.as_bytes().to_vec(),
        Inflated::Binary(bytes) => bytes.to_vec(),
    })
}

/// What miniz_oxide makes of a payload, and whether it came to an end of it.
pub fn oracle(payload: &[u8], bytes_max: usize) -> (Vec<u8>, bool) {
    // The empty stored block that is not sent, and another that is the last.
    let whole = [payload, &EMPTY_LENGTH, &[0x01], &EMPTY_LENGTH].concat();
    match decompress_to_vec_with_limit(&whole, bytes_max) {
        Ok(message) => (message, true),
        Err(error) => (error.output, false),
    }
}

fn agree_with_the_oracle(ours: &Result<Vec<u8>, InflateError>, payload: &[u8], bytes_max: usize) {
    let (theirs, is_whole) = oracle(payload, bytes_max + 1000);
    match ours {
        Ok(message) => {
            assert!(message.len() <= bytes_max);
            // A message that is cut in the midst of a block goes on into what the oracle is given behind it.
            assert!(
                theirs.starts_with(message) || (!is_whole && message.starts_with(&theirs)),
                "{message:?} and {theirs:?}"
            );
        }
        Err(InflateError::TooBig) => {
            assert!(!is_whole || theirs.len() > bytes_max, "{theirs:?}");
        }
        Err(InflateError::InvalidUtf8) => {
            assert!(!is_whole || std::str::from_utf8(&theirs).is_err());
        }
        Err(InflateError::Corrupt) => {
            let behind = behind_the_end(payload, bytes_max);
            assert!(
                behind.is_none_or(|behind| !matches!(behind, [] | [0x00])),
                "nothing but padding behind the end of {theirs:?}"
            );
        }
    }
}

/// What stands behind the block that says that it is the last, if miniz_oxide comes to it within so many bytes: of the
/// payload, or of the length that is not sent when that is begun.
fn behind_the_end(payload: &[u8], bytes_max: usize) -> Option<&[u8]> {
    let whole = [payload, &EMPTY_LENGTH].concat();
    let mut message = vec![0; bytes_max];
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let mut inflater = DecompressorOxide::new();
    let (status, read, _) = decompress(&mut inflater, &whole, &mut message, 0, flags);
    let behind = match read.checked_sub(payload.len()) {
        None | Some(0) => &payload[read..],
        // That length is no padding: only its end will do.
        Some(4) => &[],
        Some(_) => &EMPTY_LENGTH,
    };
    (status == TINFLStatus::Done).then_some(behind)
}

fn check_deflating(deflater: &mut Deflater, inflater: &mut Inflater, text: &[u8]) {
    let payload = [b"{\"args\":\"", text, b"\"}"].concat();
    let plain = Frame::new(Opcode::Text, &payload);
    let Some(deflated) = deflater.deflate(&plain) else {
        return;
    };
    assert!(deflated.len() < plain.len() && deflated.is_deflated());
    let tail = Tail(REQUEST_ID);
    let (mut with_id, mut plain_with_id) = (Vec::new(), Vec::new());
    tail.write(&deflated, &mut with_id);
    tail.write(&plain, &mut plain_with_id);
    assert_eq!(with_id.len(), tail.len_of(&deflated));
    for (sent, meant) in [
        (deflated.bytes(), plain.bytes()),
        (&with_id, &plain_with_id),
    ] {
        let (header, sent) = parts(sent);
        let (_, meant) = parts(meant);
        assert!(header.is_final && header.rsv1 && !header.rsv2 && !header.rsv3);
        assert_eq!(header.opcode, OpCode::Data(Data::Text));
        assert_eq!(oracle(sent, meant.len()), (meant.to_vec(), true));
        let ours = inflater.inflate(sent, meant.len());
        assert_eq!(ours, Ok(meant));
    }
}

fn parts(frame: &[u8]) -> (FrameHeader, &[u8]) {
    let mut cursor = Cursor::new(frame);
    let (header, length) = FrameHeader::parse(&mut cursor)
        .expect("a valid header")
        .expect("a whole header");
    let payload = &frame[cursor.position() as usize..];
    assert_eq!(payload.len() as u64, length);
    (header, payload)
}
