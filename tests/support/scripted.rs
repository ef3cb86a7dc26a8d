//! The whole loop on scripted sockets and a virtual clock, without a poll: what a test that drives
//! [`Reactor::turn`] is made of.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blackhole::auth::Authenticator;
use blackhole::config::{self, Config, Startup};
use blackhole::handoff::{LoopWaker, SourceEnd, ToSource, handoff_bounded};
use blackhole::inquiry::{self, Answering};
use blackhole::reactor::socket::Socket;
use blackhole::reactor::{Reactor, ReactorParts};
use blackhole::routing::amqp_binding::Asked;
use blackhole::routing::families::Families;
use blackhole::session::clock::Now;
use blackhole::session::hub::Hub;
use blackhole::session::limits::SessionLimits;

/// The moment at which the virtual clock starts, in Unix seconds.
const UNIX_START: u64 = 1_700_000_000;

/// The bindings that the source has been asked for since the last call; all other commands are forgotten.
pub fn asked(source: &SourceEnd) -> Vec<Asked> {
    let commands = source.commands.try_iter().flatten();
    commands
        .filter_map(|command| match command {
            ToSource::Bind {
                binding, ticket, ..
            } => Some(Asked { binding, ticket }),
            ToSource::Join { .. } | ToSource::Unbind(_) | ToSource::Stop => None,
        })
        .collect()
}

/// One end of a scripted connection, shared by the socket and the world. Edges are the poll's: raised once for
/// what arrives, lowered when the loop is told.
pub struct Wire {
    pub to_server: VecDeque<u8>,
    pub to_client: Vec<u8>,
    /// Bytes the client's side will still take.
    pub room: usize,
    /// Largest read of one call.
    pub grain: usize,
    pub client_closed: bool,
    pub end_was_read: bool,
    pub is_reset: bool,
    /// Nothing of the client's side answers any more, not even its kernel.
    pub is_unplugged: bool,
    pub server_shut: bool,
    pub edge_readable: bool,
    pub edge_writable: bool,
    pub write_blocked: bool,
    /// The server has read bytes since the world last looked.
    pub was_read: bool,
    /// The client has sent bytes that answer no ping since the world last looked.
    pub was_sent: bool,
    /// Bytes that the server has read and written, ever.
    pub read: u64,
    pub written: u64,
    /// How often the server has asked what was acknowledged.
    pub asked: u64,
}

impl fmt::Debug for Wire {
    /// Without the bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire")
            .field("to_server", &self.to_server.len())
            .field("to_client", &self.to_client.len())
            .field("room", &self.room)
            .field("grain", &self.grain)
            .field("client_closed", &self.client_closed)
            .field("is_reset", &self.is_reset)
            .field("is_unplugged", &self.is_unplugged)
            .field("server_shut", &self.server_shut)
            .field("write_blocked", &self.write_blocked)
            .field("read", &self.read)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

/// The server's end.
#[derive(Debug)]
pub struct Scripted(pub Rc<RefCell<Wire>>);

impl Socket for Scripted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut wire = self.0.borrow_mut();
        if wire.is_reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if wire.to_server.is_empty() {
            wire.end_was_read = wire.client_closed;
            return if wire.client_closed {
                Ok(0)
            } else {
                Err(io::ErrorKind::WouldBlock.into())
            };
        }
        let count = buffer.len().min(wire.to_server.len()).min(wire.grain);
        let (first, second) = wire.to_server.as_slices();
        let (begin, rest) = buffer[..count].split_at_mut(count.min(first.len()));
        begin.copy_from_slice(&first[..begin.len()]);
        rest.copy_from_slice(&second[..rest.len()]);
        wire.to_server.drain(..count);
        wire.was_read = true;
        wire.read += count as u64;
        if !wire.to_server.is_empty() && count < buffer.len() {
            // A short read that leaves bytes: they arrived just after it, which is an edge.
            wire.edge_readable = true;
        }
        Ok(count)
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut wire = self.0.borrow_mut();
        assert!(
            !wire.server_shut,
            "a write after the end of our side of the stream"
        );
        if wire.is_reset {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let all: Vec<u8> = slices
            .iter()
            .flat_map(|slice| slice.iter().copied())
            .collect();
        assert!(!all.is_empty(), "an empty write");
        let count = all.len().min(wire.room);
        wire.write_blocked = count < all.len();
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        wire.room -= count;
        wire.written += count as u64;
        wire.to_client.extend_from_slice(&all[..count]);
        Ok(count)
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        self.0.borrow_mut().server_shut = true;
        Ok(())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn is_peer_answering(&self) -> bool {
        let wire = self.0.borrow();
        !wire.is_reset && !wire.is_unplugged
    }

    fn acknowledged_bytes(&self) -> Option<u64> {
        let mut wire = self.0.borrow_mut();
        wire.asked += 1;
        Some(wire.written)
    }
}

impl Wire {
    /// A connection on which nothing was said. `room`: bytes that the client takes; `grain`: bytes of one read.
    pub fn new(room: usize, grain: usize) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            to_server: VecDeque::new(),
            to_client: Vec::new(),
            room,
            grain,
            client_closed: false,
            end_was_read: false,
            is_reset: false,
            is_unplugged: false,
            server_shut: false,
            edge_readable: false,
            edge_writable: false,
            write_blocked: false,
            was_read: false,
            was_sent: false,
            read: 0,
            written: 0,
            asked: 0,
        }))
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.answer(bytes);
        self.was_sent = true;
    }

    /// Sends what is no frame of the client's own.
    pub fn answer(&mut self, bytes: &[u8]) {
        self.to_server.extend(bytes);
        self.edge_readable = true;
    }

    /// The client's side takes so many bytes more, unless it is unplugged.
    pub fn make_room(&mut self, bytes: usize) {
        if self.is_unplugged {
            return;
        }
        self.room = self.room.saturating_add(bytes);
        self.edge_writable |= std::mem::take(&mut self.write_blocked);
    }
}

