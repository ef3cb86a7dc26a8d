//! The sessions that come and go together: each subscribes to the calls of its account, keeps its last cursor, and counts
//! the events that it gets.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use memchr::memmem;
use mio::net::TcpStream;
use mio::{Events as Polled, Interest, Poll, Token};

use super::events::{Events, NEIGHBOURS};
use shared::frames::{Frames, PONG, TEXT, WholeFrame, masked};
use shared::reader::{KEPT_BYTES_MAX, Reader, Seen};
use shared::socket::{connect, fill, head_length, upgrade_request};

/// Longest wait of one turn: events are due every millisecond.
const TURN: Duration = Duration::from_millis(1);

/// Sessions that may be connecting, upgrading or subscribing at once: all of them come back together, within what the
/// kernel's queue of connections holds.
const UNDER_WAY_MAX: usize = 2_000;

/// Longest wait for all sessions.
const PATIENCE: Duration = Duration::from_secs(120);

/// The first source address, and how many sessions each has. Addresses are new whenever all come: the system looks long for
/// a free port where many are still taken by connections that have ended.
const FIRST_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 32, 0, 1);
const EACH_SOURCE: usize = 2_000;

/// How sessions subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// As ever.
    Plain,
    /// For the cursor of now.
    FromNow,
    /// For what came behind their cursor.
    Behind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Upgrading,
    Subscribing,
    /// The reply has come, and the replay is under way.
    Resuming,
    Live,
}

/// What a session keeps while it is away.
#[derive(Clone, Debug, Default)]
struct Kept {
    cursor: Option<Box<str>>,
    /// Events that have come, ever, and the replayed ones among them.
    events: u32,
    replayed: u32,
}

struct Session {
    stream: TcpStream,
    reader: Reader,
    state: State,
    /// What the socket did not take.
    unsent: Vec<u8>,
}

/// All of them.
pub(super) struct Crowd {
    address: SocketAddr,
    accounts: u32,
    poll: Poll,
    polled: Polled,
    buffer: Vec<u8>,
    kept: Vec<Kept>,
    sessions: Vec<Option<Session>>,
    ask: Ask,
    /// How often all have come before.
    comings: usize,
    under_way: usize,
    live: usize,
}

impl Crowd {
    /// So many sessions of so many accounts, behind those of the neighbours. Nobody is there yet.
    ///
    /// # Errors
    /// The system refuses a poll.
    pub(super) fn new(address: SocketAddr, sessions: u32, accounts: u32) -> io::Result<Self> {
        Ok(Self {
            address,
            accounts,
            poll: Poll::new()?,
            polled: Polled::with_capacity(1024),
            buffer: vec![0; KEPT_BYTES_MAX + (64 << 10)],
            kept: vec![Kept::default(); sessions as usize],
            sessions: (0..sessions).map(|_| None).collect(),
            ask: Ask::Plain,
            comings: 0,
            under_way: 0,
            live: 0,
        })
    }

    /// Lets all come, and returns how long it took until the last was live, with all that it had missed.
    ///
    /// # Errors
    /// Not all come, or one is not resumed.
    pub(super) fn come(&mut self, ask: Ask, events: &mut Events<'_>) -> io::Result<Duration> {
        self.ask = ask;
        let begun = Instant::now();
        let mut next = 0;
        while self.live < self.sessions.len() {
            while next < self.sessions.len() && self.under_way < UNDER_WAY_MAX {
                self.begin(next)?;
                next += 1;
            }
            self.turn(events)?;
            if begun.elapsed() > PATIENCE {
                let message = format!("{} of {} sessions are live", self.live, next);
                return Err(io::Error::other(message));
            }
        }
        self.comings += 1;
        Ok(begun.elapsed())
    }

