//! A client: its end of a scripted connection, what it sends, and what it knows. What is sent to it is judged in
//! `stream`, how it ends in `ends`.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use blackhole::limits::PONGS_PER_READ_MAX;
use blackhole::session::close::CloseReason;
use blackhole::session::id::ConnId;
use serde_json::{Value, json};

use crate::ends::Seen;
use crate::model::{ACCOUNTS, Asked, BINDINGS, Key, PRESENCE};
use support::scripted::Wire;
use support::wire::{client_frame, client_text};

/// What a client did by its own will that may end its session. Hanging up is seen at its wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    /// Nothing: it expects to stay.
    Nothing,
    /// It sent what is answered with this close.
    Fault(CloseReason),
    /// It sent bytes at random: some fault, an error, or nothing whole.
    Noise,
    /// It began a message, at this moment of the waking clock, and will not finish it.
    Begun(Duration),
    /// It sent a close frame.
    Goodbye,
}

/// A command without a reply yet.
pub(crate) struct Question {
    pub(crate) number: u64,
    pub(crate) request_id: String,
    pub(crate) token: &'static str,
    pub(crate) asked: Asked,
    /// Rights have not changed since it was asked.
    pub(crate) is_certain: bool,
    /// The first turn that could have read it, on the world's clock.
    pub(crate) sent_at: Option<Duration>,
    /// The first turn after which it had been read.
    pub(crate) read_at: Option<Duration>,
}

impl fmt::Debug for Question {
    /// In short: there may be many.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} of {}", self.request_id, self.asked, self.token)?;
        write!(f, " {:?}-{:?}", self.sent_at, self.read_at)
    }
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: ConnId,
    pub(crate) wire: Rc<RefCell<Wire>>,
    /// Of its next commands.
    pub(crate) token: &'static str,
    /// Number and token of the latest command that was run.
    pub(crate) identity: Option<(u64, &'static str)>,
    /// Why and what must end, and the client be told; and what may.
    pub(crate) ending: Vec<(&'static str, &'static str)>,
    pub(crate) may_end: Vec<(&'static str, &'static str)>,
    pub(crate) upgraded: bool,
    pub(crate) next_request: u64,
    /// Commands without a reply yet, in order.
    pub(crate) asked: VecDeque<Question>,
    /// When the latest replies were read.
    pub(crate) answered_at: VecDeque<Duration>,
    /// Replies in a row that said so of the rate limit.
    pub(crate) refused_in_a_row: usize,
    /// It has read a reply that only an authenticated session gets.
    pub(crate) is_known: bool,
    pub(crate) pings: VecDeque<Vec<u8>>,
    /// So many pings were on their way at once that some may be passed over, and they are not all answered yet.
    pub(crate) is_ping_flood: bool,
    pub(crate) last_pong: Option<Vec<u8>>,
    /// Number of the latest command `ping` that was answered with success.
    pub(crate) last_pong_number: u64,
    /// Subscriptions whose success was read and that were not given up since.
    pub(crate) live: HashSet<Key>,
    /// The request ids of its subscribes for each subscription, in order. Those before that of the latest event are gone.
    pub(crate) request_ids: HashMap<Key, Vec<Option<String>>>,
    pub(crate) ever: HashSet<Key>,
    /// Events that must come, of each live subscription.
    pub(crate) due: HashMap<Key, VecDeque<u64>>,
    /// Events that may come, of each subscription that is not known to be live or not.
    pub(crate) maybe: HashMap<Key, VecDeque<u64>>,
    pub(crate) last: HashMap<Key, u64>,
    pub(crate) last_of_all: u64,
    pub(crate) missed: u64,
    /// Of [`Client::maybe`], those that a later event passed by.
    pub(crate) maybe_missed: u64,
    pub(crate) announced: u64,
    pub(crate) outage_notices: u64,
    /// Outages that it must have been told of when all is at rest.
    pub(crate) owed_outages: u64,
    pub(crate) deed: Deed,
    /// Ends that the case at hand brings about.
    pub(crate) expects: Vec<CloseReason>,
    pub(crate) seen: Seen,
    /// Code of the close frame that it has read.
    pub(crate) closed_with: Option<u16>,
    pub(crate) answers_pings: bool,
    /// On the waking clock: the last time that it did not read everything at once.
    pub(crate) narrow_at: Option<Duration>,
    /// Pings of the server that it has seen.
    pub(crate) was_pinged: u64,
    /// On the world's waking clock: when the server last read something of it, and when it last sent something that
    /// was no answer.
    pub(crate) heard_at: Duration,
    pub(crate) spoke_at: Duration,
    /// When it was last kept although it took nothing.
    pub(crate) spared_at: Duration,
}

