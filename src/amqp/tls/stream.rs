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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    use rustls::crypto::ring;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ServerConfig, ServerConnection};
    use support::certificates::{Ca, LOCAL};

    use crate::amqp::tls::TlsFiles;

    /// A socket that does not block.
    #[derive(Default)]
    struct Pipe {
        /// So many bytes are taken before a write would block.
        room: usize,
        sent: Vec<u8>,
        come: VecDeque<u8>,
    }

    impl Read for Pipe {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.come.is_empty() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.come.read(into)
        }
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room);
            if taken == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.room -= taken;
            self.sent.extend(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn would_block<T: std::fmt::Debug>(result: io::Result<T>) {
        let error = result.expect_err("it would block");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
    }

    struct Pair {
        client: TlsStream<Pipe>,
        server: ServerConnection,
    }

    impl Pair {
        fn shaken() -> Self {
            let ca = Ca::new();
            let certified = ca.certify(LOCAL, 9);
            let chain = CertificateDer::pem_file_iter(certified.cert()).expect("a certificate");
            let chain = chain.map(|it| it.expect("PEM")).collect();
            let key = PrivateKeyDer::from_pem_file(certified.key()).expect("a key");
            let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .expect("a certificate and its key");
            let files = TlsFiles {
                ca_cert: Some(ca.pem()),
                client: None,
            };
            let name = ServerName::try_from("localhost").expect("a name");
            let tls = ClientConnection::new(files.read().expect("a CA"), name.clone());
            let mut pair = Self {
                client: TlsStream {
                    tls: tls.expect("a client"),
                    name,
                    shows: false,
                    socket: BufReader::with_capacity(READ_BYTES, Pipe::default()),
                    accepted: 0,
                },
                server: ServerConnection::new(Arc::new(config)).expect("a server"),
            };
            while pair.client.tls.is_handshaking() || pair.server.is_handshaking() {
                pair.client.socket.get_mut().room = usize::MAX;
                pair.client.flush().expect("room");
                pair.serve();
                would_block(pair.client.read(&mut [0; 9]));
            }
            pair.serve();
            would_block(pair.client.read(&mut [0; 9]));
            pair.client.socket.get_mut().room = 0;
            pair
        }

        /// The server takes what was sent and sends what it has to say.
        fn serve(&mut self) {
            let pipe = self.client.socket.get_mut();
            let mut sent = &pipe.sent[..];
            while !sent.is_empty() {
                self.server.read_tls(&mut sent).expect("bytes");
                self.server.process_new_packets().expect("good TLS");
            }
            pipe.sent.clear();
            while self.server.wants_write() {
                self.server.write_tls(&mut pipe.come).expect("room");
            }
        }
    }

    /// As the AMQP client writes: what was not taken again, and more behind it.
    #[test]
    fn what_is_written_arrives_once_and_a_write_is_done_when_its_last_byte_is_sent() {
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut pair = Pair::shaken();
            let (mut written, mut arrived) = (Vec::<u8>::new(), Vec::<u8>::new());
            let mut waiting = Vec::<u8>::new();
            while written.len() < 300_000 || !waiting.is_empty() {
                if written.len() < 300_000 {
                    let more: Vec<u8> =
                        (0..random.usize(..40_000)).map(|_| random.u8(..)).collect();
                    written.extend(&more);
                    waiting.extend(&more);
                }
                pair.client.socket.get_mut().room = random.usize(..60_000);
                while !waiting.is_empty() {
                    match pair.client.write(&waiting) {
                        Ok(taken) => {
                            assert!(taken > 0 && !pair.client.tls.wants_write(), "seed {seed}");
                            waiting.drain(..taken);
                        }
                        Err(error) => {
                            assert_eq!(pair.client.socket.get_ref().room, 0, "{error}");
                            break;
                        }
                    }
                }
                let pipe = pair.client.socket.get_mut();
                let mut sent = &std::mem::take(&mut pipe.sent)[..];
                while !sent.is_empty() {
                    pair.server.read_tls(&mut sent).expect("bytes");
                    pair.server.process_new_packets().expect("good TLS");
                    let mut reader = pair.server.reader();
                    would_block(reader.read_to_end(&mut arrived));
                }
            }
            assert!(arrived == written, "seed {seed}");
        }
    }

    #[test]
    fn a_read_would_block_only_when_nothing_is_left_however_records_are_cut() {
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut pair = Pair::shaken();
            let said: Vec<u8> = (0..200_000).map(|_| random.u8(..)).collect();
            let mut bytes = VecDeque::new();
            for piece in said.chunks(random.usize(1..40_000)) {
                pair.server.writer().write_all(piece).expect("room");
                while pair.server.wants_write() {
                    pair.server.write_tls(&mut bytes).expect("room");
                }
            }
            let mut heard = Vec::<u8>::new();
            while !bytes.is_empty() {
                let cut = random.usize(1..50_000).min(bytes.len());
                pair.client.socket.get_mut().come.extend(bytes.drain(..cut));
                let mut into = vec![0; random.usize(1..30_000)];
                loop {
                    match pair.client.read(&mut into) {
                        Ok(read) => heard.extend(&into[..read]),
                        error => break would_block(error),
                    }
                }
                assert!(pair.client.socket.get_ref().come.is_empty());
            }
            assert!(heard == said, "seed {seed}");
        }
    }
}
