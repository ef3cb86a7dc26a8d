//! A listening socket: made with the backlog and options that a connect storm needs, and paused when the process
//! is out of descriptors, so that it neither spins nor wedges.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use socket2::{Domain, Protocol, Socket, Type};

use crate::limits::{ACCEPT_PAUSE, DEFER_ACCEPT, LISTEN_BACKLOG};
use crate::session::Door;
use crate::sys;

/// A listening socket and whether it is worth asking.
#[derive(Debug)]
pub struct Listener {
    /// For the poll.
    pub socket: TcpListener,
    /// What its connections may ask for.
    pub door: Door,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The last accept would have blocked: the poll tells when there is more.
    Drained,
    /// There may be more.
    Ready,
    /// The process is out of descriptors or memory; asked again then, or after a reap.
    Paused { until: Duration },
}

/// What an accept came to.
#[derive(Debug)]
pub enum Accepted {
    /// A connection.
    Connection(TcpStream, SocketAddr),
    /// None is waiting, or accepting is paused.
    Nothing,
    /// The process is out of descriptors or memory: paused from now on.
    Exhausted(io::Error),
    /// That connection broke before it was accepted; ask again.
    Broken(io::Error),
}

impl Listener {
    /// Binds and listens. `reuse_port`: several processes share the port. `user_timeout`: how long the kernel waits for
    /// a peer to acknowledge what was sent (TCP_USER_TIMEOUT, RFC 5482); `None`: as long as the system is set to.
    ///
    /// # Errors
    /// Those of the system: address in use, not allowed, not ours.
    pub fn bind(
        address: SocketAddr,
        door: Door,
        reuse_port: bool,
        user_timeout: Option<Duration>,
    ) -> io::Result<Self> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        if reuse_port {
            socket.set_reuse_port(true)?;
        }
        // Accepted sockets inherit both, which saves two system calls each.
        socket.set_tcp_nodelay(true)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(user_timeout)?;
        #[cfg(not(target_os = "linux"))]
        let _ = user_timeout;
        socket.bind(&address.into())?;
        if door == Door::Clients {
            sys::set_defer_accept(&socket, DEFER_ACCEPT)?;
        }
        socket.listen(LISTEN_BACKLOG)?;
        let socket = TcpListener::from_std(socket.into());
        Ok(Self {
            socket,
            door,
            state: State::Ready,
        })
    }

    /// The poll says that connections may be waiting.
    pub fn on_ready(&mut self) {
        if self.state == State::Drained {
            self.state = State::Ready;
        }
    }

    /// Something was closed: a descriptor may be free.
    pub fn on_reap(&mut self) {
        if let State::Paused { .. } = self.state {
            self.state = State::Ready;
        }
    }

    /// When to ask again; `None`: when the poll says so.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        match self.state {
            State::Drained => None,
            State::Ready => Some(Duration::ZERO),
            State::Paused { until } => Some(until),
        }
    }

    /// Takes one connection. `now`: the loop's clock.
    pub fn accept(&mut self, now: Duration) -> Accepted {
        match self.state {
            State::Drained => return Accepted::Nothing,
            State::Paused { until } if now < until => return Accepted::Nothing,
            State::Paused { .. } | State::Ready => self.state = State::Ready,
        }
        match self.socket.accept() {
            Ok((socket, address)) => Accepted::Connection(socket, address),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.state = State::Drained;
                Accepted::Nothing
            }
            Err(error) if is_exhaustion(&error) => {
                self.state = State::Paused {
                    until: now + ACCEPT_PAUSE,
                };
                Accepted::Exhausted(error)
            }
            Err(error) => Accepted::Broken(error),
        }
    }
}

fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Instant;

    use socket2::SockRef;

    /// A connection to a listener with this timeout, as accepted.
    fn accepted(user_timeout: Option<Duration>) -> TcpStream {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut listener =
            Listener::bind(any, Door::Clients, false, user_timeout).expect("a free port");
        let address = listener.socket.local_addr().expect("bound");
        let mut peer = std::net::TcpStream::connect(address).expect("listening");
        // Silent peers are not accepted.
        peer.write_all(b"GET").expect("connected");
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            listener.on_ready();
            match listener.accept(Duration::ZERO) {
                Accepted::Connection(stream, _) => return stream,
                Accepted::Nothing => std::thread::yield_now(),
                other => panic!("{other:?}"),
            }
            assert!(Instant::now() < deadline, "not accepted");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn accepted_sockets_have_the_listeners_options_without_a_system_call_of_their_own() {
        for timeout in [None, Some(Duration::from_millis(35_000))] {
            let stream = accepted(timeout);
            let socket = SockRef::from(&stream);
            assert_eq!(socket.tcp_user_timeout().expect("TCP"), timeout);
            assert!(socket.tcp_nodelay().expect("TCP"));
        }
    }
}
