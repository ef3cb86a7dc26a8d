//! The platform's control over AMQP (PROTOCOL 8): requests consumed from a queue of their own, answers published, on a
//! connection and a thread of their own (AMQP rail 7). What is wrong here never touches the events.
//!
//! ```text
//! sysconf, kapps -> our queue -> request, read here -> loop -> answer -> targeted
//! ```
//!
//! | module | owns |
//! |---|---|
//! | this | the thread: its way from one connection to the next; requests to the loop, answers from it |
//! | `post` | one connection: what is declared on it, and what is asked of it |
//!
//! Invariants: a request is acknowledged only after the loop has been asked or the request was refused, so the prefetch
//! bounds those that wait here. A lost answer is counted and not sent again: the platform has given up on it long before. A
//! user who lacks a permission is told in the log with that permission, once a minute at most, and tried again as rarely.

mod post;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{ConsumerMessage, Delivery};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};

use self::post::{Post, Trouble};
use super::abort::Abort;
use super::backoff::{Backoff, RECONNECT_PAUSE_MAX};
use super::connection;
use super::counters::{AmqpCounters, increment, set};
use super::guard::Vitals;
use super::url::Endpoint;
use super::watchdog::Watchdog;
use super::{AmqpThread, TlsFiles, parse_endpoints};
use crate::handoff::ask::AskEnd;
use crate::limits::{CONTROL_REQUEST_BYTES_MAX, FAULTS_LOGGED_FREELY};
use crate::log_limit::LogLimit;
use crate::protocol::control::{self, Answer, Refusal, Request};

/// A connection that lasted this long was a good one, and the pauses start from the shortest again.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// Pause after a try that failed because the user lacks a permission: an operator has to give it first.
const DENIED_PAUSE: Duration = Duration::from_secs(60);

/// What the thread is told at its start.
pub struct ControlOptions {
    /// Brokers, tried in turn. The URLs contain passwords.
    pub urls: Vec<String>,
    /// For those that are `amqps`.
    pub tls: TlsFiles,
    /// `node_name`: what answers call this process.
    pub node: String,
    /// Longest wait for one answer of a broker.
    pub answer_max: Duration,
}

/// Starts the thread "amqp-control", which connects by itself, reconnects for ever, and ends when the loop is gone.
///
/// # Errors
/// As of [`super::spawn`].
pub fn spawn(
    options: ControlOptions,
    requests: AskEnd<Request, Answer>,
    counters: Arc<AmqpCounters>,
) -> io::Result<AmqpThread> {
    let endpoints = parse_endpoints(&options.urls, &options.tls)?;
    let abort = Arc::new(Abort::default());
    let (alive, ended) = bounded(0);
    let watchdog = Arc::new(Watchdog::new(options.answer_max));
    watchdog.start(abort.clone(), ended.clone())?;
    let control = ControlThread {
        node: options.node,
        requests,
        counters,
        abort: abort.clone(),
        watchdog,
        connects: LogLimit::with_credit(FAULTS_LOGGED_FREELY),
        denials: LogLimit::default(),
        refusals: LogLimit::default(),
    };
    let thread = thread::Builder::new()
        .name("amqp-control".into())
        .spawn(move || {
            let _alive: Sender<()> = alive;
            control.run(&endpoints);
        })?;
    Ok(AmqpThread {
        thread,
        ended,
        abort,
    })
}

/// What the thread has for its whole life.
struct ControlThread {
    node: String,
    requests: AskEnd<Request, Answer>,
    counters: Arc<AmqpCounters>,
    abort: Arc<Abort>,
    watchdog: Arc<Watchdog>,
    connects: LogLimit,
    denials: LogLimit,
    refusals: LogLimit,
}

