//! The world: a reactor on scripted sockets, a virtual clock, and random steps of its clients and its source.
//!
//! A step does one thing to the loop and lets it turn once or twice. After each turn the `judge` looks.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use blackhole::config::Config;
use blackhole::handoff::{FromSource, SourceEnd};
use blackhole::metrics::Metrics;
use blackhole::reactor::{Reactor, Ready};
use blackhole::routing::amqp_binding::{AmqpBinding, Ticket};
use blackhole::session::ListenerKind;
use blackhole::session::clock::Now;
use blackhole::session::close::CloseReason;
use blackhole::session::id::Peer;
use blackhole::session::outbox::SlowConsumerPolicy;
use fastrand::Rng;
use serde_json::{Value, json};

use crate::client::{Client, Deed};
use crate::ends::{ENDS, counted_ends};
use crate::judge::Untold;
use crate::model::{
    ACCOUNTS, Asked, BINDINGS, PRESENCE, RATE_BURST, RATE_PER_SECOND, TICK, TOKENS, Times,
};
use crate::rights::Rights;
use crate::stream::Tally;
use support::scripted::{Scripted, Wire, config, now, reactor};
use support::wire::{UPGRADE_REQUEST, client_frame};

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
    pub(crate) wanted: HashMap<AmqpBinding, Ticket>,
    pub(crate) in_force: HashSet<AmqpBinding>,
    /// Asked for, and not answered yet.
    pub(crate) unconfirmed: Vec<AmqpBinding>,
    /// Wanted, and said to be lost.
    pub(crate) lost: HashSet<AmqpBinding>,
    /// The source takes its time with answers.
    pub(crate) dawdles: bool,
    pub(crate) next_event: u64,
    pub(crate) next_port: u16,
    pub(crate) policy: SlowConsumerPolicy,
    pub(crate) is_draining: bool,
    pub(crate) tokens: PathBuf,
    /// What the token file has said, each with the number of the last event that was taken before.
    pub(crate) rights: Vec<(u64, Rights)>,
    /// Number of the last event that the loop has taken.
    pub(crate) last_taken: u64,
    /// Bindings that the source has ever said to be lost.
    pub(crate) ever_lost: HashSet<AmqpBinding>,
    /// Connections made.
    pub(crate) accepted: u64,
    /// Events in the hand-off: routing keys, bytes of their bodies, numbers. And how many there were ever.
    pub(crate) in_handoff: VecDeque<(String, usize, u64)>,
    pub(crate) events_handed: u64,
    /// Of these, those that the last turn took.
    pub(crate) taken: Vec<(String, usize)>,
    /// What all clients have read, and what those that are gone may not have.
    pub(crate) tally: Tally,
    pub(crate) untold: Untold,
    /// The counters of ends after the last turn.
    pub(crate) ends_counted: [(CloseReason, u64); ENDS],
    /// Connections that were refused before they were any client's, since the last turn.
    pub(crate) turned_away: usize,
    pub(crate) connections_max: usize,
    pub(crate) connections_per_ip_max: usize,
}

impl World {
    /// Limits at random, a hand-off that holds few messages, and no history.
    pub(crate) fn new(seed: u64, tokens: &Path) -> Self {
        let handoff_max = Rng::with_seed(!seed).usize(1..50);
        Self::with_handoff(handoff_max, seed, tokens)
    }

    /// As [`World::new`], with a history of so many bytes, which makes AMQP bindings outlive their users.
    pub(crate) fn with_history(bytes: usize, seed: u64, tokens: &Path) -> Self {
        let handoff_max = Rng::with_seed(!seed).usize(1..50);
        Self::made_of(bytes, [CONNECTIONS_MAX; 2], handoff_max, seed, tokens)
    }

    /// As [`World::new`], with a hand-off that holds so many messages.
    pub(crate) fn with_handoff(handoff_max: usize, seed: u64, tokens: &Path) -> Self {
        Self::with_places([CONNECTIONS_MAX; 2], handoff_max, seed, tokens)
    }

    /// As [`World::with_handoff`], with places for so many connections, in all and of one address.
    pub(crate) fn with_places(
        [connections_max, connections_per_ip_max]: [usize; 2],
        handoff_max: usize,
        seed: u64,
        tokens: &Path,
    ) -> Self {
        let places = [connections_max, connections_per_ip_max];
        Self::made_of(0, places, handoff_max, seed, tokens)
    }

