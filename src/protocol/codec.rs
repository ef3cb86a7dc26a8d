//! The frame codec for what clients send (RFC 6455 section 5), over the loop's shared read buffer.
//!
//! This module owns the bytes of a client that have arrived only in part, and nothing else. A frame that arrives whole
//! is unmasked in place and returned as a borrow of the caller's buffer. A part is kept in one box, which exists only
//! while a frame is incomplete or a fragmented message is under way.
//!
//! ```text
//!            header complete               payload complete, final or control
//!  Header ------------------> Payload ------------------------------------------> Header, an item comes out
//!    ^                           |
//!    +---------------------------+  payload complete, not final: the message stays under way
//! ```
//!
//! Invariants:
//! - `Codec` is `None` between frames when no message is under way; it then has no heap memory.
//! - Heap memory follows what has arrived (at most a quarter more, plus one fixed box), never what a header promises;
//!   and it never is more than the message has when the header of its last frame is known.
//! - A message never holds more than [`CodecLimits::message_bytes_max`] bytes, and a deflated one never more than
//!   [`CodecLimits::deflated_bytes_max`]: checked on every header, before anything of its payload is kept.
//! - The text kept is valid UTF-8 but for the last character, which may be cut (at most 3 bytes). Of a deflated text
//!   nothing is known until it is inflated.
//! - Cost is linear in the bytes fed, however they are cut: each is checked at most twice and moved at most
//!   once, growth of the buffer (amortised) aside.
//!
//! A deflated message (RSV1, RFC 7692 section 6) comes out as it arrived, whole: [`super::deflate`] inflates it.
//!
//! Deliberately absent: other extensions (so RSV2 and RSV3 are violations), writing (see [`super::frame`]), timing of
//! half-sent messages ([`Codec::mark_once`] keeps for the session, which has the deadlines, when one began).

use std::borrow::Cow;
use std::fmt;
use std::io::Cursor;
use std::mem;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Longest header of a client frame: 2 bytes, 8 of length, 4 of mask.
const HEADER_BYTES_MAX: usize = 14;

/// Longest payload of a control frame (RFC 6455 section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// Least that the buffer of a message grows by, unless less is missing.
const GROWTH_BYTES_MIN: usize = 64;

/// Longest UTF-8 sequence of one character.
const CHARACTER_BYTES_MAX: usize = 4;

/// Bounds of one session's messages.
#[derive(Clone, Copy, Debug)]
pub struct CodecLimits {
    /// Bytes of one message, all of its fragments together; above it the frame header is answered with
    /// [`CodecError::MessageTooBig`]. `usize::MAX`: no limit.
    pub message_bytes_max: usize,
    /// The same of a message that is deflated, whose bytes cost more than others: its deflated bytes, where this is less.
    pub deflated_bytes_max: usize,
    /// Permessage-deflate was agreed on: RSV1 may stand in the first frame of a message. Otherwise it is a violation.
    pub may_be_deflated: bool,
}

/// What one call of [`Codec::decode`] found.
#[derive(Debug)]
pub struct Decoded<'a> {
    /// Bytes at the start of the input that were read: all of it when there is no item.
    pub consumed: usize,
    /// The first complete message or control frame, if one is complete.
    pub item: Option<Item<'a>>,
    /// Frames that ended in those bytes, fragments of a message included.
    pub frames: usize,
}

