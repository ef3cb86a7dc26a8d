//! The AMQP thread: events from RabbitMQ to the loop, bindings from the loop to RabbitMQ. The only folder that
//! names the AMQP client, so that it can be replaced without touching the rest (AMQP rail 11).
//!
//! ```text
//! thread "amqp-connect"  for one try: resolve, connect, log in
//! thread "amqp"          connect -> declare queue -> bind all that is wanted -> Up -> serve commands -> Down -> wait
//! thread "amqp-consume"                                 deliveries -> events -> hand-off -> acks
//! thread of the client   socket <-> guard <-> frames
//! ```
//!
//! | module | owns |
//! |---|---|
//! | `url` | broker URLs, and keeping passwords out of texts |
//! | `connection` | socket, login, why it ended |
//! | `guard` | what of the broker's bytes the client's parser gets to see |
//! | `bindings` | which bindings are wanted, and where each stands |
//! | `topology` | queue, exchanges, bindings on the broker |
//! | `consumer` | deliveries |
//! | `counters` | figures for the metrics page |
//! | `abort`, `log_gate` | ending what hangs; lines a minute |
//! | `client_log` | the client's own lines of the log |
//!
//! Invariants: `Up` is said only after everything wanted is in force or was said to be `Lost`; `Down` follows every
//! `Up`, after the last event that came before it; a panic anywhere here is a reconnect (rail 10); nothing is ever
//! published on this connection, because a broker that blocks publishers would then hang the consumer too (rail 7).

mod abort;
mod bindings;
mod client_log;
mod connection;
mod consumer;
mod counters;
mod guard;
mod log_gate;
mod topology;
mod url;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use amiquip::{Channel, Connection, ConsumerMessage};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, select};

use self::abort::Abort;
use self::bindings::{Bindings, NAME_BYTES_MAX};
pub use self::client_log::{client_line, without_passwords};
use self::consumer::{ConsumeEnd, Consumer, HANDOVER_SLICE};
pub use self::counters::AmqpCounters;
use self::counters::{increment, set};
use self::guard::Vitals;
use self::log_gate::LogGate;
use self::topology::Topology;
pub use self::url::{AmqpUrlError, EncodedPart, validate_url};
use self::url::{Endpoint, bounded as bounded_text};
use crate::handoff::{AmqpBinding, Commands, FromSource, SourceEnd, ToSource};
use crate::routing::families::Exchange;

/// The log target of the AMQP client, and the level it is to be held to whatever the operator's level is: below it
/// the client logs its login, password included (AMQP rail 9), and all it would say we say ourselves.
pub const CLIENT_LOG: (&str, log::LevelFilter) = ("amiquip", log::LevelFilter::Error);

/// Longest pause between tries to connect (AMQP rail 9).
const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// The pause before the second try; it doubles from there.
const BACKOFF_BASE: Duration = Duration::from_millis(100);
/// A connection that lasted this long was a good one: the back-off starts again.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// How often refused exchanges and bindings are tried again (AMQP rail 8).
const RETRY_REFUSED: Duration = Duration::from_secs(5);
/// How often the queue's length is looked at and some bindings are bound again.
const CHECK: Duration = Duration::from_secs(1);
/// Checks in which all bindings are bound again, unless they are too many for that.
const RECHECK_PASS: usize = 30;
/// Bindings that one check binds again, at most: some 17 ms of a broker's work.
const RECHECKS_MAX: usize = 64;
/// Unbinds a turn: each is a round trip, and a bind that arrives meanwhile waits for them.
const UNBINDS_A_TURN: usize = 8;
/// Longest wait for a command; bounds how late a stop without a `Stop` is noticed.
const IDLE: Duration = Duration::from_secs(1);
/// Faults of the connection logged before only one a minute is.
const FAULTS_LOGGED_FREELY: u32 = 3;

/// Appends to `passed` what of a broker's bytes the AMQP client would get to see (AMQP rail 1): the guard, without a
/// connection around it, for tests from outside.
///
/// # Errors
/// The stream's own; [`io::ErrorKind::InvalidData`] for what a broker must not send, after which the connection is
/// given up.
#[doc(hidden)]
pub fn pass_through_guard(broker: impl io::Read, passed: &mut Vec<u8>) -> io::Result<()> {
    guard::pass_on(broker, passed)
}

