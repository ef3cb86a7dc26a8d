//! The judge: the invariants of the loop after every turn, and what each client reads against what it must read.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use blackhole::config::SlowConsumerPolicy;
use blackhole::reactor::connections::Listed;
use blackhole::routing::broker_bindings::BindingCounts;
use blackhole::routing::index::IndexCounts;
use blackhole::session::hub::{Now, SourceState};
use blackhole::session::id::ConnId;
use blackhole::session::liveness::PING_PAYLOAD;
use serde_json::Value;

use crate::client::Client;
use crate::model::{ACCOUNTS, Asked, BINDINGS, TICK, Times, routes};
use crate::support::scripted::Wire;
use crate::support::wire::{client_frame, server_frames};
use crate::world::World;

impl World {
    pub(crate) fn check_invariants(&self, now: Now) {
        let wires: HashMap<ConnId, &Rc<RefCell<Wire>>> = self
            .clients
            .iter()
            .map(|client| (client.id, &client.wire))
            .collect();
        let (mut subscriptions, mut blocked, mut blocked_bytes) = (0, 0, 0);
        let mut partial_bytes = 0;
        for (id, connection) in self.reactor.connections().iter() {
            let session = &connection.session;
            let wire = wires[&id].borrow();
            assert!(session.is_gone().is_none(), "{id:?} outlived step 6");
            if session.outbox.is_blocked() {
                blocked += 1;
                blocked_bytes += session.outbox.blocked().1;
                assert!(
                    wire.write_blocked || wire.edge_writable,
                    "{id:?} waits for an edge that will not come"
                );
                let is_watched =
                    connection.listed.contains(Listed::SEND_TIMER) || session.is_closing();
                assert!(is_watched, "{id:?} is blocked and nobody looks");
            } else if !session.outbox.is_empty() {
                assert!(
                    connection.listed.contains(Listed::FLUSH),
                    "{id:?} has frames and is not on the flush list"
                );
            }
            let has_end = wire.is_reset || wire.client_closed && !wire.end_was_read;
            let has_unread = !wire.to_server.is_empty() || has_end;
            if has_unread && !wire.edge_readable && session.wants_bytes() {
                assert!(
                    connection.listed.contains(Listed::REREAD),
                    "{id:?} has unread bytes and is not on the reread list"
                );
            }
            if connection.listed.contains(Listed::FLUSH)
                || connection.listed.contains(Listed::REREAD)
            {
                assert_eq!(self.reactor.patience(now), Duration::ZERO);
            }
            let had = self.reactor.hub.index.len(session.subscriptions());
            assert!(
                had == 0 || session.is_open(),
                "{id:?} is not open and has subscriptions"
            );
            subscriptions += had;
            partial_bytes += session.partial_bytes();
        }
        let hub = &self.reactor.hub;
        assert_eq!(hub.partial_bytes, partial_bytes);
        assert_eq!(hub.index.counts().subscriptions, subscriptions);
        assert_eq!(
            (hub.totals.blocked_sessions, hub.totals.blocked_bytes),
            (blocked, blocked_bytes)
        );
        assert!(hub.totals.blocked_bytes <= hub.limits.outboxes_bytes_max);
    }

    /// Checks that nobody is kept who has been silent for too long.
    pub(crate) fn note_who_spoke(&mut self) {
        for client in &mut self.clients {
            let mut wire = client.wire.borrow_mut();
            client.was_narrow |= wire.room < 100_000;
            let is_sent = std::mem::take(&mut wire.was_sent);
            let Some(connection) = self.reactor.connections().get(client.id) else {
                continue;
            };
            let session = &connection.session;
            // One that is not read cannot be heard, unless that is because it takes nothing.
            let is_deaf = !session.wants_bytes() && !session.outbox.is_blocked();
            let is_heard = std::mem::take(&mut wire.was_read) || is_deaf;
            if session.is_closing() {
                continue;
            }
            if is_sent {
                client.spoke_at = self.awake;
            }
            if is_heard || session.is_in_handshake() {
                client.heard_at = self.awake;
            }
            let silent_for = self.awake - client.heard_at;
            if let Some(max) = self.times.silence_max() {
                assert!(
                    silent_for <= max,
                    "{:?} is kept, silent for {silent_for:?}",
                    client.id
                );
            }
        }
    }

    pub(crate) fn read_streams(&mut self) {
        for client in &mut self.clients {
            self.delivered += client.read_stream(self.awake, &self.times);
        }
        let reactor = &self.reactor;
        self.clients.retain(|client| {
            let is_there = reactor.connections().get(client.id).is_some();
            if !is_there && client.closed_with.is_none() {
                // Gone without a close frame: only for what it did not read, or for a handshake never finished.
                assert!(
                    !client.upgraded || client.wire.borrow().room < 100_000,
                    "{:?} was dropped",
                    client.id
                );
            }
            is_there
        });
    }

