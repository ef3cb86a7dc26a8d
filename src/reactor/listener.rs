//! A listening socket. It is made with the backlog and the options that a connect storm needs. It pauses when accepting
//! fails (out of descriptors, or any error that may last) and when `max_accept_rate` is reached, so that the loop neither
//! spins nor hangs. It is closed in a way that resets no connection.
//!
//! A connection above the rate waits in the kernel's queue ([`LISTEN_BACKLOG`]) until the rate allows it; the kernel lets
//! peers beyond the queue try again. No connection is refused for the rate.
//!
//! When a listener closes, the kernel resets the connections whose TCP handshake is under way there, and those in its
//! queue. With `net.ipv4.tcp_migrate_req` (Linux 5.14) it moves them to another listener of the same port instead. Without
//! it the listener is left in three steps. First the kernel no longer holds silent connections back
//! ([`Listener::stop_deferring`]). Then no new handshake begins ([`Listener::stop_taking`]); the peer's TCP tries again a
//! second later, and finds another listener if there is one by then. When those under way have had their time and the
//! queue is empty, the listener is closed.
//!
//! A socket that was handed over ([`super::handed`]) stays open when we close ours, so nothing is reset: it is left as it
//! is, and what waits there is the next process's.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Registry, Token};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};

use super::listening_socket::{ListeningSocket, LocalSocket};
use crate::limits::{
    ACCEPT_PAUSE, BROKEN_IN_A_ROW_MAX, DEFER_ACCEPT, LISTEN_BACKLOG, LISTENER_GRACE,
};
use crate::session::ListenerKind;
use crate::session::bucket::{Bucket, BucketRule};
use crate::sys;

/// A listening socket, and whether connections may wait there.
#[derive(Debug)]
pub struct Listener {
    socket: ListeningSocket,
    /// The kind of its connections.
    pub kind: ListenerKind,
    holding: Holding,
    state: State,
    rate: Option<AcceptRate>,
    /// Connections in a row that broke before they were accepted.
    broken: usize,
}

/// How many connections may be taken now, and how many more each second.
#[derive(Debug)]
struct AcceptRate {
    rule: BucketRule,
    bucket: Bucket,
}

/// Who else has the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holding {
    /// Nobody.
    Alone,
    /// Other processes may listen there, with sockets of their own.
    Shared,
    /// Whoever opened the socket and handed it over has it open still.
    Handed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The last accept would have blocked: the poll tells when there is more.
    Drained,
    /// There may be more.
    Ready,
    /// Accepting failed: no descriptors, or another reason that may last. It is tried again then, or when a connection has
    /// ended.
    Paused { until: Duration },
    /// There are more than the rate allows. It is tried again then.
    OverRate { until: Duration },
}

/// The result of an accept.
#[derive(Debug)]
pub enum Accepted {
    /// A connection.
    Connection(TcpStream, SocketAddr),
    /// None is waiting, or accepting is paused.
    Nothing,
    /// Accepting fails: the process is out of descriptors or memory, the system forbids it, or there is another error that
    /// may last. The listener is paused now.
    Failed(io::Error),
    /// Connections wait, and `max_accept_rate` is reached. The listener is paused now.
    OverRate,
    /// A connection broke before it was accepted; the next may be good.
    Broken(io::Error),
}

impl Listener {
    /// Binds and listens. `reuse_port`: several processes share the port. `user_timeout`: how long the kernel waits for
    /// a peer to acknowledge what was sent (TCP_USER_TIMEOUT, RFC 5482); `None`: as long as the system is set to.
    ///
    /// # Errors
    /// The address is in use, is not allowed, or is not ours.
    pub fn bind(
        address: SocketAddr,
        kind: ListenerKind,
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
        socket.set_tcp_user_timeout(user_timeout)?;
        socket.bind(&address.into())?;
        sys::set_defer_accept(&socket, DEFER_ACCEPT)?;
        socket.listen(LISTEN_BACKLOG)?;
        let holding = if reuse_port {
            Holding::Shared
        } else {
            Holding::Alone
        };
        Ok(Self::of(ListeningSocket::tcp(socket), kind, holding))
    }