/// What the AMQP thread is told at its start.
#[derive(Clone)]
pub struct AmqpOptions {
    /// Brokers, tried in turn. Contain passwords: never logged, and there is no `Debug`.
    pub urls: Vec<String>,
    /// Unacknowledged deliveries, at least 1: how many events may be under way from the broker to the loop.
    pub prefetch: u16,
    /// `x-max-length` of our queue; above it the broker drops the oldest. None: the broker's memory is the limit.
    pub max_queue_length: Option<u32>,
    /// Exchanges that are not topic and non-durable, or simply all; declared when a binding first names them.
    pub exchanges: Vec<Exchange>,
}

/// The running thread.
#[derive(Debug)]
pub struct AmqpThread {
    thread: JoinHandle<()>,
    ended: Receiver<()>,
    abort: Arc<Abort>,
}

impl AmqpThread {
    /// Ends the thread, which should have been told [`ToSource::Stop`] already: gives it half of `patience` to say
    /// goodbye to the broker, then cuts its socket. Blocks for `patience` at most.
    pub fn stop(self, patience: Duration) {
        self.abort.stop();
        let ended = |wait| {
            !matches!(
                self.ended.recv_timeout(wait),
                Err(RecvTimeoutError::Timeout)
            )
        };
        if !ended(patience / 2) {
            self.abort.cut();
            if !ended(patience / 2) {
                log::warn!("amqp: the thread did not end in time");
                return;
            }
        }
        if self.thread.join().is_err() {
            log::error!("amqp: the thread panicked");
        }
    }
}

/// Starts the thread "amqp". It connects by itself, reconnects for ever, and ends on [`ToSource::Stop`] or when the
/// loop is gone.
///
/// # Errors
/// `InvalidInput` when there is no URL or one is refused by [`validate_url`]; else what the system says when it
/// refuses a thread.
pub fn spawn(
    options: AmqpOptions,
    source: SourceEnd,
    counters: Arc<AmqpCounters>,
) -> io::Result<AmqpThread> {
    let invalid = |error: AmqpUrlError| io::Error::new(io::ErrorKind::InvalidInput, error);
    let endpoints: Vec<_> = options
        .urls
        .iter()
        .map(|url| Endpoint::parse(url).map_err(invalid))
        .collect::<Result<_, _>>()?;
    if endpoints.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no broker URL"));
    }
    client_log::keep_secret(&endpoints);
    let abort = Arc::new(Abort::default());
    let (alive, ended) = bounded(0);
    let mut worker = Worker {
        options: AmqpOptions {
            prefetch: options.prefetch.max(1),
            urls: Vec::new(),
            ..options
        },
        source,
        counters,
        abort: abort.clone(),
        bindings: Bindings::default(),
        refusals: LogGate::with_credit(FAULTS_LOGGED_FREELY),
        too_long: LogGate::default(),
        overflows: LogGate::default(),
        connects: LogGate::with_credit(FAULTS_LOGGED_FREELY),
        caught_up: Instant::now(),
    };
    let thread = thread::Builder::new().name("amqp".into()).spawn(move || {
        let _alive: Sender<()> = alive;
        worker.run(&endpoints);
    })?;
    Ok(AmqpThread {
        thread,
        ended,
        abort,
    })
}

/// The thread is to end: told so, or the loop is gone.
struct Halt;

/// Why serving one connection ended.
enum Trouble {
    Halt,
    Client(amiquip::Error),
    Told(String),
}

impl From<Halt> for Trouble {
    fn from(_: Halt) -> Self {
        Self::Halt
    }
}

impl From<amiquip::Error> for Trouble {
    fn from(error: amiquip::Error) -> Self {
        Self::Client(error)
    }
}

struct Worker {
    options: AmqpOptions,
    source: SourceEnd,
    counters: Arc<AmqpCounters>,
    abort: Arc<Abort>,
    bindings: Bindings,
    refusals: LogGate,
    too_long: LogGate,
    overflows: LogGate,
    connects: LogGate,
    /// Everything published before has left the broker's queue and was received.
    caught_up: Instant,
}