    /// The broker would drop this event: then no client may have been told that it gets such events.
    pub(crate) fn assert_nobody_is_owed(&self, event: &str, call: &str, account: usize) {
        let canonical = format!("call.{event}.{call}");
        let connections = self.reactor.connections();
        for client in &self.clients {
            // One that the server is closing may not have read that yet.
            if !connections
                .get(client.id)
                .is_some_and(|connection| connection.session.is_open())
            {
                continue;
            }
            for key in &client.live {
                assert!(
                    key.0 != account || !routes(key.1, &canonical),
                    "{:?} was told that {key:?} is live, and the broker has no binding for it",
                    client.id
                );
            }
        }
    }

    pub(crate) fn check_debts(&self) {
        for client in &self.clients {
            if client.closed_with.is_some() || !client.upgraded {
                continue;
            }
            let owed: usize = client.due.values().map(VecDeque::len).sum();
            match self.policy {
                SlowConsumerPolicy::Close => {
                    assert_eq!((owed, client.missed), (0, 0), "{client:?}")
                }
                SlowConsumerPolicy::Drop => {
                    assert!(
                        client.missed + owed as u64 <= client.announced,
                        "missed {} + {owed}, announced {}: {:?}",
                        client.missed,
                        client.announced,
                        client.id
                    );
                }
            }
            assert!(
                client.asked.is_empty(),
                "without a reply: {:?}",
                client.asked
            );
            assert!(client.pings.is_empty(), "without a pong");
            assert!(
                client.outage_notices >= client.owed_outages,
                "not told of an outage"
            );
        }
    }

    pub(crate) fn end(&mut self) {
        for client in &mut self.clients {
            client.give_up(|_| true);
            client.closed_with = Some(0);
            let mut wire = client.wire.borrow_mut();
            match self.rng.u32(0..3) {
                0 => wire.is_reset = true,
                _ => wire.client_closed = true,
            }
            wire.edge_readable = true;
        }
        self.settle();
        self.clock += Duration::from_secs(60);
        self.turn();
        self.source_works();
        let hub = &self.reactor.hub;
        assert_eq!(self.reactor.connections().len(), 0);
        assert_eq!(hub.index.counts(), IndexCounts::default());
        assert_eq!(hub.broker.counts(), BindingCounts::default());
        assert_eq!((hub.broker.waiters(), hub.ips.kinds()), (0, 0));
        assert!(hub.peers.is_empty());
        assert_eq!(
            (hub.totals.blocked_sessions, hub.totals.blocked_bytes),
            (0, 0)
        );
        assert!(
            self.wanted.is_empty() && self.in_force.is_empty(),
            "the broker keeps {:?}",
            self.wanted
        );
        assert_eq!(hub.deadlines.next_due(), None);
        assert_eq!(
            hub.metrics.sessions_opened_total,
            hub.metrics.sessions_closed_total
        );
        assert_eq!(hub.source, SourceState::Up);
    }
}

impl Client {
    /// Judges what has arrived; returns the event frames read. `awake`: the world's waking clock.
    pub(crate) fn read_stream(&mut self, awake: Duration, times: &Times) -> u64 {
        let bytes = std::mem::take(&mut self.wire.borrow_mut().to_client);
        let mut stream = bytes;
        if !self.upgraded {
            let Some(end) = stream.windows(4).position(|window| window == b"\r\n\r\n") else {
                self.wire.borrow_mut().to_client = stream;
                return 0;
            };
            let head = String::from_utf8(stream[..end].to_vec()).expect("a response head is text");
            if !head.starts_with("HTTP/1.1 101") {
                assert!(head.starts_with("HTTP/1.1 503"), "{head}");
                self.closed_with = Some(0);
                return 0;
            }
            assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
            self.upgraded = true;
            stream.drain(..end + 4);
        }
        let (frames, used) = server_frames(&stream);
        stream.drain(..used);
        self.wire.borrow_mut().to_client = stream;
        let mut events = 0;
        for (opcode, payload) in frames {
            assert!(
                !matches!(self.closed_with, Some(code) if code != 0),
                "a frame after the close frame"
            );
            match opcode {
                0x1 => {
                    let text = String::from_utf8(payload).expect("text is UTF-8");
                    let frame: Value = serde_json::from_str(&text).expect("a frame is JSON");
                    match frame["action"].as_str() {
                        Some("event") => {
                            events += 1;
                            self.on_event(&frame);
                        }
                        Some("reply") => self.on_reply(&frame),
                        Some("notice") => self.on_notice(&frame),
                        _ => panic!("{text}"),
                    }
                }
                0x8 => {
                    let code = payload
                        .get(..2)
                        .map_or(1005, |code| u16::from_be_bytes([code[0], code[1]]));
                    if self.closed_with.is_none() {
                        let reason = payload.get(2..).unwrap_or_default();
                        self.judge_close(code, reason, awake, times);
                    }
                    self.closed_with = Some(code);
                }
                0x9 => {
                    assert_eq!(payload, PING_PAYLOAD);
                    self.was_pinged += 1;
                    let mut wire = self.wire.borrow_mut();
                    if self.answers_pings && !wire.client_closed {
                        wire.answer(&client_frame(0x8A, &payload));
                    }
                }
                0xA => {
                    if self.closed_with.is_none() {
                        assert_eq!(
                            Some(&payload),
                            self.pings.pop_front().as_ref(),
                            "pongs come in order"
                        );
                    }
                    self.last_pong = Some(payload);
                }
                _ => panic!("opcode {opcode}"),
            }
        }
        events
    }

