//! Thousands of websocket clients on one thread: connects, upgrades, subscribes, and counts what comes.
//!
//! One read buffer for all sockets and about 64 bytes a session, so that what is measured is the server. Time is
//! read once a read of a socket, not once a frame. Sockets are registered once, edge-triggered. TLS, where it is asked
//! for, has a table of its own beside the sessions, by the same index.
//!
//! Invariants: `behind` is the number of sessions that still owe a promised event; every session that opened is in
//! exactly one of live, lost or still under way; an event counts when its last byte has been read.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::AddAssign;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use serde::{Deserialize, Serialize};
use socket2::SockRef;

use crate::dialect::{Dialect, Heard, Meaning, Stream};
use crate::latencies::Latencies;
use crate::template::Template;
use crate::tls::{Client, Course, Tls};
use shared::frames::{PING, PONG, masked};
use shared::reader::KEPT_BYTES_MAX;
use shared::socket;

/// Sessions of one source address: far from the end of its ports, where finding a free one is slow.
pub(crate) const SESSIONS_PER_SOURCE: usize = 5_000;

/// Read at once from one socket. Above [`KEPT_BYTES_MAX`], because what was kept of a frame is put before it.
const BUFFER_BYTES: usize = KEPT_BYTES_MAX + (256 << 10);

/// Plaintext of one read, and what was kept of a frame before it.
const PLAIN_BYTES: usize = BUFFER_BYTES + KEPT_BYTES_MAX + 16;

/// Complaints of sessions that are told in words; the others are only counted.
const COMPLAINT_KINDS_MAX: usize = 16;

/// The complaint about a server that ends a connection without a close frame.
const CLOSED: &str = "closed by the server";

const WAKE: Token = Token(usize::MAX);

/// What to do; the same for all sessions but for the templates' places.
pub(crate) struct Plan {
    /// Where the server listens.
    pub(crate) address: SocketAddr,
    /// Speak TLS to it.
    pub(crate) tls: Option<Tls>,
    /// Sessions to open.
    pub(crate) sessions: usize,
    /// Sessions of other processes that have the numbers before.
    pub(crate) sessions_before: usize,
    /// New connections a second.
    pub(crate) connect_rate: f64,
    /// Path and query of the upgrade request.
    pub(crate) path: Template,
    /// What the server speaks.
    pub(crate) dialect: Dialect,
    /// The commands, topic filters or subjects of the subscribes after the upgrade; none: the session is live once it
    /// is upgraded.
    pub(crate) subscribes: Vec<Template>,
    /// What every event is to end with; a session that gets another is lost.
    pub(crate) event_end: Option<Template>,
    /// Sent as `Authorization: Bearer` with the upgrade request.
    pub(crate) bearer: Option<Template>,
    /// Take an event's latency from its `Msg-ID`, microseconds since 1970 at the publisher, instead of from
    /// [`Engine::promise`]. An event that a read cuts before it is left out.
    pub(crate) msg_id_latency: bool,
    /// Sessions that may be connecting, upgrading or subscribing at once.
    pub(crate) under_way_max: usize,
    /// Every live session sends a ping this often.
    pub(crate) ping_interval: Option<Duration>,
    /// The ping is a command, where the dialect has one, and no control frame.
    pub(crate) has_ping_command: bool,
    /// To a server on a loopback address the first [`SESSIONS_PER_SOURCE`] sessions come from here, and so on.
    pub(crate) first_source: Ipv4Addr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    /// The handshake of TLS.
    Securing,
    Upgrading,
    /// So many answers are still to come.
    Subscribing(u16),
    Live,
    Lost,
}

struct Session {
    stream: Option<TcpStream>,
    received: Stream,
    phase: Phase,
    /// Events received whole.
    events: u32,
    /// Microseconds from the engine's start to the session's `connect`.
    opened: u32,
}

// With debug assertions mio's streams are longer.
#[cfg(not(debug_assertions))]
const _: () = assert!(size_of::<Session>() <= 64);

/// What all sessions together have seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Sessions whose `connect` was called.
    pub(crate) opened: usize,
    /// Handshakes of TLS that ended well.
    pub(crate) secured: usize,
    /// Those among them that resumed with a ticket.
    pub(crate) resumed: usize,
    /// Sessions upgraded and subscribed so far, the lost among them too.
    pub(crate) became_live: usize,
    /// Sessions refused, reset, or closed by the server, at whatever stage.
    pub(crate) lost: usize,
    /// Event frames, complete.
    pub(crate) events: u64,
    /// Their bytes, headers included.
    pub(crate) event_bytes: u64,
    /// Gap notices: each says that events for one session were lost.
    pub(crate) gaps: u64,
    /// Events that the gap notices number.
    pub(crate) gap_events: u64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.opened += other.opened;
        self.secured += other.secured;
        self.resumed += other.resumed;
        self.became_live += other.became_live;
        self.lost += other.lost;
        self.events += other.events;
        self.event_bytes += other.event_bytes;
        self.gaps += other.gaps;
        self.gap_events += other.gap_events;
    }
}

