//! The marker of a durable queue (PROTOCOL 10, "Broker link"). A durable queue is there again after a restart of its
//! broker, and the transient messages that were in it are not: nobody could tell. So a second durable queue beside it,
//! which nobody reads, holds one transient message, the marker. Where that is missing, the broker has restarted, and
//! the queue may have lost what was in it.
//!
//! The marker is published on a connection of its own, which ends at once: never on that of the events (AMQP rail 7).
//! While there is no marker, because the broker blocks publishers or the user may not publish, a reconnect is told as a
//! gap: that may be one too many, and never one too few.
//!
//! Invariant: at most one thread publishes, and its connection is cut when it takes too long or the [`Marker`] is
//! dropped.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{AmqpProperties, Publish};
use crossbeam_channel::{Receiver, TryRecvError, bounded};

use super::abort::Abort;
use super::connection;
use super::guard::Vitals;
use super::url::Endpoint;
use crate::limits::FAULTS_LOGGED_FREELY;
use crate::log_limit::LogLimit;

/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(30);
/// `delivery-mode` of what does not survive a restart.
const TRANSIENT: u8 = 1;

/// The thread that publishes.
struct Publishing {
    abort: Arc<Abort>,
    since: Instant,
    outcome: Receiver<Result<(), String>>,
}

impl Drop for Publishing {
    fn drop(&mut self) {
        self.abort.stop();
        self.abort.cut();
    }
}

/// Keeps a marker in the queue that is for it.
pub(super) struct Marker {
    publishing: Option<Publishing>,
    not_before: Option<Instant>,
    faults: LogLimit,
}

impl Marker {
    pub(super) fn new() -> Self {
        Self {
            publishing: None,
            not_before: None,
            faults: LogLimit::with_credit(FAULTS_LOGGED_FREELY),
        }
    }

    /// To be called again and again, with whether the marker is in `queue`. Never blocks.
    pub(super) fn keep(
        &mut self,
        is_there: bool,
        queue: &str,
        endpoint: &Endpoint,
        answer_max: Duration,
        now: Instant,
    ) {
        if let Some(publishing) = &self.publishing {
            let outcome = match publishing.outcome.try_recv() {
                Ok(outcome) => outcome,
                Err(TryRecvError::Empty) if now < publishing.since + answer_max => return,
                Err(TryRecvError::Empty) => Err("no answer".to_owned()),
                Err(TryRecvError::Disconnected) => Err("the AMQP client panicked".to_owned()),
            };
            self.publishing = None;
            self.not_before = Some(now + RETRY);
            if let Err(cause) = outcome
                && let Some(left_out) = self.faults.pass(now)
            {
                let cause = endpoint.redact(&cause);
                log::warn!(
                    "amqp: no marker beside the durable queue, so every reconnect is told as a gap: {cause}{left_out}"
                );
            }
        }
        if !is_there && self.not_before.is_none_or(|moment| moment <= now) {
            self.publishing = start(queue.to_owned(), endpoint.clone(), now);
        }
    }
}

/// Starts the thread. `None`: the system refuses it.
fn start(queue: String, endpoint: Endpoint, now: Instant) -> Option<Publishing> {
    let (told, outcome) = bounded(1);
    let abort = Arc::new(Abort::default());
    let its_abort = abort.clone();
    let started = thread::Builder::new()
        .name("amqp-marker".into())
        .spawn(move || {
            // An error: nobody waits any more.
            let _ = told.send(publish(&queue, &endpoint, &its_abort));
        });
    started.ok().map(|_| Publishing {
        abort,
        since: now,
        outcome,
    })
}

fn publish(queue: &str, endpoint: &Endpoint, abort: &Abort) -> Result<(), String> {
    let vitals = Arc::new(Vitals::new(Instant::now()));
    let mut connection =
        connection::open(endpoint, "blackhole marker", abort, abort.begin(), vitals)
            .map_err(|error| error.to_string())?;
    let published = connection.open_channel(None).and_then(|channel| {
        let properties = AmqpProperties::default().with_delivery_mode(TRANSIENT);
        channel.basic_publish("", Publish::with_properties(b"{}", queue, properties))?;
        // Answered only when the broker has taken it.
        channel.qos(0, 0, false)
    });
    let closed = connection.close();
    published.and(closed).map_err(|error| error.to_string())
}
