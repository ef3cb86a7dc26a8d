//! Figures that the guard shares with the threads that use the connection: when the broker was last heard, how many
//! bytes wait to be taken, which bodies were swallowed.
//!
//! Invariants: only the thread that reads adds to the backlog, and only the consumer takes from it; swallowed bodies
//! are asked for in the order of their coming.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::bounds::{BODY_BYTES_MAX, SWALLOWED_MAX, Violation};

/// The figures of one connection.
#[derive(Debug)]
pub(in crate::amqp) struct Vitals {
    epoch: Instant,
    heard_micros: AtomicU64,
    backlog_bytes: AtomicU64,
    violations: AtomicU64,
    /// Largest body that is passed on; a larger one is swallowed.
    body_bytes_max: u64,
    /// Whether its deliveries are of a stream, whose offsets are handed on.
    has_offsets: bool,
    /// Tag and announced bytes of deliveries whose body was swallowed, in the order of their coming.
    swallowed: Mutex<VecDeque<(u64, u64)>>,
}

impl Vitals {
    /// Of a connection whose bodies are events.
    pub(in crate::amqp) fn new(now: Instant) -> Self {
        Self::with_bodies_up_to(BODY_BYTES_MAX, now)
    }

    /// Of a connection whose deliveries are of a stream: the offset of each, from its headers, is handed on as its
    /// timestamp.
    pub(in crate::amqp) fn of_a_stream(now: Instant) -> Self {
        Self {
            has_offsets: true,
            ..Self::new(now)
        }
    }

    /// Of a connection whose larger bodies are swallowed.
    pub(in crate::amqp) fn with_bodies_up_to(body_bytes_max: u64, now: Instant) -> Self {
        Self {
            body_bytes_max,
            has_offsets: false,
            epoch: now,
            heard_micros: AtomicU64::new(0),
            backlog_bytes: AtomicU64::new(0),
            violations: AtomicU64::new(0),
            swallowed: Mutex::default(),
        }
    }

    /// When bytes last came from the broker; before any came, the time given to [`Vitals::new`].
    pub(in crate::amqp) fn last_heard(&self) -> Instant {
        self.epoch + Duration::from_micros(self.heard_micros.load(Ordering::Relaxed))
    }

    /// Largest body that is passed on.
    pub(super) fn body_bytes_max(&self) -> u64 {
        self.body_bytes_max
    }

    /// Whether the offset of a delivery takes the place of its timestamp.
    pub(super) fn has_offsets(&self) -> bool {
        self.has_offsets
    }

    /// Bytes of bodies read but not yet taken.
    pub(super) fn backlog_bytes(&self) -> u64 {
        self.backlog_bytes.load(Ordering::Relaxed)
    }

    /// A content header announced a body of this many bytes, which is passed on.
    pub(super) fn received(&self, body_bytes: u64) {
        self.backlog_bytes.fetch_add(body_bytes, Ordering::Relaxed);
    }

    /// The consumer took a delivery with a body of this many bytes.
    pub(in crate::amqp) fn taken(&self, body_bytes: usize) {
        self.backlog_bytes
            .fetch_sub(body_bytes as u64, Ordering::Relaxed);
    }

    /// Returns the announced size of a body that was swallowed; `None`: the body was empty. To be called once for each
    /// delivery with an empty body, in the order of their coming. `tag` is the delivery's, on the one channel that
    /// consumes.
    pub(in crate::amqp) fn swallowed(&self, tag: u64) -> Option<u64> {
        let mut swallowed = self
            .swallowed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match swallowed.front() {
            Some(&(its_tag, bytes)) if its_tag == tag => {
                swallowed.pop_front();
                Some(bytes)
            }
            _ => None,
        }
    }

    pub(super) fn swallow(&self, tag: u64, bytes: u64) -> Result<(), Violation> {
        let mut swallowed = self
            .swallowed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if swallowed.len() >= SWALLOWED_MAX {
            return Err(Violation::TooManySwallowed);
        }
        swallowed.push_back((tag, bytes));
        Ok(())
    }

    /// Violations on this connection: 0 or 1.
    pub(in crate::amqp) fn violations(&self) -> u64 {
        self.violations.load(Ordering::Relaxed)
    }

    pub(super) fn count_violation(&self) {
        self.violations.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn hear(&self) {
        let micros = u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.heard_micros.store(micros, Ordering::Relaxed);
    }
}