/// A complete message or control frame. It borrows from the input when it came whole in one read; otherwise it owns the
/// memory in which it was gathered.
#[derive(Clone, PartialEq, Eq)]
pub enum Item<'a> {
    /// A text message.
    Text(Cow<'a, str>),
    /// A binary message.
    Binary(Cow<'a, [u8]>),
    /// A message of either kind that is deflated, and may turn out to be of any size, and no text.
    Deflated(DataKind, Cow<'a, [u8]>),
    /// A ping, to be answered with a pong of the same payload; at most [`CONTROL_BYTES_MAX`].
    Ping(Cow<'a, [u8]>),
    /// A pong; at most [`CONTROL_BYTES_MAX`].
    Pong(Cow<'a, [u8]>),
    /// A close. Nothing that follows it may be decoded (RFC 6455 section 5.5.1).
    Close {
        /// The code, one that may be sent (section 7.4); `None` when the frame had no body.
        code: Option<u16>,
        /// The reason, at most 123 bytes. It is the peer's text: escape it before it is logged.
        reason: Cow<'a, str>,
    },
}

/// Why a session must be closed. Nothing that follows may be decoded: the codec's state is not to be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// A client frame without a mask (section 5.1).
    #[error("frame is not masked")]
    Unmasked,
    /// An RSV bit without an extension (section 5.2), or in a frame where the extension has none (RFC 7692 section 6.1).
    #[error("reserved bit is set")]
    ReservedBit,
    /// An opcode that means nothing yet (section 5.2).
    #[error("reserved opcode")]
    ReservedOpcode,
    /// A length that is not in its shortest form, or above 2^63 (section 5.2).
    #[error("malformed frame length")]
    MalformedLength,
    /// A control frame above [`CONTROL_BYTES_MAX`] (section 5.5).
    #[error("control frame is too long")]
    LongControlFrame,
    /// A control frame without FIN (section 5.5).
    #[error("control frame is fragmented")]
    FragmentedControlFrame,
    /// A continuation frame outside a message (section 5.4).
    #[error("nothing to continue")]
    NothingToContinue,
    /// A new message inside a fragmented one (section 5.4).
    #[error("message inside a fragmented message")]
    MessageUnderWay,
    /// A close frame with a body of one byte (section 5.5.1).
    #[error("malformed close frame")]
    MalformedClose,
    /// A close code that may not be sent (section 7.4).
    #[error("invalid close code")]
    InvalidCloseCode,
    /// A text message or a close reason that is not UTF-8 (section 8.1).
    #[error("invalid UTF-8")]
    InvalidUtf8,
    /// A message above [`CodecLimits::message_bytes_max`] or [`CodecLimits::deflated_bytes_max`] (PROTOCOL 3).
    #[error("message is too big")]
    MessageTooBig,
}

impl CodecError {
    /// The close code of PROTOCOL 3. The `Display` text is the reason, fit for the close frame and for a log: it
    /// is fixed and holds nothing of what the peer sent.
    #[must_use]
    pub fn close_code(self) -> u16 {
        match self {
            Self::Unmasked
            | Self::ReservedBit
            | Self::ReservedOpcode
            | Self::MalformedLength
            | Self::LongControlFrame
            | Self::FragmentedControlFrame
            | Self::NothingToContinue
            | Self::MessageUnderWay
            | Self::MalformedClose
            | Self::InvalidCloseCode => 1002,
            Self::InvalidUtf8 => 1007,
            Self::MessageTooBig => 1009,
        }
    }
}

/// The decoder of one session: what has arrived in part, and nothing for an idle session.
#[derive(Default)]
pub struct Codec(Option<Box<Partial>>);

const _: () = assert!(
    size_of::<Codec>() == 8,
    "an idle session pays for its codec"
);

/// What arrived in part. Invariant: never kept in its default state.
#[derive(Default)]
struct Partial {
    /// See [`Codec::mark_once`].
    mark: Option<u32>,
    stage: Stage,
    /// The message under way, from its first frame to its last.
    message: Option<Message>,
}

/// Where in a frame the bytes read so far end.
enum Stage {
    /// `length` bytes of the next header, which is incomplete; 0 between frames.
    Header {
        bytes: [u8; HEADER_BYTES_MAX],
        length: usize,
    },
    /// Within a payload, `Frame::remaining > 0`.
    Payload(Frame),
}

impl Default for Stage {
    fn default() -> Self {
        Self::Header {
            bytes: [0; HEADER_BYTES_MAX],
            length: 0,
        }
    }
}

/// A frame whose header passed every check.
struct Frame {
    content: Content,
    is_final: bool,
    /// Rotated so that its first byte is for the next byte of the payload.
    mask: [u8; 4],
    /// Payload bytes that have not arrived.
    remaining: u64,
}

enum Content {
    /// Part of a message: its first frame or a continuation.
    Message(MessageKind),
    /// A control frame, and what of its payload came in earlier reads.
    Control(ControlKind, Vec<u8>),
}

#[derive(Clone, Copy)]
enum MessageKind {
    Text,
    Binary,
    Deflated(DataKind),
}

/// The two kinds of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataKind {
    /// Text.
    Text,
    /// Bytes.
    Binary,
}

#[derive(Clone, Copy)]
enum ControlKind {
    Close,
    Ping,
    Pong,
}

/// The part of a message that has arrived.
enum Message {
    Text(PartialText),
    Binary(Vec<u8>),
    Deflated(DataKind, Vec<u8>),
}

/// Text of which the end may be missing.
#[derive(Default)]
struct PartialText {
    whole: String,
    /// The first `cut_length` bytes are the beginning of a character that is not complete.
    cut: [u8; CHARACTER_BYTES_MAX],
    cut_length: usize,
}

impl Codec {
    /// A codec at the start of a connection. Allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self(None)
    }

    /// Reads `input` up to and including the first complete message or control frame. `input` is what arrived
    /// after the bytes that earlier calls consumed; payloads are unmasked in place.
    ///
    /// The caller may stop after any item and go on later with the bytes behind `consumed`, unchanged, and those that
    /// arrived after them. Without an item everything was consumed. After [`Item::Close`] or an error the caller must not
    /// call it again: nothing that follows has a meaning.
    ///
    /// Cost linear in the consumed bytes. Allocates only when a frame or message is not complete in `input`.
    ///
    /// # Errors
    /// [`CodecError`]: the session is to be closed with its code. Whatever of `input` was valid before it came
    /// out as items of earlier calls.
    pub fn decode<'a>(
        &mut self,
        input: &'a mut [u8],
        limits: &CodecLimits,
    ) -> Result<Decoded<'a>, CodecError> {
        let length = input.len();
        let mut rest = input;
        let mut frames = 0;
        while !rest.is_empty() {
            let stage = self
                .0
                .as_mut()
                .map(|partial| mem::take(&mut partial.stage))
                .unwrap_or_default();
            let frame = match stage {
                Stage::Payload(frame) => frame,
                Stage::Header {
                    bytes,
                    length: known,
                } => match self.read_header(bytes, known, &mut rest, limits)? {
                    Some(frame) => frame,
                    None => break,
                },
            };
            let arrived = usize::try_from(frame.remaining)
                .map_or(rest.len(), |remaining| remaining.min(rest.len()));
            let payload = split_off_front(&mut rest, arrived);
            unmask(payload, frame.mask);
            frames += usize::from(frame.remaining == payload.len() as u64);
            if let Some(item) = self.take_payload(frame, payload)? {
                return Ok(Decoded {
                    consumed: length - rest.len(),
                    item: Some(item),
                    frames,
                });
            }
        }
        Ok(Decoded {
            consumed: length,
            item: None,
            frames,
        })
    }

    /// Whether nothing is incomplete: no frame in part, no message under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.is_none()
    }

    /// Keeps `mark` with what is incomplete, unless that has a mark already. The mark is dropped with the last frame of
    /// the message, or with the frame when no message is under way; control frames between the fragments of a message
    /// leave it. Nothing is kept when nothing is incomplete.
    pub fn mark_once(&mut self, mark: u32) {
        if let Some(partial) = &mut self.0 {
            partial.mark.get_or_insert(mark);
        }
    }

    /// As [`Codec::mark_once`], but replaces a mark that is there.
    pub fn mark_anew(&mut self, mark: u32) {
        if let Some(partial) = &mut self.0 {
            partial.mark = Some(mark);
        }
    }

    /// The mark of what is incomplete.
    #[must_use]
    pub fn mark(&self) -> Option<u32> {
        self.0.as_ref()?.mark
    }

    /// Payload bytes of the frame under way that have not arrived; 0 between frames, and within a header.
    #[must_use]
    pub fn awaited_bytes(&self) -> usize {
        let stage = self.0.as_ref().map(|partial| &partial.stage);
        match stage {
            Some(Stage::Payload(frame)) => usize::try_from(frame.remaining).unwrap_or(usize::MAX),
            Some(Stage::Header { .. }) | None => 0,
        }
    }

    /// Heap bytes held for what arrived in part; 0 when idle.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let Some(partial) = &self.0 else { return 0 };
        let control = match &partial.stage {
            Stage::Payload(Frame {
                content: Content::Control(_, payload),
                ..
            }) => payload.capacity(),
            Stage::Payload(_) | Stage::Header { .. } => 0,
        };
        let message = match &partial.message {
            Some(Message::Text(text)) => text.whole.capacity(),
            Some(Message::Binary(bytes) | Message::Deflated(_, bytes)) => bytes.capacity(),
            None => 0,
        };
        size_of::<Partial>() + control + message
    }

    /// Reads one header off `rest`; its first `known` bytes came in earlier reads and are in `bytes`. `None`: it
    /// is still incomplete, and all of `rest` was consumed.
    fn read_header(
        &mut self,
        mut bytes: [u8; HEADER_BYTES_MAX],
        known: usize,
        rest: &mut &mut [u8],
        limits: &CodecLimits,
    ) -> Result<Option<Frame>, CodecError> {
        let length = HEADER_BYTES_MAX.min(known + rest.len());
        for (free, arrived) in bytes.iter_mut().skip(known).zip(rest.iter()) {
            *free = *arrived;
        }
        let mut cursor = Cursor::new(bytes.get(..length).unwrap_or_default());
        // An error can only be an opcode: reading from memory does not fail.
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| CodecError::ReservedOpcode)?;
        let Some((header, payload_length)) = parsed else {
            split_off_front(rest, length - known);
            self.0.get_or_insert_default().stage = Stage::Header { bytes, length };
            return Ok(None);
        };
        let message = self.0.as_ref().and_then(|partial| partial.message.as_ref());
        if header.len(payload_length) as u64 != cursor.position() {
            return Err(CodecError::MalformedLength);
        }
        let frame = check_header(&header, payload_length, message, limits)?;
        split_off_front(rest, header.len(payload_length) - known);
        Ok(Some(frame))
    }

    /// Takes the next piece of a frame's payload, unmasked. Returns the item that it completes, or keeps it.
    fn take_payload<'a>(
        &mut self,
        frame: Frame,
        payload: &'a mut [u8],
    ) -> Result<Option<Item<'a>>, CodecError> {
        let remaining = frame.remaining - payload.len() as u64;
        let is_complete = remaining == 0;
        let item = match frame.content {
            Content::Control(kind, earlier) => {
                let whole = if earlier.is_empty() && is_complete {
                    Cow::Borrowed(&*payload)
                } else {
                    let mut whole = earlier;
                    whole.extend_from_slice(payload);
                    Cow::Owned(whole)
                };
                if !is_complete {
                    let content = Content::Control(kind, whole.into_owned());
                    return Ok(self.keep(
                        Frame {
                            content,
                            remaining,
                            ..frame
                        },
                        payload.len(),
                    ));
                }
                Some(control_item(kind, whole)?)
            }
            Content::Message(kind) => {
                let message = self.0.as_mut().and_then(|partial| partial.message.take());
                if message.is_none() && is_complete && frame.is_final {
                    Some(whole_message(kind, payload)?)
                } else {
                    let mut message = message.unwrap_or_else(|| Message::new(kind));
                    message.reserve(payload.len(), frame.is_final.then_some(remaining));
                    message.push(payload)?;
                    if is_complete && frame.is_final {
                        Some(message.finish()?)
                    } else {
                        self.0.get_or_insert_default().message = Some(message);
                        if !is_complete {
                            return Ok(self.keep(Frame { remaining, ..frame }, payload.len()));
                        }
                        None
                    }
                }
            }
        };
        self.0.take_if(|partial| partial.message.is_none());
        Ok(item)
    }

    /// Keeps a frame that is still incomplete after `arrived` more bytes.
    fn keep(&mut self, mut frame: Frame, arrived: usize) -> Option<Item<'static>> {
        frame.mask.rotate_left(arrived % 4);
        self.0.get_or_insert_default().stage = Stage::Payload(frame);
        None
    }
}