impl ControlThread {
    /// Connects to one of `endpoints` after the other, for ever; returns when the thread is to end.
    fn run(mut self, endpoints: &[Endpoint]) {
        let mut backoff = Backoff::new(endpoints.len(), RECONNECT_PAUSE_MAX);
        let mut faults = LogLimit::with_credit(FAULTS_LOGGED_FREELY);
        for endpoint in endpoints.iter().cycle() {
            let mut up_since = None;
            let served = catch_unwind(AssertUnwindSafe(|| {
                self.connect_and_serve(endpoint, &mut up_since)
            }));
            self.abort.cut();
            set(&self.counters.control_up, 0);
            let trouble = served.unwrap_or_else(|_| {
                increment(&self.counters.panics);
                Trouble::Because("the control side panicked, which is a bug".into())
            });
            if matches!(trouble, Trouble::Stop) || self.abort.is_stopping() {
                return;
            }
            increment(&self.counters.control_failures);
            if up_since.is_some_and(|since: Instant| since.elapsed() >= STABLE_AFTER) {
                backoff.reset();
                faults = LogLimit::with_credit(FAULTS_LOGGED_FREELY);
            }
            let pause = match &trouble {
                Trouble::Denied(_) => DENIED_PAUSE,
                _ => backoff.next(getrandom::u32().unwrap_or_default()),
            };
            self.tell(endpoint, &trouble, up_since.is_some(), pause, &mut faults);
            if self.pause(pause).is_err() {
                return;
            }
        }
    }

    /// Logs why a connection ended.
    fn tell(
        &mut self,
        endpoint: &Endpoint,
        trouble: &Trouble,
        was_up: bool,
        pause: Duration,
        faults: &mut LogLimit,
    ) {
        let (limit, cause) = match trouble {
            Trouble::Denied(what) => {
                increment(&self.counters.control_denied);
                (&mut self.denials, &**what)
            }
            Trouble::Because(cause) => (faults, &**cause),
            Trouble::ClientGone | Trouble::Stop => (faults, "the AMQP client ended"),
        };
        if let Some(left_out) = limit.pass(Instant::now()) {
            let what = if was_up {
                "connection lost"
            } else {
                "cannot connect"
            };
            let (cause, pause) = (endpoint.redact(cause), pause.as_millis());
            log::warn!(
                "amqp: control: {endpoint}: {what}: {cause}; next try in {pause} ms{left_out}"
            );
        }
    }

    /// Serves one connection from its beginning to its end.
    fn connect_and_serve(
        &mut self,
        endpoint: &Endpoint,
        up_since: &mut Option<Instant>,
    ) -> Trouble {
        let now = Instant::now();
        let vitals = Arc::new(Vitals::with_bodies_up_to(CONTROL_REQUEST_BYTES_MAX, now));
        let attempt = self.abort.begin();
        let mut connection = match connection::open(
            endpoint,
            "blackhole control",
            &self.abort,
            attempt,
            vitals.clone(),
        ) {
            Ok(connection) => connection,
            Err(error) => return Trouble::Because(error.to_string()),
        };
        let mut kept = None;
        let watchdog = self.watchdog.clone();
        let served = Post::open(&mut connection, &watchdog, &vitals).and_then(|post| {
            *up_since = Some(Instant::now());
            increment(&self.counters.control_connects);
            set(&self.counters.control_up, 1);
            if let Some(left_out) = self.connects.pass(Instant::now()) {
                log::info!("amqp: control: connected to {endpoint}{left_out}");
            }
            self.forget_answers()?;
            self.serve(post, &mut kept)
        });
        let question = self.watchdog.question();
        let close = connection.close();
        drop((question, kept));
        if vitals.violations() > 0 {
            increment(&self.counters.guard_violations);
        }
        let has_bitten = self.watchdog.has_bitten();
        match served {
            Ok(()) => Trouble::Stop,
            Err(Trouble::ClientGone | Trouble::Because(_)) if has_bitten => {
                increment(&self.counters.answers_overdue);
                let patience = self.watchdog.answer_max();
                Trouble::Because(format!("no answer for {} s", patience.as_secs()))
            }
            Err(Trouble::ClientGone) => Trouble::Because(connection::cause_of_end(close)),
            Err(trouble) => trouble,
        }
    }

