//! Publishes numbered events, again and again over new connections, and keeps the record of what was published when.
//!
//! Every publish waits for the broker's confirm (AMQP's publisher confirms), though not before the next: an event that
//! was confirmed is the broker's, so if a subscribed session does not get it, it was lost between the two.
//!
//! Invariants: a number is on the record before its event is given to the client; at most [`UNCONFIRMED_MAX`] events
//! are not confirmed, so that a broker that hangs makes the publisher wait instead of growing.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use amiquip::{
    AmqpProperties, Auth, Channel, Confirm, Connection, ConnectionOptions, ConnectionTuning,
    ExchangeDeclareOptions, ExchangeType, Publish,
};
use crossbeam_channel::{Receiver, TryRecvError};
use fastrand::Rng;
use flate2::{Compression, write::GzEncoder};

use crate::ledger::Published;
use crate::world::{Kind, Numbered, World};

/// Events on their way to the broker and not yet confirmed.
const UNCONFIRMED_MAX: usize = 4096;

/// Events of one lane that are remembered: far more than are published during the longest outage.
const REMEMBERED: usize = 50_000;

/// Pause between two tries to connect, and between two looks at the time.
const RETRY: Duration = Duration::from_millis(200);
const TICK: Duration = Duration::from_millis(2);

/// Of so many events one has a large body, and one a compressed one.
const LARGE_ONE_IN: u32 = 50;
const GZIP_ONE_IN: u32 = 10;

/// The record of one lane.
#[derive(Default)]
struct LaneRecord {
    /// The number of the first that is remembered, less one.
    forgotten: u64,
    events: VecDeque<Published>,
}

/// What was published, and what the publisher is to do; shared by all threads.
pub(crate) struct Ledger {
    started: Instant,
    lanes: Vec<(AtomicU64, Mutex<LaneRecord>)>,
    /// Publish nothing for now.
    pub(crate) is_paused: AtomicBool,
    /// End.
    pub(crate) is_over: AtomicBool,
    /// Nothing is being done to the broker.
    pub(crate) is_calm: AtomicBool,
    /// Events given to the client and neither confirmed nor given up.
    unconfirmed: AtomicU64,
    /// Events confirmed.
    pub(crate) confirmed: AtomicU64,
    /// Connections opened.
    pub(crate) connections: AtomicU64,
}

impl Ledger {
    pub(crate) fn new(lanes: usize) -> Self {
        Self {
            started: Instant::now(),
            lanes: (0..lanes).map(|_| Default::default()).collect(),
            is_paused: AtomicBool::new(true),
            is_over: AtomicBool::new(false),
            is_calm: AtomicBool::new(true),
            unconfirmed: AtomicU64::new(0),
            confirmed: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        }
    }

    /// Microseconds of the soak.
    pub(crate) fn now(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    /// Events of a lane so far: the number of the last.
    pub(crate) fn published(&self, lane: usize) -> u64 {
        self.lanes[lane].0.load(Ordering::SeqCst)
    }

    /// Events of all lanes so far.
    pub(crate) fn published_in_all(&self) -> u64 {
        (0..self.lanes.len()).map(|lane| self.published(lane)).sum()
    }

    /// What is known of an event; nothing when it is forgotten or never was.
    pub(crate) fn record(&self, lane: usize, number: u64) -> Option<Published> {
        let record = self.lanes[lane]
            .1
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let place = number.checked_sub(record.forgotten + 1)?;
        record.events.get(usize::try_from(place).ok()?).copied()
    }

    /// Whether the broker has said of every event that it has it, or never will.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_paused.load(Ordering::SeqCst) && self.unconfirmed.load(Ordering::SeqCst) == 0
    }

    /// Enters the next event of a lane: when, and its number.
    fn enter(&self, lane: usize) -> (u64, u64) {
        let (count, record) = &self.lanes[lane];
        let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
        if record.events.len() >= REMEMBERED {
            record.events.pop_front();
            record.forgotten += 1;
        }
        let at = self.now();
        let event = Published {
            at,
            is_unconfirmed: false,
        };
        record.events.push_back(event);
        self.unconfirmed.fetch_add(1, Ordering::SeqCst);
        (at, count.fetch_add(1, Ordering::SeqCst) + 1)
    }

    fn confirm(&self) {
        self.confirmed.fetch_add(1, Ordering::SeqCst);
        self.unconfirmed.fetch_sub(1, Ordering::SeqCst);
    }

