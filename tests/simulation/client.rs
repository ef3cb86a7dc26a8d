//! A client: its end of a scripted connection, what it sends, and what it knows. What is sent to it is judged in `judge`.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use blackhole::session::id::ConnId;
use serde_json::{Value, json};

use crate::model::{ACCOUNTS, Asked, Key};
use crate::support::scripted::Wire;
use crate::support::wire::client_text;

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: ConnId,
    pub(crate) wire: Rc<RefCell<Wire>>,
    pub(crate) accounts: &'static [usize],
    pub(crate) token: &'static str,
    pub(crate) upgraded: bool,
    pub(crate) next_request: u64,
    /// Commands without a reply yet, with their request ids.
    pub(crate) asked: VecDeque<(String, Asked)>,
    pub(crate) pings: VecDeque<Vec<u8>>,
    pub(crate) last_pong: Option<Vec<u8>>,
    /// Subscriptions whose success was read and that were not given up since.
    pub(crate) live: HashSet<Key>,
    pub(crate) ever: HashSet<Key>,
    /// Events that must come, of each live subscription.
    pub(crate) due: HashMap<Key, VecDeque<u64>>,
    pub(crate) last: HashMap<Key, u64>,
    pub(crate) last_of_all: u64,
    pub(crate) missed: u64,
    pub(crate) announced: u64,
    pub(crate) outage_notices: u64,
    /// Outages that it must have been told of when all is at rest.
    pub(crate) owed_outages: u64,
    pub(crate) closed_with: Option<u16>,
    pub(crate) answers_pings: bool,
    /// There was a time when it did not read everything at once.
    pub(crate) was_narrow: bool,
    /// Pings of the server that it has seen.
    pub(crate) was_pinged: u64,
    /// On the world's waking clock: when the server last read something of it, and when it last sent something that
    /// was no answer.
    pub(crate) heard_at: Duration,
    pub(crate) spoke_at: Duration,
}

impl Client {
    pub(crate) fn is_talking(&self) -> bool {
        let wire = self.wire.borrow();
        self.closed_with.is_none()
            && self.upgraded
            && !wire.client_closed
            && !wire.is_reset
            && !wire.server_shut
    }

    pub(crate) fn subscribe(&mut self, key: Key) {
        self.ever.insert(key);
        self.command(
            json!({"action": "subscribe", "data": {"account_id": ACCOUNTS[key.0], "binding": key.1}}),
            Asked::Subscribe(key),
        );
    }

    pub(crate) fn ping(&mut self) {
        self.command(json!({"action": "ping"}), Asked::Ping);
    }

    /// Sends a command with the client's token and a request id of its own.
    pub(crate) fn command(&mut self, mut command: Value, asked: Asked) {
        self.next_request += 1;
        let request_id = format!("r{}", self.next_request);
        command["auth_token"] = self.token.into();
        command["request_id"] = request_id.clone().into();
        self.asked.push_back((request_id, asked));
        self.wire
            .borrow_mut()
            .send(&client_text(&command.to_string()));
    }

    /// From here on nothing is owed for these subscriptions.
    pub(crate) fn give_up(&mut self, which: impl Fn(&Key) -> bool) {
        self.live.retain(|key| !which(key));
        self.due.retain(|key, _| !which(key));
        // It may have nothing left to be told of.
        self.owed_outages = 0;
        for (_, asked) in &mut self.asked {
            if matches!(asked, Asked::Subscribe(key) if which(key)) {
                // Its success no longer promises anything: the unsubscribe is behind it.
                let Asked::Subscribe(key) = *asked else {
                    continue;
                };
                *asked = Asked::Subscribe((usize::MAX, key.1));
            }
        }
    }
}