impl fmt::Debug for Item<'_> {
    /// Kind and size, not the content: a command may hold a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, length) = match self {
            Self::Text(text) => ("Text", text.len()),
            Self::Binary(bytes) => ("Binary", bytes.len()),
            Self::Deflated(_, bytes) => ("Deflated", bytes.len()),
            Self::Ping(payload) => ("Ping", payload.len()),
            Self::Pong(payload) => ("Pong", payload.len()),
            Self::Close { reason, .. } => ("Close", reason.len()),
        };
        write!(f, "{kind}({length} bytes)")
    }
}

impl fmt::Debug for Codec {
    /// How much is kept, not what.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Codec({} bytes)", self.heap_bytes())
    }
}

impl Message {
    fn new(kind: MessageKind) -> Self {
        match kind {
            MessageKind::Text => Self::Text(PartialText::default()),
            MessageKind::Binary => Self::Binary(Vec::new()),
            MessageKind::Deflated(kind) => Self::Deflated(kind, Vec::new()),
        }
    }

    fn kind(&self) -> MessageKind {
        match self {
            Self::Text(_) => MessageKind::Text,
            Self::Binary(_) => MessageKind::Binary,
            Self::Deflated(kind, _) => MessageKind::Deflated(*kind),
        }
    }

    /// Bytes that have arrived.
    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.whole.len() + text.cut_length,
            Self::Binary(bytes) | Self::Deflated(_, bytes) => bytes.len(),
        }
    }

    /// Makes room for `more` bytes; `behind`: how many the message has behind those, if that is known. Amortised linear.
    fn reserve(&mut self, more: usize, behind: Option<u64>) {
        match self {
            Self::Text(text) => {
                let needed = text.whole.len() + text.cut_length + more;
                let capacity = grown(text.whole.capacity(), needed, behind);
                text.whole.reserve_exact(capacity - text.whole.len());
            }
            Self::Binary(bytes) | Self::Deflated(_, bytes) => {
                let capacity = grown(bytes.capacity(), bytes.len() + more, behind);
                bytes.reserve_exact(capacity - bytes.len());
            }
        }
    }

    fn push(&mut self, payload: &[u8]) -> Result<(), CodecError> {
        match self {
            Self::Text(text) => text.push(payload),
            Self::Binary(bytes) | Self::Deflated(_, bytes) => {
                bytes.extend_from_slice(payload);
                Ok(())
            }
        }
    }

    fn finish(self) -> Result<Item<'static>, CodecError> {
        match self {
            Self::Text(text) if text.cut_length > 0 => Err(CodecError::InvalidUtf8),
            Self::Text(text) => Ok(Item::Text(Cow::Owned(text.whole))),
            Self::Binary(bytes) => Ok(Item::Binary(Cow::Owned(bytes))),
            Self::Deflated(kind, bytes) => Ok(Item::Deflated(kind, Cow::Owned(bytes))),
        }
    }
}