impl Client {
    /// One that has just connected, at these moments of the clock and of the waking clock.
    pub(crate) fn new(
        id: ConnId,
        wire: Rc<RefCell<Wire>>,
        token: &'static str,
        ip: IpAddr,
        clock: Duration,
        awake: Duration,
    ) -> Self {
        Self {
            id,
            wire,
            token,
            identity: None,
            ending: Vec::new(),
            may_end: Vec::new(),
            upgraded: false,
            next_request: 0,
            asked: VecDeque::new(),
            answered_at: VecDeque::new(),
            refused_in_a_row: 0,
            is_known: false,
            pings: VecDeque::new(),
            is_ping_flood: false,
            last_pong: None,
            last_pong_number: 0,
            live: HashSet::new(),
            request_ids: HashMap::new(),
            ever: HashSet::new(),
            due: HashMap::new(),
            maybe: HashMap::new(),
            last: HashMap::new(),
            last_of_all: 0,
            missed: 0,
            maybe_missed: 0,
            announced: 0,
            outage_notices: 0,
            owed_outages: 0,
            deed: Deed::Nothing,
            expects: Vec::new(),
            seen: Seen::new(clock, ip),
            closed_with: None,
            answers_pings: true,
            narrow_at: None,
            was_pinged: 0,
            heard_at: awake,
            spoke_at: awake,
            spared_at: awake,
        }
    }

    /// Whether it has done nothing that may end its session, and nothing has.
    pub(crate) fn stays(&self) -> bool {
        self.upgraded
            && self.deed == Deed::Nothing
            && self.expects.is_empty()
            && self.closed_with.is_none()
            && !self.has_hung_up()
            && !self.wire.borrow().is_unplugged
    }

    /// Whether it broke the connection, or ended its side.
    pub(crate) fn has_hung_up(&self) -> bool {
        let wire = self.wire.borrow();
        wire.client_closed || wire.is_reset
    }

    pub(crate) fn is_talking(&self) -> bool {
        self.stays() && !self.wire.borrow().server_shut
    }

    pub(crate) fn subscribe(&mut self, key: Key) {
        self.ever.insert(key);
        self.command(
            json!({"action": "subscribe", "data": {"account_id": ACCOUNTS[key.0], "binding": key.1}}),
            Asked::Subscribe(key),
        );
    }

    pub(crate) fn unsubscribe(&mut self, key: Key) {
        self.give_up(|live| *live == key);
        self.command(
            json!({"action": "unsubscribe", "data": {"account_id": ACCOUNTS[key.0], "binding": key.1}}),
            Asked::Unsubscribe,
        );
    }

    pub(crate) fn ping(&mut self) {
        self.command(json!({"action": "ping"}), Asked::Ping);
    }

    /// Sends a command with the client's token and a request id of its own.
    pub(crate) fn command(&mut self, command: Value, asked: Asked) {
        let text = self.ask(command, asked);
        self.wire.borrow_mut().send(&client_text(&text));
    }

    /// As [`Client::command`], in two fragments if it is longer than the first.
    pub(crate) fn command_in_parts(&mut self, command: Value, asked: Asked, first: usize) {
        let text = self.ask(command, asked);
        let mut wire = self.wire.borrow_mut();
        match text.as_bytes().split_at_checked(first) {
            Some((first, second)) if !first.is_empty() && !second.is_empty() => {
                wire.send(&client_frame(0x01, first));
                wire.send(&client_frame(0x80, second));
            }
            _ => wire.send(&client_text(&text)),
        }
    }

