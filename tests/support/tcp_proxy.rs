//! A TCP proxy on a port of its own, whose network can be broken and mended while connections stand.
//!
//! Two threads a connection, one each way, that look at the mode at least every [`GLANCE`]. A connection's two
//! sockets are owned by these threads alone, so when both have ended after [`TcpProxy::cut`] the kernel resets both.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

/// How late a thread that waits for bytes may notice a change of the mode.
const GLANCE: Duration = Duration::from_millis(10);

/// Bytes that one read takes while everything passes.
const CHUNK: usize = 64 << 10;

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It passes everything on.
    Pass,
    /// It passes nothing, either way, while the sockets stay open; new connections are taken and hear nothing. As TCP
    /// would have it, what was sent meanwhile arrives when this ends.
    BlackHole,
    /// It passes so many bytes a tick, each way of each connection.
    Trickle { bytes: usize, tick: Duration },
    /// It resets new connections; those that stand are as under `Pass`.
    Refuse,
}

struct Shared {
    mode: Mutex<Mode>,
    changed: Condvar,
    /// Connections that began before the last cut have a lower number.
    epoch: AtomicU64,
    /// Threads of connections.
    pumps: Mutex<usize>,
    pump_ended: Condvar,
    passed: AtomicU64,
    is_over: AtomicBool,
}

/// A running proxy; its connections are reset on drop.
pub struct TcpProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl TcpProxy {
    /// Takes connections for `target` on a free port of 127.0.0.1.
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            mode: Mutex::new(Mode::Pass),
            changed: Condvar::new(),
            epoch: AtomicU64::new(0),
            pumps: Mutex::new(0),
            pump_ended: Condvar::new(),
            passed: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.is_over.load(Ordering::SeqCst) {
                    return;
                }
                accepting.take(client, target);
            }
        });
        Self { address, shared }
    }

    /// As [`TcpProxy::start`], for a port of 127.0.0.1.
    pub fn to_port(port: u16) -> Self {
        Self::start(([127, 0, 0, 1], port).into())
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a broker behind it, as user `guest`.
    pub fn amqp_url(&self) -> String {
        format!("amqp://guest:guest@{}/%2f", self.address)
    }

    pub fn set(&self, mode: Mode) {
        *self.shared.mode.lock().unwrap() = mode;
        self.shared.changed.notify_all();
    }

    /// Resets every connection, both sides; returns once that is done. The mode stays.
    pub fn cut(&self) {
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        self.shared.changed.notify_all();
        let mut pumps = self.shared.pumps.lock().unwrap();
        while *pumps > 0 {
            pumps = self.shared.pump_ended.wait(pumps).unwrap();
        }
    }

    /// Bytes passed on so far, both ways together.
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::SeqCst)
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        self.shared.changed.notify_all();
        // The listener sees the end with its next connection.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn take(self: &Arc<Self>, client: TcpStream, target: SocketAddr) {
        let refused = *self.mode.lock().unwrap() == Mode::Refuse;
        let server = match TcpStream::connect(target) {
            Ok(server) if !refused => server,
            _ => return reset_when_closed(&client),
        };
        for socket in [&client, &server] {
            socket.set_nodelay(true).unwrap();
            socket.set_read_timeout(Some(GLANCE)).unwrap();
            socket.set_write_timeout(Some(GLANCE)).unwrap();
        }
        let epoch = self.epoch.load(Ordering::SeqCst);
        let (client, server) = (Arc::new(client), Arc::new(server));
        for (from, to) in [(client.clone(), server.clone()), (server, client)] {
            *self.pumps.lock().unwrap() += 1;
            let shared = self.clone();
            thread::spawn(move || {
                if shared.pump(&from, &to, epoch).is_err() {
                    // Broken on one side, or cut: broken on the other too, and for the other thread.
                    for socket in [&from, &to] {
                        reset_when_closed(socket);
                        let _ = socket.shutdown(std::net::Shutdown::Read);
                    }
                }
                drop((from, to));
                *shared.pumps.lock().unwrap() -= 1;
                shared.pump_ended.notify_all();
            });
        }
    }

    /// Passes bytes on until `from` ends, which `to` is then told.
    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream, epoch: u64) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let most = self.wait_for_turn(epoch)?.min(CHUNK);
            let read = match from.read(&mut chunk[..most]) {
                Ok(0) => {
                    self.wait_for_turn(epoch)?;
                    return to.shutdown(std::net::Shutdown::Write);
                }
                Ok(read) => read,
                Err(error) if is_passing(&error) => continue,
                Err(error) => return Err(error),
            };
            let mut rest = &chunk[..read];
            while !rest.is_empty() {
                self.wait_while_black(epoch)?;
                match to.write(rest) {
                    Ok(written) => {
                        rest = &rest[written..];
                        self.passed.fetch_add(written as u64, Ordering::SeqCst);
                    }
                    Err(error) if is_passing(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Waits while nothing passes, or for the next tick; answers how many bytes may then pass.
    fn wait_for_turn(&self, epoch: u64) -> io::Result<usize> {
        match self.wait_while_black(epoch)? {
            Mode::Trickle { bytes, tick } => {
                let mode = self.mode.lock().unwrap();
                let is_same = |mode: &mut Mode| *mode == Mode::Trickle { bytes, tick };
                drop(
                    self.changed
                        .wait_timeout_while(mode, tick, is_same)
                        .unwrap(),
                );
                Ok(bytes)
            }
            Mode::Pass | Mode::Refuse | Mode::BlackHole => Ok(CHUNK),
        }
    }

    fn wait_while_black(&self, epoch: u64) -> io::Result<Mode> {
        let mut mode = self.mode.lock().unwrap();
        loop {
            if self.epoch.load(Ordering::SeqCst) != epoch {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if *mode != Mode::BlackHole {
                return Ok(*mode);
            }
            // In slices: a cut may come between the look and the wait.
            mode = self.changed.wait_timeout(mode, GLANCE).unwrap().0;
        }
    }
}

/// The last close of this socket is a reset.
fn reset_when_closed(socket: &TcpStream) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Nothing came, or went, within a glance.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
