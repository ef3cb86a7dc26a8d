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

use super::tls::{self, Spoken};

/// How late a thread that waits for bytes may notice a change of the mode.
const GLANCE: Duration = Duration::from_millis(10);

/// Bytes that one read takes while everything passes.
const CHUNK: usize = 64 << 10;

const PROTOCOL_HEADER_BYTES: usize = 8;
const FRAME_HEADER_BYTES: usize = 7;
const HEARTBEAT: u8 = 8;

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
    /// It passes the frames of AMQP that these are, and drops all others: a real broker beats its heart and answers
    /// nothing.
    Only(Frames),
    /// It resets new connections; those that stand are as under `Pass`.
    Refuse,
    /// It passes what servers send, and holds what clients send.
    Mute,
}

/// Frames of AMQP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// Those of channel 0: the login and heartbeats. No channel is ever opened.
    Login,
    /// Those that ask and answer nothing.
    Heartbeats,
}

impl Frames {
    fn has(self, header: [u8; FRAME_HEADER_BYTES]) -> bool {
        let [kind, high, low, ..] = header;
        match self {
            Self::Login => [high, low] == [0, 0],
            Self::Heartbeats => kind == HEARTBEAT,
        }
    }
}

/// Where one way of a connection is in the frames of AMQP; of no meaning, and no harm, where something else is spoken.
struct FrameCursor {
    /// Bytes before the next header.
    left: usize,
    /// Whether these bytes pass.
    is_wanted: bool,
    /// What came of the next header.
    header: Vec<u8>,
    /// Bytes of it that were passed on before it was complete.
    passed: usize,
}

impl FrameCursor {
    /// The way of the client has the protocol's header before its frames.
    fn new(is_clients: bool) -> Self {
        Self {
            left: if is_clients { PROTOCOL_HEADER_BYTES } else { 0 },
            is_wanted: true,
            header: Vec::new(),
            passed: 0,
        }
    }

    /// What passes of these bytes, the next ones. With `only`, a frame is judged when its header is complete, and until
    /// then held; without, every byte passes at once.
    fn sieve(&mut self, mut bytes: &[u8], only: Option<Frames>) -> Vec<u8> {
        let mut passing = Vec::with_capacity(bytes.len());
        while !bytes.is_empty() {
            if self.left == 0 {
                let missing = FRAME_HEADER_BYTES - self.header.len();
                let (header, rest) = bytes.split_at(missing.min(bytes.len()));
                self.header.extend(header);
                bytes = rest;
                let header: Option<[u8; FRAME_HEADER_BYTES]> = self.header[..].try_into().ok();
                // A frame that has begun to pass must pass whole.
                let is_wanted = match (only, header) {
                    (None, _) => true,
                    (Some(_), _) if self.passed > 0 => true,
                    (Some(_), None) => false,
                    (Some(frames), Some(header)) => frames.has(header),
                };
                if is_wanted {
                    passing.extend(&self.header[self.passed..]);
                    self.passed = self.header.len();
                }
                let Some([_, _, _, size @ ..]) = header else {
                    break;
                };
                // And the byte that ends it.
                self.left = u32::from_be_bytes(size) as usize + 1;
                self.is_wanted = is_wanted;
                self.header.clear();
                self.passed = 0;
            }
            let (frame, rest) = bytes.split_at(self.left.min(bytes.len()));
            self.left -= frame.len();
            if self.is_wanted {
                passing.extend(frame);
            }
            bytes = rest;
        }
        passing
    }
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
    /// Bytes that may still pass before a cut, the way of the server and that of the client.
    budgets: [AtomicU64; 2],
    /// Cuts because of a budget.
    cuts: AtomicU64,
    is_over: AtomicBool,
}

