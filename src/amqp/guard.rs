//! The stream between the broker's socket and the AMQP client: checks and defuses every frame before the client's
//! parser sees it (AMQP rails 1, 3 and 4).
//!
//! The client's parser recurses over nested tables until its stack overflows, ends the connection over one byte
//! that is not UTF-8, and follows a peer that turns heartbeats off into hanging for good. Any publisher can send
//! the first two. So:
//!
//! - of a delivery's properties only `content_type` and `content_encoding` survive: the flags of all others,
//!   `headers` among them, are cleared, and the parser never looks at what they announced. The table in
//!   `connection.start` is blanked, and a method that carries a table but is not for a broker to send is refused.
//!   Hence no table is ever parsed, at any depth, and no publisher can end the connection with one;
//! - bytes that are not UTF-8 in a delivery's exchange, routing key, type or encoding become [`SUBSTITUTE`], and
//!   the consumer drops such a delivery;
//! - a delivery that is too large ([`BODY_BYTES_MAX`]) is passed on as one with an empty body. Its body is swallowed as
//!   it comes, never kept, and the consumer asks [`Vitals::swallowed`] which empty bodies are such. Each swallowed frame
//!   leaves a heartbeat in its place, since the client ends a connection on which it hears nothing, and a broker sends
//!   no heartbeat while it sends a body;
//! - a frame of a wrong type or above the negotiated size, and deliveries read but not yet taken above
//!   [`BACKLOG_BYTES_MAX`], are [`Violation`]s: the read fails, and with it the connection.
//!
//! Invariant of [`Guard`]: `begin <= cleared <= resume <= end <= buffer.len()`. Bytes before `cleared` may be passed on,
//! those from there to `resume` are swallowed, those behind were not screened or are the beginning of a piece that is
//! still incomplete. What can be passed on is passed on before the socket is read again, so the edge-triggered poll of
//! the client never waits for bytes that lie here.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::event;

/// What we ask of the broker, and hold it to: its own default.
pub(super) const FRAME_BYTES_MAX: u32 = 131_072;
/// Largest method frame; the longest a broker sends a consumer is some 800 bytes, and `connection.start` about 600.
const METHOD_BYTES_MAX: usize = 16 << 10;
/// Largest body of one delivery; a larger one is swallowed, and its delivery dropped by the consumer.
pub(super) const BODY_BYTES_MAX: u64 = 64 << 20;
/// Bodies read but not yet taken by the consumer. The prefetch bounds their number, not their size. A body that would go
/// beyond is swallowed if it is too large for an event anyway ([`event::BODY_BYTES_MAX`]); else the connection is given
/// up, which tells every session of a gap.
pub(super) const BACKLOG_BYTES_MAX: u64 = 256 << 20;
/// Channels in the middle of a delivery, at most: one of ours consumes. Beyond it the connection is given up.
const CONTENTS_MAX: usize = 16;
/// Deliveries with a swallowed body that the consumer has not taken yet: the largest prefetch. Beyond it the connection
/// is given up.
const SWALLOWED_MAX: usize = u16::MAX as usize;
/// Stands for what was not UTF-8: ASCII's own character for that, which no escaped routing key contains (PROTOCOL 6).
pub(super) const SUBSTITUTE: char = '\u{1a}';
/// Seconds between heartbeats; a peer silent for twice as long is gone.
pub(super) const HEARTBEAT_SECONDS: u16 = 5;

const FRAME_HEADER_BYTES: usize = 7;
const FRAME_END_BYTES: usize = 1;
/// class, weight, body size, flags, then two short strings at most: all of a content header that is looked at.
const CONTENT_BYTES_LOOKED_AT: usize = 14 + 2 * 256;
const CONTENT_TYPE: u16 = 1 << 15;
const CONTENT_ENCODING: u16 = 1 << 14;
/// Room for the longest piece that must be seen whole, and for a good read beside it.
const BUFFER_BYTES: usize = 64 << 10;
const _: () = assert!(METHOD_BYTES_MAX + FRAME_HEADER_BYTES + FRAME_END_BYTES <= BUFFER_BYTES);

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// Of a heartbeat, which has no payload.
const HEARTBEAT_HEADER: [u8; FRAME_HEADER_BYTES] = [HEARTBEAT, 0, 0, 0, 0, 0, 0];

