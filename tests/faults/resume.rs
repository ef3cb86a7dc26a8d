//! Three servers on one port, killed and started again all the time, under clients that lose their connections and resume
//! with the cursor of their last frame (PROTOCOL 10), and under numbered events of several publishers.
//!
//! The books of a client: each event of its account that the broker took after its first success has come, or lies in a
//! hole that it was told of; nothing of another account; in the order of each publisher; what comes twice is told by its
//! id, among replayed events.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use serde_json::{Value, json};

use support::broker::Broker;
use support::events::database;
use support::publisher::Publisher;
use support::server::{BROKER_PATIENCE, Server, wait_within};
use support::tls::Stream;
use support::wire::{UPGRADE_REQUEST, client_frame, client_text, server_frames};

const SERVERS: usize = 3;
const CLIENTS: usize = 300;
const ACCOUNTS: usize = 30;
const PUBLISHERS: usize = 4;

/// Pause of a publisher between two events.
const PACE: Duration = Duration::from_millis(10);

/// How long before the last frame of a connection a hole may begin that is told after it: what was on its way.
const SLACK: Duration = Duration::from_secs(3);

/// The event that ends a client.
const LAST: &str = "CHANNEL_HOLD";

/// An event that the broker took: when its publish began.
type Taken = BTreeMap<(usize, u64), Instant>;

fn account(number: usize) -> String {
    format!("{:032x}", 0x5000 + number)
}

/// Which events a client is subscribed to: those of an account's calls, whose AMQP bindings all accounts share, or of its
/// documents, whose bindings it has for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Call,
    Document,
}

impl Kind {
    fn binding(self) -> &'static str {
        match self {
            Self::Call => "call.*.*",
            Self::Document => "object.*.user",
        }
    }

    fn publish(
        self,
        to: &Publisher,
        account: &str,
        name: &str,
        publisher: usize,
        number: u64,
    ) -> Result<(), amiquip::Error> {
        let body = json!({"Event-Name": name, "Type": "user", "Account-ID": account, "Publisher": publisher,
            "Number": number});
        let (exchange, key) = match self {
            Self::Call => ("callevt", "call.CHANNEL_CREATE.call".to_owned()),
            Self::Document => (
                "configuration",
                format!("doc_edited.{}.user.id", database(account)),
            ),
        };
        to.try_publish(exchange, &key, body.to_string().as_bytes())
    }
}

/// Publishes numbers to one account after another, each once as a call and once as a document.
fn publish_on(url: String, place: usize, is_over: Arc<AtomicBool>) -> JoinHandle<[Vec<Taken>; 2]> {
    thread::spawn(move || {
        let publisher = Publisher::connect(&url);
        let mut taken = [const { Vec::new() }; 2];
        for of_kind in &mut taken {
            of_kind.resize(ACCOUNTS, Taken::new());
        }
        for number in 1.. {
            if is_over.load(Ordering::SeqCst) {
                break;
            }
            let to = number as usize % ACCOUNTS;
            let begun = Instant::now();
            for (kind, of_kind) in [Kind::Call, Kind::Document].into_iter().zip(&mut taken) {
                kind.publish(&publisher, &account(to), "CHANNEL_CREATE", place, number)
                    .expect("the broker is there");
                of_kind[to].insert((place, number), begun);
            }
            if number % 16 == 0 {
                publisher.settle();
            }
            thread::park_timeout(PACE);
        }
        publisher.settle();
        taken
    })
}

/// A connection of a client.
struct Line {
    stream: Stream,
    bytes: Vec<u8>,
    is_upgraded: bool,
}

