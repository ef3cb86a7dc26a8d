//! One session at one server with one token: it connects, subscribes in one command, prints what comes, and begins again
//! when the connection is lost.
//!
//! ```text
//! connect -> subscribe all -> reading <-> ping
//!    ^            | some refused         |
//!    |            v                      |
//!    |       subscribe each -> reading   |
//!    +------------ pause <- lost --------+      final: ended
//! ```
//!
//! It asks for a cursor, and after a loss for the events behind it (PROTOCOL 10). When the server says that it is going away,
//! a second connection is made and subscribed with the cursor before the first is closed; while that fails, the first is
//! read on.
//!
//! A command is all or nothing (PROTOCOL 3). So bindings that a server refuses together are tried one by one, once; after
//! that the good ones alone are subscribed, together.
//!
//! Invariant: the token is in commands and nowhere else; where a server repeats it, it is masked.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustls::ClientConfig;
use serde_json::{Value, json};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::Utf8Bytes;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Error, Message, WebSocket};

use super::backoff::Backoff;
use super::connect::{Stream, connect};
use super::farewell::Farewell;
use super::lines::{self, Form, Frame, cut};
use super::liveness::Liveness;
use super::position::{Position, Side};
use super::report::{Over, Report, Reporter, seconds};
use super::target::{Target, Token};
use super::trouble::{Fate, Trouble};
use crate::limits::{SUB_LEFT_BEHIND_MAX, SUB_OVERLAP, SUB_PAUSE_MAX};
use crate::routing::families::nearest_binding;

/// How long a read waits while two connections are read in turns.
const BOTH_WAIT: Duration = Duration::from_millis(5);

/// The request id of pings, by which their replies are known.
const PING: &str = "ping";

/// The error for a cursor that the server does not understand.
const INVALID_RESUME: &str = "invalid resume";

/// A token that is shorter is no secret, and may be in any text.
const SECRET_BYTES_MIN: usize = 6;

/// Bindings that are tried one by one without a pause; the server's rate limit allows 100 commands at once.
const TRIES_AT_ONCE_MAX: usize = 80;

/// The pause before each further one.
const TRY_PAUSE: Duration = Duration::from_millis(200);

/// What a session is to do.
pub(super) struct Plan {
    pub(super) target: Target,
    pub(super) token: Token,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) origin: Option<String>,
    /// 32 hex characters or `*`; `None`: the token's own.
    pub(super) account: Option<String>,
    /// At least one.
    pub(super) bindings: Vec<String>,
    pub(super) name: String,
    pub(super) form: Form,
    pub(super) reconnects: bool,
    /// Whether it asks for what it has missed.
    pub(super) resumes: bool,
}

/// A session on its thread.
pub(super) struct Session {
    plan: Plan,
    reporter: Reporter,
    farewell: Arc<Farewell>,
    backoff: Backoff,
    /// When the server was last heard before the connection was lost; `None` before the first subscribe.
    lost_at: Option<SystemTime>,
    position: Position,
}

/// Whether a connection takes over from another, or is to be left for another.
enum Moving {
    /// The server has not said that it is going away, or the session does not follow.
    Stays,
    /// A second connection is to be made then.
    At(Instant),
    /// The connection is subscribing, or gets what was missed. This is the first, which is not read meanwhile.
    Away(Box<Connection>),
    /// The connection could not resume where this one, the first, stands: both are read until then.
    Both {
        first: Box<Connection>,
        until: Instant,
    },
}

/// Why a connection is left.
enum Left {
    Trouble(Trouble),
    Over(Over),
}

impl From<Trouble> for Left {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl From<Over> for Left {
    fn from(over: Over) -> Self {
        Self::Over(over)
    }
}

/// What a connection waits for.
enum Phase {
    /// The reply to a subscribe for all bindings.
    All,
    /// The replies to one for each binding; those before `index` have theirs.
    Each { index: usize, good: Vec<String> },
    /// Nothing but events.
    Subscribed { since: Instant },
}

/// A connection that stands.
struct Connection {
    websocket: WebSocket<Stream>,
    phase: Phase,
    liveness: Liveness,
    /// When the last frame came.
    heard_at: SystemTime,
    /// `data.resume` of its subscribes.
    resume: Value,
    moving: Moving,
}

impl Session {
    pub(super) fn new(plan: Plan, reporter: Reporter, farewell: Arc<Farewell>) -> Self {
        Self {
            plan,
            reporter,
            farewell,
            backoff: Backoff::default(),
            lost_at: None,
            position: Position::default(),
        }
    }