const CONNECTION_START: (u16, u16) = (10, 10);
const CONNECTION_TUNE: (u16, u16) = (10, 30);
const BASIC_DELIVER: (u16, u16) = (60, 60);
/// Methods that carry a table and that only clients send.
const CLIENT_TABLES: [(u16, u16); 8] = [
    (10, 11),
    (40, 10),
    (40, 30),
    (40, 40),
    (50, 10),
    (50, 20),
    (50, 50),
    (60, 20),
];

/// What a broker must not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("the peer does not speak AMQP 0-9-1 (octet {0} where a frame begins)")]
    NotAFrame(u8),
    #[error("a frame of {0} bytes, above the negotiated {FRAME_BYTES_MAX}")]
    FrameTooLarge(u32),
    #[error("a method frame of {0} bytes, above {METHOD_BYTES_MAX}")]
    MethodTooLarge(usize),
    #[error("a body of {0} bytes that belongs to no delivery")]
    BodyTooLarge(u64),
    #[error("a swallowed body that goes on for {0} bytes beyond its announced size")]
    BodyTooLong(u64),
    #[error("deliveries on more than {CONTENTS_MAX} channels at once")]
    TooManyContents,
    #[error("more than {SWALLOWED_MAX} deliveries with a swallowed body wait to be taken")]
    TooManySwallowed,
    #[error("{0} bytes of deliveries wait to be taken, above {BACKLOG_BYTES_MAX}")]
    BacklogTooLarge(u64),
    #[error("method {0}.{1}, which only clients send")]
    ClientMethod(u16, u16),
    #[error("a frame that ends before its fields do")]
    Truncated,
}

/// What the guard tells the threads that use the connection.
#[derive(Debug)]
pub(super) struct Vitals {
    epoch: Instant,
    heard_micros: AtomicU64,
    backlog_bytes: AtomicU64,
    violations: AtomicU64,
    /// Tag and announced bytes of deliveries whose body was swallowed, in the order of their coming.
    swallowed: Mutex<VecDeque<(u64, u64)>>,
}

impl Vitals {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            epoch: now,
            heard_micros: AtomicU64::new(0),
            backlog_bytes: AtomicU64::new(0),
            violations: AtomicU64::new(0),
            swallowed: Mutex::default(),
        }
    }

    /// When bytes last came from the broker; the time of [`Vitals::new`] before any did.
    pub(super) fn last_heard(&self) -> Instant {
        self.epoch + Duration::from_micros(self.heard_micros.load(Ordering::Relaxed))
    }

    /// The consumer took a delivery with a body of this many bytes.
    pub(super) fn taken(&self, body_bytes: usize) {
        self.backlog_bytes
            .fetch_sub(body_bytes as u64, Ordering::Relaxed);
    }

    /// The announced size of a body that was swallowed, asked once for each delivery that came with an empty one, in the
    /// order of their coming; `None`: it was empty. `tag`: the delivery's, on the one channel that consumes.
    pub(super) fn swallowed(&self, tag: u64) -> Option<u64> {
        let mut swallowed = self
            .swallowed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match swallowed.front() {
            Some(&(its_tag, bytes)) if its_tag == tag => {
                swallowed.pop_front();
                Some(bytes)
            }
            _ => None,
        }
    }

    fn swallow(&self, tag: u64, bytes: u64) -> Result<(), Violation> {
        let mut swallowed = self
            .swallowed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if swallowed.len() >= SWALLOWED_MAX {
            return Err(Violation::TooManySwallowed);
        }
        swallowed.push_back((tag, bytes));
        Ok(())
    }

    /// Violations on this connection: 0 or 1.
    pub(super) fn violations(&self) -> u64 {
        self.violations.load(Ordering::Relaxed)
    }

    fn hear(&self) {
        let micros = u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.heard_micros.store(micros, Ordering::Relaxed);
    }
}

