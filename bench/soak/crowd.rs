//! The crowd: sessions that come, subscribe, change their minds and leave, each by a script of its own, and by every
//! way to leave that there is, most of them rude. One thread drives them all.
//!
//! Whoever reads checks that all events are of its own account, that every command is answered, and that the server
//! ends nobody who gave it no reason to.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use mio::{Events, Poll, Token};
use serde_json::json;
use slab::Slab;
use socket2::SockRef;

use crate::client::{BUFFER_BYTES, Client, Heard, Message, Reply};
use crate::world::{Kind, SUPERDUPER, World};
use shared::frames::masked;
use shared::socket::upgrade_request;

/// Longest wait for the poll.
const TURN: Duration = Duration::from_millis(5);

/// Longest wait for anything that the server owes: a subscribe may wait for the broker.
const PATIENCE: Duration = Duration::from_secs(45);

/// Source addresses that the crowd comes from: 127.16.0.0 and up.
const FIRST_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 16, 0, 0);
const SOURCES: u32 = 4096;

/// Receive buffer of those who never read, so that the server soon finds their sockets full.
const NARROW_BYTES: usize = 4096;

/// How long they stay.
const DEAF_FOR: Duration = Duration::from_secs(4);

/// Longest pause between two steps of a script.
const PAUSE_MILLIS_MAX: u64 = 1_500;

/// Texts of faults that are kept.
const FAULTS_TOLD: usize = 20;

/// The errors that a command may be answered with while the broker is away, and with a token that does not exist.
const UNAVAILABLE: &str = "event source unavailable";
const NOT_AUTHENTICATED: &str = "failed to authenticate token";

/// A way to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Leave {
    /// A close frame, its echo, the end of the connection.
    CloseFrame,
    /// The end of our stream.
    Fin,
    /// A reset.
    Reset,
    /// A reset while a subscribe waits for its reply.
    WhileWaiting,
    /// Half a frame, and the end of our stream, or a reset.
    MidFrame,
    /// Half a request, and the end of our stream, or a reset.
    MidHandshake,
    /// Nothing said at all.
    Silent,
    /// Never read a byte, under all the events there are; then a reset, unless the server was quicker.
    NeverReading,
    /// A frame that breaks the protocol; the server's close code.
    BadFrame,
    /// A request that is none; the server's refusal.
    BadRequest,
    /// A token that does not exist, in the request or in a command.
    BadToken,
    /// A balancer's check.
    Probe,
}

impl Leave {
    /// Every way, and how many of a hundred go by it.
    const ALL: [(Self, u32); 12] = [
        (Self::CloseFrame, 40),
        (Self::Fin, 10),
        (Self::Reset, 10),
        (Self::WhileWaiting, 7),
        (Self::MidFrame, 7),
        (Self::MidHandshake, 5),
        (Self::Silent, 3),
        (Self::NeverReading, 2),
        (Self::BadFrame, 5),
        (Self::BadRequest, 4),
        (Self::BadToken, 5),
        (Self::Probe, 2),
    ];

    fn pick(rng: &mut Rng) -> Self {
        let mut left = rng.u32(..100);
        for (way, share) in Self::ALL {
            match left.checked_sub(share) {
                Some(rest) => left = rest,
                None => return way,
            }
        }
        Self::CloseFrame
    }

    /// In words.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::CloseFrame => "close frame",
            Self::Fin => "end of stream",
            Self::Reset => "reset",
            Self::WhileWaiting => "reset while a subscribe waits",
            Self::MidFrame => "in the middle of a frame",
            Self::MidHandshake => "in the middle of the handshake",
            Self::Silent => "without a word",
            Self::NeverReading => "without ever reading",
            Self::BadFrame => "after a bad frame",
            Self::BadRequest => "after a bad request",
            Self::BadToken => "after a bad token",
            Self::Probe => "after a balancer's check",
        }
    }
}

/// A step of a script.
#[derive(Debug)]
enum Step {
    Send(Vec<u8>),
    /// Until the connection is upgraded.
    Upgraded,
    /// Until the upgrade is refused with this status.
    Refused(u16),
    /// Until every command is answered.
    Replies,
    /// Until a close frame with this code.
    Close(u16),
    /// Until the server ends the connection.
    End,
    Pause(Duration),
    /// The end of our stream; the server ends its own in answer.
    ShutDown,
    /// A reset.
    Reset,
}