    /// Until trying again is of no use, or the printing thread has ended.
    pub(super) fn run(mut self) {
        if let Err(trouble) = self.live() {
            let text = self.described(&trouble);
            // Nobody may be there any more to tell.
            let _over = self
                .reporter
                .problem(&text)
                .and_then(|()| self.reporter.send(Report::Ended));
        }
    }

    fn live(&mut self) -> Result<(), Trouble> {
        loop {
            let trouble = match self.connect_and_read() {
                Left::Over(Over) => return Ok(()),
                Left::Trouble(trouble) => trouble,
            };
            let fate = trouble.fate(self.lost_at.is_some());
            let least = match fate {
                Fate::After(pause) => pause,
                Fate::Again => Duration::ZERO,
                Fate::Final => return Err(trouble),
            };
            if !self.plan.reconnects {
                return Err(trouble);
            }
            let pause = least + self.backoff.next(random());
            let text = format!(
                "{}; next try in {}",
                self.described(&trouble),
                seconds(pause)
            );
            if self.reporter.problem(&text).is_err() {
                return Ok(());
            }
            thread::sleep(pause);
        }
    }

    /// One connection, from its first byte to its last.
    fn connect_and_read(&mut self) -> Left {
        let farewell = self.farewell.clone();
        let mut connection = match self.open() {
            Ok(connection) => connection,
            Err(trouble) => return trouble.into(),
        };
        let _standing = farewell.enter();
        let ended = self
            .subscribe(&mut connection, &self.plan.bindings)
            .map_err(Left::from)
            .and_then(|()| self.read(&mut connection));
        let is_replaying = self.position.is_replaying();
        self.position.end_connection();
        if let Phase::Subscribed { since } = connection.phase {
            // What a replay that was cut short still had to bring was missed before.
            if !is_replaying || self.lost_at.is_none() {
                self.lost_at = Some(connection.heard_at);
            }
            // A server that ends each session soon is not to be hammered.
            if since.elapsed() >= SUB_PAUSE_MAX {
                self.backoff.reset();
            }
        }
        let left = match ended {
            Ok(never) => match never {},
            Err(left) => left,
        };
        if matches!(left, Left::Over(Over)) {
            say_goodbye(&mut connection);
            if let Moving::Away(mut first) | Moving::Both { mut first, .. } = connection.moving {
                say_goodbye(&mut first);
            }
        }
        left
    }

    /// A connection that asks for the events behind the last cursor, or for a cursor.
    fn open(&self) -> Result<Connection, Trouble> {
        let plan = &self.plan;
        let websocket = connect(&plan.target, plan.origin.as_deref(), &plan.tls)?;
        let resume = match self.position.cursor() {
            _ if !plan.resumes => Value::Null,
            None => true.into(),
            Some(cursor) => cursor.into(),
        };
        Ok(Connection {
            websocket,
            phase: Phase::All,
            liveness: Liveness::new(Instant::now()),
            heard_at: SystemTime::now(),
            resume,
            moving: Moving::Stays,
        })
    }

    /// Takes what comes, until the connection ends.
    fn read(&mut self, connection: &mut Connection) -> Result<std::convert::Infallible, Left> {
        loop {
            match self.read_once(connection) {
                Ok(()) => {}
                Err(Left::Over(over)) => return Err(over.into()),
                Err(Left::Trouble(trouble)) => self.stay(connection, trouble)?,
            }
            self.read_first(connection)?;
            if self.farewell.is_over() {
                return Err(Over.into());
            }
            if let Moving::At(at) = connection.moving
                && Instant::now() >= at
            {
                self.begin_to_move(connection)?;
            }
        }
    }

