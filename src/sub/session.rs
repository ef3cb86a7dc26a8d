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
use super::report::{Over, Report, Reporter, seconds};
use super::target::{Target, Token};
use super::trouble::{Fate, Trouble};
use crate::limits::SUB_PAUSE_MAX;
use crate::routing::families::nearest_binding;

/// The request id of pings, by which their replies are known.
const PING: &str = "ping";

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
}

/// A session on its thread.
pub(super) struct Session {
    plan: Plan,
    reporter: Reporter,
    farewell: Arc<Farewell>,
    backoff: Backoff,
    /// When the server was last heard before the connection was lost; `None` before the first subscribe.
    lost_at: Option<SystemTime>,
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
}

impl Session {
    pub(super) fn new(plan: Plan, reporter: Reporter, farewell: Arc<Farewell>) -> Self {
        Self {
            plan,
            reporter,
            farewell,
            backoff: Backoff::default(),
            lost_at: None,
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
        let plan = &self.plan;
        let websocket = match connect(&plan.target, plan.origin.as_deref(), &plan.tls) {
            Ok(websocket) => websocket,
            Err(trouble) => return trouble.into(),
        };
        let farewell = self.farewell.clone();
        let _standing = farewell.enter();
        let mut connection = Connection {
            websocket,
            phase: Phase::All,
            liveness: Liveness::new(Instant::now()),
            heard_at: SystemTime::now(),
        };
        let ended = self
            .subscribe(&mut connection, &self.plan.bindings)
            .map_err(Left::from)
            .and_then(|()| self.read(&mut connection));
        if let Phase::Subscribed { since } = connection.phase {
            self.lost_at = Some(connection.heard_at);
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
            let frame = CloseFrame {
                code: CloseCode::Normal,
                reason: Utf8Bytes::default(),
            };
            let _lost = connection.websocket.close(Some(frame));
            let _lost = connection.websocket.flush();
        }
        left
    }

    /// Takes what comes, until the connection ends.
    fn read(&mut self, connection: &mut Connection) -> Result<std::convert::Infallible, Left> {
        loop {
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
            if self.farewell.is_over() {
                return Err(Over.into());
            }
            Self::keep_alive(connection)?;
        }
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
                let label = self.reporter.label.as_deref();
                let at = connection.heard_at;
                let line = lines::event(self.plan.form, label, text, &frame, at);
                self.reporter.send(Report::Event(line))?;
            }
            "notice" => self.take_notice(text, &frame)?,
            "reply" if frame.request_id == PING => {}
            "reply" => self.take_reply(connection, &frame)?,
            _ => {}
        }
        Ok(())
    }

    fn take_notice(&self, text: &str, frame: &Frame<'_>) -> Result<(), Over> {
        if self.plan.form == Form::Json {
            let line = lines::as_json(self.reporter.label.as_deref(), text);
            self.reporter.send(Report::Notice(line))?;
        }
        let told = self.masked(&lines::notice(frame));
        if frame.name == "gap" {
            self.reporter.gap(&told)
        } else {
            self.reporter.told(&told)
        }
    }

    fn take_reply(&mut self, connection: &mut Connection, frame: &Frame<'_>) -> Result<(), Left> {
        let errors = frame.errors();
        let trouble = match &*frame.status {
            "success" => None,
            _ => Some(errors.as_slice()),
        };
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
            (Phase::All, None) => self.settle_subscribed(connection)?,
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
                    self.settle_subscribed(connection)?;
                }
            }
        }
        Ok(())
    }

    /// The bindings of the plan are in force.
    fn settle_subscribed(&mut self, connection: &mut Connection) -> Result<(), Over> {
        let now = Instant::now();
        connection.phase = Phase::Subscribed { since: now };
        connection.liveness.settle(now);
        let again = if self.lost_at.is_some() { " again" } else { "" };
        let bindings = cut(&self.plan.bindings.join(" "));
        self.reporter
            .told(&format!("subscribed{again}: {bindings}"))?;
        let Some(from) = self.lost_at else {
            return Ok(());
        };
        let to = connection.heard_at;
        if self.plan.form == Form::Json {
            let notice = lines::gap_notice(from, to);
            let line = lines::as_json(self.reporter.label.as_deref(), &notice);
            self.reporter.send(Report::Notice(line))?;
        }
        let length = to.duration_since(from).unwrap_or_default();
        self.reporter.gap(&format!(
            "gap: events from {} to {} ({}) may be missing",
            lines::time_of_day(from),
            lines::time_of_day(to),
            seconds(length)
        ))
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