/// A running proxy; its connections are reset on drop.
pub struct TcpProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _spoken: Option<Spoken>,
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
            budgets: [AtomicU64::new(u64::MAX), AtomicU64::new(u64::MAX)],
            cuts: AtomicU64::new(0),
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
        let spoken = tls::speak_as(target, address);
        Self {
            address,
            shared,
            _spoken: spoken,
        }
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

    /// As [`TcpProxy::cut`], but when so many more bytes of servers, or of clients, have passed: in the middle of
    /// whatever these are. Returns at once.
    pub fn cut_after(&self, servers: Option<u64>, clients: Option<u64>) {
        for (budget, bytes) in self.shared.budgets.iter().zip([servers, clients]) {
            budget.store(bytes.unwrap_or(u64::MAX), Ordering::SeqCst);
        }
    }

    /// How many cuts [`TcpProxy::cut_after`] has led to.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
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
        for (from, to, is_clients) in [
            (client.clone(), server.clone(), true),
            (server, client, false),
        ] {
            *self.pumps.lock().unwrap() += 1;
            let shared = self.clone();
            thread::spawn(move || {
                let cursor = FrameCursor::new(is_clients);
                if shared.pump(&from, &to, epoch, cursor, is_clients).is_err() {
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
    fn pump(
        &self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        epoch: u64,
        mut cursor: FrameCursor,
        is_clients: bool,
    ) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let most = self.wait_for_turn(epoch, is_clients)?.min(CHUNK);
            let read = match from.read(&mut chunk[..most]) {
                Ok(0) => {
                    self.wait_for_turn(epoch, is_clients)?;
                    return to.shutdown(std::net::Shutdown::Write);
                }
                Ok(read) => read,
                Err(error) if is_passing(&error) => continue,
                Err(error) => return Err(error),
            };
            let only = match self.wait_while_black(epoch, is_clients)? {
                Mode::Only(frames) => Some(frames),
                Mode::Pass | Mode::BlackHole | Mode::Trickle { .. } | Mode::Refuse | Mode::Mute => {
                    None
                }
            };
            let passing = cursor.sieve(&chunk[..read], only);
            let mut rest = &passing[..];
            while !rest.is_empty() {
                self.wait_while_black(epoch, is_clients)?;
                let budget = &self.budgets[usize::from(is_clients)];
                let left = budget.load(Ordering::SeqCst);
                if left == 0 {
                    self.end_by_budget();
                    continue;
                }
                let most = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                match to.write(&rest[..most]) {
                    Ok(written) => {
                        rest = &rest[written..];
                        let written = written as u64;
                        self.passed.fetch_add(written, Ordering::SeqCst);
                        // Not what was set anew meanwhile.
                        let _ = budget.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| {
                            (now == left && left != u64::MAX).then_some(left - written)
                        });
                    }
                    Err(error) if is_passing(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// A cut, and no more of them.
    fn end_by_budget(&self) {
        self.budgets
            .iter()
            .for_each(|budget| budget.store(u64::MAX, Ordering::SeqCst));
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.cuts.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Waits while nothing passes, or for the next tick; returns how many bytes may then pass.
    fn wait_for_turn(&self, epoch: u64, is_clients: bool) -> io::Result<usize> {
        match self.wait_while_black(epoch, is_clients)? {
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
            Mode::Pass | Mode::Only(_) | Mode::Refuse | Mode::Mute | Mode::BlackHole => Ok(CHUNK),
        }
    }

    fn wait_while_black(&self, epoch: u64, is_clients: bool) -> io::Result<Mode> {
        let mut mode = self.mode.lock().unwrap();
        loop {
            if self.epoch.load(Ordering::SeqCst) != epoch {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if *mode != Mode::BlackHole && !(*mode == Mode::Mute && is_clients) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, channel: u8, payload: &[u8]) -> Vec<u8> {
        let size = (payload.len() as u32).to_be_bytes();
        [&[kind, 0, channel][..], &size, payload, &[0xCE]].concat()
    }

    #[test]
    fn only_the_frames_that_are_wanted_pass_however_the_bytes_are_cut() {
        const METHOD: u8 = 1;
        let header = b"AMQP\0\0\x09\x01".to_vec();
        let (login, beat) = (frame(METHOD, 0, b"login"), frame(HEARTBEAT, 0, b""));
        let asked = frame(METHOD, 1, &[7; 300]);
        let all = [&header, &login, &asked, &beat, &asked, &beat].map(|part| &part[..]);
        let rows = [
            (None, all.concat()),
            (
                Some(Frames::Login),
                [&header[..], &login, &beat, &beat].concat(),
            ),
            (
                Some(Frames::Heartbeats),
                [&header[..], &beat, &beat].concat(),
            ),
        ];
        for (only, expected) in rows {
            for cut in [1, 2, 3, 8, 20, 1000] {
                let mut cursor = FrameCursor::new(true);
                let mut passed = Vec::new();
                for piece in all.concat().chunks(cut) {
                    let passing = cursor.sieve(piece, only);
                    assert!(only.is_some() || passing == piece, "{cut}: held");
                    passed.extend(passing);
                }
                assert_eq!(passed, expected, "{only:?} in pieces of {cut}");
            }
        }
    }

    #[test]
    fn a_frame_whose_header_has_begun_to_pass_passes_whole() {
        let (one, other) = (frame(1, 1, b"one"), frame(1, 1, b"other"));
        let mut cursor = FrameCursor::new(false);
        let begun = cursor.sieve(&one[..3], None);
        let rest = cursor.sieve(&[&one[3..], &other].concat(), Some(Frames::Heartbeats));
        assert_eq!([begun, rest].concat(), one);
    }
}
