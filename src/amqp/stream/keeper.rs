//! The keeper: it declares the stream, binds to it what the loop wants kept, and writes our markers.
//!
//! Invariant: nothing here is waited for by anybody but the loop's own deadlines. A broker that blocks publishers, or refuses
//! the stream, costs this thread a reconnect, and the stream proves nothing meanwhile.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use amiquip::{
    AmqpProperties, AmqpValue, Channel, Confirm, Connection, ExchangeDeclareOptions, ExchangeType,
    FieldTable, Publish, QueueDeclareOptions,
};
use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};

use super::super::abort::Abort;
use super::super::backoff::{Backoff, RECONNECT_PAUSE_MAX};
use super::super::bindings::NAME_BYTES_MAX as KEY_BYTES_MAX;
use super::super::broker::{Answer, Broker as _, Lost};
use super::super::connection;
use super::super::counters::{AmqpCounters, increment, set};
use super::super::guard::Vitals;
use super::super::topology::Topology;
use super::super::url::Endpoint;
use super::super::watchdog::Watchdog;
use super::marker::{self, Origin};
use super::options::StreamOptions;
use crate::handoff::stored::KeeperEnd;
use crate::history::stored::key_id;
use crate::limits::FAULTS_LOGGED_FREELY;
use crate::log_limit::LogLimit;
use crate::routing::amqp_binding::AmqpBinding;

/// How often it is made sure that the stream is there and bound.
const CHECK_EVERY: Duration = Duration::from_secs(10);
/// How often a marker is written: who resumes gets up to that much twice.
const MARKER_EVERY: Duration = Duration::from_secs(2);
/// The same while the stream is read, so that its reader soon knows where the present is.
const MARKER_EVERY_READING: Duration = Duration::from_millis(500);
/// How often it is looked whether a marker is due.
const LOOK: Duration = Duration::from_millis(100);
/// `x-stream-max-segment-size-bytes`. What is too old or too much goes by whole segments, and one always stays: segments of
/// RabbitMQ's own size, 500 MB, would make both bounds mean little.
const SEGMENT_BYTES: i64 = 16_000_000;
/// A connection that lasted this long was a good one.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// Pause after the broker has refused the stream: an operator has to do something first.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// Bindings kept, at most: the rows of the table of families times their keys. Beyond it none are taken.
const KEYS_MAX: usize = 32 << 10;
const NOT_FOUND: u16 = 404;

/// Why a connection ended.
enum Trouble {
    /// The thread is to end.
    Halt,
    /// The stream cannot be declared, or not bound. Why, for the log.
    Refused(String),
    /// The connection is of no more use.
    Lost(Lost),
}

impl From<Lost> for Trouble {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

impl From<amiquip::Error> for Trouble {
    fn from(error: amiquip::Error) -> Self {
        match error {
            // After a restart of the broker its streams are away for a while (404).
            amiquip::Error::ServerClosedChannel { code, message, .. } if code != NOT_FOUND => {
                Self::Refused(format!("{code} {message}"))
            }
            error => Self::Lost(error.into()),
        }
    }
}

/// The keeper, and what outlives its connections.
pub(super) struct Keeper {
    options: StreamOptions,
    keys: KeeperEnd,
    wanted: Vec<AmqpBinding>,
    origin: Origin,
    is_read: Arc<AtomicBool>,
    counters: Arc<AmqpCounters>,
    abort: Arc<Abort>,
    watchdog: Arc<Watchdog>,
}

/// What is in force on one connection.
#[derive(Default)]
struct Force {
    /// Bound, as far as is known.
    bound: Vec<AmqpBinding>,
    /// Not bound: newly wanted, or refused.
    unbound: Vec<AmqpBinding>,
    /// Events may be missing before now.
    has_hole: bool,
}

impl Keeper {
    pub(super) fn new(
        options: StreamOptions,
        keys: KeeperEnd,
        origin: Origin,
        is_read: Arc<AtomicBool>,
        counters: Arc<AmqpCounters>,
        (abort, watchdog): (Arc<Abort>, Arc<Watchdog>),
    ) -> Self {
        Self {
            options,
            keys,
            wanted: Vec::new(),
            origin,
            is_read,
            counters,
            abort,
            watchdog,
        }
    }