/// The stream. Reads are screened, writes passed on.
pub(super) struct Guard<S> {
    stream: S,
    screen: Screen,
    vitals: Arc<Vitals>,
    buffer: Box<[u8]>,
    begin: usize,
    cleared: usize,
    resume: usize,
    end: usize,
}

impl<S> Guard<S> {
    pub(super) fn new(stream: S, vitals: Arc<Vitals>) -> Self {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Self {
            stream,
            screen: Screen::default(),
            vitals,
            buffer,
            begin: 0,
            cleared: 0,
            resume: 0,
            end: 0,
        }
    }
}

impl<S: Read> Read for Guard<S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.begin == self.cleared {
            let has_more = self.resume > self.cleared;
            self.buffer.copy_within(self.resume..self.end, 0);
            self.end -= self.resume;
            (self.begin, self.cleared, self.resume) = (0, 0, 0);
            if !has_more {
                match self.stream.read(&mut self.buffer[self.end..]) {
                    Ok(0) => return Ok(0),
                    Ok(read) => self.end += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                }
                self.vitals.hear();
            }
            let screened = self
                .screen
                .clear(&mut self.buffer[..self.end], &self.vitals)
                .map_err(|violation| {
                    self.vitals.violations.fetch_add(1, Ordering::Relaxed);
                    io::Error::new(io::ErrorKind::InvalidData, violation)
                })?;
            self.cleared = screened.passed;
            self.resume = screened.passed + screened.swallowed;
        }
        let passed = into.len().min(self.cleared - self.begin);
        into[..passed].copy_from_slice(&self.buffer[self.begin..self.begin + passed]);
        self.begin += passed;
        Ok(passed)
    }
}

impl<S: Write> Write for Guard<S> {
    /// As the stream's own, but never `Ok(0)`, over which the client would spin.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.stream.write(bytes) {
            Ok(0) if !bytes.is_empty() => Err(io::ErrorKind::WriteZero.into()),
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<S: mio06::Evented> mio06::Evented for Guard<S> {
    fn register(
        &self,
        poll: &mio06::Poll,
        token: mio06::Token,
        interest: mio06::Ready,
        options: mio06::PollOpt,
    ) -> io::Result<()> {
        self.stream.register(poll, token, interest, options)
    }

    fn reregister(
        &self,
        poll: &mio06::Poll,
        token: mio06::Token,
        interest: mio06::Ready,
        options: mio06::PollOpt,
    ) -> io::Result<()> {
        self.stream.reregister(poll, token, interest, options)
    }

    fn deregister(&self, poll: &mio06::Poll) -> io::Result<()> {
        self.stream.deregister(poll)
    }
}

impl<S: Read + Write + mio06::Evented + Send + 'static> amiquip::IoStream for Guard<S> {}

/// Appends to `passed` what of a broker's bytes the AMQP client would get to see, until the stream ends or fails. No
/// delivery is ever taken, so the bound on those that wait is that of all of them. Linear in the stream.
///
/// # Errors
/// The stream's own; [`io::ErrorKind::InvalidData`] for what a broker must not send.
pub(super) fn pass_on(broker: impl Read, passed: &mut Vec<u8>) -> io::Result<()> {
    let mut guard = Guard::new(broker, Arc::new(Vitals::new(Instant::now())));
    guard.read_to_end(passed).map(|_| ())
}

/// Where in the stream of frames the next byte stands.
#[derive(Debug, Default)]
struct Screen {
    rest: Rest,
    /// What is under way on channels in the middle of a delivery; at most [`CONTENTS_MAX`].
    contents: Vec<(u16, Content)>,
}

/// Bytes of the present frame that are still to come and need no look.
#[derive(Clone, Copy, Debug)]
enum Rest {
    /// To be passed on, the end octet included.
    Passing(usize),
    /// The payload of a heartbeat that was a body; the end octet comes behind it.
    Swallowing(usize),
}

impl Default for Rest {
    fn default() -> Self {
        Self::Passing(0)
    }
}

/// A delivery whose frames have not all come.
#[derive(Clone, Copy, Debug)]
enum Content {
    /// Its content header is to come.
    Announced { tag: u64 },
    /// So many bytes of its body are to come, and are swallowed.
    Swallowed { left: u64 },
}

/// What [`Screen::clear`] did with the bytes from the front on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Screened {
    /// These may be passed on.
    passed: usize,
    /// These, behind them, are to be thrown away, and what follows is to be shown again at once; none when the screen
    /// has seen all that it can.
    swallowed: usize,
}

