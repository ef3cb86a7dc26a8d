//! What a subscription has of its own in an event's frame: its request id (PROTOCOL 5), the last member of the payload.
//!
//! A frame is made without it and shared by all whose frames differ in the request id only. The bytes of the frame with
//! the request id are put together when they are written: a new header, the shared payload without its closing brace,
//! and the end that the tail adds. Of a [deflated](Frame::is_deflated) frame all but its end is shared; the tail adds that
//! end anew, not deflated (see [`super::deflate`]).

use super::deflate::{BEHIND_OWN, OWN_BYTES, write_own_end};
use super::frame::{Frame, Header, Opcode};

const BEFORE: &[u8] = b",\"request_id\":\"";
const AFTER: &[u8] = b"\"}";

/// Bytes that a tail adds to a payload, deflated or not, beside the request id: the payload's closing brace is there
/// already.
const ADDED_BYTES: usize = BEFORE.len() + AFTER.len() - 1;

/// A request id to be put into frames of events, given as it stands between the quotes of a JSON string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail<'t>(pub &'t str);

impl Tail<'_> {
    fn payload_len(self, frame: &Frame) -> usize {
        frame.payload().len() + ADDED_BYTES + self.0.len()
    }

    /// Length of a frame with the tail in it: of one event, or of several that were merged. Linear in the events.
    #[must_use]
    pub fn len_of(self, frame: &Frame) -> usize {
        let of_one = |one: &Frame| {
            let payload_len = self.payload_len(one);
            Header::new(Opcode::Text, payload_len).bytes().len() + payload_len
        };
        frame.singles().map(of_one).sum()
    }

    /// The beginning of a frame of one event with the tail in it: its header, and what `frame` gives to it. What
    /// [`Tail::write_end`] writes stands behind.
    #[must_use]
    pub fn begin(self, frame: &Frame) -> (Header, &[u8]) {
        let payload_len = self.payload_len(frame);
        let (header, own) = if frame.is_deflated() {
            (Header::deflated(Opcode::Text, payload_len), OWN_BYTES)
        } else {
            (Header::new(Opcode::Text, payload_len), 1)
        };
        let payload = frame.payload();
        let shared = payload.get(..payload.len().saturating_sub(own));
        (header, shared.unwrap_or_default())
    }

    /// Appends what stands behind the shared part of `frame`.
    pub fn write_end(self, frame: &Frame, out: &mut Vec<u8>) {
        let pieces = [BEFORE, self.0.as_bytes(), AFTER];
        if frame.is_deflated() {
            return write_own_end(pieces, out);
        }
        for piece in pieces {
            out.extend_from_slice(piece);
        }
    }

    /// Appends a frame of one event, or of several that were merged, with the tail in each. Cost: one copy.
    pub fn write(self, frame: &Frame, out: &mut Vec<u8>) {
        for one in frame.singles() {
            let (header, shared) = self.begin(one);
            out.extend_from_slice(header.bytes());
            out.extend_from_slice(shared);
            self.write_end(one, out);
        }
    }

    /// Makes `written`, what [`Tail::write`] wrote of `frame` with a tail of the same length, what it would write with
    /// this one. Linear in the events, whatever their lengths.
    pub fn rewrite(self, frame: &Frame, mut written: &mut [u8]) {
        for one in frame.singles() {
            let len = self.len_of(one);
            let Some((this, rest)) = std::mem::take(&mut written).split_at_mut_checked(len) else {
                return;
            };
            let behind = if one.is_deflated() { BEHIND_OWN } else { 0 };
            let end = len - AFTER.len() - behind;
            if let Some(id) = this.get_mut(end - self.0.len()..end) {
                id.copy_from_slice(self.0.as_bytes());
            }
            written = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_with_a_tail_is_the_frame_of_the_payload_with_the_request_id_whatever_the_lengths() {
        // All lengths around those at which a header grows, of the payload without and with the tail.
        let lengths = [
            2, 60, 100, 108, 109, 110, 125, 126, 127, 65_500, 65_517, 65_518, 65_535, 65_536,
        ];
        for length in lengths {
            for id in ["", "1", "r\\\"\\u0007é", &"g".repeat(36), &"x".repeat(768)] {
                let open = format!("{{{}", "y".repeat(length - 2));
                let frame = Frame::new(Opcode::Text, format!("{open}}}").as_bytes());
                let whole = format!("{open},\"request_id\":\"{id}\"}}");
                let expected = Frame::new(Opcode::Text, whole.as_bytes());
                let mut written = Vec::new();
                Tail(id).write(&frame, &mut written);
                assert_eq!(written, expected.bytes(), "{length} bytes, {id}");
                assert_eq!(Tail(id).len_of(&frame), expected.len());
                let (header, shared) = Tail(id).begin(&frame);
                let mut pieces = [header.bytes(), shared].concat();
                Tail(id).write_end(&frame, &mut pieces);
                assert_eq!(pieces, expected.bytes());
            }
        }
    }

    #[test]
    fn what_was_written_with_one_tail_becomes_what_another_of_its_length_would_have_written() {
        let frames: Vec<Frame> = [2, 80, 1000, 66_000]
            .map(|length| {
                Frame::new(
                    Opcode::Text,
                    format!("{{{}}}", "y".repeat(length)).as_bytes(),
                )
            })
            .into();
        let merged = Frame::merged(&frames);
        for frame in frames.iter().chain([&merged]) {
            let (mut written, mut expected) = (Vec::new(), Vec::new());
            Tail("one-1").write(frame, &mut written);
            Tail("two-2").write(frame, &mut expected);
            assert_eq!(Tail("one-1").len_of(frame), written.len());
            Tail("two-2").rewrite(frame, &mut written);
            assert!(written == expected, "{} bytes", frame.len());
        }
    }
}
