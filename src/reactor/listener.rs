//! A listening socket: made with the backlog and options that a connect storm needs, paused when the process is out
//! of descriptors, so that it neither spins nor wedges, and taken away so that nobody is reset by it.
//!
//! The kernel resets every connection whose handshake is under way at a listener, or that waits in its queue, when
//! the listener closes. With `net.ipv4.tcp_migrate_req` (Linux 5.14) it moves them to another listener of the same
//! port instead. Without it the listener is left in three steps: silent connections are no longer held back in the
//! kernel ([`Listener::stop_deferring`]); no new handshake is begun, which the peer's TCP tries again a second later
//! ([`Listener::stop_taking`]), at another listener if there is one by then; when those under way have had their
//! time, and the queue is empty, it is closed.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};

use crate::limits::{ACCEPT_PAUSE, DEFER_ACCEPT, LISTEN_BACKLOG, LISTENER_GRACE};
use crate::session::Door;
use crate::sys;

/// A listening socket and whether it is worth asking.
#[derive(Debug)]
pub struct Listener {
    /// For the poll.
    pub socket: TcpListener,
    /// What its connections may ask for.
    pub door: Door,
    /// Other processes may listen on its port.
    is_shared: bool,
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
    /// Binds and listens. `reuse_port`: several processes share the port.
    ///
    /// # Errors
    /// Those of the system: address in use, not allowed, not ours.
    pub fn bind(address: SocketAddr, door: Door, reuse_port: bool) -> io::Result<Self> {
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
        // Accepted sockets inherit it, which saves a system call each.
        socket.set_tcp_nodelay(true)?;
        socket.bind(&address.into())?;
        if door == Door::Clients {
            sys::set_defer_accept(&socket, DEFER_ACCEPT)?;
        }
        socket.listen(LISTEN_BACKLOG)?;
        let socket = TcpListener::from_std(socket.into());
        Ok(Self {
            socket,
            door,
            is_shared: reuse_port,
            state: State::Ready,
        })
    }

    /// The first step of leaving: connections that have sent nothing yet are accepted too from now on.
    ///
    /// # Errors
    /// The kernel refused: they stay in the kernel, and are reset if they are still silent at the close.
    pub fn stop_deferring(&self) -> io::Result<()> {
        sys::set_defer_accept(&self.socket, Duration::ZERO)
    }

    /// The second step of leaving: no new handshake is begun, unless the kernel moves those under way to another
    /// listener. Returns for how long the ones under way are still to be accepted; no time at all where nobody else
    /// can be listening.
    ///
    /// # Errors
    /// The kernel refused: connections go on coming until the close, which resets some.
    pub fn stop_taking(&self) -> io::Result<Duration> {
        if self.is_shared && moves_queues() {
            return Ok(Duration::ZERO);
        }
        refuse_handshakes(&self.socket)?;
        Ok(if self.is_shared {
            LISTENER_GRACE
        } else {
            Duration::ZERO
        })
    }

    /// Whether the last accept found nobody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state == State::Drained
    }

    /// The poll says that connections may be waiting, or somebody wants to know for certain.
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

/// Whether the kernel moves what a closing listener has to another one of the same port.
fn moves_queues() -> bool {
    fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req").is_ok_and(|text| text.trim() == "1")
}

/// Makes the kernel drop every SYN that comes to `listener`, and nothing else. Accepted connections inherit it, which
/// does them no harm: no SYN belongs to them. Nothing is done where the kernel is not Linux.
fn refuse_handshakes(listener: &TcpListener) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        const FLAGS_OFFSET: u32 = 13;
        const SYN: u32 = 0x02;
        // Opcodes of a classic BPF program have 16 bits, and what it returns is how much of the segment is kept.
        const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
        const NEXT_IF_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
        const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
        SockRef::from(listener).attach_filter(&[
            SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_OFFSET),
            SockFilter::new(NEXT_IF_ANY_BIT, 0, 1, SYN),
            SockFilter::new(RETURN, 0, 0, 0),
            SockFilter::new(RETURN, 0, 0, u32::MAX),
        ])?;
    }
    #[cfg(not(target_os = "linux"))]
    let _ = listener;
    Ok(())
}

fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}
