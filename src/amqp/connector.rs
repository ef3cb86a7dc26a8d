//! The thread's way from one connection to the next: connect, serve, log why the connection ended, wait, try the next
//! broker.
//!
//! Invariants: the loop is told `Up` at most once a connection, and `Down` once after each `Up`; the next try follows
//! every end of a connection, a panic included, unless the thread is to end. `Up` says that nothing was missed
//! ([`Return::Unbroken`]) only where the queue of before is there, had nobody else to read it, has what it must have and
//! dropped nothing; and where that cannot be known, it says [`Return::Anew`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{Channel, Connection, ConsumerMessage};
use crossbeam_channel::{Receiver, Sender, bounded, select};

use super::abort::Abort;
use super::backoff::Backoff;
use super::broker::{Broker, Lost};
use super::connection;
use super::consumer::{ConsumeEnd, Consumer};
use super::counters::{AmqpCounters, increment, set};
use super::guard::Vitals;
use super::options::AmqpOptions;
use super::our_queue::{Found, OurQueue};
use super::permissions::{self, OUR_QUEUE, Permission};
use super::redelivery::Redelivery;
use super::topology::Topology;
use super::url::{Endpoint, bounded as bounded_text};
use super::watchdog::Watchdog;
use super::worker::{Halt, IDLE, Trouble, Worker};
use crate::handoff::{FromSource, Return, SourceEnd};
use crate::limits::FAULTS_LOGGED_FREELY;
use crate::log_limit::LogLimit;
use crate::routing::families::Exchange;

/// Pause after a try that failed because the user lacks a permission, once every broker was tried: somebody has to do
/// something first.
const BARRED_PAUSE: Duration = Duration::from_secs(10);
/// Longest wait for the broker to notice that the connection of before has ended: it misses two heartbeats first. Then
/// the queue is given up.
const HELD_MAX: Duration = Duration::from_secs(30);
/// The first pause in this wait, and the longest. Each is twice as long as the one before.
const HELD_PAUSES: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(500)];
/// Connections in a row that find the queue and cannot consume it, after which it is given up.
const UNCONSUMED_MAX: u32 = 5;
/// What a broker that allows no transient queues but exclusive ones calls them.
const TRANSIENT_QUEUES: &str = "transient_nonexcl_queues";
/// A connection that lasted this long was a good one, and the pauses start from the shortest again.
const STABLE_AFTER: Duration = Duration::from_secs(10);

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
pub(super) struct Connector {
    options: AmqpOptions,
    worker: Worker,
    connects: LogLimit,
    /// Tries in a row, up to now, that failed because the user lacks a permission.
    barred_in_a_row: usize,
    /// The queue, once one was declared.
    queue: Option<OurQueue>,
    /// What is known of the deliveries of that queue.
    redelivery: Redelivery,
    /// Queues are to be durable.
    is_durable: bool,
    /// Events may be missing, and the loop was not told since.
    is_untold: bool,
    /// Connections in a row on which the queue could not be consumed.
    unconsumed_in_a_row: u32,
}

/// Deliveries that the broker may have under way: as many as are wanted, and the one whose ack waits
/// ([`Redelivery`]).
fn window(prefetch: u16) -> u16 {
    prefetch.saturating_add(1)
}

impl Connector {
    pub(super) fn new(
        options: AmqpOptions,
        source: SourceEnd,
        counters: Arc<AmqpCounters>,
        abort: Arc<Abort>,
    ) -> Self {
        Self {
            worker: Worker::new(&options, source, counters, abort),
            connects: LogLimit::with_credit(FAULTS_LOGGED_FREELY),
            barred_in_a_row: 0,
            queue: None,
            redelivery: Redelivery::new(window(options.prefetch).into()),
            is_durable: options.durable_queue,
            is_untold: true,
            unconsumed_in_a_row: 0,
            options,
        }
    }