impl Screen {
    /// Screens `bytes`, which begin where the last call's answer ended. What it neither passes nor swallows is to be shown
    /// again, with more behind it. Linear in what it passes and swallows.
    fn clear(&mut self, bytes: &mut [u8], vitals: &Vitals) -> Result<Screened, Violation> {
        let mut cleared = 0;
        let passed = |passed| Screened {
            passed,
            swallowed: 0,
        };
        loop {
            let rest = bytes.get_mut(cleared..).unwrap_or_default();
            match self.rest {
                Rest::Passing(0) => {}
                Rest::Passing(left) => {
                    let pass = left.min(rest.len());
                    self.rest = Rest::Passing(left - pass);
                    cleared += pass;
                    if pass < left {
                        return Ok(passed(cleared));
                    }
                    continue;
                }
                Rest::Swallowing(0) => {
                    self.rest = Rest::Passing(FRAME_END_BYTES);
                    continue;
                }
                Rest::Swallowing(left) => {
                    let swallowed = left.min(rest.len());
                    self.rest = Rest::Swallowing(left - swallowed);
                    return Ok(Screened {
                        passed: cleared,
                        swallowed,
                    });
                }
            }
            let Some(&[kind, channel_high, channel_low, size @ ..]) =
                rest.first_chunk::<FRAME_HEADER_BYTES>()
            else {
                // A peer that talks something else may stop after a few bytes: complain about the first of them.
                return match rest.first() {
                    Some(&kind) if !is_frame(kind) => Err(Violation::NotAFrame(kind)),
                    _ => Ok(passed(cleared)),
                };
            };
            let size = u32::from_be_bytes(size);
            if size > FRAME_BYTES_MAX - 8 {
                return Err(if is_frame(kind) {
                    Violation::FrameTooLarge(size)
                } else {
                    Violation::NotAFrame(kind)
                });
            }
            let channel = u16::from_be_bytes([channel_high, channel_low]);
            let size = size as usize;
            let looked_at = match kind {
                METHOD if size > METHOD_BYTES_MAX => return Err(Violation::MethodTooLarge(size)),
                METHOD => size,
                HEADER => size.min(CONTENT_BYTES_LOOKED_AT),
                BODY | HEARTBEAT => 0,
                other => return Err(Violation::NotAFrame(other)),
            };
            let Some((header, payload)) = rest
                .get_mut(..FRAME_HEADER_BYTES + looked_at)
                .and_then(|piece| piece.split_at_mut_checked(FRAME_HEADER_BYTES))
            else {
                return Ok(passed(cleared));
            };
            cleared += FRAME_HEADER_BYTES + looked_at;
            self.rest = Rest::Passing(size - looked_at + FRAME_END_BYTES);
            match kind {
                METHOD => {
                    let tag = screen_method(payload)?;
                    self.begin(channel, tag.map(|tag| Content::Announced { tag }))?;
                }
                HEADER => {
                    let announced = self.end(channel);
                    let left = screen_content(payload, announced, vitals)?;
                    self.begin(channel, left.map(|left| Content::Swallowed { left }))?;
                }
                BODY if self.swallows(channel, size as u64)? => {
                    header.copy_from_slice(&HEARTBEAT_HEADER);
                    self.rest = Rest::Swallowing(size);
                }
                _ => {}
            }
        }
    }

