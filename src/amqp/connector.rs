//! The thread's way from one connection to the next: connect, serve, log why the connection ended, wait, try the next
//! broker.
//!
//! Invariants: the loop is told `Up` at most once a connection, and `Down` once after each `Up`; the next try follows
//! every end of a connection, a panic included, unless the thread is to end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{Channel, Connection, ConsumerMessage};
use crossbeam_channel::{Receiver, Sender, bounded, select};

use super::abort::Abort;
use super::backoff::Backoff;
use super::broker::Lost;
use super::connection;
use super::consumer::{ConsumeEnd, Consumer};
use super::counters::{AmqpCounters, increment, set};
use super::guard::Vitals;
use super::options::AmqpOptions;
use super::permissions;
use super::topology::{self, Topology};
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
            options,
            connects: LogLimit::with_credit(FAULTS_LOGGED_FREELY),
            barred_in_a_row: 0,
        }
    }

    pub(super) fn watchdog(&self) -> &Arc<Watchdog> {
        &self.worker.watchdog
    }

    /// Connects to one of `endpoints` after the other, for ever; returns when the thread is to end.
    pub(super) fn run(&mut self, endpoints: &[Endpoint]) {
        let mut backoff = Backoff::new(endpoints.len());
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
        let prepared = self.prepare(connection, endpoint, &specs, &watchdog, &counters);
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
        if self.worker.tell(FromSource::Up(Return::Anew)).is_err() || self.worker.report().is_err()
        {
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
                Err(error) => return Trouble::because(format!("cannot start a thread: {error}")),
            };
            let trouble = self.worker.serve(&mut topology, &ended, &is_behind);
            match trouble {
                Err(Trouble::Halt) => drop(stop),
                // The consumer still hands over what was received before: cut the connection, and the consumer finds
                // its end.
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
                            Trouble::because("the queue was deleted")
                        }
                        (Ok(()), Ok(ConsumeEnd::ChannelClosed(text))) => Trouble::because(text),
                        (Ok(()), Ok(ConsumeEnd::ConnectionLost)) => Trouble::Lost(Lost::ClientGone),
                        (Ok(()), Err(error)) => error.into(),
                    }
                }
                (_, Err(_)) => {
                    increment(&counters.panics);
                    abort.cut();
                    Trouble::because("the consumer panicked, which is a bug")
                }
            }
        });
        // Dropping it closes its channels, and waits for the broker's answers.
        let question = watchdog.question();
        drop(topology);
        drop(question);
        trouble
    }

    /// Returns the consumer's channel, the name of the queue and the binding side, once every wanted binding was tried.
    fn prepare<'a>(
        &mut self,
        connection: &'a mut Connection,
        endpoint: &'a Endpoint,
        specs: &'a [Exchange],
        watchdog: &'a Watchdog,
        counters: &'a AmqpCounters,
    ) -> Result<(Channel, String, Topology<'a>), Trouble> {
        let question = watchdog.question();
        let channel = connection.open_channel(None)?;
        channel.qos(0, self.options.prefetch, false)?;
        let queue = topology::declare_queue(&channel, self.options.max_queue_length, endpoint)?;
        let mut topology = Topology::new(
            connection,
            queue.clone(),
            endpoint,
            specs,
            watchdog,
            counters,
        )?;
        drop(question);
        topology.check_queue()?;
        self.worker.ask_barred(&mut topology, true)?;
        self.worker.restore(&mut topology)?;
        Ok((channel, queue, topology))
    }
}

impl From<amiquip::Error> for Trouble {
    fn from(error: amiquip::Error) -> Self {
        Self::Lost(error.into())
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