/// The moment of a turn.
pub fn now(clock: Duration) -> Now {
    Now {
        clock,
        unix_ms: UNIX_START * 1_000 + clock.as_millis() as u64,
    }
}

/// The configuration that this command line makes.
pub fn config(args: &[&str]) -> Config {
    let line = ["blackhole"].iter().chain(args).map(OsString::from);
    let Ok(Startup::Run(config)) = config::from_args(line) else {
        panic!("valid options")
    };
    config
}

/// A loop without connections and the source's end of its hand-off, which holds `handoff_max` messages.
pub fn reactor(config: &Config, handoff_max: usize, seed: u64) -> (SourceEnd, Reactor<Scripted>) {
    let authenticator = config.authenticator().expect("a valid token file");
    let (source, _, reactor) = reactor_that_asks(config, authenticator, handoff_max, seed);
    (source, reactor)
}

/// As [`reactor`], with this authenticator, whose questions the test answers.
pub fn reactor_that_asks(
    config: &Config,
    authenticator: Authenticator,
    handoff_max: usize,
    seed: u64,
) -> (SourceEnd, Answering, Reactor<Scripted>) {
    let (source, handoff) = handoff_bounded(LoopWaker::new(|| Ok(())), handoff_max);
    let (inquiry, answering) = inquiry::channels(LoopWaker::new(|| Ok(())), Arc::default());
    let families = Families::new(&config.families).expect("valid families");
    let hub = Hub::new(
        SessionLimits::from(config),
        authenticator,
        families,
        now(Duration::ZERO),
        seed,
    );
    let parts = ReactorParts {
        inquiry: Some(inquiry),
        ring: None,
        handoff,
        epoch: Instant::now(),
        connections_max: config.max_connections.unwrap_or(usize::MAX),
        more_metrics: Box::new(|_| ()),
        trim_heap: || (),
    };
    (source, answering, Reactor::new(hub, parts))
}

/// What `world` comes to under each of so many seeds, or under the one that `BLACKHOLE_SEED` names. A failure tells
/// its seed.
pub fn under_seeds<T>(seeds: u64, world: impl Fn(u64) -> T) -> Vec<T> {
    under_these_seeds(0..seeds, world)
}

/// As [`under_seeds`], for these.
pub fn under_these_seeds<T>(seeds: impl Iterator<Item = u64>, world: impl Fn(u64) -> T) -> Vec<T> {
    let seeds = match std::env::var("BLACKHOLE_SEED") {
        Ok(seed) => vec![seed.parse().expect("BLACKHOLE_SEED is a number")],
        Err(_) => seeds.collect(),
    };
    let run = |seed| {
        catch_unwind(AssertUnwindSafe(|| world(seed))).unwrap_or_else(|panic| {
            eprintln!("seed {seed} failed: replay it with BLACKHOLE_SEED={seed}");
            resume_unwind(panic)
        })
    };
    seeds.into_iter().map(run).collect()
}