impl Line {
    /// `None`: refused, or ended before it began.
    fn connect(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_millis(50)))
            .ok()?;
        stream.set_nodelay(true).ok()?;
        let mut stream = Stream::new(stream);
        stream.write_all(UPGRADE_REQUEST.as_bytes()).ok()?;
        Some(Self {
            stream,
            bytes: Vec::new(),
            is_upgraded: false,
        })
    }

    fn send(&mut self, command: &Value) -> Option<()> {
        let text = client_text(&command.to_string());
        self.stream.write_all(&text).ok()
    }

    /// The messages that have come, after a short wait at most; `None`: the connection has ended, or was refused.
    fn read(&mut self) -> Option<Vec<Value>> {
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk) {
            Ok(0) => return None,
            Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
            Err(error) if is_patience(&error) => {}
            Err(_) => return None,
        }
        if !self.is_upgraded {
            let end = self.bytes.windows(4).position(|four| four == b"\r\n\r\n");
            let Some(end) = end else {
                return Some(Vec::new());
            };
            if !self.bytes.starts_with(b"HTTP/1.1 101") {
                return None;
            }
            self.bytes.drain(..end + 4);
            self.is_upgraded = true;
        }
        let (frames, used) = server_frames(&self.bytes);
        self.bytes.drain(..used);
        let mut messages = Vec::new();
        for (opcode, payload) in frames {
            match opcode {
                1 => messages.push(serde_json::from_slice(&payload).expect("JSON")),
                // What came behind it is lost with the connection, which ends.
                8 if messages.is_empty() => return None,
                9 => self.stream.write_all(&client_frame(0x8A, &payload)).ok()?,
                _ => {}
            }
        }
        Some(messages)
    }
}