    /// Listens at a socket that was handed over. What it is set to beside our options, its backlog too, stays.
    ///
    /// # Errors
    /// The system refused an option.
    pub fn take(
        socket: Socket,
        kind: ListenerKind,
        user_timeout: Option<Duration>,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_user_timeout(user_timeout)?;
        sys::set_defer_accept(&socket, DEFER_ACCEPT)?;
        Ok(Self::of(
            ListeningSocket::tcp(socket),
            kind,
            Holding::Handed,
        ))
    }

    /// The admin socket of this process in `folder`.
    ///
    /// # Errors
    /// The folder is not there, or the socket cannot be made in it.
    pub fn bind_in(folder: &Path) -> io::Result<Self> {
        let socket = LocalSocket::bind(folder)?;
        Ok(Self::of(
            ListeningSocket::Local(socket),
            ListenerKind::AdminSocket,
            Holding::Alone,
        ))
    }

    fn of(socket: ListeningSocket, kind: ListenerKind, holding: Holding) -> Self {
        Self {
            socket,
            kind,
            holding,
            state: State::Ready,
            rate: None,
            broken: 0,
        }
    }

    /// Lets the poll tell of connections.
    ///
    /// # Errors
    /// The system refused.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.socket.register(registry, token)
    }

    /// The poll tells no more of it. A closed socket does that by itself, unless others have it open.
    ///
    /// # Errors
    /// The poll did not know it.
    pub fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.socket.deregister(registry)
    }

    /// Where it listens; `None`: at a path.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.socket.address()
    }

    /// Where it listens, if that is a path.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.socket.path()
    }

    /// From now on at most so many connections are taken in a second, and as many at once after a second without any.
    pub fn limit_rate(&mut self, per_second: Option<u32>) {
        self.rate = per_second
            .and_then(|per_second| BucketRule::new(per_second, per_second))
            .map(|rule| AcceptRate {
                rule,
                bucket: Bucket::default(),
            });
    }

    /// The first step of leaving: from now on connections that have sent nothing are accepted too.
    ///
    /// # Errors
    /// The kernel refused. Silent connections stay in the kernel, and are reset if they are still silent at the close.
    pub fn stop_deferring(&self) -> io::Result<()> {
        if self.is_left_to_others() {
            return Ok(());
        }
        sys::set_defer_accept(&self.socket, Duration::ZERO)
    }

    /// The second step of leaving: no new handshake is begun, unless the kernel moves those under way to another
    /// listener. Returns for how long those under way must still be accepted: no time, if no other process can listen.
    ///
    /// # Errors
    /// The kernel refused. Connections come until the close, which resets some of them.
    pub fn stop_taking(&mut self) -> io::Result<Duration> {
        // The rate must not make the queue outlast the drain.
        self.limit_rate(None);
        match self.holding {
            Holding::Handed => Ok(Duration::ZERO),
            Holding::Shared if moves_queues() => Ok(Duration::ZERO),
            Holding::Shared => refuse_handshakes(&self.socket).map(|()| LISTENER_GRACE),
            Holding::Alone => refuse_handshakes(&self.socket).map(|()| Duration::ZERO),
        }
    }

    /// Whether the socket, with the connections that wait there, stays for others when ours is closed.
    #[must_use]
    pub fn is_left_to_others(&self) -> bool {
        self.holding == Holding::Handed
    }

    /// Whether the last accept found no connection.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state == State::Drained
    }

    /// Connections may wait: the poll says so, or the caller must know for certain.
    pub fn on_ready(&mut self) {
        if self.state == State::Drained {
            self.state = State::Ready;
        }
    }

    /// A connection has ended, so a descriptor may be free.
    pub fn on_reap(&mut self) {
        if let State::Paused { .. } = self.state {
            self.state = State::Ready;
        }
    }

    /// When to try again; `None`: when the poll says so.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        match self.state {
            State::Drained => None,
            State::Ready => Some(Duration::ZERO),
            State::Paused { until } | State::OverRate { until } => Some(until),
        }
    }

    /// Takes one connection. `now`: the loop's clock.
    pub fn accept(&mut self, now: Duration) -> Accepted {
        match self.state {
            State::Drained => return Accepted::Nothing,
            State::Paused { until } | State::OverRate { until } if now < until => {
                return Accepted::Nothing;
            }
            State::Paused { .. } | State::OverRate { .. } | State::Ready => {
                self.state = State::Ready;
            }
        }
        if let Some(rate) = &self.rate {
            let until = rate.bucket.ready_at(rate.rule);
            if now < until {
                return self.hold(until);
            }
        }
        match self.socket.accept() {
            Ok((socket, address)) => {
                self.broken = 0;
                if let Some(rate) = &mut self.rate {
                    rate.bucket.take(rate.rule, now);
                }
                Accepted::Connection(socket, address)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.broken = 0;
                self.state = State::Drained;
                Accepted::Nothing
            }
            Err(error) if is_of_one_connection(&error) && self.broken < BROKEN_IN_A_ROW_MAX => {
                self.broken += 1;
                Accepted::Broken(error)
            }
            Err(error) => {
                self.broken = 0;
                self.state = State::Paused {
                    until: now + ACCEPT_PAUSE,
                };
                Accepted::Failed(error)
            }
        }
    }

    /// Leaves the connections in the kernel's queue until then, if there are any.
    fn hold(&mut self, until: Duration) -> Accepted {
        if is_readable(&self.socket) {
            self.state = State::OverRate { until };
            Accepted::OverRate
        } else {
            self.state = State::Drained;
            Accepted::Nothing
        }
    }
}

