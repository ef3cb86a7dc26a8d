//! The world: a reactor on scripted sockets, a virtual clock, and random steps of its clients and its source.
//!
//! A step does one thing to the loop and lets it turn once or twice. After each turn the `judge` looks.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use blackhole::config::{Config, SlowConsumerPolicy};
use blackhole::handoff::{AmqpBinding, FromSource, SourceEnd};
use blackhole::reactor::{Reactor, Ready};
use blackhole::session::Door;
use blackhole::session::hub::Now;
use blackhole::session::id::Peer;
use fastrand::Rng;
use serde_json::json;

use crate::client::Client;
use crate::model::{ACCOUNTS, Asked, BINDINGS, TICK, TOKENS, Times};
use crate::support::scripted::{Scripted, Wire, config, now, reactor};
use crate::support::wire::{UPGRADE_REQUEST, client_frame, client_text};

/// Seconds.
pub(crate) const HOUR: i64 = 3600;
pub(crate) const DAY: i64 = 24 * HOUR;

/// Connections that a world's loop takes.
pub(crate) const CONNECTIONS_MAX: usize = 1000;

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) clock: Duration,
    /// The clock less what a turn came late, as the loop counts it for the silent.
    pub(crate) awake: Duration,
    pub(crate) last_turn: Duration,
    pub(crate) times: Times,
    /// How far the wall clock was stepped, in seconds.
    pub(crate) stepped: i64,
    pub(crate) reactor: Reactor<Scripted>,
    pub(crate) source: SourceEnd,
    pub(crate) outgoing: VecDeque<FromSource>,
    pub(crate) clients: Vec<Client>,
    pub(crate) is_up: bool,
    pub(crate) wanted: Vec<AmqpBinding>,
    pub(crate) in_force: HashSet<AmqpBinding>,
    pub(crate) unconfirmed: Vec<AmqpBinding>,
    pub(crate) next_event: u64,
    pub(crate) next_port: u16,
    pub(crate) policy: SlowConsumerPolicy,
    pub(crate) delivered: u64,
}

impl World {
    pub(crate) fn new(seed: u64, tokens: &Path) -> Self {
        let mut rng = Rng::with_seed(seed);
        let policy = if rng.bool() {
            SlowConsumerPolicy::Close
        } else {
            SlowConsumerPolicy::Drop
        };
        let auth = format!("tokens:{}", tokens.display());
        let config = Config {
            slow_consumer: policy,
            max_outbox_bytes: Some(rng.usize(2_000..20_000)),
            max_outboxes_bytes: Some(if rng.bool() { 30_000 } else { 1 << 30 }),
            max_queued_messages: Some(rng.usize(2..20)),
            max_connections: Some(CONNECTIONS_MAX),
            max_connections_per_ip: Some(1000),
            rate_limit_burst: 40,
            ..config(&["--auth", &auth])
        };
        let times = Times::random(&mut rng);
        let (source, mut reactor) = reactor(&config, rng.usize(1..50), seed);
        reactor.hub.limits.liveness = times.rules();
        Self {
            rng,
            clock: Duration::ZERO,
            awake: Duration::ZERO,
            last_turn: Duration::ZERO,
            times,
            stepped: 0,
            reactor,
            source,
            outgoing: VecDeque::new(),
            clients: Vec::new(),
            is_up: false,
            wanted: Vec::new(),
            in_force: HashSet::new(),
            unconfirmed: Vec::new(),
            next_event: 0,
            next_port: 1000,
            policy,
            delivered: 0,
        }
    }

    pub(crate) fn now(&self) -> Now {
        let now = now(self.clock);
        Now {
            unix: now.unix.saturating_add_signed(self.stepped),
            ..now
        }
    }

    pub(crate) fn step(&mut self) {
        match self.rng.u32(0..100) {
            0..8 => self.connect(),
            8..30 => self.command(),
            30..34 => self.nonsense(),
            34..40 => self.websocket_ping(),
            40..66 => self.publish(),
            66..74 => self.source_works(),
            74 => self.source_comes_or_goes(),
            75 => self.come_back(),
            76..86 => self.change_room(),
            86..88 => self.leave(),
            88 => self.flood(),
            89 => self.begin_only(),
            90 => {
                let time = self.rng.u64(0..1_500);
                self.pass(Duration::from_millis(time));
            }
            91 if self.rng.u32(0..4) == 0 => self.stepped = self.rng.i64(-90 * DAY..90 * DAY),
            _ => {
                let pause = if self.rng.u32(0..20) == 0 { 6_000 } else { 50 };
                self.clock += Duration::from_millis(self.rng.u64(0..pause));
            }
        }
        for _ in 0..self.rng.u32(1..3) {
            self.turn();
        }
    }