fn is_patience(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// What a client has got, and what it was told.
#[derive(Default)]
struct Books {
    first_success: Option<Instant>,
    /// The events that came, and on which connection.
    got: HashMap<(usize, u64), usize>,
    /// What happened on each connection, for whoever has to find out why an event is missing.
    trail: Vec<String>,
    /// Between these moments events may be missing: it was told so.
    holes: Vec<(Instant, Instant)>,
    ids: HashSet<String>,
    /// The last number of each publisher, and that on the connection under way.
    last: HashMap<usize, u64>,
    here: HashMap<usize, u64>,
    /// Those that came again, and for the first time, behind later ones of their publishers.
    late: Vec<(usize, u64)>,
    cursor: Option<String>,
    /// When the cursor was read.
    heard: Option<Instant>,
    has_last: bool,
    counts: Counts,
}

impl Books {
    /// Keeps the newest cursor. One that was told once more, by the reply to a resume, is no later place.
    fn go_on_to(&mut self, cursor: &str, now: Instant) {
        if self.cursor.as_deref() != Some(cursor) {
            self.cursor = Some(cursor.to_owned());
            self.heard = Some(now);
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    connections: u64,
    resumed: u64,
    not_resumed: u64,
    replayed: u64,
    doubles: u64,
    /// Live events that had come before, from a process that was faster.
    live_doubles: u64,
    events: u64,
    outages: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        self.resumed += other.resumed;
        self.not_resumed += other.not_resumed;
        self.replayed += other.replayed;
        self.doubles += other.doubles;
        self.live_doubles += other.live_doubles;
        self.events += other.events;
        self.outages += other.outages;
    }
}

/// A client that reconnects at random until it has the last event.
struct Wanderer {
    number: usize,
    account: String,
    kind: Kind,
    address: SocketAddr,
    rng: Rng,
    books: Books,
}

impl Wanderer {
    fn wander(mut self, is_calm: &AtomicBool, arrived: &AtomicU64) -> Self {
        let deadline = Instant::now() + Duration::from_secs(600);
        while !self.books.has_last {
            assert!(
                Instant::now() < deadline,
                "client {} never ends",
                self.number
            );
            self.stay(is_calm, arrived);
            thread::park_timeout(Duration::from_millis(self.rng.u64(..300)));
        }
        self
    }

    /// One connection, from its begin to its end.
    fn stay(&mut self, is_calm: &AtomicBool, arrived: &AtomicU64) {
        let Some(mut line) = Line::connect(self.address) else {
            return;
        };
        self.books.counts.connections += 1;
        self.books.here.clear();
        let number = self.books.trail.len();
        self.books.trail.push(format!("{number}:"));
        let past = self
            .books
            .cursor
            .as_ref()
            .map_or(json!(true), |cursor| json!(cursor));
        let data =
            json!({"account_id": self.account, "binding": self.kind.binding(), "resume": past});
        let command = json!({"action": "subscribe", "auth_token": "any", "data": data});
        if line.send(&command).is_none() {
            return;
        }
        self.note(format!("{} asks behind {past}", unix_ms()));
        let before = self.books.heard;
        let patience = Instant::now() + Duration::from_millis(self.rng.u64(200..8_000));
        let mut is_live = false;
        while !self.books.has_last {
            if Instant::now() > patience && !is_calm.load(Ordering::SeqCst) {
                return;
            }
            let Some(messages) = line.read() else { return };
            // A client that dies has read some of what came.
            for message in messages {
                let now = Instant::now();
                match message["action"].as_str().expect("an action") {
                    "event" => self.take_event(&message, now),
                    "reply" => {
                        if message["status"] != "success" {
                            let error = &message["data"]["errors"][0];
                            assert_eq!(error, "event source unavailable", "{message}");
                            return;
                        }
                        self.take_reply(&message, before, now);
                        if !is_live && self.books.first_success.is_none() {
                            self.books.first_success = Some(now);
                            arrived.fetch_add(1, Ordering::SeqCst);
                        }
                        is_live = true;
                    }
                    _ => self.take_notice(&message, before, now),
                }
            }
        }
    }

    /// Adds to the trail of the connection.
    fn note(&mut self, what: String) {
        if let Some(line) = self.books.trail.last_mut() {
            line.push_str("; ");
            line.push_str(&what);
        }
    }

    fn take_reply(&mut self, message: &Value, before: Option<Instant>, now: Instant) {
        let data = &message["data"];
        self.note(format!(
            "{} reply {} {}",
            unix_ms(),
            data["resumed"],
            data["cursor"]
        ));
        if self.books.first_success.is_some() {
            match data["resumed"].as_bool() {
                Some(true) => self.books.counts.resumed += 1,
                // Also a server that knows nothing of it.
                _ => {
                    self.books.counts.not_resumed += 1;
                    self.tell_hole(before, now);
                }
            }
        }
        if let Some(cursor) = data["cursor"].as_str() {
            self.books.go_on_to(cursor, now);
        }
    }

    fn tell_hole(&mut self, before: Option<Instant>, now: Instant) {
        let before = before.or(self.books.first_success).unwrap_or(now);
        self.books
            .holes
            .push((before.checked_sub(SLACK).unwrap_or(before), now));
    }

    fn take_notice(&mut self, message: &Value, before: Option<Instant>, now: Instant) {
        let data = &message["data"];
        self.note(format!("{} {}: {data}", unix_ms(), message["name"]));
        match (
            message["name"].as_str().unwrap_or_default(),
            data["reason"].as_str(),
        ) {
            ("resumed" | "going_away", _) => {}
            ("gap", Some("resume")) => self.tell_hole(before, now),
            ("gap", Some("event_source")) => {
                self.books.counts.outages += 1;
                let seconds = data["seconds"].as_f64().expect("seconds");
                let from = now.checked_sub(SLACK + Duration::from_secs_f64(seconds));
                self.books.holes.push((from.unwrap_or(now), now));
            }
            _ => panic!("client {}: {message}", self.number),
        }
    }

    fn take_event(&mut self, message: &Value, now: Instant) {
        let args = &message["args"];
        assert_eq!(args["Account-ID"], *self.account, "foreign: {message}");
        assert_eq!(message["subscribed_key"], self.kind.binding(), "{message}");
        if args["Event-Name"] == LAST {
            self.books.has_last = true;
            return;
        }
        let publisher = args["Publisher"].as_u64().expect("a number") as usize;
        let number = args["Number"].as_u64().expect("a number");
        let is_replayed = message["replayed"] == true;
        let books = &mut self.books;
        books.counts.events += 1;
        books.counts.replayed += u64::from(is_replayed);
        if let Some(cursor) = message["cursor"].as_str() {
            books.go_on_to(cursor, now);
            let id = cursor.split('.').next().expect("one part at least");
            if !books.ids.insert(id.to_owned()) {
                match is_replayed {
                    true => books.counts.doubles += 1,
                    false => books.counts.live_doubles += 1,
                }
                return;
            }
        }
        let before = books.here.insert(publisher, number).unwrap_or_default();
        assert!(
            before < number,
            "client {}: {number} of {publisher} behind {before}: {message}",
            self.number
        );
        let last = books.last.entry(publisher).or_default();
        if number < *last {
            assert!(
                is_replayed,
                "client {}: {message} behind {last}",
                self.number
            );
            books.late.push((publisher, number));
        }
        *last = number.max(*last);
        let connection = books.trail.len() - 1;
        let before = books.got.insert((publisher, number), connection);
        assert!(before.is_none(), "{message}");
        let (place, cursor) = (unix_ms(), message["cursor"].as_str().unwrap_or_default());
        let how = if is_replayed { "~" } else { "" };
        self.note(format!("{place} {how}{publisher}/{number} {cursor}"));
    }

    /// How many events came, and how many are missing in holes that were told. Panics if others are missing.
    fn close(&self, taken: &Taken) -> (usize, usize) {
        let (mut came, mut told) = (0, 0);
        let first = self.books.first_success.expect("it was subscribed");
        for event in &self.books.late {
            // From before its first subscribe, or from a hole that it was told of.
            let begun = taken[event];
            let mut holes = self.books.holes.iter();
            let is_told = begun <= first || holes.any(|(from, to)| *from <= begun && begun <= *to);
            assert!(is_told, "client {}: {event:?} came late", self.number);
        }
        for (event, begun) in taken {
            if *begun <= first {
                continue;
            }
            if self.books.got.contains_key(event) {
                came += 1;
            } else {
                let mut holes = self.books.holes.iter();
                let is_told = holes.any(|(from, to)| from <= begun && begun <= to);
                assert!(is_told, "{}", self.around(*event, *begun));
                told += 1;
            }
        }
        (came, told)
    }
}

impl Wanderer {
    /// What is known of an event that is missing: the connections on which the ones before and behind it came.
    fn around(&self, event: (usize, u64), begun: Instant) -> String {
        let (publisher, missing) = event;
        let of_publisher = |number: &u64| self.books.got.get(&(publisher, *number)).copied();
        let before = (0..missing).rev().find_map(|it| of_publisher(&it));
        let behind = (missing..missing + 100_000).find_map(|it| of_publisher(&it));
        let trail = &self.books.trail;
        let from = before.unwrap_or_default();
        let to = behind.unwrap_or(trail.len() - 1);
        let holes = self.books.holes.iter();
        let holes: Vec<_> = holes
            .map(|(from, to)| (from.elapsed(), to.elapsed()))
            .collect();
        format!(
            "client {} of {} {:?}: {event:?}, published {:?} ago ({}), never came, and no hole was told: holes of {holes:?}; \
             connections:\n{}",
            self.number,
            self.account,
            self.kind,
            begun.elapsed(),
            unix_ms() - begun.elapsed().as_millis(),
            trail.get(from..=to).unwrap_or_default().join("\n"),
        )
    }
}

/// The moment, as cursors tell it.
fn unix_ms() -> u128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis())
}

