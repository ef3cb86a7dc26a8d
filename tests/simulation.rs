//! The whole reactor on scripted sockets and a virtual clock, under many seeds: partial reads and writes, resets,
//! half-closes, slow readers, the silent and the mute, floods, a source that comes and goes. After every turn the loop's invariants are
//! checked, and every client's stream is judged against a model; at the end everything must have drained to zero.
//!
//! A failure prints its seed; `BLACKHOLE_SEED=n cargo test --test simulation` replays that one.

mod support;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use blackhole::config::{Config, SlowConsumerPolicy};
use blackhole::handoff::{
    AmqpBinding, Asked as AskedBinding, FromSource, SourceEnd, Ticket, ToSource,
};
use blackhole::limits::LOOKS_IN_VAIN;
use blackhole::protocol::event::Event;
use blackhole::reactor::connections::Listed;
use blackhole::reactor::{Reactor, Ready};
use blackhole::routing::broker_bindings::BindingCounts;
use blackhole::routing::index::IndexCounts;
use blackhole::session::Door;
use blackhole::session::hub::{Now, SourceState};
use blackhole::session::id::{ConnId, Peer};
use blackhole::session::liveness::{LivenessRules, PING_PAYLOAD};
use blackhole::session::replies::HeldTotals;
use fastrand::Rng;
use serde_json::{Value, json};
use support::scripted::{Scripted, Wire, config, now, reactor, under_seeds};
use support::wire::{UPGRADE_REQUEST, client_frame, client_text, server_frames};

const ACCOUNTS: [&str; 3] = [
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa2",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa3",
];
/// Token and the accounts that it may see. The second is the parent of the third.
const TOKENS: [(&str, &[usize]); 3] = [("token-1", &[0]), ("token-2", &[1, 2]), ("token-3", &[2])];
const BINDINGS: [&str; 5] = [
    "call.CHANNEL_CREATE.*",
    "call.*.*",
    "call.CHANNEL_DESTROY.c1",
    "call.*.c2",
    "call.CHANNEL_ANSWER.*",
];
const EVENTS: [&str; 3] = ["CHANNEL_CREATE", "CHANNEL_ANSWER", "CHANNEL_DESTROY"];
const CALLS: [&str; 3] = ["c1", "c2", "c3"];
/// Connections that a world's loop takes.
const CONNECTIONS_MAX: usize = 1000;
/// Seconds.
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
const STEPS: usize = 500;
const SEEDS: u64 = 128;
/// Resolution of the loop's liveness clock.
const TICK: Duration = Duration::from_millis(100);

