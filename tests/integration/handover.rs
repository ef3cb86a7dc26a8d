//! One process takes a port over from another (`--reuse-port`) under clients that connect all the time: not one of
//! them is refused or reset. In a network of its own, where that may be made, so that the kernel's setting
//! `net.ipv4.tcp_migrate_req` is the test's.
//!
//! `BLACKHOLE_HANDOVERS=n cargo test --test integration handover` makes so many handovers instead of a few, and prints figures.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use support::client::{ANY_TOKEN, Raw, ping_as};
use support::server::{PATIENCE, Server, wait_for};
use support::tls::Stream;
use support::wire::{UPGRADE_REQUEST, client_frame, client_text, server_frames};

const HANDOVERS: u32 = 4;

/// Threads that connect; the pause of each between its connect and its request is so many times [`DAWDLE`].
const CLIENTS: u32 = 4;
const DAWDLE: Duration = Duration::from_millis(5);

/// For a process whose drain no client waits for.
const BRIEF: [&str; 4] = ["--drain-seconds", "1", "--going-away-ms", "0"];

/// Runs `test` on a thread with a network of its own; false, and nothing is run, where that is not allowed.
fn in_own_network(test: impl FnOnce() + Send) -> bool {
    thread::scope(|scope| {
        let ran = scope.spawn(|| {
            let is_allowed = own_network::enter();
            if is_allowed {
                test();
            }
            is_allowed
        });
        ran.join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

mod own_network {
    use std::os::fd::AsRawFd;

    /// Moves this thread, and all that it starts, to a new network with nothing but a loopback interface.
    #[allow(
        unsafe_code,
        reason = "no safe crate of the tree offers unshare and SIOCSIFFLAGS"
    )]
    pub(super) fn enter() -> bool {
        // SAFETY: takes no pointer, and changes nothing but the network of this thread.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return false;
        }
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        // SAFETY: all its fields are numbers, or unions of such.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        // SAFETY: the descriptor is open, and the kernel reads one ifreq, which outlives the call.
        let status =
            unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
        assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
        true
    }
}

fn set_migration(is_on: bool) {
    let value = if is_on { "1" } else { "0" };
    std::fs::write("/proc/sys/net/ipv4/tcp_migrate_req", value).unwrap();
}

fn start(port: u16, args: &[&str]) -> Server {
    let port = port.to_string();
    let own = ["--reuse-port", "--port", &port];
    Server::demo(&[&own, args].concat())
}

/// Connects, upgrades, has one command answered and closes; false when the server went away before its answer, in
/// good order.
fn visit(address: SocketAddr, dawdle: Duration) -> io::Result<bool> {
    let mut stream = Stream::connect(address)?;
    stream.tcp().set_read_timeout(Some(PATIENCE))?;
    stream.tcp().set_nodelay(true)?;
    thread::sleep(dawdle);
    stream.write_all(UPGRADE_REQUEST.as_bytes())?;
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break bytes.drain(..at + 4).collect::<Vec<u8>>();
        }
        read_more(&mut stream, &mut bytes)?;
    };
    assert!(
        head.starts_with(b"HTTP/1.1 101 "),
        "{:?}",
        String::from_utf8_lossy(&head)
    );
    stream.write_all(&client_text(&ping_as(ANY_TOKEN, "1").to_string()))?;
    let (opcode, payload) = loop {
        if let Some(frame) = server_frames(&bytes).0.into_iter().next() {
            break frame;
        }
        read_more(&mut stream, &mut bytes)?;
    };
    if opcode == 8 {
        assert_eq!(payload[..2], 1001_u16.to_be_bytes());
    }
    stream.write_all(&client_frame(0x88, &1000_u16.to_be_bytes()))?;
    while stream.read(&mut [0; 1024])? > 0 {}
    Ok(opcode == 1)
}

fn read_more(stream: &mut Stream, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = [0; 4096];
    match stream.read(&mut chunk)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => {
            bytes.extend_from_slice(&chunk[..count]);
            Ok(())
        }
    }
}

/// Hands the port over again and again; panics when a connect is refused, or a connection reset.
fn hand_over() {
    let handovers = std::env::var("BLACKHOLE_HANDOVERS").map_or(HANDOVERS, |n| n.parse().unwrap());
    let mut old = start(0, &BRIEF);
    let address = old.address();
    let is_over = AtomicBool::new(false);
    let (served, gone_away, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (is_over, served, gone_away, failed) = (&is_over, &served, &gone_away, &failed);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let counter = match visit(address, DAWDLE * client) {
                        Ok(true) => served,
                        Ok(false) => gone_away,
                        Err(error) => {
                            eprintln!("a visit failed: {error}");
                            failed
                        }
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..handovers {
            let new = start(address.port(), &BRIEF);
            let before = served.load(Ordering::Relaxed);
            wait_for("visits to both", || {
                (served.load(Ordering::Relaxed) > before + 50).then_some(())
            });
            assert_eq!(old.stop().code(), Some(0));
            old = new;
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let [served, gone_away, failed] = [served, gone_away, failed].map(AtomicU64::into_inner);
    println!(
        "{handovers} handovers: {served} visits served, {gone_away} told 1001, {failed} failed"
    );
    assert!(served > u64::from(handovers) * 50);
    assert_eq!(failed, 0, "refused or reset");
}

#[test]
fn no_connect_is_refused_or_reset_when_the_queue_is_emptied_before_the_listener_closes() {
    if !in_own_network(|| {
        set_migration(false);
        hand_over();
    }) {
        hand_over();
    }
}

#[test]
fn no_connect_is_refused_or_reset_when_the_kernel_moves_the_queue() {
    let ran = in_own_network(|| {
        set_migration(true);
        hand_over();
    });
    if !ran {
        println!("left out: needs root");
    }
}

#[test]
fn a_silent_connection_moves_to_the_new_process_when_the_kernel_moves_the_queue() {
    let ran = in_own_network(|| {
        set_migration(true);
        let mut old = start(0, &BRIEF);
        let mut silent: Vec<Raw> = (0..20).map(|_| Raw::connect(old.address())).collect();
        let _new = start(old.address().port(), &BRIEF);
        assert_eq!(old.stop().code(), Some(0));
        for raw in &mut silent {
            raw.send(UPGRADE_REQUEST.as_bytes());
            assert_eq!(raw.head().status, 101);
        }
    });
    if !ran {
        println!("left out: needs root");
    }
}

#[test]
fn silent_connections_are_taken_out_of_the_kernel_during_the_delay() {
    let mut old = start(
        0,
        &[
            "--drain-delay-seconds",
            "3",
            "--drain-seconds",
            "3",
            "--going-away-ms",
            "0",
        ],
    );
    let mut silent: Vec<Raw> = (0..20).map(|_| Raw::connect(old.address())).collect();
    let _new = start(old.address().port(), &BRIEF);
    old.signal(Signal::TERM);
    old.wait_for_log("draining");
    for raw in &mut silent {
        raw.send(UPGRADE_REQUEST.as_bytes());
        assert_eq!(raw.head().status, 101);
    }
    assert_eq!(old.wait().code(), Some(0));
}
