//! One connection to one broker: our own socket, behind the guard, under the AMQP client (AMQP rails 1, 4 and 9); and
//! the cause of its end, as a text for the log.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use amiquip::{Auth, Connection, ConnectionOptions, ConnectionTuning};

use super::abort::{Abort, Attempt};
use super::broker::Lost;
use super::guard::{FRAME_BYTES_MAX, Guard, HEARTBEAT_SECONDS, Violation, Vitals};
use super::tls::{self, Fault};
use super::url::{Endpoint, Wire};

/// Longest wait for a connect to one address of the broker's host name.
const TCP_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for the TLS handshake.
const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for one step of the AMQP handshake.
const HANDSHAKE_STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls that may wait for the client's thread, so that a pipelined burst does not pause at each of them.
const CALLS_WAITING_MAX: usize = 1024;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("cannot resolve the host name: {0}")]
    Resolve(io::Error),
    #[error("the host name has no address")]
    NoAddress,
    /// The text is that of the system only; the log line around it says that there is no connection.
    #[error("{0}")]
    Connect(io::Error),
    #[error("{0}")]
    Tls(#[from] Fault),
    #[error("{}", text(.0))]
    Client(#[from] amiquip::Error),
}

impl OpenError {
    /// Whether the user may not enter the virtual host.
    pub(super) fn is_barred(&self) -> bool {
        const NOT_ALLOWED: u16 = 530;
        matches!(self, Self::Client(amiquip::Error::ServerClosedConnection { code: NOT_ALLOWED, message })
            if message.contains("refused for user"))
    }
}

/// Connects and logs in. Blocks for at most 3 s for each address, then 5 s for the TLS handshake, if there is one, and 5
/// s for each step of the AMQP handshake; `abort` ends it earlier. `name`: what the broker's operator sees the connection
/// called.
///
/// # Errors
/// [`OpenError`]; its text may still need [`Endpoint::redact`].
pub(super) fn open(
    endpoint: &Endpoint,
    name: &str,
    abort: &Abort,
    attempt: Attempt,
    vitals: Arc<Vitals>,
) -> Result<Connection, OpenError> {
    let addresses = (&*endpoint.host, endpoint.port)
        .to_socket_addrs()
        .map_err(OpenError::Resolve)?;
    let mut failure = OpenError::NoAddress;
    for address in addresses {
        match TcpStream::connect_timeout(&address, TCP_CONNECT_TIMEOUT) {
            Ok(socket) => {
                prepare(&socket, abort, attempt).map_err(OpenError::Connect)?;
                return begin(endpoint, name, socket, vitals);
            }
            Err(error) => failure = OpenError::Connect(error),
        }
    }
    Err(failure)
}

/// Sets `TCP_NODELAY`, which the client does not: without it a call stalls for 40 ms again and again.
fn prepare(socket: &TcpStream, abort: &Abort, attempt: Attempt) -> io::Result<()> {
    socket.set_nodelay(true)?;
    abort.arm(attempt, socket)
}

fn begin(
    endpoint: &Endpoint,
    name: &str,
    socket: TcpStream,
    vitals: Arc<Vitals>,
) -> Result<Connection, OpenError> {
    match &endpoint.wire {
        Wire::Plain => {
            let stream = mio06::net::TcpStream::from_stream(socket).map_err(OpenError::Connect)?;
            Ok(log_in(endpoint, name, Guard::new(stream, vitals))?)
        }
        Wire::Tls {
            name: server_name,
            files,
        } => {
            let config = files.read().map_err(Fault::from)?;
            let stream = tls::connect(socket, server_name, config, TLS_HANDSHAKE_TIMEOUT)?;
            Ok(log_in(endpoint, name, Guard::new(stream, vitals))?)
        }
    }
}

fn log_in<S>(endpoint: &Endpoint, name: &str, stream: Guard<S>) -> amiquip::Result<Connection>
where
    S: Read + Write + mio06::Evented + Send + 'static,
{
    let options = ConnectionOptions::default()
        .auth(Auth::Plain {
            username: endpoint.user.clone(),
            password: endpoint.password.clone(),
        })
        .virtual_host(&*endpoint.vhost)
        .heartbeat(HEARTBEAT_SECONDS)
        .frame_max(FRAME_BYTES_MAX)
        .connection_timeout(Some(HANDSHAKE_STEP_TIMEOUT))
        .information(Some(name.to_owned()));
    let tuning = ConnectionTuning::default().mem_channel_bound(CALLS_WAITING_MAX);
    Connection::insecure_open_stream(stream, options, tuning)
}

/// A call learns only that the client's thread is gone; closing the connection tells why the thread ended.
impl From<amiquip::Error> for Lost {
    fn from(error: amiquip::Error) -> Self {
        use amiquip::Error::{ClientClosedConnection, EventLoopClientDropped, EventLoopDropped};
        match error {
            EventLoopDropped | EventLoopClientDropped | ClientClosedConnection => Self::ClientGone,
            error => Self::Because(text(&error)),
        }
    }
}

/// The client's error, or what of ours it wraps: the fault of TLS, or the breach of the guard's bounds.
fn text(error: &amiquip::Error) -> String {
    use amiquip::Error::{IoErrorReadingSocket, IoErrorWritingSocket};
    match error {
        IoErrorReadingSocket { source } | IoErrorWritingSocket { source } => {
            let is_violation = source
                .get_ref()
                .is_some_and(|inner| inner.is::<Violation>());
            match Fault::within(source) {
                Some(fault) => fault.to_string(),
                None if is_violation => source.to_string(),
                None => error.to_string(),
            }
        }
        error => error.to_string(),
    }
}

/// Why the client's thread has ended, for the log, from what closing the connection returns.
pub(super) fn cause_of_end(close: amiquip::Result<()>) -> String {
    match close {
        Err(error) => text(&error),
        Ok(()) => "the AMQP client ended without an error".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::time::Instant;

    /// A socket whose reads panic, as a bug of the client would.
    struct Panicking(mio06::net::TcpStream);

    impl Read for Panicking {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("a bug in the client's thread")
        }
    }

    impl Write for Panicking {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            self.0.flush()
        }
    }

    impl mio06::Evented for Panicking {
        fn register(
            &self,
            poll: &mio06::Poll,
            token: mio06::Token,
            interest: mio06::Ready,
            options: mio06::PollOpt,
        ) -> io::Result<()> {
            self.0.register(poll, token, interest, options)
        }

        fn reregister(
            &self,
            poll: &mio06::Poll,
            token: mio06::Token,
            interest: mio06::Ready,
            options: mio06::PollOpt,
        ) -> io::Result<()> {
            self.0.reregister(poll, token, interest, options)
        }

        fn deregister(&self, poll: &mio06::Poll) -> io::Result<()> {
            self.0.deregister(poll)
        }
    }

    #[test]
    fn a_panic_of_the_clients_thread_comes_out_as_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let socket = TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
        let (mut peer, _) = listener.accept().expect("connected");
        peer.write_all(b"anything").expect("connected");
        let stream = Panicking(mio06::net::TcpStream::from_stream(socket).expect("a socket"));
        let endpoint = Endpoint::parse("amqp://h").expect("a URL");
        let outcome = log_in(
            &endpoint,
            "blackhole",
            Guard::new(stream, Arc::new(Vitals::new(Instant::now()))),
        );
        assert!(
            matches!(outcome, Err(amiquip::Error::IoThreadPanic)),
            "{outcome:?}"
        );
    }

    #[test]
    fn the_cause_is_what_closing_tells_unless_the_call_knows_more() {
        let cause = |call: amiquip::Error, close| match Lost::from(call) {
            Lost::Because(cause) => cause,
            Lost::Barred(line) => line.into(),
            Lost::ClientGone => cause_of_end(close),
        };
        let silent = || Err(amiquip::Error::MissedServerHeartbeats);
        for (call, close, expected) in [
            (
                amiquip::Error::EventLoopDropped,
                silent(),
                "missed heartbeats from server",
            ),
            (
                amiquip::Error::ClientClosedConnection,
                silent(),
                "missed heartbeats from server",
            ),
            (
                amiquip::Error::ExhaustedChannelIds,
                silent(),
                "no more channel ids are available",
            ),
            (
                amiquip::Error::EventLoopDropped,
                Ok(()),
                "the AMQP client ended without an error",
            ),
        ] {
            assert_eq!(cause(call, close), expected);
        }
    }
}