/// So long, with these options of the servers.
fn storm(time: Duration, options: &[&str]) {
    let Some(broker) = Broker::own() else {
        return;
    };
    let url = broker.url();
    let args = [
        &[
            "--reuse-port",
            "--drain-seconds",
            "1",
            "--drain-delay-seconds",
            "0",
        ][..],
        &["--max-connections-per-ip", "0"],
        options,
    ]
    .concat();
    let mut servers = vec![Server::bridge(&url, &args)];
    let port = servers[0].address().port().to_string();
    let more = [&["--port", &port][..], &args].concat();
    while servers.len() < SERVERS {
        servers.push(Server::bridge(&url, &more));
    }
    let address = servers[0].address();
    let (is_calm, arrived) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let clients: Vec<JoinHandle<Wanderer>> = (0..CLIENTS)
        .map(|number| {
            let (is_calm, arrived) = (is_calm.clone(), arrived.clone());
            let wanderer = Wanderer {
                number,
                account: account(number % ACCOUNTS),
                kind: if (number / ACCOUNTS).is_multiple_of(2) {
                    Kind::Call
                } else {
                    Kind::Document
                },
                address,
                rng: Rng::with_seed(number as u64),
                books: Books::default(),
            };
            let small = thread::Builder::new().stack_size(512 << 10);
            small
                .spawn(move || wanderer.wander(&is_calm, &arrived))
                .expect("a thread")
        })
        .collect();
    wait_within(BROKER_PATIENCE, "every client is subscribed", || {
        (arrived.load(Ordering::SeqCst) == CLIENTS as u64).then_some(())
    });
    let is_over = Arc::new(AtomicBool::new(false));
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|place| publish_on(url.clone(), place, is_over.clone()))
        .collect();
    let (begun, mut kills) = (Instant::now(), 0);
    let mut rng = Rng::with_seed(1);
    while begun.elapsed() < time {
        thread::park_timeout(Duration::from_millis(rng.u64(1_000..4_000)));
        let mut gone = servers.remove(0);
        if kills % 4 == 3 {
            assert!(gone.stop().success());
        }
        // With -9.
        drop(gone);
        kills += 1;
        servers.push(Server::bridge(&url, &more));
    }
    is_over.store(true, Ordering::SeqCst);
    let taken: Vec<[Vec<Taken>; 2]> = publishers
        .into_iter()
        .map(|thread| thread.join().expect("it published"))
        .collect();
    is_calm.store(true, Ordering::SeqCst);
    let publisher = Publisher::connect(&url);
    let clients = end(clients, || {
        for number in 0..ACCOUNTS {
            for kind in [Kind::Call, Kind::Document] {
                let account = account(number);
                kind.publish(&publisher, &account, LAST, 0, 0)
                    .expect("the broker is there");
            }
        }
    });
    let all = |kind: usize, account: usize| -> Taken {
        let of_all = taken
            .iter()
            .flat_map(|of_kind| of_kind[kind][account].iter());
        of_all.map(|(event, begun)| (*event, *begun)).collect()
    };
    let (mut came, mut told, mut counts) = (0, 0, Counts::default());
    for client in &clients {
        let taken = all(client.kind as usize, client.number % ACCOUNTS);
        let (its_came, its_told) = client.close(&taken);
        (came, told) = (came + its_came, told + its_told);
        counts.add(&client.books.counts);
    }
    println!(
        "{kills} servers ended; {came} events came, {told} in holes that were told; {counts:?}"
    );
    assert!(came > 10_000 && kills > 3 && counts.connections > 1_000);
}