impl Worker {
    fn run(&mut self, endpoints: &[Endpoint]) {
        let mut backoff = Backoff {
            endpoints: endpoints.len(),
            failures: 0,
        };
        let mut faults = LogGate::with_credit(FAULTS_LOGGED_FREELY);
        for endpoint in endpoints.iter().cycle() {
            let vitals = Arc::new(Vitals::new(Instant::now()));
            let mut up_since = None;
            let served = catch_unwind(AssertUnwindSafe(|| {
                self.connect_and_serve(endpoint, &vitals, &mut up_since)
            }));
            let cause = served.unwrap_or_else(|_| {
                increment(&self.counters.panics);
                Some("the AMQP side panicked, which is a bug".into())
            });
            self.abort.cut();
            set(&self.counters.up, 0);
            self.bindings.connection_lost();
            self.update_gauges();
            let Some(cause) = cause else { return };
            if let Some(since) = up_since {
                increment(&self.counters.disconnects);
                if since.elapsed() >= STABLE_AFTER {
                    backoff.failures = 0;
                    faults = LogGate::with_credit(FAULTS_LOGGED_FREELY);
                }
            } else {
                increment(&self.counters.connect_failures);
            }
            let pause = backoff.next(getrandom::u32().unwrap_or_default());
            if let Some(unlogged) = faults.pass(Instant::now()) {
                let what = if up_since.is_some() {
                    "connection lost"
                } else {
                    "cannot connect"
                };
                log::warn!(
                    "amqp: {endpoint}: {what}: {}; next try in {} ms; {unlogged} more not logged",
                    endpoint.redact(&cause),
                    pause.as_millis()
                );
            }
            let told = up_since.is_none()
                || self
                    .tell(FromSource::Down {
                        since: self.caught_up.min(vitals.last_heard()),
                    })
                    .is_ok();
            if !told || self.pause(pause).is_err() {
                return;
            }
        }
    }

    /// One connection from its beginning to its end; answers why it ended, none for a halt.
    fn connect_and_serve(
        &mut self,
        endpoint: &Endpoint,
        vitals: &Arc<Vitals>,
        up_since: &mut Option<Instant>,
    ) -> Option<String> {
        let mut connection = match self.connect(endpoint, vitals) {
            Ok(connection) => connection,
            Err(Trouble::Halt) => return None,
            Err(Trouble::Told(cause)) => return Some(cause),
            Err(Trouble::Client(error)) => return Some(error.to_string()),
        };
        let mut kept = None;
        let trouble = self.serve(&mut connection, endpoint, vitals, up_since, &mut kept);
        let (halt, told, call) = match trouble {
            Trouble::Halt => (true, None, None),
            Trouble::Told(cause) => (false, Some(cause), None),
            Trouble::Client(error) => (false, None, Some(error)),
        };
        let close = connection.close();
        drop(kept);
        if vitals.violations() > 0 {
            increment(&self.counters.guard_violations);
        }
        if matches!(close, Err(amiquip::Error::IoThreadPanic)) {
            increment(&self.counters.panics);
        }
        if halt {
            return None;
        }
        let cause =
            told.or_else(|| connection::true_cause(call, close).map(|error| error.to_string()));
        Some(cause.unwrap_or_else(|| "closed".into()))
    }

    /// Connects on a thread of its own, since nothing hurries a name resolution, and takes commands meanwhile: so they
    /// never pile up, and a halt does not wait.
    fn connect(
        &mut self,
        endpoint: &Endpoint,
        vitals: &Arc<Vitals>,
    ) -> Result<Connection, Trouble> {
        self.take_commands()?;
        let (opened, outcome) = bounded(1);
        let (endpoint, abort, vitals) = (endpoint.clone(), self.abort.clone(), vitals.clone());
        thread::Builder::new()
            .name("amqp-connect".into())
            .spawn(move || {
                // Nobody waits for it any more: it is closed again.
                let _ = opened.send(connection::open(&endpoint, &abort, vitals));
            })
            .map_err(|error| Trouble::Told(format!("cannot start a thread: {error}")))?;
        let commands = self.source.commands.clone();
        loop {
            self.take_commands()?;
            select! {
                recv(commands) -> told => self.apply(told.map_err(|_| Halt)?)?,
                recv(outcome) -> opened => return match opened {
                    Ok(Ok(connection)) => Ok(connection),
                    Ok(Err(_)) if self.abort.is_stopping() => Err(Trouble::Halt),
                    Ok(Err(error)) => Err(Trouble::Told(error.to_string())),
                    Err(_) => {
                        increment(&self.counters.panics);
                        Err(Trouble::Told("the AMQP client panicked".into()))
                    }
                },
                default(IDLE) => {}
            }
        }
    }

