//! The AMQP thread: events from RabbitMQ to the loop, bindings from the loop to RabbitMQ. The only folder that
//! names the AMQP client, so that it can be replaced without touching the rest (AMQP rail 11).
//!
//! ```text
//! thread "amqp-connect"  for one try: resolve, connect, log in
//! thread "amqp"          connect -> declare queue -> bind all that is wanted -> Up -> serve commands -> Down -> wait
//! thread "amqp-consume"                                 deliveries -> events -> hand-off -> acks
//! thread "amqp-watch"    cuts the connection when an answer is overdue
//! threads "amqp-unbind"  for one batch of unbinds
//! thread of the client   socket <-> guard <-> frames
//! ```
//!
//! | module | owns |
//! |---|---|
//! | `url` | broker URLs, and keeping passwords out of texts |
//! | this | the threads, and one connection from its beginning to its end |
//! | `backoff` | pauses between tries |
//! | `connection` | socket, login, why it ended |
//! | `guard` | what of the broker's bytes the client's parser gets to see |
//! | `worker` | what is asked of a broker, and what the loop is told |
//! | `bindings` | which bindings are wanted, and where each stands |
//! | `bind_queue` | those that wait to be bound, in turns between accounts |
//! | `lingering` | those that nobody wants any more and the broker still has |
//! | `topology` | queue, exchanges, bindings on the broker |
//! | `consumer` | deliveries |
//! | `counters` | figures for the metrics page |
//! | `watchdog`, `abort` | how long an answer may take; ending what hangs |
//! | `client_log` | the client's own lines of the log |
//!
//! Invariants: `Up` is said only after everything wanted is in force or was said to be `Lost`; `Down` follows every
//! `Up`, after the last event that came before it; a panic anywhere here is a reconnect (rail 10); nothing is ever
//! published on this connection, because a broker that blocks publishers would then hang the consumer too (rail 7).

mod abort;
mod backoff;
mod bind_queue;
mod bindings;
mod client_log;
mod connection;
mod consumer;
mod counters;
mod guard;
mod lingering;
mod topology;
mod url;
mod watchdog;
mod worker;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use amiquip::{Channel, Connection, ConsumerMessage};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};

use self::abort::Abort;
use self::backoff::Backoff;
pub use self::client_log::CLIENT_LINES;
use self::consumer::{ConsumeEnd, Consumer};
pub use self::counters::AmqpCounters;
use self::counters::{increment, set};
use self::guard::Vitals;
use self::topology::Topology;
pub use self::url::{AmqpUrlError, EncodedPart, validate_url};
use self::url::{Endpoint, bounded as bounded_text};
use self::watchdog::Watchdog;
use self::worker::{Halt, IDLE, Trouble, Worker};
use crate::handoff::{FromSource, SourceEnd};
use crate::limits::FAULTS_LOGGED_FREELY;
use crate::log_limit::LogLimit;
use crate::routing::families::Exchange;

/// A connection that lasted this long was a good one: the back-off starts again.
const STABLE_AFTER: Duration = Duration::from_secs(10);

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
    /// Longest wait for one answer of a broker, heartbeats or not; then the next one is tried.
    pub answer_max: Duration,
}

/// The running thread.
#[derive(Debug)]
pub struct AmqpThread {
    thread: JoinHandle<()>,
    ended: Receiver<()>,
    abort: Arc<Abort>,
}

impl AmqpThread {
    /// Ends the thread, which should have been told [`Stop`](crate::handoff::ToSource::Stop) already: gives it half of
    /// `patience` to say goodbye to the broker, then cuts its socket. Blocks for `patience` at most.
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

/// Starts the thread "amqp". It connects by itself, reconnects for ever, and ends on
/// [`Stop`](crate::handoff::ToSource::Stop) or when the loop is gone.
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
    let options = AmqpOptions {
        prefetch: options.prefetch.max(1),
        urls: Vec::new(),
        ..options
    };
    let mut connector = Connector {
        worker: Worker::new(&options, source, counters, abort.clone()),
        options,
        connects: LogLimit::with_credit(FAULTS_LOGGED_FREELY),
    };
    connector
        .worker
        .watchdog
        .start(abort.clone(), ended.clone())?;
    let thread = thread::Builder::new().name("amqp".into()).spawn(move || {
        let _alive: Sender<()> = alive;
        connector.run(&endpoints);
    })?;
    Ok(AmqpThread {
        thread,
        ended,
        abort,
    })
}