    /// Takes one message, if one comes within a tick, and keeps the connection alive.
    fn read_once(&mut self, connection: &mut Connection) -> Result<(), Left> {
        match connection.websocket.read() {
            Ok(message) => {
                connection.liveness.hear(Instant::now());
                connection.heard_at = SystemTime::now();
                match message {
                    Message::Text(text) => self.take(connection, &text)?,
                    Message::Close(frame) => {
                        // The answer to it, which is queued.
                        let _lost = connection.websocket.flush();
                        return Err(frame
                            .map_or_else(
                                || Trouble::Lost("closed by the server".to_owned()),
                                |frame| Trouble::of_close(frame.code.into(), &frame.reason),
                            )
                            .into());
                    }
                    Message::Binary(_)
                    | Message::Ping(_)
                    | Message::Pong(_)
                    | Message::Frame(_) => {}
                }
            }
            Err(error) if is_tick(&error) => {}
            Err(error) => return Err(of_read(&error).into()),
        }
        Ok(Self::keep_alive(connection)?)
    }

    /// Makes a second connection and subscribes there. The first one is read on if that fails.
    fn begin_to_move(&mut self, connection: &mut Connection) -> Result<(), Over> {
        let second = self.open().and_then(|mut second| {
            self.subscribe(&mut second, &self.plan.bindings)?;
            Ok(second)
        });
        match second {
            Ok(second) => {
                self.lost_at = Some(connection.heard_at);
                let first = std::mem::replace(connection, second);
                connection.moving = Moving::Away(Box::new(first));
                self.position.begin_both();
                Ok(())
            }
            Err(trouble) => self.move_later(connection, &trouble),
        }
    }

    /// The connection has come to nothing: back to the one that it was to take over from.
    ///
    /// # Errors
    /// There is none.
    fn stay(&mut self, connection: &mut Connection, trouble: Trouble) -> Result<(), Left> {
        let moving = std::mem::replace(&mut connection.moving, Moving::Stays);
        let (Moving::Away(first) | Moving::Both { first, .. }) = moving else {
            return Err(trouble.into());
        };
        *connection = *first;
        connection.websocket.get_ref().set_wait(None);
        self.position.end_replay();
        Ok(self.move_later(connection, &trouble)?)
    }

    /// The connection is subscribed and has resumed nothing: what the first has and will have is read beside it for a while.
    fn begin_both(&mut self, connection: &mut Connection) -> Result<(), Over> {
        let moving = std::mem::replace(&mut connection.moving, Moving::Stays);
        let Moving::Away(first) = moving else {
            connection.moving = moving;
            return Ok(());
        };
        for one in [&first.websocket, &connection.websocket] {
            one.get_ref().set_wait(Some(BOTH_WAIT));
        }
        connection.moving = Moving::Both {
            first,
            until: Instant::now() + SUB_OVERLAP,
        };
        let time = seconds(SUB_OVERLAP);
        self.reporter
            .told(&format!("both sessions are read for {time}"))
    }

    /// Takes a message of the first connection, if both are read, and closes it when it is time.
    fn read_first(&mut self, connection: &mut Connection) -> Result<(), Left> {
        let moving = std::mem::replace(&mut connection.moving, Moving::Stays);
        let Moving::Both { mut first, until } = moving else {
            connection.moving = moving;
            return Ok(());
        };
        let is_lost = match first.websocket.read() {
            Ok(Message::Text(text)) => {
                first.heard_at = SystemTime::now();
                match Frame::read(&text) {
                    Some(frame) if frame.action == "event" => {
                        let cursor = frame.cursor.as_deref();
                        if cursor.is_none_or(|cursor| self.position.take_beside(cursor)) {
                            self.tell_event(first.heard_at, &text, &frame)?;
                        }
                    }
                    _ => {}
                }
                false
            }
            Ok(Message::Close(_)) => true,
            Ok(_) => false,
            Err(error) => !is_tick(&error),
        };
        if !is_lost && Instant::now() < until {
            connection.moving = Moving::Both { first, until };
            return Ok(());
        }
        connection.websocket.get_ref().set_wait(None);
        let twice = self.position.end_both();
        if is_lost {
            self.lost_at = Some(first.heard_at);
            return Ok(self.tell_gap(connection.heard_at, false)?);
        }
        take_leave(*first);
        let told = format!("moved: {twice} events came on both sessions and were told once");
        Ok(self.reporter.told(&told)?)
    }

    fn move_later(&mut self, connection: &mut Connection, trouble: &Trouble) -> Result<(), Over> {
        let pause = self.backoff.next(random());
        connection.moving = Moving::At(Instant::now() + pause);
        let text = self.described(trouble);
        let pause = seconds(pause);
        let text = format!("cannot move yet: {text}; next try in {pause}");
        self.reporter.problem(&text)
    }

