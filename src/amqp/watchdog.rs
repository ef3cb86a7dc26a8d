//! The watchdog: every question to the broker has a deadline, and a broker that only sends heartbeats is left.
//!
//! The AMQP client's calls have no timeouts, and a heartbeat is enough for it. So each call that asks the broker
//! something is [registered](Watchdog::question) for as long as it lasts, and a thread of its own cuts the connection
//! when one lasts longer than the bound ([`crate::limits::BROKER_ANSWER_MAX`]). The queue's length is asked for every
//! second, so a broker that stops answering is always noticed.
//!
//! Invariant: a connection is cut at most the bound and [`LOOK`] after the beginning of a question without an answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use slab::Slab;

use super::abort::Abort;

/// How often the thread checks for a question that waits too long.
const LOOK: Duration = Duration::from_secs(1);

/// The questions that wait for their answers, and since when each does.
#[derive(Debug)]
pub(super) struct Watchdog {
    answer_max: Duration,
    questions: Mutex<Slab<Instant>>,
    /// A question waited too long since [`Watchdog::has_bitten`] was last called.
    has_bitten: AtomicBool,
}

/// A question that waits for its answer, until it is dropped.
#[derive(Debug)]
pub(super) struct Question<'w> {
    watchdog: &'w Watchdog,
    key: usize,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.watchdog.lock().try_remove(self.key);
    }
}

impl Watchdog {
    /// A watchdog without questions; each answer may take `answer_max`.
    pub(super) fn new(answer_max: Duration) -> Self {
        Self {
            answer_max,
            questions: Mutex::default(),
            has_bitten: AtomicBool::new(false),
        }
    }

    /// Longest wait for one answer.
    pub(super) fn answer_max(&self) -> Duration {
        self.answer_max
    }

    /// The broker is asked something, until the question is dropped.
    pub(super) fn question(&self) -> Question<'_> {
        let key = self.lock().insert(Instant::now());
        Question {
            watchdog: self,
            key,
        }
    }

    /// Whether the connection was cut because of a question, since the last call.
    pub(super) fn has_bitten(&self) -> bool {
        self.has_bitten.swap(false, Ordering::SeqCst)
    }

    /// Starts the thread "amqp-watch", which ends when `ended` is disconnected.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub(super) fn start(
        self: &Arc<Self>,
        abort: Arc<Abort>,
        ended: Receiver<()>,
    ) -> std::io::Result<()> {
        let watchdog = self.clone();
        thread::Builder::new()
            .name("amqp-watch".into())
            .spawn(move || {
                while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                    if watchdog.is_overdue(Instant::now()) {
                        watchdog.has_bitten.store(true, Ordering::SeqCst);
                        abort.cut();
                    }
                }
            })
            .map(|_| ())
    }

    /// Whether a question has waited for too long.
    fn is_overdue(&self, now: Instant) -> bool {
        let waits = |since: &Instant| now.saturating_duration_since(*since);
        let questions = self.lock();
        questions
            .iter()
            .any(|(_, since)| waits(since) > self.answer_max)
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Instant>> {
        self.questions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_question_that_still_waits_is_overdue() {
        let (watchdog, now) = (Watchdog::new(Duration::from_secs(20)), Instant::now());
        let late = now + watchdog.answer_max() + Duration::from_secs(60);
        assert!(!watchdog.is_overdue(late));
        let first = watchdog.question();
        let second = watchdog.question();
        assert!(!watchdog.is_overdue(now + Duration::from_secs(10)) && watchdog.is_overdue(late));
        drop(first);
        assert!(watchdog.is_overdue(late));
        drop(second);
        assert!(!watchdog.is_overdue(late));
    }
}