/// What went wrong with one try, for the log.
fn fault(endpoint: &Endpoint, was_up: bool, cause: &str, pause: Duration) -> String {
    let what = if was_up {
        "connection lost"
    } else {
        "cannot connect"
    };
    let (cause, pause) = (endpoint.redact(cause), pause.as_millis());
    format!("{endpoint}: {what}: {cause}; next try in {pause} ms")
}

/// The worker, and what connects it to one broker after another.
struct Connector {
    options: AmqpOptions,
    worker: Worker,
    connects: LogLimit,
}

impl Connector {
    fn run(&mut self, endpoints: &[Endpoint]) {
        let mut backoff = Backoff::new(endpoints.len());
        let mut faults = LogLimit::with_credit(FAULTS_LOGGED_FREELY);
        for endpoint in endpoints.iter().cycle() {
            let vitals = Arc::new(Vitals::new(Instant::now()));
            let mut up_since = None;
            let served = catch_unwind(AssertUnwindSafe(|| {
                self.connect_and_serve(endpoint, &vitals, &mut up_since)
            }));
            let cause = served.unwrap_or_else(|_| {
                increment(&self.worker.counters.panics);
                Some("the AMQP side panicked, which is a bug".into())
            });
            self.worker.abort.cut();
            set(&self.worker.counters.up, 0);
            self.worker.bindings.connection_lost();
            self.worker.update_gauges();
            let Some(cause) = cause else { return };
            if let Some(since) = up_since {
                increment(&self.worker.counters.disconnects);
                if since.elapsed() >= STABLE_AFTER {
                    backoff.reset();
                    faults = LogLimit::with_credit(FAULTS_LOGGED_FREELY);
                }
            } else {
                increment(&self.worker.counters.connect_failures);
            }
            let pause = backoff.next(getrandom::u32().unwrap_or_default());
            if let Some(left_out) = faults.pass(Instant::now()) {
                let fault = fault(endpoint, up_since.is_some(), &cause, pause);
                log::warn!("amqp: {fault}{left_out}");
            }
            let told = up_since.is_none()
                || self
                    .worker
                    .tell(FromSource::Down {
                        since: self.worker.caught_up.min(vitals.last_heard()),
                    })
                    .is_ok();
            if !told || self.worker.pause(pause).is_err() {
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
        let question = self.worker.watchdog.question();
        let close = connection.close();
        drop((question, kept));
        if vitals.violations() > 0 {
            increment(&self.worker.counters.guard_violations);
        }
        if matches!(close, Err(amiquip::Error::IoThreadPanic)) {
            increment(&self.worker.counters.panics);
        }
        let has_bitten = self.worker.watchdog.has_bitten();
        if halt {
            return None;
        }
        if has_bitten {
            increment(&self.worker.counters.answers_overdue);
            return Some(self.overdue());
        }
        let cause =
            told.or_else(|| connection::true_cause(call, close).map(|error| error.to_string()));
        Some(cause.unwrap_or_else(|| "closed".into()))
    }

    fn overdue(&self) -> String {
        let patience = self.worker.watchdog.answer_max();
        format!("no answer for {} s", patience.as_secs())
    }

    /// Connects on a thread of its own, since nothing hurries a name resolution, and takes commands meanwhile: so they
    /// never pile up, and a halt does not wait.
    fn connect(
        &mut self,
        endpoint: &Endpoint,
        vitals: &Arc<Vitals>,
    ) -> Result<Connection, Trouble> {
        self.worker.take_commands()?;
        let (opened, outcome) = bounded(1);
        let (endpoint, abort, vitals) =
            (endpoint.clone(), self.worker.abort.clone(), vitals.clone());
        let attempt = abort.begin();
        let overdue_at = Instant::now() + self.worker.watchdog.answer_max();
        thread::Builder::new()
            .name("amqp-connect".into())
            .spawn(move || {
                // Nobody waits for it any more: it is closed again.
                let _ = opened.send(connection::open(&endpoint, &abort, attempt, vitals));
            })
            .map_err(|error| Trouble::Told(format!("cannot start a thread: {error}")))?;
        let commands = self.worker.source.commands.clone();
        loop {
            self.worker.take_commands()?;
            select! {
                recv(commands) -> told => self.worker.apply(told.map_err(|_| Halt)?)?,
                recv(outcome) -> opened => return match opened {
                    Ok(Ok(connection)) => Ok(connection),
                    Ok(Err(_)) if self.worker.abort.is_stopping() => Err(Trouble::Halt),
                    Ok(Err(error)) => Err(Trouble::Told(error.to_string())),
                    Err(_) => {
                        increment(&self.worker.counters.panics);
                        Err(Trouble::Told("the AMQP client panicked".into()))
                    }
                },
                default(IDLE) => {}
            }
            if Instant::now() >= overdue_at {
                // Its thread ends by itself, whenever what it waits for does, and opens nothing any more.
                self.worker.abort.begin();
                self.worker.abort.cut();
                increment(&self.worker.counters.answers_overdue);
                return Err(Trouble::Told(self.overdue()));
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
        let (counters, specs) = (self.worker.counters.clone(), self.options.exchanges.clone());
        let watchdog = self.worker.watchdog.clone();
        let prepared = self.prepare(connection, &specs, &watchdog, &counters);
        let (channel, queue, mut topology) = match prepared {
            Ok(prepared) => prepared,
            Err(trouble) => return trouble,
        };
        if let Some(left_out) = self.connects.pass(Instant::now()) {
            log::info!(
                "amqp: connected to {endpoint}, queue {}, {} bindings in force, {} refused{left_out}",
                bounded_text(&queue),
                self.worker.bindings.in_force(),
                self.worker.bindings.refused()
            );
        }
        self.worker.caught_up = Instant::now();
        *up_since = Some(self.worker.caught_up);
        increment(&counters.connects);
        set(&counters.up, 1);
        if self.worker.tell(FromSource::Up).is_err() || self.worker.report(&mut topology).is_err() {
            return Trouble::Halt;
        }
        let (abort, source, prefetch) = (
            self.worker.abort.clone(),
            self.worker.source.clone(),
            self.options.prefetch,
        );
        let trouble = thread::scope(|scope| {
            let (stop, stopped) = bounded(0);
            let (alive, ended) = bounded(0);
            let (behind, is_behind) = bounded(1);
            let (consumer_counters, consumer_abort) = (&*counters, &*abort);
            let consumer_watchdog = &*watchdog;
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
                        watchdog: consumer_watchdog,
                        stop: stopped,
                        behind,
                    };
                    consumer.run()
                });
            let consuming = match started {
                Ok(consuming) => consuming,
                Err(error) => return Trouble::Told(format!("cannot start a thread: {error}")),
            };
            let trouble = self.worker.serve(&mut topology, &ended, &is_behind);
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
        });
        // Which closes its channels, and waits for the answers.
        let question = watchdog.question();
        drop(topology);
        drop(question);
        trouble
    }

    /// The consumer's channel, the queue, and everything wanted bound to it.
    fn prepare<'a>(
        &mut self,
        connection: &'a mut Connection,
        specs: &'a [Exchange],
        watchdog: &'a Watchdog,
        counters: &'a AmqpCounters,
    ) -> Result<(Channel, String, Topology<'a>), Trouble> {
        let question = watchdog.question();
        let channel = connection.open_channel(None)?;
        channel.qos(0, self.options.prefetch, false)?;
        let queue = topology::declare_queue(&channel, self.options.max_queue_length)?;
        let mut topology = Topology::new(connection, queue.clone(), specs, watchdog, counters)?;
        drop(question);
        self.worker.restore(&mut topology)?;
        Ok((channel, queue, topology))
    }
}

#[cfg(test)]
mod tests {
    use super::connection::OpenError;
    use super::*;

    #[test]
    fn a_fault_is_told_once_with_its_cause() {
        let endpoint = Endpoint::parse("amqp://u:s3cret@h").expect("a URL");
        let refused = OpenError::Connect(io::ErrorKind::ConnectionRefused.into()).to_string();
        for (was_up, cause, expected) in [
            (
                false,
                &*refused,
                "h:5672 vhost \"/\": cannot connect: connection refused; next try in 100 ms",
            ),
            (
                true,
                "no answer for 20 s to s3cret",
                "h:5672 vhost \"/\": connection lost: no answer for 20 s to [password]; next try in 100 ms",
            ),
        ] {
            let pause = Duration::from_millis(100);
            assert_eq!(fault(&endpoint, was_up, cause, pause), expected);
        }
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
                answer_max: Duration::from_secs(1),
            };
            let error = spawn(options, source, Arc::default()).expect_err("a refused URL");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(!error.to_string().contains("s3cret"));
        }
    }
}