/// The capacity that a buffer of `capacity` should have for `needed` bytes, and so many behind them, if that is known: a
/// quarter more than it had, at least [`GROWTH_BYTES_MIN`], but no more than will be needed.
fn grown(capacity: usize, needed: usize, behind: Option<u64>) -> usize {
    if needed <= capacity {
        return capacity;
    }
    let behind = behind.map_or(usize::MAX, |behind| {
        usize::try_from(behind).unwrap_or(usize::MAX)
    });
    let step = (capacity / 4).max(GROWTH_BYTES_MIN);
    (capacity + step).clamp(needed, needed.saturating_add(behind))
}

impl PartialText {
    /// Appends `bytes`; fails as soon as no continuation could make the whole valid.
    fn push(&mut self, mut bytes: &[u8]) -> Result<(), CodecError> {
        while self.cut_length > 0 {
            let Some((next, behind)) = bytes.split_first() else {
                return Ok(());
            };
            bytes = behind;
            let free = self.cut.get_mut(self.cut_length);
            *free.ok_or(CodecError::InvalidUtf8)? = *next;
            self.cut_length += 1;
            match std::str::from_utf8(self.cut.get(..self.cut_length).unwrap_or_default()) {
                Ok(character) => {
                    self.whole.push_str(character);
                    self.cut_length = 0;
                }
                Err(error) if error.error_len().is_some() => return Err(CodecError::InvalidUtf8),
                Err(_) => {}
            }
        }
        match simdutf8::compat::from_utf8(bytes) {
            Ok(text) => self.whole.push_str(text),
            Err(error) if error.error_len().is_some() => return Err(CodecError::InvalidUtf8),
            Err(error) => {
                let (valid, cut) = bytes.split_at(error.valid_up_to());
                self.whole
                    .push_str(std::str::from_utf8(valid).map_err(|_| CodecError::InvalidUtf8)?);
                for (free, byte) in self.cut.iter_mut().zip(cut) {
                    *free = *byte;
                }
                self.cut_length = cut.len();
            }
        }
        Ok(())
    }
}

