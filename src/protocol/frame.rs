//! Server frames (RFC 6455 section 5.2): encoded once, never masked, shared by reference.
//!
//! The bytes of a frame are one piece of memory, header included. A header, a body and an end as separate slices cost
//! 11 to 50 % more to send.

use std::rc::Rc;

/// A complete server frame, or several in a row that were [merged](Frame::merged). Cloning costs one reference count.
/// `Rc`, not `Arc`: no frame leaves the loop's thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame(Rc<FrameBytes>);

/// Boxed a second time so that a frame, and with it an idle outbox, is one word instead of two.
#[derive(Debug, PartialEq, Eq)]
struct FrameBytes {
    bytes: Box<[u8]>,
    /// The frames that were merged; empty for a frame that was not merged.
    parts: Box<[Frame]>,
}

/// The opcodes of whole frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// A whole text message.
    Text = 0x1,
    /// A whole binary message. The protocol has none: the echo server of the conformance suite sends them.
    Binary = 0x2,
    /// Close; payload: code and reason.
    Close = 0x8,
    /// Ping.
    Ping = 0x9,
    /// Pong; payload: that of the ping.
    Pong = 0xA,
}

/// Longest reason of a close frame: a control frame's payload of 125 bytes at most (RFC 6455 section 5.5), less the
/// code.
const CLOSE_REASON_BYTES_MAX: usize = 123;

/// Longest header of an unmasked frame.
const HEADER_BYTES_MAX: usize = 10;

/// FIN: the frame is a whole message (RFC 6455 section 5.2).
const FIN: u8 = 0x80;

/// RSV1: the message is deflated (RFC 7692 section 6).
const RSV1: u8 = 0x40;

impl Frame {
    /// A frame of `opcode` around `payload`. Cost: three allocations and two copies of the payload.
    #[must_use]
    pub fn new(opcode: Opcode, payload: &[u8]) -> Self {
        let mut builder = FrameBuilder::default();
        builder.buffer.reserve_exact(payload.len());
        builder.extend(payload);
        builder.frame(opcode)
    }

    /// A close frame (RFC 6455 section 5.5.1); `reason` is cut to the 123 bytes that fit, at a character.
    #[must_use]
    pub fn close(code: u16, reason: &str) -> Self {
        let (reason, _) = reason.split_at(reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX));
        let mut builder = FrameBuilder::default();
        builder.extend(&code.to_be_bytes());
        builder.extend(reason.as_bytes());
        builder.frame(Opcode::Close)
    }

    /// A close frame without a body: the reply to a close frame without a body.
    #[must_use]
    pub fn close_empty() -> Self {
        Self::new(Opcode::Close, &[])
    }

    /// Bytes that are no websocket frame, such as an HTTP response, to be sent in order with frames.
    #[must_use]
    pub fn raw(bytes: &[u8]) -> Self {
        Self(Rc::new(FrameBytes {
            bytes: Box::from(bytes),
            parts: Box::default(),
        }))
    }

    /// Merges frames that many peers get in a row into one piece of memory, which the kernel takes at once instead of
    /// slice by slice. Cost: one copy of all bytes. The frames stay in memory too: [`Frame::parts`] returns them.
    #[must_use]
    pub fn merged(frames: &[Self]) -> Self {
        let bytes = frames.iter().map(Self::bytes).collect::<Vec<_>>().concat();
        Self(Rc::new(FrameBytes {
            bytes: bytes.into(),
            parts: frames.into(),
        }))
    }

    /// The frames that this one was merged of; empty for a frame that was not merged.
    #[must_use]
    pub fn parts(&self) -> &[Self] {
        &self.0.parts
    }

    /// Headers and payloads.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// Whether the other is the same piece of memory. O(1).
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// The frames that this one was merged of, or this one itself.
    pub fn singles(&self) -> impl Iterator<Item = &Self> {
        let parts = self.parts();
        let own = parts.is_empty().then_some(self);
        own.into_iter().chain(parts)
    }

    /// The payload of a frame that was not merged.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        let bytes = self.bytes();
        let header = match bytes.get(1) {
            Some(0..=125) => 2,
            Some(126) => 4,
            _ => HEADER_BYTES_MAX,
        };
        bytes.get(header..).unwrap_or_default()
    }

    /// Whether the message is deflated. Of a websocket frame that was not merged; of [raw](Frame::raw) bytes it means nothing.
    #[must_use]
    pub fn is_deflated(&self) -> bool {
        self.bytes().first().is_some_and(|first| first & RSV1 != 0)
    }

    /// Length of header and payload.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "a frame has a header, so it is never empty"
    )]
    pub fn len(&self) -> usize {
        self.0.bytes.len()
    }
}

/// The header of an unmasked frame that is a whole message.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// The header stands at the end.
    room: [u8; HEADER_BYTES_MAX],
    start: usize,
}

impl Header {
    /// The header of a frame with so many bytes of payload, in the shortest form.
    #[must_use]
    #[inline]
    pub fn new(opcode: Opcode, payload_len: usize) -> Self {
        Self::with_first(FIN | opcode as u8, payload_len)
    }