    fn serve(
        &mut self,
        connection: &mut Connection,
        endpoint: &Endpoint,
        vitals: &Vitals,
        up_since: &mut Option<Instant>,
        kept: &mut Option<Receiver<ConsumerMessage>>,
    ) -> Trouble {
        let (counters, specs) = (self.counters.clone(), self.options.exchanges.clone());
        let (channel, queue, mut topology) = match self.prepare(connection, &specs, &counters) {
            Ok(prepared) => prepared,
            Err(trouble) => return trouble,
        };
        if let Some(unlogged) = self.connects.pass(Instant::now()) {
            log::info!(
                "amqp: connected to {endpoint}, queue {}, {} bindings in force, {} refused; {unlogged} more not logged",
                bounded_text(&queue),
                self.bindings.in_force(),
                self.bindings.refused()
            );
        }
        self.caught_up = Instant::now();
        *up_since = Some(self.caught_up);
        increment(&counters.connects);
        set(&counters.up, 1);
        if self.tell(FromSource::Up).is_err() || self.report(&mut topology).is_err() {
            return Trouble::Halt;
        }
        let (abort, source, prefetch) = (
            self.abort.clone(),
            self.source.clone(),
            self.options.prefetch,
        );
        thread::scope(|scope| {
            let (stop, stopped) = bounded(0);
            let (alive, ended) = bounded(0);
            let (behind, is_behind) = bounded(1);
            let (consumer_counters, consumer_abort) = (&*counters, &*abort);
            let started = thread::Builder::new()
                .name("amqp-consume".into())
                .spawn_scoped(scope, move || {
                    let _alive: Sender<()> = alive;
                    let consumer = Consumer {
                        channel,
                        queue,
                        prefetch,
                        source,
                        counters: consumer_counters,
                        vitals,
                        abort: consumer_abort,
                        stop: stopped,
                        behind,
                    };
                    consumer.run()
                });
            let consuming = match started {
                Ok(consuming) => consuming,
                Err(error) => return Trouble::Told(format!("cannot start a thread: {error}")),
            };
            let trouble = self.command(&mut topology, &ended, &is_behind);
            match trouble {
                Err(Trouble::Halt) => drop(stop),
                // What was received before the connection died is still to be handed over: cut it, and the consumer
                // finds the end by itself.
                Err(_) => abort.cut(),
                Ok(()) => {}
            }
            let consumed = consuming.join();
            match (trouble, consumed) {
                (trouble, Ok((consumed, receiver))) => {
                    *kept = receiver;
                    match (trouble, consumed) {
                        (Err(trouble), _) => trouble,
                        (Ok(()), Ok(ConsumeEnd::Stopped | ConsumeEnd::LoopGone)) => Trouble::Halt,
                        (Ok(()), Ok(ConsumeEnd::QueueDeleted)) => {
                            Trouble::Told("the queue was deleted".into())
                        }
                        (Ok(()), Ok(ConsumeEnd::ChannelClosed(text))) => Trouble::Told(text),
                        (Ok(()), Ok(ConsumeEnd::ConnectionLost)) => {
                            Trouble::Client(amiquip::Error::EventLoopDropped)
                        }
                        (Ok(()), Err(error)) => Trouble::Client(error),
                    }
                }
                (_, Err(_)) => {
                    increment(&counters.panics);
                    abort.cut();
                    Trouble::Told("the consumer panicked, which is a bug".into())
                }
            }
        })
    }