    /// Notes that a command is asked; returns its text, which the caller sends.
    pub(crate) fn ask(&mut self, mut command: Value, asked: Asked) -> String {
        let is_subscribe = command["action"] == "subscribe";
        let request_id = self.request_id(is_subscribe);
        command["auth_token"] = self.token.into();
        if !request_id.is_empty() {
            command["request_id"] = request_id.clone().into();
        }
        if let Some(key) = key_of(&command["data"]).filter(|_| is_subscribe) {
            let ids = self.request_ids.entry(key).or_default();
            ids.push(Some(request_id.clone()).filter(|id| !id.is_empty()));
        }
        self.expect_reply(&request_id, asked);
        command.to_string()
    }

    /// The request id of the next command, of every kind that a session can have: none (empty), one that many clients
    /// have, a GUID of its own, one longer than most, one that is longer as JSON.
    fn request_id(&self, is_subscribe: bool) -> String {
        let number = self.next_request + 1;
        let ConnId { slot, generation } = self.id;
        match (number + u64::from(slot)) % 5 {
            0 if is_subscribe => String::new(),
            0 | 1 => format!("r{number}"),
            2 => format!("{generation:08x}-{slot:04x}-4000-8000-{number:012x}"),
            3 => format!("{number:0>50}-{generation:0>30}-{slot:0>30}"),
            _ => format!("\"{slot}\"\\{generation}\u{1}é{number}"),
        }
    }

    /// Notes that a command with this request id is sent.
    pub(crate) fn expect_reply(&mut self, request_id: &str, asked: Asked) {
        self.next_request += 1;
        self.asked.push_back(Question {
            number: self.next_request,
            request_id: request_id.to_owned(),
            token: self.token,
            asked,
            is_certain: true,
            sent_at: None,
            read_at: None,
        });
    }

    pub(crate) fn websocket_ping(&mut self, payload: Vec<u8>) {
        self.wire.borrow_mut().send(&client_frame(0x89, &payload));
        self.pings.push_back(payload);
        self.is_ping_flood |= self.pings.len() > PONGS_PER_READ_MAX;
    }

    /// Does what may end the session: from here on no event is owed to it.
    pub(crate) fn do_deed(&mut self, deed: Deed, bytes: &[u8]) {
        self.give_up(|_| true);
        self.deed = deed;
        // What it says behind a frame in part would be of that frame.
        self.answers_pings &= !matches!(deed, Deed::Noise | Deed::Begun(_));
        self.wire.borrow_mut().send(bytes);
    }

    /// Breaks the connection, or ends its side of the stream: from here on no event is owed to it.
    pub(crate) fn hang_up(&mut self, breaks: bool) {
        self.give_up(|_| true);
        let mut wire = self.wire.borrow_mut();
        match breaks {
            true => wire.is_reset = true,
            false => wire.client_closed = true,
        }
        wire.edge_readable = true;
    }

    /// Says and takes nothing any more, and its kernel neither.
    pub(crate) fn unplug(&mut self) {
        self.give_up(|_| true);
        self.answers_pings = false;
        let mut wire = self.wire.borrow_mut();
        (wire.is_unplugged, wire.room) = (true, 0);
    }

    /// From here on nothing is owed for these subscriptions.
    pub(crate) fn give_up(&mut self, which: impl Fn(&Key) -> bool) {
        self.live.retain(|key| !which(key));
        for (key, due) in self.due.extract_if(|key, _| which(key)) {
            // They may still come.
            self.maybe.entry(key).or_default().extend(due);
        }
        // It may have nothing left to be told of.
        self.owed_outages = 0;
        for question in &mut self.asked {
            if let Asked::Subscribe(key) = question.asked
                && key.0 != usize::MAX
                && which(&key)
            {
                // Its success no longer promises anything: the unsubscribe is behind it.
                question.asked = Asked::Subscribe((usize::MAX, key.1));
            }
        }
    }
}

/// The subscription that a command with this data means, if it is one of those that are judged.
fn key_of(data: &Value) -> Option<Key> {
    let account = ACCOUNTS.iter().position(|one| data["account_id"] == *one)?;
    let mut bindings = BINDINGS.into_iter().chain(PRESENCE);
    let binding = bindings.find(|one| data["binding"] == *one)?;
    Some((account, binding))
}