/// What the crowd has seen and done; shared with whoever tells it.
#[derive(Default)]
pub(crate) struct Shared {
    /// Let nobody in, and hurry those who are there.
    pub(crate) is_leaving: AtomicBool,
    /// End.
    pub(crate) is_over: AtomicBool,
    /// Members now.
    pub(crate) members: AtomicUsize,
    /// Connections begun, and sessions upgraded.
    pub(crate) opened: AtomicU64,
    pub(crate) upgraded: AtomicU64,
    /// Events seen.
    pub(crate) events: AtomicU64,
    /// Events of another account.
    pub(crate) foreign: AtomicU64,
    /// Sessions that met what they should not have.
    pub(crate) broken: AtomicU64,
    /// Commands that the broker did not answer in time.
    pub(crate) unavailable: AtomicU64,
    /// How many left by each way.
    pub(crate) left: Mutex<BTreeMap<Leave, u64>>,
    /// The first faults in words.
    pub(crate) faults: Mutex<Vec<String>>,
}

impl Shared {
    fn fault(&self, text: String) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.len() < FAULTS_TOLD {
            faults.push(text);
        }
    }
}

struct Member {
    client: Client,
    way: Leave,
    /// By index; `None`: sees all.
    account: Option<usize>,
    /// The steps to come, the next last.
    script: Vec<Step>,
    /// When the pause is over, or the patience.
    due: Option<Instant>,
    replies: usize,
    is_connected: bool,
    is_upgraded: bool,
    refused: Option<String>,
    close: Option<u16>,
    has_ended: bool,
}

/// The crowd.
pub(crate) struct Crowd {
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    members: Slab<Member>,
    address: SocketAddr,
    world: Arc<World>,
    shared: Arc<Shared>,
    rng: Rng,
}

impl Crowd {
    /// Nobody yet.
    ///
    /// # Errors
    /// The system refuses a poll.
    pub(crate) fn new(
        address: SocketAddr,
        world: Arc<World>,
        shared: Arc<Shared>,
        rng: Rng,
    ) -> io::Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            buffer: vec![0; BUFFER_BYTES],
            members: Slab::new(),
            address,
            world,
            shared,
            rng,
        })
    }

    /// Lets in `rate` members a second until it is over.
    ///
    /// # Errors
    /// The system refuses a poll or a socket.
    pub(crate) fn serve(mut self, rate: f64) -> io::Result<()> {
        let (mut began, mut let_in) = (Instant::now(), 0.0);
        while !self.shared.is_over.load(Ordering::SeqCst) {
            if self.shared.is_leaving.load(Ordering::SeqCst) {
                (began, let_in) = (Instant::now(), 0.0);
            } else {
                // After a stall of ours not all at once.
                let due = (began.elapsed().as_secs_f64() * rate).min(let_in + 100.0);
                while let_in < due {
                    self.let_in()?;
                    let_in += 1.0;
                }
                if let_in + 99.0 < began.elapsed().as_secs_f64() * rate {
                    (began, let_in) = (Instant::now(), 0.0);
                }
            }
            self.turn()?;
            self.shared
                .members
                .store(self.members.len(), Ordering::SeqCst);
        }
        Ok(())
    }

    fn let_in(&mut self) -> io::Result<()> {
        let way = Leave::pick(&mut self.rng);
        let source = Ipv4Addr::from(u32::from(FIRST_SOURCE) + self.rng.u32(1..SOURCES));
        let entry = self.members.vacant_entry();
        let narrow = (way == Leave::NeverReading).then_some(NARROW_BYTES);
        let (registry, token) = (self.poll.registry(), Token(entry.key()));
        let client = Client::connect(self.address, Some(source), narrow, registry, token)?;
        let account =
            (way != Leave::NeverReading).then(|| self.rng.usize(..self.world.accounts.len()));
        let mut writer = Writer {
            address: self.address,
            world: &self.world,
            account,
            rng: &mut self.rng,
            script: Vec::new(),
        };
        writer.write(way);
        let mut script = writer.script;
        script.reverse();
        entry.insert(Member {
            client,
            way,
            account,
            script,
            due: None,
            replies: 0,
            is_connected: false,
            is_upgraded: false,
            refused: None,
            close: None,
            has_ended: false,
        });
        self.shared.opened.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        match self.poll.poll(&mut self.events, Some(TURN)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let mut heard = Vec::new();
        for event in &self.events {
            // What the poll told of a member who has left meanwhile is nothing to the one in its place.
            let Some(member) = self.members.get_mut(event.token().0) else {
                continue;
            };
            let is_deaf = member.way == Leave::NeverReading && member.is_upgraded;
            member
                .client
                .turn(event.is_writable(), is_deaf, &mut self.buffer, &mut heard);
            for heard in heard.drain(..) {
                hear(member, heard, &self.world, &self.shared);
            }
        }
        let is_hurried = self.shared.is_leaving.load(Ordering::SeqCst);
        let now = Instant::now();
        let members: Vec<usize> = self.members.iter().map(|(place, _)| place).collect();
        for place in members {
            let member = &mut self.members[place];
            match go_on(member, now, is_hurried) {
                Progress::Stays => continue,
                Progress::Left => {}
                Progress::Broken(complaint) => {
                    self.shared.broken.fetch_add(1, Ordering::Relaxed);
                    let way = member.way.words();
                    self.shared
                        .fault(format!("one who was to leave {way}: {complaint}"));
                }
            }
            let mut left = self
                .shared
                .left
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *left.entry(member.way).or_default() += 1;
            drop(left);
            self.members.remove(place);
        }
        Ok(())
    }
}

