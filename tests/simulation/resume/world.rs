//! The world: processes, a broker, clients, and random steps of all of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use blackhole::config::Config;
use blackhole::event::EventId;
use blackhole::reactor::Ready;
use blackhole::reactor::drain::DrainTimes;
use blackhole::routing::month::Month;
use blackhole::session::ListenerKind;
use blackhole::session::id::Peer;
use blackhole::session::outbox::SlowConsumerPolicy;
use fastrand::Rng;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::broker::{Log, Published};
use super::client::{Around, Client, Connection, Cursor, Resume};
use super::model::{EXCHANGES, MODULES, PROCESSES, PUBLISHERS, Whose, bindings, database, module};
use super::process::{Link, Process};
use crate::model::{ACCOUNTS, CALLS, EVENTS, Key, REALMS, TOKENS, escaped};
use crate::rights::Rights;
use crate::scenes::token_file;
use support::scripted::{Scripted, Wire, config};
use support::wire::UPGRADE_REQUEST;

/// Whether the processes keep a history at all.
pub(super) const HAS_HISTORY: bool = true;

/// Longest time without the broker of a process whose queue goes on: its cursors must say nothing of it elsewhere.
const AWAY_MAX: Duration = Duration::from_secs(8);

/// 2023-12-01T00:00:00Z.
const DECEMBER: u64 = 1_701_388_800;

/// Cursors that are kept for others to try.
const POOL_MAX: usize = 200;

/// What happened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) published: u64,
    /// Frames of events that were read; of these, replayed; of these, seen before.
    pub(super) events: u64,
    pub(super) replayed: u64,
    pub(super) doubles: u64,
    /// Live ones that were seen before.
    pub(super) live_doubles: u64,
    pub(super) cuts: u64,
    pub(super) resumed_here: u64,
    pub(super) resumed_elsewhere: u64,
    /// Replays that came to their end, and that were given up.
    pub(super) caught_up: u64,
    pub(super) given_up: u64,
    /// Not resumed: expired, unknown, too many, outage.
    pub(super) not_resumed: [u64; 4],
    pub(super) garbage: u64,
    pub(super) outages_told: u64,
    pub(super) dropped: u64,
    pub(super) refused: u64,
    pub(super) unavailable: u64,
    pub(super) ended: u64,
    /// Pairs of event and subscription that the books were closed with.
    pub(super) checked: u64,
}

impl Tally {
    pub(super) fn plus(self, other: Self) -> Self {
        let mut not_resumed = self.not_resumed;
        for (one, more) in not_resumed.iter_mut().zip(other.not_resumed) {
            *one += more;
        }
        Self {
            published: self.published + other.published,
            events: self.events + other.events,
            replayed: self.replayed + other.replayed,
            doubles: self.doubles + other.doubles,
            live_doubles: self.live_doubles + other.live_doubles,
            cuts: self.cuts + other.cuts,
            resumed_here: self.resumed_here + other.resumed_here,
            resumed_elsewhere: self.resumed_elsewhere + other.resumed_elsewhere,
            caught_up: self.caught_up + other.caught_up,
            given_up: self.given_up + other.given_up,
            not_resumed,
            garbage: self.garbage + other.garbage,
            outages_told: self.outages_told + other.outages_told,
            dropped: self.dropped + other.dropped,
            refused: self.refused + other.refused,
            unavailable: self.unavailable + other.unavailable,
            ended: self.ended + other.ended,
            checked: self.checked + other.checked,
        }
    }

    pub(super) fn check_that_enough_was_tried(&self) {
        let tried = [self.events, self.cuts, self.outages_told, self.checked];
        assert!(tried.iter().all(|count| *count > 100), "{self:?}");
        if HAS_HISTORY {
            let tried = [
                self.replayed,
                self.resumed_here,
                self.resumed_elsewhere,
                self.caught_up,
                self.not_resumed[0],
                self.not_resumed[1],
                self.not_resumed[3],
                self.garbage,
            ];
            assert!(tried.iter().all(|count| *count > 50), "{self:?}");
        }
    }
}