    /// Waits, and loses the answers that come meanwhile.
    fn pause(&self, pause: Duration) -> Result<(), Trouble> {
        let deadline = Instant::now() + pause;
        loop {
            match self.requests.answers.recv_deadline(deadline) {
                Ok(_) => self.lose(),
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(Trouble::Stop),
            }
        }
    }

    /// Loses the answers to requests of an earlier connection.
    fn forget_answers(&self) -> Result<(), Trouble> {
        self.pause(Duration::ZERO)
    }

    fn lose(&self) {
        increment(&self.counters.control_answers_lost);
        self.requests.took_answer();
    }

    /// Takes requests and publishes answers until the loop is gone, which is no trouble, or the connection is. `kept` gets a
    /// receiver that must be kept until the connection is closed (AMQP rail 5).
    fn serve(
        &mut self,
        post: Post<'_>,
        kept: &mut Option<Receiver<ConsumerMessage>>,
    ) -> Result<(), Trouble> {
        let consumer = post.consume()?;
        let receiver = consumer.receiver().clone();
        *kept = Some(receiver.clone());
        let answers = self.requests.answers.clone();
        let served = loop {
            let step = select! {
                recv(receiver) -> message => match message {
                    Ok(message) => self.take(message, &post),
                    Err(_) => Err(Trouble::ClientGone),
                },
                recv(answers) -> answer => match answer {
                    Ok(answer) => self.send(&answer, &post),
                    Err(_) => break Ok(()),
                },
            };
            if let Err(trouble) = step {
                break Err(trouble);
            }
        };
        // Dropping it cancels it, and dropping the channels closes them; both wait for the broker's answer.
        let question = post.watchdog.question();
        drop(consumer);
        drop(question);
        served
    }

    fn take(&mut self, message: ConsumerMessage, post: &Post<'_>) -> Result<(), Trouble> {
        match message {
            ConsumerMessage::Delivery(delivery) => self.ask(delivery, post),
            ConsumerMessage::ServerCancelled => {
                Err(Trouble::Because("the queue was deleted".to_owned()))
            }
            ConsumerMessage::ServerClosedChannel(error) => Err(Trouble::Because(error.to_string())),
            ConsumerMessage::ClientCancelled
            | ConsumerMessage::ClientClosedChannel
            | ConsumerMessage::ClientClosedConnection
            | ConsumerMessage::ServerClosedConnection(_) => Err(Trouble::ClientGone),
        }
    }

    fn ask(&mut self, delivery: Delivery, post: &Post<'_>) -> Result<(), Trouble> {
        increment(&self.counters.control_requests);
        post.vitals.taken(delivery.body.len());
        let tag = delivery.delivery_tag();
        let complaint = if delivery.body.is_empty() && post.vitals.swallowed(tag).is_some() {
            increment(&self.counters.control_refused);
            Some("too large".to_owned())
        } else {
            match control::read(&delivery.exchange, &delivery.routing_key, &delivery.body) {
                Ok(request) => self.requests.try_ask(request).err().map(|_| {
                    increment(&self.counters.control_dropped);
                    "too many wait".to_owned()
                }),
                Err(refusal) => Some(self.refused(refusal)),
            }
        };
        if let Some(complaint) = complaint
            && let Some(left_out) = self.refusals.pass(Instant::now())
        {
            log::warn!("amqp: control: a request gets no answer: {complaint}{left_out}");
        }
        post.ack(delivery)
    }

    fn refused(&self, refusal: Refusal) -> String {
        increment(&self.counters.control_refused);
        refusal.to_string()
    }

    fn send(&self, answer: &Answer, post: &Post<'_>) -> Result<(), Trouble> {
        self.requests.took_answer();
        let sent = post.publish(answer, &self.node);
        increment(if sent.is_ok() {
            &self.counters.control_answers
        } else {
            &self.counters.control_answers_lost
        });
        sent
    }
}