/// Takes in what the server did.
fn hear(member: &mut Member, heard: Heard, world: &World, shared: &Shared) {
    match heard {
        Heard::Connected => {
            member.is_connected = true;
            member.due = None;
        }
        Heard::Upgraded => {
            member.is_upgraded = true;
            shared.upgraded.fetch_add(1, Ordering::Relaxed);
        }
        Heard::Text(Message::Event { numbered, .. }) => {
            shared.events.fetch_add(1, Ordering::Relaxed);
            let account = world.of_lane(numbered.lane).map(|(account, _)| account);
            if member.account.is_some_and(|own| account != Some(own)) {
                shared.foreign.fetch_add(1, Ordering::Relaxed);
                shared.fault(format!("of account {:?}, got {numbered:?}", member.account));
            }
        }
        Heard::Text(Message::Gap(_) | Message::Resumed(_)) => {}
        Heard::Text(Message::Reply(Reply { errors, .. })) => {
            match member.replies.checked_sub(1) {
                Some(left) => member.replies = left,
                None => {
                    shared.broken.fetch_add(1, Ordering::Relaxed);
                    shared.fault("a reply that was not asked for".to_owned());
                }
            }
            let expected = match member.way {
                Leave::BadToken => NOT_AUTHENTICATED,
                _ => UNAVAILABLE,
            };
            if errors == [UNAVAILABLE] {
                shared.unavailable.fetch_add(1, Ordering::Relaxed);
            } else if !errors.is_empty() && errors != [expected] {
                shared.broken.fetch_add(1, Ordering::Relaxed);
                shared.fault(format!("refused: {errors:?}"));
            }
        }
        Heard::Close(code) => member.close = Some(code),
        Heard::Refused(complaint) => member.refused = Some(complaint),
        Heard::Ended(_) => member.has_ended = true,
        Heard::Nonsense(complaint) => {
            shared.broken.fetch_add(1, Ordering::Relaxed);
            shared.fault(complaint);
        }
    }
}

enum Progress {
    Stays,
    Left,
    Broken(String),
}