    /// Gives up what does not answer, and asks whether the server is there.
    fn keep_alive(connection: &mut Connection) -> Result<(), Trouble> {
        if connection.liveness.check(Instant::now())? {
            send(connection, &json!({"action": "ping", "request_id": PING}))?;
        }
        Ok(())
    }

    fn subscribe(&self, connection: &mut Connection, bindings: &[String]) -> Result<(), Trouble> {
        let mut data = json!({"bindings": bindings, "name": self.plan.name});
        if let Some(account) = &self.plan.account {
            data["account_id"] = account.as_str().into();
        }
        if !connection.resume.is_null() {
            data["resume"] = connection.resume.clone();
        }
        connection.liveness.ask(Instant::now());
        let token = &self.plan.token.0;
        let command = json!({"action": "subscribe", "auth_token": token, "data": data});
        send(connection, &command)
    }

    /// Takes a frame.
    fn take(&mut self, connection: &mut Connection, text: &str) -> Result<(), Left> {
        let Some(frame) = Frame::read(text) else {
            let text = "the server sent a frame that is none of the protocol's";
            return Ok(self.reporter.problem(text)?);
        };
        match &*frame.action {
            "event" => {
                let side = match connection.moving {
                    Moving::Stays | Moving::At(_) => Side::First,
                    Moving::Away(_) | Moving::Both { .. } => Side::Second,
                };
                let is_new = frame
                    .cursor
                    .as_deref()
                    .is_none_or(|cursor| self.position.take(cursor, frame.replayed, side));
                if is_new {
                    self.tell_event(connection.heard_at, text, &frame)?;
                }
            }
            "notice" => self.take_notice(connection, text, &frame)?,
            "reply" if frame.request_id == PING => {
                if let Some(cursor) = frame.resumption().cursor {
                    self.position.stand_at(Some(&cursor));
                }
            }
            "reply" => self.take_reply(connection, &frame)?,
            _ => {}
        }
        Ok(())
    }

    fn tell_event(&self, at: SystemTime, text: &str, frame: &Frame<'_>) -> Result<(), Over> {
        let label = self.reporter.label.as_deref();
        let line = lines::event(self.plan.form, label, text, frame, at);
        self.reporter.send(Report::Event(line))
    }

    fn take_notice(
        &mut self,
        connection: &mut Connection,
        text: &str,
        frame: &Frame<'_>,
    ) -> Result<(), Over> {
        let told = self.masked(&lines::notice(frame));
        let data = frame.resumption();
        let is_of_resume = frame.name == "gap" && data.reason.as_deref() == Some("resume");
        // What the second connection of two does not have, the first has.
        let is_gap_filled =
            is_of_resume && matches!(connection.moving, Moving::Away(_) | Moving::Both { .. });
        if self.plan.form == Form::Json && !is_gap_filled {
            let line = lines::as_json(self.reporter.label.as_deref(), text);
            self.reporter.send(Report::Notice(line))?;
        }
        match &*frame.name {
            "gap" if is_of_resume => {
                let why = self.masked(&why_not_resumed(data.why.as_deref()));
                if is_gap_filled {
                    self.position.end_replay();
                    self.reporter.told(&format!("not resumed: {why}"))?;
                    self.begin_both(connection)
                } else if self.position.is_replaying() {
                    self.position.end_replay();
                    let gap = self.gap_until(connection.heard_at);
                    self.reporter.gap(&format!("{gap}: {why}"))
                } else {
                    // The reply has told the gap.
                    self.reporter.told(&format!("not resumed: {why}"))
                }
            }
            "gap" => self.reporter.gap(&told),
            "resumed" => {
                let doubles = self.position.end_replay();
                match std::mem::replace(&mut connection.moving, Moving::Stays) {
                    Moving::Away(first) => {
                        // What it still brings has come here, or comes.
                        take_leave(*first);
                        self.position.end_both();
                    }
                    moving => connection.moving = moving,
                }
                let events = data.events.unwrap_or_default();
                self.reporter.told(&resumed_with(events, doubles))
            }
            "going_away" if self.plan.resumes && self.position.cursor().is_some() => {
                let within = Duration::from_millis(data.within_ms.unwrap_or_default());
                if matches!(connection.moving, Moving::Stays) {
                    let pause = self.backoff.next(random()).min(within);
                    connection.moving = Moving::At(Instant::now() + pause);
                }
                let within = seconds(within);
                let text = format!("the server goes away in {within}: moving");
                self.reporter.told(&text)
            }
            _ => self.reporter.told(&told),
        }
    }