    pub(super) fn watchdog(&self) -> &Arc<Watchdog> {
        &self.worker.watchdog
    }

    /// Connects to one of `endpoints` after the other, for ever; returns when the thread is to end.
    pub(super) fn run(&mut self, endpoints: &[Endpoint]) {
        let mut backoff = Backoff::new(endpoints.len(), self.options.pause_max);
        let mut faults = LogLimit::with_credit(FAULTS_LOGGED_FREELY);
        for endpoint in endpoints.iter().cycle() {
            let vitals = Arc::new(Vitals::new(Instant::now()));
            let mut up_since = None;
            let barred_before = std::mem::take(&mut self.barred_in_a_row);
            let served = catch_unwind(AssertUnwindSafe(|| {
                self.connect_and_serve(endpoint, &vitals, &mut up_since)
            }));
            let cause = served.unwrap_or_else(|_| {
                increment(&self.worker.counters.panics);
                self.give_up_queue();
                Some("the AMQP side panicked, which is a bug".into())
            });
            self.worker.abort.cut();
            set(&self.worker.counters.up, 0);
            self.worker.bindings.connection_lost();
            self.worker.update_gauges();
            let Some(cause) = cause else { return };
            if cause.contains(TRANSIENT_QUEUES) && !self.is_durable {
                log::info!(
                    "amqp: {endpoint} allows no transient queues: ours is durable from now on"
                );
                self.is_durable = true;
                self.give_up_queue();
            }
            if let Some(since) = up_since {
                increment(&self.worker.counters.disconnects);
                if since.elapsed() >= STABLE_AFTER {
                    backoff.reset();
                    faults = LogLimit::with_credit(FAULTS_LOGGED_FREELY);
                }
            } else {
                increment(&self.worker.counters.connect_failures);
            }
            let mut pause = backoff.next(getrandom::u32().unwrap_or_default());
            if self.barred_in_a_row > 0 {
                self.barred_in_a_row += barred_before;
                if self.barred_in_a_row.is_multiple_of(endpoints.len()) {
                    pause = BARRED_PAUSE;
                }
            }
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

    /// Serves one connection from its beginning to its end. Returns why it ended; `None` when the thread is to end.
    fn connect_and_serve(
        &mut self,
        endpoint: &Endpoint,
        vitals: &Arc<Vitals>,
        up_since: &mut Option<Instant>,
    ) -> Option<String> {
        let mut connection = match self.connect(endpoint, vitals) {
            Ok(connection) => connection,
            Err(Trouble::Halt) => return None,
            Err(Trouble::Lost(Lost::Because(cause))) => return Some(cause),
            Err(Trouble::Lost(Lost::Barred(line))) => return self.barred(line),
            Err(Trouble::Lost(Lost::ClientGone)) => return Some(connection::cause_of_end(Ok(()))),
        };
        let mut kept = None;
        let trouble = self.serve(&mut connection, endpoint, vitals, up_since, &mut kept);
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
        match trouble {
            Trouble::Halt => None,
            Trouble::Lost(_) if has_bitten => {
                increment(&self.worker.counters.answers_overdue);
                Some(self.overdue())
            }
            Trouble::Lost(Lost::Because(cause)) => Some(cause),
            Trouble::Lost(Lost::Barred(line)) => self.barred(line),
            Trouble::Lost(Lost::ClientGone) => Some(connection::cause_of_end(close)),
        }
    }

    /// Without a permission there are no events at all. The log gets the line as the cause of the end.
    fn barred(&mut self, line: Box<str>) -> Option<String> {
        self.barred_in_a_row = 1;
        increment(&self.worker.counters.permission_refusals);
        set(&self.worker.counters.permissions_missing, 1);
        let told = self.worker.tell_barred(vec![line.clone()]);
        told.is_ok().then(|| line.into())
    }

    fn overdue(&self) -> String {
        let patience = self.worker.watchdog.answer_max();
        format!("no answer for {} s", patience.as_secs())
    }

    /// Connects on a thread of its own, because nothing can cut a name resolution short, and takes commands meanwhile:
    /// so commands never pile up, and a halt does not wait.
    fn connect(
        &mut self,
        endpoint: &Endpoint,
        vitals: &Arc<Vitals>,
    ) -> Result<Connection, Trouble> {
        self.worker.take_commands()?;
        let (opened, outcome) = bounded(1);
        let barred_line = permissions::lack_of_vhost(endpoint);
        let (endpoint, abort, vitals) =
            (endpoint.clone(), self.worker.abort.clone(), vitals.clone());
        let attempt = abort.begin();
        let overdue_at = Instant::now() + self.worker.watchdog.answer_max();
        thread::Builder::new()
            .name("amqp-connect".into())
            .spawn(move || {
                // An error: nobody waits for the connection any more, and it is closed by its drop.
                let _ = opened.send(connection::open(
                    &endpoint,
                    "blackhole",
                    &abort,
                    attempt,
                    vitals,
                ));
            })
            .map_err(|error| Trouble::because(format!("cannot start a thread: {error}")))?;
        let commands = self.worker.source.commands.clone();
        loop {
            self.worker.take_commands()?;
            select! {
                recv(commands) -> told => self.worker.apply(told.map_err(|_| Halt)?)?,
                recv(outcome) -> opened => return match opened {
                    Ok(Ok(connection)) => Ok(connection),
                    Ok(Err(_)) if self.worker.abort.is_stopping() => Err(Trouble::Halt),
                    Ok(Err(error)) if error.is_barred() => Err(Lost::Barred(barred_line).into()),
                    Ok(Err(error)) => Err(Trouble::because(error.to_string())),
                    Err(_) => {
                        increment(&self.worker.counters.panics);
                        Err(Trouble::because("the AMQP client panicked"))
                    }
                },
                default(IDLE) => {}
            }
            if Instant::now() >= overdue_at {
                // The connecting thread ends when the call that it waits for does, and then opens nothing.
                self.worker.abort.begin();
                self.worker.abort.cut();
                increment(&self.worker.counters.answers_overdue);
                return Err(Trouble::because(self.overdue()));
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
        let question = watchdog.question();
        let opened = self.open(connection, endpoint, &specs, &watchdog, &counters);
        drop(question);
        let (channel, mut topology) = match opened {
            Ok(opened) => opened,
            Err(error) => return error.into(),
        };
        let trouble = match self.prepare(&mut topology) {
            Ok(returned) => self.consume(
                returned,
                channel,
                &mut topology,
                endpoint,
                vitals,
                up_since,
                kept,
            ),
            Err(trouble) => trouble,
        };
        if matches!(trouble, Trouble::Halt) && self.queue.is_some() {
            // An error: the connection is gone, and the queue expires by itself.
            let _ = topology.delete_queue();
        }
        // Dropping it closes its channels, and waits for the broker's answers.
        let question = watchdog.question();
        drop(topology);
        drop(question);
        trouble
    }

    /// Opens the consumer's channel, and the binding side with its own.
    fn open<'a>(
        &self,
        connection: &'a mut Connection,
        endpoint: &'a Endpoint,
        specs: &'a [Exchange],
        watchdog: &'a Watchdog,
        counters: &'a AmqpCounters,
    ) -> amiquip::Result<(Channel, Topology<'a>)> {
        let channel = connection.open_channel(None)?;
        channel.qos(0, window(self.options.prefetch), false)?;
        let topology = Topology::new(connection, endpoint, specs, watchdog, counters)?;
        Ok((channel, topology))
    }

    /// Finds or declares the queue and binds to it whatever is wanted. Returns what the loop is to be told.
    fn prepare(&mut self, topology: &mut Topology<'_>) -> Result<Return, Trouble> {
        let returned = self.obtain_queue(topology)?;
        self.is_untold |= returned == Return::Anew;
        self.worker.ask_barred(topology, true)?;
        self.worker.restore(topology)?;
        // To bind takes a while, in which the queue may have filled.
        let length = topology.queue_length()?.unwrap_or_default();
        if self.worker.bounds.is_full(length) {
            self.worker.suspect_overflow(length);
            self.is_untold = true;
        }
        if topology.has_new_queue() {
            self.worker.note_caught_up(Instant::now());
        }
        Ok(if self.is_untold {
            Return::Anew
        } else {
            Return::Unbroken
        })
    }

    /// Finds the queue of before, or declares one.
    fn obtain_queue(&mut self, topology: &mut Topology<'_>) -> Result<Return, Trouble> {
        if let Some(queue) = self.queue.clone()
            && let Some(found) = self.find_queue(topology, &queue)?
        {
            topology.check_binding()?;
            let bounds = self.worker.bounds;
            let returned = found.returned(&bounds, self.redelivery.expected());
            self.redelivery.begin(returned == Return::Anew);
            return Ok(returned);
        }
        self.give_up_queue();
        self.worker.bindings.queue_is_new();
        let queue = OurQueue::new(self.is_durable)
            .map_err(|error| Trouble::because(format!("no random numbers: {error}")))?;
        // From now on, because nobody knows whether it is declared while the answer is under way.
        self.queue = Some(queue.clone());
        topology.declare_queue(&queue, &self.worker.bounds)?;
        if let Err(lost) = topology.check_new_queue() {
            // The next one is asked the same, which one that is found again is not. An error: it expires.
            let _ = topology.delete_queue();
            self.queue = None;
            return Err(lost.into());
        }
        Ok(Return::Anew)
    }

    /// Looks for the queue of before, and waits until the broker has noticed that its consumer of before is gone: then
    /// all that was not acknowledged is back in the queue. `None`: there is no such queue.
    fn find_queue(
        &mut self,
        topology: &mut Topology<'_>,
        queue: &OurQueue,
    ) -> Result<Option<Found>, Trouble> {
        let begun = Instant::now();
        let [mut pause, pause_max] = HELD_PAUSES;
        loop {
            let Some(found) = topology.find_queue(queue)? else {
                return Ok(None);
            };
            if found.consumers == 0 {
                return Ok(Some(found));
            }
            if begun.elapsed() >= HELD_MAX {
                log::warn!("amqp: somebody else consumes the queue: it is given up");
                topology.delete_queue()?;
                return Ok(None);
            }
            self.worker.pause(pause)?;
            pause = (2 * pause).min(pause_max);
        }
    }

    /// The next connection declares another queue. The one of before expires, if it is there.
    fn give_up_queue(&mut self) {
        self.queue = None;
        self.is_untold = true;
        self.redelivery = Redelivery::new(window(self.options.prefetch).into());
    }

    /// Tells the loop, and consumes until the end of the connection.
    #[expect(
        clippy::too_many_arguments,
        reason = "they belong to one connection, and to several owners"
    )]
    fn consume(
        &mut self,
        returned: Return,
        channel: Channel,
        topology: &mut Topology<'_>,
        endpoint: &Endpoint,
        vitals: &Vitals,
        up_since: &mut Option<Instant>,
        kept: &mut Option<Receiver<ConsumerMessage>>,
    ) -> Trouble {
        let (counters, watchdog) = (self.worker.counters.clone(), self.worker.watchdog.clone());
        let queue = topology.queue().clone();
        if let Some(left_out) = self.connects.pass(Instant::now()) {
            let which = match returned {
                Return::Anew if topology.has_new_queue() => "new queue",
                Return::Anew => "old queue, which has lost something,",
                Return::Unbroken => "unbroken queue",
            };
            log::info!(
                "amqp: connected to {endpoint}, {which} {}, {} bindings in force, {} refused{left_out}",
                bounded_text(&queue),
                self.worker.bindings.in_force(),
                self.worker.bindings.refused()
            );
        }
        *up_since = Some(Instant::now());
        increment(&counters.connects);
        set(&counters.up, 1);
        if returned == Return::Unbroken {
            increment(&counters.queues_unbroken);
        }
        if self.worker.tell(FromSource::Up(returned)).is_err() || self.worker.report().is_err() {
            return Trouble::Halt;
        }
        self.is_untold = false;
        self.worker.has_backlog = returned == Return::Unbroken;
        let (abort, source, prefetch) = (
            self.worker.abort.clone(),
            self.worker.source.clone(),
            self.options.prefetch,
        );
        let (redelivery, worker) = (&mut self.redelivery, &mut self.worker);
        let caught_up = worker.caught_up;
        let mut is_refused = false;
        let (trouble, has_panicked) = thread::scope(|scope| {
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
                        window: window(prefetch),
                        source,
                        counters: consumer_counters,
                        vitals,
                        abort: consumer_abort,
                        watchdog: consumer_watchdog,
                        stop: stopped,
                        behind,
                        caught_up,
                    };
                    consumer.run(redelivery)
                });
            let consuming = match started {
                Ok(consuming) => consuming,
                Err(error) => {
                    let cause = format!("cannot start a thread: {error}");
                    return (Trouble::because(cause), false);
                }
            };
            let trouble = worker.serve(topology, &ended, &is_behind);
            match trouble {
                Err(Trouble::Halt) => drop(stop),
                // The consumer still hands over what was received before: cut the connection, and the consumer finds
                // its end.
                Err(_) => abort.cut(),
                Ok(()) => {}
            }
            let Ok((consumed, receiver)) = consuming.join() else {
                increment(&counters.panics);
                abort.cut();
                let cause = "the consumer panicked, which is a bug";
                return (Trouble::because(cause), true);
            };
            *kept = receiver;
            is_refused = consumed.is_err();
            let trouble = match (trouble, consumed) {
                (Err(trouble), _) => trouble,
                (Ok(()), Ok(ConsumeEnd::Stopped | ConsumeEnd::LoopGone)) => Trouble::Halt,
                (Ok(()), Ok(ConsumeEnd::QueueDeleted)) => Trouble::because("the queue was deleted"),
                (Ok(()), Ok(ConsumeEnd::ChannelClosed(text))) => Trouble::because(text),
                (Ok(()), Ok(ConsumeEnd::ConnectionLost)) => Trouble::Lost(Lost::ClientGone),
                (Ok(()), Err(error)) => lack_of_consume(endpoint, error).into(),
            };
            (trouble, false)
        });
        self.unconsumed_in_a_row = if is_refused {
            self.unconsumed_in_a_row + 1
        } else {
            0
        };
        if has_panicked || self.unconsumed_in_a_row >= UNCONSUMED_MAX {
            self.unconsumed_in_a_row = 0;
            self.give_up_queue();
        }
        trouble
    }
}

impl From<amiquip::Error> for Trouble {
    fn from(error: amiquip::Error) -> Self {
        Self::Lost(error.into())
    }
}

/// Why the queue cannot be consumed.
fn lack_of_consume(endpoint: &Endpoint, error: amiquip::Error) -> Lost {
    match &error {
        // The same code says that another consumer is there.
        amiquip::Error::ServerClosedChannel {
            code: 403, message, ..
        } if message.contains("refused for user") => {
            let line = permissions::lack(endpoint, Permission::Read, OUR_QUEUE);
            Lost::Barred(line)
        }
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::connection::OpenError;
    use super::*;

    #[test]
    fn a_fault_is_told_once_with_its_cause() {
        let endpoint = Endpoint::parse("amqp://u:s3cret@h").expect("a URL");
        let refused = OpenError::Connect(std::io::ErrorKind::ConnectionRefused.into()).to_string();
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
}