/// Does the steps that can be done.
fn go_on(member: &mut Member, now: Instant, is_hurried: bool) -> Progress {
    if !member.is_connected && !member.has_ended {
        return if now > *member.due.get_or_insert(now + PATIENCE) {
            Progress::Broken("not connected".into())
        } else {
            Progress::Stays
        };
    }
    loop {
        let Some(step) = member.script.last() else {
            return Progress::Left;
        };
        let is_done = match step {
            Step::Send(_) => {
                if let Some(Step::Send(bytes)) = member.script.pop() {
                    member.replies += usize::from(is_command(&bytes));
                    member.client.send(&bytes);
                }
                member.due = None;
                continue;
            }
            Step::Upgraded => member.is_upgraded,
            Step::Refused(status) => member
                .refused
                .as_ref()
                .is_some_and(|complaint| *complaint == format!("upgrade: status {status}")),
            Step::Replies => member.replies == 0,
            Step::Close(code) => member.close == Some(*code),
            Step::End => member.has_ended,
            Step::Pause(pause) => {
                // The server may have had enough of one who does not read.
                let is_over = now >= *member.due.get_or_insert(now + *pause);
                is_over || is_hurried || (member.way == Leave::NeverReading && member.has_ended)
            }
            Step::ShutDown => {
                // It fails if the server has ended the connection, which the next step finds.
                let _ = member.client.stream.shutdown(Shutdown::Write);
                true
            }
            Step::Reset => {
                let _ = SockRef::from(&member.client.stream).set_linger(Some(Duration::ZERO));
                return Progress::Left;
            }
        };
        if is_done {
            member.script.pop();
            member.due = None;
        } else if member.has_ended {
            let step = format!("{step:?}");
            return Progress::Broken(format!(
                "the connection ended, close code {:?}, refusal {:?}, before the step {step}",
                member.close, member.refused
            ));
        } else if now > *member.due.get_or_insert(now + PATIENCE) {
            return Progress::Broken(format!(
                "waited in vain: {step:?}, {} replies due",
                member.replies
            ));
        } else {
            return Progress::Stays;
        }
    }
}

/// Whether it is a whole text frame: those of the scripts are commands.
fn is_command(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x81)
}

/// Writes a script.
struct Writer<'a> {
    address: SocketAddr,
    world: &'a World,
    account: Option<usize>,
    rng: &'a mut Rng,
    script: Vec<Step>,
}

