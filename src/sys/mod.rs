//! System calls that the standard library, mio, socket2 and rustix do not offer. [`ring`] writes to many sockets with
//! one system call, [`process`] tells what the system says of this process, [`handed`] takes the sockets that whoever
//! started it has opened.
//!
//! Invariant: `unsafe` stands in this folder only, each block with its reason and with what makes it sound.

pub mod handed;
pub mod process;
pub mod ring;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::system::uname;

/// Descriptors this process may hold open now (soft RLIMIT_NOFILE); `u64::MAX` when unlimited.
#[must_use]
pub fn descriptor_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Raises the soft RLIMIT_NOFILE to the hard one, which needs no privilege, and returns the limit now in force
/// (`u64::MAX`: unlimited). Every session holds one descriptor, and the usual soft limit of 1,024 is for programs
/// that call `select`.
///
/// # Errors
/// The kernel refused; the old limit ([`descriptor_limit`]) stays in force.
pub(crate) fn raise_descriptor_limit() -> io::Result<u64> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )?;
    Ok(descriptor_limit())
}

/// The name of this host, as the system calls it.
#[must_use]
pub fn host_name() -> String {
    uname().nodename().to_string_lossy().into_owned()
}

/// Lets all threads but the main one allocate from one heap. To be called before any thread is started. Otherwise each
/// thread of the AMQP client would have a heap of its own, a new one with every connect, and the memory that a storm of
/// bindings left in the old one would stay. Has no effect with allocators other than glibc's.
pub fn share_heaps() {
    #[cfg(target_env = "gnu")]
    {
        #[allow(
            unsafe_code,
            reason = "mallopt has no safe wrapper; it takes two numbers"
        )]
        // SAFETY: no argument refers to memory, and no other thread allocates yet, which is all that glibc asks for.
        let _was_set = unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
    }
}

/// Gives the pages of freed memory back to the kernel (0.6 ms at 10,000 sessions). The loop calls it once when it is
/// idle after a burst, because glibc otherwise keeps the outboxes of the burst resident for good (DESIGN, The turn, 6).
/// Has no effect with allocators other than glibc's.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    {
        #[allow(
            unsafe_code,
            reason = "malloc_trim has no safe wrapper; it takes no pointer and locks each arena itself"
        )]
        // SAFETY: no argument refers to memory, and glibc documents the call as safe from any thread.
        let _released = unsafe { libc::malloc_trim(0) };
    }
}

/// Bytes that are allocated and not freed, in all heaps and in blocks of their own; `None` with allocators other than glibc's.
/// Cost: it walks the freed blocks, as [`trim_heap`] does, and nobody allocates meanwhile (0.3 ms for 10,000 blocks that are apart
/// in memory, 21 ms for 100,000).
#[must_use]
pub fn heap_in_use() -> Option<u64> {
    #[cfg(target_env = "gnu")]
    {
        #[allow(
            unsafe_code,
            reason = "mallinfo2 has no safe wrapper; it takes nothing, and locks each arena itself"
        )]
        // SAFETY: no argument, a plain struct of numbers is returned, and glibc documents the call as safe from any thread but
        // for mallopt, which is called before there is a second one.
        let info = unsafe { libc::mallinfo2() };
        Some((info.uordblks + info.hblkhd) as u64)
    }
    #[cfg(not(target_env = "gnu"))]
    None
}

/// Returns how many bytes written to a TCP socket its peer has not acknowledged, those not sent yet included.
///
/// # Errors
/// The kernel cannot say, for example because it is no such socket.
pub(crate) fn unacknowledged_bytes(socket: impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    #[allow(unsafe_code, reason = "neither socket2 nor rustix offers SIOCOUTQ")]
    // SAFETY: the descriptor is borrowed, so open, for the whole call; the kernel writes exactly one c_int to `bytes`.
    let status = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(bytes).unwrap_or_default())
}

/// Segments in a row that a peer leaves unacknowledged before it counts as gone: the kernel waits 0.2 s for the first
/// and twice as long each time, so 25 s in all.
const RETRANSMITS_MAX: u8 = 7;

/// Probes in a row for room in its receive buffer that a peer leaves unanswered before it counts as gone. One may be
/// under way, and one may be lost.
const PROBES_MAX: u8 = 3;

/// Whether the kernel of a TCP socket's peer still answers ours. It answers also for a program that does not read: a
/// peer whose receive buffer is full is asked for room again and again, and answers that there is none.
///
/// # Errors
/// The kernel cannot say, for example because it is no such socket.
pub(crate) fn is_peer_answering(socket: impl AsFd) -> io::Result<bool> {
    let ([first, ..], _) = tcp_info(socket)?;
    // The first fields are a byte each: tcpi_state, tcpi_ca_state, tcpi_retransmits, tcpi_probes.
    let [_, _, retransmits, probes, ..] = first.to_ne_bytes();
    Ok(retransmits < RETRANSMITS_MAX && probes < PROBES_MAX)
}

