//! The stream between the broker's socket and the AMQP client: checks and defuses every frame before the client's
//! parser sees it (AMQP rails 1, 3 and 4).
//!
//! | module | owns |
//! |---|---|
//! | this | the stream, with its buffer |
//! | `screen` | where frames begin, what is passed on and what is swallowed |
//! | `fields` | what is changed inside a method or a content header |
//! | `bounds` | what a broker is held to, and the breaches of it |
//! | `vitals` | what the threads that use the connection are told |
//!
//! The client's parser recurses over nested tables until its stack overflows. It ends the connection over one byte that
//! is not UTF-8. And it lets a broker turn heartbeats off, after which it waits for a dead broker for ever. Any
//! publisher can cause the first two. So:
//!
//! - of a delivery's properties only `content_type`, `content_encoding` and `timestamp` survive: the flags of all others,
//!   `headers` among them, are cleared, and the parser never looks at what they announced. The timestamp, 8 bytes that
//!   cannot be wrong, is copied over them. The table in
//!   `connection.start` is blanked, and a method that carries a table but is not for a broker to send is refused.
//!   Hence no table is ever parsed, at any depth, and no publisher can end the connection with one;
//! - of a stream's delivery the `timestamp` is not its publisher's but its offset, which the broker hands out only as a
//!   header (`x-stream-offset`): the headers are walked flat, each stepped over by its length and never looked into;
//! - bytes that are not UTF-8 in a delivery's exchange, routing key, type or encoding become [`SUBSTITUTE`], and
//!   the consumer drops such a delivery;
//! - a delivery that is too large ([`bounds::BODY_BYTES_MAX`]) is passed on as one with an empty body. Its body is
//!   swallowed as it comes, never kept, and the consumer asks [`Vitals::swallowed`] which empty bodies are such. Each
//!   swallowed frame leaves a heartbeat in its place, since the client ends a connection on which it hears nothing, and
//!   a broker sends no heartbeat while it sends a body;
//! - a frame of a wrong type or above the negotiated size, and deliveries read but not yet taken above
//!   [`bounds::BACKLOG_BYTES_MAX`], are [`bounds::Violation`]s: the read fails, and with it the connection.
//!
//! Invariant of [`Guard`]: `begin <= cleared <= resume <= end <= buffer.len()`. Bytes before `cleared` may be passed
//! on, those from there to `resume` are swallowed, those behind were not screened or are the beginning of a piece that
//! is still incomplete. What can be passed on is passed on before the socket is read again, so the edge-triggered poll
//! of the client never waits for bytes that lie here.

mod bounds;
mod fields;
mod screen;
#[cfg(test)]
mod tests;
mod vitals;

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Instant;

pub(super) use self::bounds::{FRAME_BYTES_MAX, HEARTBEAT_SECONDS, Violation};
use self::bounds::{FRAME_END_BYTES, FRAME_HEADER_BYTES, METHOD_BYTES_MAX};
use self::fields::STREAM_CONTENT_BYTES_SCREENED_MAX;
pub(super) use self::fields::SUBSTITUTE;
use self::screen::Screen;
pub(super) use self::vitals::Vitals;

/// Room for the longest piece that must be seen whole, and for a good read beside it.
const BUFFER_BYTES: usize = 64 << 10;
const _: () = assert!(
    STREAM_CONTENT_BYTES_SCREENED_MAX + FRAME_HEADER_BYTES + FRAME_END_BYTES <= BUFFER_BYTES
);
const _: () = assert!(METHOD_BYTES_MAX + FRAME_HEADER_BYTES + FRAME_END_BYTES <= BUFFER_BYTES);

/// The stream. Reads are screened, writes are passed on.
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
                    self.vitals.count_violation();
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
    /// As the stream's own `write`, but never `Ok(0)`, on which the client would spin.
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

/// Appends to `passed` those of a broker's bytes that the AMQP client would see, until the stream ends or fails. No
/// delivery is ever taken, so the bound on those that wait holds for all of them together. `is_stream`: as on a connection
/// that reads a stream. Linear in the bytes.
///
/// # Errors
/// The stream's own; [`io::ErrorKind::InvalidData`] for what a broker must not send.
pub(super) fn pass_on(broker: impl Read, is_stream: bool, passed: &mut Vec<u8>) -> io::Result<()> {
    let now = Instant::now();
    let vitals = if is_stream {
        Vitals::of_a_stream(now)
    } else {
        Vitals::new(now)
    };
    let mut guard = Guard::new(broker, Arc::new(vitals));
    guard.read_to_end(passed).map(|_| ())
}