/// Clients, their poll and their counts.
pub(crate) struct Engine {
    plan: Plan,
    poll: Poll,
    events: Events,
    sessions: Vec<Session>,
    /// Of every session that has begun its handshake; none without TLS.
    clients: Vec<Option<Box<Client>>>,
    buffer: Box<[u8]>,
    /// The plaintext of one read; empty without TLS.
    plain: Box<[u8]>,
    /// Records for one write.
    outgoing: Vec<u8>,
    /// Sessions that are to be opened: all of the plan, none after [`Engine::cut`].
    wanted: usize,
    /// What the events of the session that is read are to end with.
    event_end: String,
    started: Instant,
    /// Counts so far.
    pub(crate) totals: Totals,
    /// From `connect` to the reply of the subscribe, microseconds.
    pub(crate) ready_latency: Latencies,
    /// From the promise (or the `Msg-ID`) to the receipt, microseconds.
    pub(crate) event_latency: Latencies,
    /// From a ping to its pong, microseconds.
    pub(crate) ping_latency: Latencies,
    /// Whether [`Plan::ping_interval`] is heeded now.
    pub(crate) is_pinging: bool,
    next_ping: Instant,
    /// What went wrong, and how often.
    pub(crate) complaints: BTreeMap<String, u64>,
    /// Events promised to each session so far.
    promised: u32,
    behind: usize,
    /// Sessions opened that are neither live nor lost.
    under_way: usize,
    promised_at: Instant,
    /// The `Msg-ID`s of one read.
    published: Vec<u64>,
    /// Time spent with work, not with waiting for some.
    pub(crate) busy: Duration,
}