    /// Events that may be missing, until this moment.
    fn gap_until(&self, to: SystemTime) -> String {
        let Some(from) = self.lost_at else {
            return "gap: events may be missing".to_owned();
        };
        let length = to.duration_since(from).unwrap_or_default();
        format!(
            "gap: events from {} to {} ({}) may be missing",
            lines::time_of_day(from),
            lines::time_of_day(to),
            seconds(length)
        )
    }

    fn take_reply(&mut self, connection: &mut Connection, frame: &Frame<'_>) -> Result<(), Left> {
        let errors = frame.errors();
        let trouble = match &*frame.status {
            "success" => None,
            _ => Some(errors.as_slice()),
        };
        let told = frame.resumption();
        if trouble.is_none() {
            // By the cursor that it came with.
            if self.lost_at.is_some() {
                self.position.begin_again(told.resumed == Some(true));
            }
            self.position.stand_at(told.cursor.as_deref());
        }
        match (&mut connection.phase, trouble) {
            (Phase::Subscribed { .. }, None) => {}
            (Phase::Subscribed { .. }, Some(errors)) => {
                let text = self.masked(&cut(&errors.join("; ")));
                self.reporter.problem(&text)?;
                // The ping of a token that is not good any more.
                if let Some(trouble @ Trouble::Token(_)) = Trouble::of_reply(errors) {
                    return Err(trouble.into());
                }
            }
            (Phase::All, None) => self.settle_subscribed(connection, told.resumed)?,
            (Phase::All, Some(errors))
                if connection.resume.is_string() && errors.contains(&INVALID_RESUME.to_owned()) =>
            {
                self.position.stand_at(None);
                connection.resume = true.into();
                self.subscribe(connection, &self.plan.bindings)?;
            }
            (Phase::All, Some(errors)) => {
                if let Some(trouble) = Trouble::of_reply(errors) {
                    return Err(trouble.into());
                }
                if let [binding] = &self.plan.bindings[..] {
                    self.tell_refused(binding, errors)?;
                    return Err(none_left().into());
                }
                connection.phase = Phase::Each {
                    index: 0,
                    good: Vec::new(),
                };
                self.subscribe(connection, &self.plan.bindings[..1])?;
            }
            (Phase::Each { index, good }, trouble) => {
                let binding = &self.plan.bindings[*index];
                match trouble {
                    None => good.push(binding.clone()),
                    Some(errors) => {
                        if let Some(trouble) = Trouble::of_reply(errors) {
                            return Err(trouble.into());
                        }
                        self.tell_refused(binding, errors)?;
                    }
                }
                *index += 1;
                let index = *index;
                if let Some(next) = self.plan.bindings.get(index..=index) {
                    if index >= TRIES_AT_ONCE_MAX {
                        thread::sleep(TRY_PAUSE);
                    }
                    self.subscribe(connection, next)?;
                } else if good.is_empty() {
                    return Err(none_left().into());
                } else {
                    self.plan.bindings = std::mem::take(good);
                    self.settle_subscribed(connection, told.resumed)?;
                }
            }
        }
        Ok(())
    }

    /// The bindings of the plan are in force. `resumed`: whether what was missed comes now; `None`: the server knows no
    /// cursor, or was given none.
    fn settle_subscribed(
        &mut self,
        connection: &mut Connection,
        resumed: Option<bool>,
    ) -> Result<(), Over> {
        let now = Instant::now();
        connection.phase = Phase::Subscribed { since: now };
        connection.liveness.settle(now);
        let again = if self.lost_at.is_some() { " again" } else { "" };
        let bindings = cut(&self.plan.bindings.join(" "));
        self.reporter
            .told(&format!("subscribed{again}: {bindings}"))?;
        if resumed == Some(true) {
            return Ok(());
        }
        if let Moving::Away(_) = connection.moving {
            return self.begin_both(connection);
        }
        self.tell_gap(connection.heard_at, resumed.is_some())
    }