    /// Connects to one of `endpoints` after the other, for ever; returns when the thread is to end.
    pub(super) fn run(mut self, endpoints: &[Endpoint]) {
        let mut backoff = Backoff::new(endpoints.len(), RECONNECT_PAUSE_MAX);
        let mut faults = LogLimit::with_credit(FAULTS_LOGGED_FREELY);
        for endpoint in endpoints.iter().cycle() {
            let begun = Instant::now();
            let kept = catch_unwind(AssertUnwindSafe(|| self.connect_and_keep(endpoint)));
            self.abort.cut();
            set(&self.counters.stream_up, 0);
            let trouble = kept.unwrap_or_else(|_| {
                increment(&self.counters.panics);
                Trouble::Lost(Lost::Because(
                    "the stream's side panicked, which is a bug".into(),
                ))
            });
            if begun.elapsed() >= STABLE_AFTER {
                backoff.reset();
            }
            let (cause, pause) = match trouble {
                Trouble::Halt => return,
                Trouble::Refused(cause) => (cause, REFUSED_PAUSE),
                Trouble::Lost(lost) => (
                    match lost {
                        Lost::Because(cause) => cause,
                        Lost::Barred(line) => line.into(),
                        Lost::ClientGone => "the AMQP client ended".into(),
                    },
                    backoff.next(getrandom::u32().unwrap_or_default()),
                ),
            };
            increment(&self.counters.stream_failures);
            if let Some(left_out) = faults.pass(Instant::now()) {
                let (cause, pause) = (endpoint.redact(&cause), pause.as_millis());
                log::warn!(
                    "amqp: stream: {endpoint}: events are not kept, nobody resumes beyond this process's history: {cause}; next try in {pause} ms{left_out}"
                );
            }
            if self.pause(pause).is_err() {
                return;
            }
        }
    }

    /// Waits, and takes what is wanted meanwhile.
    fn pause(&mut self, pause: Duration) -> Result<(), Trouble> {
        let until = Instant::now() + pause;
        loop {
            self.take_wanted()?;
            if Instant::now() >= until {
                return Ok(());
            }
            std::thread::sleep(LOOK.min(pause));
        }
    }

    fn take_wanted(&mut self) -> Result<(), Trouble> {
        loop {
            if self.abort.is_stopping() {
                return Err(Trouble::Halt);
            }
            match self.keys.keys.try_recv() {
                Ok(keys) => self.want(keys),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(Trouble::Halt),
            }
        }
    }

    fn want(&mut self, keys: Vec<AmqpBinding>) {
        for key in keys {
            let is_too_long = key.key.len() > KEY_BYTES_MAX || key.exchange.len() > KEY_BYTES_MAX;
            if !is_too_long && self.wanted.len() < KEYS_MAX && !self.wanted.contains(&key) {
                self.wanted.push(key);
            }
        }
    }

    fn connect_and_keep(&mut self, endpoint: &Endpoint) -> Trouble {
        let vitals = Arc::new(Vitals::new(Instant::now()));
        let attempt = self.abort.begin();
        let opened = connection::open(endpoint, "blackhole stream", &self.abort, attempt, vitals);
        let mut connection = match opened {
            Ok(connection) => connection,
            Err(_) if self.abort.is_stopping() => return Trouble::Halt,
            Err(error) => return Trouble::Lost(Lost::Because(error.to_string())),
        };
        let watchdog = self.watchdog.clone();
        let trouble = self
            .keep(&mut connection, endpoint, &watchdog)
            .err()
            .unwrap_or(Trouble::Halt);
        let question = watchdog.question();
        let close = connection.close();
        drop(question);
        match trouble {
            Trouble::Lost(_) if watchdog.has_bitten() => {
                increment(&self.counters.answers_overdue);
                let patience = watchdog.answer_max().as_secs();
                Trouble::Lost(Lost::Because(format!("no answer for {patience} s")))
            }
            Trouble::Lost(Lost::ClientGone) => {
                Trouble::Lost(Lost::Because(connection::cause_of_end(close)))
            }
            trouble => trouble,
        }
    }

    /// Keeps the stream on one connection until there is trouble.
    fn keep(
        &mut self,
        connection: &mut Connection,
        endpoint: &Endpoint,
        watchdog: &Watchdog,
    ) -> Result<(), Trouble> {
        let question = watchdog.question();
        let post = Post::open(connection, self.options.clone(), watchdog)?;
        post.declare()?;
        if !self.has_witness(connection)? {
            // Confirmed before the witness is there, so that no other process takes the past for whole.
            post.publish(&marker::write(self.origin, unix_ms(), true, &[]))?;
            let witness = post.channel.exchange_declare(
                ExchangeType::Fanout,
                witness(&self.options.name),
                ExchangeDeclareOptions::default(),
            );
            witness.map(|_| ())?;
        }
        drop(question);
        let (name, specs) = (self.options.name.clone(), self.options.exchanges.clone());
        let counters = self.counters.clone();
        let mut topology =
            Topology::new(connection, endpoint, &specs, watchdog, &counters)?.for_queue(&name);
        let mut force = Force::default();
        let mut is_up = false;
        let (mut checked, mut written): (Option<Instant>, Option<Instant>) = (None, None);
        let is_due = |last: Option<Instant>, every| last.is_none_or(|last| last.elapsed() >= every);
        loop {
            self.take_wanted()?;
            let every = if self.is_read.load(Ordering::Relaxed) {
                MARKER_EVERY_READING
            } else {
                MARKER_EVERY
            };
            let has_news = self.wanted.len() > force.bound.len() + force.unbound.len();
            if has_news || is_due(checked, CHECK_EVERY) {
                checked = Some(Instant::now());
                post.declare()?;
                self.bind(&mut topology, &mut force)?;
                written = None;
            }
            if is_due(written, every) {
                written = Some(Instant::now());
                let keys: Vec<_> = force
                    .bound
                    .iter()
                    .map(|key| key_id(&key.exchange, &key.key))
                    .collect();
                let has_hole = std::mem::take(&mut force.has_hole);
                let unix_ms = unix_ms();
                post.publish(&marker::write(self.origin, unix_ms, has_hole, &keys))?;
                self.keys.wrote(unix_ms);
                increment(&self.counters.stream_markers);
                set(&self.counters.stream_bindings, keys.len());
                if !std::mem::replace(&mut is_up, true) {
                    set(&self.counters.stream_up, 1);
                    log::info!(
                        "amqp: stream: {endpoint}: events are kept in {:?}",
                        self.options.name
                    );
                }
            }
            match self.keys.keys.recv_timeout(LOOK) {
                Ok(keys) => self.want(keys),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Trouble::Halt),
            }
        }
    }