/// Checks one header against RFC 6455 sections 5.1 to 5.5, the message under way and the limits.
fn check_header(
    header: &FrameHeader,
    length: u64,
    message: Option<&Message>,
    limits: &CodecLimits,
) -> Result<Frame, CodecError> {
    let Some(mask) = header.mask else {
        return Err(CodecError::Unmasked);
    };
    let is_first = matches!(header.opcode, OpCode::Data(Data::Text | Data::Binary));
    let is_rsv1_allowed = limits.may_be_deflated && is_first;
    if (header.rsv1 && !is_rsv1_allowed) || header.rsv2 || header.rsv3 {
        return Err(CodecError::ReservedBit);
    }
    if length > i64::MAX as u64 {
        return Err(CodecError::MalformedLength);
    }
    let kind = match (header.opcode, message) {
        (OpCode::Control(control), _) => {
            let kind = match control {
                Control::Close => ControlKind::Close,
                Control::Ping => ControlKind::Ping,
                Control::Pong => ControlKind::Pong,
                Control::Reserved(_) => return Err(CodecError::ReservedOpcode),
            };
            if !header.is_final {
                return Err(CodecError::FragmentedControlFrame);
            }
            if length > CONTROL_BYTES_MAX as u64 {
                return Err(CodecError::LongControlFrame);
            }
            let content = Content::Control(kind, Vec::new());
            return Ok(Frame {
                content,
                is_final: true,
                mask,
                remaining: length,
            });
        }
        (OpCode::Data(Data::Continue), Some(message)) => message.kind(),
        (OpCode::Data(Data::Continue), None) => return Err(CodecError::NothingToContinue),
        (OpCode::Data(Data::Text | Data::Binary), Some(_)) => {
            return Err(CodecError::MessageUnderWay);
        }
        (OpCode::Data(Data::Text), None) if header.rsv1 => MessageKind::Deflated(DataKind::Text),
        (OpCode::Data(Data::Binary), None) if header.rsv1 => {
            MessageKind::Deflated(DataKind::Binary)
        }
        (OpCode::Data(Data::Text), None) => MessageKind::Text,
        (OpCode::Data(Data::Binary), None) => MessageKind::Binary,
        (OpCode::Data(Data::Reserved(_)), _) => return Err(CodecError::ReservedOpcode),
    };
    let message_length = message.map_or(0, Message::len) as u64;
    let bytes_max = match kind {
        MessageKind::Text | MessageKind::Binary => limits.message_bytes_max,
        MessageKind::Deflated(_) => limits.message_bytes_max.min(limits.deflated_bytes_max),
    };
    if message_length.saturating_add(length) > bytes_max as u64 {
        return Err(CodecError::MessageTooBig);
    }
    Ok(Frame {
        content: Content::Message(kind),
        is_final: header.is_final,
        mask,
        remaining: length,
    })
}