impl Engine {
    /// Opens nothing yet: [`Engine::turn`] does.
    ///
    /// # Errors
    /// The system refuses a poll.
    pub(crate) fn new(plan: Plan) -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            sessions: Vec::with_capacity(plan.sessions),
            clients: Vec::new(),
            plain: vec![0; if plan.tls.is_some() { PLAIN_BYTES } else { 0 }].into(),
            outgoing: Vec::new(),
            wanted: plan.sessions,
            plan,
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            buffer: vec![0; BUFFER_BYTES].into(),
            event_end: String::new(),
            started: now,
            totals: Totals::default(),
            ready_latency: Latencies::default(),
            event_latency: Latencies::default(),
            ping_latency: Latencies::default(),
            is_pinging: true,
            next_ping: now,
            complaints: BTreeMap::new(),
            promised: 0,
            behind: 0,
            under_way: 0,
            promised_at: now,
            published: Vec::new(),
            busy: Duration::ZERO,
        })
    }

    /// A waker that ends a turn's waiting. At most one an engine.
    ///
    /// # Errors
    /// The system refuses it.
    pub(crate) fn waker(&self) -> io::Result<Waker> {
        Waker::new(self.poll.registry(), WAKE)
    }

    /// Whether every session is live or lost.
    #[must_use]
    pub(crate) fn is_settled(&self) -> bool {
        self.totals.opened == self.wanted && self.under_way == 0
    }

    /// Drops all sessions, whose connections are reset, and opens none until [`Engine::open`]. Linear in the sessions.
    pub(crate) fn cut(&mut self) {
        self.sessions.clear();
        self.clients.clear();
        (self.wanted, self.under_way) = (0, 0);
        (self.promised, self.behind) = (0, 0);
        self.totals = Totals::default();
    }

    /// Opens all sessions of the plan again, after [`Engine::cut`], at most so many at once; times of connects and of
    /// work count from now.
    pub(crate) fn open(&mut self, under_way_max: usize) {
        self.plan.under_way_max = under_way_max;
        self.wanted = self.plan.sessions;
        self.started = Instant::now();
        self.ready_latency.reset();
        self.busy = Duration::ZERO;
    }

    /// Whether sessions opened from now on resume with tickets of earlier ones.
    pub(crate) fn use_tickets(&self, is_on: bool) {
        if let Some(tls) = &self.plan.tls {
            tls.use_tickets(is_on);
        }
    }

    /// Sessions that are live now. Linear in the sessions.
    #[must_use]
    pub(crate) fn live(&self) -> usize {
        self.sessions
            .iter()
            .filter(|session| session.phase == Phase::Live)
            .count()
    }

    /// From now on every session, those opened later too, is to receive `each` more events; their latency counts
    /// from now. Linear in the sessions.
    pub(crate) fn promise(&mut self, each: u32) {
        self.promised += each;
        self.behind = self
            .sessions
            .iter()
            .filter(|session| session.events < self.promised)
            .count();
        self.promised_at = Instant::now();
    }

    /// Whether every session opened so far, the lost ones too, has received what was promised.
    #[must_use]
    pub(crate) fn is_fulfilled(&self) -> bool {
        self.behind == 0
    }

    /// (promised events that did not come, events that came beyond the promised). Linear in the sessions.
    #[must_use]
    pub(crate) fn missing_and_extra(&self) -> (u64, u64) {
        self.sessions
            .iter()
            .fold((0, 0), |(missing, extra), session| {
                let short = self.promised.saturating_sub(session.events);
                (
                    missing + u64::from(short),
                    extra + u64::from(session.events.saturating_sub(self.promised)),
                )
            })
    }

    /// Opens no more sessions, and gives up those that are not subscribed. Linear in the sessions.
    pub(crate) fn give_up(&mut self) {
        self.wanted = self.totals.opened;
        for index in 0..self.sessions.len() {
            if self.sessions[index].phase != Phase::Live {
                self.lose(index, "not subscribed in time".into());
            }
        }
    }

    /// Opens the connections that are due, waits at most `patience` for the sockets, and handles what they have.
    ///
    /// # Errors
    /// The poll failed. What goes wrong with a session is a complaint, not an error.
    pub(crate) fn turn(&mut self, patience: Duration) -> io::Result<()> {
        let began = Instant::now();
        let opened = self.totals.opened;
        let patience = if self.open_due() {
            patience.min(Duration::from_millis(1))
        } else {
            patience
        };
        let patience = self.ping_due().map_or(patience, |due| patience.min(due));
        if self.totals.opened > opened {
            self.busy += began.elapsed();
        }
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        match self.poll.poll(&mut events, Some(patience)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let began = Instant::now();
        for event in &events {
            if event.token() != WAKE {
                self.handle(event.token().0, event.is_writable());
            }
        }
        if !events.is_empty() {
            self.busy += began.elapsed();
        }
        self.events = events;
        Ok(())
    }

    /// Opens what is due and fits under [`Plan::under_way_max`]; says whether time alone lets more be opened. Where
    /// too many are under way, an end of one of these does, and the poll tells it.
    fn open_due(&mut self) -> bool {
        let due = (self.started.elapsed().as_secs_f64() * self.plan.connect_rate) as usize + 1;
        let due = due.min(self.wanted);
        while self.totals.opened < due && self.under_way < self.plan.under_way_max {
            let index = self.sessions.len();
            let opened = micros(self.started.elapsed())
                .try_into()
                .unwrap_or(u32::MAX);
            let (received, events) = (Stream::default(), 0);
            self.sessions.push(Session {
                stream: None,
                received,
                phase: Phase::Connecting,
                events,
                opened,
            });
            self.totals.opened += 1;
            self.under_way += 1;
            self.behind += usize::from(self.promised > 0);
            match self.connect(index) {
                Ok(stream) => self.sessions[index].stream = Some(stream),
                Err(error) => self.lose(index, format!("connect: {error}")),
            }
        }
        self.totals.opened < self.wanted && self.under_way < self.plan.under_way_max
    }

    /// Sends the pings that are due; says how long it is until the next ones are, when there will be any. A ping
    /// carries its own time, so late pongs cost no further ping its turn.
    fn ping_due(&mut self) -> Option<Duration> {
        let interval = self.plan.ping_interval.filter(|_| self.is_pinging)?;
        let now = Instant::now();
        if now >= self.next_ping {
            self.next_ping = now + interval;
            let sent = micros(now.duration_since(self.started));
            let command = self.plan.has_ping_command;
            let command = command.then(|| self.plan.dialect.ping_command(sent));
            let ping = command
                .flatten()
                .unwrap_or_else(|| masked(PING, &sent.to_be_bytes()));
            for index in 0..self.sessions.len() {
                if self.sessions[index].phase == Phase::Live {
                    self.write(index, &ping);
                }
            }
        }
        Some(self.next_ping.saturating_duration_since(now))
    }

    fn connect(&self, index: usize) -> io::Result<TcpStream> {
        let address = self.plan.address;
        let source = matches!(address.ip(), IpAddr::V4(ip) if ip.is_loopback()).then(|| {
            Ipv4Addr::from(u32::from(self.plan.first_source) + (index / SESSIONS_PER_SOURCE) as u32)
        });
        let mut stream = socket::connect(address, source, None)?;
        // A session that ends resets its connection, so no port is held for a minute after a run.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        self.poll.registry().register(
            &mut stream,
            Token(index),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        Ok(stream)
    }

    fn handle(&mut self, index: usize, is_writable: bool) {
        if is_writable && self.sessions[index].phase == Phase::Connecting {
            let error = self.sessions[index]
                .stream
                .as_ref()
                .and_then(|stream| stream.take_error().transpose());
            match error {
                Some(Ok(error) | Err(error)) => {
                    return self.lose(index, format!("connect: {error}"));
                }
                None => match self.plan.tls.as_ref().map(Tls::client) {
                    None => self.upgrade(index),
                    Some(Ok(client)) => {
                        self.clients.resize_with(self.sessions.len(), || None);
                        self.clients[index] = Some(Box::new(client));
                        self.sessions[index].phase = Phase::Securing;
                        self.take_records(index, &mut []);
                    }
                    Some(Err(error)) => self.lose(index, format!("TLS: {error}")),
                },
            }
        }
        self.read(index);
    }

    /// Sends the upgrade request.
    fn upgrade(&mut self, index: usize) {
        let request = self.upgrade_request(self.number(index));
        self.sessions[index].phase = Phase::Upgrading;
        self.write(index, request.as_bytes());
    }

    fn client(&mut self, index: usize) -> Option<&mut Client> {
        self.clients.get_mut(index)?.as_deref_mut()
    }

    /// The number of a session in the templates.
    fn number(&self, index: usize) -> usize {
        self.plan.sessions_before + index + 1
    }

    fn upgrade_request(&self, n: usize) -> String {
        let Plan {
            address,
            path,
            bearer,
            dialect,
            ..
        } = &self.plan;
        let (sub_protocol, extension) = (dialect.sub_protocol(), dialect.extension());
        let bearer = bearer.as_ref().map(|bearer| bearer.fill(n));
        let path = path.fill(n);
        socket::upgrade_request(*address, &path, bearer.as_deref(), sub_protocol, extension)
    }

    /// Reads `index` until it would block, and counts.
    fn read(&mut self, index: usize) {
        let mut buffer = std::mem::take(&mut self.buffer);
        loop {
            let session = &mut self.sessions[index];
            let Some(stream) = session.stream.as_mut() else {
                break;
            };
            let client = self.clients.get_mut(index).and_then(Option::as_mut);
            let is_secured = client.is_some();
            let kept = match client {
                Some(client) => client.records(),
                None => session.received.frames(),
            };
            let filled = match socket::fill(stream, kept, &mut buffer) {
                Ok(Some(filled)) => filled,
                Ok(None) => break,
                Err(error) => {
                    let complaint = match error.kind() {
                        io::ErrorKind::UnexpectedEof => CLOSED.into(),
                        _ => format!("read: {error}"),
                    };
                    self.lose(index, complaint);
                    break;
                }
            };
            if is_secured {
                self.take_records(index, &mut buffer[..filled]);
            } else {
                self.take_bytes(index, &buffer[..filled]);
            }
            // A short read has emptied the socket; what arrives later is a new edge.
            if filled < buffer.len() {
                break;
            }
        }
        self.buffer = buffer;
    }

    /// Takes records of TLS, answers those that want an answer, and takes what is in them.
    fn take_records(&mut self, index: usize, records: &mut [u8]) {
        let mut plain = std::mem::take(&mut self.plain);
        let mut filled = self.sessions[index].received.frames().unstash(&mut plain);
        let mut outgoing = std::mem::take(&mut self.outgoing);
        outgoing.clear();
        let taken = self
            .client(index)
            .map(|client| client.receive(records, &mut plain, &mut filled, &mut outgoing));
        if !outgoing.is_empty() {
            self.send(index, &outgoing);
        }
        self.outgoing = outgoing;
        if self.sessions[index].phase == Phase::Securing
            && let Some(client) = self.client(index).filter(|client| client.is_secured())
        {
            let is_resumed = client.is_resumed();
            self.totals.secured += 1;
            self.totals.resumed += usize::from(is_resumed);
            self.upgrade(index);
        }
        if filled > 0 && self.sessions[index].phase != Phase::Lost {
            self.take_bytes(index, &plain[..filled]);
        }
        self.plain = plain;
        match taken {
            None | Some(Ok(Course::GoesOn)) => {}
            Some(Ok(Course::Ended)) => self.lose(index, CLOSED.into()),
            Some(Err(error)) => self.lose(index, format!("TLS: {error}")),
        }
    }

    /// Takes `bytes` of the websocket, which begin with what was kept of the last ones.
    fn take_bytes(&mut self, index: usize, mut bytes: &[u8]) {
        let session = &mut self.sessions[index];
        if session.phase == Phase::Upgrading {
            match socket::head_length(bytes) {
                Ok(Some(head)) => {
                    bytes = &bytes[head..];
                    self.upgraded(index);
                }
                Ok(None) => {
                    session.received.frames().stash(bytes);
                    bytes = &[];
                }
                Err(complaint) => return self.lose(index, complaint),
            }
        }
        if !bytes.is_empty() {
            self.count(index, bytes);
        }
    }

    fn upgraded(&mut self, index: usize) {
        let Plan {
            dialect,
            subscribes,
            ..
        } = &self.plan;
        let grants = dialect.grants(subscribes.len());
        if grants == 0 {
            return self.live_now(index);
        }
        let n = self.number(index);
        let commands: Vec<_> = subscribes.iter().map(|command| command.fill(n)).collect();
        let opening = dialect.opening(n, &commands);
        self.sessions[index].phase = Phase::Subscribing(grants.try_into().unwrap_or(u16::MAX));
        self.write(index, &opening);
    }

    fn live_now(&mut self, index: usize) {
        let session = &mut self.sessions[index];
        session.phase = Phase::Live;
        self.under_way -= 1;
        self.totals.became_live += 1;
        let since = micros(self.started.elapsed()).saturating_sub(session.opened.into());
        self.ready_latency.record(since, 1);
    }

    /// Counts the frames in `bytes` and answers those that want an answer.
    fn count(&mut self, index: usize, bytes: &[u8]) {
        if let Some(template) = &self.plan.event_end {
            template.fill_into(self.number(index), &mut self.event_end);
        }
        let (event_end, mut has_wrong_end) = (self.event_end.as_bytes(), false);
        let session = &mut self.sessions[index];
        let mut received = std::mem::take(&mut session.received);
        let (mut events, mut event_bytes) = (0_u32, 0);
        let published = &mut self.published;
        let (mut told, mut pongs) = (Vec::new(), Vec::new());
        let wants_msg_id = self.plan.msg_id_latency;
        let fed = received.feed(self.plan.dialect, bytes, |heard| match heard {
            Heard::EventBegins(piece) => {
                let length = piece.bytes.len() + piece.left as usize;
                has_wrong_end |= length < event_end.len() || !piece.agrees_with_end(event_end);
                if wants_msg_id {
                    published.extend(msg_id(piece.bytes));
                }
            }
            Heard::EventGoesOn(piece) => has_wrong_end |= !piece.agrees_with_end(event_end),
            Heard::Event { bytes } => {
                events += 1;
                event_bytes += bytes;
            }
            Heard::Message { kind, payload } => told.push(Told::Message(kind, payload.into())),
            Heard::Ping(payload) => told.push(Told::Ping(payload.into())),
            Heard::Close(payload) => told.push(Told::Close(payload.into())),
            Heard::Pong(payload) => pongs.extend(payload.first_chunk().copied()),
        });
        session.received = received;
        if events > 0 {
            let was_behind = session.events < self.promised;
            session.events += events;
            if was_behind && session.events >= self.promised {
                self.behind -= 1;
            }
            self.totals.events += u64::from(events);
            self.totals.event_bytes += event_bytes;
            if !wants_msg_id {
                let latency = micros(self.promised_at.elapsed());
                self.event_latency.record(latency, events.into());
            }
        }
        if !self.published.is_empty() {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, micros);
            for published in self.published.drain(..) {
                self.event_latency.record(now.saturating_sub(published), 1);
            }
        }
        for sent in pongs {
            self.ponged(u64::from_be_bytes(sent));
        }
        for told in told {
            match told {
                Told::Message(kind, payload) => self.obey(index, kind, &payload),
                Told::Ping(payload) => self.write(index, &masked(PONG, &payload)),
                Told::Close(payload) => {
                    let code = payload
                        .first_chunk()
                        .map_or(1005, |code| u16::from_be_bytes(*code));
                    self.lose(index, format!("closed with {code}"));
                }
            }
        }
        if let Err(error) = fed {
            self.lose(index, error.to_string());
        }
        if has_wrong_end {
            self.lose(
                index,
                "an event that does not end as --event-end says".into(),
            );
        }
    }

    /// A ping sent at `sent` is answered.
    fn ponged(&mut self, sent: u64) {
        let now = micros(self.started.elapsed());
        self.ping_latency.record(now.saturating_sub(sent), 1);
    }

    /// A message that is no event.
    fn obey(&mut self, index: usize, kind: u8, payload: &[u8]) {
        match self.plan.dialect.meaning(kind, payload) {
            Meaning::Nothing => {}
            Meaning::Granted => match &mut self.sessions[index].phase {
                Phase::Subscribing(1) => self.live_now(index),
                Phase::Subscribing(left) => *left -= 1,
                Phase::Connecting
                | Phase::Securing
                | Phase::Upgrading
                | Phase::Live
                | Phase::Lost => {}
            },
            Meaning::Pong { sent } => self.ponged(sent),
            Meaning::Gap { dropped } => {
                self.totals.gaps += 1;
                self.totals.gap_events += dropped;
            }
            Meaning::Answer(bytes) => self.write(index, &bytes),
            Meaning::Refused(complaint) => self.lose(index, complaint),
        }
    }

    /// Commands are small and a socket is fresh, so a socket that does not take one is given up.
    fn write(&mut self, index: usize, bytes: &[u8]) {
        let mut outgoing = std::mem::take(&mut self.outgoing);
        outgoing.clear();
        let client = self.client(index);
        match client.map(|client| client.seal(bytes, &mut outgoing)) {
            None => self.send(index, bytes),
            Some(Ok(())) => self.send(index, &outgoing),
            Some(Err(error)) => self.lose(index, format!("TLS: {error}")),
        }
        self.outgoing = outgoing;
    }

    /// Writes `bytes` as they are.
    fn send(&mut self, index: usize, bytes: &[u8]) {
        let Some(stream) = self.sessions[index].stream.as_mut() else {
            return;
        };
        match stream.write(bytes) {
            Ok(written) if written == bytes.len() => {}
            Ok(_) => self.lose(index, "write: the socket is full".into()),
            Err(error) => self.lose(index, format!("write: {error}")),
        }
    }

    fn lose(&mut self, index: usize, complaint: String) {
        let session = &mut self.sessions[index];
        match session.phase {
            Phase::Lost => return,
            Phase::Live => {}
            Phase::Connecting | Phase::Securing | Phase::Upgrading | Phase::Subscribing(_) => {
                self.under_way -= 1;
            }
        }
        session.phase = Phase::Lost;
        session.stream = None;
        session.received = Stream::default();
        if let Some(client) = self.clients.get_mut(index) {
            *client = None;
        }
        self.totals.lost += 1;
        let has_room =
            self.complaints.len() < COMPLAINT_KINDS_MAX || self.complaints.contains_key(&complaint);
        let kind = if has_room { complaint } else { "other".into() };
        *self.complaints.entry(kind).or_default() += 1;
    }
}