    /// What was under way on `channel` is over: "any non-content frame explicitly marks the end of the content" (AMQP
    /// 0-9-1, 4.2.6). Now this is, if anything.
    fn begin(&mut self, channel: u16, content: Option<Content>) -> Result<(), Violation> {
        self.end(channel);
        if let Some(content) = content {
            if self.contents.len() >= CONTENTS_MAX {
                return Err(Violation::TooManyContents);
            }
            self.contents.push((channel, content));
        }
        Ok(())
    }

    fn end(&mut self, channel: u16) -> Option<Content> {
        let at = self
            .contents
            .iter()
            .position(|(its_channel, _)| *its_channel == channel)?;
        Some(self.contents.swap_remove(at).1)
    }

    /// Whether a body frame of this size is part of a body that is swallowed.
    fn swallows(&mut self, channel: u16, bytes: u64) -> Result<bool, Violation> {
        let content = self
            .contents
            .iter_mut()
            .find(|(its_channel, _)| *its_channel == channel);
        let Some((_, Content::Swallowed { left })) = content else {
            return Ok(false);
        };
        if bytes > *left {
            return Err(Violation::BodyTooLong(bytes - *left));
        }
        *left -= bytes;
        if *left == 0 {
            self.end(channel);
        }
        Ok(true)
    }
}

fn is_frame(kind: u8) -> bool {
    matches!(kind, METHOD | HEADER | BODY | HEARTBEAT)
}

/// Returns the tag of a delivery that the method announces.
fn screen_method(payload: &mut [u8]) -> Result<Option<u64>, Violation> {
    let mut fields = Fields(payload);
    let method = (fields.u16()?, fields.u16()?);
    match method {
        CONNECTION_START => {
            fields.skip(2)?;
            let length = fields.u32()? as usize;
            blank_table(fields.take(length)?);
        }
        CONNECTION_TUNE => {
            fields.skip(6)?;
            let heartbeat = fields.take(2)?;
            if *heartbeat == [0, 0] {
                heartbeat.copy_from_slice(&HEARTBEAT_SECONDS.to_be_bytes());
            }
        }
        BASIC_DELIVER => {
            fields.short_string()?;
            let tag = fields.u64()?;
            fields.skip(1)?;
            substitute(fields.short_string()?);
            substitute(fields.short_string()?);
            return Ok(Some(tag));
        }
        (class, method) if CLIENT_TABLES.contains(&(class, method)) => {
            return Err(Violation::ClientMethod(class, method));
        }
        _ => {}
    }
    Ok(None)
}

/// Returns the bytes of a body that is to be swallowed. `announced`: the delivery that the content belongs to.
fn screen_content(
    payload: &mut [u8],
    announced: Option<Content>,
    vitals: &Vitals,
) -> Result<Option<u64>, Violation> {
    let mut fields = Fields(payload);
    fields.skip(4)?;
    let size = fields.take(8)?;
    let body = size
        .first_chunk()
        .map_or(0, |size| u64::from_be_bytes(*size));
    // Only this thread adds to the backlog.
    let backlog = vitals
        .backlog_bytes
        .load(Ordering::Relaxed)
        .saturating_add(body);
    let is_no_event = body > event::BODY_BYTES_MAX as u64;
    let mut swallowed = None;
    if body > BODY_BYTES_MAX || (backlog > BACKLOG_BYTES_MAX && is_no_event) {
        let Some(Content::Announced { tag }) = announced else {
            return Err(Violation::BodyTooLarge(body));
        };
        size.fill(0);
        vitals.swallow(tag, body)?;
        swallowed = Some(body);
    } else if backlog > BACKLOG_BYTES_MAX {
        return Err(Violation::BacklogTooLarge(backlog));
    } else {
        vitals.backlog_bytes.fetch_add(body, Ordering::Relaxed);
    }
    let flags_bytes = fields.take(2)?;
    let flags =
        u16::from_be_bytes([flags_bytes[0], flags_bytes[1]]) & (CONTENT_TYPE | CONTENT_ENCODING);
    flags_bytes.copy_from_slice(&flags.to_be_bytes());
    for flag in [CONTENT_TYPE, CONTENT_ENCODING] {
        if flags & flag != 0 {
            substitute(fields.short_string()?);
        }
    }
    Ok(swallowed)
}