/// A message that came whole: nothing is copied.
fn whole_message(kind: MessageKind, payload: &[u8]) -> Result<Item<'_>, CodecError> {
    match kind {
        MessageKind::Text => match simdutf8::basic::from_utf8(payload) {
            Ok(text) => Ok(Item::Text(Cow::Borrowed(text))),
            Err(_) => Err(CodecError::InvalidUtf8),
        },
        MessageKind::Binary => Ok(Item::Binary(Cow::Borrowed(payload))),
        MessageKind::Deflated(kind) => Ok(Item::Deflated(kind, Cow::Borrowed(payload))),
    }
}

fn control_item(kind: ControlKind, payload: Cow<'_, [u8]>) -> Result<Item<'_>, CodecError> {
    match kind {
        ControlKind::Ping => Ok(Item::Ping(payload)),
        ControlKind::Pong => Ok(Item::Pong(payload)),
        ControlKind::Close => {
            let code = match *payload {
                [] => {
                    return Ok(Item::Close {
                        code: None,
                        reason: Cow::Borrowed(""),
                    });
                }
                [_] => return Err(CodecError::MalformedClose),
                [high, low, ..] => u16::from_be_bytes([high, low]),
            };
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err(CodecError::InvalidCloseCode);
            }
            let reason = match payload {
                Cow::Borrowed(payload) => {
                    let reason = payload.get(2..).unwrap_or_default();
                    std::str::from_utf8(reason).map(Cow::Borrowed).ok()
                }
                Cow::Owned(mut payload) => {
                    String::from_utf8(payload.split_off(2)).map(Cow::Owned).ok()
                }
            };
            Ok(Item::Close {
                code: Some(code),
                reason: reason.ok_or(CodecError::InvalidUtf8)?,
            })
        }
    }
}

/// XORs `mask` over `payload` (section 5.3), eight bytes at a step.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let mask = [a, b, c, d, a, b, c, d];
    let mut words = payload.chunks_exact_mut(mask.len());
    for word in &mut words {
        for (byte, key) in word.iter_mut().zip(mask) {
            *byte ^= key;
        }
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(mask) {
        *byte ^= key;
    }
}

/// Takes the first `length` bytes off `rest`.
fn split_off_front<'a>(rest: &mut &'a mut [u8], length: usize) -> &'a mut [u8] {
    let (front, behind) = mem::take(rest).split_at_mut(length);
    *rest = behind;
    front
}