    /// The broker will not say any more whether it has this event.
    fn give_up(&self, lane: usize, number: u64) {
        let mut record = self.lanes[lane]
            .1
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let place = number.saturating_sub(record.forgotten + 1) as usize;
        if let Some(event) = record.events.get_mut(place) {
            event.is_unconfirmed = true;
        }
        drop(record);
        self.unconfirmed.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Publishes about `rate` events a second to the broker on `port` until the ledger says that it is over.
pub(crate) fn publish(ledger: &Ledger, world: &World, port: u16, rate: f64, mut rng: Rng) {
    while !ledger.is_over.load(Ordering::SeqCst) {
        // The broker may be away: that is what the soak is about, and the next try is soon.
        let Some((connection, channel, confirms)) = open(port) else {
            std::thread::sleep(RETRY);
            continue;
        };
        ledger.connections.fetch_add(1, Ordering::SeqCst);
        let mut line = Line {
            ledger,
            world,
            channel,
            confirms,
            next_tag: 1,
            unconfirmed: BTreeMap::new(),
        };
        // It ends by an error when the broker goes, and is begun again.
        let _ = line.serve(rate, &mut rng);
        for (lane, number) in std::mem::take(&mut line.unconfirmed).into_values() {
            ledger.give_up(lane, number);
        }
        drop(line);
        let _ = connection.close();
    }
}

/// As the client connects by itself, but with TCP_NODELAY, without which an event waits for the next.
fn open(port: u16) -> Option<(Connection, Channel, Receiver<Confirm>)> {
    let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).ok()?;
    stream.set_nodelay(true).ok()?;
    let stream = mio06::net::TcpStream::from_stream(stream).ok()?;
    let options = ConnectionOptions::<Auth>::default();
    let tuning = ConnectionTuning::default();
    let mut connection = Connection::insecure_open_stream(stream, options, tuning).ok()?;
    let channel = connection.open_channel(None).ok()?;
    for kind in Kind::ALL {
        let options = ExchangeDeclareOptions::default();
        channel
            .exchange_declare(ExchangeType::Topic, kind.exchange(), options)
            .ok()?;
    }
    channel.enable_publisher_confirms().ok()?;
    let confirms = channel.listen_for_publisher_confirms().ok()?;
    Some((connection, channel, confirms))
}

/// One connection's worth of publishing.
struct Line<'a> {
    ledger: &'a Ledger,
    world: &'a World,
    channel: Channel,
    confirms: Receiver<Confirm>,
    next_tag: u64,
    /// Lane and number by delivery tag.
    unconfirmed: BTreeMap<u64, (usize, u64)>,
}

impl Line<'_> {
    /// Ends with `Ok` when it is over, else with what broke the connection.
    fn serve(&mut self, rate: f64, rng: &mut Rng) -> amiquip::Result<()> {
        let (mut began, mut done) = (Instant::now(), 0.0);
        while !self.ledger.is_over.load(Ordering::SeqCst) {
            if !self.take_confirms() {
                return Err(amiquip::Error::EventLoopDropped);
            }
            let is_held = self.ledger.is_paused.load(Ordering::SeqCst)
                || self.unconfirmed.len() >= UNCONFIRMED_MAX;
            if is_held {
                // What was not published meanwhile is not made up for.
                (began, done) = (Instant::now(), 0.0);
            } else if done < began.elapsed().as_secs_f64() * rate {
                done += 1.0;
                self.publish_one(rng)?;
                continue;
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    fn publish_one(&mut self, rng: &mut Rng) -> amiquip::Result<()> {
        let lane = rng.usize(..self.world.lanes());
        let Some((account, kind)) = self.world.of_lane(lane) else {
            return Ok(());
        };
        let account = &self.world.accounts[account];
        let (at, number) = self.ledger.enter(lane);
        self.unconfirmed.insert(self.next_tag, (lane, number));
        self.next_tag += 1;
        let calm = self.ledger.is_calm.load(Ordering::SeqCst);
        let padding = match rng.u32(..LARGE_ONE_IN) {
            0 => rng.usize(4_000..16_000),
            _ => rng.usize(100..1_000),
        };
        let numbered = Numbered {
            lane,
            number,
            at,
            calm,
        };
        let mut body = kind.body(account, numbered, padding);
        let mut properties = AmqpProperties::default().with_content_type("application/json".into());
        if rng.u32(..GZIP_ONE_IN) == 0
            && let Some(packed) = pack(&body)
        {
            body = packed;
            properties = properties.with_content_encoding("gzip".into());
        }
        // Dots, which the platform escapes, in some.
        let id = format!("{lane}.{number}");
        let key = kind.routing_key(account, if number.is_multiple_of(2) { &id } else { "id" });
        let message = Publish::with_properties(&body, key, properties);
        self.channel.basic_publish(kind.exchange(), message)
    }

    /// False when the connection has ended.
    fn take_confirms(&mut self) -> bool {
        loop {
            let (payload, has_it) = match self.confirms.try_recv() {
                Ok(Confirm::Ack(payload)) => (payload, true),
                Ok(Confirm::Nack(payload)) => (payload, false),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            };
            let later = self.unconfirmed.split_off(&(payload.delivery_tag + 1));
            let mut answered = std::mem::replace(&mut self.unconfirmed, later);
            if !payload.multiple {
                let own = answered.remove(&payload.delivery_tag);
                self.unconfirmed.append(&mut answered);
                answered.extend(own.map(|event| (payload.delivery_tag, event)));
            }
            for (lane, number) in answered.into_values() {
                if has_it {
                    self.ledger.confirm();
                } else {
                    self.ledger.give_up(lane, number);
                }
            }
        }
    }
}

fn pack(body: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok()
}