    /// Whether a client that expects to stay may be closed so: nobody before his time.
    pub(crate) fn judge_close(&self, code: u16, reason: &[u8], awake: Duration, times: &Times) {
        match (code, reason) {
            (1000, b"idle timeout") => {
                let limit = times.idle_timeout.expect("idle_timeout_ms is on");
                let idle_for = awake - self.spoke_at;
                // What it sends is not read while it reads nothing itself.
                let is_idle = self.was_narrow || idle_for >= limit;
                assert!(is_idle, "{:?} is idle after {idle_for:?}", self.id);
            }
            (1001, b"ping timeout") => {
                let interval = times.ping_interval.expect("ping_interval_ms is on");
                let silent_for = awake - self.heard_at;
                let limit = interval * 4 / 5 + times.pong_timeout - TICK;
                assert!(
                    silent_for >= limit,
                    "{:?} is dead after {silent_for:?}",
                    self.id
                );
                let is_fine = self.answers_pings && !self.was_narrow;
                assert!(!is_fine, "{:?} answers", self.id);
            }
            (1001, b"going away") | (4408 | 1008, _) => {}
            _ => panic!("closed with {code} {}", String::from_utf8_lossy(reason)),
        }
    }

    pub(crate) fn on_event(&mut self, frame: &Value) {
        let binding = frame["subscribed_key"].as_str().expect("a string");
        let binding = BINDINGS
            .into_iter()
            .find(|one| *one == binding)
            .expect("a binding of ours");
        let account = frame["args"]["Account"].as_u64().expect("a number") as usize;
        let number = frame["args"]["Number"].as_u64().expect("a number");
        let key = (account, binding);
        assert!(
            self.accounts.contains(&account),
            "{:?} got an event of an account it may not see",
            self.id
        );
        assert!(
            self.ever.contains(&key),
            "{:?} never asked for {key:?}",
            self.id
        );
        let event = format!(
            "call.{}.{}",
            frame["name"].as_str().unwrap_or_default(),
            frame["args"]["Call-ID"].as_str().unwrap_or_default()
        );
        assert!(routes(binding, &event), "{binding} does not match {event}");
        let words: Vec<&str> = binding.split('.').collect();
        let expected = format!("call.{}.{}.{}", ACCOUNTS[account], words[1], words[2]);
        assert_eq!(frame["subscription_key"], Value::from(expected));
        let last = self.last.insert(key, number).unwrap_or(0);
        assert!(
            number > last,
            "event {number} after {last} of {key:?}: twice, or out of order"
        );
        assert!(
            number >= self.last_of_all,
            "event {number} of {key:?} after {} of another subscription",
            self.last_of_all
        );
        self.last_of_all = number;
        if let Some(due) = self.due.get_mut(&key) {
            while due.front().is_some_and(|first| *first < number) {
                due.pop_front();
                self.missed += 1;
            }
            if due.front() == Some(&number) {
                due.pop_front();
            }
        }
    }

    pub(crate) fn on_reply(&mut self, frame: &Value) {
        if self.closed_with.is_some() {
            return;
        }
        let (request_id, asked) = self.asked.pop_front().expect("a reply to something");
        assert_eq!(
            frame["request_id"],
            Value::from(request_id),
            "replies keep the order of the commands"
        );
        let is_success = frame["status"] == "success";
        let error = frame["data"]["errors"][0].as_str().unwrap_or_default();
        if !is_success
            && (error.starts_with("rate limiting") || error == "event source unavailable")
        {
            return;
        }
        match asked {
            Asked::Subscribe((usize::MAX, _)) | Asked::Unsubscribe => {
                assert!(is_success, "{frame}")
            }
            Asked::Subscribe(key) => {
                assert!(is_success, "{frame}");
                let listed = frame["data"]["subscribed"].as_array().expect("a list");
                assert!(listed.contains(&Value::from(key.1)));
                self.live.insert(key);
            }
            Asked::Ping => {
                // The first command of a session may be a ping: it carries the token.
                assert_eq!(frame["data"]["response"], "pong", "{frame}");
            }
            Asked::Refused => {
                assert_eq!(error, "unauthorized account id", "{frame}");
            }
        }
    }

    pub(crate) fn on_notice(&mut self, frame: &Value) {
        assert_eq!(frame["name"], "gap");
        match frame["data"]["reason"].as_str() {
            Some("slow_consumer") => {
                let dropped = frame["data"]["dropped"].as_u64().expect("a number");
                assert!(dropped > 0);
                self.announced += dropped;
            }
            Some("event_source") => self.outage_notices += 1,
            _ => panic!("{frame}"),
        }
    }
}
