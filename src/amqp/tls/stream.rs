//! The TLS handshake, with a deadline, and the stream of what is decrypted, as the AMQP client polls it: edge-triggered,
//! so each side must be used until it would block.
//!
//! Invariants, without which the client would wait for ever:
//! - a read would block only when the socket does and no decrypted byte is left;
//! - a write is done only when the socket has taken the last encrypted byte of it. Until then it would block, which
//!   keeps the client polling; the client then comes again with the same bytes, of which [`TlsStream::accepted`] are
//!   encrypted already.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Error};

use super::fault::Fault;

/// Read from the socket at once. The library itself asks for 4 KiB at a time.
const READ_BYTES: usize = 64 << 10;
/// Encrypted at once, at most: two records.
const WRITE_BYTES_MAX: usize = 32 << 10;

/// The decrypted stream.
pub(in crate::amqp) struct TlsStream<S> {
    tls: ClientConnection,
    name: ServerName<'static>,
    shows: bool,
    socket: BufReader<S>,
    /// The first so many bytes of the next write are encrypted and not all sent.
    accepted: usize,
}

/// Shakes hands on a connected socket. Blocks for at most `patience`. The socket of the stream does not block.
pub(in crate::amqp) fn connect(
    socket: TcpStream,
    name: &ServerName<'static>,
    config: Arc<ClientConfig>,
    patience: Duration,
) -> Result<TlsStream<mio06::net::TcpStream>, Fault> {
    let shows = config.client_auth_cert_resolver.has_certs();
    let tls = ClientConnection::new(config, name.clone())
        .map_err(|error| Fault::of(&error, name, shows))?;
    let until = Instant::now() + patience;
    let mut stream = TlsStream {
        tls,
        name: name.clone(),
        shows,
        socket: BufReader::with_capacity(READ_BYTES, Deadlined { socket, until }),
        accepted: 0,
    };
    stream
        .shake_hands()
        .map_err(|error| fault_of_handshake(error, patience))?;
    let TlsStream { tls, socket, .. } = stream;
    let socket = socket.into_inner().socket;
    let socket = socket
        .set_read_timeout(None)
        .and_then(|()| socket.set_write_timeout(None))
        .and_then(|()| mio06::net::TcpStream::from_stream(socket))
        .map_err(Fault::Socket)?;
    Ok(TlsStream {
        tls,
        name: name.clone(),
        shows,
        socket: BufReader::with_capacity(READ_BYTES, socket),
        accepted: 0,
    })
}

fn fault_of_handshake(error: io::Error, patience: Duration) -> Fault {
    use io::ErrorKind::{TimedOut, UnexpectedEof, WouldBlock};
    match error.kind() {
        TimedOut | WouldBlock => Fault::Slow(patience),
        UnexpectedEof => Fault::Closed,
        _ => error.downcast::<Fault>().unwrap_or_else(Fault::Socket),
    }
}

impl<S: Read + Write> TlsStream<S> {
    /// Until both sides have done so, and every byte that was read with it is taken.
    fn shake_hands(&mut self) -> io::Result<()> {
        self.send()?;
        while self.tls.is_handshaking() || !self.socket.buffer().is_empty() {
            if self.receive()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.send()
    }

    /// Takes some of what has come, and answers what TLS asks. 0: the end.
    fn receive(&mut self) -> io::Result<usize> {
        let came = self.socket.fill_buf()?;
        let begins_as_amqp = came.starts_with(b"AMQP");
        let is_handshaking = self.tls.is_handshaking();
        let read = self.tls.read_tls(&mut self.socket)?;
        let taken = self.tls.process_new_packets();
        let sent = self.send();
        match (taken, sent) {
            (Err(Error::InvalidMessage(_)), _) if is_handshaking && begins_as_amqp => {
                Err(Fault::PlainAmqp.into())
            }
            (Err(Error::InvalidMessage(_)), _) if is_handshaking => Err(Fault::NotTls.into()),
            (Err(error), _) => Err(Fault::of(&error, &self.name, self.shows).into()),
            // It goes before the next write.
            (Ok(_), Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(read),
            (Ok(_), sent) => sent.map(|()| read),
        }
    }

    /// Sends all that is encrypted.
    fn send(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(self.socket.get_mut()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The error of a write, or what the broker said before it closed.
    fn why(&mut self, error: io::Error) -> io::Error {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        if !matches!(error.kind(), BrokenPipe | ConnectionReset) {
            return error;
        }
        match self.receive() {
            Err(said) if Fault::within(&said).is_some() => said,
            _ => error,
        }
    }
}

impl<S: Read + Write> Read for TlsStream<S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Cut off without TLS' farewell: AMQP has one of its own, and misses that.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            self.receive()?;
        }
    }
}

impl<S: Read + Write> Write for TlsStream<S> {
    /// After [`io::ErrorKind::WouldBlock`] it must be called with the same bytes again; more may stand behind them.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.accepted == 0 {
            self.send().map_err(|error| self.why(error))?;
            let piece = &bytes[..bytes.len().min(WRITE_BYTES_MAX)];
            self.accepted = self.tls.writer().write(piece)?;
        }
        self.send().map_err(|error| self.why(error))?;
        Ok(std::mem::take(&mut self.accepted))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl<S: mio06::Evented> mio06::Evented for TlsStream<S> {
    fn register(
        &self,
        poll: &mio06::Poll,
        token: mio06::Token,
        interest: mio06::Ready,
        options: mio06::PollOpt,
    ) -> io::Result<()> {
        self.socket
            .get_ref()
            .register(poll, token, interest, options)
    }

    fn reregister(
        &self,
        poll: &mio06::Poll,
        token: mio06::Token,
        interest: mio06::Ready,
        options: mio06::PollOpt,
    ) -> io::Result<()> {
        self.socket
            .get_ref()
            .reregister(poll, token, interest, options)
    }

    fn deregister(&self, poll: &mio06::Poll) -> io::Result<()> {
        self.socket.get_ref().deregister(poll)
    }
}

/// A socket that blocks, but not beyond a moment.
struct Deadlined {
    socket: TcpStream,
    until: Instant,
}

impl Deadlined {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(left))
    }
}

impl Read for Deadlined {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            self.socket.set_read_timeout(self.left()?)?;
            match self.socket.read(into) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }
}

impl Write for Deadlined {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.left()?)?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