/// Publishes the last event again and again until every client has it.
fn end(clients: Vec<JoinHandle<Wanderer>>, mut publish: impl FnMut()) -> Vec<Wanderer> {
    wait_within(BROKER_PATIENCE, "every client ends", || {
        publish();
        thread::park_timeout(Duration::from_millis(500));
        let mut threads = clients.iter();
        threads.all(JoinHandle::is_finished).then_some(())
    });
    let joined = clients.into_iter().map(JoinHandle::join);
    joined
        .map(|client| client.expect("a good stream"))
        .collect()
}

#[test]
fn three_hundred_clients_that_wander_between_three_servers_that_die_miss_nothing_untold() {
    storm(Duration::from_secs(20), &[]);
}

#[test]
#[ignore = "of two that begin and end alike one is enough every time: cargo test --test faults resume -- --ignored --nocapture"]
fn the_same_with_a_stream() {
    storm(Duration::from_secs(20), &["--history", "stream:kept"]);
}

#[test]
#[ignore = "five minutes: cargo test --test faults resume -- --ignored --nocapture"]
fn the_same_for_five_minutes() {
    storm(Duration::from_secs(300), &[]);
}

#[test]
#[ignore = "five minutes: cargo test --test faults resume -- --ignored --nocapture"]
fn the_same_for_five_minutes_with_a_stream() {
    storm(Duration::from_secs(300), &["--history", "stream:kept"]);
}