    /// Binds what is not bound, and what is once more: without effect where it is there.
    fn bind(&self, topology: &mut Topology<'_>, force: &mut Force) -> Result<(), Trouble> {
        let gone = if force.bound.is_empty() {
            Vec::new()
        } else {
            topology.rebind(&force.bound)?
        };
        if !gone.is_empty() {
            // Somebody has deleted an exchange, and with it our bindings.
            force.has_hole = true;
            let is_gone = |key: &AmqpBinding| gone.contains(&key.exchange);
            let (lost, bound) = std::mem::take(&mut force.bound)
                .into_iter()
                .partition(is_gone);
            force.bound = bound;
            force.unbound.extend::<Vec<_>>(lost);
        }
        let known = force.bound.len() + force.unbound.len();
        // New ones are at the end, in the order of their coming.
        force
            .unbound
            .extend(self.wanted.iter().skip(known).cloned());
        if force.unbound.is_empty() {
            return Ok(());
        }
        topology.forget_refused();
        for (key, answer) in topology.bind(std::mem::take(&mut force.unbound))? {
            match answer {
                Answer::InForce => force.bound.push(key),
                Answer::Refused(_) | Answer::Untried | Answer::ExchangeGone => {
                    force.unbound.push(key);
                }
            }
        }
        Ok(())
    }

    fn has_witness(&self, connection: &mut Connection) -> Result<bool, Trouble> {
        let channel = connection.open_channel(None)?;
        match channel.exchange_declare_passive(witness(&self.options.name)) {
            Ok(_) => Ok(channel.close().map(|()| true)?),
            Err(amiquip::Error::ServerClosedChannel { code, .. }) if code == NOT_FOUND => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn unix_ms() -> u64 {
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

fn witness(stream: &str) -> String {
    format!("{stream}.witness")
}

/// The channel on which markers are published.
struct Post<'a> {
    channel: Channel,
    confirms: Receiver<Confirm>,
    options: StreamOptions,
    watchdog: &'a Watchdog,
}

impl<'a> Post<'a> {
    fn open(
        connection: &mut Connection,
        options: StreamOptions,
        watchdog: &'a Watchdog,
    ) -> Result<Self, Trouble> {
        let channel = connection.open_channel(None)?;
        let confirms = channel.listen_for_publisher_confirms()?;
        channel.enable_publisher_confirms()?;
        Ok(Self {
            channel,
            confirms,
            options,
            watchdog,
        })
    }

    /// Declares the stream; without effect where it is there as we declare it.
    fn declare(&self) -> Result<(), Trouble> {
        let _question = self.watchdog.question();
        let mut arguments = FieldTable::new();
        let text = |text: &str| AmqpValue::LongString(text.into());
        let max_bytes = i64::try_from(self.options.max_bytes).unwrap_or(i64::MAX);
        arguments.insert("x-queue-type".into(), text("stream"));
        arguments.insert("x-max-age".into(), text(&self.options.max_age));
        arguments.insert(
            "x-max-length-bytes".into(),
            AmqpValue::LongLongInt(max_bytes),
        );
        arguments.insert(
            "x-stream-max-segment-size-bytes".into(),
            AmqpValue::LongLongInt(SEGMENT_BYTES),
        );
        let options = QueueDeclareOptions {
            durable: true,
            exclusive: false,
            auto_delete: false,
            arguments,
        };
        self.channel
            .queue_declare(&*self.options.name, options)
            .map(|_| ())?;
        Ok(())
    }

    /// Writes a marker, and waits until it is in the stream.
    fn publish(&self, marker: &[u8]) -> Result<(), Trouble> {
        let _question = self.watchdog.question();
        let properties = AmqpProperties::default().with_content_type("application/json".into());
        let publish = Publish::with_properties(marker, &*self.options.name, properties);
        self.channel.basic_publish("", publish)?;
        match self.confirms.recv() {
            Ok(Confirm::Ack(_)) => Ok(()),
            Ok(Confirm::Nack(_)) => Err(Trouble::Refused("the stream takes nothing".into())),
            Err(_) => Err(Trouble::Lost(Lost::ClientGone)),
        }
    }
}
