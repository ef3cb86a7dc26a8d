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
//! - a frame of a wrong type or above the negotiated size, a body above [`BODY_BYTES_MAX`], and deliveries read but
//!   not yet taken above [`BACKLOG_BYTES_MAX`] are [`Violation`]s: the read fails, and with it the connection.
//!
//! Invariant of [`Guard`]: `begin <= cleared <= end <= buffer.len()`; bytes before `cleared` may be passed on, those
//! after it are the beginning of a frame that is still incomplete. What is cleared is passed on before the socket is
//! read again, so the edge-triggered poll of the client never waits for bytes that lie here.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What we ask of the broker, and hold it to: its own default.
pub(super) const FRAME_BYTES_MAX: u32 = 131_072;
/// Largest method frame; the longest a broker sends a consumer is some 800 bytes, and `connection.start` about 600.
const METHOD_BYTES_MAX: usize = 16 << 10;
/// Largest body of one delivery; above it the connection is given up, and the delivery dies with its queue.
pub(super) const BODY_BYTES_MAX: u64 = 64 << 20;
/// Bodies read but not yet taken by the consumer. The prefetch bounds their number, not their size.
pub(super) const BACKLOG_BYTES_MAX: u64 = 256 << 20;
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
    #[error("a body of {0} bytes, above {BODY_BYTES_MAX}")]
    BodyTooLarge(u64),
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
}

impl Vitals {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            epoch: now,
            heard_micros: AtomicU64::new(0),
            backlog_bytes: AtomicU64::new(0),
            violations: AtomicU64::new(0),
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
            end: 0,
        }
    }
}

impl<S: Read> Read for Guard<S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.begin == self.cleared {
            self.buffer.copy_within(self.cleared..self.end, 0);
            (self.begin, self.end, self.cleared) = (0, self.end - self.cleared, 0);
            let read = match self.stream.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(0),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.end += read;
            self.vitals.hear();
            self.cleared = self
                .screen
                .clear(&mut self.buffer[..self.end], &self.vitals)
                .map_err(|violation| {
                    self.vitals.violations.fetch_add(1, Ordering::Relaxed);
                    io::Error::new(io::ErrorKind::InvalidData, violation)
                })?;
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
    /// Bytes of the present frame that need no look and are still to come, its end octet included.
    passing: usize,
}

impl Screen {
    /// Screens `bytes`, which begin where the last call's answer ended, and answers how many at their front may be
    /// passed on; the rest is to be shown again, with more behind it. Linear in what it passes.
    fn clear(&mut self, bytes: &mut [u8], vitals: &Vitals) -> Result<usize, Violation> {
        let mut cleared = 0;
        loop {
            let rest = bytes.get_mut(cleared..).unwrap_or_default();
            if self.passing > 0 {
                let pass = self.passing.min(rest.len());
                self.passing -= pass;
                cleared += pass;
                if self.passing > 0 {
                    return Ok(cleared);
                }
                continue;
            }
            let Some(&[kind, _, _, size @ ..]) = rest.first_chunk::<FRAME_HEADER_BYTES>() else {
                // A peer that talks something else may stop after a few bytes: complain about the first of them.
                return match rest.first() {
                    Some(&kind) if !matches!(kind, 1 | 2 | 3 | 8) => {
                        Err(Violation::NotAFrame(kind))
                    }
                    _ => Ok(cleared),
                };
            };
            let size = u32::from_be_bytes(size);
            if size > FRAME_BYTES_MAX - 8 {
                return Err(if matches!(kind, 1 | 2 | 3 | 8) {
                    Violation::FrameTooLarge(size)
                } else {
                    Violation::NotAFrame(kind)
                });
            }
            let size = size as usize;
            let looked_at = match kind {
                1 if size > METHOD_BYTES_MAX => return Err(Violation::MethodTooLarge(size)),
                1 => size,
                2 => size.min(CONTENT_BYTES_LOOKED_AT),
                3 | 8 => 0,
                other => return Err(Violation::NotAFrame(other)),
            };
            let Some(payload) = rest.get_mut(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + looked_at)
            else {
                return Ok(cleared);
            };
            match kind {
                1 => screen_method(payload)?,
                2 => screen_content(payload, vitals)?,
                _ => {}
            }
            cleared += FRAME_HEADER_BYTES + looked_at;
            self.passing = size - looked_at + FRAME_END_BYTES;
        }
    }
}

fn screen_method(payload: &mut [u8]) -> Result<(), Violation> {
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
            fields.skip(9)?;
            substitute(fields.short_string()?);
            substitute(fields.short_string()?);
        }
        (class, method) if CLIENT_TABLES.contains(&(class, method)) => {
            return Err(Violation::ClientMethod(class, method));
        }
        _ => {}
    }
    Ok(())
}

fn screen_content(payload: &mut [u8], vitals: &Vitals) -> Result<(), Violation> {
    let mut fields = Fields(payload);
    fields.skip(4)?;
    let body = fields.u64()?;
    if body > BODY_BYTES_MAX {
        return Err(Violation::BodyTooLarge(body));
    }
    let backlog = vitals.backlog_bytes.fetch_add(body, Ordering::Relaxed) + body;
    if backlog > BACKLOG_BYTES_MAX {
        return Err(Violation::BacklogTooLarge(backlog));
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
    Ok(())
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

    fn deliver(exchange: &[u8], key: &[u8]) -> Vec<u8> {
        let short = |text: &[u8]| [&[u8::try_from(text.len()).expect("short")][..], text].concat();
        let tag_and_flag = [0, 0, 0, 0, 0, 0, 0, 7, 0];
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
        let bodies: Vec<u8> = (0..5)
            .flat_map(|_| content(BODY_BYTES_MAX, 0, b""))
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
            (bodies, Violation::BacklogTooLarge(5 * BODY_BYTES_MAX)),
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