/// Makes `table`'s content one byte array, which does not nest. Below 6 bytes nothing nests anyway.
fn blank_table(table: &mut [u8]) {
    let Some(length) = table
        .len()
        .checked_sub(6)
        .and_then(|length| u32::try_from(length).ok())
    else {
        return;
    };
    table.fill(0);
    table[1] = b'x';
    table[2..6].copy_from_slice(&length.to_be_bytes());
}

/// Makes `text` valid UTF-8 of the same length.
fn substitute(text: &mut [u8]) {
    let mut from = 0;
    while let Some(rest) = text.get_mut(from..)
        && let Err(error) = std::str::from_utf8(rest)
    {
        let bad = error.valid_up_to()
            ..error.valid_up_to()
                + error
                    .error_len()
                    .unwrap_or(rest.len() - error.valid_up_to());
        rest[bad.clone()].fill(SUBSTITUTE as u8);
        from += bad.end;
    }
}

/// Reads AMQP's fields off the front of a payload.
struct Fields<'a>(&'a mut [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a mut [u8], Violation> {
        let (taken, rest) = std::mem::take(&mut self.0)
            .split_at_mut_checked(bytes)
            .ok_or(Violation::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Violation> {
        self.take(N)?
            .first_chunk()
            .copied()
            .ok_or(Violation::Truncated)
    }

    fn skip(&mut self, bytes: usize) -> Result<(), Violation> {
        self.take(bytes).map(|_| ())
    }

    fn u16(&mut self) -> Result<u16, Violation> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Violation> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Violation> {
        self.array().map(u64::from_be_bytes)
    }

    fn short_string(&mut self) -> Result<&'a mut [u8], Violation> {
        let [length] = self.array()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let script = Script {
            bytes: bytes.to_vec(),
            piece,
            blocked: false,
        };
        let mut guard = Guard::new(script, Arc::new(Vitals::new(Instant::now())));
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
    fn every_property_but_type_and_encoding_is_hidden_from_the_parser() {
        let table = vec![b'A'; 20_000];
        let hostile = [&b"\x04gzip"[..], &[0, 0, 78, 32], &table].concat();
        let passed =
            screened(&content(1, CONTENT_ENCODING | 0x3fff, &hostile)).expect("nothing to refuse");
        assert_eq!(passed, content(1, CONTENT_ENCODING, &hostile));
    }

    #[test]
    fn what_is_not_utf8_is_substituted_in_place() {
        let passed =
            screened(&deliver(b"ex\xff", "ü\u{20ac}".as_bytes())).expect("nothing to refuse");
        assert_eq!(passed, deliver(b"ex\x1a", "ü\u{20ac}".as_bytes()));
        let passed = screened(&deliver(b"e", b"a.\xc3(.\xe2\x82")).expect("nothing to refuse");
        assert_eq!(passed, deliver(b"e", b"a.\x1a(.\x1a\x1a"));
        let passed =
            screened(&content(0, CONTENT_ENCODING, b"\x02g\xfe")).expect("nothing to refuse");
        assert_eq!(passed, content(0, CONTENT_ENCODING, b"\x02g\x1a"));
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
        pass_on(&*whole, &mut passed).expect("nothing to refuse");
        assert!(passed == [head(0), heartbeats, next].concat());

        frames.pop();
        frames.push(frame(3, &vec![b'x'; largest]));
        let longer = [head(announced), frames.concat()].concat();
        let error = pass_on(&*longer, &mut Vec::new()).expect_err("too long");
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
        assert_eq!(vitals.backlog_bytes.load(Ordering::Relaxed), 0);
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
}