/// A subscription as the client knows it.
type Key = (usize, &'static str);

/// What a client expects of the next reply.
#[derive(Debug)]
enum Asked {
    Subscribe(Key),
    Unsubscribe,
    Ping,
    Refused,
}

#[derive(Debug)]
struct Client {
    id: ConnId,
    wire: Rc<RefCell<Wire>>,
    accounts: &'static [usize],
    token: &'static str,
    upgraded: bool,
    next_request: u64,
    /// Commands without a reply yet, with their request ids.
    asked: VecDeque<(String, Asked)>,
    pings: VecDeque<Vec<u8>>,
    last_pong: Option<Vec<u8>>,
    /// Subscriptions whose success was read and that were not given up since.
    live: HashSet<Key>,
    ever: HashSet<Key>,
    /// Events that must come, of each live subscription.
    due: HashMap<Key, VecDeque<u64>>,
    last: HashMap<Key, u64>,
    last_of_all: u64,
    missed: u64,
    announced: u64,
    outage_notices: u64,
    /// `data` of each notice of subscriptions' end.
    ended: Vec<Value>,
    /// Outages that it must have been told of when all is at rest.
    owed_outages: u64,
    closed_with: Option<u16>,
    answers_pings: bool,
    /// There was a time when it did not read everything at once.
    was_narrow: bool,
    /// Pings of the server that it has seen.
    was_pinged: u64,
    /// On the world's waking clock: when the server last read something of it, and when it last sent something that
    /// was no answer.
    heard_at: Duration,
    spoke_at: Duration,
}

/// The times of the keys of these names.
#[derive(Clone, Copy)]
struct Times {
    ping_interval: Option<Duration>,
    pong_timeout: Duration,
    idle_timeout: Option<Duration>,
    message_timeout: Duration,
}

impl Times {
    fn random(rng: &mut Rng) -> Self {
        let mut time = |range| Duration::from_millis(rng.u64(range));
        Self {
            pong_timeout: time(200..800),
            message_timeout: time(3_000..6_000),
            ping_interval: Some(time(200..1_500)).filter(|_| rng.bool()),
            idle_timeout: Some(Duration::from_millis(rng.u64(1_000..4_000))).filter(|_| rng.bool()),
        }
    }

    /// Longest silence of a session that is still open, its ping having waited in a full outbox for as long as it may.
    fn silence_max(&self) -> Option<Duration> {
        let interval = self.ping_interval?;
        Some(interval * 6 / 5 + interval + 2 * self.pong_timeout + 8 * TICK)
    }

    fn rules(&self) -> LivenessRules {
        LivenessRules::new(
            self.ping_interval,
            self.pong_timeout,
            self.idle_timeout,
            self.message_timeout,
        )
    }
}

struct World {
    rng: Rng,
    clock: Duration,
    /// The clock less what a turn came late, as the loop counts it for the silent.
    awake: Duration,
    last_turn: Duration,
    times: Times,
    /// How far the wall clock was stepped, in seconds.
    stepped: i64,
    reactor: Reactor<Scripted>,
    source: SourceEnd,
    outgoing: VecDeque<FromSource>,
    clients: Vec<Client>,
    is_up: bool,
    wanted: Vec<AmqpBinding>,
    in_force: HashSet<AmqpBinding>,
    unconfirmed: Vec<AskedBinding>,
    next_event: u64,
    next_port: u16,
    policy: SlowConsumerPolicy,
    delivered: u64,
}

fn routes(key: &str, routing_key: &str) -> bool {
    let (key, routing_key): (Vec<_>, Vec<_>) =
        (key.split('.').collect(), routing_key.split('.').collect());
    key.len() == routing_key.len()
        && key
            .iter()
            .zip(&routing_key)
            .all(|(want, is)| *want == "*" || want == is)
}

impl World {
    fn new(seed: u64, tokens: &std::path::Path) -> Self {
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

    fn now(&self) -> Now {
        let now = now(self.clock);
        Now {
            unix: now.unix.saturating_add_signed(self.stepped),
            ..now
        }
    }

    fn step(&mut self) {
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

    fn connect(&mut self) {
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
            ended: Vec::new(),
            owed_outages: 0,
            closed_with: None,
            answers_pings: self.rng.u32(0..5) > 0,
            was_narrow: false,
            was_pinged: 0,
            heard_at: self.awake,
            spoke_at: self.awake,
        });
    }

    fn pick(&mut self) -> Option<usize> {
        let open: Vec<usize> = (0..self.clients.len())
            .filter(|index| self.clients[*index].is_talking())
            .collect();
        (!open.is_empty()).then(|| open[self.rng.usize(0..open.len())])
    }

    fn command(&mut self) {
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
    fn nonsense(&mut self) {
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

    fn websocket_ping(&mut self) {
        let Some(index) = self.pick() else { return };
        let payload: Vec<u8> = (0..self.rng.usize(0..125))
            .map(|_| self.rng.u8(..))
            .collect();
        let client = &mut self.clients[index];
        client.wire.borrow_mut().send(&client_frame(0x89, &payload));
        client.pings.push_back(payload);
    }

    fn publish(&mut self) {
        if !self.is_up {
            return;
        }
        for _ in 0..self.rng.u32(1..6) {
            let event = EVENTS[self.rng.usize(0..EVENTS.len())];
            let call = CALLS[self.rng.usize(0..CALLS.len())];
            let account = self.rng.usize(0..ACCOUNTS.len());
            self.publish_one(event, call, account);
        }
    }

    fn publish_one(&mut self, event: &str, call: &str, account: usize) {
        let routing_key = format!("call.{event}.{call}");
        if !self
            .in_force
            .iter()
            .any(|binding| routes(&binding.key, &routing_key))
        {
            return self.assert_nobody_is_owed(event, call, account);
        }
        self.next_event += 1;
        let body = json!({"Event-Name": event, "Call-ID": call, "Number": self.next_event, "Account": account,
            "Custom-Channel-Vars": {"Account-ID": ACCOUNTS[account]}, "Padding": "x".repeat(self.rng.usize(0..1500))});
        let body = body.to_string().into_bytes();
        let decoded = Event::decode("callevt".into(), routing_key.clone().into(), body, None)
            .expect("a valid body");
        self.outgoing
            .push_back(FromSource::Event(Box::new(decoded)));
        for client in &mut self.clients {
            for key in &client.live {
                if key.0 == account && routes(key.1, &routing_key) {
                    let due = client.due.entry(*key).or_default();
                    due.push_back(self.next_event);
                }
            }
        }
    }

    /// The broker would drop this event: then no client may have been told that it gets such events.
    fn assert_nobody_is_owed(&self, event: &str, call: &str, account: usize) {
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

    /// The source takes the loop's commands and confirms what it bound.
    fn source_works(&mut self) {
        let mut bound = Vec::new();
        for command in self.source.commands.try_iter().flatten() {
            match command {
                ToSource::Bind {
                    binding, ticket, ..
                } => {
                    // One that is known already has come and gone while nobody listened.
                    if !self.wanted.contains(&binding) {
                        self.wanted.push(binding.clone());
                    }
                    self.unconfirmed.retain(|one| one.binding != binding);
                    bound.retain(|one: &AskedBinding| one.binding != binding);
                    if self.is_up {
                        self.in_force.insert(binding.clone());
                        bound.push(AskedBinding { binding, ticket });
                    } else {
                        self.unconfirmed.push(AskedBinding { binding, ticket });
                    }
                }
                ToSource::Join { binding, .. } => assert!(self.wanted.contains(&binding)),
                ToSource::Unbind(binding) => {
                    let place = self.wanted.iter().position(|wanted| *wanted == binding);
                    self.wanted.swap_remove(
                        place.unwrap_or_else(|| panic!("unbound what was not bound: {binding:?}")),
                    );
                    self.in_force.remove(&binding);
                    self.unconfirmed
                        .retain(|unconfirmed| unconfirmed.binding != binding);
                    bound.retain(|one| one.binding != binding);
                }
                ToSource::Stop => {}
            }
        }
        if !bound.is_empty() {
            self.outgoing.push_back(FromSource::Bound(bound));
        }
    }

    fn source_comes_or_goes(&mut self) {
        self.source_works();
        if self.is_up {
            self.is_up = false;
            self.in_force.clear();
            self.outgoing.push_back(FromSource::Down {
                since: Instant::now(),
            });
        } else {
            self.is_up = true;
            self.in_force = self.wanted.iter().cloned().collect();
            let bound = std::mem::take(&mut self.unconfirmed);
            if !bound.is_empty() {
                self.outgoing.push_back(FromSource::Bound(bound));
            }
            self.outgoing.push_back(FromSource::Up);
            for client in &mut self.clients {
                client.owed_outages += u64::from(!client.live.is_empty());
            }
        }
    }

    fn come_back(&mut self) {
        if !self.is_up {
            self.source_comes_or_goes();
        }
    }

    fn change_room(&mut self) {
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

    fn leave(&mut self) {
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

    fn flood(&mut self) {
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
    fn begin_only(&mut self) {
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
    fn pass(&mut self, time: Duration) {
        let end = self.clock + time;
        while self.clock < end {
            self.clock = end.min(self.clock + TICK / 2);
            self.turn();
        }
    }

    fn turn(&mut self) {
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

    /// A turn of which no model is kept.
    fn turn_without_judge(&mut self) {
        while let Some(message) = self.outgoing.pop_front() {
            if let Err(back) = self.source.send_timeout(message, Duration::ZERO) {
                self.outgoing.push_front(back.expect("the loop is there"));
                break;
            }
        }
        let ready: Vec<Ready> = self
            .clients
            .iter()
            .filter(|client| std::mem::take(&mut client.wire.borrow_mut().edge_readable))
            .map(|client| Ready {
                id: client.id,
                readable: true,
                writable: true,
                read_closed: false,
            })
            .collect();
        self.reactor.turn(&ready, self.now());
    }

    /// Checks that nobody is kept who has been silent for too long.
    fn note_who_spoke(&mut self) {
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

    fn check_invariants(&self, now: Now) {
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

    fn read_streams(&mut self) {
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

    /// Everybody reads, the source is there, nothing new happens.
    fn settle(&mut self) {
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

    fn check_debts(&self) {
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

    fn end(&mut self) {
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
        assert_eq!(hub.held, HeldTotals::default());
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
    fn is_talking(&self) -> bool {
        let wire = self.wire.borrow();
        self.closed_with.is_none()
            && self.upgraded
            && !wire.client_closed
            && !wire.is_reset
            && !wire.server_shut
    }

    fn subscribe(&mut self, key: Key) {
        self.ever.insert(key);
        self.command(
            json!({"action": "subscribe", "data": {"account_id": ACCOUNTS[key.0], "binding": key.1}}),
            Asked::Subscribe(key),
        );
    }

    fn ping(&mut self) {
        self.command(json!({"action": "ping"}), Asked::Ping);
    }

    /// Sends a command with the client's token and a request id of its own.
    fn command(&mut self, mut command: Value, asked: Asked) {
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
    fn give_up(&mut self, which: impl Fn(&Key) -> bool) {
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

    /// Judges what has arrived; returns the event frames read. `awake`: the world's waking clock.
    fn read_stream(&mut self, awake: Duration, times: &Times) -> u64 {
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
    fn judge_close(&self, code: u16, reason: &[u8], awake: Duration, times: &Times) {
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

    fn on_event(&mut self, frame: &Value) {
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

    fn on_reply(&mut self, frame: &Value) {
        if self.closed_with.is_some() {
            return;
        }
        let is_success = frame["status"] == "success";
        // A ping overtakes what waits for the broker; nothing else overtakes anything.
        let is_it = |(id, asked): &(String, Asked)| {
            matches!(asked, Asked::Ping) && frame["request_id"] == id.as_str()
        };
        let place = self.asked.iter().position(is_it).filter(|_| is_success);
        let asked = self.asked.remove(place.unwrap_or_default());
        let (request_id, asked) = asked.expect("a reply to something");
        assert_eq!(
            frame["request_id"],
            Value::from(request_id),
            "replies keep the order of the commands"
        );
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

    fn on_notice(&mut self, frame: &Value) {
        if frame["name"] == "subscriptions_ended" {
            return self.ended.push(frame["data"].clone());
        }
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

/// A token file, and the directory that it vanishes with.
fn token_file() -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("tokens.json");
    let file = json!({
        TOKENS[0].0: {"account_id": ACCOUNTS[0]},
        TOKENS[1].0: {"account_id": ACCOUNTS[1], "descendants": [ACCOUNTS[2]]},
        TOKENS[2].0: {"account_id": ACCOUNTS[2]},
    });
    std::fs::write(&path, file.to_string()).expect("a token file");
    (directory, path)
}

/// A world whose source is up and whose clients, all of the first account, are upgraded and read everything.
fn world_of_readers(clients: usize, bindings: &[&'static str], tokens: &std::path::Path) -> World {
    readers_in(World::new(1, tokens), clients, bindings)
}

fn readers_in(mut world: World, clients: usize, bindings: &[&'static str]) -> World {
    (world.times.ping_interval, world.times.idle_timeout) = (None, None);
    world.reactor.hub.limits.liveness = world.times.rules();
    world.reactor.hub.limits.rate = None;
    world.reactor.hub.limits.subscriptions_max = usize::MAX;
    world.source_comes_or_goes();
    while world.clients.len() < clients {
        world.connect();
        let client = world.clients.last_mut().expect("just connected");
        (client.token, client.accounts) = TOKENS[0];
        let mut wire = client.wire.borrow_mut();
        (wire.room, wire.grain) = (usize::MAX / 2, usize::MAX);
        let whole = UPGRADE_REQUEST.as_bytes();
        wire.to_server.clear();
        wire.send(whole);
    }
    for client in &mut world.clients {
        for binding in bindings {
            client.subscribe((0, binding));
        }
    }
    world.settle();
    assert!(
        world
            .clients
            .iter()
            .all(|client| client.upgraded && client.asked.is_empty())
    );
    world
}

#[test]
fn a_flood_of_pings_leaves_few_pongs_waiting_and_the_newest_is_answered() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(600, &[], &tokens);
    let flood: Vec<u8> = (0..4000_u32)
        .flat_map(|n| client_frame(0x89, &n.to_be_bytes()))
        .collect();
    for client in &mut world.clients {
        // Only what is answered one by one is expected; the rest is judged below.
        client.closed_with = Some(0);
        client.wire.borrow_mut().send(&flood);
    }
    for _ in 0..200 {
        world.turn();
        let waiting: usize = world
            .reactor
            .connections()
            .iter()
            .map(|(_, one)| one.session.outbox.frames())
            .sum();
        assert!(waiting <= 600 * 100, "{waiting} frames wait");
    }
    world.settle();
    for client in &world.clients {
        assert_eq!(
            client.last_pong.as_deref(),
            Some(&3999_u32.to_be_bytes()[..])
        );
    }
    world.end();
}

#[test]
fn events_that_match_several_subscriptions_wait_in_the_handoff_not_in_the_outboxes() {
    let (_directory, tokens) = token_file();
    let bindings = ["call.CHANNEL_CREATE.*", "call.*.*", "call.*.c2"];
    let mut world = world_of_readers(300, &bindings, &tokens);
    let body = json!({"Event-Name": "CHANNEL_CREATE", "Call-ID": "c2", "Account": 0,
        "Custom-Channel-Vars": {"Account-ID": ACCOUNTS[0]}, "Number": 1});
    for number in 1..=600 {
        let mut body = body.clone();
        body["Number"] = number.into();
        let key = "call.CHANNEL_CREATE.c2".into();
        let event = Event::decode("callevt".into(), key, body.to_string().into_bytes(), None);
        world
            .outgoing
            .push_back(FromSource::Event(Box::new(event.expect("a valid body"))));
    }
    let mut most = 0;
    for _ in 0..100_000 {
        world.turn();
        let frames = world
            .reactor
            .connections()
            .iter()
            .map(|(_, one)| one.session.outbox.frames());
        most = most.max(frames.max().unwrap_or(0));
        if world.delivered == 600 * 3 * 300 {
            assert!(most <= 64 * 3, "{most} frames waited for one session");
            return world.end();
        }
    }
    panic!("{} of {} frames came", world.delivered, 600 * 3 * 300);
}

#[test]
fn events_in_a_row_leave_as_one_frame_and_none_is_lost_doubled_or_out_of_order() {
    let (_directory, tokens) = token_file();
    let counts = under_seeds(SEEDS / 4, |seed| {
        let world = World::new(seed, &tokens);
        let mut world = readers_in(world, 12, &["call.CHANNEL_CREATE.*", "call.*.c2"]);
        let limits = &mut world.reactor.hub.limits;
        (limits.outbox_bytes_max, limits.outboxes_bytes_max) = (usize::MAX, usize::MAX);
        for _ in 0..60 {
            for index in 0..world.clients.len() {
                if world.rng.u32(0..3) == 0 {
                    let room = world.rng.usize(1..6_000);
                    let mut wire = world.clients[index].wire.borrow_mut();
                    wire.room = 0;
                    wire.make_room(room);
                }
            }
            // Of the first subscription, of the second, of both, and of nobody.
            for _ in 0..world.rng.u32(1..6) {
                let event = EVENTS[world.rng.usize(0..2)];
                let call = CALLS[world.rng.usize(0..2)];
                for _ in 0..world.rng.u32(1..6) {
                    world.publish_one(event, call, 0);
                }
            }
            world.turn();
        }
        world.settle();
        world.check_debts();
        let announced: u64 = world.clients.iter().map(|client| client.announced).sum();
        let missed = |client: &Client| {
            client.missed + client.due.values().map(VecDeque::len).sum::<usize>() as u64
        };
        let missed: u64 = world.clients.iter().map(missed).sum();
        assert_eq!(missed, announced, "as many as were dropped");
        let merged = world.reactor.hub.metrics.runs_merged_total;
        world.end();
        [merged, announced]
    });
    let [merged, announced] = [0, 1].map(|kind| counts.iter().map(|one| one[kind]).sum::<u64>());
    println!("{merged} runs merged, {announced} frames announced as dropped");
    if counts.len() > 1 {
        assert!(merged > 1000 && announced > 1000);
    }
}

#[test]
fn the_rest_of_a_burst_is_looked_for_when_it_is_for_many() {
    let (_directory, tokens) = token_file();
    for (clients, expected) in [(63, 0), (64, LOOKS_IN_VAIN as u64)] {
        let mut world = world_of_readers(clients, &["call.CHANNEL_CREATE.*"], &tokens);
        let looks = |world: &World| world.reactor.hub.metrics.handoff_looks_again_total;
        let before = looks(&world);
        world.publish_one("CHANNEL_CREATE", "c1", 0);
        world.turn();
        assert_eq!(looks(&world) - before, expected, "{clients} clients");
        world.turn();
        assert_eq!(looks(&world) - before, expected, "nothing came");
        world.end();
    }
}

#[test]
fn floods_do_not_keep_a_neighbour_unread() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(80, &[], &tokens);
    let noise = client_frame(0x8A, &[0; 125]).repeat(1000);
    let victim = world.clients.len() - 1;
    let mut asked = false;
    for turn in 0..60 {
        for client in &mut world.clients[..victim] {
            client.wire.borrow_mut().send(&noise);
        }
        if turn == 3 {
            world.clients[victim].ping();
            asked = true;
        }
        world.turn();
        if asked && world.clients[victim].asked.is_empty() {
            return;
        }
    }
    panic!("not answered in 57 turns");
}

#[test]
fn another_identity_does_not_keep_what_only_the_first_may_see() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(1, &["call.*.*"], &tokens);
    let client = &mut world.clients[0];
    client.give_up(|_| true);
    client.token = TOKENS[2].0;
    client.ping();
    world.settle();
    assert_eq!(
        world.clients[0].ended,
        [json!({"reason": "identity", "bindings": ["call.*.*"]})]
    );
    assert_eq!(world.reactor.hub.index.counts(), IndexCounts::default());
    world.source_works();
    assert!(
        world.wanted.is_empty(),
        "the broker is not asked for it any more"
    );
    world.end();
}

#[test]
fn an_exchange_that_never_worked_is_nobodys_loss() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(2, &["call.CHANNEL_CREATE.*"], &tokens);
    let refused = answered("call.CHANNEL_ANSWER.*");
    world.clients[1].subscribe((0, "call.CHANNEL_ANSWER.*"));
    world.turn();
    world
        .outgoing
        .push_back(FromSource::Lost(vec![refused.clone()]));
    world.turn();
    world.outgoing.push_back(FromSource::Bound(vec![refused]));
    world.settle();
    assert!(
        world
            .clients
            .iter()
            .all(|client| client.outage_notices == 0)
    );

    let lost = answered("call.CHANNEL_CREATE.*");
    world
        .outgoing
        .push_back(FromSource::Lost(vec![lost.clone()]));
    world.outgoing.push_back(FromSource::Bound(vec![lost]));
    world.settle();
    assert!(
        world
            .clients
            .iter()
            .all(|client| client.outage_notices == 1)
    );
}

/// A binding of `callevt` that was answered for before, so that the ticket does not matter.
fn answered(key: &str) -> AskedBinding {
    AskedBinding {
        binding: AmqpBinding {
            exchange: "callevt".into(),
            key: key.into(),
        },
        ticket: Ticket::default(),
    }
}

/// Asks for the documents of the first account whose database has the month in its name (PROTOCOL 6).
fn subscribe_to_faxes(client: &mut Client) {
    client.subscribe((0, "object.doc_created.fax"));
}

/// The AMQP binding key of that subscription in this month.
fn fax_key(month: &str) -> String {
    format!("doc_created.account%2Faa%2Faa%2Faaaaaaaaaaaaaaaaaaaaaaaaaaa1-{month}.fax.*")
}

#[test]
fn a_binding_that_was_lost_is_told_to_those_who_need_it_and_to_nobody_else() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(2, &["call.CHANNEL_CREATE.*"], &tokens);
    world.clients[1].subscribe((0, "call.CHANNEL_ANSWER.*"));
    world.settle();
    let lost = answered("call.CHANNEL_ANSWER.*");
    world
        .outgoing
        .push_back(FromSource::Lost(vec![lost.clone()]));
    world.outgoing.push_back(FromSource::Bound(vec![lost]));
    world.settle();
    let notices = world.clients.iter().map(|client| client.outage_notices);
    assert_eq!(notices.collect::<Vec<_>>(), [0, 1]);
}

/// 2023-12-01T00:00:00Z on the world's clock, which starts at Unix second 1,700,000,000.
const DECEMBER: Duration = Duration::from_secs(1_701_388_800 - 1_700_000_000);
const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_document_subscription_follows_the_month_half_an_hour_early_and_an_hour_late() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(2, &[], &tokens);
    subscribe_to_faxes(&mut world.clients[0]);
    world.settle();
    assert!(
        world.clients[0].asked.is_empty(),
        "the subscribe is answered"
    );

    let (november, december) = (fax_key("202311"), fax_key("202312"));
    let second = Duration::from_secs(1);
    for (moment, expected) in [
        (DECEMBER - 60 * MINUTE - second, vec![&november]),
        (DECEMBER - 60 * MINUTE, vec![&november]),
        (DECEMBER - 50 * MINUTE, vec![&november, &december]),
        (DECEMBER, vec![&november, &december]),
        (DECEMBER + 60 * MINUTE - second, vec![&november, &december]),
        (DECEMBER + 60 * MINUTE, vec![&november, &december]),
        (DECEMBER + 70 * MINUTE, vec![&december]),
    ] {
        world.clock = moment;
        world.settle();
        let mut keys: Vec<&str> = world.in_force.iter().map(|binding| &*binding.key).collect();
        keys.sort_unstable();
        assert_eq!(keys, expected, "{moment:?}");
    }
    world.end();
}

#[test]
fn who_subscribes_in_the_overlap_has_both_months_at_once_and_so_have_those_of_its_group() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(3, &[], &tokens);
    let subscribe = json!({"action": "subscribe", "auth_token": TOKENS[0].0, "data":
        {"account_id": ACCOUNTS[0], "binding": "object.doc_created.fax"}});
    let send = |world: &mut World, client: usize, command: &Value| {
        let text = client_text(&command.to_string());
        world.clients[client].wire.borrow_mut().send(&text);
        for _ in 0..8 {
            world.turn_without_judge();
            world.source_works();
        }
    };
    send(&mut world, 0, &subscribe);
    let ping = json!({"action": "ping", "auth_token": TOKENS[0].0});
    send(&mut world, 1, &ping);
    world.clock = DECEMBER - 60 * MINUTE;
    world.turn_without_judge();
    send(&mut world, 1, &subscribe);
    let groups = world.reactor.hub.index.counts().groups;
    assert_eq!((groups, world.in_force.len()), (1, 2));
    for client in [0, 1] {
        send(&mut world, client, &json!({"action": "unsubscribe"}));
    }
    assert_eq!(world.in_force.len(), 0, "each has released what it held");
}

/// Checks that the AMQP bindings wanted are those of the months that each subscription follows, and, while a
/// subscribe waits, more.
fn check_months(world: &World) {
    let hub = &world.reactor.hub;
    let mut expected = HashSet::new();
    for client in &world.clients {
        let Some(connection) = world.reactor.connections().get(client.id) else {
            continue;
        };
        let list = connection.session.subscriptions();
        for subscription in hub.index.subscriptions(list) {
            let mut bindings = Vec::new();
            let months = subscription.held(hub.months);
            hub.families
                .amqp_bindings(&subscription, months, &mut bindings);
            expected.extend(bindings);
        }
    }
    let wanted = hub.broker.counts().wanted;
    assert!(wanted >= expected.len());
    if hub.broker.waiters() == 0 {
        assert_eq!(wanted, expected.len());
        let is_told = |binding| world.wanted.contains(binding);
        assert!(world.source.commands.is_empty() && expected.iter().all(is_told));
    }
}

/// Three hours around the end of a month, in which sessions subscribe to documents and unsubscribe, the clock is set,
/// the source comes and goes, and binds wait. Returns how many groups roll-overs brought on.
fn documents_around_the_months_end(seed: u64, tokens: &std::path::Path) -> u64 {
    const DOCUMENTS: [&str; 5] = [
        "object.doc_created.fax",
        "object.*.*",
        "doc_edited.*.mailbox_message.1",
        "fax.object.*",
        "call.*.*",
    ];
    let mut rng = Rng::with_seed(seed);
    let mut world = readers_in(World::new(seed, tokens), 6, &[]);
    let say = |world: &mut World, client: usize, command: Value| {
        let text = client_text(&command.to_string());
        world.clients[client].wire.borrow_mut().send(&text);
    };
    let token = TOKENS[0].0;
    for client in 0..world.clients.len() {
        say(
            &mut world,
            client,
            json!({"action": "ping", "auth_token": token}),
        );
    }
    world.turn_without_judge();
    world.clock = DECEMBER - 90 * MINUTE;
    for _ in 0..400 {
        let client = rng.usize(..world.clients.len());
        let data = json!({"account_id": ACCOUNTS[0], "binding": DOCUMENTS[rng.usize(..5)]});
        match rng.u32(..20) {
            0..9 => {
                let mut command = json!({"action": "subscribe", "data": data});
                if rng.bool() {
                    command["request_id"] = json!(rng.u32(..2).to_string());
                }
                say(&mut world, client, command);
            }
            9..13 => say(
                &mut world,
                client,
                json!({"action": "unsubscribe", "data": data}),
            ),
            13 => say(&mut world, client, json!({"action": "unsubscribe"})),
            14..18 => world.clock += Duration::from_secs(rng.u64(1..240)),
            18 => world.stepped = [0, 0, 2 * HOUR, -HOUR, 40 * DAY, -40 * DAY][rng.usize(..6)],
            _ => world.source_comes_or_goes(),
        }
        for _ in 0..rng.u32(..4) {
            world.turn_without_judge();
        }
        if rng.u32(..3) > 0 {
            world.source_works();
            // What the loop kept while the source did not listen comes with its next turn.
            world.turn_without_judge();
            world.source_works();
            check_months(&world);
        }
    }
    if !world.is_up {
        world.source_comes_or_goes();
    }
    for client in 0..world.clients.len() {
        say(&mut world, client, json!({"action": "unsubscribe"}));
    }
    for _ in 0..20 {
        world.turn_without_judge();
        world.source_works();
        world.clock += 11 * MINUTE;
    }
    check_months(&world);
    assert_eq!(world.wanted, [], "what nobody needs is unbound");
    world.reactor.hub.metrics.months_groups_total
}

#[test]
fn each_subscription_has_the_bindings_of_its_months_through_roll_overs_under_every_seed() {
    let (_directory, tokens) = token_file();
    let moved = under_seeds(64, |seed| documents_around_the_months_end(seed, &tokens));
    assert!(moved.iter().sum::<u64>() > 1000, "{moved:?}");
}

/// When each AMQP binding of December was asked for, by so many document subscriptions, in a world of this seed.
fn december_binds(seed: u64, subscriptions: u32) -> Vec<Duration> {
    let (_directory, tokens) = token_file();
    let mut world = readers_in(World::new(seed, &tokens), 1, &[]);
    for number in 0..subscriptions {
        let command = json!({"action": "subscribe", "auth_token": TOKENS[0].0, "data":
            {"account_id": ACCOUNTS[0], "binding": format!("doc_created.*.fax.{number}")}});
        let text = client_text(&command.to_string());
        world.clients[0].wire.borrow_mut().send(&text);
    }
    let all = usize::try_from(subscriptions).expect("few");
    while world.reactor.hub.index.counts().subscriptions < all {
        world.turn_without_judge();
        world.source_works();
    }
    let mut binds = Vec::new();
    world.clock = DECEMBER - 61 * MINUTE;
    while world.clock < DECEMBER {
        let before = world.reactor.hub.broker.counts().wanted;
        let now = world.now();
        world.reactor.turn(&[], now);
        let bound = world.reactor.hub.broker.counts().wanted - before;
        let of_a_turn = blackhole::limits::ROLL_OVER_GROUPS_PER_TURN;
        assert!(bound <= of_a_turn, "{bound} in one turn");
        binds.extend(std::iter::repeat_n(world.clock, bound));
        world.source_works();
        let patience = world.reactor.patience(world.now());
        world.clock += patience.clamp(Duration::from_millis(1), Duration::from_secs(30));
    }
    assert_eq!(binds.len(), all, "all before the month begins");
    binds
}

#[test]
fn the_binds_of_a_month_are_spread_over_half_an_hour_and_begin_at_another_moment_in_every_process()
{
    const SUBSCRIPTIONS: u32 = 1000;
    let mut beginnings = HashSet::new();
    for seed in 0..3 {
        let binds = december_binds(seed, SUBSCRIPTIONS);
        let (first, last) = (binds[0], binds[binds.len() - 1]);
        beginnings.insert(first);
        assert!(first >= DECEMBER - 60 * MINUTE, "{first:?}");
        assert!(last <= DECEMBER - 29 * MINUTE, "{last:?}");
        for minute in 0..60 {
            let from = DECEMBER - (60 - minute) * MINUTE;
            let within = binds
                .iter()
                .filter(|at| (from..from + MINUTE).contains(*at));
            // A twentieth each minute, and a step more where one falls into it.
            let count = within.count();
            assert!(count <= 1000 / 20 + 64, "{count} in minute {minute}");
        }
    }
    assert!(beginnings.len() > 1, "{beginnings:?}");
}

#[test]
fn who_speaks_during_a_fan_out_is_answered_before_the_fan_out_is_over() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(901, &[], &tokens);
    for client in &mut world.clients[..900] {
        client.subscribe((0, "call.*.*"));
    }
    world.settle();
    let before = world.delivered;
    while world.delivered == before {
        world.publish();
        world.turn();
    }
    world.clients[900].ping();
    for _ in 0..2 {
        world.turn();
    }
    let fanned_out = world.reactor.hub.metrics.frames_delivered_total;
    assert!(world.clients[900].asked.is_empty(), "no answer");
    let written = world.delivered - before;
    assert!(
        written < fanned_out,
        "{written} of {fanned_out} were written"
    );
    world.end();
}

/// Forty clients in a drain of ten seconds, ten of them with full sockets until three of them are over.
fn drained_world(max_outboxes_bytes: usize, tokens: &std::path::Path) -> (World, u64, u64) {
    let mut world = world_of_readers(40, &["call.*.*"], tokens);
    world.reactor.hub.limits.outbox_bytes_max = usize::MAX;
    world.reactor.hub.limits.queued_messages_max = usize::MAX;
    world.reactor.hub.limits.outboxes_bytes_max = usize::MAX;
    for client in &world.clients[..10] {
        client.wire.borrow_mut().room = 100;
    }
    let before = world.delivered;
    (0..30).for_each(|_| world.publish());
    let due = |client: &Client| client.due.values().map(VecDeque::len).sum::<usize>();
    let owed = world.clients.iter().map(due).sum::<usize>();
    while !world.outgoing.is_empty() || world.reactor.patience(world.now()) == Duration::ZERO {
        world.turn();
    }
    assert_eq!(world.reactor.hub.totals.blocked_sessions, 10);
    let begun = world.clock;
    world.reactor.announce_drain();
    world
        .reactor
        .begin_drain(Duration::from_secs(10), world.now());
    while !world.reactor.is_drained(world.now()) {
        world.clock += Duration::from_millis(50);
        if world.clock - begun == Duration::from_millis(2500) {
            assert_eq!(
                world.reactor.hub.totals.blocked_sessions, 10,
                "all are closed"
            );
            world.reactor.hub.limits.outboxes_bytes_max = max_outboxes_bytes;
        }
        if world.clock - begun == Duration::from_secs(3) {
            for client in &world.clients {
                client.wire.borrow_mut().make_room(usize::MAX / 4);
            }
        }
        world.turn();
        for client in &world.clients {
            let mut wire = client.wire.borrow_mut();
            if wire.server_shut && !wire.client_closed {
                (wire.client_closed, wire.edge_readable) = (true, true);
            }
        }
    }
    assert!(world.reactor.connections().is_empty(), "nobody was cut");
    let delivered = world.delivered - before;
    (world, owed as u64, delivered)
}

#[test]
fn a_drain_closes_everybody_behind_the_frames_that_waited_for_them() {
    let (_directory, tokens) = token_file();
    let (world, owed, delivered) = drained_world(usize::MAX, &tokens);
    assert!(owed > 40 && delivered == owed, "{delivered} of {owed} came");
    assert_eq!(world.reactor.hub.metrics.closes_drain_total, 40);
}

#[test]
fn what_waits_for_those_whom_a_drain_has_closed_stays_within_max_outboxes_bytes() {
    let (_directory, tokens) = token_file();
    let (world, owed, delivered) = drained_world(30_000, &tokens);
    assert!(delivered < owed, "nothing was over the bound");
    assert_eq!(world.reactor.hub.metrics.closes_drain_total, 40);
}

/// What clock steps are tried: an hour and more than a month, either way, there and back.
const STEPPED: [i64; 8] = [
    HOUR,
    -HOUR,
    40 * DAY,
    -40 * DAY,
    0,
    -400 * DAY,
    400 * DAY,
    0,
];

#[test]
fn a_step_of_the_wall_clock_ends_no_wait_and_no_session() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(2, &["call.CHANNEL_CREATE.*"], &tokens);
    // One that has not finished its handshake, one that has not authenticated, one whose subscribe waits.
    world.connect();
    let wire = world.clients[2].wire.clone();
    wire.borrow_mut().to_server.truncate(10);
    world.connect();
    let wire = world.clients[3].wire.clone();
    wire.borrow_mut().to_server.clear();
    wire.borrow_mut().grain = usize::MAX;
    wire.borrow_mut().send(UPGRADE_REQUEST.as_bytes());
    world.clients[1].subscribe((0, "call.*.c2"));
    for stepped in STEPPED {
        world.stepped = stepped;
        world.clock += Duration::from_millis(500);
        world.turn();
        world.clients[0].ping();
        world.turn();
        world.turn();
        assert!(world.clients[0].asked.is_empty(), "{stepped}: no answer");
        assert_eq!(world.clients.len(), 4, "{stepped}: somebody was closed");
        assert_eq!(world.clients[1].asked.len(), 1, "{stepped}: the wait ended");
    }
    world.settle();
    assert!(world.clients[1].live.contains(&(0, "call.*.c2")));
    let before = world.delivered;
    (0..50).for_each(|_| world.publish());
    world.settle();
    world.check_debts();
    assert!(world.delivered > before);
    assert!(
        world
            .clients
            .iter()
            .all(|client| client.outage_notices == 0)
    );
    world.end();
}

#[test]
fn tokens_expire_by_the_wall_clock_whichever_way_it_steps() {
    let (_directory, tokens) = token_file();
    let expires = 1_700_000_000 + 2 * HOUR;
    let file = json!({TOKENS[0].0: {"account_id": ACCOUNTS[0], "expires": expires}});
    std::fs::write(&tokens, file.to_string()).expect("a token file");
    let mut world = world_of_readers(3, &["call.*.*"], &tokens);
    for stepped in [HOUR, -40 * DAY, 2 * HOUR - 10, 0] {
        world.stepped = stepped;
        world.clock += Duration::from_secs(1);
        world.settle();
        assert_eq!(
            world.reactor.hub.index.counts().subscriptions,
            3,
            "{stepped}"
        );
    }
    world.stepped = 2 * HOUR;
    for client in &mut world.clients {
        // The model takes only other closes for a mistake of the server.
        client.give_up(|_| true);
        client.closed_with = Some(0);
    }
    world.clock += Duration::from_secs(1);
    world.settle();
    assert!(
        world
            .clients
            .iter()
            .all(|client| client.closed_with == Some(4401)),
        "{:?}",
        world.clients
    );
    world.end();
}

#[test]
fn months_follow_a_wall_clock_that_steps_either_way_and_no_binding_is_lost_or_left() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(3, &["call.*.*"], &tokens);
    world.clients[..2].iter_mut().for_each(subscribe_to_faxes);
    world.settle();
    let bindings = world.in_force.len();
    for (stepped, month) in [
        (HOUR, "202311"),
        (30 * DAY, "202312"),
        (0, "202311"),
        (-30 * DAY, "202310"),
        (400 * DAY, "202412"),
        (-400 * DAY, "202210"),
        (0, "202311"),
    ] {
        world.stepped = stepped;
        world.settle();
        let keys: Vec<&str> = world.in_force.iter().map(|binding| &*binding.key).collect();
        assert_eq!(keys.len(), bindings, "{stepped}: {keys:?}");
        assert!(keys.contains(&&*fax_key(month)), "{stepped}: {keys:?}");
    }
    // Steps that come faster than the broker answers.
    for stepped in STEPPED {
        world.stepped = stepped;
        world.turn();
    }
    world.settle();
    assert!(
        world
            .in_force
            .iter()
            .any(|binding| *binding.key == *fax_key("202311"))
    );
    world.end();
}

#[test]
fn a_subscribe_that_waits_while_the_month_changes_succeeds_when_the_new_month_is_in_force() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_readers(1, &[], &tokens);
    subscribe_to_faxes(&mut world.clients[0]);
    world.turn();
    world.turn();
    assert_eq!(world.clients[0].asked.len(), 1, "it waits");
    world.stepped = 30 * DAY;
    world.turn();
    world.source_works();
    world.turn();
    world.turn();
    assert_eq!(
        world.clients[0].asked.len(),
        1,
        "what is in force now is the month before's"
    );
    world.settle();
    assert!(world.clients[0].asked.is_empty());
    let keys: Vec<&str> = world.in_force.iter().map(|binding| &*binding.key).collect();
    assert_eq!(keys, [fax_key("202312")]);
    world.end();
}

#[test]
fn the_loop_keeps_its_invariants_and_its_promises_under_every_seed() {
    let (_directory, tokens) = token_file();
    let counts = under_seeds(SEEDS, |seed| {
        let mut world = World::new(seed, &tokens);
        world.source_comes_or_goes();
        (0..4).for_each(|_| world.connect());
        for _ in 0..STEPS {
            world.step();
        }
        world.settle();
        world.check_debts();
        let announced: u64 = world.clients.iter().map(|client| client.announced).sum();
        let outages: u64 = world
            .clients
            .iter()
            .map(|client| client.outage_notices)
            .sum();
        world.end();
        [world.next_event, world.delivered, announced, outages]
    });
    let [events, delivered, announced, outages] =
        [0, 1, 2, 3].map(|kind| counts.iter().map(|one| one[kind]).sum::<u64>());
    println!(
        "{events} events, {delivered} frames delivered, {announced} announced as dropped, {outages} outage notices"
    );
    if counts.len() > 1 {
        assert!(
            events > 1000 && delivered > 1000 && announced > 0 && outages > 0,
            "the simulation exercised too little"
        );
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// The times of a server whose options were not given.
const DEFAULTS: Times = Times {
    ping_interval: Some(Duration::from_secs(25)),
    pong_timeout: Duration::from_secs(10),
    idle_timeout: None,
    message_timeout: Duration::from_secs(10),
};

/// As [`world_of_readers`], under these times. The first client's slot is one that is pinged after four fifths of the
/// interval.
fn world_of_times(clients: usize, times: Times, tokens: &std::path::Path) -> World {
    let mut world = world_of_readers(clients, &[], tokens);
    world.times = times;
    world.reactor.hub.limits.liveness = times.rules();
    for client in &mut world.clients {
        client.answers_pings = true;
        client.ping();
    }
    world.settle();
    world
}

impl World {
    /// What the loop has counted: pings sent, and sessions closed as dead, as idle, and for a message not finished.
    fn liveness_counts(&self) -> [u64; 4] {
        let metrics = &self.reactor.hub.metrics;
        [
            metrics.pings_sent_total,
            metrics.closes_dead_total,
            metrics.closes_idle_total,
            metrics.closes_message_timeout_total,
        ]
    }
}

#[test]
fn a_mute_client_is_pinged_and_dropped_at_its_times_and_not_a_moment_before() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_times(1, DEFAULTS, &tokens);
    world.clients[0].answers_pings = false;
    world.pass(20 * SECOND - TICK);
    assert_eq!(world.liveness_counts(), [0, 0, 0, 0]);
    world.pass(2 * TICK);
    assert_eq!(world.liveness_counts(), [1, 0, 0, 0]);
    assert_eq!(world.clients[0].was_pinged, 1);
    world.pass(10 * SECOND - 2 * TICK);
    assert_eq!(world.liveness_counts(), [1, 0, 0, 0]);
    assert_eq!(world.clients.len(), 1);
    world.pass(3 * TICK);
    assert_eq!(world.liveness_counts(), [1, 1, 0, 0]);
    // Nobody waits for a dead peer to close its side.
    assert_eq!(world.reactor.connections().len(), 0);
    world.end();
}

#[test]
fn a_client_that_answers_stays_for_ever_and_one_that_speaks_is_not_pinged() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_times(2, DEFAULTS, &tokens);
    for _ in 0..40 {
        world.clients[1].ping();
        world.pass(15 * SECOND);
    }
    assert_eq!(world.clients.len(), 2);
    assert_eq!(world.clients[1].was_pinged, 0);
    // Ten minutes at 20 s each.
    assert!(
        (28..=30).contains(&world.clients[0].was_pinged),
        "{:?}",
        world.clients[0]
    );
    world.end();
}

#[test]
fn without_pings_a_silent_client_is_kept_and_the_loop_does_not_wake_for_it() {
    let (_directory, tokens) = token_file();
    let off = Times {
        ping_interval: None,
        ..DEFAULTS
    };
    let mut world = world_of_times(1, off, &tokens);
    world.clients[0].answers_pings = false;
    world.pass(600 * SECOND);
    assert_eq!(world.liveness_counts(), [0; 4]);
    assert_eq!(world.clients.len(), 1);
    assert!(world.reactor.patience(world.now()) > 10 * SECOND);
    world.end();
}

#[test]
fn a_process_that_was_stopped_gives_everybody_a_ping_and_the_time_to_answer_it() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_times(60, DEFAULTS, &tokens);
    for client in &mut world.clients[30..] {
        client.answers_pings = false;
    }
    for stopped_at in [5 * SECOND, 14 * SECOND] {
        // Not pinged yet; then pinged, and a part of the time to answer has passed.
        world.pass(stopped_at);
        let before = world.liveness_counts();
        world.clock += 3600 * SECOND;
        for _ in 0..10 {
            world.turn();
        }
        assert_eq!(world.liveness_counts(), before);
        assert_eq!(world.clients.len(), 60);
    }
    world.pass(25 * SECOND);
    assert_eq!(world.liveness_counts()[1], 30, "the mute are dead");
    assert_eq!(world.clients.len(), 30);
    world.end();
}

#[test]
fn nobody_is_dropped_whose_bytes_are_there_and_were_not_read_yet() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_times(1, DEFAULTS, &tokens);
    world.clients[0].answers_pings = false;
    world.pass(25 * SECOND);
    assert_eq!(world.liveness_counts(), [1, 0, 0, 0]);
    // The answer is in the kernel, and the polls until the time is over do not tell of it.
    let wire = world.clients[0].wire.clone();
    wire.borrow_mut().send(&client_frame(0x8A, PING_PAYLOAD));
    for _ in 0..100 {
        world.clock += TICK;
        world.reactor.turn(&[], world.now());
    }
    assert!(wire.borrow().to_server.is_empty(), "read at last");
    assert_eq!(world.liveness_counts(), [1, 0, 0, 0]);
    assert_eq!(world.reactor.connections().len(), 1);
}

#[test]
fn pings_of_clients_that_came_together_are_spread() {
    const CLIENTS: usize = 900;
    let (_directory, tokens) = token_file();
    let mut world = world_of_times(CLIENTS, DEFAULTS, &tokens);
    let (mut most, mut before) = (0, 0);
    world.pass(20 * SECOND - TICK);
    assert_eq!(world.liveness_counts()[0], 0);
    for _ in 0..102 {
        world.pass(TICK);
        let pings = world.liveness_counts()[0];
        most = most.max(pings - before);
        before = pings;
    }
    assert_eq!(before, CLIENTS as u64, "each once within ±20 %");
    assert!(
        most <= 3 * CLIENTS as u64 / 100,
        "{most} in a tenth of a second"
    );
    world.end();
}

#[test]
fn a_client_that_takes_nothing_is_found_dead_under_the_policy_that_never_closes_slow_ones() {
    let (_directory, tokens) = token_file();
    let mut world = world_of_times(3, DEFAULTS, &tokens);
    world.reactor.hub.limits.slow_consumer = SlowConsumerPolicy::Drop;
    world.policy = SlowConsumerPolicy::Drop;
    for client in &mut world.clients {
        client.subscribe((0, "call.*.*"));
    }
    world.settle();
    for client in &world.clients[..2] {
        client.wire.borrow_mut().room = 0;
    }
    while world.reactor.hub.totals.blocked_sessions < 2 {
        world.publish();
        world.turn();
    }
    // Longer than the time to answer, but not so long as one may wait whose ping could not be written.
    world.pass(50 * SECOND);
    assert_eq!(world.liveness_counts()[1], 0);
    world.clients[1].wire.borrow_mut().make_room(usize::MAX / 4);
    world.pass(30 * SECOND);
    assert_eq!(
        world.liveness_counts()[1],
        1,
        "the one that still takes nothing"
    );
    assert_eq!(world.clients.len(), 2);
    assert!(
        world.clients[0].was_pinged > 0,
        "the one that reads again was asked, and answered"
    );
    world.end();
}

#[test]
fn a_client_whose_subscribes_wait_is_read_on_and_its_pings_of_either_kind_are_answered() {
    let (_directory, tokens) = token_file();
    let times = Times {
        ping_interval: Some(SECOND),
        pong_timeout: SECOND,
        ..DEFAULTS
    };
    let mut world = world_of_times(1, times, &tokens);
    // The broker does not confirm them.
    for binding in BINDINGS {
        world.clients[0].subscribe((0, binding));
    }
    world.clients[0].command(json!({"action": "unsubscribe"}), Asked::Unsubscribe);
    world.clients[0].give_up(|_| true);
    world.clients[0].subscribe((0, "call.*.*"));
    for _ in 0..2000 {
        world.clients[0].ping();
    }
    world.clients[0]
        .wire
        .borrow_mut()
        .send(&client_frame(0x89, b"are you there"));
    world.clients[0].pings.push_back(b"are you there".to_vec());
    for _ in 0..300 {
        world.turn();
    }
    let client = &world.clients[0];
    assert_eq!(client.last_pong.as_deref(), Some(&b"are you there"[..]));
    // What was unsubscribed does not wait any more, so neither does the unsubscribe.
    assert_eq!(client.asked.len(), 1, "{:?}", client.asked);
    world.pass(9 * SECOND);
    let connection = world.reactor.connections().iter().next();
    let (_, connection) = connection.expect("still there");
    assert!(connection.session.is_waiting() && connection.session.wants_bytes());
    assert_eq!(world.liveness_counts()[1..], [0; 3]);
    world.settle();
    assert!(world.clients[0].asked.is_empty());
    world.end();
}

#[test]
fn a_client_without_a_frame_of_its_own_is_closed_at_the_idle_limit_though_it_answers_pings() {
    let (_directory, tokens) = token_file();
    let limit = 360 * SECOND;
    let times = Times {
        idle_timeout: Some(limit),
        ..DEFAULTS
    };
    let own: [(&str, Vec<u8>); 4] = [
        ("nothing", Vec::new()),
        ("a command", client_text("{}")),
        ("a ping", client_frame(0x89, b"")),
        ("a pong that nobody asked for", client_frame(0x8A, b"")),
    ];
    let mut world = world_of_times(own.len(), times, &tokens);
    world.pass(limit - TICK);
    for (client, (_, bytes)) in world.clients.iter_mut().zip(&own) {
        assert!(client.was_pinged > 10);
        client.give_up(|_| true);
        if !bytes.is_empty() {
            client.wire.borrow_mut().send(bytes);
            client.closed_with = Some(0);
        }
    }
    world.turn();
    let codes = |world: &World| -> Vec<Option<u16>> {
        let codes = world.clients.iter().map(|client| client.closed_with);
        codes.collect()
    };
    assert_eq!(codes(&world), [None, Some(0), Some(0), Some(0)]);
    world.pass(3 * TICK);
    assert_eq!(codes(&world), [Some(1000), Some(0), Some(0), Some(0)]);
    world.pass(limit - 4 * TICK);
    assert_eq!(codes(&world), [Some(0); 3]);
    world.pass(4 * TICK);
    assert_eq!(codes(&world), [Some(1000); 3]);
    world.end();
    assert_eq!(world.liveness_counts()[1..], [0, 4, 0]);
}

/// Sends the pieces to the only client's session, evenly so that the last comes `time` after the first, and says
/// whether the session was closed.
fn drip(world: &mut World, pieces: &[Vec<u8>], time: Duration) -> bool {
    let steps = (time.as_millis() / TICK.as_millis()) as usize;
    for step in 0..=steps {
        if step > 0 {
            world.pass(TICK);
        }
        let place = |step: usize| step * pieces.len() / (steps + 1);
        let piece = pieces[place(step)..place(step + 1)].concat();
        world.clients[0].wire.borrow_mut().send(&piece);
    }
    world.turn();
    world.clients[0].closed_with == Some(1008)
}

#[test]
fn a_message_that_was_begun_is_finished_in_its_time_however_it_drips_or_the_session_is_closed() {
    let (_directory, tokens) = token_file();
    let text = json!({"action": "ping", "auth_token": TOKENS[0].0, "request_id": "x".repeat(100)})
        .to_string();
    let byte_by_byte: Vec<Vec<u8>> = client_text(&text)
        .into_iter()
        .map(|byte| vec![byte])
        .collect();
    // Each fragment comes whole, and a ping with it: between two reads no frame is in part.
    let last = text.len() - 1;
    let fragment = |(at, byte)| {
        let first = u8::from(at == 0) | if at == last { 0x80 } else { 0 };
        [client_frame(first, &[byte]), client_frame(0x89, b"")].concat()
    };
    let fragments: Vec<Vec<u8>> = text.bytes().enumerate().map(fragment).collect();
    for pieces in [byte_by_byte, fragments] {
        for (time, is_closed) in [(99, false), (100, false), (103, true)] {
            let mut world = world_of_times(1, DEFAULTS, &tokens);
            // What it is told is judged here.
            world.clients[0].closed_with = Some(0);
            let commands = world.reactor.hub.metrics.commands_total;
            assert_eq!(drip(&mut world, &pieces, time * TICK), is_closed, "{time}");
            let more = world.reactor.hub.metrics.commands_total - commands;
            assert_eq!(more, u64::from(!is_closed), "{time}");
            // The next has a time of its own.
            assert!(is_closed || !drip(&mut world, &pieces, 99 * TICK));
            world.end();
            let expected = [0, 0, u64::from(is_closed)];
            assert_eq!(world.liveness_counts()[1..], expected);
        }
    }
}

#[test]
fn a_frame_that_is_never_finished_is_cut_off_too_and_costs_no_more_than_what_arrived() {
    let (_directory, tokens) = token_file();
    let off = Times {
        ping_interval: None,
        ..DEFAULTS
    };
    let mut world = world_of_times(2, off, &tokens);
    // The first byte of a ping; and 1,000 bytes of a message that announces 60,000.
    let announced = client_frame(0x81, &[b' '; 60_000]);
    for (client, bytes) in world.clients.iter_mut().zip([&[0x89], &announced[..1008]]) {
        client.wire.borrow_mut().send(bytes);
        client.closed_with = Some(0);
    }
    world.turn();
    let held = world.reactor.hub.partial_bytes;
    assert!((1_000..3_000).contains(&held), "{held} bytes");
    world.pass(10 * SECOND);
    let codes = |world: &World, code| {
        world
            .clients
            .iter()
            .all(|one| one.closed_with == Some(code))
    };
    assert!(codes(&world, 0));
    world.pass(3 * TICK);
    assert!(codes(&world, 1008));
    assert_eq!(world.reactor.hub.partial_bytes, 0);
    world.end();
    assert_eq!(world.liveness_counts(), [0, 0, 0, 2]);
}

#[test]
fn pings_that_never_end_do_not_keep_the_memory_of_a_burst() {
    let (_directory, tokens) = token_file();
    let times = Times {
        ping_interval: Some(SECOND),
        ..DEFAULTS
    };
    let mut world = world_of_times(400, times, &tokens);
    for client in &mut world.clients {
        client.subscribe((0, "call.*.*"));
    }
    world.settle();
    let before = world.reactor.hub.metrics.clone();
    // Two events in one turn merge, and each session has a queue.
    for number in 1..=2 {
        let body = json!({"Event-Name": "CHANNEL_CREATE", "Call-ID": "c1", "Account": 0, "Number": number,
            "Custom-Channel-Vars": {"Account-ID": ACCOUNTS[0]}});
        let key = "call.CHANNEL_CREATE.c1".into();
        let event = Event::decode("callevt".into(), key, body.to_string().into_bytes(), None);
        world
            .outgoing
            .push_back(FromSource::Event(Box::new(event.expect("a valid body"))));
        if number == 1 {
            let event = world.outgoing.pop_front().expect("just put there");
            assert!(world.source.send_timeout(event, Duration::ZERO).is_ok());
        }
    }
    world.settle();
    world.pass(3 * SECOND);
    let metrics = &world.reactor.hub.metrics;
    assert!(metrics.pings_sent_total > before.pings_sent_total + 400);
    assert_eq!(metrics.heap_trims_total, before.heap_trims_total + 1);
    world.end();
}

/// What a token file says of one token: its end in seconds from the beginning, if it is there.
type Ends = [Option<u64>; 5];

fn write_tokens(path: &std::path::Path, ends: &Ends) {
    let entries = ends.iter().enumerate().filter_map(|(token, end)| {
        let expires = 1_700_000_000 + (*end)?;
        Some((
            format!("t{token}"),
            json!({"account_id": ACCOUNTS[0], "expires": expires}),
        ))
    });
    let file: serde_json::Map<String, Value> = entries.collect();
    std::fs::write(path, Value::Object(file).to_string()).expect("writable");
}

/// Twenty seconds in which sessions authenticate with tokens that end, and the file is reread with others.
fn sessions_come_and_go_with_their_tokens(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let (_directory, path) = token_file();
    let ends = |rng: &mut Rng| -> Ends {
        std::array::from_fn(|_| (rng.u32(0..5) > 0).then(|| rng.u64(1..30)))
    };
    let mut on_file = ends(&mut rng);
    write_tokens(&path, &on_file);
    let mut world = world_of_readers(12, &[], &path);
    let begun = world.clock;
    // The token that each session runs as; none once it is closed.
    let mut holds: Vec<Option<Option<usize>>> = vec![Some(None); world.clients.len()];
    for second in 1..=20 {
        world.clock = begun + Duration::from_secs(second);
        let second = world.now().unix - 1_700_000_000;
        let (before, mut asked) = (on_file, Vec::new());
        for (index, client) in world.clients.iter().enumerate() {
            if rng.u32(0..4) > 0 {
                continue;
            }
            let token = rng.usize(0..=on_file.len());
            let text = json!({"action": "ping", "auth_token": format!("t{token}")}).to_string();
            client.wire.borrow_mut().send(&client_text(&text));
            if let Some(held) = &mut holds[index] {
                let is_good = on_file.get(token).copied().flatten() > Some(second);
                asked.push((index, is_good));
                if is_good {
                    *held = Some(token);
                }
            }
        }
        for tenth in 0..10 {
            let ready: Vec<Ready> = world
                .clients
                .iter()
                .filter(|client| std::mem::take(&mut client.wire.borrow_mut().edge_readable))
                .map(|client| Ready {
                    id: client.id,
                    readable: true,
                    writable: true,
                    read_closed: false,
                })
                .collect();
            let now = world.now();
            world.reactor.turn(&ready, now);
            if tenth == 4 && rng.u32(0..4) == 0 {
                on_file = ends(&mut rng);
                write_tokens(&path, &on_file);
                let reloaded = world.reactor.hub.authenticator.reload();
                reloaded.expect("a valid token file");
                world.reactor.renew_identities();
            }
            world.clock += Duration::from_millis(90);
        }
        for (index, client) in world.clients.iter().enumerate() {
            let bytes = std::mem::take(&mut client.wire.borrow_mut().to_client);
            let (frames, used) = server_frames(&bytes);
            assert_eq!(used, bytes.len());
            // The loop asks the silent whether they are there.
            let mut frames = frames.into_iter().filter(|(opcode, _)| *opcode != 9);
            for (_, is_good) in asked.iter().filter(|(of, _)| *of == index) {
                let (_, reply) = frames.next().expect("a reply");
                let reply: Value = serde_json::from_slice(&reply).expect("JSON");
                let status = if *is_good { "success" } else { "error" };
                assert_eq!(reply["status"], status, "{reply}, second {second}");
            }
            let is_over = holds[index].is_some_and(|held| {
                let is_past =
                    |ends: Ends, token: usize| ends[token].is_none_or(|end| end <= second);
                held.is_some_and(|token| is_past(before, token) || is_past(on_file, token))
            });
            if is_over {
                holds[index] = None;
                let (opcode, payload) = frames.next().expect("a close frame");
                assert_eq!((opcode, &payload[..2]), (8, &4401_u16.to_be_bytes()[..]));
            }
            assert_eq!(frames.next(), None, "session {index}, second {second}");
        }
    }
    assert!(world.reactor.hub.metrics.authentications_failed_total > 0);
}

#[test]
fn sessions_live_as_long_as_their_latest_good_token_and_no_longer() {
    for seed in 0..SEEDS {
        println!("seed {seed}");
        sessions_come_and_go_with_their_tokens(seed);
    }
}
