//! Sessions that send without pause, and read what they are sent.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use support::server::wait_for;
use support::tls::Stream;
use support::wire::{UPGRADE_REQUEST, client_frame, client_text};

/// What a flood is over after, whatever the test does meanwhile.
const BYTES_MAX: u64 = 2 << 30;
const TIME_MAX: Duration = Duration::from_secs(60);

/// What each session of a flood sends.
pub(crate) struct Script {
    /// The first message.
    pub(crate) greeting: Option<String>,
    /// The message that follows without pause.
    pub(crate) message: String,
    /// How often; then the session is closed in good order, and another comes in its place.
    pub(crate) repeats: usize,
}

impl Script {
    /// All of it, behind the upgrade request.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some(greeting) = &self.greeting {
            bytes.extend(client_text(greeting));
        }
        bytes.extend(client_text(&self.message).repeat(self.repeats));
        bytes
    }
}

/// A thread that floods with some sessions; ends on drop.
pub(crate) struct Flood {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    sent: AtomicU64,
}

impl Flood {
    /// Returns once the flood is on its way.
    ///
    /// `bytes`: what each sends once it is upgraded.
    pub(crate) fn start(address: SocketAddr, sessions: usize, bytes: &[u8]) -> Self {
        Self::start_as(UPGRADE_REQUEST, address, sessions, bytes)
    }

    /// As [`Flood::start`], upgraded by another request.
    pub(crate) fn start_as(
        request: &str,
        address: SocketAddr,
        sessions: usize,
        bytes: &[u8],
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let close = client_frame(0x88, &1000_u16.to_be_bytes());
        let flooder = Flooder {
            address,
            shared: shared.clone(),
            bytes: [request.as_bytes(), bytes, &close].concat(),
        };
        let thread = thread::spawn(move || flooder.run(sessions));
        let flood = Self {
            shared,
            thread: Some(thread),
        };
        let enough = 4096 * sessions as u64;
        wait_for("the flood is on its way", || {
            (flood.sent() >= enough).then_some(())
        });
        flood
    }

    /// Bytes sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        if !thread::panicking() {
            ended.expect("the flooder has met nothing unforeseen");
        }
    }
}

struct Flooder {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Everything that a session sends.
    bytes: Vec<u8>,
}

/// One of its sessions.
struct Flooding {
    stream: Stream,
    sent: usize,
}

impl Flooder {
    fn run(&self, sessions: usize) {
        let begun = Instant::now();
        let mut all: Vec<Flooding> = (0..sessions).map(|_| self.connect()).collect();
        let mut chunk = vec![0; 64 << 10];
        while !self.shared.is_over.load(Ordering::Relaxed)
            && self.shared.sent.load(Ordering::Relaxed) < BYTES_MAX
            && begun.elapsed() < TIME_MAX
        {
            self.wait(&all);
            for session in &mut all {
                if self.step(session, &mut chunk).is_err() {
                    *session = self.connect();
                }
            }
        }
    }

    fn connect(&self) -> Flooding {
        let stream = Stream::connect(self.address).unwrap();
        stream.tcp().set_nonblocking(true).unwrap();
        Flooding { stream, sent: 0 }
    }

    /// Waits until some session can send or read, but not for long.
    fn wait(&self, all: &[Flooding]) {
        let mut ready: Vec<PollFd<'_>> = all
            .iter()
            .map(|session| {
                let flags = if session.sent < self.bytes.len() {
                    PollFlags::IN | PollFlags::OUT
                } else {
                    PollFlags::IN
                };
                PollFd::new(session.stream.tcp(), flags)
            })
            .collect();
        let glance = Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        let _ = poll(&mut ready, Some(&glance));
    }

    /// Sends and reads what is possible at once; `Err` when the connection has ended.
    fn step(&self, session: &mut Flooding, chunk: &mut [u8]) -> io::Result<()> {
        if let Some(sent) = at_once(session.stream.write(&self.bytes[session.sent..]))? {
            session.sent += sent;
            self.shared.sent.fetch_add(sent as u64, Ordering::Relaxed);
        }
        match at_once(session.stream.read(chunk))? {
            Some(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(_) | None => Ok(()),
        }
    }
}

/// `None`: it would have to wait.
fn at_once(outcome: io::Result<usize>) -> io::Result<Option<usize>> {
    match outcome {
        Ok(count) => Ok(Some(count)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