    fn made_of(
        history_bytes: usize,
        [connections_max, connections_per_ip_max]: [usize; 2],
        handoff_max: usize,
        seed: u64,
        tokens: &Path,
    ) -> Self {
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
            max_connections: Some(connections_max),
            max_connections_per_ip: Some(connections_per_ip_max),
            history_bytes,
            rate_limit_burst: RATE_BURST as u32,
            rate_limit_per_second: RATE_PER_SECOND as u32,
            ..config(&["--auth", &auth])
        };
        let times = Times::random(&mut rng);
        let (source, mut reactor) = reactor(&config, handoff_max, seed);
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
            wanted: HashMap::new(),
            in_force: HashSet::new(),
            unconfirmed: Vec::new(),
            lost: HashSet::new(),
            dawdles: false,
            next_event: 0,
            next_port: 1000,
            policy,
            is_draining: false,
            tokens: tokens.to_owned(),
            rights: vec![(0, Rights::default())],
            last_taken: 0,
            ever_lost: HashSet::new(),
            accepted: 0,
            in_handoff: VecDeque::new(),
            events_handed: 0,
            taken: Vec::new(),
            tally: Tally::default(),
            untold: Untold::default(),
            ends_counted: counted_ends(&Metrics::default()),
            turned_away: 0,
            connections_max,
            connections_per_ip_max,
        }
    }

    pub(crate) fn now(&self) -> Now {
        let now = now(self.clock);
        Now {
            unix_ms: now.unix_ms.saturating_add_signed(self.stepped * 1_000),
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
            92 if self.rng.u32(0..2) == 0 => self.change_rights(),
            93 => self.switch_token(),
            94 => match self.rng.u32(0..5) {
                0 | 1 => self.lose(),
                2 | 3 => self.heal(),
                _ => self.overflow(),
            },
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
        let token = TOKENS[self.rng.usize(0..TOKENS.len())];
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
        let answers_pings = self.rng.u32(0..5) > 0;
        let ip = if self.rng.bool() {
            IpAddr::from(Ipv4Addr::LOCALHOST)
        } else {
            IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, self.rng.u16(0..7)])
        };
        if let Some(client) = self.join(wire, ip, token) {
            client.answers_pings = answers_pings;
        }
    }

    /// Takes a connection of this address in; `None`: it was closed without a word.
    pub(crate) fn join(
        &mut self,
        wire: Rc<RefCell<Wire>>,
        ip: IpAddr,
        token: &'static str,
    ) -> Option<&mut Client> {
        self.next_port = self.next_port.checked_add(1).unwrap_or(1000);
        let peer = Peer::from(SocketAddr::from((ip, self.next_port)));
        let now = self.now();
        self.accepted += 1;
        let socket = Scripted(wire.clone());
        let Some(id) = self
            .reactor
            .accept(socket, peer, ListenerKind::Clients, now)
        else {
            self.turned_away += 1;
            let wire = wire.borrow();
            self.untold.add_turned_away(&wire);
            return None;
        };
        let client = Client::new(id, wire, token, ip, self.clock, self.awake);
        self.clients.push(client);
        self.clients.last_mut()
    }

    pub(crate) fn pick(&mut self) -> Option<usize> {
        let open: Vec<usize> = (0..self.clients.len())
            .filter(|index| self.clients[*index].is_talking())
            .collect();
        (!open.is_empty()).then(|| open[self.rng.usize(0..open.len())])
    }

    pub(crate) fn command(&mut self) {
        let Some(index) = self.pick() else { return };
        let binding = match self.rng.u32(0..4) {
            0 => PRESENCE[self.rng.usize(0..PRESENCE.len())],
            _ => BINDINGS[self.rng.usize(0..BINDINGS.len())],
        };
        let account = self.rng.usize(0..ACCOUNTS.len());
        let kind = self.rng.u32(0..10);
        let split = self.rng.usize(0..60);
        let (_, rights) = self.rights.last().expect("there always are some");
        let client = &mut self.clients[index];
        let key = (account, binding);
        let data = json!({"account_id": ACCOUNTS[account], "binding": binding});
        let (command, asked) = match kind {
            0..6 => {
                // Also one that is refused: rights may change before it is read.
                client.ever.insert(key);
                let command = json!({"action": "subscribe", "data": data});
                (command, rights.expect(client.token, key))
            }
            6..8 => {
                client.give_up(|live| *live == key);
                (
                    json!({"action": "unsubscribe", "data": data}),
                    Asked::Unsubscribe,
                )
            }
            8 => {
                client.give_up(|_| true);
                (json!({"action": "unsubscribe"}), Asked::Unsubscribe)
            }
            _ => (json!({"action": "ping"}), Asked::Ping),
        };
        let is_good = rights.is_good(client.token);
        let asked = if is_good { asked } else { Asked::BadToken };
        client.command_in_parts(command, asked, split);
    }

    /// Input that is answered with an error reply or a close; either way nobody else notices.
    pub(crate) fn nonsense(&mut self) {
        let Some(index) = self.pick() else { return };
        let too_long = self.reactor.hub.limits.codec.message_bytes_max + 1;
        let (deed, bytes) = match self.rng.u32(0..6) {
            0 => (
                Deed::Fault(CloseReason::Binary),
                client_frame(0x82, b"binary"),
            ),
            1 => (
                Deed::Fault(CloseReason::InvalidText),
                client_frame(0x81, b"\xff\xfe"),
            ),
            2 => {
                let noise = (0..self.rng.usize(1..50)).map(|_| self.rng.u8(..));
                (Deed::Noise, noise.collect())
            }
            3 => (
                Deed::Fault(CloseReason::Protocol),
                client_frame(0xC1, b"reserved bit"),
            ),
            4 => {
                let begun = client_frame(0x81, &vec![b' '; too_long])[..100].to_vec();
                (Deed::Fault(CloseReason::TooBig), begun)
            }
            _ => (
                Deed::Fault(CloseReason::Protocol),
                client_frame(0x88, &[0x03]),
            ),
        };
        self.clients[index].do_deed(deed, &bytes);
    }

    pub(crate) fn websocket_ping(&mut self) {
        let Some(index) = self.pick() else { return };
        let payload = (0..self.rng.usize(0..125)).map(|_| self.rng.u8(..));
        self.clients[index].websocket_ping(payload.collect());
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
        match self.rng.u32(0..4) {
            0 => client.hang_up(true),
            1 => client.hang_up(false),
            2 => client.unplug(),
            _ => client.do_deed(Deed::Goodbye, &client_frame(0x88, &1000_u16.to_be_bytes())),
        }
    }

    pub(crate) fn flood(&mut self) {
        let Some(index) = self.pick() else { return };
        if !self.rights().is_good(self.clients[index].token) {
            return;
        }
        for _ in 0..self.rng.u32(1..120) {
            self.clients[index].ping();
        }
    }

    /// A client goes on under another token, unless it is about to.
    pub(crate) fn switch_token(&mut self) {
        let Some(index) = self.pick() else { return };
        let (_, rights) = self.rights.last().expect("there always are some");
        let client = &mut self.clients[index];
        let token = TOKENS[self.rng.usize(0..TOKENS.len())];
        let is_settled = client
            .identity
            .is_some_and(|(_, token)| token == client.token);
        if is_settled && client.asked.len() < 5 && rights.is_good(token) && client.ending.is_empty()
        {
            client.switch(token, rights);
            client.ping();
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
        let deed = Deed::Begun(self.awake);
        self.clients[index].do_deed(deed, &bytes);
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
        self.hand_over();
        for client in &mut self.clients {
            for question in client.asked.iter_mut().rev() {
                if question.sent_at.is_some() {
                    break;
                }
                question.sent_at = Some(self.clock);
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
                    // A reset is told as everything at once.
                    writable: wire.room > 0 || wire.is_reset,
                    read_closed: wire.client_closed || wire.is_reset,
                });
            }
        }
        self.rng.shuffle(&mut ready);
        let now = self.now();
        let events = self.reactor.hub.metrics.events_total;
        self.reactor.turn(&ready, now);
        let taken = self.reactor.hub.metrics.events_total - events;
        self.taken.clear();
        for (routing_key, bytes, number) in self.in_handoff.drain(..taken as usize) {
            self.taken.push((routing_key, bytes));
            self.last_taken = number;
        }
        self.check_invariants(now);
        self.note_who_spoke();
        self.look_at_sessions();
        self.read_streams();
        self.check_answers();
    }

    /// A turn of which no model is kept.
    pub(crate) fn turn_without_judge(&mut self) {
        self.hand_over();
        let ready = self.readable();
        self.reactor.turn(&ready, self.now());
    }

    /// Those of whom something came that the loop was not told of; it counts as told.
    pub(crate) fn readable(&self) -> Vec<Ready> {
        let clients = self.clients.iter();
        let readable =
            clients.filter(|client| std::mem::take(&mut client.wire.borrow_mut().edge_readable));
        let ready = readable.map(|client| Ready {
            id: client.id,
            readable: true,
            writable: true,
            read_closed: false,
        });
        ready.collect()
    }

    /// Hands over what the source has to say, as far as there is room.
    pub(crate) fn hand_over(&mut self) {
        while let Some(message) = self.outgoing.pop_front() {
            let event = match &message {
                FromSource::Event(event) => {
                    let body: Value = serde_json::from_str(&event.body).expect("JSON");
                    let number = body["Number"].as_u64().unwrap_or_default();
                    Some((event.routing_key.to_string(), event.body.len(), number))
                }
                FromSource::Lost(bindings) => {
                    let lost = bindings.iter().map(|asked| asked.binding.clone());
                    self.ever_lost.extend(lost);
                    None
                }
                _ => None,
            };
            if let Err(back) = self.source.send_timeout(message, Duration::ZERO) {
                self.outgoing.push_front(back.expect("the loop is there"));
                return;
            }
            self.events_handed += u64::from(event.is_some());
            self.in_handoff.extend(event);
        }
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
            self.heal();
            self.source_works();
            self.turn();
            let is_quiet = self.outgoing.is_empty()
                && self.unconfirmed.is_empty()
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