/// The 8-byte words of the kernel's `struct tcp_info` up to and with `tcpi_bytes_acked`, which libc's declaration lacks: a
/// part of the kernel's interface, which only ever grows at its end.
const TCP_INFO_WORDS: usize = 16;

/// Returns how many bytes the peer's system has acknowledged since the connection was made: a program there need not have
/// read them.
///
/// # Errors
/// The kernel cannot say, for example because it is no such socket, or older than Linux 4.2.
pub(crate) fn acknowledged_bytes(socket: impl AsFd) -> io::Result<u64> {
    let (info, bytes) = tcp_info(socket)?;
    if bytes < size_of_val(&info) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let [.., acknowledged] = info;
    Ok(acknowledged)
}

/// The beginning of the kernel's `struct tcp_info` of a TCP socket, and how many bytes of it this kernel has; the rest is
/// 0.
fn tcp_info(socket: impl AsFd) -> io::Result<([u64; TCP_INFO_WORDS], usize)> {
    let mut info = [0_u64; TCP_INFO_WORDS];
    let mut bytes = size_of_val(&info) as libc::socklen_t;
    #[allow(unsafe_code, reason = "neither socket2 nor rustix offers TCP_INFO")]
    // SAFETY: the descriptor is borrowed, so open, for the whole call; the kernel writes at most `bytes` to `info`.
    let status = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut bytes,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((info, bytes as usize))
}

/// Sets TCP_DEFER_ACCEPT on a listening socket: a connection is accepted once its first bytes are there. So the read
/// right after the accept finds the request, and a silent peer costs no descriptor (DESIGN, The turn, 5). `patience` is
/// rounded up to whole seconds, and by the kernel to its retransmission steps. Zero turns the option off, also for
/// silent peers that wait already, at their next retransmission.
///
/// # Errors
/// The kernel refused, for example because `listener` is not a TCP socket.
pub(crate) fn set_defer_accept(listener: &impl AsFd, patience: Duration) -> io::Result<()> {
    let seconds = patience
        .as_secs_f64()
        .ceil()
        .clamp(0.0, f64::from(libc::c_int::MAX)) as libc::c_int;
    #[allow(
        unsafe_code,
        reason = "neither socket2 nor rustix offers TCP_DEFER_ACCEPT"
    )]
    // SAFETY: the descriptor is borrowed, so open, for the whole call; the kernel reads exactly one c_int from
    // `seconds`, which outlives the call.
    let status = unsafe {
        libc::setsockopt(
            listener.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn the_soft_descriptor_limit_becomes_the_hard_one() {
        let raised =
            raise_descriptor_limit().expect("raising to the hard limit needs no privilege");
        assert_eq!(
            raised,
            getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
        );
        assert_eq!(raised, descriptor_limit());
    }

    #[test]
    fn the_kernel_counts_the_bytes_that_a_peer_has_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mut client = std::net::TcpStream::connect(address).expect("listening");
        let (mut server, _) = listener.accept().expect("connected");
        assert_eq!(acknowledged_bytes(&server).expect("a TCP socket"), 0);
        let mut sent = 0;
        for length in [1, 1000, 70_000] {
            io::Write::write_all(&mut server, &vec![b'x'; length]).expect("connected");
            io::Read::read_exact(&mut client, &mut vec![0; length]).expect("sent");
            sent += length as u64;
            let deadline = std::time::Instant::now() + Duration::from_secs(5);
            while acknowledged_bytes(&server).expect("a TCP socket") != sent {
                assert!(std::time::Instant::now() < deadline, "not acknowledged");
                std::thread::yield_now();
            }
        }
        let (one, _other) = std::os::unix::net::UnixStream::pair().expect("sockets");
        assert!(acknowledged_bytes(&one).is_err());
    }

    #[test]
    fn a_listener_takes_defer_accept_and_another_socket_reports_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        set_defer_accept(&listener, Duration::from_secs(10)).expect("a TCP listener takes it");
        listener.set_nonblocking(true).expect("an own socket");
        let mut silent =
            std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
        assert_eq!(
            listener.accept().map(|_| ()).map_err(|error| error.kind()),
            Err(io::ErrorKind::WouldBlock)
        );
        io::Write::write_all(&mut silent, b"GET / HTTP/1.1\r\n").expect("connected");
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while listener.accept().is_err() {
            assert!(
                std::time::Instant::now() < deadline,
                "not accepted although it spoke"
            );
            std::thread::yield_now();
        }
        set_defer_accept(&listener, Duration::ZERO).expect("a TCP listener takes it");
        let _silent =
            std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
        while listener.accept().is_err() {
            assert!(
                std::time::Instant::now() < deadline,
                "not accepted although nobody is held back any more"
            );
            std::thread::yield_now();
        }
        let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        assert!(set_defer_accept(&datagrams, Duration::from_secs(10)).is_err());
    }
}