    /// Reads what comes, for so long.
    ///
    /// # Errors
    /// A session was lost.
    pub(super) fn stay(&mut self, time: Duration, events: &mut Events<'_>) -> io::Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.turn(events)?;
        }
        Ok(())
    }

    /// Cuts all connections.
    pub(super) fn go(&mut self) {
        self.sessions.iter_mut().for_each(|session| *session = None);
        (self.under_way, self.live) = (0, 0);
    }

    /// Events that were replayed, to all.
    pub(super) fn replayed(&self) -> u64 {
        self.kept.iter().map(|kept| u64::from(kept.replayed)).sum()
    }

    /// Forgets what came so far.
    pub(super) fn forget(&mut self) {
        for kept in &mut self.kept {
            (kept.events, kept.replayed) = (0, 0);
        }
    }

    /// How many sessions have had another number of events than their account was sent.
    pub(super) fn wrong(&self, of_account: &[u32]) -> usize {
        let sessions = self.kept.iter().enumerate();
        let wrong = sessions.filter(|(place, kept)| {
            of_account.get(place % self.accounts as usize) != Some(&kept.events)
        });
        wrong.count()
    }

    fn begin(&mut self, place: usize) -> io::Result<()> {
        let before = self.comings * self.sessions.len().div_ceil(EACH_SOURCE);
        let source = u32::from(FIRST_SOURCE) + (before + place / EACH_SOURCE) as u32;
        let mut stream = connect(self.address, Some(source.into()), None)?;
        let interests = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut stream, Token(place), interests)?;
        self.sessions[place] = Some(Session {
            stream,
            reader: Reader::default(),
            state: State::Connecting,
            unsent: Vec::new(),
        });
        self.under_way += 1;
        Ok(())
    }

    fn turn(&mut self, events: &mut Events<'_>) -> io::Result<()> {
        events.tick()?;
        match self.poll.poll(&mut self.polled, Some(TURN)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let ready: Vec<(usize, bool)> = self
            .polled
            .iter()
            .map(|event| (event.token().0, event.is_writable()))
            .collect();
        for (at, (place, is_writable)) in ready.into_iter().enumerate() {
            // The publisher keeps its time while many sockets are ready.
            if at % 64 == 63 {
                events.tick()?;
            }
            self.serve(place, is_writable)
                .map_err(|error| io::Error::other(format!("session {place}: {error}")))?;
        }
        Ok(())
    }

    fn serve(&mut self, place: usize, is_writable: bool) -> io::Result<()> {
        let Some(session) = &mut self.sessions[place] else {
            return Ok(());
        };
        if is_writable {
            if session.state == State::Connecting {
                if let Some(error) = session.stream.take_error()? {
                    return Err(error);
                }
                session.state = State::Upgrading;
                session.send(upgrade_request(self.address, "/", None, None, None).as_bytes())?;
            } else {
                session.send(&[])?;
            }
        }
        if session.state == State::Connecting {
            return Ok(());
        }
        while let Some(filled) = fill(&mut session.stream, &mut session.reader, &mut self.buffer)? {
            let mut bytes = &self.buffer[..filled];
            if session.state == State::Upgrading {
                let Some(head) = head_length(bytes).map_err(io::Error::other)? else {
                    session.reader.stash(bytes);
                    continue;
                };
                session.state = State::Subscribing;
                let account = NEIGHBOURS + 1 + place as u32 % self.accounts;
                let command = subscribe(account, self.ask, self.kept[place].cursor.as_deref());
                session.send(&masked(TEXT, command.as_bytes()))?;
                bytes = &bytes[head..];
            }
            let (kept, ask) = (&mut self.kept[place], self.ask);
            let (mut state, mut problem, mut pongs) = (session.state, None, Vec::new());
            let fed = session.reader.feed(&Frames::Whole, bytes, |seen| {
                let Seen::Whole { kind, payload } = seen else {
                    return;
                };
                match WholeFrame::of(kind) {
                    WholeFrame::Text => match hear(payload, state, ask, kept) {
                        Ok(next) => state = next,
                        Err(complaint) => problem = Some(complaint),
                    },
                    WholeFrame::Ping => pongs.extend(masked(PONG, payload)),
                    WholeFrame::Close => problem = Some("closed by the server".to_owned()),
                    WholeFrame::Pong => {}
                }
            });
            fed.map_err(io::Error::other)?;
            if let Some(problem) = problem {
                return Err(io::Error::other(problem));
            }
            if state == State::Live && session.state != State::Live {
                self.under_way -= 1;
                self.live += 1;
            }
            session.state = state;
            if !pongs.is_empty() {
                session.send(&pongs)?;
            }
        }
        Ok(())
    }
}

impl Session {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.unsent.extend_from_slice(bytes);
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.unsent = Vec::new();
        Ok(())
    }
}

fn subscribe(account: u32, ask: Ask, cursor: Option<&str>) -> String {
    let resume = match (ask, cursor) {
        (Ask::Plain, _) => String::new(),
        (Ask::Behind, Some(cursor)) => format!(r#","resume":"{cursor}""#),
        (Ask::FromNow | Ask::Behind, _) => r#","resume":true"#.to_owned(),
    };
    format!(
        r#"{{"action":"subscribe","auth_token":"load","data":{{"account_id":"{account:032x}","binding":"call.CHANNEL_CREATE.*"{resume}}}}}"#
    )
}

/// Takes a text in; returns where the session stands then.
fn hear(text: &[u8], state: State, ask: Ask, kept: &mut Kept) -> Result<State, String> {
    let has = |needle: &str| memmem::find(text, needle.as_bytes()).is_some();
    let shown = || String::from_utf8_lossy(&text[..text.len().min(300)]).into_owned();
    if let Some(cursor) = cursor_in(text) {
        kept.cursor = Some(cursor.into());
    }
    if text.starts_with(br#"{"action":"event""#) {
        kept.events += 1;
        kept.replayed += u32::from(has(r#","replayed":true"#));
        return Ok(state);
    }
    match state {
        State::Subscribing if !has(r#""status":"success""#) => Err(shown()),
        State::Subscribing if ask == Ask::Behind && has(r#""resumed":true"#) => Ok(State::Resuming),
        State::Subscribing if ask == Ask::Behind => Err(shown()),
        State::Subscribing => Ok(State::Live),
        State::Resuming if has(r#""name":"resumed""#) => Ok(State::Live),
        _ => Err(shown()),
    }
}

/// The last cursor in a text of the server's own making, in front of which an event's body stands.
fn cursor_in(text: &[u8]) -> Option<&str> {
    const NAME: &[u8] = br#""cursor":""#;
    let begin = memmem::rfind(text, NAME)? + NAME.len();
    let length = text[begin..].iter().position(|byte| *byte == b'"')?;
    std::str::from_utf8(&text[begin..begin + length]).ok()
}