    /// The same for a message that is deflated (RFC 7692 section 6).
    #[must_use]
    #[inline]
    pub fn deflated(opcode: Opcode, payload_len: usize) -> Self {
        Self::with_first(FIN | RSV1 | opcode as u8, payload_len)
    }

    #[inline]
    fn with_first(first: u8, payload_len: usize) -> Self {
        let [a, b, c, d, e, f, high, low] = (payload_len as u64).to_be_bytes();
        let (room, start) = match payload_len {
            0..=125 => ([0, 0, 0, 0, 0, 0, 0, 0, first, low], 8),
            126..=0xFFFF => ([0, 0, 0, 0, 0, 0, first, 126, high, low], 6),
            _ => ([first, 127, a, b, c, d, e, f, high, low], 0),
        };
        Self { room, start }
    }

    /// The header.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.room.get(self.start..).unwrap_or_default()
    }
}

/// Builds frames with the same beginning, which is encoded once: write the payload, make the frame, truncate to the
/// shared part, write the next tail.
#[derive(Debug)]
pub struct FrameBuilder {
    /// [`HEADER_BYTES_MAX`] bytes of room for the header, always there, then the payload.
    buffer: Vec<u8>,
}

impl Default for FrameBuilder {
    fn default() -> Self {
        Self {
            buffer: vec![0; HEADER_BYTES_MAX],
        }
    }
}

impl FrameBuilder {
    /// An empty builder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Empties the payload, keeping the memory.
    pub(super) fn clear(&mut self) {
        self.truncate(0);
    }

    /// Payload bytes so far.
    pub(super) fn payload_len(&self) -> usize {
        self.buffer.len() - HEADER_BYTES_MAX
    }

    /// Cuts the payload back to its first `len` bytes.
    pub(super) fn truncate(&mut self, len: usize) {
        self.buffer.truncate(HEADER_BYTES_MAX + len);
    }

    /// Appends to the payload.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The payload as a buffer that writers can append to. Nothing before its present end may be touched.
    pub(super) fn payload_mut(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Gives memory back when more than `keep` bytes are held.
    pub(super) fn shrink_to(&mut self, keep: usize) {
        self.buffer.shrink_to(keep.max(HEADER_BYTES_MAX));
    }

    /// The frame of the present payload; the builder keeps it. Cost: two allocations and one copy.
    #[must_use]
    pub fn frame(&mut self, opcode: Opcode) -> Frame {
        let Header { room, start } = Header::new(opcode, self.payload_len());
        if let Some(header) = self.buffer.first_chunk_mut() {
            *header = room;
        }
        Frame::raw(self.buffer.get(start..).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;
    use tungstenite::protocol::frame::FrameHeader;

    #[test]
    fn a_frame_of_every_length_class_is_read_back_by_another_parser() {
        for length in [0, 1, 125, 126, 127, 0xFFFF, 0x10000, 100_000] {
            let payload = vec![b'x'; length];
            let frame = Frame::new(Opcode::Text, &payload);
            let mut cursor = Cursor::new(frame.bytes());
            let (header, size) = FrameHeader::parse(&mut cursor)
                .expect("valid")
                .expect("complete");
            assert!(header.is_final && header.mask.is_none());
            assert_eq!(size, length as u64);
            assert_eq!(&frame.bytes()[cursor.position() as usize..], payload);
            assert_eq!(
                cursor.position() as usize,
                header.len(size),
                "shortest header form"
            );
        }
    }

    #[test]
    fn frames_of_one_builder_share_their_beginning() {
        let mut builder = FrameBuilder::new();
        builder.extend(b"body");
        let shared = builder.payload_len();
        builder.extend(b"-one");
        let one = builder.frame(Opcode::Text);
        builder.truncate(shared);
        builder.extend(b"-two");
        let two = builder.frame(Opcode::Text);
        assert_eq!(&one.bytes()[2..], b"body-one");
        assert_eq!(&two.bytes()[2..], b"body-two");
    }

    #[test]
    fn merged_frames_are_their_bytes_in_a_row_and_can_be_had_back() {
        let frames: Vec<Frame> = (0..3)
            .map(|n| Frame::new(Opcode::Text, &vec![b'x'; n * 100]))
            .collect();
        let merged = Frame::merged(&frames);
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::bytes).copied().collect();
        assert_eq!(merged.bytes(), bytes);
        assert_eq!(merged.parts(), frames);
        assert!(frames[0].parts().is_empty());
    }

    #[test]
    fn a_close_reason_is_cut_at_a_character_to_fit_a_control_frame() {
        let frame = Frame::close(1008, &"é".repeat(100));
        assert!(frame.len() <= 127);
        assert!(std::str::from_utf8(&frame.bytes()[4..]).is_ok());
        assert_eq!(
            &Frame::close(1001, "going away").bytes()[..4],
            &[0x88, 12, 3, 233]
        );
        assert_eq!(Frame::close_empty().bytes(), &[0x88, 0]);
    }
}