/// A frame that is acted upon once the bytes are read.
enum Told {
    Message(u8, Box<[u8]>),
    Ping(Box<[u8]>),
    Close(Box<[u8]>),
}

/// The number in `"Msg-ID":"1443672757935421"`, wherever it stands.
fn msg_id(payload: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"\"Msg-ID\"";
    let value = &payload[memchr::memmem::find(payload, NAME)? + NAME.len()..];
    let start = value
        .iter()
        .position(|byte| !matches!(byte, b':' | b'"' | b' '))?;
    let digits = &value[start..];
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    use blackhole::protocol::frame::{Frame, Opcode};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ServerConfig, ServerConnection, StreamOwned};
    use std::io::Read;
    use std::net::{TcpListener, TcpStream as StdStream};
    use std::sync::Arc;
    use std::thread::JoinHandle;
    use support::certificates::{Ca, LOCAL};

    /// Longest wait of a test for something that is to happen.
    const PATIENCE: Duration = Duration::from_secs(20);

    const EVENT: &[u8] = br#"{"action":"event","name":"CHANNEL_CREATE","args":{"Msg-ID":"12"}}"#;
    const SUCCESS: &[u8] =
        br#"{"action":"reply","request_id":"0","status":"success","data":{"subscribed":["x"]}}"#;
    const REFUSED: &[u8] =
        br#"{"action":"reply","request_id":"0","status":"error","data":{"errors":["no"]}}"#;
    const GAP: &[u8] =
        br#"{"action":"notice","name":"gap","data":{"reason":"slow_consumer","dropped":12}}"#;

    /// A server that upgrades `sessions` sessions, answers the command of each, a digit, with `script`'s frames byte
    /// by byte, and answers their pings until their client goes.
    fn serve(sessions: usize, script: fn(u8) -> Vec<Frame>) -> (SocketAddr, JoinHandle<()>) {
        serve_over(sessions, script, |stream| stream)
    }

    /// As [`serve`], over what `secure` makes of each connection.
    fn serve_over<S: Read + Write>(
        sessions: usize,
        script: fn(u8) -> Vec<Frame>,
        secure: impl Fn(StdStream) -> S + Clone + Send + 'static,
    ) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let server = std::thread::spawn(move || {
            let serve_next = |_| {
                let (stream, _) = listener.accept().expect("a client");
                stream
                    .set_read_timeout(Some(PATIENCE))
                    .expect("a valid time");
                let secure = secure.clone();
                std::thread::spawn(move || serve_one(secure(stream), script))
            };
            let threads: Vec<_> = (0..sessions).map(serve_next).collect();
            threads
                .into_iter()
                .for_each(|thread| thread.join().expect("no panic"));
        });
        (address, server)
    }

    fn serve_one(mut stream: impl Read + Write, script: fn(u8) -> Vec<Frame>) {
        let mut byte = [0];
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).expect("the request");
            head.push(byte[0]);
        }
        let response = format!(
            "HTTP/1.1 101 X\r\nSec-WebSocket-Accept: {}\r\n\r\n",
            socket::ACCEPT
        );
        stream.write_all(response.as_bytes()).expect("written");
        let mut command = [0; 7];
        stream.read_exact(&mut command).expect("the command");
        for frame in script(command[6] ^ command[2]) {
            for byte in frame.bytes() {
                if stream.write_all(&[*byte]).is_err() {
                    return;
                }
            }
        }
        let mut ping = [0; 14];
        while stream.read_exact(&mut ping).is_ok() {
            let (mask, payload) = (&ping[2..6], &ping[6..]);
            let payload: Vec<u8> = payload
                .iter()
                .zip(mask.iter().cycle())
                .map(|(b, k)| b ^ k)
                .collect();
            if stream
                .write_all(Frame::new(Opcode::Pong, &payload).bytes())
                .is_err()
            {
                return;
            }
        }
    }

    fn text(payload: &[u8]) -> Frame {
        Frame::new(Opcode::Text, payload)
    }

    fn engine(address: SocketAddr, sessions: usize) -> Engine {
        Engine::new(Plan {
            address,
            tls: None,
            sessions,
            sessions_before: 0,
            connect_rate: 1000.0,
            path: Template::new("/", 1, ""),
            dialect: Dialect::Blackhole,
            subscribes: vec![Template::new("{n}", 1, "")],
            event_end: None,
            bearer: None,
            msg_id_latency: false,
            under_way_max: 512,
            ping_interval: None,
            has_ping_command: false,
            first_source: Ipv4Addr::new(127, 0, 1, 1),
        })
        .expect("a poll")
    }

    fn turn_until(engine: &mut Engine, mut is_reached: impl FnMut(&Engine) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_reached(engine) {
            assert!(
                Instant::now() < deadline,
                "{:?} {:?}",
                engine.totals,
                engine.complaints
            );
            engine
                .turn(Duration::from_millis(20))
                .expect("the poll works");
        }
    }

    #[test]
    fn every_event_is_counted_once_however_it_arrives() {
        let (address, server) = serve(3, |_| {
            let mut frames = vec![text(SUCCESS), Frame::new(Opcode::Ping, b"p")];
            frames.extend((0..5).map(|_| text(EVENT)));
            frames
        });
        let mut engine = engine(address, 3);
        engine.promise(5);
        turn_until(&mut engine, |engine| {
            engine.is_settled() && engine.totals.opened == 3
        });
        turn_until(&mut engine, |engine| engine.totals.events == 15);
        assert!(engine.is_fulfilled());
        assert_eq!((engine.totals.became_live, engine.totals.lost), (3, 0));
        assert_eq!(engine.totals.event_bytes, 15 * (EVENT.len() as u64 + 2));
        assert_eq!(engine.missing_and_extra(), (0, 0));
        assert_eq!(
            (engine.event_latency.len(), engine.ready_latency.len()),
            (15, 3)
        );
        engine.promise(1);
        assert!(!engine.is_fulfilled());
        assert_eq!(engine.missing_and_extra(), (3, 0));
        drop(engine);
        server.join().expect("no panic");
    }

    #[test]
    fn a_session_is_live_when_all_its_subscribes_are_granted() {
        let (address, server) = serve(2, |command| match command {
            b'1' => vec![text(SUCCESS), text(SUCCESS)],
            _ => vec![text(SUCCESS), text(EVENT)],
        });
        let mut engine = engine(address, 2);
        engine.plan.subscribes.push(Template::new("{n}", 1, ""));
        turn_until(&mut engine, |engine| {
            engine.totals.became_live == 1 && engine.totals.events == 1
        });
        assert!(!engine.is_settled(), "the second waits for an answer");
        drop(engine);
        server.join().expect("no panic");
    }

    /// rustls's own server with a certificate of a test.
    fn secured() -> impl Fn(StdStream) -> StreamOwned<ServerConnection, StdStream> + Clone + Send {
        let certified = Ca::new().certify(LOCAL, 9);
        let chain = CertificateDer::pem_file_iter(certified.cert()).expect("a file");
        let chain = chain.collect::<Result<_, _>>().expect("certificates");
        let key = PrivateKeyDer::from_pem_file(certified.key()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("they fit");
        config.ticketer = rustls::crypto::ring::Ticketer::new().expect("random bytes");
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let config = Arc::new(config);
        move |stream| {
            let connection = ServerConnection::new(config.clone()).expect("a connection");
            StreamOwned::new(connection, stream)
        }
    }

    #[test]
    fn events_over_tls_are_counted_and_what_was_cut_resumes_only_when_it_is_to() {
        const SESSIONS: usize = 3;
        // The reply, two events byte by byte, and one that is cut into records.
        let script = |_| {
            let large = [EVENT, &[b' '; 40_000]].concat();
            vec![text(SUCCESS), text(EVENT), text(EVENT), text(&large)]
        };
        let (address, server) = serve_over(3 * SESSIONS, script, secured());
        let mut engine = engine(address, SESSIONS);
        engine.plan.tls = Some(Tls::new("127.0.0.1", SESSIONS).expect("a name"));
        engine.plain = vec![0; PLAIN_BYTES].into();
        for (tickets, resumed) in [(false, 0), (false, 0), (true, SESSIONS)] {
            engine.use_tickets(tickets);
            engine.open(512);
            engine.promise(3);
            turn_until(&mut engine, |engine| {
                engine.is_settled() && engine.totals.events == 3 * SESSIONS as u64
            });
            assert_eq!(engine.missing_and_extra(), (0, 0));
            assert_eq!(engine.totals.lost, 0, "{:?}", engine.complaints);
            let Totals {
                secured,
                became_live,
                ..
            } = engine.totals;
            assert_eq!((secured, became_live), (SESSIONS, SESSIONS));
            assert_eq!(engine.totals.resumed, resumed, "tickets: {tickets}");
            engine.cut();
            assert!(engine.is_settled());
            assert_eq!((engine.live(), engine.totals.opened), (0, 0));
        }
        drop(engine);
        server.join().expect("no panic");
    }

    #[test]
    fn a_server_that_speaks_no_tls_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .expect("written");
            // Until the client has gone.
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let mut engine = engine(address, 1);
        engine.plan.tls = Some(Tls::new("localhost", 1).expect("a name"));
        engine.plain = vec![0; PLAIN_BYTES].into();
        turn_until(&mut engine, |engine| engine.totals.lost == 1);
        assert!(engine.is_settled());
        let complaint = engine.complaints.keys().next().expect("one");
        assert!(complaint.starts_with("TLS: "), "{complaint}");
        server.join().expect("no panic");
    }

    #[test]
    fn round_trips_of_pings_are_told_while_they_are_asked_for() {
        let (address, server) = serve(2, |_| vec![text(SUCCESS)]);
        let mut engine = engine(address, 2);
        engine.plan.ping_interval = Some(Duration::from_millis(1));
        engine.is_pinging = false;
        turn_until(&mut engine, Engine::is_settled);
        assert_eq!(engine.ping_latency.len(), 0);
        engine.is_pinging = true;
        turn_until(&mut engine, |engine| engine.ping_latency.len() >= 6);
        let longest = engine.ping_latency.json()["max"].as_u64();
        assert!(
            longest <= Some(micros(engine.started.elapsed())),
            "{longest:?}"
        );
        drop(engine);
        server.join().expect("no panic");
    }

    #[test]
    fn what_is_missing_refused_or_closed_is_told() {
        let (address, server) = serve(4, |command| match command {
            b'1' => vec![text(SUCCESS), text(EVENT), text(EVENT)],
            b'2' => vec![text(REFUSED)],
            b'3' => vec![text(SUCCESS), Frame::close(4408, "slow consumer")],
            _ => vec![text(SUCCESS), text(GAP)],
        });
        let mut engine = engine(address, 4);
        engine.promise(1);
        turn_until(&mut engine, |engine| {
            engine.is_settled()
                && engine.totals.lost == 2
                && engine.totals.gaps == 1
                && engine.totals.events == 2
        });
        let complaints: Vec<_> = engine
            .complaints
            .iter()
            .map(|(text, count)| (&text[..], *count))
            .collect();
        assert_eq!(complaints, [("closed with 4408", 1), ("refused: no", 1)]);
        assert_eq!(
            (
                engine.live(),
                engine.totals.became_live,
                engine.totals.gap_events
            ),
            (2, 3, 12)
        );
        assert!(!engine.is_fulfilled());
        assert_eq!(
            engine.missing_and_extra(),
            (3, 1),
            "one event too many does not hide three missing"
        );
        drop(engine);
        server.join().expect("no panic");
    }

    #[test]
    fn an_event_with_another_end_loses_its_session_however_it_arrives() {
        let (address, server) = serve(4, |command| {
            let end = match command {
                b'3' => b'1',
                own => own,
            };
            let event = |end: &str| text(format!(r#"{{"action":"event",{end}"#).as_bytes());
            let last = match command {
                b'4' => text(br#"{"action":"event"}"#),
                _ => event(&format!(r#""request_id":"id-{}"}}"#, char::from(end))),
            };
            let first = event(&format!(r#""request_id":"id-{}"}}"#, char::from(command)));
            vec![text(SUCCESS), first, last]
        });
        let mut engine = engine(address, 4);
        engine.plan.event_end = Some(Template::new(r#""request_id":"id-{n}"}"#, 1, ""));
        engine.promise(2);
        turn_until(&mut engine, |engine| {
            engine.totals.events == 8 && engine.totals.lost == 2
        });
        let complaints: Vec<_> = engine.complaints.values().copied().collect();
        assert_eq!((complaints, engine.live()), (vec![2], 2));
        drop(engine);
        server.join().expect("no panic");
    }

    #[test]
    fn sessions_that_are_not_subscribed_in_time_are_given_up() {
        let (address, server) = serve(2, |command| match command {
            b'1' => vec![text(SUCCESS)],
            _ => Vec::new(),
        });
        let mut engine = engine(address, 2);
        turn_until(&mut engine, |engine| {
            engine.totals.opened == 2 && engine.totals.became_live == 1
        });
        assert!(!engine.is_settled());
        engine.give_up();
        assert!(engine.is_settled());
        assert_eq!((engine.live(), engine.totals.lost), (1, 1));
        drop(engine);
        server.join().expect("no panic");
    }

    #[test]
    fn a_server_that_is_not_there_is_told() {
        let address = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port");
        let mut engine = engine(address, 2);
        turn_until(&mut engine, Engine::is_settled);
        assert_eq!((engine.totals.lost, engine.totals.became_live), (2, 0));
        assert!(
            engine
                .complaints
                .keys()
                .all(|text| text.starts_with("connect: ")),
            "{:?}",
            engine.complaints
        );
    }

    #[test]
    fn the_time_of_publishing_is_read_from_the_msg_id() {
        for (payload, expected) in [
            (
                &br#"{"args":{"Msg-ID":"1443672757935421","Node":"n"}}"#[..],
                Some(1_443_672_757_935_421),
            ),
            (br#"{"Msg-ID" : "12"}"#, Some(12)),
            (br#"{"Msg-ID":"abc"}"#, None),
            (br#"{"Msg":"1"}"#, None),
        ] {
            assert_eq!(msg_id(payload), expected);
        }
    }
}