/// Whether a connection waits to be accepted. If that cannot be found out, it counts as yes.
fn is_readable(listener: &ListeningSocket) -> bool {
    let mut one = [PollFd::new(listener, PollFlags::IN)];
    poll(&mut one, Some(&Timespec::default())) != Ok(0)
}

/// Whether the kernel moves the connections of a closing listener to another one of the same port.
fn moves_queues() -> bool {
    fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req").is_ok_and(|text| text.trim() == "1")
}

/// Makes the kernel drop every SYN that comes to `listener`, and nothing else. Accepted connections inherit this, which is
/// harmless: they get no SYN.
fn refuse_handshakes(listener: &ListeningSocket) -> io::Result<()> {
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
    ])
}

/// Whether this error of accept(2) is about one connection that broke while it waited, so that the next may be good. Any
/// other error, known or not, is taken to be about the process or the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENONET
                | libc::ENOPROTOOPT
                | libc::ETIMEDOUT
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpStream as Client;
    use std::time::Instant;

    use socket2::SockRef;

    /// A listener of whose accepts the kernel says `errno`, on a thread of its own, for the kernel does so to all accepts
    /// of a thread; what `look` makes of it.
    fn with_accepts_refused<T: Send + 'static>(
        errno: i32,
        look: impl FnOnce(&mut Listener) -> T + Send + 'static,
    ) -> T {
        use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

        let look = move || {
            let mut listener = listener_with_rate(None);
            let accepts = [libc::SYS_accept, libc::SYS_accept4].map(|call| (call, Vec::new()));
            let arch = TargetArch::try_from(std::env::consts::ARCH).expect("a known processor");
            let refusal = SeccompAction::Errno(errno.unsigned_abs());
            let filter = SeccompFilter::new(accepts.into(), SeccompAction::Allow, refusal, arch)
                .expect("a filter");
            let filter: BpfProgram = filter.try_into().expect("a program");
            apply_filter(&filter).expect("a thread may bind itself");
            look(&mut listener)
        };
        std::thread::spawn(look).join().expect("no panic")
    }

    #[test]
    fn an_accept_error_that_lasts_is_a_pause_and_not_a_spin() {
        // How many accepts fail before the pause.
        for (errno, expected) in [
            (libc::EMFILE, 1),
            (libc::ENFILE, 1),
            (libc::ENOBUFS, 1),
            (libc::ENOMEM, 1),
            (libc::EPERM, 1),
            (libc::EACCES, 1),
            (libc::EINVAL, 1),
            (libc::EBADF, 1),
            (libc::ENOTSOCK, 1),
            (libc::EOPNOTSUPP, 1),
            (libc::ENOSYS, 1),
            (libc::ECONNABORTED, BROKEN_IN_A_ROW_MAX + 1),
            (libc::EPROTO, BROKEN_IN_A_ROW_MAX + 1),
            (libc::EHOSTUNREACH, BROKEN_IN_A_ROW_MAX + 1),
        ] {
            with_accepts_refused(errno, move |listener| {
                let start = Duration::from_secs(100);
                for round in 0..3 {
                    let now = start + ACCEPT_PAUSE * round;
                    let mut count = 0;
                    loop {
                        count += 1;
                        assert!(count < 1000, "{errno} spins");
                        match listener.accept(now) {
                            Accepted::Broken(error) => {
                                assert_eq!(error.raw_os_error(), Some(errno));
                            }
                            Accepted::Failed(error) => {
                                assert_eq!(error.raw_os_error(), Some(errno));
                                break;
                            }
                            other => panic!("{other:?}"),
                        }
                    }
                    assert_eq!(listener.next_due(), Some(now + ACCEPT_PAUSE));
                    listener.on_ready();
                    assert!(matches!(listener.accept(now), Accepted::Nothing), "{errno}");
                    assert_eq!(count, expected, "{errno}, round {round}");
                }
                listener.on_reap();
                assert!(matches!(
                    listener.accept(start + ACCEPT_PAUSE * 2),
                    Accepted::Broken(_) | Accepted::Failed(_)
                ));
            });
        }
    }

    fn listener_with_rate(per_second: Option<u32>) -> Listener {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut listener =
            Listener::bind(any, ListenerKind::Clients, false, None).expect("a free port");
        listener.limit_rate(per_second);
        listener
    }

    /// Connects so many clients, and waits until all are in the kernel's queue.
    fn connect(listener: &Listener, count: usize) -> Vec<Client> {
        let address = listener.address().expect("bound");
        let clients: Vec<Client> = (0..count)
            .map(|_| {
                let mut client = Client::connect(address).expect("listening");
                client.write_all(b"GET").expect("connected");
                client
            })
            .collect();
        let deadline = Instant::now() + Duration::from_secs(10);
        while count > 0 && !is_readable(&listener.socket) {
            assert!(Instant::now() < deadline, "nobody is in the queue");
            std::thread::yield_now();
        }
        clients
    }

    /// Takes one, which may still be on its way into the queue.
    fn takes_one(listener: &mut Listener, now: Duration) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            listener.on_ready();
            match listener.accept(now) {
                Accepted::Connection(..) => return true,
                Accepted::OverRate => return false,
                Accepted::Nothing => assert!(Instant::now() < deadline, "nobody comes"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_second_takes_as_many_as_the_rate_and_the_next_waits_its_turn() {
        let mut listener = listener_with_rate(Some(4));
        let _clients = connect(&listener, 6);
        let start = Duration::from_secs(100);
        for number in 0..4 {
            assert!(takes_one(&mut listener, start), "{number}");
        }
        assert!(!takes_one(&mut listener, start), "the fifth waits");
        let due = start + Duration::from_millis(250);
        assert_eq!(listener.next_due(), Some(due), "the poll wakes for it");
        let early = due - Duration::from_nanos(1);
        assert!(matches!(listener.accept(early), Accepted::Nothing));
        listener.on_reap();
        listener.on_ready();
        assert_eq!(listener.next_due(), Some(due), "nothing else ends the wait");
        assert!(takes_one(&mut listener, due));
        assert!(!takes_one(&mut listener, due), "the sixth");
        assert!(takes_one(&mut listener, due + Duration::from_millis(250)));
    }

    #[test]
    fn an_empty_bucket_with_nobody_waiting_is_no_pause() {
        let mut listener = listener_with_rate(Some(2));
        let _clients = connect(&listener, 2);
        let now = Duration::from_secs(100);
        assert!(takes_one(&mut listener, now) && takes_one(&mut listener, now));
        assert!(matches!(listener.accept(now), Accepted::Nothing));
        assert_eq!(listener.next_due(), None, "the poll tells of the next");
        let _late = connect(&listener, 1);
        assert!(!takes_one(&mut listener, now));
    }

    #[test]
    fn without_a_rate_everybody_is_taken_at_once() {
        let mut listener = listener_with_rate(None);
        let _clients = connect(&listener, 50);
        assert!((0..50).all(|_| takes_one(&mut listener, Duration::ZERO)));
    }

    /// A connection to a listener with this timeout, as accepted.
    fn accepted(user_timeout: Option<Duration>) -> TcpStream {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut listener =
            Listener::bind(any, ListenerKind::Clients, false, user_timeout).expect("a free port");
        let address = listener.address().expect("bound");
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
    fn accepted_sockets_have_the_listeners_options_without_a_system_call_of_their_own() {
        for timeout in [None, Some(Duration::from_millis(35_000))] {
            let stream = accepted(timeout);
            let socket = SockRef::from(&stream);
            assert_eq!(socket.tcp_user_timeout().expect("TCP"), timeout);
            assert!(socket.tcp_nodelay().expect("TCP"));
        }
    }
}