    pub(crate) fn connect(&mut self) {
        let (token, accounts) = TOKENS[self.rng.usize(0..TOKENS.len())];
        let room = if self.rng.u32(0..4) == 0 {
            self.rng.usize(0..3_000)
        } else {
            usize::MAX / 2
        };
        let grain = if self.rng.bool() {
            usize::MAX
        } else {
            self.rng.usize(1..200)
        };
        let wire = Wire::new(room, grain);
        let cut = if self.rng.u32(0..10) == 0 {
            self.rng.usize(0..UPGRADE_REQUEST.len())
        } else {
            UPGRADE_REQUEST.len()
        };
        wire.borrow_mut().send(&UPGRADE_REQUEST.as_bytes()[..cut]);
        self.next_port += 1;
        let ip = if self.rng.bool() {
            IpAddr::from(Ipv4Addr::LOCALHOST)
        } else {
            IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, self.next_port % 7])
        };
        let peer = Peer::from(SocketAddr::from((ip, self.next_port)));
        let now = self.now();
        let Some(id) = self
            .reactor
            .accept(Scripted(wire.clone()), peer, Door::Clients, now)
        else {
            return;
        };
        self.clients.push(Client {
            id,
            wire,
            accounts,
            token,
            upgraded: false,
            next_request: 0,
            asked: VecDeque::new(),
            pings: VecDeque::new(),
            last_pong: None,
            live: HashSet::new(),
            ever: HashSet::new(),
            due: HashMap::new(),
            last: HashMap::new(),
            last_of_all: 0,
            missed: 0,
            announced: 0,
            outage_notices: 0,
            owed_outages: 0,
            closed_with: None,
            answers_pings: self.rng.u32(0..5) > 0,
            was_narrow: false,
            was_pinged: 0,
            heard_at: self.awake,
            spoke_at: self.awake,
        });
    }

    pub(crate) fn pick(&mut self) -> Option<usize> {
        let open: Vec<usize> = (0..self.clients.len())
            .filter(|index| self.clients[*index].is_talking())
            .collect();
        (!open.is_empty()).then(|| open[self.rng.usize(0..open.len())])
    }

    pub(crate) fn command(&mut self) {
        let Some(index) = self.pick() else { return };
        let binding = BINDINGS[self.rng.usize(0..BINDINGS.len())];
        let account = self.rng.usize(0..ACCOUNTS.len());
        let kind = self.rng.u32(0..10);
        let split = self.rng.usize(0..60);
        let client = &mut self.clients[index];
        client.next_request += 1;
        let request_id = format!("r{}", client.next_request);
        let is_mine = client.accounts.contains(&account);
        let key = (account, binding);
        let (text, asked) = match kind {
            0..6 => {
                let asked = if is_mine {
                    Asked::Subscribe(key)
                } else {
                    Asked::Refused
                };
                if is_mine {
                    client.ever.insert(key);
                }
                (
                    json!({"action": "subscribe", "auth_token": client.token, "request_id": request_id,
                    "data": {"account_id": ACCOUNTS[account], "binding": binding}}),
                    asked,
                )
            }
            6..8 => {
                client.give_up(|live| *live == key);
                (
                    json!({"action": "unsubscribe", "auth_token": client.token, "request_id": request_id,
                    "data": {"account_id": ACCOUNTS[account], "binding": binding}}),
                    Asked::Unsubscribe,
                )
            }
            8 => {
                client.give_up(|_| true);
                (
                    json!({"action": "unsubscribe", "auth_token": client.token, "request_id": request_id}),
                    Asked::Unsubscribe,
                )
            }
            _ => (
                json!({"action": "ping", "auth_token": client.token, "request_id": request_id}),
                Asked::Ping,
            ),
        };
        let text = text.to_string();
        client.asked.push_back((request_id, asked));
        let mut wire = client.wire.borrow_mut();
        if split < text.len() && split > 0 {
            wire.send(&client_frame(0x01, &text.as_bytes()[..split]));
            wire.send(&client_frame(0x80, &text.as_bytes()[split..]));
        } else {
            wire.send(&client_text(&text));
        }
    }

    /// Input that is answered with an error reply or a close; either way nobody else notices.
    pub(crate) fn nonsense(&mut self) {
        let Some(index) = self.pick() else { return };
        let bytes = match self.rng.u32(0..5) {
            0 => client_frame(0x82, b"binary"),
            1 => client_frame(0x81, b"\xff\xfe"),
            2 => (0..self.rng.usize(1..50))
                .map(|_| self.rng.u8(..))
                .collect(),
            3 => client_frame(0xC1, b"reserved bit"),
            _ => client_frame(0x88, &[0x03]),
        };
        // What is lost with it is no longer expected: the session may be closed.
        let client = &mut self.clients[index];
        client.give_up(|_| true);
        client.asked.clear();
        client.closed_with = Some(0);
        client.wire.borrow_mut().send(&bytes);
    }

    pub(crate) fn websocket_ping(&mut self) {
        let Some(index) = self.pick() else { return };
        let payload: Vec<u8> = (0..self.rng.usize(0..125))
            .map(|_| self.rng.u8(..))
            .collect();
        let client = &mut self.clients[index];
        client.wire.borrow_mut().send(&client_frame(0x89, &payload));
        client.pings.push_back(payload);
    }

    pub(crate) fn change_room(&mut self) {
        let Some(index) = self.pick() else { return };
        let client = &self.clients[index];
        let mut wire = client.wire.borrow_mut();
        if wire.room > 10_000 {
            wire.room = 0;
        } else {
            wire.make_room(if self.rng.bool() {
                self.rng.usize(1..5_000)
            } else {
                usize::MAX / 4
            });
        }
    }

    pub(crate) fn leave(&mut self) {
        let Some(index) = self.pick() else { return };
        let client = &mut self.clients[index];
        client.give_up(|_| true);
        client.asked.clear();
        client.closed_with = Some(0);
        let mut wire = client.wire.borrow_mut();
        match self.rng.u32(0..3) {
            0 => wire.is_reset = true,
            1 => wire.client_closed = true,
            _ => wire.send(&client_frame(0x88, &1000_u16.to_be_bytes())),
        }
        wire.edge_readable = true;
    }

    pub(crate) fn flood(&mut self) {
        let Some(index) = self.pick() else { return };
        let client = &mut self.clients[index];
        for _ in 0..self.rng.u32(1..120) {
            client.next_request += 1;
            let request_id = format!("r{}", client.next_request);
            let text =
                json!({"action": "ping", "auth_token": client.token, "request_id": request_id})
                    .to_string();
            client.asked.push_back((request_id, Asked::Ping));
            client.wire.borrow_mut().send(&client_text(&text));
        }
    }

    /// Begins a message, or a frame, and leaves it at that.
    pub(crate) fn begin_only(&mut self) {
        let Some(index) = self.pick() else { return };
        let bytes = match self.rng.u32(0..3) {
            0 => client_frame(0x01, b"fragment"),
            1 => client_frame(0x81, b"frame in part")[..9].to_vec(),
            _ => vec![0x89],
        };
        let client = &mut self.clients[index];
        client.give_up(|_| true);
        client.asked.clear();
        client.closed_with = Some(0);
        client.wire.borrow_mut().send(&bytes);
    }

    /// Time goes by, in which the loop turns as often as it wants to.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.clock + time;
        while self.clock < end {
            self.clock = end.min(self.clock + TICK / 2);
            self.turn();
        }
    }

    pub(crate) fn turn(&mut self) {
        self.awake += (self.clock - self.last_turn).min(2 * TICK);
        self.last_turn = self.clock;
        while let Some(message) = self.outgoing.pop_front() {
            if let Err(back) = self.source.send_timeout(message, Duration::ZERO) {
                self.outgoing.push_front(back.expect("the loop is there"));
                break;
            }
        }
        let mut ready = Vec::new();
        for client in &self.clients {
            let mut wire = client.wire.borrow_mut();
            let edge =
                std::mem::take(&mut wire.edge_readable) | std::mem::take(&mut wire.edge_writable);
            if edge || self.rng.u32(0..30) == 0 {
                ready.push(Ready {
                    id: client.id,
                    readable: true,
                    writable: wire.room > 0,
                    read_closed: wire.client_closed || wire.is_reset,
                });
            }
        }
        self.rng.shuffle(&mut ready);
        let now = self.now();
        self.reactor.turn(&ready, now);
        self.check_invariants(now);
        self.note_who_spoke();
        self.read_streams();
    }

    /// Everybody reads, the source is there, nothing new happens.
    pub(crate) fn settle(&mut self) {
        if !self.is_up {
            self.source_comes_or_goes();
        }
        for _ in 0..10_000 {
            for client in &self.clients {
                client.wire.borrow_mut().make_room(usize::MAX / 4);
            }
            self.source_works();
            self.turn();
            let is_quiet = self.outgoing.is_empty()
                && self.reactor.patience(self.now()) > Duration::ZERO
                && self.clients.iter().all(|client| {
                    let wire = client.wire.borrow();
                    !wire.edge_readable && !wire.edge_writable
                })
                && self.source.commands.is_empty();
            if is_quiet {
                return;
            }
        }
        panic!("does not come to rest");
    }
}