    /// Tells that events may be missing from the time of the loss until `to`, unless nothing was lost. `has_notice`: the
    /// server tells so, too.
    fn tell_gap(&self, to: SystemTime, has_notice: bool) -> Result<(), Over> {
        let Some(from) = self.lost_at else {
            return Ok(());
        };
        if self.plan.form == Form::Json && !has_notice {
            let notice = lines::gap_notice(from, to);
            let line = lines::as_json(self.reporter.label.as_deref(), &notice);
            self.reporter.send(Report::Notice(line))?;
        }
        self.reporter.gap(&self.gap_until(to))
    }

    fn tell_refused(&self, binding: &str, errors: &[String]) -> Result<(), Over> {
        let meant = nearest_binding(binding)
            .map(|meant| format!("; did you mean {}?", cut(&meant)))
            .unwrap_or_default();
        let why = cut(&errors.join("; "));
        let text = format!("refused: {}: {why}{meant}", cut(binding));
        self.reporter.problem(&self.masked(&text))
    }

    /// Says of what server `trouble` is, unless the session's label does.
    fn described(&self, trouble: &Trouble) -> String {
        let is_of_server = match trouble {
            Trouble::Unreachable(_) | Trouble::Refused { .. } | Trouble::Lost(_) => true,
            Trouble::Token(_) | Trouble::Bindings(_) | Trouble::Unavailable(_) => false,
        };
        if is_of_server && self.reporter.label.is_none() {
            self.masked(&format!("{}: {trouble}", self.plan.target.name()))
        } else {
            self.masked(&trouble.to_string())
        }
    }

    fn masked(&self, text: &str) -> String {
        if self.plan.token.0.len() < SECRET_BYTES_MIN {
            return text.to_owned();
        }
        text.replace(&self.plan.token.0, "***")
    }
}

/// Closes a connection as websockets are.
fn say_goodbye(connection: &mut Connection) {
    let frame = CloseFrame {
        code: CloseCode::Normal,
        reason: Utf8Bytes::default(),
    };
    let _lost = connection.websocket.close(Some(frame));
    let _lost = connection.websocket.flush();
}

/// Closes a connection that another has taken over from, and leaves out what it still brings.
fn take_leave(mut first: Connection) {
    say_goodbye(&mut first);
    for _ in 0..SUB_LEFT_BEHIND_MAX {
        if first.websocket.read().is_err() {
            break;
        }
    }
}

/// A replay that is over, for people. `doubles`: events of it that were had before.
fn resumed_with(events: u64, doubles: u64) -> String {
    let events = match events {
        0 => "no event was missed".to_owned(),
        1 => "1 event that was missed has come".to_owned(),
        events => format!("{events} events that were missed have come"),
    };
    match doubles {
        0 => format!("resumed: {events}"),
        doubles => format!("resumed: {events}, {doubles} of them again and left out"),
    }
}

/// What `data.why` of the notice means, for people.
fn why_not_resumed(why: Option<&str>) -> String {
    match why {
        Some("expired") => "the server does not keep events for so long".to_owned(),
        Some("unknown") => "the server does not know what came since then".to_owned(),
        Some("too_many") => "more events came than the server replays".to_owned(),
        Some("outage") => "the server's source of events was away".to_owned(),
        Some(other) => cut(other),
        None => "the server does not say why".to_owned(),
    }
}

fn none_left() -> Trouble {
    Trouble::Bindings("nothing is subscribed".to_owned())
}

fn send(connection: &mut Connection, command: &Value) -> Result<(), Trouble> {
    connection
        .websocket
        .send(Message::text(command.to_string()))
        .map_err(|error| of_read(&error))
}

/// Whether nothing came within a read's wait.
fn is_tick(error: &Error) -> bool {
    let waits = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
    matches!(error, Error::Io(error) if waits.contains(&error.kind())
        || error.kind() == io::ErrorKind::Interrupted)
}

fn of_read(error: &Error) -> Trouble {
    let text = match error {
        Error::ConnectionClosed | Error::AlreadyClosed => "closed by the server".to_owned(),
        Error::Io(error) => cut(&format!("the connection is lost: {error}")),
        error => cut(&format!("the connection is lost: {error}")),
    };
    Trouble::Lost(text)
}

/// For the jitter. Without the kernel's random numbers there is the longest pause.
fn random() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX)
}