pub(super) struct World {
    rng: Rng,
    /// Little goes wrong but with the clients' connections.
    is_calm: bool,
    clock: Duration,
    config: Config,
    /// Vanishes with the world.
    _directory: TempDir,
    tokens: PathBuf,
    unix_start_ms: u64,
    log: Log,
    publishers_latest: Duration,
    processes: Vec<Process>,
    incarnations: usize,
    clients: Vec<Client>,
    /// Connections that their clients have forgotten, and that their processes may still have.
    left: Vec<Connection>,
    rights: Vec<Rights>,
    pool: Vec<Cursor>,
    next_port: u16,
    tally: Tally,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let (directory, tokens) = token_file();
        let auth = format!("tokens:{}", tokens.display());
        let is_calm = rng.u32(..4) > 0;
        // Mostly such that what is missed is there.
        let is_small = rng.u32(..4) == 0;
        let keep = if is_small { ["2", "10"] } else { ["60", "600"] };
        let keep = keep[rng.usize(..2)];
        let bytes = if is_small {
            ["0", "3000", "30000"]
        } else {
            ["300000", "16777216", "16777216"]
        };
        let bytes = bytes[rng.usize(..3)];
        let args = [
            ["--auth", &auth],
            ["--history-seconds", keep],
            ["--history-bytes", bytes],
            [
                "--max-lingering-bindings",
                ["3", "20", "1000"][rng.usize(..3)],
            ],
            [
                "--resume-max-events",
                ["20", "500", "100000", "100000"][rng.usize(..4)],
            ],
        ];
        let args: Vec<&str> = args.concat();
        let drops = rng.u32(..4) == 0;
        let config = Config {
            slow_consumer: if drops {
                SlowConsumerPolicy::Drop
            } else {
                SlowConsumerPolicy::Close
            },
            max_outbox_bytes: Some(rng.usize(4_000..60_000)),
            max_queued_messages: Some(rng.usize(2..40)),
            max_connections: None,
            max_connections_per_ip: None,
            rate_limit_burst: 10_000,
            rate_limit_per_second: 10_000,
            ..config(&args)
        };
        // Near the end of a month, or near the moments from which and until which both are in force.
        let unix_start = match rng.u32(..4) {
            0 => DECEMBER - rng.u64(1..20),
            1 => DECEMBER - 3600 - rng.u64(1..20),
            2 => DECEMBER + 3600 - rng.u64(1..20),
            _ => DECEMBER - 86_400 * 9,
        };
        let mut world = Self {
            rng,
            is_calm,
            clock: Duration::from_secs(1),
            config,
            _directory: directory,
            tokens,
            unix_start_ms: unix_start * 1000,
            log: Log::default(),
            publishers_latest: Duration::ZERO,
            processes: Vec::new(),
            incarnations: 0,
            clients: Vec::new(),
            left: Vec::new(),
            rights: vec![Rights::default()],
            pool: Vec::new(),
            next_port: 1000,
            tally: Tally::default(),
        };
        for _ in 0..PROCESSES {
            let process = world.start();
            world.processes.push(process);
        }
        for number in 0..world.rng.usize(4..14) {
            world.add_client(number);
        }
        world
    }

    /// A process that has just started.
    fn start(&mut self) -> Process {
        self.incarnations += 1;
        let unix_start_ms = self.unix_start_ms + self.rng.u64(..300);
        Process::new(
            &self.config,
            self.incarnations,
            self.clock,
            unix_start_ms,
            &mut self.rng,
        )
    }

    fn add_client(&mut self, number: usize) {
        let token = self.rng.usize(..TOKENS.len());
        let all = bindings();
        let mut keys: Vec<Key> = Vec::new();
        for _ in 0..self.rng.usize(1..4) {
            let binding = all[self.rng.usize(..all.len())];
            let account = match self.rng.u32(..5) {
                0 => self.rng.usize(..ACCOUNTS.len()),
                _ => token,
            };
            if keys.iter().all(|key| key.1 != binding) {
                keys.push((account, binding));
            }
        }
        let is_plain = self.rng.u32(..8) == 0;
        self.clients
            .push(Client::new(number, token, &keys, is_plain));
    }

    fn rights(&self) -> &Rights {
        self.rights.last().expect("there always are some")
    }

    pub(super) fn step(&mut self) {
        let step = self.rng.u32(..100);
        // Where little goes wrong, most resumes are good ones.
        let is_harm = matches!(step, 57..60 | 63..65 | 67..70 | 74);
        match step {
            _ if is_harm && self.is_calm && self.rng.u32(..20) > 0 => self.publish(),
            0..30 => self.publish(),
            30..38 => self.cut(),
            38..46 => self.change_room(),
            46..52 => {
                if let Some(client) = self.pick() {
                    self.clients[client].ping();
                }
            }
            52..56 => self.publish_many(),
            56..58 => self.unsubscribe(),
            58 => self.kill(),
            59 => self.drain(),
            60..63 => self.lose_or_find_the_broker(),
            63 => self.overflow(),
            64 => self.lose_exchange(),
            65..67 => self.heal(),
            67 => self.change_rights(),
            68 => self.switch_token(),
            69 if self.rng.bool() => self.switch_module(),
            70 => {
                let pause = Duration::from_millis(self.rng.u64(..300));
                let place = self.rng.usize(..PROCESSES);
                self.processes[place].dawdles_until = self.clock + pause;
            }
            71 => {
                let pause = Duration::from_millis(self.rng.u64(..400));
                let place = self.rng.usize(..PROCESSES);
                self.processes[place].sleeps_until = self.clock + pause;
            }
            72 => {
                let time = self.rng.u64(..3_000);
                self.pass(Duration::from_millis(time));
            }
            73 if self.rng.u32(..3) == 0 => {
                let time = self.rng.u64(5_000..12_000);
                self.pass(Duration::from_millis(time));
            }
            74 if self.rng.u32(..20) == 0 => self.pass(Duration::from_secs(900)),
            _ => {}
        }
        self.clock += Duration::from_millis(self.rng.u64(..50));
        self.act();
    }

    /// Time goes by, in which processes turn and clients read.
    fn pass(&mut self, time: Duration) {
        let end = self.clock + time;
        let pace = if time > Duration::from_secs(60) {
            Duration::from_secs(2)
        } else {
            Duration::from_millis(200)
        };
        while self.clock < end {
            // Before a leap nothing may be on its way.
            self.clock += pace.min(Duration::from_millis(200));
            self.act();
            if pace > Duration::from_secs(1) {
                self.come_back_all();
                self.act();
                self.act();
                self.clock += pace;
            }
        }
    }

    fn come_back_all(&mut self) {
        for process in &mut self.processes {
            if process.link != Link::Up {
                process.come_up(self.log.latest());
            }
            process.heal(self.log.latest());
        }
    }

    /// Everybody does what is next: processes turn, clients connect, subscribe, read.
    fn act(&mut self) {
        for place in 0..PROCESSES {
            self.mind_the_broker(place);
            if self.rng.u32(..5) > 0 && self.clock >= self.processes[place].sleeps_until {
                self.turn(place);
            }
        }
        self.clients_act(false);
        self.replace_drained();
    }

    fn turn(&mut self, place: usize) {
        let process = &mut self.processes[place];
        let connections = self
            .clients
            .iter()
            .filter_map(|one| one.connection.as_ref());
        let mut ready = Vec::new();
        for connection in connections.chain(&self.left) {
            if connection.incarnation != process.incarnation {
                continue;
            }
            let mut wire = connection.wire.borrow_mut();
            let is_writable = std::mem::take(&mut wire.edge_writable);
            // Its room is gone again before the loop was told.
            wire.write_blocked |= is_writable && wire.room == 0;
            if std::mem::take(&mut wire.edge_readable) || is_writable {
                ready.push(Ready {
                    id: connection.id,
                    readable: true,
                    writable: wire.room > 0 || wire.is_reset,
                    read_closed: wire.client_closed || wire.is_reset,
                });
            }
        }
        process.turn(&ready, self.clock, &self.log, &mut self.rng);
        let (latest, incarnation) = (self.log.latest(), process.incarnation);
        for client in &mut self.clients {
            if let Some(connection) = &mut client.connection
                && connection.incarnation == incarnation
            {
                connection.mark(latest);
            }
        }
        let connections = self.processes[place].reactor.connections();
        self.left.retain(|connection| {
            connection.incarnation != incarnation || connections.get(connection.id).is_some()
        });
    }

    /// `all`: everybody reads everything, and is subscribed to what it wants.
    fn clients_act(&mut self, all: bool) {
        for index in 0..self.clients.len() {
            let Some(connection) = &self.clients[index].connection else {
                if all || self.rng.u32(..8) == 0 {
                    self.connect(index);
                }
                continue;
            };
            let incarnation = connection.incarnation;
            let place = self.processes.iter();
            let Some(place) = place
                .enumerate()
                .find(|(_, process)| process.incarnation == incarnation)
                .map(|(place, _)| place)
            else {
                continue;
            };
            let frames_max = match self.rng.u32(..4) {
                _ if all => usize::MAX,
                0 => 0,
                1 => self.rng.usize(..4),
                _ => self.rng.usize(..40),
            };
            let id = connection.id;
            // The socket was closed, without a word or behind it.
            let is_gone = self.processes[place]
                .reactor
                .connections()
                .get(id)
                .is_none();
            self.read(index, place, frames_max);
            let client = &self.clients[index];
            let connection = client.connection.as_ref().expect("as before");
            if connection.is_over || (is_gone && self.rng.bool()) {
                self.left_over(index, "closed");
            } else if connection.is_told_to_go && self.rng.bool() {
                self.read(index, place, usize::MAX);
                self.left_over(index, "told to go");
                self.connect(index);
            } else if all || self.rng.u32(..3) == 0 {
                self.subscribe(index);
            }
        }
    }

    fn read(&mut self, index: usize, place: usize, frames_max: usize) {
        let around = Around {
            log: &self.log,
            clock: self.clock,
            process: &self.processes[place],
            rights: &self.rights,
        };
        let client = &mut self.clients[index];
        client.read(frames_max, &around, &mut self.tally);
        let mut cursors = client.subs.values().filter_map(|sub| sub.cursor.as_ref());
        if let Some(cursor) = cursors.next_back()
            && self.rng.u32(..4) == 0
        {
            let cursor = cursor.clone();
            match self.pool.len() {
                POOL_MAX.. => {
                    let place = self.rng.usize(..POOL_MAX);
                    self.pool[place] = cursor;
                }
                _ => self.pool.push(cursor),
            }
        }
    }

    /// The connection of this client is no more.
    fn left_over(&mut self, index: usize, why: &str) {
        if let Some(connection) = self.clients[index].forget_connection(self.clock, why) {
            connection.hang_up(self.rng.bool());
            self.left.push(connection);
        }
    }

    fn subscribe(&mut self, index: usize) {
        let (rng, pool) = (&mut self.rng, &self.pool);
        let singly = rng.u32(..4) == 0;
        let choose = |last: Option<&Cursor>| {
            let Some(last) = last.cloned() else {
                return match rng.u32(..12) {
                    0 => Resume::Absent,
                    1 if !pool.is_empty() => Resume::Any(pool[rng.usize(..pool.len())].clone()),
                    _ => Resume::FromNow,
                };
            };
            match rng.u32(..100) {
                0..8 => Resume::Any(
                    pool.get(rng.usize(..pool.len().max(1)))
                        .unwrap_or(&last)
                        .clone(),
                ),
                8..10 => Resume::Future(last),
                10..12 => Resume::Yesterday(last),
                12..14 => Resume::Garbage(garbage(rng, &last)),
                14..16 => Resume::FromNow,
                16..18 => Resume::Absent,
                _ => Resume::Own(last),
            }
        };
        let client = &mut self.clients[index];
        // After a refusal of several each is asked for by itself.
        client.subscribe_missing(singly, self.clock, choose);
    }

    fn connect(&mut self, index: usize) {
        let places: Vec<usize> = (0..PROCESSES)
            .filter(|place| !self.processes[*place].is_draining)
            .collect();
        let Some(place) = self.rng.choice(places) else {
            return;
        };
        let room = if self.rng.u32(..4) == 0 {
            self.rng.usize(..6_000)
        } else {
            usize::MAX / 2
        };
        let wire = Wire::new(room, usize::MAX);
        wire.borrow_mut().send(UPGRADE_REQUEST.as_bytes());
        self.next_port = self.next_port.checked_add(1).unwrap_or(1000);
        let peer = Peer::from(SocketAddr::from((Ipv4Addr::LOCALHOST, self.next_port)));
        let process = &mut self.processes[place];
        let now = process.now(self.clock);
        let socket = Scripted(wire.clone());
        let accepted = process
            .reactor
            .accept(socket, peer, ListenerKind::Clients, now);
        let Some(id) = accepted else {
            panic!("a process with room took no connection");
        };
        let incarnation = process.incarnation;
        let client = &mut self.clients[index];
        client.note(self.clock, format!("connects to {incarnation}"));
        client.connection = Some(Connection::new(incarnation, id, wire));
    }

    /// A client that is connected.
    fn pick(&mut self) -> Option<usize> {
        let connected: Vec<usize> = (0..self.clients.len())
            .filter(|index| self.clients[*index].connection.is_some())
            .collect();
        self.rng.choice(connected)
    }

    fn cut(&mut self) {
        let Some(index) = self.pick() else { return };
        self.cut_one(index, "by the network");
    }

    /// A client reads a part of what has come, and the rest is lost.
    fn cut_one(&mut self, index: usize, why: &str) {
        let connection = self.clients[index].connection.as_ref().expect("connected");
        let incarnation = connection.incarnation;
        let mut processes = self.processes.iter();
        if let Some(place) = processes.position(|process| process.incarnation == incarnation) {
            let frames = self.rng.usize(..30);
            self.read(index, place, frames);
        }
        self.tally.cuts += 1;
        self.left_over(index, why);
    }

    fn change_room(&mut self) {
        let Some(index) = self.pick() else { return };
        let connection = self.clients[index].connection.as_ref().expect("connected");
        let mut wire = connection.wire.borrow_mut();
        if wire.room > 10_000 && self.rng.bool() {
            wire.room = self.rng.usize(..3_000);
        } else {
            wire.make_room(if self.rng.u32(..3) == 0 {
                self.rng.usize(1..5_000)
            } else {
                usize::MAX / 4
            });
        }
    }

    fn publish_many(&mut self) {
        for _ in 0..self.rng.usize(5..30) {
            self.publish();
        }
    }

    fn publish(&mut self) {
        for _ in 0..self.rng.u32(1..5) {
            self.publish_one();
        }
    }

    fn publish_one(&mut self) {
        let publisher = self.rng.usize(..PUBLISHERS);
        let call = CALLS[self.rng.usize(..CALLS.len())];
        let account = self.rng.usize(..ACCOUNTS.len());
        let (exchange, routing_key, mut body, whose);
        match self.rng.u32(..8) {
            0..5 => {
                let event = EVENTS[self.rng.usize(..EVENTS.len())];
                exchange = "callevt";
                routing_key = format!("call.{event}.{call}");
                body = json!({"Event-Name": event, "Call-ID": call,
                    "Custom-Channel-Vars": {"Account-ID": ACCOUNTS[account]}});
                whose = Whose::Account(account);
            }
            5 => {
                let kind = ["dialog", "update"][self.rng.usize(..2)];
                let realm = self.rng.usize(..REALMS.len());
                exchange = "presence";
                routing_key = format!("{kind}.{}.{call}", escaped(realm));
                body = json!({"Event-Name": kind, "Call-ID": call});
                whose = Whose::Realm(realm);
            }
            kind => {
                let unix = (self.unix_start_ms + self.clock.as_millis() as u64) / 1000;
                let month = Month::at(unix).to_string();
                exchange = "configuration";
                let database = database(account, (kind == 6).then_some(&month));
                let action = ["doc_created", "doc_edited"][self.rng.usize(..2)];
                let kind = if kind == 6 { "fax" } else { "user" };
                routing_key = format!("{action}.{database}.{kind}.{call}");
                body = json!({"Event-Name": action, "Type": kind, "ID": call});
                whose = Whose::Account(account);
            }
        }
        let number = self.log.latest() + 1;
        body["Number"] = number.into();
        body["Padding"] = "x".repeat(self.rng.usize(..800)).into();
        let body = body.to_string().into_bytes();
        // No two at one moment, so that a moment divides them.
        self.publishers_latest = self
            .clock
            .max(self.publishers_latest + Duration::from_micros(1));
        let published = Published {
            publisher,
            exchange,
            whose,
            at: self.publishers_latest,
            id: EventId::of(exchange, &routing_key, &body).to_string(),
            routing_key,
            body,
        };
        self.log.add(published.clone());
        self.tally.published += 1;
        for process in &mut self.processes {
            if process.link != Link::Lost {
                process.queue.route(number, &published, &mut self.rng);
            }
            if !process.misses(published.exchange, &published.routing_key) {
                continue;
            }
            for client in &mut self.clients {
                if let Some(connection) = &client.connection
                    && connection.incarnation == process.incarnation
                {
                    // It is told when the binding is back; whoever leaves before is not.
                    for sub in client.subs.values_mut() {
                        sub.spared.insert(number);
                    }
                }
            }
        }
    }

    fn unsubscribe(&mut self) {
        let Some(index) = self.pick() else { return };
        let client = &mut self.clients[index];
        let connection = client.connection.as_ref().expect("connected");
        let mut keys: Vec<Key> = connection.live.iter().copied().collect();
        keys.sort_unstable();
        if let Some(key) = self.rng.choice(keys)
            && !connection.is_waiting()
        {
            client.unsubscribe(key, self.clock);
        }
    }

    /// A process dies, and another takes its place.
    fn kill(&mut self) {
        let place = self.rng.usize(..PROCESSES);
        self.replace(place, "the process died");
    }

    fn replace(&mut self, place: usize, why: &str) {
        let incarnation = self.processes[place].incarnation;
        for index in 0..self.clients.len() {
            let connection = self.clients[index].connection.as_ref();
            if connection.is_some_and(|one| one.incarnation == incarnation) {
                self.cut_one(index, why);
            }
        }
        self.left.retain(|one| one.incarnation != incarnation);
        self.processes[place] = self.start();
        for module in self.processes[(place + 1) % PROCESSES].stopped.clone() {
            self.processes[place].switch(module);
        }
    }

    fn drain(&mut self) {
        if self.processes.iter().any(|one| one.is_draining) || self.rng.bool() {
            return;
        }
        let place = self.rng.usize(..PROCESSES);
        let process = &mut self.processes[place];
        process.is_draining = true;
        process.reactor.announce_drain();
        let now = process.now(self.clock);
        let times = DrainTimes {
            going_away: Duration::from_millis(500),
            whole: Duration::from_secs(1),
        };
        process.reactor.begin_drain(times, now);
    }

    fn replace_drained(&mut self) {
        for place in 0..PROCESSES {
            let process = &self.processes[place];
            if process.is_draining && process.reactor.is_drained(process.now(self.clock)) {
                self.replace(place, "drained");
            }
        }
    }

    fn lose_or_find_the_broker(&mut self) {
        let place = self.rng.usize(..PROCESSES);
        let keeps = self.rng.bool() || (self.is_calm && self.rng.u32(..20) > 0);
        let (clock, latest) = (self.clock, self.log.latest());
        let process = &mut self.processes[place];
        match process.link {
            Link::Up => process.go_down(keeps, clock),
            Link::Away | Link::Lost => process.come_up(latest),
        }
    }

    /// A process that was away for as long as its queue may be used comes back.
    fn mind_the_broker(&mut self, place: usize) {
        let latest = self.log.latest();
        let clock = self.clock;
        let process = &mut self.processes[place];
        if process.link == Link::Away && clock >= process.away_since + AWAY_MAX {
            process.come_up(latest);
        }
    }

    fn overflow(&mut self) {
        let place = self.rng.usize(..PROCESSES);
        let latest = self.log.latest();
        self.processes[place].overflow(self.clock, latest, &mut self.rng);
    }

    fn lose_exchange(&mut self) {
        let exchange = EXCHANGES[self.rng.usize(..EXCHANGES.len())];
        for process in &mut self.processes {
            process.lose(exchange, self.clock);
        }
    }

    fn heal(&mut self) {
        let place = self.rng.usize(..PROCESSES);
        if self.processes[place].has_lost() {
            self.processes[place].heal(self.log.latest());
        }
    }

    fn change_rights(&mut self) {
        let mut rights = self.rights().clone();
        let token = self.rng.usize(..TOKENS.len());
        if self.rng.bool() {
            let others = (0..ACCOUNTS.len()).filter(|other| *other != token);
            let more = others.filter(|_| self.rng.bool()).collect();
            rights.descendants[token] = Some(more);
        } else {
            self.rng.shuffle(&mut rights.realms);
        }
        std::fs::write(&self.tokens, rights.to_file()).expect("the token file is written");
        for process in &mut self.processes {
            process.reread();
        }
        let before = self.rights().clone();
        for client in &mut self.clients {
            let token = TOKENS[client.token];
            for (key, sub) in &mut client.subs {
                sub.is_refused = false;
                let could = before.sees(token, key.0);
                let realm_moved = before.realm(key.0) != rights.realm(key.0);
                if could != rights.sees(token, key.0) || (realm_moved && is_presence(*key)) {
                    sub.end();
                }
            }
            client.note(self.clock, format!("rights are {rights:?}"));
        }
        self.rights.push(rights);
    }

    fn switch_token(&mut self) {
        let index = self.rng.usize(..self.clients.len());
        let client = &mut self.clients[index];
        let is_waiting = client
            .connection
            .as_ref()
            .is_some_and(Connection::is_asking);
        if !is_waiting {
            let token = self.rng.usize(..TOKENS.len());
            let rights = self.rights.last().expect("there always are some");
            client.switch(token, rights, self.clock);
        }
    }

    fn switch_module(&mut self) {
        let module_of = module;
        let module = MODULES[self.rng.usize(..MODULES.len())];
        for process in &mut self.processes {
            process.switch(module);
        }
        for client in &mut self.clients {
            for (key, sub) in &mut client.subs {
                if module_of(key.1) == module {
                    sub.is_refused = false;
                    sub.end();
                }
            }
            client.note(self.clock, format!("{module} is switched"));
        }
    }

    /// Everybody is there and reads, and nothing new happens.
    pub(super) fn settle(&mut self) {
        for process in &mut self.processes {
            for module in process.stopped.clone() {
                process.switch(module);
            }
            process.dawdles_until = Duration::ZERO;
            process.sleeps_until = Duration::ZERO;
        }
        let mut quiet = 0;
        for round in 0..5_000 {
            self.clock += Duration::from_millis(20);
            self.come_back_all();
            for client in &mut self.clients {
                for sub in client.subs.values_mut() {
                    // Once all is as it stays.
                    sub.is_refused &= round != 100;
                }
                if let Some(connection) = &client.connection {
                    connection.wire.borrow_mut().make_room(usize::MAX / 4);
                }
            }
            (0..PROCESSES).for_each(|place| self.turn(place));
            self.clients_act(true);
            self.replace_drained();
            let is_quiet = round > 200
                && self.processes.iter().all(|one| one.is_quiet(self.clock))
                && self.clients.iter().all(|client| {
                    client.connection.as_ref().is_some_and(|connection| {
                        let wire = connection.wire.borrow();
                        !wire.edge_readable && wire.to_client.is_empty() && !connection.is_waiting()
                    })
                });
            quiet = if is_quiet { quiet + 1 } else { 0 };
            if quiet > 3 {
                return;
            }
        }
        for process in &self.processes {
            println!("{}: {}", process.incarnation, process.unrest(self.clock));
        }
        let restless = self.clients.iter().filter_map(|client| {
            let connection = client.connection.as_ref()?;
            (connection.is_waiting() || !connection.wire.borrow().to_client.is_empty())
                .then(|| format!("{}\n{}", connection.waits_for(), client.story()))
        });
        let restless: Vec<String> = restless.collect();
        panic!("does not come to rest\n{}", restless.join("\n"));
    }

    pub(super) fn check_debts(&mut self) {
        let rights = self.rights.last().expect("there always are some");
        for client in &self.clients {
            client.check_debts(&self.log, rights, &mut self.tally);
            let connection = client.connection.as_ref().expect("all are connected");
            let token = TOKENS[client.token];
            for key in client.subs.keys() {
                let may = rights.sees(token, key.0)
                    && (!is_presence(*key) || rights.realm(key.0).is_some());
                let has = connection.live.contains(key);
                assert_eq!(has, may, "{key:?} of {token}\n{}", client.story());
            }
        }
    }

    /// All leave; nothing is left.
    pub(super) fn end(mut self) -> Tally {
        for index in 0..self.clients.len() {
            self.left_over(index, "the end");
        }
        for connection in &self.left {
            connection.wire.borrow_mut().make_room(usize::MAX / 4);
        }
        for _ in 0..400 {
            self.clock += Duration::from_millis(500);
            (0..PROCESSES).for_each(|place| self.turn(place));
        }
        for process in &self.processes {
            assert!(process.reactor.connections().is_empty());
            let hub = &process.reactor.hub;
            assert_eq!(hub.subscriptions.index().counts().groups, 0);
            assert_eq!(hub.subscriptions.broker().waiters(), 0);
            if !HAS_HISTORY {
                assert_eq!(hub.subscriptions.broker().counts().wanted, 0);
            }
        }
        self.tally
    }
}

fn is_presence(key: Key) -> bool {
    key.1.starts_with("presence.")
}

/// What is not a cursor.
fn garbage(rng: &mut Rng, cursor: &Cursor) -> Value {
    let text = &cursor.text;
    match rng.u32(..12) {
        0 => json!(""),
        1 => json!(7),
        2 => json!([text]),
        3 => json!({"cursor": text}),
        4 => json!(format!("{text} ")),
        5 => json!(format!("{text}.")),
        6 => json!(text.replace('.', "")),
        7 => json!(text.replacen('.', ".0", 1)),
        8 => json!(format!("0{text}")),
        9 => json!(text[..text.len() - 1].to_owned()),
        10 => json!("x".repeat(rng.usize(1..3000))),
        _ => json!("é.1.abcdef"),
    }
}