    /// The consumer's channel, the queue, and everything wanted bound to it.
    fn prepare<'a>(
        &mut self,
        connection: &'a mut Connection,
        specs: &'a [Exchange],
        counters: &'a AmqpCounters,
    ) -> Result<(Channel, String, Topology<'a>), Trouble> {
        let channel = connection.open_channel(None)?;
        channel.qos(0, self.options.prefetch, false)?;
        let queue = topology::declare_queue(&channel, self.options.max_queue_length)?;
        let mut topology = Topology::new(connection, queue.clone(), specs, counters)?;
        self.restore(&mut topology)?;
        Ok((channel, queue, topology))
    }

    /// Binds what was wanted when the connection began; what the loop asks for meanwhile may come after.
    fn restore(&mut self, topology: &mut Topology<'_>) -> Result<(), Trouble> {
        let mut left = self.bindings.queued();
        while left > 0 {
            let before = self.bindings.queued();
            topology.bind_batch(&mut self.bindings)?;
            left = left.saturating_sub(before.saturating_sub(self.bindings.queued()));
            self.update_gauges();
            self.take_commands()?;
        }
        let lost = self.bindings.take_lost();
        if !lost.is_empty() {
            self.tell(FromSource::Lost(lost))?;
        }
        Ok(())
    }

    /// Serves the loop's commands until the consumer has ended (`Ok`) or there is trouble.
    fn command(
        &mut self,
        topology: &mut Topology<'_>,
        ended: &Receiver<()>,
        behind: &Receiver<()>,
    ) -> Result<(), Trouble> {
        let started = Instant::now();
        let (mut retry_at, mut check_at, mut below_at) =
            (started + RETRY_REFUSED, started, started);
        let commands = self.source.commands.clone();
        loop {
            self.take_commands()?;
            let now = Instant::now();
            if self.bindings.queued() > 0 {
                topology.bind_batch(&mut self.bindings)?;
            } else {
                for _ in 0..UNBINDS_A_TURN {
                    let Some(unwanted) = self.bindings.take_unwanted(now) else {
                        break;
                    };
                    topology.unbind(&unwanted)?;
                }
            }
            self.report(topology)?;
            if now >= retry_at {
                retry_at = now + RETRY_REFUSED;
                if self.bindings.refused() > 0 {
                    topology.forget_refused();
                    self.bindings.retry_refused();
                }
            }
            if now >= check_at {
                check_at = now + CHECK;
                let length = topology.queue_length()?.unwrap_or_default();
                if length == 0 {
                    self.caught_up = now;
                }
                if behind.try_recv().is_ok() && self.is_queue_full(length) {
                    self.tell(FromSource::Overflowed { since: below_at })?;
                }
                below_at = now;
                let share = self.bindings.in_force().div_ceil(RECHECK_PASS);
                let rechecks = self.bindings.take_rechecks(share.min(RECHECKS_MAX));
                topology.rebind(&mut self.bindings, &rechecks)?;
            }
            let due = self
                .bindings
                .next_unwanted()
                .map_or(IDLE, |at| at.saturating_duration_since(now));
            let wait = if self.bindings.queued() > 0 {
                Duration::ZERO
            } else {
                due.min(IDLE)
            };
            select! {
                recv(commands) -> told => self.apply(told.map_err(|_| Halt)?)?,
                recv(ended) -> _ => return Ok(()),
                default(wait) => {}
            }
        }
    }

    /// Whether the queue is at its length limit, or so near that it may have been since the last look.
    fn is_queue_full(&mut self, length: u32) -> bool {
        let Some(limit) = self.options.max_queue_length else {
            return false;
        };
        let full = limit - u32::from(self.options.prefetch).min(limit / 4);
        if length < full {
            return false;
        }
        increment(&self.counters.overflow_suspicions);
        if let Some(unlogged) = self.overflows.pass(Instant::now()) {
            log::warn!(
                "amqp: the queue is at its limit ({length} of {limit}), the broker drops the oldest events; \
                 {unlogged} more not logged"
            );
        }
        true
    }

    /// Tells the loop what is newly in force or refused.
    fn report(&mut self, topology: &mut Topology<'_>) -> Result<(), Halt> {
        for refusal in topology.take_refusals() {
            if let Some(unlogged) = self.refusals.pass(Instant::now()) {
                log::warn!(
                    "amqp: refused: {}; {unlogged} more not logged",
                    bounded_text(&refusal)
                );
            }
        }
        self.update_gauges();
        let (lost, bound) = (self.bindings.take_lost(), self.bindings.take_bound());
        if !lost.is_empty() {
            self.tell(FromSource::Lost(lost))?;
        }
        if !bound.is_empty() {
            self.tell(FromSource::Bound(bound))?;
        }
        Ok(())
    }

    /// Hands `message` to the loop; while the loop is behind, commands are still taken.
    fn tell(&mut self, mut message: FromSource) -> Result<(), Halt> {
        loop {
            message = match self.source.send_timeout(message, HANDOVER_SLICE) {
                Ok(()) => return Ok(()),
                Err(None) => return Err(Halt),
                Err(Some(message)) => message,
            };
            increment(&self.counters.handover_waits);
            self.take_commands()?;
        }
    }

    /// Waits before the next try; commands are taken meanwhile.
    fn pause(&mut self, pause: Duration) -> Result<(), Halt> {
        let until = Instant::now() + pause;
        loop {
            if self.abort.is_stopping() {
                return Err(Halt);
            }
            match self
                .source
                .commands
                .recv_deadline(until.min(Instant::now() + IDLE))
            {
                Ok(commands) => self.apply(commands)?,
                Err(RecvTimeoutError::Disconnected) => return Err(Halt),
                Err(RecvTimeoutError::Timeout) if Instant::now() >= until => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn take_commands(&mut self) -> Result<(), Halt> {
        loop {
            if self.abort.is_stopping() {
                return Err(Halt);
            }
            match self.source.commands.try_recv() {
                Ok(commands) => self.apply(commands)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(Halt),
            }
        }
    }

    fn apply(&mut self, commands: Commands) -> Result<(), Halt> {
        for command in commands {
            match command {
                ToSource::Bind(binding) => self.bind(binding),
                ToSource::Unbind(binding) => self.bindings.unbind(&binding, Instant::now()),
                ToSource::Stop => return Err(Halt),
            }
        }
        Ok(())
    }

    fn bind(&mut self, binding: AmqpBinding) {
        let bytes = binding.key.len();
        if self.bindings.bind(binding) {
            return;
        }
        increment(&self.counters.binds_too_long);
        if let Some(unlogged) = self.too_long.pass(Instant::now()) {
            log::warn!(
                "amqp: a binding of {bytes} bytes is above {NAME_BYTES_MAX}, not bound; {unlogged} more not logged"
            );
        }
    }

    fn update_gauges(&self) {
        set(&self.counters.bindings_wanted, self.bindings.wanted());
        set(&self.counters.bindings_in_force, self.bindings.in_force());
        set(&self.counters.bindings_refused, self.bindings.refused());
    }
}

/// Pauses between tries: the next broker of the list soon, and after each round of the list twice as long as
/// before, with jitter, so that the processes that lost one broker do not come back as one.
struct Backoff {
    endpoints: usize,
    failures: usize,
}

impl Backoff {
    /// The pause after one more failure: 50 to 100 % of its step, by `random`.
    fn next(&mut self, random: u32) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let rounds = if self.failures.is_multiple_of(self.endpoints) {
            self.failures / self.endpoints
        } else {
            0
        };
        let step = BACKOFF_BASE
            .saturating_mul(1 << rounds.min(16))
            .min(BACKOFF_MAX);
        step / 2 + (step / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_each_round_of_the_brokers_up_to_three_seconds() {
        let mut backoff = Backoff {
            endpoints: 2,
            failures: 0,
        };
        let pauses: Vec<_> = (0..14)
            .map(|_| backoff.next(u32::MAX).as_millis())
            .collect();
        assert_eq!(
            pauses,
            [
                100, 200, 100, 400, 100, 800, 100, 1600, 100, 3000, 100, 3000, 100, 3000
            ]
        );
        let mut least = Backoff {
            endpoints: 1,
            failures: 9,
        };
        assert_eq!(least.next(0), BACKOFF_MAX / 2);
    }

    #[test]
    fn a_refused_url_keeps_the_thread_from_starting_and_shows_nothing() {
        for urls in [vec![], vec!["amqp://h".into(), "amqps://u:s3cret@h".into()]] {
            let (source, _end) = crate::handoff::handoff(crate::handoff::LoopWaker::new(|| Ok(())));
            let options = AmqpOptions {
                urls,
                prefetch: 1,
                max_queue_length: None,
                exchanges: Vec::new(),
            };
            let error = spawn(options, source, Arc::default()).expect_err("a refused URL");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(!error.to_string().contains("s3cret"));
        }
    }
}