impl Writer<'_> {
    fn write(&mut self, way: Leave) {
        match way {
            Leave::CloseFrame => {
                self.live();
                self.script
                    .push(Step::Send(masked(0x8, &1000_u16.to_be_bytes())));
                self.script.extend([Step::Close(1000), Step::End]);
            }
            Leave::Fin => {
                self.live();
                self.script.extend([Step::ShutDown, Step::End]);
            }
            Leave::Reset => {
                self.live();
                self.script.push(Step::Reset);
            }
            Leave::WhileWaiting => {
                self.live();
                self.subscribe();
                self.script.push(Step::Reset);
            }
            Leave::MidFrame => {
                self.live();
                let ping = self.ping();
                // Not a command: it never gets to be one.
                let begin = [&[0x01][..], &ping[1..]].concat();
                let cut = self.rng.usize(1..begin.len());
                self.script.push(Step::Send(begin[..cut].to_vec()));
                self.pause();
                self.end_rudely();
            }
            Leave::MidHandshake => {
                let request = upgrade_request(self.address, "/", None, None, None);
                let cut = self.rng.usize(1..request.len());
                self.script
                    .push(Step::Send(request.as_bytes()[..cut].to_vec()));
                self.pause();
                self.end_rudely();
            }
            Leave::Silent => {
                self.pause();
                self.script.push(Step::Reset);
            }
            Leave::NeverReading => {
                self.upgrade(Some(SUPERDUPER));
                let command = json!({"action": "subscribe", "data": {"account_id": "*",
                    "bindings": ["call.*.*", "call.CHANNEL_CREATE.*", "call.CHANNEL_ANSWER.*", "call.CHANNEL_DESTROY.*"]}});
                let command = masked(0x1, command.to_string().as_bytes());
                self.script
                    .extend([Step::Send(command), Step::Pause(DEAF_FOR), Step::Reset]);
            }
            Leave::BadFrame => self.bad_frame(),
            Leave::BadRequest => {
                let (request, status) = match self.rng.u32(..3) {
                    0 => ("\u{1}\u{2}\u{3}\r\n\r\n".to_owned(), 400),
                    1 => ("GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 404),
                    _ => ("PUT / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 405),
                };
                self.refused(&request, status);
            }
            Leave::BadToken => {
                if self.rng.bool() {
                    let request = upgrade_request(self.address, "/", Some("nobody"), None, None);
                    return self.refused(&request, 403);
                }
                self.upgrade(None);
                let command = json!({"action": "ping", "auth_token": "nobody"}).to_string();
                self.script
                    .push(Step::Send(masked(0x1, command.as_bytes())));
                self.script.push(Step::Replies);
                self.end_rudely();
            }
            Leave::Probe => self.refused("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 0),
        }
    }

    /// A request, the refusal with this status (0: whatever the status), and the end.
    fn refused(&mut self, request: &str, status: u16) {
        self.script.push(Step::Send(request.as_bytes().to_vec()));
        if status != 0 {
            self.script.push(Step::Refused(status));
        }
        self.script.push(Step::End);
    }

    fn end_rudely(&mut self) {
        match self.rng.bool() {
            true => self.script.extend([Step::ShutDown, Step::End]),
            false => self.script.push(Step::Reset),
        }
    }

    fn pause(&mut self) {
        let pause = self.rng.u64(..PAUSE_MILLIS_MAX);
        self.script.push(Step::Pause(Duration::from_millis(pause)));
    }

    fn upgrade(&mut self, bearer: Option<&str>) {
        let path = if self.rng.bool() {
            "/"
        } else {
            "/?style=kazoo"
        };
        let request = upgrade_request(self.address, path, bearer, None, None);
        self.script.push(Step::Send(request.into_bytes()));
        self.script.push(Step::Upgraded);
    }

    /// A session's life: it subscribes, listens, changes its mind, and may go on so.
    fn live(&mut self) {
        let bearer = self.account.filter(|_| self.rng.bool());
        let bearer = bearer.map(|account| self.world.accounts[account].token.clone());
        self.upgrade(bearer.as_deref());
        for _ in 0..self.rng.usize(1..4) {
            self.subscribe();
            self.pause();
            if self.rng.bool() {
                let ping = self.ping();
                self.script.push(Step::Send(ping));
                self.script.push(Step::Send(masked(0x9, b"soak")));
            }
            self.script.push(Step::Replies);
            if self.rng.bool() {
                let command = json!({"action": "unsubscribe", "auth_token": self.token()});
                self.script
                    .push(Step::Send(masked(0x1, command.to_string().as_bytes())));
                self.script.push(Step::Replies);
            }
            self.pause();
        }
    }

    fn token(&self) -> &str {
        self.account
            .map_or(SUPERDUPER, |account| &self.world.accounts[account].token)
    }

    fn ping(&mut self) -> Vec<u8> {
        let command = json!({"action": "ping", "auth_token": self.token()});
        masked(0x1, command.to_string().as_bytes())
    }

    /// Sends a subscribe to one to six bindings; most are about something that nobody else asks for, so that AMQP
    /// bindings come and go with it.
    fn subscribe(&mut self) {
        let Some(account) = self.account else { return };
        let mut bindings = Vec::new();
        for _ in 0..self.rng.usize(1..7) {
            let kind = self.rng.choice(Kind::ALL).unwrap_or(Kind::Create);
            bindings.push(match self.rng.u32(..8) {
                0 => kind.binding(),
                1 => kind.binding_of("id"),
                _ => kind.binding_of(&format!("{:x}", self.rng.u32(..))),
            });
        }
        let account_id = &self.world.accounts[account].id;
        let mut command = json!({"action": "subscribe", "auth_token": self.token(),
            "data": {"account_id": account_id, "bindings": bindings}});
        if self.rng.bool() {
            command["request_id"] = json!(format!("{:x}", self.rng.u32(..)));
        }
        if self.rng.bool() {
            command["data"]["name"] = json!("one of the crowd");
            command["data"]["metadata"] = json!({"n": self.rng.u32(..)});
        }
        self.script
            .push(Step::Send(masked(0x1, command.to_string().as_bytes())));
    }

    /// A frame that closes the session, and the code that it closes with.
    fn bad_frame(&mut self) {
        self.live();
        let (bytes, code) = match self.rng.u32(..5) {
            // Not masked.
            0 => (vec![0x01, 0x02, b'{', b'}'], 1002),
            // A reserved bit, and an opcode that does not exist.
            1 => (masked(0x41, b"{}"), 1002),
            2 => (masked(0x3, b"{}"), 1002),
            // No UTF-8. In two fragments, since a whole text is a command.
            3 => (
                [&with_first(0x01, b"\xff\xfe")[..], &with_first(0x80, b"")].concat(),
                1007,
            ),
            // Binary.
            _ => (masked(0x2, b"{}"), 1003),
        };
        self.script.extend([
            Step::Send(bytes),
            Step::Close(code),
            Step::ShutDown,
            Step::End,
        ]);
    }
}

fn with_first(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = masked(0x1, payload);
    frame[0] = first;
    frame
}
